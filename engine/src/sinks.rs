//! Results as files: written beside the target under a temporary name, synced, then renamed, so that a file appears whole or not at
//! all.

use crate::columns::lean;
use crate::error::{MergeError, Result};
use crate::sources::Format;
use crate::text_files::{Layout, io};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{BatchCoalescer, cast};
use arrow::datatypes::{DataType, Field, IntervalUnit, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::runtime::SpawnedTask;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::common::spawn_buffered;
use futures::StreamExt;
use mergeql_udfs::Code;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{
    ArrowColumnChunk, ArrowColumnWriter, ArrowLeafColumn, ArrowRowGroupWriterFactory, compute_leaves,
};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{DEFAULT_MAX_ROW_GROUP_ROW_COUNT, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// How rows are sorted in what is written: the first columns, ascending, NULLs first.
pub type SortedBy = Option<usize>;

/// Delimited text that keeps what reading tells apart: NULL is nothing between two delimiters, empty text is `""`.
struct Delimited<W> {
    out: W,
    delimiter: char,
    /// Written before the first row, then taken.
    header: bool,
}

impl<W: Write> Delimited<W> {
    fn field(&self, line: &mut String, text: &str) {
        let special = |c: char| c == self.delimiter || matches!(c, '"' | '\n' | '\r');
        if text.is_empty() || text.contains(special) || text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace)
        {
            line.push('"');
            line.push_str(&text.replace('"', "\"\""));
            line.push('"');
        } else {
            line.push_str(text);
        }
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut lines = String::new();
        if std::mem::take(&mut self.header) {
            for (i, field) in batch.schema().fields().iter().enumerate() {
                if i > 0 {
                    lines.push(self.delimiter);
                }
                self.field(&mut lines, field.name());
            }
            lines.push('\n');
        }
        let options = FormatOptions::default();
        // A column of nothing but NULL says of no row that it is NULL there.
        let columns = batch.columns().iter().map(|c| Ok((c.logical_nulls(), ArrayFormatter::try_new(c.as_ref(), &options)?)));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let mut text = String::new();
        for row in 0..batch.num_rows() {
            for (i, (nulls, formatter)) in columns.iter().enumerate() {
                if i > 0 {
                    lines.push(self.delimiter);
                }
                if !nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                    text.clear();
                    formatter.value(row).write(&mut text).map_err(|e| MergeError::new(Code::Io, format!("{e:?}")))?;
                    self.field(&mut lines, &text);
                }
            }
            lines.push('\n');
        }
        self.out.write_all(lines.as_bytes())?;
        Ok(())
    }
}

/// A Parquet file whose columns are encoded side by side, each by a task of its own. Its bytes do not depend on who is faster.
struct ParquetFile<W: Write + Send> {
    file: SerializedFileWriter<W>,
    columns: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    group: Option<RowGroup>,
}

/// What a task makes of a leaf of a row group.
type Encoded = Result<ArrowColumnChunk, ParquetError>;

/// A row group that is being encoded.
struct RowGroup {
    /// Its leaves: a column of lists or rows has several.
    leaves: Vec<(Sender<ArrowLeafColumn>, SpawnedTask<Encoded>)>,
    rows: usize,
    bytes: usize,
}

impl RowGroup {
    /// Bytes of values that a row group has at least before it ends for them: until then it is encoded in memory.
    const BYTES: usize = 256 << 20;
    /// Rows after which they are looked at, so that a file is cut in the same places whatever batches its rows came in.
    const STEP: usize = 8192;

    fn is_full(&self) -> bool {
        self.rows == DEFAULT_MAX_ROW_GROUP_ROW_COUNT || self.rows.is_multiple_of(Self::STEP) && self.bytes >= Self::BYTES
    }
}

