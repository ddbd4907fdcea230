//! Whatever arrives, the stack stays up: no panic, no endless loop, every frame
//! accounted for.

use guest_stack::context::Context;
use guest_stack::registry::{Datagram, Verdict};
use guest_stack::tcp::options::TcpOptions;
use guest_stack::tcp::stream::Shutdown;
use guest_stack::time::Duration;
use proptest::prelude::*;

use crate::common::{Bench, MAC, config, net, v6};
use crate::frames::{Segment, fragment, ping_frame, raw_frame, tcps, udp_frame};
use crate::paths::{report, report6};

/// A stack with a little of everything in it, and a connection.
fn busy() -> (Bench, Segment, u32) {
    let mut net = net(0);
    net.slaac = true;
    net.dhcp = true;
    let mut bench = Bench::with(config(3), net);
    bench.introduce_peer();
    let options = TcpOptions {
        rx_buffer_bytes: 300_000,
        ..TcpOptions::default()
    };
    bench.stack.sockets().tcp_listen(80, 8, options).unwrap();
    bench.stack.sockets().udp_bind(7).unwrap();
    let syn = Segment::syn(4000, 1000);
    let answers = tcps(&bench.exchange(&syn.frame()));
    let ack = answers[0].seq + 1;
    bench.exchange(&syn.then(".", 1001, ack, b"").frame());
    (bench, syn, ack)
}

/// Fixes the checksums that are where etherparse put them, so that changes in
/// the headers get past them.
fn mend(frame: &mut [u8]) {
    if frame.len() < 34 || frame[12..14] != [8, 0] || frame[14] != 0x45 {
        return;
    }
    frame[24..26].copy_from_slice(&[0, 0]);
    let sum = pnet_packet::util::checksum(&frame[14..34], usize::MAX);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let at = match frame[23] {
        6 => 16,
        17 => 6,
        1 => 2,
        _ => return,
    };
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    if total < 20 + at + 2 || frame.len() < 14 + total {
        return;
    }
    frame[34 + at..36 + at].copy_from_slice(&[0, 0]);
    let len = (total - 20) as u32;
    let pseudo: Vec<u8> = if frame[23] == 1 {
        Vec::new()
    } else {
        let mut pseudo = frame[26..34].to_vec();
        pseudo.extend_from_slice(&[0, frame[23]]);
        pseudo.extend_from_slice(&(len as u16).to_be_bytes());
        pseudo
    };
    let mut all = pseudo;
    all.extend_from_slice(&frame[34..14 + total]);
    let sum = pnet_packet::util::checksum(&all, usize::MAX);
    frame[34 + at..36 + at].copy_from_slice(&sum.to_be_bytes());
}

