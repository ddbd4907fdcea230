//! Sending over a wire that loses: holes, tails and resent segments come again
//! within a few round trips, and nothing is resent that was not lost.

use guest_stack::error::StreamError;
use guest_stack::tcp::TcpStreamId;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::time::{Duration, Instant};
use shm_link::offload::Offloads;

use crate::common::{Cable, Impairment, MAC, Pair, config, net, pattern, stack_with};
use crate::transfer::{read_some, write_some};

const DELAY: Duration = Duration::from_millis(2);

fn wire(loss: u64) -> Impairment {
    Impairment {
        loss,
        delay: DELAY,
        ..Impairment::default()
    }
}

/// Sends from stack 0 to stack 1 and gives the time it took.
fn transfer(
    pair: &mut Pair,
    (client, server): (TcpStreamId, TcpStreamId),
    data: &[u8],
) -> Duration {
    let start = pair.now();
    let mut at = 0;
    let mut got = Vec::new();
    pair.run_until(|pair| {
        write_some(pair.sockets(0), client, data, &mut at);
        read_some(pair.sockets(1), server, &mut got);
        got.len() == data.len()
    });
    assert!(got == data, "not what was sent");
    pair.now() - start
}

fn nudges(pair: &mut Pair) -> u64 {
    pair.sockets(0).counters().tcp_recovery_acks
}

/// A pair whose connection has measured its round trip.
fn warm(seed: u64, ipv6: bool) -> (Pair, (TcpStreamId, TcpStreamId)) {
    let mut pair = Pair::new(seed);
    pair.cable.impair(wire(0));
    let ends = pair.connected(ipv6, 80);
    transfer(&mut pair, ends, &pattern(200_000, 5));
    pair.run(Duration::from_secs(1));
    assert_eq!(nudges(&mut pair), 0);
    (pair, ends)
}

#[test]
fn four_megabytes_through_five_percent_of_loss_take_seconds() {
    // The last column is what smoltcp alone takes; with recovery 0.73 to 0.79 s.
    let runs = [(1, false, 23_774), (2, true, 17_678), (3, false, 21_722)];
    for (seed, ipv6, alone_ms) in runs {
        let (mut pair, ends) = warm(seed, ipv6);
        pair.cable.impair(wire(50));
        let took = transfer(&mut pair, ends, &pattern(4_000_000, 9));
        std::println!("seed {seed}: {took}, {} nudges", nudges(&mut pair) / 5);
        assert!(took * 20 < Duration::from_millis(alone_ms), "{took}");
    }
}

#[test]
fn a_fifth_lost_each_way_is_still_got_through() {
    let (mut pair, ends) = warm(4, false);
    pair.cable.impair(wire(200));
    let took = transfer(&mut pair, ends, &pattern(500_000, 9));
    std::println!("20 %: {took}");
    assert!(took < Duration::from_secs(60), "{took}");
}

/// Sends three megabytes through a policer of 20 Mbit/s, 30 ms there and back. Gives how many
/// bytes were sent, in percent, and how long it took.
fn policed(ipv6: bool) -> (usize, Duration) {
    let mut pair = Pair::new(1);
    pair.cable.impair(Impairment {
        delay: Duration::from_millis(15),
        ..Impairment::default()
    });
    let options = TcpOptions {
        rx_buffer_bytes: 1 << 20,
        tx_buffer_bytes: 1 << 20,
        ..TcpOptions::default()
    };
    let ends = pair.connected_with(ipv6, 80, options);
    pair.cable.impair(Impairment {
        delay: Duration::from_millis(15),
        police: Some(2_500),
        ..Impairment::default()
    });
    pair.cable.log(0);
    let data = pattern(3_000_000, 5);
    let took = transfer(&mut pair, ends, &data);
    let sent = pair.cable.take_log(0);
    let sent: usize = sent.iter().map(|(_, frame)| frame.len()).sum();
    (sent * 100 / data.len(), took)
}

#[test]
fn a_path_that_lets_through_so_much_and_no_more_is_found_out() {
    for ipv6 in [false, true] {
        let (sent, took) = policed(ipv6);
        std::println!("{sent} %, {took}");
        // Headers are 4 to 5 %. Half of it is what slow start found out with.
        assert!(sent < 200, "{sent} %");
        assert!(took < Duration::from_millis(2_500), "{took}");
    }
}

#[test]
fn without_loss_no_socket_is_made_to_resend() {
    for ipv6 in [false, true] {
        let (mut pair, ends) = warm(1, ipv6);
        for len in [1, 100, 3000, 100_000, 1_000_000] {
            transfer(&mut pair, ends, &pattern(len, 3));
            pair.run(Duration::from_secs(3));
        }
        assert_eq!(nudges(&mut pair), 0);
    }
}

