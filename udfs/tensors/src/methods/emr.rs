//! EMR: elect one task vector, mask it for each task, rescale (Huang et al. 2024, EMR-Merging, arXiv:2405.17461).

use crate::checkpoint::{Checkpoint, Elements, Tensor};
use crate::dtype::Dtype;
use crate::method::{Input, Job, Kernel, Kind, Method, Pair, Survey, param};
use crate::plan::{How, Merge, Plan, Task};
use crate::program::{Program, Rule};
use crate::reduce;
use mergeql_udfs::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

pub const METHOD: Method = Method {
    name: "emr",
    title: "the sign of the sum with the greatest magnitude that agrees; or that vector as one task sees it",
    paper: "Huang et al. 2024, arXiv:2405.17461",
    params: &[
        param("output", Kind::Word(&["unified", "task"]), "unified", "the unified model, or the one of a task"),
        param("task", Kind::Count, "0", "which model's task, from 0, in the order of the statement"),
        param("masks", Kind::Flag, "false", "whether each task's masks and rescaler are written beside the model, for `emr_task`"),
    ],
    by_place: |settings| settings.word("output") == Some("task"),
    check: |job| if job.settings.word("output") == Some("task") { task(job).map(|_| ()) } else { Ok(()) },
    prepare,
    along: Some(("emr.safetensors", beside)),
    survey: Some((|settings| settings.word("output") == Some("task"), survey)),
    ..Method::COMMON
};

/// The unified task vector of some entries: a sum of 0 counts as negative, as with the authors.
fn unified(deltas: &[Vec<f32>], at: usize) -> f32 {
    let sign = if deltas.iter().map(|d| d[at]).sum::<f32>() > 0.0 { 1.0 } else { -1.0 };
    // Not `max`, which may give either of two zeros.
    sign * deltas.iter().map(|d| d[at] * sign).fold(0.0, |most, along| if along > most { along } else { most })
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
    let scale = job.survey.map_or(1.0, |survey| scale(&survey.numbers));
    Ok(kernel(task, scale))
}

/// The kernel of the unified vector, or of what a task sees of it, by its rescaler.
pub(crate) fn kernel(task: Option<usize>, scale: f32) -> Kernel<'static> {
    Kernel::Program {
        program: Program::Entries { rule: Rule::Elected(task.map(|task| (task, scale))), models: Vec::new() },
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
    }
}

/// The L1 norms of a task's own vector, and of the unified one under its mask, over all tensors.
fn norms<'a, 'b: 'a>(jobs: impl Iterator<Item = (&'a Job<'b>, usize)>) -> Result<Vec<f64>> {
    let mut numbers = vec![0.0; 2];
    for (job, task) in jobs {
        let sums = reduce::sum(job.len(), 2, |range, pair: &mut Pair, sums| {
            let deltas: Vec<Vec<f32>> =
                (0..job.models.len()).map(|i| Ok(job.delta(i, range.clone(), pair)?.to_vec())).collect::<Result<_>>()?;
            sums[0] = reduce::sum_of(&deltas[task], |d| f64::from(d.abs()));
            sums[1] = reduce::lanes((0..range.len()).map(|at| {
                let vector = unified(&deltas, at);
                if deltas[task][at] * vector > 0.0 { f64::from(vector.abs()) } else { 0.0 }
            }));
            Ok(())
        })?;
        numbers.iter_mut().zip(sums).for_each(|(n, s)| *n += s);
    }
    Ok(numbers)
}

fn scale(norms: &[f64]) -> f32 {
    if norms[1] > 0.0 { (norms[0] / norms[1]) as f32 } else { 1.0 }
}

