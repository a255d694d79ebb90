"""Runs SQL in SQLite for the tests: a line of JSON with a statement in, a line with rows or an error out.

A statement of MergeQL goes through `mergeql_sql`, or `mergeql_exec` where it writes. Rows come back as the canonical text of each value.
SQLite has no column names behind VALUES, no typed literals and no second word for some types: those are written its way first.
"""

import json
import re
import sqlite3
import sys

connection = sqlite3.connect(sys.argv[2] if len(sys.argv) > 2 else ":memory:", isolation_level=None)
connection.enable_load_extension(True)
connection.execute("SELECT load_extension(?, 'sqlite3_mergeql_init')", [sys.argv[1]])


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


def run(request):
    statement = request["sql"] if request.get("raw") else translated(request["sql"])
    if request.get("raw"):
        sql = statement
    elif re.match(r"\s*(MERGE\s+INTO|(CREATE|DROP)\s+(OR\s+REPLACE\s+)?STRATEGY)\b|\s*MERGE\b.*\sINTO\s", statement, re.I | re.S):
        connection.execute("SELECT mergeql_exec(?)", [statement]).fetchall()
        return []
    else:
        sql = connection.execute("SELECT mergeql_sql(?)", [statement]).fetchone()[0].strip().rstrip(";")
    if request.get("plain") or not re.match(r"\(*\s*(SELECT|WITH|VALUES)\b", sql, re.I):
        connection.executescript(sql) if request.get("raw") else connection.execute(sql).fetchall()
        return None
    names = [c[0] for c in connection.execute(f"SELECT * FROM ({sql}) LIMIT 0").description]
    listed = ", ".join(f"c{i}" for i in range(len(names)))
    columns = ", ".join(f"mergeql_text(c{i})" for i in range(len(names)))
    return connection.execute(f"WITH q({listed}) AS ({sql}) SELECT {columns} FROM q").fetchall()


for line in sys.stdin:
    try:
        answer = {"rows": run(json.loads(line))}
    except (sqlite3.Error, sqlite3.Warning) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
