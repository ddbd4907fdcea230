//! How much may be in flight on a path that is narrower than the peer's window.
//!
//! A guest's first hop is memory, and nothing is held back there: what a peer's window
//! takes is sent. Behind the host there may be a queue that many connections share, and
//! senders that fill it again and again lose more than they bring through. So a connection
//! that loses segments *and* waits longer for its acknowledgements than it had to (a queue
//! was full) is given a window of its own: what the path carried in the last round trip, and
//! at most seven tenths of what was in flight. Up to there it grows by what arrives while no
//! queue is to be seen, above by an eighth of that, and in a queue by a segment per round trip.
//! It does not grow while it is not filled (RFC 7661), and a connection that rested begins
//! anew (RFC 5681, 4.1). A loss without a queue says nothing about congestion, and changes
//! nothing: a link that loses a tenth of everything carries more when it is used. But where more
//! is lost when more is sent, or no more comes through, no more is sent (`rounds`). A long
//! silence says so as well: the queue may have been so full that nothing came through.
//! TCP Veno and Westwood are of that kind; RFC 5681 would halve the window at either.
//!
//! A connection whose handshake took longer than the link ever does begins with ten segments
//! (RFC 6928), and twice as many each round trip until it meets a queue or the peer's window
//! (slow start, RFC 5681, 3.1; the queue ends it as in RFC 9406). On the link itself that
//! would be delay for nothing.
//!
//! smoltcp's controllers count acknowledgements, of which the kernel sends one for 64 KB:
//! they would take seconds to open on the link itself, and close at every loss. Here the
//! socket is shown the narrower window in place of the peer's ([`Congestion::show`]), and
//! obeys. Decides only; `recovery` says what was acknowledged and lost.

mod rounds;

use core::num::NonZeroU16;

use smoltcp::time::{Duration, Instant};

use self::rounds::Rounds;

/// Data of a full segment, where nothing else is known.
const SEGMENT: u32 = 1460;
/// Nobody is held back further: with fewer in flight no duplicates show a loss (RFC 5681,
/// 3.2). Two let 32 connections through a queue of 44 frames no better.
const LEAST: u32 = 4 * SEGMENT;
/// An eighth more than the shortest round trip, within these bounds, and a queue begins (RFC
/// 9406, 4.3): what was doubled grows by a quarter.
const SLOWER_US: [u32; 2] = [4_000, 16_000];
/// What a connection that leaves the machine begins with, about (RFC 6928).
const INITIAL: u32 = 10 * SEGMENT;
/// A handshake that takes longer leaves the machine. Less may be a busy one: sixty-four
/// guests on two processors take milliseconds, and are not to begin slowly for that.
const LINK_US: u32 = 10_000;
/// More than twice the shortest round trip and this is a queue, not a busy processor; of a
/// connection that leaves the machine, more than five quarters and this.
const QUEUE_US: u32 = 4_000;
/// A thirty-second more than the shortest round trip, and at least this, and a short one may be.
const SHORT_QUEUE_US: u32 = 1_000;

/// What a connection has in flight, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flight {
    /// What was sent and is not acknowledged.
    pub(crate) sent: u32,
    /// What of it has arrived behind a hole.
    pub(crate) arrived: u32,
    /// What of it is lost, and is to be sent again.
    pub(crate) due: u32,
}

impl Flight {
    /// What has neither arrived nor is lost, as far as is known (`pipe` of RFC 6675).
    pub(crate) fn on_the_way(&self) -> u32 {
        self.unarrived().saturating_sub(self.due)
    }

    fn unarrived(&self) -> u32 {
        self.sent.saturating_sub(self.arrived)
    }
}

