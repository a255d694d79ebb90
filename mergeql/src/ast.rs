//! Statements as written. Names are not resolved; every name keeps its place.

use crate::diagnostic::Span;
use mergeql_udfs::Value;
use sqlparser::ast::Expr;
use std::collections::BTreeMap;

/// A name and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Name {
    /// The name without quotes.
    pub value: String,
    /// Whether it was quoted: then letter case counts.
    pub quoted: bool,
    /// Where it stands.
    pub span: Span,
}

impl Name {
    /// Whether this means that name: to the letter, or in any case of letters if it is not quoted.
    pub fn means(&self, name: &str) -> bool {
        self.value == name || (!self.quoted && self.value.eq_ignore_ascii_case(name))
    }
}

/// A statement.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // one statement is held at a time
pub enum Statement {
    /// `[EXPLAIN [ANALYZE]] MERGE ...`, also `CREATE TABLE ... AS MERGE ...`
    Merge {
        /// Whether the plan is asked for.
        explain: Explain,
        /// The merge.
        merge: Box<Merge>,
    },
    /// `MERGE INTO target USING ...`
    MergeInto {
        /// Whether the plan is asked for.
        explain: Explain,
        /// The table that is merged into.
        target: Relation,
        /// The sources and clauses.
        merge: Box<Merge>,
    },
    /// `[EXPLAIN] MERGE MODELS ...`
    MergeModels {
        /// Whether the plan is asked for.
        explain: bool,
        /// The models and clauses.
        models: Box<Models>,
    },
    /// `CREATE [OR REPLACE] STRATEGY name AS ...`
    CreateStrategy {
        /// Whether an existing one gives way.
        or_replace: bool,
        /// Its name.
        name: Name,
        /// What it does.
        body: StrategyBody,
        /// The text after AS.
        text: String,
    },
    /// `DROP STRATEGY [IF EXISTS] name`
    DropStrategy {
        /// Whether a missing one is fine.
        if_exists: bool,
        /// Its name.
        name: Name,
    },
    /// `SHOW STRATEGIES`
    ShowStrategies,
    /// `VERIFY STRATEGY name [ON table.column] [CASES n]`
    Verify {
        /// Its name.
        name: Name,
        /// Real values to try it with.
        on: Option<(Vec<Name>, Name)>,
        /// How many cases.
        cases: usize,
    },
    /// Any other SQL, with the merges inside it.
    Sql(Vec<Piece>),
}

/// Whether a plan is asked for instead of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Explain {
    /// No.
    No,
    /// The plan.
    Plan,
    /// The plan, run, with what it took.
    Analyze,
}

/// A stretch of SQL: text that is not ours, or a merge in it.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Passed on as it is.
    Text(String),
    /// A merge as a table expression (its parentheses are in the text around it).
    Merge(Box<Merge>),
}

/// `MERGE sources ON key clauses`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Merge {
    /// What is merged.
    pub sources: Vec<Source>,
    /// The key columns.
    pub key: Vec<Name>,
    /// `STRATEGY column = strategy, ...`
    pub strategies: Vec<(Target, StrategyCall)>,
    /// `VERSION BY`
    pub version: Option<VersionBy>,
    /// `DELETE BY`
    pub delete: Option<Name>,
    /// `MAP old -> new`
    pub map: Vec<(Name, Name)>,
    /// `WHERE`
    pub filter: Option<Expr>,
    /// `ORDER BY`
    pub order: Vec<Order>,
    /// `LIMIT`
    pub limit: Option<u64>,
    /// `OFFSET`
    pub offset: Option<u64>,
    /// `RETURNING`
    pub returning: Returning,
    /// `INTO`
    pub into: Option<Into>,
    /// `WITH (...)`
    pub options: Vec<(Name, Value)>,
    /// Where each clause begins.
    pub clauses: BTreeMap<&'static str, Span>,
}

impl Merge {
    /// Where a clause begins, called by its first words.
    pub fn place(&self, clause: &str) -> Option<Span> {
        self.clauses.get(clause.split(' ').next()?).copied()
    }
}

/// A source of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Where the rows come from.
    pub relation: Relation,
    /// `AS alias`
    pub alias: Option<Name>,
    /// Where it stands.
    pub span: Span,
    /// One of the files that one source names: it shares its name with the others.
    pub part: bool,
}

/// What a source or target is.
#[derive(Debug, Clone, PartialEq)]
pub enum Relation {
    /// A table or view, qualified or not.
    Table(Vec<Name>),
    /// A quoted string: a table of that name, or a file, folder or pattern.
    Text(Name),
    /// A query.
    Query(Vec<Piece>),
}

