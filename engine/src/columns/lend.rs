//! Arrow arrays lent to the core without copying where they lie as it wants them.

use super::{normalize, unit};
use arrow::array::*;
use arrow::datatypes::*;
use mergeql_udfs::{Bits, Column, Data, Ranges, Strings, Unit, Value};
use std::sync::Arc;

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
