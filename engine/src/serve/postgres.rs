//! Postgres' protocol: psql and programs with a driver for Postgres send MergeQL as text.

use super::catalog::{Asks, asks, of_session, rewritten, shown};
use super::copy::{self, Copies, Receiving};
use super::cursors::{declared, end_cursors, folded, forward_only, holds, moved};
use super::incoming::accept;
use super::limits::{Limits, TIMED_OUT, Turn};
use super::login::{Startup, check_admitted};
use super::prepared::Extended;
use super::rows::{encoded, fields};
use super::{Options, Tls};
use crate::context::{MergeContext, settings_are_shared};
use crate::error::{MergeError, Result};
use crate::prepare::{Prepared, touched};
use crate::spool::Spool;
use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{Deallocate, LogicalPlan, Statement as PlanStatement};
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::sql::sqlparser::ast as sql;
use datafusion_postgres::datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use datafusion_postgres::hooks::HookClient;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use datafusion_postgres::pgwire::api::auth::StartupHandler;
use datafusion_postgres::pgwire::api::cancel::{CancelHandler, DefaultCancelHandler};
use datafusion_postgres::pgwire::api::copy::CopyHandler;
use datafusion_postgres::pgwire::api::portal::Format;
use datafusion_postgres::pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use datafusion_postgres::pgwire::api::results::{QueryResponse, Response, Tag};
use datafusion_postgres::pgwire::api::store::PortalStore;
use datafusion_postgres::pgwire::api::{ClientInfo, ClientPortalStore, ConnectionHandle, ConnectionManager, PgWireServerHandlers};
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::PgWireBackendMessage;
use datafusion_postgres::pgwire::messages::response::TransactionStatus;
use datafusion_postgres::pgwire::messages::simplequery::Query;
use datafusion_postgres::pgwire::tokio::process_socket;
use datafusion_postgres::pgwire::types::format::FormatOptions;
use datafusion_postgres::{QueryHook, pgwire::tokio::TlsAcceptor};
use futures::future::Either;
use futures::{FutureExt, Sink, StreamExt};
use mergeql_lang::ast::{Piece, Statement};
use mergeql_udfs::Code;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Answers clients as they come.
pub(super) async fn serve(
    listener: TcpListener,
    context: MergeContext,
    limits: Arc<Limits>,
    options: &Options,
    tls: Option<&Tls>,
) -> Result<()> {
    let tls = tls.map(|tls| TlsAcceptor::from(tls.config.clone()));
    let connections = Arc::new(ConnectionManager::new());
    let service = Service::new(context, limits);
    let places = Arc::new(Semaphore::new(options.max_connections.max(1)));
    loop {
        let socket = accept(&listener).await;
        let startup = Arc::new(Startup::new(tls.is_some(), &options.credentials, places.clone(), connections.clone()));
        let cancel = Arc::new(DefaultCancelHandler::new(connections.clone()));
        let service = Arc::new(service.of_connection());
        let extended = Arc::new(Extended::new(service.clone()));
        let connection = Arc::new(Connection { service, extended, startup: startup.clone(), cancel });
        let talk = process_socket(socket, tls.clone(), connection);
        tokio::spawn(async move { startup.attend(talk).await });
    }
}

/// The handlers of one connection.
struct Connection {
    service: Arc<Service>,
    extended: Arc<Extended>,
    startup: Arc<Startup>,
    cancel: Arc<DefaultCancelHandler>,
}

impl PgWireServerHandlers for Connection {
    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        self.service.clone()
    }

    fn extended_query_handler(&self) -> Arc<impl ExtendedQueryHandler> {
        self.extended.clone()
    }

    fn startup_handler(&self) -> Arc<impl StartupHandler> {
        self.startup.clone()
    }

    fn cancel_handler(&self) -> Arc<impl CancelHandler> {
        self.cancel.clone()
    }

    fn copy_handler(&self) -> Arc<impl CopyHandler> {
        Arc::new(Copies(self.service.clone()))
    }
}

// What they ask.

#[derive(Clone)]
pub(super) struct Service {
    pub(super) context: MergeContext,
    pub(super) limits: Arc<Limits>,
    parser: Arc<PostgresCompatibilityParser>,
    /// SET and SHOW of what belongs to a connection alone: they must not touch the session that all share.
    pub(super) settings: SessionContext,
    /// The rows that the connection is sending.
    pub(super) receiving: Arc<Mutex<Option<Receiving>>>,
}

