//! The plan of one stage of a config: its models, its slices, and the parameters of each tensor.

use super::{Stage, config_of, layer_count, wrong};
use crate::chat;
use crate::checkpoint::Checkpoint;
use crate::dtype;
use crate::lora;
use crate::method::{Base, Input, Kind, Method, Params, Semantics, Value};
use crate::methods;
use crate::plan::{Files, How, Merge, Model, Options, Plan, choose, copy_task, merge_task};
use crate::tokenizer::{self, Tokens};
use mergeql_udfs::Result;
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A source of a slice.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) model: String,
    layers: Option<(usize, usize)>,
    parameters: Json,
}

/// Layers of the output, and where they come from.
#[derive(Debug, Clone)]
pub(super) struct Slice {
    pub(super) sources: Vec<Source>,
    /// In place of the config's.
    pub(super) base: Option<String>,
    parameters: Json,
}

/// What a config may say.
const KEYS: [&str; 11] = [
    "name",
    "merge_method",
    "models",
    "slices",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer",
    "tokenizer_source",
    "chat_template",
];

pub(super) struct Planner<'a> {
    config: &'a Json,
    folder: &'a Path,
    earlier: &'a BTreeMap<String, PathBuf>,
    method: &'static Method,
    preset: Params,
    pub(super) slices: Vec<Slice>,
    pub(super) base: Option<String>,
    pub(super) tokenizer: Option<Json>,
    models: Vec<Model>,
    /// NaN in a model is no error.
    propagate_nan: bool,
}

/// The layer number in a tensor's name: what stands before it, the number, and what follows.
fn layer_of(name: &str) -> Option<(&str, usize, &str)> {
    for stem in ["layers.", "h.", "blocks.", "block.", "layer."] {
        let starts = name.match_indices(stem).map(|(at, _)| at).filter(|at| *at == 0 || name.as_bytes()[at - 1] == b'.');
        for at in starts {
            let from = at + stem.len();
            let digits = name[from..].bytes().take_while(u8::is_ascii_digit).count();
            if digits > 0 && name[from + digits..].starts_with('.') {
                return Some((&name[..from], name[from..from + digits].parse().ok()?, &name[from + digits..]));
            }
        }
    }
    None
}

/// Whether a tensor outside of the layers comes before them: embeddings, and layers of what looks or listens.
fn is_first(name: &str) -> bool {
    let embeds = ["embed", "wte", "wpe", "word_embeddings", "tok_embeddings"].iter().any(|part| name.contains(part));
    embeds && !name.contains("embed_out") || layer_of(name).is_some()
}

/// The stems of the layers that a config speaks of. Where a model has others beside them, as one that also looks at pictures has, they are
/// those that are as many as its config says, and of these not those of pictures and sounds.
fn stems<'n>(names: impl Iterator<Item = &'n String>, count: Option<usize>) -> BTreeSet<String> {
    let mut found: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (stem, layer, _) in names.filter_map(|name| layer_of(name)) {
        found.entry(stem).or_default().insert(layer);
    }
    let narrowed = |found: BTreeMap<&'n str, BTreeSet<usize>>, fits: &dyn Fn(&str, usize) -> bool| {
        let fitting: BTreeMap<_, _> =
            found.iter().filter(|(stem, layers)| fits(stem, layers.len())).map(|(s, l)| (*s, l.clone())).collect();
        if fitting.is_empty() { found } else { fitting }
    };
    let found = narrowed(found, &|_, layers| count.is_none_or(|count| layers == count));
    let found = narrowed(found, &|stem, _| !["vision", "visual", "audio"].iter().any(|part| stem.contains(part)));
    found.into_keys().map(str::to_owned).collect()
}

