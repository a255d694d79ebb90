//! `mergeql worker` and `--cluster`: three real workers on loopback give what one process gives, also when they die.

use crate::{Running, run, stdout, wait};
use mergeql::cluster::Cluster;
use mergeql::columns::value_at;
use mergeql::datafusion::arrow::array::RecordBatch;
use mergeql::datafusion::datasource::MemTable;
use mergeql::datafusion::parquet::arrow::ArrowWriter;
use mergeql::datafusion::parquet::file::metadata::SortingColumn;
use mergeql::datafusion::parquet::file::properties::WriterProperties;
use mergeql::{Config, MergeContext};
use mergeql_host_tests::sample;
use mergeql_lang::lower::duckdb_type_name;
use mergeql_udfs::{Type, catalog};
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Three workers, and the file that names them.
fn workers(folder: &Path, more: &[&str]) -> Vec<Running> {
    let start = |_| Running::start(folder, &[&["worker", "--listen", "127.0.0.1:0"], more].concat(), 1);
    let workers: Vec<Running> = (0..3).map(start).collect();
    let listed: String = workers.iter().map(|w| format!("{}\n", w.addresses[0])).collect();
    std::fs::write(folder.join("workers.txt"), format!("# three of them\n{listed}")).unwrap();
    workers
}

/// Three exports of the same things that disagree.
fn exports(folder: &Path, rows: usize, padding: usize) {
    let mut random = mergeql_udfs::laws::Random(7);
    let pad = "x".repeat(padding);
    for name in ["a", "b", "c"] {
        let mut text = "id,salary,tag,note,updated_at\n".to_owned();
        for _ in 0..rows {
            let (id, salary, tag) = (random.below(rows), random.below(1000), random.below(50));
            let (day, hour) = (random.below(28) + 1, random.below(24));
            writeln!(text, "{id},{salary},t{tag},{pad}{salary},2026-01-{day:02}T{hour:02}:00:00").unwrap();
        }
        std::fs::write(folder.join(format!("{name}.csv")), text).unwrap();
    }
}

const MERGE: &str = "MERGE 'a.csv', 'b.csv', 'c.csv' ON id \
    STRATEGY salary = max, tag = union, * = lww VERSION BY updated_at ORDER BY id";
const SMALL_TASKS: [&str; 4] = ["--cluster", "workers.txt", "--task-size", "50KB"];

#[test]
fn a_cluster_answers_as_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let workers = workers(folder.path(), &[]);
    exports(folder.path(), 4000, 3);
    for name in ["a", "b", "c"] {
        stdout(&run(folder.path(), &["-c", &format!("COPY (SELECT * FROM '{name}.csv') TO '{name}.parquet'")]));
        stdout(&run(folder.path(), &["-c", &format!("COPY (SELECT * FROM '{name}.csv') TO '{name}.ndjson' STORED AS JSON")]));
    }
    for name in ["a", "b"] {
        stdout(&run(folder.path(), &["-c", &format!("MERGE '{name}.csv' ON id INTO 'sorted-{name}.parquet'")]));
    }
    let fold = "CREATE STRATEGY spaced AS FOLD (a, b) -> concat(a, ' ', b); \
        MERGE 'a.csv', 'b.csv', 'c.csv' ON id STRATEGY tag = spaced, * = max ORDER BY id";
    let statements = [
        MERGE.to_owned(),
        MERGE.replace(".csv", ".parquet"),
        MERGE.replace(".csv", ".ndjson"),
        "MERGE '*.csv' ON id STRATEGY salary = avg, * = lww VERSION BY updated_at ORDER BY id".to_owned(),
        MERGE.replace(" ORDER BY id", " RETURNING CONFLICTS ORDER BY id, column_name LIMIT 500"),
        fold.to_owned(),
        // Sorted files are merged by ranges, whose statements name them otherwise.
        "MERGE 'sorted-a.parquet', 'sorted-b.parquet' ON id STRATEGY tag = source('sorted-b.parquet', 'sorted-a.parquet') ORDER BY id".to_owned(),
        "MERGE 'sorted-a.parquet', 'sorted-b.parquet' ON id STRATEGY tag = source('sorted-b.parquet', 'sorted-a.parquet')".to_owned(),
        format!("SELECT tag, count(*), sum(salary) FROM ({}) AS m GROUP BY tag ORDER BY tag", MERGE.replace(" ORDER BY id", "")),
    ];
    for statement in &statements {
        let alone = stdout(&run(folder.path(), &["-c", statement, "--format", "csv"]));
        let together = stdout(&run(folder.path(), &[&SMALL_TASKS[..], &["-c", statement, "--format", "csv"]].concat()));
        assert!(alone.lines().count() > 10);
        // Without an order rows come in any.
        let lines = |text: &str| -> Vec<String> {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if !statement.contains("ORDER BY") {
                lines.sort();
            }
            lines
        };
        assert!(lines(&alone) == lines(&together), "{statement}");
    }
    // Also where the client has one thread, workers exchange states and resolve them.
    let explain = ["--threads", "1", "-c", &format!("EXPLAIN {MERGE}")];
    let explained = stdout(&run(folder.path(), &[&SMALL_TASKS[..], &explain].concat()));
    assert!(explained.contains("NetworkShuffleExec"), "{explained}");
    let explain = ["-c", "EXPLAIN SELECT tag, count(*) FROM '*.csv' GROUP BY tag"];
    let explained = stdout(&run(folder.path(), &[&SMALL_TASKS[..], &explain].concat()));
    assert!(explained.contains("stages") && explained.contains("NetworkShuffleExec"), "{explained}");
    assert!(workers.iter().all(|w| w.cpu() > 0.2), "a worker had nothing to do");
}

