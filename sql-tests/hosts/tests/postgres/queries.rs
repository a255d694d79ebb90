//! Aggregates in every shape of query, and targets of every kind.

use crate::{cluster, explain, samples, type_name};
use mergeql_host_tests::{Host, Sample, one, sample};
use mergeql_udfs::catalog;

const SEVERAL_PROCESSES: &str = "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 4";

/// Every aggregate over every type that it takes: several processes make the state that one makes.
#[test]
fn aggregates_over_every_type_run_in_parallel() {
    let mut host = cluster().host();
    host.raw(SEVERAL_PROCESSES).unwrap();
    let types = [
        ("b", "i % 3 = 0"),
        ("i2", "(i % 100)::smallint"),
        ("i4", "i % 100"),
        ("i8", "i::bigint * 1000000007 % 101"),
        ("f4", "(i % 100)::real / 8"),
        ("f8", "(i % 100)::float8 / 8"),
        ("n", "(i % 100)::numeric(10, 2) / 4"),
        ("t", "'text ' || i % 100"),
        ("y", "decode(md5((i % 100)::text), 'hex')"),
        ("d", "DATE '2024-01-01' + i % 100"),
        ("ti", "TIME '00:00' + (i % 100) * interval '1 minute'"),
        ("ts", "TIMESTAMP '2024-01-01' + (i % 100) * interval '1 hour'"),
        ("tz", "TIMESTAMPTZ '2024-01-01 00:00Z' + (i % 100) * interval '1 hour'"),
        ("iv", "(i % 100) * interval '1 minute'"),
        ("u", "md5((i % 100)::text)::uuid"),
        ("j", "jsonb_build_object('a', i % 100)"),
        ("js", "to_jsonb('x' || i % 100)"),
        ("li", "ARRAY[i % 100, NULL, 1]"),
        ("lt", "ARRAY['x' || i % 100]"),
    ];
    let columns: Vec<String> = types.iter().map(|(name, expr)| format!("{expr} AS {name}")).collect();
    host.raw(&format!("CREATE TABLE t AS SELECT i % 7 AS k, {} FROM generate_series(1, 5000) AS i; ANALYZE t", columns.join(", ")))
        .unwrap();
    let mut checked = 0;
    for entry in catalog::all() {
        let name = entry.spec().name;
        for arguments in ["{}", "{}, k", "{}, ts, k"] {
            for (column, _) in types {
                let state = format!("crdt_{name}_state({})", arguments.replace("{}", column));
                let sql = format!("SELECT bytea({state}) FROM t");
                host.raw("SET max_parallel_workers_per_gather = 0").unwrap();
                // What a strategy does not take is another test's.
                let Ok(Some(whole)) = host.query(&sql) else { continue };
                host.raw("SET max_parallel_workers_per_gather = 4").unwrap();
                let plan = explain(&mut host, &sql);
                assert!(plan.contains("Partial Aggregate") && plan.contains("Gather"), "{state}: {plan}");
                assert_eq!(host.query(&sql).unwrap().unwrap(), whole, "{state}");
                checked += 1;
                assert_alike(&mut host, &format!("crdt_{name}({})", arguments.replace("{}", column)));
            }
        }
    }
    for entry in catalog::plain() {
        let name = catalog::plain_name(entry);
        types.iter().for_each(|(column, _)| assert_alike(&mut host, &format!("{name}({column})")));
        assert_alike(&mut host, &format!("{name}(i4, row_digest(i8))"));
    }
    assert!(checked > 200, "only {checked} were checked");
}

/// The value of an aggregate is the same whether several processes work on it or one.
fn assert_alike(host: &mut Host, aggregate: &str) {
    let sql = format!("SELECT ({aggregate})::text FROM t");
    host.raw("SET max_parallel_workers_per_gather = 0").unwrap();
    // What it does not take is another test's.
    let Ok(Some(whole)) = host.query(&sql) else { return };
    host.raw("SET max_parallel_workers_per_gather = 4").unwrap();
    assert_eq!(host.query(&sql).unwrap().unwrap(), whole, "{aggregate}");
}

/// Every aggregate as a window function, in frames that grow and in frames that move: what it gives for the frame's rows alone.
#[test]
fn every_aggregate_is_a_window_function() {
    let mut host = cluster().host();
    let mut checked = 0;
    for entry in catalog::all() {
        for call in samples(entry) {
            let hex = |hex: &str| format!("decode('{hex}', 'hex')");
            let Some(Sample { rows, .. }) = sample(entry, &call, type_name, hex, |_| true) else { continue };
            let columns = (0..call.inputs.len()).map(|i| format!("c{i}")).collect::<Vec<_>>().join(", ");
            let values: Vec<String> = rows.iter().enumerate().map(|(i, r)| format!("({i}, {r})")).collect();
            host.raw(&format!(
                "DROP TABLE IF EXISTS rows; CREATE TABLE rows AS SELECT * FROM (VALUES {}) AS t(i, {columns})",
                values.join(", ")
            ))
            .unwrap();
            let name = entry.spec().name;
            let state = format!("crdt_{name}_state_with('{}', {columns})", call.to_json().replace('\'', "''"));
            for (frame, within) in [
                ("ORDER BY i", "r.i <= w.i"),
                ("ORDER BY i ROWS BETWEEN 2 PRECEDING AND 1 FOLLOWING", "r.i BETWEEN w.i - 2 AND w.i + 1"),
                ("ORDER BY i ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING EXCLUDE CURRENT ROW", "r.i > w.i"),
            ] {
                let both = format!(
                    "SELECT {state} OVER ({frame}) AS a, (SELECT {state} FROM rows AS r WHERE {within}) AS b FROM rows AS w"
                );
                let sql = format!("SELECT count(*) FROM ({both}) AS f WHERE bytea(a) IS DISTINCT FROM bytea(b)");
                assert_eq!(one(&mut host, &sql), "0", "{name} {call:?} OVER ({frame})");
            }
            checked += 1;
        }
    }
    assert!(checked >= 20, "only {checked} calls were checked");
}

