//! One TCP connection: a smoltcp socket, who it belongs to, and the time its
//! peer is given.
//!
//! It decides and remembers; it is in no table and sends nothing. `stream` works
//! on it for the application, `ending` for the hot loop.
//!
//! | state of the socket | the peer owes an answer | patience |
//! | --- | --- | --- |
//! | SYN-SENT, SYN-RECEIVED | always | `connect_timeout` |
//! | ESTABLISHED, CLOSE-WAIT | for unacknowledged data, or with `keep_alive` | `user_timeout`, `keep_alive` |
//! | FIN-WAIT-1, CLOSING, LAST-ACK | always | as above; closed: `orphan_timeout` |
//! | FIN-WAIT-2 | if it was closed, or with `keep_alive` | `orphan_timeout`; `keep_alive` |
//! | CLOSED, TIME-WAIT | never | for a last segment, [`NEIGHBOUR_PATIENCE`] |

use core::task::Waker;

use smoltcp::iface::SocketSet;
use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;
use smoltcp::wire::IpAddress;

use super::answers::Answers;
use super::memory::TcpCell;
use super::options::TcpOptions;
use super::recovery::Recovery;
use crate::config::Limits;
use crate::device::SentTcp;
use crate::error::StreamError;
use crate::flow::FlowKey;
use crate::udp::NEIGHBOUR_PATIENCE;

/// How often a closed stream's time begins anew while it is delivered, at most.
const ORPHAN_STEPS: usize = 8;

/// What a stream is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// A read gives data, the end, or an error: it does not wait.
    pub readable: bool,
    /// A write takes bytes or gives an error: it does not wait.
    pub writable: bool,
    /// The other end has said all it will say, and it was read.
    pub finished: bool,
    /// The connection has ended with this error.
    pub error: Option<StreamError>,
}

/// Who a connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The accept queue of a listener.
    Queue,
    /// The application.
    Application,
    /// Nobody: it was closed and says its last words.
    Orphan,
}

/// A connection.
pub(crate) struct Flow {
    pub(super) key: FlowKey,
    /// The 5-tuple is in the table, and the socket is polled.
    pub(super) attached: bool,
    pub(super) cell: TcpCell,
    pub(super) options: TcpOptions,
    pub(crate) owner: Owner,
    pub(super) error: Option<StreamError>,
    pub(super) read_shut: bool,
    /// Our FIN waits until all data are acknowledged.
    pub(super) closing: bool,
    pub(super) reader: Option<Waker>,
    pub(super) last_state: State,
    /// Since when the peer owes an answer, and what was unacknowledged then.
    pub(super) waiting: Option<(Instant, usize)>,
    /// Of a closed stream: what must be acknowledged for the peer to be given time anew.
    step: usize,
    /// A segment arrived since the last look at `waiting`.
    heard: bool,
    /// Keep-alive probes since then.
    pub(super) probes: u32,
    /// Not before, since there was no room for the next.
    pub(super) probe_after: Option<Instant>,
    /// Its handler is about to be called.
    pub(super) noticed: bool,
    /// Until when its last segment may wait for the neighbour.
    held_until: Option<Instant>,
    pub(crate) sent: Option<SentTcp>,
    pub(crate) recovery: Recovery,
    pub(crate) answers: Answers,
}

impl Flow {
    /// A connection of the application's around a socket.
    pub(crate) fn new(key: FlowKey, mut cell: TcpCell, options: TcpOptions) -> Self {
        let last_state = cell.with(|socket| socket.state());
        Self {
            key,
            attached: true,
            cell,
            options,
            owner: Owner::Application,
            error: None,
            read_shut: false,
            closing: false,
            reader: None,
            last_state,
            waiting: None,
            step: 0,
            heard: false,
            probes: 0,
            probe_after: None,
            noticed: false,
            held_until: None,
            sent: None,
            recovery: Recovery::new(),
            answers: Answers::new(),
        }
    }

    pub(super) fn state(&mut self) -> State {
        self.cell.with(|socket| socket.state())
    }

    /// Resets the connection; the reset leaves with the next turn.
    pub(super) fn abort(&mut self) {
        self.cell.with(|socket| socket.abort());
    }

    /// Its memory, which another connection may use.
    pub(super) fn into_cell(self) -> TcpCell {
        self.cell
    }

