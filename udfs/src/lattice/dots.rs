//! Dots: events that happen once each, the `n`th of an origin, and what is known of them. The lattice of sets and flags whose elements
//! can be removed (Bieniusa et al. 2012; Almeida, Shoker, Baquero 2018: causal contexts with dot stores).
//!
//! Of each dot one of three things is known, in this order: nothing; that it holds a value; that it is over. A removal ends the dots that
//! it has seen, so that a dot made elsewhere at the same time lives on. Two values under one dot are a fault of whoever numbers them:
//! the dot is over then, which is their least upper bound.
//!
//! What is known lies in sorted arrays, which two stores are joined by in one pass. A store that learns keeps what is new in arrays of its
//! own, each at least twice as large as the next, so that `n` rows or joins cost `n log n` (O'Neil et al. 1996, The log-structured
//! merge-tree); who reads has them as one.

use crate::codec::{Reader, Writer};
use crate::error::{Code, Error, Result};
use crate::lattice::origins::Origins;
use crate::value::Value;
use crate::value::packed::{self, Packed, with_bytes};
use std::borrow::Cow;
use std::cmp::Ordering;

/// Neighbouring counters of an origin that were seen.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Run {
    origin: u32,
    first: u64,
    last: u64,
}

/// A dot, and the place of the value that it holds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Dot {
    origin: u32,
    value: u32,
    n: u64,
}

impl Dot {
    fn key(&self) -> (u32, u64) {
        (self.origin, self.n)
    }
}

/// Knowledge in order.
#[derive(Debug, Clone, Default)]
struct Known {
    /// Every dot that was seen; runs do not touch.
    runs: Vec<Run>,
    /// Those that hold a value.
    live: Vec<Dot>,
    /// The values that they hold, each once.
    values: Packed,
}

/// What is known of dots. Origins have numbers, in the order in which they came.
#[derive(Debug, Clone, Default)]
pub struct DotStore {
    origins: Origins<u32>,
    /// The greatest first.
    levels: Vec<Known>,
    /// What was learned since: dots, with the places of their values, or [`OVER`].
    rows: Vec<Dot>,
    row_values: Packed,
}

/// The place of no value: the dot is over.
const OVER: u32 = u32::MAX;
/// How many rows wait before they are put in order.
const ROWS: usize = 64;

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

/// Adds a run behind those that begin before it; runs that touch become one.
fn add_run(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.origin == run.origin && run.first <= last.last.saturating_add(1) => last.last = last.last.max(run.last),
        _ => runs.push(run),
    }
}

/// Asks of ascending dots whether runs have them.
struct Seen<'a>(&'a [Run]);

impl Seen<'_> {
    fn has(&mut self, origin: u32, n: u64) -> bool {
        while let Some(run) = self.0.first()
            && (run.origin, run.last) < (origin, n)
        {
            self.0 = &self.0[1..];
        }
        self.0.first().is_some_and(|run| run.origin == origin && run.first <= n)
    }
}

/// Two lists in one order as one; of items that are equal in it, both.
fn in_step<'a, T>(
    a: &'a [T],
    b: &'a [T],
    compare: impl Fn(&T, &T) -> Ordering,
) -> impl Iterator<Item = (Option<&'a T>, Option<&'a T>)> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (a.peek(), b.peek()) {
            (Some(x), Some(y)) => compare(x, y),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let x = if order == Ordering::Greater { None } else { a.next() };
        let y = if order == Ordering::Less { None } else { b.next() };
        Some((x, y))
    })
}