fn text_of(json: &Json, what: &str) -> Result<String> {
    match json {
        Json::String(text) => Ok(text.clone()),
        Json::Object(map) if map.contains_key("path") => text_of(&map["path"], what),
        // {model: {path: ..}, lora: ..} and the like
        Json::Object(map) if map.contains_key("model") => {
            let model = text_of(&map["model"], what)?;
            match map.get("lora").filter(|lora| !lora.is_null()) {
                Some(lora) => Ok(format!("{model}+{}", text_of(lora, what)?)),
                None => Ok(model),
            }
        }
        other => Err(wrong(format!("{what} is the name of a model, not {other}"))),
    }
}

/// The name of a model that may be left out.
pub(super) fn name_of(of: &Json, key: &str) -> Result<Option<String>> {
    of.get(key).filter(|name| !name.is_null()).map(|name| text_of(name, key)).transpose()
}

/// Buffers that programs compute anew, which old checkpoints hold: they are no weights.
fn is_weight(name: &str) -> bool {
    !name.ends_with("rotary_emb.inv_freq")
}

/// The tensor whose rows a model uses in place of one that it lacks.
pub(crate) fn tied<'c>(checkpoint: &'c Checkpoint, name: &str) -> Option<&'c crate::checkpoint::Tensor> {
    let embeddings = || checkpoint.tensors.iter().find(|(other, _)| other.ends_with("embed_tokens.weight"));
    if name.ends_with("lm_head.weight") { embeddings().map(|(_, tensor)| tensor) } else { None }
}

fn sources(list: &Json, what: &str) -> Result<Vec<Source>> {
    let items = list.as_array().ok_or_else(|| wrong(format!("{what} is a list")))?;
    let source = |item: &Json| {
        let model = text_of(item.get("model").unwrap_or(&Json::Null), "model")?;
        let layers = match item.get("layer_range") {
            None | Some(Json::Null) => None,
            Some(range) => {
                let ends: Option<Vec<u64>> = range.as_array().and_then(|ends| ends.iter().map(Json::as_u64).collect());
                match ends.as_deref() {
                    Some(&[from, to]) if from < to => Some((from as usize, to as usize)),
                    _ => return Err(wrong(format!("layer_range is [first, end], not {range}"))),
                }
            }
        };
        Ok(Source { model, layers, parameters: item.get("parameters").cloned().unwrap_or_default() })
    };
    items.iter().map(source).collect()
}

/// Keys of the maps within a config that nothing reads.
fn in_vain(config: &Json) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut look = |what: &str, map: &Json, known: &[&str]| {
        let keys = map.as_object().into_iter().flat_map(|map| map.keys()).filter(|key| !known.contains(&key.as_str()));
        found.extend(keys.map(|key| format!("{what} has no `{key}`: it has no effect")));
    };
    let items = |list: &Json| list.as_array().cloned().unwrap_or_default();
    let slices = items(&config["slices"]);
    let sources: Vec<Json> = items(&config["models"]).into_iter().chain(slices.iter().flat_map(|s| items(&s["sources"]))).collect();
    slices.iter().for_each(|slice| look("a slice", slice, &["sources", "base_model", "parameters"]));
    sources.iter().for_each(|source| look("a model of a config", source, &["model", "layer_range", "parameters"]));
    look("a tokenizer", &config["tokenizer"], &["source", "tokens", "pad_to_multiple_of"]);
    let tokens = config["tokenizer"]["tokens"].as_object().into_iter().flat_map(|map| map.values());
    tokens.for_each(|token| look("a token", token, &["source", "force"]));
    let parameters = sources.iter().chain(&slices).chain([config]).filter_map(|of| of["parameters"].as_object());
    for setting in parameters.flat_map(|map| map.values()) {
        let maps = items(setting).into_iter().chain([setting.clone()]);
        maps.for_each(|map| look("a value by filter", &map, &["filter", "value"]));
    }
    found
}

