//! From a MergeQL statement to Postgres' SQL, and the functions that run it: in the caller's transaction, with the caller's rights and
//! search path.
#![allow(unsafe_code)]

use crate::datums::{Form, PgType, bytes};
use crate::entry::{Call, Failure, Outcome};
use crate::spi::{Column, Spi, type_name};
use mergeql_lang::ast::{Explain, Merge, Name, Piece, Relation as Written, Returning, Statement, StrategyBody};
use mergeql_lang::diagnostic::nearest;
use mergeql_lang::lower::{Lowering, Postgres, STATE, quote, text as literal};
use mergeql_lang::plan::{Plan, Reading, Relation, SourceColumn};
use mergeql_lang::{Diagnostic, Span, UserStrategies, bind, check_unverified, find_strategy, parse, reads};
use mergeql_udfs::{Code, Type};
use pgrx::pg_sys;
use std::collections::BTreeMap;
use std::ffi::CStr;

/// A connection, and where the extension lives.
pub(crate) struct Session<'a> {
    pub(crate) spi: &'a Spi,
    pub(crate) dialect: Postgres,
}

/// A source, and what Postgres calls the types of its columns.
pub(crate) struct Described {
    pub(crate) relation: Relation,
    pub(crate) columns: Vec<Column>,
    /// The table, where it is one: its schema and name.
    pub(crate) table: Option<(String, String)>,
    /// How it keeps states, if it does.
    pub(crate) kept: Option<String>,
}

/// A statement in Postgres' SQL.
enum Lowered {
    /// It gives rows.
    Query(String),
    /// Statements that are run, in order.
    Commands(Vec<String>),
}

impl Lowered {
    fn command(sql: String) -> Lowered {
        Lowered::Commands(vec![sql])
    }

    fn sql(self) -> String {
        match self {
            Lowered::Query(sql) => sql,
            Lowered::Commands(all) => all.join(";\n"),
        }
    }
}

