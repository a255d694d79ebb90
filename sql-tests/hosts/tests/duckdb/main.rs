//! The same statements, rows and states in real DuckDB processes of the 2.0 and the 1.5 line.
#![allow(clippy::unwrap_used, missing_docs)]

mod values;

use mergeql::{Config, MergeContext};
use mergeql_host_tests::{Host, Sample, one, run_slt_files, sample};
use mergeql_lang::lower::duckdb_type_name;
use mergeql_sql_tests::cases;
use mergeql_sql_tests::pages::{blocks, run_js};
use mergeql_udfs::laws::Random;
use mergeql_udfs::{Call, catalog, functions};

/// What `cargo xtask test` prepared: the Python interpreters that have DuckDB, and the extension.
fn pythons() -> Vec<String> {
    let list = std::env::var("MERGEQL_DUCKDB_PYTHONS").expect("run `cargo xtask test`: it installs DuckDB and names it here");
    list.split(':').map(str::to_owned).collect()
}

fn start(python: &str, threads: usize) -> Host {
    let extension = std::env::var("MERGEQL_DUCKDB_EXTENSION").expect("run `cargo xtask test`: it builds the extension");
    let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/duckdb_driver.py");
    Host::start("duckdb", python, &[driver, &extension, &threads.to_string()])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_slt_file_passes() {
    for python in pythons() {
        for threads in [1, 4] {
            run_slt_files(|| start(&python, threads)).await;
        }
    }
}

/// The cases with expected answers, their sources as Parquet files, their answers read back from one.
#[tokio::test(flavor = "multi_thread")]
async fn every_case_gives_its_rows() {
    let cases = cases::read(include_str!("../../../data/tabular/cases.jsonl"));
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let engine = MergeContext::new(Config::default()).unwrap();
    let mut failures = Vec::new();
    for python in pythons() {
        let mut host = start(&python, 2);
        host.query(cases::SUM).unwrap();
        for case in &cases {
            let run = async {
                let mut made = Vec::new();
                for (i, (name, batch)) in case.tables(1).map_err(|e| e.to_string())?.into_iter().enumerate() {
                    // DuckDB has no tables without columns, and no columns without a type: a column of NULLs is left out.
                    let typed = |i: &usize| !batch.schema().field(*i).data_type().is_null();
                    let batch =
                        batch.project(&(0..batch.num_columns()).filter(typed).collect::<Vec<_>>()).map_err(|e| e.to_string())?;
                    if batch.num_columns() == 0 {
                        host.execute(&format!("CREATE OR REPLACE TABLE \"{name}\" AS SELECT NULL AS id, NULL AS _none LIMIT 0"))
                            .unwrap();
                    } else {
                        let path = file(&format!("source-{i}.parquet"));
                        let schema = batch.schema();
                        let frame = engine.session().read_batch(batch).map_err(|e| e.to_string())?;
                        let plan = frame.into_optimized_plan().map_err(|e| e.to_string())?;
                        let frame = mergeql::datafusion::prelude::DataFrame::new(engine.session().state(), plan);
                        let rows = engine.stream(frame).await.map_err(|e| e.to_string())?;
                        mergeql::sinks::write_file(std::path::Path::new(&path), mergeql::sources::Format::Parquet, rows, None)
                            .await
                            .map_err(|e| format!("{schema}: {e}"))?;
                        host.execute(&format!("CREATE OR REPLACE TABLE \"{name}\" AS FROM '{path}'")).map_err(|e| e.0)?;
                    }
                    made.push(name);
                }
                let out = file("out.parquet");
                let statement = case.statement.trim().trim_end_matches(';');
                let result = match statement {
                    "" => host.execute("SELECT mergeql_sql('')"),
                    _ => host.execute(&format!("COPY (SELECT * FROM ({statement}) AS m) TO '{out}' (FORMAT parquet)")),
                };
                // COMPAT.md: that a table is not there is DuckDB's own error.
                let result = result.map_err(|e| e.0.replace("Catalog Error: Table with name", "error[unknown_source]"));
                for name in made {
                    host.execute(&format!("DROP TABLE \"{name}\"")).ok();
                }
                result?;
                let frame = engine.sql(&format!("SELECT * FROM '{out}'")).await.map_err(|e| e.to_string())?;
                engine.session().deregister_table(mergeql::datafusion::common::TableReference::bare(out)).ok();
                Ok(cases::rows_of(&frame.collect().await.map_err(|e| e.to_string())?))
            };
            if let Err(difference) = case.judge(&run.await) {
                failures.push(format!("{} in {python}: {}\n{difference}", case.id, case.statement));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n\n"));
}

/// For every strategy: shuffled and repeated rows, with one thread and with many, give the state bytes that the core gives; states
/// made in parts join to them; `crdt_x` is the value of `crdt_x_state`.
#[test]
fn every_aggregate_keeps_the_laws_and_the_bytes() {
    let (mut checked, mut answered) = (0, 0);
    for python in pythons() {
        for threads in [1, 4] {
            let mut host = start(&python, threads);
            // A thread for every 2048 rows, so that states of several are combined.
            host.execute("PRAGMA verify_parallelism").unwrap();
            for entry in catalog::all() {
                for call in (entry.spec().samples)() {
                    let Some(Sample { rows, state: expected, .. }) =
                        sample(entry, &call, duckdb_type_name, |hex| format!("unhex('{hex}')"), |_| true)
                    else {
                        continue;
                    };
                    let name = entry.spec().name;
                    let columns: Vec<String> = (0..call.inputs.len()).map(|i| format!("c{i}")).collect();
                    let columns = columns.join(", ");
                    let values: Vec<String> = rows.iter().map(|r| format!("({r})")).collect();
                    host.execute(&format!(
                        "CREATE OR REPLACE TABLE rows AS SELECT * FROM (VALUES {}) AS t({columns})",
                        values.join(", ")
                    ))
                    .unwrap();
                    let with = call.to_json().replace('\'', "''");
                    let state = format!("crdt_{name}_state_with('{with}', {columns})");
                    for from in ["rows", "(SELECT * FROM (FROM rows UNION ALL FROM rows) ORDER BY random())"] {
                        assert_eq!(one(&mut host, &format!("SELECT {state} FROM {from}")), expected, "{name} {call:?} from {from}");
                    }
                    // What needs no configuration has states of its own, in DuckDB's memory.
                    host.execute("CREATE OR REPLACE TABLE many AS SELECT rows.* FROM rows, range(300)").unwrap();
                    if call == Call::new(call.inputs.clone()) {
                        let plain = format!("SELECT crdt_{name}_state({columns}) FROM many");
                        assert_eq!(one(&mut host, &plain), expected, "{name} {call:?} by many threads");
                        for group in ["", &format!("GROUP BY hash({columns}) % 3")] {
                            let differ = format!(
                                "SELECT count(*) FROM (SELECT crdt_{name}({columns})::VARCHAR AS a, \
                                 crdt_{name}_with('{with}', {columns})::VARCHAR AS b FROM many {group}) WHERE a IS DISTINCT FROM b"
                            );
                            match host.query(&differ) {
                                // COMPAT.md: results of these types come through MERGE alone.
                                Err(error) if error.0.contains("interface lets") => {}
                                rows => {
                                    assert_eq!(rows.unwrap().unwrap()[0][0].as_deref(), Some("0"), "{name} {call:?} {group}");
                                    answered += 1;
                                }
                            }
                        }
                    }
                    let parts = format!("SELECT {state} AS s FROM rows GROUP BY random() < 0.5, hash({columns}) % 3");
                    assert_eq!(
                        one(&mut host, &format!("SELECT crdt_merge(s) FROM ({parts})")),
                        expected,
                        "{name} {call:?} in parts"
                    );
                    checked += 1;
                }
            }
        }
    }
    assert!(checked >= 40 && answered >= 40, "only {checked} calls were checked, and {answered} of their values");
}

/// Grouping sets, FILTER, DISTINCT, ORDER BY inside an aggregate, window frames: an answer of ours beside DuckDB's own.
#[test]
fn aggregates_work_wherever_duckdb_lets_them() {
    let pairs = [
        ("crdt_max(v)", "max(v)"),
        ("crdt_max(DISTINCT v)", "max(v)"),
        ("crdt_max(v ORDER BY k DESC)", "max(v)"),
        ("crdt_max(s ORDER BY s)", "max(s)"),
        ("crdt_lww(v, v)", "max(v)"),
        ("crdt_lww(s, v, s)", "arg_max(s, ROW(coalesce(v, -1), s))"),
        ("crdt_lww(s, v, s ORDER BY k)", "arg_max(s, ROW(coalesce(v, -1), s))"),
        ("crdt_min(v) FILTER (WHERE v > 3)", "min(v) FILTER (WHERE v > 3)"),
        ("crdt_gset(v)", "nullif(list_sort(list_distinct(list(v))), [])"),
    ];
    let windows = [
        "OVER (PARTITION BY k ORDER BY v, s ROWS BETWEEN 2 PRECEDING AND 1 FOLLOWING)",
        "OVER (ORDER BY v, s, k)",
        "OVER (PARTITION BY k)",
    ];
    for python in pythons() {
        let mut host = start(&python, 4);
        host.execute(
            "CREATE TABLE t AS SELECT hash(i) % 97 AS k, CASE WHEN i % 11 > 0 THEN hash(i * 7) % 1000 END::BIGINT AS v, \
             'text number ' || (hash(i * 3) % 5000) AS s FROM range(20000) AS r(i)",
        )
        .unwrap();
        for (ours, theirs) in pairs {
            let differ = |group: &str| {
                format!(
                    "SELECT count(*) FROM (SELECT {group} AS g, {ours} AS a FROM t GROUP BY ROLLUP ({group}) EXCEPT \
                     SELECT {group} AS g, {theirs} AS a FROM t GROUP BY ROLLUP ({group}))"
                )
            };
            // Many groups, few, one, and groups of one row.
            for group in ["k", "k % 2", "k < 1000", "s"] {
                assert_eq!(one(&mut host, &differ(group)), "0", "{ours} by {group} in {python}");
            }
            if ours.contains(['D', 'F']) || ours.contains("ORDER") || ours.contains("gset") {
                continue;
            }
            for window in windows {
                let sql = format!(
                    "SELECT count(*) FROM (SELECT {ours} {window} AS a, {theirs} {window} AS b FROM t) WHERE a IS DISTINCT FROM b"
                );
                assert_eq!(one(&mut host, &sql), "0", "{ours} {window} in {python}");
            }
        }
    }
}

/// Every function that takes a state, given what is none.
#[test]
fn random_blobs_never_crash_the_process() {
    for python in pythons() {
        let mut host = start(&python, 4);
        host.execute(
            "CREATE TABLE blobs AS SELECT unhex(substr(md5(i::VARCHAR) || md5('x' || i), 1, 2 * (1 + (i % 30)::INT))) AS b FROM range(10000) AS r(i)",
        )
        .unwrap();
        // Half of them look like states.
        host.execute("INSERT INTO blobs SELECT '\\x4D\\x51\\x01'::BLOB || b FROM blobs").unwrap();
        host.execute("CREATE TABLE good AS SELECT crdt_union_state(v) AS s FROM (VALUES ('a,b'), ('c')) AS t(v)").unwrap();
        for function in ["crdt_value", "crdt_info", "crdt_type", "crdt_compress", "crdt_value_bigint", "crdt_value_list"] {
            assert!(host.query(&format!("SELECT count({function}(b)) FROM blobs")).is_err(), "{function}");
            one(&mut host, &format!("SELECT count(TRY({function}(b))) FROM blobs"));
        }
        for function in ["crdt_join", "crdt_compare", "crdt_leq", "crdt_delta"] {
            one(&mut host, &format!("SELECT count(TRY({function}(b, s))) + count(TRY({function}(s, b))) FROM blobs, good"));
        }
        // States of every strategy with other bodies under a sum that is right, given to every function of ours.
        let mut random = Random(7);
        let forged = catalog::all()
            .iter()
            .flat_map(|entry| (entry.spec().samples)().into_iter().map(move |call| (entry, call)))
            .filter_map(|(entry, call)| {
                let made = sample(entry, &call, duckdb_type_name, |hex| format!("unhex('{hex}')"), |_| true)?.state;
                let made = made.trim_start_matches("\\x");
                let mut bytes: Vec<u8> =
                    (0..made.len() / 2).map(|i| u8::from_str_radix(&made[2 * i..2 * i + 2], 16).unwrap()).collect();
                let end = bytes.len() - 4;
                for _ in 0..1 + random.below(3) {
                    bytes[3 + random.below(end - 3)] = random.below(256) as u8;
                }
                let sum = crc32c::crc32c(&bytes[..end]).to_le_bytes();
                bytes[end..].copy_from_slice(&sum);
                Some(format!("(unhex('{}'))", bytes.iter().map(|b| format!("{b:02X}")).collect::<String>()))
            });
        let forged: Vec<String> = forged.collect();
        assert!(forged.len() > 40, "{}", forged.len());
        host.execute(&format!("CREATE TABLE few AS (FROM blobs LIMIT 50) UNION ALL (FROM (VALUES {}) AS t(b))", forged.join(", ")))
            .unwrap();
        let (mut called, mut failed) = (0, Vec::new());
        for function in functions::all() {
            let most = (*function.arguments.end()).min(*function.arguments.start() + 2).max(1);
            for count in *function.arguments.start()..=most {
                for rest in ["b", "s", "1", "'a'"] {
                    let arguments: Vec<&str> = (0..count).map(|i| if i == 0 { "b" } else { rest }).collect();
                    let call = format!("{}({})", function.name, arguments.join(", "));
                    match host.query(&format!("SELECT count(TRY({call})) FROM few, good")) {
                        Err(e) if e.0.contains("is gone") => panic!("{call}: {e}"),
                        Err(e) if e.0.contains("MergeQL failed") => failed.push(format!("{call}: {e}")),
                        // Some are volatile, and are in no TRY; then the first row that is none ends the query.
                        _ => called += 1,
                    }
                }
            }
        }
        assert!(failed.is_empty() && called > 300, "{called}: {failed:#?}");
        assert!(host.query("SELECT crdt_merge(b) FROM blobs").is_err());
        assert_eq!(one(&mut host, "SELECT crdt_value(s) FROM good"), "\"a,b,c\"");
    }
}

/// A query that is interrupted ends in an error, and the process goes on.
#[test]
fn an_interrupt_ends_the_query_alone() {
    for python in pythons() {
        let mut host = start(&python, 2);
        host.execute("CREATE TABLE t AS SELECT i % 1000 AS id, 'value ' || i AS v FROM range(3000000) AS r(i)").unwrap();
        for sql in [
            "CREATE TABLE made AS MERGE t ON id STRATEGY v = gset",
            "CREATE TABLE made AS SELECT crdt_concat(v) OVER (ORDER BY id ROWS 100 PRECEDING) AS g FROM t",
        ] {
            let error = host.ask(&serde_json::json!({ "sql": sql, "plain": true, "interrupt_after": 0.3 })).unwrap_err();
            assert!(error.0.to_uppercase().contains("INTERRUPT"), "{error}");
            assert_eq!(one(&mut host, "SELECT crdt_max(id) FROM t"), "999");
        }
    }
}

/// What is DuckDB's own stays as it is.
#[test]
fn duckdb_itself_is_unchanged() {
    for python in pythons() {
        let mut host = start(&python, 2);
        for sql in [
            "CREATE TABLE t AS SELECT 1 AS id, 'a' AS v",
            "MERGE INTO t USING (SELECT 1 AS id, 'b' AS v UNION ALL SELECT 2, 'c') AS s ON t.id = s.id \
             WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v)",
        ] {
            host.execute(sql).unwrap();
        }
        assert_eq!(one(&mut host, "SELECT string_agg(v, ',' ORDER BY id) FROM t"), "b,c");
        assert_eq!(one(&mut host, "SELECT max(id) + min(id) + arg_max(id, v) + sum(id)::INT FROM t"), "8");
        assert_eq!(one(&mut host, "SELECT count(*) FROM duckdb_databases() WHERE NOT internal AND path IS NOT NULL"), "0");
    }
}

/// In the caller's transaction, from every kind of source, to every kind of place.
#[test]
fn statements_see_what_their_caller_sees() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for python in pythons() {
        let mut host = start(&python, 4);
        let mut run = |sql: &str| host.execute(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        run("CREATE TABLE nyc AS SELECT 1 AS id, 90 AS salary, 'x,y' AS tags, TIMESTAMP '2024-01-01' AS updated_at");
        run("BEGIN");
        run("INSERT INTO nyc VALUES (2, 70, 'z', '2024-02-01')");
        run(
            "CREATE TEMP TABLE london AS SELECT 1 AS id, 95 AS salary, 'w' AS tags, TIMESTAMP '2024-03-01' AS updated_at, 'new' AS extra",
        );
        let file = path("late.parquet");
        run(&format!("COPY (SELECT 3 AS id, 1 AS salary) TO '{file}' (FORMAT parquet)"));
        let merge = format!("MERGE nyc, london, '{file}' ON id STRATEGY salary = max, tags = union, * = lww VERSION BY updated_at");
        let quoted = merge.replace('\'', "''");
        run(&format!("CREATE VIEW v AS FROM mergeql.merge('{quoted}')"));
        run(&format!("CREATE TABLE made AS SELECT * FROM mergeql.merge('{quoted}')"));
        run(&format!("CREATE TABLE scanned AS FROM \"{}\"", merge.replace('"', "\"\"")));
        run(&format!("{merge} INTO written"));
        let copy = path("out.csv");
        run(&format!("{merge} INTO OR REPLACE '{copy}'"));
        run(&format!("COPY (FROM mergeql.merge('{quoted}')) TO '{copy}' (HEADER)"));
        run(
            "MERGE INTO nyc USING (SELECT * EXCLUDE extra FROM london) AS l ON id STRATEGY salary = max, tags = union, updated_at = max",
        );
        run(
            "MERGE INTO nyc USING (SELECT * EXCLUDE extra FROM london) AS l ON id STRATEGY salary = max, tags = union, updated_at = max",
        );
        for table in ["v", "made", "scanned", "written", &format!("'{copy}'")] {
            let rows = "string_agg(concat_ws('|', id, salary, tags, extra), ' ' ORDER BY id)";
            assert_eq!(one(&mut host, &format!("SELECT {rows} FROM {table}")), "1|95|w,x,y|new 2|70|z 3|1", "{table} in {python}");
        }
        assert_eq!(
            one(&mut host, "SELECT string_agg(concat_ws('|', id, salary, tags), ' ' ORDER BY id) FROM nyc"),
            "1|95|w,x,y 2|70|z"
        );
        let joined = "WITH c AS (SELECT 2 AS id, 99 AS salary) SELECT sum(m.salary) FROM mergeql.merge('MERGE nyc, c ON id STRATEGY * = max') AS m JOIN nyc USING (id)";
        assert_eq!(one(&mut host, joined), "194");
        host.execute("ROLLBACK").unwrap();
        let explained = host.query("EXPLAIN MERGE nyc ON id STRATEGY salary = max").unwrap().unwrap();
        assert!(explained.iter().any(|r| r[0].as_deref() == Some("key")), "{explained:?}");
    }
}

/// What the community repository reads: the version is ours, and its example runs.
#[test]
fn the_description_is_true() {
    let description = include_str!("../../../../ext-duckdb/description.yml");
    let example: String = description
        .split("hello_world: |\n")
        .nth(1)
        .unwrap()
        .lines()
        .take_while(|line| line.starts_with("    "))
        .map(|line| format!("{}\n", line.trim()))
        .collect();
    let mut host = start(&pythons()[0], 1);
    let (before, last) = example.trim().trim_end_matches(';').rsplit_once(';').unwrap();
    let version = one(&mut host, "SELECT mergeql_version()");
    assert!(description.contains(&format!("version: {version}\n")), "{version}");
    for statement in before.split(';') {
        host.execute(statement).unwrap();
    }
    assert_eq!(one(&mut host, &last.trim().replace("FROM", "SELECT salary FROM")), "95");
}

/// Files of tensors: the engine's rows, few or many at a time; nothing where files are closed, and the process lives on whatever is asked.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_tensors_give_the_engines_rows() {
    let (folder, placed) = mergeql_host_tests::models();
    let engine = MergeContext::new(Config::default()).unwrap();
    // More tensors than a chunk has rows.
    let names: Vec<String> = (0..3000)
        .map(|i| format!("\"t{i:04}\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[{},{}]}}", 4 * i, 4 * i + 4))
        .collect();
    let header = format!("{{{}}}", names.join(","));
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 12000]].concat();
    std::fs::write(folder.path().join("many.safetensors"), bytes).unwrap();
    std::fs::write(folder.path().join("broken.safetensors"), [1, 0, 0, 0, 0, 0, 0, 0xff, b'{']).unwrap();
    let three = "['models/m0.safetensors', 'models/m1.safetensors', 'models/m2.safetensors']";
    let queries = [
        "SELECT count(*) AS n, max(tensor) AS last FROM read_safetensors('models/many.safetensors')".to_owned(),
        "SELECT tensor, CAST(round(std * 1e9) AS BIGINT) AS std, bytes FROM read_safetensors('models/m*.safetensors') ORDER BY file, tensor LIMIT 20".to_owned(),
        format!("SELECT tensor, sha256 FROM merge_models({three}, strategy := 'dare_ties', base := 'models/base.safetensors', density := [0.5, 0.4, 0.9], seed := 7) ORDER BY tensor"),
        format!("SELECT tensor, sha256 FROM merge_models({three}) ORDER BY tensor"),
        format!("SELECT tensor, CAST(round(sign_conflict * 1e9) AS BIGINT) AS c FROM tensor_conflicts({three}, base := 'models/base.safetensors') ORDER BY tensor"),
        format!("SELECT model, CAST(round(sum(drift) * 1e6) AS BIGINT) AS d FROM tensor_stability({three}, merged := 'models/m2.safetensors', base := 'models/base.safetensors') GROUP BY model ORDER BY model"),
    ];
    for python in pythons() {
        let mut host = start(&python, 4);
        for query in &queries {
            let query = placed(query);
            let batches = engine.sql(&query).await.unwrap().collect().await.unwrap();
            let cell = |batch: &mergeql::datafusion::arrow::array::RecordBatch, row: usize, column: usize| {
                Some(mergeql::columns::value_at(batch.column(column).as_ref(), row).to_string())
            };
            let rows = |batch: &mergeql::datafusion::arrow::array::RecordBatch| -> Vec<Vec<Option<String>>> {
                (0..batch.num_rows()).map(|row| (0..batch.num_columns()).map(|column| cell(batch, row, column)).collect()).collect()
            };
            let expected: Vec<Vec<Option<String>>> = batches.iter().flat_map(rows).collect();
            assert_eq!(host.query(&query).unwrap().unwrap(), expected, "{query}");
        }
        for (query, said) in [
            ("FROM read_safetensors('models/broken.safetensors')", "error[io]"),
            ("FROM merge_models(['models/m0.safetensors'], cache := 'written')", "writes nothing"),
            ("FROM read_safetensors(NULL)", "is NULL"),
            ("FROM read_safetensors([1, 2])", "a list of files"),
            ("FROM merge_models(['models/m0.safetensors'], strategy := 'tees')", "did you mean `ties`?"),
            (
                "FROM merge_models(['models/m0.safetensors'], strategy := 'ties', base := 'models/base.safetensors', density := 'half')",
                "a number from 0 to 1",
            ),
        ] {
            let refused = host.query(&placed(query)).unwrap_err();
            assert!(refused.0.contains(said), "{query}: {refused}");
        }
        host.execute("SET enable_external_access = false").unwrap();
        let refused = host.query(&placed("FROM read_safetensors('models/m0.safetensors')")).unwrap_err();
        assert!(refused.0.contains("enable_external_access is off"), "{refused}");
    }
}

/// Every block of the DuckDB page runs, and gives what the page says.
#[test]
fn the_page_says_what_comes_out() {
    let page = include_str!("../../../../docs/hosts/duckdb.md");
    let extension = std::env::var("MERGEQL_DUCKDB_EXTENSION").unwrap();
    let (_folder, placed) = mergeql_host_tests::models();
    for python in pythons() {
        let mut host = start(&python, 2);
        // What is run lies beside the extension.
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&extension, folder.path().join("mergeql.duckdb_extension")).unwrap();
        let mut script = String::new();
        let mut said = String::new();
        for block in blocks(page) {
            let code = block.code;
            let expected = block.expected.unwrap_or_default();
            if block.language == "python" {
                // One session: later blocks go on where earlier ones ended.
                script.push_str(&code);
                said.push_str(&expected);
                continue;
            }
            if block.language == "js" {
                // Scripts of Node run where its packages are.
                assert_eq!(run_js(&code.replace("./mergeql.duckdb_extension", &extension)), Ok(expected), "{code}");
                continue;
            }
            if block.language == "sh" {
                // The commands of this project are run elsewhere.
                if code.contains("duckdb ") && !code.contains("cargo ") {
                    std::env::var("MERGEQL_DUCKDB_CLI").expect("run `cargo xtask test`: it installs the command line");
                    let script = format!("duckdb() {{ \"$MERGEQL_DUCKDB_CLI\" \"$@\"; }}\n{code}");
                    let output =
                        std::process::Command::new("sh").args(["-ec", &script]).current_dir(folder.path()).output().unwrap();
                    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{code}");
                }
                continue;
            }
            if block.language == "yaml" {
                continue;
            }
            assert_eq!(block.language, "sql");
            let mut gives = String::new();
            let code = placed(&code);
            for statement in mergeql_lang::split(&code).unwrap() {
                match host.query(statement) {
                    Ok(rows) => rows.into_iter().flatten().for_each(|row| {
                        let cells: Vec<String> = row.into_iter().map(|c| c.unwrap_or_else(|| "NULL".to_owned())).collect();
                        gives.push_str(&(cells.join(" | ") + "\n"));
                    }),
                    Err(e) => gives.push_str(&e.0[e.0.find("error[").unwrap_or(0)..]),
                }
            }
            match expected.strip_prefix("error[") {
                Some(_) => assert!(gives.starts_with(expected.trim_end()), "{code}--- gives\n{gives}"),
                None if code.starts_with("CREATE") => assert!(!gives.contains("error"), "{code}--- gives\n{gives}"),
                None => assert_eq!(gives, expected, "{code}"),
            }
        }
        let output = std::process::Command::new(&python).args(["-c", &script]).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), said);
    }
}

