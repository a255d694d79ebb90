//! The session: statements in, rows out.

use crate::error::{MergeError, Result};
use crate::sources::{Format, ReadOptions, Resolved};
use crate::store::{Manifest, Store, Table};
use crate::{aggregates, custom, explain, scalars, sinks};
use arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{DdlStatement, LogicalPlan, WriteOp};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use futures::{StreamExt, TryStreamExt};
use mergeql_lang::ast::{Explain, Into as Target, Merge, Name, Piece, Relation as Written, Returning, Statement};
use mergeql_lang::lower::{DELETED, DataFusion, Lowering, STATE, quote};
use mergeql_lang::plan::Plan;
use mergeql_lang::{Diagnostic, Span, UserStrategies, bind, parse};
use mergeql_udfs::{Code, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
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
    session: SessionContext,
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    store: Option<Store>,
    memory: Mutex<Memory>,
}

/// What stands before the sources of a merge.
pub(crate) enum First {
    /// Nothing: it is no MERGE INTO.
    None,
    /// The target of MERGE INTO is there, but plays no part.
    Hidden,
    /// The target, whose rows take part.
    Rows(Resolved),
    /// The target, whose states take part.
    States(Resolved),
}

/// What a session knows beside DataFusion's own tables.
#[derive(Default)]
struct Memory {
    strategies: UserStrategies,
    texts: BTreeMap<String, String>,
    /// How tables keep states, by name.
    resolutions: BTreeMap<String, String>,
    /// The manifest that the registered tables are of.
    manifest: Manifest,
    stdin: Option<Arc<dyn TableProvider>>,
    files: Vec<tempfile::NamedTempFile>,
    running: Option<Arc<dyn ExecutionPlan>>,
}

