//! Rows that wait until all of them are there: in memory at first, then in a temporary file.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::StreamExt;
use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of rows that are kept in memory.
const IN_MEMORY: usize = 64 << 20;

/// Rows that are added one batch after the other, and then read once.
pub(crate) struct Spool {
    schema: SchemaRef,
    rows: usize,
    in_memory: usize,
    batches: Vec<RecordBatch>,
    bytes: usize,
    file: Option<StreamWriter<BufWriter<File>>>,
}

impl Spool {
    pub(crate) fn new(schema: SchemaRef) -> Spool {
        Spool { schema, rows: 0, in_memory: IN_MEMORY, batches: Vec::new(), bytes: 0, file: None }
    }

    /// All rows of a stream.
    ///
    /// # Errors
    /// Those of the stream, and of the file.
    pub(crate) async fn of(mut rows: SendableRecordBatchStream) -> Result<Spool> {
        let mut spool = Spool::new(rows.schema());
        while let Some(batch) = rows.next().await.transpose()? {
            spool.push(batch)?;
        }
        Ok(spool)
    }

    /// The columns of the rows.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Adds rows.
    ///
    /// # Errors
    /// Those of the file.
    pub(crate) fn push(&mut self, batch: RecordBatch) -> Result<()> {
        self.rows += batch.num_rows();
        let batch = compacted(batch)?;
        if let Some(file) = &mut self.file {
            return Ok(file.write(&batch)?);
        }
        self.bytes += batch.get_array_memory_size();
        self.batches.push(batch);
        if self.bytes > self.in_memory {
            let mut file = StreamWriter::try_new(BufWriter::new(tempfile::tempfile()?), &self.schema)?;
            for batch in self.batches.drain(..) {
                file.write(&batch)?;
            }
            self.file = Some(file);
        }
        Ok(())
    }

    /// The rows as a table that is read once.
    ///
    /// # Errors
    /// Those of the file.
    pub(crate) fn table(self) -> Result<StreamingTable> {
        once(self.read()?)
    }

    /// The rows, in their order.
    ///
    /// # Errors
    /// Those of the file.
    pub(crate) fn read(self) -> Result<SendableRecordBatchStream> {
        let Some(writer) = self.file else {
            return Ok(rows_of(self.schema, self.batches.into_iter().map(Ok)));
        };
        let mut writer = writer.into_inner()?;
        writer.flush()?;
        let mut file = writer.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.rewind()?;
        let reader = StreamReader::try_new(BufReader::new(file), None)?;
        Ok(rows_of(self.schema, reader.map(|batch| Ok(batch?))))
    }
}

/// The same rows with the texts that they have and no others: those of a batch that is part of a greater one lie among all of its texts,
/// which a file would hold once for each part.
fn compacted(batch: RecordBatch) -> Result<RecordBatch> {
    let column = |column: &ArrayRef| -> ArrayRef {
        match column.data_type() {
            DataType::Utf8View => Arc::new(column.as_string_view().gc()),
            DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
            _ => column.clone(),
        }
    };
    Ok(RecordBatch::try_new_with_options(
        batch.schema(),
        batch.columns().iter().map(column).collect(),
        &RecordBatchOptions::new().with_row_count(Some(batch.num_rows())),
    )?)
}

fn rows_of(schema: SchemaRef, batches: impl Iterator<Item = Result<RecordBatch>> + Send + 'static) -> SendableRecordBatchStream {
    Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches).boxed()))
}

/// Rows as a table that is read once.
pub(crate) fn once(rows: SendableRecordBatchStream) -> Result<StreamingTable> {
    let schema = rows.schema();
    StreamingTable::try_new(schema.clone(), vec![Arc::new(Once { schema, rows: Mutex::new(Some(rows)) })])
}

/// Rows that are read once.
struct Once {
    schema: SchemaRef,
    rows: Mutex<Option<SendableRecordBatchStream>>,
}

impl std::fmt::Debug for Once {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Once")
    }
}

impl PartitionStream for Once {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        match self.rows.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(rows) => rows,
            None => {
                let again = DataFusionError::Internal("these rows were read already".into());
                rows_of(self.schema.clone(), std::iter::once(Err(again)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{StringArray, StringViewArray};
    use futures::TryStreamExt;
    use std::sync::Arc;

    /// Parts of a great batch are kept as parts: each has its own texts.
    #[tokio::test]
    async fn parts_do_not_bring_the_whole() {
        let texts: StringViewArray = (0..10_000).map(|i| Some(format!("a text of some length: {i}"))).collect();
        let whole = RecordBatch::try_from_iter([("t", Arc::new(texts) as ArrayRef)]).expect("a batch");
        let mut spool = Spool { in_memory: usize::MAX, ..Spool::new(whole.schema()) };
        (0..100).for_each(|i| spool.push(whole.slice(i * 100, 100)).expect("it is kept"));
        assert!(spool.bytes < 2 * whole.get_array_memory_size(), "{} bytes", spool.bytes);
        let back: Vec<RecordBatch> = spool.read().expect("a stream").try_collect().await.expect("the rows");
        assert_eq!(arrow::compute::concat_batches(&whole.schema(), &back).expect("one batch"), whole);
    }

    #[tokio::test]
    async fn rows_beyond_memory_come_back_from_a_file() {
        let column = |i: usize| Arc::new(StringArray::from(vec![Some(format!("row {i}")), None])) as ArrayRef;
        let batches: Vec<RecordBatch> = (0..50).map(|i| RecordBatch::try_from_iter([("t", column(i))]).expect("a batch")).collect();
        for in_memory in [0, 1000, usize::MAX] {
            let mut spool = Spool { in_memory, ..Spool::new(batches[0].schema()) };
            batches.iter().for_each(|batch| spool.push(batch.clone()).expect("it is kept"));
            assert_eq!(spool.file.is_some(), in_memory < usize::MAX);
            let back: Vec<RecordBatch> = spool.read().expect("a stream").try_collect().await.expect("the rows");
            assert_eq!(back, batches);
        }
    }
}