/// The schema that the function which is called lives in.
fn schema(call: Call) -> String {
    // SAFETY: the function exists, and so does its schema.
    unsafe {
        let name = pg_sys::get_namespace_name(pg_sys::get_func_namespace((*(*call.0).flinfo).fn_oid));
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

/// Runs with a session; errors know the statement.
pub(crate) fn with_session<T>(
    call: Call,
    statement: &str,
    run: impl FnOnce(&Session<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let dialect = Postgres { schema: schema(call) };
    Spi::connect(|spi| {
        let session = Session { spi, dialect };
        session.check_settings()?;
        run(&session)
    })
    .map_err(|failure| failure.known(statement))
}

/// A name as Postgres knows it: without quotes it is in small letters.
pub(crate) fn plain(name: &Name) -> String {
    if name.quoted { name.value.clone() } else { name.value.to_lowercase() }
}

pub(crate) fn table(parts: &[Name]) -> String {
    parts.iter().map(|p| quote(&plain(p))).collect::<Vec<_>>().join(".")
}

impl Session<'_> {
    /// Statements are written for texts and numbers as Postgres reads and prints them without being told otherwise.
    fn check_settings(&self) -> Result<(), Failure> {
        let sql = "SELECT current_setting('standard_conforming_strings') = 'off', current_setting('extra_float_digits')::int < 1";
        let found = self.spi.texts(sql, &[])?;
        let settings = ["standard_conforming_strings = on", "extra_float_digits = 1"];
        match found.iter().flatten().zip(settings).find(|(wrong, _)| wrong.as_deref() == Some("t")) {
            None => Ok(()),
            Some((_, setting)) => {
                let message = "the session reads texts or prints numbers in a way that changes values";
                Err(Diagnostic::new(Code::Unsupported, message).help(format!("SET {setting}")).into())
            }
        }
    }

    fn own(&self, name: &str) -> String {
        format!("{}.{name}", quote(&self.dialect.schema))
    }

    /// Strategies that users defined in this database.
    pub(crate) fn strategies(&self) -> Result<UserStrategies, Failure> {
        Ok(self.defined()?.0)
    }

    /// Those strategies, and what is behind AS of each.
    pub(crate) fn defined(&self) -> Result<(UserStrategies, BTreeMap<String, String>), Failure> {
        let (mut user, mut texts) = (UserStrategies::new(), BTreeMap::new());
        for row in self.spi.texts(&format!("SELECT definition FROM {}", self.own("mergeql_user_strategies")), &[])? {
            let [Some(definition)] = row.as_slice() else { continue };
            if let Statement::CreateStrategy { name, body, text, .. } = parse(definition)? {
                texts.insert(name.value.clone(), text);
                user.insert(name.value, body);
            }
        }
        Ok((user, texts))
    }

    fn lower(&self, statement: &str) -> Result<Lowered, Failure> {
        Ok(match parse(statement)? {
            Statement::Merge { explain: Explain::No, merge } if merge.into.is_some() => Lowered::Commands(self.create(&merge)?),
            Statement::Merge { explain, merge } => Lowered::Query(self.query(&merge, explain)?),
            Statement::MergeInto { explain: Explain::No, target, merge } => Lowered::command(self.merge_into(&target, &merge)?),
            Statement::MergeInto { explain, target, merge } => {
                let (plan, _) = self.bind_target(&target, &merge, explain)?;
                Lowered::Query(self.explained(&plan, explain)?)
            }
            Statement::Sql(pieces) => {
                let sql = self.pieces(&pieces)?;
                if reads(statement) { Lowered::Query(sql) } else { Lowered::command(sql) }
            }
            Statement::ShowStrategies => Lowered::Query(format!("SELECT * FROM {}()", self.own("mergeql_strategies"))),
            Statement::CreateStrategy { or_replace, name, body, .. } => {
                Lowered::command(self.create_strategy(statement, or_replace, &name, &body)?)
            }
            Statement::DropStrategy { if_exists, name } => {
                let name = match find_strategy(&self.strategies()?, &name) {
                    Err(error) if error.code != Code::UnknownStrategy || !if_exists => return Err(error.into()),
                    Err(_) => literal(&name.value),
                    Ok(own) => literal(own),
                };
                Lowered::command(format!("DELETE FROM {} WHERE name = {name}", self.own("mergeql_user_strategies")))
            }
            Statement::MergeModels { .. } => {
                return Err(Diagnostic::new(Code::Unsupported, "files of models are merged outside of the database")
                    .help("run the statement in the mergeql program")
                    .into());
            }
            Statement::Verify { name, .. } => {
                return Err(Diagnostic::at(Code::Unsupported, name.span, "Postgres cannot evaluate a strategy here to verify it")
                    .help("verify it in the mergeql program")
                    .into());
            }
        })
    }

    fn create_strategy(&self, statement: &str, or_replace: bool, name: &Name, body: &StrategyBody) -> Result<String, Failure> {
        check_unverified(&self.strategies()?, or_replace, name, body, "Postgres")?;
        Ok(format!(
            "INSERT INTO {} (name, definition) VALUES ({}, {}) ON CONFLICT (name) DO UPDATE SET definition = EXCLUDED.definition",
            self.own("mergeql_user_strategies"),
            literal(&name.value),
            literal(statement.trim().trim_end_matches(';')),
        ))
    }

    /// SQL with every merge in it lowered.
    fn pieces(&self, pieces: &[Piece]) -> Result<String, Failure> {
        let mut sql = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => sql.push_str(text),
                Piece::Merge(merge) => sql.push_str(&self.query(merge, Explain::No)?),
            }
        }
        Ok(sql)
    }

    // Sources.

    /// The schema and name of the table or view that a name means here.
    pub(crate) fn find(&self, name: &str) -> Result<Option<(String, String)>, Failure> {
        let sql = "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                   WHERE c.oid = pg_catalog.to_regclass($1)";
        let rows = self.spi.texts(sql, &[name])?;
        Ok(rows.into_iter().next().and_then(|row| match <[Option<String>; 2]>::try_from(row) {
            Ok([Some(schema), Some(name)]) => Some((schema, name)),
            _ => None,
        }))
    }

    fn unknown(&self, shown: &str, span: Span) -> Result<Failure, Failure> {
        let sql = "SELECT relname FROM pg_catalog.pg_class \
                   WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_catalog.pg_table_is_visible(oid) \
                   AND relnamespace <> 'pg_catalog'::pg_catalog.regnamespace";
        let names: Vec<String> = self.spi.texts(sql, &[])?.into_iter().flatten().flatten().collect();
        let mut diagnostic = Diagnostic::at(Code::UnknownSource, span, format!("there is no table or view `{shown}`"));
        if let Some(name) = nearest(shown, names.iter().map(String::as_str)) {
            diagnostic = diagnostic.label(format!("did you mean `{name}`?"));
        }
        Ok(diagnostic.into())
    }

    pub(crate) fn describe(&self, source: &Written) -> Result<Described, Failure> {
        let (sql, found) = match source {
            Written::Table(parts) => {
                let name = table(parts);
                let shown = parts.iter().map(|p| p.value.as_str()).collect::<Vec<_>>().join(".");
                let span = parts.first().map(|p| p.span).unwrap_or_default();
                match self.find(&name)? {
                    Some(found) => (name, Some(found)),
                    None => return Err(self.unknown(&shown, span)?),
                }
            }
            Written::Text(name) => match self.find(&quote(&name.value))? {
                Some(found) => (quote(&name.value), Some(found)),
                None if name.value.contains(['.', '/']) => {
                    return Err(Diagnostic::at(Code::Unsupported, name.span, "Postgres reads no files here")
                        .help("COPY it into a table, or make it a foreign table (file_fdw)")
                        .into());
                }
                None => return Err(self.unknown(&name.value, name.span)?),
            },
            Written::Query(pieces) => (format!("({})", self.pieces(pieces)?), None),
        };
        let mut columns = self.spi.prepare(&format!("SELECT * FROM {sql} AS s"))?.columns();
        // Of a table that keeps states, a merge reads the values.
        let kept = match &found {
            Some(table) if columns.iter().any(|c| c.name == STATE) => self.resolution(table)?,
            _ => None,
        };
        if kept.is_some() {
            columns.retain(|c| c.name != STATE);
        }
        // What a foreign server holds, or tables that inherit, a NOT NULL says nothing of.
        let not_null = match &found {
            Some((schema, name)) => {
                let sql = "SELECT a.attname FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
                           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                           WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND a.attnotnull \
                           AND c.relkind IN ('r', 'p', 'm') AND (c.relkind = 'p' OR NOT c.relhassubclass) \
                           AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k \
                           WHERE k.conrelid = c.oid AND k.contype = 'n' AND NOT k.convalidated)";
                self.spi.texts(sql, &[schema, name])?.into_iter().flatten().flatten().collect()
            }
            None => Vec::new(),
        };
        let reserved = |c: &&Column| c.name.starts_with("__mergeql_");
        if let Some(column) = columns.iter().find(reserved) {
            return Err(Diagnostic::new(Code::Unsupported, format!("the column `{}` has a name that is reserved", column.name))
                .help("give it another name in a source query")
                .into());
        }
        let column = |c: &Column| {
            let ty = PgType::of(c.oid, c.typmod).map_err(|f| f.about(&c.name))?.ty;
            Ok(SourceColumn { name: c.name.clone(), ty, nullable: !not_null.contains(&c.name) })
        };
        let relation = Relation {
            sql,
            origin: found.as_ref().map(|(schema, name)| format!("{schema}.{name}")),
            columns: columns.iter().map(column).collect::<Result<_, Failure>>()?,
            rows: None,
            reading: Reading::Any,
        };
        Ok(Described { relation, columns, table: found, kept })
    }

    // Queries.

    fn query(&self, merge: &Merge, explain: Explain) -> Result<String, Failure> {
        let described = merge.sources.iter().map(|s| self.describe(&s.relation)).collect::<Result<Vec<_>, _>>()?;
        let relations = described.iter().map(|d| d.relation.clone()).collect();
        let plan = bind(merge, relations, false, &self.strategies()?, explain)?;
        if explain != Explain::No {
            return self.explained(&plan, explain);
        }
        Ok(self.typed(&plan, &described, &Lowering { plan: &plan, dialect: &self.dialect }.query(), &[]))
    }

    /// Columns that the merge took as text (`jsonb`, enums, `char(n)`) in the one type that all their sources have.
    pub(crate) fn typed(&self, plan: &Plan, described: &[Described], query: &str, more: &[&str]) -> String {
        if plan.returning != Returning::Rows {
            return query.to_owned();
        }
        let theirs = |column: usize| {
            let mut types = plan.sources.iter().filter_map(|source| {
                let at = source.columns[column]?;
                let column = described.iter().find(|d| d.relation == source.relation)?.columns.get(at)?;
                let ty = PgType::of(column.oid, column.typmod).ok()?;
                matches!(ty.form, Form::Printed | Form::Padded)
                    .then(|| type_name(column.oid, column.typmod))
                    .or(Some(String::new()))
            });
            let first = types.next()?;
            (!first.is_empty() && types.all(|t| t == first)).then_some(first)
        };
        let keys = (0..plan.key).map(|i| (plan.columns[i].name.as_str(), theirs(i)));
        // What a strategy makes of several values need not be one of the type.
        let kept = |c: &mergeql_lang::plan::Cell| {
            c.ty == Type::Text && c.call.value_type() == Type::Text && c.entry.spec().selects && c.fold.is_none()
        };
        let cells = plan.cells.iter().map(|c| (c.name.as_str(), c.column.filter(|_| kept(c)).and_then(theirs)));
        let columns: Vec<(&str, Option<String>)> = keys.chain(cells).collect();
        if columns.iter().all(|(_, ty)| ty.is_none()) {
            return query.to_owned();
        }
        let column = |(name, ty): &(&str, Option<String>)| match ty {
            Some(ty) => format!("CAST({0} AS {ty}) AS {0}", quote(name)),
            None => quote(name),
        };
        let columns: Vec<String> = columns.iter().map(column).chain(more.iter().map(|c| (*c).to_owned())).collect();
        format!("SELECT {} FROM ({query}) AS m", columns.join(", "))
    }

    /// How many rows a source has; of a large table, about how many.
    fn count(&self, sql: &str) -> Result<String, Failure> {
        const LARGE: &str = "100000";
        let table = match sql.starts_with('(') {
            true => None,
            false => {
                let known = "SELECT (reltuples >= $2::real)::text, reltuples::bigint::text FROM pg_catalog.pg_class \
                             WHERE oid = pg_catalog.to_regclass($1) AND relkind IN ('r', 'p', 'm')";
                self.spi.texts(known, &[sql, LARGE])?.into_iter().next()
            }
        };
        let about = match table.as_deref() {
            // A query may do more than read: EXPLAIN runs none.
            None => self.guessed(sql)?,
            Some([Some(large), about]) if large == "true" => about.clone(),
            Some(_) => None,
        };
        if let Some(about) = about {
            return Ok(format!("about {about}"));
        }
        let exact = self.spi.texts(&format!("SELECT pg_catalog.count(*) FROM {sql} AS s"), &[])?;
        Ok(exact.into_iter().flatten().flatten().next().unwrap_or_default())
    }

    /// How many rows Postgres' planner expects of a query.
    fn guessed(&self, sql: &str) -> Result<Option<String>, Failure> {
        let plan = self.spi.texts(&format!("EXPLAIN (FORMAT JSON) SELECT * FROM {sql} AS s"), &[])?;
        let plan: String = plan.into_iter().flatten().flatten().collect();
        let plan: Option<serde_json::Value> = serde_json::from_str(&plan).ok();
        Ok(plan.map(|plan| plan[0]["Plan"]["Plan Rows"].to_string()))
    }

    /// The plan as rows of (item, detail): what is merged how, then Postgres' own plan.
    fn explained(&self, plan: &Plan, explain: Explain) -> Result<String, Failure> {
        let query = Lowering { plan, dialect: &self.dialect }.query();
        let counts = plan.sources.iter().map(|s| Ok((s.relation.sql.clone(), self.count(&s.relation.sql)?)));
        let counts = counts.collect::<Result<BTreeMap<_, _>, Failure>>()?;
        let mut lines = plan.describe(|source| counts.get(&source.relation.sql).cloned());
        lines.push(("sql".to_owned(), query.clone()));
        let analyze = if explain == Explain::Analyze { "(ANALYZE) " } else { "" };
        // One statement, and nothing behind it.
        self.spi.prepare(&query)?;
        for row in self.spi.texts(&format!("EXPLAIN {analyze}{query}"), &[])? {
            lines.push(("plan".to_owned(), row.into_iter().flatten().collect()));
        }
        let rows: Vec<String> = lines.iter().map(|(item, detail)| format!("({}, {})", literal(item), literal(detail))).collect();
        Ok(format!("SELECT * FROM (VALUES {}) AS t(item, detail)", rows.join(", ")))
    }
}

