//! The memory map: what a region holds and where.
//!
//! A guest is given only a region. Its first 4 KiB, the superblock, say the
//! rest: the host writes them, the guest copies them once and checks the copy.
//! The host keeps the [`Layout`] it wrote and never reads it back.
//!
//! | offset | field | |
//! | --- | --- | --- |
//! | 0 | magic u64 | `SHMLINK\0` |
//! | 8 | abi u32 | layout version, [`ABI_VERSION`] |
//! | 12 | generation u32 | 0: not ready; counts up whenever the host starts anew |
//! | 16 | region length u64 | bytes, at most what was mapped |
//! | 24 | pipes u32 | entries in the table, at most [`MAX_PIPES`] |
//! | 28 | reserved u32 | zero |
//! | 64 | table | 32 bytes per pipe |
//!
//! | entry offset | field |
//! | --- | --- |
//! | 0 | kind u32: 1 control, 2 frames; others are skipped by who does not know them |
//! | 4 | doorbell vector u32: zero |
//! | 8 | guest→host ring: offset u64 |
//! | 16 | host→guest ring: offset u64 |
//! | 24 | guest→host ring: data bytes u32 |
//! | 28 | host→guest ring: data bytes u32 |
//!
//! All fields are little endian. Magic, abi and generation keep their place in
//! every version.

use core::sync::atomic::Ordering;

use crate::fault::PeerFault;
use crate::region::{Region, RegionError};
use crate::ring::{MAX_CAPACITY, MIN_CAPACITY, RING_HEADER_LEN};

/// Version of the layout described here.
pub const ABI_VERSION: u32 = 1;
/// Bytes that the superblock takes at the start of the region.
pub const SUPERBLOCK_LEN: usize = 4096;
/// Most pipes that a table may name.
pub const MAX_PIPES: usize = 16;

const MAGIC: u64 = u64::from_le_bytes(*b"SHMLINK\0");
const GENERATION_OFFSET: usize = 12;
const TABLE_OFFSET: usize = 64;
const ENTRY_LEN: usize = 32;
const KIND_CONTROL: u32 = 1;
const KIND_FRAMES: u32 = 2;
/// Rings begin at multiples of this (see [`crate::ring::cursor`]).
const RING_ALIGN: usize = 128;

/// Where one ring lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingPlace {
    /// Offset of the ring's header in the region, in bytes.
    pub offset: usize,
    /// Data bytes behind the header, a power of two.
    pub capacity: usize,
}

impl RingPlace {
    /// The ring's part of the region.
    ///
    /// # Errors
    /// [`RegionError`] if it does not lie inside.
    pub fn region(&self, region: &Region) -> Result<Region, RegionError> {
        region.part(self.offset, RING_HEADER_LEN + self.capacity)
    }

    /// The longest frame that fits the ring wherever its cursors stand.
    pub fn max_frame_len(&self) -> usize {
        crate::record::longest(self.capacity).min(crate::link::MAX_FRAME_LEN)
    }

    fn end(&self) -> usize {
        self.offset + RING_HEADER_LEN + self.capacity
    }
}

/// Where the two rings of a pipe lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PipePlace {
    /// Written by the guest.
    pub to_host: RingPlace,
    /// Written by the host.
    pub to_guest: RingPlace,
}

/// A region's contents: one control pipe and one frame pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Length of the region in bytes. [`Layout::new`] makes it a power of two,
    /// because a PCI BAR must be one.
    pub region_len: usize,
    /// Control messages.
    pub control: PipePlace,
    /// Frames.
    pub frames: PipePlace,
}

/// How large the rings of a region are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayoutOptions {
    /// Bytes of frames, headers included, on the way from guest to host. A power
    /// of two from 8 KiB to 1 GiB, default 512 KiB. Half of it bounds the
    /// longest frame; more absorbs longer bursts and costs cache and memory.
    pub to_host_bytes: usize,
    /// The same from host to guest.
    pub to_guest_bytes: usize,
}

