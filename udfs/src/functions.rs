//! The scalar functions over states, and those that the lowering needs (`mergeql_*`): written once over values, registered by every
//! host.

use crate::aggregate::{Call, bytes_of as state};
use crate::batch::{Column, OwnedColumn};
use crate::catalog::{self, Comparison};
use crate::cells;
use crate::codec;
use crate::error::{Code, Error, Result};
use crate::types::{Type, Unit};
use crate::value::Value;
use crate::value::order_key::order_key;
use std::borrow::Cow;
use std::ops::RangeInclusive;

/// A function over columns of so many rows.
pub type OverRows = fn(&[Column<'_>], usize) -> Result<OwnedColumn>;

/// A function of one row. The same arguments always give the same result, but for one that reads the clock.
pub struct Function {
    /// Its name in SQL.
    pub name: &'static str,
    /// How many arguments it takes.
    pub arguments: RangeInclusive<usize>,
    /// The type of its result.
    pub returns: Type,
    /// Whether the result is a state, where hosts have a type for them.
    pub gives_state: bool,
    /// Whether it reads the clock, so that a host must call it for every row.
    pub volatile: bool,
    /// One line for people.
    pub title: &'static str,
    /// What it does; arguments may be NULL.
    pub run: fn(&[Value]) -> Result<Value>,
    /// The same over so many rows at once, where that is faster.
    pub columns: Option<OverRows>,
}

impl Function {
    /// A function that gives a value.
    pub fn of(
        name: &'static str,
        title: &'static str,
        arguments: RangeInclusive<usize>,
        returns: Type,
        run: fn(&[Value]) -> Result<Value>,
    ) -> Function {
        Function { name, arguments, returns, gives_state: false, volatile: false, title, run, columns: None }
    }

    /// A function of `n` arguments, the first a state, that gives a state.
    pub(crate) fn state(name: &'static str, title: &'static str, n: usize, run: fn(&[Value]) -> Result<Value>) -> Function {
        Function::state_of(name, title, n..=n, run)
    }

    /// As [`Function::state`], of some number of arguments.
    pub(crate) fn state_of(
        name: &'static str,
        title: &'static str,
        arguments: RangeInclusive<usize>,
        run: fn(&[Value]) -> Result<Value>,
    ) -> Function {
        Function { gives_state: true, ..Function::of(name, title, arguments, Type::Bytes, run) }
    }
}

fn list_of(ty: Type) -> Type {
    Type::List(Box::new(ty))
}

/// The resolved value of a state; NULL for no state.
///
/// # Errors
/// `not_a_state`, `corrupt_state`, and what resolving fails with.
pub fn value_of(state: &Value) -> Result<Value> {
    with_value(std::slice::from_ref(state), Ok)
}

/// Names and values in turn as one record; a record in place of a name and a value brings all its fields. For hosts without named
/// structs.
///
/// # Errors
/// `invalid_argument` for a name that is no text.
pub fn record(arguments: &[Value]) -> Result<Value> {
    let mut fields = Vec::new();
    let mut rest = arguments.iter();
    while let Some(first) = rest.next() {
        match first {
            Value::Struct(more) => fields.extend(more.iter().cloned()),
            Value::Text(name) => fields.push((name.as_ref().into(), rest.next().cloned().unwrap_or(Value::Null))),
            _ => return Err(Error::invalid_argument("a record is made of names and values in turn")),
        }
    }
    Ok(Value::record(fields))
}

/// A state after one row more of a strategy without arguments; no state is the empty one.
///
/// # Errors
/// As [`crate::Partial::update`] and [`crate::Partial::join_bytes`].
pub(crate) fn updated(strategy: &str, before: &Value, row: &[Value]) -> Result<Value> {
    let entry = catalog::find(strategy).ok_or_else(|| Error::invalid_argument(format!("there is no strategy `{strategy}`")))?;
    let mut partial = entry.bind(&Call::new(row.iter().map(Type::of).collect()))?.partial();
    if let Some(bytes) = state(before)? {
        partial.join_bytes(bytes)?;
    }
    partial.update(row)?;
    Ok(partial.encode().map_or(Value::Null, |bytes| Value::Bytes(bytes.into())))
}

/// Every scalar function that a host registers.
pub fn all() -> Vec<Function> {
    let mut functions = of_every_state();
    functions.extend(crate::sketch::functions());
    functions.extend(catalog::all().iter().flat_map(|entry| entry.functions()));
    functions
}

fn of_every_state() -> Vec<Function> {
    let f = |name: &'static str, title, arguments, returns, run| Function {
        gives_state: returns == Type::Bytes && (name.starts_with("crdt_") && name != "crdt_to_frame" || name == "mergeql_gset_of"),
        ..Function::of(name, title, arguments, returns, run)
    };
    vec![
        f("crdt_join", "the join of two states", 2..=2, Type::Bytes, |a| {
            Ok(match (state(&a[0])?, state(&a[1])?) {
                (Some(a), Some(b)) => bytes(catalog::join(a, b)?),
                (Some(one), None) | (None, Some(one)) => bytes(catalog::open(one)?.encode()),
                (None, None) => Value::Null,
            })
        }),
        f("crdt_value", "the resolved value of a state, as JSON", 1..=1, Type::Text, |a| {
            with_value(a, |v| Ok(if v.is_null() { Value::Null } else { Value::text(v.to_json()) }))
        }),
        f("crdt_value_bigint", "the value of a state that is an integer", 1..=1, Type::INT64, |a| {
            with_value(a, |v| match v.to_worth() {
                v @ (Value::Int(_) | Value::Null) => v.fit(&Type::INT64),
                Value::Bool(b) => Ok(Value::Int(b.into())),
                other => Err(not_a(&other, "an integer")),
            })
        }),
        f("crdt_value_double", "the value of a state that is a number", 1..=1, Type::Float64, |a| {
            with_value(a, |v| match v.to_f64() {
                Some(number) => Ok(Value::float(number)),
                None if v.is_null() => Ok(v),
                None => Err(not_a(&v, "a number")),
            })
        }),
        f("crdt_value_text", "the value of a state as canonical text", 1..=1, Type::Text, |a| {
            with_value(a, |v| Ok(if v.is_null() { v } else { Value::text(v.to_string()) }))
        }),
        f("crdt_value_boolean", "the value of a state that is a boolean", 1..=1, Type::Boolean, |a| {
            with_value(a, |v| match v {
                Value::Null | Value::Bool(_) => Ok(v),
                other => Err(not_a(&other, "a boolean")),
            })
        }),
        f(
            "crdt_value_timestamp",
            "the value of a state that is a timestamp",
            1..=1,
            Type::Timestamp { unit: Unit::Microsecond, zone: None },
            |a| {
                with_value(a, |v| match v {
                    Value::Null => Ok(v),
                    Value::Timestamp { nanos, .. } => in_micros(nanos),
                    Value::Date(days) if days.unsigned_abs() >= i32::MAX as u32 => {
                        in_micros(i128::from(days.signum()) * INFINITE * 1000)
                    }
                    Value::Date(days) => in_micros(i128::from(days) * 86_400_000_000_000),
                    other => Err(not_a(&other, "a timestamp")),
                })
            },
        ),
        f("crdt_value_list", "the value of a state that is a list, its elements as text", 1..=1, list_of(Type::Text), |a| {
            with_value(a, |v| match v {
                Value::Null => Ok(v),
                Value::List(items) => Ok(Value::List(items.iter().map(text_of).collect())),
                other => Err(not_a(&other, "a list")),
            })
        }),
        f("crdt_type", "the name of the type of a state", 1..=1, Type::Text, |a| {
            Ok(match state(&a[0])? {
                None => Value::Null,
                Some(bytes) => Value::text(catalog::open(bytes)?.spec().name),
            })
        }),
        f("crdt_info", "everything in a state, as JSON", 1..=1, Type::Text, |a| {
            let Some(bytes) = state(&a[0])? else { return Ok(Value::Null) };
            let opened = catalog::open(bytes)?;
            let info = vec![
                ("type".into(), Value::text(opened.spec().name)),
                ("value".into(), opened.value()?),
                ("state".into(), opened.info()),
                ("bytes".into(), Value::Int(bytes.len() as i128)),
            ];
            Ok(Value::text(Value::record(info).to_json()))
        }),
        f("crdt_leq", "whether the second state knows all that the first does", 2..=2, Type::Boolean, |a| {
            let Some(order) = compare(a)? else { return Ok(Value::Null) };
            Ok(Value::Bool(matches!(order, Comparison::Before | Comparison::Equal)))
        }),
        f("crdt_compare", "how two states lie in the lattice: before, after, equal or concurrent", 2..=2, Type::Text, |a| {
            Ok(compare(a)?.map_or(Value::Null, |order| Value::text(order.as_str())))
        }),
        f("crdt_delta", "a small state that adds to the second what the first does", 2..=2, Type::Bytes, |a| {
            Ok(match (state(&a[0])?, state(&a[1])?) {
                (Some(state), Some(since)) => bytes(catalog::open(state)?.delta(since)?),
                (Some(state), None) => bytes(catalog::open(state)?.encode()),
                (None, _) => Value::Null,
            })
        }),
        f("crdt_compress", "the state with a compressed body, for storage", 1..=1, Type::Bytes, |a| {
            Ok(match state(&a[0])? {
                None => Value::Null,
                Some(state) => bytes(catalog::compress(state)?),
            })
        }),
        f(
            "crdt_from_frame",
            "the state of a frame of the earlier Python library; of a delta of rows with the name of their key",
            1..=2,
            Type::Bytes,
            |a| {
                let key = match a.get(1) {
                    Some(Value::Text(key)) => Some(&**key),
                    None | Some(Value::Null) => None,
                    Some(other) => {
                        return Err(Error::type_mismatch(format!("the name of a key is a text, not a {}", other.kind())));
                    }
                };
                frame(&a[0])?.map_or(Ok(Value::Null), |frame| crate::frames::from_frame(&frame, key).map(bytes))
            },
        ),
        f("crdt_frames", "the frames of a batch of the earlier Python library", 1..=1, list_of(Type::Bytes), |a| {
            let Some(batch) = frame(&a[0])? else { return Ok(Value::Null) };
            Ok(Value::List(crate::frames::of_batch(&batch)?.into_iter().map(|frame| bytes(frame.to_vec())).collect()))
        }),
        f("crdt_to_frame", "the frame of the earlier Python library for a state", 1..=1, Type::Bytes, |a| {
            Ok(match state(&a[0])? {
                None => Value::Null,
                Some(state) => bytes(crate::frames::to_frame(state)?),
            })
        }),
        f("mergeql_version", "the version of MergeQL", 0..=0, Type::Text, |_| Ok(Value::text(env!("CARGO_PKG_VERSION")))),
        f("mergeql_order_key", "bytes that sort as the value does (R2)", 1..=1, Type::Bytes, |a| {
            Ok(if a[0].is_null() { Value::Null } else { bytes(order_key(&a[0])) })
        }),
        f("mergeql_text", "the canonical text of values", 1..=usize::MAX, Type::Text, |a| {
            let parts: Vec<String> = a.iter().map(Value::to_string).collect();
            Ok(if a.iter().all(Value::is_null) { Value::Null } else { Value::text(parts.join(", ")) })
        }),
        f("mergeql_content", "the canonical text of what of some values is not NULL", 1..=usize::MAX, Type::Text, |a| {
            let parts: Vec<String> = a.iter().filter(|v| !v.is_null()).map(Value::to_string).collect();
            Ok(if parts.is_empty() { Value::Null } else { Value::text(parts.join(", ")) })
        }),
        f("mergeql_gset_of", "the state of a set of one value", 1..=1, Type::Bytes, |a| {
            let gset = catalog::find("gset").expect("invariant: gset is built in").bind(&Call::new(vec![Type::Null]))?;
            let mut groups = gset.plain_groups();
            groups.update(&[Column::of_values(&a[..1])], &[0], None, 1)?;
            Ok(groups.states(1)?.value(0))
        }),
        Function {
            columns: Some(cells::cells),
            ..f("mergeql_cells", "who won and who lost, for each cell of a row", 1..=usize::MAX, cells::returns(), |a| {
                let columns: Vec<Column> = a.iter().map(|value| Column::of_values(std::slice::from_ref(value))).collect();
                Ok(cells::cells(&columns, 1)?.value(0))
            })
        },
        f("mergeql_pack", "the states of a row as one value", 1..=usize::MAX, Type::Bytes, |a| {
            let mut columns = Vec::new();
            let mut rest = a;
            while let [first, others @ ..] = rest {
                rest = match (first, others) {
                    // What was packed already: functions of some hosts take a hundred arguments.
                    (Value::Bytes(packed), _) => {
                        columns.extend(codec::unpack(packed)?);
                        others
                    }
                    (Value::Text(name), [Value::Bytes(state), ..]) => {
                        columns.push((name.to_string(), state.to_vec()));
                        &others[1..]
                    }
                    _ => others.get(1..).unwrap_or_default(),
                };
            }
            Ok(bytes(codec::pack(columns)))
        }),
        f("mergeql_unpack", "the state of a column, out of those of its row", 2..=2, Type::Bytes, |a| {
            let (Value::Bytes(packed), Value::Text(column)) = (&a[0], &a[1]) else {
                return Err(Error::new(
                    Code::NeedsState,
                    "a row of this table was edited or written by hand: no state says its values",
                )
                .with_help("take such rows in with mergeql_adopt('table'); in DuckDB, delete them and merge them as a source"));
            };
            let found = codec::unpack(packed)?.into_iter().find(|(name, _)| *name == **column);
            Ok(found.map_or(Value::Null, |(_, state)| bytes(state)))
        }),
    ]
}

fn bytes(b: Vec<u8>) -> Value {
    Value::Bytes(b.into())
}

/// The bytes of an argument that should be a frame. Where lists are JSON, bytes in them are text: `\\x` and hex digits.
fn frame(value: &Value) -> Result<Option<Cow<'_, [u8]>>> {
    let hex = |digits: &str| -> Option<Vec<u8>> {
        let pairs = digits.as_bytes().chunks(2);
        pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok().filter(|p| p.len() == 2)?, 16).ok()).collect()
    };
    match value {
        Value::Null => Ok(None),
        Value::Bytes(frame) => Ok(Some(Cow::Borrowed(frame))),
        Value::Text(text) if text.starts_with("\\x") => match hex(&text[2..]) {
            Some(frame) => Ok(Some(Cow::Owned(frame))),
            None => Err(Error::type_mismatch("a frame is bytes, or \\x and hex digits")),
        },
        other => Err(Error::type_mismatch(format!("a frame is bytes, not a {}", other.kind()))),
    }
}

