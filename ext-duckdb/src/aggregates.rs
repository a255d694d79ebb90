//! The catalogue as aggregates. DuckDB's C interface has no aggregate that returns the type of its argument, so one overload exists for
//! each native type; a last overload for any type says what to write instead, or resolves where the result does not depend on the type.
#![allow(unsafe_code)]

use crate::api::{Connection, Failure, LogicalType, Pointer, drop_box, duckdb, guarded, id, leak, text};
use crate::sorted::{on_init, on_size, stride};
use crate::vectors::{Scratch, Text, Vector, put, put_bytes, put_value, set_null};
use mergeql_lang::lower::DuckDb;
use mergeql_udfs::catalog::{self, Arg, ArgKind, Entry, Input};
use mergeql_udfs::slot::{Collected, Counts, Held, Key, Parts, Shape, Slot, SmallBytes, Timed};
use mergeql_udfs::value::order_key::order_key;
use mergeql_udfs::{Aggregate, AnyState, Call, Column, Error, Order, Partial, Type, Unit, Value, VersionKeys};
use std::sync::Arc;

/// Literal arguments (the levels of `priority`, the sources of `source`) in one call at most, and parts of a version.
const MOST_LITERALS: usize = 8;
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
    merges(connection)
}

/// Arguments that are literals, after the inputs: how many there may be.
fn literal_counts(args: &[Arg]) -> std::ops::RangeInclusive<usize> {
    args.iter().fold(0..=0, |range, arg| match arg.kind {
        ArgKind::Text | ArgKind::Choice(_) => *range.start()..=range.end() + 1,
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
                add(any(), &[], function(Some(Type::Bytes), NONE), &OBJECT)?;
                continue;
            }
            let mut results = Vec::new();
            for ty in native_types() {
                // Which types a strategy takes and gives shows without its configuration, or with some of it.
                let Some(bound) = bind_some(entry, &ty, inputs) else { continue };
                let result = bound.result_type();
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
                        add(LogicalType::of(&ty), &[], function(Some(result), NONE), &OBJECT)?;
                        continue;
                    }
                    Some(Shape::Collected) => {
                        add(LogicalType::of(&ty), &[], function(Some(result), NONE), &COLLECTED)?;
                        continue;
                    }
                    None => {
                        add(LogicalType::of(&ty), &[], function(Some(result), NONE), &OBJECT)?;
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
                add(LogicalType::of(&ty), &[], function(Some(result), order), &driver.unwrap_or(OBJECT))?;
            }
            results.dedup();
            // A result that is the same for every type needs no type; else this overload is only there to say what to write.
            let one = match results.as_slice() {
                [only] if !spec.selects => Some(only.clone()),
                _ => None,
            };
            add(any(), &[], function(one, NONE), &OBJECT)?;
        }
    }
    set.register(connection)
}

