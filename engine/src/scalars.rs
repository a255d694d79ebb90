//! Scalar functions: over states (for users), and what the lowering needs (`mergeql_*`).

use crate::columns::{build, external, from_values, lend, logical, normalize, physical};
use arrow::array::{Array, ArrayRef, AsArray, Float32Array, Float64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility};
use mergeql_udfs::functions::{self, Function};
use mergeql_udfs::{Error, OwnedColumn, Type, Value};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Every scalar function of the engine.
pub fn all() -> Vec<ScalarUDF> {
    let mut functions: Vec<ScalarUDF> = functions::all()
        .into_iter()
        .chain(mergeql_tensors::contribution::functions())
        .map(|f| ScalarUDF::from(RowUdf::new(f)))
        .collect();
    functions.push(ScalarUDF::from(Floats { exact: true, signature: Signature::any(1, Volatility::Immutable) }));
    functions.push(ScalarUDF::from(Floats { exact: false, signature: Signature::any(1, Volatility::Immutable) }));
    functions.push(ScalarUDF::from(ValueLike { signature: Signature::any(2, Volatility::Immutable) }));
    functions.push(ScalarUDF::from(Widen { signature: Signature::any(2, Volatility::Immutable) }));
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
        let value = |i: usize| functions::value_of(&column.value(i));
        let values = (0..states.len()).map(value).collect::<Result<Vec<_>, Error>>().map_err(external)?;
        Ok(ColumnarValue::Array(typed(values, args.return_field.data_type())?))
    }
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

/// `mergeql_widen(value, like)`: a nested value in the wider type of the second argument.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Widen {
    signature: Signature,
}

impl ScalarUDFImpl for Widen {
    fn name(&self) -> &str {
        "mergeql_widen"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types[1].clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let array = normalize(&args.args[0].to_array(args.number_rows)?)?;
        let lent = lend(&array);
        let column = lent.column(&array);
        let wide = args.return_field.data_type();
        let ty = logical(wide).map_err(external)?;
        let value = |i: usize| column.value(i).widen(&ty);
        let values = (0..array.len()).map(value).collect::<Result<Vec<_>, Error>>().map_err(external)?;
        Ok(ColumnarValue::Array(from_values(&values, wide)?))
    }
}

struct RowUdf {
    function: Function,
    returns: DataType,
    signature: Signature,
}

impl RowUdf {
    fn new(function: Function) -> RowUdf {
        let (least, most) = (*function.arguments.start(), *function.arguments.end());
        let signature = match (least, most) {
            (0, 0) => TypeSignature::Nullary,
            (n, m) if n == m => TypeSignature::Any(n),
            _ => TypeSignature::VariadicAny,
        };
        let volatility = if function.volatile { Volatility::Volatile } else { Volatility::Immutable };
        RowUdf { returns: physical(&function.returns), function, signature: Signature::new(signature, volatility) }
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
        Ok(self.returns.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = if args.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_))) { 1 } else { args.number_rows };
        let arrays = args.args.iter().map(|a| normalize(&a.to_array(rows)?)).collect::<Result<Vec<_>>>()?;
        let lent: Vec<_> = arrays.iter().map(|a| lend(a)).collect();
        let columns: Vec<_> = lent.iter().zip(&arrays).map(|(l, a)| l.column(a)).collect();
        let array = match self.function.columns {
            Some(run) => build(run(&columns, rows).map_err(external)?, &self.returns)?,
            None => {
                let mut row = Vec::with_capacity(columns.len());
                let mut results = Vec::with_capacity(rows);
                for i in 0..rows {
                    row.clear();
                    row.extend(columns.iter().map(|c| c.value(i)));
                    results.push((self.function.run)(&row).map_err(external)?);
                }
                from_values(&results, &self.returns)?
            }
        };
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
                Value::Int(v).widen(&Type::Float64).map_err(external)?;
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
