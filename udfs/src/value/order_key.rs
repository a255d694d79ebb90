//! Values as byte strings whose order is the values' order, for hosts that sort and compare bytes faster than typed values.
//!
//! Within one column type `key(a) < key(b)` exactly if `a < b` (R2). Numbers of different kinds do not share a column, so their keys
//! need not compare.

use super::Value;
use crate::fast::best::Order;

/// The key of a value.
pub fn order_key(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    push(&mut out, value);
    out
}

/// A candidate as bytes: the greatest is the one that wins in this order. `None` for NULL, which is no candidate.
///
/// ```
/// use mergeql_udfs::{Order, Value, value::order_key::rank_key};
/// let newest = Order { least: false, flip_version: false };
/// let key = |v: i128, ts: i128| rank_key(newest, &Value::Int(v), &[Value::Int(ts)]);
/// assert!(key(1, 2) > key(9, 1) && key(9, 2) > key(1, 2));
/// ```
pub fn rank_key(order: Order, value: &Value, versions: &[Value]) -> Option<Vec<u8>> {
    if value.is_null() {
        return None;
    }
    let mut out = vec![u8::from(!value.is_nan())];
    let turn = |bytes: &mut [u8]| bytes.iter_mut().for_each(|b| *b = !*b);
    for version in versions {
        let start = out.len();
        push(&mut out, if version.is_nan() { &Value::Null } else { version });
        // No version is the weakest, either way.
        if order.flip_version && out[start] != 0 {
            turn(&mut out[start..]);
        }
    }
    let start = out.len();
    push(&mut out, value);
    if order.least {
        turn(&mut out[start..]);
    }
    Some(out)
}

/// An `f64` as an integer of the same order; NaN lowest.
#[inline]
pub fn float_bits(v: f64) -> u64 {
    if v.is_nan() {
        return 0;
    }
    let bits = v.to_bits();
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

/// The float that [`float_bits`] came from.
#[inline]
pub fn float_from_bits(bits: u64) -> f64 {
    if bits == 0 {
        f64::NAN
    } else if bits >> 63 == 1 {
        f64::from_bits(bits & !(1 << 63))
    } else {
        f64::from_bits(!bits)
    }
}

fn push(out: &mut Vec<u8>, value: &Value) {
    out.push(value.rank());
    match value {
        Value::Null => {}
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::Int(v) => push_i128(out, *v),
        Value::Float(v) => out.extend(float_bits(*v).to_be_bytes()),
        Value::Decimal { unscaled, .. } => push_i128(out, *unscaled),
        Value::Text(v) => push_bytes(out, v.as_bytes()),
        Value::Bytes(v) => push_bytes(out, v),
        Value::Date(_) | Value::Timestamp { .. } => {
            let (instant, kind) = value.instant();
            push_i128(out, instant);
            out.push(kind);
        }
        Value::Time(v) => out.extend(v.to_be_bytes()),
        Value::Interval { months, days, nanos } => {
            push_i128(out, i128::from(*months));
            push_i128(out, i128::from(*days));
            push_i128(out, i128::from(*nanos));
        }
        Value::Uuid(v) => out.extend(v),
        Value::List(items) => {
            for item in items {
                out.push(1);
                push(out, item);
            }
            out.push(0);
        }
        Value::Struct(fields) => {
            for (name, field) in fields {
                out.push(1);
                push_bytes(out, name.as_bytes());
                push(out, field);
            }
            out.push(0);
        }
        Value::Map(entries) => {
            for (key, entry) in entries {
                out.push(1);
                push(out, key);
                push(out, entry);
            }
            out.push(0);
        }
    }
}

fn push_i128(out: &mut Vec<u8>, v: i128) {
    out.extend(((v as u128) ^ (1 << 127)).to_be_bytes());
}

/// Zero bytes are escaped as `00 ff`; `00 00` ends the string, so that a prefix sorts first.
fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    for &b in bytes {
        out.push(b);
        if b == 0 {
            out.push(0xff);
        }
    }
    out.extend([0, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_as_values() {
        let columns: Vec<Vec<Value>> = vec![
            [i128::MIN, -1, 0, 5].map(Value::Int).into(),
            [f64::NAN, f64::NEG_INFINITY, -1.5, 0.0, 2.0, f64::INFINITY].map(Value::float).into(),
            ["", "\0", "\0a", "a", "a\0", "aa", "b"].map(Value::text).into(),
            vec![
                Value::List(vec![]),
                Value::List(vec![Value::Null]),
                Value::List(vec![Value::Int(1)]),
                Value::List(vec![Value::Int(1), Value::Int(0)]),
                Value::List(vec![Value::Int(2)]),
            ],
        ];
        for column in columns {
            assert!(column.windows(2).all(|w| w[0] < w[1]));
            assert!(column.windows(2).all(|w| order_key(&w[0]) < order_key(&w[1])));
        }
    }
}
