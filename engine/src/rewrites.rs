//! DELETE, UPDATE and TRUNCATE of tables: the rows that are left are written anew, in one step.

use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use datafusion::common::tree_node::TreeNode;
use datafusion::logical_expr::{DmlStatement, Expr, LogicalPlan, LogicalPlanBuilder, Projection, WriteOp, lit, when};
use datafusion::prelude::DataFrame;
use mergeql_udfs::Code;
use std::sync::Arc;

impl MergeContext {
    /// Writes a table anew without the rows that a statement deletes, or with those that it changes; the answer is their number.
    pub(crate) async fn rewrite(&self, dml: &DmlStatement) -> Result<DataFrame> {
        // The plan of a TRUNCATE knows no columns.
        let input = match &dml.op {
            WriteOp::Truncate => self.session.table(dml.table_name.clone()).await?.into_unoptimized_plan(),
            _ => (*dml.input).clone(),
        };
        let left = match &dml.op {
            WriteOp::Delete => left(&input),
            WriteOp::Update => changed(&input)?,
            WriteOp::Truncate => Some(LogicalPlanBuilder::from(input.clone()).filter(lit(false))?.build()?),
            _ => None,
        };
        let Some(left) = left else {
            let message =
                format!("this {} of `{}` is more than a condition on its own rows", dml.op.name().to_uppercase(), dml.table_name);
            return Err(MergeError::new(Code::Unsupported, message)
                .help("name the rows by WHERE, with IN (SELECT ...) for those of another table"));
        };
        let frame = |plan: LogicalPlan| DataFrame::new(self.session.state(), plan);
        let count = frame(input).count().await.map_err(MergeError::running)?;
        self.replace_table(dml.table_name.table(), frame(left), None).await?;
        self.count("count", count as u64)
    }

    /// # Errors
    /// `needs_state` if a table keeps states: a row that is deleted or changed there by hand would come back with the next merge.
    pub(crate) fn check_keeps_no_states(&self, dml: &DmlStatement) -> Result<()> {
        let name = dml.table_name.table();
        if matches!(dml.op, WriteOp::Insert(_)) || !self.memory(|m| m.resolutions.contains_key(name)) {
            return Ok(());
        }
        let message =
            format!("`{name}` keeps states: what {} does there would be undone by the next merge", dml.op.name().to_uppercase());
        Err(MergeError::new(Code::NeedsState, message)
            .help("merge a newer row INTO it; with DELETE BY a row can say that it is deleted"))
    }
}

/// The rows that a DELETE leaves, which are those whose condition is not true.
fn left(input: &LogicalPlan) -> Option<LogicalPlan> {
    match input {
        LogicalPlan::TableScan(_) => LogicalPlanBuilder::from(input.clone()).filter(lit(false)),
        LogicalPlan::Filter(filter) if matches!(&*filter.input, LogicalPlan::TableScan(_)) => {
            let kept = Expr::IsNotTrue(Box::new(filter.predicate.clone()));
            LogicalPlanBuilder::from((*filter.input).clone()).filter(kept)
        }
        _ => return None,
    }
    .and_then(LogicalPlanBuilder::build)
    .ok()
}

/// All rows, with what an UPDATE makes of those whose condition is true.
fn changed(input: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    let LogicalPlan::Projection(projection) = input else { return Ok(None) };
    let (condition, rows) = match &*projection.input {
        LogicalPlan::Filter(filter) => (filter.predicate.clone(), &filter.input),
        _ => (lit(true), &projection.input),
    };
    let scan = match &**rows {
        LogicalPlan::SubqueryAlias(alias) => &*alias.input,
        rows => rows,
    };
    if !matches!(scan, LogicalPlan::TableScan(_)) {
        return Ok(None);
    }
    // A subquery can stand in a filter alone.
    let subquery =
        |e: &Expr| Ok(matches!(e, Expr::InSubquery(_) | Expr::Exists(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_)));
    if condition.exists(subquery)? {
        let others = rows.schema().iter().map(|(qualifier, field)| Expr::Column((qualifier, field).into()).alias(field.name()));
        let others = LogicalPlanBuilder::from((**rows).clone())
            .filter(Expr::IsNotTrue(Box::new(condition.clone())))?
            .project(others.collect::<Vec<_>>())?
            .build()?;
        return Ok(Some(LogicalPlanBuilder::from(input.clone()).union(others)?.build()?));
    }
    let mut columns = Vec::with_capacity(projection.expr.len());
    for (expr, (qualifier, field)) in projection.expr.iter().zip(rows.schema().iter()) {
        let old = Expr::Column((qualifier, field).into());
        let new = expr.clone().unalias();
        columns.push(match new == old {
            true => old,
            false => when(condition.clone(), new).otherwise(old)?.alias(field.name()),
        });
    }
    Ok(Some(LogicalPlan::Projection(Projection::try_new(columns, Arc::clone(rows))?)))
}
