//! The one list of strategies. Hosts, `SHOW STRATEGIES`, the manual, "did you mean", law tests and golden bytes derive from it.

use crate::aggregate::{Aggregate, AnyState, Bound, Call, Strategy, open_body};
use crate::codec;
use crate::error::{Code, Error, Result};
use crate::functions::Function;
use crate::types::Type;
use std::sync::{Arc, LazyLock};

/// What an input column of an aggregate means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The value to merge.
    Value,
    /// Who counted: the key of per-origin states.
    Origin,
    /// Increments of a PN-counter.
    Increments,
    /// Decrements of a PN-counter.
    Decrements,
    /// The digest of a row.
    Digest,
    /// How much a value counts.
    Weight,
    /// A frame of the earlier Python library.
    Frame,
    /// What makes a row newer: any number of columns, the last inputs.
    Versions,
}

/// A configuration argument.
#[derive(Debug, Clone, Copy)]
pub struct Arg {
    /// Its name.
    pub name: &'static str,
    /// What may stand there.
    pub kind: ArgKind,
    /// What it does.
    pub doc: &'static str,
}

/// What an argument is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgKind {
    /// One number.
    Number,
    /// One text literal.
    Text,
    /// One or more literals.
    Literals,
    /// One or more source names.
    Sources,
    /// A column that is this input of the aggregate; required or not.
    Column(Input, bool),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `RESPECT NULLS`.
    RespectNulls,
}

/// Which laws an aggregate keeps. All of ours are join-semilattices; the list says it in the field's words.
pub const LAWS: [&str; 3] = ["commutative", "associative", "idempotent"];

/// Everything about a strategy that is not code.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Its name; the aggregate is `crdt_<name>`.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// The type id in state bytes: append-only, never reused.
    pub type_id: u8,
    /// The release that first had it.
    pub since: &'static str,
    /// One line.
    pub title: &'static str,
    /// The manual's text.
    pub doc: &'static str,
    /// Inputs of the aggregate, in order.
    pub inputs: &'static [Input],
    /// Configuration.
    pub args: &'static [Arg],
    /// Which types it takes, in words.
    pub takes: &'static str,
    /// Whether the value is one of the values seen, so that there are winners and losers; otherwise all of them contribute.
    pub selects: bool,
    /// Whether a merged value says all that its state knew, for these types and arguments: then it can be merged into again.
    pub closed: fn(&Call) -> bool,
    /// A statement over the manual's tables, and the rows it gives (as the test runner prints them).
    pub example: (&'static str, &'static str),
    /// Where the idea comes from.
    pub source: &'static str,
    /// Calls that the derived tests run with.
    pub samples: fn() -> Vec<Call>,
}

impl Spec {
    /// Whether it looks at versions.
    pub fn versioned(&self) -> bool {
        self.inputs.contains(&Input::Versions)
    }

    /// How many inputs a row has at least: those beside versions.
    pub fn least_inputs(&self) -> usize {
        self.inputs.iter().filter(|i| **i != Input::Versions).count()
    }

    /// Whether it counts per origin.
    pub fn per_origin(&self) -> bool {
        self.inputs.contains(&Input::Origin)
    }

    /// How many of `arguments` of its aggregate are input columns; the rest are literals that configure it. Behind a version no argument
    /// can be told from one more part of it.
    pub fn inputs_among(&self, arguments: usize) -> usize {
        if self.versioned() { arguments } else { self.least_inputs().min(arguments) }
    }

    /// How it is written in a STRATEGY clause: `union(separator)`.
    pub fn usage(&self) -> String {
        let args: Vec<String> = self
            .args
            .iter()
            .filter(|a| a.kind != ArgKind::RespectNulls)
            .map(|a| match a.kind {
                ArgKind::Column(_, true) => format!("{}_column", a.name),
                ArgKind::Column(_, false) => format!("[{}_column]", a.name),
                ArgKind::Literals | ArgKind::Sources => format!("{}, ...", a.name),
                ArgKind::Choice(words) => format!("[{} = '{}']", a.name, words.join("' | '")),
                _ => format!("[{}]", a.name),
            })
            .collect();
        if args.is_empty() { self.name.to_owned() } else { format!("{}({})", self.name, args.join(", ")) }
    }
}

/// Opens the body of a state that lies at a depth inside others.
type Open = fn(&[u8], usize) -> Result<Box<dyn AnyState>>;

/// A strategy in the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    spec: &'static Spec,
    bind: fn(&Call) -> Result<Arc<dyn Aggregate>>,
    open: Open,
    functions: fn() -> Vec<Function>,
    /// Its name in SQL, where it is no strategy.
    plain: Option<&'static str>,
}

impl Entry {
    /// The entry of a strategy.
    pub(crate) fn of<S: Strategy>() -> Entry {
        Entry {
            spec: const { &S::SPEC },
            bind: |call| Ok(Arc::new(Bound::<S>::new(call)?)),
            open: open_body::<S>,
            functions: Vec::new,
            plain: None,
        }
    }

    /// The entry of an aggregate that is no strategy: it has this name in SQL, and there is no aggregate of its states.
    pub(crate) fn plain<S: Strategy>(name: &'static str) -> Entry {
        Entry { plain: Some(name), ..Entry::of::<S>() }
    }

    /// The same entry with scalar functions of its own: those that change a state.
    pub(crate) fn with_functions(mut self, functions: fn() -> Vec<Function>) -> Entry {
        self.functions = functions;
        self
    }

    /// Its scalar functions.
    pub fn functions(&self) -> Vec<Function> {
        (self.functions)()
    }

