//! One slot of the table, after something happened to it: lets its socket send,
//! and finds out when to look again.
//!
//! Called by the hot loop in `stack` for dirty slots and expired timers, and by
//! the faces for a stream that was just written to.

use shm_link::link::FrameTx;
use smoltcp::iface::{PollResult, SocketSet};
use smoltcp::time::{Duration, Instant};

use crate::classify::ETHERNET_LEN;
use crate::device::{FrameDevice, Wire};
use crate::flow::Entry;
use crate::sockets::Sockets;
use crate::timers::earlier;

/// Frames that one socket may send before others get their turn. Sixteen full
/// frames are some 20 µs of work; fewer make a busy table spin more.
const TURN: u64 = 16;

/// Segments that one socket may send before others get their turn, where many
/// make one frame: four frames of 64 KB, some 60 µs.
const TURN_SEGMENTS: usize = 180;

/// How long a socket rests that wants to be polled at once but does nothing.
const REST: Duration = Duration::from_millis(10);

/// What became of a slot's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It said what it had to say; its deadline is set.
    Done,
    /// It has more to say and goes to the end of the dirty list.
    More,
    /// The link has no room.
    Blocked,
}

impl Sockets {
    /// Sends what is left of a packet that smoltcp cut into fragments. Until it
    /// is gone, smoltcp must not begin another one. `false`: no room.
    pub(crate) fn finish_fragments(&mut self, now: Instant, tx: &mut dyn FrameTx) -> bool {
        while self.io.fragmenting {
            self.io.blocked = false;
            let mut nobody = SocketSet::new(&mut [][..]);
            let mut device = FrameDevice {
                frame: None,
                wire: Wire {
                    tx: &mut *tx,
                    state: &mut self.io,
                },
            };
            self.interface.poll_egress(now, &mut device, &mut nobody);
            if self.io.blocked {
                return false;
            }
            // With no sockets, only fragments make it want to be polled.
            self.io.fragmenting = self.interface.poll_at(now, &nobody).is_some();
        }
        true
    }

    /// Gives a slot its turn and sets its deadline.
    pub(crate) fn serve(&mut self, index: u32, now: Instant, tx: &mut dyn FrameTx) -> Turn {
        self.counters.flows_polled += 1;
        if let Entry::HalfOpen(_) = self.table.entry(index) {
            self.let_in(index, now, tx);
            return Turn::Done;
        }
        if let Entry::Flow(flow) = self.table.entry(index) {
            let watch = flow.ending();
            self.io.watched = watch.then_some(None);
            self.io.tally = Some(flow.recovery.tally());
        }
        if let Entry::Flow(flow) = self.table.entry(index) {
            flow.close_when_acknowledged();
        }
        self.recover(index, now, tx);
        self.keep_alive(index, now, tx);
        if let Entry::Flow(flow) = self.table.entry(index) {
            self.io.board = flow.recovery.lend_board();
        }
        let mut waits = false;
        let mut turn = self.send_from(index, now, tx, &mut waits);
        if turn == Turn::Done && self.io.board.is_some() && self.go_back(index, now) {
            turn = self.send_from(index, now, tx, &mut waits);
        }
        let board = self.io.board.take();
        let sent = self.io.watched.take().flatten();
        let tally = self.io.tally.take();
        if let Entry::Flow(flow) = self.table.entry(index) {
            flow.sent = sent.or(flow.sent);
            if let Some(board) = board {
                let over = turn == Turn::Done;
                flow.recovery.take_board_back(board, over);
            }
            if let Some(tally) = &tally {
                flow.recovery.sent(now, tally);
                let acknowledges = tally.rcv_nxt.is_some();
                flow.answers.turned(now, tally.is_fresh, acknowledges);
            }
            waits |= flow.doubts_its_neighbour(tally.map_or(0, |tally| tally.resent));
        }
        if waits {
            self.ask_for_neighbours_of(index, now, tx);
        }
        match turn {
            Turn::Done => self.rest(index, now),
            Turn::More => self.table.mark(index),
            Turn::Blocked => self.table.mark_first(index),
        }
        turn
    }

