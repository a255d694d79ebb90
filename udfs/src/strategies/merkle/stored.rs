//! Stored trees: where two differ, and proofs, by reading the paths alone.

use super::{Child, MERKLE, Merkle, mark, node, position_of, short, split};
use crate::aggregate::{bytes_of, decode};
use crate::codec::{self, Reader, Writer};
use crate::error::{Error, Result};
use crate::functions::Function;
use crate::merkle::{Hash, hex, marked};
use crate::types::Type;
use crate::value::Value;
use std::borrow::Cow;
use std::ops::Range;

/// A tree in state bytes with an index, of which only what is asked for is read.
pub(super) struct Stored<'a> {
    n: usize,
    body: Cow<'a, [u8]>,
    /// Positions, then hashes of nodes.
    index: Cow<'a, [u8]>,
    /// How many rows were looked at.
    read: std::cell::Cell<usize>,
}

impl<'a> Stored<'a> {
    /// The tree in a state; no state is the tree of no rows.
    fn open(state: &'a Value) -> Result<Stored<'a>> {
        let Some(bytes) = bytes_of(state)? else {
            return Ok(Stored { n: 0, body: Cow::Borrowed(&[0; 4]), index: Cow::Borrowed(&[]), read: std::cell::Cell::new(0) });
        };
        let (id, body, index) = codec::open_indexed(bytes)?;
        if id != MERKLE.type_id {
            return Err(Error::type_mismatch("this state is no Merkle tree").with_help("merkle_agg(key, digest) makes one"));
        }
        let n = body.first_chunk().map(|n| u32::from_le_bytes(*n)).ok_or_else(short)? as usize;
        let index = match index {
            Some(index) => Cow::Borrowed(index),
            None => Cow::Owned(decode::<Merkle>(bytes)?.index()),
        };
        let stored = Stored { n, body, index, read: std::cell::Cell::new(0) };
        let keys = if n == 0 { 0 } else { stored.end(n - 1)? };
        // Every array is there as a whole.
        let size = 4 + n.checked_mul(36).ok_or_else(short)? + keys;
        let whole = stored.body.len() == size && stored.index.len() == 16 * n + 32 * n.saturating_sub(1);
        if whole { Ok(stored) } else { Err(short()) }
    }

    fn end(&self, row: usize) -> Result<usize> {
        let at = self.n.checked_mul(32).and_then(|at| at.checked_add(4 + 4 * row)).ok_or_else(short)?;
        let end = self.body.get(at..).and_then(|b| b.first_chunk()).ok_or_else(short)?;
        Ok(u32::from_le_bytes(*end) as usize)
    }

    fn position(&self, row: usize) -> u128 {
        self.read.set(self.read.get() + 1);
        self.index.get(16 * row..).and_then(|b| b.first_chunk()).map_or(0, |p| u128::from_be_bytes(*p))
    }

    fn digest(&self, row: usize) -> Hash {
        self.body.get(4 + 32 * row..).and_then(|b| b.first_chunk()).copied().unwrap_or_default()
    }

    fn key(&self, row: usize) -> Result<Value> {
        let start = if row == 0 { 0 } else { self.end(row - 1)? };
        let keys = 4 + 36 * self.n;
        let bytes = self.body.get(keys + start..keys + self.end(row)?).ok_or_else(short)?;
        Reader::new(bytes).value()
    }

    fn node(&self, at: usize) -> Hash {
        let nodes = 16 * self.n;
        let at = at.saturating_sub(1);
        self.index.get(nodes + 32 * at..).and_then(|b| b.first_chunk()).copied().unwrap_or_default()
    }

    /// Rows as what a node stands over; `None` of none.
    fn child(&self, rows: &Range<usize>) -> Option<Child> {
        match rows.len() {
            0 => None,
            1 => Some(Child::Row(self.position(rows.start), self.digest(rows.start))),
            _ => Some(Child::Node(self.node(split(rows.clone(), |i| self.position(i))))),
        }
    }

    /// The rows that have a bit, given that those before it are the same in all.
    fn part(&self, rows: &Range<usize>, bit: u32) -> usize {
        let (mut low, mut high) = (rows.start, rows.end);
        while low < high {
            let middle = low.midpoint(high);
            if self.position(middle) >> bit & 1 == 1 { high = middle } else { low = middle + 1 }
        }
        low
    }

    /// The row of a key.
    fn find(&self, position: u128) -> Option<usize> {
        let (mut low, mut high) = (0, self.n);
        while low < high {
            let middle = low.midpoint(high);
            if self.position(middle) < position { low = middle + 1 } else { high = middle }
        }
        (low < self.n && self.position(low) == position).then_some(low)
    }
}

/// A row of one side, or of both with two digests.
enum Difference {
    Left(usize),
    Right(usize),
    /// The row of the left side.
    Both(usize),
}

/// Where two trees differ: of equal nodes nothing is read.
///
/// # Errors
/// `corrupt_state` where the positions of a tree are out of order.
fn differ(a: &Stored<'_>, b: &Stored<'_>, left: Range<usize>, right: Range<usize>, found: &mut Vec<Difference>) -> Result<()> {
    let mut waiting = vec![(left, right)];
    while let Some((left, right)) = waiting.pop() {
        if a.child(&left) == b.child(&right) {
            continue;
        }
        if left.is_empty() || right.is_empty() {
            found.extend(left.map(Difference::Left).chain(right.map(Difference::Right)));
            continue;
        }
        let ends = [a.position(left.start), a.position(left.end - 1), b.position(right.start), b.position(right.end - 1)];
        let apart = ends.iter().fold(0, |bits, p| bits | (p ^ ends[0]));
        if apart == 0 {
            found.push(Difference::Both(left.start));
            continue;
        }
        let bit = 127 - apart.leading_zeros();
        let (l, r) = (a.part(&left, bit), b.part(&right, bit));
        let (above, below) = ((l..left.end, r..right.end), (left.start..l, right.start..r));
        if [&above, &below].iter().any(|(x, y)| (x, y) == (&left, &right)) {
            return Err(unordered());
        }
        waiting.extend([above, below]);
    }
    Ok(())
}

fn unordered() -> Error {
    Error::corrupt_state("the rows of the tree are out of order")
}

fn diff(args: &[Value]) -> Result<Value> {
    let (a, b) = (Stored::open(&args[0])?, Stored::open(&args[1])?);
    let mut found = Vec::new();
    differ(&a, &b, 0..a.n, 0..b.n, &mut found)?;
    let mut rows = Vec::with_capacity(found.len());
    for difference in found {
        let (key, side) = match difference {
            Difference::Left(row) => (a.key(row)?, "left"),
            Difference::Right(row) => (b.key(row)?, "right"),
            Difference::Both(row) => (a.key(row)?, "both"),
        };
        rows.push((key, side));
    }
    rows.sort();
    let row = |(key, side): (Value, &str)| {
        let key = if key.is_null() { key } else { Value::text(key.to_string()) };
        Value::record(vec![("key".into(), key), ("side".into(), Value::text(side))])
    };
    Ok(Value::List(rows.into_iter().map(row).collect()))
}

/// What lies beside the path of a key, from its row up, as hex; `<` before what is on the left.
fn prove(args: &[Value]) -> Result<Value> {
    let tree = Stored::open(&args[0])?;
    let Some(row) = tree.find(position_of(&args[1])) else { return Ok(Value::Null) };
    let (mut rows, mut steps) = (0..tree.n, Vec::new());
    while rows.len() > 1 {
        let at = split(rows.clone(), |i| tree.position(i));
        if at <= rows.start || at >= rows.end {
            return Err(unordered());
        }
        let (side, beside, rest) = if row < at { (">", at..rows.end, rows.start..at) } else { ("<", rows.start..at, at..rows.end) };
        steps.extend(tree.child(&beside).map(|beside| format!("{side}{}", beside.to_hex())));
        rows = rest;
    }
    steps.reverse();
    Ok(Value::text(steps.join(" ")))
}

fn bytes_of_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes().as_chunks::<2>().0;
    let bytes: Option<Vec<u8>> = digits.iter().map(|b| u8::from_str_radix(std::str::from_utf8(b).ok()?, 16).ok()).collect();
    (text.len() == 2 * N && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| bytes?.try_into().ok()).flatten()
}

