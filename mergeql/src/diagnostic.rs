//! Errors as users see them: a code, a message, the place with a caret under the text, and a way out.

use mergeql_udfs::{Code, Error};
use std::fmt;

/// A stretch of one line of a statement; lines and columns count from 1, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The line.
    pub line: u64,
    /// The first column.
    pub column: u64,
    /// The column after the last.
    pub end: u64,
}

impl From<sqlparser::tokenizer::Span> for Span {
    fn from(span: sqlparser::tokenizer::Span) -> Span {
        let end = if span.end.line == span.start.line { span.end.column } else { span.start.column + 1 };
        Span { line: span.start.line, column: span.start.column, end: end.max(span.start.column + 1) }
    }
}

/// An error with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The code.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// Where, if it is in the statement's text.
    pub span: Option<Span>,
    /// The line of the statement that the span is in.
    pub line: String,
    /// A short label under the text.
    pub label: Option<String>,
    /// A way out.
    pub help: Option<String>,
    /// The name that the error is about, where an engine tells no place: it is looked for in the text.
    pub subject: Option<String>,
    /// The file that the statement is in.
    pub file: Option<String>,
}

/// The result of an operation on a statement.
pub type Result<T, E = Box<Diagnostic>> = std::result::Result<T, E>;

impl Diagnostic {
    /// An error without a place yet.
    pub fn new(code: Code, message: impl Into<String>) -> Box<Diagnostic> {
        Box::new(Diagnostic {
            code,
            message: message.into(),
            span: None,
            line: String::new(),
            label: None,
            help: None,
            subject: None,
            file: None,
        })
    }

    /// An error at a place.
    pub fn at(code: Code, span: Span, message: impl Into<String>) -> Box<Diagnostic> {
        let mut diagnostic = Diagnostic::new(code, message);
        diagnostic.span = Some(span);
        diagnostic
    }

    /// The same error at this place, if it has none and this is one.
    pub fn within(mut self: Box<Self>, place: Option<Span>) -> Box<Diagnostic> {
        self.span = self.span.or(place).filter(|span| span.line > 0);
        self
    }

    /// The same error with a label under the text.
    pub fn label(mut self: Box<Self>, label: impl Into<String>) -> Box<Diagnostic> {
        self.label = Some(label.into());
        self
    }

    /// The same error with a way out.
    pub fn help(mut self: Box<Self>, help: impl Into<String>) -> Box<Diagnostic> {
        self.help = Some(help.into());
        self
    }

    /// The same error with "did you mean" over the names in scope, if one is near.
    pub fn suggest<'a>(mut self: Box<Self>, wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Box<Diagnostic> {
        if let Some(name) = nearest(wrong, names) {
            self.label = Some(format!("did you mean `{name}`?"));
        }
        self
    }

    /// The same error, about a name that stands somewhere in the text.
    pub fn about(mut self: Box<Self>, name: impl Into<String>) -> Box<Diagnostic> {
        self.subject = Some(name.into());
        self
    }

    /// The same error knowing the statement's text, so that it can show the line.
    pub fn in_text(mut self: Box<Self>, text: &str) -> Box<Diagnostic> {
        if self.span.is_none() {
            self.span = self.subject.as_deref().and_then(|name| find_word(text, name));
        }
        if let (Some(span), true) = (self.span, self.line.is_empty()) {
            let line = text.lines().nth(span.line.saturating_sub(1) as usize).unwrap_or_default();
            self.line = line.to_owned();
        }
        self
    }
}

impl Diagnostic {
    /// The same error with its place counted from the beginning of the script that holds the statement at this offset.
    pub fn in_script(mut self: Box<Self>, script: &str, offset: usize, file: Option<&str>) -> Box<Diagnostic> {
        if let Some(span) = &mut self.span {
            let before = &script[..offset];
            let column = before.chars().rev().take_while(|c| *c != '\n').count() as u64;
            if span.line == 1 {
                (span.column, span.end) = (span.column + column, span.end + column);
            }
            span.line += before.matches('\n').count() as u64;
            self.line = script.lines().nth(span.line.saturating_sub(1) as usize).unwrap_or_default().to_owned();
            self.file = file.map(str::to_owned);
        }
        self
    }
}

impl Diagnostic {
    /// Where the error is, as the DETAIL of hosts that have one: line and column, the line itself, carets under the place.
    pub fn detail(&self) -> Option<String> {
        let place = self.span.map(|span| {
            let label = self.label.as_deref().map_or(String::new(), |l| format!(" {l}"));
            let (before, width) = (span.column.saturating_sub(1) as usize, span.end.saturating_sub(span.column).max(1) as usize);
            let (space, carets) = (" ".repeat(before), "^".repeat(width));
            format!("line {}, column {}\n{}\n{space}{carets}{label}", span.line, span.column, self.line)
        });
        place.or_else(|| self.label.clone())
    }

    /// The place as a count of characters from the beginning of the statement, from 1.
    pub fn position(&self, text: &str) -> Option<usize> {
        let span = self.span?;
        let lines = text.split('\n').take(span.line.saturating_sub(1) as usize);
        Some(lines.map(|line| line.chars().count() + 1).sum::<usize>() + span.column as usize)
    }
}

/// The first place where a name stands as a word of its own, in any case of letters.
fn find_word(text: &str, name: &str) -> Option<Span> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let length = name.chars().count();
    for (i, line) in text.lines().enumerate() {
        let chars: Vec<char> = line.chars().collect();
        let found = chars.windows(length.max(1)).enumerate().find(|(at, window)| {
            window.iter().copied().flat_map(char::to_lowercase).eq(name.chars().flat_map(char::to_lowercase))
                && !at.checked_sub(1).is_some_and(|before| is_part(chars[before]))
                && !chars.get(at + length).copied().is_some_and(is_part)
        });
        if let Some((at, _)) = found {
            return Some(Span { line: i as u64 + 1, column: at as u64 + 1, end: (at + length) as u64 + 1 });
        }
    }
    None
}

/// The name that is most likely meant.
pub fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = wrong.to_lowercase();
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1 + name.chars().count().min(wrong.chars().count()) / 3)
        .min()
        .map(|(_, name)| name)
}

impl From<Error> for Box<Diagnostic> {
    fn from(error: Error) -> Box<Diagnostic> {
        let mut diagnostic = Diagnostic::new(error.code, error.message);
        diagnostic.help = error.help;
        diagnostic
    }
}

/// Long lines are shown as a window around the place.
const WINDOW: usize = 100;

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        if let Some(span) = self.span {
            write!(f, "\n  --> line {}, column {}", span.line, span.column)?;
            if let Some(file) = &self.file {
                write!(f, " of {file}")?;
            }
            let chars: Vec<char> = self.line.chars().collect();
            let column = (span.column.saturating_sub(1) as usize).min(chars.len());
            let from = if chars.len() <= WINDOW { 0 } else { column.saturating_sub(WINDOW / 2) };
            let shown: String = chars[from..].iter().take(WINDOW).map(|c| if *c == '\t' { ' ' } else { *c }).collect();
            let width = (span.end.saturating_sub(span.column) as usize)
                .clamp(1, shown.chars().count().saturating_sub(column - from).max(1));
            write!(f, "\n   | {shown}\n   | {}{}", " ".repeat(column - from), "^".repeat(width))?;
            if let Some(label) = &self.label {
                write!(f, " {label}")?;
            }
        } else if let Some(label) = &self.label {
            write!(f, " ({label})")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  = help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}
