//! DELETE, UPDATE and TRUNCATE of tables: the rows that are left are written anew, in one step.

use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{Column, JoinType, NullEquality};
use datafusion::logical_expr::logical_plan::TableScanBuilder;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{
    BinaryExpr, DmlStatement, Expr, LogicalPlan, LogicalPlanBuilder, Operator, Projection, WriteOp, lit, when,
};
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
            WriteOp::Delete => left(&input)?,
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
        let old = self.session.table_provider(dml.table_name.clone()).await?.schema();
        if left.schema().fields().len() != old.fields().len() {
            let message = format!("this {} of `{}` cannot be run as it was prepared", dml.op.name().to_uppercase(), dml.table_name);
            return Err(MergeError::new(Code::Unsupported, message).help("send the statement as it is, without PREPARE"));
        }
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

/// All of a table that a plan reads some columns or rows of, and the condition under which it reads them: a plan that was prepared reads what
/// it needs.
fn whole(plan: &LogicalPlan) -> Result<Option<(LogicalPlan, Option<Expr>)>> {
    Ok(match plan {
        LogicalPlan::TableScan(scan) => {
            let all = TableScanBuilder::new(scan.table_name.clone(), scan.source.clone()).build()?;
            let filters = scan.filters.clone();
            scan.fetch.is_none().then(|| (LogicalPlan::TableScan(all), conjunction(filters)))
        }
        LogicalPlan::SubqueryAlias(alias) => match whole(&alias.input)? {
            // What the table is called decides what its columns are called in conditions.
            Some((all, None)) => Some((LogicalPlanBuilder::from(all).alias(alias.alias.clone())?.build()?, None)),
            _ => None,
        },
        _ => None,
    })
}

/// The table that a DELETE or UPDATE is about, and its condition.
fn condition(input: &LogicalPlan) -> Result<Option<(LogicalPlan, Option<Expr>)>> {
    let (rows, own) = match input {
        LogicalPlan::Filter(filter) => (&*filter.input, Some(filter.predicate.clone())),
        rows => (rows, None),
    };
    Ok(whole(rows)?.map(|(rows, of_scan)| (rows, conjunction(own.into_iter().chain(of_scan)))))
}

/// Whether nothing but true and what is not true comes of the subqueries in a condition: of `NOT IN` it matters whether it is NULL, and in
/// a condition about a condition a subquery is never NULL to DataFusion.
fn is_two_valued(condition: &Expr) -> Result<bool> {
    let asks = |e: &Expr| Ok(matches!(e, Expr::InSubquery(_) | Expr::SetComparison(_)));
    Ok(match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And | Operator::Or, right }) => {
            is_two_valued(left)? && is_two_valued(right)?
        }
        Expr::InSubquery(e) => !e.negated && !e.expr.exists(asks)?,
        e => !e.exists(asks)?,
    })
}

/// The rows of a table whose condition is not true.
fn others(rows: &LogicalPlan, condition: Expr) -> Result<LogicalPlan> {
    let all = LogicalPlanBuilder::from(rows.clone());
    if is_two_valued(&condition)? {
        return Ok(all.filter(Expr::IsNotTrue(Box::new(condition)))?.build()?);
    }
    // Those that are none of the rows whose condition is true; equal rows have equal conditions.
    const MATCHED: &str = "__mergeql_matched";
    let matched = all.clone().filter(condition)?.alias(MATCHED)?.build()?;
    let columns = rows.schema().columns();
    let theirs = columns.iter().map(|c| Column::new(Some(MATCHED), c.name.clone())).collect::<Vec<_>>();
    let left = all.join_detailed(matched, JoinType::LeftAnti, (columns, theirs), None, NullEquality::NullEqualsNull)?;
    Ok(left.build()?)
}

/// The rows that a DELETE leaves, which are those whose condition is not true.
fn left(input: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    Ok(match condition(input)? {
        Some((rows, condition)) => Some(others(&rows, condition.unwrap_or_else(|| lit(true)))?),
        None => None,
    })
}

/// All rows, with what an UPDATE makes of those whose condition is true.
fn changed(input: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    let LogicalPlan::Projection(projection) = input else { return Ok(None) };
    let Some((rows, condition)) = condition(&projection.input)? else { return Ok(None) };
    let condition = condition.unwrap_or_else(|| lit(true));
    // A subquery can stand in a filter alone.
    let subquery =
        |e: &Expr| Ok(matches!(e, Expr::InSubquery(_) | Expr::Exists(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_)));
    let asks = condition.exists(subquery)?;
    let (mut olds, mut news) = (Vec::new(), Vec::new());
    for (qualifier, field) in rows.schema().iter() {
        let old = Expr::Column((qualifier, field).into());
        // By name: what was prepared may have columns in another order.
        let Some(new) = projection.expr.iter().find(|e| e.qualified_name().1 == *field.name()) else { return Ok(None) };
        let new = new.clone().unalias();
        let new = match new == old {
            _ if asks => new.alias(field.name()),
            true => old.clone(),
            false => when(condition.clone(), new).otherwise(old.clone())?.alias(field.name()),
        };
        news.push(new);
        olds.push(old.alias(field.name()));
    }
    if asks {
        let changed = LogicalPlanBuilder::from(rows.clone()).filter(condition.clone())?.project(news)?;
        let others = LogicalPlanBuilder::from(others(&rows, condition)?).project(olds)?.build()?;
        return Ok(Some(changed.union(others)?.build()?));
    }
    Ok(Some(LogicalPlan::Projection(Projection::try_new(news, Arc::new(rows))?)))
}
