//! Merging model tensors. A merge is a pure function of the *set* of contributions: each is named by the hash of what it holds, the set is a
//! CRDT, and the methods of [`methods`] resolve it, tensor by tensor, from files that are larger than memory.
//!
//! Sums have one fixed shape ([`reduce`]), random numbers depend on the index of an element ([`rng`]), ranks are exact ([`select`]): the same
//! set gives the same bytes with any number of threads, any size of tiles and any layout of files.

pub mod align;
mod cache;
mod chat;
pub mod checkpoint;
pub mod contribution;
pub mod dtype;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod linalg;
pub mod lora;
pub mod made;
pub mod mergekit;
pub mod method;
pub mod methods;
pub mod model;
pub mod output;
pub mod plan;
pub mod program;
pub mod reduce;
pub mod report;
pub mod request;
pub mod rng;
pub mod run;
pub mod sealed;
#[cfg(feature = "search")]
pub mod search;
pub mod select;
mod simd;
pub mod stats;
pub mod tables;
pub mod tokenizer;
