//! Every failure of the engine as one kind: a diagnostic with a code, and whether it is the statement's fault or the machine's.

use datafusion::common::{DataFusionError, SchemaError};
use mergeql_lang::Diagnostic;
use mergeql_udfs::{Code, Error};

/// A failed statement.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{diagnostic}")]
pub struct MergeError {
    /// What is wrong, where, and the way out.
    pub diagnostic: Box<Diagnostic>,
    /// It came while rows were read, merged or written: the statement itself was in order.
    running: bool,
}

/// The result of an operation of the engine.
pub type Result<T, E = MergeError> = std::result::Result<T, E>;

impl MergeError {
    /// A failure without a place in the statement.
    pub fn new(code: Code, message: impl Into<String>) -> MergeError {
        Diagnostic::new(code, message).into()
    }

    /// The same failure with a way out.
    pub fn help(self, help: impl Into<String>) -> MergeError {
        self.map(|diagnostic| diagnostic.help(help))
    }

    /// The same failure with a diagnostic that knows more.
    pub fn map(self, change: impl FnOnce(Box<Diagnostic>) -> Box<Diagnostic>) -> MergeError {
        MergeError { diagnostic: change(self.diagnostic), ..self }
    }

    /// A failure that came while rows were read, merged or written.
    pub fn running(error: impl Into<MergeError>) -> MergeError {
        MergeError { running: true, ..error.into() }
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.diagnostic.code
    }

    /// Input, output and resources, or values that only running the statement meets: not the statement's own fault.
    pub fn is_runtime(&self) -> bool {
        self.running || matches!(self.diagnostic.code, Code::Io | Code::LimitExceeded)
    }
}

impl From<Box<Diagnostic>> for MergeError {
    fn from(diagnostic: Box<Diagnostic>) -> MergeError {
        MergeError { diagnostic, running: false }
    }
}

impl From<Error> for MergeError {
    fn from(error: Error) -> MergeError {
        Box::<Diagnostic>::from(error).into()
    }
}

impl From<std::io::Error> for MergeError {
    fn from(error: std::io::Error) -> MergeError {
        MergeError::new(Code::Io, error.to_string())
    }
}

impl From<arrow::error::ArrowError> for MergeError {
    fn from(error: arrow::error::ArrowError) -> MergeError {
        DataFusionError::from(error).into()
    }
}

impl From<DataFusionError> for MergeError {
    fn from(error: DataFusionError) -> MergeError {
        if let Some(own) = own(&error) {
            return own.into();
        }
        let text = error.strip_backtrace();
        let root = error.find_root();
        let code = match root {
            DataFusionError::SQL(..) => Code::Syntax,
            DataFusionError::NotImplemented(_) => Code::Unsupported,
            DataFusionError::ResourcesExhausted(_) => Code::LimitExceeded,
            DataFusionError::IoError(_) | DataFusionError::ObjectStore(_) | DataFusionError::ParquetError(_) => Code::Io,
            DataFusionError::SchemaError(inner, _) => match **inner {
                SchemaError::FieldNotFound { .. } => Code::UnknownColumn,
                _ => Code::DuplicateColumn,
            },
            DataFusionError::Plan(message) => plan_code(message),
            DataFusionError::ArrowError(inner, _) => match **inner {
                arrow::error::ArrowError::IoError(..)
                | arrow::error::ArrowError::ParquetError(_)
                | arrow::error::ArrowError::IpcError(_)
                | arrow::error::ArrowError::CsvError(_)
                | arrow::error::ArrowError::JsonError(_) => Code::Io,
                _ => Code::InvalidArgument,
            },
            DataFusionError::Execution(_) => Code::InvalidArgument,
            _ => Code::Unsupported,
        };
        // The last cause is the reason; what is before it names the optimizer's steps.
        let text = text.rsplit_once("caused by\n").map_or(text.as_str(), |(_, cause)| cause);
        if let Some(known) = in_our_words(root, text) {
            return known.into();
        }
        let text = text
            .trim_start_matches("Error during planning: ")
            .trim_start_matches("Arrow error: ")
            .trim_start_matches("SQL error: ")
            .trim_start_matches("Execution error: ")
            .trim_start_matches("Schema error: ")
            .trim_start_matches("External error: ");
        MergeError::new(code, text.trim())
    }
}

