//! What a replicated table is: its key, its columns and their strategies, and the triggers that note writes.

use super::Result;
use crate::values::shown;
use mergeql_lang::ast::{Argument, Statement};
use mergeql_lang::lower::{quote, text};
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
    /// Whether it can hold NULL, as SQLite lets keys.
    nullable: bool,
    /// Whether values stay of the class in which they come: 1 and 1.0 are two then.
    untyped: bool,
    /// What new rows have there, as SQL.
    default: Option<String>,
}

/// A replicated column.
pub(super) struct Tracked {
    pub name: String,
    pub entry: &'static Entry,
    /// Literal arguments of its strategy.
    pub literals: Vec<Value>,
    /// The strategy as it was written.
    written: String,
    /// As of [`Column`].
    untyped: bool,
    /// As of [`Column`].
    pub default: Option<String>,
}

/// A replicated table.
pub(super) struct Definition {
    pub table: String,
    pub key: Vec<String>,
    /// Those of them that can hold NULL.
    nullable: Vec<String>,
    pub columns: Vec<Tracked>,
    /// The statements that write one of the columns, by its value and then the key.
    sets: Vec<String>,
    /// As they were written.
    pub strategies: Vec<String>,
}

/// Columns beyond these are noted as one.
const BITS: usize = 60;

/// Arguments of one call, which takes 127 at most unless SQLite was built otherwise.
const MOST_HELD: usize = 100;

/// How triggers begin to ask whether an update changes a column.
fn asks(column: &str) -> String {
    format!("NEW.{0} IS NOT OLD.{0}", quote(column))
}

/// Whether an update changes a column, as triggers ask: by its bytes, whatever its collation takes for equal.
fn is_changed(column: &str) -> String {
    format!("{} COLLATE BINARY", asks(column))
}

