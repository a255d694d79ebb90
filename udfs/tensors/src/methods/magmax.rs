//! MagMax: of each entry the change of greatest magnitude (Marczak et al. 2024, arXiv:2407.06322).

use crate::method::{Kernel, Kind, Method, param};
use crate::program::{Program, Rule};

pub const METHOD: Method = Method {
    name: "magmax",
    title: "of each entry the change of greatest magnitude",
    paper: "Marczak et al. 2024, arXiv:2407.06322",
    synonyms: &[("lambda", "scale")],
    reads_once: true,
    params: &[param("scale", Kind::Number, "1", "scales the merged task vector")],
    prepare: |job| Ok(kernel(job.number("scale") as f32)),
    ..Method::COMMON
};

/// The kernel for a scale.
pub(crate) fn kernel(scale: f32) -> Kernel<'static> {
    Kernel::Program {
        program: Program::Entries { rule: Rule::Greatest(scale), models: Vec::new() },
        run: Box::new(move |tile, out| {
            out.fill(0.0);
            for model in &tile.models {
                for (o, (m, b)) in out.iter_mut().zip(model.iter().zip(tile.base)) {
                    let delta = m - b;
                    // Of two that are as great, the positive one.
                    *o = if delta.abs() > o.abs() || (delta.abs() == o.abs() && delta > *o) { delta } else { *o };
                }
            }
            out.iter_mut().zip(tile.base).for_each(|(o, b)| *o = b + scale * *o);
            Ok(())
        }),
    }
}
