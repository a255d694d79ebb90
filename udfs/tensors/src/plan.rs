//! What a merge will do, from headers alone: which tensors, by which method, of which models. All that can be wrong with a statement is found
//! here, before a byte is written.

use crate::align;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::dtype::{self, Dtype};
use crate::lora;
use crate::method::{Base, Input, Job, Kind, Method, Params, Semantics, Settings, Sides, Value};
use crate::methods;
use mergeql_udfs::{Code, Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A model that takes part.
#[derive(Debug, Clone)]
pub struct Model {
    /// What it is called.
    pub name: String,
    /// Its tensors.
    pub checkpoint: Checkpoint,
    /// How much it counts, where that is said.
    pub weight: Option<f64>,
    /// What it contributes, where its tensors are made of that: the factors of an adapter, the tensors under their own names.
    pub source: Option<Box<Checkpoint>>,
}

impl Model {
    /// A model with the tensors of a checkpoint.
    pub fn new(name: impl Into<String>, checkpoint: Checkpoint) -> Model {
        Model { name: name.into(), checkpoint, weight: None, source: None }
    }

    /// What its contribution is named by.
    pub fn contributed(&self) -> &Checkpoint {
        self.source.as_deref().unwrap_or(&self.checkpoint)
    }

    /// The same model with tensors that are made of its own.
    pub(crate) fn made(self, tensors: BTreeMap<String, Tensor>) -> Model {
        let Model { name, checkpoint, weight, source } = self;
        let made = Checkpoint { tensors, ..checkpoint.clone() };
        Model { name, checkpoint: made, weight, source: source.or(Some(Box::new(checkpoint))) }
    }
}

/// Which tensors a method merges.
#[derive(Debug, Clone)]
pub struct Rule {
    /// A name, a pattern with `*`, `?` and `[...]`, or `*`.
    pub pattern: String,
    /// The name of the method.
    pub strategy: String,
    /// Its parameters.
    pub params: Params,
}

/// What holds for the whole merge.
#[derive(Debug, Clone)]
pub struct Options {
    /// The type of the output; by default that of the base, or the common one of the models.
    pub out_dtype: Option<Dtype>,
    /// The type that tensors are rounded to when they are read.
    pub dtype: Option<Dtype>,
    /// Whose numbers are given where a paper and its best known implementation differ.
    pub semantics: Semantics,
    /// Whether NaN and infinity are let through.
    pub propagate_nan: bool,
    /// Whether a tensor that some models lack is merged from those that have it.
    pub merge_present: bool,
    /// Parameters for every rule whose method has them: `lambda`, `seed` ...
    pub common: Params,
    /// The most bytes of one output file.
    pub max_shard_size: Option<u64>,
    /// The most bytes held for tiles.
    pub memory_limit: u64,
    /// Whether an output that exists is replaced.
    pub overwrite: bool,
    /// Where elements are computed.
    pub backend: Backend,
    /// What the tensors of the models are called among each other: nothing, one map for all, or one for each ([`crate::align::Names`]).
    pub names: Vec<String>,
    /// Whether matrices are turned onto those of the base first.
    pub align: bool,
    /// A folder in which merged tensors are kept for the next merge.
    pub cache: Option<PathBuf>,
    /// The most bytes in it.
    pub cache_size: u64,
    /// What is read from tables where files could stand.
    pub tables: Tables,
    /// Whether to go on.
    pub stop: Stop,
}

/// Ends a merge that nobody waits for any more, between two pieces of a tensor. What it has written by then is where a later run goes on.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends whatever has this one or a copy of it.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// `io` when it is to end.
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Error::new(Code::Io, "the merge was stopped")),
            false => Ok(()),
        }
    }
}

/// Tables of a database in the place of files, by what they are called in parameters.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Tensors beside the models.
    pub tensors: BTreeMap<String, Checkpoint>,
    /// Names of tensors: what they are, and what they become.
    pub names: BTreeMap<String, Vec<(String, String)>>,
}

