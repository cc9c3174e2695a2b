"""The watcher on real exports: slices, volumes and whole series per file, in any order of arrival."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from rtdecode.acquire import stack
from rtdecode.acquire.source import Arrival
from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.records import Skipped, Volume
from rtdecode.settings import ScannerSettings, SeriesRule, parse
from tests.conftest import FakeClock
from tests.scans import manifest, series_ids, unpack
from tests.watching import SHAPE, told, watch

EVERY = SeriesRule(description="*")
SLICED = ("ge-mr750-nih", "philips-classic-achieva", "siemens-xa30-interop-v1")
AFFINE = ((-3.0, 0.0, 0.0, 1.0), (0.0, -3.0, 0.0, 2.0), (0.0, 0.0, 4.0, 3.0))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "converted" in metafunc.fixturenames:
        metafunc.parametrize("converted", series_ids(metafunc, True))


def digest(volume: Volume) -> str:
    """By the rule of the manifest."""
    image = nib.as_closest_canonical(nib.Nifti1Image(volume.data.astype(np.int32), volume.affine))
    return hashlib.sha256(np.ascontiguousarray(np.asarray(image.dataobj), "<i4").tobytes()).hexdigest()


def settle(source: FolderWatcher, clock: FakeClock) -> list[Arrival]:
    """Poll until nothing can be waited for any more."""
    out = []
    for _ in range(3):
        out += source.poll()
        while source._backlog:
            out += source.poll()
        clock.sleep(5.0)
    return out


def test_every_series_comes_once_and_in_order(shared: Path, converted: str, tmp_path: Path, clock: FakeClock) -> None:
    entry = manifest(shared)[converted]
    references = entry["reference"]
    if entry["layout"].endswith("-each"):  # one volume again and again: only one of them has a place
        references = references[:1]
    staged = tmp_path / "staged"
    staged.mkdir()
    files = [path for path, _ in unpack(shared, converted, staged)]
    random.Random(converted).shuffle(files)
    export = tmp_path / "export"
    export.mkdir()
    source, arrivals = watch(export, clock, series=(EVERY,)), []
    for number, path in enumerate(files):
        shutil.copy(path, export / path.name)
        if number % 7 == 0:
            arrivals += source.poll()
    arrivals += settle(source, clock)
    volumes = [arrival.item for arrival in arrivals if isinstance(arrival.item, Volume)]
    assert [volume.stamp.volume for volume in volumes] == list(range(len(volumes)))
    assert [digest(volume) for volume in volumes] == references[0]["canonical_volume_sha256_i4"]
    assert all(volume.stamp.run == 1 for volume in volumes)
    others = {arrival.item.reason.split(":")[0] for arrival in arrivals if isinstance(arrival.item, Skipped)}
    assert others <= {"duplicate", "surplus", "left out", "late"} | ({"missing"} if len(references) == 1 else set())


@pytest.mark.parametrize("name", SLICED)
def test_a_missing_slice_costs_its_volume_only(shared: Path, name: str, tmp_path: Path, clock: FakeClock) -> None:
    reference = manifest(shared)[name]["reference"][0]["canonical_volume_sha256_i4"]
    files = unpack(shared, name, tmp_path)
    victim = [path for path, volume in files if volume == 0][3]
    victim.unlink()
    arrivals = settle(watch(tmp_path, clock), clock)
    good = [arrival.item for arrival in arrivals if isinstance(arrival.item, Volume)]
    assert [digest(volume) for volume in good] == reference[1:]
    assert [volume.stamp.volume for volume in good] == list(range(1, len(reference)))
    bad = [arrival.item for arrival in arrivals if isinstance(arrival.item, Skipped)]
    assert any("incomplete" in item.reason or "missing" in item.reason for item in bad)


@pytest.mark.parametrize("name", SLICED)
def test_a_slice_that_comes_again_is_named_and_harmless(
    shared: Path, name: str, tmp_path: Path, clock: FakeClock
) -> None:
    reference = manifest(shared)[name]["reference"][0]["canonical_volume_sha256_i4"]
    files = unpack(shared, name, tmp_path)
    shutil.copy(files[2][0], tmp_path / "0000_again")
    arrivals = settle(watch(tmp_path, clock), clock)
    assert [digest(a.item) for a in arrivals if isinstance(a.item, Volume)] == reference
    assert [a.item.reason.split(":")[0] for a in arrivals if isinstance(a.item, Skipped)] == ["surplus"]


def test_a_truncated_slice_is_waited_for(shared: Path, tmp_path: Path, clock: FakeClock) -> None:
    files = unpack(shared, "philips-classic-achieva", tmp_path)
    victim = next(path for path, volume in files if volume == 1)
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-100])
    source = watch(tmp_path, clock)
    assert told(source.poll() + source.poll()) == [(1, 0, "volume")]
    victim.write_bytes(whole)
    assert told(source.poll() + source.poll()) == [(1, 1, "volume"), (1, 2, "volume")]
    assert source.poll() == []


def test_a_slice_that_stays_truncated_takes_its_volume_with_it(shared: Path, tmp_path: Path, clock: FakeClock) -> None:
    files = unpack(shared, "philips-classic-achieva", tmp_path)
    victim = next(path for path, volume in files if volume == 1)
    victim.write_bytes(victim.read_bytes()[:-100])
    source = watch(tmp_path, clock)
    arrivals = source.poll() + source.poll() + settle(source, clock)
    assert [(index, what) for _, index, what in told(arrivals)] == [(0, "volume"), (1, "truncated"), (2, "volume")]


def test_dumps_need_an_affine_from_the_settings(shared: Path, tmp_path: Path, clock: FakeClock) -> None:
    unpack(shared, "philips-xtc-dump-0001", tmp_path)
    told_without = told(settle(watch(tmp_path, clock), clock))
    assert told_without.count((1, 0, "affine")) == told_without.count((1, 1, "affine")) == 1
    arrivals = settle(watch(tmp_path, clock, affine=AFFINE, t_r_s=1.2), clock)
    volumes = [arrival.item for arrival in arrivals if isinstance(arrival.item, Volume)]
    assert [volume.stamp.volume for volume in volumes] == [0, 1]
    assert [volume.t_r_s for volume in volumes] == [1.2, 1.2]
    np.testing.assert_array_equal(volumes[0].affine[:3], AFFINE)


def test_a_dump_waits_for_its_second_file(shared: Path, tmp_path: Path, clock: FakeClock) -> None:
    files = unpack(shared, "philips-xtc-dump-0001", tmp_path)
    images = next(path for path, _ in files if path.name == "Dump-0000.rec")
    raw = images.read_bytes()
    source = watch(tmp_path, clock, affine=AFFINE)
    for end in (0, 1000, len(raw) - 2):
        images.write_bytes(raw[:end])
        assert not any(isinstance(arrival.item, Volume) for arrival in source.poll())
        clock.sleep(1.0)
    images.write_bytes(raw)
    assert [v for _, v, what in told(source.poll() + source.poll()) if what == "volume"] == [0, 1]


def test_a_settings_affine_must_have_three_axes() -> None:
    raw = {"session": {"participant": "x"}, "scanner": {"export_dir": "x", "affine": [[1, 0, 0, 0]] * 3}}
    with pytest.raises(Exception, match="independent"):
        parse(raw, root=Path())


def series_image(volumes: int) -> nib.Nifti1Image:
    data = np.random.default_rng(1).integers(1, 4000, (*SHAPE, volumes)).astype(np.int16)
    made = nib.Nifti1Image(data, np.diag([2.0, 2.0, 3.0, 1.0]))
    made.header.set_xyzt_units("mm", "sec")
    made.header["pixdim"][4] = 1.25
    return made


def test_a_growing_series_gives_each_volume_once(tmp_path: Path, clock: FakeClock) -> None:
    made = series_image(6)
    raw, path = made.to_bytes(), tmp_path / "run-02_bold.nii"
    each = int(np.prod(SHAPE)) * 2
    source, out = watch(tmp_path, clock), []
    for end in (100, 352, 352 + each - 1, 352 + each, 352 + 3 * each + 5, 352 + 5 * each, len(raw)):
        path.write_bytes(raw[:end])
        found = source.poll()
        assert [arrival.item.stamp.volume for arrival in found if isinstance(arrival.item, Volume)] == list(
            range(len(out), len(out) + len(found))
        )
        out += found
        clock.sleep(1.0)
    assert source.poll() == []
    values = np.asarray(made.dataobj)
    for index, arrival in enumerate(out):
        assert isinstance(arrival.item, Volume)
        np.testing.assert_array_equal(arrival.item.data, values[..., index])
        assert (arrival.item.stamp.run, arrival.item.t_r_s) == (2, 1.25)
    assert len(out) == 6


def test_a_preallocated_series_waits_for_its_volumes(tmp_path: Path, clock: FakeClock) -> None:
    raw, path = series_image(4).to_bytes(), tmp_path / "bold.nii"
    each = int(np.prod(SHAPE)) * 2
    source = watch(tmp_path, clock)
    for done in range(1, 5):
        end = 352 + done * each
        path.write_bytes(raw[: end - each // 2] + bytes(len(raw) - end + each // 2))
        assert source.poll() == []
        path.write_bytes(raw[:end] + bytes(len(raw) - end))
        assert told(source.poll()) == [(1, done - 1, "volume")]
        clock.sleep(1.0)


def test_slices_without_a_count_are_closed_when_no_more_come(
    shared: Path, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdecode.acquire.slices._stated_slices", lambda header: None)
    unpack(shared, "philips-classic-achieva", tmp_path)
    source = watch(tmp_path, clock)
    assert source.poll() + source.poll() == []
    clock.sleep(5.0)
    assert told(source.poll()) == [(1, 0, "volume"), (1, 1, "volume"), (1, 2, "volume")]


def test_held_slices_are_bounded(
    shared: Path, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "MAX_OPEN_BYTES", 5 * 64 * 64 * 2)
    unpack(shared, "philips-classic-achieva", tmp_path)
    assert all(isinstance(arrival.item, Skipped) for arrival in watch(tmp_path, clock).poll())


def test_settings_take_an_affine() -> None:
    raw = {"session": {"participant": "x"}, "scanner": {"export_dir": "x", "affine": [list(row) for row in AFFINE]}}
    assert parse(raw, root=Path()).scanner == ScannerSettings(export_dir=Path("x"), affine=AFFINE)


@pytest.mark.parametrize("name", SLICED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_exports_without_declared_types_are_read_the_same(
    shared: Path, name: str, tmp_path: Path, clock: FakeClock
) -> None:
    for path, _ in unpack(shared, name, tmp_path):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        dataset.save_as(path)
    arrivals = settle(watch(tmp_path, clock), clock)
    reference = manifest(shared)[name]["reference"][0]
    volumes = [arrival.item for arrival in arrivals if isinstance(arrival.item, Volume)]
    assert [digest(volume) for volume in volumes] == reference["canonical_volume_sha256_i4"]
    assert (volumes[0].slice_times_s is None) == (name == "philips-classic-achieva")
