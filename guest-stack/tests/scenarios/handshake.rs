//! Listening, backlogs and handshakes, both sides of them.

use std::collections::HashSet;

use guest_stack::config::{Limits, StackConfig};
use guest_stack::error::{BindError, StreamError};
use guest_stack::tcp::TcpListenerId;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::time::Duration;

use crate::common::{Bench, Pair, config, host, net};
use crate::frames::{ACK, RST, SYN, SeenTcp, Segment, tcps};

fn listening(backlog: usize) -> (Bench, TcpListenerId) {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let options = TcpOptions::default();
    let listener = bench
        .stack
        .sockets()
        .tcp_listen(80, backlog, options)
        .unwrap();
    (bench, listener)
}

fn segments(bench: &mut Bench, segment: &Segment) -> Vec<SeenTcp> {
    tcps(&bench.exchange(&segment.frame()))
}

/// Sends a SYN and gives it with the SYN|ACK.
fn half_open(bench: &mut Bench, port: u16) -> (Segment, SeenTcp) {
    let syn = Segment::syn(port, 1000);
    let answers = segments(bench, &syn);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].flags, SYN | ACK);
    (syn, answers[0].clone())
}

/// Sends the ACK that completes a handshake.
fn complete(bench: &mut Bench, port: u16) -> Vec<SeenTcp> {
    let (syn, answer) = half_open(bench, port);
    segments(bench, &syn.then(".", 1001, answer.seq + 1, b""))
}

#[test]
fn a_thousand_simultaneous_connects_to_one_listener_see_no_reset() {
    let mut pair = Pair::new(1);
    pair.cable.log(1);
    let options = TcpOptions {
        rx_buffer_bytes: 4096,
        tx_buffer_bytes: 4096,
        ..TcpOptions::default()
    };
    let listener = pair.sockets(1).tcp_listen(80, 1000, options).unwrap();
    let now = pair.now();
    let remote = host(1, false, 80);
    let clients: Vec<_> = (0..1000)
        .map(|_| pair.sockets(0).tcp_connect(now, remote, options).unwrap())
        .collect();
    let mut accepted = 0;
    pair.run_until(|pair| {
        while pair.sockets(1).tcp_accept(listener).is_ok() {
            accepted += 1;
        }
        accepted == 1000
    });
    let mut ports = HashSet::new();
    for client in clients {
        assert_eq!(pair.sockets(0).tcp_connected(client), Ok(()));
        ports.insert(pair.sockets(0).tcp_local_addr(client).unwrap().port());
    }
    assert_eq!(ports.len(), 1000, "no port was used twice");
    let sent: Vec<_> = pair.cable.take_log(1).into_iter().map(|(_, f)| f).collect();
    let resets = tcps(&sent)
        .iter()
        .filter(|tcp| tcp.flags & RST != 0)
        .count();
    assert_eq!(resets, 0);
    assert!(pair.now().secs() < 3, "no SYN had to be repeated twice");
}

#[test]
fn a_thousand_syns_before_any_is_answered_are_all_answered_and_accepted() {
    let (mut bench, listener) = listening(1000);
    for port in 0..1000 {
        bench.peer.inject(&Segment::syn(2000 + port, 7).frame());
    }
    bench.settle();
    let answers = tcps(&bench.peer.drain());
    assert_eq!(answers.len(), 1000);
    assert!(answers.iter().all(|tcp| tcp.flags == SYN | ACK));
    for answer in &answers {
        let ack = Segment::syn(answer.dst_port, 7).then(".", 8, answer.seq + 1, b"");
        bench.peer.inject(&ack.frame());
    }
    bench.settle();
    assert_eq!(tcps(&bench.peer.drain()), []);
    let sockets = bench.stack.sockets();
    let accepted = (0..).take_while(|_| sockets.tcp_accept(listener).is_ok());
    assert_eq!(accepted.count(), 1000);
}

#[test]
fn the_syn_ack_says_what_was_negotiated() {
    let (mut bench, _) = listening(4);
    let (_, answer) = half_open(&mut bench, 4000);
    assert_eq!(answer.ack, 1001);
    assert_eq!(answer.window, 65_535);
    // MSS 1460, window scale 0, SACK permitted, and padding.
    assert_eq!(
        &answer.options[..4],
        &[2, 4, 1460_u16.to_be_bytes()[0], 1460_u16.to_be_bytes()[1]]
    );
    assert!(answer.options.windows(2).any(|pair| pair == [4, 2]));
    assert!(answer.options.windows(3).any(|triple| triple == [3, 3, 0]));
}

