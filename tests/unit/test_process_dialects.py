"""Valid dialects of the files that come with recorded runs: each gives what the plain form gives."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from rtdecode.__main__ import main
from rtdecode.errors import SettingsError, VolumeError
from rtdecode.process import process_runs
from rtdecode.process.tables import read_events, read_motion_table
from rtdecode.settings import EstimateSettings
from rtdecode.simulate.replay import ReplayScanner
from rtdecode.stimuli import is_baseline
from tests.conftest import FakeClock
from tests.unit.test_process import AFFINE, LENGTH, ONSETS_S, SHAPE, save, save_events, series

T_R_S = 2.0


def betas(bold: Path, events: Path, **options: object) -> np.ndarray:
    options.setdefault("motion", "none")
    found = process_runs(bold, events=events, **options)  # type: ignore[arg-type]
    return np.stack([beta.beta for beta in found.runs[0].finals])


# timing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sidecar", "slices_s", "told"),
    [
        ({"SliceTiming": [0.0, 1.0]}, [0.0, 1.0], ""),
        ({"SliceTiming": [1.0, 0.0], "SliceEncodingDirection": "k-"}, [0.0, 1.0], ""),
        ({"SliceTiming": [0.0, 1000.0]}, [0.0, 1.0], "SliceTiming: slice_times_s: milliseconds"),
        ({"SliceTiming": [0.0, 14.5]}, None, "SliceTiming: implausible"),
        ({"SliceTiming": [0.0, 0.0]}, None, "SliceTiming: all slices"),
        ({"SliceTiming": [0.0, 0.5, 1.0]}, None, "SliceTiming: expected 2 times, got 3"),
        ({"RepetitionTime": 2000}, None, "another unit"),
    ],
)
def test_a_sidecar_is_judged_as_a_header_is(
    tmp_path: Path, sidecar: dict[str, object], slices_s: list[float] | None, told: str
) -> None:
    events, bold = save_events(tmp_path / "events.tsv"), save(tmp_path / "bold.nii", series())
    settings = EstimateSettings(registration="off", slice_timing="slices")
    image = nib.load(bold)
    if slices_s is not None:  # the oracle: the header's own slice order
        image.header.set_dim_info(slice=2)
        image.header["slice_duration"], image.header["slice_code"] = slices_s[1], 1
        image.header["slice_start"], image.header["slice_end"] = 0, 1
    nib.save(image, tmp_path / "right.nii")
    (tmp_path / "bold.json").write_text(json.dumps(sidecar))
    right = betas(tmp_path / "right.nii", events, settings=settings)
    np.testing.assert_allclose(betas(bold, events, settings=settings), right)
    problems = "\n".join(process_runs(bold, events=events, motion="none").runs[0].problems)
    assert told in problems
    assert bool(problems) == bool(told)


@pytest.mark.parametrize("listed", [["a", 0.0], {"0": 1}, "half"])
def test_slice_times_that_are_no_numbers_are_refused(tmp_path: Path, listed: object) -> None:
    bold = save(tmp_path / "bold.nii", series())
    (tmp_path / "bold.json").write_text(json.dumps({"SliceTiming": listed}))
    with pytest.raises(SettingsError, match="SliceTiming: expected"):
        process_runs(bold, motion="none")


@pytest.mark.parametrize("listed", [True, "2", 0, -2, [2.0]])
def test_a_repetition_time_that_is_no_number_is_refused(tmp_path: Path, listed: object) -> None:
    bold = save(tmp_path / "bold.nii", series())
    (tmp_path / "bold.json").write_text(json.dumps({"RepetitionTime": listed}))
    with pytest.raises(SettingsError, match="RepetitionTime: expected seconds"):
        process_runs(bold, motion="none")


def test_a_header_that_holds_the_default_of_one_second_gives_way(tmp_path: Path) -> None:
    events = save_events(tmp_path / "events.tsv")
    right = betas(save(tmp_path / "right.nii", series()), events)
    bold = save(tmp_path / "bold.nii", series(), t_r_s=1.0)
    np.testing.assert_array_equal(betas(bold, events, t_r_s=T_R_S), right)
    (tmp_path / "bold.json").write_text(json.dumps({"RepetitionTime": T_R_S}))
    np.testing.assert_array_equal(betas(bold, events), right)
    assert "default" in "".join(process_runs(bold, events=events, motion="none").runs[0].problems)
    other = save(tmp_path / "other.nii", series(), t_r_s=1.5)
    (tmp_path / "other.json").write_text(json.dumps({"RepetitionTime": T_R_S}))
    with pytest.raises(SettingsError, match=r"expected 1\.5 s as the header says, got 2 s"):
        process_runs(other, events=events, motion="none")


@pytest.mark.parametrize("told", [0.0, -2.0, np.nan, np.inf, 0.055, 55.0])
def test_a_header_without_a_possible_repetition_time_asks_for_one(tmp_path: Path, told: float) -> None:
    image = nib.Nifti1Image(np.repeat(series(), 2, axis=2), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    raw = bytearray(image.to_bytes())
    raw[92:96] = np.float32(told).tobytes()  # pixdim[4]
    (tmp_path / "bold.nii").write_bytes(raw)
    with pytest.raises(SettingsError, match="t_r_s: expected seconds in the header or --tr"):
        process_runs(tmp_path / "bold.nii", motion="none")
    assert process_runs(tmp_path / "bold.nii", motion="none", t_r_s=T_R_S).runs[0].t_r_s == T_R_S
    with pytest.raises(SettingsError, match="--tr: expected seconds between volumes"):
        process_runs(tmp_path / "bold.nii", motion="none", t_r_s=2000.0)


# voxels ---------------------------------------------------------------------------------------------------


def test_all_members_of_a_gzip_are_processed(tmp_path: Path) -> None:
    events, bold = save_events(tmp_path / "events.tsv"), save(tmp_path / "bold.nii", series())
    raw = bold.read_bytes()
    packed = tmp_path / "packed.nii.gz"
    packed.write_bytes(b"".join(gzip.compress(raw[at : at + 900]) for at in range(0, len(raw), 900)))
    np.testing.assert_array_equal(betas(packed, events), betas(bold, events))


@pytest.mark.parametrize("motion", ["none", "file"])
def test_voxels_that_are_never_numbers_are_no_brain_and_harm_no_others(tmp_path: Path, motion: str) -> None:
    events = save_events(tmp_path / "events.tsv")
    data = series().astype(np.float32)
    outside = data[..., :1] == 0
    hole = np.zeros_like(outside)
    hole[5, 4] = True  # also within the head
    plain = save(tmp_path / "plain.nii", np.where(hole, np.float32(0), data))
    for number, nothing in enumerate((np.nan, np.inf, -np.inf)):
        bold = save(tmp_path / f"bold{number}.nii", np.where(outside | hole, np.float32(nothing), data))
        right, found = (process_runs(path, events=events, motion="none") for path in (plain, bold))
        np.testing.assert_array_equal(found.mask, right.mask & ~hole[..., 0])
        kept = found.mask[right.mask]
        for got, expected in zip(found.runs[0].finals, right.runs[0].finals, strict=True):
            np.testing.assert_allclose(got.beta, expected.beta[kept], rtol=1e-4, atol=1e-5)
        assert not found.runs[0].skipped


def test_a_volume_whose_brain_is_no_number_is_refused(tmp_path: Path) -> None:
    data = series().astype(np.float32)
    data[:, :, :, 5] = np.where(data[:, :, :, 5] > 0, data[:, :, :, 5], np.nan)
    data[4, 4, 0, 7] = np.nan
    (skipped,) = process_runs(save(tmp_path / "bold.nii", data), motion="none").runs[0].skipped
    assert skipped.volume == 7
    assert "finite values in the brain, got nan or infinity in 1 voxels" in skipped.reason
    with pytest.raises(VolumeError, match="head"):
        process_runs(save(tmp_path / "nothing.nii", np.full((*SHAPE, 3), np.nan, np.float32)), motion="none")


def test_a_mask_of_the_settings_rescues_what_shows_no_head(tmp_path: Path) -> None:
    """The advice of the automatic mask's error can be followed."""
    rng = np.random.default_rng(2)
    data = (10 + rng.random((*SHAPE, LENGTH))).astype(np.float32)
    data[5:7, 2:8] += 600 + 20 * rng.random((2, 6, SHAPE[2], 1)).astype(np.float32)  # too thin for a head
    bold = save(tmp_path / "bold.nii", data)
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:7, 2:8] = 1
    save(tmp_path / "mask.nii", mask)
    with pytest.raises(VolumeError, match="an image of a head"):
        process_runs(bold, motion="none")
    found = process_runs(bold, motion="none", settings=EstimateSettings(mask=tmp_path / "mask.nii"))
    np.testing.assert_array_equal(found.mask, mask > 0)
    assert not found.runs[0].skipped


