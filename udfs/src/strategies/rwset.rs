//! `rwset`: a set where a removal wins over an addition that has not seen it.

use crate::aggregate::{Call, State, Strategy, argument, encode};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer, check_nesting};
use crate::error::{Error, Result};
use crate::functions::Function;
use crate::lattice::dots::DotStore;
use crate::types::Type;
use crate::value::Value;
use std::collections::BTreeMap;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<RemoveWins>().with_functions(functions));
}

#[derive(Debug)]
struct RemoveWins {
    ty: Type,
}

/// Dots that hold an element and whether they remove it.
#[derive(Debug, Clone, PartialEq, Default)]
struct Claims(DotStore);

fn claim(element: &Value, removes: bool) -> Value {
    Value::List(vec![element.clone(), Value::Bool(removes)])
}

impl Strategy for RemoveWins {
    const SPEC: Spec = Spec {
        name: "rwset",
        aliases: &[],
        type_id: 29,
        since: "0.1.0",
        title: "a set with removals, where a removal wins over an addition that has not seen it",
        doc: "Additions and removals are dots, and each ends the dots of the other kind that it has seen: an element is in the set if some \
              addition of it is left and no removal. A row is (element, origin, counter, removes); a NULL element says that the dot is over; \
              of two claims under one dot neither is kept. \
              `rwset_add(state, element, origin)` and `rwset_remove(state, element, origin)` change a state.",
        inputs: &[Input::Value, Input::Origin, Input::Versions],
        args: &[super::r#counter::ORIGIN],
        takes: "any type, with the origin, its counter, and whether it removes",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_rwset(e, o, n, gone) AS e FROM (VALUES ('x', 'a', 1, false), ('x', 'b', 1, true), ('y', 'a', 2, false)) AS t(e, o, n, gone)",
            "[\"y\"]",
        ),
        source: "Bieniusa et al. 2012, section 2; Almeida, Shoker, Baquero 2018, section 7 (remove-wins set)",
        samples: || {
            vec![
                Call::new(vec![Type::INT64, Type::Text, Type::INT64, Type::Boolean]),
                Call::new(vec![Type::Text, Type::Text, Type::INT64]),
            ]
        },
    };
    type State = Claims;

    fn configure(call: &Call) -> Result<Self> {
        let counter = matches!(call.inputs.get(2), Some(Type::Int { .. } | Type::Null));
        let flag = call.inputs.get(3).is_none_or(|ty| matches!(ty, Type::Boolean | Type::Null));
        if !counter || !flag || call.inputs.len() > 4 || call.flagged("descending") {
            return Err(Error::invalid_argument(
                "`rwset` takes an element, its origin, the origin's counter (an integer), and a boolean that says whether it removes",
            ));
        }
        Ok(RemoveWins { ty: call.value_type() })
    }

    fn result_type(&self) -> Type {
        Type::List(Box::new(self.ty.clone()))
    }

    fn empty(&self) -> Claims {
        Claims::default()
    }

    fn update(&self, state: &mut Claims, row: &[Value]) -> Result<()> {
        let Some((origin, n)) = crate::lattice::dots::dot_of(row)? else { return Ok(()) };
        let removes = row.get(3) == Some(&Value::Bool(true));
        let held = (!row[0].is_null()).then(|| claim(&row[0], removes));
        state.0.learn(held.as_ref(), origin, n)
    }
}

impl State for Claims {
    fn join(&mut self, other: &Self) -> Result<()> {
        self.0.join(&other.0)
    }

    fn value(&self) -> Result<Value> {
        if self.0.is_empty() {
            return Ok(Value::Null);
        }
        // Claims of one element need not be neighbours: 1.5 and 1.50 are worth the same, and so stand among one another.
        let mut elements = BTreeMap::new();
        for (element, removes) in self.0.values().into_iter().filter_map(parts) {
            *elements.entry(element).or_insert(false) |= removes;
        }
        Ok(Value::List(elements.into_iter().filter(|(_, removed)| !removed).map(|(element, _)| element).collect()))
    }

    fn bottom(&self) -> Self {
        Self::default()
    }

    fn delta(&self, since: &Self) -> Self {
        Claims(self.0.delta(&since.0))
    }

    fn encode(&self, w: &mut Writer) {
        self.0.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let store = DotStore::decode(r)?;
        if !store.all_values(|v| parts(v).is_some()) {
            return Err(Error::corrupt_state("a dot of the state holds no element"));
        }
        Ok(Claims(store))
    }

    fn heap_size(&self) -> usize {
        self.0.heap_size()
    }

    fn info(&self) -> Value {
        self.0.info()
    }
}

/// The element of a claim, and whether it removes it.
fn parts(claim: Value) -> Option<(Value, bool)> {
    let Value::List(items) = claim else { return None };
    match <[Value; 2]>::try_from(items) {
        Ok([element, Value::Bool(removes)]) if !element.is_null() => Some((element, removes)),
        _ => None,
    }
}

fn change(state: &Value, element: &Value, origin: &Value, removes: bool) -> Result<Value> {
    let origin = crate::lattice::origins::origin(origin)?;
    if element.is_null() {
        return Err(Error::invalid_argument("NULL is no element"));
    }
    check_nesting(element, 1)?;
    let mut claims = argument::<RemoveWins>(state)?.unwrap_or_default();
    // What this one has seen of both kinds is over.
    claims.0.remove(&claim(element, true));
    claims.0.remove(&claim(element, false));
    claims.0.add(&claim(element, removes), origin)?;
    Ok(Value::Bytes(encode::<RemoveWins>(&claims).into()))
}

fn functions() -> Vec<Function> {
    vec![
        Function::state("rwset_add", "the set with an element more, added by an origin", 3, |a| change(&a[0], &a[1], &a[2], false)),
        Function::state("rwset_remove", "the set without an element, removed by an origin", 3, |a| change(&a[0], &a[1], &a[2], true)),
    ]
}
