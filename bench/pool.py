"""A pool of embeddings on the disk: time to build, memory, recall and time of a search, beside plain exact search.

Rows are unit vectors around many centres, as embeddings of pictures lie; queries are rows with noise. Exact search is a
product with all rows in half precision, mapped from the disk.

    python bench/pool.py [--rows 1000000] [--width 768] [--queries 200] [--folder DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _report import print_table, write_json
from numpy.typing import NDArray

from engines.pool.disk_index import build_pool
from rtdecode.decode.score.disk_pool import DiskPool
from rtdecode.decode.score.mapped import fill_tensors, map_tensor

CENTRES = 20_000
SPREAD = 0.6
QUERY_NOISE = 0.35
_BLOCK = 20_000


def write_rows(path: Path, rows: int, width: int) -> None:
    """Write embeddings as ``rtdecode engines embed`` does."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, width)).astype(np.float32) / np.sqrt(width)
    metadata = {"names": json.dumps([str(i) for i in range(rows)]), "embedder": ""}
    with fill_tensors(path, {"tokens": ((rows, 1, width), np.float16)}, metadata) as arrays:
        for first in range(0, rows, _BLOCK):
            n = min(_BLOCK, rows - first)
            noise = rng.standard_normal((n, width)).astype(np.float32) * (SPREAD / np.sqrt(width))
            made = centres[rng.integers(CENTRES, size=n)] + noise
            arrays["tokens"][first : first + n, 0] = made / np.linalg.norm(made, axis=1, keepdims=True)


def quantiles(milliseconds: list[float]) -> tuple[float, float]:
    return float(np.median(milliseconds)), float(np.percentile(milliseconds, 99))


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def exact(rows: NDArray[Any], query: NDArray[np.float32]) -> int:
    best, place = -np.inf, 0
    for first in range(0, len(rows), _BLOCK):
        likeness = rows[first : first + _BLOCK].astype(np.float32) @ query
        at = int(likeness.argmax())
        if likeness[at] > best:
            best, place = float(likeness[at]), first + at
    return place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where rows and index go: 3 GB for a million of 768")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path, out = Path(folder) / "rows.safetensors", Path(folder) / "pool"
        write_rows(path, args.rows, args.width)
        began = time.perf_counter()
        said = build_pool([path], out, progress=lambda done, total: print(f"\r{done:,} of {total:,}", end=""))
        built_s = time.perf_counter() - began
        build_mb = memory_mb()
        size_gb = sum(one.stat().st_size for one in out.iterdir()) / 1e9
        rows = map_tensor(path, "tokens").reshape(args.rows, args.width)
        pool, rng = DiskPool(out), np.random.default_rng(1)
        hits, searched, plain = 0, [], []
        for i, row in enumerate(rng.permutation(args.rows)[: args.queries]):
            query = rows[row].astype(np.float32)
            query += rng.standard_normal(args.width).astype(np.float32) * (QUERY_NOISE / np.sqrt(args.width))
            began = time.perf_counter()
            found = pool.nearest(query, 1)[0][0]
            searched.append(1e3 * (time.perf_counter() - began))
            if i < 20:  # exact search of all rows takes a second
                began = time.perf_counter()
                truth = exact(rows, query)
                plain.append(1e3 * (time.perf_counter() - began))
                assert truth == int(row), "the query is nearest to another row: too much noise for a recall"
            hits += found == str(row)
    recall, (median, p99), (exact_median, exact_p99) = hits / args.queries, quantiles(searched), quantiles(plain)
    print_table(
        f"{args.rows:,} x {args.width}, {said.cells} cells, {said.probed} looked into",
        ["how", "build s", "peak MB", "GB on disk", "recall@1", "median ms", "p99 ms"],
        [
            [
                "index on the disk",
                f"{built_s:.0f}",
                f"{build_mb:.0f}",
                f"{size_gb:.2f}",
                f"{recall:.3f}",
                f"{median:.2f}",
                f"{p99:.2f}",
            ],
            ["plain exact", "-", "-", "-", "1", f"{exact_median:.0f}", f"{exact_p99:.0f}"],
        ],
    )
    if args.json is not None:
        index = {"build_s": built_s, "peak_mb": build_mb, "gb": size_gb, "recall_at_1": recall, "median_ms": median}
        figures = {"index": {**index, "p99_ms": p99}, "exact": {"median_ms": exact_median, "p99_ms": exact_p99}}
        write_json(args.json, {"rows": args.rows, "width": args.width, "cells": said.cells, **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
