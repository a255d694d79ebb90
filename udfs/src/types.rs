//! Logical types: what a column is, whatever the host calls it, and the one widening table.

use crate::error::{Error, Result};
use std::fmt;
use std::sync::Arc;

/// The resolution of a time or timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Unit {
    Second,
    Millisecond,
    Microsecond,
    Nanosecond,
}

impl Unit {
    /// Nanoseconds in one step of this unit.
    pub fn nanos(self) -> i64 {
        match self {
            Unit::Second => 1_000_000_000,
            Unit::Millisecond => 1_000_000,
            Unit::Microsecond => 1_000,
            Unit::Nanosecond => 1,
        }
    }

    /// Digits behind the point of a second.
    pub fn digits(self) -> u32 {
        9 - self.nanos().ilog10()
    }
}

/// A named field of a struct type.
pub type Field = (Arc<str>, Type);

/// A logical type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Type {
    /// The type of a column that holds NULL only.
    Null,
    /// `BOOLEAN`
    Boolean,
    /// An integer of 8 to 128 bits.
    Int {
        /// Width in bits.
        bits: u8,
        /// Whether it has a sign.
        signed: bool,
    },
    /// `REAL`
    Float32,
    /// `DOUBLE PRECISION`
    Float64,
    /// `DECIMAL(precision, scale)`, up to 38 digits; of precision 0 ([`Type::NUMERIC`]) each value has a scale of its own.
    Decimal {
        /// Digits in all.
        precision: u8,
        /// Digits behind the point.
        scale: i8,
    },
    /// UTF-8 text, compared by bytes.
    Text,
    /// Bytes, also encoded states.
    Bytes,
    /// Days since 1970-01-01.
    Date,
    /// Time of day.
    Time(Unit),
    /// A point in time; `zone` is a display matter, the value is an instant in UTC where there is one.
    Timestamp {
        /// Resolution.
        unit: Unit,
        /// Time zone, where the type has one.
        zone: Option<Arc<str>>,
    },
    /// Months, days and nanoseconds.
    Interval,
    /// 16 bytes.
    Uuid,
    /// A list of one element type.
    List(Box<Type>),
    /// Named fields.
    Struct(Vec<Field>),
    /// Keys to values.
    Map(Box<Type>, Box<Type>),
}

impl Type {
    /// The type that a value is of by itself.
    pub(crate) fn of(value: &crate::value::Value) -> Type {
        use crate::value::Value;
        match value {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Boolean,
            Value::Int(_) => Type::INT64,
            Value::Float(_) => Type::Float64,
            Value::Decimal { .. } => Type::NUMERIC,
            Value::Bytes(_) => Type::Bytes,
            Value::List(items) => Type::List(Box::new(items.first().map_or(Type::Null, Type::of))),
            Value::Struct(fields) => Type::Struct(fields.iter().map(|(name, value)| (name.clone(), Type::of(value))).collect()),
            _ => Type::Text,
        }
    }

    /// `BIGINT`
    pub const INT64: Type = Type::Int { bits: 64, signed: true };
    /// `NUMERIC` without precision and scale.
    pub const NUMERIC: Type = Type::Decimal { precision: 0, scale: 0 };
    /// `UBIGINT`
    pub const UINT64: Type = Type::Int { bits: 64, signed: false };

    /// How deep its values nest: 0 for a scalar.
    pub fn depth(&self) -> usize {
        match self {
            Type::List(t) => 1 + t.depth(),
            Type::Struct(fields) => 1 + fields.iter().map(|(_, t)| t.depth()).max().unwrap_or(0),
            Type::Map(k, v) => 1 + k.depth().max(v.depth()),
            _ => 0,
        }
    }

    /// Integers, floats and decimals.
    pub fn is_number(&self) -> bool {
        matches!(self, Type::Int { .. } | Type::Float32 | Type::Float64 | Type::Decimal { .. } | Type::Null)
    }

    /// Text, or a column without any value.
    pub fn is_text(&self) -> bool {
        matches!(self, Type::Text | Type::Null)
    }

    /// A single value: no list, struct or map.
    pub fn is_scalar(&self) -> bool {
        !matches!(self, Type::List(_) | Type::Struct(_) | Type::Map(..))
    }

    /// Holds a float somewhere, so that keys of it need canonical zeros and NaNs.
    pub fn has_float(&self) -> bool {
        self.any(&|ty| matches!(ty, Type::Float32 | Type::Float64))
    }

