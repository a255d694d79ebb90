//! Parameters of Postgres' protocol: their types, and their values in a plan.

use super::postgres::told;
use super::prepared::Held;
use crate::error::{MergeError, Result};
use crate::prepare::bound;
use arrow::datatypes::{DataType, i256};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion_postgres::arrow_pg::datatypes::df::deserialize_parameters_with_server_types;
use datafusion_postgres::arrow_pg::datatypes::into_pg_type;
use datafusion_postgres::pgwire::api::Type;
use datafusion_postgres::pgwire::api::portal::Portal;
use datafusion_postgres::pgwire::api::stmt::StoredStatement;
use datafusion_postgres::pgwire::error::PgWireResult;
use mergeql_udfs::Code;
use std::collections::HashMap;
use std::sync::Arc;

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

/// A number, or what the library reads no text as, in the form that its client gave it: the library would round it to the column's type.
fn own_value(bytes: &[u8], ty: &Type, binary: bool) -> Result<Option<ScalarValue>> {
    let bad = || MergeError::new(Code::InvalidArgument, format!("a parameter is no {}", ty.name()));
    let text = || std::str::from_utf8(bytes).map(str::trim).map_err(|_| bad());
    let integer = |n: usize| -> Result<i64> {
        let bytes: &[u8] = if bytes.len() == n { bytes } else { return Err(bad()) };
        let negative = bytes[0] & 0x80 != 0;
        Ok(bytes.iter().fold(if negative { -1 } else { 0 }, |value, b| value << 8 | i64::from(*b)))
    };
    Ok(Some(match *ty {
        Type::INT2 | Type::INT4 | Type::INT8 if binary => ScalarValue::Int64(Some(integer(if *ty == Type::INT2 {
            2
        } else if *ty == Type::INT4 {
            4
        } else {
            8
        })?)),
        Type::INT2 | Type::INT4 | Type::INT8 => ScalarValue::Int64(Some(text()?.parse().map_err(|_| bad())?)),
        Type::FLOAT4 if binary => ScalarValue::Float64(Some(f32::from_be_bytes(bytes.try_into().map_err(|_| bad())?).into())),
        Type::FLOAT8 if binary => ScalarValue::Float64(Some(f64::from_be_bytes(bytes.try_into().map_err(|_| bad())?))),
        Type::FLOAT4 | Type::FLOAT8 => ScalarValue::Float64(Some(text()?.parse().map_err(|_| bad())?)),
        Type::NUMERIC if binary => decimal(&numeric_text(bytes).ok_or_else(bad)?).ok_or_else(bad)?,
        Type::NUMERIC => decimal(text()?).ok_or_else(bad)?,
        Type::UUID if binary => {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            if hex.len() != 32 {
                return Err(bad());
            }
            let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &hex[part]);
            ScalarValue::Utf8(Some(parts.join("-")))
        }
        Type::JSONB if binary => {
            let text = bytes.strip_prefix(&[1]).and_then(|text| std::str::from_utf8(text).ok());
            ScalarValue::Utf8(Some(text.ok_or_else(bad)?.to_owned()))
        }
        Type::UUID | Type::JSON | Type::JSONB => ScalarValue::Utf8(Some(text()?.to_owned())),
        _ => return Ok(None),
    }))
}

/// A decimal with the digits that it is written with; one that is none (NaN, infinite) as a double.
fn decimal(text: &str) -> Option<ScalarValue> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (sign, digits) =
        mantissa.strip_prefix('-').map_or(("", mantissa.strip_prefix('+').unwrap_or(mantissa)), |rest| ("-", rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return text.parse::<f64>().ok().map(|v| ScalarValue::Float64(Some(v)));
    }
    let scale = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?;
    let zeros = usize::try_from(-scale).unwrap_or(0);
    if zeros > 76 || scale > 76 {
        return text.parse::<f64>().ok().map(|v| ScalarValue::Float64(Some(v)));
    }
    let all = format!("{whole}{fraction}{}", "0".repeat(zeros));
    let significant = all.trim_start_matches('0');
    let scale = scale.max(0) as i8;
    let precision = significant.len().max(scale as usize).max(1);
    let signed = format!("{sign}{}", if significant.is_empty() { "0" } else { significant });
    match precision {
        1..=38 => Some(ScalarValue::Decimal128(Some(signed.parse().ok()?), precision as u8, scale)),
        39..=76 => Some(ScalarValue::Decimal256(Some(i256::from_string(&signed)?), precision as u8, scale)),
        _ => text.parse::<f64>().ok().map(|v| ScalarValue::Float64(Some(v))),
    }
}

