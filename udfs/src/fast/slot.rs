//! Scattered states: one small slot a group in memory that the host owns and finds by pointer, with the same order as the columnar
//! store in [`super::best`].

use super::best::{Order, WITH_VALUE, WITH_VERSION};
use crate::error::Result;
use crate::lattice::origins;
use crate::lattice::set::ValueSet;
use crate::value::{Value, canonical};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::cmp::Ordering;

/// What the state of a strategy is, where a slot can hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The strongest candidate, a value with its version: a [`Slot`].
    Strongest(Order),
    /// For each origin the greatest value; the result is their sum: [`Counts`] for integers and origins that are text.
    GreatestPerOrigin,
    /// Every distinct value; the result is their sorted list: a [`Collected`].
    Collected,
}

/// What a slot holds.
pub trait Held: Default {
    /// The value as a batch lends it.
    type Seen<'a>: Copy;

    /// Keeps a value.
    fn set(&mut self, seen: Self::Seen<'_>);

    /// The value that is kept.
    fn seen(&self) -> Self::Seen<'_>;

    /// R2 between two values that are not NaN.
    fn compare(a: Self::Seen<'_>, b: Self::Seen<'_>) -> Ordering;

    /// What sorts as the values do, as far as it goes: of two that have it equal, `compare` tells.
    #[inline]
    fn prefix(_: Self::Seen<'_>) -> u64 {
        0
    }

    /// The canonical form (R9).
    fn canonical<'a>(seen: Self::Seen<'a>) -> Self::Seen<'a> {
        seen
    }

    /// A NaN?
    fn is_nan(_seen: Self::Seen<'_>) -> bool {
        false
    }
}

macro_rules! integers {
    ($($t:ty)*) => {$(
        impl Held for $t {
            type Seen<'a> = $t;
            #[inline]
            fn set(&mut self, seen: $t) {
                *self = seen;
            }
            #[inline]
            fn seen(&self) -> $t {
                *self
            }
            #[inline]
            fn compare(a: $t, b: $t) -> Ordering {
                a.cmp(&b)
            }
        }
    )*};
}
integers!(bool i8 i16 i32 i64 u8 u16 u32 u64);

macro_rules! floats {
    ($($t:ty)*) => {$(
        impl Held for $t {
            type Seen<'a> = $t;
            #[inline]
            fn set(&mut self, seen: $t) {
                *self = seen;
            }
            #[inline]
            fn seen(&self) -> $t {
                *self
            }
            #[inline]
            fn compare(a: $t, b: $t) -> Ordering {
                a.partial_cmp(&b).unwrap_or(Ordering::Equal)
            }
            #[inline]
            fn canonical<'a>(seen: Self::Seen<'a>) -> Self::Seen<'a> {
                canonical(seen.into()) as $t
            }
            #[inline]
            fn is_nan(seen: $t) -> bool {
                seen.is_nan()
            }
        }
    )*};
}
floats!(f32 f64);

/// How many bytes stay inside a slot.
const INLINE: usize = 22;

/// Text or bytes: short ones stay inside the slot.
#[derive(Debug, Clone)]
pub enum SmallBytes {
    /// Up to 22 bytes, and how many.
    Inline(u8, [u8; INLINE]),
    /// Longer ones.
    Boxed(Box<[u8]>),
}

impl Default for SmallBytes {
    fn default() -> SmallBytes {
        SmallBytes::Inline(0, [0; INLINE])
    }
}

impl SmallBytes {
    #[inline]
    fn of(seen: &[u8]) -> SmallBytes {
        match seen.len() {
            n if n <= INLINE => {
                let mut bytes = [0; INLINE];
                bytes[..n].copy_from_slice(seen);
                SmallBytes::Inline(n as u8, bytes)
            }
            _ => SmallBytes::Boxed(seen.into()),
        }
    }

    /// Equality; of short ones without looking at single bytes.
    #[inline]
    fn is(&self, other: &SmallBytes) -> bool {
        match (self, other) {
            (SmallBytes::Inline(n, a), SmallBytes::Inline(m, b)) => n == m && a == b,
            (SmallBytes::Boxed(a), SmallBytes::Boxed(b)) => a == b,
            _ => false,
        }
    }
}

impl Held for SmallBytes {
    type Seen<'a> = &'a [u8];

