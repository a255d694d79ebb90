//! Isotropic merging: the merged task matrix gets a flat spectrum (Marczak et al. 2025, No task left behind, arXiv:2502.04959).

use super::tsv_m::orthogonal;
use crate::linalg::{self, Mat};
use crate::method::{Job, Kernel, Kind, Method, param};
use mergeql_udfs::Result;

/// Iso-C.
pub const C: Method = Method {
    name: "iso_c",
    title: "the sum of what the models changed, with all singular values at their mean",
    paper: "Marczak et al. 2025, arXiv:2502.04959",
    params: &[param("alpha", Kind::Number, "1", "scales the merged task vector")],
    prepare: common,
    ..Method::COMMON
};

/// Iso-CTS.
pub const CTS: Method = Method {
    name: "iso_cts",
    title: "as iso_c, with room for directions that one task alone has",
    params: &[
        param("alpha", Kind::Number, "1", "scales the merged task vector"),
        param("common_space_fraction", Kind::Share, "0.8", "the share of the directions that is common"),
    ],
    prepare: common_and_own,
    ..C
};

fn sum(job: &Job<'_>) -> Result<Mat<f64>> {
    let mut tasks = linalg::tasks(job)?;
    let first = tasks.next().unwrap_or_else(|| Ok(Mat::zeros(job.shape[0], job.shape[1])))?;
    tasks.try_fold(first, |sum, task| Ok(sum + task?))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn averaged<'a>(job: &'a Job<'a>) -> Kernel<'a> {
    let n = job.models.len();
    job.combine(vec![job.number("alpha") / n as f64; n], true)
}

fn common<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    if job.shape.len() != 2 {
        return Ok(averaged(job));
    }
    let parts = linalg::svd(&sum(job)?)?;
    let flat = vec![job.number("alpha") * mean(&parts.s); parts.s.len()];
    Ok(Kernel::Whole(linalg::onto_base(job, &parts.with(&flat))?))
}

fn common_and_own<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    if job.shape.len() != 2 {
        return Ok(averaged(job));
    }
    let parts = linalg::svd(&sum(job)?)?;
    let rank = parts.s.len();
    // Each task gets as many directions of its own as divide what is not common, to the nearest.
    let wanted = (rank as f64 * job.number("common_space_fraction")) as usize;
    let n = job.models.len();
    let own = ((rank - wanted) as f64 / n as f64).round_ties_even() as usize;
    let shared = rank.saturating_sub(own * n);
    let u_shared = parts.u.get(.., ..shared).to_owned();
    let (mut u, mut s, mut v) = (Vec::new(), Vec::new(), Vec::new());
    for task in linalg::tasks(job)? {
        let task = task?;
        let rest = &task - &u_shared * (u_shared.transpose() * &task);
        let rest = linalg::svd(&rest)?;
        u.push(rest.u.get(.., ..own).to_owned());
        v.push(rest.v.get(.., ..own).to_owned());
        s.extend_from_slice(&rest.s[..own]);
    }
    u.push(u_shared);
    v.push(parts.v.get(.., ..shared).to_owned());
    s.extend_from_slice(&parts.s[..shared]);
    let flat = vec![job.number("alpha") * mean(&s); s.len()];
    Ok(Kernel::Whole(linalg::onto_base(job, &orthogonal(&u, &flat, &v)?)?))
}
