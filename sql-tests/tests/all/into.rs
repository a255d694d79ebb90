//! Any sequence of MERGE INTO, shuffled and repeated, equals one MERGE of everything: every strategy into a table that keeps states,
//! the closed ones into ordinary tables too. In memory and on disk.

use crate::slt::show;
use mergeql::columns::value_at;
use mergeql::{Config, MergeContext, MergeError};
use mergeql_udfs::catalog;
use mergeql_udfs::laws::Random;

async fn rows(context: &MergeContext, sql: &str) -> Result<Vec<String>, MergeError> {
    let mut rows = Vec::new();
    for batch in context.sql(sql).await?.collect().await? {
        for i in 0..batch.num_rows() {
            rows.push(batch.columns().iter().map(|c| show(&value_at(c, i))).collect::<Vec<_>>().join("|"));
        }
    }
    rows.sort();
    Ok(rows)
}

const COLUMNS: &str = "id, n, f, t, l, b, o, ts, gone";

/// A batch of a few rows over few keys, values and versions, so that they meet and tie.
fn batch(random: &mut Random) -> String {
    let pick = |random: &mut Random, options: &[&str]| options[random.below(options.len())].to_owned();
    let rows: Vec<String> = (0..1 + random.below(4))
        .map(|_| {
            [
                pick(random, &["1", "2", "CAST(NULL AS INT)"]),
                pick(random, &["1", "2", "7", "NULL"]),
                pick(random, &["0.5", "-0.0", "CAST('NaN' AS DOUBLE)", "NULL"]),
                pick(random, &["'a'", "'b,a'", "'10'", "''", "NULL"]),
                pick(random, &["make_array(1, 2)", "make_array(2, 3)", "NULL"]),
                pick(random, &["true", "false", "NULL"]),
                pick(random, &["'x'", "'y'"]),
                pick(random, &["1", "2", "NULL"]),
                pick(random, &["true", "false"]),
            ]
            .join(", ")
        })
        .collect();
    let typed = "(1, 1, 0.5, 'a', make_array(1), true, 'x', 1, false)";
    let values = rows.iter().map(|r| format!("({r})")).collect::<Vec<_>>().join(", ");
    let names: Vec<String> = COLUMNS.split(", ").enumerate().map(|(i, n)| format!("column{} AS {n}", i + 1)).collect();
    // The first row gives every column its type and is filtered out again.
    format!("(SELECT {} FROM (VALUES {typed}, {values}) OFFSET 1)", names.join(", "))
}

/// A strategy for each column that takes it, from the catalogue; `None` where it needs something else.
fn clause(name: &str) -> Option<(&'static str, String)> {
    Some(match name {
        "lww" | "fww" | "max" | "min" | "all" | "gset" => ("f", name.to_owned()),
        "longest" | "shortest" | "concat" | "union" => ("t", name.to_owned()),
        "intersect" => ("l", name.to_owned()),
        "priority" => ("t", "priority('a', '10')".to_owned()),
        "counter" | "gauge" | "avg" | "median" => ("n", format!("{name}(o)")),
        "pncounter" => ("p", "pncounter(n, n, o)".to_owned()),
        "similar" => ("t", "similar(o)".to_owned()),
        "vclock" | "dvv" | "hlc" => ("n", format!("{name}(o)")),
        "bounded" => ("p", "bounded(n, n, o)".to_owned()),
        "lwwmap" => ("t", "lwwmap(o)".to_owned()),
        "any" | "every" => ("b", name.to_owned()),
        "bits_or" | "bits_and" => ("n", name.to_owned()),
        "json" => return None,   // text of the other columns is no JSON; it has a test of its own
        "state" => return None,  // no column of a batch holds states
        "source" => return None, // MERGE INTO names other sources each time
        "hll" | "theta" | "cpc" | "bloom" | "minhash" => ("n", name.to_owned()),
        // No column of a batch holds finished sketches.
        "kll" | "tdigest" | "countmin" | "topk" => return None,
        // Nor digests, nor frames, nor vectors of one length.
        name if name.starts_with("tensor_") => return None,
        "merkle" | "hll_md5" | "bloom_md5" | "countmin_md5" => return None,
        // Their rows are dots, or say whether an element is gone: no column of a batch does.
        "orset" | "rwset" | "twopset" | "ewflag" | "dwflag" | "mvr" | "model_set" | "ormap" => return None,
        other => panic!("the test does not know `{other}`: give it a column"),
    })
}

