//! Segments forged by somebody who cannot see the connection (RFC 5961).

use guest_stack::error::StreamError;
use guest_stack::tcp::TcpStreamId;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::time::Duration;

use crate::common::{Bench, host};
use crate::frames::{Segment, tcps};

/// Connections from the bare end and to it, and the numbers that follow.
fn connections() -> [(Bench, TcpStreamId, Segment, u32, u32); 2] {
    let mut accepting = Bench::new();
    accepting.introduce_peer();
    let options = TcpOptions::default();
    let listener = accepting
        .stack
        .sockets()
        .tcp_listen(80, 8, options)
        .unwrap();
    let syn = Segment::syn(4000, 0xffff_ff00);
    let answers = tcps(&accepting.exchange(&syn.frame()));
    let ack = answers[0].seq.wrapping_add(1);
    let rcv_nxt = syn.seq.wrapping_add(1);
    accepting.exchange(&syn.then(".", rcv_nxt, ack, b"").frame());
    let (accepted, _) = accepting.stack.sockets().tcp_accept(listener).unwrap();

    let mut connecting = Bench::new();
    connecting.introduce_peer();
    let now = connecting.now();
    let remote = host(1, false, 80);
    let connected = connecting
        .stack
        .sockets()
        .tcp_connect(now, remote, options)
        .unwrap();
    connecting.settle();
    let seen = tcps(&connecting.peer.drain()).pop().unwrap();
    let theirs = Segment {
        src_port: 80,
        dst_port: seen.src_port,
        ..Segment::syn(80, 7000)
    };
    let ours = seen.seq.wrapping_add(1);
    connecting.exchange(&theirs.then("S", 7000, ours, b"").frame());
    assert!(connecting.stack.sockets().tcp_connected(connected).is_ok());
    [
        (accepting, accepted, syn, rcv_nxt, ack),
        (connecting, connected, theirs, 7001, ours),
    ]
}

#[test]
fn a_reset_that_is_not_exactly_in_sequence_is_challenged_and_not_believed() {
    for (mut bench, stream, segment, rcv_nxt, ack) in connections() {
        for ahead in [1, 2, 1000, 20_000] {
            let forged = segment.then("R", rcv_nxt.wrapping_add(ahead), ack, b"");
            let answers = tcps(&bench.exchange(&forged.frame()));
            assert_eq!(answers.len(), 1, "{ahead}: {answers:?}");
            assert_eq!(
                (answers[0].ack, answers[0].flags),
                (rcv_nxt, 0x10),
                "{ahead}"
            );
            bench.pass(Duration::from_millis(1100));
        }
        // Outside the window not even an answer.
        for away in [0xffff_ffff, 0x4000_0000u32] {
            let forged = segment.then("R", rcv_nxt.wrapping_add(away), ack, b"");
            assert_eq!(tcps(&bench.exchange(&forged.frame())), []);
        }
        // The connection is as it was.
        let data = segment.then("P", rcv_nxt, ack, b"still here");
        bench.exchange(&data.frame());
        let mut buf = [0; 20];
        assert_eq!(bench.stack.sockets().tcp_recv(stream, &mut buf), Ok(10));
        // The real one, after the data, is believed.
        let real = segment.then("R", rcv_nxt.wrapping_add(10), ack, b"");
        assert_eq!(tcps(&bench.exchange(&real.frame())), []);
        let received = bench.stack.sockets().tcp_recv(stream, &mut buf);
        assert_eq!(received, Err(StreamError::ConnectionReset));
        assert_eq!(bench.stack.sockets().counters().tcp_challenges, 4);
    }
}

#[test]
fn a_peer_that_forgot_the_connection_resets_it_by_answering_the_challenge() {
    for (mut bench, stream, segment, rcv_nxt, ack) in connections() {
        // It was restarted, and begins anew from the same port, inside the window.
        let again = Segment {
            seq: rcv_nxt.wrapping_add(500),
            ack: None,
            flags: "S",
            data: Vec::new(),
            ..segment.clone()
        };
        let answers = tcps(&bench.exchange(&again.frame()));
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!((answers[0].ack, answers[0].flags), (rcv_nxt, 0x10));
        let reset = segment.then("R", answers[0].ack, ack, b"");
        bench.exchange(&reset.frame());
        let received = bench.stack.sockets().tcp_recv(stream, &mut [0; 9]);
        assert_eq!(received, Err(StreamError::ConnectionReset));
    }
}

#[test]
fn a_flood_of_forged_resets_is_answered_once_a_second() {
    for (mut bench, stream, segment, rcv_nxt, ack) in connections() {
        let mut answers = 0;
        for ahead in 1..5000 {
            let forged = segment.then("R", rcv_nxt.wrapping_add(ahead), ack, b"");
            answers += tcps(&bench.exchange(&forged.frame())).len();
        }
        assert_eq!(answers, 1);
        let sent = bench.stack.sockets().tcp_send(stream, b"alive");
        assert_eq!(sent, Ok(5));
        let frames = bench.pass(Duration::from_millis(10));
        assert_eq!(tcps(&frames)[0].data, b"alive");
    }
}

#[test]
fn data_with_an_acknowledgement_of_nothing_that_is_in_flight_is_not_taken() {
    for (mut bench, stream, segment, rcv_nxt, ack) in connections() {
        for wrong in [1u32, 70_000, 0x7fff_0000, 0x8000_0000, 0xffff_ffff] {
            let forged = segment.then("P", rcv_nxt, ack.wrapping_add(wrong), b"injected");
            bench.exchange(&forged.frame());
            let received = bench.stack.sockets().tcp_recv(stream, &mut [0; 9]);
            assert_eq!(received, Err(StreamError::WouldBlock), "{wrong}");
        }
        let real = segment.then("P", rcv_nxt, ack, b"genuine");
        bench.exchange(&real.frame());
        let mut buf = [0; 9];
        assert_eq!(bench.stack.sockets().tcp_recv(stream, &mut buf), Ok(7));
        assert_eq!(&buf[..7], b"genuine");
    }
}
