//! `hll_md5`, `bloom_md5`, `countmin_md5`: sketches of the earlier Python library, out of its frames. It hashes with MD5 over an item's printed
//! form, so that they join only with their own kind.

use crate::aggregate::{Call, State, Strategy, bytes_of};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::frames;
use crate::types::Type;
use crate::value::Value;
use std::fmt::Debug;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.extend([Entry::of::<OfFrames<Hll>>(), Entry::of::<OfFrames<Bloom>>(), Entry::of::<OfFrames<CountMin>>()]);
}

/// What the earlier library's sketches have in common.
pub(crate) trait Sketch: Debug + Clone + PartialEq + Send + Sync + 'static {
    const SPEC: Spec;

    /// The sketch in a frame.
    fn of_frame(frame: &[u8]) -> Result<Self>;

    /// What must be the same for two to join.
    fn configuration(&self) -> String;

    fn join(&mut self, other: &Self);

    fn value(&self) -> Value;

    fn encode(&self, w: &mut Writer);

    fn decode(r: &mut Reader<'_>) -> Result<Self>;

    fn heap_size(&self) -> usize;

    fn info(&self) -> Value;
}

/// A strategy over frames.
#[derive(Debug)]
pub(crate) struct OfFrames<S>(std::marker::PhantomData<S>);

/// A sketch, once there is one: until then its size is not known.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Joined<S>(pub(crate) Option<S>);

impl<S: Sketch> Strategy for OfFrames<S> {
    const SPEC: Spec = S::SPEC;
    type State = Joined<S>;

    fn configure(call: &Call) -> Result<Self> {
        match call.value_type() {
            Type::Bytes | Type::Null => Ok(OfFrames(std::marker::PhantomData)),
            other => Err(Error::type_mismatch(format!("`{}` takes frames, which are bytes, not {other}", S::SPEC.name))),
        }
    }

    fn result_type(&self) -> Type {
        Type::INT64
    }

    fn empty(&self) -> Joined<S> {
        Joined(None)
    }

    fn update(&self, state: &mut Joined<S>, row: &[Value]) -> Result<()> {
        match bytes_of(&row[0])? {
            Some(frame) => state.join(&Joined(Some(S::of_frame(frame)?))),
            None => Ok(()),
        }
    }
}

impl<S: Sketch> State for Joined<S> {
    fn join(&mut self, other: &Self) -> Result<()> {
        match (&mut self.0, &other.0) {
            (Some(own), Some(other)) => {
                let (a, b) = (own.configuration(), other.configuration());
                if a != b {
                    return Err(Error::type_mismatch(format!("a sketch of {a} cannot join one of {b}")));
                }
                own.join(other);
            }
            (own @ None, other) => own.clone_from(other),
            (_, None) => {}
        }
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(self.0.as_ref().map_or(Value::Null, S::value))
    }

    fn bottom(&self) -> Self {
        Joined(None)
    }

    fn encode(&self, w: &mut Writer) {
        w.byte(self.0.is_some().into());
        self.0.iter().for_each(|sketch| sketch.encode(w));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        match r.byte()? {
            0 => Ok(Joined(None)),
            1 => S::decode(r).map(|sketch| Joined(Some(sketch))),
            _ => Err(Error::corrupt_state("the state holds neither a sketch nor none")),
        }
    }

    fn heap_size(&self) -> usize {
        self.0.as_ref().map_or(0, S::heap_size)
    }

    fn info(&self) -> Value {
        self.0.as_ref().map_or(Value::Null, S::info)
    }
}

fn int(n: u64) -> Value {
    Value::Int(n.into())
}

/// A whole number from a body.
fn number(r: &mut Reader<'_>) -> Result<u64> {
    u64::try_from(r.varint()?).map_err(|_| Error::corrupt_state("a number of the sketch is out of range"))
}

/// The registers of a HyperLogLog.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hll {
    pub(crate) precision: u8,
    pub(crate) registers: Vec<u8>,
}

impl Hll {
    pub(crate) fn check(self) -> Result<Hll> {
        let whole = (4..=18).contains(&self.precision) && self.registers.len() == 1 << self.precision;
        if whole && self.registers.iter().all(|r| *r <= 64) {
            Ok(self)
        } else {
            Err(Error::corrupt_state("the registers of the HyperLogLog are not those of its precision"))
        }
    }
}

