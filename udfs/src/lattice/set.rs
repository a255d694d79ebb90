//! Sets of values in R2 order.

use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::value::Value;
use crate::value::packed::{self, Packed, with_bytes};
use std::cmp::Ordering;

/// A set of values, packed and sorted.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ValueSet(Packed);

impl ValueSet {
    /// The values, ascending.
    pub fn values(&self) -> impl ExactSizeIterator<Item = Value> {
        self.0.iter().map(packed::value)
    }

    /// The values as a list, ascending.
    pub fn to_list(&self) -> Value {
        Value::List(self.values().collect())
    }

    /// Adds one value.
    pub fn insert(&mut self, value: &Value) {
        with_bytes(value, |bytes| self.insert_bytes(bytes));
    }

    /// Adds a text.
    pub fn insert_text(&mut self, text: &str) {
        packed::with_text(text, |bytes| self.insert_bytes(bytes));
    }

    fn insert_bytes(&mut self, bytes: &[u8]) {
        if let Err(at) = self.0.search(bytes) {
            self.0.insert(at, bytes);
        }
    }

    /// The union.
    pub fn union(&mut self, other: &ValueSet) {
        if other.0.len() <= 4 {
            other.0.iter().for_each(|bytes| self.insert_bytes(bytes));
            return;
        }
        self.0 = merge(&self.0, &other.0, [true, true, true]);
    }

    /// The values that are not in the other.
    pub fn without(&self, other: &ValueSet) -> ValueSet {
        ValueSet(merge(&self.0, &other.0, [true, false, false]))
    }

    /// The intersection.
    pub fn intersect(&mut self, other: &ValueSet) {
        self.0 = merge(&self.0, &other.0, [false, true, false]);
    }

    /// Memory held, in bytes.
    pub fn heap_size(&self) -> usize {
        self.0.heap_size()
    }

    /// Writes the values.
    pub fn encode(&self, w: &mut Writer) {
        w.length(self.0.len());
        w.raw(self.0.as_bytes());
    }

    /// Reads them.
    ///
    /// # Errors
    /// `corrupt_state` if they are not strictly ascending.
    pub fn decode(r: &mut Reader<'_>) -> Result<ValueSet> {
        let mut values = Packed::default();
        for i in 0..r.length()? {
            let bytes = r.skip()?;
            if i > 0 && packed::compare(values.get(i - 1), bytes) != Ordering::Less {
                return Err(Error::corrupt_state("the elements of a set in the state are not in order"));
            }
            values.push(bytes);
        }
        Ok(ValueSet(values))
    }
}

/// Two sorted sets as one: what only the left has, what both have, what only the right has.
fn merge(left: &Packed, right: &Packed, [only_left, both, only_right]: [bool; 3]) -> Packed {
    let mut merged = Packed::default();
    let (mut i, mut j) = (0, 0);
    while i < left.len() || j < right.len() {
        let order = match (i < left.len(), j < right.len()) {
            (true, true) => packed::compare(left.get(i), right.get(j)),
            (true, false) => Ordering::Less,
            _ => Ordering::Greater,
        };
        match order {
            Ordering::Less if only_left => merged.push(left.get(i)),
            Ordering::Equal if both => merged.push(left.get(i)),
            Ordering::Greater if only_right => merged.push(right.get(j)),
            _ => {}
        }
        i += usize::from(order != Ordering::Greater);
        j += usize::from(order != Ordering::Less);
    }
    merged
}

impl FromIterator<Value> for ValueSet {
    fn from_iter<I: IntoIterator<Item = Value>>(values: I) -> ValueSet {
        let mut values: Vec<Value> = values.into_iter().collect();
        values.sort();
        values.dedup();
        let mut set = ValueSet::default();
        values.iter().for_each(|v| with_bytes(v, |bytes| set.0.push(bytes)));
        set
    }
}

/// The parts of a text between separators: trimmed, empty ones dropped.
pub fn split_trimmed<'a>(text: &'a str, separator: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(separator).map(str::trim).filter(|part| !part.is_empty())
}

/// A `separator` argument.
///
/// # Errors
/// `invalid_argument` if it is empty.
pub fn separator(call: &crate::aggregate::Call, default: &str) -> Result<Box<str>> {
    match call.text("separator")? {
        Some("") => Err(Error::invalid_argument("the separator is empty").with_help(format!("the default is '{default}'"))),
        Some(text) => Ok(text.into()),
        None => Ok(default.into()),
    }
}

/// Texts joined by a separator.
pub fn join_texts(values: &ValueSet, separator: &str) -> Value {
    let mut out = String::new();
    for (i, value) in values.values().enumerate() {
        if i > 0 {
            out.push_str(separator);
        }
        match value {
            Value::Text(t) => out.push_str(&t),
            other => out.push_str(&other.to_string()),
        }
    }
    Value::text(out)
}
