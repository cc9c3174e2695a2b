from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from rtdecode.__main__ import main
from rtdecode.decode import frames
from rtdecode.decode.service import LocalService, Outlet
from rtdecode.decode.worker import WorkerService
from rtdecode.decoded import Embedding, Reconstruction
from rtdecode.errors import BundleError, EngineError
from rtdecode.settings import DecodeSettings
from rtdecode.simulate import world
from tests.decode_small import category_update, tiny_decoder, write_category_bundle


@pytest.fixture
def worker() -> Iterator[WorkerService]:
    made = WorkerService(DecodeSettings())
    yield made
    made.close()


def test_a_killed_worker_is_replaced_and_asked_again(worker: WorkerService, tmp_path: Path) -> None:
    write_category_bundle(tmp_path / "bundle")
    worker.load(tmp_path / "bundle")
    local = LocalService(tiny_decoder())
    local.load(tmp_path / "bundle")
    expected = [part for part, _ in local.decode(category_update(5))]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    parts = [part for part, _ in worker.decode(category_update(5))]
    assert worker.restarts == 1
    embedding, picture, _ = parts
    assert isinstance(embedding, Embedding)
    assert isinstance(expected[0], Embedding)
    assert asdict(embedding.score) == asdict(expected[0].score)
    assert isinstance(picture, Reconstruction)
    assert isinstance(expected[1], Reconstruction)
    assert picture.image.tobytes() == expected[1].image.tobytes()


def test_a_worker_killed_between_parts_repeats_none(worker: WorkerService, tmp_path: Path) -> None:
    write_category_bundle(tmp_path / "bundle")
    worker.load(tmp_path / "bundle")
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    parts = worker.decode(category_update(5))
    os.kill(worker.pid, signal.SIGCONT)
    kinds = [type(next(parts)[0]).__name__]
    os.kill(worker.pid, signal.SIGKILL)
    kinds += [type(part).__name__ for part, _ in parts]
    assert kinds == ["Embedding", "Reconstruction", "Caption"]


def test_ctrl_c_is_left_to_the_parent(worker: WorkerService, tmp_path: Path) -> None:
    write_category_bundle(tmp_path / "bundle")
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGINT)
    worker.load(tmp_path / "bundle")
    assert len(list(worker.decode(category_update(0)))) == 3
    assert worker.restarts == 0


def test_a_worker_that_is_stopped_is_seen_to_be_silent_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_category_bundle(tmp_path / "bundle")
    worker = WorkerService(DecodeSettings(), silence_s=3.0)
    try:
        worker.load(tmp_path / "bundle")
        assert worker.silent_s == 0.0
        seen: list[float] = []
        restart = worker._restart

        def watched() -> None:
            seen.append(worker.silent_s)
            restart()

        monkeypatch.setattr(worker, "_restart", watched)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        parts = [type(part).__name__ for part, _ in worker.decode(category_update(0))]
        assert parts == ["Embedding", "Reconstruction", "Caption"]
        assert worker.restarts == 1
        assert len(seen) == 1
        assert seen[0] >= 3.0
        assert worker.silent_s == 0.0
    finally:
        worker.close()


def test_a_worker_that_takes_its_time_gives_signs_of_life(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    outlet = Outlet(theirs)
    with outlet.alive(every_s=0.01):
        frame = ours.recv_bytes()
    outlet.send(1, frames.Decoded())
    frames_left = [ours.recv_bytes() for _ in iter(lambda: ours.poll(0.1), False)]
    assert frames.numbered(frame) == (0, frames.END)
    assert frames.numbered(frames_left[-1]) == (1, frames.pack(frames.Decoded()))


def test_closing_ends_the_process() -> None:
    worker = WorkerService(DecodeSettings())
    pid = worker.pid
    worker.close()
    assert pid not in {child.pid for child in multiprocessing.active_children()}


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="engine pack"):
        WorkerService(DecodeSettings(pack=str(tmp_path / "none")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="found none"):
        WorkerService(DecodeSettings(stimuli=tmp_path / "empty"))


@pytest.mark.parametrize("error", [BundleError("a"), EngineError("b")])
def test_errors_keep_their_kind_and_text(error: BundleError | EngineError) -> None:
    failed = frames.read_reply(frames.pack(frames.failed(error)))
    assert isinstance(failed, frames.Failed)
    with pytest.raises(type(error), match=str(error)):
        failed.raise_it()


def test_a_message_carries_the_number_of_its_request() -> None:
    assert frames.numbered(frames.number(2**40, b"frame")) == (2**40, b"frame")
    assert frames.numbered(frames.number(0, frames.END)) == (0, b"")


def test_the_nearest_pictures_of_a_pool_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    (tmp_path / "pictures").mkdir()
    for i in range(9):
        Image.fromarray(world.render(world.sample_scene(rng))[0]).save(tmp_path / "pictures" / f"p{i}.png")
    pool = tmp_path / "pool.safetensors"
    assert main(["engines", "embed", str(tmp_path / "pictures"), "--out", str(pool)]) == 0
    write_category_bundle(tmp_path / "bundle")
    worker = WorkerService(DecodeSettings(pool=pool))
    try:
        worker.load(tmp_path / "bundle")
        embedding = next(part for part, _ in worker.decode(category_update(3)))
    finally:
        worker.close()
    assert isinstance(embedding, Embedding)
    rows = load_file(pool)["tokens"].reshape(9, -1).astype(np.float64)
    query = embedding.tokens.astype(np.float64).ravel()
    cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    order = np.argsort(-cosines)[:5]
    assert list(embedding.nearest) == [f"p{i}" for i in order]
    np.testing.assert_allclose(list(embedding.nearest.values()), cosines[order], atol=1e-5)
