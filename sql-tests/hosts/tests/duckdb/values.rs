//! Values of every type, in and out, as keys and in MERGE INTO.

use crate::{pythons, start};
use mergeql_host_tests::kept::tables_that_keep_states_converge;
use mergeql_host_tests::one;

/// What COMPAT.md says of DuckDB and no other test holds.
#[test]
fn what_differs_is_as_the_table_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for python in pythons() {
        let mut host = start(&python, 2);
        let mut run = |sql: &str| host.execute(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        run(
            "CREATE TYPE mood AS ENUM ('low', 'high'); CREATE TABLE t (id INTEGER, m mood, j JSON, a INTEGER[2], \"Name\" TEXT, x INTEGER GENERATED ALWAYS AS (id + 1))",
        );
        run("INSERT INTO t VALUES (1, 'low', '{\"k\": 1}', [1, 2], 'n')");
        run(&format!("COPY (SELECT 1 AS id, 2 AS n) TO '{}' (FORMAT parquet)", path("p1.parquet")));
        let answers = [
            ("SELECT concat_ws(' ', typeof(m), m, typeof(j), j, typeof(a), a::VARCHAR) FROM mergeql.merge('MERGE (SELECT id, m, j, a FROM t) AS t ON id')".to_owned(),
             "VARCHAR low VARCHAR {\"k\": 1} INTEGER[] [1, 2]"),
            ("SELECT string_agg(column_name, ',') FROM (DESCRIBE FROM mergeql.merge('MERGE (SELECT id, \"Name\" FROM t) AS t, (SELECT 1 AS ID, 2 AS name) AS u ON id STRATEGY name = any'))".to_owned(), "type_mismatch"),
            ("SELECT string_agg(column_name, ',') FROM (DESCRIBE FROM mergeql.merge('MERGE (SELECT id, \"Name\" FROM t) AS t, (SELECT 1 AS ID, ''z'' AS name) AS u ON id'))".to_owned(), "id,Name"),
            ("SELECT crdt_lww(v, a, b, c, d) FROM (VALUES (1, 1, 1, 1, 1)) AS t(v, a, b, c, d)".to_owned(), "1"),
            ("SELECT crdt_lww(v, a, b, c, d, e) FROM (VALUES (1, 1, 1, 1, 1, 1)) AS t(v, a, b, c, d, e)".to_owned(), "No function matches"),
            ("SELECT crdt_lww(v, ROW(a, b, c, d, e)) FROM (VALUES (1, 1, 1, 1, 1, 1)) AS t(v, a, b, c, d, e)".to_owned(), "1"),
            ("SELECT crdt_priority(v, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h') FROM (VALUES ('h')) AS t(v)".to_owned(), "h"),
            ("SELECT crdt_priority(v, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i') FROM (VALUES ('h')) AS t(v)".to_owned(), "No function matches"),
            (format!("FROM mergeql.merge('MERGE ''{}'' ON id STRATEGY n = counter')", path("p*.parquet")), "invalid_argument"),
            ("SELECT string_agg(column_name, ',') FROM (DESCRIBE FROM mergeql.merge('MERGE (VALUES (1, 2)) AS v ON col0'))".to_owned(), "col0,col1"),
            ("SELECT count(*) FROM mergeql.merge('MERGE (SELECT id FROM t) AS t ON id WITH (memory_limit = ''1MB'')')".to_owned(), "1"),
            ("SELECT crdt_max(v) FROM (VALUES (TIME_NS '00:00:01.000000001'), (TIME_NS '00:00:02')) AS t(v)".to_owned(), "unsupported"),
            ("SELECT v::VARCHAR FROM mergeql.merge('MERGE (SELECT 1 AS id, TIME_NS ''00:00:01.000000001'' AS v) AS t ON id STRATEGY v = max')".to_owned(), "00:00:01.000000001"),
            ("SELECT crdt_max(m) FROM t".to_owned(), "an ENUM to VARCHAR"),
            ("SELECT crdt_gset('1010'::BIT)".to_owned(), "type BIT cannot be merged"),
            ("SELECT n FROM mergeql.merge('-- a comment\nSELECT count(*) AS n FROM (MERGE (SELECT id FROM t) AS t ON id) AS m')".to_owned(), "1"),
            ("FROM mergeql.merge('EXPLAIN SELECT 1')".to_owned(), "put EXPLAIN before the whole query"),
            ("SELECT count(*) FROM \"/* why */ MERGE (SELECT id FROM t) AS t ON id\"".to_owned(), "1"),
            // A query is read once, whatever it gives; one row in two has no key.
            ("SELECT count(*) || ' ' || count(DISTINCT v) FROM mergeql.merge('MERGE (SELECT CASE WHEN random() < 0.5 THEN i END AS id, i AS v FROM range(1000) AS r(i)) AS a ON id')".to_owned(), "1000 1000"),
        ];
        for (sql, says) in answers {
            let said = match host.ask(&serde_json::json!({ "sql": sql })) {
                Ok(answer) => answer["rows"][0][0].to_string().trim_matches('"').replace("\\\"", "\""),
                Err(e) => e.0,
            };
            assert!(said == says || said.contains(says) && said.contains(' '), "{sql}\nsays {said}");
        }
        // A target with a key twice has both rows afterwards; generated columns cannot be written.
        host.execute("CREATE TABLE twice AS SELECT 1 AS id, unnest([1, 2]) AS v").unwrap();
        host.execute("MERGE INTO twice USING (SELECT 1 AS id, 5 AS v) AS s ON id STRATEGY v = max").unwrap();
        assert_eq!(one(&mut host, "SELECT string_agg(v, ',') FROM twice"), "5,5");
        assert!(host.execute("MERGE INTO t USING (SELECT id, x FROM t) AS s ON id STRATEGY * = max").is_err());
        // A schema that is called as our database is told when the extension is loaded.
        let script = format!(
            "import duckdb\ncon = duckdb.connect(config={{'allow_unsigned_extensions': 'true'}})\ncon.execute('CREATE SCHEMA mergeql')\n\
             try:\n    con.execute(\"LOAD '{}'\")\nexcept Exception as e:\n    print(e)",
            std::env::var("MERGEQL_DUCKDB_EXTENSION").unwrap()
        );
        let output = std::process::Command::new(&python).args(["-c", &script]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("a schema is called `mergeql`"), "{output:?}");
    }
}

