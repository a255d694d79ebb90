//! The catalogue as DataFusion aggregates: one generic UDAF, for every strategy its value, its state, and both with a configuration.

use crate::columns::{build, external, lean, lend, logical, normalize, physical_like, relaid};
use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::compute::{not, nullif, prep_null_mask_filter};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};
use datafusion::physical_expr::expressions::Literal;
use mergeql_udfs::catalog::{self, Entry};
use mergeql_udfs::{Aggregate, Bits, Call, Code, Column, Error, Groups, Value};
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Every aggregate of the catalogue: `crdt_x`, `crdt_x_state`, `crdt_x_with`, `crdt_x_state_with`, for names and aliases; and the plain ones.
pub fn all() -> Vec<AggregateUDF> {
    let mut functions = Vec::new();
    for entry in catalog::all() {
        for (state, configured) in [(false, false), (true, false), (false, true), (true, true)] {
            let name =
                |base: &str| format!("crdt_{base}{}{}", if state { "_state" } else { "" }, if configured { "_with" } else { "" });
            let aliases: Vec<&str> = entry.spec().aliases.to_vec();
            let function = CrdtAggregate {
                name: name(entry.spec().name),
                aliases: aliases.iter().map(|a| name(a)).collect(),
                entry,
                state,
                configured,
                signature: Signature::variadic_any(Volatility::Immutable),
            };
            functions.push(AggregateUDF::from(function));
        }
    }
    functions.extend(catalog::plain().iter().map(|entry| {
        AggregateUDF::from(CrdtAggregate {
            name: catalog::plain_name(entry).to_owned(),
            aliases: Vec::new(),
            entry,
            state: false,
            configured: false,
            signature: Signature::variadic_any(Volatility::Immutable),
        })
    }));
    functions
}

/// Whether an aggregate is of the catalogue: then it is a function of the set of its rows.
pub fn is_ours(function: &AggregateUDF) -> bool {
    function.inner().downcast_ref::<CrdtAggregate>().is_some() || crate::merges::is_ours(function)
}

#[derive(Debug)]
struct CrdtAggregate {
    name: String,
    aliases: Vec<String>,
    entry: &'static Entry,
    /// The result is the state, not the value.
    state: bool,
    /// The first argument is a configuration in JSON.
    configured: bool,
    signature: Signature,
}

impl PartialEq for CrdtAggregate {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for CrdtAggregate {}

impl Hash for CrdtAggregate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl CrdtAggregate {
    /// Which arguments are input columns.
    fn inputs(&self, arguments: usize) -> std::ops::Range<usize> {
        let first = usize::from(self.configured).min(arguments);
        first..first + self.entry.spec().inputs_among(arguments - first)
    }

    fn call(&self, types: &[DataType]) -> Result<Call> {
        let range = self.inputs(types.len());
        if range.is_empty() {
            let usage = format!("`{}` needs the column to aggregate", self.name);
            return Err(external(Error::invalid_argument(usage)));
        }
        let inputs = types[range].iter().map(logical).collect::<Result<Vec<_>, Error>>().map_err(external)?;
        Ok(Call::new(inputs))
    }

    /// The call without its configuration, which is not known while types are planned; enough for types where none is required.
    fn planned(&self, types: &[DataType]) -> Result<Option<Arc<dyn Aggregate>>> {
        let call = self.call(types)?;
        match self.entry.bind(&call) {
            Ok(bound) => Ok(Some(bound)),
            Err(e) if e.code == Code::InvalidArgument => Ok(None),
            Err(e) => Err(external(e)),
        }
    }

    fn bind(&self, args: &AccumulatorArgs<'_>) -> Result<Bound> {
        let types: Vec<DataType> = args.expr_fields.iter().map(|f| f.data_type().clone()).collect();
        let range = self.inputs(types.len());
        let literal = |i: usize| -> Result<Value> {
            match args.exprs[i].downcast_ref::<Literal>() {
                Some(literal) => Ok(crate::columns::value_at(&literal.value().to_array()?, 0)),
                None => Err(external(
                    Error::invalid_argument(format!("argument {} of `{}` configures it and must be a literal", i + 1, self.name))
                        .with_help(format!("usage: {}", self.entry.spec().usage())),
                )),
            }
        };
        let positions = (0..range.start).chain(range.end..types.len());
        let literals = positions.map(literal).collect::<Result<Vec<_>>>()?;
        let call = self.call(&types)?.with_literals(self.entry.spec(), self.configured, &literals).map_err(external)?;
        let aggregate = self.entry.bind(&call).map_err(external)?;
        let rows = self.rows(&types)?;
        let input_types = types[range.clone()].iter().map(|ty| self.taken(ty)).collect();
        Ok(Bound { aggregate, range, input_types, rows, state: self.state, result: args.return_field.data_type().clone() })
    }

