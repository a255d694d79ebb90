//! Values and states as Postgres holds them.

use crate::cluster;
use mergeql_host_tests::one;

/// A merge of one source without repeats is the source, and collected values are the values, of whatever type.
#[test]
fn values_of_every_type_come_through_unchanged() {
    let mut host = cluster().host();
    host.raw(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN age AS int CHECK (VALUE > 0); CREATE TYPE pair AS (a int, b text)",
    )
    .unwrap();
    for value in [
        "true",
        "(-32768)::smallint",
        "9223372036854775807::bigint",
        "'-Infinity'::float8",
        "1.5::real",
        "12345678901234567.890::numeric",
        "99999999999999999999999999999.999999999::numeric(38, 9)",
        "0.00001::numeric(10, 5)",
        "''::text",
        "'it''s \"quoted\" \\ and back'::text",
        "'abc'::varchar(5)",
        "'ab'::char(4)",
        "'name'::name",
        "'\\x00ff'::bytea",
        "DATE '2024-02-29'",
        "DATE 'infinity'",
        "DATE '-infinity'",
        "DATE '4713-01-01 BC'",
        "TIME '23:59:59.999999'",
        "TIMESTAMP '-infinity'",
        "TIMESTAMP '1999-12-31 23:59:59.999999'",
        "TIMESTAMPTZ '2024-01-01 00:00:00+05'",
        "TIMESTAMPTZ 'infinity'",
        "INTERVAL '14 months 3 days 4.5 seconds'",
        "'ffeeddcc-bbaa-9988-7766-554433221100'::uuid",
        "'{\"b\": [1, 2.50], \"a\": null}'::jsonb",
        "'ok'::mood",
        "7::age",
        "ARRAY[1, NULL, 3]",
        "ARRAY[]::text[]",
        "ARRAY['a,b', NULL, '\"q\"']",
        "ARRAY['\\x00'::bytea]",
        "ARRAY['ok'::mood]",
        "ARRAY[1.50, 2]::numeric[]",
        "ROW(1, 'x')::pair",
        "ARRAY[ROW(1, NULL)::pair]",
    ] {
        host.raw(&format!(
            "DROP TABLE IF EXISTS t; CREATE TABLE t AS SELECT 1 AS id, {value} AS v, 5 AS ts UNION ALL SELECT 2, NULL, 6"
        ))
        .unwrap();
        for clauses in [
            "ON id",
            "ON id VERSION BY ts",
            "ON id STRATEGY v = fww VERSION BY ts, id",
            "ON id STRATEGY v = lww RESPECT NULLS BY ts",
        ] {
            let sql = format!(
                "SELECT count(*) FROM mergeql(NULL::t, 'MERGE t {clauses}') AS m JOIN t USING (id) WHERE m.v::text IS NOT DISTINCT FROM t.v::text"
            );
            assert_eq!(one(&mut host, &sql), "2", "{value} {clauses}");
        }
        let element = if value.starts_with("ARRAY[") { "crdt_max" } else { "crdt_gset" };
        let first = if value.starts_with("ARRAY[") { "" } else { "[1]" };
        let sql = format!("SELECT ({element}(v)){first}::text = (SELECT v::text FROM t WHERE id = 1) FROM t");
        assert_eq!(one(&mut host, &sql), "true", "{value} collected");
    }
}

/// States as text, as bytes, in operators, as keys.
#[test]
fn states_are_values_of_postgres() {
    let mut host = cluster().host();
    let rows = "(VALUES (1, 1), (1, 2), (2, 2), (3, 1), (3, 2)) AS t(g, v)";
    host.raw(&format!("CREATE TABLE s AS SELECT g, crdt_gset_state(v) AS s FROM {rows} GROUP BY g")).unwrap();
    let both = "(SELECT crdt_max_state(g) AS x FROM s UNION ALL SELECT bytea(crdt_max_state(9))::crdt) AS q";
    for (sql, answer) in [
        ("SELECT crdt_value(a.s || b.s) FROM s AS a, s AS b WHERE a.g = 2 AND b.g = 3", "[1,2]"),
        ("SELECT count(DISTINCT s::text) FROM s", "2"),
        ("SELECT count(*) FROM (SELECT s FROM s GROUP BY s) AS d", "2"),
        ("SELECT count(*) FROM s AS a JOIN s AS b USING (s)", "5"),
        ("SELECT string_agg(a.g || ' in ' || b.g, ', ' ORDER BY a.g, b.g) FROM s AS a, s AS b WHERE a.s < b.s", "2 in 1, 2 in 3"),
        ("SELECT bool_and(s::text::crdt = s AND s::bytea::crdt = s AND s::bytea::text::crdt = s) FROM s", "true"),
        ("SELECT (s::text::json)->>'value' FROM s WHERE g = 2", "[2]"),
        ("SELECT crdt_compress(s) = s FROM s WHERE g = 1", "true"),
        (&format!("SELECT crdt_value_bigint(crdt_merge(x)) FROM {both}"), "9"),
    ] {
        assert_eq!(one(&mut host, sql), answer, "{sql}");
    }
    for text in ["x", "{}", "\\x00", "{\"state\": \"\\\\xzz\"}"] {
        assert!(host.query(&format!("SELECT '{text}'::crdt")).is_err(), "{text}");
    }
    // A state whose value fits nowhere goes out and comes back; one whose value nests as deep as values may, too.
    let great = "SELECT crdt_counter_state(v, o) AS s FROM (VALUES (1.7e308::float8, 'a'), (1.7e308, 'b')) AS t(v, o)";
    let deep = format!("SELECT crdt_gset_state('{}'::jsonb) AS s", "[".repeat(40) + &"]".repeat(40));
    for state in [great, &deep] {
        assert_eq!(one(&mut host, &format!("SELECT s::text::crdt = s FROM ({state}) AS q")), "true", "{state}");
    }
    // Text has no place for a NUL, an array that begins elsewhere is no list.
    assert_eq!(one(&mut host, "SELECT octet_length(crdt_value_text(crdt_json_state('\"a\\u0000b\"'::json, 1)))"), "5");
    assert!(host.query("SELECT crdt_lww('[0:1]={1,2}'::int[], 1)").unwrap_err().0.contains("begins at 0"));
}

