//! Everything the daemon has to know, checked before anything is opened.
//!
//! `host-bridge run` makes [`Options`] from its flags and its file;
//! [`Settings::new`] fills in defaults and checks that it all fits together,
//! or says which setting is wrong and what to do. [`Daemon`](crate::daemon::Daemon)
//! runs on the result. What only the system can know (whether a bridge exists,
//! whether TAPs may be made) the daemon checks when it starts.

mod options;
mod port;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use shm_link::linux::address::Address;
use shm_link::linux::memory::MAX_MEMORY_LEN;
use shm_link::superblock::{Layout, LayoutOptions};
use thiserror::Error;

pub use self::options::{AdminChoice, FilterFlags, Options};
use self::port::Inherited;
pub use self::port::{Mac, PortTable};
use crate::limit::Limits;
use crate::plan::{Assignment, Plan, PlanError, Topology};
use crate::sandbox::Parts;
use crate::server::{GivenTap, GuestPolicy, Places, Visitors};
use crate::units::{SIZE_UNITS, parse_scaled};

/// Where guests attach unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/host-bridge.sock";
/// What the admin socket's address has behind the attach socket's.
pub const ADMIN_SUFFIX: &str = ".admin";

const DEFAULT_NET4: &str = "10.77.0.0/16";
const DEFAULT_NET6: &str = "fd77::/64";
const DEFAULT_MTU: u16 = 1500;
const DEFAULT_MAX_GUESTS: u16 = 64;
const DEFAULT_PREFIX: &str = "guest";
const MAX_WORKERS: usize = 256;
/// The largest MTU of a TAP.
const MAX_MTU: u16 = 65_521;
/// More than a record's header, an Ethernet header and two VLAN tags.
const FRAME_OVERHEAD: usize = 64;

/// A mistake in what an administrator wrote.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The configuration file cannot be read.
    #[error("reading the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The configuration file has a mistake.
    #[error("the configuration file {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The mistake and its line.
        error: Box<toml::de::Error>,
    },
    /// One setting is wrong.
    #[error("{field}: {why}")]
    Field {
        /// The setting's name.
        field: String,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// The guests' plan does not work.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

fn wrong(field: impl Into<String>, why: impl Into<String>) -> SettingsError {
    SettingsError::Field {
        field: field.into(),
        why: why.into(),
    }
}

/// What a daemon runs on.
#[derive(Debug)]
pub struct Settings {
    /// Where it is administered; `None`: nowhere.
    pub admin: Option<Address>,
    /// Threads for its runtime; whoever makes the runtime looks at it.
    pub workers: usize,
    /// Bytes of memory that the daemon may use, guests included; `None`: what its control
    /// group says.
    pub memory: Option<u64>,
    /// Which rights the process gives up; whoever runs the daemon looks at it.
    pub sandbox: Parts,
    /// Where guests attach, and as whom.
    pub sockets: Vec<SocketSettings>,
}

/// One attach socket.
#[derive(Debug)]
pub struct SocketSettings {
    /// Its address, where guests attach that share memory.
    pub address: Address,
    /// Where guests attach that do not.
    pub stream: Option<Address>,
    /// Serial lines to guests; each keeps a place.
    pub serials: Vec<PathBuf>,
    /// Who may attach.
    pub places: Places,
    /// What they get besides.
    pub policy: GuestPolicy,
}

impl Settings {
    /// Fills in what is left out and checks the whole. `tap_fd` is the
    /// descriptor that [`Options::tap_fd`] names, already taken over.
    ///
    /// # Errors
    /// [`SettingsError`] names the setting.
    pub fn new(mut options: Options, tap_fd: Option<OwnedFd>) -> Result<Self, SettingsError> {
        let workers = workers(options.workers)?;
        let sandbox = Parts {
            capabilities: !(options.no_sandbox || options.keep_capabilities),
            calls: !(options.no_sandbox || options.no_seccomp),
            files: !(options.no_sandbox || options.no_landlock),
        };
        let memory = options.memory.as_deref().map(memory).transpose()?;
        let policy = policy(&mut options, tap_fd)?;
        let mtu = options.mtu.unwrap_or(DEFAULT_MTU);
        let socket = match options.socket.take() {
            Some(address) => address,
            None => address(DEFAULT_SOCKET)?,
        };
        let admin = match options.admin.take() {
            Some(AdminChoice::Off) => None,
            Some(AdminChoice::At(address)) => Some(address),
            None => Some(admin_address(&socket)?),
        };
        let inherited = Inherited {
            mtu,
            dns: &options.dns,
            policy: &policy,
        };
        let mut fixed = Vec::new();
        for port in std::mem::take(&mut options.ports) {
            fixed.push(port.settings(&inherited)?);
        }
        let mut sockets = Vec::new();
        match options.max_guests {
            Some(0) if fixed.is_empty() => {
                let why = "0 leaves nobody who may attach: raise it, or write [[port]]s into the \
                           configuration file";
                return Err(wrong("max_guests", why));
            }
            Some(0) if options.stream.is_some() || !options.serials.is_empty() => {
                let why = "0 leaves no place for guests at --stream and --serial: raise it";
                return Err(wrong("max_guests", why));
            }
            Some(0) => {}
            _ => sockets.push(shared_socket(options, mtu, socket, policy)?),
        }
        sockets.extend(fixed);
        check_mtu_of_all(&sockets)?;
        check_addresses_of_sockets(admin.as_ref(), &sockets)?;
        check_identities(&sockets)?;
        Ok(Self {
            admin,
            workers,
            memory,
            sandbox,
            sockets,
        })
    }
}

fn address(text: &str) -> Result<Address, SettingsError> {
    text.parse()
        .map_err(|error| wrong("admin", format!("{text}: {error}; say where it is to be")))
}

/// Where the daemon is administered whose guests attach at `socket`.
///
/// # Errors
/// [`SettingsError`] if the address is too long to have a neighbour.
pub fn admin_address(socket: &Address) -> Result<Address, SettingsError> {
    address(&format!("{socket}{ADMIN_SUFFIX}"))
}

fn workers(given: Option<usize>) -> Result<usize, SettingsError> {
    match given {
        Some(count @ 1..=MAX_WORKERS) => Ok(count),
        Some(count) => Err(wrong(
            "workers",
            format!("{count} is out of range: give 1 to {MAX_WORKERS}"),
        )),
        None => Ok(std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_WORKERS))),
    }
}

