//! The catalogue as aggregates. DuckDB's C interface has no aggregate that returns the type of its argument, so one overload exists for
//! each native type; a last overload for any type says what to write instead, or resolves where the result does not depend on the type.
#![allow(unsafe_code)]

mod driver;
mod gathered;
mod merges;
mod objects;
mod repeats;
mod slots;

use crate::api::{Connection, LogicalType, Pointer, drop_box, duckdb, id, leak, text};
use driver::{Driver, kept};
use gathered::{counts_driver, several_driver};
use mergeql_lang::lower::{DuckDb, MOST_LITERALS};
use mergeql_udfs::catalog::{self, Arg, ArgKind, Entry, Input};
use mergeql_udfs::slot::{Collected, Shape, Timed};
use mergeql_udfs::{Aggregate, Call, Order, Type, Unit, Value, VersionKeys};
use objects::Object;
use slots::{parts_driver, slot_driver};
use std::sync::Arc;

/// Parts of a version in one call at most.
const MOST_VERSIONS: usize = 4;

/// The types that have aggregates of their own.
fn native_types() -> Vec<Type> {
    let int = |bits, signed| Type::Int { bits, signed };
    let stamp = |unit| Type::Timestamp { unit, zone: None };
    let scalars = vec![
        Type::Boolean,
        int(8, true),
        int(16, true),
        int(32, true),
        int(64, true),
        int(128, true),
        int(8, false),
        int(16, false),
        int(32, false),
        int(64, false),
        Type::Float32,
        Type::Float64,
        Type::Text,
        Type::Bytes,
        Type::Date,
        Type::Time(Unit::Microsecond),
        stamp(Unit::Second),
        stamp(Unit::Millisecond),
        stamp(Unit::Microsecond),
        stamp(Unit::Nanosecond),
        Type::Timestamp { unit: Unit::Microsecond, zone: Some(Arc::from("UTC")) },
        Type::Interval,
        Type::Uuid,
    ];
    let lists = scalars.iter().map(|ty| Type::List(Box::new(ty.clone()))).collect::<Vec<_>>();
    let types: Vec<Type> = scalars.into_iter().chain(lists).collect();
    debug_assert!(types.iter().all(DuckDb::is_native), "the lowering knows the same types");
    types
}

/// What an overload is.
struct Function {
    name: String,
    entry: &'static Entry,
    /// The result is the state, not the value.
    state: bool,
    /// The first argument is a configuration in JSON.
    configured: bool,
    /// How many arguments behind it are input columns; those after them configure.
    inputs: usize,
    /// The type of the result; `None` where the overload is only there to say what to write.
    result: Option<Type>,
    /// The order of a slot.
    order: Order,
}

/// Registers every aggregate.
pub fn register(connection: &Connection) -> Result<(), String> {
    for entry in catalog::all() {
        let spec = entry.spec();
        for base in std::iter::once(&spec.name).chain(spec.aliases) {
            for (state, configured) in [(false, false), (true, false), (false, true), (true, true)] {
                let suffix = format!("{}{}", if state { "_state" } else { "" }, if configured { "_with" } else { "" });
                register_set(connection, entry, &format!("crdt_{base}{suffix}"), state, configured)?;
            }
        }
    }
    for entry in catalog::plain() {
        register_set(connection, entry, catalog::plain_name(entry), false, false)?;
    }
    repeats::register(connection)?;
    merges::register(connection)
}

/// Arguments that are literals, after the inputs: how many there may be.
fn literal_counts(args: &[Arg]) -> std::ops::RangeInclusive<usize> {
    args.iter().fold(0..=0, |range, arg| match arg.kind {
        ArgKind::Text | ArgKind::Number | ArgKind::Choice(_) => *range.start()..=range.end() + 1,
        ArgKind::Literals | ArgKind::Sources => range.start() + 1..=range.end() + MOST_LITERALS,
        ArgKind::Column(..) | ArgKind::RespectNulls => range,
    })
}

