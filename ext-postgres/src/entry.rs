//! How Postgres calls us, and how it hears of errors.
#![allow(unsafe_code)]

use crate::spi::{self, Column};
use mergeql_lang::Diagnostic;
use mergeql_udfs::{Code, Error};
use pgrx::pg_sys;
use std::ffi::{CString, c_char, c_int};

/// What a call came to: a value, or `None` for NULL.
pub type Outcome = Result<Option<pg_sys::Datum>, Failure>;

/// An error.
#[derive(Debug)]
pub enum Failure {
    /// Ours, and the statement that it is about.
    Ours(Box<Diagnostic>, Option<String>),
    /// Postgres' own, with all that it said of it.
    Theirs(*mut pg_sys::ErrorData),
}

impl Failure {
    /// The same error, knowing the statement that it is in.
    pub fn known(self, statement: &str) -> Failure {
        match self {
            Failure::Ours(diagnostic, _) => Failure::Ours(diagnostic.in_text(statement), Some(statement.to_owned())),
            theirs => theirs,
        }
    }

    /// The same error, about a column.
    pub fn about(self, column: &str) -> Failure {
        match self {
            Failure::Ours(mut diagnostic, statement) => {
                diagnostic.message = format!("`{column}`: {}", diagnostic.message);
                Failure::Ours(diagnostic.about(column), statement)
            }
            theirs => theirs,
        }
    }
}

impl From<Box<Diagnostic>> for Failure {
    fn from(diagnostic: Box<Diagnostic>) -> Failure {
        Failure::Ours(diagnostic, None)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Box::<Diagnostic>::from(error).into()
    }
}

/// The arguments of a call.
#[derive(Clone, Copy)]
pub struct Call(pub pg_sys::FunctionCallInfo);

impl Call {
    /// How many arguments there are.
    pub fn len(self) -> usize {
        // SAFETY: Postgres passes a live call.
        unsafe { (*self.0).nargs as usize }
    }

    /// None?
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Argument `i`; `None` if it is NULL.
    #[inline]
    pub fn arg(self, i: usize) -> Option<pg_sys::Datum> {
        // SAFETY: callers ask for arguments that the function is declared with.
        let arg = unsafe { *(*self.0).args.as_ptr().add(i) };
        (!arg.isnull).then_some(arg.value)
    }

    /// The type of argument `i`, resolved for this place in the query.
    pub fn arg_type(self, i: usize) -> pg_sys::Oid {
        // SAFETY: as above.
        unsafe { pg_sys::get_fn_expr_argtype((*self.0).flinfo, i as c_int) }
    }

    /// The name of the function that is called.
    pub fn name(self) -> String {
        // SAFETY: the function exists, for it is called.
        unsafe {
            let name = pg_sys::get_func_name((*(*self.0).flinfo).fn_oid);
            if name.is_null() { String::new() } else { std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned() }
        }
    }

    /// Text argument `i`.
    ///
    /// # Errors
    /// `invalid_argument` if it is NULL.
    pub fn text(self, i: usize) -> Result<String, Failure> {
        match self.arg(i) {
            // SAFETY: the script declares the argument as text.
            Some(datum) => Ok(String::from_utf8_lossy(unsafe { crate::datums::varlena(datum) }).into_owned()),
            None => Err(Diagnostic::new(Code::InvalidArgument, "the statement is NULL").into()),
        }
    }

