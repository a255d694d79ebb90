//! Sets of values in R2 order.

use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::lattice::blocks::Blocks;
use crate::value::Value;
use crate::value::packed::{self, Packed, with_bytes};
use std::cmp::Ordering;

/// A set of values, packed and sorted.
#[derive(Debug, Clone)]
pub struct ValueSet(Form);

#[derive(Debug, Clone)]
enum Form {
    /// At most [`FEW`], one behind the other.
    Few(Packed),
    /// More than that.
    Many(Box<Blocks<()>>),
}

/// How many values lie in one block of memory.
const FEW: usize = 128;

impl Default for ValueSet {
    fn default() -> Self {
        ValueSet(Form::Few(Packed::default()))
    }
}

impl PartialEq for ValueSet {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl ValueSet {
    fn len(&self) -> usize {
        match &self.0 {
            Form::Few(values) => values.len(),
            Form::Many(values) => values.len(),
        }
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of each, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let (few, many) = match &self.0 {
            Form::Few(values) => (Some(values), None),
            Form::Many(values) => (None, Some(values)),
        };
        few.into_iter().flat_map(Packed::iter).chain(many.into_iter().flat_map(|values| values.iter()).map(|(bytes, ())| bytes))
    }

    /// The values, ascending.
    pub fn values(&self) -> impl Iterator<Item = Value> {
        self.iter().map(packed::value)
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
        match &mut self.0 {
            Form::Few(values) => {
                if let Err(at) = values.search(bytes) {
                    values.insert(at, bytes);
                    self.settle();
                }
            }
            Form::Many(values) => values.say(bytes, |()| (), || ()),
        }
    }

    /// Few that have become many move into blocks.
    fn settle(&mut self) {
        if let Form::Few(values) = &self.0
            && values.len() > FEW
        {
            let mut blocks = Blocks::default();
            values.iter().for_each(|bytes| blocks.push(bytes, ()));
            self.0 = Form::Many(Box::new(blocks));
        }
    }

    /// Adds a value that is greater than all others.
    fn push(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Form::Few(values) => {
                values.push(bytes);
                self.settle();
            }
            Form::Many(values) => values.push(bytes, ()),
        }
    }

    /// The union.
    pub fn union(&mut self, other: &ValueSet) {
        // Some into many: the many stay where they are.
        if other.len() <= 4 || other.len() < self.len() / 16 {
            other.iter().for_each(|bytes| self.insert_bytes(bytes));
            return;
        }
        *self = merge(self, other, [true, true, true]);
    }

    /// The values that are not in the other.
    pub fn without(&self, other: &ValueSet) -> ValueSet {
        merge(self, other, [true, false, false])
    }

    /// The intersection.
    pub fn intersect(&mut self, other: &ValueSet) {
        *self = merge(self, other, [false, true, false]);
    }

    /// Memory held, in bytes.
    pub fn heap_size(&self) -> usize {
        match &self.0 {
            Form::Few(values) => values.heap_size(),
            Form::Many(values) => size_of::<Blocks<()>>() + values.heap_size(),
        }
    }

    /// Writes the values.
    pub fn encode(&self, w: &mut Writer) {
        w.length(self.len());
        self.iter().for_each(|bytes| w.raw(bytes));
    }

    /// Reads them.
    ///
    /// # Errors
    /// `corrupt_state` if they are not strictly ascending.
    pub fn decode(r: &mut Reader<'_>) -> Result<ValueSet> {
        let mut values = ValueSet::default();
        let mut last: Option<&[u8]> = None;
        for _ in 0..r.length()? {
            let bytes = r.skip()?;
            if last.replace(bytes).is_some_and(|last| packed::compare(last, bytes) != Ordering::Less) {
                return Err(Error::corrupt_state("the elements of a set in the state are not in order"));
            }
            values.push(bytes);
        }
        Ok(values)
    }
}

/// Two sorted sets as one: what only the left has, what both have, what only the right has.
fn merge(left: &ValueSet, right: &ValueSet, [only_left, both, only_right]: [bool; 3]) -> ValueSet {
    let mut merged = ValueSet::default();
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (Some(l), Some(r)) => packed::compare(l, r),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return merged,
        };
        let l = if order == Ordering::Greater { None } else { left.next() };
        let r = if order == Ordering::Less { None } else { right.next() };
        match (l, r) {
            (Some(bytes), None) if only_left => merged.push(bytes),
            (Some(bytes), Some(_)) if both => merged.push(bytes),
            (None, Some(bytes)) if only_right => merged.push(bytes),
            _ => {}
        }
    }
}

impl FromIterator<Value> for ValueSet {
    fn from_iter<I: IntoIterator<Item = Value>>(values: I) -> ValueSet {
        let mut values: Vec<Value> = values.into_iter().collect();
        values.sort();
        values.dedup();
        let mut set = ValueSet::default();
        values.iter().for_each(|v| with_bytes(v, |bytes| set.push(bytes)));
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
