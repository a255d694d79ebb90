//! The functions of DuckDB's stable C interface (v1.2.0, the first 357 slots of its table) that are used here, by slot, and three that
//! came with v1.5.6; and its types with owners.
#![allow(unsafe_code, missing_docs)]

use mergeql_lang::Diagnostic;
use mergeql_udfs::{Error, Type, Unit};
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::{Arc, OnceLock};

pub type Pointer = *mut c_void;
pub type Delete = unsafe extern "C" fn(Pointer);
pub type Scalar = unsafe extern "C" fn(Pointer, Pointer, Pointer);
pub type StateSize = unsafe extern "C" fn(Pointer) -> u64;
pub type StateInit = unsafe extern "C" fn(Pointer, Pointer);
pub type Update = unsafe extern "C" fn(Pointer, Pointer, *mut Pointer);
pub type Combine = unsafe extern "C" fn(Pointer, *mut Pointer, *mut Pointer, u64);
pub type Finalize = unsafe extern "C" fn(Pointer, *mut Pointer, Pointer, u64, u64);
pub type Destroy = unsafe extern "C" fn(*mut Pointer, u64);
pub type Replacement = unsafe extern "C" fn(Pointer, *const c_char, Pointer);
pub type TableCallback = unsafe extern "C" fn(Pointer);
pub type TableFill = unsafe extern "C" fn(Pointer, Pointer);

/// `duckdb_result`.
#[repr(C)]
pub struct QueryResult {
    deprecated: [u64; 3],
    columns: Pointer,
    error: Pointer,
    internal: Pointer,
}

/// `duckdb_extension_access`.
#[repr(C)]
pub struct Access {
    pub set_error: unsafe extern "C" fn(Pointer, *const c_char),
    pub get_database: unsafe extern "C" fn(Pointer) -> *mut Pointer,
    pub get_api: unsafe extern "C" fn(Pointer, *const c_char) -> *const *const c_void,
}

macro_rules! slots {
    ($(#[$doc:meta])* $api:ident, $end:literal, $($slot:literal $name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        $(#[$doc])*
        pub struct $api { $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)* }

        impl $api {
            /// # Safety
            /// `table` is DuckDB's own, of a version with these slots.
            unsafe fn read(table: *const *const c_void) -> Option<$api> {
                Some($api { $($name: {
                    const { assert!($slot < $end, "not in the interface of this version") };
                    // SAFETY: the slot is inside the table, and holds a function of this signature.
                    unsafe {
                        let slot = *table.add($slot);
                        if slot.is_null() {
                            return None;
                        }
                        std::mem::transmute::<*const c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(slot)
                    }
                },)* })
            }
        }
    };
}

slots! {
    /// Functions of v1.5.6: what a query's session allows.
    Sessions, 548,
    431 client_context_get_config_option(Pointer, *const c_char, *mut u32) -> Pointer;
    501 destroy_client_context(*mut Pointer);
    531 table_function_get_client_context(Pointer, *mut Pointer);
}

