//! Maps of many keys, in order: blocks of neighbours, so that one more costs the logarithm of their number and the moving of a block, and
//! that a map takes little more memory than its keys' canonical bytes and its entries.

use crate::value::packed::{self, Packed};
use std::cmp::Ordering;

/// A block is parted when it has this many keys...
const KEYS: usize = 128;
/// ... or this many bytes of them.
const BYTES: usize = 4096;

/// Keys in their canonical bytes, and an entry for each; a set if the entries are nothing.
#[derive(Debug, Clone)]
pub struct Blocks<E> {
    /// None of them empty.
    blocks: Vec<Block<E>>,
}

#[derive(Debug, Clone)]
struct Block<E> {
    keys: Packed,
    entries: Vec<E>,
}

impl<E> Block<E> {
    fn is_full(&self) -> bool {
        self.keys.len() >= KEYS || self.keys.as_bytes().len() >= BYTES
    }
}

impl<E> Default for Blocks<E> {
    fn default() -> Self {
        Blocks { blocks: Vec::new() }
    }
}

impl<E: PartialEq> PartialEq for Blocks<E> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<E> Blocks<E> {
    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.blocks.iter().map(|block| block.keys.len()).sum()
    }

    /// Adds a key behind all others.
    pub fn push(&mut self, key: &[u8], entry: E) {
        match self.blocks.last_mut() {
            Some(block) if !block.is_full() => {
                block.keys.push(key);
                block.entries.push(entry);
            }
            last => {
                if let Some(full) = last {
                    full.keys.shrink_to_fit();
                    full.entries.shrink_to_fit();
                }
                let mut keys = Packed::default();
                keys.push(key);
                self.blocks.push(Block { keys, entries: vec![entry] });
            }
        }
    }

    /// The block that a key belongs into.
    fn block(&self, key: &[u8]) -> usize {
        self.blocks.partition_point(|block| packed::compare(block.keys.get(0), key) != Ordering::Greater).saturating_sub(1)
    }

    /// The entry of a key.
    pub fn get(&self, key: &[u8]) -> Option<&E> {
        let block = self.blocks.get(self.block(key))?;
        block.keys.search(key).ok().map(|at| &block.entries[at])
    }

    /// The entry of a key, changed by `more` if it is there, else made by `new`.
    pub fn say(&mut self, key: &[u8], more: impl FnOnce(&mut E), new: impl FnOnce() -> E) {
        let place = self.block(key);
        let Some(block) = self.blocks.get_mut(place) else { return self.push(key, new()) };
        match block.keys.search(key) {
            Ok(at) => more(&mut block.entries[at]),
            Err(at) => {
                block.keys.insert(at, key);
                block.entries.insert(at, new());
                if block.is_full() && block.keys.len() > 1 {
                    let middle = block.keys.len() / 2;
                    let upper = Block { keys: block.keys.split_off(middle), entries: block.entries.split_off(middle) };
                    self.blocks.insert(place + 1, upper);
                }
            }
        }
    }

    /// Keys and entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &E)> + Clone {
        self.blocks.iter().flat_map(|block| (0..block.keys.len()).map(|i| (block.keys.get(i), &block.entries[i])))
    }

    /// Memory held, in bytes, without what entries hold.
    pub fn heap_size(&self) -> usize {
        let block = |block: &Block<E>| block.keys.heap_size() + block.entries.capacity() * size_of::<E>();
        self.blocks.capacity() * size_of::<Block<E>>() + self.blocks.iter().map(block).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::Random;
    use crate::value::Value;
    use std::collections::BTreeMap;

    #[test]
    fn blocks_are_a_map_in_order() {
        let mut random = Random(3);
        let (mut blocks, mut map) = (Blocks::default(), BTreeMap::new());
        for i in 1..3000u64 {
            let key = match random.below(3) {
                0 => Value::Int(random.below(500) as i128 - 250),
                1 => Value::text("x".repeat(random.below(200))),
                _ => Value::float(random.below(100) as f64),
            };
            packed::with_bytes(&key, |key| blocks.say(key, |known| *known += i, || i));
            *map.entry(key).or_insert(0) += i;
        }
        let found: Vec<(Value, u64)> = blocks.iter().map(|(key, n)| (packed::value(key), *n)).collect();
        assert_eq!(found, map.clone().into_iter().collect::<Vec<_>>());
        assert!(map.iter().all(|(key, n)| packed::with_bytes(key, |key| blocks.get(key) == Some(n))));
        assert_eq!(packed::with_bytes(&Value::Null, |key| blocks.get(key).copied()), None);
        // The same however it came to be.
        let mut pushed = Blocks::default();
        map.iter().for_each(|(key, n)| packed::with_bytes(key, |key| pushed.push(key, *n)));
        assert_eq!(pushed, blocks);
    }
}
