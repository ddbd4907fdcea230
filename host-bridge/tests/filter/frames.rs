//! Frames for the filter's tests: of one guest, and of its neighbour.
//!
//! Built by etherparse where it can; headers it will not write wrong are put
//! together here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header,
    Ipv6Header, PacketBuilder, ether_type, ip_number,
};
use host_bridge::counters::DropReason;
use host_bridge::filter::{Filter, FilterConfig, HEAD_LEN, Verdict};

/// The guest's MAC address.
pub(crate) const MAC: [u8; 6] = [0x02, 0x00, 0x00, 0x12, 0x34, 0x56];
/// The neighbour's MAC address.
pub(crate) const OTHER_MAC: [u8; 6] = [0x02, 0x00, 0x00, 0x65, 0x43, 0x21];
/// Everybody's MAC address.
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];
/// The guest's IPv4 address.
pub(crate) const V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The neighbour's IPv4 address.
pub(crate) const OTHER_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
/// The guest's IPv6 address.
pub(crate) const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// The neighbour's IPv6 address.
pub(crate) const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
/// The guest's link-local address: fe80:: and its MAC address.
pub(crate) const LINK_LOCAL: Ipv6Addr =
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0000, 0x00ff, 0xfe12, 0x3456);

/// The filter of a guest with the addresses above.
pub(crate) fn filter(config: FilterConfig) -> Filter {
    Filter::new(config, MAC, &[IpAddr::V4(V4), IpAddr::V6(V6)])
}

/// What the filter says when it sees as much of the frame as it asks for.
pub(crate) fn verdict(filter: &Filter, frame: &[u8]) -> Verdict {
    filter.check(&frame[..frame.len().min(HEAD_LEN)], frame.len())
}

/// Checks frames one by one against what is expected of them.
pub(crate) fn expect(filter: &Filter, cases: &[(&str, Vec<u8>, Option<DropReason>)]) {
    for (what, frame, reason) in cases {
        let expected = reason.map_or(Verdict::Pass, Verdict::Drop);
        assert_eq!(verdict(filter, frame), expected, "{what}");
    }
}

/// An Ethernet frame.
pub(crate) fn ethernet(
    source: [u8; 6],
    destination: [u8; 6],
    ether_type: u16,
    payload: &[u8],
) -> Vec<u8> {
    let header = Ethernet2Header {
        source,
        destination,
        ether_type: ether_type.into(),
    };
    [&header.to_bytes()[..], payload].concat()
}

/// A UDP datagram from the guest's MAC address.
pub(crate) fn udp4(source: Ipv4Addr, destination: Ipv4Addr, from: u16, to: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, OTHER_MAC)
        .ipv4(source.octets(), destination.octets(), 64)
        .udp(from, to)
        .write(&mut frame, b"payload")
        .unwrap();
    frame
}

/// A TCP SYN from the guest's MAC address.
pub(crate) fn tcp4(source: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, OTHER_MAC)
        .ipv4(source.octets(), OTHER_V4.octets(), 64)
        .tcp(40_000, 80, 1, 64_000)
        .syn()
        .write(&mut frame, &[])
        .unwrap();
    frame
}

/// An IPv4 fragment at `offset` (in units of eight bytes).
pub(crate) fn fragment4(offset: u16, more: bool, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let mut header = Ipv4Header::new(
        payload.len() as u16,
        64,
        protocol,
        V4.octets(),
        OTHER_V4.octets(),
    )
    .unwrap();
    header.more_fragments = more;
    header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
    header.header_checksum = header.calc_header_checksum();
    let packet = [&header.to_bytes()[..], payload].concat();
    ethernet(MAC, OTHER_MAC, ether_type::IPV4.0, &packet)
}

/// An ARP packet, sent from the guest's MAC address.
pub(crate) fn arp(
    operation: ArpOperation,
    sender_mac: [u8; 6],
    sender: Ipv4Addr,
    target: Ipv4Addr,
) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation,
        sender_mac,
        sender_ipv4: sender.octets(),
        target_mac: [0; 6],
        target_ipv4: target.octets(),
    };
    ethernet(MAC, BROADCAST, ether_type::ARP.0, &packet.to_bytes())
}

/// An IPv6 packet from the guest's MAC address.
pub(crate) fn ipv6(source: Ipv6Addr, next: IpNumber, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        payload_length: payload.len() as u16,
        next_header: next,
        hop_limit,
        source: source.octets(),
        destination: OTHER_V6.octets(),
        ..Default::default()
    };
    let packet = [&header.to_bytes()[..], payload].concat();
    ethernet(MAC, OTHER_MAC, ether_type::IPV6.0, &packet)
}

/// The head of a UDP datagram without payload.
pub(crate) fn udp_header(from: u16, to: u16) -> Vec<u8> {
    [from, to, 8, 0]
        .iter()
        .flat_map(|n| n.to_be_bytes())
        .collect()
}

/// An ICMPv6 message: type, code 0, no checksum, four bytes of zero, `body`.
pub(crate) fn icmp6(message_type: u8, body: &[u8]) -> Vec<u8> {
    [&[message_type, 0, 0, 0, 0, 0, 0, 0][..], body].concat()
}

/// A neighbour solicitation (135) or advertisement (136).
pub(crate) fn neighbor(message_type: u8, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    icmp6(message_type, &[&target.octets()[..], options].concat())
}

/// A link-layer address option (1 source, 2 target).
pub(crate) fn link_layer(option_type: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[option_type, 1][..], &mac].concat()
}

/// An IPv6 packet with an ICMPv6 message as neighbour discovery sends it.
pub(crate) fn nd(source: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    ipv6(source, ip_number::IPV6_ICMP, 255, message)
}

/// An options header (hop-by-hop, destination) of `units` times eight bytes,
/// filled with padding.
pub(crate) fn options_header(next: IpNumber, units: u8) -> Vec<u8> {
    let mut header = vec![0; usize::from(units) * 8];
    header[0] = next.0;
    header[1] = units - 1;
    header
}

/// An IPv6 fragment header at `offset` (in units of eight bytes).
pub(crate) fn fragment_header(next: IpNumber, offset: u16, more: bool) -> Vec<u8> {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    vec![next.0, 0, high, low, 0, 0, 0, 7]
}
