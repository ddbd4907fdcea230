//! What a stack is told: at its birth ([`StackConfig`]) and, any number of
//! times later, about the network it sits on ([`NetConfig`]).
//!
//! Nothing here does anything; [`crate::stack::Stack`] applies it.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shm_link::control::config::{MIN_MTU, MIN_MTU_IPV6};
use shm_link::offload::Offloads;
use smoltcp::time::Duration;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv6Cidr};

use crate::error::ConfigError;
use crate::tcp::options::TcpOptions;

/// Most addresses one configuration can carry. One place of smoltcp's table is
/// kept for the IPv6 link-local address.
pub const MAX_ADDRESSES: usize = smoltcp::config::IFACE_MAX_ADDR_COUNT - 1;

/// Which protocols the stack speaks. What is off is absent: its frames are
/// dropped and counted, nothing is answered (no reset, no ICMP error), and
/// calls that need it fail with `ProtocolOff`. ICMP follows its IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocols {
    /// IPv4 with ARP and ICMP.
    pub ipv4: bool,
    /// IPv6 with neighbour discovery and ICMPv6.
    pub ipv6: bool,
    /// TCP.
    pub tcp: bool,
    /// UDP.
    pub udp: bool,
}

impl Default for Protocols {
    fn default() -> Self {
        Self {
            ipv4: true,
            ipv6: true,
            tcp: true,
            udp: true,
        }
    }
}

/// Bounds on what the wire can make the stack keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Handshakes under way, over all listeners. An entry takes some 430 bytes, its
    /// places in the tables included. Default 4096, and as many again for peers that
    /// brought a cookie back and wait for room. At the limit see `syn_cookies`.
    pub half_open: usize,
    /// Whether SYNs are answered with SYN cookies (RFC 4987, 3.6) where all places for
    /// handshakes are taken, or all of a listener's and half of those have been held for a
    /// second by peers that do not answer, so that a flood keeps nobody out; else such a
    /// SYN is dropped silently and the peer tries again. Default yes.
    pub syn_cookies: bool,
    /// How long a handshake may take before its entry is forgotten. Default
    /// 15 s, which leaves room for three repetitions of the SYN|ACK.
    pub half_open_timeout: Duration,
    /// Connections in TIME-WAIT. An entry takes some 200 bytes. Default 4096.
    /// At the limit the oldest gives way.
    pub time_wait: usize,
    /// How long TIME-WAIT lasts. Default 10 s (as smoltcp has it; RFC 9293
    /// asks for two maximum segment lifetimes, which is longer).
    pub time_wait_duration: Duration,
    /// Connections and sockets of all kinds together; handshakes under way and
    /// TIME-WAIT have limits of their own. Default 65,536. At the limit SYNs are
    /// dropped and `connect` fails. Each has its two buffers
    /// ([`crate::tcp::options`]): where an application accepts whoever comes,
    /// set it to what memory suffices for.
    pub connections: usize,
    /// How long a closed stream may try to deliver what was written before it
    /// is reset. Starts anew whenever the other end has acknowledged an eighth of
    /// what there was. Default 60 s, so ten minutes at the most.
    pub orphan_timeout: Duration,
    /// Resets and ICMP errors sent per second, with a burst of as many.
    /// Default 1000, as Linux limits its ICMP errors.
    pub replies_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            half_open: 4096,
            syn_cookies: true,
            half_open_timeout: Duration::from_secs(15),
            time_wait: 4096,
            time_wait_duration: Duration::from_secs(10),
            connections: 65_536,
            orphan_timeout: Duration::from_secs(60),
            replies_per_second: 1000,
        }
    }
}

