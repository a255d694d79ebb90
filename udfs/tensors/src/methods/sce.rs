//! SCE: select by variance, calculate weights, erase minority signs (Wan et al. 2024, FuseChat, arXiv:2408.07990).

use crate::method::{Job, Kernel, Kind, Method, Pair, Semantics, param};
use crate::program::{Program, Rule};
use crate::reduce;
use crate::select::{self, Cut};
use mergeql_udfs::Result;

pub const METHOD: Method = Method {
    name: "sce",
    title: "the entries that vary most between the models, weighted by how much each model changed, where they agree with the sign of the sum",
    paper: "Wan et al. 2024, arXiv:2408.07990",
    params: &[
        param("select_topk", Kind::Share, "1", "the share of the entries that vary at all which is kept, greatest variance first"),
        super::task_vectors::INT8_MASK,
    ],
    prepare,
    ..Method::COMMON
};

/// The variance of each entry over the models' task vectors.
fn variances(deltas: &[Vec<f32>], out: &mut Vec<f32>) {
    let n = deltas.len() as f32;
    out.clear();
    out.extend((0..deltas[0].len()).map(|at| {
        let mean = deltas.iter().map(|d| d[at]).sum::<f32>() / n;
        deltas.iter().map(|d| (d[at] - mean) * (d[at] - mean)).sum::<f32>() / n
    }));
}

#[derive(Default)]
struct Scratch {
    pair: Pair,
    deltas: Vec<Vec<f32>>,
    variances: Vec<f32>,
}

impl Scratch {
    fn fill(&mut self, job: &Job<'_>, range: std::ops::Range<usize>) -> Result<()> {
        self.deltas.resize_with(job.models.len(), Vec::new);
        for (i, delta) in self.deltas.iter_mut().enumerate() {
            delta.clear();
            delta.extend_from_slice(job.delta(i, range.clone(), &mut self.pair)?);
        }
        variances(&self.deltas, &mut self.variances);
        Ok(())
    }
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let (n, models, share) = (job.len(), job.models.len(), job.number("select_topk"));
    let mut cut = Cut::ALL;
    if share < 1.0 {
        let varying = reduce::sum(n, 1, |range, scratch: &mut Scratch, sums| {
            scratch.fill(job, range)?;
            sums[0] = scratch.variances.iter().filter(|v| **v != 0.0).count() as f64;
            Ok(())
        })?[0];
        cut = select::first(n, (varying * share) as usize, |range, keys, scratch: &mut Scratch| {
            scratch.fill(job, range)?;
            keys.clear();
            keys.extend(scratch.variances.iter().map(|v| select::great_first(*v)));
            Ok(())
        })?;
    }
    let kept = move |variance: f32, index: usize| cut.after(select::great_first(variance), index);
    // Each model weighs as much as the mean square of what is kept of its task vector.
    let mut weights = reduce::sum(n, models, |range, scratch: &mut Scratch, sums| {
        scratch.fill(job, range.clone())?;
        for (sum, delta) in sums.iter_mut().zip(&scratch.deltas) {
            let squares = delta.iter().zip(&scratch.variances).enumerate();
            *sum = reduce::lanes(
                squares.map(|(at, (d, v))| if kept(*v, range.start + at) { f64::from(*d) * f64::from(*d) } else { 0.0 }),
            );
        }
        Ok(())
    })?;
    let total: f64 = weights.iter().sum();
    // What mergekit takes for no change at all.
    let least = if job.settings.semantics == Semantics::Mergekit { 1e-6 } else { f64::MIN_POSITIVE };
    if total / (n.max(1) as f64) < least {
        weights.fill(1.0 / models as f64);
    } else {
        weights.iter_mut().for_each(|w| *w /= total);
    }
    // What nothing agrees on is divided by this: it must not be 0.
    let least = (least as f32).max(f32::MIN_POSITIVE);
    Ok(kernel(cut, weights.into_iter().map(|w| w as f32).collect(), least))
}

/// The kernel for the cut before which entries vary enough, the models' weights, and what is divided by at least.
pub(crate) fn kernel(cut: Cut, weights: Vec<f32>, least: f32) -> Kernel<'static> {
    Kernel::Program {
        program: Program::Entries { rule: Rule::Varying(cut, least), models: weights.iter().map(|w| [*w, 0.0]).collect() },
        run: Box::new(move |tile, out| {
            let deltas: Vec<Vec<f32>> = tile.models.iter().map(|m| m.iter().zip(tile.base).map(|(m, b)| m - b).collect()).collect();
            let mut spread = Vec::new();
            variances(&deltas, &mut spread);
            for (at, o) in out.iter_mut().enumerate() {
                *o = tile.base[at];
                if !cut.after(select::great_first(spread[at]), tile.range.start + at) {
                    continue;
                }
                let sign = if deltas.iter().map(|d| d[at]).sum::<f32>() >= 0.0 { 1.0 } else { -1.0 };
                let (mut sum, mut divisor) = (0.0f32, 0.0f32);
                for (delta, weight) in deltas.iter().zip(&weights) {
                    if delta[at] * sign > 0.0 {
                        sum += delta[at] * weight;
                        divisor += weight;
                    }
                }
                *o += sum / divisor.max(least);
            }
            Ok(())
        }),
    }
}
