//! Frame links for guests without network hardware: whole Ethernet frames, and
//! control messages beside them, through shared memory or any byte stream.
//!
//! ```text
//!      guest                        region                       host
//!  ┌──────────────┐   ┌──────────────────────────────┐   ┌────────────────┐
//!  │  ShmLink     │   │ superblock: where things are │   │  HostEnd       │
//!  │  frames   tx ├──►│ ring ── records ───────────► ├──►│ rx  frames     │
//!  │           rx │◄──┤ ◄─────────── records ── ring │◄──┤ tx             │
//!  │  control  tx ├──►│ ring ── messages ──────────► ├──►│ rx  control    │
//!  │           rx │◄──┤ ◄────────── messages ── ring │◄──┤ tx             │
//!  └──────┬───────┘   └──────────────────────────────┘   └───────┬────────┘
//!         └─────────── doorbells, only for who sleeps ───────────┘
//! ```
//!
//! Each layer can be used on its own; each uses only those above it:
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`fault`] | what a peer can do wrong, and what a link reports |
//! | [`region`] | memory that somebody else may write |
//! | [`doorbell`] | waking the other side, and waiting to be woken |
//! | [`spin`] | how long to look for work before going to sleep |
//! | [`ring`] | one direction: cursors, sleep flags, contiguous grants |
//! | [`pipe`] | two rings as a byte stream, with embedded-io's traits |
//! | [`link`](mod@link) | the traits of a frame link, which `guest-stack` runs over |
//! | [`offload`] | the header in front of each frame |
//! | [`control`] | version, addresses and changes: messages and both machines |
//! | [`record`] | whole frames and messages in a ring |
//! | [`superblock`] | the memory map |
//! | [`shm`] | a link over a region: the guest's end and the host's |
//! | [`stream`] | a link over a byte stream |
//! | `linux` | memfd, eventfd and the attach handshake (feature `linux`) |
//!
//! ```
//! use shm_link::link::{FrameTx, Link};
//! use shm_link::offload::OffloadHeader;
//! use shm_link::region::Region;
//! use shm_link::shm::{HostEnd, ShmLink, read_message};
//! use shm_link::superblock::{Layout, LayoutOptions};
//!
//! #[repr(align(4096))]
//! struct Page([u8; 4096]);
//!
//! let layout = Layout::new(LayoutOptions { to_host_bytes: 8192, to_guest_bytes: 8192 })?;
//! let pages: Vec<Page> = (0..layout.region_len / 4096).map(|_| Page([0; 4096])).collect();
//! let memory = pages.leak().as_mut_ptr().cast();
//! // SAFETY: leaked, so mapped for ever, and used through this region alone.
//! let region = unsafe { Region::from_raw(memory, layout.region_len) }?;
//!
//! // The host takes its halves, then lets the guest in.
//! let mut host = HostEnd::resume(&region, &layout)?;
//! layout.publish(&region)?;
//! // SAFETY: this host keeps to the layout. Nobody sleeps here, so no doorbell.
//! let mut guest = unsafe { ShmLink::attach(region, || {}) }?;
//!
//! let (_, tx) = guest.split();
//! let room = tx.reserve(60)?.expect("an empty ring has room");
//! room.fill(0x2a);
//! tx.commit(60, OffloadHeader::NONE);
//! tx.flush();
//!
//! let mut frame = [0; 2048];
//! assert_eq!(read_message(&mut host.frames_rx, &mut frame)?, Some(60));
//! assert_eq!(frame[..60], [0x2a; 60]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Trust
//! The host trusts nothing in the region: cursors and record headers are copied
//! once and checked in the copy, and what makes no sense is a
//! [`PeerFault`](fault::PeerFault) that ends this link and nothing else. No Rust
//! reference to bytes that an untrusted peer can write is ever made: the host
//! works with raw pointers ([`record::Record`]). The guest checks the same, but
//! trusts its host not to change a frame that it handed over; that promise is
//! the `unsafe` of [`ShmLink::attach`](shm::ShmLink::attach).
//!
//! # Limits
//! Frames up to 65,550 bytes and half a ring; control messages up to 2,048 bytes;
//! rings from 4 KiB to 1 GiB of data, a power of two; one producer and one
//! consumer per ring. No allocation, but for the features `alloc` and `linux`.
//! Nothing sleeps by itself, spins, or reads a clock.
//!
//! `docs/STACK.md` in the repository has the memory map, the life of a frame and
//! the tables of both control machines.
#![no_std]

#[cfg(any(feature = "alloc", test))]
extern crate alloc;
#[cfg(any(feature = "linux", test))]
extern crate std;

mod sync;

pub mod fault;
pub mod region;
pub mod doorbell;
pub mod spin;
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
