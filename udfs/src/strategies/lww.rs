//! `lww` and `fww`: the value of the newest or the oldest row.

use crate::aggregate::{Call, Groups, State, Strategy};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::fast::best::Order;
use crate::fast::slot::Shape;
use crate::fast;
use crate::functions::{Function, updated};
use crate::lattice::best::{Best, Candidate, Ranking, nan_last};
use crate::lattice::version::VersionOrder;
use crate::types::Type;
use crate::value::Value;
use std::cmp::Ordering;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Register<false>>().with_functions(|| {
        let title = "the register after a value was written, with its version";
        vec![Function::state_of("lww_set", title, 3..=usize::MAX, |a| updated("lww", &a[0], &a[1..]))]
    }));
    entries.push(Entry::of::<Register<true>>());
}

const RESPECT_NULLS: Arg = Arg {
    name: "respect_nulls",
    kind: ArgKind::RespectNulls,
    doc: "NULL is a value: a newer clear wins over an older value",
};

const SOURCE: &str = "Shapiro, Preguiça, Baquero, Zawirski: A comprehensive study of convergent and commutative replicated data \
                      types (2011), section 3.2.1";

fn samples() -> Vec<Call> {
    vec![
        Call::new(vec![Type::INT64]),
        Call::new(vec![Type::INT64, Type::INT64]),
        Call::new(vec![Type::Float64, Type::Float64]),
        Call::new(vec![Type::Text, Type::Timestamp { unit: crate::Unit::Microsecond, zone: None }]),
        Call::new(vec![Type::Text, Type::INT64, Type::Text]),
        Call::new(vec![Type::Boolean, Type::INT64]).with_arg("descending", Value::List(vec![Value::Bool(true)])),
        Call::new(vec![Type::Float64, Type::INT64]).with_arg("respect_nulls", Value::Bool(true)),
    ]
}

const LWW: Spec = Spec {
    name: "lww",
    aliases: &["last_writer_wins", "latest"],
    type_id: 1,
    since: "0.1.0",
    title: "the value of the newest row",
    doc: "The value of the row with the greatest version (`VERSION BY`, or the strategy's own `BY`). Versions compare part by part in \
          typed order; a NULL or NaN part is the weakest. Where versions tie, the greater value wins, so that the answer never \
          depends on which row came first. NULL values contribute nothing unless `RESPECT NULLS` is given. `lww_set(state, value, version ...)` changes a state.",
    inputs: &[Input::Value, Input::Versions],
    args: &[RESPECT_NULLS],
    takes: "any type",
    selects: true,
    closed: |_| false,
    example: (
        "SELECT crdt_lww(v, ts) AS v FROM (VALUES ('old', 1), ('new', 2), (NULL, 3)) AS t(v, ts)",
        "new",
    ),
    source: SOURCE,
    samples,
};

const FWW: Spec = Spec {
    name: "fww",
    aliases: &["first_writer_wins", "earliest"],
    type_id: 2,
    title: "the value of the oldest row",
    doc: "The mirror of `lww`: the value of the row with the least version. A NULL or NaN version part is the weakest here too, so a \
          row without a version never counts as the oldest. Ties are broken by the greater value.",
    example: (
        "SELECT crdt_fww(v, ts) AS v FROM (VALUES ('old', 1), ('new', 2), ('undated', NULL)) AS t(v, ts)",
        "old",
    ),
    ..LWW
};

#[derive(Debug)]
struct Register<const OLDEST: bool> {
    ranking: Newest,
    inputs: Vec<Type>,
}

/// By version, then by value.
#[derive(Debug, Clone, PartialEq)]
struct Newest {
    versions: VersionOrder,
    respect_nulls: bool,
}

impl Ranking for Newest {
    const RANKS: usize = usize::MAX;

    fn compare(&self, a: &Candidate, b: &Candidate) -> Ordering {
        nan_last(&a.value, &b.value)
            .then_with(|| self.versions.compare_worth(&a.rank, &b.rank))
            .then_with(|| a.value.cmp(&b.value))
            .then_with(|| self.versions.compare(&a.rank, &b.rank))
    }

    fn encode(&self, w: &mut Writer) {
        self.versions.encode(w);
        w.byte(u8::from(self.respect_nulls));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Newest> {
        let versions = VersionOrder::decode(r)?;
        let respect_nulls = match r.byte()? {
            0 => false,
            1 => true,
            _ => return Err(Error::corrupt_state("the state says neither that it respects NULLs nor that it does not")),
        };
        Ok(Newest { versions, respect_nulls })
    }

    fn admits(&self, candidate: &Candidate) -> bool {
        self.respect_nulls || !candidate.value.is_null()
    }

    fn told(&self) -> Option<(&'static str, Value)> {
        let flags: Vec<Value> = self.versions.descending.iter().map(|down| Value::Bool(*down)).collect();
        (!flags.is_empty()).then_some(("descending", Value::List(flags)))
    }
}

impl<const OLDEST: bool> Strategy for Register<OLDEST> {
    const SPEC: Spec = if OLDEST { FWW } else { LWW };
    type State = Best<Newest>;

    fn configure(call: &Call) -> Result<Self> {
        let ranking = Newest { versions: VersionOrder::configure(OLDEST, call)?, respect_nulls: call.flag("respect_nulls")? };
        Ok(Register { ranking, inputs: call.inputs.clone() })
    }

    fn result_type(&self) -> Type {
        self.inputs[0].clone()
    }

    fn empty(&self) -> Best<Newest> {
        Best::empty(self.ranking.clone())
    }

    fn update(&self, state: &mut Best<Newest>, row: &[Value]) -> Result<()> {
        if !row[0].is_null() || self.ranking.respect_nulls {
            state.offer(Candidate { value: row[0].clone(), rank: VersionOrder::parts(&row[1..]) });
        }
        Ok(())
    }

    fn rows_suffice(&self) -> bool {
        !self.ranking.respect_nulls
    }

    fn as_row(&self, state: &Best<Newest>) -> Option<Vec<Value>> {
        state.best.as_ref().map(|best| std::iter::once(best.value.clone()).chain(best.rank.iter().cloned()).collect())
    }

    fn shape(&self) -> Option<Shape> {
        let versions = &self.ranking.versions;
        let simple = !self.ranking.respect_nulls && (self.inputs.len() <= 2 || versions.descending.is_empty());
        simple.then(|| Shape::Strongest(Order { least: false, flip_version: versions.flips(0) }))
    }

    fn fast(&self) -> Option<Box<dyn Groups>> {
        let Some(Shape::Strongest(order)) = self.shape() else { return None };
        let (empty, mine) = (self.empty(), self.empty());
        fast::best::groups(&self.inputs, order, move |row| {
            let mut state = empty.clone();
            state.best = Some(Candidate { value: row[0].clone(), rank: VersionOrder::parts(&row[1..]) });
            crate::aggregate::encode::<Self>(&state)
        }, move |bytes| {
            let mut state = mine.clone();
            state.join(&crate::aggregate::decode::<Self>(bytes)?)?;
            Ok(state.best.map(|b| std::iter::once(b.value).chain(b.rank).collect()).unwrap_or_default())
        })
    }
}
