//! The hashed plan: where the key of a merge is one whole number, a table of our own says which group a row is of, instead of DataFusion's,
//! which waits for memory twice a row ([`KeyTable`]). What is folded is the same set of rows, so the answer is the same.
//!
//! It stands for the last step of an aggregation in several partitions, and is there only without a limit of memory: with one, plans have
//! one partition, and DataFusion's step spills.

use crate::aggregates;
use crate::columns::external;
use arrow::array::{Array, ArrayData, ArrayRef, RecordBatch, make_array};
use arrow::buffer::{Buffer, NullBuffer};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, InputOrderMode, PlanProperties};
use futures::StreamExt;
use mergeql_udfs::{Bits, KeyTable};
use std::sync::Arc;

/// Takes the hashed plan where it can.
#[derive(Debug)]
pub(crate) struct HashedMerges;

impl PhysicalOptimizerRule for HashedMerges {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let replaced = plan.transform_down(|node| {
            Ok(match node.downcast_ref::<AggregateExec>().and_then(hashed) {
                Some(merge) => Transformed::yes(Arc::new(merge) as Arc<dyn ExecutionPlan>),
                None => Transformed::no(node),
            })
        })?;
        Ok(replaced.data)
    }

    fn name(&self) -> &str {
        "hashed_merges"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The hashed plan in place of this aggregation, if it is the last step of one by one whole number.
fn hashed(last: &AggregateExec) -> Option<HashedMerge> {
    let ours = |f: &Arc<AggregateFunctionExpr>| aggregates::is_ours(f.fun()) && !f.is_distinct() && f.order_bys().is_empty();
    let whole = !last.group_expr().has_grouping_set() && last.limit_options().is_none();
    if *last.mode() != AggregateMode::FinalPartitioned || !whole || !last.aggr_expr().iter().all(ours) {
        return None;
    }
    let [key] = last.group_expr().input_exprs().try_into().ok()?;
    let key: Arc<dyn PhysicalExpr> = key;
    let ty = key.data_type(&last.input().schema()).ok()?;
    if *last.input_order_mode() != InputOrderMode::Linear || !is_number(&ty) {
        return None;
    }
    Some(HashedMerge {
        input: last.input().clone(),
        key,
        aggregates: last.aggr_expr().to_vec(),
        schema: last.schema(),
        properties: last.properties().clone(),
        metrics: ExecutionPlanMetricsSet::new(),
    })
}

/// Whether a type is a whole number of 32 or 64 bits inside.
fn is_number(ty: &DataType) -> bool {
    use DataType::{Date32, Date64, Int32, Int64, Time32, Time64, Timestamp, UInt32, UInt64};
    matches!(ty, Int32 | Int64 | UInt32 | UInt64 | Date32 | Date64 | Time32(_) | Time64(_) | Timestamp(..))
}

/// Folds partial states, or rows, by key: the last step of an aggregation.
#[derive(Debug)]
struct HashedMerge {
    input: Arc<dyn ExecutionPlan>,
    key: Arc<dyn PhysicalExpr>,
    aggregates: Vec<Arc<AggregateFunctionExpr>>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl DisplayAs for HashedMerge {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let aggregates: Vec<&str> = self.aggregates.iter().map(|a| a.name()).collect();
        write!(f, "HashedMerge: by=[{}], aggr=[{}]", self.key, aggregates.join(", "))
    }
}

impl ExecutionPlan for HashedMerge {
    fn name(&self) -> &'static str {
        "HashedMerge"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::KeyPartitioned(vec![self.key.clone()])]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        f(&self.key)
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(input) = children.pop() else { return Ok(self) };
        Ok(Arc::new(HashedMerge {
            input,
            key: self.key.clone(),
            aggregates: self.aggregates.clone(),
            schema: self.schema.clone(),
            properties: self.properties.clone(),
            metrics: ExecutionPlanMetricsSet::new(),
        }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut states = Vec::new();
        let mut at = 1;
        for aggregate in &self.aggregates {
            let n = aggregate.state_fields()?.len();
            states.push(at..at + n);
            at += n;
        }
        let fold = Fold {
            input: self.input.execute(partition, context.clone())?,
            key: self.key.clone(),
            accumulators: self.aggregates.iter().map(|a| a.create_groups_accumulator()).collect::<Result<_>>()?,
            states,
            table: KeyTable::default(),
            groups: Vec::new(),
            reservation: MemoryConsumer::new(format!("HashedMerge[{partition}]")).register(context.memory_pool()),
            schema: self.schema.clone(),
            rows: context.session_config().batch_size(),
            metrics: BaselineMetrics::new(&self.metrics, partition),
        };
        let rows = self.schema.clone();
        let batches = futures::stream::try_unfold(Step::Fold(Box::new(fold)), |step| async move {
            let (fold, mut at) = match step {
                Step::Fold(fold) => (fold.all().await?, 0),
                Step::Give(fold, at) => (fold, at),
            };
            let n = fold.rows.min(fold.batch.num_rows() - at);
            if n == 0 {
                return Ok(None);
            }
            let batch = fold.batch.slice(at, n);
            at += n;
            fold.metrics.record_output(n);
            Ok(Some((batch, Step::Give(fold, at))))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(rows, batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

enum Step {
    Fold(Box<Fold>),
    /// What is given, and how many rows of it were.
    Give(Folded, usize),
}

struct Fold {
    input: SendableRecordBatchStream,
    key: Arc<dyn PhysicalExpr>,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
    /// Which columns of the input are the states of each accumulator.
    states: Vec<std::ops::Range<usize>>,
    table: KeyTable,
    /// The group of each row of a batch.
    groups: Vec<usize>,
    reservation: MemoryReservation,
    schema: SchemaRef,
    rows: usize,
    metrics: BaselineMetrics,
}

/// All rows of the result.
struct Folded {
    batch: RecordBatch,
    rows: usize,
    metrics: BaselineMetrics,
    _reservation: MemoryReservation,
}

impl Fold {
    async fn all(mut self: Box<Self>) -> Result<Folded> {
        let elapsed = self.metrics.elapsed_compute().clone();
        while let Some(batch) = self.input.next().await.transpose()? {
            let _timer = elapsed.timer();
            self.add(&batch)?;
        }
        let _timer = elapsed.timer();
        let (keys, null) = self.table.take();
        let ty = self.schema.field(0).data_type();
        let mut columns = vec![array(keys, null, ty)?];
        for accumulator in &mut self.accumulators {
            columns.push(accumulator.evaluate(EmitTo::All)?);
        }
        let batch = RecordBatch::try_new(self.schema.clone(), columns)?;
        self.reservation.try_resize(batch.get_array_memory_size())?;
        let Fold { rows, metrics, reservation, .. } = *self;
        Ok(Folded { batch, rows, metrics, _reservation: reservation })
    }

    fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let keys = self.key.evaluate(batch)?.into_array(batch.num_rows())?;
        let data = keys.to_data();
        let wide: Vec<u64>;
        let numbers = match &data.buffers()[0] {
            buffer if keys.data_type().primitive_width() == Some(8) => &buffer.typed_data::<u64>()[data.offset()..][..keys.len()],
            buffer => {
                let narrow = &buffer.typed_data::<u32>()[data.offset()..][..keys.len()];
                wide = narrow.iter().map(|key| u64::from(*key)).collect();
                &wide
            }
        };
        let valid = keys.nulls().map(|nulls| Bits::new(nulls.buffer().as_slice(), nulls.offset()));
        self.table.groups(numbers, valid, &mut self.groups).map_err(external)?;
        let mut size = self.table.size();
        for (accumulator, states) in self.accumulators.iter_mut().zip(&self.states) {
            accumulator.merge_batch(&batch.columns()[states.clone()], &self.groups, self.table.len())?;
            size += accumulator.size();
        }
        self.reservation.try_resize(size)
    }
}

/// Keys as a column of their type; one of them is NULL.
fn array(keys: Vec<u64>, null: Option<usize>, ty: &DataType) -> Result<ArrayRef> {
    let n = keys.len();
    let nulls = null.map(|null| NullBuffer::from_iter((0..n).map(|i| i != null)));
    let buffer = match ty.primitive_width() {
        Some(8) => Buffer::from_vec(keys),
        _ => Buffer::from_vec(keys.into_iter().map(|key| key as u32).collect()),
    };
    Ok(make_array(ArrayData::builder(ty.clone()).len(n).nulls(nulls).add_buffer(buffer).build()?))
}
