//! COPY through the connection: rows come and go as lines of text or as CSV, as `\copy` of psql and loaders write and read them.

use super::login::check_admitted;
use super::postgres::{Service, refused, told};
use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use crate::prepare::{Prepared, touched};
use crate::spool::Spool;
use crate::text_files::{MarkNulls, NULL_MARK};
use arrow::array::{Array, ArrayRef, BinaryArray, RecordBatch, StringArray, StringBuilder};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use datafusion::common::TableReference;
use datafusion::sql::sqlparser::ast::{self as sql, CopyLegacyCsvOption, CopyLegacyOption, CopyOption};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use datafusion_postgres::pgwire::api::copy::CopyHandler;
use datafusion_postgres::pgwire::api::results::{Response, Tag};
use datafusion_postgres::pgwire::api::{ClientInfo, results::CopyResponse};
use datafusion_postgres::pgwire::error::{PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::PgWireBackendMessage;
use datafusion_postgres::pgwire::messages::copy::{CopyData, CopyDone, CopyFail, CopyOutResponse};
use datafusion_postgres::pgwire::messages::data::DataRow;
use futures::{Sink, SinkExt, StreamExt};
use mergeql_lang::lower::{DELETED, STATE, quote};
use mergeql_udfs::Code;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Seek, Write};
use std::sync::{Arc, PoisonError};

/// Rows that become a batch.
const BATCH: usize = 8192;

/// Bytes of texts that are held before they become values.
const MOST_HELD: usize = 16 << 20;

/// How rows are written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layout {
    csv: bool,
    delimiter: u8,
    null: String,
    header: bool,
}

/// A COPY through the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copy {
    what: What,
    layout: Layout,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    /// Rows into a table, or into some of its columns.
    In(String, Vec<sql::Ident>),
    /// The rows of a query.
    Out(String),
}

const OPTIONS: &str = "COPY t FROM STDIN or COPY (query) TO STDOUT, WITH (FORMAT csv or text, HEADER, DELIMITER, NULL)";

fn unsupported(what: &str) -> MergeError {
    MergeError::new(Code::Unsupported, format!("COPY through the connection has no {what}")).help(OPTIONS)
}

/// The statement, if it is a COPY through the connection.
pub(super) fn parsed(text: &str) -> Option<Result<Copy>> {
    let words: Vec<String> = text.split(|c: char| !c.is_alphanumeric()).map(str::to_ascii_uppercase).collect();
    let copies = words.iter().find(|word| !word.is_empty()).is_some_and(|word| word == "COPY");
    let through = words.windows(2).any(|w| matches!((&*w[0], &*w[1]), ("FROM", "STDIN") | ("TO", "STDOUT")));
    (copies && through).then(|| read(text).transpose()).flatten()
}

fn read(text: &str) -> Result<Option<Copy>> {
    let invalid = |e: &dyn std::fmt::Display| MergeError::new(Code::Syntax, e.to_string());
    // The query may be a MERGE, which only our own parser knows: a name stands for it.
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).with_unescape(false).tokenize().map_err(|e| invalid(&e))?;
    let seen = |token: &&Token| !matches!(token, Token::Whitespace(_));
    let (query, text) = match tokens.iter().filter(seen).nth(1) {
        Some(Token::LParen) => {
            let begin = tokens.iter().position(|t| *t == Token::LParen).unwrap_or(0);
            let mut depth = 0;
            let end = tokens.iter().position(|token| {
                depth += i32::from(*token == Token::LParen) - i32::from(*token == Token::RParen);
                *token == Token::RParen && depth == 0
            });
            let end = end.ok_or_else(|| MergeError::new(Code::Syntax, "the parenthesis of COPY ( does not end"))?;
            let written = |tokens: &[Token]| tokens.iter().map(ToString::to_string).collect::<String>();
            (Some(written(&tokens[begin + 1..end])), format!("COPY query {}", written(&tokens[end + 1..])))
        }
        _ => (None, text.trim_end().trim_end_matches(';').to_owned()),
    };
    let options = |e| invalid(&e).help(OPTIONS);
    let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(&text).map_err(options)?;
    let statement = parser.parse_statement().map_err(options)?;
    let sql::Statement::Copy { source, to, target, options, legacy_options, .. } = statement else { return Ok(None) };
    if !matches!(target, sql::CopyTarget::Stdin | sql::CopyTarget::Stdout) {
        return Ok(None);
    }
    let layout = layout(&options, &legacy_options)?;
    let what = match (source, query) {
        (_, Some(query)) if to => What::Out(query),
        (sql::CopySource::Table { table_name, columns }, None) if to => {
            let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
            let columns = if columns.is_empty() { "*".to_owned() } else { columns.join(", ") };
            What::Out(format!("SELECT {columns} FROM {table_name}"))
        }
        (sql::CopySource::Table { table_name, columns }, None) => What::In(table_name.to_string(), columns),
        _ => return Err(MergeError::new(Code::Syntax, "rows are copied from a query to STDOUT, and from STDIN into a table")),
    };
    Ok(Some(Copy { what, layout }))
}

