//! How streams end: half-close, close, reset, timeouts, TIME-WAIT.

use guest_stack::error::StreamError;
use guest_stack::smoltcp::socket::tcp::State;
use guest_stack::tcp::TcpStreamId;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::tcp::stream::Shutdown;
use guest_stack::time::Duration;

use crate::common::{Bench, Pair, arp_request, pattern};
use crate::frames::{ACK, FIN, RST, SYN, SeenTcp, Segment, tcps};
use crate::transfer::{read_some, write_some};

/// A connection to port 80 of the stack, with the peer's next and expected
/// sequence numbers.
struct Conversation {
    bench: Bench,
    stream: TcpStreamId,
    syn: Segment,
    seq: u32,
    ack: u32,
}

impl Conversation {
    fn new(options: TcpOptions) -> Self {
        let mut bench = Bench::new();
        bench.introduce_peer();
        let listener = bench.stack.sockets().tcp_listen(80, 4, options).unwrap();
        let syn = Segment::syn(4000, 1000);
        let answer = tcps(&bench.exchange(&syn.frame())).remove(0);
        bench.exchange(&syn.then(".", 1001, answer.seq + 1, b"").frame());
        let (stream, _) = bench.stack.sockets().tcp_accept(listener).unwrap();
        Self {
            bench,
            stream,
            syn,
            seq: 1001,
            ack: answer.seq + 1,
        }
    }

    /// The peer says something.
    fn say(&mut self, flags: &'static str, data: &[u8]) -> Vec<SeenTcp> {
        let segment = self.syn.then(flags, self.seq, self.ack, data);
        self.seq += data.len() as u32 + u32::from(flags.contains('F'));
        tcps(&self.bench.exchange(&segment.frame()))
    }

    fn poll(&mut self) -> Vec<SeenTcp> {
        self.bench.settle();
        tcps(&self.bench.peer.drain())
    }

    fn recv(&mut self) -> Result<Vec<u8>, StreamError> {
        let mut buffer = [0; 4096];
        let len = self
            .bench
            .stack
            .sockets()
            .tcp_recv(self.stream, &mut buffer)?;
        Ok(buffer[..len].to_vec())
    }
}

#[test]
fn each_half_closes_on_its_own_in_either_order() {
    for first in [0, 1] {
        let mut pair = Pair::new(1);
        let (client, server) = pair.connected(false, 80);
        let ids = [client, server];
        let second = 1 - first;
        let words = pattern(100_000, 9);
        pair.sockets(first)
            .tcp_shutdown(ids[first], Shutdown::Write)
            .unwrap();
        pair.settle();
        assert_eq!(
            pair.sockets(second).tcp_recv(ids[second], &mut [0; 8]),
            Ok(0)
        );
        assert_eq!(
            pair.sockets(first).tcp_send(ids[first], b"x"),
            Err(StreamError::BrokenPipe)
        );
        // The other half still carries everything.
        let (mut at, mut got, mut end, mut shut) = (0, Vec::new(), false, false);
        pair.run_until(|pair| {
            write_some(pair.sockets(second), ids[second], &words, &mut at);
            if at == words.len() && !shut {
                pair.sockets(second)
                    .tcp_shutdown(ids[second], Shutdown::Write)
                    .unwrap();
                shut = true;
            }
            end = end || read_some(pair.sockets(first), ids[first], &mut got);
            end
        });
        assert!(got == words);
        let finished = pair.sockets(first).tcp_readiness(ids[first]).unwrap();
        assert!(finished.finished && finished.error.is_none());
    }
}

#[test]
fn what_was_written_before_a_close_arrives() {
    let mut pair = Pair::new(1);
    let (client, server) = pair.connected(true, 80);
    let words = pattern(60_000, 3);
    let mut at = 0;
    write_some(pair.sockets(0), client, &words, &mut at);
    assert_eq!(at, words.len());
    pair.sockets(0).tcp_close(client);
    assert_eq!(
        pair.sockets(0).tcp_send(client, b"x"),
        Err(StreamError::UnknownHandle)
    );
    let mut got = Vec::new();
    pair.run_until(|pair| read_some(pair.sockets(1), server, &mut got));
    assert!(got == words);
}

