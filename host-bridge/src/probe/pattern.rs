//! The bytes of a bulk transfer: a stream that both ends can make from a seed.
//!
//! The stream is the output of SplitMix64, each 64-bit word as eight bytes,
//! little endian. With the seed as the first state, and all sums and products
//! modulo 2⁶⁴, each word is made so:
//!
//! ```text
//! state = state + 0x9E3779B97F4A7C15
//! z = (state xor (state >> 30)) * 0xBF58476D1CE4E5B9
//! z = (z     xor (z     >> 27)) * 0x94D049BB133111EB
//! word = z xor (z >> 31)
//! ```
//!
//! The guest has a twin of this file; the tests of both check the same words.

/// The pattern from some point on.
#[derive(Debug, Clone)]
pub struct Pattern {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Pattern {
    /// The pattern of `seed`, from its beginning.
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed,
            word: [0; 8],
            used: 8,
        }
    }

    /// Fills `out` with the bytes that come next. Where the calls cut the
    /// stream does not matter.
    pub fn fill(&mut self, out: &mut [u8]) {
        let rest = &self.word[self.used..];
        let head = rest.len().min(out.len());
        let (front, out) = out.split_at_mut(head);
        front.copy_from_slice(&rest[..head]);
        self.used += head;

        let (words, tail) = out.as_chunks_mut::<8>();
        for word in words {
            *word = self.next_word();
        }
        if !tail.is_empty() {
            self.word = self.next_word();
            self.used = tail.len();
            tail.copy_from_slice(&self.word[..tail.len()]);
        }
    }

    fn next_word(&mut self) -> [u8; 8] {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_words_are_those_of_splitmix64() {
        let known: [u64; 5] = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        let mut bytes = [0; 40];
        Pattern::new(1_234_567).fill(&mut bytes);
        let words: Vec<u64> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|w| u64::from_le_bytes(*w))
            .collect();
        assert_eq!(words, known);
    }

    proptest! {
        #[test]
        fn the_stream_does_not_depend_on_how_it_is_cut(
            seed: u64,
            cuts in proptest::collection::vec(0usize..40, 0..20),
        ) {
            let mut whole = vec![0; cuts.iter().sum()];
            Pattern::new(seed).fill(&mut whole);
            let mut pattern = Pattern::new(seed);
            let mut pieces = Vec::new();
            for cut in cuts {
                let mut piece = vec![0; cut];
                pattern.fill(&mut piece);
                pieces.extend(piece);
            }
            prop_assert_eq!(pieces, whole);
        }
    }
}
