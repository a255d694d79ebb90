//! Tensors that are computed from others when they are read, so that none is held.

mod low_rank;
mod rows;
mod turned;

pub use low_rank::{LowRank, plus, product};
pub use rows::{Row, rows};
pub use turned::turned;