/// Collations, spellings and equalities of DuckDB's own are no part of a merge.
/// Two tables are joined where no key is there twice; queries of the same rows are grouped. Both give the same rows, over every type that is
/// joined, NULLs and equal candidates among them.
#[test]
fn joined_tables_are_as_grouped_ones() {
    const COLUMNS: [(&str, &str); 14] = [
        ("BOOLEAN", "x = 1"),
        ("TINYINT", "x - 1"),
        ("BIGINT", "(x - 1) * 4000000000"),
        ("UBIGINT", "x::UBIGINT + 18446744073709551612"),
        ("HUGEINT", "(x - 1)::HUGEINT * 40000000000000000000"),
        ("DECIMAL(9, 2)", "(x - 1) / 4"),
        ("VARCHAR", "['a', 'B', 'ä'][x + 1]"),
        ("BLOB", "encode(['a', '', 'ab'][x + 1])"),
        ("DATE", "['2024-01-01', 'infinity', '1969-12-31'][x + 1]"),
        ("TIME", "['00:00:01', '23:59:59.999999', '12:00:00'][x + 1]"),
        ("TIMESTAMP", "['2024-01-01 00:00:01', '-infinity', '1969-12-31'][x + 1]"),
        ("TIMESTAMP_NS", "['2024-01-01 00:00:01.000000001', '2024-01-01 00:00:01', '1969-12-31'][x + 1]"),
        ("TIMESTAMP WITH TIME ZONE", "['2024-01-01 00:00:01+00', '2024-01-01 00:00:01+01', '1969-12-31 00:00:00+00'][x + 1]"),
        (
            "UUID",
            "['ffffffff-0000-0000-0000-000000000000', '7fffffff-0000-0000-0000-000000000000', '00000000-0000-0000-0000-000000000001'][x + 1]",
        ),
    ];
    // Keys, and whether the tables are joined.
    const KEYS: [(&str, &str, &str, bool); 6] = [
        ("id", "i * 3 + side", "", true),
        ("id", "'key ' || (i + side)", "", true),
        ("id, part", "i // 7 + side AS id, ['x', 'X', 'y', 'Y', 'z', 'Z', ''][i % 7 + 1]", "part", true),
        ("id", "CASE WHEN i % 5 > 0 THEN i + side END", "", true),
        ("id", "(i + side) // 2", "", false),
        ("id", "DATE '2024-01-01' + (i + side % 2)::INTEGER", "", true),
    ];
    for python in pythons() {
        let mut host = start(&python, 4);
        host.execute("SET default_collation = 'nocase'").unwrap();
        for (key, expression, last, apart) in KEYS {
            for (side, table) in [(0, "a"), (350, "b")] {
                let random = |n: usize| format!("(hash(i * 31 + {n} + side) % 4)::BIGINT");
                let column = |(n, (ty, value)): (usize, &(&str, &str))| {
                    let value = value.replace('x', &format!("({})", random(n)));
                    format!("CASE WHEN {} < 3 THEN CAST({value} AS {ty}) END AS c{n}", random(n))
                };
                let columns: Vec<String> = COLUMNS.iter().enumerate().map(column).collect();
                let name = if last.is_empty() { "id" } else { last };
                host.execute(&format!(
                    "CREATE OR REPLACE TABLE {table} AS SELECT {expression} AS {name}, {}, nullif({}, 0) AS v, nullif({}, 0) AS w, {} = 0 AS gone \
                     FROM (SELECT i, {side} AS side FROM range(700) AS r(i))",
                    columns.join(", "),
                    random(100),
                    random(101),
                    random(102),
                ))
                .unwrap();
                let keys = if last.is_empty() { "hash(id)" } else { "hash(id, part COLLATE \"binary\")" };
                let repeats = format!("SELECT mergeql_repeats({keys}) FROM {table} WHERE id IS NOT NULL");
                assert_eq!(one(&mut host, &repeats), (!apart).to_string(), "{key} {expression} {table}");
            }
            // Each column has each pair of strategies once.
            let all = |at: usize| {
                let strategy = |n: usize| ["max", "lww", "min", "fww"][(n + at) % 4];
                (0..COLUMNS.len()).map(|n| format!("c{n} = {}", strategy(n))).collect::<Vec<_>>().join(", ")
            };
            for strategy in [0, 1] {
                for (version, rest) in
                    [("v", ""), ("w DESC", ""), ("v, w DESC", "DELETE BY gone"), ("c6, c13", "ORDER BY id LIMIT 500")]
                {
                    let merge = |a: &str, b: &str| {
                        format!("MERGE {a}, {b} ON ({key}) STRATEGY {} VERSION BY {version} {rest}", all(strategy))
                    };
                    let read = |statement: &str| format!("FROM mergeql.merge('{statement}')");
                    let (joined, grouped) = (merge("a", "b"), merge("(FROM a) AS a", "(FROM b) AS b"));
                    let plans =
                        |statement: &str| format!("SELECT count(*) {} WHERE item = 'plan'", read(&format!("EXPLAIN {statement}")));
                    assert_eq!(one(&mut host, &plans(&joined)), if rest.starts_with("DELETE") { "0" } else { "1" }, "{joined}");
                    assert_eq!(one(&mut host, &plans(&grouped)), "0", "{grouped}");
                    for (a, b) in [(&joined, &grouped), (&grouped, &joined)] {
                        let differ = format!("SELECT count(*) FROM ({} EXCEPT ALL {})", read(a), read(b));
                        assert_eq!(one(&mut host, &differ), "0", "{a} EXCEPT {b}");
                    }
                    let rows: usize = one(&mut host, &format!("SELECT count(*) {}", read(&joined))).parse().unwrap();
                    assert!(rows > 200, "{rows}: {joined}");
                }
            }
        }
    }
}

