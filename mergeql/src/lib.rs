//! The MergeQL language: parser, binder, plan, diagnostics and lowering to SQL.
//!
//! This crate executes nothing and knows no engine: a host resolves names to [`plan::Relation`]s, binds a statement to them, and runs
//! the SQL that the plan is lowered to, over aggregates that come from the catalogue of `mergeql-udfs`.

pub mod ast;
mod bind;
pub mod diagnostic;
mod exact;
mod format;
mod kept;
mod kinds;
pub mod lower;
mod parser;
pub mod plan;
mod strategies;
mod target;

pub use bind::{UserStrategies, bind};
pub use diagnostic::{Diagnostic, Result, Span};
pub use exact::{make_exact, printed};
pub use format::{format, merge_text, models_text, resolution};
pub use kept::Kept;
pub use parser::{first_word, is_incomplete, parse, reads, split};
pub use strategies::{check_strategy, check_unverified, entry_of, find_strategy};
pub use target::{added_columns, bind_into, check_fit, grows};
