//! Virtual time: nanoseconds since the run began, and what the parts take for it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Nanoseconds since the run began.
pub type Nanos = u64;

/// A microsecond.
pub const MICROSECOND: Nanos = 1_000;
/// A millisecond.
pub const MILLISECOND: Nanos = 1_000_000;
/// A second.
pub const SECOND: Nanos = 1_000_000_000;
/// For ever.
pub const NEVER: Nanos = Nanos::MAX;

/// The time of a run. Clones show the same.
#[derive(Clone)]
pub(crate) struct Clock {
    now: Rc<Cell<Nanos>>,
    /// What the host's side takes for the beginning. Only differences count.
    base: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            now: Rc::default(),
            base: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Nanos {
        self.now.get()
    }

    pub(crate) fn set(&self, now: Nanos) {
        debug_assert!(now >= self.now.get(), "time runs forward");
        self.now.set(now);
    }

    /// As the host's side knows it.
    pub(crate) fn host(&self) -> Instant {
        self.base + Duration::from_nanos(self.now())
    }

    /// What the host's side calls so.
    pub(crate) fn of_host(&self, at: Instant) -> Nanos {
        let since = at.saturating_duration_since(self.base).as_nanos();
        u64::try_from(since).unwrap_or(NEVER)
    }

    /// As the guests know it.
    pub(crate) fn guest(&self) -> guest_stack::time::Instant {
        guest_stack::time::Instant::from_micros((self.now() / MICROSECOND) as i64)
    }

    /// What the guests call so.
    pub(crate) fn of_guest(at: guest_stack::time::Instant) -> Nanos {
        u64::try_from(at.total_micros()).map_or(0, |micros| micros.saturating_mul(MICROSECOND))
    }
}
