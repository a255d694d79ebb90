//! Fisher-weighted averaging: each entry by how certain each model is of it (Matena, Raffel 2022, arXiv:2111.09832).

use crate::checkpoint::{Buffer, Tensor};
use crate::method::{Base, Job, Kernel, Kind, Method, Survey, WEIGHT, param};
use crate::reduce;
use mergeql_udfs::{Error, Result};

pub const METHOD: Method = Method {
    name: "fisher",
    title: "the mean of the models, each entry weighted by its Fisher information",
    paper: "Matena, Raffel 2022, arXiv:2111.09832",
    base: Base::None,
    synonyms: &[("lambda", "weight")],
    params: &[
        WEIGHT,
        param(
            "fisher",
            Kind::Files,
            "!",
            "the diagonal of the Fisher information of each model, a file with a tensor of the same name and shape",
        ),
        param("eps", Kind::Number, "1e-6", "added to the information of every entry"),
        param(
            "normalize_fisher",
            Kind::Flag,
            "false",
            "whether each model's information is divided by its length over all tensors",
        ),
    ],
    check: |job| {
        if job.number("eps") < 0.0 {
            return Err(Error::invalid_argument("`eps` of `fisher` is added to information, which is never below 0"));
        }
        job.check_shares()?;
        diagonals(job).map(|_| ())
    },
    prepare,
    survey: Some((|settings| settings.flag("normalize_fisher") == Some(true), survey)),
    ..Method::COMMON
};

fn diagonals(job: &Job<'_>) -> Result<Vec<Tensor>> {
    (0..job.models.len()).map(|i| job.side_tensor(job.side("fisher", i)?, job.name, job.shape).cloned()).collect()
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let diagonals = diagonals(job)?;
    let mut weights = job.of_models("weight");
    if let Some(survey) = job.survey {
        if let Some(i) = survey.numbers.iter().position(|sum| *sum == 0.0) {
            return Err(Error::invalid_argument(format!(
                "the information in `{}` is 0 throughout",
                job.side("fisher", i)?.path.display()
            ))
            .with_help("it cannot be divided by its length; leave the model out, or write normalize_fisher = false"));
        }
        let lengths: Vec<f64> = survey.numbers.iter().map(|sum| 1.0 / sum.sqrt()).collect();
        let total: f64 = lengths.iter().sum();
        weights.iter_mut().zip(lengths).for_each(|(w, l)| *w *= l / total);
    }
    let eps = job.number("eps");
    Ok(Kernel::Tiles {
        granule: 1,
        run: Box::new(move |tile, out| {
            // In f64: information spans many orders of magnitude.
            let (mut sums, mut divisors, mut buffer) = (vec![0.0f64; out.len()], vec![0.0f64; out.len()], Buffer::default());
            for (i, model) in tile.models.iter().enumerate() {
                let information = diagonals[i].view(tile.range.clone(), &mut buffer)?;
                if let Some(at) = information.iter().position(|f| *f < 0.0) {
                    return Err(Error::invalid_argument(format!(
                        "tensor `{}` of `{}` is below 0 at element {}",
                        diagonals[i].name(),
                        diagonals[i].file().display(),
                        tile.range.start + at
                    ))
                    .with_help("Fisher information is a mean of squares"));
                }
                for (at, (m, f)) in model.iter().zip(information).enumerate() {
                    let weight = weights[i] * (f64::from(*f) + eps);
                    sums[at] += weight * f64::from(*m);
                    divisors[at] += weight;
                }
            }
            for (at, o) in out.iter_mut().enumerate() {
                // Where nobody knows anything, the plain mean.
                let mean = || tile.models.iter().map(|m| f64::from(m[at])).sum::<f64>() / tile.models.len() as f64;
                *o = if divisors[at] == 0.0 { mean() } else { sums[at] / divisors[at] } as f32;
            }
            Ok(())
        }),
    })
}

/// The squared length of each model's information, over all tensors.
fn survey(jobs: &[Job<'_>]) -> Result<Survey> {
    let mut numbers = vec![0.0; jobs.first().map_or(0, |job| job.models.len())];
    for job in jobs {
        for (number, diagonal) in numbers.iter_mut().zip(diagonals(job)?) {
            *number += reduce::sum(job.len(), 1, |range, buffer: &mut Buffer, sums| {
                let values = diagonal.view(range, buffer)?;
                sums[0] = reduce::dot(values, values);
                Ok(())
            })?[0];
        }
    }
    Ok(Survey { numbers, ..Survey::default() })
}
