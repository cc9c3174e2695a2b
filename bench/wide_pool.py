"""A pool of whole token embeddings (256 x 1,664 values each): memory, recall of the exact first, and time of a search.

100,000 of them are 85 GB. Rows are made again from their numbers whenever they are wanted, and the file of the pool
holds only those that a search reads, at their places; all others are holes. Exact search sees every row. Before a cold
search the file is dropped from memory. Rows are unit vectors around centres; queries are rows with noise, of which the
first lie near one row and the last hardly nearer than to their centre.

Exact search takes most of an hour. With ``--times-only`` it is left out: projections are drawn at random, so that a
search reads and compares as much as it would, and finds nothing that means something.

    python bench/wide_pool.py [--rows 100000] [--queries 50] [--times-only] [--quick] [--folder DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _report import print_table, write_json
from numpy.typing import NDArray
from pool import memory_mb

from rtdecode.decode.score.pool import NARROW, ImagePool, narrowed

WIDTH = 256 * 1664
CENTRES = 64
SPREAD = 0.6
QUERY_NOISES = (0.35, 1.0, 3.0)
BLOCK = 32


class MadeRows:
    """Rows of unit length in half precision, the same whenever they are made."""

    def __init__(self, rows: int, width: int) -> None:
        rng = np.random.default_rng(0)
        self.rows, self.width = rows, width
        self._centres = rng.standard_normal((CENTRES, width), np.float32)
        self._noise = rng.standard_normal(16 * width + rows, np.float32)
        self._places = rng.permutation(len(self._noise) - width)[:rows]
        self._centre_of = rng.integers(CENTRES, size=rows)

    def __getitem__(self, row: int) -> NDArray[np.float16]:
        at = self._places[row]
        made = self._centres[self._centre_of[row]] + SPREAD * self._noise[at : at + self.width]
        return (made / np.linalg.norm(made)).astype(np.float16)

    def query(self, row: int, noise: float, seed: int) -> NDArray[np.float32]:
        """Return a row with noise of a length."""
        drawn = np.random.default_rng(seed).standard_normal(self.width, np.float32)
        query = self[row].astype(np.float32) + noise * drawn / np.float32(np.sqrt(self.width))
        return query / np.linalg.norm(query)


class RowsOnDisk(np.memmap):  # type: ignore[type-arg, misc]
    """A mapped file whose rows are written when they are first read."""

    made: MadeRows
    written: set[int]

    def __array_finalize__(self, parent: Any) -> None:
        super().__array_finalize__(parent)
        self.made, self.written = getattr(parent, "made", None), getattr(parent, "written", set())

    def __getitem__(self, rows: Any) -> Any:
        for row in () if self.made is None else np.atleast_1d(rows):
            if row not in self.written:
                self.view(np.ndarray)[row] = self.made[row]
                self.written.add(int(row))
        return self.view(np.ndarray)[rows]


def seen_by_all(made: MadeRows, queries: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the projections of all rows, and the row that is nearest to each query."""
    narrow = np.empty((made.rows, min(NARROW, made.width)), np.float32)
    highest, first = np.full(len(queries), -np.inf, np.float32), np.zeros(len(queries), np.int64)
    for start in range(0, made.rows, BLOCK):
        block = np.stack([made[row] for row in range(start, min(start + BLOCK, made.rows))]).astype(np.float32)
        narrow[start : start + len(block)] = narrowed(block)
        likeness = queries @ (block / np.linalg.norm(block, axis=1, keepdims=True)).T
        best = likeness.max(1)
        first[best > highest] = start + likeness.argmax(1)[best > highest]
        highest = np.maximum(highest, best)
    return narrow, first


def measured(rows: int, width: int, n: int, folder: Path, *, times_only: bool) -> dict[str, Any]:
    made = MadeRows(rows, width)
    chosen = np.random.default_rng(1).permutation(rows)[:n]
    asked = {
        noise: np.stack([made.query(row, noise, 1000 * kind + i) for i, row in enumerate(chosen)])
        for kind, noise in enumerate(QUERY_NOISES[:1] if times_only else QUERY_NOISES)
    }
    began = time.perf_counter()
    if times_only:
        narrow, first = np.random.default_rng(2).standard_normal((rows, min(NARROW, width)), np.float32), None
    else:
        narrow, first = seen_by_all(made, np.concatenate(list(asked.values())))
    exact_s = time.perf_counter() - began

    path = folder / "tokens"
    on_disk = RowsOnDisk(path, np.float16, "w+", shape=(rows, width))
    on_disk.made = made
    before, began = memory_mb(), time.perf_counter()
    pool = ImagePool([str(row) for row in range(rows)], on_disk, narrow=narrow)
    found: dict[str, Any] = {
        "rows": rows,
        "width": width,
        "gb": on_disk.nbytes / 1e9,
        "how": pool.how,
        "exact_pass_s": None if first is None else exact_s,
        "open_s": time.perf_counter() - began,
        "more_peak_mb": memory_mb() - before,
        "queries": [],
    }
    for kind, (noise, some) in enumerate(asked.items()):
        nearest = [int(pool.nearest(query, 1)[0][0]) for query in some]
        figures: dict[str, float] = {"noise": noise, "n": n}
        if first is not None:
            right = first[kind * n : (kind + 1) * n]
            figures["of_its_own_row"] = float(np.mean(right == chosen))
            figures["recall_of_exact_first"] = float(np.mean(right == nearest))
        on_disk.flush()
        found["queries"].append({**figures, **times(pool, path, some), "load": os.getloadavg()[0]})
    return found


def times(pool: ImagePool, path: Path, queries: NDArray[np.float32]) -> dict[str, float]:
    """Search for each query twice: with the file out of memory, and at once again."""
    cold, warm = [], []
    with path.open("rb") as stream:
        for query in queries:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            cold.append(milliseconds(pool, query))
            warm.append(milliseconds(pool, query))
    return {**figures_of("cold", cold), **figures_of("warm", warm)}


def milliseconds(pool: ImagePool, query: NDArray[np.float32]) -> tuple[float, float]:
    """By the clock and of the processor."""
    began, computed = time.perf_counter(), time.process_time()
    pool.nearest(query, 10)
    return 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - computed)


def figures_of(name: str, took: list[tuple[float, float]]) -> dict[str, float]:
    clock, processor = np.transpose(took)
    return {
        f"{name}_ms": float(np.median(clock)),
        f"{name}_p99_ms": float(np.percentile(clock, 99)),
        f"{name}_processor_ms": float(np.median(processor)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=50, help="of each kind")
    parser.add_argument("--times-only", action="store_true", help="no exact search, hence no recall")
    parser.add_argument("--quick", action="store_true", help="few and narrow rows")
    parser.add_argument("--folder", type=Path, help="where the file goes: 3 GB of it are written")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows, width, n = (40_000, 4096, 5) if args.quick else (args.rows, WIDTH, args.queries)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measured(rows, width, n, Path(folder), times_only=args.times_only)
    print(found["how"])
    kinds = found["queries"]
    print_table(
        f"{rows:,} x {width:,}, {found['gb']:.2g} GB; opened in {found['open_s']:.0f} s",
        list(kinds[0]),
        [[f"{value:.4g}" for value in one.values()] for one in kinds],
    )
    if args.json is not None:
        write_json(args.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
