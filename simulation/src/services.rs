//! What answers on the segment that is nobody's guest: a DHCP server and a router that
//! advertises a prefix.
//!
//! Both know every guest and give each the address that the scenario has for it.

use std::net::{Ipv4Addr, Ipv6Addr};

use guest_stack::smoltcp::phy::ChecksumCapabilities;
use guest_stack::smoltcp::time::Duration;
use guest_stack::smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType,
    DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet,
    Ipv6Repr, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags, UdpPacket,
    UdpRepr,
};

use crate::scenario::GuestPlan;

const MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 0xfe]);
const V4: Ipv4Addr = Ipv4Addr::new(10, 0, 255, 254);
const V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xfe);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The network whose addresses guests make themselves.
pub(crate) const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0);
const ETHERNET: usize = 14;
/// A prefix stays longer than any run.
const PREFIX_LIFETIME: Duration = Duration::from_secs(86_400);

/// What they answer to this frame.
pub(crate) fn answer(frame: &[u8], guests: &[GuestPlan]) -> Option<Vec<u8>> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    match ethernet.ethertype() {
        EthernetProtocol::Arp => answer_arp(ethernet.payload()),
        EthernetProtocol::Ipv4 => answer_dhcp(ethernet.payload(), guests),
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
            let icmp = (packet.next_header() == IpProtocol::Icmpv6).then_some(packet.payload())?;
            let icmp = Icmpv6Packet::new_checked(icmp).ok()?;
            (icmp.msg_type() == Icmpv6Message::RouterSolicit).then(advertisement)
        }
        _ => None,
    }
}

/// What the router says unasked, to all.
pub(crate) fn advertisement() -> Vec<u8> {
    let advertised = NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::empty(),
        // It leads nowhere.
        router_lifetime: Duration::ZERO,
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(MAC.into()),
        mtu: None,
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: 64,
            flags: NdiscPrefixInfoFlags::ADDRCONF | NdiscPrefixInfoFlags::ON_LINK,
            valid_lifetime: PREFIX_LIFETIME,
            preferred_lifetime: PREFIX_LIFETIME,
            prefix: PREFIX,
        }),
    };
    let icmp = Icmpv6Repr::Ndisc(advertised);
    let ip = Ipv6Repr {
        src_addr: V6,
        dst_addr: ALL_NODES,
        next_header: IpProtocol::Icmpv6,
        payload_len: icmp.buffer_len(),
        hop_limit: 255,
    };
    let to = EthernetAddress([0x33, 0x33, 0, 0, 0, 1]);
    let checksums = ChecksumCapabilities::default();
    packet(to, IpRepr::Ipv6(ip), |payload| {
        icmp.emit(
            &V6,
            &ALL_NODES,
            &mut Icmpv6Packet::new_unchecked(payload),
            &checksums,
        );
    })
}

fn answer_arp(packet: &[u8]) -> Option<Vec<u8>> {
    let asked = ArpRepr::parse(&ArpPacket::new_checked(packet).ok()?).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr: V4,
        ..
    } = asked
    else {
        return None;
    };
    let answer = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: MAC,
        source_protocol_addr: V4,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    Some(ethernet(
        source_hardware_addr,
        EthernetProtocol::Arp,
        answer.buffer_len(),
        |payload| answer.emit(&mut ArpPacket::new_unchecked(payload)),
    ))
}

fn answer_dhcp(packet_bytes: &[u8], guests: &[GuestPlan]) -> Option<Vec<u8>> {
    let ip = Ipv4Packet::new_checked(packet_bytes).ok()?;
    let udp = (ip.next_header() == IpProtocol::Udp).then_some(ip.payload())?;
    let udp = UdpPacket::new_checked(udp).ok()?;
    if udp.dst_port() != DHCP_SERVER_PORT {
        return None;
    }
    let asked = DhcpPacket::new_checked(udp.payload()).ok()?;
    let asked = DhcpRepr::parse(&asked).ok()?;
    let client = asked.client_hardware_address;
    let plan = guests.iter().find(|plan| plan.mac() == client.0)?;
    let lease = plan.lease?;
    let message_type = match asked.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request => DhcpMessageType::Ack,
        _ => return None,
    };
    let own = plan.addresses(0).v4;
    let answer = DhcpRepr {
        message_type,
        transaction_id: asked.transaction_id,
        secs: 0,
        client_hardware_address: client,
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: own,
        server_ip: V4,
        router: None,
        subnet_mask: Some(Ipv4Addr::new(255, 255, 0, 0)),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: asked.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(V4),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: Some(lease),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let udp = UdpRepr {
        src_port: DHCP_SERVER_PORT,
        dst_port: DHCP_CLIENT_PORT,
    };
    let to = match asked.broadcast {
        true => Ipv4Addr::BROADCAST,
        false => own,
    };
    let ip = Ipv4Repr {
        src_addr: V4,
        dst_addr: to,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + answer.buffer_len(),
        hop_limit: 64,
    };
    let checksums = ChecksumCapabilities::default();
    Some(packet(client, IpRepr::Ipv4(ip), |payload| {
        udp.emit(
            &mut UdpPacket::new_unchecked(payload),
            &V4.into(),
            &to.into(),
            answer.buffer_len(),
            |payload| {
                let written = answer.emit(&mut DhcpPacket::new_unchecked(payload));
                written.expect("as long as it says");
            },
            &checksums,
        );
    }))
}

fn packet(to: EthernetAddress, ip: IpRepr, write: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let ethertype = match ip {
        IpRepr::Ipv4(_) => EthernetProtocol::Ipv4,
        IpRepr::Ipv6(_) => EthernetProtocol::Ipv6,
    };
    let header = ip.header_len();
    ethernet(to, ethertype, header + ip.payload_len(), |frame| {
        write(&mut frame[header..]);
        ip.emit(&mut *frame, &ChecksumCapabilities::default());
    })
}

fn ethernet(
    to: EthernetAddress,
    ethertype: EthernetProtocol,
    len: usize,
    write: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + len];
    let header = EthernetRepr {
        src_addr: MAC,
        dst_addr: to,
        ethertype,
    };
    header.emit(&mut EthernetFrame::new_unchecked(&mut frame));
    write(&mut frame[ETHERNET..]);
    frame
}
