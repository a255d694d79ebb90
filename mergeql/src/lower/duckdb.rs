//! DuckDB's SQL. Its C interface has no aggregates that return the type of their argument, so those of the types listed here exist one
//! by one, and every other type goes through the state and comes back by a cast.

use super::{Dialect, divided, has_interval, list, quote, step, text};
use crate::plan::{Cell, Fold};
use mergeql_udfs::{Code, Error, Order, Type, Unit, Value};
use sqlparser::ast::{Expr, Value as Literal, visit_expressions_mut};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Arguments beside its inputs that a function has there: overloads have a number of arguments each.
pub const MOST_LITERALS: usize = 8;

/// DuckDB 1.5 and 2.0.
#[derive(Debug, Clone, Copy)]
pub struct DuckDb;

impl DuckDb {
    /// Whether aggregates over this type exist by themselves. Lists do for scalar elements.
    pub fn is_native(ty: &Type) -> bool {
        match ty {
            Type::List(element) => element.is_scalar() && DuckDb::is_native(element),
            Type::Struct(_) | Type::Map(..) | Type::Decimal { .. } | Type::Null => false,
            Type::Int { bits: 128, signed } => *signed,
            Type::Time(unit) => *unit == Unit::Microsecond,
            _ => true,
        }
    }
}

/// The type with text in place of bytes.
fn with_text_for_bytes(ty: &Type) -> Type {
    match ty {
        Type::Bytes => Type::Text,
        Type::List(element) => Type::List(Box::new(with_text_for_bytes(element))),
        Type::Struct(fields) => Type::Struct(fields.iter().map(|(name, ty)| (name.clone(), with_text_for_bytes(ty))).collect()),
        Type::Map(key, value) => Type::Map(Box::new(with_text_for_bytes(key)), Box::new(with_text_for_bytes(value))),
        other => other.clone(),
    }
}

/// The name of a type in DuckDB's SQL.
pub fn duckdb_type_name(ty: &Type) -> String {
    type_name(ty, false)
}

/// As [`duckdb_type_name`], with words of our own for types that DuckDB does not have: [`duckdb_type`] reads the same type.
pub fn exact_type_name(ty: &Type) -> String {
    type_name(ty, true)
}

fn type_name(ty: &Type, exact: bool) -> String {
    match ty {
        Type::Null if exact => "NULL".to_owned(),
        Type::Timestamp { unit, zone: Some(zone) } if exact && (*unit, &**zone) != (Unit::Microsecond, "UTC") => {
            let unit = match unit {
                Unit::Second => "S",
                Unit::Millisecond => "MS",
                Unit::Microsecond => "US",
                Unit::Nanosecond => "NS",
            };
            format!("TIMESTAMPTZ_{unit} {}", quote(zone))
        }
        Type::Null => "INTEGER".to_owned(),
        Type::Float32 => "FLOAT".to_owned(),
        Type::Text => "VARCHAR".to_owned(),
        Type::Time(Unit::Nanosecond) => "TIME_NS".to_owned(),
        Type::Timestamp { zone: Some(_), .. } => "TIMESTAMP WITH TIME ZONE".to_owned(),
        Type::Timestamp { unit, .. } => match unit {
            Unit::Second => "TIMESTAMP_S",
            Unit::Millisecond => "TIMESTAMP_MS",
            Unit::Microsecond => "TIMESTAMP",
            Unit::Nanosecond => "TIMESTAMP_NS",
        }
        .to_owned(),
        Type::List(element) => format!("{}[]", type_name(element, exact)),
        Type::Struct(fields) => {
            format!("STRUCT({})", list(fields.iter().map(|(name, ty)| format!("{} {}", quote(name), type_name(ty, exact)))))
        }
        Type::Map(key, value) => format!("MAP({}, {})", type_name(key, exact), type_name(value, exact)),
        other => other.to_string(),
    }
}

/// Reads a type as DuckDB's `typeof` names it; an ENUM is text.
///
/// # Errors
/// `unsupported` with the name of the type.
pub fn duckdb_type(name: &str) -> Result<Type, Error> {
    let mut reader = TypeName { rest: name, cast: false };
    let ty = reader.ty()?;
    match reader.rest.trim() {
        "" => Ok(ty),
        rest => Err(Error::new(Code::Unsupported, format!("the type {name} is not known here (at `{rest}`)"))),
    }
}

