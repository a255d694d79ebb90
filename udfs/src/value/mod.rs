//! Typed values and their one total order (R2). A value knows no engine; NaN and zero are canonical from the start (R9).

mod number;
pub mod order_key;
pub mod packed;
mod text;

pub use number::{Exact, compare_numbers};
pub use text::{escape_json, from_json};

use crate::error::{Error, Result};
use crate::types::Type;
use std::cmp::Ordering;
use std::sync::Arc;

/// One typed value.
#[derive(Debug, Clone)]
pub enum Value {
    /// No information.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer of any width.
    Int(i128),
    /// A float; build it with [`Value::float`], which makes it canonical.
    Float(f64),
    /// `unscaled * 10^-scale`
    Decimal {
        /// The digits, as an integer.
        unscaled: i128,
        /// Digits behind the point.
        scale: u8,
    },
    /// UTF-8 text.
    Text(Box<str>),
    /// Bytes.
    Bytes(Box<[u8]>),
    /// Days since 1970-01-01.
    Date(i32),
    /// Nanoseconds since midnight.
    Time(i64),
    /// Nanoseconds since 1970-01-01T00:00:00, in UTC if `zoned`.
    Timestamp {
        /// Nanoseconds since the epoch.
        nanos: i128,
        /// Whether it is an instant rather than a wall-clock reading.
        zoned: bool,
    },
    /// A span of time in three parts that do not convert into each other.
    Interval {
        /// Months.
        months: i32,
        /// Days.
        days: i32,
        /// Nanoseconds.
        nanos: i64,
    },
    /// 16 bytes.
    Uuid([u8; 16]),
    /// Elements in order.
    List(Vec<Value>),
    /// Fields, sorted by name; build it with [`Value::record`].
    Struct(Vec<(Arc<str>, Value)>),
    /// Entries, sorted by key; build it with [`Value::map`].
    Map(Vec<(Value, Value)>),
}

impl Value {
    /// A float with canonical zero and NaN (R9).
    pub fn float(v: f64) -> Value {
        Value::Float(canonical(v))
    }

    /// A text value.
    pub fn text(v: impl Into<Box<str>>) -> Value {
        Value::Text(v.into())
    }

    /// A struct value: fields sorted by name.
    pub fn record(mut fields: Vec<(Arc<str>, Value)>) -> Value {
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        Value::Struct(fields)
    }

    /// A map value: entries sorted by key, the greater value kept for a repeated key.
    pub fn map(mut entries: Vec<(Value, Value)>) -> Value {
        entries.sort();
        let mut unique: Vec<(Value, Value)> = Vec::with_capacity(entries.len());
        for entry in entries {
            match unique.last_mut() {
                Some(last) if last.0 == entry.0 => *last = entry,
                _ => unique.push(entry),
            }
        }
        Value::Map(unique)
    }

    /// NULL?
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// A top-level NaN?
    pub fn is_nan(&self) -> bool {
        matches!(self, Value::Float(f) if f.is_nan())
    }

