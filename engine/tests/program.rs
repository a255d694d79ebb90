//! Files in and out through the real program: every format, bad input, and nothing half-written.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mergeql"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The exit code and the error of a run that must fail cleanly.
fn failure(output: &Output) -> (i32, String) {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!error.contains("panicked"), "{error}");
    assert!(error.starts_with("error["), "no diagnostic: {error}");
    (output.status.code().unwrap_or(-1), error)
}

const STATEMENT: &str = "MERGE 'a.csv', 'b.ndjson' ON id STRATEGY v = max ORDER BY id";

fn sources() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.csv"), "id,v,t\n1,5,x\n2,,\"\"\n").unwrap();
    std::fs::write(folder.path().join("b.ndjson"), "{\"id\":1,\"v\":4,\"t\":null}\n{\"id\":3,\"v\":9,\"t\":\"z\"}\n").unwrap();
    folder
}

#[test]
fn every_format_reads_back_equal() {
    let folder = sources();
    let expected = "id,v,t\n1,5,x\n2,,\"\"\n3,9,z\n";
    for ending in ["csv", "tsv", "json", "ndjson", "parquet", "arrow"] {
        let file = format!("out.{ending}");
        stdout(&run(folder.path(), &["-c", &format!("{STATEMENT} INTO '{file}'")]));
        let back = stdout(&run(folder.path(), &["-c", &format!("SELECT id, v, t FROM '{file}' ORDER BY id"), "--format", "csv"]));
        // Arrow's CSV writer does not quote empty text, so it is compared by what it says of NULL.
        assert_eq!(back.replace("\"\"", ""), expected.replace("\"\"", ""), "{ending}");
        let empty =
            stdout(&run(folder.path(), &["-c", &format!("SELECT t IS NULL AS n FROM '{file}' WHERE id = 2"), "--format", "csv"]));
        if !matches!(ending, "csv" | "tsv") {
            assert_eq!(empty, "n\nfalse\n", "{ending}");
        }
    }
}

fn count_of(folder: &Path, source: &str) -> String {
    std::fs::write(folder.join("late/1.csv"), "id,v\n1,7\n").unwrap();
    std::fs::write(folder.join("late/2.csv"), "id,v\n1,5\n4,1.5\n").unwrap();
    let counted = run(folder, &["-c", &format!("MERGE {source} ON id STRATEGY v = counter ORDER BY id"), "--format", "csv"]);
    let rows = stdout(&counted);
    assert_eq!(rows, "id,v\n1,12.0\n4,1.5\n");
    rows
}

