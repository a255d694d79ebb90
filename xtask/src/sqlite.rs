//! `cargo xtask sqlite`: the extension as a file that SQLite loads.

use crate::duckdb::run_with;
use crate::{Outcome, run, target};
use std::path::{Path, PathBuf};

/// Builds the extension; gives back where it is. SQLite finds its entry by the file's name, without a number at its end.
pub fn extension(release: bool) -> Result<PathBuf, String> {
    let mut arguments = vec!["build", "-p", "mergeql-sqlite"];
    if release {
        arguments.push("--release");
    }
    run("cargo", &arguments)?;
    let profile = target()?.join(if release { "release" } else { "debug" });
    let suffix = std::env::consts::DLL_SUFFIX;
    let library = profile.join(format!("{}mergeql_sqlite{suffix}", std::env::consts::DLL_PREFIX));
    let file = profile.join(format!("mergeql0{suffix}"));
    // Not in place: a process may have the old one loaded.
    let fresh = profile.join("mergeql0.new");
    std::fs::copy(&library, &fresh).and_then(|_| std::fs::rename(&fresh, &file)).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(file)
}

/// `cargo xtask sqlite`
pub fn build() -> Outcome {
    let file = extension(true)?;
    let file = file.display();
    println!(
        "{file}\n\n\
         shell   .load {file}\n\
         Python  connection.enable_load_extension(True); connection.load_extension('{file}')\n\
         SQL     CREATE VIRTUAL TABLE temp.m USING mergeql('MERGE nyc, london ON id STRATEGY salary = max, * = lww VERSION BY updated_at')"
    );
    Ok(())
}

/// A Python whose SQLite loads extensions: Debian's does.
fn python() -> Result<&'static str, String> {
    let loads = |python: &str| {
        let probe = "import sqlite3; sqlite3.connect(':memory:').enable_load_extension(True)";
        std::process::Command::new(python).args(["-c", probe]).output().is_ok_and(|o| o.status.success())
    };
    ["/usr/bin/python3", "python3"]
        .into_iter()
        .find(|p| loads(p))
        .ok_or_else(|| "no Python here loads extensions of SQLite".to_owned())
}

/// The tests in SQLite.
pub fn test() -> Outcome {
    let file: &Path = &extension(false)?;
    run_with(
        "cargo",
        &["test", "-p", "mergeql-host-tests", "--test", "sqlite"],
        &[("MERGEQL_SQLITE_EXTENSION", &file.display().to_string()), ("MERGEQL_SQLITE_PYTHON", python()?)],
    )
}
