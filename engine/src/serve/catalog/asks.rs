//! What of Postgres' own a query names, as its syntax says: words in texts, comments and the names of users' columns are none of it.

use datafusion::sql::sqlparser::ast::{self as sql, Expr, ObjectName, SelectItem, Visit, VisitMut, Visitor, VisitorMut};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use mergeql_lang::make_exact;
use std::ops::ControlFlow;

/// What of Postgres' own a query names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::serve) enum Asks {
    /// Nothing: it means what it means in the engine.
    Nothing,
    /// Who and where the client is.
    Session,
    /// Catalogues, their functions or their types.
    Catalogues,
}

/// Functions and words about the session.
const SESSION: [&str; 9] = [
    "version",
    "current_schema",
    "current_database",
    "current_catalog",
    "current_user",
    "current_role",
    "session_user",
    "user",
    "current_setting",
];
/// Functions about catalogues whose names don't say so.
const FUNCTIONS: [&str; 6] =
    ["format_type", "col_description", "obj_description", "shobj_description", "current_schemas", "set_config"];

fn parts(name: &ObjectName) -> Vec<String> {
    name.0.iter().filter_map(|part| Some(part.as_ident()?.value.to_ascii_lowercase())).collect()
}

struct Seen<'a> {
    asks: Asks,
    /// Whether a user's table has this name.
    is_table: &'a dyn Fn(&str) -> bool,
}

impl Seen<'_> {
    fn note(&mut self, asks: Asks) {
        self.asks = self.asks.max(asks);
    }
}

impl Visitor for Seen<'_> {
    type Break = ();

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        let parts = parts(relation);
        if let Some((name, schemas)) = parts.split_last() {
            let named = schemas.iter().any(|schema| schema == "pg_catalog" || schema == "information_schema");
            if named || schemas.is_empty() && name.starts_with("pg_") && !(self.is_table)(name) {
                self.note(Asks::Catalogues);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(function) => {
                let parts = parts(&function.name);
                let name = parts.last().map_or("", String::as_str);
                let of_catalogue =
                    ["pg_", "to_reg", "has_"].iter().any(|start| name.starts_with(start)) || FUNCTIONS.contains(&name);
                if of_catalogue || parts.len() > 1 && parts[0] == "pg_catalog" {
                    self.note(Asks::Catalogues);
                } else if SESSION.contains(&name) {
                    self.note(Asks::Session);
                }
            }
            Expr::Identifier(name) if name.quote_style.is_none() && name.value.eq_ignore_ascii_case("current_schema") => {
                self.note(Asks::Session);
            }
            Expr::Cast { data_type, .. } => {
                let name = data_type.to_string().to_ascii_lowercase();
                if name.starts_with("reg") || name.starts_with("pg_catalog.") {
                    self.note(Asks::Catalogues);
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn parsed(text: &str) -> Option<sql::Statement> {
    let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, text).ok()?;
    statements.pop().filter(|_| statements.is_empty())
}

/// What of Postgres' own a text names.
pub(in crate::serve) fn asks(text: &str, is_table: &dyn Fn(&str) -> bool) -> Asks {
    let Some(statement) = parsed(text) else { return Asks::Nothing };
    let mut seen = Seen { asks: Asks::Nothing, is_table };
    let _ = Visit::visit(&statement, &mut seen);
    seen.asks
}

/// A query with its words about the session as functions that the engine has.
pub(in crate::serve) fn of_session(text: &str) -> Option<String> {
    let mut statement = parsed(text)?;
    let _ = VisitMut::visit(&mut statement, &mut Named);
    let _ = VisitMut::visit(&mut statement, &mut Session);
    make_exact(&mut statement);
    Some(statement.to_string())
}

fn session_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Function(function) => parts(&function.name).pop().filter(|name| SESSION.contains(&name.as_str())),
        Expr::Identifier(name) if name.quote_style.is_none() && name.value.eq_ignore_ascii_case("current_schema") => {
            Some("current_schema".to_owned())
        }
        _ => None,
    }
}

/// Gives columns of such functions their names.
struct Named;

impl VisitorMut for Named {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut sql::Select) -> ControlFlow<()> {
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) = item
                && let Some(name) = session_name(expr)
            {
                *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: sql::Ident::with_quote('"', name) };
            }
        }
        ControlFlow::Continue(())
    }
}

struct Session;

impl VisitorMut for Session {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let function = match session_name(expr).as_deref() {
            Some("current_user" | "current_role" | "user") => "session_user",
            Some("current_catalog") => "current_database()",
            Some("current_schema") => "current_schema()",
            _ => return ControlFlow::Continue(()),
        };
        // A name without quotes is printed as it is.
        *expr = Expr::Identifier(sql::Ident::new(function));
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_postgres_own_counts() {
        let of = |text: &str| asks(text, &|name| name == "pg_mine");
        for text in [
            "SELECT jpg_url, mpg_city FROM t WHERE since <= current_date",
            "SELECT (SELECT max(day) FROM o WHERE o.id = c.id) FROM c WHERE note = 'pg_class' -- version()",
            "SELECT * FROM pg_mine",
            "SELECT current_price, \"current_schema\" FROM t",
        ] {
            assert_eq!(of(text), Asks::Nothing, "{text}");
        }
        for text in ["SELECT version()", "SELECT current_user, 1", "SELECT 1 WHERE current_schema() = 'public'"] {
            assert_eq!(of(text), Asks::Session, "{text}");
        }
        for text in [
            "SELECT relname FROM pg_class",
            "SELECT 't'::regclass",
            "SELECT pg_backend_pid()",
            "SELECT * FROM information_schema.tables",
        ] {
            assert_eq!(of(text), Asks::Catalogues, "{text}");
        }
        assert_eq!(
            of_session("SELECT current_user, 'a''''b', version()").as_deref(),
            Some(r#"SELECT session_user AS "current_user", 'a''''b', version() AS "version""#)
        );
    }
}