    #[inline]
    fn set(&mut self, seen: &[u8]) {
        *self = SmallBytes::of(seen);
    }

    #[inline]
    fn seen(&self) -> &[u8] {
        match self {
            SmallBytes::Inline(n, bytes) => &bytes[..usize::from(*n)],
            SmallBytes::Boxed(bytes) => bytes,
        }
    }

    #[inline]
    fn compare(a: &[u8], b: &[u8]) -> Ordering {
        a.cmp(b)
    }

    #[inline]
    fn prefix(seen: &[u8]) -> u64 {
        match seen.first_chunk::<8>() {
            Some(first) => u64::from_be_bytes(*first),
            None => seen.iter().rev().enumerate().fold(0, |all, (i, b)| all | u64::from(*b) << (8 * (i + 8 - seen.len()))),
        }
    }
}

/// What a slot keeps of a version.
pub trait Key: Default {
    /// The version as a batch lends it.
    type Seen<'a>: Copy;

    /// Whether the first part is there: one that is not is the weakest.
    fn is_present(seen: Self::Seen<'_>) -> bool;

    /// `Greater` if the version is stronger than the one kept, the first parts of both being there, or of neither.
    fn compare(&self, seen: Self::Seen<'_>) -> Ordering;

    /// Keeps a version.
    fn set(&mut self, seen: Self::Seen<'_>);

    /// The version that is kept; `present` as it was when it was seen.
    fn seen(&self, present: bool) -> Self::Seen<'_>;
}

/// No version.
impl Key for () {
    type Seen<'a> = ();
    #[inline]
    fn is_present((): ()) -> bool {
        false
    }
    #[inline]
    fn compare(&self, (): ()) -> Ordering {
        Ordering::Equal
    }
    #[inline]
    fn set(&mut self, (): ()) {}
    #[inline]
    fn seen(&self, _: bool) {}
}

/// One part, as an integer of the same order.
impl Key for u64 {
    type Seen<'a> = Option<u64>;
    #[inline]
    fn is_present(seen: Option<u64>) -> bool {
        seen.is_some()
    }
    #[inline]
    fn compare(&self, seen: Option<u64>) -> Ordering {
        seen.unwrap_or(0).cmp(self)
    }
    #[inline]
    fn set(&mut self, seen: Option<u64>) {
        *self = seen.unwrap_or(0);
    }
    #[inline]
    fn seen(&self, present: bool) -> Option<u64> {
        present.then_some(*self)
    }
}

/// A part of fixed width and a text, the usual (time, node); with `OLDEST` the lesser text is stronger (the integer is turned around
/// where it is made).
#[derive(Debug, Clone, Default)]
pub struct Timed<const OLDEST: bool>(u64, Option<SmallBytes>);

impl<const OLDEST: bool> Key for Timed<OLDEST> {
    type Seen<'a> = (Option<u64>, Option<&'a [u8]>);

    #[inline]
    fn is_present((time, _): Self::Seen<'_>) -> bool {
        time.is_some()
    }

    #[inline]
    fn compare(&self, (time, node): Self::Seen<'_>) -> Ordering {
        time.unwrap_or(0).cmp(&self.0).then_with(|| compare_part::<OLDEST>(node, self.1.as_ref()))
    }

    #[inline]
    fn set(&mut self, (time, node): Self::Seen<'_>) {
        self.0 = time.unwrap_or(0);
        set_part(&mut self.1, node);
    }

    #[inline]
    fn seen(&self, present: bool) -> Self::Seen<'_> {
        (present.then_some(self.0), self.1.as_ref().map(SmallBytes::seen))
    }
}

#[inline]
fn compare_part<const OLDEST: bool>(seen: Option<&[u8]>, kept: Option<&SmallBytes>) -> Ordering {
    match (seen, kept) {
        (Some(seen), Some(kept)) if OLDEST => kept.seen().cmp(seen),
        (Some(seen), Some(kept)) => seen.cmp(kept.seen()),
        (seen, kept) => seen.is_some().cmp(&kept.is_some()),
    }
}

#[inline]
fn set_part(kept: &mut Option<SmallBytes>, seen: Option<&[u8]>) {
    match seen {
        None => *kept = None,
        Some(bytes) => kept.get_or_insert_default().set(bytes),
    }
}

/// Parts of any types, as bytes of the same order; with `OLDEST` the lesser is stronger.
#[derive(Debug, Clone)]
pub struct Parts<const N: usize, const OLDEST: bool>([Option<SmallBytes>; N]);

impl<const N: usize, const OLDEST: bool> Default for Parts<N, OLDEST> {
    fn default() -> Self {
        Parts([const { None }; N])
    }
}

impl<const N: usize, const OLDEST: bool> Key for Parts<N, OLDEST> {
    type Seen<'a> = [Option<&'a [u8]>; N];

