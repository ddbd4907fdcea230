//! The random numbers of a run.
//!
//! A small generator of our own, so that a seed means the same run everywhere. Each
//! part of a run draws from a stream of its own: what one part draws does not shift
//! what the others get.

/// SplitMix64: 64 bits of state, passes the usual statistical tests.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The generator number `stream` of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xa076_1d64_78bd_642f));
        // Neighbouring seeds start far apart.
        Self(random.next_u64())
    }

    /// Any number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // Scaled; the bias is below 2^-40 for the small bounds used here.
        let wide = u128::from(self.next_u64()) * u128::from(bound);
        (wide >> 64) as u64
    }

    /// A number from `low` to `high`, both possible.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Whether something with this probability in percent happens.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// A number from `low` to `high`, small ones as likely as large ones: each power
    /// of two has the same chance.
    pub fn spread(&mut self, low: u64, high: u64) -> u64 {
        let bits = self.between(
            u64::from(low.max(1).ilog2()),
            u64::from(high.max(1).ilog2()),
        );
        let number = (1u64 << bits) + self.below(1 << bits);
        number.clamp(low, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_a_seed_differ_and_repeat() {
        let draw = |seed, stream| {
            let mut random = Random::new(seed, stream);
            [0; 8].map(|_| random.next_u64())
        };
        assert_eq!(draw(7, 1), draw(7, 1));
        assert_ne!(draw(7, 1), draw(7, 2));
        assert_ne!(draw(7, 1), draw(8, 1));
    }

    #[test]
    fn numbers_stay_in_their_range_and_reach_its_ends() {
        let mut random = Random::new(1, 1);
        let mut seen = [false; 4];
        for _ in 0..1000 {
            seen[random.between(2, 5) as usize - 2] = true;
            assert!((3..=70_000).contains(&random.spread(3, 70_000)));
        }
        assert_eq!(seen, [true; 4]);
        assert_eq!(random.below(0), 0);
    }
}
