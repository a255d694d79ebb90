//! The laws of every strategy, derived from the catalogue; and that broken strategies are caught.
#![allow(clippy::unwrap_used, missing_docs)]

use mergeql_udfs::codec::{self, Writer};
use mergeql_udfs::laws::{Machine, Row, Store, check, check_machine, rows_of};
use mergeql_udfs::slot::Shape;
use mergeql_udfs::{Call, Code, Result, Type, Unit, Value, catalog, functions};

#[test]
fn every_strategy_keeps_every_law() {
    for entry in catalog::all() {
        let samples = (entry.spec().samples)();
        assert!(!samples.is_empty(), "{} has no sample calls", entry.spec().name);
        for call in samples {
            assert!(rows_of(entry, &call).len() >= 3, "{} {call:?} refuses its own domain", entry.spec().name);
            for outcome in check(entry, &call, 600, 7).unwrap() {
                assert!(outcome.cases > 0, "{} {call:?}: no case for {}", entry.spec().name, outcome.law);
                assert_eq!(outcome.counterexample, None, "{} {call:?} is not {}", entry.spec().name, outcome.law);
            }
        }
    }
}

#[test]
fn type_ids_and_names_are_unique() {
    let mut ids: Vec<u8> = catalog::all().iter().map(|e| e.spec().type_id).collect();
    ids.dedup();
    assert_eq!(ids.len(), catalog::all().len());
    let mut names: Vec<&str> = catalog::names().collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
}

/// A machine that answers with some function of the rows in the order they came.
struct Broken(fn(&[Row], &[usize]) -> Value);

impl Machine for Broken {
    fn run(&self, rows: &[Row], cuts: &[usize]) -> Result<(Option<Vec<u8>>, Value)> {
        Ok((None, (self.0)(rows, cuts)))
    }
}

#[test]
fn known_bad_mutants_are_caught() {
    let mutants: [(&str, Broken, Type); 5] = [
        // arg_max without a tie rule: the last of equal versions wins
        ("last tie wins", Broken(|rows, _| rows.iter().max_by_key(|r| r[1].clone()).unwrap()[0].clone()), Type::INT64),
        // the running sum of rows: a replay counts again
        (
            "sum of rows",
            Broken(|rows, _| Value::Int(rows.iter().map(|r| if let Value::Int(v) = r[0] { v } else { 0 }).sum())),
            Type::INT64,
        ),
        // a pairwise mean: grouping shows
        (
            "pairwise mean",
            Broken(|rows, _| {
                let ints = rows.iter().map(|r| if let Value::Int(v) = r[0] { v * 1000 } else { 0 });
                Value::Int(ints.reduce(|a, b| (a + b) / 2).unwrap())
            }),
            Type::INT64,
        ),
        // a partial state that loses what came before its cut
        (
            "lost combine",
            Broken(|rows, cuts| {
                rows[cuts.last().copied().unwrap_or(0).min(rows.len() - 1)..].iter().map(|r| r[0].clone()).max().unwrap()
            }),
            Type::INT64,
        ),
        // NaN wherever it is met first
        (
            "nan order",
            Broken(|rows, _| {
                let floats = rows.iter().map(|r| if let Value::Float(f) = r[0] { f } else { f64::NEG_INFINITY });
                Value::float(floats.reduce(|a, b| if a < b { b } else { a }).unwrap())
            }),
            Type::Float64,
        ),
    ];
    let lww = catalog::find("lww").unwrap();
    for (name, machine, ty) in mutants {
        let rows = rows_of(lww, &Call::new(vec![ty, Type::INT64]));
        let outcomes = check_machine(&machine, None, &rows, 500, 3);
        assert!(outcomes.iter().any(|o| o.counterexample.is_some()), "`{name}` was not caught");
    }
}

