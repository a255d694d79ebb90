//! CSV, TSV, JSON and NDJSON files: what they hold.
//!
//! Types are inferred over every row of every file of a source together, so that what a column is never depends on which rows come
//! first; an unquoted empty CSV field is NULL, `""` is empty text (R1).

mod guess;
mod marks;

use crate::columns::physical;
use crate::objects::Object;
use crate::sources::Format;
use arrow::datatypes::{DataType, Field, Schema};
use guess::{Guess, inexact, is_inexact};
pub(crate) use marks::{MarkNulls, NULL_MARK, NULL_PATTERN};
use mergeql_udfs::{Code, Error, Result, Type};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::Handle;

/// How a text file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Delimited fields.
    Csv {
        /// Between fields.
        delimiter: u8,
        /// Whether the first record names the columns.
        header: bool,
    },
    /// One object a line.
    Ndjson,
    /// An array of objects, or one object after the other.
    Json,
}

/// Where the bytes are.
#[derive(Debug, Clone)]
pub enum Bytes {
    /// In a file.
    Path(PathBuf),
    /// In an object store.
    Object(Object),
    /// Here (standard input, for one).
    Memory(Arc<[u8]>),
}

impl Bytes {
    pub(crate) fn open(&self) -> Result<Box<dyn BufRead + Send>> {
        match self {
            Bytes::Path(path) => {
                let file = File::open(path).map_err(|e| io(path, e))?;
                Ok(Box::new(BufReader::with_capacity(1 << 18, file)))
            }
            Bytes::Object(object) => object.open(),
            Bytes::Memory(bytes) => Ok(Box::new(Cursor::new(Arc::clone(bytes)))),
        }
    }

    /// The format that the ending of its name says.
    pub(crate) fn format(&self) -> Option<Format> {
        match self {
            Bytes::Path(path) => Format::of_path(path),
            Bytes::Object(object) => object.format(),
            Bytes::Memory(_) => None,
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Bytes::Path(path) => path.display().to_string(),
            Bytes::Object(object) => object.name(),
            Bytes::Memory(_) => "standard input".to_owned(),
        }
    }
}

/// An input or output failure with the path it is about.
pub fn io(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(Code::Io, format!("{}: {error}", path.display()))
}

/// What the files of a source hold together.
pub struct Inferred {
    /// Their columns. They may hold NULLs.
    pub schema: Schema,
    /// Whether each column has a value in every row.
    pub complete: Vec<bool>,
}

/// Reads all files of a source to learn what they hold together.
///
/// # Errors
/// `io` for what cannot be read, `type_mismatch` for JSON whose fields clash, `duplicate_column` for a header that repeats a name.
pub fn infer(files: &[Bytes], layout: Layout) -> Result<Inferred> {
    match layout {
        Layout::Csv { delimiter, header } => infer_csv(files, delimiter, header),
        Layout::Ndjson | Layout::Json => infer_json(files, layout),
    }
}

// CSV.

/// The names of the columns of a CSV file whose first record is this.
fn csv_names(bytes: &Bytes, record: &csv::ByteRecord, header: bool) -> Result<Vec<String>> {
    let utf8 = |name: &[u8]| std::str::from_utf8(name).map(str::to_owned);
    let names = record.iter().enumerate().map(|(i, name)| match (header, name) {
        (true, name) if name != NULL_MARK && !name.is_empty() => utf8(name).map_err(|_| {
            Error::new(Code::Io, format!("{}: a column name is not UTF-8", bytes.name()))
                .with_help("convert the file to UTF-8 first")
        }),
        _ => Ok(format!("column{}", i + 1)),
    });
    let names = names.collect::<Result<Vec<_>>>()?;
    if let Some((_, name)) = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n)) {
        return Err(Error::new(Code::DuplicateColumn, format!("{}: two columns are called `{name}`", bytes.name())));
    }
    Ok(names)
}

