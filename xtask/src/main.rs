//! Chores: `cargo xtask test`, `lint`, `docs`, `golden`, `bench`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

mod bench;
mod docs;
mod duckdb;
mod new_strategy;
mod node;
mod pgxn;
mod postgres;
mod signing;
mod sqlite;
mod upgrade;

const USAGE: &str = "cargo xtask COMMAND

  test          every test of the project, as CI runs it
  lint          rustfmt and clippy, warnings denied
  docs          write the generated pages of docs/ (with --check: only say whether they are up to date)
  new-strategy  show that a new strategy is one new file: add one to a copy of the project and find it everywhere
  duckdb        build the DuckDB extension and say how to load it (with --sign KEY: a signed repository for DuckDB 2.0)
  test-duckdb   the tests in DuckDB alone
  duckdb-syntax            build the extension that takes bare MERGE statements in DuckDB 2.0.0 (40 CPU minutes the first time), and try it
  postgres      build the Postgres extension and say how to install it (with --install: do so)
  pgxn          the archive for the PostgreSQL Extension Network
  test-postgres the tests in Postgres alone
  sqlite        build the SQLite extension and say how to load it (with --wheel: the Python package; with --npm: the one for Node.js)
  test-sqlite   the tests in SQLite alone
  test-dbt      the tests of the dbt package alone
  test-exchange the tests between the databases alone
  test-servers  the tests of `mergeql serve`, `mergeql worker` and `--cluster` alone
  bench merge [ROWS ...]   the merge beside DuckDB, Polars and DataFusion, default 1000000 10000000 rows
  bench conflicts [ROWS ...]  RETURNING CONFLICTS beside DuckDB's query for the same cells, default 1000000 rows
  bench duckdb [ROWS]      our aggregates in DuckDB beside its own, default 10000000 rows
  bench postgres [ROWS]    our aggregates in Postgres beside its own, default 10000000 rows
  bench sqlite [ROWS]      our aggregates and replicated tables in SQLite beside its own, default 1000000 rows
  bench tensors [LAYERS]   merging models beside mergekit and beside reading and writing the same bytes, default 13 layers (50M parameters)";

/// What a chore ends in.
type Outcome = Result<(), String>;

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Where cargo builds: this program lies in a profile's folder there.
fn target() -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    program.ancestors().nth(2).map(Path::to_path_buf).ok_or_else(|| "this program lies in no target folder".to_owned())
}

/// A program in the folder of the project, without what cargo told this one: build scripts that look at that would run again, and
/// half of the project with them.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars() {
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command.current_dir(root());
    command
}

/// Runs a command in the root; its output is seen.
fn run(program: &str, arguments: &[&str]) -> Outcome {
    let started = Instant::now();
    eprintln!("$ {program} {}", arguments.join(" "));
    let status = command(program).args(arguments).status().map_err(|e| format!("{program}: {e}"))?;
    eprintln!("  {:.0} s", started.elapsed().as_secs_f64());
    if status.success() { Ok(()) } else { Err(format!("`{program} {}` failed", arguments.join(" "))) }
}

