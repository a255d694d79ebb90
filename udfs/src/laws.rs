//! The derived law checker: every strategy of the catalogue is held to the semilattice laws, and its fast store to its plain one.
//!
//! Nothing is listed by hand. The rows come from the types of a sample call: NULL, NaN, -0.0, equal versions and all.

use crate::aggregate::{Aggregate, Call, Groups};
use crate::batch::{Column, OwnedColumn, OwnedData};
use crate::catalog::{self, Entry, Input};
use crate::types::Type;
use crate::value::Value;
use std::sync::Arc;

/// A law that did not hold, with the rows that show it.
#[derive(Debug, Clone, PartialEq)]
pub struct Counterexample {
    /// The law.
    pub law: &'static str,
    /// What was tried and what came out.
    pub detail: String,
}

/// How one law fared.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The law.
    pub law: &'static str,
    /// How many cases were tried.
    pub cases: usize,
    /// How many held.
    pub passed: usize,
    /// The first that did not.
    pub counterexample: Option<String>,
}

/// The laws that [`check`] tries, in the order of its outcomes.
pub const LAWS: [&str; 7] =
    ["commutative", "associative", "idempotent", "monotone", "canonical", "fast equals plain", "delta joins to the whole"];

/// The values that rows of this type are made of.
pub fn domain(ty: &Type) -> Vec<Value> {
    let ints = |v: &[i128]| v.iter().copied().map(Value::Int).collect::<Vec<_>>();
    let mut values = match ty {
        Type::Boolean => vec![Value::Bool(false), Value::Bool(true)],
        Type::Int { .. } => ints(&[1, 2, 9]),
        Type::Float32 | Type::Float64 => [1.5, -0.0, 0.0, f64::NAN].map(Value::float).into(),
        Type::Decimal { scale, .. } => [-1250, 999, 1000].map(|unscaled| Value::Decimal { unscaled, scale: *scale as u8 }).into(),
        Type::Text => ["a", "b,a", "", "10", "9"].map(Value::text).into(),
        Type::Bytes => vec![Value::Bytes([0].into()), Value::Bytes([0, 255].into())],
        Type::Date => vec![Value::Date(-1), Value::Date(1)],
        Type::Time(_) => vec![Value::Time(0), Value::Time(1_000_000_000)],
        Type::Timestamp { zone, .. } => {
            [-1_000_000_000, 0, 5_000_000_000].map(|nanos| Value::Timestamp { nanos, zoned: zone.is_some() }).into()
        }
        Type::Interval => vec![Value::Interval { months: 1, days: 0, nanos: 0 }, Value::Interval { months: 0, days: 30, nanos: 1 }],
        Type::Uuid => vec![Value::Uuid([0; 16]), Value::Uuid([255; 16])],
        Type::List(t) => {
            let elements = domain(t);
            let mut lists = vec![Value::List(vec![])];
            lists.extend(elements.iter().take(3).map(|v| Value::List(vec![v.clone()])));
            lists.push(Value::List(elements));
            lists
        }
        Type::Struct(fields) => {
            let pick = |i: usize| {
                Value::record(fields.iter().map(|(n, t)| (n.clone(), domain(t).get(i).cloned().unwrap_or(Value::Null))).collect())
            };
            vec![pick(0), pick(1)]
        }
        Type::Map(..) | Type::Null => vec![],
    };
    values.push(Value::Null);
    values
}

/// A deterministic stream of numbers (SplitMix64; Steele, Lea, Flood 2014): cases can be run again from their seed.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// A row: one value an input.
pub type Row = Vec<Value>;

/// How the rows of a check are aggregated; tests put broken ones in its place, which must be caught.
pub trait Machine {
    /// The state bytes and the value of these rows, split into partial states at `cuts`, joined left to right.
    ///
    /// # Errors
    /// What the strategy refuses.
    fn run(&self, rows: &[Row], cuts: &[usize]) -> crate::Result<(Option<Vec<u8>>, Value)>;
}

/// A configured strategy, driven through one of its stores.
#[derive(Debug)]
pub struct Store {
    aggregate: Arc<dyn Aggregate>,
    fast: bool,
}

