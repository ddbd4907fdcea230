//! What the peer has behind the first hole, and which holes were resent (RFC 6675, 3).
//!
//! It is kept as the holes, of which there are few. A hole is lost when more than two
//! segments behind it have arrived, or three ranges; one that was resent and is still there
//! after a while was lost again. So was all that was sent before something that was resent,
//! once that has arrived (RFC 8985, in spirit): where next to nothing comes through, no
//! three arrive behind it. The socket can only be made to send all from the first
//! unacknowledged byte on; `device` lets through what [`next`] names of it. Decides nothing
//! of when: that is `recovery`'s.
//!
//! [`next`]: Scoreboard::next

use alloc::vec::Vec;

use smoltcp::time::{Duration, Instant};

use crate::tally::after;

/// Holes that are remembered, at most; 12 bytes each. What arrives behind more of them is
/// taken for missing, and sent twice at worst. A queue that overflows drops every second
/// segment: with 40, 20 MB through 100 Mbit/s, 50 ms and 256 KB of queue lost three times as
/// many. The stack itself keeps 32 ranges as a receiver.
const MAX_HOLES: usize = 256;

/// Ranges behind a hole that show that it is lost (DupThresh of RFC 6675).
const RANGES: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody knows yet.
    Missing,
    /// What was resent at this time, in µs, has arrived, and this was sent before it.
    Overtaken(u32),
    /// It is to be resent.
    Due,
    /// It was resent at this time, in µs, which wraps.
    Resent(u32),
}

/// What did not arrive: from, and up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hole {
    from: u32,
    to: u32,
    state: State,
}

impl Hole {
    /// How long ago it was resent, in µs.
    fn took(&self, now: Instant) -> Option<u32> {
        match self.state {
            // Both wrap.
            State::Resent(at) => Some((now.total_micros() as u32).wrapping_sub(at)),
            State::Missing | State::Overtaken(_) | State::Due => None,
        }
    }
}

/// What was found lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Losses {
    /// Bytes that are to be sent again, be it once more, and the holes that they make.
    pub(crate) bytes: u32,
    pub(crate) holes: u32,
    /// Some were sent later than what is made good already.
    pub(crate) anew: bool,
}

/// The holes of one connection's flight.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    /// In order. They may touch where they differ in state.
    holes: Vec<Hole>,
    /// Behind the highest that arrived, or the highest that is known to be lost.
    top: u32,
    /// From here on nothing was ever sent.
    fresh: u32,
    /// All up to here was sent by this time, in µs, which wraps: before something that was
    /// resent, and of which nothing was heard yet.
    mark: Option<(u32, u32)>,
    /// Bytes that may be resent now.
    budget: u32,
    now_us: u32,
    /// After how long something that was resent was lost again.
    patience_us: u32,
    /// The socket sends all anew, and has not come to what is fresh.
    rewound: bool,
    /// Something was resent since.
    passed: bool,
}

/// The later of two sequence numbers.
fn later(a: u32, b: u32) -> u32 {
    if after(a, b) { a } else { b }
}

/// The earlier of two sequence numbers.
fn sooner(a: u32, b: u32) -> u32 {
    if after(a, b) { b } else { a }
}

impl Scoreboard {
    /// Of a flight whose first unacknowledged byte is `first`.
    pub(crate) fn new(first: u32) -> Self {
        Self {
            holes: Vec::new(),
            top: first,
            fresh: first,
            mark: None,
            budget: 0,
            now_us: 0,
            patience_us: 0,
            rewound: false,
            passed: false,
        }
    }

    /// All from `first` up to `end` is lost.
    pub(crate) fn all_lost(first: u32, end: u32) -> Self {
        let mut board = Self::new(first);
        let hole = Hole {
            from: first,
            to: end,
            state: State::Due,
        };
        board.holes.push(hole);
        board.top = end;
        board
    }

