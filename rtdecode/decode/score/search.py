"""How a session names pictures most like what was decoded: a pool, what it is asked with, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from rtdecode.decode.score.reranking import CANDIDATES, reranked
from rtdecode.errors import EngineError

_NAMED = 5


class Pool(Protocol):
    """What is searched."""

    how: str

    def nearest(self, query: NDArray[Any], k: int) -> list[tuple[str, float]]:
        """Return the `k` most similar pictures found and their cosines, best first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What a search gave.

    Attributes
    ----------
    nearest : dict of str to float
        Pictures and their cosines, best first.
    unsearched : str
        Why there are none; empty where there are.
    """

    nearest: dict[str, float]
    unsearched: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PictureSearch:
    """A pool as a session searches it.

    Attributes
    ----------
    pool : Pool
    final : callable or None
        Decoded tokens (t, d) to the one embedding that the pool is searched with; None: with all tokens.
    tokens : mapping of str to ndarray of shape (t, d), or None
        Of pictures of the pool: the candidates that it finds are told in the order of these.
    """

    pool: Pool
    final: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    tokens: Mapping[str, NDArray[Any]] | None = None

    @property
    def how(self) -> str:
        """How it is searched, in words."""
        ordered = "" if self.tokens is None else f"; {CANDIDATES} candidates in the order of their tokens"
        return f"{self.pool.how}{ordered}"

    def of(self, tokens: NDArray[Any]) -> Found:
        """Search with decoded tokens (t, d); a pool that does not answer costs its pictures and nothing else."""
        query = tokens if self.final is None else self.final(tokens)
        try:
            found = self.pool.nearest(query, _NAMED if self.tokens is None else CANDIDATES)
        except EngineError as error:
            return Found(nearest={}, unsearched=str(error))
        if self.tokens is not None:
            found = reranked(found, tokens, self.tokens)
        return Found(nearest=dict(found[:_NAMED]))