/// The digits of a number in Postgres' own form: groups of four digits, the place of the first, the sign, the digits behind the point.
fn numeric_text(bytes: &[u8]) -> Option<String> {
    let word = |i: usize| Some(u16::from_be_bytes(bytes.get(2 * i..2 * i + 2)?.try_into().ok()?));
    let (count, weight, sign, scale) = (usize::from(word(0)?), i32::from(word(1)? as i16), word(2)?, usize::from(word(3)?));
    match sign {
        0 | 0x4000 => {}
        0xc000 => return Some("NaN".to_owned()),
        0xd000 => return Some("inf".to_owned()),
        0xf000 => return Some("-inf".to_owned()),
        _ => return None,
    }
    let group = |at: i32| match usize::try_from(weight - at) {
        Ok(i) if i < count => word(4 + i).filter(|digits| *digits < 10_000),
        _ => Some(0),
    };
    let mut whole = String::new();
    for at in (0..=weight.max(0)).rev() {
        whole += &format!("{:04}", group(at)?);
    }
    let mut fraction = String::new();
    let mut at = -1;
    while fraction.len() < scale {
        fraction += &format!("{:04}", group(at)?);
        at -= 1;
    }
    fraction.truncate(scale);
    Some(format!("{}{whole}.{fraction}", if sign == 0x4000 { "-" } else { "" }))
}

pub(super) fn with_parameters(portal: &Portal<Held>, plan: &LogicalPlan) -> PgWireResult<LogicalPlan> {
    let (types, wire) = parameters(plan).map_err(|e| told(&e, ""))?;
    if types.is_empty() {
        return Ok(plan.clone());
    }
    let mut portal = without_zones(portal, &wire);
    let mut own = Vec::new();
    for (at, value) in portal.parameters.iter_mut().enumerate() {
        let declared = portal.statement.parameter_types.get(at).and_then(Option::as_ref).filter(|ty| **ty != Type::UNKNOWN);
        let Some(ty) = declared.or(wire.get(at)) else { continue };
        let Some(bytes) = value else { continue };
        if let Some(read) = own_value(bytes, ty, portal.parameter_format.is_binary(at)).map_err(|e| told(&e, ""))? {
            own.push((at, read));
            *value = None;
        }
    }
    // Of what is read here the library is told no type, or it would put even a NULL of it into the column's.
    let mut declared = portal.statement.parameter_types.clone();
    own.iter().filter_map(|(at, _)| declared.get_mut(*at).map(|ty| *ty = None)).for_each(drop);
    portal.statement = Arc::new(StoredStatement::new(portal.statement.id.clone(), portal.statement.statement.clone(), declared));
    let portal = &portal;
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
        for (at, value) in own {
            if let Some(place) = list.get_mut(at) {
                *place = value.into();
            }
        }
    }
    bound(plan, values).map_err(|e| told(&e, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits() {
        let shown = |text: &str| decimal(text).map(|v| (v.data_type().to_string(), v.to_string()));
        assert_eq!(shown("70.5"), Some(("Decimal128(3, 1)".into(), "70.5".into())));
        assert_eq!(shown("-0.001"), Some(("Decimal128(3, 3)".into(), "-0.001".into())));
        assert_eq!(shown("1e3"), Some(("Decimal128(4, 0)".into(), "1000".into())));
        assert_eq!(shown("0").map(|s| s.1), Some("0".into()));
        assert_eq!(
            shown("12345678901234567890123456789012345678901.5").map(|s| s.1),
            Some("12345678901234567890123456789012345678901.5".into())
        );
        assert_eq!(shown("1x"), None);
        // 12345.678, -0.0001 and NaN as Postgres sends them.
        let bytes = |words: &[u16]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
        let read = |words: &[u16]| decimal(&numeric_text(&bytes(words)).expect("a number")).expect("a number").to_string();
        assert_eq!(read(&[3, 1, 0, 3, 1, 2345, 6780]), "12345.678");
        assert_eq!(read(&[1, (-1i16) as u16, 0x4000, 4, 1]), "-0.0001");
        assert_eq!(read(&[1, 1, 0, 0, 5]), "50000");
        assert_eq!(read(&[0, 0, 0xc000, 0]), "NaN");
        assert_eq!(numeric_text(&[0, 1]), None);
        assert_eq!(own_value(&[0xff, 0xfe], &Type::INT2, true).unwrap(), Some(ScalarValue::Int64(Some(-2))));
    }
}
