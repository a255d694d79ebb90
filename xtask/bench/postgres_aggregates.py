"""Our aggregates in Postgres beside its own: each query in turn, in one session, over the same tables; medians.

Arguments: the folder of Postgres' programs, the rows. The cluster is made for this and removed; the extension is installed already.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import psycopg

programs, rows = sys.argv[1], int(sys.argv[2])
groups = rows // 10
few = 1000
folder = tempfile.mkdtemp(prefix="mergeql-bench-pg")
os.chmod(folder, 0o777)
prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
environment = {k: v for k, v in os.environ.items() if k != "RUST_BACKTRACE"}


def program(name, *arguments):
    command = prefix + [f"{programs}/{name}", "-D", f"{folder}/data", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def table(title, cases, connection, repeats=3):
    print(f"\n{title}, median of {repeats}:\n\n| case | ours s | theirs s | theirs / ours | rows that differ | theirs |\n|---|---|---|---|---|---|")
    for name, ours, theirs in cases:
        differ = connection.execute(
            f"SELECT count(*) FROM ((SELECT * FROM ({ours}) a EXCEPT SELECT * FROM ({theirs}) b) UNION ALL "
            f"(SELECT * FROM ({theirs}) b EXCEPT SELECT * FROM ({ours}) a)) d"
        ).fetchone()[0]
        seconds = {ours: [], theirs: []}
        for _ in range(repeats):
            for sql in (ours, theirs):
                start = time.perf_counter()
                # It runs the whole query, and drops the rows; count(*) around it would drop the aggregates.
                connection.execute(f"EXPLAIN (ANALYZE, TIMING OFF) {sql}")
                seconds[sql].append(time.perf_counter() - start)
        a, b = (statistics.median(seconds[sql]) for sql in (ours, theirs))
        print(f"| {name} | {a:.2f} | {b:.2f} | {b / a:.2f} | {differ} | `{theirs[:70]}` |", flush=True)


program("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8")
options = f"-k {folder} -c listen_addresses= -c shared_buffers=2GB -c work_mem=256MB -c fsync=off -c max_wal_size=8GB -c jit=off"
program("pg_ctl", "-o", options, "-w", "-l", f"{folder}/log", "start")
try:
    connection = psycopg.connect(f"host={folder} user=postgres dbname=postgres", autocommit=True)
    run = connection.execute
    run("CREATE EXTENSION mergeql")
    run(
        f"CREATE UNLOGGED TABLE t AS SELECT (hashint8(i) & 2147483647) % {groups} AS k, (hashint8(i * 3) & 2147483647) % 100000 AS v, "
        f"timestamp '2024-01-01' + (hashint8(i * 5) & 2147483647) % 1000000 * interval '1 second' AS ts, "
        f"'node-' || i % 7 AS node, 'text ' || (hashint8(i * 7) & 2147483647) % 100000 AS s FROM generate_series(1, {rows}::bigint) i"
    )
    run("VACUUM ANALYZE t")
    n = 1_000_000
    for name, salt in (("nyc", 11), ("london", 13)):
        run(
            f"CREATE UNLOGGED TABLE {name} AS SELECT i + {0 if name == 'nyc' else n // 2} AS id, (hashint8(i * {salt}) & 2147483647) % 100000 AS high, "
            f"'name ' || hashint8(i * {salt}) AS name, timestamp '2024-01-01' + (hashint8(i + {salt}) & 2147483647) % 1000000 * interval '1 second' AS ts "
            f"FROM generate_series(1, {n}) i"
        )
        run(f"ALTER TABLE {name} ALTER id SET NOT NULL")
        run(f"VACUUM ANALYZE {name}")
    merge = run("SELECT mergeql_sql('MERGE nyc, london ON id STRATEGY high = max, * = lww VERSION BY ts')").fetchone()[0]
    both = "(SELECT * FROM nyc UNION ALL SELECT * FROM london) u"
    cases = [
        ("max", "SELECT k, crdt_max(v) FROM t GROUP BY k", "SELECT k, max(v) FROM t GROUP BY k"),
        ("max, one group", "SELECT crdt_max(v) FROM t", "SELECT max(v) FROM t"),
        (f"max, {few} groups", f"SELECT k % {few}, crdt_max(v) FROM t GROUP BY 1", f"SELECT k % {few}, max(v) FROM t GROUP BY 1"),
        (
            f"lww(v, ts), {few} groups", f"SELECT k % {few}, crdt_lww(v, ts) FROM t GROUP BY 1",
            f"SELECT DISTINCT ON (k % {few}) k % {few}, v FROM t ORDER BY k % {few}, ts DESC, v DESC",
        ),
        (
            f"lww(v, ts), {few} groups", f"SELECT k % {few}, crdt_lww(v, ts) FROM t GROUP BY 1",
            f"SELECT k % {few}, (array_agg(v ORDER BY ts DESC, v DESC))[1] FROM t GROUP BY 1",
        ),
        ("lww(v, ts)", "SELECT k, crdt_lww(v, ts) FROM t GROUP BY k", "SELECT DISTINCT ON (k) k, v FROM t ORDER BY k, ts DESC, v DESC"),
        ("lww(v, ts)", "SELECT k, crdt_lww(v, ts) FROM t GROUP BY k", "SELECT k, (array_agg(v ORDER BY ts DESC, v DESC))[1] FROM t GROUP BY k"),
        ("lww(s, ts, node)", "SELECT k, crdt_lww(s, ts, node) FROM t GROUP BY k", 'SELECT DISTINCT ON (k) k, s FROM t ORDER BY k, ts DESC, node COLLATE "C" DESC, s COLLATE "C" DESC'),
        ("MERGE of two tables", merge, f"SELECT id, max(high), (array_agg(name ORDER BY ts DESC, name COLLATE \"C\" DESC))[1], max(ts) FROM {both} GROUP BY id"),
        (
            "MERGE of two tables", merge,
            "SELECT coalesce(a.id, b.id), greatest(a.high, b.high), CASE WHEN b.id IS NULL OR (a.ts, a.name COLLATE \"C\") >= (b.ts, b.name COLLATE \"C\") "
            "THEN a.name ELSE b.name END, greatest(a.ts, b.ts) FROM nyc a FULL JOIN london b ON a.id = b.id",
        ),
    ]
    for workers in (0, 2):
        run(f"SET max_parallel_workers_per_gather = {workers}")
        how = "single process" if workers == 0 else "2 workers"
        version = run("SHOW server_version").fetchone()[0]
        table(f"Postgres {version}, {rows} rows, {groups} groups, {how}", cases, connection)
finally:
    program("pg_ctl", "-m", "immediate", "stop")
    shutil.rmtree(folder)
