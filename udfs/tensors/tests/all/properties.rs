//! The cases without one expected answer: moments over many seeds, identities, and what must not change an answer.

use crate::cases::{data, manifest, model, request, resolve};
use mergeql_tensors::checkpoint::{Checkpoint, Tensor};
use mergeql_tensors::method::{Params, Semantics, Value};
use mergeql_tensors::methods;
use mergeql_tensors::plan::{Model, Options, Plan, Request, Rule};
use mergeql_tensors::run;
use mergeql_tensors::sealed::Sealed;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;

type Tensors = BTreeMap<String, Vec<f32>>;

fn case(id: &str) -> Json {
    let manifest = manifest();
    manifest["cases"].as_array().expect("cases").iter().find(|c| c["id"] == id).expect("a case").clone()
}

fn load(path: &Path) -> Tensors {
    let file = Checkpoint::open(path).expect("tensors");
    file.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.all().expect("elements"))).collect()
}

fn input(name: &str) -> Tensors {
    load(&data().join(format!("inputs/{name}.safetensors")))
}

fn ask(strategy: &str, params: &[(&str, Value)], models: &[&str], base: Option<&str>) -> Request {
    Request {
        models: models.iter().map(|name| model(name)).collect(),
        base: base.map(model),
        rules: vec![Rule {
            pattern: "*".into(),
            strategy: strategy.into(),
            params: params.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
        }],
        options: Options::default(),
    }
}

fn number(v: f64) -> Value {
    Value::Number(v)
}

fn numbers(v: &[f64]) -> Value {
    Value::List(v.iter().copied().map(Value::Number).collect())
}

/// A copy of a model under another name, so that it is another contribution.
fn renamed(name: &str, other: &str) -> Model {
    Model { name: other.to_owned(), ..model(name) }
}

pub fn near(got: &Tensors, want: &Tensors, tolerance: f32) {
    for (name, want) in want {
        for (g, w) in got[name].iter().zip(want) {
            assert!((g - w).abs() <= tolerance * (1.0 + w.abs()), "{name}: {g} for {w}");
        }
    }
}

/// Means of many seeds lie within six standard errors of the expected mean, and as many entries are kept as should be.
fn moments(id: &str, seeds: u32) {
    let case = case(id);
    let expected = load(&data().join(case["expected"].as_str().expect("a file")));
    let mut sums: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut first = None;
    for seed in 0..seeds {
        let mut request = request(&case);
        request.rules[0].params.insert("seed".into(), number(f64::from(seed)));
        let got = resolve(request.clone()).expect("a merge");
        if seed == 0 {
            assert_eq!(got, resolve(request).expect("a merge"), "the same seed gives the same bits");
            first = Some(got.clone());
        } else if seed == 1 {
            assert_ne!(Some(&got), first.as_ref());
        }
        for (name, values) in got {
            let sums = sums.entry(name).or_insert_with(|| vec![0.0; values.len()]);
            sums.iter_mut().zip(values).for_each(|(s, v)| *s += f64::from(v));
        }
    }
    let (mut outside, mut all) = (0, 0);
    for (name, sums) in &sums {
        let deviations = &expected[&format!("{name}.std")];
        for ((sum, mean), deviation) in sums.iter().zip(&expected[name]).zip(deviations) {
            let error = (sum / f64::from(seeds) - f64::from(*mean)).abs();
            outside += usize::from(error > 6.0 * f64::from(*deviation) / f64::from(seeds).sqrt() + 1e-6);
            all += 1;
        }
    }
    assert!(outside * 1000 <= all, "{id}: {outside} of {all} means are off");
}

#[test]
fn dare_and_della_are_unbiased() {
    moments("dare_linear_stat", 200);
    moments("della_linear_stat", 200);
}

