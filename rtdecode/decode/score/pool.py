"""A pool of pictures to search by their embeddings: exactly while that is quick, else by an index.

What is quick is told by bytes, and not by time: a session that is computed again must find the same. The sizes are such
that a search takes at most 50 ms on one core that makes 0.75 GB/s of float16 into float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from scipy.fft import dct

from rtdecode.decode.score.mapped import map_tensor
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.statistics import row_cosines

EXACT_BYTES = 24 << 20
"""Embeddings up to this size are compared one by one."""
_NARROW_BYTES = 128 << 20
"""So are their projections up to this size, float32; beyond it these are indexed."""
_COMPARED_BYTES = 16 << 20
"""Embeddings of so many bytes are compared one by one of those that projections or index find."""
_BLOCK_BYTES = 16 << 20
NARROW = 1024
"""Values of an embedding that an index holds; wider ones are projected."""
PROJECTED = "narrow"
"""Tensor of the projections, beside the embeddings of a large pool."""
_PROBED = 0.1
"""Share of an index's cells that a search looks into."""
_A_CELL = 40
"""Pictures a cell that its centre is learned from."""
_COMPARED = 200
"""So many pictures at most are compared of those found."""


class ImagePool:
    """Pictures and their embeddings.

    Parameters
    ----------
    names : sequence of n str
    embeddings : ndarray of shape (n, ...)
        Of any float type; they may be mapped from the disk, and are then read in blocks.
    narrow : ndarray of shape (n, m), float32, or None
        As `narrowed` makes of them, for the index; None computes it.
    exact_bytes, narrow_bytes : int
        Embeddings of more than so many bytes are found by their random projections, and projections of more by an
        inverted file of FAISS (Johnson et al. 2019): answers may then miss a near picture. The cosines told are exact
        all the same.

    Attributes
    ----------
    how : str
        How it is searched, in words.

    Raises
    ------
    EngineError
        Names and embeddings are not of one length, an embedding is zero, or the index's library is missing.
    """

    def __init__(
        self,
        names: Sequence[str],
        embeddings: NDArray[Any],
        *,
        narrow: NDArray[np.float32] | None = None,
        exact_bytes: int = EXACT_BYTES,
        narrow_bytes: int = _NARROW_BYTES,
    ) -> None:
        if len(names) != len(embeddings) or not len(names):
            raise EngineError(f"pool: expected a name for each embedding, got {len(names)} and {len(embeddings)}")
        self.names = tuple(names)
        self._rows = embeddings.reshape(len(embeddings), -1)
        self._at_once = max(1, _BLOCK_BYTES // max(1, self._rows.nbytes // len(names)))
        self._find: Callable[[NDArray[np.float32], int], NDArray[np.int64]] | None = None
        self.how = f"{len(names):,} pictures, each compared"
        if self._rows.nbytes <= exact_bytes:
            self._norms = np.concatenate([np.linalg.norm(block, axis=1) for block in self._blocks()])
            self._check(self._norms > 0)
            return
        if narrow is None:
            narrow = np.concatenate([narrowed(block) for block in self._blocks()])
        self._check(np.asarray(np.isfinite(narrow).all(1)))
        means = f"projections on {narrow.shape[1]} values"
        if narrow.nbytes <= narrow_bytes:
            self._find = _compared(narrow)
        else:
            means, self._find = f"an index of {means}", _indexed(narrow)
        self._candidates = min(_COMPARED, max(1, _COMPARED_BYTES * len(names) // self._rows.nbytes))
        self.how = (
            f"{len(names):,} pictures of {self._rows.nbytes / 1e9:.2g} GB, found by {means}; "
            f"the {self._candidates} found first are compared"
        )

    @property
    def exact(self) -> bool:
        """Whether every search looks at every picture."""
        return self._find is None

    def nearest(self, query: NDArray[np.floating[Any]], k: int) -> list[tuple[str, float]]:
        """Return the `k` most similar pictures and their cosines, best first.

        Parameters
        ----------
        query : ndarray of shape (...)
            Of as many values as an embedding.
        k : int
        """
        flat = np.asarray(query, np.float32).reshape(-1)
        if flat.size != self._rows.shape[1]:
            raise EngineError(f"pool: expected a query of {self._rows.shape[1]} values, got {flat.size}")
        if self._find is None:
            every = row_cosines(flat, self._rows, norms=self._norms, at_once=self._at_once)
            best = np.argsort(-every, kind="stable")[:k]
            return [(self.names[i], float(every[i])) for i in best]
        near = np.sort(self._find(narrowed(flat[None] / np.linalg.norm(flat))[0], max(k, self._candidates)))
        cosines = row_cosines(flat, self._rows[near])
        best = np.argsort(-cosines, kind="stable")[:k]
        return [(self.names[near[i]], float(cosines[i])) for i in best]

    def _blocks(self) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(self._rows), self._at_once):
            yield np.asarray(self._rows[start : start + self._at_once], np.float32)

    def _check(self, right: NDArray[np.bool_]) -> None:
        if not right.all():
            raise EngineError(f"pool: {self.names[int(np.argmin(right))]}: expected an embedding, got zeros")


def _compared(narrow: NDArray[np.float32]) -> Callable[[NDArray[np.float32], int], NDArray[np.int64]]:
    rows = np.ascontiguousarray(narrow)  # in memory: all of it is read in every search

    def find(query: NDArray[np.float32], n: int) -> NDArray[np.int64]:
        likeness = rows @ query
        return np.argpartition(-likeness, min(n, len(rows)) - 1)[:n]

    return find


def _indexed(narrow: NDArray[np.float32]) -> Callable[[NDArray[np.float32], int], NDArray[np.int64]]:
    try:
        import faiss
    except ImportError as error:
        raise EngineError(f"a pool of {len(narrow)} pictures wants an index: pip install faiss-cpu ({error})") from None
    n, width = narrow.shape
    cells = max(1, min(int(4 * np.sqrt(n)), n // _A_CELL))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    index.train(narrow[np.sort(np.random.default_rng(0).permutation(n)[: _A_CELL * cells])])
    index.add(narrow)
    index.nprobe = max(1, int(_PROBED * cells))

    def find(query: NDArray[np.float32], n: int) -> NDArray[np.int64]:
        found: NDArray[np.int64] = index.search(query[None], n)[1][0]
        return found[found >= 0]

    return find


def narrowed(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Make unit rows of at most `NARROW` values, with nearly the cosines of the rows (n, m) given.

    Wider rows are given random signs, and some values of their cosine transform are kept (Ailon & Chazelle 2009).
    """
    values = np.asarray(rows, np.float32)
    if values.shape[1] > NARROW:
        signs, kept = _projection(values.shape[1])
        values = dct(values * signs, norm="ortho", axis=1)[:, kept]
    with np.errstate(invalid="ignore"):
        return np.ascontiguousarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32)


@cache
def _projection(width: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return rng.choice(np.array([-1, 1], np.float32), width), rng.permutation(width)[:NARROW]


def open_pool(path: Path, pack: EnginePack, *, exact_bytes: int = EXACT_BYTES) -> ImagePool:
    """Open what ``rtdecode engines embed`` has written.

    Parameters
    ----------
    path : Path
        Safetensors file.
    pack : EnginePack
        The one that decodes.
    exact_bytes : int
        See `ImagePool`.

    Raises
    ------
    EngineError
        The file cannot be read, or another embedder embedded the pictures.
    """
    known, names = _described(path, pack)
    narrow = map_tensor(path, PROJECTED) if PROJECTED in known else None
    return ImagePool(names, map_tensor(path, "tokens"), narrow=narrow, exact_bytes=exact_bytes)


def embedding_in(path: Path, pack: EnginePack, name: str) -> NDArray[Any] | None:
    """Return the tokens (t, d) of one picture of such a file; None if it is not in it; errors as of `open_pool`."""
    names = _described(path, pack)[1]
    return map_tensor(path, "tokens")[names.index(name)] if name in names else None


def tokens_in(path: Path, pack: EnginePack) -> Mapping[str, NDArray[Any]]:
    """Return the tokens (t, d) of every picture of such a file by its name, mapped; errors as of `open_pool`.

    Raises
    ------
    EngineError
        As of `open_pool`, or they are of another shape than those of the pack.
    """
    names, rows = _described(path, pack)[1], map_tensor(path, "tokens")
    wanted = pack.description.tokens.count, pack.description.tokens.channels
    if rows.shape[1:] != wanted:
        raise EngineError(f"{path}: expected tokens of shape {wanted} as pack {pack.name} has, got {rows.shape[1:]}")
    return dict(zip(names, rows, strict=True))


def _described(path: Path, pack: EnginePack) -> tuple[set[str], list[str]]:
    """Return the tensors of a file of embeddings and the names of its pictures."""
    try:
        with safe_open(path, framework="numpy") as stored:
            stored.get_slice("tokens")
            known, said = set(stored.keys()), stored.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise EngineError(f"{path}: expected embeddings of rtdecode engines embed: {error}") from None
    embedder = pack.description.stages.get("embedder")
    if embedder is None or said.get("embedder") != pack.digest(embedder.file):
        raise EngineError(f"{path}: expected pictures embedded by the embedder of pack {pack.name}; embed them anew")
    return known, list(json.loads(said["names"]))
