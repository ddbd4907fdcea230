//! How much work is done: bounded per poll, and none of it proportional to the
//! number of connections.

use guest_stack::config::StackConfig;
use guest_stack::tcp::TcpStreamId;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::time::Duration;

use crate::common::{Bench, Cable, Pair, config, host, net, stack_with};
use crate::frames::{Segment, udp_frame};

/// Connects that many streams from stack 0 to stack 1.
fn crowd(pair: &mut Pair, count: usize) -> Vec<TcpStreamId> {
    let options = TcpOptions {
        rx_buffer_bytes: 2048,
        tx_buffer_bytes: 2048,
        ..TcpOptions::default()
    };
    let listener = pair.sockets(1).tcp_listen(80, count, options).unwrap();
    let now = pair.now();
    for _ in 0..count {
        pair.sockets(0)
            .tcp_connect(now, host(1, false, 80), options)
            .unwrap();
    }
    let mut accepted = Vec::new();
    pair.run_until(|pair| {
        while let Ok((stream, _)) = pair.sockets(1).tcp_accept(listener) {
            accepted.push(stream);
        }
        accepted.len() == count
    });
    accepted
}

#[test]
fn the_work_for_a_segment_does_not_grow_with_the_number_of_connections() {
    let mut polled = Vec::new();
    for count in [1, 3000] {
        let mut pair = Pair::new(1);
        let streams = crowd(&mut pair, count);
        let before = [0, 1].map(|side| pair.sockets(side).counters().flows_polled);
        pair.sockets(1)
            .tcp_send(streams[count / 2], b"one segment")
            .unwrap();
        pair.settle();
        let after = [0, 1].map(|side| pair.sockets(side).counters().flows_polled);
        polled.push([after[0] - before[0], after[1] - before[1]]);
    }
    assert_eq!(polled[0], polled[1]);
    assert!(polled[0].iter().sum::<u64>() <= 6, "{polled:?}");
}

#[test]
fn idle_connections_are_never_looked_at() {
    let mut pair = Pair::new(1);
    crowd(&mut pair, 500);
    pair.run(Duration::from_secs(10));
    let before = [0, 1].map(|side| pair.sockets(side).counters().flows_polled);
    pair.run(Duration::from_secs(3600));
    let after = [0, 1].map(|side| pair.sockets(side).counters().flows_polled);
    assert_eq!(before, after);
}

#[test]
fn one_poll_takes_and_sends_no_more_frames_than_its_budget() {
    let config = StackConfig {
        budget: 10,
        ..config(1)
    };
    let mut bench = Bench::with(config, net(0));
    bench.introduce_peer();
    bench.stack.sockets().udp_bind(7).unwrap();
    for _ in 0..25 {
        bench.peer.inject(&udp_frame(false, 9, 7, b"x"));
    }
    let before = bench.stack.sockets().counters().rx_frames;
    let now = bench.now();
    for round in 1..=2 {
        let poll = bench.stack.poll(now);
        assert!(poll.more_work);
        let taken = bench.stack.sockets().counters().rx_frames - before;
        assert_eq!(taken, round * 10);
    }
    assert!(!bench.stack.poll(now).more_work);

    let socket = bench.stack.sockets().udp_bind(8).unwrap();
    for _ in 0..50 {
        let to = host(1, false, 9);
        bench.stack.sockets().udp_send_to(socket, b"x", to).unwrap();
    }
    assert!(bench.stack.poll(now).more_work);
    // A socket's turn is not cut short.
    assert!(bench.peer.drain().len() <= 10 + 16);
}

#[test]
fn without_room_for_an_answer_a_frame_stays_in_the_link_and_nothing_is_lost() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    bench.cable.set_capacity(0, 0);
    for port in 0..5 {
        bench.peer.inject(&Segment::syn(4000 + port, 1).frame());
    }
    let now = bench.now();
    let before = bench.stack.sockets().counters().rx_frames;
    let poll = bench.stack.poll(now);
    assert!(poll.wants_room && !poll.more_work);
    assert_eq!(bench.stack.sockets().counters().rx_frames, before);
    assert!(bench.stack.arm(), "it sleeps, though frames wait");
    bench.stack.disarm();
    bench.cable.set_capacity(0, 3);
    assert!(!bench.stack.arm(), "there is room");
    let poll = bench.stack.poll(now);
    assert!(poll.wants_room);
    assert_eq!(bench.peer.drain().len(), 3);
    bench.settle();
    assert_eq!(bench.peer.drain().len(), 2);
    assert_eq!(bench.stack.sockets().counters().tx_no_room, 0);
}

#[test]
fn a_transfer_through_a_link_with_room_for_two_frames_stalls_nowhere() {
    let mut pair = Pair::new(1);
    let (client, server) = pair.connected(false, 80);
    pair.cable.set_capacity(0, 2);
    let words = crate::common::pattern(200_000, 1);
    let (mut at, mut got) = (0, Vec::new());
    pair.run_until(|pair| {
        crate::transfer::write_some(pair.sockets(0), client, &words, &mut at);
        crate::transfer::read_some(pair.sockets(1), server, &mut got);
        got.len() == words.len()
    });
    assert!(got == words);
    assert_eq!(pair.sockets(0).counters().tx_no_room, 0);
    assert!(pair.now().secs() < 5, "it waits for room, not for a timer");
}

