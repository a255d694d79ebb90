//! Values as canonical bytes, read with no trust in any byte, and the envelope of states around them (docs/state-format.md).

mod envelope;

pub use envelope::*;

use crate::error::{Code, Error, Result};
use crate::value::{Value, canonical, packed};
use std::cmp::Ordering;
use std::sync::Arc;

/// Values nest no deeper than this.
pub const MAX_DEPTH: usize = 64;

/// That a value can be read back from a state, where it lies so many levels deep.
///
/// # Errors
/// `limit_exceeded`.
pub(crate) fn check_nesting(value: &Value, levels: usize) -> Result<()> {
    fn fits(value: &Value, left: usize) -> bool {
        match value {
            Value::List(items) => left > 0 && items.iter().all(|item| fits(item, left - 1)),
            Value::Struct(fields) => left > 0 && fields.iter().all(|(_, field)| fits(field, left - 1)),
            Value::Map(entries) => left > 0 && entries.iter().all(|(key, entry)| fits(key, left - 1) && fits(entry, left - 1)),
            _ => true,
        }
    }
    match fits(value, MAX_DEPTH - levels) {
        true => Ok(()),
        false => Err(Error::new(Code::LimitExceeded, format!("values nest deeper than {MAX_DEPTH}"))),
    }
}

mod tag {
    pub const NULL: u8 = 0;
    pub const FALSE: u8 = 1;
    pub const TRUE: u8 = 2;
    pub const INT: u8 = 3;
    pub const FLOAT: u8 = 4;
    pub const DECIMAL: u8 = 5;
    pub const TEXT: u8 = 6;
    pub const BYTES: u8 = 7;
    pub const DATE: u8 = 8;
    pub const TIME: u8 = 9;
    pub const TIMESTAMP: u8 = 10;
    pub const TIMESTAMP_ZONED: u8 = 11;
    pub const INTERVAL: u8 = 12;
    pub const UUID: u8 = 13;
    pub const LIST: u8 = 14;
    pub const STRUCT: u8 = 15;
    pub const MAP: u8 = 16;
}

/// Writes a body.
#[derive(Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// A writer of nothing yet.
    pub const fn new() -> Writer {
        Writer { out: Vec::new() }
    }

    /// Forgets what was written, to be used again.
    pub fn clear(&mut self) {
        self.out.clear();
    }

    /// Makes room for so many bytes more, and for an envelope.
    pub fn reserve(&mut self, bytes: usize) {
        self.out.reserve(bytes + 32);
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// A tagged text.
    pub fn text(&mut self, text: &str) {
        self.byte(tag::TEXT);
        self.bytes(text.as_bytes());
    }

    /// Tagged bytes.
    pub fn blob(&mut self, bytes: &[u8]) {
        self.byte(tag::BYTES);
        self.bytes(bytes);
    }

    /// The head of a tagged list, whose items follow.
    pub(crate) fn list(&mut self, items: usize) {
        self.byte(tag::LIST);
        self.length(items);
    }

    /// The head of a tagged struct, whose fields follow: a name and a value each, sorted by name.
    pub(crate) fn record(&mut self, fields: usize) {
        self.byte(tag::STRUCT);
        self.length(fields);
    }

    /// What was written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.out
    }

    /// One byte.
    pub fn byte(&mut self, b: u8) {
        self.out.push(b);
    }

    /// An unsigned LEB128 integer.
    pub fn varint(&mut self, mut v: u128) {
        while v >= 0x80 {
            self.out.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.out.push(v as u8);
    }

    /// A length.
    pub fn length(&mut self, v: usize) {
        self.varint(v as u128);
    }

    /// A signed integer, zig-zag.
    pub fn signed(&mut self, v: i128) {
        self.varint(((v << 1) ^ (v >> 127)) as u128);
    }

    /// A length and bytes.
    pub fn bytes(&mut self, b: &[u8]) {
        self.length(b.len());
        self.out.extend_from_slice(b);
    }

    /// A tagged value.
    pub fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.byte(tag::NULL),
            Value::Bool(v) => self.byte(if *v { tag::TRUE } else { tag::FALSE }),
            Value::Int(v) => {
                self.byte(tag::INT);
                self.signed(*v);
            }
            Value::Float(v) => {
                self.byte(tag::FLOAT);
                self.out.extend(canonical(*v).to_bits().to_le_bytes());
            }
            Value::Decimal { unscaled, scale } => {
                self.byte(tag::DECIMAL);
                self.byte(*scale);
                self.signed(*unscaled);
            }
            Value::Text(v) => self.text(v),
            Value::Bytes(v) => self.blob(v),
            Value::Date(v) => {
                self.byte(tag::DATE);
                self.signed(i128::from(*v));
            }
            Value::Time(v) => {
                self.byte(tag::TIME);
                self.signed(i128::from(*v));
            }
            Value::Timestamp { nanos, zoned } => {
                self.byte(if *zoned { tag::TIMESTAMP_ZONED } else { tag::TIMESTAMP });
                self.signed(*nanos);
            }
            Value::Interval { months, days, nanos } => {
                self.byte(tag::INTERVAL);
                self.signed(i128::from(*months));
                self.signed(i128::from(*days));
                self.signed(i128::from(*nanos));
            }
            Value::Uuid(v) => {
                self.byte(tag::UUID);
                self.out.extend(v);
            }
            Value::List(items) => {
                self.list(items.len());
                items.iter().for_each(|item| self.value(item));
            }
            Value::Struct(fields) => {
                self.record(fields.len());
                for (name, field) in fields {
                    self.bytes(name.as_bytes());
                    self.value(field);
                }
            }
            Value::Map(entries) => {
                self.byte(tag::MAP);
                self.length(entries.len());
                for (key, entry) in entries {
                    self.value(key);
                    self.value(entry);
                }
            }
        }
    }

    /// A count and that many values.
    pub fn values(&mut self, values: &[Value]) {
        self.length(values.len());
        values.iter().for_each(|v| self.value(v));
    }
}

