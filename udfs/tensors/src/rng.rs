//! Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, Parallel random numbers: as easy as 1, 2, 3).
//!
//! The number of an element depends on its index alone, so tiles and threads cannot change it.

use sha2::{Digest, Sha256};

/// A stream of random numbers, indexed by element.
#[derive(Debug, Clone, Copy)]
pub struct Philox {
    key: [u32; 2],
    stream: [u32; 2],
}

fn round(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (a, b) = (u64::from(counter[0]) * 0xD251_1F53, u64::from(counter[2]) * 0xCD9E_8D57);
    [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32]
}

#[cfg(test)]
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for i in 0..10 {
        if i > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
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

    /// The numbers of the elements `4 * block .. 4 * (block + LANES)`: as many at once as vectors hold.
    #[allow(clippy::needless_range_loop)] // a lane is a place in four arrays, which become four vectors
    fn many(&self, block: u64, out: &mut [u32; 4 * LANES]) {
        let mut counters = [[0u32; LANES]; 4];
        for lane in 0..LANES {
            let block = block + lane as u64;
            (counters[0][lane], counters[1][lane]) = (block as u32, (block >> 32) as u32);
            (counters[2][lane], counters[3][lane]) = (self.stream[0], self.stream[1]);
        }
        let mut key = self.key;
        for i in 0..10 {
            if i > 0 {
                key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
            }
            for lane in 0..LANES {
                let counter = round(std::array::from_fn(|word| counters[word][lane]), key);
                (0..4).for_each(|word| counters[word][lane] = counter[word]);
            }
        }
        for (lane, four) in out.chunks_exact_mut(4).enumerate() {
            (0..4).for_each(|word| four[word] = counters[word][lane]);
        }
    }

    /// Calls `each(i, number)` for the elements of a range, `i` from its start.
    pub fn for_each(&self, range: std::ops::Range<usize>, mut each: impl FnMut(usize, u32)) {
        let (mut index, mut numbers) = (range.start, [0; 4 * LANES]);
        while index < range.end {
            let skip = index % 4;
            self.many(index as u64 / 4, &mut numbers);
            let n = (4 * LANES - skip).min(range.end - index);
            for (i, number) in numbers[skip..skip + n].iter().enumerate() {
                each(index - range.start + i, *number);
            }
            index += n;
        }
    }
}

/// Counters that are worked on at once.
const LANES: usize = 16;

/// Numbers below this happen with this probability.
pub fn limit(probability: f64) -> u64 {
    (probability * 4_294_967_296.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut whole = Vec::new();
        stream.for_each(0..100, |_, n| whole.push(n));
        let mut parts = Vec::new();
        for range in [0..3, 3..50, 50..51, 51..100] {
            stream.for_each(range, |_, n| parts.push(n));
        }
        assert_eq!(whole, parts);
        let one = philox([7, 0, stream.stream[0], stream.stream[1]], stream.key);
        assert_eq!(whole[28..32], one);
    }
}