#[test]
fn initial_sequence_numbers_of_different_connections_are_unrelated() {
    let (mut bench, _) = listening(100);
    let numbers: HashSet<u32> = (0..100)
        .map(|port| half_open(&mut bench, 4000 + port).1.seq >> 16)
        .collect();
    assert!(numbers.len() > 90, "{} different", numbers.len());
}

#[test]
fn a_full_backlog_is_silent_and_takes_connections_again_when_there_is_room() {
    let (mut bench, listener) = listening(2);
    assert_eq!(complete(&mut bench, 4000), []);
    assert_eq!(complete(&mut bench, 4001), []);
    let late = Segment::syn(4002, 1000);
    assert_eq!(segments(&mut bench, &late), []);
    assert_eq!(bench.stack.sockets().counters().rx_backlog_full, 1);
    bench.stack.sockets().tcp_accept(listener).unwrap();
    assert_eq!(segments(&mut bench, &late)[0].flags, SYN | ACK);
}

/// After so long peers that do not answer are taken for a flood.
const SILENCE: Duration = Duration::from_millis(1100);

#[test]
fn handshakes_under_way_are_bounded_by_the_backlog_too() {
    let (mut bench, _) = listening(2);
    half_open(&mut bench, 4000);
    half_open(&mut bench, 4001);
    // It may be a crowd: who comes later tries again, and finds a place.
    assert_eq!(segments(&mut bench, &Segment::syn(4002, 1000)), []);
    assert_eq!(tcps(&bench.pass(SILENCE)).len(), 2);
    // It is none. Answered, and not kept: nothing is repeated, and nothing expires.
    let (syn, answer) = half_open(&mut bench, 4002);
    assert_eq!(segments(&mut bench, &syn), [answer]);
    assert_eq!(bench.stack.sockets().counters().tcp_cookies_sent, 2);
    // The two that have a record are sent two more answers each.
    assert_eq!(tcps(&bench.pass(Duration::from_secs(60))).len(), 2 * 2);
    assert_eq!(bench.stack.sockets().counters().tcp_half_open_expired, 2);
}

/// What completes a handshake, with data.
fn with_data(syn: &Segment, answer: &SeenTcp) -> Segment {
    syn.then(".", syn.seq + 1, answer.seq + 1, b"hello")
}

#[test]
fn who_brings_a_cookie_back_has_a_connection_even_while_a_flood_goes_on() {
    let (mut bench, listener) = listening(8);
    for port in 0..5000 {
        segments(&mut bench, &Segment::syn(10_000 + port, 1));
        if port == 7 {
            bench.pass(SILENCE);
        }
        if port % 1000 != 500 {
            continue;
        }
        let (syn, answer) = half_open(&mut bench, 4000 + port);
        let answers = segments(&mut bench, &with_data(&syn, &answer));
        assert!(answers.iter().all(|seen| seen.flags & RST == 0));
        let (stream, peer) = bench.stack.sockets().tcp_accept(listener).unwrap();
        assert_eq!(peer.port(), 4000 + port);
        let mut buffer = [0; 10];
        assert_eq!(bench.stack.sockets().tcp_recv(stream, &mut buffer), Ok(5));
        assert_eq!(&buffer[..5], b"hello");
    }
    let counters = bench.stack.sockets().counters();
    assert_eq!(counters.tcp_cookies_taken, 5);
    assert_eq!(counters.tcp_established, 5);
    assert_eq!(counters.tcp_cookies_sent, 5005 - 8);
}

#[test]
fn a_cookie_is_good_for_its_own_handshake_only_and_not_for_ever() {
    let (mut bench, _) = listening(1);
    half_open(&mut bench, 3999);
    bench.pass(SILENCE);
    let (syn, answer) = half_open(&mut bench, 4000);
    // While cookies are about it may come before what brings its own: silence.
    let refused = |bench: &mut Bench, segment: &Segment| {
        assert_eq!(segments(bench, segment), []);
        assert_eq!(bench.stack.sockets().counters().tcp_cookies_taken, 0);
    };
    // Another number, another peer, another beginning.
    refused(&mut bench, &syn.then(".", 1001, answer.seq + 2, b""));
    refused(
        &mut bench,
        &Segment::syn(4001, 1000).then(".", 1001, answer.seq + 1, b""),
    );
    refused(&mut bench, &syn.then(".", 1002, answer.seq + 1, b""));
    bench.pass(Duration::from_secs(129));
    let answers = segments(&mut bench, &with_data(&syn, &answer));
    assert!(matches!(&answers[..], [reset] if reset.flags & RST != 0));
    assert_eq!(bench.stack.sockets().counters().tcp_cookies_taken, 0);
}

