//! The canonical text of a value (used by `concat`, `RETURNING CONFLICTS`) and its JSON (used by `crdt_value`, `json`).

use super::Value;
use crate::codec::MAX_DEPTH;
use crate::error::{Code, Error, Result};
use std::fmt::{self, Write};
use std::sync::Arc;

impl fmt::Display for Value {
    /// Canonical text: the same on every host. Floats print as the shortest digits that read back equal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("NULL"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::Int(v) => write!(f, "{v}"),
            Value::Float(v) => write_float(f, *v),
            Value::Decimal { unscaled, scale } => write_decimal(f, *unscaled, *scale),
            Value::Text(v) => f.write_str(v),
            Value::Bytes(v) => {
                f.write_str("\\x")?;
                v.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
            Value::Date(days) => write_date(f, i64::from(*days)),
            Value::Time(nanos) => write_time(f, *nanos),
            Value::Timestamp { nanos, zoned } => {
                let days = nanos.div_euclid(86_400_000_000_000);
                write_date(f, i64::try_from(days).unwrap_or(i64::MAX))?;
                f.write_char('T')?;
                write_time(f, nanos.rem_euclid(86_400_000_000_000) as i64)?;
                if *zoned { f.write_char('Z') } else { Ok(()) }
            }
            Value::Interval { months, days, nanos } => write!(f, "{months} months {days} days {nanos} ns"),
            Value::Uuid(id) => {
                for (i, b) in id.iter().enumerate() {
                    write!(f, "{}{b:02x}", if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" })?;
                }
                Ok(())
            }
            Value::List(_) | Value::Struct(_) | Value::Map(_) => write_json(f, self),
        }
    }
}

fn write_float(f: &mut impl Write, v: f64) -> fmt::Result {
    if v.is_nan() {
        f.write_str("NaN")
    } else if v.is_infinite() {
        f.write_str(if v > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        write!(f, "{v:?}")
    }
}

fn write_decimal(f: &mut impl Write, unscaled: i128, scale: u8) -> fmt::Result {
    if scale == 0 {
        return write!(f, "{unscaled}");
    }
    let digits = format!("{:0width$}", unscaled.unsigned_abs(), width = usize::from(scale) + 1);
    let (whole, fraction) = digits.split_at(digits.len() - usize::from(scale));
    write!(f, "{}{whole}.{fraction}", if unscaled < 0 { "-" } else { "" })
}

/// Proleptic Gregorian date of a day number (H. Hinnant, "chrono-compatible low-level date algorithms", civil_from_days).
fn write_date(f: &mut impl Write, days: i64) -> fmt::Result {
    let z = i128::from(days) + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    write!(f, "{year:04}-{month:02}-{day:02}")
}

fn write_time(f: &mut impl Write, nanos: i64) -> fmt::Result {
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    write!(f, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)?;
    if fraction > 0 {
        let digits = format!("{fraction:09}");
        write!(f, ".{}", digits.trim_end_matches('0'))?;
    }
    Ok(())
}

/// A string as a JSON string literal.
pub fn escape_json(f: &mut impl Write, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            c if (c as u32) < 0x20 => write!(f, "\\u{:04x}", c as u32)?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

/// Whether keys are written apart as the names of a JSON object.
fn tells_keys_apart(entries: &[(Value, Value)]) -> bool {
    let mut names = std::collections::HashSet::new();
    entries.iter().all(|(key, _)| matches!(key, Value::Text(_)))
        || entries.iter().all(|(key, _)| matches!(key, Value::Int(_)))
        || entries.iter().all(|(key, _)| names.insert(key.to_string()))
}

fn write_json(f: &mut impl Write, value: &Value) -> fmt::Result {
    match value {
        Value::Null => f.write_str("null"),
        Value::Bool(_) | Value::Int(_) | Value::Decimal { .. } => write!(f, "{value}"),
        Value::Float(v) if v.is_finite() => write_float(f, *v),
        Value::List(items) => {
            f.write_char('[')?;
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    f.write_char(',')?;
                }
                write_json(f, item)?;
            }
            f.write_char(']')
        }
        Value::Struct(fields) => {
            f.write_char('{')?;
            for (i, (name, field)) in fields.iter().enumerate() {
                if i > 0 {
                    f.write_char(',')?;
                }
                escape_json(f, name)?;
                f.write_char(':')?;
                write_json(f, field)?;
            }
            f.write_char('}')
        }
        // Keys that are written alike, as 1 and '1' are, would be one.
        Value::Map(entries) if !tells_keys_apart(entries) => {
            let pairs = entries.iter().map(|(key, entry)| Value::List(vec![key.clone(), entry.clone()]));
            write_json(f, &Value::List(pairs.collect()))
        }
        Value::Map(entries) => {
            f.write_char('{')?;
            for (i, (key, entry)) in entries.iter().enumerate() {
                if i > 0 {
                    f.write_char(',')?;
                }
                escape_json(f, &key.to_string())?;
                f.write_char(':')?;
                write_json(f, entry)?;
            }
            f.write_char('}')
        }
        other => escape_json(f, &other.to_string()),
    }
}

