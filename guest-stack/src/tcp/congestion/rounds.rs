//! How much comes through a path in a round trip, and whether more is sent than that.
//!
//! A policer, or a queue that holds next to nothing, takes what is too much without making
//! anything late. What tells it from an accident is that no more comes through, however much
//! is sent: BBR's model of a path, without its pace.

use smoltcp::time::{Duration, Instant};

/// Nothing is counted for less, in µs: a busy processor would be what is seen.
const SHORTEST_US: u32 = 10_000;

/// Fewer holes in a round may be an accident, be they a super-frame each: such rounds count
/// half, and only if half of all was lost.
const HOLES: u32 = 8;

/// So much evidence, of which a round with many holes is two, and a path is believed to take no
/// more than it took.
const ENOUGH: u8 = 4;

/// What came of what was sent, round trip by round trip.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rounds {
    /// When the round began.
    since: Option<Instant>,
    /// Bytes that arrived since, and bytes that were found lost, in so many holes.
    delivered: u32,
    lost: u32,
    holes: u32,
    /// Bytes that were on their way when the round began: at its end they have arrived, or are
    /// lost.
    began_with: u32,
    /// Bytes that came through in the best of the last rounds.
    most: u32,
    /// How much speaks for it that more is sent than ever comes through, since a round in which
    /// it came.
    evidence: u8,
}

impl Rounds {
    /// So many bytes arrived, and so many are still on their way. At the end of a round, if more
    /// was sent in it and in those before than ever comes through: what does.
    pub(super) fn delivered(
        &mut self,
        now: Instant,
        round_trip_us: u32,
        bytes: u32,
        on_the_way: u32,
    ) -> Option<u32> {
        self.delivered = self.delivered.saturating_add(bytes);
        let round = Duration::from_micros(round_trip_us.max(SHORTEST_US).into());
        let began = *self.since.get_or_insert_with(|| {
            self.began_with = on_the_way;
            now
        });
        if now < began + round {
            return None;
        }
        let ended = *self;
        *self = Self {
            since: Some(now),
            began_with: on_the_way,
            most: ended.most,
            evidence: ended.evidence,
            ..Self::default()
        };
        let took = now - began;
        // A pause says nothing.
        if took > round * 2 {
            return None;
        }
        let through = u64::from(ended.delivered) * round.total_micros() / took.total_micros();
        let through = u32::try_from(through).unwrap_or(u32::MAX);
        self.most = through.max(ended.most - ended.most / 16);
        let sent = ended.began_with;
        let many = ended.holes >= HOLES && ended.lost > ended.delivered / 16;
        self.evidence = match (sent / 4 * 3 > self.most, sent / 2 > self.most) {
            (true, _) if many => ended.evidence + 2,
            (_, true) => ended.evidence + u8::from(ended.lost > 0),
            _ => 0,
        };
        if self.evidence < ENOUGH {
            return None;
        }
        self.evidence = 0;
        Some(self.most)
    }

    /// So many bytes were found lost, in so many holes.
    pub(super) fn lost(&mut self, bytes: u32, holes: u32) {
        self.lost = self.lost.saturating_add(bytes);
        self.holes = self.holes.saturating_add(holes);
    }

    /// Whether more may have been sent in the last round than ever comes through, or in this
    /// one: who doubles its window each round has sent four times as much when it is over.
    pub(super) fn is_excess(&self) -> bool {
        self.evidence > 0 || self.holes >= HOLES && self.lost > self.delivered / 2
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const ROUND: Duration = Duration::from_millis(30);
    const SEGMENT: u32 = 1000;

    /// What is said at the end of each round in which so many segments are sent, of which so
    /// many come through and the others are lost in `holes`.
    fn rounds(told: &[(u32, u32, u32)]) -> (Rounds, Vec<Option<u32>>) {
        let mut rounds = Rounds::default();
        let mut now = Instant::from_secs(1);
        let first = told.first().map_or(0, |(sent, ..)| sent * SEGMENT);
        assert_eq!(rounds.delivered(now, 30_000, 0, first), None);
        let next = told.iter().skip(1).map(|(sent, ..)| sent * SEGMENT);
        let mut said = Vec::new();
        for ((sent, through, holes), next) in told.iter().zip(next.chain([0])) {
            rounds.lost((sent - through) * SEGMENT, *holes);
            let half = now + ROUND / 2;
            let early = rounds.delivered(half, 30_000, through / 2 * SEGMENT, 0);
            assert_eq!(early, None, "the round is not over");
            now += ROUND;
            let rest = through - through / 2;
            said.push(rounds.delivered(now, 30_000, rest * SEGMENT, next));
        }
        (rounds, said)
    }

    #[test]
    fn many_holes_in_two_rounds_show_what_comes_through() {
        let (_, said) = rounds(&[(50, 50, 0), (150, 100, 20), (150, 100, 20)]);
        assert_eq!(said, [None, None, Some(100 * SEGMENT)]);
    }

    #[test]
    fn a_third_lost_in_many_holes_is_excess_before_the_round_is_over() {
        let mut rounds = Rounds::default();
        let now = Instant::from_secs(1);
        assert_eq!(rounds.delivered(now, 30_000, 20 * SEGMENT, 100_000), None);
        rounds.lost(20 * SEGMENT, HOLES - 1);
        assert!(!rounds.is_excess());
        rounds.lost(SEGMENT, 1);
        assert!(rounds.is_excess());
        let _ = rounds.delivered(now + ROUND / 2, 30_000, 40 * SEGMENT, 100_000);
        assert!(!rounds.is_excess(), "a quarter");
    }

    #[test]
    fn few_holes_take_longer_and_more_must_be_lost() {
        let (_, said) = rounds(&[(300, 100, 1); 5]);
        assert_eq!(said, [None, None, None, Some(100 * SEGMENT), None]);
        let (_, said) = rounds(&[(150, 100, 1); 8]);
        assert_eq!(said, [None; 8]);
    }

    #[test]
    fn a_round_in_which_it_came_through_ends_the_suspicion() {
        let (_, said) = rounds(&[(150, 100, 20), (150, 140, 5), (200, 140, 20)]);
        assert_eq!(said, [None; 3]);
        // Sent in vain, but no longer.
        let (rounds, said) = rounds(&[(150, 100, 20), (100, 100, 0)]);
        assert_eq!(said, [None; 2]);
        assert!(!rounds.is_excess());
    }

    #[test]
    fn a_link_that_loses_a_fifth_lets_everything_through() {
        let (rounds, said) = rounds(&[(100, 80, 18), (200, 160, 36), (400, 310, 70)]);
        assert_eq!(said, [None; 3]);
        assert!(!rounds.is_excess());
    }

    #[test]
    fn what_came_through_long_ago_is_forgotten() {
        let mut told = [(150, 100, 20); 40];
        told[0] = (1000, 1000, 0);
        let (_, said) = rounds(&told);
        assert_eq!(said[..20], [None; 20]);
        assert!(said.contains(&Some(100 * SEGMENT)));
    }

    #[test]
    fn a_pause_is_no_round() {
        let mut rounds = Rounds::default();
        let mut now = Instant::from_secs(1);
        rounds.delivered(now, 30_000, 0, 150 * SEGMENT);
        for _ in 0..10 {
            now += ROUND * 3;
            rounds.lost(140 * SEGMENT, 20);
            let said = rounds.delivered(now, 30_000, 10 * SEGMENT, 150 * SEGMENT);
            assert_eq!(said, None);
        }
    }
}
