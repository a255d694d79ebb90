"""Our aggregates beside DuckDB's own over the same rows in one process, in turn; prints medians and ratios (theirs / ours)."""

import statistics
import sys
import time

import duckdb

extension, rows = sys.argv[1], int(sys.argv[2])
groups = rows // 10
con = duckdb.connect(config={"allow_unsigned_extensions": "true", "threads": 2})
con.execute(f"LOAD '{extension}'")
con.execute(
    f"""CREATE TABLE t AS SELECT hash(i) % {groups} AS k, (hash(i * 7) % 1000000)::BIGINT AS v,
    TIMESTAMP '2024-01-01' + to_seconds((hash(i * 3) % 100000)::BIGINT) AS ts, 'node' || (i % 3) AS node,
    'text ' || (hash(i * 5) % 100000) AS s FROM range({rows}) AS r(i)"""
)
half = rows // 2
for name, seed in (("a", 1), ("b", 2)):
    con.execute(
        f"""CREATE TABLE {name} AS SELECT i + {(seed - 1) * half // 2} AS id, (hash(i * {seed}) % 1000000)::BIGINT AS high,
        (hash(i * {seed + 5}) % 1000000)::BIGINT AS v, 'name ' || (hash(i * {seed + 9}) % 1000) AS name,
        TIMESTAMP '2024-01-01' + to_seconds((hash(i * {seed + 3}) % 100000)::BIGINT) AS ts FROM range({half}) AS r(i)"""
    )

CASES = [
    ("max", "SELECT k, crdt_max(v) FROM t GROUP BY k", ["SELECT k, max(v) FROM t GROUP BY k"]),
    ("max of text", "SELECT k, crdt_max(s) FROM t GROUP BY k", ["SELECT k, max(s) FROM t GROUP BY k"]),
    ("lww(v, ts)", "SELECT k, crdt_lww(v, ts) FROM t GROUP BY k", ["SELECT k, arg_max(v, ts) FROM t GROUP BY k", "SELECT k, arg_max(v, ROW(ts, v)) FROM t GROUP BY k"]),
    ("lww(v, ts, node)", "SELECT k, crdt_lww(v, ts, node) FROM t GROUP BY k", ["SELECT k, arg_max(v, ROW(ts, node)) FROM t GROUP BY k"]),
    ("lww of text", "SELECT k, crdt_lww(s, ts) FROM t GROUP BY k", ["SELECT k, arg_max(s, ts) FROM t GROUP BY k"]),
    ("gcounter", "SELECT k, crdt_gcounter(v, node) FROM t GROUP BY k", ["SELECT k, sum(m) FROM (SELECT k, node, max(v) AS m FROM t GROUP BY k, node) GROUP BY k"]),
    ("three in one pass", "SELECT k, crdt_lww(v, ts), crdt_max(v), crdt_gset(s) FROM t GROUP BY k", ["SELECT k, arg_max(v, ROW(ts, v)), max(v), list_sort(list(DISTINCT s)) FROM t GROUP BY k"]),
    (
        "MERGE of two tables",
        "FROM mergeql.merge('MERGE a, b ON id STRATEGY high = max, ts = max VERSION BY ts')",
        [
            "SELECT id, max(high), arg_max(v, ROW(ts, v)), arg_max(name, ROW(ts, name)), max(ts) FROM (FROM a UNION ALL FROM b) GROUP BY id",
            "SELECT coalesce(a.id, b.id), greatest(a.high, b.high), CASE WHEN a.id IS NULL THEN b.v WHEN b.id IS NULL OR (a.ts, a.v) >= (b.ts, b.v) THEN a.v ELSE b.v END, "
            "CASE WHEN a.id IS NULL THEN b.name WHEN b.id IS NULL OR (a.ts, a.name) >= (b.ts, b.name) THEN a.name ELSE b.name END, greatest(a.ts, b.ts) "
            "FROM a FULL JOIN b ON a.id = b.id",
        ],
    ),
]


def seconds(sql):
    started = time.perf_counter()
    con.execute(f"CREATE OR REPLACE TEMP TABLE result AS {sql}")
    return time.perf_counter() - started


print(f"DuckDB {duckdb.__version__}, {rows} rows, {groups} groups, 2 threads, median of 3")
print("| case | ours s | theirs s | theirs / ours | rows that differ | theirs |\n|---|---|---|---|---|---|")
for name, ours, rivals in CASES:
    times = {sql: [] for sql in [ours, *rivals]}
    for _ in range(3):
        for sql in times:
            times[sql].append(seconds(sql))
    mine = statistics.median(times[ours])
    for rival in rivals:
        theirs = statistics.median(times[rival])
        con.execute(f"CREATE OR REPLACE TEMP TABLE mine AS {ours}")
        con.execute(f"CREATE OR REPLACE TEMP TABLE result AS {rival}")
        differ = con.execute("SELECT count(*) FROM (FROM mine EXCEPT FROM result)").fetchone()[0]
        print(f"| {name} | {mine:.2f} | {theirs:.2f} | {theirs / mine:.2f} | {differ} | `{rival[:60]}` |", flush=True)
