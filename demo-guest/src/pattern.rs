//! Bytes that both ends can make: SplitMix64 from a seed, each word little
//! endian.
//!
//! The state starts as the seed. For each word it grows by 0x9e3779b97f4a7c15,
//! and the word is the state, mixed: `z ^= z >> 30; z *= 0xbf58476d1ce4e5b9;
//! z ^= z >> 27; z *= 0x94d049bb133111eb; z ^= z >> 31`, all modulo 2^64.

use alloc::vec;
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

/// Period of [`Cycle`] in bytes. A power of two, so that whoever writes it in large
/// pieces always writes from the same aligned place: the kernel's copy from any
/// other was seen to take twice as long.
const PERIOD: usize = 64 << 10;

/// A pattern that costs next to nothing: the first 64 KiB of [`Pattern`] number 0,
/// again and again. For measurements, which are not about the pattern.
#[derive(Debug, Clone)]
pub struct Cycle {
    /// The period, and behind it what a piece that begins at its end needs.
    table: Vec<u8>,
    /// Bytes given out, or checked.
    position: u64,
}

impl Cycle {
    /// The cycle from its first byte, in pieces of at most `longest` bytes.
    pub fn new(longest: usize) -> Self {
        let mut table = vec![0; PERIOD + longest];
        Pattern::new(0).fill(&mut table[..PERIOD]);
        for at in PERIOD..table.len() {
            table[at] = table[at - PERIOD];
        }
        Self { table, position: 0 }
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

    /// Whether a piece begins and ends with the bytes that come next, up to four at
    /// either end, which a lost, doubled or swapped piece hardly does; then goes on
    /// behind it.
    #[must_use]
    pub fn continues(&mut self, piece: &[u8]) -> bool {
        let few = piece.len().min(4);
        let end = self.position + piece.len() as u64;
        let head = self.position..self.position + few as u64;
        let tail = end - few as u64..end;
        let expected = head.chain(tail).map(|at| self.table[self.phase(at)]);
        let (first, last) = (&piece[..few], &piece[piece.len() - few..]);
        let right = expected.eq(first.iter().chain(last).copied());
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
    fn a_cycle_continues_itself_and_nothing_else() {
        let (mut from, mut to) = (Cycle::new(100_000), Cycle::new(0));
        for len in [100_000, 1, 0, 700, 3] {
            let piece = from.next_piece()[..len].to_vec();
            from.advance(len);
            assert!(to.continues(&piece));
        }
        assert_eq!(to.position(), 100_704);
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