/// Reads a body. Every length is checked against what is left before anything is allocated.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    depth: usize,
}

impl<'a> Reader<'a> {
    /// A reader over a body.
    pub fn new(body: &'a [u8]) -> Reader<'a> {
        Reader::within(body, 0)
    }

    /// A reader over the body of a state that lies inside another, at this depth.
    pub fn within(body: &'a [u8], depth: usize) -> Reader<'a> {
        Reader { rest: body, depth }
    }

    /// How deep what is read lies inside other values and states.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Takes `n` bytes.
    ///
    /// # Errors
    /// `corrupt_state` if there are fewer.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        if n > self.rest.len() {
            return Err(Error::corrupt_state(format!("the state ends early: {n} bytes wanted, {} left", self.rest.len())));
        }
        let (head, tail) = self.rest.split_at(n);
        self.rest = tail;
        Ok(head)
    }

    /// One byte.
    ///
    /// # Errors
    /// `corrupt_state` at the end.
    pub fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned LEB128 integer in its shortest form.
    ///
    /// # Errors
    /// `corrupt_state` if it is over-long or does not end.
    #[inline]
    pub fn varint(&mut self) -> Result<u128> {
        // Most are small.
        match self.rest.split_first() {
            Some((&small @ 0..0x80, rest)) => {
                self.rest = rest;
                Ok(u128::from(small))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u128> {
        let mut v = 0u128;
        for shift in (0..128).step_by(7) {
            let b = self.byte()?;
            let bits = u128::from(b & 0x7f);
            if (shift == 126 && bits > 3) || (b == 0 && shift > 0) {
                return Err(Error::corrupt_state("an integer in the state is over-long"));
            }
            v |= bits << shift;
            if b < 0x80 {
                return Ok(v);
            }
        }
        Err(Error::corrupt_state("an integer in the state does not end"))
    }

    /// A count of things that take at least one byte each.
    ///
    /// # Errors
    /// `corrupt_state` if that many cannot follow.
    pub fn length(&mut self) -> Result<usize> {
        let n = self.varint()?;
        match usize::try_from(n) {
            Ok(n) if n <= self.rest.len() => Ok(n),
            _ => Err(Error::corrupt_state(format!("the state claims {n} entries, {} bytes are left", self.rest.len()))),
        }
    }

    /// A signed integer, zig-zag.
    ///
    /// # Errors
    /// As [`Reader::varint`].
    pub fn signed(&mut self) -> Result<i128> {
        let v = self.varint()?;
        Ok((v >> 1) as i128 ^ -((v & 1) as i128))
    }

    fn narrow<T: TryFrom<i128>>(&mut self) -> Result<T> {
        T::try_from(self.signed()?).map_err(|_| Error::corrupt_state("an integer in the state is out of range"))
    }

    /// A length and bytes.
    ///
    /// # Errors
    /// `corrupt_state` if they end early.
    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let n = self.length()?;
        self.take(n)
    }

    /// A length and UTF-8 text.
    ///
    /// # Errors
    /// `corrupt_state` if it ends early or is not UTF-8.
    pub fn text(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Error::corrupt_state("text in the state is not UTF-8"))
    }

    /// A tagged value.
    ///
    /// # Errors
    /// `corrupt_state` for anything that [`Writer::value`] would not have written.
    pub fn value(&mut self) -> Result<Value> {
        let tag = self.byte()?;
        if self.depth >= MAX_DEPTH {
            return Err(Error::corrupt_state(format!("values in the state nest deeper than {MAX_DEPTH}")));
        }
        Ok(match tag {
            tag::NULL => Value::Null,
            tag::FALSE => Value::Bool(false),
            tag::TRUE => Value::Bool(true),
            tag::INT => Value::Int(self.signed()?),
            tag::FLOAT => {
                let bits = self.take(8)?;
                Value::Float(f64::from_bits(u64::from_le_bytes(bits.try_into().expect("invariant: eight bytes"))))
            }
            tag::DECIMAL => {
                let scale = self.byte()?;
                if scale > 38 {
                    return Err(Error::corrupt_state("a decimal in the state has more than 38 digits behind the point"));
                }
                Value::Decimal { scale, unscaled: self.signed()? }
            }
            tag::TEXT => Value::text(self.text()?),
            tag::BYTES => Value::Bytes(self.bytes()?.into()),
            tag::DATE => Value::Date(self.narrow()?),
            tag::TIME => Value::Time(self.narrow()?),
            tag::TIMESTAMP => Value::Timestamp { nanos: self.signed()?, zoned: false },
            tag::TIMESTAMP_ZONED => Value::Timestamp { nanos: self.signed()?, zoned: true },
            tag::INTERVAL => Value::Interval { months: self.narrow()?, days: self.narrow()?, nanos: self.narrow()? },
            tag::UUID => Value::Uuid(self.take(16)?.try_into().expect("invariant: sixteen bytes")),
            tag::LIST => {
                self.depth += 1;
                let items = self.values()?;
                self.depth -= 1;
                Value::List(items)
            }
            tag::STRUCT => {
                self.depth += 1;
                let n = self.length()?;
                let mut fields: Vec<(Arc<str>, Value)> = Vec::new();
                for _ in 0..n {
                    fields.push((self.text()?.into(), self.value()?));
                }
                self.depth -= 1;
                if fields.windows(2).any(|w| w[0].0 >= w[1].0) {
                    return Err(Error::corrupt_state("the fields of a struct in the state are not in order"));
                }
                Value::Struct(fields)
            }
            tag::MAP => {
                self.depth += 1;
                let n = self.length()?;
                let mut entries: Vec<(Value, Value)> = Vec::new();
                for _ in 0..n {
                    entries.push((self.value()?, self.value()?));
                }
                self.depth -= 1;
                if entries.windows(2).any(|w| w[0].0 >= w[1].0) {
                    return Err(Error::corrupt_state("the entries of a map in the state are not in order"));
                }
                Value::Map(entries)
            }
            other => return Err(Error::corrupt_state(format!("unknown value tag {other}"))),
        })
    }

    /// The bytes of a tagged value, held to its canonical form without being built.
    ///
    /// # Errors
    /// As [`Reader::value`].
    pub fn skip(&mut self) -> Result<&'a [u8]> {
        let before = self.rest;
        let tag = self.byte()?;
        if self.depth >= MAX_DEPTH {
            return Err(Error::corrupt_state(format!("values in the state nest deeper than {MAX_DEPTH}")));
        }
        match tag {
            tag::TEXT => drop(self.text()?),
            tag::BYTES => drop(self.bytes()?),
            tag::LIST => {
                self.depth += 1;
                for _ in 0..self.length()? {
                    self.skip()?;
                }
                self.depth -= 1;
            }
            tag::STRUCT => {
                self.depth += 1;
                let mut last: Option<&str> = None;
                for _ in 0..self.length()? {
                    let name = self.text()?;
                    if last.replace(name).is_some_and(|last| last >= name) {
                        return Err(Error::corrupt_state("the fields of a struct in the state are not in order"));
                    }
                    self.skip()?;
                }
                self.depth -= 1;
            }
            tag::MAP => {
                self.depth += 1;
                let mut last: Option<&[u8]> = None;
                for _ in 0..self.length()? {
                    let key = self.skip()?;
                    if last.replace(key).is_some_and(|last| packed::compare(last, key) != Ordering::Less) {
                        return Err(Error::corrupt_state("the entries of a map in the state are not in order"));
                    }
                    self.skip()?;
                }
                self.depth -= 1;
            }
            // A scalar is small: built, and held against what it would be written as.
            _ => {
                self.rest = before;
                let value = self.value()?;
                let length = before.len() - self.rest.len();
                if !packed::with_bytes(&value, |bytes| bytes == &before[..length]) {
                    return Err(Error::corrupt_state("a value in the state is not in canonical form"));
                }
            }
        }
        Ok(&before[..before.len() - self.rest.len()])
    }

