//! Handlers by protocol, each registered and removed on its own, at any time,
//! from within any handler too.
//!
//! A frame is shown in this order until one says [`Verdict::Handled`]:
//!
//! 1. the handler of its EtherType (any EtherType, ARP and IP too; malformed
//!    packets as well, since nothing was parsed yet),
//! 2. the handler of its IP version and protocol (a reassembled packet is shown
//!    whole, as one frame; fragments are not shown),
//! 3. for UDP, the callback of the destination port; for TCP, the accept
//!    callback of the listening port, once the handshake is complete,
//! 4. sockets: the stack's own, then the application's `SocketSet`, then
//!    smoltcp's default (ARP, ND, ICMP echo, resets, unreachables).
//!
//! A handler that is removed while it runs finishes its call and never runs
//! again; one that is registered while a frame is shown sees the frame only if
//! its turn is still to come.

use alloc::boxed::Box;
use core::net::SocketAddr;

use hashbrown::HashMap;
use smoltcp::wire::IpVersion;

use crate::classify::Packet;
use crate::context::Context;
use crate::error::AlreadyRegistered;
use crate::flow::Seeded;
use crate::tcp::TcpStreamId;
use crate::tcp::options::TcpOptions;
use crate::tcp::stream::Readiness;

/// What a handler says of what it was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done with; nobody else sees it.
    Handled,
    /// The next in order shall see it.
    Pass,
}

/// The ends of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub src: SocketAddr,
    /// Where it went: an address of ours, or a broadcast address.
    pub dst: SocketAddr,
}

