//! A port without tasks, threads, clocks and a TAP: session, pumps and control
//! rings as they are, moved by hand.
//!
//! For simulations: whoever owns one calls [`step_pump`](SteppedPort::step_pump) and
//! [`step_control`](SteppedPort::step_control) when what they slept for has come,
//! and brings frames and time ([`Ether`]). What a step decides is the same code
//! that the daemon runs; only what wakes it is not. Dropping a port is what `kill -9`
//! does to it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use shm_link::doorbell::Doorbell;
use shm_link::link::{MAX_CONTROL_LEN, MAX_FRAME_LEN};
use shm_link::offload::{OffloadHeader, Offloads};
use shm_link::region::Region;
use shm_link::ring::{Arm, RingWatch};
use shm_link::shm::{HostEnd, ShmError};
use shm_link::superblock::Layout;

use super::config::{PortChange, PortConfig};
use super::core::{BUDGET_MESSAGES, MESSAGES};
use super::rings::ControlRings;
use super::status::PortEnd;
use crate::bell::GuestBell;
use crate::counters::{PortCounters, PortSnapshot};
use crate::limit::{Limiter, Limits};
use crate::policy::{PolicyWatch, Stop};
use crate::pump::{Both, PumpEnd, PumpShared, Sleep, Wire};
use crate::session::{Action, PortState, Session, TapSettings};
use crate::tap::ALL_OFFLOADS;
use crate::tap::RawSlice;

/// What stands in for a TAP and the clock.
pub trait Ether {
    /// The time.
    fn now(&self) -> Instant;

    /// Takes the next frame, at most `max_len` bytes of it.
    fn take(&self, max_len: usize) -> Option<(OffloadHeader, Vec<u8>)>;

    /// Gives a frame away.
    ///
    /// # Errors
    /// As a TAP's ([`classify`](crate::tap::classify)).
    fn give(&self, offload: OffloadHeader, frame: Vec<u8>) -> io::Result<()>;

    /// The interface is to have this MTU, this carrier, and these offloads for
    /// frames that are taken.
    fn set(&self, mtu: u16, carrier: bool, offloads: Offloads);

    /// Something was said for the log.
    fn log(&self, text: &str);
}

/// Makes an [`Ether`] what the pumps want.
struct Device<E>(E);

impl<E: Ether> Wire for Device<E> {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn completes(&self) -> bool {
        true
    }

    unsafe fn read(
        &self,
        start: *mut u8,
        len: usize,
    ) -> io::Result<Option<(usize, OffloadHeader)>> {
        let Some((offload, frame)) = self.0.take(len) else {
            return Ok(None);
        };
        let len = len.min(frame.len());
        // SAFETY: `start` has at least `len` bytes, which the caller promises; a
        // Vec of ours does not overlap them.
        unsafe { std::ptr::copy_nonoverlapping(frame.as_ptr(), start, len) };
        Ok(Some((len, offload)))
    }

    unsafe fn write(&self, offload: OffloadHeader, parts: [RawSlice; 2]) -> io::Result<()> {
        let mut frame = Vec::new();
        for (start, len) in parts.map(RawSlice::parts) {
            if len != 0 {
                let at = frame.len();
                frame.resize(at + len, 0);
                // SAFETY: the part has `len` bytes, which the caller promises; the
                // Vec has as many behind `at`.
                unsafe { std::ptr::copy_nonoverlapping(start, frame[at..].as_mut_ptr(), len) };
            }
        }
        self.0.give(offload, frame)
    }
}

/// What to do after a step.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is more to do.
    Again,
    /// Sleep until the guest rings (the pump; the control task is woken by the
    /// pump), the policy changes, or what is named here.
    Sleep {
        /// There is a frame to take.
        readable: bool,
        /// This time has come.
        due: Option<Instant>,
    },
}

/// A port.
pub struct SteppedPort<E: Ether> {
    session: Session,
    rings: ControlRings,
    watches: [RingWatch; 2],
    both: Both<Device<E>>,
    policy: PolicyWatch,
    device: Arc<Device<E>>,
    counters: Arc<PortCounters>,
    ring_guest: GuestBell,
    messages: Limiter,
    /// A control ring has what the control task waits for.
    notified: bool,
    mtu: u16,
    answers: Vec<(u32, Result<(), String>)>,
    /// Keeps the rings mapped.
    _region: Region,
}

impl<E: Ether> SteppedPort<E> {
    /// Takes the rings of `region`, publishes its memory map and rings the guest, as
    /// [`Bridge::attach_as`](crate::bridge::Bridge::attach_as) does. Of `config` the
    /// TAP, the bridge and the host's addresses do not count.
    ///
    /// # Errors
    /// [`ShmError`] when the guest wrote over the rings' cursors.
    ///
    /// # Panics
    /// On a configuration that makes no sense, or a region that is too small.
    pub fn new(
        region: Region,
        layout: &Layout,
        ring_guest: Arc<dyn Fn() + Send + Sync>,
        ether: E,
        config: PortConfig,
    ) -> Result<Self, ShmError> {
        // As in `shm::open`: a super-frame that did not fit would lose its end.
        let capable = match layout.frames.to_guest.max_frame_len() {
            MAX_FRAME_LEN if config.offloads => ALL_OFFLOADS,
            _ => Offloads::NONE,
        };
        let mtu = config.network.mtu;
        let session = Session::new(
            config.network,
            capable,
            config.filter,
            config.limits,
            config.impair_to_host,
            config.impair_to_guest,
        );
        // The simulation's own mistake, see above: a guest has no say in it.
        let session = session.expect("a configuration that makes sense");
        let host = HostEnd::resume(&region, layout)?;
        let device = Arc::new(Device(ether));
        device.0.set(mtu, false, Offloads::NONE);
        let counters = Arc::new(PortCounters::default());
        let ring_guest = GuestBell::calling(ring_guest);
        let shared = PumpShared {
            tap: device.clone(),
            counters: counters.clone(),
            policy: session.policy(),
        };
        let policy = session.policy();
        let frames = (host.frames_rx, host.frames_tx);
        // The same: the simulation made both.
        layout
            .publish(&region)
            .expect("a region that is long enough");
        ring_guest.ring();
        Ok(Self {
            watches: [host.control_rx.watch(), host.control_tx.watch()],
            rings: ControlRings::new(host.control_rx, host.control_tx),
            both: Both::new(frames, ring_guest.clone(), shared),
            session,
            policy,
            device,
            counters,
            ring_guest,
            messages: Limiter::new(MESSAGES),
            notified: true,
            mtu,
            answers: Vec::new(),
            _region: region,
        })
    }