/// Signed with one's own key, the extension needs no leave for unsigned ones; changed by a byte it is refused.
#[test]
fn a_signed_repository_is_trusted() {
    let repository = std::env::var("MERGEQL_DUCKDB_REPOSITORY").expect("run `cargo xtask test`: it signs a repository");
    let python = pythons().into_iter().find(|p| p.contains("duckdb-2.")).expect("DuckDB 2");
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
import duckdb, gzip, shutil, sys
repository, folder = sys.argv[1:]
def connect(name):
    con = duckdb.connect(config={"extension_directory": f"{folder}/{name}", "extension_repository_directory": f"{folder}/{name}-trusted"})
    # What takes long shows a bar.
    con.execute("SET enable_progress_bar = false")
    return con
def install(con, prefix):
    con.execute("SET allow_extension_repositories = 'allowed'")
    con.execute(f"CREATE EXTENSION REPOSITORY mergeql_repository WITH PREFIX '{prefix}'")
    con.execute("INSTALL mergeql FROM mergeql_repository")
install(connect("good"), repository)
con = connect("good")
con.execute("LOAD mergeql FROM mergeql_repository")
print(con.execute("FROM mergeql.merge('MERGE (SELECT 1 AS id, 90 AS n) AS a, (SELECT 1 AS id, 95 AS n) AS b ON id STRATEGY n = max')").fetchall())
shutil.copytree(repository, f"{folder}/changed")
file = next(p for p in __import__("pathlib").Path(f"{folder}/changed").rglob("*.gz"))
data = bytearray(gzip.decompress(file.read_bytes()))
data[5000] ^= 1
file.write_bytes(gzip.compress(bytes(data)))
try:
    install(connect("bad"), f"{folder}/changed")
    print("installed")
except duckdb.Error as e:
    print("refused" if "signature" in str(e).lower() else e)
"#;
    let folder = folder.path().display().to_string();
    let output = std::process::Command::new(python).args(["-c", script, &repository, &folder]).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(said, "[(1, 95)]\nrefused\n");
}
