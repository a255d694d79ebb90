//! Sketches at sizes that the derived laws don't reach: many values, many parts, and what is wrong with bytes.
#![allow(clippy::unwrap_used, missing_docs)]

use mergeql_udfs::laws::Random;
use mergeql_udfs::{Call, Code, Error, Type, Value, catalog, functions};

fn call(name: &str, args: &[(&str, Value)]) -> Call {
    let inputs = if catalog::find(name).unwrap().spec().versioned() {
        vec![Type::Bytes, Type::Text, Type::INT64]
    } else {
        vec![Type::INT64]
    };
    args.iter().fold(Call::new(inputs), |call, (name, value)| call.with_arg(name, value.clone()))
}

fn state(name: &str, args: &[(&str, Value)], values: impl IntoIterator<Item = i64>) -> Vec<u8> {
    let mut partial = catalog::find(name).unwrap().bind(&call(name, args)).unwrap().partial();
    values.into_iter().for_each(|v| partial.update(&[Value::Int(v.into())]).unwrap());
    partial.encode().unwrap_or_default()
}

fn made(name: &str, args: &[(&str, Value)], values: &[f64]) -> Value {
    let entry = catalog::plain().iter().find(|e| e.spec().name == name).unwrap();
    let call = args.iter().fold(Call::new(vec![Type::Float64]), |call, (name, value)| call.with_arg(name, value.clone()));
    let mut partial = entry.bind(&call).unwrap().partial();
    values.iter().for_each(|v| partial.update(&[Value::float(*v)]).unwrap());
    partial.value().unwrap()
}

fn run(name: &str, args: &[Value]) -> Result<Value, Error> {
    (functions::all().into_iter().find(|f| f.name == name).unwrap().run)(args)
}

fn double(value: Value) -> f64 {
    match value {
        Value::Float(v) => v,
        Value::Int(v) => v as f64,
        other => panic!("{other} is no number"),
    }
}

fn bytes(state: Vec<u8>) -> Value {
    Value::Bytes(state.into())
}

const OF_SETS: [(&str, &[(&str, Value)]); 8] = [
    ("hll", &[("precision", Value::Int(4))]),
    ("hll", &[("precision", Value::Int(8))]),
    ("hll", &[]),
    ("theta", &[("precision", Value::Int(5))]),
    ("theta", &[]),
    ("cpc", &[("precision", Value::Int(6))]),
    ("bloom", &[("items", Value::Int(500))]),
    ("minhash", &[]),
];

#[test]
fn parts_join_to_the_whole_at_every_size() {
    let mut random = Random(11);
    for (name, args) in OF_SETS {
        for size in [1, 6, 7, 8, 9, 23, 24, 25, 60, 383, 386, 3000, 20_000] {
            let whole = state(name, args, 0..size);
            let mut parts: Vec<Vec<i64>> = vec![Vec::new(); 1 + random.below(4)];
            for v in 0..size {
                for _ in 0..1 + random.below(2) {
                    let at = random.below(parts.len());
                    parts[at].push(v);
                }
            }
            parts.iter_mut().for_each(|part| random.shuffle(part));
            let states = parts.iter().map(|part| state(name, args, part.iter().copied())).filter(|s| !s.is_empty());
            let joined = states.reduce(|a, b| catalog::join(&a, &b).unwrap()).unwrap();
            assert!(joined == whole, "{name} {args:?} of {size} values in {} parts", parts.len());
            assert_eq!(catalog::open(&whole).unwrap().encode(), whole);
            let half = state(name, args, 0..size / 2);
            if !half.is_empty() {
                let delta = catalog::open(&whole).unwrap().delta(&half).unwrap();
                assert!(catalog::join(&half, &delta).unwrap() == whole, "the delta of {name} {args:?} at {size}");
            }
        }
    }
}

