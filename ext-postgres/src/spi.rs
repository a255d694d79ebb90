//! Statements that run in the caller's transaction, with the caller's rights.
#![allow(unsafe_code)]

use crate::datums::{attribute, bytes};
use crate::entry::Failure;
use mergeql_lang::Diagnostic;
use mergeql_udfs::Code;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::{CStr, CString, c_int, c_void};

/// A connection to the executor. An error of Postgres' ends the statement, and Postgres takes the connection back itself.
pub struct Spi(());

/// A column of a query.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub oid: Oid,
    /// The modifier of its type; -1 without one.
    pub typmod: i32,
}

/// A prepared query.
pub struct Query {
    plan: pg_sys::SPIPlanPtr,
    description: pg_sys::TupleDesc,
}

fn c_text(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Diagnostic::new(Code::Syntax, "a statement has no NUL characters").into())
}

fn failed(what: &str, code: c_int) -> Failure {
    // SAFETY: a static text.
    let why = unsafe { CStr::from_ptr(pg_sys::SPI_result_code_string(code)) }.to_string_lossy();
    Diagnostic::new(Code::Unsupported, format!("{what}: {why}")).into()
}

/// Where a copy of an error is put, and the memory that it is made in.
struct Heard {
    memory: pg_sys::MemoryContext,
    error: *mut pg_sys::ErrorData,
}

/// Postgres asks every layer what it has to say of an error, inner ones first: this one says nothing, and copies what is there.
unsafe extern "C-unwind" fn hear(heard: *mut c_void) {
    unsafe extern "C-unwind" {
        // Those of the bindings would make a panic of an error in here, which must not cross Postgres' own frames.
        fn CopyErrorData() -> *mut pg_sys::ErrorData;
        fn FreeErrorData(error: *mut pg_sys::ErrorData);
    }
    // SAFETY: what is heard lives as long as its place in Postgres' stack of callbacks.
    unsafe {
        let heard: *mut Heard = heard.cast();
        let before = pg_sys::MemoryContextSwitchTo((*heard).memory);
        let error = CopyErrorData();
        let ends = (*error).elevel >= pg_sys::elog::PgLogLevel::ERROR as c_int;
        // A function may catch an error for each row: the last one is all that is kept.
        let useless = if ends { std::mem::replace(&mut (*heard).error, error) } else { error };
        if !useless.is_null() {
            FreeErrorData(useless);
        }
        pg_sys::MemoryContextSwitchTo(before);
    }
}

/// Runs; an error of Postgres' comes back with its constraint, table, context and all else, which the bindings drop.
fn errors_whole<T>(run: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // SAFETY: the callback is taken away before what it writes to is gone, whatever happens in between.
    unsafe {
        let mut heard = Heard { memory: pg_sys::CurrentMemoryContext, error: std::ptr::null_mut() };
        let previous = pg_sys::error_context_stack;
        let mut callback = pg_sys::ErrorContextCallback { previous, callback: Some(hear), arg: (&raw mut heard).cast() };
        pg_sys::error_context_stack = &raw mut callback;
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        pg_sys::error_context_stack = previous;
        match result {
            Ok(result) => result,
            Err(panic) => match panic.downcast_ref() {
                Some(CaughtError::PostgresError(_)) if !heard.error.is_null() => Err(Failure::Theirs(heard.error)),
                _ => std::panic::resume_unwind(panic),
            },
        }
    }
}

impl Spi {
    /// Connects, runs, and disconnects.
    ///
    /// # Errors
    /// Those of `run`; Postgres' own are [`Failure::Theirs`].
    pub fn connect<T>(run: impl FnOnce(&Spi) -> Result<T, Failure>) -> Result<T, Failure> {
        // SAFETY: connections nest, and each is finished.
        let connected = || unsafe {
            match pg_sys::SPI_connect() {
                code if code < 0 => Err(failed("no connection to the executor", code)),
                _ => {
                    let result = run(&Spi(()));
                    pg_sys::SPI_finish();
                    result
                }
            }
        };
        errors_whole(connected)
    }

