//! The clauses about the result: WHERE, ORDER BY, RETURNING.

use super::find_column;
use crate::ast::{Merge, Name, Returning};
use crate::diagnostic::{Diagnostic, Result};
use crate::lower::GONE as DELTA_GONE;
use crate::plan::*;
use mergeql_udfs::{Code, Type};
use sqlparser::ast::{Expr, Ident, Query, VisitMut, VisitorMut};
use std::ops::ControlFlow;

/// Forms of the result that are about tables and not about merged rows take no clauses of those.
pub(super) fn check_form(merge: &Merge, plan: &Plan) -> Result<()> {
    let form = match plan.returning {
        Returning::Delta => "RETURNING DELTA",
        Returning::Unique => "RETURNING UNIQUE",
        _ => return Ok(()),
    };
    let unique = plan.returning == Returning::Unique;
    let clauses = [
        ("STRATEGY", unique && !merge.strategies.is_empty()),
        ("VERSION BY", unique && merge.version.is_some()),
        ("WHERE", merge.filter.is_some()),
        ("ORDER BY", !merge.order.is_empty()),
        ("LIMIT", merge.limit.is_some()),
        ("OFFSET", merge.offset.is_some()),
        ("DELETE BY", merge.delete.is_some()),
    ];
    if let Some((clause, _)) = clauses.iter().find(|(_, given)| *given) {
        return Err(Diagnostic::new(Code::Unsupported, format!("{form} has no {clause}"))
            .within(merge.place(clause))
            .help("filter, order and limit in a query around it: SELECT * FROM (MERGE ...) AS d WHERE ..."));
    }
    if plan.returning == Returning::Unique {
        if plan.sources.len() != 1 {
            return Err(Diagnostic::new(Code::InvalidArgument, "RETURNING UNIQUE is about one source")
                .within(merge.place("RETURNING"))
                .help("put several into one: MERGE (SELECT ... UNION ALL SELECT ...) AS all_rows ON ..."));
        }
        if let Some((name, value)) = merge.options.iter().find(|(n, _)| n.value.eq_ignore_ascii_case("threshold"))
            && !value.to_f64().is_some_and(|t| (0.1..=1.0).contains(&t))
        {
            return Err(Diagnostic::at(Code::InvalidArgument, name.span, format!("`threshold` is from 0.1 to 1, not {value}")));
        }
        return Ok(());
    }
    if merge.sources.len() != 2 {
        return Err(Diagnostic::new(Code::InvalidArgument, "RETURNING DELTA is between two sources: what was, and what is")
            .within(merge.place("RETURNING")));
    }
    if plan.versions.columns.is_empty() {
        return Err(Diagnostic::new(Code::InvalidArgument, "a delta without versions could not be applied in any order")
            .within(merge.place("RETURNING"))
            .help("say what makes a row newer: VERSION BY updated_at"));
    }
    if let Some(column) = plan.columns.iter().find(|c| c.name == DELTA_GONE) {
        return Err(Diagnostic::new(Code::DuplicateColumn, format!("a delta has a column `{}` of its own", column.name))
            .help(format!("give the column another name: MAP {0} -> {0}_before", column.name)));
    }
    Ok(())
}

pub(super) fn bind_result_clauses(merge: &Merge, plan: &mut Plan) -> Result<()> {
    let names: Vec<String> = plan.result_columns().map(|(n, _)| n.to_owned()).collect();
    let own = ["column_name", "value", "strategy", "winner_sources", "losers"];
    // WHERE is about merged rows; ORDER BY about the rows that come back.
    let returned: Vec<String> = match plan.returning {
        Returning::Rows | Returning::Delta | Returning::Schema | Returning::Unique => names.clone(),
        Returning::State => plan.key_columns().iter().map(|c| c.name.clone()).collect(),
        Returning::Conflicts | Returning::Provenance => {
            let key = plan.key_columns().iter().map(|c| c.name.clone());
            key.chain(own.map(str::to_owned)).collect()
        }
    };
    if plan.returning == Returning::State && merge.filter.is_some() {
        return Err(Diagnostic::new(Code::Unsupported, "RETURNING STATE gives states, which WHERE cannot look into")
            .within(merge.place("WHERE"))
            .help("filter inside a source: MERGE (SELECT ... WHERE ...) AS s ON ..."));
    }
    if plan.returns_cells()
        && let Some(key) = plan.key_columns().iter().find(|c| own.contains(&c.name.as_str()))
    {
        let message = format!("the result of RETURNING has a column `{}` of its own", key.name);
        return Err(Diagnostic::new(Code::DuplicateColumn, message)
            .within(merge.place("RETURNING"))
            .help(format!("give the key another name: MAP {0} -> {0}_key", key.name)));
    }
    let bind = |expr: &Expr, names: &[String]| -> Result<Expr> {
        let mut expr = expr.clone();
        let mut visitor = Columns { names, map: &merge.map, depth: 0 };
        match expr.visit(&mut visitor) {
            ControlFlow::Break(error) => Err(error),
            ControlFlow::Continue(()) => Ok(expr),
        }
    };
    let typed: Vec<(String, Type)> = plan.result_columns().map(|(n, t)| (n.to_owned(), t.clone())).collect();
    plan.filter = merge.filter.as_ref().map(|e| bind(e, &names)).transpose()?;
    if let Some(filter) = &plan.filter {
        crate::kinds::check(filter, &typed, true).map_err(|e| e.within(merge.place("WHERE")))?;
    }
    for order in &merge.order {
        let expr = match &order.expr {
            Expr::Value(v) if matches!(v.value, sqlparser::ast::Value::Number(..)) => {
                return Err(Diagnostic::at(Code::InvalidArgument, order.span, "ORDER BY takes columns, not their numbers"));
            }
            expr => bind(expr, &returned)?,
        };
        let of_cells: Vec<(String, Type)> = match plan.returns_cells() {
            false => Vec::new(),
            true => typed.iter().filter(|(n, _)| plan.key_columns().iter().any(|c| c.name == *n)).cloned().collect(),
        };
        let known = if plan.returns_cells() { &of_cells } else { &typed };
        crate::kinds::check(&expr, known, false).map_err(|e| e.within(Some(order.span)))?;
        let column = match &expr {
            Expr::Identifier(ident) => Some(ident.value.clone()),
            _ => None,
        };
        plan.order.push(Order { expr, column, descending: order.descending, nulls_first: order.nulls_first.unwrap_or(false) });
    }
    Ok(())
}

/// Turns every name of an expression into a result column, quoted as it is spelled; subqueries are left alone.
struct Columns<'a> {
    names: &'a [String],
    map: &'a [(Name, Name)],
    depth: usize,
}

impl Columns<'_> {
    fn rename(&self, ident: &mut Ident) -> ControlFlow<Box<Diagnostic>> {
        let name = Name { value: ident.value.clone(), quoted: ident.quote_style.is_some(), span: ident.span.into() };
        match find_column(&name, self.names.iter().map(String::as_str), self.map) {
            Ok(i) => {
                ident.value = self.names[i].clone();
                ident.quote_style = Some('"');
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(error),
        }
    }
}

impl VisitorMut for Columns<'_> {
    type Break = Box<Diagnostic>;

    fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<Self::Break> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<Self::Break> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        match expr {
            _ if self.depth > 0 => ControlFlow::Continue(()),
            Expr::Identifier(ident) => self.rename(ident),
            Expr::CompoundIdentifier(parts) => match parts.first_mut() {
                Some(first) => self.rename(first),
                None => ControlFlow::Continue(()),
            },
            _ => ControlFlow::Continue(()),
        }
    }
}
