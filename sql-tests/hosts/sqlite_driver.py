"""Runs SQL in SQLite for the tests: a line of JSON with a statement in, a line with rows or an error out.

A statement of MergeQL goes through `mergeql_sql`, or `mergeql_exec` where it writes. Rows come back as the canonical text of each value.
SQLite has no column names behind VALUES, no typed literals and no second word for some types: those are written its way first.
"""

import json
import re
import sqlite3
import sys
import threading
from random import Random



def connect(path):
    # Interrupted from another thread.
    opened = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
    opened.enable_load_extension(True)
    opened.execute("SELECT load_extension(?, 'sqlite3_mergeql_init')", [sys.argv[1]])
    return opened


connection = connect(sys.argv[2] if len(sys.argv) > 2 else ":memory:")


def named(match):
    names = [name.strip() for name in match[3].split(",")]
    columns = ", ".join(f"column{i + 1} AS {name}" for i, name in enumerate(names))
    return f"(SELECT {columns} FROM (VALUES {match[1]})) AS {match[2]}"


def translated(sql):
    sql = re.sub(r"\(VALUES ((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\) AS (\w+)\(([^)]*)\)", named, sql)
    sql = re.sub(r"\b(DATE|TIMESTAMP) '", "'", sql)
    sql = re.sub(r"\bchr\(", "char(", sql)
    sql = re.sub(r"\b(character_length|octet_length)\(", "length(", sql)
    return re.sub(r"\bCAST\(([^()]+?) AS (BOOLEAN|DATE|TIMESTAMP)\)", r"\1", sql)


def pull(request):
    """Applies changes of another database: those after a number, some of them, in any order."""
    other = connect(request["pull"])
    own = connection.execute("SELECT crdt_origin()").fetchone()[0]
    feed = "SELECT * FROM mergeql_changes WHERE origin <> ? AND seq > ? ORDER BY seq"
    changes = other.execute(feed, [own, request["since"]]).fetchall()
    other.close()
    random = Random(request["seed"])
    if request["some"]:
        changes = random.sample(changes, random.randint(0, len(changes)))
    random.shuffle(changes)
    changes += random.sample(changes, len(changes) // 3)
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO mergeql_changes VALUES (?, ?, ?, ?, ?, ?, ?)", changes)
    connection.execute("COMMIT")


def run(request):
    if "pull" in request:
        return pull(request)
    statement = request["sql"] if request.get("raw") else translated(request["sql"])
    if request.get("raw"):
        sql = statement
    elif re.match(r"\s*(MERGE\s+INTO|(CREATE|DROP)\s+(OR\s+REPLACE\s+)?STRATEGY)\b|\s*MERGE\b.*\sINTO\s", statement, re.I | re.S):
        connection.execute("SELECT mergeql_exec(?)", [statement]).fetchall()
        return []
    else:
        sql = connection.execute("SELECT mergeql_sql(?)", [statement]).fetchone()[0].strip().rstrip(";")
    if request.get("plain") or not re.match(r"\(*\s*(SELECT|WITH|VALUES)\b", sql, re.I):
        # A script begins by committing.
        connection.executescript(sql) if ";" in sql.rstrip("; ") else connection.execute(sql).fetchall()
        return None
    names = [c[0] for c in connection.execute(f"SELECT * FROM ({sql}) LIMIT 0").description]
    listed = ", ".join(f"c{i}" for i in range(len(names)))
    columns = ", ".join(f"mergeql_text(c{i})" for i in range(len(names)))
    return connection.execute(f"WITH q({listed}) AS ({sql}) SELECT {columns} FROM q").fetchall()


def each(request):
    """Runs a query for each row number; counts those that end in an error, and gives those that are no errors of ours."""
    refused, panics = 0, []
    for row in range(1, request["rows"] + 1):
        try:
            connection.execute(request["each"], [row]).fetchall()
        except sqlite3.Error as error:
            refused += 1
            if "panic" in str(error) or "MergeQL failed" in str(error):
                panics.append(str(error))
    return {"refused": refused, "panics": panics}


for line in sys.stdin:
    try:
        request = json.loads(line)
        if "interrupt_after" in request:
            threading.Timer(request["interrupt_after"], connection.interrupt).start()
        answer = each(request) if "each" in request else {"rows": run(request)}
    except (sqlite3.Error, sqlite3.Warning) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