#[test]
fn the_promised_call_stack_is_enough() {
    // Without optimisation more is needed than the 256 KiB that are promised.
    let kib = if cfg!(debug_assertions) { 384 } else { 256 };
    let thread = std::thread::Builder::new().stack_size(kib << 10);
    let run = || {
        let mut pair = Pair::new(1);
        crowd(&mut pair, 3);
        let now = pair.now();
        let mut smaller = net(1);
        smaller.mtu = 1400;
        pair.stacks[1].configure(smaller, now).unwrap();
        pair.settle();
        let frame = udp_frame(false, 9, 7, &[1; 3000]);
        let mut bench = Bench::new();
        for piece in crate::frames::fragment(&frame, 1480, 1) {
            bench.exchange(&piece);
        }
    };
    thread.spawn(run).unwrap().join().unwrap();
}

#[test]
fn what_was_pushed_is_not_looked_at_again() {
    let mut pair = Pair::new(1);
    let (client, _) = pair.connected(false, 80);
    pair.settle();
    let now = pair.now();
    let before = pair.sockets(0).counters().flows_polled;
    for _ in 0..3 {
        pair.sockets(0).tcp_send(client, b"word").unwrap();
        assert!(!pair.stacks[0].push(client, now).more_work);
    }
    assert!(!pair.stacks[0].poll(now).more_work);
    assert_eq!(pair.sockets(0).counters().flows_polled - before, 3);
}

#[test]
fn without_room_nothing_is_due_that_needs_it_however_late_it_is() {
    let cable = Cable::new(1);
    cable.set_capacity(0, 0);
    // A stack has its groups to report, first of all.
    let mut stack = stack_with(&cable, 0, config(7), net(0));
    for seconds in [0, 1, 2, 100] {
        cable.advance_to(cable.now() + Duration::from_secs(seconds));
        let now = cable.now();
        let poll = stack.poll(now);
        assert!(poll.wants_room && !poll.more_work, "{poll:?}");
        assert!(poll.deadline.is_none_or(|at| at > now), "{now:?}: {poll:?}");
        assert!(stack.arm());
        stack.disarm();
    }
    cable.set_capacity(0, 8);
    assert!(!stack.arm(), "there is room");
    let now = cable.now();
    assert!(!stack.poll(now).wants_room);
    assert!(!cable.end(1).drain().is_empty());
}

/// Sends `words` one by one from stack 0 to `server` on stack 1; how many frames stack 1 had
/// sent when each was there.
fn ask(pair: &mut Pair, (client, server): (TcpStreamId, TcpStreamId), words: usize) -> Vec<u64> {
    let mut frames = Vec::new();
    let before = pair.sockets(1).counters().tx_frames;
    for _ in 0..words {
        pair.sockets(0).tcp_send(client, b"a word").unwrap();
        pair.settle();
        frames.push(pair.sockets(1).counters().tx_frames - before);
        pair.sockets(1).tcp_recv(server, &mut [0; 64]).unwrap();
    }
    frames
}

/// Has stack 1 answer, and lets 100 ms pass.
fn answer(pair: &mut Pair, (client, server): (TcpStreamId, TcpStreamId)) {
    pair.sockets(1).tcp_send(server, b"an answer").unwrap();
    pair.run(Duration::from_millis(100));
    pair.sockets(0).tcp_recv(client, &mut [0; 64]).unwrap();
}

#[test]
fn an_answer_carries_the_acknowledgement_where_the_application_answers_at_once() {
    let mut pair = Pair::new(1);
    let ends = pair.connected(false, 80);
    let mut alone = Vec::new();
    for _ in 0..6 {
        alone.extend(ask(&mut pair, ends, 1));
        answer(&mut pair, ends);
    }
    assert_eq!(alone, [1, 1, 1, 1, 0, 0]);
    // One that nothing answers waits 10 ms, and the next ones do not wait.
    let before = pair.sockets(1).counters().tx_frames;
    assert_eq!(ask(&mut pair, ends, 1), [0]);
    pair.run(Duration::from_millis(9));
    assert_eq!(pair.sockets(1).counters().tx_frames, before);
    pair.run(Duration::from_millis(1));
    assert_eq!(pair.sockets(1).counters().tx_frames, before + 1);
    let again = [(); 9].map(|()| {
        let alone = ask(&mut pair, ends, 1)[0];
        answer(&mut pair, ends);
        alone
    });
    assert_eq!(again, [1, 1, 1, 1, 1, 1, 1, 1, 0]);
}

#[test]
fn a_request_in_two_parts_never_waits_for_the_acknowledgement_of_the_first() {
    let mut pair = Pair::new(1);
    let ends = pair.connected(false, 80);
    for _ in 0..20 {
        // With Nagle's algorithm the second part is there only after it.
        assert_eq!(ask(&mut pair, ends, 2), [1, 2]);
        answer(&mut pair, ends);
    }
}

#[test]
fn an_application_can_have_every_acknowledgement_at_once_or_all_of_them_late() {
    for (delay, wanted) in [(Duration::ZERO, 1), (Duration::from_millis(50), 0)] {
        let mut pair = Pair::new(1);
        let options = TcpOptions {
            ack_delay: Some(delay),
            ..TcpOptions::default()
        };
        let ends = pair.connected_with(false, 80, options);
        for _ in 0..10 {
            assert_eq!(ask(&mut pair, ends, 1), [wanted]);
            answer(&mut pair, ends);
        }
    }
}
