"""Measures of captions that need no weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence


def rouge_1(made: str, references: Sequence[str]) -> float:
    """F-measure of single words, against the best of some references (Lin 2004)."""
    return _best(made, references, lambda a, b: sum((Counter(a) & Counter(b)).values()))


def rouge_l(made: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words, against the best of some references (Lin 2004)."""
    return _best(made, references, _common)


def _best(made: str, references: Sequence[str], common: Callable[[list[str], list[str]], int]) -> float:
    own = _words(made)
    return max((_f(common(own, other), own, other) for other in map(_words, references)), default=0.0)


def _f(common: int, a: list[str], b: list[str]) -> float:
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _common(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for place, other in enumerate(b, start=1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]
