//! What guest and host say to each other beside the frames: which version they
//! speak, which addresses and MTU hold, and what changes later.
//!
//! ```text
//!   guest-stack                                      host-bridge
//!   ┌──────────────┐   Hello ──────────────────►   ┌─────────────┐
//!   │ GuestControl │   ◄────────── Accept / Refuse │ HostControl │
//!   │              │   Configure, Report, Ping ─►  │             │
//!   │              │   ◄── Update, Ping            │             │
//!   └──────────────┘   ◄──── one answer each ────► └─────────────┘
//! ```
//!
//! | file | what it holds |
//! | --- | --- |
//! | `wire` | the header and the options every message body is made of |
//! | [`config`] | [`NetworkConfig`]: what a guest needs to know about its network |
//! | [`hello`] | the first exchange, frozen for ever |
//! | [`message`] | the messages of version 1 |
//! | `outbox` | messages that wait for room on the link |
//! | [`guest`] | the guest's side as a state machine without I/O |
//! | [`host`] | the host's side as a state machine without I/O |
//!
//! The machines know no link, no clock and no memory but their own: the owner
//! moves whole messages between them and [`crate::link::Link::recv_control`] and
//! [`crate::link::Link::send_control`]. The channel is reliable and in order, so
//! nothing is ever sent twice and nobody needs a timer.
//!
//! # Rules of the channel
//! - A session begins with a Hello, which the guest may send at any time. What
//!   either side asked before it is forgotten, and answers to it are ignored.
//! - Every request inside a session gets exactly one answer with its id. Answers
//!   are never answered.
//! - A guest may have any number of requests open; a host has at most
//!   [`MAX_HOST_REQUESTS`]. The guest keeps room for that many answers apart from
//!   its own requests, so it can always read, and the two sides cannot block
//!   each other.

pub mod config;
pub mod guest;
pub mod hello;
pub mod host;
pub mod message;
mod outbox;
mod wire;

pub use config::{ConfigError, NetworkConfig, Prefixed};
pub use guest::{GuestControl, GuestEvent, GuestOffer, GuestState};
pub use hello::{Refusal, RefusalReason, VersionRange};
pub use host::{HostControl, HostEvent, HostOffer, HostState};
pub use message::{ErrorCode, Level};
pub use outbox::NotNow;
pub use wire::{DecodeError, DecodeErrorKind, EncodeError};

/// Requests a host may have open at one guest: an update and a ping, and two
/// that later releases may add.
pub const MAX_HOST_REQUESTS: usize = 4;

/// Longest explanation in an error or a goodbye, in bytes of UTF-8.
pub const MAX_WORDS_LEN: usize = 160;

/// Longest text of a report, in bytes of UTF-8.
pub const MAX_TEXT_LEN: usize = 1024;

/// Longest host name, in bytes (one DNS label, RFC 1035 section 2.3.4).
pub const MAX_NAME_LEN: usize = 63;

/// Longest domain name, in bytes (RFC 1035 section 2.3.4 without the root dot).
pub const MAX_DOMAIN_LEN: usize = 253;

/// A host name of bounded length.
pub type Name = heapless::String<MAX_NAME_LEN>;

/// A domain name of bounded length.
pub type Domain = heapless::String<MAX_DOMAIN_LEN>;
