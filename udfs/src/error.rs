//! The one error of the core: a code that users can look up, a message in the data's own words, and a way out.

use std::fmt;

/// The codes of the language's errors. The list is append-only; the manual explains each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Code {
    Syntax,
    UnknownSource,
    UnknownColumn,
    UnknownStrategy,
    UnknownOption,
    DuplicateClause,
    DuplicateColumn,
    DuplicateSource,
    InvalidLimit,
    InvalidArgument,
    TypeMismatch,
    NeedsState,
    NotAState,
    CorruptState,
    UnverifiedStrategy,
    Unsupported,
    Io,
    LimitExceeded,
}

impl Code {
    /// Every code, in the order of the manual.
    pub const ALL: [Code; 18] = [
        Code::Syntax,
        Code::UnknownSource,
        Code::UnknownColumn,
        Code::UnknownStrategy,
        Code::UnknownOption,
        Code::DuplicateClause,
        Code::DuplicateColumn,
        Code::DuplicateSource,
        Code::InvalidLimit,
        Code::InvalidArgument,
        Code::TypeMismatch,
        Code::NeedsState,
        Code::NotAState,
        Code::CorruptState,
        Code::UnverifiedStrategy,
        Code::Unsupported,
        Code::Io,
        Code::LimitExceeded,
    ];

    /// The code as users see it: `unknown_strategy`.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Syntax => "syntax",
            Code::UnknownSource => "unknown_source",
            Code::UnknownColumn => "unknown_column",
            Code::UnknownStrategy => "unknown_strategy",
            Code::UnknownOption => "unknown_option",
            Code::DuplicateClause => "duplicate_clause",
            Code::DuplicateColumn => "duplicate_column",
            Code::DuplicateSource => "duplicate_source",
            Code::InvalidLimit => "invalid_limit",
            Code::InvalidArgument => "invalid_argument",
            Code::TypeMismatch => "type_mismatch",
            Code::NeedsState => "needs_state",
            Code::NotAState => "not_a_state",
            Code::CorruptState => "corrupt_state",
            Code::UnverifiedStrategy => "unverified_strategy",
            Code::Unsupported => "unsupported",
            Code::Io => "io",
            Code::LimitExceeded => "limit_exceeded",
        }
    }

    /// The code in SQL's own terms (SQLSTATE), as Postgres names the case where it has one.
    pub fn sqlstate(self) -> &'static str {
        match self {
            Code::Syntax => "42601",
            Code::UnknownSource => "42P01",
            Code::UnknownColumn => "42703",
            Code::UnknownStrategy => "42883",
            Code::DuplicateColumn => "42701",
            Code::DuplicateSource => "42712",
            Code::TypeMismatch => "42804",
            Code::NotAState | Code::CorruptState => "22P03",
            Code::LimitExceeded => "54000",
            Code::Unsupported | Code::NeedsState | Code::UnverifiedStrategy => "0A000",
            Code::Io => "58030",
            _ => "22023",
        }
    }

    /// The code with this name.
    pub fn parse(name: &str) -> Option<Code> {
        Code::ALL.into_iter().find(|code| code.as_str() == name)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure of the core. It displays as `error[code]: message`, so that a host that can only carry text carries the code too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("error[{code}]: {message}{}", help.as_ref().map(|h| format!("\n  = help: {h}")).unwrap_or_default())]
pub struct Error {
    /// What kind of failure.
    pub code: Code,
    /// The data's own reason.
    pub message: String,
    /// A way out, where there is one.
    pub help: Option<String>,
}

/// The result of a fallible operation of the core.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure of this kind.
    pub fn new(code: Code, message: impl Into<String>) -> Error {
        Error { code, message: message.into(), help: None }
    }

    /// The same failure, with a way out.
    pub fn with_help(mut self, help: impl Into<String>) -> Error {
        self.help = Some(help.into());
        self
    }

    /// Values or states whose types cannot be combined.
    pub fn type_mismatch(message: impl Into<String>) -> Error {
        Error::new(Code::TypeMismatch, message)
    }

    /// An argument or an input value that a strategy refuses.
    pub fn invalid_argument(message: impl Into<String>) -> Error {
        Error::new(Code::InvalidArgument, message)
    }

    /// Bytes that are not a state.
    pub fn corrupt_state(message: impl Into<String>) -> Error {
        Error::new(Code::CorruptState, message)
    }
}
