//! `merkle`: a tree of hashes over keys and digests of rows, which says where two tables differ.

use crate::aggregate::{Call, State, Strategy, bytes_of, decode};
use crate::batch::Column;
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{self, Reader, Writer};
use crate::error::{Code, Error, Result};
use crate::functions::Function;
use crate::merkle::{Hash, hex, marked};
use crate::types::Type;
use crate::value::{Value, packed};
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

/// Rows, each a position, a digest and the encoding of a key; of a key that comes with two digests the greater counts.
#[derive(Debug, Clone, Default)]
struct Tree {
    positions: Vec<u128>,
    digests: Vec<Hash>,
    /// Where the key of each row ends in `keys`.
    ends: Vec<u32>,
    keys: Vec<u8>,
    /// How many rows are in order of their positions, each once; those behind came since.
    settled: usize,
}

impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        if self.positions.is_empty() || other.positions.is_empty() {
            return self.positions.is_empty() && other.positions.is_empty();
        }
        let (a, b) = (self.settle(), other.settle());
        a.positions == b.positions && a.digests == b.digests
    }
}

impl Tree {
    /// Adds a row: a key and a digest.
    ///
    /// # Errors
    /// `invalid_argument`, `limit_exceeded`.
    fn update(&mut self, key: &Value, digest: &[u8]) -> Result<()> {
        let digest = digest.try_into().map_err(|_| {
            Error::invalid_argument("a digest has 32 bytes").with_help("row_digest(...) makes one of a row's values")
        })?;
        packed::with_bytes(&key.to_worth(), |key| self.offer(position(key), key, digest))
    }

    /// # Errors
    /// `limit_exceeded`.
    fn offer(&mut self, position: u128, key: &[u8], digest: &Hash) -> Result<()> {
        // Rows that come again and again must not pile up.
        if self.positions.len() >= 4 * self.settled.max(1 << 16) {
            self.settle_now();
        }
        if self.keys.len() + key.len() > u32::MAX as usize || self.positions.len() >= u32::MAX as usize {
            return Err(Error::new(Code::LimitExceeded, "a Merkle tree has more than 4 GiB of keys")
                .with_help("make a tree for each part of the table, merkle_bucket says which"));
        }
        self.push(position, key, digest);
        Ok(())
    }

    fn push(&mut self, position: u128, key: &[u8], digest: &Hash) {
        self.keys.extend_from_slice(key);
        self.ends.push(self.keys.len() as u32);
        self.positions.push(position);
        self.digests.push(*digest);
    }

    fn key(&self, row: usize) -> &[u8] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] as usize };
        &self.keys[start..self.ends[row] as usize]
    }

    fn with_capacity(rows: usize, keys: usize) -> Tree {
        Tree {
            positions: Vec::with_capacity(rows),
            digests: Vec::with_capacity(rows),
            ends: Vec::with_capacity(rows),
            keys: Vec::with_capacity(keys),
            settled: 0,
        }
    }

    fn settle_now(&mut self) {
        if self.settled == self.positions.len() {
            return;
        }
        let mut settled = Tree::with_capacity(self.positions.len(), self.keys.len());
        let rows = self.in_order();
        settled.positions.extend(rows.iter().map(|row| self.positions[*row as usize]));
        settled.digests.extend(rows.iter().map(|row| self.digests[*row as usize]));
        for row in rows {
            settled.keys.extend_from_slice(self.key(row as usize));
            settled.ends.push(settled.keys.len() as u32);
        }
        settled.settled = settled.positions.len();
        *self = settled;
    }

    fn settle(&self) -> Cow<'_, Tree> {
        if self.settled == self.positions.len() {
            return Cow::Borrowed(self);
        }
        let mut settled = self.clone();
        settled.settle_now();
        Cow::Owned(settled)
    }

    /// The rows in order, each once.
    fn in_order(&self) -> Vec<u32> {
        if self.settled == self.positions.len() {
            return (0..self.settled as u32).collect();
        }
        order(&self.positions, &self.digests)
    }

    /// The hash of all rows; what is done with the hash of each node, and the place before which that splits its rows, is the caller's.
    ///
    /// Where rows part is the first bit that their positions don't share, so that the nodes are the Cartesian tree of those bits between
    /// neighbours: one pass with a stack builds it (Vuillemin 1980, A unifying look at data structures).
    fn root(&self, mut see: impl FnMut(usize, &Hash)) -> Hash {
        let rows = self.in_order();
        let mut waiting: Vec<(Hash, u32, usize)> = Vec::new();
        let mut hash = [0; 32];
        let mut leaves = Vec::with_capacity(BATCH);
        for (batch, some) in rows.chunks(BATCH).enumerate() {
            // Rows lie anywhere: they are fetched together, before any is hashed.
            leaves.clear();
            leaves.extend(some.iter().map(|row| (self.positions[*row as usize], self.digests[*row as usize])));
            let next = rows.get((batch + 1) * BATCH).map(|row| self.positions[*row as usize]);
            for (i, (position, digest)) in leaves.iter().enumerate() {
                hash = leaf(*position, digest);
                let next = leaves.get(i + 1).map(|(next, _)| *next).or(next);
                let bit = next.map_or(u32::MAX, |next| 127 - (position ^ next).leading_zeros());
                while let Some((left, _, place)) = waiting.pop_if(|(_, left_bit, _)| *left_bit < bit) {
                    hash = node(&left, &hash);
                    see(place, &hash);
                }
                waiting.push((hash, bit, batch * BATCH + i));
            }
        }
        hash
    }

    /// What a reader of single paths needs beside the state, whose rows are in order: the positions, and the hashes of the nodes.
    fn index(&self) -> Vec<u8> {
        let n = self.positions.len();
        let mut index = vec![0; 16 * n + 32 * n.saturating_sub(1)];
        let (positions, nodes) = index.split_at_mut(16 * n);
        positions.chunks_exact_mut(16).zip(&self.positions).for_each(|(out, position)| out.copy_from_slice(&position.to_be_bytes()));
        self.root(|at, node| nodes[32 * at..32 * (at + 1)].copy_from_slice(node));
        index
    }
}

