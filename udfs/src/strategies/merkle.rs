//! `merkle`: a tree of hashes over keys and digests of rows, which says where two tables differ.

use crate::aggregate::{Call, State, Strategy, encode};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{self, Reader, Writer};
use crate::error::{Code, Error, Result};
use crate::functions::Function;
use crate::merkle::{Hash, hex, marked};
use crate::types::Type;
use crate::value::Value;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::ops::Range;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Merkle>().with_functions(functions));
    entries.push(Entry::plain::<Built>("merkle_agg"));
}

/// What is hashed, marked so that nothing reads as something else.
mod mark {
    pub const LEAF: u8 = 0;
    pub const NODE: u8 = 1;
    pub const KEY: u8 = 2;
    pub const ROW: u8 = 3;
}

/// Where a key lies: the first half of the hash of its encoding. The tree is over these, so that it is as deep as it must be whatever
/// the keys are, and an insert changes one path.
fn position(key: &[u8]) -> u128 {
    let hash = marked(mark::KEY, &[key]);
    u128::from_be_bytes(*hash.first_chunk().expect("invariant: a hash has 32 bytes"))
}

fn leaf(position: u128, digest: &Hash) -> Hash {
    marked(mark::LEAF, &[&position.to_be_bytes(), digest])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    marked(mark::NODE, &[left, right])
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    position: u128,
    digest: Hash,
    /// Where its key lies among the bytes of keys.
    key: (usize, usize),
}

/// Rows by position, each once; a key that has two digests has the greater.
#[derive(Debug, Clone, Default)]
struct Tree {
    keys: Vec<u8>,
    rows: Vec<Row>,
    /// How many rows are in order; those behind came since.
    settled: usize,
}

impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        if self.rows.is_empty() || other.rows.is_empty() {
            return self.rows.is_empty() && other.rows.is_empty();
        }
        let (a, b) = (self.settle(), other.settle());
        a.rows.len() == b.rows.len() && a.rows.iter().zip(&b.rows).all(|(a, b)| (a.position, a.digest) == (b.position, b.digest))
    }
}

impl Tree {
    fn push(&mut self, key: &[u8], digest: Hash) {
        self.add(position(key), key, digest);
    }

    fn add(&mut self, position: u128, key: &[u8], digest: Hash) {
        // Rows that come again and again must not pile up.
        if self.rows.len() >= 2 * self.settled.max(1 << 12) {
            self.settle_now();
        }
        let start = self.keys.len();
        self.keys.extend_from_slice(key);
        self.rows.push(Row { position, digest, key: (start, self.keys.len()) });
    }

    fn check_size(&self) -> Result<()> {
        if self.keys.len() > u32::MAX as usize {
            return Err(Error::new(Code::LimitExceeded, "the keys of a Merkle tree take more than 4 GiB")
                .with_help("make a tree for each part of the table, merkle_bucket says which"));
        }
        Ok(())
    }

    fn key(&self, row: &Row) -> &[u8] {
        &self.keys[row.key.0..row.key.1]
    }

    fn settle_now(&mut self) {
        if self.settled < self.rows.len() {
            self.rows.sort_unstable_by(|a, b| a.position.cmp(&b.position).then_with(|| b.digest.cmp(&a.digest)));
            let before = self.rows.len();
            self.rows.dedup_by_key(|row| row.position);
            self.settled = self.rows.len();
            if self.rows.len() < before {
                let mut keys = Vec::with_capacity(self.keys.len());
                for row in &mut self.rows {
                    let start = keys.len();
                    keys.extend_from_slice(&self.keys[row.key.0..row.key.1]);
                    row.key = (start, keys.len());
                }
                self.keys = keys;
            }
        }
    }

    fn settle(&self) -> Cow<'_, Tree> {
        if self.settled == self.rows.len() {
            return Cow::Borrowed(self);
        }
        let mut settled = self.clone();
        settled.settle_now();
        Cow::Owned(settled)
    }

    /// The hashes of the nodes, each at the place before which it splits its rows; the last is the root.
    fn nodes(&self) -> (Vec<Hash>, Hash) {
        let mut nodes = vec![[0; 32]; self.rows.len().saturating_sub(1)];
        let root = if self.rows.is_empty() { [0; 32] } else { self.hash(0..self.rows.len(), &mut nodes) };
        (nodes, root)
    }

    fn hash(&self, rows: Range<usize>, nodes: &mut [Hash]) -> Hash {
        if rows.len() == 1 {
            let row = &self.rows[rows.start];
            return leaf(row.position, &row.digest);
        }
        let at = split(rows.clone(), |i| self.rows[i].position);
        let hash = node(&self.hash(rows.start..at, nodes), &self.hash(at..rows.end, nodes));
        nodes[at - 1] = hash;
        hash
    }
}

