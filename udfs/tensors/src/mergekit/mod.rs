//! Configs of mergekit, as they are: models or slices with layer ranges, parameters as numbers, gradients and filters, stages, tokenizers.
//! The format is the one that mergekit documents; numbers are those of its version 0.1.5 ([`Semantics::Mergekit`](crate::method::Semantics::Mergekit)).

mod planner;

use crate::model::{self, Extras, Merged};
use crate::output;
use crate::plan::{Options, Plan};
use crate::run::Progress;
use crate::sealed::Sealed;
use crate::tokenizer::Tokens;
use mergeql_udfs::{Code, Error, Result};
pub(crate) use planner::tied;
use planner::{Planner, name_of};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn wrong(message: impl Into<String>) -> Error {
    Error::invalid_argument(message)
}

/// A config: the stages to run one after the other, the last of which is the output.
#[derive(Debug)]
pub struct Config {
    stages: Vec<Json>,
}

/// What a stage makes, beside the plan of its tensors.
#[derive(Debug)]
pub struct Stage {
    /// What later stages call it.
    pub name: Option<String>,
    /// Its tensors.
    pub plan: Plan,
    /// The folder whose config and tokenizer files go along.
    pub companion: PathBuf,
    /// Where each layer of the output comes from: the folder of a model, and the number of the layer there.
    pub layers: Vec<(PathBuf, usize)>,
    /// The tokens of the output, where the config asks for a tokenizer.
    pub tokens: Option<Tokens>,
    /// The template of chats, where the config asks for one.
    pub chat_template: Option<String>,
}

impl Config {
    /// Reads a config.
    ///
    /// # Errors
    /// `syntax` for what is no YAML.
    pub fn parse(text: &str) -> Result<Config> {
        let stages: Vec<Json> =
            serde_saphyr::from_multiple(text).map_err(|e| Error::new(Code::Syntax, format!("the config is no YAML: {e}")))?;
        if stages.is_empty() || stages.iter().any(|s| !s.is_object()) {
            return Err(Error::new(Code::Syntax, "a config is a map with merge_method, and models or slices"));
        }
        Ok(Config { stages })
    }

    /// How many stages there are.
    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    /// Plans a stage. Models are folders or files below `folder`, or stages that ran before.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn stage(&self, index: usize, folder: &Path, earlier: &BTreeMap<String, PathBuf>, options: &Options) -> Result<Stage> {
        Planner::new(&self.stages[index], folder, earlier)?.plan(options)
    }

    /// Whether all stages can be planned, as far as that can be said before the first has run: those of models that are there wholly.
    fn check(&self, folder: &Path, options: &Options) -> Result<()> {
        let mut names: BTreeMap<String, PathBuf> = BTreeMap::new();
        for (index, stage) in self.stages.iter().enumerate() {
            let planner = Planner::new(stage, folder, &names)?;
            let used = planner.slices.iter().flat_map(|s| s.sources.iter().map(|s| &s.model).chain(&s.base)).chain(&planner.base);
            let later = used.flat_map(|name| name.split('+')).any(|name| names.contains_key(name));
            if later {
                planner.options(options)?;
                let known = |name: &&String| !name.split('+').any(|part| names.contains_key(part));
                let files = planner.slices.iter().flat_map(|s| &s.sources).map(|s| &s.model).filter(known);
                files.into_iter().try_for_each(|name| match planner.behind_base(name) {
                    Some((base, adapter)) => planner.open(base).and(planner.open(adapter)).map(drop),
                    None => planner.open(name).map(drop),
                })?;
            } else if self.stages() > 1 {
                self.stage(index, folder, &names, options)?;
            }
            if index + 1 == self.stages() {
                break;
            }
            let name = name_of(stage, "name")?.ok_or_else(|| {
                wrong(format!("stage {} has no name, so no later one can use it", index + 1)).with_help("name: first")
            })?;
            let plain = name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.')) && !name.starts_with('.');
            if !plain {
                return Err(wrong(format!("the name of a stage has letters, digits, `-`, `_` and `.`, not `{name}`")));
            }
            names.insert(name, PathBuf::new());
        }
        Ok(())
    }

    /// The statement that a config of whole models stands for, if one does.
    ///
    /// # Errors
    /// `unsupported` for slices, gradients, several stages, tokenizers, templates of chats and `base+adapter`, which a statement doesn't have; whatever is wrong with the config.
    pub fn statement(&self, folder: &Path, out: &str) -> Result<String> {
        let unsupported = |what: &str| {
            Error::new(Code::Unsupported, format!("a statement has no {what}"))
                .with_help("run the config as it is: mergeql merge-models config.yml --out DIR")
        };
        if self.stages.len() > 1 {
            return Err(unsupported("stages"));
        }
        let stage = &self.stages[0];
        let none = BTreeMap::new();
        let planner = Planner::new(stage, folder, &none)?;
        if stage.get("slices").is_some() {
            return Err(unsupported("slices"));
        }
        if planner.tokenizer.is_some() {
            return Err(unsupported("tokenizer"));
        }
        if stage.get("chat_template").is_some_and(|t| !t.is_null()) {
            return Err(unsupported("chat_template"));
        }
        if planner.slices.iter().flat_map(|s| &s.sources).any(|s| planner.behind_base(&s.model).is_some()) {
            return Err(unsupported("adapters behind bases of their own"));
        }
        planner.statement(out).ok_or_else(|| unsupported("gradients"))
    }
}

