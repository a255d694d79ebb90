//! DARE: drop and rescale (Yu et al. 2024, Language models are super Mario, arXiv:2311.03099).

use super::task_vectors::{INT8_MASK, NORMALIZE, Sum, Thin, kernel};
use crate::checkpoint::{Buffer, Tensor};
use crate::method::{Job, Kernel, Kind, LAMBDA, Method, Param, Semantics, WEIGHT, each, param};
use crate::program::Thinned;
use crate::rng::{self, Philox};
use mergeql_udfs::Result;
use std::ops::Range;

const PARAMS: &[Param] = &[
    WEIGHT,
    LAMBDA,
    each("density", Kind::Share, "1", "the probability with which an entry of a task vector is kept"),
    SEED,
    param("rescale", RESCALE, "", "what is kept is divided by its probability, scaled to the L1 norm of the whole, or left"),
    MASKS,
    NORMALIZE,
    INT8_MASK,
];

/// What random numbers start from.
pub const SEED: Param = param("seed", Kind::Count, "0", "another seed keeps other entries");
/// Masks in place of random numbers.
pub const MASKS: Param = param(
    "masks",
    Kind::File,
    "",
    "a file with tensors `<place>.<tensor>`, models counted from 0, that say which entries are kept, in place of random numbers",
);
/// The ways to rescale.
pub const RESCALE: Kind = Kind::Word(&["inv_p", "l1", "none"]);

pub const LINEAR: Method = Method {
    name: "dare_linear",
    title: "what each model changed, thinned out at random, summed",
    paper: "Yu et al. 2024, arXiv:2311.03099",
    reads_once: true,
    params: PARAMS,
    by_place: |settings| !settings.texts("masks").is_empty(),
    check: |job| masks(job).map(|_| ()),
    prepare: |job| prepare(job, false),
    ..Method::COMMON
};

pub const TIES: Method = Method {
    name: "dare_ties",
    title: "what each model changed, thinned out at random, where it agrees with the sign of the weighted sum",
    prepare: |job| prepare(job, true),
    ..LINEAR
};

/// How a method rescales: the paper's way, or mergekit's.
pub fn rescale<'a>(job: &'a Job<'_>) -> &'a str {
    let usual = if job.settings.semantics == Semantics::Mergekit { "l1" } else { "inv_p" };
    job.settings.word("rescale").unwrap_or(usual)
}

/// Masks from a file, in place of random numbers.
pub fn masks(job: &Job<'_>) -> Result<Option<Vec<Tensor>>> {
    let Some(file) = job.sides.get("masks").and_then(|files| files.first()) else { return Ok(None) };
    let of_model =
        |input: &crate::method::Input| job.side_tensor(file, &format!("{}.{}", input.place, job.name), job.shape).cloned();
    job.models.iter().map(of_model).collect::<Result<_>>().map(Some)
}

/// The random numbers of each model for this tensor.
pub fn streams(job: &Job<'_>) -> Vec<Philox> {
    let seed = job.number("seed") as u64;
    job.models.iter().map(|m| Philox::new(seed, &m.hash, job.name)).collect()
}

enum Kept {
    Masks(Vec<Tensor>),
    Random(Vec<Philox>),
}

struct Dare {
    kept: Kept,
    densities: Vec<f64>,
    divide: bool,
}

impl Dare {
    fn random(&self, i: usize, stream: Philox) -> Thinned {
        Thinned::Random { stream, limit: rng::limit(self.densities[i]), factor: self.factor(i) }
    }

    fn factor(&self, i: usize) -> f32 {
        let density = self.densities[i];
        if self.divide && density > 0.0 { (1.0 / density) as f32 } else { 1.0 }
    }
}

impl Thin for Dare {
    fn factors(&self, i: usize, range: Range<usize>, delta: &[f32], out: &mut [f32]) -> Result<()> {
        match &self.kept {
            Kept::Masks(masks) => {
                let (factor, mut buffer) = (self.factor(i), Buffer::default());
                let mask = masks[i].view(range, &mut buffer)?;
                out.iter_mut().zip(mask).for_each(|(o, m)| *o = if *m != 0.0 { factor } else { 0.0 });
            }
            Kept::Random(streams) => self.random(i, streams[i]).factors(range, delta, out),
        }
        Ok(())
    }

    fn program(&self, _: usize) -> Option<Vec<Thinned>> {
        match &self.kept {
            Kept::Masks(_) => None,
            Kept::Random(streams) => Some(streams.iter().enumerate().map(|(i, stream)| self.random(i, *stream)).collect()),
        }
    }
}

fn prepare<'a>(job: &'a Job<'a>, consensus: bool) -> Result<Kernel<'a>> {
    let kept = match masks(job)? {
        Some(masks) => Kept::Masks(masks),
        None => Kept::Random(streams(job)),
    };
    let rescale = rescale(job);
    let thin = Dare { kept, densities: job.of_models("density"), divide: rescale == "inv_p" };
    kernel(job, thin, Sum::of(job, consensus, rescale == "l1"), 1)
}
