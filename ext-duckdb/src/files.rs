//! The table functions over files of tensors: `read_safetensors`, `merge_models` and what compares models. They read where DuckDB itself may:
//! not where `enable_external_access` is off.
#![allow(unsafe_code)]

use crate::api::{Connection, Failure, LogicalType, Pointer, drop_box, duckdb, guarded, id, leak, owned_text, sessions, text};
use crate::vectors::put_value;
use mergeql_tensors::method::Value as Given;
use mergeql_tensors::request::OPTIONS;
use mergeql_tensors::tables::{Arguments, FUNCTIONS, Function, Rows, type_of};
use mergeql_tensors::{lora, methods};
use mergeql_udfs::{Code, Error, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::sync::Arc;

/// How many arguments stand in order; the others have names.
fn in_order(function: &Function) -> usize {
    if function.arguments.iter().any(|(name, ..)| *name == "b") { 2 } else { 1 }
}

/// What may be given by name.
fn names(function: &Function) -> BTreeSet<&'static str> {
    let mut names: BTreeSet<&str> = function.arguments.iter().skip(in_order(function)).map(|(name, ..)| *name).collect();
    if function.options {
        names.extend(OPTIONS);
        for method in methods::ALL.iter().chain([lora::parameters()]) {
            names.extend(method.params.iter().map(|p| p.name));
            names.extend(method.synonyms.iter().map(|(synonym, _)| *synonym));
        }
        names.insert("weights");
    }
    names
}

/// Registers the functions, in a DuckDB that says whether a session may read files.
pub fn register(connection: &Connection) -> Result<(), String> {
    if sessions().is_none() {
        return Ok(());
    }
    let api = duckdb();
    for of in FUNCTIONS {
        let any = LogicalType::of_id(id::ANY);
        // SAFETY: DuckDB copies names and types; the extra info is static.
        let state = unsafe {
            let mut function = (api.create_table_function)();
            (api.table_function_set_name)(function, text(of.name).as_ptr());
            for _ in 0..in_order(of) {
                (api.table_function_add_parameter)(function, any.0);
            }
            for name in names(of) {
                (api.table_function_add_named_parameter)(function, text(name).as_ptr(), any.0);
            }
            (api.table_function_set_extra_info)(function, std::ptr::from_ref(of).cast_mut().cast(), None);
            (api.table_function_supports_projection_pushdown)(function, true);
            (api.table_function_set_bind)(function, bind);
            (api.table_function_set_init)(function, init);
            (api.table_function_set_function)(function, fill);
            let state = (api.register_table_function)(connection.0, function);
            (api.destroy_table_function)(&mut function);
            state
        };
        if state != 0 {
            return Err(format!("DuckDB does not take {}", of.name));
        }
    }
    Ok(())
}

/// A value of DuckDB's, destroyed when dropped.
struct Constant(Pointer);

impl Drop for Constant {
    fn drop(&mut self) {
        // SAFETY: it is ours and destroyed once.
        unsafe { (duckdb().destroy_value)(&mut self.0) };
    }
}

impl Constant {
    fn given(&self) -> Option<Given> {
        let api = duckdb();
        // SAFETY: the value is alive, and its type its own.
        unsafe {
            if (api.is_null_value)(self.0) {
                return None;
            }
            Some(match (api.get_type_id)((api.get_value_type)(self.0)) {
                id::VARCHAR => Given::Text(owned_text((api.get_varchar)(self.0))),
                id::BOOLEAN => Given::Flag((api.get_bool)(self.0)),
                id::LIST => {
                    let items = (0..(api.get_list_size)(self.0)).map(|i| Constant((api.get_list_child)(self.0, i)).given());
                    Given::List(items.collect::<Option<_>>()?)
                }
                _ => Given::Number((api.get_double)(self.0)),
            })
        }
    }
}

/// # Safety
/// `info` is DuckDB's, of a bind.
unsafe fn check_access(info: Pointer) -> Result<(), Error> {
    let Some(sessions) = sessions() else { return Ok(()) };
    // SAFETY: as the caller promises; what DuckDB gives is destroyed once.
    let allowed = unsafe {
        let mut context = std::ptr::null_mut();
        (sessions.table_function_get_client_context)(info, &mut context);
        let option = |name: &CStr| {
            let mut scope = 0;
            let option = (sessions.client_context_get_config_option)(context, name.as_ptr(), &mut scope);
            if option.is_null() { None } else { Constant(option).given() }
        };
        let external = option(c"enable_external_access") == Some(Given::Flag(true));
        let local = match option(c"disabled_filesystems") {
            Some(Given::Text(disabled)) => !disabled.split(',').any(|name| name.trim() == "LocalFileSystem"),
            _ => true,
        };
        (sessions.destroy_client_context)(&mut context);
        [(external, "enable_external_access is off"), (local, "disabled_filesystems has LocalFileSystem")]
    };
    match allowed.iter().find(|(allowed, _)| !allowed) {
        None => Ok(()),
        Some((_, why)) => Err(Error::new(Code::Unsupported, format!("files cannot be read here: {why}"))),
    }
}

