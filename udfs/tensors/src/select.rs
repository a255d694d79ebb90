//! Exact order statistics without sorting: the element at a rank, by (key, index) ascending. A sample says between which keys it will be; one
//! pass counts what lies below and keeps the few between. Where the sample misled, or the few are many, two histograms of 16 bits find it.

use crate::simd::vectors;
use mergeql_udfs::Result;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A place in the order of (key, index): what lies before it, and what does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    key: u32,
    index: usize,
    all: bool,
}

impl Cut {
    /// Nothing lies before it.
    pub const NONE: Cut = Cut { key: 0, index: 0, all: false };
    /// Everything lies before it.
    pub const ALL: Cut = Cut { key: u32::MAX, index: usize::MAX, all: true };

    /// Whether an element lies before it.
    pub fn after(&self, key: u32, index: usize) -> bool {
        self.all || key < self.key || (key == self.key && index < self.index)
    }
}

impl Cut {
    /// The cut at a key and an index.
    pub fn at(key: u32, index: usize) -> Cut {
        Cut { key, index, all: false }
    }

    /// Its key and its index; `None` where everything lies before it.
    pub fn place(&self) -> Option<(u32, usize)> {
        (!self.all).then_some((self.key, self.index))
    }

    /// Writes 1 for the elements that lie before it, 0 for the others; `start` is the index of the first.
    pub fn mark(&self, values: &[f32], key: impl Fn(f32) -> u32, start: usize, out: &mut [f32]) {
        if self.all {
            return out.fill(1.0);
        }
        // Of the elements whose keys are equal to its own, those before its index lie before it.
        let early = self.index.saturating_sub(start).min(values.len()).min(out.len());
        let (before, after) = out.split_at_mut(early);
        marked(&values[..early], &key, self.key, true, before);
        marked(&values[early..], &key, self.key, false, after);
    }
}

/// A key that orders floats of one sign by magnitude, ascending.
#[inline(always)]
pub fn small_first(v: f32) -> u32 {
    v.to_bits() & 0x7fff_ffff
}

/// The same, descending.
#[inline(always)]
pub fn great_first(v: f32) -> u32 {
    0x7fff_ffff - small_first(v)
}

/// A key that orders floats by value, ascending.
#[inline(always)]
pub fn by_value(v: f32) -> u32 {
    let bits = v.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 }
}

/// Writes the keys of some values.
pub fn keys_of(values: &[f32], key: impl Fn(f32) -> u32, out: &mut Vec<u32>) {
    out.resize(values.len(), 0);
    keyed(values, key, out);
}

vectors! {
fn keyed['a, F: Fn(f32) -> u32](values: &'a [f32], key: F, out: &'a mut [u32]) {
    out.iter_mut().zip(values).for_each(|(o, v)| *o = key(*v));
}

/// Writes 1 for the keys that are lower than one, or equal to it where that counts, 0 for the others.
fn marked['a, F: Fn(f32) -> u32](values: &'a [f32], key: &'a F, at: u32, equal: bool, out: &'a mut [f32]) {
    for (o, v) in out.iter_mut().zip(values) {
        let own = key(*v);
        *o = if (own < at) | (equal & (own == at)) { 1.0 } else { 0.0 };
    }
}
}

/// The float of a key of [`by_value`].
pub fn value_of(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & 0x7fff_ffff } else { !key })
}

const TILE: usize = 1 << 18;

/// The cut before which exactly `k` of `n` elements lie. `keys(range, out, scratch)` writes the keys of a range.
///
/// # Errors
/// The first that `keys` gives.
pub fn first<S: Default + Send>(
    n: usize,
    k: usize,
    keys: impl Fn(Range<usize>, &mut Vec<u32>, &mut S) -> Result<()> + Sync,
) -> Result<Cut> {
    if k == 0 {
        return Ok(Cut::NONE);
    }
    if k >= n {
        return Ok(Cut::ALL);
    }
    locate(n, k, keys)
}

/// The key of the element at a rank, from 0, of `n` of which there is one at least.
///
/// # Errors
/// The first that `keys` gives.
pub fn key_at<S: Default + Send>(
    n: usize,
    rank: usize,
    keys: impl Fn(Range<usize>, &mut Vec<u32>, &mut S) -> Result<()> + Sync,
) -> Result<u32> {
    // The first that doesn't lie before the cut.
    Ok(locate(n, rank.min(n.saturating_sub(1)), keys)?.key)
}

