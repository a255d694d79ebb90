//! Scalar functions: over states (for users), and what the lowering needs (`mergeql_*`).

use crate::columns::{build, external, from_values, lend, logical, normalize};
use arrow::array::{Array, ArrayRef, AsArray, Float32Array, Float64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields, Float32Type, Float64Type, TimeUnit};
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility};
use mergeql_udfs::catalog::{self, Comparison};
use mergeql_udfs::value::order_key::order_key;
use mergeql_udfs::{Code, Error, OwnedColumn, Type, Value, codec};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

type RowResult = Result<Value, Error>;

/// A function of one row; the arguments of a column are values.
struct RowFunction {
    name: &'static str,
    arguments: std::ops::RangeInclusive<usize>,
    returns: DataType,
    run: fn(&[Value]) -> RowResult,
}

/// Every scalar function of the engine.
pub fn all() -> Vec<ScalarUDF> {
    let mut functions: Vec<ScalarUDF> = row_functions().into_iter().map(|f| ScalarUDF::from(RowUdf::new(f))).collect();
    functions.push(ScalarUDF::from(Floats { exact: true, signature: Signature::any(1, Volatility::Immutable) }));
    functions.push(ScalarUDF::from(Floats { exact: false, signature: Signature::any(1, Volatility::Immutable) }));
    functions.push(ScalarUDF::from(ValueLike { signature: Signature::any(2, Volatility::Immutable) }));
    functions
}

/// `mergeql_value_like(state, like)`: the value of a state in the type of the second argument.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ValueLike {
    signature: Signature,
}

impl ScalarUDFImpl for ValueLike {
    fn name(&self) -> &str {
        "mergeql_value_like"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types[1].clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let states = normalize(&args.args[0].to_array(args.number_rows)?)?;
        let lent = lend(&states);
        let column = lent.column(&states);
        let value = |i: usize| with_value(&[column.value(i)], Ok);
        let values = (0..states.len()).map(value).collect::<Result<Vec<_>, Error>>().map_err(external)?;
        Ok(ColumnarValue::Array(typed(values, args.return_field.data_type())?))
    }
}

/// The type of a cell's contributions that lost.
fn loser_type() -> DataType {
    let field = |name: &str| Field::new(name, DataType::Utf8, true);
    DataType::Struct(Fields::from(vec![field("source"), field("value"), field("version")]))
}

fn list_of(ty: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", ty, true)))
}

fn cells_type() -> DataType {
    let field = |name: &str, ty: DataType| Field::new(name, ty, true);
    list_of(DataType::Struct(Fields::from(vec![
        field("column_name", DataType::Utf8),
        field("value", DataType::Utf8),
        field("strategy", DataType::Utf8),
        field("winner_sources", list_of(DataType::Utf8)),
        field("losers", list_of(loser_type())),
    ])))
}

