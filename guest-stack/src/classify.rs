//! What a received frame is: the one parser that every frame passes.
//!
//! It looks at lengths and header fields only, verifies no checksum, keeps
//! nothing, and accepts no frame whose headers do not fit inside it, so that
//! what comes after may index by its ranges. It must not panic on any bytes.

use core::ops::Range;

use smoltcp::wire::{IpAddress, Ipv4Address, Ipv6Address, TcpPacket, UdpPacket};

/// Length of an Ethernet header, in bytes.
pub const ETHERNET_LEN: usize = 14;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// A TCP header's FIN flag.
pub const TCP_FIN: u8 = 0x01;
/// A TCP header's SYN flag.
pub const TCP_SYN: u8 = 0x02;
/// A TCP header's RST flag.
pub const TCP_RST: u8 = 0x04;
/// A TCP header's ACK flag.
pub const TCP_ACK: u8 = 0x10;

/// What a frame carries behind its Ethernet header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// An ARP packet.
    Arp,
    /// An IPv4 or IPv6 packet.
    Ip(Packet),
    /// Another EtherType (or an 802.3 length).
    Other(u16),
}

/// An IP packet's addresses and parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub src: IpAddress,
    /// Destination address, of the same version.
    pub dst: IpAddress,
    /// Protocol number, behind a hop-by-hop header if there is one.
    pub protocol: u8,
    /// Where in the frame the protocol's header and data stand, without padding.
    pub payload: Range<usize>,
    /// What is known of the payload.
    pub kind: Kind,
}

impl Packet {
    /// Whether the packet is IPv4.
    pub fn is_ipv4(&self) -> bool {
        matches!(self.src, IpAddress::Ipv4(_))
    }
}

/// An IP packet's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A TCP segment.
    Tcp(TcpHeader),
    /// A UDP datagram.
    Udp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
    },
    /// ICMP over IPv4, ICMPv6 over IPv6.
    Icmp {
        /// The message's type.
        message: u8,
    },
    /// A fragment of an IPv4 packet; its payload may begin anywhere.
    Fragment {
        /// Offset in the whole packet's payload, in bytes.
        offset: usize,
    },
    /// Any other protocol.
    Opaque,
}

/// The fields of a TCP header that the stack decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpHeader {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number, if [`TCP_ACK`] is set.
    pub ack: u32,
    /// The flags' low byte, `TCP_*`.
    pub flags: u8,
    /// The window as it stands in the header, not scaled.
    pub window: u16,
    /// Bytes of data.
    pub data_len: usize,
}

impl TcpHeader {
    /// The sequence number behind the segment, its SYN and FIN counted.
    pub fn seq_end(&self) -> u32 {
        let control = u32::from(self.flags & TCP_SYN != 0) + u32::from(self.flags & TCP_FIN != 0);
        // A segment's data is shorter than 2¹⁶.
        self.seq
            .wrapping_add(self.data_len as u32)
            .wrapping_add(control)
    }
}

/// A big-endian `u16` at `at`, if it is there.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(field.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(field.try_into().ok()?))
}

/// The destination MAC address of a frame that has one.
pub fn destination(frame: &[u8]) -> Option<[u8; 6]> {
    frame.get(..6)?.try_into().ok()
}

/// The source MAC address of a frame that has one.
pub fn source(frame: &[u8]) -> Option<[u8; 6]> {
    frame.get(6..12)?.try_into().ok()
}

/// Classifies a frame. `None`: its headers do not fit inside it.
pub fn classify(frame: &[u8]) -> Option<Class> {
    match u16_at(frame, 12)? {
        ETHERTYPE_ARP => Some(Class::Arp),
        ETHERTYPE_IPV4 => ipv4(frame).map(Class::Ip),
        ETHERTYPE_IPV6 => ipv6(frame).map(Class::Ip),
        other => Some(Class::Other(other)),
    }
}

