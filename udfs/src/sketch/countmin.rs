//! Count-min sketches, laid out and hashed as DataSketches in C++ does (the count-min of its Python package, which counts in doubles); the
//! crate's own place items in other counters, so that no other library could ask them.

use super::corrupt;
use crate::error::{Code, Error, Result};

/// Rows of counters: the count of an item is at most the least of its counters, one in each row.
///
/// Cormode, Muthukrishnan 2005, An improved data stream summary: the count-min sketch and its applications.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CountMinSketch {
    hashes: u8,
    buckets: u32,
    /// How many items were counted.
    total: u64,
    /// The rows one after the other; nothing as long as nothing was counted.
    counts: Vec<u64>,
}

/// The most counters that a sketch may have: 8 MiB.
const MOST_COUNTERS: u64 = 1 << 20;

/// Doubles count exactly up to here.
const MOST: u64 = 1 << 53;

/// Preamble of two longs, version 1, family 18.
const HEAD: [u8; 3] = [2, 1, 18];

/// In the fourth byte: nothing was counted.
const EMPTY: u8 = 1;

/// What DataSketches makes of its seed 9001, so that sketches of other seeds are told apart.
const SEED_HASH: u16 = 0x93cc;

const SEED: u64 = 9001;

impl CountMinSketch {
    /// A sketch that counted nothing.
    pub fn new(hashes: u8, buckets: u32) -> CountMinSketch {
        CountMinSketch { hashes, buckets, total: 0, counts: Vec::new() }
    }

    /// How many items were counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Where an item is counted.
    fn places<'i>(&self, item: &'i [u8]) -> impl Iterator<Item = usize> + use<'i> {
        let (hashes, buckets) = (self.hashes, u64::from(self.buckets));
        seeds().take(hashes.into()).zip(0u64..).map(move |(seed, row)| (row * buckets + murmur(item, seed) % buckets) as usize)
    }

    /// Counts an item.
    ///
    /// # Errors
    /// `limit_exceeded`.
    pub fn add(&mut self, item: &[u8], n: u64) -> Result<()> {
        if n == 0 {
            return Ok(());
        }
        self.grow(n)?;
        for at in self.places(item) {
            self.counts[at] += n;
        }
        Ok(())
    }

    fn grow(&mut self, n: u64) -> Result<()> {
        self.total = self
            .total
            .checked_add(n)
            .filter(|total| *total <= MOST)
            .ok_or_else(|| Error::new(Code::LimitExceeded, format!("a count-min sketch counts no further than {MOST}")))?;
        if n > 0 {
            self.counts.resize(usize::from(self.hashes) * self.buckets as usize, 0);
        }
        Ok(())
    }

    /// How often an item was counted, at most a little less often.
    pub fn estimate(&self, item: &[u8]) -> u64 {
        self.places(item).map(|at| self.counts.get(at).copied().unwrap_or(0)).min().unwrap_or(0)
    }

    /// Counts what another counted.
    ///
    /// # Errors
    /// `type_mismatch` where the two have other sizes, `limit_exceeded`.
    pub fn merge(&mut self, other: &CountMinSketch) -> Result<()> {
        if (self.hashes, self.buckets) != (other.hashes, other.buckets) {
            let size = |s: &CountMinSketch| format!("{} rows of {} counters", s.hashes, s.buckets);
            let message = format!("the count-min sketches of two origins don't add up: {} and {}", size(self), size(other));
            return Err(Error::type_mismatch(message).with_help("make all with the same hashes and buckets"));
        }
        self.grow(other.total)?;
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, other)| *own += other);
        Ok(())
    }

    /// The bytes of the sketch.
    pub fn image(&self) -> Vec<u8> {
        let mut out = HEAD.to_vec();
        out.extend([if self.total == 0 { EMPTY } else { 0 }, 0, 0, 0, 0]);
        out.extend(self.buckets.to_le_bytes());
        out.push(self.hashes);
        out.extend(SEED_HASH.to_le_bytes());
        out.push(0);
        if self.total > 0 {
            std::iter::once(&self.total).chain(&self.counts).for_each(|n| out.extend((*n as f64).to_le_bytes()));
        }
        out
    }

    /// Reads a sketch.
    ///
    /// # Errors
    /// `corrupt_state`, `limit_exceeded`, `unsupported` for sketches that count in another way.
    pub fn read(image: &[u8]) -> Result<CountMinSketch> {
        let (head, counters) = image.split_first_chunk::<16>().ok_or_else(|| corrupt("it ends early"))?;
        let buckets = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        let (hashes, seed) = (head[12], u16::from_le_bytes([head[13], head[14]]));
        if head[..3] != HEAD || head[3] > EMPTY || seed != SEED_HASH {
            return Err(corrupt("it is no count-min sketch of version 1 and the usual seed"));
        }
        let size = u64::from(buckets) * u64::from(hashes);
        if size > MOST_COUNTERS {
            return Err(Error::new(
                Code::LimitExceeded,
                format!("a count-min sketch of {size} counters; at most {MOST_COUNTERS} are taken"),
            ));
        }
        if hashes == 0 || buckets < 3 {
            return Err(corrupt("it has no counters"));
        }
        let mut sketch = CountMinSketch::new(hashes, buckets);
        if head[3] == EMPTY {
            return if counters.is_empty() { Ok(sketch) } else { Err(corrupt("bytes follow an empty sketch")) };
        }
        let (doubles, rest) = counters.as_chunks::<8>();
        if doubles.len() as u64 != size + 1 || !rest.is_empty() {
            return Err(corrupt("it has another size than it says"));
        }
        let whole = |bytes: &[u8; 8]| {
            let n = f64::from_le_bytes(*bytes);
            (n >= 0.0 && n <= MOST as f64 && n.fract() == 0.0).then_some(n as u64)
        };
        let counts = doubles.iter().map(whole).collect::<Option<Vec<u64>>>();
        let mut counts = counts.ok_or_else(other_way)?;
        sketch.total = counts.remove(0);
        // Each row counts every item once.
        if sketch.total == 0
            || counts
                .chunks(buckets as usize)
                .any(|row| row.iter().map(|n| u128::from(*n)).sum::<u128>() != u128::from(sketch.total))
        {
            return Err(other_way());
        }
        sketch.counts = counts;
        Ok(sketch)
    }
}

