//! Ping-pong between the kernel and a target: lively, and with pauses in which
//! both sides fall asleep.

use std::time::Duration;

use crate::client::pingpong;
use crate::measure::Comparison;
use crate::peer::smoltcp::On;
use crate::report::Metric;
use crate::service::Service;
use crate::target::{Direct, Ours, Setup, Target, Version};

/// Long enough that nobody spins any more.
const PAUSE: Duration = Duration::from_millis(2);

const OURS: Setup = Setup::Ours(Ours::DEFAULT);

pub(super) fn comparisons() -> Vec<Comparison> {
    let mut all = Vec::new();
    for len in [1, 1024] {
        let lively = [
            (Setup::Veth, Some(1.0)),
            (direct(true), Some(1.3)),
            (direct(false), None),
            (
                Setup::Relay {
                    offloads: true,
                    spin: false,
                },
                None,
            ),
        ];
        for (peer, goal) in lively {
            all.push(against(peer, len, Duration::ZERO, goal));
        }
        let asleep = [
            (direct(false), Some(1.6)),
            (Setup::Passt(Service::Echo), Some(0.75)),
            (Setup::Veth, None),
        ];
        for (peer, goal) in asleep {
            all.push(against(peer, len, PAUSE, goal));
        }
    }
    all
}

fn direct(spin: bool) -> Setup {
    Setup::Smoltcp(Direct {
        on: On::OffloadedTap,
        service: Service::Echo,
        sockets: 4,
        buffer_bytes: 65_535,
        spin,
        processes: 1,
    })
}

fn against(peer: Setup, len: usize, pause: Duration, goal: Option<f64>) -> Comparison {
    let pauses = if pause.is_zero() { "" } else { ", asleep" };
    let name = format!("ping-pong {len} B{pauses}");
    let metrics = vec![
        Metric::less(format!("{name}, p50"), "µs").goal(goal),
        Metric::less(format!("{name}, p99"), "µs"),
    ];
    let measure = move |target: &mut Target, _, time| {
        let address = target.address(Version::V4, Service::Echo);
        let trips = pingpong::run(address, len, pause, time)?;
        Ok(vec![trips.p50_us, trips.p99_us])
    };
    Comparison::of_targets(name, OURS, peer, metrics, measure)
}