#[test]
fn estimates_are_near() {
    for (name, error) in [("hll", 0.0163), ("theta", 0.0157), ("cpc", 0.0153)] {
        for n in [10, 300, 5_000, 200_000] {
            let state = bytes(state(name, &[], 0..n));
            let found = double(run("sketch_estimate", std::slice::from_ref(&state)).unwrap());
            assert!((found / n as f64 - 1.0).abs() < 3.0 * error, "{name} says {found} of {n}");
            let bound = |side: &str| double(run(side, &[state.clone(), Value::Int(3)]).unwrap());
            assert!(bound("sketch_lower_bound") <= n as f64 && n as f64 <= bound("sketch_upper_bound"), "{name} of {n}");
        }
    }
    let bloom = bytes(state("bloom", &[], 0..10_000));
    let held = |v: i128| run("bloom_contains", &[bloom.clone(), Value::Int(v)]).unwrap() == Value::Bool(true);
    assert!((0..10_000).all(held));
    let wrong = (10_000..30_000).filter(|v| held(*v)).count();
    assert!(wrong < 300, "{wrong} of 20000 strangers are let in, 1 % was wanted");
    for (name, near) in [("theta", 0.03), ("minhash", 0.15)] {
        let (a, b) = (bytes(state(name, &[], 0..30_000)), bytes(state(name, &[], 10_000..40_000)));
        let found = double(run("jaccard", &[a.clone(), b.clone()]).unwrap());
        assert!((found - 0.5).abs() < near, "{name} says {found} of 0.5");
        assert_eq!(double(run("jaccard", &[a.clone(), a]).unwrap()), 1.0);
    }
    let (a, b) = (bytes(state("theta", &[], 0..30_000)), bytes(state("theta", &[], 10_000..40_000)));
    for (name, n) in [("theta_intersect", 20_000.0), ("theta_difference", 10_000.0)] {
        let found = double(run("sketch_estimate", &[run(name, &[a.clone(), b.clone()]).unwrap()]).unwrap());
        assert!((found / n - 1.0).abs() < 0.1, "{name} says {found} of {n}");
    }
}

#[test]
fn finished_sketches_are_those_of_the_multiset() {
    let mut random = Random(3);
    let mut values: Vec<f64> = (0..30_000).map(|v| f64::from(v % 10_000)).collect();
    for name in ["kll", "tdigest", "countmin", "topk"] {
        let one = made(name, &[], &values);
        random.shuffle(&mut values);
        assert!(made(name, &[], &values) == one, "{name} depends on the order of rows");
        let entry = catalog::plain().iter().find(|e| e.spec().name == name).unwrap();
        let bound = entry.bind(&Call::new(vec![Type::Float64])).unwrap();
        let mut parts: Vec<_> = (0..3).map(|_| bound.partial()).collect();
        values.iter().for_each(|v| parts[random.below(3)].update(&[Value::float(*v)]).unwrap());
        let (mut all, rest) = (parts.pop().unwrap(), parts);
        rest.iter().for_each(|part| all.join_bytes(&part.encode().unwrap()).unwrap());
        assert!(all.value().unwrap() == one, "{name} depends on the split of rows");
    }
    for (name, error) in [("kll", 0.005), ("tdigest", 0.005)] {
        let mut partial = catalog::find(name).unwrap().bind(&call(name, &[])).unwrap().partial();
        for (origin, part) in ["a", "b", "c"].iter().zip(values.chunks(10_000)) {
            let row = [made(name, &[], part), Value::text(*origin), Value::Int(1)];
            partial.update(&row).unwrap();
            partial.update(&row).unwrap();
        }
        let state = bytes(partial.encode().unwrap());
        for q in [0.0, 0.01, 0.25, 0.5, 0.9, 0.999, 1.0] {
            let found = double(run("sketch_quantile", &[state.clone(), Value::float(q)]).unwrap());
            assert!((found / 9_999.0 - q).abs() <= error, "{name} says {found} for {q}");
        }
        let image = run("sketch_combined", &[state]).unwrap();
        let mut again = catalog::find(name).unwrap().bind(&call(name, &[])).unwrap().partial();
        again.update(&[image, Value::text("all"), Value::Int(1)]).unwrap();
        let found = double(run("sketch_quantile", &[bytes(again.encode().unwrap()), Value::float(0.5)]).unwrap());
        assert!((found / 9_999.0 - 0.5).abs() <= 3.0 * error, "{name} of what was combined says {found}");
    }
}

