"""A pool of pictures to search by their embeddings: exactly, or by an index where it is very large."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from rtdecode.bundle import EnginePack
from rtdecode.errors import EngineError

LARGE = 100_000
"""Pictures from which an index is worth its approximation."""
_BLOCK = 4096
_PROBED = 0.1
"""Share of an index's cells that a search looks into."""


class ImagePool:
    """Pictures and their embeddings.

    Parameters
    ----------
    names : sequence of n str
    embeddings : ndarray of shape (n, ...)
        Flattened; of any float type, and may be mapped from disk.
    large : int
        From this number on the pool is indexed (inverted file of FAISS; Johnson et al. 2019), and answers may miss a
        near picture.

    Raises
    ------
    EngineError
        Names and embeddings are not of one length, an embedding is zero, or the index's library is missing.
    """

    def __init__(self, names: Sequence[str], embeddings: NDArray[Any], *, large: int = LARGE) -> None:
        if len(names) != len(embeddings) or not len(names):
            raise EngineError(f"pool: expected a name for each embedding, got {len(names)} and {len(embeddings)}")
        self.names = tuple(names)
        self._rows = embeddings.reshape(len(embeddings), -1)
        self._norms = np.concatenate([np.linalg.norm(block, axis=1) for block in self._blocks()])
        if not (self._norms > 0).all():
            raise EngineError(f"pool: {self.names[int(np.argmin(self._norms))]}: expected an embedding, got zeros")
        self._index = self._indexed() if len(names) >= large else None

    @property
    def exact(self) -> bool:
        """Whether every search looks at every picture."""
        return self._index is None

    def nearest(self, query: NDArray[np.floating[Any]], k: int) -> list[tuple[str, float]]:
        """Return the `k` most similar pictures and their cosines, best first.

        Parameters
        ----------
        query : ndarray of shape (...)
            Of as many values as an embedding.
        k : int
        """
        unit = np.asarray(query, np.float32).reshape(-1)
        if unit.size != self._rows.shape[1]:
            raise EngineError(f"pool: expected a query of {self._rows.shape[1]} values, got {unit.size}")
        unit = unit / np.linalg.norm(unit)
        k = min(k, len(self.names))
        if self._index is not None:
            cosines, places = self._index.search(unit[None], k)
            return [(self.names[i], float(c)) for i, c in zip(places[0], cosines[0], strict=True) if i >= 0]
        every = np.concatenate([block @ unit for block in self._blocks()]) / self._norms
        best = np.argsort(-every, kind="stable")[:k]
        return [(self.names[i], float(every[i])) for i in best]

    def _blocks(self) -> Any:
        for start in range(0, len(self._rows), _BLOCK):
            yield np.asarray(self._rows[start : start + _BLOCK], np.float32)

    def _indexed(self) -> Any:
        try:
            import faiss
        except ImportError as error:
            raise EngineError(
                f"a pool of {len(self.names)} pictures wants an index: pip install faiss-cpu ({error})"
            ) from None
        width, cells = self._rows.shape[1], max(1, int(4 * np.sqrt(len(self.names))))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
        sample = np.random.default_rng(0).permutation(len(self.names))[: 40 * cells]
        index.train(np.asarray(self._rows[np.sort(sample)], np.float32) / self._norms[np.sort(sample), None])
        done = 0
        for block in self._blocks():
            index.add(block / self._norms[done : done + len(block), None])
            done += len(block)
        index.nprobe = max(1, int(_PROBED * cells))
        return index


def open_pool(path: Path, pack: EnginePack, *, large: int = LARGE) -> ImagePool:
    """Open what ``rtdecode engines embed`` has written.

    Parameters
    ----------
    path : Path
        Safetensors file.
    pack : EnginePack
        The one that decodes.
    large : int
        See `ImagePool`.

    Raises
    ------
    EngineError
        The file cannot be read, or another embedder embedded the pictures.
    """
    try:
        with safe_open(path, framework="numpy") as stored:
            tokens, said = stored.get_tensor("tokens"), stored.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise EngineError(f"{path}: expected embeddings of rtdecode engines embed: {error}") from None
    embedder = pack.config["stages"].get("embedder", {}).get("file", "")
    if not embedder or said.get("embedder") != pack.digest(embedder):
        raise EngineError(f"{path}: expected pictures embedded by the embedder of pack {pack.name}; embed them anew")
    return ImagePool(json.loads(said["names"]), tokens, large=large)