/// The cut before which `k` of more than `k` elements lie.
fn locate<S: Default + Send>(
    n: usize,
    k: usize,
    keys: impl Fn(Range<usize>, &mut Vec<u32>, &mut S) -> Result<()> + Sync,
) -> Result<Cut> {
    if n == 0 {
        return Ok(Cut::NONE);
    }
    if let Some(cut) = between(n, k, &keys)? {
        return Ok(cut);
    }
    let tiles = || (0..n.div_ceil(TILE)).into_par_iter().map(|i| i * TILE..((i + 1) * TILE).min(n));
    let count = |of: &(dyn Fn(u32) -> Option<u16> + Sync)| -> Result<Vec<u64>> {
        let empty = || (vec![0u64; 1 << 16], Vec::new(), S::default());
        let counted = tiles().try_fold(empty, |(mut counts, mut buffer, mut scratch), range| {
            keys(range, &mut buffer, &mut scratch)?;
            for key in &buffer {
                if let Some(bin) = of(*key) {
                    counts[bin as usize] += 1;
                }
            }
            Ok((counts, buffer, scratch))
        });
        counted.map(|part| part.map(|(counts, ..)| counts)).try_reduce(Vec::new, |mut a, b| {
            if a.is_empty() {
                return Ok(b);
            }
            a.iter_mut().zip(&b).for_each(|(a, b)| *a += b);
            Ok(a)
        })
    };
    // The bin that the rank falls in, and the rank inside it.
    let find = |counts: &[u64], mut rank: u64| {
        let mut bin = 0;
        while rank >= counts[bin] {
            rank -= counts[bin];
            bin += 1;
        }
        (bin as u32, rank)
    };
    let (high, rank) = find(&count(&|key| Some((key >> 16) as u16))?, k as u64);
    let (low, rank) = find(&count(&|key| (key >> 16 == high).then_some(key as u16))?, rank);
    let key = high << 16 | low;
    if rank == 0 {
        return Ok(Cut { key, index: 0, all: false });
    }
    // Of equal keys the first `rank` by index lie before the cut.
    let equal: Vec<usize> = tiles()
        .map_init(
            || (Vec::new(), S::default()),
            |(buffer, scratch), range| {
                keys(range, buffer, scratch)?;
                Ok(buffer.iter().filter(|k| **k == key).count())
            },
        )
        .collect::<Result<_>>()?;
    let mut left = rank as usize;
    for (tile, count) in equal.into_iter().enumerate() {
        if left < count {
            let range = tile * TILE..((tile + 1) * TILE).min(n);
            let (mut buffer, start) = (Vec::new(), range.start);
            keys(range, &mut buffer, &mut S::default())?;
            let place = buffer.iter().enumerate().filter(|(_, k)| **k == key).nth(left);
            return Ok(Cut { key, index: start + place.map_or(0, |(i, _)| i), all: false });
        }
        left -= count;
    }
    Ok(Cut { key: key.saturating_add(1), index: 0, all: key == u32::MAX })
}

/// Keys of one run of a sample, and of a whole sample: at least, and at most.
const RUN: usize = 64;
const SAMPLE: Range<usize> = 1 << 13..1 << 16;
/// Keys that are kept at most.
const KEPT: usize = 1 << 23;

/// The cut, if the sample leads to it.
fn between<S: Default + Send>(
    n: usize,
    k: usize,
    keys: &(impl Fn(Range<usize>, &mut Vec<u32>, &mut S) -> Result<()> + Sync),
) -> Result<Option<Cut>> {
    const TILE: usize = 1 << 15;
    let runs = (n / 32).clamp(SAMPLE.start, SAMPLE.end) / RUN;
    let size = runs * RUN;
    if n < 4 * size {
        return Ok(None);
    }
    let (mut buffer, mut scratch, mut sample) = (Vec::new(), S::default(), Vec::with_capacity(size));
    for run in 0..runs {
        let start = run * (n / runs);
        keys(start..start + RUN, &mut buffer, &mut scratch)?;
        sample.extend_from_slice(&buffer);
    }
    // Four standard deviations of a rank to either side, at the middle, where they are widest.
    let (at, slack) = ((k as u128 * size as u128 / n as u128) as usize, 2 * size.isqrt());
    let mut nth = |at: usize| *sample.select_nth_unstable(at).1;
    let low = if at < slack { 0 } else { nth(at - slack) };
    let high = if at + slack < size { nth(at + slack) } else { u32::MAX };
    // Of each tile: how many keys are lower, and those between.
    let kept = AtomicUsize::new(0);
    let tiles = (0..n.div_ceil(TILE)).into_par_iter().map_init(
        || (Vec::new(), S::default(), vec![0u32; TILE]),
        |(buffer, scratch, room), tile| -> Result<(usize, Vec<u32>)> {
            if kept.load(Ordering::Relaxed) > KEPT {
                return Ok((0, Vec::new()));
            }
            keys(tile * TILE..((tile + 1) * TILE).min(n), buffer, scratch)?;
            let (below, len) = part(buffer, low, high, room);
            kept.fetch_add(len, Ordering::Relaxed);
            Ok((below, room[..len].to_vec()))
        },
    );
    let tiles: Vec<(usize, Vec<u32>)> = tiles.collect::<Result<_>>()?;
    let kept = kept.into_inner();
    let below: usize = tiles.iter().map(|(below, _)| below).sum();
    if kept > KEPT || k < below || k - below >= kept {
        return Ok(None);
    }
    let mut all: Vec<u32> = tiles.iter().flat_map(|(_, keys)| keys).copied().collect();
    let rank = k - below;
    let key = *all.select_nth_unstable(rank).1;
    // Of equal keys the first by index lie before the cut.
    let mut left = rank - all.iter().filter(|other| **other < key).count();
    if left == 0 {
        return Ok(Some(Cut::at(key, 0)));
    }
    for (tile, (_, own)) in tiles.iter().enumerate() {
        let count = own.iter().filter(|other| **other == key).count();
        if left < count {
            let start = tile * TILE;
            keys(start..(start + TILE).min(n), &mut buffer, &mut scratch)?;
            let place = buffer.iter().enumerate().filter(|(_, other)| **other == key).nth(left);
            return Ok(Some(Cut::at(key, start + place.map_or(0, |(i, _)| i))));
        }
        left -= count;
    }
    Ok(None)
}

