//! Cursors of Postgres' protocol: a query whose rows are fetched some at a time. The query may be a MERGE.

use super::postgres::{Service, look, refused, timeout, told};
use super::prepared::{Held, QUERY, marked};
use super::rows::fields;
use crate::error::{MergeError, Result};
use crate::prepare::Prepared;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::DataFrame;
use datafusion::sql::sqlparser::ast::{self as sql, CloseCursor, FetchDirection};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer, Word};
use datafusion_postgres::hooks::HookClient;
use datafusion_postgres::pgwire::api::portal::{Format, Portal, PortalExecutionState};
use datafusion_postgres::pgwire::api::results::{QueryResponse, Response, Tag};
use datafusion_postgres::pgwire::api::stmt::StoredStatement;
use datafusion_postgres::pgwire::api::store::{Entry, MemPortalStore, PortalStore};
use datafusion_postgres::pgwire::api::{ClientInfo, ClientPortalStore};
use datafusion_postgres::pgwire::error::{PgWireError, PgWireResult};
use futures::StreamExt;
use mergeql_udfs::Code;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// The name and the query of DECLARE name CURSOR ... FOR query; the query may be a MERGE.
pub(super) fn declared(text: &str) -> Option<(String, &str)> {
    if !text.to_ascii_lowercase().contains("declare") {
        return None;
    }
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize_with_location().ok()?;
    let mut tokens = tokens.into_iter().filter(|t| !matches!(t.token, Token::Whitespace(_)));
    let mut word = || match tokens.next()? {
        TokenWithSpan { token: Token::Word(word), span } => Some((word, span)),
        _ => None,
    };
    let is = |word: &Word, wanted: &str| word.quote_style.is_none() && word.value.eq_ignore_ascii_case(wanted);
    word().filter(|(first, _)| is(first, "declare"))?;
    let (name, _) = word()?;
    let mut cursor = false;
    let end = loop {
        let (option, span) = word()?;
        if cursor && is(&option, "for") {
            break span.end;
        }
        cursor |= is(&option, "cursor");
    };
    Some((folded(&name.value, name.quote_style), text[byte_at(text, end)?..].trim_start()))
}

/// A name as it is known: in lower case unless it was quoted.
pub(super) fn folded(name: &str, quote: Option<char>) -> String {
    if quote.is_some() { name.to_owned() } else { name.to_ascii_lowercase() }
}

/// Where a place of the tokenizer is.
fn byte_at(text: &str, place: Location) -> Option<usize> {
    let (mut line, mut column) = (1, 1);
    for (at, c) in text.char_indices() {
        if (line, column) == (place.line, place.column) {
            return Some(at);
        }
        (line, column) = if c == '\n' { (line + 1, 1) } else { (line, column + 1) };
    }
    ((line, column) == (place.line, place.column)).then_some(text.len())
}

/// What FETCH and CLOSE answer.
pub(super) async fn moved(statement: &sql::Statement, client: &dyn HookClient) -> Option<PgWireResult<Response>> {
    match statement {
        sql::Statement::Declare { .. } => Some(Err(refused("0A000", "a cursor is made by DECLARE name CURSOR FOR query"))),
        sql::Statement::Fetch { name, direction, .. } => {
            Some(fetch(&folded(&name.value, name.quote_style), direction, client).await)
        }
        sql::Statement::Close { cursor } => Some(close(cursor, client)),
        _ => None,
    }
}

fn missing(name: &str) -> PgWireError {
    refused("34000", &format!("cursor \"{name}\" does not exist"))
}

/// The next rows of a cursor, as they come: there may be more than memory holds.
async fn fetch(name: &str, direction: &FetchDirection, client: &dyn HookClient) -> PgWireResult<Response> {
    let number =
        |limit: &dyn std::fmt::Display| limit.to_string().parse::<u64>().map_err(|_| refused("22023", "not a number of rows"));
    let most = match direction {
        FetchDirection::Next | FetchDirection::Forward { limit: None } => 1,
        FetchDirection::Forward { limit: Some(limit) } | FetchDirection::Count { limit } => number(limit)?,
        FetchDirection::ForwardAll | FetchDirection::All => u64::MAX,
        _ => return Err(refused("0A000", FORWARD)),
    };
    let Some(Entry::Value(portal)) = client.portal_store().get_portal(name) else { return Err(missing(name)) };
    let columns = {
        let cursors = client.session_extensions().get_or_insert_with(Cursors::default);
        let cursors = cursors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (plan, _) = cursors.get(name).ok_or_else(|| missing(name))?;
        Arc::new(fields(plan.schema().as_arrow(), &Format::UnifiedText, None).map_err(|e| told(&e, ""))?)
    };
    let rows = futures::stream::unfold((portal.state(), most), |(state, left)| async move {
        let left = left.checked_sub(1)?;
        let mut held = state.lock().await;
        let PortalExecutionState::Suspended(rows) = &mut *held else { return None };
        let row = rows.data_rows().next().await;
        if row.is_none() {
            *held = PortalExecutionState::Finished;
        }
        drop(held);
        row.map(|row| (row, (state, left)))
    });
    Ok(Response::Query(QueryResponse::new(columns, rows)))
}

