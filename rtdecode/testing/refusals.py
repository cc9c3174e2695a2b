"""That something is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def refused(what: str, error: type[Exception], words: str = "") -> Iterator[None]:
    """Check that the block raises an error whose text holds `words`.

    Raises
    ------
    AssertionError
        It raises none, or the text is another; another error passes through.
    """
    try:
        yield
    except error as told:
        if words not in str(told):
            raise AssertionError(f"{what}: expected {words!r} in the message, got {told}") from None
        return
    raise AssertionError(f"{what}: expected {error.__name__}, got none")
