//! `CREATE VIRTUAL TABLE temp.m USING mergeql('MERGE ...')`: always fresh, in the reader's transaction; a condition on the key merges
//! only the rows of that key.
#![allow(unsafe_code)]

use crate::statements::{Session, in_statement};
use crate::values::{guarded, shown};
use mergeql_lang::Diagnostic;
use mergeql_lang::lower::quote;
use mergeql_udfs::{Code, catalog};
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::vtab::{
    Context, CreateVTab, Filters, IndexConstraintOp, IndexInfo, Module, VTab, VTabConfig, VTabConnection, VTabCursor, VTabKind,
};
use rusqlite::{Connection, ErrorCode, ffi};
use std::borrow::Cow;
use std::cell::Cell;
use std::ffi::{CStr, CString, c_int};
use std::marker::PhantomData;

/// Registers the module.
///
/// # Errors
/// SQLite's.
pub fn register(connection: &Connection) -> rusqlite::Result<()> {
    const MERGED: Module<'_, Merged> = Module::read_only_module();
    const STRATEGIES: Module<'_, Strategies> = Module::eponymous_only_module();
    connection.create_module(c"mergeql", &MERGED, None)?;
    connection.create_module(c"mergeql_strategies", &STRATEGIES, None)
}

/// `mergeql_strategies()`, as in every host.
#[repr(C)]
struct Strategies {
    /// SQLite's part; it must be the first.
    base: ffi::sqlite3_vtab,
}

// SAFETY: SQLite's part is the first field.
unsafe impl<'vtab> VTab<'vtab> for Strategies {
    type Aux = ();
    type Cursor = Listed<'vtab>;

    fn connect(
        database: &mut VTabConnection,
        _: Option<&()>,
        _: &[u8],
        _: &[u8],
        _: &[u8],
        _: &[&[u8]],
    ) -> rusqlite::Result<(Cow<'static, CStr>, Self)> {
        database.config(VTabConfig::Innocuous)?;
        let schema = c"CREATE TABLE s(name TEXT, aliases TEXT, usage TEXT, takes TEXT, laws TEXT, since TEXT, description TEXT)";
        Ok((Cow::Borrowed(schema), Strategies { base: ffi::sqlite3_vtab::default() }))
    }

    fn best_index(&self, _: &mut IndexInfo) -> rusqlite::Result<bool> {
        Ok(true)
    }

    fn open(&'vtab mut self) -> rusqlite::Result<Listed<'vtab>> {
        Ok(Listed { base: ffi::sqlite3_vtab_cursor::default(), row: 0, of: PhantomData })
    }
}

#[repr(C)]
struct Listed<'vtab> {
    /// SQLite's part; it must be the first.
    base: ffi::sqlite3_vtab_cursor,
    row: usize,
    of: PhantomData<&'vtab Strategies>,
}

// SAFETY: SQLite's part is the first field.
unsafe impl VTabCursor for Listed<'_> {
    fn filter(&mut self, _: c_int, _: Option<&str>, _: &Filters<'_>) -> rusqlite::Result<()> {
        self.row = 0;
        Ok(())
    }

    fn next(&mut self) -> rusqlite::Result<()> {
        self.row += 1;
        Ok(())
    }

    fn eof(&self) -> bool {
        self.row >= catalog::all().len()
    }

    fn column(&self, context: &mut Context, i: c_int) -> rusqlite::Result<()> {
        let spec = catalog::all()[self.row].spec();
        context.set_result(&match i {
            0 => spec.name.to_owned(),
            1 => spec.aliases.join(", "),
            2 => spec.usage(),
            3 => spec.takes.to_owned(),
            4 => catalog::LAWS.join(", "),
            5 => spec.since.to_owned(),
            _ => spec.title.to_owned(),
        })
    }

    fn rowid(&self) -> rusqlite::Result<i64> {
        Ok(self.row as i64)
    }
}

