//! Routers that say that a segment was too long for them (RFC 1191), and others who say so.

use etherparse::{Icmpv4Type, PacketBuilder, icmpv4};
use guest_stack::tcp::TcpStreamId;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::time::Duration;
use shm_link::offload::{GSO_TCPV4, Offloads};

use crate::common::{Bench, config, net, pattern};
use crate::frames::{FIN, SeenTcp, Segment, tcps};

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
fn report(mtu: u16, sent: &[u8]) -> Vec<u8> {
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
