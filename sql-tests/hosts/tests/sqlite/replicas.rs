//! Tables that are replicated: what is written in one arrives in all, in any order, and they converge.

use crate::{library, raw, start};
use mergeql_host_tests::Host;
use mergeql_udfs::laws::Random;

const ITEMS: &str = "CREATE TABLE items (region TEXT, id INTEGER, a, votes, tags TEXT, hi REAL, words TEXT, first, flag INTEGER, PRIMARY KEY (region, id))";

const STRATEGIES: &str =
    "SELECT crdt_table(''items'', ''votes pncounter, tags orset, hi max, words union, first fww, flag ewflag'')";

/// A random write of a replica.
fn random_write(random: &mut Random) -> String {
    let key = |random: &mut Random| format!("region = 'r{}' AND id = {}", random.below(2), random.below(4));
    let any = |random: &mut Random| {
        ["NULL", "1", "-2.5", "'text'", "x'00ff'", "9007199254740993", "''", "1e300"][random.below(8)].to_owned()
    };
    let tags = |random: &mut Random| {
        let some: Vec<&str> = ["\"x\"", "\"y\"", "3", "2.5"].into_iter().filter(|_| random.below(2) == 0).collect();
        format!("'[{}]'", some.join(","))
    };
    match random.below(10) {
        0 | 1 => format!(
            "INSERT OR REPLACE INTO items VALUES ('r{}', {}, {}, {}, {}, {}.5, 'w{}', {}, {})",
            random.below(2),
            random.below(4),
            any(random),
            random.below(9),
            tags(random),
            random.below(9),
            random.below(5),
            any(random),
            random.below(2)
        ),
        2 => format!("DELETE FROM items WHERE {}", key(random)),
        // A row gets another key, unless there is one.
        3 => format!("UPDATE OR IGNORE items SET id = {} WHERE {}", random.below(4), key(random)),
        4 => format!("UPDATE items SET votes = votes + {} WHERE {}", random.below(9) as i64 - 4, key(random)),
        5 => format!("UPDATE items SET tags = {} WHERE {}", tags(random), key(random)),
        6 => format!("UPDATE items SET hi = {}, words = 'w{}' WHERE {}", random.below(9), random.below(5), key(random)),
        7 => format!("UPDATE items SET a = {}, first = {} WHERE {}", any(random), any(random), key(random)),
        8 => format!("UPDATE items SET flag = {}, votes = votes + 0.25 WHERE {}", random.below(2), key(random)),
        _ => format!("UPDATE items SET a = {} WHERE {}", any(random), key(random)),
    }
}

/// Replicas that write what they like and read from each other what they like, in any order, in parts, repeatedly: once all have read
/// from all, their tables are equal.
#[test]
fn replicas_converge() {
    for seed in 0..6 {
        let mut random = Random(seed as u64);
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<String> = (0..2 + seed % 4).map(|i| folder.path().join(format!("{i}.db")).display().to_string()).collect();
        let mut hosts: Vec<Host> = paths.iter().map(|p| start(Some(p))).collect();
        for host in &mut hosts {
            host.raw("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF").unwrap();
            host.raw(ITEMS).unwrap();
            assert_eq!(raw(host, &STRATEGIES.replace("''", "'")).len(), 16);
        }
        let pull = |hosts: &mut Vec<Host>, to: usize, from: usize, since: u64, some: bool, seed: usize| {
            let request = serde_json::json!({ "pull": paths[from], "since": since, "some": some, "seed": seed });
            hosts[to].ask(&request).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        };
        for step in 0..120 {
            let at = random.below(hosts.len());
            if random.below(4) > 0 {
                let write = random_write(&mut random);
                hosts[at].raw(&write).unwrap_or_else(|e| panic!("{write}: {e}"));
            } else {
                let from = (at + 1 + random.below(hosts.len() - 1)) % hosts.len();
                pull(&mut hosts, at, from, 0, random.below(2) == 0, step);
            }
        }
        for round in 0..2 {
            for to in 0..hosts.len() {
                for from in (0..hosts.len()).filter(|from| *from != to) {
                    pull(&mut hosts, to, from, 0, false, round);
                }
            }
        }
        let all = "SELECT group_concat(row, '; ') FROM (SELECT mergeql_text(region, id, typeof(a), a, votes, tags, hi, words, first, flag) AS row \
                   FROM items ORDER BY region, id)";
        let tables: Vec<String> = hosts.iter_mut().map(|h| raw(h, all)).collect();
        assert!(tables.windows(2).all(|w| w[0] == w[1]), "seed {seed}:\n{}", tables.join("\n"));
        let states = "SELECT group_concat(s, ';') FROM (SELECT tbl || hex(pk) || col || hex(state) AS s FROM mergeql_changes ORDER BY tbl, pk, col)";
        let states: Vec<String> = hosts.iter_mut().map(|h| raw(h, states)).collect();
        assert!(states.windows(2).all(|w| w[0] == w[1]), "seed {seed}: states differ");
    }
}

