//! The host's network configuration, over netlink.
//!
//! Thin functions that each make one change and name it when it fails; the
//! port calls them when a guest comes, changes and goes. Interfaces are named
//! by index, because names can be changed by others. Nothing here decides.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage, State,
};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec,
    RouteMessageBuilder,
};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::error::NetlinkError;

/// What the kernel says about an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Longest packet it carries, in bytes without the Ethernet header.
    pub mtu: u32,
    /// Its own MAC address (of a TAP: the host's end, not the guest's).
    pub mac: Option<[u8; 6]>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Whether it carries packets: up, with a carrier, and its queue at work
    /// (operational state "up", RFC 2863). Follows a change of the carrier a
    /// little later.
    pub running: bool,
    /// Index of the bridge it belongs to.
    pub master: Option<u32>,
    /// The driver's name: `tun`, `bridge`, `veth`; none for real hardware.
    pub kind: Option<String>,
}

/// A connection to the kernel's network configuration.
///
/// It belongs to the network namespace of the thread that made it, and needs
/// the tokio runtime that it was made in. Clones share it; it is closed when
/// the last one goes.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
    _driver: Arc<Driver>,
    changes: Arc<Mutex<Option<Changes>>>,
    /// Held for a list: the kernel gives a socket one at a time (EBUSY).
    listing: Arc<tokio::sync::Mutex<()>>,
}

/// Tells of changes to interfaces.
#[derive(Debug)]
struct Changes {
    changed: watch::Receiver<()>,
    _driver: Driver,
    _counter: Driver,
}