/// A merge as a table.
#[repr(C)]
struct Merged {
    /// SQLite's part; it must be the first.
    base: ffi::sqlite3_vtab,
    database: *mut ffi::sqlite3,
    statement: String,
    /// The columns as they were declared when it was opened.
    columns: Vec<String>,
    /// The key columns, which come first.
    key: Vec<String>,
    /// Those of the key.
    affinities: Vec<Affinity>,
}

/// The statement, as the module's arguments hold it: SQLite splits them at commas, and keeps quotes.
fn statement_of(arguments: &[&[u8]]) -> String {
    let joined = arguments.iter().map(|a| String::from_utf8_lossy(a)).collect::<Vec<_>>().join(",");
    let trimmed = joined.trim();
    match trimmed.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')) {
        Some(inner) => inner.replace("''", "'"),
        None => trimmed.to_owned(),
    }
}

impl Merged {
    fn open(database: &mut VTabConnection, arguments: &[&[u8]]) -> rusqlite::Result<(CString, Merged)> {
        let statement = statement_of(arguments);
        // SAFETY: the handle is used while SQLite asks, and by cursors, which the connection outlives.
        let (handle, connection) = unsafe {
            let handle = database.handle();
            (handle, Connection::from_handle(handle)?)
        };
        let (columns, key) = in_statement(&statement, Session::new(&connection).columns(&statement))?;
        let declared: Vec<String> = columns.iter().map(|(name, ty)| format!("{} {ty}", quote(name))).collect();
        let schema = c_text(&format!("CREATE TABLE m({})", declared.join(", ")))?;
        let affinities = columns[..key].iter().map(|(_, ty)| Affinity::of(ty)).collect();
        let columns: Vec<String> = columns.into_iter().map(|(name, _)| name).collect();
        let key = columns[..key].to_vec();
        Ok((schema, Merged { base: ffi::sqlite3_vtab::default(), database: handle, statement, columns, key, affinities }))
    }
}

/// What a column makes of a value that it is compared with (SQLite's "Datatypes In SQLite", section 3).
#[derive(Clone, Copy, PartialEq)]
enum Affinity {
    Number,
    Text,
    None,
}

impl Affinity {
    /// That of a declared type.
    fn of(declared: &str) -> Affinity {
        let declared = declared.to_ascii_uppercase();
        let has = |words: &[&str]| words.iter().any(|w| declared.contains(w));
        match () {
            () if has(&["INT"]) => Affinity::Number,
            () if has(&["CHAR", "CLOB", "TEXT"]) => Affinity::Text,
            () if has(&["BLOB"]) || declared.is_empty() => Affinity::None,
            () => Affinity::Number,
        }
    }

    /// The value as it is compared, where that is another one.
    fn of_value(self, value: ValueRef<'_>) -> Option<Value> {
        match (self, value) {
            (Affinity::Number, ValueRef::Text(text)) => {
                let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
                let number = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
                let real = || text.parse().ok().map(Value::Real);
                if number { text.parse().ok().map(Value::Integer).or_else(real) } else { None }
            }
            (Affinity::Text, ValueRef::Integer(v)) => Some(Value::Text(v.to_string())),
            _ => None,
        }
    }
}

fn c_text(text: &str) -> rusqlite::Result<CString> {
    CString::new(text).map_err(|_| shown(Diagnostic::new(Code::Syntax, "a statement has no NUL characters")))
}

/// Whether an error is of this moment, and not of the sources.
fn passes(error: &rusqlite::Error) -> bool {
    use ErrorCode::{DatabaseBusy, DatabaseLocked, OperationInterrupted, OutOfMemory, SystemIoFailure};
    let codes = [DatabaseBusy, DatabaseLocked, OperationInterrupted, OutOfMemory, SystemIoFailure];
    error.sqlite_error_code().is_some_and(|code| codes.contains(&code))
}

// SAFETY: SQLite's part is the first field.
unsafe impl<'vtab> VTab<'vtab> for Merged {
    type Aux = ();
    type Cursor = Rows<'vtab>;

