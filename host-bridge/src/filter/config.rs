//! What an administrator may loosen in the filter.
//!
//! Read from the configuration file of the daemon; [`Filter`](super::Filter)
//! is built from it and from the addresses that the port was given.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The policy of one port's filter. The default is the strictest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilterConfig {
    /// Whether frames are checked at all. Default true; false lets a guest send
    /// whatever it likes, in any other guest's name.
    pub enabled: bool,
    /// Sources the guest may use besides its own addresses: subnets routed to
    /// it, or the subnet in which DHCP gives it an address the bridge does not
    /// know. Default none. `fe80::/64` lets it use any link-local address.
    pub allow_sources: Vec<IpNet>,
    /// Whether the guest may ask for an address by DHCPv4 (send from 0.0.0.0,
    /// port 68 to 67, by broadcast) and probe for any address by ARP. Default
    /// false. The address it gets must be among `allow_sources`.
    pub allow_dhcp: bool,
    /// Whether the guest may use any IPv6 address that ends in the interface
    /// identifier made from its MAC address (RFC 4862, RFC 4291 appendix A).
    /// Default false.
    pub allow_slaac: bool,
    /// Whether the guest may answer as a DHCP server. Default false.
    pub allow_dhcp_server: bool,
    /// Whether the guest may send IPv6 router advertisements and redirects.
    /// Default false.
    pub allow_router: bool,
    /// Whether frames may carry up to two VLAN tags. What is inside is checked
    /// as if there were none. Default false.
    pub allow_vlan: bool,
    /// EtherTypes allowed besides IPv4, ARP and IPv6. Only the MAC addresses of
    /// such frames are checked. Default none.
    pub allow_ethertypes: Vec<u16>,
    /// How many frames per second the guest may send to groups (broadcast and
    /// multicast), after a burst of as many; more are dropped. A bridge hands each
    /// to every port, so one guest's would be work for all others. Default 1000;
    /// 0 is no limit.
    pub groups_per_second: u32,
}

/// What a guest sends that looks for all others of a network at once, and little
/// for those that get it.
pub(crate) const GROUPS_PER_SECOND: u32 = 1000;

impl Default for FilterConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            allow_sources: Vec::new(),
            allow_dhcp: false,
            allow_slaac: false,
            allow_dhcp_server: false,
            allow_router: false,
            allow_vlan: false,
            allow_ethertypes: Vec::new(),
            groups_per_second: GROUPS_PER_SECOND,
        }
    }
}