/// The value of a setting for a tensor at a point of the way from the first layer to the last. `None` where no filter fits.
fn evaluate(setting: &Json, tensor: &str, t: f64) -> Option<Json> {
    match setting {
        Json::Array(items) if items.iter().all(Json::is_number) => {
            let points: Vec<f64> = items.iter().filter_map(Json::as_f64).collect();
            let place = t * (points.len().checked_sub(1)? as f64);
            let before = (place.floor() as usize).min(points.len() - 1);
            let after = (before + 1).min(points.len() - 1);
            let share = place - before as f64;
            Some(Json::from((1.0 - share) * points[before] + share * points[after]))
        }
        Json::Array(items) => items.iter().find_map(|item| match item.get("filter").and_then(Json::as_str) {
            None | Some("*") => evaluate(item.get("value")?, tensor, t),
            Some(filter) if tensor.contains(filter) => evaluate(item.get("value")?, tensor, t),
            Some(_) => None,
        }),
        Json::Object(item) => evaluate(&Json::Array(vec![Json::Object(item.clone())]), tensor, t),
        Json::Null => None,
        value => Some(value.clone()),
    }
}

fn to_value(kind: Kind, name: &str, json: &Json) -> Result<Value> {
    Ok(match (kind, json) {
        // A flag in mergekit, a word here.
        (Kind::Word(_), Json::Bool(yes)) if name == "rescale" => Value::Text(if *yes { "l1" } else { "none" }.into()),
        (_, Json::Bool(yes)) => Value::Flag(*yes),
        (_, Json::String(text)) => Value::Text(text.clone()),
        (_, number) => Value::Number(number.as_f64().ok_or_else(|| wrong(format!("`{name}` is no value: {json}")))?),
    })
}

impl<'a> Planner<'a> {
    pub(super) fn new(config: &'a Json, folder: &'a Path, earlier: &'a BTreeMap<String, PathBuf>) -> Result<Planner<'a>> {
        let name = config.get("merge_method").and_then(Json::as_str).ok_or_else(|| wrong("the config has no merge_method"))?;
        let (method, preset) = methods::find(name)?;
        let mut slices = match (config.get("models"), config.get("slices")) {
            (Some(models), None) => vec![Slice { sources: sources(models, "models")?, base: None, parameters: Json::Null }],
            (None, Some(Json::Array(slices))) => slices
                .iter()
                .map(|slice| {
                    let list = slice.get("sources").ok_or_else(|| wrong("a slice has sources"))?;
                    Ok(Slice {
                        sources: sources(list, "sources")?,
                        base: name_of(slice, "base_model")?,
                        parameters: slice.get("parameters").cloned().unwrap_or_default(),
                    })
                })
                .collect::<Result<_>>()?,
            _ => return Err(wrong("the config has either models or slices").with_help("models: [{model: a}, {model: b}]")),
        };
        if slices.is_empty() || slices.iter().any(|s| s.sources.is_empty()) {
            return Err(wrong("the config names no models"));
        }
        let base = name_of(config, "base_model")?;
        // To mergekit the base of a list of models is one of them, where the method works on no base.
        let listed = |base: &&String| slices[0].sources.iter().any(|s| s.model == **base);
        if let Some(base) = base.as_ref().filter(|b| config.get("models").is_some() && method.base == Base::None && !listed(b))
            && slices[0].sources.len() < method.models.1
        {
            slices[0].sources.push(Source { model: base.clone(), layers: None, parameters: Json::Null });
        }
        let source = config.get("tokenizer_source").filter(|s| !s.is_null());
        let tokenizer = match (config.get("tokenizer").filter(|t| !t.is_null()), source) {
            (Some(tokenizer), _) => Some(tokenizer.clone()),
            (None, Some(source)) => Some(serde_json::json!({ "source": source })),
            (None, None) => None,
        };
        Ok(Planner { config, folder, earlier, method, preset, slices, base, tokenizer, models: Vec::new(), propagate_nan: false })
    }

    fn path(&self, model: &str) -> PathBuf {
        self.earlier.get(model).cloned().unwrap_or_else(|| self.folder.join(model))
    }

    /// The base and the adapter of `base+adapter`.
    pub(super) fn behind_base<'n>(&self, name: &'n str) -> Option<(&'n str, &'n str)> {
        name.split_once('+').filter(|_| !self.path(name).exists())
    }