fn layout(options: &[CopyOption], legacy: &[CopyLegacyOption]) -> Result<Layout> {
    let (mut csv, mut delimiter, mut null, mut header) = (false, None, None, false);
    let usual_quote = |quote: char, what: &str| match quote {
        '"' => Ok(()),
        _ => Err(unsupported(&format!("{what} other than \""))),
    };
    for option in options {
        match option {
            CopyOption::Format(name) if name.value.eq_ignore_ascii_case("csv") => csv = true,
            CopyOption::Format(name) if name.value.eq_ignore_ascii_case("text") => {}
            CopyOption::Format(name) => return Err(unsupported(&format!("FORMAT {name}"))),
            CopyOption::Delimiter(c) => delimiter = Some(*c),
            CopyOption::Null(text) => null = Some(text.clone()),
            CopyOption::Header(given) => header = *given,
            CopyOption::Quote(quote) => usual_quote(*quote, "QUOTE")?,
            CopyOption::Escape(quote) => usual_quote(*quote, "ESCAPE")?,
            CopyOption::Encoding(name) if matches!(&*name.to_ascii_lowercase(), "utf8" | "utf-8" | "unicode") => {}
            CopyOption::Freeze(_) => {}
            other => return Err(unsupported(&other.to_string())),
        }
    }
    for option in legacy {
        match option {
            CopyLegacyOption::Delimiter(c) => delimiter = Some(*c),
            CopyLegacyOption::Null(text) => null = Some(text.clone()),
            CopyLegacyOption::Header => header = true,
            CopyLegacyOption::Csv(options) => {
                csv = true;
                for option in options {
                    match option {
                        CopyLegacyCsvOption::Header => header = true,
                        CopyLegacyCsvOption::Quote(quote) => usual_quote(*quote, "QUOTE")?,
                        CopyLegacyCsvOption::Escape(quote) => usual_quote(*quote, "ESCAPE")?,
                        other => return Err(unsupported(&other.to_string())),
                    }
                }
            }
            other => return Err(unsupported(&other.to_string())),
        }
    }
    let delimiter = delimiter.unwrap_or(if csv { ',' } else { '\t' });
    let single = u8::try_from(delimiter).ok().filter(|d| d.is_ascii() && !matches!(d, b'"' | b'\\' | b'\n' | b'\r'));
    let delimiter = single.ok_or_else(|| unsupported(&format!("DELIMITER '{delimiter}'")))?;
    let null = null.unwrap_or_else(|| if csv { String::new() } else { "\\N".to_owned() });
    Ok(Layout { csv, delimiter, null, header })
}

// Rows that come.

/// What a client is sending.
pub(super) struct Receiving {
    table: String,
    fields: Vec<Field>,
    layout: Layout,
    file: BufWriter<File>,
    /// Why the bytes could not be kept: it is told when the client has sent all.
    failed: Option<std::io::Error>,
}

