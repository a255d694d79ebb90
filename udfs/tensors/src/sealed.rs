//! What the answer depends on, by hash: contributions, the set of them, the base, and all that was chosen for each tensor.

use crate::checkpoint::{Checkpoint, Tensor};
use crate::dtype;
use crate::method::{Input, Settings, Value};
use crate::plan::{How, Merge, Model, Plan, Task};
use crate::run::{READ, in_order};
use mergeql_udfs::merkle::{self, Hash};
use mergeql_udfs::{Error, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Adds bytes after their length, so that no two lists of parts read alike.
pub(crate) fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn hash_tensor(tensor: &Tensor, buffer: &mut Vec<u8>) -> Result<Hash> {
    let mut hash = Sha256::new();
    let size = tensor.bytes.end - tensor.bytes.start;
    let mut at = 0;
    buffer.resize(READ as usize, 0);
    while at < size {
        let part = &mut buffer[..READ.min(size - at) as usize];
        tensor.raw(at, part)?;
        if let Some(place) = tensor.first_not_finite(part) {
            let width = dtype::width(tensor.dtype).unwrap_or(1);
            return Err(tensor.not_finite(at as usize / width + place));
        }
        hash.update(&*part);
        at += part.len() as u64;
    }
    Ok(hash.finalize().into())
}

/// The hash of a contribution: of its name, of each tensor's name, type, shape and hash of its bytes in the order of the names, of its weight
/// and its version, and of how an adapter's factors are scaled. Layout into files doesn't count.
///
/// # Errors
/// `io`.
pub fn contribution(name: &str, checkpoint: &Checkpoint, weight: Option<f64>, version: Option<&str>) -> Result<Hash> {
    let tensors: Vec<(&String, &Tensor)> = checkpoint.tensors.iter().collect();
    let hash = |buffer: &mut Vec<u8>, (_, tensor): &(&String, &Tensor)| hash_tensor(tensor, buffer);
    let hashes: Vec<Hash> = in_order(tensors.par_iter().with_max_len(1).map_init(Vec::new, hash))?;
    let mut hash = Sha256::new();
    hash.update(b"mergeql.contribution.1");
    part(&mut hash, name.as_bytes());
    hash.update((tensors.len() as u64).to_le_bytes());
    for ((name, tensor), bytes) in tensors.iter().zip(&hashes) {
        part(&mut hash, name.as_bytes());
        part(&mut hash, dtype::name(tensor.dtype).as_bytes());
        hash.update((tensor.shape.len() as u64).to_le_bytes());
        tensor.shape.iter().for_each(|n| hash.update((*n as u64).to_le_bytes()));
        hash.update(bytes);
    }
    part(&mut hash, weight.map(|w| w.to_bits().to_le_bytes()).as_ref().map_or(&[][..], |b| &b[..]));
    part(&mut hash, version.unwrap_or_default().as_bytes());
    if !checkpoint.metadata.is_empty() {
        part(&mut hash, checkpoint.metadata.as_bytes());
    }
    Ok(hash.finalize().into())
}

/// A plan whose contributions are hashed, and whose inputs stand in the order of the hashes.
#[derive(Debug)]
pub struct Sealed {
    /// The plan.
    pub plan: Plan,
    /// The hash of each model, in the order of the statement.
    pub models: Vec<Hash>,
    /// The hash of the base.
    pub base: Option<Hash>,
    /// The hash of the set of contributions.
    pub set: Hash,
    /// The hash of the set, the base, and all that was chosen for each tensor.
    pub hash: Hash,
    /// What each tensor depends on, by hash; nothing for those that are copied or were made.
    pub keys: Vec<Option<Hash>>,
}

/// The values of a model's own parameters, to tell equal contributions with other parameters apart.
fn own_values(settings: &Settings, place: usize) -> Vec<u64> {
    let lists = settings.iter().filter(|(_, v)| matches!(v, Value::List(_)));
    lists.map(|(name, _)| settings.of_model(name, place).unwrap_or(0.0).to_bits()).collect()
}

impl Sealed {
    /// Hashes the contributions of a plan, and puts them in order: the written order counts for nothing, a contribution that is there twice
    /// for one.
    ///
    /// # Errors
    /// `io`.
    pub fn new(plan: Plan) -> Result<Sealed> {
        let hash = |m: &Model| {
            plan.options.stop.check()?;
            contribution(&m.name, m.contributed(), m.weight, None)
        };
        let models = plan.models.iter().map(hash).collect::<Result<_>>()?;
        let base = plan.base.as_ref().map(|m| contribution("", m.contributed(), None, None)).transpose()?;
        Sealed::with(plan, models, base)
    }

    /// The same where the hashes are known: another plan of models that were hashed before.
    ///
    /// # Errors
    /// `io`; `type_mismatch` for copies that differ.
    pub fn with(mut plan: Plan, models: Vec<Hash>, base: Option<Hash>) -> Result<Sealed> {
        for task in &plan.tasks {
            let How::Copy { from, others } = &task.how else { continue };
            let own = hash_tensor(from, &mut Vec::new())?;
            for other in others {
                if hash_tensor(other, &mut Vec::new())? != own {
                    return Err(differs(task, from, other));
                }
            }
        }
        for task in &mut plan.tasks {
            let How::Merge(merge) = &mut task.how else { continue };
            let Merge { method, settings, models: inputs, base: in_base, .. } = &mut **merge;
            let hash = |input: &mut Input| {
                input.hash = models.get(input.model).copied().or(base).unwrap_or([0; 32]);
                // What was hashed was looked through for NaN and infinity, too.
                input.tensor.lenient = true;
            };
            inputs.iter_mut().chain(in_base).for_each(hash);
            if !method.ordered {
                // Two layers of one model are two contributions.
                let key = |i: &Input| (i.hash, i.tensor.name().to_owned(), own_values(settings, i.place));
                inputs.sort_by_cached_key(key);
                inputs.dedup_by_key(|i| key(i));
            }
        }
        let mut sides: BTreeMap<PathBuf, Hash> = BTreeMap::new();
        let mut hash = Sha256::new();
        hash.update(b"mergeql.resolution.2");
        let set = merkle::root(models.clone());
        hash.update(set);
        part(&mut hash, base.as_ref().map_or(&[][..], |b| &b[..]));
        // What went through with NaN in it is no answer where NaN is an error.
        let through = if plan.options.propagate_nan { "\nnan = propagate" } else { "" };
        let context = format!("{}{through}", plan.context);
        part(&mut hash, context.as_bytes());
        let mut keys = Vec::new();
        for task in &plan.tasks {
            let key = task_hash(task, &context, base.as_ref(), &mut sides)?;
            hash.update(key);
            keys.push(matches!(task.how, How::Merge(_)).then_some(key));
        }
        let hash: Hash = hash.finalize().into();
        // What looks at all tensors depends on all of them.
        for (task, key) in plan.tasks.iter().zip(&mut keys) {
            if let (How::Merge(merge), Some(key)) = (&task.how, key)
                && merge.surveys()
            {
                *key = Sha256::new().chain_update(*key).chain_update(hash).finalize().into();
            }
        }
        Ok(Sealed { models, base, set, hash, keys, plan })
    }
}

/// What a tensor depends on: its contributions, the base, its method and every parameter.
fn task_hash(task: &Task, context: &str, base: Option<&Hash>, sides: &mut BTreeMap<PathBuf, Hash>) -> Result<Hash> {
    let mut hash = Sha256::new();
    part(&mut hash, b"mergeql.tensor.1");
    part(&mut hash, mergeql_udfs::TENSOR_STRATEGIES.as_bytes());
    part(&mut hash, context.as_bytes());
    part(&mut hash, base.map_or(&[][..], |b| &b[..]));
    part(&mut hash, task.name.as_bytes());
    part(&mut hash, dtype::name(task.dtype).as_bytes());
    part(&mut hash, task.strategy().as_bytes());
    let How::Merge(merge) = &task.how else { return Ok(hash.finalize().into()) };
    part(&mut hash, format!("{:?}", merge.settings.semantics).as_bytes());
    part(&mut hash, canonical(merge, false).as_bytes());
    if (merge.method.by_place)(&merge.settings) {
        merge.models.iter().for_each(|m| hash.update((m.place as u64).to_le_bytes()));
    }
    for (name, files) in merge.sides.iter() {
        part(&mut hash, name.as_bytes());
        // A file for each model stands with its model.
        let of_models = merge.models.iter().filter_map(|m| files.get(m.place));
        let in_order: Vec<&Checkpoint> = if files.len() > 1 { of_models.collect() } else { files.iter().collect() };
        if files.len() == 1 {
            // One file for all goes by the places of the models.
            merge.models.iter().for_each(|m| hash.update((m.place as u64).to_le_bytes()));
        }
        for file in in_order {
            if !sides.contains_key(&file.path) {
                sides.insert(file.path.clone(), contribution("", file, None, None)?);
            }
            hash.update(sides[&file.path]);
        }
    }
    for input in merge.models.iter().chain(&merge.base) {
        hash.update(input.hash);
        part(&mut hash, input.tensor.name().as_bytes());
        part(&mut hash, input.tensor.read_as().map(dtype::name).unwrap_or_default().as_bytes());
    }
    Ok(hash.finalize().into())
}

/// The parameters of a tensor's method as they would be written, with lists in the order of the statement.
pub fn written(merge: &Merge) -> String {
    merge.settings.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", ")
}

/// The parameters of a tensor's method, with lists in the order of the contributions.
pub fn parameters(merge: &Merge) -> String {
    canonical(merge, true)
}

fn canonical(merge: &Merge, files: bool) -> String {
    let show = |(name, value): (&str, &Value)| match value {
        Value::List(values) if values.iter().all(|v| matches!(v, Value::Number(_))) => {
            let list: Vec<String> =
                merge.models.iter().filter_map(|m| Some(merge.settings.of_model(name, m.place)?.to_string())).collect();
            format!("{name} = [{}]", list.join(", "))
        }
        value => format!("{name} = {value}"),
    };
    let shown = merge.settings.iter().filter(|(name, _)| files || !merge.sides.contains_key(name));
    shown.map(show).collect::<Vec<_>>().join(", ")
}

/// Copies of a tensor that no arithmetic merges, and that are not equal.
pub(crate) fn differs(task: &Task, from: &Tensor, other: &Tensor) -> Error {
    Error::type_mismatch(format!(
        "tensor `{}` is {}, which no arithmetic merges, and differs between `{}` and `{}`",
        task.name,
        dtype::name(task.dtype),
        from.file().display(),
        other.file().display()
    ))
    .with_help("leave it out of the models that have the wrong one")
}
