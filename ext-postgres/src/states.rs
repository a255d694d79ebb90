//! The type `crdt`: state bytes that show as JSON.
#![allow(unsafe_code)]

use crate::datums::{bytes, varlena};
use crate::entry::{Call, Failure, Outcome};
use mergeql_lang::Diagnostic;
use mergeql_udfs::catalog::{self, Comparison};
use mergeql_udfs::value::from_json;
use mergeql_udfs::{Code, Error, Value};
use pgrx::pg_sys::{self, Datum};
use std::ffi::{CStr, CString};

/// What a state is, as JSON with its bytes, so that text goes in where text came out.
fn show(state: &[u8]) -> Result<String, Failure> {
    let opened = catalog::open(state)?;
    let shown = Value::record(vec![
        ("type".into(), Value::text(opened.spec().name)),
        // A state whose value does not fit anywhere can be kept, joined and dumped all the same.
        ("value".into(), opened.value().unwrap_or(Value::Null)),
        ("state".into(), Value::Bytes(state.into())),
    ]);
    Ok(shown.to_json())
}

/// Reads what [`show`] writes, or bytes as `\x...`.
fn read(text: &str) -> Result<Vec<u8>, Failure> {
    let trimmed = text.trim();
    let digits = match trimmed.strip_prefix("\\x") {
        Some(digits) => digits.to_owned(),
        None => match from_json(trimmed) {
            Ok(Value::Struct(fields)) => match fields.iter().find(|(name, _)| &**name == "state") {
                Some((_, Value::Text(digits))) => digits.trim_start_matches("\\x").to_owned(),
                _ => return Err(not_a_state("the JSON has no `state`")),
            },
            // The value may nest deeper than JSON that is read here; the bytes stand behind it.
            _ => match trimmed.rsplit_once("\"state\":\"").and_then(|(_, digits)| digits.strip_suffix("\"}")) {
                Some(digits) => digits.trim_start_matches('\\').trim_start_matches('x').to_owned(),
                None => return Err(not_a_state("it is neither JSON nor bytes (`\\x...`)")),
            },
        },
    };
    let digit = |i: usize| digits.get(i..i + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let state = (0..digits.len()).step_by(2).map(digit).collect::<Option<Vec<u8>>>();
    let state = state.ok_or_else(|| not_a_state("its bytes are not pairs of hexadecimal digits"))?;
    catalog::open(&state)?;
    Ok(state)
}

fn not_a_state(why: &str) -> Failure {
    Diagnostic::new(Code::NotAState, format!("this text is no CRDT state: {why}")).into()
}

fn c_string(call: Call) -> String {
    let Some(datum) = call.arg(0) else { return String::new() };
    // SAFETY: an input function is passed a C text.
    unsafe { CStr::from_ptr(datum.cast_mut_ptr()) }.to_string_lossy().into_owned()
}

fn output(call: Call) -> Outcome {
    let Some(datum) = call.arg(0) else { return Ok(None) };
    // SAFETY: the argument is a state.
    let shown = show(unsafe { varlena(datum) })?;
    let text = CString::new(shown.replace('\0', "\u{fffd}")).unwrap_or_default();
    // SAFETY: Postgres copies the text.
    Ok(Some(Datum::from(unsafe { pg_sys::pstrdup(text.as_ptr()) })))
}

/// Bytes from a client, which may be anything.
fn receive(call: Call) -> Outcome {
    let Some(datum) = call.arg(0) else { return Ok(None) };
    // SAFETY: a receive function is passed a buffer, and takes what is left in it.
    let received = unsafe {
        let buffer: pg_sys::StringInfo = datum.cast_mut_ptr();
        let (cursor, end) = ((*buffer).cursor as usize, (*buffer).len as usize);
        (*buffer).cursor = (*buffer).len;
        std::slice::from_raw_parts((*buffer).data.add(cursor).cast::<u8>(), end - cursor)
    };
    catalog::open(received)?;
    Ok(Some(bytes(received)))
}

/// A bytea as a state, if it is one; a state as a bytea.
fn cast(call: Call) -> Outcome {
    let Some(datum) = call.arg(0) else { return Ok(None) };
    // SAFETY: both are varlenas.
    let state = unsafe { varlena(datum) };
    catalog::open(state)?;
    Ok(Some(bytes(state)))
}

fn raw(call: Call) -> Outcome {
    // SAFETY: a state is a varlena.
    Ok(call.arg(0).map(|datum| bytes(unsafe { varlena(datum) })))
}

/// Two states of an operator.
fn pair<'a>(call: Call) -> (&'a [u8], &'a [u8]) {
    // SAFETY: operators are strict, and take states.
    let state = |i: usize| call.arg(i).map_or(&[][..], |datum| unsafe { varlena(datum) });
    (state(0), state(1))
}

