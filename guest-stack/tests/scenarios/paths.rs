//! Routers that say that a segment was too long for them (RFC 1191), and others who say so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4};
use guest_stack::context::Context;
use guest_stack::error::{SendError, UdpError};
use guest_stack::registry::{Datagram, Verdict};
use guest_stack::tcp::TcpStreamId;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::time::Duration;
use guest_stack::udp::UdpId;
use shm_link::offload::{GSO_TCPV4, Offloads};

use crate::common::{Bench, config, net, pattern};
use crate::frames::{FIN, SeenTcp, Segment, neighbour_advertisement, tcps, udp_frame};

/// A connection to the stack's port 80, with the segment that began it and what it is to
/// acknowledge.
fn connection(bench: &mut Bench) -> (TcpStreamId, Segment, u32) {
    bench.introduce_peer();
    let options = TcpOptions::default();
    let listener = bench.stack.sockets().tcp_listen(80, 8, options).unwrap();
    let syn = Segment::syn(4000, 100);
    let ack = tcps(&bench.exchange(&syn.frame()))[0].seq.wrapping_add(1);
    bench.exchange(&syn.then(".", 101, ack, b"").frame());
    let (stream, _) = bench.stack.sockets().tcp_accept(listener).unwrap();
    (stream, syn, ack)
}

/// What a router says of a frame of the stack.
pub(crate) fn report(mtu: u16, sent: &[u8]) -> Vec<u8> {
    let needed = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
        .icmpv4(Icmpv4Type::DestinationUnreachable(needed))
        .write(&mut frame, &sent[14..42])
        .unwrap();
    frame[6..12].copy_from_slice(&crate::common::MAC[1]);
    frame[..6].copy_from_slice(&crate::common::MAC[0]);
    frame
}

/// Puts together what arrived, and says how long the longest piece was.
fn put_together(segments: &[SeenTcp], first: u32, into: &mut Vec<u8>) -> usize {
    let mut longest = 0;
    for segment in segments {
        let at = segment.seq.wrapping_sub(first) as usize;
        let end = at + segment.data.len();
        into.resize(into.len().max(end), 0);
        into[at..end].copy_from_slice(&segment.data);
        longest = longest.max(segment.data.len());
    }
    longest
}

#[test]
fn what_a_router_could_not_pass_on_is_sent_again_in_pieces_that_fit() {
    let mut bench = Bench::new();
    let (stream, segment, first) = connection(&mut bench);
    let sent = pattern(1460 * 10 + 33, 3);
    let taken = bench.stack.sockets().tcp_send(stream, &sent).unwrap();
    assert_eq!(taken, sent.len());
    bench.stack.sockets().tcp_close(stream);
    bench.settle();
    let frames = bench.peer.drain();
    assert_eq!(tcps(&frames)[0].data.len(), 1460);
    // None of those arrived; one report tells the whole story.
    let answers = bench.exchange(&report(1000, &frames[0]));
    let mut segments = tcps(&answers);
    assert_eq!(segments.len(), 2, "the first hole, in two pieces");
    let (mut arrived, mut acked, mut fin) = (Vec::new(), 0, false);
    for round in 0.. {
        assert!(round < 100, "the transfer does not come to an end");
        assert!(put_together(&segments, first, &mut arrived) <= 960);
        fin |= segments.iter().any(|seen| seen.flags & FIN != 0);
        if arrived.len() == sent.len() && fin {
            break;
        }
        // The last of each piece may be behind a hole; all that was sent in order is here.
        acked = acked.max(arrived.len());
        let ack = segment.then(".", 101, first.wrapping_add(acked as u32), b"");
        let mut frames = bench.exchange(&ack.frame());
        if frames.is_empty() {
            frames = bench.pass(Duration::from_secs(2));
        }
        segments = tcps(&frames);
    }
    assert_eq!(arrived, sent);
    assert_eq!(bench.stack.sockets().counters().tcp_paths_narrowed, 1);
}