impl Sketch for Hll {
    const SPEC: Spec = Spec {
        name: "hll_md5",
        aliases: &[],
        type_id: 49,
        since: "0.1.0",
        title: "HyperLogLogs of the earlier Python library, out of its frames",
        doc: "Rows are frames of type 0x30; the greatest of each register counts, and the value is about how many distinct items were added. The \
              items were hashed with MD5, so these never join with `hll`: count anew from the items for that.",
        inputs: &[Input::Frame],
        args: &[],
        takes: "frames of a HyperLogLog",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_hll_md5(X'43524454000130000000005908000000030500000004747970650500000003686c6c0500000009707265636973696f6e0904050000000972656769737465727307000000100900090109000900090009000900090009000900090009000900090009000900') AS items",
            "1",
        ),
        source: "Flajolet, Fusy, Gandouet, Meunier 2007, HyperLogLog; the frames are in docs/state-format.md",
        samples: || vec![Call::new(vec![Type::Bytes])],
    };

    fn of_frame(frame: &[u8]) -> Result<Self> {
        frames::hll(frame)
    }

    fn configuration(&self) -> String {
        format!("precision {}", self.precision)
    }

    fn join(&mut self, other: &Self) {
        self.registers.iter_mut().zip(&other.registers).for_each(|(own, other)| *own = (*own).max(*other));
    }

    /// The estimate of the paper, with linear counting while it is small.
    fn value(&self) -> Value {
        let m = self.registers.len() as f64;
        let alpha = match self.precision {
            4 => 0.673,
            5 => 0.697,
            6 => 0.709,
            _ => 0.7213 / (1.0 + 1.079 / m),
        };
        let sum: f64 = self.registers.iter().map(|r| (-f64::from(*r)).exp2()).sum();
        let zeros = self.registers.iter().filter(|r| **r == 0).count() as f64;
        let estimate = alpha * m * m / sum;
        let estimate = if estimate <= 2.5 * m && zeros > 0.0 { m * (m / zeros).ln() } else { estimate };
        Value::Int(estimate.round() as i128)
    }

    fn encode(&self, w: &mut Writer) {
        w.byte(self.precision);
        w.raw(&self.registers);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let precision = r.byte()?;
        let registers = r.take(1usize.checked_shl(precision.into()).unwrap_or(usize::MAX))?.to_vec();
        Hll { precision, registers }.check()
    }

    fn heap_size(&self) -> usize {
        self.registers.capacity()
    }

    fn info(&self) -> Value {
        Value::record(vec![("precision".into(), int(self.precision.into())), ("estimate".into(), self.value())])
    }
}

/// The bits of a Bloom filter, and what it was made for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bloom {
    pub(crate) capacity: u64,
    pub(crate) rate: f64,
    pub(crate) size: u64,
    pub(crate) hashes: u64,
    pub(crate) bits: Vec<u8>,
    /// How many items one replica added.
    pub(crate) count: u64,
}

impl Bloom {
    pub(crate) fn check(self) -> Result<Bloom> {
        let whole = self.size > 0 && self.bits.len() as u64 == self.size.div_ceil(8) && self.hashes > 0;
        if whole && self.rate > 0.0 && self.rate < 1.0 {
            Ok(self)
        } else {
            Err(Error::corrupt_state("the bits of the Bloom filter are not those of its size"))
        }
    }
}

