//! A method: how the tensors of some models become one. Each has a file in `methods/`, and an entry in [`methods::ALL`].
//!
//! [`methods::ALL`]: crate::methods::ALL

use crate::checkpoint::{Buffer, Checkpoint, Tensor};
use crate::plan::Plan;
use crate::program::{Inputs, Program};
use crate::reduce;
use crate::select::Cut;
use crate::simd::vectors;
use mergeql_udfs::{Code, Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Whether a method works on differences to a base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// It takes none.
    None,
    /// It works with and without.
    Optional,
    /// It cannot do without.
    Required,
}

/// What values a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Any finite number.
    Number,
    /// A number from 0 to 1.
    Share,
    /// A whole number, from 0.
    Count,
    /// true or false.
    Flag,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Any name or text.
    Name,
    /// One or several of them.
    Names,
    /// A file.
    File,
    /// A file of each model, or one for all of them.
    Files,
}

/// A parameter of a method.
#[derive(Debug, Clone, Copy)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it is where it isn't given, as it would be written; `""` where it has no value then, `"!"` where it must be given.
    pub default: &'static str,
    /// Whether it may be a list with one value for each model.
    pub per_model: bool,
    /// What it does.
    pub title: &'static str,
}

/// A parameter with one value.
pub const fn param(name: &'static str, kind: Kind, default: &'static str, title: &'static str) -> Param {
    Param { name, kind, default, per_model: false, title }
}

/// A parameter with a value for each model, or one for all.
pub const fn each(name: &'static str, kind: Kind, default: &'static str, title: &'static str) -> Param {
    Param { name, kind, default, per_model: true, title }
}

/// The weight of each model, which most methods have.
pub const WEIGHT: Param = each("weight", Kind::Number, "1", "how much each model counts");
/// The factor of the merged task vector.
pub const LAMBDA: Param = param("lambda", Kind::Number, "1", "scales the merged task vector");

