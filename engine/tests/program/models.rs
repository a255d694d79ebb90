//! Models in and out.

use super::{failure, run, stdout};
use std::path::Path;
use std::process::{Command, Stdio};

fn tensors() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../udfs/tensors/tests/data")
}

/// The folder that the page on models speaks of.
fn models() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        let to = folder.path().join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(tensors().join(from), to).unwrap();
    };
    for (from, to) in [("base", "base"), ("m0", "math"), ("m1", "code/model"), ("m2", "chat")] {
        copy(&format!("inputs/{from}.safetensors"), &format!("{to}.safetensors"));
    }
    for (from, to) in [("lora0", "a"), ("lora1", "b")] {
        copy(&format!("inputs/{from}.safetensors"), &format!("adapters/{to}/adapter_model.safetensors"));
        std::fs::write(folder.path().join(format!("adapters/{to}/adapter_config.json")), "{\"lora_alpha\": 8}").unwrap();
    }
    // What they were trained on: one matrix of zeros.
    let header = r#"{"q.weight":{"dtype":"F32","shape":[64,48],"data_offsets":[0,12288]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 12288]].concat();
    std::fs::write(folder.path().join("adapters/base.safetensors"), bytes).unwrap();
    std::fs::write(
        folder.path().join("config.yml"),
        "merge_method: task_arithmetic\nbase_model: base.safetensors\nmodels:\n  - model: math.safetensors\n    parameters: {weight: 0.5}\n\
         \x20 - model: chat.safetensors\n    parameters: {weight: 0.3}\n",
    )
    .unwrap();
    folder
}

#[test]
fn the_page_on_models() {
    let folder = models();
    let page = include_str!("../../../docs/models.md");
    let path = Path::new(env!("CARGO_BIN_EXE_mergeql")).parent().unwrap().display().to_string();
    let mut ran = 0;
    for block in page.split("```").skip(1).step_by(2) {
        let (language, text) = block.split_once('\n').unwrap();
        match language {
            "sql" => drop(stdout(&run(folder.path(), &["-c", text]))),
            "sh" => {
                let command = format!("set -e\nPATH={path}:$PATH\n{text}");
                stdout(
                    &Command::new("sh").args(["-c", &command]).current_dir(folder.path()).stdin(Stdio::null()).output().unwrap(),
                );
            }
            _ => continue,
        }
        ran += 1;
    }
    assert_eq!(ran, 14);
    let report = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(report.ends_with("</html>\n") && report.matches("<svg").count() == 4 && report.matches("</svg>").count() == 4);
    // What only one of two models has, or has in another shape, is a row without numbers.
    let compared = "SELECT tensor, cosine IS NULL AS n FROM tensor_compare('adapters/a', 'adapters/b') ORDER BY tensor";
    assert_eq!(stdout(&run(folder.path(), &["-c", compared, "--format", "csv"])), "tensor,n\nq.lora_A,true\nq.lora_B,true\n");
    // The statement that a config stands for gives the bytes that the config gives.
    let statement = stdout(&run(folder.path(), &["migrate", "config.yml", "--out", "from-statement/"]));
    stdout(&run(folder.path(), &["-c", &statement]));
    let tensors = |place: &str| {
        stdout(&run(
            folder.path(),
            &["-c", &format!("SELECT tensor, norm FROM read_safetensors('{place}/model.safetensors')"), "--format", "csv"],
        ))
    };
    assert_eq!(tensors("from-config"), tensors("from-statement"));
    let file = |place: &str| std::fs::read(folder.path().join(place).join("model.safetensors")).unwrap();
    let data = |bytes: Vec<u8>| {
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].to_vec()
    };
    assert_eq!(data(file("from-config")), data(file("from-statement")));
}

