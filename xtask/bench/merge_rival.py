"""A rival's hand-written merge with the same lawful answer: merge_rival.py CASE ENGINE FOLDER"""

import resource
import sys
import time

from merge_cases import CASES

case, engine, folder = CASES[int(sys.argv[1])], sys.argv[2], sys.argv[3]
target = f"{folder}/{engine}.parquet"
files = [f"{folder}/{i}.{case.ending}" for i in range(case.sources)]
memory = case.format == "memory"
values = [(c, s) for c, s in case.values if c != "ts"] + [("ts", "max")]
keys = ", ".join(case.keys)

if engine == "duckdb":
    import duckdb

    # arg_max over (ts, value): the greatest value breaks ties, as the lawful answer demands.
    how = {
        "lww": lambda c: f"arg_max({c}, ROW(ts, {c})) AS {c}",
        "max": lambda c: f"max({c}) AS {c}",
        "min": lambda c: f"min({c}) AS {c}",
        "union": lambda c: f"array_to_string(list_sort(list_distinct(list_transform(flatten(list(string_split({c}, ','))), "
        f"lambda x: trim(x)))), ',') AS {c}",
    }
    union = " UNION ALL BY NAME ".join(f"SELECT * FROM t{i}" if memory else f"SELECT * FROM '{f}'" for i, f in enumerate(files))
    query = f"SELECT {keys}, {', '.join(how[s](c) for c, s in values)} FROM ({union}) GROUP BY ALL"
    connection = duckdb.connect()
    connection.execute("SET threads = 2")
    for i, f in enumerate(files if memory else []):
        connection.execute(f"CREATE TABLE t{i} AS FROM '{f}'")
    started = time.perf_counter()
    connection.execute(f"CREATE TABLE merged AS {query}" if memory else f"COPY ({query}) TO '{target}' (FORMAT parquet)")
    seconds = time.perf_counter() - started
    if memory:
        connection.execute(f"COPY merged TO '{target}' (FORMAT parquet)")
elif engine == "polars":
    import polars as pl

    how = {
        "lww": lambda c: pl.col(c).sort_by("ts", c).last(),
        "max": lambda c: pl.col(c).max(),
        "min": lambda c: pl.col(c).min(),
        "union": lambda c: pl.col(c).str.split(",").explode().unique().sort().str.join(","),
    }
    tables = [pl.read_parquet(f) for f in files] if memory else []
    started = time.perf_counter()
    scan = (lambda f: pl.scan_csv(f, try_parse_dates=True)) if case.format == "csv" else pl.scan_parquet
    sources = [t.lazy() for t in tables] if memory else [scan(f) for f in files]
    merged = pl.concat(sources).group_by(case.keys).agg(*[how[s](c) for c, s in values]).collect(engine="streaming")
    seconds = time.perf_counter() - started
    merged.write_parquet(target)
else:
    from datafusion import SessionConfig, SessionContext

    how = {
        "lww": lambda c: f"last_value({c} ORDER BY ts, {c}) AS {c}",
        "max": lambda c: f"max({c}) AS {c}",
        "min": lambda c: f"min({c}) AS {c}",
        "union": lambda c: f"array_to_string(array_sort(array_distinct(flatten(array_agg(string_to_array({c}, ','))))), ',') AS {c}",
    }
    context = SessionContext(SessionConfig().with_target_partitions(2))
    for i, f in enumerate(files if memory else []):
        context.register_parquet(f"p{i}", f)
        context.sql(f"CREATE TABLE s{i} AS SELECT * FROM p{i}").collect()
    started = time.perf_counter()
    for i, f in enumerate([] if memory else files):
        (context.register_csv if case.format == "csv" else context.register_parquet)(f"s{i}", f)
    union = " UNION ALL ".join(f"SELECT * FROM s{i}" for i in range(case.sources))
    select = ", ".join(how[s](c) for c, s in values)
    merged = context.sql(f"SELECT {keys}, {select} FROM ({union}) GROUP BY {keys}")
    if memory:
        merged = merged.cache()
        seconds = time.perf_counter() - started
    merged.write_parquet(target)

if not memory:
    seconds = time.perf_counter() - started
print(f"{seconds:.3f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")
