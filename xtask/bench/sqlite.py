"""Our aggregates and replicated tables in SQLite beside its own: in turn in one process; medians of three.

Arguments: the extension, the rows.
"""

import os
import sqlite3
import statistics
import sys
import tempfile
import time

library, rows = sys.argv[1], int(sys.argv[2])
folder = tempfile.mkdtemp(prefix="mergeql-bench-sqlite")


def connect(name=None):
    connection = sqlite3.connect(os.path.join(folder, name) if name else ":memory:", isolation_level=None)
    connection.enable_load_extension(True)
    connection.execute("SELECT load_extension(?, 'sqlite3_mergeql_init')", [library])
    return connection


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def medians(*runs):
    taken = [[] for _ in runs]
    for _ in range(3):
        for run, times in zip(runs, taken):
            times.append(seconds(run))
    return [statistics.median(times) for times in taken]


connection = connect()
connection.execute("CREATE TABLE t (k INTEGER, v INTEGER, ts INTEGER, node TEXT, s TEXT)")
connection.execute(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO t SELECT abs(i * 2654435761 % 4294967296) % ?, "
    "abs(i * 40503 % 65536), abs(i * 69069 % 1048576), 'node-' || i % 7, 'text ' || abs(i * 1103515245 % 100000) FROM n",
    [rows, rows // 10],
)
print(f"SQLite {sqlite3.sqlite_version}, {rows} rows, {rows // 10} groups, median of 3:\n")
print("| case | ours s | theirs s | theirs / ours | rows that differ | theirs |\n|---|---|---|---|---|---|")
for name, ours, theirs in [
    ("max", "SELECT k, crdt_max(v) FROM t GROUP BY k", "SELECT k, max(v) FROM t GROUP BY k"),
    ("max, one group", "SELECT crdt_max(v) FROM t", "SELECT max(v) FROM t"),
    ("max of text", "SELECT k, crdt_max(s) FROM t GROUP BY k", "SELECT k, max(s) FROM t GROUP BY k"),
    ("lww(v, ts)", "SELECT k, crdt_lww(v, ts) FROM t GROUP BY k", "SELECT k, v FROM (SELECT k, max(ts), v FROM t GROUP BY k)"),
    (
        "lww(v, ts)",
        "SELECT k, crdt_lww(v, ts) FROM t GROUP BY k",
        "SELECT k, v FROM (SELECT k, v, row_number() OVER (PARTITION BY k ORDER BY ts DESC, v DESC) AS n FROM t) WHERE n = 1",
    ),
    (
        "lww(s, ts, node)",
        "SELECT k, crdt_lww(s, ts, node) FROM t GROUP BY k",
        "SELECT k, s FROM (SELECT k, s, row_number() OVER (PARTITION BY k ORDER BY ts DESC, node DESC, s DESC) AS n FROM t) WHERE n = 1",
    ),
]:
    differ = connection.execute(
        f"SELECT count(*) FROM (SELECT * FROM (SELECT * FROM ({ours}) EXCEPT SELECT * FROM ({theirs})) UNION ALL "
        f"SELECT * FROM (SELECT * FROM ({theirs}) EXCEPT SELECT * FROM ({ours})))"
    ).fetchone()[0]

    def run(sql):
        for _ in connection.execute(sql):
            pass

    a, b = medians(lambda: run(ours), lambda: run(theirs))
    print(f"| {name} | {a:.2f} | {b:.2f} | {b / a:.2f} | {differ} | `{theirs[:60]}` |", flush=True)

n = 100_000
create = "CREATE TABLE notes (id INTEGER PRIMARY KEY, title TEXT, body TEXT, votes INTEGER)"
notes = [(i, f"title {i}", f"body of note {i}", i % 10) for i in range(n)]


def writing(tracked, name):
    target = connect(name)
    target.execute("PRAGMA journal_mode = WAL")
    target.execute(create)
    if tracked:
        target.execute("SELECT crdt_table('notes', 'votes pncounter')")

    def insert():
        target.execute("BEGIN")
        target.executemany("INSERT INTO notes VALUES (?, ?, ?, ?)", notes)
        target.execute("COMMIT")

    def update():
        target.execute("BEGIN")
        target.executemany("UPDATE notes SET votes = votes + 1, title = ? WHERE id = ?", [(f"new {i}", i) for i in range(n)])
        target.execute("COMMIT")

    return seconds(insert), seconds(update), target


print(f"\n{n} rows of four columns written in one transaction (WAL), medians of 3:\n")
print("| what | tracked s | untracked s | tracked / untracked |\n|---|---|---|---|")
taken = [[writing(tracked, f"{tracked}{i}.db") for tracked in (True, False)] for i in range(3)]
for at, what in ((0, "INSERT"), (1, "UPDATE of two columns")):
    a = statistics.median(pair[0][at] for pair in taken)
    b = statistics.median(pair[1][at] for pair in taken)
    print(f"| {what} | {a:.3f} | {b:.3f} | {a / b:.2f} |")
source = taken[0][0][2]
reading = seconds(lambda: source.execute("SELECT count(*) FROM mergeql_changes").fetchall())
changes = source.execute("SELECT * FROM mergeql_changes").fetchall()
target = connect("target.db")
target.execute("PRAGMA journal_mode = WAL")
target.execute(create)
target.execute("SELECT crdt_table('notes', 'votes pncounter')")


def apply(some):
    target.execute("BEGIN")
    target.executemany("INSERT INTO mergeql_changes VALUES (?, ?, ?, ?, ?, ?, ?)", some)
    target.execute("COMMIT")


applied = seconds(lambda: apply(changes[:n]))
inserted = statistics.median(pair[1][0] for pair in taken)
print(f"\nmaking {len(changes)} changes of the writes: {reading:.2f} s; applying {n} of them: {applied:.2f} s, {applied / inserted:.1f} times the plain insert of {n} rows")
assert target.execute("SELECT count(*) FROM mergeql_changes").fetchone()[0] == n
