//! The table functions over files of tensors, as tables of DataFusion, and the rows of MERGE MODELS.

use crate::columns;
use crate::error::Result;
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema, SchemaRef};
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
use mergeql_tensors::dtype;
use mergeql_tensors::method::Value;
use mergeql_tensors::plan::{How, Plan};
use mergeql_tensors::sealed::written;
use mergeql_tensors::tables::{self, Arguments, Function, Rows, type_of};
use mergeql_udfs::{Error, Value as Cell};
use std::collections::BTreeMap;
use std::sync::Arc;

fn schema(columns: &[&str]) -> SchemaRef {
    let field = |name: &&str| Field::new(*name, columns::physical(&type_of(name)), true);
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}

/// Rows, value by value, as a batch.
fn batch(columns: &[&str], rows: Vec<Vec<Cell>>) -> DfResult<RecordBatch> {
    let (schema, count) = (schema(columns), rows.len());
    let mut by_column: Vec<Vec<Cell>> = columns.iter().map(|_| Vec::with_capacity(count)).collect();
    for row in rows {
        by_column.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    }
    let build = |(values, field): (Vec<Cell>, &Arc<Field>)| columns::from_values(&values, field.data_type());
    let arrays: Vec<ArrayRef> = by_column.into_iter().zip(schema.fields()).map(build).collect::<DfResult<_>>()?;
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(count));
    Ok(RecordBatch::try_new_with_options(schema, arrays, &options)?)
}

/// What MERGE MODELS says: a row for each tensor, with the hash of its bytes; with its parameters where they were found by a search.
pub(super) fn merged(plan: &Plan, hashes: &BTreeMap<String, String>, searched: bool) -> Result<RecordBatch> {
    let row = |task: &mergeql_tensors::plan::Task| {
        let shape = task.shape.iter().map(|n| Cell::Int(*n as i128)).collect();
        vec![
            Cell::text(task.name.as_str()),
            Cell::text(dtype::name(task.dtype)),
            Cell::List(shape),
            match &task.how {
                How::Merge(merge) if searched => Cell::text(format!("{}({})", merge.method.name, written(merge))),
                _ => Cell::text(task.strategy()),
            },
            hashes.get(&task.name).map_or(Cell::Null, |hash| Cell::text(hash.as_str())),
        ]
    };
    Ok(batch(&["tensor", "dtype", "shape", "strategy", "sha256"], plan.tasks.iter().map(row).collect())?)
}

/// Rows of one batch: few, for each may be a tensor.
const BATCH: usize = 64;

struct Lazy {
    columns: &'static [&'static str],
    rows: Arc<dyn Rows>,
}

impl std::fmt::Debug for Lazy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.columns)
    }
}

#[async_trait]
impl TableProvider for Lazy {
    fn schema(&self) -> SchemaRef {
        schema(self.columns)
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
            None => self.columns.to_vec(),
        };
        let schema = schema(&columns);
        let part = Part { schema: schema.clone(), columns, rows: self.rows.clone() };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(part)], None, Vec::new(), false, limit)?))
    }
}

struct Part {
    schema: SchemaRef,
    columns: Vec<&'static str>,
    rows: Arc<dyn Rows>,
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
        let (rows, columns) = (self.rows.clone(), self.columns.clone());
        // With their bytes, one tensor at a time.
        let step = if columns.contains(&"data") { 1 } else { BATCH };
        let stream = futures::stream::try_unfold(0, move |at| {
            let (rows, columns) = (rows.clone(), columns.clone());
            async move {
                let to = (at + step).min(rows.len());
                if at == to {
                    return Ok(None);
                }
                let work = move || {
                    let made = (at..to).map(|i| rows.row(i, &columns)).collect::<Result<Vec<_>, Error>>();
                    batch(&columns, made.map_err(columns::external)?)
                };
                let done = tokio::task::spawn_blocking(work).await;
                Ok(Some((done.map_err(|e| DataFusionError::External(Box::new(e)))??, to)))
            }
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), stream))
    }
}

/// Plans the table functions, whose arguments may be named.
#[derive(Debug)]
struct Functions;

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

fn arguments(function: &Function, args: &[sql::FunctionArg]) -> Result<Arguments, Error> {
    let mut found = Arguments::default();
    for arg in args {
        let (name, expr) = match arg {
            sql::FunctionArg::Unnamed(sql::FunctionArgExpr::Expr(expr)) => (None, expr),
            sql::FunctionArg::Named { name, arg: sql::FunctionArgExpr::Expr(expr), .. } => {
                (Some(name.value.to_ascii_lowercase()), expr)
            }
            sql::FunctionArg::ExprNamed { name: sql::Expr::Identifier(name), arg: sql::FunctionArgExpr::Expr(expr), .. } => {
                (Some(name.value.to_ascii_lowercase()), expr)
            }
            other => return Err(Error::invalid_argument(format!("`{}` takes no argument `{other}`", function.name))),
        };
        let value = literal(expr).ok_or_else(|| {
            let message = format!("`{}` takes texts, numbers, true, false and lists of them, not `{expr}`", function.name);
            Error::invalid_argument(message)
        })?;
        match name {
            Some(name) => drop(found.named.insert(name, value)),
            None => found.positional.push(value),
        }
    }
    Ok(found)
}

impl RelationPlanner for Functions {
    fn plan_relation(&self, relation: sql::TableFactor, _: &mut dyn RelationPlannerContext) -> DfResult<RelationPlanning> {
        let sql::TableFactor::Table { name, alias, args: Some(args), .. } = &relation else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let Some(function) = tables::find(&name.to_string()) else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let rows = arguments(function, &args.args).and_then(|arguments| function.open(arguments)).map_err(columns::external)?;
        let table = Lazy { columns: function.columns, rows };
        let plan = LogicalPlanBuilder::scan(function.name, provider_as_source(Arc::new(table)), None)?.build()?;
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
