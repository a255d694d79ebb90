//! AdaRank: of each task matrix the singular components that a mask keeps (Lee et al. 2025, arXiv:2503.22178).

use crate::linalg::{self, Mat};
use crate::method::{Job, Kernel, Kind, LAMBDA, Method, param};
use mergeql_udfs::{Error, Result};

pub const METHOD: Method = Method {
    name: "adarank",
    title: "the base plus the singular components of each task matrix that a mask keeps",
    paper: "Lee et al. 2025, arXiv:2503.22178",
    params: &[
        LAMBDA,
        param(
            "masks",
            Kind::File,
            "!",
            "a file with tensors `<place>.<tensor>`, models counted from 0, of as many elements as there are singular values, greatest first; 0 drops one",
        ),
    ],
    by_place: |_| true,
    check: |job| if job.shape.len() == 2 { masks(job).map(|_| ()) } else { Ok(()) },
    prepare,
    ..Method::COMMON
};

fn masks(job: &Job<'_>) -> Result<Vec<Vec<f32>>> {
    let file = job.sides.get("masks").and_then(|files| files.first());
    let file = file.ok_or_else(|| Error::invalid_argument("the masks are in no file").with_help("masks = 'file.safetensors'"))?;
    let rank = job.shape[0].min(job.shape[1]);
    job.models.iter().map(|m| job.side_tensor(file, &format!("{}.{}", m.place, job.name), &[rank])?.all()).collect()
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let (n, lambda) = (job.models.len(), job.number("lambda"));
    if job.shape.len() != 2 {
        return Ok(job.combine(vec![lambda / n as f64; n], true));
    }
    let mut sum = Mat::<f64>::zeros(job.shape[0], job.shape[1]);
    for (task, mask) in linalg::tasks(job)?.zip(masks(job)?) {
        let parts = linalg::svd(&task?)?;
        let kept: Vec<f64> = parts.s.iter().zip(&mask).map(|(s, m)| if *m != 0.0 { lambda * s } else { 0.0 }).collect();
        sum += parts.with(&kept);
    }
    Ok(Kernel::Whole(linalg::onto_base(job, &sum)?))
}
