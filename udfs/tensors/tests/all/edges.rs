//! Where definitions end: densities of 0 and 1, opposite vectors, changes that are none, NaN that is let through, and what configs of
//! mergekit leave unsaid. The numbers are those of mergekit 0.1.5, computed by hand from what it documents.

use crate::cases::resolve;
use crate::properties::write;
use mergeql_tensors::checkpoint::Checkpoint;
use mergeql_tensors::mergekit;
use mergeql_tensors::method::{Semantics, Value};
use mergeql_tensors::plan::{Model, Options, Request, Rule};
use mergeql_udfs::Error;
use std::collections::BTreeMap;
use std::path::Path;

fn as_mergekit() -> Options {
    Options { semantics: Semantics::Mergekit, ..Options::default() }
}

/// One tensor of one axis in each model, and in the base.
fn merged(
    strategy: &str,
    params: &[(&str, Value)],
    models: &[&[f32]],
    base: Option<&[f32]>,
    options: Options,
) -> Result<Vec<f32>, Error> {
    let folder = tempfile::tempdir().expect("a folder");
    let open = |name: &str, values: &[f32]| {
        let path = folder.path().join(format!("{name}.safetensors"));
        write(&path, &BTreeMap::from([("t".to_owned(), (vec![values.len()], values.to_vec()))]));
        Model::new(name, Checkpoint::open(&path).expect("a model").lenient(options.propagate_nan))
    };
    let params = params.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let request = Request {
        models: models.iter().enumerate().map(|(i, values)| open(&format!("m{i}"), values)).collect(),
        base: base.map(|values| open("base", values)),
        rules: vec![Rule { pattern: "*".into(), strategy: strategy.into(), params }],
        options,
    };
    resolve(request).map(|mut tensors| tensors.remove("t").expect("the tensor"))
}

fn near(got: &[f32], want: &[f32]) {
    assert!(got.len() == want.len() && got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?} for {want:?}");
}

const NONE: &[(&str, Value)] = &[];
const ZEROS: &[f32] = &[0.0; 4];

#[test]
fn a_change_that_is_none() {
    let models: [&[f32]; 2] = [&[1e-6, 9e-6, 1.1e-5, 1e-3], &[1.0; 4]];
    near(&merged("ram", NONE, &models, Some(ZEROS), as_mergekit()).expect("a merge"), &[1.0, 1.0, 0.500_005_5, 0.5005]);
    let none = [("epsilon", Value::Number(0.0))];
    near(&merged("ram", &none, &models, Some(ZEROS), Options::default()).expect("a merge")[..1], &[0.500_000_5]);
    // The entries of one model alone are scaled by 1 + r min(shared / alone, alpha).
    let plus: [&[f32]; 2] = [&[2.0, 1.0, 1e-6, 0.0], &[4.0, 1e-6, 3.0, 3.0]];
    near(&merged("ram_plus", NONE, &plus, Some(ZEROS), as_mergekit()).expect("a merge"), &[3.0, 1.02, 3.06, 3.06]);
}

#[test]
fn opposite_vectors() {
    let karcher = |values: [f32; 3], options| merged("karcher", NONE, &[&values[..1], &values[1..2], &values[2..]], None, options);
    for options in [as_mergekit(), Options::default()] {
        near(&karcher([-0.4416, -0.2906, 0.9792], options.clone()).expect("a mean"), &[-0.570_467]);
        near(&karcher([-1.518, 0.4257, 1.1187], options).expect("a mean"), &[1.0208]);
    }
    // Nothing counts in the mean length.
    near(&merged("karcher", NONE, &[&[0.0, 0.0], &[3.0, 4.0]], None, as_mergekit()).expect("a mean"), &[1.5, 2.0]);
    let opposite: [&[f32]; 2] = [&[1.0, 2.0], &[-1.0, -2.0]];
    for strategy in ["karcher", "nuslerp", "multislerp"] {
        let error = merged(strategy, NONE, &opposite, None, Options::default()).expect_err("no direction");
        assert!(error.help.unwrap_or_default().contains("linear"), "{strategy}: {}", error.message);
        merged(strategy, NONE, &opposite, None, as_mergekit()).expect("mergekit takes the line");
    }
    let zero = [("weight", Value::List(vec![Value::Number(1.0), Value::Number(-1.0)]))];
    for (strategy, params) in [("nuslerp", &zero[..]), ("task_arithmetic", &[zero[0].clone(), ("normalize", Value::Flag(true))])] {
        let models: [&[f32]; 2] = [&[1.0, 2.0], &[2.0, 1.0]];
        let error = merged(strategy, params, &models, Some(&[0.0, 0.0]), Options::default()).expect_err("nothing to divide by");
        assert!(error.message.contains("sum to zero"), "{strategy}: {}", error.message);
        merged(strategy, params, &models, Some(&[0.0, 0.0]), as_mergekit()).expect("mergekit divides by 1");
    }
}