/// A column as `typeof` of a whole row names it.
#[derive(Debug, Clone, PartialEq)]
pub struct DuckDbColumn {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: Type,
    /// DuckDB's own type is another (an ENUM): the column is cast before it is merged.
    pub cast: bool,
}

/// Reads the columns of a row from `typeof(row)`: `STRUCT(id INTEGER, "na me" VARCHAR)`.
///
/// # Errors
/// `unsupported` with the name of a type that the core does not have.
pub fn duckdb_columns(row: &str) -> Result<Vec<DuckDbColumn>, Error> {
    let mut reader = TypeName { rest: row, cast: false };
    if !reader.word().eq_ignore_ascii_case("STRUCT") {
        return Err(reader.unknown(row));
    }
    reader.expect("(")?;
    let mut columns = Vec::new();
    while !reader.take(")") {
        reader.cast = false;
        let name = reader.word();
        let ty = reader.ty().map_err(|e| Error { message: format!("`{name}`: {}", e.message), ..e })?;
        columns.push(DuckDbColumn { name, ty, cast: reader.cast });
        reader.take(",");
        if reader.rest.is_empty() {
            return Err(reader.unknown(row));
        }
    }
    Ok(columns)
}

struct TypeName<'a> {
    rest: &'a str,
    /// A type was met that stands for another.
    cast: bool,
}

impl<'a> TypeName<'a> {
    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_start();
        match rest.strip_prefix(token) {
            Some(after) => {
                self.rest = after;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), Error> {
        if self.take(token) { Ok(()) } else { Err(self.unknown(token)) }
    }

    fn unknown(&self, what: &str) -> Error {
        Error::new(Code::Unsupported, format!("columns of type {what} cannot be merged"))
            .with_help("cast the column in a source query: (SELECT CAST(...) ...) AS name")
    }

    /// A name, quoted or not.
    fn word(&mut self) -> String {
        self.rest = self.rest.trim_start();
        if !self.rest.starts_with('"') {
            let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest;
            return word.to_owned();
        }
        let mut word = String::new();
        let mut chars = self.rest[1..].char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            if c == '"' {
                if chars.peek().is_some_and(|(_, next)| *next == '"') {
                    chars.next();
                } else {
                    self.rest = &self.rest[at + 2..];
                    return word;
                }
            }
            word.push(c);
        }
        self.rest = "";
        word
    }

    fn number(&mut self) -> Result<u8, Error> {
        let word = self.word();
        word.parse().map_err(|_| self.unknown(&word))
    }

    fn zoned(&mut self, unit: Unit) -> Type {
        Type::Timestamp { unit, zone: Some(self.word().into()) }
    }

    fn ty(&mut self) -> Result<Type, Error> {
        let mut ty = self.base()?;
        while self.take("[") {
            // Arrays of a fixed length are lists here.
            self.word();
            self.expect("]")?;
            ty = Type::List(Box::new(ty));
        }
        Ok(ty)
    }

