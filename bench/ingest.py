"""Milliseconds from a complete file to a volume, per export format: ours, nibabel and pydicom in one run.

Every volume is compared with the manifest of the sample data while it is timed. nibabel is timed where it gives the
volume, pydicom for the bare pixels (``dcmread(path).pixel_array``). "First" includes what is cached per series.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from _report import print_table, write_json
from pydicom.uid import generate_uid

from rtdecode.acquire.readers import Readers
from rtdecode.acquire.stack import Stacker
from rtdecode.acquire.stored import StoredVolume

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nibabel.nicom import dicomwrappers

MOSAIC_FACTOR, ENHANCED_MS, LAST_SLICE_MS = 1.5, 3.0, 10.0
SLICES, SIDE = 72, 104
PEER_ERRORS = (dicomwrappers.WrapperError, ValueError, KeyError, AttributeError, TypeError)


@dataclass
class Times:
    """Seconds per format; `last` is from the last slice of a volume to the volume."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    nibabel: list[float] = field(default_factory=list)
    pydicom: list[float] = field(default_factory=list)


def digest(volume: StoredVolume) -> str:
    image = nib.as_closest_canonical(nib.Nifti1Image(volume.data.astype(np.int32), volume.affine))
    return hashlib.sha256(np.ascontiguousarray(np.asarray(image.dataobj), "<i4").tobytes()).hexdigest()


def unpacked(data: Path, entry: dict[str, Any], folder: Path) -> list[Path]:
    """Write the files of a series as the scanner did."""
    folder.mkdir()
    out = []
    for file in entry["files"]:
        raw = (data / file["path"]).read_bytes()
        out.append(folder / (file.get("raw_name") or Path(file["path"]).name))
        out[-1].write_bytes(gzip.decompress(raw) if file["path"].endswith(".gz") else raw)
    return out


def read_series(files: Sequence[Path], times: Times) -> list[StoredVolume]:
    """Read all files with fresh readers, as the watcher would; note the time of each volume."""
    readers, stacker = Readers(files[0].parent), Stacker()
    volumes: list[StoredVolume] = []
    spent = 0.0
    for path in files:
        begin = time.perf_counter()
        reading = readers.read(path)
        whole = [stacker.add(path, piece) for piece in reading.slices]
        found = [*reading.volumes, *(volume for volume in whole if volume is not None)]
        took = time.perf_counter() - begin
        spent += took
        if found:
            (times.later if volumes else times.first).append(spent / len(found))
            if reading.slices:
                times.last.append(took)
            volumes += found
            spent = 0.0
    return volumes


def timed(call: Callable[[], Any], into: list[float]) -> None:
    begin = time.perf_counter()
    call()
    into.append(time.perf_counter() - begin)


def by_nibabel(path: Path) -> None:
    wrapper = dicomwrappers.wrapper_from_file(path)
    if wrapper.affine is None or np.ndim(wrapper.get_data()) < 3:
        raise ValueError("no volume")


