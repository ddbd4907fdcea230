//! Applications for a guest, and a guest that is a process.
//!
//! ```text
//!   http   echo   bulk       applications: futures that know only `Network`
//!     └──────┼──────┘
//!         executor           one thread: the tasks and the driver's step
//!            │               take turns, and sleep when neither has work
//!   guest_stack `Network`
//!            │
//!       frame link
//! ```
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
//! | TCP 5003 | sink for measurements: reads a [`pattern::Cycle`], answers `<bytes>` |
//! | TCP 5004 | source for measurements: reads a byte, sends a [`pattern::Cycle`] without end |
//! | TCP and UDP 5201 | server for `iperf3 -c` |
//! | UDP 7 | echo, by a datagram callback |
//!
//! A guest of another kind starts them like this, with a `sleep` of its own that
//! ends when the link rings, at the given time, or when the driver is kicked:
//!
//! ```
//! use demo_guest::{apps, executor::Executor};
//! use guest_stack::error::BindError;
//! use guest_stack::face::asynchronous::{Network, Step};
//! use guest_stack::face::platform::Platform;
//! use guest_stack::time::Instant;
//! use shm_link::link::Link;
//!
//! fn run<L: Link + Send + 'static, P: Platform>(
//!     network: &Network<L, P>,
//!     sleep: impl Fn(Option<Instant>),
//! ) -> Result<(), BindError> {
//!     let mut executor = Executor::<P::RawMutex>::default();
//!     apps::start_all(network, &executor.spawner(), "demo")?;
//!     loop {
//!         let step = network.step();
//!         let next = executor.wake_sleepers(network.platform().now());
//!         if executor.run_ready() {
//!             continue;
//!         }
//!         if let Step::Sleep(until) = step {
//!             sleep([until, next].into_iter().flatten().min());
//!         }
//!     }
//! }
//! ```
//!
//! The services trust nobody and bound what a client can make them keep, but they
//! are for demonstrations: anybody who reaches the guest may use them.
#![no_std]

extern crate alloc;

pub mod apps;
pub mod executor;
pub mod pattern;
