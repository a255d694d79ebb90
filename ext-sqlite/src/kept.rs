//! Tables that keep states: how their rows are resolved is a comment in the table's own text, which stays with it when it is renamed,
//! dumped or copied; deleted rows lie in a table beside.

use crate::sources::Described;
use crate::statements::{Result, Session};
use crate::values::shown;
use mergeql_lang::ast::{Explain, Into, Name, Relation as Written, Source};
use mergeql_lang::lower::{DELETED, Lowering, STATE, Sqlite, quote, sqlite_type_name};
use mergeql_lang::plan::{Plan, Relation};
use mergeql_lang::{Diagnostic, Kept, Span};
use mergeql_udfs::{Code, Type};
use rusqlite::OptionalExtension;

/// Begins the comment in the text of a table that says how it keeps states.
const COMMENT: &str = "/*mergeql ";

/// The comment in the text of a table that remembers the deleted rows of another.
const GRAVEYARD: &str = "/*deleted rows that a table of MergeQL remembers*/";

/// The name of the table that remembers the deleted rows of a table.
fn graveyard(name: &str) -> String {
    format!("{name}_mergeql_deleted")
}

/// The columns that the rows of a plan show.
pub(crate) fn columns_of(plan: &Plan) -> Vec<String> {
    plan.result_columns().map(|(name, _)| quote(name)).collect()
}

/// A condition on a row `t` of a table that keeps states: its values are not what its states say.
pub(crate) fn edited(lowering: &Lowering<'_>) -> String {
    lowering.edited_row(|_| "NULL".to_owned(), |_, a, b| format!("{a} IS NOT {b} COLLATE BINARY"))
}

