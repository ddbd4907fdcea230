//! Guest to host: the hot loop that takes frames out of the ring and writes them
//! to the TAP.
//!
//! The guest may change a frame while it is looked at. So its first
//! [`HEAD_LEN`] bytes are copied once, the copy is checked, and the kernel is
//! given the copy together with the rest of the frame, which nobody judged.

use std::time::{Duration, Instant};

use shm_link::fault::PeerFault;
use shm_link::offload::Offloads;
use shm_link::record::{Record, RecordReader};
use shm_link::ring::Arm;

use super::kernel::{admit, write};
use super::{Budget, PUBLISH_BYTES, PumpEnd, PumpShared, Wire, forget, impair, paused, ring};
use crate::bell::GuestBell;
use crate::counters::DropReason;
use crate::filter::HEAD_LEN;
use crate::impair::{Impair, ImpairedFrame};
use crate::limit::{GroupLimit, Limiter};
use crate::policy::Policy;
use crate::tap::RawSlice;

/// How long a guest's frames wait when none of a whole turn's might pass. A guest in
/// order is never in that place; one that floods costs the others a fiftieth of the time
/// that it would, and loses nothing by it that it had.
const REST: Duration = Duration::from_millis(1);

/// The way from a guest's ring to its TAP.
pub(super) struct ToHost<W> {
    frames: RecordReader,
    ring_guest: GuestBell,
    shared: PumpShared<W>,
    stage: Impair,
    limit: Limiter,
    groups: GroupLimit,
    /// Until when its frames wait, because none of its last ones might pass.
    rests: Option<Instant>,
    rules: Rules,
}

/// Which offloads the guest's frames may ask for. They stay in the ring while a pump
/// rests and over a restart of the host, so those that stand there when the rules
/// change were written by the rules of before.
#[derive(Debug, Default)]
struct Rules {
    /// What holds now; `None` before the guest has a configuration.
    now: Option<Offloads>,
    /// What held when the frames in front of `until` were written.
    before: Offloads,
    until: u64,
}

/// What may have held before anything is known.
const ANY: Offloads = Offloads::CHECKSUM.union(Offloads::SEGMENTATION);

impl Rules {
    /// Takes note of a policy, before frames are looked at.
    fn follow(&mut self, policy: &Policy, frames: &mut RecordReader) -> Result<(), PeerFault> {
        let next = policy.ready.then_some(policy.offloads_to_host);
        if self.now == next {
            return Ok(());
        }
        if next.is_some() {
            let (position, end) = frames.extent()?;
            let still = match position < self.until {
                true => self.before,
                false => Offloads::NONE,
            };
            self.before = still.union(self.now.unwrap_or(ANY));
            self.until = end;
        }
        self.now = next;
        Ok(())
    }

    /// Whether a frame at `position`, which the rules of now do not allow, is one of
    /// before.
    fn excuse(&self, position: u64, record: &Record, policy: &Policy) -> Result<(), PeerFault> {
        let before = match position < self.until {
            true => self.before,
            false => Offloads::NONE,
        };
        let allowed = before.union(policy.offloads_to_host);
        record.offload.check(record.len, allowed)
    }
}

impl<W: Wire> ToHost<W> {
    pub(super) fn new(frames: RecordReader, ring_guest: GuestBell, shared: PumpShared<W>) -> Self {
        let stage = Impair::new(shared.policy.borrow().impair_to_host.clone());
        let limit = Limiter::new(shared.policy.borrow().limits.to_host);
        Self {
            frames,
            ring_guest,
            shared,
            stage,
            limit,
            groups: GroupLimit::default(),
            rests: None,
            rules: Rules::default(),
        }
    }

    /// Moves at most a budget of frames and says what is left of it. Before the
    /// guest has its configuration its frames wait in its ring: nothing is lost.
    pub(super) fn turn(&mut self, policy: &Policy) -> Result<Budget, PumpEnd> {
        if self.stage.config() != &policy.impair_to_host {
            self.stage.set_config(policy.impair_to_host.clone());
        }
        self.limit.set_config(policy.limits.to_host);
        self.rules.follow(policy, &mut self.frames)?;
        if !policy.ready {
            // What left the guest before goes its way all the same.
            self.release()?;
            return Ok(Budget::FULL);
        }
        if self
            .rests
            .is_some_and(|until| until > self.shared.tap.now())
        {
            self.release()?;
            return Ok(Budget::FULL);
        }
        self.rests = None;
        let moved = self.work(policy);
        let counters = &self.shared.counters.guest_to_host;
        ring(self.frames.publish(), &self.ring_guest, counters);
        moved
    }

    /// Until when what the guest sends stays in its ring, because more may not
    /// pass before.
    pub(super) fn paused(&self) -> Option<Instant> {
        paused(&self.limit, &*self.shared.tap).max(self.rests)
    }

    /// Whether its frames wait because none might pass.
    pub(super) fn rests(&self) -> bool {
        self.rests.is_some()
    }

    /// When a held frame is due.
    pub(super) fn poll_at(&self) -> Option<Instant> {
        self.stage.poll_at()
    }

