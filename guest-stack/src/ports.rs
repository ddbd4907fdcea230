//! Which local addresses and ports are taken, and by which slot.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use hashbrown::HashMap;
use smoltcp::wire::IpAddress;

use crate::flow::Seeded;

/// The local side of a listener or a UDP socket.
///
/// A bare port means every address of both IP versions; `0.0.0.0` every IPv4
/// address; `[::]` every IPv6 address (and no IPv4 one, as with `IPV6_V6ONLY`).
/// Port 0 means a free port of the stack's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalAddr {
    pub(crate) ip: LocalIp,
    pub(crate) port: u16,
}

/// The address part of a [`LocalAddr`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LocalIp {
    Any,
    AnyV4,
    AnyV6,
    One(IpAddress),
}

impl LocalIp {
    /// How closely an address matches; `None`: not at all.
    fn matches(self, address: &IpAddress) -> Option<u8> {
        match (self, address) {
            (Self::One(own), _) => (own == *address).then_some(2),
            (Self::AnyV4, IpAddress::Ipv4(_)) | (Self::AnyV6, IpAddress::Ipv6(_)) => Some(1),
            (Self::AnyV4, IpAddress::Ipv6(_)) | (Self::AnyV6, IpAddress::Ipv4(_)) => None,
            (Self::Any, _) => Some(0),
        }
    }

    fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::One(own), other) | (other, Self::One(own)) => other.matches(&own).is_some(),
            (Self::AnyV4, Self::AnyV4) | (Self::AnyV6, Self::AnyV6) => true,
            (Self::AnyV4, Self::AnyV6) | (Self::AnyV6, Self::AnyV4) => false,
        }
    }

    /// The address that `local_addr` reports.
    pub(crate) fn address(self) -> IpAddr {
        match self {
            Self::Any | Self::AnyV6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            Self::AnyV4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::One(address) => address.into(),
        }
    }
}

impl From<u16> for LocalAddr {
    fn from(port: u16) -> Self {
        Self {
            ip: LocalIp::Any,
            port,
        }
    }
}

impl From<SocketAddr> for LocalAddr {
    fn from(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            ip if !ip.is_unspecified() => LocalIp::One(ip.into()),
            IpAddr::V4(_) => LocalIp::AnyV4,
            IpAddr::V6(_) => LocalIp::AnyV6,
        };
        Self {
            ip,
            port: address.port(),
        }
    }
}

impl From<SocketAddrV4> for LocalAddr {
    fn from(address: SocketAddrV4) -> Self {
        SocketAddr::V4(address).into()
    }
}

impl From<SocketAddrV6> for LocalAddr {
    fn from(address: SocketAddrV6) -> Self {
        SocketAddr::V6(address).into()
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for LocalAddr {
    fn from((ip, port): (I, u16)) -> Self {
        SocketAddr::new(ip.into(), port).into()
    }
}

/// The taken ports of one protocol.
pub(crate) struct Ports {
    taken: HashMap<u16, Vec<(LocalIp, u32)>, Seeded>,
}

impl Ports {
    pub(crate) fn new(hasher: Seeded) -> Self {
        Self {
            taken: HashMap::with_hasher(hasher),
        }
    }

    /// Whether the port is free on every address that `ip` covers.
    pub(crate) fn is_free(&self, local: LocalAddr) -> bool {
        let taken = self.taken.get(&local.port);
        taken.is_none_or(|taken| taken.iter().all(|(ip, _)| !ip.overlaps(local.ip)))
    }

    pub(crate) fn take(&mut self, local: LocalAddr, slot: u32) {
        self.taken
            .entry(local.port)
            .or_default()
            .push((local.ip, slot));
    }

    pub(crate) fn release(&mut self, port: u16, slot: u32) {
        if let Some(taken) = self.taken.get_mut(&port) {
            taken.retain(|(_, owner)| *owner != slot);
            if taken.is_empty() {
                self.taken.remove(&port);
            }
        }
    }

    /// The slot that what arrives at this address and port belongs to: the one
    /// bound most closely.
    pub(crate) fn find(&self, address: &IpAddress, port: u16) -> Option<u32> {
        let taken = self.taken.get(&port)?.iter();
        let matching = taken.filter_map(|(ip, slot)| Some((ip.matches(address)?, *slot)));
        matching
            .max_by_key(|(closeness, _)| *closeness)
            .map(|(_, slot)| slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_binding_wins_and_overlapping_ones_are_refused() {
        let mut ports = Ports::new(Seeded::new([0, 0]));
        let one = (Ipv4Addr::new(10, 0, 0, 1), 80);
        let two = (Ipv4Addr::new(10, 0, 0, 2), 80);
        assert!(ports.is_free(one.into()));
        ports.take(one.into(), 1);
        assert!(!ports.is_free(one.into()));
        assert!(ports.is_free(two.into()));
        assert!(!ports.is_free((Ipv4Addr::UNSPECIFIED, 80).into()));
        assert!(!ports.is_free(80.into()));
        assert!(ports.is_free(81.into()));
        assert!(ports.is_free((Ipv6Addr::UNSPECIFIED, 80).into()));
        ports.take((Ipv6Addr::UNSPECIFIED, 80).into(), 2);
        // Forced in, to see the order.
        ports.take(80.into(), 3);
        assert_eq!(ports.find(&one.0.into(), 80), Some(1));
        assert_eq!(ports.find(&two.0.into(), 80), Some(3));
        assert_eq!(ports.find(&Ipv6Addr::LOCALHOST.into(), 80), Some(2));
        ports.release(80, 1);
        assert_eq!(ports.find(&one.0.into(), 80), Some(3));
        assert_eq!(ports.find(&one.0.into(), 81), None);
    }
}
