//! MERGE MODELS: from the statement to a plan, its run, and EXPLAIN.

mod functions;
mod tables;

use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use datafusion::prelude::DataFrame;
pub(crate) use functions::register;
use mergeql_lang::Diagnostic;
use mergeql_lang::ast::{ModelSource, Models, Name, Setting};
use mergeql_tensors::dtype;
use mergeql_tensors::method::{Params, Semantics, Value};
use mergeql_tensors::methods;
use mergeql_tensors::model::{self, Extras};
use mergeql_tensors::plan::{How, Model, Options, Plan, Request, Rule, Stop};
use mergeql_tensors::request::{open, open_one, options, planned, takes_any};
use mergeql_tensors::run;
use mergeql_tensors::sealed::{self, Sealed};
use mergeql_tensors::search::{self, Fitness, Search, Verdict};
use mergeql_udfs::merkle::hex;
use mergeql_udfs::{Code, Error};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

// From a statement to a request.

fn value(setting: &Setting) -> Value {
    match setting {
        Setting::Number(v) => Value::Number(*v),
        Setting::Flag(v) => Value::Flag(*v),
        Setting::Text(v) => Value::Text(v.clone()),
        Setting::List(items) => Value::List(items.iter().map(value).collect()),
    }
}

fn at(name: &Name) -> impl Fn(Error) -> MergeError {
    let span = name.span;
    move |error| {
        let mut diagnostic = Box::<Diagnostic>::from(error);
        diagnostic.span = Some(span);
        diagnostic.into()
    }
}

/// The request that a statement makes.
fn request(models: &Models) -> Result<Request> {
    let opened = |source: &ModelSource| {
        open(&source.path.value, source.alias.as_ref().map(|a| a.value.as_str()), source.weight).map_err(at(&source.path))
    };
    let mut sources = Vec::new();
    for source in &models.sources {
        sources.extend(opened(source)?);
    }
    let base = models.base.as_ref().map(|source| {
        let alias = source.alias.as_ref().map(|a| a.value.as_str());
        open_one(&source.path.value, alias, source.weight).map_err(at(&source.path))
    });
    let base = base.transpose()?;
    let mut rules = Vec::new();
    for rule in &models.rules {
        let own = takes_any(&rule.strategy.value);
        let method = if own { None } else { Some(methods::find(&rule.strategy.value).map_err(at(&rule.strategy))?.0) };
        let mut params = Params::new();
        for (name, setting) in &rule.settings {
            // What is wrong with a parameter is found where it stands.
            let one = Params::from([(name.value.clone(), value(setting))]);
            if let Some(method) = method.filter(|m| m.param(&name.value).is_none()) {
                let checked = mergeql_tensors::method::Settings::new(method, &one, Semantics::Paper, sources.len());
                checked.map_err(at(name))?;
            }
            params.extend(one);
        }
        rules.push(Rule { pattern: rule.pattern.clone(), strategy: rule.strategy.value.clone(), params });
    }
    if rules.is_empty() {
        rules.push(Rule { pattern: "*".into(), strategy: "linear".into(), params: Params::new() });
    }
    let given = models.options.iter().map(|(name, setting)| (name.value.to_ascii_lowercase(), value(setting)));
    let options = options(given, &rules).map_err(|(name, error)| {
        match models.options.iter().find(|(n, _)| n.value.eq_ignore_ascii_case(&name)) {
            Some((written, _)) => at(written)(error),
            None => error.into(),
        }
    })?;
    Ok(Request { models: sources, base, rules, options })
}

/// Runs work that keeps a thread busy.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|e| MergeError::new(Code::Io, format!("the merge stopped: {e}")))??)
}