    fn base(&mut self) -> Result<Type, Error> {
        let word = self.word();
        let timestamp = |unit| Type::Timestamp { unit, zone: None };
        let int = |bits, signed| Type::Int { bits, signed };
        Ok(match word.to_ascii_uppercase().as_str() {
            "NULL" => Type::Null,
            "BOOLEAN" => Type::Boolean,
            "TINYINT" => int(8, true),
            "SMALLINT" => int(16, true),
            "INTEGER" => int(32, true),
            "BIGINT" => int(64, true),
            "HUGEINT" => int(128, true),
            "UTINYINT" => int(8, false),
            "USMALLINT" => int(16, false),
            "UINTEGER" => int(32, false),
            "UBIGINT" => int(64, false),
            "FLOAT" => Type::Float32,
            "DOUBLE" => Type::Float64,
            "VARCHAR" => Type::Text,
            "JSON" => {
                self.cast = true;
                Type::Text
            }
            "ENUM" => {
                self.cast = true;
                self.expect("(")?;
                let mut quoted = false;
                let end = self.rest.find(|c| {
                    quoted ^= c == '\'';
                    c == ')' && !quoted
                });
                self.rest = &self.rest[end.ok_or_else(|| self.unknown("ENUM"))? + 1..];
                Type::Text
            }
            "BLOB" => Type::Bytes,
            "DATE" => Type::Date,
            "TIME" if !self.take("WITH TIME ZONE") => Type::Time(Unit::Microsecond),
            "TIME" => return Err(self.unknown("TIME WITH TIME ZONE")),
            "TIME_NS" => Type::Time(Unit::Nanosecond),
            "TIMESTAMP" if self.take("WITH TIME ZONE") => Type::Timestamp { unit: Unit::Microsecond, zone: Some(Arc::from("UTC")) },
            "TIMESTAMP" => timestamp(Unit::Microsecond),
            "TIMESTAMP_S" => timestamp(Unit::Second),
            "TIMESTAMP_MS" => timestamp(Unit::Millisecond),
            "TIMESTAMP_NS" => timestamp(Unit::Nanosecond),
            "TIMESTAMPTZ_S" => self.zoned(Unit::Second),
            "TIMESTAMPTZ_MS" => self.zoned(Unit::Millisecond),
            "TIMESTAMPTZ_US" => self.zoned(Unit::Microsecond),
            "TIMESTAMPTZ_NS" => self.zoned(Unit::Nanosecond),
            "INTERVAL" => Type::Interval,
            "UUID" => Type::Uuid,
            "DECIMAL" => {
                self.expect("(")?;
                let precision = self.number()?;
                self.expect(",")?;
                let negative = self.take("-");
                let scale = self.number()? as i8;
                self.expect(")")?;
                Type::Decimal { precision, scale: if negative { -scale } else { scale } }
            }
            "STRUCT" => {
                self.expect("(")?;
                let mut fields = Vec::new();
                while !self.take(")") {
                    fields.push((Arc::from(self.word()), self.ty()?));
                    self.take(",");
                    if self.rest.is_empty() {
                        return Err(self.unknown("STRUCT"));
                    }
                }
                Type::Struct(fields)
            }
            "MAP" => {
                self.expect("(")?;
                let key = self.ty()?;
                self.expect(",")?;
                let value = self.ty()?;
                self.expect(")")?;
                Type::Map(Box::new(key), Box::new(value))
            }
            other => return Err(self.unknown(other)),
        })
    }
}

/// The value of a state in a type, by way of text: our functions cannot give the type of any argument.
fn value_as(state: &str, ty: &Type) -> String {
    let name = duckdb_type_name(ty);
    match ty {
        Type::List(_) | Type::Struct(_) | Type::Map(..) => {
            // A JSON text becomes a BLOB as it is, escapes and all; a VARCHAR's escapes are read.
            let text = with_text_for_bytes(ty);
            let value = format!("CAST(CAST(mergeql_json({state}) AS JSON) AS {})", duckdb_type_name(&text));
            if text == *ty { value } else { format!("CAST({value} AS {name})") }
        }
        Type::Interval => {
            let part = |unit: &str| format!("CAST(regexp_extract(crdt_value_text({state}), '(-?[0-9]+) {unit}', 1) AS BIGINT)");
            let (months, days, nanos) = (part("months"), part("days"), part("ns"));
            format!(
                "CASE WHEN crdt_value_text({state}) IS NOT NULL THEN to_months(CAST({months} AS INTEGER)) + to_days(CAST({days} AS INTEGER)) + to_microseconds({nanos} // 1000) END"
            )
        }
        Type::Bytes => format!("unhex(substr(crdt_value_text({state}), 3))"),
        Type::Date | Type::Timestamp { .. } => {
            // What is infinite there is the end of the numbers here.
            let end = |sign: i64| match ty {
                Type::Timestamp { unit, zone } => {
                    let nanos = i128::from(sign * i64::MAX) * i128::from(unit.nanos());
                    Value::Timestamp { nanos, zoned: zone.is_some() }
                }
                _ => Value::Date(sign as i32 * i32::MAX),
            };
            let [last, first] = [1, -1].map(|sign| text(&end(sign).to_string()));
            format!(
                "CAST(CASE crdt_value_text({state}) WHEN {last} THEN 'infinity' WHEN {first} THEN '-infinity' \
                 ELSE crdt_value_text({state}) END AS {name})"
            )
        }
        _ => format!("CAST(crdt_value_text({state}) AS {name})"),
    }
}

