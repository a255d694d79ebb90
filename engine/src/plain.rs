//! SQL that is not ours: statements that make, fill, change and drop tables and views.

use crate::context::{MergeContext, settings_are_shared};
use crate::error::{MergeError, Result};
use crate::explain;
use crate::renames::renaming;
use crate::sources::{Format, ReadOptions};
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::MemTable;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{CreateMemoryTable, DdlStatement, DropTable, LogicalPlan, Statement as PlanStatement, WriteOp};
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::sql::parser::Statement as ParsedStatement;
use datafusion::sql::sqlparser;
use mergeql_lang::lower::quote;
use mergeql_udfs::Code;
use std::sync::Arc;

impl MergeContext {
    /// Runs SQL; `written` is the statement before its merges were lowered.
    pub(crate) async fn run_sql(&self, sql: &str, written: &str) -> Result<DataFrame> {
        if let Some(table) = single_call(sql, "mergeql_adopt") {
            let _changing = self.changing().await?;
            return self.adopt_edits(&table).await;
        }
        if let Some(statement) = single_call(sql, "mergeql_sql") {
            let lowered = Box::pin(self.lower(&statement)).await?;
            let schema = Arc::new(Schema::new(vec![Field::new("mergeql_sql", DataType::Utf8, false)]));
            let text = arrow::array::StringArray::from_iter_values([lowered]);
            return Ok(self.session.read_batch(RecordBatch::try_new(schema, vec![Arc::new(text)])?)?);
        }
        if let Some(renaming) = renaming(sql) {
            return self.rename(&renaming).await;
        }
        let plan = self.plan_sql(sql).await?;
        self.run_planned(plan, written, Some(sql)).await
    }

    /// Runs the plan of a statement.
    pub(crate) async fn run_plan(&self, plan: LogicalPlan, written: &str) -> Result<DataFrame> {
        self.run_planned(plan, written, None).await
    }

