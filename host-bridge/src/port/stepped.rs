//! A port without tasks, threads, clocks and a TAP: session, pumps and control
//! rings as they are, moved by hand.
//!
//! For simulations: whoever owns one calls [`step_pump`](SteppedPort::step_pump) and
//! [`step_control`](SteppedPort::step_control) when what they slept for has come,
//! and brings frames and time ([`Ether`]). What a step decides is the same code
//! that the daemon runs; only what wakes it is not. Dropping a port is what `kill -9`
//! does to it.
//!
//! A port over a byte stream has no control task: its pump does all.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use embedded_io::{Read, ReadReady, Write, WriteReady};
use shm_link::doorbell::Doorbell;
use shm_link::link::{MAX_CONTROL_LEN, MAX_FRAME_LEN};
use shm_link::offload::{OffloadHeader, Offloads};
use shm_link::region::Region;
use shm_link::ring::{Arm, RingWatch};
use shm_link::shm::{HostEnd, ShmError};
use shm_link::stream::Framing;
use shm_link::superblock::Layout;

use super::config::{PortChange, PortConfig};
use super::core::MESSAGES;
use super::rings::ControlRings;
use super::status::PortEnd;
use super::stream::Repeater;
use crate::bell::GuestBell;
use crate::counters::{PortCounters, PortSnapshot};
use crate::limit::{Limiter, Limits};
use crate::policy::{PolicyWatch, Stop};
use crate::pump::{
    BUDGET_MESSAGES, Both, Input, InputTurn, PumpEnd, PumpShared, Sleep, Stream, StreamPump, Turn,
    Wire,
};
use crate::session::{Action, PortState, Session, TapSettings};
use crate::tap::{ALL_OFFLOADS, RawSlice};

/// What stands in for a TAP and the clock.
pub trait Ether {
    /// The time.
    fn now(&self) -> Instant;

    /// Takes the next frame, at most `max_len` bytes of it.
    ///
    /// # Errors
    /// Why there will never be one again: the TAP was deleted.
    fn take(&self, max_len: usize) -> io::Result<Option<(OffloadHeader, Vec<u8>)>>;

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
        let Some((offload, frame)) = self.0.take(len)? else {
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
        /// The byte stream may have bytes that it had not before, or take some.
        stream: Interest,
        /// This time has come.
        due: Option<Instant>,
    },
}

/// What of a byte stream ends a sleep.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// Bytes to read.
    pub input: bool,
    /// Room to write.
    pub output: bool,
}

/// What a port has, whatever carries its frames.
struct Core<E> {
    session: Session,
    device: Arc<Device<E>>,
    counters: Arc<PortCounters>,
    messages: Limiter,
    mtu: u16,
    answers: Vec<(u32, Result<(), String>)>,
}

impl<E: Ether> Core<E> {
    fn new(ether: E, config: PortConfig, capable: Offloads) -> Self {
        let mtu = config.network.mtu;
        let session = Session::new(
            config.network,
            capable,
            config.filter,
            config.limits,
            config.impair_to_host,
            config.impair_to_guest,
        );
        // The simulation's own mistake: a guest has no say in it.
        let session = session.expect("a configuration that makes sense");
        let device = Arc::new(Device(ether));
        device.0.set(mtu, false, Offloads::NONE);
        Self {
            session,
            device,
            counters: Arc::default(),
            messages: Limiter::new(MESSAGES),
            mtu,
            answers: Vec::new(),
        }
    }

    fn pump_shared(&self) -> PumpShared<Device<E>> {
        PumpShared {
            tap: self.device.clone(),
            counters: self.counters.clone(),
            policy: self.session.policy(),
        }
    }

    fn message_pause(&self) -> Option<Instant> {
        self.messages.pause(self.device.now())
    }

    fn takes_message(&self) -> bool {
        self.message_pause().is_none() && self.session.wants_input()
    }

    fn handle_message(&mut self, message: &[u8]) -> Result<(), PortEnd> {
        self.messages.charge(self.device.now(), 0);
        for action in self.session.handle_message(message)? {
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
        Ok(())
    }

    fn set(&self, settings: TapSettings) {
        let TapSettings {
            mtu,
            carrier,
            offloads,
        } = settings;
        self.device.0.set(mtu, carrier, offloads);
    }
}

/// What carries a port's frames.
enum Carrier<E: Ether, S> {
    Rings(Box<Rings<E>>),
    Stream(Box<StreamSide<E, S>>),
}

/// The host's halves of the rings of a region.
struct Rings<E: Ether> {
    control: ControlRings,
    watches: [RingWatch; 2],
    both: Both<Device<E>>,
    ring_guest: GuestBell,
    /// A control ring has what the control task waits for.
    notified: bool,
    /// Keeps the rings mapped.
    _region: Region,
}

impl<E: Ether> Rings<E> {
    fn step_pump(&mut self, policy: &mut PolicyWatch) -> Result<Step, PortEnd> {
        self.both.disarm();
        let policy = policy.borrow_and_update().clone();
        let turned = self.both.turn(&policy)?;
        self.notified |= self.watches.iter().any(RingWatch::is_due);
        if turned.more {
            return Ok(Step::Again);
        }
        Ok(match self.both.arm(&policy)? {
            Some(Sleep { readable, due, .. }) => Step::Sleep {
                readable,
                stream: Interest::default(),
                due,
            },
            None => Step::Again,
        })
    }

