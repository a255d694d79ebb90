//! Objects as sources and targets: a store that speaks S3 as a real process, with the program and its workers as clients.

use crate::{Running, variable, wait};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// The store, and what its clients have to know.
struct Store {
    child: Child,
    environment: [(&'static str, String); 4],
}

impl Store {
    fn start() -> Store {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(variable("MERGEQL_CLIENTS_PYTHON"))
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let environment = [
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
            ("AWS_ACCESS_KEY_ID", "who".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ];
        let store = Store { child, environment };
        wait("the store", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        store.python("s3.create_bucket(Bucket='shop')");
        store
    }

    /// Runs a line against the store with the client that everybody uses.
    fn python(&self, code: &str) -> String {
        let code = format!("import boto3; s3 = boto3.client('s3', endpoint_url='{}')\n{code}", self.environment[0].1);
        let output = self.with(Command::new(variable("MERGEQL_CLIENTS_PYTHON")).args(["-c", &code])).output().unwrap();
        crate::stdout(&output)
    }

    fn with<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(self.environment.iter().map(|(name, value)| (name, value)))
    }

    fn run(&self, folder: &Path, arguments: &[&str]) -> Output {
        self.with(Command::new(variable("MERGEQL_PROGRAM")).args(arguments).current_dir(folder).stdin(Stdio::null()))
            .output()
            .unwrap()
    }

    fn stdout(&self, folder: &Path, arguments: &[&str]) -> String {
        crate::stdout(&self.run(folder, arguments))
    }

    fn fails(&self, folder: &Path, statement: &str) -> String {
        let output = self.run(folder, &["-c", statement]);
        assert!(!output.status.success(), "{statement}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

const ENDINGS: [&str; 5] = ["csv", "ndjson", "json", "parquet", "arrow"];

/// Two exports in every format, as files and as objects.
fn exports(store: &Store, folder: &Path) {
    for (name, add) in [("nyc", 0), ("london", 1)] {
        let rows = "SELECT value AS id, value * 7 % (5 + {add}) AS salary, 't' || (value % 3) AS tag FROM generate_series(1, 2000)";
        let rows = rows.replace("{add}", &add.to_string());
        for ending in ENDINGS {
            for place in ["", "s3://shop/raw/"] {
                let merge = format!("MERGE ({rows}) AS s ON (id, salary) INTO '{place}{name}.{ending}'");
                store.stdout(folder, &["-c", &merge]);
            }
        }
    }
}

#[test]
fn objects_are_read_and_written_as_files_are() {
    let (store, folder) = (Store::start(), tempfile::tempdir().unwrap());
    let folder = folder.path();
    exports(&store, folder);
    let merge = "MERGE 'nyc.csv', 'london.csv' ON id STRATEGY salary = max, tag = union ORDER BY id";
    let expected = store.stdout(folder, &["-c", merge, "--format", "csv"]);
    assert_eq!(expected.lines().count(), 2001);
    for ending in ENDINGS {
        let written = store.python(&format!(
            "import sys; sys.stdout.buffer.write(s3.get_object(Bucket='shop', Key='raw/nyc.{ending}')['Body'].read())"
        ));
        assert_eq!(written, String::from_utf8_lossy(&std::fs::read(folder.join(format!("nyc.{ending}"))).unwrap()), "{ending}");
        for sources in [
            format!("'s3://shop/raw/nyc.{ending}', 's3://shop/raw/london.{ending}'"),
            format!("'s3://shop/raw/*.{ending}'"),
            format!("'s3://shop/r?w/[ln]*.{ending}', 'nyc.{ending}'"),
        ] {
            let merge = format!("MERGE {sources} ON id STRATEGY salary = max, tag = union ORDER BY id");
            assert_eq!(store.stdout(folder, &["-c", &merge, "--format", "csv"]), expected, "{merge}");
        }
    }
    // A folder; where rows came from; names that mean something elsewhere.
    store.stdout(folder, &["-c", "MERGE (SELECT 1 AS id, 2 AS n) AS s ON id INTO 's3://shop/odd/a b%20#1.csv'"]);
    store.stdout(folder, &["-c", "MERGE (SELECT 2 AS id, 3 AS n) AS s ON id INTO 's3://shop/odd/ä+&.csv'"]);
    let odd = store.stdout(folder, &["-c", "MERGE 's3://shop/odd/' ON id ORDER BY id", "--format", "csv"]);
    assert_eq!(odd, "id,n\n1,2\n2,3\n");
    let origins = "MERGE 's3://shop/raw/nyc.csv', 'london.csv' ON id RETURNING PROVENANCE ORDER BY id LIMIT 1";
    assert!(store.stdout(folder, &["-c", origins, "--format", "csv"]).contains("s3://shop/raw/nyc.csv"));
    // More than one piece.
    let big = "MERGE (SELECT value AS id, sha256(value::TEXT) AS noise FROM generate_series(1, 700000)) AS s ON id INTO 's3://shop/big.parquet'";
    store.stdout(folder, &["-c", big]);
    let count = "SELECT count(DISTINCT noise) FROM (MERGE 's3://shop/big.parquet' ON id) AS m";
    assert_eq!(store.stdout(folder, &["-c", count, "--format", "csv"]).lines().last(), Some("700000"));
    let size = store.python("print(s3.head_object(Bucket='shop', Key='big.parquet')['ContentLength'])");
    assert!(size.trim().parse::<usize>().unwrap() > 16 << 20, "{size}");
    // What is wrong is said, and nothing is written.
    let there = store.fails(folder, "MERGE 'nyc.csv' ON id INTO 's3://shop/raw/nyc.csv'");
    assert!(there.contains("is there already") && there.contains("INTO OR REPLACE"), "{there}");
    store.stdout(folder, &["-c", "MERGE 'nyc.csv' ON id INTO OR REPLACE 's3://shop/raw/nyc.csv'"]);
    for (source, said) in [
        ("s3://shop/none.csv", "s3://shop/none.csv: there is no such object"),
        ("s3://shop/none/*.csv", "names no objects"),
        ("s3://elsewhere/a.csv", "s3://elsewhere/a.csv"),
        ("s3://", "names no object"),
        ("gs://shop/a.csv", "names no store that is known here"),
    ] {
        let error = store.fails(folder, &format!("MERGE '{source}' ON id INTO 's3://shop/never.csv'"));
        assert!(error.contains(said) && error.contains("error["), "{error}");
    }
    let broken = store.fails(folder, "MERGE (SELECT value AS id, 1 / (value - 90000) AS n FROM generate_series(1, 100000)) AS s ON id INTO 's3://shop/never.csv'");
    assert!(broken.contains("zero"), "{broken}");
    assert_eq!(store.python("print('Contents' in s3.list_objects_v2(Bucket='shop', Prefix='never'))"), "False\n");
}

#[test]
fn what_is_copied_to_objects_appears_whole_or_not_at_all() {
    let (store, folder) = (Store::start(), tempfile::tempdir().unwrap());
    let folder = folder.path();
    let names = || store.python("print(*(o['Key'] for o in s3.list_objects_v2(Bucket='shop').get('Contents', [])))");
    // The last row of many fails.
    let rows = "SELECT value AS id, 10 / (199999 - value) AS q FROM generate_series(0, 199999)";
    for to in ["a.parquet'", "b.csv'", "c.csv' OPTIONS (format.delimiter ';')", "parts/' STORED AS PARQUET"] {
        let error = store.fails(folder, &format!("COPY ({rows}) TO 's3://shop/{to}"));
        assert!(error.contains("division by zero"), "{error}");
        assert_eq!(names(), "\n", "{to}");
    }
    for (to, read) in [
        ("x.parquet'", "x.parquet"),
        ("x.csv'", "x.csv"),
        ("y.parquet' OPTIONS (compression 'zstd(3)')", "y.parquet"),
        ("z/' STORED AS PARQUET", "z/*.parquet"),
        ("hive/' STORED AS CSV PARTITIONED BY (t)", "hive/**/*.csv"),
    ] {
        store.stdout(folder, &["-c", &format!("COPY (SELECT 1 AS id, 'a b' AS t UNION ALL SELECT 2, 'c') TO 's3://shop/{to}")]);
        let count = format!("SELECT count(*) AS n FROM 's3://shop/{read}'");
        assert_eq!(store.stdout(folder, &["-c", &count, "--format", "csv"]), "n\n2\n", "{to}");
    }
    assert!(names().contains("hive/t=c/"), "{}", names());
    let again = store.fails(folder, "COPY (SELECT 3 AS id) TO 's3://shop/hive/' STORED AS CSV");
    assert!(again.contains("has files already"), "{again}");
    // A single object is replaced, as a file is.
    store.stdout(folder, &["-c", "COPY (SELECT 3 AS id) TO 's3://shop/x.csv'"]);
    assert_eq!(store.stdout(folder, &["-c", "SELECT * FROM 's3://shop/x.csv'", "--format", "csv"]), "id\n3\n");
}

#[test]
fn workers_read_objects() {
    let (store, folder) = (Store::start(), tempfile::tempdir().unwrap());
    let folder = folder.path();
    exports(&store, folder);
    let start = |_| {
        let mut command = Command::new(variable("MERGEQL_PROGRAM"));
        store.with(command.args(["worker", "--listen", "127.0.0.1:0"]));
        Running::of(command, folder, 1)
    };
    let workers: Vec<Running> = (0..3).map(start).collect();
    let listed: String = workers.iter().map(|w| format!("{}\n", w.addresses[0])).collect();
    std::fs::write(folder.join("workers.txt"), listed).unwrap();
    for ending in ["csv", "ndjson", "parquet"] {
        let merge = format!("MERGE 's3://shop/raw/*.{ending}' ON id STRATEGY salary = max, tag = union ORDER BY id");
        let alone = store.stdout(folder, &["-c", &merge, "--format", "csv"]);
        let cluster = ["--cluster", "workers.txt", "--task-size", "1KB", "-c", &merge, "--format", "csv"];
        assert_eq!(store.stdout(folder, &cluster), alone, "{ending}");
    }
    // In ranges of the key, which the footers of sorted files tell.
    let sorted =
        "MERGE (SELECT value AS id, value % 10 AS n FROM generate_series(1, 300000)) AS s ON id INTO 's3://shop/sorted/{}.parquet'";
    for name in ["a", "b"] {
        store.stdout(folder, &["-c", &sorted.replace("{}", name)]);
    }
    let merge = "MERGE 's3://shop/sorted/a.parquet', 's3://shop/sorted/b.parquet' ON id STRATEGY n = max INTO OR REPLACE 's3://shop/all.parquet'";
    store.stdout(folder, &["--cluster", "workers.txt", "--task-size", "100KB", "-c", merge]);
    let check = "SELECT count(*) AS n, sum(n) AS s FROM (MERGE 's3://shop/all.parquet' ON id) AS m";
    assert_eq!(store.stdout(folder, &["-c", check, "--format", "csv"]), "n,s\n300000,1350000\n");
}
