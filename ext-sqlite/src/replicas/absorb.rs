//! From notes of writes to states of cells, and from states back to rows.

use super::definition::{Definition, Tracked, key_parts};
use super::{Numbers, Replica, Result, cell, site};
use crate::values::{plain, shown, value};
use mergeql_lang::Diagnostic;
use mergeql_lang::lower::{quote, text};
use mergeql_udfs::{AnyState, Code, Value};
use rusqlite::types::{Value as Plain, ValueRef};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;

/// The state of a cell and its clock.
fn known(connection: &Connection, table: &str, pk: &Plain, column: &str) -> Result<Option<(Vec<u8>, i64)>> {
    let sql = "SELECT state, clock FROM main._mergeql_cells WHERE tbl = ?1 AND pk IS ?2 AND col = ?3";
    connection.prepare_cached(sql)?.query_row(params![table, pk, column], |row| Ok((row.get(0)?, row.get(1)?))).optional()
}

/// Keeps a cell's state: `origin` knows all of it.
#[allow(clippy::too_many_arguments)] // the columns of a cell
fn keep(
    connection: &Connection,
    numbers: &Numbers,
    table: &str,
    pk: &Plain,
    column: &str,
    state: &[u8],
    clock: i64,
    origin: &str,
) -> Result<()> {
    let seq = numbers.next(connection)?;
    let sql = "INSERT INTO main._mergeql_cells VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO UPDATE SET \
               state = excluded.state, clock = excluded.clock, seq = excluded.seq, origin = excluded.origin";
    connection.prepare_cached(sql)?.execute(params![table, pk, column, state, clock, seq, origin])?;
    Ok(())
}

/// What was noted of a row.
#[derive(Default)]
struct Noted {
    /// Whether it was there last, and when that was so.
    there: Option<(bool, i64)>,
    /// When each column was written last, by its name.
    columns: BTreeMap<String, i64>,
}

/// Whether there are notes.
///
/// # Errors
/// SQLite's.
pub(super) fn is_noted(connection: &Connection) -> Result<bool> {
    let sql = "SELECT 1 FROM main._mergeql_log LIMIT 1";
    Ok(connection.prepare_cached(sql)?.query_row([], |_| Ok(())).optional()?.is_some())
}

/// Makes states of all notes.
///
/// # Errors
/// What a strategy refuses; then nothing is changed.
pub(super) fn absorb(connection: &Connection, replica: &Replica) -> Result<()> {
    absorb_as(connection, replica, None, Definition::known)
}

/// As [`absorb`], whoever changed the columns of tables.
///
/// # Errors
/// As [`absorb`].
pub(super) fn absorb_altered(connection: &Connection, replica: &Replica) -> Result<()> {
    absorb_as(connection, replica, None, Definition::noted_part)
}

/// As [`absorb`], of what was there before it was replicated: what it counts, every copy of it counts, too, so that it counts once.
///
/// # Errors
/// As [`absorb`].
pub(super) fn absorb_first(connection: &Connection, replica: &Replica) -> Result<()> {
    absorb_as(connection, replica, Some(BASE), Definition::known)
}

/// The origin of what was counted before anybody counted.
const BASE: &str = "base";

type Find = fn(&Connection, &str) -> Result<Option<(i64, Definition)>>;

