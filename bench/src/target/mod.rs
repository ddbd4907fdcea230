//! Something to measure: ours or a peer, running, with addresses that the clients
//! in this process's network namespace can reach.
//!
//! Each kind of target has a file that starts it. Everything a target makes lives
//! in this process's namespace or its children's, and goes with them.

mod behind;
mod bridged;
mod kernel;
pub(crate) mod ours;
mod smoltcp;
pub mod tools;

use std::fs;
use std::net::{IpAddr, SocketAddr};

use host_bridge::admin::AdminClient;
use host_bridge::child::Helper;
use host_bridge::counters::PortSnapshot;
use host_bridge::port::PortStatus;

use crate::Result;
use crate::peer::smoltcp::On;
use crate::report::Path;
use crate::service::Service;

/// What can be started. Two that are equal are the same target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Setup {
    /// Our bridge and one guest.
    Ours(Ours),
    /// The kernel in another namespace, over veth.
    Veth,
    /// smoltcp in one process on a TAP.
    Smoltcp(Direct),
    /// The kernel in another namespace, behind two TAPs and a relay.
    Relay {
        /// With virtio headers.
        offloads: bool,
        /// The relay never sleeps.
        spin: bool,
    },
    /// The kernel in another namespace, behind pasta. There the client is the one
    /// in the namespace.
    Pasta {
        /// Longest packet.
        mtu: u16,
    },
    /// The same behind slirp4netns.
    Slirp {
        /// Longest packet.
        mtu: u16,
    },
    /// smoltcp in one process, behind passt.
    Passt(Service),
    /// Two of our guests on one Linux bridge; the second is told what to send.
    OursBridged,
    /// Two namespaces on one Linux bridge; the second has the client.
    VethBridged,
}

/// Who may leave checksums and segmentation to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Offloads {
    /// The kernel and the guest.
    All,
    /// The kernel; the bridge does it for a guest that does not.
    NotGuest,
    /// Nobody: each packet passes the TAP by itself.
    None,
}

impl Offloads {
    /// What is added to the name of a case.
    pub fn words(self) -> &'static str {
        match self {
            Self::All => "",
            Self::NotGuest => ", guest without offloads",
            Self::None => ", no offloads",
        }
    }
}

/// How ours is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ours {
    /// Whether checksums and segmentation may be left to others.
    pub offloads: Offloads,
    /// Longest packet.
    pub mtu: u16,
    /// How many guests the daemon has.
    pub guests: u16,
    /// What happens to frames on the way, in either direction.
    pub impaired: Option<&'static str>,
}

impl Ours {
    /// One guest, as an administrator gets it without asking for anything.
    pub const DEFAULT: Self = Self {
        offloads: Offloads::All,
        mtu: 1500,
        guests: 1,
        impaired: None,
    };
}

/// smoltcp on a TAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Direct {
    /// What it stands on.
    pub on: On,
    /// What it serves: one service, to keep its set of sockets short.
    pub service: Service,
    /// How many sockets do that.
    pub sockets: usize,
    /// Bytes of each of their buffers.
    pub buffer_bytes: usize,
    /// Whether it spins while a client is there.
    pub spin: bool,
    /// How many such processes, each on a TAP of its own.
    pub processes: u8,
}

impl Setup {
    /// Starts it and waits until it can be reached.
    ///
    /// Call it on the main thread: the children end with the thread that starts
    /// them.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn start(self) -> Result<Target> {
        match self {
            Self::Ours(options) => ours::start(options),
            Self::Veth => kernel::over_veth(),
            Self::Smoltcp(options) => smoltcp::start(options),
            Self::Relay { offloads, spin } => kernel::behind_relay(offloads, spin),
            Self::Pasta { mtu } => behind::pasta(mtu),
            Self::Slirp { mtu } => behind::slirp4netns(mtu),
            Self::Passt(service) => behind::passt(service),
            Self::OursBridged => bridged::ours(),
            Self::VethBridged => bridged::veth(),
        }
    }

    /// What to call it in a table.
    pub fn name(self) -> String {
        match self {
            Self::Ours(_) => "ours".to_owned(),
            Self::Veth => "kernel over veth".to_owned(),
            Self::Smoltcp(Direct { on, spin, .. }) => {
                let on = match on {
                    On::PlainTap => "its own TAP device",
                    On::OffloadedTap => "an offloaded TAP",
                    On::Passt => "passt",
                };
                format!("smoltcp on {on}{}", if spin { ", spinning" } else { "" })
            }
            Self::Relay { offloads, spin } => {
                let with = if offloads { "offloaded " } else { "" };
                let spin = if spin { ", spinning" } else { "" };
                format!("two {with}TAPs relayed{spin}")
            }
            Self::Pasta { mtu } => format!("pasta, MTU {mtu}"),
            Self::Slirp { mtu } => format!("slirp4netns, MTU {mtu}"),
            Self::Passt(_) => "smoltcp guest on passt".to_owned(),
            Self::OursBridged => "ours".to_owned(),
            Self::VethBridged => "kernel, veth on a bridge".to_owned(),
        }
    }
}

