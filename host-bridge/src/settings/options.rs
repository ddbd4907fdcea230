//! What an administrator writes: the flags of `host-bridge run` and the
//! configuration file, which are the same settings under the same names.
//!
//! A flag wins over the file. [`Settings::new`](super::Settings::new) gives
//! what is left out its default and checks the whole; here only the single
//! value is looked at.

use std::fmt::Display;
use std::fs;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer};
use shm_link::linux::address::{Address, AddressError};

use super::SettingsError;
use super::port::PortTable;
use crate::filter::FilterConfig;
use crate::impair::ImpairConfig;
use crate::limit::LimitConfig;

const LISTEN: &str = "Where the daemon listens";
const GUESTS: &str = "Guests that come and go";
const TAPS: &str = "TAPs and memory";
const FILTER: &str = "Filter";
const LIMITS: &str = "Limits";
const IMPAIR: &str = "Fault injection";
const PROCESS: &str = "Process";
const RIGHTS: &str = "Rights after the start";

/// All settings of the daemon, none of them filled in.
#[derive(Debug, Default, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Where guests attach: a path, or @name for an abstract socket.
    ///
    /// Default /run/host-bridge.sock. Guests of the daemon's own user and of
    /// root may attach; see --allow-user.
    #[arg(long, value_name = "ADDR", help_heading = LISTEN)]
    #[serde(deserialize_with = "from_text")]
    pub socket: Option<Address>,

    /// Where guests attach that share no memory and speak the stream protocol:
    /// a path or @name. Default: nowhere.
    #[arg(long, value_name = "ADDR", help_heading = LISTEN)]
    #[serde(deserialize_with = "from_text")]
    pub stream: Option<Address>,

    /// A serial line with a guest at its other end: a serial port or a pty.
    ///
    /// May be repeated. Each keeps one guest's place; its speed stays what it is
    /// (see stty).
    #[arg(long = "serial", value_name = "DEVICE", help_heading = LISTEN)]
    pub serials: Vec<PathBuf>,

    /// The number of a user whose guests may attach as well.
    ///
    /// May be repeated. The kernel is asked whose each client is; the sockets'
    /// files are then open to all. The admin socket is not meant.
    #[arg(long = "allow-user", value_name = "UID", help_heading = LISTEN)]
    pub allow_users: Vec<u32>,

    /// Where `status` and `set` reach the daemon: a path, @name, or "off".
    ///
    /// Default: the attach socket's address with ".admin" behind it. It answers
    /// the daemon's own user and root only.
    #[arg(long, value_name = "ADDR", help_heading = LISTEN)]
    #[serde(deserialize_with = "from_text")]
    pub admin: Option<AdminChoice>,

    /// Read settings from a TOML file; flags win over it.
    ///
    /// Its keys are these flags' names with _ for -, except `taps`, `serials`,
    /// `allow_users`, `[filter]` (keys as in --allow-..., and `enabled`) and `[[port]]`, a guest with a
    /// socket and an identity of its own: name, socket, mac, addresses,
    /// gateways, host_addresses, bridge, tap or existing_tap, mtu, dns, dhcp,
    /// slaac, hostname, domain, ring_bytes, allow_users, filter,
    /// limit_to_host, limit_to_guest, impair_to_host, impair_to_guest.
    #[arg(long, value_name = "FILE", help_heading = LISTEN)]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Make every guest's TAP a port of this Linux bridge, which exists already.
    ///
    /// Guests then share the subnets, whose first address is the bridge's.
    /// Default: routed, every guest has a small subnet of its own with the host.
    #[arg(long, value_name = "NAME", help_heading = GUESTS)]
    pub bridge: Option<String>,

    /// IPv4 addresses for the guests.
    ///
    /// Default 10.77.0.0/16 when routed and --net6 is not given either, else
    /// none. Routed guests take a /30 of it each.
    #[arg(long, value_name = "CIDR", help_heading = GUESTS)]
    pub net4: Option<Ipv4Net>,

    /// IPv6 addresses for the guests.
    ///
    /// Default fd77::/64 when routed and --net4 is not given either, else none.
    /// Routed guests take a /126 of it each.
    #[arg(long, value_name = "CIDR", help_heading = GUESTS)]
    pub net6: Option<Ipv6Net>,

    /// Guests ask for IPv4 addresses by DHCP on the link.
    ///
    /// What the DHCP server gives them must be among the --allow-source subnets.
    #[arg(long, help_heading = GUESTS)]
    pub dhcp: bool,

    /// Guests make IPv6 addresses from router advertisements on the link.
    #[arg(long, help_heading = GUESTS)]
    pub slaac: bool,

    /// Longest packet in bytes, without the Ethernet header.
    ///
    /// Default 1500; from 576 (1280 with IPv6) to 65521. A guest that can do
    /// less gets less.
    #[arg(long, value_name = "BYTES", help_heading = GUESTS)]
    pub mtu: Option<u16>,

    /// A DNS server that guests are told; at most four.
    #[arg(long, value_name = "IP", help_heading = GUESTS)]
    pub dns: Vec<IpAddr>,

    /// Most guests at a time: 1 to 4096, default 64.
    ///
    /// 0 where the configuration file has `[[port]]`s and no others may attach.
    #[arg(long, value_name = "N", help_heading = GUESTS)]
    pub max_guests: Option<u16>,

    /// Ports and TAPs are named by this and a number; default "guest".
    #[arg(long, value_name = "TEXT", help_heading = GUESTS)]
    pub name_prefix: Option<String>,

    /// A persistent TAP that exists already, for the first guest that has none.
    ///
    /// May be repeated. Guests beyond these get a TAP that goes with them.
    #[arg(long = "tap", value_name = "NAME", help_heading = TAPS)]
    pub taps: Vec<String>,

    /// An inherited descriptor attached to a TAP (IFF_TAP | IFF_NO_PI), for the
    /// first guest.
    ///
    /// The daemon takes the descriptor over; it must be 3 or above.
    #[arg(long, value_name = "N", help_heading = TAPS)]
    #[serde(skip)]
    pub tap_fd: Option<RawFd>,

    /// Have each packet pass the TAP by itself, finished, as on a wire.
    ///
    /// Without this, checksums and the cutting of long segments are left to the
    /// other side where kernel and guest can do them: several times as fast. A guest
    /// that cannot needs no flag: the bridge does it for the guest.
    #[arg(long, help_heading = TAPS)]
    pub no_offloads: bool,

    /// Bytes of each guest's ring of frames, in each direction.
    ///
    /// Default 524288; a power of two from 8192 to 268435456. Half of it bounds
    /// the longest frame; more absorbs longer bursts and costs memory.
    #[arg(long, value_name = "BYTES", help_heading = TAPS)]
    pub ring_bytes: Option<usize>,

    #[command(flatten)]
    #[serde(skip)]
    #[allow(
        missing_docs,
        reason = "documentation here would replace the command's"
    )]
    pub filter_flags: FilterFlags,

    /// What guests' frames are checked for (file only).
    #[arg(skip)]
    pub filter: Option<FilterConfig>,

    /// How much each guest may send, such as rate=100mbit,frames=20000.
    ///
    /// Keys: rate (bit, kbit, mbit, gbit per second), burst (b, kib, mib at once;
    /// default 10 ms of the rate, at least 64kib), frames (per second). A guest at its
    /// limit waits; nothing is dropped. Default "off".
    #[arg(long, value_name = "TEXT", help_heading = LIMITS)]
    pub limit_to_host: Option<LimitConfig>,

    /// The same for frames to each guest. What waits, waits in the kernel's queue.
    #[arg(long, value_name = "TEXT", help_heading = LIMITS)]
    pub limit_to_guest: Option<LimitConfig>,

    /// Harm frames from guests on purpose, such as loss=1%,delay=20ms.
    ///
    /// Keys: loss, dup, reorder, gap, corrupt, delay, jitter, rate, burst,
    /// limit, seed. Default "off".
    #[arg(long, value_name = "TEXT", help_heading = IMPAIR)]
    pub impair_to_host: Option<ImpairConfig>,

    /// The same for frames to guests.
    #[arg(long, value_name = "TEXT", help_heading = IMPAIR)]
    pub impair_to_guest: Option<ImpairConfig>,

    /// Threads that move frames: 1 to 256, default one per processor.
    #[arg(long, value_name = "N", help_heading = PROCESS)]
    pub workers: Option<usize>,

    /// What the daemon and its keeper may use of memory, guests included, such as 64mib.
    ///
    /// A guest for whom too little is left is turned away. Default: what the control group
    /// allows, if it says.
    #[arg(long, value_name = "SIZE", help_heading = PROCESS)]
    pub memory: Option<String>,

    /// Keep all rights after the start, for debugging: none of the three below.
    #[arg(long, help_heading = RIGHTS)]
    pub no_sandbox: bool,

    /// Keep the capabilities that the daemon was started with.
    ///
    /// Without this it keeps CAP_NET_ADMIN alone, and not even that where every
    /// guest has a TAP that needs no more setting up.
    #[arg(long, help_heading = RIGHTS)]
    pub keep_capabilities: bool,

    /// Filter no system calls.
    ///
    /// Without this, calls that the daemon does not need fail with EPERM, and
    /// those that only an intruder would make (execve, ptrace, ...) end it.
    #[arg(long, help_heading = RIGHTS)]
    pub no_seccomp: bool,

    /// Do not restrict which files may be opened (Landlock).
    #[arg(long, help_heading = RIGHTS)]
    pub no_landlock: bool,

    /// Guests with a socket and an identity of their own (file only).
    #[arg(skip)]
    #[serde(rename = "port")]
    pub ports: Vec<PortTable>,
}