# events ---------------------------------------------------------------------------------------------------


def with_rest(path: Path, rest: str) -> Path:
    plain = save_events(path).read_text().splitlines()
    stops = [*ONSETS_S, 2.0 * LENGTH]
    rows = [f"{onset + 2}\t{stop - onset - 2}\t{rest}\tn/a" for onset, stop in zip(ONSETS_S, stops[1:], strict=True)]
    path.write_text("\n".join([*plain, *rows]) + "\n")
    return path


@pytest.mark.parametrize("rest", ["rest", "Rest", "fixation", "fixation cross", "baseline", "null", "n/a", "response"])
def test_rows_of_the_baseline_are_no_trials_and_told(tmp_path: Path, rest: str) -> None:
    bold = save(tmp_path / "bold.nii", series())
    right = betas(bold, save_events(tmp_path / "events.tsv"))
    events = with_rest(tmp_path / "rest.tsv", rest)
    np.testing.assert_array_equal(betas(bold, events), right)
    assert f"baseline or answers, no stimuli; --trial-types chooses otherwise: 3 rows of {rest}" in "".join(
        process_runs(bold, events=events, motion="none").runs[0].problems
    )


def test_trial_types_are_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bold, events = save(tmp_path / "bold.nii", series()), with_rest(tmp_path / "rest.tsv", "house")
    assert len(betas(bold, events)) == 6
    right = betas(bold, save_events(tmp_path / "events.tsv"))
    np.testing.assert_array_equal(betas(bold, events, trial_types=["face"]), right)
    assert len(read_events(events, 1, ["face", "house"]).trials) == 6
    command = ["process", str(bold), "--events", str(events), "--motion", "none", "--out", str(tmp_path / "o")]
    assert main([*command, "--trial-types", "face"]) == 0
    (table,) = (tmp_path / "o").rglob("*desc-trial_events.tsv")
    assert len(table.read_text().splitlines()) == 4
    assert main([*command, "--trial-types", "face,cat"]) == 2
    assert "--trial-types: expected some of face, house, got cat" in capsys.readouterr().err


