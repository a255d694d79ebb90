//! Adapters beside the model that they were trained on: together they are a model.

use super::{Adapter, Module, in_base};
use crate::checkpoint::Checkpoint;
use crate::made::{self, LowRank};
use crate::plan::Model;
use mergeql_udfs::{Error, Result};

/// Adapters as the models that they stand for beside a base; other models as they are.
///
/// # Errors
/// As [`applied`]; `invalid_argument` for adapters without a base, whose factors are nothing by themselves.
pub fn beside(models: Vec<Model>, base: Option<&Model>, notes: &mut Vec<String>) -> Result<Vec<Model>> {
    let whole = |model: Model| match (is_adapter(&model.checkpoint), base) {
        (false, _) => Ok(model),
        (true, Some(base)) => {
            if !model.checkpoint.folder().join("adapter_config.json").is_file() {
                notes.push(format!("`{}` has no adapter_config.json beside it: its factors count as they are", model.name));
            }
            applied(model, &base.checkpoint)
        }
        (true, None) => Err(Error::invalid_argument(format!(
            "`{}` is an adapter: its factors are merged together, never A with A and B with B",
            model.checkpoint.path.display()
        ))
        .with_help("write STRATEGY * = lora_svd(rank = ...), or name the model that it was trained on: BASE 'base.safetensors'")),
    };
    models.into_iter().map(whole).collect()
}

/// Whether a checkpoint is an adapter: it has factors.
pub fn is_adapter(checkpoint: &Checkpoint) -> bool {
    checkpoint.tensors.keys().any(|name| super::factor(name).is_some() || name.contains(".lora_embedding_"))
}

/// The model that an adapter and its base stand for: each matrix W with W + s B A, tensors that the adapter holds whole in the place of the
/// base's, all others as they are there. Nothing is computed before it is read.
///
/// # Errors
/// `invalid_argument` for a checkpoint that is no adapter, or has a module that the base lacks; `type_mismatch` for other shapes.
pub fn applied(model: Model, base: &Checkpoint) -> Result<Model> {
    let adapter = Adapter::of(&model)?;
    let mut tensors = base.tensors.clone();
    let lacking = |name: &str| {
        Error::invalid_argument(format!(
            "`{}` changes `{name}`, which `{}` does not have",
            model.checkpoint.path.display(),
            base.path.display()
        ))
        .with_help("an adapter goes with the model that it was trained on")
    };
    let transposed = adapter.config["fan_in_fan_out"].as_bool() == Some(true);
    for (module, Module { a, b, scale }) in &adapter.modules {
        let name = format!("{}.weight", in_base(module));
        let tensor = tensors.get(&name).or_else(|| tensors.get(in_base(module))).ok_or_else(|| lacking(&name))?;
        let change = LowRank { up: b.clone(), down: a.clone(), scale: *scale, transposed };
        let changed = made::plus(tensor, change)?;
        tensors.insert(tensor.name().to_owned(), changed);
    }
    for (name, tensor) in &adapter.whole {
        let name = in_base(name).replace(".modules_to_save", "");
        if !tensors.contains_key(&name) {
            return Err(lacking(&name));
        }
        tensors.insert(name.clone(), tensor.renamed(&name));
    }
    Ok(model.made(tensors))
}
