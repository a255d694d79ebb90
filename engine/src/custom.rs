//! Strategies that users define: checked when they are made, folded a round at a time over whole columns, verified on demand.

use crate::columns::{external, from_values, value_at};
use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use crate::sources::ReadOptions;
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, UInt32Array};
use arrow::compute::{CastOptions, cast_with_options, interleave, take};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result as DfResult};
use datafusion::logical_expr::Expr as LogicalExpr;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::BinaryExpr;
use datafusion::prelude::{DataFrame, SessionContext};
use mergeql_lang::Diagnostic;
use mergeql_lang::ast::{Argument, Name, Relation as Written, StrategyBody, StrategyCall};
use mergeql_lang::lower::quote;
use mergeql_lang::plan::{Fold, Relation};
use mergeql_udfs::catalog::{self, ArgKind, Entry};
use mergeql_udfs::laws::{self, Outcome, Random};
use mergeql_udfs::{Call, Code, Error, Value};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

/// Checks a definition; gives back the name it is kept under.
pub async fn check(context: &MergeContext, or_replace: bool, name: &Name, body: StrategyBody) -> Result<(String, StrategyBody)> {
    mergeql_lang::check_strategy(&context.user_strategies(), or_replace, name, &body)?;
    match &body {
        StrategyBody::Alias(_) => {}
        StrategyBody::By { ranks, .. } => {
            for part in ranks {
                let rank = Folding(Fold {
                    name: name.value.clone(),
                    left: "value".to_owned(),
                    right: "unused".to_owned(),
                    step: part.to_string(),
                    compact: false,
                });
                for ty in [DataType::Int64, DataType::Float64, DataType::Utf8] {
                    if let Err(e) = rank.expression(&ty) {
                        let e = MergeError::from(e);
                        if e.code() == Code::Unsupported {
                            return Err(e);
                        }
                    }
                }
            }
        }
        StrategyBody::Fold { compact, .. } => {
            let fold = Folding(Fold::of(&name.value, &body).expect("invariant: it is a fold"));
            if fold.types().is_empty() {
                // Planning against one type gives the reason.
                fold.expression(&DataType::Int64).map_err(MergeError::from)?;
            }
            if *compact {
                for ty in fold.types() {
                    let bad = fold.outcomes(&ty, None, 1000)?.into_iter().find_map(|o| o.counterexample.map(|c| (o.law, c)));
                    if let Some((law, example)) = bad {
                        return Err(MergeError::new(
                            Code::UnverifiedStrategy,
                            format!("`{}` cannot be COMPACT: it is not {law}: {example}", name.value),
                        )
                        .help("leave COMPACT out: a fold over the set of values is lawful for any expression"));
                    }
                }
            }
        }
    }
    Ok((name.value.clone(), body))
}

/// Registers the function that folds the distinct values of a strategy, if it is a fold.
pub fn register_fold(context: &MergeContext, name: &str, body: &StrategyBody) -> Result<()> {
    if let Some(fold) = Fold::of(name, body) {
        if context.shared.cluster.is_some() {
            let folds = context.memory(|m| {
                m.folds.insert(fold.function(), fold.clone());
                m.folds.clone()
            });
            let state = context.session().state_ref();
            crate::cluster::folds::send(folds.values(), state.write().config_mut())?;
        }
        context.session().register_udf(fold_function(fold));
    }
    Ok(())
}

/// Plans the expressions of strategies; it has no tables.
static EXPRESSIONS: LazyLock<SessionContext> = LazyLock::new(SessionContext::new);

/// A fold that DataFusion evaluates.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Folding(Fold);

impl Folding {
    fn schema(&self, ty: &DataType) -> Schema {
        Schema::new(vec![Field::new(&self.0.left, ty.clone(), true), Field::new(&self.0.right, ty.clone(), true)])
    }