    /// The values of a struct's fields of these names, all in canonical form; NULL for one that is not there.
    ///
    /// # Errors
    /// `corrupt_state` if it is no struct.
    pub(crate) fn fields<const N: usize>(&mut self, names: [&str; N]) -> Result<[&'a [u8]; N]> {
        if self.byte()? != tag::STRUCT {
            return Err(Error::corrupt_state("a struct was to be in the state"));
        }
        let mut found = [[tag::NULL].as_slice(); N];
        for _ in 0..self.length()? {
            let name = self.text()?;
            let value = self.skip()?;
            if let Some(i) = names.iter().position(|n| *n == name) {
                found[i] = value;
            }
        }
        Ok(found)
    }

    /// A count and that many values.
    ///
    /// # Errors
    /// As [`Reader::value`].
    pub fn values(&mut self) -> Result<Vec<Value>> {
        let n = self.length()?;
        let mut values = Vec::new();
        for _ in 0..n {
            values.push(self.value()?);
        }
        Ok(values)
    }

    /// Says that the body is read to its end.
    ///
    /// # Errors
    /// `corrupt_state` if bytes are left.
    pub fn end(&self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Error::corrupt_state(format!("{} bytes follow the end of the state", self.rest.len())))
        }
    }
}

/// The content of a text or of bytes in canonical form, if the value is one.
pub(crate) fn raw_bytes(value: &[u8]) -> Option<&[u8]> {
    let (&(tag::TEXT | tag::BYTES), rest) = value.split_first()? else { return None };
    let length_bytes = rest.iter().position(|b| *b < 0x80)? + 1;
    rest.get(length_bytes..)
}

