//! `kll` and `tdigest`: quantiles of what every origin measured.

use crate::aggregate::Call;
use crate::catalog::{Arg, ArgKind, Entry, Spec};
use crate::error::{Error, Result};
use crate::functions::Function;
use crate::sketch::finished::{Building, Combined, Family, JOINED, MADE, combined, combined_image};
use crate::sketch::{corrupt, number};
use crate::types::Type;
use crate::value::Value;
use datasketches::tdigest::TDigestMut;
use std::collections::BTreeMap;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Combined<Kll>>().with_functions(functions));
    entries.push(Entry::of::<Combined<TDigest>>());
    entries.push(Entry::plain::<Building<Kll>>("sketch_kll"));
    entries.push(Entry::plain::<Building<TDigest>>("sketch_tdigest"));
}

/// The marks of a five-number summary (Tukey 1977).
const SUMMARY: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

/// Numbers as doubles; NaN is left out, as the libraries of the family do.
fn double(value: &Value) -> Result<Option<Value>> {
    match value.to_f64() {
        Some(v) => Ok((!v.is_nan()).then(|| Value::float(v))),
        None if value.is_null() => Ok(None),
        None => Err(Error::type_mismatch(format!("quantiles are of numbers, not of a {}", value.kind()))),
    }
}

fn doubles(counts: &BTreeMap<Value, u64>) -> impl Iterator<Item = (f64, u64)> {
    counts.iter().filter_map(|(value, n)| if let Value::Float(v) = value { Some((*v, *n)) } else { None })
}

fn list(values: impl IntoIterator<Item = f64>) -> Value {
    Value::List(values.into_iter().map(Value::float).collect())
}

/// KLL sketches.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Kll;

/// Items that stand for so many each, ascending.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weighted {
    k: u16,
    n: u64,
    least: f64,
    most: f64,
    items: Vec<(f64, u64)>,
}

impl Weighted {
    /// The least item that at least this share of all lies up to.
    fn quantile(&self, q: f64) -> f64 {
        if q <= 0.0 {
            return self.least;
        }
        let rank = (q * self.n as f64).ceil() as u64;
        let mut seen = 0;
        for (item, weight) in &self.items {
            seen += weight;
            if seen >= rank && q < 1.0 {
                return *item;
            }
        }
        self.most
    }
}

/// How many items the levels of a KLL sketch have room for together: level `d` below the top for `k (2/3)^d`, and eight at least.
fn capacity(k: u16, levels: usize) -> u64 {
    fn at(k: u64, depth: u32) -> u64 {
        if depth > 30 {
            return at(at(k, depth / 2), depth - depth / 2);
        }
        ((k << (depth + 1)) / 3u64.pow(depth)).div_ceil(2)
    }
    (0..levels as u32).map(|depth| at(k.into(), depth).max(8)).sum()
}

impl Family for Kll {
    const SPEC: Spec = Spec {
        name: "kll",
        type_id: 39,
        title: "quantiles over the sketches of all origins, by rank",
        doc: "Each origin brings a finished KLL sketch, made by `sketch_kll(value)` or by another library of DataSketches, with a version; the newest of \
              each counts, and its value is the least, the quartiles and the greatest of all values together. `sketch_quantile(state, q)` gives any \
              other. The error is of ranks: a standard error of about 0.5 % at the default k of 200. NaN is left out.",
        example: (EXAMPLE_KLL, "[1.0,2.0,3.0,4.0,5.0]"),
        source: "Karnin, Lang, Liberty 2016, Optimal quantile approximation in streams; Apache DataSketches (KLL of doubles)",
        samples: || vec![Call::new(vec![Type::Bytes, Type::Text, Type::INT64])],
        ..JOINED
    };
    const BUILDER: Spec = Spec {
        name: "kll",
        type_id: 240,
        title: "a finished KLL sketch of numbers, for crdt_kll",
        args: &[Arg { name: "k", kind: ArgKind::Number, doc: "how many items its top level holds, from 8 to 65535; default 200" }],
        samples: || vec![Call::new(vec![Type::Float64]), Call::new(vec![Type::INT64]).with_arg("k", Value::Int(8))],
        ..MADE
    };
    type Image = Weighted;

