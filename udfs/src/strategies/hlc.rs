//! `hlc`: a hybrid logical clock.

use crate::aggregate::{Call, State, Strategy, argument, encode};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::functions::Function;
use crate::lattice::origins::origin;
use crate::types::{Type, Unit};
use crate::value::Value;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Hybrid>().with_functions(functions));
}

#[derive(Debug)]
struct Hybrid;

/// The latest stamp: milliseconds since 1970 in the upper 47 bits, a counter in the lower 16, and whose it is.
#[derive(Debug, Clone, PartialEq, Default)]
struct Stamp(Option<(u64, Value)>);

/// The greatest number of milliseconds: stamps stay within a signed 64-bit integer.
const MOST_MILLIS: u64 = (1 << 47) - 1;

impl Stamp {
    fn offer(&mut self, stamp: u64, origin: &Value) {
        let later = self.0.as_ref().is_none_or(|(known, whose)| (stamp, origin) > (*known, whose));
        if later {
            self.0 = Some((stamp, origin.clone()));
        }
    }

    /// The stamp of an event of an origin that has seen this one, at a wall clock of so many milliseconds.
    fn next(&self, millis: u64, origin: &Value) -> Result<Stamp> {
        let seen = self.0.as_ref().map_or(0, |(stamp, _)| *stamp);
        // A counter that is full runs over into the next millisecond.
        let stamp = (millis << 16).max(seen + 1);
        if stamp >> 16 > MOST_MILLIS {
            return Err(Error::invalid_argument("the clock is beyond what a stamp holds"));
        }
        Ok(Stamp(Some((stamp, origin.clone()))))
    }
}

fn timestamp(stamp: u64) -> Value {
    Value::Timestamp { nanos: i128::from(stamp >> 16) * 1_000_000, zoned: false }
}

impl Strategy for Hybrid {
    const SPEC: Spec = Spec {
        name: "hlc",
        aliases: &["hybrid_clock"],
        type_id: 43,
        since: "0.1.0",
        title: "a hybrid logical clock: the latest stamp that was seen",
        doc: "A stamp is one integer, milliseconds since 1970 times 65536 and a counter: later events have greater stamps, even where the clock of a machine \
              is behind, and stamps are near the time of day. A row is (stamp, origin). `hlc_now(state, origin)` is the clock after an event now, by an origin \
              that has seen the state: `crdt_value_bigint` gives the stamp of the event. `hlc_at(state, origin, time)` is the same at a given time; `hlc_time(stamp)` the time of a stamp. Stamp and origin together \
              make a version that no two events share: `VERSION BY stamp, origin`. So that every host's integers hold a stamp, its milliseconds have 47 bits, \
              which is until the year 6429.",
        inputs: &[Input::Value, Input::Origin],
        args: &[super::r#counter::ORIGIN],
        takes: "stamps: integers that are not negative",
        selects: true,
        closed: |_| false,
        example: (
            "SELECT crdt_value_bigint(hlc_at(s, 'b', 7)) - 65536 * 1000 AS later FROM (SELECT crdt_hlc_state(stamp, o) AS s FROM (VALUES (65536000, 'a'), (65536004, 'b')) AS t(stamp, o)) AS seen",
            "5",
        ),
        source: "Kulkarni, Demirbas, Madappa, Avva, Leone 2014, Logical physical clocks",
        samples: || vec![Call::new(vec![Type::INT64, Type::Text])],
    };
    type State = Stamp;

    fn configure(call: &Call) -> Result<Self> {
        match call.value_type() {
            Type::Int { .. } | Type::Null => Ok(Hybrid),
            other => Err(Error::type_mismatch(format!("`hlc` takes stamps, which are integers, not {other}"))),
        }
    }

    fn result_type(&self) -> Type {
        Type::INT64
    }

    fn empty(&self) -> Stamp {
        Stamp::default()
    }

    fn update(&self, state: &mut Stamp, row: &[Value]) -> Result<()> {
        let stamp = match &row[0] {
            Value::Null => return Ok(()),
            Value::Int(n) => u64::try_from(*n).ok().filter(|n| n >> 16 <= MOST_MILLIS),
            _ => None,
        };
        let stamp = stamp.ok_or_else(|| Error::invalid_argument(format!("a stamp is an integer that is not negative, not {}", row[0])))?;
        state.offer(stamp, origin(&row[1])?);
        Ok(())
    }
}

impl State for Stamp {
    fn join(&mut self, other: &Self) -> Result<()> {
        if let Some((stamp, origin)) = &other.0 {
            self.offer(*stamp, origin);
        }
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(self.0.as_ref().map_or(Value::Null, |(stamp, _)| Value::Int((*stamp).into())))
    }

