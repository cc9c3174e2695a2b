"""What is published of a trial when decoding it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rtdecode import client as wire
from rtdecode.bundle import open_participant
from rtdecode.decoded import Embedding, Part, Score
from rtdecode.errors import EngineError
from rtdecode.records import BetaUpdate
from rtdecode.session.decoding import Decoding
from rtdecode.session.lanes import PictureLane
from tests.conftest import FakeClock
from tests.decode_small import category_update, write_category_bundle

SCORE = Score(
    predicted="cat",
    probabilities={"cat": 0.6, "dog": 0.4},
    top=("cat",),
    rank=None,
    pool=2,
    evidence=0.6,
    chance=0.5,
    p_noise=0.1,
)


class FailingService:
    """Yields what it is given, then fails."""

    restarts, gpu_bytes, categories, absent = 0, None, ("cat", "dog"), ()

    def __init__(self, *parts: Part) -> None:
        self._parts = parts

    def load(self, folder: Path) -> str:
        return folder.name

    def decode(self, beta: BetaUpdate) -> Iterator[tuple[Part, float]]:
        yield from ((part, 1.0) for part in self._parts)
        raise EngineError("the decode worker died")

    def close(self) -> None:
        pass


class Kept:
    """Keeps what is published and recorded."""

    def __init__(self) -> None:
        self.messages: list[wire.Message] = []
        self.rows: list[tuple[Any, ...]] = []
        self.inputs = SimpleNamespace(append=lambda *_, **__: None)

    def publish(self, message: wire.Message) -> None:
        self.messages.append(message)

    def decoded(self, *row: Any) -> None:
        self.rows.append(row)


def failed(tmp_path: Path, *parts: Part) -> Kept:
    kept, lane = Kept(), PictureLane()
    write_category_bundle(tmp_path / "bundle")
    decoding = Decoding(FailingService(*parts), lane, kept, kept, FakeClock(), lambda: None)  # type: ignore[arg-type]
    decoding.ask(open_participant(tmp_path / "bundle"))
    assert decoding.once(0)
    lane.put(category_update(3))
    with pytest.raises(EngineError, match="died"):
        decoding.once(0)
    return kept


def test_a_trial_that_cannot_be_decoded_ends_with_its_reason(tmp_path: Path) -> None:
    kept = failed(tmp_path)
    (message,) = kept.messages
    assert isinstance(message, wire.Score)
    assert (message.trial, message.final, message.invalid) == ("r5t1", True, "not decoded: the decode worker died")
    assert (message.evidence, message.p_noise) == (0.0, 1.0)
    assert kept.rows == []


def test_a_score_stands_though_the_picture_failed(tmp_path: Path) -> None:
    empty = np.zeros((2, 3), np.float32)
    kept = failed(tmp_path, Embedding(tokens=empty, components=empty[0], score=SCORE, nearest={}))
    assert [(type(message), message.invalid) for message in kept.messages] == [
        (wire.Embedding, None),
        (wire.Score, None),
    ]
    ((beta, found, path, _latency),) = kept.rows
    assert (beta.event.trial, [type(part) for part in found], path) == ("r5t1", [Embedding, Score], None)
    assert found[1].predicted == "cat"