/// Gives the kernel for one tensor, after whatever must be known of the whole of it.
pub type Prepare = for<'a> fn(&'a Job<'a>) -> Result<Kernel<'a>>;
/// Looks at all tensors of the models first.
pub type Look = fn(&[Job<'_>]) -> Result<Survey>;

/// Plans what is written beside the model, if anything.
pub type Along = fn(&Plan) -> Option<Plan>;

/// Whether these settings need a look at all tensors.
pub type Needs = fn(&Settings) -> bool;

/// How the tensors of some models become one.
#[derive(Clone, Copy)]
pub struct Method {
    /// Its name in a statement.
    pub name: &'static str,
    /// Other names, each with the parameters that it stands for.
    pub aliases: &'static [(&'static str, &'static [(&'static str, &'static str)])],
    /// Other names of parameters.
    pub synonyms: &'static [(&'static str, &'static str)],
    /// One line on what it does.
    pub title: &'static str,
    /// Where it was published.
    pub paper: &'static str,
    /// Whether it takes a base.
    pub base: Base,
    /// How many models it takes, the base not counted.
    pub models: (usize, usize),
    /// How many beside a base, where that is another number.
    pub beside_base: Option<(usize, usize)>,
    /// Whether the answer depends on the order in which the models are written. EXPLAIN and the manual say so.
    pub ordered: bool,
    /// Whether parameters or files speak of models by their places in the statement: then the order of the models counts, too.
    pub by_place: fn(&Settings) -> bool,
    /// Whether it reads each element once, so that there is no use in holding them.
    pub reads_once: bool,
    /// Its parameters.
    pub params: &'static [Param],
    /// What can be wrong with a tensor's parameters and files, without reading an element.
    pub check: fn(&Job<'_>) -> Result<()>,
    /// The kernel of one tensor.
    pub prepare: Prepare,
    /// What it writes beside the model, and the end of that file's name.
    pub along: Option<(&'static str, Along)>,
    /// For methods that look at all tensors of the models first: whether these settings need that, and what it finds.
    pub survey: Option<(Needs, Look)>,
}

impl Method {
    /// What most methods have in common.
    pub const COMMON: Method = Method {
        name: "",
        aliases: &[],
        synonyms: &[],
        title: "",
        paper: "",
        base: Base::Required,
        models: (1, usize::MAX),
        beside_base: None,
        ordered: false,
        by_place: |_| false,
        reads_once: false,
        params: &[],
        check: |_| Ok(()),
        prepare: |_| Ok(Kernel::Whole(Vec::new())),
        along: None,
        survey: None,
    };

    /// Whether the weights that a statement gives its models count.
    pub fn weighs(&self) -> bool {
        self.param("weight").is_some()
    }

    /// The parameter of this name.
    pub fn param(&self, name: &str) -> Option<&'static Param> {
        let name = if name == "weights" { "weight" } else { name };
        let own = self.params.iter().find(|p| p.name == name);
        own.or_else(|| {
            let (_, name) = self.synonyms.iter().find(|(other, _)| *other == name)?;
            self.params.iter().find(|p| p.name == *name)
        })
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A value of a parameter, as it is written.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `0.5`
    Number(f64),
    /// `true`
    Flag(bool),
    /// `'paper'`
    Text(String),
    /// `[0.5, 0.3]`
    List(Vec<Value>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(v) => write!(f, "{v}"),
            Value::Flag(v) => write!(f, "{v}"),
            Value::Text(v) => write!(f, "'{}'", v.replace('\'', "''")),
            Value::List(values) => {
                let items: Vec<String> = values.iter().map(Value::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
        }
    }
}

/// Parameters by name.
pub type Params = BTreeMap<String, Value>;

/// Whose numbers are given where a paper and its best known implementation differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Semantics {
    /// The paper's.
    #[default]
    Paper,
    /// Those of mergekit 0.1.5.
    Mergekit,
}

/// The parameters of a method, checked and complete.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    values: BTreeMap<&'static str, Value>,
    /// Whose numbers are given.
    pub semantics: Semantics,
    /// How many models the statement has.
    pub models: usize,
}

fn literal(text: &str) -> Value {
    match text {
        "true" => Value::Flag(true),
        "false" => Value::Flag(false),
        _ => text.parse().map_or_else(|_| Value::Text(text.to_owned()), Value::Number),
    }
}

impl Settings {
    /// Checks what is given against what the method takes, and adds the defaults.
    ///
    /// # Errors
    /// `unknown_option` for a parameter that it doesn't have; `invalid_argument` for a value that it doesn't take, for a list of another
    /// length than there are models, and for one that is missing.
    pub fn new(method: &'static Method, given: &Params, semantics: Semantics, models: usize) -> Result<Settings> {
        let mut values = BTreeMap::new();
        for (name, value) in given {
            let Some(param) = method.param(name) else {
                let near = method
                    .params
                    .iter()
                    .map(|p| p.name)
                    .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
                let names: Vec<&str> = method.params.iter().map(|p| p.name).collect();
                let help = match near.filter(|n| strsim::jaro_winkler(n, name) > 0.7) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if names.is_empty() => format!("`{}` takes no parameters", method.name),
                    None => format!("`{}` takes {}", method.name, names.join(", ")),
                };
                return Err(Error::new(Code::UnknownOption, format!("`{}` has no parameter `{name}`", method.name)).with_help(help));
            };
            check(method, param, value, models)?;
            values.insert(param.name, value.clone());
        }
        for param in method.params {
            match param.default {
                "" => {}
                "!" if !values.contains_key(param.name) => {
                    return Err(Error::invalid_argument(format!("`{}` needs `{}`: {}", method.name, param.name, param.title))
                        .with_help(format!("write {}({} = ...)", method.name, param.name)));
                }
                default => {
                    values.entry(param.name).or_insert_with(|| literal(default));
                }
            }
        }
        Ok(Settings { values, semantics, models })
    }

    /// A number, if the parameter has one value.
    pub fn number(&self, name: &str) -> Option<f64> {
        match self.values.get(name)? {
            Value::Number(v) => Some(*v),
            Value::Flag(v) => Some(f64::from(u8::from(*v))),
            _ => None,
        }
    }

    /// Whether it was given as true.
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.values.get(name)? {
            Value::Flag(v) => Some(*v),
            Value::Number(v) => Some(*v != 0.0),
            _ => None,
        }
    }

    /// A word.
    pub fn word(&self, name: &str) -> Option<&str> {
        match self.values.get(name)? {
            Value::Text(v) => Some(v),
            _ => None,
        }
    }

    /// The number of the model at this place of the statement.
    pub fn of_model(&self, name: &str, place: usize) -> Option<f64> {
        match self.values.get(name)? {
            Value::Number(v) => Some(*v),
            Value::Flag(v) => Some(f64::from(u8::from(*v))),
            Value::List(values) => match values.get(place)? {
                Value::Number(v) => Some(*v),
                _ => None,
            },
            Value::Text(_) => None,
        }
    }

    /// The files or names of a parameter.
    pub fn texts(&self, name: &str) -> Vec<&str> {
        match self.values.get(name) {
            Some(Value::Text(v)) => vec![v],
            Some(Value::List(values)) => {
                values.iter().filter_map(|v| if let Value::Text(v) = v { Some(v.as_str()) } else { None }).collect()
            }
            _ => Vec::new(),
        }
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.values.iter().map(|(name, value)| (*name, value))
    }
}

/// Whether a parameter takes a value.
pub(crate) fn check(method: &Method, param: &Param, value: &Value, models: usize) -> Result<()> {
    let wrong = |what: &str| {
        let message = format!("`{}` of `{}` takes {what}, not {value}", param.name, method.name);
        Err(Error::invalid_argument(message).with_help(param.title))
    };
    match (param.kind, value) {
        (Kind::Files | Kind::Names, Value::List(values)) if values.iter().all(|v| matches!(v, Value::Text(_))) => {
            if param.kind == Kind::Files && values.len() > 1 && values.len() != models {
                let message = format!("`{}` of `{}` names {} files for {models} models", param.name, method.name, values.len());
                return Err(Error::invalid_argument(message).with_help("write one file for each model, in their order"));
            }
            Ok(())
        }
        (_, Value::List(values)) if param.per_model => {
            if values.iter().any(|value| matches!(value, Value::List(_))) {
                return wrong("one value for each model");
            }
            if values.len() != models {
                let message = format!("`{}` of `{}` has {} values for {models} models", param.name, method.name, values.len());
                return Err(
                    Error::invalid_argument(message).with_help("write one value for all, or one for each model, in their order")
                );
            }
            values.iter().try_for_each(|value| check(method, param, value, models))
        }
        (Kind::Number, Value::Number(v)) if v.is_finite() => Ok(()),
        (Kind::Number, _) => wrong("a number"),
        (Kind::Share, Value::Number(v)) if (0.0..=1.0).contains(v) => Ok(()),
        (Kind::Share, _) => wrong("a number from 0 to 1"),
        (Kind::Count, Value::Number(v)) if *v >= 0.0 && v.fract() == 0.0 && *v < 9e15 => Ok(()),
        (Kind::Count, _) => wrong("a whole number"),
        (Kind::Flag, Value::Flag(_)) => Ok(()),
        (Kind::Flag, Value::Number(v)) if *v == 0.0 || *v == 1.0 => Ok(()),
        (Kind::Flag, _) => wrong("true or false"),
        (Kind::Word(words), Value::Text(text)) if words.contains(&text.as_str()) => Ok(()),
        (Kind::Word(words), _) => wrong(&words.iter().map(|w| format!("'{w}'")).collect::<Vec<_>>().join(" or ")),
        (Kind::Name | Kind::Names, Value::Text(text)) if !text.is_empty() => Ok(()),
        (Kind::Name, _) => wrong("a text"),
        (Kind::Names, _) => wrong("a text, or a list of them"),
        (Kind::File | Kind::Files, Value::Text(_)) => Ok(()),
        (Kind::File, Value::List(values)) if matches!(values[..], [Value::Text(_)]) => Ok(()),
        (Kind::File, _) => wrong("the name of one file"),
        (Kind::Files, _) => wrong("the name of a file, or a list of them"),
    }
}

/// A tensor that takes part, and whose it is.
#[derive(Debug, Clone)]
pub struct Input {
    /// The tensor.
    pub tensor: Tensor,
    /// The hash of its contribution, which random numbers are keyed by.
    pub hash: [u8; 32],
    /// The place of its model in the statement, which lists of parameters follow.
    pub place: usize,
    /// Which of the plan's models it is of; the base is none of them.
    pub model: usize,
}

/// What a survey of all tensors found.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Numbers, as the method defines them.
    pub numbers: Vec<f64>,
    /// Cuts over the elements of all tensors, one after the other.
    pub cuts: Vec<Cut>,
}

