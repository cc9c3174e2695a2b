"""What the one writer of derivatives writes, row by row and at the end of a run."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from rtdecode.derivatives import RunDerivatives, Voxels, decoded_rows, session_stem
from rtdecode.derivatives.columns import GrowingTable
from rtdecode.derivatives.decoded_trials import DecodedTrials
from rtdecode.derivatives.names import whole
from rtdecode.process.tables import read_events, told_apart
from rtdecode.records import BetaUpdate, RegisteredVolume, Stamp, TrialEvent
from rtdecode.settings import EstimateSettings
from tests.unit.test_decoded import SCORE

MASK = np.zeros((4, 3, 2), bool)
MASK[1:3, 1, :] = True
AFFINE = np.array([[-2.0, 0, 0, 40], [0, 2.5, 0.1, -30], [0, -0.1, 3, -20], [0, 0, 0, 1]])
SPACE = Voxels(
    reference=np.arange(24, dtype=np.float32).reshape(4, 3, 2), affine=AFFINE, mask=MASK, centre_mm=np.arange(3.0)
)
FIGURES = {"VolumesUsed": 2}


def volume(index: int, **regions: float) -> RegisteredVolume:
    return RegisteredVolume(
        stamp=Stamp(session="s", run=1, volume=index, received_s=0.0, received_mono_s=0.0),
        masked=np.ones(4, np.float32),
        matrix=np.eye(4),
        motion=np.array([0.1, 1 / 3, -2.0, 1e-5, 0.0, 3e-4]) * index,
        fd_mm=0.5 * index,
        dvars=1.25,
        tsnr=float("nan") if index < 8 else 50.0,
        fit=0.99,
        regions=regions,
    )


def final(trial: str, onset_s: float, values: list[float], invalid: str | None = None) -> BetaUpdate:
    event = TrialEvent(run=1, trial=trial, onset_s=onset_s, duration_s=2.0)
    stamp = Stamp(session="s", run=1, volume=9, trial=trial, received_s=0.0, received_mono_s=0.0)
    beta = np.array(values, np.float32)
    return BetaUpdate(
        stamp=stamp, event=event, revision=2, final=True, delay_s=20 - onset_s, beta=beta, invalid=invalid
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def finish(run: RunDerivatives, *finals: BetaUpdate, problems: tuple[str, ...] = ()) -> None:
    settings = EstimateSettings()
    run.finish(finals, t_r_s=2.0, settings=settings, space=SPACE, figures=FIGURES, problems=problems)


def test_row_i_is_volume_i_whatever_is_told_of_those_before(tmp_path: Path) -> None:
    run = RunDerivatives(tmp_path / "sub-01_run-01")
    run.skipped(1, "it was\ttruncated")
    run.volume(volume(3, left=0.25))
    run.volume(replace(volume(9, left=float("nan")), censored=True))
    finish(run)
    quality = rows(tmp_path / "sub-01_run-01_desc-quality_timeseries.tsv")
    assert [row["volume"] for row in quality] == [str(i) for i in range(10)]
    why = ["missing", "it was truncated", "missing", "n/a", *["missing"] * 5, "n/a"]
    assert [row["skipped"] for row in quality] == why
    assert (quality[3]["censored"], quality[9]["censored"], quality[0]["censored"]) == ("0", "1", "n/a")
    assert (quality[3]["tsnr"], quality[9]["tsnr"]) == ("n/a", "50")
    motion = rows(tmp_path / "sub-01_run-01_desc-motion_timeseries.tsv")
    assert float(motion[9]["trans_y"]) == pytest.approx(3.0)
    assert {*motion[2].values()} == {"n/a"}
    regions = rows(tmp_path / "sub-01_run-01_desc-roi_timeseries.tsv")
    assert [row["left"] for row in regions] == ["n/a"] * 3 + ["0.25"] + ["n/a"] * 6
    told = json.loads((tmp_path / "sub-01_run-01_desc-motion_timeseries.json").read_text())
    assert told["rot_z"] == {"Units": "rad", "RotationCentre_mm": [0.0, 1.0, 2.0]}
    summary = json.loads((tmp_path / "sub-01_run-01_desc-quality_summary.json").read_text())
    assert (summary["Volumes"], summary["VolumesSkipped"], summary["VolumesUsed"]) == (10, 8, 2)


def test_invalid_trials_are_kept_in_their_place(tmp_path: Path) -> None:
    run = RunDerivatives(tmp_path / "sub-01_run-01")
    run.volume(volume(0))
    nan = float("nan")
    finish(run, final("b", 4.0, [nan] * 4, "too little"), final("c", 6.0, [5, 6, 7, 8]), final("a", 2.0, [1, 2, 3, 4]))
    image = nib.load(tmp_path / "sub-01_run-01_desc-trial_betas.nii.gz")
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.affine, AFFINE.astype(np.float32))
    assert image.header.get_xyzt_units()[0] == "mm"
    data = np.asarray(image.dataobj)
    np.testing.assert_array_equal(data[MASK].T, [[1, 2, 3, 4], [nan] * 4, [5, 6, 7, 8]])
    assert (data[~MASK] == 0).all()
    table = rows(tmp_path / "sub-01_run-01_desc-trial_events.tsv")
    assert [(row["trial"], row["invalid"]) for row in table] == [("a", "n/a"), ("b", "too little"), ("c", "n/a")]
    assert [float(row["time_after_onset"]) for row in table] == [18.0, 16.0, 14.0]
    summary = json.loads((tmp_path / "sub-01_run-01_desc-quality_summary.json").read_text())
    assert (summary["Trials"], summary["TrialsInvalid"]) == (3, {"b": "too little"})


def test_a_trial_that_no_volume_can_tell_of_is_marked_behind_the_others(tmp_path: Path) -> None:
    run = RunDerivatives(tmp_path / "sub-01_run-01")
    run.volume(volume(0))
    finish(run, final("a", 2.0, [1, 2, 3, 4]))
    late = TrialEvent(run=1, trial="late", onset_s=1.0, duration_s=1.0)
    run.event(late)
    run.no_result(late, "its run was over")
    table = rows(tmp_path / "sub-01_run-01_desc-trial_events.tsv")
    assert [(row["trial"], row["volume"], row["invalid"]) for row in table] == [
        ("a", "9", "n/a"), ("late", "n/a", "its run was over"),
    ]  # fmt: skip
    assert nib.load(tmp_path / "sub-01_run-01_desc-trial_betas.nii.gz").shape[3] == 1
    motion = json.loads((tmp_path / "sub-01_run-01_desc-motion_timeseries.json").read_text())
    run.close()
    assert json.loads((tmp_path / "sub-01_run-01_desc-motion_timeseries.json").read_text()) == motion
    never = RunDerivatives(tmp_path / "sub-01_run-09")
    never.no_result(replace(late, run=9), "never scanned")
    assert [row["invalid"] for row in rows(tmp_path / "sub-01_run-09_desc-trial_events.tsv")] == ["never scanned"]
    assert not list(tmp_path.glob("*run-09*.nii.gz"))


def test_a_table_is_whole_in_the_end_where_the_disk_refused_rows(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    refused: list[str] = []

    @contextmanager
    def guard(path: Path) -> Iterator[Path]:
        try:
            yield path
        except OSError:
            refused.append(path.name)

    table = GrowingTable(folder / "x.tsv", {"n": {}}, guard)
    table.add([0])
    table.close()
    folder.rename(tmp_path / "away")
    table.add([1])
    table.add([None])
    (tmp_path / "away").rename(folder)
    assert refused == ["x.tsv", "x.tsv"]
    table.close()
    assert (folder / "x.tsv").read_text() == "n\n0\n1\nn/a\n"


def test_a_file_that_could_not_be_written_leaves_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("former")

    def spoilt() -> None:
        with whole(path) as draft:
            draft.write_text("half")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        spoilt()
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("summary.json", "former")]


def test_the_events_of_a_session_are_read_as_they_were_announced(tmp_path: Path) -> None:
    shown = [
        TrialEvent(run=1, trial="b", onset_s=100 / 3, duration_s=0.1, stimulus="cat 07", condition="rest"),
        TrialEvent(run=1, trial="a", onset_s=1e-7, duration_s=2.0),
        TrialEvent(run=1, trial="late", onset_s=12345.678901234, duration_s=0.0, condition="cat"),
    ]
    run = RunDerivatives(tmp_path / "sub-01_run-01")
    for event in shown:
        run.event(event)
    found = read_events(tmp_path / "sub-01_run-01_events.tsv", 1)
    fields = ("trial", "onset_s", "duration_s", "stimulus", "condition")
    assert [[getattr(e, f) for f in fields] for e in found.trials] == [[getattr(e, f) for f in fields] for e in shown]
    assert found.problems == ()
    run.close()
    again = told_apart([found, read_events(tmp_path / "sub-01_run-01_events.tsv", 2)])
    assert [e.trial for one in again for e in one.trials] == [f"r{r:02d}t{t:03d}" for r in (1, 2) for t in (1, 2, 3)]
    assert told_apart([found]) == [found]


@pytest.mark.parametrize("names", [("1", "n/a"), ("1", "1")])
def test_a_table_that_only_looks_like_a_sessions_is_read_as_any_other(tmp_path: Path, names: tuple[str, str]) -> None:
    shown = [f"6.0\t1.0\tface\t{names[0]}\tn/a", f"4.0\t1.0\trest\t{names[1]}\tn/a"]
    path = tmp_path / "events.tsv"
    path.write_text("\n".join(["onset\tduration\ttrial_type\ttrial\tstim_id", *shown]) + "\n")
    found = read_events(path, 1)
    assert [(e.trial, e.condition) for e in found.trials] == [("r01t001", "face")]


def test_what_all_runs_share_is_named_without_run_and_made_up_task(tmp_path: Path) -> None:
    entities = {"sub": "01", "ses": "02", "run": "3"}
    func = tmp_path / "sub-01" / "ses-02" / "func"
    assert session_stem(tmp_path, {**entities, "task": "faces"}) == func / "sub-01_ses-02_task-faces"
    assert session_stem(tmp_path, {**entities, "task": "rtdecode"}) == func / "sub-01_ses-02"


def test_the_claim_of_a_session_is_that_of_its_last_decoded_trial(tmp_path: Path) -> None:
    func = tmp_path / "sub-01" / "ses-01" / "func"
    func.mkdir(parents=True)

    def table() -> DecodedTrials:
        stem = func / "sub-01_ses-01"
        return DecodedTrials(tmp_path, lambda run: Path(f"{stem}_run-{run:02d}"), nullcontext, resume=True)

    def told() -> float:
        reading = table()
        reading.close()
        return reading.claim()

    assert told() == 1.0
    claims = (1.5, 2.0**-60, 1 / 3)
    for run, claim in enumerate(claims, start=9):
        update = final(f"r{run}", 1.0, [1.0])
        writing = table()
        event = replace(update.event, run=run)
        writing.add(replace(update, event=event), [replace(SCORE, claim=claim)], "", 1.0)
        writing.close()
        assert told() == claim
    (*_, row) = decoded_rows(tmp_path)
    assert (row["supported"], row["plausible"], row["p_content"], row["null"]) == ("1", "cat,dog", "0.0200", "repeats")


def test_decoded_trials_go_on_after_their_last_whole_row(tmp_path: Path) -> None:
    stem = tmp_path / "sub-01" / "ses-01" / "func" / "sub-01_ses-01_run-01"
    stem.parent.mkdir(parents=True)

    @contextmanager
    def guard(path: Path) -> Iterator[Path]:
        yield path

    def add(table: DecodedTrials, trial: str) -> None:
        table.add(final(trial, 1.0, [1.0]), [SCORE], "", 12.34)
        table.close()

    for torn in ("", "1.0\t2.0\tn/a\thalf"):
        add(DecodedTrials(tmp_path, lambda run: stem, guard, resume=False), "a")
        path = stem.with_name(f"{stem.name}_desc-decoded_events.tsv")
        path.write_text(path.read_text() + torn)
        again = DecodedTrials(tmp_path, lambda run: stem, guard, resume=True)
        assert again.trials() == {"a"}
        add(again, "b")
        assert [(row["trial"], row["recon"]) for row in decoded_rows(tmp_path)] == [("a", "n/a"), ("b", "n/a")]
    path.write_text("onset\tdura")  # torn in its first line
    assert again.claim() == 1.0
    emptied = DecodedTrials(tmp_path, lambda run: stem, guard, resume=True)
    add(emptied, "c")
    assert [row["trial"] for row in decoded_rows(tmp_path)] == ["c"]
