//! Both directions of a port over shared memory as a task: turns, and the sleep
//! between them.
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
use shm_link::ring::RingWatch;
use shm_link::spin::Spin;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::both::{Both, Sleep, Turned};
use super::{PumpEnd, PumpShared, policy_changed, rung, sleep_until, tap_readable};
use crate::bell::{GuestBell, HostBell};
use crate::policy::PolicyWatch;
use crate::tap::Tap;

/// How long a busy pump looks for work before it sleeps.
const SPIN: Duration = Duration::from_micros(200);

/// Rings after which there was nothing to do, one after the other, that are taken for
/// noise; and how long the bell is not listened to then. Anybody can ring at any rate,
/// and each ring that is heard costs a wake-up.
const RINGS_IN_VAIN: u32 = 16;
const DEAF: Duration = Duration::from_millis(1);

/// The control rings of a port, as far as its pump has to do with them.
pub(crate) struct ControlWatch {
    /// Each ring whose half may sleep.
    pub(crate) rings: [RingWatch; 2],
    /// The port's task, which serves them.
    pub(crate) task: Arc<Notify>,
}

impl ControlWatch {
    /// Wakes the port's task if a control ring has what it waits for.
    /// Whether one has.
    fn pass_on(&self) -> bool {
        let due = self.rings.iter().any(RingWatch::is_due);
        if due {
            self.task.notify_one();
        }
        due
    }
}

/// Moves the frames of one port.
pub(crate) struct ShmPump {
    both: Both<AsyncFd<Tap>>,
    bell: HostBell,
    control: ControlWatch,
    shared: PumpShared,
    policy: PolicyWatch,
    /// How long to look for more from the kernel, when the guest was given
    /// nothing last; and how long for the guest's answer, when it was.
    spins: [Spin; 2],
    /// Which of the two counts now.
    gave: bool,
    /// Rings since there was something to do.
    vain: u32,
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
            both: Both::new(frames, ring_guest, shared.clone()),
            bell,
            control,
            policy: shared.policy.clone(),
            shared,
            spins: [Spin::new(SPIN); 2],
            gave: false,
            vain: 0,
            born: Instant::now(),
        }
    }

    /// Moves frames until something ends the port.
    pub(crate) async fn run(mut self) -> PumpEnd {
        let end = match self.pump().await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        self.both.end(&end);
        end
    }

    async fn pump(&mut self) -> Result<Infallible, PumpEnd> {
        loop {
            let policy = self.policy.borrow_and_update().clone();
            let Turned { moved, gave, more } = self.both.turn(&policy)?;
            if self.control.pass_on() || moved {
                self.vain = 0;
            }
            let spin = &mut self.spins[usize::from(self.gave)];
            if moved {
                spin.worked(self.born.elapsed());
                self.gave = gave;
            }
            if more {
                tokio::task::yield_now().await;
            } else if self.looks_again() {
                // Others first: other tasks, and whoever wants this processor.
                std::thread::yield_now();
                tokio::task::yield_now().await;
            } else if let Some(until) = self.both.arm(&policy)? {
                self.sleep(until).await?;
            }
        }
    }

    fn looks_again(&mut self) -> bool {
        self.spins[usize::from(self.gave)].looks_again(self.born.elapsed())
    }

    /// Sleeps until the guest rings, the TAP has a frame, a held frame is due, or
    /// the policy changes.
    async fn sleep(&mut self, until: Sleep) -> Result<(), PumpEnd> {
        let noise = self.vain >= RINGS_IN_VAIN;
        let due = match noise {
            true => until.due.into_iter().chain([Instant::now() + DEAF]).min(),
            false => until.due,
        };
        match noise || until.rests {
            true => self.bell.ignore(),
            false => self.bell.listen().map_err(PumpEnd::Tap)?,
        }
        tokio::select! {
            () = rung(&self.bell) => {
                self.vain = self.vain.saturating_add(1);
                self.both.rung();
            }
            ready = tap_readable(&self.shared.tap), if until.readable => {
                ready.map_err(PumpEnd::Tap)?;
                self.both.readable();
            }
            () = sleep_until(due) => {}
            () = policy_changed(&mut self.policy) => {}
        }
        self.both.disarm();
        Ok(())
    }
}
