//! Node.js and its packages, for the tests of pages and of the npm package: from npm, like all else that the tests bring.

use crate::duckdb::run_with;
use crate::{root, target};
use std::path::{Path, PathBuf};

/// Node itself, better-sqlite3 and DuckDB's client: versions whose programs come inside the packages.
const PACKAGES: [&str; 2] = ["better-sqlite3@13.2.0", "@duckdb/node-api@1.5.6-r.1"];
const NODE: &str = "24.21.0";

/// The name that npm has for this platform: its `os` and `cpu`.
pub fn platform() -> Result<(&'static str, &'static str), String> {
    let os = match std::env::consts::OS {
        "linux" => "linux",
        "macos" => "darwin",
        "windows" => "win32",
        os => return Err(format!("npm has no name for {os}")),
    };
    match std::env::consts::ARCH {
        "x86_64" => Ok((os, "x64")),
        "aarch64" => Ok((os, "arm64")),
        arch => Err(format!("npm has no name for {arch}")),
    }
}

fn npm(folder: &Path, packages: &[&str]) -> Result<(), String> {
    let folder = folder.display().to_string();
    let mut arguments = vec!["install", "--prefix", &folder, "--no-save", "--no-audit", "--no-fund", "--loglevel=error"];
    arguments.extend(packages);
    run_with("npm", &arguments, &[])
}

/// A Node.js with the packages, installed once; gives back the program, and the folder that it is run in.
pub fn node() -> Result<(PathBuf, PathBuf), String> {
    let folder = target()?.join("node");
    let (os, cpu) = platform()?;
    let node = format!("node-{os}-{cpu}");
    let program = folder.join("node_modules").join(&node).join("bin/node");
    let done = folder.join("packages");
    let wanted = format!("{NODE} {}", PACKAGES.join(" "));
    if !std::fs::read_to_string(&done).is_ok_and(|have| have == wanted) {
        std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        let node = format!("{node}@{NODE}");
        npm(&folder, &[&[node.as_str()], &PACKAGES[..]].concat())?;
        std::fs::write(&done, wanted).map_err(|e| e.to_string())?;
    }
    Ok((program, folder))
}

/// Puts a package into the folder that [`node`] gives, without the registry.
pub fn install(folder: &Path, package: &Path) -> Result<(), String> {
    let modules = folder.join("node_modules");
    std::fs::create_dir_all(&modules).map_err(|e| e.to_string())?;
    let name = modules.join("mergeql-sqlite");
    let package = package.display().to_string();
    std::fs::remove_dir_all(&name).ok();
    std::fs::create_dir_all(&name).map_err(|e| e.to_string())?;
    // A package is a compressed archive with one folder in it, `package`.
    run_with("tar", &["-xzf", &package, "-C", &name.display().to_string(), "--strip-components=1"], &[])
}

/// The npm package of the SQLite extension; gives back the archive.
pub fn sqlite_package(extension: &Path) -> Result<PathBuf, String> {
    let (os, cpu) = platform()?;
    let profile = extension.parent().unwrap_or(Path::new("."));
    let folder = profile.join("npm-mergeql-sqlite");
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let library = extension.file_name().ok_or("the extension has no name")?.to_string_lossy().into_owned();
    for name in ["index.js", "index.d.ts", "README.md"] {
        std::fs::copy(root().join("ext-sqlite/node").join(name), folder.join(name)).map_err(|e| format!("{name}: {e}"))?;
    }
    std::fs::copy(root().join("LICENSE"), folder.join("LICENSE")).map_err(|e| e.to_string())?;
    std::fs::copy(extension, folder.join(&library)).map_err(|e| e.to_string())?;
    let libc = if os == "linux" { "\n  \"libc\": [\"glibc\"]," } else { "" };
    let about = format!(
        r#"{{
  "name": "mergeql-sqlite",
  "version": "{}",
  "description": "MergeQL in SQLite: conflict-free merging, CRDT aggregates and replicated tables",
  "license": "Apache-2.0",
  "repository": "github:mergeql/mergeql",
  "main": "index.js",
  "types": "index.d.ts",
  "files": ["index.js", "index.d.ts", "{library}"],
  "os": ["{os}"],
  "cpu": ["{cpu}"],{libc}
  "engines": {{ "node": ">=18" }}
}}
"#,
        env!("CARGO_PKG_VERSION")
    );
    std::fs::write(folder.join("package.json"), about).map_err(|e| e.to_string())?;
    run_with(
        "npm",
        &["pack", "--loglevel=error", "--pack-destination", &profile.display().to_string(), &folder.display().to_string()],
        &[],
    )?;
    Ok(profile.join(format!("mergeql-sqlite-{}.tgz", env!("CARGO_PKG_VERSION"))))
}
