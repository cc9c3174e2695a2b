"""Recorded betas, decoded by a pack's own networks, beside the pictures that were seen or imagined."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from rtdecode.decode.families.family import RecordDecoder
from rtdecode.decode.resample import bilinear
from rtdecode.errors import SettingsError
from rtdecode.evaluate.recorded_session import FEWEST, PX, Pairs, load_pictures
from rtdecode.stimuli import picture_of

Float32 = NDArray[np.float32]
_SEEDS = 1 << 20
"""Between the seeds of two repeats."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedBetas:
    """Trials of one task.

    Attributes
    ----------
    task : str
        Empty where the file names none.
    stimuli : tuple of n str
        Each once.
    betas : tuple of n ndarray of shape (repeats, voxels), float32
    pictures : tuple of n Path
    left_out : tuple of str
        Stimuli without a picture.
    """

    task: str
    stimuli: tuple[str, ...]
    betas: tuple[Float32, ...]
    pictures: tuple[Path, ...]
    left_out: tuple[str, ...]


def read_recorded(path: Path, images: Path) -> list[RecordedBetas]:
    """Read betas and find their pictures.

    Parameters
    ----------
    path : Path
        Safetensors file: ``betas`` (n, voxels), standardised as the pack's networks want them, and in the metadata
        ``stimuli``, a JSON list of n names, and, where there are several, ``tasks``, another.
    images : Path
        Folder of pictures named by stimulus.

    Returns
    -------
    list of RecordedBetas
        One for each task, in the order of the file.

    Raises
    ------
    SettingsError
        It is no such file, or a task has fewer than three stimuli with a picture.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            betas, said = np.asarray(file.get_tensor("betas"), np.float32), file.metadata() or {}
        stimuli, tasks = (json.loads(said.get(name, "[]")) for name in ("stimuli", "tasks"))
    except (OSError, SafetensorError, ValueError) as error:
        raise SettingsError([f"{path}: expected a safetensors file with betas and names of stimuli: {error}"]) from None
    tasks = tasks or [""] * len(betas)
    if betas.ndim != 2 or not len(stimuli) == len(tasks) == len(betas):
        raise SettingsError(
            [
                f"{path}: expected betas (n, voxels) and as many stimuli, and tasks where there are some, got "
                f"{betas.shape}, {len(stimuli)} and {len(tasks)}"
            ]
        )
    if unfit := [name for name in tasks if not all(c.isalnum() or c in "-_" for c in name)]:
        raise SettingsError([f"{path}: tasks: expected names of letters, digits, - and _, got {unfit[0]!r}"])
    if not images.is_dir():
        raise SettingsError([f"{images}: expected a folder of pictures, found none"])
    return [_task(task, betas, stimuli, tasks, images) for task in dict.fromkeys(tasks)]


def _task(task: str, betas: Float32, stimuli: list[str], tasks: list[str], images: Path) -> RecordedBetas:
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(stimuli):
        if tasks[i] == task:
            rows.setdefault(name, []).append(i)
    found = {name: path for name in rows if (path := picture_of(images, name)) is not None}
    left_out = tuple(f"{name}: no picture in {images}" for name in rows if name not in found)
    if len(found) < FEWEST:
        raise SettingsError(
            [
                f"{task or 'betas'}: expected at least {FEWEST} stimuli with a picture, got {len(found)}",
                *left_out[:5],
            ]
        )
    return RecordedBetas(
        task=task,
        stimuli=tuple(found),
        betas=tuple(betas[rows[name]] for name in found),
        pictures=tuple(found.values()),
        left_out=left_out,
    )


def decoded_pairs(recorded: RecordedBetas, decode: RecordDecoder, *, repeats: int, seed: int = 0) -> Iterator[Pairs]:
    """Decode each stimulus from the mean of its betas, several times with other noise.

    Yields
    ------
    Pairs
        One for each repeat.
    """
    true = load_pictures(recorded.pictures, PX)
    for repeat in range(repeats):
        made = [decode(betas, seed + _SEEDS * repeat + i) for i, betas in enumerate(recorded.betas)]
        known = [one.tokens for one in made if one.tokens is not None]
        yield Pairs(
            trials=recorded.stimuli,
            stimuli=recorded.stimuli,
            true=true,
            made=np.stack([bilinear(one.picture.transpose(2, 0, 1).astype(np.float32) / 255, PX) for one in made]),
            captions=tuple(one.caption for one in made),
            tokens=np.stack(known) if len(known) == len(made) else None,
            left_out=recorded.left_out,
        )
