//! Runs of the simulation: many seeds, those that once showed a mistake, and some
//! twice. `SIMULATION_SEEDS=10000 cargo test --release -p simulation` runs so many.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs all seeds on all processors, and says what is wrong with them.
fn run(seeds: &[u64]) {
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // ORDERING: a counter, nothing hangs on it.
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = simulation::run(*seed, false) {
                        let replay = simulation::replay(*seed);
                        let mut wrong = wrong.lock().unwrap();
                        wrong.push(format!("seed {seed}: {error}\nreplay: {replay}"));
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
        seeds.len(),
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
    run(&(0..count()).collect::<Vec<_>>());
}

#[test]
fn seeds_that_once_showed_a_mistake_show_none() {
    let text = include_str!("../seeds.txt");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let seeds: Vec<u64> = lines
        .flat_map(str::split_whitespace)
        .map(|seed| seed.parse().unwrap())
        .collect();
    assert!(!seeds.is_empty());
    run(&seeds);
}

#[test]
fn a_seed_always_means_the_same_run() {
    let mut hashes = Vec::new();
    for seed in 0..if cfg!(debug_assertions) { 10 } else { 200 } {
        let first = simulation::run(seed, false).unwrap();
        let second = simulation::run(seed, false).unwrap();
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
