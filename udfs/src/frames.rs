//! The frames of the earlier Python library (wire format, version 1): read into states and written from them, for interchange.
//!
//! `"CRDT"`, version (u16, big-endian, as all integers), type, flags (bit 0: the payload is zlib), length (u32), payload. A payload is a tree of
//! tagged values, or JSON for clocks. Nothing is guessed: what is short, over-long, unknown or nests too deep is `corrupt_state`.

use crate::aggregate::{Call, argument, encode};
use crate::catalog;
use crate::codec::{MAX_DEPTH, MAX_INFLATED};
use crate::error::{Code, Error, Result};
use crate::strategies::dvv;
use crate::strategies::frame_sketches::{Bloom, CountMin, Hll, Joined, OfFrames, Sketch};
use crate::types::Type;
use crate::value::Value;
use std::io::Read;

const MAGIC: &[u8] = b"CRDT";
const COUNTER: u8 = 0x01;
const PN_COUNTER: u8 = 0x02;
const REGISTER: u8 = 0x03;
const OR_SET: u8 = 0x04;
const LWW_MAP: u8 = 0x05;
const DELTA: u8 = 0x10;
const GENERIC: u8 = 0x20;
const HLL: u8 = 0x30;
const BLOOM: u8 = 0x31;
const COUNT_MIN: u8 = 0x32;
const VECTOR_CLOCK: u8 = 0x40;
const DOTTED_CLOCK: u8 = 0x41;
const GOSSIP_STATE: u8 = 0x43;
const GOSSIP_ENTRY: u8 = 0x44;

fn corrupt(what: impl std::fmt::Display) -> Error {
    Error::corrupt_state(format!("this is no frame: {what}"))
}

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
                    let mut pairs = Vec::new();
                    for _ in 0..n {
                        pairs.push((self.item()?, self.item()?));
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
                return Err(Error::new(Code::LimitExceeded, format!("the frame inflates past {MAX_INFLATED} bytes")));
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
    let mut state = entry.bind(&Call::new(inputs))?.partial();
    for row in rows {
        state.update(&row)?;
    }
    state.encode().ok_or_else(|| corrupt("it holds nothing"))
}

/// The type of a value of a payload.
fn type_of(value: &Value) -> Type {
    match value {
        Value::Null => Type::Null,
        Value::Bool(_) => Type::Boolean,
        Value::Int(_) => Type::INT64,
        Value::Float(_) => Type::Float64,
        Value::Bytes(_) => Type::Bytes,
        Value::List(items) => Type::List(Box::new(items.first().map_or(Type::Null, type_of))),
        Value::Struct(fields) => Type::Struct(fields.iter().map(|(name, value)| (name.clone(), type_of(value))).collect()),
        _ => Type::Text,
    }
}

fn counts(counter: &Item) -> Result<Vec<(Value, Value)>> {
    let counts = counter.of_type("g_counter")?.field("counts")?.pairs()?;
    counts.into_iter().map(|(node, n)| Ok((Value::text(node), n.plain()?.clone()))).collect()
}