    /// Whether this type, or one that it holds at any depth, is such a one.
    pub fn any(&self, is: &impl Fn(&Type) -> bool) -> bool {
        is(self)
            || match self {
                Type::List(element) => element.any(is),
                Type::Struct(fields) => fields.iter().any(|(_, ty)| ty.any(is)),
                Type::Map(key, value) => key.any(is) || value.any(is),
                _ => false,
            }
    }

    /// Holds a map somewhere, so that keys of it need their entries in order.
    pub fn has_map(&self) -> bool {
        self.any(&|ty| matches!(ty, Type::Map(..)))
    }

    /// The narrowest type that holds every value of both (the widening table of the language).
    ///
    /// # Errors
    /// `type_mismatch` where the table has no such type: bool and number, text and number, date and timestamp, and so on.
    ///
    /// ```
    /// use mergeql_udfs::Type;
    /// assert_eq!(Type::widen(&Type::INT64, &Type::UINT64).unwrap(), Type::Decimal { precision: 20, scale: 0 });
    /// assert_eq!(Type::widen(&Type::NUMERIC, &Type::INT64).unwrap(), Type::NUMERIC);
    /// assert!(Type::widen(&Type::Text, &Type::INT64).is_err());
    /// ```
    pub fn widen(a: &Type, b: &Type) -> Result<Type> {
        use Type::*;
        let mismatch = || Error::type_mismatch(format!("{a} and {b} have no common type"));
        if a == b {
            return Ok(a.clone());
        }
        Ok(match (a, b) {
            (Null, t) | (t, Null) => t.clone(),
            (Int { bits: x, signed: s }, Int { bits: y, signed: t }) => match (s, t) {
                _ if s == t => Int { bits: *x.max(y), signed: *s },
                (true, false) => widen_signed(*x, *y),
                _ => widen_signed(*y, *x),
            },
            (Float32, Float64) | (Float64, Float32) => Float64,
            (Int { .. }, Float32 | Float64) | (Float32 | Float64, Int { .. }) => Float64,
            (Decimal { precision: 0, .. }, Decimal { .. } | Int { .. })
            | (Decimal { .. } | Int { .. }, Decimal { precision: 0, .. }) => Type::NUMERIC,
            (Decimal { precision: p, scale: s }, Decimal { precision: q, scale: t }) => {
                widen_decimal(i32::from(*p), i32::from(*s), i32::from(*q), i32::from(*t)).ok_or_else(mismatch)?
            }
            (Int { bits, signed }, Decimal { precision, scale }) | (Decimal { precision, scale }, Int { bits, signed }) => {
                widen_decimal(int_digits(*bits, *signed), 0, i32::from(*precision), i32::from(*scale)).ok_or_else(mismatch)?
            }
            (Time(u), Time(v)) => Time(*u.max(v)),
            (Timestamp { unit: u, zone: y }, Timestamp { unit: v, zone: z }) if y.is_some() == z.is_some() => {
                Timestamp { unit: *u.max(v), zone: if y == z { y.clone() } else { Some("UTC".into()) } }
            }
            (List(x), List(y)) => List(Box::new(Type::widen(x, y)?)),
            (Map(k, v), Map(l, w)) => Map(Box::new(Type::widen(k, l)?), Box::new(Type::widen(v, w)?)),
            (Struct(xs), Struct(ys)) => {
                let mut fields = Vec::with_capacity(xs.len().max(ys.len()));
                for (name, x) in xs {
                    let t = match ys.iter().find(|(other, _)| other == name) {
                        Some((_, y)) => Type::widen(x, y)?,
                        None => x.clone(),
                    };
                    fields.push((name.clone(), t));
                }
                fields.extend(ys.iter().filter(|(name, _)| !xs.iter().any(|(x, _)| x == name)).cloned());
                Struct(fields)
            }
            _ => return Err(mismatch()),
        })
    }
}

/// The types of the members of nested types of one kind.
fn inside<'a, const N: usize>(types: &[&'a Type], parts: impl Fn(&'a Type) -> Option<[&'a Type; N]>) -> Option<[Vec<&'a Type>; N]> {
    let all: Vec<[&Type; N]> = types.iter().copied().map(parts).collect::<Option<_>>()?;
    Some(std::array::from_fn(|i| all.iter().map(|parts| parts[i]).collect()))
}