fn child_of_hex(text: &str) -> Option<Child> {
    let row = || {
        let (position, digest) = text.split_at_checked(32)?;
        Some(Child::Row(u128::from_be_bytes(bytes_of_hex(position)?), bytes_of_hex(digest)?))
    };
    bytes_of_hex(text).map(Child::Node).or_else(row)
}

fn verify(args: &[Value]) -> Result<Value> {
    let (Value::Text(root), Value::Bytes(digest), Value::Text(proof)) = (&args[0], &args[2], &args[3]) else {
        return if args.iter().any(Value::is_null) {
            Ok(Value::Null)
        } else {
            Err(Error::type_mismatch("merkle_verify takes a root in hex, a key, a digest and a proof in hex"))
        };
    };
    let Ok(digest) = Hash::try_from(&**digest) else { return Ok(Value::Bool(false)) };
    let mut child = Child::Row(position_of(&args[1]), digest);
    for step in proof.split_whitespace() {
        let (left, beside) = (step.starts_with('<'), step.get(1..).and_then(child_of_hex));
        let Some(beside) = beside.filter(|_| left || step.starts_with('>')) else {
            return Err(Error::invalid_argument("a step of a proof is `<` or `>` and 64 hex digits, or 96 for a row"));
        };
        child = Child::Node(if left { node(&beside, &child) } else { node(&child, &beside) });
    }
    Ok(Value::Bool(bytes_of_hex(root) == Some(child.hash())))
}

