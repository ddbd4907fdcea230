//! What guests lose to one that attacks, and a guest to a flood of SYNs.
//!
//! The attacker is `demo-guest`'s `hostile-guest`. At full speed it uses a processor or
//! two itself, as any busy process may; so it is compared with one that only does that.
//! With rests it costs little itself, and is compared with nobody.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use host_bridge::child::Helper;

use crate::Result;
use crate::client::bulk::{Moved, receive, send};
use crate::client::flood::SynFlood;
use crate::measure::{Comparison, Lab, Run, Side};
use crate::report::Metric;
use crate::service::Service;
use crate::target::{Ours, Setup, Target, ours};

const NEIGHBOURS: u16 = 8;
/// Rest between two bursts of 64 actions.
const REST_US: &str = "500";
/// SYNs per second: what keeps a backlog of 4,096 full many times over.
const FLOOD: u64 = 20_000;

const ATTACKS: [&str; 7] = [
    "scribble",
    "frames",
    "arp",
    "syn",
    "control",
    "wait",
    "come-and-go",
];

pub(super) fn comparisons() -> Vec<Comparison> {
    let mut all: Vec<_> = ATTACKS
        .into_iter()
        .flat_map(|attack| [neighbours(attack, true), neighbours(attack, false)])
        .collect();
    all.push(flood("to guest", Service::Count, send));
    all.push(flood("from guest", Service::Endless, receive));
    all.push(strangers());
    all
}

/// An attacker. It says how many lives it had and what it did in them.
struct Attacker(Helper);

impl Attacker {
    fn start(attack: &str, rests: bool) -> Result<Self> {
        let mut command = Command::new(ours::program("hostile-guest")?);
        command.args(["--socket", ours::SOCKET, "--attack", attack]);
        if rests {
            command.args(["--rest-us", REST_US]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        Ok(Self(Helper::spawn(command)?))
    }

    /// Ends it, if it did anything.
    fn end(mut self) -> Result<()> {
        self.0.child_mut().kill()?;
        let output = self.0.child_mut().stdout.take().ok_or("no output")?;
        let last = BufReader::new(output)
            .lines()
            .map_while(std::result::Result::ok)
            .last();
        last.map(drop)
            .ok_or_else(|| "the attacker did nothing".into())
    }
}

/// Streams to eight guests at once, beside an attacker.
fn neighbours(attack: &'static str, rests: bool) -> Comparison {
    let setup = Setup::Ours(Ours {
        guests: NEIGHBOURS,
        ..Ours::DEFAULT
    });
    let (speed, peer_name) = match rests {
        true => ("with rests", "without it"),
        false => ("at full speed", "one that only uses a processor"),
    };
    let name = format!("hostile: {NEIGHBOURS} neighbours of {attack} {speed}");
    let run = move |lab: &mut Lab, side: Side| {
        let time = lab.plan.time;
        let all = lab.target(setup)?.all_v4.clone();
        let attacker = match (side, rests) {
            (Side::Ours, _) => Some(Attacker::start(attack, rests)?),
            (Side::Peer, true) => None,
            (Side::Peer, false) => Some(Attacker::start("burn", false)?),
        };
        // It attaches, and what it does at first is not what it does on and on.
        thread::sleep(Duration::from_millis(300));
        let moved = all_at_once(&all, time)?;
        attacker.map(Attacker::end).transpose()?;
        thread::sleep(Duration::from_millis(100));
        Ok(Run {
            values: vec![moved],
            traffic: None,
        })
    };
    Comparison {
        metrics: vec![Metric::more(&name, "Gbit/s").goal(0.95)],
        name,
        peer_name: peer_name.to_owned(),
        run: Box::new(run),
        setups: vec![setup],
        check: |_| Ok(()),
    }
}

/// Half of the guests receive, half of them send; the sum in Gbit/s.
fn all_at_once(guests: &[IpAddr], time: Duration) -> Result<f64> {
    let moved = thread::scope(|scope| {
        let start = |(number, address): (usize, &IpAddr)| {
            let address = *address;
            scope.spawn(move || {
                let to = |service: Service| SocketAddr::new(address, service.port());
                let moved = match number % 2 {
                    0 => send(to(Service::Count), time),
                    _ => receive(to(Service::Endless), time),
                };
                moved.map_err(|error| error.to_string())
            })
        };
        let threads: Vec<_> = guests.iter().enumerate().map(start).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or(Err("a client panicked".to_owned()))
        };
        threads
            .into_iter()
            .map(join)
            .collect::<std::result::Result<Vec<Moved>, String>>()
    })?;
    Ok(moved.iter().map(|moved| moved.gbit()).sum())
}

fn victim(target: &Target) -> Result<SocketAddrV4> {
    match target.v4 {
        IpAddr::V4(address) => Ok(SocketAddrV4::new(address, Service::Http.port())),
        IpAddr::V6(_) => Err("the guest has no IPv4 address".into()),
    }
}

/// A stream of a guest that is flooded.
fn flood(
    direction: &str,
    service: Service,
    transfer: fn(SocketAddr, Duration) -> Result<Moved>,
) -> Comparison {
    let setup = Setup::Ours(Ours::DEFAULT);
    let name = format!("hostile: a stream {direction} in a flood of {FLOOD} SYNs per second");
    let run = move |lab: &mut Lab, side: Side| {
        let time = lab.plan.time;
        let target = lab.target(setup)?;
        let address = SocketAddr::new(target.v4, service.port());
        let flood = match side {
            Side::Ours => Some(SynFlood::start(victim(target)?, FLOOD)?),
            Side::Peer => None,
        };
        // Until its places are taken.
        thread::sleep(Duration::from_millis(300));
        let moved = transfer(address, time)?;
        if flood.is_some_and(|flood| flood.sent() == 0) {
            return Err("the kernel sent no SYN".into());
        }
        Ok(Run {
            values: vec![moved.gbit()],
            traffic: None,
        })
    };
    Comparison {
        metrics: vec![Metric::more(&name, "Gbit/s").goal(0.9)],
        name,
        peer_name: "without it".to_owned(),
        run: Box::new(run),
        setups: vec![setup],
        check: |_| Ok(()),
    }
}

/// New connections to the very port that is flooded: each must come about.
fn strangers() -> Comparison {
    const CONNECTS: usize = 50;
    let setup = Setup::Ours(Ours::DEFAULT);
    let name = "hostile: a connect in a flood of SYNs, p50";
    let run = move |lab: &mut Lab, side: Side| {
        let target = lab.target(setup)?;
        let to = victim(target)?;
        let flood = match side {
            Side::Ours => Some(SynFlood::start(to, FLOOD)?),
            Side::Peer => None,
        };
        // As long as it takes to fill the demo guest's backlog of 16,384.
        thread::sleep(Duration::from_millis(1500));
        let mut times = Vec::new();
        for _ in 0..CONNECTS {
            let start = Instant::now();
            // The kernel's second attempt would come after a second.
            let stream = std::net::TcpStream::connect_timeout(&to.into(), Duration::from_secs(3))?;
            times.push(start.elapsed());
            drop(stream);
        }
        drop(flood);
        times.sort_unstable();
        let p50 = times[times.len() / 2].as_secs_f64() * 1e6;
        Ok(Run {
            values: vec![p50],
            traffic: None,
        })
    };
    Comparison {
        metrics: vec![Metric::less(name, "µs")],
        name: name.to_owned(),
        peer_name: "without it".to_owned(),
        run: Box::new(run),
        setups: vec![setup],
        check: |_| Ok(()),
    }
}