/// Files beside the models, by the parameter that names them.
pub type Sides = Arc<BTreeMap<&'static str, Vec<Checkpoint>>>;

/// What a method is told for one tensor.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// The name of the tensor.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// The tensor in each model: by hash, or as written for a method whose order counts.
    pub models: &'a [Input],
    /// The tensor in the base.
    pub base: Option<&'a Input>,
    /// The parameters.
    pub settings: &'a Settings,
    /// Files beside the models.
    pub sides: Sides,
    /// Elements of the tensors that come before this one in a survey.
    pub offset: usize,
    /// What the survey found.
    pub survey: Option<&'a Survey>,
}

/// The elements of a stretch of one tensor, in each model and in the base.
#[derive(Debug)]
pub struct Tile<'t> {
    /// Which elements.
    pub range: Range<usize>,
    /// In each model.
    pub models: Vec<&'t [f32]>,
    /// In the base; empty without one.
    pub base: &'t [f32],
}

/// Computes the elements of a tile.
pub type Run<'a> = Box<dyn Fn(&Tile<'_>, &mut [f32]) -> Result<()> + Send + Sync + 'a>;

/// How the elements of a tensor are computed.
pub enum Kernel<'a> {
    /// A tile at a time; a tile begins at a multiple of the granule, and ends at one or with the tensor.
    Tiles {
        /// Elements that must stay together.
        granule: usize,
        /// Computes a tile.
        run: Run<'a>,
    },
    /// As tiles of any elements, and in terms that a GPU has.
    Program {
        /// What is done with each element.
        program: Program,
        /// Computes a tile, to the same bits.
        run: Run<'a>,
    },
    /// All of them are here.
    Whole(Vec<f32>),
}

