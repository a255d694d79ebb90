//! What is wrong is said in Postgres' own way, and whatever the extension brings says what it is.

use crate::{NYC, cluster};
use mergeql_host_tests::one;

/// Errors are Postgres' own: SQLSTATE, DETAIL with the place, HINT.
#[test]
fn errors_say_what_and_where() {
    let mut host = cluster().host();
    host.raw(NYC).unwrap();
    for (statement, state, says) in [
        ("MERGE nyc ON id STRATEGY salery = max", "42703", "line 1, column 26"),
        ("MERGE nyc ON id STRATEGY salery = max", "42703", "\nAT: 26 of MERGE nyc ON id STRATEGY salery = max"),
        // A place is counted in characters.
        ("MERGE nyc ON id WHERE tags = 'é€' AND salery = 1", "42703", "\nAT: 39 of MERGE"),
        ("MERGE nyk ON id", "42P01", "\nHINT: did you mean `nyc`?"),
        ("MERGE nyk ON id", "42P01", "\nAT: 7 of MERGE"),
        ("MERGE nyc ON id STRATEGY salary = maxx", "42883", "\nHINT: did you mean `max`?"),
        ("MERGE nyc, (SELECT 1 AS id, true AS salary) AS s ON id", "42804", "type_mismatch"),
        ("MERGE nyc ON", "42601", "syntax"),
        ("MERGE 'nyc.csv' ON id", "0A000", "COPY"),
    ] {
        let error = host.query(&format!("SELECT * FROM mergeql($${statement}$$) AS t(a int)")).unwrap_err();
        assert!(error.0.contains(says), "{statement}: {error}");
        host.raw(&format!(
            "CREATE OR REPLACE FUNCTION state_of() RETURNS text LANGUAGE plpgsql AS $f$ \
             BEGIN PERFORM mergeql_sql($${statement}$$); RETURN 'none'; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; END $f$"
        ))
        .unwrap();
        assert_eq!(one(&mut host, "SELECT state_of()"), state, "{statement}");
    }
    let error = host.query("SELECT * FROM mergeql('MERGE nyc ON id') AS t(id int, salary int)").unwrap_err();
    assert!(error.0.contains("4 columns, and 2 are listed") && error.0.contains("\"tags\" text"), "{error}");
    for (sql, says) in [
        ("SELECT crdt_union(tags, tags) FROM nyc", "differ between rows"),
        ("SELECT crdt_max(point(1, 2))", "cannot be merged"),
        ("SELECT crdt_max(ARRAY[[1, 2], [3, 4]])", "more than one dimension"),
        ("SELECT crdt_max(x) FROM (SELECT 1e50::numeric AS x) AS t", "more than 38 digits"),
        // A row takes what INSERT would put into it.
        ("SELECT * FROM mergeql('MERGE nyc ON id') AS t(id int, salary int, tags varchar(2), at timestamp)", "too long for type"),
        ("SELECT * FROM mergeql('MERGE nyc ON id') AS t(id int, salary int, tags char(2), at timestamp)", "too long for type"),
        (
            "SELECT * FROM mergeql('MERGE nyc ON id') AS t(id int, salary boolean, tags text, at timestamp)",
            "which no boolean holds",
        ),
    ] {
        let error = host.query(sql).unwrap_err();
        assert!(error.0.contains(says), "{sql}: {error}");
    }
}

