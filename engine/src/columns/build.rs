//! The core's results as Arrow arrays.

use super::{external, logical, plain, relaid, unit};
use arrow::array::*;
use arrow::buffer::{BooleanBuffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::*;
use datafusion::common::{DataFusionError, Result};
use mergeql_udfs::{Code, Error, OwnedColumn, OwnedData, Type, Value};
use std::sync::Arc;

/// An error for types that no strategy gives, and no source has.
fn cannot_make(ty: &DataType) -> DataFusionError {
    external(Error::new(Code::Unsupported, format!("the engine cannot make columns of type {ty}")))
}

/// Builds an array of this Arrow type from a result column.
///
/// # Errors
/// If a value does not fit into the type.
pub fn build(column: OwnedColumn, ty: &DataType) -> Result<ArrayRef> {
    let validity = column.validity.map(NullBuffer::from);
    let nulls = validity.filter(|n| n.null_count() > 0);
    let wanted = ty;
    // Times of day are built from nanoseconds below.
    let ty = &if matches!(wanted, DataType::Time32(_) | DataType::Date64) { wanted.clone() } else { plain(wanted) };
    macro_rules! primitive {
        ($t:ty, $values:expr) => {
            Arc::new(PrimitiveArray::<$t>::new(ScalarBuffer::from($values), nulls).with_data_type(ty.clone())) as ArrayRef
        };
    }
    macro_rules! int64 {
        ($values:expr) => {
            match ty {
                DataType::Time64(TimeUnit::Microsecond) => primitive!(Time64MicrosecondType, $values),
                DataType::Time64(TimeUnit::Nanosecond) => primitive!(Time64NanosecondType, $values),
                DataType::Time32(_) => {
                    let nanos = PrimitiveArray::<Time64NanosecondType>::new(ScalarBuffer::from($values), nulls);
                    return relaid(&nanos, ty);
                }
                DataType::Date64 => {
                    let millis = PrimitiveArray::<TimestampMillisecondType>::new(ScalarBuffer::from($values), nulls);
                    return relaid(&millis, ty);
                }
                DataType::Timestamp(TimeUnit::Second, _) => primitive!(TimestampSecondType, $values),
                DataType::Timestamp(TimeUnit::Millisecond, _) => primitive!(TimestampMillisecondType, $values),
                DataType::Timestamp(TimeUnit::Microsecond, _) => primitive!(TimestampMicrosecondType, $values),
                DataType::Timestamp(TimeUnit::Nanosecond, _) => primitive!(TimestampNanosecondType, $values),
                _ => primitive!(Int64Type, $values),
            }
        };
    }
    let array: ArrayRef = match column.data {
        OwnedData::Boolean(v) => Arc::new(BooleanArray::new(BooleanBuffer::from(v), nulls)),
        OwnedData::Int8(v) => primitive!(Int8Type, v),
        OwnedData::Int16(v) => primitive!(Int16Type, v),
        OwnedData::Int32(v) if *ty == DataType::Date32 => primitive!(Date32Type, v),
        OwnedData::Int32(v) => primitive!(Int32Type, v),
        OwnedData::Int64(v) => int64!(v),
        OwnedData::Int128(v) => match ty {
            DataType::Decimal128(..) => primitive!(Decimal128Type, v),
            _ => {
                let values: Vec<Value> = v.into_iter().map(Value::Int).collect();
                return from_values(&values, wanted);
            }
        },
        OwnedData::UInt8(v) => primitive!(UInt8Type, v),
        OwnedData::UInt16(v) => primitive!(UInt16Type, v),
        OwnedData::UInt32(v) => primitive!(UInt32Type, v),
        OwnedData::UInt64(v) => primitive!(UInt64Type, v),
        OwnedData::Float32(v) => primitive!(Float32Type, v),
        OwnedData::Float64(v) => primitive!(Float64Type, v),
        OwnedData::List { offsets, child } => {
            let DataType::List(item) = wanted else {
                return Err(cannot_make(wanted));
            };
            let offsets = offsets.into_iter().map(i32::try_from).collect::<std::result::Result<Vec<_>, _>>();
            let offsets = offsets
                .map_err(|_| external(Error::new(Code::LimitExceeded, "the lists of a batch have over 2147483647 items")))?;
            let child = build(*child, item.data_type())?;
            Arc::new(ListArray::try_new(Arc::clone(item), OffsetBuffer::new(offsets.into()), child, nulls)?)
        }
        OwnedData::Struct(columns) => {
            let DataType::Struct(fields) = wanted else {
                return Err(cannot_make(wanted));
            };
            let columns = columns.into_iter().zip(fields).map(|(column, field)| build(column, field.data_type()));
            Arc::new(StructArray::try_new(fields.clone(), columns.collect::<Result<_>>()?, nulls)?)
        }
        OwnedData::Strings { offsets, bytes } => return strings(offsets, bytes, nulls, wanted),
        OwnedData::Values(values) => return from_values(&values, wanted),
    };
    relaid(&array, wanted)
}

fn strings(offsets: Vec<usize>, bytes: Vec<u8>, nulls: Option<NullBuffer>, ty: &DataType) -> Result<ArrayRef> {
    let small = bytes.len() <= i32::MAX as usize;
    let text = matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let array: ArrayRef = match (small, text) {
        (true, text) => {
            let offsets = OffsetBuffer::new(offsets.into_iter().map(|o| o as i32).collect());
            if text {
                Arc::new(StringArray::try_new(offsets, bytes.into(), nulls)?)
            } else {
                Arc::new(BinaryArray::try_new(offsets, bytes.into(), nulls)?)
            }
        }
        (false, text) => {
            let offsets = OffsetBuffer::new(offsets.into_iter().map(|o| o as i64).collect());
            if text {
                Arc::new(LargeStringArray::try_new(offsets, bytes.into(), nulls)?)
            } else {
                Arc::new(LargeBinaryArray::try_new(offsets, bytes.into(), nulls)?)
            }
        }
    };
    match (array.data_type(), ty) {
        (a, b) if a == b => Ok(array),
        (DataType::LargeUtf8 | DataType::LargeBinary, DataType::Utf8 | DataType::Binary) => Err(external(
            Error::new(Code::LimitExceeded, "a column has over 2147483647 bytes in one part of the result")
                .with_help("more threads make more parts (--threads); so do workers, or a merge for each range of keys"),
        )),
        (DataType::Utf8, DataType::Utf8View) => Ok(Arc::new(StringViewArray::from(array.as_string::<i32>()))),
        (DataType::Binary, DataType::BinaryView) => Ok(Arc::new(BinaryViewArray::from(array.as_binary::<i32>()))),
        _ => relaid(&array, ty),
    }
}

/// Builds an array from values.
///
/// # Errors
/// `type_mismatch` if a value is of another kind, `invalid_argument` if a number is too great.
pub fn from_values(values: &[Value], ty: &DataType) -> Result<ArrayRef> {
    from_refs(&values.iter().collect::<Vec<_>>(), ty)
}

fn from_refs(values: &[&Value], ty: &DataType) -> Result<ArrayRef> {
    let logical_type = logical(ty).map_err(external)?;
    let fitted: Vec<Value>;
    let fitting: Vec<&Value>;
    // Only numbers change where they fit.
    let values = if matches!(logical_type, Type::Int { .. } | Type::Float32 | Type::Float64 | Type::Decimal { .. }) {
        let fit = |v: &&Value| Value::clone(v).fit(&logical_type);
        fitted = values.iter().map(fit).collect::<Result<_, Error>>().map_err(external)?;
        fitting = fitted.iter().collect();
        &fitting
    } else {
        values
    };
    let wrong = |v: &Value| external(Error::type_mismatch(format!("a {} does not fit into {logical_type}: {v}", v.kind())));
    macro_rules! ints {
        ($t:ty, $native:ty) => {{
            let mut builder = PrimitiveBuilder::<$t>::with_capacity(values.len());
            for v in values {
                match v {
                    Value::Null => builder.append_null(),
                    Value::Int(v) => builder.append_value(*v as $native),
                    other => return Err(wrong(other)),
                }
            }
            Arc::new(builder.finish()) as ArrayRef
        }};
    }
    macro_rules! floats {
        ($t:ty, $native:ty) => {{
            let mut builder = PrimitiveBuilder::<$t>::with_capacity(values.len());
            for v in values {
                match v {
                    Value::Null => builder.append_null(),
                    Value::Float(v) => builder.append_value(*v as $native),
                    other => return Err(wrong(other)),
                }
            }
            Arc::new(builder.finish()) as ArrayRef
        }};
    }
    macro_rules! temporal {
        ($t:ty, $unit:expr) => {{
            let nanos = i128::from(unit($unit).nanos());
            let fitting = |v: &Value, n: i128| {
                let too_far = |_| external(Error::invalid_argument(format!("{v} is outside of what {ty} has")));
                <$t as ArrowPrimitiveType>::Native::try_from(n).map_err(too_far)
            };
            let mut builder = PrimitiveBuilder::<$t>::with_capacity(values.len());
            for v in values {
                match v {
                    Value::Null => builder.append_null(),
                    Value::Timestamp { nanos: n, .. } => builder.append_value(fitting(v, n.div_euclid(nanos))?),
                    Value::Time(n) => builder.append_value(fitting(v, i128::from(*n) / nanos)?),
                    other => return Err(wrong(other)),
                }
            }
            Arc::new(builder.finish().with_data_type(ty.clone())) as ArrayRef
        }};
    }
    let array: ArrayRef = match ty {
        DataType::Null => Arc::new(NullArray::new(values.len())),
        DataType::Boolean => {
            let mut builder = BooleanBuilder::with_capacity(values.len());
            for v in values {
                match v {
                    Value::Null => builder.append_null(),
                    Value::Bool(v) => builder.append_value(*v),
                    other => return Err(wrong(other)),
                }
            }
            Arc::new(builder.finish())
        }
        DataType::Int8 => ints!(Int8Type, i8),
        DataType::Int16 => ints!(Int16Type, i16),
        DataType::Int32 => ints!(Int32Type, i32),
        DataType::Int64 => ints!(Int64Type, i64),
        DataType::UInt8 => ints!(UInt8Type, u8),
        DataType::UInt16 => ints!(UInt16Type, u16),
        DataType::UInt32 => ints!(UInt32Type, u32),
        DataType::UInt64 => ints!(UInt64Type, u64),
        DataType::Float32 => floats!(Float32Type, f32),
        DataType::Float64 => floats!(Float64Type, f64),
        DataType::Decimal128(_, scale) => {
            let mut builder = Decimal128Builder::with_capacity(values.len());
            for v in values {
                match v {
                    Value::Null => builder.append_null(),
                    Value::Decimal { unscaled, scale: s } if i32::from(*s) <= i32::from(*scale) => {
                        let factor = 10i128.checked_pow((i32::from(*scale) - i32::from(*s)) as u32);
                        match factor.and_then(|f| unscaled.checked_mul(f)) {
                            Some(v) => builder.append_value(v),
                            None => return Err(wrong(v)),
                        }
                    }
                    Value::Decimal { unscaled, .. } if *scale < 0 => {
                        builder.append_value(unscaled / 10i128.pow(scale.unsigned_abs().into()));
                    }
                    other => return Err(wrong(other)),
                }
            }
            Arc::new(builder.finish().with_data_type(ty.clone()))
        }
        DataType::Date32 => {
            let mut builder = Date32Builder::with_capacity(values.len());
            for v in values {
                match v {
                    Value::Null => builder.append_null(),
                    Value::Date(v) => builder.append_value(*v),
                    other => return Err(wrong(other)),
                }
            }
            Arc::new(builder.finish())
        }
        DataType::Time32(TimeUnit::Second) => temporal!(Time32SecondType, TimeUnit::Second),
        DataType::Time32(_) => temporal!(Time32MillisecondType, TimeUnit::Millisecond),
        DataType::Time64(TimeUnit::Microsecond) => temporal!(Time64MicrosecondType, TimeUnit::Microsecond),
        DataType::Time64(_) => temporal!(Time64NanosecondType, TimeUnit::Nanosecond),
        DataType::Timestamp(TimeUnit::Second, _) => temporal!(TimestampSecondType, TimeUnit::Second),
        DataType::Timestamp(TimeUnit::Millisecond, _) => temporal!(TimestampMillisecondType, TimeUnit::Millisecond),
        DataType::Timestamp(TimeUnit::Microsecond, _) => temporal!(TimestampMicrosecondType, TimeUnit::Microsecond),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => temporal!(TimestampNanosecondType, TimeUnit::Nanosecond),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            let mut builder = StringBuilder::new();
            for v in values {
                match v {
                    Value::Null => builder.append_null(),
                    Value::Text(v) => builder.append_value(v),
                    other => return Err(wrong(other)),
                }
            }
            Arc::new(builder.finish())
        }
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
            let mut builder = BinaryBuilder::new();
            for v in values {
                match v {
                    Value::Null => builder.append_null(),
                    Value::Bytes(v) => builder.append_value(v),
                    other => return Err(wrong(other)),
                }
            }
            Arc::new(builder.finish())
        }
        DataType::FixedSizeBinary(n) => {
            let mut builder = FixedSizeBinaryBuilder::new(*n);
            for v in values {
                match v {
                    Value::Null => builder.append_null(),
                    Value::Uuid(v) => builder.append_value(v)?,
                    Value::Bytes(v) => builder.append_value(v)?,
                    other => return Err(wrong(other)),
                }
            }
            Arc::new(builder.finish())
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let mut builder = IntervalMonthDayNanoBuilder::new();
            for v in values {
                match v {
                    Value::Null => builder.append_null(),
                    Value::Interval { months, days, nanos } => {
                        builder.append_value(IntervalMonthDayNanoType::make_value(*months, *days, *nanos));
                    }
                    other => return Err(wrong(other)),
                }
            }
            Arc::new(builder.finish())
        }
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            let (mut children, mut lengths, mut valid) = (Vec::new(), Vec::new(), Vec::new());
            for v in values {
                match v {
                    Value::Null => lengths.push(0),
                    Value::List(items) => {
                        lengths.push(items.len());
                        children.extend(items);
                    }
                    other => return Err(wrong(other)),
                }
                valid.push(!v.is_null());
            }
            let child = from_refs(&children, field.data_type())?;
            let list = ListArray::try_new(field.clone(), OffsetBuffer::from_lengths(lengths), child, Some(valid.into()))?;
            Arc::new(list)
        }
        DataType::Struct(fields) => {
            let valid: Vec<bool> = values.iter().map(|v| !v.is_null()).collect();
            let mut columns = Vec::new();
            for field in fields {
                let picked = values.iter().map(|&v| match v {
                    Value::Struct(fields) => Ok(fields.iter().find(|(n, _)| &**n == field.name()).map_or(&Value::Null, |(_, v)| v)),
                    Value::Null => Ok(&Value::Null),
                    other => Err(wrong(other)),
                });
                let column = picked.collect::<Result<Vec<_>>>()?;
                columns.push(from_refs(&column, field.data_type())?);
            }
            Arc::new(StructArray::try_new_with_length(fields.clone(), columns, Some(valid.into()), values.len())?)
        }
        DataType::Map(entries, sorted) => {
            let DataType::Struct(kv) = entries.data_type() else { return Err(wrong(&Value::Null)) };
            let (mut keys, mut items, mut lengths, mut valid) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for v in values {
                let length = match v {
                    Value::Map(pairs) => {
                        pairs.iter().for_each(|(k, v)| {
                            keys.push(k);
                            items.push(v);
                        });
                        pairs.len()
                    }
                    Value::Null => 0,
                    other => return Err(wrong(other)),
                };
                lengths.push(length);
                valid.push(!v.is_null());
            }
            let columns = vec![from_refs(&keys, kv[0].data_type())?, from_refs(&items, kv[1].data_type())?];
            let entries_array = StructArray::try_new_with_length(kv.clone(), columns, None, keys.len())?;
            let offsets = OffsetBuffer::from_lengths(lengths);
            Arc::new(MapArray::try_new(entries.clone(), offsets, entries_array, Some(valid.into()), *sorted)?)
        }
        other if plain(other) != *other => from_refs(values, &plain(other))?,
        other => return Err(cannot_make(other)),
    };
    relaid(&array, ty)
}
