//! MERGE MODELS, and the table functions over files of tensors.

use crate::context::{MergeContext, parse_size};
use crate::error::{MergeError, Result};
use arrow::array::{ArrayRef, BinaryBuilder, Float64Builder, Int64Builder, ListBuilder, RecordBatch, StringBuilder, UInt64Builder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result as DfResult};
use datafusion::datasource::provider_as_source;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::sqlparser::ast as sql;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::prelude::{DataFrame, SessionContext};
use mergeql_lang::Diagnostic;
use mergeql_lang::ast::{ModelSource, Models, Name, Setting};
use mergeql_tensors::checkpoint::{Checkpoint, Tensor, expand};
use mergeql_tensors::dtype;
use mergeql_tensors::lora;
use mergeql_tensors::method::{Job, Params, Semantics, Value};
use mergeql_tensors::methods;
use mergeql_tensors::model::{self, Extras};
use mergeql_tensors::plan::{How, Model, Options, Plan, Request, Rule};
use mergeql_tensors::run::{self, Sealed, hex};
use mergeql_tensors::stats::{self, Summary};
use mergeql_udfs::{Code, Error};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
        return Ok(opened.into_iter().map(|checkpoint| Model { name: name(&checkpoint.path), checkpoint, weight }).collect());
    }
    let mut together = Checkpoint { path: paths[0].parent().unwrap_or(Path::new(".")).to_owned(), tensors: BTreeMap::new() };
    let disjoint =
        opened.iter().all(|c| c.tensors.iter().all(|(name, t)| together.tensors.insert(name.clone(), t.clone()).is_none()));
    if disjoint {
        return Ok(vec![Model { name: name(&together.path), checkpoint: together, weight }]);
    }
    let each = |checkpoint: Checkpoint| {
        let own = stem(&checkpoint.path);
        Model { name: alias.map_or_else(|| own.clone(), |alias| format!("{alias}/{own}")), checkpoint, weight }
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

/// Whether this is an option of the whole merge.
fn is_option(name: &str) -> bool {
    ["out_dtype", "semantics", "nan", "missing", "overwrite", "max_shard_size", "memory_limit", "backend"].contains(&name)
}

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
        "max_shard_size" => options.max_shard_size = size(&given).ok_or_else(|| wrong("a size like '5GB'", &given))?,
        "memory_limit" => options.memory_limit = size(&given).ok_or_else(|| wrong("a size like '512MB'", &given))?,
        "backend" => match &given {
            Value::Text(text) if text == "auto" || text == "cpu" => {}
            Value::Text(text) if text == "gpu" => {
                return Err(Error::new(Code::Unsupported, "this build has no GPU backend")
                    .with_help("backend = 'cpu' gives the same bytes"));
            }
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
            let error = Error::new(Code::UnknownOption, format!("neither MERGE MODELS nor any strategy here has `{name}`")).with_help(
                "options are out_dtype, semantics, nan, missing, overwrite, max_shard_size, memory_limit, backend, and parameters of the strategies",
            );
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
        let columns = [TENSOR, DTYPE, SHAPE, STRATEGY, SHA256];
        rows(&sealed.plan, &columns, |task| Ok(Row { sha256: hashes.get(&task.name).cloned(), ..Row::default() }))
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
    add("backend", "cpu".to_owned());
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
        let mut base = models_of(&[base])?;
        let base = base.pop().ok_or_else(|| Error::invalid_argument("there is no base"))?;
        mergeql_tensors::report::html(&models, &base)
    })
    .await
}

// Rows about tensors.

const TENSOR: &str = "tensor";
const DTYPE: &str = "dtype";
const SHAPE: &str = "shape";
const STRATEGY: &str = "strategy";
const SHA256: &str = "sha256";

fn field(name: &str) -> Field {
    let ty = match name {
        "file" | TENSOR | DTYPE | STRATEGY | SHA256 => DataType::Utf8,
        SHAPE => DataType::List(Arc::new(Field::new("item", DataType::Int64, true))),
        "offset" | "bytes" => DataType::UInt64,
        "data" => DataType::Binary,
        "share" => DataType::List(Arc::new(Field::new("item", DataType::Float64, true))),
        _ => DataType::Float64,
    };
    Field::new(name, ty, true)
}

fn schema(columns: &[&str]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|c| field(c)).collect::<Vec<_>>()))
}

