"""Runs SQL in Postgres for the tests: a line of JSON with a statement in, a line with rows or an error out.

A statement of MergeQL goes through `mergeql_sql`, or is called where it writes. Rows come back as the canonical text of each value.
"""

import json
import re
import sys

import psycopg

connection = psycopg.connect(sys.argv[1], autocommit=True)
cursor = connection.cursor()


def run(request):
    statement = request["sql"]
    if re.match(r"\s*(MERGE\s+INTO|(CREATE|DROP)\s+(OR\s+REPLACE\s+)?STRATEGY)\b", statement, re.I) and "WHEN" not in statement:
        cursor.execute("CALL mergeql_into(%s)", [statement])
        return []
    sql = statement
    if not request.get("raw"):
        sql = cursor.execute("SELECT mergeql_sql(%s)", [statement]).fetchone()[0].strip().rstrip(";")
    if request.get("plain") or not re.match(r"\(*\s*(SELECT|WITH|VALUES|TABLE)\b", sql, re.I):
        cursor.execute(sql)
        return None
    names = [c.name for c in cursor.execute(f"SELECT * FROM ({sql}) AS q LIMIT 0").description]
    columns = ", ".join(f'mergeql_text(c{i})' for i in range(len(names)))
    listed = ", ".join(f"c{i}" for i in range(len(names)))
    return cursor.execute(f"SELECT {columns} FROM ({sql}) AS q({listed})").fetchall()


for line in sys.stdin:
    try:
        answer = {"rows": run(json.loads(line))}
    except psycopg.Error as error:
        diagnostic = error.diag
        parts = [diagnostic.message_primary or str(error), diagnostic.message_detail]
        if diagnostic.message_hint:
            parts.append(f"HINT: {diagnostic.message_hint}")
        if diagnostic.internal_position:
            parts.append(f"AT: {diagnostic.internal_position} of {diagnostic.internal_query}")
        answer = {"error": "\n".join(part for part in parts if part), "sqlstate": diagnostic.sqlstate}
    print(json.dumps(answer), flush=True)
