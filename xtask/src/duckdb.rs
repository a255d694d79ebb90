//! `cargo xtask duckdb`: the extension as a file that DuckDB loads, and the interpreters with DuckDB that tests and benchmarks run it in.

use crate::{Environment, Outcome, command, hosts, node, root, run, signing, target};
use std::path::{Path, PathBuf};

/// The DuckDB releases that the tests run: the current one of each line that one binary serves.
pub const RELEASES: [&str; 2] = ["2.0.1", "1.5.6"];

/// The release whose code `mergeql_syntax` holds.
const SYNTAX_RELEASE: &str = "2.0.0";

const SYNTAX: &str = "ext-duckdb/syntax/Cargo.toml";

/// The version of DuckDB's C interface that is asked for; later ones have it too.
const INTERFACE: &str = "v1.2.0";

/// DuckDB's name for the platform that this runs on.
fn platform() -> Result<&'static str, String> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Ok("linux_amd64"),
        ("linux", "aarch64") => Ok("linux_arm64"),
        ("macos", "x86_64") => Ok("osx_amd64"),
        ("macos", "aarch64") => Ok("osx_arm64"),
        ("windows", "x86_64") => Ok("windows_amd64"),
        (os, arch) => Err(format!("DuckDB has no name for {os} on {arch}")),
    }
}

/// The footer that makes a library an extension: eight fields of 32 bytes, the last first, then room for a signature. Before it stands
/// the header of a WebAssembly section, as in DuckDB's own extensions. What it is made for is said by `C_STRUCT` and a version of the C
/// interface, or by `CPP` and a release of DuckDB.
fn footer(platform: &str, interface: &str, of: &str) -> Vec<u8> {
    let version = format!("v{}", env!("CARGO_PKG_VERSION"));
    let mut bytes = b"\x00\x93\x04\x10duckdb_signature\x80\x04".to_vec();
    for field in ["", "", "", interface, &version, of, platform, "4"] {
        let mut padded = field.as_bytes().to_vec();
        padded.resize(32, 0);
        bytes.extend(padded);
    }
    bytes.extend([0; 256]);
    bytes
}

/// Builds the extension; gives back where it is.
pub fn extension(release: bool) -> Result<PathBuf, String> {
    let mut arguments = vec!["build", "-p", "mergeql-duckdb"];
    if release {
        arguments.push("--release");
    }
    run("cargo", &arguments)?;
    let profile = target()?.join(if release { "release" } else { "debug" });
    packaged(&profile, "mergeql_duckdb", "mergeql", &footer(platform()?, "C_STRUCT", INTERFACE))
}

