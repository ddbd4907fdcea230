//! Another machine on the network floods a guest with what no connection is needed for:
//! ARP and neighbour discovery in ever other names, and fragments that overlap or whose
//! rest never comes. Connections go on meanwhile, and the guest does not grow.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};
use host_bridge::tap::{Tap, TapKind, TapSource};

use crate::common::{
    BULK, BULK_PATIENCE, World, in_private_network, interface, make_bridge, netlink, until,
};
use crate::hostile::held;

/// The guest, by the plan of addresses: MAC, IPv4, IPv6.
const MAC: [u8; 6] = [2, 0x53, 0x4c, 0, 0, 0];
const V4: [u8; 4] = [10, 88, 0, 2];
const V6: [u8; 16] = [0xfd, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

/// Frames between two rests of a millisecond: some 10,000 a second.
const BURST: u64 = 10;

/// The sums of RFC 1071.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let all = parts.concat();
    let pairs = all
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)));
    let mut sum: u32 = pairs.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Where frame `number` claims to come from.
fn mac(number: u64) -> [u8; 6] {
    let [.., a, b, c] = number.to_be_bytes();
    [2, 0xbb, 0, a, b, c]
}

fn ethernet(to: [u8; 6], number: u64, ethertype: [u8; 2], payload: &[&[u8]]) -> Vec<u8> {
    [&to[..], &mac(number), &ethertype, &payload.concat()].concat()
}

/// A request, or a reply, for the guest by one of the other addresses of its network.
fn arp(number: u64, operation: u8) -> Vec<u8> {
    // The bridge and the guest have 1 and 2.
    let sender = [10, 88, 0, (3 + number % 250) as u8];
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    let to = if operation == 1 { [0xff; 6] } else { MAC };
    let body = [&head[..], &mac(number), &sender, &MAC, &V4];
    ethernet(to, number, [8, 6], &body)
}

fn ipv6(number: u64, from: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (payload.len() as u16).to_be_bytes();
    let head = [0x60, 0, 0, 0, high, low, next, 255];
    ethernet(MAC, number, [0x86, 0xdd], &[&head, &from, &V6, payload])
}

/// A neighbour solicitation (135) for the guest, or an advertisement (136), in ever other
/// names.
fn neighbour(number: u64, kind: u8) -> Vec<u8> {
    let mut from = V6;
    from[8..].copy_from_slice(&(number + 0x1_0000).to_be_bytes());
    let target = if kind == 135 { V6 } else { from };
    let option = if kind == 135 { 1 } else { 2 };
    let flags = if kind == 135 { 0 } else { 0x60 };
    let head = [kind, 0, 0, 0, flags, 0, 0, 0];
    let mut message = [&head[..], &target, &[option, 1], &mac(number)].concat();
    let pseudo = [0, 0, 0, message.len() as u8, 0, 0, 0, 58];
    let sum = checksum(&[&from, &V6, &pseudo, &message]);
    message[2..4].copy_from_slice(&sum);
    ipv6(number, from, 58, &message)
}

/// A piece of an IPv4 datagram: `identity` tells which, `at` where, in units of 8 bytes.
fn piece4(number: u64, identity: u16, at: u16, more: bool, len: usize) -> Vec<u8> {
    let total = (20 + len as u16).to_be_bytes();
    let [id_high, id_low] = identity.to_be_bytes();
    let [high, low] = (u16::from(more) << 13 | at).to_be_bytes();
    let source = [10, 88, 0, 200];
    let mut head = [
        0x45, 0, total[0], total[1], id_high, id_low, high, low, 64, 17, 0, 0,
    ];
    let sum = checksum(&[&head, &source, &V4]);
    head[10..].copy_from_slice(&sum);
    let payload = vec![number as u8; len];
    ethernet(MAC, number, [8, 0], &[&head, &source, &V4, &payload])
}

/// A piece of an IPv6 datagram.
fn piece6(number: u64, identity: u32, at: u16, more: bool, len: usize) -> Vec<u8> {
    let place = (at << 3 | u16::from(more)).to_be_bytes();
    let mut payload = [&[17, 0][..], &place, &identity.to_be_bytes()].concat();
    payload.resize(8 + len, number as u8);
    let mut from = V6;
    from[15] = 0xc8;
    ipv6(number, from, 44, &payload)
}

type Storm = (&'static str, fn(u64) -> Vec<u8>);

const STORMS: [Storm; 8] = [
    ("ARP requests", |n| arp(n, 1)),
    ("ARP replies", |n| arp(n, 2)),
    ("neighbour solicitations", |n| neighbour(n, 135)),
    ("neighbour advertisements", |n| neighbour(n, 136)),
    ("IPv4 fragments without a rest", |n| {
        piece4(n, n as u16, 0, true, 1400)
    }),
    ("IPv4 fragments that overlap", |n| {
        piece4(n, (n / 16) as u16, (n % 16) as u16 * 3, n % 7 != 0, 64)
    }),
    ("IPv6 fragments without a rest", |n| {
        piece6(n, n as u32, 0, true, 1400)
    }),
    ("IPv6 fragments that overlap", |n| {
        piece6(n, (n / 16) as u32, (n % 16) as u16 * 3, n % 7 != 0, 64)
    }),
];

/// Tells the storm to stop, also when an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn connections_go_on_in_storms_of_arp_neighbour_discovery_and_fragments() {
    in_private_network(|| {
        make_bridge("br0", &["10.88.0.1/24", "fd88::1/64"]);
        let world = World::start("bridge = \"br0\"\nnet4 = \"10.88.0.0/24\"\nnet6 = \"fd88::/64\"");
        let mut guest = world.guest("victim");
        let pid = guest.pid();
        let name = Some("storm".to_owned());
        let storm = Tap::open_as(TapSource::Create { name }, TapKind::Plain).unwrap();
        let index = interface("storm").unwrap();
        netlink(async |netlink| {
            netlink.set_master(index, "br0").await.unwrap();
            netlink.set_up(index).await.unwrap();
        });
        let transfers = |seed| {
            let sent = bulk_send(guest.v4(SINK_PORT), BULK / 10, seed, BULK_PATIENCE).unwrap();
            assert!(sent.checksum_ok, "{sent:?}");
            let received = bulk_receive(guest.v6(SOURCE_PORT), BULK / 10, seed, BULK_PATIENCE);
            let received = received.unwrap();
            assert!(received.checksum_ok, "{received:?}");
        };
        transfers(0);
        let before = held(pid);
        let received = || {
            let counters = world.running("victim").unwrap().counters;
            counters.host_to_guest.frames_out
        };
        for (seed, (what, frame)) in STORMS.into_iter().enumerate() {
            let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut number = 0;
                    while !stop.load(Ordering::Relaxed) {
                        for _ in 0..BURST {
                            // Without room it is lost, as in any storm.
                            if rustix::io::write(storm.as_fd(), &frame(number)).is_ok() {
                                sent.fetch_add(1, Ordering::Relaxed);
                            }
                            number += 1;
                        }
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
                let _stop = Stop(&stop);
                let arrived = received();
                let begin = Instant::now();
                until("a storm", || received() > arrived + 500);
                transfers(seed as u64);
                eprintln!("{what}: {:.2?}", begin.elapsed());
            });
            assert!(sent.load(Ordering::Relaxed) > 500, "{what} was no storm");
        }
        transfers(100);
        let after = held(pid);
        assert_eq!(after.0, before.0);
        assert!(
            after.1 <= before.1 + 2048,
            "memory: {} KiB, then {}",
            before.1,
            after.1
        );
    });
}
