//! The session: statements in, rows out.

use crate::binding::First;
use crate::checked::CheckedArithmetic;
use crate::cluster::singles::{self, SingleValues};
use crate::cluster::{Client, Cluster, ranges};
use crate::current::{Lasting, lasts};
use crate::error::{MergeError, Result};
use crate::hashed::HashedMerges;
use crate::memory::{limited_runtime, runtime_builder, sorting_within};
use crate::names::{Names, Passing};
use crate::objects::Object;
use crate::orders::Unclaimed;
use crate::serve::limits::giving_way;
use crate::sorted::SortedMerges;
use crate::sources::{Format, ReadOptions};
use crate::store::{Manifest, Store};
use crate::{aggregates, checked, custom, explain, merges, models, nan, scalars, sinks};
use arrow::array::{RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::TableProvider;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use futures::TryStreamExt;
use mergeql_lang::ast::{Explain, Into as Target, Merge, Name, Piece, Relation as Written, Returning, Statement};
use mergeql_lang::lower::{DELETED, DataFusion, Lowering, STATE, quote};
use mergeql_lang::plan::{Fold, Plan};
use mergeql_lang::{Diagnostic, Kept, UserStrategies, parse};
use mergeql_udfs::{Code, Value};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How a session runs.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Threads of a query; default: one a core.
    pub threads: Option<usize>,
    /// Memory of a query in bytes; beyond it, partial states spill to disk.
    pub memory_limit: Option<usize>,
    /// The folder in which tables and strategies are kept; default: memory.
    pub db: Option<PathBuf>,
    /// What statements may touch; default: everything, but no programs.
    pub access: Access,
    /// The workers that statements run on; default: this machine alone.
    pub cluster: Option<Cluster>,
    /// Where this worker listens, if it is one: errors about its memory say it.
    pub worker: Option<SocketAddr>,
}

/// What statements may touch: a server's clients are not its owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    /// Statements that change a table, a strategy or a file are refused.
    pub read_only: bool,
    /// Statements that name files are refused; tables and registered sources remain.
    pub no_files: bool,
    /// Statements may run programs: the command that judges the candidates of a search. The one thing that isn't allowed by default.
    pub commands: bool,
}

/// A MergeQL session over DataFusion. Cloning it gives another handle to the same session.
///
/// ```
/// # #[tokio::main(flavor = "multi_thread")]
/// # async fn main() -> Result<(), mergeql::MergeError> {
/// let merge = mergeql::MergeContext::new(mergeql::Config::default())?;
/// merge.sql("CREATE TABLE nyc (id INT, salary INT) AS VALUES (1, 90), (2, 72)").await?.collect().await?;
/// merge.sql("CREATE TABLE london (id INT, salary INT) AS VALUES (1, 85), (3, 64)").await?.collect().await?;
/// let rows = merge.sql("MERGE nyc, london ON id STRATEGY salary = max ORDER BY id").await?.collect().await?;
/// assert_eq!(rows.iter().map(|b| b.num_rows()).sum::<usize>(), 3);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MergeContext {
    pub(crate) session: SessionContext,
    pub(crate) shared: Arc<Shared>,
    /// The temporary tables of this connection; `None` where statements belong to none.
    pub(crate) temporary: Option<Arc<Names>>,
    /// What plans that are made here will meet when they run.
    pub(crate) lasting: Lasting,
}

pub(crate) struct Shared {
    pub(crate) store: Option<Store>,
    pub(crate) access: Access,
    pub(crate) cluster: Option<Client>,
    /// The tables of the default schema.
    pub(crate) names: Arc<Names>,
    /// Held by a statement that changes something, from its first look at the tables to its last write.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Held while the tables become those of the folder.
    pub(crate) refreshing: tokio::sync::Mutex<()>,
    /// Held by who reads standard input, which is read once.
    pub(crate) reading_stdin: tokio::sync::Mutex<()>,
    /// The most memory of all statements together.
    memory_limit: Option<usize>,
    memory: Mutex<Memory>,
    /// Bytes of a merged model that are written, and how many there will be; the same of its tensors.
    merged: [AtomicU64; 4],
    /// Clients that don't know of each other share the session.
    served: AtomicBool,
}

