//! `counter` and `pncounter`: what each origin counted, then the sum.

use crate::aggregate::{Call, State, Strategy, bytes_of, decode, encode};
use crate::catalog::{self, Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::fast::slot::Shape;
use crate::functions::Function;
use crate::lattice::origins::{self, Origins, check_number, grown, number, origin, sum, sum_type};
use crate::types::Type;
use crate::value::Value;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Counter>());
    entries.push(Entry::of::<PnCounter>().with_functions(functions));
}

/// The origin argument of per-origin strategies.
pub(crate) const ORIGIN: Arg = Arg {
    name: "origin",
    kind: ArgKind::Column(Input::Origin, false),
    doc: "who counted; default: the source the row came from",
};

#[derive(Debug)]
struct Counter {
    ty: Type,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Grown(Origins<Value>);

impl Strategy for Counter {
    const SPEC: Spec = Spec {
        name: "counter",
        aliases: &["gcounter"],
        type_id: 13,
        since: "0.1.0",
        title: "a grow-only counter",
        doc: "Each origin's rows carry its running total; per origin the greatest counts, and the value is the exact sum over \
              origins. Seeing a row again adds nothing. A negative value or a NULL origin is an error, and so is overflow. `gcounter_add(state, origin, n)` changes a state.",
        inputs: &[Input::Value, Input::Origin],
        args: &[ORIGIN],
        takes: "numbers that are not negative",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_counter(n, device) AS n FROM (VALUES (3, 'a'), (5, 'a'), (4, 'b'), (4, 'b')) AS t(n, device)",
            "9",
        ),
        source: "Shapiro et al. 2011, section 3.1.1 (G-Counter)",
        samples: || vec![Call::new(vec![Type::INT64, Type::Text]), Call::new(vec![Type::Float64, Type::INT64])],
    };
    type State = Grown;

    fn configure(call: &Call) -> Result<Self> {
        check_number("counter", &call.value_type())?;
        Ok(Counter { ty: call.value_type() })
    }

    fn result_type(&self) -> Type {
        sum_type(&self.ty)
    }

    fn shape(&self) -> Option<Shape> {
        Some(Shape::GreatestPerOrigin)
    }

    fn empty(&self) -> Grown {
        Grown::default()
    }

    fn update(&self, state: &mut Grown, row: &[Value]) -> Result<()> {
        if !row[0].is_null() {
            keep_greatest(&mut state.0, origin(&row[1])?, grown(&row[0])?);
        }
        Ok(())
    }
}

fn keep_greatest(map: &mut Origins<Value>, origin: &Value, count: &Value) {
    let more = |entry: &mut Value| {
        if count > entry {
            *entry = count.clone();
        }
    };
    map.say(origin, more, || count.clone());
}

impl State for Grown {
    fn join(&mut self, other: &Self) -> Result<()> {
        other.0.iter().for_each(|(origin, count)| keep_greatest(&mut self.0, &origin, count));
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        if self.0.is_empty() { Ok(Value::Null) } else { sum(self.0.values()) }
    }

    fn bottom(&self) -> Self {
        Self::default()
    }

    /// Only the origins that know more.
    fn delta(&self, since: &Self) -> Self {
        Self(self.0.news(&since.0))
    }

    fn encode(&self, w: &mut Writer) {
        origins::encode(&self.0, w, |count, w| w.value(count));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Grown(origins::decode(r, |r| {
            let count = r.value()?;
            grown(&count).map_err(|e| Error::corrupt_state(e.message))?;
            Ok(count)
        })?))
    }

    fn heap_size(&self) -> usize {
        origins::heap_size(&self.0, Value::heap_size)
    }

    fn info(&self) -> Value {
        Value::map(self.0.iter().map(|(o, c)| (o.into_owned(), c.clone())).collect())
    }
}

#[derive(Debug)]
struct PnCounter {
    ty: Type,
    states: bool,
}

