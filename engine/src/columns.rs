//! Arrow columns lent to the core without copying, and the core's results as Arrow arrays.

use arrow::array::*;
use arrow::buffer::{BooleanBuffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::*;
use datafusion::common::{DataFusionError, Result};
use mergeql_udfs::{Bits, Code, Column, Data, Error, OwnedColumn, OwnedData, Ranges, Strings, Type, Unit, Value};
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

/// What has to be built before an array can be lent: slices of views, children.
pub enum Lent<'a> {
    /// Lent as it is.
    Direct(Data<'a>),
    /// One slice a row.
    Slices(Vec<&'a [u8]>, bool),
    /// UUIDs.
    Uuids(&'a [[u8; 16]]),
    /// The fields of structs.
    Fields(Vec<(Arc<str>, Lent<'a>, &'a dyn Array)>),
    /// Where each row's items are, and what they are.
    Items(Ranges<'a>, Data<'a>, &'a dyn Array),
    /// Values of rarer types.
    Values(Vec<Value>),
}

/// Prepares a normalized array for lending.
pub fn lend(array: &dyn Array) -> Lent<'_> {
    macro_rules! direct {
        ($t:ty, $variant:ident) => {
            Lent::Direct(Data::$variant(array.as_primitive::<$t>().values()))
        };
    }
    match array.data_type() {
        DataType::Null => Lent::Direct(Data::Null),
        DataType::Boolean => {
            let values = array.as_boolean().values();
            Lent::Direct(Data::Boolean(Bits::new(values.values(), values.offset())))
        }
        DataType::Int8 => direct!(Int8Type, Int8),
        DataType::Int16 => direct!(Int16Type, Int16),
        DataType::Int32 => direct!(Int32Type, Int32),
        DataType::Int64 => direct!(Int64Type, Int64),
        DataType::UInt8 => direct!(UInt8Type, UInt8),
        DataType::UInt16 => direct!(UInt16Type, UInt16),
        DataType::UInt32 => direct!(UInt32Type, UInt32),
        DataType::UInt64 => direct!(UInt64Type, UInt64),
        DataType::Float32 => direct!(Float32Type, Float32),
        DataType::Float64 => direct!(Float64Type, Float64),
        DataType::Date32 => direct!(Date32Type, Date),
        DataType::Decimal128(_, scale) => {
            Lent::Direct(Data::Decimal { values: array.as_primitive::<Decimal128Type>().values(), scale: *scale })
        }
        DataType::Time64(TimeUnit::Microsecond) => {
            Lent::Direct(Data::Time { values: array.as_primitive::<Time64MicrosecondType>().values(), unit: Unit::Microsecond })
        }
        DataType::Time64(_) => {
            Lent::Direct(Data::Time { values: array.as_primitive::<Time64NanosecondType>().values(), unit: Unit::Nanosecond })
        }
        DataType::Timestamp(u, zone) => {
            let values: &[i64] = match u {
                TimeUnit::Second => array.as_primitive::<TimestampSecondType>().values(),
                TimeUnit::Millisecond => array.as_primitive::<TimestampMillisecondType>().values(),
                TimeUnit::Microsecond => array.as_primitive::<TimestampMicrosecondType>().values(),
                TimeUnit::Nanosecond => array.as_primitive::<TimestampNanosecondType>().values(),
            };
            Lent::Direct(Data::Timestamp { values, unit: unit(*u), zoned: zone.is_some() })
        }
        DataType::Utf8 => {
            let a = array.as_string::<i32>();
            Lent::Direct(Data::Text(Strings::Offsets32(a.value_offsets(), a.value_data())))
        }
        DataType::LargeUtf8 => {
            let a = array.as_string::<i64>();
            Lent::Direct(Data::Text(Strings::Offsets64(a.value_offsets(), a.value_data())))
        }
        DataType::Binary => {
            let a = array.as_binary::<i32>();
            Lent::Direct(Data::Bytes(Strings::Offsets32(a.value_offsets(), a.value_data())))
        }
        DataType::LargeBinary => {
            let a = array.as_binary::<i64>();
            Lent::Direct(Data::Bytes(Strings::Offsets64(a.value_offsets(), a.value_data())))
        }
        DataType::Utf8View => {
            let a = array.as_string_view();
            Lent::Slices((0..a.len()).map(|i| a.value(i).as_bytes()).collect(), true)
        }
        DataType::BinaryView => {
            let a = array.as_binary_view();
            Lent::Slices((0..a.len()).map(|i| a.value(i)).collect(), false)
        }
        DataType::FixedSizeBinary(16) => {
            let (chunks, _) = array.as_fixed_size_binary().value_data().as_chunks::<16>();
            Lent::Uuids(&chunks[..array.len()])
        }
        DataType::List(_) => {
            items(Ranges::Offsets32(array.as_list::<i32>().value_offsets()), array, array.as_list::<i32>().values())
        }
        DataType::LargeList(_) => {
            items(Ranges::Offsets64(array.as_list::<i64>().value_offsets()), array, array.as_list::<i64>().values())
        }
        DataType::FixedSizeList(_, n) => items(Ranges::Fixed(*n as usize), array, array.as_fixed_size_list().values()),
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(array.as_struct().columns());
            Lent::Fields(columns.map(|(f, c)| (f.name().as_str().into(), lend(c), &**c)).collect())
        }
        _ => values(array),
    }
}

fn values(array: &dyn Array) -> Lent<'_> {
    Lent::Values((0..array.len()).map(|i| value_at(array, i)).collect())
}

/// Lists whose items are lent as they are; of others only the items of these rows are built, which may be few of many.
fn items<'a>(ranges: Ranges<'a>, lists: &'a dyn Array, child: &'a dyn Array) -> Lent<'a> {
    match lend(&child.slice(0, 0)) {
        Lent::Direct(_) => match lend(child) {
            Lent::Direct(data) => Lent::Items(ranges, data, child),
            other => other,
        },
        _ => values(lists),
    }
}

