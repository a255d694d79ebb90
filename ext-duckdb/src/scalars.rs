//! The scalar functions of the core, those that the lowering needs in DuckDB, and `mergeql_strategies()`.
#![allow(unsafe_code)]

use crate::api::{Connection, LogicalType, Pointer, drop_box, duckdb, guarded, id, leak, text};
use crate::statements;
use crate::vectors::{Vector, put_bytes, put_value};
use mergeql_lang::lower::duckdb_type;
use mergeql_udfs::functions::{self, Function};
use mergeql_udfs::value::order_key::rank_key;
use mergeql_udfs::{Error, Order, Type, Value, catalog};

/// Registers every scalar function, and the table of strategies.
pub fn register(connection: &Connection) -> Result<(), String> {
    let own = [
        Function::of("mergeql_exact_double", "an integer as a double that holds it exactly", 1..=1, Type::Float64, |a| {
            a[0].clone().widen(&Type::Float64)
        }),
        Function::of("mergeql_widens", "whether a nested value comes into a wider type as it is", 2..=2, Type::Boolean, widens),
        Function::of("mergeql_rank", "a candidate as bytes, the greatest of which wins", 2..=usize::MAX, Type::Bytes, rank),
        Function::of("mergeql_json", "the value of a state as JSON that DuckDB casts without loss", 1..=1, Type::Text, json),
        Function::of("mergeql_query", "the SQL of a statement that is read like a table", 1..=1, Type::Text, statements::query),
        Function::of("mergeql_sql", "the plain SQL that a statement stands for", 1..=1, Type::Text, statements::sql),
        Function::of(
            "mergeql_schema",
            "keeps the schemas of a statement's sources",
            1..=usize::MAX,
            Type::Text,
            statements::schema,
        ),
        Function::of("mergeql_bound", "the SQL of a statement whose schemas are known", 1..=1, Type::Text, statements::bound),
    ];
    for function in functions::all().into_iter().chain(own) {
        let name = function.name;
        let (least, most) = (*function.arguments.start(), *function.arguments.end());
        let any = || LogicalType::of_id(id::ANY);
        let row = || Row { name, least, run: function.run, returns: function.returns.clone(), volatile: function.volatile };
        let overloads = match most {
            usize::MAX => vec![Overload { parameters: Vec::new(), rest: Some(any()), row: row() }],
            most => {
                (least..=most).map(|n| Overload { parameters: (0..n).map(|_| any()).collect(), rest: None, row: row() }).collect()
            }
        };
        add_set(connection, name, overloads)?;
    }
    // Keys keep their type: canonical zeros and NaNs come in every type that holds floats. A value is canonical as soon as it is one.
    let canonical = [Type::Float32, Type::Float64, Type::List(Box::new(Type::Float32)), Type::List(Box::new(Type::Float64))];
    add_set(connection, "mergeql_canonical", canonical.map(|ty| Overload::over(1, ty, |a| Ok(a[0].clone()))).into())?;
    let divide = [Overload::over(2, Type::INT64, divide_integers), Overload::over(2, Type::Float64, divide_floats)];
    add_set(connection, "mergeql_divide", divide.into())?;
    strategies(connection)
}

/// `mergeql_rank(order, value, version, ...)`: a candidate as bytes, the greatest of which wins.
fn rank(arguments: &[Value]) -> mergeql_udfs::Result<Value> {
    let words = match &arguments[0] {
        Value::Text(words) => &**words,
        _ => "",
    };
    let order = Order { least: words.contains("least"), flip_version: words.contains("oldest") };
    Ok(rank_key(order, &arguments[1], &arguments[2..]).map_or(Value::Null, |key| Value::Bytes(key.into())))
}

/// `mergeql_json(state)`: the value of a state as JSON that DuckDB casts to its type without loss.
fn json(arguments: &[Value]) -> mergeql_udfs::Result<Value> {
    let value = functions::value_of(&arguments[0])?;
    Ok(if value.is_null() { value } else { Value::text(as_duckdb_reads(value).to_json()) })
}