fn absorb_as(connection: &Connection, replica: &Replica, counted_by: Option<&str>, find: Find) -> Result<()> {
    if !is_noted(connection)? {
        return Ok(());
    }
    replica.took.store(true, Ordering::Relaxed);
    let numbers = &replica.numbers;
    numbers.go_on(connection)?;
    let origin = site(connection)?.unwrap_or_default();
    let mut tables: BTreeMap<i64, Definition> = BTreeMap::new();
    let mut statement = connection.prepare("SELECT id, name FROM main._mergeql_tables")?;
    let names: Vec<(i64, String)> = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_>>()?;
    for (id, name) in names {
        if let Some((_, definition)) = find(connection, &name)? {
            tables.insert(id, definition);
        }
    }
    let forgotten = forgotten(connection)?;
    // In the order of their first notes: rows that were written one after the other are near each other in every table.
    let mut noted: Vec<(i64, Plain, Noted)> = Vec::new();
    let mut places: HashMap<(i64, Vec<u8>), usize> = HashMap::new();
    let mut statement = connection.prepare("SELECT clock, tbl, pk, columns FROM main._mergeql_log ORDER BY n")?;
    let mut rows = statement.query([])?;
    // Clocks of several connections may disagree; the order of their writes does not.
    let mut latest = 0;
    while let Some(row) = rows.next()? {
        let (clock, table, columns): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(3)?);
        let pk = held(row, 2, || "a key".to_owned())?;
        latest = clock.max(latest);
        let clock = latest;
        let Some(definition) = tables.get(&table) else { continue };
        // A row without a key is no row elsewhere. Triggers refuse them now.
        if pk == Plain::Null {
            continue;
        }
        let mut writer = mergeql_udfs::codec::Writer::default();
        writer.value(&super::definition::key(&[value((&pk).into())?]));
        let place = *places.entry((table, writer.as_bytes().to_vec())).or_insert(noted.len());
        if place == noted.len() {
            noted.push((table, pk, Noted::default()));
        }
        let note = &mut noted[place].2;
        match columns {
            0 => note.there = Some((false, clock)),
            -1 => note.there = Some((true, clock)),
            _ => {}
        }
        for column in definition.noted(columns) {
            note.columns.insert(column.name.clone(), clock);
        }
    }
    drop(rows);
    let mut apart: BTreeMap<i64, bool> = BTreeMap::new();
    for (table, pk, note) in &noted {
        let definition = &tables[table];
        let existence = match note.there {
            None => None,
            Some((there, clock)) => {
                let before = known(connection, &definition.table, pk, "")?;
                // What was written here came after all that was applied here, to any cell of the row, and after all that was forgotten.
                let sql = "SELECT max(clock) FROM main._mergeql_cells WHERE tbl = ?1 AND pk IS ?2";
                let last: Option<i64> =
                    connection.prepare_cached(sql)?.query_row(params![definition.table, pk], |row| row.get(0))?;
                Some((there, before, clock.max(last.unwrap_or(0).max(forgotten).saturating_add(1))))
            }
        };
        let own = "SELECT 1 FROM main._mergeql_cells WHERE tbl = ?1 AND origin = ?2";
        let counts_apart = match (counted_by, apart.get(table)) {
            (None, _) => false,
            (Some(_), Some(known)) => *known,
            (Some(_), None) => {
                let known = params![definition.table, origin];
                let none = connection.prepare_cached(own)?.query_row(known, |_| Ok(())).optional()?.is_none();
                apart.insert(*table, none);
                none
            }
        };
        let by = Author { origin: &origin, counted_by: counted_by.unwrap_or(&origin), counts_apart };
        let is_there = match (&existence, note.columns.is_empty()) {
            (Some((false, ..)), true) => false,
            _ => write_columns(connection, replica, numbers, definition, pk, &note.columns, &by, forgotten)?,
        };
        // After its columns: whoever applies them makes the row once, and whole. A trigger may have taken a new row away before it was noted.
        if let Some((there, before, clock)) = existence {
            let state = cell::existence(before.as_ref().map(|(s, _)| s.as_slice()), there && is_there, clock, &origin)?;
            keep(connection, numbers, &definition.table, pk, "", &state, clock, &origin)?;
        }
    }
    connection.execute("DELETE FROM main._mergeql_log", [])?;
    numbers.keep(connection)
}