/// What a stack is told once, at its birth.
#[derive(Debug, Clone)]
pub struct StackConfig {
    /// Seed for hashing, port choice and initial sequence numbers. Take it from
    /// a good source and a new one at every boot: whoever knows it can guess
    /// sequence numbers.
    pub seed: [u64; 2],
    /// Which protocols the stack speaks. Default: all.
    pub protocols: Protocols,
    /// Frames taken from and given to the link in one [`poll`](crate::stack::Stack::poll),
    /// each direction on its own. Default 64: some 100 µs of work, and few
    /// enough that an answer is not held back by a full ring behind it.
    pub budget: usize,
    /// Bounds on what the wire can make the stack keep.
    pub limits: Limits,
    /// Options of TCP streams for which nothing else is said.
    pub tcp: TcpOptions,
    /// Bytes of buffers that are kept when their streams have ended, for further
    /// ones of the same sizes: a server of short connections then asks for no
    /// memory. Default 8 MiB; 0 keeps none. The memory is asked for when streams
    /// need it, not before.
    pub spare_buffer_bytes: usize,
    /// Bytes of payload that a UDP socket queues, each way. Default 65,536.
    pub udp_buffer_bytes: usize,
    /// Datagrams that a UDP socket queues, each way. Default 64.
    pub udp_buffer_datagrams: usize,
}

impl StackConfig {
    /// The defaults with this seed.
    pub fn new(seed: [u64; 2]) -> Self {
        Self {
            seed,
            protocols: Protocols::default(),
            budget: 64,
            limits: Limits::default(),
            tcp: TcpOptions::default(),
            spare_buffer_bytes: 8 << 20,
            udp_buffer_bytes: 65_536,
            udp_buffer_datagrams: 64,
        }
    }

    /// The defaults, lowered so that what the wire can make the stack keep stays
    /// within `bytes` of memory: for a kernel whose heap must never run out.
    ///
    /// `per_connection` is what the application keeps for each connection besides
    /// the buffers of `tcp`: a task, a thread's stack, larger buffers that it asks
    /// for itself; in bytes.
    ///
    /// What is bounded, in this order: the stack itself (some 300 KB with this
    /// workspace's settings); an eighth, at most 8 MiB, for buffers kept from
    /// ended streams; an eighth, at most 4 MiB, for handshakes and TIME-WAIT; the
    /// rest for connections with 7 KB and two buffers each. The buffers are of
    /// 65,535 bytes where 32 connections fit, and smaller, down to 2,048,
    /// where they do not. At least 8 connections are allowed, whatever there is.
    /// The rings are not in it (they are shared memory), and UDP sockets, with
    /// twice [`udp_buffer_bytes`](Self::udp_buffer_bytes) each, come on top: only
    /// the application makes them.
    ///
    /// | `bytes` | buffers, each | connections | half-open |
    /// | --- | --- | --- | --- |
    /// | 2 MiB | 17 KB | 32 | 263 |
    /// | 16 MiB | 64 KB | 89 | 2,397 |
    /// | 64 MiB | 64 KB | 397 | 4,096 |
    /// | 1 GiB | 64 KB | 7,679 | 4,096 |
    ///
    /// (with nothing per connection).
    pub fn for_memory(seed: [u64; 2], bytes: usize, per_connection: usize) -> Self {
        let mut config = Self::new(seed);
        let rest = bytes.saturating_sub(OWN_BYTES);
        config.spare_buffer_bytes = config.spare_buffer_bytes.min(rest / 8);
        let table = &mut config.limits;
        table.half_open = table.half_open.min(rest / 16 / ENTRY_BYTES);
        table.time_wait = table.time_wait.min(rest / 16 / ENTRY_BYTES);
        let tables = (table.half_open + table.time_wait) * ENTRY_BYTES;
        let for_connections = rest - config.spare_buffer_bytes - tables;
        let fixed = CONNECTION_BYTES + per_connection;
        let buffer = (for_connections / 32).saturating_sub(fixed) / 2;
        let buffer = buffer.clamp(2048, 65_535);
        config.tcp.rx_buffer_bytes = buffer;
        config.tcp.tx_buffer_bytes = buffer;
        let connections = for_connections / (fixed + 2 * buffer);
        config.limits.connections = connections.clamp(8, config.limits.connections);
        config
    }
}

