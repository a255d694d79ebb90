//! Tables in the place of files: what a strategy needs beside the models (coefficients, masks, Fisher information ...), and names of tensors.

use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Int64Type};
use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use mergeql_tensors::checkpoint::{Checkpoint, Tensor};
use mergeql_tensors::method::{Kind, Value};
use mergeql_tensors::methods;
use mergeql_tensors::plan::{Request, Tables};
use mergeql_udfs::{Code, Error};
use std::collections::BTreeMap;
use std::path::Path;

/// Whether some strategy takes files by a parameter of this name.
fn takes_files(name: &str) -> bool {
    methods::ALL.iter().filter_map(|m| m.param(name)).any(|p| matches!(p.kind, Kind::File | Kind::Files))
}

fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::Text(text) => vec![text],
        Value::List(values) => values.iter().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// What stands in FROM for a text that names a table: a query in parentheses, a file that holds rows, or a table's name.
fn relation(context: &MergeContext, text: &str) -> Result<Option<String>> {
    let path = Path::new(text);
    let rows = path.extension().is_some_and(|e| ["parquet", "csv", "tsv", "json", "ndjson"].iter().any(|rows| e == *rows));
    if text.trim_start().starts_with('(') {
        return Ok(Some(text.to_owned()));
    }
    if path.exists() {
        let index = text.ends_with(".index.json");
        return Ok((path.is_file() && rows && !index).then(|| format!("'{}'", text.replace('\'', "''"))));
    }
    Ok(context.session().table_exist(text)?.then(|| text.to_owned()))
}

/// Reads the tables that a request names where files could stand.
///
/// # Errors
/// As running queries; `type_mismatch` and `invalid_argument` for rows that are no tensors.
pub(super) async fn read(context: &MergeContext, request: &Request) -> Result<Tables> {
    let mut tables = Tables::default();
    let params = request.rules.iter().flat_map(|rule| &rule.params).chain(&request.options.common);
    for text in params.filter(|(name, _)| takes_files(name)).flat_map(|(_, value)| texts(value)) {
        if tables.tensors.contains_key(text) {
            continue;
        }
        if let Some(from) = relation(context, text)? {
            let batches = collected(context, format!("SELECT * FROM {from}"), text).await?;
            tables.tensors.insert(text.to_owned(), checkpoint(text, &batches)?);
        }
    }
    // Files of names are lists of `from,to`, and read as such.
    for text in request.options.names.iter().filter(|text| !Path::new(text).exists()) {
        if let Some(from) = relation(context, text)? {
            let batches = collected(context, format!("SELECT * FROM {from}"), text).await?;
            tables.names.insert(text.clone(), names(text, &batches)?);
        }
    }
    Ok(tables)
}

/// The rows of a query; boxed, for a statement runs it.
fn collected<'a>(context: &'a MergeContext, query: String, text: &'a str) -> BoxFuture<'a, Result<Vec<RecordBatch>>> {
    let run = async move { context.sql(&query).await?.collect().await.map_err(MergeError::from) };
    let named = move |e: MergeError| {
        let mut diagnostic = e.diagnostic;
        diagnostic.message = format!("the table `{text}`: {}", diagnostic.message);
        // Its place is in the query, not in the statement.
        diagnostic.span = None;
        diagnostic.into()
    };
    run.map_err(named).boxed()
}

fn wrong(text: &str, what: impl std::fmt::Display) -> MergeError {
    let help = "a table of tensors has a column `tensor` with names, and `data` with numbers, or lists of them in the shape of the tensor; \
                or flat lists, and `shape` beside them";
    Error::invalid_argument(format!("the table `{text}` {what}")).with_help(help).into()
}

fn column<'b>(text: &str, batch: &'b RecordBatch, name: &str) -> Result<&'b ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| wrong(text, format!("has no column `{name}`")))
}