/// A value with canonical floats and the entries of maps in order, at any depth: our functions cannot give the type of any argument.
fn canonical(expr: &str, ty: &Type, depth: usize) -> String {
    let element = format!("x{depth}");
    let of = |expr: &str, ty: &Type| if ty.has_float() || ty.has_map() { canonical(expr, ty, depth + 1) } else { expr.to_owned() };
    match ty {
        Type::List(inner) if !inner.is_scalar() => {
            format!("list_transform({expr}, lambda {element}: {})", of(&element, inner))
        }
        Type::Struct(fields) => {
            let field = |(name, ty): &(Arc<str>, Type)| {
                format!("{}: {}", text(name), of(&format!("struct_extract({expr}, {})", text(name)), ty))
            };
            format!("CASE WHEN {expr} IS NULL THEN NULL ELSE {{{}}} END", list(fields.iter().map(field)))
        }
        Type::Map(key, value) => {
            let part = |name: &str, ty: &Type| {
                format!("{}: {}", text(name), of(&format!("struct_extract({element}, {})", text(name)), ty))
            };
            format!(
                "CASE WHEN {expr} IS NULL THEN NULL ELSE map_from_entries(list_sort(list_transform(map_entries({expr}), lambda {element}: {{{}, {}}}))) END",
                part("key", key),
                part("value", value)
            )
        }
        _ => format!("mergeql_canonical({expr})"),
    }
}

impl Dialect for DuckDb {
    fn cast(&self, expr: &str, from: &Type, to: &Type) -> Option<String> {
        match (from, to) {
            // Columns and sessions may have collations.
            (Type::Text, Type::Text) => Some(format!("{expr} COLLATE \"binary\"")),
            (from, to) if from == to => None,
            (Type::Int { .. }, Type::Float64) => Some(format!("mergeql_exact_double({expr})")),
            (Type::List(_) | Type::Struct(_) | Type::Map(..), _) => {
                let name = duckdb_type_name(to);
                Some(format!("CASE WHEN mergeql_widens({expr}, {}) THEN CAST({expr} AS {name}) END", text(&name)))
            }
            _ => Some(format!("CAST({expr} AS {})", duckdb_type_name(to))),
        }
    }

    fn null(&self, ty: &Type) -> String {
        format!("CAST(NULL AS {})", duckdb_type_name(ty))
    }

    fn resolved(&self, value: String, ty: &Type) -> String {
        match ty {
            Type::Text => format!("({value}) COLLATE \"binary\""),
            // As DuckDB has a column of which nothing is known.
            Type::Null => format!("CAST({value} AS {})", duckdb_type_name(ty)),
            _ => value,
        }
    }

    fn key(&self, expr: &str, ty: &Type) -> Option<String> {
        (ty.has_float() || ty.has_map()).then(|| canonical(expr, ty, 0))
    }

    fn confuses(&self, ty: &Type) -> bool {
        has_interval(ty)
    }

    fn record(&self, fields: &[(&str, String)]) -> String {
        format!("{{{}}}", list(fields.iter().map(|(name, expr)| format!("{}: {expr}", text(name)))))
    }

    fn value_like(&self, cell: &Cell, state: &str, _: &str) -> String {
        match &cell.fold {
            Some(fold) => self.folded(fold, &value_as(state, &Type::List(Box::new(cell.ty.clone()))), &cell.ty),
            None => value_as(state, &cell.ty),
        }
    }

    fn typed(&self, state: &str, input: &Type, result: &Type) -> Option<String> {
        if DuckDb::is_native(input) && DuckDb::is_native(result) {
            return None;
        }
        Some(value_as(state, result))
    }