/// The strategy over this type, with a configuration that only stands for one where it needs some.
fn bind_some(entry: &Entry, ty: &Type, inputs: usize) -> Option<Arc<dyn Aggregate>> {
    let spec = entry.spec();
    let input = |i: usize| match spec.inputs.get(i) {
        _ if i == 0 => ty.clone(),
        Some(Input::Origin) => Type::Text,
        Some(Input::Decrements) => ty.clone(),
        _ => Type::INT64,
    };
    let call = Call::new((0..inputs).map(input).collect());
    if let Ok(bound) = entry.bind(&call) {
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

// Callbacks.

/// The callbacks of one kind of state.
#[derive(Clone, Copy)]
struct Driver {
    size: crate::api::StateSize,
    init: crate::api::StateInit,
    update: crate::api::Update,
    combine: crate::api::Combine,
    finalize: crate::api::Finalize,
    /// Where states hold nothing but themselves there is nothing to destroy.
    destroy: Option<crate::api::Destroy>,
}

unsafe extern "C" fn size_of_state<S>(_: Pointer) -> u64 {
    const { assert!(align_of::<S>() <= 8, "DuckDB aligns states to eight bytes") };
    on_size();
    size_of::<S>() as u64
}

unsafe extern "C" fn init_state<S: Default>(_: Pointer, state: Pointer) {
    on_init(state);
    // SAFETY: DuckDB gives memory of the size that was asked for.
    unsafe { state.cast::<S>().write(S::default()) };
}

const fn destroy_of<S: Default>() -> Option<crate::api::Destroy> {
    if std::mem::needs_drop::<S>() { Some(destroy_states::<S>) } else { None }
}

unsafe extern "C" fn destroy_states<S: Default>(states: *mut Pointer, count: u64) {
    for i in 0..count as usize {
        // SAFETY: each state was made by `init_state`; an empty one is left behind, should it be destroyed again.
        unsafe { drop(std::mem::take(&mut *(*states.add(i)).cast::<S>())) };
    }
}

/// # Safety
/// `states[i]` is a live state of this kind, and no other reference to it is in use.
unsafe fn state<'a, S>(states: *const Pointer, i: usize) -> &'a mut S {
    // SAFETY: as the caller promises.
    unsafe { &mut *(*states.add(i)).cast::<S>() }
}

unsafe fn info<'a, F>(info: Pointer) -> &'a F {
    // SAFETY: the extra info is the box that was given with the function.
    unsafe { &*(duckdb().aggregate_function_get_extra_info)(info).cast::<F>() }
}

/// Runs a callback with DuckDB's way of telling errors.
fn guard(info: Pointer, run: impl FnOnce() -> Result<(), Failure>) {
    // SAFETY: DuckDB copies the message.
    guarded(run, |message| unsafe { (duckdb().aggregate_function_set_error)(info, message.as_ptr()) });
}

/// The vectors of a chunk and how many rows it has.
///
/// # Safety
/// `chunk` is DuckDB's and outlives the vectors.
unsafe fn vectors(chunk: Pointer) -> Result<(Vec<Vector>, usize), Error> {
    let api = duckdb();
    // SAFETY: as the caller promises.
    unsafe {
        let columns = (api.data_chunk_get_column_count)(chunk);
        let vectors = (0..columns).map(|c| Vector::new((api.data_chunk_get_vector)(chunk, c))).collect::<Result<_, _>>()?;
        Ok((vectors, (api.data_chunk_get_size)(chunk) as usize))
    }
}

// States that are slots.

/// What a slot reads from a vector.
trait FromVector: Held {
    /// # Safety
    /// The vector's values are of this kind, and there is a row `i`.
    unsafe fn get<'a>(data: *const u8, i: usize) -> Self::Seen<'a>;

    /// # Safety
    /// `out` is a result vector of this kind with a row `i`.
    unsafe fn put(out: Pointer, i: usize, seen: Self::Seen<'_>);
}

macro_rules! fixed {
    ($($t:ty)*) => {$(
        impl FromVector for $t {
            #[inline]
            unsafe fn get<'a>(data: *const u8, i: usize) -> Self::Seen<'a> {
                // SAFETY: as the caller promises.
                unsafe { *data.cast::<$t>().add(i) }
            }
            #[inline]
            unsafe fn put(out: Pointer, i: usize, seen: $t) {
                // SAFETY: as the caller promises.
                unsafe { put(out, i, seen) }
            }
        }
    )*};
}
fixed!(bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64);

impl FromVector for SmallBytes {
    #[inline]
    unsafe fn get<'a>(data: *const u8, i: usize) -> &'a [u8] {
        // SAFETY: as the caller promises.
        unsafe { Text::bytes(data.cast::<Text>().add(i)) }
    }
    #[inline]
    unsafe fn put(out: Pointer, i: usize, seen: &[u8]) {
        // SAFETY: as the caller promises.
        unsafe { put_bytes(out, i, seen) }
    }
}

/// The versions of a chunk's rows.
trait Versions: Key {
    type Of<'a>;
    fn of<'a>(vectors: &'a [Vector], rows: usize, order: Order) -> Self::Of<'a>;
    fn key<'a>(versions: &'a Self::Of<'_>, i: usize) -> Self::Seen<'a>;
}

impl Versions for () {
    type Of<'a> = ();
    fn of(_: &[Vector], _: usize, _: Order) {}
    #[inline]
    fn key(_: &(), _: usize) {}
}

impl Versions for u64 {
    type Of<'a> = VersionKeys;
    fn of(vectors: &[Vector], rows: usize, order: Order) -> VersionKeys {
        let scratch = vectors[1].scratch(rows);
        VersionKeys::of(&vectors[1].column(&scratch, rows), &vectors[1].ty, rows, order.flip_version)
    }
    #[inline]
    fn key(versions: &VersionKeys, i: usize) -> Option<u64> {
        versions.present[i].then_some(versions.keys[i])
    }
}

impl<const OLDEST: bool> Versions for Timed<OLDEST> {
    type Of<'a> = (VersionKeys, &'a Vector);
    fn of(vectors: &[Vector], rows: usize, order: Order) -> (VersionKeys, &Vector) {
        (u64::of(vectors, rows, order), &vectors[2])
    }
    #[inline]
    fn key<'a>((times, nodes): &'a (VersionKeys, &Vector), i: usize) -> (Option<u64>, Option<&'a [u8]>) {
        // SAFETY: the overload's third argument is text, and there is a row `i`.
        (u64::key(times, i), nodes.is_valid(i).then(|| unsafe { SmallBytes::get(nodes.data(), i) }))
    }
}

