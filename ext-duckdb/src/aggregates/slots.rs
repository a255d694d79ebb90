//! States that are slots: nothing behind a pointer but long texts.

use super::Function;
use super::driver::{Driver, destroy_of, fetch_ahead, guard, info, init_state, size_of_state, state, vectors};
use crate::api::Pointer;
use crate::sorted::stride;
use crate::vectors::{Text, Vector, put, put_bytes, set_null};
use mergeql_udfs::slot::{Held, Key, Parts, Slot, SmallBytes, Timed};
use mergeql_udfs::value::order_key::order_key;
use mergeql_udfs::{Order, Type, Value, VersionKeys};

/// What a slot reads from a vector.
pub(super) trait FromVector: Held {
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
pub(super) trait Versions: Key {
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
pub(super) enum Part<'a> {
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
pub(super) fn parts_driver(ty: &Type, parts: usize, oldest: bool) -> Option<Driver> {
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

pub(super) fn slot_driver<K: Versions>(ty: &Type) -> Option<Driver> {
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
        if step > 0 {
            // SAFETY: as the caller promises, there is a pointer for each row.
            unsafe { fetch_ahead::<Slot<V, K>>(states, i, rows) };
        }
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
        let count = count as usize;
        for i in 0..count {
            fetch_ahead::<Slot<V, K>>(targets, i, count);
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
