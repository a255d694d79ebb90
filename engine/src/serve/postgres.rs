//! Postgres' protocol: psql and programs with a driver for Postgres send MergeQL as text.

use super::catalog::{Asks, asks, of_session, rewritten, shown};
use super::copy::{self, Copies, Receiving};
use super::cursors::{Cursors, declared, end_cursors, folded, forward_only, holds, moved};
use super::incoming::accept;
use super::limits::{Limits, TIMED_OUT, Turn};
use super::login::{Startup, check_admitted};
use super::parameters::{parameters, with_parameters};
use super::rows::{encoded, fields};
use super::{Options, Tls};
use crate::context::{MergeContext, settings_are_shared};
use crate::error::{MergeError, Result};
use crate::prepare::{Prepared, touched};
use crate::spool::Spool;
use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{Deallocate, EmptyRelation, LogicalPlan, Statement as PlanStatement};
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion_postgres::datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use datafusion_postgres::hooks::HookClient;
use datafusion_postgres::hooks::cursor::CursorStatementHook;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use datafusion_postgres::pgwire::api::auth::StartupHandler;
use datafusion_postgres::pgwire::api::cancel::{CancelHandler, DefaultCancelHandler};
use datafusion_postgres::pgwire::api::copy::CopyHandler;
use datafusion_postgres::pgwire::api::portal::{Format, Portal};
use datafusion_postgres::pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use datafusion_postgres::pgwire::api::results::{FieldInfo, QueryResponse, Response, Tag};
use datafusion_postgres::pgwire::api::stmt::QueryParser;
use datafusion_postgres::pgwire::api::store::{Entry, PortalStore};
use datafusion_postgres::pgwire::api::{
    ClientInfo, ClientPortalStore, ConnectionHandle, ConnectionManager, DEFAULT_NAME, PgWireServerHandlers, Type,
};
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::PgWireBackendMessage;
use datafusion_postgres::pgwire::messages::data::{NoData, ParameterDescription};
use datafusion_postgres::pgwire::messages::extendedquery::{Describe, Execute, TARGET_TYPE_BYTE_STATEMENT};
use datafusion_postgres::pgwire::messages::response::TransactionStatus;
use datafusion_postgres::pgwire::messages::simplequery::Query;
use datafusion_postgres::pgwire::tokio::process_socket;
use datafusion_postgres::pgwire::types::format::FormatOptions;
use datafusion_postgres::{QueryHook, pgwire::tokio::TlsAcceptor};
use futures::future::Either;
use futures::{FutureExt, Sink, SinkExt, StreamExt};
use mergeql_lang::ast::{Piece, Statement};
use mergeql_udfs::Code;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use datafusion::sql::sqlparser::ast as sql;

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
        let extended = Arc::new(Extended(Arc::new(Parser(service.clone()))));
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

/// What the portals of datafusion-postgres hold: the text, its statement and its plan.
pub(super) type Held = (String, Option<(sql::Statement, LogicalPlan)>);

