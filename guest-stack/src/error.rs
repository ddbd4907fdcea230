//! Errors of the stack, sorted by who is to blame.
//!
//! "Not now" is [`StreamError::WouldBlock`] and its kin, small and `Copy`.
//! What a peer on the wire does wrong never becomes an error here: it is
//! dropped and counted ([`crate::counters`]). What the link's other side does
//! wrong is a [`shm_link::fault::LinkError`] in [`crate::stack::Poll`].

use core::fmt;

use embedded_io::ErrorKind;

/// Why a configuration cannot be applied. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigError {
    /// The MAC address is a group address or all zero.
    Mac,
    /// The MTU is below 576 bytes, or below 1280 with IPv6 in use, or above
    /// what an IP packet can hold (65,535).
    Mtu,
    /// An address is not unicast, or a prefix is longer than the address.
    Address,
    /// More addresses than the stack was built for
    /// (`SMOLTCP_IFACE_MAX_ADDR_COUNT`, less one for the IPv6 link-local
    /// address that the stack makes itself).
    TooManyAddresses,
    /// A gateway is not a unicast address.
    Gateway,
    /// The configuration asks for a protocol that this stack was told to leave
    /// off ([`crate::config::Protocols`]).
    ProtocolOff,
    /// Segmentation was switched on without checksum offload.
    Offloads,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mac => "the MAC address is not a unicast address",
            Self::Mtu => "the MTU is outside 576 (IPv6: 1280) to 65535 bytes",
            Self::Address => "an address is not unicast or its prefix is too long",
            Self::TooManyAddresses => "more addresses than the stack was built for",
            Self::Gateway => "a gateway is not a unicast address",
            Self::ProtocolOff => "the configuration needs a protocol that is switched off",
            Self::Offloads => "segmentation offload needs checksum offload",
        })
    }
}

impl core::error::Error for ConfigError {}

/// Why a port cannot be bound, listened on or connected from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindError {
    /// Another socket has the port on an overlapping address.
    AddrInUse,
    /// The address does not belong to this stack.
    AddrNotAvailable,
    /// Every ephemeral port is taken.
    NoFreePort,
    /// TCP, UDP or the IP version is switched off.
    ProtocolOff,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AddrInUse => "the port is in use on an overlapping address",
            Self::AddrNotAvailable => "the address does not belong to this stack",
            Self::NoFreePort => "every ephemeral port is taken",
            Self::ProtocolOff => "the protocol is switched off",
        })
    }
}

impl core::error::Error for BindError {}

/// What an operation on a TCP stream or listener reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamError {
    /// Not now: nothing to read, no room to write, nobody to accept, or the
    /// handshake is under way.
    WouldBlock,
    /// The other end reset the connection.
    ConnectionReset,
    /// The other end answered the connection attempt with a reset.
    ConnectionRefused,
    /// The other end was silent for longer than the option allows (connect,
    /// user timeout, keep-alive), or a read or write timeout ran out.
    TimedOut,
    /// This end aborted the connection.
    ConnectionAborted,
    /// This end's address was taken away by a new configuration.
    AddrNotAvailable,
    /// Writing after the write half was shut down, or after the connection ended.
    BrokenPipe,
    /// There is no route to the other end.
    Unreachable,
    /// The local side of a connection attempt could not be bound.
    Bind(BindError),
    /// The handle names no stream: it was closed.
    UnknownHandle,
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WouldBlock => "not ready",
            Self::ConnectionReset => "the other end reset the connection",
            Self::ConnectionRefused => "the other end refused the connection",
            Self::TimedOut => "the time ran out",
            Self::ConnectionAborted => "this end aborted the connection",
            Self::AddrNotAvailable => "the local address was taken away",
            Self::BrokenPipe => "the write half is closed",
            Self::Unreachable => "there is no route to the address",
            Self::Bind(error) => return error.fmt(f),
            Self::UnknownHandle => "the handle names no socket",
        })
    }
}

impl core::error::Error for StreamError {}

impl From<BindError> for StreamError {
    fn from(error: BindError) -> Self {
        Self::Bind(error)
    }
}

impl embedded_io::Error for StreamError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::ConnectionReset => ErrorKind::ConnectionReset,
            Self::ConnectionRefused => ErrorKind::ConnectionRefused,
            Self::TimedOut => ErrorKind::TimedOut,
            Self::ConnectionAborted => ErrorKind::ConnectionAborted,
            Self::AddrNotAvailable | Self::Unreachable => ErrorKind::AddrNotAvailable,
            Self::BrokenPipe => ErrorKind::BrokenPipe,
            Self::Bind(BindError::AddrInUse) => ErrorKind::AddrInUse,
            Self::Bind(_) => ErrorKind::AddrNotAvailable,
            Self::UnknownHandle => ErrorKind::NotConnected,
            Self::WouldBlock => ErrorKind::Other,
        }
    }
}

/// What an operation on a UDP socket reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UdpError {
    /// Not now: no datagram is waiting, or the send queue is full.
    WouldBlock,
    /// The datagram does not fit: longer than the socket's send queue or, over
    /// IPv6, than one packet of the MTU or of what the path carries
    /// ([`udp_longest_payload`](crate::sockets::Sockets::udp_longest_payload)).
    MessageTooLong,
    /// The destination is unspecified, has port 0, or is of an IP version that
    /// is off or that the socket is not bound to.
    AddrNotAvailable,
    /// A read timeout ran out.
    TimedOut,
    /// The handle names no socket: it was closed.
    UnknownHandle,
}

impl fmt::Display for UdpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WouldBlock => "not ready",
            Self::MessageTooLong => "the datagram is too long",
            Self::AddrNotAvailable => "the destination cannot be reached from this socket",
            Self::TimedOut => "the time ran out",
            Self::UnknownHandle => "the handle names no socket",
        })
    }
}

impl core::error::Error for UdpError {}

impl embedded_io::Error for UdpError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::WouldBlock => ErrorKind::Other,
            Self::MessageTooLong => ErrorKind::InvalidInput,
            Self::AddrNotAvailable => ErrorKind::AddrNotAvailable,
            Self::TimedOut => ErrorKind::TimedOut,
            Self::UnknownHandle => ErrorKind::NotConnected,
        }
    }
}

/// A registration under this key exists already; remove it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlreadyRegistered;

impl fmt::Display for AlreadyRegistered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a handler is registered under this key already")
    }
}

impl core::error::Error for AlreadyRegistered {}

/// A frame or packet could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// The link has no room now.
    NoRoom,
    /// Longer than the link or the MTU allows, or shorter than its headers.
    Length,
    /// A reply, but the handler was not called for a frame (a stream's handler
    /// never is).
    NoFrame,
    /// The stack has no address of the right version to send from.
    NoAddress,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoom => "the link has no room now",
            Self::Length => "the frame's length does not fit the link",
            Self::NoFrame => "there is no frame to reply to",
            Self::NoAddress => "there is no address to send from",
        })
    }
}

impl core::error::Error for SendError {}
