//! Stages of a worker whose memory is limited.

use datafusion::common::Result;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, EmptyRecordBatchStream, ExecutionPlan, Partitioning, PlanProperties,
};
use datafusion::prelude::SessionConfig;
use std::sync::Arc;

/// Partitions that a stage is to have, the fewest between which rows can be exchanged: each has its part of the memory.
pub(super) const PARTITIONS: usize = 2;

/// How a worker with this many bytes of memory runs its stages.
pub(super) fn config(config: SessionConfig, limit: usize) -> SessionConfig {
    // A batch of wide rows (1 KB) takes a sixteenth of the memory: some must fit into what a step has of it.
    let rows = (limit >> 14).clamp(64, config.batch_size());
    crate::memory::sorting_within(config, limit / PARTITIONS).with_batch_size(rows)
}

/// The first step of an aggregation with all its rows in the first partition: what exchanges them by key then spills for one partition
/// alone. For two at once, it can wait for itself for ever (DataFusion 55.2, upstream issue 24883). Nobody asks in which partition such a
/// row is; of what is sent to all workers, for one, they do.
pub(super) fn in_one(stage: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    let properties = stage.properties();
    let first = stage.downcast_ref::<AggregateExec>().is_some_and(|step| *step.mode() == AggregateMode::Partial);
    let free = matches!(properties.partitioning, Partitioning::UnknownPartitioning(n) | Partitioning::RoundRobinBatch(n) if n > 1);
    if !first || !free || properties.output_ordering().is_some() {
        return stage;
    }
    let partitions = properties.partitioning.partition_count();
    let properties = PlanProperties::new(
        EquivalenceProperties::new(stage.schema()),
        Partitioning::UnknownPartitioning(partitions),
        properties.emission_type,
        properties.boundedness,
    );
    Arc::new(InOne { stage, properties: Arc::new(properties) })
}

#[derive(Debug)]
struct InOne {
    stage: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for InOne {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InOne")
    }
}

impl ExecutionPlan for InOne {
    fn name(&self) -> &'static str {
        "InOne"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.stage]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(match children.pop() {
            Some(stage) => Arc::new(InOne { stage, properties: self.properties.clone() }),
            None => self,
        })
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        match partition {
            0 => CoalescePartitionsExec::new(self.stage.clone()).execute(0, context),
            _ => Ok(Box::pin(EmptyRecordBatchStream::new(self.stage.schema()))),
        }
    }
}
