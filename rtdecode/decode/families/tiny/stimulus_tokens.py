"""What a trial may have shown, embedded by a tiny pack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.families.tiny.tiny_stages import TinyStages
from rtdecode.decode.score.candidates import Candidates, read_picture
from rtdecode.stimuli import pictures_in

_BATCH = 64


def embed_candidates(stages: TinyStages, stimuli: Path | None) -> Candidates:
    """Embed the pictures of a folder, or take the category prototypes.

    The category of a picture is the one whose prototype is nearest in the first token group.

    Parameters
    ----------
    stages : TinyStages
    stimuli : Path or None
        Folder of pictures named by stimulus; None takes the pack's categories.

    Raises
    ------
    BundleError
        The folder holds no picture, two of one stimulus, or one that cannot be read.
    """
    if stimuli is None:
        return _candidates(stages, stages.categories, stages.prototypes)
    found = pictures_in(stimuli)
    paths = list(found.values())
    parts = [
        embed_pictures(stages, np.stack([read_picture(path, stages.picture_px) for path in paths[i : i + _BATCH]]))
        for i in range(0, len(paths), _BATCH)
    ]
    return _candidates(stages, tuple(found), np.concatenate(parts))


def _candidates(stages: TinyStages, names: tuple[str, ...], tokens: NDArray[np.float32]) -> Candidates:
    group = stages.groups[0]
    flat = tokens.reshape(len(tokens), -1)[:, group]
    centres = stages.prototypes.reshape(len(stages.prototypes), -1)[:, group]
    distances = np.square(flat[:, None] - centres[None]).sum(2)
    return Candidates(
        names=names,
        tokens=tokens,
        category=np.asarray(distances.argmin(1), dtype=np.int64),
        categories=stages.categories,
        prototypes=stages.prototypes,
        groups=stages.groups,
        group_names=stages.group_names,
    )


def embed_pictures(stages: TinyStages, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Tokens (n, t, d) of pictures (n, height, width, 3) of the pack's size."""
    scaled = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)
    return stages.embedder.run({"image": scaled})["tokens"].astype(np.float32, copy=False)