/// What an engine says about a name, in the words of the language and with the name, so that its place can be found.
fn in_our_words(root: &DataFusionError, text: &str) -> Option<Box<Diagnostic>> {
    if let DataFusionError::SchemaError(inner, _) = root
        && let SchemaError::FieldNotFound { field, valid_fields } = inner.as_ref()
    {
        let names: Vec<&str> = valid_fields.iter().map(|c| c.name.as_str()).filter(|n| !n.starts_with("__mergeql_")).collect();
        let error = Diagnostic::new(Code::UnknownColumn, format!("there is no column `{}`", field.name)).about(&field.name);
        let listed: Vec<String> = names.iter().take(12).map(|n| format!("`{n}`")).collect();
        let error = if listed.is_empty() { error } else { error.help(format!("there are {}", listed.join(", "))) };
        return Some(error.suggest(&field.name, names));
    }
    if text.contains("Divide by zero error") {
        return Some(Diagnostic::new(Code::InvalidArgument, "division by zero").help("nullif(divisor, 0) gives NULL there"));
    }
    if let DataFusionError::ResourcesExhausted(why) = root {
        let error = Diagnostic::new(Code::LimitExceeded, format!("the memory limit is too small for this statement: {why}"));
        return Some(
            error.help("allow more: --memory-limit (of the worker, on a cluster), or WITH (memory_limit = ...) of a merge"),
        );
    }
    if matches!(root, DataFusionError::SQL(..)) && text.contains("RecursionLimitExceeded") {
        return Some(Diagnostic::new(Code::Syntax, "parentheses or operators stand too deep within each other"));
    }
    let quoted = |before: &str| text.split_once(before)?.1.split_once('\'').map(|(name, _)| name);
    if let Some(name) = quoted("Invalid function '") {
        let error = Diagnostic::new(Code::UnknownStrategy, format!("there is no function `{name}`")).about(name);
        let near = quoted("Did you mean '");
        // The engine always names some function; only a near one is worth showing.
        return Some(error.suggest(name, near));
    }
    if let Some(name) = quoted("table '").filter(|_| text.contains("not found")) {
        let name = name.rsplit('.').next().unwrap_or(name);
        return Some(Diagnostic::new(Code::UnknownSource, format!("there is no table `{name}`")).about(name));
    }
    let parser = quoted_parser_error(text)?;
    Some(Diagnostic::new(Code::Syntax, parser))
}

/// The message inside `ParserError("...")`.
fn quoted_parser_error(text: &str) -> Option<String> {
    let inner = text.split_once("ParserError(\"")?.1.rsplit_once("\")")?.0;
    Some(inner.replace("\\\"", "\"").replace("\\'", "'"))
}

fn plan_code(message: &str) -> Code {
    if message.contains("table '") && message.contains("not found") {
        Code::UnknownSource
    } else if message.contains("No field named") {
        Code::UnknownColumn
    } else if message.contains("coerce") || message.contains("type") {
        Code::TypeMismatch
    } else if message.contains("Invalid function") {
        Code::UnknownStrategy
    } else {
        Code::Syntax
    }
}

/// The core's own error inside a failure, which may have come over the network as text.
pub(crate) fn own(error: &DataFusionError) -> Option<Error> {
    find_own(error).cloned().or_else(|| read_own(&error.strip_backtrace()))
}

/// The error in a text that displays one.
pub(crate) fn read_own(text: &str) -> Option<Error> {
    let (code, rest) = text.split_once("error[")?.1.split_once("]: ")?;
    let (message, help) = match rest.split_once("\n  = help: ") {
        Some((message, help)) => (message, Some(help.lines().next().unwrap_or_default().to_owned())),
        None => (rest, None),
    };
    let message = message.lines().next().unwrap_or_default().to_owned();
    Some(Error { code: Code::parse(code)?, message, help })
}

/// The core's own error inside a chain of others.
fn find_own<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    let mut next: Option<&'a (dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = next {
        if let Some(own) = current.downcast_ref::<Error>() {
            return Some(own);
        }
        if let Some(DataFusionError::External(inner)) = current.downcast_ref::<DataFusionError>()
            && let Some(own) = inner.downcast_ref::<Error>()
        {
            return Some(own);
        }
        if let Some(DataFusionError::Shared(inner)) = current.downcast_ref::<DataFusionError>() {
            next = Some(inner.as_ref());
            continue;
        }
        if let Some(arrow::error::ArrowError::ExternalError(inner)) = current.downcast_ref::<arrow::error::ArrowError>() {
            next = Some(inner.as_ref());
            continue;
        }
        next = current.source();
    }
    None
}
