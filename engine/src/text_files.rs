//! CSV, TSV, JSON and NDJSON files: what they hold.
//!
//! Types are inferred over every row of every file of a source together, so that what a column is never depends on which rows come
//! first; an unquoted empty CSV field is NULL, `""` is empty text (R1).

use crate::columns::physical;
use crate::objects::Object;
use crate::sources::Format;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use mergeql_udfs::{Code, Error, Result, Type};
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

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

/// What stands for NULL between [`MarkNulls`] and the CSV reader: bytes that no text file has a reason to hold.
pub(crate) const NULL_MARK: &[u8] = b"\x1a\x00\x1a";
pub(crate) static NULL_PATTERN: LazyLock<regex::Regex> =
    LazyLock::new(|| regex::Regex::new("^\x1a\x00\x1a$").expect("invariant: the pattern is valid"));

/// Writes [`NULL_MARK`] into every unquoted empty field, because a CSV reader does not say which fields were quoted. A line with
/// nothing on it is no record.
pub(crate) struct MarkNulls<R> {
    inner: R,
    delimiter: u8,
    /// Whether a byte outside of quotes is more than a part of a field.
    special: [bool; 256],
    out: Vec<u8>,
    at: usize,
    quoted: bool,
    field_start: bool,
    record_start: bool,
    beginning: bool,
    ended: bool,
    /// A line with nothing on it is a record of one NULL.
    blank: bool,
    /// What was last is a carriage return, whose line feed ends no other line.
    returned: bool,
}

impl<R: BufRead> MarkNulls<R> {
    pub(crate) fn new(inner: R, delimiter: u8) -> MarkNulls<R> {
        let out = Vec::with_capacity(1 << 18);
        let mut special = [false; 256];
        [delimiter, b'\n', b'\r', b'"'].into_iter().for_each(|b| special[usize::from(b)] = true);
        MarkNulls {
            inner,
            delimiter,
            special,
            out,
            at: 0,
            quoted: false,
            field_start: true,
            record_start: true,
            beginning: true,
            ended: false,
            blank: false,
            returned: false,
        }
    }

    /// The same for records of one field, which may be NULL: then nothing is on the line.
    pub(crate) fn of_one_column(self) -> MarkNulls<R> {
        MarkNulls { blank: true, ..self }
    }

    fn fill(&mut self) -> std::io::Result<()> {
        self.out.clear();
        self.at = 0;
        let input = self.inner.fill_buf()?;
        let consumed = input.len();
        if consumed == 0 && self.quoted {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a quoted field is never closed"));
        }
        if consumed == 0 {
            if !self.ended && self.field_start && !self.record_start {
                self.out.extend_from_slice(NULL_MARK);
            }
            self.ended = true;
            return Ok(());
        }
        let input = if std::mem::take(&mut self.beginning) { input.strip_prefix(b"\xef\xbb\xbf").unwrap_or(input) } else { input };
        // What comes before a mark is copied at once.
        let (mut copied, mut at) = (0, 0);
        while let Some(&b) = input.get(at) {
            if self.quoted {
                let closing = input[at..].iter().position(|b| *b == b'"');
                self.quoted = closing.is_none();
                at = closing.map_or(input.len(), |n| at + n + 1);
                continue;
            }
            let end_of_record = b == b'\n' || b == b'\r';
            if b == self.delimiter || end_of_record {
                let blank = end_of_record && self.record_start && (!self.blank || b == b'\n' && self.returned);
                self.returned = b == b'\r';
                if self.field_start && !blank {
                    self.out.extend_from_slice(&input[copied..at]);
                    self.out.extend_from_slice(NULL_MARK);
                    copied = at;
                }
                self.field_start = true;
                self.record_start = end_of_record;
                at += 1;
                continue;
            }
            (self.field_start, self.record_start, self.returned) = (false, false, false);
            // A doubled quote closes and opens again, which comes to the same.
            self.quoted = b == b'"';
            at += 1;
            if !self.quoted {
                let plain = input[at..].iter().position(|b| self.special[usize::from(*b)]);
                at = plain.map_or(input.len(), |n| at + n);
            }
        }
        self.out.extend_from_slice(&input[copied..]);
        self.inner.consume(consumed);
        Ok(())
    }
}

