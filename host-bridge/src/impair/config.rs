//! What to do to the frames of one direction, and its text form.
//!
//! The text is a list of `key=value`, separated by commas, as it stands in
//! configuration files and on the command line:
//!
//! ```text
//! loss=5%,delay=20ms,jitter=5ms,reorder=1%,gap=3,dup=0.5%,corrupt=0.1%,rate=10mbit,burst=32kib,limit=1000,seed=7
//! ```
//!
//! `off` (or nothing) is the configuration that does nothing. Parsing bounds
//! every value, so that nothing behind it can overflow.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::units::{RATE_UNITS, SIZE_UNITS, Scaled, TIME_UNITS, digits, parse_scaled};

const MAX_DELAY: Duration = Duration::from_secs(60);
const MIN_RATE: u64 = 1_000;
const MAX_RATE: u64 = 1_000_000_000_000;
const MIN_BURST: u64 = 64;
const MAX_BURST: u64 = 1 << 30;
const MAX_GAP: u64 = 1_000;
const DEFAULT_GAP: u32 = 1;
const DEFAULT_LIMIT: usize = 1_000;
const MAX_LIMIT: u64 = 100_000;

/// A probability in parts per million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Chance(u32);

impl Chance {
    /// It never happens.
    pub const NEVER: Self = Self(0);
    /// It always happens.
    pub const CERTAIN: Self = Self(1_000_000);

    /// The probability in parts per million, 0 to 1,000,000.
    pub const fn parts_per_million(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / 10_000, self.0 % 10_000);
        if fraction == 0 {
            return write!(f, "{whole}%");
        }
        let digits = format!("{fraction:04}");
        write!(f, "{whole}.{}%", digits.trim_end_matches('0'))
    }
}

/// The impairments of one direction. The default does nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImpairConfig {
    pub(super) loss: Chance,
    pub(super) duplicate: Chance,
    pub(super) reorder: Chance,
    pub(super) gap: u32,
    pub(super) corrupt: Chance,
    pub(super) delay: Duration,
    pub(super) jitter: Duration,
    pub(super) rate: Option<NonZeroU64>,
    pub(super) burst: Option<u64>,
    pub(super) limit: usize,
    pub(super) seed: u64,
}

impl Default for ImpairConfig {
    fn default() -> Self {
        Self {
            loss: Chance::NEVER,
            duplicate: Chance::NEVER,
            reorder: Chance::NEVER,
            gap: DEFAULT_GAP,
            corrupt: Chance::NEVER,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            rate: None,
            burst: None,
            limit: DEFAULT_LIMIT,
            seed: 0,
        }
    }
}

impl ImpairConfig {
    /// Whether frames come out as they went in, at once.
    pub fn is_transparent(&self) -> bool {
        self.loss == Chance::NEVER
            && self.duplicate == Chance::NEVER
            && self.reorder == Chance::NEVER
            && self.corrupt == Chance::NEVER
            && self.delay.is_zero()
            && self.jitter.is_zero()
            && self.rate.is_none()
    }
}

/// Why a text is no [`ImpairConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImpairParseError {
    /// No such key.
    #[error(
        "{0:?} is no impairment: use loss, dup, reorder, gap, corrupt, delay, jitter, rate, burst, \
         limit or seed"
    )]
    UnknownKey(String),
    /// A part without `=`.
    #[error("{0:?} has no value: write it as key=value, for instance loss=5%")]
    NoValue(String),
    /// The same key twice.
    #[error("{0} is given twice")]
    Repeated(&'static str),
    /// The value does not have the key's form.
    #[error("{key}={value}: {expected}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// The value as it was given.
        value: String,
        /// What it should look like.
        expected: &'static str,
    },
    /// A key that means nothing without another one.
    #[error("{key} does nothing without {needs}: give both")]
    Alone {
        /// The key.
        key: &'static str,
        /// The one that is missing.
        needs: &'static str,
    },
}

const EXPECT_CHANCE: &str =
    "a percentage from 0% to 100% with at most four decimals is expected, such as 0.5%";
const EXPECT_TIME: &str = "a whole time up to 60s is expected, such as 20ms (units ns, us, ms, s)";
const EXPECT_RATE: &str = "a rate from 1kbit to 1000gbit per second is expected, such as 10mbit (units bit, kbit, mbit, gbit)";
const EXPECT_SIZE: &str =
    "a size from 64b to 1024mib is expected, such as 32kib (units b, kib, mib)";
const EXPECT_GAP: &str = "a number of frames from 1 to 1000 is expected";
const EXPECT_LIMIT: &str = "a number of frames from 1 to 100000 is expected";
const EXPECT_SEED: &str = "a whole number below 2^64 is expected";

impl FromStr for ImpairConfig {
    type Err = ImpairParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut config = Self::default();
        let text = text.trim();
        if text.is_empty() || text == "off" {
            return Ok(config);
        }
        let mut seen: Vec<&'static str> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| ImpairParseError::NoValue(part.to_owned()))?;
            let key = config.set(key.trim(), value.trim())?;
            if seen.contains(&key) {
                return Err(ImpairParseError::Repeated(key));
            }
            seen.push(key);
        }
        for (key, needs) in [("gap", "reorder"), ("burst", "rate")] {
            if seen.contains(&key) && !seen.contains(&needs) {
                return Err(ImpairParseError::Alone { key, needs });
            }
        }
        Ok(config)
    }
}

