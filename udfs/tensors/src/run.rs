//! Carries a plan out: surveys, computes tiles on all threads while the last ones are written, and resumes where a
//! killed run stopped.

use crate::cache::{Cache, Entry};
use crate::checkpoint::{Buffer, Tensor};
use crate::dtype;
use crate::method::{Input, Job, Kernel, Prepare, Run, Settings, Survey, Tile};
use crate::output::{Layout, Writer};
use crate::plan::{Backend, How, Merge, Plan, Task};
use crate::program::Program;
use crate::sealed::{Sealed, differs};
use mergeql_udfs::merkle::Hash;
use mergeql_udfs::{Code, Error, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// What each gave, or the first error in their order: which thread is faster decides nothing.
pub(crate) fn in_order<T: Send>(results: impl IndexedParallelIterator<Item = Result<T>>) -> Result<Vec<T>> {
    results.collect::<Vec<_>>().into_iter().collect()
}

/// Bytes of one read: what stays in a core's own cache.
pub(crate) const READ: u64 = 256 << 10;

/// Starts the threads that compute, for a host that minds how they start. Without it they start when they are first needed.
pub fn start_threads() {
    rayon::current_num_threads();
}

/// The most bytes of a file of a folder, unless something else is said.
const SHARD: u64 = 5_000_000_000;

/// How far a run is.
#[derive(Debug, Clone)]
pub struct Progress<'a> {
    /// What is being done.
    pub doing: &'static str,
    /// The tensor.
    pub tensor: &'a str,
    /// Bytes written.
    pub done: u64,
    /// Bytes to write.
    pub total: u64,
    /// Tensors that were begun, and how many there are.
    pub tensors: (usize, usize),
}

/// A tensor that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Its name.
    pub name: String,
    /// The hash of its bytes.
    pub sha256: Hash,
    /// Whether an earlier run had written it.
    pub resumed: bool,
}

/// Elements of a tile: at most as many as are worked on at once, as fit, and whole granules.
fn tile_size(granule: usize, inputs: usize, memory: u64, most: usize) -> usize {
    // Two buffers of each input, its bytes, and the output.
    let threads = rayon::current_num_threads() as u64;
    let fits = memory / 2 / threads / (4 * (2 * inputs as u64 + 4));
    let wanted = (fits as usize).clamp(1 << 12, most);
    (wanted / granule).max(1) * granule
}

/// Elements of a tile that stay in a core's own cache.
const CACHED: usize = 1 << 15;

/// Where programs run.
enum Device {
    Cpu,
    #[cfg(feature = "gpu")]
    Gpu(&'static crate::gpu::Gpu),
}

impl Device {
    /// The device that a plan asks for, and why it is another than that: the bytes are the same on each.
    fn of(backend: Backend) -> (Device, Option<String>) {
        match backend {
            Backend::Auto | Backend::Cpu => (Device::Cpu, None),
            #[cfg(feature = "gpu")]
            Backend::Gpu => match crate::gpu::gpu() {
                Ok(gpu) => (Device::Gpu(gpu), None),
                Err(error) => (Device::Cpu, Some(error.message)),
            },
            #[cfg(not(feature = "gpu"))]
            Backend::Gpu => (Device::Cpu, Some("this program was built without its GPU backend".to_owned())),
        }
    }

    #[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
    fn tile_size(&self, inputs: usize) -> usize {
        match self {
            Device::Cpu => CACHED,
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => gpu.tile_size(inputs),
        }
    }