    /// The rows of a query, each value as text.
    ///
    /// # Errors
    /// What Postgres says, as its own error.
    pub fn texts(&self, sql: &str, arguments: &[&str]) -> Result<Vec<Vec<Option<String>>>, Failure> {
        let sql = c_text(sql)?;
        let mut types = vec![pg_sys::TEXTOID; arguments.len()];
        let mut values: Vec<Datum> = arguments.iter().map(|a| bytes(a.as_bytes())).collect();
        // SAFETY: as many types as values; the tuple table lives until the next statement.
        unsafe {
            let n = arguments.len() as c_int;
            let (types, values) = (types.as_mut_ptr(), values.as_mut_ptr());
            let code = pg_sys::SPI_execute_with_args(sql.as_ptr(), n, types, values, std::ptr::null(), false, 0);
            if code < 0 {
                return Err(failed("the statement did not run", code));
            }
            let table = pg_sys::SPI_tuptable;
            if table.is_null() {
                return Ok(Vec::new());
            }
            let description = (*table).tupdesc;
            let value = |row: usize, column: c_int| {
                let text = pg_sys::SPI_getvalue(*(*table).vals.add(row), description, column + 1);
                (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            };
            let row = |row: usize| (0..(*description).natts).map(|column| value(row, column)).collect();
            let rows = (0..pg_sys::SPI_processed as usize).map(row).collect();
            pg_sys::SPI_freetuptable(table);
            Ok(rows)
        }
    }

    /// Prepares one query that gives rows.
    ///
    /// # Errors
    /// What Postgres says, as its own error; `unsupported` for a text of several statements, or one that gives no rows.
    pub fn prepare(&self, sql: &str) -> Result<Query, Failure> {
        let plan = self.prepare_one(sql)?;
        // SAFETY: the plan is live, and has one source.
        unsafe {
            let sources = pg_sys::SPI_plan_get_plan_sources(plan);
            let source: *mut pg_sys::CachedPlanSource = (*(*sources).elements).ptr_value.cast();
            let description = (*source).resultDesc;
            if description.is_null() {
                return Err(Diagnostic::new(Code::Unsupported, "the statement gives no rows").into());
            }
            Ok(Query { plan, description })
        }
    }

    fn prepare_one(&self, sql: &str) -> Result<pg_sys::SPIPlanPtr, Failure> {
        let sql = c_text(sql)?;
        // SAFETY: Postgres copies the text.
        unsafe {
            let parallel = pg_sys::CURSOR_OPT_PARALLEL_OK as c_int;
            let plan = pg_sys::SPI_prepare_cursor(sql.as_ptr(), 0, std::ptr::null_mut(), parallel);
            if plan.is_null() {
                return Err(failed("the statement cannot be prepared", pg_sys::SPI_result));
            }
            let sources = pg_sys::SPI_plan_get_plan_sources(plan);
            if sources.is_null() || (*sources).length != 1 {
                return Err(Diagnostic::new(Code::Syntax, "this is more than one statement").into());
            }
            Ok(plan)
        }
    }

    /// Runs one statement; gives back how many rows it changed.
    ///
    /// # Errors
    /// What Postgres says, as its own error; `syntax` for a text of several statements.
    pub fn run(&self, sql: &str) -> Result<u64, Failure> {
        let plan = self.prepare_one(sql)?;
        // SAFETY: the plan takes no arguments.
        unsafe {
            let code = pg_sys::SPI_execute_plan(plan, std::ptr::null_mut(), std::ptr::null(), false, 0);
            if code < 0 { Err(failed("the statement did not run", code)) } else { Ok(pg_sys::SPI_processed) }
        }
    }
}

impl Query {
    /// Its columns.
    pub fn columns(&self) -> Vec<Column> {
        // SAFETY: the description lives as long as the plan.
        unsafe { columns(self.description) }
    }