#[test]
fn closing_with_unread_data_resets() {
    let mut talk = Conversation::new(TcpOptions::default());
    talk.say("P", b"unread");
    talk.bench.stack.sockets().tcp_close(talk.stream);
    let sent = talk.poll();
    assert_eq!((sent.len(), sent[0].flags & RST), (1, RST));
}

#[test]
fn data_that_arrives_after_a_close_resets() {
    let mut talk = Conversation::new(TcpOptions::default());
    talk.bench.stack.sockets().tcp_close(talk.stream);
    let fin = talk.poll();
    assert_eq!((fin.len(), fin[0].flags & (FIN | RST)), (1, FIN));
    talk.ack += 1;
    let sent = talk.say("P", b"too late");
    assert_eq!(sent.last().unwrap().flags & RST, RST);
}

#[test]
fn after_the_read_half_is_shut_what_arrives_is_thrown_away_and_the_peer_not_held_up() {
    let mut talk = Conversation::new(TcpOptions::default());
    talk.say("P", b"before");
    talk.bench
        .stack
        .sockets()
        .tcp_shutdown(talk.stream, Shutdown::Read)
        .unwrap();
    assert_eq!(talk.recv(), Ok(vec![]));
    for _ in 0..100 {
        let acks = talk.say("P", &[7; 1400]);
        assert_eq!(acks.last().unwrap().ack, talk.seq);
        assert!(acks.last().unwrap().window > 60_000);
    }
    assert_eq!(talk.recv(), Ok(vec![]));
    assert_eq!(
        talk.bench
            .stack
            .sockets()
            .tcp_send(talk.stream, b"still writing"),
        Ok(13)
    );
    assert_eq!(talk.poll()[0].data, b"still writing");
}

#[test]
fn a_reset_from_the_peer_is_reported_after_what_arrived_before_it() {
    let mut talk = Conversation::new(TcpOptions::default());
    talk.say("P", b"last words");
    talk.say("R", b"");
    assert_eq!(talk.recv(), Ok(b"last words".to_vec()));
    assert_eq!(talk.recv(), Err(StreamError::ConnectionReset));
    let sent = talk.bench.stack.sockets().tcp_send(talk.stream, b"x");
    assert_eq!(sent, Err(StreamError::ConnectionReset));
}

#[test]
fn an_abort_resets_at_once() {
    let mut talk = Conversation::new(TcpOptions::default());
    talk.bench.stack.sockets().tcp_abort(talk.stream);
    let sent = talk.poll();
    assert_eq!((sent.len(), sent[0].flags & RST), (1, RST));
    assert_eq!(talk.say(".", b"x")[0].flags, RST, "nothing is left of it");
}

#[test]
fn what_arrived_can_be_read_long_after_the_connection_has_ended() {
    let mut talk = Conversation::new(TcpOptions::default());
    // Both close; the stack's side goes through TIME-WAIT.
    talk.bench
        .stack
        .sockets()
        .tcp_shutdown(talk.stream, Shutdown::Write)
        .unwrap();
    assert_eq!(talk.poll()[0].flags & FIN, FIN);
    talk.ack += 1;
    talk.say("PF", b"read me later");
    talk.bench.pass(Duration::from_secs(3600));
    assert_eq!(talk.recv(), Ok(b"read me later".to_vec()));
    assert_eq!(talk.recv(), Ok(vec![]));
}

#[test]
fn time_wait_answers_a_repeated_fin_and_ends_by_itself() {
    let mut talk = Conversation::new(TcpOptions::default());
    talk.bench.stack.sockets().tcp_close(talk.stream);
    talk.poll();
    talk.ack += 1;
    let last = talk.say("F", b"");
    assert_eq!((last[0].flags, last[0].ack), (ACK, talk.seq));
    talk.bench.pass(Duration::from_secs(5));
    talk.seq -= 1;
    let again = talk.say("F", b"");
    assert_eq!(
        (again.len(), again[0].flags, again[0].ack),
        (1, ACK, talk.seq)
    );
    assert_eq!(again[0].seq, last[0].seq);
    // A reset does not cut it short.
    assert_eq!(talk.say("R", b""), []);
    talk.bench.pass(Duration::from_secs(9));
    talk.seq -= 1;
    assert_eq!(talk.say("F", b"")[0].flags, ACK);
    talk.bench.pass(Duration::from_secs(11));
    talk.seq -= 1;
    assert_eq!(talk.say("F", b"")[0].flags, RST, "it is over");
}

