//! `union`: set union of lists, or of the parts of texts.

use crate::aggregate::{Call, Groups, State, Strategy};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::fast::{self, sets};
use crate::lattice::set::{ValueSet, join_texts, separator, split_trimmed};
use crate::types::Type;
use crate::value::Value;
use std::sync::Arc;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Union>());
}

/// A one-character separator that trimming leaves alone: then the joined text splits back into exactly its parts.
pub(crate) fn splits_back(separator: &str) -> bool {
    let mut chars = separator.chars();
    matches!((chars.next(), chars.next()), (Some(c), None) if !c.is_whitespace())
}

#[derive(Debug)]
struct Union {
    ty: Type,
    separator: Arc<str>,
}

/// `None` until anything contributed, so that an empty set is not NULL.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parts {
    separator: Arc<str>,
    text: bool,
    parts: Option<ValueSet>,
}

impl Strategy for Union {
    const SPEC: Spec = Spec {
        name: "union",
        aliases: &["unionset"],
        type_id: 9,
        since: "0.1.0",
        title: "the set union",
        doc: "Lists become sorted typed sets. Text is split on the separator, its parts trimmed, empty ones dropped, sorted by bytes \
              and joined again. NULL elements contribute nothing. A numeric column is refused: collect numbers in a list first.",
        inputs: &[Input::Value],
        args: &[Arg { name: "separator", kind: ArgKind::Text, doc: "between the parts of a text; default `,`" }],
        takes: "lists and text",
        selects: false,
        closed: |call| !call.value_type().is_text() || splits_back(call.text("separator").ok().flatten().unwrap_or(",")),
        example: ("SELECT crdt_union(v) AS v FROM (VALUES ('sql, ml'), ('ml,ops'), (NULL)) AS t(v)", "ml,ops,sql"),
        source: "Shapiro et al. 2011, section 3.3.1 (G-Set)",
        samples: || {
            vec![
                Call::new(vec![Type::Text]),
                Call::new(vec![Type::Text]).with_arg("separator", Value::text(";;")),
                Call::new(vec![Type::List(Box::new(Type::INT64))]),
                Call::new(vec![Type::List(Box::new(Type::Float64))]),
            ]
        },
    };
    type State = Parts;

    fn configure(call: &Call) -> Result<Self> {
        let ty = call.value_type();
        if !ty.is_text() && !matches!(ty, Type::List(_)) {
            return Err(Error::type_mismatch(format!("`union` takes lists and text, not {ty}"))
                .with_help("collect single values with `crdt_gset`, or merge them with `max`"));
        }
        if !ty.is_text() && call.arg("separator").is_some() {
            return Err(Error::invalid_argument("a separator has no meaning for lists"));
        }
        Ok(Union { ty, separator: separator(call, ",")?.into() })
    }

    fn result_type(&self) -> Type {
        self.ty.clone()
    }

    fn empty(&self) -> Parts {
        Parts { separator: self.separator.clone(), text: !matches!(self.ty, Type::List(_)), parts: None }
    }

    fn update(&self, state: &mut Parts, row: &[Value]) -> Result<()> {
        match &row[0] {
            Value::Null => {}
            Value::Text(text) if state.text => {
                let parts = state.parts.get_or_insert_default();
                split_trimmed(text, &self.separator).for_each(|part| parts.insert_text(part));
            }
            Value::List(items) if !state.text => {
                let new = items.iter().filter(|v| !v.is_null()).cloned().collect();
                state.parts.get_or_insert_default().union(&new);
            }
            other => return Err(Error::type_mismatch(format!("`union` takes lists and text, not a {}", other.kind()))),
        }
        Ok(())
    }

    fn rows_suffice(&self) -> bool {
        matches!(self.ty, Type::List(_)) || splits_back(&self.separator)
    }

    fn as_row(&self, state: &Parts) -> Option<Vec<Value>> {
        state.value().ok().map(|v| vec![v])
    }

    fn fast(&self) -> Option<Box<dyn Groups>> {
        if matches!(self.ty, Type::List(_)) {
            let empty = Parts { parts: Some(ValueSet::default()), ..self.empty() };
            return Some(sets::groups::<Self>(sets::Takes::Lists, self.ty.clone(), empty, |state| state.parts));
        }
        if self.ty != Type::Text || !splits_back(&self.separator) {
            return None;
        }
        let empty = self.empty();
        Some(fast::texts::groups(self.separator.chars().next()?, move |text| {
            let parts = split_trimmed(text, &empty.separator).map(Value::text).collect();
            crate::aggregate::encode::<Self>(&Parts { parts: Some(parts), ..empty.clone() })
        }, |bytes| crate::aggregate::decode::<Self>(bytes)?.value()))
    }
}

impl State for Parts {
    fn join(&mut self, other: &Self) -> Result<()> {
        if (self.text, &self.separator) != (other.text, &other.separator) {
            return Err(Error::type_mismatch("the two sets were split on different separators, or one holds lists"));
        }
        if let Some(parts) = &other.parts {
            self.parts.get_or_insert_default().union(parts);
        }
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(match &self.parts {
            None => Value::Null,
            Some(parts) if self.text => join_texts(parts, &self.separator),
            Some(parts) => parts.to_list(),
        })
    }

    fn bottom(&self) -> Self {
        Parts { parts: None, ..self.clone() }
    }

    fn delta(&self, since: &Self) -> Self {
        let parts = match (&self.parts, &since.parts) {
            (Some(parts), Some(known)) => Some(parts.without(known)),
            (parts, _) => parts.clone(),
        };
        Parts { parts, ..self.clone() }
    }

    fn encode(&self, w: &mut Writer) {
        w.byte(u8::from(self.text) | u8::from(self.parts.is_some()) << 1);
        if self.text {
            w.bytes(self.separator.as_bytes());
        }
        if let Some(parts) = &self.parts {
            parts.encode(w);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let flags = r.byte()?;
        let text = flags & 1 == 1;
        let separator: Arc<str> = if text { r.text()? } else { "," }.into();
        let parts = if flags & 2 == 2 { Some(ValueSet::decode(r)?) } else { None };
        let is_part = |part: &Value| matches!(part, Value::Text(part) if split_trimmed(part, &separator).eq([&**part]));
        if flags > 3 || text && parts.as_ref().is_some_and(|parts| !parts.values().all(|part| is_part(&part))) {
            return Err(Error::corrupt_state("the state holds what is no part of a text"));
        }
        Ok(Parts { separator, text, parts })
    }

    fn heap_size(&self) -> usize {
        self.parts.as_ref().map_or(0, ValueSet::heap_size)
    }

    fn info(&self) -> Value {
        let elements = self.parts.as_ref().map_or(Value::Null, |p| p.to_list());
        Value::record(vec![("separator".into(), Value::text(&*self.separator)), ("elements".into(), elements)])
    }
}
