//! Adapters beside their base, extraction, names, alignment, corrections and masks.

use crate::cases::{data, model, resolve};
use crate::properties::{near, write};
use mergeql_tensors::checkpoint::Checkpoint;
use mergeql_tensors::lora;
use mergeql_tensors::method::{Params, Value};
use mergeql_tensors::model::{self as whole, Extras};
use mergeql_tensors::plan::{Model, Options, Plan, Request, Rule};
use mergeql_tensors::sealed::Sealed;
use std::collections::BTreeMap;
use std::path::Path;

type Shaped = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.2
        })
        .collect()
}

fn tensors(of: &[(&str, Vec<usize>, u64)]) -> Shaped {
    of.iter().map(|(name, shape, seed)| ((*name).to_owned(), (shape.clone(), numbers(*seed, shape.iter().product())))).collect()
}

pub fn rule(strategy: &str, params: &[(&str, Value)]) -> Vec<Rule> {
    let params: Params = params.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    vec![Rule { pattern: "*".into(), strategy: strategy.into(), params }]
}

fn open(path: &Path) -> Model {
    Model::new(path.file_stem().expect("a name").to_string_lossy(), Checkpoint::open(path).expect("a model"))
}

fn base(folder: &Path) -> (Shaped, Model) {
    let base = tensors(&[
        ("model.layers.0.q_proj.weight", vec![6, 10], 1),
        ("model.layers.0.k_proj.weight", vec![6, 10], 2),
        ("model.norm.weight", vec![10], 3),
        ("score.weight", vec![2, 10], 4),
    ]);
    write(&folder.join("base.safetensors"), &base);
    (base, open(&folder.join("base.safetensors")))
}

fn adapter(folder: &Path, name: &str, seed: u64, config: &str) -> Model {
    let own = folder.join(name);
    std::fs::create_dir_all(&own).expect("a folder");
    let factors = tensors(&[
        ("base_model.model.model.layers.0.q_proj.lora_A.weight", vec![3, 10], seed),
        ("base_model.model.model.layers.0.q_proj.lora_B.weight", vec![6, 3], seed + 1),
        ("base_model.model.score.weight", vec![2, 10], seed + 2),
    ]);
    write(&own.join("adapter_model.safetensors"), &factors);
    std::fs::write(own.join("adapter_config.json"), config).expect("a config");
    open(&own)
}

fn changed(base: &Shaped, adapter: &Model, scale: f64) -> BTreeMap<String, Vec<f32>> {
    let factor = |end: &str| {
        adapter
            .checkpoint
            .get(&format!("base_model.model.model.layers.0.q_proj.lora_{end}.weight"))
            .expect("one")
            .all()
            .expect("numbers")
    };
    let (a, b) = (factor("A"), factor("B"));
    let mut all: BTreeMap<String, Vec<f32>> = base.iter().map(|(name, (_, values))| (name.clone(), values.clone())).collect();
    for (at, v) in all.get_mut("model.layers.0.q_proj.weight").expect("it").iter_mut().enumerate() {
        let product: f64 = (0..3).map(|k| f64::from(b[at / 10 * 3 + k]) * f64::from(a[k * 10 + at % 10])).sum();
        *v = (f64::from(*v) + scale * product) as f32;
    }
    all.insert("score.weight".into(), adapter.checkpoint.get("base_model.model.score.weight").expect("it").all().expect("numbers"));
    all
}

