//! Shared memory, doorbells and the attach handshake on Linux.
//!
//! What a process guest and the host's daemon need around the `no_std` core:
//! the memory both map, the eventfds they wake each other with, and the short
//! conversation over a unix socket that hands them over.
//!
//! | file | what it is |
//! | --- | --- |
//! | [`memory`] | a sealed memfd and its mapping; gives a [`Region`](crate::region::Region) |
//! | [`event`] | an eventfd as doorbell and wait |
//! | [`address`] | where the daemon listens: `/path` or `@name` |
//! | [`wire`] | one message of the handshake on the socket: a number, perhaps an fd |
//! | [`ivshmem`] | the handshake itself, without I/O: QEMU's ivshmem-server protocol |
//! | [`attach`] | a process guest's side: connect, handshake, map |
//!
//! A file uses only those above it. Linux 5.8 or newer is needed.

pub mod memory;
pub mod event;
pub mod address;
pub mod wire;
pub mod ivshmem;
pub mod attach;
