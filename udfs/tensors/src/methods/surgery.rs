//! Surgery: the mean of the models plus what was stored to mend it, a low-rank correction of each task (Yang et al. 2024, Representation
//! Surgery for Multi-Task Model Merging, arXiv:2402.02705). What is linear in a correction goes into the weights here; the paper's own modules
//! have a nonlinearity between their factors, and so stay beside the model wherever it runs.

use crate::checkpoint::{Buffer, Checkpoint, Tensor};
use crate::made::{self, LowRank};
use crate::method::{Base, Job, Kernel, Kind, Method, WEIGHT, param};
use mergeql_udfs::{Error, Result};

pub const METHOD: Method = Method {
    name: "surgery",
    title: "the mean of the models plus the stored low-rank correction of each task",
    paper: "Yang et al. 2024, arXiv:2402.02705",
    base: Base::None,
    reads_once: true,
    params: &[
        WEIGHT,
        param(
            "corrections",
            Kind::Files,
            "!",
            "a file for each model, or one, with tensors `<tensor>.up` [rows, rank] and `<tensor>.down` [rank, columns] for matrices, or `<tensor>` for others; what a file lacks is not corrected",
        ),
        param("scale", Kind::Number, "1", "scales the corrections"),
    ],
    check: |job| {
        job.check_shares()?;
        files(job)?.iter().try_for_each(|file| correction(job, file).map(|_| ()))
    },
    prepare,
    ..Method::COMMON
};

/// The file of each model, in their order, or the one file there is.
fn files<'j>(job: &'j Job<'_>) -> Result<Vec<&'j Checkpoint>> {
    match job.sides.get("corrections").map_or(&[][..], Vec::as_slice) {
        [only] => Ok(vec![only]),
        _ => (0..job.models.len()).map(|i| job.side("corrections", i)).collect(),
    }
}

/// What a task adds to this tensor, if anything.
fn correction(job: &Job<'_>, file: &Checkpoint) -> Result<Option<Tensor>> {
    let factor = |end: &str| file.get(&format!("{}.{end}", job.name)).cloned();
    match (factor("up"), factor("down"), file.get(job.name)) {
        (Some(up), Some(down), None) => {
            let change = LowRank { up, down, scale: 1.0, transposed: false };
            made::product(job.name, job.shape, change).map(Some)
        }
        (None, None, Some(_)) => Ok(Some(job.side_tensor(file, job.name, job.shape)?.clone())),
        (None, None, None) => Ok(None),
        _ => Err(Error::invalid_argument(format!("`{}` has half of what corrects `{}`", file.path.display(), job.name))
            .with_help("a correction is two factors, `<tensor>.up` and `<tensor>.down`, or one tensor")),
    }
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let (shares, scale) = (job.shares("weight")?, job.number("scale") as f32);
    let mut corrections = Vec::new();
    for file in files(job)? {
        corrections.extend(correction(job, file)?);
    }
    let Kernel::Program { run: mean, program } = job.combine(shares, false) else {
        return Err(Error::invalid_argument("a mean is a sum"));
    };
    if corrections.is_empty() {
        return Ok(Kernel::Program { run: mean, program });
    }
    Ok(Kernel::Tiles {
        granule: job.shape.last().copied().unwrap_or(1).max(1),
        run: Box::new(move |tile, out| {
            mean(tile, out)?;
            let mut buffer = Buffer::default();
            for correction in &corrections {
                let part = correction.view(tile.range.clone(), &mut buffer)?;
                out.iter_mut().zip(part).for_each(|(o, c)| *o += scale * c);
            }
            Ok(())
        }),
    })
}
