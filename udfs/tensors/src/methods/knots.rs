//! KnOTS: task matrices are aligned by the singular vectors of all of them side by side, and merged there (Stoica et al. 2025,
//! arXiv:2410.19735).

use crate::linalg::{self, Mat};
use crate::method::{Job, Kernel, Kind, LAMBDA, Method, WEIGHT, param};
use mergeql_udfs::Result;

pub const METHOD: Method = Method {
    name: "knots",
    aliases: &[("knots_ties", &[])],
    synonyms: &[("density", "topk")],
    title: "ties or the mean in the basis of all models' singular vectors",
    paper: "Stoica et al. 2025, arXiv:2410.19735",
    params: &[
        WEIGHT,
        LAMBDA,
        param("inner", Kind::Word(&["ties", "linear"]), "ties", "how the aligned blocks become one"),
        param("topk", Kind::Share, "1", "for ties: the share of each block that is kept, greatest magnitude first"),
    ],
    check: |job| if job.settings.word("inner") == Some("linear") { job.check_shares() } else { Ok(()) },
    prepare,
    ..Method::COMMON
};

/// The first `floor(share n) + 1` elements by magnitude, then by index, are kept: the authors keep the one at the threshold, too.
fn trim(block: &mut Mat<f64>, share: f64) {
    let (rows, columns) = (block.nrows(), block.ncols());
    let keep = (share * (rows * columns) as f64) as usize + 1;
    if keep >= rows * columns {
        return;
    }
    let mut order: Vec<usize> = (0..rows * columns).collect();
    let size = |at: &usize| block[(at / columns, at % columns)].abs();
    order.sort_by(|a, b| size(b).total_cmp(&size(a)).then(a.cmp(b)));
    for at in order.split_off(keep) {
        block[(at / columns, at % columns)] = 0.0;
    }
}

/// TIES of blocks: the sign of the weighted sum, and the mean of what agrees.
fn ties(blocks: &[Mat<f64>], weights: &[f64]) -> Mat<f64> {
    Mat::from_fn(blocks[0].nrows(), blocks[0].ncols(), |r, c| {
        let weighted = || blocks.iter().zip(weights).map(|(b, w)| (b[(r, c)] * w, *w));
        let sign = if weighted().map(|(v, _)| v).sum::<f64>() >= 0.0 { 1.0 } else { -1.0 };
        let (sum, divisor) = weighted().filter(|(v, _)| v * sign > 0.0).fold((0.0, 0.0), |(s, d), (v, w)| (s + v, d + w));
        if divisor.abs() < 1e-12 { 0.0 } else { sum / divisor }
    })
}

/// Merges matrices of one shape.
pub fn merge(tasks: &[Mat<f64>], weights: &[f64], inner: &str, topk: f64) -> Result<Mat<f64>> {
    let parts = linalg::svd(&linalg::beside(tasks))?;
    let columns = tasks[0].ncols();
    let mut blocks: Vec<Mat<f64>> =
        (0..tasks.len()).map(|i| Mat::from_fn(parts.s.len(), columns, |r, c| parts.s[r] * parts.v[(i * columns + c, r)])).collect();
    let merged = if inner == "linear" {
        let total: f64 = weights.iter().sum();
        Mat::from_fn(parts.s.len(), columns, |r, c| blocks.iter().zip(weights).map(|(b, w)| b[(r, c)] * w).sum::<f64>() / total)
    } else {
        blocks.iter_mut().for_each(|b| trim(b, topk));
        ties(&blocks, weights)
    };
    Ok(parts.u * merged)
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let weights = job.of_models("weight");
    let (inner, topk, lambda) = (job.settings.word("inner").unwrap_or("ties"), job.number("topk"), job.number("lambda"));
    if job.shape.len() != 2 {
        return Ok(job.combine(job.shares("weight")?.into_iter().map(|share| lambda * share).collect(), true));
    }
    let merged = merge(&linalg::tasks(job)?.collect::<Result<Vec<_>>>()?, &weights, inner, topk)?;
    Ok(Kernel::Whole(linalg::onto_base(job, &Mat::from_fn(merged.nrows(), merged.ncols(), |r, c| lambda * merged[(r, c)]))?))
}
