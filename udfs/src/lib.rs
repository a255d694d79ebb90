//! The CRDTs of MergeQL: typed values with one total order, partial states that form join-semilattices, their bytes, and the strategies
//! built from them.
//!
//! This crate knows no SQL, no Arrow, no engine and no IO. Hosts bring vectors in ([`Column`]), hold [`Groups`], and take vectors out
//! ([`OwnedColumn`]); everything else derives from the [`catalog`].

pub mod aggregate;
pub mod batch;
pub mod catalog;
mod cells;
pub mod codec;
mod error;
mod fast;
pub mod frames;
pub mod functions;
mod lattice;
pub mod laws;
pub mod merkle;
mod partial;
mod size;
mod sketch;
mod strategies;
mod types;
pub mod value;

pub use aggregate::{Aggregate, AnyState, Call, Groups, State, Strategy};
pub use batch::{Bits, Column, Data, OwnedColumn, OwnedData, Ranges, Strings};
pub use error::{Code, Error, Result};
pub use fast::best::{Order, VersionKeys};
pub use fast::keys::KeyTable;
pub use fast::slot;
pub use partial::Partial;
pub use size::parse_size;
pub use strategies::model_set::TENSOR_STRATEGIES;
pub use types::{Field, Type, Unit};
pub use value::Value;