/// Why a client of a server sets nothing of the engine's.
pub(crate) fn settings_are_shared() -> MergeError {
    MergeError::new(Code::Unsupported, "the settings of the engine are shared by all clients of the server")
        .help("start the server with the setting, --memory-limit for one; WITH (memory_limit = ...) is of one statement")
}

/// What a session knows beside DataFusion's own tables.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) strategies: UserStrategies,
    pub(crate) texts: BTreeMap<String, String>,
    /// The folds that workers have to know, by the names of their functions.
    pub(crate) folds: BTreeMap<String, Fold>,
    /// How tables keep states, by name.
    pub(crate) resolutions: BTreeMap<String, String>,
    /// The manifest that the registered tables are of.
    pub(crate) manifest: Manifest,
    /// The statement that made each view, by name.
    pub(crate) views: BTreeMap<String, String>,
    /// How often names had changed when the views were planned.
    pub(crate) views_as_of: u64,
    stdin: Option<Arc<dyn TableProvider>>,
    files: Vec<tempfile::NamedTempFile>,
    running: Option<Arc<dyn ExecutionPlan>>,
}

impl Shared {
    /// Says how far the merge of models is, in bytes and in tensors.
    pub(crate) fn merging(&self, done: u64, total: u64, tensors: (usize, usize)) {
        let now = [done, total, tensors.0 as u64, tensors.1 as u64];
        self.merged.iter().zip(now).for_each(|(kept, now)| kept.store(now, Ordering::Relaxed));
    }

    /// The text after AS of each user-defined strategy.
    pub(crate) fn strategy_texts(&self) -> BTreeMap<String, String> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).texts.clone()
    }
}

impl MergeContext {
    /// A new session.
    ///
    /// # Errors
    /// `io` if the folder of tables cannot be opened.
    pub fn new(config: Config) -> Result<MergeContext> {
        let mut session_config = SessionConfig::new().with_information_schema(true);
        // Without a zone of the session, SQL's timestamps with one have none.
        session_config.options_mut().execution.time_zone = Some("+00:00".to_owned());
        if let Some(threads) = config.threads {
            session_config = session_config.with_target_partitions(threads);
        }
        let runtime = match config.memory_limit {
            None => runtime_builder().build_arc()?,
            Some(limit) => {
                session_config = bounded(session_config, limit);
                limited_runtime(limit, None, config.worker)?
            }
        };
        let state = SessionStateBuilder::new().with_config(session_config).with_runtime_env(runtime).with_default_features();
        let client = config.cluster.as_ref().map(|cluster| Client::new(cluster, config.threads)).transpose()?;
        let state = match &client {
            Some(client) => client.distribute(state.with_physical_optimizer_rules(rules(false, false))),
            None => state.with_physical_optimizer_rules(rules(true, true)),
        };
        let session = SessionContext::new_with_state(state.build());
        // It takes sort keys for determined by a key that an unnest below has multiplied, and drops them.
        session.remove_optimizer_rule("eliminate_duplicated_expr");
        session.add_analyzer_rule(Arc::new(CheckedArithmetic));
        if client.is_some() {
            session.add_analyzer_rule(Arc::new(SingleValues));
        }
        let (aggregates, scalars) = functions();
        aggregates.into_iter().for_each(|f| session.register_udaf(f));
        scalars.into_iter().for_each(|f| session.register_udf(f));
        if config.access.no_files {
            for function in mergeql_tensors::contribution::functions() {
                session.deregister_udf(function.name);
            }
        }
        let store = config.db.as_deref().map(Store::open).transpose()?;
        let names = Arc::new(Names::default());
        let defaults = session.state().config().options().catalog.clone();
        if let Some(catalog) = session.catalog(&defaults.default_catalog) {
            catalog.register_schema(&defaults.default_schema, names.clone())?;
        }
        let shared = Shared {
            store,
            access: config.access,
            cluster: client,
            names,
            changing: tokio::sync::Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            reading_stdin: tokio::sync::Mutex::default(),
            memory_limit: config.memory_limit,
            memory: Mutex::new(Memory::default()),
            merged: Default::default(),
            served: AtomicBool::new(false),
        };
        let context = MergeContext { session, shared: Arc::new(shared), temporary: None, lasting: Lasting::No };
        explain::register(context.session(), Arc::downgrade(&context.shared));
        if !config.access.no_files {
            models::register(context.session())?;
        }
        Ok(context.connection())
    }

