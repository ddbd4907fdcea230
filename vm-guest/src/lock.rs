//! The lock around everything shared.
//!
//! There is one processor, threads give it up only by themselves and never with
//! a lock held, and interrupt handlers take no lock. So a lock is never waited
//! for; the flag is there to find mistakes. A kernel with more processors or
//! with preemption puts its own lock here.

use core::sync::atomic::{AtomicBool, Ordering};

/// A flag that must be down.
pub struct RawLock(AtomicBool);

// SAFETY: only one holder at a time: a second `lock` does not return.
unsafe impl lock_api::RawMutex for RawLock {
    #[allow(
        clippy::declare_interior_mutable_const,
        reason = "the trait wants a constant to start from"
    )]
    const INIT: Self = Self(AtomicBool::new(false));
    type Guard = ();

    fn lock(&self) {
        assert!(
            self.try_lock().is_some(),
            "a lock was held over a wait, or taken twice"
        );
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

/// Data behind a [`RawLock`].
pub type Mutex<T> = lock_api::Mutex<RawLock, T>;