    /// A table whose sources are gone can still be opened, so that it can be dropped; reading it is what fails.
    fn connect(
        database: &mut VTabConnection,
        _: Option<&()>,
        _: &[u8],
        _: &[u8],
        _: &[u8],
        arguments: &[&[u8]],
    ) -> rusqlite::Result<(Cow<'static, CStr>, Self)> {
        match guarded(|| Merged::open(database, arguments)) {
            Ok((schema, table)) => Ok((Cow::Owned(schema), table)),
            // What passes leaves the table as it is: the next statement tries again.
            Err(error) if passes(&error) => Err(error),
            Err(_) => {
                // SAFETY: as in `open`.
                let handle = unsafe { database.handle() };
                let statement = statement_of(arguments);
                let (columns, key) = (vec!["unreadable".to_owned()], Vec::new());
                let table = Merged {
                    base: ffi::sqlite3_vtab::default(),
                    database: handle,
                    statement,
                    columns,
                    key,
                    affinities: Vec::new(),
                };
                Ok((Cow::Borrowed(c"CREATE TABLE m(unreadable)"), table))
            }
        }
    }

    fn best_index(&self, info: &mut IndexInfo) -> rusqlite::Result<bool> {
        let mut pinned: Vec<(usize, c_int)> = Vec::new();
        for (i, constraint) in info.constraints().enumerate() {
            let on_key = usize::try_from(constraint.column()).is_ok_and(|c| c < self.key.len());
            let equal = constraint.operator() == IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_EQ;
            // Sources are restricted by bytes: rows that another collation takes for equal would be lost.
            let bytes = info.collation(i).is_ok_and(|c| c.eq_ignore_ascii_case("BINARY"));
            if on_key && equal && bytes && constraint.is_usable() && !pinned.iter().any(|(_, c)| *c == constraint.column()) {
                pinned.push((i, constraint.column()));
            }
        }
        for (argument, (i, _)) in pinned.iter().enumerate() {
            // SQLite checks the condition once more.
            info.constraint_usage(*i).set_argv_index(argument as c_int + 1);
        }
        let columns: Vec<String> = pinned.iter().map(|(_, column)| column.to_string()).collect();
        info.set_idx_str(&columns.join(","));
        let (cost, rows) = if pinned.is_empty() { (1e7, 1_000_000) } else { (100.0, 10) };
        info.set_estimated_cost(cost);
        info.set_estimated_rows(rows);
        Ok(true)
    }

    fn open(&'vtab mut self) -> rusqlite::Result<Rows<'vtab>> {
        Ok(Rows {
            base: ffi::sqlite3_vtab_cursor::default(),
            table: self,
            prepared: std::ptr::null_mut(),
            row: 0,
            done: true,
            lowered: None,
            of: PhantomData,
        })
    }
}

impl<'vtab> CreateVTab<'vtab> for Merged {
    const KIND: VTabKind = VTabKind::Default;

    fn create(
        database: &mut VTabConnection,
        _: Option<&()>,
        _: &[u8],
        _: &[u8],
        _: &[u8],
        arguments: &[&[u8]],
    ) -> rusqlite::Result<(Cow<'static, CStr>, Self)> {
        let (schema, table) = guarded(|| Merged::open(database, arguments))?;
        Ok((Cow::Owned(schema), table))
    }
}

/// The rows of a merge that runs.
#[repr(C)]
struct Rows<'vtab> {
    /// SQLite's part; it must be the first.
    base: ffi::sqlite3_vtab_cursor,
    table: *const Merged,
    prepared: *mut ffi::sqlite3_stmt,
    row: i64,
    done: bool,
    /// The SQL of the last look, for the next one: in a join there is one for each row of the other table.
    lowered: Option<Looked>,
    of: PhantomData<&'vtab Merged>,
}