impl<R: BufRead> Read for MarkNulls<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.out.len() && !self.ended {
            self.fill()?;
        }
        let n = (self.out.len() - self.at).min(buffer.len());
        buffer[..n].copy_from_slice(&self.out[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// What a CSV column may still be, given the fields seen.
#[derive(Debug, Clone, Copy)]
struct Guess {
    any: bool,
    number: bool,
    boolean: bool,
    integer: bool,
    unsigned: bool,
    float: bool,
    date: bool,
    timestamp: bool,
    zoned: bool,
    local: bool,
    fine: bool,
    /// A whole number was seen that a double cannot hold.
    inexact: bool,
    /// A record without a value was seen.
    missing: bool,
    /// Objects with a value that were seen.
    values: usize,
}

/// A whole number that a double cannot hold exactly.
fn is_inexact(text: &str) -> bool {
    !text.contains(['.', 'e', 'E']) && text.parse::<i128>().map_or(text.len() > 15, |v| v as f64 as i128 != v)
}

/// The refusal of a column of doubles in which such a number stands.
fn inexact(name: &str) -> Error {
    Error::type_mismatch(format!("`{name}` mixes fractions or huge numbers with integers that a double cannot hold exactly"))
        .with_help("write the column as text, or cast it where the file is made")
}

impl Guess {
    const NEW: Guess = Guess {
        any: false,
        number: false,
        boolean: true,
        integer: true,
        unsigned: true,
        float: true,
        date: true,
        timestamp: true,
        zoned: false,
        local: false,
        fine: false,
        inexact: false,
        missing: false,
        values: 0,
    };

    fn see(&mut self, field: &str) {
        self.any = true;
        let digits = field.strip_prefix('-').unwrap_or(field).as_bytes();
        if self.float && matches!(digits, [b'0'] | [b'1'..=b'9', ..]) && digits.len() < 16 && digits.iter().all(u8::is_ascii_digit)
        {
            // Most numbers are whole and short, and a double holds them.
            self.number = true;
            self.unsigned &= digits.len() == field.len();
            (self.boolean, self.date, self.timestamp) = (false, false, false);
            return;
        }
        self.boolean = self.boolean && (field.eq_ignore_ascii_case("true") || field.eq_ignore_ascii_case("false"));
        if self.float {
            let digits = field.strip_prefix(['-', '+']).unwrap_or(field);
            // 007 is a name for something, not seven.
            let padded = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
            let plain = digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'))
                && digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
            let special = matches!(field, "NaN" | "inf" | "-inf" | "Infinity" | "-Infinity");
            let numeric = plain && !padded && field.parse::<f64>().is_ok();
            self.number |= numeric;
            self.inexact |= numeric && is_inexact(field);
            self.integer &= numeric && !field.starts_with('+') && field.parse::<i64>().is_ok();
            self.unsigned &= numeric && !field.starts_with('+') && field.parse::<u64>().is_ok();
            self.float &= numeric || special;
            if !self.float {
                (self.integer, self.unsigned) = (false, false);
            }
        }
        if self.date || self.timestamp {
            match temporal(field) {
                Some(None) => self.timestamp = false,
                Some(Some((zoned, fine))) => {
                    self.date = false;
                    self.zoned |= zoned;
                    self.local |= !zoned;
                    // An instant is none of the times that a clock shows.
                    self.timestamp &= !(self.zoned && self.local);
                    self.fine |= fine;
                }
                None => (self.date, self.timestamp) = (false, false),
            }
        }
    }

    fn data_type(self) -> DataType {
        match self {
            Guess { any: false, .. } => DataType::Null,
            Guess { boolean: true, .. } => DataType::Boolean,
            Guess { integer: true, .. } => DataType::Int64,
            Guess { unsigned: true, .. } => DataType::UInt64,
            Guess { float: true, number: true, .. } => DataType::Float64,
            Guess { date: true, .. } => DataType::Date32,
            Guess { timestamp: true, zoned, fine, .. } => {
                let unit = if fine { TimeUnit::Nanosecond } else { TimeUnit::Microsecond };
                DataType::Timestamp(unit, zoned.then(|| "UTC".into()))
            }
            _ => DataType::Utf8,
        }
    }
}

/// `Some(None)` for a date, `Some((zoned, finer than microseconds))` for a timestamp.
fn temporal(field: &str) -> Option<Option<(bool, bool)>> {
    let number = |range: std::ops::Range<usize>| {
        let part = field.get(range)?;
        if part.bytes().all(|b| b.is_ascii_digit()) { part.parse::<u32>().ok() } else { None }
    };
    let at = |i: usize| field.as_bytes().get(i).copied();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if at(4) != Some(b'-') || at(7) != Some(b'-') || day == 0 || day > days {
        return None;
    }
    if field.len() == 10 {
        return Some(None);
    }
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !matches!(at(10), Some(b'T' | b' '))
        || at(13) != Some(b':')
        || at(16) != Some(b':')
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }
    let mut rest = &field[19..];
    let mut fine = false;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > 9 {
            return None;
        }
        fine = digits > 6;
        rest = &fraction[digits..];
    }
    match rest {
        "" => Some(Some((false, fine))),
        "Z" => Some(Some((true, fine))),
        zone => {
            let b = zone.as_bytes();
            let digit = |i: usize| b[i].is_ascii_digit();
            let good = b.len() == 6 && matches!(b[0], b'+' | b'-') && b[3] == b':' && [1, 2, 4, 5].into_iter().all(digit);
            good.then_some(Some((true, fine)))
        }
    }
}

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

