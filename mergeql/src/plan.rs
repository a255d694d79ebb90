//! A merge bound to its sources: every name resolved, every type known, nothing about an engine.

use crate::ast::{Explain, Into, Name, Returning, StrategyBody};
use crate::exact::printed;
use mergeql_udfs::catalog::Entry;
use mergeql_udfs::{Call, Type, Value};
use sqlparser::ast::{Expr, Query, Visit, Visitor};
use std::ops::ControlFlow;

/// What a host knows of a source.
#[derive(Debug, Clone, PartialEq)]
pub struct Relation {
    /// How the host's SQL reads it in a FROM clause.
    pub sql: String,
    /// Who its rows come from when strategies count per origin; `None` for a query.
    pub origin: Option<String>,
    /// Its columns in order.
    pub columns: Vec<SourceColumn>,
    /// How many rows it has, where that is known.
    pub rows: Option<usize>,
    /// How often it may be read.
    pub reading: Reading,
}

/// How often a source may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// It is a table, whose keys cost little to read once more.
    Cheap,
    /// As often as the plan likes.
    Any,
    /// Not twice: it may give other rows then.
    Once,
}

/// A column of a source.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceColumn {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: Type,
    /// Whether it may hold NULL.
    pub nullable: bool,
}

/// A bound source.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// What users call it: the alias, or the relation as written.
    pub name: String,
    /// The relation.
    pub relation: Relation,
    /// For each column of the plan, which column of the relation it is.
    pub columns: Vec<Option<usize>>,
}

/// An input column of the merge, after MAP, with the type that all sources widen to.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: Type,
    /// Whether it may hold NULL in some source.
    pub nullable: bool,
}

/// What an aggregate reads.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A column of the plan.
    Column(usize),
    /// The relation a row came from.
    Origin,
    /// What users call the source of a row.
    SourceName,
    /// All columns but the key: the last part of a version.
    Row,
    /// An expression over columns (the rank of `GREATEST BY`).
    Expr(Box<Expr>, Type),
}

/// Why a column has its strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The statement says so.
    Given,
    /// `* = ...`
    Star,
    /// No strategy is given: `lww`.
    Default,
    /// It is the column of DELETE BY.
    Deletion,
}

impl Why {
    /// The word in EXPLAIN.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Given => "given",
            Why::Star => "given by *",
            Why::Default => "default",
            Why::Deletion => "column of DELETE BY",
        }
    }
}

/// A fold of distinct values, as a user defined it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fold {
    /// The strategy's name.
    pub name: String,
    /// The accumulator's name in the step.
    pub left: String,
    /// The next value's name in the step.
    pub right: String,
    /// The step, as SQL.
    pub step: String,
    /// States keep the folded value instead of the set.
    pub compact: bool,
}

impl Fold {
    /// The fold of a definition, if it is one.
    pub fn of(name: &str, body: &StrategyBody) -> Option<Fold> {
        let StrategyBody::Fold { left, right, step, compact } = body else { return None };
        let plain = |n: &Name| if n.quoted { n.value.clone() } else { n.value.to_ascii_lowercase() };
        Some(Fold { name: name.to_owned(), left: plain(left), right: plain(right), step: printed(step), compact: *compact })
    }

    /// The name of the function that folds. The whole definition is in it: a strategy of the same name that was defined anew is
    /// another function.
    pub fn function(&self) -> String {
        format!("mergeql_fold {}({}, {}) -> {}", self.name, self.left, self.right, self.step)
    }
}

/// A result column and how it is resolved.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Its name.
    pub name: String,
    /// The input column; `None` for one that only a strategy makes.
    pub column: Option<usize>,
    /// The strategy.
    pub entry: &'static Entry,
    /// Its configuration.
    pub call: Call,
    /// What it reads.
    pub inputs: Vec<Input>,
    /// Why this strategy.
    pub why: Why,
    /// What the user called the strategy.
    pub shown: String,
    /// The type of the resolved value.
    pub ty: Type,
    /// A step over the distinct values, for user-defined folds.
    pub fold: Option<Fold>,
}

