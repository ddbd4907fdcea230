//! A bad network on purpose: loss, duplication, reordering, corruption, delay,
//! jitter and a rate limit, for one direction of one port.
//!
//! The pump owns an [`Impair`] per direction and goes around it while
//! [`Impair::is_transparent`] says so. Otherwise it puts a private copy of each
//! frame in ([`enqueue`](Impair::enqueue)) and takes out what is due
//! ([`poll`](Impair::poll)); [`poll_at`](Impair::poll_at) says when to come
//! back. No clock, no task, no counter in here: time is an argument and the
//! pump counts what it is told.
//!
//! ```text
//! enqueue ─ loss ─ duplicate ─ corrupt ─▶ delay queue ─▶ (set aside: reorder) ─▶ rate ─▶ poll
//! ```
//!
//! The same seed, configuration and calls give the same result, in every
//! release. Frames keep their order unless `reorder` says otherwise: jitter
//! delays a frame's followers, it does not let them pass.

mod config;
mod random;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use shm_link::offload::{FLAG_DATA_VALID, OffloadHeader};

pub use self::config::{Chance, ImpairConfig, ImpairParseError};
use self::random::Random;
use crate::counters::DropReason;

/// How long a frame that was set aside for reordering waits for others to pass
/// it when none come: long enough for a sender in full flow, short against a
/// retransmission timer.
const REORDER_WAIT: Duration = Duration::from_millis(10);

/// Bytes that one direction may hold at most, whatever the limit in frames:
/// bounds the memory that a guest can take with frames of 64 KB.
const MAX_HELD_BYTES: usize = 64 << 20;

/// The default burst is what the rate carries in this time: several ticks of
/// the timer that wakes the pump, so that waking late costs no throughput.
const DEFAULT_BURST_TIME: Duration = Duration::from_millis(5);

/// The default burst is never less than two full-sized frames.
const MIN_DEFAULT_BURST_BYTES: u64 = 2 * 1514;

/// The Ethernet header of a frame without tags.
const ETHERNET_LEN: usize = 14;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// A frame on its way through the impairment stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImpairedFrame {
    /// What is left to do for the frame.
    pub offload: OffloadHeader,
    /// The frame from its Ethernet header on.
    pub bytes: Vec<u8>,
}

/// What became of a frame at [`Impair::enqueue`]. The pump counts it.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// It is held and will come out once.
    Once,
    /// It is held twice and will come out twice.
    Twice,
    /// It is gone.
    Dropped(DropReason),
}

/// The impairment stage of one direction.
#[derive(Debug)]
pub struct Impair {
    config: ImpairConfig,
    streams: Streams,
    /// Frames in the order in which they leave, `ready` never decreasing.
    queue: VecDeque<Queued>,
    /// Frames that others are to overtake, oldest first.
    aside: VecDeque<Aside>,
    held_bytes: usize,
    /// When the rate's bucket is empty again, if nothing else leaves.
    busy_until: Option<Instant>,
}

#[derive(Debug)]
struct Queued {
    frame: ImpairedFrame,
    ready: Instant,
    /// How many frames are to overtake it; 0 for most.
    gap: u32,
}

#[derive(Debug)]
struct Aside {
    frame: ImpairedFrame,
    ready: Instant,
    /// How many frames are still to overtake it.
    remaining: u32,
}

impl Aside {
    fn due(&self) -> Instant {
        if self.remaining == 0 {
            self.ready
        } else {
            self.ready + REORDER_WAIT
        }
    }
}

/// One random stream per effect: which frames are lost stays the same when
/// another effect is switched on.
#[derive(Debug)]
struct Streams {
    loss: Random,
    duplicate: Random,
    reorder: Random,
    corrupt: Random,
    corrupt_bit: Random,
    jitter: Random,
}

