//! WUDI: the task vector that interferes least with every task's own subspace (Cheng et al. 2025, arXiv:2503.08099).

use crate::linalg::{self, Mat};
use crate::method::{Job, Kernel, Kind, Method, param};
use mergeql_udfs::{Error, Result};

pub const METHOD: Method = Method {
    name: "wudi",
    title: "least interference with the subspace of every task: the exact solution, or the published descent",
    paper: "Cheng et al. 2025, arXiv:2503.08099",
    params: &[
        param(
            "solver",
            Kind::Word(&["closed_form", "adam"]),
            "closed_form",
            "the exact minimum nearest to the sum, or the paper's descent from there",
        ),
        param("steps", Kind::Count, "300", "for adam: how many steps"),
        param("lr", Kind::Number, "1e-5", "for adam: the rate"),
    ],
    prepare,
    ..Method::COMMON
};

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let n = job.models.len();
    if job.shape.len() != 2 {
        return Ok(job.combine(vec![1.0 / n as f64; n], true));
    }
    let (rows, columns) = (job.shape[0], job.shape[1]);
    let (mut x, mut h, mut r) =
        (Mat::<f64>::zeros(rows, columns), Mat::<f64>::zeros(columns, columns), Mat::<f64>::zeros(rows, columns));
    for task in linalg::tasks(job)? {
        let task = task?;
        let size = linalg::inner(&task, &task);
        if size == 0.0 {
            continue;
        }
        let own = task.transpose() * &task;
        let own = Mat::from_fn(columns, columns, |i, j| own[(i, j)] / size);
        r += &task * &own;
        h += own;
        x += task;
    }
    if job.settings.word("solver") == Some("adam") {
        descend(&mut x, &h, &r, job.number("steps") as u64, job.number("lr"));
    } else {
        let slope = &x * &h - &r;
        let eigen = h
            .self_adjoint_eigen(faer::Side::Lower)
            .map_err(|_| Error::invalid_argument("the eigenvalues of a tensor could not be found"))?;
        let (values, vectors) = (eigen.S().column_vector(), eigen.U());
        let least = (0..columns).map(|i| values[i]).fold(0.0, f64::max) * columns as f64 * f64::EPSILON;
        let turned = slope * vectors;
        let turned = Mat::from_fn(rows, columns, |i, j| if values[j] > least { turned[(i, j)] / values[j] } else { 0.0 });
        x -= turned * vectors.transpose();
    }
    Ok(Kernel::Whole(linalg::onto_base(job, &x)?))
}

/// Adam (Kingma, Ba 2015, arXiv:1412.6980) on the paper's loss, whose gradient is 2 (X H - R).
fn descend(x: &mut Mat<f64>, h: &Mat<f64>, r: &Mat<f64>, steps: u64, rate: f64) {
    let (rows, columns) = (x.nrows(), x.ncols());
    let (mut first, mut second) = (Mat::<f64>::zeros(rows, columns), Mat::<f64>::zeros(rows, columns));
    let (beta1, beta2) = (0.9f64, 0.999f64);
    let (mut power1, mut power2) = (1.0, 1.0);
    for _ in 0..steps {
        let slope = &*x * h - r;
        (power1, power2) = (power1 * beta1, power2 * beta2);
        for j in 0..columns {
            for i in 0..rows {
                let g = 2.0 * slope[(i, j)];
                first[(i, j)] = beta1 * first[(i, j)] + (1.0 - beta1) * g;
                second[(i, j)] = beta2 * second[(i, j)] + (1.0 - beta2) * g * g;
                x[(i, j)] -= rate * (first[(i, j)] / (1.0 - power1)) / ((second[(i, j)] / (1.0 - power2)).sqrt() + 1e-8);
            }
        }
    }
}
