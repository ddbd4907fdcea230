//! The pumps, which move a port's frames: one task per port.
//!
//! ```text
//! guest ─ ring ───▶ [to_host]  filter ─ impairment ─▶ TAP ─▶ kernel
//! guest ◀─── ring ─ [to_guest] impairment ◀───────── TAP ◀─ kernel
//!                   [both]     both in turn, and what a sleep is for
//!                   [shm]      the task: turns and sleeps
//! guest ◀─ stream ▶ [stream]   the same over a byte stream
//! ```
//!
//! Each direction works through a budget of frames, then lets others run; with
//! nothing to do the task sleeps on the guest (the doorbell, the stream) and on
//! the TAP. Neither direction waits for the other.

mod both;
mod finish;
mod kernel;
mod shm;
mod stream;
mod to_guest;
mod to_host;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use shm_link::doorbell::{AsyncWait, Doorbell};
use shm_link::fault::{LinkError, PeerFault};
use shm_link::ring::Wake;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

use crate::bell::{GuestBell, HostBell};
use crate::counters::{DirectionCounters, DropReason, PortCounters};
use crate::impair::{Enqueued, Impair, ImpairedFrame};
use crate::limit::Limiter;
use crate::policy::{PolicyWatch, Stop};
use crate::tap::Tap;

#[cfg(feature = "simulation")]
pub(crate) use both::{Both, Sleep};
#[cfg(feature = "simulation")]
pub(crate) use finish::finished;
pub(crate) use shm::{ControlWatch, ShmPump};
pub(crate) use stream::{Input, InputTurn, StreamPump};
#[cfg(feature = "simulation")]
pub(crate) use stream::{Stream, Turn};
#[cfg(not(feature = "simulation"))]
use wire::Wire;
#[cfg(feature = "simulation")]
pub(crate) use wire::Wire;

/// Frames moved before other tasks get their turn. At 1500 bytes a TAP call
/// takes 1 to 2 µs, so a turn stays under 150 µs; a doorbell per turn is well
/// under one per ten frames.
pub(crate) const BUDGET_FRAMES: usize = 64;

/// Bytes moved in one direction before other tasks get their turn. Where frames
/// are 64 KB long their number alone would make a turn ten times as long, and
/// guests that send longer frames would get more than others.
pub(crate) const BUDGET_BYTES: usize = 256 << 10;

/// Bytes of frames after which the other side is told within a turn. A wake-up
/// costs some 10 µs and a copy of this much about as long: the two sides then
/// work at the same time, and frames of 1500 bytes still share a doorbell.
pub(crate) const PUBLISH_BYTES: usize = 64 << 10;

/// Control messages handled before other tasks get their turn.
pub(crate) const BUDGET_MESSAGES: usize = 16;

/// What one direction may still move in a turn.
#[derive(Debug, Clone, Copy)]
struct Budget {
    frames: usize,
    bytes: usize,
}

impl Budget {
    /// A turn's.
    const FULL: Self = Self {
        frames: BUDGET_FRAMES,
        bytes: BUDGET_BYTES,
    };

    /// Of a turn that moved something and has nothing more to do now.
    const TOUCHED: Self = Self {
        frames: BUDGET_FRAMES - 1,
        bytes: BUDGET_BYTES,
    };

    /// A frame of `len` bytes was moved.
    fn spend(&mut self, len: usize) {
        self.frames = self.frames.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(len);
    }

    fn is_spent(self) -> bool {
        self.frames == 0 || self.bytes == 0
    }

    fn is_touched(self) -> bool {
        self.frames < BUDGET_FRAMES
    }
}

/// What all pumps of a port share.
pub(crate) struct PumpShared<W = AsyncFd<Tap>> {
    pub(crate) tap: Arc<W>,
    pub(crate) counters: Arc<PortCounters>,
    pub(crate) policy: PolicyWatch,
}

impl<W> Clone for PumpShared<W> {
    fn clone(&self) -> Self {
        Self {
            tap: self.tap.clone(),
            counters: self.counters.clone(),
            policy: self.policy.clone(),
        }
    }
}

/// Why a pump stopped. Each ends the port.
#[derive(Debug)]
pub(crate) enum PumpEnd {
    /// The guest broke the rules.
    Fault(PeerFault),
    /// The guest closed its side, and everything it sent was delivered.
    Closed,
    /// The TAP is of no more use.
    Tap(io::Error),
    /// The byte stream to the guest failed.
    Stream(LinkError),
    /// The port's task told it to.
    Told(Stop),
}

impl PumpEnd {
    /// Whether the ring is to be closed. A TAP that is gone is not the guest's
    /// fault: the port may be made anew on the same rings.
    fn closes(&self) -> bool {
        !matches!(self, Self::Told(Stop::LeaveOpen) | Self::Tap(_))
    }
}

impl From<PeerFault> for PumpEnd {
    fn from(fault: PeerFault) -> Self {
        Self::Fault(fault)
    }
}

impl From<LinkError> for PumpEnd {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Closed => Self::Closed,
            LinkError::Fault(fault) => Self::Fault(fault),
            LinkError::Io(_) => Self::Stream(error),
        }
    }
}

/// Rings the guest if it sleeps, and counts it.
fn ring(wake: Wake, bell: &GuestBell, counters: &DirectionCounters) {
    if wake == Wake::Ring {
        bell.ring();
        counters.doorbell();
    }
}

/// Puts a frame into the impairment stage and counts what became of it.
fn impair(stage: &mut Impair, now: Instant, frame: ImpairedFrame, counters: &DirectionCounters) {
    match stage.enqueue(now, frame) {
        Enqueued::Once => counters.set_held(stage.held()),
        Enqueued::Twice => {
            counters.duplicated();
            counters.set_held(stage.held());
        }
        Enqueued::Dropped(reason) => counters.dropped(reason),
    }
}

/// Counts what the stage still held as dropped.
fn forget(stage: &mut Impair, counters: &DirectionCounters) {
    let held = stage.clear();
    counters.set_held(0);
    counters.dropped_many(DropReason::Closed, held as u64);
}

/// When the next frame may pass; `None`: now, or no limit is set.
fn paused(limit: &Limiter, wire: &impl Wire) -> Option<Instant> {
    match limit.is_off() {
        true => None,
        false => limit.pause(wire.now()),
    }
}

/// Charges what is limited with a frame of `len` bytes.
fn charge(limit: &mut Limiter, wire: &impl Wire, len: usize) {
    if !limit.is_off() {
        limit.charge(wire.now(), len);
    }
}

/// Sleeps until `deadline`, or for ever without one.
pub(crate) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for a new policy; for ever when the port is going away.
async fn policy_changed(policy: &mut PolicyWatch) {
    if policy.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until the TAP may have a frame. The caller has seen it empty, so the
/// readiness that was known is no longer true. A TAP that was deleted reports an error
/// and nothing to read.
async fn tap_readable(tap: &AsyncFd<Tap>) -> io::Result<()> {
    let mut ready = tap.ready(Interest::READABLE | Interest::ERROR).await?;
    if !ready.ready().is_readable() {
        tap.get_ref().check()?;
        ready.clear_ready_matching(Ready::ERROR);
    }
    Ok(())
}

/// Waits for the guest's ring.
async fn rung(bell: &HostBell) {
    bell.wait().await;
}
