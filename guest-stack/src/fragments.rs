//! IPv4 packets that travel in pieces: reassembly of received ones, and echo
//! replies that are longer than the MTU.
//!
//! smoltcp reassembles inside the interface and gives the packet to whatever set
//! the last fragment was fed to. Here an `Interface` of its own, made when the
//! first fragment arrives, does nothing but reassemble; what comes out is a whole
//! frame, which takes the same way as any other. It also keeps smoltcp from
//! answering a large echo request itself: its fragment buffer keeps old bytes,
//! and the checksum of a reply that is shorter than the one before is computed
//! over them.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::Medium;
use smoltcp::socket::raw;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr, IpProtocol,
    IpVersion, Ipv4Packet, Ipv4Repr,
};

use crate::classify::{ETHERNET_LEN, Packet};
use crate::flow::{Entry, Quiet};
use crate::sink::Sink;
use crate::sockets::Sockets;

/// Longest IP packet.
const MAX_PACKET: usize = 65_535;

/// How long fragments wait for the missing ones. RFC 1122, 3.3.2 asks for 60 s
/// to 120 s; packets are that late nowhere any more, and a shorter time frees
/// the few places from what a lossy or hostile sender leaves in them.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Collects fragments. Takes up to four packets at a time
/// (`SMOLTCP_REASSEMBLY_BUFFER_COUNT`), each for [`TIMEOUT`] at most.
pub(crate) struct Reassembler {
    interface: Box<Interface>,
    set: SocketSet<'static>,
    handle: SocketHandle,
}

impl Reassembler {
    #[inline(never)]
    fn new(mac: [u8; 6], addresses: &[IpCidr], now: Instant) -> Self {
        let mut sink = Sink::new(Medium::Ethernet, ETHERNET_LEN + MAX_PACKET);
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        let mut interface = Box::new(Interface::new(config, &mut sink, now));
        interface.update_ip_addrs(|own| own.extend(addresses.iter().copied()));
        interface.set_reassembly_timeout(TIMEOUT);
        let rx = raw::PacketBuffer::new(vec![raw::PacketMetadata::EMPTY; 1], vec![0; MAX_PACKET]);
        let tx = raw::PacketBuffer::new(vec![], vec![]);
        let socket = raw::Socket::new(Some(IpVersion::Ipv4), None, rx, tx);
        let mut set = SocketSet::new(vec![]);
        let handle = set.add(socket);
        Self {
            interface,
            set,
            handle,
        }
    }

    /// Takes a fragment; gives the whole packet, as a frame, when it was the
    /// last one missing.
    fn add(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        let mut sink = Sink::new(Medium::Ethernet, ETHERNET_LEN + MAX_PACKET);
        sink.show(frame);
        self.interface
            .poll_ingress_single(now, &mut sink, &mut self.set);
        let socket = self.set.get_mut::<raw::Socket>(self.handle);
        let packet = socket.recv().ok()?;
        let mut whole = Vec::with_capacity(ETHERNET_LEN + packet.len());
        whole.extend_from_slice(frame.get(..ETHERNET_LEN)?);
        whole.extend_from_slice(packet);
        Some(whole)
    }
}

impl Sockets {
    /// Takes a fragment; gives the whole packet, as a frame, when it was the
    /// last one missing.
    pub(crate) fn reassemble(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        let mac = self.net.mac;
        let addresses = self.interface.ip_addrs();
        self.reassembler
            .get_or_insert_with(|| Reassembler::new(mac, addresses, now))
            .add(frame, now)
    }

    /// Answers an ICMP echo request whose reply does not fit one packet.
    /// Waiting replies are few; further ones are lost, as echoes may be.
    pub(crate) fn large_echo(&mut self, packet: &Packet, frame: &[u8]) {
        let (IpAddress::Ipv4(src), IpAddress::Ipv4(dst)) = (packet.src, packet.dst) else {
            return;
        };
        if !self.is_ours(&packet.dst) || !packet.src.is_unicast() || self.is_broadcast(&packet.src)
        {
            return;
        }
        let Some(request) = frame.get(packet.payload.clone()) else {
            return;
        };
        let checksums = smoltcp::phy::ChecksumCapabilities::default();
        let request = Icmpv4Packet::new_unchecked(request);
        let Ok(Icmpv4Repr::EchoRequest {
            ident,
            seq_no,
            data,
        }) = Icmpv4Repr::parse(&request, &checksums)
        else {
            return;
        };
        let reply = Icmpv4Repr::EchoReply {
            ident,
            seq_no,
            data,
        };
        let ip = Ipv4Repr {
            src_addr: dst,
            dst_addr: src,
            next_header: IpProtocol::Icmp,
            payload_len: reply.buffer_len(),
            hop_limit: 64,
        };
        let index = self.echo_slot();
        let Entry::Quiet(quiet) = self.table.entry(index) else {
            return;
        };
        let Some(handle) = quiet.set.iter().next().map(|(handle, _)| handle) else {
            return;
        };
        let socket = quiet.set.get_mut::<raw::Socket>(handle);
        if let Ok(room) = socket.send(ip.buffer_len() + reply.buffer_len()) {
            ip.emit(&mut Ipv4Packet::new_unchecked(&mut *room), &checksums);
            let icmp = &mut room[ip.buffer_len()..];
            reply.emit(&mut Icmpv4Packet::new_unchecked(icmp), &checksums);
            self.table.mark(index);
        }
    }

    /// The slot of the socket that sends large echo replies.
    fn echo_slot(&mut self) -> u32 {
        if let Some(handle) = self.echo {
            return handle.index;
        }
        let buffer =
            |bytes| raw::PacketBuffer::new(vec![raw::PacketMetadata::EMPTY; 2], vec![0; bytes]);
        let protocol = Some(IpProtocol::Icmp);
        let socket = raw::Socket::new(
            Some(IpVersion::Ipv4),
            protocol,
            buffer(0),
            buffer(MAX_PACKET),
        );
        let mut set = SocketSet::new(vec![]);
        set.add(socket);
        let handle = self.table.insert(Entry::Quiet(Box::new(Quiet { set })));
        self.echo = Some(handle);
        handle.index
    }
}