#[test]
fn densities_of_none_and_all() {
    let models: [&[f32]; 2] = [&[1.0, -4.0, 2.0, 3.0], &[4.0, 1.0, -1.0, 2.0]];
    let density = |value: f64| [("density", Value::Number(value))];
    near(&merged("ties", &density(0.0), &models, Some(ZEROS), as_mergekit()).expect("a merge"), ZEROS);
    near(&merged("ties", &density(0.0), &models, Some(ZEROS), Options::default()).expect("a merge"), &[4.0, -4.0, 0.0, 0.0]);
    near(&merged("della_linear", NONE, &models, Some(ZEROS), as_mergekit()).expect("a merge"), &[5.0, -3.0, 1.0, 5.0]);
    near(&merged("della_linear", &density(0.0), &models, Some(ZEROS), as_mergekit()).expect("a merge"), ZEROS);
    // Of 1, -4, 2, 3 the quarter that is greatest falls, two of the rest stay, scaled from 5 to 10.
    let params = [density(0.5)[0].clone(), ("gamma", Value::Number(0.25)), ("rescale", Value::Flag(true))];
    near(&merged("breadcrumbs", &params, &models[..1], Some(ZEROS), as_mergekit()).expect("a merge"), &[0.0, 0.0, 4.0, 6.0]);
}

#[test]
fn nan_that_is_let_through_stays() {
    let options = || Options { propagate_nan: true, ..Options::default() };
    let models: [&[f32]; 2] = [&[f32::NAN, 1.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]];
    for strategy in ["ties", "breadcrumbs_ties", "dare_ties", "task_arithmetic", "linear"] {
        let got = merged(strategy, NONE, &models, Some(ZEROS), options()).expect("a merge");
        assert!(got[0].is_nan() && got[1..].iter().all(|v| v.is_finite()), "{strategy}: {got:?}");
    }
}

/// The weights that stand behind the models are used, or there is an error: never some of them.
#[test]
fn examples_and_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.safetensors");
    write(&path, &BTreeMap::from([("t".to_owned(), (vec![1], vec![1.0]))]));
    let model = |name: &str| Model { weight: Some(1.0), ..Model::new(name, Checkpoint::open(&path).expect("a model")) };
    let params = [("num_samples".to_owned(), Value::List(vec![Value::Number(1.0), Value::Number(3.0)]))];
    let rules = vec![Rule { pattern: "*".into(), strategy: "fedavg".into(), params: params.into_iter().collect() }];
    let request = Request { models: vec![model("a"), model("b")], base: None, rules, options: Options::default() };
    assert!(resolve(request).expect_err("two kinds of weights").message.contains("have weights"));
}

