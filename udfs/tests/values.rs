//! Values: any of them survives the codec, and the order is one total order.
#![allow(clippy::unwrap_used, missing_docs)]

use mergeql_udfs::codec::{Reader, Writer};
use mergeql_udfs::value::order_key::order_key;
use mergeql_udfs::value::packed;
use mergeql_udfs::{Value, functions};
use proptest::prelude::*;
use std::cmp::Ordering;

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i128>().prop_map(Value::Int),
        (-5i128..5).prop_map(Value::Int),
        any::<f64>().prop_map(Value::float),
        (-5i32..5).prop_map(|v| Value::float(f64::from(v) / 2.0)),
        (any::<i128>(), 0u8..=38).prop_map(|(unscaled, scale)| Value::Decimal { unscaled, scale }),
        (-50i128..50, 0u8..3).prop_map(|(unscaled, scale)| Value::Decimal { unscaled, scale }),
        ".{0,8}".prop_map(Value::text),
        prop::collection::vec(any::<u8>(), 0..8).prop_map(|b| Value::Bytes(b.into())),
        any::<i32>().prop_map(Value::Date),
        any::<i64>().prop_map(Value::Time),
        (any::<i64>(), any::<bool>()).prop_map(|(n, zoned)| Value::Timestamp { nanos: n.into(), zoned }),
        (any::<i32>(), any::<i32>(), any::<i64>()).prop_map(|(months, days, nanos)| Value::Interval { months, days, nanos }),
        any::<[u8; 16]>().prop_map(Value::Uuid),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
            prop::collection::btree_map("[a-c]", inner.clone(), 0..3)
                .prop_map(|m| Value::record(m.into_iter().map(|(k, v)| (k.into(), v)).collect())),
            prop::collection::vec((inner.clone(), inner), 0..3).prop_map(Value::map),
        ]
    })
}

/// Decimals whose scales differ, as a column of NUMERIC has them; many are worth the same.
fn decimal() -> impl Strategy<Value = Value> {
    prop_oneof![(-2000i128..2000, 0u8..4), (any::<i128>(), 0u8..60)]
        .prop_map(|(unscaled, scale)| Value::Decimal { unscaled, scale })
}

/// Values of one column: of one kind, all of which have a key of one form.
fn column() -> impl Strategy<Value = Vec<Value>> {
    let many = |s: BoxedStrategy<Value>| prop::collection::vec(s, 2..6);
    prop_oneof![
        many(any::<i64>().prop_map(|v| Value::Int(v.into())).boxed()),
        many(any::<f64>().prop_map(Value::float).boxed()),
        many(decimal().boxed()),
        many(prop::collection::vec(decimal(), 0..3).prop_map(Value::List).boxed()),
        many("[\\x00-\\x02a]{0,4}".prop_map(Value::text).boxed()),
        many(prop::collection::vec("[\\x00a]{0,2}".prop_map(Value::text), 0..3).prop_map(Value::List).boxed()),
    ]
}

fn bytes(value: &Value) -> Vec<u8> {
    let mut w = Writer::default();
    w.value(value);
    w.as_bytes().to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn values_read_back_equal_with_equal_bytes(v in value()) {
        let written = bytes(&v);
        let mut r = Reader::new(&written);
        let back = r.value().unwrap();
        prop_assert!(r.end().is_ok());
        prop_assert_eq!(bytes(&back), written);
        prop_assert_eq!(back, v);
    }

    #[test]
    fn the_order_is_total(a in value(), b in value(), c in value()) {
        prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
        prop_assert_eq!(a.cmp(&a), Ordering::Equal);
        if a <= b && b <= c {
            prop_assert!(a <= c);
        }
        // Equal values are the same value, so that equal states have equal bytes.
        if a == b {
            prop_assert_eq!(bytes(&a), bytes(&b));
        }
        prop_assert_eq!(packed::compare(&bytes(&a), &bytes(&b)), a.cmp(&b));
    }

    /// Values that differ in a place deep inside, if at all: such as two values of any kind seldom are.
    #[test]
    fn near_values_order_alike_in_bytes(v in value(), a in scalar(), b in scalar()) {
        let near = |inner: &Value| {
            Value::List(vec![Value::record(vec![("a".into(), v.clone()), ("b".into(), Value::map(vec![(inner.clone(), v.clone())]))])])
        };
        let (a, b) = (near(&a), near(&b));
        prop_assert_eq!(packed::compare(&bytes(&a), &bytes(&b)), a.cmp(&b));
    }

    #[test]
    fn keys_order_as_values(column in column()) {
        for a in &column {
            for b in &column {
                prop_assert_eq!(order_key(a).cmp(&order_key(b)), a.cmp(b));
            }
        }
    }
}

