//! The catalogue as aggregates, which are window functions as well: over frames that only grow, for a state forgets no row.

use crate::slots::{self, Fast};
use crate::values::{Answer, argument, class, shown};
use mergeql_udfs::catalog::{self, Entry};
use mergeql_udfs::slot::Shape;
use mergeql_udfs::{Aggregate, AnyState, Call, Code, Error, Order, Partial, Type, Value};
use rusqlite::Connection;
use rusqlite::functions::{Context, FunctionFlags, WindowAggregate};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

/// What functions of pure values are: usable in views and triggers of any schema.
pub const PURE: FunctionFlags =
    FunctionFlags::SQLITE_UTF8.union(FunctionFlags::SQLITE_DETERMINISTIC).union(FunctionFlags::SQLITE_INNOCUOUS);

/// Registers every aggregate.
///
/// # Errors
/// SQLite's.
pub fn register(connection: &Connection) -> rusqlite::Result<()> {
    for entry in catalog::all() {
        let spec = entry.spec();
        for base in std::iter::once(&spec.name).chain(spec.aliases) {
            for (state, configured) in [(false, false), (true, false), (false, true), (true, true)] {
                let suffix = format!("{}{}", if state { "_state" } else { "" }, if configured { "_with" } else { "" });
                let function = Function::new(entry, state, configured);
                connection.create_window_function(format!("crdt_{base}{suffix}").as_str(), -1, PURE, function)?;
            }
        }
    }
    for entry in catalog::plain() {
        connection.create_window_function(catalog::plain_name(entry), -1, PURE, Function::new(entry, false, false))?;
    }
    connection.create_window_function("crdt_merge", 1, PURE, Merge)
}

/// One aggregate.
struct Function {
    entry: &'static Entry,
    state: bool,
    configured: bool,
    /// The order of slots, where a call without literals has such a state.
    order: Option<Order>,
    /// The strategy as it was bound last: most groups are of the same types.
    last: Mutex<Option<Bound>>,
}

#[derive(Clone)]
struct Bound {
    types: Vec<Type>,
    literals: Arc<[Value]>,
    /// Which inputs' whole numbers are truth values: SQLite has no others.
    truth: Vec<bool>,
    aggregate: Arc<dyn Aggregate>,
}

/// The state of one group.
pub struct Group(AssertUnwindSafe<Kind>);

enum Kind {
    Empty,
    Fast(Box<dyn Fast>),
    Plain(Bound, Box<dyn Partial>),
}

impl Function {
    fn new(entry: &'static Entry, state: bool, configured: bool) -> Function {
        let order = |inputs: usize| match entry.bind(&Call::new(vec![Type::INT64; inputs])).ok()?.shape()? {
            Shape::Strongest(order) => Some(order),
            _ => None,
        };
        let order = if configured { None } else { order(1).or_else(|| order(2)) };
        Function { entry, state, configured, order, last: Mutex::new(None) }
    }

    /// The inputs of a row, and its literals.
    fn row(&self, context: &Context<'_>) -> rusqlite::Result<(Vec<Value>, Vec<Value>)> {
        let first = usize::from(self.configured).min(context.len());
        let end = first + self.entry.spec().inputs_among(context.len() - first);
        let value = |i: usize| argument(context, i);
        let inputs = (first..end).map(value).collect::<rusqlite::Result<_>>()?;
        let literals = (0..first).chain(end..context.len()).map(value).collect::<rusqlite::Result<_>>()?;
        Ok((inputs, literals))
    }

