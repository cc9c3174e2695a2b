"""What files hold, volume by volume: the logic of ``rtdecode inspect``."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from rtdecode.acquire import folder, geometry
from rtdecode.acquire.intake import first_began
from rtdecode.acquire.readers import Readers, seam
from rtdecode.acquire.stack import Stacker
from rtdecode.acquire.stored import Identity, StoredVolume
from rtdecode.acquire.timing import Timing
from rtdecode.errors import VolumeError, named

_WHITE_PERCENTILE = 99.5
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One volume, in the words of the JSON line; `shape` and `affine` are those of the closest canonical image.

    Attributes
    ----------
    vendor, format, software : str or None
    series_uid : str
    volume_index : int
        From 0.
    shape : tuple of int
    affine : list of four rows of four float, or None
        Voxel indices to RAS+ mm.
    t_r_s : float or None
    slice_times_s : list of float or None
        Seconds after the start of the volume, in the order of `slice_centres_ras`.
    slice_centres_ras : list of three float each, or None
    acquired_at : str or None
        ISO 8601, by the scanner's clock.
    image_type : tuple of str
    echo : int or None
    sha256_i4 : str or None
        SHA-256 of the C-order little-endian int32 array of the closest canonical image, stored integers unscaled.
    problems : tuple of str
        What was noticed, and why a field is None.
    """

    vendor: str | None
    format: str
    software: str | None
    series_uid: str
    volume_index: int
    shape: tuple[int, ...]
    affine: list[list[float]] | None
    t_r_s: float | None
    slice_times_s: list[float] | None
    slice_centres_ras: list[list[float]] | None
    acquired_at: str | None
    image_type: tuple[str, ...]
    echo: int | None
    sha256_i4: str | None
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Findings:
    """All that some paths hold.

    Attributes
    ----------
    reports : tuple of Report
        In volume order: by series, volume, echo.
    refused : tuple of str
        What could not be used, and why; each names its file.
    first : array of shape (i, j, k) or None
        Values of the first volume, stored ones where one scaling holds for all, closest canonical axes.
    """

    reports: tuple[Report, ...]
    refused: tuple[str, ...]
    first: NDArray[Any] | None


def inspect(
    paths: Sequence[Path], *, t_r_s: float | None = None, affine: NDArray[np.float64] | None = None
) -> Findings:
    """Read files and folders, volume by volume.

    Parameters
    ----------
    paths : sequence of Path
    t_r_s : float or None
        Repetition time of files that do not tell.
    affine : array of shape (4, 4) or None
        Voxel indices to RAS+ mm of files that do not tell.
    """
    found: dict[tuple[Any, ...], tuple[Report, StoredVolume]] = {}
    refused: list[str] = []
    lowest: tuple[tuple[Any, ...], NDArray[Any]] | None = None
    root = Path(os.path.commonpath([path.absolute() if path.is_dir() else path.absolute().parent for path in paths]))
    readers = Readers(root, t_r_s=t_r_s, affine=affine)
    files = (file for path in paths for file in _files(path.absolute(), refused))
    for path, stored in _volumes(readers, files, refused):
        report, canonical = _report(stored)
        key = (*stored.identity.order, stored.identity.uid, report.sha256_i4)
        if key in found:
            first, _ = found[key]
            again = dataclasses.replace(first, problems=(*first.problems, f"comes again in {named(path.name)}"))
            found[key] = again, found[key][1]
            continue
        voxels = np.broadcast_to(np.uint8(0), stored.data.shape)  # the true ones are not kept
        found[key] = report, dataclasses.replace(stored, data=voxels)
        if lowest is None or key[:5] < lowest[0]:
            lowest = key[:5], canonical
    placed = [(report, readers.placed(stored)) for report, stored in found.values()]
    return Findings(
        reports=_together(placed, t_r_s), refused=tuple(refused), first=None if lowest is None else lowest[1]
    )


def _together(found: Sequence[tuple[Report, StoredVolume]], t_r_s: float | None) -> tuple[Report, ...]:
    """Return the reports in volume order, with what all of a series tell of its numbers and timing."""
    began = first_began(stored.identity for _, stored in found)
    ordered = sorted(
        found,
        key=lambda pair: (
            began.get(pair[1].identity.series_uid, 0.0),
            *pair[1].identity.order,
            pair[1].identity.uid,
        ),
    )
    timings: dict[tuple[str, int | None, str], Timing] = defaultdict(lambda: Timing(t_r_s))
    from_zero = {s.identity.series_uid for _, s in found if 0 in (s.identity.first, s.identity.instance)}
    for _, stored in ordered:
        timings[_part(stored.identity)].learn(stored.identity.instance, stored)
    reports = []
    for report, stored in ordered:
        identity, checked = stored.identity, timings[_part(stored.identity)].checked(stored)
        reports.append(
            dataclasses.replace(
                report,
                volume_index=identity.instance - (identity.series_uid not in from_zero),
                echo=identity.echo,
                problems=(*checked.problems, *report.problems),
                **_timing(checked),
            )
        )
    return tuple(reports)


