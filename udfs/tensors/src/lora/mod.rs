//! Low-rank adapters (Hu et al. 2022, LoRA, arXiv:2106.09685) in the files of PEFT: `adapter_model.safetensors` with factors A [r, in] and
//! B [out, r] of each module, `adapter_config.json` with their scale. They are merged as the change s B A that they stand for, never A and B
//! apart: factors of one change differ by any invertible matrix.

use crate::checkpoint::Tensor;
use crate::linalg::{self, Mat};
use crate::method::{Kind, Params, Settings, Value};
use crate::methods;
use crate::plan::{How, Model, Options, Plan, Request, Task};
use crate::sealed::contribution;
use mergeql_udfs::merkle::hex;
use mergeql_udfs::{Code, Error, Result};
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};

mod apply;
mod extract;

pub use apply::{applied, beside, is_adapter};
use extract::NAME as EXTRACT;

/// The strategies of adapters.
pub const STRATEGIES: [&str; 5] = ["lora_svd", "lora_cat", "lora_knots", "lora_knots_ties", EXTRACT];

/// Whether a strategy merges adapters.
pub fn is_strategy(name: &str) -> bool {
    STRATEGIES.contains(&name)
}

/// A module's factors.
#[derive(Debug, Clone)]
struct Module {
    a: Tensor,
    b: Tensor,
    scale: f64,
}

/// An adapter.
#[derive(Debug)]
struct Adapter {
    modules: BTreeMap<String, Module>,
    /// Tensors that take the place of the model's own (`modules_to_save`).
    whole: BTreeMap<String, Tensor>,
    /// Its config, for the fields that are copied.
    config: Json,
}

/// The module of a factor's name, whether it is A, and what follows.
fn factor(name: &str) -> Option<(&str, bool, &str)> {
    [(".lora_A", true), (".lora_B", false)].into_iter().find_map(|(mark, is_a)| {
        let at = name.find(mark)?;
        Some((&name[..at], is_a, &name[at + mark.len()..]))
    })
}

/// The name of a module in the base model: PEFT's own prefix is not part of it.
fn in_base(module: &str) -> &str {
    module.strip_prefix("base_model.model.").unwrap_or(module)
}

/// The value for a module in a pattern map of PEFT: keys are regular expressions for the ends of names.
fn by_pattern(map: &Json, module: &str) -> Result<Option<f64>> {
    for (key, value) in map.as_object().into_iter().flatten() {
        let pattern = regex::Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"))
            .map_err(|e| Error::invalid_argument(format!("the pattern `{key}` of the adapter's config is none: {e}")))?;
        if pattern.is_match(in_base(module)) {
            return Ok(value.as_f64());
        }
    }
    Ok(None)
}