#[test]
fn a_config_and_its_statement_are_one_merge() {
    let folder = models();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    // Random numbers go by what the config calls its models, and numbers are rounded when they are read.
    write(
        "dare.yml",
        "merge_method: dare_ties\nbase_model: base.safetensors\ndtype: bfloat16\nmodels:\n\
         \x20 - {model: code/model.safetensors, parameters: {weight: 0.6, density: 0.5}}\n\
         \x20 - {model: chat.safetensors, parameters: {weight: 0.4, density: 0.5}, weight: 3}\n",
    );
    let told = run(folder.path(), &["merge-models", "dare.yml", "--out", "by-config"]);
    assert!(String::from_utf8_lossy(&told.stderr).contains("has no `weight`: it has no effect"));
    stdout(&told);
    let statement = stdout(&run(folder.path(), &["migrate", "dare.yml"]));
    stdout(&run(folder.path(), &["-c", &statement]));
    let elements = |name: &str| {
        let bytes = std::fs::read(folder.path().join(name).join("model.safetensors")).unwrap();
        bytes[bytes.len() - 6450..].to_vec()
    };
    assert!(elements("by-config") == elements("merged"), "{statement}");
    // The card of several stages says what went into the first, and not that its base is a contribution.
    let stages = "name: soup\nmerge_method: linear\nmodels:\n\
         \x20 - {model: math.safetensors, parameters: {weight: 1}}\n  - {model: chat.safetensors, parameters: {weight: 1}}\n---\n\
         merge_method: task_arithmetic\nbase_model: base.safetensors\nmodels:\n  - {model: soup, parameters: {weight: 0.5}}\n";
    write("stages.yml", stages);
    stdout(&run(folder.path(), &["merge-models", "stages.yml", "--out", "staged"]));
    let card = std::fs::read_to_string(folder.path().join("staged/README.md")).unwrap();
    assert!(card.contains("`soup` was made for this merge, of") && card.contains("math.safetensors `sha256:"), "{card}");
    assert!(card.contains("\nBase: base.safetensors") && !card.contains("| base.safetensors |"), "{card}");
    // What is wrong with a later stage is found before the first is written, and so is a model in the way.
    write("wrong.yml", &stages.replace("task_arithmetic", "task_arithmetik"));
    assert!(
        failure(&run(folder.path(), &["merge-models", "wrong.yml", "--out", "none"])).1.contains("did you mean `task_arithmetic`")
    );
    assert!(!folder.path().join("none").exists());
    assert!(failure(&run(folder.path(), &["merge-models", "stages.yml", "--out", "staged"])).1.contains("--overwrite"));
    assert!(!folder.path().join("staged/.stages").exists());
    for (config, expected) in [
        ("merge_method: linear\ndtype: 16\nmodels: [{model: chat.safetensors}]\n", "dtype is the name of a type"),
        ("merge_method: linear\nmodels: [{model: chat.safetensors, layer_range: [0, x, 2]}]\n", "layer_range is [first, end]"),
    ] {
        write("wrong.yml", config);
        let (_, error) = failure(&run(folder.path(), &["merge-models", "wrong.yml", "--out", "none"]));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn tables_stand_where_files_could() {
    let folder = models();
    let merge = |coefficients: &str, rest: &str| {
        format!(
            "MERGE MODELS 'math.safetensors', 'chat.safetensors' BASE 'base.safetensors'
               STRATEGY * = adamerging(coefficients = '{coefficients}') {rest}"
        )
    };
    let found = "CREATE TABLE found AS SELECT tensor, model, 0.2 + 0.1 * model AS coefficient, [0.2, 0.3] AS data
                 FROM read_safetensors('base.safetensors') CROSS JOIN (VALUES (0), (1)) AS models(model);";
    let one = "CREATE VIEW one AS SELECT tensor, data FROM found WHERE model = 0;";
    let hashes = |coefficients: &str| {
        let text = format!("{found} {one} COPY one TO 'one.parquet'; {}", merge(coefficients, ""));
        let text = stdout(&run(folder.path(), &["--format", "csv", "-c", &text]));
        text[text.find("tensor,dtype").expect("rows")..].to_owned()
    };
    // A query, a view, a file of rows and one number for all are the same merge.
    let query = hashes("(SELECT tensor, array_agg(coefficient ORDER BY model) AS data FROM found GROUP BY tensor)");
    assert_eq!(query, hashes("one"));
    assert_eq!(query, hashes("one.parquet"));
    assert_eq!(query, hashes("(SELECT tensor, data, [2] AS shape FROM one)"));
    let written = format!("{found} {one} {}", merge("one", "INTO 'by-table/'"));
    stdout(&run(folder.path(), &["-c", &written]));
    let linear = "MERGE MODELS 'math.safetensors' WEIGHT 0.2, 'chat.safetensors' WEIGHT 0.3 BASE 'base.safetensors'
                  STRATEGY * = task_arithmetic INTO 'by-hand/'";
    stdout(&run(folder.path(), &["-c", linear]));
    let bytes = |name: &str| std::fs::read(folder.path().join(name).join("model.safetensors")).unwrap();
    let tail = |bytes: Vec<u8>| bytes[bytes.len() - 12900..].to_vec();
    assert!(tail(bytes("by-table")) == tail(bytes("by-hand")));
    // Rows that are no tensors, and what there is not.
    for (coefficients, expected) in [
        ("(SELECT tensor FROM one)", "has no column `data`"),
        ("(SELECT tensor, ''x'' AS data FROM one)", "of type Utf8"),
        ("(SELECT tensor, [1.0, NULL] AS data FROM one)", "with a NULL in it"),
        ("(SELECT tensor, data FROM found)", "has two rows for the tensor `"),
        ("(SELECT tensor, [[1.0], [2.0, 3.0]] AS data FROM one)", "not as long as each other"),
        ("(SELECT tensor, data, [3] AS shape FROM one)", "of the shape [3] with 2 numbers"),
        ("(SELECT tensor, [1.0] AS data FROM one)", "has the shape [1], it should have [2]"),
        ("(SELEC)", "the table `(SELEC)`"),
        ("nothing", "`nothing`"),
    ] {
        let text = format!("{found} {one} {}", merge(coefficients, ""));
        let (code, error) = failure(&run(folder.path(), &["-c", &text]));
        assert!(error.contains(expected), "{code:?} {coefficients}: {error}");
    }
    // Names are a table, too.
    let named = "CREATE VIEW names AS VALUES ('layers.*', 'model.layers.*');
                 EXPLAIN MERGE MODELS 'math.safetensors' STRATEGY * = linear WITH (names = 'names')";
    assert!(stdout(&run(folder.path(), &["-c", named])).contains("model.layers.0.mlp.weight"));
}

#[test]
fn a_set_of_models_knows_its_files() {
    let folder = models();
    let set = |arguments: &[&str]| run(folder.path(), &[&["model-set"], arguments].concat());
    stdout(&set(&["new", "a.set", "--base", "base.safetensors", "--strategy", "* = ties(density = 0.5)"]));
    assert!(failure(&set(&["new", "b.set", "--strategy", "* = tise"])).1.contains("did you mean `ties`"));
    stdout(&set(&["add", "a.set", "math.safetensors", "--origin", "x"]));
    stdout(&set(&["add", "a.set", "chat.safetensors", "--origin", "x"]));
    stdout(&set(&["resolve", "a.set", "--out", "out/"]));
    assert!(failure(&set(&["resolve", "a.set", "--out", "out/"])).1.contains("this file exists"));
    stdout(&set(&["resolve", "a.set", "--out", "out/", "--overwrite"]));
    assert!(failure(&set(&["remove", "a.set", "nobody"])).1.contains("no model of the set is called `nobody`"));
    std::fs::copy(folder.path().join("base.safetensors"), folder.path().join("chat.safetensors")).unwrap();
    assert!(failure(&set(&["resolve", "a.set"])).1.contains("`chat.safetensors` is not the model that was added"));
}

#[test]
fn a_killed_merge_of_models_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    // Large enough to be killed in the middle: 24 tensors of 4 MB in two models.
    for model in ["a", "b"] {
        let tensors: Vec<String> = (0..24)
            .map(|i| {
                format!(
                    "\"t{i:02}\":{{\"dtype\":\"F32\",\"shape\":[1000000],\"data_offsets\":[{},{}]}}",
                    i * 4_000_000,
                    (i + 1) * 4_000_000
                )
            })
            .collect();
        let header = format!("{{{}}}", tensors.join(","));
        let file = std::fs::File::create(folder.path().join(format!("{model}.safetensors"))).unwrap();
        use std::os::unix::fs::FileExt;
        file.write_all_at(&(header.len() as u64).to_le_bytes(), 0).unwrap();
        file.write_all_at(header.as_bytes(), 8).unwrap();
        file.set_len(8 + header.len() as u64 + 96_000_000).unwrap();
    }
    let statement = "MERGE MODELS 'a.safetensors', 'b.safetensors' STRATEGY * = karcher INTO 'out/'";
    let out = folder.path().join("out/model.safetensors");
    let mut killed = 0;
    for wait in [60, 120, 200, 300, 450] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mergeql"))
            .args(["-c", statement])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        if out.exists() {
            break;
        }
    }
    assert!(killed > 0);
    if !out.exists() {
        stdout(&run(folder.path(), &["-c", statement]));
    }
    assert!(folder.path().join("out/README.md").exists());
    let count = stdout(&run(
        folder.path(),
        &["-c", "SELECT count(*) AS n, sum(bytes) AS b FROM read_safetensors('out/model.safetensors')", "--format", "csv"],
    ));
    assert_eq!(count, "n,b\n24,96000000\n");
}

