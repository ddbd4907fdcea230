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

    /// Makes the driver's wait function return, also one that begins later, so
    /// that it polls and computes its deadline anew.
    fn kick_driver(&self);
}

#[cfg(feature = "std")]
pub use self::standard::StdPlatform;

#[cfg(feature = "std")]
mod standard {
    use std::boxed::Box;
    use std::sync::Arc;
    use std::task::{Wake, Waker};
    use std::thread::{self, Thread};
    use std::time;

    use smoltcp::time::Instant;

    use super::Platform;

    /// Threads of a process.
    pub struct StdPlatform {
        start: time::Instant,
        kick: Box<dyn Fn() + Send + Sync>,
    }

    impl StdPlatform {
        /// A platform whose driver is woken by `kick`: it writes to the eventfd
        /// that the driver waits on, or unparks its thread.
        pub fn new(kick: impl Fn() + Send + Sync + 'static) -> Self {
            Self {
                start: time::Instant::now(),
                kick: Box::new(kick),
            }
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

        fn kick_driver(&self) {
            (self.kick)();
        }
    }
}