/// The names in the header of a CSV file.
///
/// # Errors
/// As [`infer`].
pub(crate) fn csv_header(bytes: &Bytes, delimiter: u8) -> Result<Vec<String>> {
    let marked = MarkNulls::new(bytes.open()?, delimiter);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).delimiter(delimiter).from_reader(marked);
    let mut record = csv::ByteRecord::new();
    reader.read_byte_record(&mut record).map_err(|e| Error::new(Code::Io, format!("{}: {e}", bytes.name())))?;
    csv_names(bytes, &record, true)
}

/// The columns of the files together: they pair by name, and one that a file lacks is NULL in it.
fn infer_csv(files: &[Bytes], delimiter: u8, header: bool) -> Result<Inferred> {
    let mut columns: Vec<(String, Guess)> = Vec::new();
    let guesses = side_by_side(files, |bytes| guess_csv(bytes, delimiter, header));
    for (i, (bytes, guessed)) in files.iter().zip(guesses).enumerate() {
        let guessed = guessed?;
        if !header && i > 0 && columns.len() != guessed.len() {
            return Err(unreadable(bytes, "it has another number of columns than the other files of this source")
                .with_help("list files with different columns as sources of their own"));
        }
        for (name, known) in &mut columns {
            known.missing |= guessed.iter().all(|(other, _)| other != name);
        }
        for (name, mut guess) in guessed {
            match columns.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => known.and(guess),
                None => {
                    guess.missing |= i > 0;
                    columns.push((name, guess));
                }
            }
        }
    }
    if let Some((name, _)) = columns.iter().find(|(_, g)| g.inexact && g.data_type() == DataType::Float64) {
        return Err(inexact(name));
    }
    let complete = columns.iter().map(|(_, guess)| !guess.missing).collect();
    let fields = columns.into_iter().map(|(name, guess)| Field::new(name, guess.data_type(), true));
    Ok(Inferred { schema: Schema::new(fields.collect::<Vec<_>>()), complete })
}

/// What is made of each file, in their order, by as many threads as there are processors.
fn side_by_side<T: Send>(files: &[Bytes], read: impl Fn(&Bytes) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(files.len());
    if threads < 2 {
        return files.iter().map(read).collect();
    }
    let next = AtomicUsize::new(0);
    // Objects of a store are read by the runtime.
    let runtime = Handle::try_current().ok();
    let work = || {
        let _inside = runtime.as_ref().map(Handle::enter);
        let places = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        places.map_while(|at| Some((at, read(files.get(at)?)))).collect::<Vec<_>>()
    };
    let mut read: Vec<(usize, T)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.flatten().collect()
    });
    read.sort_unstable_by_key(|(at, _)| *at);
    read.into_iter().map(|(_, read)| read).collect()
}

fn unreadable(bytes: &Bytes, message: impl std::fmt::Display) -> Error {
    Error::new(Code::Io, format!("{}: {message}", bytes.name()))
}

/// The columns of one file.
fn guess_csv(bytes: &Bytes, delimiter: u8, header: bool) -> Result<Vec<(String, Guess)>> {
    let mut columns: Vec<(String, Guess)> = Vec::new();
    let marked = MarkNulls::new(bytes.open()?, delimiter);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).delimiter(delimiter).from_reader(marked);
    let mut record = csv::ByteRecord::new();
    let mut first = true;
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => {
                let other = match columns.as_slice() {
                    [(name, _)] => [';', '\t', '|', ','].into_iter().find(|c| name.contains(*c)),
                    _ => None,
                };
                let delimiter = other.map(|c| match c {
                    '\t' => "if a tab stands between fields, say so: WITH (format = 'tsv')".to_owned(),
                    c => format!("if `{c}` stands between fields, say so: WITH (delimiter = '{c}')"),
                });
                let help = match e.kind() {
                    _ if delimiter.is_some() => delimiter.as_deref().unwrap_or_default(),
                    csv::ErrorKind::UnequalLengths { .. } => "every record needs as many fields as the header",
                    _ => "a field that holds a quote stands in quotes, and has the quote twice",
                };
                return Err(unreadable(bytes, e).with_help(help));
            }
        }
        if std::mem::take(&mut first) {
            columns = csv_names(bytes, &record, header)?.into_iter().map(|name| (name, Guess::NEW)).collect();
            if header {
                continue;
            }
        }
        for ((_, guess), field) in columns.iter_mut().zip(&record) {
            if field != NULL_MARK {
                let text = std::str::from_utf8(field).map_err(|_| {
                    let line = record.position().map_or(0, csv::Position::line);
                    unreadable(bytes, format!("line {line} is not UTF-8")).with_help("convert the file to UTF-8 first")
                })?;
                guess.see(text);
            } else {
                guess.missing = true;
            }
        }
    }
    if first {
        return Err(unreadable(bytes, "the file is empty: it has no header"));
    }
    Ok(columns)
}

