//! The adapter that comes nearest to what a model changed in its base: of each matrix the best approximation of low rank (Eckart, Young
//! 1936, doi:10.1007/BF02288367).

use crate::checkpoint::{Elements, Tensor};
use crate::dtype::{self, Dtype};
use crate::linalg::{self, Mat};
use crate::method::{Kind, Method, Params, Settings, param};
use crate::plan::{How, Plan, Request, Task, rule_of};
use crate::tokenizer;
use mergeql_udfs::{Error, Result};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// The strategy's name.
pub(crate) const NAME: &str = "lora_extract";

static METHOD: Method = Method {
    name: NAME,
    params: &[param("rank", Kind::Count, "16", "how many directions of each matrix are kept")],
    ..Method::COMMON
};

/// Its parameters.
pub(crate) fn parameters() -> &'static Method {
    &METHOD
}

/// A matrix of which both factors are made at once, when one is needed.
#[derive(Debug)]
struct Difference {
    model: Tensor,
    base: Tensor,
    rank: usize,
    factors: OnceLock<[Vec<f32>; 2]>,
}

impl Difference {
    /// A, then B: the roots of the singular values are in both.
    fn factors(&self) -> Result<&[Vec<f32>; 2]> {
        if let Some(found) = self.factors.get() {
            return Ok(found);
        }
        let found = linalg::svd(&(linalg::matrix(&self.model)? - linalg::matrix(&self.base)?))?;
        let roots: Vec<f64> = found.s[..self.rank].iter().map(|s| s.sqrt()).collect();
        let a = Mat::from_fn(self.rank, found.v.nrows(), |r, c| found.v[(c, r)] * roots[r]);
        let b = Mat::from_fn(found.u.nrows(), self.rank, |r, c| found.u[(r, c)] * roots[c]);
        Ok(self.factors.get_or_init(|| [a, b].map(|m| linalg::elements(m.as_ref()))))
    }
}

#[derive(Debug)]
struct Factor {
    of: Arc<Difference>,
    which: usize,
}

impl Elements for Factor {
    fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&self.of.factors()?[self.which][range]);
        Ok(())
    }

    fn source(&self) -> Option<&Tensor> {
        Some(&self.of.model)
    }
}

/// Plans the adapter of one model and its base, and its config.
///
/// # Errors
/// `invalid_argument` without a base, with several models, or where there is no matrix; `type_mismatch` for other shapes.
pub(super) fn plan(request: Request) -> Result<(Plan, Json)> {
    let Request { mut models, base, rules, options } = request;
    super::refuse_options(&options)?;
    let Some(mut base) = base else {
        return Err(Error::invalid_argument(format!("`{NAME}` needs the model that the other started from"))
            .with_help("MERGE MODELS 'tuned' BASE 'base' STRATEGY * = lora_extract(rank = 16) INTO 'adapter/'"));
    };
    if let Some(rule) = rules.iter().find(|rule| rule.strategy != NAME) {
        return Err(Error::invalid_argument(format!("`{}` and `{NAME}` do not go together", rule.strategy))
            .with_help("merge first, and extract the adapter of the result"));
    }
    if models.len() != 1 {
        return Err(Error::invalid_argument(format!("`{NAME}` makes the adapter of one model, not of {}", models.len())));
    }
    for model in models.iter_mut().chain([&mut base]) {
        model.checkpoint = model.checkpoint.clone().lenient(options.propagate_nan);
    }
    let (mut tasks, mut notes, mut ranks, mut context) = (Vec::new(), Vec::new(), BTreeMap::new(), String::new());
    models = super::beside(models, Some(&base), &mut notes)?;
    for (name, tensor) in &models[0].checkpoint.tensors {
        let Some(rule) = rule_of(&rules, name) else { continue };
        let mut params: Params = options.common.clone().into_iter().filter(|(n, _)| METHOD.param(n).is_some()).collect();
        params.extend(rule.params.clone());
        let settings = Settings::new(&METHOD, &params, options.semantics, 1)?;
        let no_matrix = !dtype::is_float(tensor.dtype) || tensor.shape.len() != 2 || tokenizer::is_embedding(name);
        let in_base = base.checkpoint.get(name);
        let (Some(module), Some(of_base), false) = (name.strip_suffix(".weight"), in_base, no_matrix) else {
            let why = if in_base.is_none() { "the base lacks it" } else { "it is not the matrix of a linear layer" };
            notes.push(format!("tensor `{name}` is not in the adapter: {why}"));
            continue;
        };
        if of_base.shape != tensor.shape {
            return Err(Error::type_mismatch(format!(
                "tensor `{name}` has the shape {:?} in the model and {:?} in its base",
                tensor.shape, of_base.shape
            )));
        }
        let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
        let rank = (settings.number("rank").unwrap_or(0.0) as usize).min(rows).min(columns);
        if rank == 0 {
            return Err(Error::invalid_argument(format!("an adapter of rank 0 changes nothing in `{name}`"))
                .with_help("write lora_extract(rank = 16)"));
        }
        ranks.insert(module.to_owned(), rank);
        context += &format!("{name}: {rank}\n");
        let of = Arc::new(Difference { model: tensor.clone(), base: of_base.clone(), rank, factors: OnceLock::new() });
        let dtype = options.out_dtype.unwrap_or(tensor.dtype);
        for (which, shape) in [[rank, columns], [rows, rank]].into_iter().enumerate() {
            let name = format!("base_model.model.{module}.lora_{}.weight", ["A", "B"][which]);
            let made = Tensor::made(&name, Dtype::F32, &shape, Arc::new(Factor { of: of.clone(), which }));
            // Both factors are of one reading of the two matrices.
            let reads = if which == 0 { [tensor, of_base].map(|t| t.bytes.end - t.bytes.start).iter().sum() } else { 0 };
            let (with, from) = (format!("rank = {rank}"), vec![models[0].name.clone()]);
            let how = How::Made { by: NAME, with, from, reads, tensor: made };
            tasks.push(Task { name, shape: shape.to_vec(), dtype, how });
        }
    }
    if tasks.is_empty() {
        return Err(Error::invalid_argument("no tensor here is the matrix of a linear layer")
            .with_help("adapters change tensors `<module>.weight` of two axes"));
    }
    tasks.sort_by(|a, b| a.name.cmp(&b.name));
    let greatest = ranks.values().max().copied().unwrap_or(0);
    let smaller: BTreeMap<String, usize> =
        ranks.iter().filter(|(_, rank)| **rank != greatest).map(|(name, rank)| (regex::escape(name), *rank)).collect();
    let config = json!({
        "peft_type": "LORA",
        "base_model_name_or_path": base.checkpoint.path,
        "r": greatest,
        "lora_alpha": greatest,
        "use_rslora": false,
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "target_modules": ranks.keys().collect::<Vec<_>>(),
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
    });
    Ok((Plan { models, base: Some(base), tasks, options, notes, context }, config))
}
