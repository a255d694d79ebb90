//! Functions that change a state: each only makes it greater, and replicas that change theirs and exchange them, in any order and again, end equal.
#![allow(clippy::unwrap_used, missing_docs)]

use mergeql_udfs::{Call, Code, Result, Type, Value, catalog, functions};
use proptest::prelude::*;
use std::cell::RefCell;

thread_local! {
    static KEPT: RefCell<Vec<functions::Function>> = RefCell::new(functions::all());
}

fn run(name: &str, arguments: &[Value]) -> Result<Value> {
    let run = KEPT.with_borrow(|all| all.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("there is no {name}")).run);
    run(arguments)
}

/// A change of a state by an origin: three numbers choose what it is.
type Change = fn(&Value, &Value, u8, u8, u8) -> Result<Value>;

fn element(n: u8) -> Value {
    Value::Int((n % 4).into())
}

fn version(n: u8) -> Value {
    Value::Int((n % 5).into())
}

fn nothing() -> Value {
    Value::Null
}

/// A state of a strategy with one row of zeros.
fn zeros(strategy: &str, inputs: &[Type]) -> Value {
    let mut partial = catalog::find(strategy).unwrap().bind(&Call::new(inputs.to_vec())).unwrap().partial();
    let zero = |ty: &Type| if *ty == Type::Text { Value::text("seed") } else { Value::Int(0) };
    partial.update(&inputs.iter().map(zero).collect::<Vec<_>>()).unwrap();
    Value::Bytes(partial.encode().unwrap().into())
}

/// What a replica starts with, the functions of a type, and a change that uses them.
#[allow(clippy::type_complexity)] // a table
const TYPES: &[(fn() -> Value, &[&str], Change)] = &[
    (nothing, &["orset_add", "orset_remove"], |s, who, which, n, _| match which % 3 {
        0 if !s.is_null() => run("orset_remove", &[s.clone(), element(n)]),
        _ => run("orset_add", &[s.clone(), element(n), who.clone()]),
    }),
    (nothing, &["rwset_add", "rwset_remove"], |s, who, which, n, _| {
        run(if which % 3 == 0 { "rwset_remove" } else { "rwset_add" }, &[s.clone(), element(n), who.clone()])
    }),
    (nothing, &["flag_enable", "flag_disable"], |s, who, which, _, _| match which % 2 {
        0 => run("flag_disable", std::slice::from_ref(s)),
        _ => run("flag_enable", &[s.clone(), who.clone()]),
    }),
    (nothing, &["dwflag_enable", "dwflag_disable"], |s, who, which, _, _| match which % 2 {
        0 => run("dwflag_enable", std::slice::from_ref(s)),
        _ => run("dwflag_disable", &[s.clone(), who.clone()]),
    }),
    (nothing, &["register_set"], |s, who, _, n, _| run("register_set", &[s.clone(), element(n), who.clone()])),
    (nothing, &["counter_add"], |s, who, _, n, _| run("counter_add", &[s.clone(), who.clone(), Value::Int(n.into())])),
    (
        || zeros("pncounter", &[Type::INT64, Type::INT64, Type::Text]),
        &["counter_add"],
        |s, who, _, n, _| run("counter_add", &[s.clone(), who.clone(), Value::Int(i128::from(n) - 128)]),
    ),
    (nothing, &["gcounter_add"], |s, who, _, n, _| run("gcounter_add", &[s.clone(), who.clone(), Value::Int(n.into())])),
    (nothing, &["gset_add"], |s, _, _, n, _| run("gset_add", &[s.clone(), element(n)])),
    (nothing, &["twopset_add", "twopset_remove"], |s, _, which, n, _| {
        run(if which % 3 == 0 { "twopset_remove" } else { "twopset_add" }, &[s.clone(), element(n)])
    }),
    (nothing, &["gauge_set"], |s, who, _, n, m| run("gauge_set", &[s.clone(), who.clone(), element(n), version(m)])),
    (nothing, &["lww_set"], |s, who, _, n, m| run("lww_set", &[s.clone(), element(n), version(m), who.clone()])),
    (nothing, &["vclock_inc"], |s, who, _, _, _| run("vclock_inc", &[s.clone(), who.clone()])),
    (nothing, &["dvv_event"], |s, who, _, _, _| run("dvv_event", &[s.clone(), who.clone()])),
    (nothing, &["hlc_at"], |s, who, _, n, _| {
        run("hlc_at", &[s.clone(), who.clone(), Value::Timestamp { nanos: i128::from(n) * 1_000_000_000, zoned: true }])
    }),
    (
        || run("bounded_new", &[Value::Int(-3)]).unwrap(),
        &["bounded_new", "bounded_add", "bounded_give"],
        |s, who, which, n, m| match which % 3 {
            0 => run("bounded_give", &[s.clone(), who.clone(), Value::text(["a", "b", "c"][usize::from(n % 3)]), version(m)]),
            _ => run("bounded_add", &[s.clone(), who.clone(), Value::Int(i128::from(n % 9) - 4)]),
        },
    ),
    (nothing, &["map_set", "map_remove"], |s, who, which, n, m| {
        let key = Value::text(["k", "l"][usize::from(n % 2)]);
        match which % 3 {
            0 => run("map_remove", &[s.clone(), key, version(m), who.clone()]),
            _ => run("map_set", &[s.clone(), key, element(n), version(m), who.clone()]),
        }
    }),
    (nothing, &["ormap_put", "ormap_remove"], |s, who, which, n, _| {
        let key = Value::text(["k", "l"][usize::from(n % 2)]);
        match which % 4 {
            0 if !s.is_null() => run("ormap_remove", &[s.clone(), key]),
            // Sometimes a state that does not join with what is there: then nothing changes.
            1 => run("ormap_put", &[s.clone(), key, run("orset_add", &[Value::Null, element(n), who.clone()])?, who.clone()]),
            _ => run("ormap_put", &[s.clone(), key, run("counter_add", &[Value::Null, who.clone(), element(n)])?, who.clone()]),
        }
    }),
    (
        || run("model_set_new", &[Value::text("{}")]).unwrap(),
        &["model_set_new", "model_set_add", "model_set_remove", "model_set_join"],
        |s, who, which, n, _| {
            let model = Value::text(format!("{{\"name\":\"m{}\"}}", n % 3));
            match which % 3 {
                0 => run("model_set_remove", &[s.clone(), Value::text(format!("m{}", n % 3))]),
                1 => run("model_set_join", &[s.clone(), run("model_set_add", &[s.clone(), model, who.clone()])?]),
                _ => run("model_set_add", &[s.clone(), model, who.clone()]),
            }
        },
    ),
];