impl Lent<'_> {
    /// The column of this array.
    pub fn column<'b>(&'b self, array: &'b dyn Array) -> Column<'b> {
        let validity = |array: &'b dyn Array| array.nulls().map(|n| Bits::new(n.inner().values(), n.inner().offset()));
        let data = match self {
            Lent::Direct(data) => data.clone(),
            Lent::Slices(slices, true) => Data::Text(Strings::Slices(slices)),
            Lent::Slices(slices, false) => Data::Bytes(Strings::Slices(slices)),
            Lent::Uuids(ids) => Data::Uuid(ids),
            Lent::Fields(fields) => {
                Data::Struct(fields.iter().map(|(name, lent, array)| (name.clone(), lent.column(*array))).collect())
            }
            Lent::Items(ranges, data, child) => {
                Data::List { ranges: *ranges, child: Box::new(Column { data: data.clone(), validity: validity(*child) }) }
            }
            Lent::Values(values) => return Column::of_values(values),
        };
        Column { data, validity: validity(array) }
    }
}

/// One value of an array.
pub fn value_at(array: &dyn Array, i: usize) -> Value {
    if array.is_null(i) {
        return Value::Null;
    }
    let many = |child: &dyn Array, range: std::ops::Range<usize>| range.map(|j| value_at(child, j)).collect::<Vec<_>>();
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            Value::List(many(list.values(), Ranges::Offsets32(list.value_offsets()).get(i)))
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            Value::List(many(list.values(), Ranges::Offsets64(list.value_offsets()).get(i)))
        }
        DataType::FixedSizeList(_, n) => Value::List(many(array.as_fixed_size_list().values(), Ranges::Fixed(*n as usize).get(i))),
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            Value::record(fields.iter().zip(columns).map(|(f, c)| (f.name().as_str().into(), value_at(c, i))).collect())
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let range = Ranges::Offsets32(map.value_offsets()).get(i);
            Value::map(many(map.keys(), range.clone()).into_iter().zip(many(map.values(), range)).collect())
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let v = array.as_primitive::<IntervalMonthDayNanoType>().value(i);
            Value::Interval { months: v.months, days: v.days, nanos: v.nanoseconds }
        }
        _ => {
            let slice = array.slice(i, 1);
            match normalize(&slice) {
                Ok(slice) if slice.data_type() != array.data_type() => value_at(&slice, 0),
                Ok(slice) => lend(&slice).column(&slice).value(0),
                // What has no place in the typed order can still be shown.
                Err(_) => arrow::util::display::array_value_to_string(&slice, 0).map_or(Value::Null, Value::text),
            }
        }
    }
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
                return Err(external(Error::new(Code::Unsupported, format!("the engine cannot make columns of type {wanted}"))));
            };
            let offsets = offsets.into_iter().map(i32::try_from).collect::<std::result::Result<Vec<_>, _>>();
            let offsets = offsets
                .map_err(|_| external(Error::new(Code::LimitExceeded, "the lists of a batch have over 2147483647 items")))?;
            let child = build(*child, item.data_type())?;
            Arc::new(ListArray::try_new(Arc::clone(item), OffsetBuffer::new(offsets.into()), child, nulls)?)
        }
        OwnedData::Struct(columns) => {
            let DataType::Struct(fields) = wanted else {
                return Err(external(Error::new(Code::Unsupported, format!("the engine cannot make columns of type {wanted}"))));
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
                    Value::Timestamp { nanos: n, .. } => builder.append_value(fitting(v, n / nanos)?),
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
        other => {
            return Err(external(Error::new(Code::Unsupported, format!("the engine cannot make columns of type {other}"))));
        }
    };
    relaid(&array, ty)
}