    /// Its description.
    pub fn spec(&self) -> &'static Spec {
        self.spec
    }

    /// Configures it for a call.
    ///
    /// # Errors
    /// `unknown_option`, `invalid_argument`, `type_mismatch`, `limit_exceeded`.
    pub fn bind(&self, call: &Call) -> Result<Arc<dyn Aggregate>> {
        let order = self.spec.versioned().then_some("descending");
        let allowed: Vec<&str> = self.spec.args.iter().map(|a| a.name).chain(order).collect();
        if let Some((name, _)) = call.args.iter().find(|(n, _)| !allowed.contains(&n.as_str())) {
            return Err(Error::new(Code::UnknownOption, format!("`{}` has no argument `{name}`", self.spec.name)));
        }
        let least = self.spec.least_inputs();
        let most = if self.spec.versioned() { usize::MAX } else { least };
        let states = call.inputs.len() == 1 && call.inputs[0] == Type::Bytes;
        if (call.inputs.len() < least || call.inputs.len() > most) && !states {
            return Err(Error::invalid_argument(format!(
                "`{}` takes {}{least} input column{}, {} given",
                self.spec.name,
                if most > least { "at least " } else { "" },
                if least == 1 { "" } else { "s" },
                call.inputs.len()
            )));
        }
        // States add levels of their own, and what a state holds must be readable.
        if let Some(deep) = call.inputs.iter().find(|ty| ty.depth() > codec::MAX_DEPTH / 2) {
            return Err(Error::new(
                Code::LimitExceeded,
                format!("values nest at most {} deep, not {}", codec::MAX_DEPTH / 2, deep.depth()),
            ));
        }
        (self.bind)(call)
    }
}

/// The strategies, and the plain aggregates.
static CATALOG: LazyLock<(Vec<Entry>, Vec<Entry>)> = LazyLock::new(|| {
    let mut entries = Vec::new();
    crate::strategies::register(&mut entries);
    entries.sort_by_key(|e: &Entry| e.spec.type_id);
    entries.into_iter().partition(|e| e.plain.is_none())
});

/// Every strategy, in the order of type ids.
pub fn all() -> &'static [Entry] {
    &CATALOG.0
}

/// Every aggregate that is no strategy; each is called [`plain_name`] in SQL. Those that make finished sketches (`sketch_x`) are not
/// idempotent: rows that come twice count twice.
pub fn plain() -> &'static [Entry] {
    &CATALOG.1
}

/// The name of a plain aggregate in SQL.
pub fn plain_name(entry: &Entry) -> &'static str {
    entry.plain.unwrap_or(entry.spec.name)
}

/// The strategy of this name or alias, in any case of letters.
pub fn find(name: &str) -> Option<&'static Entry> {
    all().iter().find(|e| std::iter::once(&e.spec.name).chain(e.spec.aliases).any(|n| n.eq_ignore_ascii_case(name)))
}

/// Every name and alias.
pub fn names() -> impl Iterator<Item = &'static str> {
    all().iter().flat_map(|e| std::iter::once(e.spec.name).chain(e.spec.aliases.iter().copied()))
}

pub(crate) fn by_type_id(id: u8) -> Option<&'static Entry> {
    all().iter().chain(plain()).find(|e| e.spec.type_id == id)
}

/// Opens state bytes of any type.
///
/// # Errors
/// `not_a_state`, `corrupt_state`, `limit_exceeded`.
pub fn open(bytes: &[u8]) -> Result<Box<dyn AnyState>> {
    open_within(bytes, 0)
}

/// Opens state bytes that lie inside another state, at this depth of the [`codec::MAX_DEPTH`] that values and states may nest.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_within(bytes: &[u8], depth: usize) -> Result<Box<dyn AnyState>> {
    if depth >= codec::MAX_DEPTH {
        return Err(Error::corrupt_state(format!("states and values in the state nest deeper than {}", codec::MAX_DEPTH)));
    }
    let (type_id, body) = codec::open(bytes)?;
    let entry = by_type_id(type_id).ok_or_else(|| Error::corrupt_state(format!("unknown state type {type_id}")))?;
    (entry.open)(&body, depth)
}

/// The join of two states of any one type.
///
/// # Errors
/// As [`open`]; `type_mismatch` for two types or two configurations.
pub fn join(a: &[u8], b: &[u8]) -> Result<Vec<u8>> {
    let mut state = open(a)?;
    state.join_bytes(b)?;
    Ok(state.encode())
}

/// The state with a compressed body, for storage; one whose body would be too large to inflate again stays as it is.
///
/// # Errors
/// As [`open`].
pub fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    open(bytes)?;
    let (type_id, body) = codec::open(bytes)?;
    if body.len() > codec::MAX_INFLATED {
        return Ok(bytes.to_vec());
    }
    let packed = zstd::encode_all(&*body, 3).map_err(|e| Error::new(Code::Io, e.to_string()))?;
    Ok(codec::seal(type_id, codec::COMPRESSED, &packed))
}

/// How two states lie in the lattice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The first is less: the second knows all that it knows.
    Before,
    /// The first is greater.
    After,
    /// The same state.
    Equal,
    /// Neither knows all of the other.
    Concurrent,
}

impl Comparison {
    /// The word for it in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Comparison::Before => "before",
            Comparison::After => "after",
            Comparison::Equal => "equal",
            Comparison::Concurrent => "concurrent",
        }
    }
}

/// Compares two states in the lattice order: `a <= b` exactly if their join is `b`.
///
/// # Errors
/// As [`join`].
pub fn compare(a: &[u8], b: &[u8]) -> Result<Comparison> {
    let joined = join(a, b)?;
    Ok(match (joined == open(a)?.encode(), joined == open(b)?.encode()) {
        (true, true) => Comparison::Equal,
        (true, false) => Comparison::After,
        (false, true) => Comparison::Before,
        (false, false) => Comparison::Concurrent,
    })
}