fn register_set(connection: &Connection, entry: &'static Entry, name: &str, state: bool, configured: bool) -> Result<(), String> {
    let spec = entry.spec();
    let fixed = spec.inputs.iter().filter(|i| **i != Input::Versions).count();
    let versions = if spec.versioned() { 0..=MOST_VERSIONS } else { 0..=0 };
    // Behind a version no argument can be told from one more part of it.
    let literals = if configured || spec.versioned() { 0..=0 } else { literal_counts(spec.args) };
    let mut set = Set::new(name);
    let any = || LogicalType::of_id(id::ANY);
    for more in versions {
        for literal in literals.clone() {
            let inputs = fixed + more;
            let function =
                |result: Option<Type>, order| Function { name: name.to_owned(), entry, state, configured, inputs, result, order };
            let mut add = |value: LogicalType, versions: &[&Type], function: Function, driver: &Driver| {
                let mut parameters = Vec::new();
                if configured {
                    parameters.push(LogicalType::of_id(id::VARCHAR));
                }
                parameters.push(value);
                parameters.extend((1..inputs).map(|i| versions.get(i - 1).map_or_else(any, |ty| LogicalType::of(ty))));
                parameters.extend((0..literal).map(|_| any()));
                let result = LogicalType::of(function.result.as_ref().unwrap_or(&Type::Text));
                set.add(&parameters, &result, function, driver)
            };
            const NONE: Order = Order { least: false, flip_version: false };
            if state {
                add(any(), &[], function(Some(Type::Bytes), NONE), &kept::<Object>())?;
                continue;
            }
            let mut results = Vec::new();
            for ty in native_types() {
                // Which types a strategy takes and gives shows without its configuration, or with some of it.
                let Some(bound) = bind_some(entry, &ty, inputs) else { continue };
                let result = returned(bound.result_type());
                if !DuckDb::is_native(&result) && !matches!(result, Type::Decimal { .. }) {
                    continue;
                }
                results.push(result.clone());
                let simple = (!configured && literal == 0).then(|| bound.shape()).flatten();
                let order = match simple {
                    Some(Shape::Strongest(order)) => order,
                    Some(Shape::GreatestPerOrigin) => {
                        if let Some(driver) = counts_driver(&ty) {
                            add(LogicalType::of(&ty), &[&Type::Text], function(Some(result.clone()), NONE), &driver)?;
                        }
                        add(LogicalType::of(&ty), &[], function(Some(result), NONE), &kept::<Object>())?;
                        continue;
                    }
                    Some(Shape::Collected) => {
                        let driver = several_driver(&ty).unwrap_or(kept::<Collected>());
                        add(LogicalType::of(&ty), &[], function(Some(result), NONE), &driver)?;
                        continue;
                    }
                    None => {
                        add(LogicalType::of(&ty), &[], function(Some(result), NONE), &kept::<Object>())?;
                        continue;
                    }
                };
                // A version of one fixed-width part is an integer; others are bytes.
                let timed = if order.flip_version { slot_driver::<Timed<true>>(&ty) } else { slot_driver::<Timed<false>>(&ty) };
                for version in native_types().iter().filter(|v| VersionKeys::takes(v)) {
                    match (inputs, slot_driver::<u64>(&ty), timed) {
                        (2, Some(driver), _) => {
                            add(LogicalType::of(&ty), &[version], function(Some(result.clone()), order), &driver)?;
                        }
                        (3, _, Some(driver)) => {
                            let versions = [version, &Type::Text];
                            add(LogicalType::of(&ty), &versions, function(Some(result.clone()), order), &driver)?;
                        }
                        _ => {}
                    }
                }
                let driver = match inputs {
                    1 => slot_driver::<()>(&ty),
                    inputs => parts_driver(&ty, inputs - 1, order.flip_version),
                };
                add(LogicalType::of(&ty), &[], function(Some(result), order), &driver.unwrap_or(kept::<Object>()))?;
            }
            results.dedup();
            // A result that is the same for every type needs no type; else this overload is only there to say what to write.
            let one = match results.as_slice() {
                [only] if !spec.selects => Some(only.clone()),
                _ => None,
            };
            add(any(), &[], function(one, NONE), &kept::<Object>())?;
        }
    }
    set.register(connection)
}

