//! `bloom`: a Bloom filter.

use crate::aggregate::{Call, State};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Code, Error, Result};
use crate::sketch::{Sketch, Sketched, corrupt, guarded, number};
use crate::types::Type;
use crate::value::Value;
use datasketches::bloom::{BloomFilter, BloomFilterBuilder};
use datasketches::hash::value::raw_bytes;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Sketched<Bloom>>());
}

/// The greatest filter that a state may ask for, in bits: 32 MiB.
const MOST_BITS: u64 = 1 << 28;

/// Bits that are set by hashes of the values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bloom {
    bits: u64,
    hashes: u16,
    seed: u64,
    /// None while it is empty: a filter takes its whole memory with its first value.
    filter: Option<BloomFilter>,
}

impl Bloom {
    fn filter(&mut self) -> &mut BloomFilter {
        let (bits, hashes, seed) = (self.bits, self.hashes, self.seed);
        self.filter.get_or_insert_with(|| {
            BloomFilterBuilder::with_size(bits, hashes).seed(seed).build().expect("invariant: the size was checked")
        })
    }

    pub(crate) fn contains(&self, item: &[u8]) -> bool {
        self.filter.as_ref().is_some_and(|filter| filter.contains(&raw_bytes::from_slice(item)))
    }

    pub(crate) fn from_image(image: &[u8]) -> Result<Bloom> {
        let short = || corrupt("it is cut off");
        let words = image.get(16..20).and_then(|b| b.first_chunk()).map(|b| i32::from_le_bytes(*b)).ok_or_else(short)?;
        let bits = u64::try_from(words).ok().filter(|w| *w > 0).ok_or_else(|| corrupt("it has no bits"))? * 64;
        if bits > MOST_BITS {
            return Err(Error::new(Code::LimitExceeded, format!("a Bloom filter of {bits} bits; at most {MOST_BITS} are taken")));
        }
        let hashes = u16::from_le_bytes([image[4], image[5]]);
        let seed = image.get(8..16).and_then(|b| b.first_chunk()).map(|b| u64::from_le_bytes(*b)).ok_or_else(short)?;
        let mut bloom = Bloom { bits, hashes, seed, filter: None };
        if image[3] & 4 == 0 {
            let filter = guarded(|| BloomFilter::deserialize(image).map_err(corrupt))?;
            bloom.filter = (!filter.is_empty()).then_some(filter);
        } else {
            BloomFilterBuilder::with_size(64, hashes).build().map_err(corrupt)?;
        }
        Ok(bloom)
    }
}