/// A library with its footer, as the file of an extension.
fn packaged(profile: &Path, library: &str, name: &str, footer: &[u8]) -> Result<PathBuf, String> {
    let library = profile.join(format!("{}{library}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX));
    let mut bytes = std::fs::read(&library).map_err(|e| format!("{}: {e}", library.display()))?;
    bytes.extend(footer);
    let file = profile.join(format!("{name}.duckdb_extension"));
    // Not in place: a process may have the old one loaded.
    let fresh = profile.join(format!("{name}.duckdb_extension.new"));
    std::fs::write(&fresh, bytes).and_then(|()| std::fs::rename(&fresh, &file)).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(file)
}

/// `cargo xtask duckdb-syntax`: the extension that takes bare statements, for the release of DuckDB whose code it holds.
pub fn syntax() -> Outcome {
    let folder = target()?.join("duckdb-syntax");
    let target = folder.display().to_string();
    let manifest = root().join(SYNTAX).display().to_string();
    run_with("cargo", &["build", "--release", "--locked", "--manifest-path", &manifest], &[("CARGO_TARGET_DIR", &target)])?;
    let footer = footer(platform()?, "CPP", &format!("v{SYNTAX_RELEASE}"));
    let file = packaged(&folder.join("release"), "mergeql_syntax", "mergeql_syntax", &footer)?.display().to_string();
    let python = python(&format!("duckdb-{SYNTAX_RELEASE}"), &[&format!("duckdb=={SYNTAX_RELEASE}")])?.display().to_string();
    run(&python, &["ext-duckdb/syntax/try.py", &extension(false)?.display().to_string(), &file])?;
    println!(
        "{file}\n\n\
         duckdb -unsigned -c \"LOAD './mergeql.duckdb_extension'; LOAD '{file}'; SET active_grammar_extensions = ['mergeql'];\n\
         MERGE nyc, london ON id STRATEGY salary = max, * = lww VERSION BY updated_at\""
    );
    Ok(())
}

/// `cargo xtask duckdb`
pub fn build() -> Outcome {
    let file = extension(true)?;
    let file = file.display();
    println!(
        "{file}\n\n\
         CLI     duckdb -unsigned -c \"LOAD '{file}'\"\n\
         Python  con = duckdb.connect(config={{'allow_unsigned_extensions': 'true'}}); con.execute(\"LOAD '{file}'\")\n\
         SQL     FROM mergeql.merge('MERGE nyc, london ON id STRATEGY salary = max, * = lww VERSION BY updated_at')"
    );
    Ok(())
}

/// `cargo xtask duckdb --sign KEY`
pub fn sign(key: &str) -> Outcome {
    let folder = signing::repository(&extension(true)?, key, platform()?)?;
    let folder = folder.display();
    println!(
        "{folder}\n\n\
         Serve it over https, from S3 or from a folder. In DuckDB 2.0, once:\n\
         SET allow_extension_repositories = 'allowed';\n\
         CREATE EXTENSION REPOSITORY mergeql_repository WITH PREFIX '{folder}';\n\
         INSTALL mergeql FROM mergeql_repository;\n\n\
         and in every session: LOAD mergeql FROM mergeql_repository"
    );
    Ok(())
}

/// A Python interpreter with these packages, in an environment of its own that is made once.
pub fn python(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    let folder = target()?.join(name);
    let python = folder.join("bin/python");
    let done = folder.join("packages");
    let wanted = packages.join(" ");
    if std::fs::read_to_string(&done).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    run("python3", &["-m", "venv", &folder.display().to_string()])?;
    let mut install = vec!["-m", "pip", "install", "-q", "--disable-pip-version-check"];
    install.extend(packages);
    run(&python.display().to_string(), &install)?;
    std::fs::write(&done, wanted).map_err(|e| e.to_string())?;
    Ok(python)
}

/// Where the extension and the interpreters are.
pub fn environment() -> Result<Environment, String> {
    let extension = extension(false)?;
    let mut pythons = Vec::new();
    for release in RELEASES {
        pythons.push(python(&format!("duckdb-{release}"), &[&format!("duckdb=={release}")])?.display().to_string());
    }
    Ok(vec![("MERGEQL_DUCKDB_EXTENSION", extension.display().to_string()), ("MERGEQL_DUCKDB_PYTHONS", pythons.join(":"))])
}

/// As [`environment`], with the other clients that the page shows: the command line, and Node.js.
pub fn clients() -> Result<Environment, String> {
    let mut environment = environment()?;
    let program = python("duckdb-cli", &["duckdb-cli==1.5.6"])?.with_file_name("duckdb");
    let (node, modules) = node::node()?;
    let extension = target()?.join("debug/mergeql.duckdb_extension");
    let key = target()?.join("duckdb-test-key.pem");
    signing::make_key(&key)?;
    let repository = signing::repository(&extension, &key.display().to_string(), platform()?)?;
    environment.extend([
        ("MERGEQL_DUCKDB_REPOSITORY", repository.display().to_string()),
        ("MERGEQL_DUCKDB_CLI", program.display().to_string()),
        ("MERGEQL_NODE", node.display().to_string()),
        ("MERGEQL_NODE_MODULES", modules.display().to_string()),
    ]);
    Ok(environment)
}

/// The tests in every release of DuckDB.
pub fn test() -> Result<Environment, String> {
    // What is built outside of CI has a lock of its own, which must know what its parts need.
    run("cargo", &["update", "-q", "--workspace", "--locked", "--manifest-path", SYNTAX])?;
    let environment = clients()?;
    hosts(&["duckdb"], &environment)?;
    Ok(environment)
}

/// Runs a command in the root with these variables.
pub fn run_with(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
    let status =
        command(program).args(arguments).envs(environment.iter().copied()).status().map_err(|e| format!("{program}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{program} {}` failed", arguments.join(" "))) }
}

/// `cargo xtask bench duckdb [ROWS]`: our aggregates beside DuckDB's own, in turn in one process.
pub fn bench(rows: Option<&str>) -> Outcome {
    let extension = extension(true)?.display().to_string();
    for release in RELEASES {
        let python = python(&format!("duckdb-{release}"), &[&format!("duckdb=={release}")])?;
        let script = Path::new("xtask/bench/duckdb_aggregates.py").display().to_string();
        run(&python.display().to_string(), &[&script, &extension, rows.unwrap_or("10000000")])?;
    }
    Ok(())
}
