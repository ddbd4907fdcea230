//! How much comes through a path in a round trip, and whether more is sent than that.
//!
//! A policer, or a queue that holds next to nothing, takes what is too much without making
//! anything late. Two things tell it from accidents. Suddenly more is lost than usual: what is
//! usual is what was lost before, and what is still lost once less is sent. And no more comes
//! through, however much is sent: BBR's model of a path, without its pace. Either way the window
//! becomes what came through, for some rounds; the longer, the oftener the same was found.

use smoltcp::time::{Duration, Instant};

/// Nothing is counted for less, in µs: a busy processor would be what is seen.
const SHORTEST_US: u32 = 10_000;

/// Fewer holes may be an accident, be they a super-frame each. Rounds with fewer speak half as
/// much for it that no more comes through, and only if half of all was lost.
const HOLES: u32 = 8;

/// Bytes in which that many holes are looked for.
const SPAN: u32 = 150_000;

/// So much evidence, of which a round with many holes is two, and a path is believed to take no
/// more than it took.
const ENOUGH: u8 = 4;

/// Round trips for which a window stays what came through: once, when the same is found again,
/// and once more. Then it grows until it meets the same.
const HOLDS: [u8; 5] = [3, 8, 16, 32, 64];

/// It stays for longer than this only for few round trips.
const LONGEST: Duration = Duration::from_secs(2);
const FEW: u8 = 8;

/// Rounds after a window was made smaller that show what came of the larger one.
const SETTLING: u8 = 3;

/// Of 1024 bytes that were sent or came to nothing, so many are lost.
type Rate = u16;

/// Nobody knows a link that loses a third of everything.
const EXCESS: Rate = 341;

/// So much more than twice the usual is more than usual.
const MORE: Rate = 16;

/// A sixteenth.
const LOSSY: Rate = 64;

/// What became of what was sent for a while.
#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    /// Bytes that arrived.
    delivered: u32,
    /// Bytes that were found lost, in so many holes.
    lost: u32,
    holes: u32,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.delivered = self.delivered.saturating_add(other.delivered);
        self.lost = self.lost.saturating_add(other.lost);
        self.holes = self.holes.saturating_add(other.holes);
    }

    fn bytes(&self) -> u32 {
        self.delivered.saturating_add(self.lost)
    }

    fn rate(&self) -> Rate {
        // At most 1024.
        (u64::from(self.lost) * 1024 / u64::from(self.bytes().max(1))) as Rate
    }
}

/// Rounds for which a window is held that was found so often.
fn holds(again: u8, round: Duration) -> u8 {
    let rounds = HOLDS[usize::from(again).min(HOLDS.len() - 1)];
    let longest = LONGEST.total_micros() / round.total_micros().max(1);
    let longest = u8::try_from(longest).unwrap_or(u8::MAX);
    rounds.min(longest.max(FEW))
}

/// What came of what was sent, round trip by round trip.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rounds {
    /// When the round began, and what became of what was sent since.
    since: Option<Instant>,
    outcome: Outcome,
    /// Bytes that were on their way when the round began: at its end they have arrived, or are
    /// lost.
    began_with: u32,
    /// Bytes that came through in the best of the last rounds.
    most: u32,
    /// How much speaks for it that more is sent than ever comes through, since a round in which
    /// it came.
    evidence: u8,
    /// What became of what was sent since losses were judged.
    span: Outcome,
    /// What is lost whatever is sent, as far as is known.
    usual: Option<Rate>,
    /// What came through when a window was held last.
    held: u32,
    /// How often that was found again.
    again: u8,
    /// Rounds to come that show what was before that.
    settling: u8,
    /// What was lost when a window was held: what is lost in the next span is what is usual, and
    /// shows whether it was worth it.
    doubt: Option<Rate>,
    /// Less was lost when less was sent.
    paid: bool,
    /// Rounds to come for which the window is held.
    holding: u8,
}

