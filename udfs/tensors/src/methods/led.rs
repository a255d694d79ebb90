//! LED: locate what matters by importance, elect what matters before and after tuning, keep what one task alone elects (Ma et al. 2025,
//! LED-Merging, arXiv:2502.16770).

use crate::checkpoint::{Buffer, Tensor};
use crate::method::{Job, Kernel, Kind, Method, WEIGHT, each, param};
use crate::select::{self, Cut};
use mergeql_udfs::Result;

pub const METHOD: Method = Method {
    name: "led",
    title: "the changes that matter to one task alone, by importance scores",
    paper: "Ma et al. 2025, arXiv:2502.16770",
    params: &[
        WEIGHT,
        param("importance", Kind::Files, "!", "scores of each model, a file with tensors `base.<name>` and `model.<name>`"),
        each("rate", Kind::Share, "0.3", "the share of entries that matters, greatest score first"),
        each("lambda", Kind::Number, "1", "scales what each model changed"),
        param("alpha", Kind::Number, "1", "scales the merged task vector"),
    ],
    check: |job| {
        (0..job.models.len()).try_for_each(|i| {
            let file = job.side("importance", i)?;
            ["base", "model"].iter().try_for_each(|of| job.side_tensor(file, &format!("{of}.{}", job.name), job.shape).map(|_| ()))
        })
    },
    prepare,
    ..Method::COMMON
};

struct Scores {
    tensor: Tensor,
    cut: Cut,
}

impl Scores {
    fn new(tensor: &Tensor, rate: f64) -> Result<Scores> {
        let n = tensor.len();
        let cut = select::first(n, (rate * n as f64) as usize, |range, keys, buffer: &mut Buffer| {
            keys.clear();
            keys.extend(tensor.view(range, buffer)?.iter().map(|v| !select::by_value(*v)));
            Ok(())
        })?;
        Ok(Scores { tensor: tensor.clone(), cut })
    }
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let mut scores = Vec::new();
    for (i, rate) in job.of_models("rate").into_iter().enumerate() {
        let file = job.side("importance", i)?;
        for of in ["base", "model"] {
            scores.push(Scores::new(job.side_tensor(file, &format!("{of}.{}", job.name), job.shape)?, rate)?);
        }
    }
    let alpha = job.number("alpha");
    let factors: Vec<f32> =
        job.of_models("lambda").into_iter().zip(job.of_models("weight")).map(|(l, w)| (l * w * alpha) as f32).collect();
    Ok(Kernel::Tiles {
        granule: 1,
        run: Box::new(move |tile, out| {
            // Which model elects an entry: none, one (its number from 1), or several.
            const SEVERAL: u32 = u32::MAX;
            let mut elected = vec![0u32; out.len()];
            let (mut before, mut after) = (Buffer::default(), Buffer::default());
            for (i, both) in scores.chunks(2).enumerate() {
                let base = both[0].tensor.view(tile.range.clone(), &mut before)?;
                let model = both[1].tensor.view(tile.range.clone(), &mut after)?;
                for (at, (e, (b, m))) in elected.iter_mut().zip(base.iter().zip(model)).enumerate() {
                    let index = tile.range.start + at;
                    if both[0].cut.after(!select::by_value(*b), index) && both[1].cut.after(!select::by_value(*m), index) {
                        *e = if *e == 0 { i as u32 + 1 } else { SEVERAL };
                    }
                }
            }
            for (at, (o, e)) in out.iter_mut().zip(&elected).enumerate() {
                let base = tile.base[at];
                *o = match *e {
                    0 | SEVERAL => base,
                    i => base + factors[i as usize - 1] * (tile.models[i as usize - 1][at] - base),
                };
            }
            Ok(())
        }),
    })
}
