//! Cases as lines of JSON: a statement, its sources, and the rows or the error code that must come out.

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema};
use mergeql::columns::{from_values, physical, value_at};
use mergeql::{Config, MergeContext, MergeError};
use mergeql_udfs::{Error, Type, Unit, Value};
use serde_json::Value as Json;
use std::sync::Arc;

/// A case.
#[derive(Debug)]
pub struct Case {
    /// Its name.
    pub id: String,
    /// The statement.
    pub statement: String,
    sources: Vec<(String, Vec<Json>)>,
    expect: Json,
}

/// A row: names and values, NULLs left out, sorted by name.
pub type Row = Vec<(String, Value)>;

/// Reads a file of cases.
///
/// # Panics
/// If the file is not one of cases.
pub fn read(text: &str) -> Vec<Case> {
    let case = |line: &str| {
        let json: Json = serde_json::from_str(line).expect("a case is JSON");
        let sources = json["sources"].as_object().expect("sources");
        Case {
            id: json["id"].as_str().expect("id").to_owned(),
            statement: json["statement"].as_str().expect("statement").to_owned(),
            sources: sources.iter().map(|(n, rows)| (n.clone(), rows.as_array().expect("rows").clone())).collect(),
            expect: json["expect"].clone(),
        }
    };
    text.lines().filter(|l| !l.trim().is_empty()).map(case).collect()
}

/// Digits since the epoch of a date, for the cases' own dates (Howard Hinnant's days_from_civil).
fn days(text: &str) -> i32 {
    let part = |range: std::ops::Range<usize>| text[range].parse::<i64>().expect("a date");
    let (mut y, m, d) = (part(0..4), part(5..7), part(8..10));
    y -= i64::from(m <= 2);
    let era = y.div_euclid(400);
    let of_era = y.rem_euclid(400);
    let of_year = (153 * ((m + 9) % 12) + 2) / 5 + d - 1;
    (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468) as i32
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => match n.to_string().parse::<i128>() {
            Ok(v) => Value::Int(v),
            Err(_) => Value::float(n.as_f64().expect("a number")),
        },
        Json::String(s) => Value::text(s.as_str()),
        Json::Array(items) => Value::List(items.iter().map(value).collect()),
        Json::Object(fields) => match fields.iter().next() {
            Some((tag, Json::String(text))) if tag == "$date" => Value::Date(days(text)),
            Some((tag, Json::String(text))) if tag == "$ts" => {
                let part = |range: std::ops::Range<usize>| text[range].parse::<i128>().expect("a time");
                let seconds = part(11..13) * 3600 + part(14..16) * 60 + part(17..19);
                let nanos = (i128::from(days(text)) * 86_400 + seconds) * 1_000_000_000;
                Value::Timestamp { nanos, zoned: false }
            }
            Some((tag, Json::String(text))) if tag == "$dec" => {
                let scale = text.split_once('.').map_or(0, |(_, f)| f.len()) as u8;
                Value::Decimal { unscaled: text.replace('.', "").parse().expect("a decimal"), scale }
            }
            Some((tag, Json::String(text))) if tag == "$f" => Value::float(text.parse().expect("a float")),
            Some((tag, Json::String(text))) if tag == "$bytes" => {
                let byte = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).expect("hex");
                Value::Bytes((0..text.len()).step_by(2).map(byte).collect())
            }
            _ => Value::record(fields.iter().map(|(n, v)| (n.as_str().into(), value(v))).collect()),
        },
    }
}

fn type_of(value: &Value) -> Type {
    match value {
        Value::Null => Type::Null,
        Value::Bool(_) => Type::Boolean,
        Value::Int(_) => Type::INT64,
        Value::Float(_) => Type::Float64,
        Value::Decimal { scale, .. } => Type::Decimal { precision: 38.min(18 + scale), scale: *scale as i8 },
        Value::Text(_) => Type::Text,
        Value::Bytes(_) => Type::Bytes,
        Value::Date(_) => Type::Date,
        Value::Time(_) => Type::Time(Unit::Microsecond),
        Value::Timestamp { zoned, .. } => Type::Timestamp { unit: Unit::Microsecond, zone: zoned.then(|| "UTC".into()) },
        Value::Interval { .. } => Type::Interval,
        Value::Uuid(_) => Type::Uuid,
        Value::List(items) => {
            let widened = items.iter().try_fold(Type::Null, |ty, item| Type::widen(&ty, &type_of(item)));
            Type::List(Box::new(widened.unwrap_or(Type::Text)))
        }
        Value::Struct(fields) => Type::Struct(fields.iter().map(|(n, v)| (n.clone(), type_of(v))).collect()),
        Value::Map(_) => Type::Null,
    }
}