impl Adapter {
    fn of(model: &Model) -> Result<Adapter> {
        let wrong = |what: String| {
            Error::invalid_argument(format!("`{}` is no adapter: {what}", model.checkpoint.path.display()))
                .with_help("an adapter has tensors `<module>.lora_A.weight` and `<module>.lora_B.weight`")
        };
        let path = model.checkpoint.folder().join("adapter_config.json");
        let config: Json = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| Error::new(Code::Io, format!("`{}`: {e}", path.display())))?,
            // A file by itself is the change itself; a folder is an adapter of PEFT, whose scale is in its config.
            Err(_) if !model.checkpoint.path.is_dir() => Json::Null,
            Err(e) => {
                return Err(Error::new(Code::Io, format!("`{}`: {e}", path.display()))
                    .with_help("a folder is an adapter of PEFT, whose scale is in its config; name the file itself where the factors are the change"));
            }
        };
        let unscaled = |what: &str| {
            Err(Error::invalid_argument(format!("`{}` {what}", path.display()))
                .with_help("an adapter of PEFT has `peft_type` LORA and `lora_alpha`"))
        };
        if config.is_object() && config["lora_alpha"].as_f64().is_none() {
            return unscaled("has no lora_alpha, and so no scale");
        }
        if config["peft_type"].as_str().is_some_and(|kind| kind != "LORA") {
            return unscaled("is the config of another kind of adapter than LORA");
        }
        if let Some(how) = config["init_lora_weights"].as_str().filter(|how| {
            let how = how.to_ascii_lowercase();
            ["pissa", "olora", "corda"].iter().any(|one| how.starts_with(one))
        }) {
            return Err(Error::new(
                Code::Unsupported,
                format!("`{}` is of a base that was changed before it was trained (init_lora_weights: {how})", path.display()),
            )
            .with_help("save it as an ordinary adapter: PEFT converts it with path_initial_model_for_weight_conversion"));
        }
        if config["use_dora"].as_bool() == Some(true) {
            return Err(Error::new(
                Code::Unsupported,
                format!("`{}` is an adapter with magnitudes (DoRA), which are not merged", model.checkpoint.path.display()),
            ));
        }
        let mut pairs: BTreeMap<String, (Option<Tensor>, Option<Tensor>)> = BTreeMap::new();
        let mut whole = BTreeMap::new();
        for (name, tensor) in &model.checkpoint.tensors {
            let Some((module, is_a, rest)) = factor(name) else {
                if name.contains(".lora_") {
                    let what = if name.contains("magnitude") { "a magnitude (DoRA)" } else { "a factor of an embedding" };
                    return Err(Error::new(
                        Code::Unsupported,
                        format!("tensor `{name}` of `{}` is {what}, which is not merged", model.checkpoint.path.display()),
                    ));
                }
                whole.insert(name.clone(), tensor.clone());
                continue;
            };
            let file = model.checkpoint.path.display();
            if rest.ends_with(".bias") {
                return Err(Error::new(
                    Code::Unsupported,
                    format!("tensor `{name}` of `{file}` is the bias of a factor, which is not merged"),
                )
                .with_help("merge it into a model with PEFT first, and merge that"));
            }
            let pair = pairs.entry(module.to_owned()).or_default();
            if let Some(other) = (if is_a { &mut pair.0 } else { &mut pair.1 }).replace(tensor.clone()) {
                let message =
                    format!("tensors `{}` and `{name}` of `{file}` are factors of one module by two adapters", other.name());
                return Err(Error::new(Code::Unsupported, message).with_help("save each adapter to a file of its own"));
            }
        }
        let mut modules = BTreeMap::new();
        for (module, pair) in pairs {
            let (Some(a), Some(b)) = pair else { return Err(wrong(format!("module `{module}` has one factor"))) };
            if a.shape.len() != 2 || b.shape.len() != 2 || a.shape[0] != b.shape[1] {
                return Err(wrong(format!("the factors of `{module}` have the shapes {:?} and {:?}", a.shape, b.shape)));
            }
            let rank = by_pattern(&config["rank_pattern"], &module)?.unwrap_or(a.shape[0] as f64);
            if rank != a.shape[0] as f64 {
                return Err(wrong(format!("the config says rank {rank} for `{module}`, its factors have {}", a.shape[0])));
            }
            // Without a config the factors are the change itself.
            let alpha = by_pattern(&config["alpha_pattern"], &module)?.or(config["lora_alpha"].as_f64()).unwrap_or(rank);
            let scale = if config["use_rslora"].as_bool() == Some(true) { alpha / rank.sqrt() } else { alpha / rank };
            modules.insert(module, Module { a, b, scale });
        }
        Ok(Adapter { modules, whole, config })
    }
}

/// The best factors of rank `rank` of the sum of w s B A (Eckart, Young 1936): by the QR of the stacked factors and the SVD of what is
/// between them, so that no matrix is as large as the change.
fn svd(parts: &[(Mat<f64>, Mat<f64>)], rank: usize) -> Result<(Mat<f64>, Mat<f64>)> {
    let (a, b) = stacked(parts);
    let (q_b, r_b) = qr(&b);
    let (q_a, r_a) = qr(&a.transpose().to_owned());
    let core = linalg::svd(&(r_b * r_a.transpose()))?;
    let rank = rank.min(core.s.len());
    let roots: Vec<f64> = core.s[..rank].iter().map(|s| s.sqrt()).collect();
    let left = Mat::from_fn(core.u.nrows(), rank, |r, c| core.u[(r, c)] * roots[c]);
    let right = Mat::from_fn(core.v.nrows(), rank, |r, c| core.v[(r, c)] * roots[c]);
    Ok(((q_a * right).transpose().to_owned(), q_b * left))
}

/// All A below each other, all w s B beside each other.
fn stacked(parts: &[(Mat<f64>, Mat<f64>)]) -> (Mat<f64>, Mat<f64>) {
    let a: Vec<Mat<f64>> = parts.iter().map(|(a, _)| a.transpose().to_owned()).collect();
    let b: Vec<Mat<f64>> = parts.iter().map(|(_, b)| b.clone()).collect();
    (linalg::beside(&a).transpose().to_owned(), linalg::beside(&b))
}

