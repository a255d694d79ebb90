//! `priority` and `source`: the value that stands highest in a given list, or that the most trusted source gave.

use crate::aggregate::{Call, Strategy};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::lattice::best::{Best, Candidate, Ranking, nan_last};
use crate::types::Type;
use crate::value::Value;
use std::cmp::Ordering;
use std::sync::Arc;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Listed<false>>());
    entries.push(Entry::of::<Listed<true>>());
}

const PRIORITY: Spec = Spec {
    name: "priority",
    aliases: &[],
    type_id: 7,
    since: "0.1.0",
    title: "the value listed last",
    doc: "Values are ranked by a list, the last one listed strongest; values that are not listed are weaker than all that are. Ties \
          are broken by the greater value.",
    inputs: &[Input::Value],
    args: &[Arg { name: "values", kind: ArgKind::Literals, doc: "the values, weakest first; required" }],
    takes: "scalars",
    selects: true,
    closed: |_| true,
    example: (
        "SELECT crdt_priority(v, 'draft', 'review', 'live') AS v FROM (VALUES ('live'), ('draft'), ('zzz')) AS t(v)",
        "live",
    ),
    source: "a total order by (rank, value); Shapiro et al. 2011, section 2.2",
    samples: || {
        vec![
            Call::new(vec![Type::Text]).with_arg("values", Value::List(vec![Value::text("b"), Value::text("a")])),
            Call::new(vec![Type::INT64]).with_arg("values", Value::List(vec![Value::Int(2), Value::Int(1)])),
        ]
    },
};

const FROM_SOURCE: Spec = Spec {
    name: "source",
    aliases: &["prefer"],
    type_id: 8,
    title: "the value of the most trusted source",
    doc: "The value of the first listed source that has one; sources that are not listed are weaker than all that are. Within one \
          source the greater value wins. In SQL the second input names the source of the row.",
    inputs: &[Input::Value, Input::Origin],
    args: &[Arg { name: "sources", kind: ArgKind::Sources, doc: "the sources, most trusted first; required" }],
    takes: "any type",
    selects: true,
    closed: |_| false,
    example: (
        "SELECT crdt_source(v, s, 'crm', 'erp') AS v FROM (VALUES ('a', 'erp'), ('b', 'crm'), ('c', 'web')) AS t(v, s)",
        "b",
    ),
    samples: || {
        let sources = Value::List(vec![Value::text("b"), Value::text("a")]);
        vec![Call::new(vec![Type::INT64, Type::Text]).with_arg("sources", sources)]
    },
    ..PRIORITY
};

/// A listed literal as a value of the column.
fn literal(value: &Value, ty: &Type) -> Result<Value> {
    let mismatch = || Error::type_mismatch(format!("`priority` lists the {} {value} for a column of type {ty}", value.kind()));
    let fits = match (value, ty) {
        (Value::Null, _) | (_, Type::Null) => true,
        // Hosts have literals of other kinds for what is written alike, and 0.1 in a column of floats is the nearest of these.
        (Value::Float(_) | Value::Decimal { .. }, Type::Float32 | Type::Float64) => {
            return Value::float(value.to_f64().unwrap_or(f64::NAN)).fit(ty);
        }
        (Value::Float(f), Type::Decimal { .. }) => {
            // As it was written: 1.5 is the decimal 1.5.
            let text = format!("{f}");
            let scale = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
            let scale = u8::try_from(scale).ok().filter(|scale| *scale <= 38).ok_or_else(mismatch)?;
            let unscaled = text.replace('.', "").parse().map_err(|_| mismatch())?;
            return Ok(Value::Decimal { unscaled, scale });
        }
        (Value::Int(_) | Value::Float(_) | Value::Decimal { .. }, ty) => ty.is_number(),
        (Value::Text(_), ty) => ty.is_text(),
        (Value::Bool(_), ty) => *ty == Type::Boolean,
        _ => true,
    };
    if fits { Ok(value.clone()) } else { Err(mismatch()) }
}