    /// The type in which input rows travel as partial states. A set of lists of one length has any number of elements.
    fn taken(&self, ty: &DataType) -> DataType {
        match lean(ty) {
            DataType::FixedSizeList(item, _) if !self.entry.spec().selects => DataType::List(item),
            lean => lean,
        }
    }

    /// Whether partial states travel as input rows. Decided by name and types alone: configuration is not known where state columns
    /// are planned, so calls with one use bytes.
    fn rows(&self, types: &[DataType]) -> Result<bool> {
        let plain = !self.configured && self.inputs(types.len()).end == types.len();
        Ok(plain && self.planned(types)?.is_some_and(|a| a.partials_are_rows()))
    }
}

impl AggregateUDFImpl for CrdtAggregate {
    fn name(&self) -> &str {
        &self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let call = self.call(types)?;
        if self.state {
            self.planned(types)?;
            return Ok(DataType::Binary);
        }
        let first = self.taken(&types[self.inputs(types.len()).start]);
        Ok(match self.planned(types)? {
            Some(bound) => physical_like(&bound.result_type(), &first),
            None => physical_like(&call.value_type(), &first),
        })
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let types: Vec<DataType> = args.input_fields.iter().map(|f| f.data_type().clone()).collect();
        if !self.rows(&types)? {
            return Ok(vec![Arc::new(Field::new(format!("{}[state]", args.name), DataType::Binary, true))]);
        }
        let field = |(i, ty): (usize, &DataType)| Arc::new(Field::new(format!("{}[{i}]", args.name), self.taken(ty), true));
        Ok(types[self.inputs(types.len())].iter().enumerate().map(field).collect())
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let groups = self.create_groups(&args)?;
        Ok(Box::new(OneGroup { groups }))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(self.create_groups(&args)?))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let groups = self.create_groups(&args)?;
        Ok(Box::new(Sliding { groups, rows: Default::default() }))
    }
}

impl CrdtAggregate {
    fn create_groups(&self, args: &AccumulatorArgs<'_>) -> Result<CrdtGroups> {
        // To all others it means nothing that a row comes twice.
        if args.is_distinct && catalog::plain().iter().any(|entry| std::ptr::eq(entry, self.entry)) {
            return Err(external(
                Error::new(Code::Unsupported, format!("`{}` takes no DISTINCT", self.name))
                    .with_help("aggregate over a query: FROM (SELECT DISTINCT ...)"),
            ));
        }
        let bound = self.bind(args)?;
        Ok(CrdtGroups { inner: bound.aggregate.groups(), bound, total: 0 })
    }
}

/// A configured aggregate and how its arguments and partial states look here.
#[derive(Debug, Clone)]
struct Bound {
    aggregate: Arc<dyn Aggregate>,
    range: std::ops::Range<usize>,
    input_types: Vec<DataType>,
    rows: bool,
    state: bool,
    result: DataType,
}

struct CrdtGroups {
    bound: Bound,
    inner: Box<dyn Groups>,
    total: usize,
}

/// Which rows a condition leaves out: those where it is NULL, too.
pub(crate) fn left_out(filter: &BooleanArray) -> Result<BooleanArray> {
    Ok(match filter.null_count() {
        0 => not(filter)?,
        _ => not(&prep_null_mask_filter(filter))?,
    })
}

/// Lends arrays to the core for the length of a call.
pub(crate) fn with_columns<T>(arrays: &[ArrayRef], run: impl FnOnce(&[Column<'_>]) -> Result<T, Error>) -> Result<T> {
    let arrays = arrays.iter().map(normalize).collect::<Result<Vec<_>>>()?;
    let lent: Vec<_> = arrays.iter().map(|a| lend(a)).collect();
    let columns: Vec<Column<'_>> = lent.iter().zip(&arrays).map(|(l, a)| l.column(a)).collect();
    run(&columns).map_err(external)
}

impl CrdtGroups {
    fn emit(&mut self, emit_to: EmitTo) -> usize {
        let n = match emit_to {
            EmitTo::All => self.total,
            EmitTo::First(n) => n,
        };
        self.total -= n;
        n
    }

    fn update_rows(&mut self, columns: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>, total: usize) -> Result<()> {
        let mask = filter.map(|f| match f.nulls() {
            // A NULL condition is not true.
            Some(nulls) => f.values() & nulls.inner(),
            None => f.values().clone(),
        });
        let bits = mask.as_ref().map(|m| Bits::new(m.values(), m.offset()));
        self.total = self.total.max(total);
        with_columns(columns, |columns| self.inner.update(columns, groups, bits, total))
    }
}

impl GroupsAccumulator for CrdtGroups {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>, total: usize) -> Result<()> {
        self.update_rows(&values[self.bound.range.clone()], groups, filter, total)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        if self.bound.rows {
            return self.update_rows(values, groups, None, total);
        }
        self.total = self.total.max(total);
        with_columns(values, |columns| self.inner.merge(&columns[0], groups, total))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let n = self.emit(emit_to);
        if !self.bound.rows {
            return Ok(vec![build(self.inner.shipped(n).map_err(external)?, &DataType::Binary)?]);
        }
        let columns = self.inner.rows(n).map_err(external)?;
        columns.into_iter().zip(&self.bound.input_types).map(|(column, ty)| build(column, ty)).collect()
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let n = self.emit(emit_to);
        if self.bound.state {
            return build(self.inner.states(n).map_err(external)?, &DataType::Binary);
        }
        build(self.inner.finish(n).map_err(external)?, &self.bound.result)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let columns = &values[self.bound.range.clone()];
        if self.bound.rows {
            let typed = columns.iter().zip(&self.bound.input_types);
            let mut columns = typed.map(|(column, ty)| relaid(column, ty)).collect::<Result<Vec<_>>>()?;
            if let Some(filter) = filter {
                columns[0] = nullif(&columns[0], &left_out(filter)?)?;
            }
            return Ok(columns);
        }
        let rows = columns.first().map_or(0, |c| c.len());
        let mut each = CrdtGroups { inner: self.bound.aggregate.groups(), bound: self.bound.clone(), total: 0 };
        each.update_rows(columns, &(0..rows).collect::<Vec<_>>(), filter, rows)?;
        each.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        self.inner.size() + size_of::<Self>()
    }
}

/// An aggregate without GROUP BY, or over a frame that only grows.
struct OneGroup {
    groups: CrdtGroups,
}

impl Debug for OneGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OneGroup").field("bound", &self.groups.bound).finish_non_exhaustive()
    }
}