/// A running target. Dropping it ends its processes, and with them the rest.
#[derive(Debug)]
pub struct Target {
    /// Where its services are, over IPv4.
    pub v4: IpAddr,
    /// The same over IPv6.
    pub v6: IpAddr,
    /// The IPv4 addresses of all guests, where there may be several.
    pub all_v4: Vec<IpAddr>,
    /// The interface that its frames pass, and in whose namespace.
    pub interface: Interface,
    /// Whose namespace the client must be in, where it is the guest that connects
    /// and `v4` that is the host's address as the guest sees it.
    pub client_in: Option<u32>,
    /// The processes, by role.
    pub processes: Vec<(&'static str, Helper)>,
    /// The daemon, where there is one to ask.
    pub admin: Option<AdminClient>,
}

/// An interface whose counters tell what passed.
#[derive(Debug, Clone)]
pub struct Interface {
    /// The namespace: a process in it.
    pub pid: u32,
    /// Its name there.
    pub name: String,
    /// Whether the kernel sends towards the target here (else it receives).
    pub faces_target: bool,
}

/// What passed an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets and bytes to the target.
    pub to_target: (u64, u64),
    /// Packets and bytes from the target.
    pub from_target: (u64, u64),
}

impl Traffic {
    /// What passed since an earlier look.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        let minus = |a: (u64, u64), b: (u64, u64)| (a.0 - b.0, a.1 - b.1);
        Self {
            to_target: minus(self.to_target, before.to_target),
            from_target: minus(self.from_target, before.from_target),
        }
    }

    /// Mean sizes.
    pub fn path(self) -> Path {
        let mean = |(packets, bytes): (u64, u64)| bytes as f64 / packets.max(1) as f64;
        Path {
            to_target: mean(self.to_target),
            from_target: mean(self.from_target),
        }
    }
}

impl std::iter::Sum for Traffic {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        let plus = |a: (u64, u64), b: (u64, u64)| (a.0 + b.0, a.1 + b.1);
        all.fold(Self::default(), |sum, one| Self {
            to_target: plus(sum.to_target, one.to_target),
            from_target: plus(sum.from_target, one.from_target),
        })
    }
}

impl Target {
    /// Where a service is.
    pub fn address(&self, version: Version, service: Service) -> SocketAddr {
        let address = match version {
            Version::V4 => self.v4,
            Version::V6 => self.v6,
        };
        SocketAddr::new(address, service.port())
    }

    /// What passed its interface so far.
    ///
    /// # Errors
    /// If the interface is gone.
    pub fn traffic(&self) -> Result<Traffic> {
        let Interface {
            pid,
            name,
            faces_target,
        } = &self.interface;
        let text = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
        let traffic = parse_traffic(&text, name).ok_or_else(|| format!("no interface {name}"))?;
        Ok(match faces_target {
            true => traffic,
            false => Traffic {
                to_target: traffic.from_target,
                from_target: traffic.to_target,
            },
        })
    }

    /// All its processes.
    pub fn pids(&mut self) -> Vec<u32> {
        let id = |(_, helper): &mut (_, Helper)| helper.child_mut().id();
        self.processes.iter_mut().map(id).collect()
    }

    /// What the daemon counted for its first guest.
    ///
    /// # Errors
    /// If there is no daemon, or it does not answer.
    pub fn counters(&self) -> Result<PortSnapshot> {
        let admin = self.admin.as_ref().ok_or("no daemon to ask")?;
        let first = admin.status(None)?.into_iter().next();
        Ok(first.ok_or("no guest")?.counters)
    }

    /// All frames that the daemon counted, of all guests.
    ///
    /// # Errors
    /// As for [`counters`](Self::counters).
    pub fn frames(&self) -> Result<u64> {
        let admin = self.admin.as_ref().ok_or("no daemon to ask")?;
        let frames = |port: PortStatus| {
            port.counters.guest_to_host.frames_in + port.counters.host_to_guest.frames_in
        };
        Ok(admin.status(None)?.into_iter().map(frames).sum())
    }

    /// The process of this role.
    pub fn pid(&mut self, role: &str) -> Option<u32> {
        let found = self.processes.iter_mut().find(|(name, _)| *name == role);
        found.map(|(_, helper)| helper.child_mut().id())
    }
}

/// Reads one line of `/proc/net/dev`, of an interface that faces the target.
fn parse_traffic(text: &str, name: &str) -> Option<Traffic> {
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = line
        .split_whitespace()
        .map(|word| word.parse().ok())
        .collect::<Option<_>>()?;
    // Received: bytes, packets, and six more; then the same for sent.
    Some(Traffic {
        from_target: (*numbers.get(1)?, *numbers.first()?),
        to_target: (*numbers.get(9)?, *numbers.get(8)?),
    })
}

/// An IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_and_bytes_are_read_from_the_line_of_the_interface() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets\n  \
                    tap1: 9 8 0 0 0 0 0 0 7 6 0 0 0 0 0 0\n    \
                    tap: 1000 10 0 0 0 0 0 0 400 4 0 0 0 0 0 0\n";
        let traffic = parse_traffic(text, "tap").unwrap();
        assert_eq!(traffic.from_target, (10, 1000));
        assert_eq!(traffic.to_target, (4, 400));
        assert_eq!(parse_traffic(text, "tap2"), None);
    }
}
