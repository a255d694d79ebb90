//! Which of two versions is stronger.

use crate::aggregate::Call;
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::value::Value;
use std::cmp::Ordering;
use std::sync::Arc;

/// The order of versions: part by part; a NULL or NaN part is the weakest, in either direction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VersionOrder {
    /// The oldest version wins rather than the newest.
    pub oldest: bool,
    /// Parts that count downwards; absent parts count upwards.
    pub descending: Arc<[bool]>,
}

/// Reads a version as [`VersionOrder::parts`] makes them.
///
/// # Errors
/// `corrupt_state` for another form of it, in which two equal states would have other bytes.
pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Vec<Value>> {
    let parts = r.values()?;
    if parts.last().is_some_and(Value::is_null) || parts.iter().any(Value::is_nan) {
        return Err(Error::corrupt_state("a version in the state is not in its shortest form"));
    }
    Ok(parts)
}

impl VersionOrder {
    /// The order that a call asks for (`descending`: a list of flags).
    ///
    /// # Errors
    /// `invalid_argument` if the list holds something else.
    pub fn configure(oldest: bool, call: &Call) -> Result<VersionOrder> {
        if let Some(other) = call.arg("descending").filter(|flags| !matches!(flags, Value::List(_))) {
            return Err(Error::invalid_argument(format!("`descending` is a list of true or false, not {other}")));
        }
        let mut descending = Vec::new();
        for flag in call.list("descending") {
            match flag {
                Value::Bool(b) => descending.push(*b),
                other => return Err(Error::invalid_argument(format!("`descending` lists true or false, not {other}"))),
            }
        }
        while descending.last() == Some(&false) {
            descending.pop();
        }
        Ok(VersionOrder { oldest, descending: descending.into() })
    }

    /// Whether the greater value of part `i` is weaker.
    pub fn flips(&self, i: usize) -> bool {
        self.oldest ^ self.descending.get(i).copied().unwrap_or(false)
    }

    /// `Greater` if `a` is stronger; versions that are equal but for how numbers are written (1 and 1.0) are told apart.
    pub fn compare(&self, a: &[Value], b: &[Value]) -> Ordering {
        self.in_order(a, b, Value::cmp)
    }

    /// `Greater` if `a` is stronger, as numbers are worth.
    pub fn compare_worth(&self, a: &[Value], b: &[Value]) -> Ordering {
        self.in_order(a, b, Value::compare_worth)
    }

    #[inline]
    fn in_order(&self, a: &[Value], b: &[Value], compare: impl Fn(&Value, &Value) -> Ordering) -> Ordering {
        for i in 0..a.len().max(b.len()) {
            let (x, y) = (a.get(i).unwrap_or(&Value::Null), b.get(i).unwrap_or(&Value::Null));
            let order = match (x.is_null(), y.is_null()) {
                (false, false) if self.flips(i) => compare(y, x),
                _ => compare(x, y),
            };
            if order != Ordering::Equal {
                return order;
            }
        }
        Ordering::Equal
    }

    /// The parts of a version as states keep them: NaN is NULL, trailing NULLs are left out.
    pub fn parts(row: &[Value]) -> Vec<Value> {
        let mut parts: Vec<Value> = row.iter().map(|v| if v.is_nan() { Value::Null } else { v.clone() }).collect();
        while parts.last().is_some_and(Value::is_null) {
            parts.pop();
        }
        parts
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.byte(u8::from(self.oldest));
        w.length(self.descending.len());
        self.descending.iter().for_each(|d| w.byte(u8::from(*d)));
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<VersionOrder> {
        let oldest = r.byte()? != 0;
        let n = r.length()?;
        let descending: Vec<bool> = r.take(n)?.iter().map(|b| *b != 0).collect();
        if descending.last() == Some(&false) {
            return Err(Error::corrupt_state("a version order in the state is not in its shortest form"));
        }
        Ok(VersionOrder { oldest, descending: descending.into() })
    }
}