    /// What is kept for this place in the query, made at its first call and dropped with it.
    ///
    /// # Errors
    /// What making it fails with.
    pub fn kept<T>(self, make: impl FnOnce() -> Result<T, Failure>) -> Result<&'static mut T, Failure> {
        // SAFETY: `fn_extra` is ours; the box lives as long as the memory that the function information lies in.
        unsafe {
            let info = &mut *(*self.0).flinfo;
            if info.fn_extra.is_null() {
                // What is learned of types lives as long as the place.
                let before = pg_sys::MemoryContextSwitchTo(info.fn_mcxt);
                let made = make();
                pg_sys::MemoryContextSwitchTo(before);
                info.fn_extra = owned_by(info.fn_mcxt, made?).cast();
            }
            Ok(&mut *info.fn_extra.cast())
        }
    }

    /// The columns that the caller expects of a function that returns a set, in their places; `None` for one that was dropped.
    ///
    /// # Errors
    /// `unsupported` where rows cannot be taken; `help` shows how they are asked for.
    pub fn expected(self, help: &str) -> Result<Vec<Option<Column>>, Failure> {
        // SAFETY: Postgres passes what it expects.
        unsafe {
            let info: *mut pg_sys::ReturnSetInfo = (*self.0).resultinfo.cast();
            let materialize = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
            if info.is_null() || (*info).expectedDesc.is_null() || (*info).allowedModes as u32 & materialize == 0 {
                return Err(Diagnostic::new(Code::Unsupported, "rows are asked for in FROM").help(help).into());
            }
            Ok(spi::places((*info).expectedDesc))
        }
    }

    /// Gives rows, which `fill` puts into a store that spills: the columns are those of [`Call::expected`], which was asked before.
    ///
    /// # Errors
    /// Those of `fill`.
    pub fn give_rows(self, fill: impl FnOnce(*mut pg_sys::Tuplestorestate, pg_sys::TupleDesc) -> Result<(), Failure>) -> Outcome {
        // SAFETY: store and description live as long as the query; Postgres owns them from here on.
        unsafe {
            let info: *mut pg_sys::ReturnSetInfo = (*self.0).resultinfo.cast();
            let memory = (*(*info).econtext).ecxt_per_query_memory;
            let before = pg_sys::MemoryContextSwitchTo(memory);
            let random = (*info).allowedModes as u32 & pg_sys::SetFunctionReturnMode::SFRM_Materialize_Random != 0;
            let store = pg_sys::tuplestore_begin_heap(random, false, pg_sys::work_mem);
            let description = pg_sys::CreateTupleDescCopy((*info).expectedDesc);
            pg_sys::MemoryContextSwitchTo(before);
            fill(store, description)?;
            (*info).returnMode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
            (*info).setResult = store;
            (*info).setDesc = description;
        }
        Ok(None)
    }

    fn answer(self, datum: Option<pg_sys::Datum>) -> pg_sys::Datum {
        // SAFETY: the call is live.
        unsafe { (*self.0).isnull = datum.is_none() };
        datum.unwrap_or(pg_sys::Datum::from(0))
    }
}

/// What a guarded call came to.
pub enum Answer {
    /// A value.
    Given(pg_sys::Datum),
    /// An error that Postgres is told of when nothing of ours is left to be dropped.
    Refused(*const Refusal),
}

/// An error in Postgres' memory.
#[derive(Clone, Copy)]
pub enum Refusal {
    /// Ours.
    Ours(Said),
    /// Postgres' own.
    Theirs(*mut pg_sys::ErrorData),
}

/// What we say of an error; texts that are null are not there.
#[derive(Clone, Copy)]
pub struct Said {
    code: c_int,
    message: *const c_char,
    detail: *const c_char,
    hint: *const c_char,
    /// The statement that it is about, and the place in it, in characters from one.
    statement: *const c_char,
    place: c_int,
}

/// Runs a function.
#[inline]
pub fn answer(call: pg_sys::FunctionCallInfo, run: impl FnOnce(Call) -> Outcome) -> Answer {
    let call = Call(call);
    match run(call) {
        Ok(datum) => Answer::Given(call.answer(datum)),
        Err(failure) => Answer::Refused(refusal(failure)),
    }
}

/// Declares functions that Postgres calls by these names.
#[macro_export]
macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident, $info:ident => $run:expr;)*) => {$(
        #[doc(hidden)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $info() -> &'static pgrx::pg_sys::Pg_finfo_record {
            const RECORD: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &RECORD
        }

        $(#[$doc])*
        ///
        /// # Safety
        /// Postgres calls it.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(call: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
            let run = || $crate::entry::answer(call, $run);
            // SAFETY: nothing here has a destructor.
            match unsafe { pgrx::pg_sys::submodules::panic::pgrx_extern_c_guard(run) } {
                $crate::entry::Answer::Given(datum) => datum,
                // SAFETY: nothing here has a destructor.
                $crate::entry::Answer::Refused(refusal) => unsafe { $crate::entry::raise(refusal) },
            }
        }
    )*};
}