// What users call.

fn sql(call: Call) -> Outcome {
    let statement = call.text(0)?;
    let sql = with_session(call, &statement, |session| session.lower(&statement).map(Lowered::sql))?;
    Ok(Some(bytes(sql.as_bytes())))
}

/// Functions that take MergeQL run no other SQL: whoever passes on what users wrote relies on it.
///
/// # Errors
/// `unsupported` for a statement without a merge in it.
fn check_ours(statement: &str) -> Result<(), Failure> {
    match parse(statement)? {
        Statement::Sql(pieces) if !pieces.iter().any(|p| matches!(p, Piece::Merge(_))) => {
            Err(Diagnostic::new(Code::Unsupported, "this is no statement of MergeQL").help("run it by itself").into())
        }
        _ => Ok(()),
    }
}

/// How the columns of a merge become those that the caller asks for.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    /// `AS t(a int, ...)`: by position.
    Listed,
    /// `NULL::rowtype`: by name.
    Row,
    /// Each row as JSON.
    Json,
}

fn rows(call: Call, shape: Shape) -> Outcome {
    let statement = call.text(usize::from(shape == Shape::Row))?;
    let expected = call.expected("SELECT * FROM mergeql('MERGE ...') AS t(id int, ...)")?;
    call.give_rows(|store, _| {
        with_session(call, &statement, |session| {
            check_ours(&statement)?;
            let Lowered::Query(sql) = session.lower(&statement)? else {
                return Err(Diagnostic::new(Code::Unsupported, "a function in FROM cannot write")
                    .help("CALL mergeql_into('...')")
                    .into());
            };
            let sql = match shape {
                Shape::Json => format!("SELECT pg_catalog.to_jsonb(m) FROM ({sql}) AS m"),
                _ => {
                    let found = session.spi.prepare(&sql)?.columns();
                    format!("SELECT {} FROM ({sql}) AS m", cast(&found, &expected, shape)?)
                }
            };
            // SAFETY: the store is the one of this call, and the columns are its.
            unsafe { session.spi.prepare(&sql)?.store(store) }
        })
    })
}

