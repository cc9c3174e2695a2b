"""The stimuli of a session with a MindEye2 pack: their places in the backbone's hidden space, and their categories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from rtdecode.decode.families.latent_map import LATENTS, latents_of
from rtdecode.decode.families.stimulus_folder import (
    EMBEDDINGS,
    candidates_of,
    read_categories,
    with_same_pictures,
)
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import BundleError
from rtdecode.packs import EnginePack


def read_stimuli(pack: EnginePack, folder: Path | None) -> Candidates:
    """Read the hidden vectors of the pictures of a folder, each a single token of one group.

    Parameters
    ----------
    pack : EnginePack
        With the map of ``rtdecode engines latents``.
    folder : Path or None
        Pictures named by stimulus, ``embeddings.safetensors`` of ``rtdecode engines embed``, and ``categories.json``,
        an object of stimulus to category.

    Raises
    ------
    BundleError
        A file is missing or cannot be read, was made for another map, or does not fit the pictures.
    """
    category_of = read_categories(pack, folder)
    assert folder is not None  # else there are no categories
    path = folder / EMBEDDINGS
    again = f"rtdecode engines embed {folder} --pack {pack.folder}"
    table = latents_of(pack)
    if table is None:
        raise BundleError(
            f"pack {pack.name}: expected the map that a participant is calibrated through, got none: "
            f"rtdecode engines latents {pack.folder}"
        )
    try:
        with safe_open(path, framework="np") as file:
            facts = file.metadata() or {}
            names = tuple(json.loads(facts.get("names", "[]")))
            latents = file.get_tensor(LATENTS) if LATENTS in file.keys() else None  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise BundleError(f"{path}: expected embeddings of the pictures ({error}): {again}") from None
    if latents is None or facts.get(LATENTS) != pack.digest(table.file):
        raise BundleError(f"{path}: expected embeddings by the map of pack {pack.name}: {again}")
    with_same_pictures(folder, path, names, again)
    return candidates_of(folder, names, np.asarray(latents, dtype=np.float32)[:, None], category_of)
