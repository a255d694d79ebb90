//! The scalar functions: those of the core, and what the lowering needs here.

use crate::aggregates::PURE;
use crate::values::{Answer, arguments, class, plain, shown, value};
use mergeql_udfs::functions;
use mergeql_udfs::value::{from_json, order_key::mixed_order_key};
use mergeql_udfs::{Code, Error, Type, Value};
use rusqlite::Connection;
use rusqlite::functions::{Context, FunctionFlags};
use std::panic::{AssertUnwindSafe, RefUnwindSafe};

type Run = fn(&[Value]) -> mergeql_udfs::Result<Value>;

/// Functions of SQLite alone: name, number of arguments, what they do.
const OWN: [(&str, i32, Run); 6] = [
    ("mergeql_value_like", 2, |a| functions::value_of(&a[0])),
    ("mergeql_exact_double", 1, |a| a[0].clone().widen(&Type::Float64)),
    ("mergeql_divide", 2, divide),
    ("mergeql_json_key", 1, json_key),
    ("mergeql_checked", 2, checked),
    ("mergeql_glob", 1, glob),
];

/// Registers every scalar function.
///
/// # Errors
/// SQLite's.
pub fn register(connection: &Connection) -> rusqlite::Result<()> {
    for function in functions::all() {
        let (least, most) = (*function.arguments.start(), *function.arguments.end());
        let counts = if most == usize::MAX { vec![-1] } else { (least as i32..=most as i32).collect() };
        for count in counts {
            add(connection, function.name, (count, least), function.run, function.volatile)?;
        }
    }
    for (name, count, run) in OWN {
        add(connection, name, (count, 0), run, false)?;
    }
    connection.create_scalar_function("mergeql_record", -1, PURE, |context| {
        Ok(Answer::typed(&functions::record(&arguments(context)?).map_err(shown)?))
    })?;
    // It runs SQL that it is given.
    let direct = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
    connection.create_scalar_function("mergeql_fold", 4, direct, fold)
}

/// A function of so many arguments, or of any number from the second on where the first is -1.
fn add(
    connection: &Connection,
    name: &'static str,
    (count, least): (i32, usize),
    run: Run,
    volatile: bool,
) -> rusqlite::Result<()> {
    let run: AssertUnwindSafe<Run> = AssertUnwindSafe(run);
    let call = move |context: &Context<'_>| {
        functions::check_count(name, least, context.len()).map_err(shown)?;
        Answer::of((run.0)(&arguments(context)?).map_err(shown)?)
    };
    assert_safe(&call);
    let flags = if volatile { PURE - FunctionFlags::SQLITE_DETERMINISTIC } else { PURE };
    connection.create_scalar_function(name, count, flags, call)
}

/// A function pointer can be called again after a panic.
fn assert_safe(_: &impl RefUnwindSafe) {}

/// Integers are divided as integers, towards zero; everything else as doubles, by zero without an error.
fn divide(arguments: &[Value]) -> mergeql_udfs::Result<Value> {
    let double = |v: &Value| match v {
        Value::Int(v) => Some(*v as f64),
        Value::Float(v) => Some(*v),
        _ => None,
    };
    match (&arguments[0], &arguments[1]) {
        (Value::Int(_), Value::Int(0)) => Err(Error::invalid_argument("division by zero")),
        (Value::Int(a), Value::Int(b)) => Value::Int(a / b).fit(&Type::INT64),
        (a, b) => Ok(double(a).zip(double(b)).map_or(Value::Null, |(a, b)| Value::float(a / b))),
    }
}

/// A pattern of LIKE, with backslashes as escapes, as a pattern of GLOB.
fn glob(arguments: &[Value]) -> mergeql_udfs::Result<Value> {
    let Value::Text(pattern) = &arguments[0] else { return Ok(Value::Null) };
    let mut out = String::with_capacity(pattern.len());
    let mut all = pattern.chars();
    while let Some(c) = all.next() {
        match c {
            '%' => out.push('*'),
            '_' => out.push('?'),
            c => match if c == '\\' { all.next().unwrap_or(c) } else { c } {
                c @ ('*' | '?' | '[') => out.extend(['[', c, ']']),
                c => out.push(c),
            },
        }
    }
    Ok(Value::text(out))
}

/// Bytes that sort as the value does that a JSON text is.
fn json_key(arguments: &[Value]) -> mergeql_udfs::Result<Value> {
    match &arguments[0] {
        Value::Text(text) => Ok(Value::Bytes(mixed_order_key(&from_json(text)?).into())),
        Value::Null => Ok(Value::Null),
        other => Ok(Value::Bytes(mixed_order_key(other).into())),
    }
}

/// A merged value, which must be of its column's class.
fn checked(arguments: &[Value]) -> mergeql_udfs::Result<Value> {
    let (value, Value::Text(wanted)) = (&arguments[0], &arguments[1]) else { return Ok(arguments[0].clone()) };
    let fits = match class(value) {
        Type::Null => true,
        Type::INT64 => matches!(&**wanted, "INTEGER" | "REAL"),
        Type::Float64 => &**wanted == "REAL",
        Type::Text => &**wanted == "TEXT",
        _ => &**wanted == "BLOB",
    };
    if fits {
        return Ok(value.clone());
    }
    Err(Error::type_mismatch(format!("a column of {wanted} holds the {} {value}", value.kind()))
        .with_help("SQLite lets a column hold anything: CAST it in a source query, or declare the table STRICT"))
}

/// `mergeql_fold(set, left, right, step)`: the values of a set, folded in R2 order by a step in SQL over two names.
#[allow(unsafe_code)]
fn fold(context: &Context<'_>) -> rusqlite::Result<Answer> {
    let arguments = arguments(context)?;
    let [state, Value::Text(left), Value::Text(right), Value::Text(step)] = arguments.as_slice() else {
        return Answer::of(Value::Null);
    };
    let Value::List(values) = functions::value_of(state).map_err(shown)? else { return Answer::of(Value::Null) };
    let mut values = values.into_iter();
    let Some(mut folded) = values.next() else { return Answer::of(Value::Null) };
    // SAFETY: the connection is used while the function runs, as SQLite allows.
    let connection = unsafe { context.get_connection()? };
    let mut statement = connection.prepare(&format!("SELECT {step} FROM (SELECT ?1 AS {left}, ?2 AS {right})"))?;
    for next in values {
        folded = statement.query_row([plain(folded)?, plain(next)?], |row| value(row.get_ref(0)?))?;
        if let Value::Float(v) = folded
            && v.is_nan()
        {
            return Err(shown(Error::new(Code::InvalidArgument, "a fold that is no number")));
        }
    }
    Answer::of(folded)
}