def peers(files: Sequence[Path], times: Times, per_volume: int) -> None:
    """Time pydicom and, where it gives volumes, nibabel; per volume."""
    bare: list[float] = []
    for path in files:
        timed(lambda path=path: pydicom.dcmread(path).pixel_array, bare)
    times.pydicom += [seconds * per_volume for seconds in bare]
    with contextlib.suppress(*PEER_ERRORS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in files:
            timed(lambda path=path: by_nibabel(path), times.nibabel)


def written_slices(template: Path, folder: Path) -> tuple[list[Path], np.ndarray]:
    """Two volumes of 72 slices of 104 x 104, made of one real slice of GE; and their values."""
    values = np.random.default_rng(1).integers(1, 4000, (2, SIDE, SIDE, SLICES)).astype(np.int16)
    raw = template.read_bytes()
    folder.mkdir()
    out = []
    for number in range(2 * SLICES):
        dataset = pydicom.dcmread(io.BytesIO(raw))
        volume, place = divmod(number, SLICES)
        dataset[0x0021, 0x104F].value = SLICES
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.InstanceNumber, dataset.InStackPositionNumber = number + 1, place + 1
        dataset.Rows = dataset.Columns = SIDE
        dataset.ImagePositionPatient = [-118.125, -143.344, -17.6875 + 2.0 * place]
        dataset.PixelData = np.ascontiguousarray(values[volume, :, :, place].T).tobytes()
        out.append(folder / f"i{number:05d}.MRDC.1")
        dataset.save_as(out[-1])
    return out, values


def milliseconds(seconds: list[float]) -> float | None:
    return 1000 * statistics.median(seconds) if seconds else None


def summary(times: Times, problems: list[str]) -> dict[str, Any]:
    keys = ("first", "later", "last", "nibabel", "pydicom")
    return {**{f"{key}_ms": milliseconds(getattr(times, key)) for key in keys}, "problems": problems}


def measure(data: Path, entries: list[dict[str, Any]], repeats: int, scratch: Path) -> dict[str, dict[str, Any]]:
    figures = {}
    for entry in entries:
        references = entry["reference"]
        wanted = [value for reference in references for value in reference["canonical_volume_sha256_i4"]]
        files = unpacked(data, entry, scratch / entry["id"])
        times, problems = Times(), []
        per_volume = max(len(files) // len(wanted), 1)
        for _ in range(repeats):
            volumes = read_series(files, times)
            peers(files, times, per_volume)
        if {digest(volume) for volume in volumes} != set(wanted):
            problems.append("values differ from the manifest")
        figures[entry["id"]] = {"layout": entry["layout"], "volumes": len(volumes), **summary(times, problems)}
        if entry["id"] == "ge-mr750-nih":
            figures["72 slices of 104x104"] = sliced(files[0], repeats, scratch / "slices")
    return figures


def sliced(template: Path, repeats: int, folder: Path) -> dict[str, Any]:
    files, values = written_slices(template, folder)
    times = Times()
    for _ in range(repeats):
        volumes = read_series(files, times)
    same = len(volumes) == 2 and all(np.array_equal(v.data, wanted) for v, wanted in zip(volumes, values, strict=True))
    problems = [] if same else ["values differ from those written"]
    peers(files[:SLICES], times, SLICES)
    times.nibabel = []
    return {"layout": "slice-per-file", "volumes": 2, **summary(times, problems)}


def target(row: dict[str, Any]) -> tuple[str, bool]:
    """Return what was set, and whether it is reached."""
    if row["layout"] == "siemens-mosaic" and row["later_ms"] is not None:
        limit = MOSAIC_FACTOR * row["pydicom_ms"]
        return f"later <= {MOSAIC_FACTOR:g} x pydicom", row["later_ms"] <= limit
    if row["layout"] == "siemens-enhanced-per-volume":
        return f"later <= {ENHANCED_MS:g} ms", row["later_ms"] <= ENHANCED_MS
    if row["layout"] == "slice-per-file":
        return f"last <= {LAST_SLICE_MS:g} ms", row["last_ms"] <= LAST_SLICE_MS
    return "", True


def report(figures: dict[str, dict[str, Any]]) -> None:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    rows = []
    for name, row in figures.items():
        goal, reached = target(row)
        verdict = "; ".join(row["problems"]) or (
            "equal" + (", reached" if goal and reached else ", MISSED" if goal else "")
        )
        cells = [shown(row[f"{key}_ms"]) for key in ("first", "later", "last", "nibabel", "pydicom")]
        rows.append([name, row["layout"], row["volumes"], *cells, goal, verdict])
    head = ["series", "layout", "volumes", "first", "later", "last slice", "nibabel", "pydicom", "target", "verdict"]
    print_table("Milliseconds per volume, median", head, rows)


def main() -> int:
    shared = Path(os.environ.get("RTDECODE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=shared / "data", help="folder with MANIFEST.json")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="once each, times not judged: does it run and agree?")
    arguments = parser.parse_args()
    entries = json.loads((arguments.data / "MANIFEST.json").read_text())["series"]
    converted = [entry for entry in entries if entry.get("reference")]
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(arguments.data, converted, 1 if arguments.quick else 9, Path(scratch))
    report(figures)
    if arguments.json:
        write_json(arguments.json, {"series": figures})
    wrong = [name for name, row in figures.items() if row["problems"]]
    missed = [] if arguments.quick else [name for name, row in figures.items() if not target(row)[1]]
    for name in (*wrong, *missed):
        print(f"{name}: {'; '.join(figures[name]['problems']) or 'target missed'}", file=sys.stderr)
    return 1 if wrong or missed else 0


if __name__ == "__main__":
    sys.exit(main())
