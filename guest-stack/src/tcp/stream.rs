//! TCP streams, as the application has them: connecting, reading, writing,
//! closing.
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

use core::net::SocketAddr;
use core::task::Waker;

use smoltcp::socket::tcp::{self, State};
use smoltcp::time::Instant;
use smoltcp::wire::IpEndpoint;

use super::connection::{Flow, Owner};
use super::options::TcpOptions;
use super::{TcpStreamId, birth};
use crate::error::{BindError, StreamError};
use crate::flow::{Entry, FlowKey};
use crate::ports::{LocalAddr, LocalIp};
use crate::sockets::Sockets;

pub use super::connection::Readiness;

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
        if self.connections() >= self.config.limits.connections {
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
        let cell = birth::connecting(self.pool.socket(&options), &key, isn, self.io.mtu, now)
            .ok_or(StreamError::Unreachable)?;
        let flow = Flow::new(key, cell, options);
        let handle = self.table.insert(Entry::Flow(flow.into()));
        self.table.set_key(key, handle.index);
        self.table.mark(handle.index);
        Ok(TcpStreamId(handle))
    }

    pub(super) fn flow(&mut self, id: TcpStreamId) -> Result<&mut Flow, StreamError> {
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
        if flow.closing {
            return Err(StreamError::BrokenPipe);
        }
        match flow.cell.with(|socket| socket.send_slice(bytes)) {
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
        let Some(flow) = self.readable(id)? else {
            return Ok(0);
        };
        let taken = flow.cell.with(|socket| socket.recv_slice(bytes));
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
        let Some(flow) = self.readable(id)? else {
            return Ok(None);
        };
        let show = |data: &mut [u8]| {
            let (taken, result) = f(data);
            (taken.min(data.len()), result)
        };
        let taken = flow.cell.with(|socket| socket.recv(show));
        self.table.mark(id.0.index);
        // As above.
        taken.map(Some).map_err(|_| StreamError::WouldBlock)
    }

    /// The connection if it has received bytes; `None` at their end. Whoever takes
    /// some marks the slot: the window may have to be announced anew.
    fn readable(&mut self, id: TcpStreamId) -> Result<Option<&mut Flow>, StreamError> {
        let flow = self.flow(id)?;
        if flow.read_shut {
            return Ok(None);
        }
        let (error, connecting) = (flow.error, flow.connecting());
        let (waiting, open) = flow
            .cell
            .with(|socket| (socket.can_recv(), socket.may_recv()));
        match error {
            _ if waiting => Ok(Some(flow)),
            Some(error) => Err(error),
            None if connecting || open => Err(StreamError::WouldBlock),
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
        self.flow(id)
            .map(|flow| flow.cell.with(|socket| socket.send_queue()))
    }

    /// The state of the connection, as RFC 9293 names it.
    ///
    /// # Errors
    /// [`StreamError::UnknownHandle`].
    pub fn tcp_state(&mut self, id: TcpStreamId) -> Result<State, StreamError> {
        self.flow(id).map(Flow::state)
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
        flow.cell.with(|socket| options.apply(socket));
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
            flow.close_write();
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
            self.free_flow(id.0.index);
            return;
        }
        if !flow.read_shut && flow.cell.with(|socket| socket.can_recv()) {
            flow.abort();
        } else {
            flow.close_write();
        }
        self.table.mark(id.0.index);
    }

    /// Resets the connection and gives the stream up.
    pub fn tcp_abort(&mut self, id: TcpStreamId) {
        if let Ok(flow) = self.flow(id) {
            flow.abort();
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
        flow.cell.with(|socket| socket.register_recv_waker(waker));
        flow.reader = Some(waker.clone());
        Ok(())
    }

    /// Wakes `waker` when a write may take something, or a connection stands.
    /// One waker per stream; the last one counts.
    ///
    /// # Errors
    /// [`StreamError::UnknownHandle`].
    pub fn tcp_wake_writer(&mut self, id: TcpStreamId, waker: &Waker) -> Result<(), StreamError> {
        let flow = self.flow(id)?;
        flow.cell.with(|socket| socket.register_send_waker(waker));
        Ok(())
    }
}
