//! A worker: it runs the stages that clients and other workers send it.

use super::{About, Channels, Codec, bounded};
use crate::context::{Access, Config, MergeContext, functions};
use crate::error::{MergeError, Result};
use crate::hashed::HashedMerges;
use crate::serve::flight::Flight;
use crate::serve::incoming::{Heard, incoming};
use crate::serve::limits::Limits;
use crate::serve::{Credentials, check_open, listener};
use arrow_flight::flight_service_server::FlightServiceServer;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion_distributed::{DistributedExt, WorkerPlanRewriteEvent, WorkerPlanRewriteEventResponse, WorkerQueryContext};
use mergeql_udfs::Code;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};

/// How a worker runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The tokens that it lets in; it shows the first one to other workers.
    pub credentials: Credentials,
    /// Memory of its stages in bytes; beyond it, partial states spill to disk.
    pub memory_limit: Option<usize>,
}

/// A worker that has its port and does not answer yet.
pub struct Worker {
    listener: std::net::TcpListener,
    options: Options,
}

impl Worker {
    /// Takes the port.
    ///
    /// # Errors
    /// `invalid_argument` if the address is not loopback and there are no tokens, `io` if the port is taken.
    pub fn bind(options: Options) -> Result<Worker> {
        check_open(options.listen.ip(), &options.credentials, false)?;
        Ok(Worker { listener: listener(options.listen)?, options })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// `io`.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Answers until it is dropped.
    ///
    /// # Errors
    /// `io` if the listener fails.
    pub async fn run(self) -> Result<()> {
        let worker = Some(self.address()?);
        let Worker { listener, options } = self;
        let listener = TcpListener::from_std(listener)?;
        // Ranges of sorted merges come as statements.
        let access = Access { read_only: true, no_files: false, commands: false };
        let context = MergeContext::new(Config { memory_limit: options.memory_limit, access, worker, ..Config::default() })?;
        // The memory of both ways is one.
        let runtime = context.session().runtime_env();
        let turns = Arc::new(Limits::new(std::thread::available_parallelism().map_or(4, usize::from), None));
        let statements = FlightServiceServer::new(Flight::new(context, turns, options.credentials.clone())?);
        let channels = Channels::new(options.credentials.token())?;
        let limit = options.memory_limit;
        let session = move |query: WorkerQueryContext| {
            let channels = channels.clone();
            async move {
                let (aggregates, scalars) = functions();
                let folds = super::folds::received(&query.headers);
                let mut builder = query.builder.with_default_features();
                builder.aggregate_functions().get_or_insert_default().extend(aggregates.into_iter().map(Arc::new));
                builder.scalar_functions().get_or_insert_default().extend(scalars.into_iter().chain(folds).map(Arc::new));
                let builder = builder.with_distributed_user_codec(Codec).with_distributed_channel_resolver(channels);
                let builder = match limit {
                    None => builder.with_distributed_worker_plan_rewrite_handler(hashed),
                    // Under a limit states must spill, which the hashed plan does not.
                    Some(limit) => {
                        let mut builder = builder.with_distributed_worker_plan_rewrite_handler(in_one);
                        let config = std::mem::take(builder.config().get_or_insert_default());
                        builder.with_config(bounded::config(config, limit))
                    }
                };
                Ok(builder.build())
            }
        };
        let threads = match limit {
            None => tokio::runtime::Handle::current().metrics().num_workers(),
            Some(_) => bounded::PARTITIONS,
        };
        let worker = datafusion_distributed::Worker::from_session_builder(session)
            .with_runtime_env(runtime)
            .with_version(About { threads }.to_string());
        let credentials = options.credentials;
        let known = move |request: Request<()>| {
            let token =
                request.metadata().get("authorization").and_then(|h| h.to_str().ok()).and_then(|h| h.strip_prefix("Bearer "));
            match !credentials.is_some() || token.is_some_and(|t| credentials.allows_token(t)) {
                true => {
                    Heard::tell(&request);
                    Ok(request)
                }
                false => Err(Status::unauthenticated("a token is needed")),
            }
        };
        let served = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .add_service(InterceptedService::new(worker.into_worker_server(), known.clone()))
            .add_service(InterceptedService::new(statements, known))
            .serve_with_incoming(incoming(listener, Semaphore::MAX_PERMITS))
            .await;
        served.map_err(|e| MergeError::new(Code::Io, format!("the worker: {e}")))
    }
}

/// The hashed plan for the last steps of a stage.
#[allow(clippy::needless_pass_by_value)] // the handler's signature
fn hashed(event: WorkerPlanRewriteEvent<'_>) -> datafusion::common::Result<WorkerPlanRewriteEventResponse> {
    Ok(WorkerPlanRewriteEventResponse::new(HashedMerges.optimize(event.plan, event.session_config.options())?))
}

#[allow(clippy::needless_pass_by_value)] // the handler's signature
fn in_one(event: WorkerPlanRewriteEvent<'_>) -> datafusion::common::Result<WorkerPlanRewriteEventResponse> {
    Ok(WorkerPlanRewriteEventResponse::new(bounded::in_one(event.plan)))
}
