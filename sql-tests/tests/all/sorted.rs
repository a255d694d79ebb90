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

/// A Parquet file of (id, v) whose row groups, and each of them, say that they are sorted by `id`, NULLs first.
fn groups(path: &Path, groups: &[&[(Option<i64>, i64)]]) {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use parquet::file::metadata::SortingColumn;
    use std::sync::Arc;
    let batch = |rows: &[(Option<i64>, i64)]| {
        let ids: ArrayRef = Arc::new(rows.iter().map(|(id, _)| *id).collect::<Int64Array>());
        let values: ArrayRef = Arc::new(rows.iter().map(|(_, v)| Some(*v)).collect::<Int64Array>());
        RecordBatch::try_from_iter_with_nullable([("id", ids, true), ("v", values, true)]).unwrap()
    };
    let sorted = vec![SortingColumn { column_idx: 0, descending: false, nulls_first: true }];
    let properties = parquet::file::properties::WriterProperties::builder().set_sorting_columns(Some(sorted)).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch(groups[0]).schema(), Some(properties)).unwrap();
    for rows in groups {
        writer.write(&batch(rows)).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_row_groups_is_not_one_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("a.parquet"), folder.path().join("b.parquet"));
    let (place, beside) = (path.display(), other.display());
    groups(&other, &[&[(Some(2), 100), (Some(9), 100)]]);
    let context =
        |threads, memory_limit| MergeContext::new(Config { threads: Some(threads), memory_limit, ..Config::default() }).unwrap();
    let contexts = [context(1, None), context(3, None), context(2, Some(64 << 20))];
    // Whether the file as a whole is sorted, and the least value of each key there and beside it.
    let apart: &[&[(Option<i64>, i64)]] = &[&[(Some(1), 4), (Some(2), 3)], &[(Some(3), 2), (Some(4), 1)]];
    let touching: &[&[(Option<i64>, i64)]] = &[&[(Some(1), 4), (Some(2), 3)], &[(Some(2), 9), (Some(4), 1)]];
    let overlapping: &[&[(Option<i64>, i64)]] =
        &[&[(Some(1), 0), (Some(3), 1)], &[(Some(1), 5), (Some(2), 6)], &[(Some(2), 7), (Some(3), 8)]];
    let nulls_between: &[&[(Option<i64>, i64)]] = &[&[(None, 1), (Some(2), 2)], &[(None, 3), (Some(3), 4)]];
    let nulls_first: &[&[(Option<i64>, i64)]] = &[&[(None, 1), (None, 2)], &[(None, 3), (Some(3), 4)]];
    for (rows_of, sorted) in [(apart, true), (touching, true), (overlapping, false), (nulls_between, false), (nulls_first, true)] {
        groups(&path, rows_of);
        let mut all: Vec<(Option<i64>, i64)> = rows_of.concat();
        all.sort();
        let text = |id: &Option<i64>| id.map_or("NULL".to_owned(), |id| id.to_string());
        let ordered: Vec<String> = all.iter().map(|(id, _)| text(id)).collect();
        let mut least: std::collections::BTreeMap<i64, i64> = [(2, 100), (9, 100)].into();
        for (id, v) in &all {
            let Some(id) = id else { continue };
            least.entry(*id).and_modify(|least| *least = *v.min(least)).or_insert(*v);
        }
        // Rows without a key are rows of their own.
        let alone = all.iter().filter(|(id, _)| id.is_none()).map(|(_, v)| format!("NULL|{v}"));
        let mut merged: Vec<String> = least.iter().map(|(id, v)| format!("{id}|{v}")).chain(alone).collect();
        merged.sort();
        let merge = format!("MERGE '{place}', '{beside}' ON id STRATEGY v = min");
        for context in &contexts {
            let query = format!("SELECT id FROM '{place}' ORDER BY id NULLS FIRST");
            assert_eq!(rows(context, &query).await.unwrap(), ordered, "{rows_of:?}");
            let grouped = format!("SELECT id, min(v) FROM '{place}' WHERE id IS NOT NULL GROUP BY id ORDER BY id");
            let own = least.iter().filter(|(id, _)| all.iter().any(|(other, _)| *other == Some(**id)));
            let own: Vec<String> = own
                .map(|(id, _)| (id, all.iter().filter(|r| r.0 == Some(*id)).map(|r| r.1).min().unwrap()))
                .map(|(id, v)| format!("{id}|{v}"))
                .collect();
            assert_eq!(rows(context, &grouped).await.unwrap(), own, "{rows_of:?}");
            for options in ["", " WITH (sorted = false)"] {
                let merge = format!("{merge}{options}");
                let mut found = rows(context, &merge).await.unwrap_or_else(|e| panic!("{merge} of {rows_of:?}: {e}"));
                found.sort();
                assert_eq!(found, merged, "{merge} of {rows_of:?}");
                let mut nested =
                    rows(context, &format!("SELECT * FROM ({merge}) AS m")).await.unwrap_or_else(|e| panic!("{merge}: {e}"));
                nested.sort();
                assert_eq!(nested, merged, "{merge} of {rows_of:?}");
            }
        }
        let plan = rows(&contexts[1], &format!("EXPLAIN {merge}")).await.unwrap().join("\n");
        assert_eq!(plan.contains("SortedMerge"), sorted, "{rows_of:?}\n{plan}");
    }
    // A file that says it and is not is an error, never a wrong answer.
    groups(&path, &[&[(Some(3), 1), (Some(1), 2), (Some(2), 3)]]);
    let error = rows(&contexts[1], &format!("MERGE '{place}', '{beside}' ON id STRATEGY v = min")).await.unwrap_err();
    assert!(error.contains("is not"), "{error}");
    assert_eq!(rows(&contexts[0], &format!("SELECT id FROM '{place}' ORDER BY id")).await.unwrap(), ["1", "2", "3"]);
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
