//! Who gets which addresses: the plan of a daemon whose guests come and go.
//!
//! A guest takes the lowest free slot; the slot decides its MAC address, its IP
//! addresses and the name of its port, so a guest that comes back to an
//! otherwise unchanged daemon is the same machine to its neighbours.

use std::collections::btree_map::{BTreeMap, Entry};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shm_link::control::{NetworkConfig, Prefixed};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How guests are connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    /// Every guest's TAP is a port of this Linux bridge, and all guests share
    /// the subnets. The first host address of each is left to the bridge.
    Bridged {
        /// The bridge's name. It exists already.
        bridge: String,
    },
    /// Every guest has a small subnet of its own with the host: /30 and /126.
    /// The host's side of the TAP has the first address, the guest the second.
    Routed,
}

/// The plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How guests are connected.
    pub topology: Topology,
    /// IPv4 addresses for the guests; none: no IPv4.
    pub net4: Option<Ipv4Net>,
    /// IPv6 addresses for the guests; none: link-local only.
    pub net6: Option<Ipv6Net>,
    /// Most bytes of a packet, without the Ethernet header.
    pub mtu: u16,
    /// Whether the guests ask for (more) IPv4 addresses by DHCP on the link.
    pub dhcp4: bool,
    /// Whether the guests make (more) IPv6 addresses from router advertisements.
    pub slaac: bool,
    /// DNS servers the guests are told, at most four.
    pub dns: Vec<IpAddr>,
    /// Most guests at a time, from 1 to 4096.
    pub max_guests: u16,
    /// The port's and the TAP's name begin with this; the slot's number follows.
    pub prefix: String,
}

/// Most guests that one daemon serves.
pub const MAX_GUESTS: u16 = 4096;

/// Why a plan does not work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    /// A subnet has too few addresses.
    #[error(
        "{net} has room for {room} guests, not for {wanted}: give a larger subnet or lower the number of guests"
    )]
    TooSmall {
        /// The subnet.
        net: IpNet,
        /// Guests it has room for.
        room: u128,
        /// Guests asked for.
        wanted: u16,
    },
    /// The number of guests is out of range.
    #[error("the number of guests must be from 1 to {MAX_GUESTS}")]
    Guests,
    /// Too many DNS servers.
    #[error("a guest takes at most four DNS servers")]
    Dns,
    /// The prefix of the names does not leave room for a number.
    #[error("{0:?} is too long for the front of an interface name: at most 11 bytes")]
    Prefix(String),
    /// The resulting configuration is invalid.
    #[error("guests cannot be configured like this: {0}")]
    Config(String),
    /// All slots are taken.
    #[error(
        "all places for guests at this socket are taken ({0}): raise max_guests, or, at the socket \
         of a port with a name of its own, wait until the guest before is gone"
    )]
    Full(u16),
}

/// What one slot gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Name of port and TAP.
    pub name: String,
    /// What the guest is told.
    pub network: NetworkConfig,
    /// Addresses of the host's side of the TAP.
    pub host_addresses: Vec<IpNet>,
    /// The bridge to put the TAP into.
    pub master: Option<String>,
}