/// Runs a statement.
///
/// # Errors
/// Whatever is wrong with it, before a byte is written.
pub async fn run(context: &MergeContext, explain: bool, models: Models) -> Result<DataFrame> {
    let mut request = request(&models)?;
    request.options.tables = tables::read(context, &request).await?;
    let into = models.into.as_ref().map(|name| PathBuf::from(&name.value));
    let search = Search::of(&request)?;
    if explain {
        let describe = move || {
            let searched = search.as_ref().map(Search::describe);
            let plan = search.as_ref().map_or_else(|| planned(request), example)?.0;
            let mut rows = describe(&plan, into.as_deref());
            rows.extend(searched.map(|text| ("search".to_owned(), text)));
            Ok(rows)
        };
        let (items, details): (Vec<String>, Vec<String>) = blocking(describe).await?.into_iter().unzip();
        return Ok(context.session().read_batch(crate::explain::texts(&[("item", items), ("detail", details)])?)?);
    }
    if let Some(Search { fitness: Fitness::Command(_), .. }) = &search {
        context.check_commands()?;
    }
    // Where the statement is given up, by a timeout or a client that cancels, the merge ends too.
    let _stop = OnDrop(request.options.stop.clone());
    let (outer, runtime) = (context.clone(), tokio::runtime::Handle::current());
    let batch = blocking(move || {
        let shared = outer.shared.clone();
        let companion = request.base.as_ref().or(request.models.first()).map(|m| m.checkpoint.folder().to_owned());
        let (searched, has_base) = (search.is_some(), request.base.is_some());
        let (request, note, scratch) = match search {
            Some(search) => {
                let (request, note, scratch) = found(&outer, &runtime, search, into.as_deref(), companion.as_deref())?;
                (request, Some(note), Some(scratch))
            }
            None => (request, None, None),
        };
        let (mut plan, adapter) = planned(request)?;
        plan.notes.extend(note);
        // Hashing the models comes first, and takes as long as merging them.
        shared.merging(0, plan.writes(), (0, plan.tasks.len()));
        let sealed = Sealed::new(plan)?;
        let hashes: BTreeMap<String, String> = match &into {
            Some(out) => {
                // Beside a model without a base go the files of that whose hash is the least, in whatever order they are named.
                let first = sealed.plan.models.iter().zip(&sealed.models).min_by_key(|(_, hash)| **hash);
                let companion =
                    has_base.then_some(companion).flatten().or(first.map(|(model, _)| model.checkpoint.folder().to_owned()));
                let extras = Extras { companion, adapter, ..Extras::default() };
                let merged = model::write(&sealed, out, &extras, |progress| {
                    shared.merging(progress.done, progress.total, progress.tensors)
                })?;
                merged.tensors.into_iter().map(|w| (w.name, hex(&w.sha256))).collect()
            }
            None => run::hashes(&sealed)?.into_iter().map(|(name, hash)| (name, hex(&hash))).collect(),
        };
        shared.merging(0, 0, (0, 0));
        scratch.map_or(Ok(()), Scratch::remove)?;
        Ok((sealed.plan, hashes, searched))
    });
    let (plan, hashes, searched) = batch.await?;
    Ok(context.session().read_batch(functions::merged(&plan, &hashes, searched)?)?)
}

/// Stops a merge when it is dropped.
struct OnDrop(Stop);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.now();
    }
}

/// The plan of one of the merges that a search is among: which tensors there are, and of which models.
fn example(search: &Search) -> Result<(Plan, Option<serde_json::Value>), Error> {
    let mut wrong = None;
    for request in search.examples() {
        match planned(request) {
            Err(error) if error.code == Code::InvalidArgument => drop(wrong.get_or_insert(error)),
            found => return found,
        }
    }
    Err(wrong.unwrap_or_else(|| Error::invalid_argument("there is nothing to search for")))
}