    /// Runs the plan of a statement, which may be planned from `sql` again.
    async fn run_planned(&self, plan: LogicalPlan, written: &str, sql: Option<&str>) -> Result<DataFrame> {
        if self.is_served()
            && matches!(&plan, LogicalPlan::Statement(PlanStatement::SetVariable(_) | PlanStatement::ResetVariable(_)))
        {
            return Err(settings_are_shared());
        }
        let mut plan = self.expanded(plan).await?;
        let _changing = match self.changes(&plan)? {
            true => Some(self.changing().await?),
            false => None,
        };
        if _changing.is_none()
            && let Some(stages) = explain::divided(self, &plan).await?
        {
            return Ok(stages);
        }
        // Who waited for a turn works with the tables that are there then.
        let _lock = match self.replaces_rows(&plan) {
            true => self.lock()?,
            false => None,
        };
        if _changing.is_some() {
            self.refresh().await?;
            plan = match (self.current(plan).await, sql) {
                (Err(_), Some(sql)) => {
                    let again = self.plan_sql(sql).await?;
                    self.expanded(again).await?
                }
                (plan, _) => plan?,
            };
        }
        let (changed, is_view) = match &plan {
            LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)) => (Some(&create.name), false),
            LogicalPlan::Ddl(DdlStatement::CreateExternalTable(create)) => (Some(&create.name), false),
            LogicalPlan::Ddl(DdlStatement::CreateView(create)) => (Some(&create.name), true),
            LogicalPlan::Ddl(DdlStatement::DropTable(dropped)) => (Some(&dropped.name), false),
            LogicalPlan::Ddl(DdlStatement::DropView(dropped)) => (Some(&dropped.name), true),
            LogicalPlan::Dml(dml) => (Some(&dml.table_name), false),
            _ => (None, false),
        };
        if let Some(name) = changed.filter(|name| !self.is_default(name)) {
            // What is kept, and what has states, is known by bare names.
            if self.shared.store.is_some() {
                let what = if is_view { "views" } else { "tables" };
                return Err(MergeError::new(
                    Code::Unsupported,
                    format!("{what} are kept in the default schema only, not as `{name}`"),
                )
                .help("leave the schema out, or run without --db"));
            }
            return Ok(self.session.execute_logical_plan(plan).await?);
        }
        match &plan {
            LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)) if create.temporary => {
                return self.make_temporary(create.clone()).await;
            }
            LogicalPlan::Ddl(DdlStatement::CreateView(create)) if create.temporary => {
                return self.make_temporary_view(create.clone());
            }
            LogicalPlan::Ddl(DdlStatement::CreateView(create)) => self.check_reads_no_temporary(&create.input)?,
            LogicalPlan::Copy(copy) => return self.copy_to(copy.clone()).await,
            _ => {}
        }
        if let Some(name) = changed.map(|name| name.table()).filter(|name| self.is_temporary(name)) {
            return match &plan {
                LogicalPlan::Ddl(DdlStatement::DropTable(_) | DdlStatement::DropView(_)) => self.drop_temporary(name),
                LogicalPlan::Ddl(_) => Err(MergeError::new(Code::InvalidArgument, format!("there is a temporary table `{name}`"))
                    .help("DROP it first, or choose another name")),
                LogicalPlan::Dml(dml) if !matches!(dml.op, WriteOp::Insert(_)) => self.rewrite(dml).await,
                _ => Ok(self.session.execute_logical_plan(plan).await?),
            };
        }
        if let LogicalPlan::Dml(dml) = &plan {
            self.check_is_no_view(dml.table_name.table())?;
            self.check_keeps_no_states(dml)?;
            if let WriteOp::Insert(op @ (InsertOp::Overwrite | InsertOp::Replace)) = &dml.op {
                let (what, name) = (op.to_string().to_uppercase(), quote(dml.table_name.table()));
                return Err(MergeError::new(
                    Code::Unsupported,
                    format!("rows are added to a table, and {what} would replace some"),
                )
                .help(format!("CREATE OR REPLACE TABLE {name} AS SELECT ..., or MERGE INTO {name}")));
            }
        }
        match (&plan, &self.shared.store) {
            (LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)), _) => self.create_table(create).await,
            (LogicalPlan::Dml(dml), Some(store)) if matches!(dml.op, WriteOp::Insert(_)) => {
                let name = dml.table_name.table().to_owned();
                let rows = DataFrame::new(self.session.state(), (*dml.input).clone());
                let count = self.append(&name, rows, store).await.map_err(|e| not_null(e, &name))?;
                self.count("count", count)
            }
            (LogicalPlan::Dml(dml), _) if matches!(dml.op, WriteOp::Delete | WriteOp::Update | WriteOp::Truncate) => {
                self.rewrite(dml).await
            }
            (LogicalPlan::Dml(dml), None) if self.memory(|m| m.resolutions.contains_key(dml.table_name.table())) => {
                // The name is a view over the stored rows, and a view takes no rows.
                let name = dml.table_name.table().to_owned();
                self.insert_by_hand(&name, (*dml.input).clone()).await
            }
            // While nobody else changes the table: another statement may put a new one in its place.
            (LogicalPlan::Dml(dml), None) if matches!(dml.op, WriteOp::Insert(_)) => {
                let answer = self.session.execute_logical_plan(plan).await?;
                let schema = answer.schema().inner().clone();
                let batches = answer.collect().await.map_err(MergeError::running)?;
                Ok(self.session.read_table(Arc::new(MemTable::try_new(schema, vec![batches])?))?)
            }
            (LogicalPlan::Ddl(DdlStatement::DropTable(dropped)), _) => self.drop_table(dropped).await,
            (LogicalPlan::Ddl(_), _) => self.define_name(plan, written).await,
            _ => Ok(self.session.execute_logical_plan(plan).await?),
        }
    }

    async fn create_table(&self, create: &CreateMemoryTable) -> Result<DataFrame> {
        let name = create.name.table().to_owned();
        self.check_is_no_view(&name)?;
        let exists = self.session.table_exist(create.name.clone())?;
        if exists && create.if_not_exists {
            return self.count("rows", 0);
        }
        if exists && !create.or_replace {
            return Err(MergeError::new(Code::InvalidArgument, format!("the table `{name}` is there already"))
                .help("write CREATE OR REPLACE TABLE to replace it"));
        }
        if self.shared.store.is_none() {
            // What was there stays until all rows of the new one are.
            let making = datafusion::common::TableReference::bare(format!("__mergeql_making_{name}"));
            let create = CreateMemoryTable { name: making.clone(), or_replace: false, ..create.clone() };
            let made = LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create));
            let answer = self.session.execute_logical_plan(made).await?;
            if let Some(table) = self.session.deregister_table(making)? {
                self.publish(&name, table, None).await?;
            }
            return Ok(answer);
        }
        if let Some((column, _)) = create.column_defaults.first() {
            return Err(MergeError::new(
                Code::Unsupported,
                format!("a table on disk keeps no DEFAULT, as `{column}` of `{name}` has"),
            )
            .help("leave DEFAULT out and name the value where rows are put in"));
        }
        let rows = DataFrame::new(self.session.state(), (*create.input).clone());
        // Columns of a list say so themselves, those of a query are as they come.
        let declared = matches!(&*create.input, LogicalPlan::EmptyRelation(_)).then(|| create.input.schema().inner().clone());
        let count = self.put_table(&name, rows, declared, None).await?;
        self.count("rows", count)
    }

    async fn drop_table(&self, dropped: &DropTable) -> Result<DataFrame> {
        let name = dropped.name.table().to_owned();
        self.check_is_no_view(&name)?;
        let listed = self.memory(|m| m.manifest.tables.contains_key(&name));
        if !listed && !self.session.table_exist(dropped.name.clone())? {
            if dropped.if_exists {
                return self.count("tables", 0);
            }
            return Err(MergeError::new(Code::UnknownSource, format!("there is no table `{name}`")));
        }
        if let Some(store) = &self.shared.store {
            let mut manifest = store.read()?;
            manifest.tables.remove(&name);
            manifest.definitions.remove(&name);
            store.write(&manifest)?;
            self.refresh().await?;
        }
        self.forget(&name)?;
        self.count("tables", 1)
    }

    /// Makes or drops a view or an external table; other definitions are DataFusion's. `written` is the statement.
    async fn define_name(&self, plan: LogicalPlan, written: &str) -> Result<DataFrame> {
        let LogicalPlan::Ddl(ddl) = &plan else { return Ok(self.session.execute_logical_plan(plan).await?) };
        let (name, definition) = match ddl {
            DdlStatement::CreateView(view) => (view.name.table().to_owned(), Some(written)),
            DdlStatement::CreateExternalTable(table) => (table.name.table().to_owned(), Some(written)),
            DdlStatement::DropView(view) => (view.name.table().to_owned(), None),
            _ => return Ok(self.session.execute_logical_plan(plan).await?),
        };
        let makes_view = matches!(ddl, DdlStatement::CreateView(_));
        let is_view = self.memory(|m| m.views.contains_key(&name));
        if makes_view && !is_view && self.has_table(&name) {
            return Err(MergeError::new(Code::InvalidArgument, format!("there is a table `{name}`"))
                .help("DROP TABLE it first, or choose another name"));
        }
        let result = match ddl {
            // Also one that reads what is gone.
            DdlStatement::DropView(_) if is_view => {
                self.forget(&name)?;
                self.count("views", 1)?
            }
            DdlStatement::CreateView(view) if is_view && !view.or_replace => {
                return Err(MergeError::new(Code::InvalidArgument, format!("there is a view `{name}`"))
                    .help("write CREATE OR REPLACE VIEW to replace it"));
            }
            _ => self.session.execute_logical_plan(plan).await?,
        };
        if let Some(store) = &self.shared.store {
            self.keep_definition(store, &name, definition)?;
        }
        self.memory(|m| match definition.filter(|_| makes_view) {
            Some(text) => drop(m.views.insert(name, text.to_owned())),
            None => drop(m.views.remove(&name)),
        });
        Ok(result)
    }

    /// Whether a plan changes what tables of the folder hold, or which there are.
    fn replaces_rows(&self, plan: &LogicalPlan) -> bool {
        let name = match plan {
            LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)) if !create.temporary => &create.name,
            LogicalPlan::Ddl(DdlStatement::DropTable(dropped)) => &dropped.name,
            LogicalPlan::Dml(dml) => &dml.table_name,
            _ => return false,
        };
        self.is_default(name) && !self.is_temporary(name.table())
    }

    /// Whether a name is one of the default schema.
    pub(crate) fn is_default(&self, name: &datafusion::common::TableReference) -> bool {
        let state = self.session.state();
        let catalog = &state.config_options().catalog;
        name.catalog().is_none_or(|c| c == catalog.default_catalog) && name.schema().is_none_or(|s| s == catalog.default_schema)
    }

    /// Plans SQL; a table name in quotes that is a file's is that file.
    pub(crate) async fn plan_sql(&self, sql: &str) -> Result<LogicalPlan> {
        self.plan_in(&self.session, sql).await
    }

    /// As [`MergeContext::plan_sql`], in a session with a memory limit of its own.
    pub(crate) async fn plan_in(&self, session: &SessionContext, sql: &str) -> Result<LogicalPlan> {
        let state = session.state();
        let mut statement = state.sql_to_statement(sql, &state.config_options().sql_parser.dialect)?;
        // DataFusion plans no temporary tables: the plan is that of a table, and is marked.
        let temporary = match &mut statement {
            ParsedStatement::Statement(parsed) => match parsed.as_mut() {
                sqlparser::ast::Statement::CreateTable(create) => std::mem::take(&mut create.temporary),
                _ => false,
            },
            _ => false,
        };
        for reference in state.resolve_table_references(&statement)? {
            let path = std::path::Path::new(reference.table());
            let bare = matches!(reference, datafusion::common::TableReference::Bare { .. });
            let written = bare && !reference.table().starts_with("__mergeql_");
            if written && Format::of_path(path).is_some() && !self.has_table(reference.table()) {
                let (provider, _) = self.open_path(reference.table(), &ReadOptions::default()).await?;
                self.shared.names.put_file(reference.table(), provider);
            }
        }
        let mut plan = state.statement_to_plan(statement).await?;
        if let (true, LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create))) = (temporary, &mut plan) {
            create.temporary = true;
        }
        Ok(plan)
    }

    pub(crate) async fn insert_by_hand(&self, name: &str, input: LogicalPlan) -> Result<DataFrame> {
        let storage = datafusion::common::TableReference::bare(self.storage_name(name));
        let schema = self.session.table_provider(storage.clone()).await?.schema();
        let mut batches = self.session.table(storage).await?.collect().await?;
        let mut count = 0;
        for batch in DataFrame::new(self.session.state(), input).collect().await.map_err(MergeError::running)? {
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
}

/// DataFusion's words for a NULL where there can be none, which name a column of its own plan.
fn not_null(error: MergeError, table: &str) -> MergeError {
    if !error.diagnostic.message.contains("declared as non-nullable") {
        return error;
    }
    let message = format!("a row has NULL in a column of `{table}` that is NOT NULL");
    MergeError::running(MergeError::new(Code::InvalidArgument, message))
}

/// The text argument of `SELECT function('text')`, for the two functions that need the session and so stand alone.
pub(crate) fn single_call(sql: &str, function: &str) -> Option<String> {
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