fn row_functions() -> Vec<RowFunction> {
    let text = DataType::Utf8;
    let f = |name, arguments, returns: &DataType, run| RowFunction { name, arguments, returns: returns.clone(), run };
    vec![
        f("crdt_join", 2..=2, &DataType::Binary, |a| {
            Ok(match (state(&a[0])?, state(&a[1])?) {
                (Some(a), Some(b)) => bytes(catalog::join(a, b)?),
                (Some(one), None) | (None, Some(one)) => bytes(catalog::open(one)?.encode()),
                (None, None) => Value::Null,
            })
        }),
        f("crdt_value", 1..=1, &text, |a| with_value(a, |v| Ok(if v.is_null() { Value::Null } else { Value::text(v.to_json()) }))),
        f("crdt_value_bigint", 1..=1, &DataType::Int64, |a| {
            with_value(a, |v| match v.to_worth() {
                v @ (Value::Int(_) | Value::Null) => v.fit(&Type::INT64),
                Value::Bool(b) => Ok(Value::Int(b.into())),
                other => Err(not_a(&other, "an integer")),
            })
        }),
        f("crdt_value_double", 1..=1, &DataType::Float64, |a| {
            with_value(a, |v| match &v {
                Value::Null | Value::Float(_) => Ok(v),
                Value::Int(i) => Ok(Value::float(*i as f64)),
                Value::Decimal { .. } => {
                    let mut sum = mergeql_udfs::value::Exact::default();
                    sum.add(&v);
                    Ok(Value::float(sum.quotient(1)))
                }
                other => Err(not_a(other, "a number")),
            })
        }),
        f("crdt_value_text", 1..=1, &text, |a| with_value(a, |v| Ok(if v.is_null() { v } else { Value::text(v.to_string()) }))),
        f("crdt_value_boolean", 1..=1, &DataType::Boolean, |a| {
            with_value(a, |v| match v {
                Value::Null | Value::Bool(_) => Ok(v),
                other => Err(not_a(&other, "a boolean")),
            })
        }),
        f("crdt_value_timestamp", 1..=1, &DataType::Timestamp(TimeUnit::Microsecond, None), |a| {
            with_value(a, |v| match v {
                Value::Null => Ok(v),
                Value::Timestamp { nanos, .. } => Ok(Value::Timestamp { nanos, zoned: false }),
                Value::Date(days) => Ok(Value::Timestamp { nanos: i128::from(days) * 86_400_000_000_000, zoned: false }),
                other => Err(not_a(&other, "a timestamp")),
            })
        }),
        f("crdt_value_list", 1..=1, &list_of(DataType::Utf8), |a| {
            with_value(a, |v| match v {
                Value::Null => Ok(v),
                Value::List(items) => Ok(Value::List(items.iter().map(text_of).collect())),
                other => Err(not_a(&other, "a list")),
            })
        }),
        f("crdt_type", 1..=1, &text, |a| {
            Ok(match state(&a[0])? {
                None => Value::Null,
                Some(bytes) => Value::text(catalog::open(bytes)?.spec().name),
            })
        }),
        f("crdt_info", 1..=1, &text, |a| {
            let Some(bytes) = state(&a[0])? else { return Ok(Value::Null) };
            let opened = catalog::open(bytes)?;
            let info = vec![
                ("type".into(), Value::text(opened.spec().name)),
                ("value".into(), opened.value()?),
                ("state".into(), opened.info()),
                ("bytes".into(), Value::Int(bytes.len() as i128)),
            ];
            Ok(Value::text(Value::record(info).to_json()))
        }),
        f("crdt_leq", 2..=2, &DataType::Boolean, |a| {
            let Some(order) = compare(a)? else { return Ok(Value::Null) };
            Ok(Value::Bool(matches!(order, Comparison::Before | Comparison::Equal)))
        }),
        f("crdt_compare", 2..=2, &text, |a| Ok(compare(a)?.map_or(Value::Null, |order| Value::text(order.as_str())))),
        f("crdt_delta", 2..=2, &DataType::Binary, |a| {
            Ok(match (state(&a[0])?, state(&a[1])?) {
                (Some(state), Some(since)) => bytes(catalog::open(state)?.delta(since)?),
                (Some(state), None) => bytes(catalog::open(state)?.encode()),
                (None, _) => Value::Null,
            })
        }),
        f("crdt_compress", 1..=1, &DataType::Binary, |a| {
            Ok(match state(&a[0])? {
                None => Value::Null,
                Some(state) => bytes(catalog::compress(state)?),
            })
        }),
        f("mergeql_version", 0..=0, &text, |_| Ok(Value::text(env!("CARGO_PKG_VERSION")))),
        f("mergeql_order_key", 1..=1, &DataType::Binary, |a| {
            Ok(if a[0].is_null() { Value::Null } else { bytes(order_key(&a[0])) })
        }),
        f("mergeql_text", 1..=usize::MAX, &text, |a| {
            let parts: Vec<String> = a.iter().map(Value::to_string).collect();
            Ok(if a.iter().all(Value::is_null) { Value::Null } else { Value::text(parts.join(", ")) })
        }),
        f("mergeql_cells", 1..=usize::MAX, &cells_type(), cells),
        f("mergeql_pack", 2..=usize::MAX, &DataType::Binary, |a| {
            let mut columns = Vec::new();
            for pair in a.chunks(2) {
                if let [Value::Text(name), Value::Bytes(state)] = pair {
                    columns.push((&**name, &**state));
                }
            }
            Ok(bytes(codec::pack(columns)))
        }),
        f("mergeql_unpack", 2..=2, &DataType::Binary, |a| {
            let (Value::Bytes(packed), Value::Text(column)) = (&a[0], &a[1]) else {
                return Err(Error::new(Code::NeedsState, "a row of this table has no state")
                    .with_help("rows written by hand are taken in with mergeql_adopt('table')"));
            };
            let found = codec::unpack(packed)?.into_iter().find(|(name, _)| *name == **column);
            Ok(found.map_or(Value::Null, |(_, state)| bytes(state)))
        }),
    ]
}

