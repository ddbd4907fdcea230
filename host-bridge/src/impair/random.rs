//! The random numbers of the impairment stage.
//!
//! A small generator of our own, so that a seed gives the same losses in every
//! release and on every machine. Not for secrets.

use super::config::Chance;

/// SplitMix64: 64 bits of state, passes the usual statistical tests.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    /// The generator number `stream` of a seed. Streams are independent of each
    /// other.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        // Neighbouring seeds start far apart.
        Self(random.next_u64())
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0 if that is 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        // Scaling instead of a remainder: the bias is below 2^-40 for the
        // bounds used here.
        let scaled = (u128::from(self.next_u64()) * u128::from(bound)) >> 64;
        // Less than `bound`, so it fits.
        scaled as u64
    }

    /// Whether something of this chance happens now.
    pub(super) fn happens(&mut self, chance: Chance) -> bool {
        self.below(u64::from(Chance::CERTAIN.parts_per_million()))
            < u64::from(chance.parts_per_million())
    }
}
