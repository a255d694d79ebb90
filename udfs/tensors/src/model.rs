//! A merged model as others load it: its tensors, the config and tokenizer files of what it came from, and a card that says how it was made.

use crate::dtype;
use crate::lora;
use crate::mergekit;
use crate::method::Along;
use crate::methods;
use crate::output::is_begun;
use crate::plan::How;
use crate::run::{self, Progress, Written};
use crate::sealed::{Sealed, parameters};
use crate::tokenizer::{self, Tokens};
use mergeql_udfs::merkle::{Hash, hex};
use mergeql_udfs::{Code, Error, Result};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What goes along with the tensors.
#[derive(Debug, Default)]
pub struct Extras {
    /// The folder whose config and tokenizer files are copied.
    pub companion: Option<PathBuf>,
    /// Where each layer comes from: the folder of a model, and the number of the layer there. None: they are as they were.
    pub layers: Vec<(PathBuf, usize)>,
    /// The tokens, whose tokenizer files are those of another folder.
    pub tokenizer: Option<Tokens>,
    /// The template of chats, in the place of the companion's.
    pub chat_template: Option<String>,
    /// The models that were made for this one and are gone, each with its lineage.
    pub stages: Vec<(String, Json)>,
    /// The config of an adapter, whose tensors are in `adapter_model.safetensors`.
    pub adapter: Option<Json>,
}

/// What was made.
#[derive(Debug)]
pub struct Merged {
    /// Each tensor, and the hash of its bytes.
    pub tensors: Vec<Written>,
    /// The hash of the set of contributions, the base and all parameters.
    pub hash: Hash,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// Where it comes from, in the terms of PROV-O.
    pub lineage: Json,
}

/// Files of a model beside its tensors.
fn goes_along(name: &str) -> bool {
    let known = [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
    ];
    known.contains(&name)
        || name.starts_with("tokenizer")
        || name.starts_with("chat_template")
        || name.ends_with(".spm")
        || name == "spiece.model"
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(Code::Io, format!("`{}`: {error}", path.display()))
}

/// Writes text under its name once it is whole.
pub(crate) fn save(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path)).map_err(|e| failed(path, e))
}

