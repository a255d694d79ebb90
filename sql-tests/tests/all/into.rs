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

/// A big table on disk keeps what small batches change in layers, and reads as the table in memory that had the same statements.
#[tokio::test(flavor = "multi_thread")]
async fn small_batches_become_layers() {
    let folder = tempfile::tempdir().unwrap();
    let config = || Config { db: Some(folder.path().to_path_buf()), ..Config::default() };
    let files = || {
        let manifest: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.path().join("manifest.json")).unwrap()).unwrap();
        manifest["tables"]["t"]["files"].as_array().unwrap().len()
    };
    let disk = MergeContext::new(config()).unwrap();
    let memory = MergeContext::new(Config::default()).unwrap();
    let row = "value / 2 AS \"Id\", CASE WHEN value % 5000 = 0 THEN NULL WHEN value % 2 = 0 THEN 'eu' ELSE 'us' END AS region, \
        (value * 37) % 1000 AS n, 'tag' || (value % 7) AS tags, value % 3 AS ts, value % 11 = 0 AS gone";
    let clauses = "STRATEGY n = max, tags = union, * = lww VERSION BY ts DELETE BY gone";
    let base = format!(
        "MERGE (SELECT {row} FROM generate_series(1, 12000)) AS s ON (\"Id\", region) {clauses} INTO t WITH (state = 'keep')"
    );
    let same = async |what: &str| {
        let sql = "SELECT \"Id\", region, n, tags, ts FROM t";
        assert_eq!(rows(&disk, sql).await.unwrap(), rows(&memory, sql).await.unwrap(), "{what}");
    };
    for context in [&disk, &memory] {
        context.sql(&base).await.unwrap();
    }
    let mut random = Random(5);
    let mut most = 0;
    for turn in 0..10 {
        // Keys that are there and keys that are not, few and more of them; some with a NULL.
        let (from, many) = (random.below(12300), 1 + random.below(if turn % 4 == 3 { 1500 } else { 40 }));
        let rows = row.replace("value % 3", &format!("(value + {turn}) % 9"));
        let rows = rows.replace("value % 11", &format!("(value + {turn}) % 4"));
        let batch = format!("(SELECT {rows} FROM generate_series({from}, {}))", from + many);
        let mut counts = Vec::new();
        for context in [&disk, &memory] {
            let count = context.sql(&format!("MERGE INTO t USING {batch} AS s ON (\"Id\", region)")).await.unwrap();
            counts.push(value_at(count.collect().await.unwrap()[0].column(0), 0));
        }
        assert_eq!(counts[0], counts[1], "turn {turn}");
        most = most.max(files());
        same(&format!("turn {turn}")).await;
    }
    assert!((3..=8).contains(&most), "{most} files");
    // What comes is asked for once: a source may be another each time.
    let before = rows(&disk, "SELECT count(*) FROM t").await.unwrap();
    let random_keys = "(SELECT CAST(random() * 2497 AS INT) + 1 AS \"Id\", 'eu' AS region, 1 AS n, 'x' AS tags, -1 AS ts, false AS gone \
        FROM generate_series(1, 50))";
    disk.sql(&format!("MERGE INTO t USING {random_keys} AS s ON (\"Id\", region)")).await.unwrap();
    let lost = "SELECT count(*) FROM t WHERE ts = -1";
    assert_eq!(rows(&disk, lost).await.unwrap(), ["0"], "an old version won, so the rows before were not seen");
    assert!(rows(&disk, "SELECT count(*) FROM t").await.unwrap() >= before);
    // Another process reads the same; rows put in by hand are taken in when that is asked for.
    let other = MergeContext::new(config()).unwrap();
    let all = "SELECT count(*), sum(n) FROM t";
    assert_eq!(rows(&other, all).await.unwrap(), rows(&disk, all).await.unwrap());
    other.sql("INSERT INTO t (\"Id\", region, n) VALUES (3, 'by hand', 7)").await.unwrap();
    let into = "MERGE INTO t USING (SELECT 3 AS \"Id\", 'by hand' AS region, 1 AS n, 'y' AS tags, 1 AS ts, false AS gone) AS s ON (\"Id\", region)";
    assert_eq!(other.sql(into).await.unwrap_err().code().as_str(), "needs_state");
    other.sql("SELECT mergeql_adopt('t')").await.unwrap();
    other.sql(into).await.unwrap();
    assert_eq!(rows(&disk, "SELECT n, tags FROM t WHERE region = 'by hand'").await.unwrap(), ["7|y"]);
}

/// A conflict is told of before it is resolved.
#[tokio::test]
async fn merge_into_returns_what_was_in_conflict() {
    let context = MergeContext::new(Config::default()).unwrap();
    rows(&context, "CREATE TABLE a AS VALUES (1, 5), (2, 6)").await.unwrap();
    let merge = "MERGE INTO a USING (SELECT 1 AS column1, 7 AS column2) AS b ON column1 STRATEGY * = max RETURNING CONFLICTS";
    let found = rows(&context, merge).await.unwrap();
    assert!(found.len() == 1 && found[0].starts_with("1|column2|7|max"), "{found:?}");
    assert_eq!(rows(&context, "SELECT * FROM a").await.unwrap(), ["1|7", "2|6"]);
    assert!(rows(&context, merge).await.unwrap().is_empty(), "nothing is in conflict any more");
}

