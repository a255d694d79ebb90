//! SQLite's values as ours, and back; our errors as SQLite's.

use mergeql_lang::Diagnostic;
use mergeql_udfs::codec::{Reader, Writer};
use mergeql_udfs::{Code, Error, Type, Value};
use rusqlite::functions::{Context, SqlFnOutput};
use rusqlite::types::{ToSqlOutput, Value as Plain, ValueRef};

/// The subtype of a blob that is one of our values in its encoding: what one function gives straight to another.
const TYPED: u32 = b'M' as u32;
/// SQLite's own subtype of JSON.
const JSON: u32 = b'J' as u32;

/// An error as SQLite shows it: code, message, place, help.
pub fn shown(error: impl Into<Box<Diagnostic>>) -> rusqlite::Error {
    let mut error = error.into();
    // SQLite takes a message up to the first NUL, and the bindings none that has one.
    for text in [Some(&mut error.message), error.help.as_mut()].into_iter().flatten() {
        if text.contains('\0') {
            *text = text.replace('\0', "\\0");
        }
    }
    rusqlite::Error::UserFunctionError(error)
}

/// A plain value as ours.
///
/// # Errors
/// `invalid_argument` for text that is not UTF-8: what would replace it makes one value of several.
pub fn value(plain: ValueRef<'_>) -> rusqlite::Result<Value> {
    Ok(match plain {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(v) => Value::Int(v.into()),
        ValueRef::Real(v) => Value::float(v),
        ValueRef::Text(v) => Value::text(std::str::from_utf8(v).map_err(|_| {
            let message = format!("a text is not UTF-8: {}", String::from_utf8_lossy(v));
            shown(Diagnostic::new(Code::InvalidArgument, message).help("CAST(... AS BLOB) keeps such bytes"))
        })?),
        ValueRef::Blob(v) => Value::Bytes(v.into()),
    })
}

/// Argument `i` as a value of ours.
///
/// # Errors
/// `corrupt_state` for an encoded value that is none.
pub fn argument(context: &Context<'_>, i: usize) -> rusqlite::Result<Value> {
    match context.get_raw(i) {
        ValueRef::Blob(bytes) if context.get_subtype(i) == TYPED => {
            let mut reader = Reader::new(bytes);
            let value = reader.value().map_err(shown)?;
            reader.end().map_err(shown)?;
            Ok(value)
        }
        plain => value(plain),
    }
}

/// Every argument.
///
/// # Errors
/// As [`argument`].
pub fn arguments(context: &Context<'_>) -> rusqlite::Result<Vec<Value>> {
    (0..context.len()).map(|i| argument(context, i)).collect()
}

/// The type of a value by its class; NULL has none.
pub fn class(value: &Value) -> Type {
    match value {
        Value::Int(_) => Type::INT64,
        Value::Float(_) => Type::Float64,
        Value::Text(_) => Type::Text,
        Value::Bytes(_) => Type::Bytes,
        Value::Struct(fields) => Type::Struct(fields.iter().map(|(name, v)| (name.clone(), class(v))).collect()),
        _ => Type::Null,
    }
}

/// What a function gives.
#[derive(Debug)]
pub enum Answer {
    /// A value as SQLite has it: lists and objects are JSON.
    Plain(Plain),
    /// JSON text.
    Json(String),
    /// A value for another function of ours.
    Typed(Vec<u8>),
}

impl Answer {
    /// A value for SQLite.
    ///
    /// # Errors
    /// `invalid_argument` for an integer of more than 64 bits.
    pub fn of(value: Value) -> rusqlite::Result<Answer> {
        Ok(Answer::Plain(match value {
            Value::List(_) | Value::Struct(_) | Value::Map(_) => return Ok(Answer::Json(value.to_json())),
            other => plain(other)?,
        }))
    }

    /// A value for another function of ours.
    pub fn typed(value: &Value) -> Answer {
        let mut writer = Writer::default();
        writer.value(value);
        Answer::Typed(writer.as_bytes().to_vec())
    }
}

/// A value as SQLite stores it.
///
/// # Errors
/// `invalid_argument` for an integer of more than 64 bits.
pub fn plain(value: Value) -> rusqlite::Result<Plain> {
    Ok(match value {
        Value::Null => Plain::Null,
        Value::Bool(v) => Plain::Integer(v.into()),
        Value::Int(v) => match i64::try_from(v) {
            Ok(v) => Plain::Integer(v),
            Err(_) => return Err(shown(Error::invalid_argument(format!("{v} is too great for SQLite")))),
        },
        Value::Float(v) => Plain::Real(v),
        Value::Text(v) => Plain::Text(v.into()),
        Value::Bytes(v) => Plain::Blob(v.into()),
        Value::List(_) | Value::Struct(_) | Value::Map(_) => Plain::Text(value.to_json()),
        other => Plain::Text(other.to_string()),
    })
}

impl SqlFnOutput for Answer {
    fn to_sql(&self) -> rusqlite::Result<(ToSqlOutput<'_>, Option<u32>)> {
        Ok(match self {
            Answer::Plain(plain) => (ToSqlOutput::Borrowed(plain.into()), None),
            Answer::Json(text) => (ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())), Some(JSON)),
            Answer::Typed(bytes) => (ToSqlOutput::Borrowed(ValueRef::Blob(bytes)), Some(TYPED)),
        })
    }
}

/// Runs what SQLite calls through a C function that lets no panic pass: one becomes an error.
///
/// # Errors
/// What `run` fails with, and a panic in it.
pub fn guarded<T>(run: impl FnOnce() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        let message = format!("MergeQL failed: {}", said.unwrap_or("no reason is known"));
        Err(shown(Diagnostic::new(Code::Unsupported, message)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        let error = guarded::<()>(|| panic!("of {}", "some kind")).expect_err("an error");
        assert!(error.to_string().contains("MergeQL failed: of some kind"), "{error}");
        assert_eq!(guarded(|| Ok(1)).expect("a value"), 1);
    }
}