/// Changes come in any order, also a row before the one that it refers to.
///
/// # Errors
/// `unsupported` where SQLite would refuse that.
pub(super) fn check_foreign_keys(connection: &Connection) -> Result<()> {
    let sql = "SELECT group_concat(DISTINCT m.name) FROM pragma_foreign_keys AS on_, main.sqlite_schema AS m, pragma_foreign_key_list(m.name) AS f \
               WHERE on_.foreign_keys AND m.type = 'table' AND (m.name COLLATE NOCASE IN (SELECT name FROM main._mergeql_tables) OR \
               f.\"table\" COLLATE NOCASE IN (SELECT name FROM main._mergeql_tables))";
    match connection.prepare_cached(sql)?.query_row([], |row| row.get::<_, Option<String>>(0))? {
        None => Ok(()),
        Some(tables) => {
            let message = format!("foreign keys are enforced ({tables}), and changes may come before the rows that they refer to");
            Err(shown(
                Diagnostic::new(Code::Unsupported, message).help("PRAGMA foreign_keys = OFF on connections that apply changes"),
            ))
        }
    }
}

/// The greatest clock of what was forgotten.
pub(super) fn forgotten(connection: &Connection) -> Result<i64> {
    let there = "SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = '_mergeql_forgotten'";
    if connection.prepare_cached(there)?.query_row([], |_| Ok(())).optional()?.is_none() {
        return Ok(0);
    }
    connection
        .query_row("SELECT max(clock) FROM main._mergeql_forgotten", [], |row| row.get::<_, Option<i64>>(0))
        .map(|c| c.unwrap_or(0))
}

/// A value of a row as it lies there.
fn held(row: &rusqlite::Row<'_>, i: usize, of: impl FnOnce() -> String) -> Result<Plain> {
    let value = row.get_ref(i)?;
    if matches!(value, ValueRef::Text(_)) {
        super::check_text(value, &of())?;
    }
    row.get(i)
}

/// Who writes, and whose counts these are.
struct Author<'a> {
    origin: &'a str,
    counted_by: &'a str,
    /// What is there was never replicated here: it is joined to what others counted, and no difference from it.
    counts_apart: bool,
}

/// Writes the cells of a row, and says whether it is there.
#[allow(clippy::too_many_arguments)] // the columns of a cell
fn write_columns(
    connection: &Connection,
    replica: &Replica,
    numbers: &Numbers,
    definition: &Definition,
    pk: &Plain,
    clocks: &BTreeMap<String, i64>,
    by: &Author<'_>,
    forgotten: i64,
) -> Result<bool> {
    let columns: Vec<_> = definition.columns.iter().filter(|c| clocks.contains_key(&c.name)).collect();
    let parts = key_parts(pk, definition.key.len())?;
    if columns.is_empty() {
        let sql = format!("SELECT 1 FROM main.{} WHERE {}", quote(&definition.table), definition.where_key(1));
        let found = connection.prepare_cached(&sql)?.query_row(rusqlite::params_from_iter(&parts), |_| Ok(())).optional()?;
        return Ok(found.is_some());
    }
    let names: Vec<String> = columns.iter().map(|c| quote(&c.name)).collect();
    let sql = format!("SELECT {} FROM main.{} WHERE {}", names.join(", "), quote(&definition.table), definition.where_key(1));
    let of = |i: usize| format!("`{}.{}`", definition.table, columns[i].name);
    let row = |row: &rusqlite::Row<'_>| (0..columns.len()).map(|i| held(row, i, || of(i))).collect::<Result<Vec<_>>>();
    let Some(values) = connection.prepare_cached(&sql)?.query_row(rusqlite::params_from_iter(&parts), row).optional()? else {
        return Ok(false);
    };
    for (column, held) in columns.into_iter().zip(values) {
        let before = known(connection, &definition.table, pk, &column.name)?;
        let clock = clocks[&column.name].max(before.as_ref().map_or(forgotten, |(_, c)| *c).saturating_add(1));
        let state = before.as_ref().map(|(s, _)| s.as_slice());
        let wrong =
            |e: rusqlite::Error| shown(Diagnostic::new(Code::TypeMismatch, format!("`{}.{}`: {e}", definition.table, column.name)));
        let made = match state {
            // What others have counted since comes on top of what every copy counts.
            Some(known) if cell::counts(column) && by.counts_apart => {
                let own = cell::written(column, None, &value((&held).into())?, clock, by.counted_by).map_err(wrong)?;
                own.map(|own| mergeql_udfs::catalog::join(known, &own)).transpose().map_err(shown)?.filter(|joined| joined != known)
            }
            _ => {
                let origin = if before.is_none() && cell::counts(column) { by.counted_by } else { by.origin };
                cell::written(column, state, &value((&held).into())?, clock, origin).map_err(wrong)?
            }
        };
        // Elsewhere a column of which nothing is known has its default.
        if let (None, None, Some(sql)) = (&made, state, definition.set(&column.name)) {
            let default = match &column.default {
                Some(default) => connection.query_row(&format!("SELECT ({default})"), [], |row| row.get(0))?,
                None => Plain::Null,
            };
            if held != default {
                set(connection, replica, sql, &parts, &default)?;
            }
        }
        if let Some(made) = &made {
            keep(connection, numbers, &definition.table, pk, &column.name, made, clock, by.origin)?;
        }
        // The row shows what the state says: a maximum that was lowered is what it was.
        if let Some(state) = made.as_deref().or(state) {
            let says = plain(cell::value(state)?)?;
            if says != held
                && let Some(sql) = definition.set(&column.name)
            {
                set(connection, replica, sql, &parts, &says)?;
            }
        }
    }
    Ok(true)
}