/// What Postgres says of an error inside of a statement comes out whole.
#[test]
fn errors_of_postgres_keep_what_they_say() {
    let mut host = cluster().host();
    host.raw(
        "CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1), (2), (3), (4); CREATE DOMAIN even AS int CONSTRAINT is_even CHECK (VALUE % 2 = 0); \
         CREATE TABLE target (id int PRIMARY KEY CONSTRAINT known REFERENCES parent, v int CONSTRAINT small CHECK (v < 10), w int NOT NULL DEFAULT 0, e even); \
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.v = 7 THEN RAISE EXCEPTION 'no sevens' \
         USING ERRCODE = 'P0007', DETAIL = 'a detail', HINT = 'a hint'; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON target FOR EACH ROW EXECUTE FUNCTION refuse(); \
         CREATE FUNCTION said(statement text) RETURNS text LANGUAGE plpgsql AS $$ \
         DECLARE code text; said text; detail text; hint text; s text; t text; c text; y text; k text; context text; BEGIN \
         CALL mergeql_into(statement); RETURN 'nothing'; EXCEPTION WHEN OTHERS THEN GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, \
         said = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, s = SCHEMA_NAME, t = TABLE_NAME, c = COLUMN_NAME, \
         y = PG_DATATYPE_NAME, k = CONSTRAINT_NAME, context = PG_EXCEPTION_CONTEXT; \
         RETURN concat_ws('|', code, detail, hint, s, t, c, y, k, 'in ' || context); END $$",
    )
    .unwrap();
    for (row, says) in [
        ("10 AS v, 0 AS w", "23514|Failing row contains (1, 10, 0, null).||public|target||"),
        ("10 AS v, 0 AS w", "|small|in SQL statement \"WITH "),
        ("NULL::int AS w", "23502|Failing row contains (1, null, null, null).||public|target|w|"),
        ("3 AS e, 0 AS w", "23514|||public|||even|is_even|in SQL statement \"WITH "),
        ("7 AS v, 0 AS w", "P0007|a detail|a hint|"),
        ("7 AS v, 0 AS w", "|in PL/pgSQL function refuse() line 1 at RAISE\nSQL statement \"WITH "),
        ("1 / (1 - 1) AS v, 0 AS w", "22012|"),
    ] {
        let said = one(
            &mut host,
            &format!("SELECT said($$MERGE INTO target USING (SELECT 1 AS id, {row}) AS s ON id STRATEGY * = max$$)"),
        );
        assert!(said.contains(says), "{row}: {said}");
        // Each layer is named once.
        assert_eq!(said.matches("PL/pgSQL function said(text)").count(), 1, "{said}");
        assert!(said.matches("SQL statement \"WITH").count() <= 1, "{said}");
    }
    let said = one(&mut host, "SELECT said('MERGE INTO target USING (SELECT 9 AS id, 0 AS w) AS s ON id')");
    assert!(said.starts_with("23503|") && said.contains("|public|target|||known|in "), "{said}");
    assert_eq!(one(&mut host, "SELECT count(*) FROM target"), "0");
}

/// Whatever the extension brings says what it is.
#[test]
fn every_function_has_a_comment() {
    let mut host = cluster().host();
    let members = "SELECT p.oid::regprocedure::text AS name FROM pg_depend AS d JOIN pg_proc AS p ON p.oid = d.objid \
                   JOIN pg_extension AS e ON e.oid = d.refobjid WHERE d.classid = 'pg_proc'::regclass AND e.extname = 'mergeql' AND d.deptype = 'e'";
    let silent = format!("SELECT count(*), min(p.name) FROM ({members} AND obj_description(p.oid, 'pg_proc') IS NULL) AS p");
    assert_eq!(host.query(&silent).unwrap().unwrap(), [[Some("0".to_owned()), None]]);
    let all: u32 = one(&mut host, &format!("SELECT count(*) FROM ({members}) AS p")).parse().unwrap();
    assert!(all > 200, "{all}");
}

/// EXPLAIN runs no query that a statement reads.
#[test]
fn explain_runs_nothing() {
    let mut host = cluster().host();
    host.raw("CREATE SEQUENCE s; CREATE TABLE t AS SELECT 1 AS id, 2 AS v; CREATE VIEW w AS SELECT nextval('s') AS id, 2 AS v")
        .unwrap();
    for statement in ["EXPLAIN MERGE (SELECT nextval('s') AS id, 1 AS v) AS q, t ON id", "EXPLAIN MERGE w, t ON id"] {
        let plan = host.query(statement).unwrap().unwrap();
        assert!(plan.iter().flatten().flatten().any(|text| text.contains("about 1")), "{plan:?}");
    }
    assert_eq!(one(&mut host, "SELECT is_called FROM s"), "false");
}
