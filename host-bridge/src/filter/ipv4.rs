//! The filter's rules for ARP and IPv4, with DHCP.

use std::net::Ipv4Addr;

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacketSlice, IpNumber, Ipv4HeaderSlice, UdpHeaderSlice,
    err::ipv4::HeaderSliceError, ether_type, ip_number,
};

use super::Filter;
use super::view::View;
use crate::counters::DropReason;

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;

/// Bytes of a transport header that must be there, whole, in a packet or its
/// first fragment. None is asked of protocols the filter does not know.
pub(super) fn transport_header_len(protocol: IpNumber) -> usize {
    match protocol {
        ip_number::TCP => 20,
        ip_number::UDP | ip_number::ICMP | ip_number::IPV6_ICMP | ip_number::IGMP => 8,
        _ => 0,
    }
}

impl Filter {
    pub(super) fn check_arp(&self, packet: View<'_>) -> Result<(), DropReason> {
        let arp = ArpPacketSlice::from_slice(packet.seen()).map_err(|_| packet.short())?;
        // RFC 826 with Ethernet and IPv4: the only form a guest has use for.
        let sizes_fit = arp.hw_addr_type() == ArpHardwareId::ETHERNET
            && arp.proto_addr_type() == ether_type::IPV4
            && arp.hw_addr_size() == 6;
        let (Ok(sender), Ok(target)) = (
            <[u8; 4]>::try_from(arp.sender_protocol_addr()),
            <[u8; 4]>::try_from(arp.target_protocol_addr()),
        ) else {
            return Err(DropReason::Malformed);
        };
        let is_request = arp.operation() == ArpOperation::REQUEST;
        if !sizes_fit || !(is_request || arp.operation() == ArpOperation::REPLY) {
            return Err(DropReason::Malformed);
        }
        if arp.sender_hw_addr() != self.mac {
            return Err(DropReason::SpoofedArp);
        }
        let sender = Ipv4Addr::from(sender);
        // A probe makes whoever is about to take that address give it up, so it
        // is bound to the guest's own too.
        let is_probe = is_request
            && sender.is_unspecified()
            && (self.config.allow_dhcp || self.owns_ipv4(target.into()));
        if is_probe || self.owns_ipv4(sender) {
            Ok(())
        } else {
            Err(DropReason::SpoofedArp)
        }
    }

    pub(super) fn check_ipv4(&self, packet: View<'_>) -> Result<(), DropReason> {
        let header = Ipv4HeaderSlice::from_slice(packet.seen()).map_err(|error| match error {
            HeaderSliceError::Len(_) => packet.short(),
            HeaderSliceError::Content(_) => DropReason::Malformed,
        })?;
        let header_len = header.slice().len();
        let total_len = usize::from(header.total_len());
        if total_len < header_len {
            return Err(DropReason::Malformed);
        }
        let payload = packet.cut(total_len)?.skip(header_len)?;

        let source = header.source_addr();
        let asks_for_address = source.is_unspecified() && self.config.allow_dhcp;
        if !asks_for_address && !self.owns_ipv4(source) {
            return Err(DropReason::SpoofedIpv4);
        }
        if header.fragments_offset().value() != 0 {
            // The first fragment decided; a guest without an address has no
            // business sending fragments.
            return if asks_for_address {
                Err(DropReason::SpoofedIpv4)
            } else {
                Ok(())
            };
        }
        let protocol = header.protocol();
        if payload.len() < transport_header_len(protocol) {
            return Err(if header.more_fragments() {
                DropReason::Fragment
            } else {
                DropReason::Truncated
            });
        }
        let transport = payload.first(transport_header_len(protocol))?;
        let udp = match protocol {
            ip_number::UDP => {
                Some(UdpHeaderSlice::from_slice(transport).map_err(|_| DropReason::Truncated)?)
            }
            _ => None,
        };
        if let Some(udp) = &udp
            && udp.source_port() == DHCP_SERVER
            && !self.config.allow_dhcp_server
        {
            return Err(DropReason::RogueDhcp);
        }
        let is_dhcp_request = udp.is_some_and(|udp| {
            udp.source_port() == DHCP_CLIENT && udp.destination_port() == DHCP_SERVER
        }) && header.destination_addr().is_broadcast()
            && !header.more_fragments();
        if asks_for_address && !is_dhcp_request {
            return Err(DropReason::SpoofedIpv4);
        }
        Ok(())
    }
}
