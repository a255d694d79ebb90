//! Which orders of files are believed. Parquet says of each row group that its rows are sorted, not of the file: a file is sorted where each of its
//! row groups is and they follow each other. What a file says may also be wrong. So an order is used only below the sorted plan, which looks
//! at every key; every other plan takes the rows of files for unsorted.

use crate::sorted::SortedMerge;
use crate::text_scan::TextScan;
use arrow::array::{Array, ArrayRef};
use arrow::compute::SortOptions;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::file_format::{FileFormat, FileMeta};
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder, FileSinkConfig, FileSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::physical_expr::{LexOrdering, LexRequirement};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::{ExecutionPlan, Statistics};
use object_store::{ObjectMeta, ObjectStore};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::file::metadata::ParquetMetaData;
use std::cmp::Ordering;
use std::sync::Arc;

/// DataFusion's format of Parquet files, whose order is believed where the whole file has it.
#[derive(Debug)]
pub(crate) struct ParquetFiles {
    format: ParquetFormat,
    believed: bool,
}

impl ParquetFiles {
    /// The format, and whether anything that files say of their order is believed.
    pub(crate) fn new(believed: bool) -> ParquetFiles {
        // The old instants of other programs reach further than nanoseconds do.
        let format = ParquetFormat::default().with_enable_pruning(true).with_coerce_int96(Some("us".to_owned()));
        ParquetFiles { format, believed }
    }
}

#[async_trait]
impl FileFormat for ParquetFiles {
    fn get_ext(&self) -> String {
        self.format.get_ext()
    }

    fn get_ext_with_compression(&self, compression: &FileCompressionType) -> Result<String> {
        self.format.get_ext_with_compression(compression)
    }

    fn compression_type(&self) -> Option<FileCompressionType> {
        self.format.compression_type()
    }

    async fn infer_schema(&self, state: &dyn Session, store: &Arc<dyn ObjectStore>, objects: &[ObjectMeta]) -> Result<SchemaRef> {
        self.format.infer_schema(state, store, objects).await
    }

    async fn infer_stats(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        schema: SchemaRef,
        object: &ObjectMeta,
    ) -> Result<Statistics> {
        self.format.infer_stats(state, store, schema, object).await
    }

    async fn infer_ordering(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        schema: SchemaRef,
        object: &ObjectMeta,
    ) -> Result<Option<LexOrdering>> {
        Ok(self.infer_stats_and_ordering(state, store, schema, object).await?.ordering)
    }

    async fn infer_stats_and_ordering(
        &self,
        state: &dyn Session,
        store: &Arc<dyn ObjectStore>,
        schema: SchemaRef,
        object: &ObjectMeta,
    ) -> Result<FileMeta> {
        let found = self.format.infer_stats_and_ordering(state, store, schema.clone(), object).await?;
        let Some(ordering) = found.ordering.clone().filter(|_| self.believed) else { return Ok(found.with_ordering(None)) };
        // The footer was read a moment ago, and is kept.
        let cache = state.runtime_env().cache_manager.get_file_metadata_cache();
        let footer = DFParquetMetadata::new(store, object).with_file_metadata_cache(Some(cache)).fetch_metadata().await?;
        let lasting = lasting(&footer, &schema, ordering.len());
        Ok(found.with_ordering(LexOrdering::new(ordering.into_iter().take(lasting))))
    }

    async fn create_physical_plan(&self, state: &dyn Session, conf: FileScanConfig) -> Result<Arc<dyn ExecutionPlan>> {
        self.format.create_physical_plan(state, conf).await
    }

    async fn create_writer_physical_plan(
        &self,
        input: Arc<dyn ExecutionPlan>,
        state: &dyn Session,
        conf: FileSinkConfig,
        order: Option<LexRequirement>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.format.create_writer_physical_plan(input, state, conf, order).await
    }

    fn file_source(&self, schema: TableSchema) -> Arc<dyn FileSource> {
        self.format.file_source(schema)
    }
}

/// How many of the columns that the first row group is sorted by the whole file is sorted by.
fn lasting(footer: &ParquetMetaData, schema: &Schema, claimed: usize) -> usize {
    let groups = footer.row_groups();
    let Some(by) = groups.first().and_then(|group| group.sorting_columns()) else { return 0 };
    // A column that the table lacks would have to stand between others.
    if by.len() != claimed || groups.iter().any(|group| group.sorting_columns() != Some(by)) {
        return 0;
    }
    if groups.len() == 1 {
        return claimed;
    }
    match followed(footer, schema) {
        // Rows of one first key are in two row groups: in what order, nothing says.
        Some(Ordering::Equal) => 1,
        Some(Ordering::Less) => claimed,
        _ => 0,
    }
}

