//! The greatest candidate under a total order: the lattice of every strategy that selects one of the values it saw.

use crate::aggregate::State;
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::lattice::version;
use crate::value::Value;
use std::cmp::Ordering;
use std::fmt::Debug;

/// A value and what ranks it beside itself (its version, its source).
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The value.
    pub value: Value,
    /// What the ranking keeps with it.
    pub rank: Vec<Value>,
}

/// A total order of candidates; the configuration of a selecting strategy.
pub trait Ranking: Clone + PartialEq + Debug + Send + Sync + 'static {
    /// `Greater` if `a` wins. Equal only for equal candidates.
    fn compare(&self, a: &Candidate, b: &Candidate) -> Ordering;

    /// Writes the configuration.
    fn encode(&self, w: &mut Writer);

    /// Reads the configuration.
    ///
    /// # Errors
    /// `corrupt_state`.
    fn decode(r: &mut Reader<'_>) -> Result<Self>;

    /// What of the configuration a person should know who looks into a state.
    fn told(&self) -> Option<(&'static str, Value)> {
        None
    }

    /// Whether rows can make this candidate.
    fn admits(&self, candidate: &Candidate) -> bool {
        !candidate.value.is_null()
    }

    /// How many values rank a candidate, at most: none where the value alone does.
    const RANKS: usize;
}

/// A top-level NaN loses to any other value, whatever its rank (R9).
pub fn nan_last(a: &Value, b: &Value) -> Ordering {
    b.is_nan().cmp(&a.is_nan())
}

/// The state of a selecting strategy.
#[derive(Debug, Clone, PartialEq)]
pub struct Best<R> {
    /// The order.
    pub ranking: R,
    /// The greatest candidate so far.
    pub best: Option<Candidate>,
}

impl<R: Ranking> Best<R> {
    /// Nothing seen.
    pub fn empty(ranking: R) -> Best<R> {
        Best { ranking, best: None }
    }

    /// Sees one candidate.
    pub fn offer(&mut self, candidate: Candidate) {
        let wins = self.best.as_ref().is_none_or(|best| self.ranking.compare(&candidate, best) == Ordering::Greater);
        if wins {
            self.best = Some(candidate);
        }
    }
}

impl<R: Ranking> State for Best<R> {
    fn join(&mut self, other: &Self) -> Result<()> {
        if self.ranking != other.ranking {
            return Err(Error::type_mismatch("the two states were configured differently"));
        }
        if let Some(candidate) = &other.best {
            self.offer(candidate.clone());
        }
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(self.best.as_ref().map_or(Value::Null, |b| b.value.clone()))
    }

    fn bottom(&self) -> Self {
        Best::empty(self.ranking.clone())
    }

    fn encode(&self, w: &mut Writer) {
        self.ranking.encode(w);
        match &self.best {
            None => w.byte(0),
            Some(best) => {
                w.byte(1);
                w.value(&best.value);
                w.values(&best.rank);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let ranking = R::decode(r)?;
        let best = match r.byte()? {
            0 => None,
            1 => Some(Candidate { value: r.value()?, rank: version::decode(r)? }),
            _ => return Err(Error::corrupt_state("the state holds neither nothing nor one value")),
        };
        // What ranks nobody would be one state in two forms.
        if best.as_ref().is_some_and(|best| best.rank.len() > R::RANKS) {
            return Err(Error::corrupt_state("a value in the state has a rank that its strategy does not know"));
        }
        if best.as_ref().is_some_and(|best| !ranking.admits(best)) {
            return Err(Error::corrupt_state("the state holds what no row of its strategy says"));
        }
        Ok(Best { ranking, best })
    }

    fn heap_size(&self) -> usize {
        self.best
            .as_ref()
            .map_or(0, |b| b.value.heap_size() + b.rank.iter().map(|v| size_of::<Value>() + v.heap_size()).sum::<usize>())
    }

    fn info(&self) -> Value {
        let (value, rank) = match &self.best {
            None => (Value::Null, Value::Null),
            Some(b) => (b.value.clone(), Value::List(b.rank.clone())),
        };
        let configured = self.ranking.told().map(|(name, value)| (name.into(), value));
        Value::record([("value".into(), value), ("rank".into(), rank)].into_iter().chain(configured).collect())
    }
}
