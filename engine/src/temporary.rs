//! Temporary tables: those of one connection, which nobody else sees and which end with it. A connection has a session over the same
//! catalogues, whose default schema looks among its own tables first.

use crate::context::{MergeContext, collect};
use crate::error::{MergeError, Result};
use crate::names::Names;
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, MemTable, SchemaProvider, TableProvider};
use datafusion::common::Result as DfResult;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::ViewTable;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{CreateMemoryTable, CreateView, DdlStatement, LogicalPlan};
use datafusion::prelude::{DataFrame, SessionContext};
use mergeql_lang::lower::quote;
use mergeql_udfs::Code;
use std::sync::Arc;

/// The default schema, with a connection's own tables before those that all share.
#[derive(Debug)]
struct Schema {
    own: Arc<Names>,
    shared: Arc<Names>,
}

#[async_trait]
impl SchemaProvider for Schema {
    fn table_names(&self) -> Vec<String> {
        let (mut names, own) = (self.shared.table_names(), self.own.table_names());
        names.retain(|name| !own.contains(name));
        names.extend(own);
        names
    }

    async fn table(&self, name: &str) -> DfResult<Option<Arc<dyn TableProvider>>> {
        match self.own.table(name).await? {
            Some(table) => Ok(Some(table)),
            None => self.shared.table(name).await,
        }
    }

    fn register_table(&self, name: String, table: Arc<dyn TableProvider>) -> DfResult<Option<Arc<dyn TableProvider>>> {
        self.shared.register_table(name, table)
    }

    fn deregister_table(&self, name: &str) -> DfResult<Option<Arc<dyn TableProvider>>> {
        self.shared.deregister_table(name)
    }

    fn table_exist(&self, name: &str) -> bool {
        self.own.table_exist(name) || self.shared.table_exist(name)
    }
}

/// The default catalogue with another default schema.
#[derive(Debug)]
struct Catalog {
    shared: Arc<dyn CatalogProvider>,
    name: String,
    schema: Arc<Schema>,
}

impl CatalogProvider for Catalog {
    fn schema_names(&self) -> Vec<String> {
        self.shared.schema_names()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        match name == self.name {
            true => Some(self.schema.clone()),
            false => self.shared.schema(name),
        }
    }

    fn register_schema(&self, name: &str, schema: Arc<dyn SchemaProvider>) -> DfResult<Option<Arc<dyn SchemaProvider>>> {
        self.shared.register_schema(name, schema)
    }

    fn deregister_schema(&self, name: &str, cascade: bool) -> DfResult<Option<Arc<dyn SchemaProvider>>> {
        self.shared.deregister_schema(name, cascade)
    }
}

/// All catalogues, with another default one.
#[derive(Debug)]
struct Catalogs {
    shared: Arc<dyn CatalogProviderList>,
    name: String,
    catalog: Arc<Catalog>,
}

impl CatalogProviderList for Catalogs {
    fn register_catalog(&self, name: String, catalog: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        self.shared.register_catalog(name, catalog)
    }

    fn catalog_names(&self) -> Vec<String> {
        self.shared.catalog_names()
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        match name == self.name {
            true => Some(self.catalog.clone()),
            false => self.shared.catalog(name),
        }
    }
}

impl MergeContext {
    /// Another handle to the session, with temporary tables of its own.
    pub(crate) fn connection(&self) -> MergeContext {
        let (state, own) = (self.session.state(), Arc::new(Names::default()));
        let shared = match state.catalog_list().downcast_ref::<Catalogs>() {
            Some(theirs) => theirs.shared.clone(),
            None => state.catalog_list().clone(),
        };
        let defaults = state.config_options().catalog.clone();
        let Some(catalog) = shared.catalog(&defaults.default_catalog) else { return self.clone() };
        let schema = Arc::new(Schema { own: own.clone(), shared: self.shared.names.clone() });
        let catalog = Arc::new(Catalog { shared: catalog, name: defaults.default_schema, schema });
        let catalogs = Catalogs { shared, name: defaults.default_catalog, catalog };
        // The catalogues are there: no new ones over them.
        let config = state.config().clone().with_create_default_catalog_and_schema(false);
        let state = SessionStateBuilder::new_from_existing(state).with_config(config).with_catalog_list(Arc::new(catalogs));
        let session = SessionContext::new_with_state(state.build());
        MergeContext { session, shared: self.shared.clone(), temporary: Some(own), lasting: self.lasting }
    }

    /// A handle that sees what all see: a view must not come to be over a temporary table, which may have another's name.
    pub(crate) fn without_temporary(&self) -> MergeContext {
        match self.temporary.as_ref().is_some_and(|own| !own.table_names().is_empty()) {
            true => MergeContext { temporary: None, ..self.connection() },
            false => self.clone(),
        }
    }

    /// Whether a name is that of a temporary table or view of this connection.
    pub(crate) fn is_temporary(&self, name: &str) -> bool {
        self.temporary.as_ref().is_some_and(|own| own.has_table(name))
    }

