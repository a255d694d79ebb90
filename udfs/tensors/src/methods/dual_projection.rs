//! Dual projections: the running model and a new one are merged so that each keeps its own row and column space (Yang et al. 2025, Dual
//! projections for continual merging, NeurIPS).
//!
//! With fixed shares a and 1 - a the objective sum a_i (|S_i U_i^T (X - T_i)|^2 + |(X - T_i) V_i S_i|^2) has its minimum where
//! A X + X B = C, a Sylvester equation whose A and B are symmetric: it is solved in their eigenvectors, of which there are no more than the
//! kept singular vectors of the two models.

use crate::linalg::{self, Mat};
use crate::method::{Job, Kernel, Kind, Method, param};
use mergeql_udfs::Result;

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
    let mut c = Mat::<f64>::zeros(rows, columns);
    // A and B as sums of squared, weighted vectors: they are never made where they are larger than the tensor.
    let (mut lefts, mut rights) = (Vec::new(), Vec::new());
    for (task, share) in linalg::tasks(job)?.zip(shares) {
        let task = task?;
        let parts = linalg::svd(&task)?;
        let total: f64 = parts.s.iter().sum();
        let mut held = 0.0;
        let rank = parts.s.iter().position(|s| {
            held += s;
            held > job.number("svd_epsilon") * total
        });
        // A change of one direction is held, not lost.
        let rank = rank.unwrap_or(parts.s.len()).max(1);
        let values = &parts.s[..rank];
        let left = scaled_columns(&parts.u, values.iter().map(|s| share.sqrt() * s));
        let right = scaled_columns(&parts.v, values.iter().map(|s| share.sqrt() * s));
        c += &left * (left.transpose() * &task) + (&task * &right) * right.transpose();
        lefts.push(left);
        rights.push(right);
    }
    let (left, right) = (Space::of(&linalg::beside(&lefts))?, Space::of(&linalg::beside(&rights))?);
    let least = 1e-10 * (left.greatest() + right.greatest());
    let inverse = |v: f64| if v > least { 1.0 / v } else { 0.0 };
    // In the vectors of both; outside of one of them the other stands alone, and outside of both nothing is wanted.
    let in_left = left.vectors.transpose() * &c;
    let mut both = &in_left * &right.vectors;
    let left_alone = in_left - &both * right.vectors.transpose();
    let right_alone = &c * &right.vectors - &left.vectors * &both;
    for j in 0..both.ncols() {
        for i in 0..both.nrows() {
            both[(i, j)] *= inverse(left.values[i] + right.values[j]);
        }
    }
    let merged = &left.vectors * (both * right.vectors.transpose())
        + scaled_columns(&left.vectors, left.values.iter().map(|v| inverse(*v))) * left_alone
        + scaled_columns(&right_alone, right.values.iter().map(|v| inverse(*v))) * right.vectors.transpose();
    Ok(Kernel::Whole(linalg::onto_base(job, &merged)?))
}

/// The eigenvectors and eigenvalues of m m^T, of those vectors that m spans.
struct Space {
    vectors: Mat<f64>,
    values: Vec<f64>,
}

impl Space {
    fn of(m: &Mat<f64>) -> Result<Space> {
        let parts = linalg::svd(m)?;
        Ok(Space { vectors: parts.u, values: parts.s.iter().map(|s| s * s).collect() })
    }

    fn greatest(&self) -> f64 {
        self.values.first().copied().unwrap_or(0.0)
    }
}

/// Each column times its factor; columns without one are left out.
fn scaled_columns(matrix: &Mat<f64>, factors: impl Iterator<Item = f64>) -> Mat<f64> {
    let factors: Vec<f64> = factors.collect();
    Mat::from_fn(matrix.nrows(), factors.len(), |r, c| matrix[(r, c)] * factors[c])
}
