//! What recovery does to a connection's socket: shows it narrower windows, makes it resend,
//! and asks the peer whether it is there.
//!
//! [`Recovery`] decides; `ingress` and `egress` call this with what arrived and when there is
//! time.

use alloc::vec;
use alloc::vec::Vec;

use shm_link::link::FrameTx;
use smoltcp::iface::SocketSet;
use smoltcp::socket::raw;
use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpAddress, IpProtocol, TCP_HEADER_LEN, TcpControl, TcpPacket,
    TcpRepr, TcpSeqNumber,
};

use super::{MIN_PATIENCE, Promises, View};
use crate::classify::{
    ETHERNET_LEN, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, TcpHeader, checksum_holds,
};
use crate::device::{FrameDevice, NoDevice, Wire};
use crate::flow::Entry;
use crate::path::{Quoted, Report};
use crate::sockets::Sockets;
use crate::tcp::connection::{Flow, Owner};
use crate::tcp::segment::{MAX_LEN, Received, Segment};
use crate::timers::earlier;

/// Segments that make a socket resend: another window and the true one clear
/// its count of duplicates, three duplicates make it resend.
const NUDGE: usize = 5;

/// Time between two keep-alive probes, at least.
const MIN_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// More than the longest time-out of smoltcp, which is a minute.
const LATER: Duration = Duration::from_secs(90);

impl Flow {
    /// What feeding a segment may change.
    pub(crate) fn view(&mut self) -> View {
        self.cell.with(|socket| View {
            state: socket.state(),
            unacknowledged: socket.send_queue(),
            unread: socket.recv_queue(),
        })
    }

    /// Data of a full segment: what the link and the peer take.
    fn segment_len(&self, mtu: usize) -> u32 {
        let headers = match self.key.remote.addr {
            IpAddress::Ipv4(_) => IPV4_HEADER_LEN,
            IpAddress::Ipv6(_) => IPV6_HEADER_LEN,
        };
        let link = mtu.saturating_sub(headers + TCP_HEADER_LEN);
        link.min(self.recovery.mss.into()) as u32
    }

    /// Windows are made of segments as long as they are now.
    pub(in crate::tcp) fn measures_segments(&mut self, mtu: usize) {
        // At most the peer's.
        let segment = self.segment_len(mtu) as u16;
        self.recovery.congestion.has_segments_of(segment);
    }