/// A connection's window, and what it is made from.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Congestion {
    /// Data of a full segment; none: nobody knows yet.
    segment: Option<NonZeroU16>,
    /// Bytes that may be in flight; `None`: what the peer takes.
    window: Option<u32>,
    /// Above this the window grows slowly: seven tenths of what was in flight when something
    /// was lost in a queue (`ssthresh` of RFC 5681).
    threshold: Option<u32>,
    /// The shortest round trip, in µs, once there was one.
    shortest_us: Option<u32>,
    /// The last round trip, in µs, be it of something that was sent twice.
    latest_us: u32,
    /// When the first of the answers came of which `latest_us` is the shortest.
    answers_since: Option<Instant>,
    /// When the loss that is made good now was taken for what it is.
    noticed: Option<Instant>,
    /// More was lost since, of what was sent later.
    anew: bool,
    /// What was lost last was not lost in a queue.
    calm: bool,
    /// The window is one for a long silence.
    silent: bool,
    /// The window and the threshold before the last loss that counted, or before the silence.
    before: (Option<u32>, Option<u32>),
    /// Segments that were sent again since, less those that the peer had already.
    doubtful: u16,
    /// Bytes that arrived since the round trip began that is measured now.
    delivered: u32,
    /// Bytes that arrived in the round trip that was measured last.
    carried: u32,
    /// The most that was in flight in the round trip that is measured now, and in the last.
    filled: [u32; 2],
    rounds: Rounds,
}

impl Congestion {
    /// Whether less may be in flight than the peer takes.
    pub(crate) fn is_narrow(&self) -> bool {
        self.window.is_some()
    }

    /// Bytes that may be in flight; `None`: as many as the peer takes.
    #[cfg(test)]
    fn window(&self) -> Option<u32> {
        self.window
    }

    /// A full segment has so many bytes of data.
    pub(crate) fn has_segments_of(&mut self, bytes: u16) {
        self.segment = NonZeroU16::new(bytes);
        let least = self.least();
        self.window = self.window.map(|window| window.max(least));
    }

    fn segment(&self) -> u32 {
        self.segment.map_or(SEGMENT, |bytes| bytes.get().into())
    }

    /// The narrowest window: of long segments two, for a lone one the peer may keep its
    /// acknowledgement back (RFC 9293, 3.8.6.3).
    fn least(&self) -> u32 {
        LEAST.max(2 * self.segment())
    }

    /// What is sent before anything is heard (RFC 6928, 2).
    fn initial(&self) -> u32 {
        let segment = self.segment();
        (10 * segment).min(INITIAL.max(2 * segment))
    }

    /// The handshake took so many µs; `None`: nobody knows.
    pub(crate) fn begins(&mut self, round_trip_us: Option<u32>) {
        if round_trip_us.is_none_or(|round_trip| round_trip > LINK_US) {
            self.window = Some(self.initial());
        }
    }

    /// Something is sent whose round trip will be measured.
    pub(crate) fn round_begins(&mut self) {
        self.delivered = 0;
        self.filled = [0, self.filled[0]];
    }

    /// A round trip was measured.
    pub(crate) fn round_ends(&mut self, round_trip_us: u32) {
        self.carried = self.delivered;
        self.latest_us = round_trip_us;
        // The path may have become another: what was is forgotten slowly.
        let known = self
            .shortest_us
            .map(|known| known.saturating_add(known / 1024 + 1));
        self.shortest_us = Some(known.map_or(round_trip_us, |known| known.min(round_trip_us)));
    }

    /// What was known of round trips was a guess.
    pub(crate) fn forget_round_trips(&mut self) {
        self.shortest_us = None;
        self.latest_us = 0;
    }

    /// Something that was sent again was acknowledged, so long after that if it is known.
    pub(crate) fn answered(&mut self, round_trip_us: Option<u32>) {
        self.silent = false;
        let credible = round_trip_us.filter(|round_trip| !self.is_too_short(*round_trip));
        self.latest_us = credible.unwrap_or(self.latest_us);
    }

    /// More is acknowledged than was sent again: a long silence was not because all was lost
    /// (RFC 5682).
    pub(crate) fn was_not_silent(&mut self) {
        if core::mem::take(&mut self.silent) {
            self.restore();
        }
    }

    /// Gives back what was there before, unless the window is wider by now (RFC 4015, 3.2).
    fn restore(&mut self) {
        let (window, threshold) = self.before;
        let now = self.window.zip(window);
        self.window = now.map(|(now, before)| now.max(before));
        self.threshold = threshold;
    }