/// Sets one column of a row by its statement, and says whether the row is there.
fn set(connection: &Connection, replica: &Replica, sql: &str, key: &[Plain], to: &Plain) -> Result<bool> {
    let mut statement = connection.prepare_cached(sql)?;
    replica.quietly(|| Ok(statement.execute(rusqlite::params_from_iter(std::iter::once(to).chain(key)))? > 0))
}

/// A change of a cell that comes from elsewhere.
pub(super) struct Incoming<'a> {
    pub table: &'a str,
    pub pk: &'a Plain,
    pub column: &'a str,
    pub state: &'a [u8],
    /// What the state is.
    pub opened: Box<dyn AnyState>,
    pub clock: i64,
    pub origin: &'a str,
}

/// A cell as it was.
pub(super) struct Before {
    state: Vec<u8>,
    clock: i64,
    seq: i64,
    origin: String,
}

/// What became of a change.
pub(super) enum Joined {
    /// The cell is new, and says this.
    New(Value),
    /// The cell says this now; before, it was that.
    Changed(Value, Before),
    /// Nothing new.
    Known,
}

/// Joins a change into its cell, of which is `expected` to be new, or not.
///
/// # Errors
/// `corrupt_state`, `type_mismatch` for a state of another strategy.
pub(super) fn join(connection: &Connection, numbers: &Numbers, expected: bool, change: Incoming<'_>) -> Result<Joined> {
    let Incoming { table, pk, column, state, mut opened, clock, origin } = change;
    if expected {
        // One statement where there is no such cell, instead of two.
        let sql = "INSERT INTO main._mergeql_cells VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING";
        let seq = numbers.following(connection)?;
        let made = opened.encode();
        if connection.prepare_cached(sql)?.execute(params![table, pk, column, made, clock, seq, origin])? > 0 {
            numbers.next(connection)?;
            return cell::says(&*opened).map(Joined::New);
        }
    }
    let sql = "SELECT state, clock, seq, origin FROM main._mergeql_cells WHERE tbl = ?1 AND pk IS ?2 AND col = ?3";
    let row =
        |row: &rusqlite::Row<'_>| Ok(Before { state: row.get(0)?, clock: row.get(1)?, seq: row.get(2)?, origin: row.get(3)? });
    let Some(before) = connection.prepare_cached(sql)?.query_row(params![table, pk, column], row).optional()? else {
        keep(connection, numbers, table, pk, column, &opened.encode(), clock, origin)?;
        return cell::says(&*opened).map(Joined::New);
    };
    if before.state == state {
        return Ok(Joined::Known);
    }
    opened.join_bytes(&before.state).map_err(shown)?;
    let joined = opened.encode();
    if joined == before.state {
        return Ok(Joined::Known);
    }
    // Whoever sent it does not know what was here before.
    let origin = if joined == state { origin.to_owned() } else { site(connection)?.unwrap_or_default() };
    keep(connection, numbers, table, pk, column, &joined, clock.max(before.clock), &origin)?;
    cell::says(&*opened).map(|says| Joined::Changed(says, before))
}

