//! Loops as vectors of the machine that they run on.

use pulp::Arch;

/// Runs a loop that the compiler turned into vectors once for each kind of machine; the widest that is there is chosen. Nothing is fused or
/// reordered: the bits are those of any other machine.
#[inline(always)]
pub fn vectors<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}