/// Sets of groups, with states for the ones that are coarser: they join to what the rows give.
#[test]
fn groupings_join_to_their_totals() {
    let mut host = cluster().host();
    host.raw(
        "CREATE TABLE t AS SELECT i % 3 AS a, i % 5 AS b, 'v' || i % 45 AS v, i % 90 AS ts FROM generate_series(1, 3000) AS i",
    )
    .unwrap();
    for aggregate in ["crdt_max(v)", "crdt_lww(v, ts)", "crdt_union(v)", "crdt_gset(v)", "crdt_fww(v, ts)", "crdt_min(v)"] {
        let plain = |by: &str, shown: &str| format!("SELECT {shown}, {aggregate} AS v FROM t {by}");
        let each = [
            plain("GROUP BY a, b", "a, b"),
            plain("GROUP BY a", "a, NULL::int"),
            plain("GROUP BY b", "NULL::int, b"),
            plain("", "NULL::int, NULL::int"),
        ]
        .join(" UNION ALL ");
        for by in ["CUBE (a, b)", "GROUPING SETS ((a, b), (a), (b), ())"] {
            let sets = plain(&format!("GROUP BY {by}"), "a, b");
            let sql = format!("SELECT count(*) FROM ((({sets}) EXCEPT ({each})) UNION ALL (({each}) EXCEPT ({sets}))) AS d");
            assert_eq!(one(&mut host, &sql), "0", "{aggregate} by {by}");
        }
    }
    // A state is a value that groups are made by and rows are joined by.
    host.raw("CREATE TABLE s AS SELECT a, b, crdt_gset_state(v) AS s FROM t GROUP BY a, b").unwrap();
    for (sql, answer) in [
        ("SELECT count(DISTINCT s::bytea) = count(*) FROM (SELECT s FROM s GROUP BY s) AS g", "true"),
        ("SELECT count(*) FROM s JOIN s AS other USING (s)", "15"),
        ("SELECT count(*) FROM (SELECT s FROM s UNION SELECT s FROM s) AS u", "15"),
        ("SELECT crdt_value_text(crdt_merge(s)) = (SELECT crdt_value_text(crdt_gset_state(v)) FROM t) FROM s", "true"),
    ] {
        assert_eq!(one(&mut host, sql), answer, "{sql}");
    }
}

/// Views of states that are refreshed while they are read.
#[test]
fn materialized_views_of_states_are_refreshed_concurrently() {
    let mut host = cluster().host();
    host.raw(
        "CREATE TABLE t AS SELECT i % 10 AS k, 'v' || i AS v FROM generate_series(1, 100) AS i; \
         CREATE MATERIALIZED VIEW m AS SELECT k, crdt_union_state(v) AS s, crdt_max(v) AS top FROM t GROUP BY k; \
         CREATE UNIQUE INDEX ON m (k); INSERT INTO t VALUES (3, 'zz'), (11, 'new')",
    )
    .unwrap();
    host.raw("REFRESH MATERIALIZED VIEW CONCURRENTLY m").unwrap();
    let sql = "SELECT concat_ws('|', count(*), max(top), sum(length(crdt_value_text(s)))) FROM m";
    let fresh = "SELECT concat_ws('|', count(*), max(top), sum(length(u))) FROM \
                 (SELECT crdt_union(v) AS u, crdt_max(v) AS top FROM t GROUP BY k) AS f";
    assert_eq!(one(&mut host, sql), one(&mut host, fresh));
    // The view of a statement too.
    host.raw(
        "CALL mergeql_create('materialized view', 'merged', 'MERGE t ON k STRATEGY v = union'); CREATE UNIQUE INDEX ON merged (k)",
    )
    .unwrap();
    host.raw("INSERT INTO t VALUES (11, 'newer'); REFRESH MATERIALIZED VIEW CONCURRENTLY merged").unwrap();
    assert_eq!(one(&mut host, "SELECT v FROM merged WHERE k = 11"), "new,newer");
}

