//! OPCM: each further model adds what is orthogonal to the leading subspace of what is merged so far (Tang et al. 2025, Merging models on
//! the fly, arXiv:2501.09522).
//!
//! The published recurrence scales the running vector down after each step and up again before the next, so the sum of the projected task
//! vectors needs scaling once, at the end: to the mean length of the task vectors, over all tensors.

use crate::linalg::{self, Mat};
use crate::method::{Job, Kernel, Kind, Method, Survey, param};
use mergeql_udfs::Result;

pub const METHOD: Method = Method {
    name: "opcm",
    title: "one model after the other, each without what lies in the leading subspace of those before",
    paper: "Tang et al. 2025, arXiv:2501.09522",
    ordered: true,
    params: &[param("alpha", Kind::Share, "0.5", "the share of the singular values that the leading subspace holds")],
    prepare,
    survey: Some((|_| true, survey)),
    ..Method::COMMON
};

/// The sum of the task matrices, each projected.
fn sum(job: &Job<'_>) -> Result<Mat<f64>> {
    let mut tasks = linalg::tasks(job)?;
    let mut sum = tasks.next().unwrap_or_else(|| Ok(Mat::zeros(job.shape[0], job.shape[1])))?;
    for task in tasks {
        let task = task?;
        let parts = linalg::svd(&sum)?;
        let total: f64 = parts.s.iter().sum();
        let mut held = 0.0;
        let lead = parts.s.iter().position(|s| {
            held += s;
            held > job.number("alpha") * total
        });
        let lead = lead.unwrap_or(parts.s.len());
        // Within the leading vectors all of it goes, and of the others what goes the same way: vectors of no length are anyone's.
        let least = 1e-12 * parts.s.first().copied().unwrap_or(0.0);
        let mut inside = parts.u.transpose() * &task * &parts.v;
        for i in 0..inside.nrows() {
            for j in 0..inside.ncols() {
                let same = i == j && parts.s[i] > least;
                if !same && (i >= lead || j >= lead) {
                    inside[(i, j)] = 0.0;
                }
            }
        }
        sum += task - &parts.u * inside * parts.v.transpose();
    }
    Ok(sum)
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let n = job.models.len();
    let numbers = job.survey.map_or(&[][..], |s| &s.numbers);
    let mean = numbers.iter().skip(1).map(|sum| sum.sqrt()).sum::<f64>() / n as f64;
    let length = numbers.first().map_or(0.0, |sum| sum.sqrt());
    let scale = if length > 0.0 { mean / length } else { 1.0 };
    if job.shape.len() != 2 {
        return Ok(job.combine(vec![scale; n], true));
    }
    let merged = sum(job)?;
    Ok(Kernel::Whole(linalg::onto_base(job, &Mat::from_fn(merged.nrows(), merged.ncols(), |r, c| scale * merged[(r, c)]))?))
}

/// The squared lengths of the merged vector and of each task vector, over all tensors.
fn survey(jobs: &[Job<'_>]) -> Result<Survey> {
    let n = jobs.first().map_or(0, |job| job.models.len());
    let mut numbers = vec![0.0; n + 1];
    for job in jobs {
        let gram = job.gram(true)?;
        for i in 0..n {
            numbers[i + 1] += gram.dot(i, i);
        }
        numbers[0] += if job.shape.len() == 2 {
            let merged = sum(job)?;
            linalg::inner(&merged, &merged)
        } else {
            let length = gram.norm_of(&vec![1.0; n]);
            length * length
        };
    }
    Ok(Survey { numbers, ..Survey::default() })
}