/// The value of the state in the first argument, passed on.
fn with_value(args: &[Value], run: impl FnOnce(Value) -> Result<Value>) -> Result<Value> {
    match state(&args[0])? {
        None => Ok(Value::Null),
        Some(bytes) => run(catalog::open(bytes)?.value()?),
    }
}

fn compare(args: &[Value]) -> Result<Option<Comparison>> {
    match (state(&args[0])?, state(&args[1])?) {
        (Some(a), Some(b)) => catalog::compare(a, b).map(Some),
        _ => Ok(None),
    }
}

fn not_a(value: &Value, wanted: &str) -> Error {
    Error::type_mismatch(format!("the value of the state is the {} {value}, not {wanted}", value.kind()))
        .with_help("crdt_value gives any value as JSON")
}

/// Whether a call of a function of any number of arguments has as many as it needs.
///
/// # Errors
/// `invalid_argument` with that number.
pub fn check_count(name: &str, least: usize, given: usize) -> Result<()> {
    if given >= least {
        return Ok(());
    }
    Err(Error::invalid_argument(format!(
        "`{name}` takes at least {least} argument{}, {given} given",
        if least == 1 { "" } else { "s" }
    )))
}

fn text_of(value: &Value) -> Value {
    if value.is_null() { Value::Null } else { Value::text(value.to_string()) }
}

/// Microseconds, in nanoseconds, of what is later than any time.
const INFINITE: i128 = i64::MAX as i128;

/// A timestamp of whole microseconds, rounded down.
fn in_micros(nanos: i128) -> Result<Value> {
    // The ends of the numbers of a unit are what is infinite in it.
    let infinite = [1_000, 1_000_000, 1_000_000_000].iter().any(|unit| nanos.abs() == INFINITE * unit);
    let micros = if infinite { nanos.signum() * INFINITE } else { nanos.div_euclid(1000) };
    if micros.abs() > INFINITE {
        let time = Value::Timestamp { nanos, zoned: false };
        return Err(Error::new(Code::LimitExceeded, format!("{time} is outside of what a timestamp of microseconds holds"))
            .with_help("crdt_value_text gives it as text"));
    }
    Ok(Value::Timestamp { nanos: micros * 1000, zoned: false })
}
