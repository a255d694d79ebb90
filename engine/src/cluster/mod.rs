//! Many machines: the same plans, their stages run by workers (`mergeql worker`), on datafusion-distributed.
//!
//! A merge is idempotent, so what a lost worker was doing is done again by the others. Rows leave here only when an attempt has come to
//! its end: a reader never sees rows of two attempts.

mod bounded;
mod codec;
pub(crate) mod folds;
mod leaves;
pub(crate) mod ranges;
mod schedule;
pub(crate) mod singles;
mod worker;

use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use crate::hashed::HashedMerges;
use crate::spool::Spool;
use crate::text_files::io;
use async_trait::async_trait;
pub(crate) use codec::Codec;
use datafusion::common::DataFusionError;
use datafusion::common::tree_node::TreeNode;
use datafusion::execution::memory_pool::MemoryLimit;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::DataFrame;
use datafusion_distributed::grpc::{BoxCloneSyncChannel, create_worker_client};
use datafusion_distributed::{
    ChannelResolver, DistributedExec, DistributedExt, GetWorkerInfoRequest, SessionStateBuilderExt, WorkerChannel, WorkerResolver,
};
use futures::TryStreamExt;
use futures::future::join_all;
use mergeql_udfs::Code;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::metadata::AsciiMetadataValue;
use url::Url;
pub use worker::{Options as WorkerOptions, Worker};

/// The workers that statements run on.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Where they listen, like `http://10.0.0.7:7001`.
    pub workers: Vec<Url>,
    /// The token that they ask for.
    pub token: Option<String>,
    /// Bytes of input that make a worker of its own worth it.
    pub task_size: usize,
}

impl Cluster {
    /// Input for one worker, if nothing else is asked for.
    pub const TASK_SIZE: usize = 8 << 20;

    /// Reads a file of workers: a line `host:port` each. Empty lines and lines that begin with `#` are left out.
    ///
    /// # Errors
    /// `io` if it cannot be read, `invalid_argument` for a line that is no address, or if there is none.
    pub fn read(path: &Path) -> Result<Cluster> {
        let text = std::fs::read_to_string(path).map_err(|e| MergeError::from(io(path, e)))?;
        let bad = |what: String| MergeError::new(Code::InvalidArgument, format!("{}: {what}", path.display()));
        let mut workers = Vec::new();
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let address = line.strip_prefix("http://").unwrap_or(line).trim_end_matches('/');
            let url = Url::parse(&format!("http://{address}")).ok().filter(|url| {
                let named = address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
                named && url.path() == "/" && url.username().is_empty() && url.query().is_none() && url.fragment().is_none()
            });
            let url = url.ok_or_else(|| bad(format!("`{line}` is not `host:port`; a comment is a line of its own")))?;
            if workers.contains(&url) {
                return Err(bad(format!("`{line}` is there twice")));
            }
            workers.push(url);
        }
        if workers.is_empty() {
            return Err(bad("it names no workers".to_owned()));
        }
        Ok(Cluster { workers, token: None, task_size: Self::TASK_SIZE })
    }
}

/// The workers as a session sees them.
pub(crate) struct Client {
    pub(crate) task_size: usize,
    all: Vec<Url>,
    alive: Alive,
    channels: Channels,
    /// The most threads that each worker is to use, if somebody said so.
    threads: Option<usize>,
    /// The fewest threads that a worker offers.
    fewest: AtomicUsize,
}

/// Those that answered when a statement began.
#[derive(Clone, Default)]
struct Alive(Arc<Mutex<Vec<Url>>>);

impl Alive {
    fn get(&self) -> Vec<Url> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl WorkerResolver for Alive {
    fn get_urls(&self) -> datafusion::common::Result<Vec<Url>> {
        Ok(self.get())
    }
}

impl Client {
    pub(crate) fn new(cluster: &Cluster, threads: Option<usize>) -> Result<Client> {
        let alive = Alive(Arc::new(Mutex::new(cluster.workers.clone())));
        Ok(Client {
            task_size: cluster.task_size.max(1),
            all: cluster.workers.clone(),
            alive,
            channels: Channels::new(cluster.token.as_deref())?,
            threads,
            fewest: AtomicUsize::new(usize::MAX),
        })
    }

    /// A session state whose plans run on the workers.
    pub(crate) fn distribute(&self, state: SessionStateBuilder) -> SessionStateBuilder {
        state
            .with_distributed_worker_resolver(self.alive.clone())
            .with_distributed_channel_resolver(self.channels.clone())
            .with_distributed_user_codec(Codec)
            .with_distributed_desired_task_count_handler(leaves::Desired { task_size: self.task_size })
            .with_distributed_scale_up_leaf_node_handler(leaves::scale_up)
            .with_distributed_planner()
    }

    /// Looks which workers are there, for a statement that does not begin anew if one is lost.
    pub(crate) async fn look(&self) {
        self.gather().await.ok();
    }

