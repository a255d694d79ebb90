//! What a replicated table is: its key, its columns and their strategies, and the triggers that note writes.

use super::Result;
use crate::values::shown;
use mergeql_lang::ast::{Argument, Statement};
use mergeql_lang::lower::quote;
use mergeql_lang::{Diagnostic, parse};
use mergeql_udfs::catalog::{self, Entry, Input};
use mergeql_udfs::codec::Writer;
use mergeql_udfs::{Code, Value};
use rusqlite::{Connection, OptionalExtension};

/// A column of a table.
pub(super) struct Column {
    pub name: String,
    /// Its place in the primary key, from one; zero if it is not in it.
    key: u32,
}

/// A replicated column.
pub(super) struct Tracked {
    pub name: String,
    pub entry: &'static Entry,
    /// Literal arguments of its strategy.
    pub literals: Vec<Value>,
}

/// A replicated table.
pub(super) struct Definition {
    pub table: String,
    pub key: Vec<String>,
    pub columns: Vec<Tracked>,
    /// As they were written.
    pub strategies: Vec<String>,
}

/// Columns beyond these are noted as one.
const BITS: usize = 60;

/// How a key of several columns is one value.
pub(super) fn key(parts: &[Value]) -> Value {
    match parts {
        [one] => one.clone(),
        parts => {
            let mut writer = Writer::default();
            writer.values(parts);
            Value::Bytes(writer.as_bytes().into())
        }
    }
}

/// The parts of a key.
pub(super) fn key_parts(pk: &rusqlite::types::Value, n: usize) -> Result<Vec<rusqlite::types::Value>> {
    use rusqlite::types::Value as Plain;
    match (pk, n) {
        (one, 1) => Ok(vec![one.clone()]),
        (Plain::Blob(bytes), n) => {
            let mut reader = mergeql_udfs::codec::Reader::new(bytes);
            let parts = reader.values().map_err(shown)?;
            reader.end().map_err(shown)?;
            if parts.len() != n {
                return Err(shown(Diagnostic::new(Code::TypeMismatch, "a key of another number of columns")));
            }
            parts.into_iter().map(crate::values::plain).collect()
        }
        _ => Err(shown(Diagnostic::new(Code::TypeMismatch, "a key of several columns is bytes"))),
    }
}

/// The columns of a table.
pub(super) fn columns(connection: &Connection, table: &str) -> Result<Vec<Column>> {
    let mut statement = connection.prepare("SELECT name, pk FROM pragma_table_xinfo(?1, 'main') WHERE hidden = 0")?;
    statement.query_map([table], |row| Ok(Column { name: row.get(0)?, key: row.get(1)? }))?.collect()
}

/// `a lww, b priority('x', 'y')` at its commas.
pub(super) fn split(strategies: &str) -> Vec<String> {
    let (mut parts, mut depth, mut quoted, mut current) = (Vec::new(), 0, false, String::new());
    for c in strategies.chars() {
        match c {
            '\'' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                parts.push(std::mem::take(&mut current));
                continue;
            }
            _ => {}
        }
        current.push(c);
    }
    parts.push(current);
    parts.into_iter().map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect()
}

