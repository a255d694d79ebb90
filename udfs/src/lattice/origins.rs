//! Maps from an origin to what that origin last said: the lattice of counters. A replay of an origin's rows adds nothing.

use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::lattice::blocks::Blocks;
use crate::types::Type;
use crate::value::packed::{self, with_bytes};
use crate::value::{Exact, Value};
use std::borrow::Cow;
use std::cmp::Ordering;

/// What each origin said, a lattice of its own that the strategy chooses; in the order of origins. Most groups have few, which lie side by
/// side; many are in blocks, so that one more costs the logarithm of their number.
#[derive(Debug, Clone)]
pub enum Origins<E> {
    /// At most [`FEW`].
    Few(Vec<(Value, E)>),
    /// More than that.
    Many(Blocks<E>),
}

/// How many entries lie side by side.
const FEW: usize = 64;

impl<E> Default for Origins<E> {
    fn default() -> Self {
        Origins::Few(Vec::new())
    }
}

impl<E: PartialEq> PartialEq for Origins<E> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<E> Origins<E> {
    /// What an origin said, changed by `more` if it is known, else made by `new`.
    pub fn say(&mut self, origin: &Value, more: impl FnOnce(&mut E), new: impl FnOnce() -> E) {
        match self {
            Origins::Few(entries) => match entries.binary_search_by(|(known, _)| known.cmp(origin)) {
                Ok(at) => more(&mut entries[at].1),
                Err(at) => {
                    entries.insert(at, (origin.clone(), new()));
                    self.settle();
                }
            },
            Origins::Many(entries) => with_bytes(origin, |origin| entries.say(origin, more, new)),
        }
    }

    /// Few that have become many move into blocks.
    fn settle(&mut self) {
        if let Origins::Few(entries) = self
            && entries.len() > FEW
        {
            let mut blocks = Blocks::default();
            std::mem::take(entries)
                .into_iter()
                .for_each(|(origin, entry)| with_bytes(&origin, |origin| blocks.push(origin, entry)));
            *self = Origins::Many(blocks);
        }
    }

    /// Adds an origin behind all others.
    fn push(&mut self, origin: Value, entry: E) {
        match self {
            Origins::Few(entries) => {
                entries.push((origin, entry));
                self.settle();
            }
            Origins::Many(entries) => with_bytes(&origin, |origin| entries.push(origin, entry)),
        }
    }

    /// What an origin said.
    pub fn get(&self, origin: &Value) -> Option<&E> {
        match self {
            Origins::Few(entries) => entries.binary_search_by(|(known, _)| known.cmp(origin)).ok().map(|at| &entries[at].1),
            Origins::Many(entries) => with_bytes(origin, |origin| entries.get(origin)),
        }
    }

    /// Each origin and what it said, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Cow<'_, Value>, &E)> + Clone {
        let (few, many) = match self {
            Origins::Few(entries) => (Some(entries), None),
            Origins::Many(entries) => (None, Some(entries)),
        };
        let few = few.into_iter().flatten().map(|(origin, entry)| (Cow::Borrowed(origin), entry));
        let many = many.into_iter().flat_map(Blocks::iter).map(|(origin, entry)| (Cow::Owned(packed::value(origin)), entry));
        few.chain(many)
    }

    /// What each origin said.
    pub fn values(&self) -> impl Iterator<Item = &E> + Clone {
        let (few, many) = match self {
            Origins::Few(entries) => (Some(entries), None),
            Origins::Many(entries) => (None, Some(entries)),
        };
        few.into_iter().flatten().map(|(_, entry)| entry).chain(many.into_iter().flat_map(Blocks::iter).map(|(_, entry)| entry))
    }

    /// How many origins there are.
    pub fn len(&self) -> usize {
        match self {
            Origins::Few(entries) => entries.len(),
            Origins::Many(entries) => entries.len(),
        }
    }

    /// Nobody said anything?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<E: Clone + PartialEq> Origins<E> {
    /// Only the origins that say something else than in the other map.
    pub fn news(&self, since: &Self) -> Self {
        let mut news = Origins::default();
        for (origin, entry) in self.iter().filter(|(origin, entry)| since.get(origin) != Some(*entry)) {
            news.push(origin.into_owned(), entry.clone());
        }
        news
    }
}

/// The origin of a row, which must be there.
///
/// # Errors
/// `invalid_argument` if it is NULL.
pub fn origin(value: &Value) -> Result<&Value> {
    if value.is_null() {
        return Err(Error::invalid_argument("the origin of a counted value is NULL")
            .with_help("give every row an origin, or leave the origin column out to count per source"));
    }
    Ok(value)
}

/// A number, as counters take it.
///
/// # Errors
/// `type_mismatch` for anything else.
pub fn number(value: &Value) -> Result<&Value> {
    match value {
        Value::Int(_) | Value::Float(_) | Value::Decimal { .. } => Ok(value),
        other => Err(Error::type_mismatch(format!("a {} cannot be counted: {other}", other.kind()))),
    }
}

/// A number that is not negative, as grow-only counters take it.
///
/// # Errors
/// `invalid_argument` if it is negative, `type_mismatch` if it is no number.
pub fn grown(value: &Value) -> Result<&Value> {
    if *number(value)? < Value::Int(0) && !value.is_nan() {
        return Err(Error::invalid_argument(format!("a grow-only counter cannot hold {value}"))
            .with_help("use `gauge` for values that fall, or `pncounter` for increments and decrements"));
    }
    Ok(value)
}