/// The columns of a merge, cast to those that are expected.
fn cast(found: &[Column], expected: &[Option<Column>], shape: Shape) -> Result<String, Failure> {
    let shown: Vec<String> = found.iter().map(|c| format!("{} {}", quote(&c.name), type_name(c.oid, c.typmod))).collect();
    let help = format!("its columns are ({})", shown.join(", "));
    if shape == Shape::Listed && found.len() != expected.len() {
        let message = format!("the statement has {} columns, and {} are listed", found.len(), expected.len());
        return Err(Diagnostic::new(Code::TypeMismatch, message).help(help).into());
    }
    if let (Shape::Row, Some(column)) = (shape, found.iter().find(|c| !expected.iter().flatten().any(|e| e.name == c.name))) {
        let message = format!("the row type has no column `{}`", column.name);
        return Err(Diagnostic::new(Code::UnknownColumn, message).help(help).into());
    }
    let one = |(i, e): (usize, &Option<Column>)| {
        // A row keeps the place of a column that was dropped.
        let Some(e) = e else { return Ok(format!("NULL AS __mergeql_dropped_{i}")) };
        let from = if shape == Shape::Listed { found.get(i) } else { found.iter().find(|c| c.name == e.name) };
        let Some(from) = from else { return Ok(format!("CAST(NULL AS {}) AS {}", type_name(e.oid, e.typmod), quote(&e.name))) };
        let value = format!("m.{}", quote(&from.name));
        Ok(format!(
            "{} AS {}",
            assigned(&value, from, e).ok_or_else(|| {
                let (is, asked) = (type_name(from.oid, from.typmod), type_name(e.oid, e.typmod));
                Diagnostic::new(Code::TypeMismatch, format!("`{}` is {is}, which no {asked} holds", from.name)).help(help.clone())
            })?,
            quote(&e.name)
        ))
    };
    let columns = expected.iter().enumerate().map(one).collect::<Result<Vec<_>, Box<Diagnostic>>>()?;
    Ok(columns.join(", "))
}