/// What a statement was lowered to, for a look by these columns, over the databases as they were.
struct Looked {
    columns: Vec<usize>,
    databases: Vec<i64>,
    sql: String,
}

/// Numbers that are others when a database, or its schema, has changed within a statement.
fn changes_of(connection: &Connection) -> rusqlite::Result<Vec<i64>> {
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let mut numbers = vec![number("SELECT total_changes()")?];
    let mut statement = connection.prepare("SELECT name FROM pragma_database_list")?;
    for name in statement.query_map([], |row| row.get::<_, String>(0))? {
        let name = quote(&name?);
        numbers.push(number(&format!("PRAGMA {name}.data_version"))?);
        numbers.push(number(&format!("PRAGMA {name}.schema_version"))?);
    }
    Ok(numbers)
}

impl Rows<'_> {
    fn table(&self) -> &Merged {
        // SAFETY: a table outlives its cursors.
        unsafe { &*self.table }
    }

    fn failed(&self) -> rusqlite::Error {
        // SAFETY: the connection lives.
        unsafe {
            let database = self.table().database;
            let message = CStr::from_ptr(ffi::sqlite3_errmsg(database)).to_string_lossy().into_owned();
            rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::sqlite3_extended_errcode(database)), Some(message))
        }
    }

    fn end(&mut self) {
        // SAFETY: the statement is ours, or null, which is fine.
        unsafe { ffi::sqlite3_finalize(self.prepared) };
        (self.prepared, self.done) = (std::ptr::null_mut(), true);
    }

    fn step(&mut self) -> rusqlite::Result<()> {
        // SAFETY: the statement is prepared.
        match unsafe { ffi::sqlite3_step(self.prepared) } {
            ffi::SQLITE_ROW => {
                (self.row, self.done) = (self.row + 1, false);
                Ok(())
            }
            ffi::SQLITE_DONE => {
                self.end();
                Ok(())
            }
            _ => {
                let error = self.failed();
                self.end();
                Err(error)
            }
        }
    }

    fn bind(&self, i: usize, value: ValueRef<'_>) -> rusqlite::Result<()> {
        let at = i as c_int + 1;
        // SAFETY: SQLite copies texts and blobs.
        let code = unsafe {
            match value {
                ValueRef::Null => ffi::sqlite3_bind_null(self.prepared, at),
                ValueRef::Integer(v) => ffi::sqlite3_bind_int64(self.prepared, at, v),
                ValueRef::Real(v) => ffi::sqlite3_bind_double(self.prepared, at, v),
                ValueRef::Text(v) => {
                    let (text, length) = (v.as_ptr().cast(), v.len() as u64);
                    ffi::sqlite3_bind_text64(self.prepared, at, text, length, ffi::SQLITE_TRANSIENT(), ffi::SQLITE_UTF8 as u8)
                }
                ValueRef::Blob(v) => {
                    ffi::sqlite3_bind_blob64(self.prepared, at, v.as_ptr().cast(), v.len() as u64, ffi::SQLITE_TRANSIENT())
                }
            }
        };
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(self.failed()) }
    }
}

impl Rows<'_> {
    /// The columns of the statement that is prepared.
    fn names(&self) -> Vec<String> {
        // SAFETY: the statement is live, and has a name for each of its columns unless memory is out.
        let name = |i| unsafe {
            let name = ffi::sqlite3_column_name(self.prepared, i);
            if name.is_null() { String::new() } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
        };
        // SAFETY: as above.
        (0..unsafe { ffi::sqlite3_column_count(self.prepared) }).map(name).collect()
    }
}

/// How deep a `mergeql` table may be within others.
const MOST_WITHIN: usize = 30;

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// A statement of a `mergeql` table is being run: what it reads may be such a table again.
struct Within;

