//! `mergeql merge-models` and `mergeql migrate`: configs of mergekit.

use super::{io, progress};
use clap::Args;
use mergeql::tensors::mergekit::Config;
use mergeql::tensors::plan::Options;
use mergeql::tensors::run::hex;
use mergeql::{MergeContext, MergeError, models, parse_size};
use mergeql_udfs::Code;
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
    /// The most bytes of one file, like 5GB
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    max_shard_size: String,
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
    let size = parse_size(&command.max_shard_size).filter(|n| *n > 0);
    let size =
        size.ok_or_else(|| MergeError::new(Code::InvalidArgument, format!("`{}` is no size; write 5GB", command.max_shard_size)))?;
    let options = Options {
        overwrite: command.overwrite,
        propagate_nan: command.propagate_nan,
        max_shard_size: size as u64,
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
    println!("{} tensors{before} written to {}\nset {}", merged.tensors.len(), command.out.display(), hex(&merged.hash));
    Ok(ExitCode::SUCCESS)
}

/// Prints the statement of a config.
pub fn migrate(command: &Migrate) -> Result<ExitCode, MergeError> {
    let folder = command.models.clone().unwrap_or_default();
    println!("{}", Config::parse(&read(&command.config)?)?.statement(&folder, &command.out)?);
    Ok(ExitCode::SUCCESS)
}