#[test]
fn dare_keeps_as_many_entries_as_its_density_says_each_divided_by_it() {
    let (base, m0) = (input("base"), input("m0"));
    let got =
        resolve(ask("dare_linear", &[("density", number(0.3)), ("seed", number(5.0))], &["m0"], Some("base"))).expect("a merge");
    let mut kept_at: BTreeMap<&String, Vec<bool>> = BTreeMap::new();
    for (name, got) in &got {
        let (b, m) = (&base[name], &m0[name]);
        let mut kept = Vec::new();
        for ((g, b), m) in got.iter().zip(b).zip(m) {
            let whole = b + (m - b) / 0.3;
            assert!(*g == *b || (g - whole).abs() < 1e-5 * (1.0 + whole.abs()), "{g} is neither {b} nor {whole}");
            kept.push(g != b);
        }
        let (n, count) = (kept.len() as f64, kept.iter().filter(|k| **k).count() as f64);
        assert!((count - 0.3 * n).abs() <= 6.0 * (n * 0.3 * 0.7).sqrt(), "{name}: {count} of {n}");
        kept_at.insert(name, kept);
    }
    // Masks of other models and of other tensors are their own.
    let other = resolve(Request {
        models: vec![renamed("m0", "other")],
        ..ask("dare_linear", &[("density", number(0.3)), ("seed", number(5.0))], &["m0"], Some("base"))
    })
    .expect("a merge");
    let name = "layers.0.mlp.weight".to_owned();
    let same =
        other[&name].iter().zip(&base[&name]).zip(&kept_at[&name]).filter(|((g, b), kept)| (g != b) == **kept).count() as f64;
    let n = base[&name].len() as f64;
    assert!((same / n - 0.58).abs() < 6.0 * (0.58f64 * 0.42 / n).sqrt(), "{same} of {n}");
}

#[test]
fn mergekits_dare_keeps_the_l1_norm() {
    let request = Request {
        options: Options { semantics: Semantics::Mergekit, ..Options::default() },
        ..ask("dare_linear", &[("density", number(0.3))], &["m0"], Some("base"))
    };
    let (base, m0, got) = (input("base"), input("m0"), resolve(request).expect("a merge"));
    for (name, got) in &got {
        let l1 = |a: &[f32]| a.iter().zip(&base[name]).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
        assert!((l1(got) / l1(&m0[name]) - 1.0).abs() < 1e-4);
        let factors: Vec<f32> = got
            .iter()
            .zip(&m0[name])
            .zip(&base[name])
            .filter(|((g, m), b)| g != b && (*m - *b).abs() > 0.01)
            .map(|((g, m), b)| (g - b) / (m - b))
            .collect();
        assert!(factors.iter().all(|f| (f / factors[0] - 1.0).abs() < 1e-2), "one factor for a tensor");
    }
}

#[test]
fn identities() {
    let (base, m0) = (input("base"), input("m0"));
    let copies = |strategy: &str, params: &[(&str, Value)], base: Option<&str>| {
        let mut request = ask(strategy, params, &[], base);
        request.models = vec![renamed("m0", "a"), renamed("m0", "b"), renamed("m0", "c")];
        resolve(request).expect("a merge")
    };
    near(&resolve(ask("slerp", &[("t", number(0.0))], &["m0"], Some("base"))).expect("t = 0"), &base, 1e-7);
    near(&resolve(ask("slerp", &[("t", number(1.0))], &["m0"], Some("base"))).expect("t = 1"), &m0, 1e-7);
    assert_eq!(resolve(ask("linear", &[], &["m0"], None)).expect("one model"), m0);
    near(&copies("ties", &[("density", number(1.0))], Some("base")), &m0, 1e-6);
    near(&copies("model_stock", &[], Some("base")), &m0, 1e-6);
    assert_eq!(
        resolve(Request {
            models: vec![renamed("base", "a"), renamed("base", "b")],
            ..ask("task_arithmetic", &[], &[], Some("base"))
        })
        .expect("no change"),
        base
    );
    let file = |name: &str| Value::Text(data().join(format!("inputs/{name}.safetensors")).to_string_lossy().into_owned());
    let mean = resolve(ask("linear", &[], &["m0", "m1"], None)).expect("a mean");
    let equal = |param: &str, name: &str| vec![(param.to_owned(), Value::List(vec![file(name), file(name)]))];
    for (strategy, params) in [("fisher", equal("fisher", "fisher0")), ("regmean", equal("gram", "gram0"))] {
        let mut request = ask(strategy, &[], &["m0", "m1"], None);
        request.rules[0].params = params.into_iter().collect();
        near(&resolve(request).expect("equal weights"), &mean, 1e-3);
    }
    // Server side FedProx is FedAvg.
    let samples = [("num_samples", numbers(&[1.0, 3.0]))];
    let with_mu = [samples[0].clone(), ("mu", number(0.1))];
    assert_eq!(
        resolve(ask("fedprox", &with_mu, &["m0", "m1"], None)).expect("fedprox"),
        resolve(ask("fedavg", &samples, &["m0", "m1"], None)).expect("fedavg")
    );
}

