//! Loss recovery around a smoltcp socket.
//!
//! smoltcp resends the first unacknowledged segment when the third duplicate
//! acknowledgement in a row arrives; everything else that is lost waits for a
//! timeout of a second. This adds, without touching smoltcp:
//! - partial acknowledgements: while what was in flight when a loss was noticed
//!   is not acknowledged whole, an acknowledgement of a part of it shows the
//!   next hole, which is resent at once (RFC 6582, 3.2);
//! - selective acknowledgements as a sign of loss, where too few duplicates
//!   come (large segments, lost acknowledgements; RFC 6675, 4), and as the sign
//!   that there is a hole behind a partial acknowledgement;
//! - a timer in the manner of tail loss probes (RFC 8985, 7), for lost tails and
//!   lost retransmissions. It doubles while nothing is acknowledged and stops
//!   before a second: then smoltcp's own timeout has its turn. It goes on where
//!   smoltcp has none, which is lost when a window closes and opens again, and
//!   where a window is closed and not all in flight is acknowledged: smoltcp then
//!   probes with what was not sent yet, and that may be nothing.
//!
//! What of it is a sign of congestion, `congestion` decides.
//!
//! A FIN for which smoltcp has no timer, with all data before it acknowledged, is
//! sent again from here: nothing makes the socket do it.
//!
//! Else the socket is made to resend by showing it acknowledgements of what is
//! acknowledged already: [`NUDGE`]. They carry the peer's last window last, no
//! data and no options; they are not counted as heard from the peer.
//! `ingress` says what arrived, `egress` what was sent, and when there is time.

use alloc::vec;
use alloc::vec::Vec;

use shm_link::link::FrameTx;
use smoltcp::iface::SocketSet;
use smoltcp::socket::raw;
use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpProtocol, TcpControl, TcpOption, TcpPacket, TcpRepr, TcpSeqNumber};

use super::congestion::Congestion;
use super::connection::{Flow, Owner};
use super::segment::{MAX_LEN, Segment};
use crate::classify::{
    Class, ETHERNET_LEN, Kind, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, TcpHeader, checksum_holds,
    classify,
};
use crate::device::{FrameDevice, Wire};
use crate::flow::Entry;
use crate::path::Report;
use crate::sockets::Sockets;
use crate::tally::{Tally, after};

/// Segments that make a socket resend: another window and the true one clear
/// its count of duplicates, three duplicates make it resend.
const NUDGE: usize = 5;

/// Silence after which something is taken for lost, at least. It keeps the
/// scheduling of two hosts from looking like a loss.
const MIN_PATIENCE: Duration = Duration::from_millis(10);

/// Time between two keep-alive probes, at least.
const MIN_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// What two round trips are given on top.
const MARGIN: Duration = Duration::from_millis(2);

/// What is added for a lone segment, whose acknowledgement the peer may hold
/// back: Linux does for 40 ms.
const LONE_MARGIN: Duration = Duration::from_millis(50);

/// A last round trip of more than this, in µs, does not make the silence longer after which
/// something is taken for lost: three more probes come before smoltcp's time-out.
const LONGEST_QUEUE_US: u32 = 100_000;

/// Probes without an answer after which all that is in flight is taken for lost.
const PROBES_IN_VAIN: u8 = 3;

/// smoltcp's shortest retransmission timeout: no probe is that late.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The longest wait between probes where nobody else resends. More than smoltcp's
/// longest timeout of a minute: a probe begins its wait anew.
const LONGEST_PATIENCE: Duration = Duration::from_secs(90);

/// Whether the peer's FIN was received in this state.
fn finished(state: State) -> bool {
    match state {
        State::CloseWait | State::LastAck | State::Closing | State::TimeWait => true,
        State::Closed
        | State::Listen
        | State::SynSent
        | State::SynReceived
        | State::Established
        | State::FinWait1
        | State::FinWait2 => false,
    }
}

/// What of a socket's state changes when a segment is fed to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    state: State,
    unacknowledged: usize,
    unread: usize,
}

