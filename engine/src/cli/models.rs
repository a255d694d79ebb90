//! `mergeql merge-models` and `mergeql migrate`: configs of mergekit; `mergeql model-set`: the models of a merge as a state in a file.

use super::output::{Output, say};
use super::{io, progress};
use clap::{Args, Subcommand};
use mergeql::tensors::contribution::describe;
use mergeql::tensors::mergekit::Config;
use mergeql::tensors::plan::Options;
use mergeql::{MergeContext, MergeError, models, parse_size};
use mergeql_lang::Span;
use mergeql_lang::ast::{Models, Name, Setting, Statement};
use mergeql_udfs::merkle::hex;
use mergeql_udfs::{Code, Value, functions};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct MergeModels {
    /// The config: merge_method with models or slices, in YAML
    config: PathBuf,
    /// Where the model goes: a folder, or a file that ends in .safetensors
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The folder that the names of models are in [default: the current one]
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Replace a model that is there
    #[arg(long)]
    overwrite: bool,
    /// The most bytes of one file of a folder [default: 5GB]
    #[arg(long, value_name = "SIZE")]
    max_shard_size: Option<String>,
    /// Let NaN and infinity in the models through
    #[arg(long)]
    propagate_nan: bool,
}

#[derive(Debug, Args)]
pub struct Migrate {
    /// The config
    config: PathBuf,
    /// Where the statement puts the model
    #[arg(long, value_name = "DIR", default_value = "merged/")]
    out: String,
    /// The folder that the names of models are in [default: the current one]
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
}

fn read(path: &Path) -> Result<String, MergeError> {
    std::fs::read_to_string(path).map_err(|e| io(&path.display().to_string(), &e))
}

/// Runs a config.
pub async fn merge(context: &MergeContext, command: &MergeModels) -> Result<ExitCode, MergeError> {
    let text = read(&command.config)?;
    let size = |text: &String| match parse_size(text) {
        Some(n @ 1..) => Ok(n as u64),
        _ => Err(MergeError::new(Code::InvalidArgument, format!("`{text}` is no size; write 5GB"))),
    };
    let options = Options {
        overwrite: command.overwrite,
        propagate_nan: command.propagate_nan,
        max_shard_size: command.max_shard_size.as_ref().map(size).transpose()?,
        ..Options::default()
    };
    let folder = command.models.clone().unwrap_or_default();
    let bar = progress::watch(context.clone());
    let merged = models::merge_config(context, text, folder, command.out.clone(), options).await;
    bar.done();
    let merged = merged?;
    merged.notes.iter().for_each(|note| eprintln!("note: {note}"));
    let resumed = merged.tensors.iter().filter(|t| t.resumed).count();
    let before = if resumed > 0 { format!(" ({resumed} were there already)") } else { String::new() };
    say(format_args!("{} tensors{before} written to {}\nmerge {}", merged.tensors.len(), command.out.display(), hex(&merged.hash)));
    Ok(ExitCode::SUCCESS)
}