#[test]
fn ties_keeps_an_exact_number_of_tied_entries() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(format!("{name}.safetensors"));
    let tensor = |values: Vec<f32>| BTreeMap::from([("w".to_owned(), (vec![values.len()], values))]);
    write(&path("base"), &tensor(vec![0.0; 101]));
    write(&path("tied"), &tensor((0..101).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect()));
    for (density, kept) in [(0.2, 20), (0.0, 1), (1.0, 101), (0.999, 100)] {
        let mut request = ask("ties", &[("density", number(density))], &[], None);
        let open = |name: &str| Model::new(name, Checkpoint::open(path(name)).expect("a model"));
        request.models = vec![open("tied")];
        request.base = Some(open("base"));
        let got = resolve(request).expect("a merge");
        assert_eq!(got["w"].iter().filter(|v| **v != 0.0).count(), kept, "{density}");
        // Of equals the first by index.
        assert!(got["w"][..kept].iter().all(|v| *v != 0.0));
    }
}

/// Writes tensors as f32.
pub fn write(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    let bytes: BTreeMap<&String, Vec<u8>> =
        tensors.iter().map(|(n, (_, v))| (n, v.iter().flat_map(|v| v.to_le_bytes()).collect())).collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), &bytes[name]).expect("a tensor");
        (name.clone(), view)
    });
    safetensors::serialize_to_file(views, None, path).expect("a file");
}

/// Models of tensors of some shapes, with values from a counter.
fn random(path: &Path, seed: u64, shapes: &[(&str, Vec<usize>)]) {
    random_from(path, seed, shapes, -0.5);
}

fn random_from(path: &Path, seed: u64, shapes: &[(&str, Vec<usize>)], least: f32) {
    let tensors = shapes.iter().map(|(name, shape)| {
        let stream = mergeql_tensors::rng::Philox::new(seed, &[0; 32], name);
        let mut values = vec![0.0; shape.iter().product()];
        values.iter_mut().enumerate().for_each(|(i, v)| *v = stream.number(i) as f32 / 4_294_967_296.0 + least);
        ((*name).to_owned(), (shape.clone(), values))
    });
    write(path, &tensors.collect());
}

/// The parameters that a method cannot do without, for three models.
fn needed(method: &'static mergeql_tensors::method::Method, folder: &Path) -> Option<Params> {
    let mut params = Params::new();
    for param in method.params.iter().filter(|p| p.default == "!") {
        let value = match param.name {
            "t" => number(0.3),
            "tau" => number(0.5),
            "steps" => numbers(&[3.0, 5.0, 2.0]),
            // Any tensors of the same shapes that are not below zero will do.
            "fisher" => Value::List(
                (0..3).map(|i| Value::Text(folder.join(format!("f{i}.safetensors")).to_string_lossy().into_owned())).collect(),
            ),
            _ => return None,
        };
        params.insert(param.name.to_owned(), value);
    }
    // A list with a value for each model, to be permuted with them.
    if method.param("weight").is_some() && method.name != "safemerge" {
        params.insert("weight".into(), numbers(&[0.5, 0.3, 0.2]));
    }
    if method.param("density").is_some_and(|p| p.per_model) {
        params.insert("density".into(), numbers(&[0.5, 0.6, 0.4]));
    }
    Some(params)
}

fn permuted(params: &Params, order: &[usize]) -> Params {
    let permute = |value: &Value| match value {
        Value::List(items) if items.len() == order.len() => Value::List(order.iter().map(|i| items[*i].clone()).collect()),
        value => value.clone(),
    };
    params.iter().map(|(name, value)| (name.clone(), permute(value))).collect()
}

