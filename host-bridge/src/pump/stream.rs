//! Both directions over one byte stream: the loop bodies that move frames
//! between a [`StreamLink`] and the TAP.
//!
//! The port's task owns the pump, because control messages and frames share the
//! stream: it asks for both in turn ([`StreamPump::next_input`],
//! [`StreamPump::give_output`]) and sleeps by [`StreamPump::sleep`]. Frames
//! from the guest are in the link's own buffer, so they are judged and written
//! where they are. The TAP is read into the link's buffer, and only when there is
//! room: what does not fit waits in the kernel.

use std::io;
use std::ptr::NonNull;
use std::time::Instant;

use embedded_io::{Read, ReadReady, Write, WriteReady};
use shm_link::fault::LinkError;
use shm_link::link::{FrameRx, FrameTx, Link, MAX_CONTROL_LEN, MAX_FRAME_LEN};
use shm_link::offload::OffloadHeader;
use shm_link::stream::fd::StreamFd;
use shm_link::stream::{Framing, StreamLink};
use tokio::io::unix::AsyncFd;

use super::finish::{Filled, Finish};
use super::kernel::{admit, read, write};
use super::{
    BUDGET_FRAMES, BUDGET_MESSAGES, PumpEnd, PumpShared, Wire, charge, forget, impair, paused,
    sleep_until, tap_readable,
};
use crate::counters::DropReason;
use crate::filter::{HEAD_LEN, Verdict};
use crate::impair::{Impair, ImpairedFrame};
use crate::limit::{GroupLimit, Limiter};
use crate::policy::Policy;
use crate::session::Session;
use crate::tap::{RawSlice, Tap};

/// Bytes of each buffer of a reliable stream: a turn's budget of full-sized
/// frames goes out in one write. A unix stream takes about 200 KB at once.
const BATCH_BYTES: usize = 128 << 10;

/// A byte stream; clones are the same one.
pub(crate) trait Stream: Read + ReadReady + Write + WriteReady + Clone {}

impl<S: Read + ReadReady + Write + WriteReady + Clone> Stream for S {}

type HostLink<S> = StreamLink<S, S, Vec<u8>>;

/// Moves frames between a byte stream and a TAP.
pub(crate) struct StreamPump<S = StreamFd, W = AsyncFd<Tap>> {
    link: HostLink<S>,
    shared: PumpShared<W>,
    to_host: Impair,
    to_guest: Impair,
    limit_to_host: Limiter,
    groups_to_host: GroupLimit,
    limit_to_guest: Limiter,
    /// What the kernel left undone and the guest does not do.
    finish: Finish,
    /// A frame that left the impairment stage and found no room in the stream.
    waiting: Option<ImpairedFrame>,
    /// Whether frames may gather in the link's buffer. On a slow line they would
    /// be a queue of seconds, so there only one frame waits.
    batches: bool,
    /// Damaged records that were counted already.
    damaged: u64,
    /// A whole record came.
    heard: bool,
}

/// What a turn may still take of what the guest sent.
#[derive(Debug)]
pub(crate) struct InputTurn {
    frames: usize,
    messages: usize,
}

impl InputTurn {
    pub(crate) const FULL: Self = Self {
        frames: BUDGET_FRAMES,
        messages: BUDGET_MESSAGES,
    };
}

/// What the guest sent, but for frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// A control message of this length, which the session is to take.
    Message(usize),
    /// Nothing more, or nothing that may be taken now.
    Idle,
    /// The turn is used up, and there may be more.
    Budget,
}

/// What a turn towards the guest stopped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The budget is used up.
    Budget,
    /// The TAP has nothing.
    TapEmpty,
    /// The stream has no room for a frame.
    Full,
    /// The guest may have nothing now.
    Held,
    /// It may have nothing before this time.
    Paused(Instant),
}

impl<S: Stream, W: Wire> StreamPump<S, W> {
    pub(crate) fn new(stream: &S, framing: Framing, shared: PumpShared<W>) -> io::Result<Self> {
        let batches = match framing {
            Framing::Prefixed => true,
            Framing::Serial => false,
        };
        let buffer_len = framing.buffer_len(MAX_FRAME_LEN).max(BATCH_BYTES);
        let end = || (stream.clone(), vec![0; buffer_len]);
        let link = StreamLink::new(framing, MAX_FRAME_LEN, end(), end());
        let link = link.map_err(io::Error::other)?;
        let (to_host, to_guest, limits) = {
            let policy = shared.policy.borrow();
            (
                Impair::new(policy.impair_to_host.clone()),
                Impair::new(policy.impair_to_guest.clone()),
                policy.limits,
            )
        };
        Ok(Self {
            link,
            shared,
            to_host,
            to_guest,
            limit_to_host: Limiter::new(limits.to_host),
            groups_to_host: GroupLimit::default(),
            limit_to_guest: Limiter::new(limits.to_guest),
            finish: Finish::default(),
            waiting: None,
            batches,
            damaged: 0,
            heard: false,
        })
    }