impl Definition {
    /// Reads what is asked for, against the table.
    ///
    /// # Errors
    /// `unknown_source`, `unknown_column`, `unknown_strategy`, `unsupported`.
    pub fn read(connection: &Connection, table: &str, strategies: &str) -> Result<Definition> {
        let sql = "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
        let name: Option<String> = connection.query_row(sql, [table], |row| row.get(0)).optional()?;
        let Some(name) = name else {
            return Err(shown(Diagnostic::new(Code::UnknownSource, format!("there is no table `{table}` in this database"))));
        };
        let all = columns(connection, &name)?;
        let mut key: Vec<&Column> = all.iter().filter(|c| c.key > 0).collect();
        key.sort_by_key(|c| c.key);
        if key.is_empty() {
            return Err(shown(
                Diagnostic::new(
                    Code::Unsupported,
                    format!("`{name}` has no primary key, so its rows are not the same ones elsewhere"),
                )
                .help("declare one; text or blobs made by every replica for itself (a UUID) never collide"),
            ));
        }
        let unique = "SELECT group_concat(name, ', ') FROM pragma_index_list(?1) WHERE \"unique\" AND origin <> 'pk'";
        if let Some(indexes) = connection.query_row(unique, [&name], |row| row.get::<_, Option<String>>(0))? {
            return Err(shown(
                Diagnostic::new(Code::Unsupported, format!("`{name}` has a UNIQUE constraint beside its key ({indexes})"))
                    .help("two replicas can each add a row that is unique there: no merge could keep both. Drop the constraint"),
            ));
        }
        let mut tracked: Vec<Tracked> = Vec::new();
        let parts = split(strategies);
        for part in &parts {
            let (column, entry, literals) = strategy(part, strategies)?;
            let known = all.iter().find(|c| c.name.eq_ignore_ascii_case(&column));
            let Some(known) = known else {
                return Err(shown(
                    Diagnostic::new(Code::UnknownColumn, format!("`{name}` has no column `{column}`"))
                        .suggest(&column, all.iter().map(|c| c.name.as_str())),
                ));
            };
            if known.key > 0 {
                return Err(shown(Diagnostic::new(Code::InvalidArgument, format!("`{column}` is the key: it has no strategy"))));
            }
            if tracked.iter().any(|t| t.name == known.name) {
                return Err(shown(Diagnostic::new(Code::DuplicateColumn, format!("`{column}` has two strategies"))));
            }
            tracked.push(Tracked { name: known.name.clone(), entry, literals });
        }
        let lww = catalog::find("lww").expect("invariant: lww is built in");
        let rest = all.iter().filter(|c| c.key == 0 && !tracked.iter().any(|t| t.name == c.name));
        let rest: Vec<Tracked> = rest.map(|c| Tracked { name: c.name.clone(), entry: lww, literals: Vec::new() }).collect();
        tracked.extend(rest);
        // In the order of the table, so that a bit means the same however the strategies are written.
        tracked.sort_by_key(|t| all.iter().position(|c| c.name == t.name));
        Ok(Definition { table: name, key: key.into_iter().map(|c| c.name.clone()).collect(), columns: tracked, strategies: parts })
    }

    /// The definition of a table that is replicated, and its number.
    ///
    /// # Errors
    /// As [`Definition::read`].
    pub fn known(connection: &Connection, table: &str) -> Result<Option<(i64, Definition)>> {
        if super::site(connection)?.is_none() {
            return Ok(None);
        }
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?));
        let sql = "SELECT id, name, definition FROM main._mergeql_tables WHERE name = ?1";
        match connection.prepare_cached(sql)?.query_row([table], row).optional()? {
            Some((id, name, definition)) => Ok(Some((id, Definition::read(connection, &name, &definition)?))),
            None => Ok(None),
        }
    }

    /// The key of a row as SQL.
    pub fn key_of(&self, row: &str) -> String {
        let parts: Vec<String> = self.key.iter().map(|k| format!("{row}.{}", quote(k))).collect();
        match parts.as_slice() {
            [one] => one.clone(),
            parts => format!("mergeql_key({})", parts.join(", ")),
        }
    }

    fn trigger(&self, event: &str) -> String {
        quote(&format!("_mergeql_{}_{event}", self.table))
    }

    /// The columns that a note is about.
    pub fn noted(&self, columns: i64) -> impl Iterator<Item = &Tracked> {
        self.columns.iter().enumerate().filter(move |(i, _)| columns >> (*i).min(BITS) & 1 == 1).map(|(_, c)| c)
    }

    /// Makes the triggers: a note of the columns that changed, of a new row (all bits), or of a row that is gone (none).
    ///
    /// # Errors
    /// SQLite's.
    pub fn add_triggers(&self, connection: &Connection, id: i64) -> Result<()> {
        let table = quote(&self.table);
        let note =
            |key: &str, columns: &str| format!("INSERT INTO _mergeql_log VALUES (NULL, {id}, {key}, {columns}, mergeql_clock());");
        let same_key: Vec<String> = self.key.iter().map(|k| format!("NEW.{0} IS OLD.{0}", quote(k))).collect();
        let same_key = same_key.join(" AND ");
        let changed = |i: usize| {
            let name = quote(&self.columns[i].name);
            format!("((NEW.{name} IS NOT OLD.{name}) << {})", i.min(BITS))
        };
        let bits: Vec<String> = (0..self.columns.len()).map(changed).collect();
        let bits = if bits.is_empty() { "0".to_owned() } else { bits.join(" | ") };
        let (new, old) = (self.key_of("NEW"), self.key_of("OLD"));
        // A statement that names no key column changes no key: SQLite leaves the trigger out. An integer key has three more names.
        let keys: Vec<String> = self.key.iter().map(|k| quote(k)).chain(["rowid", "_rowid_", "oid"].map(str::to_owned)).collect();
        let keys = keys.join(", ");
        connection.execute_batch(&format!(
            "CREATE TRIGGER main.{} AFTER INSERT ON {table} WHEN mergeql_tracking() BEGIN {} END;
             CREATE TRIGGER main.{} AFTER UPDATE ON {table} WHEN {same_key} AND ({bits}) <> 0 AND mergeql_tracking() BEGIN {} END;
             CREATE TRIGGER main.{} AFTER UPDATE OF {keys} ON {table} WHEN NOT ({same_key}) AND mergeql_tracking() BEGIN {} {} END;
             CREATE TRIGGER main.{} AFTER DELETE ON {table} WHEN mergeql_tracking() BEGIN {} END;",
            self.trigger("insert"),
            note(&new, "-1"),
            self.trigger("update"),
            note(&new, &bits),
            self.trigger("rekey"),
            note(&old, "0"),
            note(&new, "-1"),
            self.trigger("delete"),
            note(&old, "0"),
        ))
    }

    /// Drops the triggers.
    ///
    /// # Errors
    /// SQLite's.
    pub fn drop_triggers(&self, connection: &Connection) -> Result<()> {
        ["insert", "update", "rekey", "delete"]
            .iter()
            .try_for_each(|event| connection.execute_batch(&format!("DROP TRIGGER IF EXISTS main.{}", self.trigger(event))))
    }

    /// A condition on the key, its parts as parameters from `first` on.
    pub fn where_key(&self, first: usize) -> String {
        let parts = self.key.iter().enumerate().map(|(i, k)| format!("{} = ?{}", quote(k), first + i));
        parts.collect::<Vec<_>>().join(" AND ")
    }
}

