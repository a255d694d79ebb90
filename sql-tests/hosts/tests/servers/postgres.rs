//! `mergeql serve --postgres` with psql and psycopg, and with clients that mean no good.

use crate::{Running, certificate, run, stdout, variable, wait};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn serve(folder: &Path, more: &[&str]) -> Running {
    Running::start(folder, &[&["serve", "--postgres", "0"], more].concat(), 1)
}

/// The script may be several queries, with `\x1e` between them, each of as many statements as it has.
fn psql_as(server: &Running, connection: &str, script: &str) -> Output {
    Command::new(format!("{}/psql", variable("MERGEQL_POSTGRES_BIN")))
        .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=0", "-v", "VERBOSITY=verbose"])
        .args(["-d", &format!("host=127.0.0.1 port={} {connection}", server.port())])
        .args(script.split('\x1e').flat_map(|query| ["-c", query]))
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
    // What a statement finds is what the one before left, also within one query.
    let told = psql(
        &server,
        "BEGIN; SELECT 1 / 0\x1eSELECT 1\x1eROLLBACK; SELECT 2\x1eBEGIN; SAVEPOINT s; SELEC\x1eROLLBACK TO s; SELECT 3; COMMIT",
    );
    assert!(told.starts_with("BEGIN\nROLLBACK\n2\nBEGIN\nSAVEPOINT\nROLLBACK\n3\nCOMMIT\n"), "{told}");
    assert!(told.matches("25P02").count() == 1, "{told}");
    // A temporary view reads what it is over when that is back.
    let told = psql(
        &server,
        "CREATE TABLE passing AS SELECT 4 AS id\x1eCREATE TEMP VIEW over_it AS SELECT * FROM passing\x1eDROP TABLE passing\x1e\
         SELECT 1\x1eSELECT * FROM over_it\x1eCREATE TABLE passing AS SELECT 5 AS id\x1eSELECT * FROM over_it",
    );
    assert!(told.contains("\n5\n") && told.contains("cannot be read"), "{told}");
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
    // What a type is called there.
    let typed = psql(
        &server,
        "CREATE TABLE typed AS SELECT 1 AS i, 1.5 AS f, CAST(2 AS DECIMAL(9, 2)) AS d, [1] AS l, now() AS z, true AS b;
         SELECT data_type, udt_name FROM \"datafusion\".INFORMATION_SCHEMA.columns AS c WHERE c.table_name = 'typed'
         ORDER BY ordinal_position",
    );
    assert_eq!(
        typed,
        "CREATE TABLE\nbigint|int8\ndouble precision|float8\nnumeric|numeric\nARRAY|_int8\ntimestamp with time zone|timestamptz\n\
         boolean|bool\n"
    );
    // psql's own ways to look around.
    let told = psql(&server, "UPDATE nyc SET salary = 1 WHERE id = 1; DELETE FROM nyc WHERE id = 1");
    assert_eq!(told, "UPDATE 1\nDELETE 1\n");
}

