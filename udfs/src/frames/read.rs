//! Frames into states.

use super::*;
use crate::aggregate::{Call, encode};
use crate::catalog;
use crate::codec::{MAX_DEPTH, MAX_INFLATED, Writer, seal_body};
use crate::error::{Code, Error, Result};
use crate::strategies::dvv;
use crate::strategies::frame_sketches::{Bloom, CountMin, Hll, Joined, OfFrames, Sketch};
use crate::types::Type;
use crate::value::Value;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::io::Read;

/// A value of a payload.
#[derive(Debug, Clone, PartialEq)]
enum Item {
    Plain(Value),
    List(Vec<Item>),
    Map(Vec<(Item, Item)>),
}

struct Payload<'a> {
    rest: &'a [u8],
    depth: usize,
}

impl<'a> Payload<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or_else(|| corrupt("it ends early"))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| corrupt("it ends early"))
    }

    /// A count of things of which each takes at least so many bytes.
    fn count(&mut self, least: usize) -> Result<usize> {
        let n = u32::from_be_bytes(self.array()?) as usize;
        if n.saturating_mul(least) > self.rest.len() {
            Err(corrupt(format!("it claims {n} values and ends before")))
        } else {
            Ok(n)
        }
    }

    fn text(&mut self) -> Result<&'a str> {
        let n = self.count(1)?;
        std::str::from_utf8(self.take(n)?).map_err(|_| corrupt("a text is not UTF-8"))
    }

    fn item(&mut self) -> Result<Item> {
        if self.depth >= MAX_DEPTH {
            return Err(corrupt(format!("it nests deeper than {MAX_DEPTH}")));
        }
        Ok(match self.take(1)?[0] {
            0x00 => Item::Plain(Value::Null),
            0x01 => Item::Plain(Value::Bool(true)),
            0x02 => Item::Plain(Value::Bool(false)),
            0x03 => Item::Plain(Value::Int(i64::from_be_bytes(self.array()?).into())),
            0x04 => Item::Plain(Value::float(f64::from_be_bytes(self.array()?))),
            0x05 => Item::Plain(Value::text(self.text()?)),
            0x06 => {
                let n = self.count(1)?;
                Item::Plain(Value::Bytes(self.take(n)?.into()))
            }
            0x09 => Item::Plain(Value::Int(i8::from_be_bytes(self.array()?).into())),
            tag @ (0x07 | 0x08 | 0x0a) => {
                self.depth += 1;
                let n = self.count(if tag == 0x08 { 2 } else { 1 })?;
                let items = if tag == 0x08 {
                    let mut pairs: Vec<(Item, Item)> = Vec::new();
                    let mut keys = HashSet::new();
                    for _ in 0..n {
                        let before = self.rest;
                        let key = self.item()?;
                        // Which of two values of a key was meant, nothing says.
                        if !keys.insert(&before[..before.len() - self.rest.len()]) {
                            return Err(corrupt(format!("a key stands twice in a map: {key:?}")));
                        }
                        pairs.push((key, self.item()?));
                    }
                    Item::Map(pairs)
                } else {
                    let mut items = Vec::new();
                    for _ in 0..n {
                        items.push(self.item()?);
                    }
                    Item::List(items)
                };
                self.depth -= 1;
                items
            }
            tag => return Err(corrupt(format!("there is no value with the tag {tag:#04x}"))),
        })
    }
}

impl Item {
    fn field(&self, name: &str) -> Result<&Item> {
        let Item::Map(pairs) = self else { return Err(corrupt("an object is no map")) };
        let found = pairs.iter().find(|(key, _)| matches!(key, Item::Plain(Value::Text(text)) if &**text == name));
        found.map(|(_, item)| item).ok_or_else(|| corrupt(format!("`{name}` is missing")))
    }

    /// The fields of an object that says that it is of this type.
    fn of_type(&self, name: &str) -> Result<&Item> {
        match self.field("type")? {
            Item::Plain(Value::Text(text)) if &**text == name => Ok(self),
            other => Err(corrupt(format!("it says that it is {other:?}, not {name}"))),
        }
    }

    fn pairs(&self) -> Result<Vec<(&str, &Item)>> {
        let Item::Map(pairs) = self else { return Err(corrupt("what should be a map is none")) };
        let mut keyed = Vec::with_capacity(pairs.len());
        for (key, item) in pairs {
            match key {
                Item::Plain(Value::Text(text)) => keyed.push((&**text, item)),
                other => return Err(corrupt(format!("a key is no text: {other:?}"))),
            }
        }
        Ok(keyed)
    }

