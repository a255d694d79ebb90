//! Arrow Flight SQL: rows as Arrow batches.

use super::incoming::{GREETING, Heard, incoming};
use super::limits::Limits;
use super::{Credentials, Options, Tls};
use crate::context::MergeContext;
use crate::current::Lasting;
use crate::error::{MergeError, Result};
use crate::prepare::{Prepared, bound, touched};
use crate::spool::Spool;
use arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::FlightServiceServer;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::server::{FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables,
    CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementIngest, CommandStatementQuery,
    CommandStatementUpdate, DoPutPreparedStatementResult, ProstMessageExt, SqlInfo, TicketStatementQuery,
};
use arrow_flight::{
    Action, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, IpcMessage, SchemaAsIpc,
    Ticket,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use datafusion::catalog::TableProvider;
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::DataFrame;
use futures::{Stream, StreamExt, TryStreamExt};
use mergeql_lang::lower::quote;
use mergeql_udfs::Code;
use prost::Message;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tonic::metadata::MetadataMap;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};

/// How long a statement that was prepared, or a client that said who it is, is remembered without a call.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);
/// How many of them at one time.
const MOST: usize = 10_000;

/// Answers clients until a listener fails.
pub(super) async fn serve(
    listener: TcpListener,
    context: MergeContext,
    limits: Arc<Limits>,
    options: &Options,
    tls: Option<&Tls>,
) -> Result<()> {
    let service = Flight::new(context, limits, options.credentials.clone())?;
    let sessions = service.sessions.clone();
    let credentials = options.credentials.clone();
    let known = move |request: Request<()>| -> std::result::Result<Request<()>, Status> {
        match allowed(&credentials, &sessions, request.metadata()) {
            true => {
                Heard::tell(&request);
                Ok(request)
            }
            false => Err(Status::unauthenticated("a user with a password or a token is needed")),
        }
    };
    let mut server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .http2_keepalive_timeout(Some(Duration::from_secs(30)))
        .max_concurrent_streams(256);
    if let Some(tls) = tls {
        let identity = tonic::transport::Identity::from_pem(&tls.certificate, &tls.key);
        let config = tonic::transport::ServerTlsConfig::new().identity(identity).timeout(GREETING);
        server = server
            .tls_config(config)
            .map_err(|e| MergeError::new(Code::InvalidArgument, format!("the certificate or its key cannot be used: {e}")))?;
    }
    // Drivers send a batch of rows as one message.
    let service = FlightServiceServer::new(service).max_decoding_message_size(MESSAGE);
    let service = InterceptedService::new(service, known);
    let served = server.add_service(service).serve_with_incoming(incoming(listener, options.max_connections)).await;
    served.map_err(|e| MergeError::new(Code::Io, format!("the Flight server: {e}")))
}

/// The most bytes of one message: tonic's own limit of 4 MB is less than a batch of many drivers.
const MESSAGE: usize = 1 << 30;

// Who is there.

fn allowed(credentials: &Credentials, sessions: &Kept<()>, metadata: &MetadataMap) -> bool {
    if !credentials.is_some() {
        return true;
    }
    let Some(header) = metadata.get("authorization").and_then(|h| h.to_str().ok()) else { return false };
    if let Some(token) = header.strip_prefix("Bearer ") {
        return credentials.allows_token(token) || sessions.get(token).is_some();
    }
    basic(header).is_some_and(|(user, password)| credentials.allows_user(&user, &password))
}

fn basic(header: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(STANDARD.decode(header.strip_prefix("Basic ")?).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// Things under names that nobody can guess, forgotten after a while.
struct Kept<T>(Mutex<HashMap<String, (Instant, T)>>);

impl<T> Default for Kept<T> {
    fn default() -> Kept<T> {
        Kept(Mutex::default())
    }
}

impl<T: Clone> Kept<T> {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, T)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, thing: T) -> String {
        let name = rand::random::<[u8; 16]>().map(|b| format!("{b:02x}")).concat();
        let mut all = self.all();
        if all.len() >= MOST {
            all.retain(|_, (used, _)| used.elapsed() < REMEMBERED);
        }
        if all.len() >= MOST
            && let Some(oldest) = all.iter().min_by_key(|(_, (used, _))| *used).map(|(name, _)| name.clone())
        {
            all.remove(&oldest);
        }
        all.insert(name.clone(), (Instant::now(), thing));
        name
    }

    fn get(&self, name: &str) -> Option<T> {
        let mut all = self.all();
        let (used, thing) = all.get_mut(name).filter(|(used, _)| used.elapsed() < REMEMBERED)?;
        *used = Instant::now();
        Some(thing.clone())
    }

    fn replace(&self, name: &str, thing: T) {
        self.all().insert(name.to_owned(), (Instant::now(), thing));
    }

    fn take(&self, name: &str) -> Option<T> {
        self.all().remove(name).map(|(_, thing)| thing)
    }
}

