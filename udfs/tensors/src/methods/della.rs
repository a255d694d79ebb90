//! DELLA: entries are dropped with a probability that falls with their rank by magnitude (Deep, Bhardwaj, Poria 2024, DELLA-Merging,
//! arXiv:2406.11617).

use super::dare::{MASKS, RESCALE, SEED, masks, rescale, streams};
use super::task_vectors::{INT8_MASK, Sum, Thin, kernel};
use crate::checkpoint::{Buffer, Tensor};
use crate::method::{Job, Kernel, Kind, LAMBDA, Method, Pair, Param, Semantics, WEIGHT, each, param};
use crate::rng::{self, Philox};
use crate::select;
use mergeql_udfs::{Error, Result};
use std::ops::Range;

const PARAMS: &[Param] = &[
    WEIGHT,
    LAMBDA,
    each("density", Kind::Share, "1", "the mean probability with which an entry of a task vector is kept"),
    each(
        "epsilon",
        Kind::Share,
        "",
        "how far the probability lies from the mean for the smallest and the greatest of a row; 0 if it isn't given, with mergekit's numbers 0.15",
    ),
    SEED,
    param("rescale", RESCALE, "", "what is kept is divided by its own probability, scaled to the L1 norm of the whole, or left"),
    MASKS,
    param("normalize", Kind::Flag, "", "whether the sum is divided by the weights that took part"),
    param(
        "output",
        Kind::Word(&["merged", "keep_probability"]),
        "merged",
        "the merged tensor, or the probabilities of the first model",
    ),
    INT8_MASK,
];

pub const METHOD: Method = Method {
    name: "della",
    title: "what each model changed, thinned out by rank, where it agrees with the sign of the weighted sum",
    paper: "Deep, Bhardwaj, Poria 2024, arXiv:2406.11617",
    params: PARAMS,
    check,
    prepare: |job| prepare(job, true),
    ..Method::COMMON
};

pub const LINEAR: Method = Method {
    name: "della_linear",
    title: "what each model changed, thinned out by rank, summed",
    prepare: |job| prepare(job, false),
    ..METHOD
};

/// Rows run along the second axis; a tensor of one axis is one row. Entries of a row are `stride` apart.
#[derive(Debug, Clone, Copy)]
struct Rows {
    length: usize,
    stride: usize,
}

impl Rows {
    fn of(shape: &[usize]) -> Rows {
        match shape {
            [] => Rows { length: 1, stride: 1 },
            [n] => Rows { length: *n, stride: 1 },
            [_, n, rest @ ..] => Rows { length: *n, stride: rest.iter().product() },
        }
    }

    fn granule(self) -> usize {
        (self.length * self.stride).max(1)
    }
}

/// The probability of each entry of whole rows.
fn probabilities(rows: Rows, density: f64, epsilon: f64, delta: &[f32], out: &mut [f32]) {
    let mut order: Vec<(u32, u32)> = Vec::with_capacity(rows.length);
    for start in (0..delta.len()).step_by(rows.granule()) {
        for first in start..start + rows.stride {
            order.clear();
            order.extend((0..rows.length).map(|k| (select::small_first(delta[first + k * rows.stride]), k as u32)));
            order.sort_unstable();
            for (rank, (_, k)) in order.iter().enumerate() {
                let place = if rows.length > 1 { rank as f64 / (rows.length - 1) as f64 } else { 0.5 };
                out[first + *k as usize * rows.stride] = (density - epsilon + place * 2.0 * epsilon) as f32;
            }
        }
    }
}

struct Della {
    rows: Rows,
    masks: Option<Vec<Tensor>>,
    streams: Vec<Philox>,
    densities: Vec<f64>,
    epsilons: Vec<f64>,
    divide: bool,
}

impl Thin for Della {
    fn factors(&self, i: usize, range: Range<usize>, delta: &[f32], out: &mut [f32]) -> Result<()> {
        probabilities(self.rows, self.densities[i], self.epsilons[i], delta, out);
        let factor = |p: f32| if self.divide && p > 0.0 { 1.0 / p } else { 1.0 };
        match &self.masks {
            Some(masks) => {
                let mut buffer = Buffer::default();
                let mask = masks[i].view(range, &mut buffer)?;
                out.iter_mut().zip(mask).for_each(|(o, m)| *o = if *m != 0.0 { factor(*o) } else { 0.0 });
            }
            None => self.streams[i].for_each(range, |at, number| {
                let p = out[at];
                out[at] = if u64::from(number) < rng::limit(f64::from(p)) { factor(p) } else { 0.0 };
            }),
        }
        Ok(())
    }
}

fn epsilons(job: &Job<'_>) -> Vec<f64> {
    let usual = if job.settings.semantics == Semantics::Mergekit { 0.15 } else { 0.0 };
    job.models.iter().map(|m| job.settings.of_model("epsilon", m.place).unwrap_or(usual)).collect()
}

fn check(job: &Job<'_>) -> Result<()> {
    let (densities, epsilons) = (job.of_models("density"), epsilons(job));
    for (density, epsilon) in densities.iter().zip(&epsilons) {
        if density - epsilon < -1e-9 || density + epsilon > 1.0 + 1e-9 {
            return Err(Error::invalid_argument(format!(
                "density {density} with epsilon {epsilon} gives probabilities outside 0 to 1"
            ))
            .with_help("density - epsilon and density + epsilon must both lie between 0 and 1"));
        }
    }
    masks(job).map(|_| ())
}

fn prepare<'a>(job: &'a Job<'a>, consensus: bool) -> Result<Kernel<'a>> {
    let (densities, epsilons) = (job.of_models("density"), epsilons(job));
    let rows = Rows::of(job.shape);
    if job.settings.word("output") == Some("keep_probability") {
        let (density, epsilon) = (densities[0], epsilons[0]);
        return Ok(Kernel::Tiles {
            granule: rows.granule(),
            run: Box::new(move |tile, out| {
                let mut pair = Pair::default();
                probabilities(rows, density, epsilon, job.delta(0, tile.range.clone(), &mut pair)?, out);
                Ok(())
            }),
        });
    }
    let rescale = rescale(job);
    let thin = Della { rows, masks: masks(job)?, streams: streams(job), densities, epsilons, divide: rescale == "inv_p" };
    // The authors divide by the weights that agree; mergekit does when asked to.
    let normalize = job.settings.flag("normalize").unwrap_or(consensus && job.settings.semantics == Semantics::Paper);
    kernel(job, thin, Sum { normalize, ..Sum::of(job, consensus, rescale == "l1") }, rows.granule())
}
