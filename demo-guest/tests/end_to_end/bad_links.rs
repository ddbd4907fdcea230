//! Links as bad as they come, by the bridge's own fault injection and by the kernel's:
//! whatever happens on the way, all bytes arrive, and none but those.
//!
//! Each link is a guest of its own, all of them at one daemon and at the same time. Over
//! each, bytes go both ways by IPv4 and by IPv6 at once.

use std::process::Command;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use host_bridge::counters::DirectionSnapshot;
use host_bridge::port::PortChange;
use host_bridge::probe::ProbeError;
use host_bridge::probe::bulk::{BulkReport, SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};

use crate::common::{BULK_PATIENCE, Guest, World, in_private_network, skip, until};

/// What is done to a link, and how many bytes go over it in each of the four ways.
struct Link {
    what: &'static str,
    bytes: u64,
}

const fn link(what: &'static str, bytes: u64) -> Link {
    Link { what, bytes }
}

/// A guest for each link.
fn guests(world: &World, links: &[Link]) -> Vec<Guest> {
    let guest = |number| world.guest(&format!("guest{number}"));
    (0..links.len()).map(guest).collect()
}

type Transfer<'s> = ScopedJoinHandle<'s, Result<BulkReport, ProbeError>>;

/// Starts the four transfers of a link.
fn start<'s>(
    scope: &'s std::thread::Scope<'s, '_>,
    guest: &Guest,
    bytes: u64,
) -> Vec<Transfer<'s>> {
    let mut transfers = Vec::new();
    // The threads are made by this one and inherit its namespace.
    for (seed, sink) in [guest.v4(SINK_PORT), guest.v6(SINK_PORT)]
        .into_iter()
        .enumerate()
    {
        transfers.push(scope.spawn(move || bulk_send(sink, bytes, seed as u64, BULK_PATIENCE)));
    }
    for (seed, source) in [guest.v4(SOURCE_PORT), guest.v6(SOURCE_PORT)]
        .into_iter()
        .enumerate()
    {
        let transfer = move || bulk_receive(source, bytes, 10 + seed as u64, BULK_PATIENCE);
        transfers.push(scope.spawn(transfer));
    }
    transfers
}

/// Waits for the transfers of a link and looks at what arrived.
fn finish(what: &str, bytes: u64, transfers: Vec<Transfer<'_>>) {
    let ways = ["IPv4 to guest", "IPv6 to guest", "IPv4 from", "IPv6 from"];
    for (way, transfer) in ways.into_iter().zip(transfers) {
        let report = transfer.join().unwrap();
        let report = report.unwrap_or_else(|error| panic!("{what}, {way}: {error}"));
        assert!(
            report.checksum_ok && report.bytes == bytes,
            "{what}, {way}: {report:?}"
        );
        eprintln!("{what}, {way}: {:.2?}", report.elapsed);
    }
}

/// Segments that the kernel of this namespace did not take, their checksum being wrong.
fn bad_checksums() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(name, _)| *name == "InCsumErrors").unwrap();
    value.parse().unwrap()
}

/// Every key of the fault injection, alone and together. `{}` is the seed, another one in
/// each direction.
const INJECTED: [Link; 11] = [
    link("loss=1%", 2_000_000),
    link("loss=5%", 2_000_000),
    link("loss=20%", 100_000),
    link("dup=20%", 2_000_000),
    link("reorder=20%,gap=5", 2_000_000),
    link("corrupt=5%", 2_000_000),
    link("delay=20ms,jitter=10ms", 2_000_000),
    link("delay=200ms", 1_000_000),
    link("rate=20mbit", 2_000_000),
    // A queue of some 24 ms, which a sender in full flow makes overflow.
    link("rate=20mbit,limit=40,delay=5ms", 1_000_000),
    link(
        "loss=2%,dup=2%,reorder=5%,gap=3,corrupt=1%,delay=10ms,jitter=5ms,rate=50mbit",
        1_000_000,
    ),
];

/// What a link is changed to, again and again, while bytes go over it. Offloads come and
/// go with it.
const CHANGES: [(u16, &str); 4] = [
    (9000, "off"),
    (1280, "loss=2%,delay=5ms,jitter=2ms"),
    (1500, "dup=5%,reorder=10%,gap=2"),
    (4000, "corrupt=2%,rate=40mbit"),
];