fn survey(jobs: &[Job<'_>]) -> Result<Survey> {
    let tasks: Vec<usize> = jobs.iter().map(task).collect::<Result<_>>()?;
    Ok(Survey { numbers: norms(jobs.iter().zip(tasks))?, ..Survey::default() })
}

/// The unified model as one task sees it, by the masks and the rescaler that were written with it.
pub const TASK: Method = Method {
    name: "emr_task",
    title: "the unified model of emr as one of its tasks sees it",
    paper: "Huang et al. 2024, arXiv:2405.17461",
    models: (1, 1),
    reads_once: true,
    params: &[
        param("masks", Kind::File, "!", "the file `emr.safetensors` that emr(masks = true) wrote"),
        param("task", Kind::Name, "!", "the name of the task's model"),
    ],
    check: |job| seen(job).map(|_| ()),
    prepare: |job| {
        let (mask, scale) = seen(job)?;
        let scale = scale.first()?.unwrap_or(1.0);
        Ok(Kernel::Tiles {
            granule: 8,
            run: Box::new(move |tile, out| {
                let mut bits = vec![0; tile.range.len().div_ceil(8)];
                if let Some(mask) = &mask {
                    mask.raw(tile.range.start as u64 / 8, &mut bits)?;
                }
                for (at, o) in out.iter_mut().enumerate() {
                    let (model, base) = (tile.models[0][at], tile.base[at]);
                    *o = if bits[at / 8] >> (at % 8) & 1 == 1 { base + scale * (model - base) } else { base };
                }
                Ok(())
            }),
        })
    },
    ..Method::COMMON
};

/// The name of a task in front of a point: a point of its own is written as `%2E`, so that no two masks share a name.
fn written(task: &str) -> String {
    task.replace('%', "%25").replace('.', "%2E")
}

fn mask_name(task: &str, tensor: &str) -> String {
    format!("{}.{tensor}.mask", written(task))
}

fn scale_name(task: &str) -> String {
    format!("{}.rescaler", written(task))
}

/// The tasks that a file of masks has.
fn tasks_of(file: &Checkpoint) -> Vec<String> {
    let tasks = file.tensors.keys().filter_map(|name| name.strip_suffix(".rescaler")).filter(|task| !task.contains('.'));
    tasks.map(|task| task.replace("%2E", ".").replace("%25", "%")).collect()
}

/// The mask of a tensor, if the task's model had it, and the rescaler of the task.
fn seen<'a>(job: &Job<'a>) -> Result<(Option<Tensor>, Tensor)> {
    let file = job.sides.get("masks").and_then(|files| files.first());
    let file =
        file.ok_or_else(|| Error::invalid_argument("the masks are in no file").with_help("masks = 'merged/emr.safetensors'"))?;
    let task = job.settings.word("task").unwrap_or_default();
    if file.get(&scale_name(task)).is_none() {
        return Err(Error::invalid_argument(format!("`{}` knows no task `{task}`", file.path.display()))
            .with_help(format!("it has {}", tasks_of(file).join(", "))));
    }
    let scale = job.side_tensor(file, &scale_name(task), &[1])?.clone();
    // A task whose model lacked the tensor changes nothing of it.
    if file.get(&mask_name(task, job.name)).is_none() && tasks_of(file).iter().any(|t| file.get(&mask_name(t, job.name)).is_some())
    {
        return Ok((None, scale));
    }
    let mask = job.side_tensor(file, &mask_name(task, job.name), &[job.len().div_ceil(8)])?;
    if mask.dtype != Dtype::U8 {
        return Err(Error::type_mismatch(format!("tensor `{}` of `{}` holds no bits", mask.name(), file.path.display())));
    }
    Ok((Some(mask.clone()), scale))
}

/// Whether each entry of the unified vector goes the way of one task: a bit each, the first the lowest of its byte.
#[derive(Debug)]
struct Mask {
    /// The tensor, as it is merged.
    task: Arc<Task>,
    /// Which of the models.
    of: usize,
}

impl Mask {
    fn merge(&self) -> Result<&Merge> {
        match &self.task.how {
            How::Merge(merge) => Ok(merge),
            _ => Err(Error::invalid_argument(format!("tensor `{}` was not merged", self.task.name))),
        }
    }
}