/// The rows of a source as a batch; the columns in order of first appearance.
fn batch(rows: &[Json]) -> Result<RecordBatch, MergeError> {
    let mut names: Vec<&String> = Vec::new();
    for row in rows {
        names.extend(row.as_object().expect("a row").keys().filter(|k| !names.contains(k)).collect::<Vec<_>>());
    }
    let (mut fields, mut arrays) = (Vec::new(), Vec::new());
    for name in names {
        let values: Vec<Value> = rows.iter().map(|r| r.get(name).map_or(Value::Null, value)).collect();
        let ty =
            values.iter().try_fold(Type::Null, |ty, v| Type::widen(&ty, &type_of(v))).map_err(|e: Error| MergeError::from(e))?;
        arrays.push(from_values(&values, &physical(&ty))?);
        fields.push(Field::new(name, physical(&ty), true));
    }
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.len()));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)?)
}

/// The strategy that `custom:sum` stands for in cases.
pub const SUM: &str = "CREATE STRATEGY sum AS FOLD (a, b) -> a + b";

/// Batches as rows of cases.
pub fn rows_of(batches: &[RecordBatch]) -> Vec<Row> {
    let mut out = Vec::new();
    for batch in batches {
        for i in 0..batch.num_rows() {
            let schema = batch.schema();
            let cell = |c: usize| (schema.field(c).name().clone(), value_at(batch.column(c), i).to_worth());
            let mut row: Row = (0..batch.num_columns()).map(cell).filter(|(_, v)| !v.is_null()).collect();
            row.sort_by(|a, b| a.0.cmp(&b.0));
            out.push(row);
        }
    }
    out
}

impl Case {
    /// Runs the case in a session of its own with its sources in the given order and rows rotated by `turn`.
    ///
    /// # Errors
    /// The statement's own error, or that of a source that is no table.
    pub async fn run(&self, turn: usize, threads: usize) -> Result<Vec<Row>, MergeError> {
        let context = MergeContext::new(Config { threads: Some(threads), ..Config::default() })?;
        context.sql(SUM).await?;
        for (name, batch) in self.tables(turn)? {
            let table = mergeql::datafusion::datasource::MemTable::try_new(batch.schema(), vec![vec![batch]])?;
            context.session().register_table(mergeql::datafusion::common::TableReference::bare(name), Arc::new(table))?;
        }
        Ok(rows_of(&context.sql(&self.statement).await?.collect().await?))
    }

    /// The sources as batches, their rows rotated by `turn`.
    ///
    /// # Errors
    /// `type_mismatch` for a source that is no table.
    pub fn tables(&self, turn: usize) -> Result<Vec<(&str, RecordBatch)>, MergeError> {
        let table = |rows: &[Json]| {
            let mut rows = rows.to_vec();
            let n = rows.len();
            if n > 0 {
                rows.rotate_left(turn % n);
            }
            batch(&rows)
        };
        self.sources.iter().map(|(name, rows)| Ok((name.as_str(), table(rows)?))).collect()
    }

    /// Whether a result, or the text of an error, is the expected one; otherwise what differs.
    pub fn judge(&self, result: &Result<Vec<Row>, String>) -> Result<(), String> {
        if let Some(code) = self.expect.get("error").and_then(Json::as_str) {
            return match result {
                Err(e) if code == "any" || e.contains(&format!("error[{code}]")) => Ok(()),
                Err(e) => Err(format!("expected {code}, got {e}")),
                Ok(rows) => Err(format!("expected {code}, got {rows:?}")),
            };
        }
        let expected = self.expect.as_array().expect("rows").iter().map(|row| {
            let mut row: Row = row.as_object().expect("a row").iter().map(|(n, v)| (n.clone(), value(v).to_worth())).collect();
            row.retain(|(_, v)| !v.is_null());
            row.sort_by(|a, b| a.0.cmp(&b.0));
            row
        });
        let mut expected: Vec<Row> = expected.collect();
        let mut rows = result.as_ref().map_err(|e| format!("expected rows, got {e}"))?.clone();
        let upper = self.statement.to_uppercase();
        if !upper.contains(" ORDER BY ") && !upper.contains(" LIMIT ") {
            rows.sort();
            expected.sort();
        }
        if rows == expected { Ok(()) } else { Err(format!("expected {expected:?}\n     got {rows:?}")) }
    }
}
