//! TCP connections: their handles, reading, writing, and how they end.
//!
//! A connection is polled as long as its 5-tuple is in the table. When it has
//! ended (reset, timed out, or everything said in both directions) it is
//! *detached*: nothing happens to it any more, but what it received can still be
//! read until the application closes it. smoltcp itself would empty the buffer
//! of a connection at the end of TIME-WAIT.
//!
//! | application | connection | what happens |
//! | --- | --- | --- |
//! | `tcp_shutdown(Write)` | | FIN after what was written; reading goes on |
//! | `tcp_shutdown(Read)` | | reads give 0; what still arrives is taken and thrown away |
//! | `tcp_close` | all that arrived was read | FIN after what was written, the rest in the background |
//! | `tcp_close` | unread data | reset (RFC 9293, 3.10.4; RFC 2525, 2.17) |
//! | `tcp_close` | data arrives afterwards | reset |
//! | `tcp_close` | detached | the memory is free at once |
//! | `tcp_abort` | | reset |

use core::net::{IpAddr, SocketAddr};
use core::task::Waker;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpAddress, IpEndpoint, IpVersion};

use super::options::TcpOptions;
use super::time_wait::TimeWait;
use super::{TcpStreamId, birth};
use crate::config::Limits;
use crate::device::SentTcp;
use crate::error::{BindError, StreamError};
use crate::flow::{Entry, FlowKey, Handle};
use crate::ports::{LocalAddr, LocalIp};
use crate::sockets::Sockets;
use crate::udp::NEIGHBOUR_PATIENCE;

/// Which half of a stream to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Nothing more will be read.
    Read,
    /// Nothing more will be written.
    Write,
    /// Both.
    Both,
}

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
    key: FlowKey,
    /// The 5-tuple is in the table, and the socket is polled.
    attached: bool,
    set: SocketSet<'static>,
    handle: SocketHandle,
    options: TcpOptions,
    pub(crate) owner: Owner,
    error: Option<StreamError>,
    read_shut: bool,
    reader: Option<Waker>,
    last_state: State,
    /// Since when the peer owes an answer, and what was unacknowledged then.
    waiting: Option<(Instant, usize)>,
    /// A segment arrived since the last look at `waiting`.
    heard: bool,
    /// Its handler is about to be called.
    noticed: bool,
    /// Until when its last segment may wait for the neighbour.
    held_until: Option<Instant>,
    pub(crate) sent: Option<SentTcp>,
}

impl Flow {
    /// A connection around the one socket of `set`.
    pub(crate) fn new(
        key: FlowKey,
        set: SocketSet<'static>,
        options: TcpOptions,
        owner: Owner,
    ) -> Self {
        // The set was made with one socket.
        let handle = set.iter().next().map(|(handle, _)| handle);
        let mut flow = Self {
            key,
            attached: true,
            set,
            handle: handle.unwrap_or_default(),
            options,
            owner,
            error: None,
            read_shut: false,
            reader: None,
            last_state: State::Closed,
            waiting: None,
            heard: false,
            noticed: false,
            held_until: None,
            sent: None,
        };
        flow.last_state = flow.socket().state();
        flow
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.set.get_mut(self.handle)
    }