/// Every strategy of the catalogue, from rows in memory that are divided among the workers: states byte for byte, and values.
#[tokio::test(flavor = "multi_thread")]
async fn every_strategy_is_the_same_on_workers() {
    let folder = tempfile::tempdir().unwrap();
    let _workers = workers(folder.path(), &[]);
    let alone = MergeContext::new(Config::default()).unwrap();
    let cluster = Cluster::read(&folder.path().join("workers.txt")).unwrap();
    let together = MergeContext::new(Config { cluster: Some(cluster), ..Config::default() }).unwrap();
    let (mut tried, mut divided) = (0, 0);
    for entry in catalog::all() {
        for call in (entry.spec().samples)() {
            let name = |ty: &Type| if *ty == Type::Bytes { "BYTEA".to_owned() } else { duckdb_type_name(ty) };
            let Some(sample) = sample(entry, &call, name, |hex| format!("X'{hex}'"), |_| true) else { continue };
            let columns: Vec<String> = (0..sample.width).map(|i| format!("c{i}")).collect();
            let columns = columns.join(", ");
            let rows: Vec<String> = sample.rows.iter().enumerate().map(|(i, row)| format!("({}, {row})", i % 2)).collect();
            let batches = alone.sql(&format!("SELECT * FROM (VALUES {}) AS t(g, {columns})", rows.join(", "))).await.unwrap();
            let batches = batches.collect().await.unwrap();
            let each: Vec<RecordBatch> = batches.iter().flat_map(|b| (0..b.num_rows()).map(|i| b.slice(i, 1))).collect();
            let table = Arc::new(MemTable::try_new(each[0].schema(), vec![each]).unwrap());
            let (with, name) = (call.to_json().replace('\'', "''"), entry.spec().name);
            let query = format!(
                "SELECT g, crdt_{name}_state_with('{with}', {columns}) AS state, crdt_{name}_with('{with}', {columns}) AS value \
                 FROM rows_of GROUP BY g ORDER BY g"
            );
            let mut answers = Vec::new();
            for context in [&alone, &together] {
                context.session().register_table("rows_of", table.clone()).unwrap();
                let frame = context.sql(&query).await.unwrap_or_else(|e| panic!("{query}: {e}"));
                let plan = frame.clone().create_physical_plan().await.unwrap();
                divided += usize::from(plan.name() == "DistributedExec");
                let stream = context.stream(frame).await.unwrap_or_else(|e| panic!("{query}: {e}"));
                let batches = mergeql::collect(stream).await.unwrap();
                let row = |b: &RecordBatch, i: usize| b.columns().iter().map(|c| value_at(c, i).to_string()).collect::<Vec<_>>();
                answers.push(
                    batches.iter().flat_map(|b| (0..b.num_rows()).map(|i| row(b, i)).collect::<Vec<_>>()).collect::<Vec<_>>(),
                );
            }
            assert_eq!(answers[0], answers[1], "{name} {call:?}");
            tried += 1;
        }
    }
    assert!(tried > 90 && divided == tried, "{tried} calls were tried, {divided} of them on workers");
}

