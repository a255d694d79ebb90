//! Cursors of Postgres' protocol: a query whose rows are fetched some at a time. The query may be a MERGE.

use super::postgres::{Held, QUERY, Service, look, marked, timeout};
use crate::error::{MergeError, Result};
use crate::prepare::Prepared;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::DataFrame;
use datafusion_postgres::pgwire::api::portal::{Format, Portal};
use datafusion_postgres::pgwire::api::results::{Response, Tag};
use datafusion_postgres::pgwire::api::stmt::StoredStatement;
use datafusion_postgres::pgwire::api::store::{MemPortalStore, PortalStore};
use datafusion_postgres::pgwire::api::{ClientInfo, ClientPortalStore};
use mergeql_udfs::Code;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// The name and the query of DECLARE name CURSOR ... FOR query; the query may be a MERGE.
pub(super) fn declared(text: &str) -> Option<(String, &str)> {
    let mut rest = text;
    let mut word = || {
        rest = rest.trim_start();
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        (!word.is_empty()).then_some(word)
    };
    word().filter(|first| first.eq_ignore_ascii_case("declare"))?;
    let name = word()?;
    let mut cursor = false;
    loop {
        let option = word()?;
        if cursor && option.eq_ignore_ascii_case("for") {
            break;
        }
        cursor |= option.eq_ignore_ascii_case("cursor");
    }
    let name = match name.strip_prefix('"').and_then(|n| n.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => name.to_ascii_lowercase(),
    };
    Some((name, rest.trim_start()))
}

/// An error of a statement, told for what it asks where that is to go elsewhere than forward.
pub(super) fn forward_only(text: &str, error: MergeError) -> MergeError {
    let first = text.split_whitespace().next().unwrap_or_default();
    if error.code() == Code::Syntax && ["move", "fetch"].iter().any(|word| first.eq_ignore_ascii_case(word)) {
        return MergeError::new(Code::Unsupported, "a cursor goes forward only, over rows that are fetched")
            .help("FETCH n FROM name, FETCH NEXT FROM name or FETCH ALL FROM name");
    }
    error
}

/// The columns of the cursors of a connection, for those who ask before they fetch.
pub(super) type Cursors = Mutex<HashMap<String, LogicalPlan>>;

impl Service {
    pub(super) fn over(&self, prepared: Prepared) -> Result<DataFrame> {
        match prepared {
            Prepared::Query(frame) => Ok(frame),
            Prepared::Command { .. } => Err(MergeError::new(Code::InvalidArgument, "a cursor is over a query")),
        }
    }

    /// Opens a cursor over a query; `plan` is that of one whose parameters have values.
    pub(super) async fn declare<C>(&self, client: &C, name: String, query: &str, plan: Option<LogicalPlan>) -> Result<Response>
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
        let held: Held = (query.to_owned(), Some(marked(QUERY, plan.clone())));
        let portal = Portal::new_cursor(name.clone(), Arc::new(StoredStatement::new(name.clone(), held, Vec::new())));
        portal.start(rows).await;
        store.put_portal(Arc::new(portal));
        let cursors = client.session_extensions().get_or_insert_with(Cursors::default);
        cursors.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(name, plan);
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
        assert_eq!(declared("DECLARE c CURSOR"), None);
        assert_eq!(declared("SELECT 1"), None);
    }
}