#[test]
fn who_loses_the_segment_that_brings_the_cookie_is_not_reset_by_those_behind_it() {
    let (mut bench, listener) = listening(1);
    half_open(&mut bench, 3999);
    bench.pass(SILENCE);
    let (syn, answer) = half_open(&mut bench, 4000);
    let behind = syn.then("P", 1006, answer.seq + 1, b"world");
    assert_eq!(segments(&mut bench, &behind), []);
    let first = segments(&mut bench, &with_data(&syn, &answer));
    assert_eq!(first[0].ack, 1006);
    assert_eq!(segments(&mut bench, &behind)[0].ack, 1011);
    bench.stack.sockets().tcp_accept(listener).unwrap();
}

#[test]
fn who_has_answered_waits_for_room_and_is_not_reset() {
    let (mut bench, listener) = listening(1);
    half_open(&mut bench, 3999);
    bench.pass(SILENCE);
    // Three by cookie, and room for one.
    let peers: Vec<_> = [4000, 4001, 4002]
        .map(|port| half_open(&mut bench, port))
        .into();
    for (syn, answer) in &peers {
        let answers = segments(&mut bench, &with_data(syn, answer));
        assert!(answers.iter().all(|seen| seen.flags & RST == 0));
    }
    // Longer than any cookie lives.
    bench.pass(Duration::from_secs(60));
    for (syn, answer) in &peers {
        let answers = segments(&mut bench, &with_data(syn, answer));
        assert!(
            matches!(&answers[..], [seen] if seen.flags == ACK),
            "{answers:?}"
        );
        let (_, peer) = bench.stack.sockets().tcp_accept(listener).unwrap();
        assert_eq!(peer.port(), syn.src_port);
    }
}

#[test]
fn a_cookie_makes_one_connection_and_not_another_when_that_was_reset() {
    let (mut bench, listener) = listening(1);
    half_open(&mut bench, 3999);
    bench.pass(SILENCE);
    let (syn, cookie) = half_open(&mut bench, 4000);
    segments(&mut bench, &with_data(&syn, &cookie));
    let (stream, _) = bench.stack.sockets().tcp_accept(listener).unwrap();
    // The reset is lost, and the peer sends again what was not acknowledged.
    bench.stack.sockets().tcp_abort(stream);
    bench.settle();
    assert_eq!(tcps(&bench.peer.drain())[0].flags & RST, RST);
    let answers = segments(&mut bench, &with_data(&syn, &cookie));
    assert!(
        matches!(&answers[..], [seen] if seen.flags & RST != 0),
        "{answers:?}"
    );
    assert!(bench.stack.sockets().tcp_accept(listener).is_err());
    let counters = bench.stack.sockets().counters();
    assert_eq!(
        (counters.tcp_cookies_taken, counters.tcp_established),
        (1, 1)
    );
}

#[test]
fn a_syn_that_comes_twice_once_for_a_cookie_and_once_for_a_record_makes_one_connection() {
    let (mut bench, listener) = listening(1);
    let (other, _) = half_open(&mut bench, 3999);
    bench.pass(SILENCE);
    let (syn, cookie) = half_open(&mut bench, 4000);
    // There is a place again, and the network brings the SYN once more.
    segments(&mut bench, &other.then("R", 1001, 0, b""));
    let record = segments(&mut bench, &syn)[0].clone();
    assert_ne!(record.seq, cookie.seq);
    let answers = segments(&mut bench, &with_data(&syn, &cookie));
    assert!(answers.iter().all(|seen| seen.flags & RST == 0));
    bench.stack.sockets().tcp_accept(listener).unwrap();
    assert_eq!(bench.stack.sockets().counters().tcp_established, 1);
    // Nothing is left of the record.
    half_open(&mut bench, 4001);
    assert_eq!(bench.stack.sockets().counters().tcp_cookies_sent, 1);
}