#[derive(Clone)]
pub(super) struct Service {
    pub(super) context: MergeContext,
    pub(super) limits: Arc<Limits>,
    parser: Arc<PostgresCompatibilityParser>,
    /// SET and SHOW of what belongs to a connection alone: they must not touch the session that all share.
    settings: SessionContext,
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
    fn foreign(&self, text: &str) -> Option<sql::Statement> {
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
    fn to_run(&self, text: &str, foreign: Option<&sql::Statement>) -> String {
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

    async fn hooked(&self, statement: &sql::Statement, client: &mut dyn HookClient) -> Option<PgWireResult<Response>> {
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

    /// The plan of a prepared statement over the tables as they are now.
    async fn renewed<C: ClientInfo>(&self, client: &C, held: &Held, kind: &str, plan: &LogicalPlan) -> Result<LogicalPlan> {
        let turn = self.limits.turn(timeout(client)).await?;
        let (context, text, plan) = (self.context.clone(), held.0.clone(), plan.clone());
        let is_query = kind == QUERY;
        let renewed = async move {
            let text = declared(&text).map_or(text.as_str(), |(_, query)| query);
            let new = context.renewed(text, &plan).await?;
            let columns = |plan: &LogicalPlan| {
                let fields = plan.schema().fields().iter();
                fields.map(|f| (f.name().clone(), f.data_type().clone())).collect::<Vec<_>>()
            };
            match is_query && columns(&new) != columns(&plan) {
                true => Err(MergeError::new(Code::Unsupported, "the statement gives other columns than when it was prepared")
                    .help("prepare it again")),
                false => Ok(new),
            }
        };
        turn.run(renewed).await
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
async fn cancellable<C: ClientInfo + ?Sized>(client: &C, mut responses: Vec<Response>) -> Vec<Response> {
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

fn run(context: &MergeContext, text: &str) -> impl Future<Output = Result<DataFrame>> + Send + use<> {
    let (context, text) = (context.clone(), text.to_owned());
    async move { context.sql(&text).await }
}

async fn command(turn: Turn, tag: &str, run: impl Future<Output = Result<DataFrame>> + Send + 'static) -> Result<Response> {
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
fn housekeeping(statement: &sql::Statement) -> Option<&'static str> {
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
fn go_back<C: ClientInfo>(client: &mut C, statement: Option<&sql::Statement>) {
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
            let statement = self.foreign(&query.query);
            go_back(client, statement.as_ref());
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
                Ok(response) => responses.push(response),
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
fn refuse_after_failure<C: ClientInfo>(client: &C) -> PgWireResult<()> {
    match client.transaction_status() {
        TransactionStatus::Error => Err(refused("25P02", ABORTED)),
        _ => Ok(()),
    }
}

/// Marks what is held as ours; only statements that the hooks answer are held as themselves.
pub(super) fn marked(kind: &str, plan: LogicalPlan) -> (sql::Statement, LogicalPlan) {
    (sql::Statement::Savepoint { name: sql::Ident::new(kind) }, plan)
}

// No savepoint of a client has such a name: its texts hold no zero.
pub(super) const QUERY: &str = "\0query";
const COMMAND: &str = "\0command";
const DECLARE: &str = "\0declare";

fn kind(held: &Held) -> Option<&str> {
    match &held.1 {
        Some((sql::Statement::Savepoint { name }, _)) if name.value.starts_with('\0') => Some(&name.value),
        _ => None,
    }
}

fn nothing() -> LogicalPlan {
    LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema: Arc::new(datafusion::common::DFSchema::empty()) })
}

/// The most rows that a portal gives at once.
const MOST_ROWS: i32 = 1 << 20;

/// What the parse step of the protocol needs of the service.
struct Parser(Arc<Service>);

#[async_trait]
impl QueryParser for Parser {
    type Statement = Held;

    async fn parse_sql<C>(&self, client: &C, text: &str, _: &[Option<Type>]) -> PgWireResult<Option<Held>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        check_admitted(client)?;
        let service = &self.0;
        if let Some((_, query)) = declared(text) {
            let told = |e: MergeError| told(&e, text);
            let turn = service.limits.turn(timeout(client)).await.map_err(told)?;
            let prepared = turn.run(look(&service.context, query)).await.map_err(told)?;
            let plan = service.over(prepared).map_err(told)?.into_unoptimized_plan();
            return Ok(Some((text.to_owned(), Some(marked(DECLARE, plan)))));
        }
        if copy::parsed(text).is_some() {
            let simple = MergeError::new(Code::Unsupported, "COPY through the connection is no prepared statement")
                .help("send it as a simple query, without parameters");
            return Err(told(&simple, text));
        }
        let foreign = service.foreign(text);
        if let Some(statement @ sql::Statement::Fetch { name, .. }) = &foreign {
            let cursors = client.session_extensions().get_or_insert_with(Cursors::default);
            let cursors = cursors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some((plan, _)) = cursors.get(&folded(&name.value, name.quote_style)) {
                let columns = EmptyRelation { produce_one_row: false, schema: plan.schema().clone() };
                return Ok(Some((text.to_owned(), Some((statement.clone(), LogicalPlan::EmptyRelation(columns))))));
            }
        }
        if let Some(statement) = &foreign {
            let marks = matches!(statement, sql::Statement::Savepoint { .. } | sql::Statement::ReleaseSavepoint { .. });
            if marks || housekeeping(statement).is_some() {
                return Ok(Some((text.to_owned(), Some((statement.clone(), nothing())))));
            }
            let settings = &service.settings;
            let hooks: [&dyn QueryHook; 3] = [&TransactionStatementHook, &CursorStatementHook, &SetShowHook];
            for hook in hooks {
                if let Some(plan) = hook.handle_extended_parse_query(statement, settings, client).await {
                    return Ok(Some((text.to_owned(), Some((statement.clone(), plan?)))));
                }
            }
        }
        let to_run = service.to_run(text, foreign.as_ref());
        let turn = service.limits.turn(timeout(client)).await.map_err(|e| told(&e, text))?;
        let prepared = turn.run(look(&service.context, &to_run)).await.map_err(|e| told(&e, text))?;
        let plan = match prepared {
            Prepared::Query(frame) => marked(QUERY, frame.into_unoptimized_plan()),
            Prepared::Command { plan, .. } => marked(COMMAND, plan.unwrap_or_else(nothing)),
        };
        Ok(Some((to_run, Some(plan))))
    }

    fn get_parameter_types(&self, held: &Held) -> PgWireResult<Vec<Type>> {
        let Some((_, plan)) = &held.1 else { return Ok(Vec::new()) };
        parameters(plan).map(|(_, wire)| wire).map_err(|e| told(&e, &held.0))
    }

    fn get_result_schema(&self, held: &Held, format: Option<&Format>) -> PgWireResult<Vec<FieldInfo>> {
        match &held.1 {
            Some((statement, plan)) if !matches!(kind(held), Some(COMMAND | DECLARE)) => {
                // The rows of a cursor are text.
                let fetches = matches!(statement, sql::Statement::Fetch { .. });
                let format = format.filter(|_| !fetches).unwrap_or(&Format::UnifiedText);
                fields(plan.schema().as_arrow(), format, None).map_err(|e| told(&e, &held.0))
            }
            _ => Ok(Vec::new()),
        }
    }
}

#[async_trait]
impl ExtendedQueryHandler for Extended {
    type Statement = Held;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Parser> {
        self.0.clone()
    }

    async fn on_execute<C>(&self, client: &mut C, mut message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Held>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        if let Some(Entry::Value(portal)) = client.portal_store().get_portal(name) {
            go_back(client, portal.statement.statement.1.as_ref().map(|(statement, _)| statement));
        }
        // The library makes room for as many rows at once: who asks for more gets these, and asks again.
        message.max_rows = message.max_rows.clamp(0, MOST_ROWS);
        self._on_execute(client, message).await
    }

    /// A statement that gives no rows is told so: the library speaks of rows without columns where there are parameters, and JDBC then counts
    /// none of a batch.
    async fn on_describe<C>(&self, client: &mut C, message: Describe) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Held>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        if message.target_type == TARGET_TYPE_BYTE_STATEMENT
            && let Some(Entry::Value(statement)) = client.portal_store().get_statement(name)
        {
            let described = self.do_describe_statement(client, &statement).await?;
            if described.fields.is_empty() {
                let types = described.parameters.iter().map(Type::oid).collect();
                client.send(PgWireBackendMessage::ParameterDescription(ParameterDescription::new(types))).await?;
                client.send(PgWireBackendMessage::NoData(NoData::new())).await?;
                return Ok(());
            }
        }
        self._on_describe(client, message).await
    }

    async fn do_query<C>(&self, client: &mut C, portal: &Portal<Held>, max_rows: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        check_admitted(client)?;
        let service = &self.0.0;
        let held = &portal.statement.statement;
        let (text, Some((statement, plan))) = held else { return Ok(Response::EmptyQuery) };
        let Some(kind) = kind(held) else {
            return match service.hooked(statement, client).await {
                Some(response) => given(client, portal, response?, max_rows).await,
                None => Ok(Response::EmptyQuery),
            };
        };
        refuse_after_failure(client)?;
        let plan = service.renewed(client, held, kind, plan).await.map_err(|e| told(&e, text))?;
        let plan = with_parameters(portal, &plan)?;
        if let (DECLARE, Some((name, query))) = (kind, declared(text)) {
            let cursor = (name, holds(text, query));
            return service.declare(client, cursor, query, Some(plan)).await.map_err(|e| told(&e, text));
        }
        let options = Arc::new(FormatOptions::from_client_metadata(client.metadata()));
        let answer = async {
            let turn = service.limits.turn(timeout(client)).await?;
            let context = &service.context;
            if kind == COMMAND {
                let plain = !matches!(plan, LogicalPlan::EmptyRelation(_));
                let tag = turn.run(look(context, text)).await.map_or("MERGE", |p| match p {
                    Prepared::Command { tag, .. } => tag,
                    Prepared::Query(_) => "SELECT",
                });
                if !plain {
                    return command(turn, tag, run(context, text)).await;
                }
                let (context, text) = (context.clone(), text.clone());
                return command(turn, tag, async move { context.run_plan(plan, &text).await }).await;
            }
            let frame = service.frame(&turn, text, plan).await?;
            service.rows(turn, frame, &portal.result_column_format, options).await
        };
        let response = answer.await.map_err(|e: MergeError| told(&e, text))?;
        given(client, portal, response, max_rows).await
    }
}

/// A response whose rows go out as they come where all are asked for: a portal would hold them all before it gives the first.
async fn given<C>(client: &mut C, portal: &Portal<Held>, response: Response, max_rows: usize) -> PgWireResult<Response>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    C::Error: std::fmt::Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    match response {
        Response::Query(mut query) if max_rows == 0 => {
            let mut rows = 0;
            while let Some(row) = query.data_rows().next().await {
                client.feed(PgWireBackendMessage::DataRow(row?)).await?;
                rows += 1;
            }
            portal.start(QueryResponse::new(query.row_schema(), futures::stream::empty())).await;
            Ok(Response::Execution(Tag::new(query.command_tag()).with_rows(rows)))
        }
        response => Ok(cancellable(client, vec![response]).await.remove(0)),
    }
}

/// The handler of prepared statements.
struct Extended(Arc<Parser>);