// What they ask.

pub(crate) struct Flight {
    context: MergeContext,
    limits: Arc<Limits>,
    credentials: Credentials,
    sessions: Arc<Kept<()>>,
    /// What commands came to, until their clients ask.
    counts: Kept<u64>,
    prepared: Kept<Statement>,
    about: SqlInfoData,
}

/// A prepared statement with the parameters that were bound to it.
#[derive(Clone)]
struct Statement {
    text: String,
    /// The plan of a query or of a command in plain SQL.
    plan: Option<LogicalPlan>,
    command: bool,
    /// Rows of them, or none before any were bound.
    parameters: Option<Vec<RecordBatch>>,
}

impl Statement {
    /// Its rows of parameters, one after the other, or once none if none were bound.
    fn rows(&self) -> impl Iterator<Item = Result<Option<Vec<ScalarValue>>>> {
        let row = |(batch, row): (&RecordBatch, usize)| {
            let values = batch.columns().iter().map(|c| Ok(ScalarValue::try_from_array(c, row)?));
            values.collect::<Result<Vec<_>>>().map(Some)
        };
        let bound = self.parameters.iter().flatten().flat_map(|batch| (0..batch.num_rows()).map(move |row| (batch, row)));
        let none = self.parameters.is_none().then_some(Ok(None));
        none.into_iter().chain(bound.map(row))
    }
}

/// A plan with values for its parameters, if there are any.
fn filled(plan: LogicalPlan, values: Option<Vec<ScalarValue>>) -> Result<LogicalPlan> {
    match values {
        Some(values) => bound(&plan, ParamValues::from(values)),
        None => Ok(plan),
    }
}

type Rows = Pin<Box<dyn Stream<Item = std::result::Result<FlightData, Status>> + Send>>;

fn status(error: impl Into<MergeError>) -> Status {
    let error = error.into();
    let text = error.to_string();
    match error.code() {
        Code::LimitExceeded => Status::resource_exhausted(text),
        Code::Io => Status::unavailable(text),
        Code::Unsupported => Status::unimplemented(text),
        Code::UnknownSource | Code::UnknownColumn | Code::UnknownStrategy => Status::not_found(text),
        _ => Status::invalid_argument(text),
    }
}

fn unknown(what: &str) -> Status {
    Status::not_found(format!("the server knows no such {what} (any more)"))
}

/// Types that every reader of Arrow knows: texts and bytes without views, values without dictionaries, which may differ from batch to batch.
fn plain(ty: &DataType) -> DataType {
    let field = |f: &Arc<Field>| Arc::new(f.as_ref().clone().with_data_type(plain(f.data_type())));
    match ty {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, values) => plain(values),
        DataType::RunEndEncoded(_, values) => plain(values.data_type()),
        DataType::List(f) => DataType::List(field(f)),
        DataType::LargeList(f) => DataType::LargeList(field(f)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        other => other.clone(),
    }
}

fn plain_schema(schema: &Schema) -> SchemaRef {
    Arc::new(Schema::new(
        schema.fields().iter().map(|f| f.as_ref().clone().with_data_type(plain(f.data_type()))).collect::<Vec<_>>(),
    ))
}

fn plain_batch(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns =
        batch.columns().iter().zip(schema.fields()).map(|(column, field)| match column.data_type() == field.data_type() {
            true => Ok(column.clone()),
            false => arrow::compute::cast(column, field.data_type()),
        });
    let columns = columns.collect::<std::result::Result<Vec<ArrayRef>, _>>()?;
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// What a command answers with.
fn count_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("rows", DataType::UInt64, false)]))
}

fn schema_bytes(schema: &Schema) -> std::result::Result<bytes::Bytes, Status> {
    let message: IpcMessage = SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into().map_err(status)?;
    Ok(message.0)
}