#[test]
fn with_cookies_switched_off_handshakes_beyond_the_backlog_are_not_answered() {
    let config = StackConfig {
        limits: Limits {
            syn_cookies: false,
            ..Limits::default()
        },
        ..config(1)
    };
    let mut bench = Bench::with(config, net(0));
    bench.introduce_peer();
    let options = TcpOptions::default();
    bench.stack.sockets().tcp_listen(80, 1, options).unwrap();
    half_open(&mut bench, 4000);
    assert_eq!(segments(&mut bench, &Segment::syn(4001, 1)), []);
    // A reset of the one makes room.
    let reset = Segment::syn(4000, 0).then("R", 1001, 0, b"");
    assert_eq!(segments(&mut bench, &reset), []);
    assert_eq!(segments(&mut bench, &Segment::syn(4001, 1)).len(), 1);
}

#[test]
fn the_last_ack_of_a_handshake_waits_for_room_and_need_not_come_again() {
    let (mut bench, listener) = listening(2);
    let (first, first_answer) = half_open(&mut bench, 4000);
    let (second, second_answer) = half_open(&mut bench, 4001);
    segments(
        &mut bench,
        &first.then(".", 1001, first_answer.seq + 1, b""),
    );
    // There is room for one handshake more than for one connection.
    let (third, third_answer) = half_open(&mut bench, 4002);
    segments(
        &mut bench,
        &second.then(".", 1001, second_answer.seq + 1, b""),
    );
    let last = third.then(".", 1001, third_answer.seq + 1, b"");
    assert_eq!(segments(&mut bench, &last), []);
    assert_eq!(bench.stack.sockets().counters().rx_backlog_full, 1);
    assert_eq!(bench.stack.sockets().counters().tcp_established, 2);
    // While there is no room the SYN|ACK is repeated.
    let repeated = tcps(&bench.pass(Duration::from_secs(1)));
    assert_eq!(repeated, std::slice::from_ref(&third_answer));
    assert_eq!(segments(&mut bench, &last), []);
    for established in [3, 3, 3] {
        let (stream, _) = bench.stack.sockets().tcp_accept(listener).unwrap();
        bench.settle();
        let counters = bench.stack.sockets().counters();
        assert_eq!(counters.tcp_established, established);
        bench.stack.sockets().tcp_send(stream, b"welcome").unwrap();
    }
    let said = tcps(&bench.pass(Duration::from_millis(1)));
    assert_eq!(said.len(), 3);
    assert!(said.iter().all(|seen| seen.data == b"welcome"));
    assert!(said.iter().any(|seen| seen.dst_port == 4002));
    // What it says itself is taken as well.
    let answers = segments(&mut bench, &with_data(&third, &third_answer));
    assert!(matches!(&answers[..], [seen] if seen.flags == ACK));
}

/// Who waits for room may have gone meanwhile, or the listener.
#[test]
fn a_row_of_those_who_wait_outlives_who_stands_in_it() {
    let (mut bench, listener) = listening(2);
    for round in 0..20 {
        let ports = [0, 1, 2].map(|n| 4000 + 3 * round + n);
        let [first, second, third] = ports;
        let ack = |(syn, answer): &(Segment, SeenTcp)| syn.then(".", 1001, answer.seq + 1, b"");
        let one = half_open(&mut bench, first);
        let two = half_open(&mut bench, second);
        segments(&mut bench, &ack(&one));
        let three = half_open(&mut bench, third);
        segments(&mut bench, &ack(&two));
        assert_eq!(segments(&mut bench, &ack(&three)), []);
        // It gives up; the others are accepted.
        segments(&mut bench, &three.0.then("R", 1001, 0, b""));
        for _ in 0..2 {
            bench.stack.sockets().tcp_accept(listener).unwrap();
            bench.settle();
        }
        assert!(bench.stack.sockets().tcp_accept(listener).is_err());
    }
    assert_eq!(bench.stack.sockets().counters().tcp_established, 40);
}