/// Texts where JSON has no such value, or where DuckDB would read a number through a double.
fn as_duckdb_reads(value: Value) -> Value {
    match value {
        Value::List(items) => Value::List(items.into_iter().map(as_duckdb_reads).collect()),
        Value::Struct(fields) => Value::Struct(fields.into_iter().map(|(name, v)| (name, as_duckdb_reads(v))).collect()),
        Value::Map(entries) => Value::Map(entries.into_iter().map(|(k, v)| (as_duckdb_reads(k), as_duckdb_reads(v))).collect()),
        Value::Bytes(bytes) => Value::text(bytes.iter().map(|b| format!("\\x{b:02X}")).collect::<String>()),
        Value::Interval { months, days, nanos } => {
            Value::text(format!("{months} months {days} days {} microseconds", nanos / 1000))
        }
        Value::Decimal { .. } => Value::text(value.to_string()),
        other => other,
    }
}

/// Division as the language has it: integers are divided as integers, towards zero.
fn divide_integers(arguments: &[Value]) -> mergeql_udfs::Result<Value> {
    match (&arguments[0], &arguments[1]) {
        (Value::Int(_), Value::Int(0)) => Err(Error::invalid_argument("division by zero")),
        (Value::Int(a), Value::Int(b)) => Value::Int(a / b).fit(&Type::INT64),
        _ => Ok(Value::Null),
    }
}

fn divide_floats(arguments: &[Value]) -> mergeql_udfs::Result<Value> {
    match (&arguments[0], &arguments[1]) {
        (Value::Float(a), Value::Float(b)) => Ok(Value::float(a / b)),
        _ => Ok(Value::Null),
    }
}

/// Whether a nested value comes into a wider type as it is: true, or the error that says why not.
fn widens(arguments: &[Value]) -> mergeql_udfs::Result<Value> {
    if let Value::Text(name) = &arguments[1] {
        arguments[0].clone().widen(&duckdb_type(name)?)?;
    }
    Ok(Value::Bool(true))
}

struct Overload {
    parameters: Vec<LogicalType>,
    rest: Option<LogicalType>,
    row: Row,
}

impl Overload {
    /// From `n` arguments of a type to one of the same.
    fn over(n: usize, ty: Type, run: fn(&[Value]) -> mergeql_udfs::Result<Value>) -> Overload {
        Overload {
            parameters: (0..n).map(|_| LogicalType::of(&ty)).collect(),
            rest: None,
            row: Row { name: "", least: 0, run, returns: ty, volatile: false },
        }
    }
}

/// What a call needs.
struct Row {
    name: &'static str,
    /// How many arguments, where DuckDB takes any number.
    least: usize,
    run: fn(&[Value]) -> mergeql_udfs::Result<Value>,
    returns: Type,
    volatile: bool,
}

/// Registers all functions of a name at once.
fn add_set(connection: &Connection, name: &str, overloads: Vec<Overload>) -> Result<(), String> {
    let api = duckdb();
    // SAFETY: DuckDB copies names and types, and owns each row.
    unsafe {
        let mut set = (api.create_scalar_function_set)(text(name).as_ptr());
        for Overload { parameters, rest, row } in overloads {
            let mut function = (api.create_scalar_function)();
            (api.scalar_function_set_name)(function, text(name).as_ptr());
            parameters.iter().for_each(|p| (api.scalar_function_add_parameter)(function, p.0));
            if let Some(rest) = &rest {
                (api.scalar_function_set_varargs)(function, rest.0);
            }
            (api.scalar_function_set_return_type)(function, LogicalType::of(&row.returns).0);
            (api.scalar_function_set_special_handling)(function);
            if row.volatile {
                (api.scalar_function_set_volatile)(function);
            }
            (api.scalar_function_set_extra_info)(function, leak(row), drop_box::<Row>);
            (api.scalar_function_set_function)(function, run);
            (api.add_scalar_function_to_set)(set, function);
            (api.destroy_scalar_function)(&mut function);
        }
        let state = (api.register_scalar_function_set)(connection.0, set);
        (api.destroy_scalar_function_set)(&mut set);
        if state == 0 { Ok(()) } else { Err(format!("DuckDB does not take the function {name}")) }
    }
}