#[test]
fn what_duckdb_takes_for_equal() {
    for python in pythons() {
        let mut host = start(&python, 2);
        let mut run = |sql: &str| host.execute(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        run("CREATE TABLE folded (k VARCHAR COLLATE nocase, v INT)");
        run("INSERT INTO folded VALUES ('a', 1), ('A', 2), (NULL, 3)");
        run("CREATE TABLE plain AS SELECT * FROM (VALUES ('a', 1), ('A', 5)) AS v(k, v)");
        run(
            "CREATE TABLE spans AS SELECT CAST(NULL AS INT) AS id, i::INTERVAL AS i FROM (VALUES ('1 month'), ('30 days'), ('720:00:00')) AS v(i)",
        );
        run("CREATE TABLE n2 AS SELECT 1 AS k, 2 AS v");
        run(
            "CREATE TABLE floats AS SELECT {'a': x::DOUBLE, 'b': [x::DOUBLE]} AS k, 1 AS v FROM (VALUES (0.0), (-0.0), (0.5)) AS v(x)",
        );
        for setting in ["binary", "nocase"] {
            host.execute(&format!("PRAGMA default_collation = '{setting}'")).unwrap();
            for (sql, expected) in [
                ("SELECT count(*) FROM mergeql.merge('MERGE folded ON k')", "3"),
                ("SELECT sum(v) FROM mergeql.merge('MERGE folded, plain ON k STRATEGY v = max')", "9"),
                (
                    "SELECT count(*) FROM mergeql.merge('MERGE (SELECT CAST(NULL AS INT) AS id, k FROM plain) AS p ON id STRATEGY k = max')",
                    "2",
                ),
                ("SELECT count(*) FROM mergeql.merge('MERGE spans ON id')", "3"),
                ("SELECT v FROM mergeql.merge('MERGE n2, N2, main.n2, memory.main.n2 ON k STRATEGY v = counter')", "2"),
                ("SELECT count(*) FROM mergeql.merge('MERGE floats ON k')", "2"),
            ] {
                assert_eq!(one(&mut host, sql), expected, "{sql} in {python} with {setting}");
            }
        }
        host.execute("PRAGMA default_collation = 'binary'").unwrap();
        // Nor are they in a target.
        for _ in 0..2 {
            host.execute("MERGE INTO folded USING plain ON k STRATEGY v = max").unwrap();
            assert_eq!(one(&mut host, "SELECT string_agg(concat(k, v), ' ' ORDER BY v) FROM folded"), "a1 3 A5", "{python}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f.parquet").display().to_string();
        host.execute(&format!("COPY n2 TO '{file}' (FORMAT parquet)")).unwrap();
        let again = file.replace("/f.parquet", "/./f.parquet");
        let sql = format!("SELECT v FROM mergeql.merge('MERGE ''{file}'', ''{again}'' ON k STRATEGY v = counter')");
        assert_eq!(one(&mut host, &sql), "2");
    }
}

/// Whatever DuckDB can hold: a merge of one source without repeats is the source, and collected values are the values.
#[test]
fn values_of_every_type_come_through_unchanged() {
    let values = [
        "true",
        "(-128)::TINYINT",
        "18446744073709551615::UBIGINT",
        "170141183460469231731687303715884105727::HUGEINT",
        "1.5::FLOAT",
        "'-inf'::DOUBLE",
        "12345678901234567.89::DECIMAL(20, 2)",
        "99999999999999999999999999999.999999999::DECIMAL(38, 9)",
        "''",
        "'it''s \"quoted\", {braced} and [bracketed]'",
        "'\\x00\\xFF,'::BLOB",
        "DATE '2024-02-29'",
        "DATE 'infinity'",
        "TIME '23:59:59.999999'",
        "TIMESTAMP '-infinity'",
        "TIMESTAMP_NS '2024-01-01 00:00:00.123456789'",
        "TIMESTAMPTZ '2024-01-01 00:00:00+05'",
        "INTERVAL '14 months 3 days 4.5 seconds'",
        "UUID 'ffeeddcc-bbaa-9988-7766-554433221100'",
        "[1, NULL, 3]",
        "['\\xFF\\x00'::BLOB, 'a,b'::BLOB]",
        "[INTERVAL '1 month']",
        "[[1.25::DECIMAL(38, 9)], []]",
        "{'b': '\\xFF'::BLOB, 'd': 12345678901234567.89::DECIMAL(20, 2), 'i': INTERVAL '1 day', 'n': NULL::INT}",
        "{'t': TIMESTAMP 'infinity', 'l': [DATE '2024-01-01']}",
        "MAP {'k': '\\xFE'::BLOB}",
        "MAP {[1]: {'x': 1.5::DECIMAL(9, 2)}}",
    ];
    for python in pythons() {
        let mut host = start(&python, 2);
        for value in values {
            host.execute(&format!(
                "CREATE OR REPLACE TABLE t AS SELECT 1 AS id, {value} AS v, 5 AS ts UNION ALL SELECT 2, NULL, 6"
            ))
            .unwrap();
            for clauses in [
                "ON id",
                "ON id VERSION BY ts",
                "ON id STRATEGY v = fww VERSION BY ts, id",
                "ON id STRATEGY v = lww RESPECT NULLS BY ts",
            ] {
                // Over a struct or a map a value that respects NULLs comes through its state, and JSON has no infinity.
                if clauses.contains("RESPECT") && (value.contains("infinity") || value.starts_with("MAP {[")) {
                    continue;
                }
                let differs = format!("SELECT count(*) FROM (FROM mergeql.merge('MERGE t {clauses}') EXCEPT FROM t)");
                assert_eq!(one(&mut host, &differs), "0", "{value} {clauses} in {python}");
            }
            if !value.contains("infinity") && !value.starts_with("MAP {[") {
                let differs = "SELECT count(*) FROM mergeql.merge('MERGE t ON id STRATEGY v = gset') AS m JOIN t USING (id) WHERE m.v[1] IS DISTINCT FROM t.v";
                assert_eq!(one(&mut host, differs), "0", "{value} collected in {python}");
            }
        }
        // Empty text and NULL stay two things through a CSV file.
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.csv").display().to_string();
        host.execute("CREATE OR REPLACE TABLE t AS SELECT * FROM (VALUES (1, ''), (2, NULL), (3, 'x')) AS r(id, s)").unwrap();
        host.execute(&format!("MERGE t ON id INTO '{file}'")).unwrap();
        assert_eq!(one(&mut host, &format!("SELECT count(*) FROM (FROM t EXCEPT FROM \"MERGE '{file}' ON id\")")), "0");
    }
}

/// Files that are there stay, texts may be bound, databases may be attached; what does not fit is an error and not another value.
#[test]
fn nothing_is_lost_or_changed_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let extension = std::env::var("MERGEQL_DUCKDB_EXTENSION").expect("run `cargo xtask test`: it builds the extension");
    for (i, python) in pythons().into_iter().enumerate() {
        let mut host = start(&python, 2);
        host.execute("CREATE TABLE nyc AS SELECT 1 AS id, 5 AS v; ATTACH ':memory:' AS other; CREATE TABLE other.late AS SELECT 1 AS id, 9 AS v").unwrap();
        assert_eq!(one(&mut host, "SELECT v FROM mergeql.merge('MERGE nyc, other.late ON id STRATEGY v = max')"), "9");
        let file = folder.path().join(format!("{i}.csv")).display().to_string();
        std::fs::write(&file, "mine").unwrap();
        let refused = host.execute(&format!("MERGE nyc ON id INTO '{file}'")).unwrap_err();
        assert!(refused.0.contains("is there already"), "{refused}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
        host.execute(&format!("MERGE nyc ON id INTO OR REPLACE '{file}'")).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "id,v\n1,5\n");
        for call in ["crdt_max(i)", "crdt_gset(i)", "crdt_lww(i, 1)", "mergeql_text(i)"] {
            let refused = host.query(&format!("SELECT {call} FROM (SELECT INTERVAL '3000000 hours' AS i)")).unwrap_err();
            assert!(refused.0.contains("limit_exceeded") || refused.0.contains("292 years"), "{call}: {refused}");
        }
        let own = folder.path().join(i.to_string());
        std::fs::create_dir(&own).unwrap();
        let script = format!(
            "import duckdb\n\
             open_ = lambda path, **config: duckdb.connect(path, config={{'allow_unsigned_extensions': 'true', **config}})\n\
             con = open_('{0}/shop.duckdb'); con.execute(\"CREATE TABLE t AS SELECT 1 AS id\"); con.close()\n\
             con = open_('{0}/shop.duckdb', access_mode='read_only'); con.execute(\"LOAD '{extension}'\")\n\
             print(con.execute('FROM mergeql.merge($1)', ['MERGE t ON id']).fetchall()); con.close()\n\
             con = open_('{0}/mergeql.duckdb')\n\
             try: con.execute(\"LOAD '{extension}'\")\n\
             except duckdb.Error as error: print('attached as `mergeql`' in str(error))\n\
             print(con.execute(\"SELECT count(*) FROM duckdb_functions() WHERE database_name = 'mergeql'\").fetchall())",
            own.display()
        );
        let output = std::process::Command::new(&python).args(["-c", &script]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(told, "[(1,)]\nTrue\n[(0,)]\n", "{python}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn tables_that_keep_states_equal_one_merge() {
    for python in pythons() {
        tables_that_keep_states_converge(&mut start(&python, 2), ["INTEGER", "DOUBLE", "VARCHAR", "BOOLEAN"], false);
    }
}