    /// The number of a model among those that are open; it is opened where it isn't.
    fn model(&mut self, name: &str) -> Result<usize> {
        if let Some(at) = self.models.iter().position(|m| m.name == name) {
            return Ok(at);
        }
        let model = match self.behind_base(name) {
            Some((base, adapter)) => {
                let (base, adapter) = (self.open(base)?, self.open(adapter)?);
                let mut tensors = base.tensors.clone();
                tensors.extend(adapter.tensors.clone());
                let source = Checkpoint { path: base.path.clone(), tensors, metadata: adapter.metadata.clone() };
                let Model { checkpoint, .. } = lora::applied(Model::new(name, adapter), &base)?;
                let checkpoint = Checkpoint { path: base.path, ..checkpoint };
                Model { source: Some(Box::new(source)), ..Model::new(name, checkpoint) }
            }
            None => {
                let alone = lora::beside(vec![Model::new(name, self.open(name)?)], None, &mut Vec::new());
                alone.map_err(|e| e.with_help(format!("write `base+{name}`, with the model that it was trained on")))?.remove(0)
            }
        };
        self.models.push(model);
        Ok(self.models.len() - 1)
    }

    pub(super) fn open(&self, name: &str) -> Result<Checkpoint> {
        let opened = Checkpoint::open(self.path(name)).map(|checkpoint| checkpoint.lenient(self.propagate_nan));
        opened.map_err(|e| {
            let below = if self.folder.as_os_str().is_empty() {
                "the current folder".to_owned()
            } else {
                self.folder.display().to_string()
            };
            e.with_help(format!("`{name}` is a folder or a file below {below}; models are not downloaded"))
        })
    }

    /// How many layers a model has: what its config says, or what its tensors show.
    fn layers(&self, model: usize) -> usize {
        let checkpoint = &self.models[model].checkpoint;
        layers_said(checkpoint).unwrap_or_else(|| {
            let stems = stems(checkpoint.tensors.keys(), None);
            let layers = checkpoint.tensors.keys().filter_map(|name| layer_of(name)).filter(|(stem, ..)| stems.contains(*stem));
            layers.map(|(_, layer, _)| layer + 1).max().unwrap_or(0)
        })
    }

    /// The setting of a parameter: of this source, else of the slice, else of the config.
    fn setting(&self, name: &str, slice: &Slice, source: Option<&Source>, tensor: &str, t: f64) -> Option<Json> {
        let parameters = source.map(|s| &s.parameters).into_iter().chain([&slice.parameters, &self.config["parameters"]]);
        parameters.filter_map(|p| p.get(name)).find_map(|setting| evaluate(setting, tensor, t))
    }

    /// The parameters of a tensor. Filters of what each model has are of its own name there, which with slices may be another.
    fn params(&self, slice: &Slice, sources: &[(&Source, &str)], tensor: &str, t: f64) -> Result<Params> {
        let mut params = self.preset.clone();
        for param in self.method.params {
            let synonyms = self.method.synonyms.iter().filter(|(_, own)| *own == param.name).map(|(other, _)| *other);
            for name in std::iter::once(param.name).chain(synonyms) {
                let one = |source: Option<&Source>, tensor: &str| {
                    self.setting(name, slice, source, tensor, t).map(|json| to_value(param.kind, name, &json)).transpose()
                };
                let value = if param.per_model {
                    let values: Vec<Option<Value>> = sources.iter().map(|(s, own)| one(Some(s), own)).collect::<Result<_>>()?;
                    if values.iter().all(Option::is_none) {
                        continue;
                    }
                    // Some models say it and others don't: those get the default.
                    let usual = if param.name == "epsilon" { methods::della::MERGEKIT_EPSILON } else { 1.0 };
                    let default = || Value::Number(param.default.parse().unwrap_or(usual));
                    Value::List(values.into_iter().map(|v| v.unwrap_or_else(default)).collect())
                } else {
                    match one(None, tensor)? {
                        Some(value) => value,
                        None => continue,
                    }
                };
                params.insert(param.name.to_owned(), value);
            }
        }
        Ok(params)
    }

