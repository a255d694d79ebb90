//! Models of other families: names brought into one namespace, and matrices turned onto each other.

use crate::dtype;
use crate::linalg::{self, Mat};
use crate::made;
use crate::plan::Model;
use mergeql_udfs::{Code, Error, Result};
use regex::Regex;
use std::collections::BTreeMap;

/// The orthogonal matrix R that brings A R nearest to B (Schönemann 1966, A generalized solution of the orthogonal Procrustes problem): U V^T of
/// A^T B.
///
/// # Errors
/// `type_mismatch` for other shapes.
///
/// ```
/// use mergeql_tensors::linalg::Mat;
/// let a = Mat::from_fn(2, 2, |r, c| [[1.0, 0.0], [0.0, 1.0]][r][c]);
/// let b = Mat::from_fn(2, 2, |r, c| [[0.0, 1.0], [-1.0, 0.0]][r][c]);
/// assert_eq!(mergeql_tensors::align::procrustes(&a, &b).unwrap(), b);
/// ```
pub fn procrustes(a: &Mat<f64>, b: &Mat<f64>) -> Result<Mat<f64>> {
    if a.nrows() != b.nrows() || a.ncols() != b.ncols() {
        return Err(Error::type_mismatch(format!(
            "matrices of {} x {} and {} x {} cannot be aligned",
            a.nrows(),
            a.ncols(),
            b.nrows(),
            b.ncols()
        )));
    }
    linalg::nearest_orthogonal(&(a.transpose() * b))
}

/// Names of tensors in one family of models, and what they are called among the others: `*` stands for what is kept.
type Family = (&'static str, &'static [(&'static str, &'static str)]);

/// The families whose names are known, by the names of their checkpoints on the Hugging Face hub, and Llama's names for the same parts.
/// What one family keeps in one matrix and another in three has no name here, nor has what is stored transposed.
const FAMILIES: &[Family] = &[
    ("llama", &[]),
    (
        "opt",
        &[
            ("model.decoder.embed_tokens.*", "model.embed_tokens.*"),
            ("model.decoder.final_layer_norm.*", "model.norm.*"),
            ("model.decoder.layers.*.self_attn.out_proj.*", "model.layers.*.self_attn.o_proj.*"),
            ("model.decoder.layers.*.self_attn_layer_norm.*", "model.layers.*.input_layernorm.*"),
            ("model.decoder.layers.*.final_layer_norm.*", "model.layers.*.post_attention_layernorm.*"),
            ("model.decoder.layers.*.fc1.*", "model.layers.*.mlp.up_proj.*"),
            ("model.decoder.layers.*.fc2.*", "model.layers.*.mlp.down_proj.*"),
            ("model.decoder.layers.*", "model.layers.*"),
        ],
    ),
    (
        "gpt_neox",
        &[
            ("gpt_neox.embed_in.*", "model.embed_tokens.*"),
            ("gpt_neox.final_layer_norm.*", "model.norm.*"),
            ("embed_out.*", "lm_head.*"),
            ("gpt_neox.layers.*.attention.dense.*", "model.layers.*.self_attn.o_proj.*"),
            ("gpt_neox.layers.*.mlp.dense_h_to_4h.*", "model.layers.*.mlp.up_proj.*"),
            ("gpt_neox.layers.*.mlp.dense_4h_to_h.*", "model.layers.*.mlp.down_proj.*"),
            ("gpt_neox.layers.*", "model.layers.*"),
        ],
    ),
    (
        "phi",
        &[
            ("model.final_layernorm.*", "model.norm.*"),
            ("model.layers.*.self_attn.dense.*", "model.layers.*.self_attn.o_proj.*"),
            ("model.layers.*.mlp.fc1.*", "model.layers.*.mlp.up_proj.*"),
            ("model.layers.*.mlp.fc2.*", "model.layers.*.mlp.down_proj.*"),
        ],
    ),
    ("bert", &[]),
    ("roberta", &[("roberta.*", "bert.*")]),
    ("electra", &[("electra.*", "bert.*")]),
];

fn no_pair(what: String) -> Error {
    Error::invalid_argument(what)
        .with_help("a pair is from,to: `model.decoder.layers.*,model.layers.*`; what a * stands for is kept")
}

/// What tensors are called elsewhere: patterns with `*`, and what they become. The first that fits wins.
#[derive(Debug)]
pub struct Names {
    rules: Vec<(Regex, String)>,
}