    /// The peer has what is between `left` and `right`. Gives how long something of it took
    /// that was resent, in µs; what it takes least: news of the rest may have been lost.
    pub(crate) fn arrived(&mut self, now: Instant, left: u32, right: u32) -> Option<u32> {
        let mut least = None;
        if after(right, self.top) {
            if after(left, self.top) {
                let hole = Hole {
                    from: self.top,
                    to: left,
                    state: State::Missing,
                };
                if self.holes.len() >= MAX_HOLES {
                    return None;
                }
                self.holes.push(hole);
            }
            self.top = right;
        }
        let is_full = self.holes.len() >= MAX_HOLES;
        let mut at = 0;
        while let Some(hole) = self.holes.get_mut(at) {
            if !after(hole.to, left) {
                at += 1;
                continue;
            }
            if !after(right, hole.from) {
                break;
            }
            least = hole.took(now).into_iter().chain(least).min();
            match (after(left, hole.from), after(hole.to, right)) {
                (false, false) => {
                    self.holes.remove(at);
                }
                (true, false) => {
                    hole.to = left;
                    at += 1;
                }
                (false, true) => {
                    hole.from = right;
                    break;
                }
                (true, true) => {
                    let rest = Hole {
                        from: right,
                        ..*hole
                    };
                    if !is_full {
                        hole.to = left;
                        self.holes.insert(at + 1, rest);
                    }
                    break;
                }
            }
        }
        least
    }

    /// How long the first hole took, in µs, if `ack` says that it has arrived and it was
    /// resent.
    pub(crate) fn first_took(&self, now: Instant, ack: u32) -> Option<u32> {
        let first = self.holes.first()?;
        after(ack, first.from).then(|| first.took(now)).flatten()
    }

    /// Something has arrived that was resent so many µs ago. What was sent before that and is
    /// not there was overtaken by it, as far as is known: one mark is made at a time, about
    /// once in a round trip.
    pub(crate) fn overtaken(&mut self, now: Instant, took: u32) {
        let at = (now.total_micros() as u32).wrapping_sub(took);
        let Some((end, _)) = self.mark.take_if(|(_, by)| !after(*by, at)) else {
            return;
        };
        let state = State::Overtaken(at);
        let missing = |hole: &&mut Hole| hole.state == State::Missing && !after(hole.to, end);
        for hole in self.holes.iter_mut().filter(missing) {
            hole.state = state;
        }
        if after(end, self.top) && self.holes.len() < MAX_HOLES {
            let (from, to) = (core::mem::replace(&mut self.top, end), end);
            self.holes.push(Hole { from, to, state });
        }
    }

    /// All before `ack` has arrived. `false`: the peer has forgotten what it had behind it
    /// (RFC 2018, 8), or nothing is left to remember.
    pub(crate) fn acknowledged(&mut self, ack: u32) -> bool {
        let gone = self.holes.iter().take_while(|hole| !after(hole.to, ack));
        let gone = gone.count();
        self.holes.drain(..gone);
        match self.holes.first_mut() {
            Some(first) if !after(first.from, ack) => {
                first.from = ack;
                true
            }
            _ => false,
        }
    }

