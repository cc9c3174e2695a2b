"""The frames between the daemon and the decode worker: msgpack maps, one per message, defined here only.

Requests: load (folder) and decode (beta, truth, trial). Replies: ready (categories, stimuli, absent parts), loaded
(identity); embedding, caption and reconstruction (each with its milliseconds), then decoded; error (which kind, and the
text). A request to end is an empty frame; one of the number 0 comes every second while a request is worked on, as a
sign of life.
Before each frame stand eight bytes, the number of the request that it is or answers: a reply nobody waited for is not
taken for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from rtdecode.decoded import Caption, Embedding, Part, Reconstruction, Score
from rtdecode.errors import BundleError, EngineError, RtdecodeError
from rtdecode.records import frozen

END = b""
LAST = ("loaded", "decoded")
"""Kinds of replies after which a request has no more."""
_NUMBER_BYTES = 8
_ERRORS: dict[str, type[RtdecodeError]] = {"BundleError": BundleError, "EngineError": EngineError}
_SCORE = ("predicted", "probabilities", "top", "rank", "pool", "evidence", "chance", "p_noise")


def number(request: int, frame: bytes) -> bytes:
    """Put the number of a request before a frame."""
    return request.to_bytes(_NUMBER_BYTES, "big") + frame


def numbered(message: bytes) -> tuple[int, bytes]:
    """Split a message into the number of its request and the frame."""
    return int.from_bytes(message[:_NUMBER_BYTES], "big"), message[_NUMBER_BYTES:]


def pack_load(folder: str) -> bytes:
    """Request to load a ParticipantBundle."""
    return _pack({"kind": "load", "folder": folder})


def pack_decode(beta: NDArray[np.float32], truth: Sequence[str | None], trial: str) -> bytes:
    """Request to decode a beta."""
    return _pack({"kind": "decode", "beta": _array(beta), "truth": list(truth), "trial": trial})


def pack_ready(categories: Sequence[str], stimuli: Sequence[str], absent: Sequence[str]) -> bytes:
    """Reply: the engines are loaded and warm; what they decide between, and which parts they cannot make."""
    return _pack({"kind": "ready", "categories": list(categories), "stimuli": list(stimuli), "absent": list(absent)})


def pack_loaded(identity: str) -> bytes:
    """Reply: the participant is loaded."""
    return _pack({"kind": "loaded", "identity": identity})


def pack_decoded() -> bytes:
    """Reply: all parts of a beta have been sent."""
    return _pack({"kind": "decoded"})


def pack_error(error: RtdecodeError) -> bytes:
    """Reply: the request cannot be met."""
    kind = "BundleError" if isinstance(error, BundleError) else "EngineError"
    return _pack({"kind": "error", "error": kind, "text": str(error)})


def pack_part(part: Part, milliseconds: float, gpu_bytes: int | None) -> bytes:
    """Reply: one part of a decoded beta, and the GPU memory that the worker holds."""
    match part:
        case Embedding():
            content: dict[str, Any] = {
                "kind": "embedding",
                "tokens": _array(part.tokens),
                "components": _array(part.components),
                "nearest": dict(part.nearest),
                "score": {name: getattr(part.score, name) for name in _SCORE},
            }
        case Caption():
            content = {"kind": "caption", "text": part.text}
        case Reconstruction():
            content = {"kind": "reconstruction", "image": _array(part.image)}
    return _pack({**content, "ms": milliseconds, "gpu_bytes": gpu_bytes})


def unpack(frame: bytes) -> dict[str, Any]:
    """Map of a frame; `raise_error` and `unpack_part` read replies from it."""
    content: dict[str, Any] = msgpack.unpackb(frame)
    return content


def unpack_beta(content: dict[str, Any]) -> tuple[NDArray[np.float32], list[str | None], str]:
    """Beta, truth and trial of a request to decode."""
    return _unarray(content["beta"]), content["truth"], content["trial"]


def unpack_part(content: dict[str, Any]) -> tuple[Part, float]:
    """Part and milliseconds of a reply."""
    milliseconds = float(content["ms"])
    if content["kind"] == "embedding":
        score = content["score"]
        embedding = Embedding(
            tokens=_unarray(content["tokens"]),
            components=_unarray(content["components"]),
            score=Score(**{**score, "top": tuple(score["top"])}),
            nearest=content["nearest"],
        )
        return embedding, milliseconds
    if content["kind"] == "caption":
        return Caption(text=content["text"]), milliseconds
    return Reconstruction(image=_unarray(content["image"])), milliseconds


def raise_error(content: dict[str, Any]) -> None:
    """Raise what the worker reported, if it reported an error.

    Raises
    ------
    BundleError, EngineError
    """
    if content["kind"] == "error":
        raise _ERRORS[content["error"]](content["text"])


def _pack(content: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(content)
    return packed


def _array(values: NDArray[Any]) -> dict[str, Any]:
    return {"dtype": values.dtype.str, "shape": list(values.shape), "data": values.tobytes()}


def _unarray(packed: dict[str, Any]) -> NDArray[Any]:
    return frozen(np.frombuffer(packed["data"], dtype=packed["dtype"]).reshape(packed["shape"]))