#[test]
fn a_temporary_table_is_of_its_connection() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), &["--db", "shop"]);
    psql(&server, TABLES);
    // Two connections at once, each with its own table of one name; while the first is there, the second looks for views anew.
    let mut first = Command::new(format!("{}/psql", variable("MERGEQL_POSTGRES_BIN")))
        .args(["-X", "-A", "-t", "-d", &format!("host=127.0.0.1 port={} user=me dbname=datafusion", server.port())])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut send = first.stdin.take().unwrap();
    let mut answers = BufReader::new(first.stdout.take().unwrap()).lines();
    let mut ask = |statement: &str, lines: usize| {
        writeln!(send, "{statement};").unwrap();
        (0..lines).map(|_| answers.next().unwrap().unwrap()).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(ask("CREATE TEMP TABLE late AS SELECT 3 AS id, 70 AS salary, 'z' AS tag", 1), "CREATE TABLE");
    assert_eq!(ask("INSERT INTO late VALUES (4, 1, 'y'), (5, 2, 'x')", 1), "INSERT 0 2");
    assert_eq!(ask("UPDATE late SET salary = 71 WHERE id = 3; DELETE FROM late WHERE id = 5", 2), "UPDATE 1\nDELETE 1");
    let merge = "MERGE london, late ON id STRATEGY salary = max, tag = union ORDER BY id";
    assert_eq!(ask(merge, 3), "1|85|c\n3|71|d,z\n4|1|y");
    assert_eq!(ask("MERGE INTO late USING london ON id STRATEGY salary = max, tag = union", 1), "MERGE 3");
    assert_eq!(ask("SELECT sum(salary) FROM late", 1), "157");
    assert_eq!(ask("SELECT count(*) FROM information_schema.columns WHERE table_name = 'late'", 1), "3");
    assert_eq!(ask("CREATE TEMP VIEW high AS SELECT id FROM late WHERE salary > 70", 1), "CREATE VIEW");
    assert_eq!(ask("SELECT * FROM high ORDER BY id", 2), "1\n3");
    // Nobody else has it, in the catalogues neither, and may make one of the same name, also one that stays.
    let error = psql(&server, merge);
    assert!(error.contains("42P01"), "{error}");
    assert_eq!(psql(&server, "SELECT count(*) FROM information_schema.tables WHERE table_name IN ('late', 'high')"), "0\n");
    assert_eq!(psql(&server, "CREATE TEMP TABLE late AS SELECT 1 AS id; SELECT * FROM late"), "CREATE TABLE\n1\n");
    assert_eq!(
        psql(&server, "CREATE TABLE late AS SELECT 9 AS id; CREATE VIEW all_late AS SELECT * FROM late"),
        "CREATE TABLE\nCREATE VIEW\n"
    );
    assert_eq!(ask("SELECT count(*) FROM late; SELECT * FROM all_late", 2), "3\n9");
    assert_eq!(psql(&server, "INSERT INTO late VALUES (10); SELECT sum(id) FROM all_late"), "INSERT 0 1\n19\n");
    assert_eq!(
        ask("SELECT count(*) FROM late; SELECT sum(id) FROM all_late; DROP TABLE late; SELECT sum(id) FROM late", 4),
        "3\n19\nDROP TABLE\n19"
    );
    drop(ask);
    drop(send);
    assert!(first.wait().unwrap().success());
    // What cannot be said of it.
    for (statements, told) in [
        ("CREATE TEMP TABLE t AS SELECT 1 AS id; CREATE VIEW v AS SELECT * FROM t", "the table `t` is temporary"),
        ("CREATE TEMP TABLE t AS SELECT 1 AS id; CREATE TABLE t AS SELECT 2 AS id", "there is a temporary table `t`"),
        ("CREATE TEMP TABLE t AS SELECT 1 AS id; ALTER TABLE t RENAME TO u", "`t` is a temporary table, and keeps its name"),
        ("CREATE TEMP TABLE nyc AS SELECT 1 AS id", "the table `nyc` is there already"),
        (
            "CREATE TEMP TABLE t AS SELECT 1 AS id; MERGE nyc, london ON id INTO OR REPLACE t WITH (state = 'keep')",
            "states are kept in tables that stay",
        ),
    ] {
        let error = psql(&server, statements);
        assert!(error.contains(told), "{statements}: {error}");
    }
    drop(server);
    let kept = run(folder.path(), &["--db", "shop", "-c", "SHOW TABLES", "--format", "csv"]);
    assert!(!stdout(&kept).contains(",t,") && stdout(&kept).contains(",all_late,"), "{}", stdout(&kept));
}

