//! Measures this project beside its peers, each pair in one run.
//!
//! A figure of its own says little on a machine that others share. So every case
//! runs ours and the peer in turn, several times, and reports the ratio of each
//! pair; what arrived is checked in every run, and by which way.
//!
//! ```text
//!   case       which question, ours beside which peer, which ratio is wanted
//!     │
//!   measure    in turn, pair by pair ──► report: table, JSON lines
//!     │
//!   client     bulk, ping-pong: the same for ours and every peer
//!     │ kernel TCP, in a private network namespace
//!   target     what is measured: ours, or a peer, running in processes of its own
//!     │
//!   peer       the peers' own programs: this program again, as `bench peer …`
//! ```

pub mod service;
pub mod report;
pub mod procfs;
pub mod ring;
pub mod peer;
pub mod target;
pub mod client;
pub mod measure;
pub mod plot;
pub mod case;
pub mod soak;

/// What can go wrong, in words for who runs the benchmark.
pub type Error = Box<dyn std::error::Error>;
/// A result with such an error.
pub type Result<T> = std::result::Result<T, Error>;