slots! {
    /// The functions, each read from its slot of DuckDB's table.
    Api, 357,
    3 connect(Pointer, *mut Pointer) -> u32;
    6 disconnect(*mut Pointer);
    7 library_version() -> *const c_char;
    13 query(Pointer, *const c_char, *mut QueryResult) -> u32;
    14 destroy_result(*mut QueryResult);
    21 result_error(*mut QueryResult) -> *const c_char;
    25 free(Pointer);
    92 destroy_value(*mut Pointer);
    94 create_varchar_length(*const c_char, u64) -> Pointer;
    118 get_bool(Pointer) -> bool;
    130 get_double(Pointer) -> f64;
    136 get_value_type(Pointer) -> Pointer;
    142 get_varchar(Pointer) -> *mut c_char;
    149 is_null_value(Pointer) -> bool;
    151 get_list_size(Pointer) -> u64;
    152 get_list_child(Pointer, u64) -> Pointer;
    156 create_logical_type(u32) -> Pointer;
    159 create_list_type(Pointer) -> Pointer;
    161 create_map_type(Pointer, Pointer) -> Pointer;
    163 create_struct_type(*mut Pointer, *const *const c_char, u64) -> Pointer;
    165 create_decimal_type(u8, u8) -> Pointer;
    166 get_type_id(Pointer) -> u32;
    167 decimal_width(Pointer) -> u8;
    168 decimal_scale(Pointer) -> u8;
    171 enum_dictionary_size(Pointer) -> u32;
    172 enum_dictionary_value(Pointer, u64) -> *mut c_char;
    173 list_type_child_type(Pointer) -> Pointer;
    174 array_type_child_type(Pointer) -> Pointer;
    175 array_type_array_size(Pointer) -> u64;
    176 map_type_key_type(Pointer) -> Pointer;
    177 map_type_value_type(Pointer) -> Pointer;
    178 struct_type_child_count(Pointer) -> u64;
    179 struct_type_child_name(Pointer, u64) -> *mut c_char;
    180 struct_type_child_type(Pointer, u64) -> Pointer;
    184 destroy_logical_type(*mut Pointer);
    189 data_chunk_get_column_count(Pointer) -> u64;
    190 data_chunk_get_vector(Pointer, u64) -> Pointer;
    191 data_chunk_get_size(Pointer) -> u64;
    192 data_chunk_set_size(Pointer, u64);
    193 vector_get_column_type(Pointer) -> Pointer;
    194 vector_get_data(Pointer) -> Pointer;
    195 vector_get_validity(Pointer) -> *mut u64;
    196 vector_ensure_validity_writable(Pointer);
    198 vector_assign_string_element_len(Pointer, u64, *const c_char, u64);
    199 list_vector_get_child(Pointer) -> Pointer;
    200 list_vector_get_size(Pointer) -> u64;
    201 list_vector_set_size(Pointer, u64) -> u32;
    202 list_vector_reserve(Pointer, u64) -> u32;
    203 struct_vector_get_child(Pointer, u64) -> Pointer;
    204 array_vector_get_child(Pointer) -> Pointer;
    209 create_scalar_function() -> Pointer;
    210 destroy_scalar_function(*mut Pointer);
    211 scalar_function_set_name(Pointer, *const c_char);
    212 scalar_function_set_varargs(Pointer, Pointer);
    213 scalar_function_set_special_handling(Pointer);
    214 scalar_function_set_volatile(Pointer);
    215 scalar_function_add_parameter(Pointer, Pointer);
    216 scalar_function_set_return_type(Pointer, Pointer);
    217 scalar_function_set_extra_info(Pointer, Pointer, Delete);
    218 scalar_function_set_function(Pointer, Scalar);
    220 scalar_function_get_extra_info(Pointer) -> Pointer;
    221 scalar_function_set_error(Pointer, *const c_char);
    222 create_scalar_function_set(*const c_char) -> Pointer;
    223 destroy_scalar_function_set(*mut Pointer);
    224 add_scalar_function_to_set(Pointer, Pointer) -> u32;
    225 register_scalar_function_set(Pointer, Pointer) -> u32;
    226 create_aggregate_function() -> Pointer;
    227 destroy_aggregate_function(*mut Pointer);
    228 aggregate_function_set_name(Pointer, *const c_char);
    229 aggregate_function_add_parameter(Pointer, Pointer);
    230 aggregate_function_set_return_type(Pointer, Pointer);
    231 aggregate_function_set_functions(Pointer, StateSize, StateInit, Update, Combine, Finalize);
    232 aggregate_function_set_destructor(Pointer, Destroy);
    234 aggregate_function_set_special_handling(Pointer);
    235 aggregate_function_set_extra_info(Pointer, Pointer, Delete);
    236 aggregate_function_get_extra_info(Pointer) -> Pointer;
    237 aggregate_function_set_error(Pointer, *const c_char);
    238 create_aggregate_function_set(*const c_char) -> Pointer;
    239 destroy_aggregate_function_set(*mut Pointer);
    240 add_aggregate_function_to_set(Pointer, Pointer) -> u32;
    241 register_aggregate_function_set(Pointer, Pointer) -> u32;
    242 create_table_function() -> Pointer;
    243 destroy_table_function(*mut Pointer);
    244 table_function_set_name(Pointer, *const c_char);
    245 table_function_add_parameter(Pointer, Pointer);
    246 table_function_add_named_parameter(Pointer, *const c_char, Pointer);
    247 table_function_set_extra_info(Pointer, Pointer, Option<Delete>);
    248 table_function_set_bind(Pointer, TableCallback);
    249 table_function_set_init(Pointer, TableCallback);
    251 table_function_set_function(Pointer, TableFill);
    252 table_function_supports_projection_pushdown(Pointer, bool);
    253 register_table_function(Pointer, Pointer) -> u32;
    254 bind_get_extra_info(Pointer) -> Pointer;
    255 bind_add_result_column(Pointer, *const c_char, Pointer);
    256 bind_get_parameter_count(Pointer) -> u64;
    257 bind_get_parameter(Pointer, u64) -> Pointer;
    258 bind_get_named_parameter(Pointer, *const c_char) -> Pointer;
    259 bind_set_bind_data(Pointer, Pointer, Delete);
    260 bind_set_cardinality(Pointer, u64, bool);
    261 bind_set_error(Pointer, *const c_char);
    263 init_get_bind_data(Pointer) -> Pointer;
    264 init_set_init_data(Pointer, Pointer, Delete);
    265 init_get_column_count(Pointer) -> u64;
    266 init_get_column_index(Pointer, u64) -> u64;
    270 function_get_bind_data(Pointer) -> Pointer;
    271 function_get_init_data(Pointer) -> Pointer;
    273 function_set_error(Pointer, *const c_char);
    274 add_replacement_scan(Pointer, Replacement, Pointer, Option<Delete>);
    275 replacement_scan_set_function_name(Pointer, *const c_char);
    276 replacement_scan_add_parameter(Pointer, Pointer);
    277 replacement_scan_set_error(Pointer, *const c_char);
}

