//! SafeMERGE: layers of a fine-tuned model that left the safe subspace are mixed with a safe model's (Djuhera et al. 2025,
//! arXiv:2503.17239).

use crate::checkpoint::Tensor;
use crate::linalg;
use crate::method::{Job, Kernel, Kind, Method, each, param};
use mergeql_udfs::{Error, Result};

pub const METHOD: Method = Method {
    name: "safemerge",
    synonyms: &[("threshold", "tau")],
    title: "the fine-tuned model, with layers that left the subspace of the alignment mixed with the safe model's",
    paper: "Djuhera et al. 2025, arXiv:2503.17239",
    models: (2, 2),
    ordered: true,
    params: &[
        each("weight", Kind::Number, "0.5", "how a layer is mixed: the fine-tuned model first, then the safe one"),
        param("tau", Kind::Number, "!", "layers whose update has a lower cosine with its projection are mixed"),
        param("unaligned_base", Kind::File, "!", "the model before it was aligned; the base is the aligned one"),
    ],
    check: |job| if job.shape.len() == 2 { unaligned(job).map(|_| ()) } else { Ok(()) },
    prepare,
    ..Method::COMMON
};

/// The tensor before the model was aligned.
fn unaligned<'j>(job: &'j Job<'_>) -> Result<&'j Tensor> {
    let file = job.sides.get("unaligned_base").and_then(|files| files.first());
    let file =
        file.ok_or_else(|| Error::invalid_argument("`safemerge` needs `unaligned_base`, the model before it was aligned"))?;
    job.side_tensor(file, job.name, job.shape)
}

fn prepare<'a>(job: &'a Job<'a>) -> Result<Kernel<'a>> {
    let weights = job.of_models("weight");
    let mut mixed = true;
    if job.shape.len() == 2 {
        let alignment = linalg::matrix(job.base()?)? - linalg::matrix(unaligned(job)?)?;
        let update = linalg::matrix(&job.models[0].tensor)? - linalg::matrix(job.base()?)?;
        let projected = &alignment * (alignment.transpose() * &update);
        let lengths = linalg::norm(&projected) * linalg::norm(&update);
        let cosine = if lengths > 0.0 {
            linalg::inner(&projected, &update) / lengths
        } else if linalg::norm(&update) > 0.0 && linalg::norm(&alignment) > 0.0 {
            // Nothing of the update lies in the safe subspace.
            0.0
        } else {
            1.0
        };
        mixed = cosine < job.number("tau");
    }
    Ok(job.combine(if mixed { weights } else { vec![1.0, 0.0] }, true))
}
