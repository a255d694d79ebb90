//! `mergeql_changes`: reading gives what changed here, inserting applies what changed elsewhere.
#![allow(unsafe_code)]

use super::absorb::{Incoming, Joined};
use super::definition::Definition;
use super::{Replica, Result, absorb, atomically, prepare, site};
use crate::values::{guarded, shown};
use mergeql_lang::Diagnostic;
use mergeql_udfs::Code;
use rusqlite::types::{Value as Plain, ValueRef};
use rusqlite::vtab::{
    Context, CreateVTab, Filters, IndexConstraintOp, IndexInfo, Inserts, Module, TransactionVTab, UpdateVTab, Updates, VTab,
    VTabConnection, VTabCursor, VTabKind,
};
use rusqlite::{Connection, ErrorCode, ffi};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::{CStr, c_int};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The columns of the feed, in the order of its schema.
const SCHEMA: &CStr = c"CREATE TABLE changes(tbl TEXT, pk, col TEXT, state BLOB, clock INTEGER, seq INTEGER, origin TEXT)";
const SEQ: c_int = 5;

/// Registers the feed.
pub(super) fn register(connection: &Connection, replica: Arc<Replica>) -> Result<()> {
    const MODULE: Module<'_, Changes> = Module::update_module_with_tx();
    connection.create_module(c"mergeql_changes", &MODULE, Some(replica))
}

#[repr(C)]
struct Changes {
    /// SQLite's part; it must be the first.
    base: ffi::sqlite3_vtab,
    connection: Connection,
    replica: Arc<Replica>,
    /// Definitions of tables, as they are in this transaction, and how many were changed by then.
    tables: HashMap<String, Option<Arc<Definition>>>,
    defined: u64,
    /// No change was applied in this transaction yet.
    fresh: bool,
    /// How many rows this connection had changed when the last change was applied, and nothing was noted.
    settled: Option<u64>,
    /// The last change made a cell: the next one is likely to.
    makes: bool,
    /// The row of the last change, if nothing is known of its being there: its other columns wait too.
    waiting: Option<(String, Plain)>,
}

impl Changes {
    fn definition(&mut self, table: &str) -> Result<Option<Arc<Definition>>> {
        if let Some(known) = self.tables.get(table) {
            return Ok(known.clone());
        }
        let found = Definition::known(&self.connection, table)?.map(|(_, definition)| Arc::new(definition));
        self.tables.insert(table.to_owned(), found.clone());
        Ok(found)
    }
}

// SAFETY: SQLite's part is the first field.
unsafe impl<'vtab> VTab<'vtab> for Changes {
    type Aux = Arc<Replica>;
    type Cursor = Feed<'vtab>;

    fn connect(
        database: &mut VTabConnection,
        replica: Option<&Arc<Replica>>,
        _: &[u8],
        _: &[u8],
        _: &[u8],
        _: &[&[u8]],
    ) -> Result<(Cow<'static, CStr>, Self)> {
        // SAFETY: the connection outlives its virtual tables.
        let connection = unsafe { Connection::from_handle(database.handle())? };
        connection.set_prepared_statement_cache_capacity(64);
        let replica = replica.cloned().unwrap_or_default();
        let (base, tables) = (ffi::sqlite3_vtab::default(), HashMap::new());
        let changes =
            Changes { base, connection, replica, tables, defined: 0, fresh: true, settled: None, makes: true, waiting: None };
        Ok((Cow::Borrowed(SCHEMA), changes))
    }

    fn best_index(&self, info: &mut IndexInfo) -> Result<bool> {
        let after = info.constraints().enumerate().find_map(|(i, c)| {
            let bound = match c.operator() {
                IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_GT => ">",
                IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_GE => ">=",
                _ => return None,
            };
            (c.column() == SEQ && c.is_usable()).then_some((i, bound))
        });
        if let Some((i, bound)) = after {
            info.constraint_usage(i).set_argv_index(1);
            info.set_idx_str(bound);
        }
        info.set_estimated_cost(if after.is_some() { 1000.0 } else { 1e6 });
        Ok(true)
    }