#[test]
fn folders_patterns_standard_input_and_names_are_sources() {
    let folder = sources();
    std::fs::create_dir(folder.path().join("late")).unwrap();
    std::fs::write(folder.path().join("late/1.csv"), "id,v\n1,7\n").unwrap();
    std::fs::write(folder.path().join("late/2.csv"), "id,v\n4,1.5\n").unwrap();
    let count = |source: &str| {
        stdout(&run(folder.path(), &["-c", &format!("SELECT sum(v) AS s FROM (MERGE {source} ON id) AS m"), "--format", "csv"]))
    };
    assert_eq!(count("'late'"), "s\n8.5\n");
    assert_eq!(count("'late/*.csv'"), "s\n8.5\n");
    assert_eq!(count("'late/1.csv', 'late/1.csv'"), "s\n7\n");
    // Each file is an origin of its own, however the files are named.
    let counted = |source: &str| count_of(folder.path(), source);
    assert_eq!(counted("'late/*.csv'"), counted("'late/1.csv', 'late/2.csv'"));
    let named = run(folder.path(), &["--source", "l=late/2.csv", "-c", "MERGE l ON id ORDER BY id", "--format", "csv"]);
    assert_eq!(stdout(&named), "id,v\n1,5.0\n4,1.5\n");
    let mut child = Command::new(env!("CARGO_BIN_EXE_mergeql"))
        .args(["-c", "MERGE '-' ON id WITH (format = 'csv')", "--format", "ndjson"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"id,v\n1,2\n1,3\n").unwrap();
    assert_eq!(stdout(&child.wait_with_output().unwrap()), "{\"id\":1,\"v\":3}\n");
}

#[test]
fn scripts_formats_and_exit_codes() {
    let folder = sources();
    std::fs::write(folder.path().join("s.sql"), "CREATE TABLE t AS VALUES (1);\n-- a comment; with a semicolon\nSELECT * FROM t;")
        .unwrap();
    assert_eq!(stdout(&run(folder.path(), &["-f", "s.sql", "--format", "tsv"])).lines().last(), Some("1"));
    assert!(stdout(&run(folder.path(), &["-c", STATEMENT, "--format", "markdown"])).starts_with("| id | v"));
    assert_eq!(failure(&run(folder.path(), &["-c", ""])).0, 2);
    assert_eq!(failure(&run(folder.path(), &["-c", "MERGE 'a.csv' ON nosuch"])).0, 2);
    assert_eq!(failure(&run(folder.path(), &["-c", "MERGE 'missing.csv' ON id"])).0, 1);
    let formatted = run(folder.path(), &["fmt", "s.sql"]);
    assert!(formatted.status.success());
}

#[test]
fn what_is_written_reads_back_as_it_was() {
    let folder = sources();
    let made =
        "SELECT 1 AS id, '' AS v, CAST(NULL AS TEXT) AS w UNION ALL SELECT 2, 'a,\"b\"\n', ' c ' UNION ALL SELECT 3, 'NULL', '\\x'";
    for ending in ["csv", "tsv", "json", "ndjson", "parquet", "arrow"] {
        let file = format!("out.{ending}");
        stdout(&run(folder.path(), &["-c", &format!("MERGE ({made}) AS s ON id INTO '{file}'")]));
        let read = format!("SELECT count(*) AS n FROM (SELECT * FROM '{file}' INTERSECT ({made})) AS same");
        assert_eq!(stdout(&run(folder.path(), &["-c", &read, "--format", "csv"])), "n\n3\n", "{ending}");
    }
    // An ending that tells no format is no guess.
    assert_eq!(failure(&run(folder.path(), &["-c", STATEMENT, "-o", "out.xyz"])).0, 2);
}

#[test]
fn views_stay_in_a_folder_of_tables() {
    let folder = sources();
    let db = |sql: &str| run(folder.path(), &["--db", "shop", "-c", sql, "--format", "csv"]);
    stdout(&db(
        "CREATE TABLE a AS SELECT 1 AS id, 2 AS v; CREATE VIEW m AS MERGE a, (SELECT 1 AS id, 3 AS v) AS b ON id STRATEGY v = max",
    ));
    stdout(&db("CREATE VIEW over AS SELECT v + 1 AS v FROM m"));
    assert_eq!(stdout(&db("SELECT v FROM over")), "v\n4\n");
    stdout(&db("DROP VIEW over"));
    assert!(failure(&db("SELECT v FROM over")).1.contains("unknown_source"));
}

#[test]
fn views_are_over_tables_as_they_are() {
    let folder = sources();
    let script = "CREATE TABLE a AS SELECT 1 AS id, 2 AS v; CREATE VIEW m AS MERGE a ON id; CREATE VIEW b AS SELECT count(*) AS n FROM m; \
                  INSERT INTO a VALUES (2, 3); SELECT n FROM b; \
                  MERGE INTO a USING (SELECT 3 AS id, 4 AS v) AS s ON id STRATEGY v = max; SELECT n FROM b; \
                  CREATE OR REPLACE TABLE a AS SELECT 9 AS id; SELECT n FROM b; SELECT * FROM m";
    for db in [&[][..], &["--db", "shop"]] {
        let out = stdout(&run(folder.path(), &[db, &["-c", script, "--format", "csv"]].concat()));
        let lines: Vec<&str> = out.lines().collect();
        let counts: Vec<&str> = lines.windows(2).filter(|pair| pair[0] == "n").map(|pair| pair[1]).collect();
        assert!(counts == ["2", "3", "1"] && lines.last() == Some(&"9"), "{db:?}: {out}");
    }
    // A view has no rows to write, nor does its name stand for a table.
    let db = |sql: &str| run(folder.path(), &["--db", "shop", "-c", sql, "--format", "csv"]);
    for wrong in [
        "MERGE (SELECT 3 AS id) AS z ON id INTO OR REPLACE m",
        "MERGE INTO m USING (SELECT 3 AS id) AS z ON id",
        "CREATE OR REPLACE TABLE m AS SELECT 1 AS id",
        "DROP TABLE m",
    ] {
        let (code, error) = failure(&db(wrong));
        assert!(code == 2 && error.contains("`m` is a view"), "{wrong}: {error}");
    }
    stdout(&db("DROP TABLE a"));
    assert!(failure(&db("SELECT * FROM b")).1.contains("unknown_source"));
    stdout(&db("DROP VIEW m; DROP VIEW b"));
}

#[test]
fn files_of_a_folder_of_tables() {
    let folder = sources();
    let db = |sql: &str| run(folder.path(), &["--db", "shop", "-c", sql, "--format", "csv"]);
    let file = folder.path().join("shop/t-1.parquet");
    stdout(&db("CREATE TABLE t AS SELECT 1 AS id"));
    let rows = std::fs::read(&file).unwrap();
    // A table that cannot be read is one all the same.
    for broken in [None, Some(&rows[..rows.len() / 2])] {
        std::fs::remove_file(&file).ok();
        broken.iter().for_each(|bytes| std::fs::write(&file, bytes).unwrap());
        for sql in ["SELECT * FROM t", "CREATE TABLE IF NOT EXISTS t AS SELECT 2 AS id", "MERGE t ON id"] {
            let output = db(sql);
            if output.status.success() {
                assert_eq!(stdout(&output), "rows\n0\n", "{sql}");
                continue;
            }
            let (code, error) = failure(&output);
            assert!(code == 1 && error.contains("`t` cannot be read"), "{sql}: {error}");
        }
    }
    std::fs::write(&file, &rows).unwrap();
    assert_eq!(stdout(&db("SELECT id FROM t")), "id\n1\n");
    // Files that are there are nobody's to write over, and a folder without a manifest is not one of tables.
    std::fs::write(folder.path().join("shop/u-2.parquet"), b"of somebody").unwrap();
    std::fs::write(folder.path().join("shop/u-90.parquet"), b"of somebody").unwrap();
    stdout(&db("CREATE TABLE u AS SELECT 1 AS id"));
    assert_eq!(std::fs::read(folder.path().join("shop/u-90.parquet")).unwrap(), b"of somebody");
    std::fs::remove_file(folder.path().join("shop/manifest.json")).unwrap();
    let (code, error) = failure(&db("CREATE TABLE t AS SELECT 2 AS id"));
    assert!(code == 1 && error.contains("no manifest"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), rows);
}

#[test]
fn what_only_running_meets_is_no_wrong_statement() {
    let folder = sources();
    for sql in [
        "SELECT 1 / 0",
        "MERGE (SELECT 1 AS id, 9223372036854775807 AS v, 'a' AS o UNION ALL SELECT 1, 1, 'b') AS s ON id STRATEGY v = counter(o)",
    ] {
        assert_eq!(failure(&run(folder.path(), &["-c", sql])).0, 1, "{sql}");
    }
    assert_eq!(failure(&run(folder.path(), &["-c", "MERGE nowhere ON id"])).0, 2);
    // What does not fit is an error, wherever it is computed.
    let table = "CREATE TABLE big (id INT, v BIGINT) AS VALUES (1, 9223372036854775807), (2, 5)";
    for sql in [
        "MERGE big ON id WHERE v + 1 > 0",
        "SELECT * FROM (SELECT v * 2 AS w, count(*) FROM big GROUP BY v * 2 ORDER BY w - 1) AS t",
        "SELECT id FROM big WHERE EXISTS (SELECT 1 FROM big AS b WHERE b.v - -1 > big.v)",
        "CREATE STRATEGY h AS GREATEST BY (value * 2); MERGE big, (SELECT 1 AS id, 1 AS v) AS b ON id STRATEGY v = h",
    ] {
        let error = failure(&run(folder.path(), &["-c", table, "-c", sql])).1;
        assert!(error.contains("does not fit its type"), "{sql}: {error}");
    }
    let fits =
        "SELECT v + 1 AS a, v - 1, -v * 2 AS b, sum(id + 1) OVER (ORDER BY id + 1) AS s FROM big WHERE id = 1 + 1 LIMIT 1 + 0";
    assert_eq!(stdout(&run(folder.path(), &["-c", table, "-c", fits, "--format", "csv"])), "\na,big.v - Int64(1),b,s\n6,4,-10,3\n");
    let explained = stdout(&run(folder.path(), &["-c", "EXPLAIN ANALYZE MERGE 'a.csv' ON id", "--format", "csv"]));
    assert!(explained.lines().any(|l| l.starts_with("memory,") && l.contains("at most")), "{explained}");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_mergeql")).args(["-c", "SELECT 1"]).stdout(full).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn columns_of_text_files_pair_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("d")).unwrap();
    std::fs::write(folder.path().join("d/1.csv"), "id,v,w\n1,5,x\n").unwrap();
    std::fs::write(folder.path().join("d/2.csv"), "w,id\ny,2\n").unwrap();
    std::fs::write(folder.path().join("d/3.csv"), "v,id,z\n7,1,true\n").unwrap();
    let merged = stdout(&run(folder.path(), &["-c", "MERGE 'd/*.csv' ON id STRATEGY * = max ORDER BY id", "--format", "csv"]));
    assert_eq!(merged, "id,v,w,z\n1,7,x,true\n2,,y,\n");
    std::fs::write(folder.path().join("d/.4.csv"), "id\n4\n").unwrap();
    std::fs::write(folder.path().join("d/5.csv.gz"), "").unwrap();
    assert!(failure(&run(folder.path(), &["-c", "SELECT * FROM (MERGE 'd/5.csv.gz' ON id) AS m"])).1.contains("compressed"));
    for (sql, expected) in [
        ("SELECT count(*) AS n FROM 'd/*.csv'", "n\n3\n"),
        ("SELECT count(z) AS n FROM 'd/*.csv'", "n\n1\n"),
        ("SELECT z, v FROM 'd/*.csv' WHERE id = 2", "z,v\n,\n"),
    ] {
        assert_eq!(stdout(&run(folder.path(), &["-c", sql, "--format", "csv"])), expected, "{sql}");
    }
}

#[test]
fn a_pipe_is_no_file() {
    let folder = tempfile::tempdir().unwrap();
    for (pipe, sql) in [
        ("p.csv", "MERGE 'p.csv' ON id"),
        ("p.safetensors", "MERGE MODELS 'p.safetensors', 'p.safetensors' AS b STRATEGY * = linear"),
    ] {
        assert!(Command::new("mkfifo").arg(folder.path().join(pipe)).status().unwrap().success());
        let (_, error) = failure(&run(folder.path(), &["-c", sql]));
        assert!(error.contains("pipe or a device") || error.contains("no regular file"), "{error}");
    }
}

#[test]
fn sets_that_were_edited_by_hand_are_taken_in() {
    let folder = sources();
    let script = "MERGE (SELECT 1 AS id, 'x' AS v) AS a ON id STRATEGY v = gset INTO t WITH (state = 'keep'); SELECT mergeql_adopt('t'); \
                  INSERT INTO t (id, v) VALUES (2, ['q', 'r']); SELECT mergeql_adopt('t'); \
                  MERGE INTO t USING (SELECT 2 AS id, 'z' AS v) AS s ON id; SELECT v FROM t WHERE id = 2";
    let out = stdout(&run(folder.path(), &["-c", script, "--format", "json"]));
    assert!(out.contains(r#"["q","r","z"]"#), "{out}");
}

#[test]
fn places_are_those_of_the_script() {
    let folder = sources();
    std::fs::write(folder.path().join("s.sql"), "SELECT 1;\n\nSELECT 2; MERGE 'a.csv' ON nosuch;\n").unwrap();
    let (_, error) = failure(&run(folder.path(), &["-f", "s.sql"]));
    assert!(error.contains("--> line 3, column 28 of s.sql\n   | SELECT 2; MERGE 'a.csv' ON nosuch;\n"), "{error}");
}

#[test]
fn bad_files_are_clear_errors() {
    let folder = sources();
    let path = |name: &str| folder.path().join(name);
    stdout(&run(folder.path(), &["-c", &format!("{STATEMENT} INTO 'good.parquet'")]));
    let good = std::fs::read(path("good.parquet")).unwrap();
    std::fs::write(path("truncated.parquet"), &good[..good.len() / 2]).unwrap();
    std::fs::write(path("empty.parquet"), b"").unwrap();
    std::fs::write(path("text.parquet"), b"this is no parquet file at all").unwrap();
    std::fs::write(path("empty.csv"), b"").unwrap();
    std::fs::write(path("ragged.csv"), b"id,v\n1,2\n3\n").unwrap();
    std::fs::write(path("latin1.csv"), b"id,v\n1,caf\xe9\n").unwrap();
    std::fs::write(path("twice.csv"), b"id,v,v\n1,2,3\n").unwrap();
    std::fs::write(path("broken.ndjson"), b"{\"id\":1}\n{\"id\":\n").unwrap();
    std::fs::write(path("number.ndjson"), b"1\n").unwrap();
    std::fs::write(path("clash.ndjson"), b"{\"id\":1}\n{\"id\":true}\n").unwrap();
    std::fs::write(path("broken.json"), b"[{\"id\":1},").unwrap();
    std::fs::write(path("cut.arrow"), b"ARROW1\0\0").unwrap();
    std::fs::create_dir(path("nothing")).unwrap();
    let cases = [
        ("truncated.parquet", "io"),
        ("empty.parquet", "io"),
        ("text.parquet", "io"),
        ("empty.csv", "io"),
        ("ragged.csv", "io"),
        ("latin1.csv", "io"),
        ("twice.csv", "duplicate_column"),
        ("broken.ndjson", "io"),
        ("number.ndjson", "io"),
        ("clash.ndjson", "type_mismatch"),
        ("broken.json", "io"),
        ("cut.arrow", "io"),
        ("nothing", "io"),
        ("gone/*.csv", "io"),
    ];
    for (file, code) in cases {
        let (_, error) = failure(&run(folder.path(), &["-c", &format!("MERGE '{file}' ON id")]));
        assert!(error.starts_with(&format!("error[{code}]")), "{file}: {error}");
        let name = file.split('/').next().unwrap();
        assert!(error.contains(name), "{file} is not named: {error}");
    }
    // NULs in text are text.
    std::fs::write(path("nul.csv"), b"id,v\n1,a\0b\n").unwrap();
    assert_eq!(
        stdout(&run(folder.path(), &["-c", "SELECT length(v) AS n FROM (MERGE 'nul.csv' ON id) AS m", "--format", "csv"])),
        "n\n3\n"
    );
    // A source without rows and columns contributes nothing.
    std::fs::write(path("none.ndjson"), b"").unwrap();
    assert_eq!(
        stdout(&run(folder.path(), &["-c", "MERGE 'none.ndjson', 'a.csv' ON id ORDER BY id LIMIT 1", "--format", "csv"])),
        "id,v,t\n1,5,x\n"
    );
}

#[test]
fn monstrous_statements_are_clear_errors() {
    let folder = sources();
    let script = |text: &str| {
        std::fs::write(folder.path().join("s.sql"), text).unwrap();
        run(folder.path(), &["-f", "s.sql"])
    };
    let nested = format!("MERGE 'a.csv' ON id WHERE {}1 = 1{}", "(".repeat(10_000), ")".repeat(10_000));
    assert!(failure(&script(&nested)).1.starts_with("error[limit_exceeded]"));
    failure(&script(&format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000))));
    failure(&script(&format!("SELECT * FROM {}MERGE 'a.csv' ON id{}", "(".repeat(10_000), ")".repeat(10_000))));
    let long = format!("MERGE 'a.csv' ON id WHERE t = '{}' ORDER BY id", "x".repeat(10 << 20));
    assert!(stdout(&script(&long)).contains("(0 rows)"));
    failure(&script("MERGE 'a.csv' ON id WHERE t = 'open"));
    failure(&script("\u{0}\u{1}MERGE"));
}

#[test]
fn a_target_is_written_whole_or_not_at_all() {
    let folder = sources();
    let listing = || {
        let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = listing();
    // A fault in the middle of writing leaves nothing behind.
    let statement = "MERGE (SELECT 1 AS id, CAST(column1 AS INT) AS v FROM (VALUES ('1'), ('x'))) AS s ON id INTO 'out.parquet'";
    failure(&run(folder.path(), &["-c", statement]));
    assert_eq!(listing(), before);
    let (_, error) = failure(&run(folder.path(), &["-c", &format!("{STATEMENT} INTO 'no/such/folder/out.csv'")]));
    assert!(error.starts_with("error[io]"), "{error}");
    // An existing file stays unless it is to be replaced.
    std::fs::write(folder.path().join("kept.csv"), "precious").unwrap();
    let (_, error) = failure(&run(folder.path(), &["-c", &format!("{STATEMENT} INTO 'kept.csv'")]));
    assert!(error.contains("OR REPLACE"), "{error}");
    assert_eq!(std::fs::read_to_string(folder.path().join("kept.csv")).unwrap(), "precious");
    stdout(&run(folder.path(), &["-c", &format!("{STATEMENT} INTO OR REPLACE 'kept.csv'")]));
    assert!(std::fs::read_to_string(folder.path().join("kept.csv")).unwrap().starts_with("id,v,t"));
}

/// A device that is always full stands for a full disk.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_a_clear_error() {
    let folder = sources();
    let output = Command::new(env!("CARGO_BIN_EXE_mergeql"))
        .args(["-c", STATEMENT, "--format", "csv"])
        .current_dir(folder.path())
        .stdout(std::fs::File::options().write(true).open("/dev/full").unwrap())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let (code, error) = failure(&output);
    assert_eq!(code, 1, "{error}");
}

#[test]
#[cfg(unix)]
fn ctrl_c_in_the_middle_of_into_leaves_nothing() {
    let folder = sources();
    let statement = "MERGE (SELECT value AS id, value AS v FROM generate_series(1, 30000000)) AS s ON id INTO 'big.parquet'";
    let mut child = Command::new(env!("CARGO_BIN_EXE_mergeql"))
        .args(["-c", statement])
        .current_dir(folder.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|n| n == "a.csv" || n == "b.ndjson"), "{names:?}");
}