fn memory(text: &str) -> Result<u64, SettingsError> {
    parse_scaled(text, SIZE_UNITS).ok_or_else(|| {
        let why = format!("{text}: write a number and a unit, such as 64mib");
        wrong("memory", why)
    })
}

/// What all guests have in common.
fn policy(options: &mut Options, tap_fd: Option<OwnedFd>) -> Result<GuestPolicy, SettingsError> {
    let mut layout = LayoutOptions::default();
    if let Some(bytes) = options.ring_bytes {
        (layout.to_host_bytes, layout.to_guest_bytes) = (bytes, bytes);
    }
    let mut filter = options.filter.take().unwrap_or_default();
    std::mem::take(&mut options.filter_flags).apply(&mut filter);
    let mut taps: Vec<GivenTap> = Vec::new();
    taps.extend(tap_fd.map(|fd| GivenTap::Fd(Arc::new(fd))));
    taps.extend(options.taps.drain(..).map(GivenTap::Existing));
    check_rings(&layout, options.mtu.unwrap_or(DEFAULT_MTU))
        .map_err(|why| wrong("ring_bytes", why))?;
    Ok(GuestPolicy {
        layout,
        offloads: !options.no_offloads,
        filter,
        limits: Limits {
            to_host: options.limit_to_host.unwrap_or_default(),
            to_guest: options.limit_to_guest.unwrap_or_default(),
        },
        impair_to_host: options.impair_to_host.take().unwrap_or_default(),
        impair_to_guest: options.impair_to_guest.take().unwrap_or_default(),
        visitors: Visitors {
            also: std::mem::take(&mut options.allow_users),
        },
        taps,
    })
}

