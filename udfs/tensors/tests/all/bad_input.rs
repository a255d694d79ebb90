//! What is wrong with files and requests is said with file, tensor and remedy, before a byte is written.

use crate::cases::{data, model};
use crate::properties::write;
use mergeql_tensors::checkpoint::Checkpoint;
use mergeql_tensors::method::{Params, Value};
use mergeql_tensors::plan::{Model, Options, Plan, Request, Rule};
use mergeql_tensors::sealed::Sealed;
use mergeql_udfs::{Code, Error};
use std::collections::BTreeMap;
use std::path::Path;

fn opened(path: &Path) -> Model {
    Model::new(path.file_stem().expect("a name").to_string_lossy(), Checkpoint::open(path).expect("a model"))
}

/// The error of a plan, or of what comes before writing.
fn error(models: Vec<Model>, base: Option<Model>, strategy: &str, params: &[(&str, Value)]) -> Error {
    let params: Params = params.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    let rules = vec![Rule { pattern: "*".into(), strategy: strategy.into(), params }];
    let request = Request { models, base, rules, options: Options::default() };
    Plan::new(request).and_then(Sealed::new).expect_err("something is wrong")
}

fn says(error: &Error, code: Code, parts: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.code, code, "{text}");
    parts.iter().for_each(|part| assert!(text.contains(part), "`{part}` is not in: {text}"));
}

#[test]
fn requests_that_cannot_be_met() {
    let two = || vec![model("m0"), model("m1")];
    let n = Value::Number;
    says(&error(two(), None, "ties", &[]), Code::InvalidArgument, &["ties", "no base", "BASE"]);
    says(&error(two(), None, "tise", &[]), Code::UnknownStrategy, &["tise", "did you mean `ties`"]);
    says(
        &error(two(), Some(model("base")), "ties", &[("densty", n(0.5))]),
        Code::UnknownOption,
        &["densty", "did you mean `density`"],
    );
    says(
        &error(two(), Some(model("base")), "ties", &[("density", n(1.5))]),
        Code::InvalidArgument,
        &["density", "from 0 to 1", "1.5"],
    );
    says(&error(two(), Some(model("base")), "ties", &[("density", n(f64::NAN))]), Code::InvalidArgument, &["density"]);
    says(
        &error(two(), None, "linear", &[("weight", Value::List(vec![n(1.0); 3]))]),
        Code::InvalidArgument,
        &["3 values for 2 models"],
    );
    says(&error(two(), None, "linear", &[("weight", Value::List(vec![n(1.0), n(-1.0)]))]), Code::InvalidArgument, &["sum to zero"]);
    says(&error(two(), None, "slerp", &[]), Code::InvalidArgument, &["slerp", "`t`"]);
    says(
        &error(vec![model("m0"), model("m1"), model("m2")], None, "slerp", &[("t", n(0.5))]),
        Code::InvalidArgument,
        &["slerp", "3"],
    );
    says(
        &error(two(), Some(model("base")), "della", &[("density", n(0.1)), ("epsilon", n(0.2))]),
        Code::InvalidArgument,
        &["0.1", "epsilon 0.2"],
    );
    says(&error(two(), None, "fisher", &[]), Code::InvalidArgument, &["fisher", "needs"]);
    says(&error(two(), None, "fisher", &[("fisher", Value::Text("/no/such".into()))]), Code::Io, &["/no/such", "no such file"]);
    let gram = data().join("inputs/gram0.safetensors").to_string_lossy().into_owned();
    says(
        &error(two(), None, "fisher", &[("fisher", Value::List(vec![Value::Text(gram.clone()), Value::Text(gram)]))]),
        Code::InvalidArgument,
        &["gram0", "no tensor"],
    );
    says(&error(two(), None, "trimmed_mean", &[("trim", n(1.0))]), Code::InvalidArgument, &["trim = 1", "2 models"]);
    says(&error(two(), None, "krum", &[]), Code::InvalidArgument, &["krum", "f + 3"]);
    says(&error(Vec::new(), None, "linear", &[]), Code::InvalidArgument, &["at least one model"]);
}

