//! NegMerge: unlearning by what all models agree on (Kim et al. 2024, arXiv:2410.05583).

use crate::method::{Kernel, Kind, Method, param};
use crate::program::{Program, Rule};

pub const METHOD: Method = Method {
    name: "negmerge",
    title: "the base less the mean of the entries whose sign agrees in every model",
    paper: "Kim et al. 2024, arXiv:2410.05583",
    reads_once: true,
    params: &[param("lambda", Kind::Number, "1", "scales what is taken off")],
    prepare: |job| Ok(kernel((job.number("lambda") / job.models.len() as f64) as f32)),
    ..Method::COMMON
};

/// The kernel for a scale of the sum.
pub(crate) fn kernel(scale: f32) -> Kernel<'static> {
    Kernel::Program {
        program: Program::Entries { rule: Rule::Agreeing(scale), models: Vec::new() },
        run: Box::new(move |tile, out| {
            for (at, o) in out.iter_mut().enumerate() {
                let deltas = || tile.models.iter().map(|m| m[at] - tile.base[at]);
                let agree = deltas().all(|d| d > 0.0) || deltas().all(|d| d < 0.0);
                *o = tile.base[at] - if agree { scale * deltas().sum::<f32>() } else { 0.0 };
            }
            Ok(())
        }),
    }
}
