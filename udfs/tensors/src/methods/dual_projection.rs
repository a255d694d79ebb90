//! Dual projections: the running model and a new one are merged so that each keeps its own row and column space (Yang et al. 2025, Dual
//! projections for continual merging, NeurIPS).
//!
//! With fixed shares a and 1 - a the objective sum a_i (|S_i U_i^T (X - T_i)|^2 + |(X - T_i) V_i S_i|^2) has its minimum where
//! A X + X B = C, a Sylvester equation whose A and B are symmetric: it is solved in their eigenvectors.

use crate::linalg::{self, Mat};
use crate::method::{Job, Kernel, Kind, Method, param};
use mergeql_udfs::{Error, Result};

pub const METHOD: Method = Method {
    name: "dual_projection",
    aliases: &[("dop", &[])],
    title: "the running model and a new one, each kept in its own row and column space",
    paper: "Yang et al. 2025, NeurIPS",
    models: (2, 2),
    ordered: true,
    params: &[
        param("alpha", Kind::Share, "0.8", "how much the running model, the first, counts"),
        param(
            "svd_epsilon",
            Kind::Share,
            "0.99999",
            "a space holds the singular values, greatest first, that sum to less than this share of all",
        ),
        param("space", Kind::Word(&["uv"]), "uv", "both spaces are kept"),
        param("solver", Kind::Word(&["sylvester"]), "sylvester", "the exact solution"),
    ],
    prepare,
    ..Method::COMMON
};

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let alpha = job.number("alpha");
    let shares = [alpha, 1.0 - alpha];
    if job.shape.len() != 2 {
        return Ok(job.combine(vec![0.5, 0.5], true));
    }
    let (rows, columns) = (job.shape[0], job.shape[1]);
    let (mut a, mut b, mut c) =
        (Mat::<f64>::zeros(rows, rows), Mat::<f64>::zeros(columns, columns), Mat::<f64>::zeros(rows, columns));
    for (task, share) in linalg::tasks(job)?.into_iter().zip(shares) {
        let parts = linalg::svd(&task)?;
        let total: f64 = parts.s.iter().sum();
        let mut held = 0.0;
        let rank = parts.s.iter().position(|s| {
            held += s;
            held > job.number("svd_epsilon") * total
        });
        let squares: Vec<f64> = parts.s[..rank.unwrap_or(parts.s.len())].iter().map(|s| s * s).collect();
        let (left, right) = (weighted(&parts.u, &squares), weighted(&parts.v, &squares));
        c += scaled(&(&left * &task + &task * &right), share);
        a += scaled(&left, share);
        b += scaled(&right, share);
    }
    let failed = |_| Error::invalid_argument("the eigenvalues of a tensor could not be found");
    let (a, b) =
        (a.self_adjoint_eigen(faer::Side::Lower).map_err(failed)?, b.self_adjoint_eigen(faer::Side::Lower).map_err(failed)?);
    let turned = a.U().transpose() * c * b.U();
    let (x, y) = (a.S().column_vector(), b.S().column_vector());
    let solved = Mat::from_fn(rows, columns, |i, j| {
        let sum = x[i] + y[j];
        if sum > 1e-10 { turned[(i, j)] / sum } else { 0.0 }
    });
    let merged = a.U() * solved * b.U().transpose();
    Ok(Kernel::Whole(linalg::onto_base(job, &merged)?))
}

/// vectors diag(squares) vectors^T
fn weighted(vectors: &Mat<f64>, squares: &[f64]) -> Mat<f64> {
    let scaled = Mat::from_fn(vectors.nrows(), squares.len(), |r, c| vectors[(r, c)] * squares[c]);
    scaled * vectors.get(.., ..squares.len()).transpose()
}

fn scaled(matrix: &Mat<f64>, factor: f64) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |r, c| factor * matrix[(r, c)])
}