#[test]
fn rows_are_copied_through_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), &["--db", "shop"]);
    psql(&server, TABLES);
    let at = |name: &str| folder.path().join(name).display().to_string();
    // psql's \copy, in and out; NULL and an empty text stay two things, and a query may be a MERGE.
    std::fs::write(at("in.csv"), "tag,id,salary\n\"a \"\"b\"\", c\",5,1\n,6,\n\"\",7,2\n").unwrap();
    assert_eq!(psql(&server, &format!("\\copy london (tag, id, salary) from '{}' csv header", at("in.csv"))), "COPY 3\n");
    assert_eq!(
        psql(&server, "SELECT id, salary, tag IS NULL, tag FROM london WHERE id > 4 ORDER BY id"),
        "5|1|f|a \"b\", c\n6||t|\n7|2|f|\n"
    );
    let merge = "MERGE nyc, london ON id STRATEGY salary = max, tag = union ORDER BY id";
    assert_eq!(psql(&server, &format!("\\copy ({merge}) to '{}' with (format csv, header)", at("out.csv"))), "COPY 6\n");
    assert_eq!(
        std::fs::read_to_string(at("out.csv")).unwrap(),
        "id,salary,tag\n1,90,\"a,c\"\n2,72,b\n3,64,d\n5,1,\"a \"\"b\"\",c\"\n6,,\n7,2,\"\"\n"
    );
    // As text, through a table of many types and back.
    let values =
        "SELECT 1 AS i, 2.5 AS f, CAST('1.20' AS DECIMAL(9, 2)) AS d, 'tab\t, back\\ and\nline' AS t, DATE '2024-02-29' AS day,
        TIMESTAMP '2024-02-29 12:00:00.5' AS at, to_timestamp('2024-02-29T12:00:00Z') AS z, true AS b, X'00ff' AS bin, '\\N' AS n
        UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL";
    let values = values.replace("\\t", "\t").replace("\\n", "\n");
    psql(&server, &format!("CREATE TABLE typed AS {values}; CREATE TABLE back AS SELECT * FROM typed WHERE false"));
    for (how, name) in [("", "rows.txt"), ("csv header", "rows.csv"), ("with (format csv, null 'none', delimiter '|')", "rows.psv")]
    {
        assert_eq!(psql(&server, &format!("\\copy typed to '{}' {how}", at(name))), "COPY 2\n", "{how}");
        assert_eq!(psql(&server, &format!("\\copy back from '{}' {how}", at(name))), "COPY 2\n", "{how}");
        let differ = psql(
            &server,
            "SELECT count(*) FROM ((SELECT * FROM back EXCEPT SELECT * FROM typed) UNION ALL (SELECT * FROM typed EXCEPT SELECT * FROM back)) AS d",
        );
        assert_eq!(differ, "0\n", "{how}: {}", std::fs::read_to_string(at(name)).unwrap());
        psql(&server, "TRUNCATE back");
    }
    // Bad rows put nothing into the table, and say where they are.
    for (name, text, told) in [
        ("number.csv", "1,2,a\nx,3,b\n", "line 2 of what was copied: \"x\" is no Int32 for the column `id`"),
        ("few.csv", "1,2,a\n1,2\n", "line 2 of what was copied: 2 fields for 3 columns"),
        ("quote.csv", "1,2,\"a\n", "a quoted field is never closed"),
    ] {
        std::fs::write(at(name), text).unwrap();
        let before = psql(&server, "SELECT count(*) FROM nyc");
        let error = psql(&server, &format!("\\copy nyc from '{}' csv", at(name)));
        assert!(error.contains(told) && error.contains("22023"), "{name}: {error}");
        assert_eq!(psql(&server, "SELECT count(*) FROM nyc"), before);
    }
    for (statement, told) in [
        ("COPY nowhere FROM STDIN", "42P01"),
        ("COPY nyc (nothing) FROM STDIN", "42703"),
        ("COPY nyc TO STDOUT (FORMAT binary)", "no FORMAT binary"),
        ("SELECT 1; COPY nyc TO STDOUT", "by itself"),
        ("COPY (SELECT nothing FROM nyc) TO STDOUT", "42703"),
        ("COPY (DROP TABLE nyc) TO STDOUT", "this is no query"),
    ] {
        let error = psql(&server, statement);
        assert!(error.contains(told), "{statement}: {error}");
    }
    // A driver: many rows, an end in the middle, and the connection is as good as before.
    let script = r#"
import sys, psycopg
with psycopg.connect(f"host=127.0.0.1 port={sys.argv[1]} user=me dbname=datafusion", autocommit=True) as connection:
    connection.execute("CREATE TEMP TABLE many (id BIGINT, name TEXT)")
    with connection.cursor() as cursor:
        with cursor.copy("COPY many (id, name) FROM STDIN") as copy:
            for i in range(100_000):
                copy.write_row((i, None if i % 10 else f"row\t{i}"))
        assert cursor.rowcount == 100_000, cursor.rowcount
        try:
            with cursor.copy("COPY many (id, name) FROM STDIN") as copy:
                copy.write_row((1, "x"))
                raise KeyError("enough")
        except KeyError:
            pass
        cursor.execute("SELECT count(*), count(name), sum(id), max(name) FROM many")
        assert cursor.fetchone() == (100_000, 10_000, 4_999_950_000, "row\t99990"), cursor.fetchone()
        with cursor.copy("COPY (SELECT * FROM many ORDER BY id) TO STDOUT") as copy:
            rows = [row for row in copy.rows()]
        assert len(rows) == 100_000 and rows[10] == ("10", "row\t10") and rows[11] == ("11", None), rows[9:12]
print("done")
"#;
    let output = Command::new(variable("MERGEQL_CLIENTS_PYTHON")).args(["-c", script, server.port()]).output().unwrap();
    assert_eq!(stdout(&output), "done\n");
    let read_only = serve(folder.path(), &["--db", "shop", "--read-only"]);
    assert!(psql(&read_only, "COPY nyc FROM STDIN").contains("read-only"));
    assert_eq!(psql(&read_only, "COPY (SELECT 1 AS a) TO STDOUT"), "1\n");
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
    assert!(psql(&server, "DECLARE c CURSOR FOR/**/DELETE FROM t").contains("over a query"));
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
