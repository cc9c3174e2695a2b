"""What a session asks a pool with, and in which order it tells what was found, against plain cosines."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from engines.pool.disk_index import build_pool
from rtdecode.decode.loading import _search
from rtdecode.decode.score.disk_pool import DiskPool
from rtdecode.decode.score.search import PictureSearch
from rtdecode.errors import EngineError
from rtdecode.settings import DecodeSettings

COUNT, CHANNELS = 4, 16
TOKENS = np.random.default_rng(0).standard_normal((60, COUNT, CHANNELS)).astype(np.float32)
NAMES = [f"p{i}" for i in range(60)]
PACK: Any = SimpleNamespace(
    name="pack",
    description=SimpleNamespace(
        tokens=SimpleNamespace(count=COUNT, channels=CHANNELS), stages={"embedder": SimpleNamespace(file="e")}
    ),
    digest=lambda _: "embedder",
)


class WithFinal:
    """Holds the final embedding in the last token."""

    final_width = CHANNELS

    def final(self, tokens: NDArray[Any]) -> NDArray[Any]:
        return tokens[-1]


def pool_of(folder: Path, rows: NDArray[np.float32]) -> DiskPool:
    folder.mkdir()
    save_file(
        {"tokens": np.ascontiguousarray(rows)},
        folder / "rows.safetensors",
        metadata={"names": json.dumps(NAMES), "embedder": "embedder"},
    )
    build_pool([folder / "rows.safetensors"], folder / "pool")
    return DiskPool(folder / "pool")


def cosines(rows: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float64]:
    flat, one = rows.reshape(len(rows), -1).astype(np.float64), query.ravel().astype(np.float64)
    return np.asarray(flat @ one / np.linalg.norm(flat, axis=1) / np.linalg.norm(one))


def search_of(pool: DiskPool, pipeline: Any, tokens: Path | None = None) -> PictureSearch:
    return _search(pool, DecodeSettings(pool=Path("pool"), pool_tokens=tokens), PACK, pipeline)


def test_a_pool_of_final_embeddings_is_searched_by_the_one_that_the_tokens_hold(tmp_path: Path) -> None:
    query = TOKENS[7] + 0.7 * np.random.default_rng(1).standard_normal((COUNT, CHANNELS)).astype(np.float32)
    near = np.argsort(-cosines(TOKENS[:, -1], query[-1]))
    pool = pool_of(tmp_path / "final", TOKENS[:, -1:])
    found = search_of(pool, WithFinal()).of(query)
    assert list(found.nearest) == [NAMES[i] for i in near[:5]]
    path = tmp_path / "tokens.safetensors"
    save_file({"tokens": TOKENS}, path, metadata={"names": json.dumps(NAMES), "embedder": "embedder"})
    search = search_of(pool, WithFinal(), path)
    by_tokens = cosines(TOKENS[near[:16]], query)
    order = np.argsort(-by_tokens)[:5]
    ordered = search.of(query).nearest
    assert list(ordered) == [NAMES[near[i]] for i in order]
    np.testing.assert_allclose(list(ordered.values()), by_tokens[order], atol=1e-5)
    assert list(ordered) != list(found.nearest)
    assert search.how.endswith("; 16 candidates in the order of their tokens")


def test_a_pool_of_all_tokens_is_searched_by_all(tmp_path: Path) -> None:
    query = TOKENS[7] + 0.7 * np.random.default_rng(1).standard_normal((COUNT, CHANNELS)).astype(np.float32)
    near = np.argsort(-cosines(TOKENS, query))[:5]
    pool = pool_of(tmp_path / "whole", TOKENS)
    for pipeline in (WithFinal(), object()):
        assert list(search_of(pool, pipeline).of(query).nearest) == [NAMES[i] for i in near]


def test_a_pool_or_tokens_of_another_size_are_refused_at_the_start(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "final", TOKENS[:, -1:])
    with pytest.raises(EngineError, match="expected a pool of 4 x 16 values as pack pack decodes, got one of 16"):
        search_of(pool, object())
    path = tmp_path / "tokens.safetensors"
    save_file(
        {"tokens": np.ascontiguousarray(TOKENS[:, :2])},
        path,
        metadata={"names": json.dumps(NAMES), "embedder": "embedder"},
    )
    with pytest.raises(EngineError, match=r"expected tokens of shape \(4, 16\) as pack pack has, got \(2, 16\)"):
        search_of(pool, WithFinal(), path)
