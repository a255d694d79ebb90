//! The sorted plan: inputs that are sorted by key are merged as they are read, in memory for a batch of each, without a hash table.
//!
//! The partitions of the input are walked side by side. All rows up to the least last key of the batches at hand form a window; in it,
//! rows of one key get one number, whichever input they are in, and each input's slice goes to the accumulators with those numbers. No
//! row is copied. What is folded is the same set of rows as in the general plan, so the answer is the same.

use crate::aggregates;
use crate::columns::external;
use crate::columns::lean;
use crate::orders::passes_on;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{SortOptions, cast, interleave};
use arrow::datatypes::{DataType, Int64Type, SchemaRef, UInt64Type};
use arrow::row::{OwnedRow, Row, RowConverter, Rows, SortField};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{EquivalenceProperties, LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::common::spawn_buffered;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
};
use futures::StreamExt;
use mergeql_udfs::{Code, Error};
use std::cmp::Ordering;
use std::sync::Arc;

/// Takes the sorted plan where every input is sorted by the key of a merge.
#[derive(Debug)]
pub(crate) struct SortedMerges;

impl PhysicalOptimizerRule for SortedMerges {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let replaced = plan.transform_down(|node| {
            Ok(match node.downcast_ref::<AggregateExec>().and_then(sorted) {
                Some(merge) => Transformed::yes(Arc::new(merge) as Arc<dyn ExecutionPlan>),
                None => Transformed::no(node),
            })
        })?;
        Ok(replaced.data)
    }

    fn name(&self) -> &str {
        "sorted_merges"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// More inputs than this are not walked side by side.
const MOST_INPUTS: usize = 64;

/// The sorted plan in place of this aggregation, if its input is sorted.
fn sorted(last: &AggregateExec) -> Option<SortedMerge> {
    let whole = |a: &AggregateExec| !a.group_expr().has_grouping_set() && !a.group_expr().is_empty() && a.limit_options().is_none();
    if !matches!(last.mode(), AggregateMode::Final | AggregateMode::FinalPartitioned) || !whole(last) {
        return None;
    }
    let first = last.input().downcast_ref::<AggregateExec>()?;
    let ours = |f: &Arc<AggregateFunctionExpr>| aggregates::is_ours(f.fun()) && !f.is_distinct() && f.order_bys().is_empty();
    if *first.mode() != AggregateMode::Partial || !whole(first) || !first.aggr_expr().iter().all(ours) {
        return None;
    }
    let input = first.input().clone();
    let keys: Vec<Arc<dyn PhysicalExpr>> = first.group_expr().input_exprs();
    let schema = input.schema();
    // Floats are equal in more than one form.
    let exact = |e: &Arc<dyn PhysicalExpr>| e.data_type(&schema).is_ok_and(|t| !lean(&t).is_floating() && !t.is_nested());
    if input.output_partitioning().partition_count() > MOST_INPUTS || !keys.iter().all(exact) || !passes_on(&input) {
        return None;
    }
    let ordering = input.output_ordering()?;
    let by: Vec<PhysicalSortExpr> = ordering.iter().take(keys.len()).cloned().collect();
    let position = |sort: &PhysicalSortExpr| keys.iter().position(|k| k.eq(&sort.expr)).filter(|_| !sort.options.descending);
    let order = by.iter().map(position).collect::<Option<Vec<_>>>()?;
    if order.len() != keys.len() || (0..keys.len()).any(|k| !order.contains(&k)) {
        return None;
    }
    let nulls_first = by.iter().map(|sort| sort.options.nulls_first).collect();
    SortedMerge::new(input, keys, order, nulls_first, first, last.schema()).ok()
}

/// Merges the partitions of a sorted input into one, with one row a key.
#[derive(Debug)]
pub(crate) struct SortedMerge {
    input: Arc<dyn ExecutionPlan>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    /// Which key the input is sorted by first, which next.
    order: Vec<usize>,
    nulls_first: Vec<bool>,
    aggregates: Vec<Arc<AggregateFunctionExpr>>,
    filters: Vec<Option<Arc<dyn PhysicalExpr>>>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl SortedMerge {
    fn new(
        input: Arc<dyn ExecutionPlan>,
        keys: Vec<Arc<dyn PhysicalExpr>>,
        order: Vec<usize>,
        nulls_first: Vec<bool>,
        aggregation: &AggregateExec,
        schema: SchemaRef,
    ) -> Result<SortedMerge> {
        let by = order.iter().zip(&nulls_first).map(|(&key, &nulls_first)| {
            let column = datafusion::physical_expr::expressions::Column::new(schema.field(key).name(), key);
            PhysicalSortExpr::new(Arc::new(column), SortOptions { descending: false, nulls_first })
        });
        let orderings = LexOrdering::new(by.collect::<Vec<_>>());
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new_with_orderings(schema.clone(), orderings),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        Ok(SortedMerge {
            input,
            keys,
            order,
            nulls_first,
            aggregates: aggregation.aggr_expr().to_vec(),
            filters: aggregation.filter_expr().to_vec(),
            schema,
            properties,
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    fn over(&self, input: Arc<dyn ExecutionPlan>) -> SortedMerge {
        SortedMerge {
            input,
            keys: self.keys.clone(),
            order: self.order.clone(),
            nulls_first: self.nulls_first.clone(),
            aggregates: self.aggregates.clone(),
            filters: self.filters.clone(),
            schema: self.schema.clone(),
            properties: self.properties.clone(),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }
}

impl DisplayAs for SortedMerge {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys: Vec<String> = self.order.iter().map(|&k| self.keys[k].to_string()).collect();
        let aggregates: Vec<&str> = self.aggregates.iter().map(|a| a.name()).collect();
        let inputs = self.input.output_partitioning().partition_count();
        write!(f, "SortedMerge: by=[{}], inputs={inputs}, aggr=[{}]", keys.join(", "), aggregates.join(", "))
    }
}

impl ExecutionPlan for SortedMerge {
    fn name(&self) -> &'static str {
        "SortedMerge"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn required_input_ordering(&self) -> Vec<Option<datafusion::physical_expr::OrderingRequirements>> {
        let by = self.order.iter().zip(&self.nulls_first).map(|(&key, &nulls_first)| {
            PhysicalSortExpr::new(self.keys[key].clone(), SortOptions { descending: false, nulls_first })
        });
        vec![LexOrdering::new(by.collect::<Vec<_>>()).map(datafusion::physical_expr::OrderingRequirements::from)]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for key in &self.keys {
            f(key)?;
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match children.pop() {
            Some(input) => Ok(Arc::new(self.over(input))),
            None => Ok(self),
        }
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let inputs = (0..self.input.output_partitioning().partition_count())
            .map(|partition| {
                let stream = spawn_buffered(self.input.execute(partition, context.clone())?, 2);
                Ok(Input { stream, batch: None, last: None, done: false })
            })
            .collect::<Result<Vec<_>>>()?;
        let types = self.keys.iter().map(|k| k.data_type(&self.input.schema())).collect::<Result<Vec<_>>>()?;
        let accumulators = self.aggregates.iter().map(|a| a.create_groups_accumulator()).collect::<Result<Vec<_>>>()?;
        let walk = Walk {
            reader: Reader {
                keys: self.keys.clone(),
                arguments: self.aggregates.iter().map(|a| a.expressions()).collect(),
                filters: self.filters.clone(),
                order: Order::new(&types, &self.order, &self.nulls_first)?,
            },
            inputs,
            accumulators,
            groups: 0,
            open: None,
            held: Vec::new(),
            places: Vec::new(),
            numbers: Vec::new(),
            rows: context.session_config().batch_size(),
            schema: self.schema.clone(),
            metrics: BaselineMetrics::new(&self.metrics, 0),
        };
        let batches =
            futures::stream::try_unfold(walk, |mut walk| async move { Ok(walk.next().await?.map(|batch| (batch, walk))) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

// Keys.

/// How keys are compared.
enum Order {
    /// One key that is a whole number inside: as such, with a NULL at the end where the input has it.
    Number { null: i128 },
    /// Any keys: as bytes that compare like them.
    Bytes { converter: RowConverter, order: Vec<usize> },
}

/// The keys of a batch.
enum Keys {
    Numbers(Vec<i128>),
    Bytes(Rows),
}

/// A key that outlives its batch.
enum Key {
    Number(i128),
    Bytes(OwnedRow),
}

impl Order {
    fn new(types: &[DataType], order: &[usize], nulls_first: &[bool]) -> Result<Order> {
        if let ([ty], [nulls_first]) = (types, nulls_first)
            && (ty.is_integer() || ty.is_temporal() && !matches!(ty, DataType::Interval(_)))
        {
            return Ok(Order::Number { null: if *nulls_first { i128::MIN } else { i128::MAX } });
        }
        let field = |(&key, &nulls_first): (&usize, &bool)| {
            SortField::new_with_options(types[key].clone(), SortOptions { descending: false, nulls_first })
        };
        let converter = RowConverter::new(order.iter().zip(nulls_first).map(field).collect())?;
        Ok(Order::Bytes { converter, order: order.to_vec() })
    }

    fn keys(&self, columns: &[ArrayRef]) -> Result<Keys> {
        match self {
            Order::Bytes { converter, order } => {
                let ordered: Vec<ArrayRef> = order.iter().map(|&key| columns[key].clone()).collect();
                Ok(Keys::Bytes(converter.convert_columns(&ordered)?))
            }
            Order::Number { null } => {
                let column = &columns[0];
                let numbers: Vec<i128> = if column.data_type() == &DataType::UInt64 {
                    column.as_primitive::<UInt64Type>().values().iter().map(|v| i128::from(*v)).collect()
                } else {
                    let narrow = matches!(column.data_type(), DataType::Date32 | DataType::Time32(_));
                    let column = if narrow { cast(column, &DataType::Int32)? } else { column.clone() };
                    let numbers = cast(&column, &DataType::Int64)?;
                    numbers.as_primitive::<Int64Type>().values().iter().map(|v| i128::from(*v)).collect()
                };
                Ok(Keys::Numbers(match column.nulls().filter(|n| n.null_count() > 0) {
                    None => numbers,
                    Some(nulls) => numbers.into_iter().zip(nulls).map(|(v, valid)| if valid { v } else { *null }).collect(),
                }))
            }
        }
    }
}

impl Keys {
    fn own(&self, row: usize) -> Key {
        match self {
            Keys::Numbers(numbers) => Key::Number(numbers[row]),
            Keys::Bytes(rows) => Key::Bytes(rows.row(row).owned()),
        }
    }
}

// The walk.

/// Turns batches into what the walk needs of them.
struct Reader {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    arguments: Vec<Vec<Arc<dyn PhysicalExpr>>>,
    filters: Vec<Option<Arc<dyn PhysicalExpr>>>,
    order: Order,
}

struct Input {
    stream: SendableRecordBatchStream,
    batch: Option<Batch>,
    /// The last key of the batch before.
    last: Option<Key>,
    done: bool,
}

struct Batch {
    keys: Keys,
    columns: Vec<ArrayRef>,
    arguments: Vec<Vec<ArrayRef>>,
    filters: Vec<Option<BooleanArray>>,
    rows: usize,
    at: usize,
}

impl Reader {
    fn read(&self, batch: &RecordBatch) -> Result<Batch> {
        let rows = batch.num_rows();
        let array = |e: &Arc<dyn PhysicalExpr>| e.evaluate(batch)?.into_array(rows);
        let columns = self.keys.iter().map(array).collect::<Result<Vec<_>>>()?;
        let arguments = self.arguments.iter().map(|a| a.iter().map(array).collect()).collect::<Result<Vec<Vec<_>>>>()?;
        let filter = |f: &Option<Arc<dyn PhysicalExpr>>| match f {
            Some(f) => Ok(Some(array(f)?.as_boolean().clone())),
            None => Ok(None),
        };
        let filters = self.filters.iter().map(filter).collect::<Result<Vec<_>>>()?;
        Ok(Batch { keys: self.order.keys(&columns)?, columns, arguments, filters, rows, at: 0 })
    }
}

struct Walk {
    reader: Reader,
    inputs: Vec<Input>,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
    /// How many keys are in the accumulators. Rows of the last one may still come.
    groups: usize,
    open: Option<Key>,
    /// Key columns of batches in which a key of `places` stands.
    held: Vec<Vec<ArrayRef>>,
    /// Where the key of each group stands: which of `held`, which row.
    places: Vec<(usize, usize)>,
    /// Group numbers of the rows of a window, for each input.
    numbers: Vec<Vec<usize>>,
    rows: usize,
    schema: SchemaRef,
    metrics: BaselineMetrics,
}

fn unsorted() -> DataFusionError {
    let error = Error::new(Code::Io, "a source says that it is sorted by the key, and is not");
    external(error.with_help("say WITH (sorted = false), or write the file again"))
}

impl Walk {
    /// The next rows of the result.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            for i in 0..self.inputs.len() {
                self.refill(i).await?;
            }
            if self.inputs.iter().all(|input| input.batch.is_none()) {
                let left = std::mem::take(&mut self.groups);
                return if left == 0 { Ok(None) } else { self.emit(left).map(Some) };
            }
            let elapsed = self.metrics.elapsed_compute().clone();
            let timer = elapsed.timer();
            self.window()?;
            if self.groups > self.rows {
                let closed = self.groups - 1;
                self.groups = 1;
                return self.emit(closed).map(Some);
            }
            timer.done();
        }
    }

    /// Makes the rows at hand of an input not empty, unless it has come to its end.
    async fn refill(&mut self, i: usize) -> Result<()> {
        let input = &mut self.inputs[i];
        if let Some(batch) = &input.batch {
            if batch.at < batch.rows {
                return Ok(());
            }
            input.last = Some(batch.keys.own(batch.rows - 1));
            input.batch = None;
        }
        while !input.done && input.batch.is_none() {
            match input.stream.next().await.transpose()? {
                Some(batch) if batch.num_rows() > 0 => {
                    let batch = self.reader.read(&batch)?;
                    let goes_on = match (&batch.keys, &input.last) {
                        (Keys::Numbers(keys), Some(Key::Number(last))) => keys[0] >= *last,
                        (Keys::Bytes(keys), Some(Key::Bytes(last))) => keys.row(0) >= last.row(),
                        _ => true,
                    };
                    if !goes_on {
                        return Err(unsorted());
                    }
                    input.batch = Some(batch);
                }
                Some(_) => {}
                None => input.done = true,
            }
        }
        Ok(())
    }

    /// Folds all rows up to the least last key of the batches at hand.
    fn window(&mut self) -> Result<()> {
        let batches: Vec<&Batch> = self.inputs.iter().filter_map(|input| input.batch.as_ref()).collect();
        self.numbers.resize_with(batches.len(), Vec::new);
        self.numbers.iter_mut().for_each(Vec::clear);
        let offset = self.held.len();
        let mut places = Vec::new();
        let starts: Vec<usize> = batches.iter().map(|b| b.at).collect();
        let mut groups = self.groups;
        let open = match &batches[0].keys {
            Keys::Numbers(_) => {
                let keys: Vec<&[i128]> = batches.iter().map(|b| numbers_of(&b.keys)).collect();
                let open = match &self.open {
                    Some(Key::Number(key)) => Some(*key),
                    _ => None,
                };
                let get = |input: usize, row: usize| keys[input][row];
                let mut walked = Numbered { numbers: &mut self.numbers, groups: &mut groups, places: &mut places };
                number(&batches, &starts, get, open, &mut walked)?.map(Key::Number)
            }
            Keys::Bytes(_) => {
                let keys: Vec<&Rows> = batches.iter().filter_map(|b| rows_of(&b.keys)).collect();
                let open = match &self.open {
                    Some(Key::Bytes(key)) => Some(key.row()),
                    _ => None,
                };
                let get = |input: usize, row: usize| keys[input].row(row);
                let mut walked = Numbered { numbers: &mut self.numbers, groups: &mut groups, places: &mut places };
                number(&batches, &starts, get, open, &mut walked)?.map(|key: Row<'_>| Key::Bytes(key.owned()))
            }
        };
        if self.numbers.iter().all(Vec::is_empty) {
            // A key that is greater than the last one of its batch.
            return Err(unsorted());
        }
        for (i, accumulator) in self.accumulators.iter_mut().enumerate() {
            for ((batch, numbers), start) in batches.iter().zip(&self.numbers).zip(&starts) {
                if numbers.is_empty() {
                    continue;
                }
                let slice = |array: &ArrayRef| array.slice(*start, numbers.len());
                let values: Vec<ArrayRef> = batch.arguments[i].iter().map(slice).collect();
                let filter = batch.filters[i].as_ref().map(|f| f.slice(*start, numbers.len()));
                accumulator.update_batch(&values, numbers, filter.as_ref(), groups)?;
            }
        }
        self.held.extend(batches.iter().map(|b| b.columns.clone()));
        self.places.extend(places.into_iter().map(|(input, row)| (offset + input, row)));
        (self.groups, self.open) = (groups, open);
        let with_rows = self.inputs.iter_mut().filter_map(|input| input.batch.as_mut());
        with_rows.zip(&self.numbers).for_each(|(batch, numbers)| batch.at += numbers.len());
        Ok(())
    }

    /// The first groups as rows; they are gone from the accumulators then.
    fn emit(&mut self, groups: usize) -> Result<RecordBatch> {
        let places: Vec<(usize, usize)> = self.places.drain(..groups).collect();
        let column = |key: usize| {
            let held: Vec<&dyn Array> = self.held.iter().map(|columns| columns[key].as_ref()).collect();
            interleave(&held, &places)
        };
        let mut columns = (0..self.reader.keys.len()).map(column).collect::<std::result::Result<Vec<_>, _>>()?;
        for accumulator in &mut self.accumulators {
            columns.push(accumulator.evaluate(if self.places.is_empty() { EmitTo::All } else { EmitTo::First(groups) })?);
        }
        // Only the batch in which the open key stands is held on to.
        self.held = match self.places.first() {
            Some(&(batch, row)) => vec![self.held[batch].iter().map(|column| column.slice(row, 1)).collect()],
            None => Vec::new(),
        };
        self.places.iter_mut().for_each(|place| *place = (0, 0));
        let batch = RecordBatch::try_new(self.schema.clone(), columns)?;
        self.metrics.record_output(batch.num_rows());
        Ok(batch)
    }
}

fn numbers_of(keys: &Keys) -> &[i128] {
    match keys {
        Keys::Numbers(numbers) => numbers,
        Keys::Bytes(_) => &[],
    }
}

fn rows_of(keys: &Keys) -> Option<&Rows> {
    match keys {
        Keys::Bytes(rows) => Some(rows),
        Keys::Numbers(_) => None,
    }
}

/// Where a window's group numbers go.
struct Numbered<'a> {
    numbers: &'a mut [Vec<usize>],
    groups: &'a mut usize,
    places: &'a mut Vec<(usize, usize)>,
}

/// Gives the rows of a window their group numbers; gives back its last key.
fn number<K: Ord + Copy>(
    batches: &[&Batch],
    starts: &[usize],
    key: impl Fn(usize, usize) -> K,
    open: Option<K>,
    walked: &mut Numbered<'_>,
) -> Result<Option<K>> {
    let bound = (0..batches.len()).map(|i| key(i, batches[i].rows - 1)).min();
    let mut at: Vec<usize> = starts.to_vec();
    // The next key of each input, while it is in the window.
    let head = |i: usize, row: usize| (row < batches[i].rows).then(|| key(i, row)).filter(|k| Some(*k) <= bound);
    let mut heads: Vec<Option<K>> = at.iter().enumerate().map(|(i, &row)| head(i, row)).collect();
    let mut last = open;
    while let Some(least) = heads.iter().flatten().min().copied() {
        match last.map(|last| last.cmp(&least)) {
            Some(Ordering::Equal) => {}
            Some(Ordering::Greater) => return Err(unsorted()),
            _ => {
                *walked.groups += 1;
                last = Some(least);
                let from = heads.iter().position(|h| *h == Some(least)).unwrap_or_default();
                walked.places.push((from, at[from]));
            }
        }
        let group = *walked.groups - 1;
        for (i, next) in heads.iter_mut().enumerate() {
            while *next == Some(least) {
                walked.numbers[i].push(group);
                at[i] += 1;
                *next = head(i, at[i]);
                if next.is_some_and(|next| next < least) {
                    return Err(unsorted());
                }
            }
        }
    }
    Ok(last)
}
