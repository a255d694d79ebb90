//! The state bytes, format v1 (docs/state-format.md): canonical, and read with no trust in any byte.
//!
//! `"MQ"` · version · type id · flags · varint body length · body · crc32c of all before it, little-endian.

use super::{Reader, Writer};
use crate::error::{Code, Error, Result};
use std::borrow::Cow;
use std::io::Read;

/// The first bytes of every state.
pub const MAGIC: [u8; 2] = *b"MQ";
/// The version of the format that this code writes.
pub const VERSION: u8 = 1;
/// Flag: the body is zstd-compressed.
pub const COMPRESSED: u8 = 1;
/// Flag: behind the body stand its index and the index's length: what can be computed from the body, to read parts of it. The state is the
/// body alone.
pub const INDEXED: u8 = 2;
/// The one type of state that has an index: `merkle_agg`.
const INDEXED_TYPE: u8 = 47;
/// A compressed body may inflate to this many bytes at most.
pub const MAX_INFLATED: usize = 256 << 20;

/// Puts a body into its envelope.
pub fn seal(type_id: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 15);
    seal_onto(&mut out, type_id, flags, body);
    out
}

/// As [`seal`], behind what is there.
pub fn seal_onto(out: &mut Vec<u8>, type_id: u8, flags: u8, body: &[u8]) {
    let start = out.len();
    let mut w = Writer { out: std::mem::take(out) };
    w.out.extend(MAGIC);
    w.out.extend([VERSION, type_id, flags]);
    w.bytes(body);
    let sum = crc32c::crc32c(&w.out[start..]);
    w.out.extend(sum.to_le_bytes());
    *out = w.out;
}

/// Puts a body into its envelope where it is.
pub fn seal_body(type_id: u8, body: Writer) -> Vec<u8> {
    let mut out = body.out;
    let mut head = Writer::default();
    head.raw(&MAGIC);
    head.raw(&[VERSION, type_id, 0]);
    head.length(out.len());
    out.reserve(head.out.len() + 4);
    out.splice(0..0, head.out);
    let sum = crc32c::crc32c(&out);
    out.extend(sum.to_le_bytes());
    out
}

/// Puts a body and its index into an envelope.
pub fn seal_indexed(type_id: u8, body: &[u8], index: &[u8]) -> Vec<u8> {
    let mut w = Writer { out: Vec::with_capacity(body.len() + index.len() + 25) };
    w.raw(&MAGIC);
    w.raw(&[VERSION, type_id, INDEXED]);
    w.bytes(body);
    w.bytes(index);
    let sum = crc32c::crc32c(&w.out);
    w.raw(&sum.to_le_bytes());
    w.out
}

/// The type id that an envelope says, before anything is checked.
pub fn type_id(bytes: &[u8]) -> Option<u8> {
    bytes.strip_prefix(&MAGIC)?.get(1).copied()
}

/// Opens an envelope: the type id and the (inflated) body.
///
/// # Errors
/// `not_a_state` for bytes that never were one, `corrupt_state` for those that are broken, `limit_exceeded` for a body that
/// inflates past [`MAX_INFLATED`].
pub fn open(bytes: &[u8]) -> Result<(u8, Cow<'_, [u8]>)> {
    open_indexed(bytes).map(|(type_id, body, _)| (type_id, body))
}

/// Whether state bytes say that their body is compressed.
pub fn is_compressed(bytes: &[u8]) -> bool {
    bytes.get(4) == Some(&COMPRESSED)
}

/// The type id, the body, and its index where it has one.
pub type Opened<'a> = (u8, Cow<'a, [u8]>, Option<&'a [u8]>);

/// As [`open`], with the index of the body where it has one. The checksum covers it, but whether it is that of the body nobody has looked.
///
/// # Errors
/// As [`open`].
pub fn open_indexed(bytes: &[u8]) -> Result<Opened<'_>> {
    if bytes.len() < 2 || bytes[..2] != MAGIC {
        return Err(Error::new(Code::NotAState, "these bytes are not a CRDT state")
            .with_help("states come from the crdt_*_state functions and begin with \"MQ\""));
    }
    let mut r = Reader::new(bytes);
    let header = r.take(5).map_err(|_| Error::corrupt_state("the state ends inside its header"))?;
    if header[2] != VERSION {
        return Err(Error::corrupt_state(format!("state format version {} is not known here", header[2])));
    }
    let (type_id, flags) = (header[3], header[4]);
    if !matches!(flags, 0 | COMPRESSED | INDEXED) {
        return Err(Error::corrupt_state(format!("unknown flags {flags:#04x} in the state")));
    }
    let body = r.bytes()?;
    let index = match flags {
        INDEXED if type_id == INDEXED_TYPE => Some(r.bytes()?),
        INDEXED => return Err(Error::corrupt_state(format!("a state of type {type_id} has an index, which none of its kind has"))),
        _ => None,
    };
    let covered = bytes.len() - r.rest.len();
    let sum = r.take(4)?;
    r.end()?;
    if crc32c::crc32c(&bytes[..covered]).to_le_bytes() != sum {
        return Err(Error::corrupt_state("the checksum of the state does not match"));
    }
    if flags != COMPRESSED {
        return Ok((type_id, body.into(), index));
    }
    let broken = |e: std::io::Error| Error::corrupt_state(format!("the compressed state does not inflate: {e}"));
    let mut inflated = Vec::new();
    zstd::Decoder::new(body).map_err(broken)?.take(MAX_INFLATED as u64 + 1).read_to_end(&mut inflated).map_err(broken)?;
    if inflated.len() > MAX_INFLATED {
        return Err(Error::new(Code::LimitExceeded, format!("the state inflates past {MAX_INFLATED} bytes")));
    }
    Ok((type_id, inflated.into(), None))
}

/// The type id of a row of states: what a table that keeps states has in its state column.
pub const ROW_OF_STATES: u8 = 255;

/// The states of a row's columns as one. Columns are sorted by name; an empty state is left out.
pub fn pack(mut columns: Vec<(String, Vec<u8>)>) -> Vec<u8> {
    columns.sort_unstable();
    let mut w = Writer::default();
    w.length(columns.len());
    for (name, state) in columns {
        w.bytes(name.as_bytes());
        w.bytes(&state);
    }
    seal(ROW_OF_STATES, 0, w.as_bytes())
}

/// The states that [`pack`] put together, by column.
///
/// # Errors
/// `not_a_state`, `corrupt_state`.
pub fn unpack(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let (type_id, body) = open(bytes)?;
    if type_id != ROW_OF_STATES {
        return Err(Error::new(Code::NotAState, "this state is not that of a row"));
    }
    let mut r = Reader::new(&body);
    let mut columns: Vec<(String, Vec<u8>)> = Vec::new();
    for _ in 0..r.length()? {
        let (name, state) = (r.text()?, r.bytes()?);
        if columns.last().is_some_and(|(last, _)| last.as_str() >= name) {
            return Err(Error::corrupt_state("the columns of the row of states are not in order"));
        }
        columns.push((name.to_owned(), state.to_vec()));
    }
    r.end()?;
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_envelopes_are_refused() {
        let good = seal(1, 0, b"body");
        assert_eq!(open(&good).expect("opens"), (1, b"body".as_slice().into()));
        for cut in 0..good.len() {
            assert!(open(&good[..cut]).is_err());
        }
        for i in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[i] ^= 1 << bit;
                assert!(open(&bad).is_err(), "byte {i} bit {bit}");
            }
        }
    }
}