/// How many rows are fetched before they are hashed.
const BATCH: usize = 256;

/// The rows by position, of those at one position that with the greatest digest. Positions are hashes: their first bits part them evenly.
fn order(positions: &[u128], digests: &[Hash]) -> Vec<u32> {
    let bits = positions.len().max(1).ilog2().saturating_sub(2);
    let part = |position: u128| (position >> (127 - bits) >> 1) as usize;
    let mut next = vec![0usize; (1 << bits) + 1];
    positions.iter().for_each(|p| next[part(*p) + 1] += 1);
    (1..next.len()).for_each(|i| next[i] += next[i - 1]);
    let mut keyed = vec![(0u64, 0u32); positions.len()];
    for (row, position) in positions.iter().enumerate() {
        let at = &mut next[part(*position)];
        keyed[*at] = (((position << bits) >> 64) as u64, row as u32);
        *at += 1;
    }
    let (position, digest) = (|row: u32| positions[row as usize], |row: u32| digests[row as usize]);
    let mut start = 0;
    // Each part now ends where the next began.
    for end in next {
        let part = &mut keyed[start..end.max(start)];
        part.sort_unstable_by(|(a, x), (b, y)| {
            a.cmp(b).then_with(|| position(*x).cmp(&position(*y))).then_with(|| digest(*y).cmp(&digest(*x)))
        });
        start = end;
    }
    keyed.dedup_by(|(a, x), (b, y)| a == b && position(*x) == position(*y));
    keyed.into_iter().map(|(_, row)| row).collect()
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
        match &row[1] {
            Value::Null => Ok(()),
            digest => state.update(&row[0], bytes_of(digest)?.unwrap_or_default()),
        }
    }

    fn update_at(&self, state: &mut Tree, columns: &[Column<'_>], i: usize, row: &mut Vec<Value>) -> Result<()> {
        match columns[1].bytes(i) {
            Some(digest) => state.update(&columns[0].value(i), digest),
            None => {
                row.clear();
                row.extend(columns.iter().map(|c| c.value(i)));
                self.update(state, row)
            }
        }
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

    fn update_at(&self, state: &mut Tree, columns: &[Column<'_>], i: usize, row: &mut Vec<Value>) -> Result<()> {
        Merkle.update_at(state, columns, i, row)
    }

    fn resolve(&self, state: &Tree) -> Result<Value> {
        Ok(if state.positions.is_empty() { Value::Null } else { Value::Bytes(indexed(state).into()) })
    }
}

/// The position of a key: of the encoding of its worth, so that 1 and 1.0 are one key, as in MERGE.
fn position_of(key: &Value) -> u128 {
    packed::with_bytes(&key.to_worth(), position)
}

impl State for Tree {
    fn join(&mut self, other: &Self) -> Result<()> {
        self.settle_now();
        let other = other.settle();
        if self.positions.is_empty() {
            *self = other.into_owned();
            return Ok(());
        }
        if self.keys.len() + other.keys.len() > u32::MAX as usize {
            // What is too much is said where a row is added; equal keys may make it less.
            (0..other.positions.len()).try_for_each(|row| self.offer(other.positions[row], other.key(row), &other.digests[row]))?;
            self.settle_now();
            return Ok(());
        }
        let mut joined = Tree::with_capacity(self.positions.len() + other.positions.len(), self.keys.len() + other.keys.len());
        let (mut a, mut b) = (0, 0);
        loop {
            let from_self = match (self.positions.get(a), other.positions.get(b)) {
                (None, None) => break,
                (Some(x), Some(y)) if x == y => {
                    let greater = self.digests[a] >= other.digests[b];
                    // Of an equal pair one is passed over.
                    if greater { b += 1 } else { a += 1 }
                    greater
                }
                (Some(x), Some(y)) => x < y,
                (left, _) => left.is_some(),
            };
            let (from, row) = if from_self { (&*self, &mut a) } else { (&*other, &mut b) };
            joined.push(from.positions[*row], from.key(*row), &from.digests[*row]);
            *row += 1;
        }
        joined.settled = joined.positions.len();
        *self = joined;
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(if self.positions.is_empty() { Value::Null } else { Value::text(hex(&self.root(|_, _| {}))) })
    }

    fn bottom(&self) -> Self {
        Tree::default()
    }

    /// Only the rows that the other lacks, or has with another digest.
    fn delta(&self, since: &Self) -> Self {
        let (own, since) = (self.settle(), since.settle());
        let mut delta = Tree::default();
        for (row, position) in own.positions.iter().enumerate() {
            let known = since.positions.binary_search(position).map(|at| since.digests[at]);
            if known != Ok(own.digests[row]) {
                delta.push(*position, own.key(row), &own.digests[row]);
            }
        }
        delta.settled = delta.positions.len();
        delta
    }

    /// Count, digests, ends of keys, keys: in the order of positions, which the keys say.
    fn encode(&self, w: &mut Writer) {
        let tree = self.settle();
        w.reserve(4 + 36 * tree.positions.len() + tree.keys.len());
        w.raw(&(tree.positions.len() as u32).to_le_bytes());
        w.raw(tree.digests.as_flattened());
        tree.ends.iter().for_each(|end| w.raw(&end.to_le_bytes()));
        w.raw(&tree.keys);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let n = u32::from_le_bytes(*r.take(4)?.first_chunk().expect("invariant: four bytes")) as usize;
        let digests = r.take(n.checked_mul(32).ok_or_else(short)?)?;
        let ends = r.take(4 * n)?;
        let mut tree = Tree::with_capacity(n, 0);
        let mut start = 0u32;
        for (digest, end) in digests.as_chunks::<32>().0.iter().zip(ends.as_chunks::<4>().0) {
            let end = u32::from_le_bytes(*end);
            let key = r.take(end.checked_sub(start).ok_or_else(short)? as usize)?;
            let mut reader = Reader::new(key);
            reader.skip()?;
            reader.end()?;
            start = end;
            let position = position(key);
            if tree.positions.last().is_some_and(|last| *last >= position) {
                return Err(Error::corrupt_state("the rows of the tree are not in order"));
            }
            tree.push(position, key, digest);
        }
        tree.settled = n;
        Ok(tree)
    }

    fn heap_size(&self) -> usize {
        self.keys.capacity() + self.positions.capacity() * 16 + self.digests.capacity() * 32 + self.ends.capacity() * 4
    }

    fn info(&self) -> Value {
        let tree = self.settle();
        Value::record(vec![
            ("rows".into(), Value::Int(tree.positions.len() as i128)),
            ("root".into(), Value::text(hex(&tree.root(|_, _| {})))),
        ])
    }
}

/// The state bytes of a tree with the index that [`Stored`] reads.
fn indexed(tree: &Tree) -> Vec<u8> {
    let tree = tree.settle();
    let mut w = Writer::default();
    tree.encode(&mut w);
    codec::seal_indexed(MERKLE.type_id, w.as_bytes(), &tree.index())
}

fn short() -> Error {
    Error::corrupt_state("the tree in the state is cut off")
}

/// A tree in state bytes with an index, of which only what is asked for is read.
struct Stored<'a> {
    n: usize,
    body: Cow<'a, [u8]>,
    /// Positions, then hashes of nodes.
    index: Cow<'a, [u8]>,
    /// How many rows were looked at.
    read: std::cell::Cell<usize>,
}

impl<'a> Stored<'a> {
    fn open(state: &'a Value) -> Result<Option<Stored<'a>>> {
        let Some(bytes) = bytes_of(state)? else { return Ok(None) };
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
        if whole { Ok(Some(stored)) } else { Err(short()) }
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
        self.index.get(nodes + 32 * (at - 1)..).and_then(|b| b.first_chunk()).copied().unwrap_or_default()
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
    let Some(row) = tree.find(position_of(&args[1])) else { return Ok(Value::Null) };
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
    let mut hash = leaf(position_of(&args[1]), &digest);
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
    let mut w = Writer::default();
    args.iter().for_each(|value| w.value(&value.to_worth()));
    let digest = marked(mark::ROW, &[&(args.len() as u64).to_le_bytes(), w.as_bytes()]);
    Ok(Value::Bytes(digest.into()))
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
            Ok(Value::Int(position_of(&a[0]).checked_shr(128 - bits).unwrap_or(0) as i128))
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
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
