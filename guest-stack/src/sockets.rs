//! Everything but the link: the sockets, tables and protocol machines of a
//! stack, and its smoltcp `Interface`.
//!
//! [`crate::stack::Stack`] owns one and runs it; handlers reach it through their
//! context. The work is in `ingress` (one frame in), `egress` (one slot out),
//! `tcp` and `udp`; this file holds the pieces together and applies the
//! network's configuration.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::hash::BuildHasher;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shm_link::control::config::MIN_MTU;
use shm_link::link::FrameTx;
use shm_link::offload::Offloads;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpVersion};

use crate::autoconf::Autoconf;
use crate::classify::ETHERNET_LEN;
use crate::config::{NetConfig, StackConfig};
use crate::counters::Counters;
use crate::device::{FrameDevice, TxState, Wire};
use crate::error::{ConfigError, StreamError};
use crate::flow::{Entry, Handle, Seeded, Table};
use crate::fragments::Reassembler;
use crate::limiter::Limiter;
use crate::neighbours::Neighbours;
use crate::ports::{LocalAddr, Ports};
use crate::questions::Questions;
use crate::registry::Registry;
use crate::tcp::TcpStreamId;
use crate::tcp::cookie::Spent;
use crate::tcp::memory::Pool;

/// First port of the ephemeral range (RFC 6335, section 6).
const EPHEMERAL_FIRST: u16 = 49_152;

/// The sockets of a stack, and everything they stand on.
pub struct Sockets {
    pub(crate) config: StackConfig,
    pub(crate) net: NetConfig,
    pub(crate) interface: Box<Interface>,
    pub(crate) io: TxState,
    pub(crate) table: Table,
    pub(crate) pool: Pool,
    pub(crate) listeners: Ports,
    pub(crate) udp_ports: Ports,
    pub(crate) registry: Registry,
    /// Streams whose handler is to be called.
    pub(crate) notices: VecDeque<TcpStreamId>,
    /// TIME-WAIT entries, the oldest first; some are gone already.
    pub(crate) time_wait: VecDeque<Handle>,
    pub(crate) half_open: usize,
    /// Those whose peer does not answer.
    pub(crate) silent_half_open: usize,
    /// Until when SYN cookies may come back.
    pub(crate) cookies_until: Option<Instant>,
    pub(crate) spent: Spent,
    pub(crate) application: SocketSet<'static>,
    pub(crate) autoconf: Autoconf,
    pub(crate) reassembler: Reassembler,
    /// Room for one datagram of a super-frame at a time.
    pub(crate) datagram: Vec<u8>,
    /// Room for one frame with another window.
    pub(crate) narrowed: Vec<u8>,
    pub(crate) echo: Option<Handle>,
    pub(crate) limiter: Limiter,
    pub(crate) hasher: Seeded,
    /// Longest frame of the link.
    pub(crate) link_frame_len: usize,
    draws: u64,
    pub(crate) counters: Counters,
    /// When smoltcp wants to report multicast groups.
    pub(crate) groups_at: Option<Instant>,
    /// Frames may have changed the application's own sockets.
    pub(crate) application_dirty: bool,
    /// A neighbour's hardware address may have come.
    pub(crate) neighbour_spoke: bool,
    pub(crate) neighbours: Neighbours,
    pub(crate) questions: Questions,
}

/// Makes an `Interface`. It is large, and built on the call stack; a function of
/// its own keeps that to one copy at a time.
#[inline(never)]
fn interface(
    config: &StackConfig,
    net: &NetConfig,
    io: &mut TxState,
    now: Instant,
) -> Box<Interface> {
    let mut settings = Config::new(HardwareAddress::Ethernet(EthernetAddress(net.mac)));
    settings.random_seed = config.seed[0].rotate_left(17) ^ config.seed[1];
    let mut nowhere = Nowhere;
    let mut device = FrameDevice {
        frame: None,
        wire: Wire {
            tx: &mut nowhere,
            state: io,
        },
    };
    Box::new(Interface::new(settings, &mut device, now))
}

/// Stands in where smoltcp only asks for the device's capabilities.
struct Nowhere;

impl FrameTx for Nowhere {
    fn max_frame_len(&self) -> usize {
        0
    }