#[test]
fn a_new_connection_with_the_same_ends_may_begin_in_time_wait() {
    let mut talk = Conversation::new(TcpOptions::default());
    talk.bench.stack.sockets().tcp_close(talk.stream);
    talk.poll();
    talk.ack += 1;
    talk.say("F", b"");
    let old = Segment::syn(4000, talk.seq - 5);
    assert_eq!(tcps(&talk.bench.exchange(&old.frame()))[0].flags, ACK);
    let fresh = Segment::syn(4000, talk.seq + 5);
    assert_eq!(
        tcps(&talk.bench.exchange(&fresh.frame()))[0].flags,
        SYN | ACK
    );
}

#[test]
fn a_silent_peer_that_owes_an_answer_is_given_up_after_the_user_timeout() {
    let mut talk = Conversation::new(TcpOptions {
        user_timeout: Some(Duration::from_secs(20)),
        ..TcpOptions::default()
    });
    talk.bench
        .stack
        .sockets()
        .tcp_send(talk.stream, b"anybody there?")
        .unwrap();
    talk.bench.pass(Duration::from_secs(19));
    assert_eq!(talk.recv(), Err(StreamError::WouldBlock));
    let sent = tcps(&talk.bench.pass(Duration::from_secs(2)));
    assert_eq!(talk.recv(), Err(StreamError::TimedOut));
    assert!(sent.iter().any(|tcp| tcp.flags & RST != 0));
}

#[test]
fn an_idle_connection_outlives_the_user_timeout_and_closes_in_order() {
    let mut talk = Conversation::new(TcpOptions {
        user_timeout: Some(Duration::from_secs(20)),
        ..TcpOptions::default()
    });
    assert_eq!(
        tcps(&talk.bench.pass(Duration::from_secs(3600))),
        [],
        "idle is silent"
    );
    assert_eq!(talk.recv(), Err(StreamError::WouldBlock));
    talk.bench.introduce_peer();
    talk.bench.stack.sockets().tcp_close(talk.stream);
    let sent = talk.poll();
    assert_eq!(sent[0].flags & (FIN | RST), FIN);
}

#[test]
fn keep_alive_keeps_an_answering_peer_and_gives_a_silent_one_up() {
    let options = TcpOptions {
        keep_alive: Some(Duration::from_secs(10)),
        user_timeout: None,
        ..TcpOptions::default()
    };
    let mut talk = Conversation::new(options);
    for _ in 0..10 {
        let probes = tcps(&talk.bench.pass(Duration::from_secs(11)));
        assert!(!probes.is_empty(), "a probe every ten seconds");
        talk.say(".", b"");
    }
    assert_eq!(talk.recv(), Err(StreamError::WouldBlock));
    talk.bench.pass(Duration::from_secs(45));
    assert_eq!(talk.recv(), Err(StreamError::TimedOut));
}

#[test]
fn keep_alive_gives_up_a_peer_that_is_silent_behind_our_end() {
    let options = TcpOptions {
        keep_alive: Some(Duration::from_secs(10)),
        user_timeout: None,
        ..TcpOptions::default()
    };
    let mut talk = Conversation::new(options);
    let sockets = talk.bench.stack.sockets();
    sockets.tcp_shutdown(talk.stream, Shutdown::Write).unwrap();
    talk.poll();
    talk.ack += 1;
    talk.say(".", b"");
    talk.bench.pass(Duration::from_secs(35));
    assert_eq!(talk.recv(), Err(StreamError::WouldBlock));
    talk.bench.pass(Duration::from_secs(10));
    assert_eq!(talk.recv(), Err(StreamError::TimedOut));
}