impl Service {
    fn new(context: MergeContext, limits: Arc<Limits>) -> Service {
        Service { context, limits, parser: Arc::default(), settings: SessionContext::new(), receiving: Arc::default() }
    }

    /// What answers one connection, which has temporary tables of its own.
    fn of_connection(&self) -> Service {
        Service { context: self.context.connection(), receiving: Arc::default(), ..self.clone() }
    }

    /// The statement as Postgres' clients mean it, unless it is MergeQL.
    pub(super) fn foreign(&self, text: &str) -> Option<sql::Statement> {
        tokio::task::block_in_place(|| self.read_as_foreign(text))
    }

    fn read_as_foreign(&self, text: &str) -> Option<sql::Statement> {
        match mergeql_lang::parse(text) {
            Ok(Statement::Sql(pieces)) if pieces.iter().all(|p| matches!(p, Piece::Text(_))) => {}
            _ => return None,
        }
        let parsed = |text: &str| self.parser.parse(text).ok().filter(|statements| statements.len() == 1)?.pop();
        let statement = parsed(text)?;
        Some(shown(&statement).and_then(|query| parsed(&query)).unwrap_or(statement))
    }

    /// The text to run: what clients ask of Postgres' catalogues is put into terms that the engine has.
    pub(super) fn to_run(&self, text: &str, foreign: Option<&sql::Statement>) -> String {
        let shows = text.trim_start().get(..4).is_some_and(|word| word.eq_ignore_ascii_case("show"));
        match foreign {
            Some(sql::Statement::ShowTables { .. }) => TABLES.to_owned(),
            Some(statement @ sql::Statement::Query(_)) if shows => rewritten(statement.clone()).to_string(),
            Some(statement @ sql::Statement::Query(_)) => {
                let asks = tokio::task::block_in_place(|| asks(text, &|name| self.context.has_table(name)));
                match asks {
                    Asks::Catalogues => rewritten(statement.clone()).to_string(),
                    Asks::Session => of_session(text).unwrap_or_else(|| text.to_owned()),
                    Asks::Nothing => text.to_owned(),
                }
            }
            _ => text.to_owned(),
        }
    }

    pub(super) async fn hooked(&self, statement: &sql::Statement, client: &mut dyn HookClient) -> Option<PgWireResult<Response>> {
        if let Some(answer) = savepoint(statement, client) {
            return Some(answer);
        }
        let ends = matches!(statement, sql::Statement::Commit { .. } | sql::Statement::Rollback { .. });
        if client.transaction_status() == TransactionStatus::Error && !ends {
            return Some(Err(refused("25P02", ABORTED)));
        }
        let session = self.context.session();
        if let Some(done) = TransactionStatementHook.handle_simple_query(statement, session, client).await {
            if ends {
                end_cursors(client, false);
            }
            return Some(done);
        }
        if let Some(done) = moved(statement, client).await {
            return Some(done);
        }
        if let sql::Statement::Reset(sql::ResetStatement { reset }) = statement {
            let all = match reset {
                sql::Reset::ALL => true,
                sql::Reset::ConfigurationParameter(name) => name.to_string().eq_ignore_ascii_case("statement_timeout"),
            };
            if all {
                client.metadata_mut().remove("statement_timeout_ms");
            }
        }
        match statement {
            sql::Statement::Deallocate { name, .. } => {
                client.portal_store().rm_statement(&name.value);
                let prepared = Deallocate { name: folded(&name.value, name.quote_style) };
                // What was prepared by the protocol is none of the session's.
                session.execute_logical_plan(LogicalPlan::Statement(PlanStatement::Deallocate(prepared))).await.ok();
            }
            sql::Statement::Discard { object_type } => {
                if matches!(object_type, sql::DiscardObject::ALL | sql::DiscardObject::TEMP) {
                    self.context.drop_all_temporary();
                }
                if matches!(object_type, sql::DiscardObject::ALL) {
                    end_cursors(client, true);
                    client.metadata_mut().remove("statement_timeout_ms");
                }
            }
            _ => {}
        }
        if let Some(tag) = housekeeping(statement) {
            return Some(Ok(Response::Execution(Tag::new(tag))));
        }
        if let sql::Statement::Set(sql::Set::SingleAssignment { variable, .. }) = statement
            && variable.to_string().starts_with("datafusion.")
        {
            return Some(Err(told(&settings_are_shared(), "")));
        }
        // However it is written: the library takes it without LOCAL and SESSION alone.
        let mut plain = statement.clone();
        if let sql::Statement::Set(sql::Set::SingleAssignment { scope, variable, .. }) = &mut plain
            && variable.to_string().eq_ignore_ascii_case("statement_timeout")
        {
            *scope = None;
        }
        SetShowHook.handle_simple_query(&plain, &self.settings, client).await
    }