/// A call: its rows, and all its columns.
struct Bound {
    rows: Arc<dyn Rows>,
    columns: &'static [&'static str],
}

unsafe extern "C" fn bind(info: Pointer) {
    let api = duckdb();
    let work = || -> Result<(), Failure> {
        // SAFETY: the extra info is the function; DuckDB copies what it is given, and gives values that we destroy.
        unsafe {
            check_access(info)?;
            let function = &*(api.bind_get_extra_info)(info).cast::<Function>();
            let missing = || Error::invalid_argument(format!("an argument of `{}` is NULL", function.name));
            let mut positional = Vec::new();
            for i in 0..(api.bind_get_parameter_count)(info) {
                positional.push(Constant((api.bind_get_parameter)(info, i)).given().ok_or_else(missing)?);
            }
            let mut named = BTreeMap::new();
            for name in names(function) {
                let value = (api.bind_get_named_parameter)(info, text(name).as_ptr());
                if !value.is_null() {
                    named.insert(name.to_owned(), Constant(value).given().ok_or_else(missing)?);
                }
            }
            let rows = function.open(Arguments { positional, named })?;
            for name in function.columns {
                (api.bind_add_result_column)(info, text(name).as_ptr(), LogicalType::of(&type_of(name)).0);
            }
            (api.bind_set_cardinality)(info, rows.len() as u64, true);
            (api.bind_set_bind_data)(info, leak(Bound { rows, columns: function.columns }), drop_box::<Bound>);
        }
        Ok(())
    };
    // SAFETY: DuckDB copies the message.
    guarded(work, |message| unsafe { (api.bind_set_error)(info, message.as_ptr()) });
}

/// A scan: which columns, and the row that comes next.
struct Scan {
    columns: Vec<(&'static str, Type)>,
    next: usize,
}

unsafe extern "C" fn init(info: Pointer) {
    let api = duckdb();
    // SAFETY: the bind data is ours; DuckDB owns the scan from here on.
    unsafe {
        let bound = &*(api.init_get_bind_data)(info).cast::<Bound>();
        let column = |i| {
            // What isn't a column, as a row's number is, is asked for where no column is wanted.
            bound
                .columns
                .get((api.init_get_column_index)(info, i) as usize)
                .map_or(("", Type::INT64), |name| (*name, type_of(name)))
        };
        let columns = (0..(api.init_get_column_count)(info)).map(column).collect();
        (api.init_set_init_data)(info, leak(Scan { columns, next: 0 }), drop_box::<Scan>);
    }
}

/// Rows of a chunk: with their bytes, one tensor at a time.
fn chunk_rows(columns: &[&str]) -> usize {
    if columns.contains(&"data") { 1 } else { 512 }
}

unsafe extern "C" fn fill(info: Pointer, chunk: Pointer) {
    let api = duckdb();
    let work = || -> Result<(), Failure> {
        // SAFETY: bind and init data are ours, a chunk has room for 2048 rows, and one thread scans.
        unsafe {
            let bound = &*(api.function_get_bind_data)(info).cast::<Bound>();
            let scan = &mut *(api.function_get_init_data)(info).cast::<Scan>();
            let names: Vec<&str> = scan.columns.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
            let to = bound.rows.len().min(scan.next + chunk_rows(&names));
            for (row, index) in (scan.next..to).enumerate() {
                let mut values = bound.rows.row(index, &names)?.into_iter();
                for (at, (name, ty)) in scan.columns.iter().enumerate() {
                    let vector = (api.data_chunk_get_vector)(chunk, at as u64);
                    let value = if name.is_empty() { Some(mergeql_udfs::Value::Int(index as i128)) } else { values.next() };
                    put_value(vector, row, &value.unwrap_or(mergeql_udfs::Value::Null), ty)?;
                }
            }
            (api.data_chunk_set_size)(chunk, (to - scan.next) as u64);
            scan.next = to;
        }
        Ok(())
    };
    // SAFETY: DuckDB copies the message.
    guarded(work, |message| unsafe { (api.function_set_error)(info, message.as_ptr()) });
}
