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
    for (name, part) in [
        ("chatml", "<|im_start|>"),
        ("llama3", "<|eot_id|>"),
        ("mistral", "[INST]"),
        ("alpaca", "### Response:"),
        ("exaone", "[|endofturn|]"),
    ] {
        run(name).expect("a merge");
        assert!(template().starts_with('{') && template().contains(part), "{name}: {}", template());
    }
    let error = run("chatlm").expect_err("no name");
    assert!(error.message.contains("no template of chats `chatlm`"), "{error}");
    assert!(error.help.unwrap_or_default().contains("chatml, llama3"));
}

type Tensors = Vec<(String, (Vec<usize>, Vec<f32>))>;

/// A model as a folder: its tensors, and files beside them.
fn model(folder: &std::path::Path, name: &str, tensors: Tensors, files: &[(&str, &Json)]) {
    let own = folder.join(name);
    std::fs::create_dir_all(&own).expect("a folder");
    crate::properties::write(&own.join("model.safetensors"), &tensors.into_iter().collect());
    for (file, json) in files {
        std::fs::write(own.join(file), json.to_string()).expect("a file");
    }
}

fn first(out: &std::path::Path, name: &str) -> f32 {
    Checkpoint::open(out).expect("a model").tensors[name].all().expect("numbers")[0]
}

/// What a token stands for, in every model the same.
fn meaning(token: &str) -> f32 {
    token.bytes().fold(0.0, |sum, b| sum * 3.0 + f32::from(b))
}