// JSON.

fn malformed(bytes: &Bytes, line: usize, message: impl std::fmt::Display) -> Error {
    Error::new(Code::Io, format!("{}: line {line}: {message}", bytes.name()))
}

/// The objects of a JSON file as lines.
pub(crate) fn as_lines(bytes: &Bytes) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    each_object(bytes, Layout::Json, |_, object| {
        serde_json::to_writer(&mut out, object).map_err(|e| malformed(bytes, 0, e))?;
        out.push(b'\n');
        Ok(())
    })?;
    Ok(out)
}

fn each_object(
    bytes: &Bytes,
    layout: Layout,
    mut run: impl FnMut(usize, &serde_json::Map<String, serde_json::Value>) -> Result<()>,
) -> Result<()> {
    let mut input = bytes.open()?;
    let object = |line: usize, value: serde_json::Value| match value {
        serde_json::Value::Object(object) => Ok(object),
        other => Err(malformed(bytes, line, format!("expected an object, found {}", kind(&other)))),
    };
    if layout == Layout::Ndjson {
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = input.read_until(b'\n', &mut line).map_err(|e| malformed(bytes, number, e))?;
            if read == 0 {
                break;
            }
            if !line.trim_ascii().is_empty() {
                let value = serde_json::from_slice(&line).map_err(|e| malformed(bytes, number, e))?;
                run(number, &object(number, value)?)?;
            }
        }
        return Ok(());
    }
    let mut seen = false;
    for value in serde_json::Deserializer::from_reader(input).into_iter::<serde_json::Value>() {
        let value = value.map_err(|e| malformed(bytes, e.line(), e))?;
        seen = true;
        match value {
            serde_json::Value::Array(items) => {
                for (i, item) in items.into_iter().enumerate() {
                    run(i + 1, &object(i + 1, item)?)?;
                }
            }
            other => run(1, &object(1, other)?)?,
        }
    }
    if seen { Ok(()) } else { Err(malformed(bytes, 1, "the file is empty: it is no JSON")) }
}

fn kind(value: &serde_json::Value) -> &'static str {
    match value {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "a boolean",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "a text",
        serde_json::Value::Array(_) => "an array",
        serde_json::Value::Object(_) => "an object",
    }
}