/// Sends `len` bytes of which the last segment is lost, the first `times` times.
fn lost_tail(len: usize, times: u32) -> Duration {
    let (mut pair, (client, server)) = warm(1, false);
    let data = pattern(len, 3);
    let whole = len / 1460 * 1460;
    // All but the tail is in the wire before the tail is written.
    let start = pair.now();
    assert_eq!(pair.sockets(0).tcp_send(client, &data[..whole]), Ok(whole));
    pair.settle();
    let until = pair.now() + Duration::from_micros(10);
    pair.cable.impair(wire(1000));
    let rest = len - whole;
    let tail = pair.sockets(0).tcp_send(client, &data[whole..]);
    assert_eq!(tail, Ok(rest));
    pair.settle();
    while pair.step(until) {}
    for _ in 1..times {
        // The first probe is lost too.
        let nudged = nudges(&mut pair);
        while nudges(&mut pair) == nudged {
            assert!(pair.step(start + Duration::from_secs(5)));
            // What acknowledges the rest must arrive.
            let probing = pair.now() - start > DELAY * 2;
            pair.cable.impair(wire(if probing { 1000 } else { 0 }));
        }
    }
    pair.cable.impair(wire(0));
    let mut got = Vec::new();
    pair.run_until(|pair| {
        read_some(pair.sockets(1), server, &mut got);
        got.len() == len
    });
    assert!(got == data);
    assert_eq!(nudges(&mut pair), u64::from(times) * 5);
    pair.now() - start
}

#[test]
fn a_lost_tail_of_several_segments_comes_again_within_five_round_trips() {
    let (mut pair, (client, server)) = warm(1, false);
    let data = pattern(6000, 3);
    let start = pair.now();
    pair.cable.impair(wire(1000));
    assert_eq!(pair.sockets(0).tcp_send(client, &data), Ok(data.len()));
    pair.settle();
    pair.cable.impair(wire(0));
    let mut got = Vec::new();
    let mut first = None;
    pair.run_until(|pair| {
        read_some(pair.sockets(1), server, &mut got);
        if !got.is_empty() {
            first = first.or(Some(pair.now()));
        }
        got.len() == data.len()
    });
    assert!(got == data);
    let round_trip = DELAY * 2;
    let first = first.unwrap() - start;
    assert!(first <= round_trip * 5, "{first}");
    // The peer has told of nothing behind it: all the rest follows at once.
    let whole = pair.now() - start;
    assert!(whole <= first + round_trip * 2, "{whole}");
}

/// Sends forty segments of which every second one is lost, but for the last three.
fn lose_every_second(
    pair: &mut Pair,
    (client, server): (TcpStreamId, TcpStreamId),
    ipv6: bool,
) -> Duration {
    let (segments, segment_len) = (40, if ipv6 { 1440 } else { 1460 });
    let data = pattern(segments * segment_len, 3);
    let start = pair.now();
    for (at, segment) in data.chunks(segment_len).enumerate() {
        let lost = at % 2 == 0 && at + 3 < segments;
        pair.cable.impair(wire(if lost { 1000 } else { 0 }));
        let sent = pair.sockets(0).tcp_send(client, segment);
        assert_eq!(sent, Ok(segment_len));
        pair.settle();
    }
    pair.cable.impair(wire(0));
    let mut got = Vec::new();
    pair.run_until(|pair| {
        read_some(pair.sockets(1), server, &mut got);
        got.len() == data.len()
    });
    assert!(got == data);
    pair.now() - start
}

#[test]
fn all_holes_of_a_flight_come_again_in_one_round_trip() {
    for ipv6 in [false, true] {
        let (mut pair, ends) = warm(1, ipv6);
        let took = lose_every_second(&mut pair, ends, ipv6);
        // One to hear of them, half a one to send them.
        assert!(took <= DELAY * 4, "{took}");
    }
}

#[test]
fn a_peer_that_falls_silent_among_holes_is_sent_less_and_less() {
    let (mut pair, (client, _)) = warm(1, false);
    let data = pattern(40 * 1460, 3);
    for (at, segment) in data.chunks(1460).enumerate() {
        pair.cable.impair(wire(if at % 3 == 0 { 1000 } else { 0 }));
        assert_eq!(pair.sockets(0).tcp_send(client, segment), Ok(1460));
        pair.settle();
    }
    // What it has is heard of; what is resent then, and all later, is lost.
    pair.cable.impair(wire(0));
    pair.run(DELAY + Duration::from_millis(1));
    pair.cable.impair(wire(1000));
    pair.run(DELAY);
    pair.cable.log(0);
    pair.run(Duration::from_secs(60));
    let sent = pair.cable.take_log(0).len();
    assert!((1..100).contains(&sent), "{sent} frames in a minute");
}

#[test]
fn a_window_that_opens_unheard_is_asked_for_soon() {
    for resent in [false, true] {
        opens_unheard(resent);
    }
}