impl Session<'_> {
    /// A table whose rows have their states beside them.
    pub(crate) fn create_kept(
        &self,
        place: &(String, String),
        into: &Into,
        lowering: &Lowering<'_>,
        resolution: &str,
    ) -> Result<Vec<String>> {
        let name = format!("{}.{}", quote(&place.0), quote(&place.1));
        let columns = lowering.plan.result_columns();
        let mut declared: Vec<String> = columns.map(|(name, ty)| format!("{} {}", quote(name), sqlite_type_name(ty))).collect();
        declared.push(format!("{STATE} BLOB {COMMENT}{}*/", resolution.replace('\\', "\\\\").replace("*/", "*\\/")));
        let there = self.find(&[place.0.clone(), place.1.clone()])?.is_some();
        let exists = if into.if_not_exists { "IF NOT EXISTS " } else { "" };
        let create = format!("CREATE TABLE {exists}{name} ({})", declared.join(", "));
        if into.if_not_exists && there {
            return Ok(vec![create]);
        }
        let fresh = quote("__mergeql_fresh");
        let mut script = vec![format!("CREATE TEMP TABLE {fresh} AS {}", lowering.rows_and_states())];
        if into.or_replace {
            script.push(format!("DROP TABLE IF EXISTS {name}"));
        }
        script.push(create);
        let shown = columns_of(lowering.plan).join(", ");
        let alive = if lowering.plan.delete.is_some() { format!(" WHERE NOT {DELETED}") } else { String::new() };
        script.push(format!("INSERT INTO {name} SELECT {shown}, {STATE} FROM temp.{fresh}{alive}"));
        if lowering.plan.delete.is_some() {
            script.extend(self.create_graveyard(place, into.or_replace && there, lowering.plan, &format!("temp.{fresh}"))?);
        }
        script.push(format!("DROP TABLE temp.{fresh}"));
        Ok(script)
    }

    /// The table that remembers the deleted rows of a table that is made, or `replaced`.
    fn create_graveyard(&self, place: &(String, String), replaced: bool, plan: &Plan, rows: &str) -> Result<Vec<String>> {
        let found = (place.0.clone(), graveyard(&place.1));
        let gone = format!("{}.{}", quote(&found.0), quote(&found.1));
        let mut script = Vec::new();
        match self.find(&[found.0.clone(), found.1.clone()])?.is_some() {
            true if replaced && self.is_graveyard(&found)? => script.push(format!("DROP TABLE {gone}")),
            true => {
                let message =
                    format!("the table {gone} is there: it remembers deleted rows of a table that was called `{}`", place.1);
                return Err(shown(
                    Diagnostic::new(Code::InvalidArgument, message)
                        .help("drop it if that table is gone, or rename it as that table was renamed"),
                ));
            }
            false => {}
        }
        let keys = plan.key_columns().iter();
        let declared: Vec<String> = keys.map(|c| format!("{} {}", quote(&c.name), sqlite_type_name(&c.ty))).collect();
        let keys: Vec<String> = plan.key_columns().iter().map(|c| quote(&c.name)).collect();
        let not_null = keys.iter().map(|k| format!("{k} IS NOT NULL")).collect::<Vec<_>>().join(" AND ");
        let keys = keys.join(", ");
        // The constraint is an index that needs no name of its own.
        script.push(format!("CREATE TABLE {gone} ({}, {STATE} BLOB {GRAVEYARD}, UNIQUE ({keys}))", declared.join(", ")));
        script.push(format!("INSERT INTO {gone} SELECT {keys}, {STATE} FROM {rows} WHERE {DELETED} AND {not_null}"));
        Ok(script)
    }

    fn is_graveyard(&self, (database, name): &(String, String)) -> Result<bool> {
        let sql = format!("SELECT sql FROM {}.sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE", quote(database));
        let sql = self.connection.query_row(&sql, [name], |row| row.get::<_, String>(0)).optional()?;
        Ok(sql.is_some_and(|sql| sql.contains(GRAVEYARD)))
    }

    /// The table that remembers the deleted rows of a table that keeps states.
    pub(crate) fn graveyard_of(&self, into: &Described) -> Result<String> {
        let Some((database, name)) = &into.table else { return Ok(String::new()) };
        let gone = (database.clone(), graveyard(name));
        if !self.is_graveyard(&gone)? {
            let message = format!("the table `{}` with the deleted rows of `{name}` is not there", gone.1);
            return Err(shown(Diagnostic::new(Code::NotAState, message).help("rename it as its table was renamed")));
        }
        Ok(format!("{}.{}", quote(&gone.0), quote(&gone.1)))
    }

    /// How a table keeps states, if it does.
    pub(crate) fn resolution(&self, (database, name): &(String, String)) -> Result<Option<String>> {
        let sql = format!("SELECT sql FROM {}.sqlite_master WHERE type = 'table' AND name = ?1", quote(database));
        let Some(sql) = self.connection.query_row(&sql, [name], |row| row.get::<_, String>(0)).optional()? else { return Ok(None) };
        let kept = sql.split_once(COMMENT).and_then(|(_, rest)| rest.split_once("*/"));
        Ok(kept.map(|(text, _)| text.replace("*\\/", "*/").replace("\\\\", "\\")))
    }

    /// `mergeql_adopt(table)`: rows that were edited by hand are taken in as rows; how many.
    pub(crate) fn adopt(&self, name: &str) -> Result<u64> {
        let missing = || shown(Diagnostic::new(Code::NotAState, format!("`{name}` is no table that keeps states")));
        let qualified = || name.split_once('.').map(|(database, table)| [database.to_owned(), table.to_owned()]);
        let found = match self.find(std::slice::from_ref(&name.to_owned()))? {
            Some(found) => Some(found),
            None => qualified().map_or(Ok(None), |parts| self.find(&parts))?,
        };
        let found = found.ok_or_else(missing)?;
        let part = |value: &String| Name { value: value.clone(), quoted: true, span: Span::default() };
        let into = self.describe(&Written::Table(vec![part(&found.0), part(&found.1)]))?;
        let kept = Kept::read(name, &into.kept.clone().ok_or_else(missing)?).map_err(shown)?.of_shown();
        let table = format!("{}.{}", quote(&found.0), quote(&found.1));
        let edited_rows = "temp.\"__mergeql_edited\"";
        let mut alone = kept.merge.clone();
        let relation = Written::Query(Vec::new());
        alone.sources = vec![Source { relation, alias: Some(part(&"edited".to_owned())), span: Span::default(), part: false }];
        let rows = Relation { sql: edited_rows.to_owned(), origin: None, ..into.relation.clone() };
        let plan = kept.bind(&alone, into.relation.clone(), vec![rows], Explain::No).map_err(shown)?;
        let lowering = Lowering { plan: &plan, dialect: &Sqlite };
        if let Some(set) = plan.cells.iter().find(|c| c.ty == Type::List(Box::new(c.call.value_type()))) {
            let message = format!("`{}` is a set of values, which cannot be taken in from an edited row here", set.name);
            return Err(shown(Diagnostic::new(Code::Unsupported, message).help("merge the values as rows: MERGE INTO ... USING")));
        }
        let keys: Vec<String> = plan.key_columns().iter().map(|c| quote(&c.name)).collect();
        let same = |a: &str, b: &str| keys.iter().map(|k| format!("{a}.{k} IS {b}.{k}")).collect::<Vec<_>>().join(" AND ");
        let others = format!(
            "{table} AS t WHERE t.{STATE} IS NOT NULL AND EXISTS (SELECT 1 FROM {edited_rows} AS e WHERE {})",
            same("t", "e")
        );
        let theirs: Vec<String> = keys.iter().map(|k| format!("t.{k}")).collect();
        let mut inputs = vec![lowering.contributed(), lowering.unpacked(&theirs, &others, "false")];
        let gone = if plan.delete.is_some() { Some(self.graveyard_of(&into)?) } else { None };
        let touched = format!("WHERE EXISTS (SELECT 1 FROM {edited_rows} AS e WHERE {})", same("t", "e"));
        if let Some(gone) = &gone {
            inputs.push(lowering.unpacked(&theirs, &format!("{gone} AS t {touched}"), "false"));
        }
        let merged = lowering.merged_states(&inputs, |_| "NULL".to_owned());
        let listed: Vec<String> = plan.result_columns().map(|(name, _)| quote(name)).chain([STATE.to_owned()]).collect();
        let listed = listed.join(", ");
        let run = |sql: String| self.connection.execute_batch(&sql);
        run(format!("CREATE TEMP TABLE \"__mergeql_edited\" AS SELECT * FROM {table} AS t WHERE {}", edited(&lowering)))?;
        let count = self.connection.query_row(&format!("SELECT count(*) FROM {edited_rows}"), [], |row| row.get::<_, i64>(0))?;
        run(format!("CREATE TEMP TABLE \"__mergeql_adopted\" AS {merged}"))?;
        run(format!("DELETE FROM {table} AS t {touched}"))?;
        let alive = if gone.is_some() { format!(" WHERE NOT {DELETED}") } else { String::new() };
        run(format!("INSERT INTO {table} ({listed}) SELECT {listed} FROM temp.\"__mergeql_adopted\"{alive}"))?;
        if let Some(gone) = gone {
            run(format!("DELETE FROM {gone} AS t {touched}"))?;
            let buried = format!("{}, {STATE}", keys.join(", "));
            let not_null = keys.iter().map(|k| format!("{k} IS NOT NULL")).collect::<Vec<_>>().join(" AND ");
            run(format!(
                "INSERT INTO {gone} ({buried}) SELECT {buried} FROM temp.\"__mergeql_adopted\" WHERE {DELETED} AND {not_null}"
            ))?;
        }
        run("DROP TABLE temp.\"__mergeql_edited\"; DROP TABLE temp.\"__mergeql_adopted\"".to_owned())?;
        Ok(count.unsigned_abs())
    }
}
