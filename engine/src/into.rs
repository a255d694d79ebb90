//! MERGE INTO: a table merged with sources, in place. Ordinary tables take part with their rows, tables that keep states with those.

use crate::binding::First;
use crate::columns::logical;
use crate::context::{MergeContext, by_key};
use crate::error::{MergeError, Result};
use crate::explain;
use crate::layers::Target;
use crate::sources::{ReadOptions, Resolved};
use datafusion::datasource::MemTable;
use datafusion::prelude::{DataFrame, SessionContext};
use mergeql_lang::ast::{Explain, Merge, Name, Piece, Relation as Written, Returning};
use mergeql_lang::lower::{DELETED, DataFusion, Lowering, STATE, quote};
use mergeql_lang::plan::{Plan, Reading};
use mergeql_lang::{Diagnostic, Kept, Span};
use mergeql_udfs::{Code, Value};
use std::sync::Arc;

fn cells_only() -> MergeError {
    MergeError::new(Code::Unsupported, "MERGE INTO returns the number of rows, or RETURNING CONFLICTS or PROVENANCE")
}

impl MergeContext {
    pub(crate) async fn merge_into(&self, explain: Explain, target: &Written, merge: Merge) -> Result<DataFrame> {
        let options = ReadOptions::of(&merge.options)?;
        let (parts, span): (&[Name], Span) = match target {
            Written::Table(parts) => (parts, parts[0].span),
            Written::Text(name) => (std::slice::from_ref(name), name.span),
            Written::Query(_) => return Err(MergeError::new(Code::Syntax, "MERGE INTO needs a table")),
        };
        // What another process made of the table counts, its columns as well.
        let _lock = if explain == Explain::No { self.lock()? } else { None };
        self.refresh().await?;
        let resolved = self.resolve(target, &options).await?;
        let Some(name) = self.table_name(parts) else {
            return Err(Diagnostic::at(Code::Unsupported, span, "MERGE INTO needs a table, not a file")
                .help("merge the file with the sources: MERGE 'file', source ON ... INTO OR REPLACE 'file'")
                .into());
        };
        let kept = self.memory(|m| m.resolutions.get(&name).cloned()).filter(|_| !self.is_temporary(&name));
        match kept {
            Some(resolution) => Box::pin(self.merge_into_states(explain, &name, &resolution, merge, None)).await,
            None => Box::pin(self.merge_into_rows(explain, &name, resolved, merge)).await,
        }
    }

    /// The statement with the target as its first source.
    pub(crate) fn with_target(target: &str, merge: &Merge) -> Merge {
        let mut with = merge.clone();
        let name = Name { value: target.to_owned(), quoted: true, span: Span::default() };
        let source =
            mergeql_lang::ast::Source { relation: Written::Table(vec![name]), alias: None, span: Span::default(), part: false };
        with.sources.insert(0, source);
        with
    }

    pub(crate) async fn merge_into_rows(&self, explain: Explain, name: &str, target: Resolved, merge: Merge) -> Result<DataFrame> {
        let cells = match merge.returning {
            Returning::Rows => None,
            Returning::Conflicts | Returning::Provenance => {
                Some(Merge { returning: merge.returning, ..Self::with_target(name, &merge) })
            }
            _ => return Err(cells_only()),
        };
        let merge = Merge { returning: Returning::Rows, ..merge };
        // Before the target's own types are looked at: values of such a strategy need not even have the column's type. A column that
        // only the target has is looked for below.
        match self.bind(&merge, First::Hidden, explain).await {
            Ok(plan) => plan.check_strategies(name)?,
            Err(e) if e.code() == Code::UnknownColumn => {}
            Err(e) => return Err(e),
        }
        let merge = Self::with_target(name, &merge);
        let columns: Vec<String> = target.relation.columns.iter().map(|c| c.name.clone()).collect();
        let relation = target.relation.clone();
        let mut plan = self.bind(&merge, First::Rows(target), explain).await?;
        plan.check_target(name, &columns)?;
        let session = self.session_for(&plan)?;
        let sql = Lowering { plan: &plan, dialect: &DataFusion }.query();
        if explain != Explain::No {
            return explain::merge(self, &session, &plan, &sql, explain).await;
        }
        // What was in conflict, before it is merged.
        let cells = match cells {
            None => None,
            Some(cells) => {
                let plan = self.bind(&cells, First::Rows(Resolved { relation, table: None }), explain).await?;
                let sql = Lowering { plan: &plan, dialect: &DataFusion }.query();
                let frame = session.execute_logical_plan(session.state().create_logical_plan(&sql).await?).await?;
                let schema = Arc::new(frame.schema().as_arrow().clone());
                Some((schema, frame.collect().await.map_err(MergeError::running)?))
            }
        };
        let rows = self.like_target(&session, name, &sql, &plan, &columns).await?;
        let count = self.replace_table(name, rows, None).await?;
        match cells {
            None => self.count("rows", count),
            Some((schema, rows)) => Ok(self.session.read_table(Arc::new(MemTable::try_new(schema, vec![rows])?))?),
        }
    }