/// The socket of the guests that come and go.
fn shared_socket(
    options: Options,
    mtu: u16,
    address: Address,
    policy: GuestPolicy,
) -> Result<SocketSettings, SettingsError> {
    let (mut net4, mut net6) = (options.net4, options.net6);
    for (field, net) in [("net4", net4.map(IpNet::V4)), ("net6", net6.map(IpNet::V6))] {
        if let Some(net) = net
            && net != net.trunc()
        {
            let why = format!("{net} is an address in a subnet: write {}", net.trunc());
            return Err(wrong(field, why));
        }
    }
    let has_addresses = net4.is_some() || net6.is_some() || options.dhcp || options.slaac;
    let topology = match options.bridge {
        Some(bridge) => {
            if !has_addresses && policy.filter.enabled {
                let why = "guests on a bridge need addresses: give net4, net6, dhcp or slaac";
                return Err(wrong("bridge", why));
            }
            Topology::Bridged { bridge }
        }
        None => {
            if !has_addresses {
                (net4, net6) = (DEFAULT_NET4.parse().ok(), DEFAULT_NET6.parse().ok());
            }
            Topology::Routed
        }
    };
    let plan = Plan {
        topology,
        net4,
        net6,
        mtu,
        dhcp4: options.dhcp,
        slaac: options.slaac,
        dns: options.dns,
        max_guests: options.max_guests.unwrap_or(DEFAULT_MAX_GUESTS),
        prefix: options
            .name_prefix
            .unwrap_or_else(|| DEFAULT_PREFIX.to_owned()),
    };
    check_name(&plan.prefix, 11).map_err(|why| wrong("name_prefix", why))?;
    plan.check()?;
    if policy.taps.len() > usize::from(plan.max_guests) {
        let why = format!(
            "{} TAPs for at most {} guests: give fewer, or raise max_guests",
            policy.taps.len(),
            plan.max_guests
        );
        return Err(wrong("taps", why));
    }
    if options.serials.len() > usize::from(plan.max_guests) {
        let why = format!(
            "{} lines keep a place each, of {}: give fewer, or raise max_guests",
            options.serials.len(),
            plan.max_guests
        );
        return Err(wrong("serials", why));
    }
    Ok(SocketSettings {
        address,
        stream: options.stream,
        serials: options.serials,
        places: Places::Plan(plan),
        policy,
    })
}

/// Names of ports are names of interfaces, and appear in logs and commands.
fn check_name(name: &str, longest: usize) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let fits = (1..=longest).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with(['-', '.']);
    if fits {
        return Ok(());
    }
    Err(format!(
        "{name:?} will not do: write 1 to {longest} letters, digits, \"-\", \"_\" or \".\", a letter \
         or digit first"
    ))
}

fn check_rings(layout: &LayoutOptions, mtu: u16) -> Result<(), String> {
    let bytes = layout.to_host_bytes.min(layout.to_guest_bytes);
    if !Layout::new(*layout).is_ok_and(|layout| layout.region_len <= MAX_MEMORY_LEN) {
        return Err(format!("{bytes} is no power of two from 8192 to 268435456"));
    }
    let needed = usize::from(mtu) + FRAME_OVERHEAD;
    if bytes / 2 < needed {
        return Err(format!(
            "{bytes} bytes have no room for packets of {mtu} bytes: give at least {}, or a smaller \
             mtu",
            (2 * needed).next_power_of_two()
        ));
    }
    Ok(())
}

/// One identity that a guest can have.
struct Identity {
    owner: String,
    assignment: Assignment,
}

fn identities(sockets: &[SocketSettings]) -> Vec<Identity> {
    let mut all = Vec::new();
    for socket in sockets {
        match &socket.places {
            Places::Plan(plan) => all.extend((0..plan.max_guests).map(|slot| {
                let assignment = plan.assign(slot);
                let owner = format!("guest {}", assignment.name);
                Identity { owner, assignment }
            })),
            Places::One(assignment) => all.push(Identity {
                owner: format!("port {:?}", assignment.name),
                assignment: Assignment::clone(assignment),
            }),
        }
    }
    all
}