#[test]
fn a_report_about_what_is_not_in_flight_or_not_ours_is_not_believed() {
    let mut bench = Bench::new();
    let (stream, segment, first) = connection(&mut bench);
    let sent = pattern(1460 * 2, 3);
    bench.stack.sockets().tcp_send(stream, &sent).unwrap();
    bench.settle();
    let frames = bench.peer.drain();
    let forged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut quoted = frames[0].clone();
        change(&mut quoted);
        report(600, &quoted)
    };
    let sequence =
        |seq: u32| move |frame: &mut Vec<u8>| frame[38..42].copy_from_slice(&seq.to_be_bytes());
    let lies: [Vec<u8>; 6] = [
        forged(&sequence(first.wrapping_sub(1))),
        forged(&sequence(first.wrapping_add(2920))),
        forged(&sequence(first ^ 0x8000_0000)),
        forged(&|frame| frame[35] ^= 1),
        forged(&|frame| frame[33] ^= 1),
        // It could pass that on.
        report(1500, &frames[0]),
    ];
    for (n, lie) in lies.iter().enumerate() {
        assert_eq!(tcps(&bench.exchange(lie)), [], "{n}");
    }
    // All is acknowledged: nothing is in flight.
    let ack = segment.then(".", 101, first.wrapping_add(2920), b"");
    bench.exchange(&ack.frame());
    assert_eq!(tcps(&bench.exchange(&report(600, &frames[0]))), []);
    bench.stack.sockets().tcp_send(stream, &sent).unwrap();
    bench.settle();
    assert_eq!(tcps(&bench.peer.drain())[0].data.len(), 1460);
    assert_eq!(bench.stack.sockets().counters().tcp_paths_narrowed, 0);
}

#[test]
fn with_segmentation_offload_the_host_is_told_to_cut_shorter_and_the_path_is_tried_again() {
    let mut with_offloads = net(0);
    with_offloads.tx_offloads = Offloads::CHECKSUM.union(Offloads::SEGMENTATION);
    let mut bench = Bench::with(config(7), with_offloads);
    bench.introduce_peer();
    let options = TcpOptions::default();
    let listener = bench.stack.sockets().tcp_listen(80, 8, options).unwrap();
    let syn = Segment::syn(4000, 100);
    bench.cable.log(0);
    bench.exchange(&syn.frame());
    let answer = bench.cable.take_log(0).pop().unwrap().1;
    let first = u32::from_be_bytes(answer[38..42].try_into().unwrap()).wrapping_add(1);
    bench.exchange(&syn.then(".", 101, first, b"").frame());
    let (stream, _) = bench.stack.sockets().tcp_accept(listener).unwrap();
    let mut acked = first;
    // Sends some, says how it is to be cut, and acknowledges it.
    let mut round = |bench: &mut Bench, narrow: Option<u16>| {
        let sent = pattern(20_000, 3);
        bench.stack.sockets().tcp_send(stream, &sent).unwrap();
        bench.settle();
        bench.peer.drain();
        let mut frames = bench.cable.take_log(0);
        if let Some(mtu) = narrow {
            bench.exchange(&report(mtu, &frames[0].1));
            frames = bench.cable.take_log(0);
        }
        acked = acked.wrapping_add(20_000);
        bench.exchange(&syn.then(".", 101, acked, b"").frame());
        let (offload, frame) = frames.remove(0);
        assert_eq!(
            offload.check(frame.len(), Offloads::CHECKSUM.union(Offloads::TSO4)),
            Ok(())
        );
        (offload.gso_type, offload.hdr_len, offload.gso_size)
    };
    assert_eq!(round(&mut bench, None), (GSO_TCPV4, 54, 1460));
    assert_eq!(round(&mut bench, Some(1300)), (GSO_TCPV4, 54, 1260));
    assert_eq!(round(&mut bench, None), (GSO_TCPV4, 54, 1260));
    // After ten minutes the path may be another.
    bench.pass(Duration::from_secs(601));
    bench.introduce_peer();
    bench.cable.take_log(0);
    assert_eq!(round(&mut bench, None), (GSO_TCPV4, 54, 1460));
}

/// What a router says of an IPv6 packet of the stack.
pub(crate) fn report6(mtu: u32, sent: &[u8]) -> Vec<u8> {
    let ours = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let router = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(crate::common::MAC[1], crate::common::MAC[0])
        .ipv6(router, ours, 64)
        .icmpv6(Icmpv6Type::PacketTooBig { mtu })
        .write(&mut frame, &sent[14..200])
        .unwrap();
    frame
}

/// Sends a datagram of so many bytes from port 7 and gives its frames.
fn datagram(bench: &mut Bench, socket: UdpId, len: usize, to: &str) -> Vec<Vec<u8>> {
    let (payload, to) = (pattern(len, 3), to.parse().unwrap());
    let sent = bench.stack.sockets().udp_send_to(socket, &payload, to);
    assert_eq!(sent, Ok(()), "{len} bytes to {to}");
    bench.settle();
    bench.peer.drain()
}

