//! What happened to the frames of a port, counted so that it adds up.
//!
//! Each direction of a port has one [`DirectionCounters`], written by that
//! direction's pump alone and read by anybody. Every frame that came in is
//! accounted for exactly once (see [`DirectionSnapshot::check_ledger`]):
//!
//! ```text
//! frames_in + duplicated == frames_out + sum(drops by reason) + held
//! ```
//!
//! The filter and the impairment stage name their [`DropReason`]s from here;
//! they count nothing themselves.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a frame went no further. The names are stable: they appear in
        /// status output, logs and scripts.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(usize)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The reason's stable name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// The frame ends before its headers do, or a length field says so.
    Truncated = "truncated",
    /// A header contradicts itself or its protocol.
    Malformed = "malformed",
    /// The headers go on beyond what the filter looks at, or are too many.
    HeaderChain = "header-chain",
    /// A fragment that would hide what the filter must see.
    Fragment = "fragment",
    /// The source MAC address is not the guest's.
    SpoofedMac = "spoofed-mac",
    /// An ARP packet speaks for a MAC or IPv4 address that is not the guest's.
    SpoofedArp = "spoofed-arp",
    /// The IPv4 source address is not the guest's.
    SpoofedIpv4 = "spoofed-ipv4",
    /// The IPv6 source address is not the guest's.
    SpoofedIpv6 = "spoofed-ipv6",
    /// A neighbour discovery message speaks for somebody else.
    SpoofedNd = "spoofed-nd",
    /// A guest advertised itself as an IPv6 router.
    RogueRouter = "rogue-router",
    /// A guest sent an IPv6 redirect.
    RogueRedirect = "rogue-redirect",
    /// A guest answered as a DHCP server.
    RogueDhcp = "rogue-dhcp",
    /// The EtherType is not among those the guest may use.
    EtherType = "ethertype",
    /// The frame carries a VLAN tag.
    Vlan = "vlan",
    /// The destination is reserved for bridges (spanning tree and the like).
    ReservedMulticast = "reserved-multicast",
    /// More frames to groups than the guest may send.
    GroupLimit = "group-limit",
    /// A frame from the host is addressed to another machine.
    NotForGuest = "not-for-guest",
    /// Impairment: lost on purpose.
    ImpairLoss = "impair-loss",
    /// Impairment: the delay queue was full.
    ImpairQueue = "impair-queue",
    /// Impairment: the queue in front of the rate limit was full.
    RateLimit = "rate-limit",
    /// The frame is longer than the other side takes.
    TooLong = "too-long",
    /// The kernel had no room for the frame, or would not have it.
    TapRefused = "tap-refused",
    /// The TAP is down or gone.
    LinkDown = "link-down",
    /// The guest's carrier is off.
    NoCarrier = "no-carrier",
    /// The guest has not finished its negotiation.
    NotReady = "not-ready",
    /// What arrived was damaged on the way (serial lines), or cut off by the end
    /// of the stream. Counted as a frame of no bytes.
    Damaged = "damaged",
    /// A frame from the host was to be cut or finished for the guest, and its headers
    /// contradict each other.
    BadOffload = "bad-offload",
    /// The frame was on its way when the guest broke the rules.
    PeerFault = "peer-fault",
    /// The frame was on its way when the link was closed.
    Closed = "closed",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The counters of one direction of a port.
///
/// One writer at a time: two would lose counts (never memory). The alignment
/// keeps the two directions of a port off each other's cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub struct DirectionCounters {
    frames_in: AtomicU64,
    bytes_in: AtomicU64,
    duplicated: AtomicU64,
    held: AtomicU64,
    frames_out: AtomicU64,
    bytes_out: AtomicU64,
    doorbells: AtomicU64,
    wakeups: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
}

impl Default for DirectionCounters {
    fn default() -> Self {
        Self {
            frames_in: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            duplicated: AtomicU64::new(0),
            held: AtomicU64::new(0),
            frames_out: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            doorbells: AtomicU64::new(0),
            wakeups: AtomicU64::new(0),
            drops: [const { AtomicU64::new(0) }; DropReason::ALL.len()],
        }
    }
}

/// Adds to a counter of which the caller is the only writer: no locked
/// instruction is needed.
fn bump(counter: &AtomicU64, by: u64) {
    // ORDERING: Relaxed load, this thread (or a task before it, synchronised by
    // the executor) wrote the value. Release store, pairs with the Acquire load
    // in `read`: who sees a frame leave also sees it come.
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Release,
    );
}