def _part(identity: Identity) -> tuple[str, int | None, str]:
    return identity.series_uid, identity.echo, identity.component


def _timing(stored: StoredVolume) -> dict[str, Any]:
    times, acquired = stored.slice_times_s, stored.acquired_s
    return {
        "t_r_s": stored.t_r_s,
        "slice_times_s": None if times is None else np.round(times, 6).tolist(),
        "acquired_at": None if acquired is None else datetime.datetime.fromtimestamp(acquired).isoformat(),
    }


def _files(root: Path, refused: list[str]) -> Iterator[Path]:
    def unlisted(error: OSError) -> None:
        refused.append(f"{named(Path(error.filename).name)}: {error.strerror}")

    if not root.is_dir():
        yield root
        return
    try:
        names = sorted(folder.files(str(root), unlisted), key=folder.natural)
    except OSError as error:
        unlisted(error)
        return
    for name in names:
        yield Path(name)


def _volumes(readers: Readers, files: Iterable[Path], refused: list[str]) -> Iterator[tuple[Path, StoredVolume]]:
    """Volumes of some files, stacked where they came in slices; notes what is refused."""
    stacker = Stacker()
    for path in files:
        taken = 0
        try:
            while True:
                reading = readers.read(path, taken)
                for stored in reading.volumes:
                    yield path, stored
                for piece in reading.slices:
                    with seam(path):
                        volume = stacker.add(path, piece)
                    if volume is not None:
                        yield path, volume
                taken += len(reading.volumes)
                if not reading.growing or not reading.volumes:
                    break
        except VolumeError as error:
            refused.append(str(error))
        except OSError as error:
            refused.append(f"{named(path.name)}: {error.strerror}")
    for key in stacker.partial:
        try:
            path = stacker.partial[key].path
            with seam(path):
                volume = stacker.finish(key)
            yield path, volume
        except VolumeError as error:
            refused.append(str(error))


def _report(stored: StoredVolume) -> tuple[Report, NDArray[Any]]:
    """Return what one volume tells, its own problems left to those who know the series; and its canonical values."""
    identity, problems = stored.identity, []
    data, affine, centres = stored.data, stored.affine, None
    shown, _, _ = stored.rescaled()
    if affine is None:
        problems.append("sha256_i4: of the voxels as stored, since their orientation is unknown")
    else:
        centres = geometry.slice_centres(affine, data.shape)
        turn = io_orientation(affine)
        affine = affine @ inv_ornt_aff(turn, data.shape)
        data, shown = apply_orientation(data, turn), apply_orientation(shown, turn)
    digest = _digest(data)
    if digest is None:
        problems.append(f"sha256_i4: values of type {data.dtype} are no 32-bit integers")
    if stored.zero_tail > stored.data.shape[0]:
        problems.append(f"the last {stored.zero_tail} values are zero: blank, or never written")
    report = Report(
        vendor=stored.origin.vendor,
        format=stored.origin.format,
        software=stored.origin.software,
        series_uid=identity.series_uid,
        volume_index=identity.instance,
        shape=data.shape,
        affine=None if affine is None else affine.tolist(),
        slice_centres_ras=None if centres is None else centres.tolist(),
        image_type=stored.origin.image_type,
        echo=identity.echo,
        sha256_i4=digest,
        problems=tuple(problems),
        **_timing(stored),
    )
    return report, shown


def _digest(data: NDArray[Any]) -> str | None:
    """SHA-256 by the rule of `Report`; None where the values do not fit."""
    if data.dtype.kind not in "iu" or (
        data.dtype.itemsize >= _INT32.dtype.itemsize and (data.max() > _INT32.max or data.min() < _INT32.min)
    ):
        return None
    return hashlib.sha256(np.ascontiguousarray(data, dtype="<i4").tobytes()).hexdigest()


def picture(data: NDArray[Any]) -> NDArray[np.uint8]:
    """Lay the axial slices of a canonical volume out as one grey picture, front up, left on the left.

    Parameters
    ----------
    data : array of shape (i, j, k)

    Returns
    -------
    array of shape (height, width), uint8
    """
    n_x, n_y, n_slices = data.shape
    across = int(np.ceil(np.sqrt(n_slices)))
    down = -(-n_slices // across)
    values = np.nan_to_num(data.astype(np.float32))
    white = max(float(np.percentile(values, _WHITE_PERCENTILE)), 1e-6)
    grey = np.zeros((n_x, n_y, down * across), np.uint8)
    grey[:, :, :n_slices] = np.clip(values / white, 0, 1) * 255
    tiles = grey[:, ::-1].reshape(n_x, n_y, down, across).transpose(2, 1, 3, 0)
    return np.ascontiguousarray(tiles.reshape(down * n_y, across * n_x))


def voxel_sizes_mm(report: Report) -> tuple[float, ...] | None:
    """Lengths of the voxel axes; None where the affine is unknown."""
    if report.affine is None:
        return None
    return tuple(np.linalg.norm(np.array(report.affine)[:3, :3], axis=0).tolist())
