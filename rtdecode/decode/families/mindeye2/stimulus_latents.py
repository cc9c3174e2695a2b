"""The stimuli of a session with a MindEye2 pack: their places in the backbone's hidden space, and their categories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from rtdecode.decode.families.mindeye2.latent_map import EMBEDDINGS, LATENTS, latents_of
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import BundleError
from rtdecode.packs import EnginePack
from rtdecode.stimuli import pictures_in

CATEGORIES = "categories.json"


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
    if strange := sorted(pictures_in(folder).keys() ^ set(names)):
        raise BundleError(f"{path}: pictures have changed since ({', '.join(strange[:5])}): {again}")
    if lost := [name for name in names if name not in category_of]:
        raise BundleError(f"{folder / CATEGORIES}: expected a category of every picture, none of {', '.join(lost[:5])}")
    categories = tuple(sorted(set(category_of.values())))
    category = np.array([categories.index(category_of[name]) for name in names], dtype=np.int64)
    if empty := [name for i, name in enumerate(categories) if i not in category]:
        raise BundleError(
            f"{folder / CATEGORIES}: expected a picture of every category, none of {', '.join(empty[:5])}"
        )
    tokens = np.asarray(latents, dtype=np.float32)[:, None]
    return Candidates(
        names=names,
        tokens=tokens,
        category=category,
        categories=categories,
        prototypes=np.stack([tokens[category == i].mean(0) for i in range(len(categories))]),
        groups=(slice(0, tokens.shape[2]),),
    )


def read_categories(pack: EnginePack, folder: Path | None) -> Mapping[str, str]:
    """Read the category of each stimulus of a folder.

    Parameters
    ----------
    pack : EnginePack
    folder : Path or None

    Raises
    ------
    BundleError
        There is no folder, or no ``categories.json`` in it that names at least two categories.
    """
    if folder is None:
        raise BundleError(f"pack {pack.name} needs decode.stimuli: a folder of the pictures that trials show")
    path = folder / CATEGORIES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: expected a JSON object of stimulus to category ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise BundleError(f"{path}: expected a JSON object of stimulus to category, both text")
    if len(set(content.values())) < 2:
        raise BundleError(f"{path}: expected at least two categories, got {len(set(content.values()))}")
    return content