    /// DataFusion's own session, to register tables and functions.
    pub fn session(&self) -> &SessionContext {
        &self.session
    }

    pub(crate) fn memory<T>(&self, run: impl FnOnce(&mut Memory) -> T) -> T {
        run(&mut self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs one statement: MergeQL or SQL.
    ///
    /// # Errors
    /// A diagnostic with a code, and the place if it is in the statement.
    pub async fn sql(&self, text: &str) -> Result<DataFrame> {
        self.run(text).await.map_err(|e| e.map(|d| d.in_text(text)))
    }

    /// Starts a query; while it runs, [`MergeContext::progress`] tells how far it is.
    ///
    /// # Errors
    /// What planning fails with.
    pub async fn stream(&self, frame: DataFrame) -> Result<SendableRecordBatchStream> {
        if let Some(cluster) = &self.shared.cluster {
            return cluster.stream(self, frame).await;
        }
        let tasks = Arc::new(frame.task_ctx());
        let plan = frame.create_physical_plan().await?;
        self.note_running(&plan);
        Ok(datafusion::physical_plan::execute_stream(plan, tasks)?)
    }

    /// Runs a query whose rows go where nothing stays of an attempt that failed, like a file that appears whole or not at all: on a
    /// cluster again if workers are lost, without keeping the rows meanwhile.
    ///
    /// # Errors
    /// What planning, the query and `take` fail with.
    pub async fn whole<T, F: Future<Output = Result<T>>>(
        &self,
        frame: DataFrame,
        take: impl Fn(SendableRecordBatchStream) -> F,
    ) -> Result<T> {
        match &self.shared.cluster {
            Some(cluster) => cluster.whole(self, frame, take).await,
            None => take(self.stream(frame).await?).await,
        }
    }

    /// Makes a plan the one whose progress is told.
    pub(crate) fn note_running(&self, plan: &Arc<dyn ExecutionPlan>) {
        self.memory(|m| m.running = Some(plan.clone()));
    }

    /// Rows that the sources of the running query have given so far, and how many they have if that is known.
    pub fn progress(&self) -> (usize, Option<usize>) {
        match self.memory(|m| m.running.clone()) {
            Some(plan) => leaves(&plan),
            None => (0, None),
        }
    }

    /// Bytes of the model that is being merged: written, and in all; then its tensors: begun, and in all. `None` while no model is.
    pub fn merging(&self) -> Option<[u64; 4]> {
        let now = self.shared.merged.each_ref().map(|n| n.load(Ordering::Relaxed));
        (now[1] > 0).then_some(now)
    }

    /// Gives a file, folder or pattern a name.
    ///
    /// # Errors
    /// As a statement that reads it; `invalid_argument` if the name is taken.
    pub async fn register_source(&self, name: &str, path: &str) -> Result<()> {
        self.refresh().await?;
        if self.has_table(name) {
            return Err(MergeError::new(Code::InvalidArgument, format!("there is a table or source `{name}` already"))
                .help("give the source another name"));
        }
        let (provider, _) = self.open_any(path, &ReadOptions::default()).await?;
        self.session.register_table(datafusion::common::TableReference::bare(name), provider)?;
        Ok(())
    }

    /// The statement as plain SQL over the aggregates of the catalogue.
    ///
    /// # Errors
    /// As [`MergeContext::sql`].
    pub async fn lower(&self, text: &str) -> Result<String> {
        let lowered = async {
            match parse(text)? {
                Statement::Merge { merge, .. } => self.lower_merge(&merge).await,
                Statement::Sql(pieces) => self.lower_pieces(&pieces).await,
                _ => Err(MergeError::new(Code::Unsupported, "only MERGE stands for one query")),
            }
        };
        lowered.await.map_err(|e: MergeError| e.map(|d| d.in_text(text)))
    }

    pub(crate) async fn run(&self, text: &str) -> Result<DataFrame> {
        Box::pin(self.refresh()).await?;
        match parse(text)? {
            Statement::Merge { explain, merge } => {
                let _changing = if merge.into.is_some() && explain == Explain::No { Some(self.changing().await?) } else { None };
                let _lock = match &merge.into {
                    Some(into) if explain == Explain::No && self.goes_into_table(into) => {
                        let lock = self.lock()?;
                        Box::pin(self.refresh()).await?;
                        lock
                    }
                    _ => None,
                };
                self.run_merge(explain, *merge).await
            }
            Statement::MergeInto { explain, target, merge } => {
                let _changing = if explain == Explain::No { Some(self.changing().await?) } else { None };
                Box::pin(self.merge_into(explain, &target, *merge)).await
            }
            Statement::MergeModels { explain, models } => {
                self.check_files()?;
                if !explain {
                    self.check_writable()?;
                }
                models::run(self, explain, *models).await
            }
            Statement::CreateStrategy { or_replace, name, body, text } => {
                let _changing = self.changing().await?;
                let (name_text, checked) = custom::check(self, or_replace, &name, body).await?;
                self.change_strategies(|texts| drop(texts.insert(name_text.clone(), text.clone())))?;
                self.memory(|m| drop(m.strategies.insert(name_text, checked)));
                self.count("strategies", 1)
            }
            Statement::DropStrategy { if_exists, name } => {
                let _changing = self.changing().await?;
                let own = match mergeql_lang::find_strategy(&self.user_strategies(), &name) {
                    Err(error) if error.code != Code::UnknownStrategy || !if_exists => return Err(error.into()),
                    Err(_) => name.value.clone(),
                    Ok(own) => own.to_owned(),
                };
                self.change_strategies(|texts| drop(texts.remove(&own)))?;
                let found = self.memory(|m| m.strategies.remove(&own).is_some());
                self.count("strategies", u64::from(found))
            }
            Statement::ShowStrategies => Ok(self.session.read_batch(explain::strategies(self.strategy_texts())?)?),
            Statement::Verify { name, on, cases } => custom::verify(self, &name, on, cases).await,
            Statement::Sql(pieces) => {
                // What others are yet to put into tables and files, these statements will meet.
                let planner = if lasts(text) { self.lasting(Lasting::All) } else { self.clone() };
                let sql = planner.lower_pieces(&pieces).await?;
                self.run_sql(&sql, text).await
            }
        }
    }

    // What statements may do.

    /// From now on clients that don't know of each other share the session.
    pub(crate) fn serve(&self) {
        self.shared.served.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_served(&self) -> bool {
        self.shared.served.load(Ordering::Relaxed)
    }

    /// Lets one statement at a time change something.
    pub(crate) async fn changing(&self) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        self.check_writable()?;
        // Who waits for those that change something takes no turn from those that only read.
        let changing = giving_way(self.shared.changing.lock()).await;
        if let Some(cluster) = &self.shared.cluster {
            cluster.look().await;
        }
        Ok(changing)
    }

    /// # Errors
    /// `unsupported` if statements may change nothing.
    pub(crate) fn check_writable(&self) -> Result<()> {
        match self.shared.access.read_only {
            true => Err(MergeError::new(Code::Unsupported, "the session is read-only: this statement would change something")),
            false => Ok(()),
        }
    }

    /// # Errors
    /// `unsupported` if statements may run no programs.
    pub(crate) fn check_commands(&self) -> Result<()> {
        match self.shared.access.commands {
            false => Err(MergeError::new(Code::Unsupported, "statements may run no programs here")
                .help("judge by a query: fitness = 'SELECT ...'; or run the statement in `mergeql` itself")),
            true => Ok(()),
        }
    }

    /// # Errors
    /// `unsupported` if statements may name no files.
    pub(crate) fn check_files(&self) -> Result<()> {
        match self.shared.access.no_files {
            true => Err(MergeError::new(Code::Unsupported, "files are not open to statements here")
                .help("merge tables, or sources that the server was started with")),
            false => Ok(()),
        }
    }

    // Plans.

    async fn lower_merge(&self, merge: &Merge) -> Result<String> {
        let plan = self.bind(merge, First::None, Explain::No).await?;
        Ok(Lowering { plan: &plan, dialect: &DataFusion }.query())
    }

    /// SQL with every merge in it lowered.
    pub(crate) async fn lower_pieces(&self, pieces: &[Piece]) -> Result<String> {
        let mut sql = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => sql.push_str(text),
                Piece::Merge(merge) => sql.push_str(&self.lower_merge(merge).await?),
            }
        }
        Ok(sql)
    }

