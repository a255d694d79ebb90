//! Tables and views that are kept in a folder.

use super::{failure, run, sources, stdout};

#[test]
fn views_stay_in_a_folder_of_tables() {
    let folder = sources();
    let db = |sql: &str| run(folder.path(), &["--db", "shop", "-c", sql, "--format", "csv"]);
    stdout(&db(
        "CREATE TABLE a AS SELECT 1 AS id, 2 AS v; CREATE VIEW m AS MERGE a, (SELECT 1 AS id, 3 AS v) AS b ON id STRATEGY v = max",
    ));
    stdout(&db("CREATE VIEW over AS SELECT v + 1 AS v FROM m"));
    assert_eq!(stdout(&db("SELECT v FROM over")), "v\n4\n");
    stdout(&db("DROP VIEW over"));
    assert!(failure(&db("SELECT v FROM over")).1.contains("unknown_source"));
}

#[test]
fn a_view_whose_file_is_away_keeps_its_name() {
    let folder = sources();
    let db = |sql: &str| run(folder.path(), &["--db", "shop", "-c", sql, "--format", "csv"]);
    let (here, away) = (folder.path().join("v.csv"), folder.path().join("away"));
    std::fs::write(&here, "id\n7\n").unwrap();
    stdout(&db("CREATE VIEW v AS SELECT * FROM 'v.csv'; CREATE TABLE t AS SELECT 1 AS id"));
    std::fs::rename(&here, &away).unwrap();
    let (_, error) = failure(&db("SELECT * FROM v"));
    assert!(error.contains("the view `v` cannot be read") && error.contains("v.csv"), "{error}");
    for taken in ["CREATE VIEW v AS SELECT 42 AS x", "CREATE TABLE v AS SELECT 42 AS x"] {
        let (_, error) = failure(&db(taken));
        assert!(error.contains("view"), "{taken}: {error}");
    }
    // The others are listed and read as before; it is back when its file is.
    assert!(stdout(&db("SHOW TABLES")).contains(",t,"));
    assert!(stdout(&db("SELECT count(*) AS n FROM information_schema.columns WHERE table_name = 't'")).ends_with("1\n"));
    std::fs::rename(&away, &here).unwrap();
    assert_eq!(stdout(&db("SELECT * FROM v")), "id\n7\n");
    stdout(&db("CREATE OR REPLACE VIEW v AS SELECT 42 AS x"));
    assert_eq!(stdout(&db("SELECT * FROM v")), "x\n42\n");
    std::fs::remove_file(&here).unwrap();
    stdout(&db("CREATE OR REPLACE VIEW w AS SELECT * FROM v; DROP VIEW v; DROP VIEW w"));
}

#[test]
fn a_prepared_command_runs_as_itself() {
    let folder = sources();
    for db in [&[][..], &["--db", "shop"]] {
        let script = "CREATE TABLE t AS SELECT 1 AS id, 2 AS v; PREPARE i AS INSERT INTO t VALUES ($1, $2); EXECUTE i(3, 4); EXECUTE i(5, 6);
            PREPARE d AS DELETE FROM t WHERE id = $1; EXECUTE d(1); PREPARE s AS SELECT * FROM t WHERE id > $1 ORDER BY id; EXECUTE s(0)";
        let out = stdout(&run(folder.path(), &[db, &["-c", script, "--format", "csv"]].concat()));
        assert!(out.ends_with("id,v\n3,4\n5,6\n"), "{db:?}: {out}");
    }
}

