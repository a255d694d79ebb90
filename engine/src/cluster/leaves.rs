//! How the inputs that are ours are divided among workers: text files by file, tables in memory by batch.

use crate::text_files::{Bytes, Layout};
use crate::text_scan::TextScan;
use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::memory::{DataSourceExec, MemorySourceConfig};
use datafusion::common::Result;
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::physical_plan::{Distribution, ExecutionPlan};
use datafusion_distributed::{
    DesiredTaskCountEvent, DesiredTaskCountEventResponse, DesiredTaskCountHandler, DistributedLeafExec, ScaleUpLeafNodeEvent,
    ScaleUpLeafNodeEventResponse,
};
use std::sync::Arc;

fn memory(plan: &Arc<dyn ExecutionPlan>) -> Option<&MemorySourceConfig> {
    plan.downcast_ref::<DataSourceExec>()?.data_source().downcast_ref::<MemorySourceConfig>()
}

fn batches(source: &MemorySourceConfig) -> usize {
    source.partitions().iter().map(Vec::len).sum()
}

/// Whether a node works on all rows at once, such as a limit, a sort that is cut short, a window without partitions; parts of the rows
/// would each have an answer of their own.
fn needs_all(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let single = |wanted: &Distribution| matches!(wanted, Distribution::SinglePartition);
    match plan.children().len() {
        0 => plan.fetch().is_some(),
        1 => plan.input_distribution_requirements().per_child_distributions().any(single),
        // Joins have one of their sides sent to all.
        _ => false,
    }
}

/// On how many workers a leaf is worth running: one for each file of text, for each batch in memory, for this much of other files.
pub(super) struct Desired {
    pub(super) task_size: usize,
}

#[async_trait]
impl DesiredTaskCountHandler for Desired {
    async fn handle(&self, event: DesiredTaskCountEvent<'_>) -> Option<Result<DesiredTaskCountEventResponse>> {
        if needs_all(event.plan) {
            return Some(Ok(DesiredTaskCountEventResponse::maximum(1)));
        }
        let tasks = if let Some(scan) = event.plan.downcast_ref::<TextScan>() {
            scan.files.len()
        } else if let Some(source) = memory(event.plan) {
            batches(source)
        } else {
            let source = event.plan.downcast_ref::<DataSourceExec>()?.data_source();
            let files = source.downcast_ref::<FileScanConfig>()?.file_groups.iter().flat_map(|group| group.files());
            files.map(|file| file.effective_size() as usize).sum::<usize>().div_ceil(self.task_size)
        };
        Some(Ok(DesiredTaskCountEventResponse::desired(tasks.max(1))))
    }
}

/// The part of each worker.
#[allow(clippy::needless_pass_by_value)] // the handler's signature
pub(super) fn scale_up(event: ScaleUpLeafNodeEvent<'_>) -> Option<Result<ScaleUpLeafNodeEventResponse>> {
    // Of a limit each part would give as many rows.
    if event.plan.fetch().is_some() {
        return None;
    }
    let parts = match event.plan.downcast_ref::<TextScan>() {
        Some(scan) => files(scan, event.task_count),
        None => tables(memory(event.plan)?, event.task_count),
    };
    let leaf = parts.and_then(|parts| DistributedLeafExec::try_new(event.plan.clone(), parts));
    Some(leaf.map(|leaf| ScaleUpLeafNodeEventResponse::new(Arc::new(leaf))))
}

/// Every part has the same number of partitions: those with fewer files read nothing in the last ones.
fn files(scan: &TextScan, tasks: usize) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
    let each = scan.files.len().div_ceil(tasks);
    // An empty CSV file without a header has no rows whatever its columns; an empty NDJSON file neither.
    let layout = scan.layout;
    let nothing = || Bytes::Memory(if layout == Layout::Json { Arc::from(*b"[]") } else { Arc::from([]) });
    (0..tasks)
        .map(|task| {
            let mut files: Vec<Bytes> = scan.files.iter().skip(task).step_by(tasks).cloned().collect();
            files.resize_with(each, nothing);
            let part = TextScan::new(files, layout, scan.schema.clone(), scan.projection.clone())?;
            Ok(Arc::new(part) as Arc<dyn ExecutionPlan>)
        })
        .collect()
}

fn tables(source: &MemorySourceConfig, tasks: usize) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
    let all: Vec<&RecordBatch> = source.partitions().iter().flatten().collect();
    (0..tasks)
        .map(|task| {
            let mine: Vec<RecordBatch> = all.iter().skip(task).step_by(tasks).map(|b| (*b).clone()).collect();
            let part = MemorySourceConfig::try_new(&[mine], source.original_schema(), source.projection().clone())?;
            Ok(DataSourceExec::from_data_source(part) as Arc<dyn ExecutionPlan>)
        })
        .collect()
}
