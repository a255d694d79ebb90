//! Postgres' SQL. Texts are compared by bytes: every text column of the merge carries `COLLATE "C"`.

use super::{Dialect, divided, has_interval, list, quote, step, text};
use crate::plan::Fold;
use mergeql_udfs::{Type, Unit};
use sqlparser::ast::Expr;

/// Postgres 13 and later.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// The schema of the extension: its functions are found whatever the search path is.
    pub schema: String,
}

/// Arguments of a function of Postgres.
const MOST_ARGUMENTS: usize = 100;

/// The name of a type in Postgres' SQL; `None` for rows, which have no type that can be named.
pub fn postgres_type_name(ty: &Type) -> Option<String> {
    Some(match ty {
        Type::Null | Type::Text => "text".to_owned(),
        Type::Boolean => "boolean".to_owned(),
        Type::Int { bits: 8 | 16, .. } => "smallint".to_owned(),
        Type::Int { bits: 32, .. } => "integer".to_owned(),
        Type::Int { bits: 64, signed: true } => "bigint".to_owned(),
        Type::Int { .. } | Type::Decimal { precision: 0, .. } => "numeric".to_owned(),
        Type::Decimal { precision, scale } => format!("numeric({precision}, {scale})"),
        Type::Float32 => "real".to_owned(),
        Type::Float64 => "double precision".to_owned(),
        Type::Bytes => "bytea".to_owned(),
        Type::Date => "date".to_owned(),
        Type::Time(_) => "time".to_owned(),
        Type::Timestamp { zone: None, .. } => "timestamp".to_owned(),
        Type::Timestamp { zone: Some(_), .. } => "timestamptz".to_owned(),
        Type::Interval => "interval".to_owned(),
        Type::Uuid => "uuid".to_owned(),
        Type::List(element) => format!("{}[]", postgres_type_name(element)?),
        Type::Struct(_) | Type::Map(..) => return None,
    })
}

/// Microseconds are what Postgres counts in.
fn same(a: &Type, b: &Type) -> bool {
    let unit = |ty: &Type| matches!(ty, Type::Timestamp { unit: Unit::Microsecond, .. } | Type::Time(Unit::Microsecond));
    a == b || (unit(a) && unit(b) && postgres_type_name(a) == postgres_type_name(b))
}

impl Dialect for Postgres {
    fn cast(&self, expr: &str, from: &Type, to: &Type) -> Option<String> {
        let exact = |ty: &Type| matches!(ty, Type::Int { bits: 64.., .. });
        match (from, to) {
            (_, Type::Text) => Some(format!("CAST({expr} AS text) COLLATE \"C\"")),
            // Arrays of citext, JSON and the like.
            (Type::List(_), Type::List(to)) if **to == Type::Text => Some(format!("CAST({expr} AS text[])")),
            (from, to) if same(from, to) => None,
            (from, Type::Float64) if exact(from) => Some(format!("{}({expr})", self.function("mergeql_exact_double"))),
            (Type::List(from), Type::List(to)) if exact(from) && **to == Type::Float64 => {
                Some(format!("{}({expr})", self.function("mergeql_exact_double")))
            }
            _ => postgres_type_name(to).map(|name| format!("CAST({expr} AS {name})")),
        }
    }

    fn null(&self, ty: &Type) -> String {
        match postgres_type_name(ty) {
            Some(name) if *ty == Type::Text => format!("CAST(NULL AS {name}) COLLATE \"C\""),
            Some(name) => format!("CAST(NULL AS {name})"),
            None => "NULL".to_owned(),
        }
    }

    fn record(&self, fields: &[(&str, String)]) -> String {
        let function = self.function("mergeql_record");
        let record = |some: &[(&str, String)]| {
            format!("{function}({})", list(some.iter().map(|(name, expr)| format!("{}, {expr}", self.argument(name)))))
        };
        match fields.len() {
            0 => format!("{function}()"),
            n if n * 2 <= MOST_ARGUMENTS => record(fields),
            // Records of records are one.
            _ => format!("{function}({})", list(fields.chunks(MOST_ARGUMENTS / 2).map(record))),
        }
    }

