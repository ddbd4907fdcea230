//! How Arca's kernel and its monitor attach to each other, as code that is
//! compiled and run by the tests. `docs/ARCA.md` explains it.
//!
//! | file | what it is | in Arca |
//! | --- | --- | --- |
//! | [`kernel`] | stand-ins with the signatures of Arca's own functions | there already |
//! | [`network`] | the guest's side: region, doorbell, platform, driver | taken over as it is |
//! | [`monitor`] | the host's side: `host-bridge` as a library | taken over as it is |
//!
//! `network` uses nothing of `std`; only the stand-ins do. The test
//! `tests/attach.rs` puts the two sides into two groups of threads, joined by a
//! piece of memory and two eventfds, and lets Linux talk to the guest.

pub mod kernel;
pub mod monitor;
pub mod network;
