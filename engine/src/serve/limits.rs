//! What one client may take from the others: turns and time.

use crate::error::{MergeError, Result};
use arrow::array::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use futures::{FutureExt, Stream, StreamExt};
use mergeql_udfs::Code;
use std::sync::{Arc, Mutex, PoisonError};
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
    held: Arc<Held>,
}

/// A turn that a statement has, unless it gave it back for a while.
struct Held {
    turns: Arc<Semaphore>,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Held {
    fn permit(&self) -> std::sync::MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn acquire(&self) {
        // Turns are never closed.
        if let Ok(permit) = self.turns.clone().acquire_owned().await {
            *self.permit() = Some(permit);
        }
    }
}

tokio::task_local! {
    static HELD: Arc<Held>;
}

/// Waits without a turn where waiting is needed: those that are waited for, and others, have it meanwhile.
pub(crate) async fn giving_way<T>(wait: impl Future<Output = T>) -> T {
    let mut wait = std::pin::pin!(wait);
    if let Some(at_once) = wait.as_mut().now_or_never() {
        return at_once;
    }
    let Ok(held) = HELD.try_with(Arc::clone) else { return wait.await };
    drop(held.permit().take());
    let result = wait.await;
    held.acquire().await;
    result
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
        let held = Arc::new(Held { turns: self.turns.clone(), permit: Mutex::new(Some(permit)) });
        Ok(Turn { compute: self.compute.clone(), deadline, held })
    }
}

impl Turn {
    /// Runs a part of the statement as a task of its own: its time ends and its client can cancel it also while it computes. What
    /// panics in it is an error of this statement alone.
    pub(crate) async fn run<T: Send + 'static>(&self, part: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let mut task = JoinSet::new();
        task.spawn_on(HELD.scope(self.held.clone(), part), &self.compute);
        match in_time(self.deadline, task.join_next()).await? {
            Some(Ok(result)) => result,
            _ => Err(broken()),
        }
    }

    /// The rows of the statement. It has its turn while it computes them, and not while its client takes its time to read.
    pub(crate) fn rows(self, mut rows: SendableRecordBatchStream) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        let mut task = JoinSet::new();
        let Turn { compute, deadline, held } = self;
        let give = async move {
            loop {
                if held.permit().is_none() {
                    held.acquire().await;
                }
                let next = rows.next().await;
                drop(held.permit().take());
                let Some(batch) = next else { break };
                if sender.send(batch).await.is_err() {
                    break;
                }
            }
        };
        task.spawn_on(give, &compute);
        let rows = futures::stream::unfold(Some((receiver, task)), move |running| async move {
            let (mut receiver, mut task) = running?;
            // Rows that lie ready for a client who takes its time.
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Some((Err(timed_out()), None));
            }
            match in_time(deadline, receiver.recv()).await {
                Ok(Some(Ok(batch))) => Some((Ok(batch), Some((receiver, task)))),
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

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::Schema;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

    fn rows(count: usize) -> SendableRecordBatchStream {
        let schema = Arc::new(Schema::empty());
        let batches = (0..count).map(|_| Ok(RecordBatch::new_empty(Arc::new(Schema::empty())))).collect::<Vec<_>>();
        Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches)))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_panic_is_an_error_of_its_statement() {
        let limits = Limits::new(1, None);
        let turn = limits.turn(None).await.expect("a turn");
        let error = turn.run::<()>(async { panic!("as a fault in the engine would") }).await.expect_err("it fails");
        assert_eq!(error.code(), Code::Unsupported);
        drop(turn);
        assert_eq!(limits.turn(None).await.expect("the next turn").run(async { Ok(1) }).await.expect("it runs"), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_does_not_read_holds_no_turn() {
        let limits = Limits::new(1, Some(Duration::from_secs(5)));
        let mut unread = Box::pin(limits.turn(None).await.expect("a turn").rows(rows(100)));
        assert!(unread.next().await.expect("a batch").is_ok());
        let turn = limits.turn(None).await.expect("there is another turn");
        assert_eq!(turn.run(async { Ok(2) }).await.expect("it runs"), 2);
        drop(turn);
        assert_eq!(unread.count().await, 99);
    }

    /// Writers wait for each other, and readers go on.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_waits_for_a_writer_holds_no_turn() {
        let limits = Limits::new(2, Some(Duration::from_secs(20)));
        let changing = Arc::new(tokio::sync::Mutex::new(()));
        let (started, goes_on) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let write = |turn: Turn, work: bool| {
            let (changing, started, goes_on) = (changing.clone(), started.clone(), goes_on.clone());
            tokio::spawn(async move {
                let part = async move {
                    let _changing = giving_way(changing.lock()).await;
                    if work {
                        started.notify_one();
                        goes_on.notified().await;
                    }
                    Ok(())
                };
                turn.run(part).await
            })
        };
        let first = write(limits.turn(None).await.expect("a turn"), true);
        started.notified().await;
        let mut waiting = Vec::new();
        for _ in 0..3 {
            waiting.push(write(limits.turn(None).await.expect("a turn"), false));
        }
        // The first has one of the two turns; those that wait for it have none.
        let reads = limits.turn(None).await.expect("a turn for a reader");
        assert_eq!(reads.run(async { Ok(3) }).await.expect("it reads"), 3);
        drop(reads);
        goes_on.notify_one();
        first.await.expect("a task").expect("it wrote");
        for writer in waiting {
            writer.await.expect("a task").expect("it wrote");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn time_ends_also_while_a_statement_waits() {
        let limits = Limits::new(1, None);
        let held = limits.turn(None).await.expect("a turn");
        let error = limits.turn(Some(Duration::from_millis(20))).await.err().expect("it does not come");
        assert_eq!(error.diagnostic.message, TIMED_OUT);
        drop(held);
    }
}