    /// The socket's set while the connection is attached.
    pub(crate) fn live_set(&mut self) -> Option<&mut SocketSet<'static>> {
        self.attached.then_some(&mut self.set)
    }

    /// Our address, while it matters.
    pub(crate) fn local_addr(&self) -> Option<IpAddress> {
        self.attached.then_some(self.key.local.addr)
    }

    /// Whether the last acknowledgement of this connection is worth watching
    /// for: it is repeated in TIME-WAIT.
    pub(crate) fn ending(&mut self) -> bool {
        let state = self.socket().state();
        matches!(
            state,
            State::FinWait1 | State::FinWait2 | State::Closing | State::TimeWait
        )
    }

    /// Whether the connection is over, but for what was received.
    pub(crate) fn ended(&mut self) -> bool {
        let socket = self.socket();
        matches!(socket.state(), State::Closed | State::Listen)
            && socket.remote_endpoint().is_none()
    }

    /// The connection is over, but its last segment (a reset, or the
    /// acknowledgement that TIME-WAIT begins with) waits for the neighbour's
    /// hardware address. Until when it may; `None`: not any more.
    fn held(&mut self, now: Instant) -> Option<Instant> {
        // A reset that came, or was sent, leaves the socket without a peer.
        self.socket().remote_endpoint()?;
        let until = *self.held_until.get_or_insert(now + NEIGHBOUR_PATIENCE);
        (until > now).then_some(until)
    }

    /// A segment was fed to the socket.
    pub(crate) fn heard(&mut self) {
        self.heard = true;
        if self.read_shut || self.owner == Owner::Orphan {
            self.throw_away();
        }
    }

    /// Takes what nobody will read. Data for a closed stream resets it.
    fn throw_away(&mut self) {
        let orphan = self.owner == Owner::Orphan;
        let socket = self.socket();
        if orphan && socket.can_recv() {
            socket.abort();
            return;
        }
        while socket.can_recv() {
            // Never fails while there is something to receive.
            let _ = socket.recv(|data| (data.len(), ()));
        }
    }

    /// When to give the peer up, and why, if nothing more is heard.
    fn patience(&mut self, now: Instant, limits: &Limits) -> Option<Instant> {
        let state = self.socket().state();
        let unacknowledged = self.socket().send_queue();
        let orphan = self.owner == Owner::Orphan;
        let owes = match state {
            State::SynSent | State::SynReceived => true,
            State::FinWait1 | State::Closing | State::LastAck => true,
            State::Established | State::CloseWait => {
                unacknowledged != 0 || self.options.keep_alive.is_some()
            }
            State::FinWait2 => orphan,
            State::Closed | State::Listen | State::TimeWait => false,
        };
        // A closed stream must make progress; an open one need only be answered.
        let progress = match self.waiting {
            Some((_, before)) if orphan => before != unacknowledged,
            _ => self.heard,
        };
        self.heard = false;
        if !owes {
            self.waiting = None;
            return None;
        }
        let since = match self.waiting {
            Some((since, _)) if !progress => since,
            _ => now,
        };
        self.waiting = Some((since, unacknowledged));
        let patience = match state {
            State::SynSent | State::SynReceived => Some(self.options.connect_timeout),
            _ if orphan => Some(limits.orphan_timeout),
            _ => self.options.patience(),
        };
        patience.map(|patience| since + patience)
    }

    fn readiness(&mut self) -> Readiness {
        let error = self.error;
        let read_shut = self.read_shut;
        let connecting = self.connecting();
        let socket = self.socket();
        let readable = socket.can_recv();
        let ended = error.is_some() || read_shut || (!connecting && !socket.may_recv());
        let writable = !connecting && (socket.can_send() || !socket.may_send());
        Readiness {
            readable: readable || ended,
            writable: writable || error.is_some(),
            finished: !readable && ended,
            error,
        }
    }

    fn connecting(&mut self) -> bool {
        let state = self.socket().state();
        self.error.is_none() && matches!(state, State::SynSent | State::SynReceived)
    }
}

