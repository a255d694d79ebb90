//! Tables of a session, in memory or in the `--db` folder: which there are, and how they are kept and filled.

use crate::columns::external;
use crate::context::{MergeContext, collect};
use crate::current::Lasting;
use crate::error::{MergeError, Result};
use crate::orders::ParquetFiles;
use crate::sinks;
use crate::sources::{Format, escaped};
use crate::store::{File, Manifest, Store, Table};
use crate::text_scan::TextTable;
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::datasource::listing::ListingTable;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::DataFrame;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use futures::StreamExt;
use mergeql_lang::ast::{Name, Statement};
use mergeql_lang::lower::{DELETED, quote};
use mergeql_lang::parse;
use mergeql_udfs::{Code, Error};
use std::sync::Arc;

impl MergeContext {
    pub(crate) fn storage_name(&self, table: &str) -> String {
        format!("__mergeql_store_{table}")
    }

    /// The name of a table without the default schema and catalogue: one relation has one name.
    pub(crate) fn own_part<'n>(&self, parts: &'n [Name]) -> &'n [Name] {
        let state = self.session.state();
        let defaults = &state.config_options().catalog;
        let is = |name: &Name, default: &str| name.value == default || !name.quoted && name.value.eq_ignore_ascii_case(default);
        match parts {
            [schema, table] if is(schema, &defaults.default_schema) => std::slice::from_ref(table),
            [catalog, schema, table] if is(catalog, &defaults.default_catalog) && is(schema, &defaults.default_schema) => {
                std::slice::from_ref(table)
            }
            parts => parts,
        }
    }

    /// The registered table that a name means, if there is one.
    pub(crate) fn table_name(&self, parts: &[Name]) -> Option<String> {
        let [name] = self.own_part(parts) else { return None };
        let exists = |n: &str| self.has_table(n);
        if exists(&name.value) {
            return Some(name.value.clone());
        }
        let folded = name.value.to_ascii_lowercase();
        (!name.quoted && exists(&folded)).then_some(folded)
    }

    /// Whether a table or view has this name, to the letter.
    pub fn has_table(&self, name: &str) -> bool {
        self.is_temporary(name) || self.shared.names.has_table(name)
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

    pub(crate) fn lock(&self) -> Result<Option<crate::store::Lock>> {
        self.shared.store.as_ref().map(Store::lock).transpose()
    }

    /// Makes the registered tables those of the manifest, which another process may have changed, and the views those over them.
    pub(crate) async fn refresh(&self) -> Result<()> {
        // One after the other, or an earlier state of the folder could be put over a later one.
        let _refreshing = self.shared.refreshing.lock().await;
        if let Some(store) = &self.shared.store {
            self.refresh_tables(store).await?;
        }
        self.renew_views().await?;
        self.renew_temporary_views().await
    }

    async fn refresh_tables(&self, store: &Store) -> Result<()> {
        let manifest = store.read()?;
        let known = self.memory(|m| m.manifest.clone());
        if manifest == known && !manifest.tables.keys().any(|name| self.shared.names.is_broken(name)) {
            return Ok(());
        }
        for name in known.tables.keys().filter(|n| !manifest.tables.contains_key(*n)) {
            self.forget(name)?;
        }
        // Before tables are put there: a name may be that of a view no more, and of a table now.
        for name in known.definitions.keys().filter(|n| !manifest.definitions.contains_key(*n)) {
            self.forget(name)?;
        }
        for (name, table) in &manifest.tables {
            if known.tables.get(name) != Some(table) || self.shared.names.is_broken(name) {
                // A table whose files are gone must not take the others with it, and its name is not free.
                if let Err(error) = self.register_stored(store, name, table).await {
                    self.forget(name)?;
                    let message = format!("the table `{name}` cannot be read: {}", error.diagnostic.message);
                    let error = Error::new(Code::Io, message).with_help("bring its files back into the folder, or DROP TABLE it");
                    self.shared.names.put_broken(name, error);
                }
            }
        }
        for name in known.strategies.keys().filter(|n| !manifest.strategies.contains_key(*n)) {
            self.memory(|m| {
                m.texts.remove(name);
                m.strategies.remove(name);
            });
        }
        for (name, text) in &manifest.strategies {
            if known.strategies.get(name) != Some(text)
                && let Ok(Statement::CreateStrategy { body, .. }) = parse(&format!("CREATE STRATEGY {} AS {text}", quote(name)))
            {
                self.memory(|m| {
                    m.texts.insert(name.clone(), text.clone());
                    m.strategies.insert(name.clone(), body);
                });
            }
        }
        for (name, text) in manifest.definitions.iter().filter(|(name, text)| known.definitions.get(*name) != Some(*text)) {
            if !is_view(text) {
                self.forget(name)?;
                self.define(text).await.ok();
            }
        }
        self.memory(|m| {
            let views = manifest.definitions.iter().filter(|(_, text)| is_view(text));
            m.views = views.map(|(name, text)| (name.clone(), text.clone())).collect();
            m.views_as_of = u64::MAX;
            m.manifest = manifest;
        });
        Ok(())
    }

    /// Plans views anew, if any table has changed since they were planned. One that reads what is gone is out until that is back.
    async fn renew_views(&self) -> Result<()> {
        let changes = self.shared.names.changes();
        let mut waiting = self.memory(|m| m.views.clone());
        if self.memory(|m| m.views_as_of == changes) {
            waiting.retain(|name, _| self.shared.names.is_broken(name));
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let (planner, mut own) = (self.without_temporary(), 0);
        // A view may be over others, which are named in it, and come first.
        while !waiting.is_empty() {
            let over = |name: &str, text: &str| waiting.keys().any(|other| other != name && names(text, other));
            let ready =
                waiting.iter().find(|(name, text)| !over(name, text)).or(waiting.iter().next()).map(|(name, _)| name.clone());
            let Some((name, text)) = ready.and_then(|name| waiting.remove_entry(&name)) else { break };
            // Of what others change meanwhile this view may not know.
            own += 1;
            if let Err(error) = planner.define(&text).await {
                own += u64::from(self.shared.names.has_table(&name));
                self.forget(&name)?;
                let message = format!("the view `{name}` cannot be read: {}", error.diagnostic.message);
                let error = Error::new(error.code(), message).with_help("bring back what it reads, or DROP VIEW it");
                self.shared.names.put_broken(&name, error);
            }
        }
        self.memory(|m| m.views_as_of = changes + own);
        Ok(())
    }

    /// Makes a view or an external table from its statement.
    pub(crate) async fn define(&self, text: &str) -> Result<()> {
        if let Statement::Sql(pieces) = parse(text)? {
            let sql = Box::pin(self.lasting(Lasting::All).lower_pieces(&pieces)).await?;
            match Box::pin(self.plan_sql(&sql)).await? {
                // In one step, so that its name is never gone.
                LogicalPlan::Ddl(DdlStatement::CreateView(view)) => {
                    let table = datafusion::datasource::ViewTable::new((*view.input).clone(), view.definition);
                    self.session.register_table(view.name, Arc::new(table))?;
                }
                plan => drop(self.session.execute_logical_plan(plan).await?),
            }
        }
        Ok(())
    }

    /// # Errors
    /// `invalid_argument` if a name is that of a view.
    pub(crate) fn check_is_no_view(&self, name: &str) -> Result<()> {
        if self.memory(|m| m.views.contains_key(name)) {
            return Err(MergeError::new(Code::InvalidArgument, format!("`{name}` is a view: it has no rows of its own"))
                .help(format!("DROP VIEW {} first, or choose another name", quote(name))));
        }
        Ok(())
    }

    /// Notes what a view or an external table is in the manifest; `None` takes it out.
    pub(crate) fn keep_definition(&self, store: &Store, name: &str, text: Option<&str>) -> Result<()> {
        let _lock = store.lock()?;
        let mut manifest = store.read()?;
        match text {
            Some(text) => drop(manifest.definitions.insert(name.to_owned(), text.to_owned())),
            None => drop(manifest.definitions.remove(name)),
        }
        store.write(&manifest)?;
        self.memory(|m| m.manifest.definitions = manifest.definitions);
        Ok(())
    }

    pub(crate) async fn register_stored(&self, store: &Store, name: &str, table: &Table) -> Result<()> {
        let provider = Box::pin(self.open_layers(store, &table.files)).await?;
        self.publish(name, provider, table.resolution.clone()).await
    }

    /// Parquet files as one table, with the columns that they have or with these: what a file has not is NULL there.
    pub(crate) async fn open_stored(&self, paths: &[String], schema: Option<SchemaRef>) -> Result<Arc<dyn TableProvider>> {
        use datafusion::datasource::listing::{ListingOptions, ListingTableConfig, ListingTableUrl};
        let urls =
            paths.iter().map(|p| Ok(ListingTableUrl::parse(format!("file://{}", escaped(p)))?)).collect::<Result<Vec<_>>>()?;
        let options = ListingOptions::new(Arc::new(ParquetFiles::new(true))).with_file_extension("");
        let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options);
        let config = match schema {
            Some(schema) => config.with_schema(schema),
            None => config.infer_schema(&self.session.state()).await?,
        };
        Ok(Arc::new(ListingTable::try_new(config)?))
    }

    /// Puts a table under its name; one that keeps states hides its deleted rows behind a view.
    pub(crate) async fn publish(&self, name: &str, provider: Arc<dyn TableProvider>, resolution: Option<String>) -> Result<()> {
        let reference = datafusion::common::TableReference::bare(name.to_owned());
        match resolution {
            None => {
                self.session.register_table(reference, provider)?;
                self.session.deregister_table(datafusion::common::TableReference::bare(self.storage_name(name)))?;
                self.memory(|m| drop(m.resolutions.remove(name)));
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

    pub(crate) fn forget(&self, name: &str) -> Result<()> {
        self.session.deregister_table(datafusion::common::TableReference::bare(name))?;
        self.session.deregister_table(datafusion::common::TableReference::bare(self.storage_name(name)))?;
        self.memory(|m| drop(m.resolutions.remove(name)));
        Ok(())
    }

    /// Writes a table anew in one step; its columns stay NOT NULL.
    pub(crate) async fn replace_table(&self, name: &str, rows: DataFrame, resolution: Option<String>) -> Result<u64> {
        self.check_is_own(name).await?;
        let stored = if resolution.is_some() { self.storage_name(name) } else { name.to_owned() };
        let old = self.schema_of(&stored).await?;
        self.put_table(name, rows, old, resolution).await
    }

    /// # Errors
    /// `unsupported` for what stands for files, whose rows are not written anew here.
    async fn check_is_own(&self, name: &str) -> Result<()> {
        if self.is_temporary(name) || self.memory(|m| m.manifest.tables.contains_key(name)) {
            return Ok(());
        }
        let table = self.session.table_provider(datafusion::common::TableReference::bare(name)).await?;
        let files = table.downcast_ref::<ListingTable>().is_some() || table.downcast_ref::<TextTable>().is_some();
        if self.has_table(name) && !files {
            return Ok(());
        }
        Err(MergeError::new(Code::Unsupported, format!("`{name}` is a file or an external table: its rows are those of files"))
            .help("make a table of it first: CREATE TABLE t AS SELECT * FROM ..."))
    }

    /// Replaces or makes a table in one step. Its columns are NOT NULL where those of `declared` are.
    pub(crate) async fn put_table(
        &self,
        name: &str,
        rows: DataFrame,
        declared: Option<SchemaRef>,
        resolution: Option<String>,
    ) -> Result<u64> {
        if self.is_temporary(name) {
            return self.fill_temporary(name, self.fitted(declared, rows).await?).await;
        }
        self.check_is_no_view(name)?;
        match &self.shared.store {
            None => {
                let rows = self.fitted(declared, rows).await?;
                let schema = rows.schema();
                let batches = collect(rows).await?;
                let count = batches.iter().map(RecordBatch::num_rows).sum::<usize>();
                self.publish(name, Arc::new(MemTable::try_new(schema, vec![batches])?), resolution).await?;
                Ok(count as u64)
            }
            Some(store) => {
                let mut manifest = store.read()?;
                let (file, count) = self.write_rows(store, &mut manifest, name, declared, rows).await?;
                let table = Table { files: vec![File::more(file)], resolution, checked: true };
                manifest.tables.insert(name.to_owned(), table);
                // An external table that it takes the place of is none any more.
                manifest.definitions.remove(name);
                store.write(&manifest)?;
                self.refresh().await?;
                Ok(count)
            }
        }
    }

    /// The schema of the table that is stored under a name, if there is one.
    async fn schema_of(&self, stored: &str) -> Result<Option<SchemaRef>> {
        let reference = datafusion::common::TableReference::bare(stored);
        match self.session.table_exist(reference.clone())? {
            true => Ok(Some(self.session.table_provider(reference).await?.schema())),
            false => Ok(None),
        }
    }

    /// Rows for a table whose columns are NOT NULL where those of `declared` are.
    pub(crate) async fn fitted(&self, declared: Option<SchemaRef>, rows: DataFrame) -> Result<SendableRecordBatchStream> {
        let schema = table_schema(rows.schema().as_arrow(), declared);
        Ok(as_declared(schema, self.stream(rows).await?))
    }

    /// Writes a new file of a table that is stored under this name; gives back its name and how many rows it has.
    pub(crate) async fn write_layer(
        &self,
        store: &Store,
        manifest: &mut Manifest,
        name: &str,
        stored: &str,
        rows: DataFrame,
    ) -> Result<(String, u64)> {
        let old = self.schema_of(stored).await?;
        self.write_rows(store, manifest, name, old, rows).await
    }

    /// Writes a new file of a table, whose columns are NOT NULL where those of `declared` are; gives back its name and how many rows it
    /// has.
    async fn write_rows(
        &self,
        store: &Store,
        manifest: &mut Manifest,
        name: &str,
        declared: Option<SchemaRef>,
        rows: DataFrame,
    ) -> Result<(String, u64)> {
        let file = store.new_file(manifest, name);
        let path = store.path(&file);
        let schema = table_schema(rows.schema().as_arrow(), declared);
        let write = |rows| sinks::write_file(&path, Format::Parquet, as_declared(schema.clone(), rows), None);
        let count = self.whole(rows, write).await?;
        Ok((file, count as u64))
    }

    pub(crate) async fn append(&self, name: &str, rows: DataFrame, store: &Store) -> Result<u64> {
        let mut manifest = store.read()?;
        let declared = self.schema_of(name).await?;
        let (file, count) = self.write_rows(store, &mut manifest, name, declared, rows).await?;
        let Some(table) = manifest.tables.get_mut(name) else {
            return Err(MergeError::new(Code::UnknownSource, format!("there is no table `{name}`")));
        };
        table.files.push(File::more(file));
        table.checked = false;
        store.write(&manifest)?;
        self.refresh().await?;
        Ok(count)
    }
}

/// Rows whose columns have this schema.
fn as_declared(schema: SchemaRef, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let fitted = schema.clone();
    let fit = move |batch: RecordBatch| {
        let null = fitted.fields().iter().zip(batch.columns()).find(|(f, c)| !f.is_nullable() && c.logical_null_count() > 0);
        if let Some((field, _)) = null {
            return Err(external(Error::invalid_argument(format!(
                "the column `{}` is NOT NULL, and a row has NULL there",
                field.name()
            ))));
        }
        // What is computed is sometimes a view of what is planned: texts of Parquet beside those of CSV.
        let like_planned = |(column, field): (&ArrayRef, &Arc<Field>)| match column.data_type() == field.data_type() {
            true => Ok(column.clone()),
            false => arrow::compute::cast(column, field.data_type()),
        };
        let columns = batch.columns().iter().zip(fitted.fields()).map(like_planned).collect::<std::result::Result<_, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(fitted.clone(), columns, &options)?)
    };
    Box::pin(RecordBatchStreamAdapter::new(schema, rows.map(move |batch| batch.and_then(&fit))))
}

/// Whether a statement may name something.
fn names(text: &str, name: &str) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    match name.chars().all(in_word) {
        true => text.split(|c| !in_word(c)).any(|word| word.eq_ignore_ascii_case(name)),
        false => text.contains(name),
    }
}

/// The words that a statement begins with, behind comments, in capitals.
pub(crate) fn first_words(text: &str) -> Vec<String> {
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize().unwrap_or_default();
    let words = tokens.iter().filter(|t| !matches!(t, Token::Whitespace(_))).map(|t| t.to_string().to_ascii_uppercase());
    words.take(5).collect()
}

/// Whether the statement that made something made a view.
fn is_view(text: &str) -> bool {
    let words = first_words(text);
    matches!(words.iter().map(String::as_str).collect::<Vec<_>>()[..], ["CREATE", "VIEW", ..] | ["CREATE", "OR", "REPLACE", "VIEW"])
}

/// The schema of a table that is made or replaced: a column is NOT NULL only if it was.
fn table_schema(new: &Schema, old: Option<SchemaRef>) -> SchemaRef {
    let was_not_null = |name: &str| old.as_ref().is_some_and(|o| o.field_with_name(name).is_ok_and(|f| !f.is_nullable()));
    let field = |f: &Arc<Field>| f.as_ref().clone().with_nullable(!was_not_null(f.name()));
    Arc::new(Schema::new(new.fields().iter().map(field).collect::<Vec<_>>()))
}