/// The bytes of the values of a column: the same however its rows are split, added up.
fn value_bytes(column: &dyn Array) -> usize {
    let spread = |offsets: &[i32]| (offsets[offsets.len() - 1] - offsets[0]) as usize;
    match column.data_type() {
        DataType::Utf8 => spread(column.as_string::<i32>().value_offsets()),
        DataType::Binary => spread(column.as_binary::<i32>().value_offsets()),
        DataType::Utf8View => column.as_string_view().lengths().map(|n| n as usize).sum(),
        DataType::BinaryView => column.as_binary_view().lengths().map(|n| n as usize).sum(),
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            let (from, n) = (list.value_offsets()[0] as usize, spread(list.value_offsets()));
            value_bytes(&list.values().slice(from, n))
        }
        DataType::Map(..) => {
            let map = column.as_map();
            let (from, n) = (map.value_offsets()[0] as usize, spread(map.value_offsets()));
            value_bytes(&map.entries().slice(from, n))
        }
        DataType::Struct(_) => column.as_struct().columns().iter().map(|c| value_bytes(c)).sum(),
        ty => column.len() * ty.primitive_width().unwrap_or(8),
    }
}

impl RowGroup {
    fn new(writers: Vec<ArrowColumnWriter>) -> RowGroup {
        async fn encode(mut writer: ArrowColumnWriter, mut leaves: Receiver<ArrowLeafColumn>) -> Encoded {
            while let Some(leaf) = leaves.recv().await {
                writer.write(&leaf)?;
            }
            writer.close()
        }
        let leaf = |writer| {
            let (sender, leaves) = channel(4);
            (sender, SpawnedTask::spawn(encode(writer, leaves)))
        };
        RowGroup { leaves: writers.into_iter().map(leaf).collect(), rows: 0, bytes: 0 }
    }
}

impl<W: Write + Send> ParquetFile<W> {
    fn new(out: W, schema: &SchemaRef, properties: WriterProperties) -> Result<ParquetFile<W>> {
        let writer = ArrowWriter::try_new(out, schema.clone(), Some(properties)).map_err(parquet_error)?;
        let (file, columns) = writer.into_serialized_writer().map_err(parquet_error)?;
        Ok(ParquetFile { file, columns, schema: schema.clone(), group: None })
    }

    async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut at = 0;
        while at < batch.num_rows() {
            if self.group.is_none() {
                let group = self.file.flushed_row_groups().len();
                self.group = Some(RowGroup::new(self.columns.create_column_writers(group).map_err(parquet_error)?));
            }
            let Some(group) = &mut self.group else { break };
            let n = (RowGroup::STEP - group.rows % RowGroup::STEP).min(batch.num_rows() - at);
            let part = batch.slice(at, n);
            let mut writers = group.leaves.iter();
            for (field, column) in self.schema.fields().iter().zip(part.columns()) {
                for leaf in compute_leaves(field, column).map_err(parquet_error)? {
                    // A column that failed takes no more: its error is heard when the group ends.
                    if let Some((sender, _)) = writers.next() {
                        sender.send(leaf).await.ok();
                    }
                }
            }
            group.rows += n;
            group.bytes += part.columns().iter().map(|c| value_bytes(c)).sum::<usize>();
            at += n;
            if group.is_full() {
                self.end_group().await?;
            }
        }
        Ok(())
    }

    async fn end_group(&mut self) -> Result<()> {
        let Some(group) = self.group.take() else { return Ok(()) };
        let (senders, tasks): (Vec<_>, Vec<_>) = group.leaves.into_iter().unzip();
        drop(senders);
        let mut row_group = self.file.next_row_group().map_err(parquet_error)?;
        for task in tasks {
            let chunk = task.join_unwind().await.map_err(|e| MergeError::new(Code::Io, e.to_string()))?;
            chunk.and_then(|chunk| chunk.append_to_row_group(&mut row_group)).map_err(parquet_error)?;
        }
        row_group.close().map_err(parquet_error)?;
        Ok(())
    }

    async fn finish(mut self) -> Result<W> {
        self.end_group().await?;
        self.file.into_inner().map_err(parquet_error)
    }
}

enum Writer<W: Write + Send> {
    Csv(Delimited<W>),
    Ndjson(arrow::json::LineDelimitedWriter<W>),
    Json(arrow::json::ArrayWriter<W>),
    Parquet(Box<ParquetFile<W>>),
    Arrow(Box<ArrowFile<W>>),
}

/// An Arrow file whose batches have the same rows whatever batches they came in.
struct ArrowFile<W: Write> {
    out: arrow::ipc::writer::FileWriter<W>,
    rows: BatchCoalescer,
}

impl<W: Write> ArrowFile<W> {
    const BATCH: usize = 8192;