/// Makes a cell what it was before a change.
///
/// # Errors
/// SQLite's.
pub(super) fn take_back(connection: &Connection, table: &str, pk: &Plain, column: &str, joined: &Joined) -> Result<()> {
    let delete = "DELETE FROM main._mergeql_cells WHERE tbl = ?1 AND pk IS ?2 AND col = ?3";
    let update =
        "UPDATE main._mergeql_cells SET state = ?4, clock = ?5, seq = ?6, origin = ?7 WHERE tbl = ?1 AND pk IS ?2 AND col = ?3";
    match joined {
        Joined::Known => Ok(()),
        Joined::New(_) => connection.prepare_cached(delete)?.execute(params![table, pk, column]).map(drop),
        Joined::Changed(_, was) => {
            let values = params![table, pk, column, was.state, was.clock, was.seq, was.origin];
            connection.prepare_cached(update)?.execute(values).map(drop)
        }
    }
}

/// Lets a row show what a cell that changed says; says whether it waits, for it is not known whether the row is there.
///
/// # Errors
/// SQLite's.
pub(super) fn show(
    connection: &Connection,
    replica: &Replica,
    definition: &Definition,
    pk: &Plain,
    column: &str,
    says: Value,
) -> Result<bool> {
    if column.is_empty() {
        return materialize(connection, replica, definition, pk, says == Value::Bool(true)).map(|()| false);
    }
    let Some(sql) = definition.set(column) else { return Ok(false) };
    let parts = key_parts(pk, definition.key.len())?;
    if set(connection, replica, sql, &parts, &plain(says)?)? {
        return Ok(false);
    }
    let Some((state, _)) = known(connection, &definition.table, pk, "")? else { return Ok(true) };
    materialize(connection, replica, definition, pk, cell::value(&state)? == Value::Bool(true)).map(|()| false)
}

/// Makes a row what its cells say: `there` with all its columns, or not there. A new row that its table's constraints do not take, because
/// another column has not come yet or because of what replicas wrote together, waits for changes (`crdt_waiting`).
fn materialize(connection: &Connection, replica: &Replica, definition: &Definition, pk: &Plain, there: bool) -> Result<()> {
    let parts = key_parts(pk, definition.key.len())?;
    let table = quote(&definition.table);
    if !there {
        let sql = format!("DELETE FROM main.{table} WHERE {}", definition.where_key(1));
        let mut statement = connection.prepare_cached(&sql)?;
        return replica.quietly(|| statement.execute(rusqlite::params_from_iter(&parts)).map(drop));
    }
    let mut names: Vec<String> = definition.key.iter().map(|k| quote(k)).collect();
    let mut values = parts;
    let sql = "SELECT col, state FROM main._mergeql_cells WHERE tbl = ?1 AND pk IS ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![definition.table, pk])?;
    while let Some(row) = rows.next()? {
        let column: String = row.get(0)?;
        if definition.columns.iter().any(|c| c.name == column) {
            names.push(quote(&column));
            values.push(plain(cell::value(&row.get::<_, Vec<u8>>(1)?)?)?);
        }
    }
    drop(rows);
    let places: Vec<String> = (1..=values.len()).map(|i| format!("?{i}")).collect();
    let sets: Vec<String> = names[definition.key.len()..].iter().map(|n| format!("{n} = excluded.{n}")).collect();
    let update = if sets.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", sets.join(", ")) };
    let key = names[..definition.key.len()].join(", ");
    let sql =
        format!("INSERT INTO main.{table} ({}) VALUES ({}) ON CONFLICT ({key}) DO {update}", names.join(", "), places.join(", "));
    let mut statement = connection.prepare_cached(&sql)?;
    match replica.quietly(|| statement.execute(rusqlite::params_from_iter(&values))) {
        Err(rusqlite::Error::SqliteFailure(e, message)) if e.code == rusqlite::ErrorCode::ConstraintViolation => {
            let there = format!("SELECT 1 FROM main.{table} WHERE {}", definition.where_key(1));
            let key = rusqlite::params_from_iter(&values[..definition.key.len()]);
            match connection.prepare_cached(&there)?.query_row(key, |_| Ok(())).optional()? {
                None => Ok(()),
                // What a row that is there shows must be what its cells say, or what is written into it would be misread.
                Some(()) => Err(rusqlite::Error::SqliteFailure(e, message)),
            }
        }
        other => other.map(drop),
    }
}

