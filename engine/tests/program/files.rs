//! Files in and out: every format, patterns, bad input, and nothing half-written.

use super::{STATEMENT, failure, run, sources, stdout};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

#[test]
fn every_format_reads_back_equal() {
    let folder = sources();
    let expected = "id,v,t\n1,5,x\n2,,\"\"\n3,9,z\n";
    for ending in ["csv", "tsv", "json", "ndjson", "parquet", "arrow"] {
        let file = format!("out.{ending}");
        stdout(&run(folder.path(), &["-c", &format!("{STATEMENT} INTO '{file}'")]));
        let back = stdout(&run(folder.path(), &["-c", &format!("SELECT id, v, t FROM '{file}' ORDER BY id"), "--format", "csv"]));
        // Arrow's CSV writer does not quote empty text, so it is compared by what it says of NULL.
        assert_eq!(back.replace("\"\"", ""), expected.replace("\"\"", ""), "{ending}");
        let empty =
            stdout(&run(folder.path(), &["-c", &format!("SELECT t IS NULL AS n FROM '{file}' WHERE id = 2"), "--format", "csv"]));
        if !matches!(ending, "csv" | "tsv") {
            assert_eq!(empty, "n\nfalse\n", "{ending}");
        }
    }
}

/// Columns are encoded side by side, in several row groups: the file has the same bytes however many threads there are.
#[test]
fn parquet_does_not_depend_on_threads() {
    let folder = sources();
    let rows = "SELECT value AS id, value % 1000 AS n, 'text ' || CAST(value % 5000 AS TEXT) AS t, [value, NULL, value % 7] AS l, \
                {a: value % 3, b: {c: CAST(value AS TEXT)}} AS s FROM generate_series(1, 1100000)";
    let mut files = Vec::new();
    for threads in ["1", "4"] {
        let file = format!("rows{threads}.parquet");
        stdout(&run(folder.path(), &["--threads", threads, "-c", &format!("{rows} ORDER BY id"), "-o", &file]));
        files.push(std::fs::read(folder.path().join(&file)).unwrap());
        let sums = format!(
            "SELECT count(*) AS n, sum(n) AS s, sum(l[1]) AS l, sum(CAST(s['b']['c'] AS BIGINT)) AS c, max(t) AS t FROM '{file}'"
        );
        let sums = stdout(&run(folder.path(), &["-c", &sums, "--format", "csv"]));
        assert_eq!(sums.lines().last(), Some("1100000,549450000,605000550000,605000550000,text 999"), "{threads}");
    }
    assert!(files[0] == files[1]);
}

fn count_of(folder: &Path, source: &str) -> String {
    std::fs::write(folder.join("late/1.csv"), "id,v\n1,7\n").unwrap();
    std::fs::write(folder.join("late/2.csv"), "id,v\n1,5\n4,1.5\n").unwrap();
    let counted = run(folder, &["-c", &format!("MERGE {source} ON id STRATEGY v = counter ORDER BY id"), "--format", "csv"]);
    let rows = stdout(&counted);
    assert_eq!(rows, "id,v\n1,12.0\n4,1.5\n");
    rows
}

