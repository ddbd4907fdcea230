//! Hand-made frames by `etherparse`, and a second opinion on received ones by
//! `pnet_packet`.

use etherparse::{PacketBuilder, PacketBuilderStep, TcpOptionElement};
use pnet_packet::Packet;
use pnet_packet::ethernet::{EtherTypes, EthernetPacket};
use pnet_packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use pnet_packet::ipv4::{self, Ipv4Packet};
use pnet_packet::ipv6::Ipv6Packet;
use pnet_packet::tcp::{self, TcpPacket};
use pnet_packet::udp::{self, UdpPacket};
use std::net::IpAddr;

use crate::common::{MAC, host};

/// A TCP segment from the bare end (10.0.0.2, fd00::2) to the stack.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) ipv6: bool,
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: Option<u32>,
    pub(crate) flags: &'static str,
    pub(crate) window: u16,
    pub(crate) data: Vec<u8>,
    /// What it says has arrived behind a hole; four ranges at most.
    pub(crate) has: Vec<(u32, u32)>,
}

impl Segment {
    /// A SYN to port 80.
    pub(crate) fn syn(src_port: u16, seq: u32) -> Self {
        Self {
            ipv6: false,
            src_port,
            dst_port: 80,
            seq,
            ack: None,
            flags: "S",
            window: 64_000,
            data: Vec::new(),
            has: Vec::new(),
        }
    }

    /// A later segment of the same connection.
    pub(crate) fn then(&self, flags: &'static str, seq: u32, ack: u32, data: &[u8]) -> Self {
        Self {
            seq,
            ack: Some(ack),
            flags,
            data: data.to_vec(),
            ..self.clone()
        }
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(MAC[1], MAC[0]);
        let (from, to) = (host(1, self.ipv6, 0).ip(), host(0, self.ipv6, 0).ip());
        let ip = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
            _ => unreachable!(),
        };
        let mut tcp = ip.tcp(self.src_port, self.dst_port, self.seq, self.window);
        if let Some(ack) = self.ack {
            tcp = tcp.ack(ack);
        }
        for flag in self.flags.chars() {
            tcp = match flag {
                'S' => tcp
                    .syn()
                    .options(&[
                        TcpOptionElement::MaximumSegmentSize(1460),
                        TcpOptionElement::SelectiveAcknowledgementPermitted,
                        TcpOptionElement::Noop,
                        TcpOptionElement::WindowScale(7),
                    ])
                    .unwrap(),
                'F' => tcp.fin(),
                'R' => tcp.rst(),
                'P' => tcp.psh(),
                '.' => tcp,
                other => panic!("no flag {other}"),
            };
        }
        if let Some((first, more)) = self.has.split_first() {
            let mut rest = [None; 3];
            for (place, range) in rest.iter_mut().zip(more) {
                *place = Some(*range);
            }
            let has = TcpOptionElement::SelectiveAcknowledgement(*first, rest);
            tcp = tcp.options(&[has]).unwrap();
        }
        let mut frame = Vec::new();
        tcp.write(&mut frame, &self.data).unwrap();
        frame
    }
}

fn ipv4_from_peer() -> PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2(MAC[1], MAC[0]).ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
}

fn ipv6_from_peer() -> PacketBuilderStep<etherparse::IpHeaders> {
    let (IpAddr::V6(from), IpAddr::V6(to)) = (host(1, true, 0).ip(), host(0, true, 0).ip()) else {
        unreachable!();
    };
    PacketBuilder::ethernet2(MAC[1], MAC[0]).ipv6(from.octets(), to.octets(), 64)
}

fn from_peer(ipv6: bool) -> PacketBuilderStep<etherparse::IpHeaders> {
    if ipv6 {
        ipv6_from_peer()
    } else {
        ipv4_from_peer()
    }
}

/// A datagram from the bare end to the stack.
pub(crate) fn udp_frame(ipv6: bool, src_port: u16, dst_port: u16, data: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = from_peer(ipv6).udp(src_port, dst_port);
    builder.write(&mut frame, data).unwrap();
    frame
}