/// The filter's switches as flags. Each adds to what the file says.
#[derive(Debug, Default, clap::Args)]
pub struct FilterFlags {
    /// Do not check guests' frames at all.
    ///
    /// A guest may then send in any other guest's name.
    #[arg(long, help_heading = FILTER)]
    pub no_filter: bool,

    /// A subnet whose addresses guests may use besides their own.
    #[arg(long = "allow-source", value_name = "CIDR", help_heading = FILTER)]
    pub allow_sources: Vec<IpNet>,

    /// Guests may ask for addresses by DHCPv4 and probe for them.
    #[arg(long, help_heading = FILTER)]
    pub allow_dhcp: bool,

    /// Guests may use any IPv6 address made from their MAC address.
    #[arg(long, help_heading = FILTER)]
    pub allow_slaac: bool,

    /// Guests may answer as DHCP servers.
    #[arg(long, help_heading = FILTER)]
    pub allow_dhcp_server: bool,

    /// Guests may send IPv6 router advertisements and redirects.
    #[arg(long, help_heading = FILTER)]
    pub allow_router: bool,

    /// Guests may send frames with up to two VLAN tags.
    #[arg(long, help_heading = FILTER)]
    pub allow_vlan: bool,

    /// An EtherType besides IPv4, ARP and IPv6 that guests may send, such as
    /// 0x88cc.
    #[arg(long = "allow-ethertype", value_name = "NUMBER", value_parser = ethertype, help_heading = FILTER)]
    pub allow_ethertypes: Vec<u16>,

