//! The greatest value under (NaN last, version, value) for fixed-width values and for text, with at most one fixed-width version.
//!
//! A slot is a class, a version key and a value. The class folds the rules of R1 and R9 into one byte: 0 nothing yet; then NaN
//! without and with a version; then a value without and with a version. So one slot beats another exactly if
//! (class, key, value) is greater.

use super::fetch_ahead;
use crate::aggregate::Groups;
use crate::batch::{Bits, Column, Data, OwnedColumn, OwnedData, Strings};
use crate::error::Result;
use crate::types::Type;
use crate::value::Value;
use crate::value::order_key::{float_bits, float_from_bits};

/// Which of two candidates wins where the state is the strongest of what was seen: a value that is not NaN, then the version, then the
/// value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// The least value rather than the greatest.
    pub least: bool,
    /// The least version rather than the greatest, in every part.
    pub flip_version: bool,
}

/// A store for `inputs` = value and at most one version, if there is a fast one for these types. `encode` writes the state bytes of
/// one row, `decode` reads them back.
pub fn groups(
    inputs: &[Type],
    order: Order,
    encode: impl Fn(&[Value]) -> Vec<u8> + Send + Sync + 'static,
    decode: impl Fn(&[u8]) -> Result<Vec<Value>> + Send + Sync + 'static,
) -> Option<Box<dyn Groups>> {
    let version = match inputs.get(1) {
        None => None,
        Some(ty) if VersionKeys::takes(ty) && inputs.len() == 2 => Some(ty.clone()),
        Some(_) => return None,
    };
    let ty = inputs.first()?.clone();
    let slots = Slots {
        ty: ty.clone(),
        version,
        order,
        class: Vec::new(),
        keys: Vec::new(),
        encode: Box::new(encode),
        decode: Box::new(decode),
    };
    macro_rules! fixed {
        ($t:ty) => {
            Some(Box::new(FixedBest::<$t> { slots, values: Vec::new() }))
        };
    }
    match ty {
        Type::Boolean => fixed!(bool),
        Type::Int { bits: 8, signed: true } => fixed!(i8),
        Type::Int { bits: 16, signed: true } => fixed!(i16),
        Type::Int { bits: 32, signed: true } | Type::Date => fixed!(i32),
        Type::Int { bits: 64, signed: true } | Type::Time(_) | Type::Timestamp { .. } => fixed!(i64),
        Type::Int { bits: 8, signed: false } => fixed!(u8),
        Type::Int { bits: 16, signed: false } => fixed!(u16),
        Type::Int { bits: 32, signed: false } => fixed!(u32),
        Type::Int { bits: 64, signed: false } => fixed!(u64),
        Type::Int { bits: 128, signed: true } | Type::Decimal { .. } => fixed!(i128),
        Type::Float32 => fixed!(f32),
        Type::Float64 => fixed!(f64),
        Type::Text | Type::Bytes => Some(Box::new(TextBest { slots, spans: Vec::new(), arena: Vec::new(), live: 0 })),
        _ => None,
    }
}

/// Writes the state bytes of a row.
type EncodeRow = Box<dyn Fn(&[Value]) -> Vec<u8> + Send + Sync>;
/// Reads the row of state bytes.
type DecodeRow = Box<dyn Fn(&[u8]) -> Result<Vec<Value>> + Send + Sync>;

/// What both stores share: everything of a slot but its value.
struct Slots {
    ty: Type,
    version: Option<Type>,
    order: Order,
    class: Vec<u8>,
    keys: Vec<u64>,
    encode: EncodeRow,
    decode: DecodeRow,
}

pub(super) const WITH_VERSION: u8 = 1;
pub(super) const WITH_VALUE: u8 = 2;

impl Slots {
    fn grow(&mut self, total: usize) {
        if self.class.len() < total {
            self.class.resize(total, 0);
            if self.version.is_some() {
                self.keys.resize(total, 0);
            }
        }
    }

    /// The class and key vectors of the first `n` slots.
    fn take(&mut self, n: usize) -> (Vec<u8>, Vec<u64>) {
        (take(&mut self.class, n), if self.version.is_some() { take(&mut self.keys, n) } else { Vec::new() })
    }

