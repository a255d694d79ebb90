//! MergeQL in SQLite: `load_extension('mergeql')`.
//!
//! A binding over `mergeql-udfs` and `mergeql-lang`; it holds no merge logic and does not grow when a strategy is added.
//!
//! | module | what |
//! |---|---|
//! | [`values`] | SQLite's values as ours, and back; errors |
//! | [`aggregates`] | the catalogue as aggregates |
//! | [`slots`] | states of fixed size |
//! | [`scalars`] | the scalar functions |
//! | [`statements`] | from a MergeQL statement to SQLite's SQL |
//! | `kept` | tables that keep states |
//! | [`table`] | `CREATE VIRTUAL TABLE ... USING mergeql(...)` |
//! | [`replicas`] | `crdt_table`, and the feed of changes |
//!
//! No panic crosses into SQLite: `rusqlite` catches them at every callback.

pub mod aggregates;
mod kept;
pub mod replicas;
pub mod scalars;
pub mod slots;
mod sources;
pub mod statements;
pub mod table;
pub mod values;

use rusqlite::{Connection, ffi};
use std::ffi::{c_char, c_int};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Where SQLite enters.
///
/// # Safety
/// SQLite calls this for each connection that loads the extension, with valid pointers.
#[unsafe(no_mangle)]
#[allow(unsafe_code)]
pub unsafe extern "C" fn sqlite3_mergeql_init(
    database: *mut ffi::sqlite3,
    message: *mut *mut c_char,
    api: *mut ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { Connection::extension_init2(database, message, api, init) }
}

/// Registers everything. The library stays loaded: virtual tables outlive the connection that loaded it.
fn init(connection: Connection) -> rusqlite::Result<bool> {
    aggregates::register(&connection)?;
    scalars::register(&connection)?;
    statements::register(&connection)?;
    table::register(&connection)?;
    replicas::register(&connection)?;
    Ok(true)
}
