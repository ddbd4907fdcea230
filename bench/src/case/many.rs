//! Sixty-four guests on one daemon beside one of them.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use crate::Result;
use crate::client::bulk::{Moved, receive, send};
use crate::measure::{Comparison, Lab, Run, Side};
use crate::procfs;
use crate::report::Metric;
use crate::service::Service;
use crate::target::{Ours, Setup};

const MANY: u16 = 64;

type Transfer = fn(SocketAddr, Duration) -> Result<Moved>;

pub(super) fn comparisons() -> Vec<Comparison> {
    vec![
        throughput("to guest", Service::Count, send),
        throughput("from guest", Service::Endless, receive),
        memory(),
    ]
}

/// One stream per guest, all at once, beside one stream of one guest.
fn throughput(direction: &str, service: Service, transfer: Transfer) -> Comparison {
    let name = format!("{MANY} guests at once, {direction}");
    let setup = Setup::Ours(Ours {
        guests: MANY,
        ..Ours::DEFAULT
    });
    let run = move |lab: &mut Lab, side: Side| {
        let time = lab.plan.time;
        let all = lab.target(setup)?.all_v4.clone();
        let guests = match side {
            Side::Ours => &all[..],
            Side::Peer => &all[..1],
        };
        let moved = thread::scope(|scope| {
            let start = |address: &std::net::IpAddr| {
                let to = SocketAddr::new(*address, service.port());
                scope.spawn(move || transfer(to, time).map_err(|error| error.to_string()))
            };
            let threads: Vec<_> = guests.iter().map(start).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or(Err("a client panicked".to_owned()))
            };
            threads
                .into_iter()
                .map(join)
                .collect::<std::result::Result<Vec<Moved>, String>>()
        })?;
        let bytes = moved.iter().map(|moved| moved.bytes);
        let longest = moved.iter().map(|moved| moved.elapsed).max();
        let sum = Moved {
            bytes: bytes.clone().sum(),
            elapsed: longest.unwrap_or(time),
        };
        let least = bytes.clone().min().unwrap_or(0) as f64;
        let most = bytes.max().unwrap_or(1) as f64;
        Ok(Run {
            values: vec![sum.gbit(), least / most],
            traffic: None,
        })
    };
    Comparison {
        metrics: vec![
            Metric::more(format!("{name}, sum"), "Gbit/s").goal(0.9),
            Metric::more(format!("{name}, least to most"), "ratio").goal(0.9),
        ],
        name,
        peer_name: "one of them alone".to_owned(),
        run: Box::new(run),
        setups: vec![setup],
        check: |_| Ok(()),
    }
}

/// What the daemon holds for a guest that is idle, beside the shared memory that
/// the guest and it could touch at the most.
fn memory() -> Comparison {
    let name = "daemon's memory per idle guest";
    let with = |guests| {
        Setup::Ours(Ours {
            guests,
            ..Ours::DEFAULT
        })
    };
    let held = move |lab: &mut Lab, guests: u16| -> Result<u64> {
        // Afresh, so that nobody has sent anything.
        lab.end(with(guests));
        let target = lab.target(with(guests))?;
        let pid = target.pid("daemon").ok_or("no daemon")?;
        let held = procfs::memory_kib(pid);
        lab.end(with(guests));
        held
    };
    let run = move |lab: &mut Lab, side: Side| {
        let value = match side {
            Side::Ours => {
                let grown = held(lab, MANY)? as f64 - held(lab, 1)? as f64;
                grown / f64::from(MANY - 1)
            }
            // Two rings of 512 KiB.
            Side::Peer => 1024.0,
        };
        Ok(Run {
            values: vec![value],
            traffic: None,
        })
    };
    Comparison {
        name: name.to_owned(),
        peer_name: "its rings, if all touched".to_owned(),
        metrics: vec![Metric::less(name, "KiB")],
        run: Box::new(run),
        setups: Vec::new(),
        check: |_| Ok(()),
    }
}