/// What gives a state and changes none: functions over every type or of two sketches, what reads other formats, and what takes a state out.
const OTHERS: [&str; 10] = [
    "crdt_join",
    "crdt_delta",
    "crdt_compress",
    "crdt_from_frame",
    "crdt_from_sketch",
    "theta_intersect",
    "theta_difference",
    "ormap_get",
    "hlc_now",
    "mergeql_gset_of",
];

#[test]
fn no_function_is_forgotten() {
    for function in functions::all().iter().filter(|f| f.gives_state) {
        let known = TYPES.iter().any(|(_, names, _)| names.contains(&function.name)) || OTHERS.contains(&function.name);
        assert!(known, "{} changes a state, and no history in this file uses it", function.name);
    }
}

fn joined(a: &Value, b: &Value) -> Value {
    run("crdt_join", &[a.clone(), b.clone()]).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn replicas_that_change_their_states_end_equal(
        steps in prop::collection::vec((0usize..3, any::<u8>(), any::<u8>(), any::<u8>(), 0usize..6), 1..16)
    ) {
        for (start, names, change) in TYPES {
            let mut replicas = [start(), start(), start()];
            for (at, which, n, m, from) in &steps {
                let (before, who) = (replicas[*at].clone(), Value::text(["a", "b", "c"][*at]));
                // What cannot be done, such as taking more than there are rights for, changes nothing.
                if let Ok(after) = change(&before, &who, *which, *n, *m) {
                    if !before.is_null() {
                        let grows = run("crdt_leq", &[before.clone(), after.clone()]).unwrap();
                        prop_assert_eq!(grows, Value::Bool(true), "{:?} made a state smaller", names);
                    }
                    replicas[*at] = after;
                }
                // Half of the time one hears of another.
                if let Some(other) = replicas.get(*from).cloned() {
                    replicas[*at] = joined(&replicas[*at], &other);
                }
            }
            let [a, b, c] = &replicas;
            let one = joined(&joined(a, b), c);
            let other = joined(&joined(&joined(c, a), &joined(b, c)), a);
            prop_assert_eq!(&one, &other, "{:?}", names);
            prop_assert!(one.is_null() || run("crdt_value", &[one]).is_ok(), "{:?} has no value", names);
        }
    }
}

/// A write with a version vector is over where another has seen it, and stays beside what it has not seen.
#[test]
fn registers_take_version_vectors() {
    let inc = |clock: &Value, who: &str| run("vclock_inc", &[clock.clone(), Value::text(who)]).unwrap();
    let register = |rows: &[(&str, &str, &Value)]| {
        let call = Call::new(vec![Type::Text, Type::Text, Type::Bytes]);
        let mut partial = catalog::find("mvr").unwrap().bind(&call).unwrap().partial();
        rows.iter().try_for_each(|(v, who, clock)| partial.update(&[Value::text(*v), Value::text(*who), (*clock).clone()]))?;
        partial.value()
    };
    let first = inc(&Value::Null, "a");
    let (red, blue) = (inc(&first, "a"), inc(&first, "b"));
    let last = inc(&joined(&red, &blue), "b");
    let list = |values: &[&str]| Value::List(values.iter().map(|v| Value::text(*v)).collect());
    let rows = [("old", "a", &first), ("red", "a", &red), ("blue", "b", &blue)];
    assert_eq!(register(&rows).unwrap(), list(&["blue", "red"]));
    assert_eq!(register(&[rows[2], rows[1], rows[0], rows[2]]).unwrap(), list(&["blue", "red"]));
    assert_eq!(register(&[("both", "b", &last), rows[0], rows[2], rows[1]]).unwrap(), list(&["both"]));
    assert_eq!(register(&[("x", "c", &last)]).unwrap_err().code, Code::InvalidArgument);
}

