//! Model Stock: how far from the base the mean of the models should lie follows from the angles between them (Jang, Yun, Han 2024,
//! arXiv:2403.19522).

use crate::method::{Gram, Job, Kernel, Kind, Method, Semantics, combine, param};
use mergeql_udfs::Result;

pub const METHOD: Method = Method {
    name: "model_stock",
    title: "between the base and the mean of the models, by the angles between what they changed",
    paper: "Jang, Yun, Han 2024, arXiv:2403.19522",
    params: &[param("filter_wise", Kind::Flag, "false", "whether each vector along the last axis has a ratio of its own")],
    prepare,
    ..Method::COMMON
};

/// The share of the mean. mergekit takes lengths whose product is below 1e-6 for that, and so small changes for unlike ones.
fn ratio(gram: &Gram, semantics: Semantics) -> f64 {
    let n = gram.n;
    if n < 2 {
        return 1.0;
    }
    let mut sum = 0.0;
    for i in 0..n {
        for j in i + 1..n {
            sum += match semantics {
                Semantics::Paper => gram.cosine(i, j),
                Semantics::Mergekit => (gram.dot(i, j) / (gram.norm(i) * gram.norm(j)).max(1e-6)).clamp(-1.0, 1.0),
            };
        }
    }
    let cosine = sum / (n * (n - 1) / 2) as f64;
    let divisor = 1.0 + (n - 1) as f64 * cosine;
    if divisor.abs() < 1e-12 { 0.0 } else { n as f64 * cosine / divisor }
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let (n, semantics) = (job.models.len(), job.settings.semantics);
    if !job.flag("filter_wise") {
        let factor = ratio(&job.gram(true)?, semantics) / n as f64;
        return Ok(job.combine(vec![factor; n], true));
    }
    let width = job.shape.last().copied().unwrap_or(1).max(1);
    Ok(Kernel::Tiles {
        granule: width,
        run: Box::new(move |tile, out| {
            let mut rows = vec![vec![0.0f32; width]; n];
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                let place = row * width..(row + 1) * width;
                for (values, model) in rows.iter_mut().zip(&tile.models) {
                    values
                        .iter_mut()
                        .zip(model[place.clone()].iter().zip(&tile.base[place.clone()]))
                        .for_each(|(v, (m, b))| *v = m - b);
                }
                let mut sums = vec![0.0; n * n];
                Gram::of(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut sums);
                let factor = (ratio(&Gram::new(n, sums), semantics) / n as f64) as f32;
                let models = tile.models.iter().map(|m| &m[place.clone()]).collect();
                let part = crate::method::Tile { range: place.clone(), models, base: &tile.base[place] };
                combine(&part, &vec![factor; n], true, out);
            }
            Ok(())
        }),
    })
}
