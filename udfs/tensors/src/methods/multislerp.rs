//! Spherical interpolation of many: the log map of each direction at their weighted mean, a weighted sum there, and the exp map back
//! (Buss, Fillmore 2001, Spherical averages; arXiv:2603.04972 for models).
//!
//! Everything lies in the span of the models, so their inner products give the factors of the sum.

use crate::method::{Base, Gram, Job, Kernel, Kind, Method, Semantics, WEIGHT, param};
use mergeql_udfs::{Error, Result};

pub const METHOD: Method = Method {
    name: "multislerp",
    title: "the weighted mean of many directions on the sphere; with a base, of task vectors",
    paper: "arXiv:2603.04972",
    base: Base::Optional,
    params: &[
        WEIGHT,
        param("normalize_weights", Kind::Flag, "true", "whether the weights are divided by their sum"),
        param("eps", Kind::Number, "1e-8", "what counts as no length"),
    ],
    check: |job| if job.flag("normalize_weights") { job.check_shares() } else { Ok(()) },
    prepare,
    ..Method::COMMON
};

/// The factors of the vectors with these inner products. `None` where their weighted mean has no direction.
fn factors(gram: &Gram, weights: &[f64], eps: f64) -> Option<Vec<f64>> {
    let n = gram.n;
    let norms: Vec<f64> = (0..n).map(|i| gram.norm(i) + eps).collect();
    let mean: Vec<f64> = (0..n).map(|i| weights[i] / norms[i]).collect();
    let length = gram.norm_of(&mean);
    if length < eps {
        return None;
    }
    let mean: Vec<f64> = mean.iter().map(|m| m / length).collect();
    // Tangents: of each direction what is perpendicular to the mean.
    let along: f64 = (0..n).map(|i| weights[i] * gram.dot_of(&mean, i) / norms[i]).sum();
    let tangent: Vec<f64> = (0..n).map(|i| weights[i] / norms[i] - along * mean[i]).collect();
    let angle = gram.norm_of(&tangent);
    let size: f64 = (0..n).map(|i| weights[i] * norms[i]).sum();
    let on_tangent = if angle > eps { angle.sin() / angle } else { 0.0 };
    let on_mean = if angle > eps { angle.cos() } else { 1.0 };
    Some((0..n).map(|i| size * (on_mean * mean[i] + on_tangent * tangent[i])).collect())
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let tasks = job.base.is_some();
    if job.models.len() == 1 {
        return Ok(job.combine(vec![1.0], tasks));
    }
    let weights = if job.flag("normalize_weights") { job.shares("weight")? } else { job.of_models("weight") };
    let gram = job.gram(tasks)?;
    let paper = job.settings.semantics == Semantics::Paper;
    // Two opposite vectors have no arc between them, and so no place on it.
    let opposite = gram.n == 2 && gram.norm(0) > 0.0 && gram.norm(1) > 0.0 && gram.cosine(0, 1) < 1e-12 - 1.0;
    let factors = match factors(&gram, &weights, job.number("eps")) {
        Some(factors) if !(paper && opposite) => factors,
        // The line between two opposite vectors, as mergekit has it; task vectors of nothing.
        None if job.models.len() == 2 && !paper || (0..gram.n).all(|i| gram.norm(i) == 0.0) => weights,
        _ => {
            return Err(Error::invalid_argument(format!("the tensors `{}` cancel out: their mean has no direction", job.name))
                .with_help("change the weights, or merge this tensor with linear"));
        }
    };
    Ok(job.combine(factors, tasks))
}