    /// The names of parameters that nothing reads.
    fn strangers(&self) -> BTreeSet<String> {
        let sources = self.slices.iter().flat_map(|s| s.sources.iter().map(|s| &s.parameters));
        let all = sources.chain(self.slices.iter().map(|s| &s.parameters)).chain([&self.config["parameters"]]);
        let names = all.filter_map(Json::as_object).flat_map(|map| map.keys());
        names.filter(|name| self.method.param(name).is_none()).cloned().collect()
    }

    /// Models without the weight that mergekit asks for.
    fn unweighted(&self) -> Option<String> {
        let asks = self.method.param("weight").is_some_and(|p| p.per_model)
            && !["karcher", "model_stock", "sce"].contains(&self.method.name);
        let said = |slice: &Slice, source: &Source| {
            [&source.parameters, &slice.parameters, &self.config["parameters"]].iter().any(|p| p.get("weight").is_some())
        };
        let lacking = self.slices.iter().find_map(|slice| {
            let merged = slice.sources.iter().filter(|s| self.method.base == Base::None || Some(&s.model) != self.base.as_ref());
            merged.into_iter().find(|source| !said(slice, source))
        });
        lacking.filter(|_| asks).map(|source| format!("`{}` has no weight, which mergekit refuses: it is taken as 1", source.model))
    }

    pub(super) fn options(&self, options: &Options) -> Result<Options> {
        for key in ["out_dtype", "dtype"] {
            if let Some(other) = self.config.get(key).filter(|v| !v.is_null() && !v.is_string()) {
                return Err(wrong(format!("{key} is the name of a type, not {other}")).with_help("dtype: bfloat16"));
            }
        }
        let dtype = ["out_dtype", "dtype"].iter().find_map(|key| self.config.get(*key)?.as_str());
        let out_dtype = dtype.map(dtype::parse).transpose()?.or(options.out_dtype);
        Ok(Options { out_dtype, semantics: Semantics::Mergekit, ..options.clone() })
    }

