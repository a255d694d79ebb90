//! The same statements, rows and states in real SQLite processes.
#![allow(clippy::unwrap_used, missing_docs)]

mod replicas;

use mergeql_host_tests::kept::tables_that_keep_states_converge;
use mergeql_host_tests::{Host, Sample, one, run_slt_files, sample};
use mergeql_lang::lower::sqlite_type_name;
use mergeql_sql_tests::pages::{blocks, run_js};
use mergeql_udfs::{Type, catalog, functions};
use replicas::{pull, replicas};

fn library() -> String {
    std::env::var("MERGEQL_SQLITE_EXTENSION").expect("run `cargo xtask test`: it builds the extension")
}

fn start(file: Option<&str>) -> Host {
    // Debian's Python loads extensions; others may have been built without.
    let python = std::env::var("MERGEQL_SQLITE_PYTHON").expect("run `cargo xtask test`: it names a Python that loads extensions");
    let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/sqlite_driver.py");
    let library = library();
    Host::start("sqlite", &python, &[&[driver, &library], file.as_slice()].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_slt_file_passes() {
    run_slt_files(|| start(None)).await;
}

/// For every strategy: shuffled and repeated rows give the state bytes that the core gives; states made in parts join to them.
#[test]
fn every_aggregate_keeps_the_laws_and_the_bytes() {
    let mut host = start(None);
    let (mut checked, mut truths) = (0, 0);
    for entry in catalog::all() {
        for call in (entry.spec().samples)() {
            let Some(Sample { rows, state: expected, .. }) =
                sample(entry, &call, |ty| sqlite_type_name(ty).to_owned(), |hex| format!("X'{hex}'"), |v| !v.is_nan())
            else {
                continue;
            };
            let name = entry.spec().name;
            // COMPAT.md: truth values are numbers, except where a strategy takes nothing else.
            let mut numbers = call.clone();
            numbers.inputs.iter_mut().filter(|ty| **ty == Type::Boolean).for_each(|ty| *ty = Type::INT64);
            if numbers != call && entry.bind(&numbers).is_ok() {
                continue;
            }
            truths += usize::from(numbers != call);
            let columns: Vec<String> = (0..call.inputs.len()).map(|i| format!("c{i}")).collect();
            let columns = columns.join(", ");
            let values: Vec<String> = rows.iter().map(|r| format!("({r})")).collect();
            host.raw("DROP TABLE IF EXISTS rows").unwrap();
            host.raw(&format!("CREATE TABLE rows ({columns}); INSERT INTO rows VALUES {}", values.join(", "))).unwrap();
            let with = call.to_json().replace('\'', "''");
            let state = format!("crdt_{name}_state_with('{with}', {columns})");
            for from in ["rows", "(SELECT * FROM (SELECT * FROM rows UNION ALL SELECT * FROM rows) ORDER BY random())"] {
                let answer = host.query_raw(&format!("SELECT {state} FROM {from}"));
                let answer = answer.map(|rows| rows.unwrap()[0][0].clone().unwrap_or_else(|| "NULL".to_owned())).map_err(|e| e.0);
                assert_eq!(answer, Ok(expected.clone()), "{name} {call:?} from {from}");
            }
            let parts = format!("SELECT {state} AS s FROM rows GROUP BY rowid % 3");
            assert_eq!(one(&mut host, &format!("SELECT crdt_merge(s) FROM ({parts})")), expected, "{name} {call:?} in parts");
            checked += 1;
        }
    }
    assert!(checked >= 10 && truths >= 5, "only {checked} calls were checked, {truths} of them with truth values");
}

/// The result of a query that is not MergeQL's.
fn raw(host: &mut Host, sql: &str) -> String {
    let rows = host.query_raw(sql).unwrap_or_else(|e| panic!("{sql}: {e}")).unwrap_or_default();
    rows.first().and_then(|r| r.first().cloned().flatten()).unwrap_or_else(|| "NULL".to_owned())
}

/// In the shell, with all that a connection can forbid.
#[test]
fn it_works_under_every_protection() {
    let script = format!(
        ".load {}\n.dbconfig defensive on\n.dbconfig trusted_schema off\n.dbconfig dqs_ddl off\n.dbconfig dqs_dml off\n\
         CREATE TABLE t (id TEXT PRIMARY KEY, v, n INT);\nSELECT length(crdt_table('t', 'n pncounter'));\n\
         INSERT INTO t VALUES ('a', 1, 1);\nUPDATE t SET n = n + 1;\nSELECT count(*) FROM mergeql_changes;\n\
         SELECT crdt_alter('t', 'ALTER TABLE t ADD COLUMN z', 'z max');\nCREATE TABLE a (id INTEGER, v INTEGER);\n\
         INSERT INTO a VALUES (1, 2), (2, 3);\nSELECT mergeql_exec('MERGE a ON id STRATEGY v = max INTO k WITH (state = ''keep'')');\n\
         SELECT mergeql_exec('MERGE INTO k USING a ON id');\nSELECT id, v FROM k ORDER BY id;\n\
         CREATE VIRTUAL TABLE temp.m USING mergeql('MERGE a ON id STRATEGY v = max');\nSELECT * FROM m WHERE id = 1;\nSELECT crdt_compact();\n",
        library()
    );
    let folder = tempfile::tempdir().unwrap();
    let mut shell = std::process::Command::new("sqlite3")
        .arg(folder.path().join("t.db"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let said = String::from_utf8_lossy(&output.stdout);
    let answers: Vec<&str> = said.lines().filter(|l| !l.contains(" on") && !l.contains(" off")).collect();
    assert_eq!(answers, ["16", "3", "", "2", "0", "1|2", "2|3", "1|2", "0"], "{said}");
}

/// Every function of ours, whatever it takes, given blobs.
#[test]
fn no_function_panics() {
    let mut host = start(None);
    host.raw(
        "CREATE TABLE blobs (b); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) \
         INSERT INTO blobs SELECT CASE i % 3 WHEN 0 THEN x'4d5101' || randomblob(i) WHEN 1 THEN randomblob(i) ELSE x'00' END FROM n",
    )
    .unwrap();
    let functions = "SELECT DISTINCT name, narg FROM pragma_function_list WHERE NOT builtin AND name NOT LIKE 'mergeql_exec%'";
    let mut functions = host.query_raw(functions).unwrap().unwrap();
    // SQLite has some that are not built in either.
    let named: Vec<&str> =
        functions::all().iter().map(|f| f.name).chain(catalog::plain().iter().map(catalog::plain_name)).collect();
    let ours = |name: &str| name.starts_with("crdt_") || name.starts_with("mergeql_") || named.contains(&name);
    functions.retain(|row| row[0].as_deref().is_some_and(ours));
    let (mut called, mut panics) = (0, Vec::new());
    for row in functions {
        let (name, most) = (row[0].clone().unwrap(), row[1].clone().unwrap());
        let counts = if most == "-1" { 0..4 } else { most.parse().unwrap()..most.parse::<usize>().unwrap() + 1 };
        for count in counts {
            let arguments = vec!["b"; count].join(", ");
            let each = format!("SELECT {name}({arguments}) FROM blobs WHERE rowid = ?");
            let answer = host.ask(&serde_json::json!({ "each": each, "rows": 60 })).unwrap();
            panics.extend(answer["panics"].as_array().into_iter().flatten().map(|p| format!("{each}: {p}")));
            called += 1;
        }
    }
    assert!(panics.is_empty(), "{panics:#?}");
    assert!(called > 300, "{called}");
}

/// A process that is killed while it applies changes leaves all of them or none.
#[test]
fn a_crash_leaves_the_old_rows_or_the_new() {
    let folder = tempfile::tempdir().unwrap();
    let table = "CREATE TABLE t (id INTEGER PRIMARY KEY, v)";
    let (mut hosts, paths) = replicas(folder.path(), table, "SELECT crdt_table('t', '')");
    hosts[0].raw("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) INSERT INTO t SELECT i, 'v' || i FROM n").unwrap();
    raw(&mut hosts[0], "SELECT count(*) FROM mergeql_changes");
    for wait in [30, 300, 900] {
        let mut victim = start(Some(&paths[1]));
        let path = paths[0].clone();
        let process = victim.id();
        let applying = std::thread::spawn(move || pull(&mut victim, &path, 0).is_ok());
        std::thread::sleep(std::time::Duration::from_millis(wait));
        std::process::Command::new("kill").args(["-9", &process.to_string()]).status().unwrap();
        applying.join().unwrap();
        let mut host = start(Some(&paths[1]));
        let count = raw(&mut host, "SELECT count(*) FROM t");
        assert!(count == "0" || count == "5000", "{count}");
        assert_eq!(raw(&mut host, "SELECT integrity_check FROM pragma_integrity_check"), "ok");
    }
    pull(&mut hosts[1], &paths[0], 0).unwrap();
    assert_eq!(raw(&mut hosts[1], "SELECT count(*) FROM t"), "5000");
}

/// A query that is interrupted ends in an error, and the process goes on.
#[test]
fn an_interrupt_ends_the_query_alone() {
    let mut host = start(None);
    host.raw(
        "CREATE TABLE t (id INTEGER, v TEXT); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400000) \
         INSERT INTO t SELECT i % 1000, 'value ' || i FROM n; CREATE VIRTUAL TABLE temp.m USING mergeql('MERGE t ON id STRATEGY v = gset')",
    )
    .unwrap();
    let sql = "CREATE TABLE made AS SELECT * FROM m";
    let error = host.ask(&serde_json::json!({ "sql": sql, "raw": true, "plain": true, "interrupt_after": 0.2 })).unwrap_err();
    assert!(error.0.contains("interrupted"), "{error}");
    assert_eq!(raw(&mut host, "SELECT crdt_max(id) FROM t"), "999");
    assert_eq!(raw(&mut host, "SELECT count(*) FROM sqlite_schema WHERE name = 'made'"), "0");
}

/// With every protection on, in views and triggers, beside other connections.
#[test]
fn it_works_where_schemas_are_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.db").display().to_string();
    let mut host = start(Some(&path));
    host.raw("PRAGMA journal_mode = WAL; PRAGMA trusted_schema = OFF; CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, ts INTEGER)")
        .unwrap();
    raw(&mut host, "SELECT crdt_table('t', 'v lww')");
    host.raw("CREATE VIEW newest AS SELECT crdt_lww(v, ts) AS v, crdt_value(crdt_max_state(ts)) AS ts FROM t; INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)").unwrap();
    assert_eq!(raw(&mut host, "SELECT mergeql_text(v, ts) FROM newest"), "b, 2");
    let mut other = start(Some(&path));
    other.raw("UPDATE t SET v = 'c' WHERE id = 1").unwrap();
    assert_eq!(raw(&mut host, "SELECT crdt_value(state) FROM mergeql_changes WHERE pk = 1 AND col = 'v'"), "\"c\"");
    // What runs statements is not for views and triggers.
    host.raw("CREATE VIEW evil AS SELECT mergeql_exec('CREATE STRATEGY x AS max')").unwrap();
    assert!(host.query_raw("SELECT * FROM evil").unwrap_err().0.contains("unsafe use"));
}

/// Every function that takes a state, given what is none.
#[test]
fn random_blobs_never_crash_the_process() {
    let mut host = start(None);
    host.raw(
        "CREATE TABLE blobs (b); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000) \
         INSERT INTO blobs SELECT randomblob(1 + i % 30) FROM n; INSERT INTO blobs SELECT x'4d5101' || b FROM blobs; \
         CREATE TABLE good AS SELECT crdt_union_state(v) AS s FROM (SELECT 'a,b' AS v UNION SELECT 'c')",
    )
    .unwrap();
    for function in [
        "crdt_value(b)",
        "crdt_info(b)",
        "crdt_type(b)",
        "crdt_compress(b)",
        "crdt_value_bigint(b)",
        "crdt_join(b, (SELECT s FROM good))",
        "crdt_compare(b, b)",
        "crdt_delta((SELECT s FROM good), b)",
        "orset_add(b, 1, 'a')",
        "counter_add(b, 'a', 1)",
        "flag_disable(b)",
        "mergeql_unpack(b, 'a')",
    ] {
        let answer = host
            .ask(&serde_json::json!({ "each": format!("SELECT {function} FROM blobs WHERE rowid = ?"), "rows": 20000 }))
            .unwrap();
        assert!(answer["refused"].as_u64().unwrap() >= 19_000, "{function}: {answer}");
    }
    assert_eq!(raw(&mut host, "SELECT crdt_value(s) FROM good"), "\"a,b,c\"");
}

/// A table that reads its merge anew each time, and only the rows that are asked for.
#[test]
fn virtual_tables_are_fresh_and_selective() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.db").display().to_string();
    let mut host = start(None);
    host.raw(&format!(
        "ATTACH '{other}' AS far; CREATE TABLE far.london (id INTEGER PRIMARY KEY, v INTEGER); INSERT INTO far.london VALUES (1, 5), (2, 6); \
         CREATE TABLE nyc (id INTEGER PRIMARY KEY, v INTEGER); INSERT INTO nyc VALUES (1, 9), (3, 3); \
         CREATE VIRTUAL TABLE temp.m USING mergeql('MERGE nyc, far.london ON id STRATEGY v = max')"
    ))
    .unwrap();
    assert_eq!(raw(&mut host, "SELECT group_concat(id || '=' || v) FROM (SELECT * FROM m ORDER BY id)"), "1=9,2=6,3=3");
    host.raw("BEGIN").unwrap();
    host.raw("INSERT INTO nyc VALUES (2, 8)").unwrap();
    assert_eq!(raw(&mut host, "SELECT v FROM m WHERE id = 2"), "8");
    host.raw("ROLLBACK").unwrap();
    assert_eq!(raw(&mut host, "SELECT v FROM m WHERE id = 2"), "6");
    assert_eq!(raw(&mut host, "SELECT name || ' ' || type FROM pragma_table_info('m') WHERE cid = 1"), "v INTEGER");
    // Rows of other keys are not even looked at: theirs is a value that the merge would refuse.
    host.raw("INSERT INTO nyc VALUES (7, 'not a number')").unwrap();
    assert!(host.query_raw("SELECT * FROM m").unwrap_err().0.contains("type_mismatch"));
    assert_eq!(raw(&mut host, "SELECT v FROM m WHERE id = 2"), "6");
    assert_eq!(raw(&mut host, "SELECT count(*) FROM nyc JOIN m USING (id) WHERE nyc.id < 4"), "2");
    // Looks within one statement share what they know of columns whose declaration tells no type, until something changes.
    host.raw(
        "CREATE TABLE priced AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 2000) SELECT id, CAST(id AS NUMERIC) AS price FROM n; \
         CREATE UNIQUE INDEX by_id ON priced (id); CREATE VIRTUAL TABLE temp.p USING mergeql('MERGE priced ON id STRATEGY price = max'); \
         CREATE TABLE orders AS SELECT id AS pid FROM priced",
    )
    .unwrap();
    assert_eq!(
        raw(&mut host, "SELECT count(*) || ' ' || sum(p.price) FROM orders CROSS JOIN p ON p.id = orders.pid"),
        "2000 2001000"
    );
    host.raw("UPDATE priced SET price = 0.5 WHERE id = 2000").unwrap();
    assert_eq!(raw(&mut host, "SELECT sum(p.price) FROM orders CROSS JOIN p ON p.id = orders.pid"), "1999000.5");
    // A table whose source is gone cannot be read, but dropped.
    host.raw("DROP TABLE nyc").unwrap();
    assert!(host.query_raw("SELECT * FROM m").unwrap_err().0.contains("unknown_source"));
    host.raw("DROP TABLE m").unwrap();
}

/// Every block of the SQLite page runs, and gives what the page says.
#[test]
fn the_page_says_what_comes_out() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("page.db").display().to_string();
    // The shell runs where the file lies.
    std::os::unix::fs::symlink(library(), folder.path().join("mergeql0.so")).unwrap();
    // The shell keeps a session's temporary tables: all blocks are one session, with marks between them.
    let (mut script, mut said) = (String::new(), String::new());
    let (mut python, mut printed) = (String::new(), String::new());
    for block in blocks(include_str!("../../../../docs/hosts/sqlite.md")) {
        let expected = block.expected.unwrap_or_default();
        match block.language.as_str() {
            "sql" => {
                script.push_str(&block.code);
                script.push_str(".print ----\n");
                said.push_str(&format!("{expected}----\n"));
            }
            "python" => {
                python.push_str(&block.code);
                printed.push_str(&expected);
            }
            // Each block is a program of its own.
            "js" => assert_eq!(run_js(&block.code), Ok(expected), "{}", block.code),
            _ => {}
        }
    }
    let mut shell = std::process::Command::new("sqlite3")
        .arg(&database)
        .current_dir(folder.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the shell of SQLite is installed");
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), said);
    let program = std::env::var("MERGEQL_SQLITE_PYTHON").unwrap();
    let output = std::process::Command::new(program).args(["-c", &python]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), printed);
}