fn lint() -> Outcome {
    run("cargo", &["fmt", "--all", "--check"])?;
    let (name, path) = postgres::environment()?;
    duckdb::run_with("cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[(name, &path)])
}

/// Variables that tell the tests in other databases where those are.
type Environment = Vec<(&'static str, String)>;

/// Runs tests in other databases.
fn hosts(tests: &[&str], environment: &Environment) -> Outcome {
    let mut arguments = vec!["test"];
    tests.iter().for_each(|test| arguments.extend(["--test", test]));
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    duckdb::run_with("cargo", &arguments, &environment)
}

/// Where dbt is.
fn dbt_environment() -> Result<Environment, String> {
    let packages =
        ["dbt-core==1.11.16", "dbt-duckdb==1.11.1", "dbt-postgres==1.11.0", "duckdb==2.0.0", "sqlfluff-templater-dbt==4.4.0"];
    Ok(vec![("MERGEQL_DBT_PYTHON", duckdb::python("dbt", &packages)?.display().to_string())])
}

/// Where the Python package of DataSketches is.
fn sketches_environment() -> Result<Environment, String> {
    Ok(vec![("MERGEQL_SKETCHES_PYTHON", duckdb::python("sketches", &["datasketches==5.2.0"])?.display().to_string())])
}

/// `cargo xtask test-dbt`
fn test_dbt() -> Outcome {
    let mut environment = duckdb::environment()?;
    environment.extend(postgres::test_environment()?);
    environment.extend(dbt_environment()?);
    hosts(&["dbt"], &environment)
}

/// `cargo xtask test-exchange`
fn test_exchange() -> Outcome {
    let mut environment = duckdb::clients()?;
    environment.extend(postgres::test_environment()?);
    environment.extend(sqlite::test_environment()?);
    environment.extend(sketches_environment()?);
    hosts(&["exchange"], &environment)
}

/// Where the program and its clients are.
fn servers_environment() -> Result<Environment, String> {
    run("cargo", &["build", "--bin", "mergeql"])?;
    let packages = [
        "psycopg[binary]==3.2.3",
        "sqlalchemy==2.1.9",
        "pg8000==1.31.6",
        "asyncpg==0.32.0",
        "adbc-driver-flightsql==1.13.0",
        "pyarrow==26.0.1",
        "moto[s3,server]==5.2.5",
    ];
    let program = target()?.join("debug/mergeql").display().to_string();
    let mut environment = postgres::test_environment()?;
    environment.extend([
        ("MERGEQL_PROGRAM", program),
        ("MERGEQL_CLIENTS_PYTHON", duckdb::python("clients", &packages)?.display().to_string()),
    ]);
    Ok(environment)
}

/// `cargo xtask test-servers`
fn test_servers() -> Outcome {
    let mut environment = servers_environment()?;
    environment.extend(dbt_environment()?);
    hosts(&["servers"], &environment)
}

fn test() -> Outcome {
    run("cargo", &["test"])?;
    let mut environment = duckdb::test()?;
    environment.extend(postgres::test()?);
    environment.extend(sqlite::test()?);
    environment.extend(dbt_environment()?);
    environment.extend(sketches_environment()?);
    environment.extend(servers_environment()?);
    hosts(&["exchange", "dbt", "servers"], &environment)?;
    docs::check(&root())?;
    new_strategy::check(&root())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["test"] => test(),
        ["lint"] => lint(),
        ["docs"] => docs::write(&root()),
        ["docs", "--check"] => docs::check(&root()),
        ["duckdb"] => duckdb::build(),
        ["duckdb", "--sign", key] => duckdb::sign(key),
        ["duckdb-syntax"] => duckdb::syntax(),
        ["test-duckdb"] => duckdb::test().map(drop),
        ["postgres"] => postgres::build(false),
        ["postgres", "--install"] => postgres::build(true),
        ["pgxn"] => pgxn::archive(),
        ["test-postgres"] => postgres::test().map(drop),
        ["sqlite"] => sqlite::build(),
        ["sqlite", "--wheel"] => sqlite::build_wheel(),
        ["sqlite", "--npm"] => sqlite::build_npm(),
        ["test-sqlite"] => sqlite::test().map(drop),
        ["test-dbt"] => test_dbt(),
        ["test-exchange"] => test_exchange(),
        ["test-servers"] => test_servers(),
        ["new-strategy"] => new_strategy::check(&root()),
        ["bench", "merge", rows @ ..] => bench::merge(&root(), rows),
        ["bench", "conflicts", rows @ ..] => bench::conflicts(&root(), rows),
        ["bench", "postgres", rows @ ..] => postgres::bench(rows.first().copied()),
        ["bench", "sqlite", rows @ ..] => sqlite::bench(rows.first().copied()),
        ["bench", "tensors", layers @ ..] => bench::tensors(&root(), layers.first().copied()),
        ["bench", "duckdb", rows @ ..] => duckdb::bench(rows.first().copied()),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