    /// Whether the result becomes a table that others see, and no file.
    fn goes_into_table(&self, into: &Target) -> bool {
        let name = match &into.target {
            Written::Text(path) => self.table_name(std::slice::from_ref(path)),
            Written::Table(parts) => self.own_part(parts).first().map(|name| name.value.clone()),
            Written::Query(_) => None,
        };
        name.is_some_and(|name| !self.is_temporary(&name))
    }

    async fn run_merge(&self, explain: Explain, merge: Merge) -> Result<DataFrame> {
        let plan = self.bind(&merge, First::None, explain).await?;
        let session = self.session_for(&plan)?;
        let lowering = Lowering { plan: &plan, dialect: &DataFusion };
        let sql = match (plan.keeps_state(), &plan.delete) {
            (false, _) => lowering.query(),
            (true, None) => format!("SELECT *, false AS {DELETED} FROM ({}) AS m", lowering.rows_and_states()),
            (true, Some(_)) => lowering.rows_and_states(),
        };
        let ranges = if explain == Explain::Analyze { None } else { self.in_ranges(&merge, &plan, &session, &sql).await? };
        let sql = ranges.as_ref().map_or(sql, |table| format!("SELECT * FROM {}", quote(&table.name)));
        if explain != Explain::No {
            return explain::merge(self, &session, &plan, &sql, explain).await;
        }
        let Some(into) = &plan.into else {
            return Ok(session.execute_logical_plan(Box::pin(self.plan_in(&session, &sql)).await?).await?);
        };
        let key = plan.key;
        let sorted = if plan.order.is_empty() && plan.returning == Returning::Rows { Some(key) } else { None };
        let ordered = if sorted.is_some() { by_key(&sql, &plan) } else { sql };
        let rows = session.execute_logical_plan(Box::pin(self.plan_in(&session, &ordered)).await?).await?;
        match &into.target {
            Written::Text(path) if self.table_name(std::slice::from_ref(path)).is_none() => {
                if plan.keeps_state() {
                    return Err(Diagnostic::at(Code::InvalidArgument, path.span, "states are kept in tables, not in files").into());
                }
                let count = Box::pin(self.write_path(path, into, rows, sorted)).await?;
                self.count("rows", count)
            }
            Written::Text(name) => self.write_table(&name.value, into, rows, &merge, &plan).await,
            Written::Table(parts) => {
                let name = table_only(parts)?;
                self.write_table(&name, into, rows, &merge, &plan).await
            }
            Written::Query(_) => Err(MergeError::new(Code::Syntax, "a result goes into a table or a file")),
        }
    }

