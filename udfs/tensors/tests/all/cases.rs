//! The cases of `tests/data/manifest.json`: inputs, parameters and what must come out.

use mergeql_tensors::checkpoint::Checkpoint;
use mergeql_tensors::dtype;
use mergeql_tensors::method::{Params, Semantics, Value};
use mergeql_tensors::plan::{Model, Options, Plan, Request, Rule};
use mergeql_tensors::run;
use mergeql_tensors::sealed::Sealed;
use mergeql_tensors::{align, linalg, lora};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

pub fn manifest() -> Json {
    serde_json::from_str(&std::fs::read_to_string(data().join("manifest.json")).expect("the manifest")).expect("JSON")
}

fn value(json: &Json) -> Value {
    match json {
        Json::Bool(v) => Value::Flag(*v),
        Json::String(v) => Value::Text(v.clone()),
        Json::Array(items) => Value::List(items.iter().map(value).collect()),
        number => Value::Number(number.as_f64().expect("a number")),
    }
}

pub fn model(name: &str) -> Model {
    let checkpoint = Checkpoint::open(data().join(format!("inputs/{name}.safetensors"))).expect("an input");
    Model::new(name, checkpoint)
}

pub fn request(case: &Json) -> Request {
    let texts = |json: &Json| -> Vec<String> {
        json.as_array().into_iter().flatten().map(|v| v.as_str().expect("a name").to_owned()).collect()
    };
    let mut params: Params = case["params"].as_object().expect("parameters").iter().map(|(k, v)| (k.clone(), value(v))).collect();
    for (name, files) in case["extra_inputs"].as_object().into_iter().flatten() {
        let path = |name: &String| Value::Text(data().join(format!("inputs/{name}.safetensors")).to_string_lossy().into_owned());
        params.insert(name.clone(), Value::List(texts(files).iter().map(path).collect()));
    }
    let mergekit = case["provenance"]["kind"] == "mergekit";
    Request {
        models: texts(&case["models"]).iter().map(|name| model(name)).collect(),
        base: case["base"].as_str().map(model),
        rules: vec![Rule { pattern: "*".into(), strategy: case["method"].as_str().expect("a method").into(), params }],
        options: Options { semantics: if mergekit { Semantics::Mergekit } else { Semantics::Paper }, ..Options::default() },
    }
}

pub fn resolve(request: Request) -> Result<BTreeMap<String, Vec<f32>>, mergeql_udfs::Error> {
    let sealed = Sealed::new(Plan::new(request)?)?;
    let bytes = run::resolve(&sealed)?;
    let decode = |task: &mergeql_tensors::plan::Task| {
        let mut values = vec![0.0; task.len()];
        dtype::decode(task.dtype, &bytes[&task.name], &mut values).expect("floats");
        (task.name.clone(), values)
    };
    Ok(sealed.plan.tasks.iter().map(decode).collect())
}

/// How many elements miss, and the worst of them.
pub fn misses(got: &[f32], expected: &[f32], tolerance: &Json) -> (usize, String) {
    let number = |name: &str| tolerance[name].as_f64().unwrap_or(0.0);
    let (mut count, mut worst, mut line) = (0, 0.0, String::new());
    for (at, (g, e)) in got.iter().zip(expected).enumerate() {
        let miss = (f64::from(*g) - f64::from(*e)).abs();
        let allowed = match tolerance["ulp_bf16"].as_f64() {
            Some(ulps) => ulps * f64::from(f32::from_bits((e.abs().to_bits() & 0x7f80_0000).max(0x0080_0000))) / 128.0,
            None => number("atol") + number("rtol") * f64::from(*e).abs(),
        };
        if miss.is_nan() || miss > allowed {
            count += 1;
            if miss > worst || miss.is_nan() {
                worst = miss;
                line = format!("at {at}: {g} for {e}");
            }
        }
    }
    (count + got.len().abs_diff(expected.len()), line)
}

fn expected(case: &Json) -> BTreeMap<String, Vec<f32>> {
    let file = Checkpoint::open(data().join(case["expected"].as_str().expect("a file"))).expect("expected tensors");
    file.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.all().expect("elements"))).collect()
}

