//! `state`: columns that hold CRDT states are joined.

use crate::aggregate::{AnyState, Call, State, Strategy};
use crate::catalog::{self, Entry, Input, Spec};
use crate::codec::{self, Reader, Writer};
use crate::error::{Code, Error, Result};
use crate::types::Type;
use crate::value::Value;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<States>());
}

#[derive(Debug)]
struct States;

/// The join of states of one type.
#[derive(Debug, Default)]
struct Joined(Option<Box<dyn AnyState>>);

impl Clone for Joined {
    fn clone(&self) -> Joined {
        let copy = |state: &dyn AnyState| catalog::open(&state.encode()).expect("invariant: a state reads back");
        Joined(self.0.as_deref().map(copy))
    }
}

impl PartialEq for Joined {
    fn eq(&self, other: &Joined) -> bool {
        match (&self.0, &other.0) {
            (Some(own), Some(other)) => own.encode() == other.encode(),
            (own, other) => own.is_none() && other.is_none(),
        }
    }
}

impl Joined {
    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.0 {
            Some(state) => state.join_bytes(bytes),
            None => {
                // States of states would nest without end.
                if holds_states(bytes) {
                    return Err(Error::type_mismatch("a state of `state` is joined with crdt_merge, not with `state`"));
                }
                self.0 = Some(catalog::open_within(bytes, 1)?);
                Ok(())
            }
        }
    }
}

/// Whether these are the bytes of a state of this strategy, before anything in them is read.
fn holds_states(bytes: &[u8]) -> bool {
    codec::type_id(bytes) == Some(States::SPEC.type_id)
}

impl Strategy for States {
    const SPEC: Spec = Spec {
        name: "state",
        aliases: &[],
        type_id: 32,
        since: "0.1.0",
        title: "the join of CRDT states",
        doc: "The column holds states, made by `crdt_x_state` here or in another host: they are joined, and the result is a state again, to be \
              stored, shipped or resolved with `crdt_value`. States of two types, or of two configurations, are `type_mismatch`.",
        inputs: &[Input::Value],
        args: &[],
        takes: "states",
        selects: false,
        closed: |_| true,
        example: (
            "SELECT crdt_value(crdt_state(s)) AS days FROM (SELECT crdt_gset_state(v) AS s FROM (VALUES (1, 3), (1, 1), (2, 2)) AS t(g, v) GROUP BY g) AS parts",
            "[1,2,3]",
        ),
        source: "Shapiro et al. 2011, section 2.2 (state-based objects: join as merge)",
        samples: || vec![Call::new(vec![Type::Bytes])],
    };
    type State = Joined;

    fn configure(call: &Call) -> Result<Self> {
        match call.value_type() {
            Type::Bytes | Type::Null => Ok(States),
            other => Err(Error::type_mismatch(format!("`state` joins CRDT states, not {other}"))),
        }
    }

    fn result_type(&self) -> Type {
        Type::Bytes
    }

    fn empty(&self) -> Joined {
        Joined::default()
    }

    fn update(&self, state: &mut Joined, row: &[Value]) -> Result<()> {
        match &row[0] {
            Value::Null => Ok(()),
            Value::Bytes(bytes) => state.add(bytes),
            other => Err(Error::new(Code::NotAState, format!("a {} is not a CRDT state", other.kind()))),
        }
    }
}

impl State for Joined {
    fn join(&mut self, other: &Self) -> Result<()> {
        other.0.as_ref().map_or(Ok(()), |state| self.add(&state.encode()))
    }

    fn value(&self) -> Result<Value> {
        Ok(self.0.as_ref().map_or(Value::Null, |state| Value::Bytes(state.encode().into())))
    }

    fn bottom(&self) -> Self {
        Joined::default()
    }

    fn delta(&self, since: &Self) -> Self {
        match (&self.0, &since.0) {
            (Some(own), Some(since)) => {
                let delta = own.delta(&since.encode()).and_then(|bytes| catalog::open(&bytes));
                delta.map_or_else(|_| self.clone(), |delta| Joined(Some(delta)))
            }
            _ => self.clone(),
        }
    }

    fn encode(&self, w: &mut Writer) {
        w.bytes(&self.0.as_ref().map_or_else(Vec::new, |state| state.encode()));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let bytes = r.bytes()?;
        if bytes.is_empty() {
            return Ok(Joined::default());
        }
        if holds_states(bytes) {
            return Err(Error::corrupt_state("a state of `state` lies in the state"));
        }
        let opened = catalog::open_within(bytes, r.depth() + 1)?;
        if opened.encode() != bytes {
            return Err(Error::corrupt_state("the state in the state is not in canonical form"));
        }
        Ok(Joined(Some(opened)))
    }

    fn heap_size(&self) -> usize {
        self.0.as_ref().map_or(0, |state| state.size())
    }

    fn info(&self) -> Value {
        self.0.as_ref().map_or(Value::Null, |state| state.info())
    }
}
