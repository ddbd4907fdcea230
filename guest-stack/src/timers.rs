//! Deadlines in order: one per owner, the earliest found without looking at
//! the others.

use alloc::collections::BTreeSet;

use smoltcp::time::Instant;

/// A set of deadlines. Each owner, a number, has one at most; it keeps its own
/// deadline and says it when changing it, so that none is looked up.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    order: BTreeSet<(Instant, u32)>,
}

impl Timers {
    /// Moves an owner's deadline from `from` to `to`; `None` is no deadline.
    pub(crate) fn change(&mut self, owner: u32, from: Option<Instant>, to: Option<Instant>) {
        if from == to {
            return;
        }
        if let Some(from) = from {
            self.order.remove(&(from, owner));
        }
        if let Some(to) = to {
            self.order.insert((to, owner));
        }
    }

    /// The earliest deadline.
    pub(crate) fn earliest(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes out an owner whose deadline has come.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<u32> {
        let (at, owner) = *self.order.first()?;
        if at > now {
            return None;
        }
        self.order.pop_first();
        Some(owner)
    }
}

/// The earlier of two deadlines, where `None` is never.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn owners_expire_in_the_order_of_their_last_deadline() {
        let mut timers = Timers::default();
        timers.change(1, None, Some(at(30)));
        timers.change(2, None, Some(at(20)));
        timers.change(3, None, Some(at(10)));
        timers.change(1, Some(at(30)), Some(at(5)));
        timers.change(3, Some(at(10)), None);
        assert_eq!(timers.earliest(), Some(at(5)));
        assert_eq!(timers.expired(at(4)), None);
        assert_eq!(timers.expired(at(25)), Some(1));
        assert_eq!(timers.expired(at(25)), Some(2));
        assert_eq!(timers.expired(at(25)), None);
        assert_eq!(timers.earliest(), None);
    }
}