    fn step_control(&mut self, core: &mut Core<E>) -> Result<Step, PortEnd> {
        if std::mem::take(&mut self.notified) {
            self.control.disarm();
        }
        if self.exchange(core)? {
            return Ok(Step::Again);
        }
        let takes_message = core.takes_message();
        Ok(match self.control.arm(&mut core.session, takes_message)? {
            Arm::Awake => Step::Again,
            Arm::Sleep => Step::Sleep {
                readable: false,
                stream: Interest::default(),
                due: core.message_pause(),
            },
        })
    }

    fn exchange(&mut self, core: &mut Core<E>) -> Result<bool, PortEnd> {
        let mut buf = [0; MAX_CONTROL_LEN];
        let mut busy = true;
        let mut wake = shm_link::ring::Wake::NotNeeded;
        for _ in 0..BUDGET_MESSAGES {
            wake = wake.or(self.control.transmit(&mut core.session)?);
            let message = match core.takes_message() {
                true => self.control.receive(&mut buf)?,
                false => None,
            };
            let Some(len) = message else {
                busy = false;
                break;
            };
            core.handle_message(&buf[..len])?;
        }
        wake = wake.or(self.control.transmit(&mut core.session)?);
        wake = wake.or(self.control.give_back());
        wake.ring(&self.ring_guest);
        Ok(busy)
    }
}

/// The host's end of a byte stream.
struct StreamSide<E, S> {
    pump: StreamPump<S, Device<E>>,
    repeater: Repeater,
    /// The guest takes nothing any more; what it sent before is still to be delivered.
    draining: bool,
}

impl<E: Ether, S: Stream> StreamSide<E, S> {
    fn step(&mut self, core: &mut Core<E>) -> Result<Step, PortEnd> {
        let more = self.take_input(core)?;
        let pause = self.pump.input_pause().max(core.message_pause());
        if self.draining {
            return match pause {
                None if more => Ok(Step::Again),
                None => Err(PortEnd::Closed),
                Some(_) => Ok(Step::Sleep {
                    readable: false,
                    stream: Interest::default(),
                    due: pause,
                }),
            };
        }
        let now = (core.device.now(), self.pump.take_heard());
        let session = &mut core.session;
        let greet = || self.pump.greet_again();
        let stopped = match self
            .repeater
            .repeat(session, now, greet)
            .and_then(|()| self.pump.give_output(session))
        {
            Ok(stopped) => stopped,
            Err(PumpEnd::Closed) => {
                self.draining = true;
                return Ok(Step::Again);
            }
            Err(end) => return Err(end.into()),
        };
        let takes_input = pause.is_none() && core.session.wants_input();
        if more || !self.pump.may_sleep(takes_input, stopped)? {
            return Ok(Step::Again);
        }
        let dues = [
            self.pump.due_to_guest(stopped),
            self.pump.due_to_host(pause),
            self.repeater.at,
        ];
        Ok(Step::Sleep {
            readable: stopped == Turn::TapEmpty,
            stream: Interest {
                input: takes_input,
                output: self.pump.wants_write(),
            },
            due: dues.into_iter().flatten().min(),
        })
    }

    fn take_input(&mut self, core: &mut Core<E>) -> Result<bool, PortEnd> {
        let mut message = [0; MAX_CONTROL_LEN];
        let mut turn = InputTurn::FULL;
        loop {
            let takes_message = || core.takes_message();
            let input = self
                .pump
                .next_input(&mut turn, takes_message, &mut message)?;
            match input {
                Input::Message(len) => core.handle_message(&message[..len])?,
                Input::Idle => return Ok(false),
                Input::Budget => return Ok(true),
            }
        }
    }
}

/// A port.
pub struct SteppedPort<E: Ether, S> {
    core: Core<E>,
    carrier: Carrier<E, S>,
    policy: PolicyWatch,
}

impl<E: Ether, S> SteppedPort<E, S>
where
    S: Read + ReadReady + Write + WriteReady + Clone,
{
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
        let host = HostEnd::resume(&region, layout)?;
        let core = Core::new(ether, config, capable);
        let ring_guest = GuestBell::calling(ring_guest);
        let frames = (host.frames_rx, host.frames_tx);
        // The simulation made both.
        layout
            .publish(&region)
            .expect("a region that is long enough");
        ring_guest.ring();
        let rings = Rings {
            watches: [host.control_rx.watch(), host.control_tx.watch()],
            control: ControlRings::new(host.control_rx, host.control_tx),
            both: Both::new(frames, ring_guest.clone(), core.pump_shared()),
            ring_guest,
            notified: true,
            _region: region,
        };
        Ok(Self {
            policy: core.session.policy(),
            core,
            carrier: Carrier::Rings(Box::new(rings)),
        })
    }

