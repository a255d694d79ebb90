//! Rows as Postgres' protocol has them.

use super::postgres::told;
use crate::columns::value_at;
use crate::error::{MergeError, Result};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, Field, Schema, TimeUnit};
use bytes::{BufMut, BytesMut};
use datafusion_postgres::arrow_pg::datatypes::arrow_schema_to_pg_fields;
use datafusion_postgres::arrow_pg::encoder::encode_value;
use datafusion_postgres::pgwire::api::portal::Format;
use datafusion_postgres::pgwire::api::results::{DataRowEncoder, FieldInfo};
use datafusion_postgres::pgwire::error::PgWireResult;
use datafusion_postgres::pgwire::messages::data::DataRow;
use datafusion_postgres::pgwire::types::ToSqlText;
use datafusion_postgres::pgwire::types::format::FormatOptions;
use futures::{Stream, StreamExt};
use mergeql_udfs::Code;
use postgres_types::{IsNull, ToSql, Type};
use std::sync::Arc;

/// What the columns of a result are on the wire.
pub(super) fn fields(schema: &Schema, format: &Format, options: Option<Arc<FormatOptions>>) -> Result<Vec<FieldInfo>> {
    let typed = |f: &Arc<Field>| match f.data_type() {
        // Numbers of Postgres' own have any number of digits.
        DataType::Decimal256(..) => f.as_ref().clone().with_data_type(DataType::Decimal128(38, 0)),
        _ => f.as_ref().clone(),
    };
    let schema = Schema::new(shown_schema(schema).fields().iter().map(typed).collect::<Vec<_>>());
    arrow_schema_to_pg_fields(&schema, format, options).map_err(|e| MergeError::new(Code::Unsupported, e.to_string()))
}

/// What values of a type are on the wire.
pub(super) fn wire_type(ty: &DataType) -> Result<Type> {
    let fields = fields(&Schema::new(vec![Field::new("", ty.clone(), true)]), &Format::UnifiedText, None)?;
    Ok(fields.first().map_or(Type::UNKNOWN, |field| field.datatype().clone()))
}

/// Rows, up to the first that fails.
pub(super) fn encoded(
    batches: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    fields: Arc<Vec<FieldInfo>>,
) -> impl Stream<Item = PgWireResult<DataRow>> + Send + 'static {
    let rows = batches.flat_map(move |batch| {
        let fields = fields.clone();
        let rows: Box<dyn Iterator<Item = PgWireResult<DataRow>> + Send> = match batch.and_then(shown) {
            Ok(batch) => {
                let mut encoder = DataRowEncoder::new(fields.clone());
                Box::new((0..batch.num_rows()).map(move |i| row(&mut encoder, &batch, i, &fields)))
            }
            Err(error) => Box::new(std::iter::once(Err(told(&error, "")))),
        };
        futures::stream::iter(rows)
    });
    let mut failed = false;
    rows.take_while(move |row| {
        let before = failed;
        failed |= row.is_err();
        futures::future::ready(!before)
    })
}

fn row(encoder: &mut DataRowEncoder, batch: &RecordBatch, i: usize, fields: &[FieldInfo]) -> PgWireResult<DataRow> {
    for ((column, field), shown) in batch.columns().iter().zip(batch.schema_ref().fields()).zip(fields) {
        let numeric = match column.data_type() {
            DataType::Decimal128(..) => column.as_primitive::<Decimal128Type>().value_as_string(i),
            DataType::Decimal256(..) => column.as_primitive::<Decimal256Type>().value_as_string(i),
            // The library takes what lies behind a NULL for an interval.
            DataType::Interval(_) if column.is_null(i) => {
                encoder.encode_field_with_type_and_format(&None::<i8>, shown.datatype(), shown.format(), shown.format_options())?;
                continue;
            }
            _ => {
                encode_value(encoder, column, i, field, shown)?;
                continue;
            }
        };
        let numeric = column.is_valid(i).then_some(Numeric(numeric));
        encoder.encode_field_with_type_and_format(&numeric, shown.datatype(), shown.format(), shown.format_options())?;
    }
    Ok(encoder.take_row())
}

/// Whether the protocol has a type of values: maps, lists of lists and lists of long decimals it has not.
fn is_known(ty: &DataType) -> bool {
    match ty {
        DataType::Map(..) => false,
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => {
            let inside = f.data_type();
            !matches!(inside, DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..))
                && !matches!(inside, DataType::Decimal128(precision, scale) if *precision > 28 || *scale < 0)
                && !matches!(inside, DataType::Decimal256(..) | DataType::Float16)
                && is_known(inside)
        }
        DataType::Struct(fields) => {
            let known = |ty: &DataType| is_known(ty) && !ty.is_decimal() && !matches!(ty, DataType::Interval(_));
            fields.iter().all(|f| known(f.data_type()))
        }
        DataType::Dictionary(_, values) => is_known(values) && !values.is_decimal(),
        _ => true,
    }
}

