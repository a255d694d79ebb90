//! `hll`: HyperLogLog.

use crate::aggregate::{Call, Groups, State};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::sketch::{Sketch, Sketched, corrupt, differ, guarded, murmur, number};
use crate::types::Type;
use crate::value::Value;
use datasketches::hll::{HllSketch, HllType, HllUnion};

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Sketched<Hll>>());
}

/// Bits of a coupon that say which register it is for; those above say the value.
const ADDRESS: u32 = 26;

/// The values seen, as coupons while they are few, then as registers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hll {
    lg_k: u8,
    kept: Kept,
}

#[derive(Debug, Clone, PartialEq)]
enum Kept {
    /// Ascending.
    Coupons(Vec<u32>),
    Registers(Box<[u8]>),
}

impl Hll {
    pub(crate) fn new(lg_k: u8) -> Hll {
        Hll { lg_k, kept: Kept::Coupons(Vec::new()) }
    }

    /// How many coupons are kept before they become registers: as many as DataSketches keeps, so that the set alone decides.
    pub(crate) fn most_coupons(lg_k: u8) -> usize {
        if lg_k < 8 { 7 } else { 3 << (lg_k - 5) }
    }

    pub(crate) fn offer(&mut self, coupon: u32) {
        match &mut self.kept {
            Kept::Registers(registers) => raise(registers, coupon),
            Kept::Coupons(coupons) => {
                if let Err(at) = coupons.binary_search(&coupon) {
                    coupons.insert(at, coupon);
                    if coupons.len() > Hll::most_coupons(self.lg_k) {
                        let mut registers = vec![0; 1 << self.lg_k].into_boxed_slice();
                        coupons.iter().for_each(|coupon| raise(&mut registers, *coupon));
                        self.kept = Kept::Registers(registers);
                    }
                }
            }
        }
    }

    pub(crate) fn from_image(image: &[u8]) -> Result<Hll> {
        let wide = guarded(|| {
            let sketch = HllSketch::deserialize(image).map_err(corrupt)?;
            let mut union = HllUnion::new(sketch.lg_config_k()).map_err(corrupt)?;
            union.update(&sketch);
            Ok(union.to_sketch(HllType::Hll8).serialize())
        })?;
        Hll::read(&wide)
    }

    /// Reads coupons in any order, or registers of eight bits.
    fn read(image: &[u8]) -> Result<Hll> {
        let short = || corrupt("it is cut off");
        let (head, rest) = image.split_at_checked(8).ok_or_else(short)?;
        let &[_, _, _, lg_k @ 4..=21, _, _, few, mode] = head else { return Err(corrupt("the precision is not from 4 to 21")) };
        let number = |bytes: &[u8]| bytes.first_chunk().copied().map(u32::from_le_bytes).ok_or_else(short);
        let (count, coupons) = match mode {
            8 => (usize::from(few), rest),
            9 => (number(rest)? as usize, &rest[4..]),
            10 => {
                let registers = rest.get(32..).filter(|r| r.len() == 1 << lg_k).ok_or_else(short)?;
                if registers.iter().any(|r| *r > 63) {
                    return Err(corrupt("a register is out of range"));
                }
                return Ok(Hll { lg_k, kept: Kept::Registers(registers.into()) });
            }
            _ => return Err(corrupt("its mode is unknown")),
        };
        if coupons.len() / 4 < count {
            return Err(short());
        }
        let mut hll = Hll::new(lg_k);
        for coupon in coupons.chunks_exact(4).take(count) {
            match number(coupon)? {
                coupon if coupon >> ADDRESS == 0 => return Err(corrupt("a coupon is empty")),
                coupon => hll.offer(coupon),
            }
        }
        Ok(hll)
    }

    /// The estimate as a whole number.
    pub(crate) fn distinct(&self) -> Result<i64> {
        Ok(match &self.kept {
            // The table of DataSketches for coupons adds less than a half to so few.
            Kept::Coupons(coupons) if coupons.len() <= 4096 => coupons.len() as i64,
            _ => self.estimate(0, 1)?.round() as i64,
        })
    }

    /// The estimate, or a bound of it.
    pub(crate) fn estimate(&self, side: i8, deviations: u8) -> Result<f64> {
        let sketch = HllSketch::deserialize(&self.image()).map_err(corrupt)?;
        let deviations = crate::sketch::deviations(deviations);
        Ok(match side {
            -1 => sketch.lower_bound(deviations),
            1 => sketch.upper_bound(deviations),
            _ => sketch.composite_estimate(),
        })
    }
}

/// The coupon of an item: its register, and the zeros that lead its hash.
pub(crate) fn coupon_of(item: &[u8]) -> u32 {
    let (low, high) = murmur(item);
    let value = high.leading_zeros().min(62) + 1;
    value << ADDRESS | (low as u32 & ((1 << ADDRESS) - 1))
}

/// Writes the image of coupons, which ascend.
pub(crate) fn coupon_image(lg_k: u8, coupons: &[u32], out: &mut Vec<u8>) {
    const COMPACT: u8 = 8;
    let listed = coupons.len() < 8;
    // The least table of a power of two that is at most three quarters full.
    let lg_table = if listed { 3 } else { (coupons.len() * 4).div_ceil(3).next_power_of_two().trailing_zeros().max(5) as u8 };
    let empty = if coupons.is_empty() { 4 } else { 0 };
    let (longs, count, mode) = if listed { (2, coupons.len() as u8, 8) } else { (3, 0, 9) };
    out.extend([longs, 1, 7, lg_k, lg_table, COMPACT | empty, count, mode]);
    if !listed {
        out.extend((coupons.len() as u32).to_le_bytes());
    }
    coupons.iter().for_each(|coupon| out.extend(coupon.to_le_bytes()));
}

