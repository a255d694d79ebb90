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
        Partner { name: "engine", connection: engine, type_name: duckdb_type_name, blob: hex_literal, bytes: same },
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
            // COMPAT.md: SQLite has neither NaN nor truth values.
            let booleans = call.inputs.contains(&Type::Boolean);
            let with = call.to_json().replace('\'', "''");
            let samples: Vec<Option<Sample>> =
                partners.iter().map(|p| sample(entry, &call, p.type_name, |v| !v.is_nan())).collect();
            if booleans || samples.iter().any(Option::is_none) {
                continue;
            }
            let samples: Vec<Sample> = samples.into_iter().flatten().collect();
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
    assert!(exchanged >= 200, "only {exchanged} pairs of states were exchanged");
}