/// One part of the versions of a chunk's rows, as bytes of the same order.
enum Part<'a> {
    Text(&'a Vector),
    Fixed(Vec<[u8; 8]>, Vec<bool>),
    Other(Vec<Option<Vec<u8>>>),
}

impl<'a> Part<'a> {
    fn of(vector: &'a Vector, rows: usize) -> Part<'a> {
        match &vector.ty {
            Type::Text | Type::Bytes if vector.is_plain() => Part::Text(vector),
            ty if VersionKeys::takes(ty) => {
                let scratch = vector.scratch(rows);
                let keys = VersionKeys::of(&vector.column(&scratch, rows), ty, rows, false);
                Part::Fixed(keys.keys.into_iter().map(u64::to_be_bytes).collect(), keys.present)
            }
            _ => {
                let key = |value: Value| (!value.is_null() && !value.is_nan()).then(|| order_key(&value));
                Part::Other((0..rows).map(|i| key(vector.value(i))).collect())
            }
        }
    }

    #[inline]
    fn get(&self, i: usize) -> Option<&[u8]> {
        match self {
            // SAFETY: the vector is of text or bytes, and has a row `i`.
            Part::Text(vector) => vector.is_valid(i).then(|| unsafe { SmallBytes::get(vector.data(), i) }),
            Part::Fixed(keys, present) => present[i].then(|| &keys[i][..]),
            Part::Other(keys) => keys[i].as_deref(),
        }
    }
}

impl<const N: usize, const OLDEST: bool> Versions for Parts<N, OLDEST> {
    type Of<'a> = [Part<'a>; N];
    fn of(vectors: &[Vector], rows: usize, _: Order) -> [Part<'_>; N] {
        std::array::from_fn(|i| Part::of(&vectors[i + 1], rows))
    }
    #[inline]
    fn key<'a>(versions: &'a [Part<'_>; N], i: usize) -> [Option<&'a [u8]>; N] {
        std::array::from_fn(|part| versions[part].get(i))
    }
}

/// The driver of versions of so many parts, of any types.
fn parts_driver(ty: &Type, parts: usize, oldest: bool) -> Option<Driver> {
    match (parts, oldest) {
        (1, false) => slot_driver::<Parts<1, false>>(ty),
        (1, true) => slot_driver::<Parts<1, true>>(ty),
        (2, false) => slot_driver::<Parts<2, false>>(ty),
        (2, true) => slot_driver::<Parts<2, true>>(ty),
        (3, false) => slot_driver::<Parts<3, false>>(ty),
        (3, true) => slot_driver::<Parts<3, true>>(ty),
        (4, false) => slot_driver::<Parts<4, false>>(ty),
        (4, true) => slot_driver::<Parts<4, true>>(ty),
        _ => None,
    }
}

