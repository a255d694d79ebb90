//! A bound merge as plain SQL over the aggregates of the catalogue, in a host's dialect. A MERGE is never more than what a person
//! could write by hand.

mod datafusion;
mod duckdb;
mod forms;
mod joined;
mod kept;
mod postgres;
mod sqlite;

pub use datafusion::DataFusion;
pub use duckdb::{DuckDb, DuckDbColumn, MOST_LITERALS, duckdb_columns, duckdb_type, duckdb_type_name, exact_type_name};
pub(crate) use joined::may_join;
pub use postgres::{Postgres, postgres_type_name};
pub use sqlite::{Sqlite, sqlite_type_name};

use crate::ast::Returning;
use crate::exact::{make_exact, printed};
use crate::plan::{Cell, Column, Fold, Input, Plan, Reading, Why};
use mergeql_udfs::Order;
use mergeql_udfs::catalog::ArgKind;
use mergeql_udfs::slot::Shape;
use mergeql_udfs::{Type, Value};
use sqlparser::ast::{BinaryOperator, Expr, Ident, visit_expressions_mut};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::Parser;
use std::fmt::Write;
use std::ops::ControlFlow;

/// What differs between hosts.
pub trait Dialect: Sync {
    /// An expression cast to a type; `None` where the host widens by itself.
    fn cast(&self, expr: &str, from: &Type, to: &Type) -> Option<String>;

    /// NULL of a type.
    fn null(&self, ty: &Type) -> String;

    /// A struct of named expressions.
    fn record(&self, fields: &[(&str, String)]) -> String;

    /// One of our functions, where its name alone does not find it.
    fn function(&self, name: &str) -> String {
        name.to_owned()
    }

    /// A key expression such that equal keys (R5) are one group, and shown as one: canonical zeros and NaNs, entries of maps in
    /// order. `None` where they are already.
    fn key(&self, expr: &str, ty: &Type) -> Option<String> {
        (ty.has_float() || ty.has_map()).then(|| format!("{}({expr})", self.function("mergeql_canonical")))
    }

    /// What stands behind a value of this type to ask whether it is NULL, and whether it is not: a struct of NULLs is none.
    fn null_tests(&self, _ty: &Type) -> [&'static str; 2] {
        ["IS NULL", "IS NOT NULL"]
    }

    /// Whether the host takes values of this type for equal that are not.
    fn confuses(&self, _ty: &Type) -> bool {
        false
    }

    /// Whether the host can tell values of this type from one another, as strategies give them.
    fn has_equality(&self, _ty: &Type) -> bool {
        true
    }

    /// An expression that sorts in R2 order; `None` where the host's own order is that.
    fn order_key(&self, expr: &str, ty: Option<&Type>) -> Option<String> {
        match ty {
            Some(ty) if ty.is_scalar() && !matches!(ty, Type::Float32 | Type::Float64 | Type::Interval) => None,
            _ => Some(format!("{}({expr})", self.function("mergeql_order_key"))),
        }
    }

    /// How many arguments beside its inputs a function may have.
    fn most_literals(&self) -> usize {
        usize::MAX
    }

    /// A user's expression, where the host means something else by the same words.
    fn expression(&self, expr: &Expr) -> String {
        printed(expr)
    }

