//! UDP sockets: one smoltcp socket in a set of its own each, found by port.

use alloc::boxed::Box;
use alloc::vec;
use core::net::{IpAddr, SocketAddr};
use core::task::Waker;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::Medium;
use smoltcp::socket::udp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint, IpVersion};

use crate::error::{BindError, UdpError};
use crate::flow::{Entry, Handle};
use crate::path::Report;
use crate::ports::{LocalAddr, LocalIp};
use crate::sink::Sink;
use crate::sockets::Sockets;

/// Names a UDP socket until it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UdpId(pub(crate) Handle);

/// A UDP socket.
pub(crate) struct UdpSocket {
    pub(crate) local: LocalAddr,
    pub(crate) set: SocketSet<'static>,
    handle: SocketHandle,
    /// Datagrams that found the queue full.
    dropped: u64,
    /// Since when the oldest datagram to send waits for a neighbour.
    stalled: Option<Instant>,
    /// Since when nothing came back, and how often the next hop was asked for since.
    unanswered: Option<(Instant, u8)>,
    /// Whom the queued datagrams go to, the latest.
    pub(crate) wanted: heapless::Deque<IpAddress, 8>,
    /// The application closed it; it sends what it queued and goes.
    closed: bool,
}

/// How long datagrams, and the last segment of a connection, wait for their
/// neighbour's hardware address before they are thrown away: three requests, as
/// Linux does.
pub(crate) const NEIGHBOUR_PATIENCE: Duration = Duration::from_secs(3);

/// How long nothing comes back of what a socket sends before its next hop is asked for anew;
/// twice as long each time after, up to 48 s: what is sent may want no answer.
const SILENCE: Duration = Duration::from_secs(3);

impl UdpSocket {
    pub(crate) fn socket(&mut self) -> &mut udp::Socket<'static> {
        self.set.get_mut(self.handle)
    }

    /// Bytes that wait to be read.
    pub(crate) fn queued(&mut self) -> usize {
        self.socket().recv_queue()
    }

    pub(crate) fn count_drop(&mut self) {
        self.dropped += 1;
    }

    /// A datagram to that address was queued.
    fn goes_to(&mut self, to: IpAddress) {
        if self.wanted.back() == Some(&to) {
            return;
        }
        if self.wanted.is_full() {
            self.wanted.pop_front();
        }
        // There is room now.
        let _ = self.wanted.push_back(to);
    }

    /// Whether it was closed and has sent what it queued.
    pub(crate) fn is_over(&self, idle: bool) -> bool {
        self.closed && idle
    }

    /// Something was sent. Whose next hop is to be asked for, since nothing comes back: it may
    /// not be where it is believed to be.
    pub(crate) fn sent(&mut self, now: Instant) -> Option<IpAddress> {
        self.stalled = None;
        let (since, asked) = *self.unanswered.get_or_insert((now, 0));
        if now < since + SILENCE * (1 << asked.min(4)) {
            return None;
        }
        self.unanswered = Some((now, asked.saturating_add(1)));
        self.wanted.back().copied()
    }

    /// Something arrived.
    pub(crate) fn heard(&mut self) {
        self.unanswered = None;
    }

    /// The oldest datagram could not be sent now. smoltcp would try it for ever
    /// and keep all others behind it; when it waited too long all that are
    /// queued are thrown away. Says how many.
    pub(crate) fn stalled(&mut self, own: &[IpCidr], now: Instant) -> u64 {
        let since = *self.stalled.get_or_insert(now);
        if now < since + NEIGHBOUR_PATIENCE {
            return 0;
        }
        self.stalled = None;
        self.throw_away(own, now)
    }

    fn throw_away(&mut self, own: &[IpCidr], now: Instant) -> u64 {
        let mut sink = Sink::new(Medium::Ip, 65_535);
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut sink, now);
        interface.update_ip_addrs(|addresses| addresses.extend(own.iter().copied()));
        // Late enough for smoltcp to ask for the neighbour again.
        let later = now + NEIGHBOUR_PATIENCE;
        let mut thrown = 0;
        while interface.poll_egress(later, &mut sink, &mut self.set) != PollResult::None {
            thrown += 1;
        }
        thrown
    }
}