impl Sockets {
    /// Begins a connection to `remote` and gives its handle at once;
    /// [`tcp_connected`](Self::tcp_connected) says when it stands.
    ///
    /// # Errors
    /// [`StreamError::Unreachable`] without an address or route for `remote`,
    /// [`StreamError::Bind`] when no local port is free or the protocol is off.
    pub fn tcp_connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        options: TcpOptions,
    ) -> Result<TcpStreamId, StreamError> {
        self.tcp_connect_from(now, LocalAddr::from(0), remote, options)
    }

    /// As [`tcp_connect`](Self::tcp_connect), from a chosen address or port.
    ///
    /// # Errors
    /// As there; [`BindError::AddrNotAvailable`] when the address is not ours,
    /// [`BindError::AddrInUse`] when this pair of ends is in use.
    pub fn tcp_connect_from(
        &mut self,
        now: Instant,
        local: LocalAddr,
        remote: SocketAddr,
        options: TcpOptions,
    ) -> Result<TcpStreamId, StreamError> {
        let protocols = self.config.protocols;
        let version_on = match remote {
            SocketAddr::V4(_) => protocols.ipv4,
            SocketAddr::V6(_) => protocols.ipv6,
        };
        if !version_on || !protocols.tcp {
            return Err(BindError::ProtocolOff.into());
        }
        let remote = IpEndpoint::from(remote);
        if remote.port == 0 || !remote.addr.is_unicast() || self.is_broadcast(&remote.addr) {
            return Err(StreamError::Unreachable);
        }
        if self.table.live() >= self.config.limits.connections {
            return Err(BindError::NoFreePort.into());
        }
        let source = self
            .source_address(&remote.addr)
            .ok_or(StreamError::Unreachable)?;
        let address = match local.ip {
            LocalIp::One(address) if !self.is_ours(&address) => {
                return Err(BindError::AddrNotAvailable.into());
            }
            LocalIp::One(address) => address,
            LocalIp::Any | LocalIp::AnyV4 | LocalIp::AnyV6 => source,
        };
        if address.version() != remote.addr.version() {
            return Err(BindError::AddrNotAvailable.into());
        }
        let key_from = |port| FlowKey {
            local: IpEndpoint::new(address, port),
            remote,
        };
        let free = |this: &Self, port| {
            this.table.find(&key_from(port)).is_none()
                && this.listeners.find(&address, port).is_none()
        };
        let port = if local.port != 0 {
            if self.table.find(&key_from(local.port)).is_some() {
                return Err(BindError::AddrInUse.into());
            }
            local.port
        } else {
            self.ephemeral_port(free).ok_or(BindError::NoFreePort)?
        };
        let key = key_from(port);
        let isn = birth::initial_sequence(&self.hasher, &key, now);
        let set = birth::connecting(options.socket(), &key, isn, self.io.mtu, now)
            .ok_or(StreamError::Unreachable)?;
        let flow = Flow::new(key, set, options, Owner::Application);
        let handle = self.table.insert(Entry::Flow(flow.into()));
        self.table.set_key(key, handle.index);
        self.table.mark(handle.index);
        Ok(TcpStreamId(handle))
    }

    /// Our address for packets to `remote`, if it can be reached.
    pub(crate) fn source_address(&mut self, remote: &IpAddress) -> Option<IpAddress> {
        // There is no loopback.
        if remote.is_unspecified() || IpAddr::from(*remote).is_loopback() || self.is_ours(remote) {
            return None;
        }
        let cidrs = self.interface.ip_addrs();
        if !cidrs
            .iter()
            .any(|cidr| cidr.address().version() == remote.version())
        {
            return None;
        }
        let on_link = cidrs.iter().any(|cidr| cidr.contains_addr(remote));
        let routed = match remote.version() {
            IpVersion::Ipv4 => self.interface.routes().get_default_ipv4_route().is_some(),
            IpVersion::Ipv6 => self.interface.routes().get_default_ipv6_route().is_some(),
        };
        if !on_link && !routed {
            return None;
        }
        self.interface.get_source_address(remote)
    }

    fn flow(&mut self, id: TcpStreamId) -> Result<&mut Flow, StreamError> {
        match self.table.named(id.0) {
            Some(Entry::Flow(flow)) if flow.owner != Owner::Orphan => Ok(flow),
            _ => Err(StreamError::UnknownHandle),
        }
    }

    /// Whether a connection that [`tcp_connect`](Self::tcp_connect) began stands.
    ///
    /// # Errors
    /// [`StreamError::WouldBlock`] while it is under way; else why it failed.
    pub fn tcp_connected(&mut self, id: TcpStreamId) -> Result<(), StreamError> {
        let flow = self.flow(id)?;
        if flow.connecting() {
            return Err(StreamError::WouldBlock);
        }
        flow.error.map_or(Ok(()), Err)
    }

    /// Queues bytes to be sent and says how many were taken: as many as fit,
    /// and for a non-empty slice at least one. They leave with the next poll.
    ///
    /// # Errors
    /// [`StreamError::WouldBlock`] when the buffer is full or the handshake is
    /// under way; [`StreamError::BrokenPipe`] after the write half was closed;
    /// else why the connection ended.
    pub fn tcp_send(&mut self, id: TcpStreamId, bytes: &[u8]) -> Result<usize, StreamError> {
        let flow = self.flow(id)?;
        if let Some(error) = flow.error {
            return Err(error);
        }
        if flow.connecting() {
            return Err(StreamError::WouldBlock);
        }
        match flow.socket().send_slice(bytes) {
            Ok(0) if !bytes.is_empty() => Err(StreamError::WouldBlock),
            Ok(taken) => {
                self.table.mark(id.0.index);
                Ok(taken)
            }
            Err(tcp::SendError::InvalidState) => Err(StreamError::BrokenPipe),
        }
    }

    /// Takes received bytes and says how many; 0 for a non-empty slice means
    /// that the other end has said all it will say.
    ///
    /// # Errors
    /// [`StreamError::WouldBlock`] when nothing has arrived; else why the
    /// connection ended, once all that arrived was read.
    pub fn tcp_recv(&mut self, id: TcpStreamId, bytes: &mut [u8]) -> Result<usize, StreamError> {
        if bytes.is_empty() {
            return self.flow(id).map(|_| 0);
        }
        let Some(socket) = self.readable(id)? else {
            return Ok(0);
        };
        let taken = socket.recv_slice(bytes);
        self.table.mark(id.0.index);
        // It cannot fail while there is something to receive.
        taken.map_err(|_| StreamError::WouldBlock)
    }

    /// Shows received bytes where they are: `f` gets a part of them, not empty,
    /// and says how many it took. `None`: the other end has said all it will say.
    ///
    /// # Errors
    /// As for [`tcp_recv`](Self::tcp_recv).
    pub fn tcp_recv_with<R>(
        &mut self,
        id: TcpStreamId,
        f: impl FnOnce(&[u8]) -> (usize, R),
    ) -> Result<Option<R>, StreamError> {
        let Some(socket) = self.readable(id)? else {
            return Ok(None);
        };
        let taken = socket.recv(|data| {
            let (taken, result) = f(data);
            (taken.min(data.len()), result)
        });
        self.table.mark(id.0.index);
        // As above.
        taken.map(Some).map_err(|_| StreamError::WouldBlock)
    }

    /// The stream's socket if it has received bytes; `None` at their end. Whoever
    /// takes some marks the slot: the window may have to be announced anew.
    fn readable(
        &mut self,
        id: TcpStreamId,
    ) -> Result<Option<&mut tcp::Socket<'static>>, StreamError> {
        let flow = self.flow(id)?;
        if flow.read_shut {
            return Ok(None);
        }
        let error = flow.error;
        let connecting = flow.connecting();
        let socket = flow.socket();
        if socket.can_recv() {
            return Ok(Some(socket));
        }
        match error {
            Some(error) => Err(error),
            None if connecting || socket.may_recv() => Err(StreamError::WouldBlock),
            None => Ok(None),
        }
    }

    /// What a read or write would do.
    ///
    /// # Errors
    /// [`StreamError::UnknownHandle`].
    pub fn tcp_readiness(&mut self, id: TcpStreamId) -> Result<Readiness, StreamError> {
        self.flow(id).map(Flow::readiness)
    }

    /// Bytes written and not yet acknowledged by the other end.
    ///
    /// # Errors
    /// [`StreamError::UnknownHandle`].
    pub fn tcp_unacknowledged(&mut self, id: TcpStreamId) -> Result<usize, StreamError> {
        self.flow(id).map(|flow| flow.socket().send_queue())
    }

    /// The state of the connection, as RFC 9293 names it.
    ///
    /// # Errors
    /// [`StreamError::UnknownHandle`].
    pub fn tcp_state(&mut self, id: TcpStreamId) -> Result<State, StreamError> {
        self.flow(id).map(|flow| flow.socket().state())
    }

    /// Our end.
    ///
    /// # Errors
    /// [`StreamError::UnknownHandle`].
    pub fn tcp_local_addr(&mut self, id: TcpStreamId) -> Result<SocketAddr, StreamError> {
        self.flow(id).map(|flow| flow.key.local.into())
    }

    /// The other end.
    ///
    /// # Errors
    /// [`StreamError::UnknownHandle`].
    pub fn tcp_peer_addr(&mut self, id: TcpStreamId) -> Result<SocketAddr, StreamError> {
        self.flow(id).map(|flow| flow.key.remote.into())
    }

    /// The stream's options.
    ///
    /// # Errors
    /// [`StreamError::UnknownHandle`].
    pub fn tcp_options(&mut self, id: TcpStreamId) -> Result<TcpOptions, StreamError> {
        self.flow(id).map(|flow| flow.options)
    }

    /// Changes the stream's options; the buffer sizes stay as they are.
    ///
    /// # Errors
    /// [`StreamError::UnknownHandle`].
    pub fn tcp_set_options(
        &mut self,
        id: TcpStreamId,
        options: TcpOptions,
    ) -> Result<(), StreamError> {
        let flow = self.flow(id)?;
        flow.options = TcpOptions {
            rx_buffer_bytes: flow.options.rx_buffer_bytes,
            tx_buffer_bytes: flow.options.tx_buffer_bytes,
            ..options
        };
        options.apply(flow.socket());
        flow.waiting = None;
        self.table.mark(id.0.index);
        Ok(())
    }

    /// Shuts one or both halves down, as `std::net::TcpStream::shutdown` does.
    ///
    /// # Errors
    /// [`StreamError::WouldBlock`] for the write half while the handshake is
    /// under way.
    pub fn tcp_shutdown(&mut self, id: TcpStreamId, how: Shutdown) -> Result<(), StreamError> {
        let flow = self.flow(id)?;
        if how != Shutdown::Read {
            if flow.connecting() {
                return Err(StreamError::WouldBlock);
            }
            flow.socket().close();
            flow.waiting = None;
        }
        if how != Shutdown::Write {
            flow.read_shut = true;
            flow.throw_away();
            if let Some(reader) = flow.reader.take() {
                reader.wake();
            }
        }
        self.table.mark(id.0.index);
        Ok(())
    }

    /// Gives the stream up: its handle is gone, its last words are said in the
    /// background. Unread data, or data that still arrives, resets it.
    pub fn tcp_close(&mut self, id: TcpStreamId) {
        self.registry.streams.remove(id);
        let Ok(flow) = self.flow(id) else { return };
        flow.owner = Owner::Orphan;
        flow.waiting = None;
        if !flow.attached {
            self.table.remove(id.0.index);
            return;
        }
        if flow.socket().can_recv() && !flow.read_shut {
            flow.socket().abort();
        } else {
            flow.socket().close();
        }
        self.table.mark(id.0.index);
    }

    /// Resets the connection and gives the stream up.
    pub fn tcp_abort(&mut self, id: TcpStreamId) {
        if let Ok(flow) = self.flow(id) {
            flow.socket().abort();
        }
        self.tcp_close(id);
    }

    /// Wakes `waker` when a read may have something to give. One waker per
    /// stream; the last one counts.
    ///
    /// # Errors
    /// [`StreamError::UnknownHandle`].
    pub fn tcp_wake_reader(&mut self, id: TcpStreamId, waker: &Waker) -> Result<(), StreamError> {
        let flow = self.flow(id)?;
        flow.socket().register_recv_waker(waker);
        flow.reader = Some(waker.clone());
        Ok(())
    }

    /// Wakes `waker` when a write may take something, or a connection stands.
    /// One waker per stream; the last one counts.
    ///
    /// # Errors
    /// [`StreamError::UnknownHandle`].
    pub fn tcp_wake_writer(&mut self, id: TcpStreamId, waker: &Waker) -> Result<(), StreamError> {
        self.flow(id)?.socket().register_send_waker(waker);
        Ok(())
    }

    /// Ends whatever is in a slot, with an error for the application.
    pub(crate) fn fail(&mut self, index: u32, error: StreamError, now: Instant) {
        match self.table.entry(index) {
            Entry::Flow(flow) => {
                flow.error.get_or_insert(error);
                // Wakes whoever waits; the segment it would send is never sent.
                flow.socket().abort();
                self.detach(index);
            }
            Entry::HalfOpen(_) => self.forget_half_open(index, now),
            Entry::TimeWait(time_wait) => {
                let key = time_wait.key;
                self.table.forget_key(&key, index);
                self.table.remove(index);
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
            Owner::Orphan => {
                self.table.remove(index);
            }
            // It is accepted with its data or error, as on other hosts.
            Owner::Queue | Owner::Application => {}
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
        let state = flow.socket().state();
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
                let wanted = flow.owner == Owner::Orphan || before == State::LastAck;
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
                    flow.socket().abort();
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
}
