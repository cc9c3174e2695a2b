"""Philips PAR/REC: a text file that describes the images in a file of raw integers beside it.

Real-time dumps (XTC) come as one pair per volume with their geometry and repetition time left blank; both then have
to come from the settings. The geometry of complete files follows nibabel's ``parrec`` module.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.acquire.stored import (
    MAGNITUDE,
    MAX_FILE_BYTES,
    MAX_SLICES,
    NO_PHILIPS_TIMES,
    Identity,
    Origin,
    Reading,
    StoredVolume,
    differing,
    read_bytes,
    trailing_zeros,
)
from rtdecode.errors import IncompleteFile, VolumeError, named

SUFFIX = ".par"

_MAX_TEXT_BYTES = 64 * 2**20
_MAX_SIDE = 4096
_COLUMNS, _BEGAN = 32, 31
_DUMP = re.compile(r"^(.*dump-)(\d{1,9})$", re.IGNORECASE)
_GENERAL = re.compile(r"^\.\s+([^:]{1,60}?)\s*:\s*(.{0,200}?)\s*$", re.MULTILINE)
_T_R, _FIELD_OF_VIEW = "Repetition time [ms]", "FOV (ap,fh,rl) [mm]"
_ANGULATION, _OFF_CENTRE = "Angulation midslice(ap,fh,rl)[degr]", "Off Centre midslice(ap,fh,rl) [mm]"
_TYPES = {0: MAGNITUDE, 1: "R", 2: "I", 3: "P"}
_START_OF_FILE = "DATA DESCRIPTION FILE"
_END_OF_TABLE = "# === END OF DATA DESCRIPTION FILE"
# voxel axes of transverse, sagittal and coronal images to posterior, superior, left
_TO_PSL = {
    1: np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]),
    2: np.diag([1.0, -1, -1]),
    3: np.array([[0.0, 0, 1], [0, -1, 0], [1, 0, 0]]),
}
_PSL_TO_RAS = np.array([[0.0, 0, -1], [-1, 0, 0], [0, 1, 0]])


def companion(path: Path) -> Path:
    """Return the REC file of a PAR file; it need not exist."""
    suffix = ".REC" if path.suffix == ".PAR" else ".rec"
    return path.with_suffix(suffix)


class ParRecReader:
    """Reads PAR/REC pairs.

    Parameters
    ----------
    root : Path
        Watched folder: the folder below it that holds a file names its series.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: Path) -> Reading:
        """Decode all volumes of a pair.

        Raises
        ------
        IncompleteFile
            If the REC file is absent or ends before the images that the PAR file describes.
        VolumeError
            If the pair cannot be used.
        OSError
            If it cannot be read.
        """
        text = read_bytes(path)
        if len(text) > _MAX_TEXT_BYTES:
            raise VolumeError(path, "size", f"at most {_MAX_TEXT_BYTES} bytes of text", len(text))
        general, table = _parse(path, text.decode("latin-1"))
        values = _images(path, table)
        return Reading(volumes=tuple(self._volumes(path, general, table, values)))

    def identify(self, path: Path) -> Identity | None:
        """Return which volume a dump is by its name; None for a pair that holds a series."""
        return self._identity(path, 1) if _DUMP.match(path.stem) else None

    def _identity(self, path: Path, instance: int) -> Identity:
        folder = path.parent.relative_to(self._root) if path.is_relative_to(self._root) else path.parent
        dump = _DUMP.match(path.stem)
        name = named(f"{folder.as_posix()}/{dump[1] if dump else path.stem}")
        number = folder.name if dump and folder.name.isdecimal() else "0"
        return Identity(
            series_uid=name,
            series_number=int(number),
            run=None,
            instance=int(dump[2]) if dump else instance,
            uid=f"{name}{dump[2]}" if dump else f"{name}#{instance}",
            first=0 if dump else 1,
        )

    def _volumes(
        self, path: Path, general: dict[str, str], table: NDArray[np.float64], values: NDArray[Any]
    ) -> list[StoredVolume]:
        affine, t_r_s, notes = _affine(path, general, table), _t_r_s(general), []
        parts: dict[tuple[int, int], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for row in np.lexsort((np.arange(len(table)), table[:, 3], table[:, 2])):
            parts[int(table[row, 1]), int(table[row, 4])][int(table[row, 0])].append(int(row))
        kinds = sorted({kind for _, kind in parts})
        whole = min(len(rows) for slices in parts.values() for rows in slices.values())
        if any(len(rows) != whole for slices in parts.values() for rows in slices.values()):
            notes.append("volumes that lack slices are left out")
        zeros = trailing_zeros(values.reshape(-1))
        out = []
        for (echo, kind), slices in sorted(parts.items()):
            for turn in range(whole):
                rows = [rows[turn] for _, rows in sorted(slices.items())]
                scales = [_scaling(table[row]) for row in rows]
                last = table[rows, 6].max() == len(values) - 1
                identity = self._identity(path, turn + 1)
                component = MAGNITUDE if kind == kinds[0] else _TYPES.get(kind, f"type-{kind}")
                out.append(
                    StoredVolume(
                        identity=dataclasses.replace(
                            identity, uid=f"{identity.uid}/{echo}/{kind}", echo=echo, component=component
                        ),
                        origin=Origin(
                            format="philips-xtc-dump" if _DUMP.match(path.stem) else "philips-parrec",
                            vendor="Philips",
                            image_type=(_TYPES.get(kind, f"type-{kind}"),),
                        ),
                        data=np.ascontiguousarray(values[table[rows, 6].astype(int)].transpose(2, 1, 0)),
                        slope=scales[0][0],
                        intercept=scales[0][1],
                        scales=differing(scales),
                        affine=affine,
                        t_r_s=t_r_s,
                        slice_times_s=None,
                        acquired_s=None,
                        began_s=float(table[rows, _BEGAN].min()),
                        zero_tail=min(zeros, values[rows].size) if last else 0,
                        notes=tuple(notes),
                        unknown={
                            "affine": "the dump leaves its geometry blank; set it in the settings",
                            "t_r_s": "the dump leaves its repetition time blank; set it in the settings",
                            "slice_times_s": NO_PHILIPS_TIMES,
                            "acquired_s": "PAR tells when the examination began, not the volume",
                        },
                    )
                )
        return sorted(out, key=lambda volume: volume.identity.order)


def _parse(path: Path, text: str) -> tuple[dict[str, str], NDArray[np.float64]]:
    """General entries, and the table of images."""
    if _START_OF_FILE not in text[:200]:
        unlike = VolumeError if len(text) >= 200 else IncompleteFile
        raise unlike(path, "header", "a PAR data description", "something else")
    general = dict(_GENERAL.findall(text))
    problem = VolumeError if _END_OF_TABLE in text else IncompleteFile
    rows = []
    for line in text.splitlines():
        if line[:1] in ("#", ".", "") or not line.strip():
            continue
        words = line.split()[:_COLUMNS]
        if len(words) < _COLUMNS:
            raise problem(path, "image table", f"at least {_COLUMNS} columns (V4 or later)", len(words))
        try:
            rows.append([float(word) for word in words])
        except ValueError:
            raise problem(path, "image table", "numbers", f"others in line {len(rows) + 1}") from None
    if not rows:
        raise IncompleteFile(path, "image table", "a line for each image", "none")
    table = np.array(rows)
    if not (np.abs(table) < 1e9).all() or not np.array_equal(np.sort(table[:, 6]), np.arange(len(table))):
        raise VolumeError(path, "image table", "each image of the REC file once", "others")
    if len(np.unique(table[:, 0])) > MAX_SLICES:
        raise VolumeError(path, "image table", f"at most {MAX_SLICES} slices", "more")
    return general, table


def _images(path: Path, table: NDArray[np.float64]) -> NDArray[Any]:
    """Return the stored values of all images: array of shape (images, rows, columns)."""
    bits, columns, rows = (int(n) for n in table[0, [7, 9, 10]])
    same = (table[:, [7, 9, 10]] == table[0, [7, 9, 10]]).all()
    size = columns * rows * bits // 8
    if bits not in (8, 16) or not same or not (0 < columns <= _MAX_SIDE and 0 < rows <= _MAX_SIDE):
        raise VolumeError(path, "image table", "images of one size, 8 or 16 bits", f"{columns} x {rows}, {bits} bits")
    needed = size * len(table)
    if needed > MAX_FILE_BYTES:
        raise VolumeError(path, "size", f"images within {MAX_FILE_BYTES} bytes", f"{needed} bytes")
    try:
        raw = read_bytes(companion(path))
    except FileNotFoundError:
        raise IncompleteFile(path, "REC file", companion(path).name, "none beside the PAR file") from None
    if len(raw) < needed:
        raise IncompleteFile(companion(path), "size", f"{needed} bytes", len(raw))
    if len(raw) > needed:
        raise IncompleteFile(path, "image table", f"a line for each image of {len(raw)} bytes", f"{len(table)} lines")
    # the values are unsigned; 12-bit data leave the highest bit clear
    return np.frombuffer(raw, dtype=f"<u{bits // 8}", count=needed * 8 // bits).reshape(len(table), rows, columns)


def _triple(general: dict[str, str], key: str) -> NDArray[np.float64]:
    try:
        found = np.array([float(word) for word in general.get(key, "").split()])
    except ValueError:
        return np.zeros(3)
    return found if found.size == 3 and np.isfinite(found).all() else np.zeros(3)


def _affine(path: Path, general: dict[str, str], table: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Voxel indices to RAS+ mm; None where the file leaves its field of view blank."""
    orientation = _TO_PSL.get(int(table[0, 25]))
    if not _triple(general, _FIELD_OF_VIEW).any() or orientation is None:
        return None
    n_slices = len(np.unique(table[:, 0]))
    zooms = np.array([table[0, 28], table[0, 29], table[0, 22] + table[0, 23]])
    if not (zooms > 0).all():
        raise VolumeError(path, "pixel spacing", "positive numbers", zooms.tolist())
    middle = (np.array([table[0, 9], table[0, 10], n_slices]) - 1) / 2
    around_ap, around_fh, around_rl = np.deg2rad(_triple(general, _ANGULATION))
    turn = _rotation(2, around_rl) @ _rotation(0, around_ap) @ _rotation(1, around_fh)
    affine = np.eye(4)
    affine[:3, :3] = _PSL_TO_RAS @ turn @ orientation @ np.diag(zooms)
    affine[:3, 3] = _PSL_TO_RAS @ _triple(general, _OFF_CENTRE) - affine[:3, :3] @ middle
    return affine


def _rotation(axis: int, angle: float) -> NDArray[np.float64]:
    one, other = (axis + 1) % 3, (axis + 2) % 3
    turn = np.eye(3)
    turn[one, one] = turn[other, other] = np.cos(angle)
    turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
    return turn


def _t_r_s(general: dict[str, str]) -> float | None:
    """Repetition time; a dump with a blank field of view says 1 ms and means nothing by it."""
    try:
        t_r_ms = float(general.get(_T_R, "").split()[0])
    except (ValueError, IndexError):
        return None
    known = _triple(general, _FIELD_OF_VIEW).any() and np.isfinite(t_r_ms) and t_r_ms > 0
    return t_r_ms / 1000 if known else None


def _scaling(row: NDArray[np.float64]) -> tuple[float, float]:
    """Philips value = (raw * RS + RI) / (RS * SS), where SS is given."""
    intercept, slope, precise = row[11:14]
    if precise and slope:
        return float(1 / precise), float(intercept / (slope * precise))
    return float(slope) or 1.0, float(intercept)