#[test]
fn a_closed_stream_whose_peer_is_gone_is_forgotten() {
    let mut talk = Conversation::new(TcpOptions::default());
    talk.bench
        .stack
        .sockets()
        .tcp_send(talk.stream, &[1; 1000])
        .unwrap();
    talk.bench.stack.sockets().tcp_close(talk.stream);
    talk.bench.pass(Duration::from_secs(50));
    // Hardware addresses are forgotten after a minute.
    talk.bench.introduce_peer();
    let sent = tcps(&talk.bench.pass(Duration::from_secs(20)));
    assert_eq!(sent.last().unwrap().flags & RST, RST);
    assert_eq!(tcps(&talk.bench.pass(Duration::from_secs(3600))), []);
    let poll = talk.bench.last.unwrap();
    assert_eq!(poll.deadline, None, "nothing is left to wait for");
}

#[test]
fn a_peer_that_closed_and_is_waiting_in_fin_wait_2_does_not_hold_memory_for_ever() {
    let mut talk = Conversation::new(TcpOptions::default());
    talk.bench.stack.sockets().tcp_close(talk.stream);
    talk.poll();
    talk.ack += 1;
    talk.say(".", b"");
    talk.bench.pass(Duration::from_secs(3600));
    assert_eq!(talk.bench.last.unwrap().deadline, None);
    assert_eq!(talk.say(".", b"x")[0].flags & RST, RST);
}

#[test]
fn a_reset_after_a_long_silence_waits_for_the_neighbour_to_be_found() {
    let mut talk = Conversation::new(TcpOptions::default());
    talk.bench.pass(Duration::from_secs(120));
    talk.bench.stack.sockets().tcp_abort(talk.stream);
    assert_eq!(talk.poll(), [], "the neighbour is asked for first");
    let said = tcps(&talk.bench.exchange(&arp_request()));
    assert_eq!(said.len(), 1);
    assert_eq!((said[0].flags & RST, said[0].seq), (RST, talk.ack));
    // If nobody answers it is given up, and nothing is left of it.
    let mut talk = Conversation::new(TcpOptions::default());
    talk.bench.pass(Duration::from_secs(120));
    talk.bench.stack.sockets().tcp_abort(talk.stream);
    let asked = talk.bench.pass(Duration::from_secs(60));
    assert!((2..=5).contains(&asked.len()), "{} requests", asked.len());
    assert_eq!(talk.bench.last.unwrap().deadline, None);
    let said = talk.say(".", b"late");
    assert!(said.iter().all(|said| said.flags & RST != 0));
}

/// A stream that has sent its FIN, with a peer that is a neighbour no more.
fn half_closed_to_a_forgotten_neighbour(how: impl FnOnce(&mut Conversation)) -> Conversation {
    let mut talk = Conversation::new(TcpOptions::default());
    how(&mut talk);
    assert_eq!(talk.poll().len(), 1);
    talk.ack += 1;
    talk.say(".", b"");
    // As long as a closed stream may wait for its peer.
    talk.bench
        .cable
        .advance_to(talk.bench.now() + Duration::from_secs(59));
    // The neighbour is forgotten for another reason than time: others spoke
    // since, and the interface is a new one.
    for other in 100..116 {
        let mut frame = arp_request();
        for at in [11, 27, 31] {
            frame[at] = other;
        }
        talk.bench.exchange(&frame);
    }
    let net = crate::common::net(0);
    let mut other = net.clone();
    other.mtu = 1400;
    let now = talk.bench.now();
    talk.bench.stack.configure(other, now).unwrap();
    talk.poll();
    talk
}

#[test]
fn a_reset_that_comes_before_the_last_acknowledgement_has_left_is_not_believed() {
    let mut talk = half_closed_to_a_forgotten_neighbour(|talk| {
        let sockets = talk.bench.stack.sockets();
        sockets.tcp_shutdown(talk.stream, Shutdown::Write).unwrap();
    });
    assert_eq!(talk.say("PF", b"read me"), [], "the neighbour is asked for");
    talk.say("R", b"");
    assert_eq!(tcps(&talk.bench.exchange(&arp_request())).len(), 1);
    assert_eq!(talk.recv(), Ok(b"read me".to_vec()));
    assert_eq!(talk.recv(), Ok(vec![]));
}