    /// Finds out what is to be resent: what is lost by the rule for segments of so many bytes,
    /// and what was resent, or overtaken by what was, longer than `patience` ago, if the peer
    /// was `heard` since: a silence is for slower and slower probes. With `first`, the first
    /// hole is. What is lost anew was sent after all that came before `since`.
    pub(crate) fn judge(
        &mut self,
        now: Instant,
        heard: Instant,
        segment: u32,
        patience: Duration,
        since: u32,
        first: bool,
    ) -> Losses {
        self.patience_us = u32::try_from(patience.total_micros()).unwrap_or(u32::MAX);
        let now_us = now.total_micros() as u32;
        let silent = u32::try_from((now - heard).total_micros()).unwrap_or(u32::MAX);
        let late = |at: u32| now_us.wrapping_sub(at) > self.patience_us.max(silent);
        let mut losses = Losses::default();
        let (mut end, mut bytes, mut ranges) = (self.top, 0_u32, 0);
        for hole in self.holes.iter_mut().rev() {
            let above = end.wrapping_sub(hole.to);
            ranges += u32::from(above > 0);
            bytes = bytes.saturating_add(above);
            end = hole.from;
            let is_behind = bytes > segment.saturating_mul(2) || ranges >= RANGES;
            let due = match hole.state {
                State::Due => false,
                State::Missing => is_behind,
                State::Overtaken(at) => is_behind || late(at),
                State::Resent(at) => late(at),
            };
            if due {
                let again = matches!(hole.state, State::Resent(_));
                losses.anew |= again || !after(since, hole.from);
                losses.holes += 1;
                losses.bytes = losses.bytes.saturating_add(hole.to.wrapping_sub(hole.from));
                hole.state = State::Due;
            }
        }
        if let Some(hole) = self.holes.first_mut().filter(|_| first) {
            hole.state = State::Due;
        }
        losses
    }

    /// Whether something is to be resent.
    pub(crate) fn is_due(&self) -> bool {
        self.holes.iter().any(|hole| hole.state == State::Due)
    }

    /// Of what was sent from `first` on: bytes that have arrived, and bytes that are to be
    /// resent.
    pub(crate) fn counts(&self, first: u32) -> (u32, u32) {
        let (mut missing, mut due) = (0_u32, 0_u32);
        for hole in self.holes.iter().filter(|hole| after(hole.to, first)) {
            let bytes = hole.to.wrapping_sub(later(hole.from, first));
            missing = missing.saturating_add(bytes);
            if hole.state == State::Due {
                due = due.saturating_add(bytes);
            }
        }
        let known = later(self.top, first).wrapping_sub(first);
        (known.saturating_sub(missing), due)
    }

    /// The socket is about to send: of what it sent before, so many bytes may go.
    pub(crate) fn begin_turn(&mut self, now: Instant, fresh: u32, budget: u32) {
        self.now_us = now.total_micros() as u32;
        self.fresh = fresh;
        self.budget = budget;
    }

    /// The socket goes back to its first unacknowledged byte. Behind `fresh` nothing was sent.
    pub(crate) fn rewind(&mut self, fresh: u32) {
        self.fresh = fresh;
        self.rewound = true;
        self.passed = false;
    }

    /// The socket said all it had to say. If it went back: whether that was in vain.
    pub(crate) fn turn_ended(&mut self) -> Option<bool> {
        core::mem::take(&mut self.rewound).then_some(!self.passed)
    }

    /// Whether a segment of so many bytes may be resent, and nothing is on its way to do so.
    pub(crate) fn may_resend(&self, segment: u32) -> bool {
        !self.rewound && self.budget >= segment && self.is_due()
    }

    /// Whether the first hole was not resent, or is to be again.
    pub(crate) fn waits_for_the_first(&self) -> bool {
        let first = self.holes.first();
        first.is_some_and(|hole| !matches!(hole.state, State::Resent(_)))
    }

    /// Whether nothing was done yet about the first hole.
    pub(crate) fn misses_the_first(&self) -> bool {
        let first = self.holes.first();
        first.is_some_and(|hole| matches!(hole.state, State::Missing | State::Overtaken(_)))
    }

    /// From where on nothing was ever sent.
    pub(crate) fn fresh(&self) -> u32 {
        self.fresh
    }

