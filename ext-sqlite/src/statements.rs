//! From a MergeQL statement to SQLite's SQL, on the connection that asks, in its transaction.
#![allow(unsafe_code)]

use crate::kept::{columns_of, edited};
use crate::replicas::atomically;
use crate::sources::{Described, table};
use crate::values::{Answer, shown};
use mergeql_lang::ast::{Explain, Merge, Name, Piece, Relation as Written, Returning, Statement, StrategyBody};
use mergeql_lang::lower::{DELETED, Lowering, STATE, Sqlite, quote, sqlite_type_name, text as literal};
use mergeql_lang::plan::{Plan, Relation};
use mergeql_lang::{
    Diagnostic, Kept, UserStrategies, added_columns, bind, bind_into, check_unverified, find_strategy, parse, reads,
};
use mergeql_udfs::{Code, Type, Value};
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::{Connection, OptionalExtension};
use std::collections::BTreeMap;

/// What goes wrong: in our words, or in SQLite's.
pub type Result<T> = rusqlite::Result<T>;

/// The table that user-defined strategies are kept in.
const STRATEGIES: &str = "_mergeql_strategies";

/// Registers `mergeql_sql` and `mergeql_exec`: never called from a view or a trigger, for they run what they are given.
///
/// # Errors
/// SQLite's.
pub fn register(connection: &Connection) -> Result<()> {
    let direct = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
    connection.create_scalar_function("mergeql_sql", 1, direct, |context| {
        let statement = text(context)?;
        // SAFETY: the connection is used while the function runs, as SQLite allows.
        let connection = unsafe { context.get_connection()? };
        let sql = in_statement(&statement, Session::new(&connection).lower(&statement))?;
        Answer::of(Value::text(sql.into_sql()))
    })?;
    connection.create_scalar_function("mergeql_adopt", 1, direct, |context| {
        let name = text(context)?;
        // SAFETY: as above.
        let connection = unsafe { context.get_connection()? };
        let session = Session::new(&connection);
        Answer::of(Value::Int(atomically(session.connection, || session.adopt(&name))?.into()))
    })?;
    connection.create_scalar_function("mergeql_exec", 1, direct, |context| {
        let statement = text(context)?;
        // SAFETY: as above.
        let connection = unsafe { context.get_connection()? };
        let changed = in_statement(&statement, Session::new(&connection).execute(&statement))?;
        Answer::of(Value::Int(changed.into()))
    })
}

fn text(context: &Context<'_>) -> Result<String> {
    match context.get_raw(0) {
        rusqlite::types::ValueRef::Text(text) => Ok(String::from_utf8_lossy(text).into_owned()),
        _ => Err(shown(Diagnostic::new(Code::InvalidArgument, "a statement is a text"))),
    }
}

/// Errors of ours know the statement that they are in.
pub fn in_statement<T>(statement: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        rusqlite::Error::UserFunctionError(inner) => match inner.downcast::<Diagnostic>() {
            Ok(diagnostic) => shown(diagnostic.in_text(statement)),
            Err(other) => rusqlite::Error::UserFunctionError(other),
        },
        other => other,
    })
}

/// A statement in SQLite's SQL.
pub enum Lowered {
    /// It gives rows.
    Query(String),
    /// Statements that write, in order.
    Script(Vec<String>),
}

impl Lowered {
    fn into_sql(self) -> String {
        match self {
            Lowered::Query(sql) => sql,
            Lowered::Script(statements) => statements.join(";\n"),
        }
    }
}

/// A connection that a statement is for.
pub struct Session<'a> {
    pub(crate) connection: &'a Connection,
    /// Values that key columns are restricted to, as parameters: only rows of these keys are merged.
    pinned: Vec<(String, usize)>,
}