/// The type that an aggregate returns: DuckDB's interface lets none return a map, which is JSON then, as where hosts have no maps.
fn returned(result: Type) -> Type {
    match result {
        Type::Map(..) => Type::Text,
        other => other,
    }
}

/// The strategy over this type, with a configuration that only stands for one where it needs some.
fn bind_some(entry: &Entry, ty: &Type, inputs: usize) -> Option<Arc<dyn Aggregate>> {
    let spec = entry.spec();
    let input = |i: usize| match spec.inputs.get(i) {
        _ if i == 0 => ty.clone(),
        Some(Input::Origin) => Type::Text,
        Some(Input::Decrements) => ty.clone(),
        Some(Input::Digest | Input::Frame) => Type::Bytes,
        _ => Type::INT64,
    };
    let call = Call::new((0..inputs).map(input).collect());
    if let Ok(bound) = entry.bind(&call) {
        return Some(bound);
    }
    // Some sets end in a flag that says whether the element is removed.
    let flagged = (0..inputs).map(|i| if i > 0 && i + 1 == inputs { Type::Boolean } else { input(i) });
    if let Ok(bound) = entry.bind(&Call::new(flagged.collect())) {
        return Some(bound);
    }
    let arg = spec.args.iter().find(|a| matches!(a.kind, ArgKind::Literals | ArgKind::Sources))?;
    let sample = match ty {
        _ if arg.kind == ArgKind::Sources => Value::text("a"),
        Type::Text => Value::text("a"),
        Type::Boolean => Value::Bool(true),
        Type::Date => Value::Date(0),
        Type::Timestamp { zone, .. } => Value::Timestamp { nanos: 0, zoned: zone.is_some() },
        Type::Time(_) => Value::Time(0),
        Type::Uuid => Value::Uuid([0; 16]),
        ty if ty.is_number() => Value::Int(1).fit(ty).ok()?,
        _ => return None,
    };
    let samples = vec![sample];
    entry.bind(&call.with_arg(arg.name, Value::List(samples))).ok()
}

/// An overload set being filled.
struct Set {
    name: String,
    set: Pointer,
}

impl Set {
    fn new(name: &str) -> Set {
        // SAFETY: DuckDB copies the name.
        Set { name: name.to_owned(), set: unsafe { (duckdb().create_aggregate_function_set)(text(name).as_ptr()) } }
    }

    fn add<F>(&mut self, parameters: &[LogicalType], result: &LogicalType, info: F, driver: &Driver) -> Result<(), String> {
        let api = duckdb();
        // SAFETY: DuckDB copies names and types, and owns `info` from here on.
        unsafe {
            let mut function = (api.create_aggregate_function)();
            (api.aggregate_function_set_name)(function, text(&self.name).as_ptr());
            parameters.iter().for_each(|p| (api.aggregate_function_add_parameter)(function, p.0));
            (api.aggregate_function_set_return_type)(function, result.0);
            let Driver { size, init, update, combine, finalize, destroy } = *driver;
            (api.aggregate_function_set_functions)(function, size, init, update, combine, finalize);
            if let Some(destroy) = destroy {
                (api.aggregate_function_set_destructor)(function, destroy);
            }
            (api.aggregate_function_set_special_handling)(function);
            (api.aggregate_function_set_extra_info)(function, leak(info), drop_box::<F>);
            let added = (api.add_aggregate_function_to_set)(self.set, function);
            (api.destroy_aggregate_function)(&mut function);
            if added == 0 { Ok(()) } else { Err(format!("an overload of {} is there twice", self.name)) }
        }
    }

    fn register(self, connection: &Connection) -> Result<(), String> {
        // SAFETY: the set and the connection are alive.
        match unsafe { (duckdb().register_aggregate_function_set)(connection.0, self.set) } {
            0 => Ok(()),
            _ => Err(format!("DuckDB does not take the aggregate {}", self.name)),
        }
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        // SAFETY: it is ours and destroyed once.
        unsafe { (duckdb().destroy_aggregate_function_set)(&mut self.set) };
    }
}
