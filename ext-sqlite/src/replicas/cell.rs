//! The state of one cell: what a local write makes of it.

use super::Result;
use super::definition::{Tracked, tracked};
use crate::values::{class, shown};
use mergeql_udfs::catalog::{self, Input};
use mergeql_udfs::functions;
use mergeql_udfs::value::from_json;
use mergeql_udfs::{AnyState, Call, Error, Type, Value};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::LazyLock;

/// The value of a state, as rows show it.
pub(super) fn value(state: &[u8]) -> Result<Value> {
    says(&*catalog::open(state).map_err(shown)?)
}

/// As [`value`]. What is counted beyond SQLite's integers is their end: no count of one replica stops what others have to say.
pub(super) fn says(state: &dyn AnyState) -> Result<Value> {
    Ok(match state.value().map_err(shown)? {
        Value::Int(v) => Value::Int(v.clamp(i64::MIN.into(), i64::MAX.into())),
        other => other,
    })
}

/// Whether a column counts what each replica adds.
pub(super) fn counts(column: &Tracked) -> bool {
    matches!(column.entry.spec().name, "counter" | "pncounter")
}

/// The state that says whether a row is there.
pub(super) fn existence(known: Option<&[u8]>, there: bool, clock: i64, origin: &str) -> Result<Vec<u8>> {
    let lww = catalog::find("lww").expect("invariant: lww is built in");
    update(
        lww,
        &Call::new(vec![Type::Boolean, Type::INT64, Type::Text]),
        known,
        &[Value::Bool(there), Value::Int(clock.into()), Value::text(origin)],
    )
}

fn update(entry: &catalog::Entry, call: &Call, known: Option<&[u8]>, row: &[Value]) -> Result<Vec<u8>> {
    let bound = entry.bind(call).map_err(shown)?;
    let mut partial = bound.partial();
    if let Some(known) = known {
        partial.join_bytes(known).map_err(shown)?;
    }
    partial.update(row).map_err(shown)?;
    Ok(partial.encode().unwrap_or_default())
}

type Run = fn(&[Value]) -> mergeql_udfs::Result<Value>;

/// A scalar function of the core.
fn function(name: &str) -> Result<Run> {
    static FUNCTIONS: LazyLock<HashMap<&str, Run>> =
        LazyLock::new(|| functions::all().into_iter().map(|f| (f.name, f.run)).collect());
    FUNCTIONS.get(name).copied().ok_or_else(|| shown(Error::invalid_argument(format!("there is no function {name}"))))
}

fn state(known: Option<&[u8]>) -> Value {
    known.map_or(Value::Null, |bytes| Value::Bytes(bytes.into()))
}

fn bytes(state: Value) -> Option<Vec<u8>> {
    match state {
        Value::Bytes(bytes) => Some(bytes.into()),
        _ => None,
    }
}

