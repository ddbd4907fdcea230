//! What one stream of a test has carried: bytes, and for datagrams their loss
//! and jitter; and when its sender may go on.
//!
//! Time is an argument. The head of a datagram is the sender's time in seconds
//! and microseconds and a counter from 1, all big endian.

use guest_stack::time::{Duration, Instant};

/// Measures one stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Meter {
    /// Bytes of payload.
    pub(super) bytes: u64,
    /// The highest counter of a datagram.
    pub(super) packets: u64,
    /// Datagrams that are missing below that.
    pub(super) lost: u64,
    /// [`packets`](Self::packets) when the part that counts began.
    pub(super) omitted_packets: u64,
    /// [`lost`](Self::lost) when the part that counts began.
    pub(super) omitted_lost: u64,
    /// Mean change of the time under way, in microseconds (RFC 1889, A.8).
    jitter: f64,
    /// Time under way of the last datagram, in microseconds, give or take the
    /// difference of the two clocks.
    transit: Option<i64>,
}

impl Meter {
    /// The mean change of the time under way.
    pub(super) fn jitter_seconds(&self) -> f64 {
        self.jitter / 1e6
    }

    /// The part of the test that counts begins now.
    pub(super) fn restart(&mut self) {
        self.bytes = 0;
        self.jitter = 0.0;
        (self.omitted_packets, self.omitted_lost) = (self.packets, self.lost);
    }

    /// A datagram arrived. One without a whole head is no part of the test.
    pub(super) fn datagram(&mut self, now: Instant, payload: &[u8], wide: bool) {
        let Some((sent, number)) = head(payload, wide) else {
            return;
        };
        self.bytes += payload.len() as u64;
        if number > self.packets {
            self.lost = self.lost.saturating_add(number - self.packets - 1);
            self.packets = number;
        } else {
            // Late, so it was taken for lost.
            self.lost = self.lost.saturating_sub(1);
        }
        let transit = now.total_micros().wrapping_sub(sent);
        let change = transit
            .wrapping_sub(self.transit.unwrap_or(transit))
            .unsigned_abs();
        self.transit = Some(transit);
        self.jitter += (change as f64 - self.jitter) / 16.0;
    }

    /// Writes the head of the next datagram to send and counts it.
    pub(super) fn next_datagram(&mut self, now: Instant, payload: &mut [u8], wide: bool) {
        self.packets += 1;
        self.bytes += payload.len() as u64;
        let micros = now.total_micros().unsigned_abs();
        let seconds = ((micros / 1_000_000) as u32).to_be_bytes();
        let rest = ((micros % 1_000_000) as u32).to_be_bytes();
        let number = if wide {
            self.packets
        } else {
            self.packets << 32
        };
        let head = seconds.into_iter().chain(rest).chain(number.to_be_bytes());
        payload
            .iter_mut()
            .zip(head)
            .for_each(|(to, byte)| *to = byte);
    }
}

/// When a datagram was sent, in microseconds, and its number.
fn head(payload: &[u8], wide: bool) -> Option<(i64, u64)> {
    let (seconds, rest) = payload.split_first_chunk()?;
    let (micros, rest) = rest.split_first_chunk()?;
    let number = if wide {
        u64::from_be_bytes(*rest.first_chunk()?)
    } else {
        u64::from(u32::from_be_bytes(*rest.first_chunk()?))
    };
    let (seconds, micros) = (u32::from_be_bytes(*seconds), u32::from_be_bytes(*micros));
    Some((i64::from(seconds) * 1_000_000 + i64::from(micros), number))
}

/// Keeps a sender to its rate.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// Bits per second; 0: as fast as it goes.
    rate: u64,
    start: Instant,
    sent: u64,
}

impl Pace {
    /// How long a sender that is early rests at least: a wake-up for every
    /// datagram would cost more than the datagram.
    const REST: Duration = Duration::from_millis(1);

    /// A sender that begins at `start`.
    pub(super) fn new(rate: u64, start: Instant) -> Self {
        Self {
            rate,
            start,
            sent: 0,
        }
    }

