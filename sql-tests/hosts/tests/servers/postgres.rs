//! `mergeql serve --postgres` with psql and psycopg, and with clients that mean no good.

use crate::{Running, certificate, run, stdout, variable, wait};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn serve(folder: &Path, more: &[&str]) -> Running {
    Running::start(folder, &[&["serve", "--postgres", "0"], more].concat(), 1)
}

fn psql_as(server: &Running, connection: &str, script: &str) -> Output {
    Command::new(format!("{}/psql", variable("MERGEQL_POSTGRES_BIN")))
        .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=0", "-v", "VERBOSITY=verbose"])
        .args(["-d", &format!("host=127.0.0.1 port={} {connection}", server.port()), "-c", script])
        .env("PGCONNECT_TIMEOUT", "20")
        .output()
        .unwrap()
}

/// What psql shows, with what it says of errors.
fn psql(server: &Running, script: &str) -> String {
    let output = psql_as(server, "user=me dbname=datafusion", script);
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

const TABLES: &str = "CREATE TABLE nyc (id INT, salary INT, tag TEXT) AS VALUES (1, 90, 'a'), (2, 72, 'b');
    CREATE TABLE london (id INT, salary INT, tag TEXT) AS VALUES (1, 85, 'c'), (3, 64, 'd')";

#[test]
fn psql_sends_mergeql() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), &["--db", "shop"]);
    assert_eq!(psql(&server, TABLES), "CREATE TABLE\nCREATE TABLE\n");
    let merge = "MERGE nyc, london ON id STRATEGY salary = max, tag = union";
    assert_eq!(psql(&server, &format!("{merge} ORDER BY id")), "1|90|a,c\n2|72|b\n3|64|d\n");
    assert_eq!(psql(&server, &format!("SELECT count(*) FROM ({merge}) AS m WHERE salary > 70")), "2\n");
    assert_eq!(psql(&server, &format!("CREATE TABLE both AS {merge}; SELECT sum(salary) FROM both")), "MERGE 3\n226\n");
    assert_eq!(psql(&server, "MERGE INTO nyc USING london ON id STRATEGY salary = max, tag = union"), "MERGE 3\n");
    assert_eq!(psql(&server, "SELECT * FROM nyc ORDER BY id"), "1|90|a,c\n2|72|b\n3|64|d\n");
    assert_eq!(
        psql(&server, "INSERT INTO london VALUES (7, 7, NULL); SELECT tag IS NULL FROM london WHERE id = 7"),
        "INSERT 0 1\nt\n"
    );
    assert!(psql(&server, "SHOW STRATEGIES").contains("lww|"));
    assert!(psql(&server, "EXPLAIN MERGE nyc, london ON id").contains("column|salary INTEGER = lww"));
    // What psql itself asks for.
    assert!(psql(&server, "\\dt").contains("public|nyc|table"));
    assert!(psql(&server, "\\d nyc").contains("salary|integer"));
    // Tables and strategies outlive the server.
    psql(&server, "CREATE STRATEGY joined AS concat(' / ')");
    drop(server);
    let server = serve(folder.path(), &["--db", "shop"]);
    assert_eq!(psql(&server, "MERGE london, nyc ON id STRATEGY tag = joined WHERE id = 1"), "1|90|a,c / c\n");
}

#[test]
fn errors_have_their_state_and_place() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), &[]);
    psql(&server, TABLES);
    let error = psql(&server, "SELECT 1;\nMERGE nyc, london ON id STRATEGY salary = maxx");
    assert!(error.contains("ERROR:  42883: error[unknown_strategy]: no strategy is called `maxx`"), "{error}");
    assert!(error.contains("LINE 2: MERGE nyc, london ON id STRATEGY salary = maxx\n"), "{error}");
    assert!(error.contains("HINT:  did you mean `max`?"), "{error}");
    for (statement, state) in [
        ("MERGE nyc, nowhere ON id", "42P01"),
        ("MERGE nyc, london ON nothing", "42703"),
        ("MERGE nyc london", "42601"),
        ("SELECT nothing FROM nyc", "42703"),
        ("SELEC 1", "42601"),
        ("MERGE 'no such file.csv', nyc ON id", "58030"),
    ] {
        let error = psql(&server, statement);
        assert!(error.contains(&format!("ERROR:  {state}:")), "{statement}: {error}");
    }
    // In a transaction nothing goes on after an error; each statement before it stays done.
    let told = psql(&server, "BEGIN; INSERT INTO nyc VALUES (8, 8, 'x')");
    assert_eq!(told, "BEGIN\nINSERT 0 1\n");
    assert_eq!(psql(&server, "SELECT salary FROM nyc WHERE id = 8"), "8\n");
}

