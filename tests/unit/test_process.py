"""Recorded runs give what the estimator gives, and files that say so."""

from __future__ import annotations

import gzip
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from rtdecode.__main__ import main
from rtdecode.errors import BundleError, SettingsError, VolumeError
from rtdecode.estimate import Estimator
from rtdecode.estimate.calibrated import Learned
from rtdecode.estimate.glm import Expectation
from rtdecode.estimate.registration import rigid_matrix
from rtdecode.packs.participant_bundle import PARTICIPANT_SCHEMA
from rtdecode.packs.sealed import seal
from rtdecode.process import process_runs
from rtdecode.process.kept_runs import calibration_runs
from rtdecode.records import Stamp, TrialEvent, Volume
from rtdecode.session.journal import Journal
from rtdecode.settings import EstimateSettings
from tests import bids
from tests.conftest import FakeClock
from tests.packs import write_provenance
from tests.unit.test_estimate_registration import Phantom

T_R_S = 2.0
SHAPE = (12, 10, 2)
AFFINE = np.diag([3.0, 3.0, 4.0, 1.0])
LENGTH = 40
ONSETS_S = (4.0, 21.0, 37.5)
MOTION_COLUMNS = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "framewise_displacement"]


def series(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    data = np.zeros((*SHAPE, LENGTH), np.int16)
    level = 600 + 15 * np.arange(80).reshape(8, 5, 2)
    data[2:10, 2:7] = np.round(level[..., None] * (1 + 0.01 * rng.standard_normal((8, 5, 2, LENGTH))))
    return data


def save(path: Path, data: np.ndarray, t_r_s: float = T_R_S) -> Path:
    image = nib.Nifti1Image(data, AFFINE)
    if data.ndim == 4:
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_zooms((3, 3, 4, t_r_s))
    nib.save(image, path)
    return path


def save_events(path: Path, onsets_s: tuple[object, ...] = ONSETS_S, duration: object = 2.0) -> Path:
    rows = [f"{onset}\t{duration}\tface\tpic{i}" for i, onset in enumerate(onsets_s)]
    path.write_text("\n".join(["onset\tduration\ttrial_type\tstim_id", *rows]) + "\n")
    return path


def online(data: np.ndarray, settings: EstimateSettings) -> list[tuple[float, float, bytes]]:
    """The estimator of the daemon, fed by hand."""
    estimator = Estimator(settings, "by hand")
    estimator.start_run(1, T_R_S)
    for i, onset_s in enumerate(ONSETS_S):
        estimator.add_event(TrialEvent(run=1, trial=str(i), onset_s=onset_s, duration_s=2.0))
    updates = []
    for index in range(data.shape[-1]):
        stamp = Stamp(session="s", run=1, volume=index, received_s=0, received_mono_s=0)
        updates += estimator.step(
            Volume(
                stamp=stamp,
                data=data[..., index],
                affine=AFFINE,
                t_r_s=T_R_S,
                slice_times_s=None,
                series_uid="1",
                instance=index,
                path="",
            )
        )[1]
    updates += estimator.finish_run()
    return [(u.event.onset_s, u.delay_s, u.beta.tobytes()) for u in updates]


SETTINGS = EstimateSettings(registration="off", confounds="none", revise_at_s=(6.0,), final_at_s=12.0)


def test_betas_are_those_of_the_online_estimator(tmp_path: Path) -> None:
    bold = save(tmp_path / "bold.nii.gz", series())
    events = save_events(tmp_path / "events.tsv")
    found = process_runs(bold, events=events, motion="none", settings=SETTINGS)
    got = [(b.event.onset_s, b.delay_s, b.beta.tobytes()) for b in found.runs[0].betas]
    assert got == online(series(), SETTINGS)
    assert [b.event.stimulus for b in found.runs[0].finals] == ["pic0", "pic1", "pic2"]


def test_a_folder_of_volumes_is_the_same_run(tmp_path: Path) -> None:
    data = series()
    folder = tmp_path / "export"
    folder.mkdir()
    for index in range(LENGTH):
        save(folder / f"vol{index + 1:04d}.nii", data[..., index])
    events = save_events(tmp_path / "events.tsv")
    found = process_runs(folder, events=events, motion="none", settings=SETTINGS, t_r_s=T_R_S)
    got = [(b.event.onset_s, b.delay_s, b.beta.tobytes()) for b in found.runs[0].betas]
    assert got == online(data, SETTINGS)
    one = nib.load(folder / "vol0001.nii")
    one.header.set_xyzt_units("mm", "sec")
    one.header["pixdim"][4] = 1.5
    nib.save(one, _empty(tmp_path) / "vol0001.nii")
    with pytest.raises(SettingsError, match=r"expected 1\.5 s as the files say, got 2 s"):
        process_runs(tmp_path / "empty", motion="none", t_r_s=T_R_S)


def test_derivatives(tmp_path: Path) -> None:
    bold = save(tmp_path / "sub-07_ses-02_task-pics_run-3_bold.nii.gz", series())
    events = save_events(tmp_path / "events.tsv")
    out = tmp_path / "out"
    options = ["--motion", "none", "--out", str(out), "--every-volume", "--standard-errors"]
    assert main(["process", str(bold), "--events", str(events), *options]) == 0
    stem = out / "sub-07" / "ses-02" / "func" / "sub-07_ses-02_task-pics_run-3"

    def table(suffix: str) -> pd.DataFrame:
        return pd.read_csv(f"{stem}_{suffix}.tsv", sep="\t")

    motion = table("desc-motion_timeseries")
    assert list(motion.columns) == MOTION_COLUMNS
    assert motion.shape == (LENGTH, 7)
    assert (motion == 0).all(axis=None)
    finals = table("desc-trial_events")
    betas = nib.load(f"{stem}_desc-trial_betas.nii.gz")
    assert betas.shape == (*SHAPE, 3)
    np.testing.assert_allclose(betas.affine, AFFINE)
    errors = nib.load(f"{stem}_desc-trial_stderr.nii.gz").get_fdata()
    assert (errors > 0).sum() == 3 * 80
    assert finals["onset"].tolist() == list(ONSETS_S)
    assert finals["final"].tolist() == [1, 1, 1]
    revisions = table("desc-revision_events")
    every = nib.load(f"{stem}_desc-revision_betas.nii.gz").get_fdata()
    for onset_s, rows in revisions.groupby("onset"):
        np.testing.assert_allclose(rows["time_after_onset"].diff().dropna(), T_R_S)
        assert rows["time_after_onset"].iloc[-1] >= 10.0  # 8 s after a stimulus of 2 s
        last = every[..., rows.index[-1]]
        np.testing.assert_array_equal(last, betas.get_fdata()[..., ONSETS_S.index(onset_s)])
    plots = {path.name.split("_")[-2] for path in stem.parents[2].glob("figures/*plot_bold.png")}
    assert plots == {f"desc-{name}plot" for name in ("motion", "carpet", "tsnr", "design")}
    mask = nib.load(stem.parent / "sub-07_ses-02_task-pics_desc-brain_mask.nii.gz").get_fdata() > 0
    assert (every[~mask] == 0).all()
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert bids.errors(out) == []
    (out / "sub-07" / "ses-02" / "func" / "notes.txt").write_text("not BIDS")
    assert bids.errors(out) == ["NOT_INCLUDED /sub-07/ses-02/func/notes.txt"]


def test_labels_and_mask_are_taken_from_the_command(tmp_path: Path) -> None:
    bold = save(tmp_path / "scan.nii.gz", series())
    assert main(["process", str(bold), "--motion", "none", "--out", str(tmp_path / "whole")]) == 0
    (whole,) = (tmp_path / "whole").rglob("*_desc-brain_mask.nii.gz")
    chosen = nib.load(whole).get_fdata() > 0
    chosen[: SHAPE[0] // 2] = False
    assert chosen.any()
    nib.save(nib.Nifti1Image(chosen.astype(np.uint8), AFFINE), tmp_path / "mask.nii.gz")
    labels = ["--participant", "07", "--session", "02", "--task", "faces", "--mask", str(tmp_path / "mask.nii.gz")]
    assert main(["process", str(bold), "--motion", "none", "--out", str(tmp_path / "out"), *labels]) == 0
    stem = tmp_path / "out" / "sub-07" / "ses-02" / "func" / "sub-07_ses-02_task-faces"
    assert Path(f"{stem}_desc-motion_timeseries.tsv").exists()
    written = nib.load(f"{stem}_desc-brain_mask.nii.gz").get_fdata()
    np.testing.assert_array_equal(written > 0, chosen)
    with pytest.raises(SystemExit):
        main(["process", str(bold), "--out", str(tmp_path / "out"), "--participant", "sub-07"])


def test_runs_are_told_apart_and_teach_later_ones(tmp_path: Path) -> None:
    paths = []
    for run in (1, 2):
        folder = tmp_path / f"run{run}"
        folder.mkdir()
        paths.append(save(folder / "bold.nii.gz", series(run)))
    events = [save_events(path.with_name("events.tsv")) for path in paths]
    found = process_runs(paths, events=events, motion="none", settings=SETTINGS, out=tmp_path / "out")
    alone = process_runs(paths[1], events=events[1], motion="none", settings=SETTINGS)
    assert found.runs[1].finals[0].beta.tobytes() != alone.runs[0].finals[0].beta.tobytes()
    names = {path.name for path in (tmp_path / "out").rglob("*motion_timeseries.tsv")}
    assert names == {f"sub-01_task-bold_run-0{run}_desc-motion_timeseries.tsv" for run in (1, 2)}


def test_motion_is_found_and_written(tmp_path: Path) -> None:
    phantom = Phantom()
    rng = np.random.default_rng(0)
    still = phantom.render(np.eye(4), rng)
    # about the origin of RAS; turned to the centre that the sidecar tells below
    motion = [np.array([0.4 * i, -0.3 * i, 0.2 * i, 0.004 * i, 0.0, -0.003 * i]) for i in range(4)]
    volumes = [still] + [phantom.render(rigid_matrix(m, np.zeros(3)), rng) for m in motion[1:]]
    image = nib.Nifti1Image(np.stack(volumes, -1), phantom.affine)
    image.header.set_zooms((*image.header.get_zooms()[:3], 1.5))
    nib.save(image, tmp_path / "bold.nii")
    process_runs(tmp_path / "bold.nii", out=tmp_path / "out")
    (path,) = (tmp_path / "out").rglob("*motion_timeseries.tsv")
    table = pd.read_csv(path, sep="\t")
    centre = np.array(json.loads(path.with_suffix(".json").read_text())["rot_x"]["RotationCentre_mm"])
    corners = np.array(np.meshgrid([-40, 40], [-40, 40], [-40, 40])).reshape(3, -1).T
    for row, true in zip(table.to_numpy(), motion, strict=True):
        off = rigid_matrix(row[:6], centre) - rigid_matrix(true, np.zeros(3))
        assert np.linalg.norm(corners @ off[:3, :3].T + off[:3, 3], axis=1).max() < 0.1
    change = table[MOTION_COLUMNS[:6]].diff().abs().to_numpy()[1:]
    np.testing.assert_allclose(
        table["framewise_displacement"][1:], change[:, :3].sum(1) + 50 * change[:, 3:].sum(1), rtol=1e-5
    )


def test_dicom_folder_moves_as_the_converted_file_does(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "siemens-ve11-prisma-pyneal13"
    folder = tmp_path / "dicom"
    folder.mkdir()
    for path in (source / "dicom").glob("*.dcm.gz"):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    ours = process_runs(folder).runs[0]
    converted = process_runs(source / "ref" / "ref.nii.gz").runs[0]
    assert len(ours.volumes) == len(converted.volumes) > 10
    points = np.array([[0.0, 0, 0, 1], [40, 0, 0, 1], [0, 40, 0, 1], [0, 0, 40, 1]])
    for a, b in zip(ours.volumes, converted.volumes, strict=True):
        assert np.abs(points @ (a.matrix - b.matrix).T).max() < 0.02


@pytest.mark.parametrize("form", ["columns.txt", "motion.par", "confounds.tsv"])
def test_motion_from_a_file(tmp_path: Path, form: str) -> None:
    bold = save(tmp_path / "bold.nii", series())
    motion = np.random.default_rng(1).standard_normal((LENGTH, 6)) / 100
    path = tmp_path / form
    if form == "confounds.tsv":
        pd.DataFrame(motion, columns=MOTION_COLUMNS[:6]).assign(csf=1.0).to_csv(path, sep="\t", index=False)
    else:
        np.savetxt(path, motion if form == "columns.txt" else motion[:, [3, 4, 5, 0, 1, 2]])
    volumes = process_runs(bold, motion=path).runs[0].volumes
    np.testing.assert_allclose([v.motion for v in volumes], motion, atol=1e-12)


def test_a_file_cut_short_is_processed_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.nii.gz", series())
    for name, content in (
        ("cut.nii", gzip.decompress(whole.read_bytes())[: 352 + 480 * 25 + 7]),
        ("cut.nii.gz", whole.read_bytes()[:-4000]),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        run = process_runs(path, motion="none").runs[0]
        assert 5 < run.length < LENGTH
        assert any(f"dim[4]: expected 40 volumes, got {run.length}" in problem for problem in run.problems)
        for registered, volume in zip(run.volumes, np.moveaxis(series(), -1, 0), strict=False):
            np.testing.assert_array_equal(registered.masked, volume[2:10, 2:7].ravel())


def test_unusable_volumes_are_missing_rows(tmp_path: Path) -> None:
    data = series().astype(np.float32)
    data[3, 3, 0, 7] = np.nan
    data[..., 12] = 0
    bold = save(tmp_path / "bold.nii", data)
    found = process_runs(bold, motion="none", out=tmp_path / "out")
    assert [s.volume for s in found.runs[0].skipped] == [7, 12]
    (path,) = (tmp_path / "out").rglob("*motion_timeseries.tsv")
    table = pd.read_csv(path, sep="\t")
    assert np.flatnonzero(table["trans_x"].isna()).tolist() == [7, 12]
    (path,) = (tmp_path / "out").rglob("*quality_timeseries.tsv")
    reasons = pd.read_csv(path, sep="\t")["skipped"]
    assert "expected finite values" in reasons[7]
    assert "correlation with the reference" in reasons[12]


def test_regions_are_followed(tmp_path: Path) -> None:
    bold = save(tmp_path / "bold.nii", series())
    region = np.zeros(SHAPE, np.uint8)
    region[3:6, 3:5] = 1
    roi = save(tmp_path / "left.nii.gz", region)
    run = process_runs(bold, motion="none", regions=[roi], out=tmp_path / "out").runs[0]
    (path,) = (tmp_path / "out").rglob("*desc-roi_timeseries.tsv")
    table = pd.read_csv(path, sep="\t")
    assert list(table.columns) == ["left"]
    assert table["left"].isna().tolist() == [True] + [False] * (LENGTH - 1)
    mean = series()[3:6, 3:5].mean((0, 1, 2), dtype=float)
    assert np.corrcoef(table["left"][8:], mean[8:])[0, 1] > 0.9
    assert run.volumes[-1].regions["left"] == pytest.approx(table["left"].iloc[-1], rel=1e-4)
    with pytest.raises(SettingsError, match=r"regions\.other: expected the shape of the reference"):
        process_runs(bold, motion="none", regions=[save(tmp_path / "other.nii", np.ones((2, 2, 2), np.uint8))])
    with pytest.raises(SettingsError, match=r"regions\.absent: expected a NIfTI mask"):
        process_runs(bold, motion="none", regions=[tmp_path / "absent.nii"])


def test_bad_trials_are_left_out_and_told(tmp_path: Path) -> None:
    bold = save(tmp_path / "bold.nii", series())
    events = save_events(tmp_path / "events.tsv", (-3.0, 4.0, 5.0, "soon", 500.0))
    run = process_runs(bold, events=events, motion="none").runs[0]
    assert [b.event.onset_s for b in run.finals] == [4.0, 5.0, 500.0]
    assert [b.invalid is None for b in run.finals] == [True, True, False]
    told = "\n".join(run.problems)
    assert "row 1: onset: expected seconds after the start of the run, got -3.0" in told
    assert "row 4: onset: expected seconds after the start of the run, got soon" in told
    assert "trial r01t003: onset: expected at least 6 s, the end of trial r01t002, got 5 s" in told
    assert "trial r01t005: onset: expected before the end of the run at 80 s, got 500 s" in told


@pytest.mark.parametrize("duration", [-1.0, "n/a"])
def test_without_a_usable_trial_nothing_starts(tmp_path: Path, duration: object) -> None:
    bold = save(tmp_path / "bold.nii", series())
    events = save_events(tmp_path / "events.tsv", duration=duration)
    with pytest.raises(SettingsError, match="duration: expected seconds, not negative, got"):
        process_runs(bold, events=events, motion="none")


def test_contradictions_are_told_before_the_start(tmp_path: Path) -> None:
    bold = save(tmp_path / "bold.nii", series())
    events = save_events(tmp_path / "events.tsv")
    with pytest.raises(SettingsError, match=r"t_r_s: expected 2 s as the header says, got 3 s \(--tr\)"):
        process_runs(bold, motion="none", t_r_s=3.0)
    with pytest.raises(SettingsError, match=r"--events: expected one table for each of 1 runs, got 2"):
        process_runs(bold, events=[events, events], motion="none")
    with pytest.raises(SettingsError, match="four dimensions"):
        process_runs(save(tmp_path / "one.nii", series()[..., 0]))
    with pytest.raises(SettingsError, match="found none at"):
        process_runs(tmp_path / "absent.nii")
    with pytest.raises(SettingsError, match="found none"):
        process_runs(_empty(tmp_path), motion="none")
    (tmp_path / "bold.json").write_text(json.dumps({"RepetitionTime": 1.0}))
    with pytest.raises(SettingsError, match=r"got 1 s \(sidecar RepetitionTime\)"):
        process_runs(bold, motion="none")
    with pytest.raises(SettingsError, match="trans_x"):
        process_runs(bold, motion=events)


def _empty(folder: Path) -> Path:
    empty = folder / "empty"
    empty.mkdir()
    return empty


def test_a_slab_needs_no_registration(tmp_path: Path) -> None:
    bold = save(tmp_path / "bold.nii", series())
    with pytest.raises(VolumeError, match="--motion none takes the volumes as they lie"):
        process_runs(bold)


def test_a_volume_without_a_head_leads_to_the_option_for_a_mask(tmp_path: Path) -> None:
    dots = np.full((24, 24, 16, 3), 100, np.int16)
    dots[::5, ::5, ::5] = 1000
    bold = save(tmp_path / "bold.nii", dots)
    with pytest.raises(VolumeError, match=r"give estimate\.mask a file \(--mask\)"):
        process_runs(bold)


def test_a_mask_of_another_shape_is_named(tmp_path: Path) -> None:
    bold = save(tmp_path / "bold.nii", series())
    mask = save(tmp_path / "mask.nii", np.ones((3, 3, 3), np.uint8))
    with pytest.raises(SettingsError, match=r"estimate\.mask: expected the shape of the reference \(12, 10, 2\)"):
        process_runs(bold, motion="none", settings=replace(SETTINGS, mask=mask))


def test_a_bundle_gives_mask_and_reference(tmp_path: Path) -> None:
    bold = save(tmp_path / "bold.nii", series())
    wanted = np.zeros(SHAPE, np.uint8)
    wanted[3:6, 3:5] = 1
    reference = np.asarray(series(5)[..., 3], np.float32)

    def fill(folder: Path) -> None:
        for name, data in (("mask", wanted), ("reference", reference)):
            save(folder / f"{name}.nii.gz", data)
        for name in ("adapter", "encoding", "evidence"):
            save_file({"x": np.zeros(1, np.float32)}, folder / f"{name}.safetensors")
        write_provenance(folder)
        nothing = Learned(expectation=Expectation(scales=None), voxels=None)
        nothing.save(folder / "estimate.safetensors", EstimateSettings())

    seal(tmp_path / "bundle", PARTICIPANT_SCHEMA, fill)
    found = process_runs(bold, motion="none", bundle=tmp_path / "bundle", out=tmp_path / "out")
    (picture,) = (tmp_path / "out").rglob("*desc-alignmentplot_bold.png")
    assert picture.stat().st_size > 1000
    np.testing.assert_array_equal(found.mask, wanted > 0)
    np.testing.assert_array_equal(found.reference, reference)
    (tmp_path / "bundle" / "mask.nii.gz").write_bytes(b"")
    with pytest.raises(BundleError, match="content differs"):
        process_runs(bold, motion="none", bundle=tmp_path / "bundle")


def test_the_command_exits_with_two_where_it_cannot_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["process", str(tmp_path / "absent.nii"), "--out", str(tmp_path / "out")]) == 2
    assert "expected a 4-D NIfTI file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "last_run", "runs"),
    [("[calibration]\nruns = 2\n", None, 2), ("", None, 6), ("", 3, 3)],
)
def test_a_session_tells_how_many_runs_taught_its_later_ones(
    tmp_path: Path, text: str, last_run: int | None, runs: int
) -> None:
    (tmp_path / "settings.toml").write_text(text)
    (tmp_path / "journal").mkdir()
    with closing(Journal(tmp_path / "journal" / "inputs.journal", FakeClock())) as journal:
        journal.append("bundle", folder="bundle", identity="1", last_run=last_run)
    assert calibration_runs(tmp_path) == runs


def test_a_session_without_settings_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"settings\.toml: expected the settings of the session"):
        calibration_runs(tmp_path)
