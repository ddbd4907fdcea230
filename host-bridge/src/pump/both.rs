//! Both directions of a port over shared memory: one turn of each, and what has to
//! be announced before a sleep.
//!
//! Decides and moves; [`super::shm`] sleeps, and so does a simulation, in a time of
//! its own. Neither direction waits for the other.

use std::time::Instant;

use shm_link::record::{RecordReader, RecordWriter};
use shm_link::ring::Arm;

use super::to_guest::{ToGuest, Turn};
use super::to_host::ToHost;
use super::{PumpEnd, PumpShared, Wire};
use crate::bell::GuestBell;
use crate::policy::Policy;

/// The two directions.
pub(crate) struct Both<W> {
    to_host: ToHost<W>,
    to_guest: ToGuest<W>,
    /// What the last turn towards the guest stopped for.
    stopped: Turn,
}

/// What came of a turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turned {
    /// Frames moved, whichever way.
    pub(crate) moved: bool,
    /// The guest was given frames.
    pub(crate) gave: bool,
    /// There is more to do at once.
    pub(crate) more: bool,
}

/// What a pump sleeps for, besides its doorbell and a new policy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sleep {
    /// A frame on the wire.
    pub(crate) readable: bool,
    /// This time.
    pub(crate) due: Option<Instant>,
    /// Not for the doorbell: the guest's frames rest until then.
    pub(crate) rests: bool,
}

impl<W: Wire> Both<W> {
    pub(crate) fn new(
        frames: (RecordReader, RecordWriter),
        ring_guest: GuestBell,
        shared: PumpShared<W>,
    ) -> Self {
        Self {
            to_host: ToHost::new(frames.0, ring_guest.clone(), shared.clone()),
            to_guest: ToGuest::new(frames.1, ring_guest, shared),
            stopped: Turn::Held,
        }
    }

    /// A turn of each direction.
    pub(crate) fn turn(&mut self, policy: &Policy) -> Result<Turned, PumpEnd> {
        if let Some(stop) = policy.stop {
            return Err(PumpEnd::Told(stop));
        }
        let taken = self.to_host.turn(policy)?;
        let (stopped, gave) = self.to_guest.turn(policy)?;
        self.stopped = stopped;
        Ok(Turned {
            moved: taken.is_touched() || gave,
            gave,
            more: taken.is_spent() || stopped == Turn::Budget,
        })
    }

    /// Announces sleep after a turn that left nothing to do, and says what for.
    /// `None`: something came in between, take another turn.
    pub(crate) fn arm(&mut self, policy: &Policy) -> Result<Option<Sleep>, PumpEnd> {
        let (paused, given_later) = (self.to_host.paused(), self.stopped.until());
        // Before the guest is ready nobody looks at its frames, nor while more of
        // them may not pass.
        if policy.ready && paused.is_none() && self.to_host.arm()? == Arm::Awake {
            return Ok(None);
        }
        if self.stopped == Turn::RingFull && self.to_guest.arm(policy)? == Arm::Awake {
            self.to_host.disarm();
            return Ok(None);
        }
        // What is due for the guest waits with it for room, or for a guest that may
        // have something: no timer brings that.
        let to_guest = match self.stopped {
            Turn::RingFull | Turn::Held => None,
            Turn::Budget | Turn::TapEmpty | Turn::Paused(_) => self.to_guest.poll_at(),
        };
        let due = [self.to_host.poll_at(), to_guest, paused, given_later];
        let due = due.into_iter();
        Ok(Some(Sleep {
            readable: self.stopped == Turn::TapEmpty,
            due: due.flatten().min(),
            rests: self.to_host.rests(),
        }))
    }

    /// Takes the announcement back.
    pub(crate) fn disarm(&self) {
        self.to_host.disarm();
        self.to_guest.disarm();
    }

    /// The doorbell ended a sleep.
    pub(crate) fn rung(&self) {
        self.to_host.woken();
    }

    /// A frame on the wire ended a sleep.
    pub(crate) fn readable(&self) {
        self.to_guest.woken();
    }

    /// Forgets what is held, and closes the rings if the guest is to see the end.
    pub(crate) fn end(self, end: &PumpEnd) {
        self.to_host.end(end.closes());
        self.to_guest.end(end.closes());
    }
}
