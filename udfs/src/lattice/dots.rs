//! Dots: events that happen once each, the `n`th of an origin, and what is known of them. The lattice of sets and flags whose elements
//! can be removed (Bieniusa et al. 2012; Almeida, Shoker, Baquero 2018: causal contexts with dot stores).
//!
//! Of each dot one of three things is known, in this order: nothing; that it holds a value; that it is over. A removal ends the dots that
//! it has seen, so that a dot made elsewhere at the same time lives on. Two values under one dot are a fault of whoever numbers them:
//! the dot is over then, which is their least upper bound.

use crate::codec::{Reader, Writer};
use crate::error::{Code, Error, Result};
use crate::lattice::origins::Origins;
use crate::value::Value;

/// Counters of one origin that were seen, as runs of neighbours: first and last, in order, with gaps between them.
pub type Runs = Vec<(u64, u64)>;

/// The dots of a value: origin and counter, in order.
type Dots = Vec<(Value, u64)>;

/// What is known of dots.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DotStore {
    /// Every dot that was seen.
    seen: Origins<Runs>,
    /// Values with the dots that hold them, sorted by value.
    live: Vec<(Value, Dots)>,
}

/// The dot of a row (value, origin, counter, ...); `None` for a row of nothing.
///
/// # Errors
/// `invalid_argument` for an origin or a counter that is none.
pub fn dot_of(row: &[Value]) -> Result<Option<(&Value, u64)>> {
    let (origin, n) = match (&row[1], &row[2]) {
        (Value::Null, Value::Null) if row[0].is_null() => return Ok(None),
        (origin, Value::Int(n)) => {
            (crate::lattice::origins::origin(origin)?, u64::try_from(*n).ok().filter(|n| (1..=LAST).contains(n)))
        }
        (_, other) => return Err(Error::invalid_argument(format!("the counter of a dot is an integer, not {other}"))),
    };
    let n = n.ok_or_else(|| Error::invalid_argument(format!("the counter of a dot is from 1 to {LAST}, not {}", row[2])))?;
    Ok(Some((origin, n)))
}

/// The greatest counter of an origin: what every host's integers hold.
const LAST: u64 = i64::MAX as u64;

/// That an origin can say nothing more.
pub(crate) fn counted(origin: &Value) -> Error {
    Error::new(Code::LimitExceeded, format!("`{origin}` has counted as far as counters go"))
        .with_help("go on with an origin of another name")
}

fn contains(runs: &Runs, n: u64) -> bool {
    runs.binary_search_by(|(first, last)| {
        if *last < n {
            std::cmp::Ordering::Less
        } else if *first > n {
            std::cmp::Ordering::Greater
        } else {
            std::cmp::Ordering::Equal
        }
    })
    .is_ok()
}

fn add_run(runs: &mut Runs, first: u64, last: u64) {
    // Runs that touch the new one become part of it.
    let from = runs.partition_point(|(_, l)| l.saturating_add(1) < first);
    let to = runs.partition_point(|(f, _)| *f <= last.saturating_add(1));
    if from == to {
        runs.insert(from, (first, last));
        return;
    }
    let joined = (runs[from].0.min(first), runs[to - 1].1.max(last));
    runs.splice(from..to, [joined]);
}

impl DotStore {
    /// Whether a dot was seen.
    pub fn knows(&self, origin: &Value, n: u64) -> bool {
        self.seen.get(origin).is_some_and(|runs| contains(runs, n))
    }

    fn see(&mut self, origin: &Value, first: u64, last: u64) {
        self.seen.say(origin, |runs| add_run(runs, first, last), || vec![(first, last)]);
    }

    /// The greatest counter of an origin.
    pub fn last(&self, origin: &Value) -> u64 {
        self.seen.get(origin).and_then(|runs| runs.last()).map_or(0, |(_, last)| *last)
    }

    /// The counters that were seen of each origin, as runs: first and last.
    pub fn seen(&self) -> impl Iterator<Item = (&Value, &Runs)> {
        self.seen.iter()
    }