    /// Whether the device computed a tile.
    #[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
    fn run(&self, program: &Program, tile: &Tile<'_>, out: &mut [f32]) -> bool {
        match self {
            Device::Cpu => false,
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => gpu.run(program, tile, out),
        }
    }
}

/// Where this plan's elements are computed, for people.
pub fn backend(plan: &Plan) -> String {
    match Device::of(plan.options.backend) {
        (Device::Cpu, None) => "cpu".to_owned(),
        (Device::Cpu, Some(why)) => format!("cpu, not the gpu that was asked for: {why}"),
        #[cfg(feature = "gpu")]
        (Device::Gpu(gpu), _) => {
            let software = if gpu.software { ", a program on the CPU and slower than backend = 'cpu'" } else { "" };
            format!("gpu: {}{software}; strategies without a program for it, and numbers out of its range, on the cpu", gpu.name)
        }
    }
}

/// Surveys the tensors of each group that shares a method and its parameters.
fn surveys(plan: &Plan) -> Result<BTreeMap<usize, (Survey, usize)>> {
    let mut groups: Vec<(&Settings, &'static str, Vec<usize>)> = Vec::new();
    for (index, task) in plan.tasks.iter().enumerate() {
        if let How::Merge(merge) = &task.how
            && merge.surveys()
            && !task.is_empty()
        {
            match groups.iter_mut().find(|(s, name, _)| *s == &merge.settings && *name == merge.method.name) {
                Some((.., members)) => members.push(index),
                None => groups.push((&merge.settings, merge.method.name, vec![index])),
            }
        }
    }
    let mut found = BTreeMap::new();
    for (_, _, members) in groups {
        let (mut jobs, mut offset, mut look) = (Vec::new(), 0, None);
        for index in &members {
            let task = &plan.tasks[*index];
            let How::Merge(merge) = &task.how else { continue };
            jobs.push(Job { offset, ..merge.job(task) });
            offset += task.len();
            look = merge.method.survey;
        }
        let Some((_, look)) = look else { continue };
        let models = |job: &Job<'_>| job.models.iter().map(|input| input.model).collect::<Vec<_>>();
        if jobs.iter().any(|job| models(job) != models(&jobs[0])) {
            return Err(Error::new(
                Code::Unsupported,
                format!("`{}` looks at whole models, and some lack a tensor", plan.tasks[members[0]].strategy()),
            )
            .with_help("name another strategy for the tensors that not all models have"));
        }
        plan.options.stop.check()?;
        let survey = look(&jobs)?;
        for (job, index) in jobs.iter().zip(&members) {
            found.insert(*index, (survey.clone(), job.offset));
        }
    }
    Ok(found)
}

/// Tensors that are computed together: enough of them that no thread waits for another.
fn groups(plan: &Plan, members: &[usize]) -> Vec<Vec<usize>> {
    let full = rayon::current_num_threads() << 19;
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut size = usize::MAX;
    for index in members {
        let len = plan.tasks[*index].len();
        if size.saturating_add(len) > full {
            groups.push(Vec::new());
            size = 0;
        }
        size += len;
        if let Some(group) = groups.last_mut() {
            group.push(*index);
        }
    }
    groups
}

/// The merge with its inputs in memory, where its method reads them more than once and there is room.
fn loaded(merge: &Merge, room: u64) -> Result<Option<Merge>> {
    let inputs = || merge.models.iter().chain(&merge.base);
    let size: u64 = inputs().map(|i| 4 * i.tensor.len() as u64).sum();
    if merge.method.reads_once || size > room {
        return Ok(None);
    }
    let load = |input: &Input| Ok(Input { tensor: input.tensor.loaded()?, ..input.clone() });
    Ok(Some(Merge {
        models: merge.models.iter().map(load).collect::<Result<_>>()?,
        base: merge.base.as_ref().map(load).transpose()?,
        ..merge.clone()
    }))
}

/// The bytes of elements; `strict` where NaN and infinity are an error.
fn encoded(task: &Task, values: &[f32], strict: bool) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(values.len() * task.dtype.bitsize() / 8);
    dtype::encode(task.dtype, values, &mut bytes)?;
    if let Some(at) = dtype::not_finite(task.dtype, &bytes).filter(|_| strict) {
        return Err(Error::invalid_argument(format!(
            "tensor `{}` gets {}, which {} cannot hold",
            task.name,
            values[at],
            dtype::name(task.dtype)
        ))
        .with_help("choose a wider out_dtype or other parameters, or let it through with WITH (nan = 'propagate')"));
    }
    Ok(bytes)
}

/// Computes the bytes of some tensors, and gives them away in order.
///
/// # Errors
/// What the methods say, what reading says, and what `sink` says.
fn compute(
    plan: &Plan,
    members: &[usize],
    found: &BTreeMap<usize, (Survey, usize)>,
    mut sink: impl FnMut(usize, Vec<u8>) -> Result<()>,
) -> Result<()> {
    let (memory, strict) = (plan.options.memory_limit, !plan.options.propagate_nan);
    let (device, _) = Device::of(plan.options.backend);
    for group in groups(plan, members) {
        let room = memory / 4 / group.len() as u64;
        let load = |index: &usize| match &plan.tasks[*index].how {
            How::Merge(merge) => loaded(merge, room),
            // What is made of a decomposition is made here, on all threads.
            How::Made { tensor, .. } => tensor.first().map(|_| None),
            How::Copy { .. } => Ok(None),
        };
        let in_memory: Vec<Option<Merge>> = in_order(group.par_iter().with_max_len(1).map(load))?;
        let mut jobs: Vec<Option<Job<'_>>> = Vec::with_capacity(group.len());
        for (index, loaded) in group.iter().zip(&in_memory) {
            let (task, survey) = (&plan.tasks[*index], found.get(index));
            let merge = match (loaded, &task.how) {
                (Some(merge), _) => Some(merge),
                (None, How::Merge(merge)) => Some(&**merge),
                _ => None,
            };
            jobs.push(merge.map(|m| Job { survey: survey.map(|s| &s.0), offset: survey.map_or(0, |s| s.1), ..m.job(task) }));
        }
        let prepare = |(job, index): (&Option<Job<'_>>, &usize)| match (job, &plan.tasks[*index].how) {
            (Some(_), How::Merge(merge)) => Some(merge.method.prepare),
            _ => None,
        };
        let methods: Vec<Option<Prepare>> = jobs.iter().zip(&group).map(prepare).collect();
        let kernels: Vec<Option<Kernel<'_>>> =
            in_order(jobs.par_iter().with_max_len(1).zip(&methods).map(|(job, prepare)| match (job, prepare) {
                // Without elements there is nothing to know, and no matrix to decompose.
                (Some(job), Some(_)) if job.is_empty() => Ok(Some(Kernel::Whole(Vec::new()))),
                (Some(job), Some(prepare)) => prepare(job).map(Some).map_err(|e| of_tensor(job.name, e)),
                _ => Ok(None),
            }))?;
        let granules: Vec<usize> = kernels
            .iter()
            .map(|kernel| if let Some(Kernel::Tiles { granule, .. }) = kernel { (*granule).max(1) } else { 1 })
            .collect();
        // Every tile of every tensor, in order.
        let mut parts: Vec<(usize, usize, usize)> = Vec::new();
        for (at, (index, kernel)) in group.iter().zip(&kernels).enumerate() {
            let task = &plan.tasks[*index];
            match kernel {
                Some(kernel @ (Kernel::Tiles { .. } | Kernel::Program { .. })) => {
                    let inputs = jobs[at].as_ref().map_or(1, |job| job.models.len() + 1);
                    let size = match kernel {
                        Kernel::Tiles { granule, .. } => tile_size((*granule).max(1), inputs, memory, 1 << 15),
                        _ => tile_size(1, inputs, memory, device.tile_size(inputs)),
                    };
                    parts.extend((0..task.len()).step_by(size).map(|from| (at, from, (from + size).min(task.len()))));
                }
                _ => parts.push((at, 0, task.len())),
            }
        }
        for batch in parts.chunks(8 * rayon::current_num_threads()) {
            let tile = |room: &mut (Vec<Buffer>, Vec<f32>), (at, from, to): &(usize, usize, usize)| -> Result<Option<Vec<u8>>> {
                let (run, program) = match &kernels[*at] {
                    Some(Kernel::Tiles { run, .. }) => (run, None),
                    Some(Kernel::Program { run, program }) => (run, Some(program)),
                    _ => return Ok(None),
                };
                let Some(job) = &jobs[*at] else { return Ok(None) };
                let (buffers, out) = room;
                let range = *from..*to;
                let inputs: Vec<&Input> = job.models.iter().chain(job.base).collect();
                buffers.resize_with(inputs.len().max(buffers.len()), Buffer::default);
                let mut parts = Vec::with_capacity(inputs.len());
                for (input, buffer) in inputs.iter().zip(buffers.iter_mut()) {
                    parts.push(input.tensor.view(range.clone(), buffer)?);
                }
                let base = if job.base.is_some() { parts.pop().unwrap_or(&[]) } else { &[] };
                out.resize(range.len(), 0.0);
                let tile = Tile { range, models: parts, base };
                if !program.is_some_and(|program| device.run(program, &tile, out)) {
                    in_parts(&tile, granules[*at], run, out)?;
                }
                if !strict {
                    keep_nan(&tile, out);
                }
                encoded(&plan.tasks[group[*at]], out, strict).map(Some)
            };
            let computed: Vec<Option<Vec<u8>>> = in_order(batch.par_iter().with_max_len(1).map_init(Default::default, tile))?;
            for ((at, ..), bytes) in batch.iter().zip(computed) {
                let index = group[*at];
                let task = &plan.tasks[index];
                match (bytes, &kernels[*at], &task.how) {
                    (Some(bytes), ..) => sink(index, bytes)?,
                    (None, Some(Kernel::Whole(values)), _) if values.len() == task.len() => {
                        values.chunks(1 << 18).try_for_each(|chunk| sink(index, encoded(task, chunk, strict)?))?;
                    }
                    (None, _, How::Made { tensor, .. }) => copy(task, tensor, &[], strict, |bytes| sink(index, bytes))?,
                    (None, _, How::Copy { from, others }) => copy(task, from, others, strict, |bytes| sink(index, bytes))?,
                    (None, ..) => {
                        let message = format!("`{}` gave no tensor of the shape of `{}`", task.strategy(), task.name);
                        return Err(Error::new(Code::Unsupported, message));
                    }
                }
            }
        }
    }
    Ok(())
}

/// An error that names the tensor it is of.
fn of_tensor(name: &str, error: Error) -> Error {
    if error.message.contains(&format!("`{name}`")) {
        return error;
    }
    Error { message: format!("tensor `{name}`: {}", error.message), ..error }
}

/// What is NaN in a model or in the base is NaN in the result, whatever a method chooses among its inputs.
fn keep_nan(tile: &Tile<'_>, out: &mut [f32]) {
    for input in tile.models.iter().chain(std::iter::once(&tile.base)) {
        out.iter_mut().zip(*input).filter(|(_, v)| v.is_nan()).for_each(|(o, _)| *o = f32::NAN);
    }
}

/// Computes a tile in parts that stay, with all that is made of them, in a core's first caches; reading is worth more at once.
fn in_parts(tile: &Tile<'_>, granule: usize, run: &Run<'_>, out: &mut [f32]) -> Result<()> {
    const PART: usize = 1 << 12;
    let size = (PART / granule).max(1) * granule;
    for (at, out) in out.chunks_mut(size).enumerate() {
        let (from, to) = (at * size, at * size + out.len());
        let models = tile.models.iter().map(|m| &m[from..to]).collect();
        let base = tile.base.get(from..to).unwrap_or(&[]);
        run(&Tile { range: tile.range.start + from..tile.range.start + to, models, base }, out)?;
    }
    Ok(())
}

fn copy(task: &Task, from: &Tensor, others: &[Tensor], strict: bool, mut sink: impl FnMut(Vec<u8>) -> Result<()>) -> Result<()> {
    let size = from.bytes.end - from.bytes.start;
    let mut other_bytes = Vec::new();
    for at in (0..size).step_by(READ as usize) {
        let mut bytes = vec![0; READ.min(size - at) as usize];
        from.raw(at, &mut bytes)?;
        for other in others {
            other_bytes.resize(bytes.len(), 0);
            other.raw(at, &mut other_bytes)?;
            if other_bytes != bytes {
                return Err(differs(task, from, other));
            }
        }
        if task.dtype != from.dtype {
            let mut values = vec![0.0; bytes.len() * 8 / from.dtype.bitsize()];
            dtype::decode(from.dtype, &bytes, &mut values)?;
            bytes = encoded(task, &values, strict)?;
        }
        sink(bytes)?;
    }
    Ok(())
}

/// A sealed plan with what its methods must know of all tensors, to compute some of them.
pub struct Surveyed {
    sealed: Sealed,
    found: BTreeMap<usize, (Survey, usize)>,
}

impl Surveyed {
    /// Looks at all tensors, where a method needs that.
    ///
    /// # Errors
    /// As reading.
    pub fn new(sealed: Sealed) -> Result<Surveyed> {
        let found = surveys(&sealed.plan)?;
        Ok(Surveyed { sealed, found })
    }