impl Receiving {
    async fn begin(context: &MergeContext, table: String, columns: &[sql::Ident], layout: Layout) -> Result<Receiving> {
        context.check_writable()?;
        context.refresh().await?;
        let reference = TableReference::parse_str(&table);
        let missing = |e| MergeError::new(Code::UnknownSource, format!("there is no table `{table}`: {e}"));
        let schema = context.session().table_provider(reference).await.map_err(missing)?.schema();
        let all = schema.fields().iter().filter(|f| f.name() != STATE && f.name() != DELETED);
        let fields: Vec<Field> = match columns {
            [] => all.map(|f| f.as_ref().clone()).collect(),
            columns => columns
                .iter()
                .map(|c| {
                    let name = if c.quote_style.is_some() { c.value.clone() } else { c.value.to_ascii_lowercase() };
                    let unknown = || MergeError::new(Code::UnknownColumn, format!("`{table}` has no column `{name}`"));
                    all.clone().find(|f| *f.name() == name).map(|f| f.as_ref().clone()).ok_or_else(unknown)
                })
                .collect::<Result<_>>()?,
        };
        if let Some(nested) = fields.iter().find(|f| f.data_type().is_nested()) {
            let message = format!("the column `{}` has values of parts, which are not copied", nested.name());
            return Err(MergeError::new(Code::Unsupported, message).help("INSERT takes them; so does Arrow Flight SQL"));
        }
        Ok(Receiving { table, fields, layout, file: BufWriter::new(tempfile::tempfile()?), failed: None })
    }

    /// Reads what came, as rows of the types that the table has.
    fn rows(self) -> Result<(String, Vec<Field>, Spool)> {
        let Receiving { table, fields, layout, file, failed } = self;
        failed.map_or(Ok(()), Err)?;
        let mut file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.rewind()?;
        let schema = Arc::new(Schema::new(fields.iter().map(|f| f.clone().with_nullable(true)).collect::<Vec<_>>()));
        let mut rows =
            Rows { lines: Vec::new(), columns: fields.iter().map(|_| StringBuilder::new()).collect(), spool: Spool::new(schema) };
        let file = BufReader::with_capacity(1 << 18, file);
        match layout.csv {
            true => csv_rows(file, &layout, &mut rows)?,
            false => text_rows(file, &layout, &mut rows)?,
        }
        rows.flush()?;
        Ok((table, fields, rows.spool))
    }
}

fn bad_line(line: u64, message: impl std::fmt::Display) -> MergeError {
    MergeError::new(Code::InvalidArgument, format!("line {line} of what was copied: {message}"))
        .help("nothing was put into the table")
}

/// Rows as texts, which become batches.
struct Rows {
    lines: Vec<u64>,
    columns: Vec<StringBuilder>,
    spool: Spool,
}

impl Rows {
    fn push<'f>(
        &mut self,
        line: u64,
        fields: impl ExactSizeIterator<Item = Result<Option<std::borrow::Cow<'f, str>>>>,
    ) -> Result<()> {
        if fields.len() != self.columns.len() {
            return Err(bad_line(line, format!("{} fields for {} columns", fields.len(), self.columns.len())));
        }
        for (column, field) in self.columns.iter_mut().zip(fields) {
            column.append_option(field?);
        }
        self.lines.push(line);
        let held: usize = self.columns.iter().map(|texts| texts.values_slice().len()).sum();
        if self.lines.len() == BATCH || held >= MOST_HELD { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let schema = self.spool.schema().clone();
        let typed = self.columns.iter_mut().zip(schema.fields());
        let typed = typed.map(|(texts, field)| typed_column(&texts.finish(), field, &self.lines)).collect::<Result<Vec<_>>>()?;
        if !self.lines.is_empty() {
            self.spool.push(RecordBatch::try_new(schema, typed)?)?;
        }
        self.lines.clear();
        Ok(())
    }
}

