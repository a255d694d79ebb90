//! States made in one host are joined and resolved in every other: the engine, DuckDB, Postgres and SQLite, byte for byte.
#![allow(clippy::unwrap_used, missing_docs)]

use mergeql::{Config, MergeContext};
use mergeql_host_tests::cluster::Cluster;
use mergeql_host_tests::{Host, Sample, sample};
use mergeql_lang::lower::{duckdb_type_name, postgres_type_name, sqlite_type_name};
use mergeql_udfs::{Type, catalog};

/// A host, and how its SQL writes things.
struct Partner {
    name: &'static str,
    connection: Connection,
    type_name: fn(&Type) -> String,
    blob: fn(&str) -> String,
    /// A state as bytes.
    bytes: fn(&str) -> String,
}

enum Connection {
    Process(Box<Host>),
    Engine(MergeContext, tokio::runtime::Runtime),
}

impl Partner {
    /// One value, as canonical text.
    fn ask(&mut self, sql: &str) -> String {
        let show = |value: Option<String>| value.unwrap_or_else(|| "NULL".to_owned());
        match &mut self.connection {
            Connection::Process(host) => {
                let rows = host.query_raw(sql).unwrap_or_else(|e| panic!("{}: {sql}: {e}", self.name)).unwrap();
                show(rows[0][0].clone())
            }
            Connection::Engine(context, runtime) => runtime.block_on(async {
                let frame = context.sql(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
                let batches = frame.collect().await.unwrap_or_else(|e| panic!("{sql}: {e}"));
                let value = mergeql::columns::value_at(batches[0].column(0), 0);
                if value.is_null() { "NULL".to_owned() } else { value.to_string() }
            }),
        }
    }

    /// Runs a statement that gives no rows.
    fn run(&mut self, sql: &str) {
        match &mut self.connection {
            Connection::Process(host) => drop(host.query_raw(sql).unwrap_or_else(|e| panic!("{}: {sql}: {e}", self.name))),
            Connection::Engine(context, runtime) => {
                let done = runtime.block_on(async { context.sql(sql).await?.collect().await.map_err(mergeql::MergeError::from) });
                done.unwrap_or_else(|e| panic!("{sql}: {e}"));
            }
        }
    }

    /// The state of some rows, as the canonical text of its bytes.
    fn state(&mut self, sample: &Sample, name: &str, with: &str, rows: &[String]) -> String {
        let columns: Vec<String> = (0..sample.width).map(|i| format!("c{i}")).collect();
        let listed: Vec<String> = (0..sample.width).map(|i| format!("column{} AS c{i}", i + 1)).collect();
        let values: Vec<String> = rows.iter().map(|r| format!("({r})")).collect();
        let (values, columns) = (values.join(", "), columns.join(", "));
        // SQLite has no names behind VALUES; elsewhere the names of its columns differ.
        let from = match self.name {
            "sqlite" => format!("(SELECT {} FROM (VALUES {values}))", listed.join(", ")),
            _ => format!("(VALUES {values}) AS t({columns})"),
        };
        let state = (self.bytes)(&format!("crdt_{name}_state_with('{with}', {columns})"));
        self.ask(&format!("SELECT {state} FROM {from}"))
    }
}

fn partners(cluster: &Cluster) -> Vec<Partner> {
    let variable = |name: &str| std::env::var(name).expect("run `cargo xtask test`: it prepares every host");
    let script = |name: &str| format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    let same = |sql: &str| sql.to_owned();
    let hex_literal = |hex: &str| format!("X'{hex}'");
    let python = variable("MERGEQL_DUCKDB_PYTHONS").split(':').next().unwrap().to_owned();
    let duckdb = Host::start("duckdb", &python, &[&script("duckdb_driver.py"), &variable("MERGEQL_DUCKDB_EXTENSION"), "2"]);
    let sqlite = variable("MERGEQL_SQLITE_PYTHON");
    let sqlite = Host::start("sqlite", &sqlite, &[&script("sqlite_driver.py"), &variable("MERGEQL_SQLITE_EXTENSION")]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let engine = Connection::Engine(MergeContext::new(Config::default()).unwrap(), runtime);
    let process = |host: Host| Connection::Process(Box::new(host));
    vec![
        Partner {
            name: "engine",
            connection: engine,
            type_name: |ty| if *ty == Type::Bytes { "BYTEA".to_owned() } else { duckdb_type_name(ty) },
            blob: hex_literal,
            bytes: same,
        },
        Partner {
            name: "duckdb",
            connection: process(duckdb),
            type_name: duckdb_type_name,
            blob: |hex| format!("unhex('{hex}')"),
            bytes: same,
        },
        Partner {
            name: "postgres",
            connection: process(cluster.host()),
            type_name: |ty| postgres_type_name(ty).unwrap(),
            blob: |hex| format!("decode('{hex}', 'hex')"),
            bytes: |sql| format!("bytea({sql})"),
        },
        Partner {
            name: "sqlite",
            connection: process(sqlite),
            type_name: |ty| sqlite_type_name(ty).to_owned(),
            blob: hex_literal,
            bytes: same,
        },
    ]
}

#[test]
fn states_travel_between_all_hosts() {
    let cluster = Cluster::start();
    let mut partners = partners(&cluster);
    let mut exchanged = 0;
    for entry in catalog::all() {
        let name = entry.spec().name;
        for call in (entry.spec().samples)() {
            // COMPAT.md: SQLite has neither NaN nor truth values. States of those it joins and resolves as all others.
            let makers = partners.len() - usize::from(call.inputs.contains(&Type::Boolean));
            let with = call.to_json().replace('\'', "''");
            let samples: Option<Vec<Sample>> =
                partners[..makers].iter().map(|p| sample(entry, &call, p.type_name, p.blob, |v| !v.is_nan())).collect();
            let Some(samples) = samples else { continue };
            let half = samples[0].rows.len() / 2;
            let states: Vec<String> = partners
                .iter_mut()
                .zip(&samples)
                .enumerate()
                .map(|(i, (partner, sample))| {
                    let rows = if i % 2 == 0 { &sample.rows[..half] } else { &sample.rows[half..] };
                    partner.state(sample, name, &with, rows)
                })
                .collect();
            for (i, from) in states.iter().enumerate() {
                for (j, other) in states.iter().enumerate().filter(|(j, _)| (i + j) % 2 == 1) {
                    let mut values = Vec::new();
                    for partner in &mut partners {
                        let blob = |state: &String| if state == "NULL" { "NULL".to_owned() } else { (partner.blob)(&state[2..]) };
                        let joined = format!("crdt_join({}, {})", blob(from), blob(other));
                        let bytes = partner.ask(&format!("SELECT {}", (partner.bytes)(&joined)));
                        assert_eq!(bytes, samples[0].state, "{name} {call:?}: states of {i} and {j} in {}", partner.name);
                        values.push(partner.ask(&format!("SELECT crdt_value({joined})")));
                    }
                    assert!(values.windows(2).all(|w| w[0] == w[1]), "{name} {call:?}: {values:?}");
                    exchanged += 1;
                }
            }
        }
    }
    assert!(exchanged >= 250, "only {exchanged} pairs of states were exchanged");
}

/// Values of types that few strategies have samples of are the same bytes wherever they come from.
#[test]
fn values_of_more_types_are_the_same_bytes() {
    let cluster = Cluster::start();
    let mut partners = partners(&cluster);
    partners.retain(|p| p.name != "sqlite");
    let cast = |values: &[&str], ty: &str| values.iter().map(|v| format!("CAST('{v}' AS {ty})")).collect::<Vec<_>>();
    for values in [
        cast(&["2024-02-29", "1969-12-31", "0001-01-01"], "DATE"),
        cast(&["2024-01-01 12:30:00.123456", "1969-12-31 23:59:59.999999"], "TIMESTAMP"),
        cast(&["1.50", "-0.05", "99999999.99"], "DECIMAL(10, 2)"),
        cast(&["0.5", "-0.0", "NaN", "Infinity"], "DOUBLE PRECISION"),
        cast(&["true", "false"], "BOOLEAN"),
        cast(&["23:59:59.999999", "00:00:00"], "TIME"),
        vec!["ARRAY[1, 2]".to_owned(), "ARRAY[2]".to_owned()],
        vec!["ARRAY['b', 'a']".to_owned(), "ARRAY['']".to_owned()],
    ] {
        let rows = values.iter().map(|v| format!("SELECT {v} AS v")).collect::<Vec<_>>().join(" UNION ALL ");
        for strategy in ["gset", "max"] {
            let mut states = Vec::new();
            for partner in &mut partners {
                let state = (partner.bytes)(&format!("crdt_{strategy}_state(v)"));
                states.push(partner.ask(&format!("SELECT {state} FROM ({rows}) AS t")));
            }
            assert!(states.windows(2).all(|w| w[0] == w[1]), "{strategy} of {values:?}: {states:?}");
        }
    }
}

/// Sketches made here are read by Apache DataSketches' Python package, and the reverse; over the same values both overlap.
#[test]
fn sketches_travel_to_datasketches_and_back() {
    use mergeql_udfs::{Call, Type, Value, catalog, functions};
    use std::io::{BufRead, BufReader, Write};
    let python =
        std::env::var("MERGEQL_SKETCHES_PYTHON").expect("run `cargo xtask test`: it installs the package and names it here");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sketches.py");
    let mut process = std::process::Command::new(python)
        .arg(script)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut asked = process.stdin.take().unwrap();
    let mut answers = BufReader::new(process.stdout.take().unwrap()).lines();
    let run = |name: &str, args: &[Value]| (functions::all().into_iter().find(|f| f.name == name).unwrap().run)(args).unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let number = |value: Value| value.to_f64().unwrap();
    for kind in ["hll", "theta", "cpc", "kll", "tdigest", "topk", "countmin"] {
        for (values, what) in [
            ((0..1).map(Value::Int).collect::<Vec<_>>(), "one integer"),
            ((0..5).map(Value::Int).collect(), "few integers"),
            ((0..200).map(Value::Int).collect(), "some integers"),
            ((0..50_000).map(Value::Int).collect(), "many integers"),
            ((0..300).map(|v| Value::text(format!("value {v}"))).collect(), "texts"),
            ((0..300).map(|v| Value::float(f64::from(v) / 4.0)).collect(), "doubles"),
        ] {
            let of_set = matches!(kind, "hll" | "theta" | "cpc");
            // Their count-min takes integers and texts.
            let counts = kind == "countmin" && what != "doubles";
            if (!of_set && what == "texts" && kind != "topk" && !counts)
                || (kind == "topk" && values.len() > 100)
                || (kind == "countmin" && !counts)
            {
                continue;
            }
            let ty = match &values[0] {
                Value::Int(_) => Type::INT64,
                Value::Float(_) => Type::Float64,
                _ => Type::Text,
            };
            let entry = if of_set {
                catalog::find(kind).unwrap()
            } else {
                catalog::plain().iter().find(|e| e.spec().name == kind).unwrap()
            };
            let mut ours = entry.bind(&Call::new(vec![ty])).unwrap().partial();
            values.iter().for_each(|v| ours.update(std::slice::from_ref(v)).unwrap());
            let state = |image: Value| {
                let call = Call::new(vec![Type::Bytes, Type::Text, Type::INT64]);
                let mut partial = catalog::find(kind).unwrap().bind(&call).unwrap().partial();
                partial.update(&[image, Value::text("a"), Value::Int(1)]).unwrap();
                Value::Bytes(partial.encode().unwrap().into())
            };
            let image =
                if of_set { run("crdt_to_sketch", &[Value::Bytes(ours.encode().unwrap().into())]) } else { ours.value().unwrap() };
            let Value::Bytes(bytes) = &image else { panic!("no image") };
            let shown: Vec<serde_json::Value> = values.iter().map(|v| serde_json::from_str(&v.to_json()).unwrap()).collect();
            writeln!(asked, "{}", serde_json::json!({"kind": kind, "values": shown, "image": hex(bytes)})).unwrap();
            let answer: serde_json::Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
            let read = answer["read"].as_f64().unwrap();
            let n = values.len() as f64;
            match kind {
                "topk" => assert_eq!(read, 1.0, "{kind} of {what}"),
                // Many more values than counters: never too few, and too many by no more than the sketch allows.
                "countmin" => assert!(read >= 1.0 && read <= 1.0 + n * 2.72 / 2048.0, "{kind} of {what}: {read}"),
                "kll" | "tdigest" => {
                    let [middle, most] = [values.len() / 2, values.len() - 1].map(|at| values[at].to_f64().unwrap());
                    // Their t-digest says 23433 for the median of 0 to 49999, from its own rows as from ours.
                    let near = if kind == "kll" { 0.02 } else { 0.05 };
                    assert!((read - middle).abs() <= near * most + 1.0, "{kind} of {what}: {read}");
                }
                _ => assert!((read / n - 1.0).abs() < 0.05, "{kind} of {what}: they read {read}"),
            }
            let Some(theirs) = answer["image"].as_str() else { continue };
            let theirs: Vec<u8> =
                (0..theirs.len() / 2).map(|i| u8::from_str_radix(&theirs[2 * i..2 * i + 2], 16).unwrap()).collect();
            let theirs = Value::Bytes(theirs.into());
            match kind {
                "topk" => {
                    let Value::List(items) = run("topk_items", &[state(theirs)]) else { panic!("no items") };
                    assert!(!items.is_empty() && items.len() <= values.len(), "{kind} of {what}");
                }
                // The same rows are the same sketch, to the byte.
                "countmin" => assert_eq!(theirs, image, "{kind} of {what}"),
                "kll" | "tdigest" => {
                    let of = |image: Value| number(run("sketch_quantile", &[state(image), Value::float(0.5)]));
                    let spread = values[values.len() - 1].to_f64().unwrap();
                    assert!((of(theirs) - of(image.clone())).abs() <= 0.03 * spread + 1.0, "{kind} of {what}");
                }
                _ => {
                    let (ours, theirs) =
                        (run("crdt_from_sketch", std::slice::from_ref(&image)), run("crdt_from_sketch", &[theirs]));
                    // The same values, so that the union is no more than either.
                    let both = number(run("sketch_estimate", &[run("crdt_join", &[ours.clone(), theirs.clone()])]));
                    assert_eq!(both, number(run("sketch_estimate", &[ours])), "{kind} of {what}");
                    assert_eq!(both, number(run("sketch_estimate", &[theirs])), "{kind} of {what}");
                }
            }
        }
    }
    drop(asked);
    assert!(process.wait().unwrap().success());
}

/// Anti-entropy: DuckDB and SQLite exchange hashes of parts of a table's keys, then only the rows of the parts that differ, and end equal.
#[test]
fn tables_are_synchronized_by_their_digests() {
    let cluster = Cluster::start();
    let mut partners = partners(&cluster);
    let mut host = |name: &str| {
        let at = partners.iter().position(|p| p.name == name).unwrap();
        partners.swap_remove(at)
    };
    let (mut duckdb, mut sqlite) = (host("duckdb"), host("sqlite"));
    let rows = |from: i64, to: i64| (from..to).map(|i| format!("({i}, 'person {i}', 1)")).collect::<Vec<_>>().join(", ");
    let create = "CREATE TABLE people (id BIGINT PRIMARY KEY, name TEXT, version BIGINT)";
    for (partner, changes) in [
        (
            &mut duckdb,
            vec![
                format!("INSERT INTO people VALUES {}", rows(0, 3_000)),
                "UPDATE people SET name = 'ann', version = 2 WHERE id = 7".to_owned(),
            ],
        ),
        (
            &mut sqlite,
            vec![
                format!("INSERT INTO people VALUES {}", rows(2, 3_001)),
                "UPDATE people SET name = 'bob', version = 3 WHERE id = 900".to_owned(),
            ],
        ),
    ] {
        partner.run(create);
        changes.iter().for_each(|sql| partner.run(sql));
    }
    let tree = "(SELECT merkle_agg(id, row_digest(name, version)) AS tree FROM people) AS t";
    let root = format!("SELECT crdt_value_text(tree) FROM {tree}");
    assert_ne!(duckdb.ask(&root), sqlite.ask(&root));
    let parts = |partner: &mut Partner| -> Vec<serde_json::Value> {
        serde_json::from_str(&partner.ask(&format!("SELECT mergeql_text(merkle_buckets(tree, 8)) FROM {tree}"))).unwrap()
    };
    let (ours, theirs) = (parts(&mut duckdb), parts(&mut sqlite));
    let differ: Vec<String> = (0..256).filter(|i| ours[*i] != theirs[*i]).map(|i| i.to_string()).collect();
    // Two rows here, one there, and two changed: five keys in at most as many parts.
    assert!((1..=5).contains(&differ.len()), "{differ:?}");
    let among = format!("merkle_bucket(id, 8) IN ({})", differ.join(", "));
    let count = duckdb.ask(&format!("SELECT count(*) FROM people WHERE {among}"));
    assert!(count.parse::<i64>().unwrap() < 200, "{count} rows are sent");
    let sent = |partner: &mut Partner, listed: &str| partner.ask(&format!("SELECT {listed} FROM people WHERE {among}"));
    let from_duckdb = sent(&mut duckdb, "string_agg('(' || id || ', ''' || name || ''', ' || version || ')', ', ')");
    let from_sqlite = sent(&mut sqlite, "group_concat('(' || id || ', ''' || name || ''', ' || version || ')', ', ')");
    for (partner, rows) in [(&mut duckdb, from_sqlite), (&mut sqlite, from_duckdb)] {
        partner.run("CREATE TABLE incoming (id BIGINT, name TEXT, version BIGINT)");
        partner.run(&format!("INSERT INTO incoming VALUES {rows}"));
        partner.run("CREATE TABLE merged AS SELECT * FROM (SELECT id, crdt_lww(name, version) AS name, max(version) AS version FROM (SELECT * FROM people UNION ALL SELECT * FROM incoming) AS everything GROUP BY id) AS m");
        partner.run("DELETE FROM people");
        partner.run("INSERT INTO people SELECT id, name, version FROM merged");
    }
    assert_eq!(duckdb.ask(&root), sqlite.ask(&root));
    assert_eq!(duckdb.ask("SELECT count(*) FROM people"), "3001");
    assert_eq!(sqlite.ask("SELECT name FROM people WHERE id = 900"), "bob");
}

/// The example of states that one database makes of its days, and another joins into months.
#[test]
fn days_of_two_databases_join_into_months() {
    let variable = |name: &str| std::env::var(name).expect("run `cargo xtask test`: it prepares every host");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/rollup");
    let place = tempfile::tempdir().unwrap();
    let run = |program: &str, arguments: &[&str], script: &str| {
        let script = std::fs::File::open(format!("{example}/{script}")).unwrap();
        let done = std::process::Command::new(program).args(arguments).current_dir(&place).stdin(script).output().unwrap();
        assert!(done.status.success() && done.stderr.is_empty(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let load = format!("LOAD '{}'", variable("MERGEQL_DUCKDB_EXTENSION"));
    run(&variable("MERGEQL_DUCKDB_CLI"), &["-unsigned", "-cmd", &load], "web.sql");
    let load = format!(".load {}", variable("MERGEQL_SQLITE_EXTENSION"));
    let months = run("sqlite3", &["-cmd", &load, ":memory:"], "till.sql");
    let page = std::fs::read_to_string(format!("{example}/README.md")).unwrap();
    let shown = page.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(months, shown);
}