/// How a key of several columns is one value. SQLite takes 1 and 1.0 for one key.
pub(super) fn key(parts: &[Value]) -> Value {
    let whole = |v: &Value| match v {
        Value::Float(f) if f.fract() == 0.0 && f.abs() < 9e15 => Value::Int(*f as i128),
        other => other.clone(),
    };
    match parts {
        [one] => whole(one),
        parts => {
            let mut writer = Writer::default();
            writer.values(&parts.iter().map(whole).collect::<Vec<_>>());
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

/// A default as SQL: a bare word is a text there, and would be the name of a column.
fn as_expression(default: String) -> String {
    const CONSTANTS: [&str; 6] = ["NULL", "TRUE", "FALSE", "CURRENT_TIME", "CURRENT_DATE", "CURRENT_TIMESTAMP"];
    let is_constant = CONSTANTS.iter().any(|c| c.eq_ignore_ascii_case(&default));
    let is_word = default.chars().all(|c| c.is_alphanumeric() || c == '_') && !default.starts_with(|c: char| c.is_ascii_digit());
    match default.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(quoted) => text(&quoted.replace("\"\"", "\"")),
        None if is_word && !default.is_empty() && !is_constant => text(&default),
        None => default,
    }
}

/// The columns of a table.
pub(super) fn columns(connection: &Connection, table: &str) -> Result<Vec<Column>> {
    // An integer that is the whole key is the row's own number.
    let sql = "SELECT name, pk, \"notnull\" = 0 AND NOT (pk = 1 AND upper(type) = 'INTEGER' AND (SELECT max(pk) FROM \
               pragma_table_xinfo(?1, 'main')) = 1 AND NOT EXISTS (SELECT 1 FROM pragma_index_list(?1, 'main') WHERE origin = 'pk')), type IN ('', 'ANY') OR type LIKE '%BLOB%', dflt_value \
               FROM pragma_table_xinfo(?1, 'main') WHERE hidden = 0";
    let mut statement = connection.prepare(sql)?;
    let column = |row: &rusqlite::Row<'_>| {
        let default = row.get::<_, Option<String>>(4)?.map(as_expression);
        Ok(Column { name: row.get(0)?, key: row.get(1)?, nullable: row.get(2)?, untyped: row.get(3)?, default })
    };
    statement.query_map([table], column)?.collect()
}

/// The column in `column strategy`, and what is behind it.
fn parted(part: &str) -> Option<(String, &str)> {
    let Some(quoted) = part.strip_prefix('"') else {
        let (column, rest) = part.split_once(char::is_whitespace)?;
        return Some((column.to_owned(), rest.trim()));
    };
    // A quote that is doubled is one of the name.
    let (mut end, bytes) = (0, quoted.as_bytes());
    while *bytes.get(end)? != b'"' || bytes.get(end + 1) == Some(&b'"') {
        end += if bytes[end] == b'"' { 2 } else { 1 };
    }
    Some((quoted[..end].replace("\"\"", "\""), quoted[end + 1..].trim()))
}

/// The column in `column strategy`.
pub(super) fn column_of(part: &str) -> Option<String> {
    parted(part).map(|(column, _)| column)
}

/// `a lww, b priority('x', 'y')` at its commas.
pub(super) fn split(strategies: &str) -> Vec<String> {
    let (mut parts, mut depth, mut quote, mut current) = (Vec::new(), 0, None, String::new());
    for c in strategies.chars() {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(mark)) if c == mark => quote = None,
            ('(', None) => depth += 1,
            (')', None) => depth -= 1,
            (',', None) if depth == 0 => {
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

/// Whether the triggers of a table are there: they go with it when it is dropped, and with it under another name.
pub(super) fn noted_by(connection: &Connection, table: &str) -> Result<bool> {
    let sql = "SELECT 1 FROM main.sqlite_schema WHERE type = 'trigger' AND name = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([format!("_mergeql_{table}_insert")], |_| Ok(())).optional()?.is_some())
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
        let unique = "SELECT group_concat(name, ', ') FROM pragma_index_list(?1, 'main') WHERE \"unique\" AND origin <> 'pk'";
        if let Some(indexes) = connection.query_row(unique, [&name], |row| row.get::<_, Option<String>>(0))? {
            return Err(shown(
                Diagnostic::new(Code::Unsupported, format!("`{name}` has a UNIQUE constraint beside its key ({indexes})"))
                    .help("two replicas can each add a row that is unique there: no merge could keep both. Drop the constraint"),
            ));
        }
        let collated = "SELECT group_concat(x.name, ', ') FROM pragma_index_list(?1, 'main') AS l, pragma_index_xinfo(l.name, 'main') AS x \
                        WHERE l.origin = 'pk' AND x.key AND upper(x.coll) <> 'BINARY'";
        if let Some(columns) = connection.query_row(collated, [&name], |row| row.get::<_, Option<String>>(0))? {
            return Err(shown(
                Diagnostic::new(Code::Unsupported, format!("the key of `{name}` is compared by a collation ({columns})"))
                    .help("two keys that it takes for one are two rows elsewhere: declare the key without COLLATE"),
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
            let written = parted(part).map_or("", |(_, written)| written).to_owned();
            let (untyped, default) = (known.untyped, known.default.clone());
            tracked.push(Tracked { name: known.name.clone(), entry, literals, written, untyped, default });
        }
        let lww = catalog::find("lww").expect("invariant: lww is built in");
        let rest = all.iter().filter(|c| c.key == 0 && !tracked.iter().any(|t| t.name == c.name));
        let plain = |c: &Column| Tracked {
            name: c.name.clone(),
            entry: lww,
            literals: Vec::new(),
            written: "lww".to_owned(),
            untyped: c.untyped,
            default: c.default.clone(),
        };
        let rest: Vec<Tracked> = rest.map(plain).collect();
        tracked.extend(rest);
        // In the order of the table, so that a bit means the same however the strategies are written.
        tracked.sort_by_key(|t| all.iter().position(|c| c.name == t.name));
        let nullable = key.iter().filter(|c| c.nullable).map(|c| c.name.clone()).collect();
        let key: Vec<String> = key.into_iter().map(|c| c.name.clone()).collect();
        let row = where_key(&key, 2);
        let set = |c: &Tracked| format!("UPDATE main.{} SET {} = ?1 WHERE {row}", quote(&name), quote(&c.name));
        let sets = tracked.iter().map(set).collect();
        Ok(Definition { table: name, key, nullable, columns: tracked, sets, strategies: parts })
    }

    /// The statement that writes a column, if it is one: its value, then the parts of the key.
    pub fn set(&self, column: &str) -> Option<&str> {
        self.columns.iter().zip(&self.sets).find(|(c, _)| c.name == column).map(|(_, sql)| sql.as_str())
    }

    /// The definition of a table that is replicated, and its number.
    ///
    /// # Errors
    /// As [`Definition::read`].
    pub fn known(connection: &Connection, table: &str) -> Result<Option<(i64, Definition)>> {
        let Some((id, found)) = Definition::found(connection, table)? else { return Ok(None) };
        found.check_noted(connection)?;
        let noted = found.noted_columns(connection)?;
        match found.columns.iter().find(|c| !noted.contains(&c.name)) {
            None => Ok(Some((id, found))),
            Some(column) => Err(shown(
                Diagnostic::new(
                    Code::Unsupported,
                    format!(
                        "`{}` was changed without crdt_alter: nobody notes what is written into `{}`",
                        found.table, column.name
                    ),
                )
                .help(format!("SELECT crdt_alter('{}', '') takes its new columns in", found.table)),
            )),
        }
    }

    /// # Errors
    /// `unsupported` if nobody notes what is written: the table was made anew, under the name of one that is gone.
    pub fn check_noted(&self, connection: &Connection) -> Result<()> {
        if noted_by(connection, &self.table)? {
            return Ok(());
        }
        let message = format!("`{}` was made anew: nobody notes what is written into it", self.table);
        Err(shown(Diagnostic::new(Code::Unsupported, message).help(format!(
            "SELECT crdt_table('{}', '{}') makes it a replicated one again",
            self.table,
            self.complete().replace('\'', "''")
        ))))
    }

    /// All columns with their strategies, as they can be written again: one that is renamed is missed.
    pub fn complete(&self) -> String {
        let column = |c: &Tracked| format!("{} {}", quote(&c.name), c.written);
        self.columns.iter().map(column).collect::<Vec<_>>().join(", ")
    }

    /// The columns whose writes are noted: those that the triggers know.
    ///
    /// # Errors
    /// SQLite's.
    pub fn noted_columns(&self, connection: &Connection) -> Result<Vec<String>> {
        let sql = "SELECT sql FROM main.sqlite_schema WHERE type = 'trigger' AND name = ?1";
        let name = format!("_mergeql_{}_update", self.table);
        let trigger: Option<String> = connection.prepare_cached(sql)?.query_row([name], |row| row.get(0)).optional()?;
        let trigger = trigger.unwrap_or_default();
        Ok(self.columns.iter().map(|c| c.name.clone()).filter(|name| trigger.contains(&asks(name))).collect())
    }

    /// As [`Definition::known`], without the columns that no trigger knows: they are the last ones.
    ///
    /// # Errors
    /// As [`Definition::read`].
    pub fn noted_part(connection: &Connection, table: &str) -> Result<Option<(i64, Definition)>> {
        let Some((id, mut found)) = Definition::found(connection, table)? else { return Ok(None) };
        let noted = found.noted_columns(connection)?.len();
        found.columns.truncate(noted);
        found.sets.truncate(noted);
        Ok(Some((id, found)))
    }

    /// As [`Definition::known`], whoever changed its columns.
    ///
    /// # Errors
    /// As [`Definition::read`].
    pub fn found(connection: &Connection, table: &str) -> Result<Option<(i64, Definition)>> {
        if super::site(connection)?.is_none() {
            return Ok(None);
        }
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?));
        let sql = "SELECT id, name, definition FROM main._mergeql_tables WHERE name = ?1";
        let Some((id, name, definition)) = connection.prepare_cached(sql)?.query_row([table], row).optional()? else {
            return Ok(None);
        };
        match Definition::read(connection, &name, &definition) {
            Ok(found) => Ok(Some((id, found))),
            Err(_) if !noted_by(connection, &name)? => Ok(None),
            Err(e) => Err(shown(
                Diagnostic::new(Code::Unsupported, format!("`{name}` was changed without crdt_alter: {e}"))
                    .help("change it back; crdt_alter('table', 'ALTER TABLE ...') adds and drops columns, and nothing is renamed"),
            )),
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

    /// The note of a column by itself.
    pub fn bit(&self, column: &str) -> i64 {
        self.columns.iter().position(|c| c.name == column).map_or(0, |i| 1 << i.min(BITS))
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
        let note = |key: &str, columns: &str, held: &str| {
            format!("INSERT INTO _mergeql_log VALUES (NULL, {id}, {key}, {columns}, mergeql_clock({held}));")
        };
        // What a row holds is looked at on the way, as far as one call takes it.
        let held =
            |names: &[&String]| names.iter().take(MOST_HELD).map(|n| format!("NEW.{}", quote(n))).collect::<Vec<_>>().join(", ");
        let columns: Vec<&String> = self.columns.iter().map(|c| &c.name).collect();
        let row: Vec<&String> = self.key.iter().chain(columns.iter().copied()).collect();
        let rest = row.chunks(MOST_HELD).skip(1).map(|some| format!("SELECT mergeql_clock({});", held(some))).collect::<String>();
        let (of_columns, of_row) = (held(&columns), held(&row));
        let same_key: Vec<String> = self.key.iter().map(|k| format!("NEW.{0} IS OLD.{0} COLLATE BINARY", quote(k))).collect();
        let same_key = same_key.join(" AND ");
        let changed = |i: usize| {
            let (column, name) = (&self.columns[i], quote(&self.columns[i].name));
            let class = if column.untyped { format!(" OR typeof(NEW.{name}) <> typeof(OLD.{name})") } else { String::new() };
            format!("(({}{class}) << {})", is_changed(&column.name), i.min(BITS))
        };
        let bits: Vec<String> = (0..self.columns.len()).map(changed).collect();
        let bits = if bits.is_empty() { "0".to_owned() } else { bits.join(" | ") };
        let (new, old) = (self.key_of("NEW"), self.key_of("OLD"));
        // What no state could be made of is refused where it is written, not where it is read.
        let without_key = self.nullable.iter().map(|k| format!("NEW.{} IS NULL", quote(k))).collect::<Vec<_>>().join(" OR ");
        let keyed = if without_key.is_empty() {
            String::new()
        } else {
            format!("SELECT RAISE(ABORT, 'MergeQL: a row of a replicated table needs a key: NULL is none') WHERE {without_key};")
        };
        let takes = |c: &Tracked, only: &str| {
            let name = quote(&c.name);
            format!("SELECT mergeql_takes('{}', NEW.{name}) WHERE NEW.{name} IS NOT {only};", c.written.replace('\'', "''"))
        };
        let choosy = || self.columns.iter().filter(|c| !matches!(c.entry.spec().name, "lww" | "fww"));
        let on_insert = keyed.clone() + &rest + &choosy().map(|c| takes(c, "NULL")).collect::<String>();
        let on_update = rest + &choosy().map(|c| takes(c, &format!("OLD.{}", quote(&c.name)))).collect::<String>();
        // A statement that names no key column changes no key: SQLite leaves the trigger out. An integer key has three more names.
        let keys: Vec<String> = self.key.iter().map(|k| quote(k)).chain(["rowid", "_rowid_", "oid"].map(str::to_owned)).collect();
        let keys = keys.join(", ");
        connection.execute_batch(&format!(
            "CREATE TRIGGER main.{} AFTER INSERT ON {table} WHEN mergeql_tracking() BEGIN {on_insert} {} END;
             CREATE TRIGGER main.{} AFTER UPDATE ON {table} WHEN mergeql_tracking() AND {same_key} AND ({bits}) <> 0 BEGIN {on_update} {} END;
             CREATE TRIGGER main.{} AFTER UPDATE OF {keys} ON {table} WHEN mergeql_tracking() AND NOT ({same_key}) BEGIN {on_insert} {} {} END;
             CREATE TRIGGER main.{} AFTER DELETE ON {table} WHEN mergeql_tracking() BEGIN {} END;",
            self.trigger("insert"),
            note(&new, "-1", &of_row),
            self.trigger("update"),
            note(&new, &bits, &of_columns),
            self.trigger("rekey"),
            note(&old, "0", ""),
            note(&new, "-1", &of_row),
            self.trigger("delete"),
            note(&old, "0", ""),
        ))
    }

    /// How many rows have NULL in their key, if some have.
    ///
    /// # Errors
    /// SQLite's.
    pub fn rows_without_key(&self, connection: &Connection) -> Result<Option<i64>> {
        if self.nullable.is_empty() {
            return Ok(None);
        }
        let null = self.nullable.iter().map(|k| format!("{} IS NULL", quote(k))).collect::<Vec<_>>().join(" OR ");
        let sql = format!("SELECT count(*) FROM main.{} WHERE {null}", quote(&self.table));
        connection.query_row(&sql, [], |row| row.get(0)).map(|n| (n > 0).then_some(n))
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
        where_key(&self.key, first)
    }
}

fn where_key(key: &[String], first: usize) -> String {
    // By bytes, whatever a column's collation takes for equal.
    let parts = key.iter().enumerate().map(|(i, k)| format!("{} COLLATE BINARY = ?{}", quote(k), first + i));
    parts.collect::<Vec<_>>().join(" AND ")
}

/// A column of this strategy.
pub(super) fn tracked(written: &str) -> Result<Tracked> {
    let (name, entry, literals) = strategy(&format!("v {written}"), written)?;
    Ok(Tracked { name, entry, literals, written: written.to_owned(), untyped: false, default: None })
}

/// One `column strategy(...)`.
fn strategy(part: &str, all: &str) -> Result<(String, &'static Entry, Vec<Value>)> {
    let usage = || {
        shown(
            Diagnostic::new(Code::Syntax, format!("`{part}` is no column with its strategy"))
                .help("write: title lww, votes pncounter"),
        )
    };
    let (column, rest) = parted(part).ok_or_else(usage)?;
    let statement = format!("MERGE t ON k STRATEGY v = {rest}");
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
    Ok((column, entry, literals))
}