fn bpe(tokens: &[&str], added: &[(&str, usize)]) -> Json {
    let vocabulary: serde_json::Map<String, Json> = tokens.iter().enumerate().map(|(i, t)| ((*t).to_owned(), i.into())).collect();
    let added: Vec<Json> = added
        .iter()
        .map(|(token, id)| {
            serde_json::json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    serde_json::json!({ "version": "1.0", "added_tokens": added, "model": { "type": "BPE", "vocab": vocabulary, "merges": [] } })
}

/// Readers find every token at the row that stands for it, also added tokens that lie behind a vocabulary which has become longer.
#[test]
fn tokens_are_where_readers_look_for_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let embeddings = |tokens: &[&str]| {
        vec![("model.embed_tokens.weight".to_owned(), (vec![tokens.len(), 1], tokens.iter().map(|t| meaning(t)).collect()))]
    };
    let a = bpe(&["a", "b", "c", "d"], &[("<|end|>", 4)]);
    let b = bpe(&["a", "b", "x", "y", "z"], &[("<|end|>", 5), ("<|pad|>", 6)]);
    let settings = |pad: &str| serde_json::json!({ "pad_token": pad });
    let nothing = serde_json::json!({});
    model(
        folder.path(),
        "a",
        embeddings(&["a", "b", "c", "d", "<|end|>"]),
        &[("tokenizer.json", &a), ("tokenizer_config.json", &settings("none")), ("vocab.json", &nothing)],
    );
    model(
        folder.path(),
        "b",
        embeddings(&["a", "b", "x", "y", "z", "<|end|>", "<|pad|>"]),
        &[("tokenizer.json", &b), ("tokenizer_config.json", &settings("<|pad|>"))],
    );
    for (source, count, pad) in [("union", 9, "none"), ("b", 7, "<|pad|>"), ("base", 5, "none")] {
        let out = folder.path().join(format!("out-{source}"));
        let config = format!(
            "merge_method: linear\nbase_model: a\ntokenizer_source: {source}\nmodels:\n  - {{model: a, parameters: {{weight: 1}}}}\n  - {{model: b, parameters: {{weight: 1}}}}\n"
        );
        mergekit::run(&config, folder.path(), &out, &Options::default(), |_| ()).expect("a merge");
        let rows = Checkpoint::open(&out).expect("a model").tensors["model.embed_tokens.weight"].all().expect("numbers");
        // Readers take the number of an added token from the vocabulary of the model, where it has one, and from nothing else.
        let written = json(&out.join("tokenizer.json"));
        let tokens: BTreeMap<String, usize> = serde_json::from_value(written["model"]["vocab"].clone()).expect("numbers");
        let added =
            written["added_tokens"].as_array().expect("added tokens").iter().map(|t| (t["content"].as_str(), t["id"].as_u64()));
        assert_eq!((tokens.len(), rows.len()), (count, count), "{source}");
        for (token, id) in
            tokens.iter().map(|(t, id)| (t.as_str(), *id)).chain(added.map(|(t, id)| (t.unwrap(), id.unwrap() as usize)))
        {
            assert_eq!(rows[id], meaning(token), "{source}: {token} at {id}");
            assert_eq!(tokens.get(token), Some(&id), "{source}: {token}");
        }
        assert_eq!(json(&out.join("tokenizer_config.json"))["pad_token"], pad, "{source}");
        // Older files of another vocabulary would say something else.
        assert_eq!(out.join("vocab.json").exists(), source == "base", "{source}");
    }
}

/// Slices are of the layers that the config speaks of; what stands behind them goes with the last one, what looks at pictures with the first.
#[test]
fn slices_take_the_layers_of_the_language() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, value) in [("a", 1.0f32), ("b", 2.0)] {
        let scalar = |name: &str, value: f32| (name.to_owned(), (vec![1], vec![value]));
        let layers = |stem: &str, n: usize| -> Tensors {
            (0..n).map(|i| scalar(&format!("{stem}.{i}.w"), 10.0 * value + i as f32)).collect()
        };
        let neox =
            [layers("gpt_neox.layers", 3), vec![scalar("gpt_neox.embed_in.weight", value), scalar("embed_out.weight", value)]]
                .concat();
        let config = serde_json::json!({ "num_hidden_layers": 3, "layer_types": [format!("{name}0"), format!("{name}1"), format!("{name}2")], "tie_word_embeddings": true });
        model(folder.path(), &format!("neox-{name}"), neox, &[("config.json", &config)]);
        let seeing = [
            layers("model.visual.blocks", 2),
            layers("model.language_model.layers", 3),
            vec![scalar("model.language_model.embed_tokens.weight", value)],
        ]
        .concat();
        let config = serde_json::json!({ "text_config": { "num_hidden_layers": 3, "dtype": "bfloat16" } });
        model(folder.path(), &format!("seeing-{name}"), seeing, &[("config.json", &config)]);
    }
    let run = |kind: &str| {
        let out = folder.path().join(format!("out-{kind}"));
        let config = format!(
            "merge_method: passthrough\nslices:\n  - sources: [{{model: {kind}-a, layer_range: [0, 2]}}]\n  - sources: [{{model: {kind}-b, layer_range: [1, 3]}}]\n"
        );
        mergekit::run(&config, folder.path(), &out, &Options::default(), |_| ()).expect("a merge");
        out
    };
    let out = run("neox");
    assert_eq!((first(&out, "gpt_neox.embed_in.weight"), first(&out, "embed_out.weight")), (1.0, 2.0));
    let config = json(&out.join("config.json"));
    assert_eq!(config["layer_types"], serde_json::json!(["a0", "a1", "b1", "b2"]));
    assert_eq!((&config["num_hidden_layers"], &config["tie_word_embeddings"]), (&4.into(), &false.into()));
    let out = run("seeing");
    let tower: Vec<f32> = (0..2).map(|i| first(&out, &format!("model.visual.blocks.{i}.w"))).collect();
    let layers: Vec<f32> = (0..4).map(|i| first(&out, &format!("model.language_model.layers.{i}.w"))).collect();
    assert_eq!((tower, layers), (vec![10.0, 11.0], vec![10.0, 11.0, 21.0, 22.0]));
    let config = json(&out.join("config.json"));
    assert_eq!(config["text_config"], serde_json::json!({ "num_hidden_layers": 4, "dtype": "float32" }));
}

