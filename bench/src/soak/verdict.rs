//! Whether a run was good: a pure function of its lines.

use std::fmt;

use serde::Serialize;

use super::sample::{Held, Sample};

/// Fewer lines than this show no trend.
const ENOUGH: usize = 16;
/// Seconds after the start of a run, or of a daemon's life, in which memory and descriptors
/// become what they will be.
const WARM_UP: f64 = 60.0;
/// What memory may grow by from the third quarter to the last: buffers that were not
/// needed at once before.
const GROWTH_PART: f64 = 0.10;
const GROWTH_KIB: f64 = 1024.0;
/// What the number of descriptors may grow by: somebody who is just coming.
const GROWTH_FDS: u64 = 4;
/// By how much the last quarter's round trips may be worse than the first's: others use
/// this machine as well.
const SLOWER: f64 = 3.0;
const SLOWER_US: f64 = 1000.0;

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Verdict {
    /// What did not hold; empty if all did.
    failures: Vec<String>,
    /// What was measured, in words.
    facts: Vec<String>,
}

impl Verdict {
    /// Judges these lines.
    pub(super) fn of(samples: &[Sample]) -> Self {
        let mut verdict = Self {
            failures: Vec::new(),
            facts: Vec::new(),
        };
        let Some(last) = samples.last() else {
            verdict.failures.push("there are no samples".to_owned());
            return verdict;
        };
        verdict.work(last);
        verdict.guests(samples);
        verdict.daemon(samples);
        verdict.latency(samples);
        verdict
    }

    /// Whether all held.
    pub(super) fn holds(&self) -> bool {
        self.failures.is_empty()
    }

    fn check(&mut self, holds: bool, what: impl Into<String>) {
        if !holds {
            self.failures.push(what.into());
        }
    }

    fn work(&mut self, last: &Sample) {
        let done = &last.done;
        self.check(done.errors == 0, format!("{} errors", done.errors));
        self.check(
            last.alive == last.wanted,
            format!(
                "{} of {} long-lived connections were left",
                last.alive, last.wanted
            ),
        );
        let idle = [
            done.up,
            done.down,
            done.transfers,
            done.pages,
            done.echoed,
            last.wanted,
        ];
        self.check(
            !idle.contains(&0),
            format!("not everything was done: {done:?}"),
        );
        self.facts.push(format!(
            "{:.0} s, {} events, {} of them restarts of the daemon",
            last.t, done.events, done.restarts
        ));
        self.facts.push(format!(
            "{} bytes to guests and {} from guests compared in {} transfers, {} pages, {} of {} datagrams echoed, {} connects failed while there was no daemon, {} connections open from the first minute to the last",
            done.up, done.down, done.transfers, done.pages, done.echoed, done.datagrams, done.refused, last.alive
        ));
    }

    fn guests(&mut self, samples: &[Sample]) {
        let count = samples
            .iter()
            .map(|sample| sample.guests.len())
            .min()
            .unwrap_or(0);
        let warm = samples.iter().filter(|sample| sample.t >= WARM_UP);
        for guest in 0..count {
            let held: Vec<Held> = warm.clone().map(|sample| sample.guests[guest]).collect();
            self.trend(&format!("guest {guest}"), second_half(&held));
        }
    }

    /// The longest time without a restart.
    fn daemon(&mut self, samples: &[Sample]) {
        let same_life = |a: &Sample, b: &Sample| b.age > a.age;
        let lives = samples.chunk_by(same_life);
        let Some(life) = lives.max_by_key(|life| life.len()) else {
            return;
        };
        let warm = life.iter().filter(|sample| sample.age >= WARM_UP);
        let held: Vec<Held> = warm.map(|sample| sample.daemon).collect();
        self.trend("the daemon, in its longest life", &held);
    }

    /// Compares the first half of these with the second.
    fn trend(&mut self, who: &str, held: &[Held]) {
        if held.len() < ENOUGH / 2 {
            return;
        }
        let (before, after) = held.split_at(held.len() / 2);
        let kib = |held: &[Held]| mean(held.iter().map(|held| held.kib as f64));
        let fds = |held: &[Held]| held.iter().map(|held| held.fds).max().unwrap_or(0);
        let threads = |held: &[Held]| held.iter().map(|held| held.threads).max().unwrap_or(0);
        self.facts.push(format!(
            "{who}: {:.0} KiB, then {:.0} KiB; at most {}, then {} descriptors; {}, then {} threads",
            kib(before), kib(after), fds(before), fds(after), threads(before), threads(after)
        ));
        self.check(
            kib(after) <= kib(before) * (1.0 + GROWTH_PART) + GROWTH_KIB,
            format!(
                "{who}: memory grew from {:.0} to {:.0} KiB",
                kib(before),
                kib(after)
            ),
        );
        self.check(
            fds(after) <= fds(before) + GROWTH_FDS && threads(after) <= threads(before) + 1,
            format!(
                "{who}: descriptors or threads became more: {} and {}",
                fds(after),
                threads(after)
            ),
        );
    }

