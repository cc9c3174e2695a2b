"""Standard normal noise by counting: value i of a key is the same on every device, whoever asks for it.

Philox 4x32 with 10 rounds (Salmon et al. 2011) in whole numbers, and a table of normal quantiles with straight lines
between them: only operations that are exact, or rounded once, everywhere. Logarithms and cosines are neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORDS = 4
_MASK = 0xFFFFFFFF
_CELLS = 1024
"""Cells of the table between one power of two and the next."""
_OCTAVES = 31


def key_of(seed: int, *streams: int) -> tuple[int, int]:
    """Key of one of a seed's streams of noise, which do not depend on each other."""
    first, second = np.random.SeedSequence((seed, *streams)).generate_state(2)
    return int(first), int(second)


def normal(xp: Any, key: tuple[int, int], shape: Sequence[int], **place: Any) -> Any:
    """Draw standard normal noise.

    Parameters
    ----------
    xp : module
        numpy or torch.
    key : tuple of int
        Of `key_of`.
    shape : sequence of int
    place
        ``device`` of torch.

    Returns
    -------
    array of shape `shape`, float32
        Values beyond 6.3 do not occur.
    """
    n = math.prod(shape)
    words = philox(xp.arange(-(-n // _WORDS), dtype=xp.int64, **place), key)
    return _quantiles(xp, xp.stack(words, -1).reshape(-1)[:n], **place).reshape(tuple(shape))


def philox(block: Any, key: tuple[int, int]) -> list[Any]:
    """Four words of 32 bits each, int64, for the blocks (n,), int64, of a key.

    Products wrap around at 64 bits, whose upper half is right all the same once the sign is masked away.
    """
    words = [block & _MASK, (block >> 32) & _MASK, block * 0, block * 0]
    keys = list(key)
    for _ in range(_ROUNDS):
        left, right = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        words = [
            ((right >> 32) & _MASK) ^ words[1] ^ keys[0],
            right & _MASK,
            ((left >> 32) & _MASK) ^ words[3] ^ keys[1],
            left & _MASK,
        ]
        keys = [(one + more) & _MASK for one, more in zip(keys, _INCREMENTS, strict=True)]
    return words


def _quantiles(xp: Any, words: Any, **place: Any) -> Any:
    """Return normal quantiles of words: one bit is the sign, 31 the probability below it."""
    table = _table() if xp is np else xp.from_numpy(_table()).to(**place)
    size = xp.asarray((words >> 1) + 1, dtype=xp.float64)
    mantissa, exponent = xp.frexp(size)
    along = (mantissa - 0.5) * (2 * _CELLS)
    cell = xp.asarray(along, dtype=xp.int64)
    at = (xp.asarray(exponent, dtype=xp.int64) - 1) * _CELLS + cell
    low = table[at]
    found = low + (table[at + 1] - low) * (along - cell)
    return xp.asarray(found * (1 - 2 * (words & 1)), dtype=xp.float32)


@cache
def _table() -> NDArray[np.float64]:
    """Quantiles at the borders of the cells: of (whole + fraction) / 2^32, so that the last is the median."""
    octave, cell = np.divmod(np.arange((_OCTAVES + 1) * _CELLS + 1), _CELLS)
    at = 2.0**octave * (1 + cell / _CELLS)
    return np.asarray(ndtri(np.minimum(at / 2.0 ** (_OCTAVES + 1), 0.5)))