impl<'a> Session<'a> {
    /// A session of this connection.
    pub fn new(connection: &'a Connection) -> Session<'a> {
        Session { connection, pinned: Vec::new() }
    }

    /// The same, for rows whose key columns are equal to parameters.
    pub fn pinned(connection: &'a Connection, pinned: Vec<(String, usize)>) -> Session<'a> {
        Session { connection, pinned }
    }

    fn strategies(&self) -> Result<UserStrategies> {
        Ok(self.defined()?.0)
    }

    /// Strategies that users defined in this database, and what is behind AS of each.
    fn defined(&self) -> Result<(UserStrategies, BTreeMap<String, String>)> {
        let (mut user, mut texts) = (UserStrategies::new(), BTreeMap::new());
        let sql = format!("SELECT name FROM sqlite_schema WHERE name = '{STRATEGIES}'");
        if self.connection.query_row(&sql, [], |_| Ok(())).optional()?.is_none() {
            return Ok((user, texts));
        }
        let mut statement = self.connection.prepare(&format!("SELECT definition FROM main.{STRATEGIES}"))?;
        let definitions = statement.query_map([], |row| row.get::<_, String>(0))?;
        for definition in definitions {
            if let Statement::CreateStrategy { name, body, text, .. } = parse(&definition?).map_err(shown)? {
                texts.insert(name.value.clone(), text);
                user.insert(name.value, body);
            }
        }
        Ok((user, texts))
    }

    /// The SQL that a statement stands for.
    ///
    /// # Errors
    /// The diagnostics of the language, and SQLite's own.
    pub fn lower(&self, statement: &str) -> Result<Lowered> {
        Ok(match parse(statement).map_err(shown)? {
            Statement::Merge { explain: Explain::No, merge } if merge.into.is_some() => Lowered::Script(self.create(&merge)?),
            Statement::Merge { explain, merge } => Lowered::Query(self.query(&merge, explain)?),
            Statement::MergeInto { explain: Explain::No, target, merge } => Lowered::Script(self.merge_into(&target, &merge)?),
            Statement::MergeInto { explain, target, merge } => {
                let (plan, _) = self.bind_target(&target, &merge, explain)?;
                Lowered::Query(self.explained(&plan)?)
            }
            Statement::Sql(pieces) => {
                let sql = self.pieces(&pieces)?;
                if reads(statement) { Lowered::Query(sql) } else { Lowered::Script(vec![sql]) }
            }
            Statement::ShowStrategies => Lowered::Query("SELECT * FROM mergeql_strategies ORDER BY name".to_owned()),
            Statement::CreateStrategy { or_replace, name, body, .. } => {
                Lowered::Script(self.create_strategy(statement, or_replace, &name, &body)?)
            }
            Statement::DropStrategy { if_exists, name } => {
                let own = match find_strategy(&self.strategies()?, &name) {
                    Err(error) if error.code == Code::UnknownStrategy && if_exists => return Ok(Lowered::Script(Vec::new())),
                    Err(error) => return Err(shown(error)),
                    Ok(own) => literal(own),
                };
                Lowered::Script(vec![format!("DELETE FROM main.{STRATEGIES} WHERE name = {own}")])
            }
            Statement::MergeModels { .. } => {
                return Err(shown(
                    Diagnostic::new(Code::Unsupported, "files of models are merged outside of the database")
                        .help("run the statement in the mergeql program"),
                ));
            }
            Statement::Verify { name, .. } => {
                return Err(shown(
                    Diagnostic::at(Code::Unsupported, name.span, "SQLite cannot evaluate a strategy here to verify it")
                        .help("verify it in the mergeql program"),
                ));
            }
        })
    }

    /// Runs a statement that writes; gives back how many rows it changed.
    ///
    /// # Errors
    /// As [`Session::lower`]; then nothing was changed.
    pub fn execute(&self, statement: &str) -> Result<u64> {
        atomically(self.connection, || {
            if let Statement::MergeInto { target, explain: Explain::No, merge } = parse(statement).map_err(shown)? {
                self.extend(&target, &merge)?;
            }
            let Lowered::Script(statements) = self.lower(statement)? else {
                return Err(shown(
                    Diagnostic::new(Code::Unsupported, "this statement writes nothing")
                        .help("CREATE VIRTUAL TABLE temp.m USING mergeql('...'), and read that"),
                ));
            };
            let before = self.connection.total_changes();
            statements.iter().try_for_each(|sql| self.connection.execute_batch(sql))?;
            Ok(self.connection.total_changes() - before)
        })
    }

    fn create_strategy(&self, statement: &str, or_replace: bool, name: &Name, body: &StrategyBody) -> Result<Vec<String>> {
        check_unverified(&self.strategies()?, or_replace, name, body, "SQLite").map_err(shown)?;
        Ok(vec![
            format!("CREATE TABLE IF NOT EXISTS main.{STRATEGIES} (name TEXT PRIMARY KEY, definition TEXT NOT NULL)"),
            format!(
                "INSERT OR REPLACE INTO main.{STRATEGIES} (name, definition) VALUES ({}, {})",
                literal(&name.value),
                literal(statement.trim().trim_end_matches(';'))
            ),
        ])
    }

    pub(crate) fn pieces(&self, pieces: &[Piece]) -> Result<String> {
        let mut sql = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => sql.push_str(text),
                Piece::Merge(merge) => sql.push_str(&self.query(merge, Explain::No)?),
            }
        }
        Ok(sql)
    }