    fn new(out: W, schema: &SchemaRef) -> Result<ArrowFile<W>> {
        let rows = BatchCoalescer::new(schema.clone(), Self::BATCH);
        Ok(ArrowFile { out: arrow::ipc::writer::FileWriter::try_new(out, schema)?, rows })
    }

    fn write(&mut self, batch: RecordBatch) -> Result<()> {
        self.rows.push_batch(batch)?;
        self.write_completed()
    }

    fn write_completed(&mut self) -> Result<()> {
        // A view points into buffers that may hold more than its rows.
        let compact = |column: &ArrayRef| match column.data_type() {
            DataType::Utf8View => Arc::new(column.as_string_view().gc()) as ArrayRef,
            DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
            _ => column.clone(),
        };
        while let Some(batch) = self.rows.next_completed_batch() {
            let columns = batch.columns().iter().map(compact).collect();
            self.out.write(&RecordBatch::try_new(batch.schema(), columns)?)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<W> {
        self.rows.finish_buffered_batch()?;
        self.write_completed()?;
        self.out.finish()?;
        Ok(self.out.into_inner()?)
    }
}

/// A column of a Parquet file: dictionaries of what is no text are written as what they say.
fn in_parquet(field: &Field) -> Result<Field> {
    let refuse = |what: &str| {
        let error =
            MergeError::new(Code::Unsupported, format!("column `{}`: a Parquet file has no place for {what}", field.name()));
        Err(error.help("cast it in the query, or write an .arrow file"))
    };
    let inner = |f: &Arc<Field>| Ok::<_, MergeError>(Arc::new(in_parquet(f)?));
    let ty = match field.data_type() {
        DataType::Interval(IntervalUnit::MonthDayNano) => return refuse("intervals"),
        DataType::Decimal32(_, s) | DataType::Decimal64(_, s) | DataType::Decimal128(_, s) | DataType::Decimal256(_, s)
            if *s < 0 =>
        {
            return refuse("decimals of negative scale");
        }
        DataType::Struct(fields) if fields.is_empty() => return refuse("rows without fields"),
        DataType::Dictionary(_, values) if !matches!(**values, DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary) => {
            return in_parquet(&field.clone().with_data_type(lean(values)));
        }
        DataType::List(f) => DataType::List(inner(f)?),
        DataType::LargeList(f) => DataType::LargeList(inner(f)?),
        DataType::FixedSizeList(f, n) => DataType::FixedSizeList(inner(f)?, *n),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect::<Result<_>>()?),
        DataType::Map(f, sorted) => DataType::Map(inner(f)?, *sorted),
        other => other.clone(),
    };
    Ok(field.clone().with_data_type(ty))
}

/// The columns of a file of rows of this schema: text for types that a format has no columns for.
///
/// # Errors
/// `unsupported` for types that it cannot have at all.
fn plain_schema(schema: &SchemaRef, format: Format) -> Result<SchemaRef> {
    let simple = |ty: &DataType| match ty {
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) | DataType::Struct(_) | DataType::Map(..) => {
            format == Format::Text(Layout::Ndjson) || format == Format::Text(Layout::Json)
        }
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => false,
        _ => true,
    };
    let column = |f: &Arc<Field>| match format {
        Format::Text(_) if simple(f.data_type()) => Ok(f.as_ref().clone()),
        Format::Text(_) => Ok(Field::new(f.name(), DataType::Utf8, true)),
        // A file has one dictionary for a column, and batches have theirs.
        Format::Arrow => Ok(f.as_ref().clone().with_data_type(lean(f.data_type()))),
        Format::Parquet => in_parquet(f),
    };
    let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(Schema::new_with_metadata(columns, schema.metadata().clone())))
}