impl Streams {
    fn new(seed: u64) -> Self {
        Self {
            loss: Random::new(seed, 1),
            duplicate: Random::new(seed, 2),
            reorder: Random::new(seed, 3),
            corrupt: Random::new(seed, 4),
            corrupt_bit: Random::new(seed, 5),
            jitter: Random::new(seed, 6),
        }
    }
}

impl Impair {
    /// A stage that holds nothing yet.
    pub fn new(config: ImpairConfig) -> Self {
        Self {
            streams: Streams::new(config.seed),
            config,
            queue: VecDeque::new(),
            aside: VecDeque::new(),
            held_bytes: 0,
            busy_until: None,
        }
    }

    /// What it does now.
    pub fn config(&self) -> &ImpairConfig {
        &self.config
    }

    /// Changes what it does to later frames. Frames held stay held as long as
    /// they were told; a new rate applies to them too. The random streams start
    /// again only if the seed changed.
    pub fn set_config(&mut self, config: ImpairConfig) {
        if config.seed != self.config.seed {
            self.streams = Streams::new(config.seed);
        }
        if config.rate != self.config.rate {
            self.busy_until = None;
        }
        self.config = config;
    }

    /// Whether frames may go around it: it does nothing and holds nothing.
    pub fn is_transparent(&self) -> bool {
        self.held() == 0 && self.config.is_transparent()
    }

    /// How many frames it holds.
    pub fn held(&self) -> usize {
        self.queue.len() + self.aside.len()
    }

    /// Takes a frame in, or drops it.
    pub fn enqueue(&mut self, now: Instant, frame: ImpairedFrame) -> Enqueued {
        // These streams are drawn from once per frame whatever happens to it, so
        // that one frame's fate does not shift the next one's. Jitter and
        // corruption are drawn per copy that is held.
        let lost = self.streams.loss.happens(self.config.loss);
        let duplicated = self.streams.duplicate.happens(self.config.duplicate);
        let reordered = self.streams.reorder.happens(self.config.reorder);
        if lost {
            return Enqueued::Dropped(DropReason::ImpairLoss);
        }
        let len = frame.bytes.len();
        if !self.has_room(1, len) {
            return Enqueued::Dropped(match self.config.rate {
                Some(_) => DropReason::RateLimit,
                None => DropReason::ImpairQueue,
            });
        }
        let copy = (duplicated && self.has_room(2, 2 * len)).then(|| frame.clone());
        let gap = if reordered { self.config.gap } else { 0 };
        self.push(now, frame, gap);
        match copy {
            Some(copy) => {
                self.push(now, copy, 0);
                Enqueued::Twice
            }
            None => Enqueued::Once,
        }
    }

    fn has_room(&self, frames: usize, bytes: usize) -> bool {
        self.held() + frames <= self.config.limit && self.held_bytes + bytes <= MAX_HELD_BYTES
    }

    fn push(&mut self, now: Instant, mut frame: ImpairedFrame, gap: u32) {
        if self.streams.corrupt.happens(self.config.corrupt) {
            corrupt(&mut frame, &mut self.streams.corrupt_bit);
        }
        let delay = self.draw_delay();
        let in_order = self.queue.back().map_or(now, |last| last.ready);
        self.held_bytes += frame.bytes.len();
        self.queue.push_back(Queued {
            frame,
            ready: (now + delay).max(in_order),
            gap,
        });
    }

    /// The delay of the next frame: evenly spread over `delay ± jitter`, never
    /// negative.
    fn draw_delay(&mut self) -> Duration {
        // At most 60 s, so twice the nanoseconds fit into 64 bits.
        let jitter_ns = self.config.jitter.as_nanos() as u64;
        let above_earliest = Duration::from_nanos(self.streams.jitter.below(2 * jitter_ns + 1));
        (self.config.delay + above_earliest).saturating_sub(self.config.jitter)
    }

