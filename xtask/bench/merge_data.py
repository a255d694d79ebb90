"""The files of a case: merge_data.py CASE ROWS FOLDER"""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from merge_cases import CASES

case, rows, folder = CASES[int(sys.argv[1])], int(sys.argv[2]), sys.argv[3]
each = rows // case.sources
rng = np.random.default_rng(7)
# Rows that are made at a time: a multiple of what a row group has.
CHUNK = 16 * 122_880
words = np.array(["sql", "ml", "ops", "go", "rust", "data", "web", "bi"])


def uuids(ids):
    """A text of 36 characters for each number, in no order of theirs."""
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    hexes = np.char.add(np.char.zfill(np.array([f"{v:x}" for v in mixed.tolist()]), 16), "0000000000000000")
    parts = [hexes.astype("U32").view("U1").reshape(len(ids), 32)]
    text = parts[0]
    joined = np.array(["".join(t) for t in text])
    return np.array([f"{t[:8]}-{t[8:12]}-{t[12:16]}-{t[16:20]}-{t[20:]}" for t in joined.tolist()])


def chunk(ids):
    """The columns of some rows."""
    rows = len(ids)
    columns = {"id": uuids(ids) if case.key == "uuid" else ids}
    if case.key == "pair":
        columns = {"id": ids // 10, "region": pa.array(np.char.add("region-", (ids % 10).astype("U")))}
    for name, strategy in case.values:
        if name in ("status",):
            columns[name] = rng.integers(0, 1000, rows, dtype=np.int64)
        elif name == "low":
            columns[name] = rng.random(rows)
        elif name == "tags":
            left, right = rng.integers(0, len(words), rows), rng.integers(0, len(words), rows)
            columns[name] = pa.array(np.char.add(np.char.add(words[left], ","), words[right]))
        elif name == "name":
            columns[name] = pa.array(np.char.add("name-", rng.integers(0, 5_000_000, rows).astype("U")))
        elif name != "ts":
            columns[name] = rng.integers(0, 1_000_000, rows, dtype=np.int64)
    columns["ts"] = rng.integers(0, 1_000_000, rows).astype("datetime64[us]")
    return pa.table(columns)


for source in range(case.sources):
    first = source * (each - each * case.overlap // 100)
    ids = np.arange(first, first + each, dtype=np.int64)
    ids = ids if case.sorted else rng.permutation(ids)
    by = [pq.SortingColumn(i) for i in range(len(case.keys))] if case.sorted else None
    path, writer = f"{folder}/{source}.{case.ending}", None
    for begin in range(0, each, CHUNK):
        table = chunk(ids[begin : begin + CHUNK])
        if writer is None:
            as_csv = case.format == "csv"
            writer = pyarrow.csv.CSVWriter(path, table.schema) if as_csv else pq.ParquetWriter(path, table.schema, sorting_columns=by)
        writer.write_table(table, *([] if case.format == "csv" else [122_880]))
    writer.close()
