//! Listening: ports, backlogs, and the way from a SYN to a stream.
//!
//! ```text
//!   SYN ──► HalfOpen (a record) ──ACK──► Flow ──► accept callback ─Pass─► accept queue
//!            │ bounded, expires            made here                       │ bounded
//!            └ full: the SYN is dropped without a word ◄───────────────────┘ full
//! ```
//! A full backlog never resets anybody: the SYN, or the ACK that would complete
//! a handshake, is dropped, and the other end tries again.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::task::Waker;

use shm_link::link::FrameTx;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;
use smoltcp::wire::{TcpControl, TcpPacket, TcpRepr};

use super::half_open::{HalfOpen, Target, Verdict};
use super::options::TcpOptions;
use super::segment::Segment;
use super::stream::{Flow, Owner};
use super::{TcpListenerId, TcpStreamId, birth, time_wait};
use crate::classify::{self, Packet, TCP_ACK, TCP_RST, TCP_SYN, TcpHeader};
use crate::context::Context;
use crate::device::Wire;
use crate::error::{BindError, StreamError};
use crate::flow::{Entry, FlowKey, Handle};
use crate::ingress::Ending;
use crate::ports::{LocalAddr, LocalIp};
use crate::registry;
use crate::sockets::Sockets;

/// A listening port.
pub(crate) struct Listener {
    local: LocalAddr,
    options: TcpOptions,
    backlog: usize,
    /// Connections that wait to be accepted.
    queue: VecDeque<Handle>,
    /// Handshakes under way.
    half_open: usize,
    acceptors: Vec<Waker>,
}

impl Sockets {
    /// Listens on a port. Up to `backlog` connections (at least one) wait to be
    /// accepted, and as many handshakes may be under way; beyond that SYNs are
    /// dropped silently, so that the other end tries again. Streams get
    /// `options`.
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

    /// What receives a connection to this address and port, if anything does.
    fn target(&mut self, key: &FlowKey) -> Option<Target> {
        let index = self.listeners.find(&key.local.addr, key.local.port);
        let listener = index.and_then(|index| {
            let handle = self.table.handle(index);
            match self.table.entry(index) {
                Entry::Listener(listener) => Some((handle, listener.options)),
                _ => None,
            }
        });
        let callback = self.registry.accept_options(key.local.port);
        let options = callback.or(listener.map(|(_, options)| options))?;
        Some(Target {
            listener: listener.map(|(handle, _)| handle),
            options,
        })
    }

    /// Whether a listener takes one more connection or handshake. An accept
    /// callback alone always does.
    fn has_room(&mut self, key: &FlowKey, listener: Option<Handle>, handshake: bool) -> bool {
        if self.registry.accept_options(key.local.port).is_some() {
            return true;
        }
        match listener.and_then(|handle| self.table.named(handle)) {
            Some(Entry::Listener(listener)) => {
                listener.queue.len() < listener.backlog
                    && (!handshake || listener.half_open < listener.backlog)
            }
            _ => false,
        }
    }

    /// A segment of no connection: perhaps the beginning of one. `None`: it is
    /// not for us.
    pub(crate) fn receive_syn(
        &mut self,
        now: Instant,
        key: FlowKey,
        packet: &Packet,
        tcp: &TcpHeader,
        frame: &[u8],
        tx: &mut dyn FrameTx,
    ) -> Option<Ending> {
        if tcp.flags & (TCP_SYN | TCP_ACK | TCP_RST) != TCP_SYN {
            return None;
        }
        let target = self.target(&key)?;
        let listener = target.listener;
        let limits = self.config.limits;
        let Some(syn) = self.parse(packet, frame) else {
            return Some(Ending::Malformed);
        };
        if syn.control != TcpControl::Syn || key.remote.port == 0 {
            return Some(Ending::Malformed);
        }
        if self.half_open >= limits.half_open
            || self.table.live() >= limits.connections
            || !self.has_room(&key, listener, true)
        {
            return Some(Ending::BacklogFull);
        }
        let isn = birth::initial_sequence(&self.hasher, &key, now);
        let mac = classify::source(frame)?;
        let timeout = limits.half_open_timeout;
        let half_open = HalfOpen::new(key, mac, target, isn, &syn, now, timeout);
        let answer = half_open.syn_ack(self.io.mtu);
        let deadline = half_open.deadline();
        let handle = self.table.insert(Entry::HalfOpen(half_open));
        self.table.set_key(key, handle.index);
        self.table.set_deadline(handle.index, Some(deadline));
        self.half_open += 1;
        if let Some(Entry::Listener(listener)) = listener.and_then(|l| self.table.named(l)) {
            listener.half_open += 1;
        }
        self.send_segment(&answer, mac, tx);
        Some(Ending::Tcp)
    }