    pub(super) fn plan(mut self, options: &Options) -> Result<Stage> {
        let options = self.options(options)?;
        self.propagate_nan = options.propagate_nan;
        // `dtype` is what the models are read in, and written in unless out_dtype says otherwise.
        let dtype = self.config.get("dtype").and_then(Json::as_str).map(dtype::parse).transpose()?;
        let slices = self.slices.clone();
        let mut files = Files::default();
        for slice in &slices {
            for name in slice.sources.iter().map(|s| &s.model).chain(&slice.base) {
                self.model(name)?;
            }
        }
        let base = self.base.clone().map(|name| self.model(&name)).transpose()?;
        for model in &mut self.models {
            model.checkpoint = model.checkpoint.clone().lenient(options.propagate_nan);
        }
        let companion = self.models[base.unwrap_or(0)].checkpoint.folder().to_owned();
        let tokens = match &self.tokenizer {
            None => None,
            Some(json) => {
                let folders: Vec<(String, PathBuf)> =
                    self.models.iter().map(|m| (m.name.clone(), m.checkpoint.folder().to_owned())).collect();
                Some(tokenizer::plan(json, &folders, base)?)
            }
        };
        let mut notes: Vec<String> = self
            .strangers()
            .into_iter()
            .map(|name| format!("`{}` has no parameter `{name}`: it has no effect", self.method.name))
            .collect();
        let unknown = self.config.as_object().into_iter().flat_map(|map| map.keys()).filter(|key| !KEYS.contains(&key.as_str()));
        notes.extend(unknown.map(|key| format!("a config has no `{key}`: it has no effect")));
        notes.extend(in_vain(self.config));
        notes.extend(self.unweighted());
        if self.config.get("models").is_some() && slices.iter().flat_map(|s| &s.sources).any(|s| s.layers.is_some()) {
            notes.push("`layer_range` of `models` is taken at its word; mergekit passes over it there".into());
        }
        let stems: BTreeSet<String> =
            self.models.iter().flat_map(|model| stems(model.checkpoint.tensors.keys(), layers_said(&model.checkpoint))).collect();
        let layer_of = |name: &str| {
            layer_of(name).filter(|(stem, ..)| stems.contains(*stem)).map(|(stem, n, rest)| (stem.to_owned(), n, rest.to_owned()))
        };
        let mut tasks = Vec::new();
        // Where each layer of the output comes from: a model, and the number of the layer there.
        let mut origins: Vec<(usize, usize)> = Vec::new();
        for (number, slice) in slices.iter().enumerate() {
            let base = slice.base.clone().map(|name| self.model(&name)).transpose()?.or(base);
            let members: Vec<usize> = slice.sources.iter().map(|s| self.model(&s.model)).collect::<Result<_>>()?;
            let ranges: Vec<(usize, usize)> =
                slice.sources.iter().zip(&members).map(|(s, m)| s.layers.unwrap_or((0, self.layers(*m)))).collect();
            let count = ranges[0].1 - ranges[0].0;
            if let Some(at) = ranges.iter().position(|(from, to)| to - from != count) {
                return Err(wrong(format!(
                    "slice {} takes {count} layers of `{}` and {} of `{}`",
                    number + 1,
                    slice.sources[0].model,
                    ranges[at].1 - ranges[at].0,
                    slice.sources[at].model
                )));
            }
            // What the base gives: its own range where it is a source, else that of the first.
            let base_range = members.iter().position(|m| Some(*m) == base).map_or(ranges[0], |at| ranges[at]);
            // A slice of the base alone, or of one model that would be turned towards another, is that model's.
            let between = matches!(self.method.name, "slerp" | "nuslerp");
            let alone = self.method.base != Base::None && members.len() == 1 && (between || Some(members[0]) == base);
            let mut job =
                |planner: &mut Planner<'_>, names: Vec<Option<String>>, of_base: Option<String>, out: &str, t: f64| -> Result<()> {
                    let mut chosen: Vec<(usize, usize)> = Vec::new();
                    for (at, name) in names.iter().enumerate() {
                        let takes_base = planner.method.base != Base::None && !alone;
                        if name.is_some() && !(takes_base && Some(members[at]) == base) {
                            chosen.push((at, members[at]));
                        }
                    }
                    let sources: Vec<(&Source, &str)> =
                        chosen.iter().map(|(at, _)| (&slice.sources[*at], names[*at].as_deref().unwrap_or_default())).collect();
                    let tensor_at = |model: usize, name: &str| -> Result<crate::checkpoint::Tensor> {
                        let model = &planner.models[model];
                        let tensor = model.checkpoint.get(name).or_else(|| tied(&model.checkpoint, name)).ok_or_else(|| {
                            wrong(format!("`{}` has no tensor `{name}`", model.name))
                                .with_help("models of one merge have the same layers; mind layer_range")
                        })?;
                        let tensor = match &tokens {
                            Some(tokens) if tokenizer::has_rows(name) => tokens.rows(&planner.models, &model.name, name, tensor)?,
                            _ => tensor.clone(),
                        };
                        let rounds = dtype.filter(|_| dtype::is_float(tensor.dtype));
                        Ok(rounds.map_or_else(|| tensor.clone(), |dtype| tensor.rounded(dtype)))
                    };
                    let mut inputs = Vec::new();
                    for (place, (at, model)) in chosen.iter().enumerate() {
                        let name = names[*at].as_deref().unwrap_or_default();
                        inputs.push(Input { tensor: tensor_at(*model, name)?, hash: [0; 32], place, model: *model });
                    }
                    let of_base = match (base, of_base) {
                        (Some(model), Some(name)) if planner.method.base != Base::None && !alone => {
                            Some(Input { tensor: tensor_at(model, &name)?, hash: [0; 32], place: usize::MAX, model })
                        }
                        _ => None,
                    };
                    let all = || inputs.iter().map(|i| &i.tensor).chain(of_base.as_ref().map(|b| &b.tensor));
                    if all().any(|tensor| !dtype::is_float(tensor.dtype)) {
                        tasks.extend(copy_task(out, all().cloned(), options.out_dtype)?);
                        return Ok(());
                    }
                    let choice = if alone {
                        choose("passthrough", &Params::new(), &Options { common: Params::new(), ..options.clone() }, 1, &mut files)?
                    } else {
                        let params = planner.params(slice, &sources, out, t)?;
                        choose(planner.method.name, &params, &options, inputs.len(), &mut files)?
                    };
                    tasks.push(merge_task(out, &choice, inputs, of_base, options.out_dtype)?);
                    Ok(())
                };
            for step in 0..count {
                let t = if count > 1 { step as f64 / (count - 1) as f64 } else { 1.0 };
                // What the layer is made of, over all sources.
                let mut parts: BTreeSet<(String, String)> = BTreeSet::new();
                for (model, range) in members.iter().zip(&ranges) {
                    let names = self.models[*model]
                        .checkpoint
                        .tensors
                        .keys()
                        .filter(|name| is_weight(name))
                        .filter_map(|name| layer_of(name));
                    let here = names.filter(|(_, layer, _)| *layer == range.0 + step);
                    parts.extend(here.map(|(stem, _, rest)| (stem, rest)));
                }
                if parts.is_empty() {
                    return Err(wrong(format!("`{}` has no layer {}", slice.sources[0].model, ranges[0].0 + step))
                        .with_help("mind layer_range"));
                }
                for (stem, rest) in parts {
                    let names = ranges.iter().map(|(from, _)| Some(format!("{stem}{}{rest}", from + step))).collect();
                    let of_base = Some(format!("{stem}{}{rest}", base_range.0 + step));
                    job(&mut self, names, of_base, &format!("{stem}{}{rest}", origins.len()), t)?;
                }
                origins.push((members[0], ranges[0].0 + step));
            }
            // What stands before the layers goes with the first slice, what stands after them with the last; a gradient begins there.
            let outside: BTreeSet<String> = members
                .iter()
                .flat_map(|m| self.models[*m].checkpoint.tensors.keys())
                .filter(|name| is_weight(name) && layer_of(name).is_none())
                .cloned()
                .collect();
            for name in outside {
                let belongs = if is_first(&name) { number == 0 } else { number + 1 == slices.len() };
                if belongs {
                    job(&mut self, vec![Some(name.clone()); members.len()], Some(name.clone()), &name, 0.0)?;
                }
            }
        }
        tasks.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(twice) = tasks.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(wrong(format!("tensor `{}` would be made twice", twice[0].name)));
        }
        let layers = origins.into_iter().map(|(model, layer)| (self.models[model].checkpoint.folder().to_owned(), layer)).collect();
        let chat_template = match self.config.get("chat_template").filter(|t| !t.is_null()) {
            Some(wanted) => chat::template(&text_of(wanted, "chat_template")?, &self.models, &mut notes)?,
            None => None,
        };
        let context = tokens.as_ref().map(Tokens::describe).unwrap_or_default();
        // The contributions are the models that are merged; the base is by itself, and what nothing reads is none.
        let inputs = || tasks.iter().filter_map(|task| if let How::Merge(merge) = &task.how { Some(&**merge) } else { None });
        let mut used: BTreeSet<usize> = inputs().flat_map(|merge| merge.models.iter().map(|input| input.model)).collect();
        used.extend(inputs().filter_map(|merge| merge.base.as_ref()).map(|input| input.model).filter(|model| Some(*model) != base));
        let copied = |model: &Model| {
            let of = |t: &crate::checkpoint::Tensor| model.checkpoint.get(t.name()).is_some_and(|own| own.file() == t.file());
            tasks.iter().any(|task| matches!(&task.how, How::Copy { from, .. } if of(from)))
        };
        used.extend((0..self.models.len()).filter(|at| Some(*at) != base && copied(&self.models[*at])));
        let based = base.is_some_and(|base| inputs().any(|merge| merge.base.as_ref().is_some_and(|input| input.model == base)));
        let places: BTreeMap<usize, usize> = used.iter().enumerate().map(|(place, model)| (*model, place)).collect();
        for task in &mut tasks {
            let How::Merge(merge) = &mut task.how else { continue };
            let Merge { models, base: of_base, .. } = &mut **merge;
            for input in models.iter_mut().chain(of_base) {
                // What is no contribution is the base.
                input.model = places.get(&input.model).copied().unwrap_or(usize::MAX);
            }
        }
        let base = base.filter(|_| based).map(|at| self.models[at].clone());
        let models = self.models.into_iter().enumerate().filter(|(at, _)| used.contains(at)).map(|(_, model)| model).collect();
        let name = self.config.get("name").and_then(Json::as_str).map(str::to_owned);
        let plan = Plan { models, base, tasks, options, notes, context };
        Ok(Stage { name, plan, companion, layers, tokens, chat_template })
    }

    pub(super) fn statement(&self, out: &str) -> Option<String> {
        let slice = &self.slices[0];
        let takes_base = self.method.base != Base::None;
        let models: Vec<&Source> = slice.sources.iter().filter(|s| !(takes_base && Some(&s.model) == self.base.as_ref())).collect();
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let parameters = |json: &Json| {
            json.as_object().into_iter().flat_map(|map| map.values().cloned().collect::<Vec<_>>()).collect::<Vec<Json>>()
        };
        let all = slice.sources.iter().flat_map(|s| parameters(&s.parameters)).chain(parameters(&self.config["parameters"]));
        // Numbers alone: what varies by layer or by tensor would need a rule for each.
        if all.into_iter().any(|json| json.is_array() || json.is_object()) {
            return None;
        }
        let unnamed: Vec<(&Source, &str)> = models.iter().map(|s| (*s, "")).collect();
        let params = self.params(slice, &unnamed, "", 0.0).ok()?;
        // A contribution is named by what the config calls it: random numbers and the order of sums follow from that.
        let list: Vec<String> = models
            .iter()
            .map(|s| format!("{} AS \"{}\"", quoted(&self.path(&s.model).to_string_lossy()), s.model.replace('"', "\"\"")))
            .collect();
        let mut text = format!("MERGE MODELS {}", list.join(", "));
        if let Some(base) = self.base.as_ref().filter(|_| takes_base) {
            text += &format!("\n  BASE {}", quoted(&self.path(base).to_string_lossy()));
        }
        let shown: Vec<String> = params
            .iter()
            .map(|(name, value)| match value {
                Value::List(values) if values.windows(2).all(|v| v[0] == v[1]) => format!("{name} = {}", values[0]),
                value => format!("{name} = {value}"),
            })
            .collect();
        text += &format!("\n  STRATEGY * = {}", self.method.name);
        if !shown.is_empty() {
            text += &format!("({})", shown.join(", "));
        }
        let said = |keys: &[&str]| keys.iter().find_map(|key| self.config.get(*key)?.as_str()).map(dtype::parse).transpose();
        let (read, written) = (said(&["dtype"]).ok()?, said(&["out_dtype", "dtype"]).ok()?);
        let option =
            |name: &str, dtype: Option<dtype::Dtype>| dtype.map(|d| format!("{name} = '{}', ", dtype::name(d))).unwrap_or_default();
        let with = option("dtype", read) + &option("out_dtype", written);
        Some(text + &format!("\n  WITH ({with}semantics = 'mergekit')\n  INTO {};", quoted(out)))
    }
}

/// The number of layers that the config of a model says.
fn layers_said(checkpoint: &Checkpoint) -> Option<usize> {
    let config = config_of(checkpoint.folder())?;
    layer_count(&config).or_else(|| layer_count(config.get("text_config")?)).map(|(_, n)| n)
}
