//! MergeQL in Postgres: `CREATE EXTENSION mergeql`.
//!
//! A binding over `mergeql-udfs` and `mergeql-lang`; it holds no merge logic and does not grow when a strategy is added. Functions are
//! plain version-1 functions that the extension's script declares; the script is made from the catalogue by `cargo xtask postgres`.
//!
//! | module | what |
//! |---|---|
//! | [`entry`] | how Postgres calls us, and how it hears of errors |
//! | [`datums`] | Postgres' types and values as ours, and back |
//! | [`aggregates`] | the catalogue as aggregates |
//! | [`slots`] | states of fixed size, in the aggregate's memory |
//! | [`scalars`] | the scalar functions |
//! | [`states`] | the type `crdt` |
//! | [`files`] | the table functions over files of tensors |
//! | [`spi`] | statements that run in the caller's transaction |
//! | [`statements`] | from a MergeQL statement to Postgres' SQL |
//! | `writing` | statements that write |
//! | `kept` | tables that keep states |
//!
//! No panic crosses into Postgres: every function runs inside the guard of its bindings, and errors are raised outside of it.

pub mod aggregates;
pub mod datums;
pub mod entry;
pub mod files;
mod kept;
mod scalars;
pub mod slots;
pub mod spi;
pub mod statements;
pub mod states;
mod writing;

pgrx::pg_module_magic!(name, version);

/// Postgres loads the library: only a database in UTF-8 has the texts that the states have.
#[allow(non_snake_case, unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn _PG_init() {
    let check = || {
        // SAFETY: asked of the backend that loads us.
        let (connected, encoding) = unsafe { (pgrx::pg_sys::MyDatabaseId, pgrx::pg_sys::GetDatabaseEncoding()) };
        (connected != pgrx::pg_sys::InvalidOid && encoding != pgrx::pg_sys::pg_enc::PG_UTF8 as i32).then(|| {
            let refused =
                mergeql_lang::Diagnostic::new(mergeql_udfs::Code::Unsupported, "MergeQL needs a database whose encoding is UTF8");
            entry::refusal(refused.help("CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"))
        })
    };
    // SAFETY: nothing here has a destructor.
    unsafe {
        if let Some(refusal) = pgrx::pg_sys::submodules::panic::pgrx_extern_c_guard(check) {
            entry::raise(refusal);
        }
    }
}
