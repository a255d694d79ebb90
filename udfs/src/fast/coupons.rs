//! HyperLogLog over many groups: the few coupons of most groups lie in a slot of the store, without an object a group.

use super::fetch_ahead;
use crate::aggregate::{Groups, State, decode, encode};
use crate::batch::{Bits, Column, Data, OwnedColumn, OwnedData};
use crate::codec::{self, Writer};
use crate::error::{Error, Result};
use crate::sketch::{Sketch, Sketched, with_item};
use crate::strategies::hll::{Hll, coupon_image, coupon_of};
use crate::types::Type;

/// As many coupons as a slot of 44 bytes holds.
const FEW: usize = 10;
/// Instead of a count: the first coupon is the place of a sketch of its own.
const MANY: u32 = u32::MAX;

/// A group: how many coupons, and the coupons, ascending.
#[derive(Clone, Copy)]
struct Slot {
    count: u32,
    coupons: [u32; FEW],
}

const EMPTY: Slot = Slot { count: 0, coupons: [0; FEW] };

pub(crate) struct Coupons {
    lg_k: u8,
    /// How many a slot may hold before they become registers.
    most: usize,
    slots: Vec<Slot>,
    many: Vec<Hll>,
    heap: usize,
}

/// A store for sketches of a precision.
pub(crate) fn groups(lg_k: u8) -> Box<dyn Groups> {
    Box::new(Coupons { lg_k, most: FEW.min(Hll::most_coupons(lg_k)), slots: Vec::new(), many: Vec::new(), heap: 0 })
}

impl Coupons {
    fn grow(&mut self, total: usize) {
        if self.slots.len() < total {
            self.slots.resize(total, EMPTY);
        }
    }

    fn offer(&mut self, group: usize, coupon: u32) {
        let slot = &mut self.slots[group];
        if slot.count == MANY {
            let hll = &mut self.many[slot.coupons[0] as usize];
            let before = hll.heap_size();
            hll.offer(coupon);
            self.heap = self.heap + hll.heap_size() - before;
            return;
        }
        let count = slot.count as usize;
        let at = slot.coupons[..count].iter().position(|known| *known >= coupon).unwrap_or(count);
        if at < count && slot.coupons[at] == coupon {
            return;
        }
        if count < self.most {
            slot.coupons.copy_within(at..count, at + 1);
            slot.coupons[at] = coupon;
            slot.count += 1;
            return;
        }
        self.large(group);
        self.offer(group, coupon);
    }

    /// The sketch of a group by itself, made of its slot; how it grows is to be told.
    fn large(&mut self, group: usize) -> &mut Hll {
        let slot = &mut self.slots[group];
        if slot.count != MANY {
            let mut hll = Hll::new(self.lg_k);
            slot.coupons[..slot.count as usize].iter().for_each(|coupon| hll.offer(*coupon));
            self.heap += hll.heap_size();
            slot.count = MANY;
            slot.coupons[0] = self.many.len() as u32;
            self.many.push(hll);
        }
        &mut self.many[self.slots[group].coupons[0] as usize]
    }

    fn take(&mut self, n: usize) -> Vec<Slot> {
        let rest = self.slots.split_off(n.min(self.slots.len()));
        std::mem::replace(&mut self.slots, rest)
    }

    /// Gives back what is left of sketches when all groups are gone.
    fn sweep(&mut self) {
        if self.slots.is_empty() {
            (self.many, self.heap) = (Vec::new(), 0);
        }
    }

    /// The first `n` groups as bytes: few coupons as `few` writes them, many as the state.
    fn written(&mut self, n: usize, mut few: impl FnMut(&[u32], &mut Vec<u8>)) -> OwnedColumn {
        let (mut offsets, mut bytes, mut validity) = (vec![0], Vec::new(), Vec::with_capacity(n));
        for slot in self.take(n) {
            match slot.count {
                MANY => bytes.extend(encode::<Sketched<Hll>>(&self.taken(&slot))),
                0 => {}
                count => few(&slot.coupons[..count as usize], &mut bytes),
            }
            validity.push(slot.count > 0);
            offsets.push(bytes.len());
        }
        self.sweep();
        OwnedColumn { ty: Type::Bytes, data: OwnedData::Strings { offsets, bytes }, validity: Some(validity) }
    }