impl Default for LayoutOptions {
    fn default() -> Self {
        Self {
            to_host_bytes: 512 << 10,
            to_guest_bytes: 512 << 10,
        }
    }
}

/// Data bytes of each control ring: room for several of the longest messages.
const CONTROL_BYTES: usize = 16 << 10;

impl Layout {
    /// Lays the rings out one behind the other.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`] if a size is not a power of two in range.
    pub fn new(options: LayoutOptions) -> Result<Self, RegionError> {
        for bytes in [options.to_host_bytes, options.to_guest_bytes] {
            if !bytes.is_power_of_two() || !(2 * MIN_CAPACITY..=MAX_CAPACITY).contains(&bytes) {
                return Err(RegionError::OutOfBounds);
            }
        }
        let mut next = SUPERBLOCK_LEN;
        let mut ring = |capacity| {
            let place = RingPlace {
                offset: next,
                capacity,
            };
            next = place.end().next_multiple_of(RING_ALIGN);
            place
        };
        let control = PipePlace {
            to_host: ring(CONTROL_BYTES),
            to_guest: ring(CONTROL_BYTES),
        };
        let frames = PipePlace {
            to_host: ring(options.to_host_bytes),
            to_guest: ring(options.to_guest_bytes),
        };
        Ok(Self {
            region_len: next.next_power_of_two(),
            control,
            frames,
        })
    }

    /// The largest layout with equal rings that fits a region of `len` bytes,
    /// for an owner who has the memory already.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`] if not even the smallest fits.
    pub fn fitting(len: usize) -> Result<Self, RegionError> {
        let mut bytes = 2 * MIN_CAPACITY;
        let mut best = Err(RegionError::OutOfBounds);
        while bytes <= MAX_CAPACITY {
            let layout = Self::new(LayoutOptions {
                to_host_bytes: bytes,
                to_guest_bytes: bytes,
            })?;
            if layout.used_len() > len {
                break;
            }
            best = Ok(Self {
                region_len: layout.region_len.min(len),
                ..layout
            });
            bytes *= 2;
        }
        best
    }

    /// Bytes up to the end of the last ring.
    pub fn used_len(&self) -> usize {
        self.frames.to_guest.end()
    }

    /// Writes the superblock into `region` and makes it valid as a new
    /// generation. The host's first step; the rings of a fresh region are all
    /// zero, those of an old one are left as they are.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`] if the region is shorter than the layout.
    pub fn publish(&self, region: &Region) -> Result<u32, RegionError> {
        if region.len() < self.region_len {
            return Err(RegionError::OutOfBounds);
        }
        let generation = region.atomic_u32(GENERATION_OFFSET)?;
        let next = match generation.load(Ordering::Relaxed).wrapping_add(1) {
            0 => 1,
            next => next,
        };
        // A guest that looks now waits instead of reading half a table.
        generation.store(0, Ordering::Release);
        region.copy_in(0, &MAGIC.to_le_bytes())?;
        region.copy_in(8, &ABI_VERSION.to_le_bytes())?;
        region.copy_in(16, &(self.region_len as u64).to_le_bytes())?;
        region.copy_in(24, &2u32.to_le_bytes())?;
        region.copy_in(28, &0u32.to_le_bytes())?;
        for (i, (kind, pipe)) in [(KIND_CONTROL, self.control), (KIND_FRAMES, self.frames)]
            .into_iter()
            .enumerate()
        {
            let mut entry = [0; ENTRY_LEN];
            entry[..4].copy_from_slice(&kind.to_le_bytes());
            entry[8..16].copy_from_slice(&(pipe.to_host.offset as u64).to_le_bytes());
            entry[16..24].copy_from_slice(&(pipe.to_guest.offset as u64).to_le_bytes());
            entry[24..28].copy_from_slice(&(pipe.to_host.capacity as u32).to_le_bytes());
            entry[28..].copy_from_slice(&(pipe.to_guest.capacity as u32).to_le_bytes());
            region.copy_in(TABLE_OFFSET + i * ENTRY_LEN, &entry)?;
        }
        // ORDERING: Release pairs with the Acquire in `generation`: who sees the
        // number sees the table.
        generation.store(next, Ordering::Release);
        Ok(next)
    }