    /// The bytes of a tensor, if they are wanted, and their hash.
    ///
    /// # Errors
    /// What the method says, and reading.
    pub fn tensor(&self, index: usize, wanted: bool) -> Result<(Vec<u8>, Hash)> {
        tensor(&self.sealed.plan, &self.found, index, wanted)
    }
}

fn tensor(plan: &Plan, found: &BTreeMap<usize, (Survey, usize)>, index: usize, wanted: bool) -> Result<(Vec<u8>, Hash)> {
    let (mut bytes, mut hash) = (Vec::new(), Sha256::new());
    compute(plan, &[index], found, |_, part| {
        hash.update(&part);
        if wanted {
            bytes.extend(part);
        }
        Ok(())
    })?;
    Ok((bytes, hash.finalize().into()))
}

/// The bytes of all tensors, for small models.
///
/// # Errors
/// As [`write`], but for files.
pub fn resolve(sealed: &Sealed) -> Result<BTreeMap<String, Vec<u8>>> {
    let (plan, found) = (&sealed.plan, surveys(&sealed.plan)?);
    plan.tasks.iter().enumerate().map(|(i, task)| Ok((task.name.clone(), tensor(plan, &found, i, true)?.0))).collect()
}

/// The hash of the bytes of each tensor, which are not kept.
///
/// # Errors
/// As [`write`], but for files.
pub fn hashes(sealed: &Sealed) -> Result<BTreeMap<String, Hash>> {
    let mut hashes: BTreeMap<String, Sha256> = sealed.plan.tasks.iter().map(|t| (t.name.clone(), Sha256::new())).collect();
    let all: Vec<usize> = (0..sealed.plan.tasks.len()).collect();
    produce(sealed, &all, |index, bytes| {
        if let Some(hash) = hashes.get_mut(&sealed.plan.tasks[index].name) {
            hash.update(&bytes);
        }
        Ok(())
    })?;
    Ok(hashes.into_iter().map(|(name, hash)| (name, hash.finalize().into())).collect())
}

/// Gives the bytes of some tensors away, each in order: from the cache, or computed and put there.
fn produce(sealed: &Sealed, members: &[usize], mut sink: impl FnMut(usize, Vec<u8>) -> Result<()>) -> Result<()> {
    let plan = &sealed.plan;
    let cache = plan.options.cache.as_ref().map(|folder| Cache::open(folder, plan.options.cache_size)).transpose()?;
    let mut todo = Vec::new();
    for index in members {
        let known = cache.as_ref().zip(sealed.keys[*index]).and_then(|(cache, key)| cache.get(&key, plan.tasks[*index].bytes()));
        match known {
            Some(entry) => entry.each(|bytes| sink(*index, bytes))?,
            None => todo.push(*index),
        }
    }
    let surveyed = todo.iter().any(|index| matches!(&plan.tasks[*index].how, How::Merge(merge) if merge.surveys()));
    let found = if surveyed { surveys(plan)? } else { BTreeMap::new() };
    let mut entry: Option<(usize, u64, Entry)> = None;
    compute(plan, &todo, &found, |index, bytes| {
        plan.options.stop.check()?;
        if let (Some(cache), Some(key)) = (&cache, &sealed.keys[index]) {
            let (_, written, mut open) = match entry.take() {
                Some(open) if open.0 == index => open,
                _ => (index, 0, cache.entry(key)?),
            };
            open.write(&bytes)?;
            let written = written + bytes.len() as u64;
            if written == plan.tasks[index].bytes() { open.finish()? } else { entry = Some((index, written, open)) }
        }
        sink(index, bytes)
    })?;
    cache.map_or(Ok(()), |cache| cache.trim())
}

/// Computes all tensors into a file (a path that ends in `.safetensors`) or a folder. Files appear whole or not at all; a run that was
/// stopped goes on where it was. `beside` runs when all tensors are written, before their
/// files get their names.
///
/// # Errors
/// `io` where the output exists or cannot be written; what the methods say.
pub fn write(
    sealed: &Sealed,
    out: &Path,
    metadata: &BTreeMap<String, String>,
    mut report: impl FnMut(Progress<'_>),
    beside: impl FnOnce(&[Written]) -> Result<()>,
) -> Result<Vec<Written>> {
    let Sealed { plan, .. } = sealed;
    let total = plan.writes();
    let layout = Layout::new(&plan.tasks, out, plan.options.max_shard_size.unwrap_or(SHARD), metadata)?;
    let mut writer = Writer::new(layout, &sealed.hash, plan.options.overwrite)?;
    let todo: Vec<usize> = (0..plan.tasks.len()).filter(|i| !writer.has(*i)).collect();
    let mut begun: Vec<bool> = (0..plan.tasks.len()).map(|i| writer.has(i)).collect();
    let count = |begun: &[bool]| (begun.iter().filter(|begun| **begun).count(), begun.len());
    report(Progress { doing: "survey", tensor: "", done: 0, total, tensors: count(&begun) });
    let mut tensors = count(&begun);
    let mut done = (0..plan.tasks.len()).filter(|i| writer.has(*i)).map(|i| plan.tasks[i].bytes()).sum::<u64>();
    // One thread writes and hashes while the others compute; a few parts wait between them.
    std::thread::scope(|scope| {
        let (send, receive) = std::sync::mpsc::sync_channel::<(usize, Vec<u8>)>(16);
        let writing = scope.spawn(move || -> Result<Writer> {
            for (index, bytes) in receive {
                writer.write(index, &bytes)?;
            }
            Ok(writer)
        });
        let mut computing = || -> Result<()> {
            // A writer that has stopped says why itself.
            let stopped = |_| Error::new(Code::Io, "the output can no longer be written");
            produce(sealed, &todo, |index, bytes| {
                done += bytes.len() as u64;
                tensors.0 += usize::from(!std::mem::replace(&mut begun[index], true));
                report(Progress { doing: "merge", tensor: &plan.tasks[index].name, done, total, tensors });
                send.send((index, bytes)).map_err(stopped)
            })?;
            let empty = todo.iter().filter(|i| plan.tasks[**i].is_empty());
            empty.copied().try_for_each(|index| send.send((index, Vec::new())).map_err(stopped))
        };
        let computed = computing();
        drop(send);
        let writer = writing.join().map_err(|_| Error::new(Code::Io, "writing stopped"))?;
        let writer = match (computed, writer) {
            (_, Err(e)) => return Err(e),
            (Err(e), Ok(writer)) => {
                // After a full disk a later run goes on; after a wrong tensor there is nothing to go on with.
                if e.code != Code::Io {
                    writer.discard();
                }
                return Err(e);
            }
            (Ok(()), Ok(writer)) => writer,
        };
        let written = writer.written()?;
        beside(&written)?;
        writer.finish()?;
        Ok(written)
    })
}