    /// Takes a byte stream, as
    /// [`Bridge::attach_stream`](crate::bridge::Bridge::attach_stream) does. Of `config`
    /// the TAP, the bridge and the host's addresses do not count.
    ///
    /// # Panics
    /// On a configuration that makes no sense.
    pub fn over_stream(stream: &S, framing: Framing, ether: E, config: PortConfig) -> Self {
        let capable = match config.offloads && framing == Framing::Prefixed {
            true => ALL_OFFLOADS,
            false => Offloads::NONE,
        };
        let core = Core::new(ether, config, capable);
        let pump = StreamPump::new(stream, framing, core.pump_shared());
        let side = StreamSide {
            // Fails only with buffers that are too short.
            pump: pump.expect("buffers that are long enough"),
            repeater: Repeater::new(framing),
            draining: false,
        };
        Self {
            policy: core.session.policy(),
            core,
            carrier: Carrier::Stream(Box::new(side)),
        }
    }

    /// Moves frames; a pump's turn. Over a byte stream control messages as well.
    ///
    /// # Errors
    /// Why the port is to [`end`](Self::end).
    pub fn step_pump(&mut self) -> Result<Step, PortEnd> {
        match &mut self.carrier {
            Carrier::Rings(rings) => rings.step_pump(&mut self.policy),
            Carrier::Stream(side) => {
                self.policy.mark_unchanged();
                side.step(&mut self.core)
            }
        }
    }

    /// Whether a sleeping pump has a new policy to look at.
    pub fn policy_changed(&self) -> bool {
        self.policy.has_changed().unwrap_or(true)
    }

    /// Whether the control task is to step.
    pub fn is_notified(&self) -> bool {
        match &self.carrier {
            Carrier::Rings(rings) => rings.notified,
            Carrier::Stream(_) => false,
        }
    }

    /// Moves control messages; a turn of the port's task. Over a byte stream there is
    /// none.
    ///
    /// # Errors
    /// Why the port is to [`end`](Self::end).
    pub fn step_control(&mut self) -> Result<Step, PortEnd> {
        match &mut self.carrier {
            Carrier::Rings(rings) => rings.step_control(&mut self.core),
            Carrier::Stream(_) => Ok(Step::Sleep {
                readable: false,
                stream: Interest::default(),
                due: None,
            }),
        }
    }

    /// Changes the port as an administrator does; the control task is to step, or over a
    /// byte stream the pump.
    /// `Some`: the serial by which the guest's answer will name the change.
    ///
    /// # Errors
    /// Words that say what is wrong with it.
    pub fn change(&mut self, change: &PortChange) -> Result<Option<u32>, String> {
        let serial = self.core.session.update(
            |network| change.apply(network),
            change.impair_to_host.clone(),
            change.impair_to_guest.clone(),
        )?;
        let before = self.core.session.limits();
        self.core.session.set_limits(Limits {
            to_host: change.limit_to_host.unwrap_or(before.to_host),
            to_guest: change.limit_to_guest.unwrap_or(before.to_guest),
        });
        if let Carrier::Rings(rings) = &mut self.carrier {
            rings.notified = true;
        }
        let settings = self.core.session.agreed_tap();
        let Some(mut settings) = settings.filter(|_| serial.is_some()) else {
            return Ok(None);
        };
        settings.mtu = settings.mtu.min(self.core.mtu);
        self.core.set(settings);
        Ok(serial)
    }

    /// Answers of the guest to changes, since this was called last.
    pub fn take_answers(&mut self) -> Vec<(u32, Result<(), String>)> {
        std::mem::take(&mut self.core.answers)
    }

    /// How far the guest is.
    pub fn state(&self) -> &PortState {
        self.core.session.state()
    }

    /// What was moved and dropped.
    pub fn counters(&self) -> PortSnapshot {
        self.core.counters.snapshot()
    }

    /// Ends the port, and says what was moved and dropped.
    pub fn end(mut self, end: &PortEnd) -> PortSnapshot {
        let stop = end.stop();
        self.core.session.end(end.to_string(), stop);
        match self.carrier {
            Carrier::Rings(mut rings) => {
                rings.both.end(&PumpEnd::Told(stop));
                if stop == Stop::Close {
                    rings.control.close();
                    rings.ring_guest.ring();
                }
            }
            // As in `stream::Task::run`.
            Carrier::Stream(mut side) => {
                let tell = stop == Stop::Close && *end != PortEnd::Closed;
                side.pump.end(tell);
            }
        }
        self.core.device.0.set(self.core.mtu, false, Offloads::NONE);
        self.core.counters.snapshot()
    }
}

/// What a guest that takes these offloads gets of a frame from the TAP, and what is left
/// to do for each; `None`: nothing, the frame contradicts itself.
pub fn finished(
    offload: OffloadHeader,
    frame: Vec<u8>,
    takes: Offloads,
) -> Option<Vec<(OffloadHeader, Vec<u8>)>> {
    crate::pump::finished(offload, frame, takes)
}