/// Texts as values of a column's type.
fn typed_column(texts: &StringArray, field: &Field, lines: &[u64]) -> Result<ArrayRef> {
    let bad = |row: usize| {
        bad_line(lines[row], format!("{:?} is no {} for the column `{}`", texts.value(row), field.data_type(), field.name()))
    };
    let hex = |row: usize| match texts.is_null(row) {
        true => Ok(None),
        false => texts.value(row).strip_prefix("\\x").and_then(unhex).map(Some).ok_or_else(|| bad(row)),
    };
    let typed = match field.data_type() {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            let bytes = (0..texts.len()).map(hex).collect::<Result<BinaryArray>>()?;
            arrow::compute::cast(&bytes, field.data_type())?
        }
        ty => cast_with_options(texts, ty, &CastOptions { safe: true, ..CastOptions::default() })?,
    };
    match (0..texts.len()).find(|row| typed.is_null(*row) && !texts.is_null(*row)) {
        Some(row) => Err(bad(row)),
        None => Ok(typed),
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let pairs = text.as_bytes().chunks(2).map(|pair| Some((digit(pair[0])? * 16 + digit(*pair.get(1)?)?) as u8));
    pairs.collect()
}

/// An unquoted empty field is NULL and `""` is not; another text for NULL is one with quotes and without.
fn csv_rows(file: impl BufRead, layout: &Layout, rows: &mut Rows) -> Result<()> {
    let mut builder = csv::ReaderBuilder::new();
    builder.delimiter(layout.delimiter).has_headers(layout.header).flexible(true);
    let marked = MarkNulls::new(file, layout.delimiter);
    let mut reader = builder.from_reader(if rows.columns.len() == 1 { marked.of_one_column() } else { marked });
    let mut record = csv::ByteRecord::new();
    loop {
        let (line, from) = (reader.position().line(), reader.position().byte());
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(e) => return Err(bad_line(line, e)),
        }
        let line = record.position().map_or(line, csv::Position::line);
        // In quotes it is a value; the reader says of that only how long the line was.
        let length = reader.position().byte() - from;
        if record.len() == 1 && &record[0] == b"\\." && (rows.columns.len() > 1 || length <= 4) {
            return Ok(());
        }
        rows.push(
            line,
            record.iter().map(|field| match field {
                NULL_MARK if layout.null.is_empty() => Ok(None),
                NULL_MARK => Ok(Some("".into())),
                field => {
                    let text = std::str::from_utf8(field).map_err(|_| bad_line(line, "it is not UTF-8"))?;
                    Ok((layout.null.is_empty() || text != layout.null).then(|| text.into()))
                }
            }),
        )?;
    }
}

/// Fields between delimiters, in which a backslash begins what would end one.
fn text_rows(mut file: impl BufRead, layout: &Layout, rows: &mut Rows) -> Result<()> {
    let (mut bytes, mut line) = (Vec::new(), 0);
    loop {
        bytes.clear();
        line += 1;
        let first = line;
        // A line feed behind a backslash is one of the text.
        while file.read_until(b'\n', &mut bytes)? > 0 {
            let behind = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            if !bytes.ends_with(b"\n") || behind.iter().rev().take_while(|b| **b == b'\\').count() % 2 == 0 {
                break;
            }
            line += 1;
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| bad_line(first, "it is not UTF-8"))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text == "\\." {
            return Ok(());
        }
        if layout.header && first == 1 {
            continue;
        }
        let fields = split(text, char::from(layout.delimiter));
        rows.push(
            first,
            fields.into_iter().map(|field| match field == layout.null {
                true => Ok(None),
                false => unescaped(field).map(Some).ok_or_else(|| bad_line(first, "the bytes of a field are not UTF-8")),
            }),
        )?;
    }
}

fn split(text: &str, delimiter: char) -> Vec<&str> {
    let mut escaped = false;
    text.split(|c| {
        let ends = c == delimiter && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })
    .collect()
}

