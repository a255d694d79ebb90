//! One test binary for everything that runs SQL.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod into;
mod manual;
mod programs;
mod slt;
mod sorted;
mod spill;
mod tabular;