/// What a connection remembers of its losses: 176 bytes at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recovery {
    /// The first unacknowledged sequence number, once data was acknowledged.
    acked: Option<u32>,
    /// The same before that: what follows our SYN.
    after_syn: Option<u32>,
    /// Behind the highest that was ever sent.
    highest: Option<u32>,
    /// The next sequence number that the socket expects.
    rcv_nxt: u32,
    /// The end of the window that we announced last, or less.
    window_end: Option<u32>,
    /// The window field of the peer's last segment.
    window: u16,
    /// By how much the peer scales its windows.
    shift: u8,
    congestion: Congestion,
    /// A loss was noticed when this was the highest, and not all below it is
    /// acknowledged.
    recover: Option<u32>,
    /// When something was resent last, and its end.
    resent: Option<(Instant, u32)>,
    /// The round trip that is being measured: the end of what was sent, when.
    sample: Option<(u32, Instant)>,
    /// Smoothed round trip time, in µs.
    srtt_us: Option<u32>,
    /// Since when nothing was acknowledged, or resent.
    since: Instant,
    /// Probes since something was acknowledged.
    probes: u8,
    /// The peer tells what it has behind a hole.
    selective: bool,
    /// The first hole is to be resent.
    due: bool,
    /// smoltcp has no timer for what is in flight.
    forgotten: bool,
    /// The peer's window is closed, and smoltcp has nothing to probe it with.
    shut: bool,
    /// What is resent is resent because of a silence.
    probing: bool,
    /// Our SYN was sent more than once, so smoltcp's first time-out is as long as the last
    /// wait was (RFC 6298, 5.7, would have it begin anew).
    repeated: bool,
    /// What was acknowledged last while nothing but our FIN was missing.
    before_fin: Option<u32>,
}

impl Recovery {
    pub(crate) fn new() -> Self {
        Self {
            acked: None,
            after_syn: None,
            highest: None,
            rcv_nxt: 0,
            window_end: None,
            window: 0,
            shift: 0,
            congestion: Congestion::default(),
            recover: None,
            resent: None,
            sample: None,
            srtt_us: None,
            since: Instant::ZERO,
            probes: 0,
            selective: false,
            due: false,
            forgotten: false,
            shut: false,
            probing: false,
            repeated: false,
            before_fin: None,
        }
    }

    /// What the peer's SYN says of the windows that follow (RFC 7323, 2.2).
    pub(crate) fn scaled_by(&mut self, shift: Option<u8>) {
        self.shift = shift.unwrap_or(0).min(14);
    }

    /// The handshake is complete: what follows either side's SYN, and how long our SYN and
    /// its answer took. Without that, the first thing that is said would wait a second if it
    /// is lost, and twice as long each time it is lost again. Where an ACK was lost, the peer
    /// takes until it speaks, which is no round trip.
    pub(crate) fn synchronized(
        &mut self,
        after_syn: u32,
        rcv_nxt: u32,
        round_trip: Option<Duration>,
    ) {
        self.after_syn = Some(after_syn);
        self.rcv_nxt = rcv_nxt;
        if let Some(round_trip) = round_trip.filter(|time| *time < TIMEOUT) {
            self.measured(round_trip);
        }
    }

    /// The next sequence number that the socket expects, once it is known.
    pub(crate) fn expected(&self) -> Option<u32> {
        self.after_syn.map(|_| self.rcv_nxt)
    }

    /// Whether data up to `end` fits the window that we announced for certain.
    pub(crate) fn announced(&self, end: u32) -> bool {
        self.window_end.is_some_and(|window| !after(end, window))
    }

    /// The first unacknowledged sequence number.
    fn first(&self) -> Option<u32> {
        self.acked.or(self.after_syn)
    }

    /// Bytes in flight, as far as is known; a FIN is one.
    fn in_flight(&self) -> u32 {
        match (self.first(), self.highest) {
            (Some(acked), Some(highest)) if after(highest, acked) => highest.wrapping_sub(acked),
            _ => 0,
        }
    }

    /// Whether the segment that begins at `seq` is in flight.
    pub(crate) fn is_in_flight(&self, seq: u32) -> bool {
        self.first()
            .is_some_and(|first| seq.wrapping_sub(first) < self.in_flight())
    }

    /// What is sent from here on continues what was sent before.
    pub(crate) fn tally(&self) -> Tally {
        Tally {
            highest: self.highest,
            ..Tally::default()
        }
    }