/// A map has the names of a JSON object where its keys are written apart, and pairs where they are not.
#[test]
fn keys_that_are_written_alike_stay_two() {
    let map = |keys: [Value; 2]| Value::map(keys.into_iter().zip([Value::Int(1), Value::Int(2)]).collect()).to_json();
    assert_eq!(map([Value::Int(1), Value::text("x")]), r#"{"1":1,"x":2}"#);
    assert_eq!(map([Value::Int(1), Value::text("1")]), r#"[[1,1],["1",2]]"#);
}

#[test]
fn worth_is_at_any_depth() {
    let digest = |value: Value| (functions::all().iter().find(|f| f.name == "row_digest").unwrap().run)(&[value]).unwrap();
    let list = |value: Value| Value::List(vec![Value::record(vec![("a".into(), value)])]);
    let tenth = Value::Decimal { unscaled: 10, scale: 1 };
    assert_eq!(digest(list(Value::Int(1))), digest(list(Value::float(1.0))));
    assert_eq!(digest(list(Value::Int(1))), digest(list(tenth)));
    assert_ne!(digest(list(Value::Int(1))), digest(list(Value::float(1.5))));
}

/// What is worth the same, in any form and order, makes one state.
#[test]
fn numbers_of_other_forms_make_one_state() {
    use mergeql_udfs::{Call, Type, catalog};
    let decimal = |unscaled, scale| Value::Decimal { unscaled, scale };
    let numeric = || Type::Decimal { precision: 38, scale: 1 };
    let states = |name: &str, call: &Call, rows: &[Vec<Value>]| {
        let entry = catalog::find(name).unwrap();
        let of = |rows: &mut dyn Iterator<Item = &Vec<Value>>| {
            let mut partial = entry.bind(call).unwrap().partial();
            rows.for_each(|row| partial.update(row).unwrap());
            (partial.encode().unwrap(), partial.value().unwrap())
        };
        let (forth, back) = (of(&mut rows.iter()), of(&mut rows.iter().rev()));
        assert_eq!(forth, back, "{name}");
        forth.1
    };
    // The source 1 is listed, and rows say 1 and 1.0.
    let listed = Call::new(vec![Type::Text, numeric()]).with_arg("sources", Value::List(vec![Value::Int(1)]));
    states("source", &listed, &[vec![Value::text("a"), decimal(1, 0)], vec![Value::text("a"), decimal(10, 1)]]);
    // The newer of two versions is that of the greater second part, whatever form the first has.
    let doc = |text: &str, one: Value, two: i128| vec![Value::text(text), one, Value::Int(two)];
    let call = Call::new(vec![Type::Text, numeric(), Type::INT64]);
    let rows = [
        doc(r#"{"a":{"x":1}}"#, decimal(1, 0), 9),
        doc(r#"{"a":{"y":1}}"#, decimal(10, 1), 3),
        doc(r#"{"a":5}"#, decimal(1, 0), 5),
    ];
    assert_eq!(states("json", &call, &rows).to_string(), r#"{"a":{"x":1,"y":1}}"#);
    // A literal that no decimal can be.
    let tiny = Call::new(vec![numeric()]).with_arg("values", Value::List(vec![Value::float(1e-40)]));
    assert!(catalog::find("priority").unwrap().bind(&tiny).is_err());
    // Counting down by the least number there is has no opposite.
    let add = functions::all().into_iter().find(|f| f.name == "counter_add").unwrap().run;
    assert!(add(&[Value::Null, Value::text("a"), Value::Int(i128::MIN)]).is_err());
    // The order of versions is part of what a person sees of a state, and a frame has no place for it.
    let down = Call::new(vec![Type::INT64, Type::INT64]).with_arg("descending", Value::List(vec![Value::Bool(true)]));
    let mut partial = catalog::find("lww").unwrap().bind(&down).unwrap().partial();
    partial.update(&[Value::Int(1), Value::Int(2)]).unwrap();
    let state = Value::Bytes(partial.encode().unwrap().into());
    let run = |name: &str| (functions::all().into_iter().find(|f| f.name == name).unwrap().run)(std::slice::from_ref(&state));
    assert!(run("crdt_info").unwrap().to_string().contains("descending"));
    assert!(run("crdt_to_frame").is_err());
}
