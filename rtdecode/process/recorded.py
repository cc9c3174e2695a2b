"""Recorded series as the volumes that the scanner would have sent, one at a time."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from rtdecode.acquire import nifti, timing
from rtdecode.acquire.stored import inflate
from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.errors import SettingsError, VolumeError
from rtdecode.estimate.inputs import T_R_TOLERANCE_S
from rtdecode.records import (
    BundleRequest,
    Command,
    Skipped,
    Stamp,
    TrialAmended,
    TrialCancelled,
    TrialEvent,
    TrialOverdue,
    Volume,
    frozen,
)
from rtdecode.settings import ScannerSettings, SeriesRule

_UNREADABLE = (OSError, EOFError, ValueError, ArithmeticError, AttributeError, zlib.error)
_MIDDLE = "the middle of a volume stands for all of its slices"
_QUIET_POLLS = 3  # one to read, one to give up what is unfinished, one to let out what waited behind it

Recorded = Volume | Skipped | TrialEvent | TrialAmended | TrialCancelled | TrialOverdue | BundleRequest | Command
"""What a run was made of."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedRun:
    """One run as it was recorded.

    Attributes
    ----------
    name : str
        Of the file or folder, without suffixes.
    items : iterable of Recorded
        Volumes in index order, trials and commands where they were taken; can be gone through once.
    announced : int or None
        Volumes that the header promises.
    problems : tuple of str
        What is wrong with the recording and could be lived with.
    """

    name: str
    items: Iterable[Recorded]
    announced: int | None = None
    problems: tuple[str, ...] = ()


def read_runs(path: Path, *, session: str, first_run: int, t_r_s: float | None) -> Iterator[RecordedRun]:
    """Open a 4-D NIfTI file, or a folder of DICOM or 3-D NIfTI files in which each series is a run.

    Parameters
    ----------
    path : Path
    session : str
        For the stamps.
    first_run : int
        Number of the first run; further ones count on.
    t_r_s : float or None
        Repetition time in seconds, for files that do not tell.

    Raises
    ------
    SettingsError
        If there is nothing to read, or the repetition time is unknown or contradicts the header.
    """
    if path.is_dir():
        yield from _folder_runs(path, session, first_run, t_r_s)
    elif path.is_file():
        yield _nifti_run(path, session, first_run, t_r_s)
    else:
        raise SettingsError([f"BOLD: expected a 4-D NIfTI file or a folder of volumes, found none at {path}"])


# a folder -------------------------------------------------------------------------------------------------


