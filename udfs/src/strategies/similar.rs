//! `similar`: an index of texts that finds near duplicates.

use super::minhash::hash;
use crate::aggregate::{Call, State, Strategy, argument};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Code, Error, Result};
use crate::functions::Function;
use crate::lattice::origins::origin;
use crate::sketch::{differ, murmur, number};
use crate::types::Type;
use crate::value::Value;
use std::collections::BTreeMap;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Similar>().with_functions(functions));
}

/// What makes two indices comparable.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Settings {
    /// From which share of common shingles on two texts are near duplicates.
    threshold: f64,
    /// How many characters a shingle has.
    shingle: usize,
    /// How many hash functions a signature has.
    size: usize,
}

#[derive(Debug)]
struct Similar {
    settings: Settings,
    key: Type,
}

/// The signature of each key's text; of a key with two texts that of both together.
#[derive(Debug, Clone, PartialEq)]
struct Index {
    settings: Settings,
    signatures: BTreeMap<Value, Box<[u32]>>,
}

/// The signature of a text: of its runs of characters, letter case and runs of spaces aside.
fn signature(text: &str, settings: Settings) -> Option<Box<[u32]>> {
    let folded: String = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    if folded.is_empty() {
        return None;
    }
    let starts: Vec<usize> = folded.char_indices().map(|(at, _)| at).chain([folded.len()]).collect();
    let mut least = vec![u32::MAX; settings.size].into_boxed_slice();
    // A text shorter than a shingle is one shingle.
    for window in 0..starts.len().saturating_sub(settings.shingle).max(1) {
        let end = starts[(window + settings.shingle).min(starts.len() - 1)];
        let (low, high) = murmur(&folded.as_bytes()[starts[window]..end]);
        least.iter_mut().zip(0..).for_each(|(least, i)| *least = (*least).min(hash(low, high, i)));
    }
    Some(least)
}

fn alike(a: &[u32], b: &[u32]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
}

/// How many texts that share a band are compared with all others that do.
const CROWD: usize = 256;

/// With how many others a text is compared in a band that more texts share.
const NEIGHBOURS: usize = 16;

/// How many parts a band has: as many as leave no more than one in a hundred pairs at the threshold without a common band.
fn band(settings: Settings) -> usize {
    let missed = |rows: usize| (1.0 - settings.threshold.powi(rows as i32)).powi((settings.size / rows) as i32);
    (1..=settings.size).take_while(|rows| missed(*rows) <= 0.01).last().unwrap_or(1)
}

impl Index {
    fn offer(&mut self, key: &Value, signature: &[u32]) {
        match self.signatures.get_mut(key) {
            Some(known) => known.iter_mut().zip(signature).for_each(|(known, new)| *known = (*known).min(*new)),
            None => drop(self.signatures.insert(key.clone(), signature.into())),
        }
    }

    /// The keys, those of one signature together.
    fn distinct(&self) -> Vec<(&[u32], Vec<usize>)> {
        let mut groups: BTreeMap<&[u32], Vec<usize>> = BTreeMap::new();
        for (at, signature) in self.signatures.values().enumerate() {
            groups.entry(signature).or_default().push(at);
        }
        groups.into_iter().collect()
    }

    /// Offers pairs of different signatures that have a band in common to `pair`, most of them more than once. In a band that more than
    /// [`CROWD`] share, each is paired with the [`NEIGHBOURS`] that follow it in the order of what stands behind the band.
    fn candidates(&self, distinct: &[(&[u32], Vec<usize>)], mut pair: impl FnMut(u32, u32)) {
        let rows = band(self.settings);
        let mut keyed: Vec<(u64, u32)> = Vec::with_capacity(distinct.len());
        let mut bytes = Vec::with_capacity(4 * rows);
        for start in (0..self.settings.size - rows + 1).step_by(rows) {
            keyed.clear();
            for ((signature, _), at) in distinct.iter().zip(0..) {
                bytes.clear();
                signature[start..start + rows].iter().for_each(|part| bytes.extend(part.to_le_bytes()));
                keyed.push((murmur(&bytes).0, at));
            }
            keyed.sort_unstable();
            for same in keyed.chunk_by_mut(|a, b| a.0 == b.0) {
                let reach = if same.len() > CROWD {
                    let behind = |at: u32| {
                        let signature = distinct[at as usize].0;
                        signature[start + rows..].iter().chain(&signature[..start])
                    };
                    same.sort_unstable_by(|a, b| behind(a.1).cmp(behind(b.1)).then(a.1.cmp(&b.1)));
                    NEIGHBOURS
                } else {
                    same.len()
                };
                for (i, (_, a)) in same.iter().enumerate() {
                    same[i + 1..].iter().take(reach).for_each(|(_, b)| pair(*a.min(b), *a.max(b)));
                }
            }
        }
    }