/// The interface with its buffers for fragments, and those of reassembly.
const OWN_BYTES: usize = size_of::<smoltcp::iface::Interface>() + crate::fragments::MAX_BYTES;
/// A half-open or TIME-WAIT entry with its places in the tables; measured.
const ENTRY_BYTES: usize = 430;
/// A connection besides its buffers; measured.
const CONNECTION_BYTES: usize = 7 << 10;

/// The network as it is now: who we are, and what the link can do. A new one
/// may be applied to a running stack at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Our MAC address.
    pub mac: [u8; 6],
    /// Our addresses with the length of their prefix.
    pub addresses: heapless::Vec<(IpAddr, u8), MAX_ADDRESSES>,
    /// The IPv4 default gateway.
    pub gateway_v4: Option<Ipv4Addr>,
    /// The IPv6 default gateway.
    pub gateway_v6: Option<Ipv6Addr>,
    /// DNS servers, for the application's resolver; the stack does not use them.
    pub dns: heapless::Vec<IpAddr, 8>,
    /// Longest IP packet in bytes, without the 14-byte Ethernet header.
    pub mtu: u16,
    /// Whether the cable is plugged in. While not, frames are dropped as on an
    /// unplugged cable, and timers go on.
    pub carrier: bool,
    /// Offloads that frames we send may ask of the other side.
    pub tx_offloads: Offloads,
    /// Offloads that frames we receive may ask of us.
    pub rx_offloads: Offloads,
    /// Ask a DHCP server on the link for IPv4 addresses.
    pub dhcp: bool,
    /// Take IPv6 addresses and the gateway from router advertisements.
    pub slaac: bool,
}

impl NetConfig {
    /// A configuration with this MAC address, an MTU of 1500 bytes, the
    /// carrier on, and nothing else.
    pub fn new(mac: [u8; 6]) -> Self {
        Self {
            mac,
            addresses: heapless::Vec::new(),
            gateway_v4: None,
            gateway_v6: None,
            dns: heapless::Vec::new(),
            mtu: 1500,
            carrier: true,
            tx_offloads: Offloads::NONE,
            rx_offloads: Offloads::NONE,
            dhcp: false,
            slaac: false,
        }
    }

    /// The same with one address more.
    ///
    /// # Panics
    /// When there are [`MAX_ADDRESSES`] already; push onto
    /// [`addresses`](Self::addresses) where the number is not known.
    #[must_use]
    pub fn with_address(mut self, address: impl Into<IpAddr>, prefix_len: u8) -> Self {
        let pushed = self.addresses.push((address.into(), prefix_len));
        assert!(pushed.is_ok(), "more than {MAX_ADDRESSES} addresses");
        self
    }

    /// Checks everything that smoltcp would panic about, and what makes no sense.
    pub(crate) fn check(&self, protocols: Protocols) -> Result<(), ConfigError> {
        let mac = EthernetAddress(self.mac);
        if !mac.is_unicast() || self.mac == [0; 6] {
            return Err(ConfigError::Mac);
        }
        let uses_ipv6 = self.addresses.iter().any(|(address, _)| address.is_ipv6())
            || self.gateway_v6.is_some()
            || self.slaac;
        if self.mtu < if uses_ipv6 { MIN_MTU_IPV6 } else { MIN_MTU } {
            return Err(ConfigError::Mtu);
        }
        for (address, prefix_len) in &self.addresses {
            let off = match address {
                IpAddr::V4(_) => !protocols.ipv4,
                IpAddr::V6(_) => !protocols.ipv6,
            };
            if off {
                return Err(ConfigError::ProtocolOff);
            }
            let longest = if address.is_ipv4() { 32 } else { 128 };
            if !IpAddress::from(*address).is_unicast() || *prefix_len > longest {
                return Err(ConfigError::Address);
            }
        }
        let bad_v4 = self
            .gateway_v4
            .is_some_and(|gateway| !IpAddress::from(IpAddr::V4(gateway)).is_unicast());
        let bad_v6 = self
            .gateway_v6
            .is_some_and(|gateway| !IpAddress::from(IpAddr::V6(gateway)).is_unicast());
        if bad_v4 || bad_v6 {
            return Err(ConfigError::Gateway);
        }
        // DHCP is UDP over IPv4.
        if (self.dhcp && !(protocols.ipv4 && protocols.udp)) || (self.slaac && !protocols.ipv6) {
            return Err(ConfigError::ProtocolOff);
        }
        for offloads in [self.tx_offloads, self.rx_offloads] {
            if offloads.intersection(Offloads::SEGMENTATION) != Offloads::NONE
                && !offloads.contains(Offloads::CHECKSUM)
            {
                return Err(ConfigError::Offloads);
            }
        }
        Ok(())
    }

