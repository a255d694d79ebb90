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


def fails(run, *words):
    try:
        run()
    except sqlite3.Error as error:
        assert all(word in str(error) for word in words), error
        return
    raise AssertionError(f"no error with {words}")


# The numbers of changes only grow, whatever is gone back to.
a, b = pair(NOTES)
b.executemany("INSERT INTO notes VALUES (?, 'x')", [[f"b{i}"] for i in range(10)])
sent = b.execute("SELECT * FROM mergeql_changes").fetchall()
a.execute("BEGIN")
a.executemany("INSERT INTO mergeql_changes VALUES (?, ?, ?, ?, ?, ?, ?)", sent)
a.execute("INSERT INTO notes VALUES ('w', 'own')")
a.execute("SAVEPOINT s")
a.execute("SELECT count(*) FROM mergeql_changes").fetchone()
a.execute("ROLLBACK TO s")
a.execute("COMMIT")
a.execute("INSERT INTO notes VALUES ('later', 'own')")
numbers = [n for (n,) in a.execute("SELECT seq FROM mergeql_changes")]
assert len(numbers) == len(set(numbers)), numbers
last = max(numbers)
a.execute("INSERT INTO notes VALUES ('last', 'own')")
assert all(n > last for (n,) in a.execute("SELECT seq FROM mergeql_changes WHERE pk = 'last'"))

# A change that a table does not take was not applied, and is new when it comes again.
checked = "CREATE TABLE notes (id TEXT PRIMARY KEY, x INTEGER, y INTEGER, CHECK (x <= y))"
a, b = pair(checked)
a.execute("INSERT INTO notes VALUES ('k', 1, 5)")
equal(a, b, [("k", 1, 5)])
b.execute("UPDATE notes SET x = 7, y = 8")
changes = b.execute("SELECT * FROM mergeql_changes ORDER BY seq").fetchall()
a.execute("BEGIN")
for _ in range(3):
    for change in changes:
        try:
            a.execute("INSERT INTO mergeql_changes VALUES (?, ?, ?, ?, ?, ?, ?)", change)
        except sqlite3.IntegrityError:
            pass
a.execute("COMMIT")
equal(a, b, [("k", 7, 8)])

# The arguments of a strategy are part of what its states are.
a = opened()
a.execute("CREATE TABLE notes (id TEXT PRIMARY KEY, pr TEXT)")
replicate(a, "pr priority('x', 'y')")
a.execute("INSERT INTO notes VALUES ('k', 'x')")
a.execute("SELECT count(*) FROM mergeql_changes").fetchone()
fails(lambda: a.execute("SELECT crdt_alter('notes', '', 'pr priority(''x'', ''y'', ''z'')')").fetchone(), "type_mismatch")
a.execute("UPDATE notes SET pr = 'y'")
assert a.execute("SELECT count(*) FROM mergeql_changes").fetchone()[0] > 0

# A table that was made anew under its name has lost its triggers, and says so.
for columns in ("g TEXT, u TEXT, PRIMARY KEY (g, u)", "g TEXT PRIMARY KEY, u TEXT"):
    a = opened()
    a.execute(f"CREATE TABLE notes ({columns})")
    replicate(a)
    a.execute("INSERT INTO notes VALUES ('g', 'u')")
    a.executescript(f"CREATE TABLE anew ({columns}); INSERT INTO anew SELECT * FROM notes; DROP TABLE notes; ALTER TABLE anew RENAME TO notes")
    a.execute("INSERT INTO notes VALUES ('new', 'v')")
    fails(lambda: a.execute("SELECT count(*) FROM mergeql_changes").fetchone(), "crdt_table('notes'")
    fails(lambda: a.execute("SELECT crdt_alter('notes', '')").fetchone(), "crdt_table('notes'")
    replicate(a)
    assert a.execute("SELECT count(*) FROM mergeql_changes WHERE tbl = 'notes' AND col = ''").fetchone()[0] == 2