#[test]
fn the_dependency_rule_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let dependencies = |name: &str| -> Vec<String> {
        let package = metadata["packages"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap();
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|d| d["kind"].is_null()).map(|d| d["name"].as_str().unwrap().to_owned()).collect()
    };
    let (udfs, lang) = (dependencies("mergeql-udfs"), dependencies("mergeql-lang"));
    let foreign = |names: &[String]| names.iter().any(|n| n.starts_with("datafusion") || n.starts_with("arrow") || n == "tokio");
    assert!(!foreign(&udfs) && !udfs.iter().any(|n| n.starts_with("mergeql") || n == "sqlparser"), "{udfs:?}");
    assert!(!foreign(&lang) && lang.iter().filter(|n| n.starts_with("mergeql")).all(|n| n == "mergeql-udfs"), "{lang:?}");
}

fn tensors() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../udfs/tensors/tests/data")
}

/// The folder that the page on models speaks of.
fn models() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        let to = folder.path().join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(tensors().join(from), to).unwrap();
    };
    for (from, to) in [("base", "base"), ("m0", "math"), ("m1", "code/model"), ("m2", "chat")] {
        copy(&format!("inputs/{from}.safetensors"), &format!("{to}.safetensors"));
    }
    for (from, to) in [("lora0", "a"), ("lora1", "b")] {
        copy(&format!("inputs/{from}.safetensors"), &format!("adapters/{to}/adapter_model.safetensors"));
        std::fs::write(folder.path().join(format!("adapters/{to}/adapter_config.json")), "{\"lora_alpha\": 8}").unwrap();
    }
    // What they were trained on: one matrix of zeros.
    let header = r#"{"q.weight":{"dtype":"F32","shape":[64,48],"data_offsets":[0,12288]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 12288]].concat();
    std::fs::write(folder.path().join("adapters/base.safetensors"), bytes).unwrap();
    std::fs::write(
        folder.path().join("config.yml"),
        "merge_method: task_arithmetic\nbase_model: base.safetensors\nmodels:\n  - model: math.safetensors\n    parameters: {weight: 0.5}\n\
         \x20 - model: chat.safetensors\n    parameters: {weight: 0.3}\n",
    )
    .unwrap();
    folder
}

