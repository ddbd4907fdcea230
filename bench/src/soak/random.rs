//! Numbers from a seed: SplitMix64. The same seed gives the same run, as far as the
//! clock lets it.

/// A generator.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another generator, independent of what is drawn from this one later.
    pub(super) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `least` on, below `end`.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn within(&mut self, least: u64, end: u64) -> u64 {
        assert!(least < end, "an empty range");
        least + self.next() % (end - least)
    }

    /// One of these.
    ///
    /// # Panics
    /// If there are none.
    pub(super) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.within(0, all.len() as u64) as usize]
    }
}
