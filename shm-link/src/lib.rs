//! Frame links for guests without network hardware.
#![no_std]

#[cfg(any(feature = "alloc", test))]
extern crate alloc;
#[cfg(any(feature = "linux", test))]
extern crate std;

pub mod fault;
pub mod link;
pub mod offload;