    fn expression(&self, ty: &DataType) -> DfResult<Arc<dyn PhysicalExpr>> {
        let schema = DFSchema::try_from(self.schema(ty))?;
        let state = EXPRESSIONS.state();
        let expr = state.create_logical_expr(&self.0.step, &schema)?;
        let changes = |e: &LogicalExpr| match e {
            LogicalExpr::ScalarFunction(f) => f.func.signature().volatility != Volatility::Immutable,
            LogicalExpr::AggregateFunction(_) | LogicalExpr::WindowFunction(_) => true,
            _ => false,
        };
        if expr.exists(|e| Ok(changes(e)))? {
            return Err(external(Error::new(
                Code::Unsupported,
                format!("`{}` is not a function of its values alone", self.0.step),
            )));
        }
        let physical = EXPRESSIONS.create_physical_expr(expr, &schema)?;
        // A sum that does not fit is an error, never another number.
        let checked = physical.transform(|e| {
            let binary = e.downcast_ref::<BinaryExpr>().cloned();
            Ok(match binary {
                Some(binary) => Transformed::yes(Arc::new(binary.with_fail_on_overflow(true)) as Arc<dyn PhysicalExpr>),
                None => Transformed::no(e),
            })
        })?;
        Ok(checked.data)
    }

    /// The types that the step can be planned for.
    fn types(&self) -> Vec<DataType> {
        let lists = [DataType::Int64, DataType::Utf8].map(|ty| DataType::new_list(ty, true));
        [DataType::Int64, DataType::Float64, DataType::Utf8, DataType::Boolean]
            .into_iter()
            .chain(lists)
            .filter(|ty| self.expression(ty).is_ok())
            .collect()
    }

    fn apply(&self, expression: &Arc<dyn PhysicalExpr>, left: ArrayRef, right: ArrayRef) -> DfResult<ArrayRef> {
        let ty = left.data_type().clone();
        let rows = left.len();
        let batch = RecordBatch::try_new(Arc::new(self.schema(&ty)), vec![left, right])?;
        // Not the safe cast: a step of another type is an error, never a silent NULL.
        let strict = CastOptions { safe: false, ..CastOptions::default() };
        Ok(cast_with_options(&expression.evaluate(&batch)?.into_array(rows)?, &ty, &strict)?)
    }

    /// The laws of the step itself, which COMPACT needs.
    fn outcomes(&self, ty: &DataType, values: Option<&[Value]>, cases: usize) -> Result<Vec<Outcome>> {
        let logical = crate::columns::logical(ty)?;
        let domain = values.map_or_else(|| laws::domain(&logical), <[Value]>::to_vec);
        let domain: Vec<Value> = domain.into_iter().filter(|v| !v.is_null()).collect();
        if domain.is_empty() {
            return Ok(Vec::new());
        }
        let mut random = Random(5);
        let mut column = || from_values(&(0..cases).map(|_| domain[random.below(domain.len())].clone()).collect::<Vec<_>>(), ty);
        let (a, b, c) = (column()?, column()?, column()?);
        let expression = self.expression(ty)?;
        let f = |x: &ArrayRef, y: &ArrayRef| self.apply(&expression, x.clone(), y.clone());
        let laws: [(&'static str, ArrayRef, ArrayRef); 3] = [
            ("commutative", f(&a, &b)?, f(&b, &a)?),
            ("associative", f(&f(&a, &b)?, &c)?, f(&a, &f(&b, &c)?)?),
            ("idempotent", f(&a, &a)?, a.clone()),
        ];
        let outcome = |(law, left, right): (&'static str, ArrayRef, ArrayRef)| {
            let mut outcome = Outcome { law, cases, passed: 0, counterexample: None };
            for i in 0..cases {
                let (x, y) = (value_at(&left, i), value_at(&right, i));
                if x == y {
                    outcome.passed += 1;
                } else if outcome.counterexample.is_none() {
                    let inputs = [&a, &b, &c].map(|v| value_at(v, i).to_string());
                    outcome.counterexample = Some(match law {
                        "idempotent" => format!("f({0}, {0}) = {x}", inputs[0]),
                        "commutative" => format!("f({0}, {1}) = {x}, f({1}, {0}) = {y}", inputs[0], inputs[1]),
                        _ => format!("f(f({0}, {1}), {2}) = {x}, f({0}, f({1}, {2})) = {y}", inputs[0], inputs[1], inputs[2]),
                    });
                }
            }
            outcome
        };
        Ok(laws.into_iter().map(outcome).collect())
    }
}

/// The function that folds the values of a strategy.
pub(crate) fn fold_function(fold: Fold) -> ScalarUDF {
    let name = fold.function();
    ScalarUDF::from(FoldUdf { name, fold: Folding(fold), signature: Signature::any(1, Volatility::Immutable) })
}

struct FoldUdf {
    name: String,
    fold: Folding,
    signature: Signature,
}

impl std::fmt::Debug for FoldUdf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.fold.fmt(f)
    }
}

