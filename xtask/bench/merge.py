"""The merge suite: every case by us and by each rival, in turn in one run: merge.py OURS FOLDER ROWS ..."""

import os
import statistics
import subprocess
import sys

import duckdb
from merge_cases import CASES

RIVALS = os.environ.get("MERGEQL_BENCH_RIVALS", "duckdb,polars,datafusion").split(",")
here = os.path.dirname(os.path.abspath(__file__))
ours, folder, sizes = os.path.abspath(sys.argv[1]), sys.argv[2], [int(r) for r in sys.argv[3:]]
runs = int(os.environ.get("MERGEQL_BENCH_RUNS", "3"))
only = os.environ.get("MERGEQL_BENCH_CASE", "")


def script(name, *arguments):
    """The output of a script, or None if it fails: a rival may run out of memory."""
    done = subprocess.run([sys.executable, f"{here}/{name}.py", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        print(f"{name} {arguments}: {done.stderr[-300:]}", file=sys.stderr)
        return None
    return done.stdout


def mergeql(case, place):
    """Seconds and peak memory of our whole process."""
    out = f"{place}/mergeql.parquet"
    if os.path.exists(out):
        os.remove(out)
    measured = (
        "import resource,subprocess,sys,time; started = time.perf_counter(); "
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    command = [ours, "--threads", "2"]
    if case.format == "memory":
        # The time of the merge alone: its sources are tables before, and so is its result.
        measured = measured.replace(", stderr=subprocess.DEVNULL", "")
        command.append("--timer")
        for i in range(case.sources):
            command += ["-c", f"CREATE TABLE t{i} AS SELECT * FROM '{i}.parquet'"]
        command += ["-c", f"{case.statement} INTO merged", "-c", "SELECT * FROM merged"]
    else:
        command += ["-c", case.statement]
    done = subprocess.run([sys.executable, "-c", measured, *command, "-o", out], capture_output=True, text=True, cwd=place, check=True)
    seconds, peak = map(float, done.stdout.split())
    if case.format == "memory":
        told = [float(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("Time: ")]
        seconds = told[case.sources]
    return seconds, peak


def same(case, place, engine):
    """The rows of both, as a count and a sum of hashes: at 100M rows a set would not fit."""
    types = {"low": "DOUBLE", "tags": "VARCHAR", "name": "VARCHAR", "region": "VARCHAR", "ts": "TIMESTAMP"}
    types["id"] = "VARCHAR" if case.key == "uuid" else "BIGINT"
    names = [*case.keys, *(c for c, _ in case.values if c != "ts"), "ts"]
    columns = ", ".join(f"{c}::{types.get(c, 'BIGINT')}" for c in names)
    query = f"SELECT count(*), sum(hash({columns})::HUGEINT) FROM '{place}/%s.parquet'"
    mine, theirs = (duckdb.sql(query % e).fetchall()[0] for e in ("mergeql", engine))
    assert mine == theirs, (case.name, engine, mine, theirs)


print(f"| case | rows in | MergeQL s | peak MB | {' | '.join(f'{r} s (ratio)' for r in RIVALS)} | best rival / ours |")
print("|---|---|---|---|" + "---|" * (len(RIVALS) + 1))
for rows in sizes:
    for number, case in enumerate(CASES):
        if only not in case.name:
            continue
        place = f"{folder}/{rows}-{case.data}"
        os.makedirs(place, exist_ok=True)
        if not os.path.exists(f"{place}/{case.sources - 1}.{case.ending}"):
            script("merge_data", number, rows, place)
        times = {engine: [] for engine in [*RIVALS, "mergeql"]}
        peak = 0
        for run in range(runs):
            seconds, most = mergeql(case, place)
            times["mergeql"].append(seconds)
            peak = max(peak, most)
            for engine in RIVALS:
                told = script("merge_rival", number, engine, place) if len(times[engine]) == run else None
                if told:
                    times[engine].append(float(told.split()[0]))
                    if run == 0:
                        same(case, place, engine)
        median = {engine: statistics.median(t) for engine, t in times.items() if t}
        own = median["mergeql"]
        shown = [f"{median[r]:.2f} ({median[r] / own:.2f})" if r in median else "failed" for r in RIVALS]
        best = min(median[r] for r in RIVALS if r in median)
        print(f"| {case.name} | {rows} | {own:.2f} | {peak:.0f} | {' | '.join(shown)} | {best / own:.2f} |", flush=True)