#[test]
fn folders_patterns_standard_input_and_names_are_sources() {
    let folder = sources();
    std::fs::create_dir(folder.path().join("late")).unwrap();
    std::fs::write(folder.path().join("late/1.csv"), "id,v\n1,7\n").unwrap();
    std::fs::write(folder.path().join("late/2.csv"), "id,v\n4,1.5\n").unwrap();
    let count = |source: &str| {
        stdout(&run(folder.path(), &["-c", &format!("SELECT sum(v) AS s FROM (MERGE {source} ON id) AS m"), "--format", "csv"]))
    };
    assert_eq!(count("'late'"), "s\n8.5\n");
    assert_eq!(count("'late/*.csv'"), "s\n8.5\n");
    assert_eq!(count("'late/1.csv', 'late/1.csv'"), "s\n7\n");
    // Each file is an origin of its own, however the files are named.
    let counted = |source: &str| count_of(folder.path(), source);
    assert_eq!(counted("'late/*.csv'"), counted("'late/1.csv', 'late/2.csv'"));
    let named = run(folder.path(), &["--source", "l=late/2.csv", "-c", "MERGE l ON id ORDER BY id", "--format", "csv"]);
    assert_eq!(stdout(&named), "id,v\n1,5.0\n4,1.5\n");
    // It is read once, however often it is named.
    for merge in ["MERGE '-' ON id WITH (format = 'csv')", "MERGE '-', '-' ON id WITH (format = 'csv')"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mergeql"))
            .args(["-c", merge, "--format", "ndjson"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"id,v\n1,2\n1,3\n").unwrap();
        assert_eq!(stdout(&child.wait_with_output().unwrap()), "{\"id\":1,\"v\":3}\n");
    }
}

#[test]
fn what_is_written_reads_back_as_it_was() {
    let folder = sources();
    let made =
        "SELECT 1 AS id, '' AS v, CAST(NULL AS TEXT) AS w UNION ALL SELECT 2, 'a,\"b\"\n', ' c ' UNION ALL SELECT 3, 'NULL', '\\x'";
    for ending in ["csv", "tsv", "json", "ndjson", "parquet", "arrow"] {
        let file = format!("out.{ending}");
        stdout(&run(folder.path(), &["-c", &format!("MERGE ({made}) AS s ON id INTO '{file}'")]));
        let read = format!("SELECT count(*) AS n FROM (SELECT * FROM '{file}' INTERSECT ({made})) AS same");
        assert_eq!(stdout(&run(folder.path(), &["-c", &read, "--format", "csv"])), "n\n3\n", "{ending}");
    }
    // An ending that tells no format is no guess.
    assert_eq!(failure(&run(folder.path(), &["-c", STATEMENT, "-o", "out.xyz"])).0, 2);
}

#[test]
fn columns_of_text_files_pair_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("d")).unwrap();
    std::fs::write(folder.path().join("d/1.csv"), "id,v,w\n1,5,x\n").unwrap();
    std::fs::write(folder.path().join("d/2.csv"), "w,id\ny,2\n").unwrap();
    std::fs::write(folder.path().join("d/3.csv"), "v,id,z\n7,1,true\n").unwrap();
    let merged = stdout(&run(folder.path(), &["-c", "MERGE 'd/*.csv' ON id STRATEGY * = max ORDER BY id", "--format", "csv"]));
    assert_eq!(merged, "id,v,w,z\n1,7,x,true\n2,,y,\n");
    std::fs::write(folder.path().join("d/.4.csv"), "id\n4\n").unwrap();
    std::fs::write(folder.path().join("d/5.csv.gz"), "").unwrap();
    assert!(failure(&run(folder.path(), &["-c", "SELECT * FROM (MERGE 'd/5.csv.gz' ON id) AS m"])).1.contains("compressed"));
    for (sql, expected) in [
        ("SELECT count(*) AS n FROM 'd/*.csv'", "n\n3\n"),
        ("SELECT count(z) AS n FROM 'd/*.csv'", "n\n1\n"),
        ("SELECT z, v FROM 'd/*.csv' WHERE id = 2", "z,v\n,\n"),
    ] {
        assert_eq!(stdout(&run(folder.path(), &["-c", sql, "--format", "csv"])), expected, "{sql}");
    }
}

#[test]
fn a_pipe_is_no_file() {
    let folder = tempfile::tempdir().unwrap();
    for (pipe, sql) in [
        ("p.csv", "MERGE 'p.csv' ON id"),
        ("p.safetensors", "MERGE MODELS 'p.safetensors', 'p.safetensors' AS b STRATEGY * = linear"),
    ] {
        assert!(Command::new("mkfifo").arg(folder.path().join(pipe)).status().unwrap().success());
        let (_, error) = failure(&run(folder.path(), &["-c", sql]));
        assert!(error.contains("pipe or a device") || error.contains("no regular file"), "{error}");
    }
}

