"""Frames of the decode worker: what is taken out, unknown or spoilt is refused with its path."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from rtdecode.decode import frames
from rtdecode.decode.service import LocalService, Outlet, _answer
from rtdecode.decode.worker import WorkerService
from rtdecode.decoded import Caption, Embedding, Prediction, Reconstruction
from rtdecode.errors import EngineError
from rtdecode.settings import DecodeSettings
from tests.decode_small import category_update, tiny_decoder, write_category_bundle
from tests.unit.test_decoded import SCORE
from tests.unit.test_decoding import registered

TOKENS = np.arange(6, dtype=np.float16).reshape(2, 3)
EMBEDDING = Embedding(tokens=TOKENS, components=np.ones(4, np.float32), score=SCORE, nearest={"p1": 0.5})
REPLIES: tuple[frames.Reply, ...] = (
    frames.Ready(categories=("cat",), stimuli=("cat7",), absent=(), window=0, fallbacks=("a part, as it is so",)),
    frames.Loaded(identity="abc"),
    frames.answer(EMBEDDING, 1.5, None),
    frames.answer(Prediction(values={"a": 0.5}), 1.5, None),
    frames.answer(Caption(text="a cat"), 1.5, 7),
    frames.answer(Reconstruction(image=np.zeros((2, 3, 3), np.uint8)), 1.5, 7),
    frames.Decoded(),
    frames.Failed(error="EngineError", text="no"),
)
REQUESTS: tuple[frames.Request, ...] = (
    frames.Load(folder="/x"),
    frames.Predict(volumes=(registered(0), registered(1))),
    frames.Decode(
        beta=np.ones(4, np.float32),
        truth=("cat7", None),
        trial="t1",
        candidates=("cat7", "dog1"),
        average=np.zeros(4, np.float32),
        shown=2,
    ),
)


def places(content: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all fields; keys of an array and of mappings by name are no fields."""
    for name, value in content.items():
        yield (*path, name)
        if isinstance(value, dict) and name in ("part", "score"):
            yield from places(value, (*path, name))


def cases() -> Iterator[tuple[Callable[[bytes], object], bytes, tuple[str, ...]]]:
    for read, known in ((frames.read_reply, REPLIES), (frames.read_request, REQUESTS)):
        for frame in known:
            packed = frames.pack(frame)
            for path in places(msgpack.unpackb(packed)):
                yield read, packed, path


def changed(packed: bytes, path: tuple[str, ...], change: Callable[[dict[str, Any], str], None]) -> bytes:
    content = copy.deepcopy(msgpack.unpackb(packed))
    inner = content
    for name in path[:-1]:
        inner = inner[name]
    change(inner, path[-1])
    packed = msgpack.packb(content)
    return packed


def told(packed: bytes, path: tuple[str, ...]) -> str:
    """How an error names a field."""
    content = msgpack.unpackb(packed)
    if path in (("kind",), ("topic",)):
        return "kind" if path == ("kind",) else "answer.topic"
    return ".".join([content["topic"], *path[1:]] if path[0] == "part" and path[1:] else [content["kind"], *path])