    /// The query over ranges of the key, each of which some worker answers, if the cluster and the sources are for it.
    async fn in_ranges(&self, merge: &Merge, plan: &Plan, session: &SessionContext, sql: &str) -> Result<Option<Passing>> {
        let Some(client) = &self.shared.cluster else { return Ok(None) };
        let user_defined = !self.user_strategies().is_empty();
        let Some(statements) = Box::pin(ranges::divide(merge, plan, user_defined, client.task_size)).await else { return Ok(None) };
        let schema = session.state().create_logical_plan(sql).await?.schema().inner().clone();
        let what = format!("{}_ranges", statements.len());
        Ok(Some(self.shared.names.pass(&what, Arc::new(ranges::table(client, statements, plan, schema)?))))
    }

    async fn write_path(&self, path: &Name, into: &Target, rows: DataFrame, sorted: Option<usize>) -> Result<u64> {
        self.check_files()?;
        let target = std::path::Path::new(&path.value);
        let format = Format::of_path(target).ok_or_else(|| {
            Diagnostic::at(Code::InvalidArgument, path.span, format!("the ending of `{}` tells no format", path.value))
                .help("write to .csv, .tsv, .json, .ndjson, .parquet or .arrow")
        })?;
        let object = Object::parse(&path.value)?;
        let there = match &object {
            Some(object) => Box::pin(object.exists()).await?,
            None => target.exists(),
        };
        if there && !into.or_replace {
            return Err(Diagnostic::at(Code::Io, path.span, format!("`{}` is there already", path.value))
                .help("write INTO OR REPLACE to replace it")
                .into());
        }
        let Some(object) = object else {
            let write = |rows| sinks::write_file_as(target, format, rows, sorted, into.or_replace);
            return Ok(self.whole(rows, write).await? as u64);
        };
        let file = tempfile::NamedTempFile::new()?;
        let count = self.whole(rows, |rows| sinks::write_file(file.path(), format, rows, sorted)).await?;
        Box::pin(object.upload(file.path(), into.or_replace)).await?;
        Ok(count as u64)
    }