impl Plan {
    /// Checks the plan as a whole.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn check(&self) -> Result<(), PlanError> {
        if !(1..=MAX_GUESTS).contains(&self.max_guests) {
            return Err(PlanError::Guests);
        }
        if self.dns.len() > 4 {
            return Err(PlanError::Dns);
        }
        if self.prefix.is_empty() || self.prefix.len() > 11 {
            return Err(PlanError::Prefix(self.prefix.clone()));
        }
        let nets = [
            (self.net4.map(IpNet::V4), 32),
            (self.net6.map(IpNet::V6), 128),
        ];
        for (net, bits) in nets {
            let Some(net) = net else { continue };
            let host_bits = u32::from(bits - net.prefix_len());
            let addresses = 1u128.checked_shl(host_bits).unwrap_or(u128::MAX);
            let room = match self.topology {
                // Without network, gateway and broadcast address.
                Topology::Bridged { .. } => addresses.saturating_sub(3),
                Topology::Routed => addresses / 4,
            };
            if room < u128::from(self.max_guests) {
                return Err(PlanError::TooSmall {
                    net,
                    room,
                    wanted: self.max_guests,
                });
            }
        }
        let config = self.assign(self.max_guests - 1).network;
        config
            .validate()
            .map_err(|error| PlanError::Config(error.to_string()))
    }

    /// What slot `slot` (from 0) gets.
    pub fn assign(&self, slot: u16) -> Assignment {
        // Locally administered, and unlike what hypervisors use.
        let [high, low] = slot.to_be_bytes();
        let mut network = NetworkConfig::new([0x02, 0x53, 0x4c, 0x00, high, low], self.mtu);
        let mut host_addresses = Vec::new();
        let (step, gateway, guest, prefixes, master) = match &self.topology {
            Topology::Bridged { bridge } => (1, 1, 2, None, Some(bridge.clone())),
            Topology::Routed => (4, 1, 2, Some((30, 126)), None),
        };
        if let Some(net) = self.net4 {
            let base = if prefixes.is_some() {
                u32::from(slot) * step
            } else {
                0
            };
            let index = if prefixes.is_some() {
                0
            } else {
                u32::from(slot)
            };
            let at = |n: u32| Ipv4Addr::from(u32::from(net.network()).wrapping_add(base + n));
            let prefix_len = prefixes.map_or(net.prefix_len(), |(v4, _)| v4);
            // The lists are empty: one address fits.
            let _ = network
                .v4
                .push(Prefixed::new(at(guest + index), prefix_len));
            network.gateway4 = Some(at(gateway));
            if let (true, Ok(host)) = (prefixes.is_some(), Ipv4Net::new(at(gateway), prefix_len)) {
                host_addresses.push(host.into());
            }
        }
        if let Some(net) = self.net6 {
            let base = if prefixes.is_some() {
                u128::from(slot) * u128::from(step)
            } else {
                0
            };
            let index = if prefixes.is_some() {
                0
            } else {
                u128::from(slot)
            };
            let at = |n: u128| Ipv6Addr::from(u128::from(net.network()).wrapping_add(base + n));
            let prefix_len = prefixes.map_or(net.prefix_len(), |(_, v6)| v6);
            let _ = network
                .v6
                .push(Prefixed::new(at(u128::from(guest) + index), prefix_len));
            network.gateway6 = Some(at(u128::from(gateway)));
            if let (true, Ok(host)) = (
                prefixes.is_some(),
                Ipv6Net::new(at(u128::from(gateway)), prefix_len),
            ) {
                host_addresses.push(host.into());
            }
        }
        (network.dhcp4, network.slaac) = (self.dhcp4, self.slaac);
        network
            .dns
            .extend(self.dns.iter().copied().take(network.dns.capacity()));
        Assignment {
            name: format!("{}{slot}", self.prefix),
            network,
            host_addresses,
            master,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.topology {
            Topology::Bridged { bridge } => write!(f, "on the bridge {bridge}")?,
            Topology::Routed => f.write_str("routed")?,
        }
        if let Some(net) = self.net4 {
            write!(f, ", {net}")?;
        }
        if let Some(net) = self.net6 {
            write!(f, ", {net}")?;
        }
        if self.dhcp4 {
            f.write_str(", by DHCP")?;
        }
        if self.slaac {
            f.write_str(", by router advertisements")?;
        }
        Ok(())
    }
}

/// Who has a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// A guest.
    Guest,
    /// Nobody any more, but it is not cleared yet.
    Gone,
}

/// How long somebody waits for a slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For one that a guest holds: it may be gone, and its end not noticed yet.
    pub(crate) held: Duration,
    /// For one whose guest is gone.
    pub(crate) clearing: Duration,
}

/// The slots of a plan.
#[derive(Debug, Clone)]
pub struct Slots {
    taken: Arc<Mutex<BTreeMap<u16, Holder>>>,
    freed: Arc<Notify>,
    count: u16,
}