#[test]
fn a_flood_of_syns_takes_no_place_of_a_connection_and_keeps_nobody_out() {
    let mut config = config(1);
    config.limits.half_open = 16;
    // One place is the listener's.
    config.limits.connections = 3;
    let mut bench = Bench::with(config, net(0));
    bench.introduce_peer();
    let options = TcpOptions::default();
    let listener = bench.stack.sockets().tcp_listen(80, 64, options).unwrap();
    assert_eq!(complete(&mut bench, 1), []);
    let (before, _) = bench.stack.sockets().tcp_accept(listener).unwrap();
    // Where all places are taken there is no silence to wait for.
    for port in 1000..11_000 {
        half_open(&mut bench, port);
    }
    assert_eq!(complete(&mut bench, 2), []);
    let (stream, _) = bench.stack.sockets().tcp_accept(listener).unwrap();
    for stream in [before, stream] {
        assert_eq!(bench.stack.sockets().tcp_send(stream, b"there"), Ok(5));
    }
    let sent = tcps(&bench.pass(Duration::from_millis(1)));
    assert_eq!(sent.iter().filter(|tcp| tcp.data == b"there").count(), 2);
    // Connections are bounded as ever.
    let counters = bench.stack.sockets().counters();
    assert_eq!((counters.tcp_established, counters.rx_backlog_full), (2, 0));
    assert_eq!(segments(&mut bench, &Segment::syn(3, 1000)), []);
    let counters = bench.stack.sockets().counters();
    assert_eq!(counters.rx_backlog_full, 1);
}

#[test]
fn a_handshake_that_is_not_completed_is_repeated_and_then_forgotten() {
    let (mut bench, _) = listening(4);
    let (syn, answer) = half_open(&mut bench, 4000);
    let repeated = tcps(&bench.pass(Duration::from_secs(14)));
    assert_eq!(repeated.len(), 3);
    assert!(repeated.iter().all(|tcp| *tcp == answer));
    assert_eq!(tcps(&bench.pass(Duration::from_secs(60))), []);
    assert_eq!(bench.stack.sockets().counters().tcp_half_open_expired, 1);
    // What comes too late belongs to no connection.
    let late = segments(&mut bench, &syn.then(".", 1001, answer.seq + 1, b""));
    assert_eq!((late[0].flags, late[0].seq), (RST, answer.seq + 1));
}

#[test]
fn a_repeated_syn_gets_the_same_answer_and_another_one_begins_anew() {
    let (mut bench, _) = listening(1);
    let (syn, answer) = half_open(&mut bench, 4000);
    assert_eq!(segments(&mut bench, &syn), [answer]);
    let other = Segment::syn(4000, 5000);
    let answers = segments(&mut bench, &other);
    assert_eq!((answers.len(), answers[0].ack), (1, 5001));
}

#[test]
fn an_ack_of_something_else_is_answered_with_a_reset_and_the_handshake_goes_on() {
    let (mut bench, listener) = listening(4);
    let (syn, answer) = half_open(&mut bench, 4000);
    let wrong = segments(&mut bench, &syn.then(".", 1001, answer.seq + 2, b""));
    assert_eq!(
        (wrong.len(), wrong[0].flags, wrong[0].seq),
        (1, RST, answer.seq + 2)
    );
    assert_eq!(
        segments(&mut bench, &syn.then(".", 1001, answer.seq + 1, b"")),
        []
    );
    assert!(bench.stack.sockets().tcp_accept(listener).is_ok());
}

#[test]
fn data_in_the_last_segment_of_the_handshake_is_not_lost() {
    let (mut bench, listener) = listening(4);
    let (syn, answer) = half_open(&mut bench, 4000);
    let acks = segments(&mut bench, &syn.then("PF", 1001, answer.seq + 1, b"hello"));
    assert_eq!(acks.last().unwrap().ack, 1001 + 5 + 1);
    let (stream, peer) = bench.stack.sockets().tcp_accept(listener).unwrap();
    assert_eq!(peer, host(1, false, 4000));
    let mut buffer = [0; 16];
    let sockets = bench.stack.sockets();
    assert_eq!(sockets.tcp_recv(stream, &mut buffer), Ok(5));
    assert_eq!(&buffer[..5], b"hello");
    assert_eq!(sockets.tcp_recv(stream, &mut buffer), Ok(0));
}

#[test]
fn a_port_without_a_listener_answers_with_one_reset_within_the_limit() {
    let mut config = config(7);
    config.limits.replies_per_second = 10;
    let mut bench = Bench::with(config, net(0));
    bench.introduce_peer();
    let answers = segments(&mut bench, &Segment::syn(4000, 1000));
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].flags, answers[0].ack), (RST | ACK, 1001));
    for port in 0..100 {
        bench.peer.inject(&Segment::syn(5000 + port, 1).frame());
    }
    bench.settle();
    assert_eq!(bench.peer.drain().len(), 9);
    assert_eq!(bench.stack.sockets().counters().rx_reply_limited, 91);
}

#[test]
fn a_reset_is_never_answered() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let reset = Segment::syn(4000, 0).then("R", 5, 0, b"");
    assert_eq!(bench.exchange(&reset.frame()), Vec::<Vec<u8>>::new());
}