/// The text in canonical form, if the value is one.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    let content = raw_bytes(value).filter(|_| value[0] == tag::TEXT)?;
    std::str::from_utf8(content).ok()
}

/// The values of a struct in canonical form, if the value is one.
///
/// # Errors
/// `corrupt_state` if it is broken.
pub(crate) fn parts(value: &[u8]) -> Result<Option<Vec<&[u8]>>> {
    let mut r = Reader::new(value);
    if r.byte()? != tag::STRUCT {
        return Ok(None);
    }
    let mut parts = Vec::new();
    for _ in 0..r.length()? {
        r.bytes()?;
        parts.push(r.skip()?);
    }
    Ok(Some(parts))
}

/// R2 between two values in canonical form that have other bytes, and so are not equal: nothing but their scalars is built.
pub(crate) fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let walk = |worth| compare_next(&mut Reader::new(a), &mut Reader::new(b), worth).expect("invariant: the values are whole");
    walk(true).then_with(|| walk(false))
}

/// The order of the next value of each, with numbers of equal worth as equal or not. Where it is equal both are read to their ends.
fn compare_next(a: &mut Reader<'_>, b: &mut Reader<'_>, worth: bool) -> Result<Ordering> {
    let tag = match (a.rest.first(), b.rest.first()) {
        (Some(x), Some(y)) if x == y => *x,
        _ => 0,
    };
    match tag {
        tag::TEXT | tag::BYTES => {
            a.byte()?;
            b.byte()?;
            Ok(a.bytes()?.cmp(b.bytes()?))
        }
        tag::LIST | tag::STRUCT | tag::MAP => {
            a.byte()?;
            b.byte()?;
            let (n, m) = (a.length()?, b.length()?);
            for _ in 0..n.min(m) {
                let mut order = if tag == tag::STRUCT { a.bytes()?.cmp(b.bytes()?) } else { Ordering::Equal };
                if order.is_eq() {
                    order = compare_next(a, b, worth)?;
                }
                if order.is_eq() && tag == tag::MAP {
                    order = compare_next(a, b, worth)?;
                }
                if order.is_ne() {
                    return Ok(order);
                }
            }
            Ok(n.cmp(&m))
        }
        _ => {
            let (a, b) = (a.value()?, b.value()?);
            Ok(if worth { a.compare_worth(&b) } else { a.cmp(&b) })
        }
    }
}