    /// Pairs of different signatures that are near enough.
    fn pairs(&self, distinct: &[(&[u32], Vec<usize>)]) -> Vec<(usize, usize, f64)> {
        let mut found: Vec<(usize, usize, f64)> = Vec::new();
        let mut settled = 1 << 20;
        let by_place = |a: &(usize, usize, f64), b: &(usize, usize, f64)| (a.0, a.1).cmp(&(b.0, b.1));
        self.candidates(distinct, |a, b| {
            let (a, b) = (a as usize, b as usize);
            let share = alike(distinct[a].0, distinct[b].0);
            if share >= self.settings.threshold {
                found.push((a, b, share));
            }
            // Most pairs come again in other bands.
            if found.len() > settled {
                found.sort_unstable_by(by_place);
                found.dedup();
                settled = (2 * found.len()).max(settled);
            }
        });
        found.sort_unstable_by(by_place);
        found.dedup();
        found
    }

    /// For each key the least key that it is connected with: the components of the graph of near duplicates.
    fn clusters(&self) -> Vec<(Value, Value)> {
        let keys: Vec<&Value> = self.signatures.keys().collect();
        let distinct = self.distinct();
        let mut labels: Vec<usize> = (0..keys.len()).collect();
        fn find(labels: &mut [usize], mut at: usize) -> usize {
            while labels[at] != at {
                labels[at] = labels[labels[at]];
                at = labels[at];
            }
            at
        }
        // The label of a component is the least in it: union-find as a lattice.
        let join = |labels: &mut [usize], a: usize, b: usize| {
            let (a, b) = (find(labels, a), find(labels, b));
            labels[a.max(b)] = a.min(b);
        };
        distinct.iter().for_each(|(_, group)| group[1..].iter().for_each(|at| join(&mut labels, group[0], *at)));
        self.candidates(&distinct, |a, b| {
            let (a, b) = (&distinct[a as usize], &distinct[b as usize]);
            // What is connected already needs no look.
            if find(&mut labels, a.1[0]) != find(&mut labels, b.1[0]) && alike(a.0, b.0) >= self.settings.threshold {
                join(&mut labels, a.1[0], b.1[0]);
            }
        });
        (0..keys.len()).map(|at| (keys[at].clone(), keys[find(&mut labels, at)].clone())).collect()
    }
}