    /// Counts what was sent.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// When the next bytes are due.
    pub(super) fn due(&self) -> Instant {
        if self.rate == 0 {
            return self.start;
        }
        let micros = u128::from(self.sent) * 8_000_000 / u128::from(self.rate);
        // A rate so small that its next byte is never due.
        let micros = u64::try_from(micros)
            .unwrap_or(u64::MAX)
            .min(i64::MAX as u64 / 2);
        self.start + Duration::from_micros(micros)
    }

    /// Orders senders: the first is the one whose turn it is.
    pub(super) fn key(&self) -> (Instant, u64) {
        (self.due(), self.sent)
    }

    /// Until when to rest before sending, if at all.
    pub(super) fn rest(&self, now: Instant) -> Option<Instant> {
        let due = self.due();
        (due > now).then(|| due.max(now + Self::REST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Instant {
        Instant::from_micros(micros)
    }

    fn datagram(sent: i64, number: u64, wide: bool) -> [u8; 100] {
        let mut payload = [0; 100];
        let mut meter = Meter {
            packets: number - 1,
            ..Meter::default()
        };
        meter.next_datagram(at(sent), &mut payload, wide);
        payload
    }

    #[test]
    fn gaps_are_losses_until_the_missing_datagram_arrives() {
        for wide in [false, true] {
            let mut meter = Meter::default();
            for number in [1, 2, 5, 6, 4] {
                meter.datagram(at(0), &datagram(0, number, wide), wide);
            }
            assert_eq!((meter.packets, meter.lost, meter.bytes), (6, 1, 500));
        }
    }

    #[test]
    fn a_constant_delay_is_no_jitter_and_a_changing_one_is() {
        let mut meter = Meter::default();
        for number in 1..=100 {
            let sent = number as i64 * 1000;
            meter.datagram(at(sent + 50_000), &datagram(sent, number, true), true);
        }
        assert_eq!(meter.jitter_seconds(), 0.0);
        for number in 101..=1000 {
            let sent = number as i64 * 1000;
            let delay = if number % 2 == 0 { 50_000 } else { 50_400 };
            meter.datagram(at(sent + delay), &datagram(sent, number, true), true);
        }
        assert!((meter.jitter_seconds() - 0.000_4).abs() < 1e-6, "{meter:?}");
    }

    #[test]
    fn datagrams_of_any_content_are_counted_or_ignored() {
        let mut meter = Meter::default();
        for len in 0..16 {
            meter.datagram(at(0), &[0xff; 16][..len], true);
        }
        assert_eq!(meter, Meter::default());
        meter.datagram(at(i64::MAX), &[0xff; 16], true);
        meter.datagram(at(i64::MIN), &[0; 16], true);
        meter.datagram(at(0), &[0xff; 16], true);
        assert_eq!(meter.packets, u64::MAX);
    }

    #[test]
    fn what_came_before_the_part_that_counts_is_left_out() {
        let mut meter = Meter::default();
        for number in [1, 3] {
            meter.datagram(at(0), &datagram(0, number, true), true);
        }
        meter.restart();
        meter.datagram(at(0), &datagram(0, 4, true), true);
        assert_eq!((meter.bytes, meter.packets, meter.lost), (100, 4, 1));
        assert_eq!((meter.omitted_packets, meter.omitted_lost), (3, 1));
    }

    #[test]
    fn a_paced_sender_keeps_its_rate() {
        let mut pace = Pace::new(8_000_000, at(0));
        assert_eq!(pace.rest(at(0)), None);
        pace.sent(5_000);
        assert_eq!(pace.due(), at(5_000));
        assert_eq!(pace.rest(at(1_000)), Some(at(5_000)));
        assert_eq!(pace.rest(at(4_900)), Some(at(5_900)));
        assert_eq!(pace.rest(at(5_000)), None);
    }

    #[test]
    fn a_sender_without_a_rate_never_rests() {
        let mut pace = Pace::new(0, at(7));
        pace.sent(1 << 40);
        assert_eq!(pace.rest(at(7)), None);
        let mut slow = Pace::new(1, at(0));
        slow.sent(usize::MAX);
        assert!(slow.rest(at(0)).is_some());
    }
}