#[test]
fn drivers_bind_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), &[]);
    psql(&server, TABLES);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/postgres_client.py");
    let output = Command::new(variable("MERGEQL_CLIENTS_PYTHON")).args([script, server.port()]).output().unwrap();
    assert_eq!(stdout(&output), "done\n");
}

#[test]
fn who_may_come_in() {
    let folder = tempfile::tempdir().unwrap();
    // From elsewhere nobody comes in without a word.
    for arguments in [&["serve", "--postgres", "0", "--listen", "0.0.0.0"][..], &["worker", "--listen", "0.0.0.0:0"]] {
        let refused = run(folder.path(), arguments);
        assert_eq!(refused.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("reached from other machines"), "{arguments:?}");
    }
    std::fs::write(folder.path().join("users"), "# the team\nann:open sesame\n").unwrap();
    certificate(folder.path());
    let tls = ["--password-file", "users", "--tls-cert", "cert.pem", "--tls-key", "key.pem"];
    // What is no certificate, and no key, is named before a port is taken.
    for (arguments, expected) in [
        (["serve", "--postgres", "0", "--tls-cert", "users", "--tls-key", "key.pem"], "users: this file holds no certificate"),
        (["serve", "--flight", "0", "--tls-cert", "cert.pem", "--tls-key", "cert.pem"], "cert.pem: this is no private key"),
    ] {
        let refused = run(folder.path(), &arguments);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && told.contains(expected) && !told.contains("listening"), "{told}");
    }
    let server = serve(folder.path(), &tls);
    let root = folder.path().join("cert.pem").display().to_string();
    let ask = |connection: &str| {
        let output = psql_as(&server, connection, "SELECT 41 + 1");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    assert_eq!(ask("user=ann password='open sesame' dbname=datafusion sslmode=require"), "42\n");
    let checked = format!("user=ann password='open sesame' dbname=datafusion sslmode=verify-ca sslrootcert={root}");
    assert_eq!(ask(&checked), "42\n");
    let plain = ask("user=ann password='open sesame' dbname=datafusion sslmode=disable");
    assert!(plain.contains("encrypted connections only"), "{plain}");
    for wrong in ["user=ann password=closed", "user=bob password='open sesame'", "user=ann password=''"] {
        let told = ask(&format!("{wrong} dbname=datafusion"));
        assert!(!told.contains("42\n") && told.contains("psql: error"), "{wrong}: {told}");
    }
    // A server that listens elsewhere opens no files to statements unless it is told to.
    std::fs::write(folder.path().join("a.csv"), "id,v\n1,2\n").unwrap();
    let open = serve(folder.path(), &["--password-file", "users", "--listen", "0.0.0.0", "--source", "given=a.csv"]);
    let ask = |sql: &str| {
        let output = psql_as(&open, "user=ann password='open sesame' dbname=datafusion", sql);
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    assert_eq!(ask("MERGE given ON id"), "1|2\n");
    for statement in [
        "MERGE 'a.csv' ON id",
        "SELECT * FROM 'a.csv'",
        "COPY given TO 'b.csv'",
        "MERGE given ON id INTO 'b.csv'",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'a.csv'",
        "SELECT * FROM read_safetensors('x')",
        "SELECT model_contribution('a.csv')",
    ] {
        let told = ask(statement);
        assert!(told.contains("ERROR"), "{statement}: {told}");
    }
    assert!(!folder.path().join("b.csv").exists());
}

/// A message of the protocol's startup, or of its later part behind a letter.
fn message(letter: &[u8], body: &[u8]) -> Vec<u8> {
    [letter, &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

const STARTUP: &[u8] = b"\x00\x03\x00\x00user\0ann\0database\0datafusion\0\0";

#[test]
fn who_is_refused_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("users"), "ann:open sesame\n").unwrap();
    certificate(folder.path());
    let tls = ["--password-file", "users", "--tls-cert", "cert.pem", "--tls-key", "key.pem"];
    let (by_password, by_tls) = (serve(folder.path(), &["--password-file", "users"]), serve(folder.path(), &tls));
    let query = message(b"Q", b"CREATE TABLE hacked AS SELECT 1 AS a\0");
    let prepared = [
        message(b"P", b"\0CREATE TABLE hacked AS SELECT 1 AS a\0\0\0"),
        message(b"B", &[0; 8]),
        message(b"E", &[0; 5]),
        message(b"S", b""),
    ];
    let wrong_way = message(b"p", b"SCRAM-SHA-999\0\0\0\0\0");
    let wrong_first = message(b"p", b"SCRAM-SHA-256\0\0\0\0\x05n,,xx");
    // A wrong way to say who one is, nothing of the kind, and no encryption where there must be some; at once, and after the refusal.
    for (server, greeting) in
        [(&by_password, Some(wrong_way)), (&by_password, Some(wrong_first)), (&by_password, None), (&by_tls, None)]
    {
        for wait in [0, 300] {
            for statement in [query.clone(), prepared.concat()] {
                let mut socket = TcpStream::connect(&server.addresses[0]).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                socket.write_all(&message(b"", STARTUP)).unwrap();
                socket.write_all(greeting.as_deref().unwrap_or_default()).unwrap();
                std::thread::sleep(Duration::from_millis(wait));
                // It may have hung up by then.
                socket.write_all(&statement).ok();
                let mut told = Vec::new();
                socket.read_to_end(&mut told).ok();
                assert!(!String::from_utf8_lossy(&told).contains("CREATE"), "{}", String::from_utf8_lossy(&told));
            }
        }
        let mode = if std::ptr::eq(server, &by_tls) { "require" } else { "disable" };
        let connection = format!("user=ann password='open sesame' dbname=datafusion sslmode={mode}");
        let there = psql_as(server, &connection, "SELECT count(*) FROM information_schema.tables WHERE table_name = 'hacked'");
        assert_eq!(stdout(&there), "0\n");
    }
}

#[test]
fn a_deep_statement_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), &[]);
    let deep = format!("SELECT {}1{}", "(".repeat(50_000), ")".repeat(50_000));
    let clients: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut socket = TcpStream::connect(&server.addresses[0]).unwrap();
            socket.write_all(&message(b"", STARTUP)).unwrap();
            socket.read_exact(&mut [0; 9]).unwrap();
            socket.write_all(&message(b"Q", &[deep.as_bytes(), b"\0"].concat())).unwrap();
            socket
        })
        .collect();
    let started = Instant::now();
    assert_eq!(psql(&server, "SELECT 1"), "1\n");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    drop(clients);
    let told = psql(&server, &deep[..deep.len() / 100]);
    assert!(told.contains("ERROR"), "{told}");
}

