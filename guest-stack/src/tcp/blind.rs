//! What somebody who cannot see a connection may not do to it (RFC 5961).
//!
//! Who guesses the ports of a connection and a number inside the receive window can
//! forge a segment. smoltcp believes a reset anywhere in the window, and is silent at
//! a SYN there. So `ingress` asks here before it feeds a segment to its socket:
//!
//! | segment, in a synchronized state | where | verdict |
//! | --- | --- | --- |
//! | RST | exactly at the next sequence number | believed (RFC 5961, 3.2) |
//! | RST | elsewhere in the window | dropped, and challenged |
//! | RST | outside | dropped |
//! | RST, in TIME-WAIT | anywhere | dropped (RFC 1337, 3): both ends have said all |
//! | SYN | anywhere | dropped, and challenged (4.2) |
//! | anything else | | the socket's: it takes no data without an acknowledgement of what is in flight, which is stricter than 5.2 asks |
//!
//! A challenge is an acknowledgement of what was received. A peer that has really
//! forgotten the connection answers it with a reset at exactly that number. The
//! socket itself writes it, once per second at the most, when it is shown a segment
//! just before its window; the stack's limit of replies holds as well.

use shm_link::link::FrameTx;
use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;

use super::connection::Flow;
use super::segment::MAX_LEN;
use crate::classify::{ETHERNET_LEN, TCP_RST, TCP_SYN, TcpHeader};
use crate::flow::Entry;
use crate::sockets::Sockets;

/// What to do with a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Belief {
    /// The socket may have it.
    Feed,
    /// It is dropped.
    Drop,
    /// It is dropped, and the peer is told what was received.
    Challenge,
}

/// Whether both ends know both sequence numbers in this state.
fn synchronized(state: State) -> bool {
    match state {
        State::Established
        | State::FinWait1
        | State::FinWait2
        | State::CloseWait
        | State::Closing
        | State::LastAck => true,
        State::Closed | State::Listen | State::SynSent | State::SynReceived | State::TimeWait => {
            false
        }
    }
}

impl Flow {
    /// Whether the segment may be shown to the socket.
    pub(crate) fn believes(&mut self, tcp: &TcpHeader) -> Belief {
        if tcp.flags & (TCP_RST | TCP_SYN) == 0 {
            return Belief::Feed;
        }
        let Some(expected) = self.recovery.expected() else {
            return Belief::Feed;
        };
        let (state, window) = self.cell.with(|socket| {
            let window = socket.recv_capacity() - socket.recv_queue();
            (socket.state(), window)
        });
        // Its last acknowledgement, which waits for a neighbour, is to be sent yet.
        if state == State::TimeWait && tcp.flags & TCP_RST != 0 {
            return Belief::Drop;
        }
        if !synchronized(state) {
            return Belief::Feed;
        }
        if tcp.flags & TCP_RST == 0 {
            return Belief::Challenge;
        }
        match tcp.seq.wrapping_sub(expected) as usize {
            0 => Belief::Feed,
            ahead if ahead < window => Belief::Challenge,
            _ => Belief::Drop,
        }
    }
}

impl Sockets {
    /// Has a connection tell its peer what it received.
    pub(crate) fn challenge(&mut self, index: u32, now: Instant, tx: &mut dyn FrameTx) {
        let Entry::Flow(flow) = self.table.entry(index) else {
            return;
        };
        let Some(segment) = flow.just_before_the_window() else {
            return;
        };
        if !self.limiter.permit(now) {
            return;
        }
        let mut frame = [0; ETHERNET_LEN + MAX_LEN];
        let frame = &mut frame[..segment.frame_len()];
        let mac = self.net.mac;
        // From ourselves, so that it says nothing of the neighbour.
        segment.write_frame(frame, mac, mac);
        self.feed(index, now, frame, tx);
        self.counters.tcp_challenges += 1;
    }
}
