"""What families share of a folder of stimuli: its categories, and embeddings of its pictures beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import BundleError
from rtdecode.packs import EnginePack
from rtdecode.stimuli import pictures_in

CATEGORIES = "categories.json"
EMBEDDINGS = "embeddings.safetensors"
"""Embeddings of a folder of pictures, in that folder, as ``rtdecode engines embed`` writes them."""


def read_token_candidates(pack: EnginePack, folder: Path | None) -> Candidates:
    """Read the tokens of the pictures of a folder, as a pack's embedder gave them.

    Parameters
    ----------
    pack : EnginePack
        Its ``tokens.groups`` are the token groups; without any, all tokens are one.
    folder : Path or None
        Pictures named by stimulus, ``embeddings.safetensors`` of ``rtdecode engines embed``, and ``categories.json``,
        an object of stimulus to category.

    Raises
    ------
    BundleError
        A file is missing or cannot be read, was made by another embedder, or does not fit the pictures.
    """
    category_of = read_categories(pack, folder)
    assert folder is not None  # else there are no categories
    path, again = folder / EMBEDDINGS, f"rtdecode engines embed {folder} --pack {pack.folder}"
    try:
        with safe_open(path, framework="np") as file:
            facts = file.metadata() or {}
            tokens = file.get_tensor("tokens")
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: expected embeddings of the pictures ({error}): {again}") from None
    embedder = pack.description.stages.get("embedder")
    if embedder is None or facts.get("embedder") != pack.digest(embedder.file):
        raise BundleError(f"{path}: expected embeddings by the embedder of pack {pack.name}: {again}")
    said = pack.description.tokens
    if tokens.shape[1:] != (said.count, said.channels):
        raise BundleError(f"{path}: expected tokens {said.count} x {said.channels}, got {tokens.shape[1:]}: {again}")
    names = tuple(json.loads(facts.get("names", "[]")))
    with_same_pictures(folder, path, names, again)
    groups = {name: slice(*ends) for name, ends in said.groups.items()}
    return candidates_of(folder, names, tokens.astype(np.float32), category_of, groups)


def with_same_pictures(folder: Path, embeddings: Path, names: Sequence[str], again: str) -> None:
    """Check that a folder holds the pictures that were embedded.

    Raises
    ------
    BundleError
        It does not; `again` is the command that embeds them.
    """
    if strange := sorted(pictures_in(folder).keys() ^ set(names)):
        raise BundleError(f"{embeddings}: pictures have changed since ({', '.join(strange[:5])}): {again}")


def candidates_of(
    folder: Path,
    names: tuple[str, ...],
    tokens: NDArray[np.float32],
    category_of: Mapping[str, str],
    groups: Mapping[str, slice] = MappingProxyType({}),
) -> Candidates:
    """Make candidates of tokens (n, t, d) and the categories of their pictures; without groups all tokens are one.

    Raises
    ------
    BundleError
        A picture has no category, or a category no picture, or tokens of a picture are not numbers.
    """
    if bad := [name for name, own in zip(names, tokens, strict=True) if not np.isfinite(own).all()]:
        raise BundleError(f"{folder / EMBEDDINGS}: tokens are not numbers in {', '.join(bad[:5])}: embed them anew")
    if lost := [name for name in names if name not in category_of]:
        raise BundleError(f"{folder / CATEGORIES}: expected a category of every picture, none of {', '.join(lost[:5])}")
    categories = tuple(sorted(set(category_of.values())))
    category = np.array([categories.index(category_of[name]) for name in names], dtype=np.int64)
    if empty := [name for i, name in enumerate(categories) if i not in category]:
        raise BundleError(
            f"{folder / CATEGORIES}: expected a picture of every category, none of {', '.join(empty[:5])}"
        )
    return Candidates(
        names=names,
        tokens=tokens,
        category=category,
        categories=categories,
        prototypes=np.stack([tokens[category == i].mean(0) for i in range(len(categories))]),
        groups=tuple(groups.values()) or (slice(0, tokens.shape[1] * tokens.shape[2]),),
        group_names=tuple(groups) if len(groups) > 1 else (),
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