    // Queries.

    fn query(&self, merge: &Merge, explain: Explain) -> Result<String> {
        let plan = self.bind(merge, explain)?;
        if explain != Explain::No {
            return self.explained(&plan);
        }
        Ok(Lowering { plan: &plan, dialect: &Sqlite }.query())
    }

    /// What is known of the sources of a statement, behind the columns of its target if it has one. SQLite's names are the same in any
    /// case of letters; the first spelling is the name.
    fn relations(&self, target: Option<&Relation>, merge: &Merge) -> Result<Vec<Relation>> {
        let mut spellings: Vec<String> = target.into_iter().flat_map(|t| &t.columns).map(|c| c.name.clone()).collect();
        let mut relations = Vec::new();
        for source in &merge.sources {
            let mut relation = self.describe(&source.relation)?.relation;
            for column in &mut relation.columns {
                match spellings.iter().find(|s| s.eq_ignore_ascii_case(&column.name)) {
                    Some(known) => column.name.clone_from(known),
                    None => spellings.push(column.name.clone()),
                }
            }
            relations.push(relation);
        }
        Ok(relations)
    }

    fn bind(&self, merge: &Merge, explain: Explain) -> Result<Plan> {
        let relations = self.relations(None, merge)?;
        let mut plan = bind(merge, relations, false, &self.strategies()?, explain).map_err(shown)?;
        for source in &mut plan.sources {
            let condition = |(name, parameter): &(String, usize)| {
                let at = plan.columns[..plan.key].iter().position(|c| c.name == *name)?;
                Some(match source.columns[at] {
                    Some(at) => format!("{} = ?{parameter}", quote(&source.relation.columns[at].name)),
                    None => "false".to_owned(),
                })
            };
            let conditions: Vec<String> = self.pinned.iter().filter_map(condition).collect();
            if !conditions.is_empty() {
                source.relation.sql = format!("(SELECT * FROM {} WHERE {})", source.relation.sql, conditions.join(" AND "));
            }
        }
        Ok(plan)
    }

    /// The columns of a statement's rows, their declared types, and how many of them are the key.
    ///
    /// # Errors
    /// As [`Session::lower`].
    pub fn columns(&self, statement: &str) -> Result<(Vec<(String, String)>, usize)> {
        let typed =
            |plan: &Plan| plan.result_columns().map(|(name, ty)| (name.to_owned(), sqlite_type_name(ty).to_owned())).collect();
        if let Statement::Merge { explain: Explain::No, merge } = parse(statement).map_err(shown)?
            && merge.into.is_none()
        {
            let plan = self.bind(&merge, Explain::No)?;
            if plan.returning == Returning::Rows {
                // With a LIMIT the rows of one key are not those of all.
                let key = if plan.limit.is_none() && plan.offset.is_none() { plan.key } else { 0 };
                return Ok((typed(&plan), key));
            }
        }
        let statement = self.connection.prepare(&self.read(statement)?)?;
        Ok((statement.columns().iter().map(|c| (c.name().to_owned(), c.decl_type().unwrap_or_default().to_owned())).collect(), 0))
    }

    /// The SQL of a statement that gives rows.
    ///
    /// # Errors
    /// As [`Session::lower`].
    pub fn read(&self, statement: &str) -> Result<String> {
        match self.lower(statement)? {
            Lowered::Query(sql) => Ok(sql),
            Lowered::Script(_) => {
                Err(shown(Diagnostic::new(Code::Unsupported, "a virtual table cannot write").help("SELECT mergeql_exec('...')")))
            }
        }
    }

