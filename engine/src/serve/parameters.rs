//! Parameters of Postgres' protocol: their types, and their values in a plan.

use super::postgres::{Held, told};
use crate::error::{MergeError, Result};
use crate::prepare::bound;
use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion_postgres::arrow_pg::datatypes::df::deserialize_parameters_with_server_types;
use datafusion_postgres::arrow_pg::datatypes::into_pg_type;
use datafusion_postgres::pgwire::api::Type;
use datafusion_postgres::pgwire::api::portal::Portal;
use datafusion_postgres::pgwire::error::PgWireResult;
use mergeql_udfs::Code;
use std::collections::HashMap;

/// The parameters of a plan in their order, with their types on the wire.
pub(super) fn parameters(plan: &LogicalPlan) -> Result<(Vec<Option<DataType>>, Vec<Type>)> {
    let found = plan.get_parameter_types()?;
    let numbered = found.into_iter().filter_map(|(name, ty)| Some((name.trim_start_matches('$').parse::<usize>().ok()?, ty)));
    let casts = casts(plan)?;
    // In what is asked of catalogues some parameters count for nothing: they have their places all the same.
    let mut types: Vec<Option<DataType>> = Vec::new();
    for (number, ty) in numbered.filter(|(number, _)| (1..=usize::from(u16::MAX)).contains(number)) {
        types.resize(types.len().max(number), None);
        // What is cast is of that type already, as in Postgres.
        types[number - 1] = ty.or_else(|| casts.get(&number).cloned());
    }
    let wire = types.iter().map(|ty| match ty {
        Some(ty) => into_pg_type(ty).map_err(|e| MergeError::new(Code::Unsupported, e.to_string())),
        None => Ok(Type::UNKNOWN),
    });
    let wire = wire.collect::<Result<Vec<_>>>()?;
    Ok((types, wire))
}

/// The types that parameters are cast to, by their numbers.
fn casts(plan: &LogicalPlan) -> Result<HashMap<usize, DataType>> {
    let mut casts = HashMap::new();
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::Cast(cast) = expr
                    && let Expr::Placeholder(Placeholder { id, .. }) = &*cast.expr
                    && let Ok(number) = id.trim_start_matches('$').parse()
                {
                    casts.entry(number).or_insert_with(|| cast.field.data_type().clone());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(casts)
}

/// Dates and times as text without the zone that Postgres takes no notice of, and that JDBC writes.
fn without_zones(portal: &Portal<Held>, wire: &[Type]) -> Portal<Held> {
    let mut plain = Portal::<Held>::default();
    plain.name = portal.name.clone();
    plain.statement = portal.statement.clone();
    plain.parameter_format = portal.parameter_format.clone();
    plain.result_column_format = portal.result_column_format.clone();
    plain.parameters = portal.parameters.clone();
    for (at, value) in plain.parameters.iter_mut().enumerate() {
        let declared = portal.statement.parameter_types.get(at).cloned().flatten();
        let ty = declared.as_ref().or(wire.get(at));
        let timed = matches!(ty, Some(&Type::DATE | &Type::TIMESTAMP));
        if let Some(bytes) = value.as_mut().filter(|_| timed && !portal.parameter_format.is_binary(at)) {
            let text = String::from_utf8_lossy(bytes);
            let from = if ty == Some(&Type::DATE) { 10 } else { 11 };
            // A sign behind the date begins a zone.
            let end = text.get(from..).and_then(|rest| rest.find(['+', '-', 'Z'])).map_or(text.len(), |zone| from + zone);
            *bytes = text[..end].trim_end().to_owned().into();
        }
    }
    plain
}

pub(super) fn with_parameters(portal: &Portal<Held>, plan: &LogicalPlan) -> PgWireResult<LogicalPlan> {
    let (types, wire) = parameters(plan).map_err(|e| told(&e, ""))?;
    if types.is_empty() {
        return Ok(plan.clone());
    }
    let portal = &without_zones(portal, &wire);
    let types: Vec<Option<&DataType>> = types.iter().map(Option::as_ref).collect();
    let wire: Vec<Option<&Type>> = wire.iter().map(Some).collect();
    let mut values = deserialize_parameters_with_server_types(portal, &types, &wire)?;
    if let ParamValues::List(list) = &mut values {
        // The library leaves a NULL of no known type out, and what follows would take its place.
        for (at, _) in portal.parameters.iter().enumerate().filter(|(_, value)| value.is_none()) {
            let said = portal.statement.parameter_types.get(at).and_then(Option::as_ref);
            let ty = said.or(wire.get(at).copied().flatten());
            if list.len() < portal.parameter_len() && ty.is_none_or(|ty| *ty == Type::UNKNOWN) {
                list.insert(at, ScalarValue::Null.into());
            }
        }
    }
    bound(plan, values).map_err(|e| told(&e, ""))
}