/// The keys of rows that are there by their cells, and not in their table.
///
/// # Errors
/// SQLite's.
pub(super) fn missing(connection: &Connection, definition: &Definition) -> Result<Vec<Vec<Value>>> {
    let sql = format!("SELECT 1 FROM main.{} WHERE {}", quote(&definition.table), definition.where_key(1));
    let mut shows = connection.prepare(&sql)?;
    let mut found = Vec::new();
    for pk in there(connection, definition)?.into_iter().filter_map(|(pk, there)| there.then_some(pk)) {
        let key = key_parts(&pk, definition.key.len())?;
        if shows.query_row(rusqlite::params_from_iter(&key), |_| Ok(())).optional()?.is_none() {
            found.push(key.iter().map(|part| value(part.into())).collect::<rusqlite::Result<_>>()?);
        }
    }
    Ok(found)
}

/// The rows of which it is known whether they are there.
fn there(connection: &Connection, definition: &Definition) -> Result<Vec<(Plain, bool)>> {
    let mut statement = connection.prepare("SELECT pk, state FROM main._mergeql_cells WHERE tbl = ?1 AND col = ''")?;
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, cell::value(&row.get::<_, Vec<u8>>(1)?)? == Value::Bool(true)));
    statement.query_map([&definition.table], row)?.collect()
}

/// Takes a column in that no trigger knew. What its default counts is what it counts everywhere; where it was `there` before, what it
/// holds besides its default is written now.
///
/// # Errors
/// SQLite's, and those of [`absorb`].
pub(super) fn seed(
    connection: &Connection,
    replica: &Replica,
    definition: &Definition,
    id: i64,
    column: &Tracked,
    was_there: bool,
) -> Result<()> {
    let (key, name) = (definition.key_of("t"), format!("t.{}", quote(&column.name)));
    let default = column.default.clone().unwrap_or_else(|| "NULL".to_owned());
    let note = |condition: &str| {
        let bit = definition.bit(&column.name);
        let sql = format!(
            "INSERT INTO main._mergeql_log SELECT NULL, {id}, {key}, {bit}, {} FROM main.{} AS t WHERE {condition}",
            replica.tick(),
            quote(&definition.table)
        );
        connection.execute(&sql, [])
    };
    if cell::counts(column) && column.default.is_some() {
        let unknown = format!(
            "NOT EXISTS (SELECT 1 FROM main._mergeql_cells AS c WHERE c.tbl = {} AND c.pk IS {key} AND c.col = {})",
            text(&definition.table),
            text(&column.name)
        );
        note(&format!("{name} IS ({default}) AND {unknown}"))?;
        absorb_first(connection, replica)?;
    }
    if was_there {
        note(&format!("{name} IS NOT ({default})"))?;
        absorb(connection, replica)?;
    }
    Ok(())
}

/// Makes every row of a table what its cells say.
///
/// # Errors
/// SQLite's.
pub(super) fn materialize_all(connection: &Connection, replica: &Replica, definition: &Definition) -> Result<()> {
    let rows = there(connection, definition)?;
    rows.iter().try_for_each(|(pk, there)| materialize(connection, replica, definition, pk, *there))
}
