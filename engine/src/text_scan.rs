//! Text files as a table: a partition a file, of which only the columns that are asked for are parsed.

use crate::columns::external;
use crate::text_files::{self, Bytes, Layout, MarkNulls, NULL_PATTERN, as_lines};
use arrow::array::{RecordBatch, new_null_array};
use arrow::compute::SortOptions;
use arrow::csv::ReaderBuilder as CsvBuilder;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder as JsonBuilder;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::TableType;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, SchedulingType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use mergeql_udfs::{Code, Error};
use std::io::{BufRead, BufReader, Cursor};
use std::sync::Arc;

/// The text files of a source.
#[derive(Debug)]
pub struct TextTable {
    files: Vec<Bytes>,
    layout: Layout,
    schema: SchemaRef,
    /// Whether each column has a value in every row, as the files were read.
    pub(crate) complete: Vec<bool>,
    /// The columns that each file is said to be sorted by.
    sorted_by: Vec<usize>,
}

impl TextTable {
    /// Infers the schema of all files together.
    ///
    /// # Errors
    /// As [`text_files::infer`].
    pub fn open(files: Vec<Bytes>, layout: Layout, sorted_by: &[String]) -> mergeql_udfs::Result<TextTable> {
        let text_files::Inferred { schema, complete } = text_files::infer(&files, layout)?;
        let sorted_by: Option<Vec<usize>> = sorted_by.iter().map(|key| schema.index_of(key).ok()).collect();
        Ok(TextTable { files, layout, schema: Arc::new(schema), complete, sorted_by: sorted_by.unwrap_or_default() })
    }

    /// One of the files, with the columns of all.
    pub(crate) fn only(&self, file: usize) -> TextTable {
        TextTable {
            files: vec![self.files[file].clone()],
            layout: self.layout,
            schema: self.schema.clone(),
            complete: self.complete.clone(),
            sorted_by: self.sorted_by.clone(),
        }
    }
}

#[async_trait]
impl TableProvider for TextTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let scan = TextScan::new(self.files.clone(), self.layout, self.schema.clone(), projection.cloned())?;
        Ok(Arc::new(scan.sorted_by(&self.sorted_by)))
    }
}