    /// Hands frames of the guest to the kernel until a control message stands in
    /// front, which is put into `message` if the caller takes one, nothing does, or
    /// `turn` is used up.
    pub(crate) fn next_input(
        &mut self,
        turn: &mut InputTurn,
        takes_message: impl FnOnce() -> bool,
        message: &mut [u8; MAX_CONTROL_LEN],
    ) -> Result<Input, PumpEnd> {
        if turn.messages == 0 {
            return Ok(Input::Budget);
        }
        self.take_frames(&mut turn.frames)?;
        if turn.frames == 0 {
            return Ok(Input::Budget);
        }
        if self.input_pause().is_some() || !takes_message() {
            // Answers first: the guest has to make room for them.
            return Ok(Input::Idle);
        }
        turn.messages -= 1;
        let received = self.link.recv_control(message)?;
        self.heard |= received.is_some();
        Ok(received.map_or(Input::Idle, Input::Message))
    }

    fn take_frames(&mut self, budget: &mut usize) -> Result<(), PumpEnd> {
        let policy = self.shared.policy.borrow_and_update().clone();
        if self.to_host.config() != &policy.impair_to_host {
            self.to_host.set_config(policy.impair_to_host.clone());
        }
        self.limit_to_host.set_config(policy.limits.to_host);
        let taken = self.take(&policy, budget);
        self.count_damaged();
        taken
    }

    fn take(&mut self, policy: &Policy, budget: &mut usize) -> Result<(), PumpEnd> {
        let counters = &self.shared.counters.guest_to_host;
        let impaired = !self.to_host.is_transparent();
        let limited = (!self.limit_to_host.is_off()).then(|| self.shared.tap.now());
        let limit = &mut self.limit_to_host;
        let (rx, _) = self.link.split();
        while *budget > 0 && limited.is_none_or(|now| limit.pause(now).is_none()) {
            let Some((offload, frame)) = rx.peek()? else {
                break;
            };
            let len = frame.len();
            self.heard = true;
            counters.frame_in(len);
            // Before it has a configuration a guest may keep to one of before, when it was
            // connected to another: its frames go nowhere.
            if policy.ready {
                offload
                    .check(len, policy.offloads_to_host)
                    .inspect_err(|_| counters.dropped(DropReason::PeerFault))?;
            }
            let (groups, tap) = (&mut self.groups_to_host, &*self.shared.tap);
            let head = &frame[..len.min(HEAD_LEN)];
            match admit(policy, groups, tap, offload, head, len) {
                Err(reason) => counters.dropped(reason),
                Ok(()) if impaired => {
                    let bytes = frame.to_vec();
                    let frame = ImpairedFrame { offload, bytes };
                    impair(&mut self.to_host, tap.now(), frame, counters);
                }
                Ok(()) => write_to_tap(&self.shared, offload, frame)?,
            }
            rx.consume();
            if let Some(now) = limited {
                limit.charge(now, len);
            }
            *budget -= 1;
        }
        if impaired {
            let now = self.shared.tap.now();
            while let Some(frame) = self.to_host.poll(now) {
                counters.set_held(self.to_host.held());
                write_to_tap(&self.shared, frame.offload, &frame.bytes)?;
            }
        }
        Ok(())
    }

    /// Until when the guest's frames, and what stands behind them, wait in the
    /// stream.
    pub(crate) fn input_pause(&self) -> Option<Instant> {
        paused(&self.limit_to_host, &*self.shared.tap)
    }

    fn count_damaged(&mut self) {
        let counters = &self.shared.counters.guest_to_host;
        let damaged = self.link.rx().dropped_records();
        while self.damaged < damaged {
            self.damaged += 1;
            counters.frame_in(0);
            counters.dropped(DropReason::Damaged);
        }
    }

    /// Sends the session's messages, then at most a budget of frames from the TAP.
    pub(crate) fn give_output(&mut self, session: &mut Session) -> Result<Turn, PumpEnd> {
        while let Some(message) = session.poll_transmit() {
            if !self.link.send_control(message)? {
                break;
            }
            session.transmitted();
        }
        let policy = self.shared.policy.borrow_and_update().clone();
        if self.to_guest.config() != &policy.impair_to_guest {
            self.to_guest.set_config(policy.impair_to_guest.clone());
        }
        self.limit_to_guest.set_config(policy.limits.to_guest);
        let stopped = self.give(&policy)?;
        self.link.split().1.flush();
        Ok(stopped)
    }

