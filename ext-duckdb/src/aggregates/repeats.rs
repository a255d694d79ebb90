//! `mergeql_repeats(key)`: whether a number is there twice. What joins two tables by key in place of grouping them asks this first.

use super::Set;
use super::driver::{Kept, States, kept};
use crate::api::{Connection, LogicalType, Pointer, id};
use crate::vectors::{Vector, put};
use mergeql_udfs::{Error, Type};
use std::collections::HashMap;

/// Registers `mergeql_repeats`, of whole numbers: the key itself, or its hash.
pub(super) fn register(connection: &Connection) -> Result<(), String> {
    let mut set = Set::new("mergeql_repeats");
    for number in [id::BIGINT, id::UBIGINT] {
        let number = LogicalType::of_id(number);
        set.add(std::slice::from_ref(&number), &LogicalType::of(&Type::Boolean), (), &kept::<Seen>())?;
    }
    set.register(connection)
}

/// Numbers on a page, a bit each.
const PAGE: usize = 1 << 16;
type Page = Box<[u64; PAGE / 64]>;

/// The memory of numbers at most, in bytes; more of them are taken for numbers that repeat.
const MOST: usize = 512 << 20;

/// The numbers so far.
enum Seen {
    /// As bits, while they lie close to one another.
    Dense(Dense),
    /// As they are.
    Sparse(Sparse),
    /// One of them is there twice.
    Repeats,
}

impl Default for Seen {
    fn default() -> Self {
        Seen::Dense(Dense::default())
    }
}

#[derive(Default)]
struct Dense {
    pages: HashMap<u64, Page>,
    count: usize,
}

fn page_of(number: u64) -> u64 {
    number / PAGE as u64
}

impl Dense {
    fn page(&mut self, page: u64) -> &mut Page {
        self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE / 64]))
    }

    /// Whether all these numbers are new.
    fn insert(&mut self, numbers: impl Iterator<Item = u64>) -> bool {
        let mut numbers = numbers.peekable();
        let mut new = true;
        while let Some(&first) = numbers.peek() {
            let page = page_of(first);
            let bits = self.page(page);
            let mut count = 0;
            while let Some(number) = numbers.next_if(|n| page_of(*n) == page) {
                let at = number as usize % PAGE;
                let (word, bit) = (&mut bits[at / 64], 1 << (at % 64));
                new &= *word & bit == 0;
                *word |= bit;
                count += 1;
            }
            self.count += count;
        }
        new
    }

    /// The bytes of the pages.
    fn size(&self) -> usize {
        self.pages.len() * (PAGE / 8)
    }

    /// Whether the numbers would take less room as they are.
    fn is_thin(&self) -> bool {
        self.size() > (1 << 20) + self.count * size_of::<u64>()
    }

    fn numbers(&self) -> impl Iterator<Item = u64> {
        self.pages.iter().flat_map(|(page, bits)| {
            bits.iter().enumerate().flat_map(move |(word, bits)| {
                let mut left = *bits;
                std::iter::from_fn(move || {
                    let bit = (left != 0).then(|| left.trailing_zeros())?;
                    left &= left - 1;
                    Some(page * PAGE as u64 + word as u64 * 64 + u64::from(bit))
                })
            })
        })
    }

    /// Whether the two have no number in common.
    fn join(&mut self, other: &Dense) -> bool {
        self.count += other.count;
        other.pages.iter().all(|(page, theirs)| {
            let ours = self.page(*page);
            let apart = ours.iter().zip(theirs.iter()).all(|(ours, theirs)| ours & theirs == 0);
            ours.iter_mut().zip(theirs.iter()).for_each(|(ours, theirs)| *ours |= theirs);
            apart
        })
    }
}

/// Numbers parted by their hash, so that a table of each part stays within the processor's cache.
struct Sparse {
    parts: Vec<Vec<u64>>,
    count: usize,
    /// How many there were when they were last looked through.
    checked: usize,
}

