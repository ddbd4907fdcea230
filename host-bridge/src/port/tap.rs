//! A port's TAP, opened and set up as far as that does not depend on the guest.
//!
//! Called when a guest comes, and by the daemon's check at its start. What is right
//! already is not set again: a daemon without CAP_NET_ADMIN can use a persistent TAP
//! that its administrator set up.

use std::convert::Infallible;
use std::net::Ipv6Addr;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};

use crate::error::{BridgeError, NetlinkError};
use crate::netlink::Netlink;
use crate::tap::{Tap, TapKind, TapSource};

/// The host's own address on the link of a guest that it routes IPv6 for: the
/// source of its questions for the guest's MAC when it forwards others' packets
/// (RFC 4861 section 7.2.2). The kernel makes none by itself, see
/// [`Netlink::quiet_ipv6`].
const HOST_LINK_LOCAL: IpNet = IpNet::V6(Ipv6Net::new_assert(
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
    64,
));

/// Frames that may wait on a TAP of ours. The kernel's default of 1,000 loses half
/// of 10,000 connection requests that come at once, and each loss costs its client a
/// second. The queue's places take 80 KB of the kernel's memory.
const QUEUE_LEN: u32 = 10_000;

/// What is to be true of a TAP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TapPlan<'a> {
    /// The guest's Ethernet address.
    pub(crate) guest_mac: [u8; 6],
    /// Longest packet, without the Ethernet header.
    pub(crate) mtu: u16,
    /// The Linux bridge that it belongs to.
    pub(crate) master: Option<&'a str>,
    /// Whether nobody but the guest's Ethernet address is behind it.
    pub(crate) guest_alone: bool,
    /// The host's addresses on it.
    pub(crate) host_addresses: &'a [IpNet],
}

/// Opens a TAP and makes true what is planned.
pub(crate) async fn prepare_tap(
    netlink: &Netlink,
    source: TapSource,
    kind: TapKind,
    plan: TapPlan<'_>,
) -> Result<Tap, BridgeError> {
    let tap = Tap::open_as(source, kind)?;
    // A guest that is not there has no carrier. A descriptor from elsewhere may
    // refuse that; its owner looks after it.
    let carrier = match tap.is_kept() {
        true => Ok(()),
        false => tap.set_carrier(false),
    };
    let Some(index) = tap.ifindex() else {
        return Ok(tap);
    };
    carrier.map_err(|error| {
        BridgeError::io(
            format!("switching off the carrier of {}", tap.name()),
            error,
        )
    })?;
    let _ = netlink.quiet_ipv6(index).await;
    let link = netlink.link_by_name(tap.name()).await?;
    if !tap.is_kept() && link.mtu != u32::from(plan.mtu) {
        netlink.set_mtu(index, plan.mtu.into()).await?;
    }
    if !tap.is_persistent() && !tap.is_kept() {
        // A persistent one is its administrator's to tune.
        netlink.set_queue_len(index, QUEUE_LEN).await?;
        netlink.set_mac(index, host_mac(plan.guest_mac)).await?;
    }
    if let Some(master) = plan.master
        && !is_port_of(netlink, link.master, master).await
    {
        let alone = (plan.guest_alone && !tap.is_persistent()).then_some(plan.guest_mac);
        join(netlink, index, master, alone).await?;
    }
    let routes_ipv6 = plan
        .host_addresses
        .iter()
        .any(|net| matches!(net, IpNet::V6(_)));
    let link_local = routes_ipv6.then_some(HOST_LINK_LOCAL);
    let mut missing: Vec<IpNet> = plan
        .host_addresses
        .iter()
        .copied()
        .chain(link_local)
        .collect();
    if (tap.is_persistent() || tap.is_kept()) && !missing.is_empty() {
        let present = netlink.addresses(index).await?;
        missing.retain(|address| !present.contains(address));
    }
    for address in missing {
        match netlink.add_address(index, address).await {
            Err(error) if !error.is_already_there() => return Err(error.into()),
            _ => {}
        }
    }
    if !link.up {
        netlink.set_up(index).await?;
    }
    Ok(tap)
}

/// The host's address on the TAP of a guest: the guest's, with the highest first byte
/// that is no group's. A guest need not learn it anew when its TAP was made anew, and a
/// Linux bridge, which takes the lowest of its ports' addresses, never takes this one.
fn host_mac(guest_mac: [u8; 6]) -> [u8; 6] {
    let [_, rest @ ..] = guest_mac;
    let [a, b, c, d, e] = rest;
    [0xfe, a, b, c, d, e]
}

/// Makes a TAP a port of a bridge; `alone`: the only address behind it.
async fn join(
    netlink: &Netlink,
    index: u32,
    master: &str,
    alone: Option<[u8; 6]>,
) -> Result<(), NetlinkError> {
    netlink.set_master(index, master).await?;
    if let Some(mac) = alone
        && let Err(error) = netlink.keep_strangers_frames_off(index, mac).await
    {
        log::warn!("the bridge {master} floods a guest's port, as bridges do: {error}");
    }
    Ok(())
}

async fn is_port_of(netlink: &Netlink, now: Option<u32>, master: &str) -> bool {
    match netlink.link_by_name(master).await {
        Ok(master) => now == Some(master.index),
        // What is wrong with it is said when the TAP is added to it.
        Err(_) => false,
    }
}

/// Sets a TAP's MTU unless it is that already.
pub(crate) async fn set_mtu(
    netlink: &Netlink,
    name: &str,
    index: u32,
    mtu: u16,
) -> Result<(), NetlinkError> {
    match netlink.link_by_name(name).await {
        Ok(link) if link.mtu == u32::from(mtu) => Ok(()),
        Ok(_) | Err(_) => netlink.set_mtu(index, mtu.into()).await,
    }
}

/// How long after a change the TAP's bridge is looked at, and how long after a vain
/// attempt the next is made.
const KEEP_REST: Duration = Duration::from_millis(500);

/// Puts the TAP back into its bridge whenever it is found outside: the bridge was
/// deleted and made again, or somebody took the TAP out. Looks only when some
/// interface changed.
pub(super) async fn keep_in_bridge(
    netlink: &Netlink,
    port: &str,
    (tap, index): (&str, u32),
    (master, alone): (&str, Option<[u8; 6]>),
) -> Infallible {
    let mut changes = match netlink.link_changes() {
        Ok(changes) => changes,
        Err(error) => {
            log::warn!(
                "port {port}: whether {tap} leaves the bridge {master} goes unnoticed: {error}"
            );
            return std::future::pending().await;
        }
    };
    let mut outside = false;
    loop {
        match netlink.link_by_name(tap).await {
            // Gone, or another one: its pumps notice.
            Ok(link) if link.index != index => return std::future::pending().await,
            Ok(link) if is_port_of(netlink, link.master, master).await => {
                if std::mem::take(&mut outside) {
                    log::warn!("port {port}: {tap} is a port of the bridge {master} again");
                }
                if changes.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
            Ok(_) => {
                let joined = join(netlink, index, master, alone).await;
                if !std::mem::replace(&mut outside, true) {
                    match joined {
                        Ok(()) => log::warn!("port {port}: {tap} had left the bridge {master}"),
                        Err(error) => log::warn!(
                            "port {port}: {tap} has left the bridge {master}, and its guest has no \
                             network: {error}; trying again"
                        ),
                    }
                }
            }
            Err(_) if netlink.link_by_name(tap).await.is_err() => {
                return std::future::pending().await;
            }
            Err(_) => {}
        }
        tokio::time::sleep(KEEP_REST).await;
    }
}