#[test]
fn bad_files_are_clear_errors() {
    let folder = sources();
    let path = |name: &str| folder.path().join(name);
    stdout(&run(folder.path(), &["-c", &format!("{STATEMENT} INTO 'good.parquet'")]));
    let good = std::fs::read(path("good.parquet")).unwrap();
    std::fs::write(path("truncated.parquet"), &good[..good.len() / 2]).unwrap();
    std::fs::write(path("empty.parquet"), b"").unwrap();
    std::fs::write(path("text.parquet"), b"this is no parquet file at all").unwrap();
    std::fs::write(path("empty.csv"), b"").unwrap();
    std::fs::write(path("ragged.csv"), b"id,v\n1,2\n3\n").unwrap();
    std::fs::write(path("latin1.csv"), b"id,v\n1,caf\xe9\n").unwrap();
    std::fs::write(path("twice.csv"), b"id,v,v\n1,2,3\n").unwrap();
    std::fs::write(path("broken.ndjson"), b"{\"id\":1}\n{\"id\":\n").unwrap();
    std::fs::write(path("number.ndjson"), b"1\n").unwrap();
    std::fs::write(path("clash.ndjson"), b"{\"id\":1}\n{\"id\":true}\n").unwrap();
    std::fs::write(path("broken.json"), b"[{\"id\":1},").unwrap();
    std::fs::write(path("cut.arrow"), b"ARROW1\0\0").unwrap();
    std::fs::create_dir(path("nothing")).unwrap();
    let cases = [
        ("truncated.parquet", "io"),
        ("empty.parquet", "io"),
        ("text.parquet", "io"),
        ("empty.csv", "io"),
        ("ragged.csv", "io"),
        ("latin1.csv", "io"),
        ("twice.csv", "duplicate_column"),
        ("broken.ndjson", "io"),
        ("number.ndjson", "io"),
        ("clash.ndjson", "type_mismatch"),
        ("broken.json", "io"),
        ("cut.arrow", "io"),
        ("nothing", "io"),
        ("gone/*.csv", "io"),
    ];
    for (file, code) in cases {
        let (_, error) = failure(&run(folder.path(), &["-c", &format!("MERGE '{file}' ON id")]));
        assert!(error.starts_with(&format!("error[{code}]")), "{file}: {error}");
        let name = file.split('/').next().unwrap();
        assert!(error.contains(name), "{file} is not named: {error}");
    }
    // NULs in text are text.
    std::fs::write(path("nul.csv"), b"id,v\n1,a\0b\n").unwrap();
    assert_eq!(
        stdout(&run(folder.path(), &["-c", "SELECT length(v) AS n FROM (MERGE 'nul.csv' ON id) AS m", "--format", "csv"])),
        "n\n3\n"
    );
    // A source without rows and columns contributes nothing.
    std::fs::write(path("none.ndjson"), b"").unwrap();
    assert_eq!(
        stdout(&run(folder.path(), &["-c", "MERGE 'none.ndjson', 'a.csv' ON id ORDER BY id LIMIT 1", "--format", "csv"])),
        "id,v,t\n1,5,x\n"
    );
}

