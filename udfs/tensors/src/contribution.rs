//! A model as the text that stands for it in a `model_set`.

use crate::checkpoint::Checkpoint;
use crate::request::stem;
use crate::sealed::contribution;
use mergeql_udfs::functions::Function;
use mergeql_udfs::merkle::hex;
use mergeql_udfs::{Error, Result, Type, Value};
use serde_json::json;
use std::path::Path;

/// The contribution of a file, folder or index: JSON with its hash, name, place, weight and version. Every byte is read.
///
/// # Errors
/// As [`Checkpoint::open`].
pub fn describe(path: &str, name: Option<&str>, weight: Option<f64>, version: Option<&str>) -> Result<String> {
    let stem = stem(Path::new(path));
    let name = name.unwrap_or(&stem);
    if let Some(weight) = weight.filter(|w| !w.is_finite()) {
        return Err(Error::invalid_argument(format!("a model counts by a number, not by {weight}")));
    }
    let hash = contribution(name, &Checkpoint::open(path)?, weight, version)?;
    let mut leaf = serde_json::Map::new();
    leaf.insert("name".into(), json!(name));
    leaf.insert("path".into(), json!(path));
    leaf.insert("sha256".into(), json!(hex(&hash)));
    if let Some(version) = version {
        leaf.insert("version".into(), json!(version));
    }
    if let Some(weight) = weight {
        leaf.insert("weight".into(), json!(weight));
    }
    Ok(serde_json::Value::Object(leaf).to_string())
}

/// The scalar functions that read files, for hosts that let them.
pub fn functions() -> Vec<Function> {
    vec![Function::of(
        "model_contribution",
        "a model as a contribution to a model_set: its file, and perhaps a name, a weight and a version",
        1..=4,
        Type::Text,
        |a| {
            let text = |i: usize| match a.get(i) {
                None | Some(Value::Null) => Ok(None),
                Some(Value::Text(text)) => Ok(Some(text.to_string())),
                Some(other) => Err(Error::invalid_argument(format!("`model_contribution` takes texts and a weight, not {other}"))),
            };
            let weight = a.get(2).and_then(Value::to_f64);
            match text(0)? {
                None => Ok(Value::Null),
                Some(path) => Ok(Value::text(describe(&path, text(1)?.as_deref(), weight, text(3)?.as_deref())?)),
            }
        },
    )]
}
