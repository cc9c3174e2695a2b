"""What an interrupted session has left: its inputs, ready to be folded again, and its outputs."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from rtdecode.errors import JournalError, SettingsError
from rtdecode.records import (
    BundleRequest,
    Command,
    FilmStart,
    KnownRun,
    RunEnd,
    RunStart,
    Skipped,
    Stamp,
    TrialAmended,
    TrialCancelled,
    TrialEvent,
    TrialOverdue,
    Volume,
)
from rtdecode.session import entries
from rtdecode.session.entries import read_inputs, read_outputs
from rtdecode.session.recording import PROTOCOL, session_identifier
from rtdecode.settings import Settings, parse

Input = (
    Volume
    | Skipped
    | TrialEvent
    | TrialAmended
    | TrialCancelled
    | TrialOverdue
    | RunStart
    | RunEnd
    | FilmStart
    | BundleRequest
    | Command
)
_RECORDS: dict[type, type[Any]] = {
    entries.TrialEntry: TrialEvent,
    entries.AmendEntry: TrialAmended,
    entries.CancelEntry: TrialCancelled,
    entries.OverdueEntry: TrialOverdue,
    entries.RunStartEntry: RunStart,
    entries.RunEndEntry: RunEnd,
    entries.FilmEntry: FilmStart,
    entries.BundleEntry: BundleRequest,
    entries.CommandEntry: Command,
}
"""Records that hold what their entries do, by name."""

_OF_A_VOLUME = entries.VolumeEntry | entries.SkippedEntry
_FREE = ("publish", "session.output", "decode.threads", "decode.backend", "decode.weights_gb")
"""Settings that a resumed session may have otherwise than it began with."""


def check_unchanged(settings: Settings, folder: Path, root: Path) -> None:
    """Hold the settings that a session is resumed with to those that it began with.

    Parameters
    ----------
    settings : Settings
    folder : Path
        Session folder.
    root : Path
        What relative paths of the settings are relative to.

    Raises
    ------
    SettingsError
        They would give other results.
    """
    try:
        began = parse(tomllib.loads((folder / "settings.toml").read_text(encoding="utf-8")), root=root)
    except OSError as error:
        raise JournalError(f"{folder}: no session to resume: {error}") from None
    problems = [
        f"$.{name}: expected {_worded(was)} as when the session began, got {_worded(now)}"
        for (name, was), (_, now) in zip(_flat(began), _flat(settings), strict=True)
        if was != now and name not in _FREE and name.partition(".")[0] not in _FREE
    ]
    kept = folder / PROTOCOL
    protocol = settings.session.protocol
    if protocol is not None and kept.is_file() and kept.read_bytes() != protocol.read_bytes():
        problems.append(f"$.session.protocol: expected the file as when the session began ({kept}), got another")
    if problems:
        raise SettingsError(problems)


def sources(settings: Settings, predictions: Mapping[str, str]) -> dict[str, str]:
    """Return the SHA-256 of film predictions, masks and label images, by the settings that name them.

    Parameters
    ----------
    settings : Settings
    predictions : mapping of str to str
        Identities by the name of the film.

    Raises
    ------
    SettingsError
        A file cannot be read.
    """
    estimate = settings.estimate
    files = {f"estimate.parcels.{name}": path for name, path in estimate.parcels.items()}
    files |= {f"estimate.regions.{name}": path for name, path in estimate.regions.items()}
    if isinstance(estimate.mask, Path):
        files["estimate.mask"] = estimate.mask
    found = {f"film.predictions.{name}": identity for name, identity in predictions.items()}
    for name, path in files.items():
        try:
            with path.open("rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise SettingsError([f"$.{name}: expected a readable file: {error}"]) from None
    return found


def _worded(value: Any) -> str:
    return repr(str(value) if isinstance(value, Path) else value)


def _flat(settings: Settings) -> list[tuple[str, Any]]:
    sections = asdict(settings)
    return [(f"{name}.{key}", value) for name, section in sections.items() for key, value in section.items()]


class Past:
    """The journals of an interrupted session.

    Parameters
    ----------
    folder : Path
        Session folder.
    leave_out : bool
        Let a volume that was kept but cannot be read any more be missing, instead of refusing.

    Raises
    ------
    JournalError
        They are absent, damaged or of another schema.
    """

    def __init__(self, folder: Path, *, leave_out: bool = False) -> None:
        self._folder = folder
        self._leave_out = leave_out
        self._session = session_identifier(folder)
        self._inputs = list(read_inputs(folder / "journal" / "inputs.journal"))

    def __len__(self) -> int:
        return len(self._inputs)

    def outputs(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield place in the journal, topic and payload of every message that was published."""
        for place, entry in read_outputs(self._folder / "journal" / "outputs.journal"):
            yield place, entry.topic.encode(), entry.payload

    @property
    def bundle(self) -> str | None:
        """Folder of the last ParticipantBundle that was asked for."""
        folders = [entry.folder for entry in self._inputs if isinstance(entry, entries.BundleEntry)]
        return folders[-1] if folders else None

    def check_sources(self, now: Mapping[str, str]) -> None:
        """Hold predictions, masks and label images to those that the session began with.

        Parameters
        ----------
        now : mapping of str to str
            Of `sources`.

        Raises
        ------
        SettingsError
            One is another; both hashes are told.
        """
        began = next((entry.hashes for entry in self._inputs if isinstance(entry, entries.SourcesEntry)), now)
        problems = [
            f"$.{name}: expected content {was} as when the session began, got {now.get(name, 'none')}: put back what "
            "was there, or begin another session"
            for name, was in began.items()
            if now.get(name) != was
        ]
        if problems:
            raise SettingsError(problems)

    def runs(self) -> list[KnownRun]:
        """Every run of which a volume came, in order."""
        found: dict[int, KnownRun] = {}
        for entry in self._inputs:
            if not isinstance(entry, _OF_A_VOLUME) or entry.volume is None:
                continue
            number, index = entry.run, entry.volume
            known = found.get(number)
            if isinstance(entry, entries.VolumeEntry):
                offset, uid = entry.instance - index, entry.series_uid
            elif known is not None:
                offset, uid = known.offset, known.series_uid
            else:
                continue
            found[number] = KnownRun(number=number, series_uid=uid, offset=offset, next_index=index + 1)
        return [found[number] for number in sorted(found)]

    def inputs(self, now_mono_s: float, *, run: int | None = None) -> Iterator[Input]:
        """Yield the inputs again, in their order.

        Parameters
        ----------
        now_mono_s : float
            Stands for the moment of arrival on the monotonic clock, which did not outlive its process.
        run : int or None
            Leave out what belongs to other runs.

        Raises
        ------
        JournalError
            A volume that was kept cannot be read.
        """
        accounted: dict[int, int] = {}
        for entry in self._inputs:
            if run is not None and getattr(entry, "run", run) != run:
                continue
            if isinstance(entry, _OF_A_VOLUME) and entry.volume is not None:
                number, index = entry.run, entry.volume
                for lost in range(accounted.get(number, index), index):
                    yield Skipped(run=number, volume=lost, path="", reason="its record in the journal was damaged")
                accounted[number] = max(accounted.get(number, 0), index + 1)
            match entry:
                case entries.VolumeEntry():
                    yield self._volume(entry, now_mono_s)
                case entries.SkippedEntry():
                    yield Skipped(run=entry.run, volume=entry.volume, path=entry.path, reason=entry.reason)
                case _ if type(entry) in _RECORDS:
                    kind = _RECORDS[type(entry)]
                    yield kind(**{spec.name: getattr(entry, spec.name) for spec in fields(kind)})

    def _volume(self, entry: entries.VolumeEntry, now_mono_s: float) -> Volume | Skipped:
        path = self._folder / entry.kept
        try:
            data = np.asarray(nib.load(path).dataobj.get_unscaled())
        except (OSError, ImageFileError, ValueError) as error:
            why = str(error).splitlines()[0]
            problem = f"expected the volume that was kept in {path.parent.name}/{path.name}: {why}"
            if self._leave_out:
                return Skipped(run=entry.run, volume=entry.volume, path=entry.path, reason=problem)
            raise JournalError(
                f"{problem}; put it back from a copy, or resume without it: --resume --leave-out-unreadable"
            ) from None
        times = entry.slice_times_s
        return Volume(
            stamp=Stamp(
                session=self._session,
                run=entry.run,
                volume=entry.volume,
                acquired_s=entry.acquired_s,
                received_s=entry.received_s,
                received_mono_s=now_mono_s,
            ),
            data=data,
            slope=entry.slope,
            intercept=entry.intercept,
            affine=np.array(entry.affine, np.float64).reshape(4, 4),
            t_r_s=entry.t_r_s,
            t_r_measured=entry.t_r_measured,
            slice_times_s=None if times is None else np.array(times, np.float64),
            series_uid=entry.series_uid,
            instance=entry.instance,
            path=entry.path,
            problems=tuple(entry.problems),
        )