    async fn run(
        &self,
        text: &str,
        format: &Format,
        timeout: Option<Duration>,
        options: Arc<FormatOptions>,
        last: bool,
    ) -> Result<Response> {
        let turn = self.limits.turn(timeout).await?;
        match turn.run(look(&self.context, text)).await? {
            Prepared::Command { tag, .. } => command(turn, tag, run(&self.context, text)).await,
            Prepared::Query(frame) => {
                let stream = self.stream(&turn, frame).await?;
                if last {
                    return Self::given(turn, stream, format, options).await;
                }
                // A statement after this one may change what it reads.
                let whole = turn.run(async { Ok(Spool::of(stream).await?.read()?) }).await?;
                Self::given(turn, whole, format, options).await
            }
        }
    }

    async fn stream(&self, turn: &Turn, frame: DataFrame) -> Result<SendableRecordBatchStream> {
        let context = self.context.clone();
        turn.run(async move { context.stream(frame).await }).await
    }

    /// The rows of a query, as text.
    pub(super) async fn query<C: ClientInfo>(&self, client: &C, text: &str) -> Result<QueryResponse> {
        let turn = self.limits.turn(timeout(client)).await?;
        let text = self.to_run(text, self.foreign(text).as_ref());
        let Prepared::Query(frame) = turn.run(look(&self.context, &text)).await? else {
            return Err(MergeError::new(Code::InvalidArgument, "this is no query, and gives no rows"));
        };
        let options = Arc::new(FormatOptions::from_client_metadata(client.metadata()));
        match self.rows(turn, frame, &Format::UnifiedText, options).await? {
            Response::Query(rows) => Ok(rows),
            _ => Err(MergeError::new(Code::InvalidArgument, "this is no query, and gives no rows")),
        }
    }

    pub(super) async fn frame(&self, turn: &Turn, text: &str, plan: LogicalPlan) -> Result<DataFrame> {
        let (context, text) = (self.context.clone(), text.to_owned());
        turn.run(async move { context.with_values(&text, plan).await }).await
    }

    pub(super) async fn rows(
        &self,
        turn: Turn,
        frame: DataFrame,
        format: &Format,
        options: Arc<FormatOptions>,
    ) -> Result<Response> {
        let stream = self.stream(&turn, frame).await?;
        Self::given(turn, stream, format, options).await
    }

    async fn given(
        turn: Turn,
        stream: SendableRecordBatchStream,
        format: &Format,
        options: Arc<FormatOptions>,
    ) -> Result<Response> {
        let fields = Arc::new(fields(&stream.schema(), format, Some(options))?);
        // Until the first rows are there, the client can cancel, and what fails is the statement and not its rows.
        let mut rows = Box::pin(turn.rows(stream));
        let first = rows.next().await.transpose()?;
        let rows = futures::stream::iter(first.map(Ok)).chain(rows);
        Ok(Response::Query(QueryResponse::new(fields.clone(), encoded(rows, fields))))
    }
}

/// Responses whose rows end when the client cancels while it reads them.
pub(super) async fn cancellable<C: ClientInfo + ?Sized>(client: &C, mut responses: Vec<Response>) -> Vec<Response> {
    let queries = responses.iter().any(|response| matches!(response, Response::Query(_)));
    let Some(connection) = client.session_extensions().get::<Arc<ConnectionHandle>>().filter(|_| queries) else { return responses };
    // A receiver that nothing reaches any more is that of an earlier statement, whose rows a cursor still gives.
    let canceled = connection.start_query().await.map(|canceled| canceled.is_ok()).shared();
    for response in &mut responses {
        let Response::Query(query) = response else { continue };
        let rows = std::mem::replace(query.data_rows(), futures::stream::empty().boxed());
        let watched = futures::stream::unfold((rows, Some(canceled.clone())), |(mut rows, canceled)| async move {
            let Some(signal) = canceled else { return rows.next().await.map(|row| (row, (rows, None))) };
            match futures::future::select(signal.clone(), rows.next()).await {
                Either::Left((true, _)) => Some((Err(PgWireError::QueryCanceled), (futures::stream::empty().boxed(), None))),
                Either::Left((false, next)) => next.await.map(|row| (row, (rows, None))),
                Either::Right((row, _)) => row.map(|row| (row, (rows, Some(signal)))),
            }
        });
        *query.data_rows() = watched.boxed();
    }
    responses
}

