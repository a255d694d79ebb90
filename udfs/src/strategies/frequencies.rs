//! `countmin` and `topk`: how often values were there, over the sketches of all origins.

use crate::aggregate::Call;
use crate::catalog::{Arg, ArgKind, Entry, Spec};
use crate::error::{Code, Error, Result};
use crate::functions::Function;
use crate::sketch::countmin::CountMinSketch;
use crate::sketch::finished::{Building, Combined, Family, JOINED, MADE, combined};
use crate::sketch::{corrupt, number, with_item};
use crate::types::Type;
use crate::value::Value;
use datasketches::frequencies::{ErrorType, FrequentItemsSketch};
use std::collections::BTreeMap;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Combined<CountMin>>().with_functions(functions));
    entries.push(Entry::of::<Combined<TopK>>());
    entries.push(Entry::plain::<Building<CountMin>>("sketch_countmin"));
    entries.push(Entry::plain::<Building<TopK>>("sketch_topk"));
}

/// Count-min sketches.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CountMin;

impl Family for CountMin {
    const SPEC: Spec = Spec {
        name: "countmin",
        aliases: &["count_min"],
        type_id: 41,
        title: "how often any value was there, over the sketches of all origins",
        doc: "Each origin brings a finished count-min sketch, made by `sketch_countmin(value)`, with a version; the newest of each counts. \
              `countmin_estimate(state, value)` is never too small, and too great by a share of all rows that `buckets` bounds (`2.72 / buckets`). Its value is \
              the number of rows. Sketches of two sizes don't add up: that is an error. Sketches of DataSketches' Python package (`count_min_sketch`, \
              with its usual seed and whole weights) are read, and it reads ours.",
        example: (
            "SELECT countmin_estimate(state, 'x') AS n FROM (SELECT crdt_countmin_state(s, shop, 1) AS state FROM (SELECT shop, sketch_countmin(v) AS s FROM (VALUES ('a', 'x'), ('a', 'x'), ('b', 'x'), ('b', 'y')) AS t(shop, v) GROUP BY shop) AS made) AS kept",
            "3",
        ),
        source: "Cormode, Muthukrishnan 2005, An improved data stream summary: the count-min sketch; Apache DataSketches (count-min of C++, in doubles)",
        samples: || vec![Call::new(vec![Type::Bytes, Type::Text, Type::INT64])],
        ..JOINED
    };
    const BUILDER: Spec = Spec {
        name: "countmin",
        type_id: 242,
        title: "a finished count-min sketch of values, for crdt_countmin",
        takes: "any type",
        args: &[
            Arg { name: "hashes", kind: ArgKind::Number, doc: "how many rows of counters, from 1 to 16; default 5" },
            Arg { name: "buckets", kind: ArgKind::Number, doc: "how many counters a row has, from 3 to 65536; default 2048" },
        ],
        samples: || vec![Call::new(vec![Type::Text]), Call::new(vec![Type::INT64]).with_arg("buckets", Value::Int(4))],
        ..MADE
    };
    type Image = CountMinSketch;

    fn read(image: &[u8]) -> Result<Self::Image> {
        CountMinSketch::read(image)
    }

    fn combine(images: &mut dyn Iterator<Item = Result<Self::Image>>) -> Result<Option<Self::Image>> {
        let Some(mut all) = images.next().transpose()? else { return Ok(None) };
        for image in images {
            all.merge(&image?)?;
        }
        Ok(Some(all))
    }

    fn value(image: &mut Self::Image) -> Result<Value> {
        Ok(Value::Int(image.total().into()))
    }

    fn image(image: &mut Self::Image) -> Vec<u8> {
        image.image()
    }

    fn result_type() -> Type {
        Type::INT64
    }

    fn item(value: &Value) -> Result<Option<Value>> {
        Ok((!value.is_null()).then(|| value.clone()))
    }

    fn build(call: &Call, counts: &BTreeMap<Value, u64>) -> Result<Self::Image> {
        let (hashes, buckets) = (number(call, "hashes", 5, 1..=16)? as u8, number(call, "buckets", 2048, 3..=65536)? as u32);
        let mut sketch = CountMinSketch::new(hashes, buckets);
        for (value, n) in counts {
            with_item(value, |item| sketch.add(item, *n)).transpose()?;
        }
        Ok(sketch)
    }
}

/// Sketches of frequent items.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TopK;

impl Family for TopK {
    const SPEC: Spec = Spec {
        name: "topk",
        aliases: &["frequent_items"],
        type_id: 42,
        title: "the most frequent values, over the sketches of all origins",
        doc: "Each origin brings a finished sketch of frequent items, made by `sketch_topk(value)` or by another library of DataSketches (items as text), \
              with a version; the newest of each counts. Its value is the values that are more frequent than the error of the sketch, the most frequent \
              first; `topk_items(state)` says how frequent, at least and at most.",
        example: (
            "SELECT crdt_topk(s, shop, 1) AS top FROM (SELECT shop, sketch_topk(v) AS s FROM (VALUES ('a', 'x'), ('a', 'x'), ('b', 'x'), ('b', 'y')) AS t(shop, v) GROUP BY shop) AS made",
            "[\"x\",\"y\"]",
        ),
        source: "Anderson et al. 2017, A high-performance algorithm for identifying frequent items in data streams; Apache DataSketches (frequent strings)",
        ..CountMin::SPEC
    };
    const BUILDER: Spec = Spec {
        name: "topk",
        type_id: 243,
        title: "a finished sketch of frequent values, for crdt_topk",
        takes: "any type, as canonical text",
        args: &[Arg { name: "size", kind: ArgKind::Number, doc: "how many values it has room for, a power of two from 8 to 65536; default 256" }],
        samples: || vec![Call::new(vec![Type::Text]), Call::new(vec![Type::INT64]).with_arg("size", Value::Int(8))],
        ..MADE
    };
    type Image = FrequentItemsSketch<String>;