    /// The limit that an OFFSET needs before it where there is none.
    fn no_limit(&self) -> Option<&'static str> {
        None
    }

    /// Whether the host's optimizer may lose rows of a query with OFFSET inside another; then rows are numbered instead.
    fn loses_offsets(&self) -> bool {
        false
    }

    /// The value of a state aggregate in the type of its column, where the host's aggregates cannot give this type themselves.
    fn typed(&self, _state: &str, _input: &Type, _result: &Type) -> Option<String> {
        None
    }

    /// The strongest candidate in this order, where the host's aggregates cannot give this type themselves: its own `arg_max` over our
    /// order of candidates.
    fn strongest(&self, _order: Order, _ty: &Type, _value: &str, _versions: &[String]) -> Option<String> {
        None
    }

    /// Whether rows are best sorted by key before they are grouped: where the host cannot foresee how many groups there are, and a merge
    /// has nearly as many as rows.
    fn sorts_groups(&self) -> bool {
        false
    }

    /// An aggregate that says whether a key is there twice, or may be; `None` where there is none for such keys. With one, two tables
    /// without such keys are joined in place of being grouped.
    fn repeats(&self, _keys: &[(String, &Type)]) -> Option<String> {
        None
    }

    /// A resolved value as the rows of a merge have it.
    fn resolved(&self, value: String, _ty: &Type) -> String {
        value
    }

    /// How many arguments a function takes at most.
    fn most_arguments(&self) -> usize {
        usize::MAX
    }

    /// A row for each element of the lists that these calls of `mergeql_cells` give: the keys, and `__mergeql_cell`. `merged` is a FROM
    /// clause (and perhaps a WHERE clause) of rows called `m`, which keys and calls name.
    fn unnested(&self, keys: &[String], calls: &[String], merged: &str) -> String {
        format!(
            "SELECT {}, unnest({}) AS __mergeql_cell FROM {merged}",
            list(keys.iter().map(|k| format!("m.{k} AS {k}"))),
            calls.join("")
        )
    }

    /// A version as `mergeql_cells` takes it: as text, or as a struct of its parts.
    fn version(&self, parts: Vec<String>) -> String {
        format!("{}({})", self.function("mergeql_text"), list(parts))
    }

    /// A field of a struct that `mergeql_cells` gives.
    fn cell_field(&self, cell: &str, field: &str) -> String {
        format!("{cell}['{field}']")
    }

    /// The value of a cell's state, in the type of an expression.
    fn value_like(&self, cell: &Cell, state: &str, like: &str) -> String {
        let function = self.function("mergeql_value_like");
        match &cell.fold {
            Some(fold) => self.folded(fold, &format!("{function}({state}, {})", self.list_like(like)), &cell.ty),
            None => format!("{function}({state}, {like})"),
        }
    }

    /// A list of what is like an expression.
    fn list_like(&self, like: &str) -> String {
        format!("ARRAY[{like}]")
    }

    /// The state of a column, of those of its row.
    fn unpacked(&self, packed: &str, column: &str) -> String {
        format!("{}({packed}, {})", self.function("mergeql_unpack"), text(column))
    }

    /// The greatest of bytes, as an aggregate.
    fn greatest(&self, bytes: &str) -> String {
        format!("max({bytes})")
    }

    /// No state.
    fn no_state(&self) -> String {
        "NULL".to_owned()
    }

    /// A text as the argument of a function that takes any.
    fn argument(&self, value: &str) -> String {
        text(value)
    }

    /// The distinct values, of this type, that a user-defined fold goes over, folded.
    fn folded(&self, fold: &Fold, values: &str, _ty: &Type) -> String {
        format!("{}({values})", quote(&fold.function()))
    }
}

/// The name of a column that the lowering adds.
pub const ORIGIN: &str = "__mergeql_origin";
/// The name of a column that the lowering adds.
pub const SOURCE: &str = "__mergeql_source";
/// The name of a column that the lowering adds.
pub const DELETED: &str = "__mergeql_deleted";
/// The column of RETURNING STATE with the state of the deletion.
const DELETED_STATE: &str = "_mergeql_deleted";
/// The name of a column that the lowering adds.
const ROW: &str = "__mergeql_row";
/// The CTE of all rows, where they are read once.
const ROWS: &str = "__mergeql_rows";
/// The column of a delta that says which rows are gone.
pub const GONE: &str = "_deleted";
/// The column that state targets add.
pub const STATE: &str = "_mergeql_state";

/// An identifier in quotes.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text literal.
pub fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

fn literal(value: &Value) -> String {
    match value {
        Value::Text(t) => text(t),
        Value::Null => "NULL".to_owned(),
        other => other.to_string(),
    }
}

/// Lowers plans.
pub struct Lowering<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The host.
    pub dialect: &'a dyn Dialect,
}

/// An expression with every division as a call of this function: `/` between integers is integer division, and between floats never
/// an error, on every host.
fn divided(expr: &Expr, function: &str) -> String {
    let mut expr = expr.clone();
    make_exact(&mut expr);
    let _ = visit_expressions_mut(&mut expr, |e| {
        if let Expr::BinaryOp { left, op: BinaryOperator::Divide, right } = e {
            // An identifier without quotes is printed as it is.
            *e = Expr::Identifier(Ident::new(format!("{function}({left}, {right})")));
        }
        ControlFlow::<()>::Continue(())
    });
    expr.to_string()
}

