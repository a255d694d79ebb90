"""RETURNING CONFLICTS beside DuckDB's hand-written query for the same cells, in turn in one run: conflicts.py OURS FOLDER ROWS ..."""

import os
import statistics
import subprocess
import sys
import time

import duckdb

here = os.path.dirname(os.path.abspath(__file__))
ours, folder, sizes = os.path.abspath(sys.argv[1]), sys.argv[2], [int(r) for r in sys.argv[3:]]
runs = int(os.environ.get("MERGEQL_BENCH_RUNS", "3"))
SOURCES, COLUMNS = ["nyc", "london"], {"status": "lww", "high": "max", "ts": "max"}
merge = (
    "MERGE "
    + ", ".join(f"(SELECT id, status, high, ts FROM '{i}.parquet') AS {s}" for i, s in enumerate(SOURCES))
    + " ON id STRATEGY high = max, ts = max VERSION BY ts RETURNING CONFLICTS"
)


def theirs(place):
    """Each row's contributions as a set, then those that have the value and those that have another, where they differ."""
    union = " UNION ALL ".join(
        f"SELECT '{s}' AS source, id, status, high, ts FROM '{place}/{i}.parquet'" for i, s in enumerate(SOURCES)
    )
    best = {"status": "arg_max(status, ROW(ts, status))", "high": "max(high)", "ts": "max(ts)"}
    sets = ", ".join(
        f"{best[c]} AS {c}, list(DISTINCT {{'source': source, 'value': {c}, 'version': {'ts' if s == 'lww' else 'NULL'}}}) "
        f"FILTER (WHERE {c} IS NOT NULL) AS all_{c}"
        for c, s in COLUMNS.items()
    )
    cells = " UNION ALL ".join(
        f"SELECT id, '{c}' AS column_name, {c}::VARCHAR AS value, '{s}' AS strategy, "
        f"list_sort(list_distinct([x.source FOR x IN all_{c} IF x.value = {c}])) AS winner_sources, "
        f"list_sort([{{'source': x.source, 'value': x.value::VARCHAR, 'version': x.version::VARCHAR}} "
        f"FOR x IN all_{c} IF x.value <> {c}]) AS losers "
        f"FROM merged WHERE len(list_distinct([x.value FOR x IN all_{c}])) > 1"
        for c, s in COLUMNS.items()
    )
    return f"WITH merged AS MATERIALIZED (SELECT id, {sets} FROM ({union}) GROUP BY id) {cells} ORDER BY id, column_name"


def same(place):
    """Timestamps are written in other ways as text: all but those is compared."""
    query = (
        "SELECT count(*), sum(hash(id, column_name, strategy, winner_sources, [x.source FOR x IN losers], "
        f"CASE WHEN column_name <> 'ts' THEN value END)::HUGEINT) FROM '{place}/%s.parquet'"
    )
    mine, other = (duckdb.sql(query % e).fetchall()[0] for e in ("mergeql", "duckdb"))
    assert mine == other, (mine, other)
    return mine[0]


print("| rows in | conflicts out | MergeQL s | DuckDB s | DuckDB / ours |\n|---|---|---|---|---|")
for rows in sizes:
    place = f"{folder}/{rows}-s2-o50-int-mixed-shuffled-parquet"
    os.makedirs(place, exist_ok=True)
    if not os.path.exists(f"{place}/1.parquet"):
        subprocess.run([sys.executable, f"{here}/merge_data.py", "0", str(rows), place], check=True)
    times = {"mergeql": [], "duckdb": []}
    for run in range(runs):
        started = time.perf_counter()
        subprocess.run([ours, "--threads", "2", "-c", merge, "-o", "mergeql.parquet"], cwd=place, check=True, capture_output=True)
        times["mergeql"].append(time.perf_counter() - started)
        connection = duckdb.connect()
        connection.execute("SET threads = 2")
        started = time.perf_counter()
        connection.execute(f"COPY ({theirs(place)}) TO '{place}/duckdb.parquet' (FORMAT parquet)")
        times["duckdb"].append(time.perf_counter() - started)
        found = same(place)
    mine, other = (statistics.median(t) for t in times.values())
    print(f"| {rows} | {found} | {mine:.2f} | {other:.2f} | {other / mine:.2f} |", flush=True)