/// The left side of `column = strategy`.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// `*`: every column that is not listed.
    Default(Span),
    /// A column.
    Column(Name),
}

/// A strategy as written, with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct StrategyCall {
    /// Its name; user-defined ones may be written `custom:name`.
    pub name: Name,
    /// Arguments in parentheses, named or not.
    pub args: Vec<(Option<Name>, Argument)>,
    /// `RESPECT NULLS`
    pub respect_nulls: bool,
    /// `BY column, ...`: a version of its own.
    pub by: Option<VersionBy>,
}

impl StrategyCall {
    /// Says that all of this stands at one place.
    pub fn set_span(&mut self, span: Span) {
        self.name.span = span;
        self.by.iter_mut().flat_map(|by| &mut by.columns).for_each(|(name, _)| name.span = span);
        for (name, argument) in &mut self.args {
            name.iter_mut().for_each(|name| name.span = span);
            match argument {
                Argument::Name(name) => name.span = span,
                Argument::Literal(_, at) => *at = span,
            }
        }
    }
}

/// An argument of a strategy.
#[derive(Debug, Clone, PartialEq)]
pub enum Argument {
    /// A column or a source.
    Name(Name),
    /// A literal.
    Literal(Value, Span),
}

/// What makes a row newer.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionBy {
    /// Columns, and whether the lesser is newer.
    pub columns: Vec<(Name, bool)>,
    /// `ROW`: ties are broken by the whole row.
    pub row: bool,
}

/// One part of ORDER BY.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// What to order by.
    pub expr: Expr,
    /// Downwards.
    pub descending: bool,
    /// `NULLS FIRST` or `LAST`, if stated.
    pub nulls_first: Option<bool>,
    /// Where it stands.
    pub span: Span,
}

/// What comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Returning {
    /// Merged rows.
    #[default]
    Rows,
    /// A row for each cell whose contributing values differ.
    Conflicts,
    /// A row for each cell.
    Provenance,
    /// A row for each key, with the state of each column in place of its value.
    State,
    /// A row for each key on which the two sources differ: the second's, or the first's marked as deleted.
    Delta,
    /// A row for each column: what the sources have it as.
    Schema,
    /// The rows of one source that are no duplicates of others.
    Unique,
}

/// Where the result goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Into {
    /// Whether an existing one gives way.
    pub or_replace: bool,
    /// `CREATE TABLE IF NOT EXISTS`
    pub if_not_exists: bool,
    /// A table, or a file.
    pub target: Relation,
    /// Where it stands.
    pub span: Span,
}

/// What a user-defined strategy does.
#[allow(clippy::large_enum_variant)] // there are few of them
#[derive(Debug, Clone, PartialEq)]
pub enum StrategyBody {
    /// Another strategy with arguments.
    Alias(StrategyCall),
    /// The value with the greatest or least rank, `expr over value`.
    By {
        /// The greatest wins.
        greatest: bool,
        /// The parts of the rank, over the name `value`; where one ties, the next decides.
        ranks: Vec<Expr>,
    },
    /// The distinct values in order, folded.
    Fold {
        /// The accumulator's name.
        left: Name,
        /// The next value's name.
        right: Name,
        /// The step.
        step: Expr,
        /// Keeps one value instead of the set.
        compact: bool,
    },
}

/// `MERGE MODELS models clauses`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Models {
    /// What is merged.
    pub sources: Vec<ModelSource>,
    /// `BASE`: what they started from.
    pub base: Option<ModelSource>,
    /// `STRATEGY 'pattern' = strategy(...), ...`
    pub rules: Vec<ModelRule>,
    /// `WITH (...)`
    pub options: Vec<(Name, Setting)>,
    /// `INTO`: a folder or a file.
    pub into: Option<Name>,
}

/// A model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSource {
    /// A file, a folder, an index or a pattern.
    pub path: Name,
    /// `AS alias`
    pub alias: Option<Name>,
    /// `WEIGHT w`
    pub weight: Option<f64>,
}

/// Which strategy merges the tensors of a pattern.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelRule {
    /// The pattern of names.
    pub pattern: String,
    /// Where it stands.
    pub span: Span,
    /// The strategy.
    pub strategy: Name,
    /// Its parameters.
    pub settings: Vec<(Name, Setting)>,
}

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Setting {
    /// A number.
    Number(f64),
    /// true or false.
    Flag(bool),
    /// A text.
    Text(String),
    /// Several values: one for each model, or several files.
    List(Vec<Setting>),
}