    /// The region's generation; 0 while the host has not made it ready.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`] if the region is too short to have one.
    pub fn generation(region: &Region) -> Result<u32, RegionError> {
        // ORDERING: Acquire pairs with the Release in `publish`.
        Ok(region
            .atomic_u32(GENERATION_OFFSET)?
            .load(Ordering::Acquire))
    }

    /// Reads the layout that the host published: the guest's first step.
    ///
    /// # Errors
    /// [`LayoutError`] says what is wrong and what to do.
    pub fn find(region: &Region) -> Result<Self, LayoutError> {
        if region.len() < SUPERBLOCK_LEN {
            return Err(LayoutError::Fault);
        }
        match Self::generation(region) {
            Ok(0) => return Err(LayoutError::NotReady),
            Ok(_) => {}
            Err(_) => return Err(LayoutError::Fault),
        }
        let mut copy = [0; TABLE_OFFSET + MAX_PIPES * ENTRY_LEN];
        region
            .copy_out(0, &mut copy)
            .map_err(|_| LayoutError::Fault)?;
        let u32_at =
            |at: usize| u32::from_le_bytes([copy[at], copy[at + 1], copy[at + 2], copy[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u64_at(0) != MAGIC {
            return Err(LayoutError::Magic);
        }
        if u32_at(8) != ABI_VERSION {
            return Err(LayoutError::Abi(u32_at(8)));
        }
        let region_len = usize::try_from(u64_at(16)).map_err(|_| LayoutError::Fault)?;
        let pipes = u32_at(24) as usize;
        if region_len > region.len() || pipes > MAX_PIPES {
            return Err(LayoutError::Fault);
        }
        let place = |offset: u64, capacity: u32| {
            let place = RingPlace {
                offset: usize::try_from(offset).ok()?,
                capacity: capacity as usize,
            };
            let end = place
                .offset
                .checked_add(RING_HEADER_LEN)?
                .checked_add(place.capacity)?;
            (place.offset >= SUPERBLOCK_LEN
                && place.offset.is_multiple_of(RING_ALIGN)
                && place.capacity.is_power_of_two()
                && (MIN_CAPACITY..=MAX_CAPACITY).contains(&place.capacity)
                && end <= region_len)
                .then_some(place)
        };
        let mut control = None;
        let mut frames = None;
        for at in (0..pipes).map(|i| TABLE_OFFSET + i * ENTRY_LEN) {
            let slot = match u32_at(at) {
                KIND_CONTROL => &mut control,
                KIND_FRAMES => &mut frames,
                _ => continue,
            };
            let to_host = place(u64_at(at + 8), u32_at(at + 24)).ok_or(LayoutError::Fault)?;
            let to_guest = place(u64_at(at + 16), u32_at(at + 28)).ok_or(LayoutError::Fault)?;
            if slot.replace(PipePlace { to_host, to_guest }).is_some() {
                return Err(LayoutError::Fault);
            }
        }
        let (Some(control), Some(frames)) = (control, frames) else {
            return Err(LayoutError::Fault);
        };
        let layout = Self {
            region_len,
            control,
            frames,
        };
        if layout.overlaps() {
            return Err(LayoutError::Fault);
        }
        Ok(layout)
    }

    fn overlaps(&self) -> bool {
        let rings = [
            self.control.to_host,
            self.control.to_guest,
            self.frames.to_host,
            self.frames.to_guest,
        ];
        rings.iter().enumerate().any(|(i, a)| {
            rings[i + 1..]
                .iter()
                .any(|b| a.offset < b.end() && b.offset < a.end())
        })
    }
}

/// Why a region's superblock cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayoutError {
    /// The host has not made the region ready; wait and look again.
    NotReady,
    /// This is not a region of ours.
    Magic,
    /// The host speaks this other version of the layout.
    Abi(u32),
    /// The table contradicts itself or the region's size.
    Fault,
}

impl From<LayoutError> for PeerFault {
    fn from(_: LayoutError) -> Self {
        Self::Superblock
    }
}

impl core::fmt::Display for LayoutError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotReady => {
                f.write_str("the host has not made the region ready yet: wait and look again")
            }
            Self::Magic => {
                f.write_str("this memory is not a network link: its first bytes are not SHMLINK")
            }
            Self::Abi(version) => write!(
                f,
                "the host lays the region out as version {version}, this guest knows version {ABI_VERSION}: update the older of the two"
            ),
            Self::Fault => {
                f.write_str("the region's table of pipes contradicts itself or the region's size")
            }
        }
    }
}