    fn bottom(&self) -> Self {
        Stamp::default()
    }

    fn encode(&self, w: &mut Writer) {
        if let Some((stamp, origin)) = &self.0 {
            w.varint((*stamp).into());
            w.value(origin);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        if r.end().is_ok() {
            return Ok(Stamp::default());
        }
        let stamp = u64::try_from(r.varint()?).ok().filter(|n| n >> 16 <= MOST_MILLIS);
        let stamp = stamp.ok_or_else(|| Error::corrupt_state("a stamp of the state is out of range"))?;
        let whose = r.value()?;
        origin(&whose).map_err(|e| Error::corrupt_state(e.message))?;
        Ok(Stamp(Some((stamp, whose))))
    }

    fn heap_size(&self) -> usize {
        self.0.as_ref().map_or(0, |(_, origin)| origin.heap_size())
    }

    fn info(&self) -> Value {
        self.0.as_ref().map_or(Value::Null, |(stamp, origin)| {
            Value::record(vec![
                ("time".into(), timestamp(*stamp)),
                ("counter".into(), Value::Int((stamp & 0xffff).into())),
                ("origin".into(), origin.clone()),
            ])
        })
    }
}

fn seen(state: &Value) -> Result<Stamp> {
    Ok(argument::<Hybrid>(state)?.unwrap_or_default())
}

fn bytes(stamp: &Stamp) -> Value {
    Value::Bytes(encode::<Hybrid>(stamp).into())
}

fn functions() -> Vec<Function> {
    let now = |a: &[Value]| {
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        Ok(bytes(&seen(&a[0])?.next(millis, origin(&a[1])?)?))
    };
    let at = |a: &[Value]| {
        let millis = match &a[2] {
            Value::Null => return Ok(Value::Null),
            Value::Timestamp { nanos, .. } => nanos.div_euclid(1_000_000),
            Value::Date(days) => i128::from(*days) * 86_400_000,
            Value::Int(millis) => *millis,
            other => return Err(Error::type_mismatch(format!("a time is a timestamp, or milliseconds since 1970, not the {} {other}", other.kind()))),
        };
        let millis = u64::try_from(millis).ok().filter(|m| *m <= MOST_MILLIS);
        let millis = millis.ok_or_else(|| Error::invalid_argument(format!("{} is no time that a stamp holds", a[2])))?;
        Ok(bytes(&seen(&a[0])?.next(millis, origin(&a[1])?)?))
    };
    vec![
        Function { volatile: true, ..Function::state("hlc_now", "the clock of an origin that has seen a state, after an event now", 2, now) },
        Function::state("hlc_at", "the clock of an origin that has seen a state, after an event at a time", 3, at),
        Function::of("hlc_time", "the time of a stamp", 1..=1, Type::Timestamp { unit: Unit::Millisecond, zone: None }, |a| match &a[0] {
            Value::Null => Ok(Value::Null),
            Value::Int(stamp) if u64::try_from(*stamp).is_ok() => Ok(timestamp(*stamp as u64)),
            other => Err(Error::invalid_argument(format!("a stamp is an integer that is not negative, not {other}"))),
        }),
    ]
}