/// What [`Writer::value`] writes of an integer, and how much of it there is: for places that have no writer.
pub(crate) fn integer(v: i64) -> ([u8; 11], usize) {
    let (mut out, mut n) = ([0; 11], 1);
    out[0] = tag::INT;
    let mut rest = ((v << 1) ^ (v >> 63)) as u64;
    while rest >= 0x80 {
        out[n] = rest as u8 | 0x80;
        rest >>= 7;
        n += 1;
    }
    out[n] = rest as u8;
    (out, n + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn integers_are_written_alike_without_a_writer() {
        for v in [0, 1, -1, 63, 64, -64, -65, 300, i64::MAX, i64::MIN] {
            let mut w = Writer::default();
            w.value(&Value::Int(v.into()));
            let (bytes, n) = integer(v);
            assert_eq!(w.as_bytes(), &bytes[..n], "{v}");
        }
    }

    #[test]
    fn values_read_back_equal() {
        let values = [
            Value::Null,
            Value::Bool(true),
            Value::Int(i128::MIN),
            Value::Int(i128::MAX),
            Value::float(f64::NAN),
            Value::Decimal { unscaled: -1250, scale: 2 },
            Value::text("José 🚀"),
            Value::Bytes([0, 1].into()),
            Value::Date(-1),
            Value::Time(1),
            Value::Timestamp { nanos: -5, zoned: true },
            Value::Interval { months: 1, days: -2, nanos: 3 },
            Value::Uuid([7; 16]),
            Value::List(vec![Value::record(vec![("b".into(), Value::Null), ("a".into(), Value::Int(1))])]),
            Value::map(vec![(Value::text("k"), Value::Int(2))]),
        ];
        let mut w = Writer::default();
        w.values(&values);
        let mut r = Reader::new(w.as_bytes());
        assert_eq!(r.values().expect("reads"), values);
        r.end().expect("all read");
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_read() {
        let mut deep = [tag::LIST, 1].repeat(100);
        deep.push(0);
        assert_eq!(Reader::new(&deep).value().expect_err("too deep").code, Code::CorruptState);
        let huge = [tag::LIST, 0xff, 0xff, 0xff, 0xff, 0x0f];
        assert_eq!(Reader::new(&huge).value().expect_err("too long").code, Code::CorruptState);
    }
}
