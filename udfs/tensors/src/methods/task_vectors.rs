//! What task arithmetic, TIES, DARE, DELLA and Breadcrumbs have in common: task vectors are thinned out, weighted, perhaps made to agree in
//! sign, summed, scaled and added to the base.

use crate::method::{Job, Kernel, Kind, Pair, Param, Tile, param};
use crate::reduce;
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
}

/// Keeps all.
pub struct All;

impl Thin for All {
    fn factors(&self, _: usize, _: Range<usize>, _: &[f32], out: &mut [f32]) -> Result<()> {
        out.fill(1.0);
        Ok(())
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
}

/// The kernel: base + lambda * sum of the thinned, weighted task vectors.
///
/// # Errors
/// As [`Job::delta`].
pub fn kernel<'a>(job: &'a Job<'a>, thin: impl Thin + 'a, sum: Sum, granule: usize) -> Result<Kernel<'a>> {
    let weights: Vec<f32> = job.of_models("weight").into_iter().map(|w| w as f32).collect();
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
                    sums[0] = reduce::lanes(delta.iter().map(|d| f64::from(d.abs())));
                    sums[1] = reduce::lanes(delta.iter().zip(factors.iter()).map(|(d, f)| f64::from((d * f).abs())));
                    Ok(())
                },
            )?;
            *scale = if sums[1] > 0.0 { (sums[0] / sums[1]) as f32 } else { 1.0 };
        }
    }
    Ok(Kernel::Tiles { granule, run: Box::new(move |tile, out| run(tile, &thin, sum, &weights, &scales, out)) })
}

fn run(tile: &Tile<'_>, thin: &impl Thin, sum: Sum, weights: &[f32], scales: &[f32], out: &mut [f32]) -> Result<()> {
    let n = out.len();
    let mut factors = vec![0.0f32; n];
    let weighted = |i: usize, delta: &mut [f32], factors: &mut [f32]| -> Result<()> {
        delta.iter_mut().zip(tile.models[i].iter().zip(tile.base)).for_each(|(d, (m, b))| *d = m - b);
        thin.factors(i, tile.range.clone(), delta, factors)?;
        let scale = weights[i] * scales[i];
        delta.iter_mut().zip(factors.iter()).for_each(|(d, f)| *d *= f * scale);
        Ok(())
    };
    out.fill(0.0);
    if !sum.consensus {
        let mut delta = vec![0.0f32; n];
        for i in 0..weights.len() {
            weighted(i, &mut delta, &mut factors)?;
            out.iter_mut().zip(&delta).for_each(|(o, d)| *o += d);
        }
        let total: f32 = weights.iter().sum();
        let scale = if sum.normalize && total.abs() >= 1e-8 { sum.lambda / total } else { sum.lambda };
        out.iter_mut().zip(tile.base).for_each(|(o, b)| *o = b + scale * *o);
        return Ok(());
    }
    let mut deltas = vec![vec![0.0f32; n]; weights.len()];
    for (i, delta) in deltas.iter_mut().enumerate() {
        weighted(i, delta, &mut factors)?;
        out.iter_mut().zip(&*delta).for_each(|(o, d)| *o += d);
    }
    // The elected sign, +1 for a sum of 0, in `out`; what agrees with it is summed into `agreeing`, its weights into `factors`.
    out.iter_mut().for_each(|o| *o = if *o >= 0.0 { 1.0 } else { -1.0 });
    let mut agreeing = vec![0.0f32; n];
    factors.fill(0.0);
    for (delta, weight) in deltas.iter().zip(weights) {
        for (((sum, divisor), sign), d) in agreeing.iter_mut().zip(factors.iter_mut()).zip(out.iter()).zip(delta) {
            let agrees = d * sign > 0.0;
            *sum += if agrees { *d } else { 0.0 };
            *divisor += if agrees { *weight } else { 0.0 };
        }
    }
    for (((o, sum_of), divisor), b) in out.iter_mut().zip(&agreeing).zip(&factors).zip(tile.base) {
        let divisor = if sum.normalize && divisor.abs() >= 1e-8 { *divisor } else { 1.0 };
        *o = b + sum.lambda * (sum_of / divisor);
    }
    Ok(())
}
