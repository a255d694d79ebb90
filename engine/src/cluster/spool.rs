//! The rows of an attempt until it has come to its end: in memory at first, then in a temporary file.

use super::rows_of;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::common::Result;
use datafusion::execution::SendableRecordBatchStream;
use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, Write};

/// Bytes of rows that are kept in memory.
const IN_MEMORY: usize = 64 << 20;

pub(super) struct Spool {
    schema: SchemaRef,
    in_memory: usize,
    batches: Vec<RecordBatch>,
    bytes: usize,
    file: Option<StreamWriter<BufWriter<File>>>,
}

impl Spool {
    pub(super) fn new(schema: SchemaRef) -> Spool {
        Spool { schema, in_memory: IN_MEMORY, batches: Vec::new(), bytes: 0, file: None }
    }

    pub(super) fn push(&mut self, batch: RecordBatch) -> Result<()> {
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

    pub(super) fn read(self) -> Result<SendableRecordBatchStream> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, StringArray};
    use futures::TryStreamExt;
    use std::sync::Arc;

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
