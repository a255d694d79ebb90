//! States into frames.

use super::*;
use crate::aggregate::argument;
use crate::catalog;
use crate::error::{Code, Error, Result};
use crate::strategies::frame_sketches::{Bloom, CountMin, Hll, OfFrames, Sketch};
use crate::value::Value;
use std::collections::HashSet;

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
        Value::Map(pairs) => {
            put_map(out, pairs.len());
            for (key, value) in pairs {
                put(out, key)?;
                put(out, value)?;
            }
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

/// A map of the state's content, by text keys: another kind of key would come back as a text, which is another key.
fn entries(content: &Value) -> Result<Vec<(String, &Value)>> {
    let Value::Map(pairs) = content else { return Err(Error::new(Code::Unsupported, "the state has no origins")) };
    let text = |key: &Value| match key {
        Value::Text(text) => Ok(text.to_string()),
        other => Err(Error::new(
            Code::Unsupported,
            format!("a frame names origins and keys by texts, and `{other}` is a {}", other.kind()),
        )),
    };
    pairs.iter().map(|(key, value)| Ok((text(key)?, value))).collect()
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
    put_type(out, 4, "lww_register");
    put_text(out, "value");
    put(out, value)?;
    put_text(out, "timestamp");
    put(out, time)?;
    put_text(out, "node_id");
    put_text(out, node);
    Ok(())
}

/// A JSON string of ASCII alone, as Python writes it.
fn json_text(text: &str) -> String {
    let mut out = String::new();
    for c in serde_json::Value::from(text).to_string().chars() {
        match c {
            c if c.is_ascii() => out.push(c),
            c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out += &format!("\\u{unit:04x}")),
        }
    }
    out
}

/// A float as Python prints it: the shortest digits that tell it, with an exponent from 1e16 on and below 1e-4.
fn float_text(v: f64) -> String {
    if !v.is_finite() {
        return if v.is_nan() {
            "nan"
        } else if v > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let scientific = format!("{v:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => {
            let plain = v.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
    }
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
        "lww" if !part(&content, "descending").is_null() => {
            return Err(Error::new(
                Code::Unsupported,
                "a frame has no place for the order of versions, and here the least is the newest",
            ));
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
            let (mut texts, mut tags) = (HashSet::new(), HashSet::new());
            for one in held {
                let (element, dots) = (part(one, "value"), part(one, "dots"));
                let (text, ty) = match element {
                    Value::Text(text) => (text.to_string(), None),
                    Value::Int(n) => (n.to_string(), Some("int")),
                    Value::Float(v) => (float_text(*v), Some("float")),
                    Value::Bool(v) => (if *v { "True" } else { "False" }.to_owned(), Some("bool")),
                    other => return Err(Error::new(Code::Unsupported, format!("an OR-set in a frame holds no {}", other.kind()))),
                };
                if !texts.insert(text.clone()) {
                    let message =
                        format!("a frame holds an OR-set by the text of its elements, and two of this one's are `{text}`");
                    return Err(Error::new(Code::Unsupported, message));
                }
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
                let dots: Vec<String> = dots.iter().map(tag).collect();
                if let Some(twice) = dots.iter().find(|tag| !tags.insert((*tag).clone())) {
                    let message = format!("two additions of the set would be the tag `{twice}` in a frame");
                    return Err(Error::new(Code::Unsupported, message));
                }
                elements.push((text, dots));
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
                    // Who deleted has no place.
                    Value::List(parts) if matches!(parts.first(), Some(Value::Int(_) | Value::Float(_))) => put(out, &parts[0])?,
                    version => {
                        return Err(Error::new(
                            Code::Unsupported,
                            format!("the key `{key}` was deleted at {version}, and a frame has a number for that"),
                        )
                        .with_help("ship the state itself, or delete with a version that begins with a number"));
                    }
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