fn slot_driver<K: Versions>(ty: &Type) -> Option<Driver> {
    Some(match ty {
        Type::Boolean => slots::<bool, K>(),
        Type::Int { bits: 8, signed: true } => slots::<i8, K>(),
        Type::Int { bits: 16, signed: true } => slots::<i16, K>(),
        Type::Int { bits: 32, signed: true } | Type::Date => slots::<i32, K>(),
        Type::Int { bits: 64, signed: true } | Type::Time(_) | Type::Timestamp { .. } => slots::<i64, K>(),
        Type::Int { bits: 8, .. } => slots::<u8, K>(),
        Type::Int { bits: 16, .. } => slots::<u16, K>(),
        Type::Int { bits: 32, .. } => slots::<u32, K>(),
        Type::Int { bits: 64, .. } => slots::<u64, K>(),
        Type::Float32 => slots::<f32, K>(),
        Type::Float64 => slots::<f64, K>(),
        Type::Text | Type::Bytes => slots::<SmallBytes, K>(),
        _ => return None,
    })
}

const fn slots<V: FromVector, K: Versions>() -> Driver {
    Driver {
        size: size_of_state::<Slot<V, K>>,
        init: init_state::<Slot<V, K>>,
        update: update_slots::<V, K>,
        combine: combine_slots::<V, K>,
        finalize: finalize_slots::<V, K>,
        destroy: destroy_of::<Slot<V, K>>(),
    }
}

unsafe extern "C" fn update_slots<V: FromVector, K: Versions>(call: Pointer, chunk: Pointer, states: *mut Pointer) {
    // SAFETY: DuckDB passes a chunk of the overload's types and a state for each row (but see `sorted`).
    guard(call, || unsafe {
        let function: &Function = info(call);
        let (vectors, rows) = vectors(chunk)?;
        let step = stride(states);
        if function.order.least {
            offer_all::<V, K, true>(&vectors, rows, function.order, states, step);
        } else {
            offer_all::<V, K, false>(&vectors, rows, function.order, states, step);
        }
        Ok(())
    });
}

unsafe fn offer_all<V: FromVector, K: Versions, const LEAST: bool>(
    vectors: &[Vector],
    rows: usize,
    order: Order,
    states: *const Pointer,
    step: usize,
) {
    let versions = K::of(vectors, rows, order);
    let vector = &vectors[0];
    let data = vector.data();
    for i in 0..rows {
        if vector.is_valid(i) {
            // SAFETY: as the caller promises.
            unsafe { state::<Slot<V, K>>(states, i * step).offer::<LEAST>(V::get(data, i), K::key(&versions, i)) };
        }
    }
}

unsafe extern "C" fn combine_slots<V: FromVector, K: Versions>(
    call: Pointer,
    sources: *mut Pointer,
    targets: *mut Pointer,
    count: u64,
) {
    // SAFETY: DuckDB passes live states, and never the same as source and target.
    guard(call, || unsafe {
        let least = info::<Function>(call).order.least;
        for i in 0..count as usize {
            let (source, target) = (state::<Slot<V, K>>(sources, i), state::<Slot<V, K>>(targets, i));
            if least { target.join::<true>(source) } else { target.join::<false>(source) }
        }
        Ok(())
    });
}

unsafe extern "C" fn finalize_slots<V: FromVector, K: Versions>(
    call: Pointer,
    states: *mut Pointer,
    out: Pointer,
    count: u64,
    offset: u64,
) {
    // SAFETY: DuckDB passes live states and a result vector with room for them.
    guard(call, || unsafe {
        for i in 0..count as usize {
            let at = i + offset as usize;
            match state::<Slot<V, K>>(states, i).value() {
                Some(value) => V::put(out, at, value),
                None => set_null(out, at),
            }
        }
        Ok(())
    });
}

// States that are counts.

fn counts_driver(ty: &Type) -> Option<Driver> {
    Some(match ty {
        Type::Int { bits: 8, signed: true } => counts::<i8>(),
        Type::Int { bits: 16, signed: true } => counts::<i16>(),
        Type::Int { bits: 32, signed: true } => counts::<i32>(),
        Type::Int { bits: 64, signed: true } => counts::<i64>(),
        Type::Int { bits: 8, .. } => counts::<u8>(),
        Type::Int { bits: 16, .. } => counts::<u16>(),
        Type::Int { bits: 32, .. } => counts::<u32>(),
        _ => return None,
    })
}