    /// Puts all rows into a store that spills.
    ///
    /// # Errors
    /// What Postgres says, as its own error; `unsupported` for what is no query.
    ///
    /// # Safety
    /// The store is live, and rows of these columns belong into it.
    pub unsafe fn store(&self, store: *mut pg_sys::Tuplestorestate) -> Result<(), Failure> {
        // SAFETY: the plan takes no arguments.
        if !unsafe { pg_sys::SPI_is_cursor_plan(self.plan) } {
            return Err(Diagnostic::new(Code::Unsupported, "the statement is no query").into());
        }
        // SAFETY: as the caller promises.
        unsafe { self.fill(store) }
    }

    /// All at once: a plan that is fetched from by parts is never a parallel one.
    #[cfg(not(feature = "pg13"))]
    unsafe fn fill(&self, store: *mut pg_sys::Tuplestorestate) -> Result<(), Failure> {
        unsafe extern "C-unwind" {
            // Sets fields, and no more; the bindings leave it out.
            fn SetTuplestoreDestReceiverParams(
                receiver: *mut pg_sys::DestReceiver,
                store: *mut pg_sys::Tuplestorestate,
                context: pg_sys::MemoryContext,
                detoast: bool,
                target: pg_sys::TupleDesc,
                refusal: *const std::ffi::c_char,
            );
        }
        // SAFETY: the plan takes no arguments; what receives the rows lives until they are there.
        let code = unsafe {
            let receiver = pg_sys::CreateDestReceiver(pg_sys::CommandDest::DestTuplestore);
            let none = std::ptr::null_mut();
            SetTuplestoreDestReceiverParams(receiver, store, pg_sys::CurrentMemoryContext, false, none, std::ptr::null());
            let options = pg_sys::SPIExecuteOptions { dest: receiver, ..std::mem::zeroed() };
            let code = pg_sys::SPI_execute_plan_extended(self.plan, &options);
            if let Some(destroy) = (*receiver).rDestroy {
                destroy(receiver);
            }
            code
        };
        if code < 0 { Err(failed("the query did not run", code)) } else { Ok(()) }
    }

    #[cfg(feature = "pg13")]
    unsafe fn fill(&self, store: *mut pg_sys::Tuplestorestate) -> Result<(), Failure> {
        // SAFETY: the plan takes no arguments; rows are put away while they live.
        unsafe {
            let portal = pg_sys::SPI_cursor_open(std::ptr::null(), self.plan, std::ptr::null_mut(), std::ptr::null(), false);
            loop {
                pg_sys::SPI_cursor_fetch(portal, true, 1000);
                let (table, n) = (pg_sys::SPI_tuptable, pg_sys::SPI_processed as usize);
                (0..n).for_each(|i| pg_sys::tuplestore_puttuple(store, *(*table).vals.add(i)));
                pg_sys::SPI_freetuptable(table);
                if n == 0 {
                    break;
                }
            }
            pg_sys::SPI_cursor_close(portal);
        }
        Ok(())
    }
}

/// The columns of a description.
///
/// # Safety
/// The description is live.
pub unsafe fn columns(description: pg_sys::TupleDesc) -> Vec<Column> {
    // SAFETY: as the caller promises.
    unsafe { places(description) }.into_iter().flatten().collect()
}

/// The places of a row of this description: its columns, and `None` for those that were dropped.
///
/// # Safety
/// The description is live.
pub unsafe fn places(description: pg_sys::TupleDesc) -> Vec<Option<Column>> {
    // SAFETY: as the caller promises.
    unsafe {
        let column = |i: usize| {
            let a = attribute(description, i);
            let name = CStr::from_ptr((*a).attname.data.as_ptr()).to_string_lossy().into_owned();
            (!(*a).attisdropped).then_some(Column { name, oid: (*a).atttypid, typmod: (*a).atttypmod })
        };
        (0..(*description).natts as usize).map(column).collect()
    }
}

/// The name of a type in SQL.
pub fn type_name(oid: Oid, typmod: i32) -> String {
    // SAFETY: OIDs come from Postgres.
    unsafe { CStr::from_ptr(pg_sys::format_type_with_typemod(oid, typmod)) }.to_string_lossy().into_owned()
}
