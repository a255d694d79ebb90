//! States of fixed size: the strongest value with its version, while all values are of one class, and all versions.

use mergeql_udfs::slot::{Held, Key, Parts, Slot, SmallBytes, Timed};
use mergeql_udfs::value::order_key::{float_bits, float_from_bits};
use mergeql_udfs::{Order, Value};
use rusqlite::functions::Context;
use rusqlite::types::{ValueRef, ValueRef::*};

/// The state of one group, while it can be a slot.
pub trait Fast {
    /// Takes a row; false for one that is not of these classes.
    fn step(&mut self, context: &Context<'_>) -> bool;

    /// The row that won, as values: the state says no more.
    fn row(&self) -> Option<Vec<Value>>;

    /// The value that won.
    fn value(&self) -> Value;
}

/// A value that a slot takes.
trait InSlot: Held + 'static {
    fn get<'a>(plain: ValueRef<'a>, is_blob: bool) -> Option<Self::Seen<'a>>;
    fn value(seen: Self::Seen<'_>, is_blob: bool) -> Value;
}

impl InSlot for i64 {
    #[inline]
    fn get<'a>(plain: ValueRef<'a>, _: bool) -> Option<i64> {
        if let Integer(v) = plain { Some(v) } else { None }
    }
    fn value(seen: i64, _: bool) -> Value {
        Value::Int(seen.into())
    }
}

impl InSlot for f64 {
    #[inline]
    fn get<'a>(plain: ValueRef<'a>, _: bool) -> Option<f64> {
        if let Real(v) = plain { Some(v) } else { None }
    }
    fn value(seen: f64, _: bool) -> Value {
        Value::float(seen)
    }
}

impl InSlot for SmallBytes {
    #[inline]
    fn get<'a>(plain: ValueRef<'a>, is_blob: bool) -> Option<&'a [u8]> {
        match (plain, is_blob) {
            (Text(v), false) => utf8(v),
            (Blob(v), true) => Some(v),
            _ => None,
        }
    }
    fn value(seen: &[u8], is_blob: bool) -> Value {
        if is_blob { Value::Bytes(seen.into()) } else { text_value(Some(seen)) }
    }
}

/// A version that a slot takes; `None` where it is of another class than the first one was.
trait InKey: Key + 'static {
    fn get<'a>(context: &'a Context<'_>, classes: &Classes) -> Option<Self::Seen<'a>>;
    fn values(seen: Self::Seen<'_>, classes: &Classes) -> Vec<Value>;
}

/// What a slot has to know of its classes.
#[derive(Clone, Copy)]
struct Classes {
    is_blob: bool,
    real_version: bool,
    oldest: bool,
}

/// A number as an integer, the greater the stronger; the outer `None` for another class.
#[inline]
fn rank(plain: ValueRef<'_>, classes: &Classes) -> Option<Option<u64>> {
    let key = match plain {
        Null => return Some(None),
        Integer(v) if !classes.real_version => v as u64 ^ 1 << 63,
        Real(v) if classes.real_version => float_bits(v + 0.0),
        _ => return None,
    };
    Some(Some(if classes.oldest { !key } else { key }))
}

fn number(key: Option<u64>, classes: &Classes) -> Value {
    let Some(key) = key else { return Value::Null };
    let key = if classes.oldest { !key } else { key };
    if classes.real_version { Value::float(float_from_bits(key)) } else { Value::Int(i128::from((key ^ 1 << 63) as i64)) }
}

#[inline]
fn text(plain: ValueRef<'_>) -> Option<Option<&[u8]>> {
    match plain {
        Null => Some(None),
        Text(v) => utf8(v).map(Some),
        _ => None,
    }
}

/// A text, which is an error elsewhere if it is not UTF-8.
#[inline]
fn utf8(text: &[u8]) -> Option<&[u8]> {
    std::str::from_utf8(text).is_ok().then_some(text)
}

fn text_value(part: Option<&[u8]>) -> Value {
    part.map_or(Value::Null, |v| Value::text(String::from_utf8_lossy(v)))
}

impl InKey for () {
    #[inline]
    fn get(_: &Context<'_>, _: &Classes) -> Option<()> {
        Some(())
    }
    fn values((): (), _: &Classes) -> Vec<Value> {
        Vec::new()
    }
}

impl InKey for u64 {
    #[inline]
    fn get(context: &Context<'_>, classes: &Classes) -> Option<Option<u64>> {
        rank(context.get_raw(1), classes)
    }
    fn values(seen: Option<u64>, classes: &Classes) -> Vec<Value> {
        vec![number(seen, classes)]
    }
}

