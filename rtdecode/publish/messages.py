"""Records become messages: the only place where one is turned into the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode import client as wire
from rtdecode.decoded import DecodedPart, Picture, Prediction, kinds, told, topic_of
from rtdecode.publish.pictures import Encoding, encoded
from rtdecode.records import BetaUpdate, RegisteredVolume, Skipped, Stamp

TOPICS = tuple(dict.fromkeys([*wire.TOPICS, *kinds()]))
"""All that may be published, whether or not the client has a class for it."""


def headed(message: wire.Message, stamp: Stamp, stages: dict[str, float]) -> wire.Message:
    """Return `message` with the header fields that come from a volume.

    Parameters
    ----------
    message : Message
    stamp : Stamp
    stages : dict of str to float
        Milliseconds per stage; ``total`` is the time since the volume was found complete.
    """
    return replace(
        message,
        run=stamp.run,
        volume=stamp.volume,
        t_acquired=stamp.acquired_s,
        t_received=stamp.received_s,
        stages=stages,
    )


def volume(record: RegisteredVolume, lag: int) -> wire.Volume:
    """Message of a registered volume; `lag` counts inputs waiting behind it."""
    return wire.Volume(
        motion=tuple(record.motion.tolist()),
        fd_mm=record.fd_mm,
        dvars=record.dvars,
        tsnr=record.tsnr,
        fit=record.fit,
        censored=record.censored,
        lag=lag,
        regions=dict(record.regions),
        parcels={name: dict(values) for name, values in record.parcels.items()},
    )


def skipped(record: Skipped) -> wire.Skipped:
    """Message of a volume or file that could not be used."""
    return wire.Skipped(run=record.run, volume=record.volume, path=record.path, reason=record.reason)


def beta(record: BetaUpdate) -> wire.Beta:
    """Message of a response estimate."""
    return wire.Beta(
        **_trial(record),
        duration_s=record.event.duration_s,
        delay_s=record.delay_s,
        beta=_array(record.beta.astype(np.float32, copy=False)),
    )


def no_score(record: BetaUpdate) -> wire.Score:
    """Message of a trial that gets no result; the beta says why."""
    return wire.Score(**_trial(record))


def withheld(record: BetaUpdate) -> wire.Score:
    """Message of a trial that was decoded in a blinded session, where a score would tell the arm."""
    return wire.Score(**_trial(record), refused="withheld: the session is blinded")


def decoded(record: BetaUpdate, found: DecodedPart, encoding: Encoding = "jpeg") -> wire.Message:
    """Message of what was decoded from a beta, as `rtdecode.decoded` declares it; a picture in the encoding given."""
    trial = _trial(record) if found.tells_trial else _decoded(record)
    return wire.message_of(topic_of(type(found)), {**trial, **_told(found, encoding)})


def prediction(found: Prediction) -> wire.Prediction:
    """Message of what was predicted of a volume."""
    return wire.Prediction(**_told(found), final=True)


def _told(found: DecodedPart, encoding: Encoding = "jpeg") -> dict[str, Any]:
    if not isinstance(found, Picture):
        return {name: _plain(getattr(found, name)) for name, note in told(type(found)).items() if note.streamed}
    height, width = found.image.shape[:2]
    image = encoded(found.image, encoding)
    return {
        "image": image,
        "format": encoding,
        "width": width,
        "height": height,
        "color_space": "sRGB",
        "shown": found.shown,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _array(value)
    return dict(value) if isinstance(value, Mapping) else value


def _decoded(record: BetaUpdate) -> dict[str, Any]:
    return {"trial": record.event.trial, "revision": record.revision, "final": record.final, "invalid": record.invalid}


def _trial(record: BetaUpdate) -> dict[str, Any]:
    event = record.event
    return {
        **_decoded(record),
        "onset_s": event.onset_s,
        "stimulus": event.stimulus,
        "condition": event.condition,
    }


def _array(values: NDArray[Any]) -> wire.Array:
    """Return `values` as they travel: little-endian, C order."""
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return wire.Array(values.dtype.str, values.shape, values.tobytes())
