//! What can be said of tensors and of how models differ, one pass each.

use crate::checkpoint::{Buffer, Tensor};
use crate::dtype;
use crate::method::{Input, Job, Pair, Params, Semantics, Settings};
use crate::methods;
use crate::plan::Model;
use crate::reduce::{self, blocks};
use mergeql_udfs::Result;
use rayon::prelude::*;
use std::sync::Arc;

/// Of one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The least element.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
    /// The standard deviation of the elements as a whole population.
    pub std: f64,
    /// The Euclidean length.
    pub norm: f64,
}

/// Least, greatest, mean, deviation and length; `None` for a tensor of nothing.
///
/// # Errors
/// As [`Tensor::read`].
pub fn summary(tensor: &Tensor) -> Result<Option<Summary>> {
    if tensor.is_empty() {
        return Ok(None);
    }
    let n = tensor.len() as f64;
    let sums = reduce::sum(tensor.len(), 2, |range, buffer: &mut Buffer, sums| {
        let values = tensor.view(range, buffer)?;
        sums[0] = reduce::sum_of(values, f64::from);
        sums[1] = reduce::dot(values, values);
        Ok(())
    })?;
    let mean = sums[0] / n;
    let spread = reduce::sum(tensor.len(), 1, |range, buffer: &mut Buffer, sums| {
        sums[0] = reduce::sum_of(tensor.view(range, buffer)?, |v| (f64::from(v) - mean) * (f64::from(v) - mean));
        Ok(())
    })?[0];
    let ends = blocks(tensor.len()).map_init(Buffer::default, |buffer, range| {
        let values = tensor.view(range, buffer)?;
        Ok(values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v))))
    });
    let (min, max) = ends.try_reduce(|| (f32::INFINITY, f32::NEG_INFINITY), |a, b| Ok((a.0.min(b.0), a.1.max(b.1))))?;
    let (min, max) = if min > max { (f32::NAN, f32::NAN) } else { (min, max) };
    Ok(Some(Summary { min: f64::from(min), max: f64::from(max), mean, std: (spread / n).sqrt(), norm: sums[1].sqrt() }))
}

/// Of two tensors of one shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// The cosine of the angle between them; 0 where one is nothing.
    pub cosine: f64,
    /// The length of their difference.
    pub l2: f64,
    /// The share of elements with the same sign, or both zero.
    pub sign_agreement: f64,
    /// The share of elements with opposite signs.
    pub conflict_share: f64,
    /// The greatest difference of two elements.
    pub max_abs: f64,
}

/// Compares two tensors of one shape.
///
/// # Errors
/// As [`Tensor::read`].
pub fn compare(a: &Tensor, b: &Tensor) -> Result<Comparison> {
    let sums = reduce::sum(a.len(), 6, |range, (x, y): &mut (Buffer, Buffer), sums| {
        let (x, y) = (a.view(range.clone(), x)?, b.view(range, y)?);
        sums[0] = reduce::dot(x, y);
        sums[1] = reduce::dot(x, x);
        sums[2] = reduce::dot(y, y);
        let pairs = || x.iter().zip(y);
        sums[3] = reduce::sum_of_two(x, y, |x, y| (f64::from(x) - f64::from(y)).powi(2));
        let sign = |v: f32| (v > 0.0) as i8 - (v < 0.0) as i8;
        sums[4] = pairs().filter(|(x, y)| sign(**x) == sign(**y)).count() as f64;
        sums[5] = pairs().filter(|(x, y)| sign(**x) * sign(**y) < 0).count() as f64;
        Ok(())
    })?;
    let furthest = blocks(a.len()).map_init(Default::default, |(x, y): &mut (Buffer, Buffer), range| {
        let (x, y) = (a.view(range.clone(), x)?, b.view(range, y)?);
        Ok(x.iter().zip(y).fold(0.0f32, |far, (x, y)| far.max((x - y).abs())))
    });
    let max_abs = f64::from(furthest.try_reduce(|| 0.0, |a, b| Ok(a.max(b)))?);
    let (n, norms) = (a.len().max(1) as f64, (sums[1] * sums[2]).sqrt());
    let cosine = if norms > 0.0 { (sums[0] / norms).clamp(-1.0, 1.0) } else { 0.0 };
    Ok(Comparison { cosine, l2: sums[3].sqrt(), sign_agreement: sums[4] / n, conflict_share: sums[5] / n, max_abs })
}

/// Of what several models changed in one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    /// Of the entries that two models or more changed, the share where they changed it in opposite directions.
    pub sign_conflict: f64,
    /// The share of entries of the task vectors that hardly matter: smaller than a tenth of the vector's root mean square.
    pub redundancy: f64,
    /// Each model's share of the squared lengths of all task vectors.
    pub shares: Vec<f64>,
    /// The length of each task vector.
    pub norms: Vec<f64>,
    /// The cosines between the task vectors, row by row.
    pub cosines: Vec<f64>,
}

