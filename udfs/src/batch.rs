//! Borrowed typed columns: what every host builds from its own vectors without copying, and the owned columns that go back.

use crate::codec::Writer;
use crate::types::{Type, Unit};
use crate::value::{Value, canonical};
use std::sync::Arc;

/// Bits, least significant first (the layout of Arrow's and DuckDB's validity masks).
#[derive(Debug, Clone, Copy)]
pub struct Bits<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Bits<'a> {
    /// The bits from bit `offset` of `bytes` on.
    pub fn new(bytes: &'a [u8], offset: usize) -> Bits<'a> {
        Bits { bytes, offset }
    }

    /// Bit `i`.
    #[inline]
    pub fn get(&self, i: usize) -> bool {
        let i = i + self.offset;
        self.bytes[i >> 3] >> (i & 7) & 1 == 1
    }
}

/// Text or bytes of every row.
#[derive(Debug, Clone, Copy)]
pub enum Strings<'a> {
    /// Row `i` is `bytes[offsets[i]..offsets[i + 1]]`.
    Offsets32(&'a [i32], &'a [u8]),
    /// The same with wide offsets.
    Offsets64(&'a [i64], &'a [u8]),
    /// One slice a row, for hosts whose strings are pointers.
    Slices(&'a [&'a [u8]]),
}

impl<'a> Strings<'a> {
    /// The bytes of row `i`.
    #[inline]
    pub fn get(&self, i: usize) -> &'a [u8] {
        match self {
            Strings::Offsets32(o, b) => &b[o[i] as usize..o[i + 1] as usize],
            Strings::Offsets64(o, b) => &b[o[i] as usize..o[i + 1] as usize],
            Strings::Slices(s) => s[i],
        }
    }
}