    /// Whether acknowledgements take so much longer than they have to.
    fn is_queueing(&self, more_us: u32) -> bool {
        let longer = |shortest: u32| {
            // On the link a busy processor takes as long as the way does.
            let part = if shortest > LINK_US {
                shortest / 4
            } else {
                shortest
            };
            shortest.saturating_add(part).saturating_add(more_us)
        };
        self.shortest_us
            .is_some_and(|shortest| self.latest_us > longer(shortest))
    }

    /// Whether what was sent first is answered, and not what was sent again: nothing ever took
    /// so little.
    pub(crate) fn is_too_short(&self, round_trip_us: u32) -> bool {
        self.shortest_us
            .is_some_and(|shortest| round_trip_us < shortest / 8 * 7)
    }

    fn is_slower(&self) -> bool {
        let [least, most] = SLOWER_US;
        let slower = |shortest: u32| shortest.saturating_add((shortest / 8).clamp(least, most));
        self.shortest_us
            .is_some_and(|shortest| self.latest_us > slower(shortest))
    }

    /// Whether a queue may be there that holds next to nothing.
    fn may_queue(&self) -> bool {
        let longer = |shortest: u32| shortest.saturating_add((shortest / 32).max(SHORT_QUEUE_US));
        self.shortest_us
            .is_some_and(|shortest| self.latest_us > longer(shortest))
    }

    /// Something in the middle of a round took so long.
    pub(crate) fn took(&mut self, round_trip_us: u32) {
        self.latest_us = round_trip_us;
    }

    /// Something that was sent again arrived so long after that. News of it may have been lost
    /// in between: of the answers of two round trips the shortest counts.
    pub(crate) fn arrived(&mut self, now: Instant, round_trip_us: u32) {
        if self.is_too_short(round_trip_us) {
            return;
        }
        let long = Duration::from_micros(u64::from(self.shortest_us.unwrap_or_default()) * 2);
        match self.answers_since {
            Some(since) if now < since + long => {
                self.latest_us = self.latest_us.min(round_trip_us);
            }
            _ => {
                self.answers_since = Some(now);
                self.latest_us = round_trip_us;
            }
        }
    }

    /// So many bytes of what was in flight have arrived, be it behind a hole. `recovering`: not
    /// all that was in flight at the last loss is acknowledged.
    pub(crate) fn delivered(&mut self, now: Instant, bytes: u32, flight: Flight, recovering: bool) {
        let on_the_way = flight.on_the_way().saturating_sub(bytes);
        self.keep_to_what_comes_through(now, bytes, on_the_way);
        self.noticed = self.noticed.filter(|_| recovering);
        self.delivered = self.delivered.saturating_add(bytes);
        self.filled[0] = self.filled[0].max(flight.sent);
        let Some(window) = self.window else {
            return;
        };
        if self.rounds.holds() || self.rounds.is_excess() {
            return;
        }
        let above = self.threshold.is_some_and(|threshold| window >= threshold);
        // What does not fill the window says nothing about a wider one (RFC 7661). A batch of
        // acknowledgements is looked at before more is sent, so at its end there is little in
        // flight: what was there in this round trip or the last counts. `show` leaves at least
        // half of a window of two segments to be filled.
        let filled = self.filled[0].max(self.filled[1]);
        // What a queue lost is made good in a round trip or two. Where that takes longer, as
        // after a time of heavy losses, it would go on for ever in the least window.
        let settled = above && !self.calm && !self.is_seen(now) || self.is_slower();
        if bytes == 0 || recovering && settled || filled < window / 2 {
            return;
        }
        let more = match (self.is_slower(), above) {
            (false, false) => bytes,
            (false, true) if self.rounds.is_near(window, self.may_queue()) => bytes / 32,
            (false, true) => bytes / 8,
            (true, false) if !self.is_queueing(QUEUE_US / 4) => bytes / 4,
            // Less than the segment.
            _ => {
                (u64::from(self.segment()) * u64::from(bytes.min(window)) / u64::from(window))
                    as u32
            }
        };
        self.window = Some(window.saturating_add(more.max(1)));
    }

