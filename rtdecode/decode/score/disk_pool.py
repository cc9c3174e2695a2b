"""A pool of pictures in an index on the disk, for more of them than memory holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rtdecode.errors import EngineError
from rtdecode.typed import Table, checked

POOL = "pool.json"
TRAINED = "trained.index"


class ShardTable(Table, frozen=True, kw_only=True):
    """Rows that were added together.

    Attributes
    ----------
    index, names : str
        Files of the rows, and of their names in order.
    rows : int
    source : str
        File that they come from, and from which row on.
    """

    index: str
    names: str
    rows: int
    source: str


class PoolDescription(Table, frozen=True, kw_only=True):
    """Content of ``pool.json``.

    Attributes
    ----------
    schema : str
        ``rtdecode.pool/1``.
    width : int
        Values of an embedding.
    cells, probed : int
        Cells of the index, and how many a search looks into.
    embedder : str
        SHA-256 of the embedder, as its embeddings say; empty where they do not.
    shards : list of ShardTable
    """

    schema: Literal["rtdecode.pool/1"]
    width: int
    cells: int
    probed: int
    embedder: str
    shards: list[ShardTable]


def read_pool(folder: Path) -> PoolDescription:
    """Read what ``pool.json`` says.

    Raises
    ------
    EngineError
        It is missing or says something else.
    """
    path = folder / POOL
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: expected a pool of rtdecode engines pool build ({error})") from None
    found: PoolDescription = checked(raw, PoolDescription, source=str(path), error=EngineError)
    return found


class DiskPool:
    """A pool that is searched on the disk: an inverted file of half-precision rows, mapped into memory.

    Parameters
    ----------
    folder : Path
        Of ``rtdecode engines pool build``.

    Raises
    ------
    EngineError
        The pool cannot be read, holds no rows, or faiss is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.description = said = read_pool(folder)
        if not said.shards:
            raise EngineError(f"{folder}: expected rows, got none: rtdecode engines pool add")
        faiss = import_faiss()
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        self._shards: list[tuple[Any, list[str]]] = []
        for shard in said.shards:
            try:
                index = faiss.read_index(str(folder / shard.index), flags)
            except RuntimeError as error:
                raise EngineError(f"{folder / shard.index}: cannot be read, build the pool again ({error})") from None
            index.nprobe = said.probed
            self._shards.append((index, json.loads((folder / shard.names).read_text(encoding="utf-8"))))
        rows = sum(shard.rows for shard in said.shards)
        self.how = f"{rows:,} pictures on the disk, {said.probed} of {said.cells} cells looked into"

    def nearest(self, query: NDArray[np.floating[Any]], k: int) -> list[tuple[str, float]]:
        """Return the `k` most similar pictures found and their cosines, best first; see `ImagePool.nearest`."""
        flat = np.asarray(query, np.float32).reshape(1, -1)
        if flat.size != self.description.width:
            raise EngineError(f"pool: expected a query of {self.description.width} values, got {flat.size}")
        unit = flat / np.linalg.norm(flat)
        found: list[tuple[str, float]] = []
        for index, names in self._shards:
            likeness, rows = index.search(unit, k)
            found += [(names[row], float(one)) for row, one in zip(rows[0], likeness[0], strict=True) if row >= 0]
        return sorted(found, key=lambda pair: -pair[1])[:k]


def import_faiss() -> Any:
    """Import what indexes are made and searched with.

    Raises
    ------
    EngineError
        It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise EngineError(f"a pool on the disk needs faiss: pip install faiss-cpu ({error})") from None
    return faiss
