//! Whom a stack asks for the hardware addresses of its neighbours, and when.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use guest_stack::smoltcp::socket::tcp;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::time::Duration;

use crate::common::{Bench, MAC, arp_request, config, host, net, v4, v6};
use crate::frames::{Segment, icmpv6_checksum, tcps, udp_frame};

/// Another machine on the link than the bare end was.
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x77];

/// Whom a frame asks for; every field of the question is looked at.
fn question(frame: &[u8]) -> Option<IpAddr> {
    let own = MAC[0];
    if frame[12..14] == [8, 6] {
        // RFC 826.
        assert_eq!(frame[..12], [&[0xff; 6][..], &own].concat());
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(frame[22..32], [&own[..], &[10, 0, 0, 1]].concat());
        return Some(<[u8; 4]>::try_from(&frame[38..42]).unwrap().into());
    }
    if frame[12..14] != [0x86, 0xdd] || frame[20] != 58 || frame[54] != 135 {
        return None;
    }
    // RFC 4861, 4.3: to the group of the address, from this very link.
    let who = <[u8; 16]>::try_from(&frame[62..78]).unwrap();
    let group = [
        &[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff][..],
        &who[13..],
    ]
    .concat();
    assert_eq!(frame[38..54], group);
    assert_eq!(frame[..6], [&[0x33, 0x33][..], &group[12..]].concat());
    assert_eq!(frame[21], 255);
    assert_eq!(frame[78..86], [&[1, 1][..], &own].concat());
    assert_eq!(frame[56..58], icmpv6_checksum(frame).to_be_bytes());
    Some(who.into())
}

fn questions(frames: &[Vec<u8>]) -> BTreeMap<IpAddr, usize> {
    let mut counts = BTreeMap::new();
    for who in frames.iter().filter_map(|frame| question(frame)) {
        *counts.entry(who).or_default() += 1;
    }
    counts
}

/// What `mac` says when it is asked for `who`.
fn answer(mac: [u8; 6], who: IpAddr) -> Vec<u8> {
    match who {
        IpAddr::V4(who) => {
            let mut frame = arp_request();
            frame[6..12].copy_from_slice(&mac);
            frame[21] = 2;
            frame[22..28].copy_from_slice(&mac);
            frame[28..32].copy_from_slice(&who.octets());
            frame[32..38].copy_from_slice(&MAC[0]);
            frame
        }
        IpAddr::V6(who) => {
            let mut frame = crate::frames::neighbour_advertisement();
            frame[6..12].copy_from_slice(&mac);
            frame[22..38].copy_from_slice(&who.octets());
            frame[62..78].copy_from_slice(&who.octets());
            frame[80..86].copy_from_slice(&mac);
            let checksum = icmpv6_checksum(&frame);
            frame[56..58].copy_from_slice(&checksum.to_be_bytes());
            frame
        }
    }
}

fn both(last: u8) -> [IpAddr; 2] {
    [v4(last), v6(last.into())]
}

#[test]
fn connections_to_many_neighbours_ask_for_all_of_them_at_once() {
    let mut bench = Bench::new();
    let now = bench.now();
    let neighbours: Vec<IpAddr> = (10..20).flat_map(both).collect();
    for neighbour in &neighbours {
        let to = SocketAddr::new(*neighbour, 80);
        let sockets = bench.stack.sockets();
        sockets.tcp_connect(now, to, TcpOptions::default()).unwrap();
    }
    let asked = questions(&bench.pass(Duration::from_millis(1)));
    assert_eq!(asked.keys().copied().collect::<Vec<_>>(), {
        let mut all = neighbours.clone();
        all.sort();
        all
    });
    assert!(asked.values().all(|count| *count == 1), "{asked:?}");
    // Each begins as soon as its neighbour answers.
    for neighbour in neighbours {
        let said = bench.exchange(&answer(OTHER, neighbour));
        assert_eq!(said.len(), 1, "{neighbour}");
        assert_eq!(said[0][..6], OTHER);
        assert_eq!(tcps(&said).len(), 1);
    }
}