    /// Moves frames; a pump's turn.
    ///
    /// # Errors
    /// Why the port is to [`end`](Self::end).
    pub fn step_pump(&mut self) -> Result<Step, PortEnd> {
        self.both.disarm();
        let policy = self.policy.borrow_and_update().clone();
        let turned = self.both.turn(&policy)?;
        self.notified |= self.watches.iter().any(RingWatch::is_due);
        if turned.more {
            return Ok(Step::Again);
        }
        Ok(match self.both.arm(&policy)? {
            Some(Sleep { readable, due, .. }) => Step::Sleep { readable, due },
            None => Step::Again,
        })
    }

    /// Whether a sleeping pump has a new policy to look at.
    pub fn policy_changed(&self) -> bool {
        self.policy.has_changed().unwrap_or(true)
    }

    /// Whether the control task is to step.
    pub fn is_notified(&self) -> bool {
        self.notified
    }

    /// Moves control messages; a turn of the port's task.
    ///
    /// # Errors
    /// Why the port is to [`end`](Self::end).
    pub fn step_control(&mut self) -> Result<Step, PortEnd> {
        if std::mem::take(&mut self.notified) {
            self.rings.disarm();
        }
        if self.exchange()? {
            return Ok(Step::Again);
        }
        let takes_message = self.takes_message();
        Ok(match self.rings.arm(&mut self.session, takes_message)? {
            Arm::Awake => Step::Again,
            Arm::Sleep => Step::Sleep {
                readable: false,
                due: self.messages.pause(self.device.now()),
            },
        })
    }

    fn takes_message(&self) -> bool {
        self.messages.pause(self.device.now()).is_none() && self.session.wants_input()
    }

    fn exchange(&mut self) -> Result<bool, PortEnd> {
        let mut buf = [0; MAX_CONTROL_LEN];
        let mut busy = true;
        let mut wake = shm_link::ring::Wake::NotNeeded;
        for _ in 0..BUDGET_MESSAGES {
            wake = wake.or(self.rings.transmit(&mut self.session)?);
            let message = match self.takes_message() {
                true => self.rings.receive(&mut buf)?,
                false => None,
            };
            let Some(len) = message else {
                busy = false;
                break;
            };
            self.messages.charge(self.device.now(), 0);
            for action in self.session.handle_message(&buf[..len])? {
                self.act(action);
            }
        }
        wake = wake.or(self.rings.transmit(&mut self.session)?);
        wake = wake.or(self.rings.give_back());
        wake.ring(&self.ring_guest);
        Ok(busy)
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::SetTap(settings) => {
                self.mtu = settings.mtu;
                self.set(settings);
            }
            Action::Open => self.session.open(),
            Action::Answered { serial, result } => self.answers.push((serial, result)),
            Action::Log { level: _, text } => self.device.0.log(&text),
        }
    }

    fn set(&self, settings: TapSettings) {
        let TapSettings {
            mtu,
            carrier,
            offloads,
        } = settings;
        self.device.0.set(mtu, carrier, offloads);
    }

    /// Changes the port as an administrator does; the control task is to step.
    /// `Some`: the serial by which the guest's answer will name the change.
    ///
    /// # Errors
    /// Words that say what is wrong with it.
    pub fn change(&mut self, change: &PortChange) -> Result<Option<u32>, String> {
        let serial = self.session.update(
            |network| change.apply(network),
            change.impair_to_host.clone(),
            change.impair_to_guest.clone(),
        )?;
        let before = self.session.limits();
        self.session.set_limits(Limits {
            to_host: change.limit_to_host.unwrap_or(before.to_host),
            to_guest: change.limit_to_guest.unwrap_or(before.to_guest),
        });
        self.notified = true;
        let settings = self.session.agreed().map(TapSettings::from);
        let Some(mut settings) = settings.filter(|_| serial.is_some()) else {
            return Ok(None);
        };
        settings.mtu = settings.mtu.min(self.mtu);
        self.set(settings);
        Ok(serial)
    }

    /// Answers of the guest to changes, since this was called last.
    pub fn take_answers(&mut self) -> Vec<(u32, Result<(), String>)> {
        std::mem::take(&mut self.answers)
    }

    /// How far the guest is.
    pub fn state(&self) -> &PortState {
        self.session.state()
    }

    /// What was moved and dropped.
    pub fn counters(&self) -> PortSnapshot {
        self.counters.snapshot()
    }

    /// Ends the port, and says what was moved and dropped.
    pub fn end(mut self, end: &PortEnd) -> PortSnapshot {
        let stop = end.stop();
        self.session.end(end.to_string(), stop);
        self.both.end(&PumpEnd::Told(stop));
        if stop == Stop::Close {
            self.rings.close();
            self.ring_guest.ring();
        }
        self.device.0.set(self.mtu, false, Offloads::NONE);
        self.counters.snapshot()
    }
}