/// Memory of a context, with a value in it that is dropped before the context's memory is given back.
///
/// # Safety
/// `context` is a live memory context.
pub unsafe fn owned_by<T>(context: pg_sys::MemoryContext, value: T) -> *mut T {
    unsafe extern "C-unwind" fn drop_value<T>(value: *mut std::ffi::c_void) {
        // SAFETY: Postgres calls this once, while the memory is still there. A panic while dropping must not cross into it.
        let drop = std::panic::AssertUnwindSafe(|| unsafe { value.cast::<T>().drop_in_place() });
        std::panic::catch_unwind(drop).ok();
    }

    // SAFETY: the memory is fresh and large enough; Postgres aligns it to eight bytes, which suffices for what we keep.
    unsafe {
        const { assert!(align_of::<T>() <= 8, "Postgres aligns memory to eight bytes") };
        if !std::mem::needs_drop::<T>() {
            let owned: *mut T = pg_sys::MemoryContextAlloc(context, size_of::<T>()).cast();
            owned.write(value);
            return owned;
        }
        let owned: *mut (T, pg_sys::MemoryContextCallback) =
            pg_sys::MemoryContextAlloc(context, size_of::<(T, pg_sys::MemoryContextCallback)>()).cast();
        let (place, callback) = (&raw mut (*owned).0, &raw mut (*owned).1);
        place.write(value);
        let next = std::ptr::null_mut();
        callback.write(pg_sys::MemoryContextCallback { func: Some(drop_value::<T>), arg: place.cast(), next });
        pg_sys::MemoryContextRegisterResetCallback(context, callback);
        place
    }
}

/// Postgres packs five characters into an integer, six bits each.
fn packed(state: &str) -> c_int {
    state.bytes().enumerate().fold(0, |packed, (i, c)| packed | (c_int::from(c - b'0') & 0x3f) << (6 * i))
}

/// A text in Postgres' memory.
fn kept_text(text: &str) -> *const c_char {
    let text = CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
    // SAFETY: Postgres copies the text.
    unsafe { pg_sys::pstrdup(text.as_ptr()) }
}

/// SQLSTATE, message with our code, where in the statement, a hint.
fn said(diagnostic: &Diagnostic, statement: Option<&str>) -> Said {
    let maybe = |text: Option<&str>| text.map_or(std::ptr::null(), kept_text);
    let place = statement.and_then(|text| Some((text, diagnostic.position(text)?)));
    Said {
        code: packed(diagnostic.code.sqlstate()),
        message: kept_text(&format!("error[{}]: {}", diagnostic.code, diagnostic.message)),
        detail: maybe(diagnostic.detail().as_deref()),
        hint: maybe(diagnostic.help.as_deref().or(diagnostic.label.as_deref())),
        statement: maybe(place.map(|(text, _)| text)),
        place: place.map_or(0, |(_, at)| at as c_int),
    }
}

/// An error in Postgres' memory.
pub fn refusal(failure: impl Into<Failure>) -> *const Refusal {
    let refusal = match failure.into() {
        Failure::Ours(diagnostic, statement) => Refusal::Ours(said(&diagnostic, statement.as_deref())),
        Failure::Theirs(error) => Refusal::Theirs(error),
    };
    // SAFETY: the memory is fresh and large enough, and Postgres aligns it.
    unsafe {
        let owned: *mut Refusal = pg_sys::palloc(size_of::<Refusal>()).cast();
        owned.write(refusal);
        owned
    }
}

/// Tells Postgres of an error. It jumps out of here: by functions of its own, for the bindings' would make a panic of the jump and lose
/// the place.
///
/// # Safety
/// The refusal is one of [`refusal`], and no frame between here and Postgres has a destructor.
pub unsafe fn raise(refusal: *const Refusal) -> ! {
    unsafe extern "C-unwind" {
        fn errstart(level: c_int, domain: *const c_char) -> bool;
        fn errcode(code: c_int) -> c_int;
        fn errmsg_internal(format: *const c_char, ...) -> c_int;
        fn errdetail_internal(format: *const c_char, ...) -> c_int;
        fn errhint(format: *const c_char, ...) -> c_int;
        fn internalerrposition(place: c_int) -> c_int;
        fn internalerrquery(statement: *const c_char) -> c_int;
        fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
        fn ThrowErrorData(error: *mut pg_sys::ErrorData);
    }
    // SAFETY: Postgres copies every text.
    unsafe {
        let Said { code, message, detail, hint, statement, place } = match *refusal {
            Refusal::Ours(said) => said,
            Refusal::Theirs(error) => {
                ThrowErrorData(error);
                unreachable!("an error was raised")
            }
        };
        errstart(pg_sys::elog::PgLogLevel::ERROR as c_int, std::ptr::null());
        errcode(code);
        errmsg_internal(c"%s".as_ptr(), message);
        if !detail.is_null() {
            errdetail_internal(c"%s".as_ptr(), detail);
        }
        if !hint.is_null() {
            errhint(c"%s".as_ptr(), hint);
        }
        if !statement.is_null() {
            internalerrposition(place);
            internalerrquery(statement);
        }
        errfinish(c"mergeql".as_ptr(), 0, std::ptr::null());
    }
    unreachable!("an error was raised")
}
