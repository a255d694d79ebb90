//! What Parquet's statistics say of floats holds for all values but NaN, which they leave out. So nothing is concluded from them: neither the
//! value of a column whose least and greatest are equal, nor that rows are outside of a range.

use datafusion::arrow::datatypes::Schema;
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::{ColumnStatistics, Precision, Statistics};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder, FileSource, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use std::sync::Arc;

/// The rules of a session: this module's about those of DataFusion, some of which look at statistics, and some of which give a scan what
/// rows it may leave out.
pub(crate) fn around(
    rules: Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>>,
) -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let (first, last): (Arc<dyn PhysicalOptimizerRule + Send + Sync>, _) = (Arc::new(Unbounded), Arc::new(Unpruned) as _);
    std::iter::once(first).chain(rules).chain(std::iter::once(last)).collect()
}

/// Forgets the bounds of float columns.
#[derive(Debug)]
struct Unbounded;

impl PhysicalOptimizerRule for Unbounded {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        scans(plan, |config, source| {
            let schema = source.table_schema().table_schema().clone();
            if !schema.fields().iter().any(|f| crate::columns::lean(f.data_type()).is_floating()) {
                return None;
            }
            let group = |group: &FileGroup| {
                let files = group.iter().cloned().map(|mut file| {
                    file.statistics = file.statistics.map(|s| Arc::new(unbounded(&s, &schema)));
                    file
                });
                let without = FileGroup::new(files.collect());
                match group.file_statistics(None) {
                    Some(statistics) => without.with_statistics(Arc::new(unbounded(statistics, &schema))),
                    None => without,
                }
            };
            let groups = config.file_groups.iter().map(group).collect();
            let statistics = unbounded(&config.statistics(), &schema);
            Some(FileScanConfigBuilder::from(config.clone()).with_file_groups(groups).with_statistics(statistics).build())
        })
    }

    fn name(&self) -> &str {
        "floats_without_bounds"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn unbounded(statistics: &Statistics, schema: &Schema) -> Statistics {
    let column = |(i, column): (usize, &ColumnStatistics)| {
        let mut column = column.clone();
        if schema.fields().get(i).is_some_and(|f| crate::columns::lean(f.data_type()).is_floating()) {
            (column.min_value, column.max_value, column.sum_value) = (Precision::Absent, Precision::Absent, Precision::Absent);
        }
        column
    };
    Statistics { column_statistics: statistics.column_statistics.iter().enumerate().map(column).collect(), ..statistics.clone() }
}

/// Reads all of a file where what is asked for is a matter of floats.
#[derive(Debug)]
struct Unpruned;

impl PhysicalOptimizerRule for Unpruned {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        scans(plan, |config, source| {
            if !source.filter().is_some_and(|filter| asks_floats(&filter, source.table_schema().table_schema())) {
                return None;
            }
            let mut options = source.table_parquet_options().clone();
            options.global.pruning = false;
            options.global.enable_page_index = false;
            options.global.bloom_filter_on_read = false;
            let source = source.clone().with_table_parquet_options(options);
            Some(FileScanConfigBuilder::from(config.clone()).with_source(Arc::new(source)).build())
        })
    }

    fn name(&self) -> &str {
        "floats_without_pruning"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn asks_floats(filter: &Arc<dyn PhysicalExpr>, schema: &Schema) -> bool {
    let mut found = false;
    let looked = filter.apply(|e| {
        found |= e.downcast_ref::<Column>().is_some_and(|c| {
            schema.column_with_name(c.name()).is_none_or(|(_, f)| crate::columns::lean(f.data_type()).is_floating())
        });
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    looked.is_err() || found
}

/// Changes the scans of Parquet files in a plan.
fn scans(
    plan: Arc<dyn ExecutionPlan>,
    change: impl Fn(&FileScanConfig, &ParquetSource) -> Option<FileScanConfig>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let changed = plan.transform_down(|node| {
        let scan = node.downcast_ref::<DataSourceExec>().and_then(|scan| scan.downcast_to_file_source::<ParquetSource>());
        Ok(match scan.and_then(|(config, source)| change(config, source)) {
            Some(config) => Transformed::yes(DataSourceExec::from_data_source(config) as Arc<dyn ExecutionPlan>),
            None => Transformed::no(node),
        })
    })?;
    Ok(changed.data)
}
