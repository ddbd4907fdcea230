//! Host to guest: the hot loop that reads the TAP straight into the ring.
//!
//! Room is reserved before the TAP is read. A full ring leaves frames with the
//! kernel, whose queue is the only one. [`super::shm`] calls it in turn with the
//! other direction, and does the sleeping.

use std::time::Instant;

use shm_link::record::RecordWriter;
use shm_link::ring::Arm;

use super::finish::{Filled, Finish};
use super::kernel::read;
use super::{
    Budget, PUBLISH_BYTES, PumpEnd, PumpShared, Wire, charge, forget, impair, paused, ring,
};
use crate::bell::GuestBell;
use crate::counters::DropReason;
use crate::filter::{HEAD_LEN, Verdict};
use crate::impair::{Impair, ImpairedFrame};
use crate::limit::Limiter;
use crate::policy::Policy;

/// The way from a guest's TAP to its ring.
pub(super) struct ToGuest<W> {
    frames: RecordWriter,
    ring_guest: GuestBell,
    shared: PumpShared<W>,
    stage: Impair,
    /// What the kernel left undone and the guest does not do.
    finish: Finish,
    /// A frame that left the impairment stage and found the ring full.
    waiting: Option<ImpairedFrame>,
    limit: Limiter,
    /// Bytes of frames that the guest was not shown yet.
    unpublished: usize,
}

/// What a turn stopped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The budget is used up.
    Budget,
    /// The TAP has nothing.
    TapEmpty,
    /// The ring has no room for a frame.
    RingFull,
    /// The guest may have nothing now.
    Held,
    /// It may have nothing before this time.
    Paused(Instant),
}

impl Turn {
    /// Until when the guest may have nothing.
    pub(super) fn until(self) -> Option<Instant> {
        match self {
            Self::Paused(until) => Some(until),
            Self::Budget | Self::TapEmpty | Self::RingFull | Self::Held => None,
        }
    }
}

impl<W: Wire> ToGuest<W> {
    pub(super) fn new(frames: RecordWriter, ring_guest: GuestBell, shared: PumpShared<W>) -> Self {
        let stage = Impair::new(shared.policy.borrow().impair_to_guest.clone());
        let limit = Limiter::new(shared.policy.borrow().limits.to_guest);
        Self {
            frames,
            ring_guest,
            shared,
            stage,
            finish: Finish::default(),
            waiting: None,
            limit,
            unpublished: 0,
        }
    }

    /// Moves at most a budget of frames; says why it stopped, and whether it
    /// moved any.
    pub(super) fn turn(&mut self, policy: &Policy) -> Result<(Turn, bool), PumpEnd> {
        if self.stage.config() != &policy.impair_to_guest {
            self.stage.set_config(policy.impair_to_guest.clone());
        }
        self.limit.set_config(policy.limits.to_guest);
        let mut budget = Budget::FULL;
        let stopped = self.work(policy, &mut budget);
        self.unpublished = 0;
        let counters = &self.shared.counters.host_to_guest;
        ring(self.frames.publish(), &self.ring_guest, counters);
        Ok((stopped?, budget.is_touched()))
    }

    /// When a held frame is due.
    pub(super) fn poll_at(&self) -> Option<Instant> {
        self.stage.poll_at()
    }

    /// Announces sleep until the guest has made room for several frames, so that
    /// a guest that empties the ring frame by frame does not ring for each.
    pub(super) fn arm(&mut self, policy: &Policy) -> Result<Arm, PumpEnd> {
        let armed = self.frames.arm(policy.max_frame_len_to_guest() * 8)?;
        if armed == Arm::Awake && self.frames.is_peer_closed() {
            return Err(PumpEnd::Closed);
        }
        Ok(armed)
    }

    /// Takes the announcement back.
    pub(super) fn disarm(&self) {
        self.frames.disarm();
    }

    /// Counts a wake-up.
    pub(super) fn woken(&self) {
        self.shared.counters.host_to_guest.wakeup();
    }

    /// Forgets what is held, and closes the ring if the guest is to see the end.
    pub(super) fn end(mut self, closes: bool) {
        let counters = &self.shared.counters.host_to_guest;
        self.finish.forget(counters);
        forget(&mut self.stage, counters);
        if self.waiting.take().is_some() {
            counters.dropped(DropReason::Closed);
        }
        if closes {
            ring(self.frames.close(), &self.ring_guest, counters);
        }
    }

    fn work(&mut self, policy: &Policy, budget: &mut Budget) -> Result<Turn, PumpEnd> {
        if !policy.ready || !policy.carrier {
            return Ok(Turn::Held);
        }
        let impaired = self.waiting.is_some() || !self.stage.is_transparent();
        if impaired && !self.release()? {
            return Ok(Turn::RingFull);
        }
        while !budget.is_spent() {
            if let Some(until) = paused(&self.limit, &*self.shared.tap) {
                return Ok(Turn::Paused(until));
            }
            let stopped = if policy.finishes || !self.finish.is_empty() {
                self.read_finished(policy, impaired, budget)?
            } else if impaired {
                self.read_aside(policy, budget)?
            } else {
                self.read_in_place(policy, budget)?
            };
            if let Some(stopped) = stopped {
                return Ok(stopped);
            }
        }
        Ok(Turn::Budget)
    }