    /// The version column of slots taken out.
    fn versions(&self, class: &[u8], keys: Vec<u64>) -> Option<OwnedColumn> {
        let ty = self.version.clone()?;
        let validity = class.iter().map(|c| c.wrapping_sub(1) & WITH_VERSION != 0 && *c > 0).collect();
        let keys = if self.order.flip_version { keys.into_iter().map(|k| !k).collect() } else { keys };
        Some(VersionKeys::back(ty, keys, validity))
    }

    fn encode_all(&self, columns: &[OwnedColumn], n: usize) -> OwnedColumn {
        let row = |i: usize| {
            let values: Vec<Value> = columns.iter().map(|c| c.value(i)).collect();
            (!values[0].is_null()).then(|| (self.encode)(&values))
        };
        OwnedColumn::of_bytes(Type::Bytes, (0..n).map(row))
    }

    /// State bytes as columns of rows.
    fn decode_all(&self, states: &Column<'_>, rows: usize) -> Result<Vec<Vec<Value>>> {
        let width = 1 + usize::from(self.version.is_some());
        let mut columns = vec![vec![Value::Null; rows]; width];
        for i in 0..rows {
            if let Value::Bytes(bytes) = states.value(i) {
                columns.iter_mut().zip((self.decode)(&bytes)?).for_each(|(column, value)| column[i] = value);
            }
        }
        Ok(columns)
    }

    fn size(&self) -> usize {
        self.class.capacity() + self.keys.capacity() * 8
    }
}

fn take<T>(items: &mut Vec<T>, n: usize) -> Vec<T> {
    let rest = items.split_off(n.min(items.len()));
    std::mem::replace(items, rest)
}

/// Versions as integers of the same order.
#[derive(Debug)]
pub struct VersionKeys {
    /// One integer a row.
    pub keys: Vec<u64>,
    /// Whether the row has a version: it is neither NULL nor NaN.
    pub present: Vec<bool>,
}

impl VersionKeys {
    /// Whether versions of this type can be integers.
    pub fn takes(ty: &Type) -> bool {
        matches!(
            ty,
            Type::Boolean
                | Type::Int { bits: 8 | 16 | 32 | 64, .. }
                | Type::Float32
                | Type::Float64
                | Type::Date
                | Type::Time(_)
                | Type::Timestamp { .. }
        )
    }

    /// The versions of a column's first rows; with `flip` the lesser is stronger.
    pub fn of(column: &Column<'_>, ty: &Type, rows: usize, flip: bool) -> VersionKeys {
        let signed = |v: i64| (v as u64) ^ (1 << 63);
        macro_rules! map {
            ($v:expr, $f:expr) => {
                $v[..rows].iter().map($f).collect::<Vec<u64>>()
            };
        }
        let mut nan = Vec::new();
        let mut keys = match &column.data {
            Data::Boolean(bits) => (0..rows).map(|i| u64::from(bits.get(i))).collect(),
            Data::Int8(v) => map!(v, |x| signed((*x).into())),
            Data::Int16(v) => map!(v, |x| signed((*x).into())),
            Data::Int32(v) | Data::Date(v) => map!(v, |x| signed((*x).into())),
            Data::Int64(v) | Data::Time { values: v, .. } | Data::Timestamp { values: v, .. } => map!(v, |x| signed(*x)),
            Data::UInt8(v) => map!(v, |x| (*x).into()),
            Data::UInt16(v) => map!(v, |x| (*x).into()),
            Data::UInt32(v) => map!(v, |x| (*x).into()),
            Data::UInt64(v) => v[..rows].to_vec(),
            Data::Float32(v) => {
                nan = v[..rows].iter().map(|x| x.is_nan()).collect();
                map!(v, |x| float_bits(f64::from(*x) + 0.0))
            }
            Data::Float64(v) => {
                nan = v[..rows].iter().map(|x| x.is_nan()).collect();
                map!(v, |x| float_bits(*x + 0.0))
            }
            _ => (0..rows)
                .map(|i| match column.value(i) {
                    Value::Bool(b) => u64::from(b),
                    Value::Int(v) if matches!(ty, Type::Int { signed: false, .. }) => v as u64,
                    Value::Int(v) => signed(v as i64),
                    Value::Date(v) => signed(v.into()),
                    Value::Time(v) => signed(v / unit_nanos(ty)),
                    Value::Timestamp { nanos, .. } => signed((nanos / i128::from(unit_nanos(ty))) as i64),
                    Value::Float(f) => float_bits(f),
                    _ => 0,
                })
                .collect(),
        };
        if nan.is_empty() && matches!(column.data, Data::Values(_)) {
            nan = (0..rows).map(|i| column.value(i).is_nan()).collect();
        }
        if flip {
            keys.iter_mut().for_each(|k| *k = !*k);
        }
        let present = (0..rows).map(|i| column.is_valid(i) && !nan.get(i).copied().unwrap_or(false)).collect();
        VersionKeys { keys, present }
    }

