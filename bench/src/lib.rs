//! Measures this project beside its peers, each pair in one run.
//!
//! A figure of its own says little on a machine that others share. So every case
//! runs ours and the peer in turn, several times, and reports the ratio of each
//! pair; what arrived is checked in every run.

pub mod report;
pub mod ring;