#[test]
fn a_target_is_written_whole_or_not_at_all() {
    let folder = sources();
    let listing = || {
        let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = listing();
    // A fault in the middle of writing leaves nothing behind.
    let statement = "MERGE (SELECT 1 AS id, CAST(column1 AS INT) AS v FROM (VALUES ('1'), ('x'))) AS s ON id INTO 'out.parquet'";
    failure(&run(folder.path(), &["-c", statement]));
    assert_eq!(listing(), before);
    let (_, error) = failure(&run(folder.path(), &["-c", &format!("{STATEMENT} INTO 'no/such/folder/out.csv'")]));
    assert!(error.starts_with("error[io]"), "{error}");
    // An existing file stays unless it is to be replaced.
    std::fs::write(folder.path().join("kept.csv"), "precious").unwrap();
    let (_, error) = failure(&run(folder.path(), &["-c", &format!("{STATEMENT} INTO 'kept.csv'")]));
    assert!(error.contains("OR REPLACE"), "{error}");
    assert_eq!(std::fs::read_to_string(folder.path().join("kept.csv")).unwrap(), "precious");
    stdout(&run(folder.path(), &["-c", &format!("{STATEMENT} INTO OR REPLACE 'kept.csv'")]));
    assert!(std::fs::read_to_string(folder.path().join("kept.csv")).unwrap().starts_with("id,v,t"));
}

#[test]
fn parquet_says_what_it_has_no_place_for() {
    use arrow::array::{ArrayRef, BooleanArray, Decimal128Array, DictionaryArray, Int32Array, RecordBatch, StringArray};
    let folder = sources();
    let copied = |value: &str| run(folder.path(), &["-c", &format!("SELECT 1 AS id, {value} AS v"), "-o", "out.parquet"]);
    for (value, what) in [
        ("INTERVAL '1 day'", "intervals"),
        ("[INTERVAL '1 day']", "intervals"),
        ("arrow_cast(100, 'Decimal128(3, -2)')", "decimals of negative scale"),
    ] {
        let (code, error) = failure(&copied(value));
        assert!(error.starts_with("error[unsupported]") && error.contains(what) && error.contains(".arrow"), "{code} {error}");
        assert!(!folder.path().join("out.parquet").exists());
    }
    // Its library writes dictionaries of text; others are written as what they say.
    let indices = || Int32Array::from(vec![Some(1), None, Some(0)]);
    let decimals = Decimal128Array::from(vec![150, -25]).with_precision_and_scale(5, 2).unwrap();
    let batch = RecordBatch::try_from_iter([
        ("id", Arc::new(Int32Array::from(vec![1, 2, 3])) as ArrayRef),
        ("b", Arc::new(DictionaryArray::new(indices(), Arc::new(BooleanArray::from(vec![true, false]))))),
        ("d", Arc::new(DictionaryArray::new(indices(), Arc::new(decimals)))),
        ("t", Arc::new(DictionaryArray::new(indices(), Arc::new(StringArray::from(vec!["x", "y"]))))),
    ])
    .unwrap();
    let file = std::fs::File::create(folder.path().join("in.arrow")).unwrap();
    let mut writer = arrow::ipc::writer::FileWriter::try_new(file, &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    stdout(&run(folder.path(), &["-c", "SELECT * FROM 'in.arrow'", "-o", "out.parquet"]));
    let read = stdout(&run(folder.path(), &["-c", "SELECT * FROM 'out.parquet' ORDER BY id", "--format", "csv"]));
    assert_eq!(read, "id,b,d,t\n1,false,-0.25,y\n2,,,\n3,true,1.50,x\n");
}

#[test]
fn what_is_copied_appears_whole_or_not_at_all() {
    let folder = sources();
    let path = |name: &str| folder.path().join(name);
    let copied = |statement: &str| run(folder.path(), &["-c", statement, "--format", "csv"]);
    let count = |file: &str| stdout(&copied(&format!("SELECT count(*) AS n FROM '{file}'")));
    // The last row of many fails: what was there stays, and nothing is beside it.
    let rows = "SELECT value AS id, 10 / (199999 - value) AS q FROM generate_series(0, 199999)";
    for name in ["out.parquet", "out.csv", "out.json", "out.arrow"] {
        std::fs::write(path(name), "precious").unwrap();
        let (_, error) = failure(&copied(&format!("COPY ({rows}) TO '{name}'")));
        assert!(error.contains("division by zero") && !error.contains("Arrow error"), "{error}");
        assert_eq!(std::fs::read_to_string(path(name)).unwrap(), "precious", "{name}");
    }
    failure(&copied(&format!("COPY ({rows}) TO 'optional.csv' OPTIONS (format.delimiter ';')")));
    failure(&copied(&format!("COPY ({rows}) TO 'parts/' STORED AS PARQUET")));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| !name.contains("mergeql") && name != "optional.csv" && name != "parts"), "{left:?}");
    // And what does not fail: files with options and without, without rows, and folders, which take no second copy.
    for (to, file) in [
        ("'x.parquet'", "x.parquet"),
        ("'x.csv'", "x.csv"),
        ("'x.json'", "x.json"),
        ("'y.parquet' OPTIONS (compression 'zstd(3)')", "y.parquet"),
        ("'z/' STORED AS PARQUET", "z/*.parquet"),
        ("'hive/' STORED AS CSV PARTITIONED BY (t)", "hive/**/*.csv"),
    ] {
        stdout(&copied(&format!("COPY (SELECT 1 AS id, 'a' AS t UNION ALL SELECT 2, 'b') TO {to}")));
        assert_eq!(count(file), "n\n2\n", "{to}");
    }
    let (_, error) = failure(&copied("COPY (SELECT 3 AS id, 'c' AS t) TO 'z/' STORED AS PARQUET"));
    assert!(error.contains("has files already"), "{error}");
    for to in ["'none.csv'", "'none.parquet' OPTIONS (compression 'zstd(3)')"] {
        stdout(&copied(&format!("COPY (SELECT 1 AS id WHERE false) TO {to}")));
        assert_eq!(count(to.split('\'').nth(1).unwrap()), "n\n0\n", "{to}");
    }
    // A table that people read is a file, too; a link leads to one, and what is no file stays what it is.
    std::fs::write(path("old.txt"), "precious").unwrap();
    let late = "SELECT 1 / (1 - id) AS q FROM 'a.csv'";
    failure(&run(folder.path(), &["-c", late, "-o", "old.txt"]));
    assert_eq!(std::fs::read_to_string(path("old.txt")).unwrap(), "precious");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(path("old.txt"), path("link.txt")).unwrap();
        stdout(&run(folder.path(), &["-c", "SELECT 5 AS five", "-o", "link.txt"]));
        assert!(path("link.txt").is_symlink() && std::fs::read_to_string(path("old.txt")).unwrap().contains("five"));
        let (_, error) = failure(&run(folder.path(), &["-c", "SELECT 5 AS five", "-o", "/dev/full", "--format", "csv"]));
        assert!(error.contains("is no file"), "{error}");
    }
}

