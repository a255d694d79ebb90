//! The one trait that an author writes, and the batch interface that every host gets from it.
//!
//! `Strategy` is monomorphic and row-wise; [`Aggregate`] and [`Groups`] are object-safe and batch-wise: one dynamic call a batch.

use crate::batch::{Bits, Column, OwnedColumn};
use crate::catalog::{ArgKind, Spec};
use crate::codec::{self, Reader, Writer};
use crate::error::{Code, Error, Result};
use crate::fast::slot::Shape;
use crate::partial::{Partial, Single};
use crate::types::Type;
use crate::value::Value;
use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;

/// How a strategy was called: its configuration and the types of its input columns.
///
/// ```
/// use mergeql_udfs::{Call, Type, Value, catalog};
/// let call = Call::new(vec![Type::Text]).with_arg("separator", Value::text(";"));
/// let union = catalog::find("union").unwrap().bind(&call).unwrap();
/// assert_eq!(union.result_type(), Type::Text);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Call {
    /// The types of the inputs, in the order of [`Spec::inputs`].
    pub inputs: Vec<Type>,
    /// Configuration by name; arguments that may repeat are one list.
    pub args: Vec<(String, Value)>,
}

impl Call {
    /// A call without configuration.
    pub fn new(inputs: Vec<Type>) -> Call {
        Call { inputs, args: Vec::new() }
    }

    /// The same call with one more argument.
    pub fn with_arg(mut self, name: &str, value: Value) -> Call {
        self.args.push((name.to_owned(), value));
        self
    }

    /// The same call configured by literal arguments, as a host passes them: with `json` the first is the JSON of [`Call::to_json`], all
    /// others are those of [`Spec::args`] in order.
    ///
    /// # Errors
    /// `invalid_argument` for a configuration that is no JSON object.
    pub fn with_literals(mut self, spec: &Spec, json: bool, literals: &[Value]) -> Result<Call> {
        let mut rest = literals.iter();
        if json {
            match rest.next() {
                Some(Value::Text(text)) => self.args = Call::args_from_json(text)?,
                _ => return Err(Error::invalid_argument("the configuration is NULL")),
            }
        }
        for arg in spec.args {
            match arg.kind {
                ArgKind::Text | ArgKind::Number | ArgKind::Choice(_) => {
                    if let Some(value) = rest.next() {
                        self.args.push((arg.name.to_owned(), value.clone()));
                    }
                }
                ArgKind::Literals | ArgKind::Sources if rest.len() > 0 => {
                    self.args.push((arg.name.to_owned(), Value::List(rest.by_ref().cloned().collect())));
                }
                _ => {}
            }
        }
        if rest.len() > 0 {
            return Err(Error::invalid_argument(format!("`{}` takes fewer arguments", spec.name))
                .with_help(format!("usage: crdt_{}", spec.usage())));
        }
        Ok(self)
    }

