//! Nearswap: the nearer an entry of the model is to the base, the more of it is taken. As mergekit documents it.

use crate::method::{Kernel, Kind, Method, param};
use crate::program::{Program, Rule};

pub const METHOD: Method = Method {
    name: "nearswap",
    title: "entries of the model where they are near to the base, the base where they are far",
    paper: "mergekit",
    models: (1, 1),
    reads_once: true,
    params: &[param("t", Kind::Number, "!", "the distance up to which an entry is taken whole")],
    prepare: |job| Ok(kernel(job.number("t") as f32)),
    ..Method::COMMON
};

/// The kernel for a distance.
pub(crate) fn kernel(t: f32) -> Kernel<'static> {
    // One zero, not two.
    let t = t + 0.0;
    Kernel::Program {
        program: Program::Entries { rule: Rule::Near(t), models: Vec::new() },
        run: Box::new(move |tile, out| {
            for (o, (m, b)) in out.iter_mut().zip(tile.models[0].iter().zip(tile.base)) {
                let share = t / (m - b).abs();
                let share = if share.is_nan() { 1.0 } else { share.clamp(0.0, 1.0) };
                *o = b + share * (m - b);
            }
            Ok(())
        }),
    }
}
