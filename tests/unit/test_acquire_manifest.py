"""Every series of the manifest, against its independent conversion. A new series needs no change here."""

from __future__ import annotations

import datetime
import hashlib
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from rtdecode.acquire.inspect import Report, inspect
from tests.scans import manifest, series_ids, source_files

MAY_BE_UNKNOWN = ("affine", "t_r_s", "slice_times_s")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, kind in (("name", None), ("converted", True), ("bare", False)):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, series_ids(metafunc, kind))


def pairs(shared: Path, entry: dict[str, Any]) -> list[tuple[list[Path], list[dict[str, Any]]]]:
    """Files that belong together, with what they were converted to."""
    files, references = source_files(shared, entry), entry["reference"]
    if entry["layout"].endswith("-each"):
        return [([file], [reference]) for file, reference in zip(files, references, strict=True)]
    return [(files, references)]


def in_single_precision(report: Report, times_s: np.ndarray) -> np.ndarray:
    """Round slice times as the converter does to those of United Imaging: HHMMSS.ssssss as a float of 32 bits.

    At a quarter to two that is a step of 1/64 s: the reference itself is off by as much; the files tell milliseconds.
    """
    assert report.acquired_at is not None
    start = datetime.datetime.fromisoformat(report.acquired_at)
    clock = [(start + datetime.timedelta(seconds=t)).strftime("%H%M%S.%f") for t in times_s]
    rounded = np.array(clock, np.float32)
    return rounded - rounded.min()


def check(report: Report, reference: dict[str, Any], *, rounded: bool) -> None:
    assert list(report.shape) == reference["canonical_shape"]
    np.testing.assert_allclose(report.affine, reference["canonical_affine"], atol=1e-3)
    assert report.t_r_s == pytest.approx(reference["RepetitionTime"], rel=1e-6)
    assert report.vendor
    assert report.software
    assert report.image_type
    if reference["SliceTiming"]:
        assert report.slice_times_s is not None, report.problems
        ours, theirs = np.array(report.slice_centres_ras), np.array(reference["slice_centres_ras"])
        distance = np.linalg.norm(ours[:, None] - theirs, axis=2)
        assert distance.min(axis=0).max() < 2e-3
        times = np.array(report.slice_times_s)[distance.argmin(axis=0)]
        times = in_single_precision(report, times) if rounded else times
        np.testing.assert_allclose(times, reference["SliceTiming"], atol=5e-3)


def test_series_agree_with_their_conversion(shared: Path, converted: str) -> None:
    entry = manifest(shared)[converted]
    for files, references in pairs(shared, entry):
        found = inspect(files)
        assert found.refused == ()
        by_digest = {report.sha256_i4: report for report in found.reports}
        order = [report.sha256_i4 for report in found.reports]
        assert len(order) == sum(len(reference["canonical_volume_sha256_i4"]) for reference in references)
        for reference in references:
            wanted = reference["canonical_volume_sha256_i4"]
            assert [digest for digest in order if digest in wanted] == wanted
            for digest in wanted:
                check(by_digest[digest], reference, rounded=entry["layout"] == "uih-vframe")
        if len(references) == 1:
            assert [report.volume_index for report in found.reports] == list(range(len(order)))


def test_what_is_unknown_has_a_reason(shared: Path, name: str) -> None:
    for report in inspect(source_files(shared, manifest(shared)[name])).reports:
        unknown = [field for field in MAY_BE_UNKNOWN if getattr(report, field) is None]
        unknown += ["acquired_s"] if report.acquired_at is None else []
        reasons = [problem.split(":")[0] for problem in report.problems]
        assert set(unknown) <= set(reasons)


def test_series_without_conversion_agree_with_nibabel(shared: Path, bare: str) -> None:
    entry = manifest(shared)[bare]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compared = sum(against_nibabel(path) for path in source_files(shared, entry))
    assert compared > 0


def against_nibabel(path: Path) -> int:
    """Compare the volumes of one file; return how many."""
    if path.suffix.lower() == ".par":
        image = nib.parrec.load(path, scaling="fp", strict_sort=True)
    elif path.name.endswith(".nii.gz") and nib.load(path).ndim == 4:
        image = nib.load(path)
    else:
        return 0
    reports = inspect([path]).reports
    stored = np.asarray(image.dataobj.get_unscaled())
    assert len(reports) == stored.shape[3]
    known = reports[0].affine is not None
    for report, volume in zip(reports, np.moveaxis(stored, 3, 0), strict=True):
        expected = nib.Nifti1Image(volume.astype(np.int32), image.affine)
        expected = nib.as_closest_canonical(expected) if known else expected
        assert report.shape == expected.shape
        if known:
            np.testing.assert_allclose(report.affine, expected.affine, atol=1e-3)
            assert report.t_r_s == pytest.approx(float(image.header.get_zooms()[3]), rel=1e-6)
        values = np.ascontiguousarray(np.asarray(expected.dataobj), "<i4").tobytes()
        assert report.sha256_i4 == hashlib.sha256(values).hexdigest()
    return len(reports)
