//! A region: memory that somebody else may read and write at any moment.
//!
//! Everything above takes its memory from here. A region knows its bounds and,
//! with the `alloc` feature, keeps its owner (a mapping) alive. No Rust
//! reference to its bytes is ever made: they are reached through raw pointers,
//! copied once, and checked in the copy.

use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;

/// Alignment of a region's base and of everything the layout places in it.
pub const REGION_ALIGN: usize = 64;

/// A checked view of shared memory. Clones view the same bytes.
#[derive(Clone)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    #[cfg(feature = "alloc")]
    _owner: Option<alloc::sync::Arc<dyn Send + Sync>>,
}

// SAFETY: a Region is an address and a length. The memory behind it stays valid
// as long as the Region (promised to `from_raw`, or kept by `_owner`), and every
// access goes through atomics or raw copies.
unsafe impl Send for Region {}
// SAFETY: as for Send; `&Region` gives out nothing but pointers and copies.
unsafe impl Sync for Region {}

/// Why a piece of memory cannot be a region, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionError {
    /// The base is null or not a multiple of [`REGION_ALIGN`].
    Misaligned,
    /// The part does not lie inside the region.
    OutOfBounds,
}

impl core::fmt::Display for RegionError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Misaligned => write!(
                f,
                "the region's base is not aligned to {REGION_ALIGN} bytes"
            ),
            Self::OutOfBounds => f.write_str("the part lies outside the region"),
        }
    }
}

impl core::error::Error for RegionError {}

impl Region {
    /// A region over memory at `base`, for ever: a PCI BAR, a static buffer, a
    /// piece of an allocator that both sides of a machine share.
    ///
    /// # Errors
    /// [`RegionError::Misaligned`] if `base` is null or not aligned to
    /// [`REGION_ALIGN`].
    ///
    /// # Safety
    /// `base..base + len` must be mapped, readable and writable, as long as this
    /// value or any clone or part of it exists. In this program nothing but
    /// regions may access it, and no Rust reference to it may exist. Another
    /// program or machine may write it at any time.
    pub unsafe fn from_raw(base: *mut u8, len: usize) -> Result<Self, RegionError> {
        match NonNull::new(base) {
            Some(base) if base.addr().get().is_multiple_of(REGION_ALIGN) => Ok(Self {
                base,
                len,
                #[cfg(feature = "alloc")]
                _owner: None,
            }),
            _ => Err(RegionError::Misaligned),
        }
    }

    /// A region over memory that `owner` keeps mapped.
    ///
    /// # Errors
    /// As for [`from_raw`](Self::from_raw).
    ///
    /// # Safety
    /// As for [`from_raw`](Self::from_raw), as long as `owner` is not dropped.
    #[cfg(feature = "alloc")]
    pub unsafe fn with_owner(
        base: *mut u8,
        len: usize,
        owner: alloc::sync::Arc<dyn Send + Sync>,
    ) -> Result<Self, RegionError> {
        // SAFETY: the caller promises for the owner's life; the owner is kept.
        let mut region = unsafe { Self::from_raw(base, len) }?;
        region._owner = Some(owner);
        Ok(region)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part of `len` bytes at `offset`, a region of its own.
    ///
    /// # Errors
    /// [`RegionError`] if the part is not inside, or not aligned.
    pub fn part(&self, offset: usize, len: usize) -> Result<Self, RegionError> {
        let end = offset.checked_add(len).ok_or(RegionError::OutOfBounds)?;
        if end > self.len {
            return Err(RegionError::OutOfBounds);
        }
        if !offset.is_multiple_of(REGION_ALIGN) {
            return Err(RegionError::Misaligned);
        }
        let mut part = self.clone();
        // SAFETY: offset <= self.len, checked above: the result is inside the
        // region or one past its end.
        part.base = unsafe { self.base.add(offset) };
        part.len = len;
        Ok(part)
    }

    /// The first byte. Valid as long as the region or a clone of it.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.base
    }

    /// Copies bytes out of the region into `to`.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`], and nothing is copied.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) -> Result<(), RegionError> {
        self.bounds(offset, to.len())?;
        // SAFETY: the source is inside the region (checked), the destination is
        // a private slice, so they do not overlap. The peer may write the source
        // meanwhile; any mixture of old and new bytes is acceptable, because
        // only the copy is looked at.
        unsafe {
            core::ptr::copy_nonoverlapping(
                self.base.as_ptr().add(offset),
                to.as_mut_ptr(),
                to.len(),
            );
        }
        Ok(())
    }

    /// Copies `from` into the region.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`], and nothing is copied.
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), RegionError> {
        self.bounds(offset, from.len())?;
        // SAFETY: the destination is inside the region (checked) and the source
        // is a private slice, so they do not overlap.
        unsafe {
            core::ptr::copy_nonoverlapping(
                from.as_ptr(),
                self.base.as_ptr().add(offset),
                from.len(),
            );
        }
        Ok(())
    }

    /// A 32-bit word of the region as an atomic, for flags that both sides look
    /// at outside the rings.
    ///
    /// # Errors
    /// [`RegionError`] if the word is not inside, or not aligned.
    pub fn atomic_u32(&self, offset: usize) -> Result<&AtomicU32, RegionError> {
        self.bounds(offset, 4)?;
        if !offset.is_multiple_of(4) {
            return Err(RegionError::Misaligned);
        }
        // SAFETY: inside the region and aligned (checked); valid as long as
        // `self`; every access to this word in this program is atomic.
        Ok(unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) })
    }

    fn bounds(&self, offset: usize, len: usize) -> Result<(), RegionError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(RegionError::OutOfBounds),
        }
    }
}

impl core::fmt::Debug for Region {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Region")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
