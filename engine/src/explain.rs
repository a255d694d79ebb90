//! EXPLAIN, SHOW STRATEGIES and `mergeql_strategies()`.

use crate::context::{MergeContext, Shared};
use crate::error::{MergeError, Result};
use arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::array_value_to_string;
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::Result as DfResult;
use datafusion::common::format::ExplainFormat;
use datafusion::datasource::MemTable;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::memory_pool::PeakRecordingPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::{DataFrame, SessionContext};
use mergeql_lang::ast::Explain;
use mergeql_lang::plan::Plan;
use mergeql_udfs::{Call, Type, catalog};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

pub(crate) fn texts(columns: &[(&str, Vec<String>)]) -> Result<RecordBatch> {
    let fields: Vec<Field> = columns.iter().map(|(n, _)| Field::new(*n, DataType::Utf8, false)).collect();
    let arrays = columns.iter().map(|(_, v)| Arc::new(StringArray::from_iter_values(v)) as ArrayRef).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

/// The plan of a merge: sources, key, columns and why, laws, push-downs, then the host's plan.
pub async fn merge(
    context: &MergeContext,
    session: &SessionContext,
    plan: &Plan,
    sql: &str,
    explain: Explain,
) -> Result<DataFrame> {
    let mut counts: BTreeMap<&str, String> = BTreeMap::new();
    for source in &plan.sources {
        let count = session.sql(&format!("SELECT count(*) FROM {} AS s", source.relation.sql)).await?.collect().await?;
        let count = count.first().map(|b| array_value_to_string(b.column(0), 0)).transpose()?.unwrap_or_default();
        counts.insert(&source.relation.sql, count);
    }
    let mut rows = plan.describe(|source| counts.get(source.relation.sql.as_str()).cloned());
    let mut add = |item: &str, detail: String| rows.push((item.to_owned(), detail));
    let verb = if explain == Explain::Analyze { "EXPLAIN ANALYZE" } else { "EXPLAIN" };
    let started = Instant::now();
    let (session, memory) = measured(session)?;
    let host = session.sql(&format!("{verb} {sql}")).await?.collect().await.map_err(MergeError::running)?;
    if explain == Explain::Analyze {
        add("time", format!("{:.3} s", started.elapsed().as_secs_f64()));
        add("memory", format!("{} at most for states, sorting and joining", crate::models::bytes(memory.peak_reserved() as u64)));
    }
    for batch in &host {
        for row in 0..batch.num_rows() {
            let (kind, text) = (array_value_to_string(batch.column(0), row)?, array_value_to_string(batch.column(1), row)?);
            if kind != "physical_plan" || context.shared.cluster.is_none() {
                text.lines().for_each(|line| add(&kind, line.to_owned()));
            }
        }
    }
    if let Some(cluster) = &context.shared.cluster
        && explain != Explain::Analyze
    {
        // What EXPLAIN shows is planned before it is divided among workers.
        let plan = cluster.explain(session.sql(sql).await?).await?;
        datafusion_distributed::display_plan_ascii(plan.as_ref(), false).lines().for_each(|line| add("stages", line.to_owned()));
    }
    let (items, details) = rows.into_iter().unzip();
    Ok(context.session().read_batch(texts(&[("item", items), ("detail", details)])?)?)
}

/// What EXPLAIN of a query says where there are workers: how it is divided among them.
pub async fn divided(context: &MergeContext, plan: &LogicalPlan) -> Result<Option<DataFrame>> {
    let (Some(cluster), LogicalPlan::Explain(asked)) = (&context.shared.cluster, plan) else { return Ok(None) };
    if asked.verbose || asked.explain_format != ExplainFormat::Indent {
        return Ok(None);
    }
    let frame = DataFrame::new(context.session().state(), asked.plan.as_ref().clone());
    let logical = frame.clone().into_optimized_plan()?.display_indent().to_string();
    let stages = cluster.explain(frame).await?;
    let stages = datafusion_distributed::display_plan_ascii(stages.as_ref(), false);
    let rows = texts(&[("plan_type", vec!["logical_plan".to_owned(), "stages".to_owned()]), ("plan", vec![logical, stages])])?;
    Ok(Some(context.session().read_batch(rows)?))
}

/// The session with a memory pool that knows how much was reserved at once.
fn measured(session: &SessionContext) -> Result<(SessionContext, Arc<PeakRecordingPool>)> {
    let runtime = session.runtime_env();
    let pool = Arc::new(PeakRecordingPool::new(runtime.memory_pool.clone()));
    let runtime = RuntimeEnvBuilder::from_runtime_env(&runtime).with_memory_pool(pool.clone()).build_arc()?;
    let state = session.state();
    let config = state.config().clone().with_create_default_catalog_and_schema(false);
    let state = SessionStateBuilder::new_from_existing(state).with_config(config).with_runtime_env(runtime).build();
    Ok((SessionContext::new_with_state(state), pool))
}

/// Every strategy, built in and user-defined.
pub fn strategies(own: BTreeMap<String, String>) -> Result<RecordBatch> {
    let mut rows: Vec<[String; 7]> = Vec::new();
    let mut closed = Vec::new();
    for entry in catalog::all() {
        let spec = entry.spec();
        rows.push([
            spec.name.to_owned(),
            spec.aliases.join(", "),
            spec.usage(),
            spec.takes.to_owned(),
            catalog::LAWS.join(", "),
            spec.since.to_owned(),
            spec.title.to_owned(),
        ]);
        closed.push((spec.closed)(&Call::new(vec![Type::List(Box::new(Type::INT64))])));
    }
    for (name, text) in own {
        let laws = catalog::LAWS.join(", ");
        rows.push([name.clone(), String::new(), name, "any type".to_owned(), laws, String::new(), text]);
        closed.push(false);
    }
    let column = |i: usize| Arc::new(rows.iter().map(|r| Some(r[i].as_str())).collect::<StringArray>()) as ArrayRef;
    let names = ["name", "aliases", "usage", "takes", "laws", "since", "description"];
    let mut fields: Vec<Field> = names.iter().map(|n| Field::new(*n, DataType::Utf8, false)).collect();
    let mut arrays: Vec<ArrayRef> = (0..names.len()).map(column).collect();
    fields.insert(5, Field::new("closed", DataType::Boolean, false));
    arrays.insert(5, Arc::new(BooleanArray::from(closed)));
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

/// The session holds this function, so this must not hold the session.
struct Strategies(Weak<Shared>);

impl std::fmt::Debug for Strategies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("mergeql_strategies")
    }
}

impl TableFunctionImpl for Strategies {
    fn call_with_args(&self, _: TableFunctionArgs<'_, '_>) -> DfResult<Arc<dyn TableProvider>> {
        let own = self.0.upgrade().map(|s| s.strategy_texts()).unwrap_or_default();
        let batch = strategies(own).map_err(|e| datafusion::common::DataFusionError::External(Box::new(e)))?;
        Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
    }
}

/// Registers the table functions.
pub fn register(session: &SessionContext, shared: Weak<Shared>) {
    session.register_udtf("mergeql_strategies", Arc::new(Strategies(shared)));
}