    fn plain(&self) -> Result<&Value> {
        match self {
            Item::Plain(value) => Ok(value),
            _ => Err(corrupt("a list or a map stands where a plain value should")),
        }
    }

    /// A number that is not negative.
    fn count(&self) -> Result<u64> {
        match self.plain()? {
            Value::Int(n) => u64::try_from(*n).map_err(|_| corrupt(format!("{n} is out of range"))),
            other => Err(corrupt(format!("{other} is no whole number"))),
        }
    }

    fn items(&self) -> Result<&[Item]> {
        match self {
            Item::List(items) => Ok(items),
            _ => Err(corrupt("what should be a list is none")),
        }
    }

    /// Numbers that fit into a byte.
    fn bytes(&self) -> Result<Vec<u8>> {
        let byte = |item: &Item| u8::try_from(item.count()?).map_err(|_| corrupt("a number is no byte"));
        self.items()?.iter().map(byte).collect()
    }

    /// A value that a register holds.
    fn value(&self) -> Result<Value> {
        Ok(match self {
            Item::Plain(value) => value.clone(),
            Item::List(items) => Value::List(items.iter().map(Item::value).collect::<Result<_>>()?),
            Item::Map(pairs) if pairs.iter().any(|(key, _)| !matches!(key, Item::Plain(Value::Text(_)))) => {
                let pair = |(key, item): &(Item, Item)| Ok((key.plain()?.clone(), item.value()?));
                let map = Value::map(pairs.iter().map(pair).collect::<Result<_>>()?);
                // 5 has two forms, and they are one key.
                match &map {
                    Value::Map(entries) if entries.len() == pairs.len() => map,
                    _ => return Err(corrupt("a key stands twice in a map")),
                }
            }
            Item::Map(_) => {
                let fields =
                    self.pairs()?.into_iter().map(|(key, item)| Ok((key.into(), item.value()?))).collect::<Result<Vec<_>>>()?;
                Value::record(fields)
            }
        })
    }
}

/// The type of a frame and its payload.
fn open(frame: &[u8]) -> Result<(u8, Vec<u8>)> {
    let mut head = Payload { rest: frame, depth: 0 };
    if head.take(MAGIC.len())? != MAGIC {
        return Err(corrupt("it does not begin with CRDT"));
    }
    let version = u16::from_be_bytes(head.array()?);
    if version != 1 {
        return Err(corrupt(format!("its version is {version}, and 1 is the one there is")));
    }
    let [kind, flags] = head.array()?;
    let length = u32::from_be_bytes(head.array()?) as usize;
    if head.rest.len() != length {
        return Err(corrupt(format!("its payload has {} bytes and claims {length}", head.rest.len())));
    }
    match flags {
        0 => Ok((kind, head.rest.to_vec())),
        1 => {
            let mut inflated = Vec::new();
            let mut reader = flate2::read::ZlibDecoder::new(head.rest);
            reader.by_ref().take(MAX_INFLATED as u64 + 1).read_to_end(&mut inflated).map_err(corrupt)?;
            if inflated.len() > MAX_INFLATED {
                return Err(corrupt(format!("it inflates past {MAX_INFLATED} bytes")));
            }
            if reader.total_in() != length as u64 {
                return Err(corrupt("bytes follow its compressed payload"));
            }
            Ok((kind, inflated))
        }
        other => Err(corrupt(format!("the flags {other:#04x} are not known"))),
    }
}

/// A state of these rows.
fn state_of(strategy: &str, inputs: Vec<Type>, rows: impl IntoIterator<Item = Vec<Value>>) -> Result<Vec<u8>> {
    let entry =
        catalog::find(strategy).ok_or_else(|| Error::new(Code::UnknownStrategy, format!("no strategy is called `{strategy}`")))?;
    let mut call = Call::new(inputs);
    if strategy == "lww" {
        // In a register NULL is a value.
        call = call.with_arg("respect_nulls", Value::Bool(true));
    }
    let mut state = entry.bind(&call)?.partial();
    // What no writer of frames would have written.
    let broken = |e: Error| if e.code == Code::LimitExceeded { e } else { corrupt(e.message) };
    for row in rows {
        state.update(&row).map_err(broken)?;
    }
    state.encode().map_or_else(|| nothing(strategy), Ok)
}

