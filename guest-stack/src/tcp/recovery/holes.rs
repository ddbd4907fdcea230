//! Which holes of a flight are resent, and when: what recovery does with its scoreboard.

use alloc::boxed::Box;

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::TcpPacket;

use super::options::selected;
use super::{LONGEST_US, MARGIN, MIN_PATIENCE, PROBES_IN_VAIN, Recovery, Scoreboard, TIMEOUT};
use crate::tally::after;

impl Recovery {
    /// What has arrived behind a hole, of what was sent from `first` on.
    pub(super) fn arrived(&self, first: u32) -> u32 {
        let board = self.board.as_deref();
        board.map_or(0, |board| board.counts(first).0)
    }

    /// What the peer has behind `ack`, up to which it has all.
    pub(super) fn learn(&mut self, now: Instant, ack: u32, packet: &TcpPacket<&[u8]>) {
        let mut took = None;
        if let Some(board) = &mut self.board {
            took = board.first_took(now, ack);
            if !board.acknowledged(ack) {
                self.board = None;
            }
        }
        for (left, right) in selected(packet, ack) {
            if self.highest.is_some_and(|highest| !after(right, highest)) {
                self.selective = true;
                let board = self
                    .board
                    .get_or_insert_with(|| Box::new(Scoreboard::new(ack)));
                let this = board.arrived(now, left, right);
                took = this.into_iter().chain(took).min();
            }
        }
        if let Some(took) = took {
            let took = took.min(LONGEST_US);
            let board = self.board.as_deref_mut();
            if let Some(board) = board.filter(|_| !self.congestion.is_too_short(took)) {
                board.overtaken(now, took);
            }
            self.congestion.arrived(now, took);
            self.guess(took);
        }
    }

    /// After how long something that was resent was lost again.
    pub(super) fn patience(&self) -> Duration {
        match self.round_trip() {
            Some(round_trip) => (round_trip + round_trip / 2 + MARGIN).max(MIN_PATIENCE),
            None => TIMEOUT,
        }
    }

    /// How long the socket does not go back again.
    pub(super) fn rest(&self) -> Duration {
        if self.in_vain {
            return self.patience();
        }
        Duration::from_micros(u64::from(self.srtt_us.unwrap_or_default()) / 8)
    }

    /// Finds out what is lost, with the first hole if `first` says so, and how much of it may
    /// be resent in segments of so many bytes.
    pub(super) fn judge(&mut self, now: Instant, segment: u32, first: bool) {
        // The peer may have forgotten what it had (RFC 2018, 8).
        if self.in_flight() == 0 || self.probes >= PROBES_IN_VAIN {
            self.board = None;
        }
        let patience = self.patience();
        let since = self.recover.or(self.first()).unwrap_or_default();
        let Some(board) = &mut self.board else {
            return;
        };
        let losses = board.judge(now, self.heard_at, segment, patience, since, first);
        self.congestion.found_lost(losses.bytes, losses.holes);
        if losses.anew {
            self.congestion.lost_anew();
            self.recover = self.highest;
        }
        // The first one goes in any case: else nothing might ever be heard.
        let least = if board.waits_for_the_first() {
            segment
        } else {
            0
        };
        let flight = self.flight(self.first().unwrap_or_default());
        let budget = self.congestion.room(flight).max(least);
        let fresh = self.highest.unwrap_or_default();
        if let Some(board) = &mut self.board {
            board.begin_turn(now, fresh, budget);
        }
    }

    /// Whether the socket is to send all anew, of which what is lost is let through. Behind
    /// `fresh` nothing was sent.
    pub(crate) fn goes_back(&mut self, now: Instant, segment: u32, fresh: u32) -> bool {
        let rested = self.rewound.is_none_or(|at| now >= at + self.rest());
        let Some(board) = self.board.as_deref_mut() else {
            return false;
        };
        let goes_back = rested && self.window != 0 && board.may_resend(segment);
        if goes_back {
            board.rewind(fresh);
            self.rewound = Some(now);
            self.recover = self.recover.or(self.highest);
        }
        goes_back
    }

    /// The board, for a turn of the socket's; none while the window is closed: what is sent
    /// then is sent to probe it.
    pub(crate) fn lend_board(&mut self) -> Option<Box<Scoreboard>> {
        self.board.take_if(|_| self.window != 0)
    }

    /// The board is back from a turn; `over`: the socket said all it had to say.
    pub(crate) fn take_board_back(&mut self, mut board: Box<Scoreboard>, over: bool) {
        if over {
            self.in_vain = board.turn_ended().unwrap_or(self.in_vain);
        }
        self.board = Some(board);
    }

    /// One segment is taken for lost, of which nothing else is known.
    pub(super) fn takes_for_lost(&mut self, segment: u32) {
        if let Some(first) = self.first() {
            let end = first.wrapping_add(segment.min(self.in_flight()));
            let board = || Box::new(Scoreboard::all_lost(first, end));
            self.board.get_or_insert_with(board);
        }
    }

    /// When the socket may go back again, if something is lost.
    pub(super) fn goes_back_at(&self, now: Instant) -> Option<Instant> {
        let board = self.board.as_deref()?;
        let at = self.rewound? + self.rest();
        (board.is_due() && at > now).then_some(at)
    }
}