fn check_mtu_of_all(sockets: &[SocketSettings]) -> Result<(), SettingsError> {
    for socket in sockets {
        let (field, mtu) = match &socket.places {
            Places::Plan(plan) => ("mtu".to_owned(), plan.mtu),
            Places::One(one) => (format!("port {:?}, mtu", one.name), one.network.mtu),
        };
        if mtu > MAX_MTU {
            return Err(wrong(
                field,
                format!("{mtu} is more than a TAP can do: {MAX_MTU}"),
            ));
        }
    }
    Ok(())
}

fn check_addresses_of_sockets(
    admin: Option<&Address>,
    sockets: &[SocketSettings],
) -> Result<(), SettingsError> {
    let mut seen: Vec<&Address> = admin.into_iter().collect();
    for socket in sockets {
        for address in std::iter::once(&socket.address).chain(&socket.stream) {
            if seen.contains(&address) {
                let why = format!("{address} is given twice: each needs its own");
                return Err(wrong("socket", why));
            }
            seen.push(address);
        }
    }
    Ok(())
}

/// No two guests may be the same machine.
fn check_identities(sockets: &[SocketSettings]) -> Result<(), SettingsError> {
    let all = identities(sockets);
    let mut names = Unique::new("name");
    let mut macs = Unique::new("mac");
    let mut addresses = Unique::new("addresses");
    let mut subnets = Vec::new();
    for Identity { owner, assignment } in &all {
        let network = &assignment.network;
        names.add(assignment.name.clone(), owner)?;
        macs.add(Mac(network.mac).to_string(), owner)?;
        let v4 = network
            .v4
            .iter()
            .map(|a| (IpAddr::V4(a.addr), a.prefix_len));
        let v6 = network
            .v6
            .iter()
            .map(|a| (IpAddr::V6(a.addr), a.prefix_len));
        for (addr, prefix_len) in v4.chain(v6) {
            match &assignment.master {
                Some(bridge) => addresses.add(format!("{addr} on {bridge}"), owner)?,
                // The host itself is the neighbour of all guests without a bridge.
                None => subnets.extend(
                    IpNet::new(addr, prefix_len)
                        .ok()
                        .map(|net| (net.trunc(), owner)),
                ),
            }
        }
    }
    check_overlap(subnets)?;
    let mut taps = Unique::new("taps");
    for socket in sockets {
        let (owner, count) = match &socket.places {
            Places::Plan(plan) => ("the guests that come and go".to_owned(), plan.max_guests),
            Places::One(one) => (format!("port {:?}", one.name), 1),
        };
        for slot in 0..count {
            match socket.policy.taps.get(usize::from(slot)) {
                Some(GivenTap::New(name) | GivenTap::Existing(name)) => {
                    taps.add(name.clone(), &owner)?;
                }
                Some(GivenTap::Fd(_)) => {}
                None => taps.add(socket.places.assign(slot).name, &owner)?,
            }
        }
    }
    Ok(())
}

/// The kernel could not tell which TAP a packet is for.
fn check_overlap(mut subnets: Vec<(IpNet, &String)>) -> Result<(), SettingsError> {
    // In this order a subnet stands right before those inside it.
    subnets.sort_by_key(|(net, _)| (net.network(), net.prefix_len()));
    let mut widest: Option<(IpNet, &String)> = None;
    for (net, owner) in subnets {
        match widest {
            Some((outer, first)) if outer.contains(&net) => {
                if first != owner {
                    let why = format!(
                        "{net} of {owner} and {outer} of {first} overlap: without a bridge every \
                         guest needs a subnet of its own with the host"
                    );
                    return Err(wrong("addresses", why));
                }
            }
            _ => widest = Some((net, owner)),
        }
    }
    Ok(())
}

/// Values that may stand only once.
struct Unique {
    field: &'static str,
    seen: BTreeMap<String, String>,
}

impl Unique {
    fn new(field: &'static str) -> Self {
        Self {
            field,
            seen: BTreeMap::new(),
        }
    }

    fn add(&mut self, value: String, owner: &str) -> Result<(), SettingsError> {
        match self.seen.insert(value.clone(), owner.to_owned()) {
            None => Ok(()),
            Some(before) => Err(wrong(
                self.field,
                format!("{value} of {owner} is taken by {before}: choose another"),
            )),
        }
    }
}

#[cfg(test)]
mod tests;
