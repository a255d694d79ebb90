//! `lwwmap`: a map whose entries are last-writer-wins registers, deletions included.

use crate::aggregate::{Call, State, Strategy, argument, encode};
use crate::catalog::{Arg, Entry, Input, Spec};
use crate::codec::{Reader, Writer, check_nesting};
use crate::error::{Error, Result};
use crate::functions::Function;
use crate::lattice::origins::{self, Origins};
use crate::lattice::version::{self, VersionOrder};
use crate::types::Type;
use crate::value::Value;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<LwwMap>().with_functions(functions));
}

#[derive(Debug)]
struct LwwMap {
    key: Type,
    ty: Type,
    versions: VersionOrder,
}

/// What is under each key, and since which version; NULL is what a deletion leaves.
#[derive(Debug, Clone, PartialEq)]
struct Registers {
    versions: VersionOrder,
    entries: Origins<(Value, Vec<Value>)>,
}

impl Registers {
    fn offer(&mut self, key: &Value, value: &Value, version: &[Value]) {
        let versions = &self.versions;
        let more = |entry: &mut (Value, Vec<Value>)| {
            let order = versions
                .compare_worth(version, &entry.1)
                .then_with(|| value.cmp(&entry.0))
                .then_with(|| versions.compare(version, &entry.1));
            if order.is_gt() {
                *entry = (value.clone(), version.to_vec());
            }
        };
        self.entries.say(key, more, || (value.clone(), version.to_vec()));
    }
}

impl Strategy for LwwMap {
    const SPEC: Spec = Spec {
        name: "lwwmap",
        aliases: &[],
        type_id: 30,
        since: "0.1.0",
        title: "a map whose entries are last-writer-wins registers",
        doc: "A row is (value, key, version...): under each key the value of the newest version counts. NULL deletes the key at that version: a \
              value written before it stays away whenever it is heard of, one written after it is there again. Equal versions go to the greater \
              value, and any value beats a deletion. `map_set(state, key, value, version...)` and `map_remove(state, key, version...)` change a state.",
        inputs: &[Input::Value, Input::Origin, Input::Versions],
        args: &[Arg { doc: "the key of the entry that a row is about; default: the source", ..super::r#counter::ORIGIN }],
        takes: "any type, with its key",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_lwwmap(v, k, ts) AS m FROM (VALUES ('red', 'color', 1), ('blue', 'color', 2), ('L', 'size', 1), (NULL, 'size', 2)) AS t(v, k, ts)",
            "{\"color\":\"blue\"}",
        ),
        source: "a map of registers with deletions by version; Shapiro et al. 2011, section 3.2.1",
        samples: || vec![Call::new(vec![Type::INT64, Type::Text, Type::INT64]), Call::new(vec![Type::Text, Type::Text])],
    };
    type State = Registers;

    fn configure(call: &Call) -> Result<Self> {
        let key = call.inputs.get(1).cloned().unwrap_or(Type::Text);
        Ok(LwwMap { key, ty: call.value_type(), versions: VersionOrder::configure(false, call)? })
    }

    fn result_type(&self) -> Type {
        Type::Map(Box::new(self.key.clone()), Box::new(self.ty.clone()))
    }

    fn empty(&self) -> Registers {
        Registers { versions: self.versions.clone(), entries: Origins::default() }
    }

    fn update(&self, state: &mut Registers, row: &[Value]) -> Result<()> {
        if row[1].is_null() {
            return Err(Error::invalid_argument("the key of an entry is NULL"));
        }
        state.offer(&row[1], &row[0], &VersionOrder::parts(&row[2..]));
        Ok(())
    }
}

impl State for Registers {
    fn join(&mut self, other: &Self) -> Result<()> {
        if self.versions != other.versions {
            return Err(Error::type_mismatch("the two states order versions differently"));
        }
        other.entries.iter().for_each(|(key, (value, version))| self.offer(&key, value, version));
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        if self.entries.is_empty() {
            return Ok(Value::Null);
        }
        let there = self.entries.iter().filter(|(_, (value, _))| !value.is_null());
        Ok(Value::map(there.map(|(key, (value, _))| (key.into_owned(), value.clone())).collect()))
    }

    fn bottom(&self) -> Self {
        Registers { versions: self.versions.clone(), entries: Origins::default() }
    }

    fn delta(&self, since: &Self) -> Self {
        Registers { versions: self.versions.clone(), entries: self.entries.news(&since.entries) }
    }

    fn encode(&self, w: &mut Writer) {
        self.versions.encode(w);
        origins::encode(&self.entries, w, |(value, version), w| {
            w.value(value);
            w.values(version);
        });
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let versions = VersionOrder::decode(r)?;
        let entry = |r: &mut Reader<'_>| Ok((r.value()?, version::decode(r)?));
        Ok(Registers { versions, entries: origins::decode(r, entry)? })
    }

    fn heap_size(&self) -> usize {
        origins::heap_size(&self.entries, |(value, version)| {
            value.heap_size() + version.iter().map(|v| size_of::<Value>() + v.heap_size()).sum::<usize>()
        })
    }

    fn info(&self) -> Value {
        let entry = |(value, version): &(Value, Vec<Value>)| {
            Value::record(vec![("value".into(), value.clone()), ("version".into(), Value::List(version.clone()))])
        };
        Value::map(self.entries.iter().map(|(key, e)| (key.into_owned(), entry(e))).collect())
    }
}

/// The map with a value, or with NULL for a deletion, under a key since a version.
fn changed(state: &Value, key: &Value, value: &Value, version: &[Value]) -> Result<Value> {
    if key.is_null() || version.iter().all(Value::is_null) {
        let what = if key.is_null() { "the key of an entry" } else { "the version of a change" };
        return Err(Error::invalid_argument(format!("{what} is NULL")));
    }
    [key, value].into_iter().chain(version).try_for_each(|part| check_nesting(part, 0))?;
    let fresh = || Registers { versions: VersionOrder::default(), entries: Origins::default() };
    let mut map = argument::<LwwMap>(state)?.unwrap_or_else(fresh);
    map.offer(key, value, &VersionOrder::parts(version));
    Ok(Value::Bytes(encode::<LwwMap>(&map).into()))
}

fn functions() -> Vec<Function> {
    let state = |name, title, least, run| Function { gives_state: true, ..Function::of(name, title, least..=usize::MAX, Type::Bytes, run) };
    vec![
        state("map_set", "the map with a value under a key, since a version", 4, |a| {
            if a[2].is_null() {
                return Err(Error::invalid_argument("NULL under a key is a deletion").with_help("map_remove(state, key, version...)"));
            }
            changed(&a[0], &a[1], &a[2], &a[3..])
        }),
        state("map_remove", "the map without a key, since a version", 3, |a| changed(&a[0], &a[1], &Value::Null, &a[2..])),
    ]
}