impl Sockets {
    /// Binds a UDP socket; port 0 picks a free one.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn udp_bind(&mut self, local: impl Into<LocalAddr>) -> Result<UdpId, BindError> {
        let local = local.into();
        if !self.config.protocols.udp {
            return Err(BindError::ProtocolOff);
        }
        self.check_local(local)?;
        let no_port = if local.port == 0 {
            BindError::NoFreePort
        } else {
            BindError::AddrInUse
        };
        let local = self
            .choose_port(local, |this| &this.udp_ports)
            .ok_or(no_port)?;
        let buffer = || {
            udp::PacketBuffer::new(
                vec![udp::PacketMetadata::EMPTY; self.config.udp_buffer_datagrams.max(1)],
                vec![0; self.config.udp_buffer_bytes.max(1)],
            )
        };
        let mut socket = udp::Socket::new(buffer(), buffer());
        let address = match local.ip {
            LocalIp::One(address) => Some(address),
            LocalIp::Any | LocalIp::AnyV4 | LocalIp::AnyV6 => None,
        };
        let endpoint = IpListenEndpoint {
            addr: address,
            port: local.port,
        };
        // A fresh socket and a port that is not zero: it cannot fail.
        socket.bind(endpoint).map_err(|_| BindError::NoFreePort)?;
        let mut set = SocketSet::new(vec![]);
        let handle = set.add(socket);
        let entry = Entry::Udp(Box::new(UdpSocket {
            local,
            set,
            handle,
            dropped: 0,
            stalled: None,
            unanswered: None,
            wanted: heapless::Deque::new(),
            closed: false,
        }));
        let handle = self.table.insert(entry);
        self.udp_ports.take(local, handle.index);
        Ok(UdpId(handle))
    }

    fn udp(&mut self, id: UdpId) -> Result<&mut UdpSocket, UdpError> {
        match self.table.named(id.0) {
            Some(Entry::Udp(udp)) if !udp.closed => Ok(udp),
            _ => Err(UdpError::UnknownHandle),
        }
    }

    /// The longest payload that a datagram to `to` may have, in bytes. Over IPv6 that is what
    /// fits one packet of the link, or of a path that a router said to carry less (RFC 8201);
    /// over IPv4 longer ones travel as fragments. The socket's send queue may hold less.
    pub fn udp_longest_payload(&self, to: IpAddr) -> usize {
        match IpAddress::from(to) {
            IpAddress::Ipv4(_) => smoltcp::config::FRAGMENTATION_BUFFER_SIZE.min(65_535) - 28,
            to @ IpAddress::Ipv6(_) => self.io.datagram_mtu(&to).saturating_sub(48),
        }
    }

    /// A router could not pass a datagram on. Nobody knows whether it was one of ours; it may
    /// have been if a socket has this port and sent to that address lately, or a handler has
    /// it, which answers anybody.
    pub(crate) fn datagram_path_is_narrow(&mut self, now: Instant, report: &Report) {
        let (local, remote) = (report.key.local, report.key.remote.addr);
        if report.mtu >= self.io.datagram_mtu(&remote) || !self.is_ours(&local.addr) {
            return;
        }
        let socket = self.udp_ports.find(&local.addr, local.port);
        let sent = socket.is_some_and(|index| match self.table.entry(index) {
            Entry::Udp(udp) => udp.wanted.iter().any(|to| *to == remote),
            _ => false,
        });
        let answered = self.registry.udp.contains(local.port);
        if (sent || answered) && self.io.datagram_paths.learn(now, remote, report.mtu) {
            self.counters.udp_paths_narrowed += 1;
        }
    }

    /// Queues a datagram; it leaves with the next poll.
    ///
    /// # Errors
    /// [`UdpError`].
    pub fn udp_send_to(
        &mut self,
        id: UdpId,
        payload: &[u8],
        to: SocketAddr,
    ) -> Result<(), UdpError> {
        let protocols = self.config.protocols;
        let to = IpEndpoint::from(to);
        let version_on = match to.addr.version() {
            IpVersion::Ipv4 => protocols.ipv4,
            IpVersion::Ipv6 => protocols.ipv6,
        };
        let longest = self.udp_longest_payload(to.addr.into());
        let bound_to = self.udp(id)?.local.ip;
        let same_version = match bound_to {
            LocalIp::Any => true,
            LocalIp::AnyV4 => matches!(to.addr, IpAddress::Ipv4(_)),
            LocalIp::AnyV6 => matches!(to.addr, IpAddress::Ipv6(_)),
            LocalIp::One(own) => own.version() == to.addr.version(),
        };
        if !version_on || !same_version || self.udp_source(bound_to, &to.addr).is_none() {
            return Err(UdpError::AddrNotAvailable);
        }
        let udp = self.udp(id)?;
        let socket = udp.socket();
        if payload.len() > longest.min(socket.payload_send_capacity()) {
            return Err(UdpError::MessageTooLong);
        }
        let sent = socket.send_slice(payload, to);
        if sent.is_ok() {
            udp.goes_to(to.addr);
        }
        self.table.mark(id.0.index);
        sent.map_err(|error| match error {
            udp::SendError::BufferFull => UdpError::WouldBlock,
            udp::SendError::Unaddressable => UdpError::AddrNotAvailable,
        })
    }

    /// The address that datagrams to `to` would come from.
    fn udp_source(&mut self, bound_to: LocalIp, to: &IpAddress) -> Option<IpAddress> {
        let to_all = to.is_multicast() || to.is_broadcast();
        let source = if to_all {
            let mut own = self.interface.ip_addrs().iter().map(|cidr| cidr.address());
            own.find(|own| own.version() == to.version())?
        } else {
            // smoltcp would keep a datagram without a route for ever.
            self.source_address(to)?
        };
        match bound_to {
            LocalIp::One(own) => self.is_ours(&own).then_some(own),
            LocalIp::Any | LocalIp::AnyV4 | LocalIp::AnyV6 => Some(source),
        }
    }

    /// Takes the oldest datagram: copies as much of it as `buffer` holds (the
    /// rest is gone, as with `recvfrom`) and says how much, and who sent it.
    ///
    /// # Errors
    /// [`UdpError::WouldBlock`] when none waits.
    pub fn udp_recv_from(
        &mut self,
        id: UdpId,
        buffer: &mut [u8],
    ) -> Result<(usize, SocketAddr), UdpError> {
        self.udp_recv_with(id, |payload, from| {
            let len = payload.len().min(buffer.len());
            buffer[..len].copy_from_slice(&payload[..len]);
            (len, from)
        })
    }

    /// Shows the oldest datagram where it is, and takes it.
    ///
    /// # Errors
    /// [`UdpError::WouldBlock`] when none waits.
    pub fn udp_recv_with<R>(
        &mut self,
        id: UdpId,
        f: impl FnOnce(&[u8], SocketAddr) -> R,
    ) -> Result<R, UdpError> {
        let (payload, meta) = self
            .udp(id)?
            .socket()
            .recv()
            .map_err(|_| UdpError::WouldBlock)?;
        Ok(f(payload, meta.endpoint.into()))
    }

    /// Whether a datagram waits, and whether one can be queued.
    ///
    /// # Errors
    /// [`UdpError::UnknownHandle`].
    pub fn udp_readiness(&mut self, id: UdpId) -> Result<(bool, bool), UdpError> {
        let socket = self.udp(id)?.socket();
        Ok((socket.can_recv(), socket.can_send()))
    }

    /// Datagrams that this socket lost because its queue was full.
    ///
    /// # Errors
    /// [`UdpError::UnknownHandle`].
    pub fn udp_dropped(&mut self, id: UdpId) -> Result<u64, UdpError> {
        self.udp(id).map(|udp| udp.dropped)
    }

    /// The address and port that the socket is bound to.
    ///
    /// # Errors
    /// [`UdpError::UnknownHandle`].
    pub fn udp_local_addr(&mut self, id: UdpId) -> Result<SocketAddr, UdpError> {
        self.udp(id)
            .map(|udp| SocketAddr::new(udp.local.ip.address(), udp.local.port))
    }

    /// Sets the time to live and hop limit of what the socket sends; 0 counts
    /// as 64.
    ///
    /// # Errors
    /// [`UdpError::UnknownHandle`].
    pub fn udp_set_hop_limit(&mut self, id: UdpId, hop_limit: u8) -> Result<(), UdpError> {
        let hop_limit = if hop_limit == 0 { 64 } else { hop_limit };
        self.udp(id)?.socket().set_hop_limit(Some(hop_limit));
        Ok(())
    }

    /// Closes the socket. Its port is free at once; what it queued is still sent.
    pub fn udp_close(&mut self, id: UdpId) {
        let Ok(udp) = self.udp(id) else { return };
        udp.closed = true;
        let port = udp.local.port;
        self.udp_ports.release(port, id.0.index);
        self.table.mark(id.0.index);
    }

    /// Wakes `waker` when a datagram arrives. One waker per socket; the last
    /// one counts.
    ///
    /// # Errors
    /// [`UdpError::UnknownHandle`].
    pub fn udp_wake_reader(&mut self, id: UdpId, waker: &Waker) -> Result<(), UdpError> {
        self.udp(id)?.socket().register_recv_waker(waker);
        Ok(())
    }

    /// Wakes `waker` when there is room for a datagram. One waker per socket;
    /// the last one counts.
    ///
    /// # Errors
    /// [`UdpError::UnknownHandle`].
    pub fn udp_wake_writer(&mut self, id: UdpId, waker: &Waker) -> Result<(), UdpError> {
        self.udp(id)?.socket().register_send_waker(waker);
        Ok(())
    }
}