    /// Announces sleep until the guest sends.
    pub(super) fn arm(&mut self) -> Result<Arm, PumpEnd> {
        let armed = self.frames.arm()?;
        if armed == Arm::Awake && self.frames.is_finished()? {
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
        self.shared.counters.guest_to_host.wakeup();
    }

    /// Forgets what is held, and closes the ring if the guest is to see the end.
    pub(super) fn end(mut self, closes: bool) {
        let counters = &self.shared.counters.guest_to_host;
        forget(&mut self.stage, counters);
        if closes {
            ring(self.frames.close(), &self.ring_guest, counters);
        }
    }

    fn work(&mut self, policy: &Policy) -> Result<Budget, PumpEnd> {
        let counters = &self.shared.counters.guest_to_host;
        let impaired = !self.stage.is_transparent();
        let (mut budget, mut held, mut admitted) = (Budget::FULL, 0, false);
        let limited = (!self.limit.is_off()).then(|| self.shared.tap.now());
        while !budget.is_spent() && limited.is_none_or(|now| self.limit.pause(now).is_none()) {
            let Some(record) = self.frames.peek()? else {
                break;
            };
            counters.frame_in(record.len);
            let mut excused = false;
            if record
                .offload
                .check(record.len, policy.offloads_to_host)
                .is_err()
            {
                let position = self.frames.position();
                self.rules
                    .excuse(position, &record, policy)
                    .inspect_err(|_| counters.dropped(DropReason::PeerFault))?;
                excused = true;
            }
            let mut head = [0; HEAD_LEN];
            let head = copy_head(&record, &mut head);
            let (groups, tap) = (&mut self.groups, &*self.shared.tap);
            let verdict = admit(policy, groups, tap, record.offload, head, record.len);
            admitted |= verdict.is_ok();
            match verdict {
                Err(reason) => counters.dropped(reason),
                // A TAP without a virtio header would take it for a whole frame.
                Ok(()) if excused && !self.shared.tap.completes() => {
                    counters.dropped(DropReason::TapRefused);
                }
                Ok(()) if impaired => {
                    let frame = ImpairedFrame {
                        offload: record.offload,
                        bytes: copy_frame(head, &record),
                    };
                    impair(&mut self.stage, self.shared.tap.now(), frame, counters);
                }
                Ok(()) => {
                    let rest = rest_of(&record, head.len());
                    let parts = [RawSlice::new(head.as_ptr(), head.len()), rest];
                    // SAFETY: the head is private; the rest is the body of a
                    // record that is not consumed yet.
                    unsafe { write(&self.shared, record.offload, parts, record.len) }?;
                }
            }
            self.frames.consume();
            if let Some(now) = limited {
                self.limit.charge(now, record.len);
            }
            budget.spend(record.len);
            held += record.len;
            if held >= PUBLISH_BYTES {
                // A guest that sends long frames needs the room now.
                held = 0;
                ring(self.frames.publish(), &self.ring_guest, counters);
            }
        }
        if impaired {
            self.release()?;
        }
        if budget.is_spent() && !admitted {
            self.rests = Some(self.shared.tap.now() + REST);
            // There may be more, but not now.
            budget = Budget::TOUCHED;
        }
        Ok(budget)
    }

    /// Hands the frames that were held back and are due to the kernel.
    fn release(&mut self) -> Result<(), PumpEnd> {
        let now = self.shared.tap.now();
        while let Some(frame) = self.stage.poll(now) {
            let counters = &self.shared.counters.guest_to_host;
            counters.set_held(self.stage.held());
            let part = RawSlice::new(frame.bytes.as_ptr(), frame.bytes.len());
            let parts = [part, RawSlice::EMPTY];
            // SAFETY: the frame is private and lives until the next turn.
            unsafe { write(&self.shared, frame.offload, parts, frame.bytes.len()) }?;
        }
        Ok(())
    }
}

/// Copies the first bytes of the frame, as many as the filter looks at.
fn copy_head<'b>(record: &Record, head: &'b mut [u8; HEAD_LEN]) -> &'b [u8] {
    let n = record.len.min(HEAD_LEN);
    // SAFETY: the record has `len` readable bytes until it is consumed, and
    // `head` is private memory of HEAD_LEN bytes; `n` is no more than either.
    unsafe { std::ptr::copy_nonoverlapping(record.body.as_ptr(), head.as_mut_ptr(), n) };
    &head[..n]
}

/// What follows the head, still in the ring.
fn rest_of(record: &Record, head_len: usize) -> RawSlice {
    // SAFETY: head_len is at most the record's length.
    let start = unsafe { record.body.add(head_len) };
    RawSlice::new(start.as_ptr(), record.len - head_len)
}

/// The checked head and a copy of the rest, for a frame that is held back.
fn copy_frame(head: &[u8], record: &Record) -> Vec<u8> {
    let mut bytes = vec![0; record.len];
    bytes[..head.len()].copy_from_slice(head);
    let rest = &mut bytes[head.len()..];
    // SAFETY: the record has `len` readable bytes; `rest` is private memory of
    // `len - head.len()` bytes.
    unsafe {
        let start = record.body.add(head.len());
        std::ptr::copy_nonoverlapping(start.as_ptr(), rest.as_mut_ptr(), rest.len());
    }
    bytes
}