    /// The plan as rows of (item, detail), then SQLite's own plan.
    fn explained(&self, plan: &Plan) -> Result<String> {
        let query = Lowering { plan, dialect: &Sqlite }.query();
        let count =
            |sql: &str| self.connection.query_row(&format!("SELECT count(*) FROM {sql} AS s"), [], |row| row.get::<_, i64>(0));
        let counts = plan.sources.iter().map(|s| Ok((s.relation.sql.as_str(), count(&s.relation.sql)?)));
        let counts = counts.collect::<Result<BTreeMap<_, _>>>()?;
        let mut lines = plan.describe(|source| counts.get(source.relation.sql.as_str()).map(i64::to_string));
        lines.push(("sql".to_owned(), query.clone()));
        let mut statement = self.connection.prepare(&format!("EXPLAIN QUERY PLAN {query}"))?;
        let details = statement.query_map([], |row| row.get::<_, String>(3))?;
        for detail in details {
            lines.push(("plan".to_owned(), detail?));
        }
        let rows: Vec<String> = lines.iter().map(|(item, detail)| format!("({}, {})", literal(item), literal(detail))).collect();
        Ok(format!("SELECT column1 AS item, column2 AS detail FROM (VALUES {})", rows.join(", ")))
    }

    // Writing.

    /// The database and name of a table that is to be made: where it is already, if it is to be replaced.
    fn place(&self, parts: &[Name], replaces: bool) -> Result<(String, String)> {
        let names: Vec<String> = parts.iter().map(|p| p.value.clone()).collect();
        let found = if replaces { self.find(&names)? } else { None };
        Ok(found.unwrap_or_else(|| match &names[..] {
            [database, name] => (database.clone(), name.clone()),
            _ => ("main".to_owned(), names.last().cloned().unwrap_or_default()),
        }))
    }

    /// `MERGE ... INTO table`
    fn create(&self, merge: &Merge) -> Result<Vec<String>> {
        let Some(into) = &merge.into else { return Ok(Vec::new()) };
        let Written::Table(parts) = &into.target else {
            return Err(shown(
                Diagnostic::at(Code::Unsupported, into.span, "SQLite writes no files here")
                    .help("write into a table, and .output that"),
            ));
        };
        let place = self.place(parts, into.or_replace)?;
        let name = format!("{}.{}", quote(&place.0), quote(&place.1));
        let relations = self.relations(None, merge)?;
        let (user, texts) = self.defined()?;
        let plan = bind(merge, relations, false, &user, Explain::No).map_err(shown)?;
        let lowering = Lowering { plan: &plan, dialect: &Sqlite };
        if plan.keeps_state() {
            return self.create_kept(&place, into, &lowering, &Kept::resolution(merge, &plan, &user, &texts));
        }
        let query = lowering.query();
        if !into.or_replace {
            let exists = if into.if_not_exists { "IF NOT EXISTS " } else { "" };
            return Ok(vec![format!("CREATE TABLE {exists}{name} AS {query}")]);
        }
        // The old table may be a source.
        let fresh = quote("__mergeql_fresh");
        Ok(vec![
            format!("CREATE TEMP TABLE {fresh} AS {query}"),
            format!("DROP TABLE IF EXISTS {name}"),
            format!("CREATE TABLE {name} AS SELECT * FROM temp.{fresh}"),
            format!("DROP TABLE temp.{fresh}"),
        ])
    }