    /// Without a queue, more than a path lets through is lost whatever is done about it.
    fn keep_to_what_comes_through(&mut self, now: Instant, bytes: u32, on_the_way: u32) {
        let round_trip = self.latest_us;
        if let Some(most) = self.rounds.delivered(now, round_trip, bytes, on_the_way) {
            let most = most.max(self.least());
            self.window = Some(self.window.map_or(most, |window| window.min(most)));
            self.threshold = self.window;
            self.calm = false;
        }
    }

    /// So many bytes are found lost, in so many holes.
    pub(crate) fn found_lost(&mut self, bytes: u32, holes: u32) {
        self.rounds.lost(bytes, holes);
    }

    /// Something was lost of what was sent later than what is made good already.
    pub(crate) fn lost_anew(&mut self) {
        self.anew = true;
    }

    /// Something of so much in flight is sent again. That counts once for all that is lost
    /// of it, and once more for what was sent since and is lost; not before what came of the
    /// last time can be seen.
    pub(crate) fn lost(&mut self, now: Instant, in_flight: u32) {
        self.sent_again();
        let counts = self.noticed.is_none() || self.anew && self.is_seen(now);
        // A path that had a queue has one, however short, and next to none may be one where less
        // was lost when less was sent.
        let queue = match self.threshold {
            Some(_) => self.is_slower() || self.rounds.has_paid() && self.may_queue(),
            None => self.is_queueing(QUEUE_US),
        };
        if counts {
            self.calm = !queue;
        }
        if !counts || !queue {
            return;
        }
        self.anew = false;
        self.noticed = Some(now);
        self.before = (self.window, self.threshold);
        self.doubtful = 1;
        let most = in_flight.min(self.window.unwrap_or(u32::MAX)) / 10 * 7;
        self.threshold = Some(most);
        self.window = Some(self.carried.min(most).max(self.least()));
    }

    /// Whether what came of the last loss that counted can be seen by now.
    fn is_seen(&self, now: Instant) -> bool {
        let long = Duration::from_micros(u64::from(self.latest_us) * 2);
        self.noticed.is_none_or(|at| now >= at + long)
    }

    /// Something is sent again, whatever for.
    pub(crate) fn sent_again(&mut self) {
        self.doubtful = self.doubtful.saturating_add(u16::from(self.doubtful > 0));
    }

    /// The peer says that something came twice (RFC 2883). If that is so of all that was sent
    /// again since a loss counted, nothing was lost.
    pub(crate) fn came_twice(&mut self) {
        if self.doubtful == 1 {
            self.restore();
            self.noticed = None;
        }
        self.doubtful = self.doubtful.saturating_sub(1);
    }

    /// Nothing was heard for long, and all of it is sent again: as much as is sure to fit at
    /// first (RFC 5681, 3.1).
    pub(crate) fn timed_out(&mut self, in_flight: u32) {
        self.noticed = None;
        if in_flight > self.least() {
            if !core::mem::replace(&mut self.silent, true) {
                self.before = (self.window, self.threshold);
                let half = in_flight.min(self.window.unwrap_or(u32::MAX)) / 2;
                self.threshold = Some(half.max(self.least()));
            }
            self.window = Some(self.least());
        }
    }

    /// Nothing was sent for as long as a time-out: what the path carried then may not be true
    /// any more (RFC 5681, 4.1).
    pub(crate) fn rested(&mut self) {
        let initial = self.initial();
        self.window = self.window.map(|window| window.min(initial));
    }

    /// What was lost was not lost in a queue.
    pub(crate) fn forgive(&mut self) {
        self.window = None;
        self.threshold = None;
    }

