"""The image pool against plain cosines."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from rtdecode.decode.pool import ImagePool
from rtdecode.errors import EngineError

RNG = np.random.default_rng(0)


def pool_of(n: int, **options: int) -> tuple[ImagePool, np.ndarray]:
    rows = RNG.standard_normal((n, 4, 8)).astype(np.float16)
    return ImagePool([f"p{i}" for i in range(n)], rows, **options), rows.reshape(n, -1).astype(np.float64)


def test_a_search_is_exact() -> None:
    pool, rows = pool_of(9000)
    query = RNG.standard_normal((4, 8)).astype(np.float32)
    cosines = rows @ query.ravel() / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    found = pool.nearest(query, 5)
    assert pool.exact
    assert [name for name, _ in found] == [f"p{i}" for i in np.argsort(-cosines)[:5]]
    np.testing.assert_allclose([c for _, c in found], np.sort(cosines)[::-1][:5], atol=1e-5)


def test_an_indexed_pool_finds_the_near_ones() -> None:
    pytest.importorskip("faiss")
    pool, rows = pool_of(4000, large=4000)
    assert not pool.exact
    places = RNG.permutation(4000)[:200]
    queries = rows[places] + 0.3 * RNG.standard_normal((200, 32))
    hits = [pool.nearest(q.astype(np.float32), 1)[0][0] == f"p{i}" for q, i in zip(queries, places, strict=True)]
    assert np.mean(hits) > 0.95


def test_what_cannot_be_searched_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="got 1 and 2"):
        ImagePool(["a"], np.ones((2, 3)))
    with pytest.raises(EngineError, match="b: expected an embedding, got zeros"):
        ImagePool(["a", "b"], np.array([[1.0, 0], [0, 0]]))
    with pytest.raises(EngineError, match="a query of 2 values, got 3"):
        ImagePool(["a"], np.ones((1, 2))).nearest(np.ones(3, np.float32), 1)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(EngineError, match="pip install faiss-cpu"):
        ImagePool(["a", "b"], np.eye(2), large=2)
