//! A path behind the host that carries less than the guest's link: shorter packets, as
//! behind a tunnel, of which the host's kernel as a router says so; or fewer bytes.
//!
//! ```text
//! guest ══ 1500 ══ this namespace ── west, 1300 ──▶ east: the peer's namespace
//! ```
//! The peer's own interface takes 1500, so nothing but the router's word tells the guest.

use std::net::UdpSocket;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use host_bridge::probe::bulk::{SOURCE_PORT, bulk_receive};
use rustix::thread::UnshareFlags;

use crate::common::{BULK, BULK_PATIENCE, World, in_private_network, ip, netlink, run};

/// A number from a table of this namespace's kernel: two lines per protocol, names and
/// numbers, or a name and a number per line.
fn counter(protocol: &str, name: &str) -> u64 {
    let table = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
    if protocol.is_empty() {
        let table = table("snmp6").unwrap();
        let mut lines = table.lines().filter_map(|line| {
            let (found, number) = line.split_once(' ')?;
            (found == name).then(|| number.trim().parse().unwrap())
        });
        return lines.next().unwrap();
    }
    let table = table("snmp").unwrap();
    let mut rows = table.lines().filter_map(|line| line.strip_prefix(protocol));
    let (names, numbers) = (rows.next().unwrap(), rows.next().unwrap());
    let at = names.split(' ').position(|found| found == name).unwrap();
    numbers.split(' ').nth(at).unwrap().parse().unwrap()
}

/// Makes this namespace a router, lets `prepare` do what it wants with the way out (`west`),
/// and `work` run in the namespace of a peer behind it.
fn beyond_a_router<T: Send + 'static>(
    mtu: u16,
    prepare: impl FnOnce(),
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(Path::new("/proc/sys/net").join(file), "1").unwrap();
    }
    let (whose, theirs) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let peer = thread::spawn(move || {
        // SAFETY: only this thread's network namespace changes, nothing that other
        // threads of the process rely on.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("unshare");
        netlink(async |netlink| netlink.set_up(1).await.expect("loopback"));
        whose.send(rustix::thread::gettid()).unwrap();
        gone.recv().unwrap();
        ip("address add 192.0.2.2/24 dev east");
        ip("address add fd01::2/64 dev east nodad");
        ip("link set east up");
        ip("route add default via 192.0.2.1");
        ip("route add default via fd01::1");
        work()
    });
    let peer_thread = theirs.recv().unwrap().as_raw_nonzero();
    ip(&format!(
        "link add west mtu {mtu} type veth peer name east mtu 1500 netns {peer_thread}"
    ));
    ip("address add 192.0.2.1/24 dev west");
    ip("address add fd01::1/64 dev west nodad");
    ip("link set west up");
    prepare();
    go.send(()).unwrap();
    peer.join().unwrap()
}

/// The peer fetches from the guest, over both versions and twice.
fn a_guest_learns_what_its_path_carries(settings: &'static str) {
    in_private_network(move || {
        let world = World::start(settings);
        let guest = world.guest("far");
        let sources = [guest.v4(SOURCE_PORT), guest.v6(SOURCE_PORT)];
        let fetch = move || {
            // Another connection to the same peer knows the path from the start.
            [0, 1, 0, 1].map(|n: usize| {
                bulk_receive(sources[n], BULK / 4, n as u64, BULK_PATIENCE).unwrap()
            })
        };
        for report in beyond_a_router(1300, || (), fetch) {
            assert!(report.checksum_ok);
        }
        // The router had something to say, and not about every segment.
        let said = [
            counter("Icmp:", "OutDestUnreachs"),
            counter("", "Icmp6OutPktTooBigs"),
        ];
        assert!(
            said.iter().all(|count| (1..200).contains(count)),
            "{said:?}"
        );
    });
}

#[test]
fn a_guest_learns_what_its_path_carries_and_has_the_host_cut_its_frames() {
    a_guest_learns_what_its_path_carries("");
}

#[test]
fn a_guest_without_offloads_learns_what_its_path_carries_and_cuts_itself() {
    a_guest_learns_what_its_path_carries("no_offloads = true");
}

/// The guest's echo of a datagram is too long for the path: the router says so once, and may
/// cut those that follow.
#[test]
fn a_guests_datagrams_come_through_a_narrow_path_once_it_was_told() {
    in_private_network(|| {
        let world = World::start("");
        let guest = world.guest("far");
        let echo = guest.v4(7);
        let ask = move || {
            // What we send is cut here: our own way to the router takes no more than its.
            ip("route change default via 192.0.2.1 mtu lock 1300");
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(echo).unwrap();
            let patience = Duration::from_millis(300);
            socket.set_read_timeout(Some(patience)).unwrap();
            let mut answer = [0; 2000];
            let mut answers = Vec::new();
            for n in 0..20 {
                let question = vec![n; 1400];
                socket.send(&question).unwrap();
                let len = socket.recv(&mut answer).ok();
                assert!(len.is_none_or(|len| answer[..len] == question));
                answers.push(len.is_some());
            }
            answers
        };
        let answers = beyond_a_router(1300, || (), ask);
        let lost = answers.iter().filter(|came| !**came).count();
        assert!((1..5).contains(&lost), "{answers:?}");
        assert_eq!(counter("Icmp:", "OutDestUnreachs"), lost as u64);
    });
}

/// Gives what goes to the peer a rate, and a queue of 64 KB in front of it.
fn shape(rate: &str) {
    let words = format!("qdisc add dev west root tbf rate {rate} burst 32k limit 64k");
    run("tc", &words);
}

/// Bytes that the guest sent.
fn sent(world: &World) -> u64 {
    let port = world.running("far").unwrap();
    port.counters.guest_to_host.bytes_out
}

/// The queue holds less than one connection may have in flight, let alone eight. Where the
/// processors are wanted elsewhere, what is late is taken for lost at times: one attempt
/// of three.
#[test]
fn connections_that_share_a_narrow_queue_hold_themselves_back() {
    const EACH: u64 = 2_500_000;
    let mut attempts = Vec::new();
    for _ in 0..3 {
        match sent_through_a_narrow_queue(EACH) {
            // Half as much again as is to arrive, if they did not.
            Some(sent) if sent >= 8 * EACH * 14 / 10 => attempts.push(sent),
            _ => return,
        }
    }
    panic!("{attempts:?} bytes were sent");
}

/// Bytes that the guest sends so that eight connections bring this much each; `None` where
/// that is not tried.
fn sent_through_a_narrow_queue(each: u64) -> Option<u64> {
    let (tell, told) = mpsc::channel();
    in_private_network(move || {
        let world = World::start("");
        let guest = world.guest("far");
        let source = guest.v4(SOURCE_PORT);
        let fetch = move || {
            let fetch = move |seed| bulk_receive(source, each, seed, BULK_PATIENCE);
            // The threads are made by this one and inherit its namespace.
            let fetching: Vec<_> = (0..8)
                .map(|seed| thread::spawn(move || fetch(seed)))
                .collect();
            fetching
                .into_iter()
                .map(|fetching| fetching.join().unwrap().unwrap().checksum_ok)
                .collect::<Vec<_>>()
        };
        let shape = || shape("40mbit");
        assert_eq!(beyond_a_router(1500, shape, fetch), [true; 8]);
        tell.send(sent(&world)).unwrap();
    });
    told.recv().ok()
}
