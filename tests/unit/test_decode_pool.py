"""The image pool against plain cosines."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from rtdecode.decode.score.pool import NARROW, ImagePool, narrowed
from rtdecode.errors import EngineError

RNG = np.random.default_rng(0)


def pool_of(n: int, shape: tuple[int, int] = (4, 8), **options: int) -> tuple[ImagePool, np.ndarray]:
    rows = RNG.standard_normal((n, *shape)).astype(np.float16)
    return ImagePool([f"p{i}" for i in range(n)], rows, **options), rows.reshape(n, -1).astype(np.float64)


def test_a_search_is_exact() -> None:
    pool, rows = pool_of(9000)
    query = RNG.standard_normal((4, 8)).astype(np.float32)
    cosines = rows @ query.ravel() / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    found = pool.nearest(query, 5)
    assert pool.exact
    assert [name for name, _ in found] == [f"p{i}" for i in np.argsort(-cosines)[:5]]
    np.testing.assert_allclose([c for _, c in found], np.sort(cosines)[::-1][:5], atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 8), (4, 500)])
def test_an_indexed_pool_finds_the_near_ones(shape: tuple[int, int]) -> None:
    pytest.importorskip("faiss")
    pool, rows = pool_of(4000, shape, large=4000)
    assert not pool.exact
    places = RNG.permutation(4000)[:200]
    queries = rows[places] + 0.3 * RNG.standard_normal((200, rows.shape[1]))
    hits = 0
    for query, place in zip(queries.astype(np.float32), places, strict=True):
        (name, cosine), *others = pool.nearest(query, 3)
        hits += name == f"p{place}"
        own = rows[int(name[1:])]
        assert cosine == pytest.approx(own @ query / np.linalg.norm(own) / np.linalg.norm(query), abs=1e-5)
        assert [cosine, *(c for _, c in others)] == sorted([cosine, *(c for _, c in others)], reverse=True)
    assert hits / len(places) > 0.95


def test_projections_keep_cosines() -> None:
    rows = RNG.standard_normal((6, 20_000)) + RNG.standard_normal(20_000)
    cosines = [
        (one / np.linalg.norm(one, axis=1, keepdims=True)) @ (one / np.linalg.norm(one, axis=1, keepdims=True)).T
        for one in (rows, narrowed(rows).astype(np.float64))
    ]
    assert narrowed(rows).shape == (6, NARROW)
    np.testing.assert_allclose(cosines[1], cosines[0], atol=4 * NARROW**-0.5)
    few = RNG.standard_normal((3, 8))
    np.testing.assert_allclose(narrowed(few), few / np.linalg.norm(few, axis=1, keepdims=True), rtol=1e-5)


def test_what_cannot_be_searched_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="got 1 and 2"):
        ImagePool(["a"], np.ones((2, 3)))
    with pytest.raises(EngineError, match="b: expected an embedding, got zeros"):
        ImagePool(["a", "b"], np.array([[1.0, 0], [0, 0]]))
    with pytest.raises(EngineError, match="a query of 2 values, got 3"):
        ImagePool(["a"], np.ones((1, 2))).nearest(np.ones(3, np.float32), 1)
    with pytest.raises(EngineError, match="b: expected an embedding, got zeros"):
        ImagePool(["a", "b"], np.array([[1.0, 0], [0, 0]]), large=2)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(EngineError, match="pip install faiss-cpu"):
        ImagePool(["a", "b"], np.eye(2), large=2)