    fn own_names(&self) -> Result<&Arc<Names>> {
        self.temporary.as_ref().ok_or_else(|| {
            MergeError::new(Code::Unsupported, "temporary tables are of a connection, and here each statement stands alone")
                .help("make a table and drop it, or name the rows by WITH")
        })
    }

    fn check_free(&self, name: &str, or_replace: bool) -> Result<()> {
        let taken = match self.is_temporary(name) {
            true => !or_replace,
            false => self.has_table(name),
        };
        match taken {
            true => Err(MergeError::new(Code::InvalidArgument, format!("the table `{name}` is there already"))
                .help("choose another name, or DROP it first")),
            false => Ok(()),
        }
    }

    /// Makes a temporary table of what a plan gives.
    pub(crate) async fn make_temporary(&self, create: CreateMemoryTable) -> Result<DataFrame> {
        let (own, name) = (self.own_names()?, create.name.table().to_owned());
        if create.if_not_exists && self.has_table(&name) {
            return self.count("rows", 0);
        }
        self.check_free(&name, create.or_replace)?;
        let declared = matches!(&*create.input, LogicalPlan::EmptyRelation(_)).then(|| create.input.schema().inner().clone());
        let rows = self.fitted(declared, DataFrame::new(self.session.state(), (*create.input).clone())).await?;
        let schema = rows.schema();
        let batches = collect(rows).await?;
        let count = batches.iter().map(|b| b.num_rows() as u64).sum();
        let table = MemTable::try_new(schema, vec![batches])?.with_column_defaults(create.column_defaults.into_iter().collect());
        own.register_table(name, Arc::new(table))?;
        self.count("rows", count)
    }

    /// Makes the temporary views those over the tables as they are now.
    pub(crate) async fn renew_temporary_views(&self) -> Result<()> {
        let Some(own) = &self.temporary else { return Ok(()) };
        for (name, table) in own.all() {
            let Some(view) = table.downcast_ref::<ViewTable>() else { continue };
            let definition = view.definition().cloned();
            let plan = match (self.current(view.logical_plan().clone()).await, &definition) {
                (Ok(plan), _) => Ok(plan),
                (Err(error), None) => Err(error),
                (Err(_), Some(text)) => Box::pin(self.plan_sql(text)).await,
            };
            let plan = match plan {
                Ok(LogicalPlan::Ddl(DdlStatement::CreateView(view))) => (*view.input).clone(),
                Ok(plan) => plan,
                // What it read is gone: that is told where the view is read, and hurts no other statement.
                Err(error) => {
                    let message = format!("the temporary view `{name}` cannot be read: {}", error.diagnostic.message);
                    own.put_broken(&name, mergeql_udfs::Error::new(error.code(), message).with_help("DROP it, and make it anew"));
                    continue;
                }
            };
            own.register_table(name, Arc::new(ViewTable::new(plan, definition)))?;
        }
        Ok(())
    }

    /// Makes a temporary view.
    pub(crate) fn make_temporary_view(&self, create: CreateView) -> Result<DataFrame> {
        let (own, name) = (self.own_names()?, create.name.table().to_owned());
        self.check_free(&name, create.or_replace)?;
        own.register_table(name, Arc::new(ViewTable::new((*create.input).clone(), create.definition)))?;
        self.count("views", 1)
    }

    /// Replaces the rows of a temporary table; gives back how many there are.
    pub(crate) async fn fill_temporary(&self, name: &str, rows: SendableRecordBatchStream) -> Result<u64> {
        let own = self.own_names()?;
        if own.table(name).await?.is_some_and(|table| table.downcast_ref::<ViewTable>().is_some()) {
            return Err(MergeError::new(Code::InvalidArgument, format!("`{name}` is a view: it has no rows of its own")));
        }
        let schema = rows.schema();
        let batches = collect(rows).await?;
        let count = batches.iter().map(|b| b.num_rows() as u64).sum();
        own.register_table(name.to_owned(), Arc::new(MemTable::try_new(schema, vec![batches])?))?;
        Ok(count)
    }

    /// Drops a temporary table or view.
    pub(crate) fn drop_temporary(&self, name: &str) -> Result<DataFrame> {
        self.own_names()?.deregister_table(name)?;
        self.count("tables", 1)
    }

    /// Drops all temporary tables and views.
    pub(crate) fn drop_all_temporary(&self) {
        let Some(own) = &self.temporary else { return };
        own.all().iter().for_each(|(name, _)| drop(own.deregister_table(name)));
    }

    /// # Errors
    /// `unsupported` if what a view reads is a temporary table, which others do not have.
    pub(crate) fn check_reads_no_temporary(&self, view: &LogicalPlan) -> Result<()> {
        let mut found = None;
        view.apply(|node| {
            if let LogicalPlan::TableScan(scan) = node
                && self.is_default(&scan.table_name)
                && self.is_temporary(scan.table_name.table())
            {
                found = Some(scan.table_name.table().to_owned());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        match found {
            None => Ok(()),
            Some(name) => {
                Err(MergeError::new(Code::Unsupported, format!("the table `{name}` is temporary: others could not read the view"))
                    .help(format!("CREATE TEMPORARY VIEW, or make a table of {} that stays", quote(&name))))
            }
        }
    }
}
