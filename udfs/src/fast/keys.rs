//! Which group a row is of, by a key that is one whole number.

use super::fetch_ahead;
use crate::batch::Bits;
use crate::error::{Code, Error, Result};

/// Groups by number: a table of keys, open and probed in line, which knows a batch of keys at a time. Of a million keys most are in no
/// cache, so the places of a whole batch are computed first and fetched ahead.
#[derive(Debug)]
pub struct KeyTable {
    slots: Vec<Slot>,
    /// The table has `1 << bits` slots.
    bits: u32,
    /// The key of each group.
    keys: Vec<u64>,
    /// The group without a key.
    null: Option<usize>,
    /// Of the batch at hand.
    places: Vec<usize>,
}

/// A key and its group, counted from one; zero is free.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    key: u64,
    group: u32,
}

const LEAST_BITS: u32 = 10;

impl Default for KeyTable {
    fn default() -> Self {
        KeyTable {
            slots: vec![Slot::default(); 1 << LEAST_BITS],
            bits: LEAST_BITS,
            keys: Vec::new(),
            null: None,
            places: Vec::new(),
        }
    }
}

/// Where a key is looked for first: the product's two halves folded, so that every bit of the key counts.
#[inline(always)]
fn place(key: u64, bits: u32) -> usize {
    let wide = u128::from(key ^ 0x9e37_79b9_7f4a_7c15) * u128::from(0xd6e8_feb8_6659_fd93_u64);
    (((wide >> 64) as u64 ^ wide as u64) >> (64 - bits)) as usize
}

impl KeyTable {
    /// How many groups there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// No group yet?
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Memory held, in bytes.
    pub fn size(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>() + (self.keys.capacity() + self.places.capacity()) * 8
    }

    /// Room for so many keys more, with a slot in three free at least.
    fn reserve(&mut self, more: usize) -> Result<()> {
        let wanted = self.keys.len() + more;
        if wanted >= u32::MAX as usize {
            return Err(Error::new(Code::LimitExceeded, "more than four billion keys"));
        }
        if wanted <= self.slots.len() / 3 * 2 {
            return Ok(());
        }
        self.bits = (wanted * 2).next_power_of_two().ilog2();
        self.slots = Vec::new();
        self.slots = vec![Slot::default(); 1 << self.bits];
        for (chunk, keys) in self.keys.chunks(1024).enumerate() {
            self.places.clear();
            self.places.extend(keys.iter().map(|key| place(*key, self.bits)));
            for (i, key) in keys.iter().enumerate() {
                fetch_ahead(&self.slots, &self.places, i);
                let group = chunk * 1024 + i;
                // The group without a key has a place in `keys`, and none here.
                if self.null == Some(group) {
                    continue;
                }
                let mut at = self.places[i];
                while self.slots[at].group != 0 {
                    at = (at + 1) & (self.slots.len() - 1);
                }
                self.slots[at] = Slot { key: *key, group: group as u32 + 1 };
            }
        }
        Ok(())
    }

    /// The group of each row, by keys of which only those that are valid are there; a key that is new is a new group.
    ///
    /// # Errors
    /// `limit_exceeded` for four billion keys.
    pub fn groups(&mut self, keys: &[u64], valid: Option<Bits<'_>>, groups: &mut Vec<usize>) -> Result<()> {
        self.reserve(keys.len())?;
        groups.clear();
        self.places.clear();
        self.places.extend(keys.iter().map(|key| place(*key, self.bits)));
        let last = self.slots.len() - 1;
        for (i, key) in keys.iter().enumerate() {
            fetch_ahead(&self.slots, &self.places, i);
            if valid.is_some_and(|valid| !valid.get(i)) {
                let new = self.keys.len();
                let group = *self.null.get_or_insert(new);
                if group == new {
                    self.keys.push(0);
                }
                groups.push(group);
                continue;
            }
            let mut at = self.places[i];
            loop {
                let slot = &mut self.slots[at];
                if slot.group == 0 {
                    self.keys.push(*key);
                    *slot = Slot { key: *key, group: self.keys.len() as u32 };
                }
                if slot.key == *key {
                    groups.push(slot.group as usize - 1);
                    break;
                }
                at = (at + 1) & last;
            }
        }
        Ok(())
    }

    /// The keys of the groups in order, and which of them is the one without a key; the table is empty then.
    pub fn take(&mut self) -> (Vec<u64>, Option<usize>) {
        let KeyTable { keys, null, .. } = std::mem::take(self);
        (keys, null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Keys that are near, far, the same in their lower bits or their upper, and none.
    #[test]
    fn groups_are_those_of_a_map() {
        for spread in [1u64, 1 << 20, 1 << 44, 0x9e37_79b9_7f4a_7c15] {
            let (mut table, mut known, mut groups) = (KeyTable::default(), HashMap::new(), Vec::new());
            for batch in 0..40u64 {
                let keys: Vec<u64> = (0..1000).map(|i| ((batch * 577 + i * 31) % 20_011).wrapping_mul(spread)).collect();
                let bits: Vec<u8> = (0..125).map(|i| if (i + batch) % 9 == 0 { 0b1110_1111 } else { 0xff }).collect();
                table.groups(&keys, Some(Bits::new(&bits, 0)), &mut groups).expect("room");
                for (i, key) in keys.iter().enumerate() {
                    let key = Bits::new(&bits, 0).get(i).then_some(*key);
                    let next = known.len();
                    assert_eq!(groups[i], *known.entry(key).or_insert(next), "{key:?}");
                }
            }
            assert_eq!(table.len(), known.len());
            let (keys, null) = table.take();
            assert_eq!(null, known.get(&None).copied());
            assert!(known.iter().all(|(key, group)| key.is_none_or(|key| keys[*group] == key)));
            assert!(table.is_empty());
        }
    }
}