/// With `resent`, smoltcp's own time to ask is a long one.
fn opens_unheard(resent: bool) {
    let (mut pair, (client, server)) = warm(1, false);
    if resent {
        lose_every_second(&mut pair, (client, server), false);
    }
    let data = pattern(300_000, 7);
    let mut at = 0;
    // Until the peer's window is closed.
    write_some(pair.sockets(0), client, &data, &mut at);
    pair.run(Duration::from_millis(50));
    write_some(pair.sockets(0), client, &data, &mut at);
    pair.run(Duration::from_millis(50));
    let start = pair.now();
    pair.cable.impair(wire(1000));
    let mut got = Vec::new();
    read_some(pair.sockets(1), server, &mut got);
    pair.settle();
    pair.cable.impair(wire(0));
    let before = got.len();
    assert!(before < data.len(), "it was never closed");
    pair.run_until(|pair| {
        write_some(pair.sockets(0), client, &data, &mut at);
        read_some(pair.sockets(1), server, &mut got);
        got.len() > before
    });
    let took = pair.now() - start;
    assert!(took <= Duration::from_millis(150), "{resent}: {took}");
    pair.run_until(|pair| {
        write_some(pair.sockets(0), client, &data, &mut at);
        read_some(pair.sockets(1), server, &mut got);
        got.len() == data.len()
    });
    assert!(got == data);
}

#[test]
fn a_lone_lost_segment_comes_again_long_before_a_second() {
    let took = lost_tail(700, 1);
    assert!(took < Duration::from_millis(70), "{took}");
}

#[test]
fn a_resent_segment_that_is_lost_again_comes_again_long_before_a_second() {
    let took = lost_tail(700, 2);
    assert!(took < Duration::from_millis(250), "{took}");
}

#[test]
fn the_first_thing_that_is_said_comes_again_long_before_a_second() {
    // The handshake was a round trip too, for either side.
    for (speaker, ipv6) in [(0, false), (1, false), (0, true), (1, true)] {
        let mut pair = Pair::new(1);
        pair.cable.impair(wire(0));
        let (client, server) = pair.connected(ipv6, 80);
        pair.run(Duration::from_secs(1));
        let (from, to) = match speaker {
            0 => (client, server),
            _ => (server, client),
        };
        let start = pair.now();
        pair.cable.impair(wire(1000));
        assert_eq!(pair.sockets(speaker).tcp_send(from, b"hello"), Ok(5));
        pair.settle();
        pair.cable.impair(wire(0));
        let mut got = Vec::new();
        pair.run_until(|pair| {
            read_some(pair.sockets(1 - speaker), to, &mut got);
            got == b"hello"
        });
        let took = pair.now() - start;
        assert!(took < Duration::from_millis(80), "{speaker}: {took}");
    }
}

#[test]
fn a_peer_that_vanishes_is_given_up_after_the_user_timeout() {
    let (mut pair, (client, _)) = warm(1, false);
    let data = pattern(50_000, 3);
    pair.cable.impair(wire(1000));
    let start = pair.now();
    assert_eq!(pair.sockets(0).tcp_send(client, &data), Ok(data.len()));
    pair.settle();
    let mut buffer = [0; 1];
    let mut ended: Option<Instant> = None;
    while ended.is_none() {
        let more = pair.step(start + Duration::from_secs(700));
        assert!(more, "it is still there");
        match pair.sockets(0).tcp_recv(client, &mut buffer) {
            Err(StreamError::WouldBlock) => {}
            Err(StreamError::TimedOut) => ended = Some(pair.now()),
            other => panic!("{other:?}"),
        }
    }
    let took = ended.unwrap() - start;
    assert!(took >= Duration::from_secs(599), "{took}");
    assert!(took <= Duration::from_secs(610), "{took}");
    let probes = nudges(&mut pair) / 5;
    assert!((1..=7).contains(&probes), "{probes}");
}

#[test]
fn large_segments_and_unfinished_checksums_come_through_loss_too() {
    for ipv6 in [false, true] {
        large_segments_come_through_loss(ipv6);
    }
}

fn large_segments_come_through_loss(ipv6: bool) {
    let cable = Cable::new(8);
    let segmentation = Offloads::TSO4.union(Offloads::TSO6);
    let offloads = Offloads::CHECKSUM.union(segmentation);
    let stacks = [0, 1].map(|side| {
        let mut net = net(side);
        net.tx_offloads = offloads;
        net.rx_offloads = offloads;
        assert_eq!(net.mac, MAC[side]);
        stack_with(&cable, side, config(side as u64 + 10), net)
    });
    let mut pair = Pair::with(cable, stacks);
    pair.cable.impair(wire(0));
    let ends = pair.connected(ipv6, 80);
    transfer(&mut pair, ends, &pattern(200_000, 5));
    assert_eq!(nudges(&mut pair), 0);
    pair.cable.impair(wire(50));
    let took = transfer(&mut pair, ends, &pattern(4_000_000, 9));
    std::println!("large segments: {took}");
    assert!(took < Duration::from_secs(20), "{took}");
}
