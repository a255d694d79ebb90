//! Configs of mergekit, run as they are, against what mergekit wrote (`tests/data/e2e/manifest.json`).

use crate::cases::{data, misses};
use mergeql_tensors::checkpoint::Checkpoint;
use mergeql_tensors::plan::Options;
use mergeql_tensors::{mergekit, tokenizer};
use serde_json::Value as Json;
use std::collections::BTreeMap;

fn json(path: &std::path::Path) -> Json {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a file")).expect("JSON")
}

#[test]
fn configs_give_what_mergekit_gives() {
    let folder = data().join("e2e");
    let manifest = json(&folder.join("manifest.json"));
    let mut failures = Vec::new();
    for case in manifest["cases"].as_array().expect("cases") {
        let id = case["id"].as_str().expect("an id");
        let out = tempfile::tempdir().expect("a folder");
        let out = out.path().join(id);
        let config = std::fs::read_to_string(folder.join(case["config"].as_str().expect("a config"))).expect("a config");
        if let Err(e) = mergekit::run(&config, &folder, &out, &Options::default(), |_| ()) {
            failures.push(format!("{id}: {e}"));
            continue;
        }
        let got = Checkpoint::open(&out).expect("an output");
        let expected = Checkpoint::open(folder.join(case["expected"].as_str().expect("a file"))).expect("tensors");
        let names: Vec<&String> = got.tensors.keys().collect();
        assert_eq!(names, expected.tensors.keys().collect::<Vec<_>>(), "{id}");
        let vocabulary = case.get("expected_vocab").map(|wanted| {
            let wanted: BTreeMap<String, u32> = serde_json::from_value(wanted.clone()).expect("tokens");
            let own = tokenizer::vocabulary(&json(&out.join("tokenizer.json"))).expect("tokens");
            assert_eq!(own.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{id}");
            (own, wanted)
        });
        let config = json(&out.join("config.json"));
        if let Some(layers) = case.get("out_num_hidden_layers") {
            assert_eq!(config["num_hidden_layers"], *layers, "{id}");
        }
        if let Some(shape) = case.get("embed_shape") {
            assert_eq!(config["vocab_size"], shape[0], "{id}");
        }
        for (name, want) in &expected.tensors {
            let tensor = &got.tensors[name];
            assert_eq!((&tensor.shape, tensor.dtype), (&want.shape, want.dtype), "{id} {name}");
            let (mut mine, wanted) = (tensor.all().expect("floats"), want.all().expect("floats"));
            if let (Some((own, wanted)), true) = (&vocabulary, tokenizer::has_rows(name)) {
                // Compared by token, for the order of a union's tokens is each tool's own.
                let width = tensor.shape[1];
                let rows = mine.clone();
                for (token, at) in wanted {
                    let (to, from) = (*at as usize * width, own[token] as usize * width);
                    mine[to..to + width].copy_from_slice(&rows[from..from + width]);
                }
            }
            let (count, line) = misses(&mine, &wanted, &case["tolerance"]);
            if count > 0 {
                failures.push(format!("{id}: {name}: {count} of {} elements, {line}", wanted.len()));
            }
        }
        let card = std::fs::read_to_string(out.join("README.md")).expect("a card");
        assert!(card.contains("- Set (root over the contributions): `"), "{card}");
        assert!(!out.join(".stages").exists());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A model as a folder: one matrix, a config of its tokenizer with a template of chats.
fn with_template(folder: &std::path::Path, name: &str, value: f32, template: Option<&str>) {
    let own = folder.join(name);
    std::fs::create_dir_all(&own).expect("a folder");
    let tensors = BTreeMap::from([("model.layers.0.q_proj.weight".to_owned(), (vec![2, 3], vec![value; 6]))]);
    crate::properties::write(&own.join("model.safetensors"), &tensors);
    let config = serde_json::json!({ "chat_template": template, "eos_token": "</s>" });
    std::fs::write(own.join("tokenizer_config.json"), config.to_string()).expect("a config");
}

#[test]
fn adapters_stand_behind_their_base_and_chats_have_a_template() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, value, template) in [("a", 1.0, Some("{{ x }}")), ("b", 2.0, Some("{{ y }}")), ("c", 3.0, Some("{{ y }}"))] {
        with_template(folder.path(), name, value, template);
    }
    let adapter = folder.path().join("adapter");
    std::fs::create_dir_all(&adapter).expect("a folder");
    let factors = BTreeMap::from([
        ("base_model.model.model.layers.0.q_proj.lora_A.weight".to_owned(), (vec![1, 3], vec![1.0, 2.0, 3.0])),
        ("base_model.model.model.layers.0.q_proj.lora_B.weight".to_owned(), (vec![2, 1], vec![10.0, 20.0])),
    ]);
    crate::properties::write(&adapter.join("adapter_model.safetensors"), &factors);
    std::fs::write(adapter.join("adapter_config.json"), r#"{"lora_alpha": 2, "r": 1}"#).expect("a config");
    let run = |template: &str| {
        let config = format!(
            "merge_method: linear\nchat_template: {template}\nmodels:\n  - {{model: a+adapter, parameters: {{weight: 1}}}}\n  - {{model: b, parameters: {{weight: 1}}}}\n  - {{model: c, parameters: {{weight: 2}}}}\n"
        );
        let out = folder.path().join("out");
        let options = Options { overwrite: true, ..Options::default() };
        mergekit::run(&config, folder.path(), &out, &options, |_| ()).map(|merged| (merged, out))
    };
    let (_, out) = run("auto").expect("a merge");
    let merged = Checkpoint::open(&out).expect("a model").tensors["model.layers.0.q_proj.weight"].all().expect("numbers");
    let change = [20.0, 40.0, 60.0, 40.0, 80.0, 120.0];
    assert_eq!(merged, change.map(|c| (1.0 + c + 2.0 + 2.0 * 3.0) / 4.0));
    let template = || std::fs::read_to_string(out.join("chat_template.jinja")).expect("a template");
    assert_eq!(template(), "{{ y }}", "that of most models");
    assert_eq!(json(&out.join("tokenizer_config.json")), serde_json::json!({ "eos_token": "</s>" }));
    run("\"{% for m in messages %}{{ m }}{% endfor %}\"").expect("a merge");
    assert_eq!(template(), "{% for m in messages %}{{ m }}{% endfor %}");
    // No statement stands for such a config.
    for config in ["models: [{model: a+adapter}]", "chat_template: auto\nmodels: [{model: a}]"] {
        let config = mergekit::Config::parse(&format!("merge_method: linear\n{config}\n")).expect("a config");
        let error = config.statement(folder.path(), "out/").expect_err("no statement");
        assert!(error.message.contains("a statement has no"), "{error}");
    }
    // By itself an adapter is no model: its factors are never averaged.
    let config = "merge_method: linear\nmodels:\n  - {model: adapter, parameters: {weight: 1}}\n";
    let error = mergekit::run(config, folder.path(), &out, &Options::default(), |_| ()).expect_err("no base");
    assert!(error.help.unwrap_or_default().contains("base+adapter"));
    let error = run("chatml").expect_err("a name");
    assert!(error.message.contains("`chatml` is not built in"), "{error}");
}