    /// The first part that is to be resent of what lies between `from` and `to`, at most
    /// `most` bytes of it. Where the socket has reasons of its own to send something again, the
    /// first hole counts, unless it was resent just now, and all behind what arrived.
    pub(crate) fn next(&self, from: u32, to: u32, most: u32) -> Option<(u32, u32)> {
        let mut holes = self.holes.iter().enumerate();
        let hole = holes.find(|(at, hole)| {
            let wanted = hole.state == State::Due || *at == 0 && self.may_pass(hole);
            wanted && after(hole.to, from) && after(to, hole.from)
        });
        let (begin, end, most) = match hole {
            Some((0, hole)) if self.may_pass(hole) => (hole.from, hole.to, most),
            Some((_, hole)) => (hole.from, hole.to, most.min(self.budget)),
            None if !self.rewound => (self.top, self.fresh, most),
            None => return None,
        };
        let begin = later(begin, from);
        let end = sooner(sooner(end, to), begin.wrapping_add(most));
        after(end, begin).then_some((begin, end))
    }

    /// Whether the first hole may pass because the socket wants it to.
    fn may_pass(&self, first: &Hole) -> bool {
        !self.rewound
            && match first.state {
                State::Missing | State::Overtaken(_) => true,
                State::Due => false,
                State::Resent(at) => self.now_us.wrapping_sub(at) > self.patience_us,
            }
    }

