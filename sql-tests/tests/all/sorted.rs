//! The sorted plan and the hashed one against the general one: the same rows, for keys of every kind, and a clear error for sources that are not sorted.

use mergeql::{Config, MergeContext};
use mergeql_udfs::laws::Random;
use std::fmt::Write;
use std::path::Path;

/// What a key is made of, and how it is ordered in the file.
struct Keys {
    name: &'static str,
    /// The text of the key that belongs to a number; empty is NULL.
    text: fn(usize) -> String,
    columns: &'static str,
    types: &'static str,
}

const KEYS: [Keys; 8] = [
    Keys { name: "integers", text: |n| n.to_string(), columns: "k", types: "CAST(k AS BIGINT) AS k" },
    Keys { name: "negative", text: |n| (n as i64 - 70).to_string(), columns: "k", types: "CAST(k AS INT) AS k" },
    Keys { name: "text", text: |n| format!("key {n}"), columns: "k", types: "k" },
    Keys { name: "dates", text: |n| format!("20{:02}-0{}-11", n % 90, n % 9 + 1), columns: "k", types: "CAST(k AS DATE) AS k" },
    Keys {
        name: "timestamps",
        text: |n| format!("2026-01-{:02}T{:02}:00:00.5", n % 28 + 1, n % 24),
        columns: "k",
        types: "CAST(k AS TIMESTAMP) AS k",
    },
    Keys { name: "decimals", text: |n| format!("{n}.5"), columns: "k", types: "CAST(k AS DECIMAL(9, 2)) AS k" },
    Keys { name: "two columns", text: |n| format!("{},g{}", n % 5, n / 5), columns: "k,g", types: "CAST(k AS BIGINT) AS k, g" },
    Keys {
        name: "with NULLs",
        text: |n| if n.is_multiple_of(9) { String::new() } else { n.to_string() },
        columns: "k",
        types: "CAST(k AS BIGINT) AS k",
    },
];

async fn rows(context: &MergeContext, sql: &str) -> Result<Vec<String>, String> {
    let frame = context.sql(sql).await.map_err(|e| e.to_string())?;
    let stream = context.stream(frame).await.map_err(|e| e.to_string())?;
    let batches = mergeql::collect(stream).await.map_err(|e| e.to_string())?;
    let row = |b: &arrow::array::RecordBatch, i: usize| {
        b.columns().iter().map(|c| mergeql::columns::value_at(c, i).to_string()).collect::<Vec<_>>().join("|")
    };
    Ok(batches.iter().flat_map(|b| (0..b.num_rows()).map(|i| row(b, i)).collect::<Vec<_>>()).collect())
}

