"""Reads and writes sketches with Apache DataSketches' own Python package: one JSON object a line each way."""

import json
import sys

import datasketches as ds


def read(kind, image, values):
    if kind == "hll":
        return ds.hll_sketch.deserialize(image).get_estimate()
    if kind == "theta":
        return ds.compact_theta_sketch.deserialize(image).get_estimate()
    if kind == "cpc":
        return ds.cpc_sketch.deserialize(image).get_estimate()
    if kind == "kll":
        return ds.kll_doubles_sketch.deserialize(image).get_quantile(0.5)
    if kind == "tdigest":
        return ds.tdigest_double.deserialize(image).get_quantile(0.5)
    if kind == "topk":
        return ds.frequent_strings_sketch.deserialize(image).get_estimate(str(values[0]))
    if kind == "countmin":
        return ds.count_min_sketch.deserialize(image).get_estimate(values[0])
    raise ValueError(kind)


def write(kind, values):
    if kind == "hll":
        sketch = ds.hll_sketch(12, ds.tgt_hll_type.HLL_4)
    elif kind == "theta":
        sketch = ds.update_theta_sketch(12)
    elif kind == "cpc":
        sketch = ds.cpc_sketch(11)
    elif kind == "kll":
        sketch = ds.kll_doubles_sketch(200)
    elif kind == "tdigest":
        sketch = ds.tdigest_double(100)
    elif kind == "topk":
        sketch = ds.frequent_strings_sketch(8)
    elif kind == "countmin":
        sketch = ds.count_min_sketch(5, 2048)
    else:
        return None
    for value in values:
        sketch.update(value if kind in ("hll", "theta", "cpc", "countmin") else str(value) if kind == "topk" else float(value))
    if kind == "hll":
        return sketch.serialize_compact()
    if kind == "theta":
        return sketch.compact().serialize()
    return sketch.serialize()


for line in sys.stdin:
    ask = json.loads(line)
    image = write(ask["kind"], ask["values"])
    answer = {
        "read": read(ask["kind"], bytes.fromhex(ask["image"]), ask["values"]),
        "image": image.hex() if image else None,
    }
    print(json.dumps(answer), flush=True)
