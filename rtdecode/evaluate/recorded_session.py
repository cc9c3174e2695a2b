"""What a session decoded beside what was shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rtdecode import client as wire
from rtdecode.decode.resample import bilinear
from rtdecode.derivatives import NONE, decoded_rows
from rtdecode.errors import SettingsError
from rtdecode.session.entries import bad_runs, read_outputs
from rtdecode.stimuli import picture_of

PX = 256
"""Height and width at which published pictures are judged."""
FEWEST = 3
"""Trials that can be compared."""

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Final results of trials whose stimulus is at hand.

    Attributes
    ----------
    trials, stimuli : tuple of n str
    true, made : ndarray of shape (n, 3, PX, PX), float32
        Pictures in 0..1.
    captions : tuple of n str
    tokens : ndarray of shape (n, d), float32, or None
        Decoded embeddings; None where the session's journal holds none.
    left_out : tuple of str
        Trials that could not be used, and why.
    """

    trials: tuple[str, ...]
    stimuli: tuple[str, ...]
    true: Float32
    made: Float32
    captions: tuple[str, ...]
    tokens: Float32 | None
    left_out: tuple[str, ...]


def read_pairs(session: Path, images: Path) -> Pairs:
    """Collect the final picture and caption of each trial and the picture that was shown.

    Parameters
    ----------
    session : Path
        Session folder.
    images : Path
        Folder of pictures named by stimulus or, where a trial has none, by condition.

    Raises
    ------
    SettingsError
        A folder is missing, or fewer than three trials can be compared.
    """
    problems = [f"{name}: expected a folder, found none" for name in (session, images) if not name.is_dir()]
    if problems:
        raise SettingsError(problems)
    rows, left_out, shown, made = [], [], [], []
    for row in decoded_rows(session):
        names = (row["stim_id"], row["trial_type"])
        true = next((path for name in names if name not in NONE and (path := picture_of(images, name))), None)
        own = session / row["recon"]
        if true is None:
            left_out.append(f"{row['trial']}: no picture of {row['stim_id']} in {images}")
        elif row["recon"] in NONE or not own.is_file():
            left_out.append(f"{row['trial']}: its picture was not kept")
        else:
            rows.append(row)
            shown.append(true)
            made.append(own)
    if len(rows) < FEWEST:
        raise SettingsError(
            [f"{session}: expected at least {FEWEST} decoded trials to compare, got {len(rows)}", *left_out[:5]]
        )
    embedded = _tokens(session)
    tokens = [embedded.get(row["trial"]) for row in rows]
    known = [one for one in tokens if one is not None]
    return Pairs(
        trials=tuple(row["trial"] for row in rows),
        stimuli=tuple(path.stem for path in shown),
        true=load_pictures(shown, PX),
        made=load_pictures(made, PX),
        captions=tuple(row["caption"] for row in rows),
        tokens=np.stack(known) if len(known) == len(rows) else None,
        left_out=tuple(left_out),
    )


def load_pictures(paths: Sequence[Path], px: int) -> Float32:
    """Read pictures in 0..1, resized to a square, shape (n, 3, px, px).

    Raises
    ------
    SettingsError
        One cannot be read.
    """
    found = np.empty((len(paths), 3, px, px), np.float32)
    for place, path in enumerate(paths):
        try:
            with Image.open(path) as picture:
                values = np.asarray(picture.convert("RGB"), np.float32)
        except (OSError, ValueError) as error:
            raise SettingsError([f"{path}: expected a picture: {error}"]) from None
        found[place] = bilinear(values.transpose(2, 0, 1) / 255, px)
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedBeta:
    """A final beta of a session.

    Attributes
    ----------
    run : int
    stimulus, condition : str or None
        As announced.
    values : ndarray of shape (v,), float32
        Percent signal change per voxel of the session's mask.
    """

    run: int
    stimulus: str | None
    condition: str | None
    values: Float32


def read_betas(session: Path) -> dict[str, RecordedBeta]:
    """Read the final beta of each trial that has one, by its name, as it was published; bad runs are left out."""
    found: dict[str, RecordedBeta] = {}
    bad = bad_runs(session)
    path = session / "journal" / "outputs.journal"
    for _, entry in read_outputs(path) if path.is_file() else ():
        if entry.topic != "beta":
            continue
        message = wire.unpack(entry.topic.encode(), entry.payload)
        if not isinstance(message, wire.Beta) or message.run in bad:
            continue
        if message.final and message.invalid is None and message.beta is not None:
            found[message.trial or ""] = RecordedBeta(
                run=message.run or 0,
                stimulus=message.stimulus,
                condition=message.condition,
                values=np.frombuffer(message.beta.data, message.beta.dtype).astype(np.float32),
            )
    return found


def _tokens(session: Path) -> dict[str, Float32]:
    """Read the final embedding of each trial, flattened, from the journal of what was published."""
    found: dict[str, Float32] = {}
    path = session / "journal" / "outputs.journal"
    if not path.is_file():
        return found
    for _, entry in read_outputs(path):
        if entry.topic != "embedding":
            continue
        message = wire.unpack(entry.topic.encode(), entry.payload)
        if isinstance(message, wire.Embedding) and message.final and message.trial and message.tokens is not None:
            packed = message.tokens
            found[message.trial] = np.frombuffer(packed.data, packed.dtype).astype(np.float32)
    return found
