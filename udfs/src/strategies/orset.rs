//! `orset`, `ewflag`, `dwflag` and `mvr`: what is known of dots, read as a set, as a flag, or as a register.

use crate::aggregate::{Call, State, Strategy, argument, encode};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer, check_nesting};
use crate::error::{Error, Result};
use crate::functions::Function;
use crate::lattice::dots::{DotStore, dot_of};
use crate::strategies::vclock;
use crate::types::Type;
use crate::value::Value;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Dotted<SET>>().with_functions(set_functions));
    entries.push(Entry::of::<Dotted<ENABLE>>().with_functions(enable_functions));
    entries.push(Entry::of::<Dotted<DISABLE>>().with_functions(disable_functions));
    entries.push(Entry::of::<Dotted<REGISTER>>().with_functions(register_functions));
}

const SET: u8 = 0;
const ENABLE: u8 = 1;
const DISABLE: u8 = 2;
const REGISTER: u8 = 3;

const ORSET: Spec = Spec {
    name: "orset",
    aliases: &["awset"],
    type_id: 24,
    since: "0.1.0",
    title: "a set with removals, where an addition wins over a removal that has not seen it",
    doc: "Every addition is a dot of its own: the `n`th event of an origin. A removal ends the dots that it has seen, so an element that was \
          removed stays removed whoever merges, until it is added anew; and an element that is added here while it is removed there stays. A \
          row is (element, origin, counter): that dot holds the element; a NULL element says that the dot is over. An origin numbers each of its additions \
          anew: of two elements under one dot neither is kept. `orset_add(state, element, \
          origin)` and `orset_remove(state, element)` change a state.",
    inputs: &[Input::Value, Input::Origin, Input::Versions],
    args: &[super::r#counter::ORIGIN],
    takes: "any type, with the origin and its counter",
    selects: false,
    closed: |_| false,
    example: (
        "SELECT crdt_orset(e, o, n) AS e FROM (VALUES ('x', 'a', 1), ('y', 'b', 1), (NULL, 'a', 1)) AS t(e, o, n)",
        "[\"y\"]",
    ),
    source: "Bieniusa et al. 2012, An optimized conflict-free replicated set; Almeida, Shoker, Baquero 2018, Delta state replicated data types",
    samples: || {
        vec![
            Call::new(vec![Type::INT64, Type::Text, Type::INT64]),
            Call::new(vec![Type::Text, Type::Text, Type::INT64]),
        ]
    },
};

const EWFLAG: Spec = Spec {
    name: "ewflag",
    aliases: &[],
    type_id: 25,
    title: "a flag, where enabling wins over disabling that has not seen it",
    doc: "Enabling is a dot; disabling ends the dots that it has seen. A row is (flag, origin, counter): true says that the dot enables, false or \
          NULL that it is over, and both under one dot end it. `flag_enable(state, origin)` and `flag_disable(state)` change a state.",
    takes: "booleans, with the origin and its counter",
    example: (
        "SELECT crdt_ewflag(f, o, n) AS f FROM (VALUES (true, 'a', 1), (true, 'b', 1), (false, 'a', 1)) AS t(f, o, n)",
        "true",
    ),
    source: "Almeida, Shoker, Baquero 2018, section 7 (flags over dot stores)",
    samples: || vec![Call::new(vec![Type::Boolean, Type::Text, Type::INT64])],
    ..ORSET
};

const DWFLAG: Spec = Spec {
    name: "dwflag",
    aliases: &[],
    type_id: 26,
    title: "a flag, where disabling wins over enabling that has not seen it",
    doc: "Disabling is a dot; enabling ends the dots that it has seen. A row is (flag, origin, counter): false says that the dot disables, true or \
          NULL that it is over. `dwflag_enable(state)` and `dwflag_disable(state, origin)` change a state.",
    example: (
        "SELECT crdt_dwflag(f, o, n) AS f FROM (VALUES (false, 'a', 1), (false, 'b', 1), (true, 'a', 1)) AS t(f, o, n)",
        "false",
    ),
    ..EWFLAG
};

const MVR: Spec = Spec {
    name: "mvr",
    aliases: &["multi_value"],
    type_id: 27,
    title: "a register that keeps values written at the same time",
    doc: "A write is a dot that holds the value, and ends the dots that it has seen: the value is the sorted list of what was written \
          concurrently, usually one. A row is (value, origin, counter); a NULL value says that the dot is over. Or it is (value, origin, clock), the \
          clock a state of `vclock`: the version vector of the write, which counts the write itself, and ends all that it has seen. \
          `register_set(state, value, origin)` changes a state. An origin writes one value in an event: of two under one dot neither is kept.",
    takes: "any type, with the origin and its counter or version vector",
    example: (
        "SELECT crdt_mvr(v, o, n) AS v FROM (VALUES ('old', 'a', 1), (NULL, 'a', 1), ('red', 'a', 2), ('blue', 'b', 1)) AS t(v, o, n)",
        "[\"blue\",\"red\"]",
    ),
    source: "Shapiro et al. 2011, section 3.2.2 (MV-Register), over dots as in Almeida, Shoker, Baquero 2018",
    ..ORSET
};

#[derive(Debug)]
struct Dotted<const READ: u8> {
    ty: Type,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Known<const READ: u8>(DotStore);

impl<const READ: u8> Strategy for Dotted<READ> {
    const SPEC: Spec = match READ {
        SET => ORSET,
        ENABLE => EWFLAG,
        DISABLE => DWFLAG,
        _ => MVR,
    };
    type State = Known<READ>;

    fn configure(call: &Call) -> Result<Self> {
        let name = Self::SPEC.name;
        let counted = |ty: &Type| matches!(ty, Type::Int { .. } | Type::Null) || READ == REGISTER && *ty == Type::Bytes;
        if call.inputs.len() != 3 || !counted(&call.inputs[2]) || call.flagged("descending") {
            return Err(Error::invalid_argument(format!("`{name}` takes a value, its origin, and the origin's counter, an integer")));
        }
        let ty = call.value_type();
        if matches!(READ, ENABLE | DISABLE) && !matches!(ty, Type::Boolean | Type::Null) {
            return Err(Error::type_mismatch(format!("`{name}` takes booleans, not {ty}")));
        }
        Ok(Dotted { ty })
    }

    fn result_type(&self) -> Type {
        match READ {
            ENABLE | DISABLE => Type::Boolean,
            _ => Type::List(Box::new(self.ty.clone())),
        }
    }

    fn empty(&self) -> Known<READ> {
        Known::default()
    }

    fn update(&self, state: &mut Known<READ>, row: &[Value]) -> Result<()> {
        if let (REGISTER, Value::Bytes(_)) = (READ, &row[2]) {
            return written(&mut state.0, row);
        }
        let Some((origin, n)) = dot_of(row)? else { return Ok(()) };
        let held = match (READ, &row[0]) {
            (_, Value::Null) => None,
            (ENABLE, Value::Bool(flag)) => flag.then_some(&row[0]),
            (DISABLE, Value::Bool(flag)) => (!flag).then_some(&row[0]),
            (_, value) => Some(value),
        };
        state.0.learn(held, origin, n)
    }
}

impl<const READ: u8> State for Known<READ> {
    fn join(&mut self, other: &Self) -> Result<()> {
        self.0.join(&other.0)
    }

    fn value(&self) -> Result<Value> {
        if self.0.is_empty() {
            return Ok(Value::Null);
        }
        Ok(match READ {
            ENABLE => Value::Bool(self.0.holds_any()),
            DISABLE => Value::Bool(!self.0.holds_any()),
            _ => Value::List(self.0.values()),
        })
    }

    fn bottom(&self) -> Self {
        Self::default()
    }

    fn delta(&self, since: &Self) -> Self {
        Known(self.0.delta(&since.0))
    }

    fn encode(&self, w: &mut Writer) {
        self.0.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let dots = DotStore::decode(r)?;
        let said = |value: &Value| match READ {
            ENABLE => *value == Value::Bool(true),
            DISABLE => *value == Value::Bool(false),
            _ => !value.is_null(),
        };
        match dots.values().iter().all(said) {
            true => Ok(Known(dots)),
            false => Err(Error::corrupt_state("a dot of the state holds what no row says")),
        }
    }

    fn heap_size(&self) -> usize {
        self.0.heap_size()
    }

    fn info(&self) -> Value {
        self.0.info()
    }
}

/// A write with its version vector, which has seen what is over.
fn written(dots: &mut DotStore, row: &[Value]) -> Result<()> {
    let origin = crate::lattice::origins::origin(&row[1])?;
    let clock = vclock::clock(&row[2])?;
    let mut write = DotStore::default();
    let mut own = None;
    for (who, n) in &clock {
        // The last event of the origin is the write itself.
        let before = if who == origin { *own.insert(*n) - 1 } else { *n };
        if before > 0 {
            write.learn_run(who, 1, before);
        }
    }
    let Some(n) = own else {
        return Err(Error::invalid_argument(format!("the version vector of a write by `{origin}` does not count `{origin}`"))
            .with_help("vclock_inc(clock, origin) counts the write before it is made"));
    };
    let held = if row[0].is_null() { None } else { Some(&row[0]) };
    write.learn(held, origin, n)?;
    dots.join(&write)
}

/// A state that a function changes; no state is the empty one.
fn changed<const READ: u8>(state: &Value, change: impl FnOnce(&mut DotStore) -> Result<()>) -> Result<Value> {
    let mut known = argument::<Dotted<READ>>(state)?.unwrap_or_default();
    change(&mut known.0)?;
    Ok(Value::Bytes(encode::<Dotted<READ>>(&known).into()))
}

fn add<const READ: u8>(state: &Value, value: &Value, origin: &Value) -> Result<Value> {
    if value.is_null() {
        return Err(Error::invalid_argument("NULL is no element"));
    }
    check_nesting(value, 0)?;
    let origin = crate::lattice::origins::origin(origin)?;
    changed::<READ>(state, |dots| dots.add(value, origin))
}

fn set_functions() -> Vec<Function> {
    vec![
        Function::state("orset_add", "the set with an element more, added by an origin", 3, |a| add::<SET>(&a[0], &a[1], &a[2])),
        Function::state("orset_remove", "the set without an element, as far as its additions were seen", 2, |a| {
            changed::<SET>(&a[0], |dots| {
                dots.remove(&a[1]);
                Ok(())
            })
        }),
    ]
}

fn enable_functions() -> Vec<Function> {
    vec![
        Function::state("flag_enable", "the flag, enabled by an origin", 2, |a| add::<ENABLE>(&a[0], &Value::Bool(true), &a[1])),
        Function::state("flag_disable", "the flag, disabled as far as its enablings were seen", 1, |a| {
            changed::<ENABLE>(&a[0], |dots| {
                dots.clear();
                Ok(())
            })
        }),
    ]
}

fn disable_functions() -> Vec<Function> {
    vec![
        Function::state("dwflag_disable", "the flag, disabled by an origin", 2, |a| add::<DISABLE>(&a[0], &Value::Bool(false), &a[1])),
        Function::state("dwflag_enable", "the flag, enabled as far as its disablings were seen", 1, |a| {
            changed::<DISABLE>(&a[0], |dots| {
                dots.clear();
                Ok(())
            })
        }),
    ]
}

fn register_functions() -> Vec<Function> {
    vec![Function::state("register_set", "the register with a value in place of those that were seen", 3, |a| {
        let emptied = changed::<REGISTER>(&a[0], |dots| {
            dots.clear();
            Ok(())
        })?;
        add::<REGISTER>(&emptied, &a[1], &a[2])
    })]
}