/// Prints the statement of a config.
pub fn migrate(command: &Migrate) -> Result<ExitCode, MergeError> {
    let folder = command.models.clone().unwrap_or_default();
    say(Config::parse(&read(&command.config)?)?.statement(&folder, &command.out)?);
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
pub struct TensorReport {
    /// The fine-tuned models: files, folders, indices or patterns
    #[arg(required = true)]
    models: Vec<String>,
    /// What they started from
    #[arg(long, value_name = "MODEL")]
    base: String,
    /// Where the page goes
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
}

/// Writes the page.
pub async fn report(command: &TensorReport) -> Result<ExitCode, MergeError> {
    let page = models::report(command.models.clone(), command.base.clone()).await?;
    let partial = command.out.with_extension("partial");
    let written = std::fs::write(&partial, page).and_then(|()| std::fs::rename(&partial, &command.out));
    written.map_err(|e| io(&command.out.display().to_string(), &e))?;
    say(command.out.display());
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Subcommand)]
pub enum ModelSet {
    /// Begin a set with the recipe that resolves it
    New {
        /// The file of the set
        set: PathBuf,
        /// What the models started from
        #[arg(long, value_name = "MODEL")]
        base: Option<String>,
        /// What follows STRATEGY in MERGE MODELS
        #[arg(long, value_name = "RULES", default_value = "* = linear")]
        strategy: String,
        /// What stands in the parentheses of WITH
        #[arg(long, value_name = "OPTIONS")]
        with: Option<String>,
    },
    /// Add a model
    Add {
        /// The file of the set
        set: PathBuf,
        /// A file, a folder or an index
        model: String,
        /// Who adds it: each replica of the set has a name of its own
        #[arg(long, value_name = "REPLICA")]
        origin: String,
        /// What it is called [default: the name of the file]
        #[arg(long)]
        name: Option<String>,
        /// How much it counts
        #[arg(long)]
        weight: Option<f64>,
        /// Which version it is
        #[arg(long)]
        version: Option<String>,
    },
    /// Remove the models of a name or a hash
    Remove {
        /// The file of the set
        set: PathBuf,
        /// The name or the hash
        model: String,
    },
    /// Join other replicas of the set into this one
    Join {
        /// The file of the set
        set: PathBuf,
        /// Files of other replicas
        others: Vec<PathBuf>,
    },
    /// Print the recipe, the models and the hash
    Show {
        /// The file of the set
        set: PathBuf,
    },
    /// Merge the models of the set
    Resolve {
        /// The file of the set
        set: PathBuf,
        /// Where the model goes; without it the hashes of the tensors are printed
        #[arg(long, value_name = "DIR")]
        out: Option<String>,
        /// Replace a model that is there
        #[arg(long)]
        overwrite: bool,
        /// Let the recipe run commands and queries, and keep a cache: a set from elsewhere may hold anything
        #[arg(long)]
        trust: bool,
    },
}

/// A function of states, by its name in SQL.
fn call(name: &str, arguments: &[Value]) -> Result<Value, MergeError> {
    let function = functions::all().into_iter().find(|f| f.name == name);
    let function = function.ok_or_else(|| MergeError::new(Code::Unsupported, format!("there is no `{name}`")))?;
    Ok((function.run)(arguments)?)
}

fn load(path: &Path) -> Result<Value, MergeError> {
    std::fs::read(path).map(|bytes| Value::Bytes(bytes.into())).map_err(|e| io(&path.display().to_string(), &e))
}

/// Writes a set under its name once it is whole.
fn save(path: &Path, state: &Value) -> Result<ExitCode, MergeError> {
    let Value::Bytes(bytes) = state else { return Err(MergeError::new(Code::NotAState, "a set is a state")) };
    let partial = path.with_extension("partial");
    std::fs::write(&partial, bytes)
        .and_then(|()| std::fs::rename(&partial, path))
        .map_err(|e| io(&path.display().to_string(), &e))?;
    say(shown(&call("model_set_hash", std::slice::from_ref(state))?));
    Ok(ExitCode::SUCCESS)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) => text.to_string(),
        other => other.to_json(),
    }
}

/// Whether the files of a set are those that were added, and the base the one that it began with.
fn check_files(state: &Value) -> Result<(), MergeError> {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap_or_default();
    let info = json(&shown(&call("crdt_info", std::slice::from_ref(state))?));
    let recipe = json(info["state"]["recipe"].as_str().unwrap_or_default());
    let base = serde_json::json!({ "path": recipe["base"], "sha256": recipe["base_sha256"], "name": "" });
    let leaves = info["value"].as_array().into_iter().flatten().map(|leaf| json(leaf.as_str().unwrap_or_default()));
    for leaf in leaves.chain([base]) {
        let (Some(path), Some(recorded)) = (leaf["path"].as_str(), leaf["sha256"].as_str()) else { continue };
        let now = json(&describe(path, leaf["name"].as_str(), leaf["weight"].as_f64(), leaf["version"].as_str())?);
        if now["sha256"] != recorded {
            let message = format!("`{path}` is not the model that was added: its hash is {}, not {recorded}", now["sha256"]);
            return Err(MergeError::new(Code::InvalidArgument, message)
                .help("bring the old file back; or remove it from the set and add it anew"));
        }
    }
    Ok(())
}

