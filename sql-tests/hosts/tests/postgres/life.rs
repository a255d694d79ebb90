//! What happens around statements: other sessions, crashes, limits of memory and time, an extension that moves and is upgraded.

use crate::{NYC, cluster, one_raw};
use mergeql_host_tests::cluster::{Cluster, program, shell};
use mergeql_host_tests::one;

/// Sessions that merge into one table at once end in the join of all.
#[test]
fn concurrent_merges_end_in_the_join_of_all() {
    let database = cluster().database();
    let mut host = cluster().host_of(&database);
    host.raw(
        "CREATE TABLE target (id int PRIMARY KEY, v int, tags text NOT NULL); CREATE TABLE batches (batch int, id int, v int, tags text); \
         INSERT INTO batches SELECT b, i % 50, abs(hashint4(b * 1000 + i)) % 10000, chr(97 + (b * 7 + i) % 26) \
         FROM generate_series(0, 79) AS b, generate_series(1, 30) AS i",
    )
    .unwrap();
    // A table that keeps states, for strategies whose values do not say what they knew.
    let counted = |rows: &str| format!("(SELECT id, v, tags, 'o' || batch AS o, batch AS ts FROM batches WHERE {rows}) AS b");
    let clauses = "STRATEGY v = counter(o), tags = concat VERSION BY ts";
    host.query(&format!("MERGE {} ON id {clauses} INTO kept WITH (state = 'keep')", counted("batch < 0"))).unwrap();
    host.raw("CREATE UNIQUE INDEX ON kept (id)").unwrap();
    std::thread::scope(|scope| {
        for session in 0..4 {
            let database = &database;
            scope.spawn(move || {
                let mut host = cluster().host_of(database);
                for batch in 0..20 {
                    let batch = session * 20 + (batch * 7 + session) % 20;
                    let into = format!(
                        "MERGE INTO target USING (SELECT id, v, tags FROM batches WHERE batch = {batch}) AS b ON id \
                         STRATEGY v = max, tags = union"
                    );
                    // Replays change nothing.
                    for _ in 0..2 {
                        host.query(&into).unwrap_or_else(|e| panic!("{e}"));
                    }
                    let kept = format!("MERGE INTO kept USING {} ON id", counted(&format!("batch = {batch}")));
                    host.query(&kept).unwrap_or_else(|e| panic!("{e}"));
                }
            });
        }
    });
    let expected = "SELECT * FROM (MERGE (SELECT id, v, tags FROM batches) AS b ON id STRATEGY v = max, tags = union) AS m";
    assert_eq!(one(&mut host, &format!("SELECT count(*) FROM ({expected} EXCEPT SELECT * FROM target) AS d")), "0");
    assert_eq!(one(&mut host, "SELECT count(*) FROM target"), "30");
    let expected = format!("SELECT id, v, tags FROM (MERGE {} ON id {clauses}) AS m", counted("true"));
    assert_eq!(one(&mut host, &format!("SELECT count(*) FROM ({expected} EXCEPT SELECT id, v, tags FROM kept) AS d")), "0");
    assert_eq!(one(&mut host, "SELECT count(*) FROM kept"), "30");
    // Where the isolation level demands it, the loser is told to try again.
    host.raw("BEGIN ISOLATION LEVEL REPEATABLE READ").unwrap();
    host.raw("SELECT count(*) FROM target").unwrap();
    cluster().host_of(&database).raw("UPDATE target SET v = v + 1").unwrap();
    let into = "MERGE INTO target USING (SELECT 1 AS id, 1000000 AS v, 'x' AS tags) AS b ON id STRATEGY v = max, tags = union";
    let refused = host.query(into).unwrap_err();
    assert!(refused.0.contains("could not serialize access"), "{refused}");
}

