//! Nearswap: the nearer an entry of the model is to the base, the more of it is taken. As mergekit documents it.

use crate::method::{Job, Kernel, Kind, Method, param};
use mergeql_udfs::Result;

pub const METHOD: Method = Method {
    name: "nearswap",
    title: "entries of the model where they are near to the base, the base where they are far",
    paper: "mergekit",
    models: (1, 1),
    reads_once: true,
    params: &[param("t", Kind::Number, "!", "the distance up to which an entry is taken whole")],
    prepare,
    ..Method::COMMON
};

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let t = job.number("t") as f32;
    Ok(Kernel::Tiles {
        granule: 1,
        run: Box::new(move |tile, out| {
            for (o, (m, b)) in out.iter_mut().zip(tile.models[0].iter().zip(tile.base)) {
                let share = t / (m - b).abs();
                let share = if share.is_nan() { 1.0 } else { share.clamp(0.0, 1.0) };
                *o = b + share * (m - b);
            }
            Ok(())
        }),
    })
}