/// Counters of origins end where the integers of every host do.
#[test]
fn origins_count_no_further_than_integers() {
    let last = Value::Int(i64::MAX.into());
    let state = |strategy: &str, types: Vec<Type>, row: &[Value]| {
        let mut partial = catalog::find(strategy).unwrap().bind(&Call::new(types)).unwrap().partial();
        partial.update(row).map(|()| Value::Bytes(partial.encode().unwrap().into()))
    };
    let a = Value::text("a");
    let clock = state("vclock", vec![Type::INT64, Type::Text], &[last.clone(), a.clone()]).unwrap();
    assert_eq!(run("vclock_inc", &[clock, a.clone()]).unwrap_err().code, Code::LimitExceeded);
    let dotted = vec![Type::Text, Type::Text, Type::INT64];
    let set = state("orset", dotted.clone(), &[Value::text("x"), a.clone(), last.clone()]).unwrap();
    assert_eq!(run("orset_add", &[set.clone(), Value::text("y"), a.clone()]).unwrap_err().code, Code::LimitExceeded);
    assert!(run("orset_add", &[set, Value::text("y"), Value::text("b")]).is_ok());
    let beyond = state("orset", dotted, &[Value::text("x"), a, Value::Int(i128::from(i64::MAX) + 1)]);
    assert_eq!(beyond.unwrap_err().code, Code::InvalidArgument);
}

/// Replicas that put states of two types under one key still read the rest of their map, and that key too.
#[test]
fn a_map_with_two_types_under_a_key_stays_readable() {
    let (a, b) = (Value::text("a"), Value::text("b"));
    let put = |s: &Value, key: &str, entry: Value, who: &Value| {
        run("ormap_put", &[s.clone(), Value::text(key), entry, who.clone()]).unwrap()
    };
    let count = run("counter_add", &[Value::Null, a.clone(), Value::Int(2)]).unwrap();
    let set = run("orset_add", &[Value::Null, Value::text("x"), b.clone()]).unwrap();
    let one = put(&put(&Value::Null, "k", count.clone(), &a), "n", count, &a);
    let both = joined(&one, &put(&Value::Null, "k", set, &b));
    let shown = run("crdt_value", std::slice::from_ref(&both)).unwrap().to_string();
    assert!(shown.contains("\"n\":2") && shown.contains("[\"x\"]"), "{shown}");
    assert_eq!(run("ormap_get", &[both, Value::text("k")]).unwrap_err().code, Code::TypeMismatch);
}

/// Two replicas put states of two types under one key: each is read and changed by its type.
#[test]
fn a_key_of_two_types_is_read_by_type() {
    let (null, k, who) = (Value::Null, Value::text("k"), Value::text("a"));
    let clock = run("vclock_inc", &[null.clone(), who.clone()]).unwrap();
    let count = run("counter_add", &[null.clone(), who.clone(), Value::Int(2)]).unwrap();
    let put = |map: &Value, state: &Value, who: &str| {
        run("ormap_put", &[map.clone(), k.clone(), state.clone(), Value::text(who)]).unwrap()
    };
    let both = joined(&put(&null, &clock, "a"), &put(&null, &count, "b"));
    let error = run("ormap_get", &[both.clone(), k.clone()]).unwrap_err();
    assert!(error.help.unwrap().contains("ormap_get(state, key, '"), "no way out is told");
    assert_eq!(run("ormap_get", &[both.clone(), k.clone(), Value::text("pncounter")]).unwrap(), count);
    // A change of one leaves the other.
    let more = put(&both, &run("counter_add", &[count, who, Value::Int(3)]).unwrap(), "b");
    assert_eq!(run("ormap_get", &[more.clone(), k.clone(), Value::text("vclock")]).unwrap(), clock);
    assert_eq!(run("crdt_value", &[more]).unwrap(), Value::text(r#"{"k":[5,{"a":1}]}"#));
}

#[test]
fn what_is_no_number_is_not_counted() {
    let add = |n: f64| run("counter_add", &[Value::Null, Value::text("a"), Value::float(n)]);
    assert!([f64::NAN, f64::INFINITY].into_iter().all(|n| add(n).unwrap_err().code == Code::InvalidArgument));
    let more = run("counter_add", &[add(1e308).unwrap(), Value::text("b"), Value::float(1e308)]).unwrap();
    assert!(run("crdt_value", &[more]).is_err(), "a sum beyond doubles");
}

#[test]
fn an_empty_bounded_counter_stands_at_its_bound() {
    let new = run("bounded_new", &[Value::Int(5)]).unwrap();
    assert_eq!(run("crdt_value", &[new]).unwrap(), Value::text("5"));
}