#[test]
fn what_does_not_fit_is_said() {
    let says = |result: Result<Value, Error>, code: Code, part: &str| {
        let error = result.unwrap_err();
        assert!(error.code == code && error.to_string().contains(part), "{error}");
    };
    let (small, large) = (state("hll", &[("precision", Value::Int(10))], 0..5), state("hll", &[], 0..5));
    let error = catalog::join(&small, &large).unwrap_err();
    assert!(error.code == Code::TypeMismatch && error.to_string().contains("precision 10"), "{error}");
    let wrong = call("hll", &[("precision", Value::Int(40))]);
    assert!(catalog::find("hll").unwrap().bind(&wrong).unwrap_err().to_string().contains("from 4 to 21"));
    says(run("sketch_estimate", &[bytes(state("bloom", &[], 0..5))]), Code::TypeMismatch, "no estimate");
    says(run("crdt_from_sketch", &[made("kll", &[], &[1.0])]), Code::TypeMismatch, "crdt_kll");
    let huge = call("bloom", &[("items", Value::Int(1 << 32)), ("rate", Value::float(0.001))]);
    assert_eq!(catalog::find("bloom").unwrap().bind(&huge).unwrap_err().code, Code::LimitExceeded);
    let mut partial = catalog::find("kll").unwrap().bind(&call("kll", &[])).unwrap().partial();
    let row = [made("tdigest", &[], &[1.0]), Value::text("a"), Value::Int(1)];
    assert!(partial.update(&row).unwrap_err().to_string().contains("sketch_kll(value)"));
}

/// A state whose sketch cannot be read is no state: it would spoil what it is joined to.
#[test]
fn a_broken_sketch_is_a_corrupt_state() {
    for name in ["kll", "tdigest", "countmin", "topk"] {
        let mut partial = catalog::find(name).unwrap().bind(&call(name, &[])).unwrap().partial();
        let image = made(name, &[], &[1.0, 2.0, 3.0]);
        partial.update(&[image.clone(), Value::text("a"), Value::Int(1)]).unwrap();
        let (id, body) = mergeql_udfs::codec::open(&partial.encode().unwrap()).map(|(id, body)| (id, body.into_owned())).unwrap();
        let Value::Bytes(image) = image else { panic!("no image") };
        let at = body.windows(image.len()).position(|part| *part == *image).unwrap();
        let broken = [&body[..at], &vec![0xff; image.len()], &body[at + image.len()..]].concat();
        assert_eq!(catalog::open(&mergeql_udfs::codec::seal(id, 0, &broken)).unwrap_err().code, Code::CorruptState, "{name}");
    }
}

/// Images that are cut, flipped and grown: an answer or an error, never a panic.
#[test]
fn hostile_images() {
    let mut random = Random(5);
    let mut images: Vec<(&str, Vec<u8>)> = Vec::new();
    for (name, args) in OF_SETS.iter().filter(|(name, _)| *name != "minhash") {
        for size in [0, 1, 5, 30, 2_000] {
            let state = if size == 0 { state(name, args, []) } else { state(name, args, 0..size) };
            if let Ok(Value::Bytes(image)) = run("crdt_to_sketch", &[bytes(state)]) {
                images.push(("crdt_from_sketch", image.into_vec()));
            }
        }
    }
    for name in ["kll", "tdigest", "countmin", "topk"] {
        for size in [1, 5, 3_000] {
            let values: Vec<f64> = (0..size).map(f64::from).collect();
            let Value::Bytes(image) = made(name, &[], &values) else { panic!("no image") };
            images.push((name, image.into_vec()));
        }
    }
    assert!(images.len() > 30);
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    for (reader, image) in images {
        for _ in 0..400 {
            let mut broken = image.clone();
            for _ in 0..1 + random.below(3) {
                let near = if random.below(2) == 0 { broken.len().min(40) } else { broken.len() };
                let at = random.below(near);
                match random.below(4) {
                    0 => broken.truncate(at.max(1)),
                    1 => broken[at] = random.below(256) as u8,
                    2 => broken[at] ^= 1 << random.below(8),
                    _ => broken.insert(at, random.below(256) as u8),
                }
            }
            if reader == "crdt_from_sketch" {
                if let Ok(Value::Bytes(state)) = run(reader, &[Value::Bytes(broken.into())]) {
                    let opened = catalog::open(&state).unwrap();
                    let _ = (opened.value(), opened.info(), run("crdt_to_sketch", &[Value::Bytes(state)]).unwrap());
                }
            } else {
                let mut partial = catalog::find(reader).unwrap().bind(&call(reader, &[])).unwrap().partial();
                if partial.update(&[Value::Bytes(broken.into()), Value::text("a"), Value::Int(1)]).is_ok() {
                    let state = bytes(partial.encode().unwrap());
                    let _ = (partial.value(), run("sketch_combined", std::slice::from_ref(&state)), run("topk_items", &[state]));
                }
            }
        }
    }
    std::panic::set_hook(quiet);
}