/// Two buffers, for a task vector.
#[derive(Debug, Default)]
pub struct Pair {
    model: Buffer,
    base: Buffer,
    /// The differences.
    pub delta: Vec<f32>,
}

impl<'a> Job<'a> {
    /// How many elements the tensor has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A number that has a default.
    pub fn number(&self, name: &str) -> f64 {
        self.settings.number(name).unwrap_or(f64::NAN)
    }

    /// A flag; false where it isn't given.
    pub fn flag(&self, name: &str) -> bool {
        self.settings.flag(name).unwrap_or(false)
    }

    /// A number of each model, in the order of `models`.
    pub fn of_models(&self, name: &str) -> Vec<f64> {
        self.models.iter().map(|m| self.settings.of_model(name, m.place).unwrap_or(1.0)).collect()
    }

    /// The weights, over their sum.
    ///
    /// # Errors
    /// `invalid_argument` where they sum to zero.
    pub fn shares(&self, name: &str) -> Result<Vec<f64>> {
        let weights = self.of_models(name);
        let sum: f64 = weights.iter().sum();
        if sum.abs() < 1e-12 {
            return Err(Error::invalid_argument(format!("the weights {weights:?} of tensor `{}` sum to zero", self.name))
                .with_help(match self.settings.flag("normalize") {
                    Some(_) => "change one of them, or write normalize = false",
                    None => "change one of them",
                }));
        }
        Ok(weights.iter().map(|w| w / sum).collect())
    }

