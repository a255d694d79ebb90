//! `ormap`: a map from keys to states of any type, whose keys can be removed.

use crate::aggregate::{Call, State, Strategy, argument, encode};
use crate::catalog::{self, Entry, Input, Spec};
use crate::codec::{MAX_DEPTH, Reader, Writer, check_nesting, is_compressed};
use crate::error::{Code, Error, Result};
use crate::functions::Function;
use crate::lattice::dots::{DotStore, dot_of};
use crate::lattice::origins::origin;
use crate::types::Type;
use crate::value::Value;
use std::collections::BTreeMap;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<ObservedMap>().with_functions(functions));
}

#[derive(Debug)]
struct ObservedMap;

/// Each dot holds a list of a key and a state; a key has the join of its dots.
#[derive(Debug, Clone, PartialEq, Default)]
struct Entries(DotStore);

/// A key and a state under it.
fn parts(held: Value) -> Option<(Value, Box<[u8]>)> {
    let Value::List(pair) = held else { return None };
    match <[Value; 2]>::try_from(pair) {
        Ok([key, Value::Bytes(state)]) => Some((key, state)),
        _ => None,
    }
}

/// The states under a key.
type States = Vec<Box<[u8]>>;

impl Entries {
    /// Each key and the states that its dots hold, in the order of their bytes.
    fn entries(&self) -> Vec<(Value, States)> {
        // Those of one key need not be neighbours: 1.5 and 1.50 are worth the same, and so stand among one another.
        let mut entries: BTreeMap<Value, States> = BTreeMap::new();
        for (key, state) in self.0.values().into_iter().filter_map(parts) {
            entries.entry(key).or_default().push(state);
        }
        entries.into_iter().collect()
    }

    /// The states of a key: one, or where replicas put states under it that don't join, each kind of them.
    fn get(&self, key: &Value) -> Vec<Vec<u8>> {
        self.entries().into_iter().find(|(known, _)| known == key).map_or_else(Vec::new, |(_, states)| kinds(&states))
    }

    /// What `show` shows of each key's states: one by itself, several as a list.
    fn shown(&self, show: impl Fn(&[u8]) -> Result<Value>) -> Result<Value> {
        let shown = |(key, states): (Value, States)| {
            let mut shown = kinds(&states).iter().map(|state| show(state)).collect::<Result<Vec<_>>>()?;
            Ok((key, if shown.len() == 1 { shown.remove(0) } else { Value::List(shown) }))
        };
        Ok(Value::map(self.entries().into_iter().map(shown).collect::<Result<_>>()?))
    }

    /// Ends the dots of a key that were seen.
    fn forget(&mut self, key: &Value) {
        for held in self.0.values().iter().filter(|held| matches!(held, Value::List(pair) if pair.first() == Some(key))) {
            self.0.remove(held);
        }
    }
}

/// States that join as one, in the order in which they come.
fn kinds(states: &States) -> Vec<Vec<u8>> {
    let mut kinds: Vec<Vec<u8>> = Vec::new();
    for state in states {
        let joined = kinds.iter_mut().find_map(|known| catalog::join(known, state).ok().map(|joined| *known = joined));
        if joined.is_none() {
            kinds.push(state.to_vec());
        }
    }
    kinds
}

/// A state in a map lies in a list in the map's body: two levels deeper than the map.
const LEVELS: usize = 2;

/// The canonical bytes of the state of an entry in a map at this depth.
fn canonical(key: &Value, state: &[u8], depth: usize) -> Result<Vec<u8>> {
    if key.is_null() {
        return Err(Error::invalid_argument("the key of an entry is NULL"));
    }
    let opened = catalog::open_within(state, depth + LEVELS)?;
    if opened.spec().name == "state" {
        return Err(Error::new(Code::Unsupported, "a map of states of `state`").with_help("put the state itself into the map: crdt_value gives it"));
    }
    Ok(opened.encode())
}

/// What a new dot holds.
fn placed(key: &Value, state: &Value) -> Result<Value> {
    let Value::Bytes(bytes) = state else {
        return Err(Error::new(Code::NotAState, format!("an entry of a map is a CRDT state, not a {}", state.kind())));
    };
    check_nesting(key, 1)?;
    match canonical(key, bytes, 0) {
        Ok(state) => Ok(Value::List(vec![key.clone(), Value::Bytes(state.into())])),
        // By itself it is a state: in here it would lie too deep.
        Err(error) if error.code == Code::CorruptState && catalog::open(bytes).is_ok() => {
            Err(Error::new(Code::LimitExceeded, format!("states nest deeper than {}", MAX_DEPTH / LEVELS))
                .with_help("make one key of several: 'outer/inner'"))
        }
        Err(error) => Err(error),
    }
}

impl Strategy for ObservedMap {
    const SPEC: Spec = Spec {
        name: "ormap",
        aliases: &[],
        type_id: 45,
        since: "0.1.0",
        title: "a map from keys to states of any type, where a change wins over a removal that has not seen it",
        doc: "Every change of an entry is a dot that holds the key and a state of any type (a counter, a set, another map), and ends the dots of the \
              key that it has seen; a removal ends them too. So an entry that is changed here while it is removed there stays, with what the change had \
              seen; changes at the same time are joined. A row is (state, origin, counter, key): that dot holds the state under the key; a NULL state says \
              that the dot is over. `ormap_put(state, key, entry, origin)`, `ormap_remove(state, key)` and `ormap_get(state, key)` work on a state; the \
              value is the map of the entries' values; where replicas put states of several types under one key, that key's value is the list of theirs, `ormap_get(state, key, 'counter')` gives one and \
              `ormap_put` changes the one of its type. An entry that is put anew after it was removed numbers its changes from the beginning: where \
              another replica may still hold the old one, put it under a new key or with a new origin. Otherwise two changes count as the same one, and \
              what was added under that number, here or there, is lost.",
        inputs: &[Input::Value, Input::Origin, Input::Versions],
        args: &[super::r#counter::ORIGIN],
        takes: "states, with the origin, its counter and the key",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_value(ormap_put(ormap_put(NULL, 'likes', counter_add(NULL, 'a', 2), 'a'), 'views', counter_add(NULL, 'a', 7), 'a')) AS m",
            "{\"likes\":2,\"views\":7}",
        ),
        source: "Almeida, Shoker, Baquero 2018, Delta state replicated data types, section 7.3 (maps of causal CRDTs)",
        samples: || vec![Call::new(vec![Type::Bytes, Type::Text, Type::INT64, Type::Text])],
    };
    type State = Entries;

