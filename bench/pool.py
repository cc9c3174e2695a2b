"""A pool of embeddings on the disk: time to build, memory, recall and time of a search, beside plain exact search.

Rows are unit vectors around many centres, as embeddings of pictures lie; queries are rows with noise. Exact search is a
product with all rows in half precision, mapped from the disk. Each engine builds and searches in a process of its own,
whose largest memory is told; that of mapped files counts with it. LanceDB and Milvus Lite are not of this project:
pip install lancedb 'pymilvus[milvus_lite]'.

    python bench/pool.py [--rows 1000000] [--width 768] [--queries 200] [--engines exact faiss lancedb milvus-lite]
        [--folder DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _pool_engines import BLOCK, ENGINES
from _report import print_table, write_json
from numpy.typing import NDArray

from rtdecode.decode.score.mapped import fill_tensors, map_tensor

CENTRES = 20_000
SPREAD = 0.6
QUERY_NOISE = 0.35
EXACT_QUERIES = 20
"""Exact search of a million rows takes a second."""


def write_rows(path: Path, rows: int, width: int) -> None:
    """Write embeddings as ``rtdecode engines embed`` does."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, width)).astype(np.float32) / np.sqrt(width)
    metadata = {"names": json.dumps([str(i) for i in range(rows)]), "embedder": ""}
    with fill_tensors(path, {"tokens": ((rows, 1, width), np.float16)}, metadata) as arrays:
        for first in range(0, rows, BLOCK):
            n = min(BLOCK, rows - first)
            noise = rng.standard_normal((n, width)).astype(np.float32) * (SPREAD / np.sqrt(width))
            made = centres[rng.integers(CENTRES, size=n)] + noise
            arrays["tokens"][first : first + n, 0] = made / np.linalg.norm(made, axis=1, keepdims=True)


def queries(path: Path, n: int) -> list[tuple[int, NDArray[np.float32]]]:
    """Rows to find, and queries near them."""
    rows, rng = map_tensor(path, "tokens"), np.random.default_rng(1)
    width, found = rows.shape[-1], []
    for row in rng.permutation(len(rows))[:n]:
        query = rows[row, 0].astype(np.float32)
        query += rng.standard_normal(width).astype(np.float32) * (QUERY_NOISE / np.sqrt(width))
        found.append((int(row), query / np.linalg.norm(query)))
    return found


def memory_mb() -> float:
    """Largest memory of this process so far; what `resource` tells counts the parent's before the start too."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure(engine: str, path: Path, out: Path, n: int) -> dict[str, Any]:
    """Build and search."""
    began, computed = time.perf_counter(), time.process_time()
    search = ENGINES[engine](path, out)
    built_s, build_cpu_s, build_mb = time.perf_counter() - began, time.process_time() - computed, memory_mb()
    took, computing, hits = [], [], 0
    asked = queries(path, EXACT_QUERIES if engine == "exact" else n)
    for row, query in asked:
        began, computed = time.perf_counter(), time.process_time()
        hits += search(query) == row
        took.append(1e3 * (time.perf_counter() - began))
        computing.append(1e3 * (time.process_time() - computed))
    return {
        "build_s": built_s,
        "build_cpu_s": build_cpu_s,
        "peak_mb": build_mb,
        "gb": sum(one.stat().st_size for one in out.rglob("*") if one.is_file()) / 1e9,
        "recall_at_1": hits / len(asked),
        "median_ms": float(np.median(took)),
        "p99_ms": float(np.percentile(took, 99)),
        "cpu_p99_ms": float(np.percentile(computing, 99)),
        "load": os.getloadavg()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["exact", "faiss"])
    parser.add_argument("--folder", type=Path, help="where rows and indexes go: 3 GB for a million of 768 and faiss")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--of", type=Path, help=argparse.SUPPRESS)  # file of rows: measure one engine, print JSON
    args = parser.parse_args()
    if args.of is not None:
        print(json.dumps(measure(args.engines[0], args.of, args.folder / args.engines[0], args.queries)))
        return 0
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "rows.safetensors"
        write_rows(path, args.rows, args.width)
        for engine in args.engines:
            command = [sys.executable, __file__, "--engines", engine, "--of", str(path), "--folder", folder]
            done = subprocess.run(
                [*command, "--queries", str(args.queries)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f"{engine}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            found[engine] = json.loads(done.stdout.splitlines()[-1])
    columns = ("build_s", "build_cpu_s", "peak_mb", "gb", "recall_at_1", "median_ms", "p99_ms", "cpu_p99_ms", "load")
    print_table(
        f"{args.rows:,} x {args.width}",
        ["engine", *columns],
        [[engine, *(f"{one[column]:.4g}" for column in columns)] for engine, one in found.items()],
    )
    if args.json is not None:
        write_json(args.json, {"rows": args.rows, "width": args.width, "engines": found})
    return 0 if len(found) == len(args.engines) else 1


if __name__ == "__main__":
    sys.exit(main())