const fn counts<T: Copy + Into<i64>>() -> Driver {
    Driver {
        size: size_of_state::<Counts>,
        init: init_state::<Counts>,
        update: update_counts::<T>,
        combine: combine_counts,
        finalize: finalize_counts,
        destroy: destroy_of::<Counts>(),
    }
}

unsafe extern "C" fn update_counts<T: Copy + Into<i64>>(call: Pointer, chunk: Pointer, states: *mut Pointer) {
    // SAFETY: DuckDB passes a chunk of integers and texts, and a state for each row (but see `sorted`).
    guard(call, || unsafe {
        let (vectors, rows) = vectors(chunk)?;
        let (counts, origins) = (vectors[0].slice::<T>(rows), &vectors[1]);
        let step = stride(states);
        for i in 0..rows {
            if vectors[0].is_valid(i) {
                let origin = origins.is_valid(i).then(|| SmallBytes::get(origins.data(), i));
                state::<Counts>(states, i * step).offer(origin, counts[i].into())?;
            }
        }
        Ok(())
    });
}

unsafe extern "C" fn combine_counts(call: Pointer, sources: *mut Pointer, targets: *mut Pointer, count: u64) {
    // SAFETY: as in `combine_slots`.
    guard(call, || unsafe {
        for i in 0..count as usize {
            state::<Counts>(targets, i).join(state::<Counts>(sources, i));
        }
        Ok(())
    });
}

unsafe extern "C" fn finalize_counts(call: Pointer, states: *mut Pointer, out: Pointer, count: u64, offset: u64) {
    // SAFETY: as in `finalize_slots`.
    guard(call, || unsafe {
        let ty = info::<Function>(call).result.as_ref().unwrap_or(&Type::INT64);
        for i in 0..count as usize {
            let sum = state::<Counts>(states, i).sum().map_or(Value::Null, Value::Int);
            put_value(out, i + offset as usize, &sum.fit(ty)?, ty)?;
        }
        Ok(())
    });
}

// States that are sets.

const COLLECTED: Driver = Driver {
    size: size_of_state::<Collected>,
    init: init_state::<Collected>,
    update: update_collected,
    combine: combine_collected,
    finalize: finalize_collected,
    destroy: destroy_of::<Collected>(),
};

unsafe extern "C" fn update_collected(call: Pointer, chunk: Pointer, states: *mut Pointer) {
    // SAFETY: DuckDB passes a chunk of the overload's type and a state for each row (but see `sorted`).
    guard(call, || unsafe {
        let (vectors, rows) = vectors(chunk)?;
        let vector = &vectors[0];
        let step = stride(states);
        let text = vector.ty == Type::Text && vector.is_plain();
        for i in 0..rows {
            if !vector.is_valid(i) {
                continue;
            }
            let collected = state::<Collected>(states, i * step);
            match text {
                true => collected.offer_text(&String::from_utf8_lossy(SmallBytes::get(vector.data(), i))),
                false => collected.offer(&vector.value(i)),
            }
        }
        Ok(())
    });
}

unsafe extern "C" fn combine_collected(call: Pointer, sources: *mut Pointer, targets: *mut Pointer, count: u64) {
    // SAFETY: as in `combine_slots`.
    guard(call, || unsafe {
        for i in 0..count as usize {
            state::<Collected>(targets, i).join(state::<Collected>(sources, i));
        }
        Ok(())
    });
}

unsafe extern "C" fn finalize_collected(call: Pointer, states: *mut Pointer, out: Pointer, count: u64, offset: u64) {
    // SAFETY: as in `finalize_slots`.
    guard(call, || unsafe {
        let ty = info::<Function>(call).result.as_ref().unwrap_or(&Type::Null);
        for i in 0..count as usize {
            let list = state::<Collected>(states, i).list().unwrap_or(Value::Null);
            put_value(out, i + offset as usize, &list, ty)?;
        }
        Ok(())
    });
}

// States that are objects.

const OBJECT: Driver = Driver {
    size: size_of_state::<Object>,
    init: init_state::<Object>,
    update: update_objects,
    combine: combine_objects,
    finalize: finalize_objects,
    destroy: destroy_of::<Object>(),
};