    fn bind(&self, types: Vec<Type>, literals: &[Value]) -> rusqlite::Result<Bound> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bound) = last.as_ref().filter(|b| b.types == types && *b.literals == *literals) {
            return Ok(bound.clone());
        }
        // SQLite's truth values are integers: they are meant where a strategy takes no integer, as few of them as will do.
        let integers: Vec<usize> = (0..types.len()).filter(|i| types[*i] == Type::INT64).take(8).collect();
        let mut choices: Vec<u32> = (0..1 << integers.len()).collect();
        choices.sort_by_key(|choice| choice.count_ones());
        let (mut found, mut refused) = (None, None);
        for choice in choices {
            let truth: Vec<bool> = (0..types.len())
                .map(|i| integers.iter().position(|at| *at == i).is_some_and(|bit| choice >> bit & 1 == 1))
                .collect();
            let as_bound = |(ty, truth): (&Type, &bool)| match ty {
                _ if *truth => Type::Boolean,
                // Each is what it is.
                ty if *ty == MIXED => Type::Null,
                ty => ty.clone(),
            };
            let call = Call::new(types.iter().zip(&truth).map(as_bound).collect());
            let call = call.with_literals(self.entry.spec(), self.configured, literals).map_err(shown)?;
            match self.entry.bind(&call) {
                Ok(aggregate) => {
                    found = Some((truth, aggregate));
                    break;
                }
                Err(error) => drop(refused.get_or_insert(error)),
            }
        }
        let Some((truth, aggregate)) = found else {
            return Err(shown(refused.unwrap_or_else(|| Error::type_mismatch("a strategy without inputs"))));
        };
        let bound = Bound { types, literals: literals.into(), truth, aggregate };
        *last = Some(bound.clone());
        Ok(bound)
    }

    fn step_plain(&self, context: &Context<'_>, kind: &mut Kind) -> rusqlite::Result<()> {
        let (mut inputs, literals) = self.row(context)?;
        let types: Vec<Type> = inputs.iter().map(class).collect();
        match kind {
            Kind::Plain(bound, partial) => {
                if *bound.literals != *literals {
                    let message = format!("the arguments that configure `crdt_{}` differ between rows", self.entry.spec().name);
                    return Err(shown(Error::invalid_argument(message).with_help("they are literals, the same for every row")));
                }
                if bound.types != types {
                    let widened = widen(&bound.types, &types).map_err(shown)?;
                    if widened != bound.types {
                        let grown = self.bind(widened, &literals)?;
                        let mut joined = grown.aggregate.partial();
                        if let Some(known) = partial.encode() {
                            joined.join_bytes(&known).map_err(shown)?;
                        }
                        (*bound, *partial) = (grown, joined);
                    }
                }
            }
            _ => {
                let before = if let Kind::Fast(fast) = kind { fast.row() } else { None };
                let types = match &before {
                    Some(row) => widen(&row.iter().map(class).collect::<Vec<_>>(), &types).map_err(shown)?,
                    None => types,
                };
                let bound = self.bind(types, &literals)?;
                let mut partial = bound.aggregate.partial();
                if let Some(row) = before {
                    partial.update(&row).map_err(shown)?;
                }
                *kind = Kind::Plain(bound, partial);
            }
        }
        let Kind::Plain(bound, partial) = kind else { return Ok(()) };
        for (value, _) in inputs.iter_mut().zip(&bound.truth).filter(|(_, truth)| **truth) {
            if let Value::Int(v) = value {
                *value = Value::Bool(*v != 0);
            }
        }
        partial.update(&inputs).map_err(shown)
    }

    fn finish(&self, group: Option<&Kind>) -> rusqlite::Result<Answer> {
        let state = |bytes: Option<Vec<u8>>| Answer::of(bytes.map_or(Value::Null, |b| Value::Bytes(b.into())));
        match (group, self.state) {
            (None | Some(Kind::Empty), _) => Answer::of(Value::Null),
            (Some(Kind::Fast(fast)), false) => Answer::of(fast.value()),
            (Some(Kind::Fast(fast)), true) => {
                let Some(row) = fast.row() else { return Answer::of(Value::Null) };
                let mut partial = self.bind(row.iter().map(class).collect(), &[])?.aggregate.partial();
                partial.update(&row).map_err(shown)?;
                state(partial.encode())
            }
            (Some(Kind::Plain(_, partial)), true) => state(partial.encode()),
            (Some(Kind::Plain(_, partial)), false) => Answer::of(partial.value().map_err(shown)?),
        }
    }
}

/// The type of whole numbers beside reals, as SQLite has no reals of 32 bits.
const MIXED: Type = Type::Float32;

