//! Fusion by importance: entries whose change matters by size and by how the distribution of their row moved are taken, the others are not.
//! As mergekit documents it; the quantiles are exact at any size.

use crate::method::{Job, Kernel, Method, Pair};
use crate::select;
use mergeql_udfs::Result;
use rayon::prelude::*;

pub const METHOD: Method = Method {
    name: "arcee_fusion",
    title: "the changes of the model that stand out by size and by the divergence of their row",
    paper: "mergekit",
    models: (1, 1),
    prepare,
    ..Method::COMMON
};

/// exp(v) over its sum, plus 1e-8.
fn softmax(values: &[f32]) -> Vec<f64> {
    let top = values.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let exps: Vec<f64> = values.iter().map(|v| f64::from(v - top).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|e| e / sum + 1e-8).collect()
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let n = job.len();
    let width = job.shape.last().copied().unwrap_or(1).max(1);
    let base = job.base()?;
    let divergence = |row: usize, (model, other): &mut (crate::checkpoint::Buffer, crate::checkpoint::Buffer)| -> Result<f32> {
        let range = row * width..(row + 1) * width;
        let p = softmax(job.models[0].tensor.view(range.clone(), model)?);
        let q = softmax(base.view(range, other)?);
        Ok(p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>() as f32)
    };
    let rows: Vec<f32> = (0..n / width)
        .into_par_iter()
        .map_init(Default::default, |buffers, row| divergence(row, buffers))
        .collect::<Result<_>>()?;
    let importance = move |delta: f32, index: usize, rows: &[f32]| delta.abs() * rows[index / width];
    let quantile = |share: f64| -> Result<f32> {
        let rank = (share * n.saturating_sub(1) as f64) as usize;
        let key = select::key_at(n, rank, |range, keys, pair: &mut Pair| {
            keys.clear();
            let delta = job.delta(0, range.clone(), pair)?;
            keys.extend(delta.iter().enumerate().map(|(at, d)| select::by_value(importance(*d, range.start + at, &rows))));
            Ok(())
        })?;
        Ok(select::value_of(key))
    };
    let (low, middle, high) = (quantile(0.25)?, quantile(0.5)?, quantile(0.75)?);
    let threshold = middle + 1.5 * (high - low);
    Ok(Kernel::Tiles {
        granule: 1,
        run: Box::new(move |tile, out| {
            for (at, (o, (m, b))) in out.iter_mut().zip(tile.models[0].iter().zip(tile.base)).enumerate() {
                let delta = m - b;
                *o = if importance(delta, tile.range.start + at, &rows) >= threshold { b + delta } else { *b };
            }
            Ok(())
        }),
    })
}