impl Sketch for Bloom {
    const SPEC: Spec = Spec {
        name: "bloom_md5",
        aliases: &[],
        type_id: 50,
        since: "0.1.0",
        title: "Bloom filters of the earlier Python library, out of its frames",
        doc: "Rows are frames of type 0x31; a bit that is set in one is set, the count of additions is the greatest of the joined ones, and the value is \
              about how many distinct items the bits hold. The items were hashed with MD5, so these never join with `bloom`.",
        inputs: &[Input::Frame],
        args: &[],
        takes: "frames of a Bloom filter",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_bloom_md5(X'43524454000131000000008208000000070500000004747970650500000005626c6f6f6d050000000863617061636974790903050000000766705f72617465043fe0000000000000050000000473697a650940050000000a6e756d5f686173686573090f0500000004626974730700000008094409440944094409440944094009440500000005636f756e740901') AS items",
            "1",
        ),
        source: "Bloom 1970; Swamidass, Baldi 2007 (the estimate); the frames are in docs/state-format.md",
        samples: || vec![Call::new(vec![Type::Bytes])],
    };

    fn of_frame(frame: &[u8]) -> Result<Self> {
        frames::bloom(frame)
    }

    fn configuration(&self) -> String {
        format!("{} bits and {} hashes for {} items at {}", self.size, self.hashes, self.capacity, self.rate)
    }

    fn join(&mut self, other: &Self) {
        self.bits.iter_mut().zip(&other.bits).for_each(|(own, other)| *own |= other);
        self.count = self.count.max(other.count);
    }

    fn value(&self) -> Value {
        let (size, set) = (self.size as f64, self.bits.iter().map(|b| b.count_ones()).sum::<u32>());
        // A full filter knows no number: as if one bit were free.
        let free = (1.0 - f64::from(set) / size).max(1.0 / size);
        Value::Int((-size / self.hashes as f64 * free.ln()).round() as i128)
    }

    fn encode(&self, w: &mut Writer) {
        w.varint(self.capacity.into());
        w.raw(&self.rate.to_le_bytes());
        w.varint(self.size.into());
        w.varint(self.hashes.into());
        w.varint(self.count.into());
        w.raw(&self.bits);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let capacity = number(r)?;
        let rate = f64::from_le_bytes(*r.take(8)?.first_chunk().expect("invariant: eight bytes"));
        let (size, hashes, count) = (number(r)?, number(r)?, number(r)?);
        let bits = r.take(usize::try_from(size.div_ceil(8)).unwrap_or(usize::MAX))?.to_vec();
        Bloom { capacity, rate, size, hashes, bits, count }.check()
    }

    fn heap_size(&self) -> usize {
        self.bits.capacity()
    }

    fn info(&self) -> Value {
        Value::record(vec![
            ("bits".into(), int(self.size)),
            ("hashes".into(), int(self.hashes)),
            ("added".into(), int(self.count)),
            ("estimate".into(), self.value()),
        ])
    }
}

/// The counts of a count-min sketch, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CountMin {
    pub(crate) width: u64,
    pub(crate) counts: Vec<u64>,
    pub(crate) total: u64,
}

impl CountMin {
    pub(crate) fn check(self) -> Result<CountMin> {
        if self.width > 0 && !self.counts.is_empty() && (self.counts.len() as u64).is_multiple_of(self.width) {
            Ok(self)
        } else {
            Err(Error::corrupt_state("the counts of the sketch are not those of its width and depth"))
        }
    }
}

impl Sketch for CountMin {
    const SPEC: Spec = Spec {
        name: "countmin_md5",
        aliases: &[],
        type_id: 51,
        since: "0.1.0",
        title: "count-min sketches of the earlier Python library, out of its frames",
        doc: "Rows are frames of type 0x32; the greatest of each count counts, so that frames of one stream at several times join to the last of them, \
              and a frame that comes twice adds nothing. The value is the greatest total. To add up what different replicas counted, count anew with \
              `countmin`, which knows its origins.",
        inputs: &[Input::Frame],
        args: &[],
        takes: "frames of a count-min sketch",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_countmin_md5(X'43524454000132000000005f08000000050500000004747970650500000003636d7305000000057769647468090305000000056465707468090205000000057461626c650700000002070000000309000900090107000000030900090009010500000005746f74616c0901') AS total",
            "1",
        ),
        source: "Cormode, Muthukrishnan 2005, An improved data stream summary; the frames are in docs/state-format.md",
        samples: || vec![Call::new(vec![Type::Bytes])],
    };

    fn of_frame(frame: &[u8]) -> Result<Self> {
        frames::count_min(frame)
    }

    fn configuration(&self) -> String {
        format!("width {} and depth {}", self.width, self.counts.len() as u64 / self.width)
    }

    fn join(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, other)| *own = (*own).max(*other));
        self.total = self.total.max(other.total);
    }

    fn value(&self) -> Value {
        int(self.total)
    }

    fn encode(&self, w: &mut Writer) {
        w.varint(self.width.into());
        w.varint(self.total.into());
        w.length(self.counts.len());
        self.counts.iter().for_each(|count| w.varint((*count).into()));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let (width, total, n) = (number(r)?, number(r)?, r.length()?);
        let mut counts = Vec::new();
        for _ in 0..n {
            counts.push(number(r)?);
        }
        CountMin { width, counts, total }.check()
    }

    fn heap_size(&self) -> usize {
        8 * self.counts.capacity()
    }

    fn info(&self) -> Value {
        Value::record(vec![
            ("width".into(), int(self.width)),
            ("depth".into(), int(self.counts.len() as u64 / self.width)),
            ("total".into(), int(self.total)),
        ])
    }
}
