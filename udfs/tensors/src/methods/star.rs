//! STAR: the small singular values of each task vector are dropped, the others scaled up (Lee et al. 2025, arXiv:2502.10339).

use crate::linalg::{self, Mat};
use crate::method::{Job, Kernel, Kind, Method, param};
use mergeql_udfs::Result;

pub const METHOD: Method = Method {
    name: "star",
    title: "the mean of what each model changed, without the small singular values",
    paper: "Lee et al. 2025, arXiv:2502.10339",
    params: &[
        param("eta", Kind::Number, "40", "singular values are kept, greatest first, until they sum to this percentage of all"),
        param("then", Kind::Word(&["mean"]), "mean", "how the truncated task vectors become one"),
    ],
    check: |job| {
        if (0.0..=100.0).contains(&job.number("eta")) {
            return Ok(());
        }
        Err(mergeql_udfs::Error::invalid_argument(format!("eta is a percentage, not {}", job.number("eta")))
            .with_help("write a number from 0 to 100"))
    },
    prepare,
    ..Method::COMMON
};

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let n = job.models.len();
    let share = job.number("eta") / 100.0;
    if job.shape.len() != 2 {
        return Ok(job.combine(vec![1.0 / n as f64; n], true));
    }
    let mut sum = Mat::<f64>::zeros(job.shape[0], job.shape[1]);
    for task in linalg::tasks(job)? {
        let parts = linalg::svd(&task?)?;
        let total: f64 = parts.s.iter().sum();
        let (mut kept, mut rank) = (0.0, 0);
        while rank < parts.s.len() && (rank == 0 || kept < share * total) {
            kept += parts.s[rank];
            rank += 1;
        }
        let scale = if kept > 0.0 { total / kept } else { 0.0 };
        sum += parts.with(&parts.s[..rank].iter().map(|s| s * scale / n as f64).collect::<Vec<_>>());
    }
    Ok(Kernel::Whole(linalg::onto_base(job, &sum)?))
}