#[test]
fn a_reset_after_both_ends_have_said_all_is_no_error() {
    let mut talk = Conversation::new(TcpOptions::default());
    let sockets = talk.bench.stack.sockets();
    sockets.tcp_shutdown(talk.stream, Shutdown::Write).unwrap();
    assert_eq!(talk.poll()[0].flags & FIN, FIN);
    // It crosses the peer's.
    talk.say("PF", b"read me");
    assert_eq!(
        talk.bench.stack.sockets().tcp_state(talk.stream),
        Ok(State::Closing)
    );
    talk.say("R", b"");
    assert_eq!(talk.recv(), Ok(b"read me".to_vec()));
    assert_eq!(talk.recv(), Ok(vec![]));
}

#[test]
fn the_last_acknowledgement_waits_for_the_neighbour_to_be_found() {
    let mut talk = half_closed_to_a_forgotten_neighbour(|talk| {
        talk.bench.stack.sockets().tcp_close(talk.stream);
    });
    assert_eq!(talk.say("F", b""), [], "the neighbour is asked for first");
    let said = tcps(&talk.bench.exchange(&arp_request()));
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].ack, talk.seq);
    // And TIME-WAIT repeats that one.
    let again = talk.syn.then("F", talk.seq - 1, talk.ack, b"");
    let said = tcps(&talk.bench.exchange(&again.frame()));
    assert_eq!(said.len(), 1);
    assert_eq!((said[0].flags, said[0].ack), (ACK, talk.seq));
}

/// Closes a stream with 800 bytes unsent and acknowledges `step` of them every 50 s, after
/// which the peer is given time anew or not. Says how many were until the reset, if it came.
fn acknowledged_in_steps(step: u32) -> Option<u32> {
    let mut talk = Conversation::new(TcpOptions::default());
    let sockets = talk.bench.stack.sockets();
    sockets.tcp_send(talk.stream, &[1; 800]).unwrap();
    sockets.tcp_close(talk.stream);
    let mut acknowledged = 0;
    while acknowledged + step <= 800 {
        // It is still known as a neighbour; what is sent again is of no interest.
        talk.bench.exchange(&arp_request());
        let sent = tcps(&talk.bench.pass(Duration::from_secs(50)));
        if sent.iter().any(|seen| seen.flags & RST != 0) {
            return Some(acknowledged);
        }
        talk.ack += step;
        acknowledged += step;
        let said = talk.say(".", b"");
        assert!(said.iter().all(|seen| seen.flags & RST == 0));
    }
    None
}

#[test]
fn a_closed_stream_is_delivered_to_a_slow_peer_and_not_kept_by_one_that_dawdles() {
    assert_eq!(acknowledged_in_steps(100), None);
    assert_eq!(acknowledged_in_steps(1), Some(1), "60 s after the close");
    // Two steps of 50 make one of the eight.
    assert_eq!(acknowledged_in_steps(60), Some(60));
}

#[test]
fn a_fin_comes_again_however_often_the_peer_acknowledges_all_but_the_fin() {
    let mut talk = Conversation::new(TcpOptions::default());
    let sockets = talk.bench.stack.sockets();
    sockets.tcp_send(talk.stream, b"last words").unwrap();
    sockets.tcp_shutdown(talk.stream, Shutdown::Write).unwrap();
    assert!(talk.poll().iter().any(|seen| seen.flags & FIN != 0));
    talk.ack += b"last words".len() as u32;
    for _ in 0..6 {
        assert_eq!(talk.say(".", b""), []);
    }
    let again = tcps(&talk.bench.pass(Duration::from_secs(3)));
    assert!(again.iter().any(|seen| seen.flags & FIN != 0), "{again:?}");
    talk.ack += 1;
    talk.say("F.", b"");
    assert_eq!(talk.recv(), Ok(vec![]));
}
