//! Search over the parameters of strategies by the fitness of what they make: CMA-ES (Akiba et al. 2024, Evolutionary optimization of model
//! merging recipes, arXiv:2403.13187) or a genetic algorithm (Minut et al. 2025, Mergenetic, arXiv:2505.11427). What a candidate is worth
//! somebody else says: a query or a command. Everything else depends on the set of models, the settings and the seed.
//!
//! Every fitness is written to a journal before the next candidate is made. A search that was stopped runs again from the start, and takes
//! from the journal what is known: it makes the same candidates, so that nothing is asked twice.

mod genetic;

use crate::lora;
use crate::method::{self, Kind, Method, Params, Settings, Value, param};
use crate::methods;
use crate::plan::{Request, Rule};
use cmaes::{CMAESOptions, DVector, Mode};
use mergeql_udfs::merkle::{Hash, hex};
use mergeql_udfs::{Code, Error, Result};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The strategies that search.
pub const STRATEGIES: [&str; 2] = ["evolutionary", "genetic"];

/// Whether a strategy searches.
pub fn is_strategy(name: &str) -> bool {
    STRATEGIES.contains(&name)
}

/// What a search itself takes; all else are parameters of the strategy inside.
static METHOD: Method = Method {
    name: "evolutionary",
    params: &[
        param("inner", Kind::Name, "!", "the strategy whose parameters are searched"),
        param("search", Kind::Names, "!", "the parameters that are searched: 'density', or with bounds 'density 0.1..0.9'"),
        param("fitness", Kind::Name, "", "a query that gives one number, greater for better; {} stands for the candidate's folder"),
        param(
            "command",
            Kind::Name,
            "",
            "a command that prints one number last, greater for better; {} stands for the candidate's folder",
        ),
        param("generations", Kind::Count, "10", "how many generations there are at most"),
        param("population", Kind::Count, "0", "how many candidates are in each; 0 for as many as suit the number of parameters"),
        param("seed", Kind::Count, "0", "another seed tries other candidates"),
    ],
    ..Method::COMMON
};

/// Whether a parameter is one of the search, not of the strategy inside.
pub fn is_setting(name: &str) -> bool {
    METHOD.params.iter().any(|p| p.name == name)
}

/// The strategy whose parameters a rule searches, if it names one.
pub(crate) fn inner(params: &Params) -> Option<&str> {
    match params.get("inner") {
        Some(Value::Text(inner)) => Some(inner),
        _ => None,
    }
}

/// Who says what a candidate is worth.
#[derive(Debug, Clone, PartialEq)]
pub enum Fitness {
    /// A query.
    Query(String),
    /// A command of the shell.
    Command(String),
}

/// What is searched along one axis of the unit cube.
#[derive(Debug, Clone, PartialEq)]
struct Axis {
    rule: usize,
    param: &'static str,
    /// The place of a model, for parameters with a value for each.
    model: Option<usize>,
    low: f64,
    high: f64,
    whole: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Evolutionary,
    Genetic,
}

/// A search: which parameters, by which algorithm, and who judges.
#[derive(Debug, Clone)]
pub struct Search {
    algorithm: Algorithm,
    axes: Vec<Axis>,
    generations: usize,
    population: usize,
    seed: u64,
    /// Who says what a candidate is worth.
    pub fitness: Fitness,
    inner: Request,
}

/// What is said of a candidate.
#[derive(Debug)]
pub enum Verdict {
    /// What it is worth.
    Worth(f64),
    /// It cannot be merged, for this reason.
    Useless(Error),
}

/// What a candidate is worth that cannot be merged.
const USELESS: f64 = -1e300;

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// The request with the best parameters.
    pub request: Request,
    /// Their fitness.
    pub fitness: f64,
    /// How many candidates there were.
    pub candidates: usize,
    /// How many of them an earlier run had judged.
    pub resumed: usize,
}

fn wrong(what: impl Into<String>) -> Error {
    Error::invalid_argument(what)
}

