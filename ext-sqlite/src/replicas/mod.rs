//! Replicated tables: an ordinary table whose every cell is a CRDT, and a feed of changes that any other replica applies, in any order,
//! repeated or in parts.
//!
//! Triggers only note which columns of a row were written and when (`_mergeql_log`): that is all a write pays. The notes become states
//! (`_mergeql_cells`) when changes are asked for, or before others are applied. A version is a hybrid logical clock (Kulkarni et al. 2014)
//! and the replica's name; whether a row is there is a cell like any other, without a column.
//!
//! | table | what |
//! |---|---|
//! | `_mergeql_site` | this replica: its name, and how many cells it has changed |
//! | `_mergeql_tables` | replicated tables, and the strategies of their columns |
//! | `_mergeql_log` | writes that are not in the cells yet |
//! | `_mergeql_cells` | the state of every cell, its greatest clock, when it changed here, and who knows all of it |
//! | `_mergeql_peers` | how far each other replica has read |
//! | `_mergeql_forgotten` | the greatest clock of what was forgotten: what is written later comes after it |

mod absorb;
mod cell;
mod changes;
mod definition;

use crate::values::{Answer, shown};
use definition::Definition;
use mergeql_lang::Diagnostic;
use mergeql_lang::lower::quote;
use mergeql_udfs::{Code, Value};
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

type Result<T> = rusqlite::Result<T>;

/// What a connection knows that no table holds.
#[derive(Debug, Default)]
pub(crate) struct Replica {
    /// The last clock that was given out.
    clock: AtomicI64,
    /// Rows are being written that say nothing new.
    applying: AtomicBool,
    /// Notes were made states in this transaction: going back to a savepoint can bring them back.
    took: AtomicBool,
    /// The numbers of changes that this transaction took, by whichever way.
    numbers: Numbers,
    /// How often tables were made replicated ones, or altered.
    definitions: AtomicU64,
}

impl Replica {
    /// A clock after all that were given out: milliseconds since 1970 in 48 bits, then a counter of 16.
    fn tick(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64) << 16;
        let next = |last: i64| now.max(last.saturating_add(1));
        match self.clock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last))) {
            Ok(last) | Err(last) => next(last),
        }
    }

    /// Runs while no trigger notes anything.
    fn quietly<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.applying.swap(true, Ordering::Relaxed);
        let result = run();
        self.applying.store(before, Ordering::Relaxed);
        result
    }
}

/// Registers the functions and the change feed.
///
/// # Errors
/// SQLite's.
pub fn register(connection: &Connection) -> Result<()> {
    let replica = Arc::new(Replica::default());
    // Triggers call these two, of whatever schema.
    let trigger = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    let own = replica.clone();
    connection.create_scalar_function("mergeql_tracking", 0, trigger, move |_| Ok(!own.applying.load(Ordering::Relaxed)))?;
    let own = replica.clone();
    // Triggers pass what a row holds: text that is none could be in no state.
    connection.create_scalar_function("mergeql_clock", -1, trigger, move |context| {
        (0..context.len()).try_for_each(|i| check_text(context.get_raw(i), "a row of a replicated table"))?;
        Ok(own.tick())
    })?;
    let pure = crate::aggregates::PURE;
    connection.create_scalar_function("mergeql_takes", 2, trigger, |context| {
        let arguments = crate::values::arguments(context)?;
        cell::takes(&arguments[0].to_string(), &arguments[1]).map(|()| true)
    })?;
    connection.create_scalar_function("mergeql_key", -1, pure, |context| {
        Answer::of(definition::key(&crate::values::arguments(context)?))
    })?;
    let direct = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
    let add = |name: &str, arguments: i32, run: fn(&Connection, &Replica, &[String]) -> Result<Value>| {
        let own = replica.clone();
        connection.create_scalar_function(name, arguments, direct, move |context| {
            let texts = (0..context.len()).map(|i| text(context, i)).collect::<Result<Vec<_>>>()?;
            #[allow(unsafe_code)]
            // SAFETY: the connection is used while the function runs, as SQLite allows.
            let connection = unsafe { context.get_connection()? };
            Answer::of(atomically(&connection, || run(&connection, &own, &texts))?)
        })
    };
    add("crdt_table", 2, |c, r, a| make_table(c, r, &a[0], &a[1]))?;
    add("crdt_alter", 2, |c, r, a| alter(c, r, &a[0], &a[1], ""))?;
    add("crdt_alter", 3, |c, r, a| alter(c, r, &a[0], &a[1], &a[2]))?;
    add("crdt_origin", 0, |c, _, _| Ok(site(c)?.map_or(Value::Null, Value::text)))?;
    add("crdt_new_origin", 0, |c, r, _| new_origin(c, r))?;
    add("crdt_acknowledge", 2, |c, _, a| acknowledge(c, &a[0], &a[1]))?;
    add("crdt_compact", 0, |c, r, _| compact(c, r))?;
    add("crdt_forget", 1, |c, _, a| forget(c, &a[0]))?;
    add("crdt_untable", 1, |c, r, a| leave(c, r, &a[0]))?;
    add("crdt_waiting", 0, |c, r, _| waiting(c, r))?;
    changes::register(connection, replica)
}

