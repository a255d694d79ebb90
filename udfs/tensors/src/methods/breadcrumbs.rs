//! Model Breadcrumbs: both tails of a task vector are dropped (Davari, Belilovsky 2023, arXiv:2312.06795).

use super::task_vectors::{INT8_MASK, NORMALIZE, Sum, Thin, kernel};
use crate::method::{Job, Kernel, Kind, LAMBDA, Method, Pair, Param, WEIGHT, each, param};
use crate::program::Thinned;
use crate::select::{self, Cut};
use mergeql_udfs::Result;
use std::ops::Range;

const PARAMS: &[Param] = &[
    WEIGHT,
    LAMBDA,
    each("density", Kind::Share, "1", "the share of each task vector that is kept"),
    each("gamma", Kind::Share, "0.01", "the share of greatest magnitude that is dropped as outliers"),
    NORMALIZE,
    param("rescale", Kind::Flag, "false", "whether what is kept is scaled to the L1 norm of the whole"),
    INT8_MASK,
];

pub const METHOD: Method = Method {
    name: "breadcrumbs",
    title: "what each model changed, without the greatest and the smallest entries, summed",
    paper: "Davari, Belilovsky 2023, arXiv:2312.06795",
    params: PARAMS,
    prepare: |job| prepare(job, false),
    ..Method::COMMON
};

pub const TIES: Method = Method {
    name: "breadcrumbs_ties",
    title: "what each model changed, without the greatest and the smallest entries, where it agrees with the sign of the weighted sum",
    prepare: |job| prepare(job, true),
    ..METHOD
};

/// Keeps the entries between two cuts of each model, smallest magnitude first.
struct Between(Vec<(Cut, Cut)>);

impl Thin for Between {
    fn factors(&self, i: usize, range: Range<usize>, delta: &[f32], out: &mut [f32]) -> Result<()> {
        let (from, to) = self.0[i];
        Thinned::Between(from, to).factors(range, delta, out);
        Ok(())
    }

    fn program(&self, _: usize) -> Option<Vec<Thinned>> {
        Some(self.0.iter().map(|(from, to)| Thinned::Between(*from, *to)).collect())
    }
}

fn prepare<'a>(job: &'a Job<'a>, consensus: bool) -> Result<Kernel<'a>> {
    let n = job.len();
    let mut cuts = Vec::new();
    for (i, (density, gamma)) in job.of_models("density").into_iter().zip(job.of_models("gamma")).enumerate() {
        let (keep, top) = ((density * n as f64) as usize, (gamma * n as f64) as usize);
        let first = n.saturating_sub(keep + top);
        let cut = |k: usize| {
            select::first(n, k, |range, keys, pair: &mut Pair| {
                select::keys_of(job.delta(i, range, pair)?, select::small_first, keys);
                Ok(())
            })
        };
        cuts.push((cut(first)?, cut(first + keep)?));
    }
    kernel(job, Between(cuts), Sum::of(job, consensus, job.flag("rescale")), 1)
}