    async fn write_table(&self, name: &str, into: &Target, rows: DataFrame, merge: &Merge, plan: &Plan) -> Result<DataFrame> {
        if self.has_table(name) && !into.or_replace {
            if into.if_not_exists {
                return self.count("rows", 0);
            }
            return Err(Diagnostic::at(Code::InvalidArgument, into.span, format!("the table `{name}` is there already"))
                .help("write INTO OR REPLACE to replace it, or MERGE INTO to merge into it")
                .into());
        }
        if plan.keeps_state() && self.is_temporary(name) {
            return Err(Diagnostic::at(
                Code::Unsupported,
                into.span,
                format!("`{name}` is a temporary table, and states are kept in tables that stay"),
            )
            .into());
        }
        let resolution = plan.keeps_state().then(|| Kept::resolution(merge, plan, &self.user_strategies(), &self.strategy_texts()));
        let count = self.put_table(name, rows, None, resolution).await?;
        self.count("rows", count)
    }

    /// One row with a count.
    pub(crate) fn count(&self, what: &str, n: u64) -> Result<DataFrame> {
        let schema = Arc::new(Schema::new(vec![Field::new(what, DataType::UInt64, false)]));
        let batch = RecordBatch::try_new(schema, vec![Arc::new(UInt64Array::from(vec![n]))])?;
        Ok(self.session.read_batch(batch)?)
    }

    /// A session with the memory limit of the statement, if it has one.
    pub(crate) fn session_for(&self, plan: &Plan) -> Result<SessionContext> {
        let unsorted = plan.option("sorted") == Some(&Value::Bool(false));
        let limit = match plan.option("memory_limit") {
            None if unsorted => {
                let state = SessionStateBuilder::new_from_existing(self.session.state());
                let state = state.with_physical_optimizer_rules(self.unsorted());
                return Ok(SessionContext::new_with_state(state.build()));
            }
            None => return Ok(self.session.clone()),
            Some(Value::Text(text)) => mergeql_udfs::parse_size(text),
            Some(Value::Int(n)) => usize::try_from(*n).ok(),
            Some(_) => None,
        };
        let limit =
            limit.ok_or_else(|| MergeError::new(Code::InvalidArgument, "`memory_limit` is a size like '2GB' or '500MB'"))?;
        // A statement can ask for less than there is, not for more; and what it takes, the others have less.
        let outer = self.shared.memory_limit.map(|_| self.session.runtime_env().memory_pool.clone());
        let limit = self.shared.memory_limit.map_or(limit, |most| limit.min(most));
        let state = self.session.state();
        // The tables are those of the session: no new default catalogue over them.
        let config = bounded(state.config().clone(), limit).with_create_default_catalog_and_schema(false);
        let state = SessionStateBuilder::new_from_existing(state)
            .with_config(config)
            .with_runtime_env(limited_runtime(limit, outer, None)?);
        let state = if unsorted { state.with_physical_optimizer_rules(self.unsorted()) } else { state };
        Ok(SessionContext::new_with_state(state.build()))
    }