#[test]
fn the_page_on_models() {
    let folder = models();
    let page = include_str!("../../docs/models.md");
    let path = Path::new(env!("CARGO_BIN_EXE_mergeql")).parent().unwrap().display().to_string();
    let mut ran = 0;
    for block in page.split("```").skip(1).step_by(2) {
        let (language, text) = block.split_once('\n').unwrap();
        match language {
            "sql" => drop(stdout(&run(folder.path(), &["-c", text]))),
            "sh" => {
                let command = format!("set -e\nPATH={path}:$PATH\n{text}");
                stdout(
                    &Command::new("sh").args(["-c", &command]).current_dir(folder.path()).stdin(Stdio::null()).output().unwrap(),
                );
            }
            _ => continue,
        }
        ran += 1;
    }
    assert_eq!(ran, 13);
    let report = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(report.ends_with("</html>\n") && report.matches("<svg").count() == 4 && report.matches("</svg>").count() == 4);
    // What only one of two models has, or has in another shape, is a row without numbers.
    let compared = "SELECT tensor, cosine IS NULL AS n FROM tensor_compare('adapters/a', 'adapters/b') ORDER BY tensor";
    assert_eq!(stdout(&run(folder.path(), &["-c", compared, "--format", "csv"])), "tensor,n\nq.lora_A,true\nq.lora_B,true\n");
    // The statement that a config stands for gives the bytes that the config gives.
    let statement = stdout(&run(folder.path(), &["migrate", "config.yml", "--out", "from-statement/"]));
    stdout(&run(folder.path(), &["-c", &statement]));
    let tensors = |place: &str| {
        stdout(&run(
            folder.path(),
            &["-c", &format!("SELECT tensor, norm FROM read_safetensors('{place}/model.safetensors')"), "--format", "csv"],
        ))
    };
    assert_eq!(tensors("from-config"), tensors("from-statement"));
    let file = |place: &str| std::fs::read(folder.path().join(place).join("model.safetensors")).unwrap();
    let data = |bytes: Vec<u8>| {
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].to_vec()
    };
    assert_eq!(data(file("from-config")), data(file("from-statement")));
}

