//! Databases as processes that run one statement after another.

pub mod cluster;
pub mod kept;

use mergeql_udfs::catalog::Entry;
use mergeql_udfs::laws::{Machine, Store, rows_of};
use mergeql_udfs::{Call, Type, Value};
use serde_json::{Value as Json, json};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, MakeConnection, Record, Runner, TestError};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A database that a driver script talks to.
pub struct Host {
    name: &'static str,
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What a statement failed with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HostError(pub String);

impl Host {
    /// Starts a driver.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(name: &'static str, program: &str, arguments: &[&str]) -> Host {
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}"));
        let input = process.stdin.take().expect("a pipe was asked for");
        let output = BufReader::new(process.stdout.take().expect("a pipe was asked for"));
        Host { name, process, input, output }
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Asks the driver for something of its own.
    ///
    /// # Errors
    /// What the database says.
    pub fn ask(&mut self, request: &Json) -> Result<Json, HostError> {
        let gone = |what: &str| HostError(format!("{} is gone: {what}", self.name));
        writeln!(self.input, "{request}").map_err(|e| gone(&e.to_string()))?;
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(|e| gone(&e.to_string()))?;
        let answer: Json = serde_json::from_str(&line).map_err(|_| gone("it gives no answer"))?;
        match answer["error"].as_str() {
            Some(error) => Err(HostError(error.to_owned())),
            None => Ok(answer),
        }
    }

    /// Runs a statement and drops what it gives.
    ///
    /// # Errors
    /// What the database says.
    pub fn execute(&mut self, sql: &str) -> Result<(), HostError> {
        self.ask(&json!({ "sql": sql, "plain": true })).map(drop)
    }

    /// Runs a statement of the host's own, as it is.
    ///
    /// # Errors
    /// What the database says.
    pub fn raw(&mut self, sql: &str) -> Result<(), HostError> {
        self.ask(&json!({ "sql": sql, "plain": true, "raw": true })).map(drop)
    }

    /// Runs a query; each value is its canonical text, or `None` for NULL.
    ///
    /// # Errors
    /// What the database says.
    pub fn query(&mut self, sql: &str) -> Result<Option<Vec<Vec<Option<String>>>>, HostError> {
        self.rows(&json!({ "sql": sql }))
    }

    /// Runs a query of the host's own, as it is; each value is its canonical text.
    ///
    /// # Errors
    /// What the database says.
    pub fn query_raw(&mut self, sql: &str) -> Result<Option<Vec<Vec<Option<String>>>>, HostError> {
        self.rows(&json!({ "sql": sql, "raw": true }))
    }