/// Writes a model to a folder, or to one file with nothing beside it.
///
/// # Errors
/// As [`run::write`].
pub fn write(sealed: &Sealed, out: &Path, extras: &Extras, report: impl FnMut(Progress<'_>)) -> Result<Merged> {
    if out.as_os_str().is_empty() {
        return Err(Error::invalid_argument("the name of the output is empty")
            .with_help("name a folder, or a file that ends in .safetensors"));
    }
    let single = out.extension().is_some_and(|e| e == "safetensors");
    if single && sealed.plan.options.max_shard_size.is_some() {
        return Err(Error::invalid_argument(format!("`{}` is one file, which has no shards", out.display()))
            .with_help("name a folder, or leave max_shard_size out"));
    }
    // A name without a folder is one in the current folder.
    let real = |path: &Path| if path.as_os_str().is_empty() { Path::new(".") } else { path }.canonicalize().ok();
    let beside: Vec<PathBuf> = methods::ALL.iter().filter_map(|m| real(&out.with_extension(m.along?.0))).collect();
    for model in sealed.plan.models.iter().chain(&sealed.plan.base) {
        let mut files = model.contributed().tensors.values().map(|t| t.file());
        let written =
            |file: &Path| real(file).is_some_and(|file| Some(&file) == real(out).as_ref() || single && beside.contains(&file));
        let read = |file: &Path| written(file) || real(out).is_some() && file.parent().and_then(real) == real(out);
        if files.any(read) {
            return Err(failed(out, format!("the model `{}` is read from there", model.name))
                .with_help("choose another place for the output"));
        }
    }
    let metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("mergeql.set".to_owned(), hex(&sealed.set)),
        ("mergeql.merge".to_owned(), hex(&sealed.hash)),
        ("mergeql.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    // What some methods write along: it goes by the name of the model's file.
    let along = |(name, of): (&str, Along)| {
        let plan = of(&sealed.plan)?;
        let keys = vec![None; plan.tasks.len()];
        let path = if single { out.with_extension(name) } else { out.join(name) };
        Some((Sealed { plan, models: sealed.models.clone(), base: sealed.base, set: sealed.set, hash: sealed.hash, keys }, path))
    };
    let mut along: Vec<(Sealed, PathBuf)> = methods::ALL.iter().filter_map(|method| along(method.along?)).collect();
    if let Some((_, path)) = along.iter().find(|(s, path)| path.exists() && !s.plan.options.overwrite && !is_begun(out)) {
        return Err(failed(path, "this file exists")
            .with_help("choose another place, or replace it: WITH (overwrite = true), or --overwrite"));
    }
    // What a run before this one had made already.
    along.iter_mut().for_each(|(sealed, _)| sealed.plan.options.overwrite |= is_begun(out));
    let file = if extras.adapter.is_some() && !single { out.join("adapter_model.safetensors") } else { out.to_owned() };
    if !single && !sealed.plan.options.overwrite && !is_begun(&file) {
        let names = match &extras.adapter {
            Some(_) => vec!["adapter_config.json".to_owned()],
            None => companion_names(extras)?,
        };
        let names = names.iter().map(String::as_str).chain(["README.md", "mergeql.jsonld"]);
        if let Some(path) = names.map(|name| out.join(name)).find(|path| path.exists()) {
            return Err(failed(&path, "this file exists")
                .with_help("choose another place, or replace it: WITH (overwrite = true), or --overwrite"));
        }
    }
    let beside = |tensors: &[Written]| {
        for (sealed, path) in &along {
            run::write(sealed, path, &metadata, |_| {}, |_| Ok(()))?;
        }
        if single {
            return Ok(());
        }
        match &extras.adapter {
            Some(config) => save(&out.join("adapter_config.json"), format!("{config:#}\n"))?,
            None => companions(sealed, out, extras)?,
        }
        save(&out.join("README.md"), card(sealed, tensors, &extras.stages))?;
        save(&out.join("mergeql.jsonld"), format!("{:#}\n", lineage(sealed, tensors, &extras.stages)))
    };
    let new = !single && !out.exists();
    let tensors = run::write(sealed, &file, &metadata, report, beside).inspect_err(|_| {
        // What failed leaves nothing, unless a later run goes on with it.
        if new {
            std::fs::remove_dir(out).ok();
        }
    })?;
    let lineage = lineage(sealed, &tensors, &extras.stages);
    Ok(Merged { tensors, hash: sealed.hash, notes: sealed.plan.notes.clone(), lineage })
}

/// The files of a model's folder that are copied along, and the template that is put beside them.
fn companion_names(extras: &Extras) -> Result<Vec<String>> {
    let Some(folder) = &extras.companion else { return Ok(Vec::new()) };
    let inside = |folder: &Path| -> Result<Vec<String>> {
        let entries = std::fs::read_dir(folder).map_err(|e| failed(folder, e))?;
        // A pipeline's folder has a folder called `tokenizer`.
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            let entry = entry.ok().filter(|entry| entry.path().is_file())?;
            entry.file_name().into_string().ok()
        };
        Ok(entries.filter_map(name).filter(|name| goes_along(name)).collect())
    };
    let mut names = inside(folder)?;
    if let Some(tokens) = &extras.tokenizer {
        names.retain(|name| !of_tokenizer(name));
        // Of other tokens than those of the folder the one file is written anew; the older kinds of files would say something else.
        let kept = |name: &String| {
            of_tokenizer(name) && (!tokens.changed || CHANGED.contains(&name.as_str()) || name.starts_with("chat_template"))
        };
        names.extend(inside(&tokens.folder)?.into_iter().filter(kept));
    }
    if extras.chat_template.is_some() {
        names.retain(|name| !name.starts_with("chat_template"));
        names.push(TEMPLATE.to_owned());
    }
    names.sort();
    Ok(names)
}

/// Files of a tokenizer that also go along with one that has other tokens.
const CHANGED: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

/// Whether a file that goes along is the tokenizer's.
fn of_tokenizer(name: &str) -> bool {
    goes_along(name)
        && !["config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"].contains(&name)
}

/// The file of a chat template.
const TEMPLATE: &str = "chat_template.jinja";

fn companions(sealed: &Sealed, out: &Path, extras: &Extras) -> Result<()> {
    let Some(folder) = &extras.companion else { return Ok(()) };
    for name in companion_names(extras)? {
        if let Some(template) = extras.chat_template.as_ref().filter(|_| name == TEMPLATE) {
            save(&out.join(&name), template)?;
            continue;
        }
        let from = extras.tokenizer.as_ref().filter(|_| of_tokenizer(&name)).map_or(folder, |tokens| &tokens.folder).join(&name);
        let bytes = std::fs::read(&from).map_err(|e| failed(&from, e))?;
        let changed = match name.as_str() {
            "config.json" => Some(config(sealed, extras, &from, &bytes)?),
            "tokenizer_config.json" if extras.chat_template.is_some() => Some(without_template(&from, &bytes)?),
            "tokenizer.json" => extras.tokenizer.as_ref().map(|tokens| format!("{:#}\n", tokens.tokenizer())),
            _ => None,
        };
        save(&out.join(&name), changed.map_or(bytes, String::into_bytes))?;
    }
    Ok(())
}

/// The tokenizer's config without a template, which is in a file of its own.
fn without_template(path: &Path, bytes: &[u8]) -> Result<String> {
    let mut config: Json = serde_json::from_slice(bytes).map_err(|e| failed(path, e))?;
    config.as_object_mut().map(|config| config.remove("chat_template"));
    Ok(format!("{config:#}\n"))
}

/// The config with what the merge changed: layers, tokens, type. Models of several parts have one of the language inside.
fn config(sealed: &Sealed, extras: &Extras, path: &Path, bytes: &[u8]) -> Result<String> {
    let mut config: Json = serde_json::from_slice(bytes).map_err(|e| failed(path, e))?;
    change_config(sealed, extras, path, &mut config)?;
    if let Some(inside) = config.get_mut("text_config").filter(|inside| inside.is_object()) {
        change_config(sealed, extras, path, inside)?;
    }
    Ok(format!("{config:#}\n"))
}

fn change_config(sealed: &Sealed, extras: &Extras, path: &Path, config: &mut Json) -> Result<()> {
    if let Some((key, before)) = mergekit::layer_count(config).filter(|_| !extras.layers.is_empty()) {
        config[key] = json!(extras.layers.len());
        // Lists with an entry for each layer.
        let lists =
            config.as_object().into_iter().flatten().filter(|(_, list)| list.as_array().is_some_and(|list| list.len() == before));
        let as_they_were = extras.layers.len() == before && extras.layers.iter().enumerate().all(|(i, (_, layer))| i == *layer);
        let names: Vec<String> =
            lists.map(|(name, _)| name.clone()).filter(|name| !as_they_were && name.contains("layer")).collect();
        for name in names {
            let entry = |(folder, layer): &(PathBuf, usize)| {
                let own = mergekit::config_of(folder)?;
                let list = own.get(&name).or_else(|| own.get("text_config")?.get(&name))?;
                list.get(*layer).cloned()
            };
            let list: Option<Vec<Json>> = extras.layers.iter().map(entry).collect();
            config[&name] = json!(list.ok_or_else(|| {
                failed(
                    path,
                    format!("`{name}` has an entry for each layer, and the config of a model lacks one for a layer that is taken"),
                )
            })?);
        }
    }
    if let (Some(tokens), true) = (&extras.tokenizer, config.get("vocab_size").is_some()) {
        config["vocab_size"] = json!(tokens.rows);
    }
    // An output table of its own would be passed over.
    let has = |is: &dyn Fn(&str) -> bool| sealed.plan.tasks.iter().any(|task| is(&task.name));
    let own_output =
        has(&|name| tokenizer::has_rows(name) && !tokenizer::is_embedding(name)) && has(&|name| tokenizer::is_embedding(name));
    if own_output && config["tie_word_embeddings"] == true {
        config["tie_word_embeddings"] = json!(false);
    }
    let types: std::collections::BTreeSet<String> =
        sealed.plan.tasks.iter().filter(|t| dtype::is_float(t.dtype)).map(|t| dtype::torch_name(t.dtype).to_owned()).collect();
    for key in ["torch_dtype", "dtype"] {
        if let (Some(_), [only]) = (config.get(key), &types.iter().collect::<Vec<_>>()[..]) {
            config[key] = json!(only);
        }
    }
    Ok(())
}

/// The rules of a plan as lines: method and parameters with the tensors that they made.
fn rules(sealed: &Sealed) -> BTreeMap<String, Vec<&str>> {
    let mut rules: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for task in &sealed.plan.tasks {
        let line = match &task.how {
            How::Merge(merge) => format!("{}({})", merge.method.name, parameters(merge)),
            How::Made { by, with, .. } => format!("{by}({with})"),
            How::Copy { .. } => "copy".to_owned(),
        };
        rules.entry(line).or_default().push(&task.name);
    }
    rules
}

/// The model card: what went in, by hash, and how it was merged. It says nothing of what the model is good for: nobody measured that here.
fn card(sealed: &Sealed, tensors: &[Written], stages: &[(String, Json)]) -> String {
    let mut text = String::from(
        "---\ntags:\n- merge\n- mergeql\n---\n\n# A merged model\n\nMade by [MergeQL](https://github.com/mergeql/mergeql) ",
    );
    let _ =
        writeln!(text, "{}: the answer depends on the set of contributions and the parameters alone.\n", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(
        text,
        "- Set (root over the contributions): `{}`\n- Merge (set, base and parameters): `{}`\n\n## Contributions\n\n| model | weight | contribution (SHA-256 of its names, tensors and metadata) |\n|---|---|---|",
        hex(&sealed.set),
        hex(&sealed.hash)
    );
    let mut rows: Vec<(String, String, String)> = sealed
        .plan
        .models
        .iter()
        .zip(&sealed.models)
        .map(|(m, hash)| (hex(hash), m.name.clone(), m.weight.map_or_else(String::new, |w| w.to_string())))
        .collect();
    rows.sort();
    rows.dedup();
    for (hash, name, weight) in rows {
        let _ = writeln!(text, "| {} | {weight} | `{hash}` |", name.replace('|', "\\|"));
    }
    if let (Some(base), Some(hash)) = (&sealed.plan.base, &sealed.base) {
        let _ = writeln!(text, "\nBase: {} `{}`", base.name, hex(hash));
    }
    for (name, lineage) in stages {
        let sources = lineage["prov:wasDerivedFrom"].as_array().into_iter().flatten();
        let sources: Vec<String> = sources
            .map(|s| format!("{} `{}`", s["name"].as_str().unwrap_or_default(), s["@id"].as_str().unwrap_or_default()))
            .collect();
        let rules: std::collections::BTreeSet<&str> =
            lineage["hasPart"].as_array().into_iter().flatten().filter_map(|part| part["strategy"].as_str()).collect();
        let rules: Vec<String> = rules.into_iter().map(|rule| format!("`{}`", rule.replace('|', "\\|"))).collect();
        let _ = writeln!(text, "\n`{name}` was made for this merge, of {}, by {}.", sources.join(", "), rules.join(", "));
    }
    let _ = writeln!(text, "\n## How\n\n| strategy | tensors | source |\n|---|---|---|");
    for (rule, names) in rules(sealed) {
        let method = rule.split('(').next().unwrap_or_default();
        let factors = if lora::is_strategy(method) { "Eckart, Young 1936" } else { "" };
        let paper = methods::find(method).map_or(factors, |(m, _)| m.paper);
        let _ = writeln!(text, "| `{}` | {} | {paper} |", rule.replace('|', "\\|"), names.len());
    }
    let ordered = sealed.plan.ordered();
    if !ordered.is_empty() {
        let names: Vec<&str> = ordered.into_iter().collect();
        let _ = writeln!(text, "\nThe answer of {} depends on the order of the models, too.", names.join(", "));
    }
    for note in &sealed.plan.notes {
        let _ = writeln!(text, "\nNote: {note}.");
    }
    let _ = writeln!(text, "\n{} tensors; the hash of each is in `mergeql.jsonld`.", tensors.len());
    text
}

/// The same for machines, in the terms of PROV-O (W3C 2013).
fn lineage(sealed: &Sealed, tensors: &[Written], stages: &[(String, Json)]) -> Json {
    let mut sources: Vec<Json> = sealed
        .plan
        .models
        .iter()
        .zip(&sealed.models)
        .map(|(m, hash)| json!({ "@id": format!("sha256:{}", hex(hash)), "@type": "prov:Entity", "name": m.name, "weight": m.weight }))
        .collect();
    sources.sort_by_key(|s| s["@id"].to_string());
    sources.dedup();
    let base = sealed.plan.base.as_ref().zip(sealed.base);
    sources
        .extend(base.map(|(m, hash)| json!({ "@id": format!("sha256:{}", hex(&hash)), "@type": "prov:Entity", "name": m.name })));
    let names: BTreeMap<String, String> =
        sealed.plan.models.iter().zip(&sealed.models).map(|(m, hash)| (hex(hash), m.name.clone())).collect();
    let written: BTreeMap<&str, &Written> = tensors.iter().map(|w| (w.name.as_str(), w)).collect();
    let parts: Vec<Json> = sealed
        .plan
        .tasks
        .iter()
        .map(|task| {
            let (strategy, from) = match &task.how {
                How::Merge(merge) => {
                    let from: Vec<&String> = merge.models.iter().filter_map(|i| names.get(&hex(&i.hash))).collect();
                    (format!("{}({})", merge.method.name, parameters(merge)), json!(from))
                }
                How::Made { by, with, from, .. } => (format!("{by}({with})"), json!(from)),
                // Of a tensor that is the same in all that have it, no file is the one.
                How::Copy { .. } => {
                    let having =
                        sealed.plan.models.iter().chain(&sealed.plan.base).filter(|m| m.checkpoint.get(&task.name).is_some());
                    let having: std::collections::BTreeSet<&str> = having.map(|m| m.name.as_str()).collect();
                    ("copy".to_owned(), json!(having))
                }
            };
            json!({
                "name": task.name, "dtype": dtype::name(task.dtype), "shape": task.shape, "strategy": strategy, "from": from,
                "sha256": written.get(task.name.as_str()).map(|w| hex(&w.sha256)),
            })
        })
        .collect();
    json!({
        "@context": {
            "prov": "http://www.w3.org/ns/prov#", "@vocab": "urn:mergeql:",
            "name": "https://schema.org/name", "version": "https://schema.org/version", "hasPart": "https://schema.org/hasPart",
        },
        "@id": format!("sha256:{}", hex(&sealed.hash)),
        "@type": "prov:Entity",
        "prov:wasGeneratedBy": { "@type": "prov:Activity", "name": "mergeql merge-models", "version": env!("CARGO_PKG_VERSION") },
        "prov:wasDerivedFrom": sources,
        "stages": stages.iter().map(|(name, lineage)| json!({ "name": name, "lineage": lineage })).collect::<Vec<_>>(),
        "base": sealed.base.map(|h| json!({ "@id": format!("sha256:{}", hex(&h)) })),
        "hasPart": parts,
    })
}
