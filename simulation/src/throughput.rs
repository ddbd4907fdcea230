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
/// Paths that lose what is too much with next to no queue, and as a link loses by itself.
pub const SHALLOW: [Narrow; 8] = [
    shallow(50, 30, 20, 0, 1, 20),
    shallow(50, 30, 20, 0, 4, 5),
    shallow(50, 30, 20, 0, 16, 2),
    shallow(50, 30, 20, 5, 1, 10),
    shallow(100, 50, 20, 0, 1, 20),
    shallow(10, 100, 10, 0, 1, 5),
    shallow(10, 100, 10, 0, 4, 2),
    shallow(1000, 20, 100_000, 10, 1, 10),
];
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
/// The same of those that take long.
const SHALLOW_RUNS: u64 = 4;
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

/// A path that is narrower than what its ends may send, and loses what its queue does not hold.
#[derive(Debug, Clone, Copy)]
pub struct Narrow {
    /// Megabits per second that pass.
    pub mbit: u32,
    /// Milliseconds there and back.
    pub round_trip_ms: u32,
    /// Frames that the queue holds.
    pub queue: u32,
    /// Frames in a hundred that are lost anyway.
    pub loss: u32,
    /// How many transfer at once.
    pub connections: u64,
    /// Bytes that each transfers.
    pub bytes: u64,
    /// Runs that its figures are made of.
    runs: u64,
}

const fn shallow(
    mbit: u32,
    round_trip_ms: u32,
    queue: u32,
    loss: u32,
    connections: u64,
    megabytes: u64,
) -> Narrow {
    Narrow {
        mbit,
        round_trip_ms,
        queue,
        loss,
        connections,
        bytes: megabytes * 1_000_000,
        runs: SHALLOW_RUNS,
    }
}

impl Narrow {
    /// 20 Mbit/s and 20 ms there and back, with a queue of so many frames, and one connection
    /// of 2 MB.
    pub fn with_queue(queue: u32) -> Self {
        Self {
            bytes: BYTES,
            runs: RUNS,
            ..shallow(20, 20, queue, 0, 1, 0)
        }
    }

    /// Frames of 1448 bytes that it takes at the least.
    fn frames(&self) -> f64 {
        (self.connections * self.bytes) as f64 / 1448.0
    }
}

/// What a table calls it.
impl std::fmt::Display for Narrow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            mbit,
            round_trip_ms,
            queue,
            loss,
            connections,
            ..
        } = self;
        write!(f, "{mbit} Mbit/s, {round_trip_ms} ms, ")?;
        match (loss, queue) {
            (0, queue) => write!(f, "{queue} frames, {connections}"),
            (loss, 100_000..) => write!(f, "{loss} % lost, {connections}"),
            (loss, queue) => write!(f, "{queue} frames, {loss} % lost, {connections}"),
        }
    }
}

/// What comes through such a path.
#[derive(Debug, Clone, Copy)]
pub struct Through {
    /// Megabits per second of all connections.
    pub mbit: f64,
    /// Frames that it lost, of a hundred that had to be sent once.
    pub lost: f64,
}

/// Runs all connections over such a path.
///
/// # Errors
/// What is wrong with a run.
pub fn narrow(path: &Narrow) -> Result<Through, String> {
    let runs = path.runs;
    let (mut time, mut lost) = (0, 0);
    for seed in 0..runs {
        let summary = run(path.scenario(seed)?)?;
        time += summary.time - (10 + seed) * MILLISECOND;
        lost += summary.lost_to_guests;
    }
    let bits = runs * path.connections * path.bytes * 8;
    Ok(Through {
        mbit: bits as f64 / (time as f64 / SECOND as f64) / 1e6,
        lost: lost as f64 * 100.0 / (runs as f64 * path.frames()),
    })
}

impl Narrow {
    fn scenario(&self, seed: u64) -> Result<Scenario, String> {
        let mut scenario = Scenario::bulk(seed, self.bytes, "");
        for guest in &mut scenario.guests {
            guest.buffers = ((64 << 20) - 1, 262_143);
        }
        scenario.guests[0].impair_to_guest = impair(&delay(self.round_trip_ms))?;
        let loss = match self.loss {
            0 => String::new(),
            loss => format!(",loss={loss}%,seed={seed}"),
        };
        let text = format!("rate={}mbit,limit={}{loss}", self.mbit, self.queue);
        scenario.guests[1].impair_to_guest = impair(&text)?;
        let [connection] = &mut scenario.connections[..] else {
            return Err("one connection".to_owned());
        };
        connection.buffers = (262_143, 4 << 20);
        // Not all of them at the same moment of the path.
        connection.at += seed * MILLISECOND;
        let first = connection.clone();
        scenario.connections = (0..self.connections)
            .map(|nth| {
                let mut plan = first.clone();
                plan.at += nth * 7 * MILLISECOND;
                plan
            })
            .collect();
        Ok(scenario)
    }
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
    let queues = QUEUES.map(|queue| narrow(&Narrow::with_queue(queue)));
    text += "\n| Mbit/s |";
    for through in &queues {
        let _ = write!(text, " {} |", figure(through.clone()?.mbit));
    }
    text += "\n| frames lost of 100 |";
    for through in &queues {
        let _ = write!(text, " {} |", figure(through.clone()?.lost));
    }
    text += "\n\nThe same over other paths: what passes, there and back, what its queue holds, what is\n\
             lost besides, and connections at once. Frames that are sent again can be lost again.\n\n\
             | path | Mbit/s | frames lost of 100 |\n| :--- | ---: | ---: |";
    for path in SHALLOW {
        let Through { mbit, lost } = narrow(&path)?;
        let _ = write!(text, "\n| {path} | {} | {} |", figure(mbit), figure(lost));
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