impl PartialEq for FoldUdf {
    fn eq(&self, other: &Self) -> bool {
        self.fold == other.fold
    }
}

impl Eq for FoldUdf {}

impl Hash for FoldUdf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fold.hash(state);
    }
}

impl ScalarUDFImpl for FoldUdf {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> DfResult<DataType> {
        match &types[0] {
            DataType::List(field) => {
                self.fold.expression(field.data_type())?;
                Ok(field.data_type().clone())
            }
            other => Err(external(Error::type_mismatch(format!("`{}` folds a list, not {other}", self.fold.0.name)))),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let array = args.args[0].to_array(args.number_rows)?;
        let lists = array.as_list::<i32>();
        let values = lists.values();
        let expression = self.fold.expression(values.data_type())?;
        let offsets = lists.value_offsets();
        let length = |i: usize| if lists.is_null(i) { 0 } else { (offsets[i + 1] - offsets[i]) as usize };
        let first: UInt32Array = (0..lists.len()).map(|i| (length(i) > 0).then(|| offsets[i] as u32)).collect();
        let mut folded = take(values, &first, None)?;
        // Round k folds the k-th value of every list that has one: a round is one evaluation over a column.
        for k in 1..(0..lists.len()).map(length).max().unwrap_or(0) {
            let rows: Vec<usize> = (0..lists.len()).filter(|i| length(*i) > k).collect();
            let left = take(&folded, &rows.iter().map(|i| *i as u32).collect::<UInt32Array>(), None)?;
            let right = take(values, &rows.iter().map(|i| offsets[*i] as u32 + k as u32).collect::<UInt32Array>(), None)?;
            let stepped = self.fold.apply(&expression, left, right)?;
            let mut places: Vec<(usize, usize)> = (0..lists.len()).map(|i| (0, i)).collect();
            rows.iter().enumerate().for_each(|(at, row)| places[*row] = (1, at));
            folded = interleave(&[&folded, &stepped], &places)?;
        }
        Ok(ColumnarValue::Array(folded))
    }
}

/// The most cases of VERIFY: they are held at once.
const MOST_CASES: usize = 1_000_000;

/// `VERIFY STRATEGY name [ON table.column] [CASES n]`
pub async fn verify(context: &MergeContext, name: &Name, on: Option<(Vec<Name>, Name)>, cases: usize) -> Result<DataFrame> {
    if cases > MOST_CASES {
        return Err(MergeError::new(Code::InvalidArgument, format!("CASES is at most {MOST_CASES}, not {cases}")));
    }
    let values = match &on {
        None => None,
        Some((table, column)) => Some(column_values(context, table, column).await?),
    };
    let user = context.user_strategies();
    let own = match name.value.strip_prefix("custom:").unwrap_or(&name.value) {
        wanted if user.contains_key(wanted) || catalog::find(wanted).is_some() || name.quoted => wanted,
        wanted => user.keys().find(|known| known.eq_ignore_ascii_case(wanted)).map_or(wanted, String::as_str),
    };
    let outcomes = match user.get(own) {
        Some(body @ StrategyBody::Fold { .. }) => {
            let fold = Folding(Fold::of(own, body).expect("invariant: it is a fold"));
            let types = match &values {
                Some((ty, _)) => vec![ty.clone()],
                None => fold.types(),
            };
            let given = values.as_ref().map(|(_, v)| v.as_slice());
            let each = types.iter().map(|ty| fold.outcomes(ty, given, cases)).collect::<Result<Vec<_>>>()?;
            sum(each)
        }
        Some(StrategyBody::By { greatest, .. }) => builtin(if *greatest { "lww" } else { "fww" }, None, &values, cases)?,
        Some(StrategyBody::Alias(call)) => builtin(&call.name.value, Some(call), &values, cases)?,
        None if catalog::find(own).is_some() => builtin(own, None, &values, cases)?,
        None => {
            let mut names: Vec<&str> = catalog::names().collect();
            names.extend(user.keys().map(String::as_str));
            let error = Diagnostic::at(Code::UnknownStrategy, name.span, format!("no strategy is called `{own}`"));
            return Err(error.suggest(own, names).into());
        }
    };
    let schema = Schema::new(vec![
        Field::new("law", DataType::Utf8, false),
        Field::new("cases", DataType::Int64, false),
        Field::new("passed", DataType::Int64, false),
        Field::new("counterexample", DataType::Utf8, true),
    ]);
    let batch = RecordBatch::try_new(
        Arc::new(schema),
        vec![
            Arc::new(outcomes.iter().map(|o| Some(o.law)).collect::<StringArray>()),
            Arc::new(outcomes.iter().map(|o| Some(o.cases as i64)).collect::<Int64Array>()),
            Arc::new(outcomes.iter().map(|o| Some(o.passed as i64)).collect::<Int64Array>()),
            Arc::new(outcomes.iter().map(|o| o.counterexample.as_deref()).collect::<StringArray>()),
        ],
    )?;
    Ok(context.session().read_batch(batch)?)
}

/// Some of the values of a column, and its type.
async fn column_values(context: &MergeContext, table: &[Name], column: &Name) -> Result<(DataType, Vec<Value>)> {
    let Relation { sql: table, columns, .. } =
        Box::pin(context.resolve(&Written::Table(table.to_vec()), &ReadOptions::default())).await?.relation;
    let exact = columns.iter().find(|c| c.name == column.value);
    let Some(found) = exact.or_else(|| columns.iter().find(|c| column.means(&c.name))) else {
        let error = Diagnostic::at(Code::UnknownColumn, column.span, format!("there is no column `{}`", column.value));
        return Err(error.suggest(&column.value, columns.iter().map(|c| c.name.as_str())).into());
    };
    let column = quote(&found.name);
    let frame = context.session().sql(&format!("SELECT DISTINCT {column} FROM {table} ORDER BY {column} LIMIT 100")).await?;
    let ty = frame.schema().field(0).data_type().clone();
    let batches = frame.collect().await?;
    let values = batches.iter().flat_map(|b| (0..b.num_rows()).map(|i| value_at(b.column(0), i)).collect::<Vec<_>>()).collect();
    Ok((ty, values))
}

fn builtin(
    name: &str,
    alias: Option<&StrategyCall>,
    values: &Option<(DataType, Vec<Value>)>,
    cases: usize,
) -> Result<Vec<Outcome>> {
    let entry: &Entry = catalog::find(name).ok_or_else(|| {
        MergeError::new(Code::Unsupported, format!("`{name}` stands for another user-defined strategy: verify that one"))
    })?;
    let mut calls: Vec<Call> = (entry.spec().samples)();
    if let Some(alias) = alias {
        let literals: Vec<Value> =
            alias.args.iter().filter_map(|(_, a)| if let Argument::Literal(v, _) = a { Some(v.clone()) } else { None }).collect();
        for call in &mut calls {
            if let Some(arg) =
                entry.spec().args.iter().find(|a| matches!(a.kind, ArgKind::Text | ArgKind::Number | ArgKind::Literals))
                && let Some(first) = literals.first()
            {
                let value = if arg.kind == ArgKind::Literals { Value::List(literals.clone()) } else { first.clone() };
                call.args.retain(|(n, _)| n != arg.name);
                call.args.push((arg.name.to_owned(), value));
            }
        }
    }
    if let Some((ty, _)) = values {
        let logical = crate::columns::logical(ty)?;
        calls.truncate(1);
        if let Some(first) = calls.first_mut().and_then(|c| c.inputs.first_mut()) {
            *first = logical;
        }
    }
    let each = calls
        .iter()
        .map(|call| {
            let given = values.as_ref().map(|(_, v)| v.as_slice());
            Ok(laws::check_with(entry, call, given, cases.div_ceil(calls.len()), 1)?)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(sum(each))
}

/// Outcomes of several runs by law.
fn sum(runs: Vec<Vec<Outcome>>) -> Vec<Outcome> {
    let mut total: Vec<Outcome> = Vec::new();
    for outcome in runs.into_iter().flatten() {
        match total.iter_mut().find(|o| o.law == outcome.law) {
            Some(seen) => {
                seen.cases += outcome.cases;
                seen.passed += outcome.passed;
                seen.counterexample = seen.counterexample.take().or(outcome.counterexample);
            }
            None => total.push(outcome),
        }
    }
    total
}
