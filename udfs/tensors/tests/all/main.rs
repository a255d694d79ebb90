//! The tests of merging tensors, in one binary.
#![allow(missing_docs)]

mod adapters;
mod bad_input;
mod cases;
mod edges;
#[cfg(feature = "gpu")]
mod gpu;
mod mergekit;
mod properties;
#[cfg(feature = "search")]
mod search;
