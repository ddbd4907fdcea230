//! `[[port]]` of the configuration file: one guest with a socket and an
//! identity of its own.
//!
//! What such a port leaves out of MTU, DNS servers, ring size, users, filter and fault
//! injection holds as for the guests that come and go. Identity is never
//! inherited: addresses, bridge and names are the port's own.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use shm_link::control::{NetworkConfig, Prefixed};
use shm_link::linux::address::Address;

use super::options::from_text;
use super::{SettingsError, SocketSettings, check_name, check_rings};
use crate::filter::FilterConfig;
use crate::impair::ImpairConfig;
use crate::limit::LimitConfig;
use crate::plan::Assignment;
use crate::server::{GivenTap, GuestPolicy, Places, Visitors};

/// One `[[port]]` table.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PortTable {
    /// The port's name; needed.
    pub name: String,
    /// Where its guest attaches; needed.
    #[serde(deserialize_with = "from_text")]
    pub socket: Option<Address>,
    /// The guest's MAC address; default: made from the name.
    #[serde(deserialize_with = "from_text")]
    pub mac: Option<Mac>,
    /// The guest's addresses with their prefixes, at most four of each family.
    pub addresses: Vec<IpNet>,
    /// The guest's default routers, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// Addresses for the host's side of the TAP. Default: without a bridge the
    /// gateways, because then the host is the router; with one none.
    pub host_addresses: Option<Vec<IpNet>>,
    /// The Linux bridge that the TAP joins; default none.
    pub bridge: Option<String>,
    /// The name of the TAP that is made for the guest; default the port's name.
    pub tap: Option<String>,
    /// A persistent TAP to use instead.
    pub existing_tap: Option<String>,
    /// Longest packet in bytes, without the Ethernet header.
    pub mtu: Option<u16>,
    /// DNS servers the guest is told.
    pub dns: Option<Vec<IpAddr>>,
    /// Whether the guest asks for (more) IPv4 addresses by DHCP.
    pub dhcp: bool,
    /// Whether the guest makes (more) IPv6 addresses from router advertisements.
    pub slaac: bool,
    /// The guest's host name; default none.
    pub hostname: Option<String>,
    /// The domain in which the guest looks up short names; default none.
    pub domain: Option<String>,
    /// Bytes of each ring of frames.
    pub ring_bytes: Option<usize>,
    /// Users whose guest may attach, besides the daemon's own and root.
    pub allow_users: Option<Vec<u32>>,
    /// What the guest's frames are checked for.
    pub filter: Option<FilterConfig>,
    /// How much the guest may send.
    pub limit_to_host: Option<LimitConfig>,
    /// How much it may be sent.
    pub limit_to_guest: Option<LimitConfig>,
    /// Fault injection from guest to host.
    pub impair_to_host: Option<ImpairConfig>,
    /// Fault injection from host to guest.
    pub impair_to_guest: Option<ImpairConfig>,
}

/// What ports inherit.
pub(super) struct Inherited<'a> {
    pub(super) mtu: u16,
    pub(super) dns: &'a [IpAddr],
    pub(super) policy: &'a GuestPolicy,
}

impl PortTable {
    pub(super) fn settings(
        self,
        inherited: &Inherited<'_>,
    ) -> Result<SocketSettings, SettingsError> {
        let port = self.name.clone();
        let wrong = |field: &str, why: String| {
            let field = format!("port {port:?}, {field}");
            SettingsError::Field { field, why }
        };
        check_name(&self.name, 15).map_err(|why| wrong("name", why))?;
        let address = self.socket.clone().ok_or_else(|| {
            wrong(
                "socket",
                "it is missing: say where the guest attaches".into(),
            )
        })?;
        let network = self.network(inherited, &wrong)?;
        let host_addresses = match &self.host_addresses {
            Some(given) => given.clone(),
            None if self.bridge.is_some() => Vec::new(),
            None => self.gateways_with_prefix(&wrong)?,
        };
        let tap = match (self.tap, self.existing_tap) {
            (Some(_), Some(_)) => {
                let why = "a port has one TAP: give tap (it is made) or existing_tap (it stays)";
                return Err(wrong("tap and existing_tap", why.into()));
            }
            (None, Some(name)) => GivenTap::Existing(name),
            (Some(name), None) => GivenTap::New(name),
            (None, None) => GivenTap::New(self.name.clone()),
        };
        let mut policy = inherited.policy.clone();
        policy.taps = vec![tap];
        if let Some(bytes) = self.ring_bytes {
            (policy.layout.to_host_bytes, policy.layout.to_guest_bytes) = (bytes, bytes);
        }
        check_rings(&policy.layout, network.mtu).map_err(|why| wrong("ring_bytes", why))?;
        if let Some(also) = self.allow_users {
            policy.visitors = Visitors { also };
        }
        if let Some(filter) = self.filter {
            policy.filter = filter;
        }
        if let Some(limit) = self.limit_to_host {
            policy.limits.to_host = limit;
        }
        if let Some(limit) = self.limit_to_guest {
            policy.limits.to_guest = limit;
        }
        if let Some(impair) = self.impair_to_host {
            policy.impair_to_host = impair;
        }
        if let Some(impair) = self.impair_to_guest {
            policy.impair_to_guest = impair;
        }
        let assignment = Assignment {
            name: self.name,
            network,
            host_addresses,
            master: self.bridge,
        };
        Ok(SocketSettings {
            address,
            stream: None,
            serials: Vec::new(),
            places: Places::One(Box::new(assignment)),
            policy,
        })
    }

