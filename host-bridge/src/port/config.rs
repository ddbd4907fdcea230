//! What a port is made from, and what may be changed while it runs.
//!
//! Made by whoever attaches a guest; the port's task applies it. Decides
//! nothing about transports.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use shm_link::control::{NetworkConfig, Prefixed};

use crate::filter::FilterConfig;
use crate::impair::ImpairConfig;
use crate::limit::{LimitConfig, Limits};
use crate::log_limit::PortLog;
use crate::store::Record;
use crate::tap::TapSource;

/// Everything a port needs besides the guest itself.
#[derive(Debug)]
pub struct PortConfig {
    /// The port's name in logs and commands; unique on a bridge.
    pub name: String,
    /// Where its TAP comes from.
    pub tap: TapSource,
    /// What the guest is told. Its MTU is the most that this port allows.
    pub network: NetworkConfig,
    /// The Linux bridge to put the TAP into; default none.
    pub master: Option<String>,
    /// Addresses for the host's side of the TAP; default none.
    pub host_addresses: Vec<IpNet>,
    /// Whether frames may leave checksums and segmentation to the other side;
    /// default yes. What is used is what kernel and guest can do as well.
    pub offloads: bool,
    /// What the guest's frames are checked for.
    pub filter: FilterConfig,
    /// How much the guest may move; default no limits.
    pub limits: Limits,
    /// Fault injection from guest to host; default none.
    pub impair_to_host: ImpairConfig,
    /// Fault injection from host to guest; default none.
    pub impair_to_guest: ImpairConfig,
    /// Where changes are noted, and those of before are found; default nowhere. The
    /// daemon's own: others cannot make one.
    pub record: Option<Record>,
    /// Bounds the lines about this port beyond its life; default for its life.
    pub log: Option<PortLog>,
}

impl PortConfig {
    /// A port with a TAP of its own and nothing else.
    pub fn new(name: impl Into<String>, network: NetworkConfig) -> Self {
        Self {
            name: name.into(),
            tap: TapSource::Create { name: None },
            network,
            master: None,
            host_addresses: Vec::new(),
            offloads: true,
            filter: FilterConfig::default(),
            limits: Limits::default(),
            impair_to_host: ImpairConfig::default(),
            impair_to_guest: ImpairConfig::default(),
            record: None,
            log: None,
        }
    }
}

/// A change to a running port. What is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PortChange {
    /// Longest packet without the Ethernet header; never more than the guest
    /// can do.
    pub mtu: Option<u16>,
    /// Whether the link is up.
    pub carrier: Option<bool>,
    /// The guest's addresses, all of them.
    pub addresses: Option<Vec<IpNet>>,
    /// The default routers, all of them.
    pub gateways: Option<Vec<IpAddr>>,
    /// How much may pass from guest to host.
    pub limit_to_host: Option<LimitConfig>,
    /// How much may pass from host to guest.
    pub limit_to_guest: Option<LimitConfig>,
    /// Fault injection from guest to host.
    pub impair_to_host: Option<ImpairConfig>,
    /// Fault injection from host to guest.
    pub impair_to_guest: Option<ImpairConfig>,
}

impl PortChange {
    /// Adds a later change: what it does not say stays.
    pub(crate) fn merge(&mut self, later: &Self) {
        let later = later.clone();
        self.mtu = later.mtu.or(self.mtu);
        self.carrier = later.carrier.or(self.carrier);
        self.addresses = later.addresses.or(self.addresses.take());
        self.gateways = later.gateways.or(self.gateways.take());
        self.limit_to_host = later.limit_to_host.or(self.limit_to_host);
        self.limit_to_guest = later.limit_to_guest.or(self.limit_to_guest);
        self.impair_to_host = later.impair_to_host.or(self.impair_to_host.take());
        self.impair_to_guest = later.impair_to_guest.or(self.impair_to_guest.take());
    }

    pub(super) fn apply(&self, network: &mut NetworkConfig) -> Result<(), String> {
        let too_many = |_| "a guest has at most four addresses of each family".to_owned();
        if let Some(mtu) = self.mtu {
            network.mtu = mtu;
        }
        if let Some(carrier) = self.carrier {
            network.carrier = carrier;
        }
        if let Some(addresses) = &self.addresses {
            network.v4.clear();
            network.v6.clear();
            for net in addresses {
                match net {
                    IpNet::V4(net) => network
                        .v4
                        .push(Prefixed::new(net.addr(), net.prefix_len()))
                        .map_err(|_| too_many(()))?,
                    IpNet::V6(net) => network
                        .v6
                        .push(Prefixed::new(net.addr(), net.prefix_len()))
                        .map_err(|_| too_many(()))?,
                }
            }
        }
        if let Some(gateways) = &self.gateways {
            let first4 = |a: &IpAddr| match a {
                IpAddr::V4(a) => Some(*a),
                IpAddr::V6(_) => None,
            };
            let first6 = |a: &IpAddr| match a {
                IpAddr::V6(a) => Some(*a),
                IpAddr::V4(_) => None,
            };
            network.gateway4 = gateways.iter().find_map(first4);
            network.gateway6 = gateways.iter().find_map(first6);
        }
        Ok(())
    }
}
