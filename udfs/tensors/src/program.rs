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
    /// A rule that looks at all entries of a place together.
    Entries {
        /// Which.
        rule: Rule,
        /// Two numbers of each model, for the rules that have such.
        models: Vec<[f32; 2]>,
    },
}

/// What becomes of the entries at one place; those of task vectors are added to the base.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// The entry of greatest magnitude, by a factor; of two as great the positive one.
    Greatest(f32),
    /// The sum of the entries by a factor is taken off, where they agree in sign.
    Agreeing(f32),
    /// The entry, by what this distance is of it, but by no more than 1.
    Near(f32),
    /// The sum of the entries by a factor, where so many of them are at least the model's share of what the others add.
    Needed(u32, f32),
    /// The greatest entry that goes the way of the sum; or, of one model, that by a factor where its own entry goes the same way.
    Elected(Option<(usize, f32)>),
    /// The mean of the entries beyond a magnitude; one that is alone by its model's factor.
    Shared(f32),
    /// The middle of the models, or the mean of the two there.
    Middle,
    /// The sum of the models, each by its factor and then moved.
    Moved,
    /// The mean, by the models' weights, of the entries that go the way of the sum, where their variance lies before a cut, greatest first; it is
    /// divided by no less than a number.
    Varying(Cut, f32),
}

impl Rule {
    /// Whether the base is one of its inputs.
    pub fn based(self) -> bool {
        !matches!(self, Rule::Middle | Rule::Moved)
    }
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
            Program::Entries { rule, .. } if !rule.based() => tile.models.clone(),
            Program::Combine { inputs: Inputs::BaseAndModels, .. } => {
                std::iter::once(tile.base).chain(tile.models.iter().copied()).collect()
            }
            Program::Combine { inputs: Inputs::Tasks, .. } | Program::Vectors { .. } | Program::Entries { .. } => {
                tile.models.iter().copied().chain([tile.base]).collect()
            }
        }
    }

    /// The numbers by which inputs are multiplied, or compared with.
    pub fn numbers(&self) -> Vec<f32> {
        match self {
            Program::Combine { factors, .. } => factors.clone(),
            Program::Vectors { weights, scales, thin, sum } => {
                let random =
                    thin.iter().filter_map(|thin| if let Thinned::Random { factor, .. } = thin { Some(*factor) } else { None });
                let scaled = weights.iter().zip(scales).map(|(weight, scale)| weight * scale);
                weights.iter().copied().chain(scaled).chain(random).chain([sum.factor(weights), sum.lambda]).collect()
            }
            Program::Entries { rule, models } => {
                let own = match *rule {
                    Rule::Greatest(v) | Rule::Agreeing(v) | Rule::Near(v) | Rule::Needed(_, v) | Rule::Shared(v) => v,
                    Rule::Elected(Some((_, v))) => v,
                    // What is divided by no less than this may be next to nothing: it is compared alone.
                    Rule::Elected(None) | Rule::Middle | Rule::Moved | Rule::Varying(..) => 0.0,
                };
                models.iter().flatten().copied().chain([own]).collect()
            }
        }
    }
}