    /// What kind of value this is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Int(_) => "integer",
            Value::Float(_) => "float",
            Value::Decimal { .. } => "decimal",
            Value::Text(_) => "text",
            Value::Bytes(_) => "bytes",
            Value::Date(_) => "date",
            Value::Time(_) => "time",
            Value::Timestamp { zoned: false, .. } => "timestamp",
            Value::Timestamp { zoned: true, .. } => "timestamptz",
            Value::Interval { .. } => "interval",
            Value::Uuid(_) => "uuid",
            Value::List(_) => "list",
            Value::Struct(_) => "struct",
            Value::Map(_) => "map",
        }
    }

    /// The value as a column of this type holds it: numbers change kind where nothing is lost.
    ///
    /// # Errors
    /// `invalid_argument` where a number is too great for the type.
    pub fn fit(self, ty: &Type) -> Result<Value> {
        Ok(match (self, ty) {
            (Value::Int(v), Type::Int { bits, signed }) => {
                let (least, greatest) = match (bits, signed) {
                    (128, _) => (i128::MIN, i128::MAX),
                    (bits, true) => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
                    (bits, false) => (0, (1i128 << bits) - 1),
                };
                if v < least || v > greatest {
                    return Err(Error::invalid_argument(format!("{v} is too great for {ty}")));
                }
                Value::Int(v)
            }
            (Value::Int(v), Type::Float32 | Type::Float64) => Value::float(v as f64),
            (Value::Int(v), Type::Decimal { scale, .. }) => {
                let scale = (*scale).max(0) as u8;
                let unscaled = 10i128.checked_pow(scale.into()).and_then(|p| v.checked_mul(p));
                Value::Decimal {
                    unscaled: unscaled.ok_or_else(|| Error::invalid_argument(format!("{v} is too great for {ty}")))?,
                    scale,
                }
            }
            (Value::Float(v), Type::Float32) => Value::float(f64::from(v as f32)),
            (value, _) => value,
        })
        .and_then(|value| value.within(ty))
    }

    /// The value, unless it is a decimal of more digits than its type has.
    fn within(self, ty: &Type) -> Result<Value> {
        if let (Value::Decimal { unscaled, scale }, Type::Decimal { precision: digits @ 1.., scale: behind }) = (&self, ty) {
            let most = (i32::from(*digits) - i32::from(*behind) + i32::from(*scale)).max(0) as u32;
            if 10u128.checked_pow(most).is_some_and(|end| unscaled.unsigned_abs() >= end) {
                return Err(Error::invalid_argument(format!("{self} is too great for {ty}")));
            }
        }
        Ok(self)
    }

    /// The value as a source of a wider type brings it: nothing changes but the kind of numbers, at any depth.
    ///
    /// # Errors
    /// `type_mismatch` for an integer that a double cannot hold exactly.
    pub fn widen(self, ty: &Type) -> Result<Value> {
        Ok(match (self, ty) {
            // Rounded up to 2^127, the greatest would come back as itself.
            (Value::Int(v), Type::Float64) if v as f64 as i128 != v || v == i128::MAX => {
                return Err(Error::type_mismatch(format!(
                    "the integer {v} meets doubles in another source, and a double cannot hold it exactly"
                )));
            }
            (Value::List(items), Type::List(ty)) => Value::List(items.into_iter().map(|v| v.widen(ty)).collect::<Result<_>>()?),
            (Value::Struct(mut fields), Type::Struct(types)) => {
                for (name, value) in &mut fields {
                    if let Some((_, ty)) = types.iter().find(|(n, _)| n == name) {
                        *value = std::mem::replace(value, Value::Null).widen(ty)?;
                    }
                }
                Value::Struct(fields)
            }
            (Value::Map(entries), Type::Map(key, value)) => {
                let entry = |(k, v): (Value, Value)| Ok((k.widen(key)?, v.widen(value)?));
                Value::Map(entries.into_iter().map(entry).collect::<Result<_>>()?)
            }
            (value, ty) => value.fit(ty)?,
        })
    }

    /// The value with numbers of every kind brought to one, at any depth: equal exactly if the worth is equal.
    pub fn to_worth(&self) -> Value {
        match self {
            Value::Float(f) if f.fract() == 0.0 && f.abs() < 1e38 => Value::Int(*f as i128),
            Value::Decimal { unscaled, scale } => {
                let (mut unscaled, mut scale) = (*unscaled, *scale);
                while scale > 0 && unscaled % 10 == 0 {
                    unscaled /= 10;
                    scale -= 1;
                }
                if scale == 0 { Value::Int(unscaled) } else { Value::Decimal { unscaled, scale } }
            }
            Value::List(items) => Value::List(items.iter().map(Value::to_worth).collect()),
            Value::Struct(fields) => Value::Struct(fields.iter().map(|(name, field)| (name.clone(), field.to_worth())).collect()),
            Value::Map(entries) => Value::Map(entries.iter().map(|(key, entry)| (key.to_worth(), entry.to_worth())).collect()),
            other => other.clone(),
        }
    }

    /// A number as the nearest double; `None` for what is no number.
    pub fn to_f64(&self) -> Option<f64> {
        match self {
            Value::Float(v) => Some(*v),
            Value::Int(v) => Some(*v as f64),
            Value::Decimal { .. } => {
                let mut sum = Exact::default();
                sum.add(self);
                Some(sum.quotient(1))
            }
            _ => None,
        }
    }

    /// Memory beyond the value itself, in bytes.
    pub fn heap_size(&self) -> usize {
        match self {
            Value::Text(t) => t.len(),
            Value::Bytes(b) => b.len(),
            Value::List(items) => items.iter().map(|v| size_of::<Value>() + v.heap_size()).sum(),
            Value::Struct(fields) => fields.iter().map(|(_, v)| size_of::<(Arc<str>, Value)>() + v.heap_size()).sum(),
            Value::Map(entries) => entries.iter().map(|(k, v)| 2 * size_of::<Value>() + k.heap_size() + v.heap_size()).sum(),
            _ => 0,
        }
    }

    /// Where the kind stands in the order of kinds.
    fn rank(&self) -> u8 {
        match self {
            Value::Null => 0,
            Value::Bool(_) => 1,
            Value::Int(_) | Value::Float(_) | Value::Decimal { .. } => 2,
            Value::Text(_) => 3,
            Value::Bytes(_) => 4,
            Value::Date(_) | Value::Timestamp { .. } => 5,
            Value::Time(_) => 6,
            Value::Interval { .. } => 7,
            Value::Uuid(_) => 8,
            Value::List(_) => 9,
            Value::Struct(_) => 10,
            Value::Map(_) => 11,
        }
    }

    fn instant(&self) -> (i128, u8) {
        match self {
            Value::Date(days) => (i128::from(*days) * 86_400_000_000_000, 0),
            Value::Timestamp { nanos, zoned } => (*nanos, 1 + u8::from(*zoned)),
            _ => (0, 0),
        }
    }
}

