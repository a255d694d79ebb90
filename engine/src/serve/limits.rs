//! What one client may take from the others: turns and time.

use crate::error::{MergeError, Result};
use arrow::array::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use futures::{FutureExt, Stream, StreamExt};
use mergeql_udfs::Code;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// What all clients share.
pub(crate) struct Limits {
    turns: Arc<Semaphore>,
    timeout: Option<Duration>,
}

/// The turn of one statement, and when it ends.
pub(crate) struct Turn {
    deadline: Option<Instant>,
    _permit: OwnedSemaphorePermit,
}

impl Limits {
    pub(crate) fn new(statements: usize, timeout: Option<Duration>) -> Limits {
        Limits { turns: Arc::new(Semaphore::new(statements.max(1))), timeout }
    }

    /// Waits for a turn. A client may ask for less time than the server gives.
    pub(crate) async fn turn(&self, asked: Option<Duration>) -> Result<Turn> {
        let time = [self.timeout, asked].into_iter().flatten().min();
        let deadline = time.map(|t| Instant::now() + t);
        let permit = in_time(deadline, self.turns.clone().acquire_owned()).await?;
        let permit = permit.map_err(|_| MergeError::new(Code::LimitExceeded, "the server is closing"))?;
        Ok(Turn { deadline, _permit: permit })
    }
}

impl Turn {
    /// Runs a part of the statement. What panics in it is an error of this statement alone.
    pub(crate) async fn run<T>(&self, part: impl Future<Output = Result<T>>) -> Result<T> {
        in_time(self.deadline, AssertUnwindSafe(part).catch_unwind()).await?.unwrap_or_else(|_| Err(broken()))
    }

    /// The rows of the statement; its turn ends with them.
    pub(crate) fn rows(self, rows: SendableRecordBatchStream) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
        futures::stream::unfold(Some((rows, self)), |running| async move {
            let (mut rows, turn) = running?;
            let next = async { Ok(rows.next().await.transpose()?) };
            match turn.run(next).await {
                Ok(batch) => batch.map(|batch| (Ok(batch), Some((rows, turn)))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

async fn in_time<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Result<T> {
    match deadline {
        None => Ok(work.await),
        Some(deadline) => tokio::time::timeout_at(deadline, work).await.map_err(|_| timed_out()),
    }
}

fn timed_out() -> MergeError {
    MergeError::new(Code::LimitExceeded, TIMED_OUT).help("ask for fewer rows, or raise --statement-timeout")
}

pub(crate) const TIMED_OUT: &str = "the statement took longer than it may";

fn broken() -> MergeError {
    MergeError::new(Code::Unsupported, "the statement failed inside the engine; the server goes on")
        .help("please report it with the statement")
}