impl Shared {
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
        if let Some(threads) = config.threads {
            session_config = session_config.with_target_partitions(threads);
        }
        let runtime = match config.memory_limit {
            None => Arc::new(RuntimeEnv::default()),
            Some(limit) => {
                session_config = bounded(session_config);
                limited_runtime(limit)?
            }
        };
        let session = SessionContext::new_with_config_rt(session_config, runtime);
        aggregates::all().into_iter().chain(aggregates::merges()).for_each(|f| session.register_udaf(f));
        scalars::all().into_iter().for_each(|f| session.register_udf(f));
        let store = config.db.as_deref().map(Store::open).transpose()?;
        let shared = Shared { store, memory: Mutex::new(Memory::default()) };
        let context = MergeContext { session, shared: Arc::new(shared) };
        explain::register(context.session(), Arc::downgrade(&context.shared));
        Ok(context)
    }

    /// DataFusion's own session, to register tables and functions.
    pub fn session(&self) -> &SessionContext {
        &self.session
    }

    fn memory<T>(&self, run: impl FnOnce(&mut Memory) -> T) -> T {
        run(&mut self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs one statement: MergeQL or SQL.
    ///
    /// # Errors
    /// A diagnostic with a code, and the place if it is in the statement.
    pub async fn sql(&self, text: &str) -> Result<DataFrame> {
        self.run(text).await.map_err(|e| MergeError(e.0.in_text(text)))
    }

    /// Starts a query; while it runs, [`MergeContext::progress`] tells how far it is.
    ///
    /// # Errors
    /// What planning fails with.
    pub async fn stream(&self, frame: DataFrame) -> Result<SendableRecordBatchStream> {
        let tasks = Arc::new(frame.task_ctx());
        let plan = frame.create_physical_plan().await?;
        self.memory(|m| m.running = Some(plan.clone()));
        Ok(datafusion::physical_plan::execute_stream(plan, tasks)?)
    }

    /// Rows that the sources of the running query have given so far, and how many they have if that is known.
    pub fn progress(&self) -> (usize, Option<usize>) {
        match self.memory(|m| m.running.clone()) {
            Some(plan) => leaves(&plan),
            None => (0, None),
        }
    }

    /// Gives a file, folder or pattern a name.
    ///
    /// # Errors
    /// As a statement that reads it.
    pub async fn register_source(&self, name: &str, path: &str) -> Result<()> {
        let (provider, _) = self.open_path(path, &ReadOptions::default()).await?;
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
        lowered.await.map_err(|e: MergeError| MergeError(e.0.in_text(text)))
    }

    async fn run(&self, text: &str) -> Result<DataFrame> {
        self.refresh().await?;
        match parse(text)? {
            Statement::Merge { explain, merge } => self.run_merge(explain, *merge).await,
            Statement::MergeInto { explain, target, merge } => self.merge_into(explain, &target, *merge).await,
            Statement::CreateStrategy { or_replace, name, body, text } => {
                let (name_text, checked) = custom::check(self, or_replace, &name, body).await?;
                self.change_strategies(|texts| drop(texts.insert(name_text.clone(), text.clone())))?;
                custom::register_fold(self, &name_text, &checked)?;
                self.memory(|m| drop(m.strategies.insert(name_text, checked)));
                self.count("strategies", 1)
            }
            Statement::DropStrategy { if_exists, name } => {
                let found = self.memory(|m| m.strategies.remove(&name.value).is_some());
                if !found && !if_exists {
                    let names = self.user_strategies();
                    let error = Diagnostic::at(Code::UnknownStrategy, name.span, format!("no strategy is called `{}`", name.value));
                    return Err(error.suggest(&name.value, names.keys().map(String::as_str)).into());
                }
                self.change_strategies(|texts| drop(texts.remove(&name.value)))?;
                self.count("strategies", u64::from(found))
            }
            Statement::ShowStrategies => Ok(self.session.read_batch(explain::strategies(self.strategy_texts())?)?),
            Statement::Verify { name, on, cases } => custom::verify(self, &name, on, cases).await,
            Statement::Sql(pieces) => {
                let sql = self.lower_pieces(&pieces).await?;
                self.run_sql(&sql).await
            }
        }
    }

    // Plans.

    /// Binds a merge; `first` is the target of MERGE INTO as its first source.
    pub(crate) async fn bind(&self, merge: &Merge, first: First, explain: Explain) -> Result<Plan> {
        let options = ReadOptions::of(&merge.options)?;
        let into = !matches!(first, First::None);
        let expanded = self.each_file(merge);
        let merge = &expanded;
        let mut relations = Vec::new();
        for source in &merge.sources[usize::from(matches!(first, First::Rows(_) | First::States(_)))..] {
            let resolved = self.resolve(&source.relation, &options).await?;
            relations.push(self.adopt(resolved)?);
        }
        match first {
            First::None | First::Hidden => {}
            First::Rows(target) => relations.insert(0, self.adopt(target)?),
            First::States(mut target) => {
                // Its columns hold values, not what the strategies read: the sources' own types count where they have the column.
                let named = |written: &Name, column: &str| written.value == column;
                let in_sources = |column: &str| {
                    relations.iter().any(|r| {
                        r.columns.iter().any(|c| match merge.map.iter().find(|(old, _)| named(old, &c.name)) {
                            Some((_, new)) => named(new, column),
                            None => c.name == column,
                        })
                    })
                };
                target.relation.columns.retain(|c| merge.key.iter().any(|k| named(k, &c.name)) || !in_sources(&c.name));
                relations.insert(0, self.adopt(target)?);
            }
        }
        Ok(bind(merge, relations, into, &self.user_strategies(), explain)?)
    }

    /// Where rows count per origin, each file of a folder or pattern is a source of its own: the same rows give the same answer however
    /// their files are named.
    fn each_file(&self, merge: &Merge) -> Merge {
        let per_origin = |call: &mergeql_lang::ast::StrategyCall| {
            mergeql_udfs::catalog::find(&call.name.value).is_some_and(|e| e.spec().per_origin() && e.spec().name != "source")
        };
        let mut merge = merge.clone();
        if !merge.strategies.iter().any(|(_, call)| per_origin(call)) {
            return merge;
        }
        let each = |source: mergeql_lang::ast::Source| -> Vec<mergeql_lang::ast::Source> {
            let Written::Text(text) = &source.relation else { return vec![source] };
            if self.table_name(std::slice::from_ref(text)).is_some() {
                return vec![source];
            }
            match crate::sources::expand(&text.value) {
                Ok(files) if files.len() > 1 => files
                    .into_iter()
                    .map(|file| {
                        let value = file.display().to_string();
                        let relation = Written::Text(Name { value, ..text.clone() });
                        mergeql_lang::ast::Source { relation, alias: None, span: source.span }
                    })
                    .collect(),
                _ => vec![source],
            }
        };
        merge.sources = merge.sources.into_iter().flat_map(each).collect();
        merge
    }

    fn adopt(&self, resolved: Resolved) -> Result<mergeql_lang::plan::Relation> {
        if let Some((name, provider)) = resolved.table {
            // The file may have changed since it was last read under this name.
            let reference = datafusion::common::TableReference::bare(name);
            self.session.deregister_table(reference.clone())?;
            self.session.register_table(reference, provider)?;
        }
        Ok(resolved.relation)
    }

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

    async fn run_merge(&self, explain: Explain, merge: Merge) -> Result<DataFrame> {
        let plan = self.bind(&merge, First::None, explain).await?;
        let session = self.session_for(&plan)?;
        let lowering = Lowering { plan: &plan, dialect: &DataFusion };
        let sql = if plan.keeps_state() { lowering.joined_states(&[lowering.states()]) } else { lowering.query() };
        if explain != Explain::No {
            return explain::merge(self, &session, &plan, &sql, explain).await;
        }
        let Some(into) = &plan.into else {
            return Ok(session.execute_logical_plan(session.state().create_logical_plan(&sql).await?).await?);
        };
        let key = plan.key;
        let sorted = if plan.order.is_empty() && plan.returning == Returning::Rows { Some(key) } else { None };
        let ordered = if sorted.is_some() { by_key(&sql, &plan) } else { sql };
        let rows = session.execute_logical_plan(session.state().create_logical_plan(&ordered).await?).await?;
        match &into.target {
            Written::Text(path) if self.table_name(std::slice::from_ref(path)).is_none() => {
                let count = self.write_path(path, into, rows, sorted).await?;
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

    async fn write_path(&self, path: &Name, into: &Target, rows: DataFrame, sorted: Option<usize>) -> Result<u64> {
        let target = std::path::Path::new(&path.value);
        let format = Format::of_path(target).ok_or_else(|| {
            Diagnostic::at(Code::InvalidArgument, path.span, format!("the ending of `{}` tells no format", path.value))
                .help("write to .csv, .tsv, .json, .ndjson, .parquet or .arrow")
        })?;
        if target.exists() && !into.or_replace {
            return Err(Diagnostic::at(Code::Io, path.span, format!("`{}` is there already", path.value))
                .help("write INTO OR REPLACE to replace it")
                .into());
        }
        let stream = self.stream(rows).await?;
        Ok(sinks::write_file_as(target, format, stream, sorted, into.or_replace).await? as u64)
    }

    async fn write_table(&self, name: &str, into: &Target, rows: DataFrame, merge: &Merge, plan: &Plan) -> Result<DataFrame> {
        if self.session.table_exist(datafusion::common::TableReference::bare(name))? && !into.or_replace {
            if into.if_not_exists {
                return self.count("rows", 0);
            }
            return Err(Diagnostic::at(Code::InvalidArgument, into.span, format!("the table `{name}` is there already"))
                .help("write INTO OR REPLACE to replace it, or MERGE INTO to merge into it")
                .into());
        }
        let resolution = plan.keeps_state().then(|| mergeql_lang::resolution(&final_names(merge, plan)));
        let count = self.replace_table(name, rows, resolution).await?;
        self.count("rows", count)
    }

    // MERGE INTO.

    async fn merge_into(&self, explain: Explain, target: &Written, merge: Merge) -> Result<DataFrame> {
        let options = ReadOptions::of(&merge.options)?;
        let (parts, span): (&[Name], Span) = match target {
            Written::Table(parts) => (parts, parts[0].span),
            Written::Text(name) => (std::slice::from_ref(name), name.span),
            Written::Query(_) => return Err(MergeError::new(Code::Syntax, "MERGE INTO needs a table")),
        };
        let resolved = self.resolve(target, &options).await?;
        let Some(name) = self.table_name(parts) else {
            return Err(Diagnostic::at(Code::Unsupported, span, "MERGE INTO needs a table, not a file")
                .help("merge the file with the sources: MERGE 'file', source ON ... INTO OR REPLACE 'file'")
                .into());
        };
        let _lock = self.lock()?;
        self.refresh().await?;
        let kept = self.memory(|m| m.resolutions.get(&name).cloned());
        match kept {
            Some(resolution) => self.merge_into_states(explain, &name, &resolution, merge, None).await,
            None => self.merge_into_rows(explain, &name, resolved, merge).await,
        }
    }

    /// The statement with the target as its first source.
    fn with_target(target: &str, merge: &Merge) -> Merge {
        let mut with = merge.clone();
        let name = Name { value: target.to_owned(), quoted: true, span: Span::default() };
        let source = mergeql_lang::ast::Source { relation: Written::Table(vec![name]), alias: None, span: Span::default() };
        with.sources.insert(0, source);
        with
    }

    /// Columns that only the sources have are errors, unless the statement extends the table.
    fn check_columns(plan: &Plan, target: &[String]) -> Result<()> {
        if matches!(plan.option("schema"), Some(Value::Text(t)) if &**t == "extend") {
            return Ok(());
        }
        match plan.columns.iter().find(|c| !target.contains(&c.name)) {
            None => Ok(()),
            Some(column) => Err(MergeError::new(Code::UnknownColumn, format!("the table has no column `{}`", column.name))
                .help("add WITH (schema = 'extend') to let the table grow, or leave the column out in a source query")),
        }
    }

    async fn merge_into_rows(&self, explain: Explain, name: &str, target: Resolved, merge: Merge) -> Result<DataFrame> {
        // Before the target's own types are looked at: values of such a strategy need not even have the column's type.
        for cell in &self.bind(&merge, First::Hidden, explain).await?.cells {
            let strategy = cell.entry.spec().name;
            if cell.fold.is_some() || !matches!(strategy, "lww" | "fww") {
                Self::check_closed(name, &cell.name, cell.fold.is_some() || !(cell.entry.spec().closed)(&cell.call), || {
                    format!("a value merged by `{}` does not say all that its state knew", cell.shown)
                })?;
            }
        }
        let merge = Self::with_target(name, &merge);
        let columns: Vec<String> = target.relation.columns.iter().map(|c| c.name.clone()).collect();
        let plan = self.bind(&merge, First::Rows(target), explain).await?;
        Self::check_columns(&plan, &columns)?;
        for cell in &plan.cells {
            let why = plan.not_closed(cell);
            Self::check_closed(name, &cell.name, why.is_some(), || why.unwrap_or_default())?;
        }
        if plan.delete.is_some() {
            return Err(MergeError::new(Code::NeedsState, "only a table that keeps states remembers deleted rows"));
        }
        let session = self.session_for(&plan)?;
        let sql = Lowering { plan: &plan, dialect: &DataFusion }.query();
        if explain != Explain::No {
            return explain::merge(self, &session, &plan, &sql, explain).await;
        }
        let rows = self.like_target(&session, name, &sql, &plan, &columns).await?;
        let count = self.replace_table(name, rows, None).await?;
        self.count("rows", count)
    }

    fn check_closed(table: &str, column: &str, open: bool, why: impl FnOnce() -> String) -> Result<()> {
        if !open {
            return Ok(());
        }
        let error = MergeError::new(Code::NeedsState, format!("`{column}` cannot be merged into again: {}", why()));
        Err(error.help(format!("let the table keep states: MERGE {table} ON ... INTO OR REPLACE {table} WITH (state = 'keep')")))
    }

    /// Rows in the column order and types of the target, sorted by key.
    async fn like_target(
        &self,
        session: &SessionContext,
        name: &str,
        sql: &str,
        plan: &Plan,
        columns: &[String],
    ) -> Result<DataFrame> {
        let schema = self.session.table_provider(datafusion::common::TableReference::bare(name)).await?.schema();
        let keep = |n: &String| plan.result_columns().any(|(c, _)| c == n) || n == STATE || n == DELETED;
        let mut names: Vec<String> = columns.iter().filter(|n| keep(n)).cloned().collect();
        for (column, _) in plan.result_columns() {
            if !names.iter().any(|n| n == column) {
                let at = names.iter().position(|n| n == STATE).unwrap_or(names.len());
                names.insert(at, column.to_owned());
            }
        }
        let sorted = by_key(sql, plan);
        let frame = session.execute_logical_plan(session.state().create_logical_plan(&sorted).await?).await?;
        let fields = frame.schema().as_arrow().clone();
        let exprs = names
            .iter()
            .map(|n| {
                let column = datafusion::prelude::Expr::Column(datafusion::common::Column::from_name(n));
                match (schema.field_with_name(n), fields.field_with_name(n)) {
                    (Ok(theirs), Ok(ours)) if theirs.data_type() != ours.data_type() => {
                        datafusion::prelude::cast(column, theirs.data_type().clone()).alias(n)
                    }
                    _ => column,
                }
            })
            .collect::<Vec<_>>();
        Ok(frame.select(exprs)?)
    }

    async fn merge_into_states(
        &self,
        explain: Explain,
        name: &str,
        resolution: &str,
        merge: Merge,
        adopted: Option<String>,
    ) -> Result<DataFrame> {
        let Statement::Merge { merge: kept, .. } = parse(resolution)? else {
            return Err(MergeError::new(Code::CorruptState, format!("how `{name}` keeps states cannot be read: {resolution}")));
        };
        let given = !merge.strategies.is_empty() || merge.version.is_some() || merge.delete.is_some();
        if given && mergeql_lang::resolution(&merge) != mergeql_lang::resolution(&kept) {
            return Err(MergeError::new(Code::TypeMismatch, format!("`{name}` keeps states of other clauses than these"))
                .help(format!("leave STRATEGY, VERSION BY and DELETE BY out, or repeat them: {resolution}")));
        }
        let same_key = merge.key.len() == kept.key.len() && merge.key.iter().zip(&kept.key).all(|(a, b)| a.value == b.value);
        if !same_key {
            return Err(MergeError::new(Code::InvalidArgument, format!("`{name}` keeps states under another key"))
                .help(resolution.to_owned()));
        }
        let merge =
            Merge { strategies: kept.strategies.clone(), version: kept.version.clone(), delete: kept.delete.clone(), ..merge };
        let merge = Self::with_target(name, &merge);
        let storage = self.storage_name(name);
        let provider = self.session.table_provider(datafusion::common::TableReference::bare(storage.as_str())).await?;
        let all = crate::sources::source_columns(&provider.schema())?;
        let columns: Vec<String> = all.iter().map(|c| c.name.clone()).collect();
        let visible = all.into_iter().filter(|c| c.name != STATE && c.name != DELETED).collect();
        let relation =
            mergeql_lang::plan::Relation { sql: quote(&storage), origin: Some(name.to_owned()), columns: visible, rows: None };
        let mut plan = self.bind(&merge, First::States(Resolved { relation, table: None }), explain).await?;
        Self::check_columns(&plan, &columns)?;
        // The target contributes states, not rows.
        plan.sources.remove(0);
        let session = self.session_for(&plan)?;
        let lowering = Lowering { plan: &plan, dialect: &DataFusion };
        let mut table = quote(&storage);
        let new_columns: Vec<&str> = plan.result_columns().map(|(n, _)| n).filter(|n| !columns.iter().any(|c| c == n)).collect();
        if !new_columns.is_empty() {
            // A column that the table is getting: nothing contributed to it so far.
            let added = new_columns.iter().map(|n| format!("NULL AS {}", quote(n))).collect::<Vec<_>>().join(", ");
            table = format!("(SELECT *, {added} FROM {table})");
        }
        let mut inputs = vec![lowering.states()];
        match &adopted {
            None => {
                self.check_edits(&session, name, &lowering, &storage, &new_columns).await?;
                inputs.push(lowering.kept_states(&table));
            }
            Some(_) => inputs.push(lowering.kept_states(&format!("(SELECT * FROM {table} WHERE {STATE} IS NOT NULL)"))),
        }
        let sql = lowering.joined_states(&inputs);
        if explain != Explain::No {
            return explain::merge(self, &session, &plan, &sql, explain).await;
        }
        let rows = self.like_target(&session, &storage, &sql, &plan, &columns).await?;
        let count = self.replace_table(name, rows, Some(resolution.to_owned())).await?;
        self.count("rows", count)
    }

    async fn check_edits(
        &self,
        session: &SessionContext,
        name: &str,
        lowering: &Lowering<'_>,
        storage: &str,
        new_columns: &[&str],
    ) -> Result<()> {
        if !new_columns.is_empty() {
            return Ok(());
        }
        let sql = format!("SELECT count(*) FROM {} WHERE {}", quote(storage), lowering.edited());
        let plan = session.state().create_logical_plan(&sql).await?;
        let batches = session.execute_logical_plan(plan).await?.collect().await?;
        let edited = batches.first().map_or(Value::Null, |b| crate::columns::value_at(b.column(0), 0));
        if edited == Value::Int(0) {
            return Ok(());
        }
        Err(MergeError::new(
            Code::NeedsState,
            format!("{edited} rows of `{name}` were edited or inserted by hand: their values are not what their states say"),
        )
        .help(format!("SELECT mergeql_adopt('{name}') takes them in as rows")))
    }

    /// Takes rows that were edited by hand into the states of a table.
    async fn adopt_edits(&self, name: &str) -> Result<DataFrame> {
        let _lock = self.lock()?;
        let Some(resolution) = self.memory(|m| m.resolutions.get(name).cloned()) else {
            return Err(MergeError::new(Code::NotAState, format!("`{name}` keeps no states")));
        };
        let Statement::Merge { merge: kept, .. } = parse(&resolution)? else {
            return Err(MergeError::new(Code::CorruptState, format!("how `{name}` keeps states cannot be read: {resolution}")));
        };
        let plan = self
            .bind(
                &Self::with_target(name, &Merge { sources: Vec::new(), ..(*kept).clone() }),
                First::Rows(self.visible(name).await?),
                Explain::No,
            )
            .await?;
        let lowering = Lowering { plan: &plan, dialect: &DataFusion };
        let columns = plan.result_columns().map(|(n, _)| quote(n)).collect::<Vec<_>>().join(", ");
        let edited = format!("SELECT {columns} FROM {} WHERE {}", quote(&self.storage_name(name)), lowering.edited());
        let mut merge = (*kept).clone();
        let alias = Name { value: "edited".to_owned(), quoted: true, span: Span::default() };
        merge.sources = vec![mergeql_lang::ast::Source {
            relation: Written::Query(vec![Piece::Text(edited)]),
            alias: Some(alias),
            span: Span::default(),
        }];
        self.merge_into_states(Explain::No, name, &resolution, merge, Some(name.to_owned())).await
    }

    async fn visible(&self, name: &str) -> Result<Resolved> {
        let provider = self.session.table_provider(datafusion::common::TableReference::bare(self.storage_name(name))).await?;
        let columns = crate::sources::source_columns(&provider.schema())?;
        let columns = columns.into_iter().filter(|c| c.name != STATE && c.name != DELETED).collect();
        let relation = mergeql_lang::plan::Relation { sql: quote(name), origin: Some(name.to_owned()), columns, rows: None };
        Ok(Resolved { relation, table: None })
    }

    // Tables.

    fn storage_name(&self, table: &str) -> String {
        format!("__mergeql_store_{table}")
    }

    /// The registered table that a name means, if there is one.
    fn table_name(&self, parts: &[Name]) -> Option<String> {
        let [name] = parts else { return None };
        let exists = |n: &str| self.session.table_exist(datafusion::common::TableReference::bare(n)).unwrap_or(false);
        if exists(&name.value) {
            return Some(name.value.clone());
        }
        let folded = name.value.to_ascii_lowercase();
        (!name.quoted && exists(&folded)).then_some(folded)
    }

    /// Names of tables and views, for suggestions and completion.
    pub fn table_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for catalog in self.session.catalog_names() {
            let Some(catalog) = self.session.catalog(&catalog) else { continue };
            for schema in catalog.schema_names().iter().filter(|s| *s != "information_schema") {
                names.extend(catalog.schema(schema).map(|s| s.table_names()).unwrap_or_default());
            }
        }
        names.retain(|n| !n.starts_with("__mergeql_"));
        names.sort();
        names
    }

    fn lock(&self) -> Result<Option<crate::store::Lock>> {
        self.shared.store.as_ref().map(Store::lock).transpose()
    }

    /// Makes the registered tables those of the manifest, which another process may have changed.
    pub(crate) async fn refresh(&self) -> Result<()> {
        let Some(store) = &self.shared.store else { return Ok(()) };
        let manifest = store.read()?;
        let known = self.memory(|m| m.manifest.clone());
        if manifest == known {
            return Ok(());
        }
        for name in known.tables.keys().filter(|n| !manifest.tables.contains_key(*n)) {
            self.forget(name)?;
        }
        for (name, table) in &manifest.tables {
            if known.tables.get(name) != Some(table) {
                self.register_stored(store, name, table).await?;
            }
        }
        for (name, text) in &manifest.strategies {
            if known.strategies.get(name) != Some(text)
                && let Ok(Statement::CreateStrategy { body, .. }) = parse(&format!("CREATE STRATEGY {} AS {text}", quote(name)))
            {
                custom::register_fold(self, name, &body)?;
                self.memory(|m| {
                    m.texts.insert(name.clone(), text.clone());
                    m.strategies.insert(name.clone(), body);
                });
            }
        }
        self.memory(|m| m.manifest = manifest);
        Ok(())
    }

    async fn register_stored(&self, store: &Store, name: &str, table: &Table) -> Result<()> {
        let paths: Vec<String> = table.files.iter().map(|f| store.path(f).display().to_string()).collect();
        let provider: Arc<dyn TableProvider> = self.open_stored(&paths).await?;
        self.publish(name, provider, table.resolution.clone()).await
    }

    async fn open_stored(&self, paths: &[String]) -> Result<Arc<dyn TableProvider>> {
        use datafusion::datasource::file_format::parquet::ParquetFormat;
        use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
        let urls = paths.iter().map(|p| Ok(ListingTableUrl::parse(format!("file://{p}"))?)).collect::<Result<Vec<_>>>()?;
        let options = ListingOptions::new(Arc::new(ParquetFormat::default().with_enable_pruning(true))).with_file_extension("");
        let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options);
        let config = config.infer_schema(&self.session.state()).await?;
        Ok(Arc::new(ListingTable::try_new(config)?))
    }

    /// Puts a table under its name; one that keeps states hides its deleted rows behind a view.
    async fn publish(&self, name: &str, provider: Arc<dyn TableProvider>, resolution: Option<String>) -> Result<()> {
        self.forget(name)?;
        let reference = datafusion::common::TableReference::bare(name.to_owned());
        match resolution {
            None => {
                self.session.register_table(reference, provider)?;
            }
            Some(resolution) => {
                let storage = self.storage_name(name);
                let schema = provider.schema();
                self.session.register_table(datafusion::common::TableReference::bare(storage.clone()), provider)?;
                let columns: Vec<String> =
                    schema.fields().iter().map(|f| quote(f.name())).filter(|n| *n != quote(DELETED)).collect();
                let sql = format!("SELECT {} FROM {} WHERE {DELETED} IS NOT TRUE", columns.join(", "), quote(&storage));
                let plan = self.session.state().create_logical_plan(&sql).await?;
                let view = datafusion::datasource::ViewTable::new(plan, Some(sql));
                self.session.register_table(reference, Arc::new(view))?;
                self.memory(|m| drop(m.resolutions.insert(name.to_owned(), resolution)));
            }
        }
        Ok(())
    }

    fn forget(&self, name: &str) -> Result<()> {
        self.session.deregister_table(datafusion::common::TableReference::bare(name))?;
        self.session.deregister_table(datafusion::common::TableReference::bare(self.storage_name(name)))?;
        self.memory(|m| drop(m.resolutions.remove(name)));
        Ok(())
    }

    /// Replaces or makes a table in one step.
    async fn replace_table(&self, name: &str, rows: DataFrame, resolution: Option<String>) -> Result<u64> {
        let stored = if resolution.is_some() { self.storage_name(name) } else { name.to_owned() };
        let reference = datafusion::common::TableReference::bare(stored);
        let old = match self.session.table_exist(reference.clone())? {
            true => Some(self.session.table_provider(reference).await?.schema()),
            false => None,
        };
        let schema = table_schema(rows.schema().as_arrow(), old);
        let fitted = schema.clone();
        let rows = self.stream(rows).await?.map(move |batch| Ok(RecordBatch::try_new(fitted.clone(), batch?.columns().to_vec())?));
        let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema.clone(), rows));
        match &self.shared.store {
            None => {
                let batches = collect(rows).await?;
                let count = batches.iter().map(RecordBatch::num_rows).sum::<usize>();
                self.publish(name, Arc::new(MemTable::try_new(schema, vec![batches])?), resolution).await?;
                Ok(count as u64)
            }
            Some(store) => {
                let mut manifest = store.read()?;
                let file = store.new_file(&mut manifest, name);
                let count = sinks::write_file(&store.path(&file), Format::Parquet, rows, None).await?;
                manifest.tables.insert(name.to_owned(), Table { files: vec![file], resolution });
                store.write(&manifest)?;
                self.refresh().await?;
                Ok(count as u64)
            }
        }
    }

    async fn append(&self, name: &str, rows: SendableRecordBatchStream, store: &Store) -> Result<u64> {
        let mut manifest = store.read()?;
        let file = store.new_file(&mut manifest, name);
        let count = sinks::write_file(&store.path(&file), Format::Parquet, rows, None).await?;
        let Some(table) = manifest.tables.get_mut(name) else {
            return Err(MergeError::new(Code::UnknownSource, format!("there is no table `{name}`")));
        };
        table.files.push(file);
        store.write(&manifest)?;
        self.refresh().await?;
        Ok(count as u64)
    }

    // SQL that is not ours.

    async fn run_sql(&self, sql: &str) -> Result<DataFrame> {
        if let Some(table) = single_call(sql, "mergeql_adopt") {
            return self.adopt_edits(&table).await;
        }
        if let Some(statement) = single_call(sql, "mergeql_sql") {
            let lowered = Box::pin(self.lower(&statement)).await?;
            let schema = Arc::new(Schema::new(vec![Field::new("mergeql_sql", DataType::Utf8, false)]));
            let text = arrow::array::StringArray::from_iter_values([lowered]);
            return Ok(self.session.read_batch(RecordBatch::try_new(schema, vec![Arc::new(text)])?)?);
        }
        let plan = self.plan_sql(sql).await?;
        match (&plan, &self.shared.store) {
            (LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)), store) => {
                let name = create.name.table().to_owned();
                let exists = self.session.table_exist(create.name.clone())?;
                if exists && create.if_not_exists {
                    return self.count("rows", 0);
                }
                if exists && !create.or_replace {
                    return Err(MergeError::new(Code::InvalidArgument, format!("the table `{name}` is there already"))
                        .help("write CREATE OR REPLACE TABLE to replace it"));
                }
                if store.is_none() {
                    self.forget(&name)?;
                    return Ok(self.session.execute_logical_plan(plan).await?);
                }
                let _lock = self.lock()?;
                let rows = DataFrame::new(self.session.state(), (*create.input).clone());
                let count = self.replace_table(&name, rows, None).await?;
                self.count("rows", count)
            }
            (LogicalPlan::Dml(dml), Some(store)) if matches!(dml.op, WriteOp::Insert(_)) => {
                let _lock = self.lock()?;
                let name = dml.table_name.table().to_owned();
                let rows = DataFrame::new(self.session.state(), (*dml.input).clone());
                let rows = self.stream(rows).await?;
                let count = self.append(&name, rows, store).await?;
                self.count("count", count)
            }
            (LogicalPlan::Dml(dml), None) if self.memory(|m| m.resolutions.contains_key(dml.table_name.table())) => {
                // The name is a view over the stored rows, and a view takes no rows.
                let name = dml.table_name.table().to_owned();
                self.insert_by_hand(&name, (*dml.input).clone()).await
            }
            (LogicalPlan::Ddl(DdlStatement::DropTable(drop_table)), store) => {
                let name = drop_table.name.table().to_owned();
                if !self.session.table_exist(drop_table.name.clone())? {
                    if drop_table.if_exists {
                        return self.count("tables", 0);
                    }
                    return Err(MergeError::new(Code::UnknownSource, format!("there is no table `{name}`")));
                }
                if let Some(store) = store {
                    let _lock = self.lock()?;
                    let mut manifest = store.read()?;
                    manifest.tables.remove(&name);
                    store.write(&manifest)?;
                    self.refresh().await?;
                }
                self.forget(&name)?;
                self.count("tables", 1)
            }
            _ => Ok(self.session.execute_logical_plan(plan).await?),
        }
    }

    /// Plans SQL; a table name in quotes that is a file's is that file.
    pub(crate) async fn plan_sql(&self, sql: &str) -> Result<LogicalPlan> {
        let state = self.session.state();
        let statement = state.sql_to_statement(sql, &state.config_options().sql_parser.dialect)?;
        for reference in state.resolve_table_references(&statement)? {
            let path = std::path::Path::new(reference.table());
            if Format::of_path(path).is_some() && !self.session.table_exist(reference.clone())? {
                let (provider, _) = self.open_path(reference.table(), &ReadOptions::default()).await?;
                self.session.register_table(reference, provider)?;
            }
        }
        Ok(state.statement_to_plan(statement).await?)
    }

    async fn insert_by_hand(&self, name: &str, input: LogicalPlan) -> Result<DataFrame> {
        let storage = datafusion::common::TableReference::bare(self.storage_name(name));
        let schema = self.session.table_provider(storage.clone()).await?.schema();
        let mut batches = self.session.table(storage).await?.collect().await?;
        let mut count = 0;
        for batch in DataFrame::new(self.session.state(), input).collect().await? {
            count += batch.num_rows() as u64;
            let columns = schema
                .fields()
                .iter()
                .map(|f| match batch.column_by_name(f.name()) {
                    Some(column) => Ok(arrow::compute::cast(column, f.data_type())?),
                    None => Ok(arrow::array::new_null_array(f.data_type(), batch.num_rows())),
                })
                .collect::<Result<Vec<ArrayRef>>>()?;
            batches.push(RecordBatch::try_new(schema.clone(), columns)?);
        }
        let resolution = self.memory(|m| m.resolutions.get(name).cloned());
        self.publish(name, Arc::new(MemTable::try_new(schema, vec![batches])?), resolution).await?;
        self.count("count", count)
    }

    /// One row with a count.
    fn count(&self, what: &str, n: u64) -> Result<DataFrame> {
        let schema = Arc::new(Schema::new(vec![Field::new(what, DataType::UInt64, false)]));
        let batch = RecordBatch::try_new(schema, vec![Arc::new(UInt64Array::from(vec![n]))])?;
        Ok(self.session.read_batch(batch)?)
    }

    /// A session with the memory limit of the statement, if it has one.
    fn session_for(&self, plan: &Plan) -> Result<SessionContext> {
        let limit = match plan.option("memory_limit") {
            None => return Ok(self.session.clone()),
            Some(Value::Text(text)) => parse_size(text),
            Some(Value::Int(n)) => usize::try_from(*n).ok(),
            Some(_) => None,
        };
        let limit =
            limit.ok_or_else(|| MergeError::new(Code::InvalidArgument, "`memory_limit` is a size like '2GB' or '500MB'"))?;
        let state = self.session.state();
        let config = bounded(state.config().clone());
        let state =
            SessionStateBuilder::new_from_existing(state).with_config(config).with_runtime_env(limited_runtime(limit)?).build();
        Ok(SessionContext::new_with_state(state))
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
fn bounded(config: SessionConfig) -> SessionConfig {
    config.with_target_partitions(1)
}

fn limited_runtime(limit: usize) -> Result<Arc<RuntimeEnv>> {
    Ok(RuntimeEnvBuilder::new().with_memory_pool(Arc::new(FairSpillPool::new(limit))).build_arc()?)
}

/// A size in bytes: `2GB`, `512 MiB`, `1000000`.
pub fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit: f64 = match text[digits..].trim() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1048576.0,
        "gib" => 1073741824.0,
        _ => return None,
    };
    let bytes = number * unit;
    (1.0..1e18).contains(&bytes).then_some(bytes as usize)
}