    fn network(
        &self,
        inherited: &Inherited<'_>,
        wrong: &impl Fn(&str, String) -> SettingsError,
    ) -> Result<NetworkConfig, SettingsError> {
        let mac = self.mac.unwrap_or_else(|| Mac::from_name(&self.name));
        let mut network = NetworkConfig::new(mac.0, self.mtu.unwrap_or(inherited.mtu));
        let four = |field: &str, what: &str| wrong(field, format!("at most four {what}"));
        for net in &self.addresses {
            let full = match net {
                IpNet::V4(net) => network
                    .v4
                    .push(Prefixed::new(net.addr(), net.prefix_len()))
                    .is_err(),
                IpNet::V6(net) => network
                    .v6
                    .push(Prefixed::new(net.addr(), net.prefix_len()))
                    .is_err(),
            };
            if full {
                return Err(four("addresses", "addresses of each family"));
            }
        }
        for gateway in &self.gateways {
            let before = match *gateway {
                IpAddr::V4(gateway) => network.gateway4.replace(gateway).map(IpAddr::V4),
                IpAddr::V6(gateway) => network.gateway6.replace(gateway).map(IpAddr::V6),
            };
            if let Some(before) = before {
                let why = format!(
                    "{before} and {gateway} are of one family: a guest has one default router of each"
                );
                return Err(wrong("gateways", why));
            }
        }
        for &server in self.dns.as_deref().unwrap_or(inherited.dns) {
            if network.dns.push(server).is_err() {
                return Err(four("dns", "DNS servers"));
            }
        }
        (network.dhcp4, network.slaac) = (self.dhcp, self.slaac);
        if let Some(name) = &self.hostname {
            let name = name.as_str().try_into();
            network.name = Some(name.map_err(|_| wrong("hostname", "it is too long".into()))?);
        }
        if let Some(domain) = &self.domain {
            let domain = domain.as_str().try_into();
            network.domain = Some(domain.map_err(|_| wrong("domain", "it is too long".into()))?);
        }
        network
            .validate()
            .map_err(|error| wrong("network", error.to_string()))?;
        Ok(network)
    }

    /// The host's addresses, where the host itself is the router.
    fn gateways_with_prefix(
        &self,
        wrong: &impl Fn(&str, String) -> SettingsError,
    ) -> Result<Vec<IpNet>, SettingsError> {
        let prefix_of = |gateway: &IpAddr| {
            let subnet = self.addresses.iter().find(|net| net.contains(gateway));
            let with_prefix = subnet.and_then(|net| IpNet::new(*gateway, net.prefix_len()).ok());
            with_prefix.ok_or_else(|| {
                let why = format!(
                    "{gateway} is in none of the port's subnets, so the host cannot have it: \
                     correct it, or say host_addresses yourself"
                );
                wrong("gateways", why)
            })
        };
        self.gateways.iter().map(prefix_of).collect()
    }
}

/// An Ethernet address as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Locally administered, the same every time, unlike those of guests that
    /// come and go.
    fn from_name(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        Self([0x02, 0x53, 0x4d, digest[0], digest[1], digest[2]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|byte| format!("{byte:02x}")).join(":"))
    }
}

impl FromStr for Mac {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "a MAC address is expected, such as 02:12:34:56:78:9a";
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().ok_or(FORM)?;
            let is_hex = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| is_hex)
                .ok_or(FORM)?;
        }
        match parts.next() {
            None => Ok(Self(mac)),
            Some(_) => Err(FORM),
        }
    }
}