/// What a write makes of a cell; `None` if it says nothing.
pub(super) fn written(column: &Tracked, known: Option<&[u8]>, new: &Value, clock: i64, origin: &str) -> Result<Option<Vec<u8>>> {
    let own = Value::text(origin);
    let old = known.map_or(Ok(Value::Null), value)?;
    match column.entry.spec().name {
        // What is in the column is the sum over all replicas; what this one adds is the difference.
        "counter" | "pncounter" => {
            let difference = match (new, &old) {
                (Value::Null, _) => return Ok(None),
                (new, Value::Null) => new.clone(),
                (new, old) => subtract(new, old)?,
            };
            let falls = difference < Value::Int(0);
            if falls && known.is_none() && column.entry.spec().name == "counter" {
                let message = format!("a counter only grows: it cannot begin with {difference}");
                return Err(shown(Error::invalid_argument(message).with_help("a column that counts down, too, is a pncounter")));
            }
            if difference.to_worth() == Value::Int(0) && known.is_some() || falls && column.entry.spec().name == "counter" {
                return Ok(None);
            }
            let start = match (known, column.entry.spec().name) {
                (None, "counter") => {
                    let call = Call::new(vec![class(&difference), Type::Text]);
                    return update(column.entry, &call, None, &[difference, own]).map(Some);
                }
                _ => state(known),
            };
            function("counter_add")?(&[start, own, difference]).map(bytes).map_err(shown)
        }
        "orset" => {
            let (had, has) = (elements(&old)?, elements(new)?);
            let mut set = state(known);
            for gone in had.iter().filter(|e| !has.contains(e)) {
                set = function("orset_remove")?(&[set, gone.clone()]).map_err(shown)?;
            }
            for added in has.iter().filter(|e| !had.contains(e)) {
                set = function("orset_add")?(&[set, added.clone(), own.clone()]).map_err(shown)?;
            }
            // A set without elements is something else than none.
            if set.is_null() && !new.is_null() {
                let element = Value::Bool(true);
                set = function("orset_add")?(&[set, element.clone(), own]).map_err(shown)?;
                set = function("orset_remove")?(&[set, element]).map_err(shown)?;
            }
            Ok(bytes(set))
        }
        kind @ ("ewflag" | "dwflag") => {
            let on = match new {
                Value::Null => return Ok(None),
                Value::Int(v) => *v != 0,
                other => *other == Value::Bool(true),
            };
            let was = if old.is_null() { None } else { Some(old == Value::Bool(true)) };
            if was == Some(on) {
                return Ok(None);
            }
            let flag = state(known);
            let run = |name: &str, arguments: &[Value]| function(name)?(arguments).map_err(shown);
            // What takes something back says nothing of a flag that was never set: it is set the other way before.
            let changed = match (kind, on) {
                ("ewflag", true) => run("flag_enable", &[flag, own]),
                ("ewflag", false) if flag.is_null() => run("flag_disable", &[run("flag_enable", &[flag, own])?]),
                ("ewflag", false) => run("flag_disable", &[flag]),
                (_, true) if flag.is_null() => run("dwflag_enable", &[run("dwflag_disable", &[flag, own])?]),
                (_, true) => run("dwflag_enable", &[flag]),
                (_, false) => run("dwflag_disable", &[flag, own]),
            };
            changed.map(bytes)
        }
        _ => {
            let spec = column.entry.spec();
            let truth = matches!(spec.name, "any" | "every");
            let new = match new {
                Value::Int(v) if truth => Value::Bool(*v != 0),
                other => other.clone(),
            };
            let mut row = vec![new];
            for input in &spec.inputs[1..] {
                match input {
                    Input::Origin => row.push(own.clone()),
                    Input::Versions => row.extend([Value::Int(clock.into()), own.clone()]),
                    _ => {}
                }
            }
            let types = row.iter().map(|v| if matches!(v, Value::Bool(_)) { Type::Boolean } else { class(v) }).collect();
            let mut call = Call::new(types).with_literals(spec, false, &column.literals).map_err(shown)?;
            if spec.name == "lww" {
                // A column that is cleared is cleared everywhere.
                call = call.with_arg("respect_nulls", Value::Bool(true));
            }
            let made = update(column.entry, &call, known, &row)?;
            Ok((!made.is_empty()).then_some(made))
        }
    }
}

/// Refuses a value that no cell of a strategy can be made of.
pub(super) fn takes(strategy: &str, new: &Value) -> Result<()> {
    thread_local! {
        static KNOWN: RefCell<HashMap<String, Tracked>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        if !known.contains_key(strategy) {
            known.insert(strategy.to_owned(), tracked(strategy)?);
        }
        written(&known[strategy], None, new, 1, "o").map(drop)
    })
}

fn subtract(new: &Value, old: &Value) -> Result<Value> {
    let double = |v: &Value| match v {
        Value::Int(v) => *v as f64,
        Value::Float(v) => *v,
        _ => 0.0,
    };
    match (new, old) {
        (Value::Int(a), Value::Int(b)) => Ok(Value::Int(a - b)),
        (Value::Int(_) | Value::Float(_), _) => Ok(Value::float(double(new) - double(old))),
        (other, _) => Err(shown(Error::type_mismatch(format!("a {} cannot be counted: {other}", other.kind())))),
    }
}

/// The elements of a set, which a column holds as a JSON array.
fn elements(value: &Value) -> Result<Vec<Value>> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::List(items) => Ok(items.clone()),
        Value::Text(text) => match from_json(text) {
            Ok(Value::List(mut items)) => {
                items.sort();
                items.dedup();
                items.retain(|v| !v.is_null());
                Ok(items)
            }
            _ => Err(shown(Error::type_mismatch(format!("a set is a JSON array, not {text}")))),
        },
        other => Err(shown(Error::type_mismatch(format!("a set is a JSON array, not the {} {other}", other.kind())))),
    }
}