/// A parameter that is searched, with its bounds.
fn axis(text: &str, method: &'static Method) -> Result<(&'static method::Param, f64, f64)> {
    let (name, bounds) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let searchable = |p: &&method::Param| matches!(p.kind, Kind::Number | Kind::Share | Kind::Count);
    let Some(param) = method.param(name).filter(searchable) else {
        let names: Vec<&str> = method.params.iter().filter(searchable).map(|p| p.name).collect();
        let help =
            if names.is_empty() { "choose another strategy inside".to_owned() } else { format!("it has {}", names.join(", ")) };
        return Err(wrong(format!("`{}` has no number `{name}` to search", method.name)).with_help(help));
    };
    let (low, high) = match bounds.trim() {
        "" if param.kind == Kind::Count => {
            return Err(wrong(format!("`{name}` is a whole number without bounds")).with_help(format!("write '{name} 1..10'")));
        }
        "" => (0.0, 1.0),
        bounds => {
            let ends = bounds.split_once("..").and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
            let sound = |(a, b): &(f64, f64)| a.is_finite() && b.is_finite() && a < b;
            ends.filter(sound).ok_or_else(|| {
                wrong(format!("`{bounds}` are no bounds of `{name}`")).with_help(format!("write '{name} 0.1..0.9'"))
            })?
        }
    };
    for end in [low, high] {
        method::check(method, param, &Value::Number(end), 1)
            .map_err(|e| e.with_help(format!("these are the bounds of the search: write '{name} LOW..HIGH' with others")))?;
    }
    Ok((param, low, high))
}

impl Search {
    /// The search that a request asks for, if it does.
    ///
    /// # Errors
    /// `invalid_argument` without someone who judges, for rules that search otherwise, and for parameters that are not there.
    pub fn of(request: &Request) -> Result<Option<Search>> {
        if !request.rules.iter().any(|rule| is_strategy(&rule.strategy)) {
            return Ok(None);
        }
        let mut search: Option<Search> = None;
        let mut rules = Vec::new();
        for (number, rule) in request.rules.iter().enumerate() {
            if !is_strategy(&rule.strategy) {
                rules.push(rule.clone());
                continue;
            }
            let (own, mut params): (Params, Params) = rule.params.clone().into_iter().partition(|(name, _)| is_setting(name));
            let as_written = |text: String| text.replace(METHOD.name, &rule.strategy);
            let settings = Settings::new(&METHOD, &own, request.options.semantics, request.models.len()).map_err(|e| Error {
                message: as_written(e.message),
                help: e.help.map(as_written),
                ..e
            })?;
            let count = |name: &str| settings.number(name).unwrap_or(0.0) as usize;
            let fitness = match (settings.word("fitness"), settings.word("command")) {
                (Some(query), None) => Fitness::Query(query.to_owned()),
                (None, Some(command)) => Fitness::Command(command.to_owned()),
                (Some(_), Some(_)) => {
                    return Err(wrong(format!("`{}` has two who say what a candidate is worth", rule.strategy))
                        .with_help("leave fitness or command out"));
                }
                (None, None) => {
                    return Err(wrong(format!("`{}` needs someone who says what a candidate is worth", rule.strategy)).with_help(
                        "write fitness = 'SELECT ... FROM tensor_compare(''{}'', ...)', or command = 'python score.py {}': one number, greater for better",
                    ));
                }
            };
            if let Fitness::Query(text) = &fitness
                && !text.contains("{}")
            {
                return Err(wrong("the query of the fitness names no candidate").with_help(
                    "'{}' in it stands for the candidate's folder: fitness = 'SELECT ... FROM tensor_compare(''{}'', ...)'",
                ));
            }
            for (name, least) in [("generations", 1), ("population", 2)] {
                if own.contains_key(name) && count(name) < least {
                    return Err(wrong(format!("`{name}` of a search is {least} at least")));
                }
            }
            let inner = settings.word("inner").unwrap_or_default();
            if lora::is_strategy(inner) || is_strategy(inner) {
                return Err(wrong(format!("the parameters of `{inner}` cannot be searched"))
                    .with_help("inner is a strategy of models: 'ties'"));
            }
            let (method, preset) = methods::find(inner)?;
            let mut axes = Vec::new();
            for text in settings.texts("search") {
                let (param, low, high) = axis(text, method)?;
                let one = |model| Axis { rule: number, param: param.name, model, low, high, whole: param.kind == Kind::Count };
                let given = |name: &String| method.param(name).is_some_and(|p| p.name == param.name);
                if params.keys().chain(request.options.common.keys()).any(given) {
                    return Err(wrong(format!("`{}` is searched, and has a value", param.name)).with_help("leave one of them out"));
                }
                if axes.iter().any(|a: &Axis| a.param == param.name) {
                    return Err(wrong(format!("`{}` is searched twice", param.name)).with_help("leave one of them out"));
                }
                if param.per_model { axes.extend((0..request.models.len()).map(|at| one(Some(at)))) } else { axes.push(one(None)) }
            }
            if axes.is_empty() {
                return Err(wrong("no parameter is searched").with_help("write search = ['weight', 'density 0.1..0.9']"));
            }
            if let (Some(seed), Some(_)) = (own.get("seed"), method.param("seed")) {
                params.insert("seed".into(), seed.clone());
            }
            params.extend(preset);
            rules.push(Rule { pattern: rule.pattern.clone(), strategy: inner.to_owned(), params });
            let algorithm = if rule.strategy == "genetic" { Algorithm::Genetic } else { Algorithm::Evolutionary };
            let this = Search {
                algorithm,
                axes,
                generations: count("generations"),
                population: count("population"),
                seed: count("seed") as u64,
                fitness,
                inner: request.clone(),
            };
            match &mut search {
                None => search = Some(this),
                Some(first) => {
                    let same = |s: &Search| (s.algorithm, s.generations, s.population, s.seed, s.fitness.clone());
                    if same(first) != same(&this) {
                        return Err(wrong("the rules that search differ in how they do").with_help(
                            "they search together: give all of them the same fitness, generations, population and seed",
                        ));
                    }
                    first.axes.extend(this.axes);
                }
            }
        }
        let Some(mut search) = search else { return Ok(None) };
        search.inner.rules = rules;
        if search.population == 0 {
            let n = search.axes.len() as f64;
            search.population = match search.algorithm {
                // Hansen 2016, The CMA evolution strategy: a tutorial, table 1.
                Algorithm::Evolutionary => 4 + (3.0 * n.ln()) as usize,
                Algorithm::Genetic => 16,
            };
        }
        Ok(Some(search))
    }