    fn read(image: &[u8]) -> Result<Weighted> {
        let short = || corrupt("it is cut off");
        let bytes = |at: usize| image.get(at..).ok_or_else(short);
        let long = |at: usize| Ok::<_, Error>(u64::from_le_bytes(*bytes(at)?.first_chunk().ok_or_else(short)?));
        let double = |at: usize| long(at).map(f64::from_bits);
        let k = u16::from_le_bytes(*bytes(4)?.first_chunk().ok_or_else(short)?);
        let flags = image[3];
        if flags & 1 != 0 {
            return Ok(Weighted { k, n: 0, least: f64::NAN, most: f64::NAN, items: Vec::new() });
        }
        if flags & 4 != 0 {
            let item = double(8)?;
            if item.is_nan() {
                return Err(corrupt("its item is NaN"));
            }
            return Ok(Weighted { k, n: 1, least: item, most: item, items: vec![(item, 1)] });
        }
        let (n, levels) = (long(8)?, usize::from(*image.get(18).ok_or_else(short)?));
        if !(1..=61).contains(&levels) || k < 8 {
            return Err(corrupt("it has no levels"));
        }
        let offset = |level: usize| Ok::<_, Error>(u64::from(u32::from_le_bytes(*bytes(20 + 4 * level)?.first_chunk().ok_or_else(short)?)));
        let data = 20 + 4 * levels;
        let (least, most) = (double(data)?, double(data + 8)?);
        let (first, end) = (offset(0)?, capacity(k, levels));
        if first > end || bytes(data + 16)?.len() as u64 != 8 * (end - first) {
            return Err(corrupt("its levels do not fit its items"));
        }
        let (mut items, mut weights) = (Vec::with_capacity((end - first) as usize), 0u64);
        for level in 0..levels {
            let (from, to) = (offset(level)?, if level + 1 < levels { offset(level + 1)? } else { end });
            if from > to || to > end {
                return Err(corrupt("its levels do not ascend"));
            }
            weights = (1u64 << level).checked_mul(to - from).and_then(|w| w.checked_add(weights)).ok_or_else(|| corrupt("it is too heavy"))?;
            for at in from..to {
                items.push((double(data + 16 + 8 * (at - first) as usize)?, 1 << level));
            }
        }
        if weights != n || items.iter().any(|(item, _)| item.is_nan()) {
            return Err(corrupt("its items are not as many as it says"));
        }
        items.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(Weighted { k, n, least, most, items })
    }

    fn combine(images: &mut dyn Iterator<Item = Result<Weighted>>) -> Result<Option<Weighted>> {
        let Some(mut all) = images.next().transpose()? else { return Ok(None) };
        for image in images {
            let image = image?;
            all.k = all.k.min(image.k);
            all.n = all.n.checked_add(image.n).ok_or_else(|| corrupt("they are too heavy together"))?;
            all.least = all.least.min(image.least);
            all.most = all.most.max(image.most);
            all.items.extend(image.items);
        }
        all.items.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Ok(Some(all))
    }

    fn value(image: &mut Weighted) -> Result<Value> {
        Ok(if image.n == 0 { Value::Null } else { list(SUMMARY.map(|q| image.quantile(q))) })
    }

