//! MergeQL as a library: DataFusion with conflict-free merging.
//!
//! [`MergeContext`] takes statements and gives back DataFusion's `DataFrame`s. Strategies come from `mergeql-udfs`, the language from
//! `mergeql-lang`; this crate alone names DataFusion and Arrow.

mod aggregates;
mod binding;
mod checked;
pub mod cluster;
pub mod columns;
mod context;
mod copies;
mod current;
mod custom;
mod error;
mod explain;
mod hashed;
mod into;
mod layers;
mod memory;
mod merges;
pub mod models;
mod names;
mod nan;
mod objects;
mod orders;
mod plain;
mod prepare;
mod renames;
mod rewrites;
mod scalars;
pub mod serve;
pub mod sinks;
mod sorted;
pub mod sources;
mod spool;
mod store;
mod tables;
mod temporary;
mod text_files;
mod text_scan;

/// Bytes of stack of threads that read or plan statements, whose expressions may be deep.
pub const STACK: usize = 256 << 20;

pub use context::{Access, Config, MergeContext, collect};
pub use datafusion;
pub use error::{MergeError, Result};
pub use memory::SpillFolder;
pub use mergeql_tensors as tensors;
pub use mergeql_udfs::parse_size;
pub use prepare::Prepared;