    fn open(&'vtab mut self) -> Result<Feed<'vtab>> {
        Ok(Feed { base: ffi::sqlite3_vtab_cursor::default(), changes: self, rows: Vec::new(), at: 0, of: PhantomData })
    }
}

impl<'vtab> CreateVTab<'vtab> for Changes {
    const KIND: VTabKind = VTabKind::Eponymous;
}

impl<'vtab> UpdateVTab<'vtab> for Changes {
    fn delete(&mut self, _: ValueRef<'_>) -> Result<()> {
        Err(shown(
            Diagnostic::new(Code::Unsupported, "changes are read and applied, not deleted").help("crdt_compact() forgets old ones"),
        ))
    }

    fn update(&mut self, _: &Updates<'_>) -> Result<()> {
        Err(shown(Diagnostic::new(Code::Unsupported, "changes are read and applied, not edited")))
    }

    fn insert(&mut self, values: &Inserts<'_>) -> Result<i64> {
        guarded(|| self.apply(values)).map(|()| 0)
    }
}

impl Changes {
    /// Makes states of what was noted, where this connection may write now. Where it may not, because another one writes or because it only
    /// reads, the feed is what was made states of before: the rest comes with a later reading.
    fn take_notes(&self) -> Result<()> {
        if !absorb::is_noted(&self.connection)? {
            return Ok(());
        }
        let take = || absorb::absorb(&self.connection, &self.replica);
        // Within one transaction, or each write would be one; in the middle of a statement that writes there is one.
        let taken = if self.connection.execute_batch("SAVEPOINT mergeql_open; RELEASE mergeql_open").is_ok() {
            atomically(&self.connection, take)
        } else {
            take()
        };
        match taken {
            Err(rusqlite::Error::SqliteFailure(e, _)) if matches!(e.code, ErrorCode::DatabaseBusy | ErrorCode::ReadOnly) => Ok(()),
            other => other,
        }
    }

    /// Applies one change.
    fn apply(&mut self, values: &Inserts<'_>) -> Result<()> {
        // The first two are row ids.
        let column = |i: usize| values.get::<Plain>(i + 2);
        let (table, pk, name): (String, Plain, String) = (values.get(2)?, column(1)?, values.get(4)?);
        let (state, clock, origin): (Vec<u8>, i64, String) = (values.get(5)?, values.get(6)?, values.get(8)?);
        if pk == Plain::Null || clock >= i64::MAX >> 1 {
            let what = if pk == Plain::Null { "a key" } else { "a clock of this millennium" };
            return Err(shown(Diagnostic::new(
                Code::InvalidArgument,
                format!("a change has {what}: this one of `{table}` has none"),
            )));
        }
        if std::mem::take(&mut self.fresh) {
            prepare(&self.connection)?;
            self.tables.clear();
            absorb::check_foreign_keys(&self.connection)?;
        }
        // What was written here comes before what is applied. A statement that applies one change counts itself when it ends; one that a
        // trigger notes counts two rows at least.
        let rows = self.connection.total_changes();
        if self.replica.took.load(Ordering::Relaxed) || self.settled.is_none_or(|settled| rows > settled + 1) {
            absorb::absorb(&self.connection, &self.replica)?;
            self.waiting = None;
        }
        self.settled = None;
        let defined = self.replica.definitions.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.defined, defined) != defined {
            self.tables.clear();
            self.waiting = None;
        }
        let definition = self.definition(&table)?;
        // Names are the same in any case of letters: here they are as they are written here.
        let (table, name) = match &definition {
            None => (table, name),
            Some(definition) => {
                let own = definition.columns.iter().find(|c| c.name.eq_ignore_ascii_case(&name));
                (definition.table.clone(), own.map_or(name, |column| column.name.clone()))
            }
        };
        let opened = mergeql_udfs::catalog::open(&state).map_err(shown)?;
        if let Some(definition) = &definition {
            check(definition, &name, opened.spec().name)?;
        }
        let change = Incoming { table: &table, pk: &pk, column: &name, state: &state, opened, clock, origin: &origin };
        let joined = absorb::join(&self.connection, &self.replica.numbers, self.makes, change)?;
        self.makes = matches!(joined, Joined::New(_));
        let waits = !name.is_empty() && self.waiting.as_ref().is_some_and(|(t, k)| *t == table && *k == pk);
        if let (Joined::New(says) | Joined::Changed(says, _), Some(definition), false) = (&joined, &definition, waits) {
            match absorb::show(&self.connection, &self.replica, definition, &pk, &name, says.clone()) {
                Ok(waits) => self.waiting = waits.then_some((table, pk)),
                // What the table does not take was not applied: the same change is new when it comes again.
                Err(error) => {
                    absorb::take_back(&self.connection, &table, &pk, &name, &joined)?;
                    return Err(error);
                }
            }
        }
        self.settled = Some(self.connection.total_changes());
        Ok(())
    }
}

