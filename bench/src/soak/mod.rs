//! A long run under mixed load, in which things keep happening to daemon and guests.
//!
//! `scripts/soak.sh` calls it as `bench soak`. In a network namespace of its own it
//! starts a daemon and guests, lets clients on the kernel's TCP move bytes of which
//! every one is compared, and meanwhile kills and ends the daemon, attaches and
//! detaches a guest, and changes impairment, limits, MTU and carrier, by a schedule
//! that one seed decides. It writes a line of figures every few seconds, and at the
//! end says whether all that must hold did hold.
//!
//! ```text
//!   schedule   which event comes next, from a seed
//!     │
//!   world      daemon and guests: started, killed, changed      ┐
//!   load       clients; every byte compared, errors with a cause│ one run
//!     │                                                         ┘
//!   sample     a line of figures ──► verdict, chart
//! ```

mod random;
mod schedule;
mod sample;
mod verdict;
mod chart;
mod shared;
mod client;
mod load;
mod world;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use host_bridge::namespace::enter_private_network;

use self::random::Random;
use self::sample::Sample;
use self::schedule::{Event, Schedule};
use self::shared::Shared;
use self::verdict::Verdict;
use self::world::World;
use crate::Result;
use crate::target::tools;

/// How long the load may take to end by itself when the run is over.
const WIND_DOWN: Duration = Duration::from_secs(60);
/// How far this process and its children step back behind others.
const NICE: i32 = 10;

/// A long run under mixed load with restarts and changes.
#[derive(Debug, Args)]
pub struct Options {
    /// How long it runs.
    #[arg(long, default_value_t = 60.0, value_name = "MINUTES")]
    minutes: f64,
    /// What decides the events, and the sizes of the transfers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Guests that share memory and stay for the whole run; one more is behind a byte stream.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    guests: u16,
    /// What all bulk transfers together may move, in megabits per second.
    #[arg(long, default_value_t = 150.0)]
    mbit: f64,
    /// Seconds between two lines of figures.
    #[arg(long, default_value_t = 10.0)]
    every: f64,
    /// Where to write a JSON line per sample, and the verdict as the last.
    #[arg(long, value_name = "FILE", overrides_with = "out")]
    out: Option<PathBuf>,
    /// Run nothing: judge such a file again.
    #[arg(long, value_name = "FILE", conflicts_with = "out")]
    from: Option<PathBuf>,
    /// Draw the figures into this file, an SVG.
    #[arg(long, value_name = "FILE", overrides_with = "chart")]
    chart: Option<PathBuf>,
}

impl Options {
    /// Runs it; says whether everything held.
    ///
    /// # Errors
    /// Where there was nothing to judge: no private network, no programs, no file.
    pub fn run(&self) -> Result<bool> {
        let samples = match &self.from {
            Some(file) => sample::read(file)?,
            None => self.record()?,
        };
        let verdict = Verdict::of(&samples);
        println!("{verdict}");
        if let Some(file) = &self.chart {
            chart::draw(&samples, file)?;
        }
        if let Some(file) = &self.out {
            let mut file = File::options().append(true).open(file)?;
            writeln!(file, "{}", serde_json::to_string(&verdict)?)?;
        }
        Ok(verdict.holds())
    }

    fn record(&self) -> Result<Vec<Sample>> {
        let length = Duration::try_from_secs_f64(self.minutes * 60.0)?;
        let every = Duration::try_from_secs_f64(self.every)?.max(Duration::from_secs(1));
        enter_private_network()?;
        // Whoever else uses this machine comes first.
        let _ = rustix::process::nice(NICE);
        let mut out = self.out.as_ref().map(File::create).transpose()?;
        let mut random = Random::new(self.seed);
        let shared = Arc::new(Shared::new());
        let mut world = World::start(self.guests, shared.clone())?;
        let bytes_per_second = self.mbit * 1e6 / 8.0;
        let threads = load::start(&shared, &world.places(), bytes_per_second, &mut random);
        let guests = self.guests + 1;
        let mut schedule = Schedule::new(random.fork(), guests, length);
        let mut samples = Vec::new();
        let start = Instant::now();
        let (mut next_event, mut next_sample) = (schedule.pause(), every);
        while start.elapsed() < length {
            let now = start.elapsed();
            if now >= next_event {
                let event = schedule.next(now);
                shared.note(&event);
                world.apply(event)?;
                next_event = start.elapsed() + schedule.pause();
            }
            if now >= next_sample {
                let sample = shared.sample(now, world.processes()?);
                if let Some(out) = &mut out {
                    writeln!(out, "{}", serde_json::to_string(&sample)?)?;
                }
                samples.push(sample);
                next_sample += every;
            }
            thread::sleep(Duration::from_millis(20));
        }
        // What is under way ends well: the last transfers are compared to their ends.
        for guest in 0..guests {
            world.apply(Event::Calm { guest })?;
        }
        shared.finish();
        let deadline = Instant::now() + WIND_DOWN;
        let mut late = false;
        for thread in threads {
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(20));
            }
            match thread.is_finished() {
                true => drop(thread.join().map_err(|_| shared.error("a client panicked"))),
                false => {
                    let name = thread.thread().name().unwrap_or_default();
                    shared.error(format!("the client {name} did not come to its end"));
                    late = true;
                }
            }
        }
        if late {
            // What they wait for; without that the run is judged all the same.
            let mut ss = Command::new("ss");
            ss.arg("-tino");
            let waits = tools::output(ss).unwrap_or_else(|error| error.to_string());
            eprintln!("{waits}");
        }
        let sample = shared.sample(start.elapsed(), world.processes()?);
        if let Some(out) = &mut out {
            writeln!(out, "{}", serde_json::to_string(&sample)?)?;
        }
        samples.push(sample);
        Ok(samples)
    }
}