/// Searches for parameters: the request with the best of them, and what is said of it in the model card. Candidates and the journal lie
/// beside the output, so that a search that was stopped goes on.
fn found(
    context: &MergeContext,
    runtime: &tokio::runtime::Handle,
    mut search: Search,
    into: Option<&Path>,
    companion: Option<&Path>,
) -> Result<(Request, String, Scratch), Error> {
    // What would be in the way at the end is said now.
    let overwrite = search.middle().options.overwrite;
    into.filter(|_| !overwrite).map_or(Ok(()), mergeql_tensors::output::free)?;
    let temporary = tempfile::tempdir().map_err(|e| failed(&std::env::temp_dir(), e))?;
    let folder = match into {
        Some(out) => {
            let mut name = out.as_os_str().to_string_lossy().trim_end_matches('/').to_owned();
            name.push_str(".search");
            PathBuf::from(name)
        }
        None => temporary.path().to_owned(),
    };
    std::fs::create_dir_all(&folder).map_err(|e| failed(&folder, e))?;
    // The models are hashed once, for all candidates.
    let first = Sealed::new(example(&search)?.0)?;
    let (hashes, base) = (first.models, first.base);
    search.in_order(&hashes);
    let (fitness, described) = (search.fitness.clone(), search.describe());
    let candidate = folder.join("candidate");
    let judge = |request: &Request| {
        let (mut plan, adapter) = match planned(request.clone()) {
            Ok(planned) => planned,
            Err(error) if error.code == Code::InvalidArgument => return Ok(Verdict::Useless(error)),
            Err(error) => return Err(error),
        };
        plan.options.overwrite = true;
        let sealed = Sealed::with(plan, hashes.clone(), base)?;
        let extras = Extras { companion: companion.map(Path::to_owned), adapter, ..Extras::default() };
        let written = model::write(&sealed, &candidate, &extras, |progress| {
            context.shared.merging(progress.done, progress.total, progress.tensors)
        });
        match written {
            // Some show only while they are merged: weights that cancel out, numbers beyond a type.
            Err(error) if error.code == Code::InvalidArgument => return Ok(Verdict::Useless(error)),
            written => drop(written?),
        }
        let worth = match &fitness {
            Fitness::Command(text) => search::command(text, &candidate),
            Fitness::Query(text) => runtime.block_on(queried(context, text, &candidate)),
        };
        worth.map(Verdict::Worth)
    };
    let journal = folder.join("journal");
    let found = search.run(&hashes, base.as_ref(), &journal, judge)?;
    let note =
        format!("parameters found by {described}: the best of {} candidates has fitness {}", found.candidates, found.fitness);
    Ok((found.request, note, Scratch { folder, candidate, journal, _temporary: temporary }))
}

fn failed(path: &Path, e: std::io::Error) -> Error {
    Error::new(Code::Io, format!("`{}`: {e}", path.display()))
}

/// What a search leaves beside its output: a run that is stopped before the model is there goes on with it.
struct Scratch {
    folder: PathBuf,
    candidate: PathBuf,
    journal: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Scratch {
    /// Removes what was put there; a folder that holds something else stays.
    fn remove(self) -> Result<(), Error> {
        for removed in [std::fs::remove_dir_all(&self.candidate), std::fs::remove_file(&self.journal)] {
            removed.or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(failed(&self.folder, e)) })?;
        }
        std::fs::remove_dir(&self.folder).ok();
        Ok(())
    }
}

/// The number that a query gives for a candidate.
async fn queried(context: &MergeContext, text: &str, candidate: &Path) -> Result<f64, Error> {
    let text = text.replace("{}", &candidate.to_string_lossy().replace('\'', "''"));
    let run = async {
        let batches = context.sql(&text).await?.collect().await?;
        if let Some(batch) = batches.iter().find(|b| b.num_columns() != 1) {
            return Err(MergeError::new(
                Code::InvalidArgument,
                format!("it gives {} columns, and one number is wanted", batch.num_columns()),
            ));
        }
        Ok::<_, MergeError>(batches.iter().map(|b| (b.num_rows(), b.column(0).clone())).collect::<Vec<_>>())
    };
    // Boxed: a statement that runs statements.
    let run: std::pin::Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(run);
    let wrong = |what: String| {
        Error::invalid_argument(format!("the query of the fitness gives {what}: {text}"))
            .with_help("it gives one row with one number, greater for better")
    };
    let cells = run.await.map_err(|e| Error {
        message: format!("the query of the fitness: {}", e.diagnostic.message),
        ..Error::new(e.code(), "")
    })?;
    match &cells.iter().filter(|(rows, _)| *rows > 0).collect::<Vec<_>>()[..] {
        [(1, array)] => crate::columns::value_at(array.as_ref(), 0).to_f64().ok_or_else(|| wrong("no number".to_owned())),
        other => Err(wrong(format!("{} rows", other.iter().map(|(rows, _)| rows).sum::<usize>()))),
    }
}