/// One `column strategy(...)`.
fn strategy(part: &str, all: &str) -> Result<(String, &'static Entry, Vec<Value>)> {
    let usage = || {
        shown(
            Diagnostic::new(Code::Syntax, format!("`{part}` is no column with its strategy"))
                .help("write: title lww, votes pncounter"),
        )
    };
    let (column, rest) = part.split_once(char::is_whitespace).ok_or_else(usage)?;
    let statement = format!("MERGE t ON k STRATEGY {column} = {}", rest.trim());
    let merge = match parse(&statement) {
        Ok(Statement::Merge { merge, .. }) => merge,
        _ => return Err(usage()),
    };
    let [(_, call)] = merge.strategies.as_slice() else { return Err(usage()) };
    let name = &call.name.value;
    let entry = catalog::find(name).ok_or_else(|| {
        shown(
            Diagnostic::new(Code::UnknownStrategy, format!("no strategy is called `{name}`"))
                .suggest(name, catalog::names())
                .in_text(all),
        )
    })?;
    let spec = entry.spec();
    // What is in the column must say what was written there. Strategies with one input, whose value is one, do by themselves; `cell` knows
    // what a write of these others means.
    let one = spec.inputs.iter().all(|i| matches!(i, Input::Value | Input::Versions));
    let kept = match spec.name {
        "counter" | "pncounter" | "orset" | "ewflag" | "dwflag" => true,
        "gset" | "all" | "twopset" | "intersect" => false,
        _ => one,
    };
    if !kept {
        return Err(shown(
            Diagnostic::new(Code::Unsupported, format!("a column of a table cannot be a `{}`", spec.name))
                .help("lww, fww, pncounter, counter, orset, ewflag, dwflag, max, min, union and the like can"),
        ));
    }
    let literals = call.args.iter().map(|(_, argument)| match argument {
        Argument::Literal(value, _) => Ok(value.clone()),
        Argument::Name(_) => Err(usage()),
    });
    let literals = literals.collect::<Result<Vec<_>>>()?;
    let column = column.trim_matches('"').to_owned();
    Ok((column, entry, literals))
}
