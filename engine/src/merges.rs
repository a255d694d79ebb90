//! The join of states as aggregates.

use crate::aggregates::{left_out, with_columns};
use crate::columns::{build, external, logical};
use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::compute::nullif;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};
use mergeql_udfs::{AnyState, Error, Type, Value, catalog};
use std::fmt::Debug;
use std::sync::Arc;

/// `crdt_merge(state)`: the join of states of any one type; `mergeql_merge_value(state, like)`: the value of that join, in the type of
/// its second argument.
pub fn all() -> Vec<AggregateUDF> {
    [false, true]
        .into_iter()
        .map(|value| {
            let signature = if value { Signature::any(2, Volatility::Immutable) } else { Signature::any(1, Volatility::Immutable) };
            AggregateUDF::from(Merge { value, signature })
        })
        .collect()
}

/// Whether an aggregate joins states.
pub fn is_ours(function: &AggregateUDF) -> bool {
    function.inner().downcast_ref::<Merge>().is_some()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Merge {
    value: bool,
    signature: Signature,
}

impl AggregateUDFImpl for Merge {
    fn name(&self) -> &str {
        if self.value { "mergeql_merge_value" } else { "crdt_merge" }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match logical(&types[0]).map_err(external)? {
            Type::Bytes | Type::Null => {}
            other => return Err(external(Error::type_mismatch(format!("`{}` joins states, not {other}", self.name())))),
        }
        Ok(if self.value { types[1].clone() } else { DataType::Binary })
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[state]", args.name), DataType::Binary, true))])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(JoinedOne { groups: self.groups(&args) }))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(self.groups(&args)))
    }
}

impl Merge {
    fn groups(&self, args: &AccumulatorArgs<'_>) -> Joined {
        Joined { states: Vec::new(), value: self.value, result: args.return_field.data_type().clone(), heap: 0 }
    }
}

struct Joined {
    states: Vec<Option<Box<dyn AnyState>>>,
    value: bool,
    result: DataType,
    heap: usize,
}

impl Joined {
    fn join(&mut self, states: &ArrayRef, groups: &[usize], filter: Option<&BooleanArray>, total: usize) -> Result<()> {
        self.states.resize_with(total.max(self.states.len()), || None);
        with_columns(std::slice::from_ref(states), |columns| {
            for (i, &group) in groups.iter().enumerate() {
                if filter.is_some_and(|f| f.is_null(i) || !f.value(i)) {
                    continue;
                }
                if let Value::Bytes(bytes) = columns[0].value(i) {
                    let before = self.states[group].as_ref().map_or(0, |s| s.size());
                    match &mut self.states[group] {
                        Some(state) => state.join_bytes(&bytes)?,
                        slot => *slot = Some(catalog::open(&bytes)?),
                    }
                    let after = self.states[group].as_ref().map_or(0, |s| s.size());
                    self.heap = (self.heap + after).saturating_sub(before);
                }
            }
            Ok(())
        })
    }

    fn take(&mut self, emit_to: EmitTo) -> Vec<Option<Box<dyn AnyState>>> {
        let taken = emit_to.take_needed(&mut self.states);
        self.heap = self.states.iter().flatten().map(|s| s.size()).sum();
        taken
    }

    fn encode(states: Vec<Option<Box<dyn AnyState>>>) -> Result<ArrayRef> {
        let bytes = states.into_iter().map(|s| s.map(|s| s.encode()));
        build(mergeql_udfs::OwnedColumn::of_bytes(Type::Bytes, bytes), &DataType::Binary)
    }
}

impl GroupsAccumulator for Joined {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>, total: usize) -> Result<()> {
        self.join(&values[0], groups, filter, total)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.join(&values[0], groups, None, total)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![Joined::encode(self.take(emit_to))?])
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let states = self.take(emit_to);
        if !self.value {
            return Joined::encode(states);
        }
        let values = states
            .iter()
            .map(|s| s.as_ref().map_or(Ok(Value::Null), |s| s.value()))
            .collect::<Result<Vec<_>, Error>>()
            .map_err(external)?;
        crate::scalars::typed(values, &self.result)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let states = match filter {
            Some(filter) => nullif(&values[0], &left_out(filter)?)?,
            None => Arc::clone(&values[0]),
        };
        Ok(vec![arrow::compute::cast(&states, &DataType::Binary)?])
    }

    fn size(&self) -> usize {
        self.states.capacity() * size_of::<Option<Box<dyn AnyState>>>() + self.heap
    }
}

struct JoinedOne {
    groups: Joined,
}

impl Debug for JoinedOne {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinedOne")
    }
}

impl JoinedOne {
    fn copy(&self) -> Result<Joined> {
        let state = self.groups.states.first().and_then(Option::as_ref).map(|s| s.encode());
        let state = state.map(|b| catalog::open(&b)).transpose().map_err(external)?;
        Ok(Joined { states: vec![state], value: self.groups.value, result: self.groups.result.clone(), heap: 0 })
    }
}

impl Accumulator for JoinedOne {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let rows = values.first().map_or(0, |v| v.len());
        self.groups.update_batch(values, &vec![0; rows], None, 1)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let rows = states.first().map_or(0, |v| v.len());
        self.groups.merge_batch(states, &vec![0; rows], 1)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::try_from_array(&self.copy()?.state(EmitTo::All)?[0], 0)?])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        ScalarValue::try_from_array(&self.copy()?.evaluate(EmitTo::All)?, 0)
    }

    fn size(&self) -> usize {
        self.groups.size()
    }
}