#[test]
fn a_set_of_models_knows_its_files() {
    let folder = models();
    let set = |arguments: &[&str]| run(folder.path(), &[&["model-set"], arguments].concat());
    stdout(&set(&["new", "a.set", "--base", "base.safetensors", "--strategy", "* = ties(density = 0.5)"]));
    assert!(failure(&set(&["new", "b.set", "--strategy", "* = tise"])).1.contains("did you mean `ties`"));
    stdout(&set(&["add", "a.set", "math.safetensors", "--origin", "x"]));
    stdout(&set(&["add", "a.set", "chat.safetensors", "--origin", "x"]));
    stdout(&set(&["resolve", "a.set", "--out", "out/"]));
    assert!(failure(&set(&["resolve", "a.set", "--out", "out/"])).1.contains("this file exists"));
    stdout(&set(&["resolve", "a.set", "--out", "out/", "--overwrite"]));
    assert!(failure(&set(&["remove", "a.set", "nobody"])).1.contains("no model of the set is called `nobody`"));
    std::fs::copy(folder.path().join("base.safetensors"), folder.path().join("chat.safetensors")).unwrap();
    assert!(failure(&set(&["resolve", "a.set"])).1.contains("`chat.safetensors` is not the model that was added"));
}

#[test]
fn a_killed_merge_of_models_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    // Large enough to be killed in the middle: 24 tensors of 4 MB in two models.
    for model in ["a", "b"] {
        let tensors: Vec<String> = (0..24)
            .map(|i| {
                format!(
                    "\"t{i:02}\":{{\"dtype\":\"F32\",\"shape\":[1000000],\"data_offsets\":[{},{}]}}",
                    i * 4_000_000,
                    (i + 1) * 4_000_000
                )
            })
            .collect();
        let header = format!("{{{}}}", tensors.join(","));
        let file = std::fs::File::create(folder.path().join(format!("{model}.safetensors"))).unwrap();
        use std::os::unix::fs::FileExt;
        file.write_all_at(&(header.len() as u64).to_le_bytes(), 0).unwrap();
        file.write_all_at(header.as_bytes(), 8).unwrap();
        file.set_len(8 + header.len() as u64 + 96_000_000).unwrap();
    }
    let statement = "MERGE MODELS 'a.safetensors', 'b.safetensors' STRATEGY * = karcher INTO 'out/'";
    let out = folder.path().join("out/model.safetensors");
    let mut killed = 0;
    for wait in [60, 120, 200, 300, 450] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mergeql"))
            .args(["-c", statement])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        if out.exists() {
            break;
        }
    }
    assert!(killed > 0);
    if !out.exists() {
        stdout(&run(folder.path(), &["-c", statement]));
    }
    assert!(folder.path().join("out/README.md").exists());
    let count = stdout(&run(
        folder.path(),
        &["-c", "SELECT count(*) AS n, sum(bytes) AS b FROM read_safetensors('out/model.safetensors')", "--format", "csv"],
    ));
    assert_eq!(count, "n,b\n24,96000000\n");
}