#[test]
fn comparing_numbers_as_text_is_caught_by_the_reference() {
    let max = catalog::find("max").unwrap();
    let call = Call::new(vec![Type::INT64]);
    let rows: Vec<Row> = [9, 10].map(|v| vec![Value::Int(v)]).into();
    let by_text = Broken(|rows, _| rows.iter().map(|r| r[0].clone()).max_by_key(|v| v.to_string()).unwrap());
    struct ValueOnly(Store);
    impl Machine for ValueOnly {
        fn run(&self, rows: &[Row], cuts: &[usize]) -> Result<(Option<Vec<u8>>, Value)> {
            Ok((None, self.0.run(rows, cuts)?.1))
        }
    }
    let reference = ValueOnly(Store::new(max.bind(&call).unwrap(), false));
    let outcomes = check_machine(&by_text, Some(&reference), &rows, 50, 1);
    assert!(outcomes[5].counterexample.is_some());
}

#[test]
fn states_of_other_types_or_settings_do_not_join() {
    let state = |name: &str, call: &Call, row: Row| {
        let aggregate = catalog::find(name).unwrap().bind(call).unwrap();
        Store::new(aggregate, true).run(&[row], &[]).unwrap().0.unwrap()
    };
    let int = Call::new(vec![Type::INT64]);
    let (max, min) = (state("max", &int, vec![Value::Int(1)]), state("min", &int, vec![Value::Int(1)]));
    assert_eq!(catalog::join(&max, &min).unwrap_err().code, Code::TypeMismatch);
    let text = Call::new(vec![Type::Text]);
    let comma = state("union", &text, vec![Value::text("a")]);
    let semicolon = state("union", &text.clone().with_arg("separator", Value::text(";")), vec![Value::text("a")]);
    assert_eq!(catalog::join(&comma, &semicolon).unwrap_err().code, Code::TypeMismatch);
}

#[test]
fn order_of_states_is_the_lattice_order() {
    let aggregate = catalog::find("union").unwrap().bind(&Call::new(vec![Type::Text])).unwrap();
    let state = |text: &str| Store::new(aggregate.clone(), true).run(&[vec![Value::text(text)]], &[]).unwrap().0.unwrap();
    let compare = |a: &str, b: &str| catalog::compare(&state(a), &state(b)).unwrap().as_str();
    assert_eq!(compare("a", "a,b"), "before");
    assert_eq!(compare("a,b", "b"), "after");
    assert_eq!(compare("b,a", "a,b"), "equal");
    assert_eq!(compare("a", "b"), "concurrent");
}

#[test]
fn mangled_states_end_in_an_error_or_a_state() {
    let mut random = mergeql_udfs::laws::Random(11);
    for entry in catalog::all() {
        for call in (entry.spec().samples)() {
            let rows = rows_of(entry, &call);
            let store = Store::new(entry.bind(&call).unwrap(), true);
            let Some(state) = store.run(&rows[..rows.len().min(6)], &[]).unwrap().0 else { continue };
            let compressed = catalog::compress(&state).unwrap();
            assert_eq!(catalog::open(&compressed).unwrap().encode(), state);
            for _ in 0..400 {
                let (_, body) = codec::open(&state).unwrap();
                let mut body = body.into_owned();
                for _ in 0..=random.below(3) {
                    match random.below(3) {
                        0 if !body.is_empty() => {
                            let at = random.below(body.len());
                            body[at] = random.below(256) as u8;
                        }
                        1 => body.truncate(random.below(body.len() + 1)),
                        _ => body.push(random.below(256) as u8),
                    }
                }
                // The checksum is right, so the decoder itself must judge the body.
                let bytes = codec::seal(entry.spec().type_id, 0, &body);
                if let Ok(opened) = catalog::open(&bytes) {
                    assert_eq!(opened.encode(), bytes, "a state has one encoding");
                    opened.value().ok();
                    opened.info();
                }
            }
        }
    }
}