    /// What is searched, for people.
    pub fn describe(&self) -> String {
        let axes: Vec<String> = self
            .axes
            .iter()
            .map(|a| {
                let model = a.model.map(|at| format!(" of {}", self.inner.models[at].name)).unwrap_or_default();
                format!("{}{model} in {}..{}", a.param, a.low, a.high)
            })
            .collect();
        let algorithm = match self.algorithm {
            Algorithm::Evolutionary => "CMA-ES",
            Algorithm::Genetic => "a genetic algorithm",
        };
        let by = match &self.fitness {
            Fitness::Query(text) => format!("the query {text}"),
            Fitness::Command(text) => format!("the command {text}"),
        };
        format!(
            "{algorithm} over {}; at most {} generations of {}, seed {}; judged by {by}",
            axes.join(", "),
            self.generations,
            self.population,
            self.seed
        )
    }

    /// Requests with parameters from within their bounds, the middle first: one of them may be no merge at all, as where weights are 0 there.
    pub fn examples(&self) -> impl Iterator<Item = Request> {
        [0.5, 1.0, 0.75, 0.0].into_iter().map(|x| self.at(&vec![x; self.axes.len()]))
    }

    /// The request with the parameters in the middle of their bounds.
    pub fn middle(&self) -> Request {
        self.at(&vec![0.5; self.axes.len()])
    }

    /// The request with the parameters of a point of the unit cube.
    fn at(&self, point: &[f64]) -> Request {
        let mut request = self.inner.clone();
        let models = request.models.len();
        let mut lists: BTreeMap<(usize, &str), Vec<Value>> = BTreeMap::new();
        for (axis, x) in self.axes.iter().zip(point) {
            let value = axis.low + x * (axis.high - axis.low);
            // Few digits: what is found can be written down.
            let value = if axis.whole { value.round() } else { (value * 1e6).round() / 1e6 };
            let value = Value::Number(value.clamp(axis.low, axis.high));
            match axis.model {
                Some(at) => lists.entry((axis.rule, axis.param)).or_insert_with(|| vec![Value::Number(0.0); models])[at] = value,
                None => drop(request.rules[axis.rule].params.insert(axis.param.to_owned(), value)),
            }
        }
        for ((rule, param), values) in lists {
            request.rules[rule].params.insert(param.to_owned(), Value::List(values));
        }
        request
    }

    /// Puts what is searched in the order of the models' hashes, which are those of the statement in its order: that counts for nothing then.
    pub fn in_order(&mut self, hashes: &[Hash]) {
        let hash_of = |axis: &Axis| (axis.rule, axis.param, axis.model.and_then(|at| hashes.get(at)).copied());
        self.axes.sort_by_key(hash_of);
    }

