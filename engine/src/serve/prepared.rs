//! Statements that clients of Postgres' protocol prepare, with parameters: the extended protocol.

use super::copy;
use super::cursors::{Cursors, declared, folded, holds};
use super::login::check_admitted;
use super::parameters::{parameters, with_parameters};
use super::postgres::{Service, cancellable, command, go_back, housekeeping, look, refuse_after_failure, run, timeout, told};
use super::rows::fields;
use crate::current::Lasting;
use crate::error::{MergeError, Result};
use crate::prepare::Prepared;
use async_trait::async_trait;
use datafusion::logical_expr::{EmptyRelation, LogicalPlan};
use datafusion::sql::sqlparser::ast as sql;
use datafusion_postgres::QueryHook;
use datafusion_postgres::hooks::cursor::CursorStatementHook;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use datafusion_postgres::pgwire::api::portal::{Format, Portal};
use datafusion_postgres::pgwire::api::query::ExtendedQueryHandler;
use datafusion_postgres::pgwire::api::results::{FieldInfo, QueryResponse, Response, Tag};
use datafusion_postgres::pgwire::api::stmt::QueryParser;
use datafusion_postgres::pgwire::api::store::{Entry, PortalStore};
use datafusion_postgres::pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME, Type};
use datafusion_postgres::pgwire::error::{PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::PgWireBackendMessage;
use datafusion_postgres::pgwire::messages::data::{NoData, ParameterDescription};
use datafusion_postgres::pgwire::messages::extendedquery::{Describe, Execute, TARGET_TYPE_BYTE_STATEMENT};
use datafusion_postgres::pgwire::types::format::FormatOptions;
use futures::{Sink, SinkExt, StreamExt};
use mergeql_udfs::Code;
use std::sync::Arc;

/// What the portals of datafusion-postgres hold: the text, its statement and its plan.
pub(super) type Held = (String, Option<(sql::Statement, LogicalPlan)>);

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

impl Service {
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
}

/// What the parse step of the protocol needs of the service.
pub(super) struct Parser(Arc<Service>);

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
            let prepared = turn.run(look(&service.context.lasting(Lasting::Files), query)).await.map_err(told)?;
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
        let prepared = turn.run(look(&service.context.lasting(Lasting::Files), &to_run)).await.map_err(|e| told(&e, text))?;
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

/// The handler of prepared statements.
pub(super) struct Extended(Arc<Parser>);

impl Extended {
    pub(super) fn new(service: Arc<Service>) -> Extended {
        Extended(Arc::new(Parser(service)))
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