#[test]
fn views_are_over_tables_as_they_are() {
    let folder = sources();
    let script = "CREATE TABLE a AS SELECT 1 AS id, 2 AS v; CREATE VIEW m AS MERGE a ON id; CREATE VIEW b AS SELECT count(*) AS n FROM m; \
                  INSERT INTO a VALUES (2, 3); SELECT n FROM b; \
                  MERGE INTO a USING (SELECT 3 AS id, 4 AS v) AS s ON id STRATEGY v = max; SELECT n FROM b; \
                  CREATE OR REPLACE TABLE a AS SELECT 9 AS id; SELECT n FROM b; SELECT * FROM m";
    for db in [&[][..], &["--db", "shop"]] {
        let out = stdout(&run(folder.path(), &[db, &["-c", script, "--format", "csv"]].concat()));
        let lines: Vec<&str> = out.lines().collect();
        let counts: Vec<&str> = lines.windows(2).filter(|pair| pair[0] == "n").map(|pair| pair[1]).collect();
        assert!(counts == ["2", "3", "1"] && lines.last() == Some(&"9"), "{db:?}: {out}");
    }
    // A view has no rows to write, nor does its name stand for a table.
    let db = |sql: &str| run(folder.path(), &["--db", "shop", "-c", sql, "--format", "csv"]);
    for wrong in [
        "MERGE (SELECT 3 AS id) AS z ON id INTO OR REPLACE m",
        "MERGE INTO m USING (SELECT 3 AS id) AS z ON id",
        "CREATE OR REPLACE TABLE m AS SELECT 1 AS id",
        "DROP TABLE m",
    ] {
        let (code, error) = failure(&db(wrong));
        assert!(code == 2 && error.contains("`m` is a view"), "{wrong}: {error}");
    }
    stdout(&db("DROP TABLE a"));
    assert!(failure(&db("SELECT * FROM b")).1.contains("unknown_source"));
    stdout(&db("DROP VIEW m; DROP VIEW b"));
}

#[test]
fn files_of_a_folder_of_tables() {
    let folder = sources();
    let db = |sql: &str| run(folder.path(), &["--db", "shop", "-c", sql, "--format", "csv"]);
    let file = folder.path().join("shop/t-1.rows.parquet");
    stdout(&db("CREATE TABLE t AS SELECT 1 AS id"));
    let rows = std::fs::read(&file).unwrap();
    // A table that cannot be read is one all the same.
    for broken in [None, Some(&rows[..rows.len() / 2])] {
        std::fs::remove_file(&file).ok();
        broken.iter().for_each(|bytes| std::fs::write(&file, bytes).unwrap());
        for sql in ["SELECT * FROM t", "CREATE TABLE IF NOT EXISTS t AS SELECT 2 AS id", "MERGE t ON id"] {
            let output = db(sql);
            if output.status.success() {
                assert_eq!(stdout(&output), "rows\n0\n", "{sql}");
                continue;
            }
            let (code, error) = failure(&output);
            assert!(code == 1 && error.contains("`t` cannot be read"), "{sql}: {error}");
        }
    }
    std::fs::write(&file, &rows).unwrap();
    assert_eq!(stdout(&db("SELECT id FROM t")), "id\n1\n");
    // Files that are there are nobody's to write over, and a folder without a manifest is not one of tables.
    std::fs::write(folder.path().join("shop/u-2.rows.parquet"), b"of somebody").unwrap();
    std::fs::write(folder.path().join("shop/u-90.rows.parquet"), b"of somebody").unwrap();
    stdout(&db("CREATE TABLE u AS SELECT 1 AS id"));
    assert_eq!(std::fs::read(folder.path().join("shop/u-90.rows.parquet")).unwrap(), b"of somebody");
    std::fs::remove_file(folder.path().join("shop/manifest.json")).unwrap();
    let (code, error) = failure(&db("CREATE TABLE t AS SELECT 2 AS id"));
    assert!(code == 1 && error.contains("no manifest"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), rows);
}

