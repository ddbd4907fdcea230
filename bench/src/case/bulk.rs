//! Bulk TCP between the kernel and a target.

use std::time::Duration;

use crate::Result;
use crate::client::bulk::{receive, send, send_as_told, several};
use crate::client::inside::{self, Does};
use crate::measure::{Comparison, Side};
use crate::peer::smoltcp::On;
use crate::report::{Metric, Path};
use crate::service::Service;
use crate::target::{Direct, Offloads, Ours, Setup, Target, Version};

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToGuest,
    FromGuest,
}

use Direction::{FromGuest, ToGuest};
use Version::{V4, V6};

const OURS: Ours = Ours::DEFAULT;

/// Buffers of smoltcp's sockets: of 256 KB, 1 MB and 4 MB the larger two were a
/// tenth faster from the guest, and none was faster to it.
const DIRECT_BUFFER: usize = 1 << 20;

pub(super) fn comparisons() -> Vec<Comparison> {
    let mut all = Vec::new();
    for version in [V4, V6] {
        for direction in [ToGuest, FromGuest] {
            all.push(against(OURS, version, direction, Some(0.8), |service| {
                direct(On::OffloadedTap, service)
            }));
        }
    }
    for version in [V4, V6] {
        for direction in [ToGuest, FromGuest] {
            all.push(against(OURS, version, direction, Some(4.0), |service| {
                direct(On::PlainTap, service)
            }));
        }
    }
    for offloads in [Offloads::NotGuest, Offloads::None] {
        let plain = Ours { offloads, ..OURS };
        for direction in [ToGuest, FromGuest] {
            all.push(against(plain, V4, direction, Some(0.8), |service| {
                direct(On::PlainTap, service)
            }));
        }
    }
    let large = Ours {
        mtu: 65_520,
        ..OURS
    };
    for direction in [ToGuest, FromGuest] {
        all.push(against(OURS, V4, direction, Some(2.0), Setup::Passt));
        for ours in [OURS, large] {
            let mtu = ours.mtu;
            for peer in [Setup::Pasta { mtu }, Setup::Slirp { mtu }] {
                all.push(against(ours, V4, direction, Some(1.0), |_| peer));
            }
        }
        all.push(eight_beside_one(direction));
    }
    for direction in [ToGuest, FromGuest] {
        all.push(against(OURS, V4, direction, None, |_| Setup::Veth));
        all.push(against(OURS, V4, direction, None, |_| Setup::Relay {
            offloads: true,
            spin: false,
        }));
    }
    all.push(guest_to_guest());
    for link in ["loss=1%,delay=10ms", "loss=5%,delay=10ms"] {
        all.push(bad_link(link));
    }
    all
}

/// Our guest sends over a bad link, and the kernel sends to it over the same, by what
/// the machine has been told: Linux's default takes each loss for congestion.
fn bad_link(how: &'static str) -> Comparison {
    let name = format!("bulk v4 from guest, {how}");
    let metric = Metric::more(&name, "Mbit/s");
    let measure = |target: &mut Target, side: Side, time| {
        // Slow start takes ten round trips of 20 ms.
        let time = time * 4;
        let moved = match side {
            Side::Ours => receive(target.address(V4, Service::Endless), time),
            Side::Peer => send_as_told(target.address(V4, Service::Count), time),
        };
        Ok(vec![moved?.gbit() * 1000.0])
    };
    let setup = Setup::Ours(Ours {
        impaired: Some(how),
        ..OURS
    });
    Comparison {
        peer_name: "the kernel, to the guest".to_owned(),
        ..Comparison::of_targets(name, setup, setup, vec![metric], measure)
    }
}

/// Two guests on one Linux bridge, beside two namespaces on one.
fn guest_to_guest() -> Comparison {
    let name = "bulk v4 guest to guest";
    let measure = |target: &mut Target, _: Side, time| Ok(vec![target.second_sends(time)?.gbit()]);
    let metrics = vec![Metric::more(name, "Gbit/s")];
    Comparison::of_targets(
        name,
        Setup::OursBridged,
        Setup::VethBridged,
        metrics,
        measure,
    )
}