fn fit(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            if column.data_type() == field.data_type() {
                return Ok(column.clone());
            }
            if field.data_type() == &DataType::Utf8 && !matches!(column.data_type(), DataType::Utf8View | DataType::LargeUtf8) {
                let text = |i: usize| {
                    let value = crate::columns::value_at(column, i);
                    if value.is_null() { None } else { Some(value.to_string()) }
                };
                return Ok(Arc::new((0..column.len()).map(text).collect::<arrow::array::StringArray>()) as _);
            }
            cast(column, field.data_type()).map_err(MergeError::from)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

impl<W: Write + Send> Writer<W> {
    fn new(out: W, schema: &SchemaRef, format: Format, sorted_by: SortedBy) -> Result<Writer<W>> {
        // A column is named in every row, also where it is NULL.
        let json = arrow::json::WriterBuilder::new().with_explicit_nulls(true);
        Ok(match format {
            Format::Text(Layout::Csv { delimiter, header }) => {
                Writer::Csv(Delimited { out, delimiter: char::from(delimiter), header })
            }
            Format::Text(Layout::Ndjson) => Writer::Ndjson(json.build(out)),
            Format::Text(Layout::Json) => Writer::Json(json.build(out)),
            Format::Parquet => {
                let sorting = sorted_by.map(|n| {
                    (0..n).map(|i| SortingColumn { column_idx: i as i32, descending: false, nulls_first: true }).collect()
                });
                let properties = WriterProperties::builder()
                    .set_compression(Compression::SNAPPY)
                    .set_created_by(format!("mergeql {}", env!("CARGO_PKG_VERSION")))
                    .set_sorting_columns(sorting)
                    .build();
                Writer::Parquet(Box::new(ParquetFile::new(out, schema, properties)?))
            }
            Format::Arrow => Writer::Arrow(Box::new(ArrowFile::new(out, schema)?)),
        })
    }

    async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match self {
            Writer::Csv(w) => w.write(batch)?,
            Writer::Ndjson(w) => w.write(batch)?,
            Writer::Json(w) => w.write(batch)?,
            Writer::Parquet(w) => w.write(batch).await?,
            Writer::Arrow(w) => w.write(batch.clone())?,
        }
        Ok(())
    }

    async fn finish(self) -> Result<W> {
        Ok(match self {
            Writer::Csv(w) => w.out,
            Writer::Ndjson(mut w) => {
                w.finish()?;
                w.into_inner()
            }
            Writer::Json(mut w) => {
                w.finish()?;
                let mut out = w.into_inner();
                out.write_all(b"\n")?;
                out
            }
            Writer::Parquet(w) => w.finish().await?,
            Writer::Arrow(w) => w.finish()?,
        })
    }
}

fn parquet_error(error: ParquetError) -> MergeError {
    MergeError::new(Code::Io, error.to_string())
}

/// Writes rows to a stream that is open already (standard output); gives back how many there were.
///
/// # Errors
/// `io`, and whatever the query fails with.
pub async fn write_to(out: impl Write + Send, format: Format, mut rows: SendableRecordBatchStream) -> Result<usize> {
    let schema = plain_schema(&rows.schema(), format)?;
    let mut writer = Writer::new(out, &schema, format, None)?;
    let mut count = 0;
    let mut first = true;
    while let Some(batch) = rows.next().await {
        let batch = batch.map_err(MergeError::running)?;
        count += batch.num_rows();
        writer.write(&fit(&batch, &schema)?).await?;
        first = false;
    }
    if first {
        writer.write(&RecordBatch::new_empty(schema)).await?;
    }
    writer.finish().await?.flush()?;
    Ok(count)
}

/// Writes rows to a file, whole or not at all; gives back how many there were.
///
/// # Errors
/// `io`, and whatever the query fails with. The target is untouched then.
pub async fn write_file(path: &Path, format: Format, rows: SendableRecordBatchStream, sorted_by: SortedBy) -> Result<usize> {
    write_file_as(path, format, rows, sorted_by, true).await
}

/// As [`write_file`]; with `replace` false an existing file is left alone and an error.
///
/// # Errors
/// As [`write_file`].
pub async fn write_file_as(
    path: &Path,
    format: Format,
    rows: SendableRecordBatchStream,
    sorted_by: SortedBy,
    replace: bool,
) -> Result<usize> {
    // The next rows are computed while these are written.
    let mut rows = spawn_buffered(rows, 4);
    let file = Whole::begin(path)?;
    let schema = plain_schema(&rows.schema(), format)?;
    let mut writer = Writer::new(BufWriter::with_capacity(1 << 18, file.file), &schema, format, sorted_by)?;
    let mut count = 0;
    let mut empty = true;
    while let Some(batch) = rows.next().await {
        let batch = batch.map_err(MergeError::running)?;
        count += batch.num_rows();
        empty = false;
        writer.write(&fit(&batch, &schema)?).await?;
    }
    if empty {
        writer.write(&RecordBatch::new_empty(schema)).await?;
    }
    let written = writer.finish().await?.into_inner().map_err(|e| MergeError::from(io(path, e.into_error())))?;
    Whole { file: written, path: file.path }.end(replace)?;
    Ok(count)
}

