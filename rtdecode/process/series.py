"""Recorded series as the volumes that the scanner would have sent, one at a time."""

from __future__ import annotations

import itertools
import json
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

from rtdecode.acquire import nifti
from rtdecode.acquire.stored import GZIP_WBITS
from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.errors import SettingsError
from rtdecode.estimate.inputs import T_R_TOLERANCE_S
from rtdecode.records import Skipped, Stamp, Volume, frozen
from rtdecode.settings import ScannerSettings, SeriesRule

_QUIET_POLLS = 3  # one to read, one to give up what is unfinished, one to let out what waited behind it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedRun:
    """One run as it was recorded.

    Attributes
    ----------
    name : str
        Of the file or folder, without suffixes.
    items : iterable of Volume or Skipped
        In index order; can be gone through once.
    announced : int or None
        Volumes that the header promises.
    problems : tuple of str
        What is wrong with the recording and could be lived with.
    """

    name: str
    items: Iterable[Volume | Skipped]
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
        renumbered = (_numbered(item.item, first_run + number) for item in items)
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


def _numbered(item: Volume | Skipped, run: int) -> Volume | Skipped:
    if isinstance(item, Volume):
        return replace(item, stamp=replace(item.stamp, run=run))
    return replace(item, run=run)


# a four-dimensional file ----------------------------------------------------------------------------------


def _nifti_run(path: Path, session: str, run: int, t_r_s: float | None) -> RecordedRun:
    try:
        image: Any = nib.load(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error) as error:
        raise SettingsError([f"BOLD: expected a 4-D NIfTI file, got {path}: {error}"]) from None
    header = image.header
    shape = tuple(int(n) for n in header.get_data_shape())
    if not isinstance(image, nib.Nifti1Image) or len(shape) != 4:
        raise SettingsError([f"BOLD: expected a NIfTI file of four dimensions, got {shape}: {path}"])
    dtype = np.dtype(header.get_data_dtype())
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise SettingsError([f"BOLD: datatype: expected integers or floating point, got {dtype}: {path}"])
    sidecar = _sidecar(path)
    period_s = _repetition_time(path, header, sidecar, t_r_s)
    volumes = _voxels(path, int(image.dataobj.offset), shape, dtype)
    problems = []
    if len(volumes) < shape[3]:
        problems.append(f"BOLD: dim[4]: expected {shape[3]} volumes, got {len(volumes)}: the file is cut short")
    slope, intercept = header.get_slope_inter()
    slice_times_s = _slice_times(header, shape, sidecar)
    name = path.name.removesuffix(".gz").removesuffix(".nii")

    def items() -> Iterator[Volume]:
        for index, data in enumerate(volumes):
            yield Volume(
                stamp=Stamp(session=session, run=run, volume=index, received_s=0.0, received_mono_s=0.0),
                data=frozen(data),
                slope=1.0 if slope is None else float(slope),
                intercept=0.0 if intercept is None else float(intercept),
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
    raw = path.read_bytes()
    if path.name.endswith(".gz"):
        stream = zlib.decompressobj(GZIP_WBITS)
        try:
            raw = stream.decompress(raw)
        except zlib.error as error:
            raise SettingsError([f"BOLD: gzip: expected a readable stream, got {path}: {error}"]) from None
    size = int(np.prod(shape[:3]))
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


def _repetition_time(path: Path, header: Any, sidecar: dict[str, Any], given_s: float | None) -> float:
    unit = nifti.SECONDS.get(header.get_xyzt_units()[1], 1.0)
    told_s = float(header["pixdim"][4]) * unit
    sources = {"header": told_s if np.isfinite(told_s) and told_s > 0 else None}
    sources["sidecar RepetitionTime"] = sidecar.get("RepetitionTime")
    sources["--tr"] = given_s
    known = {name: float(value) for name, value in sources.items() if value is not None}
    if not known:
        raise SettingsError([f"t_r_s: expected seconds in the header or --tr, got none: {path}"])
    (first, value), *others = known.items()
    for name, other in others:
        if abs(other - value) > T_R_TOLERANCE_S:
            raise SettingsError([f"t_r_s: expected {value:g} s as the {first} says, got {other:g} s ({name}): {path}"])
    return value


def _slice_times(header: Any, shape: tuple[int, ...], sidecar: dict[str, Any]) -> NDArray[np.float64] | None:
    listed = sidecar.get("SliceTiming")
    if isinstance(listed, list) and len(listed) == shape[2]:
        return np.array(listed, np.float64)
    return nifti.slice_times(header, shape)