    /// Searches. `hashes` are those of the models, in the order of the statement. `judge` says what a candidate is worth, greater for better,
    /// and why one is worth nothing: the parameters do not go together.
    ///
    /// # Errors
    /// What judging says; `invalid_argument` for a fitness that is no number, and where no candidate is worth anything; `io` for the journal.
    pub fn run(
        mut self,
        hashes: &[Hash],
        base: Option<&Hash>,
        journal: &Path,
        mut judge: impl FnMut(&Request) -> Result<Verdict>,
    ) -> Result<Found> {
        self.in_order(hashes);
        let mut useless: Option<Error> = None;
        let mut journal = Journal::open(journal, &self.title(hashes, base))?;
        let mut best: Option<(f64, Request)> = None;
        let mut count = 0;
        let mut evaluate = |point: &[f64]| -> Result<f64> {
            let request = self.at(point);
            let known = journal.known(point);
            count += usize::from(!matches!(known, Some((_, true))));
            let fitness = match known {
                Some((known, _)) => known,
                None => {
                    let fitness = match judge(&request)? {
                        Verdict::Worth(fitness) => fitness,
                        Verdict::Useless(error) => {
                            useless.get_or_insert(error);
                            USELESS
                        }
                    };
                    if !fitness.is_finite() {
                        return Err(wrong(format!("the fitness of candidate {count} is {fitness}"))
                            .with_help("a fitness is a finite number, greater for better"));
                    }
                    journal.add(point, fitness)?;
                    fitness
                }
            };
            // Of equals the first: candidates come in one order.
            if fitness > USELESS && best.as_ref().is_none_or(|(known, _)| fitness > *known) {
                best = Some((fitness, request));
            }
            Ok(fitness)
        };
        match self.algorithm {
            Algorithm::Evolutionary => {
                let mut failed = None;
                let objective = |x: &DVector<f64>| {
                    let point: Vec<f64> = x.iter().map(|x| folded(*x)).collect();
                    // NaN ends the search.
                    evaluate(&point).unwrap_or_else(|e| {
                        failed.get_or_insert(e);
                        f64::NAN
                    })
                };
                let options = CMAESOptions::new(vec![0.5; self.axes.len()], 0.3)
                    .mode(Mode::Maximize)
                    .population_size(self.population)
                    .max_generations(self.generations)
                    .seed(self.seed);
                let mut state =
                    options.build(objective).map_err(|e| wrong(format!("these parameters cannot be searched: {e:?}")))?;
                state.run();
                drop(state);
                if let Some(error) = failed {
                    return Err(error);
                }
            }
            Algorithm::Genetic => genetic::run(self.axes.len(), self.generations, self.population, self.seed, &mut evaluate)?,
        }
        let resumed = journal.used;
        let (fitness, request) = best.ok_or_else(|| {
            let why = useless.map(|e| e.message).unwrap_or_default();
            wrong(format!("no candidate can be merged: {why}"))
                .with_help("narrow the bounds of what is searched: 'density 0.3..0.7'")
        })?;
        Ok(Found { request, fitness, candidates: count, resumed })
    }

    /// What a journal must be of.
    fn title(&self, hashes: &[Hash], base: Option<&Hash>) -> String {
        let mut hash = Sha256::new();
        let mut add = |text: &str| crate::sealed::part(&mut hash, text.as_bytes());
        let mut sorted: Vec<String> = hashes.iter().map(hex).collect();
        sorted.sort();
        add(&format!("{:?} {:?} {:?} {:?}", self.algorithm, self.generations, self.population, self.seed));
        add(&format!("{:?} {sorted:?} {:?}", self.fitness, base.map(hex)));
        for axis in &self.axes {
            let model = axis.model.and_then(|at| hashes.get(at)).map(hex);
            add(&format!("{} {} {model:?} {} {} {}", axis.rule, axis.param, axis.low, axis.high, axis.whole));
        }
        for rule in &self.inner.rules {
            add(&format!("{} {} {:?}", rule.pattern, rule.strategy, rule.params));
        }
        // Where the order of models counts, it is part of what is searched.
        let rules = || self.inner.rules.iter();
        if rules().any(|rule| methods::find(&rule.strategy).is_ok_and(|(method, _)| method.ordered)) {
            add(&format!("{:?}", hashes.iter().map(hex).collect::<Vec<_>>()));
        }
        let options = &self.inner.options;
        add(&format!(
            "{:?} {:?} {:?} {:?} {:?} {} {}",
            options.dtype,
            options.out_dtype,
            options.semantics,
            options.common,
            options.names,
            options.align,
            options.merge_present
        ));
        hex(&hash.finalize().into())
    }
}