/// A model of as many layers as there are values, each of one number; what else it has beside them.
fn layers(folder: &Path, name: &str, values: &[f32], others: &[(&str, f32)]) {
    let own = folder.join(name);
    std::fs::create_dir_all(&own).expect("a folder");
    let of_layer = |(i, value): (usize, &f32)| (format!("model.layers.{i}.mlp.up_proj.weight"), (vec![1], vec![*value]));
    let beside = others.iter().map(|(name, value)| ((*name).to_owned(), (vec![1], vec![*value])));
    let tensors: BTreeMap<String, _> = values.iter().enumerate().map(of_layer).chain(beside).collect();
    write(&own.join("model.safetensors"), &tensors);
    std::fs::write(own.join("config.json"), format!(r#"{{"model_type": "llama", "num_hidden_layers": {}}}"#, values.len()))
        .expect("a config");
}

fn run(folder: &Path, config: &str) -> BTreeMap<String, f32> {
    let options = Options { overwrite: true, ..Options::default() };
    mergekit::run(config, folder, &folder.join("out"), &options, |_| ()).expect("a merge");
    let out = Checkpoint::open(folder.join("out")).expect("a model");
    out.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.all().expect("numbers")[0])).collect()
}

#[test]
fn what_configs_leave_unsaid() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let head = [("model.embed_tokens.weight", 8.0), ("lm_head.weight", 2.0), ("model.layers.0.self_attn.rotary_emb.inv_freq", 1.0)];
    layers(folder, "a", &[1.0, 2.0, 3.0, 4.0], &head);
    layers(folder, "b", &[10.0, 20.0, 30.0, 40.0], &[("model.embed_tokens.weight", 4.0)]);
    layers(folder, "base", &[0.0; 4], &[("model.embed_tokens.weight", 0.0), ("lm_head.weight", 0.0)]);
    let layer = |i: usize| format!("model.layers.{i}.mlp.up_proj.weight");

    // A filter of a model's own parameter is one of its own tensors: layer 2 of it becomes layer 0 of the result.
    let slices = "merge_method: passthrough\nslices:\n  - sources:\n      - {model: a, layer_range: [2, 4], parameters: {scale: [{filter: layers.3, value: 0.5}, {value: 1}]}}\n";
    let got = run(folder, slices);
    assert_eq!((got[&layer(0)], got[&layer(1)]), (3.0, 2.0));

    // A slice has a base of its own.
    let slices = "merge_method: task_arithmetic\nbase_model: base\nparameters: {weight: 1}\nslices:\n  - base_model: a\n    sources:\n      - {model: b, layer_range: [0, 4]}\n      - {model: a, layer_range: [0, 4]}\n      - {model: base, layer_range: [0, 4]}\n";
    assert_eq!(run(folder, slices)[&layer(1)], 2.0 + 18.0 - 2.0);

    // A base that the models do not name is one of them, to a method that works on none.
    let linear = "merge_method: linear\nbase_model: base\nparameters: {weight: 1}\nmodels:\n  - model: a\n  - model: b\n";
    let got = run(folder, linear);
    assert_eq!(got[&layer(0)], 11.0 / 3.0);
    // Who has no head uses the embeddings for it. Buffers are no weights.
    assert_eq!(got["lm_head.weight"], (2.0 + 4.0 + 0.0) / 3.0);
    assert!(got.keys().all(|name| !name.contains("rotary")));
}

#[test]
fn doubles_that_pass_through_stay_what_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.safetensors");
    let values = [0.1_f64, 1e30, -5e-324];
    let header = br#"{"t":{"dtype":"F64","shape":[3],"data_offsets":[0,24]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    std::fs::write(&path, file).expect("a file");
    let request = Request {
        models: vec![Model::new("a", Checkpoint::open(&path).expect("a model"))],
        base: None,
        rules: vec![Rule { pattern: "*".into(), strategy: "passthrough".into(), params: BTreeMap::new() }],
        options: Options::default(),
    };
    let plan = mergeql_tensors::plan::Plan::new(request).expect("a plan");
    let sealed = mergeql_tensors::sealed::Sealed::new(plan).expect("hashes");
    let bytes = &mergeql_tensors::run::resolve(&sealed).expect("a merge")["t"];
    assert_eq!(bytes[..], values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()[..]);
}

