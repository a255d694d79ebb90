//! The table functions over files of tensors, for every host: a row for each tensor, computed when it is asked for, and of it only the columns
//! that are.

use crate::checkpoint::{Checkpoint, Tensor, expand};
use crate::dtype;
use crate::lora;
use crate::method::{Params, Value as Given};
use crate::methods;
use crate::plan::{Model, Plan, Request, Rule};
use crate::request::{self, OPTIONS};
use crate::run::Surveyed;
use crate::sealed::Sealed;
use crate::stats::{self, Summary};
use mergeql_udfs::merkle::{Hash, hex};
use mergeql_udfs::{Code, Error, Result, Type, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// What a function gives: rows that are computed one by one.
pub trait Rows: Send + Sync {
    /// How many rows there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some columns of a row.
    ///
    /// # Errors
    /// As reading and merging tensors.
    fn row(&self, index: usize, columns: &[&str]) -> Result<Vec<Value>>;
}

/// A table function.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// One line on what it gives.
    pub title: &'static str,
    /// Its arguments, in order: their names, whether each is a list of texts, and whether it must be given.
    pub arguments: &'static [(&'static str, bool, bool)],
    /// Whether it takes parameters of strategies and options beside them.
    pub options: bool,
    /// Its columns.
    pub columns: &'static [&'static str],
    open: fn(Arguments) -> Result<Arc<dyn Rows>>,
}

/// All of them.
pub const FUNCTIONS: &[Function] = &[
    Function {
        name: "merge_models",
        title: "the tensors of a merged model, which is written nowhere",
        arguments: &[("models", true, true), ("strategy", false, false), ("base", false, false)],
        options: true,
        columns: &["tensor", "dtype", "shape", "strategy", "sha256", "min", "max", "mean", "std", "norm", "data"],
        open: merge_models,
    },
    Function {
        name: "read_safetensors",
        title: "the tensors of files, from their headers; statistics where they are asked for",
        arguments: &[("files", true, true)],
        options: false,
        columns: &["file", "tensor", "dtype", "shape", "offset", "bytes", "min", "max", "mean", "std", "norm"],
        open: read_safetensors,
    },
    Function {
        name: "tensor_compare",
        title: "how the tensors of two models differ",
        arguments: &[("a", false, true), ("b", false, true)],
        options: false,
        columns: &["tensor", "cosine", "l2", "sign_agreement", "conflict_share", "max_abs"],
        open: tensor_compare,
    },
    Function {
        name: "tensor_conflicts",
        title: "how far models that started from one base pull in opposite directions",
        arguments: &[("models", true, true), ("base", false, true)],
        options: false,
        columns: &["tensor", "sign_conflict", "redundancy", "share"],
        open: tensor_conflicts,
    },
    Function {
        name: "tensor_stability",
        title: "what a merged model kept of what each model had learned",
        arguments: &[("models", true, true), ("merged", false, true), ("base", false, true)],
        options: false,
        columns: &["tensor", "model", "retained", "cosine", "drift"],
        open: tensor_stability,
    },
];

/// The function of this name, whatever its case.
pub fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|f| f.name.eq_ignore_ascii_case(name))
}

/// The type of a column.
pub fn type_of(column: &str) -> Type {
    match column {
        "file" | "tensor" | "dtype" | "strategy" | "sha256" | "model" => Type::Text,
        "shape" => Type::List(Box::new(Type::Int { bits: 64, signed: true })),
        "share" => Type::List(Box::new(Type::Float64)),
        "offset" | "bytes" => Type::Int { bits: 64, signed: true },
        "data" => Type::Bytes,
        _ => Type::Float64,
    }
}

/// Arguments of a table function, in order and by name.
#[derive(Debug, Clone, Default)]
pub struct Arguments {
    /// In order.
    pub positional: Vec<Given>,
    /// By name.
    pub named: BTreeMap<String, Given>,
}

