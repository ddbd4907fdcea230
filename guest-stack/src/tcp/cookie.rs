//! SYN cookies: a handshake that is kept in its own sequence number, for when all
//! places for records are taken (RFC 4987, 3.6 and appendix A).
//!
//! `handshake` answers a SYN with a cookie as initial sequence number instead of
//! dropping it, keeps nothing, and makes the record anew from the ACK that brings the
//! cookie back. Pure functions; nothing here knows of tables or sockets.
//!
//! ```text
//!  31 30 29 28 27 26 25 24 23 22                       0
//!  period  MSS   SACK  window shift   keyed hash, 23 bits
//! ```
//! The hash covers the addresses, the peer's initial number, the period and the other
//! bits. Unlike the cookies of RFC 4987 there is room for the window's scale and for
//! SACK, so a connection that began in a flood is as good as any.

use alloc::collections::VecDeque;
use core::hash::{BuildHasher, Hash, Hasher};

use hashbrown::HashSet;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::TcpRepr;

use crate::flow::{FlowKey, Seeded};

/// Segment sizes that a cookie can name; the peer's is rounded down to one. The first is
/// also for a peer that says none (RFC 9293, 3.7.1), the others are Ethernet's.
const SEGMENTS: [u16; 4] = [536, 1220, 1440, 1460];
/// Says that the peer scales no window.
const NO_SHIFT: u32 = 15;
/// Seconds of a period. A cookie is taken in its own and in the next, as Linux does: on a bad
/// network the first words after a handshake take a minute.
const PERIOD: i64 = 64;
/// How long after a cookie was given one may come back.
pub(crate) const LIFETIME: Duration = Duration::from_secs(2 * PERIOD as u64);
const HASH: u32 = (1 << 23) - 1;

/// Cookies that were taken lately, so that none is taken twice: a segment that its peer
/// sends again after its connection was reset would make another one, with the same data.
#[derive(Debug)]
pub(crate) struct Spent {
    cookies: HashSet<(FlowKey, u32), Seeded>,
    /// The same, the oldest first.
    row: VecDeque<(FlowKey, u32)>,
}

/// Most that are remembered; further ones take the places of the oldest.
const MOST_SPENT: usize = 4096;

impl Spent {
    pub(crate) fn new(hasher: Seeded) -> Self {
        Self {
            cookies: HashSet::with_hasher(hasher),
            row: VecDeque::new(),
        }
    }

    /// A cookie is taken; `false`: it was already.
    pub(crate) fn spend(&mut self, key: FlowKey, cookie: u32) -> bool {
        if !self.cookies.insert((key, cookie)) {
            return false;
        }
        self.row.push_back((key, cookie));
        if self.row.len() > MOST_SPENT
            && let Some(oldest) = self.row.pop_front()
        {
            self.cookies.remove(&oldest);
        }
        true
    }

    /// None of them is good any more.
    pub(crate) fn forget(&mut self) {
        self.cookies.clear();
        self.row.clear();
    }
}

/// What a SYN said, as far as a cookie holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) mss: u16,
    pub(crate) shift: Option<u8>,
    pub(crate) sack: bool,
}

/// The initial sequence number that answers this SYN.
pub(crate) fn bake(
    hasher: &impl BuildHasher,
    key: &FlowKey,
    syn: &TcpRepr<'_>,
    now: Instant,
) -> u32 {
    let mss = syn.max_seg_size.unwrap_or(SEGMENTS[0]);
    let segment = SEGMENTS
        .iter()
        .rposition(|known| *known <= mss)
        .unwrap_or(0) as u32;
    // RFC 7323, 2.3: at most 14.
    let shift = syn
        .window_scale
        .map_or(NO_SHIFT, |shift| u32::from(shift.min(14)));
    let period = now.secs().div_euclid(PERIOD);
    let bits = (period as u32 & 3) << 30
        | segment << 28
        | u32::from(syn.sack_permitted) << 27
        | shift << 23;
    bits | hash(hasher, key, syn.seq_number.0 as u32, period, bits)
}