/// The types of rows of different classes in one group: NULL goes with any, whole numbers with reals, nothing else with another.
fn widen(known: &[Type], seen: &[Type]) -> Result<Vec<Type>, Error> {
    let both = |(a, b): (&Type, &Type)| match (a, b) {
        (Type::Null, other) | (other, Type::Null) => Ok(other.clone()),
        (Type::Int { .. } | Type::Float64 | Type::Float32, Type::Int { .. } | Type::Float64 | Type::Float32) if a != b => Ok(MIXED),
        (Type::Struct(_), Type::Struct(_)) => Ok(a.clone()),
        (a, b) if a == b => Ok(a.clone()),
        (a, b) => Err(Error::type_mismatch(format!("one column holds {a} and {b}"))
            .with_help("SQLite lets a column hold anything: CAST it, or declare the table STRICT")),
    };
    if known.len() != seen.len() {
        return Err(Error::new(Code::InvalidArgument, "rows with different numbers of arguments"));
    }
    known.iter().zip(seen).map(both).collect()
}

impl rusqlite::functions::Aggregate<Group, Answer> for Function {
    fn init(&self, _: &mut Context<'_>) -> rusqlite::Result<Group> {
        Ok(Group(AssertUnwindSafe(Kind::Empty)))
    }

    fn step(&self, context: &mut Context<'_>, group: &mut Group) -> rusqlite::Result<()> {
        let kind = &mut group.0.0;
        match kind {
            Kind::Fast(fast) => {
                if fast.step(context) {
                    return Ok(());
                }
            }
            Kind::Empty => {
                if context.is_empty() {
                    return Err(shown(Error::invalid_argument(format!("usage: crdt_{}", self.entry.spec().usage()))));
                }
                if let Some(order) = self.order {
                    if !self.configured && context.get_raw(0) == rusqlite::types::ValueRef::Null {
                        return Ok(());
                    }
                    let all_inputs = self.entry.spec().inputs_among(context.len()) == context.len();
                    if let Some(mut fast) = slots::of(order, context).filter(|_| all_inputs) {
                        fast.step(context);
                        *kind = Kind::Fast(fast);
                        return Ok(());
                    }
                }
            }
            Kind::Plain(..) => {}
        }
        self.step_plain(context, kind)
    }

    fn finalize(&self, _: &mut Context<'_>, group: Option<Group>) -> rusqlite::Result<Answer> {
        self.finish(group.as_ref().map(|g| &g.0.0))
    }
}

impl WindowAggregate<Group, Answer> for Function {
    fn value(&self, group: Option<&mut Group>) -> rusqlite::Result<Answer> {
        self.finish(group.map(|g| &g.0.0))
    }

    fn inverse(&self, _: &mut Context<'_>, _: &mut Group) -> rusqlite::Result<()> {
        Err(shrinks())
    }
}

fn shrinks() -> rusqlite::Error {
    shown(
        Error::new(Code::Unsupported, "the state of a CRDT forgets no row, and this window's frame leaves rows behind")
            .with_help("let the frame begin at UNBOUNDED PRECEDING"),
    )
}

/// `crdt_merge(state)`
struct Merge;

/// States joined so far.
pub struct Joined(AssertUnwindSafe<Option<Box<dyn AnyState>>>);

impl rusqlite::functions::Aggregate<Joined, Answer> for Merge {
    fn init(&self, _: &mut Context<'_>) -> rusqlite::Result<Joined> {
        Ok(Joined(AssertUnwindSafe(None)))
    }

    fn step(&self, context: &mut Context<'_>, joined: &mut Joined) -> rusqlite::Result<()> {
        match argument(context, 0)? {
            Value::Null => Ok(()),
            Value::Bytes(bytes) => match &mut joined.0.0 {
                Some(state) => state.join_bytes(&bytes).map_err(shown),
                empty => {
                    *empty = Some(catalog::open(&bytes).map_err(shown)?);
                    Ok(())
                }
            },
            other => Err(shown(Error::new(Code::NotAState, format!("a {} is not a CRDT state", other.kind())))),
        }
    }

    fn finalize(&self, _: &mut Context<'_>, mut joined: Option<Joined>) -> rusqlite::Result<Answer> {
        self.value(joined.as_mut())
    }
}

impl WindowAggregate<Joined, Answer> for Merge {
    fn value(&self, joined: Option<&mut Joined>) -> rusqlite::Result<Answer> {
        let state = joined.and_then(|j| j.0.0.as_ref().map(|s| s.encode()));
        Answer::of(state.map_or(Value::Null, |b| Value::Bytes(b.into())))
    }

    fn inverse(&self, _: &mut Context<'_>, _: &mut Joined) -> rusqlite::Result<()> {
        Err(shrinks())
    }
}
