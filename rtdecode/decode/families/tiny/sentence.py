"""Word numbers to a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def sentence(words: NDArray[np.int64], vocabulary: Sequence[str], end: int) -> str:
    """Join the words before `end`.

    Parameters
    ----------
    words : ndarray of shape (l,), int64
        Places in `vocabulary`.
    vocabulary : sequence of str
    end : int
        Place of the word that ends a caption.
    """
    numbers = [int(word) for word in words]
    if end in numbers:
        numbers = numbers[: numbers.index(end)]
    return " ".join(vocabulary[number] for number in numbers)
