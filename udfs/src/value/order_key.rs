//! Values as byte strings whose order is the values' order, for hosts that sort and compare bytes faster than typed values.
//!
//! Within one column type `key(a) < key(b)` exactly if `a < b` (R2). What values are worth comes first, and behind it what tells those of
//! equal worth apart, as 1.5 and 1.50. Numbers of different kinds do not share a column, so their keys need not compare, but where
//! columns have no types.

use super::Value;
use crate::fast::best::Order;

/// The key of a value.
pub fn order_key(value: &Value) -> Vec<u8> {
    let mut key = Key::default();
    key.push(value);
    key.finish()
}

/// As [`order_key`], where integers and floats share a column.
pub fn mixed_order_key(value: &Value) -> Vec<u8> {
    let mut key = Key { mixed: true, ..Key::default() };
    key.push(value);
    key.finish()
}

/// A key as it grows.
#[derive(Default)]
struct Key {
    /// What the value is worth.
    worth: Vec<u8>,
    /// What tells it from others of the same worth.
    form: Vec<u8>,
    mixed: bool,
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
    let mut forms = Vec::new();
    for version in versions {
        let mut key = Key::default();
        key.push(if version.is_nan() { &Value::Null } else { version });
        // No version is the weakest, either way.
        if order.flip_version && key.worth[0] != 0 {
            turn(&mut key.worth);
            turn(&mut key.form);
        }
        out.extend(key.worth);
        forms.extend(key.form);
    }
    let start = out.len();
    out.extend(order_key(value));
    if order.least {
        turn(&mut out[start..]);
    }
    out.extend(forms);
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

impl Key {
    fn finish(self) -> Vec<u8> {
        let mut out = self.worth;
        out.extend(self.form);
        out
    }

    fn push(&mut self, value: &Value) {
        let out = &mut self.worth;
        out.push(value.rank());
        match value {
            Value::Null => {}
            Value::Bool(v) => out.push(u8::from(*v)),
            Value::Int(v) if self.mixed => {
                push_magnitude(out, *v < 0, v.unsigned_abs(), |_| {});
                self.form.push(0);
            }
            Value::Int(v) => push_i128(out, *v),
            Value::Float(v) if self.mixed => {
                push_float(out, *v);
                self.form.push(1);
            }
            Value::Float(v) => out.extend(float_bits(*v).to_be_bytes()),
            Value::Decimal { unscaled, scale } => {
                push_decimal(out, *unscaled, *scale);
                self.form.push(*scale);
            }
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
                    self.worth.push(1);
                    self.push(item);
                }
                self.worth.push(0);
            }
            Value::Struct(fields) => {
                for (name, field) in fields {
                    self.worth.push(1);
                    push_bytes(&mut self.worth, name.as_bytes());
                    self.push(field);
                }
                self.worth.push(0);
            }
            Value::Map(entries) => {
                for (key, entry) in entries {
                    self.worth.push(1);
                    self.push(key);
                    self.push(entry);
                }
                self.worth.push(0);
            }
        }
    }
}

/// A number as its sign, its whole part and what `fraction` writes of the rest.
fn push_magnitude(out: &mut Vec<u8>, negative: bool, whole: u128, fraction: impl FnOnce(&mut Vec<u8>)) {
    out.push(if negative { 1 } else { 2 });
    let start = out.len();
    out.extend(whole.to_be_bytes());
    fraction(out);
    out.push(0);
    if negative {
        out[start..].iter_mut().for_each(|b| *b = !*b);
    }
}

/// A decimal of any scale: the digits of its fraction without zeros at their end, so that 1.5 and 1.50 are worth the same.
fn push_decimal(out: &mut Vec<u8>, unscaled: i128, scale: u8) {
    let unit = 10u128.checked_pow(scale.into());
    let (whole, rest) =
        unit.map_or((0, unscaled.unsigned_abs()), |unit| (unscaled.unsigned_abs() / unit, unscaled.unsigned_abs() % unit));
    push_magnitude(out, unscaled < 0, whole, |out| {
        if rest > 0 {
            let digits = format!("{rest:0width$}", width = usize::from(scale));
            out.extend(digits.trim_end_matches('0').as_bytes());
        }
    });
}

/// A float where there are integers too. What is beyond the greatest of these compares by its own bits.
fn push_float(out: &mut Vec<u8>, v: f64) {
    if v.is_nan() {
        return out.push(0);
    }
    // A cast ends at the greatest integer.
    let whole = v.abs() as u128;
    let rest = if whole == u128::MAX { v.abs() } else { v.abs().fract() };
    push_magnitude(out, v < 0.0, whole, |out| {
        if rest > 0.0 {
            out.push(1);
            out.extend(float_bits(rest).to_be_bytes());
        }
    });
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
            [(-2, 0), (-15, 1), (-150, 2), (-5, 40), (0, 0), (5, 40), (1, 3), (15, 1), (150, 2), (2, 0), (i128::MAX, 0)]
                .map(|(unscaled, scale)| Value::Decimal { unscaled, scale })
                .into(),
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

    #[test]
    fn keys_of_mixed_numbers_order_as_values() {
        let float = Value::float;
        let ascending = [
            float(f64::NAN),
            float(f64::NEG_INFINITY),
            float(-1e300),
            Value::Int(-2),
            float(-1.5),
            float(-1e-300),
            Value::Int(0),
            float(0.0),
            float(0.5),
            Value::Int(1),
            float(1.0),
            float(1.5),
            float(9007199254740992.0),
            Value::Int(9007199254740993),
            Value::Int(i128::MAX),
            float(1e300),
            float(f64::INFINITY),
        ];
        assert!(ascending.windows(2).all(|w| w[0] < w[1] && mixed_order_key(&w[0]) < mixed_order_key(&w[1])));
        let list = |v: &Value, next: i128| Value::List(vec![v.clone(), Value::Int(next)]);
        let (one, same) = (list(&Value::Int(1), 5), list(&float(1.0), 4));
        assert!(same < one && mixed_order_key(&same) < mixed_order_key(&one));
    }
}
