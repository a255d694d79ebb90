//! The folds that users defined: workers know them by a header of each request, since functions cross the network by name alone.

use crate::custom::fold_function;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use datafusion::common::Result;
use datafusion::logical_expr::ScalarUDF;
use datafusion::prelude::SessionConfig;
use datafusion_distributed::DistributedExt;
use mergeql_lang::plan::Fold;
use serde_json::{Value, json};
use tonic::codegen::http::{HeaderMap, HeaderValue};

const HEADER: &str = "x-mergeql-folds";

/// Makes requests carry these folds.
pub(crate) fn send<'a>(folds: impl Iterator<Item = &'a Fold>, config: &mut SessionConfig) -> Result<()> {
    let fold = |f: &Fold| json!({ "name": f.name, "left": f.left, "right": f.right, "step": f.step, "compact": f.compact });
    let text = Value::Array(folds.map(fold).collect()).to_string();
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(&STANDARD.encode(text)) {
        headers.insert(HEADER, value);
    }
    config.set_distributed_passthrough_headers(headers)
}

/// The folds of a request, as functions. What is not one is left out: the plan then misses its function, and says so.
pub(super) fn received(headers: &HeaderMap) -> Vec<ScalarUDF> {
    let read = || {
        let text = STANDARD.decode(headers.get(HEADER)?.as_bytes()).ok()?;
        serde_json::from_slice::<Value>(&text).ok()
    };
    let fold = |fold: &Value| {
        let text = |name: &str| fold[name].as_str().map(str::to_owned);
        let compact = fold["compact"].as_bool()?;
        let fold = Fold { name: text("name")?, left: text("left")?, right: text("right")?, step: text("step")?, compact };
        Some(fold_function(fold))
    };
    read().as_ref().and_then(Value::as_array).into_iter().flatten().filter_map(fold).collect()
}
