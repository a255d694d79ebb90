//! `longest` and `shortest`: text by its length in code points.

use crate::aggregate::{Call, Strategy};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::lattice::best::{Best, Candidate, Ranking};
use crate::types::Type;
use crate::value::Value;
use std::cmp::Ordering;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<ByLength<false>>());
    entries.push(Entry::of::<ByLength<true>>());
}

const LONGEST: Spec = Spec {
    name: "longest",
    aliases: &["longestwins"],
    type_id: 5,
    since: "0.1.0",
    title: "the longest text",
    doc: "The text with the most Unicode code points; among equally long ones the greater by bytes. Nothing is normalised: `é` as one \
          code point is shorter than `e` with a combining accent.",
    inputs: &[Input::Value],
    args: &[],
    takes: "text",
    selects: true,
    closed: |_| true,
    example: ("SELECT crdt_longest(v) AS v FROM (VALUES ('Bob'), ('Robert'), ('Rob')) AS t(v)", "Robert"),
    source: "a total order by (length, bytes); Shapiro et al. 2011, section 2.2",
    samples: || vec![Call::new(vec![Type::Text])],
};

const SHORTEST: Spec = Spec {
    name: "shortest",
    aliases: &[],
    type_id: 6,
    title: "the shortest text",
    doc: "The text with the fewest Unicode code points; among equally short ones the greater by bytes.",
    example: ("SELECT crdt_shortest(v) AS v FROM (VALUES ('Bob'), ('Robert'), ('Rob')) AS t(v)", "Rob"),
    ..LONGEST
};

#[derive(Debug)]
struct ByLength<const SHORTEST: bool>;

#[derive(Debug, Clone, PartialEq)]
struct Length<const SHORTEST: bool>;

fn code_points(value: &Value) -> usize {
    match value {
        Value::Text(t) => t.chars().count(),
        _ => 0,
    }
}

impl<const SHORTEST: bool> Ranking for Length<SHORTEST> {
    const RANKS: usize = 0;

    fn compare(&self, a: &Candidate, b: &Candidate) -> Ordering {
        let order = code_points(&a.value).cmp(&code_points(&b.value));
        (if SHORTEST { order.reverse() } else { order }).then_with(|| a.value.cmp(&b.value))
    }

    fn admits(&self, candidate: &Candidate) -> bool {
        matches!(candidate.value, Value::Text(_))
    }

    fn encode(&self, _: &mut Writer) {}

    fn decode(_: &mut Reader<'_>) -> Result<Self> {
        Ok(Length)
    }
}

impl<const S: bool> Strategy for ByLength<S> {
    const SPEC: Spec = if S { SHORTEST } else { LONGEST };
    type State = Best<Length<S>>;

    fn configure(call: &Call) -> Result<Self> {
        match call.value_type() {
            ty if ty.is_text() => Ok(ByLength),
            ty => Err(Error::type_mismatch(format!("`{}` compares text, not {ty}", Self::SPEC.name))),
        }
    }

    fn result_type(&self) -> Type {
        Type::Text
    }

    fn empty(&self) -> Self::State {
        Best::empty(Length)
    }

    fn update(&self, state: &mut Self::State, row: &[Value]) -> Result<()> {
        match &row[0] {
            Value::Null => {}
            Value::Text(_) => state.offer(Candidate { value: row[0].clone(), rank: Vec::new() }),
            other => return Err(Error::type_mismatch(format!("`{}` compares text, not a {}", Self::SPEC.name, other.kind()))),
        }
        Ok(())
    }

    fn rows_suffice(&self) -> bool {
        true
    }

    fn as_row(&self, state: &Self::State) -> Option<Vec<Value>> {
        state.best.as_ref().map(|best| vec![best.value.clone()])
    }
}
