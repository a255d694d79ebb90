//! `minhash`: signatures whose equal parts say how alike sets are.

use crate::aggregate::{Call, State};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::sketch::{Sketch, Sketched, differ, murmur, number};
use crate::types::Type;
use crate::value::Value;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Sketched<MinHash>>());
}

/// The least hash of the values for each of some hash functions; all ones while there is no value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MinHash(Box<[u32]>);

/// The `i`th hash of an item: the two halves of its MurmurHash, combined (Kirsch, Mitzenmacher 2006) and finished as MurmurHash3 does.
pub(crate) fn hash(low: u64, high: u64, i: u64) -> u32 {
    let mut h = low.wrapping_add(high.wrapping_mul(i)).wrapping_add(i.wrapping_mul(i).wrapping_mul(i));
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    // All ones means that there is none.
    ((h >> 32) as u32).min(u32::MAX - 1)
}

impl MinHash {
    pub(crate) fn new(size: usize) -> MinHash {
        MinHash(vec![u32::MAX; size].into())
    }

    /// The share of equal parts: an estimate of how much of their union two sets have in common.
    pub(crate) fn jaccard(&self, other: &MinHash) -> Result<f64> {
        if self.0.len() != other.0.len() {
            return Err(differ("sketch", "size", self.0.len(), other.0.len()));
        }
        Ok(self.0.iter().zip(&other.0).filter(|(a, b)| a == b).count() as f64 / self.0.len() as f64)
    }
}

impl Sketch for MinHash {
    const SPEC: Spec = Spec {
        name: "minhash",
        aliases: &[],
        type_id: 38,
        since: "0.1.0",
        title: "a signature of a set: how alike two sets are",
        doc: "For each of `size` hash functions the least hash of all values. `jaccard(a, b)` is the share of equal parts: an estimate of the share of \
              values that two sets have in common, with a standard error of at most `1 / (2 sqrt(size))`. The hashes are the same on every machine.",
        inputs: &[Input::Value],
        args: &[Arg { name: "size", kind: ArgKind::Number, doc: "how many hash functions, from 1 to 4096; default 128" }],
        takes: "any type",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT jaccard(a, b) AS alike FROM (SELECT crdt_minhash_state(v) AS a, crdt_minhash_state(v) AS b FROM (VALUES (1, 'a'), (2, 'b')) AS t(id, v)) AS s",
            "1.0",
        ),
        source: "Broder 1997, On the resemblance and containment of documents",
        samples: || {
            let small = |ty| Call::new(vec![ty]).with_arg("size", Value::Int(4));
            vec![small(Type::Text), small(Type::INT64)]
        },
    };

    fn configured(call: &Call) -> Result<Self> {
        Ok(MinHash::new(number(call, "size", 128, 1..=4096)? as usize))
    }

    fn add(&mut self, item: &[u8]) {
        let (low, high) = murmur(item);
        self.0.iter_mut().zip(0..).for_each(|(least, i)| *least = (*least).min(hash(low, high, i)));
    }

    fn image(&self) -> Vec<u8> {
        self.0.iter().flat_map(|part| part.to_le_bytes()).collect()
    }

    fn result_type() -> Type {
        Type::List(Box::new(Type::INT64))
    }
}

impl State for MinHash {
    fn join(&mut self, other: &Self) -> Result<()> {
        if self.0.len() != other.0.len() {
            return Err(differ("sketch", "size", self.0.len(), other.0.len()));
        }
        self.0.iter_mut().zip(&other.0).for_each(|(own, other)| *own = (*own).min(*other));
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(Value::List(self.0.iter().map(|part| Value::Int((*part).into())).collect()))
    }

    fn bottom(&self) -> Self {
        MinHash::new(self.0.len())
    }

    fn encode(&self, w: &mut Writer) {
        w.bytes(&self.image());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let image = r.bytes()?;
        if !image.len().is_multiple_of(4) || !(4..=4 * 4096).contains(&image.len()) {
            return Err(Error::corrupt_state("a signature in the state has a size that none has"));
        }
        let parts: Box<[u32]> = image.chunks_exact(4).filter_map(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b)).collect();
        if parts.contains(&u32::MAX) && parts.iter().any(|part| *part != u32::MAX) {
            return Err(Error::corrupt_state("a part of a signature in the state is missing"));
        }
        Ok(MinHash(parts))
    }

    fn heap_size(&self) -> usize {
        4 * self.0.len()
    }

    fn info(&self) -> Value {
        Value::record(vec![("size".into(), Value::Int(self.0.len() as i128))])
    }
}