    /// Whether the weights can be divided by their sum.
    ///
    /// # Errors
    /// As [`Job::shares`].
    pub fn check_shares(&self) -> Result<()> {
        self.shares("weight").map(|_| ())
    }

    /// The tensor in the base.
    ///
    /// # Errors
    /// `invalid_argument` where there is none; the plan checks that before.
    pub fn base(&self) -> Result<&'a Tensor> {
        self.base.map(|b| &b.tensor).ok_or_else(|| Error::invalid_argument(format!("tensor `{}` has no base", self.name)))
    }

    /// The task vector of model `i` over a range: its elements less those of the base.
    ///
    /// # Errors
    /// As [`Tensor::read`].
    pub fn delta<'p>(&self, i: usize, range: Range<usize>, pair: &'p mut Pair) -> Result<&'p [f32]> {
        let Pair { model, base, delta } = pair;
        let model = self.models[i].tensor.view(range.clone(), model)?;
        let base = self.base()?.view(range, base)?;
        delta.resize(model.len(), 0.0);
        subtract(model, base, delta);
        Ok(delta)
    }

    /// The inner products of the models, or of their task vectors: a symmetric matrix in f64, row by row.
    ///
    /// # Errors
    /// As [`Tensor::read`].
    pub fn gram(&self, tasks: bool) -> Result<Gram> {
        let n = self.models.len();
        let sums = reduce::sum(self.len(), n * n, |range, pairs: &mut Vec<Pair>, sums| {
            pairs.resize_with(n, Pair::default);
            for (i, pair) in pairs.iter_mut().enumerate() {
                if tasks {
                    self.delta(i, range.clone(), pair)?;
                } else {
                    let Pair { model, delta, .. } = pair;
                    delta.clear();
                    delta.extend_from_slice(self.models[i].tensor.view(range.clone(), model)?);
                }
            }
            let vectors: Vec<&[f32]> = pairs.iter().map(|p| p.delta.as_slice()).collect();
            Gram::of(&vectors, sums);
            Ok(())
        })?;
        Ok(Gram { n, sums })
    }

    /// The file beside the models that a parameter names for model `i`.
    ///
    /// # Errors
    /// `invalid_argument` where there is none.
    pub fn side(&self, name: &str, i: usize) -> Result<&Checkpoint> {
        let files = self.sides.get(name).map_or(&[][..], Vec::as_slice);
        let place = self.models.get(i).map_or(0, |m| m.place);
        files.get(place).ok_or_else(|| {
            Error::invalid_argument(format!("`{name}` names {} files, and there are {} models", files.len(), self.models.len()))
                .with_help("write one file for each model, in their order")
        })
    }

    /// A tensor of a file beside the models, of this shape.
    ///
    /// # Errors
    /// `invalid_argument` where it isn't there; `type_mismatch` where its shape is another.
    pub fn side_tensor<'c>(&self, file: &'c Checkpoint, name: &str, shape: &[usize]) -> Result<&'c Tensor> {
        let tensor = file.get(name).ok_or_else(|| {
            Error::invalid_argument(format!("`{}` has no tensor `{name}`", file.path.display()))
                .with_help("a file beside the models has a tensor for each that is merged with it")
        })?;
        if tensor.shape != shape {
            let message =
                format!("tensor `{name}` of `{}` has the shape {:?}, it should have {shape:?}", file.path.display(), tensor.shape);
            return Err(Error::type_mismatch(message));
        }
        Ok(tensor)
    }

    /// A kernel that gives sums of the models, or of the base and the task vectors, with these factors.
    pub fn combine(&self, factors: Vec<f64>, tasks: bool) -> Kernel<'a> {
        combined(factors.into_iter().map(|f| f as f32).collect(), tasks)
    }
}