/// A value of a register and its version: time, then node.
fn register(item: &Item) -> Result<[Value; 3]> {
    let item = item.of_type("lww_register")?;
    let time = match item.field("timestamp")?.plain()? {
        time @ (Value::Float(_) | Value::Int(_)) => time.to_owned(),
        other => return Err(corrupt(format!("the time of a register is {other}"))),
    };
    Ok([item.field("value")?.value()?, time, item.field("node_id")?.plain()?.clone()])
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

/// The changes of rows between two tables, as a map: the rows that are there now by the text of their key, and deletions.
fn delta(item: &Item, key: Option<&str>) -> Result<Vec<u8>> {
    let key = key.ok_or_else(|| {
        Error::invalid_argument("the frame is a delta of rows, and does not say which column is their key")
            .with_help("name it: crdt_from_frame(frame, 'id')")
    })?;
    let (time, node) = (item.field("timestamp")?.plain()?, item.field("source_node")?.plain()?);
    let mut rows = Vec::new();
    for row in item.field("added")?.items()?.iter().chain(item.field("modified")?.items()?) {
        let id = row.field(key)?.plain()?;
        rows.push(vec![row.value()?, Value::text(id.to_string()), time.clone(), node.clone()]);
    }
    for id in item.field("removed")?.items()? {
        rows.push(vec![Value::Null, Value::text(id.plain()?.to_string()), time.clone(), node.clone()]);
    }
    let ty = rows.first().map_or(Type::Null, |row| type_of(&row[0]));
    state_of("lwwmap", vec![ty, Type::Text, Type::Float64, Type::Text], rows)
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
            return state_of("lww", vec![type_of(&value)], [vec![value]]);
        }
        HLL => return hll(frame).map(sketch),
        BLOOM => return bloom(frame).map(sketch),
        COUNT_MIN => return count_min(frame).map(sketch),
        VECTOR_CLOCK => {
            let json: serde_json::Value = serde_json::from_slice(&payload).map_err(corrupt)?;
            let rows = clocks(&json)?.into_iter().map(|(node, n)| vec![Value::Int(n.into()), Value::text(node)]);
            return state_of("vclock", vec![Type::INT64, Type::Text], rows);
        }
        DOTTED_CLOCK => {
            let json: serde_json::Value = serde_json::from_slice(&payload).map_err(corrupt)?;
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
            return dvv::of_runs(base.chain(dot)).ok_or_else(|| corrupt("it holds nothing"));
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
            state_of("lww", vec![type_of(&value), Type::Float64, Type::Text], [vec![value, time, node]])
        }
        OR_SET => {
            let item = item.of_type("or_set")?;
            let types = item.field("element_types").ok().map(Item::pairs).transpose()?.unwrap_or_default();
            let mut rows = Vec::new();
            for (text, tags) in item.field("elements")?.pairs()? {
                let ty = types.iter().find(|(key, _)| *key == text).map(|(_, ty)| ty.plain()).transpose()?;
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
                    rows.push(vec![element.clone(), tag.plain()?.clone(), Value::Int(1)]);
                }
            }
            let ty = rows.first().map_or(Type::Text, |row| type_of(&row[0]));
            state_of("orset", vec![ty, Type::Text, Type::INT64], rows)
        }
        _ => {
            let item = item.of_type("lww_map")?;
            let mut rows = Vec::new();
            for (key, entry) in item.field("registers")?.pairs()? {
                let [value, time, node] = register(entry)?;
                rows.push(vec![value, Value::text(key), time, node]);
            }
            for (key, time) in item.field("tombstones")?.pairs()? {
                rows.push(vec![Value::Null, Value::text(key), time.plain()?.clone(), Value::Null]);
            }
            let ty = rows.first().map_or(Type::Text, |row| type_of(&row[0]));
            state_of("lwwmap", vec![ty, Type::Text, Type::Float64, Type::Text], rows)
        }
    }
}

// Writing.

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(0x05);
    out.extend((text.len() as u32).to_be_bytes());
    out.extend(text.as_bytes());
}

