"""One rival's hand-written merge with the same lawful answer: rival.py ENGINE FOLDER OUT"""
import resource
import sys
import time

engine, folder, out = sys.argv[1:4]
a, b = f"{folder}/a.parquet", f"{folder}/b.parquet"
target = f"{out}/{engine}.parquet"

if engine == "duckdb":
    import duckdb
    # arg_max over (ts, value): the greatest value breaks ties, as the lawful answer demands.
    sql = f"""
    COPY (SELECT id,
        arg_max(status, ROW(ts, status)) AS status, max(high) AS high, min(low) AS low,
        array_to_string(list_sort(list_distinct(list_transform(flatten(list(string_split(tags, ','))), lambda x: trim(x)))), ',') AS tags,
        arg_max(name, ROW(ts, name)) AS name, max(ts) AS ts
      FROM (SELECT * FROM '{a}' UNION ALL BY NAME SELECT * FROM '{b}') GROUP BY id)
    TO '{target}' (FORMAT parquet)"""
    connection = duckdb.connect()
    connection.execute("SET threads = 2")
    started = time.perf_counter()
    connection.execute(sql)
elif engine == "polars":
    import polars as pl
    started = time.perf_counter()
    frame = pl.concat([pl.scan_parquet(a), pl.scan_parquet(b)])
    frame = frame.group_by("id").agg(
        pl.col("status").sort_by("ts", "status").last(),
        pl.col("high").max(),
        pl.col("low").min(),
        pl.col("tags").str.split(",").explode().unique().sort().str.join(","),
        pl.col("name").sort_by("ts", "name").last(),
        pl.col("ts").max(),
    )
    frame.collect(engine="streaming").write_parquet(target)
else:
    from datafusion import SessionContext, SessionConfig
    context = SessionContext(SessionConfig().with_target_partitions(2))
    context.register_parquet("a", a)
    context.register_parquet("b", b)
    sql = """
    SELECT id, last_value(status ORDER BY ts, status) AS status, max(high) AS high, min(low) AS low,
        array_to_string(array_sort(array_distinct(flatten(array_agg(string_to_array(tags, ','))))), ',') AS tags,
        last_value(name ORDER BY ts, name) AS name, max(ts) AS ts
    FROM (SELECT * FROM a UNION ALL SELECT * FROM b) GROUP BY id"""
    started = time.perf_counter()
    context.sql(sql).write_parquet(target)

seconds = time.perf_counter() - started
print(f"{seconds:.3f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")
