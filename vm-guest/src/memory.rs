//! Memory: the heap, and device memory above what `boot.s` has mapped.
//!
//! Everything lies at its physical address. The heap is the memory behind the
//! image up to the first gap. Device registers below 4 GiB are mapped already;
//! firmware may put a large BAR higher, and [`map_device`] adds it.

use alloc::alloc::{alloc_zeroed, handle_alloc_error};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};

use talc::base::Talc;
use talc::base::binning::DefaultBinning;
use talc::source::Manual;
use x86_64::structures::paging::mapper::MapToError;
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, PageTable, PageTableFlags, PhysFrame, Size2MiB,
    Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr, registers::control::Cr3};

use crate::lock::Mutex;

const MAPPED_AT_BOOT: u64 = 1 << 32;
/// Addresses from here on cannot be their own virtual address.
const IDENTITY_END: u64 = 1 << 47;
const LARGE_PAGE: u64 = 2 << 20;

/// The heap.
pub struct Heap(Mutex<Talc<Manual, DefaultBinning>>);

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

impl Heap {
    /// One without memory.
    pub const fn new() -> Self {
        Self(Mutex::new(Talc::new(Manual)))
    }

    /// Gives it memory.
    ///
    /// # Safety
    /// Nothing else uses `start..end`, ever; it is mapped.
    pub unsafe fn claim(&self, start: u64, end: u64) {
        let len = end.saturating_sub(start) as usize;
        // SAFETY: promised by the caller.
        let claimed = unsafe { self.0.lock().claim(start as usize as *mut u8, len) };
        assert!(claimed.is_some(), "{len} bytes of memory are too few");
    }

    /// Bytes that can be allocated, in pieces.
    pub fn free_bytes(&self) -> usize {
        self.0.lock().counters().available_bytes
    }

    /// Bytes that are allocated at the moment.
    pub fn allocated_bytes(&self) -> usize {
        self.0.lock().counters().allocated_bytes
    }
}

// SAFETY: talc keeps the promises of an allocator, and the lock keeps it whole.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the size is not zero, promised by the caller.
        let allocated = unsafe { self.0.lock().allocate(layout) };
        allocated.map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: promised by the caller.
        unsafe { self.0.lock().deallocate(at, layout) }
    }
}

/// Page tables come from the heap.
struct TablesFromHeap;

// SAFETY: each call gives 4 KiB that nobody else has, at its physical address.
unsafe impl FrameAllocator<Size4KiB> for TablesFromHeap {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let layout = Layout::new::<PageTable>();
        // SAFETY: the layout's size is not zero.
        let table = unsafe { alloc_zeroed(layout) };
        if table.is_null() {
            handle_alloc_error(layout);
        }
        Some(PhysFrame::containing_address(PhysAddr::new(table as u64)))
    }
}

/// Makes `len` bytes of a device at `address` usable at that very address. Call
/// it from one place at a time; `false`: they are too high up.
#[must_use]
pub fn map_device(address: u64, len: u64) -> bool {
    let Some(end) = address.checked_add(len).filter(|end| *end <= IDENTITY_END) else {
        return false;
    };
    let (table, _) = Cr3::read();
    // SAFETY: the tables lie at their own addresses, and only this function
    // changes them.
    let mut mapper = unsafe {
        let table = &mut *(table.start_address().as_u64() as *mut PageTable);
        OffsetPageTable::new(table, VirtAddr::zero())
    };
    let mut page = address & !(LARGE_PAGE - 1);
    while page < end {
        if page >= MAPPED_AT_BOOT {
            let frame = PhysFrame::<Size2MiB>::containing_address(PhysAddr::new(page));
            let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
            // SAFETY: nothing of the program lies above what the boot code has
            // mapped, so the new page shows nothing that Rust knows of.
            match unsafe { mapper.identity_map(frame, flags, &mut TablesFromHeap) } {
                Ok(flush) => flush.flush(),
                // Two BARs on one page.
                Err(MapToError::PageAlreadyMapped(_)) => {}
                Err(_) => return false,
            }
        }
        page += LARGE_PAGE;
    }
    true
}
