//! What a guest needs to know about its network, as the host tells it.
//!
//! `host-bridge` fills one per guest, the two control machines carry it,
//! `guest-stack` applies it. [`NetworkConfig::validate`] is the one place that
//! says which configurations make sense; nothing here touches an interface.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::wire::{DecodeErrorKind, EncodeError, OPTION_HEADER_LEN, Options, Writer, required};
use super::{Domain, MAX_DOMAIN_LEN, MAX_NAME_LEN, Name};
use crate::offload::Offloads;

/// Most addresses of each family, and most DNS servers, in a configuration.
pub const MAX_ADDRS: usize = 4;

/// Smallest MTU a link may have, in bytes without the Ethernet header: every
/// IPv4 host takes datagrams of this size (RFC 1122 section 3.3.2).
pub const MIN_MTU: u16 = 576;

/// Smallest MTU of a link that carries IPv6 (RFC 8200 section 5).
pub const MIN_MTU_IPV6: u16 = 1280;

/// Longest body that [`NetworkConfig::write`] makes, in bytes: every list full,
/// every option there, every DNS server IPv6.
pub(crate) const MAX_CONFIG_BODY_LEN: usize = {
    let options = 6 + 3 * MAX_ADDRS + 6;
    let fixed = 4 + 6 + 2 + 1 + 4 + 4 + 4 + 16 + 1 + 1;
    let lists = MAX_ADDRS * (5 + 17 + 16);
    options * OPTION_HEADER_LEN + fixed + lists + MAX_NAME_LEN + MAX_DOMAIN_LEN
};

/// Numbers of the options. A number never changes its meaning.
mod tag {
    pub(super) const SERIAL: u16 = 1;
    pub(super) const MAC: u16 = 2;
    pub(super) const MTU: u16 = 3;
    pub(super) const CARRIER: u16 = 4;
    pub(super) const OFFLOADS_TO_GUEST: u16 = 5;
    pub(super) const OFFLOADS_TO_HOST: u16 = 6;
    pub(super) const V4: u16 = 7;
    pub(super) const V6: u16 = 8;
    pub(super) const GATEWAY4: u16 = 9;
    pub(super) const GATEWAY6: u16 = 10;
    pub(super) const DNS: u16 = 11;
    pub(super) const DHCP4: u16 = 12;
    pub(super) const SLAAC: u16 = 13;
    pub(super) const NAME: u16 = 14;
    pub(super) const DOMAIN: u16 = 15;
}

/// An address and the length of the prefix it shares with its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefixed<A> {
    /// The address.
    pub addr: A,
    /// Length of the on-link prefix in bits: at most 32 or 128.
    pub prefix_len: u8,
}

impl<A> Prefixed<A> {
    /// An address with its prefix.
    pub const fn new(addr: A, prefix_len: u8) -> Self {
        Self { addr, prefix_len }
    }
}

impl<A: fmt::Display> fmt::Display for Prefixed<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix_len)
    }
}

/// Everything a guest is told about its network. It always travels whole: a
/// change is a new configuration with a new serial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Grows by one with every change; the guest acknowledges changes by it.
    pub serial: u32,
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// Longest packet in bytes, without the 14-byte Ethernet header;
    /// from [`MIN_MTU`], or from [`MIN_MTU_IPV6`] where IPv6 is used.
    pub mtu: u16,
    /// Whether the link is up. Without carrier the guest keeps its sockets and
    /// sends nothing.
    pub carrier: bool,
    /// What frames from the host to the guest may leave undone.
    pub offloads_to_guest: Offloads,
    /// What frames from the guest to the host may leave undone.
    pub offloads_to_host: Offloads,
    /// The guest's own IPv4 addresses.
    pub v4: heapless::Vec<Prefixed<Ipv4Addr>, MAX_ADDRS>,
    /// The guest's own IPv6 addresses.
    pub v6: heapless::Vec<Prefixed<Ipv6Addr>, MAX_ADDRS>,
    /// The default router for IPv4.
    pub gateway4: Option<Ipv4Addr>,
    /// The default router for IPv6.
    pub gateway6: Option<Ipv6Addr>,
    /// DNS servers, the preferred one first.
    pub dns: heapless::Vec<IpAddr, MAX_ADDRS>,
    /// Ask for (more) IPv4 addresses by DHCP on the link.
    pub dhcp4: bool,
    /// Make (more) IPv6 addresses from router advertisements (RFC 4862).
    pub slaac: bool,
    /// The guest's host name.
    pub name: Option<Name>,
    /// The domain that short names are looked up in.
    pub domain: Option<Domain>,
}

