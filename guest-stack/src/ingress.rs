//! One received frame: shown to handlers, then to the socket it belongs to.
//!
//! Called by the hot loop in `stack` for every frame, after room for an answer
//! was made sure of. It must not panic on any bytes, and each frame has exactly
//! one [`Ending`].

use shm_link::link::FrameTx;
use shm_link::offload::{FLAG_DATA_VALID, FLAG_NEEDS_CSUM, GSO_UDP_L4, OffloadHeader};
use smoltcp::iface::SocketSet;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{Socket, tcp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpAddress, IpEndpoint, IpProtocol, IpVersion, UdpPacket, UdpRepr};

use crate::classify::{
    self, Class, ETHERNET_LEN, Kind, Packet, TCP_ACK, TCP_RST, TCP_SYN, TcpHeader, checksum_holds,
};
use crate::context::Context;
use crate::counters::Counters;
use crate::cut::Datagrams;
use crate::device::{FrameDevice, Wire};
use crate::flow::{Entry, FlowKey};
use crate::path::Report;
use crate::registry::{Datagram, Verdict};
use crate::sockets::Sockets;
use crate::tcp::blind::Belief;
use crate::tcp::segment::Received;

/// ICMPv4 echo request.
const ECHO_REQUEST: u8 = 8;
/// ICMPv6: multicast listener query (RFC 3810).
const MLD_QUERY: u8 = 130;
/// ICMPv6: router advertisement (RFC 4861).
const ROUTER_ADVERTISEMENT: u8 = 134;
/// ICMPv6: neighbour solicitation and advertisement.
const NEIGHBOUR: [u8; 2] = [135, 136];
/// IP protocol number of IGMP.
const PROTOCOL_IGMP: u8 = 2;

/// What became of a frame; one counter each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Handled,
    Tcp,
    Udp,
    Default,
    Fragment,
    Unknown,
    NotOurs,
    Malformed,
    ProtocolOff,
    BadOffload,
    BadAddress,
    BacklogFull,
    UdpFull,
    ReplyLimited,
    NoCarrier,
}

impl Counters {
    fn end(&mut self, ending: Ending) {
        let counter = match ending {
            Ending::Handled => &mut self.rx_handled,
            Ending::Tcp => &mut self.rx_tcp,
            Ending::Udp => &mut self.rx_udp,
            Ending::Default => &mut self.rx_default,
            Ending::Fragment => &mut self.rx_fragment,
            Ending::Unknown => &mut self.rx_unknown,
            Ending::NotOurs => &mut self.rx_not_ours,
            Ending::Malformed => &mut self.rx_malformed,
            Ending::ProtocolOff => &mut self.rx_protocol_off,
            Ending::BadOffload => &mut self.rx_bad_offload,
            Ending::BadAddress => &mut self.rx_bad_address,
            Ending::BacklogFull => &mut self.rx_backlog_full,
            Ending::UdpFull => &mut self.rx_udp_full,
            Ending::ReplyLimited => &mut self.rx_reply_limited,
            Ending::NoCarrier => &mut self.rx_no_carrier,
        };
        *counter += 1;
    }
}

