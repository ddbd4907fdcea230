//! Listening, as the application has it: ports, backlogs, accepting.
//!
//! ```text
//!   SYN ──► HalfOpen (a record) ──ACK──► Flow ──► accept callback ─Pass─► accept queue
//!            │ bounded, expires            made here ▲                     │ bounded
//!            └ full: a cookie, no record ──ACK────────┘                     │
//!              the SYN is dropped without a word ◄──────────────────────────┘ full
//! ```
//! The way from a SYN to the accept queue is in `handshake`. A full backlog never
//! resets anybody: the SYN, or the ACK that would complete a handshake, is
//! dropped, and the other end tries again.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::task::Waker;

use super::connection::Owner;
use super::options::TcpOptions;
use super::{TcpListenerId, TcpStreamId};
use crate::error::{BindError, StreamError};
use crate::flow::{Entry, Handle};
use crate::ports::{LocalAddr, LocalIp};
use crate::sockets::Sockets;

/// A listening port.
pub(crate) struct Listener {
    local: LocalAddr,
    pub(super) options: TcpOptions,
    pub(super) backlog: usize,
    /// Connections that wait to be accepted.
    pub(super) queue: VecDeque<Handle>,
    /// Handshakes whose peer has answered and found no room in the queue; some are gone.
    pub(super) waiting: VecDeque<Handle>,
    /// Handshakes under way.
    pub(super) half_open: usize,
    acceptors: Vec<Waker>,
}

impl Sockets {
    /// Listens on a port. Up to `backlog` connections (at least one) wait to be
    /// accepted, and as many handshakes may be under way; beyond that handshakes are
    /// not kept but answered with SYN cookies ([`Limits`](crate::config::Limits)).
    /// While too many wait to be accepted SYNs are dropped silently, so that the
    /// other end tries again. Streams get `options`.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn tcp_listen(
        &mut self,
        local: impl Into<LocalAddr>,
        backlog: usize,
        options: TcpOptions,
    ) -> Result<TcpListenerId, BindError> {
        let local = local.into();
        if !self.config.protocols.tcp {
            return Err(BindError::ProtocolOff);
        }
        self.check_local(local)?;
        let no_port = if local.port == 0 {
            BindError::NoFreePort
        } else {
            BindError::AddrInUse
        };
        let local = self
            .choose_port(local, |this| &this.listeners)
            .ok_or(no_port)?;
        let listener = Listener {
            local,
            options,
            backlog: backlog.max(1),
            queue: VecDeque::new(),
            waiting: VecDeque::new(),
            half_open: 0,
            acceptors: Vec::new(),
        };
        let handle = self.table.insert(Entry::Listener(listener.into()));
        self.listeners.take(local, handle.index);
        Ok(TcpListenerId(handle))
    }

    /// Whether something may be bound to this address.
    pub(crate) fn check_local(&self, local: LocalAddr) -> Result<(), BindError> {
        let protocols = self.config.protocols;
        match local.ip {
            LocalIp::AnyV4 if !protocols.ipv4 => Err(BindError::ProtocolOff),
            LocalIp::AnyV6 if !protocols.ipv6 => Err(BindError::ProtocolOff),
            LocalIp::One(address) if !self.is_ours(&address) => Err(BindError::AddrNotAvailable),
            LocalIp::Any | LocalIp::AnyV4 | LocalIp::AnyV6 | LocalIp::One(_) => Ok(()),
        }
    }

    fn listener(&mut self, id: TcpListenerId) -> Result<&mut Listener, StreamError> {
        match self.table.named(id.0) {
            Some(Entry::Listener(listener)) => Ok(listener),
            _ => Err(StreamError::UnknownHandle),
        }
    }

    /// Takes the connection that waits for longest, and who it is from.
    ///
    /// # Errors
    /// [`StreamError::WouldBlock`] when none waits.
    pub fn tcp_accept(
        &mut self,
        id: TcpListenerId,
    ) -> Result<(TcpStreamId, SocketAddr), StreamError> {
        loop {
            let handle = self
                .listener(id)?
                .queue
                .pop_front()
                .ok_or(StreamError::WouldBlock)?;
            // A connection may have gone with its address since.
            if let Some(Entry::Flow(flow)) = self.table.named(handle) {
                flow.owner = Owner::Application;
                let stream = TcpStreamId(handle);
                self.next_in_row(id.0);
                return Ok((stream, self.tcp_peer_addr(stream)?));
            }
        }
    }

    /// The address and port that are listened on.
    ///
    /// # Errors
    /// [`StreamError::UnknownHandle`].
    pub fn tcp_listener_addr(&mut self, id: TcpListenerId) -> Result<SocketAddr, StreamError> {
        self.listener(id)
            .map(|listener| SocketAddr::new(listener.local.ip.address(), listener.local.port))
    }

    /// Stops listening. Connections that were not accepted are reset.
    pub fn tcp_close_listener(&mut self, id: TcpListenerId) {
        let Ok(listener) = self.listener(id) else {
            return;
        };
        let queue = core::mem::take(&mut listener.queue);
        let acceptors = core::mem::take(&mut listener.acceptors);
        let port = listener.local.port;
        self.listeners.release(port, id.0.index);
        self.table.remove(id.0.index);
        for handle in queue {
            if let Some(Entry::Flow(flow)) = self.table.named(handle) {
                flow.owner = Owner::Application;
                self.tcp_abort(TcpStreamId(handle));
            }
        }
        acceptors.into_iter().for_each(Waker::wake);
    }

    /// Wakes `waker` when a connection waits to be accepted. Any number of
    /// wakers per listener.
    ///
    /// # Errors
    /// [`StreamError::UnknownHandle`].
    pub fn tcp_wake_acceptor(
        &mut self,
        id: TcpListenerId,
        waker: &Waker,
    ) -> Result<(), StreamError> {
        let acceptors = &mut self.listener(id)?.acceptors;
        if !acceptors.iter().any(|known| known.will_wake(waker)) {
            acceptors.push(waker.clone());
        }
        Ok(())
    }

    /// Gives a new stream to a listener, or resets it if there is none or it is
    /// full (an accept callback passed it on).
    pub(super) fn enqueue(&mut self, id: TcpStreamId, listener: Option<Handle>) {
        let Some(handle) = listener else {
            self.tcp_abort(id);
            return;
        };
        match self.table.named(handle) {
            Some(Entry::Listener(listener)) if listener.queue.len() < listener.backlog => {
                listener.queue.push_back(id.0);
                let acceptors = core::mem::take(&mut listener.acceptors);
                acceptors.into_iter().for_each(Waker::wake);
            }
            _ => return self.tcp_abort(id),
        }
        if let Some(Entry::Flow(flow)) = self.table.named(id.0) {
            flow.owner = Owner::Queue;
        }
    }
}
