//! Tables that keep states on disk, in layers: what a `MERGE INTO` changed lies in a file of its own, whose rows stand in for those of
//! the files before it with the same key. Cost follows the batch, but for the key column of the table, which is read.
//!
//! Layers of no more than twice the rows of what comes are folded into it (the table's first file is the last of them), so that their number
//! grows with the logarithm of the table, and each row is written again that often.

use crate::context::MergeContext;
use crate::error::Result;
use crate::sinks;
use crate::sources::{Format, footer};
use crate::store::{File, Store, Table};
use crate::text_files::Bytes;
use arrow::datatypes::Field;
use datafusion::catalog::TableProvider;
use datafusion::common::JoinType;
use datafusion::prelude::{DataFrame, SessionContext, ident};
use mergeql_lang::lower::{Lowering, quote};
use std::sync::Arc;

/// A layer is folded into what comes if it has no more than this many times its rows.
const FOLDED: i64 = 2;

/// What a `MERGE INTO` of a table that keeps states works with.
pub(crate) struct Target<'a> {
    pub(crate) session: &'a SessionContext,
    pub(crate) name: &'a str,
    /// The table with its states, as SQL names it.
    pub(crate) storage: &'a str,
    pub(crate) lowering: &'a Lowering<'a>,
    /// The columns of the table.
    pub(crate) columns: &'a [String],
}

impl Target<'_> {
    fn keys(&self) -> Vec<String> {
        self.lowering.plan.key_columns().iter().map(|c| c.name.clone()).collect()
    }

    /// Rows of `from` whose key the batch has, or (`ANTI`) has not. Keys with a NULL match nothing.
    fn joined(&self, kind: &str, from: &str, batch: &str) -> String {
        let on: Vec<String> = self.keys().iter().map(|k| format!("t.{0} = b.{0}", quote(k))).collect();
        format!("SELECT t.* FROM {from} AS t LEFT {kind} JOIN {batch} AS b ON {}", on.join(" AND "))
    }

    fn some_null(&self) -> String {
        self.keys().iter().map(|k| format!("{} IS NULL", quote(k))).collect::<Vec<_>>().join(" OR ")
    }
}

impl MergeContext {
    /// The files of a table as one table.
    pub(crate) async fn open_layers(&self, store: &Store, files: &[File]) -> Result<Arc<dyn TableProvider>> {
        // The first replaces nothing, whatever it did where there were others before it.
        let plain = files.iter().skip(1).position(|f| !f.replaces.is_empty()).map_or(files.len(), |at| at + 1);
        let path = |file: &File| store.path(&file.name).display().to_string();
        let first: Vec<String> = files[..plain].iter().map(path).collect();
        let first = self.open_stored(&first, None).await?;
        if plain == files.len() {
            return Ok(first);
        }
        let schema = first.schema();
        let mut rows = self.session.read_table(first)?;
        for file in &files[plain..] {
            let layer = self.session.read_table(self.open_stored(&[path(file)], Some(schema.clone())).await?)?;
            if !file.replaces.is_empty() {
                rows = without(rows, &layer, &file.replaces)?;
            }
            rows = rows.union(layer)?;
        }
        Ok(rows.into_view())
    }