async fn converges(config: Config, clauses: &str, keep: bool, seed: u64) -> Result<(), String> {
    let fail = |e: MergeError| format!("{clauses}: {e}");
    let context = MergeContext::new(config).map_err(fail)?;
    let mut random = Random(seed);
    let batches: Vec<String> = (0..4).map(|_| batch(&mut random)).collect();
    let all: Vec<String> = batches.iter().enumerate().map(|(i, b)| format!("{b} AS s{i}")).collect();
    let expected = rows(&context, &format!("MERGE {} ON id {clauses}", all.join(", "))).await.map_err(fail)?;
    for table in ["t1", "t2"] {
        let mut order: Vec<usize> = (0..batches.len()).collect();
        order.push(random.below(batches.len()));
        random.shuffle(&mut order);
        let with = if keep { " WITH (state = 'keep')" } else { "" };
        context.sql(&format!("MERGE {} AS s ON id {clauses} INTO {table}{with}", batches[order[0]])).await.map_err(fail)?;
        for i in &order[1..] {
            context.sql(&format!("MERGE INTO {table} USING {} AS s ON id {clauses}", batches[*i])).await.map_err(fail)?;
        }
        // The result columns of a statement, without the state.
        let columns = context.sql(&format!("MERGE {} ON id {clauses}", all.join(", "))).await.map_err(fail)?;
        let names: Vec<String> = columns.schema().fields().iter().map(|f| format!("\"{}\"", f.name())).collect();
        let got = rows(&context, &format!("SELECT {} FROM {table}", names.join(", "))).await.map_err(fail)?;
        if got != expected {
            return Err(format!(
                "{clauses} (seed {seed}, order {order:?})\none merge {expected:?}\nmerge into {got:?}\nbatches {batches:?}"
            ));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_sequence_of_merge_into_equals_one_merge_for_every_strategy_with_states() {
    let mut failures = Vec::new();
    for entry in catalog::all() {
        let Some((column, strategy)) = clause(entry.spec().name) else { continue };
        for seed in [1] {
            let clauses = format!("STRATEGY {column} = {strategy} VERSION BY ts");
            failures.extend(converges(Config::default(), &clauses, true, seed).await.err());
        }
    }
    for clauses in [
        "STRATEGY f = lww RESPECT NULLS VERSION BY ts DELETE BY gone",
        "STRATEGY t = union(';'), l = union VERSION BY ts DESC, n",
        "VERSION BY ts, ROW",
    ] {
        for seed in [3, 4] {
            failures.extend(converges(Config::default(), clauses, true, seed).await.err());
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_on_disk_converge_and_are_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let config = || Config { db: Some(folder.path().to_path_buf()), ..Config::default() };
    converges(config(), "STRATEGY n = counter(o), t = concat VERSION BY ts", true, 6).await.unwrap();
    let before = {
        let context = MergeContext::new(config()).unwrap();
        context.sql("CREATE STRATEGY total AS FOLD (a, b) -> a + b").await.unwrap();
        rows(&context, "SELECT id, n, t FROM t1").await.unwrap()
    };
    let context = MergeContext::new(config()).unwrap();
    assert_eq!(rows(&context, "SELECT id, n, t FROM t1").await.unwrap(), before);
    assert_eq!(rows(&context, "MERGE (VALUES (1, 2), (1, 3)) AS v ON column1 STRATEGY column2 = total").await.unwrap(), ["1|5"]);
    context.sql("INSERT INTO t1 (id, n) VALUES (9, 9)").await.unwrap();
    assert_eq!(rows(&context, "SELECT n FROM t1 WHERE id = 9").await.unwrap(), ["9"]);
    context.sql("DROP TABLE t1").await.unwrap();
    assert!(MergeContext::new(config()).unwrap().sql("SELECT * FROM t1").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_strategies_converge_in_ordinary_tables() {
    let mut failures = Vec::new();
    let clauses = [
        "STRATEGY n = max, f = min, t = union, l = union, b = any, * = max",
        "STRATEGY n = bits_or, f = max, t = longest, l = intersect, b = every, * = min",
        "STRATEGY t = shortest, n = bits_and, * = max",
        "STRATEGY t = priority('a', '10'), * = min",
    ];
    for clauses in clauses {
        for seed in [1, 2] {
            failures.extend(converges(Config::default(), clauses, false, seed).await.err());
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn strategies_that_are_not_closed_refuse_ordinary_tables() {
    for entry in catalog::all() {
        let Some((column, strategy)) = clause(entry.spec().name) else { continue };
        let types = mergeql_udfs::Call::new(vec![mergeql_udfs::Type::Text]);
        if (entry.spec().closed)(&types) || strategy == "intersect" {
            continue;
        }
        let context = MergeContext::new(Config::default()).unwrap();
        let first = batch(&mut Random(1));
        context
            .sql(&format!("MERGE {first} AS s ON id STRATEGY {column} = {strategy}, * = max VERSION BY ts INTO t"))
            .await
            .unwrap();
        let again = format!("MERGE INTO t USING {first} AS s ON id STRATEGY {column} = {strategy}, * = max VERSION BY ts");
        let error = context.sql(&again).await.err().unwrap_or_else(|| panic!("{strategy} was merged into again"));
        assert_eq!(error.code().as_str(), "needs_state", "{strategy}: {error}");
    }
}
