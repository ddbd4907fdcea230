//! Memory that a guest and its host share, taken from the heap.

use std::alloc::{Layout as Memory, alloc_zeroed, dealloc, handle_alloc_error};
use std::sync::Arc;

use shm_link::region::Region;

/// Pages, as a mapping has them; gone with the last region that views them.
struct Pages(*mut u8, Memory);

// SAFETY: an address and a length; the memory is reached through regions only.
unsafe impl Send for Pages {}
// SAFETY: as above; `&Pages` gives nothing away.
unsafe impl Sync for Pages {}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated in `region` with this layout, and freed only here.
        unsafe { dealloc(self.0, self.1) };
    }
}

/// A zeroed region of `len` bytes.
pub(crate) fn region(len: usize) -> Region {
    let memory = Memory::from_size_align(len.max(1), 4096).expect("a length that exists");
    // SAFETY: the layout is not of zero length.
    let base = unsafe { alloc_zeroed(memory) };
    if base.is_null() {
        handle_alloc_error(memory);
    }
    let pages = Arc::new(Pages(base, memory));
    // SAFETY: `len` bytes that are valid as long as `pages`, which the region keeps;
    // nobody else knows of them.
    unsafe { Region::with_owner(base, len, pages) }.expect("pages are aligned")
}

/// All bytes of a region.
pub(crate) fn copy(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; region.len()];
    region.copy_out(0, &mut bytes).expect("inside");
    bytes
}
