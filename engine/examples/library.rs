//! MergeQL as a library: `cargo run -p mergeql --example library` in the root of the project.

use mergeql::{Config, MergeContext, MergeError};

#[tokio::main]
async fn main() -> Result<(), MergeError> {
    let merge = MergeContext::new(Config::default())?;
    merge.register_source("list", "examples/countries_list.csv").await?;
    merge.register_source("info", "examples/countryinfo.parquet").await?;
    let statement = "MERGE list, info ON code STRATEGY capital = source(list, info), currencies = union ORDER BY code LIMIT 5";
    merge.sql(statement).await?.show().await?;
    Ok(())
}