/// Whether each row group ends before the next begins, by the first column: `Less`, or `Equal` where some end with what the next begins with.
fn followed(footer: &ParquetMetaData, schema: &Schema) -> Option<Ordering> {
    let groups = footer.row_groups();
    let first = groups.first()?.sorting_columns()?.first()?.clone();
    let parquet = footer.file_metadata().schema_descr();
    let index = usize::try_from(first.column_idx).ok().filter(|index| *index < parquet.num_columns())?;
    let name = parquet.column(index).name().to_owned();
    // Statistics of floats leave NaN out.
    if schema.column_with_name(&name).is_none_or(|(_, field)| crate::columns::lean(field.data_type()).is_floating()) {
        return None;
    }
    let converter = StatisticsConverter::try_new(&name, schema, parquet).ok()?.with_missing_null_counts_as_zero(false);
    let (least, greatest) = (converter.row_group_mins(groups).ok()?, converter.row_group_maxes(groups).ok()?);
    let nulls = converter.row_group_null_counts(groups).ok()?;
    let (begins, ends): (ArrayRef, ArrayRef) = if first.descending { (greatest, least) } else { (least, greatest) };
    let options = SortOptions { descending: first.descending, nulls_first: first.nulls_first };
    let compare = arrow::array::make_comparator(&ends, &begins, options).ok()?;
    let rows: Vec<u64> = groups.iter().map(|group| group.num_rows().unsigned_abs()).collect();
    let all_null = |group: usize| rows[group] == nulls.value(group);
    let mut found = Ordering::Less;
    let mut previous: Option<usize> = None;
    for group in (0..groups.len()).filter(|group| rows[*group] > 0) {
        if nulls.is_null(group) || !all_null(group) && (begins.is_null(group) || ends.is_null(group)) {
            return None;
        }
        let before = previous.replace(group);
        let Some(before) = before else { continue };
        let (null_here, null_before) = (nulls.value(group) > 0, nulls.value(before) > 0);
        // NULLs stand together, at one end of the file.
        let apart = if first.nulls_first { null_here && !all_null(before) } else { null_before && !all_null(group) };
        if apart {
            return None;
        }
        match (all_null(before), all_null(group)) {
            (false, false) => match compare(before, group) {
                Ordering::Greater => return None,
                Ordering::Equal => found = Ordering::Equal,
                Ordering::Less => {}
            },
            // Of NULLs in two row groups the next columns decide.
            _ if null_here && null_before => found = Ordering::Equal,
            _ => {}
        }
    }
    Some(found)
}

/// Takes the rows of files for unsorted, but below the sorted plan.
#[derive(Debug)]
pub(crate) struct Unclaimed;

impl PhysicalOptimizerRule for Unclaimed {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let changed = plan.transform_down(|node| {
            if node.downcast_ref::<SortedMerge>().is_some() {
                return Ok(Transformed::new(node, false, TreeNodeRecursion::Jump));
            }
            if let Some(scan) = node.downcast_ref::<TextScan>() {
                return Ok(Transformed::yes(Arc::new(scan.unsorted()) as Arc<dyn ExecutionPlan>));
            }
            let config = node.downcast_ref::<DataSourceExec>().and_then(|scan| scan.data_source().downcast_ref::<FileScanConfig>());
            Ok(match config {
                Some(config) => Transformed::yes(DataSourceExec::from_data_source(unclaimed(config)) as Arc<dyn ExecutionPlan>),
                None => Transformed::no(node),
            })
        })?;
        Ok(changed.data)
    }

    fn name(&self) -> &str {
        "unclaimed_orders"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn unclaimed(config: &FileScanConfig) -> FileScanConfig {
    let group = |group: &FileGroup| {
        let files = group.iter().cloned().map(|mut file| {
            file.ordering = None;
            file
        });
        let without = FileGroup::new(files.collect());
        match group.file_statistics(None) {
            Some(statistics) => without.with_statistics(Arc::new(statistics.clone())),
            None => without,
        }
    };
    let groups = config.file_groups.iter().map(group).collect();
    FileScanConfigBuilder::from(config.clone()).with_file_groups(groups).with_output_ordering(Vec::new()).build()
}

/// Whether the order of the rows of a plan is that of its leaves, and nothing on the way to them makes use of it.
pub(crate) fn passes_on(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let passes =
        ["ProjectionExec", "FilterExec", "UnionExec", "InterleaveExec", "CoalesceBatchesExec", "CooperativeExec", "SortExec"];
    let children = plan.children();
    children.is_empty() || passes.contains(&plan.name()) && children.into_iter().all(passes_on)
}