    /// How many broadcasts and multicasts a guest may send per second [default:
    /// 1000]; 0: any number.
    #[arg(long, value_name = "NUMBER", help_heading = FILTER)]
    pub groups_per_second: Option<u32>,
}

impl FilterFlags {
    pub(super) fn apply(self, filter: &mut FilterConfig) {
        filter.enabled &= !self.no_filter;
        filter.allow_sources.extend(self.allow_sources);
        filter.allow_dhcp |= self.allow_dhcp;
        filter.allow_slaac |= self.allow_slaac;
        filter.allow_dhcp_server |= self.allow_dhcp_server;
        filter.allow_router |= self.allow_router;
        filter.allow_vlan |= self.allow_vlan;
        filter.allow_ethertypes.extend(self.allow_ethertypes);
        if let Some(groups) = self.groups_per_second {
            filter.groups_per_second = groups;
        }
    }
}

impl Options {
    /// The flags over the configuration file, if they name one.
    ///
    /// # Errors
    /// [`SettingsError`] if the file cannot be read or has a mistake; it says in
    /// which line.
    pub fn with_file(self) -> Result<Self, SettingsError> {
        match &self.config {
            Some(path) => Ok(Self::read(path)?.below(self)),
            None => Ok(self),
        }
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// As for [`with_file`](Self::with_file).
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = fs::read_to_string(path).map_err(|source| SettingsError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|error| SettingsError::File {
            path: path.to_owned(),
            error: Box::new(error),
        })
    }