impl<const OLDEST: bool> InKey for Timed<OLDEST> {
    #[inline]
    fn get<'a>(context: &'a Context<'_>, classes: &Classes) -> Option<(Option<u64>, Option<&'a [u8]>)> {
        Some((rank(context.get_raw(1), classes)?, text(context.get_raw(2))?))
    }
    fn values((time, node): Self::Seen<'_>, classes: &Classes) -> Vec<Value> {
        vec![number(time, classes), text_value(node)]
    }
}

impl<const N: usize, const OLDEST: bool> InKey for Parts<N, OLDEST> {
    #[inline]
    fn get<'a>(context: &'a Context<'_>, _: &Classes) -> Option<[Option<&'a [u8]>; N]> {
        let mut parts = [None; N];
        for (i, part) in parts.iter_mut().enumerate() {
            *part = text(context.get_raw(1 + i))?;
        }
        Some(parts)
    }
    fn values(seen: [Option<&[u8]>; N], _: &Classes) -> Vec<Value> {
        seen.map(text_value).into()
    }
}

struct InGroup<V, K, const LEAST: bool> {
    slot: Slot<V, K>,
    classes: Classes,
}

impl<V: InSlot, K: InKey, const LEAST: bool> Fast for InGroup<V, K, LEAST> {
    fn step(&mut self, context: &Context<'_>) -> bool {
        let plain = context.get_raw(0);
        if matches!(plain, Null) {
            return true;
        }
        match (V::get(plain, self.classes.is_blob), K::get(context, &self.classes)) {
            (Some(seen), Some(key)) => {
                self.slot.offer::<LEAST>(seen, key);
                true
            }
            _ => false,
        }
    }

    fn row(&self) -> Option<Vec<Value>> {
        let seen = self.slot.value()?;
        let mut row = vec![V::value(seen, self.classes.is_blob)];
        row.extend(K::values(self.slot.key(), &self.classes));
        Some(row)
    }

    fn value(&self) -> Value {
        self.slot.value().map_or(Value::Null, |seen| V::value(seen, self.classes.is_blob))
    }
}

/// The slot that a group begins with, by the classes of a row whose value is not NULL; `None` where there is none.
pub fn of(order: Order, context: &Context<'_>) -> Option<Box<dyn Fast>> {
    if order.least { with_order::<true>(order, context) } else { with_order::<false>(order, context) }
}

fn with_order<const LEAST: bool>(order: Order, context: &Context<'_>) -> Option<Box<dyn Fast>> {
    let version = |i: usize| context.get_raw(i);
    let oldest = order.flip_version;
    match (context.len(), oldest) {
        (1, _) => with_key::<(), LEAST>(oldest, context),
        (2, _) if matches!(version(1), Integer(_) | Real(_)) => with_key::<u64, LEAST>(oldest, context),
        (2, false) if matches!(version(1), Text(_)) => with_key::<Parts<1, false>, LEAST>(oldest, context),
        (2, true) if matches!(version(1), Text(_)) => with_key::<Parts<1, true>, LEAST>(oldest, context),
        (3, false) if matches!((version(1), version(2)), (Integer(_) | Real(_), Text(_))) => {
            with_key::<Timed<false>, LEAST>(oldest, context)
        }
        (3, true) if matches!((version(1), version(2)), (Integer(_) | Real(_), Text(_))) => {
            with_key::<Timed<true>, LEAST>(oldest, context)
        }
        (3, false) if matches!((version(1), version(2)), (Text(_), Text(_))) => with_key::<Parts<2, false>, LEAST>(oldest, context),
        (3, true) if matches!((version(1), version(2)), (Text(_), Text(_))) => with_key::<Parts<2, true>, LEAST>(oldest, context),
        _ => None,
    }
}

fn with_key<K: InKey, const LEAST: bool>(oldest: bool, context: &Context<'_>) -> Option<Box<dyn Fast>> {
    let real_version = context.len() > 1 && matches!(context.get_raw(1), Real(_));
    let classes = |is_blob| Classes { is_blob, real_version, oldest };
    Some(match context.get_raw(0) {
        Null => return None,
        Integer(_) => Box::new(InGroup::<i64, K, LEAST> { slot: Slot::default(), classes: classes(false) }),
        Real(_) => Box::new(InGroup::<f64, K, LEAST> { slot: Slot::default(), classes: classes(false) }),
        Text(_) => Box::new(InGroup::<SmallBytes, K, LEAST> { slot: Slot::default(), classes: classes(false) }),
        // A value in its encoding is no plain blob.
        Blob(_) if context.get_subtype(0) != 0 => return None,
        Blob(_) => Box::new(InGroup::<SmallBytes, K, LEAST> { slot: Slot::default(), classes: classes(true) }),
    })
}