    /// The socket had its turn.
    pub(crate) fn sent(&mut self, now: Instant, tally: &Tally) {
        if let Some(rcv_nxt) = tally.rcv_nxt {
            self.rcv_nxt = rcv_nxt;
        }
        self.window_end = tally.window_end.or(self.window_end);
        let in_flight = self.in_flight();
        if tally.resent > 0 {
            // Karn's rule: no sample of what was sent twice, be it the SYN.
            self.sample = None;
        }
        if tally.resent > 0 && in_flight > 0 {
            self.since = now;
            self.resent = Some((now, tally.resent_end));
            // More than one at a time is smoltcp's timeout: all is sent again.
            self.recover = match tally.resent {
                1 => self.recover.or(self.highest),
                _ => None,
            };
            match tally.resent {
                // A silence alone may be a busy host's: what is acknowledged next tells.
                1 if self.probing => self.congestion.sent_again(),
                1 => self.congestion.lost(in_flight),
                _ => self.congestion.timed_out(in_flight),
            }
        }
        self.highest = tally.highest;
        if tally.fresh {
            if in_flight == 0 {
                self.since = now;
            }
            if self.recover.is_none() && self.sample.is_none() {
                self.sample = self.highest.map(|highest| (highest, now));
                self.congestion.round_begins();
            }
        }
    }

    /// A segment was fed to the socket. `tcp_bytes` is the segment.
    pub(crate) fn heard(
        &mut self,
        now: Instant,
        tcp: &TcpHeader,
        tcp_bytes: &[u8],
        before: View,
        after_it: View,
        mtu: usize,
    ) {
        if before.state == State::SynSent && after_it.state == State::Established {
            let sample = self.sample.take().filter(|(end, _)| *end == tcp.ack);
            let round_trip = sample.map(|(_, at)| now - at);
            self.repeated = round_trip.is_none();
            self.synchronized(tcp.ack, tcp.seq.wrapping_add(1), round_trip);
            self.window = TcpPacket::new_checked(tcp_bytes).map_or(0, |packet| {
                // This one is not scaled, all others are (RFC 7323, 2.2).
                let window = packet.window_len();
                self.shift = window_scale(&packet);
                (window >> self.shift).max(window.min(1))
            });
            return;
        }
        let fin = finished(after_it.state) && !finished(before.state);
        let received = after_it.unread.saturating_sub(before.unread) + usize::from(fin);
        let expected = self.rcv_nxt;
        // Less than a receive buffer, and that is less than 2³⁰.
        self.rcv_nxt = self.rcv_nxt.wrapping_add(received as u32);
        let Ok(packet) = TcpPacket::new_checked(tcp_bytes) else {
            return;
        };
        let acceptable = tcp.flags & (TCP_SYN | TCP_RST | TCP_ACK) == TCP_ACK
            && !after(expected, tcp.seq_end())
            && self.acked.is_none_or(|acked| !after(acked, tcp.ack));
        if acceptable {
            if came_twice(&packet, tcp.ack) {
                self.congestion.came_twice();
            }
            self.window = packet.window_len();
            // After a long silence: the way is free again, and the next probe would be late.
            let rested = self.resent.is_none_or(|(at, _)| now >= at + MIN_PATIENCE);
            self.due |= self.probes >= PROBES_IN_VAIN && rested && self.in_flight() > 0;
        }
        if after_it.unacknowledged < before.unacknowledged {
            // The socket took data off its buffer: it believes this segment.
            self.acked = Some(tcp.ack);
            let bytes = before.unacknowledged - after_it.unacknowledged;
            let recovering = self.recover.is_some();
            // A send buffer holds less than 2³⁰.
            self.congestion.acknowledged(bytes as u32, recovering);
            self.progress(now, tcp.ack, &packet);
        } else if acceptable
            && self.acked == Some(tcp.ack)
            && self.in_flight() > 0
            && tcp.data_len == 0
            && (self.recover.is_none() || !self.selective)
        {
            let above = selected(&packet, tcp.ack);
            self.selective |= above > 0;
            // More than two segments behind the hole have arrived.
            if self.recover.is_none() && above as usize > 2 * mtu {
                self.due = true;
            }
        }
    }

