//! A memory limit changes the plan, never the answer.

use mergeql::columns::value_at;
use mergeql::{Config, MergeContext};

/// A checksum over all rows that does not depend on their order.
async fn checksum(config: Config) -> (String, bool) {
    let context = MergeContext::new(config).unwrap();
    let source = |offset: usize| {
        format!(
            "(SELECT (v * 7919) % 200000 + {offset} AS id, v AS n, 'tag' || CAST(v % 7 AS VARCHAR) || ',x' AS tags, \
             'name ' || CAST(v % 1000 AS VARCHAR) AS name, v % 13 AS ts FROM generate_series(1, 200000) AS g(v)) AS s{offset}"
        )
    };
    let merge = format!("MERGE {}, {} ON id STRATEGY n = max, tags = union, * = lww VERSION BY ts", source(0), source(100_000));
    let sql =
        format!("SELECT count(*), sum(id), sum(n), sum(length(tags)), sum(length(name)), max(name), sum(ts) FROM ({merge}) AS m");
    let batches = context.sql(&sql).await.unwrap().collect().await.unwrap();
    let row: Vec<String> = (0..7).map(|c| value_at(batches[0].column(c), 0).to_string()).collect();
    let plan = context.sql(&format!("EXPLAIN ANALYZE {merge}")).await.unwrap().collect().await.unwrap();
    let mut text = String::new();
    for batch in &plan {
        (0..batch.num_rows()).for_each(|i| text.push_str(&value_at(batch.column(1), i).to_string()));
    }
    let spilled = text.split("spill_count=").skip(1).any(|rest| !rest.starts_with('0'));
    (row.join("|"), spilled)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_limit_changes_nothing_but_the_plan() {
    let (free, spilled) = checksum(Config::default()).await;
    assert!(!spilled);
    let (bounded, spilled) = checksum(Config { memory_limit: Some(24 << 20), ..Config::default() }).await;
    assert!(spilled, "the limit is too high to test spilling");
    assert_eq!(free, bounded);
}
