"""Pools on the disk against plain exact search; interrupted builds; the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from engines.pool import disk_index
from engines.pool.disk_index import build_pool
from rtdecode.__main__ import main
from rtdecode.decode.score.disk_pool import DiskPool, read_pool
from rtdecode.errors import EngineError, TrainingError

WIDTH = 24


def embeddings(path: Path, n: int, seed: int, width: int = WIDTH, **said: str) -> np.ndarray[Any, Any]:
    """Rows around a hundred centres, as pictures of a hundred subjects would be."""
    centres = np.random.default_rng(0).standard_normal((100, width))
    rng = np.random.default_rng(seed)
    rows = (centres[rng.integers(100, size=n)] + 0.5 * rng.standard_normal((n, width))).astype(np.float32)
    names = [f"{path.stem}-{i}" for i in range(n)]
    save_file({"tokens": rows[:, None]}, path, metadata={"names": json.dumps(names), **said})
    return rows


@pytest.fixture
def two(tmp_path: Path) -> tuple[list[Path], np.ndarray[Any, Any], list[str]]:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    rows = np.concatenate([embeddings(path, 3000, seed) for seed, path in enumerate(paths)])
    return paths, rows, [f"{path.stem}-{i}" for path in paths for i in range(3000)]


def test_what_is_found_is_what_exact_search_finds(
    two: tuple[list[Path], np.ndarray[Any, Any], list[str]], tmp_path: Path
) -> None:
    paths, rows, names = two
    build_pool(paths, tmp_path / "pool", shard_rows=2000)
    pool = DiskPool(tmp_path / "pool")
    assert pool.how == "6,000 pictures on the disk, 8 of 153 cells looked into"  # the least: 1 in 186 would be 1
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    rng = np.random.default_rng(5)
    queries = rows[rng.permutation(6000)[:200]] + 0.1 * rng.standard_normal((200, WIDTH)).astype(np.float32)
    exact = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ unit.T
    found = [pool.nearest(query, 3) for query in queries]
    assert np.mean([names[int(i)] == one[0][0] for i, one in zip(exact.argmax(1), found, strict=True)]) >= 0.95
    for likeness, one in zip(exact, found, strict=True):
        for name, cosine in one:
            assert cosine == pytest.approx(float(likeness[names.index(name)]), abs=2e-3)  # rows are kept as halves


def test_a_build_goes_on_where_it_was_interrupted(
    two: tuple[list[Path], np.ndarray[Any, Any], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, rows, _ = two
    write = disk_index._write

    def dying(out: Path, said: Any) -> None:
        if len(said.shards) == 3:
            raise KeyboardInterrupt
        write(out, said)

    monkeypatch.setattr(disk_index, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        build_pool(paths, tmp_path / "pool", shard_rows=1000)
    monkeypatch.setattr(disk_index, "_write", write)
    kept = (tmp_path / "pool" / "shard-0000.index").stat().st_mtime_ns
    assert len(read_pool(tmp_path / "pool").shards) == 2
    said = build_pool(paths, tmp_path / "pool", shard_rows=1000)
    assert [shard.rows for shard in said.shards] == [1000] * 6
    assert (tmp_path / "pool" / "shard-0000.index").stat().st_mtime_ns == kept
    build_pool(paths, tmp_path / "whole", shard_rows=6000)
    query = rows[17]
    assert DiskPool(tmp_path / "pool").nearest(query, 5) == DiskPool(tmp_path / "whole").nearest(query, 5)


def test_the_commands_build_add_and_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("a", "b")):
        embeddings(tmp_path / f"{name}.safetensors", 500, seed)
    pool = str(tmp_path / "pool")
    assert main(["engines", "pool", "build", pool, str(tmp_path / "a.safetensors")]) == 0
    assert main(["engines", "pool", "add", pool, str(tmp_path / "b.safetensors")]) == 0
    assert "1,000 pictures in 2 shards" in capsys.readouterr().out
    assert main(["engines", "pool", "search", pool, str(tmp_path / "b.safetensors"), "-k", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    own = [line.partition(": ")[0] == line.partition(": ")[2].split(" ")[0] for line in lines]
    assert len(own) == 500
    assert np.mean(own) > 0.95


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    embeddings(tmp_path / "a.safetensors", 200, 0)
    build_pool([tmp_path / "a.safetensors"], tmp_path / "pool")
    embeddings(tmp_path / "wide.safetensors", 200, 0, width=30)
    with pytest.raises(TrainingError, match="expected rows of 24 values"):
        build_pool([tmp_path / "wide.safetensors"], tmp_path / "pool")
    with pytest.raises(EngineError, match="expected a query of 24 values, got 3"):
        DiskPool(tmp_path / "pool").nearest(np.ones(3), 1)
    with pytest.raises(EngineError, match="expected a pool of rtdecode engines pool build"):
        DiskPool(tmp_path)
    save_file({"tokens": np.zeros((2, 1, 24), np.float32)}, tmp_path / "z.safetensors", metadata={"names": '["x","y"]'})
    with pytest.raises(TrainingError, match="x: expected an embedding, got zeros"):
        build_pool([tmp_path / "z.safetensors"], tmp_path / "pool")