fn text(context: &Context<'_>, i: usize) -> Result<String> {
    match crate::values::argument(context, i)? {
        Value::Null => Err(shown(Diagnostic::new(Code::InvalidArgument, format!("argument {} is NULL", i + 1)))),
        other => Ok(other.to_string()),
    }
}

/// Refuses text that is not UTF-8: SQLite keeps any bytes.
fn check_text(value: ValueRef<'_>, of: &str) -> Result<()> {
    match value {
        ValueRef::Text(bytes) if std::str::from_utf8(bytes).is_err() => Err(shown(
            Diagnostic::new(Code::InvalidArgument, format!("{of} has text that is not UTF-8: {}", String::from_utf8_lossy(bytes)))
                .help("store it as bytes: CAST(... AS BLOB)"),
        )),
        _ => Ok(()),
    }
}

/// All of it or nothing.
pub(crate) fn atomically<T>(connection: &Connection, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let outermost = connection.is_autocommit();
    connection.execute_batch("SAVEPOINT mergeql_replica")?;
    match run().and_then(|done| connection.execute_batch("RELEASE mergeql_replica").map(|()| done)) {
        Ok(done) => Ok(done),
        Err(error) => {
            // The last release commits, which fails while another connection reads; the transaction would stay open.
            let undo = if outermost { "ROLLBACK" } else { "ROLLBACK TO mergeql_replica; RELEASE mergeql_replica" };
            connection.execute_batch(undo).ok();
            Err(error)
        }
    }
}