impl ImpairConfig {
    fn set(&mut self, key: &str, value: &str) -> Result<&'static str, ImpairParseError> {
        let bad = |key, expected| ImpairParseError::BadValue {
            key,
            value: value.to_owned(),
            expected,
        };
        let chance = |key| parse_chance(value).ok_or_else(|| bad(key, EXPECT_CHANCE));
        let time = |key| parse_time(value).ok_or_else(|| bad(key, EXPECT_TIME));
        let number = |key, max, expected| {
            value
                .parse::<u64>()
                .ok()
                .filter(|n| (1..=max).contains(n))
                .ok_or_else(|| bad(key, expected))
        };
        Ok(match key {
            "loss" => {
                self.loss = chance("loss")?;
                "loss"
            }
            "dup" => {
                self.duplicate = chance("dup")?;
                "dup"
            }
            "reorder" => {
                self.reorder = chance("reorder")?;
                "reorder"
            }
            "gap" => {
                // At most MAX_GAP and MAX_LIMIT, so both casts are exact.
                self.gap = number("gap", MAX_GAP, EXPECT_GAP)? as u32;
                "gap"
            }
            "corrupt" => {
                self.corrupt = chance("corrupt")?;
                "corrupt"
            }
            "delay" => {
                self.delay = time("delay")?;
                "delay"
            }
            "jitter" => {
                self.jitter = time("jitter")?;
                "jitter"
            }
            "rate" => {
                let rate = parse_scaled(value, RATE_UNITS)
                    .filter(|rate| (MIN_RATE..=MAX_RATE).contains(rate))
                    .and_then(NonZeroU64::new)
                    .ok_or_else(|| bad("rate", EXPECT_RATE))?;
                self.rate = Some(rate);
                "rate"
            }
            "burst" => {
                let burst = parse_scaled(value, SIZE_UNITS)
                    .filter(|burst| (MIN_BURST..=MAX_BURST).contains(burst))
                    .ok_or_else(|| bad("burst", EXPECT_SIZE))?;
                self.burst = Some(burst);
                "burst"
            }
            "limit" => {
                self.limit = number("limit", MAX_LIMIT, EXPECT_LIMIT)? as usize;
                "limit"
            }
            "seed" => {
                self.seed = value.parse().map_err(|_| bad("seed", EXPECT_SEED))?;
                "seed"
            }
            other => return Err(ImpairParseError::UnknownKey(other.to_owned())),
        })
    }
}

fn parse_chance(text: &str) -> Option<Chance> {
    let number = text.strip_suffix('%')?.trim_end();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() || fraction.len() > 4 {
        return None;
    }
    let whole = digits(whole)?;
    let fraction = digits(&format!("{fraction:0<4}"))?;
    let parts = whole.checked_mul(10_000)?.checked_add(fraction)?;
    let chance = Chance(u32::try_from(parts).ok()?);
    (chance <= Chance::CERTAIN).then_some(chance)
}

fn parse_time(text: &str) -> Option<Duration> {
    let time = Duration::from_nanos(parse_scaled(text, TIME_UNITS)?);
    (time <= MAX_DELAY).then_some(time)
}

impl fmt::Display for ImpairConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Self::default();
        let mut parts: Vec<String> = Vec::new();
        let mut part = |is_set: bool, text: fmt::Arguments<'_>| {
            if is_set {
                parts.push(text.to_string());
            }
        };
        // At most 60 s, so nanoseconds fit into 64 bits.
        let nanos = |time: Duration| Scaled(time.as_nanos() as u64, TIME_UNITS);
        let never = Chance::NEVER;
        part(self.loss != never, format_args!("loss={}", self.loss));
        part(
            !self.delay.is_zero(),
            format_args!("delay={}", nanos(self.delay)),
        );
        part(
            !self.jitter.is_zero(),
            format_args!("jitter={}", nanos(self.jitter)),
        );
        // A gap without it is not understood.
        part(
            self.reorder != never || self.gap != default.gap,
            format_args!("reorder={}", self.reorder),
        );
        part(self.gap != default.gap, format_args!("gap={}", self.gap));
        part(
            self.duplicate != never,
            format_args!("dup={}", self.duplicate),
        );
        part(
            self.corrupt != never,
            format_args!("corrupt={}", self.corrupt),
        );
        if let Some(rate) = self.rate {
            part(
                true,
                format_args!("rate={}", Scaled(rate.get(), RATE_UNITS)),
            );
        }
        if let Some(burst) = self.burst {
            part(true, format_args!("burst={}", Scaled(burst, SIZE_UNITS)));
        }
        part(
            self.limit != default.limit,
            format_args!("limit={}", self.limit),
        );
        part(
            self.seed != default.seed,
            format_args!("seed={}", self.seed),
        );
        if parts.is_empty() {
            f.write_str("off")
        } else {
            f.write_str(&parts.join(","))
        }
    }
}

impl TryFrom<String> for ImpairConfig {
    type Error = ImpairParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ImpairConfig> for String {
    fn from(config: ImpairConfig) -> Self {
        config.to_string()
    }
}
