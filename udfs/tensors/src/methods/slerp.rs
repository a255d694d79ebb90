//! Spherical interpolation of two tensors, each taken as one vector (Shoemake 1985, Animating rotation with quaternion curves).
//!
//! Both it and the line between nearly parallel vectors are sums of the two with factors that the angle gives, so one pass finds the
//! inner products in f64, and another sums.

use crate::method::{Base, Input, Job, Kernel, Kind, Method, Semantics, param};
use crate::program::{Inputs, Program};
use mergeql_udfs::{Error, Result};

pub const METHOD: Method = Method {
    name: "slerp",
    title: "the way from the base to one model, or from the first of two models to the other, along the arc between them",
    paper: "Shoemake 1985, doi:10.1145/325165.325242",
    base: Base::Optional,
    models: (2, 2),
    beside_base: Some((1, 1)),
    ordered: true,
    params: &[param("t", Kind::Share, "!", "how far along: 0 is the base, or the first model")],
    prepare,
    ..Method::COMMON
};

/// Beyond this cosine the arc is a line.
const LINE: f64 = 0.9995;

/// The factors of two vectors.
pub fn factors(cosine: f64, t: f64) -> (f64, f64) {
    if cosine.abs() > LINE {
        return (1.0 - t, t);
    }
    let angle = cosine.acos();
    (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let ends: Vec<&Input> = job.base.into_iter().chain(job.models).collect();
    let [from, to] = ends[..] else {
        return Err(Error::invalid_argument(format!(
            "`slerp` goes between two tensors, and `{}` comes in {}",
            job.name,
            ends.len()
        )));
    };
    let both = Job { models: &[from.clone(), to.clone()], base: None, ..job.clone() };
    let cosine = both.gram(false)?.cosine(0, 1);
    if cosine < -LINE && job.settings.semantics == Semantics::Paper {
        return Err(Error::invalid_argument(format!(
            "the tensors `{}` point in opposite directions: no arc between them is shortest",
            job.name
        ))
        .with_help("merge this tensor with linear, or write semantics = 'mergekit' for the straight line between them"));
    }
    let (a, b) = factors(cosine, job.number("t"));
    let (a, b) = (a as f32, b as f32);
    let based = job.base.is_some();
    let inputs = if based { Inputs::BaseAndModels } else { Inputs::Models };
    Ok(Kernel::Program {
        program: Program::Combine { inputs, factors: vec![a, b] },
        run: Box::new(move |tile, out| {
            let (from, to) = if based { (tile.base, tile.models[0]) } else { (tile.models[0], tile.models[1]) };
            out.iter_mut().zip(from.iter().zip(to)).for_each(|(o, (x, y))| *o = a * x + b * y);
            Ok(())
        }),
    })
}