@pytest.mark.parametrize(("read", "packed", "path"), list(cases()))
def test_a_field_that_is_missing_unknown_or_spoilt_is_named(
    read: Callable[[bytes], object], packed: bytes, path: tuple[str, ...]
) -> None:
    def taken_out(fields: dict[str, Any], name: str) -> None:
        del fields[name]

    def spoilt(fields: dict[str, Any], name: str) -> None:
        fields[name] = 3 if isinstance(fields[name], dict) else {"un": "expected"}

    def beside(fields: dict[str, Any], name: str) -> None:
        fields["unheard_of"] = 1

    read(packed)
    name = told(packed, path)
    for change in (taken_out, spoilt):
        with pytest.raises(EngineError) as refused:
            read(changed(packed, path, change))
        assert str(refused.value).startswith("worker frame: ")
        if path != ("part",):
            assert f"{name}: expected" in str(refused.value)
    with pytest.raises(EngineError, match=r"unheard_of: expected no such field"):
        read(changed(packed, path, beside))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("part", "score", "rank"), "first", r"embedding.score.rank: expected float \| null, got str"),
        (("part", "score", "probabilities"), {"cat": "much"}, r"embedding.score.probabilities.cat: expected float"),
        (("part", "score", "top"), ["cat7", 3], r"embedding.score.top\[1\]: expected str, got int"),
        (
            ("part", "tokens"),
            {"dtype": "<f4", "shape": [2, 3], "data": b"1234"},
            r"tokens: expected an array of floating, got {",
        ),
        (("part", "tokens"), {"dtype": "<i4", "shape": [1], "data": b"1234"}, r"embedding.tokens: .*floating.*int32"),
        (("part", "components"), {"dtype": "<f8", "shape": [1], "data": bytes(8)}, r"components: .*float32.*float64"),
        (("kind",), "picture", r"kind: expected one of ready, loaded, .*, got 'picture'"),
        (("topic",), "volume", r"answer.topic: expected one of embedding, score, .*, got 'volume'"),
    ],
)
def test_a_spoilt_field_says_what_was_expected(path: tuple[str, ...], value: object, reason: str) -> None:
    def spoil(fields: dict[str, Any], name: str) -> None:
        fields[name] = value

    with pytest.raises(EngineError, match=f"^worker frame: .*{reason}"):
        frames.read_reply(changed(frames.pack(REPLIES[2]), path, spoil))


def test_a_spoilt_volume_is_named() -> None:
    def spoil(fields: dict[str, Any], name: str) -> None:
        fields[name][1]["stamp"]["run"] = "first"

    with pytest.raises(EngineError, match=r"^worker frame: predict.volumes\[1\].stamp.run: expected int, got str"):
        frames.read_request(changed(frames.pack(REQUESTS[1]), ("volumes",), spoil))


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x93\x01\x02\x03", msgpack.packb({"kind": ["load"]}), b"\xa1\xff"])
def test_bytes_that_are_no_frame_are_refused(frame: bytes) -> None:
    for read in (frames.read_reply, frames.read_request):
        with pytest.raises(EngineError, match=r"^worker frame: .*expected"):
            read(frame)


def test_what_was_packed_is_read_to_the_last_bit() -> None:
    reply = frames.read_reply(frames.pack(REPLIES[2]))
    assert isinstance(reply, frames.Answer)
    part = reply.part
    assert isinstance(part, Embedding)
    assert part.tokens.dtype == np.float16
    assert part.tokens.tobytes() == TOKENS.tobytes()
    assert not part.tokens.flags.writeable
    assert {name: getattr(part.score, name) for name in SCORE.__slots__} == {
        name: getattr(SCORE, name) for name in SCORE.__slots__
    }
    request = frames.read_request(frames.pack(REQUESTS[-1]))
    assert isinstance(request, frames.Decode)
    assert (request.truth, request.trial, request.beta.tolist()) == (("cat7", None), "t1", [1.0] * 4)
    assert request.average is not None
    assert (request.average.tolist(), request.shown) == ([0.0] * 4, 2)


def test_a_request_that_cannot_be_read_is_answered_with_its_fault() -> None:
    ours, theirs = multiprocessing.Pipe()
    _answer(Outlet(theirs), LocalService(tiny_decoder()), 4, msgpack.packb({"kind": "decode", "trial": "t1"}))
    number, frame = frames.numbered(ours.recv_bytes())
    failed = frames.read_reply(frame)
    assert isinstance(failed, frames.Failed)
    assert (number, failed.text) == (4, "worker frame: decode.beta: expected a value, got none")


def test_a_reply_that_cannot_be_read_is_told_and_the_next_trial_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_category_bundle(tmp_path / "bundle")
    worker = WorkerService(DecodeSettings())
    try:
        worker.load(tmp_path / "bundle")
        read = frames.read_reply

        def spoiling(frame: bytes) -> frames.Reply:
            monkeypatch.setattr(frames, "read_reply", read)
            return read(frame + b"\x00")

        monkeypatch.setattr(frames, "read_reply", spoiling)
        with pytest.raises(EngineError, match="worker frame: expected msgpack"):
            list(worker.decode(category_update(1)))
        assert worker.silent_s == 0.0
        assert len(list(worker.decode(category_update(1)))) == 3
        assert worker.restarts == 0
    finally:
        worker.close()