#[test]
fn datagrams_over_a_narrow_path_may_be_cut_by_its_routers() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    let to = "10.0.0.2:9";
    let first = datagram(&mut bench, socket, 1472, to);
    assert_eq!(first[0][20..22], [0x40, 0], "no router may cut it");
    bench.exchange(&report(1300, &first[0]));
    assert_eq!(bench.stack.sockets().counters().udp_paths_narrowed, 1);
    let mut names = Vec::new();
    for _ in 0..3 {
        let again = datagram(&mut bench, socket, 1472, to);
        assert_eq!((again.len(), &again[0][20..22]), (1, &[0, 0][..]));
        let header = smoltcp::wire::Ipv4Packet::new_unchecked(&again[0][14..]);
        assert!(header.verify_checksum());
        names.push(header.ident());
        assert_eq!(again[0][34..], first[0][34..]);
    }
    names.dedup();
    assert_eq!(names.len(), 3, "fragments of two would be taken for one");
    // What fits, and what goes elsewhere, is as before.
    assert_eq!(datagram(&mut bench, socket, 1272, to)[0][20..22], [0x40, 0]);
    // The path is tried anew after ten minutes.
    bench.pass(Duration::from_secs(601));
    bench.introduce_peer();
    assert_eq!(datagram(&mut bench, socket, 1472, to)[0][20..22], [0x40, 0]);
}

#[test]
fn datagrams_over_ipv6_are_refused_if_the_path_does_not_carry_them() {
    let mut bench = Bench::new();
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    let to = "[fd00::2]:9";
    datagram(&mut bench, socket, 1, to);
    bench.exchange(&neighbour_advertisement());
    let sent = datagram(&mut bench, socket, 1452, to);
    let peer = "fd00::2".parse().unwrap();
    assert_eq!(bench.stack.sockets().udp_longest_payload(peer), 1452);
    bench.exchange(&report6(1400, &sent[0]));
    assert_eq!(bench.stack.sockets().udp_longest_payload(peer), 1352);
    let sockets = bench.stack.sockets();
    let too_long = sockets.udp_send_to(socket, &[0; 1353], to.parse().unwrap());
    assert_eq!(too_long, Err(UdpError::MessageTooLong));
    assert_eq!(datagram(&mut bench, socket, 1352, to).len(), 1);
    let elsewhere = "fd00::3".parse().unwrap();
    assert_eq!(bench.stack.sockets().udp_longest_payload(elsewhere), 1452);
}

#[test]
fn a_report_about_a_datagram_that_nobody_sent_is_not_believed() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    let sent = datagram(&mut bench, socket, 1472, "10.0.0.2:9");
    let lie = |at: usize, value: u8| {
        let mut quoted = sent[0].clone();
        quoted[at] = value;
        report(600, &quoted)
    };
    let lies = [
        // Another port of ours, another address of ours, another peer.
        lie(35, 8),
        lie(29, 9),
        lie(33, 3),
        report(1500, &sent[0]),
    ];
    for lie in &lies {
        bench.exchange(lie);
    }
    assert_eq!(bench.stack.sockets().counters().udp_paths_narrowed, 0);
    // A connection to the same peer is not narrowed by what is said of datagrams.
    bench.exchange(&report(600, &sent[0]));
    assert_eq!(bench.stack.sockets().counters().udp_paths_narrowed, 1);
    let (stream, ..) = connection(&mut bench);
    bench
        .stack
        .sockets()
        .tcp_send(stream, &pattern(1460, 3))
        .unwrap();
    bench.settle();
    assert_eq!(tcps(&bench.peer.drain())[0].data.len(), 1460);
}

#[test]
fn a_handlers_answers_over_a_narrow_path_may_be_cut_or_are_refused() {
    for ipv6 in [false, true] {
        let mut bench = Bench::new();
        let refused = Arc::new(AtomicU32::new(0));
        let count = refused.clone();
        let echo = move |context: &mut Context<'_>, datagram: &Datagram, payload: &[u8]| {
            match context.reply_datagram(datagram, payload) {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error, SendError::Length);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            Verdict::Handled
        };
        bench.stack.sockets().on_udp(7, echo).unwrap();
        let question = udp_frame(ipv6, 9, 7, &pattern(1400, 3));
        let answer = bench.exchange(&question);
        match ipv6 {
            false => bench.exchange(&report(1300, &answer[0])),
            true => bench.exchange(&report6(1300, &answer[0])),
        };
        let again = bench.exchange(&question);
        assert_eq!(bench.stack.sockets().counters().udp_paths_narrowed, 1);
        match ipv6 {
            false => assert_eq!(again[0][20..22], [0, 0]),
            true => assert_eq!(again, Vec::<Vec<u8>>::new()),
        }
        assert_eq!(refused.load(Ordering::Relaxed), u32::from(ipv6));
        let short = udp_frame(ipv6, 9, 7, b"short");
        assert_eq!(bench.exchange(&short).len(), 1);
    }
}
