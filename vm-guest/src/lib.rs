//! A guest that is really a machine: `guest-stack` without an operating system
//! under it, with no network card but a piece of shared memory and an interrupt.
//!
//! ```text
//!   demo-guest's applications    echo, outgoing connection
//!        executor (futures)           threads (blocking)
//!             └──────────────┬─────────────┘
//!                     guest_stack Network
//!                            │
//!              kernel: main loop, sleeps in hlt
//!                            │
//!   ivshmem: memory (BAR 2) · interrupt (MSI-X) · doorbell (BAR 0)
//! ```
//!
//! From the lowest layer to the highest. Another kernel has what stands above the
//! line in its own way, and needs none of it from here. What it writes anew stands
//! below, and is small: `ivshmem` (a `Region`, a `Doorbell`, an interrupt that calls
//! `interrupts::wake`), `platform` (five functions), and of `kernel` the functions
//! `attach` and `drive`. `services` and `last_words` are this guest's own choice.
//! `arca-example` is the same for a kernel whose host is no QEMU.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `boot.s`, [`boot`] | from the PVH entry to Rust; the loader's memory map and command line |
//! | `runtime` | `memcpy` and its family, on the host's target |
//! | [`lock`] | the lock: one processor, no waiting |
//! | [`memory`] | the heap, and mapping what lies above 4 GiB |
//! | [`interrupts`] | descriptor tables, the two interrupts, `hlt` |
//! | [`clock`] | time and alarm: time stamp counter and local APIC |
//! | [`serial`] | the log |
//! | [`random`] | the seed |
//! | [`command_line`] | `name=`, `connect=` and others |
//! | [`threads`] | stacks and switching between them, for the blocking face |
//! | [`pci`] | configuration space, and finding a device |
//! | | **what a port writes anew** |
//! | [`ivshmem`] | the region, the interrupt and the doorbell of QEMU's device |
//! | [`platform`] | clock, lock, waiting and waking, as the stack wants them |
//! | [`last_words`] | telling the bridge of a panic |
//! | [`services`] | what the guest offers |
//! | [`kernel`] | attaching, and the main loop |
//!
//! Trust: this kernel trusts the host with its life, as every guest must, and
//! nobody on the network. Limits: one processor, no file system, no user mode.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod boot;
#[cfg(all(not(test), not(target_os = "none")))]
mod runtime;
pub mod lock;
pub mod memory;
pub mod interrupts;
pub mod clock;
pub mod serial;
pub mod random;
pub mod command_line;
pub mod threads;
pub mod pci;
pub mod ivshmem;
pub mod platform;
pub mod last_words;
pub mod services;
pub mod kernel;
