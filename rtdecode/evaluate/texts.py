"""Measures of captions by models; their weights are read from this machine only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from rtdecode.evaluate.judges import clip
from rtdecode.statistics import cosines

Alike = Callable[[str, Sequence[str]], float]
"""A caption and its references to how alike they are, the best reference counting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMeasure:
    """A measure as in the papers' tables.

    Attributes
    ----------
    name : str
    file : str
        File or folder of its weights.
    build : callable
        Is given its path.
    """

    name: str
    file: str
    build: Callable[[Path], Alike]


def load(measure: TextMeasure, folder: Path) -> Alike:
    """Return the measure, ready.

    Raises
    ------
    FileNotFoundError
        The weights are not in the folder.
    ImportError, RuntimeError, ValueError, OSError
        A library is missing, or the weights are not what their name says.
    """
    path = folder / measure.file
    if not path.exists():
        raise FileNotFoundError(str(path))
    return measure.build(path)


def _by_embedding(embed: Callable[[list[str]], NDArray[np.float32]]) -> Alike:
    def alike(made: str, references: Sequence[str]) -> float:
        vectors = embed([made, *references])
        return float(cosines(vectors[:1], vectors[1:]).max())

    return alike


def _sentence(path: Path) -> Alike:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True).eval()

    def embed(texts: list[str]) -> NDArray[np.float32]:
        given: Any = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            states = model(**given).last_hidden_state
        counted = given["attention_mask"][..., None].float()
        return np.asarray(((states * counted).sum(1) / counted.sum(1)).numpy())

    return _by_embedding(embed)


def _clip(name: str) -> Callable[[Path], Alike]:
    def build(path: Path) -> Alike:
        import open_clip
        import torch
        from safetensors.torch import load_file

        model = clip(name, load_file(path))
        tokenizer = open_clip.get_tokenizer(name)

        def embed(texts: list[str]) -> NDArray[np.float32]:
            with torch.no_grad():
                return np.asarray(model.encode_text(tokenizer(texts)).numpy())

        return _by_embedding(embed)

    return build


def _meteor(path: Path) -> Alike:
    import nltk

    nltk.data.path.insert(0, str(path.parents[1]))
    try:
        nltk.corpus.wordnet.ensure_loaded()
    except (LookupError, BadZipFile) as error:
        raise ValueError(f"{path} is not WordNet as nltk has it: {str(error).strip().splitlines()[0]}") from None

    def alike(made: str, references: Sequence[str]) -> float:
        said = [one.lower().split() for one in references]
        return float(nltk.translate.meteor_score.meteor_score(said, made.lower().split()))

    return alike


TEXTS = (
    TextMeasure(name="METEOR", file="nltk_data/corpora/wordnet.zip", build=_meteor),
    TextMeasure(name="Sentence", file="all-MiniLM-L6-v2", build=_sentence),
    TextMeasure(name="CLIP-B of captions", file="ViT-B-32-openai.safetensors", build=_clip("ViT-B-32")),
    TextMeasure(name="CLIP-L of captions", file="ViT-L-14-openai.safetensors", build=_clip("ViT-L-14")),
)
