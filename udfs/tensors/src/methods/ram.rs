//! RAM: entries that one model alone changed are kept, those that several changed are averaged (arXiv:2601.13572).

use crate::method::{Job, Kernel, Kind, Method, Pair, Param, param};
use crate::program::{Program, Rule};
use crate::reduce;
use mergeql_udfs::Result;

pub const METHOD: Method = Method {
    name: "ram",
    title: "what one model alone changed, and the mean of what several changed",
    paper: "arXiv:2601.13572",
    reads_once: true,
    params: &[EPSILON],
    prepare: |job| prepare(job, false),
    ..Method::COMMON
};

/// From where on an entry counts as changed, as the authors' code and mergekit have it.
const EPSILON: Param =
    param("epsilon", Kind::Number, "1e-5", "an entry that differs from the base by no more than this is unchanged");

pub const PLUS: Method = Method {
    name: "ram_plus",
    aliases: &[("ramplus_tl", &[])],
    reads_once: false,
    title: "as ram, with what one model alone changed scaled up by how much of its change is shared",
    params: &[
        param("r", Kind::Number, "0.1", "how much the share of common changes scales those of one model alone"),
        param("alpha", Kind::Number, "0.2", "the most that this share counts"),
        EPSILON,
    ],
    prepare: |job| prepare(job, true),
    ..METHOD
};

fn prepare<'a>(job: &'a Job<'a>, plus: bool) -> Result<Kernel<'a>> {
    let (n, epsilon) = (job.models.len(), job.number("epsilon") as f32);
    let mut scales = vec![1.0f32; n];
    if plus {
        // For each model: entries that it changed alone, and with others.
        let counts = reduce::sum(job.len(), 2 * n, |range, scratch: &mut (Pair, Vec<Vec<f32>>), sums| {
            let (pair, deltas) = scratch;
            deltas.resize_with(n, Vec::new);
            for (i, delta) in deltas.iter_mut().enumerate() {
                delta.clear();
                delta.extend_from_slice(job.delta(i, range.clone(), pair)?);
            }
            for at in 0..range.len() {
                let shared = deltas.iter().filter(|d| d[at].abs() > epsilon).count() > 1;
                for (i, delta) in deltas.iter().enumerate() {
                    if delta[at].abs() > epsilon {
                        sums[2 * i + usize::from(shared)] += 1.0;
                    }
                }
            }
            Ok(())
        })?;
        for (scale, counts) in scales.iter_mut().zip(counts.chunks(2)) {
            let overlap = if counts[0] > 0.0 { counts[1] / counts[0] } else { 0.0 };
            *scale = (1.0 + job.number("r") * overlap.clamp(0.0, job.number("alpha"))) as f32;
        }
    }
    Ok(kernel(epsilon, scales))
}

/// The kernel for what counts as no change, and what each model's own changes are scaled by.
pub(crate) fn kernel(epsilon: f32, scales: Vec<f32>) -> Kernel<'static> {
    Kernel::Program {
        program: Program::Entries { rule: Rule::Shared(epsilon), models: scales.iter().map(|scale| [*scale, 0.0]).collect() },
        run: Box::new(move |tile, out| {
            for (at, o) in out.iter_mut().enumerate() {
                let base = tile.base[at];
                let (mut sum, mut count, mut scale) = (0.0f32, 0u32, 1.0f32);
                for (model, own) in tile.models.iter().zip(&scales) {
                    let delta = model[at] - base;
                    if delta.abs() > epsilon {
                        sum += delta;
                        count += 1;
                        scale = *own;
                    }
                }
                *o = base
                    + match count {
                        0 => 0.0,
                        1 => sum * scale,
                        _ => sum / count as f32,
                    };
            }
            Ok(())
        }),
    }
}