    fn reserve(&mut self, _: usize) -> Result<Option<&mut [u8]>, shm_link::fault::LinkError> {
        Ok(None)
    }

    fn commit(&mut self, _: usize, _: shm_link::offload::OffloadHeader) {}

    fn flush(&mut self) {}
}

impl Sockets {
    /// # Errors
    /// [`ConfigError`] when `net` makes no sense.
    pub(crate) fn new(
        config: StackConfig,
        net: NetConfig,
        link_frame_len: usize,
        now: Instant,
    ) -> Result<Self, ConfigError> {
        net.check(config.protocols)?;
        let hasher = Seeded::new(config.seed);
        let mut io = TxState::new();
        io.ident = hasher.hash_one("ident") as u16;
        let interface = interface(&config, &net, &mut io, now);
        let limiter = Limiter::new(config.limits.replies_per_second, now);
        let mut sockets = Self {
            interface,
            io,
            table: Table::new(hasher),
            pool: Pool::new(config.spare_buffer_bytes),
            listeners: Ports::new(hasher),
            udp_ports: Ports::new(hasher),
            registry: Registry::new(hasher),
            notices: VecDeque::new(),
            time_wait: VecDeque::new(),
            half_open: 0,
            silent_half_open: 0,
            cookies_until: None,
            spent: Spent::new(hasher),
            application: SocketSet::new(alloc::vec![]),
            autoconf: Autoconf::default(),
            reassembler: Reassembler::default(),
            datagram: Vec::new(),
            narrowed: Vec::new(),
            echo: None,
            limiter,
            hasher,
            link_frame_len,
            draws: 0,
            counters: Counters::default(),
            groups_at: Some(now),
            application_dirty: false,
            neighbour_spoke: false,
            neighbours: Neighbours::default(),
            questions: Questions::default(),
            config,
            net,
        };
        sockets.rebuild(now);
        sockets.start_autoconf(now);
        Ok(sockets)
    }

    /// Applies a new configuration. Sockets whose address stays, stay; streams
    /// whose address went fail with
    /// [`StreamError::AddrNotAvailable`].
    ///
    /// # Errors
    /// [`ConfigError`]; nothing was changed then.
    pub(crate) fn configure(&mut self, net: NetConfig, now: Instant) -> Result<(), ConfigError> {
        net.check(self.config.protocols)?;
        let before = (self.net.dhcp, self.net.slaac, self.net.mac);
        let restart = (net.dhcp, net.slaac, net.mac) != before;
        let plugged_in = net.carrier && !self.net.carrier;
        self.net = net;
        self.rebuild(now);
        if restart {
            self.start_autoconf(now);
        } else if plugged_in {
            self.confirm_autoconf(now);
        }
        self.drop_lost_addresses();
        if plugged_in {
            self.link_is_back(now);
        }
        // The neighbours, the MTU or the carrier changed: let everybody try.
        for index in self.table.occupied() {
            self.table.mark(index);
        }
        self.application_dirty = true;
        Ok(())
    }

    /// Makes a new `Interface`: smoltcp copies the device's capabilities once.
    /// The sockets are in their sets and stay.
    pub(crate) fn rebuild(&mut self, now: Instant) {
        // A link that carries less than the configuration says sets the limit.
        let carried = self.link_frame_len.saturating_sub(ETHERNET_LEN);
        self.io.mtu = usize::from(self.net.mtu).min(carried).max(MIN_MTU.into());
        self.io.link_frame_len = self.link_frame_len;
        self.io.carrier = self.net.carrier;
        self.io.offloads = self.net.tx_offloads;
        self.io.rx_checksum = self.net.rx_offloads.contains(Offloads::CHECKSUM);
        self.io.fragmenting = false;
        self.interface = interface(&self.config, &self.net, &mut self.io, now);
        self.reassembler = Reassembler::default();
        self.refresh_addresses();
        self.neighbours.teach(&mut self.interface, now);
        self.groups_at = Some(now);
    }

    /// The host was restarted, and nobody knows yet what it can do: until it has said so,
    /// frames are complete when they leave. `true`: they were not.
    pub(crate) fn expect_no_offloads(&mut self) -> bool {
        core::mem::replace(&mut self.net.tx_offloads, Offloads::NONE) != Offloads::NONE
    }

