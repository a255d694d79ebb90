"""Replicas in one process that write what they like and read from each other as the manual says: with a number to go on from, in parts, in any
order, repeatedly. Once all have read from all, their tables and states are equal; prints what is not.

Arguments: the extension, the way that changes travel, the first seed, the one behind the last. Ways: `all` from any replica, `ring` from the
neighbour alone, `forget` from any, with acknowledgements, and deletions forgotten.
"""

import json
import random
import sqlite3
import sys

TABLE = """CREATE TABLE t (region TEXT, id INTEGER, a, votes, cnt, tags TEXT, hi REAL, lo, words TEXT, first, ef INT, df INT, lg TEXT, sh TEXT,
    cc TEXT, an INT, ev INT, bo INT, ba INT, js TEXT, pr TEXT, "two words" INT, PRIMARY KEY (region, id))"""
STRATEGIES = """votes pncounter, cnt counter, tags orset, hi max, lo min, words union, first fww, ef ewflag, df dwflag, lg longest, sh shortest,
    cc concat, an any, ev every, bo bits_or, ba bits_and, js json, pr priority('x', 'y', 'z'), "two words" pncounter"""
FEED = "SELECT * FROM mergeql_changes WHERE origin <> ? AND seq > ?"


def replica():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.enable_load_extension(True)
    connection.execute("SELECT load_extension(?, 'sqlite3_mergeql_init')", [sys.argv[1]])
    connection.execute(TABLE)
    return connection, connection.execute("SELECT crdt_table('t', ?)", [STRATEGIES]).fetchone()[0]


def row(r):
    anything = lambda: r.choice([None, 1, -2.5, "text", b"\0\xff", 9007199254740993, "", 1e300, float("inf"), "a\0b", 1 << 62, "é", 1.0])
    some = lambda *values: r.choice([None, *values])
    return {
        "a": anything(),
        "votes": some(r.randrange(9), r.random()),
        "cnt": some(r.randrange(9), 2.5),
        "tags": some(json.dumps(r.sample(["x", "y", 3, 2.5, None, True, [1], {"k": 1}], r.randrange(5)))),
        "hi": some(r.randrange(9), r.random(), -1e300),
        "lo": some(r.randrange(9), r.random()),
        "words": some(f"w{r.randrange(5)}", "a,b", ""),
        "first": anything(),
        "ef": r.randrange(2),
        "df": r.randrange(2),
        "lg": some("a" * r.randrange(5)),
        "sh": some("b" * r.randrange(5)),
        "cc": some(f"c{r.randrange(4)}"),
        "an": some(0, 1),
        "ev": some(0, 1),
        "bo": some(r.randrange(99)),
        "ba": some(r.randrange(99)),
        "js": some(f'{{"a":{r.randrange(4)}}}', f'{{"b":{{"c":{r.randrange(4)}}}}}'),
        "pr": some("x", "y", "z"),
        '"two words"': some(r.randrange(9)),
    }


def write(connection, r):
    key, values, kind = (f"r{r.randrange(2)}", r.randrange(3)), row(r), r.randrange(10)
    if kind < 2:
        places = ", ".join("?" * (len(values) + 2))
        connection.execute(f"INSERT OR REPLACE INTO t (region, id, {', '.join(values)}) VALUES ({places})", [*key, *values.values()])
    elif kind == 2:
        connection.execute("DELETE FROM t WHERE region = ? AND id = ?", key)
    elif kind == 3:
        clash = r.choice(["IGNORE", "REPLACE"])
        connection.execute(f"UPDATE OR {clash} t SET id = ? WHERE region = ? AND id = ?", [r.randrange(3), *key])
    elif kind == 4:
        connection.execute("UPDATE t SET votes = votes + ? WHERE region = ? AND id = ?", [r.randrange(-4, 5), *key])
    else:
        names = r.sample(list(values), r.randrange(1, 6))
        sets = ", ".join(f"{name} = ?" for name in names)
        connection.execute(f"UPDATE t SET {sets} WHERE region = ? AND id = ?", [*(values[name] for name in names), *key])


def differences(seed, way):
    r = random.Random(seed)
    replicas = [replica() for _ in range(r.randrange(2, 6))]
    count, read = len(replicas), {}

    def sync(to, source, in_parts=False):
        (connection, origin), (other, _) = replicas[to], replicas[source]
        since = read.get((to, source), 0)
        changes = other.execute(FEED, [origin, since]).fetchall()
        if in_parts and r.random() < 0.5:
            changes = r.sample(changes, len(changes) // 2)
        else:
            read[to, source] = max([since] + [change[5] for change in changes])
        if r.random() < 0.5:
            r.shuffle(changes)
        changes += r.sample(changes, len(changes) // 3)
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO mergeql_changes VALUES (?, ?, ?, ?, ?, ?, ?)", changes)
        connection.execute("COMMIT")
        if way == "forget":
            other.execute("SELECT crdt_acknowledge(?, ?)", [origin, read.get((to, source), 0)])

    forgotten = 0
    for _ in range(250):
        at = r.randrange(count)
        if r.random() < 0.7:
            write(replicas[at][0], r)
        else:
            sync(at, (at + 1) % count if way == "ring" else r.choice([other for other in range(count) if other != at]), True)
        if way == "forget" and r.random() < 0.05:
            forgotten += replicas[at][0].execute("SELECT crdt_compact()").fetchone()[0]
    for _ in range(count + 2):
        for to in range(count):
            for source in range(count):
                if to != source and (way != "ring" or source == (to + 1) % count):
                    sync(to, source)
    tables = [sorted(map(repr, c.execute("SELECT *, typeof(a), typeof(votes), typeof(first) FROM t").fetchall())) for c, _ in replicas]
    states = [sorted(c.execute("SELECT tbl, pk, col, state FROM mergeql_changes").fetchall()) for c, _ in replicas]
    waiting = [c.execute("SELECT crdt_waiting()").fetchone()[0] for c, _ in replicas]
    if any(table != tables[0] for table in tables):
        return f"seed {seed}, {way}: tables differ: {tables}"
    # What each forgets, and when, is its own affair.
    if way != "forget" and any(state != states[0] for state in states):
        return f"seed {seed}, {way}: states differ"
    if waiting != ["[]"] * count:
        return f"seed {seed}, {way}: rows wait: {waiting}"
    return f"equal, {forgotten} forgotten" if way == "forget" else "equal"


for seed in range(int(sys.argv[3]), int(sys.argv[4])):
    print(differences(seed, sys.argv[2]))