fn read(counter: &AtomicU64) -> u64 {
    // ORDERING: pairs with the Release store in `bump` and `set_held`.
    counter.load(Ordering::Acquire)
}

impl DirectionCounters {
    /// A frame of `len` bytes (Ethernet header included) was taken from its
    /// source. Call it before whatever happens to the frame is counted.
    pub fn frame_in(&self, len: usize) {
        bump(&self.bytes_in, len as u64);
        bump(&self.frames_in, 1);
    }

    /// A frame of `len` bytes was handed to its destination.
    pub fn frame_out(&self, len: usize) {
        bump(&self.bytes_out, len as u64);
        bump(&self.frames_out, 1);
    }

    /// A frame was dropped.
    pub fn dropped(&self, reason: DropReason) {
        self.dropped_many(reason, 1);
    }

    /// `count` frames were dropped for the same reason.
    pub fn dropped_many(&self, reason: DropReason, count: u64) {
        // In bounds: the array has one counter for each variant.
        bump(&self.drops[reason as usize], count);
    }

    /// Impairment made a second frame out of one.
    pub fn duplicated(&self) {
        bump(&self.duplicated, 1);
    }

    /// Impairment now holds `frames`. Call it when a frame went in (after
    /// [`frame_in`](Self::frame_in)) and before one that came out is counted as
    /// out or dropped.
    pub fn set_held(&self, frames: usize) {
        // ORDERING: pairs with the Acquire load in `read`.
        self.held.store(frames as u64, Ordering::Release);
    }

    /// The other side's doorbell was rung.
    pub fn doorbell(&self) {
        bump(&self.doorbells, 1);
    }

    /// The pump woke up.
    pub fn wakeup(&self) {
        bump(&self.wakeups, 1);
    }

    /// The counters as they stand. Frames that are being moved at this very
    /// moment may have come in and not gone out yet; the reverse is never seen.
    pub fn snapshot(&self) -> DirectionSnapshot {
        // Against the direction of a frame's life: what a frame reaches last is
        // read first, so that no frame is seen leaving before it came.
        let drops = DropReason::ALL
            .iter()
            .zip(&self.drops)
            .map(|(reason, count)| (reason.name().to_owned(), read(count)))
            .filter(|&(_, count)| count != 0)
            .collect();
        let frames_out = read(&self.frames_out);
        let bytes_out = read(&self.bytes_out);
        let held = read(&self.held);
        let duplicated = read(&self.duplicated);
        let frames_in = read(&self.frames_in);
        DirectionSnapshot {
            frames_in,
            bytes_in: read(&self.bytes_in),
            frames_out,
            bytes_out,
            duplicated,
            held,
            doorbells: read(&self.doorbells),
            wakeups: read(&self.wakeups),
            drops,
        }
    }
}

/// The counters of a port: one set for each direction.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// From the guest to the TAP.
    pub guest_to_host: DirectionCounters,
    /// From the TAP to the guest.
    pub host_to_guest: DirectionCounters,
}

impl PortCounters {
    /// Both directions as they stand.
    pub fn snapshot(&self) -> PortSnapshot {
        PortSnapshot {
            guest_to_host: self.guest_to_host.snapshot(),
            host_to_guest: self.host_to_guest.snapshot(),
        }
    }
}

/// The counters of a port at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSnapshot {
    /// From the guest to the TAP.
    pub guest_to_host: DirectionSnapshot,
    /// From the TAP to the guest.
    pub host_to_guest: DirectionSnapshot,
}

/// The counters of one direction at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionSnapshot {
    /// Frames taken from the source.
    pub frames_in: u64,
    /// Their bytes, Ethernet headers included.
    pub bytes_in: u64,
    /// Frames handed to the destination.
    pub frames_out: u64,
    /// Their bytes, Ethernet headers included.
    pub bytes_out: u64,
    /// Frames that impairment added.
    pub duplicated: u64,
    /// Frames that impairment holds back now.
    pub held: u64,
    /// Doorbells rung.
    pub doorbells: u64,
    /// Times the pump woke up.
    pub wakeups: u64,
    /// Dropped frames by [`DropReason::name`]; reasons that never happened are
    /// left out.
    pub drops: BTreeMap<String, u64>,
}