/// Targets in partitions: rows go where they belong.
#[test]
fn targets_may_be_partitioned() {
    let mut host = cluster().host();
    host.raw(
        "CREATE TABLE target (id int PRIMARY KEY, v int, tags text) PARTITION BY RANGE (id); \
         CREATE TABLE low PARTITION OF target FOR VALUES FROM (MINVALUE) TO (50); \
         CREATE TABLE high PARTITION OF target FOR VALUES FROM (50) TO (1000); \
         INSERT INTO target SELECT i, 0, 'old' FROM generate_series(1, 99, 2) AS i",
    )
    .unwrap();
    let into = "MERGE INTO target USING (SELECT i AS id, i % 7 AS v, 'new' AS tags FROM generate_series(40, 60) AS i) AS s ON id \
                STRATEGY v = max, tags = union";
    for _ in 0..2 {
        host.query(into).unwrap();
        let sql = "SELECT concat_ws('|', (SELECT count(*) FROM low), (SELECT count(*) FROM high), sum(v), \
                   count(*) FILTER (WHERE tags = 'new,old'), count(*) FILTER (WHERE tags = 'new')) FROM target";
        assert_eq!(one(&mut host, sql), "30|31|63|10|11");
    }
    let nowhere = "MERGE INTO target USING (SELECT 1000 AS id, 1 AS v) AS s ON id STRATEGY v = max";
    assert!(host.query(nowhere).unwrap_err().0.contains("no partition"));
    assert_eq!(one(&mut host, "SELECT count(*) FROM target"), "61");
}

/// Row level security holds for targets as for sources: rows that a role does not see are not changed, those that it must not write are refused.
#[test]
fn policies_hold_for_targets() {
    let mut host = cluster().host();
    let role = format!("tenant_{}", std::process::id());
    host.raw(&format!(
        "CREATE ROLE {role}; CREATE TABLE target (id int PRIMARY KEY, tenant text, v int); \
         INSERT INTO target VALUES (1, '{role}', 1), (2, 'other', 1); ALTER TABLE target ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY own ON target USING (tenant = current_user) WITH CHECK (tenant = current_user); \
         GRANT ALL ON target TO {role}; GRANT USAGE ON SCHEMA public TO {role}; SET ROLE {role}"
    ))
    .unwrap();
    let into = |rows: &str| {
        format!("MERGE INTO target USING (SELECT * FROM (VALUES {rows}) AS v(id, tenant, v)) AS s ON id STRATEGY * = max")
    };
    host.query(&into(&format!("(1, '{role}', 9), (3, '{role}', 9)"))).unwrap();
    // A key that another tenant has: it is not seen, so it is inserted, and the unique key says no.
    let refused = host.query(&into(&format!("(2, '{role}', 9)"))).unwrap_err();
    assert!(refused.0.contains("duplicate key"), "{refused}");
    let refused = host.query(&into("(4, 'other', 9)")).unwrap_err();
    assert!(refused.0.contains("row-level security"), "{refused}");
    assert_eq!(one(&mut host, "SELECT string_agg(id || '=' || v, ' ' ORDER BY id) FROM target"), "1=9 3=9");
    host.raw("RESET ROLE").unwrap();
    assert_eq!(one(&mut host, "SELECT string_agg(id || '=' || v, ' ' ORDER BY id) FROM target"), "1=9 2=1 3=9");
    host.raw(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).unwrap();
}

/// Sessions under SERIALIZABLE: who is refused tries again, and the end is the join of all.
#[test]
fn serializable_sessions_end_in_the_join_of_all() {
    let database = cluster().database();
    let mut host = cluster().host_of(&database);
    host.raw("CREATE TABLE target (id int PRIMARY KEY, v int, tags text)").unwrap();
    let refused = std::thread::scope(|scope| {
        let session = |session: u32| {
            let database = &database;
            move || {
                let mut host = cluster().host_of(database);
                host.raw("SET default_transaction_isolation = 'serializable'").unwrap();
                let mut refused = 0;
                for batch in 0..10 {
                    let rows = format!(
                        "SELECT i AS id, i * {session} % 11 + {batch} AS v, 's{session}b{batch}' AS tags FROM generate_series(1, 20) AS i"
                    );
                    let into = format!("MERGE INTO target USING ({rows}) AS s ON id STRATEGY v = max, tags = union");
                    while let Err(error) = host.query(&into) {
                        let again = ["could not serialize access", "duplicate key", "deadlock detected"];
                        assert!(again.iter().any(|text| error.0.contains(text)), "{error}");
                        refused += 1;
                        assert!(refused < 1000, "{error}");
                    }
                }
                refused
            }
        };
        let sessions: Vec<_> = (0..4).map(|n| scope.spawn(session(n))).collect();
        sessions.into_iter().map(|s| s.join().unwrap()).sum::<u32>()
    });
    let sql = "SELECT concat_ws('|', count(*), sum(v), min(cardinality(string_to_array(tags, ','))), max(length(tags)) = min(length(tags))) FROM target";
    let top = |i: u32| (0..4).map(|s| i * s % 11 + 9).max().unwrap();
    let sum: u32 = (1..=20).map(top).sum();
    assert_eq!(one(&mut host, sql), format!("20|{sum}|40|t"), "{refused} were refused");
}