impl Function {
    /// Checks the arguments, and opens what they name; no element is read.
    ///
    /// # Errors
    /// `invalid_argument`, `unknown_option`, and what is wrong with files.
    pub fn open(&self, arguments: Arguments) -> Result<Arc<dyn Rows>> {
        let Arguments { positional, mut named } = arguments;
        for (at, value) in positional.into_iter().enumerate() {
            let Some((name, ..)) = self.arguments.get(at) else {
                return Err(Error::invalid_argument(format!("`{}` has no use for {value}", self.name)).with_help(self.usage()));
            };
            if named.insert((*name).to_owned(), value).is_some() {
                return Err(Error::invalid_argument(format!("`{}` is given twice", name)).with_help(self.usage()));
            }
        }
        let known = |name: &String| self.options || self.arguments.iter().any(|(known, ..)| known == name);
        if let Some(name) = named.keys().find(|name| !known(name)) {
            return Err(
                Error::new(Code::UnknownOption, format!("`{}` has no argument `{name}`", self.name)).with_help(self.usage())
            );
        }
        for (name, list, required) in self.arguments {
            let fits = match named.get(*name) {
                None => !required,
                Some(Given::Text(_)) => true,
                Some(Given::List(items)) => *list && !items.is_empty() && items.iter().all(|v| matches!(v, Given::Text(_))),
                Some(_) => false,
            };
            if !fits {
                let what = if *list { "a list of files: ['a.safetensors', ...]" } else { "a text" };
                return Err(Error::invalid_argument(format!("`{}` needs {name}, {what}", self.name)).with_help(self.usage()));
            }
        }
        (self.open)(Arguments { positional: Vec::new(), named })
    }

    /// How it is called.
    pub fn usage(&self) -> String {
        let mut arguments: Vec<String> = self
            .arguments
            .iter()
            .map(|(name, list, required)| match (list, required) {
                (true, _) => format!("[{name}, ...]"),
                (false, true) => (*name).to_owned(),
                (false, false) => format!("{name} := ..."),
            })
            .collect();
        if self.options {
            arguments.push("parameter := ...".to_owned());
        }
        format!("write {}({})", self.name, arguments.join(", "))
    }
}

