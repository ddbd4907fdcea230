//! A TCP/IP stack for guests without network hardware: smoltcp over a
//! [`shm_link`] frame link, with what a host needs around it.
//!
//! ```text
//!   application ──► faces: polled │ callbacks │ async │ blocking
//!                             │ one lock, or none
//!   Stack::poll(now) ─────────▼──────────────────────────────────────────────
//!      control ── NetConfig ─► Sockets
//!      frame in ─► classify ─► handlers ─► 5-tuple ─► one socket of its own ─┐
//!                                │           UDP port ─► one socket          ├► dirty list
//!                                │           SYN ─► listener, backlog        │  timer order
//!                                └─ ARP, ND, ICMP, application's SocketSet ──┘
//!      frame out ◄──────────── smoltcp writes into the link, in place ◄──────┘
//!   ─────────────────────────────────────────────────────────────────────────
//!   L: shm_link::link::Link
//! ```
//!
//! # Where to begin
//!
//! | you have | begin with |
//! | --- | --- |
//! | a loop of your own, or an interrupt | [`stack::Stack`]: poll, arm, sleep; sockets by [`sockets::Sockets`] |
//! | protocols of your own, or a small service | handlers: [`registry`] |
//! | tasks on an executor | [`face::asynchronous::Network`] |
//! | threads | [`face::blocking`], with a [`Platform`](face::platform::Platform) |
//! | smoltcp sockets | [`sockets::Sockets::with_application_sockets`] |
//!
//! All of them stand on one stack and may be mixed. Addresses come from a
//! [`config::NetConfig`], from the host ([`stack::Stack::with_control`]), or from
//! DHCP and router advertisements. Examples are below; the program
//! `examples/cost.rs` shows what a connection and a segment cost on your machine.
//!
//! # Files, from the lowest to the highest
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`error`] | errors, sorted by who is to blame |
//! | [`classify`] | what a frame is; the one parser of all frames |
//! | `timers` | deadlines in order |
//! | `limiter` | so many per second |
//! | `sink` | a device that shows one packet and hides what is sent |
//! | `tally` | what segments a socket sent |
//! | `run` | segments and datagrams that grow into one frame |
//! | `cut` | datagrams out of one frame |
//! | `path` | paths that carry less than the link |
//! | `device` | the link as smoltcp's device, one frame at a time |
//! | [`config`] | what a stack is told |
//! | [`counters`] | what happened to every frame |
//! | `flow` | the table: 5-tuples, slots, dirty list, timers |
//! | [`ports`] | which ports are taken |
//! | [`tcp`] | handshakes, listeners, streams, TIME-WAIT |
//! | [`udp`] | UDP sockets |
//! | `slaac`, `autoconf` | addresses found on the link |
//! | `fragments` | packets in pieces |
//! | [`registry`] | handlers by protocol, and their order |
//! | [`context`] | what a handler may do |
//! | [`sockets`] | all of the above in one place |
//! | `ingress` | one frame in |
//! | `egress` | one slot out |
//! | [`control`] | the conversation with the host |
//! | [`stack`] | a stack on a link, and the hot loop |
//! | [`face`] | sharing a stack: async and blocking sockets |
//!
//! # Example
//!
//! An echo service by callbacks, and the loop that drives any stack:
//!
//! ```
//! use guest_stack::config::{NetConfig, StackConfig};
//! use guest_stack::registry::Verdict;
//! use guest_stack::stack::Stack;
//! use guest_stack::time::Instant;
//! use shm_link::link::Link;
//! use std::net::Ipv4Addr;
//!
//! fn run<L: Link>(
//!     link: L,
//!     seed: [u64; 2],
//!     now: impl Fn() -> Instant,
//!     wait: impl Fn(Option<Instant>),
//! ) -> Result<(), Box<dyn std::error::Error>> {
//!     let net = NetConfig::new([2, 0, 0, 0, 0, 1]).with_address(Ipv4Addr::new(10, 0, 0, 2), 24);
//!     let mut stack = Stack::new(link, StackConfig::new(seed), net, now())?;
//!     stack.sockets().on_udp(7, |context, datagram, payload| {
//!         // Without room in the link the answer is lost, as datagrams may be.
//!         let _ = context.reply_datagram(datagram, payload);
//!         Verdict::Handled
//!     })?;
//!     loop {
//!         let poll = stack.poll(now());
//!         if let Some(error) = poll.link_error {
//!             return Err(error.into());
//!         }
//!         if !poll.more_work && stack.arm() {
//!             wait(poll.deadline); // until the doorbell rings or that time
//!             stack.disarm();
//!         }
//!     }
//! }
//! ```
//!
//! The same with threads, in the manner of `std::net` (a
//! [`Platform`](face::platform::Platform) gives time, waiting and locking;
//! feature `std` has one for processes):
//!
//! ```
//! use embedded_io::{Read, Write};
//! use guest_stack::error::StreamError;
//! use guest_stack::face::asynchronous::Network;
//! use guest_stack::face::blocking::TcpListener;
//! use guest_stack::face::platform::Platform;
//! use shm_link::link::Link;
//!
//! fn serve<L: Link, P: Platform>(network: &Network<L, P>) -> Result<(), StreamError> {
//!     // Another thread runs `network.run(|until| …)`.
//!     let listener = TcpListener::bind(network, 7, 128)?;
//!     loop {
//!         let (mut stream, _peer) = listener.accept()?;
//!         let mut buffer = [0; 1024];
//!         loop {
//!             let len = stream.read(&mut buffer)?;
//!             if len == 0 {
//!                 break;
//!             }
//!             stream.write_all(&buffer[..len]).map_err(|_| StreamError::BrokenPipe)?;
//!         }
//!     }
//! }
//! ```
//!
//! # Whom it trusts
//!
//! The host is trusted with the guest's life: frames are read and written where
//! the host could change them meanwhile. It is not trusted with its health: it
//! may vanish, come back, or send nonsense at any moment, and sockets outlive it.
//! The network behind the host is not trusted at all: no frame makes the stack
//! panic, loop, or keep more than [`config::Limits`] allows; sequence numbers and
//! ports cannot be guessed without [`config::StackConfig::seed`].
//!
//! # Memory
//!
//! A connection takes some 1.5 KB (up to 3 KB more while it makes losses good) and its
//! two buffers ([`tcp::options`]), which
//! are kept for the next one when it ends ([`config::StackConfig::spare_buffer_bytes`]);
//! a handshake under way and a TIME-WAIT some 250 bytes each, a UDP socket some
//! 1.3 KB and its buffers. The stack itself takes some 75 KB, most of it
//! smoltcp's fragment buffer (`SMOLTCP_FRAGMENTATION_BUFFER_SIZE`), and packets of
//! which fragments are missing 262 KB at the most. Making a stack, changing its configuration, and every new connection
//! build an interface, which takes three times the fragment buffer of *call stack*
//! for a moment: give threads that poll or connect 256 KB with the fragment buffer
//! at 65,535 bytes, 128 KB with it at 16,384 (384 KB and more without optimisation).
//!
//! # Limits
//!
//! - TCP: no timestamps, no ECN, no pacing, and ICMP errors other than a narrow path's
//!   do not reach streams. A retransmission time-out is a second at least; what was lost
//!   is mostly found sooner.
//! - A connection that began with a SYN cookie, while a flood of SYNs took all places
//!   ([`config::Limits::syn_cookies`]), has segments of at most 1,460 bytes, and waits
//!   for the client to speak if the client's last ACK was lost.
//! - IPv6: no fragments, no extension headers but hop-by-hop, no duplicate address
//!   detection, no DHCPv6. `[::]` does not mean IPv4 as well.
//! - No multicast sockets, no VLAN tags, no packets to oneself (no loopback).
//! - A UDP socket whose oldest datagram waits for a neighbour holds back those behind
//!   it, for 3 s at most; then all that it queued is dropped.
//! - Two stacks back to back on one link may block each other when both
//!   directions are full, since a frame is only taken when there is room for an
//!   answer. A host that always empties its side, as a bridge does, rules it out.
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
mod tally;
mod run;
mod cut;
mod parts;
mod path;
mod device;
pub mod config;
pub mod counters;
mod flow;
pub mod ports;
mod questions;
pub mod tcp;
pub mod udp;
mod slaac;
mod autoconf;
mod fragments;
mod neighbours;
pub mod registry;
pub mod context;
pub mod sockets;
mod ingress;
mod egress;
pub mod control;
pub mod stack;
pub mod face;