/// A source: some rows of few keys, in files that are sorted by them.
async fn source(context: &MergeContext, folder: &Path, name: &str, keys: &Keys, random: &mut Random) {
    let mut text = format!("{},amount,tag,at\n", keys.columns);
    let count = random.below(1500);
    for _ in 0..count {
        let key = (keys.text)(random.below(400));
        let (amount, tag, at) = (random.below(1000), random.below(9), random.below(28) + 1);
        writeln!(text, "{key},{amount},t{tag},2026-01-{at:02}").unwrap();
    }
    if count == 0 {
        writeln!(text, "{},1,t,2026-01-01", (keys.text)(1)).unwrap();
    }
    let csv = folder.join(format!("{name}.csv"));
    std::fs::write(&csv, text).unwrap();
    let order: Vec<String> = keys.columns.split(',').map(|c| format!("{c} ASC NULLS FIRST")).collect();
    let select = format!("SELECT {}, amount, tag, at FROM '{}' ORDER BY {}", keys.types, csv.display(), order.join(", "));
    for (ending, written) in [("parquet", "PARQUET"), ("sorted.csv", "CSV")] {
        let path = folder.join(format!("{name}.{ending}"));
        rows(context, &format!("COPY ({select}) TO '{}' STORED AS {written}", path.display())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_plan_gives_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random(11);
    let context = MergeContext::new(Config { threads: Some(3), ..Config::default() }).unwrap();
    // In one partition there is the general plan alone.
    let single = MergeContext::new(Config { threads: Some(1), ..Config::default() }).unwrap();
    let (mut walked, mut hashed) = (0, 0);
    for keys in &KEYS {
        for round in 0..2 {
            for name in ["a", "b", "c"] {
                source(&context, folder.path(), name, keys, &mut random).await;
            }
            let place = folder.path().display();
            for ending in ["parquet", "sorted.csv"] {
                for (clauses, end) in [
                    ("STRATEGY amount = max, tag = union, * = lww VERSION BY at", ""),
                    ("STRATEGY amount = counter, tag = all, * = fww VERSION BY at WHERE amount > 300", ""),
                    ("VERSION BY at", "RETURNING CONFLICTS"),
                ] {
                    let merge = |sorted: bool| {
                        format!(
                            "MERGE '{place}/a.{ending}', '{place}/b.{ending}', '{place}/c.{ending}' ON ({}) {clauses} {end} \
                             WITH (sorted = {sorted})",
                            keys.columns
                        )
                    };
                    let what = format!("{} {round} {ending} {clauses} {end}", keys.name);
                    let mut general = rows(&single, &merge(false)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
                    let mut unsorted = rows(&context, &merge(false)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
                    let mut sorted = rows(&context, &merge(true)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
                    let plan = rows(&context, &format!("EXPLAIN {}", merge(true))).await.unwrap().join("\n");
                    walked += usize::from(plan.contains("SortedMerge: "));
                    let plan = rows(&context, &format!("EXPLAIN {}", merge(false))).await.unwrap().join("\n");
                    assert!(!plan.contains("SortedMerge"));
                    hashed += usize::from(plan.contains("HashedMerge: "));
                    assert!(!rows(&single, &format!("EXPLAIN {}", merge(false))).await.unwrap().join("\n").contains("HashedMerge"));
                    general.sort();
                    unsorted.sort();
                    assert_eq!(general, unsorted, "{what}");
                    sorted.sort();
                    assert_eq!(general, sorted, "{what}");
                }
            }
        }
    }
    // By integers, dates and timestamps, of files that are read in several partitions.
    assert!(hashed >= 30, "{hashed} merges took the hashed plan");
    // Rows without a key are found by the general plan; all others were walked.
    assert!(walked >= KEYS.len() * 2 * 2 * 3 - 6, "{walked} merges took the sorted plan");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_written_sorted_say_so_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display();
    let context = MergeContext::new(Config::default()).unwrap();
    for (name, shift) in [("a", 0), ("b", 7)] {
        let sql = format!(
            "MERGE (SELECT value + {shift} AS id, value % 10 AS v FROM generate_series(1, 30000)) AS g ON id \
             STRATEGY v = max INTO '{place}/{name}.parquet'"
        );
        rows(&context, &sql).await.unwrap();
    }
    let merge = format!("MERGE '{place}/a.parquet', '{place}/b.parquet' ON id STRATEGY v = max");
    let plan = rows(&context, &format!("EXPLAIN {merge}")).await.unwrap().join("\n");
    assert!(plan.contains("SortedMerge") && !plan.contains("IS NULL"), "{plan}");
    // Rows come in the order of the key, as they are read.
    let merged = rows(&context, &merge).await.unwrap();
    let keys: Vec<i64> = merged.iter().map(|row| row.split_once('|').unwrap().0.parse().unwrap()).collect();
    assert!(keys.is_sorted() && keys.len() == 30007);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_not_sorted_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display();
    let context = MergeContext::new(Config::default()).unwrap();
    for lines in ["1,a\n3,b\n2,c\n", "2,a\n1,b\n", "1,a\n9,b\n1,c\n", "5,a\n100,b\n6,c\n"] {
        std::fs::write(folder.path().join("a.csv"), format!("id,v\n{lines}")).unwrap();
        std::fs::write(folder.path().join("b.csv"), "id,v\n1,z\n2,z\n").unwrap();
        let merge = format!("MERGE '{place}/a.csv', '{place}/b.csv' ON id WITH (sorted = true)");
        let error = rows(&context, &merge).await.unwrap_err();
        assert!(error.contains("error[io]") && error.contains("is not") && error.contains("sorted = false"), "{lines}: {error}");
        assert!(rows(&context, &merge.replace("true", "false")).await.is_ok());
    }
    let wrong = context.sql(&format!("MERGE '{place}/a.csv' ON id WITH (sorted = 'yes')")).await.err().unwrap();
    assert_eq!(wrong.code(), mergeql_udfs::Code::InvalidArgument);
}

/// A key has several rows then: what it determines of a merged row, it does not determine of these.
#[tokio::test(flavor = "multi_thread")]
async fn conflicts_are_ordered_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display();
    let context = MergeContext::new(Config::default()).unwrap();
    std::fs::write(folder.path().join("a.csv"), "id,z,m,b\n2,1,1,1\n1,1,1,1\n").unwrap();
    std::fs::write(folder.path().join("b.csv"), "id,z,m,b\n1,2,2,2\n2,2,2,2\n").unwrap();
    let merge = format!("MERGE '{place}/a.csv', '{place}/b.csv' ON id RETURNING CONFLICTS ORDER BY id, column_name LIMIT 5");
    let names: Vec<String> = rows(&context, &merge).await.unwrap().iter().map(|r| r.split('|').take(2).collect()).collect();
    assert_eq!(names, ["1b", "1m", "1z", "2b", "2m"]);
}