/// The state of any strategy, once a row gave its configuration.
type Object = Option<Box<Configured>>;

struct Configured {
    literals: Arc<[Value]>,
    partial: Box<dyn Partial>,
}

/// The strategy as the literal arguments of a row configure it.
struct Bound {
    literals: Arc<[Value]>,
    aggregate: Arc<dyn Aggregate>,
}

impl Function {
    fn bind(&self, inputs: &[Vector], literals: Vec<Value>) -> Result<Bound, Error> {
        let mut call = Call::new(inputs.iter().map(|v| v.ty.clone()).collect());
        let mut rest = literals.iter();
        if self.configured {
            match rest.next() {
                Some(Value::Text(text)) => call.args = Call::args_from_json(text)?,
                _ => return Err(Error::invalid_argument("the configuration is NULL")),
            }
        }
        for arg in self.entry.spec().args {
            match arg.kind {
                ArgKind::Text | ArgKind::Choice(_) => {
                    if let Some(value) = rest.next() {
                        call.args.push((arg.name.to_owned(), value.clone()));
                    }
                }
                ArgKind::Literals | ArgKind::Sources if rest.len() > 0 => {
                    call.args.push((arg.name.to_owned(), Value::List(rest.by_ref().cloned().collect())));
                }
                _ => {}
            }
        }
        Ok(Bound { aggregate: self.entry.bind(&call)?, literals: literals.into() })
    }
}

unsafe extern "C" fn update_objects(call: Pointer, chunk: Pointer, states: *mut Pointer) {
    // SAFETY: DuckDB passes a chunk of the overload's types and a state for each row (but see `sorted`).
    guard(call, || unsafe {
        let function: &Function = info(call);
        let (vectors, rows) = vectors(chunk)?;
        let first = usize::from(function.configured);
        let inputs = &vectors[first..first + function.inputs];
        let settings: Vec<&Vector> = vectors[..first].iter().chain(&vectors[first + function.inputs..]).collect();
        let scratch: Vec<Scratch<'_>> = inputs.iter().map(|v| v.scratch(rows)).collect();
        let columns: Vec<Column<'_>> = inputs.iter().zip(&scratch).map(|(v, s)| v.column(s, rows)).collect();
        let step = stride(states);
        let mut bound: Option<Bound> = None;
        let mut row = Vec::with_capacity(columns.len());
        for i in 0..rows {
            let same = bound.as_ref().is_some_and(|b| settings.iter().zip(&*b.literals).all(|(v, known)| v.value(i) == *known));
            if !same {
                let new = function.bind(inputs, settings.iter().map(|v| v.value(i)).collect())?;
                let result = new.aggregate.result_type();
                if !function.state && function.result.as_ref() != Some(&result) {
                    return Err(no_overload(function, &result).into());
                }
                bound = Some(new);
            }
            let Some(bound) = &bound else { continue };
            let object = state::<Object>(states, i * step);
            let object = object.get_or_insert_with(|| {
                Box::new(Configured { literals: bound.literals.clone(), partial: bound.aggregate.partial() })
            });
            check_same(function, &object.literals, &bound.literals)?;
            row.clear();
            row.extend(columns.iter().map(|c| c.value(i)));
            object.partial.update(&row)?;
        }
        Ok(())
    });
}

/// Configuration arrives with each row; within a group it must be one.
fn check_same(function: &Function, a: &Arc<[Value]>, b: &Arc<[Value]>) -> Result<(), Error> {
    if Arc::ptr_eq(a, b) || a == b {
        return Ok(());
    }
    Err(Error::invalid_argument(format!("the arguments that configure `{}` differ within a group", function.name))
        .with_help("they are literals, the same for every row"))
}

fn no_overload(function: &Function, ty: &Type) -> Error {
    let state = function.name.replacen("_with", "_state_with", 1);
    let state = if function.configured { state } else { format!("{}_state", function.name) };
    let name = mergeql_lang::lower::duckdb_type_name(ty);
    Error::new(mergeql_udfs::Code::Unsupported, format!("DuckDB's interface lets `{}` not return {name}", function.name)).with_help(
        match ty {
            Type::List(_) | Type::Struct(_) | Type::Map(..) => {
                format!("CAST(CAST(mergeql_json({state}(...)) AS JSON) AS {name}) gives the same; MERGE does so by itself")
            }
            _ => format!("CAST(crdt_value_text({state}(...)) AS {name}) gives the same; MERGE does so by itself"),
        },
    )
}