    /// Lets a socket send; `waits`: it has to know a neighbour first.
    fn send_from(
        &mut self,
        index: u32,
        now: Instant,
        tx: &mut dyn FrameTx,
        waits: &mut bool,
    ) -> Turn {
        let stop = self.io.frames + TURN;
        for _ in 0..TURN_SEGMENTS {
            if self.io.frames >= stop {
                break;
            }
            if !self.finish_fragments(now, tx) {
                return Turn::Blocked;
            }
            self.io.blocked = false;
            self.io.wanted = false;
            let mut device = FrameDevice {
                frame: None,
                wire: Wire {
                    tx: &mut *tx,
                    state: &mut self.io,
                },
            };
            let interface = &mut self.interface;
            let result = self
                .table
                .entry(index)
                .with_set(|set| interface.poll_egress(now, &mut device, set));
            let Some(result) = result else {
                return Turn::Done;
            };
            let sent = result != PollResult::None;
            if self.io.blocked {
                return Turn::Blocked;
            }
            // A token was asked for and nothing of the socket's came of it: it
            // waits for a neighbour.
            if sent || self.io.wanted {
                self.table.set_waiting(index, !sent);
                *waits = !sent;
            }
            if sent
                && let Entry::Udp(udp) = self.table.entry(index)
                && let Some(to) = udp.sent(now)
            {
                self.ask_for(now, &to, tx);
            }
            if !sent {
                return Turn::Done;
            }
        }
        Turn::More
    }

    /// After a turn: notices what ended and sets the deadline.
    fn rest(&mut self, index: u32, now: Instant) {
        let interface = &mut self.interface;
        let entry = self.table.entry(index);
        let Some(smoltcp) = entry.with_set(|set| interface.poll_at(now, set)) else {
            return;
        };
        let mut deadline = match smoltcp {
            Some(at) if at <= now => Some(now + REST),
            at => at,
        };
        if let Entry::Udp(udp) = self.table.entry(index) {
            if udp.is_over(smoltcp.is_none()) {
                self.table.remove(index);
                return;
            }
            if smoltcp.is_some() {
                let thrown = udp.stalled(self.interface.ip_addrs(), now);
                self.counters.tx_no_neighbour += thrown;
            }
        }
        let mtu = self.io.mtu;
        if let Entry::Flow(flow) = self.table.entry(index) {
            deadline = earlier(
                deadline,
                flow.recovery_deadline(now, mtu, smoltcp.is_some()),
            );
            // TIME-WAIT ends the socket, but not before its ACK was sent.
            match self.settle(index, now) {
                None => return,
                Some(give_up) => deadline = earlier(deadline, give_up),
            }
            if let Entry::Flow(flow) = self.table.entry(index) {
                deadline = earlier(deadline, flow.keep_alive_at());
            }
        }
        self.table.set_deadline(index, deadline);
    }

    /// A slot's deadline has come.
    pub(crate) fn deadline_came(&mut self, index: u32, now: Instant, tx: &mut dyn FrameTx) {
        match self.table.entry(index) {
            Entry::HalfOpen(_) => self.half_open_expired(index, now, tx),
            Entry::TimeWait(_) => {
                let handle = self.table.handle(index);
                self.forget_time_wait(handle);
                // They expire in the order they came, but for a few.
                while let Some(oldest) = self.time_wait.front()
                    && self.table.named(*oldest).is_none()
                {
                    self.time_wait.pop_front();
                }
            }
            Entry::Flow(_) | Entry::Udp(_) | Entry::Quiet(_) => self.table.mark(index),
            Entry::Free | Entry::Listener(_) => {}
        }
    }

    /// Lets the application's own sockets send, and smoltcp report its
    /// multicast groups. Gives when to come again.
    pub(crate) fn serve_application(
        &mut self,
        now: Instant,
        tx: &mut dyn FrameTx,
    ) -> Option<Instant> {
        let empty = self.application.iter().next().is_none();
        let groups = self.groups_at.is_some_and(|at| at <= now);
        if (empty && !groups) || !self.finish_fragments(now, tx) {
            return if empty { self.groups_at } else { Some(now) };
        }
        self.io.blocked = false;
        self.io.wanted = false;
        let mut device = FrameDevice {
            frame: None,
            wire: Wire {
                tx: &mut *tx,
                state: &mut self.io,
            },
        };
        let result = self
            .interface
            .poll_egress(now, &mut device, &mut self.application);
        if result == PollResult::None && self.io.wanted && !self.io.blocked {
            self.ask_for_neighbours_of_the_application(now, tx);
        }
        if groups && !self.io.blocked {
            self.groups_at = None;
        }
        self.application_dirty = result != PollResult::None || self.io.blocked;
        let wants = match self.interface.poll_at(now, &self.application) {
            Some(at) if at <= now && !self.application_dirty => Some(now + REST),
            at => at,
        };
        earlier(wants, self.groups_at)
    }

    /// Longest frame that an answer to a received frame may need.
    pub(crate) fn answer_len(&self) -> usize {
        ETHERNET_LEN + self.io.mtu
    }
}
