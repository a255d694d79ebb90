//! The frames of the earlier Python library (wire format, version 1): read into states and written from them, for interchange.
//!
//! `"CRDT"`, version (u16, big-endian, as all integers), type, flags (bit 0: the payload is zlib), length (u32), payload. A payload is a tree of
//! tagged values, or JSON for clocks. Nothing is guessed: what is short, over-long, unknown or nests too deep is `corrupt_state`.

mod read;
mod write;

use crate::error::Error;
pub(crate) use read::{bloom, count_min, hll};
pub use read::{from_frame, of_batch};
pub use write::to_frame;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use crate::error::Code;
    use crate::value::Value;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex")).collect()
    }

    fn vectors() -> Vec<(String, Vec<u8>)> {
        let lines = include_str!("../../tests/frames.jsonl").lines();
        let read = |line: &str| {
            let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
            (json["id"].as_str().expect("an id").to_owned(), bytes(json["hex"].as_str().expect("bytes")))
        };
        lines.map(read).collect()
    }

    /// What a frame cannot tell apart is refused, and what it says twice.
    #[test]
    fn nothing_is_guessed() {
        let run = |name: &str, args: &[Value]| {
            (crate::functions::all().into_iter().find(|f| f.name == name).expect("a function").run)(args)
        };
        let (one, text) = (Value::Int(1), Value::text("a"));
        let frame = |state: Value| match state {
            Value::Bytes(state) => to_frame(&state),
            other => panic!("{other:?} is no state"),
        };
        let unsupported = |state: Value| assert_eq!(frame(state).expect_err("a frame").code, Code::Unsupported);
        unsupported(run("counter_add", &[Value::Null, one.clone(), Value::Int(5)]).expect("a counter"));
        unsupported(run("vclock_inc", &[Value::Null, one.clone()]).expect("a clock"));
        unsupported(run("map_set", &[Value::Null, one, text.clone(), Value::float(1.0), text.clone()]).expect("a map"));
        let json = |kind: u8, payload: &str| {
            let mut frame = [MAGIC, &[0, 1, kind, 0]].concat();
            frame.extend((payload.len() as u32).to_be_bytes());
            frame.extend(payload.bytes());
            from_frame(&frame, None).map_err(|e| e.code)
        };
        assert!(json(VECTOR_CLOCK, r#"{"type":"vector_clock","clocks":{"a":1,"b":12345678901}}"#).is_ok());
        for twice in [
            r#"{"type":"vector_clock","clocks":{"a":1,"a":5}}"#,
            r#"{"type":"vector_clock","type":"vector_clock","clocks":{"a":1}}"#,
        ] {
            assert_eq!(json(VECTOR_CLOCK, twice), Err(Code::CorruptState));
        }
        let deep = format!(r#"{{"type":"vector_clock","clocks":{{"a":1}},"more":{}{}}}"#, "[".repeat(90), "]".repeat(90));
        assert_eq!(json(VECTOR_CLOCK, &deep), Err(Code::CorruptState));
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