    /// The argument of this name.
    pub fn arg(&self, name: &str) -> Option<&Value> {
        self.args.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// The argument of this name as text.
    ///
    /// # Errors
    /// `invalid_argument` if it is something else.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.arg(name) {
            None => Ok(None),
            Some(Value::Text(t)) => Ok(Some(t)),
            Some(other) => Err(Error::invalid_argument(format!("`{name}` is a text, not the {} {other}", other.kind()))),
        }
    }

    /// The argument of this name as a flag; absent is false.
    ///
    /// # Errors
    /// `invalid_argument` if it is something else.
    pub fn flag(&self, name: &str) -> Result<bool> {
        match self.arg(name) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(Error::invalid_argument(format!("`{name}` is true or false, not {other}"))),
        }
    }

    /// Whether some flag of a list is true.
    pub(crate) fn flagged(&self, name: &str) -> bool {
        self.list(name).contains(&Value::Bool(true))
    }

    /// The argument of this name as a list; absent is empty.
    pub fn list(&self, name: &str) -> &[Value] {
        match self.arg(name) {
            Some(Value::List(items)) => items,
            _ => &[],
        }
    }

    /// The type of the first input.
    pub fn value_type(&self) -> Type {
        self.inputs.first().cloned().unwrap_or(Type::Null)
    }

    /// The arguments as JSON, the form in which they travel inside SQL (`crdt_lww_with('{"respect_nulls":true}', ...)`).
    pub fn to_json(&self) -> String {
        Value::record(self.args.iter().map(|(n, v)| (Arc::from(n.as_str()), v.clone())).collect()).to_json()
    }

    /// Reads the JSON of [`Call::to_json`].
    ///
    /// # Errors
    /// `invalid_argument` if it is not a JSON object.
    pub fn args_from_json(text: &str) -> Result<Vec<(String, Value)>> {
        match crate::value::from_json(text) {
            Ok(Value::Struct(fields)) => Ok(fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()),
            _ => Err(Error::invalid_argument(format!("`{text}` is no configuration"))
                .with_help(r#"write a JSON object: {"respect_nulls":true}"#)),
        }
    }
}

/// A join-semilattice with canonical bytes.
pub trait State: Clone + PartialEq + Debug + Send + Sync + 'static {
    /// The least upper bound. Commutative, associative, idempotent.
    ///
    /// # Errors
    /// `type_mismatch` where the two were configured differently.
    fn join(&mut self, other: &Self) -> Result<()>;

    /// The resolved value: a pure function of the state.
    ///
    /// # Errors
    /// What the data makes impossible, overflow for one.
    fn value(&self) -> Result<Value>;

    /// The least state of the same configuration.
    fn bottom(&self) -> Self;

    /// A small state that adds to `since` what this one does: `since.join(delta) = since.join(self)`.
    fn delta(&self, _since: &Self) -> Self {
        self.clone()
    }

    /// Writes configuration and content, in canonical order.
    fn encode(&self, w: &mut Writer);

    /// Reads what `encode` wrote.
    ///
    /// # Errors
    /// `corrupt_state` for anything else.
    fn decode(r: &mut Reader<'_>) -> Result<Self>;

    /// Memory beyond the state itself, in bytes.
    fn heap_size(&self) -> usize;

    /// Everything in the state, for people.
    fn info(&self) -> Value;
}

/// A merge strategy: what an author writes, once for every host.
pub trait Strategy: Debug + Send + Sync + Sized + 'static {
    /// Name, arguments, laws and documentation.
    const SPEC: Spec;

    /// The partial state.
    type State: State;

    /// Checks the call and keeps what it says.
    ///
    /// # Errors
    /// `invalid_argument`, `unknown_option`, `type_mismatch`.
    fn configure(call: &Call) -> Result<Self>;

    /// The type of the resolved value.
    fn result_type(&self) -> Type;

    /// The least state: what no rows resolve to.
    fn empty(&self) -> Self::State;

    /// Adds one row: the inputs in the order of [`Spec::inputs`].
    ///
    /// # Errors
    /// `invalid_argument` or `type_mismatch` for values that the strategy refuses.
    fn update(&self, state: &mut Self::State, row: &[Value]) -> Result<()>;

    /// How many inputs a row has at least: those beside versions.
    fn least_inputs(&self) -> usize {
        Self::SPEC.least_inputs()
    }

    /// As [`Strategy::update`] with row `i` of columns, where that is faster than with values; `row` is there to be used again.
    ///
    /// # Errors
    /// As [`Strategy::update`].
    fn update_at(&self, state: &mut Self::State, columns: &[Column<'_>], i: usize, row: &mut Vec<Value>) -> Result<()> {
        row.clear();
        row.extend(columns.iter().map(|c| c.value(i)));
        self.update(state, row)
    }

    /// The resolved value as the host's column shows it; the state's value unless that needs the column's type.
    ///
    /// # Errors
    /// As [`State::value`].
    fn resolve(&self, state: &Self::State) -> Result<Value> {
        state.value()
    }

    /// A state as an input row, where a state says no more than some input row does: then partial aggregates can travel as typed
    /// columns, and joining them is updating with them.
    fn as_row(&self, _state: &Self::State) -> Option<Vec<Value>> {
        None
    }

    /// Whether [`Strategy::as_row`] answers.
    fn rows_suffice(&self) -> bool {
        false
    }

    /// What the state is, where it is simple enough for a host to keep it in a slot of its own memory.
    fn shape(&self) -> Option<Shape> {
        None
    }

    /// A columnar store that gives the same answers faster, where there is one for these types.
    fn fast(&self) -> Option<Box<dyn Groups>> {
        None
    }
}

/// A configured strategy as hosts hold it.
pub trait Aggregate: Debug + Send + Sync {
    /// The strategy.
    fn spec(&self) -> &'static Spec;

    /// The type of the resolved value.
    fn result_type(&self) -> Type;

    /// Whether partial states can travel as input rows (see [`Strategy::as_row`]) as well as state bytes.
    fn partials_are_rows(&self) -> bool;

    /// A store for many groups: the fast one where there is one.
    fn groups(&self) -> Box<dyn Groups>;

    /// The generic store, which the fast one must equal.
    fn plain_groups(&self) -> Box<dyn Groups>;

    /// The state of one group by itself.
    fn partial(&self) -> Box<dyn Partial>;

    /// As [`Strategy::shape`].
    fn shape(&self) -> Option<Shape>;
}

/// Partial states of many groups, in the order of their group numbers.
pub trait Groups: Send + Sync {
    /// Row `i` of `columns` goes to group `groups[i]`, unless `filter` has it out; afterwards there are `total` groups.
    ///
    /// # Errors
    /// As [`Strategy::update`].
    fn update(&mut self, columns: &[Column<'_>], groups: &[usize], filter: Option<Bits<'_>>, total: usize) -> Result<()>;

    /// Joins state bytes into the groups; NULL joins nothing.
    ///
    /// # Errors
    /// `not_a_state`, `corrupt_state`, `type_mismatch`.
    fn merge(&mut self, states: &Column<'_>, groups: &[usize], total: usize) -> Result<()>;

    /// Takes the first `n` groups out as input rows, which [`Groups::update`] joins again; only where
    /// [`Aggregate::partials_are_rows`].
    ///
    /// # Errors
    /// What the data makes impossible.
    fn rows(&mut self, n: usize) -> Result<Vec<OwnedColumn>>;

    /// Takes the first `n` groups out as state bytes; NULL for a group that nothing contributed to.
    ///
    /// # Errors
    /// What the data makes impossible.
    fn states(&mut self, n: usize) -> Result<OwnedColumn>;

    /// Takes the first `n` groups out for a [`Groups::merge`] of the same query: as states, or in bytes that say the same for less and
    /// begin with none of a state's. Nothing keeps them.
    ///
    /// # Errors
    /// What the data makes impossible.
    fn shipped(&mut self, n: usize) -> Result<OwnedColumn> {
        self.states(n)
    }

    /// Takes the first `n` groups out as resolved values.
    ///
    /// # Errors
    /// What the data makes impossible, overflow for one.
    fn finish(&mut self, n: usize) -> Result<OwnedColumn>;

    /// Memory held, in bytes.
    fn size(&self) -> usize;
}

/// The blanket adapter: any [`Strategy`], one plain state a group.
#[derive(Debug)]
pub(crate) struct Bound<S: Strategy> {
    strategy: Arc<S>,
    inputs: Vec<Type>,
}

impl<S: Strategy> Bound<S> {
    pub(crate) fn new(call: &Call) -> Result<Bound<S>> {
        Ok(Bound { strategy: Arc::new(S::configure(call)?), inputs: call.inputs.clone() })
    }
}

impl<S: Strategy> Aggregate for Bound<S> {
    fn spec(&self) -> &'static Spec {
        &S::SPEC
    }

    fn result_type(&self) -> Type {
        self.strategy.result_type()
    }

    fn partials_are_rows(&self) -> bool {
        self.strategy.rows_suffice()
    }

    fn groups(&self) -> Box<dyn Groups> {
        self.strategy.fast().unwrap_or_else(|| self.plain_groups())
    }

    fn partial(&self) -> Box<dyn Partial> {
        Box::new(Single::new(self.strategy.clone()))
    }

    fn shape(&self) -> Option<Shape> {
        self.strategy.shape()
    }

    fn plain_groups(&self) -> Box<dyn Groups> {
        Box::new(Plain {
            strategy: self.strategy.clone(),
            inputs: self.inputs.clone(),
            states: Vec::new(),
            measured: Vec::new(),
            heap: 0,
            row: Vec::new(),
        })
    }
}

struct Plain<S: Strategy> {
    strategy: Arc<S>,
    inputs: Vec<Type>,
    states: Vec<S::State>,
    measured: Vec<Measured>,
    /// What the states held outside themselves when they were last measured.
    heap: usize,
    row: Vec<Value>,
}

/// When a state is measured: to measure it can cost as much as it holds, so it is done again only when a quarter more has come to it.
#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    changes: u32,
    next: u32,
    bytes: usize,
}

impl<S: Strategy> Plain<S> {
    fn grow(&mut self, total: usize) {
        if self.states.len() < total {
            self.states.resize_with(total, || self.strategy.empty());
            self.measured.resize(total, Measured::default());
        }
    }

    /// A state was changed.
    fn changed(&mut self, group: usize) {
        let measured = &mut self.measured[group];
        measured.changes = measured.changes.saturating_add(1);
        if measured.changes >= measured.next {
            measured.next = measured.changes.saturating_add(measured.changes / 4).saturating_add(1);
            let bytes = self.states[group].heap_size();
            self.heap = (self.heap + bytes).saturating_sub(measured.bytes);
            measured.bytes = bytes;
        }
    }

    fn take(&mut self, n: usize) -> Vec<S::State> {
        let rest = self.states.split_off(n.min(self.states.len()));
        self.measured.drain(..n.min(self.measured.len()));
        self.heap = self.measured.iter().map(|m| m.bytes).sum();
        std::mem::replace(&mut self.states, rest)
    }
}

/// A strategy is bound to states alone, too (`Entry::bind`): then it takes no rows of so few inputs.
pub(crate) fn check_inputs(name: &str, least: usize, given: usize) -> Result<()> {
    if given < least {
        return Err(Error::invalid_argument(format!("`{name}` takes at least {least} input columns, {given} given")));
    }
    Ok(())
}

impl<S: Strategy> Groups for Plain<S> {
    fn update(&mut self, columns: &[Column<'_>], groups: &[usize], filter: Option<Bits<'_>>, total: usize) -> Result<()> {
        check_inputs(S::SPEC.name, self.strategy.least_inputs(), columns.len())?;
        self.grow(total);
        for (i, &group) in groups.iter().enumerate() {
            if filter.is_some_and(|f| !f.get(i)) {
                continue;
            }
            self.strategy.update_at(&mut self.states[group], columns, i, &mut self.row)?;
            self.changed(group);
        }
        Ok(())
    }

    fn merge(&mut self, states: &Column<'_>, groups: &[usize], total: usize) -> Result<()> {
        self.grow(total);
        for (i, &group) in groups.iter().enumerate() {
            if let Some(bytes) = states.bytes(i) {
                self.states[group].join(&decode::<S>(bytes)?)?;
                self.changed(group);
            }
        }
        Ok(())
    }

    fn rows(&mut self, n: usize) -> Result<Vec<OwnedColumn>> {
        let mut columns: Vec<Vec<Value>> = self.inputs.iter().map(|_| Vec::with_capacity(n)).collect();
        for state in self.take(n) {
            let row = self.strategy.as_row(&state).unwrap_or_default();
            let mut row = row.into_iter();
            columns.iter_mut().for_each(|c| c.push(row.next().unwrap_or(Value::Null)));
        }
        Ok(self.inputs.iter().cloned().zip(columns).map(|(ty, values)| OwnedColumn::of_values(ty, values)).collect())
    }

    fn states(&mut self, n: usize) -> Result<OwnedColumn> {
        let empty = self.strategy.empty();
        let encode = |state: S::State| (state != empty).then(|| encode::<S>(&state));
        Ok(OwnedColumn::of_bytes(Type::Bytes, self.take(n).into_iter().map(encode)))
    }

    fn finish(&mut self, n: usize) -> Result<OwnedColumn> {
        let ty = self.strategy.result_type();
        let states = self.take(n);
        let resolve = |state: &S::State| self.strategy.resolve(state)?.fit(&ty);
        let values = states.iter().map(resolve).collect::<Result<Vec<_>>>()?;
        Ok(OwnedColumn::of_values(ty, values))
    }

    fn size(&self) -> usize {
        self.states.capacity() * (size_of::<S::State>() + size_of::<Measured>()) + self.heap
    }
}

/// The state bytes of a state.
pub(crate) fn encode<S: Strategy>(state: &S::State) -> Vec<u8> {
    let mut w = Writer::default();
    state.encode(&mut w);
    codec::seal_body(S::SPEC.type_id, w)
}

pub(crate) fn decode<S: Strategy>(bytes: &[u8]) -> Result<S::State> {
    decode_body::<S>(&body::<S>(bytes)?, 0)
}

/// The body of a state of this strategy.
///
/// # Errors
/// As [`codec::open`], and `type_mismatch` for a state of another strategy.
pub(crate) fn body<S: Strategy>(bytes: &[u8]) -> Result<Cow<'_, [u8]>> {
    let (type_id, body) = codec::open(bytes)?;
    if type_id != S::SPEC.type_id {
        let found = crate::catalog::by_type_id(type_id).map_or("another", |e| e.spec().name);
        return Err(Error::type_mismatch(format!("a state of type `{found}` cannot join one of type `{}`", S::SPEC.name)));
    }
    Ok(body)
}

/// The state in an argument of a function; `None` for no state.
///
/// # Errors
/// `not_a_state`, and as [`decode`].
pub(crate) fn argument<S: Strategy>(value: &Value) -> Result<Option<S::State>> {
    bytes_of(value)?.map(decode::<S>).transpose()
}

/// The bytes of an argument that should be a state; `None` for no state.
pub(crate) fn bytes_of(value: &Value) -> Result<Option<&[u8]>> {
    match value {
        Value::Null => Ok(None),
        Value::Bytes(bytes) => Ok(Some(bytes)),
        other => Err(Error::new(Code::NotAState, format!("a {} is not a CRDT state", other.kind()))),
    }
}

/// Reads a body and holds it to its canonical form: a state has exactly one encoding.
fn decode_body<S: Strategy>(body: &[u8], depth: usize) -> Result<S::State> {
    let mut r = Reader::within(body, depth);
    let state = S::State::decode(&mut r)?;
    r.end()?;
    let mut w = Writer::default();
    state.encode(&mut w);
    if w.as_bytes() != body {
        return Err(Error::corrupt_state(format!("this state of type `{}` is not in canonical form", S::SPEC.name)));
    }
    Ok(state)
}

/// A state of a type known only at run time.
pub trait AnyState: Debug + Send + Sync {
    /// The type.
    fn spec(&self) -> &'static Spec;
    /// The state bytes.
    fn encode(&self) -> Vec<u8>;
    /// The join with state bytes.
    ///
    /// # Errors
    /// `type_mismatch` for another type or configuration, `corrupt_state`, `not_a_state`.
    fn join_bytes(&mut self, other: &[u8]) -> Result<()>;
    /// The bytes of a small state that adds to `since` what this one does.
    ///
    /// # Errors
    /// As [`AnyState::join_bytes`].
    fn delta(&self, since: &[u8]) -> Result<Vec<u8>>;
    /// The resolved value.
    ///
    /// # Errors
    /// As [`State::value`].
    fn value(&self) -> Result<Value>;
    /// Everything in the state, for people.
    fn info(&self) -> Value;
    /// Memory held, in bytes.
    fn size(&self) -> usize;
}

#[derive(Debug)]
struct Opened<S: Strategy>(S::State);

impl<S: Strategy> AnyState for Opened<S> {
    fn spec(&self) -> &'static Spec {
        &S::SPEC
    }

    fn encode(&self) -> Vec<u8> {
        encode::<S>(&self.0)
    }

    fn join_bytes(&mut self, other: &[u8]) -> Result<()> {
        self.0.join(&decode::<S>(other)?)
    }

    fn delta(&self, since: &[u8]) -> Result<Vec<u8>> {
        let since = decode::<S>(since)?;
        let mut joined = since.clone();
        joined.join(&self.0)?;
        if joined == since {
            return Ok(encode::<S>(&self.0.bottom()));
        }
        // What the join holds that was not known: of a map, entries that were known to be greater are not there.
        let (own, new) = (encode::<S>(&self.0.delta(&since)), encode::<S>(&joined.delta(&since)));
        Ok(if new.len() < own.len() { new } else { own })
    }

    fn value(&self) -> Result<Value> {
        self.0.value()
    }

    fn info(&self) -> Value {
        self.0.info()
    }

    fn size(&self) -> usize {
        size_of::<S::State>() + self.0.heap_size()
    }
}

pub(crate) fn open_body<S: Strategy>(body: &[u8], depth: usize) -> Result<Box<dyn AnyState>> {
    Ok(Box::new(Opened::<S>(decode_body::<S>(body, depth)?)))
}