    /// Nothing was seen?
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// The values that some dot holds, in order.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &Value> {
        self.live.iter().map(|(value, _)| value)
    }

    fn end(&mut self, origin: &Value, n: u64) {
        for (_, dots) in &mut self.live {
            dots.retain(|(o, m)| !(o == origin && *m == n));
        }
        self.live.retain(|(_, dots)| !dots.is_empty());
    }

    fn holds(&self, value: &Value, origin: &Value, n: u64) -> bool {
        let dots = self.live.binary_search_by(|(v, _)| v.cmp(value)).map(|at| &self.live[at].1);
        dots.is_ok_and(|dots| dots.iter().any(|(o, m)| o == origin && *m == n))
    }

    fn hold(&mut self, value: &Value, origin: &Value, n: u64) {
        let dot = (origin.clone(), n);
        match self.live.binary_search_by(|(v, _)| v.cmp(value)) {
            Ok(at) => {
                let dots = &mut self.live[at].1;
                if let Err(place) = dots.binary_search(&dot) {
                    dots.insert(place, dot);
                }
            }
            Err(at) => self.live.insert(at, (value.clone(), vec![dot])),
        }
    }

    /// Learns that a dot holds a value, or with `None` that it is over.
    pub fn learn(&mut self, value: Option<&Value>, origin: &Value, n: u64) {
        match value {
            Some(value) if !self.knows(origin, n) => self.hold(value, origin, n),
            Some(value) if self.holds(value, origin, n) => {}
            _ => self.end(origin, n),
        }
        self.see(origin, n, n);
    }

    /// Learns that a run of dots, of which none holds a value, is over.
    pub fn learn_run(&mut self, origin: &Value, first: u64, last: u64) {
        debug_assert!(self.live.is_empty());
        self.see(origin, first, last);
    }

    /// The counter of an origin's next dot.
    ///
    /// # Errors
    /// `limit_exceeded`.
    pub fn next(&self, origin: &Value) -> Result<u64> {
        let next = self.last(origin) + 1;
        if next <= LAST { Ok(next) } else { Err(counted(origin)) }
    }

    /// A new dot of an origin holds a value, in place of those that were seen to.
    ///
    /// # Errors
    /// `limit_exceeded`.
    pub fn add(&mut self, value: &Value, origin: &Value) -> Result<()> {
        let n = self.next(origin)?;
        self.remove(value);
        self.learn(Some(value), origin, n);
        Ok(())
    }

    /// The dots that hold a value are over; they stay seen.
    pub fn remove(&mut self, value: &Value) {
        self.live.retain(|(v, _)| v != value);
    }

    /// Every dot that was seen is over.
    pub fn clear(&mut self) {
        self.live.clear();
    }

    /// The least upper bound.
    pub fn join(&mut self, other: &DotStore) {
        // A dot lives on where both hold it, or one does and the other has not seen it.
        let mut live = Vec::new();
        for (value, dots) in &self.live {
            let kept = |(origin, n): &&(Value, u64)| !other.knows(origin, *n) || other.holds(value, origin, *n);
            let kept: Dots = dots.iter().filter(kept).cloned().collect();
            if !kept.is_empty() {
                live.push((value.clone(), kept));
            }
        }
        let fresh: Vec<(Value, Value, u64)> = other
            .live
            .iter()
            .flat_map(|(value, dots)| dots.iter().map(move |(origin, n)| (value, origin, *n)))
            .filter(|(_, origin, n)| !self.knows(origin, *n))
            .map(|(value, origin, n)| (value.clone(), origin.clone(), n))
            .collect();
        self.live = live;
        for (value, origin, n) in &fresh {
            self.hold(value, origin, *n);
        }
        for (origin, runs) in other.seen.iter() {
            runs.iter().for_each(|(first, last)| self.see(origin, *first, *last));
        }
    }

    /// The least store that adds to `since` what this one does.
    pub fn delta(&self, since: &DotStore) -> DotStore {
        let mut delta = DotStore::default();
        for (origin, runs) in self.seen.iter() {
            for (first, last) in runs {
                // Stretches that the other has not seen.
                let mut from = *first;
                let none = Runs::new();
                for (known_first, known_last) in since.seen.get(origin).unwrap_or(&none) {
                    if *known_last < from || *known_first > *last {
                        continue;
                    }
                    if *known_first > from {
                        delta.see(origin, from, known_first - 1);
                    }
                    from = known_last.saturating_add(1);
                }
                if from <= *last {
                    delta.see(origin, from, *last);
                }
            }
        }
        for (value, dots) in &self.live {
            for (origin, n) in dots.iter().filter(|(origin, n)| !since.knows(origin, *n)) {
                delta.hold(value, origin, *n);
            }
        }
        // What is over here and lives there.
        for (value, dots) in &since.live {
            for (origin, n) in dots.iter().filter(|(origin, n)| self.knows(origin, *n) && !self.holds(value, origin, *n)) {
                delta.see(origin, *n, *n);
            }
        }
        delta
    }

    /// Writes origins with their runs, then values with their dots, an origin by its place in the list.
    pub fn encode(&self, w: &mut Writer) {
        let origins: Vec<&Value> = self.seen.iter().map(|(origin, _)| origin).collect();
        w.length(origins.len());
        for (origin, runs) in self.seen.iter() {
            w.value(origin);
            w.length(runs.len());
            let mut before = 0;
            for (first, last) in runs {
                w.varint((first - before).into());
                w.varint((last - first).into());
                before = *last;
            }
        }
        w.length(self.live.len());
        for (value, dots) in &self.live {
            w.value(value);
            w.length(dots.len());
            for (origin, n) in dots {
                w.length(origins.binary_search(&origin).unwrap_or_default());
                w.varint((*n).into());
            }
        }
    }

    /// Reads what [`DotStore::encode`] wrote.
    ///
    /// # Errors
    /// `corrupt_state` for dots out of order, unseen or twice.
    pub fn decode(r: &mut Reader<'_>) -> Result<DotStore> {
        let corrupt = |what: &str| Error::corrupt_state(format!("the dots in the state {what}"));
        let counter = |r: &mut Reader<'_>| u64::try_from(r.varint()?).map_err(|_| corrupt("are too great"));
        let mut store = DotStore::default();
        let mut origins: Vec<Value> = Vec::new();
        for _ in 0..r.length()? {
            let origin = r.value()?;
            if origin.is_null() || origins.last().is_some_and(|last| *last >= origin) {
                return Err(corrupt("have origins out of order"));
            }
            let mut before = 0u64;
            let mut runs = Runs::new();
            for _ in 0..r.length()? {
                let (gap, length) = (counter(r)?, counter(r)?);
                // Runs that touch are one run, and counters begin at one.
                let least = if runs.is_empty() { 1 } else { 2 };
                let first = before.checked_add(gap).filter(|_| gap >= least).ok_or_else(|| corrupt("are out of order"))?;
                let last = first.checked_add(length).filter(|last| *last <= LAST).ok_or_else(|| corrupt("are too great"))?;
                runs.push((first, last));
                before = last;
            }
            if runs.is_empty() {
                return Err(corrupt("have an origin without any"));
            }
            store.seen.say(&origin, |_| (), || runs);
            origins.push(origin);
        }
        let mut dots_of_all: Vec<(usize, u64)> = Vec::new();
        for _ in 0..r.length()? {
            let value = r.value()?;
            if store.live.last().is_some_and(|(last, _)| *last >= value) {
                return Err(corrupt("hold values out of order"));
            }
            let mut dots = Dots::new();
            for _ in 0..r.length()? {
                let (at, n) = (counter(r)? as usize, counter(r)?);
                let origin = origins.get(at).ok_or_else(|| corrupt("have an unknown origin"))?;
                let dot = (origin.clone(), n);
                if !store.knows(origin, n) || dots.last().is_some_and(|last| *last >= dot) {
                    return Err(corrupt("are out of order"));
                }
                dots_of_all.push((at, n));
                dots.push(dot);
            }
            if dots.is_empty() {
                return Err(corrupt("hold a value without any"));
            }
            store.live.push((value, dots));
        }
        dots_of_all.sort_unstable();
        if dots_of_all.windows(2).any(|w| w[0] == w[1]) {
            return Err(corrupt("hold two values"));
        }
        Ok(store)
    }

    /// Memory held, in bytes.
    pub fn heap_size(&self) -> usize {
        let seen = crate::lattice::origins::heap_size(&self.seen, |runs| runs.len() * size_of::<(u64, u64)>());
        let live = self.live.iter().map(|(v, dots)| {
            size_of::<(Value, Dots)>()
                + v.heap_size()
                + dots.iter().map(|(o, _)| size_of::<(Value, u64)>() + o.heap_size()).sum::<usize>()
        });
        seen + live.sum::<usize>()
    }

    /// Everything, for people.
    pub fn info(&self) -> Value {
        let dot = |(origin, n): &(Value, u64)| Value::List(vec![origin.clone(), Value::Int((*n).into())]);
        let held = |(value, dots): &(Value, Dots)| {
            Value::record(vec![("value".into(), value.clone()), ("dots".into(), Value::List(dots.iter().map(dot).collect()))])
        };
        let run = |(first, last): &(u64, u64)| Value::List(vec![Value::Int((*first).into()), Value::Int((*last).into())]);
        Value::record(vec![
            (
                "seen".into(),
                Value::map(self.seen.iter().map(|(o, runs)| (o.clone(), Value::List(runs.iter().map(run).collect()))).collect()),
            ),
            ("held".into(), Value::List(self.live.iter().map(held).collect())),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_touch_become_one() {
        let mut runs = Runs::new();
        for n in [5, 1, 2, 9, 4, 3] {
            add_run(&mut runs, n, n);
        }
        assert_eq!(runs, [(1, 5), (9, 9)]);
        add_run(&mut runs, 6, 8);
        assert_eq!(runs, [(1, 9)]);
        assert!(contains(&runs, 9) && !contains(&runs, 10));
    }

    #[test]
    fn an_element_that_was_removed_stays_removed_until_it_is_added_anew() {
        let (elem, a, b) = (Value::text("x"), Value::text("a"), Value::text("b"));
        let mut left = DotStore::default();
        left.add(&elem, &a).unwrap();
        let mut right = left.clone();
        right.remove(&elem);
        left.join(&right);
        assert_eq!(left.values().len(), 0);
        // Added on one side while it is removed on the other: it stays.
        let mut other = right.clone();
        other.add(&elem, &b).unwrap();
        other.join(&left);
        assert_eq!(other.values().len(), 1);
    }
}