impl Flight {
    pub(crate) fn new(context: MergeContext, limits: Arc<Limits>, credentials: Credentials) -> Result<Flight> {
        let (counts, prepared, sessions) = (Kept::default(), Kept::default(), Arc::default());
        // Calls come each for itself: there is no connection whose tables they could be.
        let context = MergeContext { temporary: None, ..context };
        Ok(Flight { context, limits, credentials, sessions, counts, prepared, about: about()? })
    }

    async fn look(&self, text: &str, lasting: Lasting) -> std::result::Result<Prepared, Status> {
        let turn = self.limits.turn(None).await.map_err(status)?;
        let (context, text) = (self.context.lasting(lasting), text.to_owned());
        turn.run(async move { context.prepare(&text).await }).await.map_err(status)
    }

    fn info(
        &self,
        schema: &Schema,
        ticket: impl ProstMessageExt,
        descriptor: FlightDescriptor,
    ) -> std::result::Result<Response<FlightInfo>, Status> {
        let ticket = Ticket::new(ticket.as_any().encode_to_vec());
        let info = FlightInfo::new()
            .try_with_schema(schema)
            .map_err(status)?
            .with_endpoint(FlightEndpoint::new().with_ticket(ticket))
            .with_descriptor(descriptor);
        Ok(Response::new(info))
    }

    fn batches(batch: arrow::error::Result<RecordBatch>) -> std::result::Result<Response<Rows>, Status> {
        let batch = batch.map_err(status)?;
        let rows = futures::stream::iter([Ok::<_, FlightError>(batch.clone())]);
        let encoded = FlightDataEncoderBuilder::new().with_schema(batch.schema()).build(rows);
        Ok(Response::new(Box::pin(encoded.map_err(Status::from))))
    }

    /// The rows of a query.
    async fn rows(&self, frame: DataFrame) -> std::result::Result<Response<Rows>, Status> {
        let schema = plain_schema(frame.schema().as_arrow());
        let turn = self.limits.turn(None).await.map_err(status)?;
        let context = self.context.clone();
        let stream = turn.run(async move { context.stream(frame).await }).await.map_err(status)?;
        let plain = schema.clone();
        let rows = turn
            .rows(stream)
            .map(move |batch| batch.and_then(|b| plain_batch(&b, &plain)).map_err(|e| FlightError::Tonic(Box::new(status(e)))));
        let encoded = FlightDataEncoderBuilder::new().with_schema(schema).build(rows);
        Ok(Response::new(Box::pin(encoded.map_err(Status::from))))
    }

    /// Runs a command; gives back how many rows it touched.
    async fn command(&self, run: impl Future<Output = Result<DataFrame>> + Send + 'static) -> std::result::Result<u64, Status> {
        let turn = self.limits.turn(None).await.map_err(status)?;
        let batches = turn.run(async { Ok(run.await?.collect().await?) }).await.map_err(status)?;
        Ok(touched(&batches).unwrap_or(0))
    }

    async fn run_prepared(&self, statement: Statement) -> std::result::Result<u64, Status> {
        let Some(plan) = &statement.plan else { return self.text(statement.text).await };
        let mut count = 0;
        for values in statement.rows() {
            let (context, text, plan) = (self.context.clone(), statement.text.clone(), plan.clone());
            let run = async move {
                let plan = context.renewed(&text, &plan).await?;
                context.run_plan(filled(plan, values?)?, &text).await
            };
            count += self.command(run).await?;
        }
        Ok(count)
    }

    async fn text(&self, text: String) -> std::result::Result<u64, Status> {
        let context = self.context.clone();
        self.command(async move { context.sql(&text).await }).await
    }

    fn statement(&self, handle: &[u8]) -> std::result::Result<(String, Statement), Status> {
        let name = String::from_utf8_lossy(handle).into_owned();
        let statement = self.prepared.get(&name).ok_or_else(|| unknown("prepared statement"))?;
        Ok((name, statement))
    }

    /// A prepared statement with the parameters that a client sends for it.
    async fn bind(&self, handle: &[u8], stream: PeekableFlightDataStream) -> std::result::Result<(String, Statement), Status> {
        let (name, mut statement) = self.statement(handle)?;
        let received = received(stream).await?;
        // Clients send rows without columns where there is nothing to bind.
        statement.parameters = match received.schema().fields().is_empty() {
            true => None,
            false => Some(received.read().map_err(status)?.try_collect().await.map_err(status)?),
        };
        Ok((name, statement))
    }
}

