//! MERGE MODELS: from the statement to a plan, its run, and EXPLAIN.

mod functions;

use crate::context::{MergeContext, parse_size};
use crate::error::{MergeError, Result};
use datafusion::prelude::DataFrame;
pub(crate) use functions::register;
use functions::{Row, base_of, models_of, rows};
use mergeql_lang::Diagnostic;
use mergeql_lang::ast::{ModelSource, Models, Name, Setting};
use mergeql_tensors::checkpoint::{Checkpoint, expand};
use mergeql_tensors::dtype;
use mergeql_tensors::lora;
use mergeql_tensors::method::{Params, Semantics, Value};
use mergeql_tensors::methods;
use mergeql_tensors::model::{self, Extras};
use mergeql_tensors::plan::{Backend, How, Model, Options, Plan, Request, Rule};
use mergeql_tensors::run::{self, Sealed};
use mergeql_udfs::merkle::hex;
use mergeql_udfs::{Code, Error};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

// From a statement to a request.

/// What a file or folder is called, if nothing else is said.
fn stem(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let name = name.strip_suffix(".index.json").unwrap_or(&name);
    name.strip_suffix(".safetensors").unwrap_or(name).to_owned()
}

/// The models that a source stands for: the files of a pattern are one model where no tensor is in two of them, and one each where some is.
fn open(path: &str, alias: Option<&str>, weight: Option<f64>) -> Result<Vec<Model>, Error> {
    let paths = expand(path)?;
    let opened: Vec<Checkpoint> = paths.iter().map(Checkpoint::open).collect::<Result<_, _>>()?;
    let name = |path: &Path| alias.map_or_else(|| stem(path), str::to_owned);
    if opened.len() == 1 {
        return Ok(opened.into_iter().map(|c| Model { weight, ..Model::new(name(&c.path), c) }).collect());
    }
    let path = paths[0].parent().unwrap_or(Path::new(".")).to_owned();
    let mut together = Checkpoint { path, tensors: BTreeMap::new(), metadata: String::new() };
    let disjoint =
        opened.iter().all(|c| c.tensors.iter().all(|(name, t)| together.tensors.insert(name.clone(), t.clone()).is_none()));
    if disjoint {
        return Ok(vec![Model { weight, ..Model::new(name(&together.path), together) }]);
    }
    let each = |checkpoint: Checkpoint| {
        let own = stem(&checkpoint.path);
        Model { weight, ..Model::new(alias.map_or_else(|| own.clone(), |alias| format!("{alias}/{own}")), checkpoint) }
    };
    Ok(opened.into_iter().map(each).collect())
}

fn value(setting: &Setting) -> Value {
    match setting {
        Setting::Number(v) => Value::Number(*v),
        Setting::Flag(v) => Value::Flag(*v),
        Setting::Text(v) => Value::Text(v.clone()),
        Setting::List(items) => Value::List(items.iter().map(value).collect()),
    }
}

/// The options of the whole merge.
const OPTIONS: [&str; 8] = ["out_dtype", "semantics", "nan", "missing", "overwrite", "max_shard_size", "memory_limit", "backend"];