/// A query sorted by the key of a plan, as files are written.
fn by_key(sql: &str, plan: &Plan) -> String {
    let keys: Vec<String> = plan.key_columns().iter().map(|c| format!("{} ASC NULLS FIRST", quote(&c.name))).collect();
    format!("SELECT * FROM ({sql}) AS sorted ORDER BY {}", keys.join(", "))
}

fn table_only(parts: &[Name]) -> Result<String> {
    match parts {
        [name] => Ok(if name.quoted { name.value.clone() } else { name.value.to_ascii_lowercase() }),
        _ => Err(Diagnostic::at(Code::Unsupported, parts[0].span, "tables are made in the default schema only").into()),
    }
}

/// The merge with the names that its columns have after MAP, as later statements will call them.
fn final_names(merge: &Merge, plan: &Plan) -> Merge {
    let mut named = merge.clone();
    let rename = |name: &mut Name| {
        let is_column = |n: &str| plan.columns.iter().any(|c| c.name == n);
        if !is_column(&name.value)
            && let Some((_, new)) = merge.map.iter().find(|(old, _)| old.value == name.value)
        {
            name.value.clone_from(&new.value);
        }
    };
    named.key.iter_mut().for_each(rename);
    named.delete.iter_mut().for_each(rename);
    named.version.iter_mut().flat_map(|v| &mut v.columns).for_each(|(n, _)| rename(n));
    for (target, call) in &mut named.strategies {
        if let mergeql_lang::ast::Target::Column(name) = target {
            rename(name);
        }
        call.by.iter_mut().flat_map(|v| &mut v.columns).for_each(|(n, _)| rename(n));
        for (_, argument) in &mut call.args {
            if let mergeql_lang::ast::Argument::Name(name) = argument {
                rename(name);
            }
        }
    }
    named
}