/// Order of the models, threads, tiles and shards change no byte, for any method whose order doesn't count.
#[test]
fn nothing_but_the_set_changes_a_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    let shapes = [("a.weight", vec![150, 130]), ("b.bias", vec![70_001]), ("c.kernel", vec![6, 5, 7])];
    let path = |name: &str| folder.path().join(format!("{name}.safetensors"));
    for (seed, name) in ["m0", "m1", "m2", "base"].iter().enumerate() {
        random(&path(name), seed as u64, &shapes);
    }
    for i in 0..3 {
        random_from(&path(&format!("f{i}")), i, &shapes, 0.0);
    }
    // The same model in shards.
    let shards = folder.path().join("m1");
    std::fs::create_dir(&shards).expect("a folder");
    random(&shards.join("x.safetensors"), 1, &shapes[..1]);
    random(&shards.join("y.safetensors"), 1, &shapes[1..]);
    let open = |name: &str, at: &Path| Model::new(name, Checkpoint::open(at).expect("a model"));
    let mut tried = 0;
    for method in methods::ALL.iter().filter(|m| !m.ordered) {
        let Some(params) = needed(method, folder.path()) else { continue };
        let merge = |order: &[usize], sharded: bool, memory: u64| {
            let count = method.models.1.min(3);
            let params = if count == 3 { permuted(&params, order) } else { Params::new() };
            let params = if count < 3 {
                needed(method, folder.path()).into_iter().flatten().filter(|(n, _)| n == "t").chain(params).collect()
            } else {
                params
            };
            let models = order.iter().filter(|i| **i < count).map(|i| {
                let name = format!("m{i}");
                if *i == 1 && sharded { open(&name, &shards) } else { open(&name, &path(&name)) }
            });
            let request = Request {
                models: models.collect(),
                base: Some(open("base", &path("base"))),
                rules: vec![Rule { pattern: "*".into(), strategy: method.name.into(), params }],
                options: Options { memory_limit: memory, ..Options::default() },
            };
            let sealed = Sealed::new(Plan::new(request).expect(method.name)).expect(method.name);
            (sealed.hash, run::resolve(&sealed).expect(method.name))
        };
        let usual = merge(&[0, 1, 2], false, 512 << 20);
        for (threads, order, sharded, memory) in
            [(1, [2, 0, 1], false, 1 << 10), (7, [1, 2, 0], true, 1 << 20), (2, [2, 1, 0], true, 1 << 30)]
        {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let again = pool.install(|| merge(&order, sharded, memory));
            assert!(
                usual == again,
                "{} differs with {threads} threads, order {order:?}, sharded {sharded}, memory {memory}",
                method.name
            );
        }
        tried += 1;
    }
    assert!(tried >= 35, "{tried}");
}

#[test]
fn a_model_that_is_there_twice_counts_once() {
    let once = resolve(ask("linear", &[], &["m0", "m1"], None)).expect("a merge");
    assert_eq!(resolve(ask("linear", &[], &["m0", "m1", "m0"], None)).expect("a merge"), once);
}

/// A run that stops half-way leaves no file under its final name, and the next one goes on from there.
#[test]
fn a_run_that_was_stopped_is_resumed() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let sealed = || Sealed::new(Plan::new(ask("linear", &[], &["m0", "m1", "m2"], None)).expect("a plan")).expect("models");
    let stop = std::panic::catch_unwind(|| {
        run::write(&sealed(), &out, &BTreeMap::new(), |p| assert!(p.tensor != "layers.0.norm.weight", "stop"), |_| Ok(()))
    });
    assert!(stop.is_err());
    let names = || -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&out)
            .expect("a folder")
            .map(|e| e.expect("a file").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["model.journal.partial", "model.safetensors.partial"]);
    let written = run::write(&sealed(), &out, &BTreeMap::new(), |_| (), |_| Ok(())).expect("the rest");
    assert_eq!(names(), ["model.safetensors"]);
    assert_eq!(written.iter().map(|w| w.resumed).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(load(&out), resolve(ask("linear", &[], &["m0", "m1", "m2"], None)).expect("a merge"));
    // What is there is not overwritten unasked.
    let again = run::write(&sealed(), &out, &BTreeMap::new(), |_| (), |_| Ok(()));
    assert!(again.expect_err("it exists").to_string().contains("this file exists"));
}