/// An echo request from the bare end to the stack.
pub(crate) fn ping_frame(ipv6: bool, seq: u16, data: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    if ipv6 {
        let builder = from_peer(true).icmpv6_echo_request(77, seq);
        builder.write(&mut frame, data).unwrap();
    } else {
        let builder = from_peer(false).icmpv4_echo_request(77, seq);
        builder.write(&mut frame, data).unwrap();
    }
    frame
}

/// The bare end's answer to a neighbour solicitation (RFC 4861, 4.4).
pub(crate) fn neighbour_advertisement() -> Vec<u8> {
    let IpAddr::V6(own) = host(1, true, 0).ip() else {
        unreachable!();
    };
    // Solicited and override; the target; its link-layer address.
    let mut message = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    message.extend_from_slice(&own.octets());
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&MAC[1]);
    let mut frame = raw_frame(true, 58, &message);
    frame[21] = 255;
    let checksum = icmpv6_checksum(&frame);
    frame[56..58].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// The checksum of the ICMPv6 message in a frame without extension headers.
pub(crate) fn icmpv6_checksum(frame: &[u8]) -> u16 {
    let ip = Ipv6Packet::new(&frame[14..]).unwrap();
    let message = pnet_packet::icmpv6::Icmpv6Packet::new(ip.payload()).unwrap();
    pnet_packet::icmpv6::checksum(&message, &ip.get_source(), &ip.get_destination())
}

/// A packet of any IP protocol from the bare end.
pub(crate) fn raw_frame(ipv6: bool, protocol: u8, data: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = from_peer(ipv6);
    builder.write(&mut frame, protocol.into(), data).unwrap();
    frame
}

/// An Ethernet frame of any type.
pub(crate) fn ethernet_frame(ethertype: u16, data: &[u8]) -> Vec<u8> {
    let header = etherparse::Ethernet2Header {
        source: MAC[1],
        destination: MAC[0],
        ether_type: etherparse::EtherType(ethertype),
    };
    let mut frame = header.to_bytes().to_vec();
    frame.extend_from_slice(data);
    frame
}

/// Cuts an IPv4 frame into fragments of at most `size` payload bytes (a multiple
/// of eight).
pub(crate) fn fragment(frame: &[u8], size: usize, id: u16) -> Vec<Vec<u8>> {
    assert_eq!((frame[14], size % 8), (0x45, 0));
    let payload = &frame[34..];
    let count = payload.len().div_ceil(size);
    let piece = |(index, data): (usize, &[u8])| {
        let mut piece = frame[..34].to_vec();
        let total = (20 + data.len()) as u16;
        piece[16..18].copy_from_slice(&total.to_be_bytes());
        piece[18..20].copy_from_slice(&id.to_be_bytes());
        let more = u16::from(index + 1 < count) << 13;
        let field = more | (index * size / 8) as u16;
        piece[20..22].copy_from_slice(&field.to_be_bytes());
        piece[24..26].copy_from_slice(&[0, 0]);
        let checksum = ipv4::checksum(&Ipv4Packet::new(&piece[14..34]).unwrap());
        piece[24..26].copy_from_slice(&checksum.to_be_bytes());
        piece.extend_from_slice(data);
        piece
    };
    payload.chunks(size).enumerate().map(piece).collect()
}

/// What `pnet_packet` makes of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: IpNextHeaderProtocol,
    pub(crate) hop_limit: u8,
    pub(crate) payload: Vec<u8>,
    /// Offset and whether more fragments follow, for IPv4.
    pub(crate) fragment: (u16, bool),
}

