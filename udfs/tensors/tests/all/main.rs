//! The tests of merging tensors, in one binary.
#![allow(missing_docs)]

mod cases;
mod mergekit;