impl Strategy for Similar {
    const SPEC: Spec = Spec {
        name: "similar",
        aliases: &["near_duplicates"],
        type_id: 48,
        since: "0.1.0",
        title: "an index of texts that finds near duplicates",
        doc: "A row is (text, key). Of each text the MinHash signature of its runs of `shingle` characters is kept, letter case and runs of spaces aside; two \
              texts are near duplicates if by their signatures they share `threshold` of their shingles, or more: an estimate, off by 0.04 at the default size of \
              128 (one standard deviation), so that pairs near the threshold may fall on either side of it, the same on every machine. The value maps each key to the least key of its cluster, so \
              the rows to keep are those whose key is its own cluster. `similar_clusters(state)` lists keys and clusters, `similar_pairs(state)` the pairs. \
              Indices join: of last year's rows and of today's. A key that comes with several texts is alike to what any of them is alike to. The hashes are the same on every machine; banded LSH compares only pairs that are likely, \
              and misses one in a hundred of those right at the threshold. Where more than 256 texts share a band, as those of one template do, each is \
              compared with the 16 that follow it in the order of signatures: still the same pairs whatever the order of rows.",
        inputs: &[Input::Value, Input::Origin],
        args: &[
            Arg { name: "key", kind: ArgKind::Column(Input::Origin, false), doc: "whose text it is; default: the source the row came from" },
            Arg { name: "threshold", kind: ArgKind::Number, doc: "from 0.1 to 1; default 0.8" },
            Arg { name: "shingle", kind: ArgKind::Number, doc: "characters of a shingle, from 1 to 32; default 4" },
            Arg { name: "size", kind: ArgKind::Number, doc: "parts of a signature, from 16 to 1024; default 128" },
        ],
        takes: "texts, with their keys",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_value(crdt_similar_state(name, id)) AS clusters FROM (VALUES (1, 'Acme Corporation Ltd.'), (2, 'ACME  Corporation Ltd'), (3, 'Umbrella Inc.')) AS t(id, name)",
            "{\"1\":1,\"2\":1,\"3\":3}",
        ),
        source: "Broder 1997, On the resemblance and containment of documents; Leskovec, Rajaraman, Ullman 2014, Mining of massive datasets, chapter 3 (banded LSH)",
        samples: || {
            let small = |key| Call::new(vec![Type::Text, key]).with_arg("size", Value::Int(16));
            vec![small(Type::INT64), small(Type::Text)]
        },
    };
    type State = Index;

    fn configure(call: &Call) -> Result<Self> {
        if !matches!(call.value_type(), Type::Text | Type::Null) || call.inputs.len() < 2 {
            return Err(Error::type_mismatch(format!("`similar` takes texts and their keys, not {}", call.value_type())));
        }
        let threshold = call.arg("threshold").map_or(0.8, |t| t.to_f64().unwrap_or(f64::NAN));
        if !(0.1..=1.0).contains(&threshold) {
            return Err(Error::invalid_argument("`threshold` is from 0.1 to 1").with_help("the default is 0.8"));
        }
        let shingle = number(call, "shingle", 4, 1..=32)? as usize;
        let size = number(call, "size", 128, 16..=1024)? as usize;
        Ok(Similar { settings: Settings { threshold, shingle, size }, key: call.inputs[1].clone() })
    }

    fn result_type(&self) -> Type {
        Type::Map(Box::new(self.key.clone()), Box::new(self.key.clone()))
    }

    fn empty(&self) -> Index {
        Index { settings: self.settings, signatures: BTreeMap::new() }
    }

    fn update(&self, state: &mut Index, row: &[Value]) -> Result<()> {
        match &row[0] {
            Value::Text(text) => {
                let key = origin(&row[1])?;
                if let Some(signature) = signature(text, self.settings) {
                    state.offer(key, &signature);
                }
                Ok(())
            }
            Value::Null => Ok(()),
            other => Err(Error::type_mismatch(format!("`similar` compares texts, not a {}", other.kind()))),
        }
    }
}

impl State for Index {
    fn join(&mut self, other: &Self) -> Result<()> {
        if self.settings != other.settings {
            let shown = |s: Settings| format!("{}, shingle {}, size {}", s.threshold, s.shingle, s.size);
            return Err(differ("index", "threshold", shown(self.settings), shown(other.settings)));
        }
        other.signatures.iter().for_each(|(key, signature)| self.offer(key, signature));
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(if self.signatures.is_empty() { Value::Null } else { Value::map(self.clusters()) })
    }

    fn bottom(&self) -> Self {
        Index { settings: self.settings, signatures: BTreeMap::new() }
    }

    /// Only the keys whose texts are new.
    fn delta(&self, since: &Self) -> Self {
        let mut signatures = self.signatures.clone();
        signatures.retain(|key, signature| since.signatures.get(key) != Some(signature));
        Index { settings: self.settings, signatures }
    }