/// The exact sum of numbers, in the kind of its inputs: integer, decimal at the finest scale, or float rounded once.
///
/// # Errors
/// `invalid_argument` on overflow of 128 bits.
pub fn sum<'a>(values: impl Iterator<Item = &'a Value> + Clone) -> Result<Value> {
    // Nearly always.
    let integers = values.clone().try_fold(0i128, |total, value| match value {
        Value::Int(v) => total.checked_add(*v),
        _ => None,
    });
    if let Some(total) = integers {
        return Ok(Value::Int(total));
    }
    let finite = |value: &Value| !matches!(value, Value::Float(v) if !v.is_finite());
    let (mut exact, mut float, mut scale) = (Exact::default(), false, None);
    for value in values.clone() {
        exact.add(value);
        match value {
            Value::Float(_) => float = true,
            Value::Decimal { scale: s, .. } => scale = scale.max(Some(*s)),
            _ => {}
        }
    }
    if float {
        let sum = exact.quotient(1);
        if sum.is_finite() || !values.clone().all(finite) {
            return Ok(Value::float(sum));
        }
        return Err(Error::invalid_argument("the sum does not fit into a double"));
    }
    let overflow = || Error::invalid_argument("the sum does not fit into 128 bits");
    match scale {
        None => Ok(Value::Int(exact.scaled(0).ok_or_else(overflow)?)),
        Some(scale) => Ok(Value::Decimal { unscaled: exact.scaled(scale).ok_or_else(overflow)?, scale }),
    }
}

/// The exact mean of numbers: decimals with four more digits, rounded half away from zero; else a float rounded once.
///
/// # Errors
/// `invalid_argument` on overflow of 128 bits.
pub fn mean<'a>(values: impl Iterator<Item = &'a Value>) -> Result<Value> {
    let (mut exact, mut count, mut float, mut scale) = (Exact::default(), 0u64, false, None);
    for value in values {
        exact.add(value);
        count += 1;
        match value {
            Value::Float(_) => float = true,
            Value::Decimal { scale: s, .. } => scale = scale.max(Some(*s)),
            _ => {}
        }
    }
    match (count, scale) {
        (0, _) => Ok(Value::Null),
        (_, Some(scale)) if !float => {
            let scale = mean_scale(scale);
            let unscaled =
                exact.over(count, scale).ok_or_else(|| Error::invalid_argument("the mean does not fit into 128 bits"))?;
            Ok(Value::Decimal { unscaled, scale })
        }
        _ => Ok(Value::float(exact.quotient(count))),
    }
}

fn mean_scale(scale: u8) -> u8 {
    (scale + 4).min(38)
}

/// The type of a sum: 64-bit integers of the same sign, decimals of 38 digits, doubles.
pub fn sum_type(ty: &Type) -> Type {
    match ty {
        Type::Int { bits: 128, .. } => Type::Decimal { precision: 38, scale: 0 },
        Type::Int { signed: false, .. } => Type::UINT64,
        Type::Float32 | Type::Float64 => Type::Float64,
        Type::Decimal { precision: 0, .. } => Type::NUMERIC,
        Type::Decimal { scale, .. } => Type::Decimal { precision: 38, scale: (*scale).max(0) },
        _ => Type::INT64,
    }
}

/// The type of a mean.
pub fn mean_type(ty: &Type) -> Type {
    match ty {
        Type::Decimal { precision: 0, .. } => Type::NUMERIC,
        Type::Decimal { scale, .. } => Type::Decimal { precision: 38, scale: mean_scale((*scale).max(0) as u8) as i8 },
        _ => Type::Float64,
    }
}

/// Refuses columns that cannot be counted.
///
/// # Errors
/// `type_mismatch`.
pub fn check_number(strategy: &str, ty: &Type) -> Result<()> {
    if ty.is_number() {
        return Ok(());
    }
    Err(Error::type_mismatch(format!("`{strategy}` counts numbers, not {ty}")))
}

/// Writes a map of origins.
pub fn encode<E>(origins: &Origins<E>, w: &mut Writer, mut entry: impl FnMut(&E, &mut Writer)) {
    w.length(origins.len());
    for (origin, e) in origins.iter() {
        w.value(&origin);
        entry(e, w);
    }
}

/// Reads a map of origins.
///
/// # Errors
/// `corrupt_state` if the origins are not strictly ascending.
pub fn decode<E>(r: &mut Reader<'_>, mut entry: impl FnMut(&mut Reader<'_>) -> Result<E>) -> Result<Origins<E>> {
    let mut origins = Origins::default();
    let mut last: Option<&[u8]> = None;
    for _ in 0..r.length()? {
        let origin = r.skip()?;
        if last.replace(origin).is_some_and(|last| packed::compare(last, origin) != Ordering::Less) {
            return Err(Error::corrupt_state("the origins in the state are not in order"));
        }
        let origin = packed::value(origin);
        if origin.is_null() {
            return Err(Error::corrupt_state("an origin in the state is NULL"));
        }
        origins.push(origin, entry(r)?);
    }
    Ok(origins)
}

/// Memory held by a map of origins, in bytes.
pub fn heap_size<E>(origins: &Origins<E>, entry: impl Fn(&E) -> usize) -> usize {
    let held: usize = origins.values().map(entry).sum();
    held + match origins {
        Origins::Few(entries) => entries.iter().map(|(o, _)| size_of::<(Value, E)>() + o.heap_size()).sum(),
        Origins::Many(entries) => entries.heap_size(),
    }
}
