//! `gauge`, `avg` and `median`: the newest value of each origin, then a statistic over origins.

use super::r#counter::ORIGIN;
use crate::aggregate::{Call, State, Strategy};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::functions::{Function, updated};
use crate::lattice::best::nan_last;
use crate::lattice::origins::{self, Origins, check_number, mean, mean_type, number, origin, sum, sum_type};
use crate::lattice::version::{self, VersionOrder};
use crate::types::Type;
use crate::value::Value;
use std::cmp::Ordering;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<PerOrigin<SUM>>().with_functions(|| {
        let title = "the gauge after an origin measured a value, with its version";
        vec![Function::state_of("gauge_set", title, 4..=usize::MAX, |a| {
            let row: Vec<Value> = [&a[2], &a[1]].into_iter().chain(&a[3..]).cloned().collect();
            updated("gauge", &a[0], &row)
        })]
    }));
    entries.push(Entry::of::<PerOrigin<MEAN>>());
    entries.push(Entry::of::<PerOrigin<MEDIAN>>());
}

const SUM: u8 = 0;
const MEAN: u8 = 1;
const MEDIAN: u8 = 2;

const GAUGE: Spec = Spec {
    name: "gauge",
    aliases: &[],
    type_id: 15,
    since: "0.1.0",
    title: "the sum of each origin's newest value",
    doc: "Per origin the value of the newest version counts; the value is the exact sum over origins. Unlike a counter it may fall. \
          Without a version there is no newest value: that is an error. `gauge_set(state, origin, value, version ...)` changes a state.",
    inputs: &[Input::Value, Input::Origin, Input::Versions],
    args: &[ORIGIN],
    takes: "numbers",
    selects: false,
    closed: |_| false,
    example: (
        "SELECT crdt_gauge(n, shop, ts) AS n FROM (VALUES (10, 'a', 1), (4, 'a', 2), (7, 'b', 1)) AS t(n, shop, ts)",
        "11",
    ),
    source: "a map of last-writer-wins registers; Shapiro et al. 2011, sections 3.2.1 and 3.3",
    samples: || {
        vec![
            Call::new(vec![Type::INT64, Type::Text, Type::INT64]),
            Call::new(vec![Type::Float64, Type::Text, Type::INT64]),
        ]
    },
};

const AVG: Spec = Spec {
    name: "avg",
    aliases: &["mean"],
    type_id: 16,
    title: "the exact mean of each origin's newest value",
    doc: "Per origin the value of the newest version counts; the value is their mean, computed exactly and rounded once: decimals \
          with four more digits, other numbers as a double.",
    example: (
        "SELECT crdt_avg(n, shop, ts) AS n FROM (VALUES (10, 'a', 1), (4, 'a', 2), (7, 'b', 1)) AS t(n, shop, ts)",
        "5.5",
    ),
    ..GAUGE
};

const MEDIAN_SPEC: Spec = Spec {
    name: "median",
    aliases: &[],
    type_id: 17,
    title: "the median of each origin's newest value",
    doc: "Per origin the value of the newest version counts; the value is the middle one, or the exact mean of the two middle ones.",
    example: (
        "SELECT crdt_median(n, shop, ts) AS n FROM (VALUES (1, 'a', 1), (100, 'b', 1), (3, 'c', 1)) AS t(n, shop, ts)",
        "3.0",
    ),
    ..GAUGE
};

#[derive(Debug)]
struct PerOrigin<const STATISTIC: u8> {
    ty: Type,
    versions: VersionOrder,
}

#[derive(Debug, Clone, PartialEq)]
struct Newest<const STATISTIC: u8> {
    versions: VersionOrder,
    origins: Origins<(Value, Vec<Value>)>,
}