#[test]
fn datagrams_to_many_neighbours_ask_for_all_of_them_at_once() {
    let mut bench = Bench::new();
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    let neighbours: Vec<IpAddr> = (10..14).flat_map(both).collect();
    for neighbour in &neighbours {
        let to = SocketAddr::new(*neighbour, 9);
        let sockets = bench.stack.sockets();
        sockets.udp_send_to(socket, b"hello", to).unwrap();
    }
    let asked = questions(&bench.pass(Duration::from_millis(1)));
    assert_eq!(asked.len(), neighbours.len());
    assert!(asked.values().all(|count| *count == 1), "{asked:?}");
    let mut sent = 0;
    for neighbour in neighbours {
        sent += bench.exchange(&answer(OTHER, neighbour)).len();
    }
    assert_eq!(sent, 8);
}

#[test]
fn a_neighbour_that_asked_for_somebody_else_is_asked_for_all_the_same() {
    let mut bench = Bench::new();
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    let neighbours: Vec<IpAddr> = (10..14).map(v4).collect();
    for neighbour in &neighbours {
        let mut frame = answer(OTHER, *neighbour);
        frame[..6].fill(0xff);
        // A request, for 10.0.0.200.
        frame[21] = 1;
        frame[38..42].copy_from_slice(&[10, 0, 0, 200]);
        assert!(bench.exchange(&frame).is_empty());
    }
    for neighbour in &neighbours {
        let to = SocketAddr::new(*neighbour, 9);
        let sockets = bench.stack.sockets();
        sockets.udp_send_to(socket, b"hello", to).unwrap();
    }
    let asked = questions(&bench.pass(Duration::from_millis(1)));
    assert_eq!(asked.len(), neighbours.len(), "{asked:?}");
}

#[test]
fn the_applications_own_sockets_ask_for_all_of_their_neighbours_at_once() {
    let mut bench = Bench::new();
    let neighbours: Vec<IpAddr> = (10..14).flat_map(both).collect();
    for (neighbour, port) in neighbours.iter().zip(1000u16..) {
        let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let sockets = bench.stack.sockets();
        sockets.with_application_sockets(|context, set| {
            socket.connect(context, (*neighbour, 80), port).unwrap();
            set.add(socket);
        });
    }
    let asked = questions(&bench.pass(Duration::from_millis(1)));
    assert_eq!(asked.len(), neighbours.len());
    assert!(asked.values().all(|count| *count == 1), "{asked:?}");
    let mut sent = 0;
    for neighbour in neighbours {
        sent += tcps(&bench.exchange(&answer(OTHER, neighbour))).len();
    }
    assert_eq!(sent, 8);
}

#[test]
fn neighbours_that_never_answer_are_asked_for_once_per_second_and_few_of_them() {
    let mut bench = Bench::new();
    let now = bench.now();
    for last in 10..250 {
        let to = SocketAddr::new(v4(last), 80);
        let sockets = bench.stack.sockets();
        sockets.tcp_connect(now, to, TcpOptions::default()).unwrap();
    }
    let asked = questions(&bench.pass(Duration::from_secs(5)));
    // 32 of its own, and one of smoltcp's, per second.
    let all: usize = asked.values().sum();
    assert!((100..=200).contains(&all), "{all} questions");
    assert!(asked.values().all(|count| *count <= 6), "{asked:?}");
}

#[test]
fn gateways_are_asked_for_when_they_are_given() {
    let gateways = both(2);
    let [IpAddr::V4(v4), IpAddr::V6(v6)] = gateways else {
        unreachable!();
    };
    let mut net = net(0);
    let mut bench = Bench::with(config(7), net.clone());
    (net.gateway_v4, net.gateway_v6) = (Some(v4), Some(v6));
    let now = bench.now();
    bench.stack.configure(net.clone(), now).unwrap();
    let asked = questions(&bench.pass(Duration::from_secs(10)));
    assert_eq!(asked, gateways.map(|gateway| (gateway, 1)).into());
    for gateway in gateways {
        assert!(bench.exchange(&answer(MAC[1], gateway)).is_empty());
    }
    // Those that are known are not asked for again.
    net.mtu = 1400;
    let now = bench.now();
    bench.stack.configure(net, now).unwrap();
    assert!(questions(&bench.pass(Duration::from_secs(10))).is_empty());
    // What goes beyond the link leaves at once.
    let far: [IpAddr; 2] = [
        Ipv4Addr::new(198, 51, 100, 1).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    ];
    for far in far {
        let (now, to) = (bench.now(), SocketAddr::new(far, 80));
        let sockets = bench.stack.sockets();
        sockets.tcp_connect(now, to, TcpOptions::default()).unwrap();
        bench.settle();
        assert_eq!(tcps(&bench.peer.drain()).len(), 1, "{far}");
    }
}