    /// The frame with the window that the socket is to be shown in place of the peer's, in
    /// `room`; `None`: the frame as it is.
    pub(crate) fn narrowed<'r>(
        &mut self,
        now: Instant,
        received: Received<'_>,
        mtu: usize,
        room: &'r mut Vec<u8>,
    ) -> Option<&'r [u8]> {
        let begins = self.last_state == State::SynSent && self.state() == State::SynSent;
        if !begins && !self.recovery.congestion.is_narrow() {
            return None;
        }
        let Received { packet, tcp, frame } = received;
        let window = match tcp.flags & (TCP_SYN | TCP_RST | TCP_ACK) {
            TCP_ACK => {
                self.measures_segments(mtu);
                self.recovery.shows(tcp, !self.options.nodelay)
            }
            // Its SYN's window is not scaled.
            flags if begins && flags == TCP_SYN | TCP_ACK => {
                let syn = TcpPacket::new_checked(frame.get(packet.payload.clone())?).ok()?;
                self.recovery.begun_by(Promises::of(&syn));
                self.measures_segments(mtu);
                self.recovery.answered(now, tcp.ack);
                self.recovery.congestion.clip(tcp.window, 0)
            }
            _ => return None,
        };
        if window == tcp.window {
            return None;
        }
        room.clear();
        room.extend_from_slice(frame);
        let header = room.get_mut(packet.payload.start..)?;
        header
            .get_mut(14..16)?
            .copy_from_slice(&window.to_be_bytes());
        let field: &mut [u8; 2] = header.get_mut(16..18)?.try_into().ok()?;
        // What was wrong stays wrong (RFC 1624, equation 3).
        let sum =
            u32::from(!u16::from_be_bytes(*field)) + u32::from(!tcp.window) + u32::from(window);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        *field = sum.to_be_bytes();
        Some(room)
    }

    /// A segment was fed to the socket, which was like `before`. The link `vouches` for
    /// its checksum, or does not.
    pub(crate) fn recovery_heard(
        &mut self,
        now: Instant,
        received: Received<'_>,
        before: View,
        vouches: bool,
    ) {
        let Received { packet, tcp, frame } = received;
        let bytes = frame.get(packet.payload.clone()).unwrap_or_default();
        let after_it = self.view();
        // smoltcp does not say whether it believed the segment. What changed
        // something, it did.
        let changed = before != after_it;
        if !changed && !vouches && (tcp.data_len != 0 || !checksum_holds(packet, frame)) {
            return;
        }
        self.recovery.heard(now, tcp, bytes, before, after_it);
    }

    /// Whether a segment does nothing but acknowledge once more all that was sent
    /// except our FIN. Such a segment must not be fed to the socket: the third
    /// duplicate stops smoltcp's timer in favour of a fast retransmit, which
    /// without data sends nothing, and the FIN would never come again.
    pub(crate) fn lacks_only_our_fin(&mut self, tcp: &TcpHeader) -> bool {
        let view = self.view();
        if !matches!(view.state, State::FinWait1 | State::Closing) || view.unacknowledged != 0 {
            return false;
        }
        let bare = tcp.flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK) == TCP_ACK;
        if !bare || tcp.data_len != 0 {
            return false;
        }
        self.recovery.before_fin.replace(tcp.ack) == Some(tcp.ack)
    }

    /// Whether the socket can be made to resend: it has data that waits for an
    /// acknowledgement, and counts duplicates (in LAST-ACK it does not).
    fn can_resend(&mut self) -> bool {
        let view = self.view();
        let counts = match view.state {
            State::Established | State::CloseWait | State::FinWait1 | State::Closing => true,
            State::Closed
            | State::Listen
            | State::SynSent
            | State::SynReceived
            | State::FinWait2
            | State::LastAck
            | State::TimeWait => false,
        };
        counts && view.unacknowledged != 0
    }

    /// When to look for a lost tail. `timer` says whether smoltcp has one.
    pub(crate) fn recovery_deadline(
        &mut self,
        now: Instant,
        mtu: usize,
        timer: bool,
    ) -> Option<Instant> {
        let unacknowledged = self.view().unacknowledged;
        let recovery = &mut self.recovery;
        recovery.forgotten = !timer;
        recovery.shut = recovery.window == 0 && recovery.in_flight() as usize >= unacknowledged;
        let more = unacknowledged > recovery.in_flight() as usize;
        // smoltcp probes with a byte, which is in flight then.
        recovery.barred = recovery.window == 0 && recovery.in_flight() <= 1 && more;
        let deadline = earlier(self.recovery.deadline(mtu), self.recovery.goes_back_at(now))?;
        (self.can_resend() || self.can_only_go_back() || self.forgot_fin()).then_some(deadline)
    }

    /// Whether the socket has data that wait for an acknowledgement, and counts no duplicates.
    fn can_only_go_back(&mut self) -> bool {
        let view = self.view();
        view.state == State::LastAck && view.unacknowledged != 0 && !self.recovery.forgotten
    }

    /// Whether a segment is longer than any window of the peer's, and there are the data for it.
    /// A socket that is made to resend its first segment sends a whole one all the same, and
    /// believes from then on that it sent what the peer had no room for: its acknowledgements
    /// stand behind the peer's window, and a peer that keeps to RFC 9293, 3.10.7.4, throws
    /// them away. Going back, it keeps to the window.
    fn overruns(&mut self, mtu: usize) -> bool {
        let widest = self.recovery.widest_window();
        let unacknowledged = u32::try_from(self.view().unacknowledged).unwrap_or(u32::MAX);
        let more = widest < self.segment_len(mtu).min(unacknowledged);
        more && self.recovery.window != 0 && !self.recovery.forgotten
    }

    /// Whether nothing but our FIN is in flight, and smoltcp will not send it again soon.
    fn forgot_fin(&mut self) -> bool {
        let view = self.view();
        let sent = match view.state {
            State::FinWait1 | State::Closing | State::LastAck => true,
            State::Closed
            | State::Listen
            | State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait2
            | State::CloseWait
            | State::TimeWait => false,
        };
        sent && view.unacknowledged == 0 && self.recovery.in_flight() == 1
    }

    /// Our FIN, as the socket sent it.
    fn our_fin(&self) -> Option<Segment> {
        let mut fin = self.bare(self.recovery.first()?);
        fin.tcp.control = TcpControl::Fin;
        Some(fin)
    }

    /// A segment that the peer answers with what it received: without data, and just
    /// before what it expects (RFC 1122, 4.2.3.6).
    fn keep_alive_probe(&self) -> Option<Segment> {
        Some(self.bare(self.recovery.first()?.wrapping_sub(1)))
    }

    /// A segment of ours without data.
    fn bare(&self, seq: u32) -> Segment {
        let recovery = &self.recovery;
        // The last window that was announced, of which no more was taken since.
        let end = recovery.window_end.unwrap_or(recovery.rcv_nxt);
        let window = end.wrapping_sub(recovery.rcv_nxt);
        let mut bare = self.segment_of_the_peer(seq, recovery.rcv_nxt);
        core::mem::swap(&mut bare.src, &mut bare.dst);
        core::mem::swap(&mut bare.tcp.src_port, &mut bare.tcp.dst_port);
        bare.hop_limit = self.options.hop_limit.max(1);
        bare.tcp.window_len = u16::try_from(window).unwrap_or(0);
        bare
    }

    /// When to ask whether the peer is still there, if nothing is heard of it until then.
    /// Where something is in flight, resending it asks.
    pub(crate) fn keep_alive_at(&self) -> Option<Instant> {
        let interval = self.options.keep_alive?.max(MIN_KEEP_ALIVE);
        let (since, unacknowledged) = self.waiting?;
        let idle = match self.last_state {
            State::Established | State::CloseWait | State::FinWait2 => {
                unacknowledged == 0 && self.recovery.in_flight() == 0
            }
            State::Closed
            | State::Listen
            | State::SynSent
            | State::SynReceived
            | State::FinWait1
            | State::Closing
            | State::LastAck
            | State::TimeWait => false,
        };
        let at = since + interval * (self.probes + 1);
        let at = self.probe_after.map_or(at, |after| at.max(after));
        (idle && self.owner != Owner::Orphan).then_some(at)
    }

    /// The peer's acknowledgement of what it has acknowledged already.
    fn acknowledgement(&self) -> Option<Segment> {
        Some(self.segment_of_the_peer(self.recovery.rcv_nxt, self.recovery.first()?))
    }

    /// A segment that the socket answers with what it received, and does not believe
    /// otherwise.
    pub(in crate::tcp) fn just_before_the_window(&self) -> Option<Segment> {
        let first = self.recovery.first()?;
        Some(self.segment_of_the_peer(self.recovery.rcv_nxt.wrapping_sub(1), first))
    }

    /// A segment of the peer's, without data.
    pub(in crate::tcp) fn segment_of_the_peer(&self, seq: u32, ack: u32) -> Segment {
        Segment {
            src: self.key.remote.addr,
            dst: self.key.local.addr,
            hop_limit: 64,
            tcp: TcpRepr {
                src_port: self.key.remote.port,
                dst_port: self.key.local.port,
                control: TcpControl::None,
                // smoltcp's sequence numbers are signed.
                seq_number: TcpSeqNumber(seq as i32),
                ack_number: Some(TcpSeqNumber(ack as i32)),
                window_len: self.recovery.shown_window(!self.options.nodelay),
                window_scale: None,
                max_seg_size: None,
                sack_permitted: false,
                sack_ranges: [None; 3],
                // Without one, smoltcp keeps the last that it saw.
                timestamp: None,
                payload: &[],
            },
        }
    }
}

