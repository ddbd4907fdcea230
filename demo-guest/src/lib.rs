//! Applications for a guest, and a guest that is a process.
//!
//! The applications are `no_std` and know nothing but
//! [`Network`](guest_stack::face::asynchronous::Network): the same code runs in a
//! process and on bare metal. They are futures on the small [`executor`], so one
//! thread drives the stack and all of them.
//!
//! | port | what |
//! | --- | --- |
//! | TCP 80 | HTTP/1.1: `/` tells about the guest, `/bytes/N` sends N bytes |
//! | TCP 7 | echo |
//! | TCP 5001 | sink: reads to the end, answers `<bytes> <SHA-256>` |
//! | TCP 5002 | source: reads `<bytes> <seed>`, sends that much of [`pattern`] |
//! | UDP 7 | echo, by a datagram callback |
#![no_std]

extern crate alloc;

pub mod apps;
pub mod executor;
pub mod pattern;
