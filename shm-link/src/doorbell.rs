//! Doorbells and waiting: how a side that sleeps is woken.
//!
//! The rings only know *whether* the peer must be woken; these traits are how.
//! A doorbell is an eventfd, a store to a PCI register, a port write. A wait is
//! a blocking read, a `hlt`, an await.

use core::time::Duration;

/// Wakes the other side.
pub trait Doorbell {
    /// Rings. Never blocks; ringing an awake peer is harmless.
    fn ring(&self);
}

impl<F: Fn()> Doorbell for F {
    fn ring(&self) {
        self();
    }
}

/// Sleeps until the other side rings.
pub trait Wait {
    /// Returns once the doorbell was rung since the last return, or after
    /// `timeout`; may return early. Rings that came before the call count.
    fn wait(&self, timeout: Option<Duration>);
}

/// Sleeps until the other side rings, without holding the thread.
#[allow(
    async_fn_in_trait,
    reason = "used with static dispatch; Send is the implementor's business"
)]
pub trait AsyncWait {
    /// As [`Wait::wait`], without a timeout.
    async fn wait(&self);
}
