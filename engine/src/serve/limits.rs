//! What one client may take from the others: turns and time.

use crate::error::{MergeError, Result};
use arrow::array::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use futures::{Stream, StreamExt};
use mergeql_udfs::Code;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What all clients share.
pub(crate) struct Limits {
    turns: Arc<Semaphore>,
    timeout: Option<Duration>,
    /// Where statements compute: not where clients are listened to, so that those are heard whatever is computed.
    compute: Handle,
}

/// The turn of one statement, and when it ends.
pub(crate) struct Turn {
    compute: Handle,
    deadline: Option<Instant>,
    _permit: OwnedSemaphorePermit,
}

impl Limits {
    /// Statements compute on the runtime that this is called on.
    pub(crate) fn new(statements: usize, timeout: Option<Duration>) -> Limits {
        Limits { turns: Arc::new(Semaphore::new(statements.max(1))), timeout, compute: Handle::current() }
    }

    /// Waits for a turn. A client may ask for less time than the server gives.
    pub(crate) async fn turn(&self, asked: Option<Duration>) -> Result<Turn> {
        let time = [self.timeout, asked].into_iter().flatten().min();
        let deadline = time.map(|t| Instant::now() + t);
        let permit = in_time(deadline, self.turns.clone().acquire_owned()).await?;
        let permit = permit.map_err(|_| MergeError::new(Code::LimitExceeded, "the server is closing"))?;
        Ok(Turn { compute: self.compute.clone(), deadline, _permit: permit })
    }
}

impl Turn {
    /// Runs a part of the statement as a task of its own: its time ends and its client can cancel it also while it computes. What
    /// panics in it is an error of this statement alone.
    pub(crate) async fn run<T: Send + 'static>(&self, part: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let mut task = JoinSet::new();
        task.spawn_on(part, &self.compute);
        match in_time(self.deadline, task.join_next()).await? {
            Some(Ok(result)) => result,
            _ => Err(broken()),
        }
    }

    /// The rows of the statement; its turn ends with them.
    pub(crate) fn rows(self, mut rows: SendableRecordBatchStream) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        let mut task = JoinSet::new();
        let give = async move {
            while let Some(batch) = rows.next().await {
                if sender.send(batch).await.is_err() {
                    break;
                }
            }
        };
        task.spawn_on(give, &self.compute);
        let rows = futures::stream::unfold(Some((receiver, task, self)), |running| async move {
            let (mut receiver, mut task, turn) = running?;
            match in_time(turn.deadline, receiver.recv()).await {
                Ok(Some(Ok(batch))) => Some((Ok(batch), Some((receiver, task, turn)))),
                Ok(Some(Err(error))) => Some((Err(error.into()), None)),
                Ok(None) => matches!(task.join_next().await, Some(Err(_))).then(|| (Err(broken()), None)),
                Err(error) => Some((Err(error), None)),
            }
        });
        rows.fuse()
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