fn infer_csv(files: &[Bytes], delimiter: u8, header: bool) -> Result<Inferred> {
    let mut columns: Vec<(String, Guess)> = Vec::new();
    for bytes in files {
        let problem = |message: String| Error::new(Code::Io, format!("{}: {message}", bytes.name()));
        let marked = MarkNulls::new(bytes.open()?, delimiter);
        let mut reader = csv::ReaderBuilder::new().has_headers(false).delimiter(delimiter).from_reader(marked);
        let mut record = csv::ByteRecord::new();
        let (mut first, mut places) = (true, Vec::new());
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
                    return Err(problem(e.to_string()).with_help(help));
                }
            }
            if first {
                first = false;
                let names = csv_names(bytes, &record, header)?;
                if !header && !columns.is_empty() && columns.len() != names.len() {
                    return Err(problem("it has another number of columns than the other files of this source".to_owned())
                        .with_help("list files with different columns as sources of their own"));
                }
                // Columns pair by name; one that a file lacks is NULL in it.
                let known = columns.len();
                places.clear();
                for name in names {
                    let at = columns.iter().position(|(n, _)| *n == name).unwrap_or(columns.len());
                    if at == columns.len() {
                        columns.push((name, Guess { missing: !std::ptr::eq(bytes, &files[0]), ..Guess::NEW }));
                    }
                    places.push(at);
                }
                (0..known).filter(|at| !places.contains(at)).for_each(|at| columns[at].1.missing = true);
                if header {
                    continue;
                }
            }
            for (at, field) in places.iter().zip(&record) {
                let guess = &mut columns[*at].1;
                if field != NULL_MARK {
                    let text = std::str::from_utf8(field).map_err(|_| {
                        let line = record.position().map_or(0, csv::Position::line);
                        problem(format!("line {line} is not UTF-8")).with_help("convert the file to UTF-8 first")
                    })?;
                    guess.see(text);
                } else {
                    guess.missing = true;
                }
            }
        }
        if first {
            return Err(problem("the file is empty: it has no header".to_owned()));
        }
    }
    if let Some((name, _)) = columns.iter().find(|(_, g)| g.inexact && g.data_type() == DataType::Float64) {
        return Err(inexact(name));
    }
    let complete = columns.iter().map(|(_, guess)| !guess.missing).collect();
    let fields = columns.into_iter().map(|(name, guess)| Field::new(name, guess.data_type(), true));
    Ok(Inferred { schema: Schema::new(fields.collect::<Vec<_>>()), complete })
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
                    serde_json::Value::Number(n) => guess.inexact |= is_inexact(&n.to_string()),
                    _ => {}
                }
            }
            Ok(())
        })?;
    }
    let typed = |(name, seen, guess): (String, Vec<Type>, Guess)| Ok((name, common(&seen)?, guess));
    let columns: Vec<(String, Type, Guess)> = columns.into_iter().map(typed).collect::<Result<_>>()?;
    if let Some((name, ..)) = columns.iter().find(|(_, ty, guess)| guess.inexact && *ty == Type::Float64) {
        return Err(inexact(name));
    }
    let field = |(name, ty, guess): &(String, Type, Guess)| match guess.data_type() {
        temporal @ (DataType::Date32 | DataType::Timestamp(..)) if *ty == Type::Text => Field::new(name, temporal, true),
        _ => Field::new(name, physical(ty), true),
    };
    let complete = columns.iter().map(|(_, _, guess)| guess.values == rows).collect();
    Ok(Inferred { schema: Schema::new(columns.iter().map(field).collect::<Vec<_>>()), complete })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(text: &str) -> String {
        let mut out = String::new();
        MarkNulls::new(text.as_bytes(), b',').read_to_string(&mut out).expect("reads");
        out.replace("\x1a\x00\x1a", "NULL")
    }

    #[test]
    fn unquoted_empty_fields_are_null_and_quoted_ones_are_not() {
        assert_eq!(marked("a,b\n,\"\"\n1,\n"), "a,b\nNULL,\"\"\n1,NULL\n");
        assert_eq!(marked("a,b\n1,"), "a,b\n1,NULL");
        assert_eq!(marked("a,b\r\n,x\r\n\r\n"), "a,b\r\nNULL,x\r\n\r\n");
        assert_eq!(marked("\u{feff}a\n\"x,,\"\"y\"\n"), "a\n\"x,,\"\"y\"\n");
        // However it comes in pieces.
        let text = "a,b,c\r\n\"x,\"\",\",,\"\"\n\n,12,\"\n,\"\r\r\n,,3";
        for size in 1..text.len() {
            let mut out = String::new();
            let pieces = std::io::BufReader::with_capacity(size, text.as_bytes());
            MarkNulls::new(pieces, b',').read_to_string(&mut out).expect("reads");
            let wanted = "a,b,c\r\n\"x,\"\",\",NULL,\"\"\n\nNULL,12,\"\n,\"\r\r\nNULL,NULL,3";
            assert_eq!(out.replace("\x1a\x00\x1a", "NULL"), wanted, "{size}");
        }
    }

    #[test]
    fn csv_types_are_those_of_all_rows() {
        let guess = |fields: &[&str]| {
            let mut guess = Guess::NEW;
            fields.iter().for_each(|f| guess.see(f));
            guess.data_type()
        };
        assert_eq!(guess(&["1", "-2"]), DataType::Int64);
        assert_eq!(guess(&["-0", "0"]), DataType::Int64);
        assert_eq!(guess(&["-1", "18446744073709551615"]), DataType::Float64);
        assert_eq!(guess(&["1", "2024-02-29"]), DataType::Utf8);
        assert_eq!(guess(&["1", "true"]), DataType::Utf8);
        assert_eq!(guess(&["true", "1"]), DataType::Utf8);
        assert_eq!(guess(&["x", "1"]), DataType::Utf8);
        assert_eq!(guess(&["1", "2.5"]), DataType::Float64);
        assert_eq!(guess(&["01234"]), DataType::Utf8);
        assert_eq!(guess(&["NaN"]), DataType::Utf8);
        assert_eq!(guess(&["NaN", "1"]), DataType::Float64);
        assert_eq!(guess(&["18446744073709551615"]), DataType::UInt64);
        assert_eq!(guess(&["true", "FALSE"]), DataType::Boolean);
        assert_eq!(guess(&["2024-02-29"]), DataType::Date32);
        assert_eq!(guess(&["2023-02-29"]), DataType::Utf8);
        assert_eq!(guess(&["2024-01-01T00:00:00"]), DataType::Timestamp(TimeUnit::Microsecond, None));
        assert_eq!(guess(&["2024-01-01T00:00:00Z"]), DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())));
        assert_eq!(guess(&["2024-01-01", "2024-01-01T00:00:00"]), DataType::Utf8);
        assert_eq!(guess(&["2024-01-01T00:00:00", "2024-01-01T00:00:00Z"]), DataType::Utf8);
        assert_eq!(guess(&["2024-01-01T00:00:00Z", "2024-01-01T00:00:00"]), DataType::Utf8);
        assert_eq!(guess(&["2024-01-01T00:00:00Z", "2024-01-01T00:00:00", "2024-01-01T00:00:00Z"]), DataType::Utf8);
        assert_eq!(guess(&["1", "x"]), DataType::Utf8);
        assert_eq!(guess(&[]), DataType::Null);
    }
}
