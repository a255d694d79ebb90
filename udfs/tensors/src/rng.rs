//! Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, Parallel random numbers: as easy as 1, 2, 3).
//!
//! The number of an element depends on its index alone, so tiles and threads cannot change it.

use crate::simd::vectors;
use sha2::{Digest, Sha256};

/// A stream of random numbers, indexed by element.
#[derive(Debug, Clone, Copy)]
pub struct Philox {
    key: [u32; 2],
    stream: [u32; 2],
}

const LOW: u64 = 0xffff_ffff;

/// One round over words of 32 bits in 64: a product of two of them is one instruction of vectors, whose halves lie in place.
#[inline(always)]
fn round(counter: [u64; 4], key: [u64; 2]) -> [u64; 4] {
    let (a, b) = ((counter[0] & LOW) * 0xD251_1F53, (counter[2] & LOW) * 0xCD9E_8D57);
    [b >> 32 ^ counter[1] ^ key[0], b & LOW, a >> 32 ^ counter[3] ^ key[1], a & LOW]
}

#[inline(always)]
fn rounds(mut counter: [u64; 4], mut key: [u64; 2]) -> [u64; 4] {
    for i in 0..10 {
        if i > 0 {
            key = [(key[0] + 0x9E37_79B9) & LOW, (key[1] + 0xBB67_AE85) & LOW];
        }
        counter = round(counter, key);
    }
    counter
}

impl Philox {
    /// The stream of one tensor of one contribution under a seed.
    pub fn new(seed: u64, contribution: &[u8; 32], tensor: &str) -> Philox {
        let mut hash = Sha256::new();
        hash.update(b"mergeql.philox.1");
        hash.update(seed.to_le_bytes());
        hash.update(contribution);
        hash.update((tensor.len() as u64).to_le_bytes());
        hash.update(tensor.as_bytes());
        let digest = hash.finalize();
        let word = |i: usize| u32::from_le_bytes(digest[4 * i..4 * i + 4].try_into().expect("invariant: four bytes"));
        Philox { key: [word(0), word(1)], stream: [word(2), word(3)] }
    }

    /// Its key, and what tells it from other streams of that key.
    pub fn words(&self) -> [u32; 4] {
        [self.key[0], self.key[1], self.stream[0], self.stream[1]]
    }

    /// The numbers of the elements `4 * block .. 4 * (block + LANES)`.
    #[inline(always)]
    fn many(&self, block: u64, out: &mut [u32; 4 * LANES]) {
        // Two words as one of 64 bits, in the order in which they lie in memory.
        let two =
            |first: u64, second: u64| if cfg!(target_endian = "little") { first | second << 32 } else { first << 32 | second };
        let (key, stream) = (self.key.map(u64::from), self.stream.map(u64::from));
        let mut pairs = [[0u64; 2]; LANES];
        // A lane goes all its rounds by itself, so that lanes are what the compiler makes vectors of.
        for (lane, pair) in pairs.iter_mut().enumerate() {
            let block = block + lane as u64;
            let [a, b, c, d] = rounds([block & LOW, block >> 32, stream[0], stream[1]], key);
            *pair = [two(a, b), two(c, d)];
        }
        out.copy_from_slice(bytemuck::cast_slice(&pairs));
    }

    /// Calls `each(from, numbers)` for the elements of a range, a few at a time; `from` is the place of the first of them, from the range's
    /// start.
    pub fn for_each(&self, range: std::ops::Range<usize>, each: impl FnMut(usize, &[u32])) {
        runs(self, range, each);
    }

    /// The number of one element.
    pub fn number(&self, index: usize) -> u32 {
        let mut number = 0;
        self.for_each(index..index + 1, |_, numbers| number = numbers[0]);
        number
    }
}

vectors! {
fn runs['a, F: FnMut(usize, &[u32])](stream: &'a Philox, range: std::ops::Range<usize>, each: F) {
    let (mut index, mut numbers, mut each) = (range.start, [0; 4 * LANES], each);
    while index < range.end {
        let skip = index % 4;
        stream.many(index as u64 / 4, &mut numbers);
        let n = (4 * LANES - skip).min(range.end - index);
        each(index - range.start, &numbers[skip..skip + n]);
        index += n;
    }
}
}

/// Counters that are worked on at once.
const LANES: usize = 64;

/// Numbers below this happen with this probability.
pub fn limit(probability: f64) -> u64 {
    (probability * 4_294_967_296.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
        rounds(counter.map(u64::from), key.map(u64::from)).map(|word| word as u32)
    }

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_number_depends_on_its_index_alone() {
        let stream = Philox::new(7, &[1; 32], "w");
        let mut whole: Vec<u32> = Vec::new();
        stream.for_each(0..100, |_, n| whole.extend(n));
        let mut parts: Vec<u32> = Vec::new();
        for range in [0..3, 3..50, 50..51, 51..100] {
            stream.for_each(range, |_, n| parts.extend(n));
        }
        assert_eq!(whole, parts);
        let one = philox([7, 0, stream.stream[0], stream.stream[1]], stream.key);
        assert_eq!(whole[28..32], one);
    }
}