    fn back(ty: Type, keys: Vec<u64>, validity: Vec<bool>) -> OwnedColumn {
        let signed = |k: &u64| (k ^ (1 << 63)) as i64;
        macro_rules! map {
            ($variant:ident, $f:expr) => {
                OwnedData::$variant(keys.iter().map($f).collect())
            };
        }
        let data = match &ty {
            Type::Boolean => map!(Boolean, |k| *k & 1 != 0),
            Type::Int { bits: 8, signed: true } => map!(Int8, |k| signed(k) as i8),
            Type::Int { bits: 16, signed: true } => map!(Int16, |k| signed(k) as i16),
            Type::Int { bits: 32, signed: true } | Type::Date => map!(Int32, |k| signed(k) as i32),
            Type::Int { bits: 8, signed: false } => map!(UInt8, |k| *k as u8),
            Type::Int { bits: 16, signed: false } => map!(UInt16, |k| *k as u16),
            Type::Int { bits: 32, signed: false } => map!(UInt32, |k| *k as u32),
            Type::Int { bits: 64, signed: false } => OwnedData::UInt64(keys),
            Type::Float32 => map!(Float32, |k| float_from_bits(*k) as f32),
            Type::Float64 => map!(Float64, |k| float_from_bits(*k)),
            _ => map!(Int64, signed),
        };
        OwnedColumn { ty, data, validity: Some(validity) }
    }
}

pub(crate) fn unit_nanos(ty: &Type) -> i64 {
    match ty {
        Type::Time(unit) | Type::Timestamp { unit, .. } => unit.nanos(),
        _ => 1,
    }
}

/// A fixed-width value.
trait Fixed: Copy + Default + Send + Sync + 'static {
    fn owned(values: Vec<Self>) -> OwnedData;
    fn greater(self, other: Self) -> bool;
    fn is_nan(self) -> bool {
        false
    }
    fn canonical(self) -> Self {
        self
    }
    fn slice<'a>(data: &Data<'a>) -> Option<&'a [Self]>;
    fn of(value: &Value, ty: &Type) -> Self;
}

macro_rules! fixed {
    ($t:ty, $owned:ident, [$($pattern:pat => $found:expr),+], |$v:ident, $ty:ident| $of:expr) => {
        impl Fixed for $t {
            fn owned(values: Vec<Self>) -> OwnedData {
                OwnedData::$owned(values)
            }
            #[inline]
            fn greater(self, other: Self) -> bool {
                self > other
            }
            fn slice<'a>(data: &Data<'a>) -> Option<&'a [Self]> {
                match data {
                    $($pattern => $found,)+
                    _ => None,
                }
            }
            fn of($v: &Value, $ty: &Type) -> Self {
                $of
            }
        }
    };
}

fn int(v: &Value) -> i128 {
    match v {
        Value::Int(v) => *v,
        _ => 0,
    }
}

fixed!(i8, Int8, [Data::Int8(v) => Some(v)], |v, _ty| int(v) as i8);
fixed!(i16, Int16, [Data::Int16(v) => Some(v)], |v, _ty| int(v) as i16);
fixed!(i32, Int32, [Data::Int32(v) | Data::Date(v) => Some(v)], |v, _ty| match v {
    Value::Date(days) => *days,
    other => int(other) as i32,
});
fixed!(i64, Int64, [Data::Int64(v) | Data::Time { values: v, .. } | Data::Timestamp { values: v, .. } => Some(v)], |v, ty| {
    match v {
        Value::Time(nanos) => nanos / unit_nanos(ty),
        Value::Timestamp { nanos, .. } => (nanos / i128::from(unit_nanos(ty))) as i64,
        other => int(other) as i64,
    }
});
fixed!(u8, UInt8, [Data::UInt8(v) => Some(v)], |v, _ty| int(v) as u8);
fixed!(u16, UInt16, [Data::UInt16(v) => Some(v)], |v, _ty| int(v) as u16);
fixed!(u32, UInt32, [Data::UInt32(v) => Some(v)], |v, _ty| int(v) as u32);
fixed!(u64, UInt64, [Data::UInt64(v) => Some(v)], |v, _ty| int(v) as u64);
fixed!(i128, Int128, [Data::Int128(v) => Some(v), Data::Decimal { values: v, .. } => Some(v)], |v, ty| match (v, ty) {
    // A value has no negative scale.
    (Value::Decimal { unscaled, .. }, Type::Decimal { scale, .. }) if *scale < 0 =>
        10i128.checked_pow(u32::from(scale.unsigned_abs())).map_or(0, |tens| unscaled / tens),
    (Value::Decimal { unscaled, .. }, _) => *unscaled,
    (other, _) => int(other),
});
fixed!(bool, Boolean, [Data::Values(_) => None], |v, _ty| *v == Value::Bool(true));