/// Per origin the greatest increments and decrements.
#[derive(Debug, Clone, PartialEq, Default)]
struct UpAndDown(Origins<(Value, Value)>);

impl Strategy for PnCounter {
    const SPEC: Spec = Spec {
        name: "pncounter",
        aliases: &[],
        type_id: 14,
        since: "0.1.0",
        title: "a counter that goes up and down",
        doc: "Two grow-only counters: each origin's running totals of increments and of decrements; the value is the sum of the first \
              less the sum of the second. As a column strategy it takes the names of those columns; over a column of states it \
              joins them.",
        inputs: &[Input::Increments, Input::Decrements, Input::Origin],
        args: &[
            Arg { name: "increments", kind: ArgKind::Column(Input::Increments, true), doc: "each origin's total of increments" },
            Arg { name: "decrements", kind: ArgKind::Column(Input::Decrements, true), doc: "each origin's total of decrements" },
            ORIGIN,
        ],
        takes: "numbers that are not negative, or states",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_pncounter(inc, decr, device) AS n FROM (VALUES (5, 1, 'a'), (7, 1, 'a'), (2, 2, 'b')) AS t(inc, decr, device)",
            "6",
        ),
        source: "Shapiro et al. 2011, section 3.1.3 (PN-Counter)",
        samples: || vec![Call::new(vec![Type::INT64, Type::INT64, Type::Text])],
    };
    type State = UpAndDown;

    fn configure(call: &Call) -> Result<Self> {
        let states = call.inputs.len() == 1;
        if !states {
            check_number("pncounter", &call.inputs[0])?;
            check_number("pncounter", &call.inputs[1])?;
        }
        let ty = if states { Type::INT64 } else { Type::widen(&call.inputs[0], &call.inputs[1])? };
        Ok(PnCounter { ty, states })
    }

    fn result_type(&self) -> Type {
        match sum_type(&self.ty) {
            Type::Int { .. } => Type::INT64,
            other => other,
        }
    }

    fn empty(&self) -> UpAndDown {
        UpAndDown::default()
    }

    fn least_inputs(&self) -> usize {
        if self.states { 1 } else { Self::SPEC.inputs.len() }
    }

    fn update(&self, state: &mut UpAndDown, row: &[Value]) -> Result<()> {
        if self.states {
            return match &row[0] {
                Value::Null => Ok(()),
                Value::Bytes(bytes) => state.join(&decode::<Self>(bytes)?),
                other => Err(Error::type_mismatch(format!("`pncounter` joins states, not a {}", other.kind()))),
            };
        }
        if row[0].is_null() && row[1].is_null() {
            return Ok(());
        }
        let part = |v: &Value| if v.is_null() { Ok(Value::Int(0)) } else { grown(v).cloned() };
        keep_both(&mut state.0, origin(&row[2])?, &(part(&row[0])?, part(&row[1])?));
        Ok(())
    }
}

fn keep_both(map: &mut Origins<(Value, Value)>, origin: &Value, (up, down): &(Value, Value)) {
    let more = |entry: &mut (Value, Value)| {
        if *up > entry.0 {
            entry.0 = up.clone();
        }
        if *down > entry.1 {
            entry.1 = down.clone();
        }
    };
    map.say(origin, more, || (up.clone(), down.clone()));
}

impl State for UpAndDown {
    fn join(&mut self, other: &Self) -> Result<()> {
        other.0.iter().for_each(|(origin, counts)| keep_both(&mut self.0, &origin, counts));
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        if self.0.is_empty() {
            return Ok(Value::Null);
        }
        let parts = self.0.values().flat_map(|(up, down)| [Ok(up.clone()), negated(down)]).collect::<Result<Vec<_>>>()?;
        sum(parts.iter())
    }

    fn bottom(&self) -> Self {
        Self::default()
    }