impl core::error::Error for LayoutError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use proptest::prelude::*;

    #[repr(align(4096))]
    struct Page(#[allow(dead_code, reason = "only its address is used")] [u8; 4096]);

    fn region(len: usize) -> Region {
        let pages = Box::leak(
            (0..len / 4096)
                .map(|_| Page([0; 4096]))
                .collect::<alloc::vec::Vec<_>>()
                .into_boxed_slice(),
        );
        // SAFETY: leaked, so valid for ever and used by nobody else.
        unsafe { Region::from_raw(pages.as_mut_ptr().cast(), len) }.unwrap()
    }

    #[test]
    fn the_guest_finds_the_layout_that_the_host_published() {
        let layout = Layout::new(LayoutOptions {
            to_host_bytes: 8192,
            to_guest_bytes: 16384,
        })
        .unwrap();
        let region = region(layout.region_len);
        assert_eq!(Layout::find(&region), Err(LayoutError::NotReady));
        assert_eq!(layout.publish(&region), Ok(1));
        assert_eq!(Layout::find(&region), Ok(layout));
        assert_eq!(layout.publish(&region), Ok(2));
        assert_eq!(Layout::generation(&region), Ok(2));
    }

    #[test]
    fn another_abi_version_is_named_in_the_refusal() {
        let layout = Layout::new(LayoutOptions::default()).unwrap();
        let region = region(layout.region_len);
        layout.publish(&region).unwrap();
        region.copy_in(8, &7u32.to_le_bytes()).unwrap();
        assert_eq!(Layout::find(&region), Err(LayoutError::Abi(7)));
    }

    #[test]
    fn overlapping_rings_are_refused() {
        let layout = Layout::new(LayoutOptions {
            to_host_bytes: 8192,
            to_guest_bytes: 8192,
        })
        .unwrap();
        let region = region(layout.region_len);
        let wrong = Layout {
            frames: PipePlace {
                to_guest: layout.frames.to_host,
                ..layout.frames
            },
            ..layout
        };
        wrong.publish(&region).unwrap();
        assert_eq!(Layout::find(&region), Err(LayoutError::Fault));
    }

    proptest! {
        #[test]
        fn whatever_stands_in_the_table_the_rings_found_lie_inside(
            table in proptest::collection::vec(any::<u8>(), ENTRY_LEN * 3),
            pipes in 0u32..20,
            patch in proptest::collection::vec((0usize..64, 0u8..4), 0..8),
        ) {
            let layout = Layout::new(LayoutOptions { to_host_bytes: 8192, to_guest_bytes: 8192 }).unwrap();
            let region = region(layout.region_len);
            layout.publish(&region).unwrap();
            // Either a random table, or a good one with some bytes changed.
            if patch.is_empty() {
                region.copy_in(TABLE_OFFSET, &table).unwrap();
                region.copy_in(24, &pipes.to_le_bytes()).unwrap();
            }
            for (at, byte) in patch {
                region.copy_in(TABLE_OFFSET + at, &[byte]).unwrap();
            }
            if let Ok(found) = Layout::find(&region) {
                for place in [found.control.to_host, found.control.to_guest, found.frames.to_host, found.frames.to_guest] {
                    prop_assert!(place.region(&region).is_ok());
                    prop_assert!(place.offset >= SUPERBLOCK_LEN);
                }
            }
        }
    }
}