/// The task that moves messages between the socket and the handles.
#[derive(Debug)]
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Netlink {
    /// Opens the connection. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Socket)?;
        let driver = Driver(tokio::spawn(connection).abort_handle());
        Ok(Self {
            handle,
            _driver: Arc::new(driver),
            changes: Arc::default(),
            listing: Arc::default(),
        })
    }

    /// Marked as changed whenever an interface of this network namespace is made,
    /// changed or deleted, by whomever. Call it inside the tokio runtime.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn link_changes(&self) -> Result<watch::Receiver<()>, NetlinkError> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(changes) = &*changes {
            return Ok(changes.changed.clone());
        }
        let (connection, _, mut messages) =
            rtnetlink::new_multicast_connection(&[rtnetlink::MulticastGroup::Link])
                .map_err(NetlinkError::Socket)?;
        let (change, changed) = watch::channel(());
        let counter = tokio::spawn(async move {
            while messages.next().await.is_some() {
                change.send_replace(());
            }
        });
        let driver = Driver(tokio::spawn(connection).abort_handle());
        *changes = Some(Changes {
            changed: changed.clone(),
            _driver: driver,
            _counter: Driver(counter.abort_handle()),
        });
        Ok(changed)
    }

    /// Looks an interface up.
    ///
    /// # Errors
    /// [`NetlinkError::NoSuchLink`] if there is none of this name.
    pub async fn link_by_name(&self, name: &str) -> Result<LinkInfo, NetlinkError> {
        self.find_link(name)
            .await?
            .ok_or_else(|| NetlinkError::NoSuchLink {
                name: name.to_owned(),
            })
    }

    async fn find_link(&self, name: &str) -> Result<Option<LinkInfo>, NetlinkError> {
        let doing = || format!("looking up the interface {name}");
        let request = self.handle.link().get().match_name(name).execute();
        let mut answers = std::pin::pin!(request);
        match answers.try_next().await {
            Ok(Some(message)) => Ok(Some(link_info(message))),
            Ok(None) => Ok(None),
            Err(rtnetlink::Error::NetlinkError(message))
                if message.to_io().raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(None)
            }
            Err(error) => Err(refused(doing(), error)),
        }
    }

    /// Waits until an interface that is up carries packets, `limit` at the most;
    /// says whether it does. One that is down is not waited for.
    ///
    /// The kernel starts an interface's queue some time after its carrier
    /// appeared, and drops what is sent until then.
    ///
    /// # Errors
    /// As for [`link_by_name`](Self::link_by_name).
    pub async fn wait_running(&self, name: &str, limit: Duration) -> Result<bool, NetlinkError> {
        const PAUSE: Duration = Duration::from_millis(1);
        let deadline = Instant::now() + limit;
        loop {
            let link = self.link_by_name(name).await?;
            if link.running || !link.up || Instant::now() >= deadline {
                return Ok(link.running);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        let change = LinkUnspec::new_with_index(index).up();
        self.change("bringing it up", index, change).await
    }

    /// Brings an interface down.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn set_down(&self, index: u32) -> Result<(), NetlinkError> {
        let change = LinkUnspec::new_with_index(index).down();
        self.change("bringing it down", index, change).await
    }

    /// Sets the MTU, in bytes without the Ethernet header. A TAP takes 68 to
    /// 65,521; IPv6 needs 1280.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let change = LinkUnspec::new_with_index(index).mtu(mtu);
        self.change(&format!("setting its MTU to {mtu}"), index, change)
            .await
    }

    /// Sets how many frames may wait on the interface (`txqueuelen`).
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn set_queue_len(&self, index: u32, frames: u32) -> Result<(), NetlinkError> {
        let change = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::TxQueueLen(frames));
        self.change("setting its queue's length", index, change)
            .await
    }

    /// Sets the interface's own MAC address.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), NetlinkError> {
        let change = LinkUnspec::new_with_index(index).address(mac.to_vec());
        self.change("setting its MAC address", index, change).await
    }

    /// Makes an interface a port of the bridge `bridge`.
    ///
    /// # Errors
    /// [`NetlinkError::NoSuchBridge`] or [`NetlinkError::NotABridge`] if that
    /// is what is wrong.
    pub async fn set_master(&self, index: u32, bridge: &str) -> Result<(), NetlinkError> {
        let Some(found) = self.find_link(bridge).await? else {
            return Err(NetlinkError::NoSuchBridge {
                name: bridge.to_owned(),
            });
        };
        if found.kind.as_deref() != Some("bridge") {
            return Err(NetlinkError::NotABridge {
                name: bridge.to_owned(),
                kind: found.kind.unwrap_or_else(|| "a plain interface".to_owned()),
            });
        }
        let change = LinkUnspec::new_with_index(index).controller(found.index);
        self.change(&format!("adding it to the bridge {bridge}"), index, change)
            .await
    }

    /// Takes an interface out of its bridge.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn clear_master(&self, index: u32) -> Result<(), NetlinkError> {
        let change = LinkUnspec::new_with_index(index).nocontroller();
        self.change("taking it out of its bridge", index, change)
            .await
    }

    /// Tells the bridge that `mac` is behind its port `index`, for as long as it is one,
    /// and that frames to an address that the bridge does not know are not for it: a
    /// bridge sends those to all of its ports else. It goes on learning addresses there,
    /// for those that are only known in a VLAN.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn keep_strangers_frames_off(
        &self,
        index: u32,
        mac: [u8; 6],
    ) -> Result<(), NetlinkError> {
        let doing = |what| format!("interface with index {index}: {what}");
        // "Permanent" would be the host's own address.
        let known = self.handle.neighbours().add_bridge(index, &mac);
        known
            .state(NeighbourState::Noarp)
            .flags(NeighbourFlags::Controller)
            .replace()
            .execute()
            .await
            .map_err(|e| refused(doing("telling its bridge the guest's address"), e))?;
        let change = LinkBridgePort::new(index).flood(false).build();
        self.handle
            .link()
            .set_port(change)
            .execute()
            .await
            .map_err(|e| refused(doing("keeping frames to unknown addresses off it"), e))
    }

    /// Gives an interface an address with its prefix. An IPv6 address is usable
    /// at once: no duplicate address detection.
    ///
    /// # Errors
    /// [`NetlinkError`]; see [`NetlinkError::is_already_there`].
    pub async fn add_address(&self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let mut request = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request
            .execute()
            .await
            .map_err(|e| refused(on("adding the address", address, index), e))
    }

    /// The addresses of an interface, with their prefixes.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn addresses(&self, index: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let _alone = self.listing.lock().await;
        let request = self.handle.address().get().set_link_index_filter(index);
        let mut answers = std::pin::pin!(request.execute());
        let mut found = Vec::new();
        loop {
            let doing = || format!("reading the addresses of the interface with index {index}");
            match answers.try_next().await.map_err(|e| refused(doing(), e))? {
                Some(message) => found.extend(address_of(&message)),
                None => return Ok(found),
            }
        }
    }

    /// Takes an address from an interface.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn del_address(&self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        self.handle
            .address()
            .del(address_message(index, address))
            .execute()
            .await
            .map_err(|e| refused(on("removing the address", address, index), e))
    }

    /// Routes `destination` out of an interface, without a gateway.
    ///
    /// # Errors
    /// [`NetlinkError`]; see [`NetlinkError::is_already_there`].
    pub async fn add_route(&self, index: u32, destination: IpNet) -> Result<(), NetlinkError> {
        let doing = || on("adding the route to", destination, index);
        let destination = destination.trunc();
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination.addr(), destination.prefix_len())
            .map_err(|error| NetlinkError::Protocol {
                doing: doing(),
                detail: error.to_string(),
            })?
            .output_interface(index)
            .scope(RouteScope::Link)
            .build();
        self.handle
            .route()
            .add(message)
            .execute()
            .await
            .map_err(|e| refused(doing(), e))
    }

    /// Creates a bridge, brings it up and gives its index.
    ///
    /// # Errors
    /// [`NetlinkError`]; see [`NetlinkError::is_already_there`].
    pub async fn create_bridge(&self, name: &str) -> Result<u32, NetlinkError> {
        self.handle
            .link()
            .add(LinkBridge::new(name).build())
            .execute()
            .await
            .map_err(|e| refused(format!("creating the bridge {name}"), e))?;
        Ok(self.link_by_name(name).await?.index)
    }

    /// Deletes an interface.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn delete_link(&self, index: u32) -> Result<(), NetlinkError> {
        self.handle
            .link()
            .del(index)
            .execute()
            .await
            .map_err(|e| refused(format!("deleting the interface with index {index}"), e))
    }

    /// Keeps the kernel from speaking IPv6 on an interface of its own accord:
    /// no link-local address, so no duplicate address detection, no router
    /// solicitation, no multicast listener reports. Addresses given by
    /// [`add_address`](Self::add_address) work all the same. Call it before the
    /// interface is brought up.
    ///
    /// # Errors
    /// [`NetlinkError`], for instance where the kernel has no IPv6.
    pub async fn quiet_ipv6(&self, index: u32) -> Result<(), NetlinkError> {
        let spec = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let change = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![spec]));
        self.change("switching off IPv6 autoconfiguration", index, change)
            .await
    }

    async fn change(
        &self,
        doing: &str,
        index: u32,
        change: LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetlinkError> {
        self.handle
            .link()
            .change(change.build())
            .execute()
            .await
            .map_err(|e| refused(format!("interface with index {index}: {doing}"), e))
    }
}

