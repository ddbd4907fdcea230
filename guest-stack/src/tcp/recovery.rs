//! Loss recovery around a smoltcp socket.
//!
//! smoltcp resends the first unacknowledged segment when the third duplicate
//! acknowledgement in a row arrives; everything else that is lost waits for a
//! timeout of a second. This adds, without touching smoltcp:
//! - selective acknowledgements (RFC 2018): the holes that a peer tells of are kept
//!   (`recovery/scoreboard`), and what is lost of them is resent in one round trip (RFC
//!   6675), again if it is lost again (RFC 8985). The socket can only send all anew, as
//!   at its time-out; it is made to, and `device` lets through what is lost;
//! - partial acknowledgements, of a peer that tells nothing: while what was in flight when
//!   a loss was noticed is not acknowledged whole, an acknowledgement of a part of it
//!   shows the next hole, which is resent at once (RFC 6582, 3.2). Of a peer that would
//!   tell, it shows that all behind it is lost;
//! - a timer in the manner of tail loss probes (RFC 8985, 7), for lost tails and
//!   lost retransmissions. It doubles while nothing is acknowledged and stops
//!   before a second: then smoltcp's own timeout has its turn. It goes on where
//!   smoltcp has none, which is lost when a window closes and opens again, and
//!   where a window is closed and not all in flight is acknowledged: smoltcp then
//!   probes with what was not sent yet, and that may be nothing. A window that stays
//!   closed is asked for before smoltcp asks, which does after a second.
//!
//! What of it is a sign of congestion, `congestion` decides.
//!
//! A FIN for which smoltcp has no timer, with all data before it acknowledged, is
//! sent again from here: nothing makes the socket do it.
//!
//! The socket is made to resend its first segment by showing it acknowledgements of what is
//! acknowledged already (`recovery/flow`). They carry the peer's last window last, no
//! data and no options; they are not counted as heard from the peer.
//! `ingress` says what arrived, `egress` what was sent, and when there is time.

mod flow;
mod holes;
mod options;
mod scoreboard;

use alloc::boxed::Box;

use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::TcpPacket;

pub(crate) use self::options::Promises;
use self::options::{came_twice, selected};
pub(crate) use self::scoreboard::Scoreboard;
use super::congestion::{Congestion, Flight};
use crate::classify::{TCP_ACK, TCP_RST, TCP_SYN, TcpHeader};
use crate::tally::{Tally, after};

/// Silence after which something is taken for lost, at least. It keeps the
/// scheduling of two hosts from looking like a loss.
const MIN_PATIENCE: Duration = Duration::from_millis(10);

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

/// A minute: no round trip is taken for longer.
const LONGEST_US: u32 = 60_000_000;

/// Marks in a round trip.
const MARKS: usize = 8;

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

impl View {
    /// Whether data came since `before`.
    pub(crate) fn has_more_unread_than(&self, before: &Self) -> bool {
        self.unread > before.unread
    }
}

