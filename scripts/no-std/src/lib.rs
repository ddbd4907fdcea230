//! See Cargo.toml. Nothing here is ever run.
#![no_std]

use core::alloc::{GlobalAlloc, Layout};

use demo_guest as _;
use guest_stack as _;
use shm_link as _;

struct NoMemory;

// SAFETY: it never gives memory out, which an allocator may always do.
unsafe impl GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static MEMORY: NoMemory = NoMemory;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