#[test]
fn dictionaries_of_files_have_room_for_those_of_others() {
    use arrow::array::{ArrayRef, DictionaryArray, Int64Array, RecordBatch, StringArray};
    use arrow::datatypes::Int8Type;
    let folder = tempfile::tempdir().unwrap();
    for (name, letter) in [("a", 'k'), ("b", 'j')] {
        let keys: Vec<String> = (0..100).map(|i| format!("{letter}{i:02}")).collect();
        let keys: DictionaryArray<Int8Type> = keys.iter().map(String::as_str).collect();
        let batch = RecordBatch::try_from_iter([
            ("k", Arc::new(keys) as ArrayRef),
            ("v", Arc::new(Int64Array::from_iter_values(0..100))),
            ("t", Arc::new(StringArray::from_iter_values((0..100).map(|i| i.to_string())))),
        ]);
        let batch = batch.unwrap();
        for sorted in [true, false] {
            let by = sorted
                .then(|| vec![parquet::file::metadata::SortingColumn { column_idx: 0, descending: false, nulls_first: false }]);
            let properties = parquet::file::properties::WriterProperties::builder().set_sorting_columns(by).build();
            let file = std::fs::File::create(folder.path().join(format!("{name}{sorted}.parquet"))).unwrap();
            let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
            writer.write(&batch).unwrap();
            writer.close().unwrap();
        }
    }
    let merged = |sorted: bool, threads: &str| {
        let statement = format!("MERGE 'a{sorted}.parquet', 'b{sorted}.parquet' ON k STRATEGY v = max, t = union ORDER BY k");
        stdout(&run(folder.path(), &["-c", &statement, "--format", "csv", "--threads", threads])).to_owned()
    };
    let one = merged(true, "1");
    assert_eq!(one.lines().count(), 201);
    for other in [merged(true, "2"), merged(false, "1"), merged(false, "2")] {
        assert_eq!(other, one);
    }
}

