//! The same statements, rows and states in real SQLite processes.
#![allow(clippy::unwrap_used, missing_docs)]

use mergeql_host_tests::{Host, Sample, each_record, one, sample};
use mergeql_lang::lower::sqlite_type_name;
use mergeql_udfs::{Type, catalog};
use sqllogictest::Runner;

fn library() -> String {
    std::env::var("MERGEQL_SQLITE_EXTENSION").expect("run `cargo xtask test`: it builds the extension")
}

fn start(file: Option<&str>) -> Host {
    // Debian's Python loads extensions; others may have been built without.
    let python = std::env::var("MERGEQL_SQLITE_PYTHON").expect("run `cargo xtask test`: it names a Python that loads extensions");
    let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/sqlite_driver.py");
    let library = library();
    Host::start("sqlite", &python, &[&[driver, &library], file.as_slice()].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_slt_file_passes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../slt");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    // COMPAT.md: SQLite keeps no states in tables by itself.
    files.retain(|f| !f.ends_with("kept_states.slt"));
    let mut failures = Vec::new();
    for file in &files {
        let mut runner = Runner::new(|| async { Ok(start(None)) });
        for (line, outcome) in each_record(&mut runner, file).await {
            if let Err(e) = outcome {
                failures.push(format!("{} line {line}: {e}", file.display()));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n\n"));
}

/// For every strategy: shuffled and repeated rows give the state bytes that the core gives; states made in parts join to them.
#[test]
fn every_aggregate_keeps_the_laws_and_the_bytes() {
    let mut host = start(None);
    let mut checked = 0;
    for entry in catalog::all() {
        for call in (entry.spec().samples)() {
            let Some(Sample { rows, state: expected }) =
                sample(entry, &call, |ty| sqlite_type_name(ty).to_owned(), |v| !v.is_nan())
            else {
                continue;
            };
            let name = entry.spec().name;
            // COMPAT.md: truth values are numbers, except where a strategy takes nothing else.
            if call.inputs.contains(&Type::Boolean) && !["any", "every"].contains(&name) {
                continue;
            }
            let columns: Vec<String> = (0..call.inputs.len()).map(|i| format!("c{i}")).collect();
            let columns = columns.join(", ");
            let values: Vec<String> = rows.iter().map(|r| format!("({r})")).collect();
            host.raw("DROP TABLE IF EXISTS rows").unwrap();
            host.raw(&format!("CREATE TABLE rows ({columns}); INSERT INTO rows VALUES {}", values.join(", "))).unwrap();
            let with = call.to_json().replace('\'', "''");
            let state = format!("crdt_{name}_state_with('{with}', {columns})");
            for from in ["rows", "(SELECT * FROM (SELECT * FROM rows UNION ALL SELECT * FROM rows) ORDER BY random())"] {
                let answer = host.query_raw(&format!("SELECT {state} FROM {from}"));
                let answer = answer.map(|rows| rows.unwrap()[0][0].clone().unwrap_or_else(|| "NULL".to_owned())).map_err(|e| e.0);
                assert_eq!(answer, Ok(expected.clone()), "{name} {call:?} from {from}");
            }
            let parts = format!("SELECT {state} AS s FROM rows GROUP BY rowid % 3");
            assert_eq!(one(&mut host, &format!("SELECT crdt_merge(s) FROM ({parts})")), expected, "{name} {call:?} in parts");
            checked += 1;
        }
    }
    assert!(checked >= 10, "only {checked} calls were checked");
}
