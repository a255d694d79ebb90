//! RegMean: the linear layer whose outputs are nearest to those of all models on their own inputs (Jin et al. 2023, arXiv:2212.09849).

use crate::linalg::{self, Mat};
use crate::method::{Base, Job, Kernel, Kind, Method, param};
use mergeql_udfs::{Error, Result};

pub const METHOD: Method = Method {
    name: "regmean",
    title: "least squares over the inputs of each layer; tensors without a Gram matrix are averaged",
    paper: "Jin et al. 2023, arXiv:2212.09849",
    base: Base::None,
    synonyms: &[("reduce_non_diagonal", "alpha")],
    params: &[
        param(
            "gram",
            Kind::Files,
            "!",
            "the inner products of the inputs of each layer of each model, a file with a tensor [in, in] of the layer's name",
        ),
        param("alpha", Kind::Share, "0.9", "what elements off the diagonal are multiplied by"),
    ],
    check: |job| {
        let n = job.models.len();
        (0..n).try_for_each(|i| job.side("gram", i).map(|_| ()))?;
        let width = if known(job) { job.shape[1] } else { return Ok(()) };
        (0..n).try_for_each(|i| job.side_tensor(job.side("gram", i)?, job.name, &[width, width]).map(|_| ()))
    },
    prepare,
    ..Method::COMMON
};

/// Whether some model has a Gram matrix for the tensor: then all must.
fn known(job: &Job<'_>) -> bool {
    let has = |i: usize| job.side("gram", i).is_ok_and(|file| file.get(job.name).is_some());
    job.shape.len() == 2 && (0..job.models.len()).any(has)
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let n = job.models.len();
    if !known(job) {
        return Ok(job.combine(vec![1.0 / n as f64; n], false));
    }
    let (alpha, width) = (job.number("alpha"), job.shape[1]);
    let (mut left, mut right) = (Mat::<f64>::zeros(job.shape[0], width), Mat::<f64>::zeros(width, width));
    for i in 0..n {
        let gram = linalg::matrix(job.side_tensor(job.side("gram", i)?, job.name, &[width, width])?)?;
        let gram = Mat::from_fn(width, width, |r, c| if r == c { gram[(r, c)] } else { alpha * gram[(r, c)] });
        left += linalg::matrix(&job.models[i].tensor)? * &gram;
        right += gram;
    }
    // X right = left, so right^T X^T = left^T.
    let solved = linalg::solve(right.transpose().to_owned(), left.transpose().to_owned()).ok_or_else(|| {
        Error::invalid_argument(format!("the Gram matrices of tensor `{}` sum to one without an inverse", job.name))
            .with_help("make them from more inputs than the layer has, or write a smaller alpha")
    })?;
    Ok(Kernel::Whole(linalg::elements(solved.transpose())))
}