def test_trials_that_fill_the_run_are_told(tmp_path: Path) -> None:
    bold, events = save(tmp_path / "bold.nii", series()), with_rest(tmp_path / "full.tsv", "house")
    rows = events.read_text().replace("\n4.0\t2.0", "\n0\t6")
    events.write_text(rows)
    assert "trials in all of the time" in "".join(process_runs(bold, events=events, motion="none").runs[0].problems)


def test_a_table_of_rest_alone_has_no_trials_and_one_without_types_has_all(tmp_path: Path) -> None:
    events = save_events(tmp_path / "events.tsv")
    text = events.read_text()
    events.write_text(text.replace("face", "n/a"))
    assert len(read_events(events, 1).trials) == len(ONSETS_S)
    events.write_text(text.replace("face", "rest"))
    with pytest.raises(SettingsError, match="only 3 rows of rest"):
        read_events(events, 1)
    assert len(read_events(events, 1, ["rest"]).trials) == len(ONSETS_S)


def test_a_replay_announces_no_baseline(tmp_path: Path) -> None:
    run = tmp_path / "in" / "run-1"
    run.mkdir(parents=True)
    save(run / "bold.nii", series())
    with_rest(run / "events.tsv", "Fixation")
    scanner = ReplayScanner(tmp_path / "in", tmp_path, FakeClock())
    assert scanner.conditions == ("face",)


@pytest.mark.parametrize("name", ["restaurant", "face", "press conference", "crossing", "responsegraph", "A"])
def test_names_of_stimuli_are_not_the_baseline(name: str) -> None:
    assert not is_baseline(name)


# motion ---------------------------------------------------------------------------------------------------


def test_motion_of_every_package_is_the_same_motion(tmp_path: Path) -> None:
    """Written by the rules of each package's manual from one motion in mm and radians."""
    motion = np.random.default_rng(3).normal(0, [0.5, 0.5, 0.5, 0.01, 0.01, 0.01], (LENGTH, 6))
    x, y, z, pitch, yaw, roll = motion.T
    degrees = np.rad2deg([roll, pitch, yaw])
    afni = np.column_stack([*degrees, z, x, y])
    np.savetxt(tmp_path / "rp.txt", motion)
    np.savetxt(tmp_path / "mcf.par", motion[:, [3, 4, 5, 0, 1, 2]])
    np.savetxt(tmp_path / "a.1D", afni, header="3dvolreg -1Dfile")
    np.savetxt(tmp_path / "d.1D", np.column_stack([np.arange(LENGTH), afni, afni[:, :2]]))
    np.savetxt(tmp_path / "dfile.txt", afni, header="AFNI 3dvolreg")
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_allclose(read_motion_table(path), motion, atol=1e-9, err_msg=path.name)


@pytest.mark.parametrize(
    ("name", "columns", "told"),
    [("a.1D", 12, "roll pitch yaw dS dL dP of AFNI"), ("a.1D", 7, "roll pitch yaw"), ("rp.txt", 6, "radians")],
)
def test_motion_that_cannot_be_meant_so_is_refused(tmp_path: Path, name: str, columns: int, told: str) -> None:
    np.savetxt(tmp_path / name, np.full((LENGTH, columns), 2.5))
    with pytest.raises(SettingsError, match=told):
        read_motion_table(tmp_path / name)