unsafe extern "C" fn run(call: Pointer, chunk: Pointer, out: Pointer) {
    let api = duckdb();
    // SAFETY: DuckDB passes a chunk of arguments, a result vector with as many rows, and our info.
    let work = || unsafe {
        let row: &Row = &*(api.scalar_function_get_extra_info)(call).cast();
        let columns = (api.data_chunk_get_column_count)(chunk);
        functions::check_count(row.name, row.least, columns as usize)?;
        let vectors = (0..columns).map(|c| Vector::new((api.data_chunk_get_vector)(chunk, c))).collect::<Result<Vec<_>, _>>()?;
        let mut arguments = Vec::with_capacity(vectors.len());
        for i in 0..(api.data_chunk_get_size)(chunk) as usize {
            arguments.clear();
            arguments.extend(vectors.iter().map(|v| v.value(i)));
            put_value(out, i, &(row.run)(&arguments)?, &row.returns)?;
        }
        Ok(())
    };
    // SAFETY: DuckDB copies the message.
    guarded(work, |message| unsafe { (api.scalar_function_set_error)(call, message.as_ptr()) });
}

// mergeql_strategies()

const COLUMNS: [&str; 7] = ["name", "aliases", "usage", "takes", "laws", "since", "description"];

fn strategies(connection: &Connection) -> Result<(), String> {
    let api = duckdb();
    // SAFETY: DuckDB copies names and types.
    unsafe {
        let mut function = (api.create_table_function)();
        (api.table_function_set_name)(function, c"mergeql_strategies".as_ptr());
        (api.table_function_set_bind)(function, bind_strategies);
        (api.table_function_set_init)(function, init_strategies);
        (api.table_function_set_function)(function, fill_strategies);
        let state = (api.register_table_function)(connection.0, function);
        (api.destroy_table_function)(&mut function);
        if state == 0 { Ok(()) } else { Err("DuckDB does not take mergeql_strategies".to_owned()) }
    }
}

unsafe extern "C" fn bind_strategies(info: Pointer) {
    let varchar = LogicalType::of_id(id::VARCHAR);
    for name in COLUMNS {
        // SAFETY: DuckDB copies the name and the type.
        unsafe { (duckdb().bind_add_result_column)(info, text(name).as_ptr(), varchar.0) };
    }
}

unsafe extern "C" fn init_strategies(info: Pointer) {
    // SAFETY: DuckDB owns the mark of whether the rows were given.
    unsafe { (duckdb().init_set_init_data)(info, leak(false), drop_box::<bool>) };
}

unsafe extern "C" fn fill_strategies(info: Pointer, chunk: Pointer) {
    let api = duckdb();
    // SAFETY: the init data is the mark; a chunk has room for 2048 rows, and the catalogue fewer.
    let work = || unsafe {
        let given = &mut *(api.function_get_init_data)(info).cast::<bool>();
        if std::mem::replace(given, true) {
            (api.data_chunk_set_size)(chunk, 0);
            return Ok(());
        }
        for (i, entry) in catalog::all().iter().enumerate() {
            let spec = entry.spec();
            let row =
                [spec.name, &spec.aliases.join(", "), &spec.usage(), spec.takes, &catalog::LAWS.join(", "), spec.since, spec.title];
            for (column, value) in row.iter().enumerate() {
                put_bytes((api.data_chunk_get_vector)(chunk, column as u64), i, value.as_bytes());
            }
        }
        (api.data_chunk_set_size)(chunk, catalog::all().len() as u64);
        Ok(())
    };
    // SAFETY: DuckDB copies the message.
    guarded(work, |message| unsafe { (api.function_set_error)(info, message.as_ptr()) });
}
