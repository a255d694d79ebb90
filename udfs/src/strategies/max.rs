//! `max` and `min`: the greatest or least value in the typed order.

use crate::aggregate::{Call, Groups, Strategy};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::fast::best::Order;
use crate::fast::slot::Shape;
use crate::fast;
use crate::lattice::best::{Best, Candidate, Ranking, nan_last};
use crate::types::Type;
use crate::value::Value;
use std::cmp::Ordering;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Extreme<false>>());
    entries.push(Entry::of::<Extreme<true>>());
}

const MAX: Spec = Spec {
    name: "max",
    aliases: &["maxwins"],
    type_id: 3,
    since: "0.1.0",
    title: "the greatest value",
    doc: "The greatest value in the typed total order: numbers numerically, text by bytes, lists element by element. NaN loses to any \
          other value. Objects have no meaningful greatest and are refused.",
    inputs: &[Input::Value],
    args: &[],
    takes: "scalars and lists",
    selects: true,
    closed: |_| true,
    example: ("SELECT crdt_max(v) AS v FROM (VALUES (9), (10), (NULL)) AS t(v)", "10"),
    source: "Shapiro et al. 2011, section 2.2 (a total order is a join-semilattice)",
    samples: || {
        [Type::INT64, Type::Float64, Type::Text, Type::Boolean, Type::Decimal { precision: 10, scale: 2 }, Type::Date]
            .map(|t| Call::new(vec![t]))
            .into_iter()
            .chain([Call::new(vec![Type::List(Box::new(Type::INT64))])])
            .collect()
    },
};

const MIN: Spec = Spec {
    name: "min",
    aliases: &["minwins"],
    type_id: 4,
    title: "the least value",
    doc: "The least value in the typed total order. NaN loses here too: it is the answer only where nothing else is there.",
    example: ("SELECT crdt_min(v) AS v FROM (VALUES (9), (10), (NULL)) AS t(v)", "9"),
    ..MAX
};

#[derive(Debug)]
struct Extreme<const LEAST: bool> {
    ty: Type,
}

#[derive(Debug, Clone, PartialEq)]
struct ByValue<const LEAST: bool>;

impl<const LEAST: bool> Ranking for ByValue<LEAST> {
    const RANKS: usize = 0;

    fn compare(&self, a: &Candidate, b: &Candidate) -> Ordering {
        let order = a.value.cmp(&b.value);
        nan_last(&a.value, &b.value).then(if LEAST { order.reverse() } else { order })
    }

    fn encode(&self, _: &mut Writer) {}

    fn decode(_: &mut Reader<'_>) -> Result<Self> {
        Ok(ByValue)
    }
}

impl<const LEAST: bool> Strategy for Extreme<LEAST> {
    const SPEC: Spec = if LEAST { MIN } else { MAX };
    type State = Best<ByValue<LEAST>>;

    fn configure(call: &Call) -> Result<Self> {
        let ty = call.value_type();
        if matches!(ty, Type::Struct(_) | Type::Map(..)) {
            return Err(Error::type_mismatch(format!("`{}` takes scalars and lists, not {ty}", Self::SPEC.name))
                .with_help("use `lww`, or `json` to merge objects field by field"));
        }
        Ok(Extreme { ty })
    }

    fn result_type(&self) -> Type {
        self.ty.clone()
    }

    fn empty(&self) -> Self::State {
        Best::empty(ByValue)
    }

    fn update(&self, state: &mut Self::State, row: &[Value]) -> Result<()> {
        if !row[0].is_null() {
            state.offer(Candidate { value: row[0].clone(), rank: Vec::new() });
        }
        Ok(())
    }

    fn rows_suffice(&self) -> bool {
        true
    }

    fn as_row(&self, state: &Self::State) -> Option<Vec<Value>> {
        state.best.as_ref().map(|best| vec![best.value.clone()])
    }

    fn shape(&self) -> Option<Shape> {
        Some(Shape::Strongest(Order { least: LEAST, flip_version: false }))
    }

    fn fast(&self) -> Option<Box<dyn Groups>> {
        let Some(Shape::Strongest(order)) = self.shape() else { return None };
        fast::best::groups(std::slice::from_ref(&self.ty), order, |row| {
            let best = Some(Candidate { value: row[0].clone(), rank: Vec::new() });
            crate::aggregate::encode::<Self>(&Best { ranking: ByValue, best })
        }, |bytes| Ok(crate::aggregate::decode::<Self>(bytes)?.best.map(|b| vec![b.value]).unwrap_or_default()))
    }
}