/// The tensors of a table's rows, one each.
fn checkpoint(text: &str, batches: &[RecordBatch]) -> Result<Checkpoint> {
    let mut tensors = BTreeMap::new();
    for batch in batches {
        let names = cast(column(text, batch, "tensor")?, &DataType::Utf8)?;
        let data = column(text, batch, "data")?;
        let shapes = batch.column_by_name("shape").map(|s| cast(s, &DataType::new_list(DataType::Int64, true))).transpose()?;
        for row in 0..batch.num_rows() {
            if names.is_null(row) {
                return Err(wrong(text, "has a row without a name"));
            }
            let name = names.as_string::<i32>().value(row);
            let mut values = Vec::new();
            let mut shape =
                flatten(&data.slice(row, 1), &mut values).map_err(|what| wrong(text, format!("has a tensor `{name}` {what}")))?;
            if let Some(shapes) = shapes.as_ref().filter(|shapes| shapes.is_valid(row)) {
                let given = shapes.as_list::<i32>().value(row);
                shape = given.as_primitive::<Int64Type>().values().iter().map(|n| *n as usize).collect();
                if shape.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis)) != Some(values.len()) {
                    return Err(wrong(text, format!("has a tensor `{name}` of the shape {shape:?} with {} numbers", values.len())));
                }
            }
            // What is one number counts as a list of one, unless a shape says otherwise.
            let said = shapes.as_ref().is_some_and(|shapes| shapes.is_valid(row));
            let shape = if shape.is_empty() && !said { vec![1] } else { shape };
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Err(wrong(text, format!("has a tensor `{name}` with {} at element {at}", values[at])));
            }
            if tensors.insert(name.to_owned(), Tensor::memory(name, &shape, values)).is_some() {
                return Err(wrong(text, format!("has two rows for the tensor `{name}`")));
            }
        }
    }
    Ok(Checkpoint { path: text.into(), tensors, metadata: String::new() })
}

/// Appends the numbers of the one value of an array, and gives its shape.
fn flatten(value: &ArrayRef, out: &mut Vec<f32>) -> Result<Vec<usize>, String> {
    if value.is_null(0) {
        return Err("with a NULL in it".to_owned());
    }
    let items = match value.data_type() {
        DataType::List(_) => value.as_list::<i32>().value(0),
        DataType::LargeList(_) => value.as_list::<i64>().value(0),
        DataType::FixedSizeList(..) => value.as_fixed_size_list().value(0),
        kind if kind.is_numeric() || *kind == DataType::Boolean => {
            let number = cast(value, &DataType::Float32).map_err(|e| format!("that is no number: {e}"))?;
            out.push(number.as_primitive::<Float32Type>().value(0));
            return Ok(Vec::new());
        }
        kind => return Err(format!("of type {kind}")),
    };
    let nested = matches!(items.data_type(), DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..));
    if !nested {
        if items.null_count() > 0 {
            return Err("with a NULL in it".to_owned());
        }
        if !(items.data_type().is_numeric() || *items.data_type() == DataType::Boolean || items.is_empty()) {
            return Err(format!("of {}", items.data_type()));
        }
        let numbers = cast(&items, &DataType::Float32).map_err(|e| format!("that are no numbers: {e}"))?;
        out.extend_from_slice(numbers.as_primitive::<Float32Type>().values());
        return Ok(vec![items.len()]);
    }
    let mut within: Option<Vec<usize>> = None;
    for row in 0..items.len() {
        let shape = flatten(&items.slice(row, 1), out)?;
        if within.as_ref().is_some_and(|other| *other != shape) {
            return Err("whose lists are not as long as each other".to_owned());
        }
        within = Some(shape);
    }
    Ok(std::iter::once(items.len()).chain(within.unwrap_or_default()).collect())
}

/// The names of a table's rows: what they are, and what they become.
fn names(text: &str, batches: &[RecordBatch]) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for batch in batches {
        let [from, to] = batch.columns() else {
            let what = format!("the table `{text}` has {} columns", batch.num_columns());
            return Err(Error::new(Code::InvalidArgument, what)
                .with_help("names are two columns: what they are, and what they become")
                .into());
        };
        let (from, to) = (cast(from, &DataType::Utf8)?, cast(to, &DataType::Utf8)?);
        let rows = from.as_string::<i32>().iter().zip(to.as_string::<i32>());
        for (from, to) in rows {
            let pair =
                from.zip(to).ok_or_else(|| Error::invalid_argument(format!("the table `{text}` has a NULL among its names")))?;
            pairs.push((pair.0.to_owned(), pair.1.to_owned()));
        }
    }
    Ok(pairs)
}
