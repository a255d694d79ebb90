//! DataFusion's SQL, which the engine runs.

use super::{Dialect, list, text};
use mergeql_udfs::Type;

/// DataFusion's SQL, which the engine runs.
#[derive(Debug, Clone, Copy)]
pub struct DataFusion;

impl DataFusion {
    /// The type as `arrow_cast` reads it; `None` for types that the union widens by itself.
    fn arrow(ty: &Type) -> Option<String> {
        Some(match ty {
            Type::Boolean => "Boolean".to_owned(),
            Type::Int { bits: bits @ (8 | 16 | 32 | 64), signed } => format!("{}Int{bits}", if *signed { "" } else { "U" }),
            Type::Float32 => "Float32".to_owned(),
            Type::Float64 => "Float64".to_owned(),
            Type::Decimal { precision, scale } => format!("Decimal128({precision}, {scale})"),
            Type::Date => "Date32".to_owned(),
            Type::Timestamp { unit, zone } => match zone {
                None => format!("Timestamp({unit:?}, None)"),
                Some(zone) => format!("Timestamp({unit:?}, Some(\"{zone}\"))"),
            },
            Type::List(_) | Type::Struct(_) => DataFusion::nested(ty)?,
            _ => return None,
        })
    }

    /// As [`DataFusion::arrow`], inside lists and structs, where the union widens nothing.
    fn nested(ty: &Type) -> Option<String> {
        Some(match ty {
            Type::Null => "Null".to_owned(),
            Type::Text => "Utf8".to_owned(),
            Type::Bytes => "Binary".to_owned(),
            Type::Time(unit) => format!("Time64({unit:?})"),
            Type::Interval => "Interval(MonthDayNano)".to_owned(),
            Type::Uuid => "FixedSizeBinary(16)".to_owned(),
            Type::List(t) => format!("List({})", DataFusion::nested(t)?),
            Type::Struct(fields) => {
                let field = |(name, ty): &mergeql_udfs::Field| {
                    Some(format!("\"{}\": nullable {}", name.replace('\\', "\\\\").replace('"', "\\\""), DataFusion::nested(ty)?))
                };
                format!("Struct({})", fields.iter().map(field).collect::<Option<Vec<_>>>()?.join(", "))
            }
            Type::Map(key, value) => {
                let (key, value) = (DataFusion::nested(key)?, DataFusion::nested(value)?);
                format!("Map(\"entries\": non-null Struct(\"keys\": non-null {key}, \"values\": nullable {value}), unsorted)")
            }
            scalar => DataFusion::arrow(scalar)?,
        })
    }
}

impl Dialect for DataFusion {
    // DataFusion 55.2 takes the rows that OFFSET skips off the limit once more where an outer ORDER BY is the same.
    fn loses_offsets(&self) -> bool {
        true
    }

    fn cast(&self, expr: &str, from: &Type, to: &Type) -> Option<String> {
        if from == to {
            return None;
        }
        match (from, to) {
            // A union takes the type of its first input.
            (Type::Null, _) => DataFusion::nested(to).map(|ty| format!("arrow_cast({expr}, {})", text(&ty))),
            (Type::List(_) | Type::Struct(_) | Type::Map(..), _) => {
                Some(format!("mergeql_widen({expr}, arrow_cast(NULL, {}))", text(&DataFusion::nested(to)?)))
            }
            (Type::Time(_), Type::Time(_)) => Some(format!("arrow_cast({expr}, {})", text(&DataFusion::nested(to)?))),
            (Type::Int { .. }, Type::Float64) => Some(format!("mergeql_exact_double({expr})")),
            _ => DataFusion::arrow(to).map(|ty| format!("arrow_cast({expr}, {})", text(&ty))),
        }
    }

    fn null(&self, ty: &Type) -> String {
        if *ty == Type::Text {
            return "CAST(NULL AS VARCHAR)".to_owned();
        }
        match DataFusion::arrow(ty) {
            Some(ty) => format!("arrow_cast(NULL, {})", text(&ty)),
            None => "NULL".to_owned(),
        }
    }

    fn record(&self, fields: &[(&str, String)]) -> String {
        format!("named_struct({})", list(fields.iter().map(|(name, expr)| format!("{}, {expr}", text(name)))))
    }

    /// Most rows are in no conflict: text is made only for those that are.
    fn version(&self, parts: Vec<String>) -> String {
        format!("named_struct({})", list(parts.iter().enumerate().map(|(i, part)| format!("'{i:03}', {part}"))))
    }
}