#[test]
fn not_null_stays_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let db = |sql: &str| run(folder.path(), &["--db", "shop", "-c", sql, "--format", "csv"]);
    stdout(&db("CREATE TABLE t (id INT NOT NULL, v INT); INSERT INTO t VALUES (1, 2)"));
    let (code, error) = failure(&db("INSERT INTO t VALUES (NULL, 3)"));
    assert!(code == 1 && error.contains("of `t` that is NOT NULL"), "{error}");
    assert!(failure(&db("INSERT INTO t (v) VALUES (3)")).1.contains("NOT NULL"));
    // Also in a table that a merge wrote anew, which takes `lww` for columns without NULL.
    stdout(&db("CREATE TABLE s (id INT NOT NULL, v INT); INSERT INTO s VALUES (1, 9), (2, 4); MERGE INTO t USING s ON id STRATEGY v = max"));
    assert!(failure(&db("INSERT INTO t SELECT CAST(NULL AS INT), 3")).1.contains("NOT NULL"));
    assert_eq!(stdout(&db("SELECT * FROM t ORDER BY id")), "id,v\n1,9\n2,4\n");
    // A table that takes its place has its own columns.
    stdout(&db("CREATE OR REPLACE TABLE t AS SELECT CAST(NULL AS INT) AS id"));
    let (_, error) = failure(&db("CREATE TABLE u (id INT, v INT DEFAULT 3)"));
    assert!(error.contains("error[unsupported]") && error.contains("DEFAULT"), "{error}");
}

