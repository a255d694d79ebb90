//! Set union of delimited text: the raw texts of a group are kept in an arena as a linked list and split only when the value is asked
//! for. Most groups of a merge hold one or two texts, often equal ones.

use super::fetch_ahead;
use crate::aggregate::Groups;
use crate::batch::{Bits, Column, Data, OwnedColumn, OwnedData};
use crate::error::Result;
use crate::lattice::set::split_trimmed;
use crate::types::Type;
use crate::value::Value;

const NONE: u32 = u32::MAX;
/// A group with more texts than this is rewritten as one text.
const CROWDED: u32 = 32;

/// A store for text parts between `separator`; `encode` writes the state bytes of a joined text, `decode` reads them back.
pub fn groups(
    separator: char,
    encode: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
    decode: impl Fn(&[u8]) -> Result<Value> + Send + Sync + 'static,
) -> Box<dyn Groups> {
    Box::new(Texts {
        separator: separator.to_string(),
        groups: Vec::new(),
        nodes: Vec::new(),
        arena: String::new(),
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
    groups: Vec<Group>,
    nodes: Vec<Node>,
    arena: String,
    encode: EncodeText,
    decode: DecodeText,
}

/// The list of one group: its first node, how many there are, and how many there may be before it is rewritten.
#[derive(Clone, Copy)]
struct Group {
    head: u32,
    count: u32,
    limit: u32,
}

const EMPTY: Group = Group { head: NONE, count: 0, limit: CROWDED };

#[derive(Clone, Copy)]
struct Node {
    start: usize,
    length: u32,
    next: u32,
}

impl Texts {
    fn text(&self, node: Node) -> &str {
        &self.arena[node.start..node.start + node.length as usize]
    }

    fn add(&mut self, group: usize, text: &str) {
        let mut at = self.groups[group].head;
        let mut near = 0;
        while at != NONE && near < 4 {
            let node = self.nodes[at as usize];
            if self.text(node) == text {
                return;
            }
            at = node.next;
            near += 1;
        }
        self.push(group, text);
        if self.groups[group].count > self.groups[group].limit {
            let joined = self.joined(group);
            // Rewriting again pays only once as many texts came as there are parts.
            let parts = joined.matches(self.separator.as_str()).count() as u32;
            self.groups[group] = Group { limit: parts.max(CROWDED), ..EMPTY };
            self.push(group, &joined);
        }
    }

    fn push(&mut self, group: usize, text: &str) {
        let list = &mut self.groups[group];
        let node = Node { start: self.arena.len(), length: text.len() as u32, next: list.head };
        self.arena.push_str(text);
        list.head = self.nodes.len() as u32;
        list.count += 1;
        self.nodes.push(node);
    }

    fn joined(&self, group: usize) -> String {
        let mut parts: Vec<&str> = Vec::new();
        let mut at = self.groups[group].head;
        while at != NONE {
            let node = self.nodes[at as usize];
            parts.extend(split_trimmed(self.text(node), &self.separator));
            at = node.next;
        }
        parts.sort_unstable();
        parts.dedup();
        parts.join(&self.separator)
    }

    /// Takes the first `n` groups out as joined texts.
    fn take(&mut self, n: usize) -> OwnedColumn {
        let (mut offsets, mut bytes, mut validity) = (vec![0], Vec::new(), Vec::with_capacity(n));
        let mut parts: Vec<&str> = Vec::new();
        for group in 0..n.min(self.groups.len()) {
            let mut at = self.groups[group].head;
            validity.push(at != NONE);
            parts.clear();
            while at != NONE {
                let node = self.nodes[at as usize];
                parts.extend(split_trimmed(&self.arena[node.start..node.start + node.length as usize], &self.separator));
                at = node.next;
            }
            if parts.len() > 1 {
                parts.sort_unstable();
                parts.dedup();
            }
            for (i, part) in parts.iter().enumerate() {
                if i > 0 {
                    bytes.extend_from_slice(self.separator.as_bytes());
                }
                bytes.extend_from_slice(part.as_bytes());
            }
            offsets.push(bytes.len());
        }
        self.groups.drain(..n.min(self.groups.len()));
        self.shed();
        OwnedColumn { ty: Type::Text, data: OwnedData::Strings { offsets, bytes }, validity: Some(validity) }
    }

    /// Keeps only what the groups that are left still point to.
    fn shed(&mut self) {
        let (old_nodes, old_arena) = (std::mem::take(&mut self.nodes), std::mem::take(&mut self.arena));
        for group in 0..self.groups.len() {
            let list = self.groups[group];
            let mut at = list.head;
            self.groups[group] = Group { limit: list.limit, ..EMPTY };
            while at != NONE {
                let node = old_nodes[at as usize];
                self.push(group, &old_arena[node.start..node.start + node.length as usize]);
                at = node.next;
            }
        }
    }
}

impl Groups for Texts {
    fn update(&mut self, columns: &[Column<'_>], groups: &[usize], filter: Option<Bits<'_>>, total: usize) -> Result<()> {
        if self.groups.len() < total {
            self.groups.resize(total, EMPTY);
        }
        let column = &columns[0];
        for (i, &group) in groups.iter().enumerate() {
            fetch_ahead(&self.groups, groups, i);
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
        self.groups.capacity() * size_of::<Group>() + self.nodes.capacity() * size_of::<Node>() + self.arena.capacity()
    }
}
