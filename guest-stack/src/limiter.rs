//! A bound on how often something is done: resets and ICMP errors, which
//! anybody can provoke.

use smoltcp::time::Instant;

/// So many per second, and at most as many at once.
#[derive(Debug)]
pub(crate) struct Limiter {
    per_second: u64,
    /// Microseconds' worth of permits that were saved up, at most one second.
    saved_us: u64,
    last: Instant,
}

impl Limiter {
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        Self {
            per_second: per_second.into(),
            saved_us: 1_000_000,
            last: now,
        }
    }

    /// Whether one more is allowed now.
    pub(crate) fn permit(&mut self, now: Instant) -> bool {
        if self.per_second == 0 {
            return false;
        }
        if now > self.last {
            let elapsed = (now - self.last).total_micros();
            self.saved_us = self.saved_us.saturating_add(elapsed).min(1_000_000);
            self.last = now;
        }
        let cost = 1_000_000 / self.per_second;
        if self.saved_us < cost {
            return false;
        }
        self.saved_us -= cost;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_one_second_is_allowed_and_then_the_rate() {
        let mut limiter = Limiter::new(10, Instant::ZERO);
        let burst = (0..100).filter(|_| limiter.permit(Instant::ZERO)).count();
        assert_eq!(burst, 10);
        let later = Instant::from_millis(250);
        assert_eq!((0..100).filter(|_| limiter.permit(later)).count(), 2);
        let much_later = Instant::from_secs(3600);
        assert_eq!((0..100).filter(|_| limiter.permit(much_later)).count(), 10);
    }
}
