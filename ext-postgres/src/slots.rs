//! States of fixed size: the strongest value with its version, as it lies in the aggregate's memory.
#![allow(unsafe_code)]

use crate::aggregates::{Group, Head, Site, Step, Update, state_memory};
use crate::datums::{Form, PgType, bytes, varlena};
use crate::entry::{Call, Failure};
use mergeql_udfs::slot::{Held, Key, Slot, Timed};
use mergeql_udfs::value::order_key::{float_bits, float_from_bits};
use mergeql_udfs::{Order, Value};
use pgrx::pg_sys::{self, Datum};
use std::cell::Cell;
use std::cmp::Ordering;
use std::ptr::NonNull;

/// A value that a slot takes from a datum.
pub trait InSlot: Held + 'static {
    /// Whether values may lie in the aggregate's memory, outside of the slot.
    const IN_MEMORY: bool = false;

    /// # Safety
    /// The datum is of a type with this layout.
    unsafe fn get<'a>(datum: Datum) -> Self::Seen<'a>;

    /// The value in the current memory context.
    fn datum(seen: Self::Seen<'_>) -> Datum;
}

macro_rules! by_value {
    ($($t:ty: $get:expr, $put:expr;)*) => {$(
        impl InSlot for $t {
            #[inline]
            unsafe fn get<'a>(datum: Datum) -> Self::Seen<'a> {
                ($get)(datum.value())
            }
            #[inline]
            fn datum(seen: $t) -> Datum {
                Datum::from(($put)(seen))
            }
        }
    )*};
}
by_value! {
    bool: |v| v as u8 != 0, |v| v;
    i16: |v| v as i16, |v| v;
    i32: |v| v as i32, |v| v;
    i64: |v| v as i64, |v| v;
    f32: |v| f32::from_bits(v as u32), f32::to_bits;
    f64: |v| f64::from_bits(v as u64), |v: f64| v.to_bits() as usize;
}

/// Text or bytes: short ones stay inside the slot, longer ones in the aggregate's memory, which counts and frees them.
#[derive(Default)]
pub struct Bytes {
    inline: [u8; INLINE],
    length: u32,
    long: Option<NonNull<u8>>,
}

const INLINE: usize = 20;

impl Held for Bytes {
    type Seen<'a> = &'a [u8];

    #[inline]
    fn set(&mut self, seen: &[u8]) {
        let before = self.length as usize;
        self.length = seen.len() as u32;
        if seen.len() <= INLINE {
            self.inline[..seen.len()].copy_from_slice(seen);
            return;
        }
        // SAFETY: memory of the aggregate, as long as before or fresh; Postgres refuses sizes beyond its limit.
        unsafe {
            let place = match self.long {
                Some(place) if before >= seen.len() => place,
                old => {
                    if let Some(old) = old {
                        pg_sys::pfree(old.as_ptr().cast());
                    }
                    let place = pg_sys::MemoryContextAlloc(MEMORY.get(), seen.len()).cast();
                    *self.long.insert(NonNull::new_unchecked(place))
                }
            };
            place.as_ptr().copy_from_nonoverlapping(seen.as_ptr(), seen.len());
        }
    }

    #[inline]
    fn seen(&self) -> &[u8] {
        match self.long {
            // SAFETY: so many bytes were written there.
            Some(long) if self.length as usize > INLINE => unsafe {
                std::slice::from_raw_parts(long.as_ptr(), self.length as usize)
            },
            _ => &self.inline[..self.length as usize],
        }
    }

    #[inline]
    fn compare(a: &[u8], b: &[u8]) -> Ordering {
        a.cmp(b)
    }
}

thread_local! {
    /// The memory of the aggregate that is updated.
    static MEMORY: Cell<pg_sys::MemoryContext> = const { Cell::new(std::ptr::null_mut()) };
}

impl InSlot for Bytes {
    const IN_MEMORY: bool = true;