#[test]
fn shards_and_their_index_hold_the_same_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut request = ask("linear", &[], &["m0", "m1"], None);
    request.options.max_shard_size = Some(1000);
    let sealed = Sealed::new(Plan::new(request).expect("a plan")).expect("models");
    run::write(&sealed, folder.path(), &BTreeMap::new(), |_| (), |_| Ok(())).expect("shards");
    assert!(folder.path().join("model-00003-of-00003.safetensors").exists());
    assert_eq!(load(folder.path()), resolve(ask("linear", &[], &["m0", "m1"], None)).expect("a merge"));
}

#[test]
fn rows_of_other_tensors() {
    use mergeql_tensors::made::{self, Row};
    let a = Tensor::memory("a", &[2, 2], vec![1.0, 2.0, 3.0, 4.0]);
    let b = Tensor::memory("b", &[1, 2], vec![5.0, 8.0]);
    let rows = vec![Row::Mean(vec![(0, 1)]), Row::Mean(vec![(0, 0), (1, 0)]), Row::Mean(vec![]), Row::Padding];
    let tensor = made::rows("r", vec![a, b], rows);
    assert_eq!(tensor.all().expect("rows"), [3.0, 4.0, 3.0, 5.0, 0.0, 0.0, 2.0, 3.0]);
}

/// Coefficients and masks of a training run, as tensors in a file.
#[test]
fn coefficients_and_masks_come_from_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(format!("{name}.safetensors"));
    let tensor = |name: &str, shape: &[usize], values: Vec<f32>| (name.to_owned(), (shape.to_vec(), values));
    write(&path("base"), &BTreeMap::from([tensor("w", &[2, 3], vec![1.0; 6])]));
    write(&path("a"), &BTreeMap::from([tensor("w", &[2, 3], vec![2.0, 3.0, 4.0, 5.0, 6.0, 7.0])]));
    write(&path("b"), &BTreeMap::from([tensor("w", &[2, 3], vec![1.0, 1.0, 1.0, 1.0, 1.0, 5.0])]));
    write(&path("ada"), &BTreeMap::from([tensor("w", &[2], vec![0.5, 0.25])]));
    write(&path("dam"), &BTreeMap::from([tensor("w", &[2, 3], vec![1.0, 0.0, 0.5, 0.0, 2.0, 0.5])]));
    write(&path("masks"), &BTreeMap::from([tensor("0.w", &[2], vec![1.0, 1.0]), tensor("1.w", &[2], vec![0.0, 0.0])]));
    let merge = |strategy: &str, param: &str, file: &str, order: [&str; 2]| {
        let open = |name: &str| Model::new(name, Checkpoint::open(path(name)).expect("a model"));
        let mut request = ask(strategy, &[(param, Value::Text(path(file).to_string_lossy().into_owned()))], &[], None);
        request.models = order.iter().map(|name| open(name)).collect();
        request.base = Some(open("base"));
        resolve(request).expect(strategy)["w"].clone()
    };
    assert_eq!(merge("adamerging", "coefficients", "ada", ["a", "b"]), [1.5, 2.0, 2.5, 3.0, 3.5, 5.0]);
    assert_eq!(merge("adamerging", "coefficients", "ada", ["b", "a"]), [1.25, 1.5, 1.75, 2.0, 2.25, 4.5]);
    assert_eq!(merge("dam", "coefficients", "dam", ["a", "b"]), [2.0, 2.0, 2.5, 5.0, 2.0, 6.0]);
    // All components of one task, none of the other: that task's model.
    let kept = merge("adarank", "masks", "masks", ["a", "b"]);
    assert!(kept.iter().zip([2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).all(|(got, want)| (got - want).abs() < 1e-5), "{kept:?}");
}