/// What needs all rows at once has them: a table of several batches is divided among the workers.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_one_limit_on_workers() {
    let folder = tempfile::tempdir().unwrap();
    let _workers = workers(folder.path(), &[]);
    let alone = MergeContext::new(Config::default()).unwrap();
    let cluster = Cluster::read(&folder.path().join("workers.txt")).unwrap();
    let together = MergeContext::new(Config { cluster: Some(cluster), ..Config::default() }).unwrap();
    let mut answers = [Vec::new(), Vec::new()];
    for (context, answers) in [&alone, &together].into_iter().zip(&mut answers) {
        context.sql("CREATE TABLE few (id INT, v INT) AS VALUES (1, 1), (2, 2)").await.unwrap();
        for row in ["(3, 3), (4, 4)", "(5, 5)"] {
            context.sql(&format!("INSERT INTO few VALUES {row}")).await.unwrap().collect().await.unwrap();
        }
        for query in [
            "SELECT id % 1 AS g, count(*) FROM (SELECT * FROM few ORDER BY v LIMIT 2) GROUP BY id % 1",
            "SELECT id % 1 AS g, count(*) FROM (SELECT * FROM few LIMIT 3) GROUP BY id % 1",
            "SELECT n, count(*) FROM (SELECT row_number() OVER (ORDER BY v) AS n FROM few) GROUP BY n ORDER BY n",
            "SELECT count(*), sum(v) FROM few",
            "MERGE (SELECT * FROM few ORDER BY v LIMIT 2) AS a, few ON id ORDER BY id",
            "SELECT count(*) FROM (MERGE few ON id ORDER BY id LIMIT 3) AS m GROUP BY id % 1",
        ] {
            let frame = context.sql(query).await.unwrap();
            let batches = mergeql::collect(context.stream(frame).await.unwrap()).await.unwrap();
            let shown = mergeql::datafusion::arrow::util::pretty::pretty_format_batches(&batches).unwrap();
            answers.push(format!("{query}\n{shown}"));
        }
    }
    assert_eq!(answers[0], answers[1]);
}

/// What a statement prints in whose middle a worker dies.
fn dies_meanwhile(folder: &Path, worker: &mut Running, statement: &str) -> String {
    let mut client = Command::new(crate::variable("MERGEQL_PROGRAM"))
        .args(SMALL_TASKS)
        .args(["-c", statement, "--format", "csv"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It is in the middle of the query: it has worked, and goes on working.
    let idle = worker.cpu();
    wait("work", || worker.cpu() > idle + 0.15);
    worker.child.kill().unwrap();
    assert!(client.try_wait().unwrap().is_none(), "it was done already");
    worker.child.wait().unwrap();
    stdout(&client.wait_with_output().unwrap())
}

/// Of an attempt that fails nothing is left among the files of a folder.
#[test]
fn what_is_copied_is_there_once_if_a_worker_dies() {
    let folder = tempfile::tempdir().unwrap();
    let mut workers = workers(folder.path(), &[]);
    exports(folder.path(), 60_000, 200);
    let rows = |source: &str| {
        let query = format!("SELECT count(*) AS n, count(DISTINCT id) AS ids, sum(salary) AS s FROM {source}");
        stdout(&run(folder.path(), &["-c", &query, "--format", "csv"]))
    };
    let alone = rows(&format!("({MERGE}) AS m"));
    for (dying, to, file) in
        [(1, "'parts/' STORED AS PARQUET", "'parts/*.parquet'"), (2, "'one.csv' OPTIONS (format.delimiter ',')", "'one.csv'")]
    {
        let printed = dies_meanwhile(folder.path(), &mut workers[dying], &format!("COPY ({MERGE}) TO {to}"));
        assert_eq!(rows(file), alone, "{to} {printed}");
    }
}

#[test]
fn a_worker_that_dies_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let mut workers = workers(folder.path(), &[]);
    exports(folder.path(), 60_000, 200);
    let alone = stdout(&run(folder.path(), &["-c", MERGE, "--format", "csv"]));
    // Rows that are printed wait until all of them are there; a file is written as they come.
    for (dying, into) in [(1, ""), (2, " INTO 'rows.csv'")] {
        let printed = dies_meanwhile(folder.path(), &mut workers[dying], &format!("{MERGE}{into}"));
        let rows = if into.is_empty() { printed } else { std::fs::read_to_string(folder.path().join("rows.csv")).unwrap() };
        assert!(rows == alone, "{into}");
    }
    let begun =
        std::fs::read_dir(folder.path()).unwrap().filter(|f| f.as_ref().unwrap().file_name().to_string_lossy().contains(".tmp"));
    assert_eq!(begun.count(), 0);
    // The next statement does not even try it.
    let again = stdout(&run(folder.path(), &[&SMALL_TASKS[..], &["-c", MERGE, "--format", "csv"]].concat()));
    assert_eq!(again, alone);
    // With none left, it says so and leaves nothing behind.
    workers.clear();
    let failed = run(folder.path(), &[&SMALL_TASKS[..], &["-c", &format!("{MERGE} INTO 'out.csv'")]].concat());
    let error = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1));
    assert!(error.contains("no worker of the cluster answers"), "{error}");
    assert!(!folder.path().join("out.csv").exists());
}