    fn encode(&self, w: &mut Writer) {
        w.raw(&self.settings.threshold.to_le_bytes());
        w.byte(self.settings.shingle as u8);
        w.varint(self.settings.size as u128);
        w.length(self.signatures.len());
        for (key, signature) in &self.signatures {
            w.value(key);
            signature.iter().for_each(|part| w.raw(&part.to_le_bytes()));
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let threshold = f64::from_le_bytes(*r.take(8)?.first_chunk().expect("invariant: eight bytes"));
        let (shingle, size) = (usize::from(r.byte()?), r.varint()? as usize);
        if !(0.1..=1.0).contains(&threshold) || !(1..=32).contains(&shingle) || !(16..=1024).contains(&size) {
            return Err(Error::corrupt_state("the settings of an index in the state are out of range"));
        }
        let part = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let signature = |r: &mut Reader<'_>| {
            let parts: Box<[u32]> = r.take(4 * size)?.chunks_exact(4).map(part).collect();
            if parts.contains(&u32::MAX) { Err(Error::corrupt_state("a part of a signature in the state is missing")) } else { Ok(parts) }
        };
        let mut signatures = BTreeMap::new();
        for _ in 0..r.length()? {
            let key = r.value()?;
            if key.is_null() || signatures.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(Error::corrupt_state("the keys of an index in the state are not in order"));
            }
            signatures.insert(key, signature(r)?);
        }
        Ok(Index { settings: Settings { threshold, shingle, size }, signatures })
    }

    fn heap_size(&self) -> usize {
        // Rows call this twice each: the keys are not counted one by one.
        self.signatures.len() * (4 * self.settings.size + 2 * size_of::<(Value, Box<[u32]>)>())
    }

    fn info(&self) -> Value {
        Value::record(vec![
            ("threshold".into(), Value::float(self.settings.threshold)),
            ("shingle".into(), Value::Int(self.settings.shingle as i128)),
            ("size".into(), Value::Int(self.settings.size as i128)),
            ("keys".into(), Value::Int(self.signatures.values().count() as i128)),
        ])
    }
}

fn index(state: &Value) -> Result<Option<Index>> {
    argument::<Similar>(state)
}

/// Pairs that are listed: a crowd of equal texts has its number squared.
const MOST_PAIRS: usize = 10_000_000;

fn functions() -> Vec<Function> {
    let list = |fields: &[(&str, Type)]| {
        Type::List(Box::new(Type::Struct(fields.iter().map(|(name, ty)| ((*name).into(), ty.clone())).collect())))
    };
    vec![
        Function::of(
            "similar_pairs",
            "the near duplicates of a `similar`: two keys, and the share of shingles that their texts have in common",
            1..=1,
            list(&[("a", Type::Text), ("b", Type::Text), ("similarity", Type::Float64)]),
            |args| {
                let Some(index) = index(&args[0])? else { return Ok(Value::Null) };
                let keys: Vec<&Value> = index.signatures.keys().collect();
                let distinct = index.distinct();
                let mut found: Vec<(usize, usize, f64)> = Vec::new();
                let alike = index.pairs(&distinct);
                let equal = distinct.iter().map(|(_, group)| group.len() * group.len().saturating_sub(1) / 2);
                let near = alike.iter().map(|(a, b, _)| distinct[*a].1.len() * distinct[*b].1.len());
                let count: usize = equal.chain(near).fold(0, usize::saturating_add);
                if count > MOST_PAIRS {
                    return Err(Error::new(Code::LimitExceeded, format!("{count} pairs are alike, and {MOST_PAIRS} at most are listed"))
                        .with_help("similar_clusters gives each key its cluster, however many pairs there are"));
                }
                for (_, group) in &distinct {
                    for (i, a) in group.iter().enumerate() {
                        found.extend(group[i + 1..].iter().map(|b| (*a, *b, 1.0)));
                    }
                }
                for (a, b, share) in alike {
                    for left in &distinct[a].1 {
                        found.extend(distinct[b].1.iter().map(|right| (*left.min(right), *left.max(right), share)));
                    }
                }
                found.sort_unstable_by_key(|(a, b, _)| (*a, *b));
                let row = |(a, b, share): (usize, usize, f64)| {
                    let text = |at: usize| Value::text(keys[at].to_string());
                    Value::record(vec![("a".into(), text(a)), ("b".into(), text(b)), ("similarity".into(), Value::float(share))])
                };
                Ok(Value::List(found.into_iter().map(row).collect()))
            },
        ),
        Function::of(
            "similar_clusters",
            "each key of a `similar` with its cluster: the least key that it is connected with",
            1..=1,
            list(&[("key", Type::Text), ("cluster", Type::Text)]),
            |args| {
                let Some(index) = index(&args[0])? else { return Ok(Value::Null) };
                let row = |(key, cluster): (Value, Value)| {
                    Value::record(vec![("key".into(), Value::text(key.to_string())), ("cluster".into(), Value::text(cluster.to_string()))])
                };
                Ok(Value::List(index.clusters().into_iter().map(row).collect()))
            },
        ),
    ]
}