    /// What the socket is shown of the peer's window, which is scaled by `shift`, with this in
    /// flight. It leaves room for whole segments: the socket would send what fits, however
    /// little, or keeps it back if it `gathers` (Nagle's algorithm, RFC 9293, 3.7.4). What
    /// arrived behind a hole, or is lost, takes no room, and all that was sent stays within
    /// reach: it may have to be sent again.
    pub(crate) fn show(&self, window: u16, shift: u8, flight: Flight, gathers: bool) -> u16 {
        let shown = self.clip(window, shift);
        let Some(ours) = self.window.filter(|_| shown != window) else {
            return window;
        };
        let (segment, unit) = (self.segment(), 1 << shift.min(14));
        // What is lost goes before what was never sent.
        let unarrived = flight.unarrived();
        let reach = match ours.checked_sub(unarrived) {
            // Less than one may pass where nothing else is there to be acknowledged.
            Some(room) if room >= segment || unarrived > 0 => {
                flight.sent.saturating_add(room / segment * segment)
            }
            _ if unarrived < flight.sent || flight.due > 0 => flight.sent,
            _ => return shown,
        };
        // No window ends there exactly: the last segment is cut, or followed by what it takes
        // to show the whole of it.
        let reach = match gathers || unit >= segment {
            true => reach.div_ceil(unit),
            false => reach / unit,
        };
        reach.max(1).min(window.into()) as u16
    }

    /// How much of what is lost may be sent again.
    pub(crate) fn room(&self, flight: Flight) -> u32 {
        let room = |window: u32| window.saturating_sub(flight.on_the_way());
        self.window.map_or(u32::MAX, room)
    }

    /// The narrower of this window and ours.
    pub(crate) fn clip(&self, window: u16, shift: u8) -> u16 {
        match self.window {
            Some(ours) if ours < u32::from(window) << shift.min(14) => {
                // Not nothing: that would be probed. Less than the peer's, of 16 bits.
                (ours >> shift.min(14)).max(1) as u16
            }
            _ => window,
        }
    }