/// As mergekit has them where a config leaves them out: DELLA divides by the weights, and its epsilon is 0.15.
#[test]
fn della_has_mergekits_defaults() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, shift) in [("base", 0.0), ("a", 0.3), ("b", -0.2)] {
        let values = (0..64).map(|i| (i as f32).sin() + shift * (i as f32 + 1.0).cos()).collect();
        model(folder.path(), name, vec![("model.layers.0.w".to_owned(), (vec![8, 8], values))], &[]);
    }
    let run = |of_a: &str, of_b: &str, rest: &str| {
        let out = folder.path().join("out");
        let config = format!(
            "merge_method: della\nbase_model: base\nmodels:\n  - {{model: a, parameters: {{weight: 0.4, density: 0.5{of_a}}}}}\n  - {{model: b, parameters: {{weight: 0.3, density: 0.4{of_b}}}}}\nparameters: {{seed: 3{rest}}}\n"
        );
        let options = Options { overwrite: true, ..Options::default() };
        mergekit::run(&config, folder.path(), &out, &options, |_| ()).expect("a merge");
        Checkpoint::open(&out).expect("a model").tensors["model.layers.0.w"].all().expect("numbers")
    };
    let plain = run("", "", "");
    assert_eq!(plain, run("", "", ", normalize: true"));
    assert_ne!(plain, run("", "", ", normalize: false"));
    assert_eq!(run(", epsilon: 0.1", "", ""), run(", epsilon: 0.1", ", epsilon: 0.15", ""));
}

/// The map form of a model with an adapter is its `base+adapter`.
#[test]
fn models_with_adapters_are_written_in_two_ways() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |model: &str| {
        let config = format!("merge_method: linear\nmodels:\n  - {{model: {model}, parameters: {{weight: 1}}}}\n");
        mergekit::run(&config, folder.path(), &folder.path().join("out"), &Options::default(), |_| ())
            .expect_err("there are no models")
            .message
    };
    assert_eq!(run("{model: m, lora: l}"), run("m+l"));
}

/// Buffers of whole numbers go along as they are, and two layers of one model are two contributions.
#[test]
fn buffers_are_copied_and_layers_of_one_model_count_each() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, v) in [("a", 1.0f32), ("b", 3.0)] {
        let own = folder.path().join(name);
        std::fs::create_dir_all(&own).expect("a folder");
        let floats = [v, v + 6.0].map(|v| v.to_le_bytes().repeat(2));
        let ids: Vec<u8> = (0..4i64).flat_map(i64::to_le_bytes).collect();
        let float =
            |bytes: &'static [u8]| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], bytes).expect("a tensor");
        let floats = floats.map(|bytes| float(bytes.leak()));
        let ids = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![4], ids.leak()).expect("a tensor");
        let [first, second] = floats;
        let tensors = [("model.layers.0.w", first), ("model.layers.1.w", second), ("model.position_ids", ids)];
        safetensors::serialize_to_file(tensors, None, &own.join("model.safetensors")).expect("a file");
    }
    let run = |config: &str| {
        let out = folder.path().join("out");
        let options = Options { overwrite: true, ..Options::default() };
        mergekit::run(config, folder.path(), &out, &options, |_| ()).expect("a merge");
        Checkpoint::open(&out).expect("a model")
    };
    let both = "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 1}}\n  - {model: b, parameters: {weight: 1}}\n";
    let merged = run(both);
    assert_eq!(merged.tensors["model.layers.0.w"].all().expect("numbers"), [2.0; 2]);
    assert_eq!(merged.tensors["model.position_ids"].dtype, mergeql_tensors::dtype::Dtype::I64);
    let halves = "merge_method: linear\nslices:\n  - sources:\n      - {model: a, layer_range: [0, 1], parameters: {weight: 0.5}}\n      - {model: a, layer_range: [1, 2], parameters: {weight: 0.5}}\n";
    assert_eq!(run(halves).tensors["model.layers.0.w"].all().expect("numbers"), [4.0; 2]);
    // A slice of one model is that model's, whatever lies between two; a slice of the base alone is the base's.
    let alone =
        "base_model: a\nslices:\n  - sources: [{model: b, layer_range: [0, 1]}]\n  - sources: [{model: a, layer_range: [1, 2]}]\n";
    let slerp = run(&format!("merge_method: slerp\nparameters: {{t: 0.5}}\n{alone}"));
    assert_eq!(slerp.tensors["model.layers.0.w"].all().expect("numbers"), [3.0; 2]);
    assert_eq!(slerp.tensors["model.layers.1.w"].all().expect("numbers"), [7.0; 2]);
    let ties = run(&format!("merge_method: task_arithmetic\nparameters: {{weight: 1}}\n{alone}"));
    assert_eq!(ties.tensors["model.layers.0.w"].all().expect("numbers"), [3.0; 2]);
    assert_eq!(ties.tensors["model.layers.1.w"].all().expect("numbers"), [7.0; 2]);
}
