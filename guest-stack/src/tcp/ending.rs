//! How connections end: errors, resets, TIME-WAIT, and giving up.
//!
//! Called by the hot loop after smoltcp worked on a connection and for segments
//! of connections in TIME-WAIT, and by changes of configuration.
//!
//! | state of the socket | what happens |
//! | --- | --- |
//! | CLOSED, TIME-WAIT, its last segment waits for a neighbour | held, for [`NEIGHBOUR_PATIENCE`](crate::udp::NEIGHBOUR_PATIENCE) |
//! | CLOSED after LAST-ACK or CLOSING, or closed by the application | detached (RFC 9293, 3.10.7.4: no error) |
//! | CLOSED after SYN-SENT or SYN-RECEIVED | `ConnectionRefused`, detached |
//! | CLOSED otherwise | `ConnectionReset` (or what was known before), detached |
//! | TIME-WAIT | detached; a record without buffers answers for it |
//! | any other, the peer owes an answer for too long | `TimedOut`, reset |
//! | any other | a deadline is set |

use shm_link::link::FrameTx;
use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};

use super::TcpStreamId;
use super::connection::{Owner, Readiness};
use super::segment::Received;
use super::time_wait::{TimeWait, Verdict};
use crate::classify;
use crate::error::StreamError;
use crate::flow::{Entry, Handle};
use crate::ingress::Ending;
use crate::sockets::Sockets;

impl Sockets {
    /// Ends whatever is in a slot, with an error for the application.
    pub(crate) fn fail(&mut self, index: u32, error: StreamError) {
        match self.table.entry(index) {
            Entry::Flow(flow) => {
                flow.error.get_or_insert(error);
                // Wakes whoever waits; the segment it would send is never sent.
                flow.abort();
                self.detach(index);
            }
            Entry::HalfOpen(_) => self.forget_half_open(index),
            Entry::TimeWait(_) => {
                let handle = self.table.handle(index);
                self.forget_time_wait(handle);
            }
            Entry::Free | Entry::Listener(_) | Entry::Udp(_) | Entry::Quiet(_) => {}
        }
    }

    /// Takes a connection out of the table of 5-tuples: nothing happens to it
    /// any more. What it received stays until it is closed.
    fn detach(&mut self, index: u32) {
        let Entry::Flow(flow) = self.table.entry(index) else {
            return;
        };
        flow.attached = false;
        let (key, owner) = (flow.key, flow.owner);
        self.table.forget_key(&key, index);
        self.table.set_deadline(index, None);
        self.table.set_waiting(index, false);
        let id = TcpStreamId(self.table.handle(index));
        self.notice(id);
        match owner {
            Owner::Orphan => self.free_flow(index),
            // It is accepted with its data or error, as on other hosts.
            Owner::Queue | Owner::Application => {}
        }
    }

    /// Empties the slot of a connection that is in no table any more.
    pub(super) fn free_flow(&mut self, index: u32) {
        if let Entry::Flow(flow) = self.table.remove(index) {
            self.pool.take_back(flow.into_cell());
        }
    }

    /// Has the stream's handler called, if it has one.
    pub(crate) fn notice(&mut self, id: TcpStreamId) {
        if self.registry.streams.contains(id)
            && let Some(Entry::Flow(flow)) = self.table.named(id.0)
            && !flow.noticed
        {
            flow.noticed = true;
            self.notices.push_back(id);
        }
    }

    /// The stream's handler is called now, with this. `None`: it was closed.
    pub(crate) fn noticed(&mut self, id: TcpStreamId) -> Option<Readiness> {
        let flow = self.flow(id).ok()?;
        flow.noticed = false;
        Some(flow.readiness())
    }