    /// The format is at <https://datasketches.apache.org/docs/KLL/KLLSketch.html>. Items are cut into runs of a power of two, whose middle stands for
    /// them one level up: the same items give the same sketch, where the libraries toss a coin.
    fn image(sketch: &mut Weighted) -> Vec<u8> {
        let k = sketch.k;
        let mut out = vec![5, 1, 15, 2];
        out.extend(k.to_le_bytes());
        out.extend([8, 0]);
        match sketch.n {
            0 => {
                out[0] = 2;
                out[3] = 1;
                return out;
            }
            1 => {
                (out[0], out[1], out[3]) = (2, 2, 4);
                out.extend(sketch.least.to_le_bytes());
                return out;
            }
            _ => {}
        }
        let top = (0..60).find(|level| sketch.n >> level <= u64::from(k)).unwrap_or(60);
        let mut levels: Vec<Vec<f64>> = vec![Vec::new(); top + 1];
        // Runs from the top level down, over the ranks of the items.
        let mut items = sketch.items.iter();
        let (mut end, mut item) = (0, sketch.least);
        let mut at_rank = |rank: u64| {
            while end <= rank {
                let Some((next, weight)) = items.next() else { break };
                (end, item) = (end + weight, *next);
            }
            item
        };
        let mut from = 0;
        for level in (0..=top).rev() {
            let runs = if level == top { sketch.n >> top } else { sketch.n >> level & 1 };
            for _ in 0..runs {
                levels[level].push(at_rank(from + (1 << level >> 1)));
                from += 1 << level;
            }
        }
        let retained: usize = levels.iter().map(Vec::len).sum();
        let mut offset = capacity(k, levels.len()) - retained as u64;
        out.extend(sketch.n.to_le_bytes());
        out.extend(k.to_le_bytes());
        out.extend([levels.len() as u8, 0]);
        for level in &levels {
            out.extend((offset as u32).to_le_bytes());
            offset += level.len() as u64;
        }
        for item in [sketch.least, sketch.most].iter().chain(levels.iter().flatten()) {
            out.extend(item.to_le_bytes());
        }
        out
    }

    fn result_type() -> Type {
        Type::List(Box::new(Type::Float64))
    }

    fn item(value: &Value) -> Result<Option<Value>> {
        double(value)
    }

    fn build(call: &Call, counts: &BTreeMap<Value, u64>) -> Result<Weighted> {
        let k = number(call, "k", 200, 8..=65535)? as u16;
        let items: Vec<(f64, u64)> = doubles(counts).collect();
        let end = |item: Option<&(f64, u64)>| item.map_or(f64::NAN, |(v, _)| *v);
        Ok(Weighted { k, n: items.iter().map(|(_, n)| n).sum(), least: end(items.first()), most: end(items.last()), items })
    }
}

/// t-digests.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TDigest;

impl Family for TDigest {
    const SPEC: Spec = Spec {
        name: "tdigest",
        type_id: 40,
        title: "quantiles over the sketches of all origins, sharpest at both ends",
        doc: "As `kll`, with t-digests, made by `sketch_tdigest(value)`: the error is least at the ends, which suits the 99th percentile of latencies. Its \
              value is the least, the quartiles and the greatest of all values together; `sketch_quantile(state, q)` gives any other. It is of finite numbers: infinities and NaN are left out.",
        example: (EXAMPLE_TDIGEST, "[1.0,2.0,3.0,4.0,5.0]"),
        source: "Dunning, Ertl 2019, Computing extremely accurate quantiles using t-digests; Apache DataSketches (t-digest of doubles)",
        ..Kll::SPEC
    };
    const BUILDER: Spec = Spec {
        name: "tdigest",
        type_id: 241,
        title: "a finished t-digest of numbers, for crdt_tdigest",
        args: &[Arg { name: "k", kind: ArgKind::Number, doc: "its compression: about how many centroids, from 10 to 65535; default 100" }],
        samples: || vec![Call::new(vec![Type::Float64])],
        ..MADE
    };
    type Image = TDigestMut;

    fn read(image: &[u8]) -> Result<TDigestMut> {
        TDigestMut::deserialize(image).map_err(corrupt)
    }

