//! `merkle`: a tree of hashes over keys and digests of rows, which says where two tables differ.

use crate::aggregate::{Call, State, Strategy, bytes_of};
use crate::batch::Column;
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{self, Reader, Writer};
use crate::error::{Code, Error, Result};
use crate::merkle::{Hash, hex, marked};
use crate::types::Type;
use crate::value::{Value, packed};
use std::borrow::Cow;
use std::ops::Range;

#[path = "merkle/stored.rs"]
mod stored;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Merkle>().with_functions(stored::functions));
    entries.push(Entry::plain::<Built>("merkle_agg"));
}

/// What is hashed, marked so that nothing reads as something else.
mod mark {
    pub const LEAF: u8 = 0;
    pub const NODE: u8 = 1;
    pub const KEY: u8 = 2;
    pub const ROW: u8 = 3;
    pub const LEFT_ROW: u8 = 4;
    pub const RIGHT_ROW: u8 = 5;
    pub const ROWS: u8 = 6;
}

/// Where a key lies: the first half of the hash of its encoding. The tree is over these, so that it is as deep as it must be whatever
/// the keys are, and an insert changes one path.
fn position(key: &[u8]) -> u128 {
    let hash = marked(mark::KEY, &[key]);
    u128::from_be_bytes(*hash.first_chunk().expect("invariant: a hash has 32 bytes"))
}

/// What a node stands over on one side. A row needs no hash of its own there: the mark of the node says that it is one, which saves the
/// fourth of what there is to hash.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Child {
    Row(u128, Hash),
    Node(Hash),
}

impl Child {
    /// The hash of all that is under it.
    fn hash(&self) -> Hash {
        match self {
            Child::Row(position, digest) => marked(mark::LEAF, &[&position.to_be_bytes(), digest]),
            Child::Node(hash) => *hash,
        }
    }

    /// Its bytes in hex: twice as long for a row as for half a node.
    fn to_hex(self) -> String {
        match self {
            Child::Row(position, digest) => format!("{position:032x}{}", hex(&digest)),
            Child::Node(hash) => hex(&hash),
        }
    }
}

fn node(left: &Child, right: &Child) -> Hash {
    // A case each, so that all lengths are known.
    match (left, right) {
        (Child::Node(l), Child::Node(r)) => marked(mark::NODE, &[l, r]),
        (Child::Row(at, l), Child::Node(r)) => marked(mark::LEFT_ROW, &[&at.to_be_bytes(), l, r]),
        (Child::Node(l), Child::Row(at, r)) => marked(mark::RIGHT_ROW, &[l, &at.to_be_bytes(), r]),
        (Child::Row(a, l), Child::Row(b, r)) => marked(mark::ROWS, &[&a.to_be_bytes(), l, &b.to_be_bytes(), r]),
    }
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
        let mut offer = |key: &Value| packed::with_bytes(key, |key| self.offer(position(key), key, digest));
        // A whole number is its own worth.
        if let Value::Int(_) = key { offer(key) } else { offer(&key.to_worth()) }
    }

    /// # Errors
    /// `limit_exceeded`.
    fn offer(&mut self, position: u128, key: &[u8], digest: &Hash) -> Result<()> {
        // Rows that come again and again must not pile up.
        if self.positions.len() >= 4 * self.settled.max(1 << 18) {
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
        let mut waiting: Vec<(Child, u32, usize)> = Vec::new();
        let mut child = Child::Node([0; 32]);
        let mut leaves = Vec::with_capacity(BATCH);
        for (batch, some) in rows.chunks(BATCH).enumerate() {
            // Rows lie anywhere: they are fetched together, before any is hashed.
            leaves.clear();
            leaves.extend(some.iter().map(|row| (self.positions[*row as usize], self.digests[*row as usize])));
            let next = rows.get((batch + 1) * BATCH).map(|row| self.positions[*row as usize]);
            for (i, (position, digest)) in leaves.iter().enumerate() {
                child = Child::Row(*position, *digest);
                let next = leaves.get(i + 1).map(|(next, _)| *next).or(next);
                let bit = next.map_or(u32::MAX, |next| 127 - (position ^ next).leading_zeros());
                while let Some((left, _, place)) = waiting.pop_if(|(_, left_bit, _)| *left_bit < bit) {
                    let hash = node(&left, &child);
                    see(place, &hash);
                    child = Child::Node(hash);
                }
                waiting.push((child, bit, batch * BATCH + i));
            }
        }
        child.hash()
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

/// Where rows part: at the first bit of their positions that is not the same in all of them; nowhere, which is at their first, if all are.
fn split(rows: Range<usize>, position: impl Fn(usize) -> u128) -> usize {
    let Some(bit) = (position(rows.start) ^ position(rows.end - 1)).checked_ilog2() else { return rows.start };
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
          is over the hashes of keys: an insert changes one path. A table without rows has the tree NULL, which differs from others in all their rows. \
          Rows whose key is NULL count as rows of one key, of which the greatest digest counts: leave them out, or give them keys.",
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

/// The state bytes of a tree with the index that [`stored::Stored`] reads.
fn indexed(tree: &Tree) -> Vec<u8> {
    let tree = tree.settle();
    let mut w = Writer::default();
    tree.encode(&mut w);
    codec::seal_indexed(MERKLE.type_id, w.as_bytes(), &tree.index())
}

fn short() -> Error {
    Error::corrupt_state("the tree in the state is cut off")
}
