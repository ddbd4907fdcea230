//! A line of figures, and what it is made of.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Result, procfs};

/// What a process holds at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    /// Its own memory and what it has touched of shared memory, in KiB.
    pub(super) kib: u64,
    /// Open descriptors.
    pub(super) fds: u64,
    /// Threads.
    pub(super) threads: u64,
}

impl Held {
    /// What these processes hold together.
    ///
    /// # Errors
    /// If one is gone.
    pub(super) fn of(pids: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            sum.kib += procfs::memory_kib(*pid)?;
            sum.fds += procfs::descriptors(*pid)?;
            sum.threads += procfs::threads(*pid)?;
        }
        Ok(sum)
    }
}

/// Round trips of the witness since the line before, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Latency {
    /// How many.
    pub(super) count: u64,
    /// Half of them took no longer.
    pub(super) p50: u64,
    /// All but a hundredth of them took no longer.
    pub(super) p99: u64,
    /// The longest: what a restart is seen as.
    pub(super) max: u64,
}

impl Latency {
    /// Of these times, in any order.
    pub(super) fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        let at = |part: usize| times.get(times.len() * part / 100).or(times.last());
        Self {
            count: times.len() as u64,
            p50: at(50).copied().unwrap_or(0),
            p99: at(99).copied().unwrap_or(0),
            max: times.last().copied().unwrap_or(0),
        }
    }
}

/// What was done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Done {
    /// Bytes to guests, compared.
    pub(super) up: u64,
    /// Bytes from guests, compared.
    pub(super) down: u64,
    /// Transfers of a known length that ended.
    pub(super) transfers: u64,
    /// Pages fetched, each on a connection of its own.
    pub(super) pages: u64,
    /// Datagrams sent, and how many came back.
    pub(super) datagrams: u64,
    pub(super) echoed: u64,
    /// Connects that failed while the daemon was away.
    pub(super) refused: u64,
    /// Restarts of the daemon, and all events.
    pub(super) restarts: u64,
    pub(super) events: u64,
    /// Whatever must not be: wrong bytes, resets, stalls.
    pub(super) errors: u64,
}

/// One line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    /// Seconds since the start.
    pub(super) t: f64,
    /// How long the daemon lives, in seconds.
    pub(super) age: f64,
    pub(super) daemon: Held,
    /// The guests that stay.
    pub(super) guests: Vec<Held>,
    pub(super) echo_us: Latency,
    /// Long-lived connections that are there, and that should be.
    pub(super) alive: u64,
    pub(super) wanted: u64,
    pub(super) done: Done,
}

/// Reads a file of such lines; the verdict at its end is left out.
///
/// # Errors
/// If it cannot be read, or holds none.
pub(super) fn read(file: &Path) -> Result<Vec<Sample>> {
    let text = std::fs::read_to_string(file)?;
    let samples: Vec<_> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    if samples.is_empty() {
        return Err(format!("{} holds no samples", file.display()).into());
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_summed_up_in_any_order() {
        let latency = Latency::of((1..=1000).rev().collect());
        assert_eq!(
            (latency.count, latency.p50, latency.p99, latency.max),
            (1000, 501, 991, 1000)
        );
        assert_eq!(Latency::of(Vec::new()), Latency::default());
        assert_eq!(Latency::of(vec![7]).p99, 7);
    }

    #[test]
    fn this_process_holds_something() {
        let held = Held::of(&[std::process::id()]).unwrap();
        assert!(held.kib > 0 && held.fds > 2 && held.threads > 1, "{held:?}");
    }
}