/// A state that nothing contributed to: what an object that holds nothing is.
fn nothing(strategy: &str) -> Result<Vec<u8>> {
    // Whatever a state counts, there are none.
    let parts = match strategy {
        "counter" | "pncounter" | "vclock" => 1,
        "orset" | "dvv" => 2,
        "lwwmap" => 3,
        _ => return Err(corrupt("it holds nothing")),
    };
    let entry = catalog::find(strategy).ok_or_else(|| corrupt("it holds nothing"))?;
    let mut body = Writer::default();
    (0..parts).for_each(|_| body.varint(0));
    Ok(seal_body(entry.spec().type_id, body))
}

/// The type of a value of a payload.
fn counts(counter: &Item) -> Result<Vec<(Value, Value)>> {
    let counts = counter.of_type("g_counter")?.field("counts")?.pairs()?;
    counts.into_iter().map(|(node, n)| Ok((Value::text(node), n.plain()?.clone()))).collect()
}

/// A value of a register and its version: time, then node.
fn register(item: &Item) -> Result<[Value; 3]> {
    let item = item.of_type("lww_register")?;
    let node = match item.field("node_id")?.plain()? {
        node @ Value::Text(_) => node.clone(),
        other => return Err(corrupt(format!("the node of a register is {other}"))),
    };
    Ok([item.field("value")?.value()?, time(item.field("timestamp")?)?, node])
}

/// The time of a register or of its removal.
fn time(item: &Item) -> Result<Value> {
    match item.plain()? {
        time @ (Value::Float(_) | Value::Int(_)) if !time.is_nan() => Ok(time.clone()),
        other => Err(corrupt(format!("the time of a register is {other}"))),
    }
}

/// A JSON payload: no name twice in an object, no nesting beyond what states have.
#[derive(Debug)]
struct Strict(serde_json::Value);

fn json(payload: &[u8]) -> Result<serde_json::Value> {
    fn depth(json: &serde_json::Value) -> usize {
        match json {
            serde_json::Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
            serde_json::Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }
    let Strict(json) = serde_json::from_slice(payload).map_err(corrupt)?;
    if depth(&json) > MAX_DEPTH {
        return Err(corrupt(format!("it nests deeper than {MAX_DEPTH}")));
    }
    Ok(json)
}

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Strict, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = serde_json::Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, v: bool) -> std::result::Result<Self::Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> std::result::Result<Self::Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> std::result::Result<Self::Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> std::result::Result<Self::Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> std::result::Result<Self::Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
        Ok(serde_json::Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> std::result::Result<Self::Value, A::Error> {
        let mut object = serde_json::Map::new();
        while let Some((name, Strict(field))) = fields.next_entry::<String, Strict>()? {
            // How serde_json hands on a number with all its digits.
            if name == "$serde_json::private::Number" {
                let digits = field.as_str().and_then(|digits| digits.parse::<serde_json::Number>().ok());
                return digits.map(Into::into).ok_or_else(|| serde::de::Error::custom("a number has no digits"));
            }
            if object.contains_key(&name) {
                return Err(serde::de::Error::custom(format!("a key stands twice in a map: {name:?}")));
            }
            object.insert(name, field);
        }
        Ok(object.into())
    }
}

/// The payload of a frame, as a tree.
fn tree(payload: &[u8]) -> Result<Item> {
    let mut reader = Payload { rest: payload, depth: 0 };
    let item = reader.item()?;
    if reader.rest.is_empty() { Ok(item) } else { Err(corrupt("bytes follow its payload")) }
}

/// The payload of a frame of one type.
fn tree_of(frame: &[u8], wanted: u8, name: &str) -> Result<Item> {
    let (kind, payload) = open(frame)?;
    if kind != wanted {
        return Err(Error::type_mismatch(format!("this frame is of type {kind:#04x}, not {wanted:#04x}")));
    }
    let item = tree(&payload)?;
    item.of_type(name)?;
    Ok(item)
}

/// The HyperLogLog in a frame.
pub(crate) fn hll(frame: &[u8]) -> Result<Hll> {
    let item = tree_of(frame, HLL, "hll")?;
    let precision = u8::try_from(item.field("precision")?.count()?).map_err(|_| corrupt("its precision is out of range"))?;
    Hll { precision, registers: item.field("registers")?.bytes()? }.check()
}

/// The Bloom filter in a frame.
pub(crate) fn bloom(frame: &[u8]) -> Result<Bloom> {
    let item = tree_of(frame, BLOOM, "bloom")?;
    let count = |name: &str| item.field(name)?.count();
    let rate = item.field("fp_rate")?.plain()?.to_f64().unwrap_or(f64::NAN);
    let (capacity, size, hashes) = (count("capacity")?, count("size")?, count("num_hashes")?);
    Bloom { capacity, rate, size, hashes, bits: item.field("bits")?.bytes()?, count: count("count")? }.check()
}