    /// Asks every worker whether it is there.
    async fn gather(&self) -> Result<()> {
        let answers = join_all(self.all.iter().map(|url| self.channels.greet(url))).await;
        let mut alive = Vec::new();
        let mut reasons = Vec::new();
        let mut fewest = usize::MAX;
        for (url, answer) in self.all.iter().zip(answers) {
            match answer.map(|told| told.parse::<About>()) {
                Ok(Ok(about)) => {
                    fewest = fewest.min(about.threads);
                    alive.push(url.clone());
                }
                Ok(Err(version)) => {
                    return Err(MergeError::new(
                        Code::Unsupported,
                        format!("the worker {} is of version {version}, this client of {VERSION}", address(url)),
                    )
                    .help("run the same version everywhere"));
                }
                Err(reason) => reasons.push(format!("{}: {reason}", address(url))),
            }
        }
        if alive.is_empty() {
            return Err(MergeError::new(Code::Io, format!("no worker of the cluster answers ({})", reasons.join("; ")))
                .help("nothing was written; start the workers with `mergeql worker`, or run without --cluster"));
        }
        *self.alive.0.lock().unwrap_or_else(PoisonError::into_inner) = alive;
        self.fewest.store(fewest, Ordering::Relaxed);
        Ok(())
    }

    /// The plan as workers run it.
    ///
    /// # Errors
    /// `io` if no worker answers, and what planning fails with.
    pub(crate) async fn explain(&self, frame: DataFrame) -> Result<Arc<dyn ExecutionPlan>> {
        self.gather().await?;
        Ok(self.plan(frame).await?.0)
    }

    /// The plan, and whether it is divided among workers: if its input is worth it.
    async fn plan(&self, frame: DataFrame) -> datafusion::common::Result<(Arc<dyn ExecutionPlan>, bool)> {
        let (mut state, query) = frame.into_parts();
        let here = state.config().target_partitions();
        let there = self.threads.unwrap_or(usize::MAX).min(self.fewest.load(Ordering::Relaxed));
        // With one partition nothing is exchanged by key, and the last step would be the client's alone.
        state.config_mut().options_mut().execution.target_partitions = there.max(2);
        let plan = state.create_physical_plan(&query).await?;
        if plan.exists(|node| Ok(node.is::<DistributedExec>()))? {
            return Ok((plan, true));
        }
        state.config_mut().options_mut().execution.target_partitions = here;
        let plan = state.create_physical_plan(&query).await?;
        let divided = plan.exists(|node| Ok(node.is::<DistributedExec>()))?;
        match state.runtime_env().memory_pool.memory_limit() {
            MemoryLimit::Infinite if !divided => Ok((HashedMerges.optimize(plan, state.config_options())?, false)),
            _ => Ok((plan, divided)),
        }
    }

    /// Runs a query, again if workers are lost. Its rows leave here when an attempt has come to its end.
    pub(crate) async fn stream(&self, context: &MergeContext, frame: DataFrame) -> Result<SendableRecordBatchStream> {
        let keep = |rows: SendableRecordBatchStream, divided: bool| async move {
            // Of what isn't divided nothing is at stake with a worker; ranges of keys are done again one by one.
            if divided { Ok(Spool::of(rows).await?.read()?) } else { Ok(rows) }
        };
        self.attempts(context, frame, keep).await
    }

    /// Runs a query, again if workers are lost, whose rows go where nothing stays of an attempt that failed.
    pub(crate) async fn whole<T, F: Future<Output = Result<T>>>(
        &self,
        context: &MergeContext,
        frame: DataFrame,
        take: impl Fn(SendableRecordBatchStream) -> F,
    ) -> Result<T> {
        self.attempts(context, frame, |rows, _| take(rows)).await
    }

    /// `take` has the rows of an attempt, and whether workers make them.
    async fn attempts<T, F: Future<Output = Result<T>>>(
        &self,
        context: &MergeContext,
        frame: DataFrame,
        take: impl Fn(SendableRecordBatchStream, bool) -> F,
    ) -> Result<T> {
        let mut left = self.all.len() + 1;
        loop {
            self.gather().await?;
            left -= 1;
            let lost = Arc::new(AtomicBool::new(false));
            let begin = async {
                let tasks = Arc::new(frame.task_ctx());
                let (plan, divided) = self.plan(frame.clone()).await?;
                context.note_running(&plan);
                Ok::<_, DataFusionError>((execute_stream(plan, tasks)?, divided))
            };
            let result = match begin.await {
                Ok((rows, true)) => take(watched(rows, lost.clone()), true).await,
                Ok((rows, false)) => take(rows, false).await,
                Err(error) => {
                    lost.store(may_be_loss(&error), Ordering::Relaxed);
                    Err(error.into())
                }
            };
            match result {
                Err(_) if left > 0 && lost.load(Ordering::Relaxed) => tokio::time::sleep(Duration::from_millis(200)).await,
                result => return result,
            }
        }
    }
}

/// The same rows; `lost` becomes true with an error that may be the loss of a worker.
fn watched(rows: SendableRecordBatchStream, lost: Arc<AtomicBool>) -> SendableRecordBatchStream {
    let schema = rows.schema();
    let rows = rows.inspect_err(move |error| lost.store(may_be_loss(error), Ordering::Relaxed));
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}

/// What workers and clients have to agree on.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a worker says of itself in its version, the only text that it is asked for.
struct About {
    /// Threads that it offers to a statement.
    threads: usize,
}

impl std::fmt::Display for About {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{VERSION}, {} threads", self.threads)
    }
}