#[derive(Debug)]
struct Listed<const BY_SOURCE: bool> {
    ty: Type,
    ranking: Position<BY_SOURCE>,
}

/// The list, strongest last for values and strongest first for sources, as the user wrote it.
#[derive(Debug, Clone, PartialEq)]
struct Position<const BY_SOURCE: bool>(Arc<[Value]>);

impl<const BY_SOURCE: bool> Position<BY_SOURCE> {
    /// Numbers match across kinds: 1 in the list is 1.0 in a column of floats.
    fn strength(&self, candidate: &Candidate) -> usize {
        let wanted = if BY_SOURCE { candidate.rank.first().unwrap_or(&Value::Null) } else { &candidate.value };
        let key = wanted.to_worth();
        let found = self.0.iter().position(|listed| listed.to_worth() == key);
        match found {
            None => 0,
            Some(i) if BY_SOURCE => self.0.len() - i,
            Some(i) => i + 1,
        }
    }
}

impl<const BY_SOURCE: bool> Ranking for Position<BY_SOURCE> {
    const RANKS: usize = BY_SOURCE as usize;

    fn compare(&self, a: &Candidate, b: &Candidate) -> Ordering {
        nan_last(&a.value, &b.value)
            .then_with(|| self.strength(a).cmp(&self.strength(b)))
            .then_with(|| a.value.cmp(&b.value))
            .then_with(|| a.rank.cmp(&b.rank))
    }

    fn admits(&self, candidate: &Candidate) -> bool {
        !candidate.value.is_null() && (!BY_SOURCE || candidate.rank.is_empty() || self.strength(candidate) > 0)
    }

    fn encode(&self, w: &mut Writer) {
        w.values(&self.0);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Position(r.values()?.into()))
    }
}

impl<const BY_SOURCE: bool> Strategy for Listed<BY_SOURCE> {
    const SPEC: Spec = if BY_SOURCE { FROM_SOURCE } else { PRIORITY };
    type State = Best<Position<BY_SOURCE>>;

    fn configure(call: &Call) -> Result<Self> {
        let (argument, written) =
            if BY_SOURCE { ("sources", "source(nyc, london)") } else { ("values", "priority('draft', 'live')") };
        let list = call.list(argument);
        if list.is_empty() {
            return Err(Error::invalid_argument(format!("`{}` needs its list", Self::SPEC.name))
                .with_help(format!("write `{written}`")));
        }
        if let Some(nothing) = list.iter().find(|v| v.is_null() || v.is_nan()) {
            return Err(Error::invalid_argument(format!("`{}` lists {nothing}, which says nothing", Self::SPEC.name)));
        }
        if let Some(twice) = list.iter().enumerate().find(|(i, v)| list[..*i].contains(v)) {
            return Err(Error::invalid_argument(format!("`{}` lists {} twice", Self::SPEC.name, twice.1)));
        }
        let ty = call.value_type();
        let list = if BY_SOURCE { list.to_vec() } else { list.iter().map(|v| literal(v, &ty)).collect::<Result<Vec<_>>>()? };
        Ok(Listed { ty, ranking: Position(list.into()) })
    }

    fn result_type(&self) -> Type {
        self.ty.clone()
    }

    fn empty(&self) -> Self::State {
        Best::empty(self.ranking.clone())
    }

    fn update(&self, state: &mut Self::State, row: &[Value]) -> Result<()> {
        if row[0].is_null() {
            return Ok(());
        }
        let mut candidate = Candidate { value: row[0].clone(), rank: row[1..].to_vec() };
        if BY_SOURCE && self.ranking.strength(&candidate) == 0 {
            candidate.rank.clear();
        }
        state.offer(candidate);
        Ok(())
    }

    fn rows_suffice(&self) -> bool {
        true
    }

    fn as_row(&self, state: &Self::State) -> Option<Vec<Value>> {
        state.best.as_ref().map(|best| std::iter::once(best.value.clone()).chain(best.rank.iter().cloned()).collect())
    }
}
