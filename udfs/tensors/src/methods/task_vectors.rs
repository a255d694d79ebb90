//! What task arithmetic, TIES, DARE, DELLA and Breadcrumbs have in common: task vectors are thinned out, weighted, perhaps made to agree in
//! sign, summed, scaled and added to the base.

use crate::method::{Job, Kernel, Kind, Pair, Param, Run, Semantics, Tile, param, subtract};
use crate::program::{Program, Thinned};
use crate::simd::vectors;
use crate::{reduce, select};
use mergeql_udfs::Result;
use std::ops::Range;

/// What all of them take.
pub const INT8_MASK: Param = param("int8_mask", Kind::Flag, "false", "taken from configs of mergekit, and without effect");
/// Whether the sum is divided.
pub const NORMALIZE: Param = param("normalize", Kind::Flag, "false", "whether the sum is divided by the weights that took part");

/// Which entries of a task vector are kept, and by what each is multiplied: 0 for those that are dropped.
pub trait Thin: Send + Sync {
    /// Writes the factors of the entries of a range of model `i`'s task vector.
    ///
    /// # Errors
    /// Where a file beside the models cannot be read.
    fn factors(&self, i: usize, range: Range<usize>, delta: &[f32], out: &mut [f32]) -> Result<()>;

    /// The same for `n` models in terms that a GPU has, where there are such.
    fn program(&self, _n: usize) -> Option<Vec<Thinned>> {
        None
    }
}

/// Keeps all.
pub struct All;

impl Thin for All {
    fn factors(&self, _: usize, _: Range<usize>, _: &[f32], out: &mut [f32]) -> Result<()> {
        out.fill(1.0);
        Ok(())
    }

    fn program(&self, n: usize) -> Option<Vec<Thinned>> {
        Some(vec![Thinned::All; n])
    }
}

impl Thinned {
    /// Writes the factors of the entries of a range of a task vector.
    pub fn factors(&self, range: Range<usize>, delta: &[f32], out: &mut [f32]) {
        match self {
            Thinned::All => out.fill(1.0),
            Thinned::Greatest(cut, offset) => cut.mark(delta, select::great_first, offset + range.start, out),
            Thinned::Between(from, to) => {
                let mut below = vec![0.0; out.len()];
                from.mark(delta, select::small_first, range.start, &mut below);
                to.mark(delta, select::small_first, range.start, out);
                out.iter_mut().zip(&below).for_each(|(o, b)| *o -= b);
            }
            Thinned::Random { stream, limit, factor } => {
                // A number of 32 bits is below a limit of 2^32 always.
                let Ok(limit) = u32::try_from(*limit) else { return out.fill(*factor) };
                let factor = *factor;
                stream.for_each(range, move |from, numbers| {
                    let out = &mut out[from..from + numbers.len()];
                    out.iter_mut().zip(numbers).for_each(|(o, number)| *o = if *number < limit { factor } else { 0.0 });
                });
            }
        }
    }
}

/// How the thinned vectors become one.
#[derive(Debug, Clone, Copy)]
pub struct Sum {
    /// Whether entries must agree with the sign of the weighted sum.
    pub consensus: bool,
    /// Whether the sum is divided by the weights that took part.
    pub normalize: bool,
    /// Whether each vector is scaled to the L1 norm it had before it was thinned.
    pub same_l1: bool,
    /// Scales the sum.
    pub lambda: f32,
}

impl Sum {
    /// From the parameters of a method.
    pub fn of(job: &Job<'_>, consensus: bool, same_l1: bool) -> Sum {
        Sum { consensus, normalize: job.flag("normalize"), same_l1, lambda: job.settings.number("lambda").unwrap_or(1.0) as f32 }
    }

    /// What the sum is multiplied by.
    pub fn factor(&self, weights: &[f32]) -> f32 {
        let total: f32 = weights.iter().sum();
        if !self.consensus && self.normalize && total.abs() >= 1e-8 { self.lambda / total } else { self.lambda }
    }
}