/// Where elements are computed. The bytes are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// On the CPU, which merges at the speed of memory: that is as fast as elements come to a device and back.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On a GPU, where a method has a program for it.
    Gpu,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            out_dtype: None,
            dtype: None,
            semantics: Semantics::Paper,
            propagate_nan: false,
            merge_present: false,
            common: Params::new(),
            max_shard_size: None,
            memory_limit: 512 << 20,
            overwrite: false,
            backend: Backend::Auto,
            names: Vec::new(),
            align: false,
            cache: None,
            cache_size: 10_000_000_000,
            tables: Tables::default(),
            stop: Stop::default(),
        }
    }
}

/// A merge as it is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The models, in the order in which they are written.
    pub models: Vec<Model>,
    /// What they started from.
    pub base: Option<Model>,
    /// Which method merges which tensors.
    pub rules: Vec<Rule>,
    /// What holds for all of them.
    pub options: Options,
}

/// How a tensor comes about.
#[derive(Debug, Clone)]
pub enum How {
    /// By a method.
    Merge(Box<Merge>),
    /// It was made with the plan.
    Made {
        /// By which strategy.
        by: &'static str,
        /// With which parameters, as they would be written.
        with: String,
        /// Of which models, by name.
        from: Vec<String>,
        /// How many bytes were read for it.
        reads: u64,
        /// What was made.
        tensor: Tensor,
    },
    /// As it is in all that have it.
    Copy {
        /// Where it is read.
        from: Tensor,
        /// The same tensor elsewhere; all must have the same bytes.
        others: Vec<Tensor>,
    },
}

/// What a method gets for a tensor.
#[derive(Debug, Clone)]
pub struct Merge {
    /// The method.
    pub method: &'static Method,
    /// Its parameters.
    pub settings: Settings,
    /// The tensor in each model.
    pub models: Vec<Input>,
    /// The tensor in the base.
    pub base: Option<Input>,
    /// Files beside the models.
    pub sides: Sides,
}

/// A tensor of the output.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its type.
    pub dtype: Dtype,
    /// How it comes about.
    pub how: How,
}

impl Task {
    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes it takes.
    pub fn bytes(&self) -> u64 {
        self.len() as u64 * self.dtype.bitsize() as u64 / 8
    }

    /// What is read for it, in bytes.
    pub fn reads(&self) -> u64 {
        let size = |t: &Tensor| t.bytes.end - t.bytes.start;
        match &self.how {
            How::Merge(merge) => merge.models.iter().chain(&merge.base).map(|i| size(&i.tensor)).sum(),
            How::Made { reads, .. } => *reads,
            How::Copy { from, others } => size(from) + others.iter().map(size).sum::<u64>(),
        }
    }

    /// The method's name, or `copy`.
    pub fn strategy(&self) -> &'static str {
        match &self.how {
            How::Merge(merge) => merge.method.name,
            How::Made { by, .. } => by,
            How::Copy { .. } => "copy",
        }
    }
}

impl Merge {
    /// What the method is told.
    pub fn job<'a>(&'a self, task: &'a Task) -> Job<'a> {
        Job {
            name: &task.name,
            shape: &task.shape,
            models: &self.models,
            base: self.base.as_ref(),
            settings: &self.settings,
            sides: self.sides.clone(),
            offset: 0,
            survey: None,
        }
    }

    /// Whether the method looks at all tensors first.
    pub fn surveys(&self) -> bool {
        self.method.survey.is_some_and(|(needs, _)| needs(&self.settings))
    }
}

/// What a merge will do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The models, the base not among them.
    pub models: Vec<Model>,
    /// What they started from.
    pub base: Option<Model>,
    /// The tensors of the output, by name.
    pub tasks: Vec<Task>,
    /// What holds for all of them.
    pub options: Options,
    /// What a reader should know: tensors that some models lack, rules that match nothing.
    pub notes: Vec<String>,
    /// What else the answer depends on, as the tokens that rows stand for.
    pub context: String,
}

/// Whether a name matches a pattern with `*`, `?` and `[...]`.
pub fn matches(pattern: &str, name: &str) -> bool {
    pattern == name || glob::Pattern::new(pattern).is_ok_and(|p| p.matches(name))
}