fn mend_icmpv6(frame: &mut [u8]) {
    if frame.len() >= 58 && frame[12..14] == [0x86, 0xdd] && frame[20] == 58 {
        let len = usize::from(u16::from_be_bytes([frame[18], frame[19]]));
        if len >= 4 && frame.len() >= 54 + len {
            let sum = crate::frames::icmpv6_checksum(&frame[..54 + len]);
            frame[56..58].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

fn survives(bench: &mut Bench) {
    bench.settle();
    bench.pass(Duration::from_secs(30));
    let counters = bench.stack.sockets().counters();
    assert_eq!(counters.rx_frames, counters.rx_ledger());
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_survived(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..30)
    ) {
        let (mut bench, ..) = busy();
        for mut frame in frames {
            if frame.len() >= 14 && frame[0] & 1 == 0 {
                frame[..6].copy_from_slice(&crate::common::MAC[0]);
            }
            bench.peer.inject(&frame);
        }
        survives(&mut bench);
    }

    #[test]
    fn good_frames_with_bytes_changed_are_survived(
        changes in proptest::collection::vec(
            (0..11_usize, proptest::collection::vec((12..120_usize, any::<u8>()), 0..4), 0..40_usize),
            1..40,
        )
    ) {
        let (mut bench, syn, ack) = busy();
        let pass = |_: &mut Context<'_>, _: &Datagram, _: &[u8]| Verdict::Pass;
        bench.stack.sockets().on_udp(7, pass).unwrap();
        let solicit = {
            let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
            message.extend_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            message.extend_from_slice(&[1, 1, 2, 0, 0, 0, 0, 2]);
            let mut frame = raw_frame(true, 58, &message);
            frame[21] = 255;
            frame
        };
        let advertise = {
            let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
            message.extend_from_slice(&[3, 4, 64, 0xc0, 0, 0, 7, 8, 0, 0, 7, 8, 0, 0, 0, 0]);
            message.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let mut frame = raw_frame(true, 58, &message);
            frame[21] = 255;
            frame[22..38].copy_from_slice(&[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
            frame
        };
        // A router's word about a datagram of ours, whose addresses are the other way round.
        let mut ours = [false, true].map(|ipv6| udp_frame(ipv6, 7, 9, &[1; 1400]));
        ours[0][26..34].rotate_left(4);
        ours[1][22..54].rotate_left(16);
        let too_long = [report(1300, &ours[0]), report6(1300, &ours[1])];
        for (kind, bytes, cut) in changes {
            let mut frame = match kind {
                9 | 10 => too_long[kind - 9].clone(),
                0 => syn.then("P", 1001, ack, b"some data").frame(),
                1 => syn.frame(),
                2 => udp_frame(false, 67, 68, &[2; 300]),
                3 => udp_frame(true, 9, 7, b"data"),
                4 => ping_frame(false, 1, &[1; 40]),
                5 => ping_frame(true, 1, &[1; 40]),
                6 => solicit.clone(),
                7 => advertise.clone(),
                _ => fragment(&udp_frame(false, 9, 7, &[3; 2000]), 1480, 1).remove(cut % 2),
            };
            for (at, byte) in bytes {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            if cut % 5 == 0 {
                frame.truncate(frame.len() - cut.min(frame.len()));
            }
            mend(&mut frame);
            mend_icmpv6(&mut frame);
            bench.peer.inject(&frame);
        }
        survives(&mut bench);
    }

    #[test]
    fn segments_with_any_numbers_are_survived_by_a_connection(
        segments in proptest::collection::vec(
            (
                prop_oneof![Just("P"), Just("."), Just("F"), Just("PF"), Just("R"), Just("S"), Just("SP")],
                prop_oneof![-5..5_i64, -70_000..70_000_i64, any::<i32>().prop_map(i64::from)],
                prop_oneof![-5..5_i64, -70_000..70_000_i64, any::<i32>().prop_map(i64::from)],
                0..1460_usize,
                any::<bool>(),
            ),
            1..60,
        ),
        words in 0..3000_usize,
    ) {
        let (mut bench, syn, ack) = busy();
        let listener = bench.stack.sockets().tcp_listen(81, 4, TcpOptions::default());
        prop_assert!(listener.is_ok());
        let syn2 = Segment { dst_port: 81, ..syn.clone() };
        let answers = tcps(&bench.exchange(&syn2.frame()));
        let ack2 = answers[0].seq + 1;
        bench.exchange(&syn2.then(".", 1001, ack2, b"").frame());
        let (stream, _) = bench.stack.sockets().tcp_accept(listener.unwrap()).unwrap();
        let _ = bench.stack.sockets().tcp_send(stream, &vec![1; words]);
        for (flags, seq, number, len, second) in segments {
            let (syn, ack) = if second { (&syn2, ack2) } else { (&syn, ack) };
            let seq = (1001 + seq) as u32;
            let segment = syn.then(flags, seq, (i64::from(ack) + number) as u32, &vec![7; len]);
            bench.peer.inject(&segment.frame());
        }
        survives(&mut bench);
        let _ = bench.stack.sockets().tcp_recv(stream, &mut [0; 100]);
        survives(&mut bench);
    }
}

/// What a peer has received of a stream that begins at `first`.
struct Receiver {
    first: u32,
    bytes: Vec<Option<u8>>,
}

impl Receiver {
    fn take(&mut self, frames: &[Vec<u8>]) {
        for segment in tcps(frames) {
            let at = segment.seq.wrapping_sub(self.first) as usize;
            for (place, byte) in self.bytes.iter_mut().skip(at).zip(&segment.data) {
                *place = Some(*byte);
            }
        }
    }

    /// What it may acknowledge.
    fn ack(&self) -> u32 {
        let had = self.bytes.iter().take_while(|byte| byte.is_some()).count();
        self.first.wrapping_add(had as u32)
    }
}

proptest! {
    // What fails takes long.
    #![proptest_config(ProptestConfig {
        cases: 100,
        max_shrink_iters: 100,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_a_peer_claims_to_have_it_is_sent_all_in_the_end(
        claims in proptest::collection::vec(
            (
                proptest::collection::vec((0..70_000_u32, 1..9000_u32), 0..4),
                any::<bool>(),
                0..300_u64,
            ),
            1..40,
        ),
        len in 1..65_000_usize,
        closes in any::<bool>(),
    ) {
        let (mut bench, syn, _) = busy();
        let listener = bench.stack.sockets().tcp_listen(81, 4, TcpOptions::default()).unwrap();
        let syn = Segment { dst_port: 81, ..syn };
        let first = tcps(&bench.exchange(&syn.frame()))[0].seq + 1;
        bench.exchange(&syn.then(".", 1001, first, b"").frame());
        let (stream, _) = bench.stack.sockets().tcp_accept(listener).unwrap();
        let data = crate::common::pattern(len, 3);
        prop_assert_eq!(bench.stack.sockets().tcp_send(stream, &data), Ok(len));
        if closes {
            bench.stack.sockets().tcp_shutdown(stream, Shutdown::Write).unwrap();
        }
        let mut receiver = Receiver { first, bytes: vec![None; len] };
        for (ranges, hears, pause) in claims {
            let frames = bench.pass(Duration::from_millis(pause));
            if hears {
                receiver.take(&frames);
            }
            let ack = receiver.ack();
            let has = ranges.iter().map(|(at, len)| (ack.wrapping_add(*at), ack.wrapping_add(at + len)));
            let claim = Segment { has: has.collect(), ..syn.then(".", 1001, ack, b"") };
            bench.peer.inject(&claim.frame());
        }
        // From here on it is honest, and hears all.
        let start = bench.now();
        while receiver.ack() != first.wrapping_add(len as u32) {
            let frames = bench.pass(Duration::from_millis(10));
            receiver.take(&frames);
            bench.peer.inject(&syn.then(".", 1001, receiver.ack(), b"").frame());
            prop_assert!(bench.now() - start < Duration::from_secs(300), "{} of {len}", receiver.ack() - first);
        }
        let received: Vec<u8> = receiver.bytes.iter().map(|byte| byte.unwrap()).collect();
        prop_assert!(received == data, "not what was sent");
        survives(&mut bench);
    }
}

#[test]
fn a_peer_that_sends_beyond_the_first_window_is_held_to_the_buffer() {
    // The window of a SYN is not scaled. A peer that scales it nevertheless may
    // send at once what lies far beyond the buffer.
    for offset in [100, 262_000, 300_000, 400_000, 500_000] {
        let (mut bench, syn, ack) = busy();
        let far = syn.then("P", 1001 + offset, ack, &[5; 1460]);
        bench.exchange(&far.frame());
        let near = syn.then("P", 1001, ack, &[5; 1460]);
        let acks = tcps(&bench.exchange(&near.frame()));
        let expected = if offset == 100 {
            1001 + 1560
        } else {
            1001 + 1460
        };
        assert_eq!(acks.last().unwrap().ack, expected);
        survives(&mut bench);
    }
}

#[test]
fn a_frame_that_claims_to_come_from_a_group_is_not_answered() {
    let mut bench = Bench::new();
    let options = TcpOptions::default();
    bench.stack.sockets().tcp_listen(80, 4, options).unwrap();
    let mut frame = Segment::syn(4000, 1).frame();
    frame[6] |= 1;
    assert!(bench.exchange(&frame).is_empty());
    let counters = bench.stack.sockets().counters();
    assert_eq!(counters.rx_malformed, 1);
}

#[test]
fn what_is_for_others_is_not_answered_in_their_name() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let ethernet = || etherparse::PacketBuilder::ethernet2(MAC[1], MAC[0]);
    let mut frames = Vec::new();
    for last in [1, 99] {
        let mut v4 = Vec::new();
        ethernet()
            .ipv4([10, 0, 0, 2], [10, 0, 0, last], 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut v4, b"hello")
            .unwrap();
        let octets = |host: u16| match v6(host) {
            std::net::IpAddr::V6(address) => address.octets(),
            std::net::IpAddr::V4(_) => unreachable!(),
        };
        let mut frame = Vec::new();
        ethernet()
            .ipv6(octets(2), octets(last.into()), 64)
            .icmpv6_echo_request(1, 1)
            .write(&mut frame, b"hello")
            .unwrap();
        frames.push([v4, frame]);
    }
    let [ours, others] = frames.try_into().unwrap();
    assert_eq!(bench.exchange(&ours[0]).len(), 1);
    // Or it asks who that is, to whom it will answer.
    assert_eq!(bench.exchange(&ours[1]).len(), 1);
    for frame in &others {
        assert_eq!(bench.exchange(frame), Vec::<Vec<u8>>::new());
    }
    assert_eq!(bench.stack.sockets().counters().rx_bad_address, 2);
}
