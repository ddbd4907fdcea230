//! How fast one connection is on bad links, and how long a restart of the host holds
//! it up: tables in virtual time, the same on every machine.
//!
//! `THROUGHPUT.md` keeps them; a test makes them anew and compares. What a turn costs
//! is the world's assumption, so only the cells with losses or delays say something
//! about a real network.

use std::fmt::Write as _;

use crate::clock::{MILLISECOND, Nanos, SECOND};
use crate::scenario::{Fault, Memory, Scenario};
use crate::world::World;

/// Losses of each direction, in percent.
pub const LOSSES: [u32; 6] = [0, 1, 2, 5, 10, 20];
/// One-way delays, in milliseconds.
pub const DELAYS: [u32; 4] = [0, 10, 50, 200];
/// Frames that a narrow path's queue holds.
pub const QUEUES: [u32; 4] = [10, 20, 45, 100];
/// How long a host is away, in milliseconds.
pub const AWAY: [u32; 3] = [0, 10, 200];

/// Runs that one cell is made of.
const RUNS: u64 = 16;
const BYTES: u64 = 2_000_000;

fn run(scenario: Scenario) -> Result<crate::world::Summary, String> {
    World::new(scenario, false)?.run()
}

/// Megabits per second of one connection.
///
/// # Errors
/// What is wrong with a run.
pub fn goodput(loss: u32, delay_ms: u32) -> Result<f64, String> {
    let mut parts = Vec::new();
    if loss != 0 {
        parts.push(format!("loss={loss}%"));
    }
    if delay_ms != 0 {
        parts.push(format!("delay={delay_ms}ms"));
        // More than the window holds: only `loss` loses.
        parts.push("limit=100000".to_owned());
    }
    let mut time = 0;
    for seed in 0..RUNS {
        let scenario = Scenario::bulk(seed, BYTES, &parts.join(","));
        time += run(scenario)?.time - 10 * MILLISECOND;
    }
    Ok((RUNS * BYTES * 8) as f64 / (time as f64 / SECOND as f64) / 1e6)
}

/// Megabits per second of one connection over a path of 20 Mbit/s and 20 ms there and back,
/// with a queue of so many frames before it.
///
/// # Errors
/// What is wrong with a run.
pub fn narrow(queue: u32) -> Result<f64, String> {
    let impairment = |text: String| text.parse().map_err(|error| format!("{text}: {error}"));
    let mut time = 0;
    for seed in 0..RUNS {
        let mut scenario = Scenario::bulk(seed, BYTES, "");
        scenario.guests[0].impair_to_guest = impairment("delay=20ms,limit=100000".to_owned())?;
        scenario.guests[1].impair_to_guest = impairment(format!("rate=20mbit,limit={queue}"))?;
        // Not all of them at the same moment of the path.
        scenario.connections[0].at += seed * MILLISECOND;
        time += run(scenario)?.time - (10 + seed) * MILLISECOND;
    }
    Ok((RUNS * BYTES * 8) as f64 / (time as f64 / SECOND as f64) / 1e6)
}

/// How a host went away.
#[derive(Debug, Clone, Copy)]
pub enum Away {
    /// It was told to.
    Planned,
    /// `kill -9` in the middle of a turn; the guest keeps its memory.
    Killed,
    /// The same, and the guest is given new memory at once.
    KilledNewMemory,
}

/// How long nothing arrives, in milliseconds, beyond the time that the host is away:
/// the worst of some runs, of which each goes away at another moment.
///
/// # Errors
/// What is wrong with a run.
pub fn pause(how: Away, away_ms: u32) -> Result<f64, String> {
    let down = Nanos::from(away_ms) * MILLISECOND;
    let mut worst: Nanos = 0;
    for seed in 0..8 {
        let mut scenario = Scenario::bulk(seed, 4 * BYTES, "");
        let memory = match how {
            Away::Planned | Away::Killed => Memory::Same,
            Away::KilledNewMemory => Memory::New(0),
        };
        let port = seed as usize % 2;
        let fault = match how {
            Away::Planned => Fault::DetachHost { port, down, memory },
            Away::Killed | Away::KilledNewMemory => Fault::KillHost {
                port,
                midway: true,
                down,
                memory,
            },
        };
        // Some way into the transfer.
        let at = 10 * MILLISECOND + 400_000 + seed * 37_000;
        scenario.faults.push((at, fault));
        worst = worst.max(run(scenario)?.longest_pause.saturating_sub(down));
    }
    Ok(worst as f64 / MILLISECOND as f64)
}

/// Both tables, as they stand in the repository.
///
/// # Errors
/// What is wrong with a run.
pub fn tables() -> Result<String, String> {
    let mut text = String::from(
        "# Throughput on bad links, in virtual time\n\n\
         Made by `cargo run --release -p simulation -- --throughput`; `cargo test` makes it anew\n\
         and compares (within 5 %). The same on every machine: see `src/throughput.rs`.\n\n\
         Goodput of one connection of 2 MB from guest to guest, in Mbit/s: MTU 1500, buffers of\n\
         256 KB, loss and delay in each direction (so the round trip is twice the delay, and loses\n\
         twice). Without both, offloads are on and the figure is what the model of a turn's cost\n\
         makes it. With a delay, 256 KB a round trip is the most.\n\n| loss |",
    );
    for delay in DELAYS {
        let _ = write!(text, " {delay} ms |");
    }
    text += "\n| ---: |";
    text += &" ---: |".repeat(DELAYS.len());
    for loss in LOSSES {
        let _ = write!(text, "\n| {loss} % |");
        for delay in DELAYS {
            let _ = write!(text, " {} |", figure(goodput(loss, delay)?));
        }
    }
    text += "\n\nThe same over a path of 20 Mbit/s and 20 ms there and back, which loses what its queue\n\
             does not hold.\n\n| frames in the queue |";
    for queue in QUEUES {
        let _ = write!(text, " {queue} |");
    }
    text += "\n| :--- |";
    text += &" ---: |".repeat(QUEUES.len());
    text += "\n| Mbit/s |";
    for queue in QUEUES {
        let _ = write!(text, " {} |", figure(narrow(queue)?));
    }
    text += "\n\nHow long nothing arrives when the host of one end goes away during a transfer without\n\
             losses, beyond the time that it is away, in milliseconds; the worst of 8 runs.\n\n\
             | the host is away for |";
    for away in AWAY {
        let _ = write!(text, " {away} ms |");
    }
    text += "\n| :--- |";
    text += &" ---: |".repeat(AWAY.len());
    for (name, how) in [
        ("planned, the same memory", Away::Planned),
        ("killed in a turn, the same memory", Away::Killed),
        ("killed in a turn, new memory", Away::KilledNewMemory),
    ] {
        let _ = write!(text, "\n| {name} |");
        for away in AWAY {
            let _ = write!(text, " {} |", figure(pause(how, away)?));
        }
    }
    text.push('\n');
    Ok(text)
}

/// Three digits.
fn figure(number: f64) -> String {
    match number {
        n if n < 10.0 => format!("{n:.2}"),
        n if n < 100.0 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}
