"""Makes an index of embeddings on the disk, a shard at a time: what is done stays when the next step is interrupted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from rtdecode.decode.score.disk_pool import (
    POOL,
    TRAINED,
    PoolDescription,
    ShardTable,
    import_faiss,
    read_pool,
)
from rtdecode.decode.score.mapped import map_tensor
from rtdecode.errors import TrainingError

SHARD_ROWS = 250_000
_A_CELL = 39
"""Rows of each cell to train on; fewer make faiss warn."""
_MOST_CELLS = 2048
_PROBED = 1 / 186
_LEAST_PROBED = 8
"""Of small pools, whose cells are quickly looked into."""
_ROUNDS = 10
"""Of the clustering that finds the cells."""
_BLOCK = 16_384


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """Embeddings of one file: ``tokens`` (n, ...) and, in the metadata, ``names`` and the ``embedder``."""

    path: Path
    names: list[str]
    width: int
    embedder: str

    def rows(self, first: int, last: int) -> NDArray[np.float32]:
        """Rows from one to another, each of length 1.

        Raises
        ------
        TrainingError
            A row is zero or no number.
        """
        with safe_open(self.path, framework="numpy") as file:
            found = np.asarray(file.get_slice("tokens")[first:last], np.float32).reshape(last - first, -1)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        wrong = ~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0)
        if wrong.any():
            name = self.names[first + int(np.argmax(wrong))]
            raise TrainingError(f"{self.path}: {name}: expected an embedding, got zeros or NaN")
        return np.ascontiguousarray(found / lengths)

    def by_name(self) -> Mapping[str, NDArray[Any]]:
        """Return the rows by their names, mapped from the disk."""
        return dict(zip(self.names, map_tensor(self.path, "tokens"), strict=True))


def open_source(path: Path) -> Source:
    """Open a file of ``rtdecode engines embed``.

    Raises
    ------
    TrainingError
        It is none.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            shape, said = file.get_slice("tokens").get_shape(), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: expected embeddings of rtdecode engines embed: {error}") from None
    names = json.loads(said.get("names", "[]"))
    if len(names) != shape[0]:
        raise TrainingError(f"{path}: expected a name for each of {shape[0]} rows, got {len(names)}")
    return Source(path=path, names=names, width=int(np.prod(shape[1:])), embedder=said.get("embedder", ""))


def build_pool(
    sources: Sequence[Path],
    out: Path,
    *,
    shard_rows: int = SHARD_ROWS,
    cells: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PoolDescription:
    """Train an index on the rows of some files and add them; what a folder holds already is left.

    Parameters
    ----------
    sources : sequence of Path
    out : Path
        Folder of the pool. Where it is there, rows are added that it does not hold, and nothing is trained.
    shard_rows : int
        Rows that are added and written together.
    cells : int, optional
        Of the index; by default four times the root of the number of rows, as far as there are rows to train on.
    progress : callable, optional
        Is told how many of how many rows are in the pool.

    Raises
    ------
    TrainingError
        A file is none of embeddings, or of another width or embedder than the others.
    """
    faiss = import_faiss()
    opened = [open_source(path) for path in sources]
    said = read_pool(out) if (out / POOL).is_file() else _trained(opened, out, cells)
    tell = progress or _untold
    for source in opened:
        if (source.width, source.embedder) != (said.width, said.embedder):
            raise TrainingError(
                f"{source.path}: expected rows of {said.width} values by the embedder of the pool, got {source.width}"
            )
    total = sum(len(source.names) for source in opened)
    done, held = 0, {shard.source for shard in said.shards}
    for source in opened:
        for first in range(0, len(source.names), shard_rows):
            last = min(first + shard_rows, len(source.names))
            key = f"{source.path.name}:{first}-{last}"
            if key not in held:
                index = faiss.read_index(str(out / TRAINED))
                for start in range(first, last, _BLOCK):
                    index.add(source.rows(start, min(start + _BLOCK, last)))
                    tell(done + start - first, total)
                number = len(said.shards)
                shard = ShardTable(
                    index=f"shard-{number:04d}.index", names=f"names-{number:04d}.json", rows=last - first, source=key
                )
                faiss.write_index(index, str(out / shard.index))
                (out / shard.names).write_text(json.dumps(source.names[first:last]), encoding="utf-8")
                said = msgspec.structs.replace(said, shards=[*said.shards, shard])
                _write(out, said)
            done += last - first
            tell(done, total)
    return said


def _untold(done: int, total: int) -> None:  # noqa: ARG001 - the shape of a progress
    return


def _trained(sources: Sequence[Source], out: Path, cells: int | None) -> PoolDescription:
    faiss = import_faiss()
    total = sum(len(source.names) for source in sources)
    width = sources[0].width
    n_cells = cells or max(1, min(int(4 * np.sqrt(total)), total // _A_CELL, _MOST_CELLS))
    sample = np.concatenate(list(_sample(sources, min(total, _A_CELL * n_cells), total)))
    quantizer = faiss.IndexFlatIP(width)
    kind = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(quantizer, width, n_cells, kind, faiss.METRIC_INNER_PRODUCT, False)
    index.cp.niter = _ROUNDS
    index.train(sample)
    out.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index, str(out / TRAINED))
    said = PoolDescription(
        schema="rtdecode.pool/1",
        width=width,
        cells=n_cells,
        probed=min(n_cells, max(_LEAST_PROBED, round(_PROBED * n_cells))),
        embedder=sources[0].embedder,
        shards=[],
    )
    _write(out, said)
    return said


def _sample(sources: Sequence[Source], wanted: int, total: int) -> Iterator[NDArray[np.float32]]:
    """Rows spread evenly over all files, in blocks that are read at once."""
    blocks = [(source, at) for source in sources for at in range(0, len(source.names), _BLOCK)]
    share = wanted / total
    rng = np.random.default_rng(0)
    for source, first in blocks:
        last = min(first + _BLOCK, len(source.names))
        count = max(1, int(np.ceil(share * (last - first))))
        rows = source.rows(first, last)
        yield rows[np.sort(rng.permutation(len(rows))[:count])]


def _write(out: Path, said: PoolDescription) -> None:
    draft = out / f".{POOL}"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(said), indent=1) + b"\n")
    os.replace(draft, out / POOL)
