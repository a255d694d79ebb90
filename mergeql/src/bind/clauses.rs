//! The clauses about the result: WHERE, ORDER BY, RETURNING.

use super::find_column;
use crate::ast::{Merge, Name, Returning};
use crate::diagnostic::{Diagnostic, Result};
use crate::plan::*;
use mergeql_udfs::{Code, Type};
use sqlparser::ast::{Expr, Ident, Query, VisitMut, VisitorMut};
use std::ops::ControlFlow;

pub(super) fn bind_result_clauses(merge: &Merge, plan: &mut Plan) -> Result<()> {
    let names: Vec<String> = plan.result_columns().map(|(n, _)| n.to_owned()).collect();
    // WHERE is about merged rows; ORDER BY about the rows that come back.
    let returned: Vec<String> = match plan.returning {
        Returning::Rows => names.clone(),
        Returning::State => plan.key_columns().iter().map(|c| c.name.clone()).collect(),
        Returning::Conflicts | Returning::Provenance => {
            let key = plan.key_columns().iter().map(|c| c.name.clone());
            key.chain(["column_name", "value", "strategy"].map(str::to_owned)).collect()
        }
    };
    let own = ["column_name", "value", "strategy", "winner_sources", "losers"];
    if plan.returning == Returning::State && merge.filter.is_some() {
        return Err(Diagnostic::new(Code::Unsupported, "RETURNING STATE gives states, which WHERE cannot look into")
            .help("filter inside a source: MERGE (SELECT ... WHERE ...) AS s ON ..."));
    }
    if plan.returns_cells()
        && let Some(key) = plan.key_columns().iter().find(|c| own.contains(&c.name.as_str()))
    {
        let message = format!("the result of RETURNING has a column `{}` of its own", key.name);
        return Err(Diagnostic::new(Code::DuplicateColumn, message)
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
        crate::kinds::check(filter, &typed, true)?;
    }
    for order in &merge.order {
        let expr = match &order.expr {
            Expr::Value(v) if matches!(v.value, sqlparser::ast::Value::Number(..)) => {
                return Err(Diagnostic::at(Code::InvalidArgument, order.span, "ORDER BY takes columns, not their numbers"));
            }
            expr => bind(expr, &returned)?,
        };
        crate::kinds::check(&expr, &typed, false)?;
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
