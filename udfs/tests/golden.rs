//! State bytes of every released version stay readable for good: a file of hex lines for each, `name<TAB>state<TAB>value as JSON`.
#![allow(clippy::unwrap_used, missing_docs)]

use mergeql_udfs::laws::{Machine, Store, rows_of};
use mergeql_udfs::{Value, catalog};
use std::fmt::Write;

/// What this version writes: one state of every sample call, over the first rows of its domain.
fn current() -> String {
    let mut out = String::new();
    for entry in catalog::all() {
        for call in (entry.spec().samples)() {
            let rows = rows_of(entry, &call);
            let store = Store::new(entry.bind(&call).unwrap(), true);
            let (state, _) = store.run(&rows[..rows.len().min(5)], &[]).unwrap();
            let Some(state) = state else { continue };
            let hex: String = state.iter().map(|b| format!("{b:02x}")).collect();
            let value = catalog::open(&state).unwrap().value().unwrap_or(Value::Null).to_json();
            writeln!(out, "{}\t{hex}\t{value}", entry.spec().name).unwrap();
        }
    }
    out
}

fn folder() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

#[test]
fn states_have_the_bytes_of_this_version() {
    let path = folder().join("v0.1.0.tsv");
    if std::env::var_os("GOLDEN").is_some() {
        std::fs::create_dir_all(folder()).unwrap();
        std::fs::write(&path, current()).unwrap();
    }
    // Strategies that are newer than the file may be missing from it; what is in it must not change.
    let golden = std::fs::read_to_string(&path).unwrap();
    let now = current();
    for line in golden.lines() {
        assert!(now.lines().any(|l| l == line), "this state is written differently now:\n{line}");
    }
}

#[test]
fn states_of_every_released_version_are_readable() {
    for file in std::fs::read_dir(folder()).unwrap() {
        for line in std::fs::read_to_string(file.unwrap().path()).unwrap().lines() {
            let mut parts = line.split('\t');
            let (name, hex, value) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
            let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
            let state = catalog::open(&bytes).unwrap();
            assert_eq!((state.spec().name, state.value().unwrap_or(Value::Null).to_json().as_str()), (name, value));
            assert_eq!(state.encode(), bytes);
        }
    }
}