/// What a row says; what isn't asked for stays empty.
#[derive(Debug, Default)]
struct Row {
    texts: BTreeMap<&'static str, String>,
    sha256: Option<String>,
    shape: Vec<usize>,
    counts: BTreeMap<&'static str, u64>,
    numbers: BTreeMap<&'static str, f64>,
    shares: Vec<f64>,
    data: Option<Vec<u8>>,
}

impl Row {
    fn summarize(&mut self, summary: Option<Summary>) {
        if let Some(Summary { min, max, mean, std, norm }) = summary {
            self.numbers.extend([("min", min), ("max", max), ("mean", mean), ("std", std), ("norm", norm)]);
        }
    }
}

const STATISTICS: [&str; 5] = ["min", "max", "mean", "std", "norm"];

fn column(name: &str, rows: &[Row]) -> Result<ArrayRef, Error> {
    Ok(match field(name).data_type() {
        DataType::Utf8 => {
            let mut out = StringBuilder::new();
            rows.iter().for_each(|r| out.append_option(if name == SHA256 { r.sha256.as_ref() } else { r.texts.get(name) }));
            Arc::new(out.finish())
        }
        DataType::UInt64 => {
            let mut out = UInt64Builder::new();
            rows.iter().for_each(|r| out.append_option(r.counts.get(name).copied()));
            Arc::new(out.finish())
        }
        DataType::Binary => {
            let mut out = BinaryBuilder::new();
            rows.iter().for_each(|r| out.append_option(r.data.as_ref()));
            Arc::new(out.finish())
        }
        DataType::List(_) if name == SHAPE => {
            let mut out = ListBuilder::new(Int64Builder::new());
            for row in rows {
                row.shape.iter().for_each(|n| out.values().append_value(*n as i64));
                out.append(true);
            }
            Arc::new(out.finish())
        }
        DataType::List(_) => {
            let mut out = ListBuilder::new(Float64Builder::new());
            for row in rows {
                row.shares.iter().for_each(|v| out.values().append_value(*v));
                out.append(true);
            }
            Arc::new(out.finish())
        }
        _ => {
            let mut out = Float64Builder::new();
            rows.iter().for_each(|r| out.append_option(r.numbers.get(name).copied()));
            Arc::new(out.finish())
        }
    })
}

fn batch(columns: &[&str], rows: &[Row]) -> Result<RecordBatch, Error> {
    let arrays = columns.iter().map(|name| column(name, rows)).collect::<Result<Vec<_>, _>>()?;
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(schema(columns), arrays, &options).map_err(|e| Error::new(Code::LimitExceeded, e.to_string()))
}

/// A row for each tensor of a plan, with what `more` knows of it.
fn rows(
    plan: &Plan,
    columns: &[&str],
    mut more: impl FnMut(&mergeql_tensors::plan::Task) -> Result<Row, Error>,
) -> Result<RecordBatch, Error> {
    let mut rows = Vec::new();
    for task in &plan.tasks {
        let mut row = more(task)?;
        row.texts.extend([(TENSOR, task.name.clone()), (DTYPE, dtype::name(task.dtype)), (STRATEGY, task.strategy().to_owned())]);
        row.shape = task.shape.clone();
        rows.push(row);
    }
    batch(columns, &rows)
}

// Table functions.

/// Computes the columns that are asked for.
type Make = dyn Fn(&[&str]) -> Result<RecordBatch, Error> + Send + Sync;

struct Lazy {
    columns: Vec<&'static str>,
    make: Arc<Make>,
}

impl std::fmt::Debug for Lazy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.columns)
    }
}

#[async_trait]
impl TableProvider for Lazy {
    fn schema(&self) -> SchemaRef {
        schema(&self.columns)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let columns: Vec<&'static str> = match projection {
            Some(wanted) => wanted.iter().map(|i| self.columns[*i]).collect(),
            None => self.columns.clone(),
        };
        let schema = schema(&columns);
        let part = Part { schema: schema.clone(), columns, make: self.make.clone() };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(part)], None, Vec::new(), false, limit)?))
    }
}

