"""The whole line with a fake clock: nothing lost, nothing shifted, nothing decoded that calibration has seen."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from rtdecode import client as wire
from rtdecode.acquire.dicom import DicomReader
from rtdecode.packs import open_participant
from rtdecode.session.journal import read
from tests import bids
from tests.conftest import FakeClock
from tests.system.line_harness import PLAN, Recorder, run_visit, without_times

N = PLAN.volumes_per_run
DECODED = [t for t in PLAN.trials if t.run > PLAN.calibration_runs]


def rows(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.read_text()), delimiter="\t"))


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    return run_visit(tmp_path_factory.mktemp("visit"), FakeClock())


def test_every_volume_is_delivered_once_in_order(visit: tuple[Recorder, Path]) -> None:
    recorder, _ = visit
    expected = [(run, index) for run in range(1, PLAN.runs + 1) for index in range(N)]
    assert [(v.run, v.volume) for v in recorder.of(wire.Volume)] == expected
    assert not recorder.of(wire.Skipped)
    assert not recorder.of(wire.Fault)
    ends = [(r.run, r.received, r.skipped) for r in recorder.of(wire.Run) if r.state == "ended"]
    assert ends == [(run, N, 0) for run in range(1, PLAN.runs + 1)]


def test_sequence_numbers_have_no_gap(visit: tuple[Recorder, Path]) -> None:
    for name in set(wire.TOPICS) - {"heartbeat"}:
        seqs = [m.seq for m in visit[0].messages if wire.topic_of(m) == name]
        assert seqs == list(range(len(seqs)))


def test_every_trial_ends_in_one_final_beta_at_its_own_onset(visit: tuple[Recorder, Path]) -> None:
    betas = visit[0].of(wire.Beta)
    finals = {b.trial: b for b in betas if b.final}
    assert Counter(b.trial for b in betas if b.final) == Counter(t.trial for t in PLAN.trials)
    for trial in PLAN.trials:
        own = [b for b in betas if b.trial == trial.trial]
        assert [b.revision for b in own] == list(range(len(own)))
        final = finals[trial.trial]
        assert (final.onset_s, final.stimulus, final.run) == (trial.onset_s, trial.stimulus, trial.run)
        assert final.delay_s == pytest.approx((final.volume + 1) * PLAN.t_r_s - trial.onset_s)
        assert final.delay_s >= 8.0


def test_only_trials_that_calibration_never_saw_are_decoded(visit: tuple[Recorder, Path]) -> None:
    recorder, folder = visit
    calibrated = set(open_participant(folder / "bundle").provenance.stimuli)
    scores = recorder.of(wire.Score)
    assert {s.trial for s in scores} == {t.trial for t in DECODED}
    assert not calibrated & {s.stimulus for s in scores}
    assert all(s.pool == len(PLAN.trials) - len(calibrated) for s in scores)
    kinds = [wire.topic_of(m) for m in recorder.messages]
    loaded = next(i for i, m in enumerate(recorder.messages) if isinstance(m, wire.Session) and m.mode == "decode")
    assert "score" not in kinds[:loaded]


def test_feedback_of_a_trial_comes_just_before_its_score(visit: tuple[Recorder, Path]) -> None:
    told = [m for m in visit[0].messages if isinstance(m, (wire.Feedback, wire.Score))]
    shown, scores = told[::2], told[1::2]
    assert len(shown) == len(scores) > 0
    for one, score in zip(shown, scores, strict=True):
        assert isinstance(one, wire.Feedback)
        assert isinstance(score, wire.Score)
        assert (one.trial, one.revision, one.final, one.run, one.volume) == (
            score.trial, score.revision, score.final, score.run, score.volume
        )  # fmt: skip
        assert one.value == score.probabilities["face"]
        assert (one.state, one.invalid) == (("shown", None) if score.supported else ("held", score.refused))


def test_pictures_and_captions_are_revised_until_final(visit: tuple[Recorder, Path]) -> None:
    for kind in (wire.Score, wire.Embedding, wire.Caption, wire.Reconstruction):
        messages = visit[0].of(kind)
        for trial in DECODED:
            own = [m for m in messages if m.trial == trial.trial]
            assert len(own) >= 2
            assert [m.final for m in own] == [False] * (len(own) - 1) + [True]
            assert [m.revision for m in own] == sorted({m.revision for m in own})
    picture = visit[0].of(wire.Reconstruction)[-1]
    with Image.open(io.BytesIO(picture.image)) as image:
        assert image.size == (picture.width, picture.height)
    scores = visit[0].of(wire.Score)
    assert all(sum(s.probabilities.values()) == pytest.approx(1) for s in scores)
    assert all(0 < s.p_content <= 1 and 0 < s.p_motion <= 1 and 0 <= s.evidence <= 1 for s in scores)


def test_heartbeats_tell_how_long_decoding_takes(visit: tuple[Recorder, Path]) -> None:
    first, *_, last = visit[0].of(wire.Heartbeat)
    assert first.decode_ms == {}
    assert set(last.decode_ms) == {"embed", "caption", "reconstruct"}
    assert all(ms > 0 for ms in last.decode_ms.values())
    assert (last.gpu_bytes, last.worker_restarts) == (None, 0)


def test_the_session_folder_holds_everything(visit: tuple[Recorder, Path]) -> None:
    recorder, folder = visit
    inputs = list(read(folder / "journal" / "inputs.journal"))
    assert Counter(r["kind"] for r in inputs)["volume"] == PLAN.runs * N
    assert {"bundle", "bundle_loaded"} <= {r["kind"] for r in inputs}
    outputs = [(r["topic"].encode(), r["payload"]) for r in read(folder / "journal" / "outputs.journal")]
    assert outputs == [wire.pack(m) for m in recorder.messages if not isinstance(m, wire.Heartbeat)]
    func = folder / "sub-sim" / "ses-01" / "func"
    stem = "sub-sim_ses-01_task-rtdecode_run-03"
    motion = rows(func / f"{stem}_desc-motion_timeseries.tsv")
    assert len(motion) == N
    decoded = rows(func / f"{stem}_desc-decoded_events.tsv")
    assert [row["trial"] for row in decoded] == [t.trial for t in DECODED]
    assert all((folder / row["recon"]).is_file() and row["caption"] for row in decoded)
    mask = np.asarray(nib.load(func / "sub-sim_ses-01_desc-brain_mask.nii.gz").dataobj) > 0
    betas = nib.load(func / f"{stem}_desc-trial_betas.nii.gz").get_fdata()[mask]
    finals = [b for b in recorder.of(wire.Beta) if b.final and b.run == 3]
    sent = np.stack([np.frombuffer(b.beta.data, b.beta.dtype) for b in finals], axis=1)
    assert np.array_equal(betas.astype(np.float32), sent)


def test_the_session_folder_is_a_bids_dataset(visit: tuple[Recorder, Path]) -> None:
    assert bids.errors(visit[1]) == []


def test_raw_volumes_are_kept_losslessly(visit: tuple[Recorder, Path]) -> None:
    _, folder = visit
    export = sorted((folder.parent / "export").glob("*.dcm"))
    assert len(export) == PLAN.runs * N
    reader = DicomReader()
    for path, kept in ((export[0], "run-01/vol-0000.nii"), (export[-1], f"run-03/vol-{N - 1:04d}.nii")):
        image = nib.load(folder / "journal" / "volumes" / kept)
        (volume,) = reader.read(path).volumes
        assert np.array_equal(np.asarray(image.dataobj.get_unscaled()), volume.data)
        assert np.allclose(image.affine, volume.affine, atol=1e-3)


def test_the_same_seed_gives_the_same_session(visit: tuple[Recorder, Path], tmp_path: Path) -> None:
    again, _ = run_visit(tmp_path, FakeClock())
    assert [without_times(m) for m in again.messages] == [without_times(m) for m in visit[0].messages]


def test_a_truncated_volume_is_skipped_with_its_reason_and_nothing_else_is_lost(
    visit: tuple[Recorder, Path], tmp_path: Path
) -> None:
    def truncate(run: int, volume: int, export: Path) -> None:
        if (run, volume) == (3, 20):
            newest = max(export.glob("*.dcm"))
            os.truncate(newest, newest.stat().st_size // 2)

    recorder, _ = run_visit(tmp_path, FakeClock(), spoil=truncate)
    got = [(v.run, v.volume) for v in recorder.of(wire.Volume)]
    assert got == [(v.run, v.volume) for v in visit[0].of(wire.Volume) if (v.run, v.volume) != (3, 20)]
    (skipped,) = recorder.of(wire.Skipped)
    assert (skipped.run, skipped.volume) == (3, 20)
    assert "truncated" in skipped.reason
    assert {s.trial for s in recorder.of(wire.Score) if s.final} == {t.trial for t in DECODED}
    assert [(f.kind, f.over) for f in recorder.of(wire.Fault)] == [("no-volume", False), ("no-volume", True)]


def test_a_missing_last_volume_is_declared_and_the_run_is_closed(tmp_path: Path) -> None:
    def remove(run: int, volume: int, export: Path) -> None:
        if (run, volume) == (3, N - 1):
            max(export.glob("*.dcm")).unlink()

    recorder, _ = run_visit(tmp_path, FakeClock(), spoil=remove)
    assert [(s.run, s.volume, s.reason) for s in recorder.of(wire.Skipped)] == [
        (3, N - 1, "missing at the end of the run")
    ]
    assert [(r.received, r.skipped) for r in recorder.of(wire.Run) if r.state == "ended"][-1] == (N - 1, 1)


def test_a_disk_nearly_full_is_a_fault_and_the_scan_has_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"bytes": 1 << 40}
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free["bytes"]))

    def fill(run: int, volume: int, export: Path) -> None:
        free["bytes"] = 1 << 30 if run == 3 and volume >= 25 else 1 << 40

    recorder, folder = run_visit(tmp_path, FakeClock(), spoil=fill)
    assert [(f.kind, "1.0 GiB" in f.reason, f.over) for f in recorder.of(wire.Fault)] == [("low", True, False)]
    assert len(recorder.of(wire.Volume)) == PLAN.runs * N
    assert len(list((folder / "journal" / "volumes").rglob("*.nii"))) == PLAN.runs * N
    pictures = recorder.of(wire.Reconstruction)
    assert {p.trial for p in pictures if p.final} == {t.trial for t in DECODED}
    assert 0 < len(list((folder / "recon").iterdir())) < len(pictures)


def test_an_export_folder_that_goes_away_is_a_fault_and_its_return_is_not(tmp_path: Path) -> None:
    def unmount(run: int, volume: int, export: Path) -> None:
        away = export.with_name("away")
        if (run, volume) == (1, 10):
            export.rename(away)
            export.mkdir()
            export.rmdir()
            clock.sleep(1.5)
            away.rename(export)

    clock = FakeClock()
    recorder, _ = run_visit(tmp_path, clock, spoil=unmount)
    assert [(f.part, f.kind, f.over) for f in recorder.of(wire.Fault)] == [
        ("acquire", "folder", False), ("acquire", "folder", True),
    ]  # fmt: skip
    assert len(recorder.of(wire.Volume)) == PLAN.runs * N
