"""Extracts a film's features moment by moment, and goes on after a kill where it was, to the same bytes.

What is done lies in ``OUT.part``: one file a kind of moment and process, each moment a block of the same size, so that
the size of the file tells how many are whole. Memory: the model, the film's sound, and one moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.film.features import FEATURES_SCHEMA, VALUES, FeatureTable, count_frames, write_about
from engines.film.media import SOUND_HZ, Media
from engines.film.states import AUDIO_S, VIDEO_S, WORDS, Backbone, Context, audio_of, vision_of, word_of
from engines.film.transcript import Word
from engines.importing.tensors import write_tensors
from rtdecode.decode.families.encoding.film_windows import FRAME_HZ, word_frames
from rtdecode.errors import SettingsError
from rtdecode.packs.sealed import check_target, seal

PART = ".part"
_ORDER = "order.json"
_KINDS = ("frame", "word")
_PICTURES = int(VIDEO_S * FRAME_HZ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """What is extracted.

    Attributes
    ----------
    film : str
        Name of the film.
    words : sequence of Word
        In the order of their ends.
    has_transcript : bool
        Whether there is one; a film in which nobody speaks has an empty one.
    sources : dict of str to str
        SHA-256 of film and transcript.
    """

    film: str
    words: Sequence[Word] = ()
    has_transcript: bool = False
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    kind: str
    number: int
    cutoff_s: float


def extract(
    order: Extraction,
    media: Media,
    backbone: Backbone,
    out: Path,
    *,
    process: int = 0,
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> None:
    """Extract what is not extracted yet of one process's share: every so-manyth moment.

    Parameters
    ----------
    order : Extraction
    media : Media
    backbone : Backbone
    out : Path
        Folder of the features; what is done lies beside it.
    process, processes : int
        Which of how many.
    progress : callable
        Is given how many moments are done and how many there are.

    Raises
    ------
    SettingsError
        What lies there is of another film, transcript, model or number of processes.
    """
    folder = _begin(order, media, backbone, out, processes)
    own = [one for place, one in enumerate(_moments(order, media)) if place % processes == process]
    files = {kind: _Blocks(folder / f"{kind}-{process}.bin", _size(kind, backbone)) for kind in _KINDS}
    try:
        left = {kind: [one for one in own if one.kind == kind][files[kind].whole :] for kind in _KINDS}
        wanted = {(one.kind, one.number) for some in left.values() for one in some}
        done = len(own) - len(wanted)
        progress(done, len(own))
        todo = [one for one in own if (one.kind, one.number) in wanted]
        for one, context in _contexts(order, media, todo):
            states = backbone.states(context)
            if one.kind == "word":
                values = word_of(states)[None]
            else:
                values = torch.stack([vision_of(states), audio_of(states, one.cutoff_s)])
            files[one.kind].add(values.to(backbone.dtype))
            done += 1
            progress(done, len(own))
    finally:
        for file in files.values():
            file.close()


def assemble(order: Extraction, media: Media, backbone: Backbone, out: Path, *, processes: int = 1) -> str:
    """Put the shares of all processes together into sealed features; returns their identity.

    Raises
    ------
    SettingsError
        Moments are missing.
    """
    folder = _begin(order, media, backbone, out, processes)
    moments = list(_moments(order, media))
    places: dict[tuple[str, int], tuple[Path, int]] = {}
    counts: dict[Path, int] = {}
    for place, one in enumerate(moments):
        path = folder / f"{one.kind}-{place % processes}.bin"
        places[one.kind, one.number] = path, counts.get(path, 0)
        counts[path] = counts.get(path, 0) + 1
    for path, count in counts.items():
        found = path.stat().st_size // _size(path.name.partition("-")[0], backbone) if path.exists() else 0
        if found < count:
            raise SettingsError([f"{out}: expected {count} moments in {path.name}, got {found}: extract the rest"])
    sound = media.sound() is not None
    absent = {} if sound else {"audio": "the film has no sound"}
    if not order.has_transcript:
        absent["text"] = "no transcript was given"
    about = FeatureTable(
        film=order.film,
        duration_s=media.duration_s,
        layers=backbone.layers,
        values=backbone.values,
        absent=absent,
        sources={**order.sources, "backbone": backbone.identity},
    )
    shape = (about.frames, about.layers, about.values)

    def read(kind: str, number: int) -> Tensor:
        path, place = places[kind, number]
        size = _size(kind, backbone)
        with path.open("rb") as stream:
            stream.seek(place * size)
            raw = torch.frombuffer(bytearray(stream.read(size)), dtype=backbone.dtype)
        return raw.reshape(-1, about.layers, about.values)

    def spoken() -> Iterator[Tensor]:
        starting: dict[int, list[int]] = {}
        for number, word in enumerate(order.words):
            for frame in word_frames(word.onset_s, word.duration_s, about.frames) or ():
                starting.setdefault(frame, []).append(number)
        for frame in range(about.frames):
            total = torch.zeros(shape[1:])
            for number in starting.get(frame, ()):
                total += read("word", number)[0].float()
            yield total

    def write(target: Path) -> None:
        write_about(target, about)
        parts: dict[str, Iterator[Tensor]] = {"vision": (read("frame", i)[0] for i in range(about.frames))}
        if sound:
            parts["audio"] = (read("frame", i)[1] for i in range(about.frames))
        if order.has_transcript:
            parts["text"] = spoken()
        for name, pieces in parts.items():
            write_tensors(target / f"{name}.safetensors", {VALUES: shape}, pieces, dtype=backbone.dtype)

    identity = seal(out, FEATURES_SCHEMA, write)
    shutil.rmtree(folder)
    return identity


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Blocks:
    """A file of blocks of one size; a torn last one is cut off when it is opened."""

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        path.touch()
        self.whole = path.stat().st_size // size
        os.truncate(path, self.whole * size)
        self._stream: BinaryIO = path.open("ab")

    def add(self, values: Tensor) -> None:
        """Add a block, and have it on the disk before the next is computed."""
        block = values.contiguous().flatten().cpu().view(torch.uint8).numpy().tobytes()
        assert len(block) == self._size
        self._stream.write(block)
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _size(kind: str, backbone: Backbone) -> int:
    states = 1 if kind == "word" else 2
    return states * backbone.layers * backbone.values * int(backbone.dtype.itemsize)


def _begin(order: Extraction, media: Media, backbone: Backbone, out: Path, processes: int) -> Path:
    check_target(out)
    folder = out.with_name(out.name + PART)
    said = {
        "film": order.film,
        "duration_s": media.duration_s,
        "sources": {**order.sources, "backbone": backbone.identity},
        "processes": processes,
        "words": len(order.words),
        "transcript": order.has_transcript,
    }
    path = folder / _ORDER
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        draft = folder / f"{_ORDER}.{os.getpid()}"
        draft.write_text(json.dumps(said), encoding="utf-8")
        os.replace(draft, path)
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != said:
        other = ", ".join(name for name in said if found.get(name) != said[name])
        raise SettingsError([f"{folder}: was begun with another {other}: go on as it was begun, or remove the folder"])
    return folder


def _moments(order: Extraction, media: Media) -> list[_Moment]:
    """All moments in the order of their cutoffs, so that a film is read once from begin to end."""
    frames = [
        _Moment(kind="frame", number=number, cutoff_s=(number + 1) / FRAME_HZ)
        for number in range(count_frames(media.duration_s))
    ]
    words = [
        _Moment(kind="word", number=number, cutoff_s=word.end_s)
        for number, word in enumerate(order.words)
        if word_frames(word.onset_s, word.duration_s, len(frames)) is not None
    ]
    return sorted([*frames, *words], key=lambda one: (one.cutoff_s, one.kind, one.number))


def _contexts(order: Extraction, media: Media, todo: Sequence[_Moment]) -> Iterator[tuple[_Moment, Context]]:
    """Yield moments and what had been seen, heard and said by then, and nothing of what comes after."""
    sound = media.sound() if todo else None
    pictures = media.pictures()
    seen: deque[NDArray[np.uint8]] = deque(maxlen=_PICTURES)
    shown, heard = 0, [word.end_s for word in order.words]
    for one in todo:
        while (shown < one.cutoff_s * FRAME_HZ or not seen) and (picture := next(pictures, None)) is not None:
            seen.append(picture)
            shown += 1
        over = int(np.searchsorted(heard, one.cutoff_s, side="right")) if one.kind == "frame" else one.number + 1
        first = max(int((one.cutoff_s - AUDIO_S) * SOUND_HZ), 0)
        yield (
            one,
            Context(
                pictures=np.stack(seen),
                sound=None if sound is None else sound[first : int(one.cutoff_s * SOUND_HZ)],
                words=[word.text for word in order.words[max(over - WORDS, 0) : over]],
            ),
        )
