//! `theta`: the smallest hashes of a set, which can be intersected.

use crate::aggregate::{Call, State};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::sketch::{Sketch, Sketched, corrupt, guarded, murmur, number};
use crate::types::Type;
use crate::value::Value;
use datasketches::theta::CompactThetaSketch;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Sketched<Theta>>());
}

/// Hashes have 63 bits; a sketch that has seen few values has this for its theta.
const ONE: u64 = i64::MAX as u64;

/// What the hash of the seed 9001 is, which images carry.
const SEED_HASH: [u8; 2] = [0xcc, 0x93];

/// All hashes below theta, ascending: at most `2^lg_k`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Theta {
    lg_k: u8,
    theta: u64,
    hashes: Vec<u64>,
}

impl Theta {
    fn new(lg_k: u8) -> Theta {
        Theta { lg_k, theta: ONE, hashes: Vec::new() }
    }

    /// Keeps the hashes below theta, and the smallest of them.
    fn trim(&mut self) {
        let below = self.hashes.partition_point(|h| *h < self.theta);
        self.hashes.truncate(below);
        if let Some(theta) = self.hashes.get(1 << self.lg_k) {
            self.theta = *theta;
            self.hashes.truncate(1 << self.lg_k);
        }
    }

    /// The sketch in an image, with a precision if it is known.
    pub(crate) fn from_image(image: &[u8], precision: Option<u8>) -> Result<Theta> {
        let sketch = guarded(|| CompactThetaSketch::deserialize(image).map_err(corrupt))?;
        let mut hashes: Vec<u64> = sketch.iter().map(|entry| entry.hash()).collect();
        hashes.sort_unstable();
        hashes.dedup();
        // An image doesn't say its precision. One that was updated holds up to twice as many hashes as one that was trimmed; one that holds
        // all hashes may be of any.
        let count = hashes.len().max(1);
        let lg_k = precision.unwrap_or_else(|| match sketch.theta64() < ONE {
            true => (count.ilog2() as u8).clamp(4, 26),
            false => (count.next_power_of_two().ilog2() as u8).clamp(12, 26),
        });
        Ok(Theta { lg_k, theta: sketch.theta64(), hashes }.with_precision(lg_k))
    }

    /// The sketch with another precision; a greater one than it was made with brings nothing back.
    pub(crate) fn with_precision(mut self, lg_k: u8) -> Theta {
        self.lg_k = lg_k;
        self.trim();
        self
    }

    fn sketch(&self) -> Result<CompactThetaSketch> {
        CompactThetaSketch::deserialize(&self.image()).map_err(corrupt)
    }

    /// The estimate, or a bound of it.
    pub(crate) fn estimate(&self, side: i8, deviations: u8) -> Result<f64> {
        let sketch = self.sketch()?;
        let deviations = crate::sketch::deviations(deviations);
        Ok(match side {
            -1 => sketch.lower_bound(deviations),
            1 => sketch.upper_bound(deviations),
            _ => sketch.estimate(),
        })
    }

    fn among(&self, other: &Theta, both: bool) -> Theta {
        let theta = self.theta.min(other.theta);
        let kept = |h: &&u64| **h < theta && other.hashes.binary_search(h).is_ok() == both;
        Theta { lg_k: self.lg_k.min(other.lg_k), theta, hashes: self.hashes.iter().filter(kept).copied().collect() }
    }

    /// The values that both have.
    pub(crate) fn intersect(&self, other: &Theta) -> Theta {
        let mut both = self.among(other, true);
        both.trim();
        both
    }

    /// The values that only this one has.
    pub(crate) fn without(&self, other: &Theta) -> Theta {
        let mut rest = self.among(other, false);
        rest.trim();
        rest
    }

    /// The share of the union that both have (Broder 1997).
    pub(crate) fn jaccard(&self, other: &Theta) -> Result<f64> {
        let mut all = Theta { lg_k: self.lg_k.min(other.lg_k), ..self.clone() };
        all.join(&Theta { lg_k: all.lg_k, ..other.clone() })?;
        let both = self.among(other, true).hashes.partition_point(|h| *h < all.theta);
        Ok(if all.hashes.is_empty() { 1.0 } else { both as f64 / all.hashes.len() as f64 })
    }
}

impl Sketch for Theta {
    const SPEC: Spec = Spec {
        name: "theta",
        aliases: &[],
        type_id: 35,
        since: "0.1.0",
        title: "about how many distinct values there are, and how many of them another set has too",
        doc: "A theta sketch of Apache DataSketches: the `2^precision` smallest hashes of the values. The standard error is about \
              `1 / sqrt(2^precision)`: 1.6 % at 12. `theta_intersect` and `theta_difference` give sketches of what two sets have in common and not, \
              `jaccard` how alike they are. Sketches of two precisions join at the smaller.",
        inputs: &[Input::Value],
        args: &[Arg { name: "precision", kind: ArgKind::Number, doc: "lg of the number of hashes kept, from 4 to 26; default 12" }],
        takes: "any type",
        selects: false,
        closed: |_| false,
        example: ("SELECT crdt_theta(v) AS n FROM (VALUES (1, 'a'), (2, 'b'), (3, 'a'), (4, 'c')) AS t(id, v)", "3"),
        source: "Dasgupta, Lang, Rhodes, Thaler 2016, A framework for estimating stream expression cardinalities; Apache DataSketches (compact theta, serial version 3)",
        samples: || {
            let small = |ty| Call::new(vec![ty]).with_arg("precision", Value::Int(4));
            vec![Call::new(vec![Type::Text]), small(Type::INT64), small(Type::Float64)]
        },
    };

