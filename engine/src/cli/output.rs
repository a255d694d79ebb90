//! Rows for people and for programs.

use super::progress;
use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, Table, presets};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Schema};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use mergeql::sinks::Whole;
use mergeql::sources::Format;
use mergeql::{MergeContext, MergeError, collect, datafusion, sinks};
use mergeql_udfs::Code;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Style {
    Table,
    Csv,
    Tsv,
    Json,
    Ndjson,
    Parquet,
    Arrow,
    Markdown,
}

impl Style {
    fn format(self) -> Option<Format> {
        Format::parse(match self {
            Style::Csv => "csv",
            Style::Tsv => "tsv",
            Style::Json => "json",
            Style::Ndjson => "ndjson",
            Style::Parquet => "parquet",
            Style::Arrow => "arrow",
            Style::Table | Style::Markdown => return None,
        })
    }
}

/// Where results go, and how.
#[derive(Debug, Clone)]
pub struct Output {
    /// How rows are printed.
    pub style: Style,
    /// One column a line.
    pub expanded: bool,
    /// Whether the time of each statement is told.
    pub timer: bool,
    file: Option<PathBuf>,
}

/// The most characters of a value that a table shows.
const WIDEST: usize = 10_000;

/// A value as a terminal can show it: what would move its cursor or change its colours is written out, and what no screen holds is cut.
fn printable(value: &str) -> String {
    let mut shown = String::with_capacity(value.len().min(4 * WIDEST));
    for (at, c) in value.chars().enumerate() {
        match c {
            _ if at == WIDEST => {
                shown += &format!("... ({} characters)", value.chars().count());
                break;
            }
            '\n' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// Prints a line. Who has seen enough of it (`| head`) may go.
pub fn say(text: impl std::fmt::Display) {
    // A pipe that is closed is the only thing that can happen to it.
    let _ = writeln!(std::io::stdout(), "{text}");
}

impl Output {
    /// Rows to standard output, the last ones to a file if one is given.
    ///
    /// # Errors
    /// `invalid_argument` if neither a style nor the file's ending says how.
    pub fn new(style: Option<Style>, file: Option<PathBuf>) -> Result<Output, MergeError> {
        let ending = file.as_ref().and_then(|f| f.extension()).map(|e| e.to_string_lossy().to_lowercase());
        let by_name = match ending.as_deref() {
            None | Some("txt") => Some(Style::Table),
            Some("md") => Some(Style::Markdown),
            Some("jsonl") => Some(Style::Ndjson),
            Some("ipc" | "feather") => Some(Style::Arrow),
            Some(ending) => Style::from_str(ending, true).ok(),
        };
        let style = style.or(by_name).ok_or_else(|| {
            let ending = ending.unwrap_or_default();
            MergeError::new(Code::InvalidArgument, format!("the ending .{ending} tells no format")).help("say it with --format")
        })?;
        Ok(Output { style, expanded: false, timer: false, file })
    }

    /// Runs one statement and prints what it gives.
    pub async fn statement(&self, context: &MergeContext, statement: &str, last: bool) -> Result<(), MergeError> {
        let started = Instant::now();
        let bar = progress::watch(context.clone());
        let result = self.run(context, statement, last, &bar).await;
        bar.done();
        result?;
        if self.timer {
            eprintln!("Time: {:.3} s", started.elapsed().as_secs_f64());
        }
        Ok(())
    }

    async fn run(&self, context: &MergeContext, statement: &str, last: bool, bar: &progress::Bar) -> Result<(), MergeError> {
        if statement.starts_with('.') {
            let command = statement.split_whitespace().next().unwrap_or_default();
            return Err(MergeError::new(Code::Syntax, format!("`{command}` is a command of the prompt, and no statement"))
                .help("start mergeql without a script for it; SHOW TABLES and SHOW STRATEGIES are statements"));
        }
        let frame = context.sql(statement).await?;
        let schema = std::sync::Arc::new(frame.schema().as_arrow().clone());
        let format = match self.style.format() {
            // What the file is made of is nothing to read: rows before the last are shown.
            Some(Format::Parquet | Format::Arrow) if self.file.is_some() && !last => None,
            format => format,
        };
        if let (Some(path), Some(format), true) = (&self.file, format, last) {
            let count = context.whole(frame, |rows| sinks::write_file(path, format, rows, None)).await?;
            bar.done();
            eprintln!("{count} rows written to {}", path.display());
            return Ok(());
        }
        let rows = context.stream(frame).await?;
        match (&self.file, format) {
            (Some(path), None) if last => {
                let batches = collect(rows).await?;
                let text = self.text(&batches, schema.as_ref())?;
                let file = Whole::begin(path)?;
                std::fs::write(file.path(), text).map_err(|e| MergeError::new(Code::Io, format!("{}: {e}", path.display())))?;
                file.end(true)
            }
            (_, Some(format)) => {
                bar.done();
                match sinks::write_to(std::io::stdout(), format, rows).await {
                    // Whoever read what is printed has enough; what the rows say is not meant.
                    Err(e) if e.code() == Code::Io && e.diagnostic.message.ends_with("Broken pipe (os error 32)") => Ok(()),
                    other => other.map(drop),
                }
            }
            (_, None) => {
                let batches = collect(rows).await?;
                bar.done();
                let text = self.text(&batches, schema.as_ref())?;
                use std::io::Write;
                // A closed pipe (`| head`) is no failure.
                let mut out = std::io::stdout();
                match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                    Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                        Err(MergeError::new(Code::Io, format!("standard output: {e}")))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    fn text(&self, batches: &[RecordBatch], schema: &Schema) -> Result<String, MergeError> {
        if schema.fields().is_empty() {
            return Ok(String::new());
        }
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        let mut rows: Vec<Vec<String>> = Vec::new();
        for batch in batches {
            let options = FormatOptions::default().with_null("NULL");
            let formatters = batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options)).collect::<Result<Vec<_>, _>>()?;
            for i in 0..batch.num_rows() {
                rows.push(formatters.iter().map(|f| printable(&f.value(i).to_string())).collect());
            }
        }
        let count = format!("({} row{})\n", rows.len(), if rows.len() == 1 { "" } else { "s" });
        if self.expanded {
            let width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
            let mut out = String::new();
            for (i, row) in rows.iter().enumerate() {
                out.push_str(&format!("-[ row {} ]-\n", i + 1));
                for (name, value) in names.iter().zip(row) {
                    out.push_str(&format!("{name:width$} | {value}\n"));
                }
            }
            return Ok(out + &count);
        }
        let mut table = Table::new();
        let markdown = self.style == Style::Markdown;
        table.load_preset(if markdown { presets::ASCII_MARKDOWN } else { presets::UTF8_FULL_CONDENSED });
        table.set_header(names);
        for row in rows {
            let cells = row.into_iter().zip(schema.fields()).map(|(value, field)| {
                let numeric = field.data_type().is_numeric() && !matches!(field.data_type(), DataType::Boolean);
                let text = if markdown { value.replace('|', "\\|").replace('\n', " ") } else { value };
                let cell = Cell::new(text);
                if numeric { cell.set_alignment(CellAlignment::Right) } else { cell }
            });
            table.add_row(cells);
        }
        Ok(format!("{table}\n{}", if markdown { "" } else { &count }))
    }
}