fn put_map(out: &mut Vec<u8>, n: usize) {
    out.push(0x08);
    out.extend((n as u32).to_be_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) -> Result<()> {
    let unsupported = || Error::new(Code::Unsupported, format!("a frame holds no {}", value.kind()));
    match value {
        Value::Null => out.push(0x00),
        Value::Bool(v) => out.push(if *v { 0x01 } else { 0x02 }),
        Value::Int(v) => match (i8::try_from(*v), i64::try_from(*v)) {
            (Ok(small), _) => out.extend([0x09, small as u8]),
            (_, Ok(v)) => {
                out.push(0x03);
                out.extend(v.to_be_bytes());
            }
            _ => return Err(unsupported()),
        },
        Value::Float(v) => {
            out.push(0x04);
            out.extend(v.to_be_bytes());
        }
        Value::Text(text) => put_text(out, text),
        Value::Bytes(bytes) => {
            out.push(0x06);
            out.extend((bytes.len() as u32).to_be_bytes());
            out.extend_from_slice(bytes);
        }
        Value::List(items) => {
            out.push(0x07);
            out.extend((items.len() as u32).to_be_bytes());
            items.iter().try_for_each(|item| put(out, item))?;
        }
        Value::Struct(fields) => {
            put_map(out, fields.len());
            for (name, value) in fields {
                put_text(out, name);
                put(out, value)?;
            }
        }
        _ => return Err(unsupported()),
    }
    Ok(())
}

fn put_type(out: &mut Vec<u8>, fields: usize, name: &str) {
    put_map(out, fields);
    put_text(out, "type");
    put_text(out, name);
}

/// A map of the state's content, by text keys.
fn entries(content: &Value) -> Result<Vec<(String, &Value)>> {
    let Value::Map(pairs) = content else { return Err(Error::new(Code::Unsupported, "the state has no origins")) };
    let text = |value: &Value| match value {
        Value::Text(text) => text.to_string(),
        other => other.to_string(),
    };
    Ok(pairs.iter().map(|(key, value)| (text(key), value)).collect())
}

fn part<'v>(record: &'v Value, name: &str) -> &'v Value {
    match record {
        Value::Struct(fields) => fields.iter().find(|(field, _)| &**field == name).map_or(&Value::Null, |(_, value)| value),
        _ => &Value::Null,
    }
}

fn put_counter(out: &mut Vec<u8>, counts: &[(String, Value)]) -> Result<()> {
    put_type(out, 2, "g_counter");
    put_text(out, "counts");
    put_map(out, counts.len());
    for (node, n) in counts {
        put_text(out, node);
        put(out, n)?;
    }
    Ok(())
}

