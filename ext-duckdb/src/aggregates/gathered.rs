//! States that are counts by origin, or sets of values.

use super::Function;
use super::driver::{Driver, Kept, States, kept};
use super::slots::FromVector;
use crate::api::Pointer;
use crate::vectors::{Vector, put_bytes, put_list, put_value};
use mergeql_udfs::slot::{Collected, Counts, Several, SmallBytes};
use mergeql_udfs::{Error, Type, Value};
use std::marker::PhantomData;

/// The driver of counts in integers of this type.
pub(super) fn counts_driver(ty: &Type) -> Option<Driver> {
    Some(match ty {
        Type::Int { bits: 8, signed: true } => kept::<CountsOf<i8>>(),
        Type::Int { bits: 16, signed: true } => kept::<CountsOf<i16>>(),
        Type::Int { bits: 32, signed: true } => kept::<CountsOf<i32>>(),
        Type::Int { bits: 64, signed: true } => kept::<CountsOf<i64>>(),
        Type::Int { bits: 8, .. } => kept::<CountsOf<u8>>(),
        Type::Int { bits: 16, .. } => kept::<CountsOf<u16>>(),
        Type::Int { bits: 32, .. } => kept::<CountsOf<u32>>(),
        _ => return None,
    })
}

/// The driver of sets of this type, of integers and texts.
pub(super) fn several_driver(ty: &Type) -> Option<Driver> {
    Some(match ty {
        Type::Int { bits: 8, signed: true } => kept::<IntegersOf<i8>>(),
        Type::Int { bits: 16, signed: true } => kept::<IntegersOf<i16>>(),
        Type::Int { bits: 32, signed: true } => kept::<IntegersOf<i32>>(),
        Type::Int { bits: 64, signed: true } => kept::<IntegersOf<i64>>(),
        Type::Int { bits: 8, .. } => kept::<IntegersOf<u8>>(),
        Type::Int { bits: 16, .. } => kept::<IntegersOf<u16>>(),
        Type::Int { bits: 32, .. } => kept::<IntegersOf<u32>>(),
        Type::Text => kept::<Texts>(),
        _ => return None,
    })
}

/// The type of the elements of the result.
fn element(function: &Function) -> &Type {
    match &function.result {
        Some(Type::List(element)) => element,
        _ => &Type::Null,
    }
}

/// Sets of integers that come as `T`.
struct IntegersOf<T>(Several<i64>, PhantomData<T>);

impl<T> Default for IntegersOf<T> {
    fn default() -> Self {
        IntegersOf(Several::default(), PhantomData)
    }
}

impl<T: Copy + Into<i64>> Kept for IntegersOf<T> {
    type Info = Function;

    fn update(_: &Function, vectors: &[Vector], rows: usize, states: &mut States<Self>) -> Result<(), Error> {
        // SAFETY: the overload's argument is an integer `T`.
        let values = unsafe { vectors[0].slice::<T>(rows) };
        for (i, value) in values.iter().enumerate().filter(|(i, _)| vectors[0].is_valid(*i)) {
            states.at(i).0.offer((*value).into());
        }
        Ok(())
    }

    fn join(&mut self, other: &Self, _: &Function) -> Result<(), Error> {
        self.0.join(&other.0);
        Ok(())
    }

    unsafe fn finish(&self, function: &Function, out: Pointer, i: usize) -> Result<(), Error> {
        let element = element(function);
        // SAFETY: as the caller promises, the result is a list of integers.
        unsafe {
            put_list(out, i, &self.0.sorted(), |child, at, value| put_value(child, at, &Value::Int((*value).into()), element))
        }
    }
}

/// Sets of texts.
#[derive(Default)]
struct Texts(Several<SmallBytes>);

impl Kept for Texts {
    type Info = Function;

    fn update(_: &Function, vectors: &[Vector], rows: usize, states: &mut States<Self>) -> Result<(), Error> {
        for i in (0..rows).filter(|i| vectors[0].is_valid(*i)) {
            // SAFETY: the overload's argument is a text, and there is a row `i`.
            states.at(i).0.offer(unsafe { SmallBytes::get(vectors[0].data(), i) });
        }
        Ok(())
    }

    fn join(&mut self, other: &Self, _: &Function) -> Result<(), Error> {
        self.0.join(&other.0);
        Ok(())
    }

    unsafe fn finish(&self, _: &Function, out: Pointer, i: usize) -> Result<(), Error> {
        // SAFETY: as the caller promises, the result is a list of texts, as those that were seen.
        unsafe {
            put_list(out, i, &self.0.sorted(), |child, at, text| {
                put_bytes(child, at, text);
                Ok(())
            })
        }
    }
}

/// Counts that come as `T`.
struct CountsOf<T>(Counts, PhantomData<T>);

impl<T> Default for CountsOf<T> {
    fn default() -> Self {
        CountsOf(Counts::default(), PhantomData)
    }
}

impl<T: Copy + Into<i64>> Kept for CountsOf<T> {
    type Info = Function;

    fn update(_: &Function, vectors: &[Vector], rows: usize, states: &mut States<Self>) -> Result<(), Error> {
        let [counts, origins, ..] = vectors else { return Ok(()) };
        // SAFETY: the overload's arguments are integers `T` and texts.
        let values = unsafe { counts.slice::<T>(rows) };
        for (i, value) in values.iter().enumerate() {
            if counts.is_valid(i) {
                // SAFETY: as above, and there is a row `i`.
                let origin = origins.is_valid(i).then(|| unsafe { SmallBytes::get(origins.data(), i) });
                states.at(i).0.offer(origin, (*value).into())?;
            }
        }
        Ok(())
    }

    fn join(&mut self, other: &Self, _: &Function) -> Result<(), Error> {
        self.0.join(&other.0);
        Ok(())
    }

    unsafe fn finish(&self, function: &Function, out: Pointer, i: usize) -> Result<(), Error> {
        let ty = function.result.as_ref().unwrap_or(&Type::INT64);
        // SAFETY: as the caller promises.
        unsafe { put_value(out, i, &self.0.sum().map_or(Value::Null, Value::Int).fit(ty)?, ty) }
    }
}

impl Kept for Collected {
    type Info = Function;

    fn update(_: &Function, vectors: &[Vector], rows: usize, states: &mut States<Self>) -> Result<(), Error> {
        let vector = &vectors[0];
        (0..rows).filter(|i| vector.is_valid(*i)).for_each(|i| states.at(i).offer(&vector.value(i)));
        Ok(())
    }

    fn join(&mut self, other: &Self, _: &Function) -> Result<(), Error> {
        Collected::join(self, other);
        Ok(())
    }

    unsafe fn finish(&self, function: &Function, out: Pointer, i: usize) -> Result<(), Error> {
        let ty = function.result.as_ref().unwrap_or(&Type::Null);
        // SAFETY: as the caller promises.
        unsafe { put_value(out, i, &self.list().unwrap_or(Value::Null), ty) }
    }
}