impl Known {
    /// What rows say, with the places of their values in a list.
    fn of_rows(mut rows: Vec<Dot>, listed: &Packed) -> Known {
        // The values, each once, and where each row's came to be.
        let mut order: Vec<u32> = (0..listed.len() as u32).collect();
        order.sort_unstable_by(|a, b| packed::compare(listed.get(*a as usize), listed.get(*b as usize)));
        let (mut values, mut places) = (Packed::default(), vec![0; listed.len()]);
        for i in order {
            let value = listed.get(i as usize);
            if values.is_empty() || values.get(values.len() - 1) != value {
                values.push(value);
            }
            places[i as usize] = values.len() as u32 - 1;
        }
        rows.iter_mut().filter(|row| row.value != OVER).for_each(|row| row.value = places[row.value as usize]);
        rows.sort_unstable_by_key(Dot::key);
        let (mut known, mut lost) = (Known { values, ..Known::default() }, false);
        for rows in rows.chunk_by(|a, b| a.key() == b.key()) {
            let dot = rows[0];
            add_run(&mut known.runs, Run { origin: dot.origin, first: dot.n, last: dot.n });
            if rows.iter().any(|row| row.value != dot.value) {
                lost = true;
            } else if dot.value != OVER {
                known.live.push(dot);
            }
        }
        // What stood under a dot with another value is held by none.
        if lost {
            known.keep(|_| true);
        }
        known
    }

    fn size(&self) -> usize {
        self.runs.len() + self.live.len()
    }

    fn knows(&self, origin: u32, n: u64) -> bool {
        let at = self.runs.partition_point(|run| (run.origin, run.last) < (origin, n));
        self.runs.get(at).is_some_and(|run| run.origin == origin && run.first <= n)
    }

    /// The runs of an origin.
    fn runs_of(&self, origin: u32) -> &[Run] {
        let start = self.runs.partition_point(|run| run.origin < origin);
        let end = self.runs.partition_point(|run| run.origin <= origin);
        &self.runs[start..end]
    }

    /// The least upper bound. A dot lives on where both hold it, or one does and the other has not seen it.
    fn join(&self, other: &Known) -> Known {
        let mut runs = Vec::with_capacity(self.runs.len() + other.runs.len());
        for (a, b) in in_step(&self.runs, &other.runs, |a, b| (a.origin, a.first).cmp(&(b.origin, b.first))) {
            a.into_iter().chain(b).for_each(|run| add_run(&mut runs, *run));
        }
        let (mut seen, mut seen_there) = (Seen(&self.runs), Seen(&other.runs));
        let mut live = Vec::new();
        // The places of values behind all those of this side are those of the other.
        let there = self.values.len() as u32;
        for (a, b) in in_step(&self.live, &other.live, |a, b| a.key().cmp(&b.key())) {
            match (a, b) {
                (Some(a), Some(b)) if self.values.get(a.value as usize) == other.values.get(b.value as usize) => live.push(*a),
                (Some(a), None) if !seen_there.has(a.origin, a.n) => live.push(*a),
                (None, Some(b)) if !seen.has(b.origin, b.n) => live.push(Dot { value: there + b.value, ..*b }),
                _ => {}
            }
        }
        let (values, places) = merged(&self.values, &other.values, &live);
        live.iter_mut().for_each(|dot| dot.value = places[dot.value as usize]);
        Known { runs, live, values }
    }

    /// With only the dots that are to be kept.
    fn keep(&mut self, kept: impl Fn(&Dot) -> bool) {
        self.live.retain(kept);
        let (values, places) = merged(&self.values, &Packed::default(), &self.live);
        self.live.iter_mut().for_each(|dot| dot.value = places[dot.value as usize]);
        self.values = values;
    }

    /// With other numbers of origins.
    fn renumber(&mut self, numbers: &[u32]) {
        if numbers.iter().enumerate().all(|(i, number)| i as u32 == *number) {
            return;
        }
        self.runs.iter_mut().for_each(|run| run.origin = numbers[run.origin as usize]);
        self.live.iter_mut().for_each(|dot| dot.origin = numbers[dot.origin as usize]);
        self.runs.sort_unstable_by_key(|run| (run.origin, run.first));
        self.live.sort_unstable_by_key(Dot::key);
    }
}