    /// The rules for a statement that does not trust the order of its sources.
    fn unsorted(&self) -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
        rules(false, self.shared.cluster.is_none())
    }

    // What other modules keep here.

    /// The strategies that users defined.
    pub(crate) fn user_strategies(&self) -> UserStrategies {
        self.memory(|m| m.strategies.clone())
    }

    /// The text after AS of each user-defined strategy.
    pub(crate) fn strategy_texts(&self) -> BTreeMap<String, String> {
        self.shared.strategy_texts()
    }

    fn change_strategies(&self, change: impl Fn(&mut BTreeMap<String, String>)) -> Result<()> {
        if let Some(store) = &self.shared.store {
            let _lock = store.lock()?;
            let mut manifest = store.read()?;
            change(&mut manifest.strategies);
            store.write(&manifest)?;
            self.memory(|m| m.manifest.strategies.clone_from(&manifest.strategies));
        }
        self.memory(|m| change(&mut m.texts));
        Ok(())
    }

    pub(crate) fn cached_stdin(&self) -> Option<Arc<dyn TableProvider>> {
        self.memory(|m| m.stdin.clone())
    }

    pub(crate) fn cache_stdin(&self, table: Arc<dyn TableProvider>) {
        self.memory(|m| m.stdin = Some(table));
    }

    pub(crate) fn keep_file(&self, file: tempfile::NamedTempFile) {
        self.memory(|m| m.files.push(file));
    }
}

/// The rules that make plans, with the sorted plan and the hashed one or without. Workers know neither.
fn rules(sorted: bool, hashed: bool) -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    // Before the rules that would repartition sorted inputs, and after those that make the steps of aggregations.
    let first = sorted.then(|| Arc::new(SortedMerges) as Arc<dyn PhysicalOptimizerRule + Send + Sync>);
    let first = first.into_iter().chain([Arc::new(Unclaimed) as _]);
    let last = hashed.then(|| Arc::new(HashedMerges) as Arc<dyn PhysicalOptimizerRule + Send + Sync>);
    nan::around(first.chain(PhysicalOptimizer::new().rules).chain(last).collect())
}

/// Every function of the catalogue.
pub(crate) fn functions() -> (Vec<AggregateUDF>, Vec<ScalarUDF>) {
    (
        aggregates::all().into_iter().chain(merges::all()).chain(singles::all()).collect(),
        scalars::all().into_iter().chain(checked::functions()).collect(),
    )
}

/// What the leaves of a plan have given, and what they hold.
fn leaves(plan: &Arc<dyn ExecutionPlan>) -> (usize, Option<usize>) {
    let children = plan.children();
    if children.is_empty() {
        let done = plan.metrics().and_then(|m| m.output_rows()).unwrap_or(0);
        let context = datafusion::physical_plan::statistics::StatisticsContext::default();
        let total = context
            .compute(plan.as_ref(), &datafusion::physical_plan::StatisticsArgs::new())
            .ok()
            .and_then(|s| s.num_rows.get_value().copied());
        return (done, total);
    }
    children.into_iter().map(leaves).fold((0, Some(0)), |(done, total), (d, t)| (done + d, total.zip(t).map(|(a, b)| a + b)))
}

/// One partition: with several, DataFusion 55.2 can hang near the limit (upstream issue 24883).
fn bounded(config: SessionConfig, limit: usize) -> SessionConfig {
    sorting_within(config, limit).with_target_partitions(1)
}

/// A query sorted by the key of a plan, as files are written; rows without a key by all that they have.
pub(crate) fn by_key(sql: &str, plan: &Plan) -> String {
    let keys: Vec<String> = plan.key_columns().iter().map(|c| quote(&c.name)).collect();
    let mut by: Vec<String> = keys.iter().map(|key| format!("{key} ASC NULLS FIRST")).collect();
    if plan.nullable_key() {
        let mut names: Vec<&str> = plan.result_columns().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.extend(plan.keeps_state().then_some(STATE));
        let all: Vec<String> = names.into_iter().map(quote).collect();
        let null: Vec<String> = keys.iter().map(|key| format!("{key} IS NULL")).collect();
        by.push(format!("CASE WHEN {} THEN mergeql_order_key(struct({})) END", null.join(" OR "), all.join(", ")));
    }
    format!("SELECT * FROM ({sql}) AS sorted ORDER BY {}", by.join(", "))
}

fn table_only(parts: &[Name]) -> Result<String> {
    match parts {
        [name] => Ok(if name.quoted { name.value.clone() } else { name.value.to_ascii_lowercase() }),
        _ => Err(Diagnostic::at(Code::Unsupported, parts[0].span, "tables are made in the default schema only").into()),
    }
}

/// Collects a stream.
///
/// # Errors
/// What the query fails with.
pub async fn collect(stream: SendableRecordBatchStream) -> Result<Vec<RecordBatch>> {
    stream.try_collect().await.map_err(MergeError::running)
}