    /// Parses the text of a configuration file.
    ///
    /// # Errors
    /// The mistake and its line.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// These, except where `flags` says otherwise.
    fn below(self, flags: Self) -> Self {
        fn list<T>(flags: Vec<T>, file: Vec<T>) -> Vec<T> {
            if flags.is_empty() { file } else { flags }
        }
        Self {
            socket: flags.socket.or(self.socket),
            stream: flags.stream.or(self.stream),
            serials: list(flags.serials, self.serials),
            allow_users: list(flags.allow_users, self.allow_users),
            admin: flags.admin.or(self.admin),
            config: flags.config,
            bridge: flags.bridge.or(self.bridge),
            net4: flags.net4.or(self.net4),
            net6: flags.net6.or(self.net6),
            dhcp: flags.dhcp || self.dhcp,
            slaac: flags.slaac || self.slaac,
            mtu: flags.mtu.or(self.mtu),
            dns: list(flags.dns, self.dns),
            max_guests: flags.max_guests.or(self.max_guests),
            name_prefix: flags.name_prefix.or(self.name_prefix),
            taps: list(flags.taps, self.taps),
            tap_fd: flags.tap_fd,
            no_offloads: flags.no_offloads || self.no_offloads,
            ring_bytes: flags.ring_bytes.or(self.ring_bytes),
            filter_flags: flags.filter_flags,
            filter: self.filter,
            limit_to_host: flags.limit_to_host.or(self.limit_to_host),
            limit_to_guest: flags.limit_to_guest.or(self.limit_to_guest),
            impair_to_host: flags.impair_to_host.or(self.impair_to_host),
            impair_to_guest: flags.impair_to_guest.or(self.impair_to_guest),
            workers: flags.workers.or(self.workers),
            memory: flags.memory.or(self.memory),
            no_sandbox: flags.no_sandbox || self.no_sandbox,
            keep_capabilities: flags.keep_capabilities || self.keep_capabilities,
            no_seccomp: flags.no_seccomp || self.no_seccomp,
            no_landlock: flags.no_landlock || self.no_landlock,
            ports: self.ports,
        }
    }
}

/// Whether there is an admin socket, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminChoice {
    /// There is none.
    Off,
    /// At this address.
    At(Address),
}

impl FromStr for AdminChoice {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text {
            "off" => Ok(Self::Off),
            text => text.parse().map(Self::At),
        }
    }
}

fn ethertype(text: &str) -> Result<u16, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "a number such as 0x88cc or 35020 is expected".to_owned())
}

/// A value that stands in the file as text.
pub(super) fn from_text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    let text = String::deserialize(deserializer)?;
    let value = text
        .parse()
        .map_err(|why| serde::de::Error::custom(format!("{text:?}: {why}")))?;
    Ok(Some(value))
}