    /// Data was acknowledged up to `ack`.
    fn progress(&mut self, now: Instant, ack: u32, packet: &TcpPacket<&[u8]>) {
        if self.highest.is_none_or(|highest| after(ack, highest)) {
            self.highest = Some(ack);
        }
        self.since = now;
        let probes = core::mem::take(&mut self.probes);
        self.due = false;
        if let Some((at, end)) = self.resent
            && !after(end, ack)
        {
            let micros = (now - at).total_micros().min(60_000_000) as u32;
            // After a silence nobody knows which of the probes is answered.
            let known = (probes < PROBES_IN_VAIN).then_some(micros);
            self.congestion.answered(known);
            if core::mem::take(&mut self.probing) && after(ack, end) && selected(packet, ack) == 0 {
                // Nothing was lost, it was late (RFC 5682).
                self.recover = None;
            }
        }
        if let Some((end, at)) = self.sample
            && !after(end, ack)
        {
            self.sample = None;
            self.measured(now - at);
        }
        if let Some(recover) = self.recover {
            let resent = self.resent.filter(|(_, end)| !after(*end, ack));
            // With nothing better: what was resent was most likely lost, so
            // this answers it.
            if self.srtt_us.is_none()
                && let Some((at, _)) = resent
            {
                self.measured(now - at);
            }
            if after(recover, ack) {
                // A peer that tells what it has tells it now too, unless all
                // behind the segment that was resent was lost.
                let answers = resent.is_some_and(|(_, end)| end == ack);
                self.due = !self.selective || answers || selected(packet, ack) > 0;
            } else {
                self.recover = None;
            }
        }
    }

    fn measured(&mut self, round_trip: Duration) {
        // A minute at most.
        let sample = round_trip.total_micros().min(60_000_000) as u32;
        self.congestion.round_ends(sample);
        self.srtt_us = Some(match self.srtt_us {
            None => sample,
            // RFC 6298, 2.3, with the values that it gives.
            Some(smoothed) => smoothed - smoothed / 8 + sample / 8,
        });
    }

    /// The peer's window, or the narrower one that the socket is to see.
    fn shown_window(&self) -> u16 {
        self.congestion.clip(self.window, self.shift)
    }

    /// The link lost what was on it, and carries frames again.
    fn link_is_back(&mut self, now: Instant) {
        // That was no congestion.
        self.congestion.forgive();
        self.probes = 0;
        self.since = now;
        self.due = self.in_flight() > 0;
    }

    /// When what is in flight is taken for lost, if nothing is heard.
    fn deadline(&self, mtu: usize) -> Option<Instant> {
        let in_flight = self.in_flight() as usize;
        let round_trip = match self.srtt_us {
            // A queue that is just filling has made it longer than it was. A host that was
            // away has not.
            Some(micros) => {
                let micros = micros.max(self.congestion.latest_us().min(LONGEST_QUEUE_US));
                Duration::from_micros(micros.into())
            }
            None if self.forgotten || self.shut || self.repeated => TIMEOUT,
            None => return None,
        };
        if in_flight == 0 {
            return None;
        }
        let mut patience = (round_trip * 2 + MARGIN).max(MIN_PATIENCE);
        if in_flight <= mtu {
            patience += LONE_MARGIN;
        }
        // Ten milliseconds are more than a second after seven probes, and more than
        // a minute after thirteen.
        let patience = patience * (1 << self.probes.min(13));
        if self.forgotten || self.shut || self.repeated && self.srtt_us.is_none() {
            let least = if self.window == 0 {
                TIMEOUT
            } else {
                MIN_PATIENCE
            };
            return Some(self.since + patience.clamp(least, LONGEST_PATIENCE));
        }
        if self.window == 0 {
            return None;
        }
        (patience < TIMEOUT).then_some(self.since + patience)
    }

    /// Whether the first hole is to be resent now. Asking counts.
    fn take_due(&mut self, now: Instant, mtu: usize) -> bool {
        let late = self.deadline(mtu).is_some_and(|at| at <= now);
        if late {
            self.probes = self.probes.saturating_add(1);
            self.since = now;
            // Before smoltcp's time-out comes, which sends all at once that the window takes.
            if self.probes >= PROBES_IN_VAIN {
                self.congestion.timed_out(self.in_flight());
            }
        }
        let due = core::mem::take(&mut self.due);
        self.probing = late && !due;
        let due = due || late;
        (due && self.window != 0 || late) && self.in_flight() > 0
    }
}

/// By how much the sender of this SYN scales the windows that follow.
fn window_scale(packet: &TcpPacket<&[u8]>) -> u8 {
    let mut options = packet.options();
    while let Ok((rest, option)) = TcpOption::parse(options) {
        match option {
            TcpOption::WindowScale(shift) => return shift.min(14),
            TcpOption::EndOfList => return 0,
            _ if rest.is_empty() => return 0,
            _ => options = rest,
        }
    }
    0
}

/// Whether a segment says that something below `ack` came twice: in its first block
/// (RFC 2883, 4).
fn came_twice(packet: &TcpPacket<&[u8]>, ack: u32) -> bool {
    let blocks = packet.selective_ack_ranges().unwrap_or_default();
    let first = blocks.into_iter().next().flatten();
    first.is_some_and(|(_, right)| !after(right, ack))
}