    /// Works on the socket's set while the connection is attached.
    pub(crate) fn with_live_set<R>(
        &mut self,
        f: impl FnOnce(&mut SocketSet<'_>) -> R,
    ) -> Option<R> {
        self.attached.then(|| self.cell.with_set(f))
    }

    /// Our address, while it matters.
    pub(crate) fn local_addr(&self) -> Option<IpAddress> {
        self.attached.then_some(self.key.local.addr)
    }

    /// The peer's address.
    pub(crate) fn remote_addr(&self) -> IpAddress {
        self.key.remote.addr
    }

    /// Whether the next hop may be another than is believed: after a turn in which
    /// something was `resent`, and nothing comes back.
    pub(crate) fn doubts_its_neighbour(&mut self, resent: u32) -> bool {
        let unheard = resent > 1 || self.recovery.is_in_vain() || self.state() == State::SynSent;
        resent > 0 && unheard
    }

    /// Whether the last acknowledgement of this connection is worth watching
    /// for: it is repeated in TIME-WAIT.
    pub(crate) fn ending(&mut self) -> bool {
        let state = self.state();
        matches!(
            state,
            State::FinWait1 | State::FinWait2 | State::Closing | State::TimeWait
        )
    }

    /// Whether the connection is over, but for what was received.
    pub(crate) fn ended(&mut self) -> bool {
        self.cell.with(|socket| {
            matches!(socket.state(), State::Closed | State::Listen)
                && socket.remote_endpoint().is_none()
        })
    }

    /// The connection is over, but its last segment (a reset, or the
    /// acknowledgement that TIME-WAIT begins with) waits for the neighbour's
    /// hardware address. Until when it may; `None`: not any more.
    pub(super) fn held(&mut self, now: Instant) -> Option<Instant> {
        // A reset that came, or was sent, leaves the socket without a peer.
        self.cell.with(|socket| socket.remote_endpoint())?;
        let until = *self.held_until.get_or_insert(now + NEIGHBOUR_PATIENCE);
        (until > now).then_some(until)
    }

    /// A frame is about to be fed to the socket, of `one` segment or of several: says how
    /// long its acknowledgement waits.
    pub(crate) fn hears(&mut self, one: bool) {
        if self.options.ack_delay.is_none() {
            let delay = self.answers.delay().filter(|_| one);
            self.cell.with(|socket| socket.set_ack_delay(delay));
        }
    }

    /// A segment was fed to the socket.
    pub(crate) fn heard(&mut self) {
        self.heard = true;
        if self.read_shut || self.owner == Owner::Orphan {
            self.throw_away();
        }
    }

    /// Takes what nobody will read. Data for a closed stream resets it.
    pub(super) fn throw_away(&mut self) {
        let orphan = self.owner == Owner::Orphan;
        self.cell.with(|socket| {
            if orphan && socket.can_recv() {
                socket.abort();
                return;
            }
            while socket.can_recv() {
                // Never fails while there is something to receive.
                let _ = socket.recv(|data| (data.len(), ()));
            }
        });
    }

    /// When to give the peer up, and why, if nothing more is heard.
    pub(super) fn patience(&mut self, now: Instant, limits: &Limits) -> Option<Instant> {
        let socket = self
            .cell
            .with(|socket| (socket.state(), socket.send_queue()));
        let (state, unacknowledged) = socket;
        let orphan = self.owner == Owner::Orphan;
        let owes = match state {
            State::SynSent | State::SynReceived => true,
            State::FinWait1 | State::Closing | State::LastAck => true,
            State::Established | State::CloseWait => {
                unacknowledged != 0 || self.options.keep_alive.is_some()
            }
            State::FinWait2 => orphan || self.options.keep_alive.is_some(),
            State::Closed | State::Listen | State::TimeWait => false,
        };
        // A closed stream must make progress; an open one need only be answered.
        let progress = match self.waiting {
            Some((_, before)) if orphan => {
                let done = before.saturating_sub(unacknowledged);
                done >= self.step || done > 0 && unacknowledged == 0
            }
            _ => self.heard,
        };
        self.heard = false;
        if !owes {
            self.waiting = None;
            return None;
        }
        if self.waiting.is_none() {
            // A peer that acknowledges a byte now and then would keep it for ever.
            self.step = unacknowledged.div_ceil(ORPHAN_STEPS).max(1);
        }
        let waiting = match self.waiting {
            Some((since, before)) if !progress => {
                (since, if orphan { before } else { unacknowledged })
            }
            _ => {
                self.probes = 0;
                (now, unacknowledged)
            }
        };
        let (since, _) = *self.waiting.insert(waiting);
        let patience = match state {
            State::SynSent | State::SynReceived => Some(self.options.connect_timeout),
            _ if orphan => Some(limits.orphan_timeout),
            _ => self.options.patience(),
        };
        patience.map(|patience| since + patience)
    }

    pub(super) fn readiness(&mut self) -> Readiness {
        let error = self.error;
        let read_shut = self.read_shut;
        let (connecting, closing) = (self.connecting(), self.closing);
        self.cell.with(|socket| {
            let readable = socket.can_recv();
            let ended = error.is_some() || read_shut || (!connecting && !socket.may_recv());
            let writable = !connecting && (socket.can_send() || !socket.may_send() || closing);
            Readiness {
                readable: readable || ended,
                writable: writable || error.is_some(),
                finished: !readable && ended,
                error,
            }
        })
    }

    pub(super) fn connecting(&mut self) -> bool {
        let state = self.state();
        self.error.is_none() && matches!(state, State::SynSent | State::SynReceived)
    }
}