impl Cell {
    /// Whether NULL is a value here, so that only sources that have the column may contribute.
    pub fn respects_nulls(&self) -> bool {
        self.call.arg("respect_nulls") == Some(&Value::Bool(true))
    }
}

/// What makes a row newer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Versions {
    /// Columns, and whether the lesser is newer.
    pub columns: Vec<(usize, bool)>,
    /// The whole row is the last part.
    pub row: bool,
}

/// One part of the order.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// The bound expression.
    pub expr: Expr,
    /// The result column that it is, if it is one.
    pub column: Option<String>,
    /// Downwards.
    pub descending: bool,
    /// NULLs first.
    pub nulls_first: bool,
}

/// What the sources have a column as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaRow {
    /// Its name.
    pub column: String,
    /// `same`, `added`, `missing`, `widened` or `clash`.
    pub status: &'static str,
    /// The type of the result, where it has the column.
    pub ty: Option<String>,
    /// The type in each source, `-` where it is not there.
    pub sources: String,
}

/// A bound merge.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The sources.
    pub sources: Vec<Source>,
    /// The input columns, the key first.
    pub columns: Vec<Column>,
    /// How many of the columns are the key.
    pub key: usize,
    /// The other result columns.
    pub cells: Vec<Cell>,
    /// The order of versions.
    pub versions: Versions,
    /// The cell that says whether a row is deleted.
    pub delete: Option<Cell>,
    /// WHERE, bound to result columns.
    pub filter: Option<Expr>,
    /// ORDER BY.
    pub order: Vec<Order>,
    /// LIMIT.
    pub limit: Option<u64>,
    /// OFFSET.
    pub offset: Option<u64>,
    /// RETURNING.
    pub returning: Returning,
    /// INTO.
    pub into: Option<Into>,
    /// WITH.
    pub options: Vec<(Name, Value)>,
    /// Whether the plan is asked for.
    pub explain: Explain,
    /// What is lawful but perhaps not meant.
    pub warnings: Vec<String>,
    /// RETURNING SCHEMA: the rows.
    pub schema: Vec<SchemaRow>,
}