/// The values of two sorted lists that some dot holds, as one list, and where each of both came to be in it.
fn merged(left: &Packed, right: &Packed, live: &[Dot]) -> (Packed, Vec<u32>) {
    let mut places = vec![OVER; left.len() + right.len()];
    live.iter().for_each(|dot| places[dot.value as usize] = 0);
    let used = |from: usize, n: usize| (from..from + n).filter(|i| places[*i] != OVER).map(|i| i as u32).collect::<Vec<_>>();
    let (a, b) = (used(0, left.len()), used(left.len(), right.len()));
    let bytes = |i: &u32| (*i as usize).checked_sub(left.len()).map_or_else(|| left.get(*i as usize), |i| right.get(i));
    let mut values = Packed::default();
    for (x, y) in in_step(&a, &b, |x, y| packed::compare(bytes(x), bytes(y))) {
        x.into_iter().chain(y).for_each(|i| places[*i as usize] = values.len() as u32);
        x.or(y).into_iter().for_each(|i| values.push(bytes(i)));
    }
    values.shrink_to_fit();
    (values, places)
}

impl PartialEq for DotStore {
    fn eq(&self, other: &Self) -> bool {
        if self.is_empty() || other.is_empty() {
            return self.is_empty() && other.is_empty();
        }
        let bytes = |store: &DotStore| {
            let mut w = Writer::default();
            store.encode(&mut w);
            w
        };
        bytes(self).as_bytes() == bytes(other).as_bytes()
    }
}

impl DotStore {
    /// Puts what was learned in order, as one.
    fn settle(&mut self) -> &mut Known {
        self.settle_rows();
        while self.levels.len() > 1 {
            self.join_last();
        }
        if self.levels.is_empty() {
            self.levels.push(Known::default());
        }
        &mut self.levels[0]
    }

    fn join_last(&mut self) {
        if let (Some(last), Some(before)) = (self.levels.pop(), self.levels.last_mut()) {
            *before = before.join(&last);
        }
    }