/// What a strategy makes of values of a domain must be one of it, too.
#[test]
fn domains_keep_their_checks() {
    let mut host = cluster().host();
    host.raw("CREATE DOMAIN short AS text CHECK (length(VALUE) < 5)").unwrap();
    assert_eq!(one(&mut host, "SELECT crdt_union(v) FROM (VALUES ('a'::short), ('b'::short)) AS t(v)"), "a,b");
    let long = host.query("SELECT crdt_union(v) FROM (VALUES ('a,b'::short), ('c,d'::short)) AS t(v)").unwrap_err().0;
    assert!(long.contains("short_check"), "{long}");
}

/// NOT NULL that says nothing of the rows which a query reads.
#[test]
fn rows_without_a_key_come_from_tables_that_inherit() {
    let mut host = cluster().host();
    host.raw(
        "CREATE TABLE parent (id int, v int); CREATE TABLE child () INHERITS (parent); ALTER TABLE ONLY parent ALTER id SET NOT NULL; \
         INSERT INTO child VALUES (NULL, 1), (NULL, 2)",
    )
    .unwrap();
    assert_eq!(one(&mut host, "SELECT count(*) FROM (MERGE parent ON id STRATEGY v = max) AS m"), "2");
}

/// Every function that takes a state, given what is none: each answer or error is Postgres' to show.
#[test]
fn random_bytes_never_crash_the_backend() {
    let mut host = cluster().host();
    host.raw(
        "CREATE TABLE blobs AS SELECT decode(substr(md5(i::text) || md5('x' || i), 1, 2 * (1 + i % 30)), 'hex') AS b FROM generate_series(1, 10000) AS i; \
         INSERT INTO blobs SELECT '\\x4d5101'::bytea || b FROM blobs; \
         CREATE TABLE good AS SELECT crdt_union_state(v) AS s FROM (VALUES ('a,b'), ('c')) AS t(v); \
         CREATE FUNCTION tried(sql text, b bytea) RETURNS int LANGUAGE plpgsql AS $$ DECLARE r text; BEGIN EXECUTE sql INTO r USING b; RETURN 0; \
         EXCEPTION WHEN data_exception OR datatype_mismatch OR program_limit_exceeded THEN RETURN 1; END $$",
    )
    .unwrap();
    for sql in [
        "crdt_value($1)",
        "crdt_info($1)",
        "crdt_type($1)",
        "crdt_compress($1)",
        "crdt_value_bigint($1)",
        "crdt_value_list($1)",
        "$1::crdt",
        "crdt_join($1, (SELECT bytea(s) FROM good))",
        "crdt_compare($1, s) FROM good",
        "crdt_delta(s, $1) FROM good",
        "crdt_merge($1)",
        "mergeql_unpack($1, ''a'')",
    ] {
        let refused = one(&mut host, &format!("SELECT sum(tried('SELECT {sql}', b)) FROM blobs"));
        assert!(refused.parse::<u32>().unwrap() >= 19_000, "{sql}: {refused}");
    }
    assert_eq!(one(&mut host, "SELECT crdt_value(s) FROM good"), "\"a,b,c\"");
}