    /// Gives the interface its addresses and routes: the configured ones and
    /// those found on the link.
    pub(crate) fn refresh_addresses(&mut self) {
        let mut cidrs = self.net.cidrs(self.config.protocols);
        for found in self.autoconf.addresses() {
            if !cidrs.contains(&found) {
                // A table without room leaves further addresses unused.
                let _ = cidrs.push(found);
            }
        }
        self.interface
            .update_ip_addrs(|addresses| *addresses = cidrs);
        self.questions.new_gateways = true;
        let (gateway_v4, gateway_v6) = (self.gateway_v4(), self.gateway_v6());
        let routes = self.interface.routes_mut();
        routes.update(|routes| routes.clear());
        // The table has room for two.
        if let Some(gateway) = gateway_v4 {
            let _ = routes.add_default_ipv4_route(gateway);
        }
        if let Some(gateway) = gateway_v6 {
            let _ = routes.add_default_ipv6_route(gateway);
        }
    }

    pub(crate) fn gateway_v4(&self) -> Option<Ipv4Addr> {
        self.net.gateway_v4.or(self.autoconf.gateway_v4())
    }

    pub(crate) fn gateway_v6(&self) -> Option<Ipv6Addr> {
        self.net.gateway_v6.or(self.autoconf.gateway_v6())
    }

    /// Ends the streams whose local address is not ours any more. smoltcp would
    /// throw away what they received.
    pub(crate) fn drop_lost_addresses(&mut self) {
        for index in self.table.occupied() {
            let lost = match self.table.entry(index) {
                Entry::Flow(flow) => flow.local_addr(),
                Entry::HalfOpen(half_open) => Some(half_open.key.local.addr),
                Entry::TimeWait(time_wait) => Some(time_wait.key.local.addr),
                Entry::Free | Entry::Udp(_) | Entry::Quiet(_) | Entry::Listener(_) => None,
            };
            if lost.is_some_and(|address| !self.is_ours(&address)) {
                self.fail(index, StreamError::AddrNotAvailable);
            }
        }
    }

    /// Whether an address belongs to this stack.
    pub(crate) fn is_ours(&self, address: &IpAddress) -> bool {
        let cidrs = self.interface.ip_addrs();
        cidrs.iter().any(|cidr| cidr.address() == *address)
    }

    /// Whether an address is the broadcast address of a network of ours.
    pub(crate) fn is_broadcast(&self, address: &IpAddress) -> bool {
        let IpAddress::Ipv4(address) = address else {
            return false;
        };
        let mut cidrs = self.interface.ip_addrs().iter();
        address.is_broadcast()
            || cidrs.any(|cidr| match cidr {
                IpCidr::Ipv4(cidr) => cidr.broadcast() == Some(*address),
                IpCidr::Ipv6(_) => false,
            })
    }

    /// Our address for packets to `remote`, if it can be reached.
    pub(crate) fn source_address(&mut self, remote: &IpAddress) -> Option<IpAddress> {
        // There is no loopback.
        if remote.is_unspecified() || IpAddr::from(*remote).is_loopback() || self.is_ours(remote) {
            return None;
        }
        let cidrs = self.interface.ip_addrs();
        if !cidrs
            .iter()
            .any(|cidr| cidr.address().version() == remote.version())
        {
            return None;
        }
        let on_link = cidrs.iter().any(|cidr| cidr.contains_addr(remote));
        let routed = match remote.version() {
            IpVersion::Ipv4 => self.interface.routes().get_default_ipv4_route().is_some(),
            IpVersion::Ipv6 => self.interface.routes().get_default_ipv6_route().is_some(),
        };
        if !on_link && !routed {
            return None;
        }
        self.interface.get_source_address(remote)
    }

    /// A number that the wire cannot guess.
    fn draw(&mut self) -> u64 {
        self.draws += 1;
        self.hasher.hash_one(("draw", self.draws))
    }