#[test]
fn models_that_do_not_fit() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(format!("{name}.safetensors"));
    let tensor = |name: &str, shape: &[usize], v: f32| (name.to_owned(), (shape.to_vec(), vec![v; shape.iter().product()]));
    write(&path("a"), &BTreeMap::from([tensor("w", &[2, 3], 1.0), tensor("only", &[2], 1.0)]));
    write(&path("b"), &BTreeMap::from([tensor("w", &[3, 2], 1.0)]));
    write(&path("nan"), &BTreeMap::from([tensor("w", &[2, 3], f32::NAN)]));
    write(&path("c"), &BTreeMap::from([tensor("w", &[2, 3], 1.0)]));
    says(
        &error(vec![opened(&path("a")), opened(&path("c"))], None, "linear", &[]),
        Code::InvalidArgument,
        &["`only`", "not in c", "missing = 'present'"],
    );
    says(
        &error(vec![opened(&path("b")), opened(&path("c"))], None, "linear", &[]),
        Code::TypeMismatch,
        &["`w`", "[3, 2]", "[2, 3]", "b.safetensors"],
    );
    says(
        &error(vec![opened(&path("nan")), opened(&path("c"))], None, "linear", &[]),
        Code::InvalidArgument,
        &["`w`", "nan.safetensors", "element 0", "nan = 'propagate'"],
    );
}

/// A file with this header and this many bytes behind it.
fn file(folder: &Path, header: &[u8], claimed: u64, rest: usize) -> Error {
    let path = folder.join("bad.safetensors");
    let mut bytes = claimed.to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend(vec![0; rest]);
    std::fs::write(&path, bytes).expect("a file");
    Checkpoint::open(&path).expect_err("a bad file")
}