/// Rows of a CSV file in many row groups, sorted by `id`, in a file that says so.
fn sorted_parquet(folder: &Path, name: &str) {
    let file = folder.join(format!("{name}.csv")).display().to_string();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let batches = runtime.block_on(async {
        let context = MergeContext::new(Config { threads: Some(1), ..Config::default() }).unwrap();
        context.sql(&format!("SELECT * FROM '{file}' ORDER BY id")).await.unwrap().collect().await.unwrap()
    });
    let by = SortingColumn { column_idx: 0, descending: false, nulls_first: true };
    let properties = WriterProperties::builder().set_sorting_columns(Some(vec![by])).set_max_row_group_row_count(Some(400)).build();
    let out = std::fs::File::create(folder.join(format!("{name}.parquet"))).unwrap();
    let mut writer = ArrowWriter::try_new(out, batches[0].schema(), Some(properties)).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.close().unwrap();
}

/// Sorted files are merged in ranges of their key, each by some worker; those of a worker that dies are done by others.
#[test]
fn sorted_files_are_merged_in_ranges() {
    let folder = tempfile::tempdir().unwrap();
    let mut workers = workers(folder.path(), &[]);
    exports(folder.path(), 20_000, 50);
    ["a", "b", "c"].iter().for_each(|name| sorted_parquet(folder.path(), name));
    let merge = MERGE.replace(".csv", ".parquet").replace(" ORDER BY id", "");
    let by_ranges = ["--cluster", "workers.txt", "--task-size", "10KB"];
    let explained = stdout(&run(folder.path(), &[&by_ranges[..], &["-c", &format!("EXPLAIN {merge}")]].concat()));
    let ranges = explained.split("__mergeql_").nth(1).and_then(|t| t.split("_ranges").next()).unwrap();
    assert!(ranges.parse::<usize>().unwrap() > 30, "{explained}");
    let alone = stdout(&run(folder.path(), &["-c", &merge, "--format", "csv"]));
    let together = stdout(&run(folder.path(), &[&by_ranges[..], &["-c", &merge, "--format", "csv"]].concat()));
    assert_eq!(alone, together);
    assert!(workers.iter().all(|w| w.cpu() > 0.1), "a worker had nothing to do");
    // What a query in WHERE reads lies where the client is.
    std::fs::write(folder.path().join("limit.csv"), "x\n500\n").unwrap();
    let asking = format!("{merge} WHERE salary > (SELECT x FROM 'limit.csv')");
    let [alone_asking, asking] =
        [&[][..], &by_ranges[..]].map(|more| stdout(&run(folder.path(), &[more, &["-c", &asking, "--format", "csv"]].concat())));
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(lines(&alone_asking), lines(&asking));
    let client = Command::new(crate::variable("MERGEQL_PROGRAM"))
        .args(by_ranges)
        .args(["-c", &format!("{merge} INTO 'out.csv'")])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .spawn();
    let mut client = client.unwrap();
    let idle = workers[2].cpu();
    wait("work", || workers[2].cpu() > idle + 0.05);
    workers[2].child.kill().unwrap();
    assert!(client.try_wait().unwrap().is_none(), "it was done already");
    assert!(client.wait().unwrap().success());
    assert_eq!(std::fs::read_to_string(folder.path().join("out.csv")).unwrap(), alone);
    workers.clear();
    let failed = run(folder.path(), &[&by_ranges[..], &["-c", &format!("{merge} INTO 'none.csv'")]].concat());
    assert!(failed.status.code() == Some(1) && !folder.path().join("none.csv").exists());
}

#[test]
fn states_bigger_than_memory_spill_on_workers() {
    let folder = tempfile::tempdir().unwrap();
    exports(folder.path(), 40_000, 600);
    let alone = stdout(&run(folder.path(), &["-c", MERGE, "--format", "csv"]));
    // 72 MB of rows; each worker folds a third of them. However many threads are asked for, it offers two, the fewest between which rows
    // are exchanged: with eight, a step would have less memory than a batch takes.
    let enough = workers(folder.path(), &["--memory-limit", "24MB"]);
    for threads in ["1", "8"] {
        let bounded = ["--threads", threads, "-c", MERGE, "--format", "csv"];
        assert!(alone == stdout(&run(folder.path(), &[&SMALL_TASKS[..], &bounded].concat())), "{threads}");
    }
    drop(enough);
    let _too_small = workers(folder.path(), &["--memory-limit", "500KB"]);
    let refused = run(folder.path(), &[&SMALL_TASKS[..], &["-c", MERGE]].concat());
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && error.contains("error[limit_exceeded]"), "{error}");
    assert!(error.contains("KB of the worker at 127.0.0.1:"), "{error}");
}