static API: OnceLock<Api> = OnceLock::new();
static SESSIONS: OnceLock<Option<Sessions>> = OnceLock::new();

/// What a query's session allows, in a DuckDB that tells.
pub fn sessions() -> Option<&'static Sessions> {
    SESSIONS.get()?.as_ref()
}

/// The functions; every callback runs after [`load`].
#[inline]
pub fn duckdb() -> &'static Api {
    API.get().expect("invariant: DuckDB calls nothing before the functions are loaded")
}

/// Copies the functions out of DuckDB's table, which dies when the entry returns.
///
/// # Safety
/// The pointers are those that DuckDB passes to the entry.
pub unsafe fn load(info: Pointer, access: &Access) -> Result<(), String> {
    // SAFETY: as the caller promises.
    let table = unsafe { (access.get_api)(info, c"v1.2.0".as_ptr()) };
    if table.is_null() {
        return Err(TOO_OLD.to_owned());
    }
    // SAFETY: a table of v1.2.0 has these slots.
    let read = unsafe { Api::read(table) }.ok_or("a function of DuckDB's C interface is missing")?;
    API.get_or_init(|| read);
    // SAFETY: these versions have the slots of v1.5.6.
    SESSIONS.get_or_init(|| if has_sessions(library_version()) { unsafe { Sessions::read(table) } } else { None });
    if at_least(library_version(), (1, 5, 0)) { Ok(()) } else { Err(TOO_OLD.to_owned()) }
}

const TOO_OLD: &str = "MergeQL needs DuckDB 1.5 or newer";

fn library_version() -> &'static str {
    // SAFETY: a static text of DuckDB's.
    unsafe { CStr::from_ptr((duckdb().library_version)()) }.to_str().unwrap_or_default()
}

/// Whether the slots of [`Sessions`] are where they are read, which is promised for no other version.
fn has_sessions(version: &str) -> bool {
    at_least(version, (1, 5, 6)) && (version.starts_with("v1.5.") || version.starts_with("v2.0."))
}

/// Whether a version is this one or a later one. Versions of other forms are builds from source, and new.
///
/// DuckDB before 1.5 calls aggregates of the C interface wrongly in windows over whole partitions: it passes one state for all rows,
/// where one pointer a row is promised.
fn at_least(version: &str, least: (u32, u32, u32)) -> bool {
    let mut parts = version.strip_prefix('v').unwrap_or_default().split(['.', '-']).map_while(|p| p.parse::<u32>().ok());
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => (major, minor, parts.next().unwrap_or(0)) >= least,
        _ => true,
    }
}

/// A C text; NULs end nothing, they become the replacement character.
pub fn text(s: &str) -> CString {
    CString::new(s.replace('\0', "\u{fffd}")).unwrap_or_default()
}