/// The rule for a tensor: one with its very name, then a pattern, then `*`; of two as specific, the first.
pub(crate) fn rule_of<'r>(rules: &'r [Rule], name: &str) -> Option<&'r Rule> {
    let rank = |rule: &Rule| {
        if rule.pattern == name {
            0
        } else if rule.pattern == "*" {
            2
        } else {
            1
        }
    };
    rules.iter().filter(|r| matches(&r.pattern, name)).min_by_key(|r| rank(r))
}

/// The type that holds what all of these hold, in whichever order they come.
pub fn common_dtype(types: impl IntoIterator<Item = Dtype>) -> Option<Dtype> {
    let mut all: Vec<Dtype> = Vec::new();
    for dtype in types {
        if !all.contains(&dtype) {
            all.push(dtype);
        }
    }
    let has = |dtype: Dtype| all.contains(&dtype);
    let small = |dtype: &Dtype| matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2);
    Some(match all.as_slice() {
        [] => return None,
        [one] => *one,
        _ if has(Dtype::F64) => Dtype::F64,
        _ if !all.iter().all(small) || has(Dtype::F16) && has(Dtype::BF16) => Dtype::F32,
        _ if has(Dtype::F16) => Dtype::F16,
        _ if has(Dtype::BF16) => Dtype::BF16,
        // Neither of the two of eight bits holds the other.
        _ => Dtype::F32,
    })
}

/// A tensor that is taken as it is: no arithmetic merges it, and it is the same in all that have it.
///
/// # Errors
/// `type_mismatch` where they have other shapes or types.
pub(crate) fn copy_task(name: &str, mut tensors: impl Iterator<Item = Tensor>, out: Option<Dtype>) -> Result<Option<Task>> {
    let Some(from) = tensors.next() else { return Ok(None) };
    let others: Vec<Tensor> = tensors.collect();
    if let Some(other) = others.iter().find(|t| t.shape != from.shape || t.dtype != from.dtype) {
        return Err(Error::type_mismatch(format!(
            "tensor `{name}` is {} {:?} in `{}` and {} {:?} in `{}`",
            dtype::name(from.dtype),
            from.shape,
            from.file().display(),
            dtype::name(other.dtype),
            other.shape,
            other.file().display()
        ))
        .with_help("only floats are merged: leave the tensor out of the models that have the wrong one"));
    }
    let dtype = out.filter(|_| dtype::is_float(from.dtype)).unwrap_or(from.dtype);
    Ok(Some(Task { name: name.to_owned(), shape: from.shape.clone(), dtype, how: How::Copy { from, others } }))
}

/// A method with its checked parameters and the files that they name.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The method.
    pub method: &'static Method,
    /// Its parameters.
    pub settings: Settings,
    /// The files.
    pub sides: Sides,
}

/// Checks a strategy and its parameters for some models.
///
/// # Errors
/// `unknown_strategy`, `unknown_option`, `invalid_argument`; `io` for files beside the models.
pub fn choose(strategy: &str, params: &Params, options: &Options, models: usize, files: &mut Files) -> Result<Chosen> {
    let (method, mut all) = methods::find(strategy)?;
    // Under its own name, whichever of its names a parameter was given by: what the rule says counts before what all have.
    let own = |name: &String| method.param(name).map_or_else(|| name.clone(), |param| param.name.to_owned());
    for (name, value) in &options.common {
        if method.param(name).is_some() {
            all.insert(own(name), value.clone());
        }
    }
    let mut given = BTreeMap::new();
    for (name, value) in params {
        if let Some(other) = given.insert(own(name), name) {
            return Err(Error::invalid_argument(format!("`{name}` and `{other}` of `{strategy}` are one parameter"))
                .with_help("leave one of them out"));
        }
        all.insert(own(name), value.clone());
    }
    let settings = Settings::new(method, &all, options.semantics, models)?;
    let mut sides = BTreeMap::new();
    for param in method.params.iter().filter(|p| matches!(p.kind, Kind::File | Kind::Files)) {
        let paths = settings.texts(param.name);
        if !paths.is_empty() {
            sides.insert(param.name, paths.into_iter().map(|path| files.open(path)).collect::<Result<Vec<_>>>()?);
        }
    }
    Ok(Chosen { method, settings, sides: Arc::new(sides) })
}

/// Files that are open already.
#[derive(Debug, Default)]
pub struct Files(BTreeMap<PathBuf, Checkpoint>);