    /// The last round trip, in µs, as far as one is known.
    pub(crate) fn latest_us(&self) -> u32 {
        self.latest_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So much is in flight, and nothing of it has arrived.
    fn sent(bytes: u32) -> Flight {
        Flight {
            sent: bytes,
            arrived: 0,
            due: 0,
        }
    }

    /// One whose round trips take `shortest` µs, and carry `carried` bytes.
    fn with(shortest: u32, carried: u32) -> Congestion {
        let mut congestion = Congestion::default();
        congestion.round_begins();
        congestion.delivered(Instant::ZERO, carried, sent(carried), false);
        congestion.round_ends(shortest);
        congestion
    }

    /// Losses from now on are of something else that was in flight.
    fn another(congestion: &mut Congestion) {
        congestion.delivered(Instant::ZERO, 0, sent(0), false);
    }

    #[test]
    fn a_connection_that_leaves_the_machine_begins_slowly_and_doubles() {
        let mut congestion = Congestion::default();
        congestion.begins(Some(100));
        assert_eq!(congestion.window(), None);
        for round_trip in [Some(50_000), None] {
            let mut congestion = Congestion::default();
            congestion.begins(round_trip);
            let mut expected = INITIAL;
            for _ in 0..4 {
                assert_eq!(congestion.window(), Some(expected));
                congestion.round_begins();
                congestion.delivered(Instant::ZERO, expected, sent(expected), false);
                congestion.round_ends(50_000);
                expected *= 2;
            }
            // Until a queue begins,
            congestion.took(60_000);
            congestion.delivered(Instant::ZERO, expected, sent(expected), false);
            expected += expected / 4;
            assert_eq!(congestion.window(), Some(expected));
            // and is there,
            congestion.round_ends(110_000);
            congestion.delivered(Instant::ZERO, expected, sent(expected), false);
            assert_eq!(congestion.window(), Some(expected + SEGMENT));
            // or until the window is not what holds it back.
            for _ in 0..2 {
                congestion.round_begins();
                congestion.round_ends(110_000);
            }
            let window = congestion.window();
            congestion.delivered(Instant::ZERO, expected / 4, sent(expected / 4), false);
            assert_eq!(congestion.window(), window);
            assert_eq!(congestion.show(1000, 7, sent(0), false), 1000);
            congestion.rested();
            assert_eq!(congestion.window(), Some(INITIAL));
        }
    }

    #[test]
    fn a_window_doubles_though_acknowledgements_come_in_one_batch() {
        let mut congestion = Congestion::default();
        congestion.begins(Some(20_000));
        congestion.round_begins();
        for acknowledged in 0..5 {
            let left = INITIAL - acknowledged * 2 * SEGMENT;
            congestion.delivered(Instant::ZERO, 2 * SEGMENT, sent(left), false);
        }
        assert_eq!(congestion.window(), Some(2 * INITIAL));
    }

    #[test]
    fn a_loss_without_a_queue_holds_nobody_back() {
        let mut congestion = with(100, 60_000);
        congestion.lost(Instant::ZERO, 1 << 20);
        congestion.answered(Some(150));
        congestion.lost(Instant::ZERO, 1 << 20);
        // A busy processor.
        congestion.answered(Some(4_000));
        congestion.lost(Instant::ZERO, 1 << 20);
        assert_eq!(congestion.window(), None);
        assert_eq!(congestion.show(65_535, 7, sent(0), false), 65_535);
        // Nothing is known of the path.
        let mut unknown = Congestion::default();
        unknown.answered(Some(100_000));
        unknown.lost(Instant::ZERO, 1 << 20);
        assert_eq!(unknown.window(), None);
    }

    #[test]
    fn a_loss_in_a_queue_leaves_what_the_path_carries() {
        let mut congestion = with(20_000, 60_000);
        congestion.answered(Some(60_000));
        congestion.lost(Instant::ZERO, 1 << 20);
        assert_eq!(congestion.window(), Some(60_000));
        assert_eq!(
            congestion.show(65_535, 7, sent(0), false),
            ((41 * SEGMENT) >> 7) as u16
        );
        // What else of that is missing tells nothing new.
        congestion.lost(Instant::ZERO, 60_000);
        assert_eq!(congestion.window(), Some(60_000));
        another(&mut congestion);
        congestion.lost(Instant::ZERO, 60_000);
        assert_eq!(congestion.window(), Some(42_000));
        for _ in 0..20 {
            another(&mut congestion);
            congestion.lost(Instant::ZERO, 42_000);
        }
        assert_eq!(congestion.window(), Some(LEAST));
    }

    #[test]
    fn a_window_grows_while_much_is_made_good_that_a_queue_lost() {
        let mut congestion = with(20_000, 60_000);
        congestion.answered(Some(60_000));
        congestion.lost(Instant::ZERO, 60_000);
        congestion.answered(Some(20_000));
        let mut grown = |at| {
            let before = congestion.window();
            congestion.delivered(Instant::from_millis(at), 8000, sent(60_000), true);
            congestion
                .window()
                .zip(before)
                .map(|(now, before)| now - before)
        };
        assert_eq!(grown(39), Some(0), "nobody knows yet what came of it");
        assert_eq!(grown(40), Some(1000));
    }

    #[test]
    fn a_window_is_shown_with_room_for_whole_segments() {
        let mut congestion = with(20_000, 60_000);
        congestion.answered(Some(60_000));
        congestion.lost(Instant::ZERO, 1 << 20);
        for (in_flight, room) in [(0, 41), (1000, 40), (58_000, 1), (59_000, 0), (60_000, 0)] {
            let shown = congestion.show(65_535, 0, sent(in_flight), false);
            assert_eq!(u32::from(shown), in_flight + room * SEGMENT, "{in_flight}");
        }
        // More is in flight than may be.
        assert_eq!(congestion.show(65_535, 0, sent(65_000), false), 60_000);
        // Longer segments than the window has room for.
        congestion.has_segments_of(29_000);
        assert_eq!(congestion.show(65_535, 0, sent(0), false), 58_000);
        assert_eq!(congestion.show(65_535, 0, sent(31_500), false), 31_500);
        congestion.has_segments_of(65_461);
        assert_eq!(congestion.window(), Some(130_922), "two of them");
    }

    /// The window after so many round trips in which what is shown was sent whole, as by a
    /// socket that gathers, of a connection that heard nothing for long. The peer keeps the
    /// acknowledgement of a lone segment back.
    fn after_a_silence(segment: u32, shift: u8, rounds: u32) -> u32 {
        let mut congestion = with(20_000, 600_000);
        congestion.has_segments_of(segment as u16);
        congestion.timed_out(600_000);
        for _ in 0..rounds {
            let shown = congestion.show(u16::MAX, shift, sent(0), true);
            let flight = (u32::from(shown) << shift) / segment * segment;
            assert_ne!(flight, 0);
            congestion.round_begins();
            let late = if flight == segment { 60_000 } else { 20_000 };
            congestion.took(late);
            congestion.delivered(Instant::ZERO, flight, sent(flight), false);
        }
        congestion.window().unwrap()
    }

    #[test]
    fn a_window_of_few_long_segments_grows_and_so_does_one_in_large_units() {
        for (segment, shift) in [
            (1440, 7),
            (1460, 10),
            (1460, 13),
            (1460, 14),
            (8940, 7),
            (8940, 10),
            (8960, 14),
            (65_461, 11),
        ] {
            let window = after_a_silence(segment, shift, 12);
            assert!(window > 300_000, "{segment}, {shift}: {window}");
        }
    }

    #[test]
    fn where_no_window_ends_with_a_segment_it_is_cut_or_shown_whole() {
        let mut congestion = Congestion::default();
        congestion.has_segments_of(8940);
        congestion.begins(None);
        let shown = |shift, gathers| congestion.show(u16::MAX, shift, sent(0), gathers);
        // Two segments, and 552 bytes that are not sent alone.
        assert_eq!(shown(10, true), 18);
        assert_eq!(shown(10, false), 17);
        assert_eq!([shown(14, true), shown(14, false)], [2; 2]);
    }

    #[test]
    fn a_first_window_has_ten_segments_and_not_many_more_bytes_than_ten_of_ethernet() {
        for (segment, initial, least) in [
            (536, 5_360, LEAST),
            (1460, 14_600, LEAST),
            (8940, 17_880, 17_880),
            (65_461, 130_922, 130_922),
        ] {
            let mut congestion = Congestion::default();
            congestion.has_segments_of(segment);
            congestion.begins(None);
            assert_eq!(congestion.window(), Some(initial), "RFC 6928, 2");
            congestion.timed_out(1 << 20);
            assert_eq!(congestion.window(), Some(least));
        }
    }

    #[test]
    fn a_loss_that_was_none_is_taken_back_when_all_that_was_sent_again_came_twice() {
        let mut congestion = with(20_000, 60_000);
        congestion.answered(Some(60_000));
        congestion.lost(Instant::ZERO, 1 << 20);
        congestion.sent_again();
        congestion.came_twice();
        assert_eq!(congestion.window(), Some(60_000), "one is missing");
        congestion.came_twice();
        assert_eq!(congestion.window(), None);
        congestion.came_twice();
        assert_eq!(congestion.window(), None);
    }

    #[test]
    fn after_a_timeout_little_is_sent_and_then_twice_as_much_each_round_trip() {
        let mut congestion = with(20_000, 60_000);
        congestion.timed_out(LEAST);
        assert_eq!(congestion.window(), None, "it was no more before");
        congestion.timed_out(60_000);
        assert_eq!(congestion.window(), Some(LEAST));
        congestion.answered(Some(20_000));
        congestion.delivered(Instant::ZERO, LEAST, sent(LEAST), false);
        congestion.delivered(Instant::ZERO, 2 * LEAST, sent(2 * LEAST), false);
        assert_eq!(congestion.window(), Some(4 * LEAST));
        // What is acknowledged beyond what was sent again had arrived long ago.
        congestion.timed_out(60_000);
        congestion.timed_out(60_000);
        congestion.was_not_silent();
        assert_eq!(congestion.window(), Some(4 * LEAST), "as before");
    }

    #[test]
    fn a_window_grows_by_a_segment_in_a_queue_and_by_all_without() {
        let mut congestion = with(20_000, 60_000);
        congestion.answered(Some(60_000));
        congestion.lost(Instant::ZERO, 1 << 20);
        congestion.delivered(Instant::ZERO, 60_000, sent(60_000), true);
        assert_eq!(congestion.window(), Some(60_000), "not while it recovers");
        congestion.delivered(Instant::ZERO, 60_000, sent(60_000), false);
        assert_eq!(congestion.window(), Some(60_000 + SEGMENT));
        congestion.answered(Some(22_000));
        congestion.delivered(Instant::ZERO, 61_460, sent(61_460), false);
        assert_eq!(congestion.window(), Some(2 * 61_460));
        // The peer takes less.
        assert_eq!(congestion.show(100, 7, sent(0), false), 100);
    }

    #[test]
    fn losses_without_a_queue_let_a_window_grow_while_they_are_made_good() {
        let mut congestion = with(20_000, 60_000);
        congestion.answered(Some(60_000));
        congestion.lost(Instant::ZERO, 1 << 20);
        congestion.answered(Some(20_000));
        congestion.delivered(Instant::ZERO, 60_000, sent(60_000), true);
        assert_eq!(congestion.window(), Some(120_000), "as before");
        congestion.threshold = Some(60_000);
        congestion.delivered(Instant::ZERO, 60_000, sent(60_000), true);
        assert_eq!(congestion.window(), Some(120_000), "above, after a queue");
        another(&mut congestion);
        congestion.lost(Instant::from_secs(1), 60_000);
        congestion.delivered(Instant::from_secs(1), 60_000, sent(60_000), true);
        assert_eq!(congestion.window(), Some(120_000 + 60_000 / 8));
    }

    #[test]
    fn what_a_policer_takes_is_not_sent_for_some_round_trips() {
        let mut congestion = with(20_000, 60_000);
        congestion.begins(Some(20_000));
        let mut now = Instant::from_secs(1);
        let round = Duration::from_millis(20);
        congestion.window = Some(300_000);
        for _ in 0..2 {
            congestion.delivered(now, 100_000, sent(400_000), true);
            congestion.found_lost(200_000, 30);
            now += round;
        }
        assert_eq!(congestion.window(), Some(100_000));
        for _ in 0..2 {
            congestion.delivered(now, 100_000, sent(100_000), false);
            assert_eq!(congestion.window(), Some(100_000));
            now += round;
        }
        congestion.delivered(now, 100_000, sent(100_000), false);
        assert_eq!(congestion.window(), Some(100_000 + 100_000 / 8));
    }

    #[test]
    fn where_less_was_lost_when_less_was_sent_a_loss_in_the_shortest_queue_counts() {
        let lossy = |pays: bool| {
            let mut congestion = with(20_000, 60_000);
            congestion.begins(Some(20_000));
            congestion.window = Some(300_000);
            for round in 0..8 {
                let now = Instant::from_secs(1) + Duration::from_millis(20) * round;
                congestion.delivered(now, 100_000, sent(100_000), false);
                if round == 0 || !pays {
                    congestion.found_lost(20_000, 15);
                }
            }
            congestion.took(21_100);
            congestion.lost(Instant::from_secs(2), 100_000);
            congestion.window().unwrap()
        };
        assert!(lossy(false) >= 100_000);
        assert_eq!(lossy(true), 60_000);
    }

    #[test]
    fn a_window_is_never_shown_as_none_and_a_closed_one_stays_closed() {
        let mut congestion = with(20_000, 0);
        congestion.answered(Some(60_000));
        congestion.lost(Instant::ZERO, 1 << 20);
        assert_eq!(congestion.show(65_535, 14, sent(0), false), 1);
        assert_eq!(congestion.show(65_535, 99, sent(0), false), 1);
        assert_eq!(congestion.show(0, 7, sent(0), false), 0);
        assert_eq!(
            congestion.window(),
            Some(LEAST),
            "still there when it opens"
        );
        assert_eq!(congestion.show(65_535, 0, sent(0), false), LEAST as u16);
    }

    #[test]
    fn a_path_that_has_become_longer_is_believed_in_time() {
        let mut congestion = with(20_000, 60_000);
        for _ in 0..2_000 {
            congestion.round_ends(100_000);
        }
        congestion.lost(Instant::ZERO, 1 << 20);
        assert_eq!(congestion.window(), None);
    }
}