fn bytes(b: Vec<u8>) -> Value {
    Value::Bytes(b.into())
}

fn state(value: &Value) -> Result<Option<&[u8]>, Error> {
    match value {
        Value::Null => Ok(None),
        Value::Bytes(b) => Ok(Some(b)),
        other => Err(Error::new(Code::NotAState, format!("a {} is not a CRDT state", other.kind()))),
    }
}

fn with_value(args: &[Value], run: impl FnOnce(Value) -> RowResult) -> RowResult {
    match state(&args[0])? {
        None => Ok(Value::Null),
        Some(bytes) => run(catalog::open(bytes)?.value()?),
    }
}

fn compare(args: &[Value]) -> Result<Option<Comparison>, Error> {
    match (state(&args[0])?, state(&args[1])?) {
        (Some(a), Some(b)) => catalog::compare(a, b).map(Some),
        _ => Ok(None),
    }
}

fn not_a(value: &Value, wanted: &str) -> Error {
    Error::type_mismatch(format!("the value of the state is the {} {value}, not {wanted}", value.kind()))
        .with_help("crdt_value gives any value as JSON")
}

fn text_of(value: &Value) -> Value {
    if value.is_null() { Value::Null } else { Value::text(value.to_string()) }
}

fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    match value {
        Value::Struct(fields) => fields.iter().find(|(n, _)| &**n == name).map_or(&Value::Null, |(_, v)| v),
        _ => &Value::Null,
    }
}

/// `mergeql_cells(mode, name, strategy, selects, value, contributions, ...)`: who won and who lost, a struct for each cell.
fn cells(args: &[Value]) -> RowResult {
    let only_conflicts = args[0] == Value::text("conflicts");
    let mut out = Vec::new();
    for cell in args[1..].chunks(5) {
        let [name, strategy, selects, value, contributions] = cell else { continue };
        let Value::List(contributions) = contributions else {
            if !only_conflicts {
                out.push(cell_of(name, strategy, value, Vec::new(), Vec::new()));
            }
            continue;
        };
        let differ = contributions.windows(2).any(|w| field(&w[0], "value") != field(&w[1], "value"));
        if only_conflicts && !differ {
            continue;
        }
        let (mut winners, mut losers) = (Vec::new(), Vec::new());
        for contribution in contributions {
            if *selects == Value::Bool(false) || field(contribution, "value") == value {
                winners.push(field(contribution, "source").clone());
            } else {
                losers.push(Value::record(vec![
                    ("source".into(), field(contribution, "source").clone()),
                    ("value".into(), text_of(field(contribution, "value"))),
                    ("version".into(), field(contribution, "version").clone()),
                ]));
            }
        }
        out.push(cell_of(name, strategy, value, winners, losers));
    }
    Ok(Value::List(out))
}

fn cell_of(name: &Value, strategy: &Value, value: &Value, mut winners: Vec<Value>, mut losers: Vec<Value>) -> Value {
    winners.sort();
    winners.dedup();
    losers.sort();
    losers.dedup();
    Value::record(vec![
        ("column_name".into(), name.clone()),
        ("value".into(), text_of(value)),
        ("strategy".into(), strategy.clone()),
        ("winner_sources".into(), Value::List(winners)),
        ("losers".into(), Value::List(losers)),
    ])
}

