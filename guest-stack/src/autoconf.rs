//! Addresses that are found on the link: DHCP for IPv4 (smoltcp's socket, in a
//! slot of its own) and router advertisements for IPv6.

use alloc::boxed::Box;
use alloc::vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shm_link::link::FrameTx;
use smoltcp::iface::SocketSet;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::dhcpv4;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpAddress, IpCidr, Ipv4Cidr, NdiscRepr,
    RawHardwareAddress,
};

use crate::classify::{ETHERNET_LEN, Packet};
use crate::config::link_local_address;
use crate::device::Wire;
use crate::flow::{Entry, Handle, Quiet};
use crate::questions::send_discovery;
use crate::slaac::Slaac;
use crate::sockets::Sockets;
use crate::timers::earlier;

/// All routers on the link (RFC 4291, 2.7.1).
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// How long a lease is trusted after the cable was pulled out and plugged in
/// again: a server that is there answers several times over.
const CONFIRMATION: Duration = Duration::from_secs(60);

/// What a DHCP server gave us.
#[derive(Debug, Clone)]
struct Lease {
    address: Ipv4Cidr,
    router: Option<Ipv4Addr>,
    dns: heapless::Vec<IpAddr, 8>,
}

/// What is found on the link.
#[derive(Debug, Default)]
pub(crate) struct Autoconf {
    dhcp: Option<Handle>,
    lease: Option<Lease>,
    /// The lease is from before the cable was pulled out, and goes at this time
    /// unless a server confirms it.
    confirm_by: Option<Instant>,
    slaac: Option<Slaac>,
}

impl Autoconf {
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpCidr> + '_ {
        let leased = self.lease.iter().map(|lease| IpCidr::from(lease.address));
        let formed = self.slaac.iter().flat_map(Slaac::addresses);
        leased.chain(formed.map(IpCidr::from))
    }

    pub(crate) fn gateway_v4(&self) -> Option<Ipv4Addr> {
        self.lease.as_ref()?.router
    }

    pub(crate) fn gateway_v6(&self) -> Option<Ipv6Addr> {
        self.slaac.as_ref()?.router()
    }

    pub(crate) fn dns(&self) -> &[IpAddr] {
        self.lease.as_ref().map_or(&[], |lease| &lease.dns)
    }

    /// Drops a lease that was not confirmed in time; whether it did.
    fn drop_unconfirmed(&mut self, now: Instant) -> bool {
        let late = self.confirm_by.is_some_and(|at| at <= now);
        if late {
            self.confirm_by = None;
            self.lease = None;
        }
        late
    }

    /// The slot of the DHCP client, if there is one.
    pub(crate) fn dhcp_slot(&self) -> Option<u32> {
        self.dhcp.map(|handle| handle.index)
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let slaac = self.slaac.as_ref().and_then(Slaac::deadline);
        earlier(slaac, self.confirm_by)
    }
}

impl Sockets {
    /// Begins anew to look for addresses, as the configuration asks. What was
    /// found before is forgotten.
    pub(crate) fn start_autoconf(&mut self, now: Instant) {
        if let Some(handle) = self.autoconf.dhcp.take() {
            self.table.remove(handle.index);
        }
        self.autoconf = Autoconf::default();
        if self.net.slaac {
            self.autoconf.slaac = Some(Slaac::new(self.net.mac, now));
        }
        self.start_dhcp();
        self.refresh_addresses();
    }

    /// The cable was plugged in again, perhaps elsewhere: asks anew, and keeps
    /// for a while what it has, so that streams survive a short interruption.
    pub(crate) fn confirm_autoconf(&mut self, now: Instant) {
        if let Some(handle) = self.autoconf.dhcp.take() {
            self.table.remove(handle.index);
        }
        let leased = self.autoconf.lease.is_some();
        self.autoconf.confirm_by = leased.then(|| now + CONFIRMATION);
        self.start_dhcp();
        if let Some(slaac) = &mut self.autoconf.slaac {
            slaac.solicit_again(now);
        }
    }