struct Part {
    schema: SchemaRef,
    columns: Vec<&'static str>,
    make: Arc<Make>,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.columns)
    }
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (make, columns) = (self.make.clone(), self.columns.clone());
        let work = async move {
            let done = tokio::task::spawn_blocking(move || make(&columns)).await;
            done.map_err(|e| DataFusionError::External(Box::new(e)))?.map_err(|e| DataFusionError::External(Box::new(e)))
        };
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), futures::stream::once(work)))
    }
}

/// Plans the table functions, whose arguments may be named.
#[derive(Debug)]
struct Functions;

/// Arguments of a table function.
struct Arguments {
    function: &'static str,
    positional: Vec<Value>,
    named: BTreeMap<String, Value>,
}

fn literal(expr: &sql::Expr) -> Option<Value> {
    match expr {
        sql::Expr::Value(value) => match &value.value {
            sql::Value::SingleQuotedString(text) => Some(Value::Text(text.clone())),
            sql::Value::Number(text, _) => text.parse().ok().map(Value::Number),
            sql::Value::Boolean(flag) => Some(Value::Flag(*flag)),
            _ => None,
        },
        sql::Expr::UnaryOp { op: sql::UnaryOperator::Minus, expr } => match literal(expr)? {
            Value::Number(v) => Some(Value::Number(-v)),
            _ => None,
        },
        sql::Expr::Array(array) => array.elem.iter().map(literal).collect::<Option<_>>().map(Value::List),
        sql::Expr::Nested(inner) => literal(inner),
        _ => None,
    }
}

impl Arguments {
    fn of(function: &'static str, args: &[sql::FunctionArg]) -> Result<Arguments, Error> {
        let mut found = Arguments { function, positional: Vec::new(), named: BTreeMap::new() };
        for arg in args {
            let (name, expr) = match arg {
                sql::FunctionArg::Unnamed(sql::FunctionArgExpr::Expr(expr)) => (None, expr),
                sql::FunctionArg::Named { name, arg: sql::FunctionArgExpr::Expr(expr), .. } => {
                    (Some(name.value.to_ascii_lowercase()), expr)
                }
                sql::FunctionArg::ExprNamed {
                    name: sql::Expr::Identifier(name), arg: sql::FunctionArgExpr::Expr(expr), ..
                } => (Some(name.value.to_ascii_lowercase()), expr),
                other => return Err(Error::invalid_argument(format!("`{function}` takes no argument `{other}`"))),
            };
            let value = literal(expr).ok_or_else(|| {
                Error::invalid_argument(format!("`{function}` takes texts, numbers, true, false and lists of them, not `{expr}`"))
            })?;
            match name {
                Some(name) => drop(found.named.insert(name, value)),
                None => found.positional.push(value),
            }
        }
        Ok(found)
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        if let Some(value) = self.named.remove(name) {
            return Some(value);
        }
        (!self.positional.is_empty()).then(|| self.positional.remove(0))
    }

    fn text(&mut self, name: &str) -> Result<String, Error> {
        match self.take(name) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(Error::invalid_argument(format!("`{}` needs {name}, a text", self.function))),
        }
    }

    fn texts(&mut self, name: &str) -> Result<Vec<String>, Error> {
        let function = self.function;
        let wrong = || Error::invalid_argument(format!("`{function}` needs {name}, a list of files: ['a.safetensors', ...]"));
        match self.take(name) {
            Some(Value::Text(text)) => Ok(vec![text]),
            Some(Value::List(items)) => {
                items.into_iter().map(|v| if let Value::Text(text) = v { Ok(text) } else { Err(wrong()) }).collect()
            }
            _ => Err(wrong()),
        }
    }

    fn end(&self) -> Result<(), Error> {
        match (self.positional.first(), self.named.keys().next()) {
            (Some(value), _) => Err(Error::invalid_argument(format!("`{}` has no use for {value}", self.function))),
            (_, Some(name)) => Err(Error::new(Code::UnknownOption, format!("`{}` has no argument `{name}`", self.function))),
            _ => Ok(()),
        }
    }
}

fn models_of(paths: &[String]) -> Result<Vec<Model>, Error> {
    let mut models = Vec::new();
    for path in paths {
        models.extend(open(path, None, None)?);
    }
    Ok(models)
}