#[cfg(all(test, feature = "simulation"))]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use shm_link::link::{FrameTx, Link};
    use shm_link::linux::memory::SharedMemory;
    use shm_link::offload::OffloadHeader;
    use shm_link::region::Region;
    use shm_link::shm::{HostEnd, ShmLink};
    use shm_link::superblock::Layout;

    use super::*;
    use crate::counters::PortCounters;
    use crate::filter::{Filter, FilterConfig};
    use crate::impair::ImpairConfig;
    use crate::limit::Limits;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const FORGED: u8 = 0xee;

    /// A kernel that is slow: before it has read a frame, the guest has written over all
    /// frames that are in its ring.
    struct Slow {
        frames: Region,
        seen: Mutex<Vec<Vec<u8>>>,
    }

    impl Wire for Slow {
        fn now(&self) -> Instant {
            Instant::now()
        }

        fn completes(&self) -> bool {
            true
        }

        unsafe fn read(
            &self,
            _start: *mut u8,
            _len: usize,
        ) -> io::Result<Option<(usize, OffloadHeader)>> {
            Ok(None)
        }

        unsafe fn write(&self, _: OffloadHeader, parts: [RawSlice; 2]) -> io::Result<()> {
            let all = vec![FORGED; self.frames.len()];
            self.frames.copy_in(0, &all).unwrap();
            let mut frame = Vec::new();
            for (start, len) in parts.map(RawSlice::parts) {
                for i in 0..len {
                    // SAFETY: the part has `len` readable bytes, which the caller
                    // promises; nobody writes them now.
                    frame.push(unsafe { start.add(i).read_volatile() });
                }
            }
            self.seen.lock().unwrap().push(frame);
            Ok(())
        }
    }

    #[test]
    fn a_frame_that_is_changed_after_it_was_judged_leaves_as_it_was_judged() {
        let memory = SharedMemory::create("judged", 1 << 20).unwrap();
        let region = memory.region();
        let layout = Layout::fitting(region.len()).unwrap();
        let host = HostEnd::resume(&region, &layout).unwrap();
        layout.publish(&region).unwrap();
        // SAFETY: the region is mapped as long as `memory`, and no other guest uses it.
        let mut guest = unsafe { ShmLink::attach(region.clone(), || ()) }.unwrap();

        // 20 bytes of IPv4 header that are good enough for the filter, then a body of ones.
        let frame = |len: usize| {
            let mut frame = vec![1; len];
            frame[6..12].copy_from_slice(&MAC);
            frame[12..14].copy_from_slice(&[8, 0]);
            let total = (len - 14) as u16;
            frame[14..34].fill(0);
            frame[14] = 0x45;
            frame[16..18].copy_from_slice(&total.to_be_bytes());
            (frame[22], frame[23]) = (64, 253);
            frame[26..30].copy_from_slice(&[10, 0, 0, 1]);
            frame
        };
        let policy = Arc::new(Policy {
            filter: Filter::new(FilterConfig::default(), MAC, &[[10, 0, 0, 1].into()]),
            ready: true,
            carrier: true,
            mtu: 1500,
            offloads_to_host: shm_link::offload::Offloads::NONE,
            offloads_to_guest: shm_link::offload::Offloads::NONE,
            finishes: false,
            limits: Limits::default(),
            impair_to_host: ImpairConfig::default(),
            impair_to_guest: ImpairConfig::default(),
            stop: None,
        });
        let (_policies, watch) = tokio::sync::watch::channel(policy.clone());
        let ring = layout.frames.to_host;
        let body = shm_link::ring::RING_HEADER_LEN;
        let shared = PumpShared {
            tap: Arc::new(Slow {
                frames: region.part(ring.offset + body, ring.capacity).unwrap(),
                seen: Mutex::default(),
            }),
            counters: Arc::new(PortCounters::default()),
            policy: watch,
        };
        let bell = GuestBell::calling(Arc::new(|| ()));
        let mut pump = ToHost::new(host.frames_rx, bell, shared.clone());

        for len in [60, HEAD_LEN - 1, HEAD_LEN, HEAD_LEN + 1, 1514] {
            let frame = frame(len);
            let (_, tx) = guest.split();
            let room = tx.reserve(len).unwrap().unwrap();
            room[..len].copy_from_slice(&frame);
            tx.commit(len, OffloadHeader::NONE);
            tx.flush();
            let _ = pump.turn(&policy).unwrap();
            let seen = std::mem::take(&mut *shared.tap.seen.lock().unwrap());
            let judged = len.min(HEAD_LEN);
            assert_eq!(seen.len(), 1, "{:?}", shared.counters.snapshot());
            assert_eq!(seen[0].len(), len);
            assert_eq!(seen[0][..judged], frame[..judged], "{len} bytes");
            // What nobody judged is the guest's to change.
            assert!(seen[0][judged..].iter().all(|byte| *byte == FORGED));
        }
    }
}
