//! The edges of windows: what does not fit, what closes and opens, and what is lost
//! while it does. Hand-made segments against one stack; each was a connection that
//! stood still, or ended before its last byte, in a run of the simulation.

use guest_stack::error::StreamError;
use guest_stack::tcp::TcpStreamId;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::tcp::stream::Shutdown;
use guest_stack::time::Duration;

use crate::common::{Bench, pattern};
use crate::frames::{FIN, RST, SeenTcp, Segment, tcps};

/// An accepted connection, with the numbers that the peer sends next.
struct Talk {
    bench: Bench,
    stream: TcpStreamId,
    syn: Segment,
    seq: u32,
    ack: u32,
}

impl Talk {
    fn new(rx_buffer_bytes: usize) -> Self {
        Self::with(TcpOptions {
            rx_buffer_bytes,
            ..TcpOptions::default()
        })
    }

    fn with(options: TcpOptions) -> Self {
        let mut bench = Bench::new();
        bench.introduce_peer();
        let options = TcpOptions {
            nodelay: true,
            ..options
        };
        let listener = bench.stack.sockets().tcp_listen(80, 8, options).unwrap();
        let syn = Segment::syn(4000, 1000);
        let ack = tcps(&bench.exchange(&syn.frame()))[0].seq.wrapping_add(1);
        bench.exchange(&syn.then(".", 1001, ack, b"").frame());
        let (stream, _) = bench.stack.sockets().tcp_accept(listener).unwrap();
        Self {
            bench,
            stream,
            syn,
            seq: 1001,
            ack,
        }
    }

    /// The peer says this, with an unscaled window field.
    fn say(&mut self, flags: &'static str, window: u16, data: &[u8]) -> Vec<SeenTcp> {
        let mut segment = self.syn.then(flags, self.seq, self.ack, data);
        segment.window = window;
        tcps(&self.bench.exchange(&segment.frame()))
    }

    fn send(&mut self, data: &[u8]) -> Vec<SeenTcp> {
        let sent = self.bench.stack.sockets().tcp_send(self.stream, data);
        assert_eq!(sent, Ok(data.len()));
        self.bench.settle();
        tcps(&self.bench.peer.drain())
    }

    fn recv(&mut self) -> Result<usize, StreamError> {
        let mut buffer = [0; 8192];
        let sockets = self.bench.stack.sockets();
        sockets.tcp_recv(self.stream, &mut buffer)
    }

    fn pass(&mut self, seconds: u64) -> Vec<SeenTcp> {
        tcps(&self.bench.pass(Duration::from_secs(seconds)))
    }
}

#[test]
fn the_end_behind_data_that_do_not_fit_is_seen_after_the_last_byte() {
    let mut talk = Talk::new(2048);
    let data = pattern(2800, 3);
    talk.say(".", 500, &data[..1400]);
    talk.seq += 1400;
    // 648 bytes of it fit.
    let answers = talk.say("F.", 500, &data[1400..]);
    assert!(
        answers.iter().all(|seen| seen.ack == 1001 + 2048),
        "{answers:?}"
    );
    assert_eq!(talk.recv(), Ok(2048));
    assert_eq!(talk.recv(), Err(StreamError::WouldBlock));
    talk.bench.settle();
    talk.bench.peer.drain();
    // All of it again, as a peer does that has only heard of a part.
    let answers = talk.say("F.", 500, &data[1400..]);
    assert_eq!(answers.last().unwrap().ack, 1001 + 2800 + 1);
    assert_eq!(talk.recv(), Ok(752));
    assert_eq!(talk.recv(), Ok(0));
}

#[test]
fn a_window_that_closed_while_the_peers_end_was_seen_opens_again() {
    let mut talk = Talk::new(65_535);
    talk.say("F.", 8, b"");
    talk.seq += 1;
    // The field is scaled by 7: 1024 bytes may go.
    let sent = talk.send(&pattern(4000, 4));
    assert_eq!(sent.iter().map(|seen| seen.data.len()).sum::<usize>(), 1024);
    let stream = talk.stream;
    let sockets = talk.bench.stack.sockets();
    sockets.tcp_shutdown(stream, Shutdown::Write).unwrap();
    assert_eq!(
        sockets.tcp_send(stream, b"more"),
        Err(StreamError::BrokenPipe)
    );
    assert!(sockets.tcp_readiness(stream).unwrap().writable);
    talk.ack += 1024;
    assert_eq!(talk.say(".", 0, b""), []);
    let sent = talk.say(".", 500, b"");
    assert_eq!(sent.iter().map(|seen| seen.data.len()).sum::<usize>(), 2976);
    talk.ack += 2976;
    let sent = talk.say(".", 500, b"");
    assert!(sent[0].flags & FIN != 0, "{sent:?}");
    talk.ack += 1;
    assert_eq!(talk.say(".", 500, b""), []);
    assert_eq!(talk.recv(), Ok(0));
}

#[test]
fn what_was_lost_when_a_window_closed_and_opened_is_resent() {
    // With keep-alive smoltcp has a timer all the same, for its next probe.
    for keep_alive in [None, Some(Duration::from_secs(3600))] {
        let mut talk = Talk::with(TcpOptions {
            keep_alive,
            ..TcpOptions::default()
        });
        let sent = talk.send(&pattern(3000, 5));
        assert_eq!(sent.len(), 3);
        // The first arrived, the others did not.
        talk.ack += 1460;
        talk.say(".", 0, b"");
        talk.say(".", 12, b"");
        let again = talk.pass(5);
        assert!(
            again
                .iter()
                .any(|seen| seen.seq == talk.ack && !seen.data.is_empty()),
            "{again:?}"
        );
    }
}

#[test]
fn a_window_that_opened_unheard_is_asked_for_even_if_all_was_sent() {
    let mut talk = Talk::new(65_535);
    assert_eq!(talk.send(&pattern(2000, 6)).len(), 2);
    // An acknowledgement of before, or one of a peer without room: and what follows
    // it is lost.
    talk.say(".", 0, b"");
    let again = talk.pass(30);
    assert!(
        again
            .iter()
            .any(|seen| seen.seq == talk.ack && !seen.data.is_empty()),
        "{again:?}"
    );
}

#[test]
fn a_damaged_header_in_the_last_ack_of_a_handshake_resets_nobody() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let options = TcpOptions::default();
    let listener = bench.stack.sockets().tcp_listen(80, 8, options).unwrap();
    let syn = Segment::syn(4000, 1000);
    let ack = tcps(&bench.exchange(&syn.frame()))[0].seq.wrapping_add(1);
    let good = syn.then(".", 1001, ack, b"hello").frame();
    // The time to live, which only the header's own checksum covers.
    let mut bad = good.clone();
    bad[22] ^= 1;
    let answers = tcps(&bench.exchange(&bad));
    assert!(
        answers.iter().all(|seen| seen.flags & RST == 0),
        "{answers:?}"
    );
    bench.exchange(&good);
    let (stream, _) = bench.stack.sockets().tcp_accept(listener).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(bench.stack.sockets().tcp_recv(stream, &mut buffer), Ok(5));
}
