//! The scalar functions: those of the core, and what the lowering needs here.
#![allow(unsafe_code)]

use crate::datums::PgType;
use crate::entry::{Call, Failure, Outcome};
use mergeql_lang::Diagnostic;
use mergeql_udfs::functions;
use mergeql_udfs::{Code, Type, Value};
use pgrx::pg_sys;

type Run = fn(&[Value]) -> mergeql_udfs::Result<Value>;

/// Functions of Postgres alone: `sql/mergeql.sql` declares them.
const OWN: [(&str, Run); 5] = [
    ("mergeql_value_like", value_like),
    ("mergeql_exact_double", exact_double),
    ("mergeql_record", functions::record),
    ("mergeql_canonical", canonical),
    ("mergeql_divide", divide),
];

/// Integers, in lists as well, as doubles that hold them exactly.
fn exact_double(arguments: &[Value]) -> mergeql_udfs::Result<Value> {
    let double = |v: &Value| v.clone().widen(&Type::Float64);
    match &arguments[0] {
        Value::List(items) => Ok(Value::List(items.iter().map(double).collect::<mergeql_udfs::Result<_>>()?)),
        value => double(value),
    }
}

/// A value is canonical as soon as it is one of ours.
fn canonical(arguments: &[Value]) -> mergeql_udfs::Result<Value> {
    Ok(arguments[0].clone())
}

/// The value of a state; the type of the second argument is that of the result.
fn value_like(arguments: &[Value]) -> mergeql_udfs::Result<Value> {
    functions::value_of(&arguments[0])
}

/// Division of doubles as the language has it: never an error.
fn divide(arguments: &[Value]) -> mergeql_udfs::Result<Value> {
    match (&arguments[0], &arguments[1]) {
        (Value::Float(a), Value::Float(b)) => Ok(Value::float(a / b)),
        _ => Ok(Value::Null),
    }
}

/// A place in a query where a scalar function is called.
struct Site {
    run: Run,
    arguments: Vec<PgType>,
    result: PgType,
}

impl Site {
    fn new(call: Call) -> Result<Site, Failure> {
        let name = call.name();
        let core = functions::all().into_iter().find(|f| f.name == name).map(|f| f.run);
        let run = core.or_else(|| OWN.iter().find(|(own, _)| *own == name).map(|(_, run)| *run));
        let run = run.ok_or_else(|| Diagnostic::new(Code::Unsupported, format!("`{name}` is no function of MergeQL")))?;
        let arguments = (0..call.len()).map(|i| PgType::of(call.arg_type(i), -1)).collect::<Result<Vec<_>, _>>()?;
        // SAFETY: the call is live.
        let result = unsafe { pg_sys::get_fn_expr_rettype((*call.0).flinfo) };
        Ok(Site { run, arguments, result: PgType::of(result, -1)? })
    }
}

fn scalar(call: Call) -> Outcome {
    let site = call.kept(|| Site::new(call))?;
    let mut arguments = Vec::with_capacity(site.arguments.len());
    for (i, ty) in site.arguments.iter().enumerate() {
        arguments.push(ty.value_or_null(call.arg(i))?);
    }
    site.result.datum((site.run)(&arguments)?)
}

crate::functions! {
    /// Any scalar function of the core; its name says which.
    mergeql_scalar, pg_finfo_mergeql_scalar => scalar;
}
