//! Anti-spoofing: may this guest send this frame?
//!
//! The guest→host pump calls [`Filter::check`] with a private copy of the
//! frame's first [`HEAD_LEN`] bytes, never with bytes the guest can still
//! write. It is a pure function: it counts, logs and remembers nothing; the
//! pump counts the [`DropReason`]. When the guest's addresses change, the port
//! builds a new filter.
//!
//! | layer | passes |
//! | --- | --- |
//! | Ethernet | source MAC is the guest's, destination not reserved for bridges, no VLAN tag, EtherType IPv4, ARP or IPv6 |
//! | ARP | request or reply in the guest's own name; probes from 0.0.0.0 (RFC 5227) for its own addresses |
//! | IPv4 | source is the guest's; not from port 67; DHCP requests from 0.0.0.0 if allowed |
//! | IPv6 | source is the guest's, or the link-local address made from its MAC; `::` only for DAD, RS and MLD; not from port 547 |
//! | ND | hop limit 255, unfragmented, targets and link-layer options the guest's own; no router advertisement or redirect |
//!
//! Link-local addresses that are not made from the MAC pass only if they are
//! listed: one that the guest merely announced could be its neighbour's.

mod config;
mod ipv4;
mod ipv6;
mod nd;
mod view;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{EtherType, Ethernet2Slice, SingleVlanSlice, ether_type};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use self::config::FilterConfig;
use self::view::View;
use crate::counters::DropReason;

/// How many of a frame's first bytes the filter wants to see. Enough for an
/// IPv6 header, a hop-by-hop header and a neighbour solicitation with its
/// options, or any IPv4 header with all options; a longer chain is dropped.
pub const HEAD_LEN: usize = 256;

/// Length of an Ethernet header.
const ETHERNET_LEN: usize = 14;
/// Length of a VLAN tag with the EtherType behind it.
const VLAN_TAG_LEN: usize = 4;
/// Tags a frame may carry where VLANs are allowed (IEEE 802.1ad).
const MAX_VLAN_TAGS: usize = 2;
/// The older EtherType of an outer VLAN tag.
const QINQ: EtherType = EtherType(0x9100);

/// What the filter says about a frame.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Let it through.
    Pass,
    /// Drop it, and count why.
    Drop(DropReason),
}

impl From<Result<(), DropReason>> for Verdict {
    fn from(checked: Result<(), DropReason>) -> Self {
        match checked {
            Ok(()) => Self::Pass,
            Err(reason) => Self::Drop(reason),
        }
    }
}

/// Whether a frame goes to a group: the lowest bit of its first byte says so.
pub(crate) fn is_to_group(head: &[u8]) -> bool {
    head.first().is_some_and(|first| first & 1 == 1)
}

/// The filter of one port.
#[derive(Debug, Clone)]
pub struct Filter {
    config: FilterConfig,
    mac: [u8; 6],
    /// The last 64 bits of an address made from the MAC.
    interface_id: [u8; 8],
    ipv4: Vec<Ipv4Net>,
    ipv6: Vec<Ipv6Net>,
}

impl Filter {
    /// A filter for a guest that owns `mac` and `addresses`.
    pub fn new(config: FilterConfig, mac: [u8; 6], addresses: &[IpAddr]) -> Self {
        let mut ipv4 = Vec::new();
        let mut ipv6 = Vec::new();
        let own = addresses.iter().map(|&address| IpNet::from(address));
        for net in own.chain(config.allow_sources.iter().copied()) {
            match net {
                IpNet::V4(net) => ipv4.push(net),
                IpNet::V6(net) => ipv6.push(net),
            }
        }
        Self {
            config,
            mac,
            interface_id: interface_id(mac),
            ipv4,
            ipv6,
        }
    }

    /// Whether the guest may send this frame. `head` is a private copy of its
    /// first bytes, [`HEAD_LEN`] or the whole frame if that is shorter;
    /// `frame_len` is the length of the whole frame, Ethernet header included.
    pub fn check(&self, head: &[u8], frame_len: usize) -> Verdict {
        self.check_frame(View::new(head, frame_len)).into()
    }

