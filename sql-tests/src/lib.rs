//! The tests that every host runs: `.slt` files, cases with expected answers, and what compares them.

pub mod cases;
pub mod pages;