/// Reads an IP frame and checks its IPv4 header checksum.
pub(crate) fn ip(frame: &[u8]) -> Option<Seen> {
    let ethernet = EthernetPacket::new(frame)?;
    match ethernet.get_ethertype() {
        EtherTypes::Ipv4 => {
            let ip = Ipv4Packet::new(ethernet.payload())?;
            assert_eq!(ip.get_checksum(), ipv4::checksum(&ip), "IPv4 checksum");
            let len = usize::from(ip.get_total_length()) - usize::from(ip.get_header_length()) * 4;
            Some(Seen {
                src: ip.get_source().into(),
                dst: ip.get_destination().into(),
                protocol: ip.get_next_level_protocol(),
                hop_limit: ip.get_ttl(),
                payload: ip.payload()[..len].to_vec(),
                fragment: (ip.get_fragment_offset() * 8, ip.get_flags() & 1 != 0),
            })
        }
        EtherTypes::Ipv6 => {
            let ip = Ipv6Packet::new(ethernet.payload())?;
            Some(Seen {
                src: ip.get_source().into(),
                dst: ip.get_destination().into(),
                protocol: ip.get_next_header(),
                hop_limit: ip.get_hop_limit(),
                payload: ip.payload().to_vec(),
                fragment: (0, false),
            })
        }
        _ => None,
    }
}

/// What `pnet_packet` makes of a TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenTcp {
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// Reads a TCP segment and checks its checksum.
pub(crate) fn tcp(frame: &[u8]) -> Option<SeenTcp> {
    let ip = ip(frame).filter(|ip| ip.protocol == IpNextHeaderProtocols::Tcp)?;
    let tcp = TcpPacket::new(&ip.payload)?;
    let checksum = match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => tcp::ipv4_checksum(&tcp, &src, &dst),
        (IpAddr::V6(src), IpAddr::V6(dst)) => tcp::ipv6_checksum(&tcp, &src, &dst),
        _ => unreachable!(),
    };
    assert_eq!(tcp.get_checksum(), checksum, "TCP checksum");
    Some(SeenTcp {
        src_port: tcp.get_source(),
        dst_port: tcp.get_destination(),
        seq: tcp.get_sequence(),
        ack: tcp.get_acknowledgement(),
        flags: tcp.get_flags() & 0x3f,
        window: tcp.get_window(),
        options: tcp.get_options_raw().to_vec(),
        data: tcp.payload().to_vec(),
    })
}

/// All TCP segments among some frames.
pub(crate) fn tcps(frames: &[Vec<u8>]) -> Vec<SeenTcp> {
    frames.iter().filter_map(|frame| tcp(frame)).collect()
}

/// Ports and payload of a datagram, its checksum checked.
pub(crate) fn udp(frame: &[u8]) -> Option<(u16, u16, Vec<u8>)> {
    let ip = ip(frame).filter(|ip| ip.protocol == IpNextHeaderProtocols::Udp)?;
    udp_in(&ip)
}

/// The same of an IP payload that was put together from fragments.
pub(crate) fn udp_in(ip: &Seen) -> Option<(u16, u16, Vec<u8>)> {
    let udp = UdpPacket::new(&ip.payload)?;
    let checksum = match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => udp::ipv4_checksum(&udp, &src, &dst),
        (IpAddr::V6(src), IpAddr::V6(dst)) => udp::ipv6_checksum(&udp, &src, &dst),
        _ => unreachable!(),
    };
    assert_eq!(udp.get_checksum(), checksum, "UDP checksum");
    Some((
        udp.get_source(),
        udp.get_destination(),
        udp.payload().to_vec(),
    ))
}

/// Puts the fragments of one packet together, whatever their order.
pub(crate) fn reassemble(frames: &[Vec<u8>]) -> Option<Seen> {
    let mut pieces: Vec<Seen> = frames.iter().filter_map(|frame| ip(frame)).collect();
    pieces.sort_by_key(|piece| piece.fragment.0);
    let mut whole = pieces.first()?.clone();
    whole.payload.clear();
    for piece in &pieces {
        assert_eq!(usize::from(piece.fragment.0), whole.payload.len(), "a hole");
        whole.payload.extend_from_slice(&piece.payload);
    }
    assert!(!pieces.last()?.fragment.1, "the last fragment is missing");
    Some(whole)
}