impl Plan {
    /// Whether there is a query in WHERE.
    pub fn filter_asks(&self) -> bool {
        struct Queries;
        impl Visitor for Queries {
            type Break = ();

            fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
                ControlFlow::Break(())
            }
        }
        self.filter.as_ref().is_some_and(|filter| filter.visit(&mut Queries).is_break())
    }

    /// The option of this name.
    pub fn option(&self, name: &str) -> Option<&Value> {
        self.options.iter().find(|(n, _)| n.value.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }

    /// Whether the result has a row for each cell, not for each key.
    pub fn returns_cells(&self) -> bool {
        matches!(self.returning, Returning::Conflicts | Returning::Provenance)
    }

    /// Whether the result keeps states.
    pub fn keeps_state(&self) -> bool {
        matches!(self.option("state"), Some(Value::Text(t)) if &**t == "keep")
    }

    /// The key columns.
    pub fn key_columns(&self) -> &[Column] {
        &self.columns[..self.key]
    }

    /// Whether some key may be NULL.
    pub fn nullable_key(&self) -> bool {
        self.key_columns().iter().any(|c| c.nullable)
    }

    /// Names and types of the result of RETURNING ROWS.
    pub fn result_columns(&self) -> impl Iterator<Item = (&str, &Type)> {
        let key = self.key_columns().iter().map(|c| (c.name.as_str(), &c.ty));
        key.chain(self.cells.iter().map(|c| (c.name.as_str(), &c.ty)))
    }

    /// The plan for people: an item and its detail a line. `rows` tells how many rows a source has, where that is known.
    pub fn describe(&self, rows: impl Fn(&Source) -> Option<String>) -> Vec<(String, String)> {
        let mut lines: Vec<(String, String)> = Vec::new();
        let mut add = |item: &str, detail: String| lines.push((item.to_owned(), detail));
        for source in &self.sources {
            let count = rows(source).map_or(String::new(), |n| format!("{n} rows, "));
            add("source", format!("{}: {count}{} columns", source.name, source.relation.columns.len()));
        }
        let key: Vec<String> = self.key_columns().iter().map(|c| format!("{} {}", c.name, c.ty)).collect();
        add("key", key.join(", "));
        let versions: Vec<String> = self
            .versions
            .columns
            .iter()
            .map(|(c, descending)| format!("{}{}", self.columns[*c].name, if *descending { " DESC" } else { "" }))
            .chain(self.versions.row.then(|| "ROW".to_owned()))
            .collect();
        add("version", if versions.is_empty() { "none".to_owned() } else { versions.join(", ") });
        let laws = mergeql_udfs::catalog::LAWS.join(", ");
        for cell in &self.cells {
            let closed = match self.not_closed(cell) {
                None => "closed".to_owned(),
                Some(why) => format!("not closed: {why}"),
            };
            add("column", format!("{} {} = {} ({}); {laws}; {closed}", cell.name, cell.ty, cell.shown, cell.why.as_str()));
        }
        if let Some(delete) = &self.delete {
            add("deletion", format!("rows whose newest {} says so are hidden", delete.name));
        }
        if let Some(filter) = &self.filter {
            let on_key = |text: &str| !self.cells.iter().any(|c| text.contains(&format!("\"{}\"", c.name)));
            let text = printed(filter);
            let pushed: Vec<String> = conjuncts(filter).into_iter().map(printed).filter(|part| on_key(part)).collect();
            let place = match pushed.as_slice() {
                _ if on_key(&text) => "on the key only, pushed below the merge".to_owned(),
                [] => "over merged rows".to_owned(),
                some => format!("over merged rows; {} on the key only, pushed below the merge", some.join(" AND ")),
            };
            add("filter", format!("{text}: {place}"));
        }
        if self.nullable_key() {
            add("null keys", "rows with a NULL in the key are groups of their own".to_owned());
        }
        if crate::lower::may_join(self) {
            add(
                "plan",
                "two tables are joined by key where no key is there twice, which is looked up first, and grouped otherwise"
                    .to_owned(),
            );
        }
        for warning in &self.warnings {
            add("warning", warning.clone());
        }
        lines
    }

    /// Why a merged value of this cell cannot be merged into again, if it cannot (spec: ordinary targets).
    pub fn not_closed(&self, cell: &Cell) -> Option<String> {
        if let Some(fold) = &cell.fold {
            return Some(format!("the user-defined strategy `{}` needs every value it ever saw", fold.name));
        }
        let name = cell.entry.spec().name;
        if (cell.entry.spec().closed)(&cell.call) {
            return None;
        }
        if name != "lww" && name != "fww" {
            return Some(format!("a value merged by `{name}` does not say all that its state knew"));
        }
        if cell.inputs.len() == 1 && !cell.respects_nulls() {
            // Without a version it is the greatest value.
            return None;
        }
        if cell.respects_nulls() || self.versions.row {
            return Some(format!("`{name}` with RESPECT NULLS or ROW needs the version of every column"));
        }
        if cell.column.is_none_or(|c| self.columns[c].nullable) {
            return Some(format!("`{}` may be NULL, so its value may come from an older row than the version column's", cell.name));
        }
        let version_of = |cell: &Cell| (cell.entry.spec().name, cell.inputs[1..].to_vec(), cell.call.arg("descending").cloned());
        for input in &cell.inputs[1..] {
            let Input::Column(version) = input else { return Some("a version that is no column is not kept".to_owned()) };
            let kept =
                *version < self.key || self.cells.iter().any(|c| c.column == Some(*version) && version_of(c) == version_of(cell));
            if !kept {
                return Some(format!(
                    "the version column `{}` is not resolved by `{name}` in the same order",
                    self.columns[*version].name
                ));
            }
        }
        None
    }
}

/// The parts of a condition that must all hold.
fn conjuncts(condition: &Expr) -> Vec<&Expr> {
    match condition {
        Expr::BinaryOp { left, op: sqlparser::ast::BinaryOperator::And, right } => {
            let mut parts = conjuncts(left);
            parts.extend(conjuncts(right));
            parts
        }
        Expr::Nested(inner) => conjuncts(inner),
        other => vec![other],
    }
}
