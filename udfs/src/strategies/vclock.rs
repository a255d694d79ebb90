//! `vclock`: a version vector.

use crate::aggregate::{Call, State, Strategy, argument, encode};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::functions::Function;
use crate::lattice::dots::counted;
use crate::lattice::origins::{self, Origins, origin};
use crate::types::Type;
use crate::value::Value;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<VersionVector>().with_functions(functions));
}

#[derive(Debug)]
struct VersionVector {
    origin: Type,
}

/// How far each origin has counted.
#[derive(Debug, Clone, PartialEq, Default)]
struct Clocks(Origins<u64>);

impl Clocks {
    fn reach(&mut self, who: &Value, n: u64) {
        self.0.say(who, |known| *known = n.max(*known), || n);
    }
}

impl Strategy for VersionVector {
    const SPEC: Spec = Spec {
        name: "vclock",
        aliases: &["version_vector"],
        type_id: 31,
        since: "0.1.0",
        title: "a version vector: how far each origin has counted",
        doc: "A row is (counter, origin): the greatest counter of each origin is kept, and the value is the map of them. `crdt_compare` says of two \
              which came first, or that they are concurrent; `vclock_inc(state, origin)` is the next event of an origin.",
        inputs: &[Input::Value, Input::Origin],
        args: &[super::r#counter::ORIGIN],
        takes: "integers above zero",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_vclock(n, o) AS clock FROM (VALUES (1, 'a'), (3, 'a'), (2, 'b')) AS t(n, o)",
            "{\"a\":3,\"b\":2}",
        ),
        source: "Parker et al. 1983, Detection of mutual inconsistency in distributed systems",
        samples: || vec![Call::new(vec![Type::INT64, Type::Text])],
    };
    type State = Clocks;

    fn configure(call: &Call) -> Result<Self> {
        if !matches!(call.value_type(), Type::Int { .. } | Type::Null) {
            return Err(Error::type_mismatch(format!("`vclock` takes integers, not {}", call.value_type())));
        }
        Ok(VersionVector { origin: call.inputs.get(1).cloned().unwrap_or(Type::Text) })
    }

    fn result_type(&self) -> Type {
        Type::Map(Box::new(self.origin.clone()), Box::new(Type::INT64))
    }

    fn empty(&self) -> Clocks {
        Clocks::default()
    }

    fn update(&self, state: &mut Clocks, row: &[Value]) -> Result<()> {
        let n = match &row[0] {
            Value::Null => return Ok(()),
            Value::Int(n) => u64::try_from(*n).ok().filter(|n| *n > 0 && i64::try_from(*n).is_ok()),
            _ => None,
        };
        let n = n.ok_or_else(|| Error::invalid_argument(format!("the counter of an origin is an integer above zero, not {}", row[0])))?;
        state.reach(origin(&row[1])?, n);
        Ok(())
    }
}

impl State for Clocks {
    fn join(&mut self, other: &Self) -> Result<()> {
        other.0.iter().for_each(|(who, n)| self.reach(&who, *n));
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        if self.0.is_empty() {
            return Ok(Value::Null);
        }
        Ok(Value::map(self.0.iter().map(|(who, n)| (who.into_owned(), Value::Int((*n).into()))).collect()))
    }

    fn bottom(&self) -> Self {
        Self::default()
    }

    fn delta(&self, since: &Self) -> Self {
        Clocks(self.0.news(&since.0))
    }

    fn encode(&self, w: &mut Writer) {
        origins::encode(&self.0, w, |n, w| w.varint((*n).into()));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let counter = |r: &mut Reader<'_>| match i64::try_from(r.varint()?) {
            Ok(n @ 1..) => Ok(n as u64),
            _ => Err(Error::corrupt_state("a counter of the state is zero, or too great")),
        };
        Ok(Clocks(origins::decode(r, counter)?))
    }

    fn heap_size(&self) -> usize {
        origins::heap_size(&self.0, |_| 0)
    }

    fn info(&self) -> Value {
        self.value().unwrap_or(Value::Null)
    }
}

/// How far each origin had counted, by a state that stands as an argument.
///
/// # Errors
/// `not_a_state`, `corrupt_state`, `type_mismatch` for another state.
pub(crate) fn clock(state: &Value) -> Result<Vec<(Value, u64)>> {
    let clocks = argument::<VersionVector>(state)?.unwrap_or_default();
    Ok(clocks.0.iter().map(|(who, n)| (who.into_owned(), *n)).collect())
}

fn functions() -> Vec<Function> {
    vec![Function::state("vclock_inc", "the version vector after one more event of an origin", 2, |a| {
        let mut clocks = argument::<VersionVector>(&a[0])?.unwrap_or_default();
        let who = origin(&a[1])?;
        let next = clocks.0.get(who).copied().unwrap_or(0) + 1;
        if i64::try_from(next).is_err() {
            return Err(counted(who));
        }
        clocks.reach(who, next);
        Ok(Value::Bytes(encode::<VersionVector>(&clocks).into()))
    })]
}