class _RecordedTime:
    """A clock on which waiting costs nothing: a recording has no more files to come."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def monotonic(self) -> float:
        return self._now_s

    def wall(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self._now_s += seconds


def _folder_runs(folder: Path, session: str, first_run: int, t_r_s: float | None) -> Iterator[RecordedRun]:
    every = SeriesRule(description="*")  # who names a folder means what is in it
    settings = ScannerSettings(export_dir=folder, t_r_s=t_r_s, watch="polling", series=(every,))
    found = False
    for number, (_, items) in enumerate(itertools.groupby(_folder_items(settings, session), lambda item: item.run)):
        found = True
        renumbered = (numbered(item.item, first_run + number) for item in items)
        yield RecordedRun(name=folder.name if number == 0 else f"{folder.name}-{number + 1}", items=renumbered)
    if not found:
        raise SettingsError([f"BOLD: expected volumes (DICOM or 3-D NIfTI) in {folder}, found none"])


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    run: int
    item: Volume | Skipped


def _folder_items(settings: ScannerSettings, session: str) -> Iterator[_Item]:
    """Give what holds an index of a run, run by run; files without a place in one come to nothing."""
    with FolderWatcher(settings, session, _RecordedTime()) as watcher:
        quiet = 0
        while quiet < _QUIET_POLLS:
            arrivals = watcher.poll()
            quiet = 0 if arrivals else quiet + 1
            for arrival in arrivals:
                item = arrival.item
                if isinstance(item, Volume):
                    yield _Item(item.stamp.run, item)
                elif item.volume is not None:
                    yield _Item(item.run, item)
            watcher.wait(settings.gap_timeout_s)


def numbered(item: Volume | Skipped, run: int) -> Volume | Skipped:
    """Return what came of a run as of a run of another number."""
    if isinstance(item, Volume):
        return replace(item, stamp=replace(item.stamp, run=run))
    return replace(item, run=run)


# a four-dimensional file ----------------------------------------------------------------------------------


def _nifti_run(path: Path, session: str, run: int, t_r_s: float | None) -> RecordedRun:
    try:
        image: Any = nib.load(path)
        offset, scale = int(image.dataobj.offset), nifti.scaling(path, image.header)
    except (ImageFileError, HeaderDataError, VolumeError, *_UNREADABLE) as error:
        raise SettingsError([f"BOLD: expected a 4-D NIfTI file, got {path}: {error}"]) from None
    header = image.header
    shape = tuple(int(n) for n in header.get_data_shape())
    if not isinstance(image, nib.Nifti1Image) or len(shape) != 4:
        raise SettingsError([f"BOLD: expected a NIfTI file of four dimensions, got {shape}: {path}"])
    dtype = np.dtype(header.get_data_dtype())
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise SettingsError([f"BOLD: datatype: expected integers or floating point, got {dtype}: {path}"])
    sidecar = _sidecar(path)
    problems: list[str] = []
    period_s = _repetition_time(path, header, sidecar, t_r_s, problems)
    volumes = _voxels(path, offset, shape, dtype)
    if len(volumes) < shape[3]:
        problems.append(f"BOLD: dim[4]: expected {shape[3]} volumes, got {len(volumes)}: the file is cut short")
    slice_times_s = _slice_times(header, shape, sidecar, period_s, problems)
    name = path.name.removesuffix(".gz").removesuffix(".nii")

    def items() -> Iterator[Volume]:
        for index, data in enumerate(volumes):
            yield Volume(
                stamp=Stamp(session=session, run=run, volume=index, received_s=0.0, received_mono_s=0.0),
                data=frozen(data),
                slope=scale[0],
                intercept=scale[1],
                affine=frozen(np.asarray(image.affine, np.float64)),
                t_r_s=period_s,
                slice_times_s=slice_times_s,
                series_uid=name,
                instance=index + 1,
                path=f"{path.name}[{index}]",
            )

    return RecordedRun(name=name, items=items(), announced=shape[3], problems=tuple(problems))


def _voxels(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[NDArray[Any]]:
    """Return the complete volumes of a file, stored values, also of one that is cut short."""
    size = int(np.prod(shape[:3]))
    raw = path.read_bytes()
    if path.name.endswith(".gz"):
        try:
            raw, _ = inflate(path, raw, offset + size * dtype.itemsize * shape[3])
        except VolumeError as error:
            raise SettingsError([f"BOLD: {error}"]) from None
    content = memoryview(raw)[offset:]
    count = min(shape[3], len(content) // (size * dtype.itemsize))
    stored = np.dtype(np.float32) if dtype.kind == "f" else dtype.newbyteorder("=")
    flat = np.frombuffer(content, dtype, count * size).reshape(count, size)
    return [one.astype(stored, copy=False).reshape(shape[:3], order="F") for one in flat]


def _sidecar(path: Path) -> dict[str, Any]:
    file = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError([f"{file}: not valid JSON: {error}"]) from None
    return content if isinstance(content, dict) else {}


def _repetition_time(
    path: Path, header: Any, sidecar: dict[str, Any], given_s: float | None, problems: list[str]
) -> float:
    """Return the one that header, sidecar and option agree on, of those that can be true; adds to the problems."""
    n_slices = int(header.get_data_shape()[2])
    told = {"header": nifti.repetition_time(header)}
    listed = sidecar.get("RepetitionTime")
    if listed is not None:
        if isinstance(listed, bool) or not isinstance(listed, int | float) or not 0 < listed < math.inf:
            raise SettingsError([f"RepetitionTime: expected seconds in the sidecar, got {listed!r}: {path}"])
        told["sidecar RepetitionTime"] = timing.repetition_time(float(listed), n_slices)
    if given_s is not None:
        if not timing.plausible(given_s, n_slices):
            raise SettingsError([f"--tr: expected seconds between volumes, got {given_s:g}"])
        told["--tr"] = given_s, ""
    problems += [f"{name}: {note}" for name, (_, note) in told.items() if note]
    known = {name: value for name, (value, _) in told.items() if value is not None}
    if not known:
        raise SettingsError([f"t_r_s: expected seconds in the header or --tr, got none: {path}", *problems])
    others = {name: value for name, value in known.items() if name != "header"}
    if others and known.get("header") == timing.HEADER_DEFAULT_S:  # written where nobody knew
        name, value = next(iter(others.items()))
        if abs(value - timing.HEADER_DEFAULT_S) > T_R_TOLERANCE_S:
            problems.append(
                f"t_r_s: {value:g} s as the {name} says; the header's 1 s is what converters write by default"
            )
        del known["header"]
    (first, value), *rest = known.items()
    for name, other in rest:
        if abs(other - value) > T_R_TOLERANCE_S:
            raise SettingsError([f"t_r_s: expected {value:g} s as the {first} says, got {other:g} s ({name}): {path}"])
    return value


def _slice_times(
    header: Any, shape: tuple[int, ...], sidecar: dict[str, Any], t_r_s: float, problems: list[str]
) -> NDArray[np.float64] | None:
    """Return the slice times of the sidecar, else of the header, if they can be true; adds to the problems."""
    listed = sidecar.get("SliceTiming")
    if listed is None:
        name, stated = "slice_times_s", nifti.slice_times(header, shape)
        if stated is None:
            return None
    else:
        name = "SliceTiming"
        try:
            stated = np.array(listed, np.float64)
        except (TypeError, ValueError):
            raise SettingsError(
                [f"SliceTiming: expected a list of seconds in the sidecar, got {listed!r:.60}"]
            ) from None
        if stated.shape != (shape[2],):
            problems.append(f"SliceTiming: expected {shape[2]} times, got {stated.size}: {_MIDDLE}")
            return None
        if str(sidecar.get("SliceEncodingDirection", "")).endswith("-"):
            stated = stated[::-1]
    times, note = timing.slice_times(stated, t_r_s)
    if note:
        problems.append(f"{name}: {note}" + ("" if times is not None else f": {_MIDDLE}"))
    return times
