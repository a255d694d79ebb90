//! Whether a device gives the CPU's bits: every program over many numbers, ordinary and odd ones, before the device is used.

use super::Gpu;
use crate::method::{Kernel, Tile, combined};
use crate::methods::task_vectors::{Sum, Thin, run};
use crate::methods::{consensus_ta, emr, magmax, nearswap, negmerge, ram, robust, sce, weight_scope};
use crate::program::{Program, Thinned};
use crate::rng::{self, Philox};
use crate::select::{self, Cut};
use mergeql_udfs::Result;
use std::ops::Range;

/// Elements of a case.
const ELEMENTS: usize = 1 << 16;
const MODELS: usize = 4;

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
        let all: Vec<&[f32]> = inputs[..MODELS].iter().map(Vec::as_slice).collect();
        // An index beyond 32 bits, and one that goes over.
        for start in [0, (1 << 32) - 1000] {
            for (name, models, kernel) in kernels(start) {
                let Kernel::Program { program, run } = kernel else { continue };
                // Rules divide and square: numbers that are far apart are the CPU's.
                if spread > 20 && matches!(program, Program::Entries { .. }) {
                    continue;
                }
                let tile = Tile { range: start..start + ELEMENTS, models: all[..models].to_vec(), base: &inputs[MODELS] };
                let (mut theirs, mut ours) = (vec![0.0f32; ELEMENTS], vec![0.0f32; ELEMENTS]);
                if !gpu.run(&program, &tile, &mut theirs) {
                    return Err(format!("`{}` did not compute {name}", gpu.name));
                }
                run(&tile, &mut ours).map_err(|e| e.to_string())?;
                let differs = theirs.iter().zip(&ours).position(|(a, b)| a.to_bits() != b.to_bits());
                if let Some(at) = differs {
                    return Err(format!("`{}` gives {} where the CPU gives {} in {name}", gpu.name, theirs[at], ours[at]));
                }
            }
        }
    }
    Ok(())
}

/// One kernel of every kind, and for how many models it is.
fn kernels(start: usize) -> Vec<(&'static str, usize, Kernel<'static>)> {
    let factors = vec![0.4f32, 0.35, -1.7];
    let random = |i: u8| Thinned::Random { stream: Philox::new(3, &[i; 32], "w"), limit: rng::limit(0.3), factor: 1.0 / 0.3 };
    let cut = Cut::at(select::great_first(0.7), start + 5);
    let between = Thinned::Between(Cut::at(select::small_first(0.3), start + 9), Cut::at(select::small_first(1.3), start));
    let sum = |consensus, normalize| Sum { consensus, normalize, same_l1: false, lambda: 0.9 };
    let vectors = |thin: [Thinned; 3], sum: Sum| {
        let (weights, scales) = (factors.clone(), vec![1.0, 1.1, 0.3]);
        Kernel::Program {
            program: Program::Vectors { weights: weights.clone(), scales: scales.clone(), thin: thin.to_vec(), sum },
            run: Box::new(move |tile, out| run(tile, &As(&thin), sum, &weights, &scales, out)),
        }
    };
    vec![
        ("a sum", 3, combined(factors.clone(), false)),
        ("a sum of task vectors", 3, combined(factors.clone(), true)),
        ("task vectors", 3, vectors([Thinned::All; 3], sum(false, true))),
        ("elected signs", 3, vectors([Thinned::Greatest(cut, 0), Thinned::All, Thinned::Greatest(cut, 1 << 33)], sum(true, true))),
        ("random entries", 3, vectors([random(1), random(2), random(3)], sum(true, false))),
        ("entries between", 3, vectors([between, Thinned::All, between], sum(false, false))),
        ("the greatest entries", 4, magmax::kernel(0.7)),
        ("entries that agree", 2, negmerge::kernel(0.3)),
        ("near entries", 1, nearswap::kernel(0.9)),
        ("entries that matter", 4, consensus_ta::kernel(vec![0.4, 0.2, 1.1, 0.7], 2, 0.3)),
        ("a unified vector", 4, emr::kernel(None, 1.0)),
        ("the unified vector of a task", 4, emr::kernel(Some(2), 1.3)),
        ("entries alone and shared", 4, ram::kernel(0.6, vec![1.0, 1.2, 0.9, 1.1])),
        ("a median of three", 3, robust::median(3)),
        ("a median of four", 4, robust::median(4)),
        ("moved models", 4, weight_scope::kernel(vec![[0.3, 0.01], [0.2, -0.4], [0.4, 0.0], [0.1, 1.5]])),
        ("entries that vary", 4, sce::kernel(cut, vec![0.4, 0.3, 0.2, 0.1], f32::MIN_POSITIVE)),
        ("all entries by weight", 3, sce::kernel(Cut::ALL, vec![0.5, 0.0, 0.5], 1e-6)),
    ]
}
