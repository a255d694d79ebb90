//! The bare statement `MERGE a, b ON id STRATEGY ...` in DuckDB: `LOAD mergeql_syntax`, beside the extension `mergeql`.
//!
//! DuckDB's grammar is extended in C++ (`syntax.cpp`), so one binary serves one DuckDB release, and holds the code of that release that
//! it needs.

use mergeql_udfs::Value;
use std::ffi::{c_char, c_void};

unsafe extern "C-unwind" {
    fn mergeql_syntax_register(loader: *mut c_void);
}

/// Where DuckDB enters.
///
/// # Safety
/// DuckDB calls this with its loader. What C++ throws passes through to DuckDB.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn mergeql_syntax_duckdb_cpp_init(loader: *mut c_void) {
    // SAFETY: as above.
    unsafe { mergeql_syntax_register(loader) }
}

/// The SQL that a statement stands for (true), or why there is none (false), given to `give`.
///
/// # Safety
/// `statement` points to `length` bytes, and `give` takes `out`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mergeql_syntax_sql(
    statement: *const c_char,
    length: usize,
    out: *mut c_void,
    give: unsafe extern "C" fn(*mut c_void, *const c_char, usize),
) -> bool {
    // SAFETY: the caller's word.
    let bytes = unsafe { std::slice::from_raw_parts(statement.cast::<u8>(), length) };
    let statement = String::from_utf8_lossy(bytes).into_owned();
    let sql = std::panic::catch_unwind(|| mergeql_duckdb::statements::sql(&[Value::text(statement)]));
    let (found, text) = match sql {
        Ok(Ok(Value::Text(sql))) => (true, sql.to_string()),
        Ok(Ok(_)) => (false, "a statement is a text".to_owned()),
        Ok(Err(error)) => (false, error.to_string()),
        Err(_) => (false, "the statement could not be read".to_owned()),
    };
    // SAFETY: the caller's word.
    unsafe { give(out, text.as_ptr().cast(), text.len()) };
    found
}