/// The step of a fold, which is kept as text.
fn step(fold: &Fold, dialect: &dyn Dialect) -> String {
    let parsed = Parser::new(&GenericDialect {}).try_with_sql(&fold.step).and_then(|mut parser| parser.parse_expr());
    parsed.map_or_else(|_| fold.step.clone(), |expr| dialect.expression(&expr))
}

/// Writes a list with commas.
fn list(items: impl IntoIterator<Item = String>) -> String {
    items.into_iter().collect::<Vec<_>>().join(", ")
}

impl Lowering<'_> {
    /// The statement as one query: rows, conflicts or provenance, filtered, ordered and limited.
    pub fn query(&self) -> String {
        let plan = self.plan;
        match plan.returning {
            Returning::Rows => {
                let columns = list(plan.result_columns().map(|(name, _)| quote(name)));
                self.ordered(&columns, &format!("SELECT {columns} FROM ({}) AS m{}", self.merged(), self.filter()))
            }
            Returning::Conflicts => self.cells("conflicts"),
            Returning::Provenance => self.cells("provenance"),
            Returning::Delta => self.delta(),
            Returning::Schema => self.schema(),
            Returning::Unique => self.unique(),
            Returning::State => {
                let mut items: Vec<(String, String)> = plan.cells.iter().map(|c| (self.cell_state(c), c.name.clone())).collect();
                items.extend(plan.delete.iter().map(|d| (self.cell_state(d), DELETED_STATE.to_owned())));
                let names = plan.key_columns().iter().map(|c| c.name.as_str()).chain(items.iter().map(|(_, name)| name.as_str()));
                let columns = list(names.map(quote));
                self.ordered(&columns, &format!("SELECT {columns} FROM ({}) AS m", self.grouped(&items, 0)))
            }
        }
    }

    /// The aggregate of a cell's state; that of a fold that keeps one value is the set of it.
    fn cell_state(&self, cell: &Cell) -> String {
        match &cell.fold {
            Some(fold) if fold.compact => format!("mergeql_gset_of({})", self.aggregate(cell, false)),
            _ => self.aggregate(cell, true),
        }
    }

    /// Whether rows carry their origin, and the name of their source.
    fn marks(&self) -> (bool, bool) {
        let plan = self.plan;
        let needs = |wanted: &Input| plan.cells.iter().chain(&plan.delete).any(|c| c.inputs.contains(wanted));
        let filtered = plan.cells.iter().chain(&plan.delete).any(|c| self.presence(c).is_some());
        let named = needs(&Input::SourceName) || filtered || plan.returns_cells() || plan.returning == Returning::Delta;
        (needs(&Input::Origin), named)
    }

    /// All rows of all sources, under their final names and types.
    pub fn rows(&self) -> String {
        let branches = self.branches();
        if branches.is_empty() {
            let items = self.plan.columns.iter().map(|c| format!("{} AS {}", self.dialect.null(&c.ty), quote(&c.name)));
            return format!("SELECT {} WHERE false", list(items));
        }
        branches.join(" UNION ALL ")
    }

    /// The rows of each source that has columns.
    fn branches(&self) -> Vec<String> {
        let plan = self.plan;
        let (origin, source) = self.marks();
        let mut branches = Vec::new();
        for bound in &plan.sources {
            if bound.columns.iter().all(Option::is_none) {
                continue;
            }
            let mut items = Vec::new();
            for (i, (column, at)) in plan.columns.iter().zip(&bound.columns).enumerate() {
                let mut expr = match at {
                    // SQLite's truth values are numbers.
                    None if self.says_gone(i) && column.ty == Type::Boolean => "false".to_owned(),
                    None if self.says_gone(i) && column.ty.is_number() => "0".to_owned(),
                    None => self.dialect.null(&column.ty),
                    Some(at) => {
                        let theirs = &bound.relation.columns[*at];
                        let name = format!("s.{}", quote(&theirs.name));
                        self.dialect.cast(&name, &theirs.ty, &column.ty).unwrap_or(name)
                    }
                };
                if i < plan.key {
                    expr = self.dialect.key(&expr, &column.ty).unwrap_or(expr);
                }
                items.push(format!("{expr} AS {}", quote(&column.name)));
            }
            if origin {
                items.push(format!("{} AS {ORIGIN}", text(bound.relation.origin.as_deref().unwrap_or_default())));
            }
            if source {
                items.push(format!("{} AS {SOURCE}", text(&bound.name)));
            }
            branches.push(format!("SELECT {} FROM {} AS s", list(items), bound.relation.sql));
        }
        branches
    }

    /// Whether a column says which rows of a delta are gone, as part of their version: a table without it has none that are.
    fn says_gone(&self, column: usize) -> bool {
        self.plan.columns[column].name.eq_ignore_ascii_case(GONE) && self.plan.versions.columns.iter().any(|(c, _)| *c == column)
    }

    /// The sources that have a cell's column, where only they may contribute (R1).
    fn presence(&self, cell: &Cell) -> Option<String> {
        let column = cell.column?;
        // Where deletions are left out, a row of a source that knows none is there: a newer one brings an older deletion to nothing.
        if cell.why == Why::Deletion && self.plan.option("deletion").is_some() {
            return None;
        }
        if !cell.respects_nulls() || self.plan.sources.iter().all(|s| s.columns[column].is_some()) {
            return None;
        }
        let names = list(self.plan.sources.iter().filter(|s| s.columns[column].is_some()).map(|s| text(&s.name)));
        Some(format!("r.{SOURCE} IN ({names})"))
    }

    fn input(&self, input: &Input) -> String {
        match input {
            Input::Column(c) => format!("r.{}", quote(&self.plan.columns[*c].name)),
            Input::Origin => format!("r.{ORIGIN}"),
            Input::SourceName => format!("r.{SOURCE}"),
            Input::Row => {
                let mut columns: Vec<&Column> = self.plan.columns[self.plan.key..].iter().collect();
                columns.sort_by(|a, b| a.name.cmp(&b.name));
                let fields: Vec<(&str, String)> =
                    columns.iter().map(|c| (c.name.as_str(), format!("r.{}", quote(&c.name)))).collect();
                self.dialect.record(&fields)
            }
            Input::Expr(expr, _) => format!("({})", self.dialect.expression(expr)),
        }
    }

    /// The aggregate of a cell: its value, or with `state` its state.
    pub fn aggregate(&self, cell: &Cell, state: bool) -> String {
        self.aggregate_of(cell, state, None)
    }

    /// As [`Lowering::aggregate`], over the rows of one source.
    fn aggregate_of(&self, cell: &Cell, state: bool, source: Option<&str>) -> String {
        if !state && let Some(sql) = self.typed(cell, source) {
            return sql;
        }
        let spec = cell.entry.spec();
        let mut inputs: Vec<String> = cell.inputs.iter().map(|i| self.input(i)).collect();
        if let (true, [states]) = (spec.inputs.contains(&mergeql_udfs::catalog::Input::Increments), inputs.as_slice()) {
            // A column that holds states already.
            let joined = format!("{}({states}){}", self.dialect.function("crdt_merge"), self.condition(cell, source));
            return if state { joined } else { format!("{}({joined})", self.dialect.function("crdt_value_bigint")) };
        }
        let suffix = if state { "_state" } else { "" };
        let named = !spec.versioned()
            && cell.call.args.iter().all(|(name, _)| {
                spec.args.iter().any(|a| a.name == name && matches!(a.kind, ArgKind::Text | ArgKind::Literals | ArgKind::Sources))
            });
        let listed = |value: &Value| if let Value::List(items) = value { items.len() } else { 1 };
        let literals: usize = cell.call.args.iter().map(|(_, value)| listed(value)).sum();
        let mut sql = if literals == 0 || named && literals <= self.dialect.most_literals() {
            for (_, value) in &cell.call.args {
                match value {
                    Value::List(items) => inputs.extend(items.iter().map(literal)),
                    other => inputs.push(literal(other)),
                }
            }
            format!("{}({})", self.dialect.function(&format!("crdt_{}{suffix}", spec.name)), inputs.join(", "))
        } else {
            inputs.insert(0, text(&cell.call.to_json()));
            format!("{}({})", self.dialect.function(&format!("crdt_{}{suffix}_with", spec.name)), inputs.join(", "))
        };
        sql.push_str(&self.condition(cell, source));
        match &cell.fold {
            _ if state => sql,
            Some(fold) => self.dialect.resolved(self.dialect.folded(fold, &sql, &cell.ty), &cell.ty),
            None => self.dialect.resolved(sql, &cell.ty),
        }
    }

    /// Which rows a cell's aggregate sees: those of sources that have the column, or of one source.
    fn condition(&self, cell: &Cell, source: Option<&str>) -> String {
        let source = source.map(|name| format!("r.{SOURCE} = {}", text(name)));
        let parts: Vec<String> = self.presence(cell).into_iter().chain(source).collect();
        if parts.is_empty() { String::new() } else { format!(" FILTER (WHERE {})", parts.join(" AND ")) }
    }

    fn typed(&self, cell: &Cell, source: Option<&str>) -> Option<String> {
        let (input, result) = match &cell.fold {
            None => (cell.call.value_type(), cell.ty.clone()),
            Some(_) => (cell.ty.clone(), Type::List(Box::new(cell.ty.clone()))),
        };
        if let (None, Ok(Some(Shape::Strongest(order)))) = (&cell.fold, cell.entry.bind(&cell.call).map(|a| a.shape())) {
            let inputs: Vec<String> = cell.inputs.iter().map(|i| self.input(i)).collect();
            if let Some(mut sql) = self.dialect.strongest(order, &input, &inputs[0], &inputs[1..]) {
                sql.push_str(&self.condition(cell, source));
                return Some(sql);
            }
        }
        let sql = self.dialect.typed(&self.aggregate_of(cell, true, source), &input, &result)?;
        Some(match &cell.fold {
            Some(fold) => self.dialect.folded(fold, &sql, &cell.ty),
            None => sql,
        })
    }

    /// Groups rows by key and computes `items` (expressions over `r`, and their names) for each group; rows with a NULL in the key are
    /// groups of their own, equal results kept once (R4). Results are equal if all but the last `unseen` items are; of those the
    /// greatest is kept.
    pub fn grouped(&self, items: &[(String, String)], unseen: usize) -> String {
        self.grouped_where(items, unseen, None)
    }

    /// As [`Lowering::grouped`]; rows with a key only under a condition.
    fn grouped_where(&self, items: &[(String, String)], unseen: usize, condition: Option<&str>) -> String {
        let plan = self.plan;
        let keys: Vec<String> = plan.key_columns().iter().map(|c| format!("r.{}", quote(&c.name))).collect();
        let outputs = list(
            plan.key_columns()
                .iter()
                .map(|c| format!("r.{0} AS {0}", quote(&c.name)))
                .chain(items.iter().map(|(expr, name)| format!("{expr} AS {}", quote(name)))),
        );
        let rows = self.rows();
        let by_key = list(keys.iter().cloned());
        let sorted = if self.dialect.sorts_groups() {
            format!("{rows} ORDER BY {}", list(plan.key_columns().iter().map(|c| quote(&c.name))))
        } else {
            rows.clone()
        };
        if !plan.nullable_key() {
            let filter = condition.map_or(String::new(), |c| format!(" WHERE {c}"));
            return format!("SELECT {outputs} FROM ({sorted}) AS r{filter} GROUP BY {by_key}");
        }
        let tests = |which: usize| {
            keys.iter().zip(plan.key_columns()).map(move |(k, c)| format!("{k} {}", self.dialect.null_tests(&c.ty)[which]))
        };
        let null = tests(0).collect::<Vec<_>>().join(" OR ");
        let not_null = tests(1).chain(condition.map(str::to_owned)).collect::<Vec<_>>().join(" AND ");
        let told_apart = |expr: String, ty: &Type| match self.dialect.confuses(ty) {
            true => self.dialect.order_key(&expr, None).unwrap_or(expr),
            false => expr,
        };
        let mut all: Vec<String> = plan.columns.iter().map(|c| told_apart(format!("r.{}", quote(&c.name)), &c.ty)).collect();
        let (origin, source) = self.marks();
        all.extend([(ORIGIN, origin), (SOURCE, source)].iter().filter(|(_, there)| *there).map(|(c, _)| format!("r.{c}")));
        let names = plan.key_columns().iter().map(|c| c.name.as_str()).chain(items.iter().map(|(_, n)| n.as_str()));
        let names: Vec<String> = names.map(quote).collect();
        let (seen, hidden) = names.split_at(names.len() - unseen);
        let confused =
            |i: usize| i.checked_sub(plan.key).and_then(|i| self.type_of(&items[i].1)).filter(|ty| self.dialect.confuses(ty));
        // Both kinds of rows come from one reading where another would give others.
        let once = plan.sources.iter().any(|s| s.relation.reading == Reading::Once);
        let (with, rows, sorted) = match once {
            true => {
                (format!("WITH {ROWS} AS MATERIALIZED ({rows}) "), format!("SELECT * FROM {ROWS}"), format!("SELECT * FROM {ROWS}"))
            }
            false => (String::new(), rows, sorted),
        };
        let inner = format!("SELECT {outputs} FROM ({rows}) AS r WHERE {null} GROUP BY {}", list(all));
        let rows_with_key = format!("{with}SELECT {outputs} FROM ({sorted}) AS r WHERE {not_null} GROUP BY {by_key}");
        let equal = |i: usize| {
            i.checked_sub(plan.key).and_then(|i| self.type_of(&items[i].1)).is_none_or(|ty| self.dialect.has_equality(ty))
        };
        if !(0..seen.len()).all(equal) {
            // By what orders values.
            let key = |n: &String| self.dialect.order_key(n, None).unwrap_or_else(|| n.clone());
            let by = list(seen.iter().map(key));
            let order = list(hidden.iter().map(|n| format!("{n} DESC")));
            let order = if order.is_empty() { String::new() } else { format!(" ORDER BY {order}") };
            return format!(
                "{rows_with_key} UNION ALL SELECT {} FROM \
                 (SELECT *, row_number() OVER (PARTITION BY {by}{order}) AS {ROW} FROM ({inner}) AS n) AS n WHERE {ROW} = 1",
                list(names.clone())
            );
        }
        let one = |n: &String| format!("{} AS {n}", self.dialect.greatest(n));
        let kept = seen.iter().enumerate().map(|(i, n)| if confused(i).is_some() { one(n) } else { n.clone() });
        let kept = list(kept.chain(hidden.iter().map(one)));
        let by_seen = list(seen.iter().enumerate().map(|(i, n)| match confused(i) {
            Some(ty) => told_apart(n.clone(), ty),
            None => n.clone(),
        }));
        format!("{rows_with_key} UNION ALL SELECT {kept} FROM ({inner}) AS n GROUP BY {by_seen}")
    }

    /// Merged rows, with the mark of deleted ones.
    pub fn merged(&self) -> String {
        let mut items: Vec<(String, String)> = self.plan.cells.iter().map(|c| (self.aggregate(c, false), c.name.clone())).collect();
        if let Some(delete) = &self.plan.delete {
            items.push((self.aggregate(delete, false), DELETED.to_owned()));
        }
        if let Some(sql) = self.joined(&items) {
            return sql;
        }
        // Rows without a key that nothing deleted are one row if their values are, whichever way they are not deleted.
        if let (Some(delete), Some((mark, _))) = (&self.plan.delete, items.last_mut()) {
            match delete.ty {
                Type::Boolean => *mark = format!("COALESCE({mark}, false)"),
                Type::Int { .. } => *mark = format!("COALESCE({mark}, 0)"),
                _ => {}
            }
        }
        self.grouped(&items, 0)
    }

    /// Whether a merged row is not deleted.
    pub fn alive(&self) -> Option<String> {
        let delete = self.plan.delete.as_ref()?;
        Some(match delete.ty {
            Type::Boolean => format!("{DELETED} IS NOT TRUE"),
            Type::Int { .. } => format!("({DELETED} IS NULL OR {DELETED} = 0)"),
            _ => format!("{DELETED} IS NULL"),
        })
    }

    fn filter(&self) -> String {
        let filter = self.plan.filter.as_ref().map(|f| format!("({})", self.dialect.expression(f)));
        let parts: Vec<String> = self.alive().into_iter().chain(filter).collect();
        if parts.is_empty() { String::new() } else { format!(" WHERE {}", parts.join(" AND ")) }
    }

    /// A row for each cell: `mode` says whether for all of them or for those in conflict.
    fn cells(&self, mode: &str) -> String {
        let plan = self.plan;
        let mut items: Vec<(String, String)> = Vec::new();
        let mut arguments = Vec::new();
        for (i, cell) in plan.cells.iter().enumerate() {
            let value = match cell.column {
                Some(column) => self.input(&Input::Column(column)),
                None => {
                    self.dialect.record(&[("increments", self.input(&cell.inputs[0])), ("decrements", self.input(&cell.inputs[1]))])
                }
            };
            let spec = cell.entry.spec();
            let first = spec.inputs.iter().position(|i| *i == mergeql_udfs::catalog::Input::Versions);
            let version = match first {
                Some(at) if cell.inputs.len() > at => {
                    self.dialect.version(cell.inputs[at..].iter().map(|i| self.input(i)).collect())
                }
                _ => self.dialect.null(&Type::Text),
            };
            let contribution =
                self.dialect.record(&[("source", format!("r.{SOURCE}")), ("value", value.clone()), ("version", version)]);
            let contributes = match (self.presence(cell), cell.respects_nulls(), cell.column) {
                (Some(presence), ..) => presence,
                (None, true, _) => "true".to_owned(),
                (None, false, None) => {
                    format!("{} IS NOT NULL OR {} IS NOT NULL", self.input(&cell.inputs[0]), self.input(&cell.inputs[1]))
                }
                (None, false, Some(column)) => format!("{value} {}", self.dialect.null_tests(&plan.columns[column].ty)[1]),
            };
            let contributions = format!("__mergeql_contributions_{i}");
            items.push((self.aggregate(cell, false), cell.name.clone()));
            // As a state: what only `mergeql_cells` reads is not made a list first.
            let set = self.dialect.function("crdt_gset_state");
            items.push((format!("{set}({contribution}) FILTER (WHERE {contributes})"), contributions.clone()));
            arguments.extend([
                text(&cell.name),
                text(&cell.shown),
                (spec.selects && cell.fold.is_none()).to_string(),
                format!("m.{}", quote(&cell.name)),
                format!("m.{}", quote(&contributions)),
            ]);
        }
        if let Some(delete) = &plan.delete {
            items.push((self.aggregate(delete, false), DELETED.to_owned()));
        }
        // Five arguments a column, behind the mode.
        let most = (self.dialect.most_arguments() - 1) / 5 * 5;
        let function = self.dialect.function("mergeql_cells");
        let call = |some: &[String]| format!("{function}({})", list(std::iter::once(text(mode)).chain(some.iter().cloned())));
        let calls: Vec<String> = if arguments.is_empty() { vec![call(&[])] } else { arguments.chunks(most).map(call).collect() };
        let keys: Vec<String> = plan.key_columns().iter().map(|c| quote(&c.name)).collect();
        let fields = ["column_name", "value", "strategy", "winner_sources", "losers"];
        let field = |f: &&str| format!("{} AS {f}", self.dialect.cell_field("c.__mergeql_cell", f));
        let outputs = list(keys.iter().cloned().chain(fields.iter().map(field)));
        let columns = list(keys.iter().cloned().chain(fields.iter().map(|f| (*f).to_owned())));
        let merged = format!("({}) AS m{}", self.grouped(&items, 0), self.filter());
        let unnested = self.dialect.unnested(&keys, &calls, &merged);
        let query = format!("SELECT {columns} FROM (SELECT {outputs} FROM ({unnested}) AS c) AS m");
        self.ordered(&columns, &query)
    }

    /// A query in order (R8), limited.
    fn ordered(&self, columns: &str, query: &str) -> String {
        let plan = self.plan;
        let order = self.order().join(", ");
        if let (Some(offset), true) = (plan.offset, self.dialect.loses_offsets()) {
            // The usual frame is a range, which not all order keys have there.
            const FRAME: &str = "ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW";
            let upto = plan.limit.map_or(String::new(), |limit| format!(" AND {ROW} <= {}", offset.saturating_add(limit)));
            return format!(
                "SELECT {columns} FROM (SELECT *, row_number() OVER (ORDER BY {order} {FRAME}) AS {ROW} FROM ({query}) AS m) AS m \
                 WHERE {ROW} > {offset}{upto} ORDER BY {ROW}"
            );
        }
        let mut sql = query.to_owned();
        if !order.is_empty() {
            let _ = write!(sql, " ORDER BY {order}");
        }
        let limit = plan.limit.map(|limit| limit.to_string());
        if let Some(limit) = limit.or_else(|| plan.offset.and(self.dialect.no_limit()).map(str::to_owned)) {
            let _ = write!(sql, " LIMIT {limit}");
        }
        if let Some(offset) = plan.offset {
            let _ = write!(sql, " OFFSET {offset}");
        }
        sql
    }

    /// ORDER BY completed by the key and then by all columns by name (R8).
    fn order(&self) -> Vec<String> {
        let plan = self.plan;
        let mut parts = Vec::new();
        let limited = plan.limit.is_some() || plan.offset.is_some();
        if !limited && plan.order.is_empty() && plan.returning == Returning::Rows {
            return parts;
        }
        let mut seen: Vec<&str> = Vec::new();
        for order in &plan.order {
            let ty = order.column.as_deref().and_then(|name| self.type_of(name));
            let expr = self.dialect.expression(&order.expr);
            let key = self.dialect.order_key(&expr, ty).unwrap_or(expr);
            let nulls = if order.nulls_first { "FIRST" } else { "LAST" };
            parts.push(format!("{key} {} NULLS {nulls}", if order.descending { "DESC" } else { "ASC" }));
            seen.extend(order.column.as_deref());
        }
        let mut rest: Vec<&str> = plan.key_columns().iter().map(|c| c.name.as_str()).collect();
        match plan.returning {
            Returning::Rows if plan.nullable_key() => {
                let mut others: Vec<&str> = plan.cells.iter().map(|c| c.name.as_str()).collect();
                others.sort_unstable();
                rest.extend(others);
            }
            Returning::Rows | Returning::State | Returning::Delta | Returning::Schema | Returning::Unique => {}
            // Rows of a key are told apart by their column.
            _ => rest.push("column_name"),
        }
        let key_of = |name: &str| self.dialect.order_key(&quote(name), self.type_of(name)).unwrap_or_else(|| quote(name));
        rest.retain(|name| !seen.contains(name));
        parts.extend(rest.into_iter().map(|name| format!("{} ASC NULLS LAST", key_of(name))));
        if plan.returns_cells() && plan.nullable_key() {
            // Those without a key by all they hold: to sort lists is dear, so others have nothing there.
            let nullable = plan
                .key_columns()
                .iter()
                .filter(|c| c.nullable)
                .map(|c| format!("{} {}", quote(&c.name), self.dialect.null_tests(&c.ty)[0]));
            let keyless = nullable.collect::<Vec<_>>().join(" OR ");
            let held = ["losers", "strategy", "value", "winner_sources"].into_iter().filter(|name| !seen.contains(name));
            parts.extend(held.map(|name| format!("CASE WHEN {keyless} THEN {} END ASC NULLS LAST", key_of(name))));
        }
        if plan.returning == Returning::State && plan.nullable_key() {
            let mut states: Vec<&str> = plan.cells.iter().map(|c| c.name.as_str()).collect();
            states.sort_unstable();
            states.extend(plan.delete.iter().map(|_| DELETED_STATE));
            let state = |name: &str| self.dialect.order_key(&quote(name), None).unwrap_or_else(|| quote(name));
            parts.extend(states.into_iter().map(|name| format!("{} ASC NULLS LAST", state(name))));
        }
        parts
    }

    fn type_of(&self, name: &str) -> Option<&Type> {
        if self.plan.returns_cells() && ["column_name", "value", "strategy"].contains(&name) {
            return Some(&Type::Text);
        }
        self.plan.result_columns().find(|(n, _)| *n == name).map(|(_, ty)| ty)
    }
}

/// Whether there are intervals in a type: hosts take a month for thirty days.
pub(crate) fn has_interval(ty: &Type) -> bool {
    ty.any(&|ty| *ty == Type::Interval)
}

/// The name of the `i`th state column between the steps of a merge of states.
pub fn state_name(i: usize) -> String {
    format!("__mergeql_state_{i}")
}