impl Store {
    /// A store of this aggregate, the fast one or the plain one.
    pub fn new(aggregate: Arc<dyn Aggregate>, fast: bool) -> Store {
        Store { aggregate, fast }
    }

    fn groups(&self) -> Box<dyn Groups> {
        if self.fast { self.aggregate.groups() } else { self.aggregate.plain_groups() }
    }
}

/// Columns of values from rows.
fn columns(rows: &[Row], width: usize) -> Vec<Vec<Value>> {
    (0..width).map(|c| rows.iter().map(|r| r[c].clone()).collect()).collect()
}

/// An owned column as values, to lend it to the next store.
pub fn values_of(column: &OwnedColumn) -> Vec<Value> {
    match &column.data {
        OwnedData::Values(values) if column.validity.is_none() => values.clone(),
        _ => (0..column.len()).map(|i| column.value(i)).collect(),
    }
}

impl Machine for Store {
    fn run(&self, rows: &[Row], cuts: &[usize]) -> crate::Result<(Option<Vec<u8>>, Value)> {
        let width = rows.first().map_or(0, Vec::len);
        let build = || -> crate::Result<Box<dyn Groups>> {
            let mut total = self.groups();
            total.update(&vec![Column::of_values(&[]); width], &[], None, 1)?;
            let mut start = 0;
            for &end in cuts.iter().chain([&rows.len()]) {
                let data = columns(&rows[start..end], width);
                let borrowed: Vec<Column<'_>> = data.iter().map(|c| Column::of_values(c)).collect();
                let mut part = self.groups();
                part.update(&borrowed, &vec![0; end - start], None, 1)?;
                // Partial states travel as rows where rows suffice, every other one as bytes all the same.
                if self.aggregate.partials_are_rows() && (end - start) % 2 == 0 {
                    let rows: Vec<Vec<Value>> = part.rows(1)?.iter().map(values_of).collect();
                    let borrowed: Vec<Column<'_>> = rows.iter().map(|c| Column::of_values(c)).collect();
                    total.update(&borrowed, &[0], None, 1)?;
                } else {
                    // Or in the bytes of one query.
                    let states = if (end - start) % 3 == 1 { part.shipped(1)? } else { part.states(1)? };
                    let states = values_of(&states);
                    total.merge(&Column::of_values(&states), &[0], 1)?;
                }
                start = end;
            }
            Ok(total)
        };
        let state = match build()?.states(1)?.value(0) {
            Value::Bytes(bytes) => Some(bytes.into_vec()),
            _ => None,
        };
        Ok((state, build()?.finish(1)?.value(0)))
    }
}

/// The rows of a sample call: every combination of a few values, less those that the strategy refuses.
pub fn rows_of(entry: &Entry, call: &Call) -> Vec<Row> {
    rows_with(entry, call, None)
}

