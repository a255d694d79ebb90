//! Columnar stores that give the plain states' answers faster: flat vectors over groups, no object a group, no value a row.
//!
//! Each is held against the plain store by the derived tests.

pub mod best;
pub(crate) mod coupons;
pub mod slot;
pub mod texts;