fn read_safetensors(mut arguments: Arguments) -> Result<Lazy, Error> {
    let paths = arguments.texts("files")?;
    arguments.end()?;
    let mut tensors: Vec<Tensor> = Vec::new();
    for path in paths {
        for path in expand(&path)? {
            tensors.extend(Checkpoint::open(path)?.lenient(true).tensors.into_values());
        }
    }
    let columns = ["file", TENSOR, DTYPE, SHAPE, "offset", "bytes"].into_iter().chain(STATISTICS).collect();
    let make = move |columns: &[&str]| {
        let summarized = columns.iter().any(|c| STATISTICS.contains(c));
        let mut rows = Vec::new();
        for tensor in &tensors {
            let mut row = Row { shape: tensor.shape.clone(), ..Row::default() };
            row.texts.insert("file", tensor.file().to_string_lossy().into_owned());
            row.texts.insert(TENSOR, tensor.name().to_owned());
            row.texts.insert(DTYPE, dtype::name(tensor.dtype));
            row.counts.extend([("offset", tensor.offset()), ("bytes", tensor.bytes.end - tensor.bytes.start)]);
            if summarized && dtype::is_float(tensor.dtype) {
                row.summarize(stats::summary(tensor)?);
            }
            rows.push(row);
        }
        batch(columns, &rows)
    };
    Ok(Lazy { columns, make: Arc::new(make) })
}

/// The tensors of this name that are floats of one shape in all models.
fn common<'m>(models: &'m [Model], name: &str) -> Option<Vec<&'m Tensor>> {
    let tensors: Vec<&Tensor> = models.iter().map(|m| m.checkpoint.get(name)).collect::<Option<_>>()?;
    let fits = tensors.iter().all(|t| t.shape == tensors[0].shape && dtype::is_float(t.dtype));
    fits.then_some(tensors)
}

fn tensor_compare(mut arguments: Arguments) -> Result<Lazy, Error> {
    let models = models_of(&[arguments.text("a")?, arguments.text("b")?])?;
    arguments.end()?;
    if models.len() != 2 {
        return Err(Error::invalid_argument(format!("`tensor_compare` takes two models, not {}", models.len())));
    }
    let columns = vec![TENSOR, "cosine", "l2", "sign_agreement", "conflict_share", "max_abs"];
    let make = move |columns: &[&str]| {
        let mut rows = Vec::new();
        let names: std::collections::BTreeSet<&String> = models.iter().flat_map(|m| m.checkpoint.tensors.keys()).collect();
        for name in names {
            let mut row = Row::default();
            row.texts.insert(TENSOR, name.clone());
            // What only one of them has, or has in another shape, is a row without numbers.
            if let Some(both) = common(&models, name).filter(|_| columns.iter().any(|c| *c != TENSOR)) {
                let found = stats::compare(both[0], both[1])?;
                row.numbers.extend([
                    ("cosine", found.cosine),
                    ("l2", found.l2),
                    ("sign_agreement", found.sign_agreement),
                    ("conflict_share", found.conflict_share),
                    ("max_abs", found.max_abs),
                ]);
            }
            rows.push(row);
        }
        batch(columns, &rows)
    };
    Ok(Lazy { columns, make: Arc::new(make) })
}

fn tensor_conflicts(mut arguments: Arguments) -> Result<Lazy, Error> {
    let mut models = models_of(&arguments.texts("models")?)?;
    let base = models_of(&[arguments.text("base")?])?;
    arguments.end()?;
    models.extend(base);
    let columns = vec![TENSOR, "sign_conflict", "redundancy", "share"];
    let make = move |columns: &[&str]| {
        let (base, tuned) = models.split_last().ok_or_else(|| Error::invalid_argument("there are no models"))?;
        let settings = mergeql_tensors::method::Settings::new(
            methods::find("task_arithmetic")?.0,
            &Params::new(),
            Semantics::Paper,
            tuned.len(),
        )?;
        let input = |(place, tensor): (usize, &Tensor)| mergeql_tensors::method::Input {
            tensor: tensor.clone(),
            hash: [0; 32],
            place,
            model: place,
        };
        let mut rows = Vec::new();
        for name in base.checkpoint.tensors.keys() {
            let Some(tensors) = common(&models, name) else { continue };
            let inputs: Vec<_> = tensors.into_iter().enumerate().map(input).collect();
            let (of_base, inputs) = inputs.split_last().ok_or_else(|| Error::invalid_argument("there are no models"))?;
            let job = Job {
                name,
                shape: &of_base.tensor.shape,
                models: inputs,
                base: Some(of_base),
                settings: &settings,
                sides: Arc::default(),
                offset: 0,
                survey: None,
            };
            let found = stats::conflict(&job)?;
            let mut row = Row { shares: found.shares, ..Row::default() };
            row.texts.insert(TENSOR, name.clone());
            row.numbers.extend([("sign_conflict", found.sign_conflict), ("redundancy", found.redundancy)]);
            rows.push(row);
        }
        batch(columns, &rows)
    };
    Ok(Lazy { columns, make: Arc::new(make) })
}

