//! Merges whose coefficients a training run found: per tensor (AdaMerging), per column (DAM). The training is elsewhere; the merge is here.

use crate::checkpoint::Tensor;
use crate::method::{Base, Job, Kernel, Kind, Method, param};
use mergeql_udfs::{Error, Result};

/// AdaMerging (Yang et al. 2024, arXiv:2310.02575).
pub const ADA: Method = Method {
    name: "adamerging",
    title: "the base plus what each model changed, by coefficients per tensor that a training run found",
    paper: "Yang et al. 2024, arXiv:2310.02575",
    params: &[param(
        "coefficients",
        Kind::File,
        "!",
        "a file with a tensor [models] for each name: the coefficient of each model, in their order",
    )],
    by_place: |_| true,
    check: |job| coefficients(job, &[]).map(|_| ()),
    prepare: |job| Ok(job.combine(ordered(job, &coefficients(job, &[])?.all()?), true)),
    ..Method::COMMON
};

/// Differentiable adaptive merging (Gauthier-Caron et al. 2024, arXiv:2410.08371).
pub const DAM: Method = Method {
    name: "dam",
    title: "the sum of the models, each column by coefficients that a training run found",
    paper: "Gauthier-Caron et al. 2024, arXiv:2410.08371",
    base: Base::None,
    params: &[param(
        "coefficients",
        Kind::File,
        "!",
        "a file with a tensor [models, columns] for each name: the coefficient of each model's columns, in their order; a column is a place of the last axis",
    )],
    by_place: |_| true,
    check: |job| coefficients(job, &columns(job)).map(|_| ()),
    prepare,
    ..Method::COMMON
};

fn columns(job: &Job<'_>) -> [usize; 1] {
    [job.shape.last().copied().unwrap_or(1)]
}

/// The coefficients of all models as they are written, whether or not each has this tensor.
fn coefficients(job: &Job<'_>, rest: &[usize]) -> Result<Tensor> {
    let file = job.sides.get("coefficients").and_then(|files| files.first());
    let file = file
        .ok_or_else(|| Error::invalid_argument("the coefficients are in no file").with_help("coefficients = 'file.safetensors'"))?;
    let shape: Vec<usize> = std::iter::once(job.settings.models).chain(rest.iter().copied()).collect();
    job.side_tensor(file, job.name, &shape).cloned()
}

/// In the order in which the models are summed.
fn ordered(job: &Job<'_>, values: &[f32]) -> Vec<f64> {
    job.models.iter().map(|m| f64::from(values[m.place])).collect()
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let [width] = columns(job);
    let values = coefficients(job, &[width])?.all()?;
    let rows: Vec<&[f32]> = if width == 0 { Vec::new() } else { values.chunks_exact(width).collect() };
    let rows: Vec<Vec<f32>> = job.models.iter().filter_map(|m| rows.get(m.place).map(|r| r.to_vec())).collect();
    Ok(Kernel::Tiles {
        granule: width.max(1),
        run: Box::new(move |tile, out| {
            out.fill(0.0);
            for (model, row) in tile.models.iter().zip(&rows) {
                for (out, model) in out.chunks_exact_mut(width).zip(model.chunks_exact(width)) {
                    out.iter_mut().zip(model.iter().zip(row)).for_each(|(o, (m, c))| *o += c * m);
                }
            }
            Ok(())
        }),
    })
}