impl Arguments {
    fn text(&mut self, name: &str) -> Option<String> {
        match self.named.remove(name) {
            Some(Given::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn texts(&mut self, name: &str) -> Vec<String> {
        match self.named.remove(name) {
            Some(Given::Text(text)) => vec![text],
            Some(Given::List(items)) => {
                items.into_iter().filter_map(|v| if let Given::Text(t) = v { Some(t) } else { None }).collect()
            }
            _ => Vec::new(),
        }
    }

    fn models(&mut self, name: &str) -> Result<Vec<Model>> {
        let mut models = Vec::new();
        for path in self.texts(name) {
            models.extend(request::open(&path, None, None)?);
        }
        Ok(models)
    }

    fn model(&mut self, name: &str) -> Result<Model> {
        request::open_one(&self.text(name).unwrap_or_default(), None, None)
    }
}

const STATISTICS: [&str; 5] = ["min", "max", "mean", "std", "norm"];

/// Columns that cost a pass over the elements, or hold them, and what a host calls them that cannot see which columns a query wants.
pub const COSTLY: [(&str, &[&str]); 2] = [("statistics", &STATISTICS), ("with_data", &["data"])];

fn wants_statistics(columns: &[&str]) -> bool {
    columns.iter().any(|c| STATISTICS.contains(c))
}

fn statistic(summary: Option<Summary>, column: &str) -> Value {
    let Some(Summary { min, max, mean, std, norm }) = summary else { return Value::Null };
    Value::float(match column {
        "min" => min,
        "max" => max,
        "mean" => mean,
        "std" => std,
        _ => norm,
    })
}

fn shape(shape: &[usize]) -> Value {
    Value::List(shape.iter().map(|n| Value::Int(*n as i128)).collect())
}

fn values(columns: &[&str], mut cell: impl FnMut(&str) -> Value) -> Result<Vec<Value>> {
    Ok(columns.iter().map(|column| cell(column)).collect())
}

// read_safetensors

struct Headers(Vec<Tensor>);

fn read_safetensors(mut arguments: Arguments) -> Result<Arc<dyn Rows>> {
    let mut tensors: Vec<Tensor> = Vec::new();
    for path in arguments.texts("files") {
        for path in expand(&path)? {
            tensors.extend(Checkpoint::open(path)?.lenient(true).tensors.into_values());
        }
    }
    Ok(Arc::new(Headers(tensors)))
}

impl Rows for Headers {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn row(&self, index: usize, columns: &[&str]) -> Result<Vec<Value>> {
        let tensor = &self.0[index];
        let summary = match wants_statistics(columns) && dtype::is_float(tensor.dtype) {
            true => stats::summary(tensor)?,
            false => None,
        };
        values(columns, |column| match column {
            "file" => Value::text(tensor.file().to_string_lossy()),
            "tensor" => Value::text(tensor.name()),
            "dtype" => Value::text(dtype::name(tensor.dtype)),
            "shape" => shape(&tensor.shape),
            "offset" => Value::Int(i128::from(tensor.offset())),
            "bytes" => Value::Int(i128::from(tensor.bytes.end - tensor.bytes.start)),
            column => statistic(summary, column),
        })
    }
}

// tensor_compare

struct Pairs {
    names: Vec<String>,
    models: [Model; 2],
}

/// The tensors of this name that are floats of one shape in all models.
fn common<'m>(models: impl IntoIterator<Item = &'m Model>, name: &str) -> Option<Vec<&'m Tensor>> {
    let tensors: Vec<&Tensor> = models.into_iter().map(|m| m.checkpoint.get(name)).collect::<Option<_>>()?;
    let fits = tensors.iter().all(|t| t.shape == tensors[0].shape && dtype::is_float(t.dtype));
    fits.then_some(tensors)
}

fn tensor_compare(mut arguments: Arguments) -> Result<Arc<dyn Rows>> {
    let models = [arguments.model("a")?, arguments.model("b")?];
    let names: BTreeSet<String> = models.iter().flat_map(|m| m.checkpoint.tensors.keys().cloned()).collect();
    Ok(Arc::new(Pairs { names: names.into_iter().collect(), models }))
}

impl Rows for Pairs {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn row(&self, index: usize, columns: &[&str]) -> Result<Vec<Value>> {
        let name = &self.names[index];
        // What only one of them has, or has in another shape, is a row without numbers.
        let both = common(&self.models, name).filter(|_| columns.iter().any(|c| *c != "tensor"));
        let found = both.map(|both| stats::compare(both[0], both[1])).transpose()?;
        values(columns, |column| match (column, &found) {
            ("tensor", _) => Value::text(name.as_str()),
            (_, None) => Value::Null,
            ("cosine", Some(found)) => Value::float(found.cosine),
            ("l2", Some(found)) => Value::float(found.l2),
            ("sign_agreement", Some(found)) => Value::float(found.sign_agreement),
            ("conflict_share", Some(found)) => Value::float(found.conflict_share),
            (_, Some(found)) => Value::float(found.max_abs),
        })
    }
}

// tensor_conflicts and tensor_stability

struct Conflicts {
    names: Vec<String>,
    models: Vec<Model>,
    base: Model,
}

/// The tensors of floats that all have in one shape.
fn shared(models: &[Model], others: &[&Model]) -> Result<Vec<String>> {
    let names = models.first().into_iter().flat_map(|m| m.checkpoint.tensors.keys());
    let found: Vec<String> =
        names.filter(|name| common(models.iter().chain(others.iter().copied()), name).is_some()).cloned().collect();
    match found.is_empty() {
        true => Err(Error::invalid_argument("these models have no tensor of one name and shape in common")
            .with_help("name the model that all of them started from as base")),
        false => Ok(found),
    }
}

fn tensor_conflicts(mut arguments: Arguments) -> Result<Arc<dyn Rows>> {
    let (models, base) = (arguments.models("models")?, arguments.model("base")?);
    let models = lora::beside(models, Some(&base), &mut Vec::new())?;
    Ok(Arc::new(Conflicts { names: shared(&models, &[&base])?, models, base }))
}

impl Rows for Conflicts {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn row(&self, index: usize, columns: &[&str]) -> Result<Vec<Value>> {
        let name = &self.names[index];
        let found = match columns.iter().any(|c| *c != "tensor") {
            true => stats::conflict(&self.models, &self.base, name)?,
            false => None,
        };
        values(columns, |column| match (column, &found) {
            ("tensor", _) => Value::text(name.as_str()),
            (_, None) => Value::Null,
            ("sign_conflict", Some(found)) => Value::float(found.sign_conflict),
            ("redundancy", Some(found)) => Value::float(found.redundancy),
            (_, Some(found)) => Value::List(found.shares.iter().map(|s| Value::float(*s)).collect()),
        })
    }
}

struct Stability {
    names: Vec<String>,
    models: Vec<Model>,
    merged: Model,
    base: Model,
}

fn tensor_stability(mut arguments: Arguments) -> Result<Arc<dyn Rows>> {
    let models = arguments.models("models")?;
    let (merged, base) = (arguments.model("merged")?, arguments.model("base")?);
    let models = lora::beside(models, Some(&base), &mut Vec::new())?;
    Ok(Arc::new(Stability { names: shared(&models, &[&merged, &base])?, models, merged, base }))
}

impl Rows for Stability {
    fn len(&self) -> usize {
        self.names.len() * self.models.len()
    }

