//! `cargo xtask sqlite`: the extension as a file that SQLite loads.

use crate::{Environment, Outcome, hosts, node, root, run, target};
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

/// The wheel of the Python package; gives back where it is.
fn wheel(extension: &Path) -> Result<PathBuf, String> {
    let folder = extension.parent().unwrap_or(Path::new(".")).display().to_string();
    let version = env!("CARGO_PKG_VERSION");
    let output = std::process::Command::new(python()?)
        .args(["ext-sqlite/python/wheel.py", &extension.display().to_string(), version, &folder])
        .current_dir(root())
        .output()
        .map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

/// `cargo xtask sqlite --wheel`
pub fn build_wheel() -> Outcome {
    println!("{}", wheel(&extension(true)?)?.display());
    Ok(())
}

/// `cargo xtask sqlite --npm`
pub fn build_npm() -> Outcome {
    println!("{}", node::sqlite_package(&extension(true)?)?.display());
    Ok(())
}

/// `cargo xtask bench sqlite [ROWS]`: our aggregates and replicated tables beside SQLite's own, in turn in one process.
pub fn bench(rows: Option<&str>) -> Outcome {
    let file = extension(true)?.display().to_string();
    run(python()?, &["xtask/bench/sqlite.py", &file, rows.unwrap_or("1000000")])
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

/// Where the extension and what loads it are.
pub fn test_environment() -> Result<Environment, String> {
    let file: &Path = &extension(false)?;
    let wheel = wheel(file)?.display().to_string();
    // The package as a user has it: installed from its wheel, into an environment of the Python that loads extensions.
    let environment = target()?.join("sqlite-package");
    let (folder, installed) = (environment.display().to_string(), environment.join("bin/python").display().to_string());
    run(python()?, &["-m", "venv", &folder])?;
    run(&installed, &["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--force-reinstall", &wheel])?;
    let (program, modules) = node::node()?;
    node::install(&modules, &node::sqlite_package(file)?)?;
    Ok(vec![
        ("MERGEQL_SQLITE_EXTENSION", file.display().to_string()),
        ("MERGEQL_SQLITE_PYTHON", installed),
        ("MERGEQL_NODE", program.display().to_string()),
        ("MERGEQL_NODE_MODULES", modules.display().to_string()),
    ])
}

/// The tests in SQLite.
pub fn test() -> Result<Environment, String> {
    let environment = test_environment()?;
    hosts(&["sqlite"], &environment)?;
    Ok(environment)
}
