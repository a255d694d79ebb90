"""Replicas of tables that are made, dropped and altered around what others send, whose names and collations differ, and whose transactions
other connections keep from ending. Argument: the extension."""

import os
import sqlite3
import sys
import tempfile


def opened(path=":memory:"):
    connection = sqlite3.connect(path, isolation_level=None, timeout=0.1)
    connection.enable_load_extension(True)
    connection.execute("SELECT load_extension(?, 'sqlite3_mergeql_init')", [sys.argv[1]])
    return connection


def pull(to, source):
    name = to.execute("SELECT crdt_origin()").fetchone()[0] or ""
    changes = source.execute("SELECT * FROM mergeql_changes WHERE origin <> ?", [name]).fetchall()
    to.execute("BEGIN")
    to.executemany("INSERT INTO mergeql_changes VALUES (?, ?, ?, ?, ?, ?, ?)", changes)
    to.execute("COMMIT")


def rows(connection):
    return connection.execute("SELECT * FROM notes ORDER BY 1").fetchall()


def replicate(connection, strategies=""):
    connection.execute("SELECT crdt_table('notes', ?)", [strategies])


def equal(a, b, wanted):
    for _ in range(2):
        pull(a, b)
        pull(b, a)
    assert rows(a) == rows(b) == wanted, (rows(a), rows(b), wanted)


def pair(table, other=None, strategies=""):
    both = opened(), opened()
    for connection, text in zip(both, (table, other or table)):
        connection.execute(text)
        replicate(connection, strategies)
    return both


NOTES = "CREATE TABLE notes (id TEXT PRIMARY KEY, title TEXT)"

# A change of case alone is a change, whatever the column's collation takes for equal.
a, b = pair("CREATE TABLE notes (id TEXT PRIMARY KEY, title TEXT COLLATE NOCASE)")
a.execute("INSERT INTO notes VALUES ('n', 'milk')")
equal(a, b, [("n", "milk")])
a.execute("UPDATE notes SET title = 'Milk'")
equal(a, b, [("n", "Milk")])

# Names are the same in any case of letters, also where changes come before the table.
a, b = pair("CREATE TABLE Notes (id TEXT PRIMARY KEY, Title TEXT)", NOTES)
a.execute("INSERT INTO notes VALUES ('n', 'milk')")
equal(a, b, [("n", "milk")])
b.execute("UPDATE notes SET title = 'bread'")
equal(a, b, [("n", "bread")])
late = opened()
pull(late, a)
late.execute(NOTES)
replicate(late)
equal(late, b, [("n", "bread")])

# Where NULL is no information, a column that has a default has it everywhere.
for strategy in ("pncounter", "max", "lww"):
    a, b = pair("CREATE TABLE notes (id TEXT PRIMARY KEY, votes INTEGER DEFAULT 5)", strategies=f"votes {strategy}")
    a.execute("INSERT INTO notes VALUES ('n', NULL)")
    equal(a, b, [("n", None if strategy == "lww" else 5)])

# What was counted before counts once, and what others have counted since on top of it, whenever it is heard of.
for early in (True, False):
    a, b = opened(), opened()
    for connection in (a, b):
        connection.execute("CREATE TABLE notes (id TEXT PRIMARY KEY, votes INTEGER)")
        connection.execute("INSERT INTO notes VALUES ('n', 5)")
    replicate(a, "votes pncounter")
    a.execute("UPDATE notes SET votes = votes + 2")
    if early:
        pull(b, a)
        replicate(b, "votes pncounter")
    else:
        replicate(b, "votes pncounter")
        pull(b, a)
    equal(a, b, [("n", 7)])
    b.execute("UPDATE notes SET votes = votes - 1")
    equal(a, b, [("n", 6)])

# A row that was written and went with its table is gone.
for more in (False, True):
    a = opened()
    a.execute(NOTES)
    replicate(a)
    if more:
        a.execute("CREATE TABLE tags (id TEXT PRIMARY KEY)")
        a.execute("SELECT crdt_table('tags', '')")
    a.execute("INSERT INTO notes VALUES ('n', 'milk')")
    a.execute("DROP TABLE notes")
    a.execute(NOTES)
    replicate(a)
    assert rows(a) == [], rows(a)

# A deletion is heard of though the table is made anew after it.
a, b = pair(NOTES)
a.execute("CREATE TABLE tags (id TEXT PRIMARY KEY)")
a.execute("SELECT crdt_table('tags', '')")
a.execute("INSERT INTO notes VALUES ('n', 'milk'), ('m', 'bread')")
equal(a, b, [("m", "bread"), ("n", "milk")])
a.execute("DELETE FROM notes WHERE id = 'n'")
a.executescript("CREATE TABLE anew (id TEXT PRIMARY KEY, title TEXT); INSERT INTO anew SELECT * FROM notes; DROP TABLE notes; ALTER TABLE anew RENAME TO notes")
replicate(a)
equal(a, b, [("m", "bread")])

# Another connection that reads keeps notes from being taken, and nothing else.
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "notes.db")
    writer, reader = opened(path), sqlite3.connect(path, isolation_level=None)
    writer.execute(NOTES)
    replicate(writer)
    for i in range(5):
        writer.execute("INSERT INTO notes VALUES (?, 'x')", [i])
    reading = reader.execute("SELECT * FROM notes")
    reading.fetchone()
    writer.execute("SELECT * FROM mergeql_changes").fetchall()
    assert not writer.in_transaction
    reading.fetchall()
    writer.execute("INSERT INTO notes VALUES ('last', 'y')")
    writer.close()
    reader.close()
    again = opened(path)
    assert len(rows(again)) == 6, rows(again)
    assert len(again.execute("SELECT DISTINCT pk FROM mergeql_changes").fetchall()) == 6

print("done")
