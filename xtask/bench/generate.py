"""Two key-sorted-by-nothing sources of a merge with overlapping keys, as Parquet: generate.py ROWS FOLDER"""
import sys
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

rows, folder = int(sys.argv[1]), sys.argv[2]
each = rows // 2
rng = np.random.default_rng(7)
words = np.array(["sql", "ml", "ops", "go", "rust", "data", "web", "bi"])
for name, first in (("a", 0), ("b", each // 2)):
    ids = rng.permutation(np.arange(first, first + each, dtype=np.int64))
    ts = rng.integers(0, 1_000_000, each).astype("datetime64[us]")
    left, right = rng.integers(0, len(words), each), rng.integers(0, len(words), each)
    tags = np.char.add(np.char.add(words[left], ","), words[right])
    names = np.char.add("name-", rng.integers(0, 5_000_000, each).astype("U"))
    table = pa.table({
        "id": ids,
        "status": rng.integers(0, 1000, each, dtype=np.int64),
        "high": rng.integers(0, 1_000_000, each, dtype=np.int64),
        "low": rng.random(each),
        "tags": pa.array(tags),
        "name": pa.array(names),
        "ts": ts,
    })
    pq.write_table(table, f"{folder}/{name}.parquet", row_group_size=122_880)