/// Where the paper and mergekit differ, each gives its own.
#[test]
fn the_two_semantics() {
    let with = |semantics, mut request: Request| {
        request.options.semantics = semantics;
        resolve(request)
    };
    // Opposite tensors have no shortest arc; mergekit takes the line.
    let opposite = || ask("slerp", &[("t", number(0.25))], &["neg"], Some("base"));
    let error = with(Semantics::Paper, opposite()).expect_err("no arc").to_string();
    assert!(error.contains("opposite directions") && error.contains("semantics = 'mergekit'"), "{error}");
    with(Semantics::Mergekit, opposite()).expect("a line");
    // mergekit's Karcher mean has no weights.
    let mean = |weights: &[f64]| ask("karcher", &[("weight", numbers(weights))], &["m0", "m1"], None);
    let karcher = |semantics, weights: &[f64]| with(semantics, mean(weights)).expect("a mean");
    assert_ne!(karcher(Semantics::Paper, &[1.0, 3.0]), karcher(Semantics::Paper, &[1.0, 1.0]));
    assert_eq!(karcher(Semantics::Mergekit, &[1.0, 3.0]), karcher(Semantics::Mergekit, &[1.0, 1.0]));
    // DELLA's epsilon is 0.15 there, which a density of 0.9 has no room for.
    let della = || ask("della", &[("density", number(0.9))], &["m0"], Some("base"));
    with(Semantics::Paper, della()).expect("epsilon 0");
    assert!(with(Semantics::Mergekit, della()).expect_err("epsilon 0.15").to_string().contains("epsilon 0.15"));
}

/// `dtype` of a config is what models are read in: f32 models give what the same models in bf16 give.
#[test]
fn configs_read_models_in_their_dtype() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["base", "m0", "m1"] {
        std::fs::copy(data().join(format!("inputs/{name}.safetensors")), folder.path().join(format!("{name}.safetensors")))
            .expect("a copy");
        let whole = Checkpoint::open(data().join(format!("inputs/{name}.safetensors"))).expect("a model");
        let mut bytes: BTreeMap<&String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
        for (tensor, t) in &whole.tensors {
            let mut out = Vec::new();
            mergeql_tensors::dtype::encode(mergeql_tensors::dtype::Dtype::BF16, &t.all().expect("floats"), &mut out).expect("bf16");
            bytes.insert(tensor, (t.shape.clone(), out));
        }
        let views = bytes.iter().map(|(name, (shape, bytes))| {
            (
                name.to_string(),
                safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes).expect("a tensor"),
            )
        });
        safetensors::serialize_to_file(views, None, &folder.path().join(format!("{name}_16.safetensors"))).expect("a file");
    }
    let run = |suffix: &str| {
        let config = format!(
            "merge_method: ties\nbase_model: base{suffix}.safetensors\ndtype: bfloat16\nmodels:\n  - {{model: m0{suffix}.safetensors, parameters: {{weight: 0.4, density: 0.5}}}}\n  \
             - {{model: m1{suffix}.safetensors, parameters: {{weight: 0.7, density: 0.5}}}}\n"
        );
        let out = folder.path().join(format!("out{suffix}"));
        mergeql_tensors::mergekit::run(&config, folder.path(), &out, &Options::default(), |_| ()).expect("a merge");
        load(&out)
    };
    assert_eq!(run(""), run("_16"));
}

#[test]
fn what_a_config_says_in_vain_is_said() {
    let config = "merge_method: linear\ndtype: float32\nmystery: 3\nmodels:\n  - {model: m0.safetensors, parameters: {weight: 0.4, densty: 1}}\n  - model: m1.safetensors\n";
    let folder = tempfile::tempdir().expect("a folder");
    let inputs = data().join("inputs");
    let merged = mergeql_tensors::mergekit::run(config, &inputs, &folder.path().join("out"), &Options::default(), |_| ());
    let notes = merged.expect("a merge").notes.join("\n");
    for part in ["no `mystery`", "no parameter `densty`", "`m1.safetensors` has no weight"] {
        assert!(notes.contains(part), "{part} is not in {notes}");
    }
}

