//! Runs seeds, and says which of them show a mistake.

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;

/// Guests, links, bridge and a bad network in virtual time, from one seed.
#[derive(Parser)]
struct Options {
    /// Seeds to run, the first and the one behind the last: 0..1000.
    #[arg(long, value_parser = range, default_value = "0..1000")]
    seeds: Range<u64>,
    /// One seed only.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Datagrams beside the connections.
    #[arg(long)]
    datagrams: bool,
    /// Guests behind byte streams, interfaces that are deleted, addresses by DHCP and SLAAC.
    #[arg(long)]
    wider: bool,
    /// Show what happens.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Show what the seed means, and do not run it.
    #[arg(long, requires = "seed")]
    describe: bool,
    /// Make the tables of THROUGHPUT.md.
    #[arg(long, conflicts_with_all = ["seed", "seeds"])]
    throughput: bool,
    /// Threads that run seeds.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Stop after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Go on after a mistake.
    #[arg(long)]
    keep_going: bool,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("write it as 0..1000")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(from)?..number(to)?)
}

/// Shows what the stacks log, between the lines of a trace.
struct Shown;

impl log::Log for Shown {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        println!(
            "                       {}: {}",
            record.target(),
            record.args()
        );
    }

    fn flush(&self) {}
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.throughput {
        return match simulation::throughput::tables() {
            Ok(tables) => {
                print!("{tables}");
                ExitCode::SUCCESS
            }
            Err(wrong) => {
                eprintln!("{wrong}");
                ExitCode::FAILURE
            }
        };
    }
    let what = |seed| simulation::Run {
        seed,
        datagrams: options.datagrams,
        wider: options.wider,
    };
    if let Some(seed) = options.seed {
        if options.trace {
            // Fails only where there is one already.
            let _ = log::set_logger(&Shown);
            log::set_max_level(log::LevelFilter::Trace);
        }
        if options.describe {
            println!("{}", simulation::describe(what(seed)));
            return ExitCode::SUCCESS;
        }
        return match simulation::run(what(seed), options.trace) {
            Ok(summary) => {
                println!("seed {seed}: {summary:#?}");
                ExitCode::SUCCESS
            }
            Err(wrong) => {
                eprintln!("seed {seed}: {wrong}");
                ExitCode::FAILURE
            }
        };
    }
    run_many(&options, what)
}

fn run_many(options: &Options, what: impl Fn(u64) -> simulation::Run + Sync) -> ExitCode {
    let begun = Instant::now();
    let deadline = options
        .seconds
        .map(|seconds| begun + Duration::from_secs(seconds));
    let next = AtomicU64::new(options.seeds.start);
    let failed = AtomicU64::new(0);
    let total = Mutex::new((0u64, simulation::world::Summary::default(), (0f64, 0)));
    let work = || {
        loop {
            // ORDERING: a counter and a flag, nothing else hangs on them.
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let late = deadline.is_some_and(|deadline| Instant::now() > deadline);
            let stop = failed.load(Ordering::Relaxed) > 0 && !options.keep_going;
            if seed >= options.seeds.end || late || stop {
                return;
            }
            let started = Instant::now();
            match simulation::run(what(seed), false) {
                Ok(summary) => {
                    let mut total = total.lock().expect("nobody panics with it");
                    total.0 += 1;
                    total.1.bytes += summary.bytes;
                    total.1.answers += summary.answers;
                    total.1.turns += summary.turns;
                    total.1.clean += summary.clean;
                    total.1.doomed += summary.doomed;
                    total.1.time += summary.time;
                    merge(&mut total.1.events, summary.events);
                    let took = started.elapsed().as_secs_f64();
                    if took > total.2.0 {
                        total.2 = (took, seed);
                    }
                }
                Err(wrong) => {
                    failed.fetch_add(1, Ordering::Relaxed);
                    println!(
                        "seed {seed}: {wrong}\nreplay: {}\n",
                        simulation::replay(what(seed))
                    );
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(work);
        }
    });
    let (seeds, summary, slowest) = total.into_inner().expect("nobody panics with it");
    println!(
        "{seeds} seeds passed in {:.1} s: {} connections ended well, {} were broken on purpose, \
         {:.1} MB, {} datagrams answered, {:.0} s of virtual time, {} turns; the slowest seed, {}, took {:.2} s",
        begun.elapsed().as_secs_f64(),
        summary.clean,
        summary.doomed,
        summary.bytes as f64 / 1e6,
        summary.answers,
        summary.time as f64 / 1e9,
        summary.turns,
        slowest.1,
        slowest.0,
    );
    for (name, count) in &summary.events {
        println!("  {count:>8}  {name}");
    }
    match failed.into_inner() {
        0 => ExitCode::SUCCESS,
        failed => {
            println!("{failed} seeds FAILED");
            ExitCode::FAILURE
        }
    }
}

fn merge(into: &mut BTreeMap<String, u64>, from: BTreeMap<String, u64>) {
    for (name, count) in from {
        *into.entry(name).or_default() += count;
    }
}