    fn strongest(&self, order: Order, ty: &Type, value: &str, versions: &[String]) -> Option<String> {
        if DuckDb::is_native(ty) {
            return None;
        }
        let words: Vec<&str> =
            [("least", order.least), ("oldest", order.flip_version)].into_iter().filter(|(_, is)| *is).map(|(w, _)| w).collect();
        let inputs = list(std::iter::once(value.to_owned()).chain(versions.iter().cloned()));
        // Candidates of one rank may be written in several ways: with -0.0, with entries in another order.
        let shown = self.key(value, ty).unwrap_or_else(|| value.to_owned());
        Some(format!("arg_max({shown}, mergeql_rank({}, {inputs}))", text(&words.join(" "))))
    }

    fn expression(&self, expr: &Expr) -> String {
        let mut expr = expr.clone();
        // A pattern that comes with the rows has the escape that the other hosts know.
        let _ = visit_expressions_mut(&mut expr, |e| {
            if let Expr::Like { escape_char, .. } | Expr::ILike { escape_char, .. } = e {
                escape_char.get_or_insert_with(|| Literal::SingleQuotedString("\\".to_owned()).into());
            }
            ControlFlow::<()>::Continue(())
        });
        divided(&expr, "mergeql_divide")
    }

    fn most_literals(&self) -> usize {
        MOST_LITERALS
    }

    fn repeats(&self, keys: &[(String, &Type)]) -> Option<String> {
        Some(match keys {
            [(key, Type::Int { bits: 64, .. })] => format!("mergeql_repeats({key})"),
            [(key, Type::Int { bits: 8..=32, .. })] => format!("mergeql_repeats(CAST({key} AS BIGINT))"),
            // Equal keys have equal hashes; others that do are grouped with them.
            _ => format!("mergeql_repeats(hash({}))", list(keys.iter().map(|(key, _)| key.clone()))),
        })
    }

    fn folded(&self, fold: &Fold, values: &str, _: &Type) -> String {
        let (left, right) = (quote(&fold.left), quote(&fold.right));
        format!("list_reduce({values}, lambda {left}, {right}: {})", step(fold, self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_read_back_from_their_names() {
        for name in [
            "BOOLEAN",
            "UBIGINT",
            "DECIMAL(18,3)",
            "TIMESTAMP WITH TIME ZONE",
            "TIMESTAMP_NS",
            "INTEGER[][]",
            "STRUCT(\"a\" INTEGER, \"we \"\"ird\" VARCHAR[])",
            "MAP(VARCHAR, STRUCT(\"x\" DOUBLE))",
        ] {
            let ty = duckdb_type(name).unwrap();
            assert_eq!(duckdb_type(&duckdb_type_name(&ty)).unwrap(), ty, "{name}");
            assert_eq!(duckdb_type_name(&ty).replace(", ", ","), name.replace(", ", ","));
        }
        assert_eq!(duckdb_type("INTEGER[3]").unwrap(), duckdb_type("INTEGER[]").unwrap());
        let columns = duckdb_columns("STRUCT(id INTEGER, \"e )\" ENUM('a)', 'it''s'), x DECIMAL(9,2)[])").unwrap();
        let shown: Vec<_> = columns.iter().map(|c| (c.name.as_str(), duckdb_type_name(&c.ty), c.cast)).collect();
        let expected = [("id", "INTEGER", false), ("e )", "VARCHAR", true), ("x", "DECIMAL(9, 2)[]", false)];
        assert_eq!(shown, expected.map(|(n, t, c)| (n, t.to_owned(), c)));
        let zoned = |unit, zone: &str| Type::Timestamp { unit, zone: Some(zone.into()) };
        for ty in [
            Type::Null,
            Type::Decimal { precision: 5, scale: -2 },
            zoned(Unit::Nanosecond, "UTC"),
            Type::Map(Box::new(Type::Text), Box::new(zoned(Unit::Second, "+02:00"))),
            Type::List(Box::new(zoned(Unit::Microsecond, "Europe/\"Berlin"))),
        ] {
            assert_eq!(duckdb_type(&exact_type_name(&ty)).unwrap(), ty);
        }
        for name in ["ENUM('a'", "TIME WITH TIME ZONE", "UNION(a INTEGER)", "BIT", "STRUCT(a", ""] {
            assert_eq!(duckdb_type(name).unwrap_err().code, Code::Unsupported, "{name}");
        }
    }
}
