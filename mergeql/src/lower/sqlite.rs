//! SQLite's SQL. Values have their class, not their column: whole numbers, reals, text and blobs; lists and rows are JSON text.

use super::{Dialect, divided, list, quote, text};
use crate::exact::make_exact;
use crate::plan::{Cell, Fold};
use mergeql_udfs::Type;
use sqlparser::ast::{Expr, Ident, visit_expressions_mut};
use std::ops::ControlFlow;

/// SQLite 3.38 and later.
#[derive(Debug, Clone, Copy)]
pub struct Sqlite;

/// Arguments of a function of SQLite.
const MOST_ARGUMENTS: usize = 100;

/// The name of a type as a column of SQLite is declared with it.
pub fn sqlite_type_name(ty: &Type) -> &'static str {
    match ty {
        Type::Boolean => "BOOLEAN",
        Type::Int { .. } => "INTEGER",
        Type::Float32 | Type::Float64 => "REAL",
        Type::Bytes => "BLOB",
        Type::Null => "",
        _ => "TEXT",
    }
}

impl Dialect for Sqlite {
    fn cast(&self, expr: &str, from: &Type, to: &Type) -> Option<String> {
        match (from, to) {
            (Type::Int { .. }, Type::Float64) => Some(format!("mergeql_exact_double({expr})")),
            _ => None,
        }
    }

    fn null(&self, _: &Type) -> String {
        "NULL".to_owned()
    }

    fn record(&self, fields: &[(&str, String)]) -> String {
        let record = |some: &[(&str, String)]| {
            format!("mergeql_record({})", list(some.iter().map(|(name, expr)| format!("{}, {expr}", text(name)))))
        };
        if fields.len() * 2 <= MOST_ARGUMENTS {
            return record(fields);
        }
        // Records of records are one.
        format!("mergeql_record({})", list(fields.chunks(MOST_ARGUMENTS / 2).map(record)))
    }

    /// SQLite holds no NaN, and one zero is equal to the other.
    fn key(&self, _: &str, _: &Type) -> Option<String> {
        None
    }

    fn order_key(&self, expr: &str, ty: Option<&Type>) -> Option<String> {
        match ty {
            Some(Type::List(_) | Type::Struct(_) | Type::Map(..)) => Some(format!("mergeql_json_key({expr})")),
            _ => None,
        }
    }

    fn no_limit(&self) -> Option<&'static str> {
        Some("-1")
    }

    fn expression(&self, expr: &Expr) -> String {
        let mut expr = expr.clone();
        make_exact(&mut expr);
        // SQLite's own LIKE takes `a` for `A`; its GLOB does not.
        let _ = visit_expressions_mut(&mut expr, |e| {
            if let Expr::Like { negated, any: false, expr, pattern, .. } = e {
                let not = if *negated { "NOT " } else { "" };
                let [expr, pattern] = [expr, pattern].map(|e| divided(e, "mergeql_divide"));
                // An identifier without quotes is printed as it is.
                *e = Expr::Identifier(Ident::new(format!("({expr} {not}GLOB mergeql_glob({pattern}))")));
            }
            ControlFlow::<()>::Continue(())
        });
        divided(&expr, "mergeql_divide")
    }

    fn resolved(&self, value: String, ty: &Type) -> String {
        match ty {
            Type::Int { .. } | Type::Float64 | Type::Text | Type::Bytes => {
                format!("mergeql_checked({value}, {})", text(sqlite_type_name(ty)))
            }
            _ => value,
        }
    }

    fn most_arguments(&self) -> usize {
        MOST_ARGUMENTS
    }

    fn unnested(&self, keys: &[String], calls: &[String], merged: &str) -> String {
        let keys = list(keys.iter().map(|k| format!("m.{k} AS {k}")));
        let lists = list(calls.iter().map(|call| format!("json({call})")));
        format!(
            "SELECT {keys}, j.value AS __mergeql_cell FROM (SELECT m.*, json_array({lists}) AS __mergeql_lists FROM {merged}) AS m, json_each(m.__mergeql_lists) AS l, json_each(l.value) AS j"
        )
    }

    fn cell_field(&self, cell: &str, field: &str) -> String {
        format!("json_extract({cell}, '$.{field}')")
    }

    fn value_like(&self, cell: &Cell, state: &str, _: &str) -> String {
        match &cell.fold {
            Some(fold) => self.folded(fold, state, &cell.ty),
            None => format!("mergeql_value_like({state}, NULL)"),
        }
    }

    fn folded(&self, fold: &Fold, values: &str, _: &Type) -> String {
        let states = values.replacen("crdt_gset(", "crdt_gset_state(", 1).replacen("crdt_gset_with(", "crdt_gset_state_with(", 1);
        let step = super::step(fold, self);
        format!("mergeql_fold({states}, {}, {}, {})", text(&quote(&fold.left)), text(&quote(&fold.right)), text(&step))
    }
}