/// The rows that a client sends: there may be none, and there may be more than memory holds.
async fn received(stream: PeekableFlightDataStream) -> std::result::Result<Spool, Status> {
    let data = stream.map_err(|e| FlightError::Tonic(Box::new(e)));
    let mut stream = FlightRecordBatchStream::new_from_flight_data(data);
    let mut spool = None;
    while let Some(batch) = stream.try_next().await.map_err(Status::from)? {
        if batch.num_rows() > 0 {
            spool.get_or_insert_with(|| Spool::new(batch.schema())).push(batch).map_err(status)?;
        }
    }
    let schema = stream.schema().ok_or_else(|| Status::invalid_argument("the rows have no schema"))?;
    Ok(spool.unwrap_or_else(|| Spool::new(schema.clone())))
}

#[tonic::async_trait]
impl FlightSqlService for Flight {
    type FlightService = Flight;

    async fn do_handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> std::result::Result<Response<Pin<Box<dyn Stream<Item = std::result::Result<HandshakeResponse, Status>> + Send>>>, Status>
    {
        let header = request.metadata().get("authorization").and_then(|h| h.to_str().ok()).unwrap_or_default();
        let known = basic(header).is_some_and(|(user, password)| self.credentials.allows_user(&user, &password));
        if !known && self.credentials.is_some() {
            return Err(Status::unauthenticated("the handshake takes a user with a password"));
        }
        let token = self.sessions.keep(());
        let answer = HandshakeResponse { protocol_version: 0, payload: token.clone().into_bytes().into() };
        let mut response: Response<Pin<Box<dyn Stream<Item = _> + Send>>> =
            Response::new(Box::pin(futures::stream::iter([Ok(answer)])));
        let header = format!("Bearer {token}").parse().map_err(|_| Status::internal("a token that is no header"))?;
        response.metadata_mut().insert("authorization", header);
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> std::result::Result<Response<FlightInfo>, Status> {
        let (schema, handle) = match self.look(&query.query, Lasting::No).await? {
            Prepared::Query(frame) => (plain_schema(frame.schema().as_arrow()), format!("q{}", query.query)),
            // Asking for a command's result is what runs it: clients may never fetch the one row of it.
            Prepared::Command { .. } => (count_schema(), format!("c{}", self.counts.keep(self.text(query.query).await?))),
        };
        self.info(&schema, TicketStatementQuery { statement_handle: handle.into_bytes().into() }, request.into_inner())
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        _: Request<Ticket>,
    ) -> std::result::Result<Response<Rows>, Status> {
        let handle = String::from_utf8_lossy(&ticket.statement_handle).into_owned();
        if let Some(text) = handle.strip_prefix('q') {
            return match self.look(text, Lasting::No).await? {
                Prepared::Query(frame) => self.rows(frame).await,
                Prepared::Command { .. } => Err(Status::invalid_argument("the ticket is not one of this server's")),
            };
        }
        let count = handle.strip_prefix('c').and_then(|name| self.counts.get(name)).ok_or_else(|| unknown("command"))?;
        Self::batches(RecordBatch::try_new(count_schema(), vec![Arc::new(UInt64Array::from(vec![count]))]))
    }

    async fn do_put_statement_update(
        &self,
        ticket: CommandStatementUpdate,
        _: Request<PeekableFlightDataStream>,
    ) -> std::result::Result<i64, Status> {
        Ok(self.text(ticket.query).await? as i64)
    }

    async fn do_put_statement_ingest(
        &self,
        ticket: CommandStatementIngest,
        request: Request<PeekableFlightDataStream>,
    ) -> std::result::Result<i64, Status> {
        use arrow_flight::sql::{TableExistsOption, TableNotExistOption};
        if ticket.temporary || ticket.schema.is_some_and(|s| s != "public") {
            return Err(Status::unimplemented("tables are kept in the schema `public`, and none is temporary"));
        }
        let definition = ticket.table_definition_options.unwrap_or_default();
        let received = received(request.into_inner()).await?;
        let rows = received.rows();
        let there = self.context.has_table(&ticket.table);
        let table = quote(&ticket.table);
        let incoming = received.table().map_err(status)?;
        let columns = incoming.schema();
        let passing = self.context.shared.names.pass("ingest", Arc::new(incoming));
        let name = &passing.name;
        let replaces = definition.if_exists() == TableExistsOption::Replace;
        let text = if there && definition.if_exists() == TableExistsOption::Append {
            // By name, as everywhere.
            let columns: Vec<String> = columns.fields().iter().map(|f| quote(f.name())).collect();
            let columns = columns.join(", ");
            format!("INSERT INTO {table} ({columns}) SELECT {columns} FROM {name}")
        } else {
            format!("CREATE {}TABLE {table} AS SELECT * FROM {name}", if there && replaces { "OR REPLACE " } else { "" })
        };
        let missing = !there && definition.if_not_exist() == TableNotExistOption::Fail;
        let done = match missing {
            true => Err(Status::not_found(format!("there is no table `{}`", ticket.table))),
            false => self.text(text).await,
        };
        done.map(|_| rows as i64)
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        _: Request<Action>,
    ) -> std::result::Result<ActionCreatePreparedStatementResult, Status> {
        let (plan, command) = match self.look(&query.query, Lasting::Files).await? {
            Prepared::Query(frame) => (Some(frame.into_unoptimized_plan()), false),
            Prepared::Command { plan, .. } => (plan, true),
        };
        let columns = match (&plan, command) {
            (Some(plan), false) => plain_schema(plan.schema().as_arrow()),
            _ => Arc::new(Schema::empty()),
        };
        let mut parameters = match &plan {
            Some(plan) => plan.get_parameter_types().map_err(status)?.into_iter().collect::<Vec<_>>(),
            None => Vec::new(),
        };
        parameters.sort_by_key(|(name, _)| name.trim_start_matches('$').parse::<u32>().unwrap_or(u32::MAX));
        let fields = parameters.into_iter().map(|(name, ty)| Field::new(name, plain(&ty.unwrap_or(DataType::Utf8)), true));
        let parameters = Schema::new(fields.collect::<Vec<_>>());
        let handle = self.prepared.keep(Statement { text: query.query, plan, command, parameters: None });
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle.into_bytes().into(),
            dataset_schema: schema_bytes(&columns)?,
            parameter_schema: schema_bytes(&parameters)?,
        })
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        _: Request<Action>,
    ) -> std::result::Result<(), Status> {
        self.prepared.take(&String::from_utf8_lossy(&query.prepared_statement_handle));
        Ok(())
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> std::result::Result<DoPutPreparedStatementResult, Status> {
        let (name, statement) = self.bind(&query.prepared_statement_handle, request.into_inner()).await?;
        // What is kept until it is asked for is no more than it can use.
        if !statement.command && statement.rows().nth(1).is_some() {
            return Err(Status::invalid_argument("a query takes one row of parameters"));
        }
        self.prepared.replace(&name, statement);
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(name.into_bytes().into()) })
    }

    async fn do_put_prepared_statement_update(
        &self,
        query: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> std::result::Result<i64, Status> {
        let (_, statement) = self.bind(&query.prepared_statement_handle, request.into_inner()).await?;
        Ok(self.run_prepared(statement).await? as i64)
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> std::result::Result<Response<FlightInfo>, Status> {
        let (_, statement) = self.statement(&query.prepared_statement_handle)?;
        match &statement.plan {
            Some(plan) if !statement.command => self.info(&plain_schema(plan.schema().as_arrow()), query, request.into_inner()),
            _ => {
                let handle = format!("c{}", self.counts.keep(self.run_prepared(statement).await?));
                let ticket = TicketStatementQuery { statement_handle: handle.into_bytes().into() };
                self.info(&count_schema(), ticket, request.into_inner())
            }
        }
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        _: Request<Ticket>,
    ) -> std::result::Result<Response<Rows>, Status> {
        let (_, statement) = self.statement(&query.prepared_statement_handle)?;
        let Some(plan) = statement.plan.clone().filter(|_| !statement.command) else {
            return Err(Status::invalid_argument("this statement is no query: ask for its count"));
        };
        let mut rows = statement.rows();
        let (Some(values), None) = (rows.next(), rows.next()) else {
            return Err(Status::invalid_argument("a query takes one row of parameters"));
        };
        let values = values.map_err(status)?;
        let turn = self.limits.turn(None).await.map_err(status)?;
        let (context, text) = (self.context.clone(), statement.text.clone());
        let planned = async move {
            let plan = context.renewed(&text, &plan).await?;
            context.with_values(&text, filled(plan, values)?).await
        };
        let frame = turn.run(planned).await.map_err(status)?;
        drop(turn);
        self.rows(frame).await
    }

    // What there is.

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> std::result::Result<Response<FlightInfo>, Status> {
        self.info(&query.into_builder().schema(), query, request.into_inner())
    }

    async fn do_get_catalogs(&self, query: CommandGetCatalogs, _: Request<Ticket>) -> std::result::Result<Response<Rows>, Status> {
        let mut builder = query.into_builder();
        self.context.session().catalog_names().iter().for_each(|name| builder.append(name));
        Self::batches(builder.build().map_err(|e| arrow::error::ArrowError::ExternalError(Box::new(e))))
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> std::result::Result<Response<FlightInfo>, Status> {
        self.info(&query.clone().into_builder().schema(), query, request.into_inner())
    }

    async fn do_get_schemas(&self, query: CommandGetDbSchemas, _: Request<Ticket>) -> std::result::Result<Response<Rows>, Status> {
        let mut builder = query.into_builder();
        let session = self.context.session();
        for name in session.catalog_names() {
            let Some(catalog) = session.catalog(&name) else { continue };
            catalog.schema_names().iter().for_each(|schema| builder.append(&name, schema));
        }
        Self::batches(builder.build().map_err(|e| arrow::error::ArrowError::ExternalError(Box::new(e))))
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> std::result::Result<Response<FlightInfo>, Status> {
        self.info(&query.clone().into_builder().schema(), query, request.into_inner())
    }

    async fn do_get_tables(&self, query: CommandGetTables, _: Request<Ticket>) -> std::result::Result<Response<Rows>, Status> {
        self.context.refresh().await.map_err(status)?;
        let mut builder = query.into_builder();
        let session = self.context.session();
        for name in session.catalog_names() {
            let Some(catalog) = session.catalog(&name) else { continue };
            for schema_name in catalog.schema_names().into_iter().filter(|s| s != "information_schema" && s != "pg_catalog") {
                let Some(schema) = catalog.schema(&schema_name) else { continue };
                for table in schema.table_names() {
                    let Some(provider) = schema.table(&table).await.map_err(status)? else { continue };
                    let kind = match provider.table_type() {
                        datafusion::datasource::TableType::View => "VIEW",
                        _ => "TABLE",
                    };
                    builder
                        .append(&name, &schema_name, &table, kind, &plain_schema(&provider.schema()))
                        .map_err(status_of_flight)?;
                }
            }
        }
        Self::batches(builder.build().map_err(|e| arrow::error::ArrowError::ExternalError(Box::new(e))))
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> std::result::Result<Response<FlightInfo>, Status> {
        self.info(&query.into_builder().schema(), query, request.into_inner())
    }

    async fn do_get_table_types(
        &self,
        query: CommandGetTableTypes,
        _: Request<Ticket>,
    ) -> std::result::Result<Response<Rows>, Status> {
        let mut builder = query.into_builder();
        ["TABLE", "VIEW"].iter().for_each(|kind| builder.append(kind));
        Self::batches(builder.build().map_err(|e| arrow::error::ArrowError::ExternalError(Box::new(e))))
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> std::result::Result<Response<FlightInfo>, Status> {
        self.info(&query.clone().into_builder(&self.about).schema(), query, request.into_inner())
    }

    async fn do_get_sql_info(&self, query: CommandGetSqlInfo, _: Request<Ticket>) -> std::result::Result<Response<Rows>, Status> {
        Self::batches(query.into_builder(&self.about).build().map_err(|e| arrow::error::ArrowError::ExternalError(Box::new(e))))
    }

    async fn register_sql_info(&self, _: i32, _: &SqlInfo) {}
}

fn status_of_flight(error: FlightError) -> Status {
    Status::from(error)
}

/// What clients ask of a server.
fn about() -> Result<SqlInfoData> {
    let mut builder = SqlInfoDataBuilder::new();
    builder.append(SqlInfo::FlightSqlServerName, "MergeQL");
    builder.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    builder.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    builder.append(SqlInfo::FlightSqlServerSql, true);
    builder.append(SqlInfo::FlightSqlServerSubstrait, false);
    builder.append(SqlInfo::FlightSqlServerTransaction, 0i32);
    builder.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    builder.build().map_err(|e| MergeError::new(Code::Unsupported, e.to_string()))
}
