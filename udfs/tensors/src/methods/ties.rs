//! TIES: trim, elect sign, merge what agrees (Yadav et al. 2023, TIES-Merging, arXiv:2306.01708).

use super::task_vectors::{INT8_MASK, Sum, Thin, kernel};
use crate::method::{Job, Kernel, Kind, LAMBDA, Method, Pair, Semantics, Survey, WEIGHT, each, param};
use crate::program::Thinned;
use crate::select::{self, Cut};
use mergeql_udfs::Result;
use std::ops::Range;

pub const METHOD: Method = Method {
    name: "ties",
    aliases: &[("ties_global", &[("scope", "model")])],
    title: "the greatest changes of each model, where they agree with the sign of the weighted sum",
    paper: "Yadav et al. 2023, arXiv:2306.01708",
    params: &[
        WEIGHT,
        LAMBDA,
        each(
            "density",
            Kind::Share,
            "1",
            "the share of each task vector that is kept, greatest magnitude first; never less than one entry",
        ),
        param(
            "scope",
            Kind::Word(&["tensor", "model"]),
            "tensor",
            "whether the share is one of each tensor, or of the whole model",
        ),
        param("normalize", Kind::Flag, "true", "whether the sum is divided by the weights of the models that agree"),
        param("rescale", Kind::Flag, "false", "whether what is kept is scaled to the L1 norm of the whole"),
        INT8_MASK,
    ],
    prepare,
    survey: Some((|settings| settings.word("scope") == Some("model"), survey)),
    ..Method::COMMON
};

/// SPUNGE: models that each unlearned one thing are merged with TIES (Kadhe et al. 2024, Split, unlearn, merge, arXiv:2406.11780).
pub const UNLEARN: Method = Method {
    name: "split_unlearn",
    aliases: &[("spunge", &[])],
    title: "TIES of models that each unlearned a part, with the base that they all started from",
    paper: "Kadhe et al. 2024, arXiv:2406.11780",
    ..METHOD
};

/// How many of `n` a density keeps: never none, but for mergekit with a density of 0.
fn kept(density: f64, n: usize, semantics: Semantics) -> usize {
    let least = usize::from(semantics == Semantics::Paper || density > 0.0);
    ((density * n as f64) as usize).max(least).min(n)
}

/// Keeps what lies before a cut of each model, by magnitude, greatest first.
struct Greatest {
    cuts: Vec<Cut>,
    offset: usize,
}

impl Thin for Greatest {
    fn factors(&self, i: usize, range: Range<usize>, delta: &[f32], out: &mut [f32]) -> Result<()> {
        self.cuts[i].mark(delta, select::great_first, self.offset + range.start, out);
        Ok(())
    }

    fn program(&self, _: usize) -> Option<Vec<Thinned>> {
        Some(self.cuts.iter().map(|cut| Thinned::Greatest(*cut, self.offset)).collect())
    }
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let cuts = match job.survey {
        Some(survey) => survey.cuts.clone(),
        None => {
            let cut = |(i, density): (usize, f64)| {
                select::first(job.len(), kept(density, job.len(), job.settings.semantics), |range, keys, pair: &mut Pair| {
                    select::keys_of(job.delta(i, range, pair)?, select::great_first, keys);
                    Ok(())
                })
            };
            job.of_models("density").into_iter().enumerate().map(cut).collect::<Result<_>>()?
        }
    };
    let offset = if job.survey.is_some() { job.offset } else { 0 };
    kernel(job, Greatest { cuts, offset }, Sum::of(job, true, job.flag("rescale")), 1)
}

/// One cut for each model, over the elements of all tensors in the order of their names.
fn survey(jobs: &[Job<'_>]) -> Result<Survey> {
    let (Some(first), Some(last)) = (jobs.first(), jobs.last()) else { return Ok(Survey::default()) };
    let n = last.offset + last.len();
    let mut cuts = Vec::new();
    for (i, density) in first.of_models("density").into_iter().enumerate() {
        // The authors keep the entry at the threshold, too.
        let keep = (density * n as f64) as usize + 1;
        cuts.push(select::first(n, keep, |range, keys, pair: &mut Pair| {
            keys.clear();
            let mut index = jobs.partition_point(|job| job.offset + job.len() <= range.start);
            let mut at = range.start;
            while at < range.end {
                let job = &jobs[index];
                let end = range.end.min(job.offset + job.len());
                keys.extend(job.delta(i, at - job.offset..end - job.offset, pair)?.iter().map(|d| select::great_first(*d)));
                (at, index) = (end, index + 1);
            }
            Ok(())
        })?);
    }
    Ok(Survey { cuts, ..Survey::default() })
}
