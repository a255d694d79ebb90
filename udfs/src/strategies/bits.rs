//! `any`, `every`, `bits_or` and `bits_and`: folds whose every step is itself a join.

use crate::aggregate::{Call, State, Strategy};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::types::Type;
use crate::value::Value;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Fold<ANY>>());
    entries.push(Entry::of::<Fold<EVERY>>());
    entries.push(Entry::of::<Fold<BITS_OR>>());
    entries.push(Entry::of::<Fold<BITS_AND>>());
}

const ANY: u8 = 0;
const EVERY: u8 = 1;
const BITS_OR: u8 = 2;
const BITS_AND: u8 = 3;

const ANY_SPEC: Spec = Spec {
    name: "any",
    aliases: &["bool_or"],
    type_id: 19,
    since: "0.1.0",
    title: "true if any value is",
    doc: "Logical or. NULL contributes nothing: without any value the answer is NULL.",
    inputs: &[Input::Value],
    args: &[],
    takes: "booleans",
    selects: true,
    closed: |_| true,
    example: ("SELECT crdt_any(v) AS v FROM (VALUES (true), (false), (NULL)) AS t(v)", "true"),
    source: "the two-element lattice; Davey, Priestley 2002, chapter 2",
    samples: || vec![Call::new(vec![Type::Boolean])],
};

const EVERY_SPEC: Spec = Spec {
    name: "every",
    aliases: &["bool_and"],
    type_id: 20,
    title: "true if every value is",
    doc: "Logical and. NULL contributes nothing: without any value the answer is NULL.",
    example: ("SELECT crdt_every(v) AS v FROM (VALUES (true), (false), (NULL)) AS t(v)", "false"),
    ..ANY_SPEC
};

const BITS_OR_SPEC: Spec = Spec {
    name: "bits_or",
    aliases: &["bit_or"],
    type_id: 21,
    title: "the bits that any value has",
    selects: false,
    doc: "Bitwise or of integers: flags that, once set, stay set.",
    takes: "integers",
    example: ("SELECT crdt_bits_or(v) AS v FROM (VALUES (1), (4), (5)) AS t(v)", "5"),
    source: "a product of two-element lattices; Davey, Priestley 2002, chapter 2",
    samples: || vec![Call::new(vec![Type::INT64])],
    ..ANY_SPEC
};

const BITS_AND_SPEC: Spec = Spec {
    name: "bits_and",
    aliases: &["bit_and"],
    type_id: 22,
    title: "the bits that every value has",
    doc: "Bitwise and of integers.",
    example: ("SELECT crdt_bits_and(v) AS v FROM (VALUES (7), (5)) AS t(v)", "5"),
    ..BITS_OR_SPEC
};

#[derive(Debug)]
struct Fold<const OPERATION: u8> {
    ty: Type,
}

/// Booleans are the integers 0 and 1.
#[derive(Debug, Clone, PartialEq)]
struct Folded<const OPERATION: u8>(Option<i128>);

impl<const OPERATION: u8> Folded<OPERATION> {
    fn step(&mut self, v: i128) {
        self.0 = Some(match self.0 {
            None => v,
            Some(seen) if OPERATION == ANY || OPERATION == BITS_OR => seen | v,
            Some(seen) => seen & v,
        });
    }
}

const fn is_boolean(operation: u8) -> bool {
    operation == ANY || operation == EVERY
}

impl<const OPERATION: u8> Strategy for Fold<OPERATION> {
    const SPEC: Spec = match OPERATION {
        ANY => ANY_SPEC,
        EVERY => EVERY_SPEC,
        BITS_OR => BITS_OR_SPEC,
        _ => BITS_AND_SPEC,
    };
    type State = Folded<OPERATION>;

    fn configure(call: &Call) -> Result<Self> {
        let ty = call.value_type();
        let fits = if is_boolean(OPERATION) { ty == Type::Boolean } else { matches!(ty, Type::Int { .. }) };
        if !fits && ty != Type::Null {
            return Err(Error::type_mismatch(format!("`{}` takes {}, not {ty}", Self::SPEC.name, Self::SPEC.takes)));
        }
        Ok(Fold { ty })
    }

    fn result_type(&self) -> Type {
        self.ty.clone()
    }

    fn empty(&self) -> Self::State {
        Folded(None)
    }

    fn update(&self, state: &mut Self::State, row: &[Value]) -> Result<()> {
        match (&row[0], is_boolean(OPERATION)) {
            (Value::Null, _) => {}
            (Value::Bool(v), true) => state.step(i128::from(*v)),
            (Value::Int(v), false) => state.step(*v),
            (other, _) => {
                return Err(Error::type_mismatch(format!(
                    "`{}` takes {}, not a {}",
                    Self::SPEC.name,
                    Self::SPEC.takes,
                    other.kind()
                )));
            }
        }
        Ok(())
    }

    fn rows_suffice(&self) -> bool {
        true
    }

    fn as_row(&self, state: &Self::State) -> Option<Vec<Value>> {
        state.value().ok().map(|v| vec![v])
    }
}

impl<const OPERATION: u8> State for Folded<OPERATION> {
    fn join(&mut self, other: &Self) -> Result<()> {
        if let Some(v) = other.0 {
            self.step(v);
        }
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(match self.0 {
            None => Value::Null,
            Some(v) if is_boolean(OPERATION) => Value::Bool(v != 0),
            Some(v) => Value::Int(v),
        })
    }

    fn bottom(&self) -> Self {
        Folded(None)
    }

    fn encode(&self, w: &mut Writer) {
        w.value(&self.0.map_or(Value::Null, Value::Int));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        match r.value()? {
            Value::Null => Ok(Folded(None)),
            Value::Int(v) if !is_boolean(OPERATION) || v == 0 || v == 1 => Ok(Folded(Some(v))),
            other => Err(Error::corrupt_state(format!("the state holds a {} it cannot hold", other.kind()))),
        }
    }

    fn heap_size(&self) -> usize {
        0
    }

    fn info(&self) -> Value {
        self.value().unwrap_or(Value::Null)
    }
}