impl DirectionSnapshot {
    /// Dropped frames, whatever the reason.
    pub fn dropped(&self) -> u64 {
        self.drops
            .values()
            .fold(0, |sum, &count| sum.wrapping_add(count))
    }

    /// Frames dropped for one reason.
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.drops.get(reason.name()).copied().unwrap_or(0)
    }

    /// Checks that every frame is accounted for.
    ///
    /// While the direction is at work a small positive gap is no fault: frames
    /// being moved right now. At rest the gap is zero. It is never negative.
    ///
    /// # Errors
    /// The [`LedgerGap`], if there is one.
    pub fn check_ledger(&self) -> Result<(), LedgerGap> {
        let came = i128::from(self.frames_in) + i128::from(self.duplicated);
        let accounted =
            i128::from(self.frames_out) + i128::from(self.dropped()) + i128::from(self.held);
        match came - accounted {
            0 => Ok(()),
            missing => Err(LedgerGap { missing }),
        }
    }
}

/// Frames that came in and are neither out, nor dropped, nor held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerGap {
    /// How many; negative when more is accounted for than came in.
    pub missing: i128,
}

impl fmt::Display for LedgerGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} frames are not accounted for", self.missing)
    }
}

impl std::error::Error for LedgerGap {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_names_are_unique_and_lower_case() {
        let mut seen = std::collections::BTreeSet::new();
        for reason in DropReason::ALL {
            let name = reason.name();
            assert!(seen.insert(name), "{name} stands twice");
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{name}"
            );
        }
    }

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let counters = DirectionCounters::default();
        for (i, &reason) in DropReason::ALL.iter().enumerate() {
            counters.dropped_many(reason, i as u64 + 1);
        }
        let snapshot = counters.snapshot();
        for (i, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(snapshot.dropped_for(reason), i as u64 + 1, "{reason}");
        }
    }

    #[test]
    fn the_ledger_of_a_direction_at_rest_adds_up() {
        let counters = DirectionCounters::default();
        for _ in 0..5 {
            counters.frame_in(100);
        }
        counters.duplicated();
        counters.set_held(2);
        counters.frame_out(100);
        counters.frame_out(100);
        counters.dropped(DropReason::SpoofedMac);
        counters.dropped(DropReason::ImpairLoss);
        let snapshot = counters.snapshot();
        assert_eq!(snapshot.check_ledger(), Ok(()));
        assert_eq!(snapshot.dropped(), 2);
        assert_eq!((snapshot.bytes_in, snapshot.bytes_out), (500, 200));
    }

    #[test]
    fn a_frame_that_vanished_shows_as_a_gap() {
        let counters = DirectionCounters::default();
        counters.frame_in(60);
        assert_eq!(
            counters.snapshot().check_ledger(),
            Err(LedgerGap { missing: 1 })
        );
        counters.frame_out(60);
        counters.frame_out(60);
        assert_eq!(
            counters.snapshot().check_ledger(),
            Err(LedgerGap { missing: -1 })
        );
    }

    #[test]
    fn a_snapshot_survives_json() {
        let counters = PortCounters::default();
        counters.guest_to_host.frame_in(60);
        counters.guest_to_host.dropped(DropReason::RogueDhcp);
        counters.host_to_guest.doorbell();
        counters.host_to_guest.wakeup();
        let snapshot = counters.snapshot();
        let text = serde_json::to_string(&snapshot).unwrap();
        assert!(text.contains("\"rogue-dhcp\":1"), "{text}");
        assert_eq!(
            serde_json::from_str::<PortSnapshot>(&text).unwrap(),
            snapshot
        );
    }

    #[test]
    fn a_reader_never_sees_a_frame_leave_before_it_came() {
        const FRAMES: u64 = 200_000;
        let counters = DirectionCounters::default();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for i in 0..FRAMES {
                    counters.frame_in(60);
                    match i % 3 {
                        0 => counters.frame_out(60),
                        1 => counters.dropped(DropReason::ImpairLoss),
                        _ => {
                            counters.set_held(1);
                            counters.set_held(0);
                            counters.frame_out(60);
                        }
                    }
                }
            });
            while !writer.is_finished() {
                if let Err(gap) = counters.snapshot().check_ledger() {
                    assert!(gap.missing > 0, "{gap}");
                }
            }
        });
        let snapshot = counters.snapshot();
        assert_eq!(snapshot.check_ledger(), Ok(()));
        assert_eq!(snapshot.frames_in, FRAMES);
    }
}
