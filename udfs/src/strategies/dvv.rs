//! `dvv`: a version vector that says exactly which events were seen.

use crate::aggregate::{Call, State, Strategy, argument, encode};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::functions::Function;
use crate::lattice::dots::{DotStore, dot_of};
use crate::lattice::origins::origin;
use crate::types::Type;
use crate::value::Value;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Dotted>().with_functions(functions));
}

#[derive(Debug)]
struct Dotted {
    origin: Type,
}

/// Dots that were seen, none of which holds anything.
#[derive(Debug, Clone, PartialEq, Default)]
struct Seen(DotStore);

impl Strategy for Dotted {
    const SPEC: Spec = Spec {
        name: "dvv",
        aliases: &["dotted_version_vector"],
        type_id: 44,
        since: "0.1.0",
        title: "a dotted version vector: exactly which events of each origin were seen",
        doc: "A row is (counter, origin): that event was seen, and nothing is said of those before it, where `vclock` says that all of them were. So a \
              replica that got events out of order, or only some, says neither too much nor too little. The value is the runs of seen events of each \
              origin, first and last. `dvv_event(state, origin)` is the state with one more event of an origin, a dot that no other has; \
              `dvv_contains(state, origin, counter)` asks for one.",
        inputs: &[Input::Value, Input::Origin],
        args: &[super::r#counter::ORIGIN],
        takes: "integers above zero",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_value(crdt_dvv_state(n, o)) AS seen FROM (VALUES (1, 'a'), (2, 'a'), (4, 'a'), (1, 'b')) AS t(n, o)",
            "{\"a\":[[1,2],[4,4]],\"b\":[[1,1]]}",
        ),
        source: "Preguiça, Baquero, Almeida, Fonte, Gonçalves 2012, Brief announcement: efficient causality tracking with dotted version vectors",
        samples: || vec![Call::new(vec![Type::INT64, Type::Text])],
    };
    type State = Seen;

    fn configure(call: &Call) -> Result<Self> {
        match call.value_type() {
            Type::Int { .. } | Type::Null => Ok(Dotted { origin: call.inputs.get(1).cloned().unwrap_or(Type::Text) }),
            other => Err(Error::type_mismatch(format!("`dvv` takes integers, not {other}"))),
        }
    }

    fn result_type(&self) -> Type {
        let run = Type::List(Box::new(Type::INT64));
        Type::Map(Box::new(self.origin.clone()), Box::new(Type::List(Box::new(run))))
    }

    fn empty(&self) -> Seen {
        Seen::default()
    }

    fn update(&self, state: &mut Seen, row: &[Value]) -> Result<()> {
        if row[0].is_null() {
            return Ok(());
        }
        if let Some((origin, n)) = dot_of(&[Value::Null, row[1].clone(), row[0].clone()])? {
            state.0.learn(None, origin, n)?;
        }
        Ok(())
    }
}

impl State for Seen {
    fn join(&mut self, other: &Self) -> Result<()> {
        self.0.join(&other.0)
    }

    fn value(&self) -> Result<Value> {
        if self.0.is_empty() {
            return Ok(Value::Null);
        }
        let run = |(first, last): (u64, u64)| Value::List(vec![Value::Int(first.into()), Value::Int(last.into())]);
        let runs = |(origin, runs): (Value, Vec<_>)| (origin, Value::List(runs.into_iter().map(run).collect()));
        Ok(Value::map(self.0.seen().into_iter().map(runs).collect()))
    }

    fn bottom(&self) -> Self {
        Self::default()
    }

    fn delta(&self, since: &Self) -> Self {
        Seen(self.0.delta(&since.0))
    }

    fn encode(&self, w: &mut Writer) {
        self.0.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let dots = DotStore::decode(r)?;
        if dots.holds_any() {
            return Err(Error::corrupt_state("a dot of a version vector holds a value"));
        }
        Ok(Seen(dots))
    }

    fn heap_size(&self) -> usize {
        self.0.heap_size()
    }

    fn info(&self) -> Value {
        self.value().unwrap_or(Value::Null)
    }
}

/// The state of runs of seen events; `None` of none.
pub(crate) fn of_runs<'a>(runs: impl Iterator<Item = (&'a str, u64, u64)>) -> Option<Vec<u8>> {
    let mut seen = Seen::default();
    runs.for_each(|(origin, first, last)| seen.0.learn_run(&Value::text(origin), first, last));
    (!seen.0.is_empty()).then(|| encode::<Dotted>(&seen))
}

fn seen(state: &Value) -> Result<Seen> {
    Ok(argument::<Dotted>(state)?.unwrap_or_default())
}

fn functions() -> Vec<Function> {
    vec![
        Function::state("dvv_event", "the version vector after one more event of an origin", 2, |a| {
            let (mut seen, who) = (seen(&a[0])?, origin(&a[1])?);
            let next = seen.0.next(who)?;
            seen.0.learn(None, who, next)?;
            Ok(Value::Bytes(encode::<Dotted>(&seen).into()))
        }),
        Function::of("dvv_contains", "whether an event of an origin was seen", 3..=3, Type::Boolean, |a| {
            let (seen, row) = (seen(&a[0])?, [Value::Null, a[1].clone(), a[2].clone()]);
            let dot = dot_of(&row)?;
            Ok(dot.map_or(Value::Null, |(origin, n)| Value::Bool(seen.0.knows(origin, n))))
        }),
    ]
}