/// The count-min sketch in a frame.
pub(crate) fn count_min(frame: &[u8]) -> Result<CountMin> {
    let item = tree_of(frame, COUNT_MIN, "cms")?;
    let (width, depth) = (item.field("width")?.count()?, item.field("depth")?.count()?);
    let table = item.field("table")?.items()?;
    let mut counts = Vec::new();
    for row in table {
        let row = row.items()?;
        if row.len() as u64 != width || table.len() as u64 != depth {
            return Err(corrupt("its table has another width or depth"));
        }
        for count in row {
            counts.push(count.count()?);
        }
    }
    CountMin { width, counts, total: item.field("total")?.count()? }.check()
}

fn sketch<S: Sketch>(sketch: S) -> Vec<u8> {
    encode::<OfFrames<S>>(&Joined(Some(sketch)))
}

/// How far each node has counted, in the JSON of a vector clock.
fn clocks(json: &serde_json::Value) -> Result<Vec<(&str, i64)>> {
    if json["type"] != "vector_clock" {
        return Err(corrupt("it does not say that it is a vector_clock"));
    }
    let clocks = json["clocks"].as_object().ok_or_else(|| corrupt("`clocks` is missing"))?;
    let row = |(node, n): (&'_ String, &serde_json::Value)| {
        n.as_i64().filter(|n| *n > 0).ok_or_else(|| corrupt(format!("the clock of `{node}` is {n}")))
    };
    clocks.iter().map(|(node, n)| Ok((node.as_str(), row((node, n))?))).collect()
}

/// The changes of rows between two tables, as a map: the rows that are there now by their key, and deletions.
fn delta(item: &Item, key: Option<&str>) -> Result<Vec<u8>> {
    let key = key.ok_or_else(|| {
        Error::invalid_argument("the frame is a delta of rows, and does not say which column is their key")
            .with_help("name it: crdt_from_frame(frame, 'id')")
    })?;
    let (time, node) = (item.field("timestamp")?.plain()?, item.field("source_node")?.plain()?);
    let mut rows = Vec::new();
    for row in item.field("added")?.items()?.iter().chain(item.field("modified")?.items()?) {
        let id = row.field(key)?.plain()?;
        rows.push(vec![row.value()?, id.clone(), time.clone(), node.clone()]);
    }
    for id in item.field("removed")?.items()? {
        rows.push(vec![Value::Null, id.plain()?.clone(), time.clone(), node.clone()]);
    }
    let (ty, key) = rows.first().map_or((Type::Null, Type::Text), |row| (Type::of(&row[0]), Type::of(&row[1])));
    state_of("lwwmap", vec![ty, key, Type::Float64, Type::Text], rows)
}

/// The frames of a batch: a count, then the length of each and the frame.
///
/// # Errors
/// `corrupt_state` for bytes that are no batch of whole frames.
pub fn of_batch(batch: &[u8]) -> Result<Vec<&[u8]>> {
    let mut reader = Payload { rest: batch, depth: 0 };
    let n = reader.count(4)?;
    let mut frames = Vec::new();
    for _ in 0..n {
        let length = reader.count(1)?;
        let frame = reader.take(length)?;
        open(frame)?;
        frames.push(frame);
    }
    if reader.rest.is_empty() { Ok(frames) } else { Err(corrupt("bytes follow the last frame of the batch")) }
}

