//! Sums over a tensor in one fixed shape: blocks of [`BLOCK`] elements in f64, combined pairwise in the order of their index.
//! Threads and tiles share the blocks out; they do not change the shape.

use crate::simd::vectors;
use mergeql_udfs::Result;
use rayon::prelude::*;
use std::ops::Range;

/// Elements of a block.
pub const BLOCK: usize = 1 << 14;

/// Blocks of one tensor of `n` elements.
pub fn blocks(n: usize) -> impl IndexedParallelIterator<Item = Range<usize>> {
    (0..n.div_ceil(BLOCK)).into_par_iter().map(move |i| i * BLOCK..((i + 1) * BLOCK).min(n))
}

/// The sums of what each block adds to `width` numbers; `each` gets a scratch of its thread.
///
/// # Errors
/// The first that `each` gives.
pub fn sum<S: Default + Send>(
    n: usize,
    width: usize,
    each: impl Fn(Range<usize>, &mut S, &mut [f64]) -> Result<()> + Sync,
) -> Result<Vec<f64>> {
    let of_block = |scratch: &mut S, range| {
        let mut sums = vec![0.0; width];
        each(range, scratch, &mut sums)?;
        Ok(sums)
    };
    let mut sums: Vec<Vec<f64>> = blocks(n).map_init(S::default, of_block).collect::<Result<_>>()?;
    while sums.len() > 1 {
        let add = |pair: &[Vec<f64>]| match pair {
            [a, b] => a.iter().zip(b).map(|(a, b)| a + b).collect(),
            _ => pair[0].clone(),
        };
        sums = sums.chunks(2).map(add).collect();
    }
    Ok(sums.pop().unwrap_or_else(|| vec![0.0; width]))
}

/// The sum of a stretch: eight running sums, combined pairwise.
pub fn lanes(values: impl Iterator<Item = f64>) -> f64 {
    let mut sums = [0.0; 8];
    for (i, v) in values.enumerate() {
        sums[i % 8] += v;
    }
    ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))
}

/// The dot product of two stretches.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    sum_of_two(a, b, |x, y| f64::from(x) * f64::from(y))
}

/// The sum of a function of a stretch's elements, as [`lanes`].
pub fn sum_of(values: &[f32], of: impl Fn(f32) -> f64) -> f64 {
    sum_of_two(values, values, |v, _| of(v))
}

vectors! {
/// The sum of a function of the elements of two stretches of one length, as [`lanes`].
pub fn sum_of_two['a, F: Fn(f32, f32) -> f64](a: &'a [f32], b: &'a [f32], of: F) -> f64 {
    let mut sums = [0.0f64; 8];
    let ((heads, a), (others, b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (x, y) in heads.iter().zip(others) {
        for i in 0..8 {
            sums[i] += of(x[i], y[i]);
        }
    }
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        sums[i] += of(*x, *y);
    }
    ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))
}
}
