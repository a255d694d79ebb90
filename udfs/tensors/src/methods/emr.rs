//! EMR: elect one task vector, mask it for each task, rescale (Huang et al. 2024, EMR-Merging, arXiv:2405.17461).

use crate::method::{Job, Kernel, Kind, Method, Pair, Survey, param};
use crate::reduce;
use mergeql_udfs::{Error, Result};

pub const METHOD: Method = Method {
    name: "emr",
    title: "the sign of the sum with the greatest magnitude that agrees; or that vector as one task sees it",
    paper: "Huang et al. 2024, arXiv:2405.17461",
    params: &[
        param("output", Kind::Word(&["unified", "task"]), "unified", "the unified model, or the one of a task"),
        param("task", Kind::Count, "0", "which model's task, from 0, in the order of the statement"),
    ],
    check: |job| if job.settings.word("output") == Some("task") { task(job).map(|_| ()) } else { Ok(()) },
    prepare,
    survey: Some((|settings| settings.word("output") == Some("task"), survey)),
    ..Method::COMMON
};

/// The unified task vector of some entries: a sum of 0 counts as negative, as with the authors.
fn unified(deltas: &[Vec<f32>], at: usize) -> f32 {
    let sign = if deltas.iter().map(|d| d[at]).sum::<f32>() > 0.0 { 1.0 } else { -1.0 };
    sign * deltas.iter().map(|d| d[at] * sign).fold(0.0, f32::max)
}

fn task(job: &Job<'_>) -> Result<usize> {
    let place = job.number("task") as usize;
    job.models.iter().position(|m| m.place == place).ok_or_else(|| {
        Error::invalid_argument(format!("there is no task {place}: {} models take part", job.models.len()))
            .with_help("tasks count from 0")
    })
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let task = if job.settings.word("output") == Some("task") { Some(task(job)?) } else { None };
    let scale = match job.survey {
        Some(survey) if survey.numbers[1] > 0.0 => (survey.numbers[0] / survey.numbers[1]) as f32,
        _ => 1.0,
    };
    Ok(Kernel::Tiles {
        granule: 1,
        run: Box::new(move |tile, out| {
            let deltas: Vec<Vec<f32>> = tile.models.iter().map(|m| m.iter().zip(tile.base).map(|(m, b)| m - b).collect()).collect();
            for (at, o) in out.iter_mut().enumerate() {
                let vector = unified(&deltas, at);
                *o = tile.base[at]
                    + match task {
                        Some(task) if deltas[task][at] * vector > 0.0 => scale * vector,
                        Some(_) => 0.0,
                        None => vector,
                    };
            }
            Ok(())
        }),
    })
}

/// The L1 norms of the task's own vector, and of the unified one under its mask, over all tensors.
fn survey(jobs: &[Job<'_>]) -> Result<Survey> {
    let mut numbers = vec![0.0; 2];
    for job in jobs {
        let task = task(job)?;
        let sums = reduce::sum(job.len(), 2, |range, pair: &mut Pair, sums| {
            let deltas: Vec<Vec<f32>> =
                (0..job.models.len()).map(|i| Ok(job.delta(i, range.clone(), pair)?.to_vec())).collect::<Result<_>>()?;
            sums[0] = reduce::lanes(deltas[task].iter().map(|d| f64::from(d.abs())));
            sums[1] = reduce::lanes((0..range.len()).map(|at| {
                let vector = unified(&deltas, at);
                if deltas[task][at] * vector > 0.0 { f64::from(vector.abs()) } else { 0.0 }
            }));
            Ok(())
        })?;
        numbers.iter_mut().zip(sums).for_each(|(n, s)| *n += s);
    }
    Ok(Survey { numbers, ..Survey::default() })
}