impl Within {
    fn enter() -> rusqlite::Result<Within> {
        let depth = DEPTH.get();
        if depth >= MOST_WITHIN {
            let message = format!("tables of MergeQL within each other, more than {MOST_WITHIN} deep");
            return Err(shown(Diagnostic::new(Code::LimitExceeded, message).help("one of them reads itself, by a view")));
        }
        DEPTH.set(depth + 1);
        Ok(Within)
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

// SAFETY: SQLite's part is the first field.
unsafe impl VTabCursor for Rows<'_> {
    fn filter(&mut self, _: c_int, columns: Option<&str>, arguments: &Filters<'_>) -> rusqlite::Result<()> {
        self.end();
        self.row = 0;
        let _within = Within::enter()?;
        let (statement, key) = (self.table().statement.clone(), self.table().key.clone());
        let columns = columns.unwrap_or_default().split(',').filter_map(|c| c.parse::<usize>().ok());
        let columns: Vec<usize> = columns.collect();
        let pinned = columns.iter().enumerate().filter_map(|(i, c)| Some((key.get(*c)?.clone(), i + 1))).collect();
        // SAFETY: the connection lives as long as the table.
        let connection = unsafe { Connection::from_handle(self.table().database)? };
        // Where such questions are forbidden, nothing is kept.
        let databases = changes_of(&connection).unwrap_or_default();
        let sql = match self
            .lowered
            .take()
            .filter(|last| last.columns == columns && last.databases == databases && !databases.is_empty())
        {
            Some(last) => last.sql,
            None => guarded(|| in_statement(&statement, Session::pinned(&connection, pinned).read(&statement)))?,
        };
        let text = c_text(&sql)?;
        self.lowered = Some(Looked { columns: columns.clone(), databases, sql });
        // SAFETY: SQLite copies the text.
        let code =
            unsafe { ffi::sqlite3_prepare_v2(self.table().database, text.as_ptr(), -1, &mut self.prepared, std::ptr::null_mut()) };
        if code != ffi::SQLITE_OK {
            return Err(self.failed());
        }
        if self.names() != self.table().columns {
            let message = "the sources have other columns now than when this table was opened";
            return Err(shown(Diagnostic::new(Code::Unsupported, message).help("drop it and create it anew")));
        }
        for (i, argument) in arguments.iter().enumerate() {
            let affinity = columns.get(i).and_then(|c| self.table().affinities.get(*c)).copied().unwrap_or(Affinity::None);
            match affinity.of_value(argument) {
                Some(other) => self.bind(i, (&other).into())?,
                None => self.bind(i, argument)?,
            }
        }
        self.step()
    }

    fn next(&mut self) -> rusqlite::Result<()> {
        self.step()
    }

    fn eof(&self) -> bool {
        self.done
    }

    fn column(&self, context: &mut Context, i: c_int) -> rusqlite::Result<()> {
        // SAFETY: the statement stands at a row; its values are copied before it goes on.
        let value = unsafe {
            let bytes = |start: *const u8| {
                let length = ffi::sqlite3_column_bytes(self.prepared, i) as usize;
                if length == 0 { Vec::new() } else { std::slice::from_raw_parts(start, length).to_vec() }
            };
            match ffi::sqlite3_column_type(self.prepared, i) {
                ffi::SQLITE_INTEGER => Value::Integer(ffi::sqlite3_column_int64(self.prepared, i)),
                ffi::SQLITE_FLOAT => Value::Real(ffi::sqlite3_column_double(self.prepared, i)),
                // As it is: a key need not be UTF-8.
                ffi::SQLITE_TEXT => {
                    let text = bytes(ffi::sqlite3_column_text(self.prepared, i).cast());
                    return context.set_result(&ToSqlOutput::Borrowed(ValueRef::Text(&text)));
                }
                ffi::SQLITE_BLOB => Value::Blob(bytes(ffi::sqlite3_column_blob(self.prepared, i).cast())),
                _ => Value::Null,
            }
        };
        context.set_result(&value)
    }

    fn rowid(&self) -> rusqlite::Result<i64> {
        Ok(self.row)
    }
}