    /// Rows in the column order and types of the target, sorted by key.
    pub(crate) async fn like_target(
        &self,
        session: &SessionContext,
        name: &str,
        sql: &str,
        plan: &Plan,
        columns: &[String],
    ) -> Result<DataFrame> {
        let schema = self.session.table_provider(datafusion::common::TableReference::bare(name)).await?.schema();
        let keep = |n: &String| plan.result_columns().any(|(c, _)| c == n) || n == STATE || n == DELETED;
        let mut names: Vec<String> = columns.iter().filter(|n| keep(n)).cloned().collect();
        for (column, _) in plan.result_columns() {
            if !names.iter().any(|n| n == column) {
                let at = names.iter().position(|n| n == STATE).unwrap_or(names.len());
                names.insert(at, column.to_owned());
            }
        }
        let sorted = by_key(sql, plan);
        let frame = session.execute_logical_plan(session.state().create_logical_plan(&sorted).await?).await?;
        let fields = frame.schema().as_arrow().clone();
        let exprs = names
            .iter()
            .map(|n| {
                let column = datafusion::prelude::Expr::Column(datafusion::common::Column::from_name(n));
                match (schema.field_with_name(n), fields.field_with_name(n)) {
                    // A column that held nothing but NULL takes the type of what comes.
                    (Ok(theirs), Ok(ours)) if theirs.data_type() != ours.data_type() && !theirs.data_type().is_null() => {
                        mergeql_lang::check_fit(n, &logical(theirs.data_type())?, &logical(ours.data_type())?)?;
                        Ok(datafusion::prelude::cast(column, theirs.data_type().clone()).alias(n))
                    }
                    _ => Ok(column),
                }
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(frame.select(exprs)?)
    }

    pub(crate) async fn merge_into_states(
        &self,
        explain: Explain,
        name: &str,
        resolution: &str,
        merge: Merge,
        adopted: Option<String>,
    ) -> Result<DataFrame> {
        let kept = Kept::read(name, resolution)?;
        // Rows that are taken in have the types that the table shows.
        let kept = if adopted.is_some() { kept.of_shown() } else { kept };
        let merge = kept.applied(name, merge, &self.user_strategies(), &self.strategy_texts())?;
        let merge = Self::with_target(name, &merge);
        let storage = self.storage_name(name);
        let provider = self.session.table_provider(datafusion::common::TableReference::bare(storage.as_str())).await?;
        let all = crate::sources::source_columns(&provider.schema())?;
        let columns: Vec<String> = all.iter().map(|c| c.name.clone()).collect();
        let visible = all.into_iter().filter(|c| c.name != STATE && c.name != DELETED).collect();
        let relation = mergeql_lang::plan::Relation {
            sql: quote(&storage),
            origin: Some(name.to_owned()),
            columns: visible,
            rows: None,
            reading: Reading::Any,
        };
        let target = First::States(Resolved { relation, table: None }, &kept);
        let bound = self.bind_with(&merge, target, explain, &kept.strategies).await;
        let mut plan = bound.map_err(|e| e.map(|diagnostic| kept.told(diagnostic)))?;
        plan.check_columns(&columns)?;
        kept.check(&plan)?;
        // The target contributes states, not rows.
        plan.sources.remove(0);
        let session = self.session_for(&plan)?;
        let lowering = Lowering { plan: &plan, dialect: &DataFusion };
        let mut table = quote(&storage);
        let new_columns: Vec<&str> = plan.result_columns().map(|(n, _)| n).filter(|n| !columns.iter().any(|c| c == n)).collect();
        if !new_columns.is_empty() {
            // A column that the table is getting: nothing contributed to it so far.
            let added = new_columns.iter().map(|n| format!("NULL AS {}", quote(n))).collect::<Vec<_>>().join(", ");
            table = format!("(SELECT *, {added} FROM {table})");
        }
        let mut inputs = vec![lowering.states()];
        match &adopted {
            None => {
                if !self.memory(|m| m.manifest.tables.get(name).is_some_and(|t| t.checked)) {
                    self.check_edits(&session, name, &lowering, &storage, &new_columns).await?;
                }
                inputs.push(lowering.kept_states(&table));
            }
            Some(_) => inputs.push(lowering.kept_states(&format!("(SELECT * FROM {table} WHERE {STATE} IS NOT NULL)"))),
        }
        let sql = lowering.joined_states(&inputs);
        if explain != Explain::No {
            return explain::merge(self, &session, &plan, &sql, explain).await;
        }
        if let (Some(store), None, true) = (&self.shared.store, &adopted, new_columns.is_empty()) {
            let target = Target { session: &session, name, storage: &storage, lowering: &lowering, columns: &columns };
            if let Some(count) = Box::pin(self.merge_layer(store, &target)).await? {
                return self.count("rows", count);
            }
        }
        let rows = self.like_target(&session, &storage, &sql, &plan, &columns).await?;
        let count = self.replace_table(name, rows, Some(resolution.to_owned())).await?;
        self.count("rows", count)
    }

    pub(crate) async fn check_edits(
        &self,
        session: &SessionContext,
        name: &str,
        lowering: &Lowering<'_>,
        storage: &str,
        new_columns: &[&str],
    ) -> Result<()> {
        if !new_columns.is_empty() {
            return Ok(());
        }
        let sql = format!("SELECT count(*) FROM {} WHERE {}", quote(storage), lowering.edited());
        let plan = session.state().create_logical_plan(&sql).await?;
        let batches = session.execute_logical_plan(plan).await?.collect().await?;
        let edited = batches.first().map_or(Value::Null, |b| crate::columns::value_at(b.column(0), 0));
        if edited == Value::Int(0) {
            return Ok(());
        }
        Err(MergeError::new(
            Code::NeedsState,
            format!("{edited} rows of `{name}` were edited or inserted by hand: their values are not what their states say"),
        )
        .help(format!("SELECT mergeql_adopt('{name}') takes them in as rows")))
    }

    /// Takes rows that were edited by hand into the states of a table.
    pub(crate) async fn adopt_edits(&self, name: &str) -> Result<DataFrame> {
        let _lock = self.lock()?;
        self.refresh().await?;
        let Some(resolution) = self.memory(|m| m.resolutions.get(name).cloned()) else {
            return Err(MergeError::new(Code::NotAState, format!("`{name}` keeps no states")));
        };
        let Kept { merge: kept, strategies, .. } = Kept::read(name, &resolution)?;
        let alone = Self::with_target(name, &Merge { sources: Vec::new(), ..kept.clone() });
        let plan = self.bind_with(&alone, First::Rows(self.visible(name).await?), Explain::No, &strategies).await?;
        let lowering = Lowering { plan: &plan, dialect: &DataFusion };
        let (storage, condition) = (quote(&self.storage_name(name)), lowering.edited());
        let count = self.session.sql(&format!("SELECT 1 FROM {storage} WHERE {condition}")).await?.count().await?;
        if count == 0 {
            return self.count("rows", 0);
        }
        // A set of values is taken in value by value.
        let is_set = |c: &mergeql_lang::plan::Cell| c.ty == mergeql_udfs::Type::List(Box::new(c.call.value_type()));
        let sets: Vec<&str> = plan.cells.iter().filter(|c| is_set(c)).map(|c| c.name.as_str()).collect();
        let column = |n: &str| match sets.contains(&n) {
            true => format!("unnest(CASE WHEN cardinality({0}) > 0 THEN {0} ELSE make_array(NULL) END) AS {0}", quote(n)),
            false => quote(n),
        };
        let columns = plan.result_columns().map(|(n, _)| column(n)).collect::<Vec<_>>().join(", ");
        let edited = format!("SELECT {columns} FROM {storage} WHERE {condition}");
        let mut merge = kept;
        let alias = Name { value: "edited".to_owned(), quoted: true, span: Span::default() };
        merge.sources = vec![mergeql_lang::ast::Source {
            relation: Written::Query(vec![Piece::Text(edited)]),
            alias: Some(alias),
            span: Span::default(),
            part: false,
        }];
        self.merge_into_states(Explain::No, name, &resolution, merge, Some(name.to_owned())).await
    }

    pub(crate) async fn visible(&self, name: &str) -> Result<Resolved> {
        let provider = self.session.table_provider(datafusion::common::TableReference::bare(self.storage_name(name))).await?;
        let columns = crate::sources::source_columns(&provider.schema())?;
        let columns = columns.into_iter().filter(|c| c.name != STATE && c.name != DELETED).collect();
        let relation = mergeql_lang::plan::Relation {
            sql: quote(name),
            origin: Some(name.to_owned()),
            columns,
            rows: None,
            reading: Reading::Any,
        };
        Ok(Resolved { relation, table: None })
    }
}