/// The schema of a table that is made or replaced: a column is NOT NULL only if it was.
fn table_schema(new: &Schema, old: Option<SchemaRef>) -> SchemaRef {
    let was_not_null = |name: &str| old.as_ref().is_some_and(|o| o.field_with_name(name).is_ok_and(|f| !f.is_nullable()));
    let field = |f: &Arc<Field>| f.as_ref().clone().with_nullable(!was_not_null(f.name()));
    Arc::new(Schema::new(new.fields().iter().map(field).collect::<Vec<_>>()))
}

/// The text argument of `SELECT function('text')`, for the two functions that need the session and so stand alone.
fn single_call(sql: &str, function: &str) -> Option<String> {
    let rest = sql.trim().trim_end_matches(';').trim_end();
    let (select, rest) = rest.split_at_checked(6)?;
    let (name, arguments) = rest.trim_start().split_at_checked(function.len())?;
    if !select.eq_ignore_ascii_case("select") || !name.eq_ignore_ascii_case(function) {
        return None;
    }
    let text = arguments.trim().strip_prefix('(')?.strip_suffix(')')?.trim().strip_prefix('\'')?.strip_suffix('\'')?;
    // A quote that is not doubled ends the text: then this is some other expression.
    (!text.replace("''", "").contains('\'')).then(|| text.replace("''", "'"))
}

/// Collects a stream.
///
/// # Errors
/// What the query fails with.
pub async fn collect(stream: SendableRecordBatchStream) -> Result<Vec<RecordBatch>> {
    Ok(stream.try_collect().await?)
}