    fn taken(&mut self, slot: &Slot) -> Hll {
        let hll = &mut self.many[slot.coupons[0] as usize];
        self.heap -= hll.heap_size();
        std::mem::replace(hll, Hll::new(self.lg_k))
    }
}

/// Runs over the bytes of each row's item.
fn each_item(column: &Column<'_>, rows: usize, mut run: impl FnMut(usize, &[u8])) {
    macro_rules! integers {
        ($values:expr) => {
            (0..rows).filter(|i| column.is_valid(*i)).for_each(|i| run(i, &i64::from($values[i]).to_le_bytes()))
        };
    }
    match &column.data {
        Data::Int16(values) => integers!(values),
        Data::Int32(values) => integers!(values),
        Data::Int64(values) => integers!(values),
        Data::Text(texts) | Data::Bytes(texts) => {
            (0..rows).filter(|i| column.is_valid(*i) && !texts.get(*i).is_empty()).for_each(|i| run(i, texts.get(i)));
        }
        _ => (0..rows).for_each(|i| {
            with_item(&column.value(i), |item| run(i, item));
        }),
    }
}

/// Before the coupons of a group on their way to another step of the query; a state begins with another byte.
const SHIPPED: u8 = 0;

/// The coupons of a group that was shipped as such.
fn shipped_coupons(bytes: &[u8]) -> Option<&[[u8; 4]]> {
    match bytes.split_first()? {
        (&SHIPPED, coupons) => match coupons.as_chunks() {
            (coupons, []) => Some(coupons),
            _ => None,
        },
        _ => None,
    }
}

impl Groups for Coupons {
    fn update(&mut self, columns: &[Column<'_>], groups: &[usize], filter: Option<Bits<'_>>, total: usize) -> Result<()> {
        self.grow(total);
        each_item(&columns[0], groups.len(), |i, item| {
            fetch_ahead(&self.slots, groups, i);
            if filter.is_none_or(|f| f.get(i)) {
                self.offer(groups[i], coupon_of(item));
            }
        });
        Ok(())
    }

    fn merge(&mut self, states: &Column<'_>, groups: &[usize], total: usize) -> Result<()> {
        self.grow(total);
        for (i, &group) in groups.iter().enumerate() {
            fetch_ahead(&self.slots, groups, i);
            let Some(bytes) = states.bytes(i) else { continue };
            if let Some(coupons) = shipped_coupons(bytes) {
                for coupon in coupons.iter().map(|bytes| u32::from_le_bytes(*bytes)) {
                    // A coupon has a value: anything else is none of ours.
                    if coupon >> 26 == 0 {
                        return Err(Error::corrupt_state("what came from another step of the query is no sketch"));
                    }
                    self.offer(group, coupon);
                }
                continue;
            }
            let other = decode::<Sketched<Hll>>(bytes)?;
            let hll = self.large(group);
            let before = hll.heap_size();
            hll.join(&other)?;
            let after = hll.heap_size();
            self.heap = self.heap + after - before;
        }
        Ok(())
    }

    fn rows(&mut self, _: usize) -> Result<Vec<OwnedColumn>> {
        Err(Error::new(crate::error::Code::Unsupported, "a sketch is no row"))
    }

    fn states(&mut self, n: usize) -> Result<OwnedColumn> {
        let (lg_k, mut w, mut image) = (self.lg_k, Writer::default(), Vec::new());
        Ok(self.written(n, |coupons, bytes| {
            image.clear();
            coupon_image(lg_k, coupons, &mut image);
            w.clear();
            w.bytes(&image);
            codec::seal_onto(bytes, Hll::SPEC.type_id, 0, w.as_bytes());
        }))
    }

    fn shipped(&mut self, n: usize) -> Result<OwnedColumn> {
        Ok(self.written(n, |coupons, bytes| {
            bytes.push(SHIPPED);
            coupons.iter().for_each(|coupon| bytes.extend_from_slice(&coupon.to_le_bytes()));
        }))
    }

    fn finish(&mut self, n: usize) -> Result<OwnedColumn> {
        let (mut values, mut validity) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for slot in self.take(n) {
            validity.push(slot.count > 0);
            values.push(match slot.count {
                MANY => self.taken(&slot).distinct()?,
                count => i64::from(count),
            });
        }
        self.sweep();
        Ok(OwnedColumn { ty: Type::INT64, data: OwnedData::Int64(values), validity: Some(validity) })
    }

    fn size(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>() + self.many.capacity() * size_of::<Hll>() + self.heap
    }
}