/// A kernel that gives sums of the models, or of the base and the task vectors, with these factors.
pub(crate) fn combined(factors: Vec<f32>, tasks: bool) -> Kernel<'static> {
    Kernel::Program {
        program: Program::Combine { inputs: if tasks { Inputs::Tasks } else { Inputs::Models }, factors: factors.clone() },
        run: Box::new(move |tile, out| {
            combine(tile, &factors, tasks, out);
            Ok(())
        }),
    }
}

vectors! {
/// Writes a model less its base.
pub fn subtract['a](model: &'a [f32], base: &'a [f32], out: &'a mut [f32]) {
    out.iter_mut().zip(model.iter().zip(base)).for_each(|(o, (m, b))| *o = m - b);
}

/// Sums over the models of a tile.
pub fn combine['a, 't](tile: &'a Tile<'t>, factors: &'a [f32], tasks: bool, out: &'a mut [f32]) {
    out.fill(0.0);
    for (i, (model, factor)) in tile.models.iter().zip(factors).enumerate() {
        match (tasks, i) {
            (true, _) => out.iter_mut().zip(model.iter().zip(tile.base)).for_each(|(o, (m, b))| *o += factor * (m - b)),
            (false, 0) => out.iter_mut().zip(*model).for_each(|(o, m)| *o = factor * m),
            (false, _) => out.iter_mut().zip(*model).for_each(|(o, m)| *o += factor * m),
        }
    }
    if tasks {
        out.iter_mut().zip(tile.base).for_each(|(o, b)| *o += b);
    }
}
}

/// Inner products.
#[derive(Debug, Clone)]
pub struct Gram {
    /// How many vectors.
    pub n: usize,
    sums: Vec<f64>,
}

impl Gram {
    /// The inner products of these vectors.
    pub fn of(vectors: &[&[f32]], sums: &mut [f64]) {
        let n = vectors.len();
        for i in 0..n {
            for j in i..n {
                let dot = reduce::dot(vectors[i], vectors[j]);
                sums[i * n + j] = dot;
                sums[j * n + i] = dot;
            }
        }
    }

    /// From the products themselves, row by row.
    pub fn new(n: usize, sums: Vec<f64>) -> Gram {
        Gram { n, sums }
    }

    /// The product of two of them.
    pub fn dot(&self, i: usize, j: usize) -> f64 {
        self.sums[i * self.n + j]
    }

    /// The length of one.
    pub fn norm(&self, i: usize) -> f64 {
        self.dot(i, i).max(0.0).sqrt()
    }

    /// The cosine of two; 0 where one has no length.
    pub fn cosine(&self, i: usize, j: usize) -> f64 {
        let norms = self.norm(i) * self.norm(j);
        if norms == 0.0 { 0.0 } else { (self.dot(i, j) / norms).clamp(-1.0, 1.0) }
    }

    /// The length of a sum with these factors.
    pub fn norm_of(&self, factors: &[f64]) -> f64 {
        let mut sum = 0.0;
        for (i, a) in factors.iter().enumerate() {
            for (j, b) in factors.iter().enumerate() {
                sum += a * b * self.dot(i, j);
            }
        }
        sum.max(0.0).sqrt()
    }

    /// The product of a sum with these factors and one of the vectors.
    pub fn dot_of(&self, factors: &[f64], j: usize) -> f64 {
        factors.iter().enumerate().map(|(i, a)| a * self.dot(i, j)).sum()
    }
}
