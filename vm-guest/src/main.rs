//! The image: the entry from `boot.s`, the heap, and the panic handler. All else
//! is in the library, whose front page has the table of files.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, Ordering};

use vm_guest::boot::StartInfo;
use vm_guest::memory::Heap;
use vm_guest::{interrupts, kernel, last_words, serial};

#[global_allocator]
static HEAP: Heap = Heap::new();

unsafe extern "C" {
    /// The end of the image, from the linker script.
    static __image_end: u8;
}

/// Called by `boot.s` with the address of the start info, on a stack, with SSE
/// and the first 4 GiB in place.
#[unsafe(no_mangle)]
extern "C" fn start(info: u32) -> ! {
    // SAFETY: the boot code passes on what the loader gave.
    let Some(info) = (unsafe { StartInfo::at(info) }) else {
        interrupts::halt();
    };
    let end = &raw const __image_end as u64;
    // SAFETY: behind the image's end is free memory, up to where the memory map
    // says; the loader's own tables lie below the image.
    unsafe { HEAP.claim(end, info.memory_end(end)) };
    kernel::run(&info, &HEAP)
}

/// Says on the serial port and to the bridge what happened, and stops.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    static PANICKED: AtomicBool = AtomicBool::new(false);
    x86_64::instructions::interrupts::disable();
    // A panic in here says no more.
    if !PANICKED.swap(true, Ordering::Relaxed) {
        serial::say(format_args!("{info}\n"));
        last_words::send(info);
    }
    interrupts::halt();
}
