//! The callbacks that DuckDB makes, over states in its memory.

use crate::api::{Failure, Pointer, duckdb, guarded};
use crate::sorted::{on_init, on_size, stride};
use crate::vectors::Vector;
use mergeql_udfs::Error;
use std::marker::PhantomData;

/// The callbacks of one kind of state.
#[derive(Clone, Copy)]
pub(super) struct Driver {
    pub(super) size: crate::api::StateSize,
    pub(super) init: crate::api::StateInit,
    pub(super) update: crate::api::Update,
    pub(super) combine: crate::api::Combine,
    pub(super) finalize: crate::api::Finalize,
    /// Where states hold nothing but themselves there is nothing to destroy.
    pub(super) destroy: Option<crate::api::Destroy>,
}

pub(super) unsafe extern "C" fn size_of_state<S>(_: Pointer) -> u64 {
    const { assert!(align_of::<S>() <= 8, "DuckDB aligns states to eight bytes") };
    on_size();
    size_of::<S>() as u64
}

pub(super) unsafe extern "C" fn init_state<S: Default>(_: Pointer, state: Pointer) {
    on_init(state);
    // SAFETY: DuckDB gives memory of the size that was asked for.
    unsafe { state.cast::<S>().write(S::default()) };
}

pub(super) const fn destroy_of<S: Default>() -> Option<crate::api::Destroy> {
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
pub(super) unsafe fn state<'a, S>(states: *const Pointer, i: usize) -> &'a mut S {
    // SAFETY: as the caller promises.
    unsafe { &mut *(*states.add(i)).cast::<S>() }
}

/// Asks for the state of a row that comes soon: of a million groups most are in no cache.
///
/// # Safety
/// There are `count` pointers.
#[inline(always)]
pub(super) unsafe fn fetch_ahead<S>(states: *const Pointer, i: usize, count: usize) {
    const AHEAD: usize = 8;
    const LINE: usize = 64;
    #[cfg(target_arch = "x86_64")]
    if i + AHEAD < count {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: there is such a pointer, and a hint reads nothing.
        unsafe {
            let state = (*states.add(i + AHEAD)).cast::<i8>();
            for line in 0..size_of::<S>().div_ceil(LINE) {
                _mm_prefetch::<_MM_HINT_T0>(state.wrapping_add(line * LINE));
            }
            _mm_prefetch::<_MM_HINT_T0>(state.wrapping_add(size_of::<S>() - 1));
        }
    }
}

pub(super) unsafe fn info<'a, F>(info: Pointer) -> &'a F {
    // SAFETY: the extra info is the box that was given with the function.
    unsafe { &*(duckdb().aggregate_function_get_extra_info)(info).cast::<F>() }
}

/// Runs a callback with DuckDB's way of telling errors.
pub(super) fn guard(info: Pointer, run: impl FnOnce() -> Result<(), Failure>) {
    // SAFETY: DuckDB copies the message.
    guarded(run, |message| unsafe { (duckdb().aggregate_function_set_error)(info, message.as_ptr()) });
}

/// The vectors of a chunk and how many rows it has.
///
/// # Safety
/// `chunk` is DuckDB's and outlives the vectors.
pub(super) unsafe fn vectors(chunk: Pointer) -> Result<(Vec<Vector>, usize), Error> {
    let api = duckdb();
    // SAFETY: as the caller promises.
    unsafe {
        let columns = (api.data_chunk_get_column_count)(chunk);
        let vectors = (0..columns).map(|c| Vector::new((api.data_chunk_get_vector)(chunk, c))).collect::<Result<_, _>>()?;
        Ok((vectors, (api.data_chunk_get_size)(chunk) as usize))
    }
}

/// A state that is updated row by row, joined, and gives a value.
pub(super) trait Kept: Default {
    /// What the overload's callbacks know.
    type Info;

    /// Adds the rows of a chunk, each to its state.
    fn update(info: &Self::Info, vectors: &[Vector], rows: usize, states: &mut States<Self>) -> Result<(), Error>;

    /// Joins another state, which stays as it is: windows share it.
    fn join(&mut self, other: &Self, info: &Self::Info) -> Result<(), Error>;

    /// Writes the result.
    ///
    /// # Safety
    /// `out` is a result vector of the overload's type with a row `i`.
    unsafe fn finish(&self, info: &Self::Info, out: Pointer, i: usize) -> Result<(), Error>;
}

/// The states of a chunk's rows.
pub(super) struct States<S> {
    pointers: *const Pointer,
    step: usize,
    rows: usize,
    kind: PhantomData<S>,
}

impl<S> States<S> {
    /// Whether two rows of the chunk have one state.
    #[inline]
    pub(super) fn same(&self, i: usize, j: usize) -> bool {
        // SAFETY: there is a pointer for each row, or one for all.
        self.step == 0 || unsafe { *self.pointers.add(i) == *self.pointers.add(j) }
    }

    /// The state of row `i`, which the chunk has.
    #[inline]
    pub(super) fn at(&mut self, i: usize) -> &mut S {
        // SAFETY: DuckDB passes a live state for each row, and the borrow of `self` lets no second reference be.
        unsafe {
            if self.step > 0 {
                fetch_ahead::<S>(self.pointers, i, self.rows);
            }
            state(self.pointers, i * self.step)
        }
    }
}

/// The driver of such states.
pub(super) const fn kept<S: Kept>() -> Driver {
    Driver {
        size: size_of_state::<S>,
        init: init_state::<S>,
        update: update::<S>,
        combine: combine::<S>,
        finalize: finalize::<S>,
        destroy: destroy_of::<S>(),
    }
}

unsafe extern "C" fn update<S: Kept>(call: Pointer, chunk: Pointer, states: *mut Pointer) {
    // SAFETY: DuckDB passes a chunk of the overload's types and a state for each row (but see `sorted`).
    guard(call, || unsafe {
        let (vectors, rows) = vectors(chunk)?;
        let mut states = States { pointers: states, step: stride(states), rows, kind: PhantomData };
        Ok(S::update(info(call), &vectors, rows, &mut states)?)
    });
}

unsafe extern "C" fn combine<S: Kept>(call: Pointer, sources: *mut Pointer, targets: *mut Pointer, count: u64) {
    // SAFETY: DuckDB passes live states, and never the same as source and target.
    guard(call, || unsafe {
        let count = count as usize;
        for i in 0..count {
            fetch_ahead::<S>(targets, i, count);
            state::<S>(targets, i).join(state::<S>(sources, i), info(call))?;
        }
        Ok(())
    });
}

unsafe extern "C" fn finalize<S: Kept>(call: Pointer, states: *mut Pointer, out: Pointer, count: u64, offset: u64) {
    // SAFETY: DuckDB passes live states and a result vector of the overload's type with room for them.
    guard(call, || unsafe {
        let known: &S::Info = info(call);
        for i in 0..count as usize {
            state::<S>(states, i).finish(known, out, i + offset as usize)?;
        }
        Ok(())
    });
}