/// Workers with a limit have the rows of an aggregation's first step in one partition, and no others.
#[test]
fn joins_are_the_same_on_workers_with_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    exports(folder.path(), 6000, 3);
    for name in ["a", "b", "c"] {
        stdout(&run(folder.path(), &["-c", &format!("COPY (SELECT * FROM '{name}.csv') TO '{name}.parquet'")]));
    }
    let _workers = workers(folder.path(), &["--memory-limit", "64MB"]);
    let merge = MERGE.replace(".csv", ".parquet").replace(" ORDER BY id", "");
    let statements = [
        "SELECT count(*), sum(l.salary) FROM '*.parquet' AS l JOIN 'b.parquet' AS r ON l.id = r.id".to_owned(),
        "SELECT count(*), sum(l.salary) FROM '*.parquet' AS l LEFT JOIN 'b.csv' AS r ON l.id = r.id AND r.salary > 500".to_owned(),
        "SELECT count(*), sum(l.id) FROM '*.parquet' AS l CROSS JOIN (SELECT DISTINCT tag FROM 'b.parquet') AS r".to_owned(),
        "SELECT count(*) FROM '*.parquet' WHERE salary > (SELECT avg(salary) FROM 'b.parquet')".to_owned(),
        "SELECT count(DISTINCT id), count(DISTINCT salary) FROM '*.parquet'".to_owned(),
        format!(
            "SELECT r.tag, count(*), sum(m.salary) FROM ({merge}) AS m JOIN 'a.parquet' AS r ON m.id = r.id GROUP BY 1 ORDER BY 1"
        ),
    ];
    for statement in statements {
        let alone = stdout(&run(folder.path(), &["-c", &statement, "--format", "csv"]));
        let together = stdout(&run(folder.path(), &[&SMALL_TASKS[..], &["-c", &statement, "--format", "csv"]].concat()));
        assert_eq!(alone, together, "{statement}");
    }
}

#[test]
fn workers_ask_for_their_token() {
    let folder = tempfile::tempdir().unwrap();
    exports(folder.path(), 2000, 3);
    std::fs::write(folder.path().join("token"), "secret-of-the-cluster\n").unwrap();
    let _workers = workers(folder.path(), &["--token-file", "token"]);
    let alone = stdout(&run(folder.path(), &["-c", MERGE, "--format", "csv"]));
    let known = [&SMALL_TASKS[..], &["--cluster-token-file", "token", "-c", MERGE, "--format", "csv"]].concat();
    assert_eq!(stdout(&run(folder.path(), &known)), alone);
    let refused = run(folder.path(), &[&SMALL_TASKS[..], &["-c", MERGE]].concat());
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && error.contains("asks for a token"), "{error}");
    // What is wrong with a statement is said as by one process, whoever found it.
    std::fs::write(folder.path().join("d.csv"), "id,salary\n1,340282366920938463463374607431768211455\n").unwrap();
    for wrong in [
        "SELECT crdt_counter(0 - salary, 'x') FROM 'a.csv'",
        // Each of its rows would be joined with those outside.
        "SELECT count(*) FROM 'a.csv' WHERE salary > (SELECT salary FROM 'b.csv')",
    ] {
        let (one, many) = (run(folder.path(), &["-c", wrong]), run(folder.path(), &[&known[..6], &["-c", wrong]].concat()));
        assert_eq!(String::from_utf8_lossy(&one.stderr), String::from_utf8_lossy(&many.stderr));
        assert_eq!((one.status.code(), many.status.code()), (Some(1), Some(1)));
    }
    let one_row = "SELECT count(*) AS n FROM 'a.csv' WHERE salary > (SELECT max(salary) - 100 FROM 'b.csv') AND salary > (SELECT salary FROM 'b.csv' ORDER BY id LIMIT 1)";
    let [alone, many] =
        [&[][..], &known[..6]].map(|more| stdout(&run(folder.path(), &[more, &["-c", one_row, "--format", "csv"]].concat())));
    assert_eq!(alone, many);
}