fn shown_type(ty: &DataType) -> DataType {
    let inside = |f: &Arc<Field>| Arc::new(f.as_ref().clone().with_data_type(shown_type(f.data_type())));
    match ty {
        DataType::Float16 => DataType::Float32,
        // Postgres has no number of one byte: its "char" is a character.
        DataType::Int8 => DataType::Int16,
        DataType::FixedSizeBinary(_) => DataType::Binary,
        // Postgres' instants have microseconds: the same ones as text and as bytes.
        DataType::Timestamp(TimeUnit::Nanosecond, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::List(f) if is_known(ty) => DataType::List(inside(f)),
        DataType::LargeList(f) if is_known(ty) => DataType::LargeList(inside(f)),
        DataType::Struct(fields) if is_known(ty) => DataType::Struct(fields.iter().map(inside).collect()),
        ty if is_known(ty) => ty.clone(),
        _ => DataType::Utf8,
    }
}

fn shown_schema(schema: &Schema) -> Schema {
    let field = |f: &Arc<Field>| f.as_ref().clone().with_data_type(shown_type(f.data_type()));
    Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>())
}

/// The same rows with JSON in place of values that the protocol does not have.
fn shown(batch: RecordBatch) -> Result<RecordBatch> {
    let schema = shown_schema(batch.schema().as_ref());
    let column = |(column, field): (&ArrayRef, &Arc<Field>)| {
        if column.data_type() == field.data_type() {
            return Ok(column.clone());
        }
        if is_known(column.data_type()) {
            return Ok(arrow::compute::cast(column, field.data_type())?);
        }
        let values = (0..column.len()).map(|i| match value_at(column.as_ref(), i) {
            mergeql_udfs::Value::Null => None,
            value => Some(value.to_json()),
        });
        Ok(Arc::new(values.collect::<StringArray>()) as ArrayRef)
    };
    let columns = batch.columns().iter().zip(schema.fields()).map(column).collect::<Result<Vec<_>>>()?;
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::new(schema), columns, &options)?)
}

/// A decimal by its digits: more than the library's own type has.
#[derive(Debug)]
struct Numeric(String);

type Written = std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>>;

impl ToSqlText for Numeric {
    fn to_sql_text(&self, _: &Type, out: &mut BytesMut, _: &FormatOptions) -> Written {
        out.put_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }
}

impl ToSql for Numeric {
    /// Groups of four digits: their number, the place of the first, the sign, the digits behind the point (Postgres, numeric_send).
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Written {
        let (negative, digits) = self.0.strip_prefix('-').map_or((false, &*self.0), |digits| (true, digits));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let zeros = |n: usize| "0".repeat((4 - n % 4) % 4);
        let padded = format!("{}{whole}{fraction}{}", zeros(whole.len()), zeros(fraction.len()));
        let groups: Vec<i16> = padded.as_bytes().chunks(4).map(|g| g.iter().fold(0, |n, d| 10 * n + i16::from(d - b'0'))).collect();
        let first = groups.iter().position(|g| *g != 0).unwrap_or(groups.len());
        let last = groups.iter().rposition(|g| *g != 0).map_or(first, |last| last + 1);
        out.put_i16((last - first) as i16);
        out.put_i16(if first < last { (whole.len().div_ceil(4) as i16) - 1 - first as i16 } else { 0 });
        out.put_u16(if negative && first < last { 0x4000 } else { 0 });
        out.put_u16(fraction.len() as u16);
        groups[first..last].iter().for_each(|g| out.put_i16(*g));
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::NUMERIC
    }

    postgres_types::to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_types::FromSql;

    /// A reader of Postgres' own format reads them.
    #[test]
    fn numbers_have_postgres_bytes() {
        for text in
            ["0", "0.00", "1", "-1", "10000", "12345678", "0.5", "-0.0001", "0.00001", "100.5", "-99999999.99999999", "10000.0001"]
        {
            let mut bytes = BytesMut::new();
            Numeric(text.to_owned()).to_sql_checked(&Type::NUMERIC, &mut bytes).expect("it is written");
            let read = rust_decimal::Decimal::from_sql(&Type::NUMERIC, &bytes).expect("a number");
            assert_eq!(read, text.parse().expect("a number"), "{text}");
        }
        // One group of four digits, the second before the point.
        let mut bytes = BytesMut::new();
        Numeric("10000".to_owned()).to_sql(&Type::NUMERIC, &mut bytes).expect("it is written");
        assert_eq!(bytes.as_ref(), [0, 1, 0, 1, 0, 0, 0, 0, 0, 1]);
    }

    #[tokio::test]
    async fn what_fails_ends_the_rows() {
        let failing = futures::stream::repeat_with(|| Err(MergeError::new(Code::Unsupported, "no more")));
        assert_eq!(encoded(failing, Arc::default()).count().await, 1);
    }
}