fn ipv4(frame: &[u8]) -> Option<Packet> {
    let ip = frame.get(ETHERNET_LEN..)?;
    let first = *ip.first()?;
    let header_len = usize::from(first & 0xf) * 4;
    let total_len = usize::from(u16_at(ip, 2)?);
    if first >> 4 != 4 || header_len < 20 || total_len < header_len || total_len > ip.len() {
        return None;
    }
    let address = |at: usize| -> Option<IpAddress> {
        let octets: [u8; 4] = ip.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Address::from(octets).into())
    };
    let protocol = *ip.get(9)?;
    let payload = ETHERNET_LEN + header_len..ETHERNET_LEN + total_len;
    let fragment = u16_at(ip, 6)?;
    let more = fragment & 0x2000 != 0;
    let offset = usize::from(fragment & 0x1fff) * 8;
    let kind = if more || offset != 0 {
        // A reassembled packet must fit an IP packet's length field.
        if offset + payload.len() > 65_535 - 20 {
            return None;
        }
        Kind::Fragment { offset }
    } else {
        transport(frame.get(payload.clone())?, protocol, PROTOCOL_ICMP)?
    };
    Some(Packet {
        src: address(12)?,
        dst: address(16)?,
        protocol,
        payload,
        kind,
    })
}

fn ipv6(frame: &[u8]) -> Option<Packet> {
    let ip = frame.get(ETHERNET_LEN..)?;
    let payload_len = usize::from(u16_at(ip, 4)?);
    if *ip.first()? >> 4 != 6 || ip.len() < 40 + payload_len {
        return None;
    }
    let address = |at: usize| -> Option<IpAddress> {
        let octets: [u8; 16] = ip.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Address::from(octets).into())
    };
    let mut protocol = *ip.get(6)?;
    let mut payload = ETHERNET_LEN + 40..ETHERNET_LEN + 40 + payload_len;
    // One hop-by-hop header, the only extension header that smoltcp reads.
    if protocol == 0 {
        let header = frame.get(payload.clone())?;
        protocol = *header.first()?;
        let header_len = (usize::from(*header.get(1)?) + 1) * 8;
        if header_len > header.len() {
            return None;
        }
        payload.start += header_len;
    }
    let kind = transport(frame.get(payload.clone())?, protocol, PROTOCOL_ICMPV6)?;
    Some(Packet {
        src: address(8)?,
        dst: address(24)?,
        protocol,
        payload,
        kind,
    })
}

fn transport(payload: &[u8], protocol: u8, icmp: u8) -> Option<Kind> {
    Some(match protocol {
        PROTOCOL_TCP => {
            let header_len = usize::from(*payload.get(12)? >> 4) * 4;
            if header_len < 20 || header_len > payload.len() {
                return None;
            }
            Kind::Tcp(TcpHeader {
                src_port: u16_at(payload, 0)?,
                dst_port: u16_at(payload, 2)?,
                seq: u32_at(payload, 4)?,
                ack: u32_at(payload, 8)?,
                flags: *payload.get(13)?,
                window: u16_at(payload, 14)?,
                data_len: payload.len() - header_len,
            })
        }
        PROTOCOL_UDP => {
            let len = usize::from(u16_at(payload, 4)?);
            if len < 8 || len > payload.len() {
                return None;
            }
            Kind::Udp {
                src_port: u16_at(payload, 0)?,
                dst_port: u16_at(payload, 2)?,
            }
        }
        other if other == icmp => Kind::Icmp {
            message: *payload.first()?,
        },
        _ => Kind::Opaque,
    })
}

