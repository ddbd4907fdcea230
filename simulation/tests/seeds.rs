//! Runs of the simulation: many seeds, those that once showed a mistake, and some
//! twice. `SIMULATION_SEEDS=10000 cargo test --release -p simulation` runs so many.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use simulation::Run;

/// Runs all seeds on all processors, and says what is wrong with them.
fn run(runs: &[Run]) {
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // ORDERING: a counter, nothing hangs on it.
                while let Some(what) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = simulation::run(*what, false) {
                        let replay = simulation::replay(*what);
                        let mut wrong = wrong.lock().unwrap();
                        wrong.push(format!("{what:?}: {error}\nreplay: {replay}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{} of {} seeds:\n{}",
        wrong.len(),
        runs.len(),
        wrong.join("\n\n")
    );
}

/// How many seeds are run: without optimisation a run takes twenty times as long.
fn count() -> u64 {
    let usual = if cfg!(debug_assertions) { 100 } else { 5000 };
    match std::env::var("SIMULATION_SEEDS") {
        Ok(count) => count.parse().expect("SIMULATION_SEEDS is a number"),
        Err(_) => usual,
    }
}

#[test]
fn in_every_run_all_bytes_arrive_and_nothing_is_left_over() {
    run(&(0..count()).map(Run::of).collect::<Vec<_>>());
}

#[test]
fn datagrams_arrive_as_they_were_sent_and_are_answered_in_the_end() {
    let with = |seed| Run {
        seed,
        datagrams: true,
        wider: false,
    };
    run(&(0..count()).map(with).collect::<Vec<_>>());
}

#[test]
fn guests_behind_byte_streams_lose_nothing_and_deleted_taps_cost_a_pause() {
    let with = |seed| Run {
        seed,
        datagrams: seed % 4 == 3,
        wider: true,
    };
    run(&(0..count()).map(with).collect::<Vec<_>>());
}

#[test]
fn seeds_that_once_showed_a_mistake_show_none() {
    let text = include_str!("../seeds.txt");
    // What stands in front of them is explained there.
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let seeds: Vec<Run> = lines
        .flat_map(str::split_whitespace)
        .map(|word| Run {
            seed: word.trim_start_matches(['d', 'w']).parse().unwrap(),
            datagrams: word.starts_with('d'),
            wider: word.contains('w'),
        })
        .collect();
    assert!(!seeds.is_empty());
    run(&seeds);
}

#[test]
fn a_seed_always_means_the_same_run() {
    let mut hashes = Vec::new();
    for seed in 0..if cfg!(debug_assertions) { 10 } else { 200 } {
        let what = Run {
            seed,
            datagrams: seed % 2 == 1,
            wider: seed % 4 > 1,
        };
        let first = simulation::run(what, false).unwrap();
        let second = simulation::run(what, false).unwrap();
        assert!(first.lines > 20, "seed {seed} does nothing");
        assert_eq!(
            (first.hash, first.lines, first.turns, first.time),
            (second.hash, second.lines, second.turns, second.time),
            "seed {seed}"
        );
        hashes.push(first.hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert!(hashes.len() > 9, "different seeds mean different runs");
}