#[test]
fn a_broken_checksum_begins_and_completes_nothing() {
    let (mut bench, listener) = listening(4);
    let mut bad = Segment::syn(4000, 1000).frame();
    *bad.last_mut().unwrap() ^= 1;
    assert_eq!(tcps(&bench.exchange(&bad)), []);
    let (syn, answer) = half_open(&mut bench, 4000);
    let mut bad = syn.then(".", 1001, answer.seq + 1, b"x").frame();
    *bad.last_mut().unwrap() ^= 1;
    assert_eq!(tcps(&bench.exchange(&bad)), []);
    let sockets = bench.stack.sockets();
    assert_eq!(sockets.tcp_accept(listener), Err(StreamError::WouldBlock));
    assert_eq!(sockets.counters().rx_malformed, 2);
}

#[test]
fn closing_a_listener_resets_what_was_not_accepted_and_frees_the_port() {
    let (mut bench, listener) = listening(4);
    complete(&mut bench, 4000);
    half_open(&mut bench, 4001);
    let options = TcpOptions::default();
    let taken = bench.stack.sockets().tcp_listen(80, 1, options);
    assert_eq!(taken, Err(BindError::AddrInUse));
    bench.stack.sockets().tcp_close_listener(listener);
    bench.settle();
    let sent = tcps(&bench.peer.drain());
    assert_eq!(
        (sent.len(), sent[0].flags & RST, sent[0].dst_port),
        (1, RST, 4000)
    );
    assert!(bench.stack.sockets().tcp_listen(80, 1, options).is_ok());
    assert_eq!(
        bench.stack.sockets().tcp_accept(listener),
        Err(StreamError::UnknownHandle)
    );
}

#[test]
fn a_refused_a_lost_and_an_impossible_connection_attempt_say_what_happened() {
    let mut pair = Pair::new(1);
    let options = TcpOptions {
        connect_timeout: Duration::from_secs(5),
        ..TcpOptions::default()
    };
    let now = pair.now();
    let refused = pair
        .sockets(0)
        .tcp_connect(now, host(1, false, 81), options)
        .unwrap();
    let nobody = "10.0.0.77:80".parse().unwrap();
    let lost = pair.sockets(0).tcp_connect(now, nobody, options).unwrap();
    let far = "192.0.2.1:80".parse().unwrap();
    let none = pair.sockets(0).tcp_connect(now, far, options);
    assert_eq!(none, Err(StreamError::Unreachable));
    pair.run(Duration::from_secs(1));
    let sockets = pair.sockets(0);
    assert_eq!(
        sockets.tcp_connected(refused),
        Err(StreamError::ConnectionRefused)
    );
    assert_eq!(sockets.tcp_connected(lost), Err(StreamError::WouldBlock));
    pair.run(Duration::from_secs(5));
    assert_eq!(
        pair.sockets(0).tcp_connected(lost),
        Err(StreamError::TimedOut)
    );
}

#[test]
fn a_connection_from_a_chosen_port_cannot_be_made_twice() {
    let mut pair = Pair::new(1);
    let options = TcpOptions::default();
    pair.sockets(1).tcp_listen(80, 4, options).unwrap();
    let now = pair.now();
    let remote = host(1, false, 80);
    let from = guest_stack::ports::LocalAddr::from(4000);
    let first = pair
        .sockets(0)
        .tcp_connect_from(now, from, remote, options)
        .unwrap();
    let second = pair.sockets(0).tcp_connect_from(now, from, remote, options);
    assert_eq!(second, Err(StreamError::Bind(BindError::AddrInUse)));
    pair.settle();
    assert_eq!(pair.sockets(0).tcp_connected(first), Ok(()));
    assert_eq!(
        pair.sockets(0).tcp_local_addr(first),
        Ok(host(0, false, 4000))
    );
    assert_eq!(pair.sockets(0).tcp_peer_addr(first), Ok(remote));
}

#[test]
fn nobody_connects_to_himself() {
    let mut bench = Bench::new();
    let options = TcpOptions::default();
    bench.stack.sockets().tcp_listen(80, 1, options).unwrap();
    let now = bench.now();
    for own in ["10.0.0.1:80", "[fd00::1]:80", "127.0.0.1:80", "[::1]:80"] {
        let own = own.parse().unwrap();
        let result = bench.stack.sockets().tcp_connect(now, own, options);
        assert_eq!(result, Err(StreamError::Unreachable), "{own}");
    }
}