    /// How many frames to groups may pass per second; 0: all. Whoever sends them on
    /// counts.
    pub(crate) fn groups_per_second(&self) -> u32 {
        match self.config.enabled {
            true => self.config.groups_per_second,
            false => 0,
        }
    }

    /// Whether a frame from the host belongs to the guest: addressed to its MAC
    /// address or to a group. `head` is a private copy of at least the first 14
    /// bytes.
    pub fn check_to_guest(&self, head: &[u8]) -> Verdict {
        let Some((destination, _)) = head.split_first_chunk::<6>() else {
            return Verdict::Drop(DropReason::Truncated);
        };
        if !self.config.enabled || is_to_group(head) || *destination == self.mac {
            Verdict::Pass
        } else {
            Verdict::Drop(DropReason::NotForGuest)
        }
    }

    fn check_frame(&self, frame: View<'_>) -> Result<(), DropReason> {
        let ethernet = Ethernet2Slice::from_slice_without_fcs(frame.seen())
            .map_err(|_| DropReason::Truncated)?;
        if !self.config.enabled {
            return Ok(());
        }
        if ethernet.source() != self.mac {
            return Err(DropReason::SpoofedMac);
        }
        // IEEE 802.1Q table 8-1: never forwarded by bridges, spoken between them.
        if matches!(ethernet.destination(), [0x01, 0x80, 0xc2, 0, 0, 0..=0x0f]) {
            return Err(DropReason::ReservedMulticast);
        }
        let (ether_type, packet) =
            self.strip_vlan(ethernet.ether_type(), frame.skip(ETHERNET_LEN)?)?;
        match ether_type {
            ether_type::IPV4 => self.check_ipv4(packet),
            ether_type::ARP => self.check_arp(packet),
            ether_type::IPV6 => self.check_ipv6(packet),
            other if self.config.allow_ethertypes.contains(&other.0) => Ok(()),
            _ => Err(DropReason::EtherType),
        }
    }

    fn strip_vlan<'a>(
        &self,
        mut ether_type: EtherType,
        mut packet: View<'a>,
    ) -> Result<(EtherType, View<'a>), DropReason> {
        let mut tags = 0;
        while is_vlan(ether_type) {
            if !self.config.allow_vlan || tags == MAX_VLAN_TAGS {
                return Err(DropReason::Vlan);
            }
            let tag = SingleVlanSlice::from_slice(packet.seen()).map_err(|_| packet.short())?;
            ether_type = tag.ether_type();
            packet = packet.skip(VLAN_TAG_LEN)?;
            tags += 1;
        }
        Ok((ether_type, packet))
    }

    /// Whether the guest may speak for this IPv4 address.
    fn owns_ipv4(&self, address: Ipv4Addr) -> bool {
        let usable =
            !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast();
        usable && self.ipv4.iter().any(|net| net.contains(&address))
    }

    /// Whether the guest may speak for this IPv6 address.
    fn owns_ipv6(&self, address: Ipv6Addr) -> bool {
        if address.is_unspecified() || address.is_multicast() {
            return false;
        }
        let octets = address.octets();
        let from_mac = octets[8..] == self.interface_id
            && (self.config.allow_slaac || octets[..8] == [0xfe, 0x80, 0, 0, 0, 0, 0, 0]);
        from_mac || self.ipv6.iter().any(|net| net.contains(&address))
    }
}

fn is_vlan(ether_type: EtherType) -> bool {
    matches!(
        ether_type,
        ether_type::VLAN_TAGGED_FRAME | ether_type::PROVIDER_BRIDGING | QINQ
    )
}

/// The modified EUI-64 interface identifier (RFC 4291, appendix A).
fn interface_id([a, b, c, d, e, f]: [u8; 6]) -> [u8; 8] {
    [a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}