/// Bytes behind `ack` that a segment says have arrived.
fn selected(packet: &TcpPacket<&[u8]>, ack: u32) -> u32 {
    let blocks = packet.selective_ack_ranges().unwrap_or_default();
    let blocks = blocks.into_iter().flatten();
    // A block below `ack` tells of a segment that came twice (RFC 2883).
    let above = blocks.filter(|(left, right)| after(*left, ack) && after(*right, *left));
    above.fold(0, |sum, (left, right)| {
        sum.saturating_add(right.wrapping_sub(left))
    })
}

impl Flow {
    /// What feeding a segment may change.
    pub(crate) fn view(&mut self) -> View {
        self.cell.with(|socket| View {
            state: socket.state(),
            unacknowledged: socket.send_queue(),
            unread: socket.recv_queue(),
        })
    }

    /// The frame with the window that the socket is to be shown in place of the peer's, in
    /// `room`; `None`: the frame as it is.
    pub(crate) fn narrowed<'r>(&mut self, frame: &[u8], room: &'r mut Vec<u8>) -> Option<&'r [u8]> {
        let recovery = &mut self.recovery;
        if !recovery.congestion.is_narrow() {
            return None;
        }
        let Some(Class::Ip(packet)) = classify(frame) else {
            return None;
        };
        let Kind::Tcp(tcp) = packet.kind else {
            return None;
        };
        // Its SYN's window is not scaled.
        if tcp.flags & (TCP_SYN | TCP_RST | TCP_ACK) != TCP_ACK {
            return None;
        }
        if let (Some((_, resent)), Some(highest)) = (recovery.resent, recovery.highest)
            && after(tcp.ack, resent)
            && !after(tcp.ack, highest)
        {
            recovery.congestion.was_not_silent();
        }
        let window = recovery.congestion.show(tcp.window, recovery.shift);
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

    /// A frame was fed to the socket, which was like `before`. The link `vouches` for
    /// its checksum, or does not.
    pub(crate) fn recovery_heard(
        &mut self,
        now: Instant,
        frame: &[u8],
        before: View,
        mtu: usize,
        vouches: bool,
    ) {
        let Some(Class::Ip(packet)) = classify(frame) else {
            return;
        };
        let Kind::Tcp(tcp) = packet.kind else {
            return;
        };
        let bytes = frame.get(packet.payload.clone()).unwrap_or_default();
        let after_it = self.view();
        // smoltcp does not say whether it believed the segment. What changed
        // something, it did.
        let changed = before != after_it;
        if !changed && !vouches && (tcp.data_len != 0 || !checksum_holds(&packet, frame)) {
            return;
        }
        self.recovery.heard(now, &tcp, bytes, before, after_it, mtu);
    }

    /// Whether a frame does nothing but acknowledge once more all that was sent
    /// except our FIN. Such a frame must not be fed to the socket: the third
    /// duplicate stops smoltcp's timer in favour of a fast retransmit, which
    /// without data sends nothing, and the FIN would never come again.
    pub(crate) fn lacks_only_our_fin(&mut self, frame: &[u8]) -> bool {
        let view = self.view();
        if !matches!(view.state, State::FinWait1 | State::Closing) || view.unacknowledged != 0 {
            return false;
        }
        let Some(Class::Ip(packet)) = classify(frame) else {
            return false;
        };
        let Kind::Tcp(tcp) = packet.kind else {
            return false;
        };
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
    pub(crate) fn recovery_deadline(&mut self, mtu: usize, timer: bool) -> Option<Instant> {
        let unacknowledged = self.view().unacknowledged;
        let recovery = &mut self.recovery;
        recovery.forgotten = !timer;
        recovery.shut = recovery.window == 0 && recovery.in_flight() as usize >= unacknowledged;
        let deadline = self.recovery.deadline(mtu)?;
        (self.can_resend() || self.forgot_fin()).then_some(deadline)
    }

    /// Whether nothing but our FIN is in flight, and smoltcp will not send it again.
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
        sent && view.unacknowledged == 0
            && self.recovery.forgotten
            && self.recovery.in_flight() == 1
    }

    /// Our FIN, as the socket sent it.
    fn our_fin(&self) -> Option<Segment> {
        let mut fin = self.keep_alive_probe()?;
        fin.tcp.control = TcpControl::Fin;
        Some(fin)
    }

    /// A segment that the peer answers with what it received: without data, and just
    /// before what it expects (RFC 1122, 4.2.3.6).
    fn keep_alive_probe(&self) -> Option<Segment> {
        let recovery = &self.recovery;
        let next = recovery.highest.or(recovery.first())?;
        // The last window that was announced, of which no more was taken since.
        let end = recovery.window_end.unwrap_or(recovery.rcv_nxt);
        let window = end.wrapping_sub(recovery.rcv_nxt);
        let mut probe = self.segment_of_the_peer(next.wrapping_sub(1), recovery.rcv_nxt);
        core::mem::swap(&mut probe.src, &mut probe.dst);
        core::mem::swap(&mut probe.tcp.src_port, &mut probe.tcp.dst_port);
        probe.hop_limit = self.options.hop_limit.max(1);
        probe.tcp.window_len = u16::try_from(window).unwrap_or(0);
        Some(probe)
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
    pub(super) fn just_before_the_window(&self) -> Option<Segment> {
        let first = self.recovery.first()?;
        Some(self.segment_of_the_peer(self.recovery.rcv_nxt.wrapping_sub(1), first))
    }

    /// A segment of the peer's, without data.
    pub(super) fn segment_of_the_peer(&self, seq: u32, ack: u32) -> Segment {
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
                window_len: self.recovery.shown_window(),
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
        let Some(index) = self.table.find(&report.key) else {
            return;
        };
        let Entry::Flow(flow) = self.table.entry(index) else {
            return;
        };
        if report.mtu >= self.io.mtu || !flow.recovery.is_in_flight(report.seq) {
            return;
        }
        let peer = report.key.remote.addr;
        if self.io.paths.learn(now, peer, report.mtu) {
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

    /// Makes a connection resend its first hole, if it is time. Called before
    /// the connection's turn to send.
    pub(crate) fn recover(&mut self, index: u32, now: Instant, tx: &mut dyn FrameTx) {
        let mtu = self.io.mtu;
        let Entry::Flow(flow) = self.table.entry(index) else {
            return;
        };
        if flow.recovery.in_flight() == 0 || !flow.recovery.take_due(now, mtu) {
            return;
        }
        if flow.forgot_fin() {
            if let Some(fin) = flow.our_fin() {
                self.send_raw(now, &fin, tx);
            }
            return;
        }
        if !flow.can_resend() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_remembers_of_its_losses_is_small() {
        assert!(size_of::<Recovery>() <= 176, "{}", size_of::<Recovery>());
    }

    #[test]
    fn probes_double_their_patience_and_end_before_a_second() {
        let mut recovery = Recovery {
            acked: Some(0),
            highest: Some(10_000),
            window: 1000,
            srtt_us: Some(4000),
            ..Recovery::new()
        };
        let mut now = Instant::ZERO;
        let mut waits = alloc::vec::Vec::new();
        while let Some(at) = recovery.deadline(1500) {
            waits.push((at - now).total_millis());
            now = at;
            assert!(recovery.take_due(now, 1500));
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640]);
    }

    #[test]
    fn a_closed_window_is_probed_slowly_and_only_if_something_is_missing() {
        let mut recovery = Recovery {
            acked: Some(0),
            highest: Some(10_000),
            srtt_us: Some(4000),
            ..Recovery::new()
        };
        assert_eq!(recovery.deadline(1500), None, "smoltcp probes it");
        recovery.shut = true;
        let mut waits = alloc::vec::Vec::new();
        for _ in 0..16 {
            let at = recovery.deadline(1500).unwrap();
            waits.push((at - recovery.since).total_millis());
            assert!(recovery.take_due(at, 1500));
        }
        assert_eq!(waits[..8], [1000, 1000, 1000, 1000, 1000, 1000, 1000, 1280]);
        assert_eq!(waits[13..], [81_920; 3]);
        recovery.acked = recovery.highest;
        assert_eq!(recovery.deadline(1500), None);
    }

    #[test]
    fn where_smoltcp_has_no_timer_probes_go_on() {
        let mut recovery = Recovery {
            acked: Some(0),
            highest: Some(10_000),
            window: 1000,
            forgotten: true,
            ..Recovery::new()
        };
        let mut total = 0;
        for _ in 0..10 {
            let at = recovery.deadline(1500).unwrap();
            total += (at - recovery.since).total_millis();
            assert!(recovery.take_due(at, 1500));
        }
        assert!(total < 8 * 90_000, "{total}");
    }
}