    /// Reads one frame from the TAP into the ring. `Some` says why not.
    fn read_in_place(
        &mut self,
        policy: &Policy,
        budget: &mut Budget,
    ) -> Result<Option<Turn>, PumpEnd> {
        let room_len = policy.max_frame_len_to_guest().min(self.frames.max_len());
        let Some(room) = self.frames.reserve(room_len)? else {
            return Ok(Some(Turn::RingFull));
        };
        // SAFETY: `room` has `room_len` bytes, ours until the next call on
        // `frames`.
        let Some((len, offload)) = (unsafe { read(&self.shared, room.as_ptr(), room_len) })? else {
            return Ok(Some(Turn::TapEmpty));
        };
        let counters = &self.shared.counters.host_to_guest;
        counters.frame_in(len);
        budget.spend(len);
        charge(&mut self.limit, &*self.shared.tap, len);
        let mut head = [0; HEAD_LEN];
        let head_len = len.min(HEAD_LEN);
        // SAFETY: `room` holds `len >= head_len` bytes; `head` is private. The
        // guest may scribble on them; it fools nobody but itself.
        unsafe { std::ptr::copy_nonoverlapping(room.as_ptr(), head.as_mut_ptr(), head_len) };
        match policy.filter.check_to_guest(&head[..head_len]) {
            Verdict::Drop(reason) => counters.dropped(reason),
            Verdict::Pass => {
                self.frames.commit(len, offload);
                self.count_out(len);
            }
        }
        Ok(None)
    }

    /// Moves one frame that the bridge finishes, from the TAP or from a super-frame that
    /// was read before. `Some` says why not.
    fn read_finished(
        &mut self,
        policy: &Policy,
        impaired: bool,
        budget: &mut Budget,
    ) -> Result<Option<Turn>, PumpEnd> {
        let max_len = policy.max_frame_len_to_guest().min(self.frames.max_len());
        if self.finish.is_empty() {
            if !impaired && self.frames.reserve(max_len)?.is_none() {
                return Ok(Some(Turn::RingFull));
            }
            match self.finish.fill(&self.shared, policy)? {
                Filled::TapEmpty => return Ok(Some(Turn::TapEmpty)),
                Filled::Dropped(len) => {
                    budget.spend(len);
                    charge(&mut self.limit, &*self.shared.tap, len);
                }
                Filled::Frame => {}
            }
        }
        let counters = &self.shared.counters.host_to_guest;
        let Some(len) = self.finish.part_len() else {
            return Ok(None);
        };
        if len > max_len {
            counters.frame_in(len);
            counters.dropped(DropReason::TooLong);
        } else if impaired {
            let frame = self.finish.part();
            counters.frame_in(len);
            impair(
                &mut self.stage,
                self.shared.tap.now(),
                frame.into(),
                counters,
            );
        } else {
            let Some(room) = self.frames.reserve(len)? else {
                return Ok(Some(Turn::RingFull));
            };
            let frame = self.finish.part();
            // SAFETY: `room` has `len` bytes, ours until the next call on `frames`.
            unsafe { frame.copy_to(room) };
            counters.frame_in(len);
            self.frames.commit(len, frame.offload);
            self.count_out(len);
        }
        self.finish.advance();
        budget.spend(len);
        charge(&mut self.limit, &*self.shared.tap, len);
        Ok((impaired && !self.release()?).then_some(Turn::RingFull))
    }

    /// Reads one frame from the TAP into the impairment stage.
    fn read_aside(
        &mut self,
        policy: &Policy,
        budget: &mut Budget,
    ) -> Result<Option<Turn>, PumpEnd> {
        let mut bytes = vec![0; policy.max_frame_len_to_guest().min(self.frames.max_len())];
        // SAFETY: `bytes` is private memory of that length.
        let read = unsafe { read(&self.shared, bytes.as_mut_ptr(), bytes.len()) }?;
        let Some((len, offload)) = read else {
            return Ok(Some(Turn::TapEmpty));
        };
        bytes.truncate(len);
        let counters = &self.shared.counters.host_to_guest;
        counters.frame_in(len);
        budget.spend(len);
        charge(&mut self.limit, &*self.shared.tap, len);
        match policy.filter.check_to_guest(&bytes[..len.min(HEAD_LEN)]) {
            Verdict::Drop(reason) => counters.dropped(reason),
            Verdict::Pass => {
                let frame = ImpairedFrame { offload, bytes };
                impair(&mut self.stage, self.shared.tap.now(), frame, counters);
            }
        }
        Ok((!self.release()?).then_some(Turn::RingFull))
    }

    /// A frame of `len` bytes is in the ring.
    fn count_out(&mut self, len: usize) {
        let counters = &self.shared.counters.host_to_guest;
        counters.frame_out(len);
        self.unpublished += len;
        if self.unpublished >= PUBLISH_BYTES {
            // The guest can work on long frames while others come.
            self.unpublished = 0;
            ring(self.frames.publish(), &self.ring_guest, counters);
        }
    }

    /// Puts the frames that are due into the ring; `false` if it is full.
    fn release(&mut self) -> Result<bool, PumpEnd> {
        let now = self.shared.tap.now();
        while let Some(frame) = self.waiting.take().or_else(|| self.stage.poll(now)) {
            let counters = &self.shared.counters.host_to_guest;
            let written = self.frames.write(&frame.bytes, frame.offload);
            if !written.inspect_err(|_| {
                counters.set_held(self.stage.held());
                counters.dropped(DropReason::PeerFault);
            })? {
                self.waiting = Some(frame);
                counters.set_held(self.stage.held() + 1);
                return Ok(false);
            }
            counters.set_held(self.stage.held());
            counters.frame_out(frame.bytes.len());
        }
        Ok(true)
    }
}