    fn latency(&mut self, samples: &[Sample]) {
        let all: Vec<_> = samples
            .iter()
            .map(|sample| sample.echo_us)
            .filter(|echo| echo.count > 0)
            .collect();
        if all.len() < ENOUGH {
            return;
        }
        let quarter = all.len() / 4;
        let middle = |part: &[super::sample::Latency]| {
            let mut all: Vec<_> = part.iter().map(|echo| echo.p50).collect();
            all.sort_unstable();
            all[all.len() / 2] as f64
        };
        let (first, last) = (middle(&all[..quarter]), middle(&all[all.len() - quarter..]));
        let longest = all.iter().map(|echo| echo.max).max().unwrap_or(0);
        self.facts.push(format!(
            "the witness's round trips: {first:.0} µs in the first quarter, {last:.0} µs in the last; the longest of all took {:.2} s",
            longest as f64 / 1e6
        ));
        self.check(
            last <= first * SLOWER + SLOWER_US,
            format!("round trips became slower: {first:.0} µs, then {last:.0} µs"),
        );
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fact in &self.facts {
            writeln!(f, "      {fact}")?;
        }
        for failure in &self.failures {
            writeln!(f, "FAIL  {failure}")?;
        }
        match self.holds() {
            true => f.write_str("soak: everything held"),
            false => write!(f, "soak: {} things did not hold", self.failures.len()),
        }
    }
}

fn second_half<T>(all: &[T]) -> &[T] {
    &all[all.len() / 2..]
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Done, Latency};
    use super::*;

    /// A run of an hour without a flaw.
    fn good() -> Vec<Sample> {
        let sample = |number: u64| {
            let held = Held {
                kib: 9000 + number % 7,
                fds: 12,
                threads: 1,
            };
            Sample {
                t: number as f64 * 10.0,
                // A new life every ten minutes.
                age: (number % 60) as f64 * 10.0,
                daemon: Held { threads: 4, ..held },
                guests: vec![held; 3],
                echo_us: Latency {
                    count: 100,
                    p50: 90 + number % 5,
                    p99: 300,
                    max: 900_000,
                },
                alive: 120,
                wanted: 120,
                done: Done {
                    up: number << 20,
                    down: number << 20,
                    transfers: number,
                    pages: number,
                    datagrams: number + 1,
                    echoed: number,
                    ..Done::default()
                },
            }
        };
        (1..=360).map(sample).collect()
    }

    fn failures(harm: impl Fn(usize, &mut Sample)) -> String {
        let mut samples = good();
        for (number, sample) in samples.iter_mut().enumerate() {
            harm(number, sample);
        }
        Verdict::of(&samples).failures.join("; ")
    }

    #[test]
    fn a_run_without_a_flaw_is_good() {
        assert_eq!(failures(|_, _| {}), "");
    }

    #[test]
    fn each_flaw_is_named() {
        for (harm, words) in [
            (
                (|_, s| s.done.errors = 1) as fn(usize, &mut Sample),
                "1 errors",
            ),
            (|_, s| s.alive = 119, "119 of 120"),
            (|_, s| s.done.pages = 0, "not everything was done"),
            (
                |n, s| s.guests[1].kib += n as u64 * 40,
                "guest 1: memory grew",
            ),
            (
                |n, s| s.guests[2].fds += n as u64 / 10,
                "guest 2: descriptors",
            ),
            (
                |_, s| s.daemon.kib += s.age as u64 * 20,
                "the daemon, in its longest life: memory grew",
            ),
            (
                |_, s| s.daemon.threads += s.age as u64 / 100,
                "the daemon, in its longest life: descriptors or threads",
            ),
            (|n, s| s.echo_us.p50 += n as u64 * 10, "slower"),
        ] {
            let found = failures(harm);
            assert!(found.contains(words), "{words}: {found:?}");
        }
        assert!(!Verdict::of(&[]).holds());
    }

    #[test]
    fn half_a_minute_shows_no_growth() {
        let mut samples = good();
        samples.truncate(16);
        for (number, sample) in samples.iter_mut().enumerate() {
            (sample.t, sample.age) = (number as f64 * 2.0, number as f64 * 2.0);
            sample.daemon.kib += number as u64 * 1000;
            sample.guests[0].fds += number as u64;
        }
        assert!(Verdict::of(&samples).holds());
    }

    #[test]
    fn growth_in_the_first_half_is_warming_up() {
        assert_eq!(
            failures(|n, s| s.guests[0].kib -= 4000 - n.min(170) as u64 * 23),
            ""
        );
    }
}
