//! Values in their canonical bytes, compared without being built: what sets keep, so that a set takes little more memory than its
//! encoding.

use super::Value;
use crate::codec::{self, Reader, Writer};
use std::cell::Cell;
use std::cmp::Ordering;
use std::fmt::Write;

/// R2 between two values in their canonical bytes.
pub fn compare(a: &[u8], b: &[u8]) -> Ordering {
    if let (Some(x), Some(y)) = (codec::raw_bytes(a), codec::raw_bytes(b))
        && a[0] == b[0]
    {
        return x.cmp(y);
    }
    if a == b { Ordering::Equal } else { codec::compare(a, b) }
}

/// The value in its canonical bytes.
pub fn value(bytes: &[u8]) -> Value {
    Reader::new(bytes).value().expect("invariant: only whole values are packed")
}

/// The canonical text of the value in its canonical bytes.
pub fn show(bytes: &[u8], out: &mut String) {
    match codec::text(bytes) {
        Some(text) => out.push_str(text),
        None => write!(out, "{}", value(bytes)).expect("invariant: a string takes all"),
    }
}

/// Values one behind the other, and where each ends.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Packed {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Packed {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn start(&self, i: usize) -> usize {
        if i == 0 { 0 } else { self.ends[i - 1] as usize }
    }

    /// The bytes of value `i`.
    pub fn get(&self, i: usize) -> &[u8] {
        &self.bytes[self.start(i)..self.ends[i] as usize]
    }

    /// The bytes of each.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + Clone {
        (0..self.len()).map(|i| self.get(i))
    }

    /// Adds a value at the end.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let end = self.end();
        self.ends.push(end);
    }

    /// Where the last value ends.
    fn end(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("limit: the few values of a set take less than 4 GiB")
    }

    /// Puts a value in place `i`.
    pub fn insert(&mut self, i: usize, bytes: &[u8]) {
        let start = self.start(i);
        self.bytes.splice(start..start, bytes.iter().copied());
        self.end();
        let length = bytes.len() as u32;
        self.ends.insert(i, start as u32);
        self.ends[i..].iter_mut().for_each(|end| *end += length);
    }

    /// Where a value is among sorted ones, or would be.
    ///
    /// # Errors
    /// The place where it would be.
    pub fn search(&self, wanted: &[u8]) -> Result<usize, usize> {
        // Sets are often built in order: then the last decides at once.
        match self.len().checked_sub(1).map(|last| compare(self.get(last), wanted)) {
            None => return Err(0),
            Some(Ordering::Less) => return Err(self.len()),
            Some(Ordering::Equal) => return Ok(self.len() - 1),
            Some(Ordering::Greater) => {}
        }
        let (mut low, mut high) = (0, self.len() - 1);
        while low < high {
            let middle = (low + high) / 2;
            match compare(self.get(middle), wanted) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// The values from place `i`, which leave.
    pub fn split_off(&mut self, i: usize) -> Packed {
        let start = self.start(i);
        let mut ends = self.ends.split_off(i);
        ends.iter_mut().for_each(|end| *end -= start as u32);
        Packed { bytes: self.bytes.split_off(start), ends }
    }

    /// Gives back memory that nothing is in.
    pub fn shrink_to_fit(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    /// Memory held, in bytes.
    pub fn heap_size(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>()
    }

    /// All bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

thread_local! {
    // Taken while it is in use: what runs with the bytes of one value may ask for those of another.
    static BUFFER: Cell<Writer> = const { Cell::new(Writer::new()) };
}

fn with_buffer<T>(write: impl FnOnce(&mut Writer), run: impl FnOnce(&[u8]) -> T) -> T {
    let mut w = BUFFER.take();
    w.clear();
    write(&mut w);
    let result = run(w.as_bytes());
    BUFFER.set(w);
    result
}

/// The canonical bytes of a text, in a buffer that is used again.
pub fn with_text<T>(text: &str, run: impl FnOnce(&[u8]) -> T) -> T {
    with_buffer(|w| w.text(text), run)
}

/// The canonical bytes of a value, in a buffer that is used again.
pub fn with_bytes<T>(value: &Value, run: impl FnOnce(&[u8]) -> T) -> T {
    if let Value::Int(v) = value
        && let Ok(v) = i64::try_from(*v)
    {
        let (bytes, n) = codec::integer(v);
        return run(&bytes[..n]);
    }
    with_buffer(|w| w.value(value), run)
}
