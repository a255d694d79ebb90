//! Arrow columns lent to the core without copying, and the core's results as Arrow arrays.

mod build;
mod lend;

pub use build::{build, from_values};
pub use lend::{Lent, lend, value_at};

use arrow::array::{Array, ArrayRef};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::*;
use datafusion::common::{DataFusionError, Result};
use mergeql_udfs::{Code, Error, Type, Unit};
use std::sync::Arc;

/// An error of the core inside DataFusion's.
pub fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

fn unit(unit: TimeUnit) -> Unit {
    match unit {
        TimeUnit::Second => Unit::Second,
        TimeUnit::Millisecond => Unit::Millisecond,
        TimeUnit::Microsecond => Unit::Microsecond,
        TimeUnit::Nanosecond => Unit::Nanosecond,
    }
}

/// The logical type of an Arrow type.
///
/// # Errors
/// `unsupported` for types without a place in the typed order (unions, 256-bit decimals).
pub fn logical(ty: &DataType) -> Result<Type, Error> {
    let int = |bits, signed| Type::Int { bits, signed };
    Ok(match ty {
        DataType::Null => Type::Null,
        DataType::Boolean => Type::Boolean,
        DataType::Int8 => int(8, true),
        DataType::Int16 => int(16, true),
        DataType::Int32 => int(32, true),
        DataType::Int64 => int(64, true),
        DataType::UInt8 => int(8, false),
        DataType::UInt16 => int(16, false),
        DataType::UInt32 => int(32, false),
        DataType::UInt64 => int(64, false),
        DataType::Float16 | DataType::Float32 => Type::Float32,
        DataType::Float64 => Type::Float64,
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) | DataType::Decimal128(p, s) => {
            Type::Decimal { precision: *p, scale: *s }
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Type::Text,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Type::Bytes,
        DataType::FixedSizeBinary(16) => Type::Uuid,
        DataType::FixedSizeBinary(_) => Type::Bytes,
        DataType::Date32 => Type::Date,
        DataType::Date64 => Type::Timestamp { unit: Unit::Millisecond, zone: None },
        // Times of day are lent in nanoseconds where Arrow has 32 bits for them.
        DataType::Time32(_) => Type::Time(Unit::Nanosecond),
        DataType::Time64(u) => Type::Time(unit(*u)),
        DataType::Timestamp(u, zone) => Type::Timestamp { unit: unit(*u), zone: zone.clone() },
        DataType::Interval(_) | DataType::Duration(_) => Type::Interval,
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => Type::List(Box::new(logical(f.data_type())?)),
        DataType::Struct(fields) => Type::Struct(
            fields.iter().map(|f| Ok((f.name().as_str().into(), logical(f.data_type())?))).collect::<Result<_, Error>>()?,
        ),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(kv) if kv.len() == 2 => {
                Type::Map(Box::new(logical(kv[0].data_type())?), Box::new(logical(kv[1].data_type())?))
            }
            other => return Err(Error::new(Code::Unsupported, format!("columns of type {other} cannot be merged"))),
        },
        DataType::Dictionary(_, values) => logical(values)?,
        DataType::RunEndEncoded(_, values) => logical(values.data_type())?,
        other => {
            return Err(Error::new(Code::Unsupported, format!("columns of type {other} cannot be merged"))
                .with_help("cast the column in a source query: (SELECT CAST(...) ...) AS name"));
        }
    })
}