/// A target that may grow gets the columns that only the sources have.
#[test]
fn a_target_grows_where_it_may() {
    let mut host = start(None);
    host.raw(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER); CREATE TABLE s AS SELECT 1 AS id, 2 AS v, 1.5 AS price, 'x' AS note",
    )
    .unwrap();
    let into = "MERGE INTO t USING s ON id STRATEGY * = max";
    let refused = host.query(into).unwrap_err();
    assert!(refused.0.contains("schema = 'extend'"), "{refused}");
    host.query(&format!("{into} WITH (schema = 'extend')")).unwrap();
    assert_eq!(raw(&mut host, "SELECT mergeql_text(v, price, note) FROM t"), "2, 1.5, x");
}

/// A merge as a table, over sources that change, and compared by other collations.
#[test]
fn merged_tables_show_what_is_there() {
    let mut host = start(None);
    host.raw("CREATE TABLE a (id TEXT, v INTEGER); INSERT INTO a VALUES ('Ann', 1), ('ann', 2), ('Bob', 3)").unwrap();
    host.raw("CREATE VIRTUAL TABLE temp.m USING mergeql('MERGE a ON id STRATEGY v = max')").unwrap();
    assert_eq!(raw(&mut host, "SELECT group_concat(v) FROM m WHERE id = 'ann'"), "2");
    assert_eq!(raw(&mut host, "SELECT group_concat(v) FROM (SELECT v FROM m WHERE id = 'ann' COLLATE NOCASE ORDER BY v)"), "1,2");
    host.raw("DROP TABLE a; CREATE TABLE a (id TEXT, w INTEGER, v INTEGER); INSERT INTO a VALUES ('Ann', 7, 1)").unwrap();
    let refused = host.query_raw("SELECT v FROM m").unwrap_err();
    assert!(refused.0.contains("other columns now"), "{refused}");
    // Elements that are numbers, beside truth values that are numbers too.
    let twopset = "SELECT crdt_twopset(v, gone) FROM (SELECT 5 AS v, 0 AS gone UNION ALL SELECT 7, 0 UNION ALL SELECT 9, 0 UNION ALL SELECT 9, 1)";
    assert_eq!(raw(&mut host, twopset), "[5,7]");
}