/// Statistics of Parquet leave NaN out: a file whose other values are equal, or none of which is in a range, still has it.
#[tokio::test]
async fn nan_is_read_whatever_statistics_say() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("n.parquet").display().to_string();
    for db in [None, Some(folder.path().join("db"))] {
        let context = MergeContext::new(Config { db: db.clone(), ..Config::default() }).unwrap();
        let values = "(1, 'NaN'::double), (2, 1.5), (3, 1.5)";
        rows(&context, &format!("CREATE TABLE n AS SELECT * FROM (VALUES {values}) AS t(id, v)")).await.unwrap();
        rows(&context, &format!("MERGE n ON id INTO OR REPLACE '{file}'")).await.unwrap();
        for source in [format!("'{file}'"), "n".to_owned()] {
            let table = format!("(MERGE {source} ON id)");
            assert_eq!(rows(&context, &format!("SELECT * FROM {table} AS m")).await.unwrap(), ["1|NaN", "2|1.5", "3|1.5"]);
            assert_eq!(rows(&context, &format!("SELECT id FROM {source} WHERE v > 2")).await.unwrap(), ["1"], "{db:?} {source}");
            assert_eq!(rows(&context, &format!("SELECT max(v), min(v) FROM {source}")).await.unwrap(), ["NaN|1.5"]);
            assert_eq!(rows(&context, &format!("SELECT id FROM {source} ORDER BY v DESC LIMIT 1")).await.unwrap(), ["1"]);
            let by_value = format!("SELECT v, id FROM (MERGE (SELECT v, id FROM {source}) AS s ON v) AS m");
            assert_eq!(rows(&context, &by_value).await.unwrap(), ["1.5|3", "NaN|1"]);
        }
    }
}

/// A relation is one under all its names, and a table of another schema is another one.
#[tokio::test]
async fn schemas() {
    let folder = tempfile::tempdir().unwrap();
    for db in [None, Some(folder.path().join("db"))] {
        let context = MergeContext::new(Config { db: db.clone(), ..Config::default() }).unwrap();
        rows(&context, "CREATE TABLE a AS SELECT 1 AS id, 5 AS n").await.unwrap();
        let names = "MERGE a AS x, public.a AS y, datafusion.public.a AS z ON id STRATEGY n = counter";
        assert_eq!(rows(&context, names).await.unwrap(), ["1|5"]);
        let error = rows(&context, "MERGE a, nosch.t ON id").await.unwrap_err().to_string();
        assert!(error.contains("error[unknown_source]") && error.contains("column 10"), "{error}");
        rows(&context, "CREATE SCHEMA s1").await.unwrap();
        match (rows(&context, "CREATE TABLE s1.a AS SELECT 2 AS id, 6 AS n").await, &db) {
            (Ok(_), None) => assert_eq!(rows(&context, "MERGE a, s1.a AS b ON id").await.unwrap(), ["1|5", "2|6"]),
            (Err(e), Some(_)) => assert!(e.to_string().contains("default schema only"), "{e}"),
            (other, _) => panic!("{other:?}"),
        }
        assert_eq!(rows(&context, "SELECT * FROM a").await.unwrap(), ["1|5"]);
    }
}

/// What is NULL in the first source has the type of the others.
#[tokio::test]
async fn a_column_without_a_type_gets_one() {
    let context = MergeContext::new(Config::default()).unwrap();
    let sources = "(SELECT 1 AS id, NULL AS v) AS a, (SELECT 1 AS id, 4 AS v) AS b";
    rows(&context, &format!("MERGE {sources} ON id INTO t")).await.unwrap();
    rows(&context, &format!("MERGE {sources} ON id INTO kept WITH (state = 'keep')")).await.unwrap();
    for table in ["t", "kept"] {
        assert_eq!(rows(&context, &format!("SELECT id, v + 1 FROM {table}")).await.unwrap(), ["1|5"]);
    }
}

/// Texts of CSV and of Parquet are of two types in memory, and of one in SQL.
#[tokio::test]
async fn tables_of_one_kind_of_file_take_rows_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("s.csv"), "id,t\n1,a\n").unwrap();
    for db in [None, Some(folder.path().join("db"))] {
        let context = MergeContext::new(Config { db, ..Config::default() }).unwrap();
        let copy = format!("COPY (SELECT 2 AS id, 'b' AS t UNION ALL SELECT 1, 'z') TO '{}'", path("r.parquet"));
        context.sql(&copy).await.unwrap().collect().await.unwrap();
        for make in
            [format!("MERGE '{}' ON id INTO tt", path("s.csv")), format!("CREATE TABLE tt AS SELECT * FROM '{}'", path("s.csv"))]
        {
            context.sql(&make).await.unwrap().collect().await.unwrap();
            let merge =
                format!("MERGE INTO tt USING (SELECT id, t FROM '{}' LIMIT 5) AS x ON id STRATEGY t = max", path("r.parquet"));
            context.sql(&merge).await.unwrap().collect().await.unwrap();
            assert_eq!(rows(&context, "SELECT id, t FROM tt").await.unwrap(), ["1|z", "2|b"]);
            context.sql("DROP TABLE tt").await.unwrap().collect().await.unwrap();
        }
    }
}