/// Whether this DuckDB is of the 1.x line.
pub fn is_version_1() -> bool {
    static IS: OnceLock<bool> = OnceLock::new();
    *IS.get_or_init(|| library_version().starts_with("v1."))
}

/// What a callback fails with, as DuckDB shows it.
pub struct Failure(String);

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Box::<Diagnostic>::from(error).into()
    }
}

impl From<Box<Diagnostic>> for Failure {
    fn from(diagnostic: Box<Diagnostic>) -> Failure {
        Failure(diagnostic.to_string())
    }
}

/// Runs a callback: an error, or a panic, becomes DuckDB's error.
pub fn guarded(run: impl FnOnce() -> Result<(), Failure>, set_error: impl FnOnce(&CStr)) {
    let error = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(Ok(())) => return,
        Ok(Err(Failure(error))) => error,
        Err(panic) => match panic.downcast::<Error>() {
            Ok(error) => Failure::from(*error).0,
            Err(panic) => {
                let what = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
                format!("error[unsupported]: MergeQL failed: {}", what.unwrap_or("no reason is known"))
            }
        },
    };
    set_error(&text(&error));
}

/// A connection of our own, closed when dropped.
pub struct Connection(pub Pointer);

impl Connection {
    /// # Safety
    /// `database` is DuckDB's.
    pub unsafe fn open(database: Pointer) -> Result<Connection, String> {
        let mut connection = std::ptr::null_mut();
        // SAFETY: as the caller promises.
        match unsafe { (duckdb().connect)(database, &mut connection) } {
            0 => Ok(Connection(connection)),
            _ => Err("DuckDB opens no connection".to_owned()),
        }
    }

    /// Runs a statement.
    pub fn run(&self, sql: &str) -> Result<(), String> {
        // SAFETY: a result is plain memory that DuckDB fills and destroys.
        unsafe {
            let mut result: QueryResult = std::mem::zeroed();
            let state = (duckdb().query)(self.0, text(sql).as_ptr(), &mut result);
            let message = (duckdb().result_error)(&mut result);
            let error = match (state, message.is_null()) {
                (0, _) => Ok(()),
                (_, true) => Err(format!("{sql} failed")),
                (_, false) => Err(format!("{sql}: {}", CStr::from_ptr(message).to_string_lossy())),
            };
            (duckdb().destroy_result)(&mut result);
            error
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: it was opened by us and is closed once.
        unsafe { (duckdb().disconnect)(&mut self.0) };
    }
}

/// Type ids of the C interface.
pub mod id {
    pub const BOOLEAN: u32 = 1;
    pub const TINYINT: u32 = 2;
    pub const SMALLINT: u32 = 3;
    pub const INTEGER: u32 = 4;
    pub const BIGINT: u32 = 5;
    pub const UTINYINT: u32 = 6;
    pub const USMALLINT: u32 = 7;
    pub const UINTEGER: u32 = 8;
    pub const UBIGINT: u32 = 9;
    pub const FLOAT: u32 = 10;
    pub const DOUBLE: u32 = 11;
    pub const TIMESTAMP: u32 = 12;
    pub const DATE: u32 = 13;
    pub const TIME: u32 = 14;
    pub const INTERVAL: u32 = 15;
    pub const HUGEINT: u32 = 16;
    pub const VARCHAR: u32 = 17;
    pub const BLOB: u32 = 18;
    pub const DECIMAL: u32 = 19;
    pub const TIMESTAMP_S: u32 = 20;
    pub const TIMESTAMP_MS: u32 = 21;
    pub const TIMESTAMP_NS: u32 = 22;
    pub const ENUM: u32 = 23;
    pub const LIST: u32 = 24;
    pub const STRUCT: u32 = 25;
    pub const MAP: u32 = 26;
    pub const UUID: u32 = 27;
    pub const TIMESTAMP_TZ: u32 = 31;
    pub const ARRAY: u32 = 33;
    pub const ANY: u32 = 34;
    pub const SQLNULL: u32 = 36;
    pub const TIME_NS: u32 = 39;

