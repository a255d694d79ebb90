//! The interactive session.

use super::output::{Output, Style};
use super::{interruptible, report};
use clap::ValueEnum;
use mergeql::{MergeContext, MergeError};
use mergeql_udfs::{Code, catalog};
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Editor, Helper, Highlighter, Hinter};
use std::process::ExitCode;

const COMMANDS: &str = "\
.mode STYLE     how rows are printed: table csv tsv json ndjson markdown
.timer on|off   tell the time of each statement (also \\timing)
.tables         tables and views (also \\d)
.schema TABLE   the columns of a table (also \\d TABLE)
.strategies     the strategies
.explain MERGE  the plan of a statement
\\x              one column a line, and back
.help           this
.quit           leave (also \\q, Ctrl-D)";

const KEYWORDS: [&str; 38] = [
    "MERGE",
    "ON",
    "STRATEGY",
    "VERSION BY",
    "DELETE BY",
    "MAP",
    "WHERE",
    "ORDER BY",
    "LIMIT",
    "OFFSET",
    "RETURNING",
    "ROWS",
    "CONFLICTS",
    "PROVENANCE",
    "INTO",
    "OR REPLACE",
    "USING",
    "WITH",
    "EXPLAIN",
    "ANALYZE",
    "SELECT",
    "FROM",
    "GROUP BY",
    "CREATE",
    "TABLE",
    "VIEW",
    "INSERT",
    "DROP",
    "SHOW",
    "STRATEGIES",
    "VERIFY",
    "CASES",
    "RESPECT NULLS",
    "ASC",
    "DESC",
    "NULLS FIRST",
    "NULLS LAST",
    "FOLD",
];

#[derive(Helper, Highlighter, Hinter)]
struct Words {
    words: Vec<String>,
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, position: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let is_between = |(_, c): &(usize, char)| !c.is_alphanumeric() && *c != '_' && *c != '.';
        let start = line[..position].char_indices().rev().find(is_between).map_or(0, |(i, c)| i + c.len_utf8());
        let typed = line[start..position].to_lowercase();
        if typed.is_empty() {
            return Ok((position, Vec::new()));
        }
        let pairs = self
            .words
            .iter()
            .filter(|w| w.to_lowercase().starts_with(&typed))
            .map(|w| Pair { display: w.clone(), replacement: w.clone() })
            .collect();
        Ok((start, pairs))
    }
}

impl Validator for Words {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let input = context.input().trim();
        if input.is_empty() || input.starts_with(['.', '\\']) || !mergeql_lang::is_incomplete(input) {
            return Ok(ValidationResult::Valid(None));
        }
        Ok(ValidationResult::Incomplete)
    }
}

async fn words(context: &MergeContext) -> Vec<String> {
    let mut words: Vec<String> = KEYWORDS.map(str::to_owned).into();
    words.extend(catalog::names().map(str::to_owned));
    for table in context.table_names() {
        if let Ok(provider) = context.session().table_provider(table.as_str()).await {
            words.extend(provider.schema().fields().iter().map(|f| f.name().clone()));
        }
        words.push(table);
    }
    words.sort();
    words.dedup();
    words
}

fn failed(error: ReadlineError) -> MergeError {
    MergeError::new(Code::Io, error.to_string())
}

/// Reads statements until the end.
///
/// # Errors
/// If the terminal fails.
pub async fn run(context: MergeContext, mut output: Output) -> Result<ExitCode, MergeError> {
    println!("MergeQL {}. Statements end with a semicolon; .help lists commands.", env!("CARGO_PKG_VERSION"));
    let config = rustyline::Config::builder().completion_type(rustyline::CompletionType::List).build();
    let mut editor: Editor<Words, _> = Editor::with_config(config).map_err(failed)?;
    let history = std::env::var_os("HOME").map(|home| std::path::PathBuf::from(home).join(".mergeql_history"));
    if let Some(path) = &history {
        editor.load_history(path).ok();
    }
    loop {
        editor.set_helper(Some(Words { words: words(&context).await }));
        let (line, back) = tokio::task::spawn_blocking(move || {
            let line = editor.readline("mergeql> ");
            (line, editor)
        })
        .await
        .map_err(|e| MergeError::new(Code::Io, e.to_string()))?;
        editor = back;
        match line {
            Ok(line) => {
                let input = line.trim();
                if input.is_empty() {
                    continue;
                }
                editor.add_history_entry(input).ok();
                if let Some(path) = &history {
                    editor.save_history(path).ok();
                }
                if matches!(input, ".quit" | ".exit" | "\\q") {
                    return Ok(ExitCode::SUCCESS);
                }
                if let Err(error) = execute(&context, &mut output, input).await {
                    report(&error);
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => return Ok(ExitCode::SUCCESS),
            Err(e) => return Err(failed(e)),
        }
    }
}

/// Ctrl-C stops the statement, not the session.
async fn run_statement(context: &MergeContext, output: &Output, statement: &str) -> Result<(), MergeError> {
    let (context, output, statement) = (context.clone(), output.clone(), statement.to_owned());
    match interruptible(async move { output.statement(&context, &statement, true).await }).await {
        Some(result) => result,
        None => {
            eprintln!("interrupted");
            Ok(())
        }
    }
}

async fn execute(context: &MergeContext, output: &mut Output, input: &str) -> Result<(), MergeError> {
    if !input.starts_with(['.', '\\']) {
        for statement in mergeql_lang::split(input)? {
            run_statement(context, output, statement).await?;
        }
        return Ok(());
    }
    let (command, rest) = input.split_once(char::is_whitespace).unwrap_or((input, ""));
    let rest = rest.trim().trim_end_matches(';');
    match (command, rest) {
        (".mode", style) => match Style::from_str(style, true) {
            Ok(style) => output.style = style,
            Err(_) => return Err(MergeError::new(Code::InvalidArgument, format!("there is no mode `{style}`; .help lists them"))),
        },
        (".timer", "on") => output.timer = true,
        (".timer", "off") => output.timer = false,
        ("\\timing" | ".timer", _) => output.timer = !output.timer,
        ("\\x", _) => output.expanded = !output.expanded,
        (".tables" | "\\d", "") => context.table_names().iter().for_each(|name| println!("{name}")),
        (".schema" | "\\d", table) => run_statement(context, output, &format!("DESCRIBE {table}")).await?,
        (".strategies", _) => {
            let columns = "name, usage, takes, closed, description";
            run_statement(context, output, &format!("SELECT {columns} FROM mergeql_strategies() ORDER BY name")).await?;
        }
        (".explain", statement) => run_statement(context, output, &format!("EXPLAIN {statement}")).await?,
        (".help", _) => println!("{COMMANDS}"),
        (other, _) => return Err(MergeError::new(Code::Syntax, format!("there is no command `{other}`; .help lists them"))),
    }
    Ok(())
}