/// Matrices of two rows in files of their own: models, the base, and files beside them.
fn matrices(
    strategy: &str,
    params: &[(&str, Value)],
    models: &[&[f32]],
    base: &[f32],
    options: Options,
) -> Result<Vec<f32>, Error> {
    let folder = tempfile::tempdir().expect("a folder");
    let open = |name: &str, values: &[f32]| {
        let path = folder.path().join(format!("{name}.safetensors"));
        write(&path, &BTreeMap::from([("t".to_owned(), (vec![2, values.len() / 2], values.to_vec()))]));
        Model::new(name, Checkpoint::open(&path).expect("a model").lenient(options.propagate_nan))
    };
    let base = open("base", base);
    let params = params.iter().map(|(name, value)| match value {
        Value::Text(file) if file == "ZEROS" => {
            let zeros = open("zeros", &vec![0.0; models[0].len()]).checkpoint.path;
            ((*name).to_owned(), Value::Text(zeros.display().to_string()))
        }
        value => ((*name).to_owned(), value.clone()),
    });
    let request = Request {
        models: models.iter().enumerate().map(|(i, values)| open(&format!("m{i}"), values)).collect(),
        rules: vec![Rule { pattern: "*".into(), strategy: strategy.into(), params: params.collect() }],
        base: Some(base),
        options,
    };
    resolve(request).map(|mut tensors| tensors.remove("t").expect("the tensor"))
}

#[test]
fn small_changes_are_changes() {
    let models: [&[f32]; 2] = [&[1e-4, 2e-4, 0.0, 1e-4], &[1e-4, 2e-4, 0.0, 1e-4]];
    // Models that agree: all of their mean.
    let stock = merged("model_stock", NONE, &models, Some(ZEROS), Options::default()).expect("a merge");
    assert!(stock.iter().zip(models[0]).all(|(g, w)| (g - w).abs() < 1e-9), "{stock:?}");
    let mergekits = merged("model_stock", NONE, &models, Some(ZEROS), as_mergekit()).expect("a merge");
    assert!(mergekits[1] < 1.9e-4, "it takes short vectors for unlike ones: {mergekits:?}");
    // Weighted by the mean squares: 1e-10 and 1e-8.
    let sce = merged("sce", NONE, &[&[1e-5; 4], &[1e-4; 4]], Some(ZEROS), Options::default()).expect("a merge");
    assert!((sce[0] - 9.910_891e-5).abs() < 1e-10, "{sce:?}");
    // Entries that no model changed stay as they are, among others that vary.
    let frozen = merged("sce", NONE, &[&[0.0, 1.0, 0.0, 2.0], &[0.0, 2.0, 0.0, 1.0]], Some(&[0.5; 4]), Options::default());
    let unchanged = merged("sce", NONE, &[&[0.5, 1.0, 0.5, 2.0], &[0.5, 2.0, 0.5, 1.0]], Some(&[0.5; 4]), Options::default());
    assert!(frozen.expect("a merge").iter().all(|v| v.is_finite()));
    assert_eq!(unchanged.expect("a merge")[..3].to_vec(), [0.5, 1.5, 0.5]);
    // What is found does not depend on the unit.
    let (one, other) = ([3.0, 1.0, -2.0, 0.5, 1.0, 4.0], [0.5, -1.0, 2.0, 2.0, 0.0, 1.0]);
    let usual = matrices("dual_projection", NONE, &[&one, &other], &[0.0; 6], Options::default()).expect("a merge");
    let small = [one, other].map(|m| m.map(|v| v * 1e-6));
    let small = matrices("dual_projection", NONE, &[&small[0], &small[1]], &[0.0; 6], Options::default()).expect("a merge");
    assert!(small.iter().zip(&usual).all(|(s, u)| (s * 1e6 - u).abs() < 1e-4), "{small:?} for {usual:?}");
    // Changes of one direction each are kept.
    let ranks: [&[f32]; 2] = [&[1.0, 0.0, 0.0, 0.0], &[0.0, 0.0, 0.0, 2.0]];
    let kept = matrices("dual_projection", NONE, &ranks, ZEROS, Options::default()).expect("a merge");
    near(&kept, &[1.0, 0.0, 0.0, 2.0]);
}