    /// Begins a conversation with DHCP servers, if it is wanted.
    fn start_dhcp(&mut self) {
        if self.net.dhcp {
            let mut set = SocketSet::new(vec![]);
            set.add(dhcpv4::Socket::new());
            let handle = self.table.insert(Entry::Quiet(Box::new(Quiet { set })));
            self.autoconf.dhcp = Some(handle);
            self.table.mark(handle.index);
        }
    }

    /// Looks whether DHCP or the passing of time changed our addresses, and
    /// solicits routers when due.
    pub(crate) fn poll_autoconf(&mut self, now: Instant, tx: &mut dyn FrameTx) {
        let leased = self.poll_dhcp() | self.autoconf.drop_unconfirmed(now);
        let (expired, solicit) = match &mut self.autoconf.slaac {
            Some(slaac) => (slaac.expire(now), slaac.poll_solicit(now)),
            None => (false, false),
        };
        if leased || expired {
            self.refresh_addresses();
            self.drop_lost_addresses();
        }
        if solicit {
            self.solicit_router(tx);
        }
        self.ask_for_gateways(now, tx);
    }

    /// Takes what the DHCP client has to say; whether the lease changed.
    fn poll_dhcp(&mut self) -> bool {
        let Some(handle) = self.autoconf.dhcp else {
            return false;
        };
        let Some(Entry::Quiet(quiet)) = self.table.named(handle) else {
            return false;
        };
        let Some(socket) = quiet.set.iter().next().map(|(handle, _)| handle) else {
            return false;
        };
        match quiet.set.get_mut::<dhcpv4::Socket>(socket).poll() {
            None => false,
            // A client that has just begun says so too.
            Some(dhcpv4::Event::Deconfigured) if self.autoconf.confirm_by.is_some() => false,
            Some(dhcpv4::Event::Deconfigured) => self.autoconf.lease.take().is_some(),
            Some(dhcpv4::Event::Configured(lease)) => {
                self.autoconf.confirm_by = None;
                let servers = lease.dns_servers.iter().map(|server| IpAddr::V4(*server));
                self.autoconf.lease = Some(Lease {
                    address: lease.address,
                    router: lease.router.filter(|router| {
                        !router.is_unspecified() && !router.is_multicast() && !router.is_broadcast()
                    }),
                    dns: servers.take(8).collect(),
                });
                true
            }
        }
    }

    /// A router advertisement came (RFC 4861, 6.1.2).
    pub(crate) fn router_advertisement(&mut self, now: Instant, packet: &Packet, frame: &[u8]) {
        let (IpAddress::Ipv6(src), IpAddress::Ipv6(dst)) = (packet.src, packet.dst) else {
            return;
        };
        let Some(slaac) = &mut self.autoconf.slaac else {
            return;
        };
        // The hop limit proves that no router forwarded it.
        if frame.get(ETHERNET_LEN + 7) != Some(&255) || !src.is_unicast_link_local() {
            return;
        }
        let Some(bytes) = frame.get(packet.payload.clone()) else {
            return;
        };
        let Ok(message) = Icmpv6Packet::new_checked(bytes) else {
            return;
        };
        let checksums = ChecksumCapabilities::default();
        let Ok(Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
            router_lifetime,
            prefix_info,
            ..
        })) = Icmpv6Repr::parse(&src, &dst, &message, &checksums)
        else {
            return;
        };
        if slaac.handle_advertisement(src, router_lifetime, prefix_info, now) {
            self.refresh_addresses();
            self.drop_lost_addresses();
        }
    }

    fn solicit_router(&mut self, tx: &mut dyn FrameTx) {
        let mac = self.net.mac;
        let src = link_local_address(mac).address();
        let message = NdiscRepr::RouterSolicit {
            lladdr: Some(RawHardwareAddress::from(EthernetAddress(mac))),
        };
        let mut wire = Wire {
            tx,
            state: &mut self.io,
        };
        // Without room it is lost, as frames may be: it is sent again.
        let _ = send_discovery(&mut wire, mac, src, ALL_ROUTERS, message);
    }
}
