//! Plans over the tables as they are now: one that was prepared, or that waited for its turn, was made over those of then.

use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use crate::prepare::Prepared;
use crate::tables::first_words;
use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::logical_expr::{DmlStatement, LogicalPlan, Statement, TableSource, UNNAMED_TABLE};
use mergeql_udfs::Code;
use std::collections::HashMap;
use std::sync::Arc;

/// The tables that have other rows now than a plan reads, by name.
type Changed = HashMap<TableReference, Arc<dyn TableProvider>>;

/// The tables without names in a plan: the files of a table that keeps states, or of several that are one.
fn unnamed(plan: &LogicalPlan) -> Result<Vec<Arc<dyn TableProvider>>> {
    let mut found = Vec::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && scan.table_name.table() == UNNAMED_TABLE
        {
            found.extend(source_as_provider(&scan.source));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

/// Which sources a plan reads later than it is made: what they hold by then is not known now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lasting {
    /// None: it runs at once.
    No,
    /// Files: where tables have changed, a plan is made anew.
    Files,
    /// All, as in a view.
    All,
}

/// Whether a statement makes something that is run later.
pub(crate) fn lasts(text: &str) -> bool {
    let words = first_words(text);
    match words.first().map(String::as_str) {
        Some("PREPARE") => true,
        Some("CREATE") => words.iter().any(|word| word == "VIEW"),
        _ => false,
    }
}

impl MergeContext {
    /// The same session for plans that run later.
    pub(crate) fn lasting(&self, lasting: Lasting) -> MergeContext {
        MergeContext { lasting, ..self.clone() }
    }

    /// Whether a plan reads files of tables that have others by now.
    async fn is_outdated(&self, plan: &LogicalPlan) -> Result<bool> {
        let read = unnamed(plan)?;
        if read.is_empty() {
            return Ok(false);
        }
        let mut now = Vec::new();
        for name in self.memory(|m| m.manifest.tables.keys().chain(m.resolutions.keys()).cloned().collect::<Vec<_>>()) {
            for name in [self.storage_name(&name), name] {
                let Ok(table) = self.session.table_provider(TableReference::bare(name)).await else { continue };
                now.extend(table.get_logical_plan().map(|plan| unnamed(&plan)).transpose()?.unwrap_or_default());
            }
        }
        let is_now = |table: &Arc<dyn TableProvider>| now.iter().any(|other| Arc::ptr_eq(table, other));
        Ok(!read.iter().all(is_now))
    }

    /// The tables of a plan that were replaced since it was made.
    ///
    /// # Errors
    /// `unknown_source` if one is gone.
    async fn replaced(&self, plan: &LogicalPlan) -> Result<Changed> {
        let mut read: Vec<(TableReference, Arc<dyn TableSource>)> = Vec::new();
        plan.apply_with_subqueries(|node| {
            match node {
                LogicalPlan::TableScan(scan) => read.push((scan.table_name.clone(), scan.source.clone())),
                LogicalPlan::Dml(dml) => read.push((dml.table_name.clone(), dml.target.clone())),
                _ => {}
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        let mut changed = Changed::new();
        for (name, source) in read {
            // What stands for a file, or for one statement, is no table that others change.
            if self.is_default(&name) && !self.has_table(name.table()) {
                let plain =
                    name.table().chars().all(|c| c.is_alphanumeric() || c == '_') && !name.table().starts_with("__mergeql_");
                if plain && !self.session.table_exist(name.clone())? {
                    let message = format!("the table `{}` is not there any more", name.table());
                    return Err(MergeError::new(Code::UnknownSource, message));
                }
                continue;
            }
            let Ok(now) = self.session.table_provider(name.clone()).await else { continue };
            if source_as_provider(&source).is_ok_and(|then| !Arc::ptr_eq(&then, &now)) {
                changed.insert(name, now);
            }
        }
        Ok(changed)
    }

    /// The plan over the tables as they are now.
    ///
    /// # Errors
    /// `unsupported` if one of them has other columns by now.
    pub(crate) async fn current(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        if self.is_outdated(&plan).await? {
            let message = "tables that the statement reads have other files than when it was prepared";
            return Err(MergeError::new(Code::Unsupported, message).help("prepare or send the statement again"));
        }
        let changed = self.replaced(&plan).await?;
        for (name, table) in &changed {
            let mut same = true;
            plan.apply_with_subqueries(|node| {
                let then = match node {
                    LogicalPlan::TableScan(scan) if scan.table_name == *name => scan.source.schema(),
                    LogicalPlan::Dml(dml) if dml.table_name == *name => dml.target.schema(),
                    _ => return Ok(TreeNodeRecursion::Continue),
                };
                same &= then.fields() == table.schema().fields();
                Ok(TreeNodeRecursion::Continue)
            })?;
            if !same {
                let message = format!("`{name}` has other columns than when the statement was prepared");
                return Err(MergeError::new(Code::Unsupported, message).help("prepare or send the statement again"));
            }
        }
        if changed.is_empty() {
            return Ok(plan);
        }
        let put = |node| {
            Ok(match node {
                LogicalPlan::TableScan(mut scan) if changed.contains_key(&scan.table_name) => {
                    scan.source = provider_as_source(changed[&scan.table_name].clone());
                    Transformed::yes(LogicalPlan::TableScan(scan))
                }
                LogicalPlan::Dml(dml) if changed.contains_key(&dml.table_name) => {
                    let target = provider_as_source(changed[&dml.table_name].clone());
                    Transformed::yes(LogicalPlan::Dml(DmlStatement { target, ..dml }))
                }
                other => Transformed::no(other),
            })
        };
        Ok(plan.transform_up_with_subqueries(put)?.data)
    }

    /// The plan of a statement that was prepared, made anew if tables were replaced since, or there are views, which may have been.
    ///
    /// # Errors
    /// As [`MergeContext::prepare`].
    pub(crate) async fn renewed(&self, text: &str, plan: &LogicalPlan) -> Result<LogicalPlan> {
        self.refresh().await?;
        let same = self.memory(|m| m.views.is_empty()) && self.replaced(plan).await?.is_empty();
        if same && !self.is_outdated(plan).await? {
            return Ok(plan.clone());
        }
        Ok(match self.prepare(text).await? {
            Prepared::Query(frame) => frame.into_unoptimized_plan(),
            Prepared::Command { plan: Some(plan), .. } => plan,
            Prepared::Command { plan: None, .. } => plan.clone(),
        })
    }

    /// The plan of what EXECUTE names, with its values; any other plan as it is.
    ///
    /// # Errors
    /// If nothing was prepared under the name, or with other parameters.
    pub(crate) async fn expanded(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        if !matches!(&plan, LogicalPlan::Statement(Statement::Execute(_))) {
            return Ok(plan);
        }
        let prepared = self.session.execute_logical_plan(plan).await?.into_unoptimized_plan();
        self.current(prepared).await
    }
}
