//! FINs that smoltcp 0.14 must not meet as they come: the peer's behind data that do
//! not fit our window, and ours behind data that are not acknowledged.
//!
//! Of a segment that is longer than the window smoltcp takes what fits, and its FIN in
//! any case: the application would see the end before the last bytes. Peers that keep
//! to the window send none, but smoltcp itself does when it resends quickly. So such
//! a segment is shown to the socket without its FIN, and the FIN when all before it
//! is there.
//!
//! In LAST-ACK smoltcp ignores acknowledgements that acknowledge nothing new, and with
//! them the news that a window has opened and the signs of a loss. So a stream that
//! the peer has closed already is closed when all of our data are acknowledged.
//!
//! Called by `ingress` and `handshake` with segments, by `egress` before a turn, and by
//! `stream`.

use shm_link::link::FrameTx;
use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;
use smoltcp::wire::TcpControl;

use super::connection::Flow;
use super::segment::{MAX_LEN, Received};
use crate::classify::{Class, ETHERNET_LEN, Kind, TCP_FIN, classify};
use crate::flow::Entry;
use crate::sockets::Sockets;

/// Where flags and checksum stand in a TCP header.
const FLAGS: usize = 13;
const CHECKSUM: usize = 16;

/// Takes the FIN out of a segment, and out of its checksum (RFC 1624).
fn clear_fin(tcp: &mut [u8]) -> Option<()> {
    let word = |tcp: &[u8], at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let before = word(tcp, FLAGS - 1)?;
    *tcp.get_mut(FLAGS)? &= !TCP_FIN;
    let after = word(tcp, FLAGS - 1)?;
    let sum = u32::from(!word(tcp, CHECKSUM)?) + u32::from(!before) + u32::from(after);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    // Folded twice: 16 bits are left.
    let checksum = !(sum as u16);
    let place = tcp.get_mut(CHECKSUM..CHECKSUM + 2)?;
    place.copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

impl Flow {
    /// Says that nothing more will be written: now, or when smoltcp may hear of it.
    pub(super) fn close_write(&mut self) {
        let waits = self
            .cell
            .with(|socket| socket.state() == State::CloseWait && socket.send_queue() != 0);
        if waits {
            self.closing = true;
        } else {
            self.cell.with(|socket| socket.close());
        }
    }

    /// Closes a stream that waited for its last acknowledgement.
    pub(crate) fn close_when_acknowledged(&mut self) {
        if self.closing && self.cell.with(|socket| socket.send_queue() == 0) {
            self.closing = false;
            self.cell.with(|socket| socket.close());
        }
    }
}

impl Sockets {
    /// Feeds a segment to its connection, its FIN apart where data before it may not
    /// fit.
    pub(crate) fn feed_segment(
        &mut self,
        now: Instant,
        index: u32,
        received: Received<'_>,
        tx: &mut dyn FrameTx,
    ) {
        // Less than 2¹⁶ bytes.
        let end = received.tcp.seq.wrapping_add(received.tcp.data_len as u32);
        let fits = match self.table.entry(index) {
            Entry::Flow(flow) => flow.recovery.announced(end),
            _ => true,
        };
        if received.tcp.flags & TCP_FIN == 0 || received.tcp.data_len == 0 || fits {
            self.feed_flow(now, index, received, tx);
            return;
        }
        // A FIN of ours must not be one that was damaged on the way.
        if self.parse(received).is_none() {
            return;
        }
        let mut without = received.frame.to_vec();
        let Some(()) = without
            .get_mut(received.packet.payload.clone())
            .and_then(clear_fin)
        else {
            return;
        };
        self.feed_made(now, index, &without, tx);
        let Entry::Flow(flow) = self.table.entry(index) else {
            return;
        };
        if flow.recovery.expected() != Some(end) {
            return;
        }
        let mut fin = flow.segment_of_the_peer(end, received.tcp.ack);
        fin.tcp.control = TcpControl::Fin;
        fin.tcp.window_len = received.tcp.window;
        let mut frame = [0; ETHERNET_LEN + MAX_LEN];
        let frame = &mut frame[..fin.frame_len()];
        let mac = self.net.mac;
        // From ourselves, so that it says nothing of the neighbour.
        fin.write_frame(frame, mac, mac);
        self.feed_made(now, index, frame, tx);
    }

    /// Feeds a segment that was made here.
    fn feed_made(&mut self, now: Instant, index: u32, frame: &[u8], tx: &mut dyn FrameTx) {
        if let Some(Class::Ip(packet)) = classify(frame)
            && let Kind::Tcp(tcp) = &packet.kind
        {
            let packet = &packet;
            self.feed_flow(now, index, Received { packet, tcp, frame }, tx);
        }
    }
}