    fn give(&mut self, policy: &Policy) -> Result<Turn, PumpEnd> {
        if !policy.ready || !policy.carrier {
            return Ok(Turn::Held);
        }
        let impaired = self.waiting.is_some() || !self.to_guest.is_transparent();
        if impaired && !self.release()? {
            return Ok(Turn::Full);
        }
        for _ in 0..BUDGET_FRAMES {
            if let Some(until) = paused(&self.limit_to_guest, &*self.shared.tap) {
                return Ok(Turn::Paused(until));
            }
            let moved = if policy.finishes || !self.finish.is_empty() {
                self.read_finished(policy, impaired)?
            } else if impaired {
                self.read_aside(policy)?
            } else {
                self.read_in_place(policy)?
            };
            if let Some(stopped) = moved {
                return Ok(stopped);
            }
        }
        Ok(Turn::Budget)
    }

    /// Reads one frame from the TAP into the stream's buffer. `Some` says why
    /// not.
    fn read_in_place(&mut self, policy: &Policy) -> Result<Option<Turn>, PumpEnd> {
        let room_len = policy.max_frame_len_to_guest().min(MAX_FRAME_LEN);
        let Some(room) = reserve(&mut self.link, self.batches, room_len)? else {
            return Ok(Some(Turn::Full));
        };
        // SAFETY: `room` is private memory of that length.
        let read = unsafe { read(&self.shared, room.as_mut_ptr(), room.len()) }?;
        let Some((len, offload)) = read else {
            return Ok(Some(Turn::TapEmpty));
        };
        let counters = &self.shared.counters.host_to_guest;
        counters.frame_in(len);
        charge(&mut self.limit_to_guest, &*self.shared.tap, len);
        match policy.filter.check_to_guest(&room[..len.min(HEAD_LEN)]) {
            Verdict::Drop(reason) => counters.dropped(reason),
            Verdict::Pass => {
                // Not empty: the kernel's frames have an Ethernet header.
                self.link.split().1.commit(len, offload);
                counters.frame_out(len);
            }
        }
        Ok(None)
    }