macro_rules! float {
    ($t:ty, $variant:ident) => {
        impl Fixed for $t {
            fn owned(values: Vec<Self>) -> OwnedData {
                OwnedData::$variant(values)
            }
            #[inline]
            fn greater(self, other: Self) -> bool {
                self > other
            }
            #[inline]
            fn is_nan(self) -> bool {
                <$t>::is_nan(self)
            }
            #[inline]
            fn canonical(self) -> Self {
                if <$t>::is_nan(self) { <$t>::NAN } else { self + 0.0 }
            }
            fn slice<'a>(data: &Data<'a>) -> Option<&'a [Self]> {
                match data {
                    Data::$variant(v) => Some(v),
                    _ => None,
                }
            }
            fn of(value: &Value, _ty: &Type) -> Self {
                match value {
                    Value::Float(v) => *v as $t,
                    other => int(other) as $t,
                }
            }
        }
    };
}
float!(f32, Float32);
float!(f64, Float64);

struct FixedBest<V> {
    slots: Slots,
    values: Vec<V>,
}

impl<V: Fixed> FixedBest<V> {
    /// The one inner loop: `LEAST` and `VERSIONED` are known to the compiler, the rest is a compare and a conditional store.
    #[inline]
    fn step<const LEAST: bool, const VERSIONED: bool>(&mut self, group: usize, value: V, key: u64, present: bool) {
        let value = value.canonical();
        let class = 1 + u8::from(VERSIONED && present) * WITH_VERSION + u8::from(!value.is_nan()) * WITH_VALUE;
        let key = if VERSIONED && present { key } else { 0 };
        let old = self.slots.class[group];
        let tie = |slots: &Slots, values: &[V]| {
            let seen = values[group];
            let wins = if LEAST { seen.greater(value) } else { value.greater(seen) };
            if VERSIONED { key > slots.keys[group] || (key == slots.keys[group] && wins) } else { wins }
        };
        if class > old || (class == old && tie(&self.slots, &self.values)) {
            self.slots.class[group] = class;
            self.values[group] = value;
            if VERSIONED {
                self.slots.keys[group] = key;
            }
        }
    }

    #[inline(always)]
    fn fetch_ahead<const VERSIONED: bool>(&self, groups: &[usize], row: usize) {
        fetch_ahead(&self.values, groups, row);
        if VERSIONED {
            fetch_ahead(&self.slots.keys, groups, row);
        }
    }

    fn run<const LEAST: bool, const VERSIONED: bool>(
        &mut self,
        column: &Column<'_>,
        versions: &VersionKeys,
        groups: &[usize],
        filter: Option<Bits<'_>>,
    ) {
        let version = |i: usize| if VERSIONED { (versions.keys[i], versions.present[i]) } else { (0, false) };
        if let (Some(values), None, None) = (V::slice(&column.data), column.validity, filter) {
            for (i, (&group, &value)) in groups.iter().zip(values).enumerate() {
                self.fetch_ahead::<VERSIONED>(groups, i);
                let (key, present) = version(i);
                self.step::<LEAST, VERSIONED>(group, value, key, present);
            }
            return;
        }
        let keep = |i: usize| column.is_valid(i) && filter.is_none_or(|f| f.get(i));
        let ty = self.slots.ty.clone();
        let bits = if let Data::Boolean(bits) = &column.data { Some(*bits) } else { None };
        for (i, &group) in groups.iter().enumerate() {
            self.fetch_ahead::<VERSIONED>(groups, i);
            if keep(i) {
                let value = match (V::slice(&column.data), bits) {
                    (Some(values), _) => values[i],
                    (None, Some(bits)) => V::of(&Value::Bool(bits.get(i)), &ty),
                    (None, None) => V::of(&column.value(i), &ty),
                };
                let (key, present) = version(i);
                self.step::<LEAST, VERSIONED>(group, value, key, present);
            }
        }
    }