/// A column's value in another type, as INSERT would put it there: a text that is too long is an error, not cut. `None` where INSERT would
/// refuse the type; a text may be read as any, for strategies give JSON and lists as text.
fn assigned(value: &str, from: &Column, to: &Column) -> Option<String> {
    let mut typmod = to.typmod;
    // SAFETY: Postgres looks the types up; OIDs come from it.
    let (source, target, casts) = unsafe {
        let (source, target) = (pg_sys::getBaseType(from.oid), pg_sys::getBaseTypeAndTypmod(to.oid, &mut typmod));
        let mut function = pg_sys::InvalidOid;
        let assignment = pg_sys::CoercionContext::COERCION_ASSIGNMENT;
        let path = pg_sys::find_coercion_pathway(target, source, assignment, &mut function);
        (source, target, path != pg_sys::CoercionPathType::COERCION_PATH_NONE)
    };
    let ty = type_name(to.oid, to.typmod);
    match target {
        pg_sys::VARCHAROID if typmod >= 0 => {
            Some(format!("CAST(pg_catalog.varchar(CAST({value} AS varchar), {typmod}, false) AS {ty})"))
        }
        pg_sys::BPCHAROID if typmod >= 0 => {
            Some(format!("CAST(pg_catalog.bpchar(CAST({value} AS bpchar), {typmod}, false) AS {ty})"))
        }
        _ if casts || matches!(source, pg_sys::TEXTOID | pg_sys::TEXTARRAYOID) || source == target => {
            Some(format!("CAST({value} AS {ty})"))
        }
        _ => None,
    }
}