impl Sockets {
    /// The link lost what was on it, and carries frames again: nobody waits for a
    /// timeout.
    pub(crate) fn link_is_back(&mut self, now: Instant) {
        for index in self.table.occupied() {
            if let Entry::Flow(flow) = self.table.entry(index) {
                flow.recovery.link_is_back(now);
            }
        }
    }

    /// A router could not pass a segment on: what follows to that address is shorter, and
    /// what was lost is sent again at once. Others may say so of what they never saw, so it
    /// counts only for a segment that is in flight.
    pub(crate) fn path_is_narrow(&mut self, now: Instant, report: &Report) {
        let Quoted::Segment { seq } = report.quoted else {
            return self.datagram_path_is_narrow(now, report);
        };
        let Some(index) = self.table.find(&report.key) else {
            return;
        };
        let Entry::Flow(flow) = self.table.entry(index) else {
            return;
        };
        if report.mtu >= self.io.mtu || !flow.recovery.is_in_flight(seq) {
            return;
        }
        let peer = report.key.remote.addr;
        if self.io.paths.learn(now, peer, report.mtu) {
            flow.recovery.path_is_narrow(flow.segment_len(report.mtu));
            flow.recovery.link_is_back(now);
            self.table.mark(index);
            self.counters.tcp_paths_narrowed += 1;
        }
    }

