//! TSV-M: the leading singular vectors of each task, made orthogonal to those of the others (Gargiulo et al. 2025, Task singular vectors,
//! arXiv:2412.00081).

use crate::linalg::{self, Mat};
use crate::method::{Job, Kernel, Kind, Method, param};
use mergeql_udfs::Result;

pub const METHOD: Method = Method {
    name: "tsv_m",
    title: "the leading singular vectors of each task, made orthogonal to each other",
    paper: "Gargiulo et al. 2025, arXiv:2412.00081",
    params: &[param("alpha", Kind::Number, "1", "scales the merged task vector")],
    prepare,
    ..Method::COMMON
};

/// The components with orthogonal vectors nearest to these.
pub fn orthogonal(u: &[Mat<f64>], s: &[f64], v: &[Mat<f64>]) -> Result<Mat<f64>> {
    let u = linalg::nearest_orthogonal(&linalg::beside(u))?;
    let v = linalg::nearest_orthogonal(&linalg::beside(v))?;
    let scaled = Mat::from_fn(u.nrows(), s.len(), |r, c| u[(r, c)] * s[c]);
    Ok(scaled * v.transpose())
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let (n, alpha) = (job.models.len(), job.number("alpha"));
    if job.shape.len() != 2 {
        return Ok(job.combine(vec![alpha / n as f64; n], true));
    }
    let (mut u, mut s, mut v) = (Vec::new(), Vec::new(), Vec::new());
    for task in linalg::tasks(job)? {
        let parts = linalg::svd(&task?)?;
        let rank = (parts.s.len() / n).max(1);
        u.push(parts.u.get(.., ..rank).to_owned());
        v.push(parts.v.get(.., ..rank).to_owned());
        s.extend(parts.s[..rank].iter().map(|s| alpha * s));
    }
    Ok(Kernel::Whole(linalg::onto_base(job, &orthogonal(&u, &s, &v)?)?))
}
