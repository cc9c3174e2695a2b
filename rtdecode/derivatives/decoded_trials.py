"""Tables of decoded trials: the derivatives that a resume goes on with instead of making them anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from rtdecode import decoded
from rtdecode.decoded import DecodedPart
from rtdecode.derivatives.columns import DECODED, line, read_table, write_json
from rtdecode.derivatives.names import Guard, file_path
from rtdecode.records import BetaUpdate

_SUFFIX = "desc-decoded_events.tsv"


def decoded_rows(session: Path) -> Iterator[dict[str, str]]:
    """Yield the decoded trials of a session by column, run by run in the order of decoding.

    Parameters
    ----------
    session : Path
        Session folder.

    Raises
    ------
    OSError, UnicodeDecodeError, csv.Error
        A table cannot be read.
    """
    for path in _tables(session):
        yield from read_table(path)[0]


def _tables(session: Path) -> list[Path]:
    return sorted(session.glob(f"sub-*/ses-*/func/*_{_SUFFIX}"))


class DecodedTrials:
    """Final results of a session, one table a run.

    Parameters
    ----------
    session : Path
        Session folder.
    stem : callable
        Returns folder and beginning of the names of a run's derivatives.
    guard : callable
        Returns a context manager in which the file that it is given is written.
    resume : bool
        Go on with the tables that are there, after their last whole rows.
    """

    def __init__(self, session: Path, stem: Callable[[int], Path], guard: Guard, *, resume: bool) -> None:
        self._session = session
        self._stem = stem
        self._guard = guard
        self._files: dict[Path, TextIO] = {}
        for path in _tables(session) if resume else ():
            end = path.read_bytes().rfind(b"\n") + 1
            os.truncate(path, end)
            if end:
                self._files[path] = path.open("a", encoding="utf-8", buffering=1)

    def trials(self) -> set[str]:
        """Names of the trials in the tables."""
        return {row["trial"] for row in decoded_rows(self._session)}

    def claim(self) -> float:
        """Return what the last trial in the tables says of the session so far; 1 where none does."""
        told = [row["claim"] for row in decoded_rows(self._session) if row.get("claim") not in (None, "n/a")]
        return float(told[-1]) if told else 1.0

    def add(
        self,
        beta: BetaUpdate,
        found: Sequence[DecodedPart],
        picture: str | None,
        latency_ms: float,
    ) -> None:
        """Add a trial's final result.

        Parameters
        ----------
        beta : BetaUpdate
        found : sequence of DecodedPart
            All that was decoded of it.
        picture : str or None
            Path in the session folder, empty if it was not kept; None where the pack makes none.
        latency_ms : float
            From the volume's file to the last of these.
        """
        event = beta.event
        values = (
            float(event.onset_s), float(event.duration_s), event.condition, event.trial, event.stimulus,
            *decoded.row(found), beta.revision + 1, picture, f"{latency_ms:.1f}",
        )  # fmt: skip
        with self._guard(file_path(self._stem(event.run), _SUFFIX)) as path:
            file = self._files.get(path)
            if file is None:
                write_json(path.with_suffix(".json"), DECODED)
                file = self._files[path] = path.open("w", encoding="utf-8", buffering=1)
                file.write(line([*DECODED]))
            file.write(line(values))

    def close(self) -> None:
        """Close the tables."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()