#[test]
fn an_update_outside_of_the_safe_subspace_is_mixed() {
    let params = [("tau", Value::Number(0.5)), ("unaligned_base", Value::Text("ZEROS".to_owned()))];
    // The base less the unaligned one spans the first row; the update lies in the second.
    let (base, tuned, safe) = ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 5.0, 5.0], [1.0, 1.0, 1.0, 1.0]);
    near(&matrices("safemerge", &params, &[&tuned, &safe], &base, Options::default()).expect("a merge"), &[1.0, 1.0, 3.0, 3.0]);
    near(&matrices("safemerge", &params, &[&base, &safe], &base, Options::default()).expect("a merge"), &base);
}

#[test]
fn nothing_is_decomposed_where_there_is_nothing() {
    for (strategy, models) in
        [("tsv_m", 2), ("dual_projection", 2), ("wudi", 2), ("iso_c", 2), ("knots", 2), ("star", 2), ("opcm", 3)]
    {
        let empty: Vec<&[f32]> = vec![&[]; models];
        let made = matrices(strategy, NONE, &empty, &[], Options::default()).unwrap_or_else(|e| panic!("{strategy}: {e}"));
        assert!(made.is_empty(), "{strategy}");
    }
}

#[test]
fn what_is_not_a_number_stays_none() {
    let options = || Options { propagate_nan: true, ..Options::default() };
    let models: [&[f32]; 3] = [&[f32::NAN, 1.0, 2.0, 3.0], &[1.0, 1.0, 5.0, 3.0], &[2.0, 4.0, 2.0, 3.0]];
    for strategy in ["coordinate_median", "trimmed_mean", "ram", "magmax", "emr", "consensus_ta", "negmerge", "ties", "linear"] {
        let found = merged(strategy, NONE, &models, Some(ZEROS), options()).unwrap_or_else(|e| panic!("{strategy}: {e}"));
        assert!(found[0].is_nan() && found[1..].iter().all(|v| v.is_finite()), "{strategy}: {found:?}");
    }
}

#[test]
fn weights_and_files_that_count_for_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = |name: &str, weight: Option<f64>| {
        let path = folder.path().join(format!("{name}.safetensors"));
        write(&path, &BTreeMap::from([("t".to_owned(), (vec![2], vec![1.0, 2.0]))]));
        Model { weight, ..Model::new(name, Checkpoint::open(&path).expect("a model")) }
    };
    let plan = |strategies: &[(&str, &str)], params: &[(&str, Value)]| {
        let params: BTreeMap<_, _> = params.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
        let rule = |(pattern, strategy): &(&str, &str)| Rule {
            pattern: (*pattern).into(),
            strategy: (*strategy).into(),
            params: params.clone(),
        };
        mergeql_tensors::plan::Plan::new(Request {
            models: vec![open("a", Some(0.5)), open("b", None)],
            base: None,
            rules: strategies.iter().map(rule).collect(),
            options: Options::default(),
        })
    };
    let error = plan(&[("*", "coordinate_median")], NONE).expect_err("no weights");
    assert!(error.message.contains("`coordinate_median` has no use for them"), "{error}");
    let both = plan(&[("x*", "coordinate_median"), ("*", "linear")], NONE).expect("some weigh");
    assert!(both.notes.iter().any(|n| n.contains("count for nothing in `coordinate_median`")), "{:?}", both.notes);
    let error = plan(&[("a[", "linear")], NONE).expect_err("no pattern");
    assert!(error.message.contains("no pattern"), "{error}");
    let three = Value::List(vec![Value::Text("x".into()); 3]);
    let error = plan(&[("*", "fisher")], &[("fisher", three)]).expect_err("three files");
    assert!(error.message.contains("names 3 files for 2 models"), "{error}");
}

#[test]
fn an_index_lists_what_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder.path().join("one.safetensors"), &BTreeMap::from([("t".to_owned(), (vec![2], vec![1.0, 2.0]))]));
    let index = r#"{"weight_map": {"t": "one.safetensors", "u": "one.safetensors"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).expect("an index");
    let error = Checkpoint::open(folder.path()).expect_err("one is missing");
    assert!(error.message.contains("tensor `u`"), "{error}");
}