    /// The plan of MERGE INTO, and its target; where that keeps states, it is no source of the plan.
    fn bind_target(&self, target: &Written, merge: &Merge, explain: Explain) -> Result<(Plan, Described)> {
        let into = self.describe(target)?;
        let Some((_, name)) = into.table.clone() else {
            return Err(shown(Diagnostic::new(Code::Unsupported, "MERGE INTO needs a table")));
        };
        let names: Vec<String> = into.relation.columns.iter().map(|c| c.name.clone()).collect();
        Kept::check_known(&name, &names, into.kept.as_deref()).map_err(shown)?;
        let sources = self.relations(Some(&into.relation), merge)?;
        let mut relations = [vec![into.relation.clone()], sources].concat();
        // Which numbers a column takes does not follow from those that it holds.
        let is_key = |name: &str| merge.key.iter().any(|key| key.means(name));
        relations[0]
            .columns
            .iter_mut()
            .filter(|c| into.whole.contains(&c.name) && !is_key(&c.name))
            .for_each(|c| c.ty = Type::Null);
        if let Some(kept) = &into.kept {
            let kept = Kept::read(&name, kept).map_err(shown)?;
            let (user, texts) = self.defined()?;
            let merge = kept.applied(&name, merge.clone(), &user, &texts).map_err(shown)?;
            let plan = kept.bind(&merge, relations.remove(0), relations, explain).map_err(shown)?;
            return Ok((plan, into));
        }
        let plan = bind_into(merge, target, &name, relations, &self.strategies()?, explain).map_err(shown)?;
        Ok((plan, into))
    }

    /// Adds the columns that only the sources have, where the statement lets its target grow.
    fn extend(&self, target: &Written, merge: &Merge) -> Result<()> {
        let into = self.describe(target)?;
        let columns: Vec<String> = into.relation.columns.iter().map(|c| c.name.clone()).collect();
        let sources = self.relations(Some(&into.relation), merge)?;
        let Written::Table(parts) = target else { return Ok(()) };
        let (user, texts) = self.defined()?;
        let added = match (&into.kept, &into.table) {
            (Some(kept), Some((_, name))) => Kept::read(name, kept)
                .and_then(|kept| kept.added(&kept.applied(name, merge.clone(), &user, &texts)?, into.relation.clone(), sources)),
            _ => added_columns(merge, &columns, sources, &user),
        };
        for (column, ty) in added.map_err(shown)? {
            let ty = sqlite_type_name(&ty);
            self.connection.execute_batch(&format!("ALTER TABLE {} ADD COLUMN {} {ty}", table(parts), quote(&column)))?;
        }
        Ok(())
    }