#[test]
fn an_adapter_and_its_base_are_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let (values, base) = base(folder.path());
    let one = adapter(folder.path(), "one", 10, r#"{"peft_type": "LORA", "lora_alpha": 6, "r": 3}"#);
    let two = adapter(folder.path(), "two", 20, r#"{"peft_type": "LORA", "lora_alpha": 6, "r": 3, "use_rslora": true}"#);
    let ask = |models: Vec<Model>, strategy: &str, params: &[(&str, Value)]| Request {
        models,
        base: Some(base.clone()),
        rules: rule(strategy, params),
        options: Options::default(),
    };
    let want = [changed(&values, &one, 2.0), changed(&values, &two, 6.0 / 3.0f64.sqrt())];
    let got = resolve(ask(vec![one.clone()], "linear", &[])).expect("a model");
    assert_eq!(got, want[0], "element for element");
    // Any strategy merges what adapters stand for, to the bits of merging the models themselves.
    let mut whole = Vec::new();
    for (at, name) in ["one", "two"].into_iter().enumerate() {
        let own: Shaped = want[at].iter().map(|(name, v)| (name.clone(), (values[name].0.clone(), v.clone()))).collect();
        write(&folder.path().join(format!("{name}.safetensors")), &own);
        whole.push(open(&folder.path().join(format!("{name}.safetensors"))));
    }
    for strategy in ["task_arithmetic", "ties", "linear", "model_stock"] {
        let of_adapters = resolve(ask(vec![one.clone(), two.clone()], strategy, &[])).expect("a merge");
        let turned = resolve(ask(vec![two.clone(), one.clone()], strategy, &[])).expect("a merge");
        assert_eq!(of_adapters, turned, "{strategy}: order counts for nothing");
        near(&of_adapters, &resolve(ask(whole.clone(), strategy, &[])).expect("a merge"), 1e-6);
    }
    // The scale is part of what an adapter contributes.
    let seal = |model: &Model| Sealed::new(Plan::new(ask(vec![model.clone()], "linear", &[])).expect("a plan")).expect("a set").set;
    let before = seal(&one);
    let other = adapter(folder.path(), "one", 10, r#"{"peft_type": "LORA", "lora_alpha": 7, "r": 3}"#);
    assert_ne!(before, seal(&other));
    // A module that the base lacks, and another shape.
    let narrow = tensors(&[("model.layers.0.k_proj.weight", vec![6, 10], 2), ("score.weight", vec![2, 10], 4)]);
    write(&folder.path().join("narrow.safetensors"), &narrow);
    let request = Request { base: Some(open(&folder.path().join("narrow.safetensors"))), ..ask(vec![one.clone()], "linear", &[]) };
    let error = Plan::new(request).expect_err("no such module");
    assert!(error.message.contains("model.layers.0.q_proj.weight"), "{error}");
    let error = lora::plan(Request { base: None, ..ask(vec![one], "lora_svd", &[]) }).expect_err("whole tensors");
    assert!(error.message.contains("is no factor"), "{error}");
    // Without a base factors are nothing by themselves: neither averaged nor copied.
    for strategy in ["linear", "task_arithmetic"] {
        let error = Plan::new(Request { base: None, ..ask(vec![other.clone(), two.clone()], strategy, &[]) }).expect_err("no base");
        assert!(error.message.contains("never A with A"), "{error}");
    }
}

#[test]
fn merged_adapters_name_every_module_as_a_target() {
    let folder = tempfile::tempdir().expect("a folder");
    let adapter = |name: &str, modules: [&str; 2], seed: u64| {
        let own = folder.path().join(name);
        std::fs::create_dir_all(&own).expect("a folder");
        let factor = |m: &str, end: &str, shape: [usize; 2], seed: u64| {
            (format!("base_model.model.l.0.{m}.lora_{end}.weight"), (shape.to_vec(), numbers(seed, shape[0] * shape[1])))
        };
        let factors = modules.iter().flat_map(|m| [factor(m, "A", [2, 4], seed), factor(m, "B", [3, 2], seed + 1)]);
        write(&own.join("adapter_model.safetensors"), &factors.collect());
        let config = serde_json::json!({ "peft_type": "LORA", "lora_alpha": 4, "r": 2, "target_modules": modules });
        std::fs::write(own.join("adapter_config.json"), config.to_string()).expect("a config");
        open(&own)
    };
    let models = vec![adapter("a", ["q_proj", "v_proj"], 1), adapter("b", ["q_proj", "up_proj"], 5)];
    let request = Request { models, base: None, rules: rule("lora_svd", &[]), options: Options::default() };
    let (_, config) = lora::plan(request).expect("a plan");
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "up_proj", "v_proj"]));
}

