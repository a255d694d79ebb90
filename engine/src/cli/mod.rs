//! Arguments, scripts, and what runs them.

mod models;
mod output;
mod progress;
mod repl;
mod serve;

use clap::{Parser, Subcommand};
use mergeql::cluster::Cluster;
use mergeql::serve::Credentials;
use mergeql::{Access, Config, MergeContext, MergeError, parse_size};
use output::{Output, Style};
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;

/// Conflict-free merging as a SQL statement.
#[derive(Debug, Parser)]
#[command(name = "mergeql", version, about, after_help = EXAMPLES)]
struct Arguments {
    /// Run this statement (may be given several times)
    #[arg(short = 'c', long = "command", value_name = "STATEMENT", allow_hyphen_values = true)]
    commands: Vec<String>,
    /// Run the statements of a file
    #[arg(short = 'f', long, value_name = "SCRIPT")]
    file: Vec<PathBuf>,
    /// How rows are printed
    #[arg(long, value_enum)]
    format: Option<Style>,
    /// Write the rows of the last statement to a file (whole or not at all)
    #[arg(short = 'o', long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Tell the time of each statement
    #[arg(long)]
    timer: bool,
    /// Give a file, folder or pattern a name
    #[arg(long = "source", value_name = "NAME=PATH", global = true)]
    sources: Vec<String>,
    /// Keep tables and strategies in this folder
    #[arg(long, value_name = "DIR", global = true)]
    db: Option<PathBuf>,
    /// Threads of a query [default: one a core]
    #[arg(long, value_name = "N", global = true)]
    threads: Option<usize>,
    /// Memory of a query, like 2GB; beyond it states spill to disk
    #[arg(long, value_name = "SIZE", global = true)]
    memory_limit: Option<String>,
    /// Run statements on the workers of this file, a line `host:port` each
    #[arg(long, value_name = "FILE", global = true)]
    cluster: Option<PathBuf>,
    /// The file of tokens whose first one the workers are shown
    #[arg(long, value_name = "FILE", global = true, requires = "cluster")]
    cluster_token_file: Option<PathBuf>,
    /// Bytes of input that make one more worker worth it, like 8MB
    #[arg(long, value_name = "SIZE", global = true, requires = "cluster")]
    task_size: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lay out the statements of a script (standard input without a file)
    Fmt {
        /// The script
        file: Option<PathBuf>,
        /// Say whether the script is laid out already, and change nothing
        #[arg(long)]
        check: bool,
    },
    /// Run a config of mergekit
    MergeModels(models::MergeModels),
    /// Print the MERGE MODELS statement that a config of mergekit stands for
    Migrate(models::Migrate),
    /// Write a page about how some models differ from their base
    TensorReport(models::TensorReport),
    /// Keep the set of models of a merge: add, remove, join, show, resolve
    #[command(subcommand)]
    ModelSet(models::ModelSet),
    /// Serve the session to other programs: Postgres' protocol, Arrow Flight SQL
    Serve(Box<serve::Serve>),
    /// Run stages of other machines' statements (their --cluster names this one)
    Worker(serve::Work),
    /// Print the plain SQL that a MERGE stands for
    Lower {
        /// The statement
        statement: String,
    },
}

const EXAMPLES: &str = "Examples:
  mergeql -c \"MERGE 'a.csv', 'b.parquet' ON id STRATEGY price = max, tags = union VERSION BY updated_at\"
  mergeql --source nyc=nyc.csv --source london=london.ndjson -c 'MERGE nyc, london ON id' --format json
  mergeql --db shop            # an interactive session over tables kept in ./shop

Exit codes: 0 done, 1 input, output or resources, 2 a statement is wrong.";

/// Prints an error; gives back the exit code that it asks for.
fn report(error: &MergeError) -> ExitCode {
    let text = error.to_string();
    if std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let (code, message) = first.split_once(": ").unwrap_or((first, ""));
        eprintln!("\x1b[1;31m{code}\x1b[0m: {message}{}{rest}", if rest.is_empty() { "" } else { "\n" });
    } else {
        eprintln!("{text}");
    }
    ExitCode::from(if error.is_runtime() { 1 } else { 2 })
}

/// Runs the program.
pub async fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let interactive = arguments.commands.is_empty() && arguments.file.is_empty() && arguments.command.is_none();
    let serves = matches!(arguments.command, Some(Command::Serve(_) | Command::Worker(_)));
    let result = if serves || interactive && std::io::stdin().is_terminal() {
        // A server stops when it is told to, and the session looks after Ctrl-C itself: it stops a statement, not the program.
        dispatch(arguments).await
    } else {
        match interruptible(dispatch(arguments)).await {
            Some(result) => result,
            None => {
                eprintln!("interrupted: the statement that was running wrote nothing");
                return ExitCode::from(130);
            }
        }
    };
    result.unwrap_or_else(|error| report(&error))
}

/// Runs a task of its own until it ends, or Ctrl-C is pressed or SIGTERM comes (`None`). What it was writing is gone by then.
async fn interruptible<T: Send + 'static>(
    task: impl Future<Output = Result<T, MergeError>> + Send + 'static,
) -> Option<Result<T, MergeError>> {
    let mut task = tokio::spawn(task);
    tokio::select! {
        result = &mut task => Some(result.unwrap_or_else(|e| Err(io("the statement", &std::io::Error::other(e))))),
        () = serve::told_to_stop() => {
            task.abort();
            // Its files are removed as it is dropped; a computation that does not yield is not waited for. Where all threads compute, the
            // runtime's own clock stands still.
            let patience = tokio::task::spawn_blocking(|| std::thread::sleep(std::time::Duration::from_secs(2)));
            futures::future::select(task, patience).await;
            None
        }
    }
}

