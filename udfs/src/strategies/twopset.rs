//! `twopset`: a set whose elements can be removed once and for all.

use crate::aggregate::{Call, State, Strategy};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::functions::{Function, updated};
use crate::lattice::origins::{self, Origins};
use crate::types::Type;
use crate::value::Value;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<TwoPhase>().with_functions(|| {
        vec![
            Function::state("twopset_add", "the set with an element more, unless it was removed before", 2, |a| {
                updated("twopset", &a[0], &[a[1].clone(), Value::Bool(false)])
            }),
            Function::state("twopset_remove", "the set without an element, for good", 2, |a| {
                updated("twopset", &a[0], &[a[1].clone(), Value::Bool(true)])
            }),
        ]
    }));
}

#[derive(Debug)]
struct TwoPhase {
    ty: Type,
}

/// Each element that was heard of, and whether it was removed: unknown < added < removed.
#[derive(Debug, Clone, PartialEq, Default)]
struct Phases(Origins<bool>);

impl Phases {
    fn learn(&mut self, element: &Value, removed: bool) {
        self.0.say(element, |known| *known |= removed, || removed);
    }
}

impl Strategy for TwoPhase {
    const SPEC: Spec = Spec {
        name: "twopset",
        aliases: &["2pset"],
        type_id: 28,
        since: "0.1.0",
        title: "a set whose elements can be removed, and then never come back",
        doc: "A row is (element, removed): an element is in the set once it was added, until some row says that it was removed; after that no \
              addition brings it back, also not one that is heard of later. `orset` lets elements come back. `twopset_add(state, element)` and `twopset_remove(state, element)` change a state.",
        inputs: &[Input::Value, Input::Versions],
        args: &[],
        takes: "any type, with whether it was removed",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_twopset(e, gone) AS e FROM (VALUES ('x', false), ('y', false), ('x', true), ('x', false)) AS t(e, gone)",
            "[\"y\"]",
        ),
        source: "Shapiro et al. 2011, section 3.3.2 (2P-Set)",
        samples: || {
            vec![Call::new(vec![Type::INT64, Type::Boolean]), Call::new(vec![Type::Text, Type::Boolean]), Call::new(vec![Type::Text])]
        },
    };
    type State = Phases;

    fn configure(call: &Call) -> Result<Self> {
        let flag = call.inputs.get(1).is_none_or(|ty| matches!(ty, Type::Boolean | Type::Null));
        if !flag || call.inputs.len() > 2 || call.flagged("descending") {
            return Err(Error::invalid_argument("`twopset` takes an element, and a boolean that says whether it was removed"));
        }
        Ok(TwoPhase { ty: call.value_type() })
    }

    fn result_type(&self) -> Type {
        Type::List(Box::new(self.ty.clone()))
    }

    fn empty(&self) -> Phases {
        Phases::default()
    }

    fn update(&self, state: &mut Phases, row: &[Value]) -> Result<()> {
        if !row[0].is_null() {
            state.learn(&row[0], row.get(1) == Some(&Value::Bool(true)));
        }
        Ok(())
    }
}

impl State for Phases {
    fn join(&mut self, other: &Self) -> Result<()> {
        other.0.iter().for_each(|(element, removed)| self.learn(&element, *removed));
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        if self.0.is_empty() {
            return Ok(Value::Null);
        }
        Ok(Value::List(self.0.iter().filter(|(_, removed)| !**removed).map(|(element, _)| element.into_owned()).collect()))
    }

    fn bottom(&self) -> Self {
        Self::default()
    }

    fn delta(&self, since: &Self) -> Self {
        Phases(self.0.news(&since.0))
    }

    fn encode(&self, w: &mut Writer) {
        origins::encode(&self.0, w, |removed, w| w.byte(u8::from(*removed)));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let flag = |r: &mut Reader<'_>| match r.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Error::corrupt_state(format!("an element is removed or not, not {other}"))),
        };
        Ok(Phases(origins::decode(r, flag)?))
    }

    fn heap_size(&self) -> usize {
        origins::heap_size(&self.0, |_| 0)
    }

    fn info(&self) -> Value {
        let part = |wanted: bool| Value::List(self.0.iter().filter(|(_, removed)| **removed == wanted).map(|(e, _)| e.into_owned()).collect());
        Value::record(vec![("added".into(), part(false)), ("removed".into(), part(true))])
    }
}