/// Sessions whose sources bring columns that the target has not: each waits for the others, and none for ever.
#[test]
fn concurrent_merges_let_a_table_grow() {
    let database = cluster().database();
    let mut host = cluster().host_of(&database);
    host.raw("CREATE TABLE target (id int PRIMARY KEY, v int)").unwrap();
    std::thread::scope(|scope| {
        for session in 0..4 {
            let database = &database;
            scope.spawn(move || {
                let mut host = cluster().host_of(database);
                for n in 0..8 {
                    let source = format!("(SELECT {n} AS id, {session} AS v, {n} AS c{session}_{n}) AS s");
                    let into = format!("MERGE INTO target USING {source} ON id STRATEGY * = max WITH (schema = 'extend')");
                    host.query(&into).unwrap_or_else(|e| panic!("{e}"));
                }
            });
        }
    });
    assert_eq!(one(&mut host, "SELECT count(*) || '/' || sum(v) FROM target"), "8/24");
    assert_eq!(one(&mut host, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'target'::regclass AND attnum > 0"), "34");
}

/// A backend that is killed, and a server that is: the table is the old one or the new one.
#[test]
fn a_crash_leaves_the_old_state_or_the_new() {
    let cluster = Cluster::start();
    let database = cluster.database();
    let mut host = cluster.host_of(&database);
    host.raw(
        "CREATE TABLE target AS SELECT i AS id, 0 AS v FROM generate_series(1, 200000) AS i; CREATE UNIQUE INDEX ON target (id)",
    )
    .unwrap();
    for round in 1..=4 {
        let source = format!("(SELECT i AS id, {round} AS v FROM generate_series(1, 200000) AS i) AS s");
        let into = format!("MERGE INTO target USING {source} ON id STRATEGY v = max");
        let mut writer = cluster.host_of(&database);
        writer.raw("SET application_name = 'writer'").unwrap();
        // Without room that earlier rounds left.
        host.raw("VACUUM FULL target").unwrap();
        let size = "SELECT pg_relation_size('target')";
        let before: u64 = one(&mut host, size).parse().unwrap();
        let busy = "SELECT pid FROM pg_stat_activity WHERE application_name = 'writer' AND state = 'active'";
        std::thread::scope(|scope| {
            let merge = scope.spawn(move || writer.query(&into).is_ok());
            // It is disturbed when it has written some of its rows: new versions of rows make the table's file grow.
            let pid = loop {
                let rows = host.query(busy).unwrap().unwrap();
                let size: u64 = one(&mut host, size).parse().unwrap();
                if let (Some(pid), true) = (rows.first().and_then(|row| row[0].clone()), size > before + round * (256 << 10)) {
                    break pid;
                }
                assert!(!merge.is_finished(), "the merge was over before it could be disturbed");
            };
            match round % 2 {
                0 => cluster.crash(),
                _ => shell(&format!("kill -9 {pid}")),
            }
            assert!(!merge.join().unwrap(), "the merge of round {round} was over before it was disturbed");
        });
        match round % 2 {
            0 => cluster.up(),
            // The server restarts by itself.
            _ => while cluster.host_of(&database).raw("SELECT 1").is_err() {},
        }
        host = cluster.host_of(&database);
        let values = one(&mut host, "SELECT count(DISTINCT v) FROM target");
        assert_eq!((values.as_str(), one(&mut host, "SELECT count(*) FROM target").as_str()), ("1", "200000"), "round {round}");
    }
}

/// What an aggregate took is given back: a million of them leave the backend as large as a few do.
#[test]
fn memory_is_given_back() {
    let mut host = cluster().host();
    host.raw(
        "SET jit = off; CREATE TABLE t AS SELECT i % 10 AS k, i AS v, repeat('text ', 10) || i AS s FROM generate_series(1, 30) AS i; \
         CREATE FUNCTION resident() RETURNS bigint LANGUAGE sql AS $$ SELECT split_part(line, ' ', 2)::bigint * 4096 \
         FROM pg_read_file('/proc/self/statm') AS line $$",
    )
    .unwrap();
    let mut after = |n: u32| -> i64 {
        let three = "crdt_lww(s, v) || crdt_union(s) || crdt_value(crdt_gset_state(v))";
        let each = format!("SELECT (SELECT {three} FROM t WHERE k = i % 10) AS x FROM generate_series(1, {n}) AS i");
        one(&mut host, &format!("SELECT count(x) FROM ({each}) AS q"));
        one(&mut host, "SELECT resident()").parse().unwrap()
    };
    let (few, many) = (after(2_000), after(334_000));
    assert!(many - few < 8 << 20, "{few} bytes after a few, {many} after a million aggregates");
    // Nor is anything left of errors.
    host.raw(
        "CREATE FUNCTION refused(n int) RETURNS int LANGUAGE plpgsql AS $$ DECLARE caught int := 0; BEGIN FOR i IN 1..n LOOP BEGIN \
         PERFORM crdt_value('\\x0011'::bytea); EXCEPTION WHEN data_exception THEN caught := caught + 1; END; END LOOP; RETURN caught; END $$",
    )
    .unwrap();
    let mut after = |n: u32| -> i64 {
        assert_eq!(one(&mut host, &format!("SELECT refused({n})")), n.to_string());
        one(&mut host, "SELECT resident()").parse().unwrap()
    };
    let (few, many) = (after(2_000), after(200_000));
    assert!(many - few < 2 << 20, "{few} bytes after a few, {many} after 200,000 errors");
    // Nor of those that a trigger catches while a statement of ours runs, one a row.
    host.raw(
        "CREATE TABLE target (id int, v text); CREATE FUNCTION caught() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN BEGIN \
         RAISE EXCEPTION '%', repeat('long ', 2000); EXCEPTION WHEN raise_exception THEN NULL; END; RETURN NEW; END $$; \
         CREATE TRIGGER caught BEFORE INSERT ON target FOR EACH ROW EXECUTE FUNCTION caught()",
    )
    .unwrap();
    let mut after = |n: u32| -> i64 {
        let source = format!("(SELECT i AS id, 'v' AS v FROM generate_series(1, {n}) AS i) AS s");
        host.raw("TRUNCATE target").unwrap();
        host.query(&format!("MERGE INTO target USING {source} ON id STRATEGY v = max")).unwrap();
        // The most that the backend ever held: what a statement keeps is given back at its end.
        let peak = "SELECT substring(pg_read_file('/proc/self/status') FROM 'VmHWM:\\s+(\\d+)')::bigint * 1024";
        one(&mut host, peak).parse().unwrap()
    };
    let (few, many) = (after(100), after(10_000));
    assert!(many - few < 60 << 20, "{few} bytes after a few, {many} after 10,000 errors of 10,000 bytes that were caught");
}

/// A statement that is cancelled ends in an error, and the session goes on.
#[test]
fn a_cancelled_statement_ends_alone() {
    let mut host = cluster().host();
    host.raw("CREATE TABLE t AS SELECT i % 1000 AS id, 'value ' || i AS v FROM generate_series(1, 1000000) AS i").unwrap();
    for sql in [
        "CREATE TABLE m AS SELECT * FROM mergeql('MERGE t ON id STRATEGY v = gset') AS t(id int, v text[])",
        "CALL mergeql_into('MERGE t ON id STRATEGY v = gset INTO made')",
    ] {
        host.raw("SET statement_timeout = 300").unwrap();
        let error = host.raw(sql).unwrap_err();
        assert!(error.0.contains("statement timeout"), "{error}");
        host.raw("SET statement_timeout = 0").unwrap();
        assert_eq!(one(&mut host, "SELECT crdt_max(id) FROM t WHERE id < 5"), "4");
    }
}

/// In a schema of its own, moved, dumped and restored, dropped.
#[test]
fn the_extension_moves_and_goes() {
    let database = cluster().database();
    let mut host = cluster().host_of(&database);
    host.raw(NYC).unwrap();
    host.query("CREATE STRATEGY total AS FOLD (a, b) -> a + b").unwrap();
    host.raw("CREATE TABLE kept AS SELECT crdt_union_state(tags) AS s FROM nyc").unwrap();
    host.raw("CALL mergeql_create('view', 'v', 'MERGE nyc ON id STRATEGY salary = total')").unwrap();
    host.raw("CREATE SCHEMA merging; ALTER EXTENSION mergeql SET SCHEMA merging").unwrap();
    assert_eq!(one_raw(&mut host, "merging", "SELECT sum(salary) FROM v"), "160");
    let columns = "t(id int, salary int, tags text, u timestamp)";
    let sql = format!("SELECT sum(salary) FROM merging.mergeql('MERGE nyc ON id STRATEGY salary = total') AS {columns}");
    assert_eq!(one_raw(&mut host, "merging", &sql), "160");
    let folder = cluster().folder.display();
    shell(&format!(
        "{0} -h {folder} -U postgres -Fc -f {folder}/dump {database}; {1} -h {folder} -U postgres -T template0 {database}_copy; \
         {2} -h {folder} -U postgres --exit-on-error -d {database}_copy {folder}/dump",
        program("pg_dump"),
        program("createdb"),
        program("pg_restore"),
    ));
    let mut copy = cluster().host_of(&format!("{database}_copy"));
    for (sql, answer) in [
        ("SELECT merging.crdt_value_text(s) FROM kept", "x,y,z"),
        ("SELECT sum(salary) FROM v", "160"),
        ("SELECT name FROM merging.mergeql_user_strategies", "total"),
    ] {
        assert_eq!(one_raw(&mut copy, "merging", sql), answer);
    }
    host.raw("DROP EXTENSION mergeql CASCADE; CREATE SCHEMA other; CREATE EXTENSION mergeql SCHEMA other").unwrap();
    let sql = format!("SELECT salary FROM other.mergeql('MERGE nyc ON id WHERE id = 2') AS {columns}");
    assert_eq!(one_raw(&mut host, "other", &sql), "70");
}

/// An extension that was upgraded is the one that is made at once: from each released version, and from one that was made for this test.
#[test]
fn an_upgraded_extension_is_the_new_one() {
    let everything = "SELECT string_agg(line, chr(10) ORDER BY line) FROM (SELECT concat_ws(' ', pg_describe_object(classid, objid, 0), \
        obj_description(objid, classid::regclass::name), (SELECT prosrc FROM pg_proc WHERE oid = objid AND classid = 'pg_proc'::regclass), \
        (SELECT row(aggtransfn, aggfinalfn, aggcombinefn, aggserialfn, aggdeserialfn, aggtransspace) FROM pg_aggregate \
        WHERE aggfnoid = objid AND classid = 'pg_proc'::regclass)) AS line \
        FROM pg_depend WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'mergeql')) AS member";
    let expected = one(&mut cluster().host(), everything);
    assert!(expected.lines().count() > 400, "{expected}");
    let mut host = cluster().host();
    let older = "SELECT string_agg(version, ',') FROM pg_available_extension_versions WHERE name = 'mergeql' AND \
        version <> (SELECT default_version FROM pg_available_extensions WHERE name = 'mergeql')";
    for version in one(&mut host, older).split(',') {
        host.raw(&format!("DROP EXTENSION mergeql CASCADE; CREATE EXTENSION mergeql VERSION '{version}'")).unwrap();
        let old = one(&mut host, everything);
        assert!(old != expected && old.lines().count() > 300, "{version}");
        host.raw("CREATE TABLE kept AS SELECT crdt_union_state('x,y'::text) AS s; ALTER EXTENSION mergeql UPDATE").unwrap();
        let new = one(&mut host, everything);
        let differ = new.lines().filter(|line| !expected.contains(line)).collect::<Vec<_>>();
        assert!(new == expected, "from {version}: {differ:?}");
        assert_eq!(one(&mut host, "SELECT crdt_value_text(s) FROM kept"), "x,y");
        host.raw("DROP TABLE kept").unwrap();
    }
}
