//! TCP segments: those that come, and those that the stack writes itself, without a
//! socket: the SYN|ACK of a handshake, the ACK of TIME-WAIT, and the SYN that a new
//! socket is shown.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, IpRepr, TcpPacket,
    TcpRepr,
};

use crate::classify::{ETHERNET_LEN, Packet, TcpHeader};

/// Longest bare segment in an IP packet: an IPv6 header and a TCP header with
/// all of its options.
pub(crate) const MAX_LEN: usize = 40 + 60;

/// A segment that came.
#[derive(Clone, Copy)]
pub(crate) struct Received<'a> {
    pub(crate) packet: &'a Packet,
    pub(crate) tcp: &'a TcpHeader,
    /// The whole frame.
    pub(crate) frame: &'a [u8],
}

/// A segment without data and its addresses. They must be of one IP version.
pub(crate) struct Segment {
    pub(crate) src: IpAddress,
    pub(crate) dst: IpAddress,
    pub(crate) hop_limit: u8,
    pub(crate) tcp: TcpRepr<'static>,
}

impl Segment {
    fn ip(&self) -> IpRepr {
        IpRepr::new(
            self.src,
            self.dst,
            IpProtocol::Tcp,
            self.tcp.buffer_len(),
            self.hop_limit,
        )
    }

    /// Bytes as an IP packet.
    pub(crate) fn packet_len(&self) -> usize {
        self.ip().buffer_len()
    }

    /// Bytes as an Ethernet frame.
    pub(crate) fn frame_len(&self) -> usize {
        ETHERNET_LEN + self.packet_len()
    }

    /// Writes the IP packet into `packet_len` bytes.
    pub(crate) fn write_packet(&self, packet: &mut [u8]) {
        let checksums = ChecksumCapabilities::default();
        let ip = self.ip();
        packet.fill(0);
        ip.emit(&mut *packet, &checksums);
        let (_, payload) = packet.split_at_mut(ip.header_len());
        self.tcp.emit(
            &mut TcpPacket::new_unchecked(payload),
            &self.src,
            &self.dst,
            &checksums,
        );
    }

    /// Writes the Ethernet frame into `frame_len` bytes.
    pub(crate) fn write_frame(&self, frame: &mut [u8], src_mac: [u8; 6], dst_mac: [u8; 6]) {
        let mut ethernet = EthernetFrame::new_unchecked(&mut *frame);
        ethernet.set_src_addr(EthernetAddress(src_mac));
        ethernet.set_dst_addr(EthernetAddress(dst_mac));
        ethernet.set_ethertype(match self.src {
            IpAddress::Ipv4(_) => EthernetProtocol::Ipv4,
            IpAddress::Ipv6(_) => EthernetProtocol::Ipv6,
        });
        self.write_packet(ethernet.payload_mut());
    }
}