/// The state of a frame; of a delta of rows with the name of their key.
///
/// # Errors
/// `corrupt_state` for bytes that are no frame; `unsupported` for objects that have no state here; `limit_exceeded`.
pub fn from_frame(frame: &[u8], key: Option<&str>) -> Result<Vec<u8>> {
    let (kind, payload) = open(frame)?;
    match kind {
        COUNTER | PN_COUNTER | REGISTER | OR_SET | LWW_MAP => {}
        DELTA => return delta(&tree(&payload)?, key),
        GENERIC => {
            let value = tree(&payload)?.value()?;
            return state_of("lww", vec![Type::of(&value)], [vec![value]]);
        }
        HLL => return hll(frame).map(sketch),
        BLOOM => return bloom(frame).map(sketch),
        COUNT_MIN => return count_min(frame).map(sketch),
        VECTOR_CLOCK => {
            let json = json(&payload)?;
            let rows = clocks(&json)?.into_iter().map(|(node, n)| vec![Value::Int(n.into()), Value::text(node)]);
            return state_of("vclock", vec![Type::INT64, Type::Text], rows);
        }
        DOTTED_CLOCK => {
            let json = json(&payload)?;
            if json["type"] != "dotted_version_vector" {
                return Err(corrupt("it does not say that it is a dotted_version_vector"));
            }
            let dot = match &json["dot"] {
                serde_json::Value::Null => None,
                dot => Some(match (dot[0].as_str(), dot[1].as_i64().filter(|n| *n > 0), dot.as_array().map(Vec::len)) {
                    (Some(node), Some(n), Some(2)) => (node, n as u64, n as u64),
                    _ => return Err(corrupt(format!("{dot} is no dot"))),
                }),
            };
            let base = clocks(&json["base"])?.into_iter().map(|(node, n)| (node, 1, n as u64));
            return dvv::of_runs(base.chain(dot)).map_or_else(|| nothing("dvv"), Ok);
        }
        GOSSIP_STATE | GOSSIP_ENTRY => {
            return Err(Error::new(
                Code::Unsupported,
                format!("frames of type {kind:#04x} are messages of a protocol, and no state"),
            )
            .with_help(
                "their entries are values with vector clocks: take those apart, crdt_mvr_state or crdt_lwwmap_state hold them",
            ));
        }
        other => return Err(corrupt(format!("there is no type {other:#04x}"))),
    }
    let item = tree(&payload)?;
    match kind {
        COUNTER => state_of("counter", vec![Type::INT64, Type::Text], counts(&item)?.into_iter().map(|(node, n)| vec![n, node])),
        PN_COUNTER => {
            let item = item.of_type("pn_counter")?;
            let up = counts(item.field("pos")?)?.into_iter().map(|(node, n)| vec![n, Value::Int(0), node]);
            let down = counts(item.field("neg")?)?.into_iter().map(|(node, n)| vec![Value::Int(0), n, node]);
            state_of("pncounter", vec![Type::INT64, Type::INT64, Type::Text], up.chain(down))
        }
        REGISTER => {
            let [value, time, node] = register(&item)?;
            state_of("lww", vec![Type::of(&value), Type::Float64, Type::Text], [vec![value, time, node]])
        }
        OR_SET => {
            let item = item.of_type("or_set")?;
            let types = item.field("element_types").ok().map(Item::pairs).transpose()?.unwrap_or_default();
            let types: HashMap<&str, &Item> = types.into_iter().collect();
            let mut rows = Vec::new();
            // Which element each tag stands for, by its place.
            let mut elements: HashMap<String, usize> = HashMap::new();
            for (place, (text, tags)) in item.field("elements")?.pairs()?.into_iter().enumerate() {
                let ty = types.get(text).map(|ty| ty.plain()).transpose()?;
                let element = match ty {
                    None => Some(Value::text(text)),
                    Some(Value::Text(ty)) => match &**ty {
                        "int" => text.parse().ok().map(Value::Int),
                        "float" => text.parse().ok().map(Value::float),
                        "bool" => text.to_ascii_lowercase().parse().ok().map(Value::Bool),
                        _ => None,
                    },
                    Some(_) => None,
                };
                let element = element.ok_or_else(|| corrupt(format!("the element `{text}` is not of its type")))?;
                let Item::List(tags) = tags else { return Err(corrupt("the tags of an element are no list")) };
                // Each tag is an event of its own; an element without tags was removed, and which tags it had is not in the frame.
                for tag in tags {
                    let tag = tag.plain()?;
                    if *elements.entry(tag.to_string()).or_insert(place) != place {
                        return Err(corrupt(format!("the tag {tag} stands for two elements")));
                    }
                    rows.push(vec![element.clone(), tag.clone(), Value::Int(1)]);
                }
            }
            let ty = rows.first().map_or(Type::Text, |row| Type::of(&row[0]));
            state_of("orset", vec![ty, Type::Text, Type::INT64], rows)
        }
        _ => {
            let item = item.of_type("lww_map")?;
            let mut rows = Vec::new();
            for (key, entry) in item.field("registers")?.pairs()? {
                let [value, time, node] = register(entry)?;
                if value.is_null() {
                    return Err(Error::new(
                        Code::Unsupported,
                        format!("under `{key}` the map holds NULL, which is a deletion here"),
                    ));
                }
                rows.push(vec![value, Value::text(key), time, node]);
            }
            for (key, time) in item.field("tombstones")?.pairs()? {
                rows.push(vec![Value::Null, Value::text(key), self::time(time)?, Value::Null]);
            }
            let ty = rows.first().map_or(Type::Text, |row| Type::of(&row[0]));
            state_of("lwwmap", vec![ty, Type::Text, Type::Float64, Type::Text], rows)
        }
    }
}