/// Where rows part: at the first bit of their positions that is not the same in all of them.
fn split(rows: Range<usize>, position: impl Fn(usize) -> u128) -> usize {
    let bit = 127 - (position(rows.start) ^ position(rows.end - 1)).leading_zeros();
    let (mut low, mut high) = (rows.start, rows.end - 1);
    // The first row that has the bit.
    while low < high {
        let middle = low.midpoint(high);
        if position(middle) >> bit & 1 == 1 { high = middle } else { low = middle + 1 }
    }
    low
}

const MERKLE: Spec = Spec {
    name: "merkle",
    aliases: &[],
    type_id: 47,
    since: "0.1.0",
    title: "a hash over all rows of a table, which finds the rows that differ",
    doc: "A row is (key, digest): a key, and the digest of the rest of its row, which `row_digest(...)` makes. The value is the root of a Merkle tree, \
          in hex: two tables are equal exactly if their roots are. `merkle_agg(key, digest)` gives the tree itself, a state; `merkle_diff(a, b)` finds the \
          keys that differ, reading a path for each; `merkle_prove(tree, key)` shows that a row is in a table whose root is known, \
          `merkle_verify(root, key, digest, proof)` checks that. `merkle_buckets(tree, bits)` gives the hashes of parts of the keys, and \
          `merkle_bucket(key, bits)` says in which part a key is, so that two hosts that exchange a few hashes know which rows to exchange. The tree \
          is over the hashes of keys: an insert changes one path.",
    inputs: &[Input::Value, Input::Digest],
    args: &[Arg { name: "digest", kind: ArgKind::Column(Input::Digest, true), doc: "the digest of the row" }],
    takes: "keys of any type, with digests of 32 bytes",
    selects: false,
    closed: |_| false,
    example: (
        "SELECT crdt_merkle(id, row_digest(name)) = 'ff' AS same FROM (VALUES (1, 'ann'), (2, 'bob')) AS t(id, name)",
        "false",
    ),
    source: "Merkle 1987, A digital signature based on a conventional encryption function; DeCandia et al. 2007, Dynamo (anti-entropy); RFC 9162 (marks of leaves and nodes)",
    samples: || vec![Call::new(vec![Type::INT64, Type::Bytes]), Call::new(vec![Type::Text, Type::Bytes])],
};

/// The strategy: its value is the root.
#[derive(Debug)]
struct Merkle;

impl Strategy for Merkle {
    const SPEC: Spec = MERKLE;
    type State = Tree;

    fn configure(call: &Call) -> Result<Self> {
        match call.inputs.get(1) {
            Some(Type::Bytes | Type::Null) => Ok(Merkle),
            _ => Err(Error::type_mismatch("`merkle` takes a key and a digest of 32 bytes").with_help("row_digest(...) makes one of a row's values")),
        }
    }

    fn result_type(&self) -> Type {
        Type::Text
    }

    fn empty(&self) -> Tree {
        Tree::default()
    }

    fn update(&self, state: &mut Tree, row: &[Value]) -> Result<()> {
        let digest = match &row[1] {
            Value::Null => return Ok(()),
            Value::Bytes(digest) => Hash::try_from(&**digest).ok(),
            _ => None,
        };
        let digest = digest.ok_or_else(|| {
            Error::invalid_argument("a digest has 32 bytes").with_help("row_digest(...) makes one of a row's values")
        })?;
        state.push(&encoded(&row[0]), digest);
        state.check_size()
    }
}

/// The aggregate whose result is the tree.
#[derive(Debug)]
struct Built;

impl Strategy for Built {
    const SPEC: Spec = Spec { title: "the Merkle tree of a table's keys and digests, a state of `merkle`", ..MERKLE };
    type State = Tree;

    fn configure(call: &Call) -> Result<Self> {
        Merkle::configure(call).map(|_| Built)
    }

    fn result_type(&self) -> Type {
        Type::Bytes
    }

