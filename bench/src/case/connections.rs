//! Connections that come, ask once and go; and ten thousand that come at once.

use crate::client::{burst, http};
use crate::measure::Comparison;
use crate::peer::smoltcp::On;
use crate::report::Metric;
use crate::service::Service;
use crate::target::{Direct, Ours, Setup, Target, Version};

/// Connects of a burst.
const BURST: usize = 10_000;

pub(super) fn comparisons() -> Vec<Comparison> {
    let direct = Setup::Smoltcp(Direct {
        on: On::OffloadedTap,
        service: Service::Http,
        sockets: 128,
        buffer_bytes: 4096,
        spin: false,
        processes: 1,
    });
    vec![
        rate(Setup::Veth, Some(1.0)),
        rate(direct, Some(0.7)),
        connects(),
    ]
}

fn rate(peer: Setup, goal: Option<f64>) -> Comparison {
    let name = "HTTP, a connection per request";
    let metrics = vec![Metric::more(name, "conn/s").goal(goal)];
    let measure = |target: &mut Target, _, time| {
        let address = target.address(Version::V4, Service::Http);
        Ok(vec![http::wrk(address, time)?])
    };
    Comparison::of_targets(name, Setup::Ours(Ours::DEFAULT), peer, metrics, measure)
}

fn connects() -> Comparison {
    let name = format!("{BURST} connects at once");
    let metrics = vec![
        Metric::less(format!("{name}, p99"), "ms"),
        Metric::less(format!("{name}, failed"), "connects").goal(1.0),
    ];
    let measure = |target: &mut Target, _, _| {
        let burst = burst::run(target.address(Version::V4, Service::Http), BURST)?;
        Ok(vec![burst.p99_ms, burst.failed as f64])
    };
    Comparison::of_targets(
        name,
        Setup::Ours(Ours::DEFAULT),
        Setup::Veth,
        metrics,
        measure,
    )
}