pub(super) fn look(context: &MergeContext, text: &str) -> impl Future<Output = Result<Prepared>> + Send + use<> {
    let (context, text) = (context.clone(), text.to_owned());
    async move { context.prepare(&text).await.map_err(|e| forward_only(&text, e)) }
}

pub(super) fn run(context: &MergeContext, text: &str) -> impl Future<Output = Result<DataFrame>> + Send + use<> {
    let (context, text) = (context.clone(), text.to_owned());
    async move { context.sql(&text).await }
}

pub(super) async fn command(
    turn: Turn,
    tag: &str,
    run: impl Future<Output = Result<DataFrame>> + Send + 'static,
) -> Result<Response> {
    let batches = turn.run(async { Ok(run.await?.collect().await?) }).await?;
    Ok(Response::Execution(counted(tag, &batches)))
}

/// The tag of a command, with the rows that it says it touched.
fn counted(tag: &str, batches: &[RecordBatch]) -> Tag {
    match (tag, touched(batches).map(|n| n as usize)) {
        ("INSERT", Some(rows)) => Tag::new(tag).with_oid(0).with_rows(rows),
        ("MERGE" | "COPY" | "UPDATE" | "DELETE", Some(rows)) => Tag::new(tag).with_rows(rows),
        _ => Tag::new(tag),
    }
}

/// What clients say when they are done with something; the protocol's own messages do it.
pub(super) fn housekeeping(statement: &sql::Statement) -> Option<&'static str> {
    match statement {
        sql::Statement::Deallocate { .. } => Some("DEALLOCATE"),
        sql::Statement::Discard { .. } => Some("DISCARD ALL"),
        sql::Statement::UNLISTEN { .. } => Some("UNLISTEN"),
        // A setting of the engine is refused where the statement runs.
        sql::Statement::Reset(reset) if !reset.to_string().to_ascii_lowercase().contains("datafusion.") => Some("RESET"),
        _ => None,
    }
}

/// Savepoints are taken for the sake of drivers, as transactions are: there is nothing to go back to, and going back ends a failure.
fn savepoint(statement: &sql::Statement, client: &dyn HookClient) -> Option<PgWireResult<Response>> {
    let status = client.transaction_status();
    let failed = || refused("25P02", ABORTED);
    match statement {
        sql::Statement::Rollback { savepoint: Some(_), .. } if status == TransactionStatus::Idle => {
            Some(Err(refused("25P01", "ROLLBACK TO SAVEPOINT can only be used in transaction blocks")))
        }
        sql::Statement::Rollback { savepoint: Some(_), .. } => Some(Ok(Response::Execution(Tag::new("ROLLBACK")))),
        sql::Statement::Savepoint { .. } | sql::Statement::ReleaseSavepoint { .. } if status == TransactionStatus::Error => {
            Some(Err(failed()))
        }
        sql::Statement::Savepoint { .. } => Some(Ok(Response::Execution(Tag::new("SAVEPOINT")))),
        sql::Statement::ReleaseSavepoint { .. } => Some(Ok(Response::Execution(Tag::new("RELEASE")))),
        _ => None,
    }
}

/// Ends the failure of a transaction that goes back to a savepoint. Before the statement runs: the library sets the state that was there then.
pub(super) fn go_back<C: ClientInfo>(client: &mut C, statement: Option<&sql::Statement>) {
    let back = matches!(statement, Some(sql::Statement::Rollback { savepoint: Some(_), .. }));
    if back && client.transaction_status() == TransactionStatus::Error {
        client.set_transaction_status(TransactionStatus::Transaction);
    }
}

const ABORTED: &str = "current transaction is aborted, commands ignored until end of transaction block";

pub(super) fn refused(state: &str, message: &str) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".to_owned(), state.to_owned(), message.to_owned())))
}

/// What SHOW TABLES shows.
const TABLES: &str = "SELECT table_schema, table_name, table_type FROM information_schema.tables \
    WHERE table_schema NOT IN ('information_schema', 'pg_catalog') ORDER BY 1, 2";