/// Where the elements of every row's list lie in the child column.
#[derive(Debug, Clone, Copy)]
pub enum Ranges<'a> {
    /// Row `i` is `offsets[i]..offsets[i + 1]`.
    Offsets32(&'a [i32]),
    /// The same with wide offsets.
    Offsets64(&'a [i64]),
    /// Every row is as long as this (Arrow's fixed-size list).
    Fixed(usize),
    /// `(offset, length)` of every row (DuckDB).
    Entries(&'a [(u64, u64)]),
}

impl Ranges<'_> {
    /// The range of row `i`.
    #[inline]
    pub fn get(&self, i: usize) -> std::ops::Range<usize> {
        match self {
            Ranges::Offsets32(o) => o[i] as usize..o[i + 1] as usize,
            Ranges::Offsets64(o) => o[i] as usize..o[i + 1] as usize,
            Ranges::Fixed(n) => i * n..(i + 1) * n,
            Ranges::Entries(e) => e[i].0 as usize..(e[i].0 + e[i].1) as usize,
        }
    }
}

/// The values of a column, by physical kind.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Data<'a> {
    Null,
    Boolean(Bits<'a>),
    Int8(&'a [i8]),
    Int16(&'a [i16]),
    Int32(&'a [i32]),
    Int64(&'a [i64]),
    Int128(&'a [i128]),
    UInt8(&'a [u8]),
    UInt16(&'a [u16]),
    UInt32(&'a [u32]),
    UInt64(&'a [u64]),
    Float32(&'a [f32]),
    Float64(&'a [f64]),
    Decimal {
        values: &'a [i128],
        scale: i8,
    },
    Text(Strings<'a>),
    Bytes(Strings<'a>),
    Date(&'a [i32]),
    Time {
        values: &'a [i64],
        unit: Unit,
    },
    Timestamp {
        values: &'a [i64],
        unit: Unit,
        zoned: bool,
    },
    /// `(months, days, nanoseconds)`
    Interval(&'a [(i32, i32, i64)]),
    Uuid(&'a [[u8; 16]]),
    List {
        ranges: Ranges<'a>,
        child: Box<Column<'a>>,
    },
    Struct(Vec<(Arc<str>, Column<'a>)>),
    Map {
        ranges: Ranges<'a>,
        keys: Box<Column<'a>>,
        values: Box<Column<'a>>,
    },
    /// Values that a host gives one by one.
    Values(&'a [Value]),
}

/// A borrowed column.
#[derive(Debug, Clone)]
pub struct Column<'a> {
    /// The values.
    pub data: Data<'a>,
    /// Which rows are not NULL; `None` if all are.
    pub validity: Option<Bits<'a>>,
}

impl<'a> Column<'a> {
    /// A column of values that a host has one by one.
    pub fn of_values(values: &'a [Value]) -> Column<'a> {
        Column { data: Data::Values(values), validity: None }
    }

    /// Whether row `i` is not NULL.
    #[inline]
    pub fn is_valid(&self, i: usize) -> bool {
        match (&self.data, &self.validity) {
            (Data::Null, _) => false,
            (Data::Values(v), _) => !v[i].is_null(),
            (_, Some(bits)) => bits.get(i),
            (_, None) => true,
        }
    }

    /// Row `i` where it is bytes.
    pub fn bytes(&self, i: usize) -> Option<&'a [u8]> {
        match &self.data {
            Data::Bytes(bytes) => self.is_valid(i).then(|| bytes.get(i)),
            Data::Values(values) => match &values[i] {
                Value::Bytes(bytes) => Some(bytes),
                _ => None,
            },
            _ => None,
        }
    }

    /// Row `i` as a value, canonical at any depth (R9). Text that is not UTF-8 is replaced where it is broken; hosts whose text
    /// may be invalid check it first.
    pub fn value(&self, i: usize) -> Value {
        if !self.is_valid(i) {
            return Value::Null;
        }
        let int = |v: i128| Value::Int(v);
        match &self.data {
            Data::Null => Value::Null,
            Data::Boolean(bits) => Value::Bool(bits.get(i)),
            Data::Int8(v) => int(v[i].into()),
            Data::Int16(v) => int(v[i].into()),
            Data::Int32(v) => int(v[i].into()),
            Data::Int64(v) => int(v[i].into()),
            Data::Int128(v) => int(v[i]),
            Data::UInt8(v) => int(v[i].into()),
            Data::UInt16(v) => int(v[i].into()),
            Data::UInt32(v) => int(v[i].into()),
            Data::UInt64(v) => int(v[i].into()),
            Data::Float32(v) => Value::float(f64::from(v[i])),
            Data::Float64(v) => Value::float(v[i]),
            Data::Decimal { values, scale } => decimal(values[i], *scale),
            Data::Text(s) => Value::text(String::from_utf8_lossy(s.get(i)).into_owned()),
            Data::Bytes(s) => Value::Bytes(s.get(i).into()),
            Data::Date(v) => Value::Date(v[i]),
            Data::Time { values, unit } => Value::Time(values[i].saturating_mul(unit.nanos())),
            Data::Timestamp { values, unit, zoned } => {
                Value::Timestamp { nanos: i128::from(values[i]) * i128::from(unit.nanos()), zoned: *zoned }
            }
            Data::Interval(v) => Value::Interval { months: v[i].0, days: v[i].1, nanos: v[i].2 },
            Data::Uuid(v) => Value::Uuid(v[i]),
            Data::List { ranges, child } => Value::List(ranges.get(i).map(|j| child.value(j)).collect()),
            Data::Struct(fields) => Value::record(fields.iter().map(|(n, c)| (n.clone(), c.value(i))).collect()),
            Data::Map { ranges, keys, values } => Value::map(ranges.get(i).map(|j| (keys.value(j), values.value(j))).collect()),
            Data::Values(v) => match &v[i] {
                Value::Float(f) => Value::Float(canonical(*f)),
                other => other.clone(),
            },
        }
    }
}

impl Column<'_> {
    /// Writes row `i` as its value would be written; text, bytes and what is made of them without building one.
    pub(crate) fn write(&self, i: usize, w: &mut Writer) {
        match &self.data {
            _ if !self.is_valid(i) => w.value(&Value::Null),
            Data::Text(s) => w.text(&String::from_utf8_lossy(s.get(i))),
            Data::Bytes(s) => w.blob(s.get(i)),
            Data::List { ranges, child } => {
                let range = ranges.get(i);
                w.list(range.len());
                range.for_each(|j| child.write(j, w));
            }
            // Otherwise the fields have to be sorted.
            Data::Struct(fields) if fields.is_sorted_by(|a, b| a.0 < b.0) => {
                w.record(fields.len());
                for (name, column) in fields {
                    w.bytes(name.as_bytes());
                    column.write(i, w);
                }
            }
            Data::Values(values) => w.value(&values[i]),
            _ => w.value(&self.value(i)),
        }
    }
}

/// A decimal of any Arrow scale.
fn decimal(unscaled: i128, scale: i8) -> Value {
    match u8::try_from(scale) {
        Ok(scale) => Value::Decimal { unscaled, scale },
        Err(_) => Value::Decimal { unscaled: unscaled.saturating_mul(10i128.pow(u32::from(scale.unsigned_abs()))), scale: 0 },
    }
}

/// The values of an owned column, by physical kind.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum OwnedData {
    Boolean(Vec<bool>),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Int128(Vec<i128>),
    UInt8(Vec<u8>),
    UInt16(Vec<u16>),
    UInt32(Vec<u32>),
    UInt64(Vec<u64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    /// Text or bytes: row `i` is `bytes[offsets[i]..offsets[i + 1]]`.
    Strings {
        offsets: Vec<usize>,
        bytes: Vec<u8>,
    },
    /// Row `i` is `child[offsets[i]..offsets[i + 1]]`.
    List {
        offsets: Vec<usize>,
        child: Box<OwnedColumn>,
    },
    /// The fields, in the order of the type.
    Struct(Vec<OwnedColumn>),
    /// Values of any type, NULL included.
    Values(Vec<Value>),
}

/// A column of results.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnedColumn {
    /// The logical type.
    pub ty: Type,
    /// The values.
    pub data: OwnedData,
    /// Which rows are not NULL; `None` if all are, or if the values say so themselves.
    pub validity: Option<Vec<bool>>,
}

impl OwnedColumn {
    /// A column of values of one type.
    pub fn of_values(ty: Type, values: Vec<Value>) -> OwnedColumn {
        OwnedColumn { ty, data: OwnedData::Values(values), validity: None }
    }

    /// A column of byte strings.
    pub fn of_bytes(ty: Type, rows: impl IntoIterator<Item = Option<Vec<u8>>>) -> OwnedColumn {
        let (mut offsets, mut bytes, mut validity) = (vec![0], Vec::new(), Vec::new());
        for row in rows {
            validity.push(row.is_some());
            match row {
                // One long state needs no copy.
                Some(row) if bytes.is_empty() => bytes = row,
                row => bytes.extend(row.unwrap_or_default()),
            }
            offsets.push(bytes.len());
        }
        OwnedColumn { ty, data: OwnedData::Strings { offsets, bytes }, validity: Some(validity) }
    }

    /// Row `i` as a value.
    pub fn value(&self, i: usize) -> Value {
        if self.validity.as_ref().is_some_and(|v| !v[i]) {
            return Value::Null;
        }
        let int = |v: i128| match &self.ty {
            Type::Date => Value::Date(v as i32),
            Type::Time(unit) => Value::Time((v as i64).saturating_mul(unit.nanos())),
            Type::Timestamp { unit, zone } => Value::Timestamp { nanos: v * i128::from(unit.nanos()), zoned: zone.is_some() },
            Type::Decimal { scale, .. } => decimal(v, *scale),
            _ => Value::Int(v),
        };
        match &self.data {
            OwnedData::Boolean(v) => Value::Bool(v[i]),
            OwnedData::Int8(v) => int(v[i].into()),
            OwnedData::Int16(v) => int(v[i].into()),
            OwnedData::Int32(v) => int(v[i].into()),
            OwnedData::Int64(v) => int(v[i].into()),
            OwnedData::Int128(v) => int(v[i]),
            OwnedData::UInt8(v) => int(v[i].into()),
            OwnedData::UInt16(v) => int(v[i].into()),
            OwnedData::UInt32(v) => int(v[i].into()),
            OwnedData::UInt64(v) => int(v[i].into()),
            OwnedData::Float32(v) => Value::float(v[i].into()),
            OwnedData::Float64(v) => Value::float(v[i]),
            OwnedData::Strings { offsets, bytes } => {
                let bytes = &bytes[offsets[i]..offsets[i + 1]];
                match &self.ty {
                    Type::Bytes => Value::Bytes(bytes.into()),
                    _ => Value::text(String::from_utf8_lossy(bytes)),
                }
            }
            OwnedData::List { offsets, child } => Value::List((offsets[i]..offsets[i + 1]).map(|j| child.value(j)).collect()),
            OwnedData::Struct(columns) => match &self.ty {
                Type::Struct(fields) => {
                    Value::record(fields.iter().zip(columns).map(|((name, _), c)| (name.clone(), c.value(i))).collect())
                }
                _ => Value::Null,
            },
            OwnedData::Values(v) => v[i].clone(),
        }
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        match &self.data {
            OwnedData::Boolean(v) => v.len(),
            OwnedData::Int8(v) => v.len(),
            OwnedData::Int16(v) => v.len(),
            OwnedData::Int32(v) => v.len(),
            OwnedData::Int64(v) => v.len(),
            OwnedData::Int128(v) => v.len(),
            OwnedData::UInt8(v) => v.len(),
            OwnedData::UInt16(v) => v.len(),
            OwnedData::UInt32(v) => v.len(),
            OwnedData::UInt64(v) => v.len(),
            OwnedData::Float32(v) => v.len(),
            OwnedData::Float64(v) => v.len(),
            OwnedData::Strings { offsets, .. } | OwnedData::List { offsets, .. } => offsets.len() - 1,
            OwnedData::Struct(columns) => columns.first().map_or(0, OwnedColumn::len),
            OwnedData::Values(v) => v.len(),
        }
    }

    /// No rows?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
