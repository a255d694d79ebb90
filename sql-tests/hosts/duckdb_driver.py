"""Runs SQL in DuckDB for the tests: a line of JSON with a statement in, a line with rows or an error out.

A statement of MergeQL goes through `mergeql_sql`, as a client of DuckDB would send it. Rows come back as the canonical text of each value.
"""

import json
import sys
import threading

import duckdb

connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
connection.execute(f"LOAD '{sys.argv[1]}'")
connection.execute(f"SET threads = {sys.argv[2]}")

for line in sys.stdin:
    request = json.loads(line)
    if "interrupt_after" in request:
        threading.Timer(request["interrupt_after"], connection.interrupt).start()
    try:
        sql = connection.execute("SELECT mergeql_sql(?)", [request["sql"]]).fetchone()[0]
        if connection.extract_statements(sql)[0].type == duckdb.StatementType.SELECT and not request.get("plain"):
            sql = f"SELECT mergeql_text(COLUMNS(*)) FROM ({sql.strip().rstrip(';')})"
        result = connection.execute(sql)
        answer = {"rows": result.fetchall() if result.description and not request.get("plain") else None}
    except Exception as error:  # whatever DuckDB raises is the answer
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer, default=str), flush=True)
