"""What the heads of a tiny imagery pack predict of a picture: its semantic tokens, and the words of its caption."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.families.tiny.tiny_stages import TinyStages
from rtdecode.decode.score.candidates import Candidates

_BATCH = 64
_TEXT_SHARE = 1.0
"""Variance of all words together over that of the semantic tokens."""


def head_candidates(stages: TinyStages, whole: Candidates) -> Candidates:
    """Reduce candidates of a tiny pack to what is high-level.

    Parameters
    ----------
    stages : TinyStages
    whole : Candidates
        With all tokens.

    Returns
    -------
    Candidates
        Of one row: semantic tokens, then one value for each word of the vocabulary.
    """
    semantic = stages.groups[0]
    width = semantic.stop - semantic.start
    words, prototype_words = said(stages, whole.tokens), said(stages, whole.prototypes)
    image = whole.tokens.reshape(len(whole.tokens), -1)[:, semantic]
    scale = np.sqrt(_TEXT_SHARE * image.var(0).sum() / max(float(words.var(0).sum()), 1e-6))
    prototypes = whole.prototypes.reshape(len(whole.prototypes), -1)[:, semantic]

    def joined(tokens: NDArray[np.float32], text: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([tokens, scale * text], axis=1)[:, None].astype(np.float32)

    n = width + words.shape[1]
    return replace(
        whole,
        tokens=joined(image, words),
        prototypes=joined(prototypes, prototype_words),
        groups=(slice(0, width), slice(width, n)),
    )


def said(stages: TinyStages, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """Words (n, vocabulary) of the captions of tokens (n, t, d): 1 where a word is said."""
    found = np.zeros((len(tokens), len(stages.vocabulary)), np.float32)
    for at in range(0, len(tokens), _BATCH):
        for row, words in enumerate(stages.captioner.run({"tokens": tokens[at : at + _BATCH]})["words"], start=at):
            numbers = [int(word) for word in words]
            kept = numbers[: numbers.index(stages.end)] if stages.end in numbers else numbers
            found[row, kept] = 1
    return found
