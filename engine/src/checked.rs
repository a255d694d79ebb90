//! Sums, differences and products of integers that do not fit their type are an error, as in the other hosts, never another number.

use crate::columns::external;
use arrow::compute::kernels::numeric;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::physical_expr_common::datum::apply;
use mergeql_udfs::{Code, Error};
use std::sync::{Arc, LazyLock};

/// An operation on two integers of one type.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    name: &'static str,
    sign: &'static str,
    signature: Signature,
}

fn checked(name: &'static str, sign: &'static str) -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::new_from_impl(Checked { name, sign, signature: Signature::any(2, Volatility::Immutable) }))
}

static PLUS: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| checked("mergeql_plus", "+"));
static MINUS: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| checked("mergeql_minus", "-"));
static TIMES: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| checked("mergeql_times", "*"));

/// The functions that stand for the operators.
pub(crate) fn functions() -> Vec<ScalarUDF> {
    [&PLUS, &MINUS, &TIMES].into_iter().map(|f| f.as_ref().clone()).collect()
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(arguments[0].clone())
    }

    /// NULL only where an operand may be, as with the operator.
    fn return_field_from_args(&self, arguments: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let nullable = arguments.arg_fields.iter().any(|f| f.is_nullable());
        Ok(Arc::new(Field::new(self.name, arguments.arg_fields[0].data_type().clone(), nullable)))
    }

    fn display_name(&self, arguments: &[Expr]) -> Result<String> {
        Ok(arguments.iter().map(ToString::to_string).collect::<Vec<_>>().join(&format!(" {} ", self.sign)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let kernel = match self.sign {
            "+" => numeric::add,
            "-" => numeric::sub,
            _ => numeric::mul,
        };
        apply(&arguments.args[0], &arguments.args[1], kernel).map_err(|e| {
            let message = e.strip_backtrace();
            let message = message.rsplit(": ").next().unwrap_or(&message);
            external(
                Error::new(Code::InvalidArgument, format!("the result of `{}` does not fit its type: {message}", self.sign))
                    .with_help("cast to a wider type first: CAST(... AS DECIMAL(38, 0))"),
            )
        })
    }
}

/// Puts the functions in the place of operators on integers; it comes after the types are known.
#[derive(Debug)]
pub(crate) struct CheckedArithmetic;

impl AnalyzerRule for CheckedArithmetic {
    fn name(&self) -> &str {
        "checked_arithmetic"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| {
            let inputs = plan.inputs();
            let mut schema = datafusion::common::DFSchema::empty();
            for input in &inputs {
                schema.merge(input.schema());
            }
            if inputs.is_empty() {
                schema.merge(plan.schema());
            }
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                expr.transform_up(|e| rewritten(e, &schema))
                    .map(|found| if found.transformed { found.update_data(|e| name.restore(e)) } else { found })
            })
        })
        .map(|found| found.data)
    }
}

fn rewritten(expr: Expr, schema: &datafusion::common::DFSchema) -> Result<Transformed<Expr>> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = &expr else { return Ok(Transformed::no(expr)) };
    let function = match op {
        Operator::Plus => &*PLUS,
        Operator::Minus => &*MINUS,
        Operator::Multiply => &*TIMES,
        _ => return Ok(Transformed::no(expr)),
    };
    // A type that is not known here is one of an outer query.
    let (Ok(a), Ok(b)) = (left.get_type(schema), right.get_type(schema)) else { return Ok(Transformed::no(expr)) };
    if a != b || !a.is_integer() {
        return Ok(Transformed::no(expr));
    }
    let arguments = vec![(**left).clone(), (**right).clone()];
    Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(function.clone(), arguments))))
}
