//! Nothing happens: is anybody woken? Much happens: how often is anybody rung?

use std::thread::sleep;
use std::time::{Duration, Instant};

use host_bridge::counters::DirectionSnapshot;

use crate::Result;
use crate::client::bulk::{Moved, receive, send};
use crate::measure::{Comparison, Lab, Run, Side};
use crate::procfs;
use crate::report::Metric;
use crate::service::Service;
use crate::target::{Offloads, Ours, Setup, Target, Version};

/// Windows that are tried for one in which no frame came by: the kernel asks for
/// its neighbours now and then.
const WINDOWS: usize = 8;

pub(super) fn comparisons() -> Vec<Comparison> {
    let mut all = Vec::new();
    for guests in [1, 64] {
        let plural = if guests == 1 { "" } else { "s" };
        all.push(bounded(
            format!("idle, {guests} guest{plural}: wake-ups"),
            "1/s",
            0.0,
            Ours {
                guests,
                ..Ours::DEFAULT
            },
            wakeups,
        ));
    }
    for offloads in [Offloads::All, Offloads::None] {
        let ours = Ours {
            offloads,
            ..Ours::DEFAULT
        };
        for (direction, measure) in [
            (
                "to guest",
                to_guest as fn(&mut Target, Duration) -> Result<f64>,
            ),
            ("from guest", from_guest),
        ] {
            let name = format!("doorbells, bulk {direction}{}", offloads.words());
            all.push(bounded(name, "per frame", 0.1, ours, measure));
        }
    }
    all
}

/// Ours beside a bound.
fn bounded(
    name: String,
    unit: &'static str,
    bound: f64,
    ours: Ours,
    measure: impl Fn(&mut Target, Duration) -> Result<f64> + 'static,
) -> Comparison {
    let setup = Setup::Ours(ours);
    let run = move |lab: &mut Lab, side: Side| {
        let time = lab.plan.time;
        let value = match side {
            Side::Ours => measure(lab.target(setup)?, time)?,
            Side::Peer => bound,
        };
        Ok(Run {
            values: vec![value],
            traffic: None,
        })
    };
    Comparison {
        metrics: vec![Metric::less(&name, unit).goal(1.0)],
        name,
        peer_name: "the bound".to_owned(),
        run: Box::new(run),
        setups: vec![setup],
        check: |_| Ok(()),
    }
}

/// Wake-ups per second of the daemon and its guests, in a window without frames.
fn wakeups(target: &mut Target, time: Duration) -> Result<f64> {
    let pids = target.pids();
    let count = || {
        pids.iter()
            .map(|&pid| procfs::sleeps(pid))
            .sum::<Result<u64>>()
    };
    for _ in 0..WINDOWS {
        // Asking wakes the daemon, so it is done outside, with time to fall asleep.
        let frames = target.frames()?;
        sleep(Duration::from_millis(50));
        let (before, start) = (count()?, Instant::now());
        sleep(time.max(Duration::from_millis(500)));
        let (woken, elapsed) = (count()? - before, start.elapsed());
        if target.frames()? == frames {
            return Ok(woken as f64 / elapsed.as_secs_f64());
        }
    }
    Err("there was no quiet moment".into())
}

fn to_guest(target: &mut Target, time: Duration) -> Result<f64> {
    doorbells(target, time, Service::Count, send)
}

fn from_guest(target: &mut Target, time: Duration) -> Result<f64> {
    doorbells(target, time, Service::Endless, receive)
}

/// Times that either side was rung, per frame of either direction.
fn doorbells(
    target: &mut Target,
    time: Duration,
    service: Service,
    transfer: fn(std::net::SocketAddr, Duration) -> Result<Moved>,
) -> Result<f64> {
    let before = target.counters()?;
    transfer(target.address(Version::V4, service), time)?;
    let after = target.counters()?;
    let since = |pick: fn(&DirectionSnapshot) -> u64, from: bool| {
        let (before, after) = match from {
            true => (&before.guest_to_host, &after.guest_to_host),
            false => (&before.host_to_guest, &after.host_to_guest),
        };
        pick(after) - pick(before)
    };
    let frames = since(|one| one.frames_out, true) + since(|one| one.frames_out, false);
    // The daemon counts how often it rang, and how often it was rung awake.
    let rung = since(|one| one.doorbells, true)
        + since(|one| one.doorbells, false)
        + since(|one| one.wakeups, true);
    if frames == 0 {
        return Err("no frame was counted".into());
    }
    Ok(rung as f64 / frames as f64)
}