    fn configure(call: &Call) -> Result<Self> {
        if call.inputs.len() != 4 || !matches!(call.inputs[2], Type::Int { .. } | Type::Null) || call.flagged("descending") {
            return Err(Error::invalid_argument("`ormap` takes a state, its origin, the origin's counter, an integer, and the key"));
        }
        match call.value_type() {
            Type::Bytes | Type::Null => Ok(ObservedMap),
            other => Err(Error::type_mismatch(format!("an entry of a map is a CRDT state, not {other}"))),
        }
    }

    /// Entries of several types have no one type.
    fn result_type(&self) -> Type {
        Type::Text
    }

    fn empty(&self) -> Entries {
        Entries::default()
    }

    fn update(&self, state: &mut Entries, row: &[Value]) -> Result<()> {
        let Some((origin, n)) = dot_of(row)? else { return Ok(()) };
        let held = if row[0].is_null() { None } else { Some(placed(&row[3], &row[0])?) };
        state.0.learn(held.as_ref(), origin, n)
    }

    fn resolve(&self, state: &Entries) -> Result<Value> {
        let value = state.value()?;
        Ok(if value.is_null() { value } else { Value::text(value.to_json()) })
    }
}

impl State for Entries {
    fn join(&mut self, other: &Self) -> Result<()> {
        self.0.join(&other.0)
    }

    fn value(&self) -> Result<Value> {
        if self.0.is_empty() {
            return Ok(Value::Null);
        }
        self.shown(|state| catalog::open(state)?.value())
    }

    fn bottom(&self) -> Self {
        Self::default()
    }

    fn delta(&self, since: &Self) -> Self {
        Entries(self.0.delta(&since.0))
    }

    fn encode(&self, w: &mut Writer) {
        self.0.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let entries = Entries(DotStore::decode(r)?);
        for value in entries.0.values() {
            let corrupt = || Error::corrupt_state("a dot of a map holds no key and state");
            let (key, state) = parts(value).ok_or_else(corrupt)?;
            // Compressed states, which would inflate one inside the other, are in no map.
            if is_compressed(&state) || canonical(&key, &state, r.depth()).map_err(|_| corrupt())? != *state {
                return Err(corrupt());
            }
        }
        Ok(entries)
    }

    fn heap_size(&self) -> usize {
        self.0.heap_size()
    }

    fn info(&self) -> Value {
        let state = |state: &[u8]| {
            let state = catalog::open(state)?;
            Ok(Value::record(vec![("type".into(), Value::text(state.spec().name)), ("state".into(), state.info())]))
        };
        self.shown(state).unwrap_or(Value::Null)
    }
}

fn known(state: &Value) -> Result<Entries> {
    Ok(argument::<ObservedMap>(state)?.unwrap_or_default())
}

fn bytes(entries: &Entries) -> Value {
    Value::Bytes(encode::<ObservedMap>(entries).into())
}

fn functions() -> Vec<Function> {
    vec![
        Function::state("ormap_put", "the map whose entry is joined with a state, by an origin", 4, |a| {
            let (mut entries, who) = (known(&a[0])?, origin(&a[3])?);
            let mut entry = placed(&a[1], &a[2])?;
            // What joins with it is in it; states of other types that replicas put under the key stay.
            let (mut joins, mut fails) = (false, None);
            for held in entries.0.values() {
                let (Some((known, before)), Some((_, state))) = (parts(held.clone()), parts(entry.clone())) else { continue };
                if known != a[1] {
                    continue;
                }
                match catalog::join(&before, &state) {
                    Ok(joined) => {
                        joins = true;
                        entries.0.remove(&held);
                        entry = Value::List(vec![known, Value::Bytes(joined.into())]);
                    }
                    Err(error) => fails = Some(error),
                }
            }
            if let Some(error) = fails.filter(|_| !joins) {
                return Err(error);
            }
            entries.0.add(&entry, who)?;
            Ok(bytes(&entries))
        }),
        Function::state("ormap_remove", "the map without a key, as far as its changes were seen", 2, |a| {
            let mut entries = known(&a[0])?;
            entries.forget(&a[1]);
            Ok(bytes(&entries))
        }),
        Function::state_of("ormap_get", "the state of a key, or that of a type where a key has states of several; NULL where there is none", 2..=3, |a| {
            let mut states = Vec::new();
            for state in known(&a[0])?.get(&a[1]) {
                states.push((catalog::open(&state)?.spec().name, state));
            }
            if let Some(Value::Text(ty)) = a.get(2) {
                states.retain(|(name, _)| **name == **ty);
            }
            match states.as_slice() {
                [] => Ok(Value::Null),
                [(_, state)] => Ok(Value::Bytes(state.clone().into())),
                [(first, _), .., (last, _)] => Err(Error::type_mismatch(format!("`{}` has states of several types: `{first}` and `{last}`", a[1]))
                    .with_help(format!("ormap_get(state, key, '{last}') gives one of them"))),
            }
        }),
    ]
}