#[test]
fn links_that_lose_repeat_reorder_corrupt_delay_and_choke_change_no_byte() {
    in_private_network(|| {
        let world = World::start("mtu = 9000");
        let guests = guests(&world, &INJECTED);
        let changing = world.guest("changing");
        let impair = |what: &str, seed: usize| format!("{what},seed={seed}").parse().unwrap();
        for (number, (guest, Link { what, .. })) in guests.iter().zip(&INJECTED).enumerate() {
            let change = PortChange {
                mtu: Some(1500),
                impair_to_host: Some(impair(what, 2 * number + 1)),
                impair_to_guest: Some(impair(what, 2 * number + 2)),
                ..PortChange::default()
            };
            world.change(&guest.port, change);
        }
        // Takes two seconds and more at the rate of the last change.
        let (bytes, mut rounds) = (10_000_000, 0);
        std::thread::scope(|scope| {
            let links: Vec<_> = guests
                .iter()
                .zip(&INJECTED)
                .map(|(guest, link)| (link, start(scope, guest, link.bytes)))
                .collect();
            let transfers = start(scope, &changing, bytes);
            while rounds < 2 || transfers.iter().any(|t| !t.is_finished()) {
                for (mtu, what) in CHANGES {
                    let change = PortChange {
                        mtu: Some(mtu),
                        impair_to_host: Some(what.parse().unwrap()),
                        impair_to_guest: Some(what.parse().unwrap()),
                        ..PortChange::default()
                    };
                    world.change(&changing.port, change);
                    std::thread::sleep(Duration::from_millis(100));
                }
                rounds += 1;
            }
            finish("changing", bytes, transfers);
            for (link, transfers) in links {
                finish(link.what, link.bytes, transfers);
            }
        });
        until("a ledger that adds up", || world.ledgers_add_up());
        // Each did to the frames what it is for.
        for (number, Link { what, .. }) in INJECTED.iter().enumerate() {
            let counters = world.running(&format!("guest{number}")).unwrap().counters;
            for way in [&counters.guest_to_host, &counters.host_to_guest] {
                eprintln!(
                    "XX {what} {} {:?} {}",
                    way.frames_in, way.drops, way.duplicated
                );
                let dropped = |reason: &str| way.drops.get(reason).copied().unwrap_or(0) > 0;
                assert_eq!(what.contains("loss="), dropped("impair-loss"), "{what}");
                assert_eq!(what.contains("dup="), way.duplicated > 0, "{what}");
            }
            let queue = |way: &DirectionSnapshot| way.drops.contains_key("rate-limit");
            let overflows = queue(&counters.guest_to_host) || queue(&counters.host_to_guest);
            assert!(overflows || !what.contains("limit="), "{what}");
        }
        assert!(bad_checksums() > 0, "nothing was corrupted");
    });
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// What the kernel does to the links, offloads and all: it loses whole super-frames.
///
/// It repeats none: where `nft`'s `dup` copies a frame of the kernel's own TCP that then
/// waits in a queue, Linux 6.18 sends bytes that its TCP never sent, also to another kernel
/// over veth. The fault injection repeats frames.
const BY_KERNEL: [Link; 5] = [
    link("numgen random mod 100 < 1 counter drop", 5_000_000),
    link("numgen random mod 100 < 5 counter drop", 5_000_000),
    link("numgen random mod 100 < 20 counter drop", 200_000),
    link(
        "limit rate over 1 mbytes/second burst 64 kbytes counter drop",
        1_000_000,
    ),
    // By the qdisc below.
    link("accept", 2_000_000),
];

#[test]
fn links_that_the_kernel_loses_polices_and_shapes_change_no_byte() {
    in_private_network(|| {
        let world = World::start("");
        let guests = guests(&world, &BY_KERNEL);
        let mut rules = String::from("table inet bad {\n");
        for (hook, side) in [("input", "iifname"), ("output", "oifname")] {
            rules += &format!("chain {hook} {{ type filter hook {hook} priority 0;\n");
            for (guest, Link { what, .. }) in guests.iter().zip(&BY_KERNEL) {
                // The kernel's TCP takes what is dropped in its own output for a busy
                // device, and waits for longer and longer: a fifth stops it.
                let what = match hook {
                    "output" => what.replace("< 20 ", "< 5 "),
                    _ => (*what).to_owned(),
                };
                rules += &format!("{side} {:?} counter {what};\n", guest.port);
            }
            rules += "}\n";
        }
        let shaped = &guests.last().unwrap().port;
        rules += "}\n";
        if let Err(error) = run("nft", &[&rules]) {
            eprintln!("nft: {error}");
            return skip("nft and a kernel with numgen");
        }
        let shape = format!("qdisc add dev {shaped} root tbf rate 50mbit burst 64kb latency 20ms");
        if let Err(error) = run("tc", &shape.split(' ').collect::<Vec<_>>()) {
            eprintln!("tc: {error}");
            return skip("tc and a kernel with the token bucket filter");
        }
        std::thread::scope(|scope| {
            let links: Vec<_> = guests
                .iter()
                .zip(&BY_KERNEL)
                .map(|(guest, link)| (link, start(scope, guest, link.bytes)))
                .collect();
            for (link, transfers) in links {
                finish(link.what, link.bytes, transfers);
            }
        });
        until("a ledger that adds up", || world.ledgers_add_up());
        let rules = run("nft", &["list", "ruleset"]).unwrap();
        let rules: Vec<&str> = rules.lines().filter(|l| l.contains("counter ")).collect();
        assert_eq!(rules.len(), 2 * BY_KERNEL.len(), "{rules:?}");
        // Every rule was asked. What each of them did is chance: a policed link that is slow
        // enough loses nothing. Together they cannot have done nothing.
        let mut lost = 0;
        for rule in &rules {
            let mut counters = rule.split("counter packets ").skip(1).map(|rest| -> u64 {
                let (packets, _) = rest.split_once(' ').unwrap();
                packets.parse().unwrap()
            });
            assert!(counters.next().unwrap() > 0, "{rule}");
            lost += counters.next().unwrap_or(0);
        }
        assert!(lost > 0, "{rules:?}");
    });
}

#[test]
fn a_link_that_netem_impairs_changes_no_byte() {
    const IMPAIRED: &str = "delay 40ms 10ms loss 3% duplicate 2% reorder 10% corrupt 1% limit 500";
    in_private_network(|| {
        let world = World::start("");
        let guest = world.guest("netem");
        let netem = format!("qdisc add dev {} root netem {IMPAIRED}", guest.port);
        if let Err(error) = run("tc", &netem.split(' ').collect::<Vec<_>>()) {
            // Many kernels are built without it, so it is never required.
            eprintln!("skipped netem: {error}");
            return;
        }
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let transfers = start(scope, &guest, 500_000);
            finish("netem", 500_000, transfers);
        });
        assert!(
            begin.elapsed() > Duration::from_millis(60),
            "it did nothing"
        );
    });
}
