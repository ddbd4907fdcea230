//! Bytes that both ends can make: SplitMix64 from a seed, each word little
//! endian.
//!
//! The state starts as the seed. For each word it grows by 0x9e3779b97f4a7c15,
//! and the word is the state, mixed: `z ^= z >> 30; z *= 0xbf58476d1ce4e5b9;
//! z ^= z >> 27; z *= 0x94d049bb133111eb; z ^= z >> 31`, all modulo 2^64.

use alloc::vec::Vec;

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

/// Period of [`Ramp`], prime, so that no size of buffer or segment hides a loss.
const PERIOD: usize = 251;

/// A pattern that costs next to nothing: byte number `n` of the stream is
/// `n mod 251`. For measurements, which are not about the pattern.
#[derive(Debug, Clone)]
pub struct Ramp {
    /// As many periods as fill a large write, and one more to begin in.
    table: Vec<u8>,
    /// Bytes given out, or checked.
    position: u64,
}

impl Ramp {
    /// The ramp from its first byte, in pieces of at most `longest` bytes.
    pub fn new(longest: usize) -> Self {
        let bytes = (0..longest + PERIOD).map(|n| (n % PERIOD) as u8);
        Self {
            table: bytes.collect(),
            position: 0,
        }
    }

    /// The next bytes, as many as one piece may have.
    pub fn next_piece(&self) -> &[u8] {
        let start = self.phase(self.position);
        &self.table[start..start + self.table.len() - PERIOD]
    }

    /// So many of them were sent.
    pub fn advance(&mut self, bytes: usize) {
        self.position += bytes as u64;
    }

    /// Whether the first and the last byte of a piece are the ones that come
    /// next, which a lost, doubled or swapped piece is not; then goes on behind it.
    #[must_use]
    pub fn continues(&mut self, piece: &[u8]) -> bool {
        let (Some(first), Some(last)) = (piece.first(), piece.last()) else {
            return true;
        };
        let end = self.position + piece.len() as u64;
        let right = usize::from(*first) == self.phase(self.position)
            && usize::from(*last) == self.phase(end - 1);
        self.position = end;
        right
    }

    /// Bytes given out, or checked.
    pub fn position(&self) -> u64 {
        self.position
    }

    fn phase(&self, position: u64) -> usize {
        (position % PERIOD as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramp_continues_itself_and_nothing_else() {
        let (mut from, mut to) = (Ramp::new(1000), Ramp::new(1000));
        for len in [1000, 1, 700, 251, 3] {
            let piece = from.next_piece()[..len].to_vec();
            from.advance(len);
            assert!(to.continues(&piece));
        }
        assert_eq!(to.position(), 1955);
        from.advance(100);
        assert!(!to.continues(&from.next_piece()[..10]));
    }

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
