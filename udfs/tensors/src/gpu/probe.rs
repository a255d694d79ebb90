//! Whether a device gives the CPU's bits: every program over many numbers, ordinary and odd ones, before the device is used.

use super::Gpu;
use crate::method::{Tile, combine};
use crate::methods::task_vectors::{Sum, Thin, run};
use crate::program::{Inputs, Program, Thinned};
use crate::rng::{self, Philox};
use crate::select::{self, Cut};
use mergeql_udfs::Result;
use std::ops::Range;

/// Elements of a case.
const ELEMENTS: usize = 1 << 16;
const MODELS: usize = 3;

/// Numbers of many magnitudes: the bits are a stream's, the exponents within a range.
fn numbers(seed: u64, spread: u32) -> Vec<f32> {
    let stream = Philox::new(seed, &[7; 32], "probe");
    let number = |at: usize| {
        let bits = stream.number(at);
        let exponent = 127 - spread / 2 + (bits >> 8) % spread.max(1);
        if at.is_multiple_of(97) { 0.0 } else { f32::from_bits(bits & 0x807f_ffff | exponent << 23) }
    };
    (0..ELEMENTS).map(number).collect()
}

struct As<'a>(&'a [Thinned]);

impl Thin for As<'_> {
    fn factors(&self, i: usize, range: Range<usize>, delta: &[f32], out: &mut [f32]) -> Result<()> {
        self.0[i].factors(range, delta, out);
        Ok(())
    }
}

/// Holds a device to the CPU.
///
/// # Errors
/// What it does otherwise.
pub(super) fn check(gpu: &Gpu) -> std::result::Result<(), String> {
    for spread in [1, 2, 20, 60] {
        let inputs: Vec<Vec<f32>> = (0..=MODELS as u64).map(|i| numbers(i + 10 * u64::from(spread), spread)).collect();
        let models: Vec<&[f32]> = inputs[..MODELS].iter().map(Vec::as_slice).collect();
        // An index beyond 32 bits, and one that goes over.
        for start in [0, (1 << 32) - 1000] {
            let tile = Tile { range: start..start + ELEMENTS, models: models.clone(), base: &inputs[MODELS] };
            for (name, program) in programs(start) {
                let (mut theirs, mut ours) = (vec![0.0f32; ELEMENTS], vec![0.0f32; ELEMENTS]);
                if !gpu.run(&program, &tile, &mut theirs) {
                    return Err(format!("`{}` did not compute {name}", gpu.name));
                }
                match &program {
                    Program::Combine { inputs, factors } => combine(&tile, factors, *inputs == Inputs::Tasks, &mut ours),
                    Program::Vectors { weights, scales, thin, sum } => {
                        run(&tile, &As(thin), *sum, weights, scales, &mut ours).map_err(|e| e.to_string())?;
                    }
                }
                let differs = theirs.iter().zip(&ours).position(|(a, b)| a.to_bits() != b.to_bits());
                if let Some(at) = differs {
                    return Err(format!("`{}` gives {} where the CPU gives {} in {name}", gpu.name, theirs[at], ours[at]));
                }
            }
        }
    }
    Ok(())
}

fn programs(start: usize) -> Vec<(&'static str, Program)> {
    let factors = vec![0.4f32, 0.35, -1.7];
    let random = |i: u8| Thinned::Random { stream: Philox::new(3, &[i; 32], "w"), limit: rng::limit(0.3), factor: 1.0 / 0.3 };
    let cut = Cut::at(select::great_first(0.7), start + 5);
    let between = Thinned::Between(Cut::at(select::small_first(0.3), start + 9), Cut::at(select::small_first(1.3), start));
    let sum = |consensus, normalize| Sum { consensus, normalize, same_l1: false, lambda: 0.9 };
    let vectors = |thin: [Thinned; MODELS], sum| Program::Vectors {
        weights: factors.clone(),
        scales: vec![1.0, 1.1, 0.3],
        thin: thin.to_vec(),
        sum,
    };
    vec![
        ("a sum", Program::Combine { inputs: Inputs::Models, factors: factors.clone() }),
        ("a sum of task vectors", Program::Combine { inputs: Inputs::Tasks, factors: factors.clone() }),
        ("task vectors", vectors([Thinned::All; MODELS], sum(false, true))),
        ("elected signs", vectors([Thinned::Greatest(cut, 0), Thinned::All, Thinned::Greatest(cut, 1 << 33)], sum(true, true))),
        ("random entries", vectors([random(1), random(2), random(3)], sum(true, false))),
        ("entries between", vectors([between, Thinned::All, between], sum(false, false))),
    ]
}