#[test]
fn an_adapter_of_layers_that_keep_weights_transposed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (values, _) = base(folder.path());
    let turn = |rows: usize, columns: usize, v: &[f32]| {
        (0..rows * columns).map(|at| v[at % rows * columns + at / rows]).collect::<Vec<f32>>()
    };
    let (plain, turned) = (folder.path().join("plain.safetensors"), folder.path().join("turned.safetensors"));
    let name = "model.layers.0.q_proj.weight";
    let own = &values[name].1;
    let score = ("score.weight".to_owned(), values["score.weight"].clone());
    write(&plain, &BTreeMap::from([(name.to_owned(), (vec![6, 10], own.clone())), score.clone()]));
    write(&turned, &BTreeMap::from([(name.to_owned(), (vec![10, 6], turn(6, 10, own))), score]));
    let merged = |base: &Path, config: &str| {
        let adapter = adapter(folder.path(), "a", 5, config);
        let request =
            Request { models: vec![adapter], base: Some(open(base)), rules: rule("linear", &[]), options: Options::default() };
        resolve(request).expect("a model").remove(name).expect("it")
    };
    let straight = merged(&plain, r#"{"lora_alpha": 3}"#);
    assert_eq!(turn(6, 10, &straight), merged(&turned, r#"{"lora_alpha": 3, "fan_in_fan_out": true}"#));
}

#[test]
fn what_was_changed_by_low_rank_is_extracted_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, base) = base(folder.path());
    let one = adapter(folder.path(), "one", 10, r#"{"lora_alpha": 6}"#);
    let tuned = Request { models: vec![one], base: Some(base.clone()), rules: rule("linear", &[]), options: Options::default() };
    let want = resolve(tuned.clone()).expect("a model");
    let sealed = Sealed::new(Plan::new(tuned).expect("a plan")).expect("a set");
    whole::write(&sealed, &folder.path().join("tuned.safetensors"), &Extras::default(), |_| {}).expect("a file");
    let tuned = open(&folder.path().join("tuned.safetensors"));
    let ask = |rank: f64| Request {
        models: vec![tuned.clone()],
        base: Some(base.clone()),
        rules: rule("lora_extract", &[("rank", Value::Number(rank))]),
        options: Options::default(),
    };
    let (plan, config) = lora::plan(ask(3.0)).expect("a plan");
    assert_eq!((config["r"].as_f64(), config["lora_alpha"].as_f64()), (Some(3.0), Some(3.0)));
    assert_eq!(plan.notes, ["tensor `model.norm.weight` is not in the adapter: it is not the matrix of a linear layer"]);
    let extras = Extras { adapter: Some(config), ..Extras::default() };
    let out = folder.path().join("extracted");
    whole::write(&Sealed::new(plan).expect("a set"), &out, &extras, |_| {}).expect("an adapter");
    let again =
        Request { models: vec![open(&out)], base: Some(base.clone()), rules: rule("linear", &[]), options: Options::default() };
    near(&resolve(again).expect("a model"), &want, 1e-5);
    // Of less rank it is the best approximation, and worse than the whole.
    for (params, message) in [(0.0, "rank 0"), (0.5, "whole number")] {
        let error = lora::plan(ask(params)).expect_err("no rank");
        assert!(error.message.contains(message), "{error}");
    }
    let error = lora::plan(Request { base: None, ..ask(1.0) }).expect_err("no base");
    assert!(error.message.contains("started from"), "{error}");
}

#[test]
fn names_of_other_families_and_matrices_turned_onto_the_base() {
    let folder = tempfile::tempdir().expect("a folder");
    // A rotation of columns takes nothing from a matrix: turned back it is the base.
    let onto = tensors(&[("model.layers.0.mlp.up_proj.weight", vec![8, 4], 1), ("model.norm.weight", vec![4], 2)]);
    write(&folder.path().join("base.safetensors"), &onto);
    let (c, s) = (0.6f32, 0.8f32);
    let rotated: Vec<f32> = onto["model.layers.0.mlp.up_proj.weight"]
        .1
        .chunks(4)
        .flat_map(|r| [c * r[0] - s * r[1], s * r[0] + c * r[1], r[3], r[2]])
        .collect();
    let other = BTreeMap::from([
        ("model.decoder.layers.0.fc1.weight".to_owned(), (vec![8, 4], rotated)),
        ("model.decoder.final_layer_norm.weight".to_owned(), onto["model.norm.weight"].clone()),
    ]);
    write(&folder.path().join("other.safetensors"), &other);
    let ask = |names: &[&str], align: bool| Request {
        models: vec![open(&folder.path().join("other.safetensors"))],
        base: Some(open(&folder.path().join("base.safetensors"))),
        rules: rule("linear", &[]),
        options: Options { names: names.iter().map(|n| (*n).to_owned()).collect(), align, ..Options::default() },
    };
    let want: BTreeMap<String, Vec<f32>> = onto.iter().map(|(name, (_, v))| (name.clone(), v.clone())).collect();
    near(&resolve(ask(&["opt"], true)).expect("a merge"), &want, 1e-5);
    let map = folder.path().join("names.csv");
    std::fs::write(
        &map,
        "from,to\nmodel.decoder.layers.*.fc1.*,model.layers.*.mlp.up_proj.*\nmodel.decoder.final_layer_norm.*, model.norm.*\n",
    )
    .expect("a map");
    let by_file = ask(&[map.to_str().expect("text")], true);
    near(&resolve(by_file).expect("a merge"), &want, 1e-5);
    // Names and turning are part of the merge's hash.
    let hash = |request: Request| Sealed::new(Plan::new(request).expect("a plan")).expect("a set").hash;
    assert_ne!(hash(ask(&["opt"], true)), hash(ask(&["opt"], false)));
    let error = Plan::new(ask(&[], true)).expect_err("other names");
    assert!(error.message.contains("is not in"), "{error}");
    let error = Plan::new(ask(&["gpt5"], true)).expect_err("no family");
    assert!(error.help.unwrap_or_default().contains("gpt_neox"));
    let error = Plan::new(Request { base: None, ..ask(&["opt"], true) }).expect_err("nothing to turn onto");
    assert!(error.message.contains("procrustes"), "{error}");
    // Another shape is listed and takes no part, where that is asked for.
    let wide = BTreeMap::from([
        ("model.layers.0.mlp.up_proj.weight".to_owned(), (vec![8, 5], numbers(1, 40))),
        ("model.norm.weight".to_owned(), (vec![4], numbers(2, 4))),
    ]);
    write(&folder.path().join("wide.safetensors"), &wide);
    let mut request = ask(&[], true);
    request.models.push(open(&folder.path().join("wide.safetensors")));
    request.options.names = vec!["opt".into(), String::new()];
    let error = Plan::new(request.clone()).expect_err("a shape");
    assert!(error.message.contains("is not in wide"), "{error}");
    request.options.merge_present = true;
    let plan = Plan::new(request).expect("a plan");
    assert!(plan.notes.iter().any(|note| note.contains("was not aligned")), "{:?}", plan.notes);
}

#[test]
fn tasks_see_the_unified_model_by_their_masks() {
    let folder = tempfile::tempdir().expect("a folder");
    let names = ["m0", "m1", "m2", "m3"];
    let ask = |params: &[(&str, Value)]| Request {
        models: names.iter().map(|name| model(name)).collect(),
        base: Some(model("base")),
        rules: rule("emr", params),
        options: Options::default(),
    };
    let out = folder.path().join("merged");
    let sealed = Sealed::new(Plan::new(ask(&[("masks", Value::Flag(true))])).expect("a plan")).expect("a set");
    whole::write(&sealed, &out, &Extras::default(), |_| {}).expect("a model");
    let masks = out.join("emr.safetensors");
    let bytes = |path: &Path| std::fs::metadata(path).expect("a file").len();
    let elements: usize = sealed.plan.tasks.iter().map(|t| t.len()).sum();
    assert!(bytes(&masks) < 4 * (elements as u64 / 8 + 1500), "a bit for each entry and model");
    // Tasks are counted in the order of the statement, and so it is part of what the merge is.
    let task = |order: [&str; 2]| {
        let params = [("output", Value::Text("task".into())), ("task", Value::Number(0.0))];
        let request = Request { models: order.iter().map(|name| model(name)).collect(), ..ask(&params) };
        let plan = Plan::new(request).expect("a plan");
        assert!(plan.ordered().contains("emr"));
        Sealed::new(plan).expect("a set").hash
    };
    assert_ne!(task(["m0", "m1"]), task(["m1", "m0"]));
    for (task, name) in names.iter().enumerate() {
        let want = resolve(ask(&[("output", Value::Text("task".into())), ("task", Value::Number(task as f64))])).expect("a task");
        let request = Request {
            models: vec![open(&out)],
            base: Some(model("base")),
            rules: rule(
                "emr_task",
                &[("masks", Value::Text(masks.to_string_lossy().into_owned())), ("task", Value::Text((*name).into()))],
            ),
            options: Options::default(),
        };
        near(&resolve(request.clone()).expect("a task"), &want, 1e-5);
        let mut wrong = request;
        wrong.rules[0].params.insert("task".into(), Value::Text("m9".into()));
        let error = Plan::new(wrong).expect_err("no such task");
        assert!(error.help.unwrap_or_default().contains("m0, m1, m2, m3"));
    }
}

#[test]
fn stored_corrections_are_added() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = Checkpoint::open(data().join("inputs/m0.safetensors")).expect("a model");
    let matrix = file.tensors.values().find(|t| t.shape.len() == 2).expect("a matrix");
    let (rows, columns) = (matrix.shape[0], matrix.shape[1]);
    let path = folder.path().join("corrections.safetensors");
    let stored = tensors(&[]).into_iter().chain([
        (format!("{}.up", matrix.name()), (vec![rows, 2], numbers(1, rows * 2))),
        (format!("{}.down", matrix.name()), (vec![2, columns], numbers(2, columns * 2))),
    ]);
    write(&path, &stored.collect());
    let ask = |strategy: &str, params: &[(&str, Value)]| Request {
        models: vec![model("m0"), model("m1")],
        base: None,
        rules: rule(strategy, params),
        options: Options::default(),
    };
    let mean = resolve(ask("linear", &[])).expect("a mean");
    let got = resolve(ask("surgery", &[("corrections", Value::Text(path.to_string_lossy().into_owned()))])).expect("a merge");
    let (up, down) = (numbers(1, rows * 2), numbers(2, columns * 2));
    for (name, values) in &got {
        for (at, v) in values.iter().enumerate() {
            let change = if name == matrix.name() {
                up[at / columns * 2] * down[at % columns] + up[at / columns * 2 + 1] * down[columns + at % columns]
            } else {
                0.0
            };
            assert!((v - mean[name][at] - change).abs() < 1e-5, "{name} at {at}");
        }
    }
    let error = Plan::new(ask("surgery", &[])).expect_err("no corrections");
    assert!(error.message.contains("corrections"), "{error}");
}

