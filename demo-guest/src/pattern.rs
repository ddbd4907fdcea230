//! Bytes that both ends can make: SplitMix64 from a seed, each word little
//! endian.
//!
//! The state starts as the seed. For each word it grows by 0x9e3779b97f4a7c15,
//! and the word is the state, mixed: `z ^= z >> 30; z *= 0xbf58476d1ce4e5b9;
//! z ^= z >> 27; z *= 0x94d049bb133111eb; z ^= z >> 31`, all modulo 2^64.

/// An endless pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    state: u64,
    word: [u8; 8],
    /// Bytes of `word` that were given out.
    used: usize,
}

impl Pattern {
    /// The pattern with this seed, from its first byte.
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed,
            word: [0; 8],
            used: 8,
        }
    }

    fn next_word(&mut self) -> [u8; 8] {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }

    /// Fills `to` with the next bytes.
    pub fn fill(&mut self, mut to: &mut [u8]) {
        while !to.is_empty() {
            if self.used == 8 && to.len() >= 8 {
                let (head, rest) = to.split_at_mut(8);
                head.copy_from_slice(&self.next_word());
                to = rest;
                continue;
            }
            if self.used == 8 {
                self.word = self.next_word();
                self.used = 0;
            }
            let n = to.len().min(8 - self.used);
            let (head, rest) = to.split_at_mut(n);
            head.copy_from_slice(&self.word[self.used..self.used + n]);
            self.used += n;
            to = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_splitmix64() {
        let mut pattern = Pattern::new(1_234_567);
        for expected in [
            6_457_827_717_110_365_317u64,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ] {
            let mut word = [0; 8];
            pattern.fill(&mut word);
            assert_eq!(u64::from_le_bytes(word), expected);
        }
    }

    #[test]
    fn pieces_of_any_size_make_the_same_bytes() {
        let mut whole = [0; 1000];
        Pattern::new(7).fill(&mut whole);
        let mut pieces = [0; 1000];
        let (mut pattern, mut at) = (Pattern::new(7), 0);
        for n in (1..=19).cycle() {
            let end = (at + n).min(1000);
            pattern.fill(&mut pieces[at..end]);
            at = end;
            if at == 1000 {
                break;
            }
        }
        assert_eq!(whole, pieces);
    }
}