/// Sets an option of the whole merge; gives the value back if there is none of this name.
fn set(options: &mut Options, name: &str, given: Value) -> Result<Option<Value>, Error> {
    let wrong = |what: &str, given: &Value| Error::invalid_argument(format!("`{name}` takes {what}, not {given}"));
    let size = |given: &Value| match given {
        Value::Text(text) => parse_size(text).map(|n| n as u64),
        Value::Number(n) if *n >= 1.0 => Some(*n as u64),
        _ => None,
    };
    let word = |given: &Value, words: [&str; 2]| match given {
        Value::Text(text) if text == words[0] => Some(false),
        Value::Text(text) if text == words[1] => Some(true),
        _ => None,
    };
    match name {
        "out_dtype" => match &given {
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
        _ => return Ok(Some(given)),
    }
    Ok(None)
}

/// Options of the merge, and parameters for all strategies that have them.
fn options(given: impl IntoIterator<Item = (String, Value)>, rules: &[Rule]) -> Result<Options, (String, Error)> {
    let mut options = Options::default();
    for (name, value) in given {
        let rest = set(&mut options, &name, value).map_err(|e| (name.clone(), e))?;
        let Some(rest) = rest else { continue };
        let has =
            |r: &Rule| lora::is_strategy(&r.strategy) || methods::find(&r.strategy).is_ok_and(|(m, _)| m.param(&name).is_some());
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

fn at(name: &Name) -> impl Fn(Error) -> MergeError {
    let span = name.span;
    move |error| {
        let mut diagnostic = Box::<Diagnostic>::from(error);
        diagnostic.span = Some(span);
        MergeError(diagnostic)
    }
}

/// The request that a statement makes.
fn request(models: &Models) -> Result<Request> {
    let opened = |source: &ModelSource| {
        open(&source.path.value, source.alias.as_ref().map(|a| a.value.as_str()), source.weight).map_err(at(&source.path))
    };
    let mut sources = Vec::new();
    for source in &models.sources {
        sources.extend(opened(source)?);
    }
    let base = match &models.base {
        None => None,
        Some(source) => {
            let mut found = opened(source)?;
            if found.len() != 1 {
                return Err(at(&source.path)(Error::invalid_argument(format!("the base is {} models", found.len()))));
            }
            found.pop()
        }
    };
    let mut rules = Vec::new();
    for rule in &models.rules {
        let adapters = lora::is_strategy(&rule.strategy.value);
        let method = if adapters { None } else { Some(methods::find(&rule.strategy.value).map_err(at(&rule.strategy))?.0) };
        let mut params = Params::new();
        for (name, setting) in &rule.settings {
            // What is wrong with a parameter is found where it stands.
            let one = Params::from([(name.value.clone(), value(setting))]);
            if let Some(method) = method.filter(|m| m.param(&name.value).is_none()) {
                let checked = mergeql_tensors::method::Settings::new(method, &one, Semantics::Paper, sources.len());
                checked.map_err(at(name))?;
            }
            params.extend(one);
        }
        rules.push(Rule { pattern: rule.pattern.clone(), strategy: rule.strategy.value.clone(), params });
    }
    if rules.is_empty() {
        rules.push(Rule { pattern: "*".into(), strategy: "linear".into(), params: Params::new() });
    }
    let given = models.options.iter().map(|(name, setting)| (name.value.to_ascii_lowercase(), value(setting)));
    let options = options(given, &rules).map_err(|(name, error)| {
        match models.options.iter().find(|(n, _)| n.value.eq_ignore_ascii_case(&name)) {
            Some((written, _)) => at(written)(error),
            None => error.into(),
        }
    })?;
    Ok(Request { models: sources, base, rules, options })
}

/// Plans a merge of models, or of adapters, whose config comes along.
fn planned(request: Request) -> Result<(Plan, Option<serde_json::Value>), Error> {
    if request.rules.iter().any(|rule| lora::is_strategy(&rule.strategy)) {
        let (plan, config) = lora::plan(request)?;
        return Ok((plan, Some(config)));
    }
    Ok((Plan::new(request)?, None))
}

/// Runs work that keeps a thread busy.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|e| MergeError::new(Code::Io, format!("the merge stopped: {e}")))??)
}

/// Runs a statement.
///
/// # Errors
/// Whatever is wrong with it, before a byte is written.
pub async fn run(context: &MergeContext, explain: bool, models: Models) -> Result<DataFrame> {
    let request = request(&models)?;
    let into = models.into.as_ref().map(|name| PathBuf::from(&name.value));
    if explain {
        let rows = blocking(move || Ok(describe(&planned(request)?.0, into.as_deref()))).await?;
        let (items, details): (Vec<String>, Vec<String>) = rows.into_iter().unzip();
        return Ok(context.session().read_batch(crate::explain::texts(&[("item", items), ("detail", details)])?)?);
    }
    let shared = context.shared.clone();
    let batch = blocking(move || {
        let companion = request.base.as_ref().or(request.models.first()).map(|m| m.checkpoint.folder().to_owned());
        let (plan, adapter) = planned(request)?;
        let sealed = Sealed::new(plan)?;
        let hashes: BTreeMap<String, String> = match &into {
            Some(out) => {
                let extras = Extras { companion, adapter, ..Extras::default() };
                let merged = model::write(&sealed, out, &extras, |progress| shared.merging(progress.done, progress.total))?;
                merged.tensors.into_iter().map(|w| (w.name, hex(&w.sha256))).collect()
            }
            None => run::hashes(&sealed)?.into_iter().map(|(name, hash)| (name, hex(&hash))).collect(),
        };
        shared.merging(0, 0);
        let columns = functions::SUMMARY;
        rows(&sealed.plan, &columns, |task| Ok(Row::hashed(hashes.get(&task.name).cloned())))
    });
    Ok(context.session().read_batch(batch.await?)?)
}

fn bytes(n: u64) -> String {
    indicatif::HumanBytes(n).to_string()
}

/// What a merge will do, as items and details.
fn describe(plan: &Plan, into: Option<&Path>) -> Vec<(String, String)> {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut add = |item: &str, detail: String| rows.push((item.to_owned(), detail));
    let model = |m: &Model| {
        let weight = m.weight.map(|w| format!(", weight {w}")).unwrap_or_default();
        format!("{} ({} tensors{weight}): {}", m.name, m.checkpoint.tensors.len(), m.checkpoint.path.display())
    };
    plan.models.iter().for_each(|m| add("model", model(m)));
    plan.base.iter().for_each(|m| add("base", model(m)));
    let mut groups: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for task in &plan.tasks {
        let line = match &task.how {
            How::Merge(merge) => format!("{}({})", merge.method.name, run::parameters(merge)),
            How::Made { by, .. } => (*by).to_owned(),
            How::Copy { .. } => "copy (no floats; all models must agree)".to_owned(),
        };
        let group = groups.entry(line).or_default();
        *group = (group.0 + 1, group.1 + task.bytes());
    }
    for (line, (tensors, size)) in groups {
        add("strategy", format!("{line}: {tensors} tensors, {}", bytes(size)));
    }
    for task in &plan.tasks {
        add("tensor", format!("{} {} {:?} by {}", task.name, dtype::name(task.dtype), task.shape, task.strategy()));
    }
    plan.notes.iter().for_each(|note| add("note", note.clone()));
    let ordered: Vec<&str> = plan.ordered().into_iter().collect();
    add(
        "laws",
        match ordered.is_empty() {
            true => "a function of the set of models: order, repetition and layout of files count for nothing".to_owned(),
            false => format!("the order of the models counts for {}; repetition and layout of files don't", ordered.join(", ")),
        },
    );
    let surveys = plan.tasks.iter().any(|t| matches!(&t.how, How::Merge(m) if m.surveys()));
    let passes = if surveys { "read to hash, to survey, and to merge" } else { "read to hash, and to merge" };
    add("reads", format!("{}, {passes}", bytes(plan.reads())));
    add(
        "writes",
        match into {
            Some(out) => format!("{} to {}", bytes(plan.writes()), out.display()),
            None => format!("nothing: {} are hashed", bytes(plan.writes())),
        },
    );
    add("memory", format!("{} for tiles", bytes(plan.options.memory_limit)));
    add("backend", run::backend(plan));
    rows
}

/// Runs a config of mergekit; models are folders below `folder`.
///
/// # Errors
/// Whatever is wrong with it.
pub async fn merge_config(
    context: &MergeContext,
    text: String,
    folder: PathBuf,
    out: PathBuf,
    options: Options,
) -> Result<model::Merged> {
    let shared = context.shared.clone();
    let merged = blocking(move || {
        mergeql_tensors::mergekit::run(&text, &folder, &out, &options, |progress| shared.merging(progress.done, progress.total))
    });
    let merged = merged.await;
    context.shared.merging(0, 0);
    merged
}

/// The page about how some models differ from their base.
///
/// # Errors
/// As reading them.
pub async fn report(paths: Vec<String>, base: String) -> Result<String> {
    blocking(move || {
        let models = models_of(&paths)?;
        mergeql_tensors::report::html(&models, &base_of(base)?)
    })
    .await
}
