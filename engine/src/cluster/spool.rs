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
    batches: Vec<RecordBatch>,
    bytes: usize,
    file: Option<StreamWriter<BufWriter<File>>>,
}

impl Spool {
    pub(super) fn new(schema: SchemaRef) -> Spool {
        Spool { schema, batches: Vec::new(), bytes: 0, file: None }
    }

    pub(super) fn push(&mut self, batch: RecordBatch) -> Result<()> {
        if let Some(file) = &mut self.file {
            return Ok(file.write(&batch)?);
        }
        self.bytes += batch.get_array_memory_size();
        self.batches.push(batch);
        if self.bytes > IN_MEMORY {
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