    /// Parses a TCP segment, its checksum too unless the link vouched for it.
    fn parse<'f>(&self, packet: &Packet, frame: &'f [u8]) -> Option<TcpRepr<'f>> {
        let bytes = frame.get(packet.payload.clone())?;
        let segment = TcpPacket::new_checked(bytes).ok()?;
        let checksums = if self.io.rx_checksum {
            ChecksumCapabilities::ignored()
        } else {
            ChecksumCapabilities::default()
        };
        TcpRepr::parse(&segment, &packet.src, &packet.dst, &checksums).ok()
    }

    fn send_segment(&mut self, segment: &Segment, mac: [u8; 6], tx: &mut dyn FrameTx) {
        let own = self.net.mac;
        let mut wire = Wire {
            tx,
            state: &mut self.io,
        };
        // Without room it is lost, as segments may be: it is sent again.
        let _ = wire.send(segment.frame_len(), |frame| {
            segment.write_frame(frame, own, mac);
        });
    }

    /// A segment of a handshake under way.
    pub(crate) fn receive_half_open(
        &mut self,
        now: Instant,
        index: u32,
        packet: &Packet,
        tcp: &TcpHeader,
        frame: &[u8],
        tx: &mut dyn FrameTx,
    ) -> Ending {
        if self.parse(packet, frame).is_none() {
            return Ending::Malformed;
        }
        let mtu = self.io.mtu;
        let Entry::HalfOpen(half_open) = self.table.entry(index) else {
            return Ending::Malformed;
        };
        let key = half_open.key;
        match half_open.judge(tcp) {
            Verdict::Ignore => Ending::Tcp,
            Verdict::Repeat => {
                let (answer, mac) = (half_open.syn_ack(mtu), half_open.mac);
                self.send_segment(&answer, mac, tx);
                Ending::Tcp
            }
            Verdict::Forget => {
                self.forget_half_open(index, now);
                Ending::Tcp
            }
            Verdict::Replace => {
                self.forget_half_open(index, now);
                self.receive_syn(now, key, packet, tcp, frame, tx)
                    .unwrap_or(Ending::Malformed)
            }
            Verdict::Reset => {
                if !self.limiter.permit(now) {
                    return Ending::ReplyLimited;
                }
                self.feed_nobody(now, frame, tx);
                Ending::Tcp
            }
            Verdict::Complete => self.establish(now, index, frame, tx),
        }
    }

    /// The last ACK of a handshake came: makes the stream.
    fn establish(
        &mut self,
        now: Instant,
        index: u32,
        frame: &[u8],
        tx: &mut dyn FrameTx,
    ) -> Ending {
        let mtu = self.io.mtu;
        let Entry::HalfOpen(half_open) = self.table.entry(index) else {
            return Ending::Malformed;
        };
        let (key, mac, options) = (half_open.key, half_open.mac, half_open.options);
        let (syn, isn) = (half_open.syn(), half_open.isn);
        // The listener may have been closed, or another opened, since the SYN.
        let Some(Target { listener, .. }) = self.target(&key) else {
            self.forget_half_open(index, now);
            self.feed_nobody(now, frame, tx);
            return Ending::Tcp;
        };
        if !self.has_room(&key, listener, false) {
            return Ending::BacklogFull;
        }
        let set = birth::accepted(options.socket(), &syn, isn, mtu, now);
        self.uncount_half_open(index);
        let Some(set) = set else {
            self.table.forget_key(&key, index);
            self.table.remove(index);
            self.feed_nobody(now, frame, tx);
            return Ending::Malformed;
        };
        let flow = Flow::new(key, set, options, Owner::Application);
        self.table.replace(index, Entry::Flow(flow.into()));
        self.table.set_deadline(index, None);
        self.feed_flow(now, index, frame, tx);
        let id = TcpStreamId(self.table.handle(index));
        let established = matches!(
            self.tcp_state(id),
            Ok(State::Established | State::CloseWait)
        );
        if !established {
            self.tcp_abort(id);
            return Ending::Tcp;
        }
        self.counters.tcp_established += 1;
        if self.call_acceptor(now, id, key, mac, tx) == registry::Verdict::Pass {
            self.enqueue(id, listener);
        }
        Ending::Tcp
    }

    fn call_acceptor(
        &mut self,
        now: Instant,
        id: TcpStreamId,
        key: FlowKey,
        source: [u8; 6],
        tx: &mut dyn FrameTx,
    ) -> registry::Verdict {
        let Some(mut running) = self.registry.tcp.start(key.local.port) else {
            return registry::Verdict::Pass;
        };
        let mut context = Context {
            sockets: self,
            tx,
            now,
            source: Some(source),
        };
        let (_, handler) = &mut running.handler;
        let verdict = handler(&mut context, id, key.remote.into());
        self.registry.tcp.finish(running);
        verdict
    }

    /// Gives a new stream to a listener, or resets it if there is none or it is
    /// full (an accept callback passed it on).
    fn enqueue(&mut self, id: TcpStreamId, listener: Option<Handle>) {
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

    fn uncount_half_open(&mut self, index: u32) {
        let Entry::HalfOpen(half_open) = self.table.entry(index) else {
            return;
        };
        let listener = half_open.listener;
        self.half_open -= 1;
        if let Some(Entry::Listener(listener)) = listener.and_then(|l| self.table.named(l)) {
            listener.half_open -= 1;
        }
    }

    /// Forgets a handshake without a word.
    pub(crate) fn forget_half_open(&mut self, index: u32, _now: Instant) {
        self.uncount_half_open(index);
        if let Entry::HalfOpen(half_open) = self.table.entry(index) {
            let key = half_open.key;
            self.table.forget_key(&key, index);
            self.table.remove(index);
        }
    }

    /// The timer of a handshake came.
    pub(crate) fn half_open_expired(&mut self, index: u32, now: Instant, tx: &mut dyn FrameTx) {
        let mtu = self.io.mtu;
        let Entry::HalfOpen(half_open) = self.table.entry(index) else {
            return;
        };
        if half_open.repeat(now) {
            let (answer, mac) = (half_open.syn_ack(mtu), half_open.mac);
            let deadline = half_open.deadline();
            self.table.set_deadline(index, Some(deadline));
            self.send_segment(&answer, mac, tx);
        } else {
            self.counters.tcp_half_open_expired += 1;
            self.forget_half_open(index, now);
        }
    }

    /// A segment of a connection in TIME-WAIT.
    pub(crate) fn receive_time_wait(
        &mut self,
        now: Instant,
        index: u32,
        packet: &Packet,
        tcp: &TcpHeader,
        frame: &[u8],
        tx: &mut dyn FrameTx,
    ) -> Ending {
        if self.parse(packet, frame).is_none() {
            return Ending::Malformed;
        }
        let duration = self.config.limits.time_wait_duration;
        let Entry::TimeWait(time_wait) = self.table.entry(index) else {
            return Ending::Malformed;
        };
        match time_wait.judge(tcp) {
            time_wait::Verdict::Ignore => Ending::Tcp,
            time_wait::Verdict::Answer => {
                let answer = time_wait.ack();
                time_wait.expires_at = now + duration;
                let expires_at = time_wait.expires_at;
                self.table.set_deadline(index, Some(expires_at));
                if !self.limiter.permit(now) {
                    return Ending::ReplyLimited;
                }
                if let Some(mac) = classify::source(frame) {
                    self.send_segment(&answer, mac, tx);
                }
                Ending::Tcp
            }
            time_wait::Verdict::Renew => {
                let key = time_wait.key;
                let handle = self.table.handle(index);
                if self.target(&key).is_none() {
                    return Ending::Tcp;
                }
                self.forget_time_wait(handle);
                self.receive_syn(now, key, packet, tcp, frame, tx)
                    .unwrap_or(Ending::Malformed)
            }
        }
    }
}
