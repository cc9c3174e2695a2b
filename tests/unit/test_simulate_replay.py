from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.records import Volume
from rtdecode.settings import ScannerSettings
from rtdecode.simulate.replay import ReplayScanner, find_runs
from tests.conftest import FakeClock

HAXBY = "task-haxby2001-sub001-runs1-6"
AFFINE = np.diag([-3.0, 3.0, 4.0, 1.0])


def record(folder: Path, run: int, *, scaled: bool = False, t_r_s: float = 2.0) -> np.ndarray:
    sub = folder / f"run{run:03d}"
    sub.mkdir(parents=True)
    data = np.random.default_rng(run).integers(1, 900, (5, 4, 3, 6)).astype(np.int16)
    image = nib.Nifti1Image(data, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = t_r_s
    if scaled:
        image.header.set_slope_inter(0.25, 3.0)
    (sub / "bold.nii").write_bytes(image.to_bytes())
    (sub / "bold_events.tsv").write_text(
        "onset\tduration\ttrial_type\n4.0\t3.0\tscrambledpix\n1.0\t2.0\tface\n9.0\t1.0\trest\n"
    )
    np.savetxt(sub / "bold_moest.txt", np.random.default_rng(run).standard_normal((6, 8)))
    return data


def test_a_recording_comes_out_volume_by_volume(tmp_path: Path, clock: FakeClock) -> None:
    export, told = tmp_path / "export", []
    export.mkdir()
    data = {run: record(tmp_path / "data", run, scaled=run == 2) for run in (1, 2, 3)}
    replay = ReplayScanner(tmp_path / "data", export, clock, 1.0, runs=[1, 2])
    began, held = clock.now, []
    replay.play(told.append, held.append)
    assert clock.now - began == pytest.approx(24.0)
    assert held == [1, 2]
    with FolderWatcher(ScannerSettings(export_dir=export, watch="polling"), "s1", clock) as source:
        volumes = [arrival.item for arrival in source.poll()]
    assert len(volumes) == 12
    for at, volume in enumerate(volumes):
        assert isinstance(volume, Volume)
        run, index = at // 6 + 1, at % 6
        assert (volume.stamp.run, volume.stamp.volume, volume.t_r_s) == (run, index, 2.0)
        np.testing.assert_array_equal(volume.data, data[run][..., index])
        np.testing.assert_allclose(volume.affine, AFFINE)
        assert (volume.slope, volume.intercept) == ((0.25, 3.0) if run == 2 else (1.0, 0.0))
    assert told[0] == {"kind": "run_start", "run": 1, "expected_volumes": 6, "t_r_s": 2.0}
    assert [m["condition"] for m in told if m["kind"] == "trial"] == ["face", "scrambled"] * 2
    assert [m["stimulus"] for m in told if m["kind"] == "trial"] == ["face", "scrambled"] * 2
    assert len({m["trial"] for m in told if m["kind"] == "trial"}) == 4
    assert told[-1] == {"kind": "run_end", "run": 2, "volumes": 6}


def test_motion_is_written_for_the_runs_played(tmp_path: Path, clock: FakeClock) -> None:
    for run in (1, 2):
        record(tmp_path / "data", run)
    ReplayScanner(tmp_path / "data", tmp_path, clock, runs=[2]).write_motion(tmp_path / "motion")
    assert [path.name for path in (tmp_path / "motion").iterdir()] == ["run-2.txt"]
    recorded = np.loadtxt(tmp_path / "data" / "run002" / "bold_moest.txt")
    written = np.loadtxt(tmp_path / "motion" / "run-2.txt")
    np.testing.assert_allclose(written, recorded[:, [3, 4, 5, 0, 1, 2]], rtol=1e-7)


def test_the_real_participant_is_replayed_whole(shared: Path, tmp_path: Path, clock: FakeClock) -> None:
    told: list[dict[str, Any]] = []
    replay = ReplayScanner(shared / "data" / HAXBY, tmp_path, clock, "max", runs=[5])
    assert replay.conditions == ("bottle", "cat", "chair", "face", "house", "scissors", "scrambled", "shoe")
    assert [run.image.name for run in replay.recorded] == ["bold_1slice.nii.gz"]
    replay.play(told.append)
    replay.write_motion(tmp_path / "motion")
    assert np.loadtxt(tmp_path / "motion" / "run-5.txt").shape == (121, 6)
    assert sum(message["kind"] == "trial" for message in told) == 8
    source = FolderWatcher(ScannerSettings(export_dir=tmp_path, watch="polling"), "s1", clock)
    volumes = [arrival.item for _ in range(6) for arrival in source.poll()]
    whole = nib.load(shared / "data" / HAXBY / "run005" / "bold_1slice.nii.gz")
    assert all(isinstance(volume, Volume) and volume.t_r_s == 2.5 for volume in volumes)
    stacked = np.stack([volume.data for volume in volumes if isinstance(volume, Volume)], axis=3)
    np.testing.assert_array_equal(stacked, np.asarray(whole.dataobj))


def test_a_folder_without_runs_is_refused(tmp_path: Path, clock: FakeClock) -> None:
    with pytest.raises(FileNotFoundError, match="run folders"):
        ReplayScanner(tmp_path, tmp_path, clock)
    (tmp_path / "run001").mkdir()
    with pytest.raises(FileNotFoundError, match=r"events\.tsv"):
        find_runs(tmp_path)


def test_runs_that_were_not_recorded_are_refused(tmp_path: Path, clock: FakeClock) -> None:
    record(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match="got none"):
        ReplayScanner(tmp_path, tmp_path, clock, runs=[9])


def test_an_image_without_repetition_time_is_refused(tmp_path: Path, clock: FakeClock) -> None:
    record(tmp_path, 1, t_r_s=0.0)
    with pytest.raises(ValueError, match="repetition time"):
        ReplayScanner(tmp_path, tmp_path, clock)


@pytest.mark.parametrize("rows", ["onset\tduration\n1\t2\n", "onset\tduration\ttrial_type\nsoon\t2\tface\n"])
def test_events_without_a_column_or_number_are_refused(tmp_path: Path, clock: FakeClock, rows: str) -> None:
    record(tmp_path, 1)
    (tmp_path / "run001" / "bold_events.tsv").write_text(rows)
    with pytest.raises(ValueError, match="trial_type"):
        ReplayScanner(tmp_path, tmp_path, clock)


def test_motion_of_another_length_is_refused(tmp_path: Path, clock: FakeClock) -> None:
    record(tmp_path, 1)
    np.savetxt(tmp_path / "run001" / "bold_moest.txt", np.zeros((5, 6)))
    with pytest.raises(ValueError, match="expected 6 rows"):
        ReplayScanner(tmp_path, tmp_path, clock).write_motion(tmp_path / "motion")