    fn empty(&self) -> Tree {
        Tree::default()
    }

    fn update(&self, state: &mut Tree, row: &[Value]) -> Result<()> {
        Merkle.update(state, row)
    }

    fn resolve(&self, state: &Tree) -> Result<Value> {
        Ok(if state.rows.is_empty() { Value::Null } else { Value::Bytes(encode::<Merkle>(state).into()) })
    }
}

/// The encoding of a key: that of its worth, so that 1 and 1.0 are one key, as in MERGE.
fn encoded(key: &Value) -> Vec<u8> {
    let mut w = Writer::default();
    w.value(&key.to_worth());
    w.as_bytes().to_vec()
}

impl State for Tree {
    fn join(&mut self, other: &Self) -> Result<()> {
        other.rows.iter().for_each(|row| self.add(row.position, other.key(row), row.digest));
        self.settle_now();
        self.check_size()
    }

    fn value(&self) -> Result<Value> {
        let tree = self.settle();
        Ok(if tree.rows.is_empty() { Value::Null } else { Value::text(hex(&tree.nodes().1)) })
    }

    fn bottom(&self) -> Self {
        Tree::default()
    }

    /// Only the rows that the other lacks, or has with another digest.
    fn delta(&self, since: &Self) -> Self {
        let (own, since) = (self.settle(), since.settle());
        let mut delta = Tree::default();
        for row in &own.rows {
            let known = since.rows.binary_search_by_key(&row.position, |r| r.position).map(|at| since.rows[at].digest);
            if known != Ok(row.digest) {
                delta.push(own.key(row), row.digest);
            }
        }
        delta
    }

    /// Count, positions, digests, ends of keys, keys, hashes of nodes: each an array, so that one row is read without the others.
    fn encode(&self, w: &mut Writer) {
        let tree = self.settle();
        w.raw(&(tree.rows.len() as u32).to_le_bytes());
        tree.rows.iter().for_each(|row| w.raw(&row.position.to_be_bytes()));
        tree.rows.iter().for_each(|row| w.raw(&row.digest));
        let mut end = 0u32;
        for row in &tree.rows {
            end += (row.key.1 - row.key.0) as u32;
            w.raw(&end.to_le_bytes());
        }
        tree.rows.iter().for_each(|row| w.raw(tree.key(row)));
        tree.nodes().0.iter().for_each(|node| w.raw(node));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let n = u32::from_le_bytes(*r.take(4)?.first_chunk().expect("invariant: four bytes")) as usize;
        let positions = r.take(n.checked_mul(16).ok_or_else(short)?)?;
        let digests = r.take(n.checked_mul(32).ok_or_else(short)?)?;
        let ends = r.take(4 * n)?;
        let mut tree = Tree::default();
        let mut start = 0u32;
        for ((at, digest), end) in positions.chunks_exact(16).zip(digests.chunks_exact(32)).zip(ends.chunks_exact(4)) {
            let end = u32::from_le_bytes(*end.first_chunk().expect("invariant: four bytes"));
            let key = r.take(end.checked_sub(start).ok_or_else(short)? as usize)?;
            let mut reader = Reader::new(key);
            reader.value()?;
            reader.end()?;
            start = end;
            tree.push(key, *digest.first_chunk().expect("invariant: 32 bytes"));
            let row = tree.rows.last().map(|row| row.position.to_be_bytes());
            if row.as_ref().map(|p| &p[..]) != Some(at) {
                return Err(Error::corrupt_state("a key of the tree is not where its hash says"));
            }
        }
        if tree.rows.windows(2).any(|w| w[0].position >= w[1].position) {
            return Err(Error::corrupt_state("the rows of the tree are not in order"));
        }
        tree.settled = tree.rows.len();
        // What they hash to is compared with the encoding.
        r.take(32 * n.saturating_sub(1))?;
        Ok(tree)
    }

    fn heap_size(&self) -> usize {
        self.keys.capacity() + self.rows.capacity() * size_of::<Row>()
    }

    fn info(&self) -> Value {
        let tree = self.settle();
        Value::record(vec![
            ("rows".into(), Value::Int(tree.rows.len() as i128)),
            ("root".into(), Value::text(hex(&tree.nodes().1))),
        ])
    }
}

fn short() -> Error {
    Error::corrupt_state("the tree in the state is cut off")
}