#[test]
fn tools_find_their_way_about() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), &[]);
    psql(&server, TABLES);
    // SQLAlchemy with two drivers, and asyncpg; then JDBC.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/postgres_tools.py");
    let output = Command::new(variable("MERGEQL_CLIENTS_PYTHON")).args([script, server.port()]).output().unwrap();
    assert_eq!(stdout(&output), "done\n");
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/PostgresJdbc.java");
    let output = Command::new("java").args(["-cp", "/usr/share/java/postgresql.jar", program, server.port()]).output().unwrap();
    assert_eq!(stdout(&output), "done\n");
    // psql's own ways to look around.
    let told = psql(&server, "UPDATE nyc SET salary = 1 WHERE id = 1; DELETE FROM nyc WHERE id = 1");
    assert_eq!(told, "UPDATE 1\nDELETE 1\n");
}

#[test]
fn a_read_only_server_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["--db", "shop", "-c", "CREATE TABLE t (id INT, v INT) AS VALUES (1, 2)"]);
    let server = serve(folder.path(), &["--db", "shop", "--read-only"]);
    assert_eq!(psql(&server, "MERGE t ON id"), "1|2\n");
    for statement in [
        "INSERT INTO t VALUES (2, 3)",
        "CREATE TABLE u AS SELECT 1",
        "DROP TABLE t",
        "MERGE INTO t USING t AS s ON id",
        "MERGE t ON id INTO u",
        "MERGE t ON id INTO 'out.csv'",
        "COPY t TO 'out.csv'",
        "CREATE STRATEGY s AS max",
        "CREATE VIEW w AS SELECT 1",
        "EXPLAIN ANALYZE INSERT INTO t VALUES (9, 9)",
        "ALTER TABLE t RENAME TO u",
    ] {
        let told = psql(&server, statement);
        assert!(told.contains("read-only"), "{statement}: {told}");
    }
    assert_eq!(psql(&server, "SELECT count(*) FROM t"), "1\n");
    assert!(!folder.path().join("out.csv").exists());
}

