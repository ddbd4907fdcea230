//! How long to look for work before going to sleep.
//!
//! Waking somebody on another processor costs some 10 µs and more in a virtual
//! machine; a peer that answers within that time is better waited for awake. So
//! whoever has nothing to do looks again for a while, but only where that has
//! lately paid off: [`Spin`] learns from how long it had to wait for work, as the
//! halt polling of hypervisors does. On an idle link it costs nothing.
//!
//! It has to look longer than a round trip takes in which everybody sleeps, or it never
//! learns that looking would pay: with 50 µs a ping-pong stayed at 140 µs where
//! waking up is slow, and went at 15 with 200. But work that comes every 120 µs at its
//! own pace comes no sooner for that. So what goes into long looks is counted, and is
//! an eighth of the time at the most: a ping-pong needs them only to begin with.
//!
//! Decides only. The owner has the clock, looks, and sleeps.

use core::time::Duration;

/// Learns how long to look for work before going to sleep.
///
/// Time is what has passed since any fixed moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spin {
    /// The longest that it looks.
    limit: Duration,
    /// How long it looks now.
    window: Duration,
    /// What long looks have cost, less an eighth of the time since.
    spent: Duration,
    /// When there was something to do last.
    worked: Duration,
    /// Since when there has been nothing to do, and when that was seen last.
    idle: Option<(Duration, Duration)>,
}

/// Between two looks others are let have the processor. If they keep it longer
/// than this, it is wanted elsewhere, and looking would only cost them time.
/// One that hands a frame on and sleeps takes some 5 to 15 µs.
const CROWDED: Duration = Duration::from_micros(30);

impl Spin {
    /// Looks for `limit` at most before each sleep; [`Duration::ZERO`] never
    /// looks twice.
    pub const fn new(limit: Duration) -> Self {
        Self {
            limit,
            window: Duration::ZERO,
            spent: Duration::ZERO,
            worked: Duration::ZERO,
            idle: None,
        }
    }

    /// There was something to do. Work that came within the limit makes the next
    /// wait one of looking, for several times as long; each that came later halves the
    /// time, down to none. The limit is a quarter while long looks have cost too much.
    #[inline]
    pub fn worked(&mut self, now: Duration) {
        let Some((since, _)) = self.idle.take() else {
            return;
        };
        let waited = now.saturating_sub(since);
        let least = self.limit / 4;
        let looked = waited.min(self.window);
        let long = if looked > least {
            looked
        } else {
            Duration::ZERO
        };
        let passed = now.saturating_sub(core::mem::replace(&mut self.worked, now));
        self.spent = self.spent.saturating_sub(passed / 8) + long;
        let limit = match self.spent < self.limit * 4 {
            true => self.limit,
            false => least,
        };
        if waited <= limit {
            // Longer waits among short ones are remembered for a while.
            let remembered = self.window - self.window / 8;
            self.window = (waited * 4).max(remembered).clamp(least, limit);
        } else if self.window <= least || limit == least {
            self.window = Duration::ZERO;
        } else {
            self.window /= 2;
        }
    }

    /// There is nothing to do: whether to look again instead of sleeping.
    #[inline]
    pub fn looks_again(&mut self, now: Duration) -> bool {
        let (since, last) = self.idle.unwrap_or((now, now));
        self.idle = Some((since, now));
        if now.saturating_sub(last) > CROWDED {
            self.window = Duration::ZERO;
        }
        now.saturating_sub(since) < self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(40);

    fn at(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// Looks from `from` on until it would sleep.
    fn looks_for(spin: &mut Spin, from: u64) -> u64 {
        (from..).find(|now| !spin.looks_again(at(*now))).unwrap() - from
    }

    #[test]
    fn it_sleeps_at_once_until_work_has_come_soon() {
        let mut spin = Spin::new(LIMIT);
        assert_eq!(looks_for(&mut spin, 100), 0);
        spin.worked(at(120));
        assert_eq!(looks_for(&mut spin, 200), 40);
    }

    #[test]
    fn work_that_comes_late_ends_the_looking_within_three_times() {
        let mut spin = Spin::new(LIMIT);
        spin.looks_again(at(0));
        spin.worked(at(10));
        let mut looked = 0;
        for round in 1..10 {
            looked += looks_for(&mut spin, round * 1000);
            spin.worked(at(round * 1000 + 500));
        }
        assert_eq!(looked, 40 + 20 + 10);
    }

    /// Work comes after each of these waits; how long it would look then.
    fn after(waits: &[u64]) -> u64 {
        let mut spin = Spin::new(LIMIT);
        let mut now = 0;
        for wait in waits {
            spin.looks_again(at(now));
            now += wait;
            spin.worked(at(now));
        }
        looks_for(&mut spin, now)
    }

    #[test]
    fn work_at_a_pace_of_its_own_is_looked_for_an_eighth_of_the_time() {
        let mut spin = Spin::new(LIMIT);
        let (mut now, mut looked) = (0, 0);
        while now < 100_000 {
            let look = looks_for(&mut spin, now).min(30);
            looked += look;
            now += 30;
            spin.worked(at(now));
        }
        assert!((11_000..14_000).contains(&looked), "{looked}");
    }

    #[test]
    fn who_is_answered_soon_looks_long_whenever_it_has_to() {
        let mut spin = Spin::new(LIMIT);
        let mut now = 0;
        for round in 0..1000 {
            let wait = if round % 100 == 0 { 39 } else { 5 };
            spin.looks_again(at(now));
            now += wait;
            spin.worked(at(now));
            if wait == 39 {
                assert_eq!(looks_for(&mut spin, now), 40, "in round {round}");
                spin.worked(at(now));
            }
        }
    }

    #[test]
    fn it_looks_several_times_as_long_as_it_had_to_wait() {
        assert_eq!(after(&[5]), 20);
        assert_eq!(after(&[10]), 40);
        assert_eq!(after(&[1]), 10, "never less than a quarter of the limit");
        assert_eq!(after(&[40]), 40, "never more than the limit");
    }

    #[test]
    fn a_long_wait_is_remembered_over_some_short_ones_and_then_forgotten() {
        let mut waits = [1; 20];
        waits[0] = 30;
        assert!(after(&waits[..3]) >= 30);
        assert_eq!(after(&waits), 10);
    }

    #[test]
    fn without_a_limit_it_never_looks_twice() {
        let mut spin = Spin::new(Duration::ZERO);
        for now in [0, 0, 1, 1] {
            assert!(!spin.looks_again(at(now)));
            spin.worked(at(now));
        }
    }

    #[test]
    fn it_sleeps_at_once_where_others_want_the_processor() {
        let mut spin = Spin::new(LIMIT);
        spin.looks_again(at(0));
        spin.worked(at(10));
        assert!(spin.looks_again(at(11)));
        assert!(spin.looks_again(at(15)));
        assert!(spin.looks_again(at(40)));
        spin.worked(at(41));
        assert!(spin.looks_again(at(42)));
        assert!(!spin.looks_again(at(75)), "others had it for 33 µs");
        assert_eq!(looks_for(&mut spin, 80), 0);
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm() {
        let mut spin = Spin::new(LIMIT);
        spin.looks_again(at(1000));
        spin.worked(at(0));
        assert!(spin.looks_again(at(1000)));
        assert!(spin.looks_again(at(0)));
    }
}