    /// Moves one frame that the bridge finishes, from the TAP or from a super-frame that
    /// was read before. `Some` says why not.
    fn read_finished(&mut self, policy: &Policy, impaired: bool) -> Result<Option<Turn>, PumpEnd> {
        let max_len = policy.max_frame_len_to_guest().min(MAX_FRAME_LEN);
        if self.finish.is_empty() {
            if !impaired && reserve(&mut self.link, self.batches, max_len)?.is_none() {
                return Ok(Some(Turn::Full));
            }
            match self.finish.fill(&self.shared, policy)? {
                Filled::TapEmpty => return Ok(Some(Turn::TapEmpty)),
                Filled::Dropped(len) => charge(&mut self.limit_to_guest, &*self.shared.tap, len),
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
            let now = self.shared.tap.now();
            impair(&mut self.to_guest, now, frame.into(), counters);
        } else {
            let Some(room) = reserve(&mut self.link, self.batches, len)? else {
                return Ok(Some(Turn::Full));
            };
            let frame = self.finish.part();
            // SAFETY: `room` is private memory of that length.
            unsafe { frame.copy_to(NonNull::from(room).cast()) };
            counters.frame_in(len);
            self.link.split().1.commit(len, frame.offload);
            counters.frame_out(len);
        }
        self.finish.advance();
        charge(&mut self.limit_to_guest, &*self.shared.tap, len);
        Ok((impaired && !self.release()?).then_some(Turn::Full))
    }

    /// Reads one frame from the TAP into the impairment stage.
    fn read_aside(&mut self, policy: &Policy) -> Result<Option<Turn>, PumpEnd> {
        let mut bytes = vec![0; policy.max_frame_len_to_guest().min(MAX_FRAME_LEN)];
        // SAFETY: `bytes` is private memory of that length.
        let read = unsafe { read(&self.shared, bytes.as_mut_ptr(), bytes.len()) }?;
        let Some((len, offload)) = read else {
            return Ok(Some(Turn::TapEmpty));
        };
        bytes.truncate(len);
        let counters = &self.shared.counters.host_to_guest;
        counters.frame_in(len);
        charge(&mut self.limit_to_guest, &*self.shared.tap, len);
        match policy.filter.check_to_guest(&bytes[..len.min(HEAD_LEN)]) {
            Verdict::Drop(reason) => counters.dropped(reason),
            Verdict::Pass => {
                let frame = ImpairedFrame { offload, bytes };
                let now = self.shared.tap.now();
                impair(&mut self.to_guest, now, frame, counters);
            }
        }
        Ok((!self.release()?).then_some(Turn::Full))
    }

    /// Puts the frames that are due into the stream; `false` if it has no room.
    fn release(&mut self) -> Result<bool, PumpEnd> {
        let now = self.shared.tap.now();
        while let Some(frame) = self.waiting.take().or_else(|| self.to_guest.poll(now)) {
            let counters = &self.shared.counters.host_to_guest;
            let len = frame.bytes.len();
            let room = match reserve(&mut self.link, self.batches, len) {
                Ok(Some(room)) => room,
                stopped => {
                    let stopped = stopped.map(|_| false);
                    self.waiting = Some(frame);
                    counters.set_held(self.to_guest.held() + 1);
                    return Ok(stopped?);
                }
            };
            room.copy_from_slice(&frame.bytes);
            counters.set_held(self.to_guest.held());
            self.link.split().1.commit(len, frame.offload);
            counters.frame_out(len);
        }
        Ok(true)
    }

    /// Whether there is nothing to do until [`sleep`](Self::sleep) returns, given
    /// whether the owner takes input and what the last turn stopped for.
    pub(crate) fn may_sleep(&mut self, takes_input: bool, stopped: Turn) -> Result<bool, PumpEnd> {
        if stopped == Turn::Budget || (takes_input && !self.link.arm(None)?) {
            return Ok(false);
        }
        // The stream may have taken everything after the turn found it full.
        Ok(stopped != Turn::Full || self.link.wants_write())
    }

    /// Whether the guest has sent something since the last call.
    pub(crate) fn take_heard(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }

    /// Greets once more, if there is room.
    pub(crate) fn greet_again(&mut self) -> Result<(), PumpEnd> {
        self.link.greet_again()?;
        Ok(())
    }

    /// Whether bytes wait for the stream.
    pub(crate) fn wants_write(&self) -> bool {
        self.link.wants_write()
    }

    /// When there is more to do towards the guest, after a turn that stopped for this.
    pub(crate) fn due_to_guest(&self, stopped: Turn) -> Option<Instant> {
        match stopped {
            Turn::Paused(until) => Some(until),
            Turn::TapEmpty => self.to_guest.poll_at(),
            Turn::Budget | Turn::Full | Turn::Held => None,
        }
    }

    /// When there is more to do towards the host, if its input waits until `pause`.
    pub(crate) fn due_to_host(&self, pause: Option<Instant>) -> Option<Instant> {
        pause.into_iter().chain(self.to_host.poll_at()).min()
    }

    /// Lets go of what is held, and may tell the guest that the link is over.
    pub(crate) fn end(&mut self, tell: bool) {
        let counters = &self.shared.counters;
        self.finish.forget(&counters.host_to_guest);
        forget(&mut self.to_host, &counters.guest_to_host);
        forget(&mut self.to_guest, &counters.host_to_guest);
        if self.waiting.take().is_some() {
            counters.host_to_guest.dropped(DropReason::Closed);
        }
        if tell {
            // As far as the stream takes it; the end of the stream says the same.
            self.link.close();
        }
    }
}

impl StreamPump {
    /// Sleeps until there may be something to do, or until `pause` is over. Dropping
    /// the future loses nothing.
    pub(crate) async fn sleep(
        &mut self,
        fd: &AsyncFd<StreamFd>,
        takes_input: bool,
        pause: Option<Instant>,
        stopped: Turn,
    ) -> Result<(), PumpEnd> {
        let counters = &self.shared.counters;
        // Readiness is forgotten before the work that it announces, and the work
        // goes on until the descriptor itself says that there is no more: what
        // comes after that is a new edge.
        let gives = stopped == Turn::TapEmpty;
        let woken = tokio::select! {
            ready = fd.readable(), if takes_input => {
                ready.map(|mut ready| ready.clear_ready()).map(|()| &counters.guest_to_host)
            }
            ready = fd.writable(), if self.wants_write() => {
                ready.map(|mut ready| ready.clear_ready()).map(|()| &counters.host_to_guest)
            }
            ready = tap_readable(&self.shared.tap), if gives => {
                ready.map(|()| &counters.host_to_guest)
            }
            () = sleep_until(self.due_to_guest(stopped)) => Ok(&counters.host_to_guest),
            () = sleep_until(self.due_to_host(pause)) => Ok(&counters.guest_to_host),
        };
        // Readiness fails only when the runtime is going away.
        woken.map_err(PumpEnd::Tap)?.wakeup();
        Ok(())
    }
}

/// Room for a frame; `None`: not now.
fn reserve<S: Stream>(
    link: &mut HostLink<S>,
    batches: bool,
    len: usize,
) -> Result<Option<&mut [u8]>, LinkError> {
    if !batches {
        link.split().1.flush();
        if link.wants_write() {
            return Ok(None);
        }
    }
    link.split().1.reserve(len)
}

fn write_to_tap(
    shared: &PumpShared<impl Wire>,
    offload: OffloadHeader,
    frame: &[u8],
) -> Result<(), PumpEnd> {
    let part = RawSlice::new(frame.as_ptr(), frame.len());
    // SAFETY: the frame is borrowed for the length of the call.
    unsafe { write(shared, offload, [part, RawSlice::EMPTY], frame.len()) }
}
