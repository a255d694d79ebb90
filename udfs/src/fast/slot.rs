//! Scattered states: one small slot a group in memory that the host owns and finds by pointer, with the same order as the columnar
//! store in [`super::best`].

use super::best::{WITH_VALUE, WITH_VERSION};
use crate::value::canonical;
use std::cmp::Ordering;

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

impl Held for SmallBytes {
    type Seen<'a> = &'a [u8];

    #[inline]
    fn set(&mut self, seen: &[u8]) {
        *self = match seen.len() {
            n if n <= INLINE => {
                let mut bytes = [0; INLINE];
                bytes[..n].copy_from_slice(seen);
                SmallBytes::Inline(n as u8, bytes)
            }
            _ => SmallBytes::Boxed(seen.into()),
        };
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
}

/// A version as an integer of the same order; `()` where there is none.
pub trait Key: Copy + Default + Ord {}
impl Key for () {}
impl Key for u64 {}

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
    pub fn offer<const LEAST: bool>(&mut self, seen: V::Seen<'_>, key: Option<K>) {
        let seen = V::canonical(seen);
        let class = 1 + u8::from(key.is_some()) * WITH_VERSION + u8::from(!V::is_nan(seen)) * WITH_VALUE;
        self.challenge::<LEAST>(seen, key.unwrap_or_default(), class);
    }

    #[inline]
    fn challenge<const LEAST: bool>(&mut self, seen: V::Seen<'_>, key: K, class: u8) {
        let order = class.cmp(&self.class).then_with(|| key.cmp(&self.key)).then_with(|| {
            let order = V::compare(seen, self.value.seen());
            if LEAST { order.reverse() } else { order }
        });
        if order == Ordering::Greater {
            self.value.set(seen);
            self.key = key;
            self.class = class;
        }
    }

    /// Joins another slot.
    #[inline]
    pub fn join<const LEAST: bool>(&mut self, other: &Self) {
        if other.class > 0 {
            self.challenge::<LEAST>(other.value.seen(), other.key, other.class);
        }
    }

    /// The value, once something was seen.
    #[inline]
    pub fn value(&self) -> Option<V::Seen<'_>> {
        (self.class > 0).then(|| self.value.seen())
    }
}