impl OneGroup {
    /// The state bytes of the group; it stays as it is.
    fn peek(&mut self) -> Result<Value> {
        let inner = &mut self.groups.inner;
        let empty: Vec<Value> = Vec::new();
        let columns = vec![Column::of_values(&empty); self.groups.bound.range.len()];
        inner.update(&columns, &[], None, 1).map_err(external)?;
        let state = inner.states(1).map_err(external)?.value(0);
        let again = [state.clone()];
        inner.merge(&Column::of_values(&again), &[0], 1).map_err(external)?;
        self.groups.total = 1;
        Ok(state)
    }
}

impl Accumulator for OneGroup {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let rows = values.first().map_or(0, |v| v.len());
        self.groups.update_batch(values, &vec![0; rows], None, 1)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let rows = states.first().map_or(0, |v| v.len());
        self.groups.merge_batch(states, &vec![0; rows], 1)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.peek()?;
        let bound = self.groups.bound.clone();
        let mut copy = CrdtGroups { inner: bound.aggregate.groups(), bound, total: 0 };
        let state = [self.peek()?];
        copy.inner.merge(&Column::of_values(&state), &[0], 1).map_err(external)?;
        copy.total = 1;
        copy.state(EmitTo::All)?.iter().map(|a| ScalarValue::try_from_array(a, 0)).collect()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let state = [self.peek()?];
        let bound = self.groups.bound.clone();
        let mut copy = CrdtGroups { inner: bound.aggregate.groups(), bound, total: 1 };
        copy.inner.merge(&Column::of_values(&state), &[0], 1).map_err(external)?;
        ScalarValue::try_from_array(&copy.evaluate(EmitTo::All)?, 0)
    }

    fn size(&self) -> usize {
        self.groups.size()
    }
}

/// A moving frame: a join has no inverse, so the rows of the frame are kept and resolved anew.
struct Sliding {
    groups: CrdtGroups,
    rows: std::collections::VecDeque<Vec<ScalarValue>>,
}

impl Debug for Sliding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sliding").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

impl Accumulator for Sliding {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for i in 0..values.first().map_or(0, |v| v.len()) {
            self.rows.push_back(values.iter().map(|v| ScalarValue::try_from_array(v, i)).collect::<Result<_>>()?);
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let n = values.first().map_or(0, |v| v.len()).min(self.rows.len());
        self.rows.drain(..n);
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, _: &[ArrayRef]) -> Result<()> {
        Err(external(Error::new(Code::Unsupported, "a window frame has no partial state")))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Err(external(Error::new(Code::Unsupported, "a window frame has no partial state")))
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let bound = self.groups.bound.clone();
        let mut groups = CrdtGroups { inner: bound.aggregate.groups(), bound, total: 0 };
        if let Some(first) = self.rows.front() {
            let columns = (0..first.len())
                .map(|c| ScalarValue::iter_to_array(self.rows.iter().map(|r| r[c].clone())))
                .collect::<Result<Vec<_>>>()?;
            groups.update_batch(&columns, &vec![0; self.rows.len()], None, 1)?;
        }
        OneGroup { groups }.evaluate()
    }

    fn size(&self) -> usize {
        self.rows.iter().flatten().map(ScalarValue::size).sum::<usize>() + size_of::<Self>()
    }
}
