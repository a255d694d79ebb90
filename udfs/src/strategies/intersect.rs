//! `intersect`: the values that every contributing row holds.

use crate::aggregate::{Call, State, Strategy};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::lattice::set::{ValueSet, join_texts, separator, split_trimmed};
use crate::types::Type;
use crate::value::Value;
use std::sync::Arc;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Intersect>());
}

#[derive(Debug)]
struct Intersect {
    ty: Type,
    separator: Arc<str>,
}

/// Sets ordered by reverse inclusion: the least is "everything" (`None`), the join is the intersection.
#[derive(Debug, Clone, PartialEq)]
struct Common {
    separator: Arc<str>,
    text: bool,
    common: Option<ValueSet>,
}

impl Common {
    fn meet(&mut self, set: ValueSet) {
        match &mut self.common {
            None => self.common = Some(set),
            Some(common) => common.intersect(&set),
        }
    }
}

impl Strategy for Intersect {
    const SPEC: Spec = Spec {
        name: "intersect",
        aliases: &[],
        type_id: 10,
        since: "0.1.0",
        title: "the values that every row holds",
        doc: "The elements that every contributing row holds: lists as sorted typed sets, text split on the separator and joined \
              again. A row whose value is NULL does not contribute; a row with an empty list leaves nothing.",
        inputs: &[Input::Value],
        args: &[Arg { name: "separator", kind: ArgKind::Text, doc: "between the parts of a text; default `,`" }],
        takes: "lists and text",
        selects: false,
        closed: |call| matches!(call.value_type(), Type::List(_)),
        example: ("SELECT crdt_intersect(v) AS v FROM (VALUES ('a,b,c'), ('c, b'), (NULL)) AS t(v)", "b,c"),
        source: "sets under reverse inclusion; Davey, Priestley: Introduction to Lattices and Order (2002), chapter 2",
        samples: || vec![Call::new(vec![Type::Text]), Call::new(vec![Type::List(Box::new(Type::INT64))])],
    };
    type State = Common;

    fn configure(call: &Call) -> Result<Self> {
        let ty = call.value_type();
        if !ty.is_text() && !matches!(ty, Type::List(_)) {
            return Err(Error::type_mismatch(format!("`intersect` takes lists and text, not {ty}")));
        }
        if !ty.is_text() && call.arg("separator").is_some() {
            return Err(Error::invalid_argument("a separator has no meaning for lists"));
        }
        Ok(Intersect { ty, separator: separator(call, ",")?.into() })
    }

    fn result_type(&self) -> Type {
        self.ty.clone()
    }

    fn empty(&self) -> Common {
        Common { separator: self.separator.clone(), text: !matches!(self.ty, Type::List(_)), common: None }
    }

    fn update(&self, state: &mut Common, row: &[Value]) -> Result<()> {
        match &row[0] {
            Value::Null => {}
            Value::Text(text) if state.text => state.meet(split_trimmed(text, &self.separator).map(Value::text).collect()),
            Value::List(items) if !state.text => state.meet(items.iter().filter(|v| !v.is_null()).cloned().collect()),
            other => return Err(Error::type_mismatch(format!("`intersect` takes lists and text, not a {}", other.kind()))),
        }
        Ok(())
    }
}

impl State for Common {
    fn join(&mut self, other: &Self) -> Result<()> {
        if (self.text, &self.separator) != (other.text, &other.separator) {
            return Err(Error::type_mismatch("the two sets were split on different separators, or one holds lists"));
        }
        if let Some(set) = &other.common {
            self.meet(set.clone());
        }
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(match &self.common {
            None => Value::Null,
            Some(set) if self.text => join_texts(set, &self.separator),
            Some(set) => set.to_list(),
        })
    }

    fn bottom(&self) -> Self {
        Common { common: None, ..self.clone() }
    }

    fn encode(&self, w: &mut Writer) {
        w.byte(u8::from(self.text) | u8::from(self.common.is_some()) << 1);
        w.bytes(self.separator.as_bytes());
        if let Some(set) = &self.common {
            set.encode(w);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let flags = r.byte()?;
        let separator = r.text()?.into();
        let common = if flags & 2 == 2 { Some(ValueSet::decode(r)?) } else { None };
        Ok(Common { separator, text: flags & 1 == 1, common })
    }

    fn heap_size(&self) -> usize {
        self.common.as_ref().map_or(0, ValueSet::heap_size)
    }

    fn info(&self) -> Value {
        let common = self.common.as_ref().map_or(Value::Null, |s| s.to_list());
        Value::record(vec![("separator".into(), Value::text(&*self.separator)), ("common".into(), common)])
    }
}