/// As [`replicas_converge`], with every strategy that a column can have, by the cursors of the manual, along a ring, and with deletions forgotten.
#[test]
fn replicas_of_every_strategy_converge() {
    let python = std::env::var("MERGEQL_SQLITE_PYTHON").unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sqlite_replicas.py");
    for way in ["all", "ring", "forget"] {
        let output = std::process::Command::new(&python).args([script, &library(), way, "0", "8"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(said.lines().filter(|line| line.starts_with("equal")).count(), 8, "{said}");
        assert!(way != "forget" || said.lines().any(|line| line != "equal, 0 forgotten"), "{said}");
    }
}

/// Tables that are made, dropped and altered around what others send, names and collations that differ, transactions that cannot end.
#[test]
fn replicas_converge_around_corners() {
    let python = std::env::var("MERGEQL_SQLITE_PYTHON").unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sqlite_corners.py");
    let output = std::process::Command::new(&python).args([script, &library()]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n", "{}", String::from_utf8_lossy(&output.stderr));
}

/// What is written, and what schemas become, in ways that once lost rows.
#[test]
fn what_is_written_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    };
    let same = |hosts: &mut Vec<Host>, paths: &[String], query: &str, wanted: &str| {
        for _ in 0..2 {
            pull(&mut hosts[0], &paths[1], 0).unwrap();
            pull(&mut hosts[1], &paths[0], 0).unwrap();
        }
        for host in hosts {
            assert_eq!(raw(host, query), wanted, "{query}");
        }
    };
    let two =
        |name: &str, table: &str, strategies: &str| replicas(&at(name), table, &format!("SELECT crdt_table('t', '{strategies}')"));

    // Text that is none is refused where it is written.
    let (mut hosts, paths) = two("text", "CREATE TABLE t (id TEXT PRIMARY KEY, v)", "");
    for sql in ["INSERT INTO t VALUES (CAST(x'ff41' AS TEXT), 1)", "INSERT INTO t VALUES ('k', CAST(x'ff41' AS TEXT))"] {
        assert!(hosts[0].raw(sql).unwrap_err().0.contains("not UTF-8"), "{sql}");
    }
    hosts[0].raw("INSERT INTO t VALUES ('k', 1)").unwrap();
    assert!(hosts[0].raw("UPDATE t SET v = CAST(x'ff' AS TEXT)").unwrap_err().0.contains("not UTF-8"));
    // A value that stays equal and is of another class is another one.
    hosts[0].raw("UPDATE t SET v = 1.0").unwrap();
    same(&mut hosts, &paths, "SELECT typeof(v) FROM t", "real");

    // What a transaction makes of the schema holds for what it applies.
    let (mut hosts, paths) = two("schema", "CREATE TABLE t (id TEXT PRIMARY KEY, n)", "n pncounter");
    let alter = "SELECT crdt_alter('t', 'ALTER TABLE t ADD COLUMN z', 'z max')";
    hosts[0].raw("INSERT INTO t VALUES ('k', 2)").unwrap();
    let feed = |path: &str| format!("ATTACH '{path}' AS far");
    raw(&mut hosts[0], alter);
    hosts[0].raw("UPDATE t SET z = 9").unwrap();
    raw(&mut hosts[0], "SELECT count(*) FROM mergeql_changes");
    hosts[1].raw(&feed(&paths[0])).unwrap();
    for step in [
        "BEGIN",
        "INSERT INTO mergeql_changes SELECT * FROM far._mergeql_cells WHERE col <> 'z'",
        alter,
        "INSERT INTO mergeql_changes SELECT * FROM far._mergeql_cells WHERE col = 'z'",
        "COMMIT",
    ] {
        hosts[1].raw(step).unwrap();
    }
    assert_eq!(raw(&mut hosts[1], "SELECT mergeql_text(n, z) FROM t"), "2, 9");

    // A new row that its table does not take waits, and is named; a change makes it fit.
    let (mut hosts, paths) = two("waits", "CREATE TABLE t (id TEXT PRIMARY KEY, x INT, y INT, CHECK (x <= y))", "");
    hosts[0].raw("INSERT INTO t VALUES ('k', 1, 5)").unwrap();
    let state = r#"crdt_lww_state_with('{"respect_nulls":true}', 7, 1 << 60, 'peer')"#;
    hosts[1].raw(&format!("INSERT INTO mergeql_changes SELECT 't', 'k', 'x', {state}, 1 << 60, 1, 'peer'")).unwrap();
    pull(&mut hosts[1], &paths[0], 0).unwrap();
    assert_eq!(raw(&mut hosts[1], "SELECT count(*) FROM t"), "0");
    assert_eq!(raw(&mut hosts[1], "SELECT crdt_waiting()"), r#"[{"table":"t","key":["k"]}]"#);
    hosts[0].raw("UPDATE t SET y = 8").unwrap();
    pull(&mut hosts[1], &paths[0], 0).unwrap();
    assert_eq!(raw(&mut hosts[1], "SELECT mergeql_text(x, y) || crdt_waiting() FROM t"), "7, 8[]");

    // Deletions are kept for whoever wrote something, until it has read of them, or is given up.
    let (mut hosts, paths) = two("forgets", "CREATE TABLE t (id TEXT PRIMARY KEY, v)", "");
    let peer = "INSERT INTO mergeql_changes SELECT 't', 'p', '', crdt_lww_state(true, 1, 'peer'), 1, 1, 'peer'";
    hosts[0].raw(peer).unwrap();
    hosts[0].raw("INSERT INTO t VALUES ('k', 1)").unwrap();
    hosts[0].raw("DELETE FROM t WHERE id = 'k'").unwrap();
    pull(&mut hosts[1], &paths[0], 0).unwrap();
    let name = raw(&mut hosts[1], "SELECT crdt_origin()");
    let last = raw(&mut hosts[0], "SELECT max(seq) FROM mergeql_changes");
    raw(&mut hosts[0], &format!("SELECT crdt_acknowledge('{name}', {last})"));
    assert_eq!(raw(&mut hosts[0], "SELECT crdt_compact()"), "0", "the peer has not read");
    raw(&mut hosts[0], "SELECT crdt_forget('peer')");
    assert_eq!(raw(&mut hosts[0], "SELECT crdt_compact()"), "1");

    // What replicas count together may be more than an integer holds.
    let (mut hosts, paths) = two("counts", "CREATE TABLE t (id TEXT PRIMARY KEY, n INT)", "n pncounter");
    for (host, n) in hosts.iter_mut().zip([i64::MAX, 5]) {
        host.raw(&format!("INSERT INTO t VALUES ('k', {n})")).unwrap();
    }
    same(&mut hosts, &paths, "SELECT n FROM t", &i64::MAX.to_string());
    hosts[0].raw("UPDATE t SET n = n - 15").unwrap();
    same(&mut hosts, &paths, "SELECT n FROM t", &(i64::MAX - 10).to_string());

    // Copies of one table that become replicated count what was there once; so does the default of a new column.
    let (mut hosts, paths) = replicas(
        &at("copies"),
        "CREATE TABLE t (id TEXT PRIMARY KEY, n INT); INSERT INTO t VALUES ('k', 10)",
        "SELECT crdt_table('t', 'n pncounter')",
    );
    hosts.iter_mut().for_each(|h| h.raw("UPDATE t SET n = n + 1").unwrap());
    same(&mut hosts, &paths, "SELECT n FROM t", "12");
    for host in &mut hosts {
        raw(host, "SELECT crdt_alter('t', 'ALTER TABLE t ADD COLUMN s INT DEFAULT 5', 's pncounter')");
        host.raw("UPDATE t SET s = s + 1").unwrap();
    }
    same(&mut hosts, &paths, "SELECT s FROM t", "7");

    // Columns are not renamed, only this table is altered, and what others added is taken in.
    for (sql, says) in [
        ("ALTER TABLE t RENAME COLUMN n TO m", "not renamed"),
        ("ALTER TABLE u ADD COLUMN m", "another table"),
        ("ALTER TABLE t ADD COLUMN m; DELETE FROM t", "one statement"),
        ("DELETE FROM t", "ALTER TABLE statement"),
    ] {
        hosts[0].raw("CREATE TABLE IF NOT EXISTS u (a)").unwrap();
        let error = hosts[0].query_raw(&format!("SELECT crdt_alter('t', '{sql}')")).unwrap_err();
        assert!(error.0.contains(says), "{sql}: {error}");
    }
    hosts[0].raw("ALTER TABLE t ADD COLUMN late DEFAULT 3; INSERT INTO t VALUES ('l', 1, 1, 4)").unwrap();
    let refused = hosts[0].query_raw("SELECT count(*) FROM mergeql_changes").unwrap_err();
    assert!(refused.0.contains("nobody notes what is written into `late`"), "{refused}");
    raw(&mut hosts[0], "SELECT crdt_alter('t', '', 'late max')");
    raw(&mut hosts[1], "SELECT crdt_alter('t', 'ALTER TABLE t ADD COLUMN late DEFAULT 3', 'late max')");
    same(&mut hosts, &paths, "SELECT group_concat(late) FROM (SELECT late FROM t ORDER BY id)", "3,4");

    // The feed can be read within statements that write, and where nothing may be written.
    hosts[0].raw("INSERT INTO t VALUES ('m', 0, 0, 0)").unwrap();
    hosts[0].raw("CREATE TABLE outbox AS SELECT * FROM mergeql_changes WHERE pk = 'm'").unwrap();
    assert_eq!(raw(&mut hosts[0], "SELECT count(*) FROM outbox"), "4");
    hosts[0].raw("UPDATE t SET n = 7 WHERE id = 'm'").unwrap();
    hosts[0].raw("PRAGMA query_only = ON").unwrap();
    let seen = "SELECT crdt_value(state) FROM mergeql_changes WHERE pk = 'm' AND col = 'n'";
    assert_eq!(raw(&mut hosts[0], seen), "0");
    hosts[0].raw("PRAGMA query_only = OFF").unwrap();
    assert_eq!(raw(&mut hosts[0], seen), "7");

    // A table that is replicated no more is an ordinary one.
    raw(&mut hosts[0], "SELECT crdt_untable('t')");
    hosts[0].raw("UPDATE t SET n = 8 WHERE id = 'm'; ALTER TABLE t RENAME COLUMN n TO m").unwrap();
    assert_eq!(raw(&mut hosts[0], seen), "7");
}

/// Two replicas by their files.
pub(crate) fn replicas(folder: &std::path::Path, table: &str, strategies: &str) -> (Vec<Host>, Vec<String>) {
    let paths: Vec<String> = (0..2).map(|i| folder.join(format!("{i}.db")).display().to_string()).collect();
    let mut hosts: Vec<Host> = paths.iter().map(|p| start(Some(p))).collect();
    for host in &mut hosts {
        host.raw(table).unwrap();
        raw(host, strategies);
    }
    (hosts, paths)
}

pub(crate) fn pull(host: &mut Host, path: &str, since: u64) -> Result<(), mergeql_host_tests::HostError> {
    host.ask(&serde_json::json!({ "pull": path, "since": since, "some": false, "seed": 1 })).map(drop)
}

/// A concurrent history and its outcome, strategy by strategy.
#[test]
fn concurrent_histories_end_as_the_page_says() {
    let folder = tempfile::tempdir().unwrap();
    let table = "CREATE TABLE notes (id TEXT PRIMARY KEY, title TEXT, votes INTEGER, tags TEXT, best INTEGER)";
    let (mut hosts, paths) = replicas(folder.path(), table, "SELECT crdt_table('notes', 'votes pncounter, tags orset, best max')");
    hosts[0].raw("INSERT INTO notes VALUES ('n', 'first', 10, '[\"x\"]', 5)").unwrap();
    pull(&mut hosts[1], &paths[0], 0).unwrap();
    hosts[0].raw("UPDATE notes SET votes = votes + 3, tags = '[\"x\",\"z\"]', best = 9, title = 'left'").unwrap();
    // Clocks count in milliseconds: within one, the greater counter is the later one.
    std::thread::sleep(std::time::Duration::from_millis(5));
    hosts[1].raw("UPDATE notes SET votes = votes - 1, tags = '[]', best = 7, title = 'right'").unwrap();
    for _ in 0..2 {
        pull(&mut hosts[0], &paths[1], 0).unwrap();
        pull(&mut hosts[1], &paths[0], 0).unwrap();
    }
    for host in &mut hosts {
        assert_eq!(raw(host, "SELECT mergeql_text(title, votes, tags, best) FROM notes"), "right, 12, [\"z\"], 9");
    }
    // A deletion wins over what was written before it, and a row that is written anew is there again.
    hosts[0].raw("DELETE FROM notes").unwrap();
    pull(&mut hosts[1], &paths[0], 0).unwrap();
    assert_eq!(raw(&mut hosts[1], "SELECT count(*) FROM notes"), "0");
    hosts[1].raw("INSERT INTO notes VALUES ('n', 'again', 12, '[]', 1)").unwrap();
    pull(&mut hosts[0], &paths[1], 0).unwrap();
    assert_eq!(raw(&mut hosts[0], "SELECT mergeql_text(title, votes, tags, best) FROM notes"), "again, 12, [], 9");
    // A schema that changes on one side first: what comes waits for its column.
    let alter = "SELECT crdt_alter('notes', 'ALTER TABLE notes ADD COLUMN stars INTEGER', 'stars pncounter')";
    raw(&mut hosts[0], alter);
    hosts[0].raw("UPDATE notes SET stars = 4").unwrap();
    pull(&mut hosts[1], &paths[0], 0).unwrap();
    raw(&mut hosts[1], alter);
    assert_eq!(raw(&mut hosts[1], "SELECT stars FROM notes"), "4");
    // Rows that are gone are forgotten once every peer has read of it.
    hosts[0].raw("DELETE FROM notes").unwrap();
    pull(&mut hosts[1], &paths[0], 0).unwrap();
    assert_eq!(raw(&mut hosts[0], "SELECT crdt_compact()"), "0");
    let last = raw(&mut hosts[0], "SELECT max(seq) FROM mergeql_changes");
    let peer = raw(&mut hosts[1], "SELECT crdt_origin()");
    raw(&mut hosts[0], &format!("SELECT crdt_acknowledge('{peer}', {last})"));
    assert_eq!(raw(&mut hosts[0], "SELECT crdt_compact()"), "1");
    // What is counted from stays, for the other replica still has it: a row that is written anew is the same one there.
    assert_eq!(
        raw(&mut hosts[0], "SELECT group_concat(col) FROM (SELECT col FROM mergeql_changes ORDER BY col)"),
        ",best,stars,tags,votes"
    );
    hosts[0].raw("INSERT INTO notes VALUES ('n', 'anew', 3, '[\"w\"]', 2, 1)").unwrap();
    for _ in 0..2 {
        pull(&mut hosts[0], &paths[1], 0).unwrap();
        pull(&mut hosts[1], &paths[0], 0).unwrap();
    }
    for host in &mut hosts {
        assert_eq!(raw(host, "SELECT mergeql_text(title, votes, tags, best, stars) FROM notes"), "anew, 3, [\"w\"], 9, 1");
    }
}

/// Rows whose columns have nothing but versions are forgotten whole, and come back under later ones than all that were forgotten.
#[test]
fn forgotten_rows_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let (mut hosts, paths) = replicas(folder.path(), "CREATE TABLE t (id TEXT PRIMARY KEY, a, b)", "SELECT crdt_table('t', '')");
    hosts[0].raw("INSERT INTO t VALUES ('x', 1, 2)").unwrap();
    // A write whose clock is ahead of all others.
    let state = r#"crdt_lww_state_with('{"respect_nulls":true}', 'far', 1 << 61, 'peer')"#;
    hosts[0].raw(&format!("INSERT INTO mergeql_changes SELECT 't', 'x', 'a', {state}, 1 << 61, 1, 'peer'")).unwrap();
    hosts[0].raw("DELETE FROM t").unwrap();
    pull(&mut hosts[1], &paths[0], 0).unwrap();
    let last = raw(&mut hosts[0], "SELECT max(seq) FROM mergeql_changes");
    raw(&mut hosts[0], &format!("SELECT crdt_acknowledge('other', {last})"));
    raw(&mut hosts[0], "SELECT crdt_forget('peer')");
    assert_eq!(raw(&mut hosts[0], "SELECT crdt_compact()"), "1");
    assert_eq!(raw(&mut hosts[0], "SELECT count(*) FROM mergeql_changes"), "0");
    hosts[0].raw("INSERT INTO t VALUES ('x', 3, 4)").unwrap();
    for _ in 0..2 {
        pull(&mut hosts[1], &paths[0], 0).unwrap();
        pull(&mut hosts[0], &paths[1], 0).unwrap();
    }
    for host in &mut hosts {
        assert_eq!(raw(host, "SELECT mergeql_text(a, b) FROM t"), "3, 4");
    }
}

/// Cells of which nothing is said but that they are there: a set without elements, flags that were set the other way at once.
#[test]
fn first_values_are_values() {
    let folder = tempfile::tempdir().unwrap();
    let table = "CREATE TABLE t (id TEXT PRIMARY KEY, s TEXT NOT NULL, e INTEGER NOT NULL, d INTEGER NOT NULL)";
    let (mut hosts, paths) = replicas(folder.path(), table, "SELECT crdt_table('t', 's orset, e ewflag, d dwflag')");
    hosts[0].raw("INSERT INTO t VALUES ('x', '[]', 0, 1)").unwrap();
    pull(&mut hosts[1], &paths[0], 0).unwrap();
    for host in &mut hosts {
        assert_eq!(raw(host, "SELECT mergeql_text(s, e, d) FROM t"), "[], 0, 1");
    }
}

/// What cannot be replicated, or is not a change, is refused.
#[test]
fn replication_refuses_what_it_cannot_keep() {
    let mut host = start(None);
    host.raw("CREATE TABLE bare (a, b); CREATE TABLE twice (id INTEGER PRIMARY KEY, mail TEXT UNIQUE); CREATE TABLE t (id INTEGER PRIMARY KEY, a, b)").unwrap();
    for (sql, says) in [
        ("SELECT crdt_table('nosuch', '')", "unknown_source"),
        ("SELECT crdt_table('bare', '')", "no primary key"),
        ("SELECT crdt_table('twice', '')", "UNIQUE"),
        ("SELECT crdt_table('t', 'c lww')", "unknown_column"),
        ("SELECT crdt_table('t', 'a lwww')", "did you mean `lww`"),
        ("SELECT crdt_table('t', 'a lww, a max')", "two strategies"),
        ("SELECT crdt_table('t', 'id max')", "is the key"),
        ("SELECT crdt_table('t', 'a gauge')", "unsupported"),
        ("SELECT crdt_table('t', 'a rwset')", "unsupported"),
        ("SELECT crdt_table('t', 'a gset')", "unsupported"),
        ("SELECT crdt_alter('t', 'ALTER TABLE t ADD COLUMN c')", "not replicated"),
    ] {
        let error = host.query_raw(sql).unwrap_err();
        assert!(error.0.contains(says), "{sql}: {error}");
    }
    assert_eq!(
        raw(&mut host, "SELECT count(*) FROM sqlite_schema WHERE name LIKE '\\_mergeql%' ESCAPE '\\'"),
        "0",
        "nothing is left behind"
    );
    raw(&mut host, "SELECT crdt_table('t', 'a pncounter, b orset')");
    for (values, says) in [
        ("('t', 1, 'a', crdt_max_state(1), 1, 1, 'x')", "replicated as `pncounter`"),
        ("('t', 1, 'a', x'00', 1, 1, 'x')", "not_a_state"),
        ("('t', 1, 'a', x'4d5101', 1, 1, 'x')", "corrupt_state"),
    ] {
        let error = host.raw(&format!("INSERT INTO mergeql_changes SELECT * FROM (VALUES {values})")).unwrap_err();
        assert!(error.0.contains(says), "{values}: {error}");
    }
    for sql in ["DELETE FROM mergeql_changes", "UPDATE mergeql_changes SET seq = 1"] {
        host.raw("INSERT INTO t VALUES (1, 2, '[]')").ok();
        assert!(host.raw(sql).is_err(), "{sql}");
    }
    // What no state could be made of is refused where it is written, and so are rows without a key.
    host.raw("CREATE TABLE u (id TEXT, part TEXT, a, PRIMARY KEY (id, part))").unwrap();
    raw(&mut host, "SELECT crdt_table('u', 'a longest')");
    for (sql, says) in [
        ("UPDATE t SET b = 'no list'", "JSON array"),
        ("UPDATE t SET a = 'many'", "cannot be counted"),
        ("INSERT INTO t VALUES (9, x'00', NULL)", "cannot be counted"),
        ("INSERT INTO u VALUES ('x', NULL, 'a')", "needs a key"),
        ("INSERT INTO u VALUES ('x', 'y', 1)", "type_mismatch"),
    ] {
        let error = host.raw(sql).unwrap_err();
        assert!(error.0.contains(says), "{sql}: {error}");
    }
    host.raw("INSERT INTO u VALUES ('x', 'y', 'long')").unwrap();
    assert!(host.raw("UPDATE u SET id = NULL").unwrap_err().0.contains("needs a key"));
    host.raw("CREATE TABLE keyless (id TEXT PRIMARY KEY, a); INSERT INTO keyless VALUES (NULL, 1)").unwrap();
    assert!(host.query_raw("SELECT crdt_table('keyless', '')").unwrap_err().0.contains("1 rows of `keyless` have NULL"));
    host.raw("CREATE TABLE folded (id TEXT COLLATE NOCASE PRIMARY KEY, a)").unwrap();
    assert!(host.query_raw("SELECT crdt_table('folded', '')").unwrap_err().0.contains("collation"));
    let late = "INSERT INTO mergeql_changes SELECT 't', 1, 'a', crdt_max_state(1), 9223372036854775807, 1, 'x'";
    assert!(host.raw(late).unwrap_err().0.contains("clock"));
    // A table that is dropped takes its triggers along: the others go on, and it can be made anew.
    let changes = "SELECT count(*) > 0 FROM mergeql_changes WHERE tbl = 't'";
    host.raw("DROP TABLE u").unwrap();
    assert_eq!(raw(&mut host, changes), "1");
    host.raw("CREATE TABLE u (id TEXT PRIMARY KEY, a)").unwrap();
    raw(&mut host, "SELECT crdt_table('u', '')");
    // One that is changed behind our back is named, with the way out.
    host.raw("ALTER TABLE t RENAME COLUMN b TO c; INSERT INTO t VALUES (7, 1, '[]')").unwrap();
    let error = host.query_raw(changes).unwrap_err();
    assert!(error.0.contains("`t` was changed without crdt_alter") && error.0.contains("change it back"), "{error}");
    host.raw("ALTER TABLE t RENAME COLUMN c TO b").unwrap();
    assert_eq!(raw(&mut host, changes), "1");
}

/// What was written here is noted before what is applied after it, wherever a transaction goes back to.
#[test]
fn notes_are_taken_before_changes() {
    let mut host = start(None);
    host.raw("CREATE TABLE t (id TEXT PRIMARY KEY, a)").unwrap();
    raw(&mut host, "SELECT crdt_table('t', '')");
    let change = |id: u32| {
        format!(
            "INSERT INTO mergeql_changes SELECT 't', '{id}', 'a', crdt_lww_state_with('{{\"respect_nulls\":true}}', 1, 1, 'peer'), 1, 1, 'peer'"
        )
    };
    let noted = |host: &mut Host| raw(host, "SELECT count(*) FROM _mergeql_log");
    for (step, left) in [
        ("BEGIN", "0"),
        (&*change(1), "0"),
        (&*change(2), "0"),
        ("INSERT INTO t VALUES ('x', 1)", "1"),
        (&*change(3), "0"),
        ("COMMIT", "0"),
        ("BEGIN", "0"),
        ("UPDATE t SET a = 2 WHERE id = 'x'", "1"),
        ("SAVEPOINT s", "1"),
        (&*change(4), "0"),
        ("ROLLBACK TO s", "1"),
        (&*change(5), "0"),
        ("COMMIT", "0"),
    ] {
        host.raw(step).unwrap();
        assert_eq!(noted(&mut host), left, "{step}");
    }
    // By reading, too.
    for step in ["BEGIN", "UPDATE t SET a = 3 WHERE id = 'x'", "SAVEPOINT s"] {
        host.raw(step).unwrap();
    }
    raw(&mut host, "SELECT count(*) FROM mergeql_changes");
    host.raw(&change(6)).unwrap();
    host.raw("ROLLBACK TO s").unwrap();
    assert_eq!(noted(&mut host), "1");
    host.raw(&change(7)).unwrap();
    assert_eq!(noted(&mut host), "0");
    host.raw("COMMIT").unwrap();
}

/// What the feed counts never goes back, whichever way changes come within one transaction.
#[test]
fn numbers_of_changes_only_grow() {
    let mut host = start(None);
    host.raw("CREATE TABLE t (id TEXT PRIMARY KEY, a)").unwrap();
    raw(&mut host, "SELECT crdt_table('t', '')");
    let change = |id: &str| {
        format!(
            "INSERT INTO mergeql_changes SELECT 't', '{id}', 'a', crdt_lww_state_with('{{\"respect_nulls\":true}}', 1, 1, 'peer'), 1, 1, 'peer'"
        )
    };
    // One by one: a script would commit first.
    host.raw("BEGIN").unwrap();
    host.raw(&change("x")).unwrap();
    host.raw("INSERT INTO t VALUES ('a', 1), ('b', 2), ('c', 3)").unwrap();
    let read: u64 = raw(&mut host, "SELECT max(seq) FROM mergeql_changes").parse().unwrap();
    host.raw(&change("y")).unwrap();
    host.raw("COMMIT").unwrap();
    host.raw("INSERT INTO t VALUES ('d', 4)").unwrap();
    let later = format!("SELECT count(DISTINCT pk) FROM mergeql_changes WHERE seq > {read}");
    assert_eq!(raw(&mut host, &later), "2", "y and d");
    assert_eq!(raw(&mut host, "SELECT count(*) = count(DISTINCT seq) FROM mergeql_changes"), "1");
    // What was undone to a savepoint was not written.
    for step in ["BEGIN", "UPDATE t SET a = 5 WHERE id = 'd'", "SAVEPOINT s"] {
        host.raw(step).unwrap();
    }
    raw(&mut host, "SELECT count(*) FROM mergeql_changes");
    host.raw("ROLLBACK TO s").unwrap();
    let remote = "INSERT INTO mergeql_changes SELECT 't', 'd', 'a', crdt_lww_state_with('{\"respect_nulls\":true}', 'old', 2, 'peer'), 2, 1, 'peer'";
    host.raw(remote).unwrap();
    host.raw("COMMIT").unwrap();
    assert_eq!(raw(&mut host, "SELECT a FROM t WHERE id = 'd'"), "5");
}

/// What could not converge is refused where it is asked for.
#[test]
fn what_replicas_cannot_keep_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let table = "CREATE TABLE parts (id TEXT PRIMARY KEY, of TEXT REFERENCES parts (id), n INTEGER)";
    let (mut hosts, paths) = replicas(folder.path(), table, "SELECT crdt_table('parts', 'n max')");
    hosts[0].raw("INSERT INTO parts VALUES ('a', 'b', 1)").unwrap();
    hosts[1].raw("PRAGMA foreign_keys = ON").unwrap();
    let refused = pull(&mut hosts[1], &paths[0], 0).unwrap_err();
    assert!(refused.0.contains("foreign keys are enforced (parts)"), "{refused}");
    hosts[1].raw("ROLLBACK").unwrap();
    hosts[1].raw("PRAGMA foreign_keys = OFF").unwrap();
    pull(&mut hosts[1], &paths[0], 0).unwrap();
    assert_eq!(raw(&mut hosts[1], "SELECT n FROM parts"), "1");
    // A column's states are of one strategy.
    let alter = "SELECT crdt_alter('parts', 'ALTER TABLE parts ADD COLUMN x', 'n min')";
    let refused = hosts[0].query_raw(alter).unwrap_err();
    assert!(refused.0.contains("was replicated as `max`"), "{refused}");
    hosts[0].raw("UPDATE parts SET n = 4").unwrap();
    pull(&mut hosts[1], &paths[0], 0).unwrap();
    assert_eq!(raw(&mut hosts[1], "SELECT n FROM parts"), "4");
    // A copy of a file becomes a replica of its own.
    let before = raw(&mut hosts[0], "SELECT crdt_origin()");
    let after = raw(&mut hosts[0], "SELECT crdt_new_origin()");
    assert!(before != after && after == raw(&mut hosts[0], "SELECT crdt_origin()"));
    hosts[0].raw("INSERT INTO parts VALUES ('c', NULL, 2)").unwrap();
    let by = format!("SELECT count(*) FROM mergeql_changes WHERE origin = '{after}' AND pk = 'c'");
    assert_eq!(raw(&mut hosts[0], &by), "3");
}