/// A number brought into the unit interval, as if its ends were mirrors.
fn folded(x: f64) -> f64 {
    let x = x.rem_euclid(2.0);
    if x > 1.0 { 2.0 - x } else { x }
}

/// What is known of candidates: a line for the search, and one for each.
struct Journal {
    path: PathBuf,
    file: std::fs::File,
    /// What a point is worth, and whether this run has asked for it.
    known: BTreeMap<Vec<u64>, (f64, bool)>,
    /// How many points an earlier run had judged for this one.
    used: usize,
}

fn bits(point: &[f64]) -> Vec<u64> {
    point.iter().map(|x| x.to_bits()).collect()
}

impl Journal {
    fn open(path: &Path, title: &str) -> Result<Journal> {
        let failed = |e: std::io::Error| Error::new(Code::Io, format!("`{}`: {e}", path.display()));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut lines = text.lines();
        let same = lines.next().is_some_and(|line| line == title);
        let entry = |line: &str| -> Option<(Vec<f64>, f64)> {
            let json: Json = serde_json::from_str(line).ok()?;
            Some((json["point"].as_array()?.iter().map(Json::as_f64).collect::<Option<_>>()?, json["fitness"].as_f64()?))
        };
        // A line that was cut off ends what is known.
        let entries: Vec<(Vec<f64>, f64)> = if same { lines.map_while(entry).collect() } else { Vec::new() };
        // Two searches in one place would judge each other's candidates.
        let mut file = std::fs::File::options().create(true).write(true).truncate(false).open(path).map_err(failed)?;
        file.try_lock().map_err(|_| {
            Error::new(Code::Io, format!("`{}`: another search runs here", path.display()))
                .with_help("wait for it, or choose another place for the output")
        })?;
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{title}").map_err(failed)?;
        for (point, fitness) in &entries {
            writeln!(file, "{}", json!({ "point": point, "fitness": fitness })).map_err(failed)?;
        }
        let known = entries.into_iter().map(|(point, fitness)| (bits(&point), (fitness, false))).collect();
        Ok(Journal { path: path.to_owned(), file, known, used: 0 })
    }

    /// What a point is worth, and whether this run has asked before.
    fn known(&mut self, point: &[f64]) -> Option<(f64, bool)> {
        let entry = self.known.get_mut(&bits(point))?;
        let known = *entry;
        self.used += usize::from(!known.1);
        entry.1 = true;
        Some(known)
    }

    fn add(&mut self, point: &[f64], fitness: f64) -> Result<()> {
        self.known.insert(bits(point), (fitness, true));
        let line = json!({ "point": point, "fitness": fitness });
        let written = writeln!(self.file, "{line}").and_then(|()| self.file.sync_data());
        written.map_err(|e| Error::new(Code::Io, format!("`{}`: {e}", self.path.display())))
    }
}

/// Runs a command of the shell on a candidate: the last line that it prints is its fitness.
///
/// # Errors
/// `io` where it cannot be run, or fails; `invalid_argument` where it prints no number.
pub fn command(text: &str, candidate: &Path) -> Result<f64> {
    let path = candidate.to_string_lossy();
    let quoted = format!("'{}'", path.replace('\'', r"'\''"));
    let mut shell = if cfg!(windows) { std::process::Command::new("cmd") } else { std::process::Command::new("sh") };
    let text = if cfg!(windows) { text.replace("{}", &format!("\"{path}\"")) } else { text.replace("{}", &quoted) };
    shell.arg(if cfg!(windows) { "/C" } else { "-c" }).arg(&text).env("MERGEQL_CANDIDATE", candidate);
    let failed = |what: String| Error::new(Code::Io, format!("`{text}` {what}"));
    let output = shell.stdin(std::process::Stdio::null()).output().map_err(|e| failed(format!("could not be run: {e}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        return Err(failed(format!("ended with {}, and said: {last}", output.status)));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    last.trim().parse().map_err(|_| {
        let said =
            if last.is_empty() { "printed nothing".to_owned() } else { format!("printed `{last}` last, which is no number") };
        wrong(format!("`{text}` {said}")).with_help("a fitness is one number on the last line, greater for better")
    })
}