unsafe extern "C" fn combine_objects(call: Pointer, sources: *mut Pointer, targets: *mut Pointer, count: u64) {
    // SAFETY: DuckDB passes live states, and never the same as source and target. Sources are left as they are: windows share them.
    guard(call, || unsafe {
        let function: &Function = info(call);
        for i in 0..count as usize {
            let Some(source) = &*state::<Object>(sources, i) else { continue };
            match state::<Object>(targets, i) {
                Some(target) => {
                    check_same(function, &target.literals, &source.literals)?;
                    target.partial.join(&*source.partial)?;
                }
                empty => {
                    *empty = Some(Box::new(Configured { literals: source.literals.clone(), partial: source.partial.copy() }));
                }
            }
        }
        Ok(())
    });
}

unsafe extern "C" fn finalize_objects(call: Pointer, states: *mut Pointer, out: Pointer, count: u64, offset: u64) {
    // SAFETY: DuckDB passes live states and a result vector of the overload's type with room for them.
    guard(call, || unsafe {
        let function: &Function = info(call);
        let ty = function.result.as_ref().unwrap_or(&Type::Text);
        for i in 0..count as usize {
            let value = match &*state::<Object>(states, i) {
                None => Value::Null,
                Some(object) if function.state => object.partial.encode().map_or(Value::Null, |b| Value::Bytes(b.into())),
                Some(object) => object.partial.value()?,
            };
            put_value(out, i + offset as usize, &value, ty)?;
        }
        Ok(())
    });
}

// The join of states: `crdt_merge(state)`.

/// State bytes, opened once a second one comes.
#[derive(Default)]
enum Joined {
    #[default]
    Nothing,
    One(Box<dyn AnyState>),
}

fn merges(connection: &Connection) -> Result<(), String> {
    let mut set = Set::new("crdt_merge");
    let blob = LogicalType::of_id(id::BLOB);
    let driver = Driver {
        size: size_of_state::<Joined>,
        init: init_state::<Joined>,
        update: update_joined,
        combine: combine_joined,
        finalize: finalize_joined,
        destroy: destroy_of::<Joined>(),
    };
    set.add(std::slice::from_ref(&blob), &blob, (), &driver)?;
    set.register(connection)
}

impl Joined {
    fn join(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Joined::Nothing => *self = Joined::One(catalog::open(bytes)?),
            Joined::One(state) => state.join_bytes(bytes)?,
        }
        Ok(())
    }
}

unsafe extern "C" fn update_joined(call: Pointer, chunk: Pointer, states: *mut Pointer) {
    // SAFETY: as in `update_objects`.
    guard(call, || unsafe {
        let (vectors, rows) = vectors(chunk)?;
        let step = stride(states);
        for i in 0..rows {
            if let Value::Bytes(bytes) = vectors[0].value(i) {
                state::<Joined>(states, i * step).join(&bytes)?;
            }
        }
        Ok(())
    });
}

unsafe extern "C" fn combine_joined(call: Pointer, sources: *mut Pointer, targets: *mut Pointer, count: u64) {
    // SAFETY: as in `combine_objects`.
    guard(call, || unsafe {
        for i in 0..count as usize {
            if let Joined::One(source) = &*state::<Joined>(sources, i) {
                state::<Joined>(targets, i).join(&source.encode())?;
            }
        }
        Ok(())
    });
}

unsafe extern "C" fn finalize_joined(call: Pointer, states: *mut Pointer, out: Pointer, count: u64, offset: u64) {
    // SAFETY: as in `finalize_objects`.
    guard(call, || unsafe {
        for i in 0..count as usize {
            let at = i + offset as usize;
            match &*state::<Joined>(states, i) {
                Joined::Nothing => set_null(out, at),
                Joined::One(joined) => put_bytes(out, at, &joined.encode()),
            }
        }
        Ok(())
    });
}
