//! A fault of DuckDB 1.x (its issue 21537, mended in 2.0): `aggregate(x ORDER BY y)` passes one state for all rows where the C interface
//! promises one pointer a row, so that reading the second is reading what lies behind.
//!
//! Such an aggregate asks for the size of a state, makes one, and updates it. So: where an update begins with the state that was made
//! right after a size was asked for, and the next pointer does not lead to a state of ours, all rows are for the first state.
#![allow(unsafe_code)]

use crate::api::{Pointer, is_version_1};
use std::cell::Cell;

/// The first word of every state.
pub const MAGIC: u64 = 0x6d65_7267_6571_6c01;

thread_local! {
    /// Whether a size was asked for just now, and the state that was made then.
    static ARMED: Cell<(bool, Pointer)> = const { Cell::new((false, std::ptr::null_mut())) };
}

/// DuckDB asked for the size of a state.
#[inline]
pub fn on_size() {
    if is_version_1() {
        ARMED.set((true, ARMED.get().1));
    }
}

/// DuckDB makes a state.
#[inline]
pub fn on_init(state: Pointer) {
    if is_version_1() {
        let (armed, candidate) = ARMED.get();
        ARMED.set((false, if armed || candidate == state { state } else { std::ptr::null_mut() }));
    }
}

/// How far apart the states of two rows lie in the array of pointers: one, or nothing.
///
/// # Safety
/// `states` is what DuckDB passed to an update of `rows` rows.
#[inline]
pub unsafe fn stride(states: *const Pointer, rows: usize) -> usize {
    // SAFETY: the first pointer is always there; those behind it are only compared and probed.
    unsafe {
        if rows < 2 || !is_version_1() || ARMED.get().1 != *states {
            return 1;
        }
        (1..rows).map(|i| *states.add(i)).find(|next| *next != *states).map_or(1, |next| usize::from(is_state(next)))
    }
}

/// Whether a pointer that may be anything leads to a state of ours. The kernel reads for us: it fails where we would fault.
#[cfg(target_os = "linux")]
unsafe fn is_state(pointer: Pointer) -> bool {
    #[repr(C)]
    struct Span {
        start: *mut std::ffi::c_void,
        length: usize,
    }
    unsafe extern "C" {
        fn process_vm_readv(pid: i32, local: *const Span, locals: u64, remote: *const Span, remotes: u64, flags: u64) -> isize;
    }
    if pointer.is_null() || pointer as usize % 8 != 0 {
        return false;
    }
    let mut word = 0u64;
    let mut read = |from: Pointer| {
        let (local, remote) = (Span { start: (&raw mut word).cast(), length: 8 }, Span { start: from, length: 8 });
        // SAFETY: eight bytes are copied into `word`, or nothing.
        unsafe { process_vm_readv(std::process::id() as i32, &local, 1, &remote, 1, 0) == 8 }
    };
    // Where the kernel refuses to read even what is ours, the promise of the interface is believed.
    let works = read((&raw const MAGIC_WORD).cast_mut().cast());
    !works || (read(pointer) && word == MAGIC)
}

#[cfg(target_os = "linux")]
static MAGIC_WORD: u64 = MAGIC;

/// Elsewhere there is no such probe; the way the state came about must do.
#[cfg(not(target_os = "linux"))]
unsafe fn is_state(_: Pointer) -> bool {
    false
}