fn read_script(path: Option<&PathBuf>) -> Result<String, MergeError> {
    let bytes = match path {
        Some(path) => std::fs::read(path).map_err(|e| io(&path.display().to_string(), &e))?,
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes)?;
            bytes
        }
    };
    String::from_utf8(bytes).map_err(|_| MergeError::new(mergeql_udfs::Code::Syntax, "the script is not UTF-8"))
}

fn io(what: &str, error: &std::io::Error) -> MergeError {
    MergeError::new(mergeql_udfs::Code::Io, format!("{what}: {error}"))
}

async fn dispatch(arguments: Arguments) -> Result<ExitCode, MergeError> {
    if let Some(Command::Fmt { file, check }) = &arguments.command {
        let script = read_script(file.as_ref())?;
        let laid_out = mergeql_lang::format(&script)?;
        if *check {
            return Ok(ExitCode::from(u8::from(laid_out != script)));
        }
        match file {
            Some(path) if laid_out != script => std::fs::write(path, laid_out).map_err(|e| io(&path.display().to_string(), &e))?,
            Some(_) => {}
            None => output::say(laid_out.trim_end_matches('\n')),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let bad = |message: String| MergeError::new(mergeql_udfs::Code::InvalidArgument, message);
    let memory_limit = match &arguments.memory_limit {
        None => None,
        Some(text) => Some(parse_size(text).ok_or_else(|| bad(format!("`{text}` is no size; write 2GB or 500MB")))?),
    };
    if let Some(Command::Worker(command)) = &arguments.command {
        let given = [
            ("--threads", arguments.threads.is_some()),
            ("--db", arguments.db.is_some()),
            ("--source", !arguments.sources.is_empty()),
            ("--cluster", arguments.cluster.is_some()),
        ];
        if let Some((option, _)) = given.iter().find(|(_, given)| *given) {
            return Err(bad(format!("{option} is for those who send statements: a worker computes what it is sent")));
        }
        return serve::work(command, memory_limit).await;
    }
    let cluster = arguments.cluster.as_deref().map(Cluster::read).transpose()?;
    let cluster = match cluster {
        None => None,
        Some(cluster) => {
            let token = Credentials::read(None, arguments.cluster_token_file.as_deref())?.token().map(str::to_owned);
            let size = arguments
                .task_size
                .as_deref()
                .map(|text| parse_size(text).ok_or_else(|| bad(format!("`{text}` is no size; write 8MB or 500KB"))));
            Some(Cluster { token, task_size: size.transpose()?.unwrap_or(Cluster::TASK_SIZE), ..cluster })
        }
    };
    let access = match &arguments.command {
        Some(Command::Serve(command)) => command.access(),
        _ => Access { commands: true, ..Access::default() },
    };
    let config = Config { threads: arguments.threads, memory_limit, db: arguments.db.clone(), access, cluster, worker: None };
    let context = MergeContext::new(config)?;
    for source in &arguments.sources {
        let (name, path) = source.split_once('=').ok_or_else(|| bad(format!("--source takes NAME=PATH, not `{source}`")))?;
        context.register_source(name, path).await?;
    }
    match &arguments.command {
        Some(Command::MergeModels(command)) => return models::merge(&context, command).await,
        Some(Command::Migrate(command)) => return models::migrate(command),
        Some(Command::Serve(command)) => return serve::run(context, command).await,
        Some(Command::TensorReport(command)) => return models::report(command).await,
        Some(Command::ModelSet(command)) => {
            return models::set(&context, command, &Output::new(arguments.format, arguments.output.clone())?).await;
        }
        _ => {}
    }
    if let Some(Command::Lower { statement }) = &arguments.command {
        output::say(context.lower(statement).await?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut scripts: Vec<String> = arguments.commands.clone();
    for file in &arguments.file {
        scripts.push(read_script(Some(file))?);
    }
    let mut output = Output::new(arguments.format, arguments.output.clone())?;
    output.timer = arguments.timer;
    if scripts.is_empty() {
        if std::io::stdin().is_terminal() {
            return repl::run(context, output).await;
        }
        scripts.push(read_script(None)?);
    }
    let files = arguments.file.iter().map(|f| Some(f.display().to_string()));
    let names: Vec<Option<String>> = arguments.commands.iter().map(|_| None).chain(files).chain([None]).collect();
    let mut statements = Vec::new();
    for (script, name) in scripts.iter().zip(&names) {
        let in_script = |e: Box<mergeql_lang::Diagnostic>| MergeError::from(e.in_script(script, 0, name.as_deref()));
        let split = mergeql_lang::split(script).map_err(in_script)?;
        if split.is_empty() && !arguments.commands.is_empty() {
            // `-c ''` asks for something and names nothing.
            mergeql_lang::parse(script).map_err(in_script)?;
        }
        statements.extend(split.into_iter().map(|statement| (script, name, statement)));
    }
    let last = statements.len().saturating_sub(1);
    for (i, (script, name, statement)) in statements.into_iter().enumerate() {
        let offset = statement.as_ptr() as usize - script.as_ptr() as usize;
        let run = output.statement(&context, statement, i == last).await;
        run.map_err(|e| e.map(|d| d.in_script(script, offset, name.as_deref())))?;
    }
    Ok(ExitCode::SUCCESS)
}