/// What a connection remembers of its losses: 440 bytes, and its board while it has holes.
#[derive(Debug)]
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
    /// The widest that it ever was.
    widest: u16,
    /// By how much the peer scales its windows.
    shift: u8,
    /// The most data that it takes in a segment, or the path to it.
    mss: u16,
    congestion: Congestion,
    /// A loss was noticed when this was the highest, and not all below it is
    /// acknowledged.
    recover: Option<u32>,
    /// When something was resent last, and its end.
    resent: Option<(Instant, u32)>,
    /// The socket's time-out: all up to here is sent again, as the window lets it.
    all_again: Option<u32>,
    /// The round trip that is being measured: the end of what was sent, when.
    sample: Option<(u32, Instant)>,
    /// Ends of what was sent, and when, in µs: what they took tells of a queue while it
    /// builds up.
    marks: heapless::Deque<(u32, u32), MARKS>,
    /// Smoothed round trip time, in µs.
    srtt_us: Option<u32>,
    /// That is how long something took that was sent again, so it may be anything.
    guessed: bool,
    /// What the peer has behind the first hole, while it tells.
    board: Option<Box<Scoreboard>>,
    /// When the socket went back to its first unacknowledged byte last. Its own time-out is
    /// longer since.
    rewound: Option<Instant>,
    /// Nothing came of it: what is lost is out of its reach.
    in_vain: bool,
    /// Since when nothing was acknowledged, or resent.
    since: Instant,
    /// When the peer acknowledged something last, be it again.
    heard_at: Instant,
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
    /// The peer's window is closed, all but a probe is acknowledged, and more waits. What opens the window
    /// may have been lost.
    barred: bool,
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
            widest: 0,
            shift: 0,
            mss: u16::MAX,
            congestion: Congestion::default(),
            recover: None,
            resent: None,
            all_again: None,
            sample: None,
            marks: heapless::Deque::new(),
            srtt_us: None,
            guessed: false,
            board: None,
            rewound: None,
            in_vain: false,
            since: Instant::ZERO,
            heard_at: Instant::ZERO,
            probes: 0,
            selective: false,
            due: false,
            forgotten: false,
            shut: false,
            barred: false,
            probing: false,
            repeated: false,
            before_fin: None,
        }
    }

    /// What the peer's SYN says of what follows.
    pub(crate) fn begun_by(&mut self, promises: Promises) {
        self.shift = promises.shift.unwrap_or(0).min(14);
        self.selective = promises.selective;
        self.mss = promises.mss;
    }

    /// The path takes no more data in a segment than this. What is forgotten of paths later
    /// is not forgotten here: it only makes windows of shorter segments.
    fn path_is_narrow(&mut self, segment: u32) {
        self.mss = u16::try_from(segment).map_or(self.mss, |segment| segment.min(self.mss));
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

    /// What ended the handshake carried data: the ACK before it may have been lost, and then it
    /// took until the peer spoke again.
    pub(crate) fn only_guessed(&mut self) {
        self.guessed = self.srtt_us.is_some();
    }

    /// What the first round trip says of the path. Before the segment that ends the
    /// handshake is shown to the socket, or that would take the peer's whole window.
    pub(crate) fn begins(&mut self, round_trip: Option<Duration>) {
        self.congestion.begins(round_trip.map(micros));
    }

    /// The answer to our SYN came, which acknowledges up to `ack`.
    pub(crate) fn answered(&mut self, now: Instant, ack: u32) {
        let sample = self.sample.filter(|(end, _)| *end == ack);
        self.begins(sample.map(|(_, at)| now - at));
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

    /// Whether probes were answered by nothing.
    pub(crate) fn is_in_vain(&self) -> bool {
        self.probes >= PROBES_IN_VAIN
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
        let again = tally.resent + tally.chosen;
        if again > 0 {
            // Karn's rule: no sample of what was sent twice, be it the SYN.
            self.sample = None;
            self.marks.clear();
        }
        if again > 0 && in_flight > 0 {
            let before = self.resent.replace((now, tally.resent_end));
            let goes_on = before.is_some_and(|(_, end)| end == tally.resent_from);
            self.since = now;
            match tally.resent {
                // What its time-out began.
                1.. if goes_on && self.all_again.is_some() => self.congestion.sent_again(),
                0 | 1 => {
                    self.recover = self.recover.or(self.highest);
                    match self.probing {
                        // A silence alone may be a busy host's: what is acknowledged next tells.
                        true => self.congestion.sent_again(),
                        false => self.congestion.lost(now, in_flight),
                    }
                }
                // More than one that was not chosen is smoltcp's timeout: all is sent again.
                _ => {
                    self.recover = None;
                    self.all_again = self.highest;
                    self.congestion.timed_out(in_flight);
                }
            }
        }
        self.highest = tally.highest;
        if tally.is_fresh {
            if in_flight == 0 {
                if now >= self.since + TIMEOUT {
                    self.congestion.rested();
                }
                self.since = now;
            }
            if self.recover.is_none() && self.sample.is_none() {
                self.sample = self.highest.map(|highest| (highest, now));
                self.congestion.round_begins();
            }
            self.mark(now);
        }
    }

    /// Takes note of when this much was sent, where that will be of use, and not of each
    /// segment.
    fn mark(&mut self, now: Instant) {
        if self.recover.is_some() || !self.congestion.is_narrow() || self.marks.is_full() {
            return;
        }
        let last = self.marks.back().map(|(end, _)| *end).or(self.first());
        let step = self.in_flight() / MARKS as u32;
        if let (Some(last), Some(highest)) = (last, self.highest)
            && highest.wrapping_sub(last) >= step.max(1)
        {
            // There is room.
            let _ = self.marks.push_back((highest, now.total_micros() as u32));
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
    ) {
        if before.state == State::SynSent && after_it.state == State::Established {
            let sample = self.sample.take().filter(|(end, _)| *end == tcp.ack);
            let round_trip = sample.map(|(_, at)| now - at);
            self.repeated = round_trip.is_none();
            self.synchronized(tcp.ack, tcp.seq.wrapping_add(1), round_trip);
            self.window = TcpPacket::new_checked(tcp_bytes).map_or(0, |packet| {
                // This one is not scaled, all others are (RFC 7323, 2.2).
                let window = packet.window_len();
                self.begun_by(Promises::of(&packet));
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
            self.heard_at = now;
            if came_twice(&packet, tcp.ack) {
                self.congestion.came_twice();
            }
            let window = packet.window_len();
            self.widest = self.widest.max(window);
            if core::mem::replace(&mut self.window, window) == 0 && window != 0 {
                self.barred = false;
                self.probes = 0;
                self.since = now;
            }
            // After a long silence: the way is free again, and the next probe would be late.
            let rested = self.resent.is_none_or(|(at, _)| now >= at + MIN_PATIENCE);
            self.due |= self.probes >= PROBES_IN_VAIN && rested && self.in_flight() > 0;
        }
        // A segment of which the socket took data off its buffer, it believes.
        let progress = after_it.unacknowledged < before.unacknowledged;
        let from = self.first().unwrap_or(tcp.ack);
        let in_flight = self.in_flight();
        let repeats = acceptable && from == tcp.ack && in_flight > 0;
        if !progress && !repeats {
            return;
        }
        let flight = self.flight(from);
        let knew = self.board.is_some();
        if progress {
            self.acked = Some(tcp.ack);
        }
        self.learn(now, tcp.ack, &packet);
        // A send buffer holds less than 2³⁰.
        let bytes = before
            .unacknowledged
            .saturating_sub(after_it.unacknowledged) as u32;
        let delivered = (bytes + self.arrived(tcp.ack)).saturating_sub(flight.arrived);
        let recovering = self.recover.is_some();
        self.congestion
            .delivered(now, delivered, flight, recovering);
        if progress {
            self.progress(now, from, tcp.ack, &packet, knew);
        }
    }

    /// Data was acknowledged from `from` up to `ack`. `knew`: there was a board.
    fn progress(
        &mut self,
        now: Instant,
        from: u32,
        ack: u32,
        packet: &TcpPacket<&[u8]>,
        knew: bool,
    ) {
        if self.highest.is_none_or(|highest| after(ack, highest)) {
            self.highest = Some(ack);
        }
        self.since = now;
        self.all_again = self.all_again.filter(|end| after(*end, ack));
        let probes = core::mem::take(&mut self.probes);
        self.due = false;
        if let Some((at, end)) = self.resent
            && !after(end, ack)
            && after(end, from)
        {
            let micros = micros(now - at);
            // After a silence nobody knows which of the probes is answered, and another hole
            // may have been what took so long: the board knows.
            let known = (probes < PROBES_IN_VAIN && !knew).then_some(micros);
            self.congestion.answered(known);
            let probing = core::mem::take(&mut self.probing);
            if probing && after(ack, end) && selected(packet, ack).next().is_none() {
                // Nothing was lost, it was late (RFC 5682).
                self.recover = None;
            }
        }
        while let Some((end, at)) = self.marks.front().copied()
            && !after(end, ack)
        {
            self.marks.pop_front();
            // Within an hour; both wrap.
            let took = (now.total_micros() as u32).wrapping_sub(at);
            self.congestion.took(took.min(LONGEST_US));
        }
        if let Some((end, at)) = self.sample
            && !after(end, ack)
        {
            self.sample = None;
            self.measured(now - at);
        }
        if let Some(recover) = self.recover {
            let resent = self.resent.filter(|(_, end)| !after(*end, ack));
            // What was resent was most likely lost, so this answers it.
            if let Some((at, _)) = resent.filter(|(_, end)| after(*end, from) && !knew) {
                self.guess(micros(now - at));
            }
            if after(recover, ack) {
                let missing = self
                    .board
                    .as_deref()
                    .is_some_and(Scoreboard::misses_the_first);
                self.due = !self.selective || missing;
                // A peer that tells what it has tells nothing: all behind the segment that was
                // resent was lost.
                let answers = resent.is_some_and(|(_, end)| end == ack);
                if self.selective && answers && self.board.is_none() {
                    self.board = Some(Box::new(Scoreboard::all_lost(ack, recover)));
                }
            } else {
                // What is known of later losses.
                self.recover = self.highest.filter(|_| self.board.is_some());
            }
        }
    }

    fn measured(&mut self, round_trip: Duration) {
        if core::mem::take(&mut self.guessed) {
            self.srtt_us = None;
            self.congestion.forget_round_trips();
        }
        let sample = micros(round_trip);
        self.congestion.round_ends(sample);
        self.srtt_us = Some(match self.srtt_us {
            None => sample,
            // RFC 6298, 2.3, with the values that it gives.
            Some(smoothed) => smoothed - smoothed / 8 + sample / 8,
        });
    }

    /// Something that was sent again took so long, in µs, or what was sent before it took
    /// longer: better than nothing, until something is measured.
    fn guess(&mut self, micros: u32) {
        match self.srtt_us {
            None => {
                self.measured(Duration::from_micros(micros.into()));
                self.guessed = true;
            }
            Some(known) if self.guessed => {
                self.srtt_us = Some(known - known / 4 + micros / 4);
            }
            Some(_) => {}
        }
    }

    /// The window that the socket, which `gathers` what it sends or does not, is to see in a
    /// segment of the peer's.
    fn shows(&mut self, tcp: &TcpHeader, gathers: bool) -> u16 {
        if let (Some((_, resent)), Some(highest)) = (self.resent, self.highest)
            && after(tcp.ack, resent)
            && !after(tcp.ack, highest)
        {
            self.congestion.was_not_silent();
        }
        let flight = self.flight(tcp.ack);
        self.congestion
            .show(tcp.window, self.shift, flight, gathers)
    }

    /// What is in flight behind `first`: of what is sent again after a time-out only what was.
    fn flight(&self, first: u32) -> Flight {
        let again = self.all_again.and(self.resent).map(|(_, end)| end);
        let highest = again.or(self.highest);
        let highest = highest.filter(|highest| after(*highest, first));
        let sent = highest.map_or(0, |highest| highest.wrapping_sub(first));
        let board = self.board.as_deref();
        let (arrived, due) = board.map_or((0, 0), |board| board.counts(first));
        Flight { sent, arrived, due }
    }

    /// The widest window that the peer ever had, in bytes.
    fn widest_window(&self) -> u32 {
        u32::from(self.widest) << self.shift.min(14)
    }

    /// The peer's window, or the narrower one that the socket is to see.
    fn shown_window(&self, gathers: bool) -> u16 {
        let flight = self.flight(self.first().unwrap_or_default());
        self.congestion
            .show(self.window, self.shift, flight, gathers)
    }

    /// The link lost what was on it, and carries frames again.
    fn link_is_back(&mut self, now: Instant) {
        // That was no congestion.
        self.congestion.forgive();
        self.board = None;
        self.probes = 0;
        self.since = now;
        self.due = self.in_flight() > 0;
    }

    /// How long an answer may take. A queue that is just filling has made it longer than it
    /// was; a host that was away has not.
    fn round_trip(&self) -> Option<Duration> {
        let latest = self.congestion.latest_us().min(LONGEST_QUEUE_US);
        let micros = self.srtt_us?.max(latest);
        Some(Duration::from_micros(micros.into()))
    }

    /// When what is in flight is taken for lost, if nothing is heard.
    fn deadline(&self, mtu: usize) -> Option<Instant> {
        let in_flight = self.in_flight() as usize;
        let round_trip = match self.round_trip() {
            Some(round_trip) => round_trip,
            None if self.is_alone() || self.shut || self.repeated => TIMEOUT,
            None => return None,
        };
        if in_flight == 0 && !self.barred {
            return None;
        }
        let mut patience = (round_trip * 2 + MARGIN).max(MIN_PATIENCE);
        if in_flight <= mtu {
            patience += LONE_MARGIN;
        }
        // Ten milliseconds are more than a second after seven probes, and more than
        // a minute after thirteen.
        let patience = patience * (1 << self.probes.min(13));
        if self.is_alone() || self.shut || self.repeated && self.srtt_us.is_none() {
            let least = if self.window == 0 && !self.barred {
                TIMEOUT
            } else {
                MIN_PATIENCE
            };
            return Some(self.since + patience.clamp(least, LONGEST_PATIENCE));
        }
        let asks = self.window != 0 || self.barred;
        (asks && patience < TIMEOUT).then_some(self.since + patience)
    }

    /// Whether smoltcp has no timer for what is in flight, or one for much later.
    fn is_alone(&self) -> bool {
        self.forgotten || self.rewound.is_some()
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
        due && self.window != 0 && self.in_flight() > 0 || late
    }
}

/// A round trip in µs, a minute at most.
fn micros(round_trip: Duration) -> u32 {
    round_trip.total_micros().min(LONGEST_US.into()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_remembers_of_its_losses_is_small() {
        assert!(size_of::<Recovery>() <= 440, "{}", size_of::<Recovery>());
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
