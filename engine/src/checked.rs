//! Sums, differences and products of integers that do not fit their type are an error, as in the other hosts, never another number.

use crate::columns::external;
use arrow::compute::kernels::numeric;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue, exec_datafusion_err, exec_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility, lit,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::physical_expr_common::datum::apply;
use mergeql_udfs::{Code, Error};
use std::sync::{Arc, LazyLock};

/// Sums and products of integers of one type, from left to right.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    name: &'static str,
    signature: Signature,
}

fn checked(name: &'static str) -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::new_from_impl(Checked { name, signature: Signature::variadic_any(Volatility::Immutable) }))
}

/// Its first argument has the signs between the others, as `+-`.
static SUM: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| checked("mergeql_sum"));
static PRODUCT: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| checked("mergeql_product"));

/// The functions that stand for the operators.
pub(crate) fn functions() -> Vec<ScalarUDF> {
    [&SUM, &PRODUCT].into_iter().map(|f| f.as_ref().clone()).collect()
}

/// The signs between operands, and the operands.
fn parts<'a, T>(arguments: &'a [T], text: impl Fn(&'a T) -> Option<&'a str>) -> Result<(Vec<char>, &'a [T])> {
    let (signs, operands) = match arguments.first().and_then(text) {
        Some(signs) => (signs.chars().collect(), &arguments[1..]),
        None => (vec!['*'; arguments.len().saturating_sub(1)], arguments),
    };
    match operands.len() == signs.len() + 1 {
        true => Ok((signs, operands)),
        false => exec_err!("{} operands with {} operators between them", operands.len(), signs.len()),
    }
}

fn named(arguments: &[Expr], spelt: impl Fn(&Expr) -> String) -> Result<String> {
    let (signs, operands) = parts(arguments, |argument| match argument {
        Expr::Literal(ScalarValue::Utf8(Some(signs)), _) => Some(signs.as_str()),
        _ => None,
    })?;
    let mut name = spelt(&operands[0]);
    signs.iter().zip(&operands[1..]).for_each(|(sign, operand)| name += &format!(" {sign} {}", spelt(operand)));
    Ok(name)
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        arguments.last().cloned().ok_or_else(|| exec_datafusion_err!("`{}` needs operands", self.name))
    }

    /// NULL only where an operand may be, as with the operator.
    fn return_field_from_args(&self, arguments: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let nullable = arguments.arg_fields.iter().any(|f| f.is_nullable());
        let types: Vec<DataType> = arguments.arg_fields.iter().map(|f| f.data_type().clone()).collect();
        Ok(Arc::new(Field::new(self.name, self.return_type(&types)?, nullable)))
    }

    fn display_name(&self, arguments: &[Expr]) -> Result<String> {
        named(arguments, ToString::to_string)
    }

    fn schema_name(&self, arguments: &[Expr]) -> Result<String> {
        named(arguments, |argument| argument.schema_name().to_string())
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (signs, operands) = parts(&arguments.args, |argument| match argument {
            ColumnarValue::Scalar(ScalarValue::Utf8(Some(signs))) => Some(signs.as_str()),
            _ => None,
        })?;
        signs.iter().zip(&operands[1..]).try_fold(operands[0].clone(), |done, (sign, next)| {
            let kernel = match sign {
                '+' => numeric::add,
                '-' => numeric::sub,
                _ => numeric::mul,
            };
            apply(&done, next, kernel).map_err(|e| {
                let message = e.strip_backtrace();
                let message = message.rsplit(": ").next().unwrap_or(&message);
                external(
                    Error::new(Code::InvalidArgument, format!("the result of `{sign}` does not fit its type: {message}"))
                        .with_help("cast to a wider type first: CAST(... AS DECIMAL(38, 0))"),
                )
            })
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
            let mut schema = DFSchema::empty();
            for input in &inputs {
                schema.merge(input.schema());
            }
            if inputs.is_empty() {
                schema.merge(plan.schema());
            }
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                rewritten(expr, &schema).map(|found| if found.transformed { found.update_data(|e| name.restore(e)) } else { found })
            })
        })
        .map(|found| found.data)
    }
}

/// An expression in the making. What is added and subtracted in a row is one call, not calls within calls, each with a name that holds the one inside.
enum Made {
    Expr(Expr),
    Sum(String, Vec<Expr>),
    Product(Vec<Expr>),
}

impl Made {
    fn get_type(&self, schema: &DFSchema) -> Option<DataType> {
        match self {
            Made::Expr(expr) => expr.get_type(schema).ok(),
            Made::Sum(_, operands) | Made::Product(operands) => operands.first()?.get_type(schema).ok(),
        }
    }

    fn expr(self) -> Expr {
        let (function, arguments) = match self {
            Made::Expr(expr) => return expr,
            Made::Sum(signs, operands) => (&SUM, std::iter::once(lit(signs)).chain(operands).collect()),
            Made::Product(operands) => (&PRODUCT, operands),
        };
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(function), arguments))
    }

    /// With one more operand, all of them being integers of one type.
    fn and(self, sign: char, operand: Expr) -> Made {
        match (sign, self) {
            ('*', Made::Product(mut operands)) => {
                operands.push(operand);
                Made::Product(operands)
            }
            ('*', made) => Made::Product(vec![made.expr(), operand]),
            (sign, Made::Sum(mut signs, mut operands)) => {
                signs.push(sign);
                operands.push(operand);
                Made::Sum(signs, operands)
            }
            (sign, made) => Made::Sum(sign.to_string(), vec![made.expr(), operand]),
        }
    }
}

fn sign(op: Operator) -> Option<char> {
    match op {
        Operator::Plus => Some('+'),
        Operator::Minus => Some('-'),
        Operator::Multiply => Some('*'),
        _ => None,
    }
}

fn rewritten(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    // Operators of one rank stand in a row that leans to the left, and may be thousands: they are gone along, not down.
    let (mut first, mut row, mut transformed) = (expr, Vec::new(), false);
    while let Expr::BinaryExpr(BinaryExpr { left, op, right }) = first {
        first = *left;
        let right = rewritten(*right, schema)?;
        transformed |= right.transformed;
        row.push((op, right.data));
    }
    let first = first.map_children(|e| rewritten(e, schema))?;
    transformed |= first.transformed;
    let mut made = Made::Expr(first.data);
    // What is to the left is of this type, if that was found out already.
    let mut known: Option<DataType> = None;
    for (op, right) in row.into_iter().rev() {
        // A type that is not known here is one of an outer query.
        let same = sign(op).and_then(|_| {
            let left = known.take().or_else(|| made.get_type(schema))?;
            right.get_type(schema).ok().filter(|right| left == *right)
        });
        made = match sign(op).filter(|_| same.as_ref().is_some_and(DataType::is_integer)) {
            Some(sign) => {
                transformed = true;
                made.and(sign, right)
            }
            None => Made::Expr(Expr::BinaryExpr(BinaryExpr::new(Box::new(made.expr()), op, Box::new(right)))),
        };
        // What two numbers of one type give is of that type, but for decimals.
        known = same.filter(|ty| ty.is_integer() || ty.is_floating());
    }
    Ok(if transformed { Transformed::yes(made.expr()) } else { Transformed::no(made.expr()) })
}
