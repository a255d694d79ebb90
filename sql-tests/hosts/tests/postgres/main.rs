//! The same statements, rows and states in a real Postgres cluster, which the tests make and start themselves.
#![allow(clippy::unwrap_used, missing_docs)]

mod errors;
mod life;
mod queries;
mod types;

use mergeql::columns::{logical, value_at};
use mergeql::datafusion::arrow::array::RecordBatch;
use mergeql_host_tests::cluster::Cluster;
use mergeql_host_tests::kept::tables_that_keep_states_converge;
use mergeql_host_tests::{Host, HostError, Sample, one, run_slt_files, sample};
use mergeql_lang::lower::postgres_type_name;
use mergeql_sql_tests::cases;
use mergeql_sql_tests::pages::blocks;
use mergeql_udfs::{Call, Type, Value, catalog};
use std::sync::OnceLock;

/// One cluster for all tests that leave it running.
fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::start)
}

fn type_name(ty: &Type) -> String {
    postgres_type_name(ty).unwrap()
}

/// Calls whose types Postgres has: structs are types of their own there.
fn samples(entry: &catalog::Entry) -> impl Iterator<Item = Call> {
    let known = |call: &Call| call.inputs.iter().all(|ty| postgres_type_name(ty).is_some());
    (entry.spec().samples)().into_iter().filter(known)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_slt_file_passes() {
    run_slt_files(|| cluster().host()).await;
}

/// For every strategy: shuffled and repeated rows, by one process and by several, give the state bytes that the core gives; states made
/// in parts join to them.
#[test]
fn every_aggregate_keeps_the_laws_and_the_bytes() {
    let mut host = cluster().host();
    let mut checked = 0;
    for parallel in [false, true] {
        for setting in ["parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"] {
            host.raw(&format!("SET {setting} = 0")).unwrap();
        }
        host.raw(&format!("SET max_parallel_workers_per_gather = {}", if parallel { 4 } else { 0 })).unwrap();
        for entry in catalog::all() {
            for call in samples(entry) {
                let Some(Sample { rows, state: expected, .. }) =
                    sample(entry, &call, type_name, |hex| format!("decode('{hex}', 'hex')"), |_| true)
                else {
                    continue;
                };
                let name = entry.spec().name;
                let columns: Vec<String> = (0..call.inputs.len()).map(|i| format!("c{i}")).collect();
                let columns = columns.join(", ");
                let values: Vec<String> = rows.iter().map(|r| format!("({r})")).collect();
                host.raw("DROP TABLE IF EXISTS rows").unwrap();
                host.raw(&format!("CREATE TABLE rows AS SELECT * FROM (VALUES {}) AS t({columns})", values.join(", "))).unwrap();
                // Several pages, so that several processes have some.
                host.raw("INSERT INTO rows SELECT r.* FROM rows AS r, generate_series(1, 500)").unwrap();
                host.raw("ANALYZE rows").unwrap();
                let with = call.to_json().replace('\'', "''");
                let state = format!("crdt_{name}_state_with('{with}', {columns})");
                for from in ["rows", "(SELECT * FROM rows ORDER BY random()) AS r"] {
                    let sql = format!("SELECT bytea({state}) FROM {from}");
                    assert_eq!(one(&mut host, &sql), expected, "{name} {call:?} from {from}");
                }
                let parts = format!("SELECT {state} AS s FROM rows GROUP BY random() < 0.5, hashtext(rows::text) % 3");
                let sql = format!("SELECT bytea(crdt_merge(s)) FROM ({parts}) AS p");
                assert_eq!(one(&mut host, &sql), expected, "{name} {call:?} in parts");
                checked += 1;
            }
        }
    }
    assert!(checked >= 20, "only {checked} calls were checked");
}

/// The cases with expected answers. Rows without a type have no column type in Postgres: cases over structs are left out.
#[tokio::test(flavor = "multi_thread")]
async fn every_case_gives_its_rows() {
    let cases = cases::read(include_str!("../../../data/tabular/cases.jsonl"));
    let mut host = cluster().host();
    host.query(cases::SUM).unwrap();
    let (mut failures, mut run) = (Vec::new(), 0);
    for case in &cases {
        let tables = match case.tables(1) {
            Ok(tables) => tables,
            Err(e) => {
                failures.extend(case.judge(&Err(e.to_string())).err());
                continue;
            }
        };
        let Some(sql) = tables.iter().map(|(name, batch)| create_table(name, batch)).collect::<Option<Vec<_>>>() else { continue };
        run += 1;
        sql.iter().for_each(|create| host.raw(create).unwrap_or_else(|e| panic!("{create}: {e}")));
        let result = match case.statement.trim().trim_end_matches(';') {
            "" => host.query("").map(|_| Vec::new()),
            statement => typed_rows(&mut host, statement),
        };
        tables.iter().for_each(|(name, _)| host.raw(&format!("DROP TABLE \"{name}\" CASCADE")).unwrap());
        if let Err(difference) = case.judge(&result.map_err(|e| e.0)) {
            failures.push(format!("{}: {}\n{difference}", case.id, case.statement));
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n\n"));
    assert!(run >= cases.len() - 4, "only {run} of {} cases were run", cases.len());
}

/// A source of a case as a table; `None` if a column has no type of Postgres'.
fn create_table(name: &str, batch: &RecordBatch) -> Option<String> {
    let schema = batch.schema();
    let types = schema.fields().iter().map(|f| postgres_type_name(&logical(f.data_type()).unwrap())).collect::<Option<Vec<_>>>()?;
    let columns: Vec<String> = schema.fields().iter().zip(&types).map(|(f, ty)| format!("\"{}\" {ty}", f.name())).collect();
    let row = |i: usize| {
        let cells = (0..types.len()).map(|c| literal(&value_at(batch.column(c), i), &types[c]));
        format!("({})", cells.collect::<Vec<_>>().join(", "))
    };
    let rows: Vec<String> = (0..batch.num_rows()).map(row).collect();
    let insert = if rows.is_empty() || types.is_empty() {
        String::new()
    } else {
        format!("; INSERT INTO \"{name}\" VALUES {}", rows.join(", "))
    };
    Some(format!("CREATE TABLE \"{name}\" ({}){insert}", columns.join(", ")))
}

fn literal(value: &Value, ty: &str) -> String {
    match value {
        Value::Null => format!("CAST(NULL AS {ty})"),
        Value::List(items) => {
            let element = ty.strip_suffix("[]").unwrap();
            let items: Vec<String> = items.iter().map(|v| literal(v, element)).collect();
            format!("CAST(ARRAY[{}] AS {ty})", items.join(", "))
        }
        other => format!("CAST('{}' AS {ty})", other.to_string().replace('\'', "''")),
    }
}

/// The rows of a statement with their types: each is a set of names and values in the core's encoding.
fn typed_rows(host: &mut Host, statement: &str) -> Result<Vec<cases::Row>, HostError> {
    let sql = host.query(&format!("SELECT mergeql_sql($statement${statement}$statement$)"))?.unwrap()[0][0].clone().unwrap();
    host.raw("DROP VIEW IF EXISTS result")?;
    host.raw(&format!("CREATE VIEW result AS SELECT * FROM ({sql}) AS m"))?;
    let columns =
        host.query("SELECT attname FROM pg_attribute WHERE attrelid = 'result'::regclass AND attnum > 0 ORDER BY attnum")?;
    let names: Vec<String> = columns.unwrap().into_iter().map(|mut row| row.remove(0).unwrap()).collect();
    // The state of a set of one value is that value with its type.
    let states: Vec<String> = names.iter().map(|n| format!("bytea(mergeql_gset_of(\"{n}\"))")).collect();
    let rows = host.query(&format!("SELECT {} FROM result", states.join(", ")))?.unwrap();
    let value = |cell: Option<String>| {
        let Some(text) = cell else { return Value::Null };
        let byte = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
        let state: Vec<u8> = (2..text.len()).step_by(2).map(byte).collect();
        match catalog::open(&state).unwrap().value().unwrap() {
            Value::List(mut items) => items.remove(0).to_worth(),
            other => panic!("not a set: {other}"),
        }
    };
    let row = |cells: Vec<Option<String>>| {
        let mut row: cases::Row = names.iter().cloned().zip(cells.into_iter().map(value)).filter(|(_, v)| !v.is_null()).collect();
        row.sort_by(|a, b| a.0.cmp(&b.0));
        row
    };
    Ok(rows.into_iter().map(row).collect())
}

/// FILTER, DISTINCT, ORDER BY inside an aggregate, grouping sets, windows, partitions, parallel plans: an answer of ours beside Postgres'
/// own.
#[test]
fn aggregates_work_wherever_postgres_lets_them() {
    let mut host = cluster().host();
    host.raw("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0").unwrap();
    host.raw(
        "CREATE TABLE t (k int, v bigint, s text) PARTITION BY HASH (k); \
         CREATE TABLE t0 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0); \
         CREATE TABLE t1 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1); \
         INSERT INTO t SELECT hashint4(i) % 97, CASE WHEN i % 11 > 0 THEN abs(hashint4(i * 7)) % 1000 END, \
         'text number ' || abs(hashint4(i * 3)) % 5000 FROM generate_series(1, 20000) AS i; ANALYZE t",
    )
    .unwrap();
    let pairs = [
        ("crdt_max(v)", "max(v)"),
        ("crdt_max(DISTINCT v)", "max(v)"),
        ("crdt_max(v ORDER BY k DESC)", "max(v)"),
        ("crdt_max(s)", "max(s COLLATE \"C\")"),
        ("crdt_lww(v, v)", "max(v)"),
        ("crdt_lww(s, v, s)", "(array_agg(s ORDER BY coalesce(v, -1) DESC, s COLLATE \"C\" DESC))[1]"),
        ("crdt_min(v) FILTER (WHERE v > 3)", "min(v) FILTER (WHERE v > 3)"),
        ("crdt_gset(v)", "(SELECT array_agg(DISTINCT x ORDER BY x) FROM unnest(array_agg(v)) AS x WHERE x IS NOT NULL)"),
    ];
    for (ours, theirs) in pairs {
        for group in ["k", "k % 2", "k < 1000", "s"] {
            let by = |aggregate: &str| format!("SELECT {group} AS g, {aggregate} AS a FROM t GROUP BY ROLLUP ({group})");
            let sql = format!("SELECT count(*) FROM ({} EXCEPT {}) AS d", by(ours), by(theirs));
            assert_eq!(one(&mut host, &sql), "0", "{ours} by {group}");
        }
        if ours.contains(['D', 'F']) || ours.contains("ORDER") || ours.contains("gset") || theirs.contains("array_agg") {
            continue;
        }
        for window in [
            "OVER (PARTITION BY k ORDER BY v, s ROWS BETWEEN 2 PRECEDING AND 1 FOLLOWING)",
            "OVER (ORDER BY v, s, k)",
            "OVER (PARTITION BY k)",
        ] {
            let both = format!("SELECT {ours} {window} AS a, {theirs} {window} AS b FROM t");
            assert_eq!(
                one(&mut host, &format!("SELECT count(*) FROM ({both}) AS w WHERE a IS DISTINCT FROM b")),
                "0",
                "{ours} {window}"
            );
        }
    }
    let plan = explain(&mut host, "SELECT crdt_max(v), crdt_lww(s, v, s), crdt_union(s) FROM t");
    assert!(plan.contains("Partial Aggregate") && plan.contains("Gather"), "{plan}");
    let plan = explain(&mut host, "SELECT k % 7, crdt_gset_state(v) FROM t GROUP BY 1");
    assert!(plan.contains("Partial HashAggregate"), "{plan}");
    host.raw("CREATE MATERIALIZED VIEW m AS SELECT k, crdt_lww_state(s, v) AS s FROM t GROUP BY k; REFRESH MATERIALIZED VIEW m")
        .unwrap();
    assert_eq!(one(&mut host, "SELECT crdt_value_text(crdt_merge(s)) = (SELECT crdt_lww(s, v) FROM t) FROM m"), "true");
}

/// Postgres' plan of a query.
fn explain(host: &mut Host, sql: &str) -> String {
    host.raw(
        "CREATE OR REPLACE FUNCTION plan_of(q text) RETURNS SETOF text LANGUAGE plpgsql \
         AS 'BEGIN RETURN QUERY EXECUTE ''EXPLAIN '' || q; END'",
    )
    .unwrap();
    let rows = host.query(&format!("SELECT plan FROM plan_of($q${sql}$q$) AS plan")).unwrap().unwrap();
    rows.into_iter().filter_map(|mut row| row.remove(0)).collect::<Vec<_>>().join("\n")
}

const NYC: &str = "CREATE TABLE nyc (id int, salary int, tags text, updated_at timestamp); \
     INSERT INTO nyc VALUES (1, 90, 'x,y', '2024-01-01'), (2, 70, 'z', '2024-02-01')";

/// In the caller's transaction, from every kind of source, to every kind of place.
#[test]
fn statements_see_what_their_caller_sees() {
    let mut host = cluster().host();
    let mut run = |sql: &str| host.raw(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    run(NYC);
    run("BEGIN");
    run("CREATE TEMP TABLE london (id bigint, salary int, tags text, updated_at timestamp, extra jsonb)");
    run("INSERT INTO london VALUES (1, 95, 'w', '2024-03-01', '{\"new\": 1}')");
    let merge = "MERGE nyc, london, (SELECT 3 AS id, 1 AS salary) AS late ON id \
                 STRATEGY salary = max, tags = union, * = lww VERSION BY updated_at";
    let columns = "t(id int, salary int, tags text, updated_at timestamp, extra jsonb)";
    run(&format!("CREATE TABLE made AS SELECT * FROM mergeql('{merge}') AS {columns}"));
    run(&format!("CALL mergeql_create('view', 'a_view', '{merge}')"));
    run(&format!("CALL mergeql_create('table', '\"a table\"', '{merge}')"));
    run("CREATE TABLE lasting AS SELECT * FROM london");
    run(&format!("CALL mergeql_create('materialized view', 'kept', '{}')", merge.replace("london", "lasting")));
    run("REFRESH MATERIALIZED VIEW kept");
    run(&format!("CALL mergeql_into('{merge} INTO written')"));
    for table in ["made", "a_view", "\"a table\"", "written", "kept"] {
        let rows = "string_agg(concat_ws('|', id, salary, tags, extra), ' ' ORDER BY id)";
        let sql = format!("SELECT {rows} FROM {table}");
        assert_eq!(one(&mut host, &sql), "1|95|w,x,y|{\"new\": 1} 2|70|z 3|1", "{table}");
    }
    let json = format!("SELECT string_agg(j->>'salary', ',' ORDER BY j->>'id') FROM mergeql_json('{merge}') AS j");
    assert_eq!(one(&mut host, &json), "95,70,1");
    let into = "MERGE INTO nyc USING (SELECT id, salary, tags FROM london) AS l ON id STRATEGY salary = max, tags = union";
    for _ in 0..2 {
        host.raw(&format!("CALL mergeql_into('{into}')")).unwrap();
        let rows = "SELECT string_agg(concat_ws('|', id, salary, tags), ' ' ORDER BY id) FROM nyc";
        assert_eq!(one(&mut host, rows), "1|95|w,x,y 2|70|z");
    }
    host.raw("ROLLBACK").unwrap();
    assert_eq!(one(&mut host, "SELECT sum(salary) FROM nyc"), "160");
}

/// Names as Postgres has them: quoted, in schemas, along the search path.
#[test]
fn names_mean_what_they_mean_to_postgres() {
    let mut host = cluster().host();
    host.raw("CREATE SCHEMA \"My Schema\"; CREATE TABLE \"My Schema\".\"T 1\" AS SELECT 1 AS \"Id\", 5 AS \"a \"\"b\"").unwrap();
    assert_eq!(one(&mut host, "SELECT \"a \"\"b\" FROM (MERGE \"My Schema\".\"T 1\" ON \"Id\") AS m"), "5");
    host.raw("SET search_path = \"My Schema\"").unwrap();
    let sql = "SELECT x FROM public.mergeql('MERGE \"T 1\" ON \"Id\"') AS t(id int, x int)";
    assert_eq!(one_raw(&mut host, "public", sql), "5");
    host.raw("SET search_path = public; CREATE TABLE MiXed AS SELECT 1 AS ID, 2 AS v").unwrap();
    assert_eq!(one(&mut host, "SELECT v FROM (MERGE mixed, MIXED ON Id STRATEGY V = max) AS m"), "2");
}

/// What a target makes of keys and values by rules of its own is no part of a merge.
#[test]
fn targets_with_rules_of_their_own() {
    let mut host = cluster().host();
    let ok = |host: &mut Host, sql: &str| host.raw(sql).map(drop).unwrap_or_else(|e| panic!("{sql}: {e}"));
    // A row type keeps the places of columns that were dropped.
    ok(
        &mut host,
        "CREATE TABLE gaps (b int, a int, c int, d text); INSERT INTO gaps VALUES (2, 1, 123456789, 'dd'); ALTER TABLE gaps DROP COLUMN b",
    );
    assert_eq!(one(&mut host, "SELECT concat_ws('|', a, c, d) FROM mergeql(NULL::gaps, 'MERGE gaps ON a')"), "1|123456789|dd");
    // A row with a NULL in it is a key.
    ok(
        &mut host,
        "CREATE TYPE pt AS (x int, y text); CREATE TABLE points (p pt, v int); \
         INSERT INTO points VALUES (ROW(1, NULL), 1), (ROW(1, NULL), 2), (ROW(1, 'a'), 3), (ROW(NULL, NULL), 4), (NULL, 5)",
    );
    let rows = "SELECT string_agg(concat_ws('|', p::text, v), ' ' ORDER BY v) FROM mergeql('MERGE points ON p STRATEGY v = max') AS t(p pt, v int)";
    assert_eq!(one(&mut host, rows), "(1,)|2 (1,a)|3 (,)|4 5");
    // Keys that the host takes for equal are two, in a target as in a merge. Not every Postgres comes with citext.
    if one(&mut host, "SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'") == "1" {
        ok(&mut host, "CREATE EXTENSION citext; CREATE TABLE folded (k citext, v int); INSERT INTO folded VALUES ('a', 1)");
        for _ in 0..2 {
            ok(
                &mut host,
                "CALL mergeql_into('MERGE INTO folded USING (SELECT * FROM (VALUES (''A''::citext, 3), (''a'', 2)) AS v(k, v)) AS s ON k STRATEGY v = max')",
            );
            assert_eq!(one(&mut host, "SELECT string_agg(k || v, ' ' ORDER BY v) FROM folded"), "a2 A3");
        }
    }
    ok(
        &mut host,
        "CREATE TYPE mood AS ENUM ('ok', 'sad'); CREATE TABLE moods (k mood, m mood); INSERT INTO moods VALUES ('ok', 'ok')",
    );
    ok(
        &mut host,
        "CALL mergeql_into('MERGE INTO moods USING (SELECT ''ok''::text AS k, ''sad''::text AS m) AS s ON k STRATEGY m = max')",
    );
    assert_eq!(one(&mut host, "SELECT string_agg(concat_ws('|', k, m), ' ') FROM moods"), "ok|sad");
    assert_eq!(
        one(
            &mut host,
            "SELECT m FROM mergeql('MERGE moods, (SELECT ''ok''::mood AS k, ''ok''::mood AS m) AS s ON k STRATEGY m = concat') AS t(k mood, m text)"
        ),
        "ok | sad"
    );
    // Values that do not fit are an error, not cut.
    ok(&mut host, "CREATE TABLE short (id int PRIMARY KEY, t varchar(3), at timestamp(0))");
    let into = "CALL mergeql_into('MERGE INTO short USING (SELECT 1 AS id, ''abcdef''::text AS t) AS s ON id STRATEGY t = max')";
    assert!(host.raw(into).unwrap_err().0.contains("too long"));
    let into = "CALL mergeql_into('MERGE INTO short USING (SELECT 1 AS id, timestamp ''2024-01-01 00:00:00.7'' AS at) AS s ON id STRATEGY at = max')";
    assert!(host.raw(into).unwrap_err().0.contains("would be cut"));
    // Intervals that are as long are not the same.
    ok(&mut host, "CREATE TABLE spans (id int, i interval); INSERT INTO spans VALUES (1, '24:00')");
    ok(
        &mut host,
        "CALL mergeql_into('MERGE INTO spans USING (SELECT 1 AS id, interval ''1 day'' AS i) AS s ON id STRATEGY i = max')",
    );
    assert_eq!(one(&mut host, "SELECT i::text FROM spans"), "1 day");
    // Lists of types without an equality.
    ok(&mut host, "CREATE TABLE docs (id int, d json[]); INSERT INTO docs VALUES (1, ARRAY['{\"a\":1}'::json]), (NULL, NULL)");
    assert_eq!(one(&mut host, "SELECT count(*) FROM mergeql('MERGE docs ON id') AS t(id int, d json[])"), "2");
}

/// Statements are written for a session that reads and prints as Postgres does by itself, and sees what others wrote.
#[test]
fn sessions_that_change_values_are_refused() {
    let mut host = cluster().host();
    host.raw("CREATE TABLE plain (id int, v int)").unwrap();
    let into = "CALL mergeql_into('MERGE INTO plain USING (SELECT 1 AS id, 2 AS v) AS s ON id STRATEGY v = max')";
    for setting in ["standard_conforming_strings = off", "extra_float_digits = 0"] {
        host.raw(&format!("SET {setting}")).unwrap();
        assert!(host.raw(into).unwrap_err().0.contains("changes values"), "{setting}");
        host.raw("RESET ALL").unwrap();
    }
    let repeatable = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {into}");
    assert!(host.raw(&repeatable).unwrap_err().0.contains("without a unique key"));
    host.raw("ROLLBACK").unwrap();
    host.raw("ALTER TABLE plain ADD PRIMARY KEY (id)").unwrap();
    host.raw(&repeatable).unwrap();
    host.raw("COMMIT").unwrap();
    for other in ["DROP TABLE plain", "DELETE FROM plain"] {
        assert!(host.raw(&format!("CALL mergeql_into('{other}')")).unwrap_err().0.contains("no statement of MergeQL"), "{other}");
    }
    assert_eq!(one(&mut host, "SELECT v FROM plain"), "2");
}

/// The rows of a merge are read by several processes where Postgres would read them so by itself.
#[test]
fn merges_are_read_in_parallel() {
    let mut host = cluster().host();
    host.raw(
        "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET parallel_leader_participation = off; \
         CREATE TABLE big AS SELECT i AS id, i % 7 AS v FROM generate_series(1, 200000) AS i; ANALYZE big; \
         CREATE FUNCTION whose() RETURNS int LANGUAGE plpgsql PARALLEL SAFE AS 'BEGIN RETURN pg_backend_pid(); END'",
    )
    .unwrap();
    let others = "SELECT count(DISTINCT pid) > 0 AND bool_and(pid <> pg_backend_pid()) FROM mergeql('MERGE (SELECT id, whose() AS pid FROM big) AS b ON id') AS t(id int, pid int)";
    assert_eq!(one_raw(&mut host, "public", others), "true");
}

/// A target's rows are looked up by key where it has an index on it.
#[test]
fn merge_into_follows_the_batch() {
    let mut host = cluster().host();
    host.raw(
        "CREATE TABLE big AS SELECT i AS id, 'n' || i AS k, 1 AS v FROM generate_series(1, 100000) AS i; \
         CREATE UNIQUE INDEX ON big (k); ANALYZE big",
    )
    .unwrap();
    let into = "MERGE INTO big USING (SELECT ''n7'' AS k, 9 AS v, 0 AS id) AS s ON k STRATEGY * = max";
    let sql = one(&mut host, &format!("SELECT mergeql_sql('{into}')"));
    let plan = explain(&mut host, &sql);
    let scans = plan.lines().filter(|line| line.contains("Seq Scan on big")).count();
    assert!(plan.contains("using big_k_idx") && scans == 0, "{plan}");
    host.raw(&format!("CALL mergeql_into('{into}')")).unwrap();
    assert_eq!(one(&mut host, "SELECT sum(v) FROM big"), "100008");
}

/// One value of a query that is not MergeQL's, from an extension in this schema.
fn one_raw(host: &mut Host, schema: &str, sql: &str) -> String {
    let answer = format!("SELECT {schema}.mergeql_text(a) AS a FROM ({sql}) AS q(a)");
    host.raw(&format!("DROP TABLE IF EXISTS pg_temp.answer; CREATE TEMP TABLE answer AS {answer}")).unwrap();
    let error = host.raw("DO $$ BEGIN RAISE EXCEPTION '%', (SELECT a FROM pg_temp.answer); END $$").unwrap_err();
    error.0.lines().next().unwrap().to_owned()
}

/// Wide tables: a function of Postgres takes a hundred arguments.
#[test]
fn wide_tables_merge() {
    let mut host = cluster().host();
    let columns: Vec<String> = (0..120).map(|i| format!("i + {i} AS c{i}")).collect();
    host.raw(&format!("CREATE TABLE wide AS SELECT i % 10 AS id, {} FROM generate_series(1, 20) AS i", columns.join(", ")))
        .unwrap();
    assert_eq!(one(&mut host, "SELECT sum(c119) FROM (MERGE wide ON id VERSION BY c0, ROW) AS m"), "1345");
    assert_eq!(one(&mut host, "SELECT count(*) FROM (MERGE wide ON id RETURNING CONFLICTS) AS m"), "1200");
}

/// The caller's rights and no others; one statement and no other.
#[test]
fn a_statement_runs_nothing_but_itself() {
    let mut host = cluster().host();
    host.raw(NYC).unwrap();
    host.raw(
        "CREATE ROLE reader; CREATE TABLE secret (id int, v int); CREATE TABLE rows (id int, who text, v int); \
         INSERT INTO rows VALUES (1, 'reader', 5), (1, 'other', 9); ALTER TABLE rows ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY own ON rows USING (who = current_user); GRANT SELECT ON nyc, rows TO reader; SET ROLE reader",
    )
    .unwrap();
    assert_eq!(one(&mut host, "SELECT v FROM (MERGE rows ON id STRATEGY v = max) AS m"), "5");
    let refused = host.query("SELECT * FROM mergeql('MERGE secret ON id') AS t(id int, v int)").unwrap_err();
    assert!(refused.0.contains("permission denied for table secret"), "{refused}");
    let refused = host.query("MERGE INTO nyc USING (SELECT 1 AS id, 1 AS salary) AS s ON id STRATEGY * = max").unwrap_err();
    assert!(refused.0.contains("permission denied"), "{refused}");
    host.raw("RESET ROLE; CREATE TABLE victim (id int)").unwrap();
    for statement in [
        "MERGE nyc ON id; DROP TABLE victim",
        "MERGE nyc, (SELECT 1 AS id); DROP TABLE victim; --) AS s ON id",
        "MERGE (SELECT 1 AS id) AS s ON id WHERE id = 1); DROP TABLE victim; --",
        "MERGE (SELECT 1 AS id, E'\\'' AS v) AS s ON id; DROP TABLE victim; --'",
        "MERGE (SELECT 1 AS id, 'x\\' AS v) AS s ON id WHERE v = '; DROP TABLE victim; --'",
        "MERGE nyc AS \"x\"\"; DROP TABLE victim; --\" ON id RETURNING CONFLICTS",
        "MERGE (DELETE FROM nyc RETURNING *) AS s ON id",
        "MERGE (WITH d AS (DELETE FROM nyc RETURNING *) SELECT * FROM d) AS s ON id",
        "MERGE (SELECT 1 AS \"id\"\"; DROP TABLE victim; --\") AS s ON \"id\"\"; DROP TABLE victim; --\"",
        "MERGE nyc ON id STRATEGY tags = concat('''); DROP TABLE victim; --')",
        "MERGE (SELECT 1 AS id /* ) */ ) AS s ON id /* '; DROP TABLE victim; -- */",
        "MERGE (SELECT 1 AS id, $a$ ) AS s ON id; DROP TABLE victim; --$a$ AS v) AS s ON id",
        "DROP TABLE victim",
        "CREATE TABLE victim AS MERGE nyc ON id",
        "EXPLAIN ANALYZE MERGE nyc ON id WHERE id = 1); DROP TABLE victim; --",
        "EXPLAIN MERGE nyc AS \"x\"\"; DROP TABLE victim; --\" ON id",
        "SELECT set_config('search_path', 'nowhere', false)",
    ] {
        for strings in ["on", "off"] {
            host.raw(&format!("SET standard_conforming_strings = {strings}")).unwrap();
            let quoted = format!("$statement${statement}$statement$");
            for call in [
                format!("SELECT count(*) FROM mergeql_json({quoted}) AS j"),
                format!("CALL mergeql_create('view', 'made', {quoted})"),
                format!("CALL mergeql_create('table', 'made; DROP TABLE victim', {quoted})"),
            ] {
                host.raw(&call).ok();
                host.raw("DROP VIEW IF EXISTS made").unwrap();
                assert_eq!(one_raw(&mut host, "public", "SELECT to_regclass('victim') IS NOT NULL"), "true", "{call}");
                assert_eq!(one_raw(&mut host, "public", "SELECT count(*) FROM nyc"), "2", "{call}");
            }
        }
    }
}

/// Files of the server are open to whom the server opens them; who may read them may not write, and a statement that reads is cancelled.
#[test]
fn files_of_tensors_need_the_right_to_files() {
    let mut host = cluster().host();
    let (_folder, placed) = mergeql_host_tests::models();
    host.raw("CREATE ROLE modest").unwrap();
    let query = placed(
        "SELECT count(sha256) FROM merge_models(ARRAY['models/m0.safetensors', 'models/m1.safetensors'], base => 'models/base.safetensors', strategy => 'ties')",
    );
    assert_eq!(one(&mut host, &query), "3");
    host.raw("SET ROLE modest").unwrap();
    let refused = host.query_raw(&query).unwrap_err();
    assert!(refused.0.contains("not open to this role"), "{refused}");
    host.raw("RESET ROLE; GRANT pg_read_server_files TO modest; SET ROLE modest").unwrap();
    assert_eq!(one_raw(&mut host, "public", &query), "3");
    host.raw("RESET ROLE").unwrap();
    for (query, said) in [
        ("SELECT * FROM read_safetensors('nope.safetensors')", "there is no such file"),
        ("SELECT * FROM read_safetensors(NULL::text)", "needs files"),
        ("SELECT * FROM merge_models('models/m0.safetensors', parameters => '[1]')", "no JSON object"),
        ("SELECT * FROM merge_models('models/m0.safetensors', parameters => '{\"densty\": 1}')", "unknown_option"),
        ("SELECT * FROM merge_models('models/m0.safetensors', parameters => '{\"cache\": \"/tmp/written\"}')", "writes nothing"),
    ] {
        let refused = host.query_raw(&placed(query)).unwrap_err();
        assert!(refused.0.contains(said), "{query}: {refused}");
    }
    // Some columns are costly, and NULL where nobody asked for them.
    let row = "SELECT concat_ws('|', count(*), count(norm), count(\"offset\")) FROM read_safetensors(";
    assert_eq!(one_raw(&mut host, "public", &placed(&format!("{row}'models/m0.safetensors')"))), "3|0|3");
    assert_eq!(one_raw(&mut host, "public", &placed(&format!("{row}'models/m*.safetensors', statistics => true)"))), "9|9|9");
    host.raw("SET statement_timeout = 300").unwrap();
    let slow = "SELECT count(a.norm) FROM generate_series(1, 1000000) AS g, LATERAL read_safetensors(repeat('', g) || 'models/m0.safetensors', statistics => true) AS a";
    let cancelled = host.query_raw(&placed(slow)).unwrap_err();
    assert!(cancelled.0.contains("statement timeout"), "{cancelled}");
    host.raw("RESET statement_timeout").unwrap();
    assert_eq!(one(&mut host, "SELECT 1"), "1");
}

/// Every block of the Postgres page runs, and gives what the page says.
#[test]
fn the_page_says_what_comes_out() {
    let mut host = cluster().host();
    let (_folder, placed) = mergeql_host_tests::models();
    for mut block in blocks(include_str!("../../../../docs/hosts/postgres.md")) {
        if block.language != "sql" {
            continue;
        }
        block.code = placed(&block.code);
        let Some(expected) = block.expected else {
            host.raw(&block.code).unwrap_or_else(|e| panic!("{}: {e}", block.code));
            continue;
        };
        let gives = match host.query_raw(&block.code) {
            Ok(rows) => {
                let cell = |c: Option<String>| c.unwrap_or_else(|| "NULL".to_owned());
                let line = |row: Vec<Option<String>>| row.into_iter().map(cell).collect::<Vec<_>>().join(" | ") + "\n";
                rows.into_iter().flatten().map(line).collect()
            }
            Err(e) => e.0.lines().next().unwrap().to_owned() + "\n",
        };
        assert_eq!(gives, expected, "{}", block.code);
    }
}

/// A target that may grow gets the columns that only the sources have.
#[test]
fn a_target_grows_where_it_may() {
    let mut host = cluster().host();
    host.raw("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE s AS SELECT 1 AS id, 2 AS v, 1.50::numeric(5, 2) AS price, 'x' AS note").unwrap();
    let into = "MERGE INTO t USING s ON id STRATEGY * = max";
    let refused = host.query(into).unwrap_err();
    assert!(refused.0.contains("unknown_column") && refused.0.contains("schema = 'extend'"), "{refused}");
    host.query(&format!("{into} WITH (schema = 'extend')")).unwrap();
    assert_eq!(one(&mut host, "SELECT mergeql_text(v, price, note, pg_typeof(price)::text) FROM t"), "2, 1.50, x, numeric");
}

/// The extension is trusted: who may create it in a database, and is no superuser, can use all of it there.
#[test]
fn who_is_no_superuser_can_install_it_and_make_strategies() {
    let mut admin = cluster().host_of("postgres");
    admin.raw("CREATE ROLE landlord NOSUPERUSER").unwrap();
    admin.raw("CREATE DATABASE house OWNER landlord TEMPLATE template0").unwrap();
    let mut host = cluster().host_of("house");
    host.raw("SET ROLE landlord; CREATE SCHEMA own; CREATE EXTENSION mergeql SCHEMA own; SET search_path = own").unwrap();
    host.raw("CREATE TABLE nyc (id int, v int); INSERT INTO nyc VALUES (1, 5), (1, 7)").unwrap();
    host.raw("CALL mergeql_into('CREATE STRATEGY highest AS max')").unwrap();
    let highest = "SELECT j->>'v' FROM mergeql_json('MERGE nyc ON id STRATEGY v = highest') AS j";
    assert_eq!(one_raw(&mut host, "own", highest), "7");
    host.raw("CALL mergeql_into('DROP STRATEGY highest')").unwrap();
    // Nobody else.
    host.raw("RESET ROLE; CREATE ROLE tenant; GRANT USAGE ON SCHEMA own TO tenant; SET ROLE tenant").unwrap();
    let refused = host.raw("CALL mergeql_into('CREATE STRATEGY lowest AS min')").unwrap_err();
    assert!(refused.0.contains("permission denied"), "{refused}");
    let refused = host.raw("SELECT * FROM mergeql_json('SELECT 1 AS x')").unwrap_err();
    assert!(refused.0.contains("no statement of MergeQL"), "{refused}");
}

#[test]
fn tables_that_keep_states_equal_one_merge() {
    tables_that_keep_states_converge(&mut cluster().host(), ["int", "double precision", "text", "boolean"], true);
}

/// Tables that keep states: deleted rows stay with their table, and values of any type go in and come back.
#[test]
fn tables_that_keep_states_keep_to_themselves() {
    let mut host = cluster().host();
    let into = |host: &mut Host, sql: &str| host.query(sql).map(drop).map_err(|e| e.0);
    // Another schema, and a table that was renamed.
    let gone = "(SELECT 1 AS id, 2 AS v, true AS gone, 5 AS ts) AS s";
    let back = "(SELECT 1 AS id, 3 AS v, false AS gone, 2 AS ts) AS s";
    let make = format!("MERGE {gone} ON id VERSION BY ts DELETE BY gone INTO t WITH (state = 'keep')");
    into(&mut host, &make).unwrap();
    host.raw("CREATE SCHEMA s1; SET search_path TO s1, public").unwrap();
    into(&mut host, &make).unwrap();
    host.raw("RESET search_path").unwrap();
    for table in ["t", "s1.t"] {
        into(&mut host, &format!("MERGE INTO {table} USING {back} ON id")).unwrap();
        assert_eq!(one(&mut host, &format!("SELECT count(*) FROM {table}")), "0", "{table}");
    }
    host.raw("ALTER TABLE t RENAME TO t2").unwrap();
    assert!(into(&mut host, &make).unwrap_err().contains("t_mergeql_deleted"));
    host.raw("ALTER TABLE t_mergeql_deleted RENAME TO t2_mergeql_deleted").unwrap();
    into(&mut host, &format!("MERGE INTO t2 USING {back} ON id")).unwrap();
    assert_eq!(one(&mut host, "SELECT count(*) FROM t2"), "0");
    host.raw("CREATE UNIQUE INDEX ON t2 (id)").unwrap();
    host.raw("BEGIN ISOLATION LEVEL REPEATABLE READ").unwrap();
    assert!(into(&mut host, &format!("MERGE INTO t2 USING {back} ON id")).unwrap_err().contains("REPEATABLE READ"));
    host.raw("ROLLBACK").unwrap();
    // Types with no equality, or none of their own.
    host.raw(
        "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE all_types AS SELECT 'glad'::mood AS id, '{\"b\": 1}'::json AS j, \
         '{\"a\": 1}'::jsonb AS jb, 1.50::numeric(10, 2) AS n, 'ab'::char(4) AS c, 'abc'::varchar(5) AS vc, now() AS ts, \
         interval '1 month' AS iv, ARRAY[1, 2] AS l, gen_random_uuid() AS u, '\\x00ff'::bytea AS b",
    )
    .unwrap();
    into(&mut host, "MERGE all_types ON id VERSION BY ts INTO typed WITH (state = 'keep')").unwrap();
    into(&mut host, "MERGE INTO typed USING all_types ON id").unwrap();
    host.raw("UPDATE typed SET jb = '2', ts = ts + interval '1 day'").unwrap();
    assert!(into(&mut host, "MERGE INTO typed USING all_types ON id").unwrap_err().contains("needs_state"));
    assert_eq!(one(&mut host, "SELECT mergeql_adopt('typed')"), "1");
    into(&mut host, "MERGE INTO typed USING all_types ON id").unwrap();
    assert_eq!(one(&mut host, "SELECT id || ' ' || jb || ' ' || n || ' ' || c || '|' || vc FROM typed"), "glad 2 1.50 ab|abc");
}