fn on(doing: &str, what: IpNet, index: u32) -> String {
    format!("{doing} {what} on the interface with index {index}")
}

fn link_info(message: LinkMessage) -> LinkInfo {
    let flags = message.header.flags;
    let mut info = LinkInfo {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        mac: None,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        // Not the flag of this name: that one is set in state "unknown", too.
        running: false,
        master: None,
        kind: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => info.name = name,
            LinkAttribute::Mtu(mtu) => info.mtu = mtu,
            LinkAttribute::OperState(state) => info.running = state == State::Up,
            LinkAttribute::Address(mac) => info.mac = mac.try_into().ok(),
            LinkAttribute::Controller(index) => info.master = (index != 0).then_some(index),
            LinkAttribute::LinkInfo(parts) => {
                info.kind = parts.into_iter().find_map(|part| match part {
                    rtnetlink::packet_route::link::LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    info
}

/// The interface's own address: of a point-to-point link the attribute of this name
/// is the peer's, and the own one is beside it.
fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let attributes = || message.attributes.iter();
    let local = attributes().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        attributes().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    IpNet::new(address, message.header.prefix_len).ok()
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    match address {
        IpNet::V4(net) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(index)
            .address(net.addr(), net.prefix_len())
            .build(),
    }
}

fn refused(doing: String, error: rtnetlink::Error) -> NetlinkError {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            let source = message.to_io();
            if source.kind() == io::ErrorKind::PermissionDenied {
                NetlinkError::NotPermitted { doing }
            } else {
                NetlinkError::Refused { doing, source }
            }
        }
        other => NetlinkError::Protocol {
            doing,
            detail: other.to_string(),
        },
    }
}