impl Slots {
    /// `count` free slots.
    pub fn new(count: u16) -> Self {
        Self {
            taken: Arc::default(),
            freed: Arc::default(),
            count,
        }
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<u16, Holder>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes this slot, if it is there and free.
    pub(crate) fn take_this(&self, number: u16) -> Option<Slot> {
        if number >= self.count {
            return None;
        }
        match self.taken().entry(number) {
            Entry::Occupied(_) => None,
            Entry::Vacant(free) => {
                free.insert(Holder::Guest);
                Some(Slot {
                    number,
                    slots: self.clone(),
                })
            }
        }
    }

    /// Takes this slot if it becomes free in time; else, or without a wish, the lowest
    /// that is free.
    ///
    /// # Errors
    /// [`PlanError::Full`].
    pub(crate) async fn wait(
        &self,
        wish: Option<u16>,
        patience: Patience,
    ) -> Result<Slot, PlanError> {
        let wish = wish.filter(|&number| number < self.count);
        let start = Instant::now();
        loop {
            // Before the look, so that nothing is missed after it.
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            let found = match wish {
                Some(number) => self.take_this(number),
                None => self.take().ok(),
            };
            if let Some(slot) = found {
                return Ok(slot);
            }
            let until = match self.is_clearing(wish) {
                true => start + patience.clearing,
                false => start + patience.held,
            };
            if Instant::now() >= until {
                return self.take();
            }
            tokio::select! {
                () = freed => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Whether this slot is about to become free, or any without a wish.
    fn is_clearing(&self, wish: Option<u16>) -> bool {
        let taken = self.taken();
        match wish {
            Some(number) => taken.get(&number) == Some(&Holder::Gone),
            None => taken.values().any(|holder| *holder == Holder::Gone),
        }
    }

    /// Takes the lowest free slot.
    ///
    /// # Errors
    /// [`PlanError::Full`].
    pub fn take(&self) -> Result<Slot, PlanError> {
        let mut taken = self.taken();
        let number = (0..self.count)
            .find(|n| !taken.contains_key(n))
            .ok_or(PlanError::Full(self.count))?;
        taken.insert(number, Holder::Guest);
        Ok(Slot {
            number,
            slots: self.clone(),
        })
    }
}

/// A taken slot; free again when dropped.
#[derive(Debug)]
pub struct Slot {
    /// Its number.
    pub number: u16,
    slots: Slots,
}

impl Slot {
    /// Its guest is gone: whoever waits has more patience from now on.
    pub(crate) fn vacate(&self) {
        self.slots.taken().insert(self.number, Holder::Gone);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.taken().remove(&self.number);
        self.slots.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn plan(topology: Topology) -> Plan {
        Plan {
            topology,
            net4: Some("10.77.0.0/24".parse().unwrap()),
            net6: Some("fd77::/64".parse().unwrap()),
            mtu: 1500,
            dhcp4: false,
            slaac: false,
            dns: vec!["10.77.0.1".parse().unwrap()],
            max_guests: 64,
            prefix: "guest".to_owned(),
        }
    }

    #[test]
    fn routed_guests_have_a_subnet_of_their_own_with_the_host() {
        let plan = plan(Topology::Routed);
        plan.check().unwrap();
        let second = plan.assign(1);
        assert_eq!(second.name, "guest1");
        assert_eq!(second.network.v4[0].to_string(), "10.77.0.6/30");
        assert_eq!(second.network.gateway4.unwrap().to_string(), "10.77.0.5");
        assert_eq!(second.network.v6[0].to_string(), "fd77::6/126");
        assert_eq!(
            second.host_addresses,
            [
                "10.77.0.5/30".parse().unwrap(),
                "fd77::5/126".parse().unwrap()
            ]
        );
        assert_eq!(second.master, None);
    }

    #[test]
    fn bridged_guests_share_the_subnet() {
        let plan = plan(Topology::Bridged {
            bridge: "br0".to_owned(),
        });
        plan.check().unwrap();
        let second = plan.assign(1);
        assert_eq!(second.network.v4[0].to_string(), "10.77.0.3/24");
        assert_eq!(second.network.v6[0].to_string(), "fd77::3/64");
        assert_eq!(second.network.gateway4.unwrap().to_string(), "10.77.0.1");
        assert!(second.host_addresses.is_empty());
        assert_eq!(second.master.as_deref(), Some("br0"));
    }

    #[test]
    fn a_subnet_that_is_too_small_is_named() {
        let mut plan = plan(Topology::Routed);
        plan.max_guests = 65;
        assert!(matches!(
            plan.check(),
            Err(PlanError::TooSmall {
                room: 64,
                wanted: 65,
                ..
            })
        ));
        plan.topology = Topology::Bridged {
            bridge: "br0".to_owned(),
        };
        plan.max_guests = 253;
        plan.check().unwrap();
        plan.max_guests = 254;
        assert!(plan.check().is_err());
    }

    #[test]
    fn every_assignment_of_a_checked_plan_is_valid_and_unique() {
        for topology in [
            Topology::Routed,
            Topology::Bridged {
                bridge: "br0".to_owned(),
            },
        ] {
            let plan = plan(topology);
            plan.check().unwrap();
            let mut seen = BTreeSet::new();
            for slot in 0..plan.max_guests {
                let assignment = plan.assign(slot);
                assignment.network.validate().unwrap();
                assert!(seen.insert(assignment.network.v4[0].addr));
            }
        }
    }

    #[test]
    fn slots_are_given_back() {
        let slots = Slots::new(2);
        let first = slots.take().unwrap();
        let second = slots.take().unwrap();
        assert_eq!((first.number, second.number), (0, 1));
        assert!(matches!(slots.take(), Err(PlanError::Full(2))));
        drop(first);
        assert_eq!(slots.take().unwrap().number, 0);
    }

    #[tokio::test]
    async fn a_wish_is_waited_for_and_given_up_in_time() {
        let (slots, time) = (Slots::new(3), Duration::from_millis(100));
        let patience = Patience {
            held: time,
            clearing: time,
        };
        let zero = slots.wait(Some(0), patience).await.unwrap();
        let two = slots.wait(Some(2), patience).await.unwrap();
        assert_eq!((zero.number, two.number), (0, 2));
        // One that is freed meanwhile.
        let later = tokio::spawn(async move {
            tokio::time::sleep(time / 2).await;
            drop(two);
        });
        let two = slots.wait(Some(2), patience).await.unwrap();
        assert_eq!(two.number, 2);
        later.await.unwrap();
        // One that is not, and one that there is not.
        let one = slots.wait(Some(2), patience).await.unwrap();
        assert_eq!(one.number, 1);
        assert!(slots.wait(Some(7), patience).await.is_err());
        drop(zero);
        assert_eq!(slots.wait(Some(7), patience).await.unwrap().number, 0);
    }

    #[tokio::test]
    async fn a_slot_whose_guest_is_gone_is_waited_for_longer_than_one_that_is_held() {
        let slots = Slots::new(2);
        let patience = Patience {
            held: Duration::from_millis(100),
            clearing: Duration::from_secs(60),
        };
        let (zero, one) = (slots.take().unwrap(), slots.take().unwrap());
        assert!(slots.wait(None, patience).await.is_err());
        // Its end is noticed while somebody waits, and it takes a while to clear it.
        let later = tokio::spawn(async move {
            tokio::time::sleep(patience.held / 2).await;
            one.vacate();
            tokio::time::sleep(patience.held * 2).await;
            drop(one);
        });
        assert_eq!(slots.wait(None, patience).await.unwrap().number, 1);
        later.await.unwrap();
        // The other one being cleared is nothing to who wishes for this one.
        let one = slots.take().unwrap();
        one.vacate();
        assert!(slots.wait(Some(0), patience).await.is_err());
        drop(zero);
    }
}
