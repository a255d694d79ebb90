//! The Riemannian (Karcher) mean of the directions of the models, with their mean length (Karcher 1977; arXiv:2603.04972 for models).
//!
//! The iteration stays in the span of the models, so it runs on their inner products and costs no pass over the tensors.

use crate::method::{Base, Job, Kernel, Kind, Method, Semantics, WEIGHT, param};
use mergeql_udfs::{Error, Result};

pub const METHOD: Method = Method {
    name: "karcher",
    title: "the mean of the directions on the sphere, with the mean length",
    paper: "Karcher 1977; arXiv:2603.04972",
    base: Base::None,
    params: &[
        WEIGHT,
        param("max_iter", Kind::Count, "10", "the most steps taken"),
        param("tol", Kind::Number, "1e-5", "a step shorter than this is the last"),
    ],
    check: |job| job.check_shares(),
    prepare,
    ..Method::COMMON
};

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let gram = job.gram(false)?;
    // mergekit's has no weights.
    let uniform = job.settings.semantics == Semantics::Mergekit;
    let shares = if uniform { vec![1.0 / gram.n as f64; gram.n] } else { job.shares("weight")? };
    // What is shorter has no direction that a factor in f32 could bring back.
    let none = if uniform { job.number("tol") } else { 1e-30 };
    let present: Vec<usize> = (0..gram.n).filter(|i| gram.norm(*i) > none).collect();
    let mut factors = vec![0.0; gram.n];
    let total: f64 = present.iter().map(|i| shares[*i]).sum();
    if present.is_empty() || total <= 0.0 {
        return Ok(job.combine(factors, false));
    }
    let weight = |i: usize| shares[i] / total;
    // The mean in coordinates of the models; directions are models over their length.
    let mut mean = vec![0.0; gram.n];
    for i in &present {
        mean[*i] = weight(*i) / gram.norm(*i);
    }
    let length = gram.norm_of(&mean);
    if length < if uniform { job.number("tol") } else { 1e-7 } {
        if !uniform {
            return Err(Error::invalid_argument(format!("the tensors `{}` cancel out: their mean has no direction", job.name))
                .with_help("change the weights, or merge this tensor with linear"));
        }
        mean.fill(0.0);
        mean[present[0]] = 1.0 / gram.norm(present[0]);
    } else {
        mean.iter_mut().for_each(|m| *m /= length);
    }
    for _ in 0..job.number("max_iter") as u64 {
        let mut step = vec![0.0; gram.n];
        for i in &present {
            let cosine = (gram.dot_of(&mean, *i) / gram.norm(*i)).clamp(-1.0, 1.0);
            let angle = cosine.acos();
            // No way leads to what lies on the other side: all do.
            if angle.sin() < 1e-6 {
                continue;
            }
            let scale = weight(*i) * angle / angle.sin();
            step[*i] += scale / gram.norm(*i);
            step.iter_mut().zip(&mean).for_each(|(s, m)| *s -= scale * cosine * m);
        }
        let length = gram.norm_of(&step);
        if length < job.number("tol") {
            break;
        }
        mean.iter_mut().zip(&step).for_each(|(m, s)| *m = length.cos() * *m + length.sin() * s / length);
        let length = gram.norm_of(&mean);
        mean.iter_mut().for_each(|m| *m /= length);
    }
    let size: f64 = (0..gram.n).map(|i| shares[i] * gram.norm(i)).sum();
    factors.iter_mut().zip(&mean).for_each(|(f, m)| *f = size * m);
    Ok(job.combine(factors, false))
}