impl Sketch for Bloom {
    const SPEC: Spec = Spec {
        name: "bloom",
        aliases: &[],
        type_id: 37,
        since: "0.1.0",
        title: "which values were seen, with few false alarms and no false all-clear",
        doc: "A Bloom filter of Apache DataSketches, sized for `items` values at a share of `rate` false positives. `bloom_contains(state, value)` \
              asks it. Its value is about how many values it holds.",
        inputs: &[Input::Value],
        args: &[
            Arg { name: "items", kind: ArgKind::Number, doc: "how many distinct values it is made for; default 10000" },
            Arg { name: "rate", kind: ArgKind::Number, doc: "the share of false positives when that many are in it; default 0.01" },
        ],
        takes: "any type",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT CASE WHEN bloom_contains(f, 'b') THEN 'maybe' ELSE 'never' END AS b, CASE WHEN bloom_contains(f, 'x') THEN 'maybe' ELSE 'never' END AS x FROM (SELECT crdt_bloom_state(v) AS f FROM (VALUES (1, 'a'), (2, 'b')) AS t(id, v)) AS s",
            "maybe | never",
        ),
        source: "Bloom 1970, Space/time trade-offs in hash coding with allowable errors; Swamidass, Baldi 2007 (the estimate); Apache DataSketches (Bloom filter)",
        samples: || {
            let small = |ty| Call::new(vec![ty]).with_arg("items", Value::Int(50)).with_arg("rate", Value::float(0.1));
            vec![small(Type::Text), small(Type::INT64)]
        },
    };

    fn configured(call: &Call) -> Result<Self> {
        let items = number(call, "items", 10_000, 1..=1 << 32)?;
        let rate = call.arg("rate").map_or(0.01, |rate| rate.to_f64().unwrap_or(f64::NAN));
        if !(rate > 0.0 && rate < 1.0) {
            return Err(Error::invalid_argument("`rate` is between 0 and 1").with_help("0.01 lets one of a hundred strangers in"));
        }
        // As DataSketches sizes it: m = -n ln p / (ln 2)^2 and k = m / n ln 2.
        let bits = (-(items as f64) * rate.ln() / std::f64::consts::LN_2.powi(2)).ceil().max(1.0);
        if bits > MOST_BITS as f64 {
            return Err(Error::new(Code::LimitExceeded, format!("a filter for {items} values at {rate} has {bits} bits; at most {MOST_BITS}")));
        }
        let hashes = (bits / items as f64 * std::f64::consts::LN_2).ceil().clamp(1.0, f64::from(u16::MAX >> 1)) as u16;
        Ok(Bloom { bits: (bits as u64).div_ceil(64) * 64, hashes, seed: crate::sketch::SEED.into(), filter: None })
    }

    fn add(&mut self, item: &[u8]) {
        self.filter().insert(raw_bytes::from_slice(item));
    }

    /// The format is at <https://datasketches.apache.org/docs/BloomFilter/BloomFilter.html>.
    fn image(&self) -> Vec<u8> {
        if let Some(filter) = &self.filter {
            return filter.serialize();
        }
        let mut out = vec![3, 1, 21, 4];
        out.extend(self.hashes.to_le_bytes());
        out.extend([0; 2]);
        out.extend(self.seed.to_le_bytes());
        out.extend(((self.bits / 64) as i32).to_le_bytes());
        out.extend([0; 4]);
        out
    }
}

impl State for Bloom {
    fn join(&mut self, other: &Self) -> Result<()> {
        if (self.bits, self.hashes, self.seed) != (other.bits, other.hashes, other.seed) {
            return Err(Error::type_mismatch(format!(
                "a Bloom filter of {} bits and {} hashes cannot join one of {} bits and {} hashes",
                self.bits, self.hashes, other.bits, other.hashes
            ))
            .with_help("make both with the same `items` and `rate`"));
        }
        match (&mut self.filter, &other.filter) {
            (_, None) => Ok(()),
            (Some(own), Some(other)) => own.union(other).map_err(corrupt),
            (none, other) => {
                none.clone_from(other);
                Ok(())
            }
        }
    }

    fn value(&self) -> Result<Value> {
        let Some(filter) = &self.filter else { return Ok(Value::Int(0)) };
        let (bits, set) = (self.bits as f64, filter.bits_used() as f64);
        // A full filter knows no number: as if one bit were free.
        let free = (1.0 - set / bits).max(1.0 / bits);
        Ok(Value::Int((-bits / f64::from(self.hashes) * free.ln()).round() as i128))
    }

    fn bottom(&self) -> Self {
        Bloom { filter: None, ..*self }
    }

    fn encode(&self, w: &mut Writer) {
        w.bytes(&self.image());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Bloom::from_image(r.bytes()?)
    }

    fn heap_size(&self) -> usize {
        self.filter.as_ref().map_or(0, |_| self.bits as usize / 8)
    }

    fn info(&self) -> Value {
        let rate = self.filter.as_ref().map_or(0.0, BloomFilter::estimated_fpp);
        Value::record(vec![
            ("bits".into(), Value::Int(self.bits.into())),
            ("hashes".into(), Value::Int(self.hashes.into())),
            ("bits_set".into(), Value::Int(self.filter.as_ref().map_or(0, BloomFilter::bits_used).into())),
            ("false_positives".into(), Value::float(rate)),
        ])
    }
}