fn ordered(call: Call, holds: fn(Comparison) -> bool) -> Outcome {
    let (a, b) = pair(call);
    Ok(Some(Datum::from(holds(catalog::compare(a, b)?))))
}

/// States that were compressed are equal to those that were not.
fn canonical(state: &[u8]) -> Result<Vec<u8>, Error> {
    Ok(catalog::open(state)?.encode())
}

crate::functions! {
    /// `crdt_in`
    mergeql_state_in, pg_finfo_mergeql_state_in => |call| Ok(Some(bytes(&read(&c_string(call))?)));
    /// `crdt_out`
    mergeql_state_out, pg_finfo_mergeql_state_out => output;
    /// `crdt_recv`
    mergeql_state_recv, pg_finfo_mergeql_state_recv => receive;
    /// `crdt_send`, and the cast to bytea.
    mergeql_state_raw, pg_finfo_mergeql_state_raw => raw;
    /// The cast from bytea.
    mergeql_state_cast, pg_finfo_mergeql_state_cast => cast;
    /// `=`
    mergeql_state_eq, pg_finfo_mergeql_state_eq => |call| {
        let (a, b) = pair(call);
        Ok(Some(Datum::from(a == b || canonical(a)? == canonical(b)?)))
    };
    /// `<>`
    mergeql_state_ne, pg_finfo_mergeql_state_ne => |call| {
        let (a, b) = pair(call);
        Ok(Some(Datum::from(a != b && canonical(a)? != canonical(b)?)))
    };
    /// `<=`: the second knows all that the first does.
    mergeql_state_le, pg_finfo_mergeql_state_le => |call| ordered(call, |c| matches!(c, Comparison::Before | Comparison::Equal));
    /// `<`
    mergeql_state_lt, pg_finfo_mergeql_state_lt => |call| ordered(call, |c| c == Comparison::Before);
    /// `>=`
    mergeql_state_ge, pg_finfo_mergeql_state_ge => |call| ordered(call, |c| matches!(c, Comparison::After | Comparison::Equal));
    /// `>`
    mergeql_state_gt, pg_finfo_mergeql_state_gt => |call| ordered(call, |c| c == Comparison::After);
    /// The checksum of a state's canonical bytes, as their hash.
    mergeql_state_hash, pg_finfo_mergeql_state_hash => |call| {
        // SAFETY: the function is strict, and takes a state.
        let state = canonical(call.arg(0).map_or(&[][..], |datum| unsafe { varlena(datum) }))?;
        // The last four bytes are a checksum over all before them.
        let (_, checksum) = state.split_last_chunk::<4>().unwrap_or((&[], &[0; 4]));
        Ok(Some(Datum::from(i32::from_le_bytes(*checksum))))
    };
    /// `mergeql_value`, the type of values between functions, is not written by hand.
    mergeql_value_in, pg_finfo_mergeql_value_in => |_| {
        Err(Diagnostic::new(Code::Unsupported, "values of mergeql_value come from mergeql_record").into())
    };
    /// `mergeql_value` as JSON.
    mergeql_value_out, pg_finfo_mergeql_value_out => |call| {
        let Some(datum) = call.arg(0) else { return Ok(None) };
        // SAFETY: the argument is a `mergeql_value`.
        let value = mergeql_udfs::codec::Reader::new(unsafe { varlena(datum) }).value()?;
        let text = CString::new(value.to_json().replace('\0', "\u{fffd}")).unwrap_or_default();
        // SAFETY: Postgres copies the text.
        Ok(Some(Datum::from(unsafe { pg_sys::pstrdup(text.as_ptr()) })))
    };
}