    /// Types that the core does not have.
    pub const OTHERS: [(u32, &str); 5] =
        [(28, "UNION"), (29, "BIT"), (30, "TIME WITH TIME ZONE"), (32, "UHUGEINT"), (35, "BIGNUM")];
}

/// A logical type of DuckDB's, destroyed when dropped.
pub struct LogicalType(pub Pointer);

impl LogicalType {
    /// A type without parameters.
    pub fn of_id(id: u32) -> LogicalType {
        // SAFETY: every id is valid here.
        LogicalType(unsafe { (duckdb().create_logical_type)(id) })
    }

    /// The type that holds values of a logical type of the core.
    pub fn of(ty: &Type) -> LogicalType {
        let api = duckdb();
        let id = match ty {
            Type::Null => id::INTEGER,
            Type::Boolean => id::BOOLEAN,
            Type::Int { bits: 8, signed: true } => id::TINYINT,
            Type::Int { bits: 16, signed: true } => id::SMALLINT,
            Type::Int { bits: 32, signed: true } => id::INTEGER,
            Type::Int { bits: 64, signed: true } => id::BIGINT,
            Type::Int { bits: 8, .. } => id::UTINYINT,
            Type::Int { bits: 16, .. } => id::USMALLINT,
            Type::Int { bits: 32, .. } => id::UINTEGER,
            Type::Int { bits: 64, .. } => id::UBIGINT,
            Type::Int { .. } => id::HUGEINT,
            Type::Float32 => id::FLOAT,
            Type::Float64 => id::DOUBLE,
            Type::Text => id::VARCHAR,
            Type::Bytes => id::BLOB,
            Type::Date => id::DATE,
            Type::Time(_) => id::TIME,
            Type::Timestamp { zone: Some(_), .. } => id::TIMESTAMP_TZ,
            Type::Timestamp { unit, .. } => match unit {
                Unit::Second => id::TIMESTAMP_S,
                Unit::Millisecond => id::TIMESTAMP_MS,
                Unit::Microsecond => id::TIMESTAMP,
                Unit::Nanosecond => id::TIMESTAMP_NS,
            },
            Type::Interval => id::INTERVAL,
            Type::Uuid => id::UUID,
            // SAFETY: the parts live until the new type has copied them.
            Type::Decimal { precision, scale } => {
                return LogicalType(unsafe { (api.create_decimal_type)(*precision, (*scale).max(0) as u8) });
            }
            Type::List(element) => {
                let element = LogicalType::of(element);
                return LogicalType(unsafe { (api.create_list_type)(element.0) });
            }
            Type::Map(key, value) => {
                let (key, value) = (LogicalType::of(key), LogicalType::of(value));
                return LogicalType(unsafe { (api.create_map_type)(key.0, value.0) });
            }
            Type::Struct(fields) => {
                let types: Vec<LogicalType> = fields.iter().map(|(_, ty)| LogicalType::of(ty)).collect();
                let names: Vec<CString> = fields.iter().map(|(name, _)| text(name)).collect();
                let mut types: Vec<Pointer> = types.iter().map(|t| t.0).collect();
                let names: Vec<*const c_char> = names.iter().map(|n| n.as_ptr()).collect();
                return LogicalType(unsafe { (api.create_struct_type)(types.as_mut_ptr(), names.as_ptr(), fields.len() as u64) });
            }
        };
        LogicalType::of_id(id)
    }

    /// The type id.
    pub fn id(&self) -> u32 {
        // SAFETY: the type is alive.
        unsafe { (duckdb().get_type_id)(self.0) }
    }