fn close(cursor: &CloseCursor, client: &dyn HookClient) -> PgWireResult<Response> {
    let cursors = client.session_extensions().get_or_insert_with(Cursors::default);
    let mut cursors = cursors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let names = match cursor {
        CloseCursor::All => cursors.keys().cloned().collect(),
        CloseCursor::Specific { name } => vec![folded(&name.value, name.quote_style)],
    };
    for name in names {
        cursors.remove(&name).ok_or_else(|| missing(&name))?;
        client.portal_store().rm_portal(&name);
    }
    Ok(Response::Execution(Tag::new("CLOSE CURSOR")))
}

const FORWARD: &str = "a cursor goes forward only, over rows that are fetched";

/// An error of a statement, told for what it asks where that is to go elsewhere than forward.
pub(super) fn forward_only(text: &str, error: MergeError) -> MergeError {
    let first = text.split_whitespace().next().unwrap_or_default();
    if error.code() == Code::Syntax && ["move", "fetch"].iter().any(|word| first.eq_ignore_ascii_case(word)) {
        return MergeError::new(Code::Unsupported, FORWARD).help("FETCH n FROM name, FETCH NEXT FROM name or FETCH ALL FROM name");
    }
    error
}

/// Whether the DECLARE of a query says that its cursor outlives its transaction.
pub(super) fn holds(text: &str, query: &str) -> bool {
    let declaration = text[..text.len() - query.len()].to_ascii_lowercase();
    let words: Vec<&str> = declaration.split_whitespace().collect();
    words.windows(2).any(|pair| pair == ["with", "hold"])
}

/// Closes the cursors that do not outlive a transaction, or all.
pub(super) fn end_cursors(client: &dyn HookClient, all: bool) {
    let cursors = client.session_extensions().get_or_insert_with(Cursors::default);
    let mut cursors = cursors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    cursors.retain(|name, (_, held)| {
        let stays = *held && !all;
        if !stays {
            client.portal_store().rm_portal(name);
        }
        stays
    });
}

/// The columns of the cursors of a connection, for those who ask before they fetch, and whether they outlive their transaction.
pub(super) type Cursors = Mutex<HashMap<String, (LogicalPlan, bool)>>;

impl Service {
    pub(super) fn over(&self, prepared: Prepared) -> Result<DataFrame> {
        match prepared {
            Prepared::Query(frame) => Ok(frame),
            Prepared::Command { .. } => Err(MergeError::new(Code::InvalidArgument, "a cursor is over a query")),
        }
    }

    /// Opens a cursor over a query; `plan` is that of one whose parameters have values.
    pub(super) async fn declare<C>(
        &self,
        client: &C,
        (name, held): (String, bool),
        query: &str,
        plan: Option<LogicalPlan>,
    ) -> Result<Response>
    where
        C: ClientInfo + ClientPortalStore,
        C::PortalStore: PortalStore,
    {
        let store = client.portal_store().as_any().downcast_ref::<MemPortalStore<Held>>();
        let store = store.ok_or_else(|| MergeError::new(Code::Unsupported, "there are no cursors here"))?;
        let turn = self.limits.turn(timeout(client)).await?;
        let frame = match plan {
            Some(plan) => self.frame(&turn, query, plan).await?,
            None => self.over(turn.run(look(&self.context, query)).await?)?,
        };
        let plan = frame.logical_plan().clone();
        let Response::Query(rows) = self.rows(turn, frame, &Format::UnifiedText, Arc::default()).await? else {
            return Err(MergeError::new(Code::InvalidArgument, "a cursor is over a query"));
        };
        let statement: Held = (query.to_owned(), Some(marked(QUERY, plan.clone())));
        let portal = Portal::new_cursor(name.clone(), Arc::new(StoredStatement::new(name.clone(), statement, Vec::new())));
        portal.start(rows).await;
        store.put_portal(Arc::new(portal));
        let cursors = client.session_extensions().get_or_insert_with(Cursors::default);
        cursors.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(name, (plan, held));
        Ok(Response::Execution(Tag::new("DECLARE CURSOR")))
    }
}

#[cfg(test)]
mod tests {
    use super::declared;

    #[test]
    fn cursors_have_a_name_and_a_query() {
        let query = "SELECT 1 FOR UPDATE";
        for text in ["DECLARE c CURSOR FOR ", "declare\n C\nno scroll cursor\twith hold\nfor\n", "DECLARE \"c\" BINARY CURSOR FOR "]
        {
            assert_eq!(declared(&format!("{text}{query}")), Some(("c".to_owned(), query)), "{text}");
        }
        for text in ["DECLARE c CURSOR FOR(SELECT 1)", "/* app */ DECLARE c CURSOR FOR/**/(SELECT 1)"] {
            assert_eq!(
                declared(text).map(|(name, query)| (name, query.ends_with("(SELECT 1)"))),
                Some(("c".to_owned(), true)),
                "{text}"
            );
        }
        assert_eq!(declared("DECLARE \"C c\" CURSOR FOR MERGE a ON id").map(|d| d.0), Some("C c".to_owned()));
        assert_eq!(declared("DECLARE c CURSOR"), None);
        assert_eq!(declared("SELECT 1"), None);
    }
}
