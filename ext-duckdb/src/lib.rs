//! MergeQL in DuckDB: `LOAD './mergeql.duckdb_extension'`.
//!
//! A binding over `mergeql-udfs` and `mergeql-lang`; it holds no merge logic and does not grow when a strategy is added. One binary
//! serves every DuckDB whose stable C interface (v1.2.0) it finds, from 1.5 on (older ones call aggregates wrongly in
//! some windows and are refused).
//!
//! | module | what |
//! |---|---|
//! | [`api`] | the C functions, and types with owners |
//! | [`vectors`] | DuckDB's vectors as borrowed columns, values back into vectors |
//! | [`aggregates`] | the catalogue as aggregates |
//! | [`scalars`] | the scalar functions and `mergeql_strategies()` |
//! | [`files`] | the table functions over files of tensors |
//! | [`statements`] | from a MergeQL statement to DuckDB's SQL |
//!
//! No panic crosses into DuckDB: every callback runs inside [`api::guarded`].

pub mod aggregates;
pub mod api;
pub mod files;
pub mod scalars;
pub mod sorted;
pub mod statements;
pub mod vectors;

use api::{Access, Pointer, text};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Where DuckDB enters.
///
/// # Safety
/// DuckDB calls this once for each database, with valid pointers.
#[unsafe(no_mangle)]
#[allow(unsafe_code)]
pub unsafe extern "C" fn mergeql_init_c_api(info: Pointer, access: *const Access) -> bool {
    // SAFETY: DuckDB passes a valid table of its own functions.
    let access = unsafe { &*access };
    let result = std::panic::catch_unwind(|| {
        // SAFETY: as above; the connection lives only in here.
        unsafe {
            api::load(info, access)?;
            let database = (access.get_database)(info);
            if database.is_null() {
                return Err("DuckDB gives no database".to_owned());
            }
            let connection = api::Connection::open(*database)?;
            aggregates::register(&connection)?;
            scalars::register(&connection)?;
            files::register(&connection)?;
            statements::register(*database, &connection)
        }
    });
    let error = match result {
        Ok(Ok(())) => return true,
        Ok(Err(message)) => message,
        Err(_) => "mergeql could not be set up".to_owned(),
    };
    // SAFETY: the text lives until DuckDB has copied it.
    unsafe { (access.set_error)(info, text(&error).as_ptr()) };
    false
}
