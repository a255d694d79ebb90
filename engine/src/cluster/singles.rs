//! Queries in the place of a value on clusters. They become joins there, which DataFusion would give once for each row of the query: an aggregate
//! says that there is one row at most.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field, FieldRef, UInt64Type};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result, ScalarValue, exec_err};
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::logical_plan::Subquery;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Expr, LogicalPlan, LogicalPlanBuilder, Signature, Volatility,
};
use datafusion::optimizer::AnalyzerRule;
use std::sync::{Arc, LazyLock};

/// The one value of one row at most, NULL without any; more rows are an error.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Single {
    signature: Signature,
}

static SINGLE: LazyLock<Arc<AggregateUDF>> =
    LazyLock::new(|| Arc::new(AggregateUDF::from(Single { signature: Signature::any(1, Volatility::Immutable) })));

/// The aggregate, which workers know by its name.
pub(crate) fn all() -> Vec<AggregateUDF> {
    vec![SINGLE.as_ref().clone()]
}

impl AggregateUDFImpl for Single {
    fn name(&self) -> &str {
        "mergeql_single"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types[0].clone())
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let value = Field::new(format!("{}[value]", args.name), args.return_type().clone(), true);
        Ok(vec![Arc::new(value), Arc::new(Field::new(format!("{}[rows]", args.name), DataType::UInt64, false))])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Row { value: ScalarValue::try_from(args.return_field.data_type())?, rows: 0 }))
    }
}

#[derive(Debug)]
struct Row {
    value: ScalarValue,
    rows: u64,
}

impl Row {
    fn add(&mut self, values: &ArrayRef, at: usize, rows: u64) -> Result<()> {
        self.rows += rows;
        match self.rows {
            0 => {}
            1 if rows == 1 => self.value = ScalarValue::try_from_array(values, at)?,
            1 => {}
            // As DataFusion says it in one process.
            _ => return exec_err!("Scalar subquery returned more than one row"),
        }
        Ok(())
    }
}

impl Accumulator for Row {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.add(&values[0], 0, values[0].len() as u64)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let rows = states[1].as_primitive::<UInt64Type>();
        (0..rows.len()).try_for_each(|at| self.add(&states[0], at, rows.value(at)))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.value.clone(), ScalarValue::UInt64(Some(self.rows))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(self.value.clone())
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.value.size()
    }
}

/// Puts the aggregate around queries that may give several rows.
#[derive(Debug)]
pub(crate) struct SingleValues;

impl AnalyzerRule for SingleValues {
    fn name(&self) -> &str {
        "single_values"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let found = plan.transform_up_with_subqueries(|plan| {
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                let found = expr.transform_up(|expr| match expr {
                    // Those that ask for columns of the query outside are refused unless they have one row.
                    Expr::ScalarSubquery(query)
                        if query.outer_ref_columns.is_empty() && query.subquery.max_rows().is_none_or(|rows| rows > 1) =>
                    {
                        let subquery = Arc::new(single(&query.subquery)?);
                        Ok(Transformed::yes(Expr::ScalarSubquery(Subquery { subquery, ..query })))
                    }
                    expr => Ok(Transformed::no(expr)),
                })?;
                Ok(if found.transformed { found.update_data(|expr| name.restore(expr)) } else { found })
            })
        })?;
        Ok(found.data)
    }
}

fn single(query: &LogicalPlan) -> Result<LogicalPlan> {
    let (table, field) = query.schema().qualified_field(0);
    let column = Expr::Column(Column::new(table.cloned(), field.name()));
    let one = Expr::AggregateFunction(AggregateFunction::new_udf(Arc::clone(&SINGLE), vec![column], false, None, Vec::new(), None));
    LogicalPlanBuilder::from(query.clone()).aggregate(Vec::<Expr>::new(), vec![one.alias(field.name())])?.build()
}
