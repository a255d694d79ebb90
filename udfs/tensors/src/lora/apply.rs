//! Adapters beside the model that they were trained on: together they are a model.

use super::{Adapter, Module, in_base};
use crate::checkpoint::Checkpoint;
use crate::made::{self, LowRank};
use crate::plan::Model;
use mergeql_udfs::{Error, Result};

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