/// A dictionary of a file, with indices of any width, is but another way to write its values: of floats, too.
#[test]
fn dictionaries_say_all_their_values() {
    use arrow::array::{ArrayRef, DictionaryArray, Float64Array, Int8Array, Int64Array, RecordBatch};
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let shown = |statement: &str| stdout(&run(folder.path(), &["-c", statement, "--format", "csv", "--threads", "2"]));
    for (name, letters) in [("a", ["x", "y", "x"]), ("b", ["z", "y", "w"])] {
        let letters: DictionaryArray<arrow::datatypes::Int8Type> = letters.into_iter().collect();
        let floats = DictionaryArray::new(Int8Array::from(vec![0, 1, 0]), Arc::new(Float64Array::from(vec![f64::NAN, 1.5])));
        let batch = RecordBatch::try_from_iter([
            ("id", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef),
            ("t", Arc::new(letters)),
            ("f", Arc::new(floats)),
        ])
        .unwrap();
        let file = std::fs::File::create(path(&format!("{name}.parquet"))).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let file = std::fs::File::create(path(&format!("{name}.arrow"))).unwrap();
        let mut writer = arrow::ipc::writer::FileWriter::try_new(file, &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
    }
    for ending in ["parquet", "arrow"] {
        let merge = format!("MERGE 'a.{ending}', 'b.{ending}' ON id STRATEGY t = union, f = max");
        let rows = "id,t,f\n1,\"x,z\",NaN\n2,y,1.5\n3,\"w,x\",NaN\n";
        assert_eq!(shown(&format!("{merge} ORDER BY id")), rows, "{ending}");
        assert_eq!(shown(&format!("SELECT id FROM 'a.{ending}' WHERE isnan(f) ORDER BY id")), "id\n1\n3\n", "{ending}");
        // Two dictionaries for one column of the file that is written.
        for into in ["arrow", "parquet"] {
            let all = format!("SELECT * FROM 'a.{ending}' UNION ALL SELECT * FROM 'b.{ending}'");
            stdout(&run(folder.path(), &["-c", &all, "-o", &format!("all.{into}")]));
            assert_eq!(
                shown(&format!("MERGE 'all.{into}' ON id STRATEGY t = union, f = max ORDER BY id")),
                rows,
                "{ending} {into}"
            );
        }
    }
}

/// Rows without a key stand in the order of all that they have.
#[test]
fn a_file_has_the_same_bytes_whoever_wrote_it() {
    let folder = sources();
    let rows = |from: usize| -> String {
        (from..from + 300).map(|i| format!(",{},\"t{}\"\n{},{i},u\n", i % 7, i * 31 % 100, i % 50)).collect()
    };
    for (name, from) in [("x", 0), ("y", 150)] {
        std::fs::write(folder.path().join(format!("{name}.csv")), format!("id,v,tags\n{}", rows(from))).unwrap();
    }
    let mut written = Vec::new();
    for threads in ["1", "2", "3", "7"] {
        let (x, y) = if threads == "3" { ("y", "x") } else { ("x", "y") };
        let statement = format!("MERGE '{x}.csv', '{y}.csv' ON id STRATEGY tags = union, v = max INTO OR REPLACE 'out.csv'");
        stdout(&run(folder.path(), &["--threads", threads, "-c", &statement]));
        written.push(std::fs::read_to_string(folder.path().join("out.csv")).unwrap());
    }
    assert!(written[0].lines().count() > 400);
    assert!(written.iter().all(|file| *file == written[0]));
}

/// A device that is always full stands for a full disk.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_a_clear_error() {
    let folder = sources();
    let output = Command::new(env!("CARGO_BIN_EXE_mergeql"))
        .args(["-c", STATEMENT, "--format", "csv"])
        .current_dir(folder.path())
        .stdout(std::fs::File::options().write(true).open("/dev/full").unwrap())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let (code, error) = failure(&output);
    assert_eq!(code, 1, "{error}");
}

/// A statement that computes on all threads and never waits.
#[test]
#[cfg(unix)]
fn sigterm_is_heard_while_all_threads_compute() {
    let folder = sources();
    let series = "generate_series(1, 200000)";
    let statement = format!("SELECT count(*) FROM {series} AS a(x) JOIN {series} AS b(y) ON x % 1000 < y % 7 AND x + y > 5");
    let mut child = Command::new(env!("CARGO_BIN_EXE_mergeql"))
        .args(["--threads", "4", "-c", &statement])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    let told = std::time::Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(told.elapsed() < std::time::Duration::from_secs(20), "{:?}", told.elapsed());
}

#[test]
#[cfg(unix)]
fn ctrl_c_in_the_middle_of_into_leaves_nothing() {
    let folder = sources();
    let statement = "MERGE (SELECT value AS id, value AS v FROM generate_series(1, 30000000)) AS s ON id INTO 'big.parquet'";
    let mut child = Command::new(env!("CARGO_BIN_EXE_mergeql"))
        .args(["-c", statement])
        .current_dir(folder.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|n| n == "a.csv" || n == "b.ndjson"), "{names:?}");
}

#[test]
fn a_pattern_counts_per_file_whatever_the_strategy_is_called() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("late")).unwrap();
    std::fs::write(folder.path().join("late/1.csv"), "id,n\n1,7\n").unwrap();
    std::fs::write(folder.path().join("late/2.csv"), "id,n\n1,5\n").unwrap();
    for script in [
        "MERGE 'late/*.csv' ON id STRATEGY n = counter",
        "CREATE STRATEGY hits AS counter; MERGE 'late/*.csv' ON id STRATEGY n = hits",
        "CREATE STRATEGY hits AS counter; CREATE STRATEGY visits AS hits; MERGE 'late/*.csv' ON id STRATEGY n = Visits",
    ] {
        let out = stdout(&run(folder.path(), &["-c", script, "--format", "csv"]));
        assert!(out.ends_with("id,n\n1,12\n"), "{script}: {out}");
    }
    let script = "CREATE STRATEGY my_own AS max; DROP STRATEGY MY_OWN; SHOW STRATEGIES";
    assert!(!stdout(&run(folder.path(), &["-c", script])).contains("my_own"));
}