fn unescaped(field: &str) -> Option<std::borrow::Cow<'_, str>> {
    if !field.contains('\\') {
        return Some(field.into());
    }
    let (mut out, mut rest) = (Vec::with_capacity(field.len()), field.as_bytes());
    while let [first, more @ ..] = rest {
        rest = more;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let digits = |bytes: &[u8], radix: u32, most: usize| {
            let count = bytes.iter().take(most).take_while(|b| char::from(**b).is_digit(radix)).count();
            let number = std::str::from_utf8(&bytes[..count]).ok().and_then(|text| u32::from_str_radix(text, radix).ok());
            number.map(|n| (n as u8, count))
        };
        let (byte, length) = match rest {
            [] => (b'\\', 0),
            [b'b', ..] => (8, 1),
            [b'f', ..] => (12, 1),
            [b'n', ..] => (b'\n', 1),
            [b'r', ..] => (b'\r', 1),
            [b't', ..] => (b'\t', 1),
            [b'v', ..] => (11, 1),
            [b'x', more @ ..] => digits(more, 16, 2).map_or((b'x', 1), |(byte, count)| (byte, count + 1)),
            [b'0'..=b'7', ..] => digits(rest, 8, 3).unwrap_or((rest[0], 1)),
            [other, ..] => (*other, 1),
        };
        out.push(byte);
        rest = &rest[length..];
    }
    String::from_utf8(out).ok().map(Into::into)
}

// Rows that go.

impl Layout {
    /// Writes a row as one line.
    fn line<'f>(&self, fields: impl Iterator<Item = Option<&'f [u8]>>, line: &mut Vec<u8>) {
        for (at, field) in fields.enumerate() {
            if at > 0 {
                line.push(self.delimiter);
            }
            match field {
                None => line.extend(self.null.as_bytes()),
                Some(text) if self.csv => self.csv_field(text, line),
                Some(text) => text.iter().for_each(|byte| match byte {
                    b'\n' => line.extend(b"\\n"),
                    b'\r' => line.extend(b"\\r"),
                    b'\t' => line.extend(b"\\t"),
                    byte if *byte == b'\\' || *byte == self.delimiter => line.extend([b'\\', *byte]),
                    byte => line.push(*byte),
                }),
            }
        }
        line.push(b'\n');
    }

    fn csv_field(&self, text: &[u8], line: &mut Vec<u8>) {
        let special = |byte: &u8| *byte == self.delimiter || matches!(byte, b'"' | b'\n' | b'\r');
        if text != self.null.as_bytes() && text != b"\\." && !text.iter().any(special) {
            return line.extend(text);
        }
        line.push(b'"');
        for byte in text {
            line.extend(std::iter::repeat_n(*byte, if *byte == b'"' { 2 } else { 1 }));
        }
        line.push(b'"');
    }
}

/// The fields of a row of the protocol: a length each, then the bytes.
fn fields_of(row: &DataRow) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = &row.data[..];
    std::iter::from_fn(move || {
        let (length, more) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(i32::from_be_bytes(*length)).ok();
        let (field, after) = more.split_at_checked(length.unwrap_or(0))?;
        rest = after;
        Some(length.map(|_| field))
    })
}

impl Service {
    /// Begins to take rows, or sends all of a query's.
    pub(super) async fn copy<C>(&self, client: &mut C, copy: Copy) -> PgWireResult<Response>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match copy.what {
            What::In(table, columns) => {
                let receiving = Receiving::begin(&self.context, table, &columns, copy.layout).await.map_err(|e| told(&e, ""))?;
                let columns = receiving.fields.len();
                *self.receiving.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiving);
                Ok(Response::CopyIn(CopyResponse::new(0, columns, futures::stream::empty())))
            }
            What::Out(query) => self.send(client, &query, &copy.layout).await,
        }
    }

    async fn send<C>(&self, client: &mut C, query: &str, layout: &Layout) -> PgWireResult<Response>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let mut rows = self.query(client, query).await.map_err(|e| told(&e, ""))?;
        let names: Vec<String> = rows.row_schema().iter().map(|field| field.name().to_owned()).collect();
        let response = CopyOutResponse::new(0, names.len() as i16, vec![0; names.len()]);
        client.send(PgWireBackendMessage::CopyOutResponse(response)).await?;
        let (mut line, mut count) = (Vec::new(), 0);
        if layout.header {
            layout.line(names.iter().map(|name| Some(name.as_bytes())), &mut line);
        }
        while let Some(row) = rows.data_rows().next().await {
            layout.line(fields_of(&row?), &mut line);
            client.feed(PgWireBackendMessage::CopyData(CopyData::new(std::mem::take(&mut line).into()))).await?;
            count += 1;
        }
        if !line.is_empty() {
            client.feed(PgWireBackendMessage::CopyData(CopyData::new(line.into()))).await?;
        }
        client.send(PgWireBackendMessage::CopyDone(CopyDone::new())).await?;
        Ok(Response::Execution(Tag::new("COPY").with_rows(count)))
    }

    async fn put(&self, receiving: Receiving, timeout: Option<std::time::Duration>) -> Result<usize> {
        let turn = self.limits.turn(timeout).await?;
        let context = self.context.clone();
        let put = async move {
            let (table, fields, spool) =
                tokio::task::spawn_blocking(|| receiving.rows()).await.map_err(|e| MergeError::new(Code::Io, e.to_string()))??;
            let passing = context.shared.names.pass("copied", Arc::new(spool.table()?));
            let columns = fields.iter().map(|f| quote(f.name())).collect::<Vec<_>>().join(", ");
            let text = format!("INSERT INTO {table} ({columns}) SELECT {columns} FROM {}", passing.name);
            match context.prepare(&text).await? {
                Prepared::Command { .. } => Ok(touched(&context.sql(&text).await?.collect().await?).unwrap_or(0) as usize),
                Prepared::Query(_) => Ok(0),
            }
        };
        turn.run(put).await
    }
}