    fn columns(&mut self, n: usize) -> Vec<OwnedColumn> {
        let (class, keys) = self.slots.take(n);
        let validity = Some(class.iter().map(|c| *c > 0).collect());
        let values = OwnedColumn { ty: self.slots.ty.clone(), data: V::owned(take(&mut self.values, n)), validity };
        std::iter::once(values).chain(self.slots.versions(&class, keys)).collect()
    }
}

fn version_keys(slots: &Slots, columns: &[Column<'_>], rows: usize) -> VersionKeys {
    match &slots.version {
        Some(ty) => VersionKeys::of(&columns[1], ty, rows, slots.order.flip_version),
        None => VersionKeys { keys: Vec::new(), present: Vec::new() },
    }
}

impl<V: Fixed> Groups for FixedBest<V> {
    fn update(&mut self, columns: &[Column<'_>], groups: &[usize], filter: Option<Bits<'_>>, total: usize) -> Result<()> {
        self.slots.grow(total);
        if self.values.len() < total {
            self.values.resize(total, V::default());
        }
        let versions = version_keys(&self.slots, columns, groups.len());
        match (self.slots.order.least, self.slots.version.is_some()) {
            (false, false) => self.run::<false, false>(&columns[0], &versions, groups, filter),
            (false, true) => self.run::<false, true>(&columns[0], &versions, groups, filter),
            (true, false) => self.run::<true, false>(&columns[0], &versions, groups, filter),
            (true, true) => self.run::<true, true>(&columns[0], &versions, groups, filter),
        }
        Ok(())
    }

    fn merge(&mut self, states: &Column<'_>, groups: &[usize], total: usize) -> Result<()> {
        let columns = self.slots.decode_all(states, groups.len())?;
        let columns: Vec<Column<'_>> = columns.iter().map(|c| Column::of_values(c)).collect();
        self.update(&columns, groups, None, total)
    }

    fn rows(&mut self, n: usize) -> Result<Vec<OwnedColumn>> {
        Ok(self.columns(n))
    }

    fn states(&mut self, n: usize) -> Result<OwnedColumn> {
        let columns = self.columns(n);
        Ok(self.slots.encode_all(&columns, n))
    }

    fn finish(&mut self, n: usize) -> Result<OwnedColumn> {
        Ok(self.columns(n).swap_remove(0))
    }

    fn size(&self) -> usize {
        self.slots.size() + self.values.capacity() * size_of::<V>()
    }
}

/// Text lies in one arena, a slot holds where; replaced text is garbage until half of the arena is.
struct TextBest {
    slots: Slots,
    spans: Vec<(usize, usize)>,
    arena: Vec<u8>,
    live: usize,
}

impl TextBest {
    fn run<'b>(&mut self, text: impl Fn(usize) -> Option<RowBytes<'b>>, versions: &VersionKeys, groups: &[usize]) {
        let (versioned, least) = (self.slots.version.is_some(), self.slots.order.least);
        for (i, &group) in groups.iter().enumerate() {
            fetch_ahead(&self.spans, groups, i);
            fetch_ahead(&self.slots.keys, groups, i);
            let Some(value) = text(i) else { continue };
            let bytes = value.get();
            let present = versioned && versions.present[i];
            let class = 1 + WITH_VALUE + u8::from(present) * WITH_VERSION;
            let key = if present { versions.keys[i] } else { 0 };
            let old = self.slots.class[group];
            let wins = class > old
                || (class == old && {
                    let seen_key = if versioned { self.slots.keys[group] } else { 0 };
                    key > seen_key
                        || (key == seen_key && {
                            let (start, length) = self.spans[group];
                            let seen = &self.arena[start..start + length];
                            if least { bytes < seen } else { bytes > seen }
                        })
                });
            if wins {
                self.slots.class[group] = class;
                if versioned {
                    self.slots.keys[group] = key;
                }
                let (start, length) = self.spans[group];
                self.live = self.live - length + bytes.len();
                if length >= bytes.len() {
                    self.arena[start..start + bytes.len()].copy_from_slice(bytes);
                    self.spans[group].1 = bytes.len();
                } else {
                    self.spans[group] = (self.arena.len(), bytes.len());
                    self.arena.extend_from_slice(bytes);
                }
            }
        }
    }

    fn compact(&mut self) {
        if self.arena.len() < 1 << 20 || self.live * 2 > self.arena.len() {
            return;
        }
        let mut arena = Vec::with_capacity(self.live + self.live / 2);
        for span in &mut self.spans {
            let start = arena.len();
            arena.extend_from_slice(&self.arena[span.0..span.0 + span.1]);
            span.0 = start;
        }
        self.arena = arena;
    }

    fn columns(&mut self, n: usize) -> Vec<OwnedColumn> {
        let (class, keys) = self.slots.take(n);
        let spans = take(&mut self.spans, n);
        let mut offsets = Vec::with_capacity(spans.len() + 1);
        let mut bytes = Vec::with_capacity(spans.iter().map(|s| s.1).sum());
        offsets.push(0);
        for (start, length) in spans {
            bytes.extend_from_slice(&self.arena[start..start + length]);
            offsets.push(bytes.len());
        }
        self.live -= bytes.len();
        if self.spans.is_empty() {
            self.arena = Vec::new();
        } else {
            self.compact();
        }
        let validity = Some(class.iter().map(|c| *c > 0).collect());
        let values = OwnedColumn { ty: self.slots.ty.clone(), data: OwnedData::Strings { offsets, bytes }, validity };
        std::iter::once(values).chain(self.slots.versions(&class, keys)).collect()
    }
}

/// Bytes of a row, borrowed from the batch or owned where the host gave a value.
enum RowBytes<'a> {
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
}

