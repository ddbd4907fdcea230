//! Stand-ins for a kernel, made of threads of a process. Only the signatures
//! matter: `network` knows nothing else of the kernel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// The port whose writes the monitor has wired to an eventfd.
pub const DOORBELL_PORT: u16 = 0x5d0;

static PORT: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// What the machine does at a write to [`DOORBELL_PORT`]: the ioeventfd.
pub fn wire_port(handler: impl Fn() + Send + Sync + 'static) {
    assert!(PORT.set(Box::new(handler)).is_ok(), "wired twice");
}

/// The port write.
pub fn outb(port: u16, _value: u8) {
    if port == DOORBELL_PORT
        && let Some(handler) = PORT.get()
    {
        handler();
    }
}

/// Microseconds since some moment.
pub fn monotonic_us() -> i64 {
    static START: OnceLock<Instant> = OnceLock::new();
    // Less than 2⁶³.
    START.get_or_init(Instant::now).elapsed().as_micros() as i64
}

/// The running kernel thread.
pub fn this_thread() -> Arc<KernelThread> {
    Arc::new(KernelThread(std::thread::current()))
}

/// A kernel thread.
pub struct KernelThread(Thread);

impl Wake for KernelThread {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A waker of the running kernel thread.
pub fn this_waker() -> Waker {
    this_thread().into()
}

/// Sleeps until the running thread is made ready, or that time; at once if it was
/// made ready since it last slept.
pub fn sleep_this_thread(until_us: Option<i64>) {
    match until_us {
        Some(until) => std::thread::park_timeout(left(until)),
        None => std::thread::park(),
    }
}

fn left(until_us: i64) -> Duration {
    Duration::from_micros((until_us - monotonic_us()).try_into().unwrap_or(0))
}

/// The interrupt's handler: it only sets the event.
pub fn network_interrupt() {
    network_event::set();
}

/// An event that stays set until somebody has waited for it.
pub mod network_event {
    use super::{Condvar, Mutex, PoisonError, left};

    static SET: Mutex<bool> = Mutex::new(false);
    static CHANGED: Condvar = Condvar::new();

    /// Sets it.
    pub fn set() {
        *SET.lock().unwrap_or_else(PoisonError::into_inner) = true;
        CHANGED.notify_all();
    }

    /// Waits until it is set, or that time, and takes it back.
    pub fn wait(until_us: Option<i64>) {
        let mut set = SET.lock().unwrap_or_else(PoisonError::into_inner);
        while !*set {
            set = match until_us {
                None => CHANGED.wait(set).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let waited = CHANGED.wait_timeout(set, left(until));
                    let (set, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    if timeout.timed_out() {
                        return;
                    }
                    set
                }
            };
        }
        *set = false;
    }
}

/// The kernel's mutex, for `lock_api`. It yields while it waits; nobody holds it
/// for longer than some microseconds.
pub struct RawLock(AtomicBool);

// SAFETY: the flag has one owner at a time.
unsafe impl lock_api::RawMutex for RawLock {
    #[allow(
        clippy::declare_interior_mutable_const,
        reason = "the trait wants a constant to start from"
    )]
    const INIT: Self = Self(AtomicBool::new(false));
    type Guard = ();

    fn lock(&self) {
        while self.try_lock().is_none() {
            std::thread::yield_now();
        }
    }

    fn try_lock(&self) -> Option<()> {
        // ORDERING: Acquire pairs with the Release of `unlock`.
        (!self.0.swap(true, Ordering::Acquire)).then_some(())
    }

    unsafe fn unlock(&self, (): ()) {
        // ORDERING: Release pairs with the Acquire of `try_lock`.
        self.0.store(false, Ordering::Release);
    }

    fn is_locked(&self) -> bool {
        // ORDERING: a hint, as the trait says.
        self.0.load(Ordering::Relaxed)
    }
}