/// States travel in Postgres' binary format as their bytes; what is no state does not come in.
#[test]
fn states_travel_in_binary() {
    let mut host = cluster().host();
    host.raw("CREATE TABLE s AS SELECT crdt_gset_state(v) AS s FROM (VALUES (1), (2)) AS t(v); CREATE TABLE back (s crdt)")
        .unwrap();
    let file = cluster().folder.join("states.bin").display().to_string();
    host.raw(&format!("COPY s TO '{file}' (FORMAT binary); COPY back FROM '{file}' (FORMAT binary)")).unwrap();
    assert_eq!(one(&mut host, "SELECT count(*) FROM s JOIN back USING (s)"), "1");
    host.raw(&format!("COPY (SELECT '\\x4d510100'::bytea) TO '{file}' (FORMAT binary)")).unwrap();
    let refused = host.raw(&format!("COPY back FROM '{file}' (FORMAT binary)")).unwrap_err();
    assert!(refused.0.contains("error[corrupt_state]") || refused.0.contains("error[not_a_state]"), "{refused}");
}

/// Whoever may create a schema can call a type as ours is called: it is not taken for ours.
#[test]
fn types_that_are_called_as_ours_are_not_ours() {
    let mut host = cluster().host();
    host.raw("CREATE SCHEMA other").unwrap();
    for name in ["crdt", "mergeql_value"] {
        for kind in ["RANGE (subtype = text)", "(a text)", "ENUM ('a')"] {
            host.raw(&format!("DROP TYPE IF EXISTS other.{name} CASCADE; CREATE TYPE other.{name} AS {kind}")).unwrap();
            let like = format!("SELECT mergeql_value_like(crdt_max_state('\\xfc000000'::bytea), NULL::other.{name})::text");
            let wrong = host.query(&like);
            // A row and an enum are types of their own, of which bytes are none.
            assert!(wrong.is_err(), "{name} as {kind}: {wrong:?}");
            if kind.starts_with("RANGE") {
                let refused = host.query(&format!("SELECT crdt_max_state(NULL::other.{name})")).unwrap_err();
                assert!(refused.0.contains("cannot be merged"), "{refused}");
            }
        }
    }
    assert_eq!(one(&mut host, "SELECT 1"), "1");
}

/// States that are broken behind a sound checksum, given to every function of the core in every place: no answer is an internal error, and
/// the backend lives.
#[test]
fn broken_states_never_crash_the_backend() {
    let mut host = cluster().host();
    let golden = include_str!("../../../../udfs/tests/golden/v0.1.0.tsv").lines();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n.max(1) as u64) as usize
    };
    let mut blobs = Vec::new();
    for line in golden {
        let hex = line.split('\t').nth(1).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        let Ok((id, body)) = mergeql_udfs::codec::open(&bytes) else { continue };
        if body.len() > 1000 {
            continue;
        }
        for _ in 0..3 {
            let mut broken = body.to_vec();
            let at = random(broken.len());
            match random(3) {
                0 => broken.truncate(at),
                1 if at < broken.len() => broken[at] ^= 1 << random(8),
                _ => drop(broken.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x7f])),
            }
            let sealed = mergeql_udfs::codec::seal(id, 0, &broken);
            blobs.push(sealed.iter().map(|b| format!("{b:02x}")).collect::<String>());
        }
    }
    let values = blobs.iter().map(|hex| format!("('{hex}')")).collect::<Vec<_>>().join(", ");
    host.raw(&format!(
        "CREATE TABLE broken AS SELECT decode(h, 'hex') AS b FROM (VALUES {values}) AS v(h); \
         CREATE FUNCTION tried(sql text) RETURNS text LANGUAGE plpgsql AS $$ DECLARE r text; one record; BEGIN \
         FOR one IN SELECT b FROM broken LOOP BEGIN EXECUTE sql INTO r USING one.b; EXCEPTION WHEN OTHERS THEN \
         IF SQLSTATE LIKE 'XX%' THEN RETURN SQLSTATE || ' ' || SQLERRM || ' ' || one.b::text; END IF; END; END LOOP; RETURN 'none'; END $$"
    ))
    .unwrap();
    let mut tried = 0;
    for function in mergeql_udfs::functions::all() {
        for arguments in [
            "$1",
            "$1, $1",
            "$1, 'a'",
            "$1, 1",
            "'a', $1",
            "$1, 'a', 1",
            "$1, 1, 'a'",
            "$1, 'a', 'b'",
            "$1, $1, 'a'",
            "$1, 'a', $1, 'b'",
        ] {
            let n = arguments.split(", ").count();
            if !function.arguments.contains(&n) {
                continue;
            }
            let name = function.name;
            let outcome = one(&mut host, &format!("SELECT tried($q$SELECT {name}({arguments})::text$q$)"));
            assert_eq!(outcome, "none", "{name}({arguments})");
            tried += 1;
        }
    }
    for aggregate in ["crdt_merge($1)", "crdt_state($1)", "$1::crdt", "$1::crdt::text"] {
        assert_eq!(one(&mut host, &format!("SELECT tried($q$SELECT {aggregate}::text$q$)")), "none", "{aggregate}");
    }
    assert!(tried > 200 && blobs.len() > 150, "{tried} forms of {} states", blobs.len());
}