#[test]
fn tables_that_keep_states_equal_one_merge() {
    tables_that_keep_states_converge(&mut start(None), ["INTEGER", "REAL", "TEXT", "BOOLEAN"], true);
}

/// Tables that keep states: deleted rows stay with their table, whatever is attached or renamed.
#[test]
fn tables_that_keep_states_keep_to_themselves() {
    let mut host = start(None);
    let into = |host: &mut Host, sql: &str| host.query(sql).map(drop).map_err(|e| e.0);
    let gone = "(SELECT 1 AS id, 2 AS v, true AS gone, 5 AS ts) AS s";
    let back = "(SELECT 1 AS id, 3 AS v, false AS gone, 2 AS ts) AS s";
    let make = |table: &str| format!("MERGE {gone} ON id VERSION BY ts DELETE BY gone INTO {table} WITH (state = 'keep')");
    host.raw("ATTACH ':memory:' AS other").unwrap();
    into(&mut host, &make("other.t")).unwrap();
    into(&mut host, &make("t")).unwrap();
    for table in ["other.t", "main.t"] {
        into(&mut host, &format!("MERGE INTO {table} USING {back} ON id")).unwrap();
        assert_eq!(one(&mut host, &format!("SELECT count(*) FROM {table}")), "0", "{table}");
    }
    host.raw("ALTER TABLE main.t RENAME TO t2").unwrap();
    assert!(into(&mut host, &make("t")).unwrap_err().contains("t_mergeql_deleted"));
    host.raw("ALTER TABLE main.t_mergeql_deleted RENAME TO t2_mergeql_deleted").unwrap();
    into(&mut host, &format!("MERGE INTO t2 USING {back} ON id")).unwrap();
    assert_eq!(one(&mut host, "SELECT count(*) FROM t2"), "0");
    // What is replaced is what is there.
    into(&mut host, &make("OR REPLACE t")).unwrap();
    assert_eq!(one(&mut host, "SELECT count(*) FROM pragma_table_list WHERE name = 't'"), "1");
    host.raw("INSERT INTO other.t (id, v, gone, ts) VALUES (7, 1, 0, 1)").unwrap();
    assert_eq!(one(&mut host, "SELECT mergeql_adopt('other.t')"), "1");
    // Values of another class than the column's are no edits that nobody made.
    into(&mut host, "MERGE (SELECT 1 AS id, 'nine' AS v) AS s ON id INTO texts WITH (state = 'keep')").unwrap();
    assert!(into(&mut host, "MERGE INTO texts USING (SELECT 1 AS id, 9 AS v) AS s ON id").unwrap_err().contains("type_mismatch"));
}
