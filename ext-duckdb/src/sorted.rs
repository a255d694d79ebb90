//! A fault of DuckDB 1.x (its issue 21537, mended in 2.0): `aggregate(x ORDER BY y)` passes one state for all rows where the C interface
//! promises one pointer a row, so that reading the second is reading what lies behind.
//!
//! Such an aggregate asks for the size of a state, makes one (or the same one anew for the next group), and updates it at once. So: where
//! the last state that this thread made was the only one since a size was asked for, and an update begins with it, all its rows are for
//! it. In a hash table that is true as well: if a thread has made only one state, every row that it has is for that one.
#![allow(unsafe_code)]

use crate::api::{Pointer, is_version_1};
use std::cell::Cell;

thread_local! {
    /// Whether a size was asked for just now, and the only state that was made since.
    static ONLY: Cell<(bool, Pointer)> = const { Cell::new((false, std::ptr::null_mut())) };
}

/// DuckDB asked for the size of a state.
#[inline]
pub fn on_size() {
    if is_version_1() {
        ONLY.set((true, ONLY.get().1));
    }
}

/// DuckDB makes a state.
#[inline]
pub fn on_init(state: Pointer) {
    if is_version_1() {
        let (asked, only) = ONLY.get();
        ONLY.set((false, if asked || only == state { state } else { std::ptr::null_mut() }));
    }
}

/// How far apart the states of two rows lie in the array of pointers: one, or nothing.
///
/// # Safety
/// `states` is what DuckDB passed to an update.
#[inline]
pub unsafe fn stride(states: *const Pointer) -> usize {
    // SAFETY: the first pointer is always there.
    usize::from(!(is_version_1() && ONLY.get().1 == unsafe { *states }))
}