    /// The logical type of the core.
    ///
    /// # Errors
    /// `unsupported` for types that the core does not have.
    pub fn logical(&self) -> Result<Type, Error> {
        let api = duckdb();
        let int = |bits, signed| Type::Int { bits, signed };
        let stamp = |unit| Type::Timestamp { unit, zone: None };
        let child = |pointer: Pointer| LogicalType(pointer).logical();
        // SAFETY: the type is alive and of the kind that each function asks for.
        Ok(unsafe {
            match self.id() {
                id::SQLNULL => Type::Null,
                id::BOOLEAN => Type::Boolean,
                id::TINYINT => int(8, true),
                id::SMALLINT => int(16, true),
                id::INTEGER => int(32, true),
                id::BIGINT => int(64, true),
                id::HUGEINT => int(128, true),
                id::UTINYINT => int(8, false),
                id::USMALLINT => int(16, false),
                id::UINTEGER => int(32, false),
                id::UBIGINT => int(64, false),
                id::FLOAT => Type::Float32,
                id::DOUBLE => Type::Float64,
                id::VARCHAR | id::ENUM => Type::Text,
                id::BLOB => Type::Bytes,
                id::DATE => Type::Date,
                id::TIME => Type::Time(Unit::Microsecond),
                id::TIMESTAMP => stamp(Unit::Microsecond),
                id::TIMESTAMP_S => stamp(Unit::Second),
                id::TIMESTAMP_MS => stamp(Unit::Millisecond),
                id::TIMESTAMP_NS => stamp(Unit::Nanosecond),
                id::TIMESTAMP_TZ => Type::Timestamp { unit: Unit::Microsecond, zone: Some(Arc::from("UTC")) },
                id::INTERVAL => Type::Interval,
                id::UUID => Type::Uuid,
                id::DECIMAL => Type::Decimal { precision: (api.decimal_width)(self.0), scale: (api.decimal_scale)(self.0) as i8 },
                id::LIST => Type::List(Box::new(child((api.list_type_child_type)(self.0))?)),
                id::ARRAY => Type::List(Box::new(child((api.array_type_child_type)(self.0))?)),
                id::MAP => Type::Map(
                    Box::new(child((api.map_type_key_type)(self.0))?),
                    Box::new(child((api.map_type_value_type)(self.0))?),
                ),
                id::STRUCT => Type::Struct(
                    (0..(api.struct_type_child_count)(self.0))
                        .map(|i| {
                            let name = owned_text((api.struct_type_child_name)(self.0, i));
                            Ok((Arc::from(name), child((api.struct_type_child_type)(self.0, i))?))
                        })
                        .collect::<Result<_, Error>>()?,
                ),
                id::TIME_NS => Type::Time(Unit::Nanosecond),
                other => {
                    let named = id::OTHERS.iter().find(|(number, _)| *number == other).map(|(_, name)| (*name).to_owned());
                    let name = named.unwrap_or_else(|| format!("number {other}"));
                    let message = format!("DuckDB's type {name} cannot be merged");
                    return Err(Error::new(mergeql_udfs::Code::Unsupported, message).with_help("cast the column to another type"));
                }
            }
        })
    }
}

impl Drop for LogicalType {
    fn drop(&mut self) {
        // SAFETY: it is ours and destroyed once.
        unsafe { (duckdb().destroy_logical_type)(&mut self.0) };
    }
}

/// A text that DuckDB allocated for us.
///
/// # Safety
/// `pointer` is such a text.
pub unsafe fn owned_text(pointer: *mut c_char) -> String {
    // SAFETY: as the caller promises; it is freed once.
    unsafe {
        let text = CStr::from_ptr(pointer).to_string_lossy().into_owned();
        (duckdb().free)(pointer.cast());
        text
    }
}

/// Gives a box to DuckDB, which gives it back to [`drop_box`].
pub fn leak<T>(value: T) -> Pointer {
    Box::into_raw(Box::new(value)).cast()
}

/// # Safety
/// `pointer` is from [`leak`] of the same type.
pub unsafe extern "C" fn drop_box<T>(pointer: Pointer) {
    // SAFETY: as the caller promises.
    drop(unsafe { Box::from_raw(pointer.cast::<T>()) });
}

#[cfg(test)]
mod tests {
    use super::{Failure, guarded};
    use mergeql_udfs::Error;

    #[test]
    fn a_panic_is_an_error() {
        let said = |run: fn() -> Result<(), Failure>| {
            let mut said = None;
            guarded(run, |message| said = Some(message.to_string_lossy().into_owned()));
            said
        };
        assert_eq!(said(|| Ok(())), None);
        assert_eq!(said(|| panic!("of {}", "some kind")).as_deref(), Some("error[unsupported]: MergeQL failed: of some kind"));
        let known = said(|| std::panic::resume_unwind(Box::new(Error::invalid_argument("too long"))));
        assert!(known.is_some_and(|said| said.contains("invalid_argument") && said.contains("too long")));
    }

    #[test]
    fn duckdb_before_1_5_is_refused() {
        for (version, serves) in [("v1.3.2", false), ("v1.4.5", false), ("v1.5.0", true), ("v2.0.0", true), ("9a3f21c", true)] {
            assert_eq!(super::at_least(version, (1, 5, 0)), serves, "{version}");
        }
    }
}
