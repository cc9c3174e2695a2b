"""The how-to "a per-volume prediction": a package of two files, and nothing changed here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import rtdecode
from rtdecode.decode.service import LocalService
from rtdecode.decode.worker import WorkerService
from rtdecode.records import RegisteredVolume, Stamp
from rtdecode.settings import DecodeSettings
from rtdecode.testing import check_family
from tests.decode_small import category_beta, write_category_bundle
from tests.examples import EXAMPLES, install

N_VOXELS = len(category_beta(0, 1.0, np.random.default_rng(0)))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "site").mkdir()
    made = install("volume_prediction", tmp_path / "site", monkeypatch)
    made.write_pack(tmp_path / "pack")
    return made


def run_of(length: int) -> list[RegisteredVolume]:
    rng = np.random.default_rng(0)
    return [
        RegisteredVolume(
            stamp=Stamp(session="test-01", run=1, volume=index, received_s=0.0, received_mono_s=0.0),
            masked=rng.uniform(500, 900, N_VOXELS).astype(np.float32),
            matrix=np.eye(4),
            motion=np.zeros(6),
            fd_mm=0.0,
            dvars=0.0,
            tsnr=50.0,
            fit=1.0,
            parcels={"atlas": {"1": 0.5 * index, "7": -0.25}},
        )
        for index in range(length)
    ]


def windows(volumes: Sequence[RegisteredVolume], window: int) -> list[Sequence[RegisteredVolume]]:
    return [volumes[max(0, end - window) : end] for end in range(1, len(volumes) + 1)]


def test_two_files_are_enough() -> None:
    folder = EXAMPLES / "volume_prediction"
    files = [path.relative_to(folder).as_posix() for end in ("*.py", "*.toml") for path in folder.rglob(end)]
    assert files == ["steady/__init__.py", "pyproject.toml"]


def test_the_example_is_a_family_like_any_other(package: ModuleType, tmp_path: Path) -> None:
    check_family(package.FAMILY, rtdecode.open_pack(str(tmp_path / "pack")))


def test_each_volume_is_compared_with_the_last_seven(package: ModuleType, tmp_path: Path) -> None:
    pack = rtdecode.open_pack(str(tmp_path / "pack"))
    write_category_bundle(tmp_path / "bundle", pack=pack)
    volumes = run_of(10)
    local = LocalService(rtdecode.load_decoder(pack))
    assert local.window == 8
    local.load(tmp_path / "bundle")
    found = [local.predict(some)[0].values for some in windows(volumes, local.window)]
    series = np.array([volume.masked for volume in volumes], np.float64)
    expected = [np.nan]
    for i in range(1, len(series)):
        percent = 100 * (series[i] - series[max(0, i - 7) : i].mean(0)) / series[max(0, i - 7) : i].mean(0)
        expected.append(np.linalg.norm(percent) / np.sqrt(percent.size))
    np.testing.assert_allclose([values["change"] for values in found], expected, rtol=1e-12)
    assert [values["atlas/1"] for values in found] == [0.5 * index for index in range(10)]
    assert {values["atlas/7"] for values in found} == {-0.25}

    worker = WorkerService(DecodeSettings(pack=str(pack.folder)))
    try:
        worker.load(tmp_path / "bundle")
        assert worker.window == 8
        there = worker.predict(windows(volumes, 8)[-1])[0].values
    finally:
        worker.close()
    assert there == found[-1]