    /// The addresses as smoltcp wants them, with an IPv6 link-local address
    /// made from the MAC (RFC 4291, appendix A) where none is given and the MTU
    /// allows IPv6.
    pub(crate) fn cidrs(
        &self,
        protocols: Protocols,
    ) -> heapless::Vec<IpCidr, { smoltcp::config::IFACE_MAX_ADDR_COUNT }> {
        let mut cidrs = heapless::Vec::new();
        let mut link_local = false;
        for (address, prefix_len) in &self.addresses {
            link_local |= matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            // The table has one place more than `addresses`.
            let _ = cidrs.push(IpCidr::new((*address).into(), *prefix_len));
        }
        if protocols.ipv6 && !link_local && self.mtu >= MIN_MTU_IPV6 {
            let _ = cidrs.push(link_local_address(self.mac).into());
        }
        cidrs
    }
}

/// The link-local address of a MAC address (RFC 4291, appendix A).
pub(crate) fn link_local_address(mac: [u8; 6]) -> Ipv6Cidr {
    Ipv6Cidr::new(with_interface_id([0xfe, 0x80, 0, 0, 0, 0, 0, 0], mac), 64)
}

/// A 64-bit prefix completed by the interface identifier of a MAC address.
pub(crate) fn with_interface_id(prefix: [u8; 8], mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let id = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&prefix);
    octets[8..].copy_from_slice(&id);
    Ipv6Addr::from(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_memory_bounds_fits_into_it_and_grows_with_it() {
        let mut last = 0;
        for shift in 20..=32 {
            let bytes = 1usize << shift;
            for per_connection in [0, 100_000] {
                let config = StackConfig::for_memory([1, 2], bytes, per_connection);
                let Limits {
                    connections,
                    half_open,
                    time_wait,
                    ..
                } = config.limits;
                let buffers = config.tcp.rx_buffer_bytes + config.tcp.tx_buffer_bytes;
                let sum = OWN_BYTES
                    + config.spare_buffer_bytes
                    + (half_open + time_wait) * ENTRY_BYTES
                    + connections * (CONNECTION_BYTES + per_connection + buffers);
                assert!(sum <= bytes || connections == 8, "{bytes}: {sum}");
                assert!(sum > bytes / 2 || connections == 65_536, "{bytes}: {sum}");
                if per_connection == 0 {
                    std::println!(
                        "{} MiB: {} bytes, {connections} connections, {half_open} half-open; own {OWN_BYTES}",
                        bytes >> 20,
                        buffers / 2
                    );
                    assert!(connections >= last);
                    last = connections;
                }
            }
        }
    }

    #[test]
    fn with_hardly_any_memory_there_is_still_a_stack() {
        let config = StackConfig::for_memory([1, 2], 0, 0);
        assert_eq!(config.limits.connections, 8);
        assert_eq!(config.tcp.rx_buffer_bytes, 2048);
        assert_eq!(config.spare_buffer_bytes, 0);
    }
}