/// The Arrow type that the engine makes of a logical type.
pub fn physical(ty: &Type) -> DataType {
    let time_unit = |u: &Unit| match u {
        Unit::Second => TimeUnit::Second,
        Unit::Millisecond => TimeUnit::Millisecond,
        Unit::Microsecond => TimeUnit::Microsecond,
        Unit::Nanosecond => TimeUnit::Nanosecond,
    };
    match ty {
        Type::Null => DataType::Null,
        Type::Boolean => DataType::Boolean,
        Type::Int { bits: 8, signed: true } => DataType::Int8,
        Type::Int { bits: 16, signed: true } => DataType::Int16,
        Type::Int { bits: 32, signed: true } => DataType::Int32,
        Type::Int { bits: 64, signed: true } => DataType::Int64,
        Type::Int { bits: 8, .. } => DataType::UInt8,
        Type::Int { bits: 16, .. } => DataType::UInt16,
        Type::Int { bits: 32, .. } => DataType::UInt32,
        Type::Int { bits: 64, .. } => DataType::UInt64,
        Type::Int { .. } => DataType::Decimal128(38, 0),
        Type::Float32 => DataType::Float32,
        Type::Float64 => DataType::Float64,
        Type::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale),
        Type::Text => DataType::Utf8,
        Type::Bytes => DataType::Binary,
        Type::Date => DataType::Date32,
        Type::Time(u @ (Unit::Second | Unit::Millisecond)) => DataType::Time32(time_unit(u)),
        Type::Time(u) => DataType::Time64(time_unit(u)),
        Type::Timestamp { unit, zone } => DataType::Timestamp(time_unit(unit), zone.clone()),
        Type::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
        Type::Uuid => DataType::FixedSizeBinary(16),
        Type::List(t) => DataType::List(Arc::new(Field::new("item", physical(t), true))),
        Type::Struct(fields) => DataType::Struct(fields.iter().map(|(name, t)| Field::new(&**name, physical(t), true)).collect()),
        Type::Map(k, v) => {
            let entries = Fields::from(vec![Field::new("keys", physical(k), false), Field::new("values", physical(v), true)]);
            DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false)
        }
    }
}

/// An Arrow type without what is no value: dictionaries and runs; and with floats of a width that we build.
pub fn lean(ty: &DataType) -> DataType {
    match ty {
        DataType::Dictionary(_, values) => lean(values),
        DataType::RunEndEncoded(_, values) => lean(values.data_type()),
        DataType::Float16 => DataType::Float32,
        DataType::Interval(_) => DataType::Interval(IntervalUnit::MonthDayNano),
        other => other.clone(),
    }
}

/// The Arrow type of a result of this logical type, kept as the input has it where the logical types are equal.
pub fn physical_like(ty: &Type, input: &DataType) -> DataType {
    match (ty, logical(input)) {
        (ty, Ok(same)) if *ty == same => lean(input),
        (Type::List(element), Ok(same)) if **element == same => {
            DataType::List(Arc::new(Field::new("item", physical_like(element, input), true)))
        }
        _ => physical(ty),
    }
}

/// The layout in which arrays of a type are lent and built.
fn plain(ty: &DataType) -> DataType {
    let of = |f: &FieldRef| Arc::new(f.as_ref().clone().with_data_type(plain(f.data_type())));
    match ty {
        DataType::Dictionary(_, values) => plain(values),
        DataType::RunEndEncoded(_, values) => plain(values.data_type()),
        DataType::Float16 => DataType::Float32,
        DataType::Date64 => DataType::Timestamp(TimeUnit::Millisecond, None),
        DataType::Time32(TimeUnit::Second | TimeUnit::Millisecond) => DataType::Time64(TimeUnit::Nanosecond),
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => DataType::Decimal128(*p, *s),
        DataType::Interval(IntervalUnit::YearMonth | IntervalUnit::DayTime) | DataType::Duration(_) => {
            DataType::Interval(IntervalUnit::MonthDayNano)
        }
        DataType::FixedSizeBinary(n) if *n != 16 => DataType::Binary,
        DataType::List(f) => DataType::List(of(f)),
        DataType::LargeList(f) => DataType::LargeList(of(f)),
        DataType::FixedSizeList(f, n) => DataType::FixedSizeList(of(f), *n),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(of).collect()),
        DataType::Map(entries, sorted) => DataType::Map(of(entries), *sorted),
        other => other.clone(),
    }
}

/// The same values in another layout; what it has no room for is an error, not NULL.
pub(crate) fn relaid(array: &dyn Array, to: &DataType) -> Result<ArrayRef> {
    if array.data_type() == to {
        return Ok(array.slice(0, array.len()));
    }
    cast_with_options(array, to, &CastOptions { safe: false, ..CastOptions::default() }).map_err(|e| {
        let from = array.data_type();
        external(Error::invalid_argument(format!("a value of type {from} does not fit into {to}: {e}")))
    })
}

/// An array brought to one of the layouts that can be lent.
///
/// # Errors
/// `unsupported` for a type that has no place in the typed order, `invalid_argument` for a value that is too great for its layout.
pub fn normalize(array: &ArrayRef) -> Result<ArrayRef> {
    let ty = array.data_type();
    logical(ty).map_err(external)?;
    let to = plain(ty);
    if *ty == to { Ok(Arc::clone(array)) } else { relaid(array, &to) }
}
