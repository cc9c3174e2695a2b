"""The worked example of a scanner format, installed beside the project."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rtdecode.acquire import readers
from rtdecode.acquire.inspect import inspect
from rtdecode.acquire.stored import Identity, Reading
from rtdecode.process.recorded import read_runs
from rtdecode.records import Skipped, Volume
from tests.conftest import FakeClock
from tests.examples import EXAMPLES, install
from tests.watching import told, watch

SHAPE = (5, 4, 3)
AFFINE = [[-3.0, 0.0, 0.0, 20.0], [0.0, 3.0, 0.0, -30.0], [0.0, 0.0, 3.5, 4.0], [0.0, 0.0, 0.0, 1.0]]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    (tmp_path / "site").mkdir()
    monkeypatch.setattr(readers, "installed", readers.installed.__wrapped__)  # as a process that starts now finds it
    return install("scanner_format", tmp_path / "site", monkeypatch)


def lvol(number: int, series: str = "faces-1") -> tuple[bytes, np.ndarray]:
    """A file as the format's description says, written without the example's code, and its values."""
    values = np.random.default_rng(number).integers(1, 4000, SHAPE, dtype=np.int16)
    header = {"series": series, "number": number, "shape": SHAPE, "affine": AFFINE, "t_r_s": 1.5}
    return b"LVOL 1\n" + json.dumps(header).encode() + b"\n" + values.tobytes(order="F"), values


def test_a_package_adds_a_format_in_two_files() -> None:
    folder = EXAMPLES / "scanner_format"
    files = [path.relative_to(folder).as_posix() for end in ("*.py", "*.toml") for path in folder.rglob(end)]
    assert files == ["lvol/__init__.py", "pyproject.toml"]


def test_files_of_an_installed_format_become_volumes_in_index_order(
    package: ModuleType, tmp_path: Path, clock: FakeClock
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    source, values = watch(export, clock), {}
    for number in (3, 1, 2):
        content, values[number] = lvol(number)
        (export / f"image_{number}.LVOL").write_bytes(content)
    arrivals = source.poll()
    assert told(arrivals) == [(1, 0, "volume"), (1, 1, "volume"), (1, 2, "volume")]
    for number, arrival in enumerate(arrivals, 1):
        volume = arrival.item
        assert isinstance(volume, Volume)
        np.testing.assert_array_equal(volume.data, values[number])
        np.testing.assert_array_equal(volume.affine, AFFINE)
        assert (volume.t_r_s, volume.instance, volume.series_uid) == (1.5, number, "faces-1")


def test_a_file_that_is_being_written_is_waited_for_and_then_named(
    package: ModuleType, tmp_path: Path, clock: FakeClock
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    source = watch(export, clock)
    content, _ = lvol(1)
    path = export / "image_1.lvol"
    for end in (20, len(content) - 2):
        path.write_bytes(content[:end])
        assert source.poll() == []
    path.write_bytes(content)
    assert told(source.poll()) == [(1, 0, "volume")]
    (export / "image_2.lvol").write_bytes(lvol(2)[0][:-2])
    assert source.poll() == []
    clock.sleep(5.0)
    (lost,) = source.poll()
    assert isinstance(lost.item, Skipped)
    assert (lost.item.volume, lost.item.reason) == (
        1,
        "truncated: image_2.lvol: values: expected 120 bytes, got 118",
    )


def test_recorded_runs_and_rules_of_series_know_the_format(
    package: ModuleType, tmp_path: Path, clock: FakeClock
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    for number in (1, 2):
        for series in ("faces-1", "localizer"):
            (export / f"{series}_{number}.lvol").write_bytes(lvol(number, series)[0])
    recorded = read_runs(export, session="01", first_run=1, t_r_s=None)
    assert [len(list(run.items)) for run in recorded] == [2, 2]
    assert told(watch(export, clock).poll()) == [(0, None, "left out"), (1, 0, "volume"), (1, 1, "volume")]


def test_a_damaged_header_is_told_with_its_field(package: ModuleType, tmp_path: Path) -> None:
    content, _ = lvol(1)
    (tmp_path / "image_1.lvol").write_bytes(content.replace(b'"t_r_s": 1.5', b'"t_r_s": "?"'))
    (reason,) = inspect([tmp_path / "image_1.lvol"]).refused
    assert "Expected `float`, got `str` - at `$.t_r_s`" in reason


def test_without_the_package_the_files_are_no_dicom(tmp_path: Path) -> None:
    (tmp_path / "image_1.lvol").write_bytes(lvol(1)[0] + bytes(100))
    (reason,) = inspect([tmp_path / "image_1.lvol"]).refused
    assert "expected DICM" in reason


def test_a_growing_file_of_an_installed_format_gives_each_volume_once(
    package: ModuleType, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Growing(package.LvolReader):
        """Several files in one, the header of the first telling how long each is."""

        def read(self, path: Path) -> Reading:
            whole, size, volumes = path.read_bytes(), len(lvol(1)[0]), []
            for start in range(0, len(whole), size):
                part = path.with_suffix(".part")
                part.write_bytes(whole[start : start + size])
                volumes += super().read(part).volumes
            return Reading(volumes=tuple(volumes), growing=True)

        def identify(self, path: Path) -> Identity | None:
            return None

    form = readers.Format(suffixes=(".grow",), reader=lambda _: Growing())
    monkeypatch.setattr(readers, "installed", lambda: (form,))
    (tmp_path / "export").mkdir()
    source, path = watch(tmp_path / "export", clock), tmp_path / "export" / "run.grow"
    path.write_bytes(lvol(1)[0] + lvol(2)[0])
    assert told(source.poll()) == [(1, 0, "volume"), (1, 1, "volume")]
    path.write_bytes(lvol(1)[0] + lvol(2)[0] + lvol(3)[0])
    assert told(source.poll()) == [(1, 2, "volume")]