/// The tables that replication needs.
fn prepare(connection: &Connection) -> Result<()> {
    if site(connection)?.is_some() {
        return Ok(());
    }
    connection.execute_batch(
        "CREATE TABLE main._mergeql_site (one INTEGER PRIMARY KEY CHECK (one = 1), origin TEXT NOT NULL, seq INTEGER NOT NULL);
         CREATE TABLE main._mergeql_tables (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE, definition TEXT NOT NULL);
         CREATE TABLE main._mergeql_log (n INTEGER PRIMARY KEY, tbl INTEGER NOT NULL, pk, columns INTEGER NOT NULL, clock INTEGER NOT NULL);
         CREATE TABLE main._mergeql_cells (tbl TEXT NOT NULL, pk NOT NULL, col TEXT NOT NULL, state BLOB NOT NULL, clock INTEGER NOT NULL,
             seq INTEGER NOT NULL, origin TEXT NOT NULL, PRIMARY KEY (tbl, pk, col)) WITHOUT ROWID;
         CREATE INDEX main._mergeql_cells_seq ON _mergeql_cells (seq);
         CREATE TABLE main._mergeql_peers (origin TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
         INSERT INTO main._mergeql_site VALUES (1, lower(hex(randomblob(8))), 0);",
    )
}

/// The name of this replica; `None` where nothing is replicated.
fn site(connection: &Connection) -> Result<Option<String>> {
    let known = "SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = '_mergeql_site'";
    if connection.prepare_cached(known)?.query_row([], |_| Ok(())).optional()?.is_none() {
        return Ok(None);
    }
    connection.prepare_cached("SELECT origin FROM main._mergeql_site")?.query_row([], |row| row.get(0)).optional()
}

/// The numbers of changes here: each change of a cell takes the next one. The last that was taken in this transaction, or zero: going back
/// to a savepoint takes none of them back.
#[derive(Debug, Default)]
struct Numbers(AtomicI64);

impl Numbers {
    fn kept(connection: &Connection) -> Result<i64> {
        connection.prepare_cached("SELECT seq FROM main._mergeql_site")?.query_row([], |row| row.get(0))
    }

    /// Goes on from what is kept, where others took numbers since.
    fn go_on(&self, connection: &Connection) -> Result<()> {
        self.0.fetch_max(Self::kept(connection)?, Ordering::Relaxed);
        Ok(())
    }

    /// The number that is taken next.
    fn following(&self, connection: &Connection) -> Result<i64> {
        match self.0.load(Ordering::Relaxed) {
            0 => Self::kept(connection).map(|last| last + 1),
            last => Ok(last + 1),
        }
    }

    fn next(&self, connection: &Connection) -> Result<i64> {
        let next = self.following(connection)?;
        self.0.store(next, Ordering::Relaxed);
        Ok(next)
    }

    /// Keeps the last number that was taken.
    fn keep(&self, connection: &Connection) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            last => connection.prepare_cached("UPDATE main._mergeql_site SET seq = max(seq, ?1)")?.execute([last]).map(drop),
        }
    }

    /// A transaction begins, or has come to nothing.
    fn begin(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// `crdt_table(table, 'column strategy, ...')`: makes a table a replicated one.
fn make_table(connection: &Connection, replica: &Replica, table: &str, strategies: &str) -> Result<Value> {
    prepare(connection)?;
    let definition = Definition::read(connection, table, strategies)?;
    let known: Option<i64> = connection
        .query_row("SELECT id FROM main._mergeql_tables WHERE name = ?1", [&definition.table], |row| row.get(0))
        .optional()?;
    if known.is_some() && definition::noted_by(connection, &definition.table)? {
        return Err(shown(
            Diagnostic::new(Code::DuplicateSource, format!("`{table}` is replicated already"))
                .help("change it with crdt_alter('table', 'ALTER TABLE ...', 'column strategy, ...')"),
        ));
    }
    if let Some(nulls) = definition.rows_without_key(connection)? {
        return Err(shown(
            Diagnostic::new(Code::InvalidArgument, format!("{nulls} rows of `{table}` have NULL in their key"))
                .help("a row is the same one elsewhere by its key: delete them, or give them keys"),
        ));
    }
    // A table that was dropped and made anew is the same one to other replicas.
    let id = match known {
        Some(id) => {
            connection.execute(
                "UPDATE main._mergeql_tables SET name = ?1, definition = ?2 WHERE id = ?3",
                params![definition.table, definition.complete(), id],
            )?;
            forget_notes(connection, replica, &definition, id)?;
            id
        }
        None => {
            let made = "INSERT INTO main._mergeql_tables (name, definition) VALUES (?1, ?2)";
            connection.execute(made, params![definition.table, definition.complete()])?;
            connection.last_insert_rowid()
        }
    };
    spell(connection, &definition)?;
    definition.add_triggers(connection, id)?;
    check_cells(connection, &definition)?;
    replica.definitions.fetch_add(1, Ordering::Relaxed);
    // The rows that are there were written now; what is counted in them, nobody has counted yet.
    absorb::absorb(connection, replica)?;
    let (clock, key) = (replica.tick(), definition.key_of("t"));
    connection.execute(
        &format!("INSERT INTO main._mergeql_log SELECT NULL, {id}, {key}, -1, {clock} FROM main.{} AS t", quote(&definition.table)),
        [],
    )?;
    absorb::absorb_first(connection, replica)?;
    // What other replicas sent before the table was here.
    absorb::materialize_all(connection, replica, &definition)?;
    Ok(Value::text(site(connection)?.unwrap_or_default()))
}

/// What was noted of a table that is gone says which rows are gone with it; of the rows that are in the new one, everything is noted.
fn forget_notes(connection: &Connection, replica: &Replica, definition: &Definition, id: i64) -> Result<()> {
    let last: Option<i64> = connection.query_row("SELECT max(n) FROM main._mergeql_log WHERE tbl = ?1", [id], |row| row.get(0))?;
    let Some(last) = last else { return Ok(()) };
    let gone = format!(
        "INSERT INTO main._mergeql_log SELECT NULL, {id}, l.pk, 0, {} FROM (SELECT DISTINCT pk FROM main._mergeql_log WHERE tbl = {id}) AS l \
         WHERE NOT EXISTS (SELECT 1 FROM main.{} AS t WHERE {} IS l.pk)",
        replica.tick(),
        quote(&definition.table),
        definition.key_of("t")
    );
    connection.execute(&gone, [])?;
    connection.execute("DELETE FROM main._mergeql_log WHERE tbl = ?1 AND n <= ?2", [id, last])?;
    Ok(())
}

/// Cells that came before the table did have its name, and those of its columns, as others write them.
fn spell(connection: &Connection, definition: &Definition) -> Result<()> {
    let table = "UPDATE OR IGNORE main._mergeql_cells SET tbl = ?1 WHERE tbl <> ?1 AND tbl = ?1 COLLATE NOCASE";
    connection.execute(table, [&definition.table])?;
    let column = "UPDATE OR IGNORE main._mergeql_cells SET col = ?2 WHERE tbl = ?1 AND col <> ?2 AND col = ?2 COLLATE NOCASE";
    definition.columns.iter().try_for_each(|c| connection.execute(column, [&definition.table, &c.name]).map(drop))
}

/// The states that are kept under a column's name must be of its strategy: those of another never join with what is written from now on.
fn check_cells(connection: &Connection, definition: &Definition) -> Result<()> {
    let sql = "SELECT state FROM main._mergeql_cells WHERE tbl = ?1 AND col = ?2 LIMIT 1";
    for column in &definition.columns {
        let state: Option<Vec<u8>> =
            connection.prepare_cached(sql)?.query_row([&definition.table, &column.name], |row| row.get(0)).optional()?;
        let Some(state) = state else { continue };
        let (was, wanted) = (mergeql_udfs::catalog::open(&state).map_err(shown)?.spec().name, column.entry.spec().name);
        if was != wanted {
            let message = format!("`{}.{}` was replicated as `{was}`, and cannot become `{wanted}`", definition.table, column.name);
            return Err(shown(
                Diagnostic::new(Code::TypeMismatch, message)
                    .help("add a column of another name with the new strategy, and copy the values"),
            ));
        }
        // And of its arguments: a list of other values orders them in another way.
        if cell::written(column, Some(&state), &Value::Null, 0, "").is_err() {
            let message = format!("`{}.{}` was replicated as another `{was}`", definition.table, column.name);
            return Err(shown(
                Diagnostic::new(Code::TypeMismatch, message)
                    .help("give it the arguments that it had, or add a column of another name, and copy the values"),
            ));
        }
    }
    Ok(())
}

/// `crdt_alter(table, 'ALTER TABLE ...' [, 'column strategy, ...'])`: changes a replicated table, and which strategies its columns have.
fn alter(connection: &Connection, replica: &Replica, table: &str, sql: &str, strategies: &str) -> Result<Value> {
    if site(connection)?.is_some() {
        absorb::absorb_altered(connection, replica)?;
    }
    let (id, before) = Definition::found(connection, table)?.ok_or_else(|| {
        shown(Diagnostic::new(Code::UnknownSource, format!("`{table}` is not replicated")).help("crdt_table makes it so"))
    })?;
    before.check_noted(connection)?;
    let noted = before.noted_columns(connection)?;
    before.drop_triggers(connection)?;
    let was = definition::columns(connection, &before.table)?;
    if !sql.trim().is_empty() {
        alter_only(connection, replica, &before.table, sql)?;
    }
    let mut all = before.strategies;
    for part in definition::split(strategies) {
        let name = definition::column_of(&part).unwrap_or_default();
        all.retain(|known| !definition::column_of(known).is_some_and(|known| known.eq_ignore_ascii_case(&name)));
        all.push(part);
    }
    // Columns that are gone take their strategies with them.
    let columns = definition::columns(connection, &before.table)?;
    let has = |columns: &[definition::Column], name: &str| columns.iter().any(|c| c.name.eq_ignore_ascii_case(name));
    all.retain(|known| definition::column_of(known).is_some_and(|name| has(&columns, &name)));
    let after = Definition::read(connection, &before.table, &all.join(", "))?;
    check_cells(connection, &after)?;
    connection.execute("UPDATE main._mergeql_tables SET definition = ?1 WHERE id = ?2", params![after.complete(), id])?;
    after.add_triggers(connection, id)?;
    replica.definitions.fetch_add(1, Ordering::Relaxed);
    // Columns that no trigger knew: those that this statement added, or another one before it.
    for column in after.columns.iter().filter(|c| !noted.contains(&c.name)) {
        absorb::seed(connection, replica, &after, id, column, has(&was, &column.name))?;
    }
    // Values of new columns may have come before them.
    absorb::materialize_all(connection, replica, &after)?;
    Ok(Value::Null)
}

/// Runs one ALTER TABLE of this table, which adds or drops columns.
fn alter_only(connection: &Connection, replica: &Replica, table: &str, sql: &str) -> Result<()> {
    let refused = |message: String| {
        shown(
            Diagnostic::new(Code::InvalidArgument, message)
                .help("crdt_alter('notes', 'ALTER TABLE notes ADD COLUMN stars INTEGER', 'stars pncounter')"),
        )
    };
    if !sql.trim_start().to_ascii_uppercase().starts_with("ALTER TABLE") {
        return Err(refused("the second argument is an ALTER TABLE statement".to_owned()));
    }
    let names = || -> Result<Vec<String>> { Ok(definition::columns(connection, table)?.into_iter().map(|c| c.name).collect()) };
    let others = || -> Result<Option<String>> {
        let sql =
            "SELECT group_concat(name || coalesce(sql, ''), char(0)) FROM main.sqlite_schema WHERE tbl_name <> ?1 COLLATE NOCASE";
        connection.query_row(sql, [table], |row| row.get(0))
    };
    let (columns, rest) = (names()?, others()?);
    // One statement: of several this is an error.
    replica.quietly(|| connection.execute(sql, [])).map_err(|e| match e {
        rusqlite::Error::MultipleStatement => refused("the second argument is one statement".to_owned()),
        other => other,
    })?;
    if others()? != rest {
        return Err(refused(format!("the statement alters another table than `{table}`")));
    }
    let now = names()?;
    let (added, gone) = (now.iter().any(|c| !columns.contains(c)), columns.iter().find(|c| !now.contains(c)));
    match gone {
        Some(gone) if added => Err(refused(format!("`{gone}` is called so by other replicas, too: columns are not renamed"))),
        _ => Ok(()),
    }
}

/// `crdt_untable(table)`: makes a replicated table an ordinary one again; what it said so far stays in the feed.
fn leave(connection: &Connection, replica: &Replica, table: &str) -> Result<Value> {
    let known = if site(connection)?.is_some() { Definition::known(connection, table)? } else { None };
    let Some((id, definition)) = known else {
        return Err(shown(Diagnostic::new(Code::UnknownSource, format!("`{table}` is not replicated"))));
    };
    absorb::absorb(connection, replica)?;
    definition.drop_triggers(connection)?;
    connection.execute("DELETE FROM main._mergeql_tables WHERE id = ?1", [id])?;
    replica.definitions.fetch_add(1, Ordering::Relaxed);
    Ok(Value::Null)
}

/// `crdt_waiting()`: the rows that are there by what all replicas say, but not in their table: its constraints do not take them.
fn waiting(connection: &Connection, replica: &Replica) -> Result<Value> {
    if site(connection)?.is_none() {
        return Ok(Value::List(Vec::new()));
    }
    absorb::absorb(connection, replica)?;
    let mut statement = connection.prepare("SELECT name FROM main._mergeql_tables ORDER BY name")?;
    let names = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>>>()?;
    let mut found = Vec::new();
    for name in names {
        if let Some((_, definition)) = Definition::known(connection, &name)? {
            for key in absorb::missing(connection, &definition)? {
                let fields = [("table", Value::text(&*name)), ("key", Value::List(key))];
                found.push(Value::Struct(fields.into_iter().map(|(n, v)| (Arc::from(n), v)).collect()));
            }
        }
    }
    Ok(Value::List(found))
}

/// `crdt_new_origin()`: makes a copied database a replica of its own.
fn new_origin(connection: &Connection, replica: &Replica) -> Result<Value> {
    prepare(connection)?;
    // What was noted was written before the copy parted, or by its old name.
    absorb::absorb(connection, replica)?;
    connection.execute("UPDATE main._mergeql_site SET origin = lower(hex(randomblob(8)))", [])?;
    Ok(site(connection)?.map_or(Value::Null, Value::text))
}

/// `crdt_acknowledge(origin, seq)`: another replica has read the changes up to this number.
fn acknowledge(connection: &Connection, origin: &str, seq: &str) -> Result<Value> {
    prepare(connection)?;
    let seq: i64 = seq.parse().map_err(|_| {
        shown(Diagnostic::new(Code::InvalidArgument, "the second argument is the number of the last change that was read"))
    })?;
    connection.execute(
        "INSERT INTO main._mergeql_peers VALUES (?1, ?2) ON CONFLICT (origin) DO UPDATE SET seq = max(seq, excluded.seq)",
        params![origin, seq],
    )?;
    Ok(Value::Null)
}

/// `crdt_forget(origin)`: a replica that will not come back is not waited for.
fn forget(connection: &Connection, origin: &str) -> Result<Value> {
    acknowledge(connection, origin, &i64::MAX.to_string())
}

/// `crdt_compact()`: forgets rows that were deleted, once every other replica that is known has read of it; gives back how many. Known is
/// who acknowledged something, and whose changes came here. Counters,
/// sets and the like stay: what they count was counted from, and others still hold it.
fn compact(connection: &Connection, replica: &Replica) -> Result<Value> {
    let Some(_) = site(connection)? else { return Ok(Value::Int(0)) };
    absorb::absorb(connection, replica)?;
    let sql = "SELECT (SELECT min(seq) FROM main._mergeql_peers), (SELECT count(DISTINCT origin) FROM main._mergeql_cells \
               WHERE origin <> (SELECT origin FROM main._mergeql_site) AND origin NOT IN (SELECT origin FROM main._mergeql_peers))";
    let (seen, unheard): (Option<i64>, i64) = connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let Some(seen) = seen.filter(|_| unheard == 0) else { return Ok(Value::Int(0)) };
    let sql = "SELECT tbl, pk, state FROM main._mergeql_cells AS c WHERE col = '' AND NOT EXISTS (\
               SELECT 1 FROM main._mergeql_cells AS o WHERE o.tbl = c.tbl AND o.pk IS c.pk AND o.seq > ?1)";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([seen])?;
    let mut gone = Vec::new();
    while let Some(row) = rows.next()? {
        if cell::value(&row.get::<_, Vec<u8>>(2)?)? == Value::Bool(false) {
            gone.push((row.get::<_, String>(0)?, row.get::<_, rusqlite::types::Value>(1)?));
        }
    }
    drop(rows);
    connection.execute_batch("CREATE TABLE IF NOT EXISTS main._mergeql_forgotten (clock INTEGER NOT NULL)")?;
    let mut count = 0;
    let mut newest = 0;
    for (table, pk) in &gone {
        let mut statement =
            connection.prepare_cached("SELECT col, state, clock FROM main._mergeql_cells WHERE tbl = ?1 AND pk IS ?2")?;
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?));
        let cells: Vec<(String, Vec<u8>, i64)> = statement.query_map(params![table, pk], row)?.collect::<Result<_>>()?;
        let mut plain = Vec::new();
        for (column, state, clock) in &cells {
            if mergeql_udfs::catalog::open(state).map_err(shown)?.spec().name == "lww" {
                plain.push((column, *clock));
            }
        }
        // That a row is gone is remembered as long as something of it is.
        let whole = plain.len() == cells.len();
        let dropped = plain.into_iter().filter(|(column, _)| whole || !column.is_empty()).collect::<Vec<_>>();
        for (column, clock) in &dropped {
            let sql = "DELETE FROM main._mergeql_cells WHERE tbl = ?1 AND pk IS ?2 AND col = ?3";
            connection.prepare_cached(sql)?.execute(params![table, pk, column])?;
            newest = newest.max(*clock);
        }
        count += i128::from(!dropped.is_empty());
    }
    if newest > 0 {
        let newest = newest.max(absorb::forgotten(connection)?);
        connection.execute_batch("DELETE FROM main._mergeql_forgotten")?;
        connection.execute("INSERT INTO main._mergeql_forgotten VALUES (?1)", [newest])?;
    }
    Ok(Value::Int(count))
}
