//! The kernel's side of every pump: what may go to it, and one frame to or from
//! the TAP.
//!
//! Counts what becomes of a frame that is written; a frame that is read is the
//! caller's to count. Never waits.

use super::{PumpEnd, PumpShared, Wire};
use crate::counters::{DirectionCounters, DropReason};
use crate::filter::{Verdict, is_to_group};
use crate::limit::GroupLimit;
use crate::policy::Policy;
use crate::tap::{RawSlice, TapTrouble, classify};
use shm_link::offload::{GSO_NONE, OffloadHeader};

/// Whether the frame may go on, judged by a private copy of its head.
pub(super) fn admit(
    policy: &Policy,
    groups: &mut GroupLimit,
    wire: &impl Wire,
    offload: OffloadHeader,
    head: &[u8],
    frame_len: usize,
) -> Result<(), DropReason> {
    if !policy.ready {
        return Err(DropReason::NotReady);
    }
    if !policy.carrier {
        return Err(DropReason::NoCarrier);
    }
    // A super-frame is as long as a link can carry; its segments are not.
    let segment_len = match offload.gso_type {
        GSO_NONE => frame_len,
        _ => usize::from(offload.hdr_len) + usize::from(offload.gso_size),
    };
    if segment_len > policy.max_frame_len() {
        return Err(DropReason::TooLong);
    }
    if let Verdict::Drop(reason) = policy.filter.check(head, frame_len) {
        return Err(reason);
    }
    let per_second = policy.filter.groups_per_second();
    if per_second != 0 && is_to_group(head) && !groups.permits(per_second, wire.now()) {
        return Err(DropReason::GroupLimit);
    }
    Ok(())
}

/// Hands a frame of `len` bytes to the kernel and counts what became of it.
///
/// # Safety
/// The parts are valid for reads for the length of the call. Others may write
/// them at the same time.
pub(super) unsafe fn write(
    shared: &PumpShared<impl Wire>,
    offload: OffloadHeader,
    parts: [RawSlice; 2],
    len: usize,
) -> Result<(), PumpEnd> {
    let counters: &DirectionCounters = &shared.counters.guest_to_host;
    loop {
        // SAFETY: promised by the caller.
        let error = match unsafe { shared.tap.write(offload, parts) } {
            Ok(()) => {
                counters.frame_out(len);
                return Ok(());
            }
            Err(error) => error,
        };
        let reason = match classify(&error) {
            TapTrouble::Interrupted => continue,
            // A TAP has no queue towards the kernel that could fill up for long:
            // what it refuses now is lost, as on a network card.
            TapTrouble::NotNow | TapTrouble::NoRoom | TapTrouble::BadFrame => {
                DropReason::TapRefused
            }
            TapTrouble::Down => DropReason::LinkDown,
            TapTrouble::Gone | TapTrouble::Broken => {
                counters.dropped(DropReason::LinkDown);
                return Err(PumpEnd::Tap(error));
            }
        };
        counters.dropped(reason);
        return Ok(());
    }
}

/// Reads a frame, and what is left to do for it; `None` if there is none now.
///
/// # Safety
/// `start` is valid for writes of `len` bytes.
pub(super) unsafe fn read(
    shared: &PumpShared<impl Wire>,
    start: *mut u8,
    len: usize,
) -> Result<Option<(usize, OffloadHeader)>, PumpEnd> {
    // SAFETY: promised by the caller.
    unsafe { shared.tap.read(start, len) }.map_err(PumpEnd::Tap)
}