/// A connection with the bare end that has something to say, after a liar told the stack
/// that the bare end were there. What then becomes of it within `time`, if whoever is asked
/// for answers.
fn lied_to(time: Duration) -> Option<Vec<u8>> {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let options = TcpOptions::default();
    let listener = bench.stack.sockets().tcp_listen(80, 4, options).unwrap();
    let syn = Segment::syn(4000, 1000);
    let said = tcps(&bench.exchange(&syn.frame())).remove(0);
    bench.exchange(&syn.then(".", 1001, said.seq + 1, b"").frame());
    let (stream, _) = bench.stack.sockets().tcp_accept(listener).unwrap();
    bench.exchange(&answer(OTHER, v4(2)));
    let sockets = bench.stack.sockets();
    sockets.tcp_send(stream, b"where are you?").unwrap();
    let until = bench.now() + time;
    while bench.now() < until {
        for frame in bench.pass(Duration::from_millis(1)) {
            if question(&frame) == Some(v4(2)) {
                bench.peer.inject(&answer(MAC[1], v4(2)));
            } else if frame[..6] == MAC[1] {
                return Some(frame);
            } else {
                assert_eq!(frame[..6], OTHER);
            }
        }
    }
    None
}

#[test]
fn a_neighbour_that_is_not_where_somebody_said_is_found_again() {
    let found = lied_to(Duration::from_secs(2)).expect("the bare end hears nothing");
    assert_eq!(&found[54..], b"where are you?");
}

/// Sends a datagram each second for a minute to a neighbour that somebody lied about; it
/// answers what it hears if `answers` says so. How many it hears, and how often it is asked for.
fn datagrams_to_one_lied_about(ipv6: bool, answers: bool) -> (usize, usize) {
    let mut bench = Bench::new();
    let peer = host(1, ipv6, 9);
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    bench
        .stack
        .sockets()
        .udp_send_to(socket, b"?", peer)
        .unwrap();
    bench.settle();
    bench.exchange(&answer(OTHER, peer.ip()));
    let (mut heard, mut asked) = (0, 0);
    for _ in 0..60 {
        bench
            .stack
            .sockets()
            .udp_send_to(socket, b"?", peer)
            .unwrap();
        for frame in bench.pass(Duration::from_secs(1)) {
            if question(&frame) == Some(peer.ip()) {
                asked += 1;
                bench.peer.inject(&answer(MAC[1], peer.ip()));
            } else if frame[..6] == MAC[1] {
                heard += 1;
                if answers {
                    bench.peer.inject(&udp_frame(ipv6, 9, 7, b"!"));
                }
            }
        }
    }
    (heard, asked)
}

#[test]
fn datagrams_that_nobody_answers_find_a_neighbour_that_is_not_where_somebody_said() {
    for ipv6 in [false, true] {
        let (heard, asked) = datagrams_to_one_lied_about(ipv6, true);
        assert!((55..=58).contains(&heard), "{heard}");
        assert_eq!(asked, 1);
        // What wants no answer is not taken for lost too often.
        let (heard, asked) = datagrams_to_one_lied_about(ipv6, false);
        assert!((55..=58).contains(&heard), "{heard}");
        assert_eq!(asked, 4, "after 3, 9, 21 and 45 s");
    }
}

#[test]
fn a_connect_finds_a_neighbour_that_is_not_where_it_was() {
    for ipv6 in [false, true] {
        let mut bench = Bench::new();
        let remote = host(1, ipv6, 80);
        // It was there, and left without a word.
        bench.exchange(&answer(OTHER, remote.ip()));
        let now = bench.now();
        let sockets = bench.stack.sockets();
        // An advertisement that was not asked for tells nothing new (RFC 4861, 7.2.5).
        sockets
            .tcp_connect(now, remote, TcpOptions::default())
            .unwrap();
        for frame in bench.pass(Duration::from_millis(1)) {
            if question(&frame).is_some() {
                bench.exchange(&answer(OTHER, remote.ip()));
            }
        }
        let mut found = false;
        for _ in 0..5000 {
            for frame in bench.pass(Duration::from_millis(1)) {
                if question(&frame) == Some(remote.ip()) {
                    bench.peer.inject(&answer(MAC[1], remote.ip()));
                }
                found |= frame[..6] == MAC[1] && tcps(&[frame]).len() == 1;
            }
        }
        assert!(found, "IPv6: {ipv6}");
    }
}