/// The store for many groups keeps few coupons in place: it gives what the states give, across all its sizes.
#[test]
fn many_groups_equal_one_by_one() {
    use mergeql_udfs::laws::values_of;
    use mergeql_udfs::{Column, OwnedColumn};
    for precision in [4, 8, 12] {
        let args = [("precision", Value::Int(precision))];
        let bound = catalog::find("hll").unwrap().bind(&call("hll", &args)).unwrap();
        let sizes = [0, 1, 6, 7, 8, 9, 10, 11, 12, 100, 500];
        let mut rows: Vec<(i64, usize)> =
            sizes.iter().enumerate().flat_map(|(group, n)| (0..*n).map(move |v| (v, group))).collect();
        Random(9).shuffle(&mut rows);
        let (mut parts, mut whole) = ([bound.groups(), bound.groups()], bound.groups());
        for (i, chunk) in rows.chunks(64).enumerate() {
            let values: Vec<Value> = chunk.iter().map(|(v, _)| Value::Int((*v).into())).collect();
            let groups: Vec<usize> = chunk.iter().map(|(_, group)| *group).collect();
            parts[i % 2].update(&[Column::of_values(&values)], &groups, None, sizes.len()).unwrap();
        }
        for part in &mut parts {
            // In two steps, as a host that emits early takes them.
            let states: Vec<Value> = [5, 6].iter().flat_map(|n| values_of(&part.states(*n).unwrap())).collect();
            whole.merge(&Column::of_values(&states), &(0..sizes.len()).collect::<Vec<_>>(), sizes.len()).unwrap();
            assert!(part.size() < 1 << 20);
        }
        let shown = |column: OwnedColumn| -> Vec<Value> { (0..column.len()).map(|i| column.value(i)).collect() };
        let expected: Vec<Value> =
            sizes.iter().map(|n| if *n == 0 { Value::Null } else { bytes(state("hll", &args, 0..*n)) }).collect();
        let first = whole.states(11).unwrap();
        assert_eq!(shown(first), expected, "precision {precision}");
        whole.merge(&Column::of_values(&expected), &(0..sizes.len()).collect::<Vec<_>>(), sizes.len()).unwrap();
        let values: Vec<Value> = expected
            .iter()
            .map(|state| if let Value::Bytes(b) = state { catalog::open(b).unwrap().value().unwrap() } else { Value::Null })
            .collect();
        assert_eq!(shown(whole.finish(11).unwrap()), values);
    }
}

/// An image of a theta sketch does not say its precision; sketches of two join at the smaller, in any order.
#[test]
fn theta_sketches_of_two_precisions_join_at_the_smaller() {
    let of = |precision: i128, range| bytes(state("theta", &[("precision", Value::Int(precision))], range));
    let (small, large, other) = (of(5, 0..1000), of(8, 500..4000), of(6, 3000..9000));
    let join = |a: &Value, b: &Value| run("crdt_join", &[a.clone(), b.clone()]).unwrap();
    let one = join(&join(&small, &large), &other);
    assert_eq!(one, join(&join(&other, &large), &small));
    assert_eq!(one, join(&one, &small));
    assert!(run("crdt_info", &[one]).unwrap().to_string().contains("\"precision\":5"));
    // From another library: a few values, and many.
    let image = |state: &Value| run("crdt_to_sketch", std::slice::from_ref(state)).unwrap();
    let (few, many) = (of(14, 0..10), of(14, 0..100_000));
    let read = |image: Value| run("crdt_from_sketch", &[image, Value::Int(14)]).unwrap();
    assert_eq!(join(&read(image(&few)), &read(image(&many))), join(&few, &many));
    // All values are in it still, more than half of what fits.
    let exact = of(14, 0..10_000);
    assert_eq!(read(image(&exact)), exact);
}

/// Infinities have their ranks; NaN has none, and a t-digest, which works on distances, no infinities.
#[test]
fn quantiles_of_infinities() {
    let values = [1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
    let of = |family: &str| {
        let mut partial = catalog::find(family).unwrap().bind(&Call::new(vec![Type::Bytes, Type::Text])).unwrap().partial();
        partial.update(&[made(family, &[], &values), Value::text("a")]).unwrap();
        partial.value().unwrap().to_json()
    };
    assert_eq!(of("kll"), r#"["-Infinity","-Infinity",1.0,"Infinity","Infinity"]"#);
    assert_eq!(of("tdigest"), "[1.0,1.0,1.0,1.0,1.0]");
}
