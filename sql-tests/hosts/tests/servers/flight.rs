//! `mergeql serve --flight` with the ADBC driver and pyarrow.

use crate::{Running, certificate, stdout, variable};
use std::path::Path;
use std::process::Command;

fn client(port: &str, folder: &Path, what: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/flight_client.py");
    let output = Command::new(variable("MERGEQL_CLIENTS_PYTHON")).args([script, port, what]).current_dir(folder).output().unwrap();
    assert_eq!(stdout(&output), "done\n", "{what}");
}

#[test]
fn adbc_reads_and_writes() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::start(folder.path(), &["serve", "--flight", "0", "--db", "shop"], 1);
    client(server.port(), folder.path(), "statements");
}

#[test]
fn who_may_come_in() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("users"), "ann:open sesame\n").unwrap();
    std::fs::write(folder.path().join("tokens"), "a-long-token\n").unwrap();
    certificate(folder.path());
    let doors = ["serve", "--flight", "0", "--password-file", "users", "--token-file", "tokens"];
    let server = Running::start(folder.path(), &doors, 1);
    client(server.port(), folder.path(), "door");
    let server = Running::start(folder.path(), &[&doors[..], &["--tls-cert", "cert.pem", "--tls-key", "key.pem"]].concat(), 1);
    client(server.port(), folder.path(), "tls");
}

#[test]
fn both_protocols_see_one_session() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::start(folder.path(), &["serve", "--postgres", "0", "--flight", "0"], 2);
    let psql = Command::new(format!("{}/psql", variable("MERGEQL_POSTGRES_BIN")))
        .args(["-d", &format!("host=127.0.0.1 port={} user=me dbname=datafusion", server.port())])
        .args(["-c", "CREATE TABLE shared (id INT) AS VALUES (5)"])
        .output()
        .unwrap();
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
    let flight = server.addresses[1].rsplit_once(':').unwrap().1;
    client(flight, folder.path(), "shared");
}
