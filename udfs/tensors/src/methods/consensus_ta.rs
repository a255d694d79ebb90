//! Consensus task arithmetic by TALL masks (Wang et al. 2024, Localizing task information, arXiv:2405.07813).

use crate::method::{Kernel, Kind, Method, each, param};
use crate::program::{Program, Rule};

pub const METHOD: Method = Method {
    name: "consensus_ta",
    aliases: &[("tall_consensus", &[])],
    title: "the sum of what each model changed, where it matters to enough of them",
    paper: "Wang et al. 2024, arXiv:2405.07813",
    reads_once: true,
    params: &[
        each(
            "lambda",
            Kind::Number,
            "0.4",
            "an entry matters to a model if its own change is at least this share of what the others add",
        ),
        param("k", Kind::Count, "2", "to how many models an entry must matter"),
        param("alpha", Kind::Number, "0.3", "scales the merged task vector"),
    ],
    prepare: |job| {
        let shares = job.of_models("lambda").into_iter().map(|s| s as f32).collect();
        Ok(kernel(shares, job.number("k") as usize, job.number("alpha") as f32))
    },
    ..Method::COMMON
};

/// The kernel for each model's share, how many models an entry must matter to, and a scale.
pub(crate) fn kernel(shares: Vec<f32>, k: usize, alpha: f32) -> Kernel<'static> {
    // More models than there are is as good as any greater number.
    let needed = Rule::Needed(u32::try_from(k).unwrap_or(u32::MAX), alpha);
    Kernel::Program {
        program: Program::Entries { rule: needed, models: shares.iter().map(|share| [*share, 0.0]).collect() },
        run: Box::new(move |tile, out| {
            for (at, o) in out.iter_mut().enumerate() {
                let base = tile.base[at];
                let sum: f32 = tile.models.iter().map(|m| m[at] - base).sum();
                let matters = tile.models.iter().zip(&shares).filter(|(m, share)| {
                    let delta = m[at] - base;
                    delta.abs() >= **share * (sum - delta).abs()
                });
                *o = base + if matters.count() >= k { alpha * sum } else { 0.0 };
            }
            Ok(())
        }),
    }
}