    #[inline]
    unsafe fn get<'a>(datum: Datum) -> Self::Seen<'a> {
        // SAFETY: texts and byteas are varlenas.
        unsafe { varlena(datum) }
    }
    #[inline]
    fn datum(seen: &[u8]) -> Datum {
        bytes(seen)
    }
}

/// A version that a slot takes from a call's arguments.
pub trait InKey: Key + 'static {
    /// Whether all of it lies in the datum, and in the slot.
    const BY_VALUE: bool = true;

    /// # Safety
    /// The call's arguments are of the site's types.
    unsafe fn get<'a>(site: &'a Site, call: Call) -> Self::Seen<'a>;

    /// The version as input values.
    ///
    /// # Errors
    /// As [`PgType::value`].
    fn values(seen: Self::Seen<'_>, site: &Site) -> Result<Vec<Value>, Failure>;
}

impl InKey for () {
    #[inline]
    unsafe fn get(_: &Site, _: Call) {}
    fn values((): (), _: &Site) -> Result<Vec<Value>, Failure> {
        Ok(Vec::new())
    }
}

impl InKey for u64 {
    #[inline]
    unsafe fn get(site: &Site, call: Call) -> Option<u64> {
        call.arg(site.first + 1).and_then(|datum| rank(&site.inputs[1].form, datum, site.order))
    }
    fn values(seen: Option<u64>, site: &Site) -> Result<Vec<Value>, Failure> {
        Ok(vec![version(seen, site)?])
    }
}

impl<const OLDEST: bool> InKey for Timed<OLDEST> {
    const BY_VALUE: bool = false;

    #[inline]
    unsafe fn get(site: &Site, call: Call) -> (Option<u64>, Option<&[u8]>) {
        // SAFETY: the second part is a text where this kind of key is chosen.
        let node = call.arg(site.first + 2).map(|datum| unsafe { varlena(datum) });
        // SAFETY: as the caller promises.
        (unsafe { u64::get(site, call) }, node)
    }
    fn values((time, node): Self::Seen<'_>, site: &Site) -> Result<Vec<Value>, Failure> {
        let node = node.map_or(Value::Null, |n| Value::text(String::from_utf8_lossy(n)));
        Ok(vec![version(time, site)?, node])
    }
}

/// Whether versions of this type are kept as integers.
fn is_ranked(form: &Form) -> bool {
    use Form::*;
    matches!(form, Bool | Int2 | Int4 | Int8 | Float4 | Float8 | Date | Time | Timestamp | Instant)
}

/// A version as an integer, the greater the stronger; `None` for NaN, the weakest.
#[inline]
fn rank(form: &Form, datum: Datum, order: Order) -> Option<u64> {
    let signed = |v: i64| v as u64 ^ 1 << 63;
    let float = |v: f64| if v.is_nan() { None } else { Some(float_bits(v + 0.0)) };
    let raw = datum.value();
    let key = match form {
        Form::Int8 | Form::Time | Form::Timestamp | Form::Instant => signed(raw as i64),
        Form::Int4 | Form::Date => signed((raw as i32).into()),
        Form::Int2 => signed((raw as i16).into()),
        Form::Bool => u64::from(raw as u8 != 0),
        Form::Float4 => float(f32::from_bits(raw as u32).into())?,
        Form::Float8 => float(f64::from_bits(raw as u64))?,
        _ => return None,
    };
    Some(if order.flip_version { !key } else { key })
}

/// The version that [`rank`] made an integer of.
fn version(key: Option<u64>, site: &Site) -> Result<Value, Failure> {
    let Some(key) = key else { return Ok(Value::Null) };
    let key = if site.order.flip_version { !key } else { key };
    let signed = (key ^ 1 << 63) as i64;
    let ty = &site.inputs[1];
    let datum = match ty.form {
        Form::Bool => Datum::from(key != 0),
        Form::Float4 => Datum::from((float_from_bits(key) as f32).to_bits()),
        Form::Float8 => Datum::from(float_from_bits(key).to_bits() as usize),
        Form::Int4 | Form::Date => Datum::from(signed as i32),
        Form::Int2 => Datum::from(signed as i16),
        _ => Datum::from(signed),
    };
    ty.value(datum)
}