impl std::str::FromStr for About {
    /// The version, if it is another.
    type Err = String;

    fn from_str(told: &str) -> std::result::Result<About, String> {
        let (version, rest) = told.split_once(", ").unwrap_or((told, ""));
        let threads = rest.strip_suffix(" threads").and_then(|n| n.parse().ok()).filter(|_| version == VERSION);
        threads.map(|threads| About { threads }).ok_or_else(|| version.to_owned())
    }
}

fn address(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default())
}

/// Whether the network or a worker can be to blame. What the statement or its data is to blame for fails again on every worker.
fn may_be_loss(error: &DataFusionError) -> bool {
    if crate::error::own(error).is_some() {
        return false;
    }
    !matches!(
        error.find_root(),
        DataFusionError::SQL(..)
            | DataFusionError::Plan(_)
            | DataFusionError::SchemaError(..)
            | DataFusionError::NotImplemented(_)
            | DataFusionError::Configuration(_)
            | DataFusionError::ResourcesExhausted(_)
            | DataFusionError::ArrowError(..)
    )
}

// Connections.

/// One connection a worker, kept for all statements.
#[derive(Clone)]
pub(crate) struct Channels {
    token: Option<AsciiMetadataValue>,
    open: Arc<Mutex<HashMap<Url, BoxCloneSyncChannel>>>,
}

impl Channels {
    pub(crate) fn new(token: Option<&str>) -> Result<Channels> {
        let header = |token: &str| {
            format!("Bearer {token}")
                .parse()
                .map_err(|_| MergeError::new(Code::InvalidArgument, "the token is not plain ASCII text"))
        };
        Ok(Channels { token: token.map(header).transpose()?, open: Arc::default() })
    }

    fn channel(&self, url: &Url) -> datafusion::common::Result<BoxCloneSyncChannel> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = open.get(url) {
            return Ok(channel.clone());
        }
        let endpoint = tonic::transport::Channel::from_shared(url.to_string())
            .map_err(|e| DataFusionError::Configuration(format!("the worker `{url}`: {e}")))?
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true)
            // A worker that stopped without closing its connections is found out by these.
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(60))
            .keep_alive_while_idle(true);
        let channel = BoxCloneSyncChannel::new(WithToken { inner: endpoint.connect_lazy(), token: self.token.clone() });
        open.insert(url.clone(), channel.clone());
        Ok(channel)
    }

    /// The version of a worker, or why there is none.
    async fn greet(&self, url: &Url) -> std::result::Result<String, String> {
        let ask = async {
            let mut worker = self.get_worker_client_for_url(url).await?;
            worker.get_worker_info(GetWorkerInfoRequest {}).await
        };
        match tokio::time::timeout(Duration::from_secs(5), ask).await {
            Ok(Ok(info)) => Ok(info.version),
            Ok(Err(error)) => Err(reason(&error)),
            Err(_) => Err("it does not answer".to_owned()),
        }
    }
}

/// The last cause of a failure: what is before it names the steps to it.
fn reason(error: &DataFusionError) -> String {
    let text = error.strip_backtrace();
    if text.contains("valid authentication credentials") {
        return "it asks for a token (--token-file)".to_owned();
    }
    if text.contains("tcp connect error") || text.contains("transport error") {
        return "it cannot be reached".to_owned();
    }
    text.lines().next_back().unwrap_or_default().to_owned()
}

#[async_trait]
impl ChannelResolver for Channels {
    async fn get_worker_client_for_url(&self, url: &Url) -> datafusion::common::Result<Box<dyn WorkerChannel>> {
        Ok(create_worker_client(self.channel(url)?))
    }
}

/// A connection whose calls carry the token.
#[derive(Clone)]
struct WithToken {
    inner: tonic::transport::Channel,
    token: Option<AsciiMetadataValue>,
}

impl tonic::codegen::Service<tonic::codegen::http::Request<tonic::body::Body>> for WithToken {
    type Response = tonic::codegen::http::Response<tonic::body::Body>;
    type Error = tonic::transport::Error;
    type Future = <tonic::transport::Channel as tonic::codegen::Service<tonic::codegen::http::Request<tonic::body::Body>>>::Future;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<std::result::Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: tonic::codegen::http::Request<tonic::body::Body>) -> Self::Future {
        if let Some(token) = &self.token
            && let Ok(value) = tonic::codegen::http::HeaderValue::from_bytes(token.as_bytes())
        {
            request.headers_mut().insert("authorization", value);
        }
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_of_another_version_is_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let worker = datafusion_distributed::Worker::default().with_version("0.0.1").into_worker_server();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(worker).serve_with_incoming(incoming));
        let workers = vec![Url::parse(&format!("http://{address}")).expect("a URL")];
        let client = Client::new(&Cluster { workers, token: None, task_size: 1 }, None).expect("a client");
        let error = client.gather().await.expect_err("it is refused");
        assert!(error.to_string().contains("of version 0.0.1"), "{error}");
    }
}