impl Sockets {
    /// Takes one frame, or each datagram of one.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        offload: OffloadHeader,
        frame: &[u8],
        tx: &mut dyn FrameTx,
    ) {
        if offload.gso_type == GSO_UDP_L4
            && offload.check(frame.len(), self.net.rx_offloads).is_ok()
            && let Some(mut datagrams) = Datagrams::of(frame, offload.gso_size.into())
        {
            // The checksums are as good as that of the whole, which the link vouches for.
            let vouched = OffloadHeader {
                flags: FLAG_DATA_VALID,
                ..OffloadHeader::NONE
            };
            let mut datagram = core::mem::take(&mut self.datagram);
            while datagrams.next_into(&mut datagram) {
                self.receive_one(now, vouched, &datagram, tx);
            }
            self.datagram = datagram;
            return;
        }
        self.receive_one(now, offload, frame, tx);
    }

    fn receive_one(
        &mut self,
        now: Instant,
        offload: OffloadHeader,
        frame: &[u8],
        tx: &mut dyn FrameTx,
    ) {
        self.counters.rx_frames += 1;
        let ending = self.sort(now, offload, frame, tx);
        self.counters.end(ending);
    }

    fn sort(
        &mut self,
        now: Instant,
        offload: OffloadHeader,
        frame: &[u8],
        tx: &mut dyn FrameTx,
    ) -> Ending {
        if !self.net.carrier {
            return Ending::NoCarrier;
        }
        let allowed = self.net.rx_offloads;
        if offload.check(frame.len(), allowed).is_err() {
            return Ending::BadOffload;
        }
        let (Some(destination), Some(source)) =
            (classify::destination(frame), classify::source(frame))
        else {
            return Ending::Malformed;
        };
        // Nobody can be answered at a group address.
        if source[0] & 1 != 0 {
            return Ending::Malformed;
        }
        if destination != self.net.mac && destination[0] & 1 == 0 {
            return Ending::NotOurs;
        }
        let Some(&[a, b]) = frame.get(12..ETHERNET_LEN) else {
            return Ending::Malformed;
        };
        if self.show_ethertype(now, u16::from_be_bytes([a, b]), frame, tx) == Verdict::Handled {
            return Ending::Handled;
        }
        let Some(class) = classify::classify(frame) else {
            return Ending::Malformed;
        };
        let protocols = self.config.protocols;
        match class {
            Class::Arp if !protocols.ipv4 => Ending::ProtocolOff,
            Class::Arp => {
                self.feed_default(now, frame, tx);
                self.neighbour_spoke = true;
                let (asked, interface) = (&self.io.asked, &mut self.interface);
                self.neighbours.heard(now, frame, asked, interface);
                Ending::Default
            }
            Class::Ip(packet) => {
                // Without negotiation the flags mean nothing, and smoltcp
                // verifies every checksum itself.
                let vouched = offload.flags & (FLAG_NEEDS_CSUM | FLAG_DATA_VALID) != 0;
                let verify = self.io.rx_checksum && !vouched;
                self.sort_packet(now, &packet, frame, verify, tx)
            }
            Class::Other(_) => Ending::Unknown,
        }
    }

    fn sort_packet(
        &mut self,
        now: Instant,
        packet: &Packet,
        frame: &[u8],
        verify: bool,
        tx: &mut dyn FrameTx,
    ) -> Ending {
        let protocols = self.config.protocols;
        let version_on = if packet.is_ipv4() {
            protocols.ipv4
        } else {
            protocols.ipv6
        };
        if !version_on {
            return Ending::ProtocolOff;
        }
        if let Kind::Fragment { .. } = packet.kind {
            let Some(whole) = self.reassemble(frame, now) else {
                return Ending::Fragment;
            };
            return match classify::classify(&whole) {
                // The checksum was never vouched for over all fragments.
                Some(Class::Ip(packet)) if !matches!(packet.kind, Kind::Fragment { .. }) => {
                    let verify = self.io.rx_checksum;
                    self.sort_transport(now, &packet, &whole, verify, tx)
                }
                _ => Ending::Malformed,
            };
        }
        self.sort_transport(now, packet, frame, verify, tx)
    }

    fn sort_transport(
        &mut self,
        now: Instant,
        packet: &Packet,
        frame: &[u8],
        verify: bool,
        tx: &mut dyn FrameTx,
    ) -> Ending {
        if self.show_protocol(now, packet, frame, tx) == Verdict::Handled {
            return Ending::Handled;
        }
        let protocols = self.config.protocols;
        match packet.kind {
            Kind::Tcp(_) if !protocols.tcp => Ending::ProtocolOff,
            Kind::Udp { .. } if !protocols.udp => Ending::ProtocolOff,
            Kind::Tcp(_) | Kind::Udp { .. } if verify && !checksum_holds(packet, frame) => {
                Ending::Malformed
            }
            Kind::Tcp(tcp) => {
                let tcp = &tcp;
                self.sort_tcp(now, Received { packet, tcp, frame }, tx)
            }
            Kind::Udp { src_port, dst_port } => {
                self.sort_udp(now, packet, src_port, dst_port, frame, tx)
            }
            Kind::Icmp { message } => self.sort_icmp(now, packet, message, frame, tx),
            Kind::Opaque => {
                if packet.is_ipv4() && packet.protocol == PROTOCOL_IGMP {
                    self.groups_at = Some(now + Duration::from_secs(1));
                    self.feed_default(now, frame, tx);
                    return Ending::Default;
                }
                self.sort_unclaimed(now, packet, frame, tx)
            }
            Kind::Fragment { .. } => Ending::Malformed,
        }
    }

    fn show_ethertype(
        &mut self,
        now: Instant,
        ethertype: u16,
        frame: &[u8],
        tx: &mut dyn FrameTx,
    ) -> Verdict {
        let Some(mut running) = self.registry.ethertypes.start(ethertype) else {
            return Verdict::Pass;
        };
        let mut context = self.context(now, frame, tx);
        let verdict = (running.handler)(&mut context, frame);
        self.registry.ethertypes.finish(running);
        verdict
    }

    fn show_protocol(
        &mut self,
        now: Instant,
        packet: &Packet,
        frame: &[u8],
        tx: &mut dyn FrameTx,
    ) -> Verdict {
        let key = (packet.is_ipv4(), packet.protocol);
        let Some(mut running) = self.registry.protocols.start(key) else {
            return Verdict::Pass;
        };
        let mut context = self.context(now, frame, tx);
        let verdict = (running.handler)(&mut context, packet, frame);
        self.registry.protocols.finish(running);
        verdict
    }

    fn context<'c>(
        &'c mut self,
        now: Instant,
        frame: &[u8],
        tx: &'c mut dyn FrameTx,
    ) -> Context<'c> {
        Context {
            sockets: self,
            tx,
            now,
            source: classify::source(frame),
        }
    }

    fn sort_tcp(&mut self, now: Instant, received: Received<'_>, tx: &mut dyn FrameTx) -> Ending {
        let Received { packet, tcp, frame } = received;
        let key = FlowKey {
            local: IpEndpoint::new(packet.dst, tcp.dst_port),
            remote: IpEndpoint::new(packet.src, tcp.src_port),
        };
        let application = self.application_takes_tcp(&key, tcp);
        if let Some(index) = self.table.find(&key) {
            if !application {
                self.copy_to_raw(now, packet, frame, tx);
            }
            return match self.table.entry(index) {
                Entry::HalfOpen(_) => self.receive_half_open(now, index, received, tx),
                Entry::TimeWait(_) => self.receive_time_wait(now, index, received, tx),
                Entry::Flow(flow) => {
                    match flow.believes(tcp) {
                        Belief::Feed => self.feed_segment(now, index, received, tx),
                        Belief::Challenge => self.challenge(index, now, tx),
                        Belief::Drop => {}
                    }
                    Ending::Tcp
                }
                Entry::Free | Entry::Listener(_) | Entry::Udp(_) | Entry::Quiet(_) => {
                    Ending::Malformed
                }
            };
        }
        if !self.is_ours(&packet.dst) || !self.is_peer(&packet.src) {
            return Ending::BadAddress;
        }
        let begun = self
            .receive_syn(now, key, received, tx)
            .or_else(|| self.receive_cookie(now, key, received, tx))
            .or_else(|| self.is_behind_a_cookie(now, &key, tcp));
        if let Some(ending) = begun {
            if !application {
                self.copy_to_raw(now, packet, frame, tx);
            }
            return ending;
        }
        if application || self.application_takes_raw(packet) {
            self.feed_default(now, frame, tx);
            return Ending::Default;
        }
        // A reset is never answered; anything else is, with a reset.
        if tcp.flags & TCP_RST == 0 {
            if !self.limiter.permit(now) {
                return Ending::ReplyLimited;
            }
            self.feed_nobody(now, frame, tx);
        }
        Ending::Default
    }

    /// Feeds a segment to its connection and notices at once if that ended it,
    /// since the next frame may begin another one with the same ends.
    pub(crate) fn feed_flow(
        &mut self,
        now: Instant,
        index: u32,
        received: Received<'_>,
        tx: &mut dyn FrameTx,
    ) {
        let Entry::Flow(flow) = self.table.entry(index) else {
            return;
        };
        if flow.lacks_only_our_fin(received.tcp) {
            flow.heard();
            return;
        }
        let watch = flow.ending();
        self.io.watched = watch.then_some(None);
        let before = flow.view();
        let mut room = core::mem::take(&mut self.narrowed);
        // One segment, not several that were put together.
        let one = received.frame.len() <= ETHERNET_LEN + self.io.mtu;
        flow.hears(one);
        let shown = flow
            .narrowed(now, received, self.io.mtu, &mut room)
            .unwrap_or(received.frame);
        self.feed(index, now, shown, tx);
        let sent = self.io.watched.take().flatten();
        let vouches = self.io.rx_checksum;
        let Entry::Flow(flow) = self.table.entry(index) else {
            return;
        };
        flow.sent = sent.or(flow.sent);
        if flow.view().has_more_unread_than(&before) {
            flow.answers.asked(now, one);
        }
        flow.recovery_heard(now, received, before, vouches);
        flow.heard();
        self.narrowed = room;
        if flow.ended() {
            self.settle(index, now);
        } else {
            let id = crate::tcp::TcpStreamId(self.table.handle(index));
            self.notice(id);
        }
    }

    fn sort_udp(
        &mut self,
        now: Instant,
        packet: &Packet,
        src_port: u16,
        dst_port: u16,
        frame: &[u8],
        tx: &mut dyn FrameTx,
    ) -> Ending {
        let application = self.application_takes_udp(packet, dst_port);
        // A lease is offered to an address that is not ours yet.
        if packet.is_ipv4()
            && (src_port, dst_port) == (67, 68)
            && let Some(index) = self.autoconf.dhcp_slot()
        {
            self.feed(index, now, frame, tx);
            return Ending::Udp;
        }
        let ours = self.is_ours(&packet.dst);
        if (ours || self.is_broadcast(&packet.dst))
            && self.show_datagram(now, packet, src_port, dst_port, frame, tx) == Verdict::Handled
        {
            return Ending::Handled;
        }
        if let Some(index) = self.udp_ports.find(&packet.dst, dst_port) {
            if !application {
                self.copy_to_raw(now, packet, frame, tx);
            }
            // The UDP header is 8 bytes; the classifier saw that it is there.
            let empty = packet.payload.len() <= 8;
            let Entry::Udp(udp) = self.table.entry(index) else {
                return Ending::Malformed;
            };
            udp.heard();
            let before = udp.queued();
            self.feed(index, now, frame, tx);
            let Entry::Udp(udp) = self.table.entry(index) else {
                return Ending::Malformed;
            };
            if !empty && udp.queued() == before {
                return if self.datagram_parses(packet, frame) && ours {
                    if let Entry::Udp(udp) = self.table.entry(index) {
                        udp.count_drop();
                    }
                    Ending::UdpFull
                } else {
                    Ending::Malformed
                };
            }
            return Ending::Udp;
        }
        if application {
            self.feed_default(now, frame, tx);
            return Ending::Default;
        }
        self.sort_unclaimed(now, packet, frame, tx)
    }

    fn show_datagram(
        &mut self,
        now: Instant,
        packet: &Packet,
        src_port: u16,
        dst_port: u16,
        frame: &[u8],
        tx: &mut dyn FrameTx,
    ) -> Verdict {
        if !self.registry.udp.contains(dst_port) || !self.datagram_parses(packet, frame) {
            return Verdict::Pass;
        }
        let bytes = frame.get(packet.payload.clone()).unwrap_or_default();
        let Ok(udp) = UdpPacket::new_checked(bytes) else {
            return Verdict::Pass;
        };
        let datagram = Datagram {
            src: IpEndpoint::new(packet.src, src_port).into(),
            dst: IpEndpoint::new(packet.dst, dst_port).into(),
        };
        let Some(mut running) = self.registry.udp.start(dst_port) else {
            return Verdict::Pass;
        };
        let mut context = self.context(now, frame, tx);
        let verdict = (running.handler)(&mut context, &datagram, udp.payload());
        self.registry.udp.finish(running);
        verdict
    }

    /// Whether a datagram's headers and, unless the link vouched, its checksum
    /// hold.
    fn datagram_parses(&self, packet: &Packet, frame: &[u8]) -> bool {
        let bytes = frame.get(packet.payload.clone()).unwrap_or_default();
        let checksums = if self.io.rx_checksum {
            ChecksumCapabilities::ignored()
        } else {
            ChecksumCapabilities::default()
        };
        UdpPacket::new_checked(bytes)
            .and_then(|udp| UdpRepr::parse(&udp, &packet.src, &packet.dst, &checksums))
            .is_ok()
    }

    fn sort_icmp(
        &mut self,
        now: Instant,
        packet: &Packet,
        message: u8,
        frame: &[u8],
        tx: &mut dyn FrameTx,
    ) -> Ending {
        // smoltcp answers an ICMPv6 echo request to any address, in its name.
        let dst = &packet.dst;
        if !(self.is_ours(dst) || dst.is_multicast() || self.is_broadcast(dst)) {
            return Ending::BadAddress;
        }
        if let Some(report) = Report::of(packet, frame) {
            self.path_is_narrow(now, &report);
        }
        if packet.is_ipv4() {
            if message == ECHO_REQUEST && frame.len() > ETHERNET_LEN + self.io.mtu {
                self.large_echo(packet, frame);
                return Ending::Default;
            }
            self.feed_default(now, frame, tx);
            return Ending::Default;
        }
        match message {
            ROUTER_ADVERTISEMENT => self.router_advertisement(now, packet, frame),
            MLD_QUERY => {
                // smoltcp answers after a delay of its own, at most this long
                // (RFC 3810, 5.1.3), and does not say when.
                let code = frame.get(packet.payload.start + 4..packet.payload.start + 6);
                let delay = match code {
                    Some(&[a, b]) => u64::from(u16::from_be_bytes([a, b]) & 0x7fff),
                    _ => 0,
                };
                self.groups_at = Some(now + Duration::from_millis(delay));
            }
            _ => {}
        }
        self.feed_default(now, frame, tx);
        if NEIGHBOUR.contains(&message) {
            self.neighbour_spoke = true;
            let (asked, interface) = (&self.io.asked, &mut self.interface);
            self.neighbours.heard(now, frame, asked, interface);
        }
        Ending::Default
    }

    /// A packet that nobody here wants: the application's raw sockets may, else
    /// an ICMP error goes back.
    fn sort_unclaimed(
        &mut self,
        now: Instant,
        packet: &Packet,
        frame: &[u8],
        tx: &mut dyn FrameTx,
    ) -> Ending {
        if self.application_takes_raw(packet) {
            self.feed_default(now, frame, tx);
            return Ending::Default;
        }
        // No errors about broadcasts and groups (RFC 1122, 3.2.2; RFC 4443, 2.4).
        if !self.is_ours(&packet.dst) || !self.is_peer(&packet.src) {
            return Ending::BadAddress;
        }
        if !self.limiter.permit(now) {
            return Ending::ReplyLimited;
        }
        self.feed_nobody(now, frame, tx);
        Ending::Default
    }

    /// Shows smoltcp a frame with no sockets at all, for its default answer.
    pub(crate) fn feed_nobody(&mut self, now: Instant, frame: &[u8], tx: &mut dyn FrameTx) {
        let mut device = FrameDevice {
            frame: Some(frame),
            wire: Wire {
                tx,
                state: &mut self.io,
            },
        };
        let mut nobody = SocketSet::new(&mut [][..]);
        self.interface
            .poll_ingress_single(now, &mut device, &mut nobody);
    }

    /// Whether an address can be somebody else's.
    fn is_peer(&self, address: &IpAddress) -> bool {
        address.is_unicast() && !self.is_broadcast(address) && !self.is_ours(address)
    }

    /// Gives the application's raw sockets their copy of a packet that a socket
    /// of the stack's own takes, and no other socket of the application would.
    fn copy_to_raw(&mut self, now: Instant, packet: &Packet, frame: &[u8], tx: &mut dyn FrameTx) {
        // A raw socket that takes it keeps smoltcp from answering as well.
        if self.application_takes_raw(packet) {
            self.feed_default(now, frame, tx);
        }
    }

    fn application_takes_raw(&self, packet: &Packet) -> bool {
        let version = if packet.is_ipv4() {
            IpVersion::Ipv4
        } else {
            IpVersion::Ipv6
        };
        let protocol = IpProtocol::from(packet.protocol);
        self.application.iter().any(|(_, socket)| match socket {
            Socket::Raw(raw) => {
                raw.ip_version().is_none_or(|wanted| wanted == version)
                    && raw.ip_protocol().is_none_or(|wanted| wanted == protocol)
            }
            _ => false,
        })
    }

    fn application_takes_tcp(&self, key: &FlowKey, tcp: &TcpHeader) -> bool {
        let begins = tcp.flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN;
        self.application.iter().any(|(_, socket)| match socket {
            Socket::Tcp(socket) if socket.state() == tcp::State::Listen => {
                let wanted = socket.listen_endpoint();
                begins
                    && wanted.port == key.local.port
                    && wanted.addr.is_none_or(|addr| addr == key.local.addr)
            }
            Socket::Tcp(socket) => {
                socket.local_endpoint() == Some(key.local)
                    && socket.remote_endpoint() == Some(key.remote)
            }
            _ => false,
        })
    }

    fn application_takes_udp(&self, packet: &Packet, dst_port: u16) -> bool {
        self.application.iter().any(|(_, socket)| match socket {
            Socket::Udp(socket) => socket.endpoint().port == dst_port,
            // A resolver's ports are its own secret.
            Socket::Dns(_) => self.is_ours(&packet.dst),
            Socket::Dhcpv4(_) => dst_port == 68,
            Socket::Raw(_) | Socket::Icmp(_) | Socket::Tcp(_) => false,
        })
    }
}