/// `-0.0` becomes `0.0`, and every NaN one bit pattern.
#[inline]
pub fn canonical(v: f64) -> f64 {
    if v.is_nan() { f64::NAN } else { v + 0.0 }
}

impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value {}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Value) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Value {
    /// R2. Numbers compare by what they are worth; numbers of equal worth but of different kinds (1, 1.0) stay distinct, so that
    /// equal values always have equal bytes.
    fn cmp(&self, other: &Value) -> Ordering {
        use Value::*;
        match (self, other) {
            (Bool(a), Bool(b)) => a.cmp(b),
            (Int(a), Int(b)) => a.cmp(b),
            (Int(_) | Float(_) | Decimal { .. }, Int(_) | Float(_) | Decimal { .. }) => compare_numbers(self, other),
            (Text(a), Text(b)) => a.as_bytes().cmp(b.as_bytes()),
            (Bytes(a), Bytes(b)) => a.cmp(b),
            (Date(a), Date(b)) => a.cmp(b),
            (Date(_) | Timestamp { .. }, Date(_) | Timestamp { .. }) => self.instant().cmp(&other.instant()),
            (Time(a), Time(b)) => a.cmp(b),
            (Interval { months: a, days: b, nanos: c }, Interval { months: x, days: y, nanos: z }) => (a, b, c).cmp(&(x, y, z)),
            (Uuid(a), Uuid(b)) => a.cmp(b),
            (List(_), List(_)) | (Struct(_), Struct(_)) | (Map(_), Map(_)) => {
                self.compare(other, true).then_with(|| self.compare(other, false))
            }
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl Value {
    /// R2 by worth alone: 1, 1.0 and 1.00 are equal, at any depth.
    pub fn compare_worth(&self, other: &Value) -> Ordering {
        self.compare(other, true)
    }

    /// In one walk, with numbers of equal worth as equal, or not.
    fn compare(&self, other: &Value, worth: bool) -> Ordering {
        use Value::*;
        fn all<T>(a: &[T], b: &[T], compare: impl Fn(&T, &T) -> Ordering) -> Ordering {
            let order = a.iter().zip(b).map(|(a, b)| compare(a, b)).find(|order| order.is_ne());
            order.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        match (self, other) {
            (List(a), List(b)) => all(a, b, |a, b| a.compare(b, worth)),
            (Struct(a), Struct(b)) => all(a, b, |a, b| a.0.cmp(&b.0).then_with(|| a.1.compare(&b.1, worth))),
            (Map(a), Map(b)) => all(a, b, |a, b| a.0.compare(&b.0, worth).then_with(|| a.1.compare(&b.1, worth))),
            (Int(_) | Float(_) | Decimal { .. }, Int(_) | Float(_) | Decimal { .. }) if worth => number::compare_worth(self, other),
            _ => self.cmp(other),
        }
    }
}

impl std::hash::Hash for Value {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let mut writer = crate::codec::Writer::default();
        writer.value(self);
        state.write(writer.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_order_by_worth_across_kinds() {
        let dec = |unscaled, scale| Value::Decimal { unscaled, scale };
        let ascending = [
            Value::float(f64::NAN),
            Value::float(f64::NEG_INFINITY),
            Value::Int(-5),
            dec(-49, 1),
            Value::float(-0.0),
            dec(1, 1),
            Value::float(0.1),
            Value::Int(9),
            dec(99, 1),
            Value::Int(10),
            Value::float(9007199254740992.0),
            Value::Int(9007199254740993),
            dec(i128::MAX, 0),
            Value::float(1e300),
            Value::float(f64::INFINITY),
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                // 0.1 as a float is a little more than the decimal 0.1
                assert_eq!(a.cmp(b), i.cmp(&j), "{a:?} against {b:?}");
            }
        }
    }

    #[test]
    fn kinds_order_as_the_language_says() {
        let ascending = [
            Value::Null,
            Value::Bool(false),
            Value::Bool(true),
            Value::Int(7),
            Value::text("10"),
            Value::text("9"),
            Value::Bytes([0u8].into()),
            Value::Date(1),
            Value::Timestamp { nanos: 86_400_000_000_001, zoned: false },
            Value::Uuid([0; 16]),
            Value::List(vec![Value::Int(1)]),
            Value::List(vec![Value::Int(1), Value::Null]),
            Value::record(vec![("a".into(), Value::Int(0))]),
            Value::map(vec![]),
        ];
        assert!(ascending.windows(2).all(|w| w[0] < w[1]));
    }
}