/// Whether the checksum of a TCP or UDP packet holds.
pub(crate) fn checksum_holds(packet: &Packet, frame: &[u8]) -> bool {
    let bytes = frame.get(packet.payload.clone()).unwrap_or_default();
    let (src, dst): (&IpAddress, &IpAddress) = (&packet.src, &packet.dst);
    match packet.kind {
        Kind::Tcp(_) => {
            TcpPacket::new_checked(bytes).is_ok_and(|tcp| tcp.verify_checksum(src, dst))
        }
        _ => UdpPacket::new_checked(bytes).is_ok_and(|udp| udp.verify_checksum(src, dst)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    #[test]
    fn a_tcp_segment_is_told_apart_to_its_ports_numbers_and_data() {
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(4000, 80, 7, 1000)
            .ack(9)
            .fin();
        let mut frame = Vec::new();
        builder.write(&mut frame, b"hello").unwrap();
        // Ethernet pads short frames; the padding is no data.
        frame.extend_from_slice(&[0xaa; 7]);
        let Some(Class::Ip(packet)) = classify(&frame) else {
            panic!("not classified");
        };
        assert_eq!(packet.src, IpAddress::v4(10, 0, 0, 1));
        assert_eq!(packet.protocol, PROTOCOL_TCP);
        assert_eq!(&frame[packet.payload.clone()][20..], b"hello");
        let Kind::Tcp(tcp) = packet.kind else {
            panic!("{:?}", packet.kind);
        };
        assert_eq!((tcp.src_port, tcp.dst_port), (4000, 80));
        assert_eq!((tcp.seq, tcp.ack, tcp.data_len), (7, 9, 5));
        assert_eq!(tcp.seq_end(), 7 + 5 + 1);
    }

    #[test]
    fn an_ipv6_datagram_behind_a_hop_by_hop_header_is_found() {
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv6([1; 16], [2; 16], 64)
            .udp(1, 2);
        let mut frame = Vec::new();
        builder.write(&mut frame, b"x").unwrap();
        let plain = classify(&frame);
        assert!(matches!(
            plain,
            Some(Class::Ip(Packet {
                kind: Kind::Udp {
                    src_port: 1,
                    dst_port: 2
                },
                ..
            }))
        ));
        // Insert eight bytes of hop-by-hop options (PadN).
        let next = core::mem::replace(&mut frame[20], 0);
        frame.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]);
        let len = u16::from_be_bytes([frame[18], frame[19]]) + 8;
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        let Some(Class::Ip(packet)) = classify(&frame) else {
            panic!("not classified");
        };
        assert_eq!(
            packet.kind,
            Kind::Udp {
                src_port: 1,
                dst_port: 2
            }
        );
        assert_eq!(packet.payload.start, 14 + 40 + 8);
    }

    #[test]
    fn a_fragment_is_never_taken_for_its_protocol() {
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[0; 64]).unwrap();
        frame[20] = 0x20; // more fragments, offset 0
        let Some(Class::Ip(packet)) = classify(&frame) else {
            panic!("not classified");
        };
        assert_eq!(packet.kind, Kind::Fragment { offset: 0 });
        frame[20..22].copy_from_slice(&0x1fff_u16.to_be_bytes());
        assert_eq!(classify(&frame), None, "it would end past 65,535 bytes");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_every_range_lies_inside(
            mut frame in proptest::collection::vec(any::<u8>(), 0..200),
            ethertype in prop_oneof![Just(0x0800_u16), Just(0x86dd), Just(0x0806), any::<u16>()],
            plausible in any::<bool>(),
        ) {
            if frame.len() >= 54 && plausible {
                frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
                if ethertype == 0x0800 {
                    frame[14] = 0x45;
                    let len = (frame.len() - 14) as u16;
                    frame[16..18].copy_from_slice(&len.to_be_bytes());
                    frame[20..22].copy_from_slice(&[0, 0]);
                } else if ethertype == 0x86dd {
                    frame[14] = 0x60;
                    let len = (frame.len() - 54) as u16;
                    frame[18..20].copy_from_slice(&len.to_be_bytes());
                }
            }
            if let Some(Class::Ip(packet)) = classify(&frame) {
                prop_assert!(frame.get(packet.payload.clone()).is_some());
                if let Kind::Tcp(tcp) = packet.kind {
                    prop_assert!(tcp.data_len + 20 <= packet.payload.len());
                }
            }
        }
    }
}