    /// All that is known, as one.
    fn settled(&self) -> Cow<'_, Known> {
        let (last, before) = match (self.levels.as_slice(), self.rows.as_slice()) {
            ([], []) => return Cow::Owned(Known::default()),
            ([known], []) => return Cow::Borrowed(known),
            ([before @ .., last], []) => (last.clone(), before),
            (before, rows) => (Known::of_rows(rows.to_vec(), &self.row_values), before),
        };
        Cow::Owned(before.iter().rev().fold(last, |known, level| level.join(&known)))
    }

    fn settle_rows(&mut self) {
        if !self.rows.is_empty() {
            let known = Known::of_rows(std::mem::take(&mut self.rows), &std::mem::take(&mut self.row_values));
            self.push(known);
        }
    }

    /// Adds knowledge, so that each level stays at least twice as large as the next.
    fn push(&mut self, known: Known) {
        self.levels.push(known);
        while let [.., before, last] = self.levels.as_slice()
            && before.size() < 2 * last.size()
        {
            self.join_last();
        }
    }

    fn number(&mut self, origin: &Value) -> u32 {
        let (new, mut number) = (self.origins.len() as u32, None);
        self.origins.say(origin, |known| number = Some(*known), || new);
        number.unwrap_or(new)
    }

    /// The origins by their numbers.
    fn names(&self) -> Vec<Value> {
        let mut names = vec![Value::Null; self.origins.len()];
        self.origins.iter().for_each(|(origin, number)| names[*number as usize] = origin.into_owned());
        names
    }

    /// The numbers that the other's origins have here, by their numbers there.
    fn numbers_of(&mut self, other: &DotStore) -> Vec<u32> {
        let mut numbers = vec![0; other.origins.len()];
        other.origins.iter().for_each(|(origin, number)| numbers[*number as usize] = self.number(&origin));
        numbers
    }

    /// Whether a dot was seen.
    pub fn knows(&self, origin: &Value, n: u64) -> bool {
        self.origins.get(origin).is_some_and(|origin| self.settled().knows(*origin, n))
    }

    /// The counters that were seen of each origin, as runs: first and last.
    pub fn seen(&self) -> Vec<(Value, Vec<(u64, u64)>)> {
        let known = self.settled();
        let runs = |origin: &u32| known.runs_of(*origin).iter().map(|run| (run.first, run.last)).collect();
        self.origins.iter().map(|(origin, number)| (origin.into_owned(), runs(number))).collect()
    }

    /// Nothing was seen?
    pub fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    /// Whether some dot holds a value.
    pub fn holds_any(&self) -> bool {
        !self.settled().live.is_empty()
    }

    /// Whether all values that some dot holds are such as they should be.
    pub fn all_values(&self, is: impl Fn(Value) -> bool) -> bool {
        self.settled().values.iter().map(packed::value).all(is)
    }

    /// The values that some dot holds, in order.
    pub fn values(&self) -> Vec<Value> {
        self.settled().values.iter().map(packed::value).collect()
    }

    /// Room for so many bytes of values more.
    ///
    /// # Errors
    /// `limit_exceeded`.
    fn make_room(&self, bytes: usize) -> Result<()> {
        let held: usize = self.levels.iter().map(|known| known.values.as_bytes().len()).sum();
        if held + self.row_values.as_bytes().len() + bytes > u32::MAX as usize {
            return Err(Error::new(Code::LimitExceeded, "the values that dots hold take more than 4 GiB"));
        }
        Ok(())
    }

    /// Learns that a dot holds a value, or with `None` that it is over.
    ///
    /// # Errors
    /// `limit_exceeded` beyond 4 GiB of values.
    pub fn learn(&mut self, value: Option<&Value>, origin: &Value, n: u64) -> Result<()> {
        let origin = self.number(origin);
        let value = match value {
            None => OVER,
            Some(value) => with_bytes(value, |bytes| {
                self.make_room(bytes.len())?;
                self.row_values.push(bytes);
                Ok::<u32, Error>(self.row_values.len() as u32 - 1)
            })?,
        };
        self.rows.push(Dot { origin, value, n });
        if self.rows.len() >= ROWS {
            self.settle_rows();
        }
        Ok(())
    }

    /// Learns that a run of dots, of which none holds a value, is over.
    pub fn learn_run(&mut self, origin: &Value, first: u64, last: u64) {
        let origin = self.number(origin);
        self.push(Known { runs: vec![Run { origin, first, last }], ..Known::default() });
    }

    /// The counter of an origin's next dot.
    ///
    /// # Errors
    /// `limit_exceeded`.
    pub fn next(&self, origin: &Value) -> Result<u64> {
        let last = self.origins.get(origin).and_then(|origin| Some(self.settled().runs_of(*origin).last()?.last));
        let next = last.unwrap_or(0) + 1;
        if next <= LAST { Ok(next) } else { Err(counted(origin)) }
    }

    /// A new dot of an origin holds a value, in place of those that were seen to.
    ///
    /// # Errors
    /// `limit_exceeded`.
    pub fn add(&mut self, value: &Value, origin: &Value) -> Result<()> {
        let n = self.next(origin)?;
        self.remove(value);
        self.learn(Some(value), origin, n)
    }

    /// The dots that hold a value are over; they stay seen.
    pub fn remove(&mut self, value: &Value) {
        let known = self.settle();
        if let Ok(place) = with_bytes(value, |bytes| known.values.search(bytes)) {
            known.keep(|dot| dot.value as usize != place);
        }
    }

    /// Every dot that was seen is over.
    pub fn clear(&mut self) {
        self.settle().keep(|_| false);
    }

    /// The least upper bound.
    ///
    /// # Errors
    /// `limit_exceeded` beyond 4 GiB of values.
    pub fn join(&mut self, other: &DotStore) -> Result<()> {
        let mut known = other.settled().into_owned();
        self.make_room(known.values.as_bytes().len())?;
        known.renumber(&self.numbers_of(other));
        self.push(known);
        Ok(())
    }

    /// The least store that adds to `since` what this one does.
    pub fn delta(&self, since: &DotStore) -> DotStore {
        let mut delta = DotStore { origins: self.origins.clone(), ..DotStore::default() };
        let (known, mut there) = (self.settled(), since.settled().into_owned());
        there.renumber(&delta.numbers_of(since));
        // Stretches that the other has not seen.
        let mut runs = Vec::new();
        let mut seen_there = there.runs.as_slice();
        for run in &known.runs {
            let mut from = run.first;
            while let Some(other) = seen_there.first()
                && (other.origin, other.first) <= (run.origin, run.last)
            {
                if other.origin == run.origin && other.last >= from {
                    if other.first > from {
                        runs.push(Run { first: from, last: other.first - 1, ..*run });
                    }
                    from = other.last.saturating_add(1);
                    // It may reach into the next run.
                    if other.last > run.last {
                        break;
                    }
                }
                seen_there = &seen_there[1..];
            }
            if from <= run.last {
                runs.push(Run { first: from, ..*run });
            }
        }
        // What lives here and was not seen there; what is over here and lives there.
        let mut live = Vec::new();
        let mut over = Vec::new();
        let (mut seen, mut seen_there) = (Seen(&known.runs), Seen(&there.runs));
        for (a, b) in in_step(&known.live, &there.live, |a, b| a.key().cmp(&b.key())) {
            match (a, b) {
                (Some(a), None) if !seen_there.has(a.origin, a.n) => live.push(*a),
                (None, Some(b)) if seen.has(b.origin, b.n) => over.push(Run { origin: b.origin, first: b.n, last: b.n }),
                (Some(a), Some(b)) if known.values.get(a.value as usize) != there.values.get(b.value as usize) => {
                    over.push(Run { origin: b.origin, first: b.n, last: b.n });
                }
                _ => {}
            }
        }
        let (values, places) = merged(&known.values, &Packed::default(), &live);
        live.iter_mut().for_each(|dot| dot.value = places[dot.value as usize]);
        let news = Known { runs, live, values }.join(&Known { runs: over, ..Known::default() });
        delta.levels.push(news);
        delta.without_silent_origins()
    }

    /// Without the origins of which nothing was seen.
    fn without_silent_origins(self) -> DotStore {
        let known = self.settled();
        let mut less = DotStore::default();
        let mut numbers = vec![0; self.origins.len()];
        for (origin, number) in self.origins.iter().filter(|(_, number)| !known.runs_of(**number).is_empty()) {
            numbers[*number as usize] = less.number(&origin);
        }
        let mut known = known.into_owned();
        known.renumber(&numbers);
        less.levels.push(known);
        less
    }

    /// Writes origins with their runs, then values with their dots, an origin by its place in the list.
    pub fn encode(&self, w: &mut Writer) {
        let known = self.settled();
        let mut places = vec![0; self.origins.len()];
        w.length(self.origins.len());
        for (place, (origin, number)) in self.origins.iter().enumerate() {
            places[*number as usize] = place;
            let runs = known.runs_of(*number);
            w.value(&origin);
            w.length(runs.len());
            let mut before = 0;
            for run in runs {
                w.varint((run.first - before).into());
                w.varint((run.last - run.first).into());
                before = run.last;
            }
        }
        let dot = |i: &u32| {
            let dot = known.live[*i as usize];
            (dot.value, places[dot.origin as usize], dot.n)
        };
        let mut live: Vec<u32> = (0..known.live.len() as u32).collect();
        live.sort_unstable_by_key(dot);
        w.length(known.values.len());
        for (value, dots) in known.values.iter().zip(live.chunk_by(|a, b| dot(a).0 == dot(b).0)) {
            w.raw(value);
            w.length(dots.len());
            for (_, origin, n) in dots.iter().map(dot) {
                w.length(origin);
                w.varint(n.into());
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
        let (mut known, mut last) = (Known::default(), None);
        let mut number = 0;
        let origins = crate::lattice::origins::decode(r, |r| {
            let mut before = 0u64;
            let from = known.runs.len();
            for _ in 0..r.length()? {
                let (gap, length) = (counter(r)?, counter(r)?);
                // Runs that touch are one run, and counters begin at one.
                let least = if known.runs.len() == from { 1 } else { 2 };
                let first = before.checked_add(gap).filter(|_| gap >= least).ok_or_else(|| corrupt("are out of order"))?;
                before = first.checked_add(length).filter(|last| *last <= LAST).ok_or_else(|| corrupt("are too great"))?;
                known.runs.push(Run { origin: number, first, last: before });
            }
            if known.runs.len() == from {
                return Err(corrupt("have an origin without any"));
            }
            number += 1;
            Ok(number - 1)
        })?;
        for place in 0..r.length()? {
            let value = r.skip()?;
            if last.replace(value).is_some_and(|last| packed::compare(last, value) != Ordering::Less) {
                return Err(corrupt("hold values out of order"));
            }
            known.values.push(value);
            let dots = r.length()?;
            let from = known.live.len();
            for _ in 0..dots {
                let origin = u32::try_from(r.varint()?).ok().filter(|origin| *origin < number);
                let dot =
                    Dot { origin: origin.ok_or_else(|| corrupt("have an unknown origin"))?, n: counter(r)?, value: place as u32 };
                if known.live.len() > from && known.live.last().is_some_and(|last| last.key() >= dot.key()) {
                    return Err(corrupt("are out of order"));
                }
                known.live.push(dot);
            }
            if dots == 0 {
                return Err(corrupt("hold a value without any"));
            }
        }
        known.live.sort_unstable_by_key(Dot::key);
        if known.live.windows(2).any(|dots| dots[0].key() == dots[1].key()) {
            return Err(corrupt("hold two values"));
        }
        let mut seen = Seen(&known.runs);
        if !known.live.iter().all(|dot| seen.has(dot.origin, dot.n)) {
            return Err(corrupt("hold a value and were not seen"));
        }
        Ok(DotStore { origins, levels: if number == 0 { Vec::new() } else { vec![known] }, ..DotStore::default() })
    }

    /// Memory held, in bytes.
    pub fn heap_size(&self) -> usize {
        let known = |known: &Known| {
            known.runs.capacity() * size_of::<Run>() + known.live.capacity() * size_of::<Dot>() + known.values.heap_size()
        };
        crate::lattice::origins::heap_size(&self.origins, |_| 0)
            + self.levels.capacity() * size_of::<Known>()
            + self.levels.iter().map(known).sum::<usize>()
            + self.rows.capacity() * size_of::<Dot>()
            + self.row_values.heap_size()
    }

    /// Everything, for people.
    pub fn info(&self) -> Value {
        let (known, names) = (self.settled(), self.names());
        let mut dots = vec![Vec::new(); known.values.len()];
        for dot in &known.live {
            dots[dot.value as usize].push(Value::List(vec![names[dot.origin as usize].clone(), Value::Int(dot.n.into())]));
        }
        let held = |(value, mut dots): (&[u8], Vec<Value>)| {
            dots.sort();
            Value::record(vec![("value".into(), packed::value(value)), ("dots".into(), Value::List(dots))])
        };
        let run = |(first, last): &(u64, u64)| Value::List(vec![Value::Int((*first).into()), Value::Int((*last).into())]);
        let seen = self.seen().into_iter().map(|(origin, runs)| (origin, Value::List(runs.iter().map(run).collect())));
        Value::record(vec![
            ("seen".into(), Value::map(seen.collect())),
            ("held".into(), Value::List(known.values.iter().zip(dots).map(held).collect())),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::Random;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn runs_that_touch_become_one() {
        let mut store = DotStore::default();
        for n in [5, 1, 2, 9, 4, 3] {
            store.learn(None, &Value::Int(7), n).unwrap();
        }
        assert_eq!(store.seen(), [(Value::Int(7), vec![(1, 5), (9, 9)])]);
        store.learn_run(&Value::Int(7), 6, 8);
        assert_eq!(store.seen(), [(Value::Int(7), vec![(1, 9)])]);
        assert!(store.knows(&Value::Int(7), 9) && !store.knows(&Value::Int(7), 10));
    }

    #[test]
    fn an_element_that_was_removed_stays_removed_until_it_is_added_anew() {
        let (elem, a, b) = (Value::text("x"), Value::text("a"), Value::text("b"));
        let mut left = DotStore::default();
        left.add(&elem, &a).unwrap();
        let mut right = left.clone();
        right.remove(&elem);
        left.join(&right).unwrap();
        assert!(!left.holds_any());
        // Added on one side while it is removed on the other: it stays.
        let mut other = right.clone();
        other.add(&elem, &b).unwrap();
        other.join(&left).unwrap();
        assert_eq!(other.values().len(), 1);
    }

    /// What is known of each dot, by the definition.
    type Plain = BTreeMap<(i128, u64), BTreeSet<Option<i128>>>;

    fn read(plain: &Plain) -> (BTreeSet<i128>, Vec<(i128, u64)>) {
        let live = plain.values().filter(|claims| claims.len() == 1).filter_map(|claims| *claims.first()?).collect();
        (live, plain.keys().copied().collect())
    }

    /// Thousands of rows, by levels and joins, are what the definition says; so are deltas.
    #[test]
    fn many_dots_are_as_the_definition_says() {
        for seed in 0..60 {
            let mut random = Random(seed);
            let mut stores = vec![(DotStore::default(), Plain::new()); 3];
            // Few, and many.
            for _ in 0..[20, 100, 3000][seed as usize % 3] {
                let i = random.below(3);
                if random.below(300) == 0 {
                    let (other, plain) = stores[random.below(3)].clone();
                    stores[i].0.join(&other).unwrap();
                    plain.into_iter().for_each(|(dot, claims)| stores[i].1.entry(dot).or_default().extend(claims));
                    continue;
                }
                let (origin, n) = (random.below(90) as i128, random.below(40) as u64 + 1);
                let value = [None, Some(origin * 40 + i128::from(n)), Some(random.below(9) as i128)]
                    [random.below(8).saturating_sub(5).min(2)];
                stores[i].0.learn(value.map(Value::Int).as_ref(), &Value::Int(origin), n).unwrap();
                stores[i].1.entry((origin, n)).or_default().insert(value);
            }
            for (store, plain) in &stores {
                let (live, seen) = read(plain);
                assert_eq!(store.values(), live.into_iter().map(Value::Int).collect::<Vec<_>>());
                let dots = store.seen().into_iter().flat_map(|(origin, runs)| {
                    let Value::Int(origin) = origin else { panic!("no origin") };
                    runs.into_iter().flat_map(move |(first, last)| (first..=last).map(move |n| (origin, n)))
                });
                assert_eq!(dots.collect::<Vec<_>>(), seen);
                let mut w = Writer::default();
                store.encode(&mut w);
                let decoded = DotStore::decode(&mut Reader::new(w.as_bytes())).unwrap();
                assert_eq!(decoded, *store);
                for (since, _) in &stores {
                    let mut joined = since.clone();
                    joined.join(store).unwrap();
                    let mut by_delta = since.clone();
                    by_delta.join(&store.delta(since)).unwrap();
                    assert_eq!(by_delta, joined);
                }
                assert!(store.delta(store).is_empty());
            }
        }
    }
}
