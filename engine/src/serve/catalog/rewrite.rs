//! What clients ask of Postgres' catalogues, in terms that the engine has: the library plans most of it, and the rest is rewritten here.

use super::TABLES;
use datafusion::sql::sqlparser::ast::{self as sql, Expr, SelectItem, SetExpr, VisitMut, VisitorMut};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use std::ops::ControlFlow;

/// The statement with what the engine lacks put into other words.
pub(in crate::serve) fn rewritten(mut statement: sql::Statement) -> sql::Statement {
    let _ = VisitMut::visit(&mut statement, &mut Rewrite);
    statement
}

struct Rewrite;

/// Catalogues that are read from others: in the library's, views are tables.
const READ: [(&str, &str); 3] = [
    (
        "information_schema.columns",
        "(SELECT table_catalog, table_schema, table_name, column_name, ordinal_position::int AS ordinal_position, column_default, \
          is_nullable, mergeql_data_type(data_type) AS data_type, character_maximum_length::int AS character_maximum_length, \
          character_octet_length::int AS character_octet_length, numeric_precision::int AS numeric_precision, \
          numeric_precision_radix::int AS numeric_precision_radix, numeric_scale::int AS numeric_scale, \
          datetime_precision::int AS datetime_precision, interval_type, table_catalog AS udt_catalog, 'pg_catalog' AS udt_schema, \
          mergeql_udt_name(data_type) AS udt_name, 'NO' AS is_identity, 'NEVER' AS is_generated, 'YES' AS is_updatable \
          FROM information_schema.columns AS mergeql_columns)",
    ),
    (
        "pg_tables",
        "(SELECT table_schema AS schemaname, table_name AS tablename, 'postgres' AS tableowner, NULL::text AS tablespace, \
          false AS hasindexes, false AS hasrules, false AS hastriggers, false AS rowsecurity \
          FROM information_schema.tables WHERE table_type = 'BASE TABLE')",
    ),
    (
        "pg_views",
        "(SELECT table_schema AS schemaname, table_name AS viewname, 'postgres' AS viewowner, NULL::text AS definition \
          FROM information_schema.tables WHERE table_type = 'VIEW')",
    ),
];

fn read(relation: &sql::TableFactor) -> Option<sql::TableFactor> {
    let sql::TableFactor::Table { name, alias, .. } = relation else { return None };
    let parts: Vec<String> = name.0.iter().filter_map(|part| Some(part.as_ident()?.value.to_ascii_lowercase())).collect();
    let name = parts[parts.len().saturating_sub(2)..].join(".");
    let name = name.strip_prefix("pg_catalog.").unwrap_or(&name);
    let (name, query) = READ.iter().find(|(known, _)| *known == name)?;
    let alias = alias.as_ref().map_or_else(|| name.rsplit('.').next().unwrap_or(name).to_owned(), ToString::to_string);
    if alias.ends_with("mergeql_columns") {
        return None;
    }
    let text = format!("SELECT 1 FROM {query} AS {}", alias.strip_prefix("AS ").unwrap_or(&alias));
    let query = Parser::new(&PostgreSqlDialect {}).try_with_sql(&text).and_then(|mut parser| parser.parse_query()).ok()?;
    let SetExpr::Select(select) = *query.body else { return None };
    select.from.into_iter().next().map(|from| from.relation)
}

fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    let argument = |argument| sql::FunctionArg::Unnamed(sql::FunctionArgExpr::Expr(argument));
    Expr::Function(sql::Function {
        name: sql::ObjectName::from(vec![sql::Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: sql::FunctionArguments::None,
        args: sql::FunctionArguments::List(sql::FunctionArgumentList {
            duplicate_treatment: None,
            args: arguments.into_iter().map(argument).collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// The name that a query looks up in pg_proc: what a cast to `regproc` became.
fn procedure(query: &sql::Query) -> Option<Expr> {
    let SetExpr::Select(select) = &*query.body else { return None };
    let [from] = &select.from[..] else { return None };
    let Some(Expr::BinaryOp { right, .. }) = &select.selection else { return None };
    (from.relation.to_string() == "pg_catalog.pg_proc").then(|| (**right).clone())
}

/// Postgres takes a scalar subquery at its word that it gives one row at most; here that has to be seen.
fn single(query: &mut sql::Query) {
    let SetExpr::Select(select) = &mut *query.body else { return };
    let plain = select.distinct.is_none() && select.having.is_none() && query.order_by.is_none() && query.limit_clause.is_none();
    let grouped = !matches!(&select.group_by, sql::GroupByExpr::Expressions(by, _) if by.is_empty());
    let [SelectItem::UnnamedExpr(value) | SelectItem::ExprWithAlias { expr: value, .. }] = &mut select.projection[..] else {
        return;
    };
    if plain && !grouped && !folds(value) && !select.from.is_empty() {
        *value = call("max", vec![value.clone()]);
    }
}

/// Catalogues that have nothing of a user's table: there are no keys, indexes, sequences, defaults and collations that clients could be told of.
const EMPTY: [&str; 7] = ["pg_index", "pg_constraint", "pg_sequence", "pg_attrdef", "pg_trigger", "pg_policy", "pg_collation"];

fn relation_is_empty(relation: &sql::TableFactor) -> bool {
    match relation {
        sql::TableFactor::Table { name, .. } => {
            let name = name.to_string().to_ascii_lowercase();
            EMPTY.contains(&name.strip_prefix("pg_catalog.").unwrap_or(&name))
        }
        sql::TableFactor::Derived { subquery, .. } => no_rows(subquery).is_some(),
        sql::TableFactor::NestedJoin { table_with_joins, .. } => source_is_empty(table_with_joins),
        _ => false,
    }
}

fn source_is_empty(source: &sql::TableWithJoins) -> bool {
    use sql::JoinOperator::{CrossJoin, FullOuter, Inner, Join, Right, RightOuter};
    let inner =
        |join: &sql::Join| matches!(join.join_operator, Join(_) | Inner(_) | CrossJoin(_)) && relation_is_empty(&join.relation);
    let outer = |join: &sql::Join| matches!(join.join_operator, FullOuter(_) | Right(_) | RightOuter(_));
    !source.joins.iter().any(outer) && (relation_is_empty(&source.relation) || source.joins.iter().any(inner))
}

/// The columns of a query that has no rows, because it reads a catalogue that has none.
fn no_rows(query: &sql::Query) -> Option<Vec<String>> {
    let SetExpr::Select(select) = &*query.body else { return None };
    let grouped = !matches!(&select.group_by, sql::GroupByExpr::Expressions(by, _) if by.is_empty());
    if !select.from.iter().any(source_is_empty) {
        return None;
    }
    let name = |item: &SelectItem| match item {
        SelectItem::ExprWithAlias { alias, expr } if grouped || !folds(expr) => Some(alias.value.clone()),
        SelectItem::UnnamedExpr(expr) if grouped || !folds(expr) => Some(match expr {
            Expr::Identifier(name) => name.value.clone(),
            Expr::CompoundIdentifier(parts) => parts.last()?.value.clone(),
            other => other.to_string(),
        }),
        _ => None,
    };
    select.projection.iter().map(name).collect()
}

/// Whether an expression is an aggregate, which has a row over none.
fn folds(expr: &Expr) -> bool {
    let aggregate = ["count", "max", "min", "sum", "avg", "array_agg", "string_agg", "bool_or", "bool_and"];
    matches!(expr, Expr::Function(f) if aggregate.iter().any(|name| f.name.to_string().eq_ignore_ascii_case(name)))
}

fn without_rows(columns: &[String]) -> Option<sql::Query> {
    let column = |(at, name): (usize, &String)| {
        let again = columns[..at].contains(name).then(|| format!("{name}_{at}"));
        format!("NULL::text AS \"{}\"", again.as_ref().unwrap_or(name).replace('"', "\"\""))
    };
    let columns: Vec<String> = columns.iter().enumerate().map(column).collect();
    let text = format!("SELECT {} WHERE false", columns.join(", "));
    Parser::new(&PostgreSqlDialect {}).try_with_sql(&text).and_then(|mut parser| parser.parse_query()).ok().map(|query| *query)
}

/// Whether this is a column that Postgres has and the library's catalogues lack: nothing is in it here.
fn is_lacking(expr: &Expr) -> bool {
    matches!(expr, Expr::CompoundIdentifier(parts) if parts.len() > 1 && parts.last().is_some_and(|name| name.value == "reloptions"))
}

/// Names for what has the same name twice, and for what will be NULL.
fn named(body: &mut SetExpr) {
    match body {
        SetExpr::SetOperation { left, right, .. } => [left, right].into_iter().for_each(|side| named(side)),
        SetExpr::Select(select) => {
            let mut seen: Vec<String> = Vec::new();
            for (at, item) in select.projection.iter_mut().enumerate() {
                let SelectItem::UnnamedExpr(expr) = item else { continue };
                if is_lacking(expr) {
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: sql::Ident::new("reloptions") };
                    continue;
                }
                let text = expr.to_string();
                if seen.contains(&text) {
                    let alias = sql::Ident::with_quote('"', format!("?column?{at}"));
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
                }
                seen.push(text);
            }
        }
        _ => {}
    }
}

impl VisitorMut for Rewrite {
    type Break = ();

    fn pre_visit_table_factor(&mut self, relation: &mut sql::TableFactor) -> ControlFlow<()> {
        if let Some(read) = read(relation) {
            *relation = read;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, name: &mut sql::ObjectName) -> ControlFlow<()> {
        if let [sql::ObjectNamePart::Identifier(only)] = &name.0[..]
            && TABLES.contains(&only.value.as_str())
        {
            *name = sql::ObjectName::from(vec![sql::Ident::new("pg_catalog"), only.clone()]);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &mut sql::Query) -> ControlFlow<()> {
        if let Some(empty) = no_rows(query).and_then(|columns| without_rows(&columns)) {
            *query = empty;
        }
        named(&mut query.body);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            // Functions of types are names here, no numbers.
            Expr::BinaryOp { left, right, .. } => {
                let of_type = left.to_string().rsplit('.').next().is_some_and(|name| name.starts_with("typ"));
                if let (true, Expr::Subquery(query)) = (of_type, &**right)
                    && let Some(name) = procedure(query)
                {
                    **right = name;
                }
            }
            lacking if is_lacking(lacking) => *lacking = Expr::Value(sql::Value::Null.with_empty_span()),
            // An escape character of one's own is the usual one.
            Expr::Like { pattern, escape_char: escape @ Some(_), .. }
            | Expr::ILike { pattern, escape_char: escape @ Some(_), .. } => {
                let own = escape.take().map(|escape| escape.to_string()).unwrap_or_default();
                let usual = format!("replace({pattern}, {own}, '\\')");
                let parsed = Parser::new(&PostgreSqlDialect {}).try_with_sql(&usual).and_then(|mut parser| parser.parse_expr());
                **pattern = parsed.unwrap_or_else(|_| (**pattern).clone());
            }
            Expr::Subquery(query) if no_rows(query).is_some() => *expr = Expr::Value(sql::Value::Null.with_empty_span()),
            // A field of what a function gives.
            Expr::CompoundFieldAccess { root, access_chain } => {
                if let [sql::AccessExpr::Dot(Expr::Identifier(field))] = &access_chain[..] {
                    let field = Expr::Value(sql::Value::SingleQuotedString(field.value.clone()).with_empty_span());
                    *expr = call("get_field", vec![(**root).clone(), field]);
                }
            }
            Expr::Function(f) if ["to_regclass", "to_regtype"].iter().any(|to| f.name.to_string().eq_ignore_ascii_case(to)) => {
                let types = f.name.to_string().eq_ignore_ascii_case("to_regtype");
                if let sql::FunctionArguments::List(list) = &f.args
                    && let [sql::FunctionArg::Unnamed(sql::FunctionArgExpr::Expr(name))] = &list.args[..]
                {
                    *expr = numbered(name.clone(), if types { ("pg_type", "typname") } else { ("pg_class", "relname") });
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Subquery(query) = expr {
            single(query);
        }
        ControlFlow::Continue(())
    }
}

/// The number of what has this name in a catalogue, or NULL.
fn numbered(name: Expr, (catalogue, column): (&str, &str)) -> Expr {
    let text = format!("(SELECT max(oid) FROM pg_catalog.{catalogue} WHERE {column} = {name})");
    let parsed = Parser::new(&PostgreSqlDialect {}).try_with_sql(&text).and_then(|mut parser| parser.parse_expr());
    parsed.unwrap_or(Expr::Value(sql::Value::Null.with_empty_span()))
}
