"""Tries bare MERGE statements in DuckDB with both extensions loaded: `try.py MERGEQL SYNTAX`."""

import sys
import tempfile
import threading

import duckdb

mergeql, syntax = sys.argv[1:]
config = {"allow_unsigned_extensions": "true"}


def connect():
    con = duckdb.connect(config=config)
    con.execute(f"LOAD '{mergeql}'")
    con.execute(f"LOAD '{syntax}'")
    con.execute("SET active_grammar_extensions = ['mergeql']")
    con.execute("CREATE TABLE nyc AS SELECT * FROM (VALUES (1, 'Ann', 90, 'sql,ml', 10), (2, 'Bob', 72, 'ops', 20)) AS t(id, name, salary, tags, updated_at)")
    con.execute("CREATE TEMP TABLE london AS SELECT * FROM (VALUES (1, 'Anne', 85, 'ml,rust', 11), (3, 'Cid', 64, 'go', 5)) AS t(id, name, salary, tags, updated_at)")
    return con


con = connect()
folder = tempfile.mkdtemp()
merge = "MERGE nyc, london ON id STRATEGY salary = max, tags = union, * = lww VERSION BY updated_at"
expected = [(1, "Anne", 90, "ml,rust,sql", 11), (2, "Bob", 72, "ops", 20), (3, "Cid", 64, "go", 5)]


def rows(sql, *parameters):
    return con.execute(sql, *parameters).fetchall()


def fails(sql, *said):
    try:
        con.execute(sql).fetchall()
    except duckdb.Error as error:
        missing = [word for word in said if word not in str(error)]
        assert not missing, (sql, missing, str(error))
        return
    raise AssertionError(f"{sql} does not fail")


# Wherever a query may stand.
assert rows(f"{merge} ORDER BY id") == expected
assert rows(f"{merge} ORDER BY id;") == expected
assert rows(merge.lower() + "\n  -- a comment; and more\n  order /* by */ by id") == expected
con.execute(f"CREATE TABLE merged AS {merge}")
assert rows("FROM merged ORDER BY id") == expected
con.execute("CREATE TABLE target AS FROM merged LIMIT 0")
con.execute(f"INSERT INTO target {merge}")
assert rows("FROM target ORDER BY id") == expected
con.execute(f"CREATE VIEW v AS MERGE nyc ON id STRATEGY salary = max")
assert rows("SELECT id, salary FROM v ORDER BY id") == [(1, 90), (2, 72)]
assert rows(f"SELECT count(*), sum(salary) FROM ({merge})") == [(3, 226)]
assert rows(f"WITH m AS ({merge}) SELECT max(id) FROM m") == [(3,)]
assert rows(f"SELECT (SELECT sum(salary) FROM ({merge})) + ?", [1]) == [(227,)]
assert rows(f"({merge}) UNION ALL (MERGE nyc ON id) ORDER BY id, updated_at")[0] == (1, "Ann", 90, "sql,ml", 10)
con.execute(f"COPY ({merge} ORDER BY id) TO '{folder}/out.csv'")
assert rows(f"MERGE '{folder}/out.csv' ON id ORDER BY id") == expected
assert len(rows("MERGE nyc, london ON id WHERE CASE WHEN id > 1 THEN true ELSE false END")) == 2
assert rows("MERGE nyc, (MERGE london ON id) AS m ON id STRATEGY salary = max WHERE id < 3 ORDER BY id")[0][2] == 90
assert rows("PREPARE p AS MERGE nyc ON id ORDER BY id; EXECUTE p")[0][:3] == (1, "Ann", 90)
assert "crdt_max" in rows(f"EXPLAIN {merge}")[0][1]
assert rows(f"{merge} RETURNING CONFLICTS ORDER BY id, column_name")[0][:2] == (1, "name")

# What writes, in the caller's transaction.
con.execute("BEGIN")
con.execute("MERGE INTO nyc USING london ON id STRATEGY tags = union, * = max")
assert rows("FROM nyc ORDER BY id") == expected
con.execute("ROLLBACK")
assert rows("SELECT count(*) FROM nyc") == [(2,)]
con.execute("MERGE nyc, london ON id STRATEGY salary = max INTO made")
assert rows("SELECT id, salary FROM made ORDER BY id") == [(1, 90), (2, 72), (3, 64)]
con.execute("MERGE nyc, london ON id STRATEGY salary = max INTO OR REPLACE made; MERGE INTO made USING nyc ON id STRATEGY * = max")
con.execute(f"MERGE nyc ON id INTO '{folder}/made.parquet'")
assert rows(f"SELECT count(*) FROM '{folder}/made.parquet'") == [(2,)]

# DuckDB's own.
con.execute("CREATE TABLE t AS SELECT 1 AS id, 2 AS n")
con.execute("MERGE INTO t USING (SELECT 1 AS id, 5 AS n) AS s ON t.id = s.id WHEN MATCHED THEN UPDATE SET n = s.n WHEN NOT MATCHED THEN INSERT")
assert rows("FROM t") == [(1, 5)]
assert rows("WITH s AS (SELECT 2 AS id, 7 AS n) MERGE INTO t USING s ON (t.id = s.id) WHEN NOT MATCHED THEN INSERT RETURNING merge_action, id") == [("INSERT", 2)]
fails("MERGE INTO t USING s WHEN MATCHED THEN UPDATE", "Parser Error", "WHEN")
fails("MERGE INTO t USING nothing ON t.id = nothing.id WHEN MATCHED THEN DELETE", "Catalog Error", "nothing")
assert rows("SELECT merge FROM (SELECT 1 AS merge) AS merge") == [(1,)]
con.execute("CREATE TABLE merge AS SELECT 3 AS x")
assert rows("FROM merge") == [(3,)]

# Errors, and nothing is lost by them.
fails("MERGE nyc, london ON id STRATEGY salary = maxx", "error[unknown_strategy]", "did you mean `max`")
fails("MERGE nyc, nowhere ON id", "nowhere")
fails("MERGE nyc, london ON id STRATEGY", "error[syntax]")
fails("MERGE", "Parser Error")
fails("MERGE nyc ON id INTO made", "made")
fails("MERGE INTO nyc USING london ON id STRATEGY salary = maxx", "error[unknown_strategy]")
fails("(MERGE nyc ON id", "Parser Error")
fails("MERGE nyc ON id) x", "Parser Error")
assert rows(f"{merge} ORDER BY id") == expected

# Other connections decide for themselves, and many at once may.
other = con.cursor()
try:
    other.execute("MERGE nyc ON id")
    raise AssertionError("it was not asked to")
except duckdb.Error:
    pass


def many():
    mine = con.cursor()
    mine.execute("SET active_grammar_extensions = ['mergeql']")
    for _ in range(200):
        assert len(mine.execute("MERGE nyc, nyc AS n2 ON id STRATEGY * = max").fetchall()) == 2


threads = [threading.Thread(target=many) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
con.execute("RESET active_grammar_extensions")
try:
    con.execute(f"{merge}")
    raise AssertionError("it was asked not to")
except duckdb.Error:
    pass
print("every statement did what it should")