impl Elements for Mask {
    fn read(&self, _: std::ops::Range<usize>, _: &mut [f32]) -> Result<()> {
        Err(Error::type_mismatch(format!("the mask of `{}` holds bits, no numbers", self.task.name)))
    }

    fn raw(&self, from: u64, out: &mut [u8]) -> Result<()> {
        let job = self.merge()?.job(&self.task);
        let start = from as usize * 8;
        let range = start..(start + out.len() * 8).min(job.len());
        let mut pair = Pair::default();
        let deltas: Vec<Vec<f32>> =
            (0..job.models.len()).map(|i| Ok(job.delta(i, range.clone(), &mut pair)?.to_vec())).collect::<Result<_>>()?;
        out.fill(0);
        for at in 0..range.len() {
            out[at / 8] |= u8::from(deltas[self.of][at] * unified(&deltas, at) > 0.0) << (at % 8);
        }
        Ok(())
    }

    fn source(&self) -> Option<&Tensor> {
        self.merge().ok()?.models.get(self.of).map(|input| &input.tensor)
    }
}

/// The L1 norm of a task's vector over that of the unified one under its masks, over all tensors.
#[derive(Debug)]
struct Rescaler {
    tasks: Vec<Arc<Task>>,
    /// Which of the plan's models.
    model: usize,
    found: OnceLock<f32>,
}

impl Elements for Rescaler {
    fn read(&self, _: std::ops::Range<usize>, out: &mut [f32]) -> Result<()> {
        if self.found.get().is_none() {
            let jobs: Vec<(Job<'_>, usize)> = self
                .tasks
                .iter()
                .filter_map(|task| match &task.how {
                    How::Merge(merge) => Some((merge.job(task), merge.models.iter().position(|m| m.model == self.model)?)),
                    _ => None,
                })
                .collect();
            let norms = norms(jobs.iter().map(|(job, of)| (job, *of)))?;
            let _ = self.found.set(scale(&norms));
        }
        out.fill(self.found.get().copied().unwrap_or(1.0));
        Ok(())
    }

    fn source(&self) -> Option<&Tensor> {
        None
    }
}

/// What emr(masks = true) writes beside the model: for each task a mask of each tensor, and one rescaler.
fn beside(plan: &Plan) -> Option<Plan> {
    let wanted = |task: &&Task| match &task.how {
        How::Merge(merge) => merge.method.name == METHOD.name && merge.settings.flag("masks") == Some(true),
        _ => false,
    };
    let merged: Vec<Arc<Task>> = plan.tasks.iter().filter(wanted).cloned().map(Arc::new).collect();
    let mut tasks: BTreeMap<String, Task> = BTreeMap::new();
    let mut add = |tensor: Tensor| {
        let task = Task {
            name: tensor.name().to_owned(),
            shape: tensor.shape.clone(),
            dtype: tensor.dtype,
            how: How::Made { by: METHOD.name, with: String::new(), from: Vec::new(), reads: 0, tensor },
        };
        tasks.insert(task.name.clone(), task);
    };
    for task in &merged {
        let How::Merge(merge) = &task.how else { continue };
        for (of, Input { model, .. }) in merge.models.iter().enumerate() {
            let name = &plan.models[*model].name;
            let mask = Arc::new(Mask { task: task.clone(), of });
            add(Tensor::made(&mask_name(name, &task.name), Dtype::U8, &[task.len().div_ceil(8)], mask));
            let rescaler = Rescaler { tasks: merged.clone(), model: *model, found: OnceLock::new() };
            add(Tensor::made(&scale_name(name), Dtype::F32, &[1], Arc::new(rescaler)));
        }
    }
    (!tasks.is_empty()).then(|| Plan { tasks: tasks.into_values().collect(), notes: Vec::new(), ..plan.clone() })
}