impl NetworkConfig {
    /// A link that is up and has no addresses and no offloads.
    pub const fn new(mac: [u8; 6], mtu: u16) -> Self {
        Self {
            serial: 0,
            mac,
            mtu,
            carrier: true,
            offloads_to_guest: Offloads::NONE,
            offloads_to_host: Offloads::NONE,
            v4: heapless::Vec::new(),
            v6: heapless::Vec::new(),
            gateway4: None,
            gateway6: None,
            dns: heapless::Vec::new(),
            dhcp4: false,
            slaac: false,
            name: None,
            domain: None,
        }
    }

    /// Whether the configuration gives the guest IPv6 on this link.
    pub fn uses_ipv6(&self) -> bool {
        !self.v6.is_empty() || self.gateway6.is_some() || self.slaac
    }

    /// Whether the configuration makes sense. Both machines check what they
    /// send and what they receive.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            return Err(ConfigError::Mac);
        }
        if self.mtu < MIN_MTU {
            return Err(ConfigError::MtuTooSmall);
        }
        if self.uses_ipv6() && self.mtu < MIN_MTU_IPV6 {
            return Err(ConfigError::MtuTooSmallForIpv6);
        }
        let v4 = self.v4.iter().map(|a| (IpAddr::V4(a.addr), a.prefix_len));
        let v6 = self.v6.iter().map(|a| (IpAddr::V6(a.addr), a.prefix_len));
        for (index, (addr, prefix_len)) in v4.clone().chain(v6.clone()).enumerate() {
            let longest = if addr.is_ipv4() { 32 } else { 128 };
            if prefix_len > longest {
                return Err(ConfigError::Prefix(addr));
            }
            if !is_host_address(addr) {
                return Err(ConfigError::Address(addr));
            }
            let mut earlier = v4.clone().chain(v6.clone()).take(index);
            if earlier.any(|(other, _)| other == addr) {
                return Err(ConfigError::Duplicate(addr));
            }
        }
        let gateways = self.gateway4.map(IpAddr::V4).into_iter();
        for gateway in gateways.chain(self.gateway6.map(IpAddr::V6)) {
            let own = v4
                .clone()
                .chain(v6.clone())
                .any(|(addr, _)| addr == gateway);
            if own || !is_host_address(gateway) {
                return Err(ConfigError::Gateway(gateway));
            }
        }
        // A resolver on the guest itself is allowed, so loopback is too.
        let bad_dns = |addr: &&IpAddr| !addr.is_loopback() && !is_host_address(**addr);
        if let Some(server) = self.dns.iter().find(bad_dns) {
            return Err(ConfigError::Dns(*server));
        }
        if self.name.as_ref().is_some_and(|name| !is_label(name)) {
            return Err(ConfigError::Name);
        }
        if self
            .domain
            .as_ref()
            .is_some_and(|d| !d.split('.').all(is_label))
        {
            return Err(ConfigError::Domain);
        }
        Ok(())
    }

    pub(crate) fn differs_only_in_serial(&self, other: &Self) -> bool {
        let serial = other.serial;
        Self {
            serial,
            ..self.clone()
        } == *other
    }

    pub(crate) fn write(&self, w: &mut Writer<'_>) -> Result<(), EncodeError> {
        w.u32(tag::SERIAL, self.serial)?;
        w.bytes(tag::MAC, &self.mac)?;
        w.u16(tag::MTU, self.mtu)?;
        w.bool(tag::CARRIER, self.carrier)?;
        w.offloads(tag::OFFLOADS_TO_GUEST, self.offloads_to_guest)?;
        w.offloads(tag::OFFLOADS_TO_HOST, self.offloads_to_host)?;
        for a in &self.v4 {
            w.prefixed(tag::V4, a.addr.into(), a.prefix_len)?;
        }
        for a in &self.v6 {
            w.prefixed(tag::V6, a.addr.into(), a.prefix_len)?;
        }
        if let Some(gateway) = self.gateway4 {
            w.ip(tag::GATEWAY4, gateway.into())?;
        }
        if let Some(gateway) = self.gateway6 {
            w.ip(tag::GATEWAY6, gateway.into())?;
        }
        for server in &self.dns {
            w.ip(tag::DNS, *server)?;
        }
        w.bool(tag::DHCP4, self.dhcp4)?;
        w.bool(tag::SLAAC, self.slaac)?;
        if let Some(name) = &self.name {
            w.text(tag::NAME, name, MAX_NAME_LEN)?;
        }
        if let Some(domain) = &self.domain {
            w.text(tag::DOMAIN, domain, MAX_DOMAIN_LEN)?;
        }
        Ok(())
    }

    pub(crate) fn read(options: Options<'_>) -> Result<Self, DecodeErrorKind> {
        let (mut serial, mut mac, mut mtu, mut carrier) = (None, None, None, None);
        let (mut to_guest, mut to_host, mut dhcp4, mut slaac) = (None, None, None, None);
        let mut config = Self::new([0; 6], 0);
        for option in options {
            let o = option?;
            match o.number() {
                tag::SERIAL => o.once(&mut serial, o.u32()?)?,
                tag::MAC => o.once(&mut mac, o.array()?)?,
                tag::MTU => o.once(&mut mtu, o.u16()?)?,
                tag::CARRIER => o.once(&mut carrier, o.bool()?)?,
                tag::OFFLOADS_TO_GUEST => o.once(&mut to_guest, o.offloads()?)?,
                tag::OFFLOADS_TO_HOST => o.once(&mut to_host, o.offloads()?)?,
                tag::V4 => {
                    let (addr, prefix_len) = o.ipv4_prefixed()?;
                    o.append(&mut config.v4, Prefixed { addr, prefix_len })?;
                }
                tag::V6 => {
                    let (addr, prefix_len) = o.ipv6_prefixed()?;
                    o.append(&mut config.v6, Prefixed { addr, prefix_len })?;
                }
                tag::GATEWAY4 => o.once(&mut config.gateway4, o.ipv4()?)?,
                tag::GATEWAY6 => o.once(&mut config.gateway6, o.ipv6()?)?,
                tag::DNS => o.append(&mut config.dns, o.ip()?)?,
                tag::DHCP4 => o.once(&mut dhcp4, o.bool()?)?,
                tag::SLAAC => o.once(&mut slaac, o.bool()?)?,
                tag::NAME => {
                    let name = o.text(MAX_NAME_LEN)?;
                    let name = name.try_into().map_err(|_| o.bad_value())?;
                    o.once(&mut config.name, name)?;
                }
                tag::DOMAIN => {
                    let domain = o.text(MAX_DOMAIN_LEN)?;
                    let domain = domain.try_into().map_err(|_| o.bad_value())?;
                    o.once(&mut config.domain, domain)?;
                }
                _ => o.skip()?,
            }
        }
        Ok(Self {
            serial: required(serial, tag::SERIAL)?,
            mac: required(mac, tag::MAC)?,
            mtu: required(mtu, tag::MTU)?,
            carrier: carrier.unwrap_or(true),
            offloads_to_guest: to_guest.unwrap_or_default(),
            offloads_to_host: to_host.unwrap_or_default(),
            dhcp4: dhcp4.unwrap_or_default(),
            slaac: slaac.unwrap_or_default(),
            ..config
        })
    }
}

