"""What an interrupted session has left: its inputs, ready to be folded again, and its outputs."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from rtdecode.errors import JournalError, SettingsError
from rtdecode.records import BundleRequest, KnownRun, RunEnd, RunStart, Skipped, Stamp, TrialEvent, Volume
from rtdecode.session.journal import enumerated, read
from rtdecode.session.recording import session_identifier
from rtdecode.settings import Settings, parse

Input = Volume | Skipped | TrialEvent | RunStart | RunEnd | BundleRequest


_FREE = ("publish", "session.output", "decode.threads", "decode.backend")
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
        f"$.{name}: expected {was!r} as when the session began, got {now!r}"
        for (name, was), (_, now) in zip(_flat(began), _flat(settings), strict=True)
        if was != now and name not in _FREE and name.partition(".")[0] not in _FREE
    ]
    if problems:
        raise SettingsError(problems)


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
        self._inputs = list(read(folder / "journal" / "inputs.journal"))

    def __len__(self) -> int:
        return len(self._inputs)

    def outputs(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield place in the journal, topic and payload of every message that was published."""
        for place, record in enumerated(self._folder / "journal" / "outputs.journal"):
            yield place, record["topic"].encode(), record["payload"]

    @property
    def bundle(self) -> str | None:
        """Folder of the last ParticipantBundle that was asked for."""
        folders = [str(record["folder"]) for record in self._inputs if record["kind"] == "bundle"]
        return folders[-1] if folders else None

    def runs(self) -> list[KnownRun]:
        """Every run of which a volume came, in order."""
        found: dict[int, KnownRun] = {}
        for record in self._inputs:
            if record["kind"] not in ("volume", "skipped", "missing") or record["volume"] is None:
                continue
            number, index = record["run"], record["volume"]
            known = found.get(number)
            if record["kind"] == "volume":
                offset, uid = record["instance"] - index, record["series_uid"]
            elif known is not None:
                offset, uid = known.offset, known.series_uid
            else:
                continue
            found[number] = KnownRun(number=number, series_uid=uid, offset=offset, next_index=index + 1)
        return [found[number] for number in sorted(found)]

    def inputs(self, now_mono_s: float) -> Iterator[Input]:
        """Yield the inputs again, in their order.

        Parameters
        ----------
        now_mono_s : float
            Stands for the moment of arrival on the monotonic clock, which did not outlive its process.

        Raises
        ------
        JournalError
            A volume that was kept cannot be read.
        """
        accounted: dict[int, int] = {}
        for record in self._inputs:
            kind = record["kind"]
            if kind in ("volume", "skipped", "missing") and record["volume"] is not None:
                run, index = record["run"], record["volume"]
                for lost in range(accounted.get(run, index), index):
                    yield Skipped(run=run, volume=lost, path="", reason="its record in the journal was damaged")
                accounted[run] = max(accounted.get(run, 0), index + 1)
            match kind:
                case "volume":
                    yield self._volume(record, now_mono_s)
                case "bundle":
                    yield BundleRequest(folder=record["folder"], identity=record["identity"])
                case "skipped" | "missing":
                    yield Skipped(**{name: record[name] for name in ("run", "volume", "path", "reason")})
                case "run_start":
                    yield RunStart(run=record["run"], expected=record["expected"], t_r_s=record.get("t_r_s"))
                case "run_end":
                    yield RunEnd(run=record["run"], volumes=record["volumes"])
                case "trial":
                    names = ("run", "trial", "onset_s", "duration_s", "stimulus", "condition")
                    yield TrialEvent(**{name: record[name] for name in names})

    def _volume(self, record: dict[str, Any], now_mono_s: float) -> Volume | Skipped:
        path = self._folder / record["kept"]
        try:
            data = np.asarray(nib.load(path).dataobj.get_unscaled())
        except (OSError, ImageFileError, ValueError) as error:
            why = str(error).splitlines()[0]
            problem = f"expected the volume that was kept in {path.parent.name}/{path.name}: {why}"
            if self._leave_out:
                return Skipped(run=record["run"], volume=record["volume"], path=record["path"], reason=problem)
            raise JournalError(
                f"{problem}; put it back from a copy, or resume without it: --resume --leave-out-unreadable"
            ) from None
        times = record["slice_times_s"]
        return Volume(
            stamp=Stamp(
                session=self._session,
                run=record["run"],
                volume=record["volume"],
                acquired_s=record["acquired_s"],
                received_s=record["received_s"],
                received_mono_s=now_mono_s,
            ),
            data=data,
            slope=record["slope"],
            intercept=record["intercept"],
            affine=np.array(record["affine"], np.float64).reshape(4, 4),
            t_r_s=record["t_r_s"],
            t_r_measured=record.get("t_r_measured", False),
            slice_times_s=None if times is None else np.array(times, np.float64),
            series_uid=record["series_uid"],
            instance=record["instance"],
            path=record["path"],
            problems=tuple(record["problems"]),
        )
