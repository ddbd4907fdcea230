//! Threads: each with a stack, giving up the processor only by itself.
//!
//! They exist for the blocking face. The main loop, on the stack it was booted
//! on, runs whoever is ready ([`run_ready`]); a thread that waits ([`park`])
//! switches back to the main loop. Wakers only set a flag.

use alloc::alloc::{alloc, dealloc, handle_alloc_error};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Waker;

use guest_stack::time::Instant;

use crate::lock::Mutex;

/// A new connection builds an interface on the stack for a moment: 96 KiB with
/// this workspace's settings, twice that is given.
pub const STACK_LEN: usize = 192 << 10;
const STACK_LAYOUT: Layout = match Layout::from_size_align(STACK_LEN, 16) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};
/// In the lowest word of every stack; gone when the stack was too small.
const CANARY: usize = 0x5afe_5afe_5afe_5afe;

core::arch::global_asm!(
    // switch(save: *mut usize, to: usize): keeps what a call must keep.
    ".global switch_stacks, thread_entry",
    "switch_stacks:",
    "  push rbp",
    "  push rbx",
    "  push r12",
    "  push r13",
    "  push r14",
    "  push r15",
    "  mov [rdi], rsp",
    "  mov rsp, rsi",
    "  pop r15",
    "  pop r14",
    "  pop r13",
    "  pop r12",
    "  pop rbx",
    "  pop rbp",
    "  ret",
    "thread_entry:",
    "  call thread_body",
    "  ud2",
);

unsafe extern "C" {
    fn switch_stacks(save: *mut usize, to: usize);
    fn thread_entry();
}

type Body = Box<dyn FnOnce() + Send>;

struct Thread {
    stack: *mut u8,
    /// The stack pointer while the thread does not run.
    rsp: UnsafeCell<usize>,
    /// What a thread that was not begun is to do.
    body: Mutex<Option<Body>>,
    woken: AtomicBool,
    until: Mutex<Option<Instant>>,
    finished: AtomicBool,
}

// SAFETY: one processor: the stack and its pointer are used by the main loop and
// the thread itself, never by both.
unsafe impl Send for Thread {}
// SAFETY: as for Send.
unsafe impl Sync for Thread {}

impl Wake for Thread {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // ORDERING: one processor; the flag stands for itself.
        self.woken.store(true, Ordering::Relaxed);
        crate::interrupts::wake();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; a thread is dropped after its end.
        unsafe { dealloc(self.stack, STACK_LAYOUT) }
    }
}

struct MainStack(UnsafeCell<usize>);
// SAFETY: one processor; written by switching away from the main loop.
unsafe impl Sync for MainStack {}

static MAIN_RSP: MainStack = MainStack(UnsafeCell::new(0));
static CURRENT: Mutex<Option<Arc<Thread>>> = Mutex::new(None);
static THREADS: Mutex<Vec<Arc<Thread>>> = Mutex::new(Vec::new());

/// Starts a thread; it runs when the main loop comes to it.
pub fn spawn(body: impl FnOnce() + Send + 'static) {
    // SAFETY: the layout's size is not zero.
    let stack = unsafe { alloc(STACK_LAYOUT) };
    if stack.is_null() {
        handle_alloc_error(STACK_LAYOUT);
    }
    // What `switch_stacks` will take from the new stack: six registers and the
    // address to return to. Behind that the stack is aligned to 16 bytes.
    let first = STACK_LEN / size_of::<usize>() - 9;
    // SAFETY: inside the new stack.
    let rsp = unsafe {
        let words = stack.cast::<usize>();
        words.write(CANARY);
        for register in 0..6 {
            words.add(first + register).write(0);
        }
        words
            .add(first + 6)
            .write(thread_entry as *const () as usize);
        words.add(first) as usize
    };
    let thread = Thread {
        stack,
        rsp: UnsafeCell::new(rsp),
        body: Mutex::new(Some(Box::new(body))),
        woken: AtomicBool::new(true),
        until: Mutex::new(None),
        finished: AtomicBool::new(false),
    };
    THREADS.lock().push(Arc::new(thread));
    crate::interrupts::wake();
}

/// Runs every thread that can go on, once. Says whether there was one, and when
/// the next one's wait ends. The main loop calls it.
pub fn run_ready(now: Instant) -> (bool, Option<Instant>) {
    let (mut ran, mut next) = (false, None::<Instant>);
    let mut at = 0;
    loop {
        // A thread may start others, so the list is not held meanwhile.
        let Some(thread) = THREADS.lock().get(at).cloned() else {
            break;
        };
        let until = *thread.until.lock();
        let ready = thread.woken.swap(false, Ordering::Relaxed);
        if ready || until.is_some_and(|until| until <= now) {
            ran = true;
            run(thread.clone());
        }
        if thread.finished.load(Ordering::Relaxed) {
            THREADS.lock().swap_remove(at);
            continue;
        }
        next = [next, *thread.until.lock()].into_iter().flatten().min();
        at += 1;
    }
    (ran, next)
}

fn run(thread: Arc<Thread>) {
    *thread.until.lock() = None;
    let (rsp, stack) = (thread.rsp.get(), thread.stack);
    *CURRENT.lock() = Some(thread);
    // SAFETY: the thread is in `CURRENT`, so its stack lives; it was left by
    // `switch_stacks` or made by `spawn`. The main loop is left the same way.
    unsafe { switch_stacks(MAIN_RSP.0.get(), *rsp) };
    *CURRENT.lock() = None;
    // SAFETY: the caller holds the thread; its lowest word was written by `spawn`.
    let canary = unsafe { stack.cast::<usize>().read() };
    assert_eq!(canary, CANARY, "a thread's stack was too small");
}

fn back_to_main(rsp: *mut usize) {
    // SAFETY: the main loop waits in `run`; this thread goes on from here.
    unsafe { switch_stacks(rsp, *MAIN_RSP.0.get()) }
}

/// The running thread.
///
/// # Panics
/// In the main loop: it must not wait.
fn current() -> Arc<Thread> {
    let current = CURRENT.lock().clone();
    current.expect("only a thread may wait; the main loop drives the network")
}

/// The first and the last thing that a thread does.
#[unsafe(no_mangle)]
extern "C" fn thread_body() -> ! {
    let rsp = {
        let thread = current();
        let body = thread.body.lock().take();
        if let Some(body) = body {
            body();
        }
        thread.finished.store(true, Ordering::Relaxed);
        thread.rsp.get()
        // Nothing is held any more: this stack will never be unwound.
    };
    back_to_main(rsp);
    unreachable!("a thread that ended was run");
}

/// A waker of the running thread; see [`park`].
pub fn current_waker() -> Waker {
    current().into()
}

/// Waits until the running thread's waker is woken, also if that was since the
/// last return, or until that time. May return early.
pub fn park(until: Option<Instant>) {
    let rsp = {
        let thread = current();
        if thread.woken.swap(false, Ordering::Relaxed) {
            return;
        }
        *thread.until.lock() = until;
        thread.rsp.get()
    };
    back_to_main(rsp);
}