    /// Merges into a table by a new layer, if it is for that; gives back how many rows the table has then.
    pub(crate) async fn merge_layer(&self, store: &Store, target: &Target<'_>) -> Result<Option<u64>> {
        let mut manifest = store.read()?;
        let Some(table) = manifest.tables.get(target.name).cloned() else { return Ok(None) };
        let keys = target.keys();
        if !table.checked || table.files.is_empty() || table.files[1..].iter().any(|f| f.replaces != keys) {
            return Ok(None);
        }
        // Once, because a source may be another query each time; in a file, because there may be much of it.
        // Beside the table, where workers read that too.
        let batch = tempfile::Builder::new().prefix(".mergeql-").suffix(".parquet").tempfile_in(store.path(""))?;
        let states = target.session.state().create_logical_plan(&target.lowering.states()).await?;
        let states = target.session.execute_logical_plan(states).await?;
        let write = |rows| sinks::write_file(batch.path(), Format::Parquet, rows, None);
        let mut coming = Box::pin(self.whole(states, write)).await? as i64;
        let provider = self.open_stored(&[batch.path().display().to_string()], None).await?;
        let count = async || {
            let table = self.session.table(datafusion::common::TableReference::bare(target.storage)).await?;
            Ok(Some(Box::pin(table.count()).await? as u64))
        };
        if coming == 0 {
            return count().await;
        }
        let passing = self.shared.names.pass("batch", provider);
        let batch_name = quote(&passing.name);

        let mut kept = table.files.len();
        while let Some(last) = table.files[..kept].last() {
            let rows = footer(Bytes::Path(store.path(&last.name))).await.map_or(0, |f| f.file_metadata().num_rows());
            if rows > FOLDED * coming {
                break;
            }
            kept -= 1;
            coming += rows;
        }
        let storage = quote(target.storage);
        let touched = match kept {
            0 => storage,
            _ => format!(
                "({} UNION ALL SELECT * FROM {storage} WHERE {})",
                target.joined("SEMI", &storage, &batch_name),
                target.some_null()
            ),
        };
        let inputs = [format!("SELECT * FROM {batch_name}"), target.lowering.kept_states(&touched)];
        let sql = target.lowering.joined_states(&inputs);
        let mut rows =
            Box::pin(self.like_target(target.session, target.storage, &sql, target.lowering.plan, target.columns)).await?;
        if kept > 0 && kept < table.files.len() {
            let folded = Box::pin(self.open_layers(store, &table.files[kept..])).await?;
            let folding = self.shared.names.pass("folded", folded);
            let untouched =
                format!("{} WHERE NOT ({})", target.joined("ANTI", &quote(&folding.name), &batch_name), target.some_null());
            let untouched = target.session.state().create_logical_plan(&untouched).await?;
            let columns: Vec<_> = rows.schema().fields().iter().map(|f| ident(f.name())).collect();
            let untouched = target.session.execute_logical_plan(untouched).await?.select(columns)?;
            rows = rows.union(untouched)?.sort(keys.iter().map(|k| ident(k).sort(true, true)).collect())?;
        }
        // A column that held nothing but NULL has a type now, which the files before do not have.
        let was = self.session.table_provider(datafusion::common::TableReference::bare(target.storage)).await?.schema();
        let grows = |f: &Arc<Field>| {
            f.data_type().is_null()
                && rows.schema().field_with_unqualified_name(f.name()).is_ok_and(|new| !new.data_type().is_null())
        };
        if was.fields().iter().any(grows) {
            return Ok(None);
        }
        let (name, written) = Box::pin(self.write_layer(store, &mut manifest, target.name, target.storage, rows)).await?;
        let mut files = table.files[..kept].to_vec();
        files.push(File { name, replaces: if kept == 0 { Vec::new() } else { keys } });
        manifest.tables.insert(target.name.to_owned(), Table { files, ..table });
        store.write(&manifest)?;
        Box::pin(self.refresh()).await?;
        if kept == 0 {
            return Ok(Some(written));
        }
        count().await
    }
}

/// Rows whose key a layer has not. Rows with a NULL in the key are all in the newest layer.
fn without(rows: DataFrame, layer: &DataFrame, keys: &[String]) -> Result<DataFrame> {
    let other = |i: usize| format!("__mergeql_key_{i}");
    let known = layer.clone().select(keys.iter().enumerate().map(|(i, k)| ident(k).alias(other(i))))?;
    let whole = keys.iter().map(|k| ident(k).is_not_null()).reduce(datafusion::prelude::Expr::and);
    let rows = match whole {
        Some(whole) => rows.filter(whole)?,
        None => rows,
    };
    let same = keys.iter().enumerate().map(|(i, k)| ident(k).eq(ident(other(i))));
    Ok(rows.join_on(known, JoinType::LeftAnti, same)?)
}
