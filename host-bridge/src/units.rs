//! Numbers with a unit, as they stand in settings: `20ms`, `10mbit`, `32kib`.
//!
//! Used by the text forms of [`impair`](crate::impair) and [`limit`](crate::limit).

use std::fmt;

/// A unit's name and how many of the smallest unit it is, greatest first.
pub(crate) type Units = &'static [(&'static str, u64)];

pub(crate) const TIME_UNITS: Units = &[
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];
pub(crate) const RATE_UNITS: Units = &[
    ("gbit", 1_000_000_000),
    ("mbit", 1_000_000),
    ("kbit", 1_000),
    ("bit", 1),
];
pub(crate) const SIZE_UNITS: Units = &[("mib", 1 << 20), ("kib", 1 << 10), ("b", 1)];

/// A whole number without a sign.
pub(crate) fn digits(text: &str) -> Option<u64> {
    // Integer parsing accepts a sign, this text does not.
    text.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
    text.parse().ok()
}

/// A whole number with a unit behind it, in the smallest unit.
pub(crate) fn parse_scaled(text: &str, units: Units) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let &(_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    digits(number)?.checked_mul(scale)
}

/// Writes a value in the greatest unit that it is a whole number of.
pub(crate) struct Scaled(pub(crate) u64, pub(crate) Units);

impl fmt::Display for Scaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value, units) = *self;
        for (name, scale) in units {
            if value.is_multiple_of(*scale) {
                return write!(f, "{}{name}", value / scale);
            }
        }
        write!(f, "{value}")
    }
}
