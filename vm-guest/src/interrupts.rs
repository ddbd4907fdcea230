//! Interrupts and faults: the tables, the two interrupts, and `hlt`.
//!
//! The handlers of the two interrupts do nothing but set a flag, which is all
//! that a driver needs: whoever sleeps looks around when it wakes. They are
//! assembly, so they touch no SSE register, and run on stacks of their own
//! (IST): code for the host's target keeps data below the stack pointer. A fault
//! is a panic.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::VirtAddr;
use x86_64::instructions::interrupts::{disable, enable, enable_and_hlt};
use x86_64::instructions::port::Port;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

/// The vector that the device's MSI-X message names.
pub const DOORBELL_VECTOR: u8 = 0x40;
/// The vector of the local APIC's timer.
pub const TIMER_VECTOR: u8 = 0x41;
/// The vector that the local APIC uses when an interrupt went away.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// Which of the task state's stacks is whose, from 0.
const INTERRUPT_STACK: u16 = 0;
const FAULT_STACK: u16 = 1;

/// A panic formats text and sends a message on it.
const STACK_LEN: usize = 64 << 10;
#[repr(align(16))]
struct Stack(UnsafeCell<[u8; STACK_LEN]>);
// SAFETY: only the processor uses it, for one interrupt at a time.
unsafe impl Sync for Stack {}
static STACKS: [Stack; 2] = [const { Stack(UnsafeCell::new([0; STACK_LEN])) }; 2];

/// Somebody wants the main loop to look around.
#[unsafe(no_mangle)]
static WOKEN: AtomicBool = AtomicBool::new(false);

core::arch::global_asm!(
    ".global interrupt_entry, spurious_entry",
    "interrupt_entry:",
    "  push rax",
    "  mov byte ptr [rip + WOKEN], 1",
    "  mov eax, 0xfee000b0", // the local APIC's end-of-interrupt register
    "  mov dword ptr [rax], 0",
    "  pop rax",
    "spurious_entry:",
    "  iretq",
    // One entry per exception, 16 bytes each: its number, and on.
    ".balign 16",
    ".global fault_entries",
    "fault_entries:",
    ".set number, 0",
    ".rept 32",
    "  .balign 16",
    "  push number",
    "  jmp fault_common",
    "  .set number, number + 1",
    ".endr",
    "fault_common:",
    "  pop rdi",
    "  mov rsi, rsp",
    "  mov rdx, cr2",
    "  and rsp, -16",
    "  call fault",
    "  ud2",
);

unsafe extern "C" {
    fn interrupt_entry();
    fn spurious_entry();
    fn fault_entries();
}

/// # Safety
/// Called by the entries above only, with what the processor pushed.
#[unsafe(no_mangle)]
unsafe extern "C" fn fault(number: u64, frame: *const u64, address: u64) -> ! {
    // The exceptions that push an error code first.
    let has_code = matches!(number, 8 | 10..=14 | 17 | 21 | 29 | 30);
    // SAFETY: the processor has pushed five words, and the code.
    let (code, at) = unsafe {
        match has_code {
            true => (*frame, *frame.add(1)),
            false => (0, *frame),
        }
    };
    panic!("exception {number}, code {code:#x}, at {at:#x}, address {address:#x}");
}

/// Puts the tables in place. Interrupts stay off until the first [`sleep`].
pub fn init() {
    let top = |stack: &Stack| VirtAddr::from_ptr(stack.0.get().wrapping_add(1));
    let mut tss = TaskStateSegment::new();
    tss.interrupt_stack_table[usize::from(INTERRUPT_STACK)] = top(&STACKS[0]);
    tss.interrupt_stack_table[usize::from(FAULT_STACK)] = top(&STACKS[1]);
    let tss = alloc::boxed::Box::leak(alloc::boxed::Box::new(tss));
    let gdt = alloc::boxed::Box::leak(alloc::boxed::Box::new(GlobalDescriptorTable::new()));
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    gdt.load();
    let idt = alloc::boxed::Box::leak(alloc::boxed::Box::new(InterruptDescriptorTable::new()));
    // SAFETY: the selectors are those of the table just loaded; the entries keep
    // to what the processor does; the stacks are nobody else's.
    unsafe {
        CS::set_reg(code);
        DS::set_reg(data);
        ES::set_reg(data);
        SS::set_reg(data);
        load_tss(task);
        macro_rules! fault {
            ($($number:literal $name:ident),*) => {$(
                let entry = VirtAddr::new(fault_entries as *const () as u64 + 16 * $number);
                idt.$name.set_handler_addr(entry).set_stack_index(FAULT_STACK);
            )*};
        }
        fault!(0 divide_error, 1 debug, 2 non_maskable_interrupt, 3 breakpoint, 4 overflow,
            5 bound_range_exceeded, 6 invalid_opcode, 7 device_not_available, 8 double_fault,
            10 invalid_tss, 11 segment_not_present, 12 stack_segment_fault,
            13 general_protection_fault, 14 page_fault, 16 x87_floating_point,
            17 alignment_check, 18 machine_check, 19 simd_floating_point, 20 virtualization);
        let entry = VirtAddr::new(interrupt_entry as *const () as u64);
        for vector in [DOORBELL_VECTOR, TIMER_VECTOR] {
            idt[vector]
                .set_handler_addr(entry)
                .set_stack_index(INTERRUPT_STACK);
        }
        let entry = VirtAddr::new(spurious_entry as *const () as u64);
        idt[SPURIOUS_VECTOR]
            .set_handler_addr(entry)
            .set_stack_index(INTERRUPT_STACK);
        // The two old interrupt controllers stay silent.
        for port in [0x21, 0xa1] {
            Port::<u8>::new(port).write(0xff);
        }
        // Firmware has left the interval timer ticking 18 times a second, which
        // costs the host a wake-up each though nobody hears it: one last time.
        Port::<u8>::new(0x43).write(0b0011_0000);
        for _ in 0..2 {
            Port::<u8>::new(0x40).write(0);
        }
    }
    idt.load();
}

/// Makes the next [`sleep`] return at once.
pub fn wake() {
    // ORDERING: one processor; the flag stands for itself.
    WOKEN.store(true, Ordering::Relaxed);
}

/// Sleeps until an interrupt comes, unless one came or [`wake`] was called since
/// the last return. `before` is called with interrupts off, right before the
/// sleep: it sets the timer.
pub fn sleep(before: impl FnOnce()) {
    // An interrupt between the look at the flag and `hlt` would be slept over.
    disable();
    // ORDERING: one processor; interrupts are off.
    if !WOKEN.load(Ordering::Relaxed) {
        before();
        // The processor takes interrupts only after the instruction behind the
        // one that allows them, and that is `hlt`.
        enable_and_hlt();
    }
    // Whatever it was, the caller looks around now.
    WOKEN.store(false, Ordering::Relaxed);
    enable();
}

/// The end: sleeps for good.
pub fn halt() -> ! {
    loop {
        disable();
        x86_64::instructions::hlt();
    }
}
