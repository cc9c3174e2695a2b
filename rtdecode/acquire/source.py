"""What the line sees of a scanner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from rtdecode.records import Skipped, Volume


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrival:
    """Something that came from the scanner, or was given up.

    Attributes
    ----------
    path : Path or None
        Full path of the file; None where no file came (a gap).
    item : Volume or Skipped
        A `Skipped` with a volume index stands for that index of the run: no volume of that index comes. One
        without (duplicates, late or foreign files) takes no index away.
    """

    path: Path | None
    item: Volume | Skipped


class Source(Protocol):
    """Gives each volume of each run once, in index order."""

    @property
    def problem(self) -> str | None:
        """Why nothing could be looked for at the last poll, or None."""
        ...

    @property
    def looks(self) -> int:
        """Number of files looked at so far: it grows while `poll` goes on, and may be read from any thread."""
        ...

    def poll(self) -> list[Arrival]:
        """Return what came since the last call, without blocking on the scanner."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return when another `poll` may be worth it, after `timeout_s` seconds at the latest."""
        ...

    def close(self) -> None:
        """Release what the source holds; idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