fn raise(registers: &mut [u8], coupon: u32) {
    let slot = coupon as usize & (registers.len() - 1);
    registers[slot] = registers[slot].max((coupon >> ADDRESS) as u8);
}

impl Sketch for Hll {
    const SPEC: Spec = Spec {
        name: "hll",
        aliases: &["hyperloglog"],
        type_id: 34,
        since: "0.1.0",
        title: "about how many distinct values there are, in a few kilobytes",
        doc: "A HyperLogLog sketch of Apache DataSketches: `2^precision` registers, and the values themselves (as coupons) while they are few. The \
              standard error is about `1.04 / sqrt(2^precision)`: 1.6 % at 12. A sketch is a set: repeated values, and sketches that overlap, \
              count once. `crdt_to_sketch` gives the bytes that Spark, Druid and BigQuery read.",
        inputs: &[Input::Value],
        args: &[Arg { name: "precision", kind: ArgKind::Number, doc: "lg of the number of registers, from 4 to 21; default 12" }],
        takes: "any type",
        selects: false,
        closed: |_| false,
        example: ("SELECT crdt_hll(v) AS n FROM (VALUES (1, 'a'), (2, 'b'), (3, 'a'), (4, 'c')) AS t(id, v)", "3"),
        source: "Flajolet, Fusy, Gandouet, Meunier 2007, HyperLogLog; Heule, Nunkesser, Hall 2013; Apache DataSketches (HLL, image of 8 bits)",
        samples: || {
            let small = |ty| Call::new(vec![ty]).with_arg("precision", Value::Int(4));
            vec![Call::new(vec![Type::Text]), small(Type::INT64), small(Type::Float64), small(Type::Uuid)]
        },
    };

    fn configured(call: &Call) -> Result<Self> {
        Ok(Hll::new(number(call, "precision", 12, 4..=21)? as u8))
    }

    fn add(&mut self, item: &[u8]) {
        self.offer(coupon_of(item));
    }

    fn fast(&self) -> Option<Box<dyn Groups>> {
        Some(crate::fast::coupons::groups(self.lg_k))
    }

    /// The format is at <https://datasketches.apache.org/docs/HLL/HllSketches.html>; coupons ascend, and the flag says that there is no history.
    fn image(&self) -> Vec<u8> {
        match &self.kept {
            Kept::Coupons(coupons) => {
                let mut out = Vec::with_capacity(12 + 4 * coupons.len());
                coupon_image(self.lg_k, coupons, &mut out);
                out
            }
            Kept::Registers(registers) => {
                const OUT_OF_ORDER: u8 = 16;
                let zeros = registers.iter().filter(|r| **r == 0).count() as u32;
                let sum = |high: bool| -> f64 {
                    registers.iter().filter(|r| (**r >= 32) == high).map(|r| 1.0 / (1u64 << r) as f64).sum()
                };
                let mut out = vec![10, 1, 7, self.lg_k, 0, OUT_OF_ORDER, 0, 10];
                [0.0, sum(false), sum(true)].iter().for_each(|v: &f64| out.extend(v.to_le_bytes()));
                out.extend(zeros.to_le_bytes());
                out.extend([0; 4]);
                out.extend(registers);
                out
            }
        }
    }
}

impl State for Hll {
    fn join(&mut self, other: &Self) -> Result<()> {
        if self.lg_k != other.lg_k {
            return Err(differ("sketch", "precision", self.lg_k, other.lg_k));
        }
        match (&mut self.kept, &other.kept) {
            (_, Kept::Coupons(coupons)) => coupons.iter().for_each(|coupon| self.offer(*coupon)),
            (Kept::Registers(own), Kept::Registers(registers)) => {
                own.iter_mut().zip(registers).for_each(|(own, other)| *own = (*own).max(*other));
            }
            (Kept::Coupons(coupons), Kept::Registers(registers)) => {
                let mut registers = registers.clone();
                coupons.iter().for_each(|coupon| raise(&mut registers, *coupon));
                self.kept = Kept::Registers(registers);
            }
        }
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(Value::Int(self.distinct()?.into()))
    }

    fn bottom(&self) -> Self {
        Hll::new(self.lg_k)
    }

    fn delta(&self, since: &Self) -> Self {
        match (&self.kept, &since.kept) {
            (Kept::Coupons(own), Kept::Coupons(known)) => {
                let news = own.iter().filter(|coupon| known.binary_search(coupon).is_err()).copied().collect();
                Hll { lg_k: self.lg_k, kept: Kept::Coupons(news) }
            }
            _ => self.clone(),
        }
    }

    fn encode(&self, w: &mut Writer) {
        w.bytes(&self.image());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let hll = Hll::read(r.bytes()?)?;
        match &hll.kept {
            Kept::Registers(registers) if registers.iter().all(|r| *r == 0) => Err(Error::corrupt_state("registers without a value")),
            _ => Ok(hll),
        }
    }

    fn heap_size(&self) -> usize {
        match &self.kept {
            Kept::Coupons(coupons) => 4 * coupons.capacity(),
            Kept::Registers(registers) => registers.len(),
        }
    }

    fn info(&self) -> Value {
        let bound = |side| self.estimate(side, 2).map_or(Value::Null, Value::float);
        let (form, kept) = match &self.kept {
            Kept::Coupons(coupons) => ("coupons", coupons.len()),
            Kept::Registers(registers) => ("registers", registers.len()),
        };
        Value::record(vec![
            ("precision".into(), Value::Int(self.lg_k.into())),
            ("form".into(), Value::text(form)),
            ("kept".into(), Value::Int(kept as i128)),
            ("estimate".into(), bound(0)),
            ("lower_bound".into(), bound(-1)),
            ("upper_bound".into(), bound(1)),
        ])
    }
}