#[test]
fn without_a_gpu_the_cpu_computes_and_explain_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../udfs/tensors/tests/data/inputs");
    let [a, b] = ["m0", "m1"].map(|name| inputs.join(format!("{name}.safetensors")).display().to_string());
    let run = |sql: &str| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_mergeql"));
        program.args(["-c", sql, "--format", "csv"]).current_dir(folder.path()).env("NO_COLOR", "1");
        // No driver is left for Vulkan to find.
        stdout(&program.env("VK_DRIVER_FILES", "/dev/null").env("VK_ICD_FILENAMES", "/dev/null").output().unwrap())
    };
    let merge = |backend: &str, out: &str| {
        format!("MERGE MODELS '{a}', '{b}' STRATEGY '*' = linear INTO '{out}.safetensors' WITH (backend = '{backend}')")
    };
    let explained = run(&format!("EXPLAIN {}", merge("gpu", "no")));
    assert!(explained.contains("cpu, not the gpu that was asked for: there is no GPU here"), "{explained}");
    run(&format!("{}; {}", merge("gpu", "one"), merge("cpu", "two")));
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(read("one.safetensors") == read("two.safetensors"));
}

#[test]
fn sets_of_models_from_elsewhere_run_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../udfs/tensors/tests/data/inputs/m0.safetensors").display().to_string();
    let ran = folder.path().join("ran").display().to_string();
    let strategy =
        format!("* = evolutionary(inner = 'linear', search = 'weight', command = 'touch {ran}; echo 1', generations = 1)");
    let set = |arguments: &[&str]| run(folder.path(), &[&["model-set"], arguments].concat());
    stdout(&set(&["new", "s.set", "--strategy", &strategy]));
    stdout(&set(&["add", "s.set", &model, "--origin", "a"]));
    let (code, error) = failure(&set(&["resolve", "s.set"]));
    assert!(code == 2 && error.contains("does more than merge") && error.contains("--trust"), "{error}");
    stdout(&set(&["new", "c.set", "--with", "cache = 'kept'"]));
    stdout(&set(&["add", "c.set", &model, "--origin", "a"]));
    assert!(failure(&set(&["resolve", "c.set"])).1.contains("does more than merge"));
    assert!(!Path::new(&ran).exists() && !folder.path().join("kept").exists());
    stdout(&set(&["resolve", "c.set", "--trust"]));
    // Two models whose names differ behind a point are two.
    for name in ["llama-3.1", "llama-3.2"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::copy(&model, folder.path().join(name).join("model.safetensors")).unwrap();
        stdout(&set(&["add", "c.set", name, "--origin", "a"]));
    }
    let shown = stdout(&set(&["show", "c.set"]));
    assert!(shown.contains("llama-3.1") && shown.contains("llama-3.2"), "{shown}");
}

#[test]
fn a_merged_model_takes_no_file_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../udfs/tensors/tests/data/inputs");
    let [a, b] = ["m0", "m1"].map(|name| inputs.join(format!("{name}.safetensors")).display().to_string());
    std::fs::create_dir(folder.path().join("repo")).unwrap();
    std::fs::write(folder.path().join("repo/README.md"), "mine").unwrap();
    let merge = format!("MERGE MODELS '{a}', '{b}' STRATEGY '*' = linear INTO 'repo'");
    let (_, error) = failure(&run(folder.path(), &["-c", &merge]));
    assert!(error.contains("README.md") && error.contains("overwrite = true"), "{error}");
    assert_eq!(std::fs::read_to_string(folder.path().join("repo/README.md")).unwrap(), "mine");
    assert!(!folder.path().join("repo/model.safetensors").exists());
    stdout(&run(folder.path(), &["-c", &format!("{merge} WITH (overwrite = true)")]));
    assert!(folder.path().join("repo/model.safetensors").exists());
}