/// An error as Postgres tells it.
pub(super) fn told(error: &MergeError, text: &str) -> PgWireError {
    let diagnostic = &error.diagnostic;
    let timed_out = diagnostic.code == Code::LimitExceeded && diagnostic.message == TIMED_OUT;
    let state = if timed_out { "57014" } else { diagnostic.code.sqlstate() };
    let message = format!("error[{}]: {}", diagnostic.code, diagnostic.message);
    let mut info = ErrorInfo::new("ERROR".to_owned(), state.to_owned(), message);
    info.detail = diagnostic.detail();
    info.hint = diagnostic.help.clone().or_else(|| diagnostic.label.clone());
    info.position = diagnostic.position(text).map(|p| p.to_string());
    PgWireError::UserError(Box::new(info))
}

pub(super) fn timeout<C: ClientInfo + ?Sized>(client: &C) -> Option<Duration> {
    let asked = client.metadata().get("statement_timeout_ms")?.parse().ok()?;
    Some(Duration::from_millis(asked))
}

#[async_trait]
impl SimpleQueryHandler for Service {
    async fn on_query<C>(&self, client: &mut C, query: Query) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if client.transaction_status() == TransactionStatus::Error {
            let first = tokio::task::block_in_place(|| mergeql_lang::split(&query.query)).ok().and_then(|all| all.first().copied());
            go_back(client, first.and_then(|text| self.foreign(text)).as_ref());
        }
        self._on_query(client, query).await
    }

    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        check_admitted(client)?;
        let in_query = |e: MergeError, offset: usize| told(&e.map(|d| d.in_script(query, offset, None)), query);
        // Reading a long text takes a while, in which others are listened to.
        let statements = tokio::task::block_in_place(|| mergeql_lang::split(query)).map_err(|e| in_query(e.into(), 0))?;
        if statements.is_empty() {
            return Ok(vec![Response::EmptyQuery]);
        }
        let last = statements.len() - 1;
        let mut responses = Vec::new();
        for (i, text) in statements.into_iter().enumerate() {
            match self.one(client, query, text, (last == 0, i == last)).await {
                Ok(response) => {
                    // The library sets the state when it tells the response, which is after the statements behind this one.
                    match &response {
                        Response::TransactionStart(_) => client.set_transaction_status(TransactionStatus::Transaction),
                        Response::TransactionEnd(_) => client.set_transaction_status(TransactionStatus::Idle),
                        _ => {}
                    }
                    responses.push(response);
                }
                // What was done before is told, and then that this one was not.
                Err(PgWireError::UserError(error)) if i > 0 => {
                    responses.push(Response::Error(error));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(cancellable(client, responses).await)
    }
}

impl Service {
    /// Runs one statement of a query of the simple protocol.
    async fn one<C>(&self, client: &mut C, query: &str, text: &str, (alone, last): (bool, bool)) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let in_query = |e: MergeError, offset: usize| told(&e.map(|d| d.in_script(query, offset, None)), query);
        let offset = text.as_ptr() as usize - query.as_ptr() as usize;
        if let Some((name, of)) = declared(text) {
            refuse_after_failure(client)?;
            let offset = of.as_ptr() as usize - query.as_ptr() as usize;
            return self.declare(client, (name, holds(text, of)), of, None).await.map_err(|e| in_query(e, offset));
        }
        if let Some(copy) = copy::parsed(text) {
            refuse_after_failure(client)?;
            let among =
                || MergeError::new(Code::Unsupported, "COPY through the connection is sent by itself, without other statements");
            let copy = copy.and_then(|copy| if alone { Ok(copy) } else { Err(among()) });
            return self.copy(client, copy.map_err(|e| in_query(e, offset))?).await;
        }
        let foreign = self.foreign(text);
        if let Some(statement) = &foreign
            && let Some(response) = self.hooked(statement, client).await
        {
            return response;
        }
        if foreign.is_none() {
            refuse_after_failure(client)?;
        }
        let options = Arc::new(FormatOptions::from_client_metadata(client.metadata()));
        let to_run = self.to_run(text, foreign.as_ref());
        let response = self.run(&to_run, &Format::UnifiedText, timeout(client), options, last).await;
        // A place in other text than the client's would mislead.
        response.map_err(|e| if to_run == text { in_query(e, offset) } else { told(&e, "") })
    }
}

/// In a transaction that failed nothing runs until its end.
pub(super) fn refuse_after_failure<C: ClientInfo>(client: &C) -> PgWireResult<()> {
    match client.transaction_status() {
        TransactionStatus::Error => Err(refused("25P02", ABORTED)),
        _ => Ok(()),
    }
}
