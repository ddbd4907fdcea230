//! How much one guest may move in one direction: bytes and frames per second.
//!
//! Unlike the impairments, a limit harms nothing: a pump that has used up its guest's
//! share stops taking frames until more is due, so the guest's ring fills and its
//! sockets wait; towards the guest the kernel's queue fills. Offloads stay. It has no
//! clock and does not sleep: time is an argument. A direction without a limit costs a
//! comparison per turn.
//!
//! The text form, in files and on the command line, is a list such as
//!
//! ```text
//! rate=100mbit,burst=256kib,frames=20000
//! ```
//!
//! `off` (or nothing) is no limit.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::units::{RATE_UNITS, SIZE_UNITS, Scaled, digits, parse_scaled};

const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000;
const BURSTS: std::ops::RangeInclusive<u64> = 64..=1 << 30;
const FRAMES: std::ops::RangeInclusive<u64> = 1..=1_000_000_000;
/// What may come at once, unless said otherwise: as much as this long brings. A timer
/// comes up to a millisecond late, and what it missed is to be made up.
const BURST_TIME: Duration = Duration::from_millis(10);
/// The same, and no less: a super-frame; a pump's turn.
const MIN_BURST_BYTES: u64 = 64 << 10;
const MIN_BURST_FRAMES: u64 = 64;
const SECOND: u128 = 1_000_000_000;

/// The limits of one direction. The default is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LimitConfig {
    /// Bits per second, Ethernet headers included.
    rate: Option<NonZeroU64>,
    /// Bytes that may come at once.
    burst: Option<u64>,
    /// Frames per second, however long; a super-frame is one.
    frames: Option<NonZeroU64>,
}

impl LimitConfig {
    /// So many frames per second, at least one.
    pub const fn frames(per_second: u64) -> Self {
        Self {
            rate: None,
            burst: None,
            frames: match NonZeroU64::new(per_second) {
                None => Some(NonZeroU64::MIN),
                some => some,
            },
        }
    }

    /// Whether everything may pass.
    pub fn is_off(&self) -> bool {
        self.rate.is_none() && self.frames.is_none()
    }
}

/// The limits of both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// From guest to host.
    pub to_host: LimitConfig,
    /// From host to guest.
    pub to_guest: LimitConfig,
}

/// Why a text is no [`LimitConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LimitParseError {
    /// A part is not understood.
    #[error(
        "{0:?} is no limit: write rate=10mbit (from 1kbit to 1000gbit), burst=64kib (from 64b to \
         1024mib, with a rate), frames=5000 (per second, up to 1000000000), or off"
    )]
    Part(String),
    /// The same key twice.
    #[error("{0} is given twice")]
    Repeated(&'static str),
    /// A burst of nothing.
    #[error("burst does nothing without rate: give both")]
    Alone,
}

impl FromStr for LimitConfig {
    type Err = LimitParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut config = Self::default();
        let text = text.trim();
        if text.is_empty() || text == "off" {
            return Ok(config);
        }
        for part in text.split(',').map(str::trim) {
            let bad = || LimitParseError::Part(part.to_owned());
            let (key, value) = part.split_once('=').ok_or_else(bad)?;
            let within = |number: Option<u64>, range: std::ops::RangeInclusive<u64>| {
                let number = number.filter(|number| range.contains(number));
                number.and_then(NonZeroU64::new).ok_or_else(bad)
            };
            let before = match key.trim() {
                "rate" => {
                    let rate = within(parse_scaled(value.trim(), RATE_UNITS), RATES)?;
                    config.rate.replace(rate).map(|_| "rate")
                }
                "burst" => {
                    let burst = within(parse_scaled(value.trim(), SIZE_UNITS), BURSTS)?;
                    config.burst.replace(burst.get()).map(|_| "burst")
                }
                "frames" => {
                    let frames = within(digits(value.trim()), FRAMES)?;
                    config.frames.replace(frames).map(|_| "frames")
                }
                _ => return Err(bad()),
            };
            if let Some(key) = before {
                return Err(LimitParseError::Repeated(key));
            }
        }
        match (config.rate, config.burst) {
            (None, Some(_)) => Err(LimitParseError::Alone),
            _ => Ok(config),
        }
    }
}

impl fmt::Display for LimitConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.rate.map(|rate| Scaled(rate.get(), RATE_UNITS));
        let burst = self.burst.map(|burst| Scaled(burst, SIZE_UNITS));
        let parts = [
            rate.map(|rate| format!("rate={rate}")),
            burst.map(|burst| format!("burst={burst}")),
            self.frames.map(|frames| format!("frames={frames}")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        match parts.is_empty() {
            true => f.write_str("off"),
            false => f.write_str(&parts.join(",")),
        }
    }
}