#[test]
fn hostile_headers() {
    let folder = tempfile::tempdir().expect("a folder");
    let header = |text: &str, rest: usize| file(folder.path(), text.as_bytes(), text.len() as u64, rest);
    let tensor = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let bad = [
        file(folder.path(), b"", u64::MAX, 0),
        file(folder.path(), b"{}", 1 << 40, 0),
        file(folder.path(), b"\xff\xfe", 2, 0),
        header("[]", 0),
        header("{", 0),
        header(&"[".repeat(100_000), 0),
        header(&format!(r#"{{"a":{}}}"#, "{\"a\":".repeat(50_000)), 0),
        header(&format!(r#"{{"w":{}}}"#, tensor("F32", "[2]", 0, 8)), 4),
        header(&format!(r#"{{"w":{}}}"#, tensor("F32", "[2]", 0, 8)), 12),
        header(&format!(r#"{{"w":{}}}"#, tensor("F32", "[3]", 0, 8)), 8),
        header(&format!(r#"{{"w":{}}}"#, tensor("F32", "[4294967296,4294967296,4294967296]", 0, 8)), 8),
        header(&format!(r#"{{"w":{}}}"#, tensor("F99", "[2]", 0, 8)), 8),
        header(&format!(r#"{{"w":{}}}"#, tensor("F32", "[2]", 8, 0)), 8),
        header(&format!(r#"{{"w":{},"x":{}}}"#, tensor("F32", "[2]", 0, 8), tensor("F32", "[2]", 4, 12)), 12),
        header(&format!(r#"{{"w":{},"x":{}}}"#, tensor("F32", "[2]", 0, 8), tensor("F32", "[2]", 16, 24)), 24),
        header(&format!(r#"{{"w":{}}}"#, tensor("F32", &format!("[{}]", vec!["1"; 100].join(",")), 0, 4)), 4),
    ];
    for error in bad {
        says(&error, Code::Io, &["bad.safetensors", "help"]);
    }
    std::fs::write(folder.path().join("short.safetensors"), [1, 2, 3]).expect("a file");
    says(&Checkpoint::open(folder.path().join("short.safetensors")).expect_err("short"), Code::Io, &["3 bytes"]);
    let index = folder.path().join("model.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map": {"w": "../../etc/passwd"}}"#).expect("a file");
    says(&Checkpoint::open(&index).expect_err("outside"), Code::Io, &["../../etc/passwd"]);
    says(&Checkpoint::open("/no/such/model").expect_err("missing"), Code::Io, &["/no/such/model", "no such file"]);
}

/// A file that gets shorter after it was opened is an error, not the end of the program.
#[test]
fn a_file_that_shrinks() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.safetensors");
    write(&path, &BTreeMap::from([("w".to_owned(), (vec![1000], vec![1.0; 1000]))]));
    let opened = opened(&path);
    std::fs::OpenOptions::new().write(true).open(&path).expect("a file").set_len(200).expect("a shorter file");
    says(&error(vec![opened], None, "linear", &[]), Code::Io, &["a.safetensors"]);
}

/// Outputs that would hide a model, hold what they cannot, or be read while they are written.
#[test]
fn outputs_that_cannot_be() {
    use mergeql_tensors::model::{self, Extras};
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let tensor = |name: &str, v: f32| (name.to_owned(), (vec![40], vec![v; 40]));
    std::fs::create_dir(path("in")).expect("a folder");
    write(&path("in/a.safetensors"), &BTreeMap::from([tensor("w", 1.0), tensor("x", 2.0)]));
    let merge = |change: &dyn Fn(&mut Options), scale: f64, out: &Path| {
        let mut options = Options::default();
        change(&mut options);
        let params = Params::from([("scale".to_owned(), Value::Number(scale))]);
        let rules = vec![Rule { pattern: "*".into(), strategy: "passthrough".into(), params }];
        let request = Request { models: vec![opened(&path("in/a.safetensors"))], base: None, rules, options };
        model::write(&Sealed::new(Plan::new(request)?)?, out, &Extras::default(), |_| ())
    };
    let files = || -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(path("out"))
            .expect("a folder")
            .map(|e| e.expect("a file").file_name().to_string_lossy().into_owned())
            .collect();
        names.retain(|name| name.contains("model") || name.contains("partial"));
        names.sort();
        names
    };
    // A model in another layout is replaced as a whole.
    merge(&|o| o.max_shard_size = Some(100), 1.0, &path("out")).expect("shards");
    assert_eq!(files().len(), 3);
    says(&merge(&|_| (), 3.0, &path("out")).expect_err("it exists"), Code::Io, &["this file exists", "overwrite = true"]);
    merge(&|o| o.overwrite = true, 3.0, &path("out")).expect("a single file");
    assert_eq!(files(), ["model.safetensors"]);
    assert_eq!(Checkpoint::open(path("out")).expect("a model").tensors["w"].all().expect("floats"), [3.0; 40]);
    says(
        &merge(&|o| o.max_shard_size = Some(100), 1.0, &path("one.safetensors")).expect_err("no shards"),
        Code::InvalidArgument,
        &["one.safetensors", "no shards"],
    );
    // Two files of one name are two models.
    std::fs::create_dir(path("other")).expect("a folder");
    write(&path("other/a.safetensors"), &BTreeMap::from([tensor("w", 5.0), tensor("x", 2.0)]));
    let both = vec![opened(&path("in/a.safetensors")), opened(&path("other/a.safetensors"))];
    says(&error(both, None, "linear", &[]), Code::DuplicateSource, &["two models are called `a`", "AS"]);
    // f16 ends at 65504; nothing is left behind.
    let narrow = |o: &mut Options| o.out_dtype = Some(mergeql_tensors::dtype::Dtype::F16);
    says(
        &merge(&narrow, 1e5, &path("narrow")).expect_err("too great"),
        Code::InvalidArgument,
        &["`w`", "f16 cannot hold", "nan = 'propagate'"],
    );
    assert!(!path("narrow").exists());
    says(&merge(&|_| (), 1.0, Path::new("")).expect_err("no name"), Code::InvalidArgument, &["is empty"]);
    let over = |o: &mut Options| o.overwrite = true;
    says(&merge(&over, 1.0, &path("in/a.safetensors")).expect_err("an input"), Code::Io, &["read from there"]);
    says(&merge(&over, 1.0, &path("in")).expect_err("an input"), Code::Io, &["read from there"]);
}

#[test]
fn weights_in_two_places() {
    let mut models = vec![model("m0"), model("m1")];
    models[0].weight = Some(1.0);
    let weights = Value::List(vec![Value::Number(3.0), Value::Number(4.0)]);
    says(&error(models, None, "linear", &[("weight", weights)]), Code::InvalidArgument, &["have weights", "has others"]);
}

/// Integers that differ are found before anything is written.
#[test]
fn integers_must_agree() {
    let folder = tempfile::tempdir().expect("a folder");
    let integers = |name: &str, v: i64| {
        let path = folder.path().join(format!("{name}.safetensors"));
        let bytes: Vec<u8> = [v; 4].iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![4], &bytes).expect("a tensor");
        safetensors::serialize_to_file([("ids", view)], None, &path).expect("a file");
        opened(&path)
    };
    says(
        &error(vec![integers("a", 1), integers("b", 2)], None, "linear", &[]),
        Code::TypeMismatch,
        &["`ids`", "i64", "a.safetensors", "b.safetensors"],
    );
}

/// What an output replaces is a model that was written there, never a file that something is read from.
#[test]
fn inputs_stay() {
    use mergeql_tensors::model::{self, Extras};
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let tensor = |v: f32| BTreeMap::from([("w".to_owned(), (vec![4], vec![v; 4]))]);
    for (name, v) in [("model-a", 1.0), ("model-b", 3.0)] {
        write(&path(&format!("{name}.safetensors")), &tensor(v));
    }
    // A pipeline's folder has a folder of this name.
    std::fs::create_dir(path("tokenizer")).expect("a folder");
    std::fs::write(path("config.json"), "{}").expect("a config");
    let merge = |out: &Path| {
        let models = ["model-a", "model-b"].map(|name| opened(&path(&format!("{name}.safetensors")))).to_vec();
        let rules = vec![Rule { pattern: "*".into(), strategy: "linear".into(), params: Params::new() }];
        let options = Options { overwrite: true, ..Options::default() };
        let extras = Extras { companion: Some(folder.path().to_owned()), ..Extras::default() };
        model::write(&Sealed::new(Plan::new(Request { models, base: None, rules, options })?)?, out, &extras, |_| ())
    };
    merge(&path("model.safetensors")).expect("one file");
    says(&merge(folder.path()).expect_err("an input"), Code::Io, &["read from there"]);
    merge(&path("out")).expect("a folder");
    assert!(path("out/config.json").exists() && !path("out/tokenizer").exists());
    assert!(path("model-a.safetensors").exists() && path("model-b.safetensors").exists());
}

#[test]
fn one_parameter_under_two_names() {
    let two = || vec![model("m0"), model("m1")];
    let list = |a, b| Value::List(vec![Value::Number(a), Value::Number(b)]);
    let both = [("weight", list(1.0, 2.0)), ("weights", list(3.0, 4.0))];
    says(&error(two(), None, "linear", &both), Code::InvalidArgument, &["weight", "one parameter"]);
    // What a rule says counts before what all have, whatever it is called there.
    let merged = |common: &str| {
        let rules = vec![Rule {
            pattern: "*".into(),
            strategy: "linear".into(),
            params: Params::from([("weight".to_owned(), list(9.0, 1.0))]),
        }];
        let mut options = Options::default();
        options.common.insert(common.to_owned(), list(1.0, 1.0));
        crate::cases::resolve(Request { models: two(), base: None, rules, options }).expect("a merge")
    };
    assert_eq!(merged("weight"), merged("weights"));
    let mut weighted = two();
    weighted[0].weight = Some(9.0);
    let rules = vec![Rule { pattern: "*".into(), strategy: "linear".into(), params: Params::new() }];
    let mut options = Options::default();
    options.common.insert("weights".to_owned(), list(1.0, 1.0));
    let error = Plan::new(Request { models: weighted, base: None, rules, options }).expect_err("two kinds of weights");
    says(&error, Code::InvalidArgument, &["have weights", "`weights`"]);
}

#[test]
fn options_that_nothing_has() {
    let refused = |strategy: &str, params: Params, name: &str| {
        let rules = [Rule { pattern: "*".into(), strategy: strategy.into(), params }];
        let given = [(name.to_owned(), Value::Number(3.0))];
        mergeql_tensors::request::options(given, &rules).map(drop).map_err(|(_, e)| e.code)
    };
    let ties = || Params::from([("inner".to_owned(), Value::Text("ties".into()))]);
    assert_eq!(refused("lora_svd", Params::new(), "rnak"), Err(Code::UnknownOption));
    assert_eq!(refused("lora_svd", Params::new(), "rank"), Ok(()));
    assert_eq!(refused("evolutionary", ties(), "generations"), Err(Code::UnknownOption));
    assert_eq!(refused("evolutionary", ties(), "density"), Ok(()));
}

#[test]
fn the_type_that_holds_all_is_one_in_any_order() {
    use mergeql_tensors::dtype::Dtype::{BF16, F8_E4M3, F8_E5M2, F16, F32, F64};
    let common = mergeql_tensors::plan::common_dtype;
    for (types, wanted) in [
        ([F8_E4M3, F8_E5M2, F16], F16),
        ([F8_E4M3, F8_E5M2, BF16], BF16),
        ([F8_E4M3, F8_E5M2, F8_E4M3], F32),
        ([F16, BF16, F8_E4M3], F32),
        ([F16, F32, F64], F64),
    ] {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            assert_eq!(common(order.map(|i| types[i])), Some(wanted), "{types:?} {order:?}");
        }
    }
}

/// A file of these header bytes and data.
fn raw(path: &Path, header: &str, data: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).expect("a file");
}

#[test]
fn headers_are_read_as_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.safetensors");
    // A length whose first bytes are those that a pickle begins with.
    let header = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    raw(&path, &format!("{header:<640}"), &1f32.to_le_bytes());
    assert_eq!(Checkpoint::open(&path).expect("a model").tensors.len(), 1);
    std::fs::write(&path, b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u.").expect("a file");
    says(&Checkpoint::open(&path).expect_err("a pickle"), Code::Unsupported, &["pickle"]);
    // Of a name that is there twice readers would take one or the other.
    let twice = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#;
    raw(&path, twice, &[0; 8]);
    says(&Checkpoint::open(&path).expect_err("twice"), Code::Io, &["`w`", "twice"]);
}

#[test]
fn sharded_models_of_one_folder_are_not_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let tensor = |name: &str, v: f32| (name.to_owned(), (vec![1], vec![v]));
    for (model, v) in [("a", 1.0), ("b", 3.0)] {
        for (shard, name) in [("1", "x"), ("2", "y")] {
            write(&folder.path().join(format!("{model}-{shard}.safetensors")), &BTreeMap::from([tensor(name, v)]));
        }
    }
    let open = |model: &str, alias: Option<&str>| {
        let pattern = folder.path().join(format!("{model}-*.safetensors"));
        mergeql_tensors::request::open(pattern.to_str().expect("text"), alias, None).expect("a model")
    };
    let both = |a: Option<&str>, b: Option<&str>| open("a", a).into_iter().chain(open("b", b)).collect::<Vec<_>>();
    says(&error(both(None, None), None, "linear", &[]), Code::DuplicateSource, &["AS"]);
    let rules = vec![Rule { pattern: "*".into(), strategy: "linear".into(), params: Params::new() }];
    let request = Request { models: both(Some("a"), Some("b")), base: None, rules, options: Options::default() };
    let merged = crate::cases::resolve(request).expect("a merge");
    assert_eq!(merged, BTreeMap::from([("x".to_owned(), vec![2.0]), ("y".to_owned(), vec![2.0])]));
}

#[test]
fn a_merge_that_nobody_waits_for_ends() {
    let options = Options::default();
    options.stop.now();
    let rules = vec![Rule { pattern: "*".into(), strategy: "linear".into(), params: Params::new() }];
    let request = Request { models: vec![model("m0"), model("m1")], base: None, rules, options };
    says(&Plan::new(request).and_then(Sealed::new).expect_err("it was stopped"), Code::Io, &["stopped"]);
}
