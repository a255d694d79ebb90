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
fn a_prepared_command_is_no_query() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::start(folder.path(), &["serve", "--flight", "0", "--read-only"], 1);
    client(server.port(), folder.path(), "command");
    assert!(!folder.path().join("out.parquet").exists());
}

/// Rows that a client sends wait in a file when they are many: 160 MB go into a table by a server that may take 64 MB for statements.
#[test]
fn rows_beyond_memory_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::start(folder.path(), &["serve", "--flight", "0", "--db", "shop", "--memory-limit", "64MB"], 1);
    client(server.port(), folder.path(), "few");
    let before = server.peak();
    client(server.port(), folder.path(), "many");
    let more = server.peak() - before;
    assert!(more < 128 << 20, "{more} bytes more");
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
fn bad_clients_hurt_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::start(folder.path(), &["serve", "--flight", "0", "--db", "shop"], 1);
    let connect = || std::net::TcpStream::connect(&server.addresses[0]).unwrap();
    let mut held: Vec<_> = (0..1000).map(|_| connect()).collect();
    // HTTP/2's preface is whole in one of them.
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0x16, 3, 1, 2, 0, 1], b"P"]
    {
        let mut socket = connect();
        std::io::Write::write_all(&mut socket, garbage).ok();
        held.push(socket);
    }
    client(server.port(), folder.path(), "statements");
    // Those that say nothing are hung up on, and those that only begin to.
    for socket in [0, held.len() - 1] {
        held[socket].set_read_timeout(Some(std::time::Duration::from_secs(40))).unwrap();
        let said = std::io::Read::read_to_end(&mut held[socket], &mut Vec::new());
        assert!(said.as_ref().map_or_else(|e| e.kind() == std::io::ErrorKind::ConnectionReset, |_| true), "{said:?}");
    }
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