#[test]
fn types_do_not_depend_on_which_source_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [
        "(SELECT 1 AS id, CAST(2 AS BIGINT) AS v) AS a",
        "(SELECT 2 AS id, CAST(3 AS BIGINT UNSIGNED) AS v) AS b",
        "(SELECT 3 AS id, 0.5 AS v) AS c",
    ];
    let mut answers = Vec::new();
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let sql = format!("MERGE {} ON id ORDER BY id", order.map(|i| sources[i]).join(", "));
        answers.push(stdout(&run(folder.path(), &["-c", &sql, "--format", "csv"])));
    }
    assert!(answers.iter().all(|a| *a == "id,v\n1,2.0\n2,3.0\n3,0.5\n"), "{answers:?}");
}

#[test]
fn files_of_one_source_are_one_source() {
    let folder = tempfile::tempdir().unwrap();
    let query = |sql: &str| stdout(&run(folder.path(), &["-c", sql, "--format", "csv"]));
    std::fs::create_dir(folder.path().join("late")).unwrap();
    let winners = "column_name,winner_sources\nn,\"[\"\"late\"\"]\"\ntag,\"[\"\"late\"\"]\"\n";
    // Types are those of all files together, and conflicts call them by their one name.
    std::fs::write(folder.path().join("late/1.csv"), "id,n,tag\n1,7,007\n").unwrap();
    std::fs::write(folder.path().join("late/2.csv"), "id,n,tag\n1,5,x\n").unwrap();
    assert_eq!(query("MERGE 'late/*.csv' AS late ON id STRATEGY n = counter, tag = max"), "id,n,tag\n1,12,x\n");
    let conflicts = "SELECT column_name, winner_sources FROM (MERGE 'late/*.csv' AS late ON id STRATEGY n = counter, tag = max RETURNING CONFLICTS)";
    assert_eq!(query(&format!("{conflicts} AS c ORDER BY 1")), winners);
    let conflicts = conflicts.replace("n = counter", "n = max");
    assert_eq!(query(&format!("{conflicts} AS c ORDER BY 1")), winners);
    // Parquet files with other types are widened, in any order, and refused where there is no common type.
    for (file, value) in [("a", "CAST(7 AS INT)"), ("b", "0.5"), ("c", "CAST(9 AS BIGINT)")] {
        query(&format!("COPY (SELECT 1 AS id, {value} AS v) TO 'late/{file}.parquet'"));
    }
    assert_eq!(query("MERGE 'late/*.parquet' ON id STRATEGY v = max"), "id,v\n1,9.0\n");
    assert_eq!(query("MERGE 'late/*.parquet' ON id STRATEGY v = min"), "id,v\n1,0.5\n");
    query("COPY (SELECT 1 AS id, 'x' AS v) TO 'late/d.parquet'");
    let (code, error) = failure(&run(folder.path(), &["-c", "MERGE 'late/*.parquet' ON id STRATEGY v = max"]));
    assert!(code == 2 && error.starts_with("error[type_mismatch]") && error.contains("line 1, column 7"), "{error}");
}

