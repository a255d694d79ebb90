//! `all`: every value of the newest version.

use crate::aggregate::{Call, State, Strategy};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::lattice::set::ValueSet;
use crate::lattice::version::{self, VersionOrder};
use crate::types::Type;
use crate::value::Value;
use std::cmp::Ordering;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<All>());
}

#[derive(Debug)]
struct All {
    ty: Type,
    versions: VersionOrder,
}

/// The lexicographic product of a version and a set: a newer version replaces the set, an equal one adds to it.
#[derive(Debug, Clone, PartialEq)]
struct Siblings {
    versions: VersionOrder,
    newest: Option<(Vec<Value>, ValueSet)>,
}

impl Siblings {
    fn offer(&mut self, version: &[Value], values: &ValueSet) {
        let order = match &self.newest {
            None => Ordering::Greater,
            Some((newest, _)) => self.versions.compare_worth(version, newest),
        };
        match (&mut self.newest, order) {
            (_, Ordering::Greater) => self.newest = Some((version.to_vec(), values.clone())),
            (Some((newest, set)), Ordering::Equal) => {
                set.union(values);
                // 1 and 1.0 are one version: it is kept in one form.
                if self.versions.compare(version, newest) == Ordering::Greater {
                    *newest = version.to_vec();
                }
            }
            _ => {}
        }
    }
}

impl Strategy for All {
    const SPEC: Spec = Spec {
        name: "all",
        aliases: &["siblings"],
        type_id: 18,
        since: "0.1.0",
        title: "every value of the newest version",
        doc: "The sorted list of distinct values that rows of the newest version hold: a conflict shown rather than decided. Without \
              a version, every distinct value.",
        inputs: &[Input::Value, Input::Versions],
        args: &[],
        takes: "any type",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_all(v, ts) AS v FROM (VALUES ('a', 1), ('c', 2), ('b', 2), ('b', 2)) AS t(v, ts)",
            "[\"b\",\"c\"]",
        ),
        source: "lexicographic product; Baquero, Almeida, Cunha, Ferreira: Composition in state-based replicated data types (2017)",
        samples: || {
            vec![
                Call::new(vec![Type::INT64, Type::INT64]),
                Call::new(vec![Type::Text]),
                Call::new(vec![Type::Float64, Type::Float64]),
            ]
        },
    };
    type State = Siblings;

    fn configure(call: &Call) -> Result<Self> {
        Ok(All { ty: call.value_type(), versions: VersionOrder::configure(false, call)? })
    }

    fn result_type(&self) -> Type {
        Type::List(Box::new(self.ty.clone()))
    }

    fn empty(&self) -> Siblings {
        Siblings { versions: self.versions.clone(), newest: None }
    }

    fn update(&self, state: &mut Siblings, row: &[Value]) -> Result<()> {
        if !row[0].is_null() {
            // NaN is never among the newest while anything else is there (R9): it enters below every version.
            let version = if row[0].is_nan() { Vec::new() } else { VersionOrder::parts(&row[1..]) };
            state.offer(&version, &[row[0].clone()].into_iter().collect());
        }
        Ok(())
    }
}

impl State for Siblings {
    fn join(&mut self, other: &Self) -> Result<()> {
        if self.versions != other.versions {
            return Err(Error::type_mismatch("the two states order versions differently"));
        }
        if let Some((version, values)) = &other.newest {
            self.offer(version, values);
        }
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        let Some((_, set)) = &self.newest else { return Ok(Value::Null) };
        let values: Vec<Value> = set.values().collect();
        let from = usize::from(values.len() > 1 && values[0].is_nan());
        Ok(Value::List(values[from..].to_vec()))
    }

    fn bottom(&self) -> Self {
        Siblings { versions: self.versions.clone(), newest: None }
    }

    fn delta(&self, since: &Self) -> Self {
        match (&self.newest, &since.newest) {
            (Some((version, values)), Some((known, seen))) if version == known => {
                Siblings { versions: self.versions.clone(), newest: Some((version.clone(), values.without(seen))) }
            }
            _ => self.clone(),
        }
    }

    fn encode(&self, w: &mut Writer) {
        self.versions.encode(w);
        w.byte(u8::from(self.newest.is_some()));
        if let Some((version, values)) = &self.newest {
            w.values(version);
            values.encode(w);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let versions = VersionOrder::decode(r)?;
        let newest = match r.byte()? {
            0 => None,
            _ => Some((version::decode(r)?, ValueSet::decode(r)?)),
        };
        if newest.as_ref().is_some_and(|(_, values)| values.is_empty()) {
            return Err(Error::corrupt_state("the newest version in the state has no values"));
        }
        let unheard = |version: &[Value], value: &Value| value.is_null() || value.is_nan() && !version.is_empty();
        if newest.as_ref().is_some_and(|(version, values)| values.values().any(|value| unheard(version, &value))) {
            return Err(Error::corrupt_state("the newest version in the state has what no row says of it"));
        }
        Ok(Siblings { versions, newest })
    }

    fn heap_size(&self) -> usize {
        self.newest.as_ref().map_or(0, |(version, set)| {
            version.iter().map(|v| size_of::<Value>() + v.heap_size()).sum::<usize>() + set.heap_size()
        })
    }

    fn info(&self) -> Value {
        let (version, values) = match &self.newest {
            None => (Value::Null, Value::Null),
            Some((version, set)) => (Value::List(version.clone()), set.to_list()),
        };
        Value::record(vec![("version".into(), version), ("values".into(), values)])
    }
}
