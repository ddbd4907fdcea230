//! How fast one connection is on bad links, and how long a restart of the host holds
//! it up: tables in virtual time, the same on every machine.
//!
//! `THROUGHPUT.md` keeps them; a test makes them anew and compares. What a turn costs
//! is the world's assumption, so only the cells with losses or delays say something
//! about a real network.

use std::fmt::Write as _;

use host_bridge::impair::ImpairConfig;
use host_bridge::port::PortChange;

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
/// MTUs, and delays each way in milliseconds, of transfers that an outage interrupts.
pub const INTERRUPTED: [(u16, u32); 6] = [
    (1500, 0),
    (1500, 10),
    (1500, 50),
    (9000, 0),
    (9000, 10),
    (9000, 50),
];
/// The outages, and what the table calls them.
pub const OUTAGES: [(&str, Outage); 4] = [
    ("the receiver's host does nothing", Outage::Frozen),
    ("all data are lost", Outage::Lost),
    ("all answers are lost", Outage::Unanswered),
    ("nine of ten are lost both ways", Outage::Heavy),
];

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
    let mut time = 0;
    for seed in 0..RUNS {
        let mut scenario = Scenario::bulk(seed, BYTES, "");
        scenario.guests[0].impair_to_guest = impair(&delay(20))?;
        scenario.guests[1].impair_to_guest = impair(&format!("rate=20mbit,limit={queue}"))?;
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

/// What keeps frames back for a while.
#[derive(Debug, Clone, Copy)]
pub enum Outage {
    /// The receiving guest's host does nothing; what was sent waits.
    Frozen,
    /// All that is sent to the receiving guest is lost.
    Lost,
    /// All its answers are lost.
    Unanswered,
    /// Nine of ten frames are lost, in both directions.
    Heavy,
}

/// How much longer a transfer takes for an outage than that lasts, in milliseconds: the worst
/// of some runs, of which each begins at another moment. The receiver takes 64 MB at once, as
/// hosts for long paths do.
///
/// # Errors
/// What is wrong with a run.
pub fn after(how: Outage, mtu: u16, delay_ms: u32) -> Result<f64, String> {
    let lasts = SECOND + 400 * MILLISECOND;
    let time = |seed: u64, faults: &[(Nanos, Fault)]| {
        let mut scenario = Scenario::bulk(seed, 10 * BYTES, "");
        for guest in &mut scenario.guests {
            (guest.mtu, guest.buffers) = (mtu, ((64 << 20) - 1, 262_143));
            guest.impair_to_guest = impair(&delay(delay_ms))?;
        }
        let [connection] = &mut scenario.connections[..] else {
            return Err("one connection".to_owned());
        };
        connection.buffers = (262_143, 4 << 20);
        // It gathers what it sends, as is usual.
        connection.nodelay = false;
        scenario.faults = faults.to_vec();
        run(scenario).map(|summary| summary.time)
    };
    let mut worst: Nanos = 0;
    for seed in 0..4 {
        let undisturbed = time(seed, &[])?;
        // Some way into the transfer.
        let at = (undisturbed + 10 * MILLISECOND) / 2 + seed * 37_000;
        let change = |port: usize, text: String| {
            let impair_to_guest = Some(impair(&text)?);
            let change = PortChange {
                impair_to_guest,
                ..PortChange::default()
            };
            Ok::<_, String>(Fault::Change {
                port,
                change: change.into(),
            })
        };
        let (ports, loss): (&[usize], _) = match how {
            Outage::Frozen => (&[], 0),
            Outage::Lost => (&[1], 100),
            Outage::Unanswered => (&[0], 100),
            Outage::Heavy => (&[0, 1], 90),
        };
        let mut faults = Vec::new();
        if ports.is_empty() {
            faults.push((
                at,
                Fault::FreezeHost {
                    port: 1,
                    time: lasts,
                },
            ));
        }
        for port in ports {
            faults.push((at, change(*port, lossy(loss, delay_ms))?));
            faults.push((at + lasts, change(*port, delay(delay_ms))?));
        }
        let longer = time(seed, &faults)?.saturating_sub(undisturbed + lasts);
        worst = worst.max(longer);
    }
    Ok(worst as f64 / MILLISECOND as f64)
}

fn delay(ms: u32) -> String {
    match ms {
        0 => "off".to_owned(),
        ms => format!("delay={ms}ms,limit=100000"),
    }
}

fn lossy(percent: u32, ms: u32) -> String {
    let delay = if ms == 0 {
        String::new()
    } else {
        format!(",{}", delay(ms))
    };
    format!("loss={percent}%{delay}")
}

fn impair(text: &str) -> Result<ImpairConfig, String> {
    text.parse().map_err(|error| format!("{text}: {error}"))
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
    text += "\n\nHow much longer a transfer of 20 MB takes for an outage of 1.4 s in the middle of it,\n\
             beyond those, in milliseconds; the worst of 4 runs. Buffers hold 4 MB here, and 64 MB at\n\
             the receiver. What was lost waits for smoltcp's second time-out.\n\n\
             | MTU, delay each way |";
    for (mtu, delay) in INTERRUPTED {
        let _ = write!(text, " {mtu}, {delay} ms |");
    }
    text += "\n| :--- |";
    text += &" ---: |".repeat(INTERRUPTED.len());
    for (name, how) in OUTAGES {
        let _ = write!(text, "\n| {name} |");
        for (mtu, delay) in INTERRUPTED {
            let _ = write!(text, " {} |", figure(after(how, mtu, delay)?));
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