/// A file beside the one that it becomes: whole or not at all.
pub struct Whole {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Whole {
    /// A file that becomes the one of this path. Of a link, it becomes what the link leads to.
    ///
    /// # Errors
    /// `io`.
    pub fn begin(path: &Path) -> Result<Whole> {
        let path = match std::fs::symlink_metadata(path) {
            Ok(about) if about.is_symlink() => std::fs::canonicalize(path).map_err(|e| io(path, e))?,
            Ok(about) if !about.is_file() => return Err(io(path, "it is there and is no file").into()),
            _ => path.to_owned(),
        };
        let folder = folder_of(&path);
        if !folder.is_dir() {
            return Err(io(&path, format!("there is no folder {}", folder.display())).into());
        }
        let file = tempfile::Builder::new().prefix(".mergeql-").suffix(".tmp").tempfile_in(folder);
        Ok(Whole { file: file.map_err(|e| io(&path, e))?, path })
    }

    /// Where it is until then.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Makes it the one of its path; with `replace` false, one that is there is left alone and an error.
    ///
    /// # Errors
    /// `io`.
    pub fn end(self, replace: bool) -> Result<()> {
        let Whole { file, path } = self;
        let fail = |e: std::io::Error| MergeError::from(io(&path, e));
        file.as_file().sync_all().map_err(fail)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As that which it replaces; else as any file that is made here.
            let mode = match std::fs::metadata(&path) {
                Ok(old) => old.permissions().mode(),
                Err(_) => 0o666 & !umask(),
            };
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode & 0o777)).map_err(fail)?;
        }
        match replace {
            true => drop(file.persist(&path).map_err(|e| fail(e.error))?),
            false => drop(file.persist_noclobber(&path).map_err(|e| fail(e.error))?),
        }
        // The rename itself must survive a crash too.
        if let Ok(folder) = std::fs::File::open(folder_of(&path)) {
            folder.sync_all().ok();
        }
        Ok(())
    }
}

/// What new files are not permitted: asked once, of a file that is made as any other.
#[cfg(unix)]
fn umask() -> u32 {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    static UMASK: std::sync::LazyLock<u32> = std::sync::LazyLock::new(|| {
        let asked = || {
            let folder = tempfile::tempdir().ok()?;
            let path = folder.path().join("mode");
            let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o666).open(path).ok()?;
            Some(!file.metadata().ok()?.permissions().mode() & 0o666)
        };
        asked().unwrap_or(0o022)
    });
    *UMASK
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringViewArray};
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

    #[tokio::test]
    async fn files_have_the_same_bytes_whatever_batches_their_rows_came_in() {
        let texts: StringViewArray =
            (0..20_000).map(|i| (i % 7 > 0).then(|| format!("text number {i}, longer than a view"))).collect();
        let numbers: Int64Array = (0..20_000).collect();
        let columns: [(&str, ArrayRef); 2] = [("n", Arc::new(numbers)), ("t", Arc::new(texts))];
        let all = RecordBatch::try_from_iter(columns).expect("a batch");
        for format in [Format::Arrow, Format::Parquet] {
            let mut files = Vec::new();
            for size in [20_000, 8192, 8191, 777] {
                let parts = (0..all.num_rows()).step_by(size).map(|at| all.slice(at, size.min(all.num_rows() - at)));
                let parts: Vec<_> = parts.map(Ok).collect();
                let rows = RecordBatchStreamAdapter::new(all.schema(), futures::stream::iter(parts));
                let mut file = Vec::new();
                assert_eq!(write_to(&mut file, format, Box::pin(rows)).await.expect("written"), 20_000);
                files.push(file);
            }
            assert!(files.windows(2).all(|w| w[0] == w[1]), "{format:?}");
        }
    }
}