/// Whether the address can be one host's on a link.
fn is_host_address(addr: IpAddr) -> bool {
    let broadcast = addr == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(addr.is_unspecified() || addr.is_multicast() || addr.is_loopback() || broadcast)
}

/// Whether the text is one label of a name (RFC 1123 section 2.1; underscores
/// are let through, as everywhere).
fn is_label(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=MAX_NAME_LEN).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A configuration that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigError {
    /// The Ethernet address is zero or a group address.
    Mac,
    /// The MTU is below [`MIN_MTU`].
    MtuTooSmall,
    /// IPv6 is configured and the MTU is below [`MIN_MTU_IPV6`].
    MtuTooSmallForIpv6,
    /// The prefix of this address is longer than the address.
    Prefix(IpAddr),
    /// This address cannot be a host's.
    Address(IpAddr),
    /// This address stands twice.
    Duplicate(IpAddr),
    /// This gateway is the guest's own address or cannot be a router's.
    Gateway(IpAddr),
    /// This DNS server's address cannot be a host's.
    Dns(IpAddr),
    /// The host name is empty or has characters that host names have not.
    Name,
    /// The domain has a label that is empty, too long, or has characters that
    /// domain names have not.
    Domain,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac => f.write_str("the Ethernet address is zero or a group address"),
            Self::MtuTooSmall => write!(f, "the MTU is below {MIN_MTU} bytes"),
            Self::MtuTooSmallForIpv6 => {
                write!(
                    f,
                    "IPv6 is configured and the MTU is below {MIN_MTU_IPV6} bytes"
                )
            }
            Self::Prefix(addr) => write!(f, "the prefix of {addr} is longer than the address"),
            Self::Address(addr) => write!(f, "{addr} cannot be a guest's address"),
            Self::Duplicate(addr) => write!(f, "{addr} is configured twice"),
            Self::Gateway(addr) => write!(f, "{addr} cannot be the guest's gateway"),
            Self::Dns(addr) => write!(f, "{addr} cannot be a DNS server's address"),
            Self::Name => f.write_str("the host name is not a valid label"),
            Self::Domain => f.write_str("the domain is not a valid name"),
        }
    }
}

impl core::error::Error for ConfigError {}