/// Adapters that a pattern finds in several folders have a scale each, though no module is in two of them.
#[test]
fn adapters_of_a_pattern_keep_their_scales() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, module, alpha) in [("a", "q_proj", 16), ("b", "v_proj", 32)] {
        let own = folder.path().join(name);
        std::fs::create_dir_all(&own).expect("a folder");
        let name = |end: &str| format!("base_model.model.model.layers.0.{module}.lora_{end}.weight");
        let factors = BTreeMap::from([(name("A"), (vec![1, 2], vec![1.0, 0.0])), (name("B"), (vec![2, 1], vec![1.0, 0.0]))]);
        write(&own.join("adapter_model.safetensors"), &factors);
        let config = format!(r#"{{"peft_type": "LORA", "lora_alpha": {alpha}, "r": 1}}"#);
        std::fs::write(own.join("adapter_config.json"), config).expect("a config");
    }
    let pattern = folder.path().join("*/adapter_model.safetensors");
    let found = mergeql_tensors::request::open(pattern.to_str().expect("text"), None, None).expect("adapters");
    assert_eq!(found.len(), 2);
}

#[test]
fn factors_take_no_options_that_mean_nothing_to_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = adapter(folder.path(), "one", 10, r#"{"peft_type": "LORA", "lora_alpha": 6, "r": 3}"#);
    let mut model = Model { weight: Some(0.9), ..one };
    model.checkpoint.tensors.retain(|name, _| name.contains("lora"));
    let ask = |options: Options, params: &[(&str, Value)]| {
        let rules = rule("lora_svd", params);
        lora::plan(Request { models: vec![model.clone()], base: None, rules, options }).map(drop)
    };
    assert_eq!(ask(Options::default(), &[]), Ok(()));
    let aligned = ask(Options { align: true, ..Options::default() }, &[]).expect_err("an option").to_string();
    assert!(aligned.contains("align"), "{aligned}");
    let weights = ask(Options::default(), &[("weight", Value::List(vec![Value::Number(1.0)]))]).expect_err("two").to_string();
    assert!(weights.contains("have weights"), "{weights}");
}