    #[inline]
    fn is_present(seen: [Option<&[u8]>; N]) -> bool {
        seen[0].is_some()
    }

    #[inline]
    fn compare(&self, seen: [Option<&[u8]>; N]) -> Ordering {
        for (kept, seen) in self.0.iter().zip(seen) {
            let order = compare_part::<OLDEST>(seen, kept.as_ref());
            if order != Ordering::Equal {
                return order;
            }
        }
        Ordering::Equal
    }

    #[inline]
    fn set(&mut self, seen: [Option<&[u8]>; N]) {
        self.0.iter_mut().zip(seen).for_each(|(kept, seen)| set_part(kept, seen));
    }

    #[inline]
    fn seen(&self, _: bool) -> [Option<&[u8]>; N] {
        std::array::from_fn(|i| self.0[i].as_ref().map(SmallBytes::seen))
    }
}

/// The state of one group: nothing yet, or the strongest value so far.
///
/// ```
/// use mergeql_udfs::slot::Slot;
/// let mut newest = Slot::<i64, u64>::default();
/// newest.offer::<false>(7, Some(1));
/// newest.offer::<false>(3, Some(2));
/// newest.offer::<false>(9, None);
/// assert_eq!(newest.value(), Some(3));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Slot<V, K> {
    value: V,
    key: K,
    class: u8,
}

impl<V: Held, K: Key> Slot<V, K> {
    /// Sees a value with its version; among equal versions the greater value wins, or with `LEAST` the lesser.
    #[inline]
    pub fn offer<const LEAST: bool>(&mut self, seen: V::Seen<'_>, key: K::Seen<'_>) {
        let seen = V::canonical(seen);
        let class = 1 + u8::from(K::is_present(key)) * WITH_VERSION + u8::from(!V::is_nan(seen)) * WITH_VALUE;
        self.challenge::<LEAST>(seen, key, class);
    }

    #[inline]
    fn challenge<const LEAST: bool>(&mut self, seen: V::Seen<'_>, key: K::Seen<'_>, class: u8) {
        let order = class.cmp(&self.class).then_with(|| self.key.compare(key)).then_with(|| {
            let order = V::compare(seen, self.value.seen());
            if LEAST { order.reverse() } else { order }
        });
        if order == Ordering::Greater {
            self.value.set(seen);
            self.key.set(key);
            self.class = class;
        }
    }

    /// Joins another slot.
    #[inline]
    pub fn join<const LEAST: bool>(&mut self, other: &Self) {
        if other.class > 0 {
            self.challenge::<LEAST>(other.value.seen(), other.key(), other.class);
        }
    }

    /// The value, once something was seen.
    #[inline]
    pub fn value(&self) -> Option<V::Seen<'_>> {
        (self.class > 0).then(|| self.value.seen())
    }

    /// The version of the value.
    pub fn key(&self) -> K::Seen<'_> {
        self.key.seen(self.has_version())
    }

    fn has_version(&self) -> bool {
        self.class > 0 && (self.class - 1) & WITH_VERSION != 0
    }
}

/// So many origins are looked at one by one.
const FEW: usize = 8;

/// For each origin the greatest count, sorted by origin.
///
/// ```
/// use mergeql_udfs::slot::Counts;
/// let mut counts = Counts::default();
/// counts.offer(Some(b"a"), 3)?;
/// counts.offer(Some(b"a"), 5)?;
/// counts.offer(Some(b"b"), 4)?;
/// assert_eq!(counts.sum(), Some(9));
/// # Ok::<(), mergeql_udfs::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Counts(SmallVec<[(SmallBytes, i64); 3]>);

