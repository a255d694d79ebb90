//! The table functions over files of tensors, and the rows that they and MERGE MODELS give.

use super::{OPTIONS, open, options, planned};
use crate::error::Result;
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
use datafusion::prelude::SessionContext;
use mergeql_tensors::checkpoint::{Checkpoint, Tensor, expand};
use mergeql_tensors::dtype;
use mergeql_tensors::lora;
use mergeql_tensors::method::{Params, Value};
use mergeql_tensors::methods;
use mergeql_tensors::plan::{Model, Plan, Request, Rule};
use mergeql_tensors::run::{self, Sealed};
use mergeql_tensors::stats::{self, Summary};
use mergeql_udfs::merkle::hex;
use mergeql_udfs::{Code, Error};
use std::collections::BTreeMap;
use std::sync::Arc;

// Rows about tensors.

const TENSOR: &str = "tensor";
const DTYPE: &str = "dtype";
const SHAPE: &str = "shape";
const STRATEGY: &str = "strategy";
const SHA256: &str = "sha256";

/// What MERGE MODELS says of each tensor.
pub(super) const SUMMARY: [&str; 5] = [TENSOR, DTYPE, SHAPE, STRATEGY, SHA256];

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
pub(super) struct Row {
    texts: BTreeMap<&'static str, String>,
    sha256: Option<String>,
    shape: Vec<usize>,
    counts: BTreeMap<&'static str, u64>,
    numbers: BTreeMap<&'static str, f64>,
    shares: Vec<f64>,
    data: Option<Vec<u8>>,
}

impl Row {
    /// Of a tensor whose bytes have this hash.
    pub(super) fn hashed(sha256: Option<String>) -> Row {
        Row { sha256, ..Row::default() }
    }

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
pub(super) fn rows(
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

pub(super) fn models_of(paths: &[String]) -> Result<Vec<Model>, Error> {
    let mut models = Vec::new();
    for path in paths {
        models.extend(open(path, None, None)?);
    }
    Ok(models)
}

/// The one model that a path stands for.
pub(super) fn base_of(path: String) -> Result<Model, Error> {
    let mut found = models_of(&[path])?;
    match (found.pop(), found.is_empty()) {
        (Some(base), true) => Ok(base),
        _ => Err(Error::invalid_argument(format!("the base is {} models", found.len() + 1))),
    }
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
    let models = models_of(&arguments.texts("models")?)?;
    let base = base_of(arguments.text("base")?)?;
    arguments.end()?;
    let columns = vec![TENSOR, "sign_conflict", "redundancy", "share"];
    let make = move |columns: &[&str]| {
        let mut rows = Vec::new();
        for (name, found) in stats::conflicts(&models, &base)? {
            let mut row = Row { shares: found.shares, ..Row::default() };
            row.texts.insert(TENSOR, name);
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
    let base = if arguments.named.contains_key("base") { Some(base_of(arguments.text("base")?)?) } else { None };
    let method = if lora::is_strategy(&strategy) { None } else { Some(methods::find(&strategy)?.0) };
    let (mut params, mut given) = (Params::new(), Vec::new());
    for (name, value) in std::mem::take(&mut arguments.named) {
        // Of adapters all that is no option is a parameter; the plan checks it.
        let own = method.map_or_else(|| !OPTIONS.contains(&name.as_str()), |m| m.param(&name).is_some());
        if own { drop(params.insert(name, value)) } else { given.push((name, value)) }
    }
    arguments.end()?;
    let rules = vec![Rule { pattern: "*".into(), strategy, params }];
    let options = options(given, &rules).map_err(|(_, error)| error)?;
    let plan = planned(Request { models, base, rules, options })?.0;
    let columns = SUMMARY.into_iter().chain(STATISTICS).chain(["data"]).collect();
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