/// Takes the rows of a connection.
pub(super) struct Copies(pub(super) Arc<Service>);

impl Copies {
    fn receiving(&self) -> std::sync::MutexGuard<'_, Option<Receiving>> {
        self.0.receiving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CopyHandler for Copies {
    async fn on_copy_data<C>(&self, client: &mut C, data: CopyData) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        check_admitted(client)?;
        if let Some(receiving) = self.receiving().as_mut().filter(|r| r.failed.is_none()) {
            receiving.failed = receiving.file.write_all(&data.data).err();
        }
        Ok(())
    }

    async fn on_copy_done<C>(&self, client: &mut C, _: CopyDone) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        check_admitted(client)?;
        let receiving = self.receiving().take();
        let receiving = receiving.ok_or_else(|| refused("08P01", "there is no COPY whose rows these could be"))?;
        let rows = self.0.put(receiving, super::postgres::timeout(client)).await.map_err(|e| told(&e, ""))?;
        client.send(PgWireBackendMessage::CommandComplete(Tag::new("COPY").with_rows(rows).into())).await?;
        Ok(())
    }

    async fn on_copy_fail<C>(&self, _: &mut C, fail: CopyFail) -> PgWireError
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        *self.receiving() = None;
        refused("57014", &format!("COPY from STDIN failed: {}", fail.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (What, Layout) {
        let copy = parsed(text).expect("a COPY through the connection").expect("a lawful one");
        (copy.what, copy.layout)
    }

    #[test]
    fn statements_are_read() {
        let (what, layout) = of("copy t from stdin");
        assert_eq!(what, What::In("t".into(), vec![]));
        assert_eq!(layout, Layout { csv: false, delimiter: b'\t', null: "\\N".into(), header: false });
        let (what, layout) = of("COPY \"A b\" (x, \"Y\") FROM STDIN WITH (FORMAT csv, HEADER, DELIMITER ';', NULL 'NA');");
        assert!(matches!(what, What::In(table, columns) if table == "\"A b\"" && columns.len() == 2));
        assert_eq!(layout, Layout { csv: true, delimiter: b';', null: "NA".into(), header: true });
        let (what, layout) = of("COPY (MERGE a, (SELECT ')' AS \"(\") AS b ON id STRATEGY v = max) TO STDOUT CSV HEADER");
        assert_eq!(what, What::Out("MERGE a, (SELECT ')' AS \"(\") AS b ON id STRATEGY v = max".into()));
        assert!(layout.csv && layout.header);
        assert_eq!(of("COPY t (a) TO STDOUT").0, What::Out("SELECT a FROM t".into()));
        for other in ["COPY t TO 'stdout.csv'", "SELECT 'COPY t FROM STDIN'", "COPY (SELECT 1) TO 'from stdin.csv'"] {
            assert_eq!(parsed(other).map(|copy| copy.map_err(|e| e.to_string())), None, "{other}");
        }
        for bad in ["COPY t FROM STDIN WITH (FORMAT binary)", "COPY (SELECT 1 TO STDOUT", "COPY t FROM STDIN CSV QUOTE ''''"] {
            assert!(parsed(bad).is_some_and(|copy| copy.is_err()), "{bad}");
        }
        // What the parser does not know is told with what there is.
        for bad in ["HEADER MATCH", "FORCE_QUOTE *", "ON_ERROR ignore", "DEFAULT 'x'"] {
            let error = parsed(&format!("COPY t FROM STDIN WITH (FORMAT csv, {bad})")).expect("a COPY").expect_err(bad);
            assert!(error.diagnostic.help.is_some(), "{bad}: {error}");
        }
    }

    #[test]
    fn fields_come_back_as_they_went() {
        let values = [None, Some(""), Some("\\N"), Some("NA"), Some("a,b;\tc"), Some("say \"hi\"\r\n\\"), Some("\\."), Some("ä")];
        for csv in [true, false] {
            for (delimiter, null) in [(b'\t', "\\N"), (b',', ""), (b';', "NA")] {
                let layout = Layout { csv, delimiter, null: null.into(), header: true };
                // What is the word for NULL is NULL in text, whatever it was: escaped it is not.
                let lost = |v: Option<&str>| v.is_some_and(|v| v == null) && (!csv || !null.is_empty());
                let values: Vec<Option<&str>> = values.into_iter().filter(|v| !lost(*v)).collect();
                let mut written = Vec::new();
                layout.line(values.iter().map(|_| Some(b"name".as_slice())), &mut written);
                layout.line(values.iter().map(|v| v.map(str::as_bytes)), &mut written);
                let fields: Vec<Field> = (0..values.len()).map(|i| Field::new(format!("c{i}"), DataType::Utf8, true)).collect();
                let mut file = BufWriter::new(tempfile::tempfile().expect("a file"));
                file.write_all(&written).expect("written");
                let (_, _, spool) = Receiving { table: "t".into(), fields, layout, file, failed: None }.rows().expect("rows");
                assert_eq!(spool.rows(), 1);
                let back = futures::executor::block_on(spool.read().expect("a stream").next()).expect("a batch").expect("rows");
                let back: Vec<Option<String>> = back
                    .columns()
                    .iter()
                    .map(|c| c.is_valid(0).then(|| arrow::array::AsArray::as_string::<i32>(c).value(0).to_owned()))
                    .collect();
                assert_eq!(
                    back,
                    values.iter().map(|v| v.map(str::to_owned)).collect::<Vec<_>>(),
                    "{}",
                    String::from_utf8_lossy(&written)
                );
            }
        }
    }

    #[test]
    fn nothing_on_a_line_is_a_null_where_there_is_one_column() {
        for text in ["a\n\nb\n", "a\r\n\r\nb", "a\n\nb\n\\.\n", "a\r\n\r\nb\r\n\\.\r\n", "a\n\"\\.\"\nb\n"] {
            let layout = Layout { csv: true, delimiter: b',', null: String::new(), header: false };
            let mut file = BufWriter::new(tempfile::tempfile().expect("a file"));
            file.write_all(text.as_bytes()).expect("written");
            let fields = vec![Field::new("a", DataType::Utf8, true)];
            let (_, _, spool) = Receiving { table: "t".into(), fields, layout, file, failed: None }.rows().expect("rows");
            assert_eq!(spool.rows(), 3, "{text:?}");
        }
    }

    #[test]
    fn text_has_its_escapes() {
        assert_eq!(unescaped("a\\tb\\x41\\101\\\\\\q\\").expect("a text"), "a\tbAA\\q\\");
        assert_eq!(split("a\\|b|c\\\\|", '|'), ["a\\|b", "c\\\\", ""]);
        assert_eq!(unescaped("\\xff"), None);
    }
}