fn qr(matrix: &Mat<f64>) -> (Mat<f64>, Mat<f64>) {
    let found = matrix.qr();
    (found.compute_thin_Q(), found.thin_R().to_owned())
}

/// Parameters as they are checked for other methods.
const METHOD: crate::method::Method = crate::method::Method {
    name: "lora",
    params: &[
        crate::method::each("weight", Kind::Number, "1", "how much each adapter counts"),
        crate::method::param("rank", Kind::Count, "0", "the rank of the result; 0 for as many as it takes to lose nothing"),
        crate::method::param("topk", Kind::Share, "1", "for knots: the share of each block that is kept"),
        crate::method::param("inner", Kind::Word(&["ties", "linear"]), "ties", "for knots: how the aligned blocks become one"),
        crate::method::param("lambda", Kind::Number, "1", "scales the merged change"),
    ],
    ..crate::method::Method::COMMON
};

static LORA: crate::method::Method = METHOD;

/// The parameters of the strategies that merge factors.
pub fn parameters() -> &'static crate::method::Method {
    &LORA
}

/// The parameters of one of the strategies.
pub(crate) fn parameters_of(strategy: &str) -> &'static crate::method::Method {
    if strategy == EXTRACT { extract::parameters() } else { &LORA }
}

/// Plans a merge of adapters; one strategy for all modules, or one by pattern of module names. The factors are small, so they are made here.
///
/// # Errors
/// `invalid_argument` for models that are no adapters; `type_mismatch` for modules of other shapes; those of the strategies.
pub fn plan(request: Request) -> Result<(Plan, Json)> {
    let Request { mut models, base, rules, options } = request;
    if rules.iter().any(|rule| rule.strategy == EXTRACT) {
        return extract::plan(Request { models, base, rules, options });
    }
    if base.is_some() {
        return Err(Error::invalid_argument("the factors of adapters are merged without a base").with_help(
            "leave BASE out; or choose a strategy of models, which merges the models that base and adapters stand for together",
        ));
    }
    refuse_options(&options)?;
    for model in &mut models {
        model.checkpoint = model.checkpoint.clone().lenient(options.propagate_nan);
    }
    // By hash, so that the order of the statement counts for nothing.
    let mut hashes = Vec::new();
    for model in &models {
        hashes.push(contribution(&model.name, &model.checkpoint, model.weight, None)?);
    }
    let mut order: Vec<usize> = (0..models.len()).collect();
    order.sort_by_key(|i| hashes[*i]);
    order.dedup_by_key(|i| hashes[*i]);
    let adapters: Vec<Adapter> = models.iter().map(Adapter::of).collect::<Result<_>>()?;
    if let Some((model, name)) = models.iter().zip(&adapters).find_map(|(m, a)| Some((m, a.whole.keys().next()?))) {
        return Err(Error::invalid_argument(format!("tensor `{name}` of `{}` is no factor", model.checkpoint.path.display()))
            .with_help("with a BASE adapters are merged as the models that they stand for, whole tensors too"));
    }
    let names: BTreeSet<&String> = adapters.iter().flat_map(|a| a.modules.keys()).collect();
    let (mut tasks, mut context, mut ranks) = (Vec::new(), String::new(), BTreeMap::new());
    for name in names {
        let rule = crate::plan::rule_of(&rules, name).ok_or_else(|| {
            Error::invalid_argument(format!("no rule is for the module `{name}`"))
                .with_help("add a rule for the rest: * = lora_svd")
        })?;
        if !is_strategy(&rule.strategy) {
            methods::find(&rule.strategy)?;
            return Err(Error::invalid_argument(format!(
                "`{}` merges models, and module `{name}` is one of adapters",
                rule.strategy
            ))
            .with_help(format!("use one of {}", STRATEGIES.join(", "))));
        }
        let mut params: Params = options.common.clone().into_iter().filter(|(n, _)| LORA.param(n).is_some()).collect();
        if models.iter().any(|m| m.weight.is_some()) {
            if rule.params.contains_key("weight") || params.contains_key("weight") {
                return Err(Error::invalid_argument(format!(
                    "the adapters have weights, and the rule for `{}` has others",
                    rule.pattern
                ))
                .with_help("write WEIGHT after the adapters, or weight = [...] in the rules"));
            }
            params.insert("weight".into(), Value::List(models.iter().map(|m| Value::Number(m.weight.unwrap_or(1.0))).collect()));
        }
        let of_others: &[&str] = match rule.strategy.as_str() {
            "lora_cat" => &["rank", "topk", "inner"],
            "lora_svd" => &["topk", "inner"],
            _ => &[],
        };
        if let Some(name) = rule.params.keys().find(|name| of_others.contains(&name.as_str())) {
            return Err(Error::invalid_argument(format!("`{}` has no parameter `{name}`", rule.strategy)));
        }
        params.extend(rule.params.clone());
        let settings = Settings::new(&LORA, &params, options.semantics, models.len())?;
        let inner = settings.word("inner").unwrap_or("ties");
        if rule.strategy == "lora_knots" && inner == "linear" {
            let sum: f64 = order.iter().map(|place| settings.of_model("weight", *place).unwrap_or(1.0)).sum();
            if sum.abs() < 1e-12 {
                return Err(Error::invalid_argument("the weights of the adapters sum to zero").with_help("change one of them"));
            }
        }
        let number = |name: &str| settings.number(name).unwrap_or(0.0);
        let lambda = number("lambda");
        let mut parts = Vec::new();
        let mut weights = Vec::new();
        let mut shape: Option<(usize, usize)> = None;
        for place in &order {
            // A module that an adapter lacks is one that it does not change.
            let Some(module) = adapters[*place].modules.get(name) else { continue };
            let own = (module.b.shape[0], module.a.shape[1]);
            if *shape.get_or_insert(own) != own {
                return Err(Error::type_mismatch(format!(
                    "module `{name}` changes a matrix of {shape:?} in one adapter and of {own:?} in another"
                ))
                .with_help("adapters of one merge are for one base"));
            }
            let weight = settings.of_model("weight", *place).unwrap_or(1.0);
            let (a, b) = (linalg::matrix(&module.a)?, linalg::matrix(&module.b)?);
            let scale = module.scale * if rule.strategy.starts_with("lora_knots") { 1.0 } else { weight * lambda };
            parts.push((a, Mat::from_fn(b.nrows(), b.ncols(), |r, c| scale * b[(r, c)])));
            weights.push(weight);
        }
        let total: usize = parts.iter().map(|(a, _)| a.nrows()).sum();
        let (out, input) = shape.unwrap_or_default();
        let rank = match number("rank") as usize {
            0 => total.min(out).min(input),
            rank => rank,
        };
        let (a, b) = match rule.strategy.as_str() {
            "lora_svd" => svd(&parts, rank)?,
            "lora_cat" => stacked(&parts),
            _ => {
                let changes: Vec<Mat<f64>> = parts.iter().map(|(a, b)| b * a).collect();
                let merged = methods::knots(&changes, &weights, inner, number("topk"))?;
                let found = linalg::svd(&merged)?;
                let kept = rank.min(found.s.iter().filter(|s| **s > found.s[0] * 1e-12).count().max(1));
                let roots: Vec<f64> = found.s[..kept].iter().map(|s| (lambda.abs() * s).sqrt()).collect();
                let b = Mat::from_fn(out, kept, |r, c| lambda.signum() * found.u[(r, c)] * roots[c]);
                (Mat::from_fn(kept, input, |r, c| found.v[(c, r)] * roots[r]), b)
            }
        };
        ranks.insert(name.clone(), a.nrows());
        let listed: Vec<String> = order.iter().map(|place| hex(&hashes[*place])).collect();
        let ordered: Vec<f64> = order.iter().map(|place| settings.of_model("weight", *place).unwrap_or(1.0)).collect();
        context += &format!(
            "{name}: {}({ordered:?} {:?}) of {listed:?}\n",
            rule.strategy,
            settings.iter().filter(|(n, _)| *n != "weight").collect::<Vec<_>>()
        );
        // The names of the first adapter that has the module, by hash.
        let like = order
            .iter()
            .find_map(|place| adapters[*place].modules.get(name))
            .ok_or_else(|| Error::invalid_argument("no adapter"))?;
        let factors = order.iter().filter_map(|place| adapters[*place].modules.get(name)).flat_map(|m| [m.a.dtype, m.b.dtype]);
        let dtype = options.out_dtype.or_else(|| crate::plan::common_dtype(factors)).unwrap_or(like.a.dtype);
        let having = || order.iter().filter_map(|place| Some((&models[*place].name, adapters[*place].modules.get(name)?)));
        let from: Vec<String> = having().map(|(model, _)| model.clone()).collect();
        let read = |t: &Tensor| t.bytes.end - t.bytes.start;
        let all = settings.iter().filter(|(name, _)| *name != "weight").map(|(name, value)| format!("{name} = {value}"));
        let with: Vec<String> = std::iter::once(format!("weight = {ordered:?}")).chain(all).collect();
        for (which, (tensor, factor)) in [(&like.a, &a), (&like.b, &b)].into_iter().enumerate() {
            let shape = vec![factor.nrows(), factor.ncols()];
            let made = Tensor::memory(tensor.name(), &shape, linalg::elements(factor.as_ref()));
            let reads = having().map(|(_, module)| read(if which == 0 { &module.a } else { &module.b })).sum();
            let by = STRATEGIES.into_iter().find(|s| *s == rule.strategy).unwrap_or(STRATEGIES[0]);
            let how = How::Made { by, with: with.join(", "), from: from.clone(), reads, tensor: made };
            tasks.push(Task { name: tensor.name().to_owned(), shape, dtype, how });
        }
    }
    tasks.sort_by(|a, b| a.name.cmp(&b.name));
    let mut notes = Vec::new();
    let config = config(&adapters, &order, &ranks, &mut notes);
    Ok((Plan { models, base: None, tasks, options, notes, context }, config))
}