impl Counts {
    /// Sees what an origin counted.
    ///
    /// # Errors
    /// `invalid_argument` for a negative count, or where nobody counted.
    #[inline]
    pub fn offer(&mut self, origin: Option<&[u8]>, count: i64) -> Result<()> {
        let Some(origin) = origin else { return origins::origin(&Value::Null).map(drop) };
        if count < 0 {
            return origins::grown(&Value::Int(count.into())).map(drop);
        }
        self.keep(Cow::Owned(SmallBytes::of(origin)), count);
        Ok(())
    }

    #[inline]
    fn keep(&mut self, origin: Cow<'_, SmallBytes>, count: i64) {
        // Few origins are found fastest by looking at each.
        let near = self.0.len().min(FEW);
        if let Some((_, known)) = self.0[..near].iter_mut().find(|(known, _)| known.is(&origin)) {
            *known = count.max(*known);
            return;
        }
        match self.0.binary_search_by(|(known, _)| known.seen().cmp(origin.seen())) {
            Ok(at) => self.0[at].1 = self.0[at].1.max(count),
            Err(at) => self.0.insert(at, (origin.into_owned(), count)),
        }
    }

    /// Joins another state.
    pub fn join(&mut self, other: &Counts) {
        other.0.iter().for_each(|(origin, count)| self.keep(Cow::Borrowed(origin), *count));
    }

    /// The sum over origins, once something was counted.
    pub fn sum(&self) -> Option<i128> {
        (!self.0.is_empty()).then(|| self.0.iter().map(|(_, count)| i128::from(*count)).sum())
    }
}

/// Every distinct value.
#[derive(Debug, Clone, Default)]
pub struct Collected(ValueSet);

impl Collected {
    /// Sees a value; NULL is none.
    pub fn offer(&mut self, value: &Value) {
        if !value.is_null() {
            self.0.insert(value);
        }
    }

    /// Joins another state.
    pub fn join(&mut self, other: &Collected) {
        self.0.union(&other.0);
    }

    /// The sorted list, once something was seen.
    pub fn list(&self) -> Option<Value> {
        (!self.0.is_empty()).then(|| self.0.to_list())
    }
}

/// Values that do not fit inside a set go where so many do.
const FIRST: usize = 8;

#[inline]
fn compare<V: Held>(a: V::Seen<'_>, b: V::Seen<'_>) -> Ordering {
    V::prefix(a).cmp(&V::prefix(b)).then_with(|| V::compare(a, b))
}

/// Every distinct value of one kind: as they come, until there is room no more.
///
/// ```
/// use mergeql_udfs::slot::Several;
/// let mut set = Several::<i64>::default();
/// [3, 1, 3].into_iter().for_each(|v| set.offer(v));
/// assert_eq!(set.sorted()[..], [1, 3]);
/// ```
#[derive(Debug, Clone)]
pub struct Several<V>(SmallVec<[V; 2]>);

impl<V> Default for Several<V> {
    fn default() -> Self {
        Several(SmallVec::new())
    }
}

impl<V: Held> Several<V> {
    /// Sees a value.
    #[inline]
    pub fn offer(&mut self, seen: V::Seen<'_>) {
        if self.0.len() == self.0.capacity() {
            self.make_room();
        }
        let mut value = V::default();
        value.set(V::canonical(seen));
        self.0.push(value);
    }

    /// Drops what is there twice; if that was not much, there will be room for as many again.
    #[cold]
    fn make_room(&mut self) {
        self.0.sort_unstable_by(|a, b| compare::<V>(a.seen(), b.seen()));
        self.0.dedup_by(|a, b| V::compare(a.seen(), b.seen()) == Ordering::Equal);
        if self.0.len() > self.0.capacity() / 2 {
            // What does not fit inside goes where a few more do.
            self.0.reserve_exact(self.0.len().max(FIRST - self.0.len().min(FIRST)));
        }
    }

    /// Joins another state.
    pub fn join(&mut self, other: &Self)
    where
        V: Clone,
    {
        if self.0.is_empty() {
            self.0.extend(other.0.iter().cloned());
        } else {
            other.0.iter().for_each(|v| self.offer(v.seen()));
        }
    }

    /// The values in order.
    pub fn sorted(&self) -> SmallVec<[V::Seen<'_>; 16]> {
        let mut values: SmallVec<[V::Seen<'_>; 16]> = self.0.iter().map(V::seen).collect();
        values.sort_unstable_by(|a, b| compare::<V>(*a, *b));
        values.dedup_by(|a, b| V::compare(*a, *b) == Ordering::Equal);
        values
    }
}