fn other_way() -> Error {
    Error::new(Code::Unsupported, "a count-min sketch that does not count whole items in doubles")
        .with_help("sketch_countmin(value) makes one, and so does count_min_sketch of the Python package of DataSketches")
}

/// The seed of each row: what `std::uniform_int_distribution` of libstdc++ draws of `std::minstd_rand0`, which C++ calls the default engine.
fn seeds() -> impl Iterator<Item = u64> {
    let mut state = SEED;
    std::iter::repeat_with(move || draw(&mut state, u64::MAX).wrapping_add(SEED))
}

/// A number from 0 to `most`, of a generator (Lewis, Goodman, Miller 1969) of numbers from 1 to 2^31 - 2.
fn draw(state: &mut u64, most: u64) -> u64 {
    const MODULUS: u64 = (1 << 31) - 1;
    const RANGE: u64 = MODULUS - 2;
    let mut next = || {
        *state = *state * 16807 % MODULUS;
        *state - 1
    };
    if most < RANGE {
        let scale = RANGE / (most + 1);
        return std::iter::repeat_with(next).find(|n| *n < scale * (most + 1)).unwrap_or(0) / scale;
    }
    if most == RANGE {
        return next();
    }
    loop {
        let high = draw(state, most / (RANGE + 1)).wrapping_mul(RANGE + 1);
        *state = *state * 16807 % MODULUS;
        let sum = high.wrapping_add(*state - 1);
        if sum <= most && sum >= high {
            return sum;
        }
    }
}

/// The first half of MurmurHash3 x64 128 (Appleby, public domain). The crate `mur3` takes seeds of 32 bits, and these have 64.
fn murmur(bytes: &[u8], seed: u64) -> u64 {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let low = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let high = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let half = |bytes: &[u8]| bytes.iter().rev().fold(0, |k, byte| k << 8 | u64::from(*byte));
    let (mut a, mut b) = (seed, seed);
    let (blocks, tail) = bytes.as_chunks::<16>();
    for block in blocks {
        a = (a ^ low(half(&block[..8]))).rotate_left(27).wrapping_add(b).wrapping_mul(5).wrapping_add(0x52dc_e729);
        b = (b ^ high(half(&block[8..]))).rotate_left(31).wrapping_add(a).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let (first, second) = tail.split_at(tail.len().min(8));
    // Of nothing both are zero.
    b ^= high(half(second));
    a ^= low(half(first));
    let mixed = |k: u64| {
        let k = (k ^ k >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let k = (k ^ k >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        k ^ k >> 33
    };
    a ^= bytes.len() as u64;
    b ^= bytes.len() as u64;
    a = a.wrapping_add(b);
    b = b.wrapping_add(a);
    mixed(a).wrapping_add(mixed(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are of the Python package of DataSketches 5.2, whose counters the seeds explain.
    #[test]
    fn rows_are_hashed_with_the_seeds_of_the_library() {
        let drawn: Vec<u64> = seeds().take(5).collect();
        assert_eq!(
            drawn,
            [4480857443237086988, 6631161516192699342, 11350819014790094519, 4160660749069251172, 10069924727803572716]
        );
    }
}