/// `CALL mergeql_into(statement)`: runs a statement that writes. Sessions that merge into one table wait for each other, and then see
/// what the other wrote.
fn into(call: Call) -> Outcome {
    let statement = call.text(0)?;
    with_session(call, &statement, |session| {
        check_ours(&statement)?;
        if let Statement::MergeInto { target: Written::Table(parts), explain: Explain::No, merge } = parse(&statement)? {
            let name = table(&parts);
            if session.find(&name)?.is_some() {
                // Nothing of the table is locked before, not even to read its columns: two sessions that both want more than they
                // have would wait for each other for ever.
                let mode = if mergeql_lang::grows(&merge) { "ACCESS EXCLUSIVE" } else { "SHARE ROW EXCLUSIVE" };
                session.spi.run(&format!("LOCK TABLE {name} IN {mode} MODE"))?;
            }
            // An unknown table is told in our words.
            let into = session.describe(&Written::Table(parts.clone()))?;
            session.check_snapshot(&into, &merge)?;
            session.extend(&name, &into, &merge)?;
        }
        match session.lower(&statement)? {
            Lowered::Commands(all) => all.iter().try_for_each(|sql| session.spi.run(sql).map(drop)),
            Lowered::Query(_) => {
                Err(Diagnostic::new(Code::Unsupported, "this statement writes nothing").help("SELECT * FROM mergeql('...')").into())
            }
        }
    })?;
    Ok(None)
}

/// `CALL mergeql_create(kind, name, statement)`
fn create(call: Call) -> Outcome {
    let (kind, name, statement) = (call.text(0)?, call.text(1)?, call.text(2)?);
    let kind = match kind.to_ascii_lowercase().split_whitespace().collect::<Vec<_>>().as_slice() {
        ["view"] => "VIEW",
        ["materialized", "view"] => "MATERIALIZED VIEW",
        ["table"] => "TABLE",
        _ => {
            return Err(Diagnostic::new(Code::InvalidArgument, format!("`{kind}` cannot be made of a merge"))
                .help("'view', 'materialized view' or 'table'")
                .into());
        }
    };
    with_session(call, &statement, |session| {
        check_ours(&statement)?;
        let parts = session.spi.texts("SELECT pg_catalog.unnest(pg_catalog.parse_ident($1))", &[&name])?;
        let parts: Vec<String> = parts.into_iter().flatten().flatten().map(|p| quote(&p)).collect();
        let Lowered::Query(sql) = session.lower(&statement)? else {
            return Err(Diagnostic::new(Code::Unsupported, "this statement gives no rows").into());
        };
        session.spi.run(&format!("CREATE {kind} {} AS {sql}", parts.join("."))).map(drop)
    })?;
    Ok(None)
}

crate::functions! {
    /// `mergeql_sql(statement)`: the plain SQL that a statement stands for.
    mergeql_statement_sql, pg_finfo_mergeql_statement_sql => sql;
    /// `mergeql(statement)`: its rows, in columns that the caller lists.
    mergeql_statement_rows, pg_finfo_mergeql_statement_rows => |call| rows(call, Shape::Listed);
    /// `mergeql(NULL::rowtype, statement)`: its rows in that type.
    mergeql_statement_typed, pg_finfo_mergeql_statement_typed => |call| rows(call, Shape::Row);
    /// `mergeql_json(statement)`: its rows as JSON.
    mergeql_statement_json, pg_finfo_mergeql_statement_json => |call| rows(call, Shape::Json);
    /// `CALL mergeql_into(statement)`
    mergeql_statement_into, pg_finfo_mergeql_statement_into => into;
    /// `CALL mergeql_create(kind, name, statement)`
    mergeql_statement_create, pg_finfo_mergeql_statement_create => create;
}