impl<const STATISTIC: u8> Newest<STATISTIC> {
    fn offer(&mut self, origin: &Value, value: &Value, version: &[Value]) {
        let versions = &self.versions;
        let more = |entry: &mut (Value, Vec<Value>)| {
            let order = nan_last(value, &entry.0)
                .then_with(|| versions.compare_worth(version, &entry.1))
                .then_with(|| value.cmp(&entry.0))
                .then_with(|| versions.compare(version, &entry.1));
            if order == Ordering::Greater {
                *entry = (value.clone(), version.to_vec());
            }
        };
        self.origins.say(origin, more, || (value.clone(), version.to_vec()));
    }
}

impl<const STATISTIC: u8> Strategy for PerOrigin<STATISTIC> {
    const SPEC: Spec = match STATISTIC {
        SUM => GAUGE,
        MEAN => AVG,
        _ => MEDIAN_SPEC,
    };
    type State = Newest<STATISTIC>;

    fn configure(call: &Call) -> Result<Self> {
        check_number(Self::SPEC.name, &call.value_type())?;
        if STATISTIC == SUM && call.inputs.len() < 3 {
            return Err(Error::invalid_argument("`gauge` needs a version: without one no value is the newest")
                .with_help("add VERSION BY, or use `counter` for totals that only grow"));
        }
        Ok(PerOrigin { ty: call.value_type(), versions: VersionOrder::configure(false, call)? })
    }

    fn result_type(&self) -> Type {
        if STATISTIC == SUM { sum_type(&self.ty) } else { mean_type(&self.ty) }
    }

    fn empty(&self) -> Self::State {
        Newest { versions: self.versions.clone(), origins: Origins::default() }
    }

    fn update(&self, state: &mut Self::State, row: &[Value]) -> Result<()> {
        if !row[0].is_null() {
            state.offer(origin(&row[1])?, number(&row[0])?, &VersionOrder::parts(&row[2..]));
        }
        Ok(())
    }
}

impl<const STATISTIC: u8> State for Newest<STATISTIC> {
    fn join(&mut self, other: &Self) -> Result<()> {
        if self.versions != other.versions {
            return Err(Error::type_mismatch("the two states order versions differently"));
        }
        other.origins.iter().for_each(|(origin, (value, version))| self.offer(&origin, value, version));
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        let values = || self.origins.values().map(|(value, _)| value);
        if self.origins.is_empty() {
            return Ok(Value::Null);
        }
        match STATISTIC {
            SUM => sum(values()),
            MEAN => mean(values()),
            _ => {
                let mut sorted: Vec<&Value> = values().collect();
                sorted.sort();
                let middle = sorted.len() / 2;
                let from = if sorted.len().is_multiple_of(2) { middle - 1 } else { middle };
                mean(sorted[from..=middle].iter().copied())
            }
        }
    }

    fn bottom(&self) -> Self {
        Newest { versions: self.versions.clone(), origins: Origins::default() }
    }

    /// Only the origins that know more.
    fn delta(&self, since: &Self) -> Self {
        Newest { versions: self.versions.clone(), origins: self.origins.news(&since.origins) }
    }

    fn encode(&self, w: &mut Writer) {
        self.versions.encode(w);
        origins::encode(&self.origins, w, |(value, version), w| {
            w.value(value);
            w.values(version);
        });
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let versions = VersionOrder::decode(r)?;
        let origins = origins::decode(r, |r| {
            let value = number(&r.value()?).cloned().map_err(|e| Error::corrupt_state(e.message))?;
            Ok((value, version::decode(r)?))
        })?;
        Ok(Newest { versions, origins })
    }

    fn heap_size(&self) -> usize {
        origins::heap_size(&self.origins, |(value, version)| {
            value.heap_size() + version.iter().map(|v| size_of::<Value>() + v.heap_size()).sum::<usize>()
        })
    }

    fn info(&self) -> Value {
        let entry = |(value, version): &(Value, Vec<Value>)| {
            Value::record(vec![("value".into(), value.clone()), ("version".into(), Value::List(version.clone()))])
        };
        Value::map(self.origins.iter().map(|(o, e)| (o.into_owned(), entry(e))).collect())
    }
}