    /// Only the counts that are greater.
    fn delta(&self, since: &Self) -> Self {
        let mut delta = Self::default();
        for (origin, (up, down)) in self.0.iter() {
            let known = since.0.get(&origin);
            let is_news = |count: &Value, known: Option<&Value>| known.is_none_or(|k| count > k);
            let (ups, downs) = (is_news(up, known.map(|k| &k.0)), is_news(down, known.map(|k| &k.1)));
            // What is known already is told by the least that it can be: nothing, or NaN, which is less.
            let told = |count: &Value, news: bool| if news || *count < Value::Int(0) { count.clone() } else { Value::Int(0) };
            if ups || downs {
                keep_both(&mut delta.0, &origin, &(told(up, ups), told(down, downs)));
            }
        }
        delta
    }

    fn encode(&self, w: &mut Writer) {
        origins::encode(&self.0, w, |(up, down), w| {
            w.value(up);
            w.value(down);
        });
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let part = |r: &mut Reader<'_>| grown(&r.value()?).cloned().map_err(|e| Error::corrupt_state(e.message));
        Ok(UpAndDown(origins::decode(r, |r| Ok((part(r)?, part(r)?)))?))
    }

    fn heap_size(&self) -> usize {
        origins::heap_size(&self.0, |(up, down)| up.heap_size() + down.heap_size())
    }

    fn info(&self) -> Value {
        let pair = |(up, down): &(Value, Value)| {
            Value::record(vec![("increments".into(), up.clone()), ("decrements".into(), down.clone())])
        };
        Value::map(self.0.iter().map(|(o, e)| (o.into_owned(), pair(e))).collect())
    }
}

fn functions() -> Vec<Function> {
    let title = "the counter after an origin counted this much more, or less; no state is an empty `pncounter`";
    vec![
        Function::state("counter_add", title, 3, |a| add(&a[0], &a[1], &a[2])),
        Function::state("gcounter_add", "the grow-only counter after an origin counted this much more; no state is an empty `counter`", 3, |a| {
            let empty = if a[0].is_null() { Value::Bytes(encode::<Counter>(&Grown::default()).into()) } else { a[0].clone() };
            add(&empty, &a[1], &a[2])
        }),
    ]
}

fn add(state: &Value, who: &Value, n: &Value) -> Result<Value> {
    let (who, n) = (origin(who)?, number(n)?);
    if matches!(n, Value::Float(v) if !v.is_finite()) {
        return Err(Error::invalid_argument(format!("an origin cannot count {n} more")));
    }
    let more = |known: &Value, n: &Value| sum([known.clone(), n.clone()].iter());
    let falls = *n < Value::Int(0);
    let bytes = bytes_of(state)?;
    let grows_only = bytes.is_some_and(|b| catalog::open(b).is_ok_and(|s| s.spec().name == Counter::SPEC.name));
    let state = match bytes {
        Some(bytes) if grows_only => {
            let mut counts = decode::<Counter>(bytes)?;
            let known = counts.0.get(who).cloned().unwrap_or(Value::Int(0));
            keep_greatest(&mut counts.0, who, &more(&known, grown(n)?)?);
            encode::<Counter>(&counts)
        }
        _ => {
            let mut counts = bytes.map_or(Ok(UpAndDown::default()), decode::<PnCounter>)?;
            let (up, down) = counts.0.get(who).cloned().unwrap_or((Value::Int(0), Value::Int(0)));
            let entry = if falls { (up, more(&down, &negated(n)?)?) } else { (more(&up, n)?, down) };
            keep_both(&mut counts.0, who, &entry);
            encode::<PnCounter>(&counts)
        }
    };
    Ok(Value::Bytes(state.into()))
}

fn negated(value: &Value) -> Result<Value> {
    let opposite = |v: &i128| v.checked_neg().ok_or_else(|| Error::invalid_argument(format!("{value} cannot be counted: it is too great")));
    Ok(match value {
        Value::Int(v) => Value::Int(opposite(v)?),
        Value::Decimal { unscaled, scale } => Value::Decimal { unscaled: opposite(unscaled)?, scale: *scale },
        Value::Float(v) => Value::float(-v),
        other => other.clone(),
    })
}
