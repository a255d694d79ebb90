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
    by_place: |settings| !settings.texts("masks").is_empty(),
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

/// Sorts (key, place) pairs, packed into one number each, by key, and leaves equal keys as they stand: a radix sort by bytes. `room` is as long.
fn sort_by_key(pairs: &mut Vec<u64>, room: &mut Vec<u64>) {
    let mut counts = [[0u32; 256]; 4];
    for pair in pairs.iter() {
        for (byte, counts) in counts.iter_mut().enumerate() {
            counts[(pair >> (32 + 8 * byte)) as usize & 0xff] += 1;
        }
    }
    for (byte, counts) in counts.iter_mut().enumerate() {
        if counts.iter().any(|count| *count as usize == pairs.len()) {
            continue;
        }
        let mut start = 0;
        for count in counts.iter_mut() {
            start += std::mem::replace(count, start);
        }
        for pair in pairs.iter() {
            let next = &mut counts[(pair >> (32 + 8 * byte)) as usize & 0xff];
            room[*next as usize] = *pair;
            *next += 1;
        }
        std::mem::swap(pairs, room);
    }
}

/// Calls `each(rank, place)` for each entry of whole rows, its rank by magnitude among those of its row, smallest first; of equals the first
/// by place.
fn ranked(rows: Rows, delta: &[f32], mut each: impl FnMut(usize, usize)) {
    let (mut order, mut room) = (vec![0u64; rows.length], vec![0u64; rows.length]);
    for start in (0..delta.len()).step_by(rows.granule()) {
        for first in start..start + rows.stride {
            for (k, pair) in order.iter_mut().enumerate() {
                *pair = u64::from(select::small_first(delta[first + k * rows.stride])) << 32 | k as u64;
            }
            sort_by_key(&mut order, &mut room);
            for (rank, pair) in order.iter().enumerate() {
                each(rank, first + *pair as u32 as usize * rows.stride);
            }
        }
    }
}

/// The probability of each rank of a row.
fn probabilities(rows: Rows, density: f64, epsilon: f64) -> Vec<f32> {
    let of_rank = |rank: usize| {
        let place = if rows.length > 1 { rank as f64 / (rows.length - 1) as f64 } else { 0.5 };
        (density - epsilon + place * 2.0 * epsilon) as f32
    };
    (0..rows.length).map(of_rank).collect()
}

struct Della {
    rows: Rows,
    masks: Option<Vec<Tensor>>,
    streams: Vec<Philox>,
    densities: Vec<f64>,
    epsilons: Vec<f64>,
    divide: bool,
    plain: bool,
}

impl Thin for Della {
    fn factors(&self, i: usize, range: Range<usize>, delta: &[f32], out: &mut [f32]) -> Result<()> {
        // With mergekit's numbers all or nothing is no question of ranks.
        if self.plain && [0.0, 1.0].contains(&self.densities[i]) {
            out.fill(self.densities[i] as f32);
            return Ok(());
        }
        let kept = probabilities(self.rows, self.densities[i], self.epsilons[i]);
        let factor = |p: &f32| if self.divide && *p > 0.0 { 1.0 / p } else { 1.0 };
        let factors: Vec<f32> = kept.iter().map(factor).collect();
        match &self.masks {
            Some(masks) => {
                let mut buffer = Buffer::default();
                let mask = masks[i].view(range, &mut buffer)?;
                ranked(self.rows, delta, |rank, at| out[at] = if mask[at] != 0.0 { factors[rank] } else { 0.0 });
            }
            None => {
                let limits: Vec<u64> = kept.iter().map(|p| rng::limit(f64::from(*p))).collect();
                let mut numbers = vec![0u32; out.len()];
                self.streams[i].for_each(range, |from, some| numbers[from..from + some.len()].copy_from_slice(some));
                ranked(self.rows, delta, |rank, at| {
                    out[at] = if u64::from(numbers[at]) < limits[rank] { factors[rank] } else { 0.0 };
                });
            }
        }
        Ok(())
    }
}

/// How far probabilities lie from the mean where a config of mergekit doesn't say.
pub const MERGEKIT_EPSILON: f64 = 0.15;

fn epsilons(job: &Job<'_>) -> Vec<f64> {
    let usual = if job.settings.semantics == Semantics::Mergekit { MERGEKIT_EPSILON } else { 0.0 };
    job.models.iter().map(|m| job.settings.of_model("epsilon", m.place).unwrap_or(usual)).collect()
}

/// Whether a density of 0 or 1 keeps nothing or all, whatever epsilon is.
fn plain(job: &Job<'_>) -> bool {
    job.settings.semantics == Semantics::Mergekit
}

fn check(job: &Job<'_>) -> Result<()> {
    let (densities, epsilons) = (job.of_models("density"), epsilons(job));
    for (density, epsilon) in densities.iter().zip(&epsilons).filter(|(d, _)| !(plain(job) && [0.0, 1.0].contains(*d))) {
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
                let kept = probabilities(rows, density, epsilon);
                ranked(rows, job.delta(0, tile.range.clone(), &mut pair)?, |rank, at| out[at] = kept[rank]);
                Ok(())
            }),
        });
    }
    let rescale = rescale(job);
    let thin = Della {
        rows,
        masks: masks(job)?,
        streams: streams(job),
        densities,
        epsilons,
        divide: rescale == "inv_p",
        plain: plain(job),
    };
    // The authors divide by the weights that agree, and so does mergekit.
    let normalize = job.settings.flag("normalize").unwrap_or(consensus);
    kernel(job, thin, Sum { normalize, ..Sum::of(job, consensus, rescale == "l1") }, rows.granule())
}