impl Rounds {
    /// So many bytes arrived, and so many are still on their way. At the end of a round, if more
    /// was sent in it and in those before than comes through: what does, and is the window for a
    /// while.
    pub(super) fn delivered(
        &mut self,
        now: Instant,
        round_trip_us: u32,
        bytes: u32,
        on_the_way: u32,
    ) -> Option<u32> {
        self.outcome.delivered = self.outcome.delivered.saturating_add(bytes);
        let round = Duration::from_micros(round_trip_us.max(SHORTEST_US).into());
        let began = *self.since.get_or_insert_with(|| {
            self.began_with = on_the_way;
            now
        });
        if now < began + round {
            return None;
        }
        self.since = Some(now);
        let sent = core::mem::replace(&mut self.began_with, on_the_way);
        let outcome = core::mem::take(&mut self.outcome);
        let took = now - began;
        let rounds = took.total_micros() / round.total_micros().max(1);
        let rounds = u8::try_from(rounds).unwrap_or(u8::MAX);
        self.holding = self.holding.saturating_sub(rounds);
        // A pause says nothing.
        if took > round * 2 {
            return None;
        }
        let through = u64::from(outcome.delivered) * round.total_micros() / took.total_micros();
        let through = u32::try_from(through).unwrap_or(u32::MAX);
        self.most = through.max(self.most - self.most / 16);
        if self.settling > 0 {
            self.settling -= 1;
            return None;
        }
        let more_is_lost = self.judge(outcome, sent);
        let more_is_sent = self.is_in_vain(outcome, sent);
        if !more_is_lost && !more_is_sent {
            return None;
        }
        let found = self.held / 4 * 3..self.much_more();
        self.again = match found.contains(&self.most) {
            true => self.again.saturating_add(1),
            false => 0,
        };
        self.held = self.most;
        self.evidence = 0;
        self.settling = SETTLING;
        self.holding = holds(self.again, round);
        Some(self.held)
    }

    /// Whether more is lost than usual, in a round in which so much was sent and in those
    /// before.
    fn judge(&mut self, outcome: Outcome, sent: u32) -> bool {
        let before = self.span;
        self.span.add(outcome);
        // Who knows where it begins needs less.
        let many = match self.again {
            0 => HOLES,
            _ => HOLES / 2,
        };
        let is_much = self.span.holes >= many;
        if !is_much && self.span.bytes() < SPAN {
            return false;
        }
        let span = core::mem::take(&mut self.span);
        let rate = span.rate();
        if let Some(before) = self.doubt.take() {
            self.usual = Some(rate);
            self.paid = rate <= before / 2;
            if !self.paid {
                self.holding = 0;
            }
            return false;
        }
        // At the beginning nobody knows what is usual, but for what was lost by now.
        let usual = *self.usual.get_or_insert_with(|| before.rate());
        let more = (usual * 2 + MORE).min(EXCESS);
        if is_much && span.lost > span.delivered / 32 && rate > more {
            self.doubt = Some(rate);
            return true;
        }
        if self.again == 0 || sent <= self.held {
            self.usual = Some((usual * 3 + rate) / 4);
        }
        false
    }

    /// Whether more was sent in this round and in those before than ever came through.
    fn is_in_vain(&mut self, outcome: Outcome, sent: u32) -> bool {
        let many = outcome.holes >= HOLES && outcome.lost > outcome.delivered / 16;
        self.evidence = match (sent / 4 * 3 > self.most, sent / 2 > self.most) {
            (true, _) if many => self.evidence + 2,
            (_, true) => self.evidence + u8::from(outcome.lost > 0),
            _ => 0,
        };
        self.evidence >= ENOUGH
    }

    /// So many bytes were found lost, in so many holes.
    pub(super) fn lost(&mut self, bytes: u32, holes: u32) {
        self.outcome.lost = self.outcome.lost.saturating_add(bytes);
        self.outcome.holes = self.outcome.holes.saturating_add(holes);
    }

    /// Whether more may have been sent in the last round than ever comes through, or in this
    /// one: who doubles its window each round has sent four times as much when it is over.
    pub(super) fn is_excess(&self) -> bool {
        let Outcome {
            delivered,
            lost,
            holes,
        } = self.outcome;
        self.evidence > 0 || holes >= HOLES && lost > delivered / 2
    }

    /// A window in which more than what was found last comes through.
    fn much_more(&self) -> u32 {
        self.held.saturating_add(self.held / 4)
    }

    /// Whether less was lost, when it was looked at last, because less was sent.
    pub(super) fn has_paid(&self) -> bool {
        self.paid
    }

    /// Whether the window is to stay.
    pub(super) fn holds(&self) -> bool {
        self.holding > 0
    }