/// Value, time and node of a register; other versions have no place in a frame.
fn put_register(out: &mut Vec<u8>, value: &Value, version: &Value) -> Result<()> {
    let parts = match version {
        Value::List(parts) => parts.as_slice(),
        _ => &[],
    };
    let (time, node) = match parts {
        [time @ (Value::Float(_) | Value::Int(_)), Value::Text(node)] => (time, node),
        _ => {
            return Err(Error::new(
                Code::Unsupported,
                "a register in a frame has a version of two parts: a time in seconds, and a node",
            )
            .with_help("lww(value, time, node)"));
        }
    };
    let time = if let Value::Int(n) = time { Value::float(*n as f64) } else { time.clone() };
    put_type(out, 4, "lww_register");
    put_text(out, "value");
    put(out, value)?;
    put_text(out, "timestamp");
    put(out, &time)?;
    put_text(out, "node_id");
    put_text(out, node);
    Ok(())
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn vector_clock(clocks: &[(String, Value)]) -> String {
    let clocks: Vec<String> = clocks.iter().map(|(node, n)| format!("{}: {n}", json_text(node))).collect();
    format!("{{\"type\": \"vector_clock\", \"clocks\": {{{}}}}}", clocks.join(", "))
}

fn put_number(out: &mut Vec<u8>, name: &str, n: u64) -> Result<()> {
    put_text(out, name);
    put(out, &Value::Int(n.into()))
}

fn put_numbers(out: &mut Vec<u8>, name: &str, numbers: impl Iterator<Item = u64>) -> Result<()> {
    put_text(out, name);
    put(out, &Value::List(numbers.map(|n| Value::Int(n.into())).collect()))
}

fn sketch_of<S: Sketch>(state: &Value) -> Result<S> {
    argument::<OfFrames<S>>(state)?.and_then(|joined| joined.0).ok_or_else(|| corrupt("the state holds no sketch"))
}

/// The frame of a state.
///
/// # Errors
/// `not_a_state`, `corrupt_state`; `unsupported` for states that a frame cannot hold.
pub fn to_frame(state: &[u8]) -> Result<Vec<u8>> {
    let bytes = Value::Bytes(state.into());
    let state = catalog::open(state)?;
    let (content, mut payload) = (state.info(), Vec::new());
    let out = &mut payload;
    let kind = match state.spec().name {
        "counter" => {
            let counts: Vec<(String, Value)> = entries(&content)?.into_iter().map(|(node, n)| (node, n.clone())).collect();
            put_counter(out, &counts)?;
            COUNTER
        }
        "pncounter" => {
            let all = entries(&content)?;
            put_type(out, 3, "pn_counter");
            for (name, field) in [("pos", "increments"), ("neg", "decrements")] {
                put_text(out, name);
                let counts = all.iter().map(|(node, both)| (node.clone(), part(both, field).clone()));
                put_counter(out, &counts.filter(|(_, n)| *n != Value::Int(0)).collect::<Vec<_>>())?;
            }
            PN_COUNTER
        }
        // A value that never had a version is a value.
        "lww" if matches!(part(&content, "rank"), Value::List(parts) if parts.is_empty()) => {
            put(out, part(&content, "value"))?;
            GENERIC
        }
        "lww" => {
            put_register(out, part(&content, "value"), part(&content, "rank"))?;
            REGISTER
        }
        "orset" => {
            let Value::List(held) = part(&content, "held") else { return Err(Error::corrupt_state("the set holds no list")) };
            let mut types = Vec::new();
            let mut elements: Vec<(String, Vec<String>)> = Vec::new();
            for one in held {
                let (element, dots) = (part(one, "value"), part(one, "dots"));
                let (text, ty) = match element {
                    Value::Text(text) => (text.to_string(), None),
                    Value::Int(n) => (n.to_string(), Some("int")),
                    Value::Float(v) => (v.to_string(), Some("float")),
                    Value::Bool(v) => (if *v { "True" } else { "False" }.to_owned(), Some("bool")),
                    other => return Err(Error::new(Code::Unsupported, format!("an OR-set in a frame holds no {}", other.kind()))),
                };
                types.extend(ty.map(|ty| (text.clone(), ty)));
                let Value::List(dots) = dots else { return Err(Error::corrupt_state("the dots are no list")) };
                let tag = |dot: &Value| match dot {
                    Value::List(parts) => match parts.as_slice() {
                        // What came from a frame, or from an origin that did one thing, is the tag itself.
                        [Value::Text(origin), Value::Int(1)] => origin.to_string(),
                        [origin, n] => format!("{origin}:{n}"),
                        _ => String::new(),
                    },
                    _ => String::new(),
                };
                elements.push((text, dots.iter().map(tag).collect()));
            }
            put_type(out, if types.is_empty() { 2 } else { 3 }, "or_set");
            put_text(out, "elements");
            put_map(out, elements.len());
            for (text, tags) in elements {
                put_text(out, &text);
                put(out, &Value::List(tags.into_iter().map(Value::text).collect()))?;
            }
            if !types.is_empty() {
                put_text(out, "element_types");
                put_map(out, types.len());
                for (text, ty) in types {
                    put_text(out, &text);
                    put_text(out, ty);
                }
            }
            OR_SET
        }
        "lwwmap" => {
            let all = entries(&content)?;
            let (gone, there): (Vec<_>, Vec<_>) = all.iter().partition(|(_, entry)| part(entry, "value").is_null());
            put_type(out, 3, "lww_map");
            put_text(out, "registers");
            put_map(out, there.len());
            for (key, entry) in there {
                put_text(out, key);
                put_register(out, part(entry, "value"), part(entry, "version"))?;
            }
            put_text(out, "tombstones");
            put_map(out, gone.len());
            for (key, entry) in gone {
                put_text(out, key);
                match part(entry, "version") {
                    Value::List(parts) => match parts.first() {
                        Some(Value::Int(n)) => put(out, &Value::float(*n as f64))?,
                        Some(time) => put(out, time)?,
                        None => out.push(0x00),
                    },
                    _ => out.push(0x00),
                }
            }
            LWW_MAP
        }
        "vclock" => {
            let clocks: Vec<(String, Value)> = entries(&content)?.into_iter().map(|(node, n)| (node, n.clone())).collect();
            out.extend(vector_clock(&clocks).bytes());
            VECTOR_CLOCK
        }
        "dvv" => {
            let (mut base, mut dot) = (Vec::new(), None);
            for (node, runs) in entries(&content)? {
                let Value::List(runs) = runs else { return Err(Error::corrupt_state("the runs of the state are no list")) };
                for run in runs {
                    match run {
                        Value::List(run) if run[0] == Value::Int(1) => base.push((node.clone(), run[1].clone())),
                        Value::List(run) if run[0] == run[1] && dot.is_none() => dot = Some((node.clone(), run[0].clone())),
                        _ => {
                            return Err(Error::new(
                                Code::Unsupported,
                                "a frame holds a version vector and one dot, and no more gaps",
                            ));
                        }
                    }
                }
            }
            let dot = dot.map(|(node, n)| format!(", \"dot\": [{}, {n}]", json_text(&node))).unwrap_or_default();
            out.extend(format!("{{\"type\": \"dotted_version_vector\", \"base\": {}{dot}}}", vector_clock(&base)).bytes());
            DOTTED_CLOCK
        }
        "hll_md5" => {
            let Hll { precision, registers } = sketch_of(&bytes)?;
            put_type(out, 3, "hll");
            put_number(out, "precision", precision.into())?;
            put_numbers(out, "registers", registers.into_iter().map(u64::from))?;
            HLL
        }
        "bloom_md5" => {
            let bloom: Bloom = sketch_of(&bytes)?;
            put_type(out, 7, "bloom");
            put_number(out, "capacity", bloom.capacity)?;
            put_text(out, "fp_rate");
            put(out, &Value::float(bloom.rate))?;
            put_number(out, "size", bloom.size)?;
            put_number(out, "num_hashes", bloom.hashes)?;
            put_numbers(out, "bits", bloom.bits.into_iter().map(u64::from))?;
            put_number(out, "count", bloom.count)?;
            BLOOM
        }
        "countmin_md5" => {
            let CountMin { width, counts, total } = sketch_of(&bytes)?;
            put_type(out, 5, "cms");
            put_number(out, "width", width)?;
            put_number(out, "depth", counts.len() as u64 / width)?;
            put_text(out, "table");
            let row = |row: &[u64]| Value::List(row.iter().map(|n| Value::Int((*n).into())).collect());
            put(out, &Value::List(counts.chunks(width as usize).map(row).collect()))?;
            put_number(out, "total", total)?;
            COUNT_MIN
        }
        other => {
            return Err(Error::new(Code::Unsupported, format!("a state of `{other}` has no frame"))
                .with_help("counter, pncounter, lww, orset, lwwmap, vclock, dvv, hll_md5, bloom_md5 and countmin_md5 do"));
        }
    };
    let length = u32::try_from(payload.len()).map_err(|_| Error::new(Code::LimitExceeded, "a frame holds no more than 4 GB"))?;
    let mut frame = MAGIC.to_vec();
    frame.extend([0, 1, kind, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend(payload);
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex")).collect()
    }

    fn vectors() -> Vec<(String, Vec<u8>)> {
        let lines = include_str!("../tests/frames.jsonl").lines();
        let read = |line: &str| {
            let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
            (json["id"].as_str().expect("an id").to_owned(), bytes(json["hex"].as_str().expect("bytes")))
        };
        lines.map(read).collect()
    }

    #[test]
    fn frames_of_every_type_with_a_state_come_back_as_they_were() {
        let mut back = Vec::new();
        for (id, frame) in vectors() {
            match from_frame(&frame, Some("id")) {
                // The removed element of this one leaves nothing behind.
                Ok(state) if id == "v04" => {
                    assert_eq!(catalog::open(&state).and_then(|s| s.value()).expect("a set"), Value::List(vec![Value::text("x")]))
                }
                // A delta becomes a map, which says what is there and what is gone.
                Ok(state) if id == "v06" => {
                    let map = catalog::open(&state).expect("a state");
                    assert_eq!(map.value().expect("a map").to_json(), r#"{"1":{"id":1}}"#);
                    assert_eq!(map.info().to_json().matches("\"n\"").count(), 2);
                }
                // The dot is the next event, so that the vector says it as well.
                Ok(state) if id == "v09" => {
                    assert_eq!(catalog::open(&state).and_then(|s| s.value()).expect("a clock").to_json(), r#"{"a":[[1,2]]}"#);
                    let frame = to_frame(&state).expect("a frame");
                    assert_eq!(from_frame(&frame, None), Ok(state));
                }
                // It was compressed, and is not any more.
                Ok(state) if id == "v13" => {
                    let frame = to_frame(&state).expect("a frame");
                    assert_eq!(from_frame(&frame, None), Ok(state));
                }
                // A tombstone has no node, which a version of two parts keeps as NULL.
                Ok(state) => {
                    assert_eq!(to_frame(&state).expect(&id), frame, "{id}");
                    back.push(id);
                }
                Err(e) if id == "v14" => assert_eq!(e.code, Code::CorruptState, "a batch is no frame"),
                Err(e) => panic!("{id}: {e}"),
            }
        }
        assert_eq!(back, ["v01", "v02", "v03", "v05", "v07", "v08", "v10", "v11", "v12"]);
    }

    #[test]
    fn a_batch_is_its_frames() {
        let (_, batch) = vectors().into_iter().find(|(id, _)| id == "v14").expect("a batch");
        let frames = of_batch(&batch).expect("two frames");
        let values: Vec<String> = frames
            .iter()
            .map(|frame| {
                catalog::open(&from_frame(frame, None).expect("a state")).and_then(|s| s.value()).expect("a value").to_json()
            })
            .collect();
        assert_eq!(values, ["[1]", r#"{"a":null}"#]);
        for cut in 0..batch.len() {
            assert!(of_batch(&batch[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_dot_with_a_gap_before_it_is_the_dot_of_a_frame() {
        let payload =
            br#"{"type": "dotted_version_vector", "base": {"type": "vector_clock", "clocks": {"a": 3, "b": 7}}, "dot": ["a", 5]}"#;
        let frame = [b"CRDT\0\x01\x41\0", &(payload.len() as u32).to_be_bytes()[..], payload].concat();
        let state = from_frame(&frame, None).expect("a state");
        assert_eq!(to_frame(&state).expect("a frame"), frame);
    }

    #[test]
    fn frames_that_are_damaged_are_refused() {
        for (id, frame) in vectors().into_iter().filter(|(_, f)| f.starts_with(MAGIC)) {
            for cut in 0..frame.len() {
                assert!(from_frame(&frame[..cut], Some("id")).is_err(), "{id} cut at {cut}");
            }
            for at in 0..frame.len() {
                for flip in [1u8, 0x80, 0xff] {
                    let mut damaged = frame.clone();
                    damaged[at] ^= flip;
                    // Whatever it says, it says it without a panic, and what is read is a state.
                    if let Ok(state) = from_frame(&damaged, Some("id")) {
                        catalog::open(&state).expect("a state");
                    }
                }
            }
            let mut longer = frame.clone();
            longer.push(0);
            assert!(from_frame(&longer, Some("id")).is_err(), "{id}");
        }
        let deep = [&b"CRDT\0\x01\x03\0\0\0\x01\xf4"[..], &b"\x07\0\0\0\x01".repeat(100)].concat();
        assert_eq!(from_frame(&deep, None).expect_err("deep").code, Code::CorruptState);
    }
}