    /// Looks at a connection after smoltcp worked on it: notices ends, keeps
    /// time. Gives the instant at which to look again, apart from smoltcp's own
    /// wishes; `None` in the outer option: the connection was detached.
    pub(crate) fn settle(&mut self, index: u32, now: Instant) -> Option<Option<Instant>> {
        let limits = self.config.limits;
        let waits = self.table.waits(index);
        let Entry::Flow(flow) = self.table.entry(index) else {
            return None;
        };
        let state = flow.state();
        if waits
            && matches!(state, State::Closed | State::TimeWait)
            && let Some(until) = flow.held(now)
        {
            return Some(Some(until));
        }
        let before = core::mem::replace(&mut flow.last_state, state);
        match state {
            State::Closed | State::Listen => {
                // What ended it: a reset from the wire took the addresses away,
                // a reset of ours or a lost address did not.
                let wanted = flow.owner == Owner::Orphan
                    || matches!(before, State::LastAck | State::Closing);
                if !wanted {
                    let refused = matches!(before, State::SynSent | State::SynReceived);
                    flow.error.get_or_insert(if refused {
                        StreamError::ConnectionRefused
                    } else {
                        StreamError::ConnectionReset
                    });
                }
                self.detach(index);
                None
            }
            State::TimeWait => {
                let (key, sent) = (flow.key, flow.sent);
                let hop_limit = flow.options.hop_limit;
                self.detach(index);
                if let Some(sent) = sent {
                    self.enter_time_wait(TimeWait {
                        key,
                        sent,
                        hop_limit,
                        expires_at: now + limits.time_wait_duration,
                    });
                }
                None
            }
            State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => {
                let give_up = flow.patience(now, &limits);
                if give_up.is_some_and(|at| at <= now) {
                    flow.error.get_or_insert(StreamError::TimedOut);
                    flow.abort();
                    flow.last_state = State::Closed;
                    // The reset is worth one attempt.
                    self.table.mark(index);
                    return Some(Some(now + Duration::from_millis(1)));
                }
                Some(give_up)
            }
        }
    }

    fn enter_time_wait(&mut self, time_wait: TimeWait) {
        while self.time_wait.len() >= self.config.limits.time_wait.max(1) {
            if let Some(oldest) = self.time_wait.pop_front() {
                self.forget_time_wait(oldest);
            }
        }
        let key = time_wait.key;
        let expires_at = time_wait.expires_at;
        let handle = self.table.insert(Entry::TimeWait(time_wait));
        self.table.set_key(key, handle.index);
        self.table.set_deadline(handle.index, Some(expires_at));
        self.time_wait.push_back(handle);
    }

    /// Ends a TIME-WAIT that is still there.
    pub(crate) fn forget_time_wait(&mut self, handle: Handle) {
        if let Some(Entry::TimeWait(time_wait)) = self.table.named(handle) {
            let key = time_wait.key;
            self.table.forget_key(&key, handle.index);
            self.table.remove(handle.index);
        }
    }

    /// A segment of a connection in TIME-WAIT.
    pub(crate) fn receive_time_wait(
        &mut self,
        now: Instant,
        index: u32,
        received: Received<'_>,
        tx: &mut dyn FrameTx,
    ) -> Ending {
        if self.parse(received).is_none() {
            return Ending::Malformed;
        }
        let duration = self.config.limits.time_wait_duration;
        let Entry::TimeWait(time_wait) = self.table.entry(index) else {
            return Ending::Malformed;
        };
        match time_wait.judge(received.tcp) {
            Verdict::Ignore => Ending::Tcp,
            Verdict::Answer => {
                let answer = time_wait.ack();
                time_wait.expires_at = now + duration;
                let expires_at = time_wait.expires_at;
                self.table.set_deadline(index, Some(expires_at));
                if !self.limiter.permit(now) {
                    return Ending::ReplyLimited;
                }
                if let Some(mac) = classify::source(received.frame) {
                    self.send_segment(&answer, mac, tx);
                }
                Ending::Tcp
            }
            Verdict::Renew => {
                let key = time_wait.key;
                let handle = self.table.handle(index);
                if self.target(&key).is_none() {
                    return Ending::Tcp;
                }
                self.forget_time_wait(handle);
                self.receive_syn(now, key, received, tx)
                    .unwrap_or(Ending::Malformed)
            }
        }
    }
}
