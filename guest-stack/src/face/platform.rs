//! What the faces need from the kernel or process they run in.

use core::task::Waker;

use smoltcp::time::Instant;

/// A clock, a lock, waiting, and a way to wake the driver.
pub trait Platform: Send + Sync + 'static {
    /// The lock around the stack. It is held for some microseconds at a time,
    /// and wakers are called while it is held: they must not take it.
    type RawMutex: lock_api::RawMutex + Send + Sync;

    /// Monotonic time since any moment.
    fn now(&self) -> Instant;

    /// A waker that ends this thread's [`park`](Self::park), also one that
    /// begins later: a wake is never lost. Only the blocking face calls it.
    fn current_waker(&self) -> Waker;

    /// Waits until this thread's waker is woken, or that time. It may return
    /// early. Only the blocking face calls it.
    fn park(&self, until: Option<Instant>);

    /// How long a busy driver may look for work before it sleeps, at the most. It
    /// does so only while that has lately paid off ([`shm_link::spin`]). By
    /// default not at all: right where waking up is cheap, or a processor that
    /// waits is better given to others.
    fn spin(&self) -> core::time::Duration {
        core::time::Duration::ZERO
    }

    /// Called each time the driver has looked and found nothing: lets others
    /// have the processor, or at least spends little.
    fn relax(&self) {
        core::hint::spin_loop();
    }

    /// Makes the driver's wait function return, also one that begins later, so
    /// that it polls and computes its deadline anew.
    fn kick_driver(&self);
}

#[cfg(feature = "std")]
pub use self::standard::{DEFAULT_SPIN, StdPlatform};

#[cfg(feature = "std")]
mod standard {
    use std::boxed::Box;
    use std::sync::Arc;
    use std::task::{Wake, Waker};
    use std::thread::{self, Thread};
    use std::time;

    use smoltcp::time::Instant;

    use super::Platform;

    /// The driver's [`spin`](Platform::spin) unless told otherwise.
    pub const DEFAULT_SPIN: time::Duration = time::Duration::from_micros(200);

    /// Threads of a process.
    pub struct StdPlatform {
        start: time::Instant,
        spin: time::Duration,
        kick: Box<dyn Fn() + Send + Sync>,
    }

    impl StdPlatform {
        /// A platform whose driver is woken by `kick`: it writes to the eventfd
        /// that the driver waits on, or unparks its thread.
        pub fn new(kick: impl Fn() + Send + Sync + 'static) -> Self {
            Self {
                start: time::Instant::now(),
                spin: DEFAULT_SPIN,
                kick: Box::new(kick),
            }
        }

        /// With another limit for the driver's [`spin`](Platform::spin); zero
        /// makes it sleep as soon as there is nothing to do.
        pub fn with_spin(mut self, limit: time::Duration) -> Self {
            self.spin = limit;
            self
        }

        /// How long from now until then; nothing if it has passed.
        pub fn duration_until(&self, then: Instant) -> time::Duration {
            let now = self.now();
            if then <= now {
                return time::Duration::ZERO;
            }
            (then - now).into()
        }
    }

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    impl Platform for StdPlatform {
        type RawMutex = parking_lot::RawMutex;

        fn now(&self) -> Instant {
            // Less than 2⁶³ µs.
            Instant::from_micros(self.start.elapsed().as_micros() as i64)
        }

        fn current_waker(&self) -> Waker {
            Arc::new(Unpark(thread::current())).into()
        }

        fn park(&self, until: Option<Instant>) {
            match until {
                Some(until) => thread::park_timeout(self.duration_until(until)),
                None => thread::park(),
            }
        }

        fn spin(&self) -> time::Duration {
            self.spin
        }

        fn relax(&self) {
            // The bridge and its peers may want this very processor.
            thread::yield_now();
        }

        fn kick_driver(&self) {
            (self.kick)();
        }
    }
}
