//! Building blocks: lattices that strategies are composed of. They know no strategy, no host and no SQL.

pub mod best;
pub mod blocks;
pub mod dots;
pub mod origins;
pub mod set;
pub mod version;