    /// Whether a window is to grow slowly: the path may take no more of it. `queues`: there may
    /// be a queue.
    pub(super) fn is_near(&self, window: u32, queues: bool) -> bool {
        let found = self.again > 0 && window < self.much_more();
        found || queues && self.usual.is_some_and(|usual| usual > LOSSY)
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
    fn many_holes_where_none_were_show_what_comes_through() {
        let (_, said) = rounds(&[(50, 50, 0), (100, 100, 0), (150, 100, HOLES - 1)]);
        assert_eq!(said, [None; 3], "one more, and it is no accident");
        let (_, said) = rounds(&[(50, 50, 0), (100, 100, 0), (110, 100, HOLES)]);
        assert_eq!(said, [None, None, Some(100 * SEGMENT)]);
        let (_, said) = rounds(&[(50, 50, 0), (300, 297, HOLES)]);
        assert_eq!(said, [None; 2], "a hundredth");
    }

    #[test]
    fn losses_of_short_rounds_are_added_up() {
        let mut told = Vec::from([(50, 50, 0); 3]);
        told.extend([(10, 8, 2); 4]);
        let (_, said) = rounds(&told);
        assert_eq!(said[..6], [None; 6]);
        assert!(said[6].is_some());
        // That may be usual.
        let (_, said) = rounds(&told[3..]);
        assert_eq!(said, [None; 4]);
    }

    /// A path that carries a hundred segments, where more is sent so often.
    fn found(times: usize) -> Vec<(u32, u32, u32)> {
        let once = [(100, 100, 0); 6].into_iter().chain([(112, 100, 12)]);
        (0..times).flat_map(|_| once.clone()).collect()
    }

    #[test]
    fn what_is_found_again_is_kept_to_for_longer() {
        for (times, held) in [(1, 3), (2, 8), (3, 16), (4, 32), (5, 64), (9, 64)] {
            let (rounds, said) = rounds(&found(times));
            assert_eq!(said.last(), Some(&Some(100 * SEGMENT)));
            assert_eq!(said.iter().flatten().count(), times);
            assert_eq!(rounds.holding, held, "{times}");
        }
        let long = [50, 100, 200, 500].map(|ms| holds(9, Duration::from_millis(ms)));
        assert_eq!(long, [40, 20, 10, 8]);
        assert_eq!(holds(0, Duration::from_secs(1)), 3);
    }

    #[test]
    fn a_window_that_is_held_is_let_go_after_these_rounds() {
        let mut told = found(1);
        told.extend([(100, 100, 0); 2]);
        assert!(rounds(&told).0.holds());
        told.push((100, 100, 0));
        assert!(!rounds(&told).0.holds());
        // Nothing was lost any more.
        told.extend([(100, 100, 0); 2]);
        assert!(rounds(&told).0.has_paid());
    }

    #[test]
    fn who_knows_where_it_begins_needs_less_and_goes_slowly() {
        let mut told = found(2);
        told.extend([(100, 100, 0); 7]);
        told.push((104, 100, 4));
        let (rounds, said) = rounds(&told);
        assert_eq!(said.last(), Some(&Some(100 * SEGMENT)));
        assert!(rounds.is_near(120 * SEGMENT, false));
        assert!(!rounds.is_near(130 * SEGMENT, false), "there is more now");
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
        // Sent in vain, but no longer.
        let (before, _) = rounds(&[(300, 100, 1), (300, 100, 1)]);
        assert!(before.is_excess());
        let (after, said) = rounds(&[(300, 100, 1), (300, 100, 1), (100, 100, 0)]);
        assert_eq!(said, [None; 3]);
        assert!(!after.is_excess());
    }

    #[test]
    fn a_link_that_loses_a_fifth_is_known_to_after_one_attempt_and_lets_everything_through() {
        let mut told = Vec::from([(100, 80, 18); 6]);
        told.extend([(200, 160, 36), (400, 310, 70), (800, 600, 150)]);
        let (rounds, said) = rounds(&told);
        assert_eq!(said[0], Some(80 * SEGMENT));
        assert_eq!(said[1..], [None; 8]);
        assert!(!rounds.holds());
        assert!(!rounds.is_excess());
        assert!(!rounds.is_near(600 * SEGMENT, false));
        assert!(rounds.is_near(600 * SEGMENT, true), "if it is no queue");
    }

    #[test]
    fn a_third_is_too_much_whatever_is_usual() {
        let mut told = Vec::from([(100, 75, 20); 6]);
        told.extend([(100, 64, 30)]);
        let (_, said) = rounds(&told);
        assert!(said[6].is_some());
        assert_eq!(said.iter().flatten().count(), 2);
    }

    #[test]
    fn what_came_through_long_ago_is_forgotten() {
        let mut told = [(150, 100, 20); 60];
        told[0] = (1000, 1000, 0);
        let (_, said) = rounds(&told);
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