    fn function(&self, name: &str) -> String {
        format!("{}.{name}", quote(&self.schema))
    }

    fn key(&self, expr: &str, ty: &Type) -> Option<String> {
        match ty {
            // 1.0 and 1.00 are one key, and shown as one.
            Type::Decimal { precision: 0, .. } => Some(format!("trim_scale({expr})")),
            ty => ty.has_float().then(|| format!("{}({expr})", self.function("mergeql_canonical"))),
        }
    }

    fn confuses(&self, ty: &Type) -> bool {
        // There is no greatest of rows.
        has_interval(ty) && !matches!(ty, Type::Struct(_))
    }

    fn has_equality(&self, ty: &Type) -> bool {
        // Maps are JSON here, and some lists.
        !matches!(ty, Type::List(_) | Type::Map(..))
    }

    fn null_tests(&self, ty: &Type) -> [&'static str; 2] {
        // A row of NULLs is NULL to IS NULL, and a row with one of them neither that nor the opposite.
        match ty {
            Type::Struct(_) => ["IS NOT DISTINCT FROM NULL", "IS DISTINCT FROM NULL"],
            _ => ["IS NULL", "IS NOT NULL"],
        }
    }

    fn order_key(&self, expr: &str, ty: Option<&Type>) -> Option<String> {
        match ty {
            Some(Type::Text) => Some(format!("({expr}) COLLATE \"C\"")),
            Some(ty) if ty.is_scalar() && !matches!(ty, Type::Float32 | Type::Float64 | Type::Interval | Type::Decimal { .. }) => {
                None
            }
            _ => Some(format!("{}({expr})", self.function("mergeql_order_key"))),
        }
    }

    fn expression(&self, expr: &Expr) -> String {
        divided(expr, &self.function("mergeql_divide"))
    }

    fn sorts_groups(&self) -> bool {
        true
    }

    fn resolved(&self, value: String, ty: &Type) -> String {
        if *ty == Type::Text { format!("({value}) COLLATE \"C\"") } else { value }
    }

    fn most_arguments(&self) -> usize {
        MOST_ARGUMENTS
    }

    fn unnested(&self, keys: &[String], calls: &[String], merged: &str) -> String {
        let keys = list(keys.iter().map(|k| format!("m.{k} AS {k}")));
        format!("SELECT {keys}, json_array_elements(unnest(ARRAY[{}])) AS __mergeql_cell FROM {merged}", calls.join(", "))
    }

    fn cell_field(&self, cell: &str, field: &str) -> String {
        match field {
            "winner_sources" => format!("ARRAY(SELECT json_array_elements_text({cell}->'{field}'))"),
            "losers" => format!("{cell}->'{field}'"),
            _ => format!("({cell}->>'{field}') COLLATE \"C\""),
        }
    }

    fn unpacked(&self, packed: &str, column: &str) -> String {
        format!("CAST({}({packed}, {}) AS {})", self.function("mergeql_unpack"), self.argument(column), self.function("crdt"))
    }

    fn greatest(&self, bytes: &str) -> String {
        format!("(array_agg({bytes} ORDER BY {bytes} DESC))[1]")
    }

    fn no_state(&self) -> String {
        format!("CAST(NULL AS {})", self.function("crdt"))
    }

    fn argument(&self, value: &str) -> String {
        format!("CAST({} AS text)", text(value))
    }

    fn folded(&self, fold: &Fold, values: &str, ty: &Type) -> String {
        let (left, right) = (quote(&fold.left), quote(&fold.right));
        let (step, name) = (step(fold, self), postgres_type_name(ty).unwrap_or_else(|| "text".to_owned()));
        format!(
            "(SELECT f.value FROM (SELECT {values} AS all_values) AS v, LATERAL (WITH RECURSIVE fold(i, value) AS (\
             SELECT 1, v.all_values[1] UNION ALL SELECT fold.i + 1, CAST((SELECT {step} FROM \
             (SELECT fold.value AS {left}, v.all_values[fold.i + 1] AS {right}) AS pair) AS {name}) FROM fold \
             WHERE fold.i < cardinality(v.all_values)) SELECT fold.value FROM fold ORDER BY fold.i DESC LIMIT 1) AS f)"
        )
    }
}