/// The kernel: base + lambda * sum of the thinned, weighted task vectors.
///
/// # Errors
/// As [`Job::delta`].
pub fn kernel<'a>(job: &'a Job<'a>, thin: impl Thin + 'a, sum: Sum, granule: usize) -> Result<Kernel<'a>> {
    let weights: Vec<f32> = job.of_models("weight").into_iter().map(|w| w as f32).collect();
    if sum.normalize && !sum.consensus && job.settings.semantics == Semantics::Paper {
        job.check_shares()?;
    }
    let mut scales = vec![1.0f32; job.models.len()];
    if sum.same_l1 {
        // Blocks must be whole granules, too.
        let block = reduce::BLOCK.div_ceil(granule) * granule;
        for (i, scale) in scales.iter_mut().enumerate() {
            let sums = reduce::sum(
                job.len().div_ceil(block) * reduce::BLOCK,
                2,
                |range, (pair, factors): &mut (Pair, Vec<f32>), sums| {
                    let index = range.start / reduce::BLOCK;
                    let range = index * block..((index + 1) * block).min(job.len());
                    let delta = job.delta(i, range.clone(), pair)?;
                    factors.resize(range.len(), 0.0);
                    thin.factors(i, range, delta, factors)?;
                    sums[0] = reduce::sum_of(delta, |d| f64::from(d.abs()));
                    sums[1] = reduce::sum_of_two(delta, factors, |d, f| f64::from((d * f).abs()));
                    Ok(())
                },
            )?;
            *scale = if sums[1] > 0.0 { (sums[0] / sums[1]) as f32 } else { 1.0 };
        }
    }
    let thinned = if granule == 1 { thin.program(job.models.len()) } else { None };
    let program = thinned.map(|thin| Program::Vectors { weights: weights.clone(), scales: scales.clone(), thin, sum });
    let run: Run<'a> = Box::new(move |tile, out| run(tile, &thin, sum, &weights, &scales, out));
    Ok(match program {
        Some(program) => Kernel::Program { program, run },
        None => Kernel::Tiles { granule, run },
    })
}

/// Computes a tile.
///
/// # Errors
/// As [`Thin::factors`].
pub fn run(tile: &Tile<'_>, thin: &impl Thin, sum: Sum, weights: &[f32], scales: &[f32], out: &mut [f32]) -> Result<()> {
    let n = out.len();
    let mut factors = vec![0.0f32; n];
    // Loops without branches over slices of one length: what the compiler turns into vectors.
    let weighted = |i: usize, delta: &mut [f32], factors: &mut [f32]| -> Result<()> {
        subtract(tile.models[i], tile.base, delta);
        thin.factors(i, tile.range.clone(), delta, factors)?;
        scale(factors, weights[i] * scales[i], delta);
        Ok(())
    };
    out.fill(0.0);
    if !sum.consensus {
        let mut delta = vec![0.0f32; n];
        for i in 0..weights.len() {
            weighted(i, &mut delta, &mut factors)?;
            add(&delta, out);
        }
        onto(tile.base, sum.factor(weights), out);
        return Ok(());
    }
    let mut deltas = vec![0.0f32; n * weights.len()];
    for (i, delta) in deltas.chunks_exact_mut(n.max(1)).enumerate() {
        weighted(i, delta, &mut factors)?;
        add(delta, out);
    }
    elect(&deltas, sum, weights, tile.base, &mut factors, out);
    Ok(())
}

vectors! {
fn scale['a](factors: &'a [f32], scale: f32, delta: &'a mut [f32]) {
    delta.iter_mut().zip(factors).for_each(|(d, factor)| *d *= factor * scale);
}

fn add['a](delta: &'a [f32], out: &'a mut [f32]) {
    out.iter_mut().zip(delta).for_each(|(o, d)| *o += d);
}

fn onto['a](base: &'a [f32], scale: f32, out: &'a mut [f32]) {
    out.iter_mut().zip(base).for_each(|(o, b)| *o = b + scale * *o);
}

/// What agrees with the sign of the sum, which is in `out`, on the base.
fn elect['a](deltas: &'a [f32], sum: Sum, weights: &'a [f32], base: &'a [f32], divisors: &'a mut [f32], out: &'a mut [f32]) {
    // The elected sign, +1 for a sum of 0 and NaN for that of NaN, in `out`; what agrees with it is summed into `agreeing`, its weights into `divisors`.
    out.iter_mut().for_each(|o| *o = if *o >= 0.0 { 1.0 } else if *o < 0.0 { -1.0 } else { *o });
    let mut agreeing = vec![0.0f32; out.len()];
    divisors.fill(0.0);
    for (delta, weight) in deltas.chunks_exact(out.len().max(1)).zip(weights) {
        agree(delta, *weight, out, &mut agreeing, divisors);
    }
    for ((o, base), (sum_of, divisor)) in out.iter_mut().zip(base).zip(agreeing.iter().zip(&*divisors)) {
        let divisor = if sum.normalize && divisor.abs() >= 1e-8 { *divisor } else { 1.0 };
        let elected = base + sum.lambda * (sum_of / divisor);
        *o = if o.is_nan() { *o } else { elected };
    }
}
}

/// Adds what agrees with the signs to the sums, and the weight to the divisors there.
#[inline(always)]
fn agree(delta: &[f32], weight: f32, signs: &[f32], sums: &mut [f32], divisors: &mut [f32]) {
    for ((delta, sign), (sum, divisor)) in delta.iter().zip(signs).zip(sums.iter_mut().zip(divisors)) {
        let agrees = delta * sign > 0.0;
        *sum += if agrees { *delta } else { 0.0 };
        *divisor += if agrees { weight } else { 0.0 };
    }
}