impl TryFrom<String> for LimitConfig {
    type Error = LimitParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<LimitConfig> for String {
    fn from(config: LimitConfig) -> Self {
        config.to_string()
    }
}

/// Keeps one direction within its limits.
#[derive(Debug)]
pub(crate) struct Limiter {
    config: LimitConfig,
    bits: Option<Bucket>,
    frames: Option<Bucket>,
}

impl Limiter {
    pub(crate) fn new(config: LimitConfig) -> Self {
        let bits = config.rate.map(|rate| {
            let usual = per_burst_time(rate.get() / 8).max(MIN_BURST_BYTES);
            Bucket::new(rate, config.burst.unwrap_or(usual).saturating_mul(8))
        });
        let frames = config
            .frames
            .map(|rate| Bucket::new(rate, per_burst_time(rate.get()).max(MIN_BURST_FRAMES)));
        Self {
            config,
            bits,
            frames,
        }
    }

    /// Takes a new limit. One that changes nothing leaves what was used up used up.
    pub(crate) fn set_config(&mut self, config: LimitConfig) {
        if self.config != config {
            *self = Self::new(config);
        }
    }

    pub(crate) fn is_off(&self) -> bool {
        self.config.is_off()
    }

    /// When the next frame may pass; `None`: now.
    pub(crate) fn pause(&self, now: Instant) -> Option<Instant> {
        let buckets = [&self.bits, &self.frames];
        let pauses = buckets.into_iter().flatten().map(|b| b.pause(now));
        pauses.max().flatten()
    }

    /// A frame of `len` bytes passes. One that may pass is taken whole, however little
    /// is left; the next one waits for longer.
    pub(crate) fn charge(&mut self, now: Instant, len: usize) {
        if let Some(bits) = &mut self.bits {
            bits.charge(now, len as u64 * 8);
        }
        if let Some(frames) = &mut self.frames {
            frames.charge(now, 1);
        }
    }
}

/// Keeps a guest's frames to groups within bounds. What is too much is lost, since what
/// stands behind it is not to wait.
#[derive(Debug, Default)]
pub(crate) struct GroupLimit {
    per_second: u32,
    bucket: Option<Bucket>,
}

impl GroupLimit {
    /// Whether one more may pass; if so, it counts. `per_second` is the limit of now, and
    /// what may come at once; 0 is none.
    pub(crate) fn permits(&mut self, per_second: u32, now: Instant) -> bool {
        if self.per_second != per_second {
            let rate = NonZeroU64::new(per_second.into());
            self.bucket = rate.map(|rate| Bucket::new(rate, per_second.into()));
            self.per_second = per_second;
        }
        let Some(bucket) = &mut self.bucket else {
            return true;
        };
        let permitted = bucket.pause(now).is_none();
        if permitted {
            bucket.charge(now, 1);
        }
        permitted
    }
}

fn per_burst_time(per_second: u64) -> u64 {
    (u128::from(per_second) * BURST_TIME.as_nanos() / SECOND) as u64
}

/// A token bucket, kept as the time at which it will be full again.
#[derive(Debug)]
struct Bucket {
    per_second: NonZeroU64,
    /// How long it takes to fill it.
    depth: Duration,
    full_at: Option<Instant>,
    /// What rounding left over, in parts of a nanosecond.
    rest: u128,
}

impl Bucket {
    fn new(per_second: NonZeroU64, tokens: u64) -> Self {
        let depth = u128::from(tokens) * SECOND / u128::from(per_second.get());
        Self {
            per_second,
            depth: Duration::from_nanos(u64::try_from(depth).unwrap_or(u64::MAX)),
            full_at: None,
            rest: 0,
        }
    }

    fn pause(&self, now: Instant) -> Option<Instant> {
        let positive_at = self.full_at?.checked_sub(self.depth)?;
        (positive_at > now).then_some(positive_at)
    }

