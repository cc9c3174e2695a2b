"""Engines that search a pool, each behind the same few words: build of rows, search of one query."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.pool.disk_index import build_pool
from rtdecode.decode.score.disk_pool import DiskPool
from rtdecode.decode.score.mapped import map_tensor

Search = Callable[[NDArray[np.float32]], int]
"""Query of length 1 to the place of the nearest row."""
BLOCK = 20_000
CELLS, PROBED = 2048, 11
"""Of the inverted files of all engines, as `build_pool` takes them for a million rows."""


def blocks(path: Path) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the place of the first row, and rows."""
    rows = map_tensor(path, "tokens")
    for first in range(0, len(rows), BLOCK):
        part = rows[first : first + BLOCK]
        yield first, part.reshape(len(part), -1).astype(np.float32)


def exact(path: Path, out: Path) -> Search:  # noqa: ARG001 - the shape of an engine
    """Compare with every row, which stay in half precision on the disk."""
    rows = map_tensor(path, "tokens").reshape(len(map_tensor(path, "tokens")), -1)

    def search(query: NDArray[np.float32]) -> int:
        best, place = -np.inf, 0
        for first in range(0, len(rows), BLOCK):
            likeness = rows[first : first + BLOCK].astype(np.float32) @ query
            at = int(likeness.argmax())
            if likeness[at] > best:
                best, place = float(likeness[at]), first + at
        return place

    return search


def faiss_disk(path: Path, out: Path) -> Search:
    """Search what ``rtdecode engines pool build`` makes."""
    build_pool([path], out)
    pool = DiskPool(out)
    return lambda query: int(pool.nearest(query, 1)[0][0])


def lance(path: Path, out: Path) -> Search:
    """LanceDB: an inverted file of values of 8 bits, of which the best are compared in full."""
    import lancedb
    import pyarrow as pa

    width = map_tensor(path, "tokens").shape[-1]
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), width))])

    def batches() -> Iterator[Any]:
        for first, rows in blocks(path):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), width)
            yield pa.record_batch([pa.array(np.arange(first, first + len(rows))), vectors], schema=schema)

    table = lancedb.connect(out).create_table("pool", batches(), schema=schema)
    table.create_index(metric="dot", num_partitions=CELLS, index_type="IVF_SQ", vector_column_name="vector")

    def search(query: NDArray[np.float32]) -> int:
        found = table.search(query).distance_type("dot").nprobes(PROBED).refine_factor(10).limit(1).to_list()
        return int(found[0]["id"])

    return search


def milvus(path: Path, out: Path) -> Search:
    """Milvus Lite, whose client speaks to a cluster just as well."""
    from pymilvus import DataType, MilvusClient

    out.mkdir(parents=True)
    client = MilvusClient(str(out / "pool.db"))
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=map_tensor(path, "tokens").shape[-1])
    index = client.prepare_index_params()
    index.add_index("vector", index_type="IVF_FLAT", metric_type="IP", params={"nlist": CELLS})
    client.create_collection("pool", schema=schema, index_params=index)
    for first, rows in blocks(path):
        for start in range(0, len(rows), 4000):  # a message of gRPC holds 64 MB
            part = rows[start : start + 4000]
            client.insert("pool", [{"id": first + start + i, "vector": row} for i, row in enumerate(part)])
    client.flush("pool")
    client.load_collection("pool")

    def search(query: NDArray[np.float32]) -> int:
        found = client.search("pool", [query], limit=1, search_params={"params": {"nprobe": PROBED}})
        return int(found[0][0]["id"])

    return search


ENGINES = {"exact": exact, "faiss": faiss_disk, "lancedb": lance, "milvus-lite": milvus}