impl Names {
    /// A family that is known (`llama`, `opt`, `gpt_neox`, `phi`, `bert`, `roberta`, `electra`), or a file of lines `from,to`.
    ///
    /// # Errors
    /// `io`; `invalid_argument` for a line that is none.
    pub fn open(text: &str) -> Result<Names> {
        if let Some((_, pairs)) = FAMILIES.iter().find(|(name, _)| *name == text) {
            return Names::of(text, pairs.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())));
        }
        let families: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
        let lines = std::fs::read_to_string(text).map_err(|e| {
            let near = families.iter().find(|family| strsim::jaro_winkler(family, text) > 0.8);
            Error::new(Code::Io, format!("`{text}`: {e}")).with_help(match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("names are a file with lines `from,to`, or one of {}", families.join(", ")),
            })
        })?;
        let mut pairs = Vec::new();
        for (number, line) in lines.lines().map(str::trim).enumerate() {
            if line.is_empty() || (number == 0 && line.eq_ignore_ascii_case("from,to")) {
                continue;
            }
            let pair = line.split_once(',').map(|(from, to)| (from.trim().to_owned(), to.trim().to_owned()));
            pairs.push(pair.ok_or_else(|| no_pair(format!("line {} of `{text}` is `{line}`", number + 1)))?);
        }
        Names::of(text, pairs)
    }

    fn of(text: &str, pairs: impl IntoIterator<Item = (String, String)>) -> Result<Names> {
        let rule = |(from, to): (String, String)| {
            if to.is_empty() || from.matches('*').count() < to.matches('*').count() {
                return Err(no_pair(format!("`{text}` has the pair `{from},{to}`")));
            }
            // All but the last * stand within a part of the name.
            let parts: Vec<String> = from.split('*').map(regex::escape).collect();
            let mut pattern = parts[0].clone();
            for (at, part) in parts.iter().enumerate().skip(1) {
                pattern += if at + 1 == parts.len() { "(.*)" } else { "([^.]*)" };
                pattern += part;
            }
            let pattern = Regex::new(&format!("^{pattern}$"))
                .map_err(|e| Error::invalid_argument(format!("the name `{from}` is no pattern: {e}")))?;
            Ok((pattern, to))
        };
        Ok(Names { rules: pairs.into_iter().map(rule).collect::<Result<_>>()? })
    }

    /// What a tensor is called; its own name where no pattern fits.
    ///
    /// ```
    /// use mergeql_tensors::align::Names;
    /// let opt = Names::open("opt").unwrap();
    /// assert_eq!(opt.of_tensor("model.decoder.layers.3.fc1.weight"), "model.layers.3.mlp.up_proj.weight");
    /// ```
    pub fn of_tensor(&self, name: &str) -> String {
        let Some((found, to)) = self.rules.iter().find_map(|(pattern, to)| Some((pattern.captures(name)?, to))) else {
            return name.to_owned();
        };
        let mut parts = found.iter().skip(1).flatten();
        let mut text = String::new();
        for (at, part) in to.split('*').enumerate() {
            if at > 0 {
                text += parts.next().map_or("", |m| m.as_str());
            }
            text += part;
        }
        text
    }

    fn model(&self, model: Model, renamed: &mut Vec<String>) -> Result<Model> {
        let (mut tensors, mut matched) = (BTreeMap::new(), self.rules.is_empty());
        for (name, tensor) in &model.checkpoint.tensors {
            let new = self.of_tensor(name);
            if new != *name {
                renamed.push(format!("{}: {name} is {new}", model.name));
            }
            matched |= self.rules.iter().any(|(pattern, _)| pattern.is_match(name));
            let tensor = tensor.renamed(&new);
            if tensors.insert(new.clone(), tensor).is_some() {
                return Err(Error::invalid_argument(format!("two tensors of `{}` would be called `{new}`", model.name))
                    .with_help("mend the map of names"));
            }
        }
        if !matched {
            return Err(Error::invalid_argument(format!("no name of the map is one of a tensor of `{}`", model.name))
                .with_help("mend the map; in a list of maps '' stands for none"));
        }
        Ok(model.made(tensors))
    }
}

/// Brings the tensors of each model under common names: one map for all models, or one for each in their order, `''` for none; maps that are
/// tables are given with their rows. What was renamed is listed, in an order that is not that of the models.
///
/// # Errors
/// As [`Names::open`]; `invalid_argument` for another number of maps than there are models.
pub fn named(
    models: Vec<Model>,
    maps: &[String],
    tables: &BTreeMap<String, Vec<(String, String)>>,
) -> Result<(Vec<Model>, Vec<String>)> {
    let mut renamed = Vec::new();
    if maps.is_empty() {
        return Ok((models, renamed));
    }
    if maps.len() != 1 && maps.len() != models.len() {
        return Err(Error::invalid_argument(format!("`names` has {} maps for {} models", maps.len(), models.len()))
            .with_help("write one for all models, or one for each in their order: names = ['opt', '']"));
    }
    let each = models.into_iter().enumerate().map(|(at, model)| match maps[at.min(maps.len() - 1)].as_str() {
        "" => Ok(model),
        map => match tables.get(map) {
            Some(pairs) => Names::of(map, pairs.clone())?,
            None => Names::open(map)?,
        }
        .model(model, &mut renamed),
    });
    let models = each.collect::<Result<_>>()?;
    renamed.sort();
    Ok((models, renamed))
}

/// Turns the matrices of each model onto those of the base. Tensors of other shapes than the base's leave; what was not turned is noted.
///
/// # Errors
/// `invalid_argument` without a base.
pub fn turned(models: Vec<Model>, base: Option<&Model>, notes: &mut Vec<String>) -> Result<Vec<Model>> {
    let base = base.ok_or_else(|| {
        Error::invalid_argument("align = 'procrustes' turns models onto their base, and there is none")
            .with_help("name the model that the others are turned onto: BASE 'base.safetensors'")
    })?;
    let each = models.into_iter().map(|model| {
        let (mut tensors, mut kept) = (BTreeMap::new(), Vec::new());
        for (name, tensor) in &model.checkpoint.tensors {
            let onto = base.checkpoint.get(name).filter(|_| dtype::is_float(tensor.dtype));
            let tensor = match onto {
                Some(onto) if onto.shape != tensor.shape => {
                    notes.push(format!(
                        "tensor `{name}` of `{}` is {:?}, that of the base {:?}: it was not aligned and takes no part",
                        model.name, tensor.shape, onto.shape
                    ));
                    continue;
                }
                Some(onto) if onto.shape.len() == 2 => made::turned(tensor, onto),
                _ => {
                    kept.push(name.as_str());
                    tensor.clone()
                }
            };
            tensors.insert(name.clone(), tensor);
        }
        if !kept.is_empty() {
            notes.push(format!("of `{}` these are no matrices of the base, and were not turned: {}", model.name, kept.join(", ")));
        }
        Ok(model.made(tensors))
    });
    each.collect()
}