fn direct(on: On, service: Service) -> Setup {
    Setup::Smoltcp(Direct {
        on,
        service,
        sockets: 16,
        buffer_bytes: DIRECT_BUFFER,
        spin: false,
        processes: 1,
    })
}

/// Eight streams to our guest at once, beside one.
fn eight_beside_one(direction: Direction) -> Comparison {
    let name = name(OURS, V4, direction, 8);
    let metric = Metric::more(&name, "Gbit/s").goal(1.0);
    let measure = move |target: &mut Target, side: Side, time| {
        let streams = if side == Side::Ours { 8 } else { 1 };
        throughput(target, V4, direction, streams, time)
    };
    let setup = Setup::Ours(OURS);
    Comparison {
        peer_name: "ours, one stream".to_owned(),
        ..Comparison::of_targets(name, setup, setup, vec![metric], measure)
    }
}

/// Ours beside a peer that offers the service.
fn against(
    ours: Ours,
    version: Version,
    direction: Direction,
    goal: Option<f64>,
    peer: impl Fn(Service) -> Setup,
) -> Comparison {
    let service = match direction {
        ToGuest => Service::Count,
        FromGuest => Service::Endless,
    };
    let name = name(ours, version, direction, 1);
    let metric = Metric::more(&name, "Gbit/s").goal(goal);
    let measure = move |target: &mut Target, side: Side, time| {
        let gbit = throughput(target, version, direction, 1, time)?;
        if side == Side::Ours && ours.offloads == Offloads::NotGuest {
            no_super_frames_for_guest(target)?;
        }
        Ok(gbit)
    };
    let comparison = Comparison::of_targets(
        name,
        Setup::Ours(ours),
        peer(service),
        vec![metric],
        measure,
    );
    match ours.offloads {
        Offloads::None => comparison.checked(no_super_frames),
        Offloads::All | Offloads::NotGuest => comparison,
    }
}

fn name(ours: Ours, version: Version, direction: Direction, streams: usize) -> String {
    let version = match version {
        V4 => "v4",
        V6 => "v6",
    };
    let direction = match direction {
        ToGuest => "to guest",
        FromGuest => "from guest",
    };
    let mut name = format!("bulk {version} {direction}");
    if streams != 1 {
        name += &format!(", {streams} streams");
    }
    if ours.mtu != 1500 {
        name += &format!(", MTU {}", ours.mtu);
    }
    name + ours.offloads.words()
}

fn throughput(
    target: &mut Target,
    version: Version,
    direction: Direction,
    streams: usize,
    time: Duration,
) -> Result<Vec<f64>> {
    if let Some(pid) = target.client_in {
        // The guest is the client, so what goes to the guest it receives.
        let (does, service) = match direction {
            ToGuest => (Does::Receive, Service::Endless),
            FromGuest => (Does::Send, Service::Count),
        };
        let host = target.address(version, service);
        return Ok(vec![inside::bulk(pid, does, host, streams, time)?.gbit()]);
    }
    let moved = match direction {
        ToGuest => several(streams, time, target.address(version, Service::Count), send),
        FromGuest => several(
            streams,
            time,
            target.address(version, Service::Endless),
            receive,
        ),
    }?;
    Ok(vec![moved.gbit()])
}

fn no_super_frames_for_guest(target: &Target) -> Result<()> {
    let got = target.counters()?.host_to_guest;
    let largest = got.bytes_out as f64 / got.frames_out.max(1) as f64;
    if largest <= 1514.0 {
        return Ok(());
    }
    Err(format!("frames of {largest} bytes, on average, for a guest without offloads").into())
}

fn no_super_frames(path: &Path) -> std::result::Result<(), String> {
    let largest = path.to_target.max(path.from_target);
    if largest <= 1514.0 {
        return Ok(());
    }
    Err(format!(
        "packets of {largest} bytes on the way, on average, without offloads"
    ))
}