    /// A port of the ephemeral range that `is_free` accepts, from a random start.
    pub(crate) fn ephemeral_port(&mut self, is_free: impl Fn(&Self, u16) -> bool) -> Option<u16> {
        let count = u16::MAX - EPHEMERAL_FIRST + 1;
        // Less than `count`.
        let start = (self.draw() % u64::from(count)) as u16;
        let mut ports = (0..count).map(|i| EPHEMERAL_FIRST + (start + i) % count);
        ports.find(|port| is_free(self, *port))
    }

    /// Resolves port 0 of a local address.
    pub(crate) fn choose_port(
        &mut self,
        local: LocalAddr,
        ports: impl Fn(&Self) -> &Ports,
    ) -> Option<LocalAddr> {
        if local.port != 0 {
            return ports(self).is_free(local).then_some(local);
        }
        let ip = local.ip;
        let port = self.ephemeral_port(|this, port| ports(this).is_free(LocalAddr { ip, port }))?;
        Some(LocalAddr { ip, port })
    }

    /// Shows smoltcp one frame, with one slot's set as its only sockets.
    pub(crate) fn feed(&mut self, index: u32, now: Instant, frame: &[u8], tx: &mut dyn FrameTx) {
        let mut device = FrameDevice {
            frame: Some(frame),
            wire: Wire {
                tx,
                state: &mut self.io,
            },
        };
        let interface = &mut self.interface;
        let fed = self.table.entry(index).with_set(|set| {
            interface.poll_ingress_single(now, &mut device, set);
        });
        if fed.is_some() {
            self.table.mark(index);
        }
    }

    /// Shows smoltcp one frame with the application's own sockets, if it has
    /// any: the way of ARP, ND, ICMP and of everything that is nobody's.
    pub(crate) fn feed_default(&mut self, now: Instant, frame: &[u8], tx: &mut dyn FrameTx) {
        let mut device = FrameDevice {
            frame: Some(frame),
            wire: Wire {
                tx,
                state: &mut self.io,
            },
        };
        self.interface
            .poll_ingress_single(now, &mut device, &mut self.application);
        self.application_dirty = true;
    }

    /// The configuration that holds now.
    pub fn net_config(&self) -> &NetConfig {
        &self.net
    }

    /// Our addresses with their prefixes: configured, link-local, leased and
    /// formed from router advertisements.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, u8)> + '_ {
        let cidrs = self.interface.ip_addrs().iter();
        cidrs.map(|cidr| (cidr.address().into(), cidr.prefix_len()))
    }

    /// DNS servers: the configured ones, else those of the DHCP lease.
    pub fn dns_servers(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let leased = self.autoconf.dns();
        let leased = leased.iter().take(if self.net.dns.is_empty() {
            leased.len()
        } else {
            0
        });
        self.net.dns.iter().copied().chain(leased.copied())
    }

    /// Listeners, streams, handshakes under way and UDP sockets that take memory
    /// now, also those that nobody has a handle of any more; TIME-WAIT aside.
    pub fn live(&self) -> usize {
        self.table.live()
    }

    /// What happened to every frame.
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters;
        counters.tx_frames = self.io.frames;
        counters.tx_dropped = self.io.dropped;
        counters.tx_no_room = self.io.no_room;
        counters
    }

    /// The application's own smoltcp sockets, and the interface context that
    /// some of their methods want. They get the frames that belong to no stream
    /// and no socket of the stack's own (raw sockets: copies of all that match),
    /// and cost a linear walk per such frame and per poll, as smoltcp has it.
    /// A TCP socket here that listens has no backlog. Give TCP sockets a receive
    /// buffer of [`buffer_len`](crate::tcp::options::buffer_len) bytes: smoltcp
    /// panics on a peer that sends more at once than some other lengths hold.
    pub fn with_application_sockets<R>(
        &mut self,
        f: impl FnOnce(&mut smoltcp::iface::Context, &mut SocketSet<'static>) -> R,
    ) -> R {
        self.application_dirty = true;
        f(self.interface.context(), &mut self.application)
    }

    /// Replaces the set of the application's own sockets, and with it the memory
    /// they are stored in: `SocketSet::new` takes a `Vec` or a
    /// `&'static mut [SocketStorage]`. The sockets of the old set are given back.
    pub fn replace_application_sockets(&mut self, set: SocketSet<'static>) -> SocketSet<'static> {
        self.application_dirty = true;
        core::mem::replace(&mut self.application, set)
    }
}