/// Text that is a date or a timestamp in every row is one, as in CSV.
fn infer_json(files: &[Bytes], layout: Layout) -> Result<Inferred> {
    let mut rows = 0;
    let mut columns: Vec<(String, Vec<Type>, Guess)> = Vec::new();
    let mut inexact_at: BTreeSet<Way> = BTreeSet::new();
    for bytes in files {
        each_object(bytes, layout, |line, object| {
            rows += 1;
            for (name, value) in object {
                let ty = json_type(value);
                let at = match columns.iter().position(|(n, ..)| n == name) {
                    Some(at) => at,
                    None => {
                        columns.push((name.clone(), Vec::new(), Guess::NEW));
                        columns.len() - 1
                    }
                };
                let (_, seen, guess) = &mut columns[at];
                guess.values += usize::from(!value.is_null());
                if !seen.contains(&ty) {
                    let above = common(seen)?;
                    seen.push(ty);
                    let all = common(seen).map_err(|_| {
                        Error::type_mismatch(format!(
                            "{}: line {line}: `{name}` is {} here and {above} above",
                            bytes.name(),
                            kind(value)
                        ))
                    })?;
                    // Objects come in many shapes.
                    if seen.len() > 64 {
                        *seen = vec![all];
                    }
                }
                match value {
                    serde_json::Value::String(text) => guess.see(text),
                    other => note_inexact(other, &mut vec![Some(name.clone())], &mut inexact_at),
                }
            }
            Ok(())
        })?;
    }
    let typed = |(name, seen, guess): (String, Vec<Type>, Guess)| Ok((name, common(&seen)?, guess));
    let columns: Vec<(String, Type, Guess)> = columns.into_iter().map(typed).collect::<Result<_>>()?;
    let is_double = |way: &&Way| match way.split_first() {
        Some((Some(column), rest)) => columns.iter().any(|(name, ty, _)| name == column && is_double_at(ty, rest)),
        _ => false,
    };
    if let Some(Some(column)) = inexact_at.iter().find(is_double).and_then(|way| way.first()) {
        return Err(inexact(column));
    }
    let field = |(name, ty, guess): &(String, Type, Guess)| match guess.data_type() {
        temporal @ (DataType::Date32 | DataType::Timestamp(..)) if *ty == Type::Text => Field::new(name, temporal, true),
        _ => Field::new(name, physical(ty), true),
    };
    let complete = columns.iter().map(|(_, _, guess)| guess.values == rows).collect();
    Ok(Inferred { schema: Schema::new(columns.iter().map(field).collect::<Vec<_>>()), complete })
}

/// The way to a value inside another: the name of a field, or nothing for the items of a list.
type Way = Vec<Option<String>>;

/// Notes where numbers stand that a double does not hold.
fn note_inexact(value: &serde_json::Value, way: &mut Way, found: &mut BTreeSet<Way>) {
    match value {
        serde_json::Value::Number(n) if is_inexact(&n.to_string()) => {
            found.insert(way.clone());
        }
        serde_json::Value::Array(items) => {
            way.push(None);
            items.iter().for_each(|item| note_inexact(item, way, found));
            way.pop();
        }
        serde_json::Value::Object(fields) => {
            for (name, field) in fields {
                way.push(Some(name.clone()));
                note_inexact(field, way, found);
                way.pop();
            }
        }
        _ => {}
    }
}

/// Whether there are doubles at the end of a way.
fn is_double_at(ty: &Type, way: &[Option<String>]) -> bool {
    match (ty, way) {
        (Type::Float64, []) => true,
        (Type::List(item), [None, rest @ ..]) => is_double_at(item, rest),
        (Type::Struct(fields), [Some(name), rest @ ..]) => {
            fields.iter().any(|(field, ty)| **field == **name && is_double_at(ty, rest))
        }
        _ => false,
    }
}

fn common(types: &[Type]) -> Result<Type> {
    Type::widen_all(&types.iter().collect::<Vec<_>>())
}

fn json_type(value: &serde_json::Value) -> Type {
    match value {
        serde_json::Value::Null => Type::Null,
        serde_json::Value::Bool(_) => Type::Boolean,
        serde_json::Value::Number(n) if n.is_i64() => Type::INT64,
        serde_json::Value::Number(n) if n.is_u64() => Type::UINT64,
        serde_json::Value::Number(_) => Type::Float64,
        serde_json::Value::String(_) => Type::Text,
        serde_json::Value::Array(items) => {
            let mut types: Vec<Type> = Vec::new();
            for item in items {
                let ty = json_type(item);
                if !types.contains(&ty) {
                    types.push(ty);
                }
            }
            Type::List(Box::new(common(&types).unwrap_or(Type::Text)))
        }
        serde_json::Value::Object(fields) => Type::Struct(fields.iter().map(|(n, v)| (n.as_str().into(), json_type(v))).collect()),
    }
}