impl RowBytes<'_> {
    #[inline]
    fn get(&self) -> &[u8] {
        match self {
            RowBytes::Borrowed(b) => b,
            RowBytes::Owned(b) => b,
        }
    }
}

impl Groups for TextBest {
    fn update(&mut self, columns: &[Column<'_>], groups: &[usize], filter: Option<Bits<'_>>, total: usize) -> Result<()> {
        self.slots.grow(total);
        if self.spans.len() < total {
            self.spans.resize(total, (0, 0));
        }
        let versions = version_keys(&self.slots, columns, groups.len());
        let column = &columns[0];
        let keep = |i: usize| column.is_valid(i) && filter.is_none_or(|f| f.get(i));
        match &column.data {
            Data::Text(Strings::Slices(s)) | Data::Bytes(Strings::Slices(s)) => {
                self.run(|i| keep(i).then(|| RowBytes::Borrowed(s[i])), &versions, groups);
            }
            Data::Text(s) | Data::Bytes(s) => self.run(|i| keep(i).then(|| RowBytes::Borrowed(s.get(i))), &versions, groups),
            _ => {
                let bytes = |i: usize| match column.value(i) {
                    Value::Text(t) => RowBytes::Owned(t.into_string().into_bytes()),
                    Value::Bytes(b) => RowBytes::Owned(b.into_vec()),
                    other => RowBytes::Owned(other.to_string().into_bytes()),
                };
                self.run(|i| keep(i).then(|| bytes(i)), &versions, groups);
            }
        }
        self.compact();
        Ok(())
    }

    fn merge(&mut self, states: &Column<'_>, groups: &[usize], total: usize) -> Result<()> {
        let columns = self.slots.decode_all(states, groups.len())?;
        let columns: Vec<Column<'_>> = columns.iter().map(|c| Column::of_values(c)).collect();
        self.update(&columns, groups, None, total)
    }

    fn rows(&mut self, n: usize) -> Result<Vec<OwnedColumn>> {
        Ok(self.columns(n))
    }

    fn states(&mut self, n: usize) -> Result<OwnedColumn> {
        let columns = self.columns(n);
        Ok(self.slots.encode_all(&columns, n))
    }

    fn finish(&mut self, n: usize) -> Result<OwnedColumn> {
        Ok(self.columns(n).swap_remove(0))
    }

    fn size(&self) -> usize {
        self.slots.size() + self.spans.capacity() * 16 + self.arena.capacity()
    }
}