/// What the SYN said that was answered with `cookie`, if it was, and lately. `irs` is the
/// peer's initial sequence number.
pub(crate) fn check(
    hasher: &impl BuildHasher,
    key: &FlowKey,
    irs: u32,
    cookie: u32,
    now: Instant,
) -> Option<Remembered> {
    let bits = cookie & !HASH;
    let this = now.secs().div_euclid(PERIOD);
    let period = [this, this - 1]
        .into_iter()
        .find(|period| *period as u32 & 3 == bits >> 30)?;
    if cookie & HASH != hash(hasher, key, irs, period, bits) {
        return None;
    }
    let shift = bits >> 23 & 15;
    Some(Remembered {
        mss: SEGMENTS[(bits >> 28 & 3) as usize],
        shift: (shift != NO_SHIFT).then_some(shift as u8),
        sack: bits >> 27 & 1 == 1,
    })
}

fn hash(hasher: &impl BuildHasher, key: &FlowKey, irs: u32, period: i64, bits: u32) -> u32 {
    let mut state = hasher.build_hasher();
    b"cookie".hash(&mut state);
    key.hash(&mut state);
    (irs, period, bits).hash(&mut state);
    state.finish() as u32 & HASH
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Seeded;
    use smoltcp::wire::{IpAddress, IpEndpoint, TcpControl, TcpSeqNumber};

    fn key(port: u16) -> FlowKey {
        FlowKey {
            local: IpEndpoint::new(IpAddress::v4(10, 0, 0, 1), 80),
            remote: IpEndpoint::new(IpAddress::v4(10, 0, 0, 2), port),
        }
    }

    fn syn(mss: Option<u16>, shift: Option<u8>, sack: bool) -> TcpRepr<'static> {
        TcpRepr {
            src_port: 4000,
            dst_port: 80,
            control: TcpControl::Syn,
            seq_number: TcpSeqNumber(77),
            ack_number: None,
            window_len: 1000,
            window_scale: shift,
            max_seg_size: mss,
            sack_permitted: sack,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        }
    }

    #[test]
    fn a_cookie_remembers_what_the_syn_said() {
        let hasher = Seeded::new([3, 4]);
        let now = Instant::from_secs(1000);
        for (said, mss) in [
            (None, 536),
            (Some(100), 536),
            (Some(1219), 536),
            (Some(1220), 1220),
            (Some(1459), 1440),
            (Some(8960), 1460),
        ] {
            for shift in [None, Some(0), Some(7), Some(14)] {
                for sack in [false, true] {
                    let cookie = bake(&hasher, &key(4000), &syn(said, shift, sack), now);
                    let remembered = check(&hasher, &key(4000), 77, cookie, now);
                    assert_eq!(remembered, Some(Remembered { mss, shift, sack }));
                }
            }
        }
    }

    #[test]
    fn nobody_elses_changed_or_old_cookie_is_taken() {
        let hasher = Seeded::new([3, 4]);
        let now = Instant::from_secs(1003);
        let cookie = bake(&hasher, &key(4000), &syn(Some(1460), Some(7), true), now);
        let taken =
            |key: &FlowKey, irs, cookie, now| check(&hasher, key, irs, cookie, now).is_some();
        assert!(taken(&key(4000), 77, cookie, now));
        assert!(!taken(&key(4001), 77, cookie, now));
        assert!(!taken(&key(4000), 78, cookie, now));
        for bit in 0..32 {
            assert!(!taken(&key(4000), 77, cookie ^ 1 << bit, now), "bit {bit}");
        }
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(taken(&key(4000), 77, cookie, after(64)));
        for seconds in [128, 192, 256, 512, 1000] {
            assert!(
                !taken(&key(4000), 77, cookie, after(seconds)),
                "{seconds} s later"
            );
        }
        let other = Seeded::new([3, 5]);
        assert_eq!(check(&other, &key(4000), 77, cookie, now), None);
    }
}