# Columns are not renamed, those without a strategy of their own neither.
a = opened()
a.execute(NOTES)
replicate(a)
a.execute("ALTER TABLE notes RENAME COLUMN title TO name")
a.execute("INSERT INTO notes VALUES ('n', 'milk')")
fails(lambda: a.execute("SELECT count(*) FROM mergeql_changes").fetchone(), "title")

# What begins as nothing is nothing everywhere.
a = opened()
a.execute("CREATE TABLE notes (id TEXT PRIMARY KEY, cnt INTEGER)")
replicate(a, "cnt counter")
fails(lambda: a.execute("INSERT INTO notes VALUES ('k', -5)"), "counter only grows")
a, b = pair("CREATE TABLE notes (id TEXT PRIMARY KEY, js TEXT)", strategies="js json")
a.execute("INSERT INTO notes VALUES ('k', 'null')")
equal(a, b, [("k", None)])

# A trigger may take a new row away before it is noted.
a, b = pair(NOTES)
a.execute("CREATE TRIGGER eat AFTER INSERT ON notes WHEN mergeql_tracking() BEGIN DELETE FROM notes WHERE id = NEW.id; END")
a.execute("INSERT INTO notes VALUES ('k', 'x')")
equal(a, b, [])
assert a.execute("SELECT crdt_waiting()").fetchone()[0] == "[]"

# A default that is a bare word is a text.
a, b = pair("CREATE TABLE notes (id TEXT PRIMARY KEY, level TEXT DEFAULT low)", strategies="level priority('low', 'high')")
a.execute("INSERT INTO notes VALUES ('k', NULL)")
equal(a, b, [("k", "low")])

# A key is compared by its bytes, whatever its column's collation takes for equal.
a = opened()
a.execute("CREATE TABLE notes (id TEXT COLLATE NOCASE, v TEXT, PRIMARY KEY (id COLLATE BINARY))")
replicate(a)
a.execute("INSERT INTO notes VALUES ('a', 'x'), ('A', 'y')")
a.execute("DELETE FROM notes WHERE id = 'a' COLLATE BINARY")
a.execute("SELECT count(*) FROM mergeql_changes").fetchone()
assert rows(a) == [("A", "y")], rows(a)

# An integer key that is not the row's number can be NULL, which is none.
a = opened()
a.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY DESC, v)")
replicate(a)
fails(lambda: a.execute("INSERT INTO notes VALUES (NULL, 1)"), "needs a key")

# A temporary table of the same name is another one.
a = opened()
a.execute("CREATE TABLE notes (id TEXT PRIMARY KEY, mail TEXT UNIQUE)")
a.execute("CREATE TEMP TABLE notes (x)")
fails(lambda: replicate(a), "UNIQUE")

# A merge that reads itself by a view ends in an error.
a = opened()
a.execute("CREATE TABLE notes (id INTEGER, v INTEGER)")
a.execute("CREATE VIRTUAL TABLE temp.m USING mergeql('MERGE notes ON id')")
a.execute("CREATE TEMP VIEW notes AS SELECT * FROM m")
fails(lambda: a.execute("SELECT * FROM m").fetchall(), "limit_exceeded")

# Columns whose names differ in case are one, as everywhere in SQLite.
a = opened()
a.execute("CREATE TABLE x AS SELECT 1 AS id, 5 AS Name")
a.execute("CREATE TABLE y AS SELECT 1 AS id, 7 AS name")
(sql,) = a.execute("SELECT mergeql_sql('MERGE x, y ON id STRATEGY name = max')").fetchone()
found = a.execute(sql)
assert found.fetchall() == [(1, 7)] and [d[0] for d in found.description] == ["id", "Name"]

# An argument that nothing reads is an error.
fails(lambda: a.execute("SELECT crdt_max(v, w) FROM (SELECT 10 AS v, 1 AS w UNION ALL SELECT 3, 9)").fetchone(), "crdt_max")

print("done")