/// Options that make other tensors of the models' first, of which factors have nothing.
fn refuse_options(options: &Options) -> Result<()> {
    let given = [("names", !options.names.is_empty()), ("align", options.align), ("dtype", options.dtype.is_some())];
    match given.iter().find(|(_, given)| *given) {
        Some((name, _)) => {
            Err(Error::new(Code::UnknownOption, format!("`{name}` means nothing where the factors of adapters are made"))
                .with_help("leave it out; out_dtype is the type of what is written"))
        }
        None => Ok(()),
    }
}

/// The config of the merged adapter: alpha is the rank everywhere, so that the factors are the change itself.
fn config(adapters: &[Adapter], order: &[usize], ranks: &BTreeMap<String, usize>, notes: &mut Vec<String>) -> Json {
    let mut config = order
        .iter()
        .map(|i| &adapters[*i].config)
        .find(|c| c.is_object())
        .cloned()
        .unwrap_or_else(|| json!({ "peft_type": "LORA" }));
    let greatest = ranks.values().max().copied().unwrap_or(0);
    let others = ranks.iter().filter(|(_, rank)| **rank != greatest);
    let others: BTreeMap<String, usize> = others.map(|(name, rank)| (regex::escape(in_base(name)), *rank)).collect();
    // Every module that has factors is a target, or PEFT would not load them.
    let lists = adapters.iter().map(|a| a.config["target_modules"].as_array());
    let targets: BTreeSet<&str> = match lists.collect::<Option<Vec<_>>>() {
        Some(lists) => lists.into_iter().flatten().filter_map(Json::as_str).collect(),
        None => ranks.keys().map(|name| in_base(name)).collect(),
    };
    // What keeps factors of one adapter out would keep those of the others out.
    let limits = ["layers_to_transform", "layers_pattern", "exclude_modules"];
    let differ = limits.iter().any(|limit| adapters.iter().any(|a| a.config[*limit] != adapters[order[0]].config[*limit]));
    if config.get("target_modules").is_some() {
        config["target_modules"] = match differ {
            true => json!(ranks.keys().map(|name| in_base(name)).collect::<Vec<_>>()),
            false => json!(targets),
        };
    }
    if let Some(map) = config.as_object_mut() {
        limits.iter().filter(|_| differ).for_each(|limit| drop(map.remove(*limit)));
        map.remove("init_lora_weights");
    }
    // What it is for is said where all adapters say the same.
    let bases: BTreeSet<Option<&str>> = adapters.iter().map(|a| a.config["base_model_name_or_path"].as_str()).collect();
    if bases.len() > 1 {
        if let Some(map) = config.as_object_mut() {
            map.remove("base_model_name_or_path");
        }
        let named: Vec<&str> = bases.into_iter().map(|base| base.unwrap_or("none")).collect();
        notes.push(format!("the adapters name different bases ({}), so that of the result is not said", named.join(", ")));
    }
    config["r"] = json!(greatest);
    config["lora_alpha"] = json!(greatest);
    config["use_rslora"] = json!(false);
    config["rank_pattern"] = json!(others);
    config["alpha_pattern"] = json!(others);
    config
}