/// Sees whole Ethernet frames of one EtherType.
pub type EtherTypeHandler = Box<dyn FnMut(&mut Context<'_>, &[u8]) -> Verdict + Send>;

/// Sees the IP packets of one protocol: what is in the headers, and the frame;
/// `frame[packet.payload.clone()]` is what the protocol sees. Checksums inside
/// the payload are not verified.
pub type ProtocolHandler = Box<dyn FnMut(&mut Context<'_>, &Packet, &[u8]) -> Verdict + Send>;

/// Gets connections to one TCP port, complete and ready. Handled: the handler
/// keeps the stream (it must close it some day). Pass: a listener on the port
/// gets it, or it is reset if there is none.
pub type AcceptHandler =
    Box<dyn FnMut(&mut Context<'_>, TcpStreamId, SocketAddr) -> Verdict + Send>;

/// Gets the datagrams to one UDP port, their checksum verified.
pub type DatagramHandler = Box<dyn FnMut(&mut Context<'_>, &Datagram, &[u8]) -> Verdict + Send>;

/// Told when something may have changed on a stream.
pub type StreamHandler = Box<dyn FnMut(&mut Context<'_>, TcpStreamId, Readiness) + Send>;

/// Handlers of one kind.
pub(crate) struct Handlers<K, H> {
    by_key: HashMap<K, (u64, Option<H>), Seeded>,
    next: u64,
}

/// A handler that is running, to be put back afterwards.
pub(crate) struct Running<K, H> {
    key: K,
    id: u64,
    pub(crate) handler: H,
}

impl<K: Copy + Eq + core::hash::Hash, H> Handlers<K, H> {
    fn new(hasher: Seeded) -> Self {
        Self {
            by_key: HashMap::with_hasher(hasher),
            next: 0,
        }
    }

    pub(crate) fn register(&mut self, key: K, handler: H) -> Result<(), AlreadyRegistered> {
        if self.by_key.contains_key(&key) {
            return Err(AlreadyRegistered);
        }
        self.next += 1;
        self.by_key.insert(key, (self.next, Some(handler)));
        Ok(())
    }

    pub(crate) fn remove(&mut self, key: K) -> bool {
        self.by_key.remove(&key).is_some()
    }

    pub(crate) fn contains(&self, key: K) -> bool {
        self.by_key.contains_key(&key)
    }

    /// Takes a handler out to run it; its key stays taken meanwhile.
    pub(crate) fn start(&mut self, key: K) -> Option<Running<K, H>> {
        if self.by_key.is_empty() {
            return None;
        }
        let (id, handler) = self.by_key.get_mut(&key)?;
        Some(Running {
            key,
            id: *id,
            handler: handler.take()?,
        })
    }

    /// Puts a handler back, unless it was removed while it ran.
    pub(crate) fn finish(&mut self, running: Running<K, H>) {
        if let Some((id, place)) = self.by_key.get_mut(&running.key)
            && *id == running.id
        {
            *place = Some(running.handler);
        }
    }
}

/// All handlers.
pub(crate) struct Registry {
    pub(crate) ethertypes: Handlers<u16, EtherTypeHandler>,
    /// By whether the packet is IPv4, and its protocol number.
    pub(crate) protocols: Handlers<(bool, u8), ProtocolHandler>,
    pub(crate) tcp: Handlers<u16, (TcpOptions, AcceptHandler)>,
    pub(crate) udp: Handlers<u16, DatagramHandler>,
    /// By the slot's index and the stream's generation, as one number.
    pub(crate) streams: Handlers<TcpStreamId, StreamHandler>,
    /// Options of the accept callbacks, readable while one of them runs.
    accept_options: HashMap<u16, TcpOptions, Seeded>,
}

impl Registry {
    pub(crate) fn new(hasher: Seeded) -> Self {
        Self {
            ethertypes: Handlers::new(hasher),
            protocols: Handlers::new(hasher),
            tcp: Handlers::new(hasher),
            udp: Handlers::new(hasher),
            streams: Handlers::new(hasher),
            accept_options: HashMap::with_hasher(hasher),
        }
    }

    /// The options of the port's accept callback, if it has one.
    pub(crate) fn accept_options(&self, port: u16) -> Option<TcpOptions> {
        self.accept_options.get(&port).copied()
    }
}

/// Which IP version a handler is for.
pub(crate) fn is_ipv4(version: IpVersion) -> bool {
    version == IpVersion::Ipv4
}

impl crate::sockets::Sockets {
    /// Shows every frame of this EtherType to `handler` first of all.
    ///
    /// # Errors
    /// [`AlreadyRegistered`].
    pub fn on_ethertype(
        &mut self,
        ethertype: u16,
        handler: impl FnMut(&mut Context<'_>, &[u8]) -> Verdict + Send + 'static,
    ) -> Result<(), AlreadyRegistered> {
        self.registry
            .ethertypes
            .register(ethertype, Box::new(handler))
    }

    /// Removes the handler of an EtherType; `false`: there was none.
    pub fn remove_ethertype(&mut self, ethertype: u16) -> bool {
        self.registry.ethertypes.remove(ethertype)
    }

    /// Shows every packet of this protocol to `handler` before any socket. IPv4
    /// and IPv6 are registered separately.
    ///
    /// # Errors
    /// [`AlreadyRegistered`].
    pub fn on_protocol(
        &mut self,
        version: IpVersion,
        protocol: u8,
        handler: impl FnMut(&mut Context<'_>, &Packet, &[u8]) -> Verdict + Send + 'static,
    ) -> Result<(), AlreadyRegistered> {
        self.registry
            .protocols
            .register((is_ipv4(version), protocol), Box::new(handler))
    }

    /// Removes the handler of a protocol; `false`: there was none.
    pub fn remove_protocol(&mut self, version: IpVersion, protocol: u8) -> bool {
        self.registry.protocols.remove((is_ipv4(version), protocol))
    }

    /// Gives connections to a TCP port, on any of our addresses, to `handler`.
    /// A listener may stand on the same port and gets what is passed on.
    ///
    /// # Errors
    /// [`AlreadyRegistered`].
    pub fn on_tcp(
        &mut self,
        port: u16,
        options: TcpOptions,
        handler: impl FnMut(&mut Context<'_>, TcpStreamId, SocketAddr) -> Verdict + Send + 'static,
    ) -> Result<(), AlreadyRegistered> {
        self.registry
            .tcp
            .register(port, (options, Box::new(handler)))?;
        self.registry.accept_options.insert(port, options);
        Ok(())
    }

    /// Removes the accept callback of a port; `false`: there was none. Streams
    /// that it was given stay.
    pub fn remove_tcp(&mut self, port: u16) -> bool {
        self.registry.accept_options.remove(&port);
        self.registry.tcp.remove(port)
    }

    /// Gives datagrams to a UDP port, on any of our addresses, to `handler`. A
    /// socket may be bound to the same port and gets what is passed on.
    ///
    /// # Errors
    /// [`AlreadyRegistered`].
    pub fn on_udp(
        &mut self,
        port: u16,
        handler: impl FnMut(&mut Context<'_>, &Datagram, &[u8]) -> Verdict + Send + 'static,
    ) -> Result<(), AlreadyRegistered> {
        self.registry.udp.register(port, Box::new(handler))
    }

    /// Removes the datagram callback of a port; `false`: there was none.
    pub fn remove_udp(&mut self, port: u16) -> bool {
        self.registry.udp.remove(port)
    }

    /// Calls `handler` whenever something may have changed on a stream: once
    /// soon after this call, then after each batch of segments for it, and when
    /// it ends.
    ///
    /// # Errors
    /// [`AlreadyRegistered`].
    pub fn on_stream(
        &mut self,
        stream: TcpStreamId,
        handler: impl FnMut(&mut Context<'_>, TcpStreamId, Readiness) + Send + 'static,
    ) -> Result<(), AlreadyRegistered> {
        self.registry.streams.register(stream, Box::new(handler))?;
        self.notice(stream);
        Ok(())
    }

    /// Removes the handler of a stream; `false`: there was none. Closing a
    /// stream does it too.
    pub fn remove_stream_handler(&mut self, stream: TcpStreamId) -> bool {
        self.registry.streams.remove(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_that_is_removed_while_it_runs_is_not_put_back() {
        let mut handlers = Handlers::new(Seeded::new([0, 0]));
        handlers.register(1, "a").unwrap();
        let running = handlers.start(1).unwrap();
        assert!(handlers.start(1).is_none(), "it runs already");
        assert_eq!(handlers.register(1, "b"), Err(AlreadyRegistered));
        assert!(handlers.remove(1));
        handlers.register(1, "b").unwrap();
        handlers.finish(running);
        assert_eq!(handlers.start(1).map(|running| running.handler), Some("b"));
    }

    #[test]
    fn a_handler_that_ran_is_there_again() {
        let mut handlers = Handlers::new(Seeded::new([0, 0]));
        handlers.register(1, "a").unwrap();
        let running = handlers.start(1).unwrap();
        handlers.finish(running);
        assert!(handlers.contains(1));
        assert!(handlers.start(1).is_some());
        assert!(!handlers.remove(2));
    }
}