/// Values in an Arrow type, as a column of that type shows them: objects in a text column are JSON.
pub fn typed(values: Vec<Value>, ty: &DataType) -> Result<ArrayRef> {
    let text = matches!(logical(ty).map_err(external)?, Type::Text);
    let show = |v: Value| match v {
        Value::Null | Value::Text(_) => v,
        Value::Struct(_) | Value::List(_) | Value::Map(_) => Value::text(v.to_json()),
        other => Value::text(other.to_string()),
    };
    let values: Vec<Value> = if text { values.into_iter().map(show).collect() } else { values };
    from_values(&values, ty)
}

struct RowUdf {
    function: RowFunction,
    signature: Signature,
}

impl RowUdf {
    fn new(function: RowFunction) -> RowUdf {
        let (least, most) = (*function.arguments.start(), *function.arguments.end());
        let signature = match (least, most) {
            (0, 0) => TypeSignature::Nullary,
            (n, m) if n == m => TypeSignature::Any(n),
            _ => TypeSignature::VariadicAny,
        };
        RowUdf { function, signature: Signature::new(signature, Volatility::Immutable) }
    }
}

impl std::fmt::Debug for RowUdf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.function.name)
    }
}

impl PartialEq for RowUdf {
    fn eq(&self, other: &Self) -> bool {
        self.function.name == other.function.name
    }
}

impl Eq for RowUdf {}

impl Hash for RowUdf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.name.hash(state);
    }
}

impl ScalarUDFImpl for RowUdf {
    fn name(&self) -> &str {
        self.function.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.function.returns.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = if args.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_))) { 1 } else { args.number_rows };
        let arrays = args.args.iter().map(|a| normalize(&a.to_array(rows)?)).collect::<Result<Vec<_>>>()?;
        let lent: Vec<_> = arrays.iter().map(|a| lend(a)).collect();
        let columns: Vec<_> = lent.iter().zip(&arrays).map(|(l, a)| l.column(a)).collect();
        let mut row = Vec::with_capacity(columns.len());
        let mut results = Vec::with_capacity(rows);
        for i in 0..rows {
            row.clear();
            row.extend(columns.iter().map(|c| c.value(i)));
            results.push((self.function.run)(&row).map_err(external)?);
        }
        let array = from_values(&results, &self.function.returns)?;
        if rows == 1 && args.number_rows != 1 {
            return Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&array, 0)?));
        }
        Ok(ColumnarValue::Array(array))
    }
}

/// `mergeql_exact_double(integer)`: the same number as a double, or an error; `mergeql_canonical(x)`: canonical zeros and NaNs (R9).
#[derive(Debug, PartialEq, Eq, Hash)]
struct Floats {
    exact: bool,
    signature: Signature,
}

impl ScalarUDFImpl for Floats {
    fn name(&self) -> &str {
        if self.exact { "mergeql_exact_double" } else { "mergeql_canonical" }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(if self.exact { DataType::Float64 } else { types[0].clone() })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let array = args.args[0].to_array(args.number_rows)?;
        let result: ArrayRef = if self.exact {
            let wide = cast(&array, &DataType::Decimal128(38, 0))?;
            for v in wide.as_primitive::<arrow::datatypes::Decimal128Type>().iter().flatten() {
                if v as f64 as i128 != v {
                    return Err(external(Error::type_mismatch(format!(
                        "the integer {v} meets doubles in another source, and a double cannot hold it exactly"
                    ))));
                }
            }
            cast(&array, &DataType::Float64)?
        } else {
            match array.data_type() {
                DataType::Float64 => {
                    let a = array.as_primitive::<Float64Type>();
                    let canonical = mergeql_udfs::value::canonical;
                    Arc::new(a.iter().map(|v| v.map(canonical)).collect::<Float64Array>())
                }
                DataType::Float32 => {
                    let a = array.as_primitive::<Float32Type>();
                    let canonical = |v: f32| if v.is_nan() { f32::NAN } else { v + 0.0 };
                    Arc::new(a.iter().map(|v| v.map(canonical)).collect::<Float32Array>())
                }
                ty => {
                    let source = normalize(&array)?;
                    let lent = lend(&source);
                    let column = lent.column(&source);
                    let values = (0..array.len()).map(|i| column.value(i)).collect();
                    build(OwnedColumn::of_values(logical(ty).map_err(external)?, values), ty)?
                }
            }
        };
        Ok(ColumnarValue::Array(result))
    }
}
