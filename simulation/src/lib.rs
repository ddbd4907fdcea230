//! Guests, their links, the bridge and a bad network in one process and in virtual
//! time. Everything follows from one seed.
//!
//! ```text
//!  seed ─► scenario ─► world: guests │ rings in heap memory │ ports of the bridge │ a segment
//!                        turns, doorbells, faults ─► what came of it, or what is wrong
//! ```
//!
//! What is under test is the code that runs elsewhere: `guest_stack`'s stacks over
//! `shm_link`'s rings, and of the bridge its sessions, pumps, filter, limits and
//! impairments ([`host_bridge::port::stepped`]). What stands in for the rest of the
//! world is here: time, doorbells, TAPs, the Linux bridge between them, and those who
//! kill, freeze, change and scribble.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`random`] | random numbers from a seed |
//! | [`clock`] | virtual time |
//! | [`trace`] | what happened, hashed |
//! | `memory` | memory that two sides share |
//! | `hostile` | what a hostile guest does to its own |
//! | `segment` | what a kernel does for an interface that takes no super-frames |
//! | `ethernet` | interfaces, and the segment that joins them |
//! | `services` | a DHCP server and a router |
//! | `datagrams` | exchanges of datagrams |
//! | `connection` | one connection, and its two applications |
//! | `scenario` | what a seed means |
//! | `stream` | byte streams between a guest and its port |
//! | `machine` | a stack, whatever its link |
//! | `guest` | a guest: stack and applications |
//! | `host` | a port as two tasks |
//! | [`world`] | the loop: whose turn it is |
//! | `faults` | what is done to them |
//! | [`throughput`] | how fast it is on bad links, and how long a restart takes |
//!
//! # What every run must show
//! - Every byte of every connection arrives, right and in order, and both ends see the
//!   other's end, unless something was done that must break it (a guest died, an
//!   address went, an application aborted).
//! - No datagram arrives that was not sent, whoever goes on asking is answered, and on a
//!   good network every question is answered once.
//! - Nobody is reset whom nobody reset; nothing stands still; nothing spins.
//! - Afterwards nothing is left over: no socket, no handshake, no frame held back, and
//!   every frame is accounted for, in the stacks and in the bridge.
//! - An honest guest's port never ends by itself; a hostile guest's may, with a name,
//!   and the others do not notice.
//!
//! # Limits
//! One thread: the rings' memory order is not tested here (loom and two real threads
//! do that, in `shm-link`). Nothing changes the memory while one instruction runs, but
//! between two frames of one turn it does. No kernel: what Linux does with a TAP is
//! modelled, and tested elsewhere.

pub mod random;
pub mod clock;
pub mod trace;
mod memory;
mod hostile;
mod segment;
mod ethernet;
mod services;
mod connection;
mod datagrams;
mod scenario;
mod stream;
mod machine;
mod guest;
mod host;
pub mod world;
mod faults;
pub mod throughput;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::scenario::Scenario;
use crate::world::{Summary, World};

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// What everything follows from.
    pub seed: u64,
    /// With datagrams beside the connections.
    pub datagrams: bool,
    /// With guests behind byte streams, interfaces that are deleted, and addresses by DHCP
    /// and router advertisements.
    pub wider: bool,
}

impl Run {
    /// Connections only.
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            datagrams: false,
            wider: false,
        }
    }

    fn scenario(self) -> Scenario {
        let mut scenario = Scenario::draw(self.seed);
        if self.datagrams {
            scenario = scenario.with_datagrams();
        }
        if self.wider {
            scenario = scenario.wider();
        }
        scenario
    }
}

/// Runs one seed; `print` writes its trace to the standard output.
///
/// # Errors
/// What is wrong, in words; also when something panicked.
pub fn run(what: Run, print: bool) -> Result<Summary, String> {
    let run = || World::new(what.scenario(), print)?.run();
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or(panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", words.unwrap_or("without words")))
    })
}

/// The command that runs a seed again and shows what happens.
pub fn replay(what: Run) -> String {
    let Run {
        seed,
        datagrams,
        wider,
    } = what;
    let datagrams = if datagrams { "--datagrams " } else { "" };
    let wider = if wider { "--wider " } else { "" };
    format!("cargo run --release -p simulation -- {datagrams}{wider}--seed {seed} --trace")
}

/// What a seed means, to read.
pub fn describe(what: Run) -> String {
    format!("{:#?}", what.scenario())
}