/// As [`rows_of`], with these values instead of the domain of the type.
pub fn rows_with(entry: &Entry, call: &Call, given: Option<&[Value]>) -> Vec<Row> {
    let fixed = entry.spec().inputs.iter().filter(|i| **i != Input::Versions).count();
    let domains: Vec<Vec<Value>> = call
        .inputs
        .iter()
        .enumerate()
        .map(|(i, ty)| match entry.spec().inputs.get(i) {
            Some(Input::Origin) => match ty {
                Type::Int { .. } => vec![Value::Int(1), Value::Int(2)],
                _ => ["a", "b", "c"].map(Value::text).into(),
            },
            Some(Input::Digest) => vec![Value::Bytes([0; 32].into()), Value::Bytes([7; 32].into()), Value::Null],
            Some(Input::Frame) => frames(entry),
            _ if i == 0 && given.is_some() => given.unwrap_or_default().to_vec(),
            _ if entry.spec().name == "json" && i == 0 => {
                ["{\"a\":1}", "{\"a\":{\"b\":2}}", "{\"a\":[1,2],\"c\":null}", "[3]", "null"].map(Value::text).into()
            }
            // Vectors of one length.
            _ if entry.spec().name.starts_with("tensor_") && i == 0 => {
                let vector = |v: &[f64]| Value::List(v.iter().copied().map(Value::float).collect());
                vec![vector(&[1.5, 0.0]), vector(&[-2.0, 1.0]), vector(&[0.5, 0.25]), Value::Null]
            }
            _ if matches!(entry.spec().name, "state" | "ormap") && i == 0 => states(),
            _ if i == 0 && *ty == Type::Bytes && catalog::plain().iter().any(|e| e.spec().name == entry.spec().name) => {
                finished(entry)
            }
            _ if i >= fixed && matches!(ty, Type::Int { .. }) => vec![Value::Int(1), Value::Int(2), Value::Null],
            _ => domain(ty),
        })
        .collect();
    let mut rows: Vec<Row> = vec![vec![]];
    for values in &domains {
        rows = rows.iter().flat_map(|r| values.iter().map(move |v| r.iter().cloned().chain([v.clone()]).collect())).collect();
    }
    // What an origin took away it had.
    rows.retain(|row| entry.spec().name != "bounded" || row[0] >= row[1]);
    let Ok(aggregate) = entry.bind(call) else { return Vec::new() };
    let machine = Store::new(aggregate, false);
    rows.retain(|row| machine.run(std::slice::from_ref(row), &[]).is_ok());
    rows
}

/// States of one type, for a strategy that joins them.
fn states() -> Vec<Value> {
    let gset = catalog::find("gset").expect("invariant: gset is built in");
    let state = |v: i128| {
        let mut partial = gset.bind(&Call::new(vec![Type::INT64])).ok()?.partial();
        partial.update(&[Value::Int(v)]).ok()?;
        Some(Value::Bytes(partial.encode()?.into()))
    };
    (1..4).filter_map(state).chain([Value::Null]).collect()
}

/// Frames of the earlier Python library, for a strategy that joins them.
fn frames(entry: &Entry) -> Vec<Value> {
    let all = include_str!("../tests/frames.jsonl").lines().chain(include_str!("../tests/more_frames.jsonl").lines());
    let hex = |line: &str| Some(line.rsplit_once("\"hex\": \"")?.1.trim_end_matches(['"', '}']).to_owned());
    let byte = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).unwrap_or_default(), 16).ok();
    let frames = all.filter_map(hex).filter_map(|hex| hex.as_bytes().chunks(2).map(byte).collect::<Option<Vec<u8>>>());
    let own = |frame: &Vec<u8>| {
        let state = crate::frames::from_frame(frame, None);
        state.and_then(|state| Ok(catalog::open(&state)?.spec().name == entry.spec().name)).unwrap_or(false)
    };
    frames.filter(own).map(|frame| Value::Bytes(frame.into())).chain([Value::Null]).collect()
}

/// Finished sketches of a few values, for a strategy that joins them.
fn finished(entry: &Entry) -> Vec<Value> {
    let made = |call: Call| -> crate::Result<Vec<Value>> {
        let mut found = Vec::new();
        let builder = catalog::plain().iter().find(|e| e.spec().name == entry.spec().name).expect("invariant: the caller found it");
        let values = domain(&call.value_type());
        for n in [1, values.len()] {
            let mut partial = builder.bind(&call)?.partial();
            values[..n].iter().try_for_each(|v| partial.update(std::slice::from_ref(v)))?;
            found.push(partial.value()?);
        }
        Ok(found)
    };
    let builder = catalog::plain().iter().find(|e| e.spec().name == entry.spec().name);
    let calls = builder.map(|b| (b.spec().samples)()).unwrap_or_default();
    calls.into_iter().take(1).flat_map(|call| made(call).unwrap_or_default()).chain([Value::Null]).collect()
}