impl Type {
    /// The common type of all of these, in whichever order they come: where there is a float, integers become floats before anything
    /// else does.
    ///
    /// # Errors
    /// As [`Type::widen`].
    ///
    /// ```
    /// use mergeql_udfs::Type;
    /// let (signed, unsigned, float) = (Type::INT64, Type::UINT64, Type::Float64);
    /// assert_eq!(Type::widen_all(&[&signed, &unsigned, &float]).unwrap(), Type::Float64);
    /// assert_eq!(Type::widen_all(&[&float, &signed, &unsigned]).unwrap(), Type::Float64);
    /// ```
    pub fn widen_all(types: &[&Type]) -> Result<Type> {
        let types: Vec<&Type> = types.iter().copied().filter(|ty| **ty != Type::Null).collect();
        if types.len() < 2 {
            return Ok(types.first().map_or(Type::Null, |ty| (*ty).clone()));
        }
        if let Some([elements]) = inside(&types, |ty| if let Type::List(element) = ty { Some([&**element]) } else { None }) {
            return Ok(Type::List(Box::new(Type::widen_all(&elements)?)));
        }
        if let Some([keys, values]) = inside(&types, |ty| if let Type::Map(k, v) = ty { Some([&**k, &**v]) } else { None }) {
            return Ok(Type::Map(Box::new(Type::widen_all(&keys)?), Box::new(Type::widen_all(&values)?)));
        }
        let fields: Option<Vec<&Vec<Field>>> =
            types.iter().map(|ty| if let Type::Struct(fields) = ty { Some(fields) } else { None }).collect();
        if let Some(all) = fields {
            let mut names = Vec::new();
            for (name, _) in all.iter().flat_map(|fields| fields.iter()) {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
            let common = |name: Arc<str>| {
                let types: Vec<&Type> =
                    all.iter().flat_map(|fields| fields.iter()).filter(|(n, _)| *n == name).map(|(_, ty)| ty).collect();
                Ok((name, Type::widen_all(&types)?))
            };
            return Ok(Type::Struct(names.into_iter().map(common).collect::<Result<_>>()?));
        }
        let mut types = types;
        types.sort_by_key(|ty| match ty {
            Type::Float64 => (0, 0),
            Type::Float32 => (1, 0),
            Type::Int { bits, signed: true } => (2, 255 - bits),
            Type::Int { bits, .. } => (3, 255 - bits),
            Type::Decimal { precision: 0, .. } => (4, 0),
            _ => (5, 0),
        });
        types.into_iter().try_fold(Type::Null, |all, ty| Type::widen(&all, ty))
    }
}

fn int_digits(bits: u8, signed: bool) -> i32 {
    match (bits, signed) {
        (8, _) => 3,
        (16, _) => 5,
        (32, _) => 10,
        (64, true) => 19,
        (64, false) => 20,
        _ => 38,
    }
}

fn widen_signed(signed: u8, unsigned: u8) -> Type {
    if unsigned < signed {
        Type::Int { bits: signed, signed: true }
    } else if unsigned < 64 {
        Type::Int { bits: unsigned * 2, signed: true }
    } else {
        Type::Decimal { precision: 20, scale: 0 }
    }
}

fn widen_decimal(p: i32, s: i32, q: i32, t: i32) -> Option<Type> {
    let scale = s.max(t);
    let precision = (p - s).max(q - t) + scale;
    (precision <= 38).then_some(Type::Decimal { precision: precision as u8, scale: scale as i8 })
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Null => f.write_str("NULL"),
            Type::Boolean => f.write_str("BOOLEAN"),
            Type::Int { bits, signed } => {
                let name = match bits {
                    8 => "TINYINT",
                    16 => "SMALLINT",
                    32 => "INTEGER",
                    64 => "BIGINT",
                    _ => "HUGEINT",
                };
                write!(f, "{}{name}", if *signed { "" } else { "U" })
            }
            Type::Float32 => f.write_str("REAL"),
            Type::Float64 => f.write_str("DOUBLE"),
            Type::Decimal { precision: 0, .. } => f.write_str("NUMERIC"),
            Type::Decimal { precision, scale } => write!(f, "DECIMAL({precision}, {scale})"),
            Type::Text => f.write_str("TEXT"),
            Type::Bytes => f.write_str("BLOB"),
            Type::Date => f.write_str("DATE"),
            Type::Time(_) => f.write_str("TIME"),
            Type::Timestamp { zone: None, .. } => f.write_str("TIMESTAMP"),
            Type::Timestamp { zone: Some(_), .. } => f.write_str("TIMESTAMPTZ"),
            Type::Interval => f.write_str("INTERVAL"),
            Type::Uuid => f.write_str("UUID"),
            Type::List(t) => write!(f, "{t}[]"),
            Type::Struct(fields) => {
                f.write_str("STRUCT(")?;
                for (i, (name, t)) in fields.iter().enumerate() {
                    write!(f, "{}{name} {t}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str(")")
            }
            Type::Map(k, v) => write!(f, "MAP({k}, {v})"),
        }
    }
}
