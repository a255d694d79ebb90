//! Runs the `.slt` files in the engine. Their SQL is portable: other hosts run the same files.

use mergeql::columns::value_at;
use mergeql::{Config, MergeContext, MergeError};
use mergeql_udfs::Value;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};

struct Engine(MergeContext);

/// One text for every value on every host.
pub fn show(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Text(t) if t.is_empty() => "(empty)".to_owned(),
        other => other.to_string(),
    }
}

#[async_trait::async_trait]
impl AsyncDB for Engine {
    type Error = MergeError;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, MergeError> {
        let frame = self.0.sql(sql).await?;
        let types = vec![DefaultColumnType::Any; frame.schema().fields().len()];
        let mut rows = Vec::new();
        for batch in frame.collect().await? {
            for i in 0..batch.num_rows() {
                rows.push(batch.columns().iter().map(|c| show(&value_at(c, i))).collect());
            }
        }
        let upper = sql.trim_start().to_uppercase();
        if ["CREATE", "DROP", "INSERT"].iter().any(|w| upper.starts_with(w)) {
            return Ok(DBOutput::StatementComplete(0));
        }
        Ok(DBOutput::Rows { types, rows })
    }

    fn engine_name(&self) -> &str {
        "mergeql"
    }

    async fn shutdown(&mut self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn every_slt_file_passes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/slt");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "no .slt files in {folder}");
    let mut failures = Vec::new();
    for file in files {
        for threads in [1, 4] {
            let mut runner = Runner::new(|| async move {
                let config = Config { threads: Some(threads), ..Config::default() };
                Ok(Engine(MergeContext::new(config)?))
            });
            if let Err(e) = runner.run_file_async(&file).await {
                failures.push(format!("{} with {threads} threads: {e}", file.display()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
