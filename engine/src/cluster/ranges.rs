//! A merge of sorted files in ranges of their key: each range is a statement of its own, which some worker answers with the sorted plan.

use super::schedule::{Failure, Schedule, Wall};
use super::{Channels, Client, address};
use crate::error::{MergeError, Result};
use crate::objects::Object;
use crate::sources::{Format, REQUESTS, files, footer};
use crate::text_files::Bytes;
use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use arrow_flight::Ticket;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::{ProstMessageExt, TicketStatementQuery};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use mergeql_lang::ast::{Merge, Relation, Returning};
use mergeql_lang::lower::quote;
use mergeql_lang::merge_text;
use mergeql_lang::plan::Plan;
use mergeql_udfs::{Code, Type};
use parquet::data_type::AsBytes;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::statistics::Statistics;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// However big the files are, there are no more ranges than this.
const MOST: usize = 10_000;
/// A range is not called slow before this.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where ranges begin.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Cut {
    Number(i64),
    Text(String),
}

impl Cut {
    fn sql(&self) -> String {
        match self {
            Cut::Number(n) => n.to_string(),
            Cut::Text(t) => mergeql_lang::lower::text(t),
        }
    }

    /// The least key of a row group.
    fn least(column: &ColumnChunkMetaData) -> Option<Cut> {
        match column.statistics()? {
            Statistics::Int32(s) => Some(Cut::Number(i64::from(*s.min_opt()?))),
            Statistics::Int64(s) => Some(Cut::Number(*s.min_opt()?)),
            // A bound need not be a key, so one that was cut short serves as well.
            Statistics::ByteArray(s) => Some(Cut::Text(std::str::from_utf8(s.min_opt()?.as_bytes()).ok()?.to_owned())),
            _ => None,
        }
    }
}

/// The statements of the ranges of a merge, if it can be divided: sorted Parquet files on both sides, and nothing that looks beyond a key.
pub(crate) async fn divide(merge: &Merge, plan: &Plan, user_defined: bool, task_size: usize) -> Option<Vec<String>> {
    let whole = plan.returning == Returning::Rows && !plan.keeps_state() && !plan.nullable_key() && plan.order.is_empty();
    let simple = merge.limit.is_none() && merge.offset.is_none() && merge.map.is_empty() && !user_defined;
    // Its arguments are sources by their names, which are other paths in the statements of the ranges.
    let simple = simple && plan.cells.iter().all(|cell| cell.entry.spec().name != "source");
    // A query in WHERE may read what is this session's alone.
    let simple = simple && !plan.filter_asks();
    let key = plan.key_columns().first()?;
    if !whole || !simple || !matches!(key.ty, Type::Int { signed: true, .. } | Type::Text) {
        return None;
    }
    let mut merge = merge.clone();
    let mut groups: Vec<(Cut, u64)> = Vec::new();
    for source in &mut merge.sources {
        let Relation::Text(path) = &mut source.relation else { return None };
        let mut footers = futures::stream::iter(files(&path.value).await.ok()?).map(parquet_footer).buffered(REQUESTS);
        while let Some(footer) = footers.next().await {
            groups.extend(least_keys(footer?.as_ref(), plan)?);
        }
        if Object::parse(&path.value).ok()?.is_none() {
            path.value = std::path::absolute(&path.value).ok()?.display().to_string();
        }
    }
    let cuts = cuts(groups, task_size);
    (!cuts.is_empty()).then(|| statements(merge, plan, &key.name, &cuts))
}

async fn parquet_footer(file: Bytes) -> Option<Arc<ParquetMetaData>> {
    if file.format() == Some(Format::Parquet) { footer(file).await } else { None }
}

/// The least key and the bytes of each row group of a file that is sorted by the key of the merge.
fn least_keys(footer: &ParquetMetaData, plan: &Plan) -> Option<Vec<(Cut, u64)>> {
    let of = |group: &RowGroupMetaData| {
        let sorted = group.sorting_columns()?;
        for (key, by) in plan.key_columns().iter().zip(sorted) {
            let column = group.columns().get(usize::try_from(by.column_idx).ok()?)?;
            if by.descending || column.column_path().parts() != [key.name.as_str()] {
                return None;
            }
        }
        let first = group.columns().get(usize::try_from(sorted.first()?.column_idx).ok()?)?;
        let keyed = sorted.len() >= plan.key_columns().len();
        keyed.then(|| Some((Cut::least(first)?, group.compressed_size().unsigned_abs())))?
    };
    footer.row_groups().iter().map(of).collect()
}

/// Where to cut, so that between two cuts there is about one task's worth of bytes.
fn cuts(mut groups: Vec<(Cut, u64)>, task_size: usize) -> Vec<Cut> {
    groups.sort();
    let total: u64 = groups.iter().map(|(_, bytes)| bytes).sum();
    let each = (task_size as u64).max(total.div_ceil(MOST as u64));
    let mut cuts: Vec<Cut> = Vec::new();
    let mut since = 0;
    for (least, bytes) in groups.into_iter() {
        if since >= each && cuts.last() != Some(&least) {
            cuts.push(least);
            since = 0;
        }
        since += bytes;
    }
    cuts
}