/// Whether the recipe of a set does nothing but merge: sets come from elsewhere.
///
/// # Errors
/// `unsupported` where it runs commands or queries, or writes into a folder of its own choice.
fn check_recipe(models: &Models) -> Result<(), MergeError> {
    let rules = models.rules.iter().flat_map(|rule| &rule.settings);
    // A query may stand where a file could.
    fn queries(value: &Setting) -> bool {
        match value {
            Setting::Text(text) => text.trim_start().starts_with('('),
            Setting::List(values) => values.iter().any(queries),
            _ => false,
        }
    }
    let more = |(name, value): &&(Name, Setting)| {
        queries(value) || ["command", "fitness", "cache"].iter().any(|n| name.value.eq_ignore_ascii_case(n))
    };
    match rules.chain(&models.options).find(more) {
        None => Ok(()),
        Some((name, value)) => {
            let message = format!("the recipe of this set does more than merge: {} = {value:?}", name.value);
            Err(MergeError::new(Code::Unsupported, message).help("if you know where it comes from, resolve it with --trust"))
        }
    }
}

/// Changes, shows or resolves a set.
pub async fn set(context: &MergeContext, command: &ModelSet, output: &Output) -> Result<ExitCode, MergeError> {
    match command {
        ModelSet::New { set, base, strategy, with } => {
            // What is wrong with the recipe is said now, not when the set is resolved.
            let with_text = with.as_ref().map(|w| format!(" WITH ({w})")).unwrap_or_default();
            let probe = mergeql_lang::parse(&format!("MERGE MODELS 'a' STRATEGY {strategy}{with_text}"))?;
            if let Statement::MergeModels { models, .. } = probe {
                for rule in models.rules.iter().filter(|r| !mergeql::tensors::request::takes_any(&r.strategy.value)) {
                    mergeql::tensors::methods::find(&rule.strategy.value)?;
                }
            }
            if set.exists() {
                return Err(
                    MergeError::new(Code::Io, format!("`{}` exists", set.display())).help("remove it, or choose another name")
                );
            }
            let mut recipe = serde_json::Map::new();
            if let Some(base) = base {
                let leaf: serde_json::Value = serde_json::from_str(&describe(base, Some(""), None, None)?)
                    .map_err(|e| MergeError::new(Code::Io, e.to_string()))?;
                recipe.insert("base".into(), base.as_str().into());
                recipe.insert("base_sha256".into(), leaf["sha256"].clone());
            }
            recipe.insert("strategy".into(), strategy.as_str().into());
            recipe.insert("with".into(), with.as_deref().unwrap_or_default().into());
            let text = Value::text(serde_json::Value::Object(recipe).to_string());
            save(set, &call("model_set_new", &[text])?)
        }
        ModelSet::Add { set, model, origin, name, weight, version } => {
            let leaf = describe(model, name.as_deref(), *weight, version.as_deref())?;
            save(set, &call("model_set_add", &[load(set)?, Value::text(leaf), Value::text(origin.as_str())])?)
        }
        ModelSet::Remove { set, model } => {
            let before = load(set)?;
            let after = call("model_set_remove", &[before.clone(), Value::text(model.as_str())])?;
            if before == after {
                return Err(MergeError::new(
                    Code::InvalidArgument,
                    format!("no model of the set is called `{model}`, or has this hash"),
                )
                .help("`mergeql model-set show` lists them"));
            }
            save(set, &after)
        }
        ModelSet::Join { set, others } => {
            let mut state = load(set)?;
            for other in others {
                state = call("model_set_join", &[state, load(other)?])?;
            }
            save(set, &state)
        }
        ModelSet::Show { set } => {
            let info = call("crdt_info", &[load(set)?])?;
            let json: serde_json::Value =
                serde_json::from_str(&shown(&info)).map_err(|e| MergeError::new(Code::CorruptState, e.to_string()))?;
            say(format_args!("{json:#}"));
            Ok(ExitCode::SUCCESS)
        }
        ModelSet::Resolve { set, out, overwrite, trust } => {
            let state = load(set)?;
            check_files(&state)?;
            let statement = call("model_set_resolve", &[state, out.as_deref().map_or(Value::Null, Value::text)])?;
            let mut statement = shown(&statement);
            if let Statement::MergeModels { mut models, .. } = mergeql_lang::parse(&statement)? {
                if !trust {
                    check_recipe(&models)?;
                }
                if *overwrite {
                    let name = Name { value: "overwrite".into(), quoted: false, span: Span::default() };
                    models.options.push((name, Setting::Flag(true)));
                    statement = format!("MERGE MODELS {}", mergeql_lang::models_text(&models));
                }
            }
            output.statement(context, &statement, true).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