/// Holds a machine to the laws over every list of up to `size` rows, and over random longer ones, `cases` of each kind.
pub fn check_machine(
    machine: &dyn Machine,
    reference: Option<&dyn Machine>,
    rows: &[Row],
    cases: usize,
    seed: u64,
) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = LAWS.iter().map(|law| Outcome { law, cases: 0, passed: 0, counterexample: None }).collect();
    if rows.is_empty() {
        return outcomes;
    }
    let mut note = |law: usize, holds: bool, detail: &dyn Fn() -> String| {
        let outcome = &mut outcomes[law];
        outcome.cases += 1;
        outcome.passed += usize::from(holds);
        if !holds && outcome.counterexample.is_none() {
            outcome.counterexample = Some(detail());
        }
    };
    let mut random = Random(seed);
    let mut lists: Vec<Vec<Row>> = rows.iter().map(|r| vec![r.clone()]).collect();
    for a in rows {
        for b in rows {
            if lists.len() < cases {
                lists.push(vec![a.clone(), b.clone()]);
            }
        }
    }
    for _ in 0..cases {
        let length = 2 + random.below(7);
        lists.push((0..length).map(|_| rows[random.below(rows.len())].clone()).collect());
    }
    for list in &lists {
        let Ok(whole) = machine.run(list, &[]) else { continue };
        let show = |other: &crate::Result<(Option<Vec<u8>>, Value)>| {
            let other = other.as_ref().map_or_else(ToString::to_string, |(_, v)| v.to_string());
            format!("rows {} give {}, but also {other}", Value::List(list.iter().cloned().map(Value::List).collect()), whole.1)
        };
        let mut shuffled = list.clone();
        random.shuffle(&mut shuffled);
        let other = machine.run(&shuffled, &[]);
        note(0, other.as_ref() == Ok(&whole), &|| show(&other));
        let mut cuts: Vec<usize> = (0..1 + random.below(3)).map(|_| random.below(list.len() + 1)).collect();
        cuts.sort_unstable();
        let other = machine.run(list, &cuts);
        note(1, other.as_ref() == Ok(&whole), &|| show(&other));
        let mut repeated = list.clone();
        repeated.extend((0..1 + random.below(list.len())).map(|_| list[random.below(list.len())].clone()).collect::<Vec<_>>());
        random.shuffle(&mut repeated);
        let cut = random.below(repeated.len());
        let other = machine.run(&repeated, &[cut]);
        note(2, other.as_ref() == Ok(&whole), &|| show(&other));
        let fewer = &list[..list.len().div_ceil(2)];
        if let (Some(state), Ok((Some(less), _))) = (&whole.0, machine.run(fewer, &[])) {
            let joined = catalog::join(&less, state);
            note(3, joined.as_ref() == Ok(state), &|| "the state of fewer rows is not below the state of all".to_owned());
            let delta = catalog::open(state).and_then(|s| s.delta(&less)).and_then(|delta| catalog::join(&less, &delta));
            note(6, delta.as_ref() == Ok(state), &|| "the delta does not lead from fewer rows to all".to_owned());
        }
        if let Some(state) = &whole.0 {
            let again = catalog::open(state).map(|s| s.encode());
            note(4, again.as_ref() == Ok(state), &|| format!("decoding and encoding again gives {again:?}"));
        }
        if let Some(reference) = reference {
            let other = reference.run(list, &[]);
            note(5, other.as_ref() == Ok(&whole), &|| show(&other));
        }
    }
    outcomes
}

/// Holds a strategy to every law for one call; the fast store is the machine, the plain one its reference.
///
/// # Errors
/// If the call itself is refused.
pub fn check(entry: &Entry, call: &Call, cases: usize, seed: u64) -> crate::Result<Vec<Outcome>> {
    check_with(entry, call, None, cases, seed)
}

/// As [`check`], with these values instead of the domain of the type.
///
/// # Errors
/// If the call itself is refused.
pub fn check_with(entry: &Entry, call: &Call, given: Option<&[Value]>, cases: usize, seed: u64) -> crate::Result<Vec<Outcome>> {
    let aggregate = entry.bind(call)?;
    let rows = rows_with(entry, call, given);
    let plain = Store::new(aggregate.clone(), false);
    Ok(check_machine(&Store::new(aggregate, true), Some(&plain), &rows, cases, seed))
}