/// How the first row comes to a group, and the others where they need no memory.
type Updates = (Update, Option<Step>);

/// How a group is updated where its state is a slot; `None` where these types have no slot.
pub fn update_of(order: Order, inputs: &[PgType]) -> Option<Updates> {
    match (inputs, order.least) {
        ([value], false) => with_value::<(), false>(value),
        ([value], true) => with_value::<(), true>(value),
        ([value, version], false) if is_ranked(&version.form) => with_value::<u64, false>(value),
        ([value, version], true) if is_ranked(&version.form) => with_value::<u64, true>(value),
        ([value, version, node], least) if is_ranked(&version.form) && matches!(node.form, Form::Text) => {
            match (least, order.flip_version) {
                (false, false) => with_value::<Timed<false>, false>(value),
                (false, true) => with_value::<Timed<true>, false>(value),
                (true, false) => with_value::<Timed<false>, true>(value),
                (true, true) => with_value::<Timed<true>, true>(value),
            }
        }
        _ => None,
    }
}

fn with_value<K: InKey, const LEAST: bool>(value: &PgType) -> Option<Updates> {
    Some(match value.form {
        Form::Bool => updates::<bool, K, LEAST>(),
        Form::Int2 => updates::<i16, K, LEAST>(),
        Form::Int4 | Form::Date => updates::<i32, K, LEAST>(),
        Form::Int8 | Form::Time | Form::Timestamp | Form::Instant => updates::<i64, K, LEAST>(),
        Form::Float4 => updates::<f32, K, LEAST>(),
        Form::Float8 => updates::<f64, K, LEAST>(),
        Form::Text | Form::Bytes => updates::<Bytes, K, LEAST>(),
        _ => return None,
    })
}

fn updates<V: InSlot, K: InKey, const LEAST: bool>() -> Updates {
    let by_value = !V::IN_MEMORY && K::BY_VALUE;
    (update::<V, K, LEAST>, by_value.then_some(step::<V, K, LEAST> as Step))
}

unsafe fn step<V: InSlot, K: InKey, const LEAST: bool>(site: &Site, call: Call, head: *mut Head) {
    let Some(datum) = call.arg(site.first) else { return };
    // SAFETY: a state that this site made is a slot of these types; datums are of the site's types.
    unsafe { (*head.cast::<Group<Slot<V, K>>>()).state.offer::<LEAST>(V::get(datum), K::get(site, call)) };
}

unsafe fn update<V: InSlot, K: InKey, const LEAST: bool>(
    site: &mut Site,
    call: Call,
    head: *mut Head,
) -> Result<*mut Head, Failure> {
    let Some(datum) = call.arg(site.first) else { return Ok(head) };
    // SAFETY: a state that this site made is a slot of these types; datums are of the site's types.
    unsafe {
        if V::IN_MEMORY {
            MEMORY.set(state_memory(call)?);
        }
        let group = if head.is_null() { site.group(call, Slot::<V, K>::default())? } else { head.cast::<Group<Slot<V, K>>>() };
        (*group).state.offer::<LEAST>(V::get(datum), K::get(site, call));
        Ok(group.cast())
    }
}

impl<V: InSlot, K: InKey> crate::aggregates::InGroup for Slot<V, K> {
    fn value(&self, _: &PgType) -> Result<Option<Datum>, Failure> {
        Ok(Slot::value(self).map(V::datum))
    }

    /// The row that won, given to the strategy: its state says no more.
    fn encode(&self, site: Option<&Site>) -> Result<Option<Vec<u8>>, Failure> {
        let (Some(seen), Some(site)) = (Slot::value(self), site) else { return Ok(None) };
        let mut row = vec![site.inputs[0].value(V::datum(seen))?];
        row.extend(K::values(self.key(), site)?);
        let mut partial = site.aggregate()?.partial();
        partial.update(&row)?;
        Ok(mergeql_udfs::Partial::encode(&*partial))
    }
}