fn merge_models(mut arguments: Arguments) -> Result<Lazy, Error> {
    let models = models_of(&arguments.texts("models")?)?;
    let strategy = if arguments.named.contains_key("strategy") || !arguments.positional.is_empty() {
        arguments.text("strategy")?
    } else {
        "linear".into()
    };
    let mut base = if arguments.named.contains_key("base") { models_of(&[arguments.text("base")?])? } else { Vec::new() };
    let method = if lora::is_strategy(&strategy) { None } else { Some(methods::find(&strategy)?.0) };
    let (mut params, mut given) = (Params::new(), Vec::new());
    for (name, value) in std::mem::take(&mut arguments.named) {
        // Of adapters all that is no option is a parameter; the plan checks it.
        let own = method.map_or_else(|| !is_option(&name), |m| m.param(&name).is_some());
        if own { drop(params.insert(name, value)) } else { given.push((name, value)) }
    }
    arguments.end()?;
    let rules = vec![Rule { pattern: "*".into(), strategy, params }];
    let options = options(given, &rules).map_err(|(_, error)| error)?;
    let plan = planned(Request { models, base: base.pop(), rules, options })?.0;
    let columns = [TENSOR, DTYPE, SHAPE, STRATEGY, SHA256].into_iter().chain(STATISTICS).chain(["data"]).collect();
    let make = move |columns: &[&str]| {
        let cheap = [TENSOR, DTYPE, SHAPE, STRATEGY];
        if columns.iter().all(|c| cheap.contains(c)) {
            return rows(&plan, columns, |_| Ok(Row::default()));
        }
        let sealed = Sealed::new(plan.clone())?;
        let surveyed = run::Surveyed::new(&sealed)?;
        let wanted = |name: &str| columns.contains(&name);
        let mut index = 0;
        rows(&sealed.plan, columns, |task| {
            let (data, hash) = surveyed.tensor(index, STATISTICS.iter().any(|c| wanted(c)) || wanted("data"))?;
            index += 1;
            let mut row = Row { sha256: Some(hex(&hash)), ..Row::default() };
            if dtype::is_float(task.dtype) && STATISTICS.iter().any(|c| wanted(c)) {
                let mut values = vec![0.0; task.len()];
                dtype::decode(task.dtype, &data, &mut values)?;
                row.summarize(stats::summary(&Tensor::memory(&task.name, &task.shape, values))?);
            }
            row.data = wanted("data").then_some(data);
            Ok(row)
        })
    };
    Ok(Lazy { columns, make: Arc::new(make) })
}

type Plans = fn(Arguments) -> Result<Lazy, Error>;

const FUNCTIONS: [(&str, Plans); 4] = [
    ("merge_models", merge_models),
    ("read_safetensors", read_safetensors),
    ("tensor_compare", tensor_compare),
    ("tensor_conflicts", tensor_conflicts),
];

impl RelationPlanner for Functions {
    fn plan_relation(&self, relation: sql::TableFactor, _: &mut dyn RelationPlannerContext) -> DfResult<RelationPlanning> {
        let sql::TableFactor::Table { name, alias, args: Some(args), .. } = &relation else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let called = name.to_string();
        let Some((function, plan)) = FUNCTIONS.iter().find(|(function, _)| called.eq_ignore_ascii_case(function)) else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let external = |e: Error| DataFusionError::External(Box::new(e));
        let table = plan(Arguments::of(function, &args.args).map_err(external)?).map_err(external)?;
        let plan = LogicalPlanBuilder::scan(*function, provider_as_source(Arc::new(table)), None)?.build()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias.clone()))))
    }
}

/// Registers the table functions.
///
/// # Errors
/// As DataFusion.
pub fn register(session: &SessionContext) -> Result<()> {
    Ok(session.register_relation_planner(Arc::new(Functions))?)
}
