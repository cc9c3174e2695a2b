"""Replays a folder of real export files as a scanner that misbehaves."""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rtdecode.acquire.folder import natural
from rtdecode.clock import Clock
from rtdecode.simulate.faults import Step
from rtdecode.simulate.playback import Announce, Speed, Timed, unheard
from rtdecode.simulate.relabel import relabel


class RecordedExport:
    """The files of a folder, sub-folders included, hidden files left out; ``.gz`` is unpacked but for NIfTI.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    FileNotFoundError
        If there is no file.
    """

    def __init__(self, folder: Path) -> None:
        self._paths: dict[str, Path] = {}
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
                self._paths[name if name.endswith(".nii.gz") else name.removesuffix(".gz")] = path
        if not self._paths:
            raise FileNotFoundError(f"{folder}: expected the files of an export, got none")

    def volumes(self, files_per_volume: int = 1) -> list[list[str]]:
        """Names of the files of each volume, in natural order of the names.

        Raises
        ------
        ValueError
            If the files are not a multiple of `files_per_volume`.
        """
        names = sorted(self._paths, key=natural)
        if files_per_volume < 1 or len(names) % files_per_volume:
            raise ValueError(f"expected a multiple of {files_per_volume} files a volume, got {len(names)} files")
        return [names[at : at + files_per_volume] for at in range(0, len(names), files_per_volume)]

    def read(self, name: str, series: int = 0) -> bytes:
        """Content of a file, relabelled where `series` is not 0."""
        path = self._paths[name]
        raw = path.read_bytes()
        if path.name.endswith(".gz") and not name.endswith(".gz"):
            raw = gzip.decompress(raw)
        return relabel(raw, series) if series else raw


class FaultyScanner:
    """Carries out a plan.

    Parameters
    ----------
    recording : RecordedExport
    plan : sequence of Step
        In order of time.
    export_dir : Path
        Must exist; its parent must be writable.
    clock : Clock
    speed : float or "max"
        How many times faster than planned, or without waiting at all.
    """

    def __init__(
        self, recording: RecordedExport, plan: Sequence[Step], export_dir: Path, clock: Clock, speed: Speed = 1.0
    ) -> None:
        self._recording = recording
        self._plan = plan
        self._export_dir = export_dir
        self._clock = clock
        self._speed = speed

    def play(
        self, on_step: Callable[[Step], None], messages: Iterable[Timed] = (), announce: Announce = unheard
    ) -> None:
        """Play to the end.

        Parameters
        ----------
        on_step : callable
            Told of each step once it is done.
        messages : iterable of (float, dict)
            What the experiment announces meanwhile, and when, seconds after the start: `replayed_at`. What comes at
            the time of a step comes after it.
        announce : callable
            Takes each message.
        """
        start_s = self._clock.monotonic()
        due: list[tuple[float, Step | dict[str, Any]]] = [*((step.at_s, step) for step in self._plan), *messages]
        due.sort(key=lambda one: one[0])
        with tempfile.TemporaryDirectory(dir=self._export_dir.parent, prefix=".unwatched-") as unwatched:
            for at_s, item in due:
                if self._speed != "max":
                    self._clock.sleep(max(0.0, start_s + at_s / self._speed - self._clock.monotonic()))
                if isinstance(item, Step):
                    self._do(item, Path(unwatched) / "file")
                    on_step(item)
                else:
                    announce(item)

    def _do(self, step: Step, unwatched: Path) -> None:
        path = self._export_dir / step.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if step.action == "rename":
            os.replace(path, self._export_dir / step.new_name)
            return
        content = self._recording.read(step.source, step.series)
        start, stop = round(step.start * len(content)), round(step.stop * len(content))
        if step.action == "put":
            hidden = path.with_name(f".{path.name}.tmp")
            hidden.write_bytes(content)
            _date(hidden, step.clock_s)
            os.replace(hidden, path)
            return
        if step.action == "allocate":
            path.touch()
            os.truncate(path, stop)
            _date(path, step.clock_s)
            return
        if step.silent:  # events name the folder through which a file was opened
            os.link(path, unwatched)
        _write(unwatched if step.silent else path, start, content[start:stop])
        _date(unwatched if step.silent else path, step.clock_s)
        unwatched.unlink(missing_ok=True)


def _write(path: Path, start: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def _date(path: Path, clock_s: float) -> None:
    """Move the time of change of a file to that of a clock that is off."""
    if clock_s:
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + int(clock_s * 1e9)))