    /// Asks the peer of an idle connection whether it is there, if it is time.
    pub(crate) fn keep_alive(&mut self, index: u32, now: Instant, tx: &mut dyn FrameTx) {
        let Entry::Flow(flow) = self.table.entry(index) else {
            return;
        };
        if flow.keep_alive_at().is_none_or(|at| at > now) {
            return;
        }
        let mut wire = Wire {
            tx: &mut *tx,
            state: &mut self.io,
        };
        // One that finds no room was not sent: the peer is not to blame.
        if !wire.room(ETHERNET_LEN + MAX_LEN) {
            flow.probe_after = Some(now + MIN_PATIENCE);
            return;
        }
        flow.probe_after = None;
        flow.probes = flow.probes.saturating_add(1);
        if let Some(probe) = flow.keep_alive_probe() {
            self.send_raw(now, &probe, tx);
        }
    }

    /// Lets a connection resend what is lost, if it is time. Called before the connection's
    /// turn to send.
    pub(crate) fn recover(&mut self, index: u32, now: Instant, tx: &mut dyn FrameTx) {
        let mtu = self.io.mtu;
        let Entry::Flow(flow) = self.table.entry(index) else {
            return;
        };
        let due = flow.recovery.take_due(now, mtu);
        let overruns = due && flow.overruns(mtu);
        if overruns || due && flow.can_only_go_back() {
            flow.recovery.takes_for_lost(flow.segment_len(mtu));
        }
        flow.recovery.judge(now, flow.segment_len(mtu), due);
        if !due {
            return;
        }
        let instead = if flow.forgot_fin() {
            flow.our_fin()
        } else if flow.recovery.barred {
            // Its answer tells of the window.
            flow.keep_alive_probe()
        } else {
            None
        };
        if let Some(segment) = instead {
            self.send_raw(now, &segment, tx);
            return;
        }
        if overruns || !flow.can_resend() {
            return;
        }
        let Some(mut segment) = flow.acknowledgement() else {
            return;
        };
        flow.recovery.recover = flow.recovery.recover.or(flow.recovery.highest);
        let true_window = segment.tcp.window_len;
        // Never zero, which would start smoltcp's window probes.
        let other_window = match true_window {
            u16::MAX => u16::MAX - 1,
            window => window + 1,
        };
        let mut frame = [0; ETHERNET_LEN + MAX_LEN];
        let frame = &mut frame[..segment.frame_len()];
        let mac = self.net.mac;
        for step in 0..NUDGE {
            segment.tcp.window_len = if step == 0 { other_window } else { true_window };
            // From ourselves, so that it says nothing of the neighbour.
            segment.write_frame(frame, mac, mac);
            self.feed(index, now, frame, tx);
            self.counters.tcp_recovery_acks += 1;
        }
        self.table.unmark_last(index);
    }
}

impl Sockets {
    /// Makes a socket that has nothing to say go back to its first unacknowledged byte, as at
    /// its time-out, if something of what it sent is lost: it is shown a time that is later
    /// than any, and nowhere to send to. `board` lets through what is lost.
    pub(crate) fn go_back(&mut self, index: u32, now: Instant) -> bool {
        let mtu = self.io.mtu;
        let Entry::Flow(flow) = self.table.entry(index) else {
            return false;
        };
        flow.recovery.board = self.io.board.take();
        let fresh = self.io.tally.and_then(|tally| tally.highest);
        let fresh = fresh.unwrap_or_default();
        // Else another of its timers would be what it takes the time for.
        let waits = flow.can_resend() || flow.can_only_go_back();
        let goes_back = waits && flow.recovery.goes_back(now, flow.segment_len(mtu), fresh);
        self.io.board = flow.recovery.lend_board();
        if !goes_back {
            return false;
        }
        let mut device = NoDevice(&self.io);
        let interface = &mut self.interface;
        self.table.entry(index).with_set(|set| {
            interface.poll_egress(now + LATER, &mut device, set);
        });
        true
    }

    /// Sends a segment without its socket. Where the neighbour is not known, it is
    /// asked for instead, and the segment is lost, as segments may be.
    fn send_raw(&mut self, now: Instant, segment: &Segment, tx: &mut dyn FrameTx) {
        let version = segment.src.version();
        let buffer =
            || raw::PacketBuffer::new(vec![raw::PacketMetadata::EMPTY; 1], vec![0; MAX_LEN]);
        let mut socket = raw::Socket::new(Some(version), Some(IpProtocol::Tcp), buffer(), buffer());
        let Ok(packet) = socket.send(segment.packet_len()) else {
            return;
        };
        segment.write_packet(packet);
        let mut set = SocketSet::new(vec![]);
        set.add(socket);
        let mut device = FrameDevice {
            frame: None,
            wire: Wire {
                tx,
                state: &mut self.io,
            },
        };
        self.interface.poll_egress(now, &mut device, &mut set);
    }
}
