//! A list of byte strings or of texts for each group, all in one arena: what stores of sets keep until somebody asks.

use super::fetch_ahead;

const NONE: u32 = u32::MAX;
/// A group with more items than this is settled.
const CROWDED: u32 = 32;
/// So many of the newest items are looked at before one more is added.
const NEAR: usize = 4;
/// What is dropped stays in the arena until it is half of it, and more than this.
const KEPT_BYTES: usize = 1 << 16;

/// What items lie in: bytes, or text.
pub(super) trait Arena: Default + Send + Sync {
    type Item: ?Sized + PartialEq;
    fn item(&self, start: usize, length: u32) -> &Self::Item;
    /// Adds an item at the end, and says how long it is.
    fn push(&mut self, item: &Self::Item) -> u32;
    fn len(&self) -> usize;
    fn capacity(&self) -> usize;
}

impl Arena for Vec<u8> {
    type Item = [u8];
    fn item(&self, start: usize, length: u32) -> &[u8] {
        &self[start..start + length as usize]
    }
    fn push(&mut self, item: &[u8]) -> u32 {
        self.extend_from_slice(item);
        item.len() as u32
    }
    fn len(&self) -> usize {
        self.len()
    }
    fn capacity(&self) -> usize {
        self.capacity()
    }
}

impl Arena for String {
    type Item = str;
    fn item(&self, start: usize, length: u32) -> &str {
        &self[start..start + length as usize]
    }
    fn push(&mut self, item: &str) -> u32 {
        self.push_str(item);
        item.len() as u32
    }
    fn len(&self) -> usize {
        self.len()
    }
    fn capacity(&self) -> usize {
        self.capacity()
    }
}

#[derive(Default)]
pub(super) struct Lists<A> {
    groups: Vec<Group>,
    nodes: Vec<Node>,
    arena: A,
    /// Bytes of the arena that no list points to, and nodes.
    dropped: usize,
}

/// The list of one group: its newest node, how many there are, and how many there may be before it is settled.
#[derive(Clone, Copy)]
struct Group {
    head: u32,
    count: u32,
    /// 0 before anything came to the group.
    limit: u32,
}

const UNTOUCHED: Group = Group { head: NONE, count: 0, limit: 0 };

#[derive(Clone, Copy)]
struct Node {
    start: usize,
    length: u32,
    next: u32,
}

impl<A: Arena> Lists<A> {
    /// Makes place for so many groups.
    pub(super) fn grow(&mut self, total: usize) {
        if self.groups.len() < total {
            self.groups.resize(total, UNTOUCHED);
        }
    }

    pub(super) fn fetch_ahead(&self, groups: &[usize], row: usize) {
        fetch_ahead(&self.groups, groups, row);
    }

    /// How many groups there are.
    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether anything came to a group, if only an empty set.
    pub(super) fn is_touched(&self, group: usize) -> bool {
        self.groups[group].limit > 0
    }

    pub(super) fn touch(&mut self, group: usize) {
        let list = &mut self.groups[group];
        list.limit = list.limit.max(CROWDED);
    }

    /// Adds an item unless it is among the newest. Whether the list has become crowded.
    #[inline]
    pub(super) fn add(&mut self, group: usize, item: &A::Item) -> bool {
        if self.items(group).take(NEAR).any(|near| near == item) {
            return false;
        }
        self.touch(group);
        let start = self.arena.len();
        let length = self.arena.push(item);
        let list = &mut self.groups[group];
        self.nodes.push(Node { start, length, next: list.head });
        list.head = (self.nodes.len() - 1) as u32;
        list.count += 1;
        list.count > list.limit
    }

    /// The items of a group, the newest first.
    #[inline]
    pub(super) fn items(&self, group: usize) -> impl Iterator<Item = &A::Item> {
        let mut at = self.groups[group].head;
        std::iter::from_fn(move || {
            let node = *self.nodes.get(at as usize)?;
            at = node.next;
            Some(self.arena.item(node.start, node.length))
        })
    }

    /// A crowded list became these items, which say the same. It is crowded again once twice as many came as `parts`.
    pub(super) fn settle<'a>(&mut self, group: usize, parts: usize, items: impl Iterator<Item = &'a A::Item>)
    where
        A::Item: 'a,
    {
        let list = self.groups[group];
        let mut at = list.head;
        while let Some(node) = self.nodes.get(at as usize) {
            self.dropped += node.length as usize + size_of::<Node>();
            at = node.next;
        }
        let limit = u32::try_from(parts * 2).unwrap_or(u32::MAX).max(CROWDED);
        self.groups[group] = Group { limit, ..UNTOUCHED };
        for item in items {
            self.add(group, item);
        }
        if self.dropped > KEPT_BYTES && self.dropped > (self.arena.len() + self.nodes.len() * size_of::<Node>()) / 2 {
            self.shed();
        }
    }

    /// The first `n` groups leave.
    pub(super) fn drop_first(&mut self, n: usize) {
        self.groups.drain(..n.min(self.groups.len()));
        self.shed();
    }

    /// Keeps only what the groups still point to.
    fn shed(&mut self) {
        let old = std::mem::take(&mut self.arena);
        let old_nodes = std::mem::take(&mut self.nodes);
        self.dropped = 0;
        for list in &mut self.groups {
            let mut at = std::mem::replace(&mut list.head, NONE);
            while let Some(node) = old_nodes.get(at as usize) {
                let start = self.arena.len();
                let length = self.arena.push(old.item(node.start, node.length));
                self.nodes.push(Node { start, length, next: list.head });
                list.head = (self.nodes.len() - 1) as u32;
                at = node.next;
            }
        }
    }

    /// Memory held, in bytes.
    pub(super) fn size(&self) -> usize {
        self.groups.capacity() * size_of::<Group>() + self.nodes.capacity() * size_of::<Node>() + self.arena.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_takes_no_memory() {
        let mut lists: Lists<Vec<u8>> = Lists::default();
        lists.grow(2);
        let mut most = 0;
        for i in 0..1_000_000u32 {
            let item = (i % 50).to_le_bytes();
            if lists.add(1, &item) {
                let mut items: Vec<Vec<u8>> = lists.items(1).map(Into::into).collect();
                items.sort_unstable();
                items.dedup();
                lists.settle(1, items.len(), items.iter().map(Vec::as_slice));
            }
            most = most.max(lists.size());
        }
        assert!(most < 4 * KEPT_BYTES, "{most}");
        assert!(lists.is_touched(1) && !lists.is_touched(0));
        lists.drop_first(1);
        let mut items: Vec<&[u8]> = lists.items(0).collect();
        items.sort_unstable();
        items.dedup();
        assert_eq!(items.len(), 50);
    }
}