impl Value {
    /// Compact JSON; object keys sorted. Values that JSON lacks (dates, bytes, NaN ...) become strings of their canonical text.
    ///
    /// ```
    /// use mergeql_udfs::Value;
    /// assert_eq!(Value::List(vec![Value::Int(1), Value::text("a\"b")]).to_json(), r#"[1,"a\"b"]"#);
    /// ```
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        write_json(&mut out, self).expect("invariant: writing to a String cannot fail");
        out
    }
}

/// JSON text as a value: objects become structs, whole numbers of up to 128 bits integers, other numbers floats.
///
/// # Errors
/// `invalid_argument` with the parser's own message, or for a number that no double comes near; `limit_exceeded` for what nests too deep.
pub fn from_json(text: &str) -> Result<Value> {
    let broken = |e: serde_json::Error| Error::invalid_argument(format!("this is not JSON: {e}"));
    convert_json(serde_json::from_str(text).map_err(broken)?, 0)
}

fn convert_json(json: serde_json::Value, depth: usize) -> Result<Value> {
    if depth > MAX_DEPTH / 2 {
        return Err(Error::new(Code::LimitExceeded, format!("JSON nests deeper than {}", MAX_DEPTH / 2)));
    }
    Ok(match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(v) => Value::Bool(v),
        serde_json::Value::Number(n) => {
            let text = n.to_string();
            match (text.parse::<i128>(), text.parse::<f64>()) {
                (Ok(v), _) => Value::Int(v),
                (_, Ok(v)) if v.is_finite() => Value::float(v),
                _ => {
                    return Err(Error::invalid_argument(format!("the JSON number {text} is beyond the range of doubles"))
                        .with_help("write it as a JSON string"));
                }
            }
        }
        serde_json::Value::String(s) => Value::text(s),
        serde_json::Value::Array(items) => {
            Value::List(items.into_iter().map(|item| convert_json(item, depth + 1)).collect::<Result<_>>()?)
        }
        serde_json::Value::Object(fields) => {
            let field = |(k, v)| Ok((Arc::from(k), convert_json(v, depth + 1)?));
            Value::record(fields.into_iter().map(field).collect::<Result<_>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_text() {
        let cases = [
            (Value::Decimal { unscaled: -5, scale: 2 }, "-0.05"),
            (Value::Decimal { unscaled: 1050, scale: 2 }, "10.50"),
            (Value::float(1.0), "1.0"),
            (Value::Date(19_782), "2024-02-29"),
            (Value::Date(-719_529), "-001-12-31"),
            (Value::Timestamp { nanos: 1_500_000_000, zoned: true }, "1970-01-01T00:00:01.5Z"),
            (Value::Timestamp { nanos: -1, zoned: false }, "1969-12-31T23:59:59.999999999"),
            (Value::Bytes([1, 255].into()), "\\x01ff"),
        ];
        for (value, text) in cases {
            assert_eq!(value.to_string(), text);
        }
    }

    #[test]
    fn json_reads_back() {
        let text = r#"{"a":[1,2.5,null,true],"b":{"c":"x\ny"}}"#;
        assert_eq!(from_json(text).expect("valid").to_json(), text);
    }
}