    fn rows(&mut self, request: &Json) -> Result<Option<Vec<Vec<Option<String>>>>, HostError> {
        let answer = self.ask(request)?;
        let cell = |v: &Json| v.as_str().map(str::to_owned);
        let row = |r: &Json| r.as_array().into_iter().flatten().map(cell).collect();
        Ok(answer["rows"].as_array().map(|rows| rows.iter().map(row).collect()))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[async_trait::async_trait]
impl AsyncDB for Host {
    type Error = HostError;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, HostError> {
        let upper = sql.trim_start().to_uppercase();
        if ["CREATE", "DROP", "INSERT"].iter().any(|w| upper.starts_with(w)) {
            self.execute(sql)?;
            return Ok(DBOutput::StatementComplete(0));
        }
        let Some(rows) = self.query(sql)? else { return Ok(DBOutput::StatementComplete(0)) };
        let show = |cell: Option<String>| match cell.as_deref() {
            None => "NULL".to_owned(),
            Some("") => "(empty)".to_owned(),
            Some(text) => text.to_owned(),
        };
        let types = vec![DefaultColumnType::Any; rows.first().map_or(0, Vec::len)];
        let rows = rows.into_iter().map(|r| r.into_iter().map(show).collect()).collect();
        Ok(DBOutput::Rows { types, rows })
    }

    fn engine_name(&self) -> &str {
        self.name
    }

    async fn shutdown(&mut self) {}
}

/// Runs every record of a file, past failures; each has its line.
async fn each_record<D, M>(runner: &mut Runner<D, M>, file: &std::path::Path) -> Vec<(u32, Result<(), TestError>)>
where
    D: AsyncDB<ColumnType = DefaultColumnType>,
    M: MakeConnection<Conn = D>,
{
    let records = sqllogictest::parse_file(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let mut outcomes = Vec::new();
    for record in records {
        let line = match &record {
            Record::Statement { loc, .. } | Record::Query { loc, .. } => loc.line(),
            _ => 0,
        };
        outcomes.push((line, runner.run_async(record).await.map(drop)));
    }
    outcomes
}

/// Runs every `.slt` file, past failures.
///
/// # Panics
/// With all failures, if there are any.
pub async fn run_slt_files(connect: impl Fn() -> Host) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../slt");
    let files = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let mut files: Vec<_> = files.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    let mut failures = Vec::new();
    for file in &files {
        let mut runner = Runner::new(|| async { Ok(connect()) });
        for (line, outcome) in each_record(&mut runner, file).await {
            failures.extend(outcome.err().map(|e| format!("{} line {line}: {e}", file.display())));
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n\n"));
}

/// A folder of small models that every user of this machine may read, and text in which `models/` is that folder.
///
/// # Panics
/// If the files cannot be copied.
pub fn models() -> (tempfile::TempDir, impl Fn(&str) -> String) {
    let folder = tempfile::tempdir().expect("a folder");
    let inputs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../udfs/tensors/tests/data/inputs");
    for name in ["base", "m0", "m1", "m2"] {
        let file = format!("{name}.safetensors");
        std::fs::copy(format!("{inputs}/{file}"), folder.path().join(file)).expect("a copy");
    }
    #[cfg(unix)]
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("rights");
    let place = format!("{}/", folder.path().display());
    (folder, move |text: &str| text.replace("models/", &place))
}

/// One value, as text.
///
/// # Panics
/// If the query fails.
pub fn one(host: &mut Host, sql: &str) -> String {
    let rows = host.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}")).unwrap_or_default();
    rows.first().and_then(|r| r.first().cloned().flatten()).unwrap_or_else(|| "NULL".to_owned())
}

/// The rows that a call is tried with, and the state that the core makes of them.
pub struct Sample {
    /// Each row as a list of SQL values.
    pub rows: Vec<String>,
    /// How many values a row has.
    pub width: usize,
    /// The canonical text of the state bytes.
    pub state: String,
}

/// The sample of a call, as far as every host's SQL can say it; `type_name` is the host's, and `blob` its literal of
/// hex digits; it `holds` values of some kinds.
///
/// # Panics
/// If the core does not take its own sample.
pub fn sample(
    entry: &Entry,
    call: &Call,
    type_name: impl Fn(&Type) -> String,
    blob: impl Fn(&str) -> String,
    holds: impl Fn(&Value) -> bool,
) -> Option<Sample> {
    let cell = |(v, ty): (&Value, &Type)| {
        let name = type_name(ty);
        Some(match v {
            v if !holds(v) => return None,
            Value::Null => format!("CAST(NULL AS {name})"),
            Value::Int(v) => format!("CAST({v} AS {name})"),
            Value::Bool(v) => v.to_string(),
            Value::Float(v) => format!("CAST('{v}' AS {name})"),
            Value::Bytes(bytes) => blob(&bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()),
            Value::Text(t) if !t.contains('\0') => format!("CAST('{}' AS {name})", t.replace('\'', "''")),
            _ => return None,
        })
    };
    let said = |row: &Vec<Value>| row.iter().zip(&call.inputs).map(cell).collect::<Option<Vec<_>>>().map(|c| c.join(", "));
    let (rows, values): (Vec<String>, Vec<Vec<Value>>) =
        rows_of(entry, call).into_iter().filter_map(|row| Some((said(&row)?, row))).unzip();
    if rows.len() < 3 {
        return None;
    }
    let store = Store::new(entry.bind(call).expect("a sample call binds"), true);
    // Without a value that hosts have a literal for there is nothing to compare.
    let state = Value::Bytes(store.run(&values, &[]).expect("a sample is taken").0?.into()).to_string();
    Some(Sample { rows, width: call.inputs.len(), state })
}