pub(crate) fn bytes(n: u64) -> String {
    indicatif::HumanBytes(n).to_string()
}

/// What a merge will do, as items and details.
fn describe(plan: &Plan, into: Option<&Path>) -> Vec<(String, String)> {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut add = |item: &str, detail: String| rows.push((item.to_owned(), detail));
    let model = |m: &Model| {
        let weight = m.weight.map(|w| format!(", weight {w}")).unwrap_or_default();
        format!("{} ({} tensors{weight}): {}", m.name, m.checkpoint.tensors.len(), m.checkpoint.path.display())
    };
    plan.models.iter().for_each(|m| add("model", model(m)));
    plan.base.iter().for_each(|m| add("base", model(m)));
    let mut groups: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for task in &plan.tasks {
        let line = match &task.how {
            How::Merge(merge) => format!("{}({})", merge.method.name, sealed::parameters(merge)),
            How::Made { by, with, .. } => format!("{by}({with})"),
            How::Copy { .. } => "copy (no floats; all models must agree)".to_owned(),
        };
        let group = groups.entry(line).or_default();
        *group = (group.0 + 1, group.1 + task.bytes());
    }
    for (line, (tensors, size)) in groups {
        add("strategy", format!("{line}: {tensors} tensors, {}", bytes(size)));
    }
    for task in &plan.tasks {
        add("tensor", format!("{} {} {:?} by {}", task.name, dtype::name(task.dtype), task.shape, task.strategy()));
    }
    let options = &plan.options;
    if !options.names.is_empty() {
        add("names", options.names.join(", "));
    }
    if options.align {
        add("align", "procrustes: matrices are turned onto those of the base".to_owned());
    }
    if let Some(folder) = &options.cache {
        add("cache", format!("{}, at most {}", folder.display(), bytes(options.cache_size)));
    }
    plan.notes.iter().for_each(|note| add("note", note.clone()));
    let ordered: Vec<&str> = plan.ordered().into_iter().collect();
    add(
        "laws",
        match ordered.is_empty() {
            true => "a function of the set of models: order, repetition and layout of files count for nothing".to_owned(),
            false => format!("the order of the models counts for {}; repetition and layout of files don't", ordered.join(", ")),
        },
    );
    let surveys = plan.tasks.iter().any(|t| matches!(&t.how, How::Merge(m) if m.surveys()));
    let passes = if surveys { "read to hash, to survey, and to merge" } else { "read to hash, and to merge" };
    add("reads", format!("{}, {passes}", bytes(plan.reads())));
    add(
        "writes",
        match into {
            Some(out) => format!("{} to {}", bytes(plan.writes()), out.display()),
            None => format!("nothing: {} are hashed", bytes(plan.writes())),
        },
    );
    add("memory", format!("{} for tiles", bytes(plan.options.memory_limit)));
    add("backend", run::backend(plan));
    rows
}

/// Runs a config of mergekit; models are folders below `folder`.
///
/// # Errors
/// Whatever is wrong with it.
pub async fn merge_config(
    context: &MergeContext,
    text: String,
    folder: PathBuf,
    out: PathBuf,
    options: Options,
) -> Result<model::Merged> {
    let shared = context.shared.clone();
    let merged = blocking(move || {
        mergeql_tensors::mergekit::run(&text, &folder, &out, &options, |progress| {
            shared.merging(progress.done, progress.total, progress.tensors)
        })
    });
    let merged = merged.await;
    context.shared.merging(0, 0, (0, 0));
    merged
}

/// The page about how some models differ from their base.
///
/// # Errors
/// As reading them.
pub async fn report(paths: Vec<String>, base: String) -> Result<String> {
    blocking(move || {
        let mut models = Vec::new();
        for path in paths {
            models.extend(open(&path, None, None)?);
        }
        mergeql_tensors::report::html(&models, &open_one(&base, None, None)?)
    })
    .await
}