/// An odd factor maps no two numbers to one.
fn hash(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Sparse {
    const PART_BITS: u32 = 8;

    fn new() -> Sparse {
        Sparse { parts: vec![Vec::new(); 1 << Self::PART_BITS], count: 0, checked: 0 }
    }

    #[inline]
    fn insert(&mut self, number: u64) {
        self.parts[(hash(number) >> (u64::BITS - Self::PART_BITS)) as usize].push(number);
        self.count += 1;
    }

    /// Whether it is time to look for repetitions, so that what repeats often is known early: all looking costs hardly more than the last.
    fn is_due(&self) -> bool {
        self.count > 1024 && self.count / 8 > self.checked
    }

    /// Whether a number is there twice, or there are too many to tell.
    fn repeats(&self) -> bool {
        let mut table = Vec::new();
        self.count * size_of::<u64>() > MOST || self.parts.iter().any(|part| has_repetition(part, &mut table))
    }

    fn join(&mut self, other: &Sparse) {
        self.count += other.count;
        self.parts.iter_mut().zip(&other.parts).for_each(|(ours, theirs)| ours.extend_from_slice(theirs));
    }
}

/// Whether a number of one part is there twice, by a table with room for twice as many.
fn has_repetition(part: &[u64], table: &mut Vec<u64>) -> bool {
    const EMPTY: u64 = 0;
    let bits = (part.len() * 2).next_power_of_two().trailing_zeros().max(1);
    table.clear();
    table.resize(1 << bits, EMPTY);
    let mut zeros = 0;
    for &number in part {
        if number == EMPTY {
            zeros += 1;
            continue;
        }
        // The first bits of the hash are those of the part.
        let mut at = ((hash(number) << Sparse::PART_BITS) >> (u64::BITS - bits)) as usize;
        while table[at] != EMPTY {
            if table[at] == number {
                return true;
            }
            at = (at + 1) & (table.len() - 1);
        }
        table[at] = number;
    }
    zeros > 1
}

impl Seen {
    fn insert(&mut self, numbers: impl Iterator<Item = u64>) {
        match self {
            Seen::Dense(dense) => {
                if !dense.insert(numbers) || dense.size() > MOST {
                    *self = Seen::Repeats;
                } else if dense.is_thin() {
                    *self = Seen::Sparse(sparse(dense));
                }
            }
            Seen::Sparse(sparse) => {
                numbers.for_each(|number| sparse.insert(number));
                if sparse.is_due() {
                    sparse.checked = sparse.count;
                    if sparse.repeats() {
                        *self = Seen::Repeats;
                    }
                }
            }
            Seen::Repeats => {}
        }
    }

    fn join(&mut self, other: &Seen) {
        match (&mut *self, other) {
            (Seen::Repeats, _) => {}
            (_, Seen::Repeats) => *self = Seen::Repeats,
            (Seen::Dense(ours), Seen::Dense(theirs)) => {
                if !ours.join(theirs) {
                    *self = Seen::Repeats;
                }
            }
            (Seen::Sparse(ours), Seen::Sparse(theirs)) => ours.join(theirs),
            (Seen::Sparse(ours), Seen::Dense(theirs)) => theirs.numbers().for_each(|number| ours.insert(number)),
            (Seen::Dense(ours), Seen::Sparse(theirs)) => {
                let mut all = sparse(ours);
                all.join(theirs);
                *self = Seen::Sparse(all);
            }
        }
    }

    /// Whether a number is there twice, or there are too many to tell.
    fn repeats(&self) -> bool {
        match self {
            Seen::Dense(_) => false,
            Seen::Repeats => true,
            Seen::Sparse(sparse) => sparse.repeats(),
        }
    }
}

fn sparse(dense: &Dense) -> Sparse {
    let mut sparse = Sparse::new();
    dense.numbers().for_each(|number| sparse.insert(number));
    sparse
}

impl Kept for Seen {
    type Info = ();

    fn update((): &(), vectors: &[Vector], rows: usize, states: &mut States<Self>) -> Result<(), Error> {
        let keys = &vectors[0];
        // SAFETY: both overloads take numbers of 64 bits.
        let numbers = unsafe { keys.slice::<u64>(rows) };
        let mut from = 0;
        while from < rows {
            // Most often all rows have one state.
            let to = (from + 1..rows).find(|i| !states.same(from, *i)).unwrap_or(rows);
            let seen = states.at(from);
            if !matches!(seen, Seen::Repeats) {
                seen.insert((from..to).filter(|i| keys.is_valid(*i)).map(|i| numbers[i]));
            }
            from = to;
        }
        Ok(())
    }

    fn join(&mut self, other: &Self, (): &()) -> Result<(), Error> {
        self.join(other);
        Ok(())
    }

    unsafe fn finish(&self, (): &(), out: Pointer, i: usize) -> Result<(), Error> {
        // SAFETY: as the caller promises, the result is a truth value.
        unsafe { put(out, i, self.repeats()) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Seen;

    fn seen(numbers: impl Iterator<Item = u64>) -> Seen {
        let mut seen = Seen::default();
        let numbers: Vec<u64> = numbers.collect();
        numbers.chunks(2048).for_each(|chunk| seen.insert(chunk.iter().copied()));
        seen
    }

    #[test]
    fn a_number_that_is_there_twice_is_found_wherever_it_is() {
        let scattered = |i: u64| i.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5555;
        let close = |i: u64| i.wrapping_sub(3000);
        let kinds: [(&str, &dyn Fn(u64) -> u64); 2] = [("close", &close), ("scattered", &scattered)];
        for (kind, number) in kinds {
            for (other, of_other) in kinds {
                for count in [1, 2, 2048, 40_000] {
                    assert!(!seen((0..count).map(number)).repeats(), "{kind} {count}");
                    for (again, at) in [(0, count), (count - 1, count), (count / 2, count / 2)] {
                        let numbers = (0..at).chain([again]).chain(at..count).map(number);
                        assert!(at == again || seen(numbers).repeats(), "{kind} {count}: {again} at {at}");
                    }
                    let mut joined = seen((0..count).map(number));
                    joined.join(&seen((count..2 * count).map(number)));
                    assert!(!joined.repeats(), "{kind} {count}");
                    let mut joined = seen((0..count).map(number));
                    joined.join(&seen((count..2 * count).map(of_other).chain([number(count / 2)])));
                    assert!(joined.repeats(), "{kind} {other} {count}");
                }
            }
        }
    }
}
