//! What the environment can refuse the bridge, in words that say what to do.
//!
//! [`TapError`] comes from opening a TAP, [`NetlinkError`] from configuring the
//! host's interfaces, [`BridgeError`] is either, or plain I/O with the name of
//! what was being done. What a guest does wrong is not an error here: it is a
//! [`PeerFault`](shm_link::fault::PeerFault) or a
//! [`DropReason`](crate::counters::DropReason).

use std::io;

use thiserror::Error;

/// Something the bridge needs from its environment failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// A TAP could not be opened or set up.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The host's network configuration could not be read or changed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// There is too little memory for another guest.
    #[error(
        "no memory for it: it may come to need {}, and those who are there {} of {} for all guests: \
         allow the daemon more (--memory, or its control group), or give guests smaller rings \
         (--ring-bytes)",
        kib(*needed), kib(*used), kib(*allowed)
    )]
    Memory {
        /// Bytes that the guest may come to need.
        needed: u64,
        /// Bytes that the others may.
        used: u64,
        /// Bytes that all together may.
        allowed: u64,
    },
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, as a clause: "binding the socket /run/x".
        doing: String,
        /// What the system answered.
        source: io::Error,
    },
}

impl BridgeError {
    /// An I/O error together with what was being done.
    pub fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            doing: doing.into(),
            source,
        }
    }

    /// Whether the other end of a connection was gone.
    pub(crate) fn is_hang_up(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        match self {
            Self::Io { source, .. } => matches!(source.kind(), BrokenPipe | ConnectionReset),
            Self::Tap(_) | Self::Netlink(_) | Self::Memory { .. } => false,
        }
    }
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes >> 10)
}

/// Why a TAP interface could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TapError {
    /// The name cannot be an interface's name.
    #[error("{name:?} cannot be the name of a network interface: {why}")]
    InvalidName {
        /// The name as it was given.
        name: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// A TAP was to be created, but its name is in use.
    #[error(
        "a network interface named {name} exists already: choose another name, remove it \
         (`ip link del {name}`), or, if it is a persistent TAP, attach to it instead of creating it"
    )]
    NameTaken {
        /// The interface's name.
        name: String,
    },
    /// All names of a `%d` pattern are in use.
    #[error("every interface name that fits {pattern:?} is in use: choose another pattern")]
    NoFreeName {
        /// The pattern as it was given.
        pattern: String,
    },
    /// The TAP to attach to does not exist.
    #[error(
        "there is no persistent TAP named {name}: create it with \
         `ip tuntap add mode tap name {name} user <the user who runs the bridge>`"
    )]
    NoSuchTap {
        /// The interface's name.
        name: String,
    },
    /// The interface exists but is no TAP of the kind the bridge uses.
    #[error(
        "{name} is not a single-queue TAP interface (see `ip -d link show {name}`): choose a TAP \
         made by `ip tuntap add mode tap name <name>`"
    )]
    NotATap {
        /// The interface's name.
        name: String,
    },
    /// Another process has the TAP open.
    #[error("the TAP {name} is in use by another process: stop that process or choose another TAP")]
    Busy {
        /// The interface's name.
        name: String,
    },
    /// The TAP driver's device file may not be opened.
    #[error(
        "no permission to open /dev/net/tun: run the bridge as root, or let the administrator give \
         you access (most distributions do: `chmod 0666 /dev/net/tun`)"
    )]
    DeviceDenied,
    /// The TAP driver's device file does not exist or has no driver behind it.
    #[error(
        "/dev/net/tun does not exist or has no driver: load it with `modprobe tun`, or, in a \
         container, pass the device in (`--device /dev/net/tun`)"
    )]
    DeviceMissing,
    /// The kernel refuses to create or attach the TAP.
    #[error(
        "no permission to use the TAP {name}: creating one needs CAP_NET_ADMIN. Run the bridge as \
         root, run it in a namespace of your own (`unshare --user --map-root-user --net`), or let \
         the administrator make a persistent TAP that belongs to you (`ip tuntap add mode tap name \
         <name> user <you>`) and attach to that"
    )]
    NotPermitted {
        /// The name or pattern that was asked for.
        name: String,
    },
    /// The descriptor that was passed in is not an attached TAP.
    #[error(
        "the file descriptor passed in is not an open TAP: open /dev/net/tun and attach it \
         (TUNSETIFF with IFF_TAP and IFF_NO_PI) before passing it on"
    )]
    NotATapDescriptor,
    /// Any other refusal.
    #[error("{doing} the TAP {name}: {source}")]
    Io {
        /// What was being done: "opening", "making non-blocking".
        doing: &'static str,
        /// The interface's name, or what was asked for.
        name: String,
        /// What the system answered.
        source: io::Error,
    },
}

/// Why the host's network configuration could not be read or changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("opening a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// An interface that was named does not exist.
    #[error("there is no network interface named {name} in this network namespace (see `ip link`)")]
    NoSuchLink {
        /// The interface's name.
        name: String,
    },
    /// The bridge that a TAP shall join does not exist.
    #[error(
        "the bridge {name} does not exist: create it with `ip link add {name} type bridge` and \
         `ip link set {name} up`"
    )]
    NoSuchBridge {
        /// The bridge's name.
        name: String,
    },
    /// The interface that a TAP shall join is no bridge.
    #[error(
        "{name} is not a bridge but {kind}: name an interface made by `ip link add <name> type bridge`"
    )]
    NotABridge {
        /// The interface's name.
        name: String,
        /// What it is instead.
        kind: String,
    },
    /// The kernel does not let this process change the configuration.
    #[error(
        "{doing}: not permitted. It needs CAP_NET_ADMIN in this network namespace: run as root, or \
         in a namespace of your own (`unshare --user --map-root-user --net`), or have somebody who \
         may do it beforehand (`ip link set`, `ip address add`)"
    )]
    NotPermitted {
        /// What was being done.
        doing: String,
    },
    /// The kernel refused the request.
    #[error("{doing}: {source}")]
    Refused {
        /// What was being done.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The answer was not one the request can have.
    #[error("{doing}: unexpected answer over netlink: {detail}")]
    Protocol {
        /// What was being done.
        doing: String,
        /// What came instead.
        detail: String,
    },
}

impl NetlinkError {
    /// Whether the kernel refused because what was asked for is there already.
    pub fn is_already_there(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
    }
}