/// Every state that up to three of a few rows reach: the join commutes, associates, is idempotent, and is the least upper bound.
#[test]
fn join_is_the_least_upper_bound_on_every_reachable_state() {
    for entry in catalog::all() {
        for call in (entry.spec().samples)() {
            let all = rows_of(entry, &call);
            // Rows spread over the domain, so that values, origins and versions differ and tie.
            let step = (all.len() / 5).max(1);
            let rows: Vec<Row> = all.iter().step_by(step).take(5).cloned().collect();
            let store = Store::new(entry.bind(&call).unwrap(), true);
            let mut states: Vec<Vec<u8>> = Vec::new();
            for mask in 1u32..1 << rows.len() {
                let list: Vec<Row> = (0..rows.len()).filter(|i| mask >> i & 1 == 1).map(|i| rows[i].clone()).collect();
                if let (true, Ok((Some(state), _))) = (list.len() <= 3, store.run(&list, &[]))
                    && !states.contains(&state)
                {
                    states.push(state);
                }
            }
            let join = |a: &[u8], b: &[u8]| catalog::join(a, b).unwrap();
            let leq = |a: &[u8], b: &[u8]| join(a, b) == b;
            for a in &states {
                assert_eq!(join(a, a), *a);
                for b in &states {
                    let ab = join(a, b);
                    assert_eq!(ab, join(b, a), "{} {call:?}", entry.spec().name);
                    assert!(leq(a, &ab) && leq(b, &ab));
                    for c in &states {
                        assert_eq!(join(&ab, c), join(a, &join(b, c)), "{} {call:?}", entry.spec().name);
                        assert!(!(leq(a, c) && leq(b, c)) || leq(&ab, c), "{} {call:?}", entry.spec().name);
                    }
                }
            }
        }
    }
}

/// States that a host keeps group by group.
struct OneByOne(std::sync::Arc<dyn mergeql_udfs::Aggregate>);

impl Machine for OneByOne {
    fn run(&self, rows: &[Row], cuts: &[usize]) -> Result<(Option<Vec<u8>>, Value)> {
        let mut total = self.0.partial();
        let mut start = 0;
        for &end in cuts.iter().chain([&rows.len()]) {
            let mut part = self.0.partial();
            rows[start..end].iter().try_for_each(|row| part.update(row))?;
            match part.encode() {
                Some(bytes) if (end - start) % 2 == 0 => total.join_bytes(&bytes)?,
                _ => total.join(&*part.copy())?,
            }
            start = end;
        }
        Ok((total.encode(), total.value()?))
    }
}

/// Slots in a host's own memory.
struct Scattered(std::sync::Arc<dyn mergeql_udfs::Aggregate>, Type);

