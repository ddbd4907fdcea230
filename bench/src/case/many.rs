//! Sixty-four guests on one daemon beside one of them.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use crate::Result;
use crate::client::bulk::{Moved, receive, send};
use crate::measure::{Comparison, Lab, Run, Side};
use crate::peer::smoltcp::On;
use crate::procfs;
use crate::report::Metric;
use crate::service::Service;
use crate::target::{Direct, Ours, Setup};

const MANY: u16 = 64;
/// How many times as long as others such a run takes: in less than a second a guest has but
/// a few slices of the processor, and shares are those of chance.
const LONGER: u32 = 4;

type Transfer = fn(SocketAddr, Duration) -> Result<Moved>;

pub(super) fn comparisons() -> Vec<Comparison> {
    let mut all = throughput("to guest", Service::Count, send);
    all.extend(throughput("from guest", Service::Endless, receive));
    all.push(memory());
    all
}

/// One stream per guest, all at once, beside one stream of one guest, and beside as
/// many streams of peers, which show how fair the kernel itself is to so many
/// processes.
fn throughput(direction: &str, service: Service, transfer: Transfer) -> Vec<Comparison> {
    let name = format!("{MANY} guests at once, {direction}");
    let ours = Setup::Ours(Ours {
        guests: MANY,
        ..Ours::DEFAULT
    });
    let sum = || Metric::more(format!("{name}, sum"), "Gbit/s");
    let share = || Metric::more(format!("{name}, least to most"), "ratio");
    let one = Comparison {
        peer_name: "one of them alone".to_owned(),
        ..beside(&name, ours, transfer, service, (ours, 1))
    };
    let smoltcp = Setup::Smoltcp(Direct {
        on: On::OffloadedTap,
        service,
        sockets: 2,
        buffer_bytes: 256 << 10,
        spin: false,
        processes: MANY as u8,
    });
    let with = |metrics, comparison| Comparison {
        metrics,
        ..comparison
    };
    let many = |peer| beside(&name, ours, transfer, service, (peer, usize::from(MANY)));
    let veth = Comparison {
        peer_name: format!("{MANY} streams of the kernel over veth"),
        ..many(Setup::Veth)
    };
    let smoltcp = Comparison {
        peer_name: format!("{MANY} smoltcp on offloaded TAPs"),
        ..many(smoltcp)
    };
    vec![
        with(vec![sum().goal(0.9), share().goal(0.9)], one),
        with(vec![sum(), share()], smoltcp),
        with(vec![sum(), share()], veth),
    ]
}

/// A stream to each of our guests, beside so many to the peer.
fn beside(
    name: &str,
    ours: Setup,
    transfer: Transfer,
    service: Service,
    (peer, streams): (Setup, usize),
) -> Comparison {
    let run = move |lab: &mut Lab, side: Side| {
        let time = lab.plan.time * LONGER;
        let target = lab.target(match side {
            Side::Ours => ours,
            Side::Peer => peer,
        })?;
        let mut to = target.all_v4.clone();
        if side == Side::Peer {
            to.resize(streams, target.v4);
        }
        let moved = at_once(&to, service, transfer, time)?;
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
        name: name.to_owned(),
        peer_name: String::new(),
        metrics: Vec::new(),
        run: Box::new(run),
        setups: vec![ours, peer],
        check: |_| Ok(()),
    }
}

/// What each stream moved.
fn at_once(
    to: &[IpAddr],
    service: Service,
    transfer: Transfer,
    time: Duration,
) -> Result<Vec<Moved>> {
    let moved = thread::scope(|scope| {
        let start = |address: &IpAddr| {
            let to = SocketAddr::new(*address, service.port());
            scope.spawn(move || transfer(to, time).map_err(|error| error.to_string()))
        };
        let threads: Vec<_> = to.iter().map(start).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or(Err("a client panicked".to_owned()))
        };
        threads
            .into_iter()
            .map(join)
            .collect::<std::result::Result<Vec<Moved>, String>>()
    });
    Ok(moved?)
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
