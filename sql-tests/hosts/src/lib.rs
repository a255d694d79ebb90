//! Databases as processes that run one statement after another.

use serde_json::{Value as Json, json};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType};
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

    fn ask(&mut self, request: &Json) -> Result<Json, HostError> {
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

    /// Runs a query; each value is its canonical text, or `None` for NULL.
    ///
    /// # Errors
    /// What the database says.
    pub fn query(&mut self, sql: &str) -> Result<Option<Vec<Vec<Option<String>>>>, HostError> {
        let answer = self.ask(&json!({ "sql": sql }))?;
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