    fn configured(call: &Call) -> Result<Self> {
        Ok(Theta::new(number(call, "precision", 12, 4..=26)? as u8))
    }

    fn add(&mut self, item: &[u8]) {
        let hash = murmur(item).0 >> 1;
        if hash == 0 || hash >= self.theta {
            return;
        }
        if let Err(at) = self.hashes.binary_search(&hash) {
            self.hashes.insert(at, hash);
            if self.hashes.len() > 1 << self.lg_k {
                self.theta = self.hashes.pop().unwrap_or(ONE);
            }
        }
    }

    /// The format is at <https://datasketches.apache.org/docs/Theta/ThetaSketches.html>.
    fn image(&self) -> Vec<u8> {
        // Little-endian, read-only, empty, compact, ordered.
        let longs = match (self.theta, self.hashes.len()) {
            (ONE, 0) => return vec![1, 3, 3, 0, 0, 0x1e, 0, 0],
            (ONE, 1) => 1,
            (ONE, _) => 2,
            _ => 3,
        };
        let mut out = vec![longs, 3, 3, 0, 0, 0x1a, SEED_HASH[0], SEED_HASH[1]];
        if longs > 1 {
            out.extend((self.hashes.len() as u32).to_le_bytes());
            out.extend([0; 4]);
        }
        if longs > 2 {
            out.extend(self.theta.to_le_bytes());
        }
        out.extend(self.hashes.iter().flat_map(|h| h.to_le_bytes()));
        out
    }
}

impl State for Theta {
    fn join(&mut self, other: &Self) -> Result<()> {
        // The smaller precision is what both have; whoever joins further sketches comes to it in any order.
        self.lg_k = self.lg_k.min(other.lg_k);
        self.theta = self.theta.min(other.theta);
        // Two runs that ascend: what the sort is quickest with.
        self.hashes.extend(&other.hashes);
        self.hashes.sort();
        self.hashes.dedup();
        self.trim();
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(Value::Int(self.estimate(0, 1)?.round() as i128))
    }

    fn bottom(&self) -> Self {
        Theta::new(self.lg_k)
    }

    fn delta(&self, since: &Self) -> Self {
        let news = self.hashes.iter().filter(|h| since.hashes.binary_search(h).is_err()).copied().collect();
        Theta { hashes: news, ..*self }
    }

    fn encode(&self, w: &mut Writer) {
        w.byte(self.lg_k);
        w.bytes(&self.image());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let lg_k = r.byte()?;
        let image = r.bytes()?;
        let long = |at: usize| image.get(at..at + 8).and_then(|b| b.first_chunk()).map(|b| u64::from_le_bytes(*b));
        let short = || corrupt("it is cut off");
        let longs = image.first().copied().ok_or_else(short)?;
        let theta = if longs == 3 { long(16).ok_or_else(short)? } else { ONE };
        let hashes: Vec<u64> = image
            .get(8 * usize::from(longs)..)
            .ok_or_else(short)?
            .chunks_exact(8)
            .filter_map(|b| b.first_chunk())
            .map(|b| u64::from_le_bytes(*b))
            .collect();
        let ascend = hashes.windows(2).all(|w| w[0] < w[1]);
        if !(4..=26).contains(&lg_k) || !ascend || hashes.len() > 1 << lg_k || hashes.first() == Some(&0) || theta > ONE || theta == 0 {
            return Err(Error::corrupt_state("the hashes of the sketch in the state are not in order"));
        }
        if hashes.last().is_some_and(|h| *h >= theta) {
            return Err(Error::corrupt_state("the sketch in the state has a hash that is not below its theta"));
        }
        Ok(Theta { lg_k, theta, hashes })
    }

    fn heap_size(&self) -> usize {
        8 * self.hashes.capacity()
    }

    fn info(&self) -> Value {
        let bound = |side| self.estimate(side, 2).map_or(Value::Null, Value::float);
        Value::record(vec![
            ("precision".into(), Value::Int(self.lg_k.into())),
            ("theta".into(), Value::float(self.theta as f64 / ONE as f64)),
            ("kept".into(), Value::Int(self.hashes.len() as i128)),
            ("estimate".into(), bound(0)),
            ("lower_bound".into(), bound(-1)),
            ("upper_bound".into(), bound(1)),
        ])
    }
}
