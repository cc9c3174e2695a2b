"""Plays a real participant's runs into an export folder, one three-dimensional NIfTI file a volume."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from rtdecode.acquire.nifti import repetition_time
from rtdecode.clock import Clock
from rtdecode.derivatives import read_table
from rtdecode.simulate.playback import (
    Announce,
    Hold,
    OnVolume,
    Player,
    RunScript,
    ShownTrial,
    Speed,
    free,
    nothing,
)
from rtdecode.stimuli import is_baseline

_RENAMED = {"scrambledpix": "scrambled"}
_PREFERRED = "bold_1slice.nii.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedRun:
    """Files of one run.

    Attributes
    ----------
    run : int
        Number in the folder's name.
    image : Path
        Four-dimensional NIfTI.
    events : Path
        BIDS events.
    motion : Path or None
        Text, one row a volume, the first six columns are motion.
    """

    run: int
    image: Path
    events: Path
    motion: Path | None


class ReplayScanner:
    """Replays recorded runs. Run, trial and volume order are those of the recording.

    Parameters
    ----------
    folder : Path
        Holds run folders (``run001`` or ``run-1``), each with ``*bold*.nii[.gz]``, ``*events.tsv`` and,
        optionally, ``*moest.txt``. `bold_1slice.nii.gz` is preferred where there are several images.
    export_dir : Path
        Must exist.
    clock : Clock
    speed : float or "max"
    runs : collection of int, optional
        Those to play; all by default.

    Raises
    ------
    FileNotFoundError
        If the folder holds no run, or a run lacks its image or events.
    ValueError
        If an image is not four-dimensional or tells no repetition time, or an events file lacks a column.
    """

    def __init__(
        self,
        folder: Path,
        export_dir: Path,
        clock: Clock,
        speed: Speed = "max",
        *,
        runs: Collection[int] | None = None,
    ) -> None:
        self._export_dir = export_dir
        self._player = Player(clock, speed)
        self.recorded = tuple(run for run in find_runs(folder) if runs is None or run.run in runs)
        if not self.recorded:
            raise FileNotFoundError(f"{folder}: expected run folders such as run001 with an image and events, got none")
        self._scripts = {recorded.run: _script(recorded) for recorded in self.recorded}

    @property
    def conditions(self) -> tuple[str, ...]:
        """Categories that occur, sorted."""
        return tuple(sorted({trial.condition for script in self._scripts.values() for trial in script.trials}))

    @property
    def scripts(self) -> tuple[RunScript, ...]:
        """What happens in each run, in the order they are played."""
        return tuple(self._scripts[recorded.run] for recorded in self.recorded)

    def write_motion(self, folder: Path) -> None:
        """Write the recorded motion as ``run-<n>.txt`` of six columns, for runs that have it.

        A ``*moest.txt`` file holds rotations (radians), then translations (mm), as FSL's MCFLIRT writes them; settings
        want translations first.

        Raises
        ------
        ValueError
            If a motion file does not have six columns and a row a volume.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for recorded in self.recorded:
            if recorded.motion is not None:
                motion = np.loadtxt(recorded.motion, ndmin=2)
                expected = self._scripts[recorded.run].n_volumes
                if motion.shape[0] != expected or motion.shape[1] < 6:
                    raise ValueError(f"{recorded.motion}: expected {expected} rows of 6 columns, got {motion.shape}")
                reordered = motion[:, [3, 4, 5, 0, 1, 2]]
                np.savetxt(folder / f"run-{recorded.run}.txt", reordered, fmt="%.9g")

    def play(self, announce: Announce, hold: Hold = free, on_volume: OnVolume = nothing) -> None:
        """Play all runs; blocks until their end or until `stop`. See `Scanner.play`."""
        for recorded in self.recorded:
            hold(recorded.run)
            if self._player.stopped:
                return
            image = nib.load(recorded.image)

            def write(index: int, data: NDArray[Any], run: int = recorded.run, image: Any = image) -> None:
                self._write(run, index, data, image)

            self._player.play(self._scripts[recorded.run], _volumes(image), write, announce, on_volume)

    def set_speed(self, speed: Speed) -> None:
        """Play the runs that have not begun at another speed; see `Player.set_speed`."""
        self._player.set_speed(speed)

    def stop(self) -> None:
        """Let `play` end after the present volume; callable from any thread."""
        self._player.stop()

    def _write(self, run: int, index: int, data: NDArray[Any], image: Any) -> None:
        one = nib.Nifti1Image(data, image.affine, dtype=data.dtype)
        one.header.set_xyzt_units("mm", "sec")
        one.header["pixdim"][4] = _t_r_s(image)
        one.header.set_slope_inter(*_scaling(image))
        path = self._export_dir / f"run-{run:02d}_bold_{index + 1:05d}.nii"
        unfinished = self._export_dir / f".{path.name}.tmp"
        unfinished.write_bytes(one.to_bytes())
        os.replace(unfinished, path)


def find_runs(folder: Path) -> list[ReplayedRun]:
    """List the runs that a folder holds, by number.

    Raises
    ------
    FileNotFoundError
        If a run folder lacks its image or events.
    """
    found = []
    for sub in sorted(path for path in folder.glob("run*") if path.is_dir()):
        number = re.fullmatch(r"run[-_]?(\d+)", sub.name)
        if number is None:
            continue
        images = sorted(
            [*sub.glob("*bold*.nii"), *sub.glob("*bold*.nii.gz")],
            key=lambda p: (p.name != _PREFERRED, p.name),
        )
        events = sorted(sub.glob("*events.tsv"))
        if not images or not events:
            raise FileNotFoundError(
                f"{sub}: expected *bold*.nii[.gz] and *events.tsv, got {[p.name for p in images + events]}"
            )
        motion = next(iter(sorted(sub.glob("*moest.txt"))), None)
        found.append(ReplayedRun(run=int(number[1]), image=images[0], events=events[0], motion=motion))
    return sorted(found, key=lambda run: run.run)


def _script(recorded: ReplayedRun) -> RunScript:
    image = nib.load(recorded.image)
    if len(image.shape) != 4:
        raise ValueError(f"{recorded.image}: expected four dimensions, got shape {image.shape}")
    rows, _ = read_table(recorded.events)
    try:
        shown = [(float(row["onset"]), float(row["duration"]), row["trial_type"]) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{recorded.events}: expected numbers in onset and duration, and trial_type: {error!r}"
        ) from None
    trials: list[ShownTrial] = []
    for onset_s, duration_s, label in sorted(shown):
        if not is_baseline(label):
            condition = _RENAMED.get(label, label)
            name = f"r{recorded.run:02d}t{len(trials) + 1:03d}"
            trials.append(
                ShownTrial(
                    trial=name,
                    onset_s=onset_s,
                    duration_s=duration_s,
                    stimulus=condition,
                    condition=condition,
                )
            )
    return RunScript(run=recorded.run, n_volumes=image.shape[3], t_r_s=_t_r_s(image), trials=trials)


def _t_r_s(image: Any) -> float:
    t_r_s, note = repetition_time(image.header)
    if t_r_s is None:
        told = image.header["pixdim"][4]
        raise ValueError(f"{image.get_filename()}: expected a repetition time in the header, got {told:g}: {note}")
    return t_r_s


def _scaling(image: Any) -> tuple[float, float]:
    return float(image.dataobj.slope), float(image.dataobj.inter)


def _volumes(image: Any) -> Iterator[NDArray[Any]]:
    stored = image.dataobj.get_unscaled()
    for index in range(stored.shape[3]):
        yield np.ascontiguousarray(stored[..., index])