    /// `MERGE INTO target USING ...`: rows of the target whose keys the sources have are merged with them into a temporary table; what
    /// changed is updated, what is new inserted.
    fn merge_into(&self, target: &Written, merge: &Merge) -> Result<Vec<String>> {
        let (mut plan, into) = self.bind_target(target, merge, Explain::No)?;
        let kept = into.kept.is_some();
        let buries = kept && plan.delete.is_some();
        let gone = if buries { self.graveyard_of(&into)? } else { String::new() };
        // Deleted rows are not seen.
        let alive = if buries { format!(" AND NOT __mergeql_m.{DELETED}") } else { String::new() };
        let name = match target {
            Written::Table(parts) => table(parts),
            _ => into.relation.sql.clone(),
        };
        let keys: Vec<String> = plan.key_columns().iter().map(|c| quote(&c.name)).collect();
        // By bytes, whatever collation a column has.
        let same =
            |a: &str, b: &str| keys.iter().map(|k| format!("{a}.{k} = {b}.{k} COLLATE BINARY")).collect::<Vec<_>>().join(" AND ");
        let mut script = Vec::new();
        let mut key_sets = Vec::new();
        for source in &plan.sources[usize::from(!kept)..] {
            let column = |(i, key): (usize, &String)| {
                let at = source.columns[i].map(|at| quote(&source.relation.columns[at].name));
                format!("{} AS {key}", at.map_or("NULL".to_owned(), |c| format!("s.{c}")))
            };
            let columns: Vec<String> = keys.iter().enumerate().map(column).collect();
            key_sets.push(format!("SELECT {} FROM {} AS s", columns.join(", "), source.relation.sql));
        }
        let query = if kept {
            let lowering = Lowering { plan: &plan, dialect: &Sqlite };
            script.push(format!("CREATE TEMP TABLE \"__mergeql_contributed\" AS {}", lowering.contributed()));
            let contributed = "temp.\"__mergeql_contributed\"";
            let touched = |table: &str| format!("{contributed} AS k CROSS JOIN {table} AS t ON {}", same("t", "k"));
            let theirs: Vec<String> = keys.iter().map(|k| format!("t.{k}")).collect();
            let known = lowering.unpacked(&theirs, &touched(&name), &edited(&lowering));
            let mut inputs = vec![format!("SELECT * FROM {contributed}"), known];
            if buries {
                inputs.push(lowering.unpacked(&theirs, &touched(&gone), "false"));
            }
            lowering.merged_states(&inputs, |_| "NULL".to_owned())
        } else {
            if !key_sets.is_empty() {
                let rows = &plan.sources[0].relation.sql;
                plan.sources[0].relation.sql =
                    format!("(SELECT t.* FROM ({}) AS k CROSS JOIN {rows} AS t ON {})", key_sets.join(" UNION "), same("t", "k"));
            }
            Lowering { plan: &plan, dialect: &Sqlite }.query()
        };
        let columns = columns_of(&plan);
        let written: Vec<String> = columns.iter().cloned().chain(kept.then(|| quote(STATE))).collect();
        let others: Vec<&String> = written.iter().filter(|c| !keys.contains(c)).collect();
        let fresh = "temp.\"__mergeql_merged\"";
        let null = keys.iter().map(|k| format!("__mergeql_m.{k} IS NULL")).collect::<Vec<_>>().join(" OR ");
        let listed = written.join(", ");
        script.push(format!("CREATE TEMP TABLE \"__mergeql_merged\" AS {query}"));
        if !others.is_empty() {
            let set: Vec<String> = others.iter().map(|c| format!("{c} = __mergeql_m.{c}")).collect();
            let changed: Vec<String> = others.iter().map(|c| format!("{name}.{c} IS NOT __mergeql_m.{c} COLLATE BINARY")).collect();
            // UPDATE names its table without its database.
            let bare = quote(&into.table.as_ref().map(|(_, t)| t.clone()).unwrap_or_default());
            let changed = changed.join(" OR ").replace(&format!("{name}."), &format!("{bare}."));
            script.push(format!(
                "UPDATE {name} SET {} FROM {fresh} AS __mergeql_m WHERE {} AND ({changed}){alive}",
                set.join(", "),
                same("__mergeql_m", &bare)
            ));
        }
        script.push(format!(
            "INSERT INTO {name} ({listed}) SELECT {listed} FROM {fresh} AS __mergeql_m WHERE NOT ({null}){alive} AND NOT EXISTS (SELECT 1 FROM {name} AS t WHERE {})",
            same("t", "__mergeql_m")
        ));
        if self.has_numbered_rows(&into)? {
            // SQLite would give them numbers, new ones each time. The name of the table is what the error says.
            let refused = quote("rows without a key cannot be kept by the number of the row (INTEGER PRIMARY KEY)");
            script.push(format!("CREATE TEMP TABLE {refused} (\"NULL\" NOT NULL)"));
            script.push(format!("INSERT INTO temp.{refused} SELECT NULL FROM {fresh} AS __mergeql_m WHERE {null}"));
            script.push(format!("DROP TABLE temp.{refused}"));
        }
        // Rows without a key match nothing: those that the table has already are left out, or each run would add them again.
        let seen = columns.iter().map(|c| format!("t.{c} IS __mergeql_m.{c} COLLATE BINARY")).collect::<Vec<_>>().join(" AND ");
        script.push(format!(
            "INSERT INTO {name} ({listed}) SELECT DISTINCT {listed} FROM {fresh} AS __mergeql_m WHERE ({null}){alive} AND NOT EXISTS (SELECT 1 FROM {name} AS t WHERE {seen})"
        ));
        if buries {
            let matched = |deleted: &str| {
                format!("EXISTS (SELECT 1 FROM {fresh} AS __mergeql_m WHERE {} AND {deleted})", same("t", "__mergeql_m"))
            };
            script.push(format!("DELETE FROM {name} AS t WHERE {}", matched(&format!("__mergeql_m.{DELETED}"))));
            script.push(format!("DELETE FROM {gone} AS t WHERE {}", matched("true")));
            let buried = format!("{}, {STATE}", keys.join(", "));
            script.push(format!(
                "INSERT INTO {gone} ({buried}) SELECT {buried} FROM {fresh} AS __mergeql_m WHERE __mergeql_m.{DELETED} AND NOT ({null})"
            ));
        }
        script.push(format!("DROP TABLE {fresh}"));
        if kept {
            script.push("DROP TABLE temp.\"__mergeql_contributed\"".to_owned());
        }
        Ok(script)
    }
}
