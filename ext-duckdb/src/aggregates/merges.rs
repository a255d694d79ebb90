//! The join of states: `crdt_merge(state)`.

use super::Set;
use super::driver::{Kept, States, kept};
use crate::api::{Connection, LogicalType, Pointer, id};
use crate::vectors::{Vector, put_bytes, set_null};
use mergeql_udfs::{AnyState, Error, Value, catalog};

/// Registers `crdt_merge`.
pub(super) fn register(connection: &Connection) -> Result<(), String> {
    let mut set = Set::new("crdt_merge");
    let blob = LogicalType::of_id(id::BLOB);
    set.add(std::slice::from_ref(&blob), &blob, (), &kept::<Joined>())?;
    set.register(connection)
}

/// States joined so far.
#[derive(Default)]
struct Joined(Option<Box<dyn AnyState>>);

impl Joined {
    fn join_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match &mut self.0 {
            Some(state) => state.join_bytes(bytes),
            empty => {
                *empty = Some(catalog::open(bytes)?);
                Ok(())
            }
        }
    }
}

impl Kept for Joined {
    type Info = ();

    fn update((): &(), vectors: &[Vector], rows: usize, states: &mut States<Self>) -> Result<(), Error> {
        for i in 0..rows {
            if let Value::Bytes(bytes) = vectors[0].value(i) {
                states.at(i).join_bytes(&bytes)?;
            }
        }
        Ok(())
    }

    fn join(&mut self, other: &Self, (): &()) -> Result<(), Error> {
        other.0.as_ref().map_or(Ok(()), |source| self.join_bytes(&source.encode()))
    }

    unsafe fn finish(&self, (): &(), out: Pointer, i: usize) -> Result<(), Error> {
        // SAFETY: as the caller promises, the result is bytes.
        unsafe {
            match &self.0 {
                Some(joined) => put_bytes(out, i, &joined.encode()),
                None => set_null(out, i),
            }
        }
        Ok(())
    }
}