    /// Takes the next frame that is due out. Call it until it gives `None`.
    #[must_use]
    pub fn poll(&mut self, now: Instant) -> Option<ImpairedFrame> {
        if self.rate_gate().is_some_and(|gate| gate > now) {
            return None;
        }
        if let Some(due) = self.aside.iter().position(|aside| aside.due() <= now) {
            let aside = self.aside.remove(due)?;
            return Some(self.leave(now, aside.frame));
        }
        while self.queue.front().is_some_and(|head| head.ready <= now) {
            let Queued { frame, ready, gap } = self.queue.pop_front()?;
            if gap > 0 {
                self.aside.push_back(Aside {
                    frame,
                    ready,
                    remaining: gap,
                });
                continue;
            }
            for aside in &mut self.aside {
                aside.remaining = aside.remaining.saturating_sub(1);
            }
            return Some(self.leave(now, frame));
        }
        // Frames just set aside may have waited long enough already, if this
        // call comes late.
        let due = self.aside.iter().position(|aside| aside.due() <= now)?;
        let aside = self.aside.remove(due)?;
        Some(self.leave(now, aside.frame))
    }

    /// When to call [`poll`](Self::poll) again, if nothing is enqueued before.
    /// A moment that has passed means at once; `None` that nothing is held.
    #[must_use]
    pub fn poll_at(&self) -> Option<Instant> {
        let aside = self.aside.iter().map(Aside::due).min();
        let head = self.queue.front().map(|head| head.ready);
        let due = aside.into_iter().chain(head).min()?;
        Some(self.rate_gate().map_or(due, |gate| gate.max(due)))
    }

    /// Forgets all frames held and says how many they were, for the pump to
    /// count as dropped.
    #[must_use]
    pub fn clear(&mut self) -> usize {
        let held = self.held();
        self.queue.clear();
        self.aside.clear();
        self.held_bytes = 0;
        held
    }

    /// The moment before which the rate lets nothing leave.
    fn rate_gate(&self) -> Option<Instant> {
        let rate = self.config.rate?.get();
        let burst_bytes = self.config.burst.unwrap_or_else(|| {
            let bytes = u128::from(rate / 8) * DEFAULT_BURST_TIME.as_nanos() / NANOS_PER_SECOND;
            // The highest rate for 5 ms is far below 2^64 bytes.
            (bytes as u64).max(MIN_DEFAULT_BURST_BYTES)
        });
        // Without an answer the burst reaches back beyond the clock's
        // beginning: nothing has to wait.
        self.busy_until?.checked_sub(airtime(burst_bytes, rate))
    }

    fn leave(&mut self, now: Instant, frame: ImpairedFrame) -> ImpairedFrame {
        let len = frame.bytes.len();
        self.held_bytes -= len;
        if let Some(rate) = self.config.rate {
            let from = self.busy_until.map_or(now, |until| until.max(now));
            self.busy_until = Some(from + airtime(len as u64, rate.get()));
        }
        frame
    }
}

/// How long `bytes` take at `rate` bits per second.
fn airtime(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 8 * NANOS_PER_SECOND / u128::from(rate);
    // The most is 1 GiB at 1 kbit/s, about 2^53 nanoseconds.
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Flips a bit of an IP packet, where it will be found.
///
/// A bit flipped before its checksum is made never would be. The Ethernet header and ARP
/// have none: a wrong address there would be believed, by the guest's neighbours too,
/// and on a wire its FCS keeps such a frame from them.
fn corrupt(frame: &mut ImpairedFrame, random: &mut Random) {
    if !frame.offload.is_plain() {
        return;
    }
    let Some((header, packet)) = frame.bytes.split_at_mut_checked(ETHERNET_LEN) else {
        return;
    };
    if !matches!(header, [.., 0x08, 0x00] | [.., 0x86, 0xdd]) {
        return;
    }
    let bit = random.below(8 * packet.len() as u64);
    // An empty packet has no byte 0 and stays as it is.
    if let Some(byte) = packet.get_mut((bit / 8) as usize) {
        *byte ^= 1 << (bit % 8);
    }
    // What the kernel verified before is no longer so.
    frame.offload.flags &= !FLAG_DATA_VALID;
}