    fn charge(&mut self, now: Instant, tokens: u64) {
        let rate = u128::from(self.per_second.get());
        let cost = u128::from(tokens) * SECOND + self.rest;
        self.rest = cost % rate;
        // At most 64 KiB at 1 kbit/s: some nine minutes.
        let cost = Duration::from_nanos(u64::try_from(cost / rate).unwrap_or(u64::MAX));
        let from = self.full_at.map_or(now, |full_at| full_at.max(now));
        self.full_at = from.checked_add(cost).or(Some(from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limiter(text: &str) -> Limiter {
        Limiter::new(text.parse().unwrap())
    }

    /// Sends frames of `len` as fast as the limiter lets them for `time`; how many.
    fn passed(limiter: &mut Limiter, start: Instant, len: usize, time: Duration) -> u64 {
        let (mut now, mut count) = (start, 0);
        while now < start + time {
            match limiter.pause(now) {
                Some(at) => {
                    assert!(at > now, "it does not go on");
                    now = at;
                }
                None => {
                    limiter.charge(now, len);
                    count += 1;
                }
            }
        }
        count
    }

    #[test]
    fn frames_to_groups_pass_as_many_as_allowed_and_at_first_a_seconds_worth() {
        let (start, mut limit) = (Instant::now(), GroupLimit::default());
        let passed = |limit: &mut GroupLimit, per_second, from: u64, to: u64| {
            let times = (from..to).map(|ms| start + Duration::from_millis(ms));
            times.filter(|now| limit.permits(per_second, *now)).count()
        };
        // One per millisecond.
        assert_eq!(passed(&mut limit, 100, 0, 3000), 100 + 300);
        assert_eq!(passed(&mut limit, 0, 3000, 4000), 1000);
        assert_eq!(passed(&mut limit, 100, 4000, 5000), 100 + 100);
        assert_eq!(passed(&mut limit, 1000, 5000, 6000), 1000);
    }

    #[test]
    fn what_passes_is_the_rate_and_at_first_the_burst() {
        let start = Instant::now();
        let ten = Duration::from_secs(10);
        for (text, len, expected) in [
            // 1 Mbit/s for 10 s and 64 KiB are 1,315,536 bytes.
            ("rate=1mbit", 1000, 1316),
            ("rate=1mbit,burst=1kib", 1000, 1251),
            ("frames=100", 60, 1000 + 64),
            // 10 ms of 100,000 per second.
            ("frames=100000", 60, 1_000_000 + 1000),
            // The harder of the two.
            ("rate=1mbit,frames=10", 1000, 100 + 64),
        ] {
            let count = passed(&mut limiter(text), start, len, ten);
            assert!(
                count.abs_diff(expected) <= 2,
                "{text}: {count}, not {expected}"
            );
        }
    }

    #[test]
    fn a_frame_longer_than_the_burst_passes_and_is_paid_for_afterwards() {
        let start = Instant::now();
        let mut limiter = limiter("rate=8kbit,burst=64b");
        limiter.charge(start, 60_000);
        // 60,000 bytes at 1,000 a second, less the burst.
        let pause = limiter.pause(start).unwrap() - start;
        assert_eq!(pause, Duration::from_millis(59_936));
        assert_eq!(limiter.pause(start + pause), None);
    }

    #[test]
    fn silence_earns_no_more_than_the_burst() {
        let start = Instant::now();
        let mut limiter = limiter("frames=100");
        limiter.charge(start, 60);
        let later = start + Duration::from_secs(3600);
        let mut count = 0;
        while limiter.pause(later).is_none() {
            limiter.charge(later, 60);
            count += 1;
        }
        assert_eq!(count, 65);
    }

    #[test]
    fn no_limit_never_pauses_and_a_change_begins_anew() {
        let now = Instant::now();
        let mut limiter = limiter("off");
        assert!(limiter.is_off());
        for _ in 0..10_000 {
            limiter.charge(now, 65_000);
            assert_eq!(limiter.pause(now), None);
        }
        limiter.set_config("rate=1kbit".parse().unwrap());
        for _ in 0..2 {
            limiter.charge(now, 65_000);
        }
        let pause = limiter.pause(now);
        assert!(pause.is_some());
        limiter.set_config("rate=1kbit".parse().unwrap());
        assert_eq!(limiter.pause(now), pause, "the same limit is no way out");
        limiter.set_config(LimitConfig::default());
        assert_eq!(limiter.pause(now), None);
    }

    #[test]
    fn mistakes_are_refused_in_words() {
        for (text, words) in [
            ("fast", "is no limit"),
            ("rate=", "is no limit"),
            ("rate=10", "is no limit"),
            ("rate=999bit", "is no limit"),
            ("frames=0", "is no limit"),
            ("frames=-1", "is no limit"),
            ("burst=1kib", "without rate"),
            ("rate=1mbit,rate=2mbit", "given twice"),
        ] {
            let error = text.parse::<LimitConfig>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(
            rate in proptest::option::of(1_000u64..=1_000_000_000_000),
            burst in 64u64..=1 << 30,
            frames in proptest::option::of(1u64..=1_000_000_000),
        ) {
            let config = LimitConfig {
                rate: rate.and_then(NonZeroU64::new),
                burst: rate.map(|_| burst),
                frames: frames.and_then(NonZeroU64::new),
            };
            prop_assert_eq!(config.to_string().parse(), Ok(config));
        }

        #[test]
        fn no_frames_however_long_and_whenever_pass_faster_than_allowed(
            frames in proptest::collection::vec((1usize..65_550, 0u64..20_000_000), 1..200),
        ) {
            let start = Instant::now();
            let mut limiter = limiter("rate=10mbit,burst=64kib");
            let (mut now, mut passed) = (start, 0u64);
            for (len, wait) in frames {
                now += Duration::from_nanos(wait);
                if let Some(at) = limiter.pause(now) {
                    now = at;
                }
                // What was there before this frame is within the rate and the burst.
                let allowed = (now - start).as_nanos() as u64 / 800 + (64 << 10) + 1;
                prop_assert!(passed <= allowed, "{passed} > {allowed}");
                limiter.charge(now, len);
                passed += len as u64;
            }
        }
    }
}