impl Files {
    /// The tables of a merge, which are open.
    pub fn of(tables: &Tables) -> Files {
        Files(tables.tensors.iter().map(|(name, tensors)| (name.into(), tensors.clone())).collect())
    }

    /// Opens a checkpoint, once.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(&mut self, path: &str) -> Result<Checkpoint> {
        if let Some(open) = self.0.get(std::path::Path::new(path)) {
            return Ok(open.clone());
        }
        let checkpoint = Checkpoint::open(path)?;
        self.0.insert(path.into(), checkpoint.clone());
        Ok(checkpoint)
    }
}

/// Checks that what a method gets is what it takes, and makes the task.
///
/// # Errors
/// `type_mismatch` for shapes that differ; `invalid_argument` for a base that is missing, or too many or too few models.
pub fn merge_task(name: &str, chosen: &Chosen, models: Vec<Input>, base: Option<Input>, out: Option<Dtype>) -> Result<Task> {
    let method = chosen.method;
    let first =
        models.first().or(base.as_ref()).ok_or_else(|| Error::invalid_argument(format!("no model has the tensor `{name}`")))?;
    let shape = first.tensor.shape.clone();
    for input in models.iter().chain(&base) {
        if input.tensor.shape != shape {
            return Err(Error::type_mismatch(format!(
                "tensor `{name}` has the shape {shape:?} in `{}` and {:?} in `{}`",
                first.tensor.file().display(),
                input.tensor.shape,
                input.tensor.file().display()
            ))
            .with_help("models of one architecture have tensors of the same shapes; name a strategy for the others by a pattern, or leave them out"));
        }
    }
    if method.base == Base::Required && base.is_none() {
        return Err(Error::invalid_argument(format!(
            "`{}` works on what each model changed, and tensor `{name}` has no base",
            method.name
        ))
        .with_help("name the model that they all started from: BASE 'base.safetensors'; for a tensor that it lacks, another strategy by the tensor's name"));
    }
    // The output has the type of the base, also where a method takes none.
    let of_base = base.as_ref().map(|b| b.tensor.dtype);
    let base = base.filter(|_| method.base != Base::None);
    let (least, most) = method.beside_base.filter(|_| base.is_some()).unwrap_or(method.models);
    if models.len() < least || models.len() > most {
        let wanted = match (least, most) {
            (a, b) if a == b => a.to_string(),
            (a, usize::MAX) => format!("{a} or more"),
            (a, b) => format!("{a} to {b}"),
        };
        return Err(Error::invalid_argument(format!(
            "`{}` takes {wanted} models, and tensor `{name}` comes in {}",
            method.name,
            models.len()
        ))
        .with_help("choose another strategy, or other models"));
    }
    let types = models.iter().map(|i| i.tensor.dtype);
    let dtype = out.or(of_base).or_else(|| common_dtype(types)).unwrap_or(Dtype::F32);
    let merge = Merge { method, settings: chosen.settings.clone(), models, base, sides: chosen.sides.clone() };
    let task = Task { name: name.to_owned(), shape, dtype, how: How::Merge(Box::new(merge)) };
    let How::Merge(merge) = &task.how else { return Ok(task) };
    let weights = merge.job(&task).of_models("weight");
    if method.weighs() && merge.settings.semantics == Semantics::Paper && !weights.is_empty() && weights.iter().all(|w| *w == 0.0) {
        return Err(Error::invalid_argument(format!("the weights of tensor `{name}` are all 0, and sum to zero"))
            .with_help("give a model a weight, or leave the weights out"));
    }
    (method.check)(&merge.job(&task))?;
    // Arithmetic is in f32; where there is none, doubles stay what they are.
    if let [input] = &merge.models[..]
        && method.name == "passthrough"
        && merge.settings.of_model("scale", input.place).unwrap_or(1.0) == 1.0
        && input.tensor.stays(dtype)
    {
        let from = input.tensor.clone();
        return Ok(Task { how: How::Copy { from, others: Vec::new() }, ..task });
    }
    Ok(task)
}