/// A tree in state bytes, of which only what is asked for is read.
struct Stored<'a> {
    n: usize,
    body: Cow<'a, [u8]>,
    /// How many rows were looked at.
    read: std::cell::Cell<usize>,
}

impl<'a> Stored<'a> {
    fn open(state: &'a Value) -> Result<Option<Stored<'a>>> {
        let bytes = match state {
            Value::Null => return Ok(None),
            Value::Bytes(bytes) => bytes,
            other => return Err(Error::new(Code::NotAState, format!("a {} is not a CRDT state", other.kind()))),
        };
        let (id, body) = codec::open(bytes)?;
        if id != MERKLE.type_id {
            return Err(Error::type_mismatch("this state is no Merkle tree").with_help("merkle_agg(key, digest) makes one"));
        }
        let n = body.first_chunk().map(|n| u32::from_le_bytes(*n)).ok_or_else(short)? as usize;
        let stored = Stored { n, body, read: std::cell::Cell::new(0) };
        let keys = if n == 0 { 0 } else { stored.end(n - 1)? };
        // Every array is there as a whole.
        let size = 4 + n.checked_mul(52).ok_or_else(short)? + keys + 32 * n.saturating_sub(1);
        if stored.body.len() == size { Ok(Some(stored)) } else { Err(short()) }
    }

    fn end(&self, row: usize) -> Result<usize> {
        let at = self.n.checked_mul(48).and_then(|at| at.checked_add(4 + 4 * row)).ok_or_else(short)?;
        let end = self.body.get(at..).and_then(|b| b.first_chunk()).ok_or_else(short)?;
        Ok(u32::from_le_bytes(*end) as usize)
    }

    fn position(&self, row: usize) -> u128 {
        self.read.set(self.read.get() + 1);
        let at = 4 + 16 * row;
        self.body.get(at..).and_then(|b| b.first_chunk()).map_or(0, |p| u128::from_be_bytes(*p))
    }

    fn digest(&self, row: usize) -> Hash {
        let at = 4 + 16 * self.n + 32 * row;
        self.body.get(at..).and_then(|b| b.first_chunk()).copied().unwrap_or_default()
    }

    fn key(&self, row: usize) -> Result<Value> {
        let start = if row == 0 { 0 } else { self.end(row - 1)? };
        let keys = 4 + 52 * self.n;
        let bytes = self.body.get(keys + start..keys + self.end(row)?).ok_or_else(short)?;
        Reader::new(bytes).value()
    }

    fn node(&self, at: usize) -> Hash {
        let nodes = self.body.len() - 32 * (self.n - 1);
        self.body.get(nodes + 32 * (at - 1)..).and_then(|b| b.first_chunk()).copied().unwrap_or_default()
    }

    /// The hash of rows that are a node or a leaf; `None` of none.
    fn hash(&self, rows: &Range<usize>) -> Option<Hash> {
        match rows.len() {
            0 => None,
            1 => Some(leaf(self.position(rows.start), &self.digest(rows.start))),
            _ => Some(self.node(split(rows.clone(), |i| self.position(i)))),
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
fn differ(a: &Stored<'_>, b: &Stored<'_>, left: Range<usize>, right: Range<usize>, found: &mut Vec<Difference>) {
    let mut waiting = vec![(left, right)];
    while let Some((left, right)) = waiting.pop() {
        if a.hash(&left) == b.hash(&right) {
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
        waiting.push((l..left.end, r..right.end));
        waiting.push((left.start..l, right.start..r));
    }
}

fn diff(args: &[Value]) -> Result<Value> {
    let (Some(a), Some(b)) = (Stored::open(&args[0])?, Stored::open(&args[1])?) else { return Ok(Value::Null) };
    let mut found = Vec::new();
    differ(&a, &b, 0..a.n, 0..b.n, &mut found);
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

/// The hashes beside the path of a key, from the leaf up, as hex; `<` before those on the left.
fn prove(args: &[Value]) -> Result<Value> {
    let Some(tree) = Stored::open(&args[0])? else { return Ok(Value::Null) };
    let Some(row) = tree.find(position(&encoded(&args[1]))) else { return Ok(Value::Null) };
    let (mut rows, mut steps) = (0..tree.n, Vec::new());
    while rows.len() > 1 {
        let at = split(rows.clone(), |i| tree.position(i));
        let (side, beside, rest) = if row < at { (">", at..rows.end, rows.start..at) } else { ("<", rows.start..at, at..rows.end) };
        steps.push(format!("{side}{}", hex(&tree.hash(&beside).unwrap_or_default())));
        rows = rest;
    }
    steps.reverse();
    Ok(Value::text(steps.join(" ")))
}

fn hash_of_hex(text: &str) -> Option<Hash> {
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(|b| u8::from_str_radix(std::str::from_utf8(b).ok()?, 16).ok()).collect();
    (text.len() == 64 && text.is_ascii()).then(|| bytes?.try_into().ok()).flatten()
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
    let mut hash = leaf(position(&encoded(&args[1])), &digest);
    for step in proof.split_whitespace() {
        let (left, beside) = (step.starts_with('<'), step.get(1..).and_then(hash_of_hex));
        let Some(beside) = beside.filter(|_| left || step.starts_with('>')) else {
            return Err(Error::invalid_argument("a step of a proof is `<` or `>` and 64 hex digits"));
        };
        hash = if left { node(&beside, &hash) } else { node(&hash, &beside) };
    }
    Ok(Value::Bool(hash_of_hex(root) == Some(hash)))
}

fn bits(value: &Value) -> Result<u32> {
    match value.to_worth() {
        Value::Int(n @ 0..=16) => Ok(n as u32),
        other => Err(Error::invalid_argument(format!("keys are parted by 0 to 16 bits, not {other}"))),
    }
}

fn buckets(args: &[Value]) -> Result<Value> {
    let (Some(tree), bits) = (Stored::open(&args[0])?, bits(&args[1])?) else { return Ok(Value::Null) };
    let mut parts = Vec::from([Range { start: 0, end: tree.n }]);
    for bit in (128 - bits..128).rev() {
        parts = parts.into_iter().flat_map(|rows| {
            let at = tree.part(&rows, bit);
            [rows.start..at, at..rows.end]
        }).collect();
    }
    let shown = |rows: Range<usize>| tree.hash(&rows).map_or(Value::Null, |hash| Value::text(hex(&hash)));
    Ok(Value::List(parts.into_iter().map(shown).collect()))
}

fn row_digest(args: &[Value]) -> Result<Value> {
    let mut hash = Sha256::new();
    hash.update([mark::ROW]);
    hash.update((args.len() as u64).to_le_bytes());
    let mut w = Writer::default();
    args.iter().for_each(|value| w.value(&value.to_worth()));
    hash.update(w.as_bytes());
    Ok(Value::Bytes(<[u8; 32]>::from(hash.finalize()).into()))
}

fn functions() -> Vec<Function> {
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
            Ok(Value::Int(position(&encoded(&a[0])).checked_shr(128 - bits).unwrap_or(0) as i128))
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::decode;

    fn tree(rows: impl IntoIterator<Item = (i128, u8)>) -> Value {
        let mut tree = Tree::default();
        for (key, digest) in rows {
            tree.push(&encoded(&Value::Int(key)), [digest; 32]);
        }
        Value::Bytes(encode::<Merkle>(&tree).into())
    }

    #[test]
    fn a_diff_reads_paths_alone() {
        let n = 100_000;
        let a = tree((0..n).map(|i| (i, 1)));
        let b = tree((0..n + 3).filter(|i| *i != 7 && *i != 70).map(|i| (i, if i == 500 { 2 } else { 1 })));
        let (left, right) = (Stored::open(&a).unwrap().unwrap(), Stored::open(&b).unwrap().unwrap());
        let mut found = Vec::new();
        differ(&left, &right, 0..left.n, 0..right.n, &mut found);
        assert_eq!(found.len(), 6);
        let read = left.read.get() + right.read.get();
        assert!(read < 6 * 1000, "{read} rows were read");
        let shown = diff(&[a, b]).unwrap().to_json();
        assert_eq!(
            shown,
            r#"[{"key":"7","side":"left"},{"key":"70","side":"left"},{"key":"500","side":"both"},{"key":"100000","side":"right"},{"key":"100001","side":"right"},{"key":"100002","side":"right"}]"#
        );
    }

    #[test]
    fn a_changed_row_changes_one_path() {
        let hashes = |state: &Value| {
            let Value::Bytes(bytes) = state else { panic!("no state") };
            decode::<Merkle>(bytes).unwrap().nodes().0
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