    /// What [`next`](Self::next) named was sent.
    pub(crate) fn resent(&mut self, from: u32, to: u32) {
        self.passed = true;
        self.mark.get_or_insert((self.fresh, self.now_us));
        self.budget = self.budget.saturating_sub(to.wrapping_sub(from));
        let mut holes = self.holes.iter();
        let Some(at) = holes.position(|hole| !after(hole.from, from) && after(hole.to, from))
        else {
            return;
        };
        let state = State::Resent(self.now_us);
        let hole = self.holes[at];
        // It continues what was resent just now, or the hole is cut in up to three.
        if let Some(before) = at.checked_sub(1).and_then(|at| self.holes.get_mut(at))
            && (before.to, before.state) == (from, state)
        {
            before.to = to;
            self.holes[at].from = to;
            if to == hole.to {
                self.holes.remove(at);
            }
            return;
        }
        let needed = usize::from(hole.from != from) + usize::from(hole.to != to);
        if self.holes.len() + needed > MAX_HOLES {
            // The rest comes when this is taken for lost again.
            self.holes[at].state = state;
            return;
        }
        self.holes[at] = Hole { from, to, state };
        if hole.to != to {
            self.holes.insert(at + 1, Hole { from: to, ..hole });
        }
        if hole.from != from {
            self.holes.insert(at, Hole { to: from, ..hole });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u32 = 1000;
    const PATIENCE: Duration = Duration::from_millis(30);

    /// Close to where sequence numbers wrap.
    const BASE: u32 = u32::MAX - 20_000;

    fn at(offset: u32) -> u32 {
        BASE.wrapping_add(offset)
    }

    fn board(arrived: &[(u32, u32)]) -> Scoreboard {
        let mut board = Scoreboard::new(BASE);
        for (left, right) in arrived {
            board.arrived(Instant::ZERO, at(*left), at(*right));
        }
        board
    }

    /// All parts that are due, as `device` asks for them, in frames of `most` bytes.
    fn resend(board: &mut Scoreboard, now: Instant, budget: u32, most: u32) -> Vec<(u32, u32)> {
        board.begin_turn(now, at(100_000), budget);
        board.rewind(at(100_000));
        let mut parts = Vec::new();
        let mut from = BASE;
        while let Some((left, right)) = board.next(from, at(100_000), most) {
            board.resent(left, right);
            parts.push((left.wrapping_sub(BASE), right.wrapping_sub(BASE)));
            from = right;
        }
        board.turn_ended();
        parts
    }

    #[test]
    fn holes_below_three_segments_are_lost_and_resent_once() {
        let mut board = board(&[(1000, 2000), (3000, 4000), (5000, 8000), (9000, 10_000)]);
        let now = Instant::from_millis(5);
        board.judge(now, now, SEGMENT, PATIENCE, BASE, false);
        let parts = resend(&mut board, now, u32::MAX, SEGMENT);
        // Behind the last one only one segment has arrived.
        assert_eq!(parts, [(0, 1000), (2000, 3000), (4000, 5000)]);
        board.judge(
            now + PATIENCE,
            now + PATIENCE,
            SEGMENT,
            PATIENCE,
            BASE,
            false,
        );
        assert!(!board.is_due());
        board.arrived(Instant::ZERO, at(0), at(1000));
        let late = now + PATIENCE + Duration::from_micros(1);
        board.judge(late, now, SEGMENT, PATIENCE, BASE, false);
        assert!(!board.is_due(), "nothing was heard since");
        board.judge(late, late, SEGMENT, PATIENCE, BASE, false);
        let parts = resend(&mut board, late, u32::MAX, SEGMENT);
        assert_eq!(parts, [(2000, 3000), (4000, 5000)]);
    }

    #[test]
    fn what_was_sent_before_something_resent_that_arrived_is_lost() {
        let ms = Instant::from_millis;
        let mut board = board(&[(1000, 4000), (5000, 6000)]);
        board.judge(ms(0), ms(0), SEGMENT, PATIENCE, BASE, false);
        // By then 100,000 were sent.
        assert_eq!(resend(&mut board, ms(5), u32::MAX, SEGMENT), [(0, 1000)]);
        assert!(board.acknowledged(at(4000)));
        board.overtaken(ms(15), 10_001);
        board.judge(ms(90), ms(90), SEGMENT, PATIENCE, BASE, false);
        assert!(!board.is_due(), "what arrived was sent before");
        board.overtaken(ms(15), 10_000);
        board.judge(ms(35), ms(35), SEGMENT, PATIENCE, BASE, false);
        assert!(!board.is_due(), "it may be on its way yet");
        let late = ms(35) + Duration::from_micros(1);
        board.judge(late, ms(5), SEGMENT, PATIENCE, BASE, false);
        assert!(!board.is_due(), "nothing was heard since");
        let losses = board.judge(late, late, SEGMENT, PATIENCE, at(8000), false);
        assert_eq!(
            (losses.bytes, losses.holes, losses.anew),
            (95_000, 2, false)
        );
        let parts = resend(&mut board, late, u32::MAX, 100_000);
        assert_eq!(parts, [(4000, 5000), (6000, 100_000)]);
    }

    #[test]
    fn a_budget_is_kept_and_the_rest_stays_due() {
        let mut board = board(&[(10_000, 20_000)]);
        let now = Instant::from_millis(5);
        board.judge(now, now, SEGMENT, PATIENCE, BASE, false);
        assert_eq!(
            resend(&mut board, now, 2500, SEGMENT),
            [(0, 1000), (1000, 2000), (2000, 2500)]
        );
        assert!(board.is_due());
        assert_eq!(board.counts(BASE), (10_000, 7500));
        assert_eq!(board.counts(at(5000)), (10_000, 5000));
        assert_eq!(board.counts(at(15_000)), (5000, 0));
        assert_eq!(board.counts(at(25_000)), (0, 0));
        assert_eq!(board.holes.len(), 2, "what was resent at once is one");
        assert_eq!(resend(&mut board, now, u32::MAX, 60_000), [(2500, 10_000)]);
        assert!(!board.is_due());
    }

    #[test]
    fn a_peer_that_forgets_what_it_had_is_noticed() {
        let mut board = board(&[(1000, 5000), (6000, 7000)]);
        assert!(board.acknowledged(at(500)));
        assert!(!board.acknowledged(at(3000)), "it had up to 5000");
        let mut board = self::board(&[(1000, 5000), (6000, 7000)]);
        assert!(board.acknowledged(at(5000)));
        assert!(!board.acknowledged(at(7000)), "nothing is left");
    }

    #[test]
    fn a_first_hole_may_be_resent_by_the_socket_unless_it_was_just_now() {
        let mut board = board(&[(1000, 1100)]);
        let now = Instant::from_millis(1);
        board.judge(now, now, SEGMENT, PATIENCE, BASE, false);
        assert!(!board.is_due());
        board.begin_turn(now, at(1100), 0);
        assert_eq!(board.next(BASE, at(1100), SEGMENT), Some((BASE, at(1000))));
        board.resent(BASE, at(1000));
        assert_eq!(board.next(BASE, at(1100), SEGMENT), None);
        // Nothing was heard since, and still the socket's own time-out has its way.
        let late = now + PATIENCE + Duration::from_micros(1);
        board.judge(late, now, SEGMENT, PATIENCE, BASE, false);
        assert!(!board.is_due());
        board.begin_turn(late, at(1100), 0);
        assert_eq!(board.next(BASE, at(1100), SEGMENT), Some((BASE, at(1000))));
        board.judge(now, now, SEGMENT, PATIENCE, BASE, true);
        assert_eq!(resend(&mut board, now, u32::MAX, SEGMENT), [(0, 1000)]);
    }

    #[test]
    fn what_the_socket_sends_again_by_itself_may_pass_where_nothing_is_known() {
        let mut board = board(&[(1000, 2000)]);
        board.begin_turn(Instant::ZERO, at(5000), 0);
        let behind = board.next(at(1000), at(9000), SEGMENT);
        assert_eq!(behind, Some((at(2000), at(3000))));
        assert_eq!(
            board.next(at(4500), at(9000), SEGMENT),
            Some((at(4500), at(5000)))
        );
        board.rewind(at(5000));
        assert_eq!(board.next(at(1000), at(9000), SEGMENT), None);
    }

    #[test]
    fn whatever_is_told_the_board_says_no_more_than_is_true() {
        let mut random = 1_u64;
        let mut next = |below: u32| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((random >> 33) as u32) % below
        };
        const UNITS: usize = 120;
        for _ in 0..2000 {
            let mut board = Scoreboard::new(BASE);
            let mut arrived = [false; UNITS];
            let mut first = 0;
            let mut now = Instant::ZERO;
            for _ in 0..60 {
                let left = first + 1 + next((UNITS - first - 1) as u32) as usize;
                let right = (left + 1 + next(4) as usize).min(UNITS);
                if left >= right {
                    break;
                }
                arrived[left..right].fill(true);
                board.arrived(Instant::ZERO, at(left as u32 * 100), at(right as u32 * 100));
                if next(4) == 0 {
                    arrived[first] = true;
                    while first < UNITS && arrived[first] {
                        first += 1;
                    }
                    if first == UNITS || !board.acknowledged(at(first as u32 * 100)) {
                        let left = arrived.get(first..).unwrap_or_default();
                        assert!(!left.contains(&true) || left.iter().all(|unit| *unit));
                        break;
                    }
                }
                now += Duration::from_millis(next(20).into());
                board.judge(now, now, 100, PATIENCE, BASE, false);
                let most = 100 + next(500);
                let parts = resend(&mut board, now, next(3000), most);
                for (from, to) in parts {
                    assert!(to - from <= most && from >= first as u32 * 100);
                    let units = &arrived[from as usize / 100..to.div_ceil(100) as usize];
                    assert!(!units.contains(&true), "it has arrived: {from} to {to}");
                }
                let holes = board.holes.iter();
                let len = |hole: &Hole| hole.to.wrapping_sub(hole.from);
                assert!(holes.clone().all(|hole| after(hole.to, hole.from)));
                let order = holes.clone().zip(holes.clone().skip(1));
                assert!(order.clone().all(|(a, b)| !after(a.to, b.from)));
                let known: u32 = holes.map(len).sum();
                let missing = arrived[first..].iter().filter(|unit| !**unit).count() as u32;
                let above = at(UNITS as u32 * 100).wrapping_sub(board.top);
                // Where too many holes were told of, some that arrived is taken for missing.
                assert!(known + above >= missing * 100);
                if board.holes.len() < MAX_HOLES - 4 && arrived.len() < MAX_HOLES {
                    assert_eq!(known + above, missing * 100);
                }
            }
        }
    }
}