fn statements(merge: Merge, plan: &Plan, key: &str, cuts: &[Cut]) -> Vec<String> {
    let text = merge_text(&Merge { into: None, ..merge });
    let key = quote(key);
    let order: Vec<String> = plan.key_columns().iter().map(|c| format!("{} ASC NULLS FIRST", quote(&c.name))).collect();
    let from = std::iter::once(None).chain(cuts.iter().map(Some));
    let to = cuts.iter().map(Some).chain([None]);
    let range = |(from, to): (Option<&Cut>, Option<&Cut>)| {
        let from = from.map(|cut| format!("{key} >= {}", cut.sql()));
        let to = to.map(|cut| format!("{key} < {}", cut.sql()));
        let within: Vec<String> = from.into_iter().chain(to).collect();
        format!("SELECT * FROM (MERGE {text}) AS m WHERE {} ORDER BY {}", within.join(" AND "), order.join(", "))
    };
    from.zip(to).map(range).collect()
}

/// The rows of all ranges in the order of the key, as a table.
pub(crate) fn table(client: &Client, statements: Vec<String>, plan: &Plan, schema: SchemaRef) -> Result<StreamingTable> {
    let ranged = Ranged {
        alive: client.alive.clone(),
        channels: client.channels.clone(),
        statements: statements.into(),
        schema: schema.clone(),
    };
    let by = plan.key_columns().iter().map(|c| datafusion::prelude::ident(&c.name).sort(true, true)).collect();
    Ok(StreamingTable::try_new(schema, vec![Arc::new(ranged)])?.with_sort_order(by))
}

struct Ranged {
    alive: super::Alive,
    channels: Channels,
    statements: Arc<[String]>,
    schema: SchemaRef,
}

impl std::fmt::Debug for Ranged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ranged: {} ranges", self.statements.len())
    }
}

impl PartitionStream for Ranged {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (channels, statements) = (self.channels.clone(), self.statements.clone());
        let job = move |worker: Url, range: usize| ask(channels.clone(), worker, statements.clone(), range).boxed();
        let permanent = |e: &MergeError| !e.is_runtime();
        let schedule = Schedule::new(Wall::new(), self.alive.get(), self.statements.len(), PATIENCE, job, permanent);
        let schema = self.schema.clone();
        let ranges = futures::stream::unfold(Some(schedule), |schedule| async move {
            let mut schedule = schedule?;
            match schedule.next().await? {
                Ok(batches) => Some((Ok(batches), Some(schedule))),
                Err(failure) => Some((Err(external(failure)), None)),
            }
        });
        let rows = ranges.flat_map(move |range| {
            let schema = schema.clone();
            let batches: Vec<Result<RecordBatch, DataFusionError>> = match range {
                Ok(batches) => batches.iter().map(|batch| fitted(batch, &schema)).collect(),
                Err(error) => vec![Err(error)],
            };
            futures::stream::iter(batches)
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows))
    }
}

fn external(failure: Failure<MergeError>) -> DataFusionError {
    let error = match failure {
        Failure::Job(error) => error,
        Failure::NoWorkers(last) => {
            let said = last.map(|e| format!(": {}", e.diagnostic.message)).unwrap_or_default();
            MergeError::new(Code::Io, format!("every worker of the cluster was lost{said}"))
                .help("start them again, and the statement")
        }
    };
    let own =
        mergeql_udfs::Error { code: error.code(), message: error.diagnostic.message.clone(), help: error.diagnostic.help.clone() };
    DataFusionError::External(Box::new(own))
}

fn fitted(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, DataFusionError> {
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| cast(column, field.data_type()));
    Ok(RecordBatch::try_new(schema.clone(), columns.collect::<std::result::Result<_, _>>()?)?)
}

/// The rows of one range.
async fn ask(channels: Channels, worker: Url, statements: Arc<[String]>, range: usize) -> Result<Vec<RecordBatch>> {
    let lost = |text: String| {
        crate::error::read_own(&text)
            .map(MergeError::from)
            .unwrap_or_else(|| MergeError::new(Code::Io, format!("{}: {text}", address(&worker))))
    };
    let mut client = FlightServiceClient::new(channels.channel(&worker)?).max_decoding_message_size(usize::MAX);
    let handle = format!("q{}", statements[range]).into_bytes().into();
    let ticket = Ticket::new(TicketStatementQuery { statement_handle: handle }.as_any().encode_to_vec());
    let response = client.do_get(ticket).await.map_err(|e| lost(e.message().to_owned()))?;
    let data = response.into_inner().map_err(|e| FlightError::Tonic(Box::new(e)));
    let said = |e: FlightError| match e {
        FlightError::Tonic(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    FlightRecordBatchStream::new_from_flight_data(data).try_collect().await.map_err(|e| lost(said(e)))
}