vectors! {
/// How many keys are lower than a range; those inside it go to the front of `inside`, which is as long as the keys.
fn part['a](keys: &'a [u32], low: u32, high: u32, inside: &'a mut [u32]) -> (usize, usize) {
    // Few are inside: most blocks are passed without a look at each.
    const BLOCK: usize = 8;
    let (mut below, mut len) = (0u32, 0);
    let width = high.wrapping_sub(low);
    let (blocks, rest) = keys.as_chunks::<BLOCK>();
    for block in blocks {
        let mut any = 0u32;
        for key in block {
            below += u32::from(*key < low);
            any |= u32::from(key.wrapping_sub(low) <= width);
        }
        if any != 0 {
            for key in block {
                inside[len] = *key;
                len += usize::from(key.wrapping_sub(low) <= width);
            }
        }
    }
    for key in rest {
        below += u32::from(*key < low);
        inside[len] = *key;
        len += usize::from(key.wrapping_sub(low) <= width);
    }
    (below as usize, len)
}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a sample leads to is what the histograms find: few and many ties, sorted values, a sample that misleads.
    #[test]
    fn a_sample_changes_no_cut() {
        let n = 600_000;
        let random = |i: usize| (i as u32).wrapping_mul(2_654_435_761) >> 8;
        let kinds: [(&str, Vec<u32>); 5] = [
            ("random", (0..n).map(random).collect()),
            ("tied", (0..n).map(|i| random(i) % 50).collect()),
            ("equal", vec![7; n]),
            ("sorted", (0..n).map(|i| i as u32).collect()),
            // The runs that are looked at hold nothing but zeros.
            ("misleading", (0..n).map(|i| if i % (n / (n / 32 / RUN)) < RUN { 0 } else { random(i) }).collect()),
        ];
        for (kind, values) in kinds {
            let keys = |range: Range<usize>, out: &mut Vec<u32>, _: &mut ()| {
                out.clear();
                out.extend(&values[range]);
                Ok(())
            };
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by_key(|i| (values[*i], *i));
            for k in [1, 2, 1000, n / 3, n / 2, n - 2, n - 1] {
                let cut = locate(n, k, keys).expect("no errors");
                let before = (0..n).filter(|i| cut.after(values[*i], *i)).count();
                assert_eq!(before, k, "{kind} {k}");
                assert!(cut.after(values[order[k - 1]], order[k - 1]) && !cut.after(values[order[k]], order[k]), "{kind} {k}");
            }
        }
    }

    #[test]
    fn exactly_k_lie_before_the_cut_whatever_is_tied() {
        let values: Vec<f32> = (0..5000u32).map(|i| ((i * 7919) % 37) as f32 - 18.0).collect();
        for k in [0, 1, 2, 36, 37, 500, 4999, 5000, 9000] {
            for of in [small_first, great_first, by_value] {
                let keys = |range: Range<usize>, out: &mut Vec<u32>, _: &mut ()| {
                    out.clear();
                    out.extend(values[range].iter().map(|v| of(*v)));
                    Ok(())
                };
                let cut = first(values.len(), k, keys).expect("no errors");
                let before: Vec<usize> = (0..values.len()).filter(|i| cut.after(of(values[*i]), *i)).collect();
                if k < values.len() {
                    let at = key_at(values.len(), k, keys).expect("no errors");
                    let mut all: Vec<u32> = values.iter().map(|v| of(*v)).collect();
                    all.sort_unstable();
                    assert_eq!(at, all[k]);
                }
                let mut marks = vec![0.5; values.len()];
                cut.mark(&values[..7], of, 0, &mut marks[..7]);
                cut.mark(&values[7..], of, 7, &mut marks[7..]);
                assert!(marks.iter().enumerate().all(|(i, m)| *m == f32::from(u8::from(cut.after(of(values[i]), i)))));
                let mut sorted: Vec<usize> = (0..values.len()).collect();
                sorted.sort_by_key(|i| (of(values[*i]), *i));
                sorted.truncate(k);
                sorted.sort_unstable();
                assert_eq!(before, sorted, "{k}");
            }
        }
    }
}
