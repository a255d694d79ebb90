//! Spherical interpolation of two models by their weights; with a base, of their task vectors. As mergekit documents it.

use crate::method::{Base, Gram, Job, Kernel, Kind, Method, Pair, Semantics, WEIGHT, param};
use mergeql_udfs::{Error, Result};

pub const METHOD: Method = Method {
    name: "nuslerp",
    title: "two models along the arc between them by their weights; with a base, their task vectors",
    paper: "Shoemake 1985; mergekit",
    base: Base::Optional,
    models: (1, 2),
    params: &[
        WEIGHT,
        param("nuslerp_flatten", Kind::Flag, "true", "whether a tensor is one vector, not one for each row"),
        param(
            "nuslerp_row_wise",
            Kind::Flag,
            "false",
            "whether the vectors run along the first axis, not the last, where a tensor is not one vector",
        ),
    ],
    check: |job| match job.models.len() > 1 && job.settings.semantics == Semantics::Paper {
        true => job.check_shares(),
        false => Ok(()),
    },
    prepare,
    ..Method::COMMON
};

/// The factors of two vectors with these inner products; opposite ones have no arc, which only mergekit lets pass.
fn factors(gram: &Gram, t: f64, semantics: Semantics) -> Result<(f64, f64)> {
    // To mergekit lengths of nothing count as 1e-7; vectors whose angle has no sine are interpolated straight.
    let least = if semantics == Semantics::Mergekit { 1e-7 } else { f64::MIN_POSITIVE };
    let clamp = |norm: f64| norm.max(least);
    let cosine = (gram.dot(0, 1) / (clamp(gram.norm(0)) * clamp(gram.norm(1)))).clamp(-1.0, 1.0);
    if cosine < 1e-12 - 1.0 && semantics == Semantics::Paper {
        return Err(Error::invalid_argument(
            "two tensors point in opposite directions: no arc between them is shorter than the others",
        )
        .with_help("merge this tensor with linear"));
    }
    let sine = cosine.acos().sin();
    if sine.abs() < 1e-8 {
        return Ok((1.0 - t, t));
    }
    let angle = cosine.acos();
    Ok((((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine))
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let (tasks, semantics) = (job.base.is_some(), job.settings.semantics);
    if job.models.len() == 1 {
        return Ok(job.combine(vec![1.0], tasks));
    }
    let weights = job.of_models("weight");
    let sum = weights[0] + weights[1];
    let nothing = if semantics == Semantics::Mergekit { 1e-6 } else { f64::MIN_POSITIVE };
    let t = if sum.abs() < nothing { 0.5 } else { weights[1] / sum };
    if job.flag("nuslerp_flatten") || job.shape.len() < 2 && !job.flag("nuslerp_row_wise") {
        let (a, b) = factors(&job.gram(tasks)?, t, semantics)?;
        return Ok(job.combine(vec![a, b], tasks));
    }
    let vector = move |tile: &crate::method::Tile<'_>, i: usize, at: usize| {
        if tasks { tile.models[i][at] - tile.base[at] } else { tile.models[i][at] }
    };
    if !job.flag("nuslerp_row_wise") {
        let width = job.shape[job.shape.len() - 1].max(1);
        return Ok(Kernel::Tiles {
            granule: width,
            run: Box::new(move |tile, out| {
                let mut rows = [vec![0.0; width], vec![0.0; width]];
                for (row, out) in out.chunks_exact_mut(width).enumerate() {
                    for (i, values) in rows.iter_mut().enumerate() {
                        values.iter_mut().enumerate().for_each(|(j, v)| *v = vector(tile, i, row * width + j));
                    }
                    let mut sums = vec![0.0; 4];
                    Gram::of(&[&rows[0], &rows[1]], &mut sums);
                    let (a, b) = factors(&Gram::new(2, sums), t, semantics)?;
                    let (a, b) = (a as f32, b as f32);
                    out.iter_mut().zip(rows[0].iter().zip(&rows[1])).for_each(|(o, (x, y))| *o = a * x + b * y);
                    if tasks {
                        out.iter_mut().zip(&tile.base[row * width..]).for_each(|(o, b)| *o += b);
                    }
                }
                Ok(())
            }),
        });
    }
    // Along the first axis each column is a vector: its inner products are summed row after row.
    let columns = job.len() / job.shape.first().copied().unwrap_or(1).max(1);
    let mut sums = vec![[0.0f64; 3]; columns];
    let mut pairs = [Pair::default(), Pair::default()];
    for start in (0..job.len()).step_by(columns.max(1)) {
        let [first, second] = &mut pairs;
        let read = |i: usize, pair: &mut Pair| -> Result<Vec<f32>> {
            let range = start..start + columns;
            if tasks {
                Ok(job.delta(i, range, pair)?.to_vec())
            } else {
                Ok(job.models[i].tensor.view(range, &mut Default::default())?.to_vec())
            }
        };
        let (x, y) = (read(0, first)?, read(1, second)?);
        for (sums, (x, y)) in sums.iter_mut().zip(x.iter().zip(&y)) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            *sums = [sums[0] + x * x, sums[1] + x * y, sums[2] + y * y];
        }
    }
    let factors: Vec<(f32, f32)> = sums
        .into_iter()
        .map(|[xx, xy, yy]| factors(&Gram::new(2, vec![xx, xy, xy, yy]), t, semantics))
        .map(|found| found.map(|(a, b)| (a as f32, b as f32)))
        .collect::<Result<_>>()?;
    Ok(Kernel::Tiles {
        granule: columns.max(1),
        run: Box::new(move |tile, out| {
            for (at, o) in out.iter_mut().enumerate() {
                let (a, b) = factors[at % columns];
                *o = a * vector(tile, 0, at) + b * vector(tile, 1, at) + if tasks { tile.base[at] } else { 0.0 };
            }
            Ok(())
        }),
    })
}
