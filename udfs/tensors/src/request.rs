//! From what people write to a plan: paths to models, names and values to options.

use crate::checkpoint::{Checkpoint, expand};
use crate::dtype;
use crate::lora;
use crate::method::{Semantics, Value};
use crate::methods;
use crate::plan::{Backend, Model, Options, Plan, Request, Rule};
use mergeql_udfs::{Code, Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What a file or folder is called, if nothing else is said.
/// What a model is called after its file: without the ending that every model has, and with all other points in it.
pub(crate) fn stem(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let name = name.strip_suffix(".index.json").unwrap_or(&name);
    name.strip_suffix(".safetensors").unwrap_or(name).to_owned()
}

/// The models that a source stands for: the files of a pattern are one model where no tensor is in two of them, and one each where some is.
///
/// # Errors
/// As [`Checkpoint::open`].
pub fn open(path: &str, alias: Option<&str>, weight: Option<f64>) -> Result<Vec<Model>> {
    let paths = expand(path)?;
    let opened: Vec<Checkpoint> = paths.iter().map(Checkpoint::open).collect::<Result<_>>()?;
    let name = |path: &Path| alias.map_or_else(|| stem(path), str::to_owned);
    if opened.len() == 1 {
        return Ok(opened.into_iter().map(|c| Model { weight, ..Model::new(name(&c.path), c) }).collect());
    }
    // Each adapter of PEFT has a scale of its own, which its folder says.
    let folders: BTreeSet<&Path> = paths.iter().filter_map(|path| path.parent()).collect();
    let adapters = folders.len() > 1 && folders.iter().any(|folder| folder.join("adapter_config.json").exists());
    let path = paths[0].parent().unwrap_or(Path::new(".")).to_owned();
    let mut together = Checkpoint { path, tensors: BTreeMap::new(), metadata: opened[0].metadata.clone() };
    let disjoint =
        opened.iter().all(|c| c.tensors.iter().all(|(name, t)| together.tensors.insert(name.clone(), t.clone()).is_none()));
    if disjoint && !adapters {
        return Ok(vec![Model { weight, ..Model::new(name(&together.path), together) }]);
    }
    let each = |checkpoint: Checkpoint| {
        let own = stem(&checkpoint.path);
        Model { weight, ..Model::new(alias.map_or_else(|| own.clone(), |alias| format!("{alias}/{own}")), checkpoint) }
    };
    Ok(opened.into_iter().map(each).collect())
}

/// The one model that a path stands for.
///
/// # Errors
/// As [`open`]; `invalid_argument` where it stands for several.
pub fn open_one(path: &str, alias: Option<&str>, weight: Option<f64>) -> Result<Model> {
    let mut found = open(path, alias, weight)?;
    match (found.pop(), found.is_empty()) {
        (Some(model), true) => Ok(model),
        _ => Err(Error::invalid_argument(format!("`{path}` is {} models, and one is wanted", found.len() + 1))),
    }
}

/// Whether a strategy has parameters that its own plan checks.
pub fn takes_any(strategy: &str) -> bool {
    #[cfg(feature = "search")]
    if crate::search::is_strategy(strategy) {
        return true;
    }
    lora::is_strategy(strategy)
}

/// Whether a rule's strategy has a parameter of this name.
fn takes(rule: &Rule, name: &str) -> bool {
    let of = |strategy: &str| methods::find(strategy).is_ok_and(|(method, _)| method.param(name).is_some());
    #[cfg(feature = "search")]
    if crate::search::is_strategy(&rule.strategy) {
        return crate::search::inner(&rule.params).is_some_and(of);
    }
    if lora::is_strategy(&rule.strategy) {
        return lora::parameters_of(&rule.strategy).param(name).is_some();
    }
    of(&rule.strategy)
}

/// The options of the whole merge.
pub const OPTIONS: [&str; 13] = [
    "dtype",
    "out_dtype",
    "semantics",
    "nan",
    "missing",
    "overwrite",
    "max_shard_size",
    "memory_limit",
    "backend",
    "names",
    "align",
    "cache",
    "cache_size",
];

/// Sets an option of the whole merge; gives the value back if there is none of this name.
fn set(options: &mut Options, name: &str, given: Value) -> Result<Option<Value>> {
    let wrong = |what: &str, given: &Value| Error::invalid_argument(format!("`{name}` takes {what}, not {given}"));
    let size = |given: &Value| match given {
        Value::Text(text) => mergeql_udfs::parse_size(text).map(|n| n as u64),
        Value::Number(n) if *n >= 1.0 => Some(*n as u64),
        _ => None,
    };
    let word = |given: &Value, words: [&str; 2]| match given {
        Value::Text(text) if text == words[0] => Some(false),
        Value::Text(text) if text == words[1] => Some(true),
        _ => None,
    };
    match name {
        "dtype" | "out_dtype" => match &given {
            Value::Text(text) if name == "dtype" => options.dtype = Some(dtype::parse(text)?),
            Value::Text(text) => options.out_dtype = Some(dtype::parse(text)?),
            other => return Err(wrong("the name of a type", other)),
        },
        "semantics" => {
            let mergekit = word(&given, ["paper", "mergekit"]).ok_or_else(|| wrong("'paper' or 'mergekit'", &given))?;
            options.semantics = if mergekit { Semantics::Mergekit } else { Semantics::Paper };
        }
        "nan" => {
            options.propagate_nan = word(&given, ["error", "propagate"]).ok_or_else(|| wrong("'error' or 'propagate'", &given))?
        }
        "missing" => {
            options.merge_present = word(&given, ["error", "present"]).ok_or_else(|| wrong("'error' or 'present'", &given))?
        }
        "overwrite" => match given {
            Value::Flag(yes) => options.overwrite = yes,
            other => return Err(wrong("true or false", &other)),
        },
        "max_shard_size" => options.max_shard_size = Some(size(&given).ok_or_else(|| wrong("a size like '5GB'", &given))?),
        "memory_limit" => options.memory_limit = size(&given).ok_or_else(|| wrong("a size like '512MB'", &given))?,
        "backend" => match &given {
            Value::Text(text) if text == "auto" => options.backend = Backend::Auto,
            Value::Text(text) if text == "cpu" => options.backend = Backend::Cpu,
            Value::Text(text) if text == "gpu" => options.backend = Backend::Gpu,
            other => return Err(wrong("'auto', 'cpu' or 'gpu'", other)),
        },
        "names" => {
            let texts =
                |values: &[Value]| values.iter().map(|v| if let Value::Text(t) = v { Some(t.clone()) } else { None }).collect();
            let names = match &given {
                Value::Text(text) => Some(vec![text.clone()]),
                Value::List(values) => texts(values),
                _ => None,
            };
            options.names = names.ok_or_else(|| wrong("a family, a file of names, or a list with one for each model", &given))?;
        }
        "align" => {
            options.align = word(&given, ["none", "procrustes"]).ok_or_else(|| wrong("'none' or 'procrustes'", &given))?;
        }
        "cache" => match given {
            Value::Text(folder) if !folder.is_empty() => options.cache = Some(folder.into()),
            other => return Err(wrong("a folder", &other)),
        },
        "cache_size" => options.cache_size = size(&given).ok_or_else(|| wrong("a size like '10GB'", &given))?,
        _ => return Ok(Some(given)),
    }
    Ok(None)
}

/// Options of the merge, and parameters for all strategies that have them.
///
/// # Errors
/// The name with what is wrong with it: `unknown_option`, `invalid_argument`.
pub fn options(given: impl IntoIterator<Item = (String, Value)>, rules: &[Rule]) -> Result<Options, (String, Error)> {
    let mut options = Options::default();
    for (name, value) in given {
        let rest = set(&mut options, &name, value).map_err(|e| (name.clone(), e))?;
        let Some(rest) = rest else { continue };
        let has = |r: &Rule| takes(r, &name);
        let known = rules.iter().any(has);
        if !known {
            let error = Error::new(Code::UnknownOption, format!("neither MERGE MODELS nor any strategy here has `{name}`"))
                .with_help(format!("options are {}, and parameters of the strategies", OPTIONS.join(", ")));
            return Err((name, error));
        }
        options.common.insert(name, rest);
    }
    Ok(options)
}

/// Plans a merge of models, or of adapters, whose config comes along.
///
/// # Errors
/// As [`Plan::new`] and [`lora::plan`].
pub fn planned(request: Request) -> Result<(Plan, Option<serde_json::Value>)> {
    if request.rules.iter().any(|rule| lora::is_strategy(&rule.strategy)) {
        let (plan, config) = lora::plan(request)?;
        return Ok((plan, Some(config)));
    }
    Ok((Plan::new(request)?, None))
}