#[test]
fn rows_are_deleted_and_changed() {
    let folder = tempfile::tempdir().unwrap();
    for db in [&[][..], &["--db", "shop"]] {
        let run = |sql: &str| run(folder.path(), &[db, &["-c", sql, "--format", "csv"]].concat());
        let script = "CREATE TABLE t AS SELECT * FROM (VALUES (1, 5), (2, NULL), (3, 7), (4, 9)) AS v(id, v);
            CREATE TABLE s AS SELECT 4 AS id;
            DELETE FROM t WHERE v = 5; UPDATE t SET v = v + id WHERE v = 7; UPDATE t SET v = 1 WHERE id IN (SELECT id FROM s);
            SELECT * FROM t ORDER BY id";
        let out = stdout(&run(script));
        assert!(out.ends_with("id,v\n2,\n3,10\n4,1\n"), "{db:?}: {out}");
        let out = stdout(&run("CREATE OR REPLACE TABLE t AS SELECT 1 AS id, 2 AS v; UPDATE t SET v = id; SELECT * FROM t; DELETE FROM t; SELECT count(*) AS n FROM t"));
        assert!(out.contains("id,v\n1,1\n") && out.ends_with("n\n0\n"), "{db:?}: {out}");
        let states = "CREATE TABLE k AS SELECT 1 AS id, 2 AS v; MERGE k ON id STRATEGY v = max INTO kept WITH (state = 'keep'); ";
        for edit in ["DELETE FROM kept", "UPDATE kept SET v = 1 WHERE id = 1"] {
            let (_, error) = failure(&run(&format!("{states}{edit}")));
            assert!(error.contains("error[needs_state]"), "{db:?}: {error}");
            stdout(&run("DROP TABLE IF EXISTS k; DROP TABLE IF EXISTS kept"));
        }
        let (_, error) = failure(&run("CREATE VIEW w AS SELECT 1 AS id; DELETE FROM w"));
        assert!(error.contains("is a view"), "{db:?}: {error}");
    }
}

#[test]
fn without_a_gpu_the_cpu_computes_and_explain_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../udfs/tensors/tests/data/inputs");
    let [a, b] = ["m0", "m1"].map(|name| inputs.join(format!("{name}.safetensors")).display().to_string());
    let run = |sql: &str| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_mergeql"));
        program.args(["-c", sql, "--format", "csv"]).current_dir(folder.path()).env("NO_COLOR", "1");
        // No driver is left for Vulkan to find.
        stdout(&program.env("VK_DRIVER_FILES", "/dev/null").env("VK_ICD_FILENAMES", "/dev/null").output().unwrap())
    };
    let merge = |backend: &str, out: &str| {
        format!("MERGE MODELS '{a}', '{b}' STRATEGY '*' = linear INTO '{out}.safetensors' WITH (backend = '{backend}')")
    };
    let explained = run(&format!("EXPLAIN {}", merge("gpu", "no")));
    assert!(explained.contains("cpu, not the gpu that was asked for: there is no GPU here"), "{explained}");
    run(&format!("{}; {}", merge("gpu", "one"), merge("cpu", "two")));
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(read("one.safetensors") == read("two.safetensors"));
}

