//! A TCP/IP stack for guests without network hardware.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

pub use smoltcp;
pub use smoltcp::time;

pub mod error;
pub mod classify;
mod timers;
mod limiter;
mod sink;
mod device;
pub mod config;
pub mod counters;
mod flow;
pub mod ports;
pub mod tcp;
pub mod udp;
mod slaac;
mod autoconf;
mod fragments;
pub mod registry;
pub mod context;
pub mod sockets;
mod ingress;
mod egress;
pub mod control;
pub mod stack;
pub mod face;
