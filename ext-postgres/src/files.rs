//! The table functions over files of tensors. Files are the server's, so callers need what `COPY ... FROM 'file'` needs: to be a superuser, or
//! a member of `pg_read_server_files`.
#![allow(unsafe_code)]

use crate::datums::PgType;
use crate::entry::{Call, Failure, Outcome};
use crate::spi::Column;
use mergeql_lang::Diagnostic;
use mergeql_tensors::method::Value as Given;
use mergeql_tensors::tables::{self, Arguments, Function};
use mergeql_udfs::{Code, Error, Value};
#[cfg(feature = "pg13")]
use pgrx::pg_sys::DEFAULT_ROLE_READ_SERVER_FILES as READ_SERVER_FILES;
#[cfg(not(feature = "pg13"))]
use pgrx::pg_sys::ROLE_PG_READ_SERVER_FILES as READ_SERVER_FILES;
use pgrx::{PgMemoryContexts, pg_sys};
use std::sync::Once;

fn check_access() -> Result<(), Failure> {
    // SAFETY: asked of the backend that calls.
    let allowed = unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), pg_sys::Oid::from(READ_SERVER_FILES)) };
    match allowed {
        true => Ok(()),
        false => Err(Diagnostic::new(Code::Unsupported, "files of the server are not open to this role")
            .help("GRANT pg_read_server_files TO the role")
            .into()),
    }
}

/// Starts the threads that compute, none of which hears the signals that are the backend's.
fn start_threads() {
    static STARTED: Once = Once::new();
    // SAFETY: the mask is put back as it was.
    STARTED.call_once(|| unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        mergeql_tensors::run::start_threads();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
    });
}

fn given(value: &Value) -> Option<Given> {
    match value {
        Value::Text(text) => Some(Given::Text(text.to_string())),
        Value::Bool(flag) => Some(Given::Flag(*flag)),
        Value::List(items) => items.iter().map(given).collect::<Option<_>>().map(Given::List),
        other => other.to_f64().map(Given::Number),
    }
}

fn from_json(json: &serde_json::Value) -> Option<Given> {
    match json {
        serde_json::Value::String(text) => Some(Given::Text(text.clone())),
        serde_json::Value::Bool(flag) => Some(Given::Flag(*flag)),
        serde_json::Value::Number(number) => number.as_f64().map(Given::Number),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect::<Option<_>>().map(Given::List),
        _ => None,
    }
}

/// The arguments of a call, and which columns are computed: those of the function in order, then as the script declares them.
fn arguments(call: Call, function: &Function) -> Result<(Arguments, Vec<&'static str>), Failure> {
    let value = |i: usize| PgType::of(call.arg_type(i), -1)?.value_or_null(call.arg(i));
    let mut arguments = Arguments::default();
    for (i, (name, ..)) in function.arguments.iter().enumerate() {
        let value = value(i)?;
        if !value.is_null() {
            let wrong = || Error::invalid_argument(format!("`{name}` of `{}` is no text", function.name));
            arguments.named.insert((*name).to_owned(), given(&value).ok_or_else(wrong)?);
        }
    }
    let mut next = function.arguments.len();
    if function.options {
        let wrong =
            |what: String| Error::invalid_argument(what).with_help("parameters => '{\"density\": 0.5, \"weight\": [0.3, 0.7]}'");
        let parameters = match value(next)? {
            Value::Text(text) => serde_json::from_str(&text).map_err(|e| wrong(format!("the parameters are no JSON: {e}")))?,
            _ => serde_json::json!({}),
        };
        let object = parameters.as_object().ok_or_else(|| wrong("the parameters are no JSON object".to_owned()))?;
        for (name, json) in object {
            let value = from_json(json).ok_or_else(|| wrong(format!("the parameter `{name}` is {json}")))?;
            arguments.named.insert(name.clone(), value);
        }
        next += 1;
    }
    let mut columns = function.columns.to_vec();
    for (_, costly) in tables::COSTLY.iter().filter(|(_, costly)| function.columns.contains(&costly[0])) {
        if value(next)? != Value::Bool(true) {
            columns.retain(|c| !costly.contains(c));
        }
        next += 1;
    }
    Ok((arguments, columns))
}

fn rows(call: Call) -> Outcome {
    let name = call.name();
    let function = tables::find(&name).ok_or_else(|| Error::new(Code::Unsupported, format!("there is no `{name}`")))?;
    check_access()?;
    // The script declares what they return: none of it can be dropped.
    let expected: Vec<Column> = call.expected(&format!("SELECT * FROM {name}(...)"))?.into_iter().flatten().collect();
    let (arguments, computed) = arguments(call, function)?;
    let types = expected.iter().map(|c| PgType::of(c.oid, c.typmod)).collect::<Result<Vec<_>, _>>()?;
    start_threads();
    let rows = function.open(arguments)?;
    // What a row takes is given back before the next: it may be a whole tensor.
    let mut memory = PgMemoryContexts::new("mergeql row");
    call.give_rows(|store, description| {
        for index in 0..rows.len() {
            pgrx::check_for_interrupts!();
            let values = rows.row(index, &computed)?;
            // SAFETY: nothing of the row before is used any more.
            unsafe { memory.reset() };
            let mut by_name = computed.iter().zip(values);
            let mut datums = vec![pg_sys::Datum::from(0); expected.len()];
            let mut nulls = vec![true; expected.len()];
            // What is computed stands in the order of the columns.
            let mut next = by_name.next();
            for (at, column) in expected.iter().enumerate() {
                if let Some((_, value)) = next.take_if(|(name, _)| **name == column.name) {
                    // SAFETY: nothing else happens in this context.
                    if let Some(datum) = unsafe { memory.switch_to(|_| types[at].datum(value)) }? {
                        (datums[at], nulls[at]) = (datum, false);
                    }
                    next = by_name.next();
                }
            }
            // SAFETY: values and marks are of the columns of the description.
            unsafe { pg_sys::tuplestore_putvalues(store, description, datums.as_mut_ptr(), nulls.as_mut_ptr()) };
        }
        Ok(())
    })
}

crate::functions! {
    /// A table function over files of tensors; its name says which.
    mergeql_tensor_rows, pg_finfo_mergeql_tensor_rows => rows;
}
