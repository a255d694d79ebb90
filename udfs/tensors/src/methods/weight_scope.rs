//! Weight scope alignment: each model is brought to a common mean and deviation before it is averaged (Xu et al. 2024, arXiv:2408.12237).

use crate::checkpoint::{Buffer, Tensor};
use crate::method::{Base, Job, Kernel, Method, WEIGHT};
use crate::program::{Program, Rule};
use crate::reduce;
use mergeql_udfs::Result;

pub const METHOD: Method = Method {
    name: "weight_scope",
    title: "the mean of the models, each aligned to the mean and deviation of the base, or to those of all",
    paper: "Xu et al. 2024, arXiv:2408.12237",
    base: Base::Optional,
    params: &[WEIGHT],
    check: |job| job.check_shares(),
    prepare,
    ..Method::COMMON
};

/// Mean and standard deviation.
fn scope(tensor: &Tensor) -> Result<(f64, f64)> {
    let n = tensor.len().max(1) as f64;
    let pass = |of: &(dyn Fn(f64) -> f64 + Sync)| {
        reduce::sum(tensor.len(), 1, |range, buffer: &mut Buffer, sums| {
            sums[0] = reduce::sum_of(tensor.view(range, buffer)?, |v| of(f64::from(v)));
            Ok(())
        })
    };
    let mean = pass(&|v| v)?[0] / n;
    Ok((mean, (pass(&|v| (v - mean) * (v - mean))?[0] / n).sqrt()))
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let shares = job.shares("weight")?;
    let scopes: Vec<(f64, f64)> = job.models.iter().map(|m| scope(&m.tensor)).collect::<Result<_>>()?;
    let (mean, deviation) = match job.base {
        Some(base) => scope(&base.tensor)?,
        None => scopes.iter().zip(&shares).fold((0.0, 0.0), |(m, d), (scope, share)| (m + share * scope.0, d + share * scope.1)),
    };
    // share * ((v - own mean) * scale + mean)
    let lines = scopes
        .iter()
        .zip(&shares)
        .map(|((own, spread), share)| {
            let scale = if *spread > 0.0 { deviation / spread } else { 1.0 };
            [(share * scale) as f32, (share * (mean - own * scale)) as f32]
        })
        .collect();
    Ok(kernel(lines))
}

/// The kernel for what each model is multiplied by, and moved by.
pub(crate) fn kernel(lines: Vec<[f32; 2]>) -> Kernel<'static> {
    Kernel::Program {
        program: Program::Entries { rule: Rule::Moved, models: lines.clone() },
        run: Box::new(move |tile, out| {
            out.fill(0.0);
            for (model, [scale, shift]) in tile.models.iter().zip(&lines) {
                out.iter_mut().zip(*model).for_each(|(o, m)| *o += scale * m + shift);
            }
            Ok(())
        }),
    }
}