#[test]
fn statements_have_their_time() {
    let folder = tempfile::tempdir().unwrap();
    let long = "SELECT count(*) FROM generate_series(1, 20000000000) AS a(x) WHERE x % 7 = 3";
    let server = serve(folder.path(), &["--statement-timeout", "1"]);
    let started = Instant::now();
    let told = psql(&server, long);
    assert!(told.contains("57014") && started.elapsed() < Duration::from_secs(20), "{told}");
    assert_eq!(psql(&server, "SELECT 1"), "1\n");
    // A client may ask for less.
    let server = serve(folder.path(), &[]);
    let told = psql(&server, &format!("SET statement_timeout = '300ms'; {long}"));
    assert!(told.contains("57014"), "{told}");
}

#[test]
fn bad_clients_hurt_nobody() {
    let folder = tempfile::tempdir().unwrap();
    // One turn for all: who does not read must not keep it.
    let server = serve(folder.path(), &["--max-statements", "1"]);
    let connect = || TcpStream::connect(&server.addresses[0]).unwrap();
    let mut held = Vec::new();
    // Garbage of every kind: they are hung up on, or wait for what never comes.
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0; 64], &[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0], b"\x00\x00\x00\x08"]
    {
        let mut socket = connect();
        socket.write_all(garbage).ok();
        held.push(socket);
    }
    // A thousand that say nothing.
    held.extend((0..1000).map(|_| connect()));
    // One that asks for much and reads nothing.
    let mut stuck = connect();
    let mut startup = vec![0, 3, 0, 0];
    startup.extend(b"user\0slow\0database\0datafusion\0\0");
    let message = |body: &[u8]| [&(body.len() as u32 + 4).to_be_bytes()[..], body].concat();
    stuck.write_all(&message(&startup)).unwrap();
    stuck.read_exact(&mut [0; 9]).unwrap();
    let query = b"SELECT repeat('x', 1000) FROM generate_series(1, 10000000)\0";
    stuck.write_all(&[b"Q".as_slice(), &message(query)].concat()).unwrap();
    let started = Instant::now();
    for _ in 0..5 {
        assert_eq!(psql(&server, "SELECT 1"), "1\n");
    }
    assert!(started.elapsed() < Duration::from_secs(20));
    // Those that say nothing are hung up on.
    let mut silent = held.pop().unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    drop((held, stuck));
    assert_eq!(psql(&server, "SELECT 2"), "2\n");
}

#[test]
fn too_many_clients_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), &["--max-connections", "1"]);
    let mut first = TcpStream::connect(&server.addresses[0]).unwrap();
    let body = b"\x00\x03\x00\x00user\0one\0\0";
    first.write_all(&[&(body.len() as u32 + 4).to_be_bytes()[..], body].concat()).unwrap();
    first.read_exact(&mut [0; 9]).unwrap();
    let told = psql(&server, "SELECT 1");
    assert!(told.contains("too many clients"), "{told}");
    drop(first);
    wait("the place", || psql(&server, "SELECT 1") == "1\n");
}

#[test]
fn writers_at_the_same_time_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for more in [&[][..], &["--db", "shop"]] {
        let server = serve(folder.path(), more);
        psql(&server, "CREATE TABLE t (id INT, tags TEXT) AS VALUES (0, 'start')");
        std::thread::scope(|scope| {
            for writer in 0..6 {
                let server = &server;
                scope.spawn(move || {
                    for turn in 0..5 {
                        let rows = format!("(SELECT 0 AS id, 'w{writer}t{turn}' AS tags)");
                        let told = psql(server, &format!("MERGE INTO t USING {rows} AS s ON id STRATEGY tags = union"));
                        assert_eq!(told, "MERGE 1\n");
                        assert_eq!(psql(server, "SELECT id FROM t"), "0\n");
                    }
                });
            }
        });
        assert_eq!(psql(&server, "SELECT length(tags) - length(replace(tags, ',', '')) FROM t"), "30\n");
    }
}
