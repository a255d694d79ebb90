//! `concat` and `gset`: all distinct values, as text or as a list.

use crate::aggregate::{Call, Groups, State, Strategy};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::fast::sets::{self, Takes};
use crate::fast::slot::Shape;
use crate::functions::{Function, updated};
use crate::lattice::set::{ValueSet, join_texts, separator};
use crate::types::Type;
use crate::value::Value;
use std::sync::Arc;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Concat>());
    entries.push(Entry::of::<GrowOnlySet>().with_functions(|| {
        vec![Function::state("gset_add", "the set with an element more", 2, |a| updated("gset", &a[0], &a[1..]))]
    }));
}

#[derive(Debug)]
struct Concat {
    separator: Arc<str>,
}

/// The separator that joins the parts (none: the value is a list), and the parts; `None` until anything contributed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Distinct {
    separator: Option<Arc<str>>,
    values: Option<ValueSet>,
}

impl Strategy for Concat {
    const SPEC: Spec = Spec {
        name: "concat",
        aliases: &[],
        type_id: 11,
        since: "0.1.0",
        title: "the distinct parts, joined",
        doc: "Every value as canonical text, split on the separator once, when it enters; the distinct parts are sorted by bytes and \
              joined. Parts are not trimmed; empty ones are dropped. The state holds the parts themselves and never splits them again.",
        inputs: &[Input::Value],
        args: &[Arg { name: "separator", kind: ArgKind::Text, doc: "between the parts; default ` | `" }],
        takes: "any type",
        selects: false,
        closed: |_| false,
        example: ("SELECT crdt_concat(v) AS v FROM (VALUES ('beta'), ('alpha'), ('beta')) AS t(v)", "alpha | beta"),
        source: "Shapiro et al. 2011, section 3.3.1 (G-Set)",
        samples: || {
            vec![
                Call::new(vec![Type::Text]),
                Call::new(vec![Type::INT64]).with_arg("separator", Value::text("-")),
                Call::new(vec![Type::Text]).with_arg("separator", Value::text("aa")),
            ]
        },
    };
    type State = Distinct;

    fn configure(call: &Call) -> Result<Self> {
        Ok(Concat { separator: separator(call, " | ")?.into() })
    }

    fn result_type(&self) -> Type {
        Type::Text
    }

    fn empty(&self) -> Distinct {
        Distinct { separator: Some(self.separator.clone()), values: None }
    }

    fn update(&self, state: &mut Distinct, row: &[Value]) -> Result<()> {
        if row[0].is_null() {
            return Ok(());
        }
        let text = row[0].to_string();
        let parts = state.values.get_or_insert_default();
        text.split(&*self.separator).filter(|p| !p.is_empty()).for_each(|part| parts.insert_text(part));
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct GrowOnlySet {
    ty: Type,
}

impl Strategy for GrowOnlySet {
    const SPEC: Spec = Spec {
        name: "gset",
        aliases: &["distinct_values"],
        type_id: 12,
        since: "0.1.0",
        title: "the sorted list of distinct values",
        doc: "A grow-only set: every distinct value, as a list in typed order. It is the state of `CREATE STRATEGY ... AS FOLD`. `gset_add(state, element)` changes a state.",
        inputs: &[Input::Value],
        args: &[],
        takes: "any type",
        selects: false,
        closed: |_| false,
        example: ("SELECT crdt_gset(v) AS v FROM (VALUES (3), (1), (3)) AS t(v)", "[1,3]"),
        source: "Shapiro et al. 2011, section 3.3.1 (G-Set)",
        samples: || {
            let nested = Type::Struct(vec![("a".into(), Type::Float64), ("b".into(), Type::List(Box::new(Type::Text)))]);
            [Type::INT64, Type::Float64, Type::Text, nested].map(|ty| Call::new(vec![ty])).into()
        },
    };
    type State = Distinct;

    fn configure(call: &Call) -> Result<Self> {
        Ok(GrowOnlySet { ty: call.value_type() })
    }

    fn result_type(&self) -> Type {
        Type::List(Box::new(self.ty.clone()))
    }

    fn shape(&self) -> Option<Shape> {
        Some(Shape::Collected)
    }

    fn empty(&self) -> Distinct {
        Distinct { separator: None, values: None }
    }

    fn update(&self, state: &mut Distinct, row: &[Value]) -> Result<()> {
        if !row[0].is_null() {
            state.values.get_or_insert_default().insert(&row[0]);
        }
        Ok(())
    }

    fn fast(&self) -> Option<Box<dyn Groups>> {
        let empty = Distinct { separator: None, values: Some(ValueSet::default()) };
        Some(sets::groups::<Self>(Takes::Elements, self.result_type(), empty, |state| state.values))
    }
}

/// How many elements follow in the body of the state of a `gset`.
///
/// # Errors
/// As for any state.
pub(crate) fn elements(r: &mut Reader<'_>) -> Result<usize> {
    let (_, has_values) = head(r)?;
    if has_values { r.length() } else { Ok(0) }
}

/// The separator, and whether parts follow.
fn head(r: &mut Reader<'_>) -> Result<(Option<Arc<str>>, bool)> {
    let flags = r.byte()?;
    let separator = if flags & 1 == 1 { Some(r.text()?.into()) } else { None };
    if separator.as_ref().is_some_and(|s: &Arc<str>| s.is_empty()) {
        return Err(Error::corrupt_state("the separator in the state is empty"));
    }
    Ok((separator, flags & 2 == 2))
}

impl State for Distinct {
    fn join(&mut self, other: &Self) -> Result<()> {
        if self.separator != other.separator {
            return Err(Error::type_mismatch("the two states have different separators"));
        }
        if let Some(values) = &other.values {
            self.values.get_or_insert_default().union(values);
        }
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(match (&self.values, &self.separator) {
            (None, _) => Value::Null,
            (Some(set), Some(separator)) => join_texts(set, separator),
            (Some(set), None) => set.to_list(),
        })
    }

    fn bottom(&self) -> Self {
        Distinct { values: None, ..self.clone() }
    }

    fn delta(&self, since: &Self) -> Self {
        let values = match (&self.values, &since.values) {
            (Some(values), Some(known)) => Some(values.without(known)),
            (values, _) => values.clone(),
        };
        Distinct { values, ..self.clone() }
    }

    fn encode(&self, w: &mut Writer) {
        w.byte(u8::from(self.separator.is_some()) | u8::from(self.values.is_some()) << 1);
        if let Some(separator) = &self.separator {
            w.bytes(separator.as_bytes());
        }
        if let Some(values) = &self.values {
            values.encode(w);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let (separator, has_values) = head(r)?;
        let values = if has_values { Some(ValueSet::decode(r)?) } else { None };
        Ok(Distinct { separator, values })
    }

    fn heap_size(&self) -> usize {
        self.values.as_ref().map_or(0, ValueSet::heap_size)
    }

    fn info(&self) -> Value {
        let values = self.values.as_ref().map_or(Value::Null, |s| s.to_list());
        let separator = self.separator.as_ref().map_or(Value::Null, |s| Value::text(&**s));
        Value::record(vec![("separator".into(), separator), ("values".into(), values)])
    }
}