fn bits(value: &Value) -> Result<u32> {
    match value.to_worth() {
        Value::Int(n @ 0..=16) => Ok(n as u32),
        other => Err(Error::invalid_argument(format!("keys are parted by 0 to 16 bits, not {other}"))),
    }
}

fn buckets(args: &[Value]) -> Result<Value> {
    let (tree, bits) = (Stored::open(&args[0])?, bits(&args[1])?);
    let mut parts = Vec::from([Range { start: 0, end: tree.n }]);
    for bit in (128 - bits..128).rev() {
        parts = parts.into_iter().flat_map(|rows| {
            let at = tree.part(&rows, bit);
            [rows.start..at, at..rows.end]
        }).collect();
    }
    let shown = |rows: Range<usize>| tree.child(&rows).map_or(Value::Null, |child| Value::text(hex(&child.hash())));
    Ok(Value::List(parts.into_iter().map(shown).collect()))
}

fn row_digest(args: &[Value]) -> Result<Value> {
    let mut w = Writer::default();
    args.iter().for_each(|value| w.value(&value.to_worth()));
    let digest = marked(mark::ROW, &[&(args.len() as u64).to_le_bytes(), w.as_bytes()]);
    Ok(Value::Bytes(digest.into()))
}

pub(super) fn functions() -> Vec<Function> {
    let difference = Type::Struct([("key", Type::Text), ("side", Type::Text)].map(|(name, ty)| (name.into(), ty)).into());
    let list = |ty: Type| Type::List(Box::new(ty));
    vec![
        Function::of("row_digest", "the SHA-256 of values, with their types and places", 1..=usize::MAX, Type::Bytes, row_digest),
        Function::of("merkle_diff", "the keys on which two Merkle trees differ: on the `left`, on the `right`, or on `both` sides with two digests", 2..=2, list(difference), diff),
        Function::of("merkle_prove", "the proof that a key is in a Merkle tree; NULL where it is not", 2..=2, Type::Text, prove),
        Function::of("merkle_verify", "whether a proof leads from a key and its digest to a root", 4..=4, Type::Boolean, verify),
        Function::of("merkle_buckets", "the hashes of 2^bits parts of a Merkle tree's keys; NULL of an empty part", 2..=2, list(Type::Text), buckets),
        Function::of("merkle_bucket", "in which of 2^bits parts of the keys a key is, from 0", 2..=2, Type::INT64, |a| {
            let bits = bits(&a[1])?;
            Ok(Value::Int(position_of(&a[0]).checked_shr(128 - bits).unwrap_or(0) as i128))
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::{Tree, indexed};
    use super::*;
    use crate::aggregate::{State, Strategy};

    fn tree(rows: impl IntoIterator<Item = (i128, u8)>) -> Value {
        let mut tree = Tree::default();
        for (key, digest) in rows {
            Merkle.update(&mut tree, &[Value::Int(key), Value::Bytes([digest; 32].into())]).unwrap();
        }
        Value::Bytes(indexed(&tree).into())
    }

    #[test]
    fn a_diff_reads_paths_alone() {
        let n = 100_000;
        let a = tree((0..n).map(|i| (i, 1)));
        let b = tree((0..n + 3).filter(|i| *i != 7 && *i != 70).map(|i| (i, if i == 500 { 2 } else { 1 })));
        let (left, right) = (Stored::open(&a).unwrap(), Stored::open(&b).unwrap());
        let mut found = Vec::new();
        differ(&left, &right, 0..left.n, 0..right.n, &mut found).unwrap();
        assert_eq!(found.len(), 6);
        let read = left.read.get() + right.read.get();
        assert!(read < 6 * 1000, "{read} rows were read");
        let shown = diff(&[a, b]).unwrap().to_json();
        assert_eq!(
            shown,
            r#"[{"key":"7","side":"left"},{"key":"70","side":"left"},{"key":"500","side":"both"},{"key":"100000","side":"right"},{"key":"100001","side":"right"},{"key":"100002","side":"right"}]"#
        );
    }

    /// A table without rows has no state: it lacks all that the other has.
    #[test]
    fn no_rows_differ_from_some() {
        let some = tree((0..3).map(|i| (i, 1)));
        let sides = |a: &Value, b: &Value| diff(&[a.clone(), b.clone()]).unwrap().to_json().matches("side").count();
        assert_eq!((sides(&Value::Null, &some), sides(&some, &Value::Null), sides(&Value::Null, &Value::Null)), (3, 3, 0));
        assert_eq!(buckets(&[Value::Null, Value::Int(1)]).unwrap().to_json(), "[null,null]");
        assert!(prove(&[Value::Null, Value::Int(1)]).unwrap().is_null());
    }

    /// An index is not part of what a state's checksum makes sure of for other states: a tree from elsewhere may hold anything.
    #[test]
    fn forged_indexes_are_errors() {
        let forged = |positions: &[u128], nodes: u8| {
            let n = positions.len();
            let mut body = (n as u32).to_le_bytes().to_vec();
            (0..n).for_each(|i| body.extend([i as u8; 32]));
            let mut w = Writer::default();
            w.value(&Value::Int(1));
            (1..=n).for_each(|i| body.extend(((w.as_bytes().len() * i) as u32).to_le_bytes()));
            (0..n).for_each(|_| body.extend(w.as_bytes()));
            let mut index: Vec<u8> = positions.iter().flat_map(|p| p.to_be_bytes()).collect();
            (1..n).for_each(|i| index.extend([i as u8 | nodes; 32]));
            Value::Bytes(codec::seal_indexed(MERKLE.type_id, &body, &index).into())
        };
        let top = 1 << 127;
        let at = position_of(&Value::Int(1));
        for key in [0, 1, 2] {
            // Two rows at one place, and rows that stand the wrong way round.
            for tree in [[top, top], [top, 0], [at, at], [0, at]] {
                let _ = prove(&[forged(&tree, 128), Value::Int(key)]);
            }
        }
        assert!(prove(&[forged(&[at, at], 128), Value::Int(1)]).is_err());
        assert!(diff(&[forged(&[top, 0], 128), forged(&[top + 1, 0], 64)]).is_err());
    }

    #[test]
    fn a_changed_row_changes_one_path() {
        let hashes = |state: &Value| {
            let Value::Bytes(bytes) = state else { panic!("no state") };
            decode::<Merkle>(bytes).unwrap().index()[16 * 4096..].chunks(32).map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        let (a, b) = (hashes(&tree((0..4096).map(|i| (i, 1)))), hashes(&tree((0..4096).map(|i| (i, if i == 9 { 2 } else { 1 })))));
        let changed = a.iter().zip(&b).filter(|(a, b)| a != b).count();
        assert!((8..40).contains(&changed), "{changed} nodes changed");
    }

    #[test]
    fn proofs_hold_for_what_is_there() {
        let state = tree((0..1000).map(|i| (i, i as u8)));
        let Value::Bytes(bytes) = &state else { panic!("no state") };
        let root = decode::<Merkle>(bytes).unwrap().value().unwrap();
        for key in [0, 1, 500, 999] {
            let proof = prove(&[state.clone(), Value::Int(key)]).unwrap();
            let check = |key: i128, digest: u8| {
                verify(&[root.clone(), Value::Int(key), Value::Bytes([digest; 32].into()), proof.clone()]).unwrap() == Value::Bool(true)
            };
            assert!(check(key, key as u8) && !check(key, key as u8 + 1) && !check(key + 1, key as u8));
        }
        assert!(prove(&[state, Value::Int(1000)]).unwrap().is_null());
    }
}