#[test]
fn a_pattern_counts_per_file_whatever_the_strategy_is_called() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("late")).unwrap();
    std::fs::write(folder.path().join("late/1.csv"), "id,n\n1,7\n").unwrap();
    std::fs::write(folder.path().join("late/2.csv"), "id,n\n1,5\n").unwrap();
    for script in [
        "MERGE 'late/*.csv' ON id STRATEGY n = counter",
        "CREATE STRATEGY hits AS counter; MERGE 'late/*.csv' ON id STRATEGY n = hits",
        "CREATE STRATEGY hits AS counter; CREATE STRATEGY visits AS hits; MERGE 'late/*.csv' ON id STRATEGY n = Visits",
    ] {
        let out = stdout(&run(folder.path(), &["-c", script, "--format", "csv"]));
        assert!(out.ends_with("id,n\n1,12\n"), "{script}: {out}");
    }
    let script = "CREATE STRATEGY my_own AS max; DROP STRATEGY MY_OWN; SHOW STRATEGIES";
    assert!(!stdout(&run(folder.path(), &["-c", script])).contains("my_own"));
}

#[test]
fn types_do_not_depend_on_which_source_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let sources = ["(SELECT 1 AS id, CAST(2 AS BIGINT) AS v) AS a", "(SELECT 2 AS id, CAST(3 AS BIGINT UNSIGNED) AS v) AS b", "(SELECT 3 AS id, 0.5 AS v) AS c"];
    let mut answers = Vec::new();
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let sql = format!("MERGE {} ON id ORDER BY id", order.map(|i| sources[i]).join(", "));
        answers.push(stdout(&run(folder.path(), &["-c", &sql, "--format", "csv"])));
    }
    assert!(answers.iter().all(|a| *a == "id,v\n1,2.0\n2,3.0\n3,0.5\n"), "{answers:?}");
}

#[test]
fn sets_of_models_from_elsewhere_run_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../udfs/tensors/tests/data/inputs/m0.safetensors").display().to_string();
    let ran = folder.path().join("ran").display().to_string();
    let strategy = format!("* = evolutionary(inner = 'linear', search = 'weight', command = 'touch {ran}; echo 1', generations = 1)");
    let set = |arguments: &[&str]| run(folder.path(), &[&["model-set"], arguments].concat());
    stdout(&set(&["new", "s.set", "--strategy", &strategy]));
    stdout(&set(&["add", "s.set", &model, "--origin", "a"]));
    let (code, error) = failure(&set(&["resolve", "s.set"]));
    assert!(code == 2 && error.contains("does more than merge") && error.contains("--trust"), "{error}");
    stdout(&set(&["new", "c.set", "--with", "cache = 'kept'"]));
    stdout(&set(&["add", "c.set", &model, "--origin", "a"]));
    assert!(failure(&set(&["resolve", "c.set"])).1.contains("does more than merge"));
    assert!(!Path::new(&ran).exists() && !folder.path().join("kept").exists());
    stdout(&set(&["resolve", "c.set", "--trust"]));
    // Two models whose names differ behind a point are two.
    for name in ["llama-3.1", "llama-3.2"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::copy(&model, folder.path().join(name).join("model.safetensors")).unwrap();
        stdout(&set(&["add", "c.set", name, "--origin", "a"]));
    }
    let shown = stdout(&set(&["show", "c.set"]));
    assert!(shown.contains("llama-3.1") && shown.contains("llama-3.2"), "{shown}");
}

#[test]
fn a_merged_model_takes_no_file_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../udfs/tensors/tests/data/inputs");
    let [a, b] = ["m0", "m1"].map(|name| inputs.join(format!("{name}.safetensors")).display().to_string());
    std::fs::create_dir(folder.path().join("repo")).unwrap();
    std::fs::write(folder.path().join("repo/README.md"), "mine").unwrap();
    let merge = format!("MERGE MODELS '{a}', '{b}' STRATEGY '*' = linear INTO 'repo'");
    let (_, error) = failure(&run(folder.path(), &["-c", &merge]));
    assert!(error.contains("README.md") && error.contains("overwrite = true"), "{error}");
    assert_eq!(std::fs::read_to_string(folder.path().join("repo/README.md")).unwrap(), "mine");
    assert!(!folder.path().join("repo/model.safetensors").exists());
    stdout(&run(folder.path(), &["-c", &format!("{merge} WITH (overwrite = true)")]));
    assert!(folder.path().join("repo/model.safetensors").exists());
}