impl<'vtab> TransactionVTab<'vtab> for Changes {
    fn begin(&mut self) -> Result<()> {
        (self.fresh, self.settled) = (true, None);
        self.replica.numbers.begin();
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.replica.numbers.keep(&self.connection)
    }

    fn commit(&mut self) -> Result<()> {
        self.replica.took.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn rollback(&mut self) -> Result<()> {
        self.replica.took.store(false, Ordering::Relaxed);
        self.replica.numbers.begin();
        Ok(())
    }
}

/// A state of a column must be one of its strategy.
fn check(definition: &Definition, column: &str, found: &str) -> Result<()> {
    let wanted = match definition.columns.iter().find(|c| c.name == column) {
        Some(column) => column.entry.spec().name,
        None if column.is_empty() => "lww",
        // A column that another replica has already.
        None => return Ok(()),
    };
    if found == wanted {
        return Ok(());
    }
    let message =
        format!("`{}.{column}` is replicated as `{wanted}` here, and as `{found}` where the change comes from", definition.table);
    Err(shown(
        Diagnostic::new(Code::TypeMismatch, message)
            .help("one of them calls the column by another name: the states under a name are of one strategy"),
    ))
}

/// What changed here.
#[repr(C)]
struct Feed<'vtab> {
    /// SQLite's part; it must be the first.
    base: ffi::sqlite3_vtab_cursor,
    changes: *const Changes,
    rows: Vec<[Plain; 7]>,
    at: usize,
    of: PhantomData<&'vtab Changes>,
}

/// Changes that are read at a time.
const BATCH: usize = 1000;

impl Feed<'_> {
    /// The next changes, in the order of their numbers.
    fn fetch(&mut self, bound: &str, after: Plain) -> Result<()> {
        // SAFETY: a table outlives its cursors.
        let connection = unsafe { &(*self.changes).connection };
        let sql = format!(
            "SELECT tbl, pk, col, state, clock, seq, origin FROM main._mergeql_cells WHERE seq {bound} ?1 ORDER BY seq LIMIT {BATCH}"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let row = |row: &rusqlite::Row<'_>| {
            let mut values = [const { Plain::Null }; 7];
            for (i, value) in values.iter_mut().enumerate() {
                *value = row.get(i)?;
            }
            Ok(values)
        };
        self.rows = statement.query_map([after], row)?.collect::<Result<_>>()?;
        self.at = 0;
        Ok(())
    }
}

// SAFETY: SQLite's part is the first field.
unsafe impl VTabCursor for Feed<'_> {
    fn filter(&mut self, _: c_int, bound: Option<&str>, arguments: &Filters<'_>) -> Result<()> {
        self.rows.clear();
        // SAFETY: a table outlives its cursors.
        let changes = unsafe { &*self.changes };
        if site(&changes.connection)?.is_none() {
            return Ok(());
        }
        guarded(|| changes.take_notes())?;
        let after = if arguments.is_empty() { Plain::Integer(0) } else { arguments.get(0)? };
        let bound = bound.filter(|b| !b.is_empty()).unwrap_or(">").to_owned();
        self.fetch(&bound, after)
    }

    fn next(&mut self) -> Result<()> {
        self.at += 1;
        if self.at == BATCH
            && let Some(last) = self.rows.last()
        {
            let after = last[SEQ as usize].clone();
            return self.fetch(">", after);
        }
        Ok(())
    }

    fn eof(&self) -> bool {
        self.at >= self.rows.len()
    }

    fn column(&self, context: &mut Context, i: c_int) -> Result<()> {
        context.set_result(&self.rows[self.at][i as usize])
    }

    fn rowid(&self) -> Result<i64> {
        match &self.rows[self.at][SEQ as usize] {
            Plain::Integer(seq) => Ok(*seq),
            _ => Ok(0),
        }
    }
}