#[test]
fn exact_cases() {
    let manifest = manifest();
    let (mut failures, mut passed) = (Vec::new(), 0);
    for case in manifest["cases"].as_array().expect("cases") {
        let (id, method) = (case["id"].as_str().expect("an id"), case["method"].as_str().expect("a method"));
        if case["kind"] != "exact" || method == "procrustes" {
            continue;
        }
        let got = match resolve(request(case)) {
            Ok(got) => got,
            Err(e) => {
                failures.push(format!("{id}: {e}"));
                continue;
            }
        };
        let mut fine = true;
        for (name, want) in expected(case) {
            let (count, line) = misses(&got[&name], &want, &case["tolerance"]);
            // What is trimmed near the threshold may flip with the accuracy of the decomposition: 0.5 % may miss.
            let allowed = if id == "knots_ties_top30" { want.len() / 200 } else { 0 };
            if count > allowed {
                failures.push(format!("{id}: {name}: {count} of {} elements, {line}", want.len()));
                fine = false;
            }
        }
        passed += usize::from(fine);
    }
    assert!(failures.is_empty(), "{passed} passed\n{}", failures.join("\n"));
    assert_eq!(passed, 92);
}

/// The adapters of the cases, in the folders of PEFT.
fn adapters(folder: &Path) -> Vec<Model> {
    let of = |(at, alpha): (usize, f64)| {
        let own = folder.join(format!("lora{at}"));
        std::fs::create_dir_all(&own).expect("a folder");
        std::fs::copy(data().join(format!("inputs/lora{at}.safetensors")), own.join("adapter_model.safetensors")).expect("a copy");
        std::fs::write(own.join("adapter_config.json"), format!(r#"{{"peft_type": "LORA", "lora_alpha": {alpha}}}"#))
            .expect("a config");
        Model::new(format!("lora{at}"), Checkpoint::open(own).expect("an adapter"))
    };
    [8.0, 16.0, 16.0].into_iter().enumerate().map(of).collect()
}

fn product(tensors: &BTreeMap<String, Vec<f32>>, inner: usize) -> Vec<f32> {
    let (a, b) = (&tensors["q.lora_A"], &tensors["q.lora_B"]);
    let (rows, columns) = (b.len() / inner, a.len() / inner);
    let cell =
        |r: usize, c: usize| (0..inner).map(|k| f64::from(b[r * inner + k]) * f64::from(a[k * columns + c])).sum::<f64>() as f32;
    (0..rows * columns).map(|at| cell(at / columns, at % columns)).collect()
}

fn merged_adapter(models: Vec<Model>, strategy: &str, params: Params) -> (BTreeMap<String, Vec<f32>>, usize) {
    let rules = vec![Rule { pattern: "*".into(), strategy: strategy.into(), params }];
    let (plan, config) = lora::plan(Request { models, base: None, rules, options: Options::default() }).expect("a plan");
    let sealed = Sealed::new(plan).expect("adapters");
    let bytes = run::resolve(&sealed).expect("factors");
    let decode = |task: &mergeql_tensors::plan::Task| {
        let mut values = vec![0.0; task.len()];
        dtype::decode(task.dtype, &bytes[&task.name], &mut values).expect("floats");
        (task.name.clone(), values)
    };
    let rank = config["r"].as_u64().expect("a rank");
    assert_eq!(config["lora_alpha"].as_u64(), Some(rank), "the factors are the change itself");
    (sealed.plan.tasks.iter().map(decode).collect(), rank as usize)
}

#[test]
fn adapters_are_merged_as_the_change_that_they_stand_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = manifest();
    let mut passed = 0;
    for case in manifest["cases"].as_array().expect("cases").iter().filter(|c| c["kind"] == "factor") {
        let params: Params = case["params"].as_object().expect("parameters").iter().map(|(k, v)| (k.clone(), value(v))).collect();
        let (tensors, rank) = merged_adapter(adapters(folder.path()), case["method"].as_str().expect("a method"), params);
        let (count, line) = misses(&product(&tensors, rank), &expected(case)["q.delta"], &case["tolerance"]);
        assert_eq!(count, 0, "{}: {line}", case["id"]);
        passed += 1;
    }
    assert_eq!(passed, 4);
    // lora_cat loses nothing, and is the same change as lora_svd of full rank.
    let weight = || Params::from([("weight".to_owned(), Value::List([0.5, 0.3, 0.2].map(Value::Number).to_vec()))]);
    let (cat, cat_rank) = merged_adapter(adapters(folder.path()), "lora_cat", weight());
    let (svd, svd_rank) = merged_adapter(adapters(folder.path()), "lora_svd", weight());
    let near = serde_json::json!({ "rtol": 1e-4, "atol": 1e-6 });
    assert_eq!((cat_rank, misses(&product(&cat, cat_rank), &product(&svd, svd_rank), &near).0), (28, 0));
}

/// (A, B) and (G A, B G^-1) are one change: here G turns the sign.
#[test]
fn an_adapter_and_the_same_with_other_factors() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = || adapters(folder.path()).remove(0);
    let turned = folder.path().join("turned.safetensors");
    let negative = |name: &str| {
        let tensor = first().checkpoint.tensors[name].clone();
        (name.to_owned(), (tensor.shape.clone(), tensor.all().expect("floats").iter().map(|v| -v).collect()))
    };
    crate::properties::write(&turned, &["q.lora_A", "q.lora_B"].map(negative).into_iter().collect());
    std::fs::write(folder.path().join("adapter_config.json"), r#"{"lora_alpha": 8}"#).expect("a config");
    let other = Model::new("other", Checkpoint::open(&turned).expect("an adapter"));
    let same = Model { name: "other".into(), ..first() };
    let (with_other, rank) = merged_adapter(vec![first(), other], "lora_svd", Params::new());
    let (with_same, same_rank) = merged_adapter(vec![first(), same], "lora_svd", Params::new());
    let near = serde_json::json!({ "rtol": 1e-4, "atol": 1e-6 });
    let (product, wanted) = (product(&with_other, rank), product(&with_same, same_rank));
    assert_eq!(misses(&product, &wanted, &near).0, 0);
    assert!(wanted.iter().any(|v| v.abs() > 0.01));
}

#[test]
fn procrustes_turns_one_matrix_onto_another() {
    let manifest = manifest();
    let case = manifest["cases"].as_array().expect("cases").iter().find(|c| c["id"] == "procrustes").expect("the case");
    let input = model("proc").checkpoint;
    let (a, b) = (linalg::matrix(&input.tensors["A"]).expect("a"), linalg::matrix(&input.tensors["B"]).expect("b"));
    let turn = align::procrustes(&a, &b).expect("a turn");
    let want = expected(case);
    assert_eq!(misses(&linalg::elements(turn.as_ref()), &want["R"], &case["tolerance"]), (0, String::new()));
    assert_eq!(misses(&linalg::elements((a * turn).as_ref()), &want["aligned"], &case["tolerance"]), (0, String::new()));
}

/// Keys of PEFT's patterns are regular expressions for the ends of names in the base model.
#[test]
fn scales_of_single_modules() {
    let folder = tempfile::tempdir().expect("a folder");
    let module = "base_model.model.model.layers.0.self_attn.v_proj";
    let factor = |name: &str, shape: [usize; 2]| (format!("{module}.{name}.weight"), (shape.to_vec(), vec![1.0; 4]));
    crate::properties::write(
        &folder.path().join("adapter_model.safetensors"),
        &[factor("lora_A", [2, 2]), factor("lora_B", [2, 2])].into_iter().collect(),
    );
    for (key, scale) in [
        ("v_proj", 10.0),
        (".*v_proj", 10.0),
        (r"model\\.layers\\.\\d+\\.self_attn\\.v_proj", 10.0),
        ("^model.layers.0.self_attn.v_proj", 10.0),
        ("q_proj", 2.0),
        ("proj", 2.0),
    ] {
        let config = format!(r#"{{"r": 2, "lora_alpha": 4, "alpha_pattern": {{"{key}": 20}}}}"#);
        std::fs::write(folder.path().join("adapter_config.json"), config).expect("a config");
        let adapter = Model::new("a", Checkpoint::open(folder.path()).expect("an adapter"));
        let rules = vec![Rule { pattern: "*".into(), strategy: "lora_svd".into(), params: Params::new() }];
        let (plan, _) =
            lora::plan(Request { models: vec![adapter], base: None, rules, options: Options::default() }).expect("a plan");
        let values: Vec<Vec<f32>> = run::resolve(&Sealed::new(plan).expect("hashes"))
            .expect("factors")
            .values()
            .map(|b| b.chunks(4).map(|c| f32::from_le_bytes(c.try_into().expect("4"))).collect())
            .collect();
        // B A of ones has 2 s everywhere; the factors are one direction with that product.
        let (a, b) = (&values[0], &values[1]);
        let inner = a.len() / 2;
        let cell: f32 = (0..inner).map(|k| b[k] * a[2 * k]).sum();
        assert!((cell - 2.0 * scale).abs() < 1e-4, "{key}: {cell}");
    }
    std::fs::write(folder.path().join("adapter_config.json"), "{}").expect("a config");
    let adapter = Model::new("a", Checkpoint::open(folder.path()).expect("an adapter"));
    let rules = vec![Rule { pattern: "*".into(), strategy: "lora_svd".into(), params: Params::new() }];
    let error =
        lora::plan(Request { models: vec![adapter], base: None, rules, options: Options::default() }).expect_err("no scale");
    assert!(error.to_string().contains("lora_alpha"));
}
