"""What the journals of a session hold, one structure a kind; the kind stands in each record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from rtdecode.errors import JournalError
from rtdecode.session.journal import enumerated
from rtdecode.typed import Table, checked


class _Entry(Table, frozen=True, kw_only=True, tag_field="kind"):
    t_wall: float
    """Seconds since 1970 when it was written."""


class SessionEntry(_Entry, frozen=True, kw_only=True, tag="session"):
    """The session's identifier."""

    session: str


class VolumeEntry(_Entry, frozen=True, kw_only=True, tag="volume"):
    """A volume came; see `rtdecode.records.Volume`. `kept` is where its values are, in the session folder."""

    run: int
    volume: int
    path: str
    kept: str
    series_uid: str
    instance: int
    slope: float
    intercept: float
    affine: list[float]
    t_r_s: float | None
    slice_times_s: list[float] | None
    acquired_s: float | None
    received_s: float
    problems: list[str]
    t_r_measured: bool = False


class SkippedEntry(_Entry, frozen=True, kw_only=True, tag="skipped"):
    """A volume or file that could not be used."""

    run: int
    volume: int | None
    path: str
    reason: str


class MissingEntry(SkippedEntry, frozen=True, kw_only=True, tag="missing"):
    """A volume that was waited for in vain."""


class RunStartEntry(_Entry, frozen=True, kw_only=True, tag="run_start"):
    """See `rtdecode.records.RunStart`."""

    run: int
    expected: int | None
    t_r_s: float | None = None


class RunEndEntry(_Entry, frozen=True, kw_only=True, tag="run_end"):
    """See `rtdecode.records.RunEnd`."""

    run: int
    volumes: int | None


class TrialEntry(_Entry, frozen=True, kw_only=True, tag="trial"):
    """See `rtdecode.records.TrialEvent`."""

    run: int
    trial: str
    onset_s: float
    duration_s: float
    stimulus: str | None
    condition: str | None
    candidates: tuple[str, ...] = ()


class AmendEntry(_Entry, frozen=True, kw_only=True, tag="amend"):
    """See `rtdecode.records.TrialAmended`."""

    run: int
    trial: str
    onset_s: float
    duration_s: float
    stimulus: str | None
    condition: str | None
    candidates: tuple[str, ...] = ()


class CancelEntry(_Entry, frozen=True, kw_only=True, tag="cancel"):
    """See `rtdecode.records.TrialCancelled`."""

    run: int
    trial: str


class OverdueEntry(_Entry, frozen=True, kw_only=True, tag="overdue"):
    """See `rtdecode.records.TrialOverdue`."""

    run: int
    trial: str


class FilmEntry(_Entry, frozen=True, kw_only=True, tag="film"):
    """See `rtdecode.records.FilmStart`."""

    run: int
    film: str
    onset_s: float


class BundleEntry(_Entry, frozen=True, kw_only=True, tag="bundle"):
    """A client asked to decode with a ParticipantBundle."""

    folder: str
    identity: str
    last_run: int | None = None
    token: str | None = None


class CommandEntry(_Entry, frozen=True, kw_only=True, tag="command"):
    """See `rtdecode.records.Command`."""

    token: str
    command: Literal["pause", "resume", "feedback", "bad_run", "recalibrate", "stop", "film"]
    reason: str
    run: int | None
    onset_s: float | None
    last_run: int | None
    target: str | None
    regions: tuple[str, ...] | None
    threshold: float | None
    half_life_s: float | None


class BlindedEntry(_Entry, frozen=True, kw_only=True, tag="blinded"):
    """The session is blinded: what the allocation holds of its participant; see `rtdecode.blinding.allocation.Seal`."""

    protocol: str
    participant: str
    nonce: str
    hash: str


class SealedEntry(_Entry, frozen=True, kw_only=True, tag="sealed"):
    """Score and sham at a place, closed; see `rtdecode.blinding.allocation.Envelope`."""

    place: str
    envelope: bytes


class UnblindedEntry(_Entry, frozen=True, kw_only=True, tag="unblinded"):
    """Somebody has opened the seal with the key, and why."""

    reason: str


class SourcesEntry(_Entry, frozen=True, kw_only=True, tag="sources"):
    """What the settings name besides values, by name of the setting: SHA-256 when the session began."""

    hashes: dict[str, str]


class BundleLoadedEntry(_Entry, frozen=True, kw_only=True, tag="bundle_loaded"):
    """It was loaded."""

    identity: str


class SupersededEntry(_Entry, frozen=True, kw_only=True, tag="superseded"):
    """A revision of a trial that was not decoded, as a later one had come."""

    trial: str
    revision: int


class OutputEntry(_Entry, frozen=True, kw_only=True, tag="output"):
    """A message that was published."""

    topic: str
    payload: bytes


Input = (
    SessionEntry
    | VolumeEntry
    | SkippedEntry
    | MissingEntry
    | RunStartEntry
    | RunEndEntry
    | TrialEntry
    | AmendEntry
    | CancelEntry
    | OverdueEntry
    | FilmEntry
    | BundleEntry
    | CommandEntry
    | BlindedEntry
    | SealedEntry
    | UnblindedEntry
    | SourcesEntry
    | BundleLoadedEntry
    | SupersededEntry
)
"""In ``inputs.journal``: what came, and what time has decided."""


def read_inputs(journal: Path) -> Iterator[Input]:
    """Yield the records of ``inputs.journal``.

    Raises
    ------
    JournalError
        It is no journal, is damaged, or holds what this version does not know; the place is told.
    """
    return (entry for _, entry in _read(journal, Input))


def bad_runs(session: Path) -> frozenset[int]:
    """Return the runs of a session folder that were marked as bad; none where there is no journal of inputs."""
    journal = session / "journal" / "inputs.journal"
    marks = (entry for entry in read_inputs(journal) if isinstance(entry, CommandEntry)) if journal.is_file() else ()
    return frozenset(entry.run for entry in marks if entry.command == "bad_run" and entry.run is not None)


def read_outputs(journal: Path) -> Iterator[tuple[int, OutputEntry]]:
    """Yield place and record of every message of ``outputs.journal``; errors as of `read_inputs`."""
    return _read(journal, OutputEntry)


def _read(journal: Path, kind: Any) -> Iterator[tuple[int, Any]]:
    for place, record in enumerated(journal):
        yield place, checked(record, kind, source=f"{journal}: byte {place}", error=JournalError)
