"""The image pool against plain cosines."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from rtdecode.decode.score import pool as pool_module
from rtdecode.decode.score.pool import NARROW, ImagePool, narrowed
from rtdecode.errors import EngineError

RNG = np.random.default_rng(0)


def pool_of(n: int, shape: tuple[int, ...] = (4, 8), **options: int) -> tuple[ImagePool, np.ndarray]:
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
@pytest.mark.parametrize("options", [{"exact_bytes": 0}, {"exact_bytes": 0, "narrow_bytes": 0}])
def test_a_large_pool_finds_the_near_ones(shape: tuple[int, int], options: dict[str, int]) -> None:
    if "narrow_bytes" in options:
        pytest.importorskip("faiss")
    pool, rows = pool_of(4000, shape, **options)
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
        ImagePool(["a", "b"], np.array([[1.0, 0], [0, 0]]), exact_bytes=0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(EngineError, match="pip install faiss-cpu"):
        ImagePool(["a", "b"], np.eye(2), exact_bytes=0, narrow_bytes=0)


def test_bytes_decide_how_a_pool_is_searched_and_it_says_so() -> None:
    """Two thousand pictures of the published size are 1.7 GB: to read them all takes seconds, and few are many."""
    full = 256 * 1664
    few, many = (
        ImagePool([str(i) for i in range(n)], np.broadcast_to(np.float16(1), (n, full)), narrow=np.ones((n, 4), "f4"))
        for n in (20, 2000)
    )
    assert few.exact
    assert few.how == "20 pictures, each compared"
    assert not many.exact
    assert many.how == ("2,000 pictures of 1.7 GB, found by projections on 4 values; the 19 found first are compared")
    small, _ = pool_of(9000)  # more pictures, fewer bytes
    assert small.exact


def test_of_wide_embeddings_only_so_many_bytes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    real = pool_module.row_cosines

    def counted(query: np.ndarray, rows: np.ndarray, **options: Any) -> np.ndarray:
        compared.append(rows.nbytes)
        return real(query, rows, **options)

    monkeypatch.setattr(pool_module, "row_cosines", counted)
    centres = RNG.standard_normal((60, 200_000)).astype(np.float32)
    pool = ImagePool([f"p{i}" for i in range(120)], np.repeat(centres, 2, 0).astype(np.float16), exact_bytes=1 << 20)
    query = centres[7] + 0.5 * RNG.standard_normal(200_000).astype(np.float32)
    found = pool.nearest(query, 2)
    assert {name for name, _ in found} == {"p14", "p15"}
    assert compared == [41 * 400_000]
    assert compared[0] <= 16 << 20
