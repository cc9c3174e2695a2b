"""The frames between the daemon and the decode worker: msgpack maps, one per message, defined here only.

A frame is read into one of the structures below; what is missing, unknown or of another type is refused with the path
of the field. What is decoded travels as `rtdecode.decoded` declares it, within an `Answer`. A request to end is an
empty frame; one of the number 0 comes every second while a request is worked on, as a sign of life.
Before each frame stand eight bytes, the number of the request that it is or answers: a reply nobody waited for is not
taken for another.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from rtdecode import decoded
from rtdecode.decoded import DecodedPart, topic_of
from rtdecode.errors import BundleError, EngineError, RtdecodeError
from rtdecode.records import BetaUpdate, RegisteredVolume, frozen
from rtdecode.typed import Table, checked

END = b""
_NUMBER_BYTES = 8
_SOURCE = "worker frame"
T = TypeVar("T")


class Load(Table, frozen=True, kw_only=True, tag_field="kind", tag="load"):
    """Request to load the ParticipantBundle in a folder."""

    folder: str


class Decode(Table, frozen=True, kw_only=True, tag_field="kind", tag="decode"):
    """Request to decode the values (v,) of a beta of a trial.

    `truth` names what was shown, where known; `candidates` the pictures to choose from, if any; `average` is the mean
    over the trials of the stimulus so far, `shown` their number.
    """

    beta: NDArray[np.float32]
    truth: tuple[str | None, ...]
    trial: str
    candidates: tuple[str, ...]
    average: NDArray[np.float32] | None
    shown: int


class Predict(Table, frozen=True, kw_only=True, tag_field="kind", tag="predict"):
    """Request to predict of the last of some volumes of a run; those before it are what the predictor looks back at."""

    volumes: tuple[RegisteredVolume, ...]


class Ready(Table, frozen=True, kw_only=True, tag_field="kind", tag="ready"):
    """Reply: the engines are loaded and warm; what they decide between, and which parts they cannot make.

    `window` is the number of volumes that a prediction looks at, 0 where the pack makes none; `fallbacks` tell what
    runs otherwise than it was to, and why.
    """

    categories: tuple[str, ...]
    stimuli: tuple[str, ...]
    absent: tuple[str, ...]
    window: int
    fallbacks: tuple[str, ...]


class Loaded(Table, frozen=True, kw_only=True, tag_field="kind", tag="loaded"):
    """Reply, the last to `Load`: the participant of that identity is loaded."""

    identity: str


class Answer(Table, frozen=True, kw_only=True, tag_field="kind", tag="answer"):
    """Reply: one part of what was decoded, the milliseconds it took, and the GPU memory that the worker holds."""

    topic: str
    part: Any
    ms: float
    gpu_bytes: int | None


class Decoded(Table, frozen=True, kw_only=True, tag_field="kind", tag="decoded"):
    """Reply, the last to a request to decode: all parts have been sent."""


class Failed(Table, frozen=True, kw_only=True, tag_field="kind", tag="failed"):
    """Reply, the last: the request cannot be met."""

    error: Literal["BundleError", "EngineError"]
    text: str

    def raise_it(self) -> typing.NoReturn:
        """Raise what the worker reported.

        Raises
        ------
        BundleError, EngineError
        """
        raise (BundleError if self.error == "BundleError" else EngineError)(self.text)


Request = Load | Decode | Predict
Reply = Ready | Loaded | Answer | Decoded | Failed


def number(request: int, frame: bytes) -> bytes:
    """Put the number of a request before a frame."""
    return request.to_bytes(_NUMBER_BYTES, "big") + frame


def numbered(message: bytes) -> tuple[int, bytes]:
    """Split a message into the number of its request and the frame."""
    return int.from_bytes(message[:_NUMBER_BYTES], "big"), message[_NUMBER_BYTES:]


def pack(frame: Request | Reply) -> bytes:
    """Return the bytes of a frame."""
    return msgspec.msgpack.encode(frame, enc_hook=_plain)


def decode_request(beta: BetaUpdate) -> Decode:
    """Return the request to decode a beta."""
    event = beta.event
    return Decode(
        beta=beta.beta,
        average=beta.average,
        shown=beta.shown,
        truth=(event.stimulus, event.condition),
        trial=event.trial,
        candidates=event.candidates,
    )


def answer(part: DecodedPart, milliseconds: float, gpu_bytes: int | None) -> Answer:
    """Return the frame of one part of what was decoded."""
    return Answer(topic=topic_of(type(part)), part=part, ms=milliseconds, gpu_bytes=gpu_bytes)


def failed(error: RtdecodeError) -> Failed:
    """Return the frame of an error."""
    return Failed(error="BundleError" if isinstance(error, BundleError) else "EngineError", text=str(error))


def read_request(frame: bytes) -> Request:
    """Read a request.

    Raises
    ------
    EngineError
        It is none; the path of the field is told.
    """
    found: Request = _read(frame, typing.get_args(Request))
    return found


def read_reply(frame: bytes) -> Reply:
    """Read a reply.

    Raises
    ------
    EngineError
        It is none; the path of the field is told.
    """
    found: Reply = _read(frame, typing.get_args(Reply))
    if not isinstance(found, Answer):
        return found
    kinds = decoded.kinds()
    if found.topic not in kinds:
        raise EngineError(f"{_SOURCE}: answer.topic: expected one of {', '.join(kinds)}, got {found.topic!r}")
    return msgspec.structs.replace(found, part=_typed(found.topic, found.part, kinds[found.topic]))


def _read(frame: bytes, structures: tuple[type[Any], ...]) -> Any:
    try:
        raw = msgspec.msgpack.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"{_SOURCE}: expected msgpack, got {len(frame)} bytes that are none: {error}") from None
    kinds = {structure.__struct_config__.tag: structure for structure in structures}
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise EngineError(f"{_SOURCE}: kind: expected one of {', '.join(kinds)}, got {kind!r}")
    return _typed(kind, _arrays(raw), kinds[kind])


def _typed(name: str, raw: object, kind: type[T]) -> T:
    _hold(raw, kind, name)
    wanted: type[dict[str, T]] = dict[str, kind]  # type: ignore[valid-type]
    found = checked({name: raw}, wanted, source=_SOURCE, error=EngineError)
    return found[name]


def _hold(raw: object, hint: Any, path: str) -> None:
    """Hold records to their fields, and arrays to their type: msgspec leaves the one open and knows not the other."""
    if isinstance(hint, types.UnionType):
        if raw is not None:
            _hold(raw, typing.get_args(hint)[0], path)
        return
    if dataclasses.is_dataclass(hint) and isinstance(raw, Mapping):
        kinds = _types(typing.cast(Hashable, hint))
        for name in raw.keys() - kinds.keys():
            raise EngineError(f"{_SOURCE}: {path}.{name}: expected no such field")
        for name, one in kinds.items():
            if name not in raw:
                raise EngineError(f"{_SOURCE}: {path}.{name}: expected a value, got none")
            _hold(raw[name], one, f"{path}.{name}")
    elif isinstance(hint, type) and issubclass(hint, Table) and isinstance(raw, Mapping):
        for name, one in _types(typing.cast(Hashable, hint)).items():
            _hold(raw.get(name), one, f"{path}.{name}")
    elif typing.get_origin(hint) is tuple and isinstance(raw, list):
        for place, one in enumerate(raw):
            _hold(one, typing.get_args(hint)[0], f"{path}[{place}]")
    elif typing.get_origin(hint) is np.ndarray and raw is not None:
        wanted = typing.get_args(typing.get_args(hint)[1])[0]
        wanted = typing.get_origin(wanted) or wanted
        if not (isinstance(raw, np.ndarray) and np.issubdtype(raw.dtype, wanted)):
            got = f"one of {raw.dtype}" if isinstance(raw, np.ndarray) else f"{raw!r:.60}"
            raise EngineError(f"{_SOURCE}: {path}: expected an array of {wanted.__name__}, got {got}")


@cache
def _types(kind: Any) -> Mapping[str, Any]:
    """Return the fields of a record or structure, and their types."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else list(hints)
    return {name: hints[name] for name in names}


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "shape": value.shape, "data": value.tobytes()}
    raise NotImplementedError(f"cannot be sent to the decode worker: {type(value).__name__}")


def _arrays(raw: Any) -> Any:
    """Turn what arrays were packed into back, wherever it is; what is none stays, for its type to be refused."""
    if isinstance(raw, list):
        return [_arrays(one) for one in raw]
    if not isinstance(raw, dict):
        return raw
    if raw.keys() == {"dtype", "shape", "data"}:
        try:
            return frozen(np.frombuffer(raw["data"], dtype=raw["dtype"]).reshape(raw["shape"]))
        except (TypeError, ValueError):
            return raw
    return {name: _arrays(one) for name, one in raw.items()}
