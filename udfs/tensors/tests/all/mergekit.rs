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
