//! Sets of values in R2 order.

use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::value::Value;
use std::cmp::Ordering;

/// A set as a sorted vector.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ValueSet(Vec<Value>);

impl ValueSet {
    /// The values, ascending.
    pub fn values(&self) -> &[Value] {
        &self.0
    }

    /// Adds one value.
    pub fn insert(&mut self, value: Value) {
        match self.0.last() {
            Some(last) if *last < value => self.0.push(value),
            None => self.0.push(value),
            _ => {
                if let Err(at) = self.0.binary_search(&value) {
                    self.0.insert(at, value);
                }
            }
        }
    }

    /// The union.
    pub fn union(&mut self, other: &ValueSet) {
        if other.0.len() <= 4 {
            other.0.iter().for_each(|v| self.insert(v.clone()));
            return;
        }
        let mut merged = Vec::with_capacity(self.0.len().max(other.0.len()));
        let (mut left, mut right) = (std::mem::take(&mut self.0).into_iter().peekable(), other.0.iter().peekable());
        loop {
            let order = match (left.peek(), right.peek()) {
                (Some(a), Some(b)) => a.cmp(b),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            if order == Ordering::Equal {
                right.next();
            }
            merged.extend(if order == Ordering::Greater { right.next().cloned() } else { left.next() });
        }
        self.0 = merged;
    }

    /// The values that are not in the other.
    pub fn without(&self, other: &ValueSet) -> ValueSet {
        ValueSet(self.0.iter().filter(|v| other.0.binary_search(v).is_err()).cloned().collect())
    }

    /// The intersection.
    pub fn intersect(&mut self, other: &ValueSet) {
        self.0.retain(|v| other.0.binary_search(v).is_ok());
    }

    /// Memory held, in bytes.
    pub fn heap_size(&self) -> usize {
        self.0.capacity() * size_of::<Value>() + self.0.iter().map(Value::heap_size).sum::<usize>()
    }

    /// Writes the values.
    pub fn encode(&self, w: &mut Writer) {
        w.values(&self.0);
    }

    /// Reads them.
    ///
    /// # Errors
    /// `corrupt_state` if they are not strictly ascending.
    pub fn decode(r: &mut Reader<'_>) -> Result<ValueSet> {
        let values = r.values()?;
        if values.windows(2).any(|w| w[0] >= w[1]) {
            return Err(Error::corrupt_state("the elements of a set in the state are not in order"));
        }
        Ok(ValueSet(values))
    }
}

impl FromIterator<Value> for ValueSet {
    fn from_iter<I: IntoIterator<Item = Value>>(values: I) -> ValueSet {
        let mut values: Vec<Value> = values.into_iter().collect();
        values.sort();
        values.dedup();
        ValueSet(values)
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
pub fn join_texts(values: &[Value], separator: &str) -> Value {
    let mut out = String::new();
    for (i, value) in values.iter().enumerate() {
        if i > 0 {
            out.push_str(separator);
        }
        match value {
            Value::Text(t) => out.push_str(t),
            other => out.push_str(&other.to_string()),
        }
    }
    Value::text(out)
}
