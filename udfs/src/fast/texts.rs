//! Set union of delimited text: the raw texts of a group are kept in an arena as a linked list and split only when the value is asked
//! for. Most groups of a merge hold one or two texts, often equal ones.

use super::lists::Lists;
use crate::aggregate::Groups;
use crate::batch::{Bits, Column, Data, OwnedColumn, OwnedData};
use crate::error::Result;
use crate::lattice::set::split_trimmed;
use crate::types::Type;
use crate::value::Value;

/// A store for text parts between `separator`; `encode` writes the state bytes of a joined text, `decode` reads them back.
pub fn groups(
    separator: char,
    encode: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
    decode: impl Fn(&[u8]) -> Result<Value> + Send + Sync + 'static,
) -> Box<dyn Groups> {
    Box::new(Texts {
        separator: separator.to_string(),
        lists: Lists::default(),
        encode: Box::new(encode),
        decode: Box::new(decode),
    })
}

/// Writes the state bytes of a joined text.
type EncodeText = Box<dyn Fn(&str) -> Vec<u8> + Send + Sync>;
/// Reads the joined text of state bytes.
type DecodeText = Box<dyn Fn(&[u8]) -> Result<Value> + Send + Sync>;

struct Texts {
    separator: String,
    lists: Lists<String>,
    encode: EncodeText,
    decode: DecodeText,
}

impl Texts {
    fn add(&mut self, group: usize, text: &str) {
        if self.lists.add(group, text) {
            let mut parts = Vec::new();
            self.parts(group, &mut parts);
            let joined = parts.join(&self.separator);
            let parts = parts.len();
            self.lists.settle(group, parts, std::iter::once(joined.as_str()));
        }
    }

    /// The distinct parts of a group's texts, sorted.
    fn parts<'a>(&'a self, group: usize, parts: &mut Vec<&'a str>) {
        parts.clear();
        self.lists.items(group).for_each(|text| parts.extend(split_trimmed(text, &self.separator)));
        if parts.len() > 1 {
            parts.sort_unstable();
            parts.dedup();
        }
    }

    /// Takes the first `n` groups out as joined texts.
    fn take(&mut self, n: usize) -> OwnedColumn {
        let n = n.min(self.lists.len());
        let (mut offsets, mut bytes, mut validity) = (vec![0], Vec::new(), Vec::with_capacity(n));
        let mut parts: Vec<&str> = Vec::new();
        for group in 0..n {
            validity.push(self.lists.is_touched(group));
            self.parts(group, &mut parts);
            for (i, part) in parts.iter().enumerate() {
                if i > 0 {
                    bytes.extend_from_slice(self.separator.as_bytes());
                }
                bytes.extend_from_slice(part.as_bytes());
            }
            offsets.push(bytes.len());
        }
        self.lists.drop_first(n);
        OwnedColumn { ty: Type::Text, data: OwnedData::Strings { offsets, bytes }, validity: Some(validity) }
    }
}

impl Groups for Texts {
    fn update(&mut self, columns: &[Column<'_>], groups: &[usize], filter: Option<Bits<'_>>, total: usize) -> Result<()> {
        self.lists.grow(total);
        let column = &columns[0];
        for (i, &group) in groups.iter().enumerate() {
            self.lists.fetch_ahead(groups, i);
            if !column.is_valid(i) || filter.is_some_and(|f| !f.get(i)) {
                continue;
            }
            match &column.data {
                Data::Text(s) => match std::str::from_utf8(s.get(i)) {
                    Ok(text) => self.add(group, text),
                    Err(_) => self.add(group, &String::from_utf8_lossy(s.get(i))),
                },
                _ => match column.value(i) {
                    Value::Text(text) => self.add(group, &text),
                    other => self.add(group, &other.to_string()),
                },
            }
        }
        Ok(())
    }

    fn merge(&mut self, states: &Column<'_>, groups: &[usize], total: usize) -> Result<()> {
        let mut texts = vec![Value::Null; groups.len()];
        for (i, text) in texts.iter_mut().enumerate() {
            if let Value::Bytes(bytes) = states.value(i) {
                *text = (self.decode)(&bytes)?;
            }
        }
        self.update(&[Column::of_values(&texts)], groups, None, total)
    }

    fn rows(&mut self, n: usize) -> Result<Vec<OwnedColumn>> {
        Ok(vec![self.take(n)])
    }

    fn states(&mut self, n: usize) -> Result<OwnedColumn> {
        let joined = self.take(n);
        let row = |i: usize| match joined.value(i) {
            Value::Text(text) => Some((self.encode)(&text)),
            _ => None,
        };
        Ok(OwnedColumn::of_bytes(Type::Bytes, (0..n).map(row)))
    }

    fn finish(&mut self, n: usize) -> Result<OwnedColumn> {
        Ok(self.take(n))
    }

    fn size(&self) -> usize {
        self.lists.size()
    }
}
