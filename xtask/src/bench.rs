//! `cargo xtask bench merge` and `conflicts`: our MERGE beside the best hand-written SQL with the same lawful answer, in turn in one run.

use crate::{Outcome, run};
use std::path::Path;

const PACKAGES: [&str; 5] = ["duckdb==2.0.0", "polars==2.1.0", "datafusion==55.0.0", "pyarrow==26.0.1", "numpy"];

/// Runs the suite for these numbers of input rows.
pub fn merge(root: &Path, rows: &[&str]) -> Outcome {
    beside(root, "merge.py", if rows.is_empty() { &["1000000", "10000000"] } else { rows })
}

/// RETURNING CONFLICTS of so many input rows.
pub fn conflicts(root: &Path, rows: &[&str]) -> Outcome {
    beside(root, "conflicts.py", if rows.is_empty() { &["1000000"] } else { rows })
}

fn beside(root: &Path, script: &str, rows: &[&str]) -> Outcome {
    let target = crate::target()?;
    let python = crate::duckdb::python("bench-venv", &PACKAGES)?.display().to_string();
    run("cargo", &["build", "--release", "-p", "mergeql"])?;
    let script = root.join("xtask/bench").join(script).display().to_string();
    let (ours, folder) = (target.join("release/mergeql").display().to_string(), target.join("bench-merge").display().to_string());
    run(&python, &[&[script.as_str(), &ours, &folder], rows].concat())
}

/// Merging models beside mergekit.
pub fn tensors(root: &Path, layers: Option<&str>) -> Outcome {
    let target = crate::target()?;
    let python = crate::duckdb::python("mergekit", &["mergekit==0.1.5"])?;
    run("cargo", &["build", "--release", "-p", "mergeql"])?;
    let folder = target.join("bench-tensors");
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let script = root.join("xtask/bench/tensors.py").display().to_string();
    let (folder, ours) = (folder.display().to_string(), target.join("release/mergeql").display().to_string());
    let rival = python.with_file_name("mergekit-yaml").display().to_string();
    run(&python.display().to_string(), &[&script, &folder, &ours, &rival, layers.unwrap_or("13")])
}