/// How the models of a job, which has a base, differ.
///
/// # Errors
/// As [`Tensor::read`].
fn conflict_of(job: &Job<'_>) -> Result<Conflict> {
    let models = job.models.len();
    let gram = job.gram(true)?;
    let norms: Vec<f64> = (0..models).map(|i| gram.norm(i)).collect();
    let small: Vec<f32> = norms.iter().map(|norm| (norm / (job.len().max(1) as f64).sqrt() / 10.0) as f32).collect();
    let sums = reduce::sum(job.len(), 3, |range, scratch: &mut (Pair, Vec<u8>), sums| {
        let (pair, signs) = scratch;
        // Bits 0 and 1: some model went up, some went down; bit 2: a second model changed it.
        signs.clear();
        signs.resize(range.len(), 0);
        for (i, small) in small.iter().enumerate() {
            let delta = job.delta(i, range.clone(), pair)?;
            for (sign, d) in signs.iter_mut().zip(delta) {
                if *d != 0.0 {
                    *sign |= if *sign & 3 != 0 { 4 } else { 0 } | if *d > 0.0 { 1 } else { 2 };
                }
            }
            sums[2] += delta.iter().filter(|d| d.abs() < *small || **d == 0.0).count() as f64;
        }
        sums[0] = signs.iter().filter(|s| **s & 4 != 0).count() as f64;
        sums[1] = signs.iter().filter(|s| **s & 3 == 3).count() as f64;
        Ok(())
    })?;
    let total: f64 = norms.iter().map(|n| n * n).sum();
    let share = |norm: &f64| if total > 0.0 { norm * norm / total } else { 0.0 };
    Ok(Conflict {
        sign_conflict: if sums[0] > 0.0 { sums[1] / sums[0] } else { 0.0 },
        redundancy: sums[2] / (models * job.len().max(1)) as f64,
        shares: norms.iter().map(share).collect(),
        cosines: (0..models * models).map(|at| gram.cosine(at / models, at % models)).collect(),
        norms,
    })
}

/// How models differ from what they started from in one tensor; `None` where it isn't one of floats that all have in one shape.
///
/// # Errors
/// As [`Tensor::read`].
pub fn conflict(models: &[Model], base: &Model, name: &str) -> Result<Option<Conflict>> {
    let Some(tensor) = base.checkpoint.get(name).filter(|t| dtype::is_float(t.dtype)) else { return Ok(None) };
    let settings = Settings::new(methods::find("task_arithmetic")?.0, &Params::new(), Semantics::Paper, models.len())?;
    let input = |(place, model): (usize, &Model)| {
        let tensor = model.checkpoint.get(name).filter(|t| t.shape == tensor.shape && dtype::is_float(t.dtype))?;
        Some(Input { tensor: tensor.clone(), hash: [0; 32], place, model: place })
    };
    let inputs: Option<Vec<Input>> = models.iter().enumerate().map(input).collect();
    let Some(inputs) = inputs else { return Ok(None) };
    let of_base = Input { tensor: tensor.clone(), hash: [0; 32], place: usize::MAX, model: usize::MAX };
    let job = Job {
        name,
        shape: &tensor.shape,
        models: &inputs,
        base: Some(&of_base),
        settings: &settings,
        sides: Arc::default(),
        offset: 0,
        survey: None,
    };
    conflict_of(&job).map(Some)
}

/// How models differ from what they started from: for each tensor of floats that all have in one shape, by name.
///
/// # Errors
/// As [`Tensor::read`].
pub fn conflicts(models: &[Model], base: &Model) -> Result<Vec<(String, Conflict)>> {
    let names = base.checkpoint.tensors.keys();
    let found = names.map(|name| Ok(conflict(models, base, name)?.map(|found| (name.clone(), found))));
    Ok(found.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// What a merged model kept of what one model changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stability {
    /// How much of the model's change is in the merged one, along its own direction: 1 for all of it, 0 for nothing, less where it was
    /// turned round; `None` where the model changed nothing.
    pub retained: Option<f64>,
    /// The cosine between the two changes; 0 where one is nothing.
    pub cosine: f64,
    /// The length of what separates the merged model from this one.
    pub drift: f64,
}

/// Compares the change of a model with that of a merged one; all tensors have one shape.
///
/// # Errors
/// As [`Tensor::read`].
pub fn stability(model: &Tensor, merged: &Tensor, base: &Tensor) -> Result<Stability> {
    let sums = reduce::sum(base.len(), 4, |range, (buffers, own, all): &mut ([Buffer; 3], Vec<f32>, Vec<f32>), sums| {
        let [x, y, z] = buffers;
        let (model, merged) = (model.view(range.clone(), x)?, merged.view(range.clone(), y)?);
        let base = base.view(range, z)?;
        own.clear();
        own.extend(model.iter().zip(base).map(|(m, b)| m - b));
        all.clear();
        all.extend(merged.iter().zip(base).map(|(m, b)| m - b));
        sums[0] = reduce::dot(own, all);
        sums[1] = reduce::dot(own, own);
        sums[2] = reduce::dot(all, all);
        sums[3] = reduce::sum_of_two(model, merged, |a, b| (f64::from(a) - f64::from(b)).powi(2));
        Ok(())
    })?;
    let norms = (sums[1] * sums[2]).sqrt();
    Ok(Stability {
        retained: (sums[1] > 0.0).then(|| sums[0] / sums[1]),
        cosine: if norms > 0.0 { (sums[0] / norms).clamp(-1.0, 1.0) } else { 0.0 },
        drift: sums[3].sqrt(),
    })
}