#[test]
fn a_repeated_model_fits_where_few_are_taken() {
    let twice = ask("nuslerp", &[], &["m0", "m1", "m0"], None);
    assert_eq!(resolve(twice).expect("two models"), resolve(ask("nuslerp", &[], &["m0", "m1"], None)).expect("two models"));
}

#[test]
fn what_was_merged_is_kept_for_the_next_merge() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    let sealed = |models: &[&str], density: f64, scope: &str| {
        let params = [("density", number(density)), ("scope", Value::Text(scope.into()))];
        let mut request = ask("ties", &params, models, Some("base"));
        request.options.cache = Some(cache.clone());
        Sealed::new(Plan::new(request).expect("a plan")).expect("a set")
    };
    let entries = || {
        let mut all: Vec<_> = std::fs::read_dir(&cache).expect("a cache").map(|e| e.expect("an entry").path()).collect();
        all.sort();
        all
    };
    let tensors = sealed(&["m0"], 0.5, "tensor").plan.tasks.len();
    let both = run::hashes(&sealed(&["m0", "m1"], 0.5, "tensor")).expect("hashes");
    assert_eq!(entries().len(), tensors);
    let one_model = run::hashes(&sealed(&["m0"], 0.5, "tensor")).expect("hashes");
    assert_ne!(one_model, both);
    assert_eq!(entries().len(), 2 * tensors);
    // Adding the model again, in any order, computes nothing: what is in the cache is what comes out, and is checked.
    let marked = std::time::SystemTime::UNIX_EPOCH;
    entries()
        .iter()
        .for_each(|path| std::fs::File::options().append(true).open(path).and_then(|f| f.set_modified(marked)).expect("a time"));
    assert_eq!(run::hashes(&sealed(&["m1", "m0"], 0.5, "tensor")).expect("hashes"), both);
    let used = entries().iter().filter(|p| p.metadata().and_then(|m| m.modified()).expect("a time") != marked).count();
    assert_eq!((entries().len(), used), (2 * tensors, tensors));
    for path in entries() {
        let mut bytes = std::fs::read(&path).expect("an entry");
        *bytes.last_mut().expect("a byte") ^= 1;
        std::fs::write(&path, bytes).expect("an entry");
    }
    assert_eq!(run::hashes(&sealed(&["m0", "m1"], 0.5, "tensor")).expect("hashes"), both, "a damaged entry is none");
    // An entry under another's name is none.
    let same = |path: &std::path::PathBuf| path.metadata().expect("an entry").len();
    let all = entries();
    let pair = all.iter().enumerate().find_map(|(i, a)| Some((a, all[i + 1..].iter().find(|b| same(b) == same(a))?)));
    let (one, two) = pair.expect("two of a size");
    std::fs::copy(one, two).expect("a copy");
    assert_eq!(run::hashes(&sealed(&["m0", "m1"], 0.5, "tensor")).expect("hashes"), both);
    assert_eq!(run::hashes(&sealed(&["m0"], 0.5, "tensor")).expect("hashes"), one_model);
    // Other parameters are other entries, and what looks at whole models depends on all tensors.
    let global = run::hashes(&sealed(&["m0", "m1"], 0.5, "model")).expect("hashes");
    assert_eq!(run::hashes(&sealed(&["m0", "m1"], 0.5, "model")).expect("hashes"), global);
    assert_eq!(entries().len(), 3 * tensors);
    // Beyond its size the cache drops what was not used for the longest time.
    let mut request = ask("linear", &[], &["m0"], None);
    (request.options.cache, request.options.cache_size) = (Some(cache.clone()), 1);
    run::hashes(&Sealed::new(Plan::new(request).expect("a plan")).expect("a set")).expect("hashes");
    assert_eq!(entries().len(), 0);
}

#[test]
fn the_semantics_are_part_of_what_a_merge_is() {
    let hash = |semantics: Semantics| {
        let mut request = ask("dare_linear", &[("density", number(0.5))], &["m0"], Some("base"));
        request.options.semantics = semantics;
        Sealed::new(Plan::new(request).expect("a plan")).expect("a set").hash
    };
    assert_ne!(hash(Semantics::Paper), hash(Semantics::Mergekit));
}