/// Reads text files.
#[derive(Debug)]
pub struct TextScan {
    pub(crate) files: Vec<Bytes>,
    pub(crate) layout: Layout,
    /// What the files hold.
    pub(crate) schema: SchemaRef,
    /// Which columns of it are read.
    pub(crate) projection: Option<Vec<usize>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl TextScan {
    pub(crate) fn new(files: Vec<Bytes>, layout: Layout, schema: SchemaRef, projection: Option<Vec<usize>>) -> Result<TextScan> {
        let projected = match &projection {
            Some(columns) => Arc::new(schema.project(columns)?),
            None => schema.clone(),
        };
        let partitioning = Partitioning::UnknownPartitioning(files.len());
        let properties = PlanProperties::new(
            EquivalenceProperties::new(projected),
            partitioning,
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let properties = Arc::new(properties.with_scheduling_type(SchedulingType::Cooperative));
        Ok(TextScan { files, layout, schema, projection, properties, metrics: ExecutionPlanMetricsSet::new() })
    }
}

impl TextScan {
    /// The same scan, whose files are said to be sorted by these columns.
    fn sorted_by(mut self, columns: &[usize]) -> TextScan {
        let schema = self.properties.eq_properties.schema().clone();
        let sort = |column: &usize| {
            let name = self.schema.field(*column).name();
            let index = schema.index_of(name).ok()?;
            Some(PhysicalSortExpr::new(Arc::new(Column::new(name, index)), SortOptions { descending: false, nulls_first: true }))
        };
        if let Some(by) = columns.iter().map(sort).collect::<Option<Vec<_>>>().and_then(LexOrdering::new) {
            let equal = EquivalenceProperties::new_with_orderings(schema, [by]);
            self.properties = Arc::new(PlanProperties::clone(&self.properties).with_eq_properties(equal));
        }
        self
    }
}

impl TextScan {
    /// The same scan, of which nothing is said.
    pub(crate) fn unsorted(&self) -> TextScan {
        let equal = EquivalenceProperties::new(self.properties.eq_properties.schema().clone());
        TextScan {
            files: self.files.clone(),
            layout: self.layout,
            schema: self.schema.clone(),
            projection: self.projection.clone(),
            properties: Arc::new(PlanProperties::clone(&self.properties).with_eq_properties(equal)),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }
}

impl DisplayAs for TextScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files: Vec<String> = self.files.iter().take(5).map(Bytes::name).collect();
        let more = if self.files.len() > 5 { ", ..." } else { "" };
        let columns: Vec<&str> = self.properties.eq_properties.schema().fields().iter().map(|f| f.name().as_str()).collect();
        write!(f, "TextScan: files=[{}{more}], columns=[{}]", files.join(", "), columns.join(", "))
    }
}

impl ExecutionPlan for TextScan {
    fn name(&self) -> &'static str {
        "TextScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut builder = RecordBatchReceiverStream::builder(self.properties.eq_properties.schema().clone(), 2);
        let sender = builder.tx();
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let reading = Reading {
            bytes: self.files[partition].clone(),
            layout: self.layout,
            schema: self.schema.clone(),
            projection: self.projection.clone(),
            rows: context.session_config().batch_size(),
        };
        builder.spawn_blocking(move || {
            reading.run(|batch| {
                metrics.record_output(batch.num_rows());
                sender.blocking_send(Ok(batch)).is_ok()
            })
        });
        Ok(make_cooperative(builder.build()))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// The reading of one file.
struct Reading {
    bytes: Bytes,
    layout: Layout,
    schema: SchemaRef,
    projection: Option<Vec<usize>>,
    rows: usize,
}

impl Reading {
    /// Gives each batch to `send` until it has enough.
    fn run(self, mut send: impl FnMut(RecordBatch) -> bool) -> Result<()> {
        let name = self.bytes.name();
        let problem = |e: ArrowError| external(Error::new(Code::Io, format!("{name}: {e}")));
        // Rows are counted by a column, where none is asked for.
        let nothing = self.projection.as_ref().is_some_and(Vec::is_empty);
        let columns = match nothing {
            true => Some((0..self.schema.fields().len().min(1)).collect()),
            false => self.projection.clone(),
        };
        let mut give = |batch: std::result::Result<RecordBatch, ArrowError>| -> Result<bool> {
            let batch = batch.map_err(problem)?;
            Ok(send(if nothing { batch.project(&[])? } else { batch }))
        };
        match self.layout {
            Layout::Csv { delimiter, header } => {
                // Where each wanted column is in this file, and which it has not.
                let wanted: Vec<usize> = columns.unwrap_or_else(|| (0..self.schema.fields().len()).collect());
                let names = match header {
                    true => text_files::csv_header(&self.bytes, delimiter).map_err(external)?,
                    false => self.schema.fields().iter().map(|f| f.name().clone()).collect(),
                };
                let place = |column: &usize| names.iter().position(|n| n == self.schema.field(*column).name());
                let places: Vec<Option<usize>> = wanted.iter().map(place).collect();
                let there: Vec<usize> = places.iter().flatten().copied().collect();
                let fields =
                    names.iter().map(|n| self.schema.field_with_name(n).cloned()).collect::<std::result::Result<Vec<_>, _>>()?;
                let asked = Arc::new(self.schema.project(&wanted)?);
                // Rows are counted by any column.
                let projection = if there.is_empty() { vec![0] } else { there.clone() };
                let whole = |batch: RecordBatch| -> std::result::Result<RecordBatch, ArrowError> {
                    if there.len() == wanted.len() {
                        return Ok(batch);
                    }
                    let mut found = batch.columns().iter();
                    let column = |(place, field): (&Option<usize>, &Arc<Field>)| match place.and_then(|_| found.next()) {
                        Some(column) => column.clone(),
                        None => new_null_array(field.data_type(), batch.num_rows()),
                    };
                    RecordBatch::try_new(asked.clone(), places.iter().zip(asked.fields()).map(column).collect())
                };
                let marked = MarkNulls::new(self.bytes.open().map_err(external)?, delimiter);
                let reader = CsvBuilder::new(Arc::new(Schema::new(fields)))
                    .with_header(header)
                    .with_delimiter(delimiter)
                    .with_batch_size(self.rows)
                    .with_null_regex(NULL_PATTERN.clone())
                    .with_projection(projection);
                for batch in reader.build_buffered(BufReader::with_capacity(1 << 18, marked)).map_err(problem)? {
                    if !give(batch.and_then(&whole))? {
                        break;
                    }
                }
            }
            Layout::Ndjson | Layout::Json => {
                let input: Box<dyn BufRead> = match self.layout {
                    Layout::Json => Box::new(Cursor::new(as_lines(&self.bytes).map_err(external)?)),
                    _ => self.bytes.open().map_err(external)?,
                };
                let schema = match columns {
                    Some(columns) => Arc::new(self.schema.project(&columns)?),
                    None => self.schema,
                };
                for batch in JsonBuilder::new(schema).with_batch_size(self.rows).build(input).map_err(problem)? {
                    if !give(batch)? {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}
