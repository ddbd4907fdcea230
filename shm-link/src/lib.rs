//! Frame links for guests without network hardware.
#![no_std]

#[cfg(any(feature = "alloc", test))]
extern crate alloc;
#[cfg(any(feature = "linux", test))]
extern crate std;

mod sync;

pub mod fault;
pub mod region;
pub mod doorbell;
pub mod ring;
pub mod pipe;
pub mod link;
pub mod offload;
pub mod control;
pub mod record;
pub mod superblock;
pub mod shm;
pub mod stream;
#[cfg(feature = "linux")]
pub mod linux;
