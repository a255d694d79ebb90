//! Rules that some wrong models cannot move far.

use crate::method::{Base, Gram, Job, Kernel, Kind, Method, Run, Survey, WEIGHT, param};
use crate::program::{Program, Rule};
use mergeql_udfs::{Error, Result};

/// The median of each entry (Yin et al. 2018, Byzantine-robust distributed learning, arXiv:1803.01498).
pub const MEDIAN: Method = Method {
    name: "coordinate_median",
    aliases: &[("median", &[])],
    title: "of each entry the median",
    paper: "Yin et al. 2018, arXiv:1803.01498",
    base: Base::None,
    reads_once: true,
    prepare: |job| Ok(median(job.models.len())),
    ..Method::COMMON
};

/// The mean of each entry without the extremes (Yin et al. 2018, arXiv:1803.01498).
pub const TRIMMED: Method = Method {
    name: "trimmed_mean",
    aliases: &[],
    title: "of each entry the mean, without the smallest and the greatest",
    params: &[param("trim", Kind::Count, "1", "how many are left out at each end")],
    check: |job| {
        let trim = job.number("trim") as usize;
        if 2 * trim < job.models.len() {
            return Ok(());
        }
        Err(Error::invalid_argument(format!("trim = {trim} leaves nothing of {} models", job.models.len()))
            .with_help("it must be less than half of them"))
    },
    // A model that is there twice counts once.
    prepare: |job| Ok(trimmed((job.number("trim") as usize).min((job.models.len() - 1) / 2))),
    ..MEDIAN
};

/// The kernel of the median of so many models.
pub(crate) fn median(models: usize) -> Kernel<'static> {
    let program = Program::Entries { rule: Rule::Middle, models: Vec::new() };
    Kernel::Program { program, run: without((models - 1) / 2) }
}

fn trimmed<'a>(trim: usize) -> Kernel<'a> {
    Kernel::Tiles { granule: 1, run: without(trim) }
}

/// The mean without so many at each end, in f64.
fn without<'a>(trim: usize) -> Run<'a> {
    Box::new(move |tile, out| {
        let mut values = vec![0.0f32; tile.models.len()];
        for (at, o) in out.iter_mut().enumerate() {
            values.iter_mut().zip(&tile.models).for_each(|(v, m)| *v = m[at]);
            values.sort_unstable_by(f32::total_cmp);
            let kept = &values[trim..values.len() - trim];
            *o = (kept.iter().map(|v| f64::from(*v)).sum::<f64>() / kept.len() as f64) as f32;
        }
        Ok(())
    })
}

/// Krum and Multi-Krum (Blanchard et al. 2017, Machine learning with adversaries, NeurIPS).
pub const KRUM: Method = Method {
    name: "krum",
    title: "the model whose nearest neighbours are nearest, or the mean of the best few",
    paper: "Blanchard et al. 2017, NeurIPS",
    base: Base::None,
    params: &[
        param("f", Kind::Count, "0", "how many models may be wrong"),
        param("m", Kind::Count, "1", "how many of the best are averaged"),
    ],
    check: |job| {
        let (n, f, m) = (job.models.len(), job.number("f") as usize, job.number("m") as usize);
        if n >= f + 3 && m > 0 && m + f <= n {
            return Ok(());
        }
        Err(Error::invalid_argument(format!("krum with f = {f} and m = {m} of {n} models"))
            .with_help("it needs f + 3 models, and m from 1 to those that are not wrong"))
    },
    prepare: krum,
    survey: Some((|_| true, products)),
    ..Method::COMMON
};

/// The geometric median (Pillutla, Kakade, Harchaoui 2022, Robust aggregation for federated learning, arXiv:1912.13445), by Weiszfeld's
/// iteration. The median lies in the span of the models, so it runs on their inner products.
pub const GEOMETRIC: Method = Method {
    name: "geometric_median",
    aliases: &[("rfa", &[])],
    title: "the point from which the distances to the models sum to the least, over all tensors",
    paper: "Pillutla, Kakade, Harchaoui 2022, arXiv:1912.13445",
    base: Base::None,
    params: &[
        WEIGHT,
        param("max_iter", Kind::Count, "1000", "the most steps taken"),
        param("tol", Kind::Number, "1e-10", "a step that changes no share by more is the last"),
    ],
    check: |job| job.check_shares(),
    prepare: geometric,
    survey: Some((|_| true, products)),
    ..Method::COMMON
};

/// The inner products of the models over all tensors, each less the first model: differences keep their digits.
fn products(jobs: &[Job<'_>]) -> Result<Survey> {
    let mut numbers = vec![0.0; jobs.first().map_or(0, |j| j.models.len() * j.models.len())];
    for job in jobs {
        let shifted = Job { base: job.models.first(), ..job.clone() };
        let gram = shifted.gram(true)?;
        for i in 0..gram.n {
            for j in 0..gram.n {
                numbers[i * gram.n + j] += gram.dot(i, j);
            }
        }
    }
    Ok(Survey { numbers, ..Survey::default() })
}

fn surveyed(job: &Job<'_>) -> Gram {
    Gram::new(job.models.len(), job.survey.map_or_else(Vec::new, |s| s.numbers.clone()))
}

fn krum<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let (n, f, m) = (job.models.len(), job.number("f") as usize, job.number("m") as usize);
    let gram = surveyed(job);
    let distance = |i: usize, j: usize| gram.dot(i, i) + gram.dot(j, j) - 2.0 * gram.dot(i, j);
    let mut scores: Vec<(f64, usize)> = (0..n)
        .map(|i| {
            let mut near: Vec<f64> = (0..n).filter(|j| *j != i).map(|j| distance(i, j)).collect();
            near.sort_unstable_by(f64::total_cmp);
            (near[..n.saturating_sub(f + 2).min(near.len())].iter().sum(), i)
        })
        .collect();
    scores.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut factors = vec![0.0; n];
    let best = m.min(n);
    scores[..best].iter().for_each(|(_, i)| factors[*i] = 1.0 / best as f64);
    Ok(job.combine(factors, false))
}

fn geometric<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let gram = surveyed(job);
    let weights = job.shares("weight")?;
    let mut shares = weights.clone();
    for _ in 0..job.number("max_iter") as u64 {
        let square = shares.iter().enumerate().map(|(i, s)| s * gram.dot_of(&shares, i)).sum::<f64>();
        let mut next: Vec<f64> = (0..gram.n)
            .map(|i| weights[i] / (square - 2.0 * gram.dot_of(&shares, i) + gram.dot(i, i)).max(0.0).sqrt().max(1e-12))
            .collect();
        let sum: f64 = next.iter().sum();
        next.iter_mut().for_each(|s| *s /= sum);
        let moved = next.iter().zip(&shares).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        shares = next;
        if moved < job.number("tol") {
            break;
        }
    }
    Ok(job.combine(shares, false))
}