    fn read(image: &[u8]) -> Result<Self::Image> {
        if image.get(3..5).is_some_and(|lg| lg.iter().any(|lg| *lg > 20)) {
            return Err(Error::new(Code::LimitExceeded, "a sketch of frequent items with room for more than a million"));
        }
        // A table that was full once may be large and hold little. It is read into one that fits, and grows again where it must.
        let mut image = image.to_vec();
        let held = image.get(8..12).and_then(|n| n.first_chunk()).map_or(0, |n| u32::from_le_bytes(*n));
        if let Some(size) = image.get_mut(4) {
            *size = (*size).min((u64::from(held) * 2).max(8).next_power_of_two().ilog2() as u8);
        }
        // No count is wrong by more than there were items; sums of so many stay far from the end of integers.
        let long = |at: usize| image.get(at..at + 8).and_then(|n| n.first_chunk()).map_or(0, |n| u64::from_le_bytes(*n));
        if long(24) > long(16) || long(16) > 1 << 53 {
            return Err(corrupt("it counted more than it can have"));
        }
        FrequentItemsSketch::deserialize(&image).map_err(corrupt)
    }

    fn combine(images: &mut dyn Iterator<Item = Result<Self::Image>>) -> Result<Option<Self::Image>> {
        let Some(mut all) = images.next().transpose()? else { return Ok(None) };
        for image in images {
            all.merge(&image?);
        }
        Ok(Some(all))
    }

    fn value(image: &mut Self::Image) -> Result<Value> {
        Ok(Value::List(frequent(image).into_iter().map(|(item, ..)| Value::text(item)).collect()))
    }

    fn image(image: &mut Self::Image) -> Vec<u8> {
        image.serialize()
    }

    fn result_type() -> Type {
        Type::List(Box::new(Type::Text))
    }

    fn item(value: &Value) -> Result<Option<Value>> {
        Ok((!value.is_null()).then(|| Value::text(value.to_string())))
    }

    fn build(call: &Call, counts: &BTreeMap<Value, u64>) -> Result<Self::Image> {
        let size = number(call, "size", 256, 8..=65536)? as usize;
        let mut sketch = FrequentItemsSketch::new(size)
            .map_err(|_| Error::invalid_argument("`size` is a power of two").with_help("the default is 256"))?;
        // The most frequent first: the order is that of the counts, never that of the rows.
        let mut items: Vec<(&Value, u64)> = counts.iter().map(|(value, n)| (value, *n)).collect();
        items.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        for (value, n) in items {
            sketch.update_with_count(value.to_string(), n);
        }
        Ok(sketch)
    }
}

/// Items with estimate, least and greatest count; the most frequent first.
fn frequent(sketch: &FrequentItemsSketch<String>) -> Vec<(String, u64, u64, u64)> {
    let rows = sketch.frequent_items(ErrorType::NoFalseNegatives);
    let mut found: Vec<_> =
        rows.iter().map(|row| (row.item().clone(), row.estimate(), row.lower_bound(), row.upper_bound())).collect();
    found.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    found
}

fn functions() -> Vec<Function> {
    let f = |name, title, n, returns, run| Function::of(name, title, n..=n, returns, run);
    let row = ["item", "estimate", "at_least", "at_most"].map(|name| (name.into(), if name == "item" { Type::Text } else { Type::INT64 }));
    vec![
        f("countmin_estimate", "how often a value was there, at most a little less often", 2, Type::INT64, |a| {
            let sketch = combined::<CountMin>(&a[0])?;
            let ask = |sketch: CountMinSketch| with_item(&a[1], |item| sketch.estimate(item));
            Ok(sketch.and_then(ask).map_or(Value::Null, |n| Value::Int(n.into())))
        }),
        f("topk_items", "the most frequent values of a `topk`, and how frequent they are", 1, Type::List(Box::new(Type::Struct(row.into()))), |a| {
            let Some(sketch) = combined::<TopK>(&a[0])? else { return Ok(Value::Null) };
            let shown = |(item, estimate, least, most): (String, u64, u64, u64)| {
                let counts = [("estimate", estimate), ("at_least", least), ("at_most", most)];
                let mut fields = vec![("item".into(), Value::text(item))];
                fields.extend(counts.map(|(name, n)| (name.into(), Value::Int(n.into()))));
                Value::record(fields)
            };
            Ok(Value::List(frequent(&sketch).into_iter().map(shown).collect()))
        }),
    ]
}