/// Runs a config: its stages one after the other, the last into `out`. What the others make is in a folder inside until the end.
///
/// # Errors
/// Whatever is wrong with a stage.
pub fn run(text: &str, folder: &Path, out: &Path, options: &Options, report: impl FnMut(Progress<'_>)) -> Result<Merged> {
    let config = Config::parse(text)?;
    config.check(folder, options)?;
    // Beside a file, inside a folder.
    let inside = match out.extension().is_some_and(|e| e == "safetensors") {
        true => PathBuf::from(format!("{}.stages", out.display())),
        false => out.join(".stages"),
    };
    if config.stages() > 1 && !options.overwrite && !inside.exists() && !output::is_begun(out) {
        output::free(out)?;
    }
    run_stages(&config, folder, out, &inside, options, report).inspect_err(|error| {
        // After a full disk a later run goes on; after a wrong stage there is nothing to go on with.
        if error.code != Code::Io {
            std::fs::remove_dir_all(&inside).ok();
            std::fs::remove_dir(out).ok();
        }
    })
}

fn run_stages(
    config: &Config,
    folder: &Path,
    out: &Path,
    inside: &Path,
    options: &Options,
    mut report: impl FnMut(Progress<'_>),
) -> Result<Merged> {
    let (mut earlier, mut stages) = (BTreeMap::new(), Vec::new());
    for index in 0..config.stages() {
        let stage = config.stage(index, folder, &earlier, options)?;
        let last = index + 1 == config.stages();
        let name = stage.name.clone().unwrap_or_default();
        let into = if last { out.to_owned() } else { inside.join(&name) };
        let mut plan = stage.plan;
        plan.options.overwrite |= !last;
        let extras = Extras {
            companion: Some(stage.companion),
            layers: stage.layers,
            tokenizer: stage.tokens,
            adapter: None,
            chat_template: stage.chat_template,
            stages: stages.clone(),
        };
        let merged = model::write(&Sealed::new(plan)?, &into, &extras, &mut report)?;
        if last {
            if inside.exists() {
                std::fs::remove_dir_all(inside).map_err(|e| Error::new(Code::Io, format!("`{}`: {e}", inside.display())))?;
            }
            return Ok(merged);
        }
        stages.push((name.clone(), merged.lineage));
        earlier.insert(name, into);
    }
    Err(wrong("the config has no stages"))
}

/// A model's config.json.
pub fn config_of(folder: &Path) -> Option<Json> {
    serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).ok()?).ok()
}

/// What a config calls its number of layers, and the number.
pub fn layer_count(config: &Json) -> Option<(&'static str, usize)> {
    ["num_hidden_layers", "n_layer", "num_layers", "n_layers"]
        .into_iter()
        .find_map(|key| Some((key, config.get(key)?.as_u64()? as usize)))
}