impl Scattered {
    fn slots<V: mergeql_udfs::slot::Held, const LEAST: bool>(
        &self,
        rows: &[Row],
        cuts: &[usize],
        offer: impl Fn(&mut mergeql_udfs::slot::Slot<V, u64>, &Value, Option<u64>),
        back: impl Fn(V::Seen<'_>) -> Value,
    ) -> Value {
        let Some(Shape::Strongest(order)) = self.0.shape() else { panic!("no such slot") };
        let mut total = mergeql_udfs::slot::Slot::<V, u64>::default();
        let mut start = 0;
        for &end in cuts.iter().chain([&rows.len()]) {
            let mut part = mergeql_udfs::slot::Slot::default();
            for row in rows[start..end].iter().filter(|r| !r[0].is_null()) {
                let version = row.get(1).filter(|v| !v.is_null()).map(|version| {
                    let column = std::slice::from_ref(version);
                    let keys = mergeql_udfs::VersionKeys::of(
                        &mergeql_udfs::Column::of_values(column),
                        &Type::INT64,
                        1,
                        order.flip_version,
                    );
                    keys.keys[0]
                });
                offer(&mut part, &row[0], version);
            }
            total.join::<LEAST>(&part);
            start = end;
        }
        total.value().map_or(Value::Null, back)
    }
}

impl Machine for Scattered {
    fn run(&self, rows: &[Row], cuts: &[usize]) -> Result<(Option<Vec<u8>>, Value)> {
        use mergeql_udfs::slot::SmallBytes;
        fn float(v: &Value) -> f64 {
            if let Value::Float(v) = v { *v } else { 0.0 }
        }
        fn bytes(v: &Value) -> &[u8] {
            if let Value::Text(v) = v { v.as_bytes() } else { b"" }
        }
        let text = |b: &[u8]| Value::text(std::str::from_utf8(b).unwrap());
        let least = matches!(self.0.shape(), Some(Shape::Strongest(order)) if order.least);
        let value = match (&self.1, least) {
            (Type::Text, false) => self.slots::<SmallBytes, false>(rows, cuts, |s, v, k| s.offer::<false>(bytes(v), k), text),
            (Type::Text, true) => self.slots::<SmallBytes, true>(rows, cuts, |s, v, k| s.offer::<true>(bytes(v), k), text),
            (_, false) => self.slots::<f64, false>(rows, cuts, |s, v, k| s.offer::<false>(float(v), k), Value::float),
            (_, true) => self.slots::<f64, true>(rows, cuts, |s, v, k| s.offer::<true>(float(v), k), Value::float),
        };
        Ok((None, value))
    }
}

struct ValueOf<M>(M);

impl<M: Machine> Machine for ValueOf<M> {
    fn run(&self, rows: &[Row], cuts: &[usize]) -> Result<(Option<Vec<u8>>, Value)> {
        Ok((None, self.0.run(rows, cuts)?.1))
    }
}

#[test]
fn states_of_single_groups_equal_those_of_the_stores() {
    for entry in catalog::all() {
        for call in (entry.spec().samples)() {
            let aggregate = entry.bind(&call).unwrap();
            let rows = rows_of(entry, &call);
            let plain = Store::new(aggregate.clone(), false);
            for outcome in check_machine(&OneByOne(aggregate), Some(&plain), &rows, 200, 23) {
                assert_eq!(outcome.counterexample, None, "{} {call:?} is not {}", entry.spec().name, outcome.law);
            }
        }
    }
}

#[test]
fn scattered_slots_equal_the_stores() {
    let mut held = 0;
    for entry in catalog::all() {
        for ty in [Type::Float64, Type::Text] {
            let versions = if entry.spec().versioned() { vec![Type::INT64] } else { vec![] };
            let call = Call::new(std::iter::once(ty.clone()).chain(versions).collect());
            let Ok(aggregate) = entry.bind(&call) else { continue };
            if !matches!(aggregate.shape(), Some(Shape::Strongest(_))) {
                continue;
            }
            held += 1;
            let rows = rows_of(entry, &call);
            let plain = ValueOf(Store::new(aggregate.clone(), false));
            for outcome in check_machine(&Scattered(aggregate, ty), Some(&plain), &rows, 400, 29) {
                assert_eq!(outcome.counterexample, None, "{} {call:?} is not {}", entry.spec().name, outcome.law);
            }
        }
    }
    assert!(held >= 8, "max, min, lww and fww have slots");
}

/// Slots with versions of two parts, an integer and a text, as bytes.
struct TwoParts<const OLDEST: bool>;

impl<const OLDEST: bool> Machine for TwoParts<OLDEST> {
    fn run(&self, rows: &[Row], cuts: &[usize]) -> Result<(Option<Vec<u8>>, Value)> {
        use mergeql_udfs::slot::{Parts, Slot};
        use mergeql_udfs::value::order_key::order_key;
        let mut total = Slot::<i64, Parts<2, OLDEST>>::default();
        let mut start = 0;
        for &end in cuts.iter().chain([&rows.len()]) {
            let mut part = Slot::<i64, Parts<2, OLDEST>>::default();
            for row in &rows[start..end] {
                let Value::Int(value) = row[0] else { continue };
                let keys = [1, 2].map(|i| (!row[i].is_null()).then(|| order_key(&row[i])));
                part.offer::<false>(value as i64, [keys[0].as_deref(), keys[1].as_deref()]);
            }
            total.join::<false>(&part);
            start = end;
        }
        Ok((None, total.value().map_or(Value::Null, |v| Value::Int(v.into()))))
    }
}

#[test]
fn versions_of_several_parts_in_slots_equal_the_stores() {
    for (name, machine) in [("lww", &TwoParts::<false> as &dyn Machine), ("fww", &TwoParts::<true>)] {
        let entry = catalog::find(name).unwrap();
        let call = Call::new(vec![Type::INT64, Type::INT64, Type::Text]);
        let aggregate = entry.bind(&call).unwrap();
        assert!(matches!(aggregate.shape(), Some(Shape::Strongest(order)) if order.flip_version == (name == "fww")));
        let rows = rows_of(entry, &call);
        let plain = ValueOf(Store::new(aggregate, false));
        for outcome in check_machine(machine, Some(&plain), &rows, 1000, 31) {
            assert_eq!(outcome.counterexample, None, "{name} is not {}", outcome.law);
        }
    }
}

/// The slots of counts and of collected values.
struct Gathered(Shape);

impl Machine for Gathered {
    fn run(&self, rows: &[Row], cuts: &[usize]) -> Result<(Option<Vec<u8>>, Value)> {
        use mergeql_udfs::slot::{Collected, Counts, Several, SmallBytes};
        let (mut counts, mut collected) = (Counts::default(), Collected::default());
        let (mut integers, mut texts) = (Several::<i64>::default(), Several::<SmallBytes>::default());
        let mut start = 0;
        for &end in cuts.iter().chain([&rows.len()]) {
            let (mut some, mut few) = (Counts::default(), Collected::default());
            let (mut few_integers, mut few_texts) = (Several::<i64>::default(), Several::<SmallBytes>::default());
            for row in &rows[start..end] {
                match (&row[0], row.get(1)) {
                    (Value::Int(n), Some(Value::Text(origin))) => some.offer(Some(origin.as_bytes()), *n as i64)?,
                    (Value::Int(n), None) => few_integers.offer(*n as i64),
                    (Value::Text(text), None) => few_texts.offer(text.as_bytes()),
                    (value, _) => few.offer(value),
                }
            }
            counts.join(&some);
            collected.join(&few);
            integers.join(&few_integers);
            texts.join(&few_texts);
            start = end;
        }
        let value = match self.0 {
            Shape::GreatestPerOrigin => counts.sum().map(Value::Int),
            _ => {
                let mut all: Vec<Value> = integers.sorted().into_iter().map(|v| Value::Int(v.into())).collect();
                all.extend(texts.sorted().into_iter().map(|v| Value::text(String::from_utf8_lossy(v))));
                if all.is_empty() { collected.list() } else { Some(Value::List(all)) }
            }
        };
        Ok((None, value.unwrap_or(Value::Null)))
    }
}

#[test]
fn slots_of_counts_and_of_sets_equal_the_stores() {
    let sets = [Type::Text, Type::INT64, Type::Float64].map(|ty| ("gset", vec![ty]));
    for (name, inputs) in std::iter::once(("counter", vec![Type::INT64, Type::Text])).chain(sets) {
        let entry = catalog::find(name).unwrap();
        let call = Call::new(inputs);
        let aggregate = entry.bind(&call).unwrap();
        let machine = Gathered(aggregate.shape().unwrap());
        let plain = ValueOf(Store::new(aggregate, false));
        for outcome in check_machine(&machine, Some(&plain), &rows_of(entry, &call), 600, 37) {
            assert_eq!(outcome.counterexample, None, "{name} is not {}", outcome.law);
        }
    }
}

/// The bytes of a map whose only entry is a state, as another program could have written them.
fn map_around(state: &[u8]) -> Vec<u8> {
    let mut w = Writer::default();
    w.length(1);
    w.value(&Value::text("a"));
    w.length(1);
    w.varint(1);
    w.varint(0);
    w.length(1);
    w.value(&Value::List(vec![Value::text("k"), Value::Bytes(state.into())]));
    w.length(1);
    w.varint(0);
    w.varint(1);
    codec::seal(catalog::find("ormap").unwrap().spec().type_id, 0, w.as_bytes())
}

#[test]
fn states_inside_states_have_an_end() {
    let add = functions::all().into_iter().find(|f| f.name == "counter_add").unwrap();
    let Value::Bytes(counter) = (add.run)(&[Value::Null, Value::text("a"), Value::Int(2)]).unwrap() else { panic!("no state") };
    let mut state = counter.to_vec();
    let compressed = map_around(&catalog::compress(&state).unwrap());
    assert_eq!(catalog::open(&compressed).unwrap_err().code, Code::CorruptState, "compressed states inflate in each other");
    for depth in 1..10_000 {
        state = map_around(&state);
        if (40..9_999).contains(&depth) {
            continue;
        }
        match catalog::open(&state) {
            Ok(opened) => assert!(depth < 32 && opened.value().is_ok(), "{depth}"),
            Err(error) => assert!(depth >= 32 && error.code == Code::CorruptState, "{depth}: {error}"),
        }
    }
}

/// The bytes that two digits each say.
fn bytes_of(digits: &str) -> Vec<u8> {
    digits.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// A chain of states of `state`, which none of them may hold, does not go as deep as it is long.
#[test]
fn states_of_state_hold_none() {
    let mut state = bytes_of("4d510120000100c19ae99f");
    assert!(catalog::open(&state).is_ok());
    for _ in 0..2_000 {
        let mut body = Writer::default();
        body.bytes(&state);
        state = codec::seal(32, 0, body.as_bytes());
    }
    assert_eq!(catalog::open(&state).unwrap_err().code, Code::CorruptState);
}

/// What is in canonical form and right by its checksum, and yet said by no row.
#[test]
fn states_that_no_row_makes_are_refused() {
    for (what, digits) in [
        ("NULL in `lww` without RESPECT NULLS", "4d5101010008000000010001030a16698f72"),
        ("NULL in `max`", "4d510103000301000036f433b4"),
        ("NaN with a version in `all`", "4d510112001000000101030a0104000000000000f87f424e566e"),
        ("an index of a set", "4d51010c0206020203020304012a1e7b0667"),
        ("a first interesting column of a sparse `cpc`", "4d5101240015140401100b3f0acc930200000001000000be2803008c94e97b"),
        ("a NULL among the ranks of `source`", "4d51010800080100010601610100c22a79f0"),
    ] {
        assert_eq!(catalog::open(&bytes_of(digits)).map(drop).unwrap_err().code, Code::CorruptState, "{what}");
    }
    let refused = Call::new(vec![Type::Text, Type::Text]).with_arg("sources", Value::List(vec![Value::Null, Value::text("crm")]));
    let error = catalog::find("source").unwrap().bind(&refused).map(drop).unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument, "{error}");
}

/// A time in another unit than microseconds is that time, rounded down, or said to be none of them.
#[test]
fn timestamps_of_states_are_rounded_one_way() {
    let read = functions::all().into_iter().find(|f| f.name == "crdt_value_timestamp").unwrap();
    let day = 86_400_000_000_000i128;
    let value = |value: Value, ty: Type| (read.run)(&[Value::Bytes(state_of("max", &[ty], &[&[value]]).into())]);
    let nanos = Type::Timestamp { unit: Unit::Nanosecond, zone: None };
    let at = |nanos: i128| Value::Timestamp { nanos, zoned: false };
    assert_eq!(value(at(-1), nanos.clone()).unwrap(), at(-1000));
    assert_eq!(value(Value::Date(-1), Type::Date).unwrap(), at(-day));
    let infinite = i128::from(i64::MAX) * 1000;
    assert_eq!(value(Value::Date(i32::MAX), Type::Date).unwrap(), at(infinite));
    assert_eq!(value(Value::Date(-i32::MAX), Type::Date).unwrap(), at(-infinite));
    let seconds = Type::Timestamp { unit: Unit::Second, zone: None };
    assert_eq!(value(at(i128::from(i64::MAX) * 1_000_000_000), seconds.clone()).unwrap(), at(infinite));
    assert_eq!(value(at(10i128.pow(22)), seconds).unwrap_err().code, Code::LimitExceeded);
}

/// The state of these rows.
fn state_of(strategy: &str, inputs: &[Type], rows: &[&[Value]]) -> Vec<u8> {
    let mut partial = catalog::find(strategy).unwrap().bind(&Call::new(inputs.to_vec())).unwrap().partial();
    rows.iter().for_each(|row| partial.update(row).unwrap());
    partial.encode().unwrap()
}

/// 1.5 and 1.50 are two elements, but one version.
#[test]
fn numbers_of_equal_worth_are_told_apart_where_they_are_values() {
    let number = |unscaled, scale| Value::Decimal { unscaled, scale };
    let value = |state: &[u8]| catalog::open(state).unwrap().value().unwrap();
    let claim = |element: Value, origin: &str, removes| [element, Value::text(origin), Value::Int(1), Value::Bool(removes)];
    let removed = state_of(
        "rwset",
        &[Type::NUMERIC, Type::Text, Type::INT64, Type::Boolean],
        &[&claim(number(15, 1), "a", false), &claim(number(150, 2), "b", false), &claim(number(15, 1), "c", true)],
    );
    assert_eq!(value(&removed), Value::List(vec![number(150, 2)]));

    let newest = |strategy: &str, rows: [(&str, Value); 2]| {
        let rows = rows.map(|(v, version)| [Value::text(v), version]);
        let states: Vec<Vec<u8>> = [[0, 1], [1, 0]]
            .iter()
            .map(|order| state_of(strategy, &[Type::Text, Type::NUMERIC], &order.map(|i| rows[i].as_slice())))
            .collect();
        assert_eq!(states[0], states[1], "{strategy}");
        value(&states[0])
    };
    let both = newest("all", [("a", number(100, 2)), ("b", number(10, 1))]);
    assert_eq!(both, Value::List(vec![Value::text("a"), Value::text("b")]));
    let nine = newest("json", [(r#"{"x":9}"#, number(10, 1)), (r#"{"x":1}"#, number(100, 2))]);
    assert_eq!(nine, Value::record(vec![("x".into(), Value::Int(9))]));
}

#[test]
fn a_delta_keeps_what_is_no_number() {
    let count = |down: f64| [Value::float(f64::NAN), Value::float(down), Value::text("a")];
    let inputs = [Type::Float64, Type::Float64, Type::Text];
    let (since, now) = (state_of("pncounter", &inputs, &[&count(3.0)]), state_of("pncounter", &inputs, &[&count(5.0)]));
    let delta = catalog::open(&now).unwrap().delta(&since).unwrap();
    assert_eq!(catalog::join(&since, &delta).unwrap(), catalog::join(&since, &now).unwrap());
}

#[test]
fn a_state_has_one_form() {
    let id = catalog::find("max").unwrap().spec().type_id;
    assert!(catalog::open(&codec::seal(id, 0, &[1, 3, 4, 0])).is_ok());
    // The same value with a rank, which `max` never looks at.
    assert_eq!(catalog::open(&codec::seal(id, 0, &[1, 3, 4, 1, 3, 10])).unwrap_err().code, Code::CorruptState);
}

#[test]
fn a_decimal_has_the_digits_of_its_type() {
    let ty = Type::Decimal { precision: 38, scale: 0 };
    let most = 10i128.pow(38);
    let sum = |unscaled| Value::Decimal { unscaled, scale: 0 }.fit(&ty);
    assert!(sum(most - 1).is_ok() && sum(1 - most).is_ok());
    assert_eq!(sum(most).unwrap_err().code, Code::InvalidArgument);
    assert!(Value::Decimal { unscaled: 995, scale: 1 }.fit(&Type::Decimal { precision: 2, scale: 0 }).is_ok());
}
