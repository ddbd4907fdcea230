//! Both directions of a port over shared memory: turns, and the sleep between
//! them.
//!
//! One task has both, because they feed each other: an acknowledgement that goes
//! to the kernel makes it send at once, and the next turn finds what it sent,
//! with no wake-up in between. Neither waits for the other: each turn has a
//! budget, and the task sleeps only when both have nothing to do.
//!
//! It also waits for the doorbell in place of the port's task, so that a ring
//! wakes one task and not three, and passes on what is meant for that one.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shm_link::record::{RecordReader, RecordWriter};
use shm_link::ring::{Arm, RingWatch};
use shm_link::spin::Spin;
use tokio::sync::Notify;

use super::to_guest::{ToGuest, Turn};
use super::to_host::ToHost;
use super::{PumpEnd, PumpShared, policy_changed, rung, sleep_until, tap_readable};
use crate::bell::{GuestBell, HostBell};
use crate::policy::{Policy, PolicyWatch};

/// How long a busy pump looks for work before it sleeps.
const SPIN: Duration = Duration::from_micros(50);

/// The control rings of a port, as far as its pump has to do with them.
pub(crate) struct ControlWatch {
    /// Each ring whose half may sleep.
    pub(crate) rings: [RingWatch; 2],
    /// The port's task, which serves them.
    pub(crate) task: Arc<Notify>,
}

impl ControlWatch {
    /// Wakes the port's task if a control ring has what it waits for.
    fn pass_on(&self) {
        if self.rings.iter().any(RingWatch::is_due) {
            self.task.notify_one();
        }
    }
}

/// Moves the frames of one port.
pub(crate) struct ShmPump {
    to_host: ToHost,
    to_guest: ToGuest,
    bell: HostBell,
    control: ControlWatch,
    shared: PumpShared,
    policy: PolicyWatch,
    /// How long to look for more from the kernel, when the guest was given
    /// nothing last; and how long for the guest's answer, when it was.
    spins: [Spin; 2],
    /// Which of the two counts now.
    gave: bool,
    born: Instant,
}

impl ShmPump {
    pub(crate) fn new(
        frames: (RecordReader, RecordWriter),
        bell: HostBell,
        ring_guest: GuestBell,
        control: ControlWatch,
        shared: PumpShared,
    ) -> Self {
        Self {
            to_host: ToHost::new(frames.0, ring_guest.clone(), shared.clone()),
            to_guest: ToGuest::new(frames.1, ring_guest, shared.clone()),
            bell,
            control,
            policy: shared.policy.clone(),
            shared,
            spins: [Spin::new(SPIN); 2],
            gave: false,
            born: Instant::now(),
        }
    }

    /// Moves frames until something ends the port.
    pub(crate) async fn run(mut self) -> PumpEnd {
        let end = match self.pump().await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        self.to_host.end(end.closes());
        self.to_guest.end(end.closes());
        end
    }

    async fn pump(&mut self) -> Result<Infallible, PumpEnd> {
        loop {
            let policy = self.policy.borrow_and_update().clone();
            if let Some(stop) = policy.stop {
                return Err(PumpEnd::Told(stop));
            }
            let taken = self.to_host.turn(&policy)?;
            let (stopped, gave) = self.to_guest.turn(&policy)?;
            self.control.pass_on();
            let spin = &mut self.spins[usize::from(self.gave)];
            if taken.is_touched() || gave {
                spin.worked(self.born.elapsed());
                self.gave = gave;
            }
            if taken.is_spent() || stopped == Turn::Budget {
                tokio::task::yield_now().await;
            } else if self.looks_again() {
                // Others first: other tasks, and whoever wants this processor.
                std::thread::yield_now();
                tokio::task::yield_now().await;
            } else {
                self.sleep(&policy, stopped).await?;
            }
        }
    }

    fn looks_again(&mut self) -> bool {
        self.spins[usize::from(self.gave)].looks_again(self.born.elapsed())
    }

    /// Sleeps until the guest rings, the TAP has a frame, a held frame is due, or
    /// the policy changes.
    async fn sleep(&mut self, policy: &Policy, stopped: Turn) -> Result<(), PumpEnd> {
        let (paused, given_later) = (self.to_host.paused(), stopped.until());
        // Before the guest is ready nobody looks at its frames, nor while more of
        // them may not pass.
        if policy.ready && paused.is_none() && self.to_host.arm()? == Arm::Awake {
            return Ok(());
        }
        if stopped == Turn::RingFull && self.to_guest.arm(policy)? == Arm::Awake {
            self.to_host.disarm();
            return Ok(());
        }
        let held = [self.to_host.poll_at(), self.to_guest.poll_at()];
        let due = held.into_iter().chain([paused, given_later]);
        let due = due.flatten().min();
        tokio::select! {
            () = rung(&self.bell) => self.to_host.woken(),
            ready = tap_readable(&self.shared.tap), if stopped == Turn::TapEmpty => {
                ready.map_err(PumpEnd::Tap)?;
                self.to_guest.woken();
            }
            () = sleep_until(due) => {}
            () = policy_changed(&mut self.policy) => {}
        }
        self.to_host.disarm();
        self.to_guest.disarm();
        Ok(())
    }
}
