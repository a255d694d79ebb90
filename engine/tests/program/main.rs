//! The real program: statements, scripts, files in and out, tables in a folder, models.

#![allow(clippy::unwrap_used)]

mod files;
mod models;
mod tables;

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
fn scripts_formats_and_exit_codes() {
    let folder = sources();
    std::fs::write(folder.path().join("s.sql"), "CREATE TABLE t AS VALUES (1);\n-- a comment; with a semicolon\nSELECT * FROM t;")
        .unwrap();
    assert_eq!(stdout(&run(folder.path(), &["-f", "s.sql", "--format", "tsv"])).lines().last(), Some("1"));
    assert!(stdout(&run(folder.path(), &["-c", STATEMENT, "--format", "markdown"])).starts_with("| id | v"));
    assert_eq!(failure(&run(folder.path(), &["-c", ""])).0, 2);
    assert_eq!(failure(&run(folder.path(), &["-c", "MERGE 'a.csv' ON nosuch"])).0, 2);
    assert_eq!(failure(&run(folder.path(), &["-c", "MERGE 'missing.csv' ON id"])).0, 1);
    let timed = run(folder.path(), &["-f", "s.sql", "--timer"]);
    assert_eq!(String::from_utf8_lossy(&timed.stderr).matches("Time: ").count(), 2, "{timed:?}");
    // What is not the last to be said goes to standard output as something to read, whatever the file is.
    let shown = stdout(&run(folder.path(), &["-c", "SELECT 5 AS five", "-f", "s.sql", "-o", "last.parquet"]));
    assert!(shown.contains("five") && !shown.contains("PAR1"), "{shown}");
    assert_eq!(stdout(&run(folder.path(), &["-c", "SELECT * FROM 'last.parquet'", "--format", "tsv"])).lines().last(), Some("1"));
    let formatted = run(folder.path(), &["fmt", "s.sql"]);
    assert!(formatted.status.success());
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
fn places_are_those_of_the_script() {
    let folder = sources();
    std::fs::write(folder.path().join("s.sql"), "SELECT 1;\n\nSELECT 2; MERGE 'a.csv' ON nosuch;\n").unwrap();
    let (_, error) = failure(&run(folder.path(), &["-f", "s.sql"]));
    assert!(error.contains("--> line 3, column 28 of s.sql\n   | SELECT 2; MERGE 'a.csv' ON nosuch;\n"), "{error}");
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
    // Planning does not take with their number what it takes with the cube of it: a server's client would keep a core busy.
    let started = std::time::Instant::now();
    for (operators, sum) in [(["+", "+", "+"], 451), (["+", "-", "+"], 151), (["+", "*", "-"], 1), (["*", "*", "*"], 1)] {
        let long = format!("SELECT 1{} AS n", operators.map(|op| format!(" {op} 1")).concat().repeat(150));
        assert!(stdout(&script(&long)).contains(&format!(" {sum} ")), "{operators:?}");
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
    failure(&script("\u{0}\u{1}MERGE"));
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