    fn row(&self, index: usize, columns: &[&str]) -> Result<Vec<Value>> {
        let (name, model) = (&self.names[index / self.models.len()], &self.models[index % self.models.len()]);
        let found = match columns.iter().any(|c| !["tensor", "model"].contains(c)) {
            true => common([model, &self.merged, &self.base], name).map(|t| stats::stability(t[0], t[1], t[2])).transpose()?,
            false => None,
        };
        values(columns, |column| match (column, &found) {
            ("tensor", _) => Value::text(name.as_str()),
            ("model", _) => Value::text(model.name.as_str()),
            (_, None) => Value::Null,
            ("retained", Some(found)) => found.retained.map_or(Value::Null, Value::float),
            ("cosine", Some(found)) => found.retained.map_or(Value::Null, |_| Value::float(found.cosine)),
            (_, Some(found)) => Value::float(found.drift),
        })
    }
}

// merge_models

struct Merged {
    plan: Plan,
    /// What is known of the models once the first tensor was asked for.
    surveyed: Mutex<Option<Arc<Surveyed>>>,
}

fn merge_models(mut arguments: Arguments) -> Result<Arc<dyn Rows>> {
    let models = arguments.models("models")?;
    let strategy = arguments.text("strategy").unwrap_or_else(|| "linear".into());
    let base = arguments.text("base").map(|path| request::open_one(&path, None, None)).transpose()?;
    #[cfg(feature = "search")]
    if crate::search::is_strategy(&strategy) {
        return Err(Error::new(Code::Unsupported, format!("`{strategy}` writes candidates, which a table function does not"))
            .with_help("write MERGE MODELS ... INTO 'folder/'"));
    }
    // Who may read files may not write them.
    if let Some(name) = ["cache", "cache_size"].into_iter().find(|name| arguments.named.contains_key(*name)) {
        return Err(Error::new(Code::Unsupported, format!("`merge_models` writes nothing, and so takes no `{name}`"))
            .with_help("write MERGE MODELS ... WITH (cache = 'folder/')"));
    }
    let method = if request::takes_any(&strategy) { None } else { Some(methods::find(&strategy)?.0) };
    let (mut params, mut given) = (Params::new(), Vec::new());
    for (name, value) in std::mem::take(&mut arguments.named) {
        // Of adapters all that is no option is a parameter; the plan checks it.
        let own = method.map_or_else(|| !OPTIONS.contains(&name.as_str()), |m| m.param(&name).is_some());
        if own { drop(params.insert(name, value)) } else { given.push((name, value)) }
    }
    let rules = vec![Rule { pattern: "*".into(), strategy, params }];
    let options = request::options(given, &rules).map_err(|(_, error)| error)?;
    let plan = request::planned(Request { models, base, rules, options })?.0;
    Ok(Arc::new(Merged { plan, surveyed: Mutex::new(None) }))
}

impl Merged {
    fn surveyed(&self) -> Result<Arc<Surveyed>> {
        let mut surveyed = self.surveyed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*surveyed {
            return Ok(known.clone());
        }
        let new = Arc::new(Surveyed::new(Sealed::new(self.plan.clone())?)?);
        Ok(surveyed.insert(new).clone())
    }
}

impl Rows for Merged {
    fn len(&self) -> usize {
        self.plan.tasks.len()
    }

    fn row(&self, index: usize, columns: &[&str]) -> Result<Vec<Value>> {
        let task = &self.plan.tasks[index];
        let statistics = wants_statistics(columns) && dtype::is_float(task.dtype);
        let wanted = statistics || columns.contains(&"data");
        let (data, hash) = match wanted || columns.contains(&"sha256") {
            true => self.surveyed()?.tensor(index, wanted)?,
            false => (Vec::new(), Hash::default()),
        };
        let summary = match statistics {
            true => {
                let mut values = vec![0.0; task.len()];
                dtype::decode(task.dtype, &data, &mut values)?;
                stats::summary(&Tensor::memory(&task.name, &task.shape, values))?
            }
            false => None,
        };
        values(columns, |column| match column {
            "tensor" => Value::text(task.name.as_str()),
            "dtype" => Value::text(dtype::name(task.dtype)),
            "shape" => shape(&task.shape),
            "strategy" => Value::text(task.strategy()),
            "sha256" => Value::text(hex(&hash)),
            "data" => Value::Bytes(data.as_slice().into()),
            column => statistic(summary, column),
        })
    }
}