#[test]
fn sets_that_were_edited_by_hand_are_taken_in() {
    let folder = sources();
    let script = "MERGE (SELECT 1 AS id, 'x' AS v) AS a ON id STRATEGY v = gset INTO t WITH (state = 'keep'); SELECT mergeql_adopt('t'); \
                  INSERT INTO t (id, v) VALUES (2, ['q', 'r']); SELECT mergeql_adopt('t'); \
                  MERGE INTO t USING (SELECT 2 AS id, 'z' AS v) AS s ON id; SELECT v FROM t WHERE id = 2";
    let out = stdout(&run(folder.path(), &["-c", script, "--format", "json"]));
    assert!(out.contains(r#"["q","r","z"]"#), "{out}");
}

#[test]
fn not_null_stays_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let db = |sql: &str| run(folder.path(), &["--db", "shop", "-c", sql, "--format", "csv"]);
    stdout(&db("CREATE TABLE t (id INT NOT NULL, v INT); INSERT INTO t VALUES (1, 2)"));
    let (code, error) = failure(&db("INSERT INTO t VALUES (NULL, 3)"));
    assert!(code == 1 && error.contains("of `t` that is NOT NULL"), "{error}");
    assert!(failure(&db("INSERT INTO t (v) VALUES (3)")).1.contains("NOT NULL"));
    // Also in a table that a merge wrote anew, which takes `lww` for columns without NULL.
    stdout(&db(
        "CREATE TABLE s (id INT NOT NULL, v INT); INSERT INTO s VALUES (1, 9), (2, 4); MERGE INTO t USING s ON id STRATEGY v = max",
    ));
    assert!(failure(&db("INSERT INTO t SELECT CAST(NULL AS INT), 3")).1.contains("NOT NULL"));
    assert_eq!(stdout(&db("SELECT * FROM t ORDER BY id")), "id,v\n1,9\n2,4\n");
    // A table that takes its place has its own columns.
    stdout(&db("CREATE OR REPLACE TABLE t AS SELECT CAST(NULL AS INT) AS id"));
    let (_, error) = failure(&db("CREATE TABLE u (id INT, v INT DEFAULT 3)"));
    assert!(error.contains("error[unsupported]") && error.contains("DEFAULT"), "{error}");
}

#[test]
fn rows_are_deleted_and_changed() {
    let folder = tempfile::tempdir().unwrap();
    for db in [&[][..], &["--db", "shop"]] {
        let run = |sql: &str| run(folder.path(), &[db, &["-c", sql, "--format", "csv"]].concat());
        let script = "CREATE TABLE t AS SELECT * FROM (VALUES (1, 5), (2, NULL), (3, 7), (4, 9)) AS v(id, v);
            CREATE TABLE s AS SELECT 4 AS id;
            DELETE FROM t WHERE v = 5; UPDATE t SET v = v + id WHERE v = 7; UPDATE t SET v = 1 WHERE id IN (SELECT id FROM s);
            SELECT * FROM t ORDER BY id";
        let out = stdout(&run(script));
        assert!(out.ends_with("id,v\n2,\n3,10\n4,1\n"), "{db:?}: {out}");
        let out = stdout(&run(
            "CREATE OR REPLACE TABLE t AS SELECT 1 AS id, 2 AS v; UPDATE t SET v = id; SELECT * FROM t; DELETE FROM t; SELECT count(*) AS n FROM t",
        ));
        assert!(out.contains("id,v\n1,1\n") && out.ends_with("n\n0\n"), "{db:?}: {out}");
        // Without its rows a table has its columns.
        let out = stdout(&run(
            "CREATE OR REPLACE TABLE t AS SELECT 1 AS id, 2 AS v; TRUNCATE TABLE t; INSERT INTO t VALUES (1, 2); SELECT * FROM t",
        ));
        assert!(out.contains("count\n1\n") && out.ends_with("id,v\n1,2\n"), "{db:?}: {out}");
        let states = "CREATE TABLE k AS SELECT 1 AS id, 2 AS v; MERGE k ON id STRATEGY v = max INTO kept WITH (state = 'keep'); ";
        for edit in ["DELETE FROM kept", "UPDATE kept SET v = 1 WHERE id = 1"] {
            let (_, error) = failure(&run(&format!("{states}{edit}")));
            assert!(error.contains("error[needs_state]"), "{db:?}: {error}");
            stdout(&run("DROP TABLE IF EXISTS k; DROP TABLE IF EXISTS kept"));
        }
        let (_, error) = failure(&run("CREATE VIEW w AS SELECT 1 AS id; DELETE FROM w"));
        assert!(error.contains("is a view"), "{db:?}: {error}");
    }
}

#[test]
fn tables_and_views_are_renamed() {
    let folder = tempfile::tempdir().unwrap();
    for db in [&[][..], &["--db", "shop"]] {
        let run = |sql: &str| run(folder.path(), &[db, &["-c", sql, "--format", "csv"]].concat());
        let begin = "CREATE TABLE a AS SELECT 1 AS id, 5 AS v; CREATE VIEW \"w 1\" AS MERGE a ON id STRATEGY v = max;
            MERGE a ON id STRATEGY v = max INTO kept WITH (state = 'keep');
            ALTER TABLE a RENAME TO \"B\"; ALTER TABLE kept RENAME TO held;";
        // A view is by names: it reads what has the name now.
        let out = stdout(&run(&format!(
            "{begin} CREATE TABLE a AS SELECT 1 AS id, 7 AS v; ALTER VIEW IF EXISTS \"w 1\" RENAME TO w2; SELECT * FROM w2;
             MERGE INTO held USING a ON id STRATEGY v = max; SELECT id, v FROM held; SELECT * FROM \"B\""
        )));
        assert!(out.contains("id,v\n1,7\n") && out.ends_with("id,v\n1,7\nid,v\n1,5\n"), "{db:?}: {out}");
        if !db.is_empty() {
            // And after a restart.
            assert_eq!(
                stdout(&run("SELECT * FROM w2; SELECT id, v FROM held; SELECT * FROM \"B\"")),
                "id,v\n1,7\nid,v\n1,7\nid,v\n1,5\n"
            );
            stdout(&run("DROP VIEW w2; DROP TABLE held; DROP TABLE \"B\"; DROP TABLE a"));
        }
        let (_, error) = failure(&run("CREATE TABLE x AS SELECT 1 AS a; ALTER TABLE nothing RENAME TO y"));
        assert!(error.contains("error[unknown_source]"), "{db:?}: {error}");
        let (_, error) =
            failure(&run("CREATE OR REPLACE TABLE x AS SELECT 1 AS a; CREATE TABLE y AS SELECT 2 AS a; ALTER TABLE x RENAME TO y"));
        assert!(error.contains("already"), "{db:?}: {error}");
        let out = stdout(&run("ALTER TABLE IF EXISTS nothing RENAME TO z"));
        assert!(out.contains('0'), "{db:?}: {out}");
    }
}

#[test]
fn a_table_that_keeps_states_knows_its_listed_sources() {
    let folder = tempfile::tempdir().unwrap();
    for (file, v) in [("nyc", 1), ("london", 2)] {
        std::fs::write(folder.path().join(format!("{file}.csv")), format!("id,v\n1,{v}\n")).unwrap();
    }
    let all = "MERGE 'nyc.csv', 'london.csv' ON id STRATEGY v = source(nyc, london)";
    for first in ["nyc", "london"] {
        let other = if first == "nyc" { "london" } else { "nyc" };
        let script = format!(
            "MERGE '{first}.csv', (SELECT 2 AS id, 0 AS v WHERE false) AS \"{other}.csv\" ON id STRATEGY v = source(nyc, london) \
             INTO t WITH (state = 'keep'); \
             MERGE INTO t USING '{other}.csv' ON id; MERGE INTO t USING '{other}.csv' ON id STRATEGY v = source(nyc, london); \
             SELECT id, v FROM t"
        );
        let rows = stdout(&run(folder.path(), &["-c", &script, "--format", "csv"]));
        let expected = stdout(&run(folder.path(), &["-c", all, "--format", "csv"]));
        assert!(rows.ends_with(&expected), "{rows} is not {expected}");
    }
}

#[test]
fn temporary_tables_do_not_stay() {
    let folder = sources();
    let run = |statements: &str| run(folder.path(), &["--db", "db", "-c", statements, "--format", "csv"]);
    let done = run("CREATE TEMP TABLE t AS SELECT * FROM 'a.csv'; MERGE t, 'b.ndjson' ON id INTO both; SELECT count(*) FROM both");
    let rows = stdout(&done).lines().last().unwrap().to_owned();
    assert_eq!(stdout(&run("SELECT count(*) AS n FROM both")), format!("n\n{rows}\n"));
    let (code, error) = failure(&run("SELECT * FROM t"));
    assert!(code == 2 && error.contains("`t`"), "{error}");
}

/// Statements of several processes over one folder come one after the other, each over what the ones before left.
#[test]
fn processes_that_write_at_the_same_time_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let run = |sql: &str| run(folder.path(), &["--db", "shop", "-c", sql, "--format", "csv"]);
    stdout(&run("CREATE TABLE t AS SELECT 0 AS id, 0 AS v; CREATE TABLE merged AS SELECT 0 AS id, 0 AS v;
        MERGE t ON id STRATEGY v = max INTO kept WITH (state = 'keep')"));
    std::thread::scope(|scope| {
        let workers = (1..=3).map(|id| {
            scope.spawn(move || {
                for round in 1..=4 {
                    let row = format!("(SELECT {id} AS id, {round} AS v) AS s");
                    stdout(&run(&format!(
                        "UPDATE t SET v = v + 1 WHERE id = 0; INSERT INTO t VALUES ({id}, {round}); DELETE FROM t WHERE id = {id} AND v < {round};
                         MERGE merged, {row} ON id STRATEGY v = max INTO OR REPLACE merged;
                         MERGE INTO kept USING {row} ON id STRATEGY v = max"
                    )));
                }
            })
        });
        workers.collect::<Vec<_>>().into_iter().for_each(|worker| worker.join().unwrap());
    });
    assert_eq!(stdout(&run("SELECT * FROM t ORDER BY id")), "id,v\n0,12\n1,4\n2,4\n3,4\n");
    for table in ["merged", "kept"] {
        assert_eq!(stdout(&run(&format!("SELECT id, v FROM {table} ORDER BY id"))), "id,v\n0,0\n1,4\n2,4\n3,4\n", "{table}");
    }
}

/// What DELETE and UPDATE leave is what their conditions say, with NULLs, and prepared or not.
#[test]
fn nothing_goes_but_what_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for db in [&[][..], &["--db", "shop"]] {
        let run = |sql: &str| run(folder.path(), &[db, &["-c", sql, "--format", "csv"]].concat());
        let tables = "CREATE OR REPLACE TABLE t AS SELECT * FROM (VALUES (1, 1), (2, 2), (3, NULL)) AS v(id, x);
            CREATE OR REPLACE TABLE s AS SELECT 1 AS y; CREATE OR REPLACE TABLE n AS SELECT * FROM (VALUES (1), (NULL)) AS v(y);";
        let rows = |sql: &str| {
            let out = stdout(&run(&format!("{tables} {sql}; SELECT * FROM t ORDER BY id")));
            out[out.rfind("id,x\n").unwrap()..].to_owned()
        };
        // NULL is in no list, and nobody knows whether it is in none.
        assert_eq!(rows("DELETE FROM t WHERE x NOT IN (SELECT y FROM s)"), "id,x\n1,1\n3,\n", "{db:?}");
        assert_eq!(rows("DELETE FROM t WHERE x NOT IN (SELECT y FROM n)"), "id,x\n1,1\n2,2\n3,\n", "{db:?}");
        assert_eq!(rows("DELETE FROM t WHERE x IN (SELECT y FROM n) OR id = 3"), "id,x\n2,2\n", "{db:?}");
        assert_eq!(rows("UPDATE t SET x = 9 WHERE x NOT IN (SELECT y FROM s)"), "id,x\n1,1\n2,9\n3,\n", "{db:?}");
        assert_eq!(rows("UPDATE t SET x = 9 WHERE x NOT IN (SELECT y FROM n)"), "id,x\n1,1\n2,2\n3,\n", "{db:?}");
        // A plan that was prepared reads what it needs alone; the other columns stay.
        assert_eq!(rows("PREPARE u AS UPDATE t SET x = $1 WHERE id = $2; EXECUTE u(5, 1)"), "id,x\n1,5\n2,2\n3,\n", "{db:?}");
        assert_eq!(rows("PREPARE w AS UPDATE t SET id = $1 WHERE x = $2; EXECUTE w(0, 2)"), "id,x\n0,2\n1,1\n3,\n", "{db:?}");
        assert_eq!(rows("PREPARE d AS DELETE FROM t WHERE x = $1; EXECUTE d(2)"), "id,x\n1,1\n3,\n", "{db:?}");
    }
}

/// What stands for files is not written as if it were a table.
#[test]
fn files_and_external_tables_are_no_tables_of_ours() {
    let folder = sources();
    stdout(&run(folder.path(), &["-c", "COPY (SELECT 1 AS id, 2 AS v) TO 'x.parquet'"]));
    for db in [&[][..], &["--db", "shop"]] {
        let run = |sql: &str| run(folder.path(), &[db, &["-c", sql, "--format", "csv"]].concat());
        let external = "CREATE EXTERNAL TABLE IF NOT EXISTS e STORED AS PARQUET LOCATION 'x.parquet';";
        for statement in [
            "DELETE FROM \"a.csv\" WHERE id = 1",
            "UPDATE \"a.csv\" SET v = 1",
            "TRUNCATE TABLE \"a.csv\"",
            &format!("{external} DELETE FROM e"),
            &format!("{external} UPDATE e SET v = 3"),
            &format!("{external} MERGE INTO e USING (SELECT 1 AS id, 9 AS v) AS s ON id STRATEGY v = max"),
        ] {
            let (_, error) = failure(&run(statement));
            assert!(error.contains("error[unsupported]"), "{db:?} {statement}: {error}");
        }
        let all = stdout(&run("SELECT count(*) AS n FROM \"a.csv\""));
        assert_eq!(all, "n\n2\n", "{db:?}");
        // A table may take the place of an external one, and a view that of no table.
        let out = stdout(&run(&format!("{external} CREATE OR REPLACE TABLE e AS SELECT 7 AS id; SELECT * FROM e")));
        assert!(out.ends_with("id\n7\n"), "{out}");
        if !db.is_empty() {
            assert_eq!(stdout(&run("SELECT * FROM e")), "id\n7\n");
        }
        let (_, error) =
            failure(&run("CREATE TABLE IF NOT EXISTS e AS SELECT 7 AS id; CREATE OR REPLACE VIEW e AS SELECT 2 AS id"));
        assert!(error.contains("there is a table `e`"), "{error}");
    }
    stdout(&run(folder.path(), &["--db", "shop", "-c", "CREATE TABLE orders AS SELECT 1 AS id"]));
    let (_, error) = failure(&run(folder.path(), &["--db", "shop", "--source", "orders=a.csv", "-c", "MERGE orders ON id"]));
    assert!(error.contains("`orders`"), "{error}");
}

/// A name goes from a view to a table, and back, whichever process did it; comments stand where they like.
#[test]
fn names_are_what_they_are_now() {
    let folder = tempfile::tempdir().unwrap();
    let run = |sql: &str| run(folder.path(), &["--db", "shop", "-c", sql, "--format", "csv"]);
    stdout(&run(
        "CREATE TABLE t AS SELECT 1 AS id; CREATE /* of */ VIEW /* TABLE */ v AS SELECT * FROM t; INSERT INTO t VALUES (2)",
    ));
    assert_eq!(stdout(&run("SELECT * FROM v ORDER BY id")), "id\n1\n2\n");
    stdout(&run("ALTER VIEW v RENAME TO w"));
    assert_eq!(stdout(&run("INSERT INTO t VALUES (3); SELECT count(*) AS n FROM w")).lines().last(), Some("3"));
    let (_, error) = failure(&run("DELETE FROM w"));
    assert!(error.contains("is a view"), "{error}");
    // Statements of one process see a table that keeps states as it is, prepared or not.
    let out = stdout(&run(
        "MERGE (SELECT id, 1 AS v FROM t) AS s ON id STRATEGY v = max INTO kept WITH (state = 'keep');
         MERGE INTO kept USING (SELECT 4 AS id, 1 AS v) AS s ON id;
         PREPARE c AS SELECT count(*) AS n FROM kept; EXECUTE c; CREATE TABLE copy AS SELECT * FROM kept; SELECT count(*) AS n FROM copy",
    ));
    assert!(out.ends_with("n\n4\n"), "{out}");
}

/// What is prepared, or a view, meets rows that were not there when it was planned: also those without a key.
#[test]
fn plans_meet_the_rows_of_later() {
    let folder = sources();
    let prepared = [
        "CREATE TABLE t (id INT, x TEXT)",
        "INSERT INTO t VALUES (1, 'a'), (2, 'b')",
        "PREPARE p AS SELECT count(*) AS n FROM (MERGE t ON id STRATEGY x = max) AS m",
        "INSERT INTO t VALUES (NULL, 'c'), (NULL, 'd')",
        "EXECUTE p",
    ];
    let session = |more: &[&str], statements: &[&str]| {
        let commands = statements.iter().flat_map(|sql| ["-c", sql]);
        stdout(&run(folder.path(), &[more, &commands.collect::<Vec<_>>(), &["--format", "csv"]].concat()))
    };
    for more in [&[][..], &["--db", "later"]] {
        let told = session(more, &prepared);
        assert_eq!(told.lines().last(), Some("4"), "{more:?}: {told}");
    }
    std::fs::create_dir(folder.path().join("ext")).unwrap();
    // A file may be another one when the view over it is read.
    let told = session(
        &[],
        &[
            "COPY (SELECT 1 AS id, 'a' AS x) TO 'late.csv'",
            "/* of what comes late, whatever */ CREATE VIEW w AS SELECT count(*) AS n FROM (MERGE 'late.csv' ON id STRATEGY x = max) AS m",
            "COPY (SELECT * FROM (VALUES (1, 'a'), (NULL, 'c'), (NULL, 'd')) AS v(id, x)) TO 'late.csv'",
            "SELECT n FROM w",
        ],
    );
    assert_eq!(told.lines().last(), Some("3"), "{told}");
    // Files that come into the folder of an external table are its rows.
    let told = session(
        &[],
        &[
            "COPY (SELECT 1 AS id) TO 'ext/a.parquet'",
            "CREATE EXTERNAL TABLE e STORED AS PARQUET LOCATION 'ext/'",
            "SELECT count(*) AS n FROM e",
            "COPY (SELECT 2 AS id) TO 'ext/b.parquet'",
            "SELECT count(*) AS n FROM e",
        ],
    );
    assert_eq!(told.lines().last(), Some("2"), "{told}");
}

#[test]
fn rows_are_added_and_not_replaced() {
    let folder = sources();
    for more in [&[][..], &["--db", "rows"]] {
        for insert in ["INSERT OVERWRITE t VALUES (9)", "REPLACE INTO t VALUES (9)"] {
            let statements = ["-c", "CREATE OR REPLACE TABLE t AS SELECT 1 AS a", "-c", insert, "--format", "csv"];
            let (_, error) = failure(&run(folder.path(), &[more, &statements[..]].concat()));
            assert!(error.contains("error[unsupported]") && error.contains("MERGE INTO"), "{insert}: {error}");
        }
    }
    assert_eq!(stdout(&run(folder.path(), &["--db", "rows", "-c", "SELECT * FROM t", "--format", "csv"])), "a\n1\n");
}

#[test]
fn sources_of_the_command_line_can_be_renamed_beside_a_folder() {
    let folder = sources();
    let of = [
        "--db",
        "names",
        "--source",
        "mine=a.csv",
        "-c",
        "ALTER TABLE mine RENAME TO x",
        "-c",
        "SELECT count(*) > 0 AS there FROM x",
    ];
    let told = stdout(&run(folder.path(), &[&of[..], &["--format", "csv"]].concat()));
    assert!(told.ends_with("there\ntrue\n"), "{told}");
}
