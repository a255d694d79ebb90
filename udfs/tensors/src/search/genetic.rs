//! A genetic algorithm over the unit cube: tournaments of two, simulated binary crossover and polynomial mutation (Deb, Agrawal 1995; Deb,
//! Goyal 1996), and the best of parents and children go on.

use crate::rng::Philox;
use mergeql_udfs::Result;

/// How near children are to their parents, and mutants to what they were: Deb's usual indices.
const CROSSOVER: f64 = 15.0;
const MUTATION: f64 = 20.0;

/// Random numbers, one after the other.
struct Numbers {
    stream: Philox,
    next: usize,
}

impl Numbers {
    /// From 0 to below 1.
    fn uniform(&mut self) -> f64 {
        let number = self.stream.number(self.next);
        self.next += 1;
        f64::from(number) / 4_294_967_296.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }
}

/// Two children between and beside their parents.
fn crossed(a: &[f64], b: &[f64], numbers: &mut Numbers) -> [Vec<f64>; 2] {
    let mut children = [a.to_vec(), b.to_vec()];
    for (at, (a, b)) in a.iter().zip(b).enumerate() {
        let (draw, apart) = (numbers.uniform(), numbers.uniform() < 0.5);
        if apart {
            continue;
        }
        let power = 1.0 / (CROSSOVER + 1.0);
        let spread = if draw <= 0.5 { (2.0 * draw).powf(power) } else { (0.5 / (1.0 - draw)).powf(power) };
        children[0][at] = (0.5 * ((1.0 + spread) * a + (1.0 - spread) * b)).clamp(0.0, 1.0);
        children[1][at] = (0.5 * ((1.0 - spread) * a + (1.0 + spread) * b)).clamp(0.0, 1.0);
    }
    children
}

fn mutate(child: &mut [f64], numbers: &mut Numbers) {
    let share = 1.0 / child.len() as f64;
    for x in child {
        let (draw, draw_step) = (numbers.uniform(), numbers.uniform());
        if draw >= share {
            continue;
        }
        let power = 1.0 / (MUTATION + 1.0);
        let step = if draw_step < 0.5 { (2.0 * draw_step).powf(power) - 1.0 } else { 1.0 - (2.0 * (1.0 - draw_step)).powf(power) };
        *x = (*x + step).clamp(0.0, 1.0);
    }
}

/// Judges so many generations of so many candidates. The first stands in the middle, the others anywhere.
///
/// # Errors
/// What judging says.
pub(super) fn run(
    axes: usize,
    generations: usize,
    population: usize,
    seed: u64,
    judge: &mut dyn FnMut(&[f64]) -> Result<f64>,
) -> Result<()> {
    let mut numbers = Numbers { stream: Philox::new(seed, &[0; 32], "genetic"), next: 0 };
    let mut alive: Vec<(f64, Vec<f64>)> = Vec::new();
    for at in 0..population {
        let point: Vec<f64> = (0..axes).map(|_| if at == 0 { 0.5 } else { numbers.uniform() }).collect();
        alive.push((judge(&point)?, point));
    }
    for _ in 1..generations {
        let mut children: Vec<Vec<f64>> = Vec::new();
        while children.len() < population {
            let mut parent = || {
                let (a, b) = (numbers.below(population), numbers.below(population));
                if alive[b].0 > alive[a].0 { b } else { a }
            };
            let (a, b) = (parent(), parent());
            for mut child in crossed(&alive[a].1, &alive[b].1, &mut numbers) {
                mutate(&mut child, &mut numbers);
                children.push(child);
            }
        }
        children.truncate(population);
        for child in children {
            alive.push((judge(&child)?, child));
        }
        // A stable sort: of equals the elder.
        alive.sort_by(|a, b| b.0.total_cmp(&a.0));
        alive.truncate(population);
    }
    Ok(())
}