impl Plan {
    /// Plans a merge.
    ///
    /// # Errors
    /// Whatever is wrong with it: see section 4 of the manual's page on tensors.
    pub fn new(request: Request) -> Result<Plan> {
        let Request { mut models, mut base, rules, options } = request;
        if models.is_empty() {
            return Err(Error::invalid_argument("a merge needs at least one model")
                .with_help("MERGE MODELS 'a.safetensors', 'b.safetensors' ..."));
        }
        for model in models.iter_mut().chain(&mut base) {
            model.checkpoint = model.checkpoint.clone().lenient(options.propagate_nan);
        }
        for (at, model) in models.iter().enumerate() {
            let other = models[..at].iter().find(|m| m.name == model.name && !m.checkpoint.is_same(&model.checkpoint));
            if let Some(other) = other {
                let [one, two] = [other, model].map(|m| m.checkpoint.path.display().to_string());
                return Err(Error::new(Code::DuplicateSource, format!("two models are called `{}`: {one} and {two}", model.name))
                    .with_help("give one of them another name with AS; in a set, remove one by its hash"));
            }
        }
        let mut notes = Vec::new();
        let (named, mut context) = align::named(models, &options.names, &options.tables.names)?;
        models = named;
        models = lora::beside(models, base.as_ref(), &mut notes)?;
        if options.align {
            models = align::turned(models, base.as_ref(), &mut notes)?;
            context.push("align: procrustes".to_owned());
        }
        let mut files = Files::of(&options.tables);
        // What is named twice is there once; lists of parameters must keep their places.
        let all = || rules.iter().map(|r| &r.params).chain([&options.common]);
        let places = all().any(|params| params.contains_key("task") || params.values().any(|v| matches!(v, Value::List(_))));
        if !places {
            let mut seen: Vec<Model> = Vec::new();
            for model in models {
                let bits = |m: &Model| m.weight.map(f64::to_bits);
                if !seen.iter().any(|m| m.name == model.name && bits(m) == bits(&model) && m.checkpoint.is_same(&model.checkpoint))
                {
                    seen.push(model);
                }
            }
            models = seen;
        }
        // Weights under any of the names that a strategy has for them.
        let weighs = |rule: &&Rule| {
            let Ok((method, _)) = methods::find(&rule.strategy) else { return false };
            let Some(weight) = method.param("weight") else { return false };
            rule.params.keys().any(|name| method.param(name).is_some_and(|p| p.name == weight.name))
        };
        let weighted = rules.iter().find(weighs);
        let is_weight = |name: &&String| {
            let of_rule =
                |r: &Rule| methods::find(&r.strategy).is_ok_and(|(m, _)| m.param(name).is_some_and(|p| p.name == "weight"));
            rules.iter().any(of_rule)
        };
        if let Some(name) = options.common.keys().find(is_weight).filter(|_| models.iter().any(|m| m.weight.is_some())) {
            return Err(Error::invalid_argument(format!("the models have weights, and `{name}` gives others"))
                .with_help("write WEIGHT after the models, or weight = [...] for all"));
        }
        if let Some(rule) = weighted.filter(|_| models.iter().any(|m| m.weight.is_some())) {
            return Err(Error::invalid_argument(format!(
                "the models have weights, and the rule for `{}` has others",
                rule.pattern
            ))
            .with_help("write WEIGHT after the models, or weight = [...] in the rules"));
        }
        // Weights that nothing asks for are as wrong as other parameters that a strategy does not have.
        if models.iter().any(|m| m.weight.is_some()) {
            let chosen: BTreeSet<&str> = rules
                .iter()
                .filter_map(|r| Some(methods::find(&r.strategy).ok()?.0))
                .filter(|m| !m.weighs())
                .map(|m| m.name)
                .collect();
            let named = chosen.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let weighed = rules.iter().any(|r| methods::find(&r.strategy).is_ok_and(|(m, _)| m.weighs()));
            if !chosen.is_empty() && !weighed {
                return Err(Error::new(Code::UnknownOption, format!("the models have weights, and {named} has no use for them"))
                    .with_help("leave WEIGHT out, or choose a strategy that weighs its models"));
            }
            if !chosen.is_empty() {
                notes.push(format!("the weights of the models count for nothing in {named}"));
            }
        }
        // Weights are a list for the strategies that have one, in the order of the models.
        let mut common = options.clone();
        if models.iter().any(|m| m.weight.is_some()) {
            let weights = models.iter().map(|m| Value::Number(m.weight.unwrap_or(1.0))).collect();
            common.common.insert("weight".into(), Value::List(weights));
        }
        let mut chosen = Vec::new();
        for rule in &rules {
            chosen.push(choose(&rule.strategy, &rule.params, &common, models.len(), &mut files)?);
        }
        let names: BTreeSet<&String> = models.iter().chain(&base).flat_map(|m| m.checkpoint.tensors.keys()).collect();
        for rule in &rules {
            if let (Err(error), false) = (glob::Pattern::new(&rule.pattern), names.contains(&rule.pattern)) {
                return Err(Error::invalid_argument(format!("`{}` is no pattern: {}", rule.pattern, error.msg))
                    .with_help("a pattern has `*`, `?` and `[...]`; `[[]` stands for a bracket itself"));
            }
        }
        let (mut tasks, mut used) = (Vec::new(), vec![false; rules.len()]);
        for name in names {
            let read = |tensor: &Tensor| options.dtype.map_or_else(|| tensor.clone(), |dtype| tensor.rounded(dtype));
            let at = |model: &Model| model.checkpoint.get(name).map(read);
            let lacking: Vec<&str> = models.iter().filter(|m| at(m).is_none()).map(|m| m.name.as_str()).collect();
            let inputs: Vec<Input> = models
                .iter()
                .enumerate()
                .filter_map(|(place, m)| Some(Input { tensor: at(m)?, hash: [0; 32], place, model: place }))
                .collect();
            let of_base = base.as_ref().and_then(at);
            if !lacking.is_empty() {
                if !options.merge_present {
                    return Err(Error::invalid_argument(format!("tensor `{name}` is not in {}", lacking.join(", ")))
                        .with_help("merge it from the models that have it with WITH (missing = 'present')"));
                }
                notes.push(format!("tensor `{name}` is not in {}", lacking.join(", ")));
            }
            let Some(rule) = rule_of(&rules, name) else {
                return Err(Error::invalid_argument(format!("no rule is for the tensor `{name}`"))
                    .with_help("add a rule for the rest: * = linear"));
            };
            let index = rules.iter().position(|r| std::ptr::eq(r, rule)).unwrap_or(0);
            used[index] = true;
            let all = || inputs.iter().map(|i| &i.tensor).chain(&of_base);
            let copied = all().any(|t| !dtype::is_float(t.dtype)) || inputs.is_empty();
            if copied {
                tasks.extend(copy_task(name, all().cloned(), options.out_dtype)?);
                continue;
            }
            // What only the models have is new: it is merged as if it had been nothing, only where that is asked for.
            let in_base = of_base.map(|tensor| Input { tensor, hash: [0; 32], place: usize::MAX, model: usize::MAX });
            tasks.push(merge_task(name, &chosen[index], inputs, in_base, options.out_dtype)?);
        }
        for (rule, _) in rules.iter().zip(&used).filter(|(_, used)| !**used) {
            notes.push(format!("no tensor is called `{}`", rule.pattern));
        }
        if tasks.is_empty() {
            let files: Vec<String> = models.iter().map(|m| m.checkpoint.path.display().to_string()).collect();
            return Err(Error::invalid_argument(format!("the models have no tensors: {}", files.join(", ")))
                .with_help("name files or folders with tensors"));
        }
        Ok(Plan { models, base, tasks, options, notes, context: context.join("\n") })
    }

    /// What is read, in bytes; twice that with the pass that hashes.
    pub fn reads(&self) -> u64 {
        self.tasks.iter().map(Task::reads).sum()
    }

    /// What is written, in bytes.
    pub fn writes(&self) -> u64 {
        self.tasks.iter().map(Task::bytes).sum()
    }

    /// Whether the answer depends on the order in which the models are written, and why.
    pub fn ordered(&self) -> BTreeSet<&'static str> {
        let ordered = |task: &Task| match &task.how {
            How::Merge(merge) if merge.method.ordered || (merge.method.by_place)(&merge.settings) => Some(merge.method.name),
            _ => None,
        };
        self.tasks.iter().filter_map(ordered).collect()
    }
}