    fn combine(images: &mut dyn Iterator<Item = Result<TDigestMut>>) -> Result<Option<TDigestMut>> {
        let Some(mut all) = images.next().transpose()? else { return Ok(None) };
        for image in images {
            all.merge(&image?);
        }
        Ok(Some(all))
    }

    fn value(image: &mut TDigestMut) -> Result<Value> {
        Ok(image.quantiles(&SUMMARY).map_err(corrupt)?.map_or(Value::Null, list))
    }

    fn image(image: &mut TDigestMut) -> Vec<u8> {
        image.serialize()
    }

    fn result_type() -> Type {
        Type::List(Box::new(Type::Float64))
    }

    fn item(value: &Value) -> Result<Option<Value>> {
        Ok(double(value)?.filter(|v| matches!(v, Value::Float(v) if v.is_finite())))
    }

    fn build(call: &Call, counts: &BTreeMap<Value, u64>) -> Result<TDigestMut> {
        let mut digest = TDigestMut::new(number(call, "k", 100, 10..=65535)? as u16).map_err(corrupt)?;
        for (value, n) in doubles(counts) {
            (0..n).for_each(|_| digest.update(value));
        }
        Ok(digest)
    }
}

const EXAMPLE_KLL: &str = "SELECT crdt_kll(s, shop, 1) AS five FROM (SELECT shop, sketch_kll(n) AS s FROM (VALUES ('a', 1), ('a', 2), ('a', 3), ('b', 4), ('b', 5)) AS t(shop, n) GROUP BY shop) AS made";
const EXAMPLE_TDIGEST: &str = "SELECT crdt_tdigest(s, shop, 1) AS five FROM (SELECT shop, sketch_tdigest(n) AS s FROM (VALUES ('a', 1), ('a', 2), ('a', 3), ('b', 4), ('b', 5)) AS t(shop, n) GROUP BY shop) AS made";

fn quantile(args: &[Value]) -> Result<Value> {
    if args[1].is_null() {
        return Ok(Value::Null);
    }
    let q = args[1].to_f64().filter(|q| (0.0..=1.0).contains(q));
    let q = q.ok_or_else(|| Error::invalid_argument(format!("a quantile is from 0 to 1, not {}", args[1])))?;
    let found = match crate::sketch::name_of(&args[0])? {
        None => None,
        Some("kll") => combined::<Kll>(&args[0])?.filter(|s| s.n > 0).map(|s| s.quantile(q)),
        Some("tdigest") => match combined::<TDigest>(&args[0])? {
            Some(mut digest) => digest.quantile(q).map_err(corrupt)?,
            None => None,
        },
        Some(other) => {
            return Err(Error::type_mismatch(format!("a state of `{other}` has no quantiles")).with_help("`kll` and `tdigest` have"));
        }
    };
    Ok(found.map_or(Value::Null, Value::float))
}

fn image(args: &[Value]) -> Result<Value> {
    use super::frequencies::{CountMin, TopK};
    match crate::sketch::name_of(&args[0])? {
        None => Ok(Value::Null),
        Some("kll") => combined_image::<Kll>(&args[0]),
        Some("tdigest") => combined_image::<TDigest>(&args[0]),
        Some("countmin") => combined_image::<CountMin>(&args[0]),
        Some("topk") => combined_image::<TopK>(&args[0]),
        Some(other) => Err(Error::type_mismatch(format!("a state of `{other}` holds no finished sketches"))
            .with_help("crdt_to_sketch gives the image of a `hll`, `theta`, `cpc` or `bloom`")),
    }
}

fn functions() -> Vec<Function> {
    let f = |name, title, n, returns, run| Function::of(name, title, n..=n, returns, run);
    vec![
        f("sketch_quantile", "the value that a share of all values lies up to, of a `kll` or a `tdigest`", 2, Type::Float64, quantile),
        f("sketch_combined", "the sketches of all origins as one finished sketch, as other libraries read it", 1, Type::Bytes, image),
    ]
}
