//! Columnar stores that give the plain states' answers faster: flat vectors over groups, no object a group, no value a row.
//!
//! Each is held against the plain store by the derived tests.

pub mod best;
pub(crate) mod coupons;
pub mod keys;
mod lists;
pub(crate) mod sets;
pub mod slot;
pub mod texts;

/// Asks for a place of a vector over groups that comes soon: of a million groups most are in no cache. A hint changes nothing.
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) fn fetch_ahead<T>(slots: &[T], groups: &[usize], row: usize) {
    const AHEAD: usize = 12;
    #[cfg(target_arch = "x86_64")]
    if let Some(slot) = groups.get(row + AHEAD).and_then(|group| slots.get(*group)) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every machine of this kind has the instruction, and it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(slot).cast()) };
    }
}
