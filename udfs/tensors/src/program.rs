//! What the kernel of a tensor does element by element, in terms that a shader has: additions, multiplications, comparisons, integers. A
//! [`Program`] says the same as the kernel beside it, to the bit.

use crate::method::Tile;
use crate::methods::task_vectors::Sum;
use crate::rng::Philox;
use crate::select::Cut;

/// What is done with the elements at one place of all inputs.
#[derive(Debug, Clone)]
pub enum Program {
    /// The sum of the inputs by these factors.
    Combine {
        /// Which inputs.
        inputs: Inputs,
        /// A factor for each.
        factors: Vec<f32>,
    },
    /// Task vectors, thinned out, weighted and summed, perhaps of those that agree in sign.
    Vectors {
        /// The weight of each model.
        weights: Vec<f32>,
        /// What each task vector is scaled by.
        scales: Vec<f32>,
        /// Which entries of each are kept.
        thin: Vec<Thinned>,
        /// How they become one.
        sum: Sum,
    },
}

/// What a sum is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inputs {
    /// The models.
    Models,
    /// The base, then the models.
    BaseAndModels,
    /// The base by itself, and the differences of the models to it.
    Tasks,
}

/// Which entries of a task vector are kept, and by what they are multiplied.
#[derive(Debug, Clone, Copy)]
pub enum Thinned {
    /// All, by one.
    All,
    /// Those before a cut by magnitude, greatest first, counted from this element.
    Greatest(Cut, usize),
    /// Those between two cuts by magnitude, smallest first.
    Between(Cut, Cut),
    /// Those whose random number is below a limit, by a factor.
    Random {
        /// The numbers.
        stream: Philox,
        /// What they must be below.
        limit: u64,
        /// What is kept is multiplied by this.
        factor: f32,
    },
}

/// Whether the elements are such that no step of a program can leave the normal range of floats unseen: zero, or between 2^-60 and 2^60 in
/// magnitude. Devices may take smaller numbers for zero.
pub fn in_range(values: &[f32]) -> bool {
    const LOW: u32 = (127 - 60) << 23;
    const HIGH: u32 = (127 + 60) << 23;
    // Without a branch for each: what the compiler turns into vectors.
    let odd = values.iter().fold(0u32, |odd, v| {
        let size = v.to_bits() & 0x7fff_ffff;
        odd | u32::from(size != 0) & u32::from(size.wrapping_sub(LOW) > HIGH - LOW)
    });
    odd == 0
}

impl Program {
    /// The inputs of a tile in the order in which the program has them: the base is the last of those that have tasks.
    pub fn inputs<'t>(&self, tile: &Tile<'t>) -> Vec<&'t [f32]> {
        match self {
            Program::Combine { inputs: Inputs::Models, .. } => tile.models.clone(),
            Program::Combine { inputs: Inputs::BaseAndModels, .. } => {
                std::iter::once(tile.base).chain(tile.models.iter().copied()).collect()
            }
            Program::Combine { inputs: Inputs::Tasks, .. } | Program::Vectors { .. } => {
                tile.models.iter().copied().chain([tile.base]).collect()
            }
        }
    }
}