/// What a reader of one value at a time would take for another.
#[test]
fn text_is_read_as_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let query = |sql: &str| stdout(&run(folder.path(), &["-c", sql, "--format", "csv"]));
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    // Inches: within an unquoted field a quote is a letter.
    write("pipes.csv", "id,item,size\n1,5\" pipe,3\n2,,\n3,6\" pipe,5\n4,5\" rod,1\n");
    let read = "SELECT id, item IS NULL AS nothing, size, arrow_typeof(size) AS ty FROM (MERGE 'pipes.csv' ON id) AS m ORDER BY id";
    assert_eq!(query(read), "id,nothing,size,ty\n1,false,3,Int64\n2,true,,Int64\n3,false,5,Int64\n4,false,1,Int64\n");
    // Whole numbers that a double cannot hold, beside doubles and by themselves.
    write("exact.ndjson", "{\"id\":1,\"v\":{\"n\":9007199254740993,\"f\":0.5},\"l\":[9007199254740993]}\n");
    assert_eq!(query("SELECT v['n'] AS n, l FROM (MERGE 'exact.ndjson' ON id) AS m"), "n,l\n9007199254740993,[9007199254740993]\n");
    for (name, line) in
        [("mixed", "{\"id\":1,\"v\":{\"a\":[9007199254740993,0.5]}}"), ("huge", "{\"id\":1,\"v\":[18446744073709551617]}")]
    {
        write(&format!("{name}.ndjson"), line);
        let (_, error) = failure(&run(folder.path(), &["-c", &format!("MERGE '{name}.ndjson' ON id")]));
        assert!(error.starts_with("error[type_mismatch]") && error.contains("`v`"), "{error}");
    }
    // The end of time as some write it, which nanoseconds do not reach.
    write("ends.csv", "id,until\n1,9999-12-31 23:59:59.9999999\n2,2024-01-01 00:00:00.1234567\n");
    assert_eq!(
        query("SELECT until FROM (MERGE 'ends.csv' ON id) AS m ORDER BY id LIMIT 1"),
        "until\n9999-12-31 23:59:59.9999999\n"
    );
}

/// A folder of tables may be called as it likes.
#[test]
fn a_folder_of_tables_has_any_name() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["C#", "what?", "100%25", "a b"] {
        stdout(&run(folder.path(), &["--db", name, "-c", "CREATE TABLE t AS SELECT 1 AS id, 2 AS v"]));
        stdout(&run(
            folder.path(),
            &["--db", name, "-c", "MERGE INTO t USING (SELECT 1 AS id, 3 AS v) AS s ON id STRATEGY v = max"],
        ));
        assert_eq!(stdout(&run(folder.path(), &["--db", name, "-c", "SELECT v FROM t", "--format", "csv"])), "v\n3\n", "{name}");
    }
}

/// A column by itself keeps its NULLs, and a file that lacks a column has nothing there.
#[test]
fn nothing_of_a_file_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let run = |sql: &str| run(folder.path(), &["-c", sql, "--format", "csv"]);
    stdout(&run("COPY (SELECT * FROM (VALUES (1), (NULL), (3)) AS t(v)) TO 'v.csv'"));
    assert_eq!(stdout(&run("SELECT count(*) AS n, count(v) AS v FROM 'v.csv'")), "n,v\n3,2\n");
    std::fs::create_dir(folder.path().join("d")).unwrap();
    stdout(&run("CREATE TABLE a (id INT NOT NULL, v INT NOT NULL); INSERT INTO a VALUES (1, 5);
         COPY a TO 'd/a.parquet'; COPY (SELECT 2 AS id) TO 'd/b.parquet'"));
    assert_eq!(stdout(&run("MERGE 'd/*.parquet' ON id STRATEGY v = max ORDER BY id")), "id,v\n1,5\n2,\n");
    // A column of nothing but NULL is no column of empty texts.
    std::fs::write(folder.path().join("a.csv"), "id,note\n1,\n2,\n").unwrap();
    stdout(&run("MERGE 'a.csv' ON id INTO 'b.csv'"));
    assert_eq!(std::fs::read_to_string(folder.path().join("b.csv")).unwrap(), "id,note\n1,\n2,\n");
    // A file is read by whom it was before.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.path().join("b.csv");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        stdout(&run("MERGE 'a.csv' ON id INTO OR REPLACE 'b.csv'"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let (_, error) = failure(&run("CREATE STRATEGY f AS FOLD (a, b) -> a + b; VERIFY STRATEGY f CASES 100000000000"));
    assert!(error.contains("CASES is at most"), "{error}");
}

/// What a row says is no word of the system's.
#[test]
fn an_error_about_a_broken_pipe_is_told() {
    let folder = sources();
    std::fs::write(folder.path().join("notes.csv"), "id,note\n1,Broken pipe\n").unwrap();
    let cast = "SELECT CAST(note AS BIGINT) AS n FROM 'notes.csv'";
    let (code, error) = failure(&run(folder.path(), &["-c", cast, "--format", "csv"]));
    assert!(code == 1 && error.contains("Broken pipe"), "{error}");
}
